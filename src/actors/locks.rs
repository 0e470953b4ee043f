//! [`Locks`]: one actor for each lock that is held or waited for, however many want it.

use super::contender::Left;
use super::errand::Errands;
use super::grants::Grants;
use super::lock::{Acquired, Lock, Wish};
use super::watchers::Watchers;
use crate::backend::{Progress, locking};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::link::{Session, far_future};
use crate::lock::{LockOptions, Owner};
use crate::types::Status;
use futures_util::{StreamExt, stream};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

/// The locks of a store.
#[derive(Clone)]
pub(crate) struct Locks(Rc<Shared>);

struct Shared {
    errands: Errands,
    grants: Grants,
    watchers: Watchers,
    status: watch::Sender<Status>,
    running: RefCell<HashMap<Key, mpsc::Sender<Wish>>>,
    /// What the actors left at the server when the store was closed.
    left: RefCell<Vec<Left>>,
    /// An actor ended.
    ended: Notify,
}

/// How many wishes wait for a lock's actor to take them in.
const WISHES: usize = 64;
/// How many locks are given back at once when the store closes.
const ENDED_AT_ONCE: usize = 64;
/// The part of a request's time in which locks are given back when the store closes. It is half of what the supervisor has for
/// them, so that there is time to end their grants, with which goes whatever is left.
const LEAVING: u32 = 4;

impl Locks {
    pub(crate) fn new(errands: Errands, watchers: Watchers, status: watch::Sender<Status>) -> Self {
        let grants = Grants::new(errands.clone());
        let (running, left, ended) = (RefCell::default(), RefCell::default(), Notify::new());
        Locks(Rc::new(Shared { errands, grants, watchers, status, running, left, ended }))
    }

    /// Gets a lock. Dropping this future leaves no contender.
    pub(crate) async fn acquire(&self, key: &Key, options: LockOptions, owner: Option<Owner>) -> Result<Acquired> {
        let deadline = match options.timeout {
            None => far_future(),
            Some(Duration::ZERO) => Instant::now() + self.0.errands.timeout(),
            Some(timeout) => Instant::now().checked_add(timeout).unwrap_or_else(far_future),
        };
        let limit = options.timeout;
        match timeout_at(deadline, self.wish(key, options, owner)).await {
            Ok(got) => got,
            Err(_) => Err(self.out_of_time(key, limit.unwrap_or_default())),
        }
    }

    async fn wish(&self, key: &Key, options: LockOptions, owner: Option<Owner>) -> Result<Acquired> {
        loop {
            if self.0.errands.link().is_closed() {
                return Err(Error::Closed);
            }
            let (reply, wait) = oneshot::channel();
            let wish = Wish { options: options.clone(), owner, reply };
            // A failure says that the actor just ended, for want of wishes or by a panic; there will be another.
            if self.actor(key).send(wish).await.is_ok()
                && let Ok(got) = wait.await
            {
                return got;
            }
        }
    }

    fn out_of_time(&self, key: &Key, limit: Duration) -> Error {
        match self.0.errands.link().session_number() {
            None => self.0.errands.link().unreachable(),
            Some(_) if limit.is_zero() => Error::Timeout { after: self.0.errands.timeout() },
            Some(_) => Error::lock_held(key, format!("it was not got within {limit:?}")),
        }
    }

    /// The actor of a lock, which is started if there is none.
    fn actor(&self, key: &Key) -> mpsc::Sender<Wish> {
        let mut running = self.0.running.borrow_mut();
        if let Some(actor) = running.get(key).filter(|actor| !actor.is_closed()) {
            return actor.clone();
        }
        let (sender, inbox) = mpsc::channel(WISHES);
        let shared = &self.0;
        let (errands, grants, watchers) = (shared.errands.clone(), shared.grants.clone(), shared.watchers.clone());
        let lock = Lock::new(key.clone(), errands, grants, watchers, inbox);
        let end = Ended { locks: self.clone(), key: key.clone() };
        spawn_local(async move {
            let left = lock.run().await;
            end.locks.0.left.borrow_mut().extend(left);
        });
        running.insert(key.clone(), sender.clone());
        self.publish(running.len());
        sender
    }

    fn publish(&self, locks: usize) {
        self.0.status.send_modify(|status| status.locks = locks);
    }

    /// Waits until the actors of all locks have ended, which they do once the link is closed.
    pub(crate) async fn drained(&self) {
        while !self.0.running.borrow().is_empty() {
            self.0.ended.notified().await;
        }
    }

    /// Gives back all locks, and ends what they hung on.
    pub(crate) async fn close(&self, session: &Session) {
        self.drained().await;
        let left = std::mem::take(&mut *self.0.left.borrow_mut());
        let held = left.iter().filter(|(_, progress)| *progress != Progress::New);
        let ends = held.map(|(bid, progress)| async move {
            let leave = async { locking(&*session.backend)?.leave(bid, progress).await };
            let left = self.0.errands.last(leave).await;
            debug!(key = %bid.key, ?left, "a lock was given back with the store");
        });
        let ends = stream::iter(ends).buffer_unordered(ENDED_AT_ONCE).collect::<Vec<()>>();
        if timeout(self.0.errands.timeout() / LEAVING, ends).await.is_err() {
            debug!("locks were not given back in time; they go with what they hang on");
        }
        self.0.grants.close(session).await;
    }
}

/// Takes a lock's actor off the list when it ends, even by a panic.
struct Ended {
    locks: Locks,
    key: Key,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let mut running = self.locks.0.running.borrow_mut();
        // A new one may have taken the place of one that panicked.
        if running.get(&self.key).is_some_and(mpsc::Sender::is_closed) {
            running.remove(&self.key);
        }
        self.locks.publish(running.len());
        self.locks.0.ended.notify_one();
    }
}
