//! What a driver must do. Drivers know nothing of actors, retries, backoff or deadlines: those are written once, above.

#[cfg(feature = "consul")]
pub(crate) mod consul;
#[cfg(any(feature = "local", feature = "memory"))]
pub(crate) mod embedded;
#[cfg(feature = "etcd")]
pub(crate) mod etcd;
pub(crate) mod gather;
pub(crate) mod listings;
pub(crate) mod lock;
#[cfg(any(feature = "consul", feature = "etcd", feature = "zookeeper"))]
pub(crate) mod portion;
pub(crate) mod shortcut;
pub(crate) mod transactions;
#[cfg(feature = "zookeeper")]
pub(crate) mod zookeeper;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::key::{Dir, Key};
use crate::types::{
    BackendKind, Capabilities, Check, Consistency, Expected, KvPair, ListOptions, Operation, Page, TxnOutcome, Version,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::LocalBoxStream;
pub use lock::{Bid, Grant, Holder, Locking, Place, Progress, Standing};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The driver of the backend that `config` names, for a backend of your own that wraps it: to count, delay or fail its
/// calls. Such a backend is opened by [`Store::with_backend`](crate::Store::with_backend); nothing is contacted before.
///
/// The driver adds the configuration's namespace itself, so that keys may be as long, and values as large, as in a store
/// that [`Store::open`](crate::Store::open) opened. Three things are for the wrapper to see to:
/// - Hand on the driver's [`capabilities`](Connector::capabilities), by which the store refuses what the driver can't do,
///   and its [`connect_within`](Connector::connect_within) and [`recover_within`](Connector::recover_within), without
///   which some drivers get too little time.
/// - Give `with_backend` the configuration's own [`options`](Config::options): some of them are for the driver, as
///   `session_timeout` and `datacenter`, and some for the store.
/// - Make its calls where [`Store`](crate::Store) does: in an actix system or a tokio `LocalSet`, of which the drivers ask tasks of
///   their own.
///
/// One difference is left: a key whose first segment is `zookeeper` is refused even where there is a namespace, of which
/// `with_backend` knows nothing.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> kvactor::Result<()> {
/// use async_trait::async_trait;
/// use bytes::Bytes;
/// use kvactor::{Backend, Capabilities, Config, Connector, Consistency, Key, KvPair, Result, Store, Version, connector};
/// # use kvactor::{Check, Dir, Error, Expected, Lease, ListOptions, Locking, Operation, Page, Position, Target, TxnOutcome};
/// # use kvactor::Updates;
/// use std::rc::Rc;
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
/// use std::time::Duration;
///
/// /// Counts calls.
/// #[derive(Clone)]
/// struct Metered {
///     driver: Arc<dyn Connector>,
///     calls: Arc<AtomicU64>,
/// }
///
/// #[async_trait(?Send)]
/// impl Connector for Metered {
///     fn capabilities(&self) -> Capabilities {
///         self.driver.capabilities()
///     }
///     fn endpoints(&self) -> Vec<String> {
///         self.driver.endpoints()
///     }
///     async fn connect(&self, index: usize) -> Result<Rc<dyn Backend>> {
///         Ok(Rc::new(Session { driver: self.driver.connect(index).await?, calls: self.calls.clone() }))
///     }
///     fn connect_within(&self) -> Option<Duration> {
///         self.driver.connect_within()
///     }
///     fn recover_within(&self) -> Option<Duration> {
///         self.driver.recover_within()
///     }
/// }
///
/// struct Session {
///     driver: Rc<dyn Backend>,
///     calls: Arc<AtomicU64>,
/// }
///
/// #[async_trait(?Send)]
/// impl Backend for Session {
///     async fn get(&self, key: &Key, consistency: Consistency) -> Result<KvPair> {
///         self.calls.fetch_add(1, Relaxed);
///         self.driver.get(key, consistency).await
///     }
///     async fn put(&self, key: &Key, value: &Bytes) -> Result<Version> {
///         self.calls.fetch_add(1, Relaxed);
///         self.driver.put(key, value).await
///     }
///     // All others in the same way, those that have a default too.
/// #   async fn exists(&self, key: &Key, consistency: Consistency) -> Result<bool> {
/// #       self.driver.exists(key, consistency).await
/// #   }
/// #   async fn put_leased(&self, key: &Key, value: &Bytes, ttl: Duration) -> Result<(Version, Lease)> {
/// #       self.driver.put_leased(key, value, ttl).await
/// #   }
/// #   async fn renew(&self, lease: &Lease) -> Result<()> {
/// #       self.driver.renew(lease).await
/// #   }
/// #   async fn expire(&self, lease: &Lease) -> Result<()> {
/// #       self.driver.expire(lease).await
/// #   }
/// #   async fn delete(&self, key: &Key) -> Result<()> {
/// #       self.driver.delete(key).await
/// #   }
/// #   async fn list(&self, dir: &Dir, options: &ListOptions) -> Result<Page<KvPair>> {
/// #       self.driver.list(dir, options).await
/// #   }
/// #   async fn list_keys(&self, dir: &Dir, options: &ListOptions) -> Result<Page<Key>> {
/// #       self.driver.list_keys(dir, options).await
/// #   }
/// #   async fn delete_tree(&self, dir: &Dir) -> Result<u64> {
/// #       self.driver.delete_tree(dir).await
/// #   }
/// #   async fn atomic_put(&self, key: &Key, value: &Bytes, expected: &Expected) -> Result<Version> {
/// #       self.driver.atomic_put(key, value, expected).await
/// #   }
/// #   async fn atomic_delete(&self, key: &Key, version: &Version) -> Result<()> {
/// #       self.driver.atomic_delete(key, version).await
/// #   }
/// #   async fn txn(&self, checks: &[Check], operations: &[Operation]) -> Result<TxnOutcome> {
/// #       self.driver.txn(checks, operations).await
/// #   }
/// #   async fn watch(&self, target: &Target, after: Option<&Position>) -> Result<Updates> {
/// #       self.driver.watch(target, after).await
/// #   }
/// #   fn locks(&self) -> Option<&dyn Locking> {
/// #       self.driver.locks()
/// #   }
/// #   async fn disrupted(&self) -> Error {
/// #       self.driver.disrupted().await
/// #   }
/// #   async fn recover(&self) -> Result<()> {
/// #       self.driver.recover().await
/// #   }
/// #   fn session(&self) -> Option<String> {
/// #       self.driver.session()
/// #   }
/// #   async fn close(&self) -> Result<()> {
/// #       self.driver.close().await
/// #   }
/// }
///
/// let config = Config::from_url("memory://metered/apps/shop")?;
/// let metered = Metered { driver: connector(&config)?, calls: Arc::default() };
/// let store = Store::with_backend(metered.clone(), config.options).await?;
/// store.put("greeting", "hello").await?;
/// assert_eq!(store.get("greeting").await?.value, "hello");
/// assert_eq!(metered.calls.load(Relaxed), 2);
/// # store.close().await
/// # }
/// ```
///
/// # Errors
/// [`Error::InvalidConfig`], and [`Error::Unsupported`] where this build lacks the backend's feature.
pub fn connector(config: &Config) -> Result<Arc<dyn Connector>> {
    config.validate()?;
    match config.backend {
        #[cfg(feature = "consul")]
        BackendKind::Consul => consul::connector(config),
        #[cfg(feature = "etcd")]
        BackendKind::Etcd => etcd::connector(config),
        #[cfg(feature = "zookeeper")]
        BackendKind::ZooKeeper => zookeeper::connector(config),
        #[cfg(feature = "local")]
        BackendKind::Local => embedded::local::connector(config),
        #[cfg(feature = "memory")]
        BackendKind::Memory => embedded::memory::connector(config),
        BackendKind::Custom => {
            Err(Error::invalid_config("backend", "a backend of your own is opened with `Store::with_backend`"))
        }
        #[allow(unreachable_patterns, reason = "reached where a backend's feature is off")]
        absent => Err(Error::unsupported(format!("{absent} is not part of this build; enable the feature `{absent}`"))),
    }
}

/// The driver's steps for locks.
///
/// # Errors
/// [`Error::Unsupported`] where it has none.
pub(crate) fn locking(backend: &dyn Backend) -> Result<&dyn Locking> {
    backend.locks().ok_or_else(|| Error::unsupported("this backend has no locks"))
}

/// Opens sessions with a backend. A store keeps one connector for life and asks it for a new [`Backend`] whenever the
/// session before was lost.
#[async_trait(?Send)]
pub trait Connector: Send + Sync + 'static {
    /// What the backend can do. Asked once, before any connection.
    fn capabilities(&self) -> Capabilities;

    /// The servers to try, by names that people know them by, without credentials; at least one. The store goes around
    /// them, one [`connect`](Connector::connect) each.
    fn endpoints(&self) -> Vec<String>;

    /// Opens a session with the endpoint at `index` and proves, by asking it something, that it works. The store ends an
    /// attempt that takes longer than its `connect_timeout`.
    ///
    /// # Errors
    /// [`Error::Unreachable`] where another attempt may succeed; any other kind where it can't
    /// ([`Error::Unauthenticated`], [`Error::InvalidConfig`], ...).
    async fn connect(&self, index: usize) -> Result<Rc<dyn Backend>>;

    /// How long one [`connect`](Connector::connect) may take, where that isn't for the user to say by `connect_timeout`.
    fn connect_within(&self) -> Option<Duration> {
        None
    }

    /// How long the store waits for [`Backend::recover`] before it gives the session up. None, as by default: as long as one
    /// attempt to connect may take. A driver whose session outlasts the connection says how long the server keeps it.
    fn recover_within(&self) -> Option<Duration> {
        None
    }
}

/// One session with a backend: the calls, each as the backend can do it in the fewest requests.
///
/// Keys arrive valid and without the namespace, which the driver adds; values arrive within the limit. Calls may be dropped
/// at any await point, when their deadline is over, and may panic: the store sees to the caller and to a new session.
///
/// # Errors
/// The same rules hold for every call:
/// - a call that certainly did not reach the server fails with [`Error::Unreachable`], a read whose answer was lost too;
/// - a write that may have been applied and whose answer was lost fails with [`Error::Indeterminate`];
/// - a write that fails otherwise certainly had no effect: the store may make it again, as it does where it made several callers'
///   transactions as one;
/// - a driver never repeats a write by itself, unless it knows that the one before had no effect.
///
/// The store repeats [`Error::Unreachable`] calls until their deadline, and [`recover`](Backend::recover)s the link first.
#[async_trait(?Send)]
pub trait Backend: 'static {
    /// The value at `key`. Fails with [`Error::KeyNotFound`].
    async fn get(&self, key: &Key, consistency: Consistency) -> Result<KvPair>;

    /// Whether `key` exists, without carrying its value where that can be avoided.
    async fn exists(&self, key: &Key, consistency: Consistency) -> Result<bool>;

    /// Writes `value`, makes the key permanent, and returns the version of this very write.
    async fn put(&self, key: &Key, value: &Bytes) -> Result<Version>;

    /// Writes `value` to a key that goes away with a new lease on the server, which lasts at least `ttl` from the write on,
    /// provided that it is renewed within [`Lease::renew_within`]. `ttl` is within the capabilities' bounds.
    async fn put_leased(&self, key: &Key, value: &Bytes, ttl: Duration) -> Result<(Version, Lease)>;

    /// Lets the lease last for its whole time again. Fails with [`Error::KeyNotFound`] where the lease is over.
    async fn renew(&self, lease: &Lease) -> Result<()>;

    /// Ends the lease and deletes its key, unless the key was written anew or deleted since. A lease that is over already is
    /// no error.
    async fn expire(&self, lease: &Lease) -> Result<()>;

    /// Deletes `key`. Fails with [`Error::KeyNotFound`]; of two racing deletes one does.
    async fn delete(&self, key: &Key) -> Result<()>;

    /// The keys strictly beneath `dir` with their values, sorted by the bytes of the keys. Fails with
    /// [`Error::KeyNotFound`] where nothing is beneath `dir`, no key has its name, it isn't the root, and the listing isn't
    /// a continuation. One call may be for several callers of the store.
    async fn list(&self, dir: &Dir, options: &ListOptions) -> Result<Page<KvPair>>;

    /// As [`list`](Backend::list), without the values.
    async fn list_keys(&self, dir: &Dir, options: &ListOptions) -> Result<Page<Key>>;

    /// Deletes the keys strictly beneath `dir` and returns how many they were. Fails with [`Error::KeyNotFound`] where
    /// nothing is beneath `dir`, no key has its name, and it isn't the root.
    async fn delete_tree(&self, dir: &Dir) -> Result<u64>;

    /// Writes `value`, permanent, if the key is as expected. Fails with [`Error::KeyExists`], [`Error::KeyModified`] or
    /// [`Error::KeyNotFound`].
    async fn atomic_put(&self, key: &Key, value: &Bytes, expected: &Expected) -> Result<Version>;

    /// Deletes the key if it has this version. Fails with [`Error::KeyModified`] or [`Error::KeyNotFound`].
    async fn atomic_delete(&self, key: &Key, version: &Version) -> Result<()>;

    /// Applies all operations at one moment if all checks hold. Together they are at most
    /// [`MAX_TXN_OPERATIONS`](crate::types::MAX_TXN_OPERATIONS), and no key is changed twice. They may be those of several callers,
    /// which the store puts together where that makes no difference.
    async fn txn(&self, checks: &[Check], operations: &[Operation]) -> Result<TxnOutcome>;

    /// Follows what changes at `target`. The stream's drop ends what the server does for it.
    ///
    /// The first item is an [`Update::State`], and no change after it is missing from the items behind it; the target need
    /// not exist. Where `after` is the position of an update of an earlier stream, maybe another session's, and the server's
    /// history still reaches back to it, the first item is the [`Update::Changes`] since then instead, maybe none, which
    /// says that the watch stands. A driver whose server keeps no history gives no positions and is given none.
    ///
    /// States that follow each other faster than the server tells of them may be left out where
    /// [`Capabilities::every_revision`](crate::Capabilities::every_revision) is false. The last one never is: it arrives
    /// without another change being needed. Whatever breaks that promise - a lost connection, a new session, history that is
    /// gone, a server restored from a backup - makes the stream say so: by another `State`, with which the store compares
    /// what it told its subscribers, or by an error, after which it is dropped and opened anew. A connection that is silent
    /// for longer than [`Options::idle_timeout`](crate::Options::idle_timeout) is such a break.
    ///
    /// # Errors
    /// [`Error::Unreachable`], here and as the last item of the stream, where watching again may succeed; any other kind
    /// where it can't, as [`Error::PermissionDenied`].
    async fn watch(&self, target: &Target, after: Option<&Position>) -> Result<Updates>;

    /// The steps of a lock, where the backend has locks; none by default.
    fn locks(&self) -> Option<&dyn Locking> {
        None
    }

    /// The short way of the embedded stores: nobody else can have one.
    #[doc(hidden)]
    fn shortcut(&self) -> Option<Arc<dyn shortcut::Shortcut>> {
        None
    }

    /// Waits until the driver notices by itself that the link is down, and returns why. A driver that notices only by the
    /// failure of calls waits for ever, as this default does.
    async fn disrupted(&self) -> Error {
        std::future::pending().await
    }

    /// Called after [`disrupted`](Backend::disrupted) returned or a call failed with [`Error::Unreachable`]: waits until the
    /// session works again. An error says that it never will: the store then drops this backend and opens a new session.
    async fn recover(&self) -> Result<()>;

    /// The server's name for the session, where it has one.
    fn session(&self) -> Option<String> {
        None
    }

    /// Ends what the session holds on the server. The backend is dropped afterwards.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// One key.
    Key(Key),
    /// All keys strictly beneath a directory.
    Tree(Dir),
    /// A lock: whenever it may have changed hands, or its holder have published something, the pair at this key is told as
    /// written anew, in another version and with whatever value. Only where the capability
    /// [`holders_are_keys`](Capabilities::holders_are_keys) is missing; otherwise the key itself is watched.
    Lock(Key),
}

/// What [`Backend::watch`] returns.
pub type Updates = LocalBoxStream<'static, Result<Update>>;

/// News of a watched target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// All that is there, in any order: the key, or none, or the keys beneath the directory.
    State {
        /// The pairs.
        pairs: Vec<KvPair>,
        /// The place in history at which this is the state.
        position: Option<Position>,
    },
    /// What changed since the update before, in order. What is still as it was told last may be told again.
    Changes {
        /// The changes.
        changes: Vec<Change>,
        /// The place in history behind the last of them.
        position: Option<Position>,
    },
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key was written.
    Put(KvPair),
    /// The key is gone.
    Delete {
        /// The key.
        key: Key,
        /// The version of the deletion, where the server tells it.
        version: Option<Version>,
    },
}

/// A place in a server's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Which history this is, so that a revision of a server that was wiped or restored isn't taken for one of before.
    pub history: u64,
    /// The revision up to which everything was told.
    pub revision: u64,
}

/// The life of one key with a TTL, as the server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The key.
    pub key: Key,
    /// The version in which the key was written.
    pub version: Version,
    /// The server's name for the lease; empty where the key and version say it all.
    pub id: String,
    /// The server may end the lease when it was not renewed for this long.
    pub renew_within: Duration,
    /// The longest time that the key can outlive the process that wrote it.
    pub outlives_process_by: Duration,
}

/// How many bytes a call carries from one poll to the next, told by its type: it isn't made.
#[cfg(all(test, any(feature = "consul", feature = "etcd", feature = "zookeeper")))]
pub(crate) fn carried<A, F: Future>(_: impl Fn(A) -> F) -> usize {
    size_of::<F>()
}
