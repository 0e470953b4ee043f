//! The typed messages that a store's [`Connection`](crate::Connection) takes: one for each call.
//!
//! [`Store`](crate::Store)'s methods send these; actix applications can send them themselves, to
//! [`Store::addr`](crate::Store::addr) or to a `Recipient` of one kind of message made from it. The replies, errors and
//! guarantees are those of the method of the same name. A message that is sent with `do_send` is carried out without a
//! reply. Messages are started in the order in which they arrive, and end in any order: wait for the reply of one before
//! sending another that depends on it.
//!
//! ```
//! use actix::Recipient;
//! use kvactor::Store;
//! use kvactor::messages::Put;
//!
//! # async fn doc(store: Store) -> Result<(), Box<dyn std::error::Error>> {
//! let recipient: Recipient<Put> = store.addr().recipient();
//! let written = recipient.send(Put::new("greeting", "hello")?).await??;
//! # Ok(())
//! # }
//! ```

use crate::actors::lease::Leases;
use crate::backend::shortcut::{Begun, Shortcut};
use crate::backend::{Holder, locking};
use crate::call::{Call, Rules};
use crate::election::{CampaignOptions, LeaderEvent, Leadership, LeadershipEvent};
use crate::error::{Error, Result};
use crate::key::{Dir, Key};
use crate::link::Session;
use crate::lock::{Hold, LockEvent, LockGuard, LockOptions};
use crate::registration::{Registration, RegistrationEvent};
use crate::types::{
    Check, Consistency, Expected, KvPair, ListOptions, Operation, OperationResult, Page, PutOptions, TxnOutcome,
    Version, Written,
};
use crate::watch::{Subscription, TreeEvent, WatchEvent};
use actix::{Message, Recipient};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// A call that the connection carries out on the backend. Implemented by the messages of this module only.
pub trait Request:
    Message<Result = Result<<Self as Request>::Reply>> + Call<<Self as Request>::Reply> + Send + 'static
{
    /// What the call returns.
    type Reply: Send + 'static;
}

/// Declares that a message is a request with this reply.
macro_rules! request {
    ($message:ty => $reply:ty) => {
        impl Message for $message {
            type Result = Result<$reply>;
        }
        impl Request for $message {
            type Reply = $reply;
        }
    };
}

/// Reads a key: [`Store::get_with`](crate::Store::get_with).
#[derive(Clone, Debug)]
pub struct Get {
    /// The key.
    pub key: Key,
    /// How fresh the answer must be.
    pub consistency: Consistency,
}
request!(Get => KvPair);

impl Get {
    /// A linearizable read of `key`. Fails with [`Error::InvalidKey`].
    pub fn new<K>(key: K) -> Result<Self>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        Ok(Get { key: key.try_into()?, consistency: Consistency::default() })
    }
}

impl Call<KvPair> for Get {
    const NAME: &'static str = "get";
    const WRITES: bool = false;
    fn check(&self, rules: &Rules) -> Result<()> {
        rules.path(&self.key)
    }
    fn run<'a>(&'a self, session: &'a Session, _: &'a Leases) -> LocalBoxFuture<'a, Result<KvPair>> {
        session.backend.get(&self.key, self.consistency)
    }
    fn read(&self, shortcut: &dyn Shortcut) -> Option<Result<KvPair>> {
        Some(shortcut.get(&self.key))
    }
}

/// Asks whether a key exists: [`Store::exists_with`](crate::Store::exists_with).
#[derive(Clone, Debug)]
pub struct Exists {
    /// The key.
    pub key: Key,
    /// How fresh the answer must be.
    pub consistency: Consistency,
}
request!(Exists => bool);

impl Exists {
    /// A linearizable question for `key`. Fails with [`Error::InvalidKey`].
    pub fn new<K>(key: K) -> Result<Self>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        Ok(Exists { key: key.try_into()?, consistency: Consistency::default() })
    }
}

impl Call<bool> for Exists {
    const NAME: &'static str = "exists";
    const WRITES: bool = false;
    fn check(&self, rules: &Rules) -> Result<()> {
        rules.path(&self.key)
    }
    fn run<'a>(&'a self, session: &'a Session, _: &'a Leases) -> LocalBoxFuture<'a, Result<bool>> {
        session.backend.exists(&self.key, self.consistency)
    }
    fn read(&self, shortcut: &dyn Shortcut) -> Option<Result<bool>> {
        Some(shortcut.exists(&self.key))
    }
}

/// Writes a key: [`Store::put_with`](crate::Store::put_with).
#[derive(Clone, Debug)]
pub struct Put {
    /// The key.
    pub key: Key,
    /// Its new value.
    pub value: Bytes,
    /// TTL and keep-alive.
    pub options: PutOptions,
}
request!(Put => Written);

impl Put {
    /// A permanent write of `value` to `key`. Fails with [`Error::InvalidKey`].
    pub fn new<K>(key: K, value: impl Into<Bytes>) -> Result<Self>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        Ok(Put { key: key.try_into()?, value: value.into(), options: PutOptions::default() })
    }
}

impl Call<Written> for Put {
    const NAME: &'static str = "put";
    const WRITES: bool = true;
    fn check(&self, rules: &Rules) -> Result<()> {
        rules.path(&self.key)?;
        rules.value(&self.key, &self.value)?;
        rules.put_options(&self.options)
    }
    fn run<'a>(&'a self, session: &'a Session, leases: &'a Leases) -> LocalBoxFuture<'a, Result<Written>> {
        Box::pin(async move {
            let Some(ttl) = self.options.ttl else {
                let version = session.backend.put(&self.key, &self.value).await?;
                leases.overwritten(&self.key, &version);
                return Ok(Written { version, outlives_process_by: None });
            };
            let (version, lease) = session.backend.put_leased(&self.key, &self.value, ttl).await?;
            let outlives_process_by = Some(lease.outlives_process_by);
            leases.keep(lease, ttl, self.options.keep_alive);
            Ok(Written { version, outlives_process_by })
        })
    }
    fn write(&self, shortcut: &dyn Shortcut, permit: OwnedSemaphorePermit) -> Option<Begun<Written>> {
        self.options.ttl.is_none().then(|| shortcut.put(&self.key, &self.value, permit))
    }
}

/// Deletes a key: [`Store::delete`](crate::Store::delete).
#[derive(Clone, Debug)]
pub struct Delete {
    /// The key.
    pub key: Key,
}
request!(Delete => ());

impl Delete {
    /// A deletion of `key`. Fails with [`Error::InvalidKey`].
    pub fn new<K>(key: K) -> Result<Self>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        Ok(Delete { key: key.try_into()? })
    }
}

impl Call<()> for Delete {
    const NAME: &'static str = "delete";
    const WRITES: bool = true;
    fn check(&self, rules: &Rules) -> Result<()> {
        rules.path(&self.key)
    }
    fn run<'a>(&'a self, session: &'a Session, leases: &'a Leases) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let known = leases.known(&self.key);
            session.backend.delete(&self.key).await?;
            leases.deleted(&self.key, known);
            Ok(())
        })
    }
    fn write(&self, shortcut: &dyn Shortcut, permit: OwnedSemaphorePermit) -> Option<Begun<()>> {
        Some(shortcut.delete(&self.key, permit))
    }
}

/// Lists a directory with values: [`Store::list_with`](crate::Store::list_with).
#[derive(Clone, Debug)]
pub struct List {
    /// The directory.
    pub dir: Dir,
    /// Depth, limit, continuation, consistency.
    pub options: ListOptions,
}
request!(List => Page<KvPair>);

impl Call<Page<KvPair>> for List {
    const NAME: &'static str = "list";
    const WRITES: bool = false;
    fn check(&self, rules: &Rules) -> Result<()> {
        rules.listing(&self.dir, &self.options)
    }
    fn run<'a>(&'a self, session: &'a Session, _: &'a Leases) -> LocalBoxFuture<'a, Result<Page<KvPair>>> {
        Box::pin(session.list(&self.dir, &self.options))
    }
}

/// Lists a directory without values: [`Store::list_keys`](crate::Store::list_keys).
#[derive(Clone, Debug)]
pub struct ListKeys {
    /// The directory.
    pub dir: Dir,
    /// Depth, limit, continuation, consistency.
    pub options: ListOptions,
}
request!(ListKeys => Page<Key>);

impl Call<Page<Key>> for ListKeys {
    const NAME: &'static str = "list_keys";
    const WRITES: bool = false;
    fn check(&self, rules: &Rules) -> Result<()> {
        rules.listing(&self.dir, &self.options)
    }
    fn run<'a>(&'a self, session: &'a Session, _: &'a Leases) -> LocalBoxFuture<'a, Result<Page<Key>>> {
        Box::pin(session.list_keys(&self.dir, &self.options))
    }
}

/// Deletes a directory's keys: [`Store::delete_tree_with`](crate::Store::delete_tree_with).
#[derive(Clone, Debug)]
pub struct DeleteTree {
    /// The directory.
    pub dir: Dir,
    /// Whether the root, and with it the whole namespace, may be deleted.
    pub allow_root: bool,
}
request!(DeleteTree => u64);

impl Call<u64> for DeleteTree {
    const NAME: &'static str = "delete_tree";
    const WRITES: bool = true;
    fn check(&self, rules: &Rules) -> Result<()> {
        if self.dir.is_root() && !self.allow_root {
            let reason = "deleting the whole namespace needs the option `allow_root`";
            return Err(Error::InvalidKey { key: "".into(), reason });
        }
        rules.path(&self.dir)
    }
    fn run<'a>(&'a self, session: &'a Session, leases: &'a Leases) -> LocalBoxFuture<'a, Result<u64>> {
        Box::pin(async move {
            let known = leases.known_beneath(&self.dir);
            let removed = session.backend.delete_tree(&self.dir).await?;
            known.into_iter().for_each(|(key, version)| leases.deleted(&key, Some(version)));
            Ok(removed)
        })
    }
}

/// Writes a key if it is as expected: [`Store::atomic_put`](crate::Store::atomic_put).
#[derive(Clone, Debug)]
pub struct AtomicPut {
    /// The key.
    pub key: Key,
    /// Its new value.
    pub value: Bytes,
    /// What the key must be like.
    pub expected: Expected,
}
request!(AtomicPut => KvPair);

impl AtomicPut {
    /// A write of `value` to `key` that expects `expected`. Fails with [`Error::InvalidKey`].
    pub fn new<K>(key: K, value: impl Into<Bytes>, expected: impl Into<Expected>) -> Result<Self>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        Ok(AtomicPut { key: key.try_into()?, value: value.into(), expected: expected.into() })
    }
}

impl Call<KvPair> for AtomicPut {
    const NAME: &'static str = "atomic_put";
    const WRITES: bool = true;
    fn check(&self, rules: &Rules) -> Result<()> {
        rules.path(&self.key)?;
        rules.value(&self.key, &self.value)?;
        match &self.expected {
            Expected::Absent => Ok(()),
            Expected::Version(version) => rules.version(version),
        }
    }
    fn run<'a>(&'a self, session: &'a Session, leases: &'a Leases) -> LocalBoxFuture<'a, Result<KvPair>> {
        Box::pin(async move {
            let version = session.backend.atomic_put(&self.key, &self.value, &self.expected).await?;
            leases.overwritten(&self.key, &version);
            Ok(KvPair { key: self.key.clone(), value: self.value.clone(), version })
        })
    }
    fn write(&self, shortcut: &dyn Shortcut, permit: OwnedSemaphorePermit) -> Option<Begun<KvPair>> {
        Some(shortcut.atomic_put(&self.key, &self.value, &self.expected, permit))
    }
}

/// Deletes a key if it has a version: [`Store::atomic_delete`](crate::Store::atomic_delete).
#[derive(Clone, Debug)]
pub struct AtomicDelete {
    /// The key.
    pub key: Key,
    /// The version that it must have.
    pub version: Version,
}
request!(AtomicDelete => ());

impl AtomicDelete {
    /// A deletion of `key` in `version`. Fails with [`Error::InvalidKey`].
    pub fn new<K>(key: K, version: Version) -> Result<Self>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        Ok(AtomicDelete { key: key.try_into()?, version })
    }
}

impl Call<()> for AtomicDelete {
    const NAME: &'static str = "atomic_delete";
    const WRITES: bool = true;
    fn check(&self, rules: &Rules) -> Result<()> {
        rules.path(&self.key)?;
        rules.version(&self.version)
    }
    fn run<'a>(&'a self, session: &'a Session, leases: &'a Leases) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            session.backend.atomic_delete(&self.key, &self.version).await?;
            leases.deleted(&self.key, Some(self.version));
            Ok(())
        })
    }
    fn write(&self, shortcut: &dyn Shortcut, permit: OwnedSemaphorePermit) -> Option<Begun<()>> {
        Some(shortcut.atomic_delete(&self.key, &self.version, permit))
    }
}

/// Changes several keys at one moment: [`Store::txn`](crate::Store::txn).
#[derive(Clone, Debug, Default)]
pub struct Txn {
    /// What must hold.
    pub checks: Vec<Check>,
    /// What is then done.
    pub operations: Vec<Operation>,
}
request!(Txn => TxnOutcome);

impl Call<TxnOutcome> for Txn {
    const NAME: &'static str = "txn";
    const WRITES: bool = true;
    fn check(&self, rules: &Rules) -> Result<()> {
        rules.txn(&self.checks, &self.operations)
    }
    fn run<'a>(&'a self, session: &'a Session, leases: &'a Leases) -> LocalBoxFuture<'a, Result<TxnOutcome>> {
        Box::pin(committed(leases, &self.operations, session.txn(&self.checks, &self.operations)))
    }
}

/// Makes changes, and tells the leases of what is no longer theirs.
async fn committed(
    leases: &Leases,
    operations: &[Operation],
    txn: impl Future<Output = Result<TxnOutcome>>,
) -> Result<TxnOutcome> {
    let known: Vec<_> = operations.iter().map(|operation| leases.known(operation.key())).collect();
    let outcome = txn.await?;
    let TxnOutcome::Committed(results) = &outcome else { return Ok(outcome) };
    for ((operation, result), known) in operations.iter().zip(results).zip(known) {
        match result {
            OperationResult::Put(version) => leases.overwritten(operation.key(), version),
            OperationResult::Deleted => leases.deleted(operation.key(), known),
        }
    }
    Ok(outcome)
}

/// A transaction at a moment at which a lock is held: [`LockGuard::txn`](crate::LockGuard::txn).
pub(crate) struct Guarded {
    pub(crate) hold: Arc<Hold>,
    pub(crate) checks: Vec<Check>,
    pub(crate) operations: Vec<Operation>,
}
request!(Guarded => TxnOutcome);

impl Call<TxnOutcome> for Guarded {
    const NAME: &'static str = "guarded";
    const WRITES: bool = true;
    fn check(&self, rules: &Rules) -> Result<()> {
        self.hold.require()?;
        rules.guarded(&self.checks, &self.operations)
    }
    fn run<'a>(&'a self, session: &'a Session, leases: &'a Leases) -> LocalBoxFuture<'a, Result<TxnOutcome>> {
        let guarded = async {
            let Hold { bid, place, .. } = &*self.hold;
            locking(&*session.backend)?.guarded(bid, place, &self.checks, &self.operations).await
        };
        Box::pin(committed(leases, &self.operations, self.hold.asking(guarded)))
    }
}

/// Changes what a held lock's key has as its value: [`LockGuard::publish`](crate::LockGuard::publish).
pub(crate) struct Publish {
    pub(crate) hold: Arc<Hold>,
    pub(crate) value: Bytes,
}
request!(Publish => ());

impl Call<()> for Publish {
    const NAME: &'static str = "publish";
    const WRITES: bool = true;
    fn check(&self, rules: &Rules) -> Result<()> {
        self.hold.require()?;
        rules.value(self.hold.key(), &self.value)
    }
    fn run<'a>(&'a self, session: &'a Session, _: &'a Leases) -> LocalBoxFuture<'a, Result<()>> {
        let publish =
            async { locking(&*session.backend)?.publish(&self.hold.bid, &self.hold.place, &self.value).await };
        Box::pin(self.hold.asking(publish))
    }
}

/// Asks who holds a lock: [`Store::observe_leader`](crate::Store::observe_leader) does.
pub(crate) struct HolderOf {
    pub(crate) key: Key,
}
request!(HolderOf => Option<Holder>);

impl Call<Option<Holder>> for HolderOf {
    const NAME: &'static str = "holder";
    const WRITES: bool = false;
    fn check(&self, rules: &Rules) -> Result<()> {
        rules.path(&self.key)
    }
    fn run<'a>(&'a self, session: &'a Session, _: &'a Leases) -> LocalBoxFuture<'a, Result<Option<Holder>>> {
        Box::pin(async { locking(&*session.backend)?.holder(&self.key).await })
    }
}

/// Sends what becomes of a key to an actor: [`Store::watch`](crate::Store::watch). The reply ends the subscription when it is
/// dropped, so an actor keeps it; the subscription also ends with the actor.
///
/// The actor gets one event at a time: the next when it has handled the one before.
///
/// ```
/// use actix::{Actor, AsyncContext, Context, Handler, WrapFuture, ActorFutureExt};
/// use kvactor::messages::Watch;
/// use kvactor::{Store, Subscription, WatchEvent};
///
/// struct Follower {
///     store: Store,
///     subscription: Option<Subscription>,
/// }
///
/// impl Actor for Follower {
///     type Context = Context<Self>;
///
///     fn started(&mut self, context: &mut Self::Context) {
///         let watch = Watch::new("primary", context.address().recipient()).expect("a valid key");
///         let watched = self.store.addr().send(watch).into_actor(self);
///         context.wait(watched.map(|reply, follower, _| match reply {
///             Ok(Ok(subscription)) => follower.subscription = Some(subscription),
///             failed => eprintln!("no watch: {failed:?}"),
///         }));
///     }
/// }
///
/// impl Handler<WatchEvent> for Follower {
///     type Result = ();
///
///     fn handle(&mut self, event: WatchEvent, _: &mut Self::Context) {
///         println!("{event:?}");
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Watch {
    /// The key.
    pub key: Key,
    /// Who is told.
    pub subscriber: Recipient<WatchEvent>,
}

impl Watch {
    /// A subscription to `key`. Fails with [`Error::InvalidKey`].
    pub fn new<K>(key: K, subscriber: Recipient<WatchEvent>) -> Result<Self>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        Ok(Watch { key: key.try_into()?, subscriber })
    }
}

impl Message for Watch {
    type Result = Result<Subscription>;
}

/// Sends what becomes of the keys beneath a directory to an actor: [`Store::watch_tree`](crate::Store::watch_tree). All else is
/// as with [`Watch`].
#[derive(Clone)]
pub struct WatchTree {
    /// The directory.
    pub dir: Dir,
    /// Who is told.
    pub subscriber: Recipient<TreeEvent>,
}

impl WatchTree {
    /// A subscription to the keys beneath `dir`. Fails with [`Error::InvalidKey`].
    pub fn new<D>(dir: D, subscriber: Recipient<TreeEvent>) -> Result<Self>
    where
        D: TryInto<Dir>,
        Error: From<D::Error>,
    {
        Ok(WatchTree { dir: dir.try_into()?, subscriber })
    }
}

impl Message for WatchTree {
    type Result = Result<Subscription>;
}

/// Closes the store: [`Store::close`](crate::Store::close). Further calls are refused from the moment it arrives.
#[derive(Clone, Copy, Debug)]
pub struct Close;

impl Message for Close {
    type Result = Result<()>;
}

/// Gets a lock: [`Store::lock_with`](crate::Store::lock_with). The reply comes when the lock is held, however long that takes; a
/// sender who doesn't wait for it any longer is noticed when the lock is got, which is then given back.
#[derive(Clone)]
pub struct Lock {
    /// The lock's key.
    pub key: Key,
    /// TTL, value and patience.
    pub options: LockOptions,
    /// Who is told what becomes of the lock while the guard lives, if anybody is.
    pub subscriber: Option<Recipient<LockEvent>>,
}

impl Lock {
    /// A wish for the lock `key` with the default options. Fails with [`Error::InvalidKey`].
    pub fn new<K>(key: K) -> Result<Self>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        Ok(Lock { key: key.try_into()?, options: LockOptions::default(), subscriber: None })
    }
}

impl Message for Lock {
    type Result = Result<LockGuard>;
}

/// Stands for election: [`Store::campaign_with`](crate::Store::campaign_with). The reply comes when the candidate is elected, however
/// long that takes; a sender who doesn't wait for it any longer is noticed when it is elected, and it resigns then.
#[derive(Clone)]
pub struct Campaign {
    /// The election's key.
    pub key: Key,
    /// What the leader publishes.
    pub value: Bytes,
    /// TTL, patience, and whether to stand again.
    pub options: CampaignOptions,
    /// Who is told what becomes of the candidacy while the leadership is held on to, if anybody is.
    pub subscriber: Option<Recipient<LeadershipEvent>>,
}

impl Campaign {
    /// A candidacy at `key` with the default options. Fails with [`Error::InvalidKey`].
    pub fn new<K>(key: K, value: impl Into<Bytes>) -> Result<Self>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        let (key, value) = (key.try_into()?, value.into());
        Ok(Campaign { key, value, options: CampaignOptions::default(), subscriber: None })
    }
}

impl Message for Campaign {
    type Result = Result<Leadership>;
}

/// Sends to an actor who leads: [`Store::observe_leader`](crate::Store::observe_leader). The reply ends the subscription when it is
/// dropped.
#[derive(Clone)]
pub struct ObserveLeader {
    /// The election's key.
    pub key: Key,
    /// Who is told.
    pub subscriber: Recipient<LeaderEvent>,
}

impl Message for ObserveLeader {
    type Result = Result<Subscription>;
}

/// Registers a key: [`Store::register`](crate::Store::register).
#[derive(Clone)]
pub struct Register {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: Bytes,
    /// How soon the key goes when the process dies.
    pub ttl: Duration,
    /// Who is told what becomes of the registration while it is held on to, if anybody is.
    pub subscriber: Option<Recipient<RegistrationEvent>>,
}

impl Register {
    /// A registration of `value` at `key`. Fails with [`Error::InvalidKey`].
    pub fn new<K>(key: K, value: impl Into<Bytes>, ttl: Duration) -> Result<Self>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        Ok(Register { key: key.try_into()?, value: value.into(), ttl, subscriber: None })
    }
}

impl Message for Register {
    type Result = Result<Registration>;
}
