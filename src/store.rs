//! [`Store`]: the handle that people hold.

use crate::actors::connection::{Calls, Connection, Subscribe, acquire, call_until, elect, send};
use crate::actors::errand::Errands;
use crate::actors::lease::Leases;
use crate::actors::locks::Locks;
use crate::actors::watchers::Watchers;
use crate::backend::{self, Connector, Target};
use crate::call::Rules;
use crate::config::{Config, MAX_TIMEOUT, Options};
use crate::election::{CampaignOptions, LeaderStream, Leadership};
use crate::error::{Error, Result};
use crate::key::{Dir, Key, Namespace};
use crate::link::link;
use crate::lock::{LockGuard, LockOptions};
use crate::messages::{
    AtomicDelete, AtomicPut, Campaign, Close, Delete, DeleteTree, Exists, Get, List, ListKeys, Put, Register, Request,
    Txn,
};
use crate::near::Near;
use crate::registration::Registration;
use crate::runtime;
use crate::supervisor::{Closing, Supervisor, initial_status};
use crate::types::{
    Capabilities, Check, Consistency, Expected, KvPair, LinkState, ListOptions, Operation, Page, PutOptions, Status,
    TxnOutcome, Version, Written,
};
use crate::watch::{Events, TreeStream, WatchStream};
use actix::{Actor, Addr};
use bytes::Bytes;
use futures_util::Stream;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

/// A key/value store on one of the backends: the handle that programs hold.
///
/// Cloning is cheap, and clones share one connection. A handle is `Send` and `Sync`, works in any tokio runtime and in actix
/// systems, and stays valid while the connection is lost and restored. The store is closed by [`close`](Store::close), or in
/// the background when the last handle is dropped.
///
/// # All calls
/// - **Deadline**: a call ends within [`Options::request_timeout`], or what [`with_request_timeout`](Store::with_request_timeout)
///   says, whatever happens. While the link is down calls wait for it, and fail with [`Error::Unreachable`] at the deadline.
/// - **Connection loss**: reads are tried again until their deadline, writes too where they certainly had no effect. A write
///   whose answer was lost fails with [`Error::Indeterminate`] and is never repeated.
/// - **Cancel safety**: dropping the future of a call abandons its answer; the call itself may or may not be carried out.
/// - **Errors**: bad input is refused before any I/O, with [`Error::InvalidKey`], [`Error::ValueTooLarge`],
///   [`Error::Unsupported`] or [`Error::InvalidConfig`]. After the store was closed every call fails with
///   [`Error::Closed`]. Beside what the calls say themselves each may fail with [`Error::Unreachable`], [`Error::Timeout`],
///   [`Error::PermissionDenied`], [`Error::Unauthenticated`] and [`Error::Backend`], and a write with
///   [`Error::Indeterminate`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> kvactor::Result<()> {
/// use kvactor::Store;
///
/// let store = Store::connect("memory://docs").await?;
/// store.put("services/web/1", "10.0.0.1:80").await?;
/// assert_eq!(store.get("services/web/1").await?.value, "10.0.0.1:80");
/// store.close().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    timeout: Duration,
}

/// What the clones of a handle share. The supervisor closes the store when this is dropped, for `_open` goes with it.
struct Shared {
    connection: Addr<Connection>,
    near: Near,
    status: watch::Receiver<Status>,
    capabilities: Capabilities,
    _open: mpsc::Sender<Closing>,
}

/// Options of [`Store::delete_tree_with`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeleteTreeOptions {
    /// Whether the root may be given, to delete the whole namespace.
    pub allow_root: bool,
}

/// How long the store's actors may take to start. Only a thread that is blocked, or a system that isn't run, takes long.
const START: Duration = Duration::from_secs(10);

impl Store {
    /// Opens the store that a URL describes; see [`Config`] for URLs.
    ///
    /// Waits until a server has answered, unless the URL says `lazy=true`. On a thread of an actix system the store's actors
    /// run there; elsewhere they run on a thread of their own, which ends with the store.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]; [`Error::Unsupported`] where this build lacks the backend's feature; what the last endpoint
    /// answered where none would do: [`Error::Unreachable`], [`Error::Unauthenticated`], [`Error::PermissionDenied`], ...
    pub async fn connect(url: &str) -> Result<Self> {
        Store::open(Config::from_url(url)?).await
    }

    /// Opens the store that `config` describes; like [`connect`](Store::connect).
    ///
    /// # Errors
    /// As [`connect`](Store::connect).
    pub async fn open(config: Config) -> Result<Self> {
        let connector = backend::connector(&config)?;
        Store::start(connector, &config.namespace, config.options).await
    }

    /// Opens a store on a backend of your own. Keys arrive at it as callers give them; a namespace is the backend's affair.
    ///
    /// The example `custom_backend` has one that is complete; [`connector`](crate::connector) has the drivers of this crate, for one
    /// that wraps them.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], and what the connector's own attempts fail with.
    pub async fn with_backend(connector: impl Connector, options: Options) -> Result<Self> {
        options.validate()?;
        Store::start(Arc::new(connector), &Namespace::default(), options).await
    }

    async fn start(connector: Arc<dyn Connector>, namespace: &Namespace, options: Options) -> Result<Self> {
        let capabilities = connector.capabilities();
        let rules = Rules::new(namespace, options.max_value_size, capabilities.clone())?;
        let (status_sender, status) = watch::channel(initial_status(connector.as_ref()));
        let (open, closing) = mpsc::channel(1);
        let (opened, wait_opened) = oneshot::channel();
        let (started, wait_started) = oneshot::channel();
        let timeout = options.request_timeout;
        let weak = open.downgrade();
        runtime::spawn(move || async move {
            let (link, view, reports) = link();
            let errands = Errands::new(view.clone(), timeout);
            let leases = Leases::new(errands.clone());
            let watchers = Watchers::new(view.clone(), &options, status_sender.clone());
            let locks = Locks::new(errands, watchers.clone(), status_sender.clone());
            let calls = Rc::new(Calls::new(
                view,
                leases.clone(),
                watchers,
                locks.clone(),
                rules,
                status_sender.clone(),
                &options,
            ));
            let (near, open) = watch::channel(None);
            let _ = started.send((Connection::new(calls.clone(), weak).start(), calls.near(open)));
            let (status, supervised) = (status_sender, calls.clone());
            let supervisor = Supervisor {
                connector,
                options,
                link,
                near,
                status,
                reports,
                closing,
                leases,
                locks,
                calls: supervised,
            };
            supervisor.run(opened).await;
            calls.drained().await;
        })?;
        let dead = || Error::backend("the thread of the store's actors ended while it started");
        let (connection, near) = match timeout_at(Instant::now() + START, wait_started).await {
            Ok(started) => started.map_err(|_| dead())?,
            Err(_) => return Err(Error::backend("the actix system of this thread does not run its actors")),
        };
        // From here on dropping this future closes the store again.
        let store = Store { shared: Arc::new(Shared { connection, near, status, capabilities, _open: open }), timeout };
        wait_opened.await.map_err(|_| dead())??;
        Ok(store)
    }

    /// The same store with another deadline for the calls made through this handle, of a year at the most.
    #[must_use]
    pub fn with_request_timeout(&self, timeout: Duration) -> Self {
        Store { shared: self.shared.clone(), timeout: timeout.min(MAX_TIMEOUT) }
    }

    /// The address of the store's connection, for actix applications that send [`messages`](crate::messages). It doesn't keep
    /// the store open: when the last handle is dropped, messages are answered with [`Error::Closed`], or refused with actix's
    /// `MailboxError::Closed` where the thread of the store's own is gone.
    pub fn addr(&self) -> Addr<Connection> {
        self.shared.connection.clone()
    }

    /// What the backend can do, and its limits.
    pub fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    /// How the store is doing.
    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// How the store is doing: now, and whenever it changes. Changes that come faster than they are taken are merged. The
    /// stream ends when the store is closed; it doesn't keep it open.
    pub fn status_stream(&self) -> impl Stream<Item = Status> + Send + Unpin + use<> {
        tokio_stream::wrappers::WatchStream::new(self.shared.status.clone())
    }

    /// The pair at `key`, linearizable.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`], and [those of all calls](Store#all-calls).
    pub async fn get<K>(&self, key: K) -> Result<KvPair>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.call(Get::new(key)?).await
    }

    /// The pair at `key`, as fresh as `consistency` says.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`], and [those of all calls](Store#all-calls).
    pub async fn get_with<K>(&self, key: K, consistency: Consistency) -> Result<KvPair>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.call(Get { consistency, ..Get::new(key)? }).await
    }

    /// Whether `key` exists, linearizable. A directory is no key.
    ///
    /// # Errors
    /// [Those of all calls](Store#all-calls).
    pub async fn exists<K>(&self, key: K) -> Result<bool>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.call(Exists::new(key)?).await
    }

    /// Whether `key` exists, as fresh as `consistency` says.
    ///
    /// # Errors
    /// [Those of all calls](Store#all-calls).
    pub async fn exists_with<K>(&self, key: K, consistency: Consistency) -> Result<bool>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.call(Exists { consistency, ..Exists::new(key)? }).await
    }

    /// Writes `value` to `key`, which becomes permanent, and returns the version of this very write.
    ///
    /// One round trip. ZooKeeper needs more where the key doesn't exist yet.
    ///
    /// # Errors
    /// [`Error::Unsupported`] beneath a key with a TTL on ZooKeeper, and [those of all calls](Store#all-calls).
    pub async fn put<K>(&self, key: K, value: impl Into<Bytes>) -> Result<Version>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        Ok(self.call(Put::new(key, value)?).await?.version)
    }

    /// Writes `value` to `key`, with options.
    ///
    /// A key with a TTL is gone no earlier than `ttl` after the write and, while this process lives and reaches the server,
    /// no later than `ttl` + 1 s. If the process dies, the server's own bound counts, which is returned:
    ///
    /// | backend | how long the key can outlive the process |
    /// |---|---|
    /// | etcd | the lease: `ttl` in whole seconds, one or two more, at least 2 s |
    /// | Consul | twice the session's TTL, which is about `ttl` / 2 and at least 10 s |
    /// | ZooKeeper | the session timeout, even where `ttl` is longer; also when the store is closed |
    /// | local | `ttl` and almost a second; the key is purged at the next opening |
    /// | memory | not at all |
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a TTL outside of the backend's bounds, which it names, and for one on a key that has keys
    /// beneath it on ZooKeeper; [those of all calls](Store#all-calls).
    pub async fn put_with<K>(&self, key: K, value: impl Into<Bytes>, options: PutOptions) -> Result<Written>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.call(Put { options, ..Put::new(key, value)? }).await
    }

    /// Deletes `key`. Of two racing calls one succeeds and the other fails with [`Error::KeyNotFound`].
    ///
    /// # Errors
    /// [`Error::KeyNotFound`], and [those of all calls](Store#all-calls).
    pub async fn delete<K>(&self, key: K) -> Result<()>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.call(Delete::new(key)?).await
    }

    /// All pairs strictly beneath `dir`, sorted by the bytes of their keys. `""` is the root of the namespace.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`] where neither the directory nor a key of its name exists; a key with nothing beneath it lists
    /// as empty, and so does an empty root. [Those of all calls](Store#all-calls).
    pub async fn list<D>(&self, dir: D) -> Result<Vec<KvPair>>
    where
        D: TryInto<Dir>,
        Error: From<D::Error>,
    {
        Ok(self.list_with(dir, ListOptions::default()).await?.items)
    }

    /// Pairs strictly beneath `dir`, with options.
    ///
    /// Where `limit` cuts the listing, [`Page::next`] is where it goes on. Each page of a limited listing costs about what
    /// it holds; on Consul, which can't cut listings, it costs the whole directory each time.
    ///
    /// # Errors
    /// As [`list`](Store::list); a continuation that finds nothing more is an empty page.
    pub async fn list_with<D>(&self, dir: D, options: ListOptions) -> Result<Page<KvPair>>
    where
        D: TryInto<Dir>,
        Error: From<D::Error>,
    {
        self.call(List { dir: dir.try_into()?, options }).await
    }

    /// Keys strictly beneath `dir`, without their values.
    ///
    /// # Errors
    /// As [`list_with`](Store::list_with).
    pub async fn list_keys<D>(&self, dir: D, options: ListOptions) -> Result<Page<Key>>
    where
        D: TryInto<Dir>,
        Error: From<D::Error>,
    {
        self.call(ListKeys { dir: dir.try_into()?, options }).await
    }

    /// Deletes all keys strictly beneath `dir` and returns how many they were. The root is refused.
    ///
    /// At one moment, but on ZooKeeper, where the keys go in batches, the deepest first; keys that others write meanwhile
    /// may stay.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`] where neither the directory nor a key of its name exists; [`Error::InvalidKey`] for the root;
    /// [those of all calls](Store#all-calls).
    pub async fn delete_tree<D>(&self, dir: D) -> Result<u64>
    where
        D: TryInto<Dir>,
        Error: From<D::Error>,
    {
        self.delete_tree_with(dir, DeleteTreeOptions::default()).await
    }

    /// As [`delete_tree`](Store::delete_tree), with options.
    ///
    /// # Errors
    /// As [`delete_tree`](Store::delete_tree).
    pub async fn delete_tree_with<D>(&self, dir: D, options: DeleteTreeOptions) -> Result<u64>
    where
        D: TryInto<Dir>,
        Error: From<D::Error>,
    {
        self.call(DeleteTree { dir: dir.try_into()?, allow_root: options.allow_root }).await
    }

    /// Writes `value` to `key`, which becomes permanent, if the key is as `expected`: a [`Version`], a pair read before, or
    /// [`Expected::Absent`]. Returns the pair as written by this very call.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> kvactor::Result<()> {
    /// use kvactor::{Expected, Store};
    ///
    /// let store = Store::connect("memory://atomic-put").await?;
    /// let first = store.atomic_put("leader", "a", Expected::Absent).await?;
    /// let second = store.atomic_put("leader", "b", &first).await?;
    /// assert!(store.atomic_put("leader", "c", &first).await.is_err());
    /// assert_eq!(store.get("leader").await?, second);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::KeyExists`] where absence was expected; [`Error::KeyModified`], or [`Error::KeyNotFound`] where the key is
    /// gone, where a version was; [`Error::Unsupported`] for a version of another backend; [those of all calls](Store#all-calls).
    ///
    /// A version never matches a later incarnation of its key. On ZooKeeper, whose counters start again with each, there is
    /// a window of about one round trip, between the check of the incarnation and the write, in which somebody would have to
    /// delete the key, make it anew, and write it just as often.
    pub async fn atomic_put<K>(&self, key: K, value: impl Into<Bytes>, expected: impl Into<Expected>) -> Result<KvPair>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.call(AtomicPut::new(key, value, expected)?).await
    }

    /// Deletes `key` if it has this version.
    ///
    /// # Errors
    /// [`Error::KeyModified`], [`Error::KeyNotFound`], [`Error::Unsupported`] for a version of another backend, and
    /// [those of all calls](Store#all-calls). The remark on versions at [`atomic_put`](Store::atomic_put) holds here too.
    pub async fn atomic_delete<K>(&self, key: K, version: Version) -> Result<()>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.call(AtomicDelete::new(key, version)?).await
    }

    /// Applies all `operations` at one moment if all `checks` hold, and otherwise none of them. At most 64 checks and
    /// operations together, and no key is changed twice.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> kvactor::Result<()> {
    /// use kvactor::{Check, Condition, Operation, Store, TxnOutcome};
    ///
    /// let store = Store::connect("memory://txn").await?;
    /// let checks = vec![Check::new("queue/1", Condition::Absent)?];
    /// let operations = vec![Operation::put("queue/1", "job")?, Operation::put("queue/last", "1")?];
    /// let outcome = store.txn(checks, operations).await?;
    /// assert!(matches!(outcome, TxnOutcome::Committed(_)));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a transaction that is too large or changes a key twice; [those of all calls](Store#all-calls).
    /// A check that does not hold is no error but an outcome.
    pub async fn txn(&self, checks: Vec<Check>, operations: Vec<Operation>) -> Result<TxnOutcome> {
        self.call(Txn { checks, operations }).await
    }

    /// Tells what becomes of `key`, from its present state on; it need not exist. Returns when that state is known, and the
    /// stream then has it as its first event.
    ///
    /// - **What is told**: every write and deletion as an event, in order, on etcd, local and memory. Consul and ZooKeeper merge
    ///   changes that come faster than their notifications: the last state always arrives. No event repeats an unchanged state.
    /// - **Connection loss**: the stream goes on over lost connections, restarted servers, lost sessions and history that is
    ///   gone. [`WatchEvent::Suspended`](crate::WatchEvent::Suspended) says that the link is down. When it is back the watch
    ///   tells just what differs from what it told before, deletions included, and then goes on.
    /// - **Slow subscribers**: beyond [`Options::watch_buffer`] events that wait, they are merged by key: the newest value,
    ///   and a deletion before it. Nobody else is delayed.
    /// - **Cost**: one watch at the server for each key, however many subscribe to it through this store.
    /// - **End**: dropping the stream ends the subscription. It doesn't keep the store open.
    ///
    /// Cancel safe: dropping this future leaves no subscription.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> kvactor::Result<()> {
    /// use kvactor::{Store, WatchEvent};
    ///
    /// let store = Store::connect("memory://watch").await?;
    /// let mut primary = store.watch("primary").await?;
    /// assert!(matches!(primary.next().await, Some(WatchEvent::Delete { version: None, .. })));
    /// store.put("primary", "10.0.0.1").await?;
    /// let Some(WatchEvent::Put(pair)) = primary.next().await else { panic!("no put") };
    /// assert_eq!(pair.value, "10.0.0.1");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [Those of all calls](Store#all-calls); a stream that stands never fails.
    pub async fn watch<K>(&self, key: K) -> Result<WatchStream>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        let key = key.try_into()?;
        Ok(WatchStream::new(key.clone(), self.subscribe(Target::Key(key)).await?))
    }

    /// Tells what becomes of the keys strictly beneath `dir`, which need not exist: first all that is there, then each change.
    /// `""` is the root of the namespace. [`TreeStream::lists`] makes whole lists of it.
    ///
    /// All else is as with [`watch`](Store::watch).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> kvactor::Result<()> {
    /// use kvactor::{Store, TreeEvent};
    ///
    /// let store = Store::connect("memory://watch_tree").await?;
    /// store.put("services/web/1", "10.0.0.1").await?;
    /// let mut services = store.watch_tree("services").await?;
    /// let Some(TreeEvent::Snapshot(pairs)) = services.next().await else { panic!("no snapshot") };
    /// assert_eq!(pairs[0].key.as_str(), "services/web/1");
    /// store.delete("services/web/1").await?;
    /// assert!(matches!(services.next().await, Some(TreeEvent::Delete { .. })));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [Those of all calls](Store#all-calls); a stream that stands never fails.
    pub async fn watch_tree<D>(&self, dir: D) -> Result<TreeStream>
    where
        D: TryInto<Dir>,
        Error: From<D::Error>,
    {
        Ok(TreeStream::new(self.subscribe(Target::Tree(dir.try_into()?)).await?))
    }

    /// Gets the lock `key`, waiting for it as long as it takes. All is as with [`lock_with`](Store::lock_with).
    ///
    /// # Errors
    /// As [`lock_with`](Store::lock_with).
    pub async fn lock<K>(&self, key: K) -> Result<LockGuard>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.lock_with(key, LockOptions::default()).await
    }

    /// Gets the lock `key` if nobody holds it, without waiting.
    ///
    /// # Errors
    /// [`Error::LockHeld`] where somebody does; otherwise as [`lock_with`](Store::lock_with).
    pub async fn try_lock<K>(&self, key: K) -> Result<LockGuard>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.lock_with(key, LockOptions { timeout: Some(Duration::ZERO), ..LockOptions::default() }).await
    }

    /// Gets the lock `key`, with options: at one moment at most one guard of a key is held, among all stores and programs that
    /// use the same servers. [`LockGuard`] says what can be relied on while it is held, and when it is lost.
    ///
    /// - **Waiting**: those who wait are served in the order in which they came, on etcd and ZooKeeper among all programs, on the others
    ///   within this store. They wait as one: a store has one contender for a lock at the server, however many want it.
    /// - **The key** has [`LockOptions::value`] as its value while the lock is held, and doesn't exist otherwise. Don't write or
    ///   delete it by other calls: that neither takes the lock away in order nor gives it.
    /// - **Connection loss**: waiting goes on over lost connections and restarted servers.
    /// - **Cancel safety**: dropping this future leaves no contender behind, at whatever moment.
    ///
    /// | backend | what the lock is at the server | who else can take part |
    /// |---|---|---|
    /// | etcd | a key `<key>/<lease in hex>`, the oldest holds the lock | `etcdctl lock`, `etcdctl elect` and Go's `concurrency` package on the same name |
    /// | Consul | the key itself, held by a session | Consul's Go API on the same key; `consul lock PREFIX` is the key `PREFIX/.lock` |
    /// | ZooKeeper | an ephemeral sequential znode beneath the key's, the lowest holds the lock | kazoo's `Lock` and `Election`, Curator's `InterProcessMutex` on the same path |
    /// | local, memory | the key itself | stores of the same process |
    ///
    /// # Errors
    /// - [`Error::LockHeld`] where it was not got within [`LockOptions::timeout`], or where this very task holds it;
    /// - [`Error::KeyExists`] where an ordinary key is there; [`Error::Unsupported`] where it is another kind of lock, as a semaphore;
    /// - [`Error::Unsupported`] for a TTL outside of the backend's bounds, which it names;
    /// - [`Error::InvalidKey`], [`Error::ValueTooLarge`], [`Error::PermissionDenied`], [`Error::Unauthenticated`], [`Error::Backend`]
    ///   and [`Error::Closed`] as with all calls; with a `timeout` also [`Error::Unreachable`].
    pub async fn lock_with<K>(&self, key: K, options: LockOptions) -> Result<LockGuard>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        let key = key.try_into()?;
        self.open_or_closed()?;
        let got = acquire(&self.shared.connection, key, options).await?;
        Ok(LockGuard::new(got, self.addr(), self.timeout))
    }

    /// Stands for election at `key` and returns when elected, however long that takes; all is as with
    /// [`campaign_with`](Store::campaign_with).
    ///
    /// # Errors
    /// As [`campaign_with`](Store::campaign_with).
    pub async fn campaign<K>(&self, key: K, candidate: impl Into<Bytes>) -> Result<Leadership>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.campaign_with(key, candidate, CampaignOptions::default()).await
    }

    /// Stands for election at `key`, with options: of all candidates, in whatever process, at most one leads at one moment. The leader
    /// is who holds the [lock](Store::lock_with) `key`, and `candidate` is what the key then has as its value.
    ///
    /// Cancel safe: dropping this future withdraws the candidate.
    ///
    /// # Errors
    /// As [`lock_with`](Store::lock_with).
    pub async fn campaign_with<K>(
        &self,
        key: K,
        candidate: impl Into<Bytes>,
        options: CampaignOptions,
    ) -> Result<Leadership>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        let campaign = Campaign { options, ..Campaign::new(key, candidate)? };
        self.open_or_closed()?;
        elect(&self.shared.connection, campaign, self.timeout).await
    }

    /// Tells who leads at `key`: first who does now, or that nobody does, then each change. Changes that come faster than they are
    /// read are merged; the last is always told. Leaders that are other programs are told too, with what they publish. All else is
    /// as with [`watch`](Store::watch).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> kvactor::Result<()> {
    /// use kvactor::{LeaderEvent, Store};
    ///
    /// let store = Store::connect("memory://observe").await?;
    /// let mut leaders = store.observe_leader("primary").await?;
    /// assert_eq!(leaders.next().await, Some(LeaderEvent::Vacant));
    /// let leadership = store.campaign("primary", "10.0.0.1:80").await?;
    /// let Some(LeaderEvent::Elected(leader)) = leaders.next().await else { panic!("no leader") };
    /// assert_eq!((leader.value, Some(leader.term)), ("10.0.0.1:80".into(), leadership.term()));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the backend has no locks, and [those of all calls](Store#all-calls); a stream that stands never
    /// fails.
    pub async fn observe_leader<K>(&self, key: K) -> Result<LeaderStream>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        let key = key.try_into()?;
        if !self.capabilities().locks {
            return Err(Error::unsupported(format!("{} has no locks", self.capabilities().backend)));
        }
        let changes = WatchStream::new(key.clone(), self.subscribe(Target::Lock(key.clone())).await?);
        Ok(LeaderStream::new(key, changes, self.addr(), self.timeout))
    }

    /// Registers `value` at `key`, for others to discover: the key is there until the [`Registration`] is dropped or ended, or the store is
    /// closed, and about `ttl` longer where this process dies (see [`put_with`](Store::put_with) for the servers' bounds). When
    /// the key is lost, with a session or otherwise, it is put back; where somebody else writes to it, that is left alone until it
    /// goes.
    ///
    /// Those who want to discover what is registered [watch the directory](Store::watch_tree).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> kvactor::Result<()> {
    /// use kvactor::Store;
    /// use std::time::Duration;
    ///
    /// let store = Store::connect("memory://register").await?;
    /// let registration = store.register("services/web/1", "10.0.0.1:80", Duration::from_secs(10)).await?;
    /// assert_eq!(store.list("services/web").await?.len(), 1);
    /// registration.unregister().await?;
    /// assert!(!store.exists("services/web/1").await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Cancel safe as every write: a key that was written and has no registration goes with its TTL.
    ///
    /// # Errors
    /// As [`put_with`](Store::put_with).
    pub async fn register<K>(&self, key: K, value: impl Into<Bytes>, ttl: Duration) -> Result<Registration>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        let register = Register::new(key, value, ttl)?;
        self.open_or_closed()?;
        let deadline = Instant::now() + self.timeout;
        match send(&self.shared.connection, register, deadline).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::indeterminate("the store was closed during the call")),
            Err(_) => Err(Error::indeterminate("the thread of the store's actors does not answer")),
        }
    }

    /// Closes the store for all handles: tells watchers that it is closed, refuses further calls, deletes the keys that it kept alive, ends its session and its
    /// threads and sockets. Writes that are still on their way fail with [`Error::Indeterminate`].
    ///
    /// Cancel safe: once it has begun it goes on without its caller.
    ///
    /// # Errors
    /// [`Error::Closed`] where the store is closed already.
    pub async fn close(&self) -> Result<()> {
        self.shared.connection.send(Close).await.unwrap_or(Err(Error::Closed))
    }

    async fn call<R: Request>(&self, request: R) -> Result<R::Reply> {
        let deadline = Instant::now() + self.timeout;
        if let Some(done) = self.shared.near.call(&request, self.timeout, deadline).await {
            return done;
        }
        self.open_or_closed()?;
        call_until(&self.shared.connection, self.timeout, deadline, request).await
    }

    async fn subscribe(&self, target: Target) -> Result<Events> {
        self.open_or_closed()?;
        let (timeout, deadline) = (self.timeout, Instant::now() + self.timeout);
        match send(&self.shared.connection, Subscribe { target, timeout, deadline }, deadline).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(Error::Timeout { after: timeout }),
        }
    }

    /// Fails where the store is closed.
    fn open_or_closed(&self) -> Result<()> {
        match self.shared.status.borrow().link == LinkState::Closed || !self.shared.connection.connected() {
            true => Err(Error::Closed),
            false => Ok(()),
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.shared.status.borrow();
        f.debug_struct("Store").field("endpoint", &status.endpoint).field("link", &status.link).finish_non_exhaustive()
    }
}
