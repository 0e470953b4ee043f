//! [`Leases`]: the keys with a TTL that this store wrote. Each has a task that renews its lease and ends it in time.

use super::errand::Errands;
use crate::backend::Lease;
use crate::error::Result;
use crate::key::{Dir, Key};
use crate::link::{Session, far_future};
use crate::types::Version;
use futures_util::{StreamExt, stream};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

/// How many leases are ended at once when the store closes.
const ENDED_AT_ONCE: usize = 64;

/// The keys with a TTL that this store wrote and has not written or deleted since.
#[derive(Clone)]
pub struct Leases {
    kept: Rc<RefCell<HashMap<Key, Kept>>>,
    count: LeaseCount,
    errands: Errands,
}

/// A lease with the task that looks after it.
struct Kept {
    lease: Lease,
    keep_alive: bool,
    /// The session that it was written in. Versions of different sessions can't be compared: a server may have been wiped.
    session: Option<u64>,
    task: AbortHandle,
    count: LeaseCount,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
        self.count.uncount();
    }
}

/// How many leases are looked after, for other threads to see.
///
/// One that isn't seen yet, as its key was written at the same time, does no harm: to end or renew a lease does nothing to a key
/// that was written since.
#[derive(Clone, Default)]
pub(crate) struct LeaseCount(Arc<AtomicUsize>);

impl LeaseCount {
    pub(crate) fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn counted(&self) -> Self {
        self.0.fetch_add(1, Ordering::Relaxed);
        self.clone()
    }

    pub(crate) fn uncount(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// When a lease is renewed and ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Schedule {
    renew_every: Option<Duration>,
    ends: Option<Instant>,
}

/// What is to be done with a lease next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Renew(Instant),
    Expire(Instant),
    Rest,
}

impl Schedule {
    /// The schedule of a key that was written just now. A lease is renewed after a third of the time that it lasts, so that
    /// two renewals may fail.
    fn new(lease: &Lease, ttl: Duration, keep_alive: bool) -> Self {
        let renew_within = if keep_alive { lease.renew_within.min(ttl) } else { lease.renew_within };
        let needs_renewal = keep_alive || renew_within < ttl;
        Schedule {
            renew_every: needs_renewal.then_some(renew_within / 3),
            ends: (!keep_alive).then(|| Instant::now().checked_add(ttl).unwrap_or_else(far_future)),
        }
    }

    fn next(&self, renewed: Instant) -> Step {
        let renewal = self.renew_every.and_then(|every| renewed.checked_add(every));
        match (renewal, self.ends) {
            (Some(renewal), Some(ends)) if renewal < ends => Step::Renew(renewal),
            (_, Some(ends)) => Step::Expire(ends),
            (Some(renewal), None) => Step::Renew(renewal),
            (None, None) => Step::Rest,
        }
    }
}

impl Leases {
    pub(crate) fn new(errands: Errands) -> Self {
        Leases { kept: Rc::default(), count: LeaseCount::default(), errands }
    }

    pub(crate) fn count(&self) -> &LeaseCount {
        &self.count
    }

    /// Looks after the lease of a key that was written just now; the lease of the write before is ended.
    ///
    /// Answers may come in another order than the writes were made in: the later write, which the versions tell, stays.
    pub(crate) fn keep(&self, lease: Lease, ttl: Duration, keep_alive: bool) {
        let session = self.errands.link().session_number();
        if self.is_past(&lease.key, &lease.version, session) {
            return self.end_in_background(lease);
        }
        if self.errands.link().is_closed() {
            return;
        }
        let schedule = Schedule::new(&lease, ttl, keep_alive);
        let task = spawn_local(self.clone().look_after(lease.clone(), schedule)).abort_handle();
        let kept = Kept { lease, keep_alive, session, task, count: self.count.counted() };
        let before = self.kept.borrow_mut().insert(kept.lease.key.clone(), kept);
        before.into_iter().for_each(|kept| self.end_in_background(kept.lease.clone()));
    }

    /// Whether a later write of `key` than the one in `version` is known.
    fn is_past(&self, key: &Key, version: &Version, session: Option<u64>) -> bool {
        let kept = self.kept.borrow();
        kept.get(key).is_some_and(|kept| kept.session == session && kept.lease.version.index() > version.index())
    }

    /// The version in which `key` has a TTL by us.
    pub(crate) fn known(&self, key: &Key) -> Option<Version> {
        self.kept.borrow().get(key).map(|kept| kept.lease.version)
    }

    /// The keys beneath `dir` that have a TTL by us.
    pub(crate) fn known_beneath(&self, dir: &Dir) -> Vec<(Key, Version)> {
        let kept = self.kept.borrow();
        let beneath = kept.iter().filter(|(key, _)| dir.relative(key).is_some());
        beneath.map(|(key, kept)| (key.clone(), kept.lease.version)).collect()
    }

    /// The key was deleted while it had this version, if it had a TTL by us: nothing is left of the TTL.
    pub(crate) fn deleted(&self, key: &Key, known: Option<Version>) {
        if known.is_some() && self.known(key) == known {
            self.forget(key);
        }
    }

    /// The key was written in this version: nothing is left of the TTLs of versions before.
    pub(crate) fn overwritten(&self, key: &Key, written: &Version) {
        if self.known(key).is_some() && !self.is_past(key, written, self.errands.link().session_number()) {
            self.forget(key);
        }
    }

    fn forget(&self, key: &Key) {
        let past = self.kept.borrow_mut().remove(key);
        past.into_iter().for_each(|kept| self.end_in_background(kept.lease.clone()));
    }

    /// The store is closed: nothing is looked after any more.
    pub(crate) fn abandon(&self) {
        let kept = std::mem::take(&mut *self.kept.borrow_mut());
        drop(kept);
    }

    /// Ends the leases that were to last as long as the store. Those of plain TTLs run out at the server.
    pub(crate) async fn close(&self, session: &Session) {
        let kept: Vec<Kept> = self.kept.borrow_mut().drain().map(|(_, kept)| kept).collect();
        let ends = kept.iter().filter(|kept| kept.keep_alive).map(|kept| async move {
            let expire = async { session.backend.expire(&kept.lease).await };
            let ended = timeout(self.errands.timeout(), self.errands.last(expire)).await;
            debug!(key = %kept.lease.key, ?ended, "ended a lease with the store");
        });
        stream::iter(ends).buffer_unordered(ENDED_AT_ONCE).collect::<Vec<()>>().await;
    }

    fn end_in_background(&self, lease: Lease) {
        let leases = self.clone();
        spawn_local(async move { leases.expire(&lease).await });
    }

    /// The life of one lease: renewals, and its end.
    async fn look_after(self, lease: Lease, schedule: Schedule) {
        let mut renewed = Instant::now();
        loop {
            match schedule.next(renewed) {
                Step::Rest => return,
                Step::Expire(at) => {
                    sleep_until(at).await;
                    self.expire(&lease).await;
                    self.kept.borrow_mut().retain(|_, kept| kept.lease != lease);
                    return;
                }
                Step::Renew(at) => {
                    sleep_until(at).await;
                    renewed = Instant::now();
                    if let Err(error) = self.renew(&lease).await {
                        debug!(key = %lease.key, %error, "a lease is over");
                        self.kept.borrow_mut().retain(|_, kept| kept.lease != lease);
                        return;
                    }
                }
            }
        }
    }

    /// A renewal or an end does no harm when it is done twice: it is repeated until the server has answered, or has let the
    /// lease go in any case.
    async fn renew(&self, lease: &Lease) -> Result<()> {
        let patience = lease.renew_within.saturating_add(self.errands.timeout());
        self.errands.until_answered(patience, async |session| session.backend.renew(lease).await).await
    }

    async fn expire(&self, lease: &Lease) {
        let patience = lease.outlives_process_by.saturating_add(self.errands.timeout());
        let ended = self.errands.until_answered(patience, async |session| session.backend.expire(lease).await).await;
        debug!(key = %lease.key, ?ended, "a lease was ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::BackendKind;

    const SECOND: Duration = Duration::from_secs(1);

    fn lease(renew_within: Duration) -> Lease {
        Lease {
            key: Key::parse("k").unwrap(),
            version: Version::new(BackendKind::Custom, 1),
            id: String::new(),
            renew_within,
            outlives_process_by: renew_within,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_covers_the_ttl_is_not_renewed() {
        let now = Instant::now();
        let schedule = Schedule::new(&lease(4 * SECOND), 3 * SECOND, false);
        assert_eq!(schedule.next(now), Step::Expire(now + 3 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_shorter_than_the_ttl_is_renewed_until_the_end() {
        let now = Instant::now();
        let schedule = Schedule::new(&lease(9 * SECOND), 12 * SECOND, false);
        assert_eq!(schedule.next(now), Step::Renew(now + 3 * SECOND));
        assert_eq!(schedule.next(now + 9 * SECOND), Step::Expire(now + 12 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_kept_alive_is_renewed_for_ever() {
        let now = Instant::now();
        let schedule = Schedule::new(&lease(Duration::MAX), 3 * SECOND, true);
        assert_eq!(schedule.next(now), Step::Renew(now + SECOND));
        assert_eq!(schedule.next(now + 100 * SECOND), Step::Renew(now + 101 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_the_session_keeps_only_ends() {
        let now = Instant::now();
        let schedule = Schedule::new(&lease(Duration::MAX), 3 * SECOND, false);
        assert_eq!(schedule.next(now), Step::Expire(now + 3 * SECOND));
    }
}
