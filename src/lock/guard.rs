//! [`LockGuard`]: a lock that is held.

use super::event::LockEvents;
use super::hold::{Hold, LockState};
use crate::actors::connection::{Connection, call};
use crate::actors::lock::Acquired;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::messages::{Guarded, Publish};
use crate::types::{Check, Operation, OperationResult, TxnOutcome, Version};
use crate::watch::Subscription;
use actix::Addr;
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

/// What is asked of a lock: [`Store::lock_with`](crate::Store::lock_with).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockOptions {
    /// What the key has as its value while the lock is held. Empty.
    pub value: Bytes,
    /// How long the server keeps the lock at least when it hears no more of the holder. 15 s.
    ///
    /// Shorter TTLs give the lock to others sooner when the holder dies; longer ones let a holder live through longer outages.
    /// Bounds: [`Capabilities::min_lock_ttl`](crate::Capabilities::min_lock_ttl) and
    /// [`max_lock_ttl`](crate::Capabilities::max_lock_ttl). Locks with the same TTL share one session or lease at the server.
    pub ttl: Duration,
    /// How long to wait for the lock at the most. None, as by default: as long as it takes.
    pub timeout: Option<Duration>,
    /// Wait for the lock also where this very task holds it. A task that does so waits for ever, unless it has given its guard
    /// to another one; so it is refused by default, with [`Error::LockHeld`]. `false`.
    pub wait_for_own_task: bool,
}

impl Default for LockOptions {
    fn default() -> Self {
        LockOptions { value: Bytes::new(), ttl: Duration::from_secs(15), timeout: None, wait_for_own_task: false }
    }
}

/// Which task a caller is: the one that waits for itself would wait for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// None for the future that a runtime was started with, which its thread tells from others.
    task: Option<tokio::task::Id>,
    thread: Option<ThreadId>,
}

impl Owner {
    pub(crate) fn current() -> Self {
        let task = tokio::task::try_id();
        // A task may move between threads; the first future of a runtime doesn't.
        let thread = task.is_none().then(|| thread::current().id());
        Owner { task, thread }
    }
}

/// A holder's wish to give its lock back, with the place for the answer.
pub(crate) type Ending = oneshot::Sender<Result<()>>;

/// A lock that is held, until it is given back by [`unlock`](LockGuard::unlock) or by dropping the guard, or until it is lost.
///
/// # When a lock is lost
/// The server keeps the lock for the TTL after the last word it heard of the store. The guard's own deadline is earlier: nine
/// tenths of the TTL, less 100 ms, from the *sending* of the last renewal that succeeded. So [`is_held`](LockGuard::is_held) is
/// `false` before anybody else can hold the lock, whatever happened - the link cut, the process frozen, the store's
/// thread blocked - provided that the two clocks' rates differ by less than a tenth. It asks nobody and costs no hop.
///
/// Work that takes time between a look at `is_held` and its effect can still come too late. Two things help:
/// - [`put`](LockGuard::put), [`delete`](LockGuard::delete) and [`txn`](LockGuard::txn) are carried out by the server only while
///   this very acquisition holds the lock.
/// - [`token`](LockGuard::token) grows with each acquisition: other systems can refuse what comes with an older one.
///
/// # End
/// Dropping the guard gives the lock back in the background, again and again until the server has answered or has let the
/// lock go by itself. A guard doesn't keep the store open: closing it, or dropping its last handle, gives its locks back.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> kvactor::Result<()> {
/// use kvactor::Store;
///
/// let store = Store::connect("memory://lock").await?;
/// let lock = store.lock("jobs/nightly").await?;
/// lock.put("jobs/last-run", "today").await?;
/// assert!(lock.is_held());
/// lock.unlock().await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping the guard gives the lock back"]
pub struct LockGuard {
    hold: Arc<Hold>,
    /// Dropping it gives the lock back.
    end: oneshot::Sender<Ending>,
    connection: Addr<Connection>,
    timeout: Duration,
    _forwarder: Option<Subscription>,
}

impl LockGuard {
    pub(crate) fn new(Acquired { hold, end }: Acquired, connection: Addr<Connection>, timeout: Duration) -> Self {
        LockGuard { hold, end, connection, timeout, _forwarder: None }
    }

    /// The events go to an actor as long as the guard lives.
    pub(crate) fn with_forwarder(mut self, forwarder: Option<Subscription>) -> Self {
        self._forwarder = forwarder;
        self
    }

    /// The lock's key.
    pub fn key(&self) -> &Key {
        self.hold.key()
    }

    /// Whether the lock is held at this very moment, by this machine's own clock.
    pub fn is_held(&self) -> bool {
        self.hold.is_held()
    }

    /// For how long the lock is held even if the server is not heard of any more; zero when it isn't held.
    pub fn remaining(&self) -> Duration {
        self.hold.remaining()
    }

    /// How long the server keeps the lock after the last word of this store; at least what was asked for.
    pub fn ttl(&self) -> Duration {
        self.hold.ttl()
    }

    /// The fencing token: greater than those of all acquisitions of this key before. The create revision of the contender on
    /// etcd, the index of the acquiring transaction on Consul, the contender's czxid on ZooKeeper, a revision on the embedded
    /// stores.
    pub fn token(&self) -> u64 {
        self.hold.place.token
    }

    /// Waits until the lock is no longer held. Needs no word of the store's own thread: it looks at the clock itself. Cancel
    /// safe.
    pub async fn lost(&self) {
        lost(&self.hold).await;
    }

    /// How the lock is doing: now, and whenever that changes.
    pub fn events(&self) -> LockEvents {
        LockEvents::new(self.hold.state())
    }

    /// Writes `value` to `key` if this very acquisition still holds the lock. One round trip, on
    /// ZooKeeper two.
    ///
    /// # Errors
    /// [`Error::LockLost`] where it doesn't, and [those of all calls](crate::Store#all-calls).
    pub async fn put<K>(&self, key: K, value: impl Into<Bytes>) -> Result<Version>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        match self.apply(Operation::put(key, value)?).await? {
            OperationResult::Put(version) => Ok(version),
            OperationResult::Deleted => Err(senseless()),
        }
    }

    /// Deletes `key`, if it is there, and if this very acquisition still holds the lock. One round trip, on
    /// ZooKeeper two.
    ///
    /// # Errors
    /// [`Error::LockLost`] where it doesn't, and [those of all calls](crate::Store#all-calls).
    pub async fn delete<K>(&self, key: K) -> Result<()>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.apply(Operation::delete(key)?).await.map(drop)
    }

    /// As [`Store::txn`](crate::Store::txn), if this very acquisition still holds the lock.
    ///
    /// # Errors
    /// [`Error::LockLost`] where it doesn't; [`Error::Unsupported`] for a transaction that is too large, which is one operation
    /// less than without a lock, or changes a key twice; [those of all calls](crate::Store#all-calls).
    pub async fn txn(&self, checks: Vec<Check>, operations: Vec<Operation>) -> Result<TxnOutcome> {
        guarded(&self.connection, self.timeout, &self.hold, checks, operations).await
    }

    /// Changes the value that the key has while the lock is held.
    ///
    /// # Errors
    /// [`Error::LockLost`], [`Error::ValueTooLarge`], and [those of all calls](crate::Store#all-calls).
    pub async fn publish(&self, value: impl Into<Bytes>) -> Result<()> {
        publish(&self.connection, self.timeout, &self.hold, value.into()).await
    }

    /// Gives the lock back, and returns when the server has taken it.
    ///
    /// Not cancelled by dropping its future: the lock is given back in any case.
    ///
    /// # Errors
    /// [`Error::LockLost`] where the lock was lost before: nothing of a later holder is touched. [`Error::Unreachable`] where the
    /// server doesn't answer in time: giving back goes on in the background.
    pub async fn unlock(self) -> Result<()> {
        let over = || match *self.hold.state().borrow() {
            LockState::Released => Error::Closed,
            _ => Error::lock_lost(self.hold.key()),
        };
        let (done, wait) = oneshot::channel();
        // The lock's actor may not have seen yet that the deadline has passed, and whether the server still had the lock then
        // makes no difference: what the holder did lately was not protected.
        if !self.is_held() || self.end.send(done).is_err() {
            return Err(over());
        }
        let out_of_time =
            || Error::unreachable("the lock is given back in the background, as soon as the server is there");
        match timeout(self.timeout, wait).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) => Err(over()),
            Err(_) => Err(out_of_time()),
        }
    }

    async fn apply(&self, operation: Operation) -> Result<OperationResult> {
        match self.txn(Vec::new(), vec![operation]).await? {
            TxnOutcome::Committed(results) => results.into_iter().next().ok_or_else(senseless),
            TxnOutcome::CheckFailed { .. } => Err(senseless()),
        }
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("LockGuard");
        debug.field("key", self.key()).field("token", &self.token()).field("remaining", &self.remaining());
        debug.finish_non_exhaustive()
    }
}

/// No driver answers so.
fn senseless() -> Error {
    Error::backend("the driver's answer to a guarded write doesn't fit it")
}

/// Waits until the lock is no longer held.
pub(crate) async fn lost(hold: &Hold) {
    let mut state = hold.state();
    while hold.is_held() {
        // A timer stands still while the machine sleeps, the clock doesn't: it is looked at once a second at least.
        let look = sleep(hold.remaining().min(Duration::from_secs(1)));
        tokio::select! {
            _ = state.wait_for(|state| LockState::is_over(*state)) => return,
            () = look => {}
        }
    }
}

/// A transaction at a moment at which the lock is held.
pub(crate) async fn guarded(
    connection: &Addr<Connection>,
    timeout: Duration,
    hold: &Arc<Hold>,
    checks: Vec<Check>,
    operations: Vec<Operation>,
) -> Result<TxnOutcome> {
    hold.require()?;
    call(connection, timeout, Guarded { hold: hold.clone(), checks, operations }).await
}

/// Changes what a held lock's key has as its value.
pub(crate) async fn publish(
    connection: &Addr<Connection>,
    timeout: Duration,
    hold: &Arc<Hold>,
    value: Bytes,
) -> Result<()> {
    hold.require()?;
    call(connection, timeout, Publish { hold: hold.clone(), value }).await
}
