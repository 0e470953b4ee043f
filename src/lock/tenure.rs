//! [`Tenure`]: until when the locks of one grant are held for certain, by this machine's own clock.

use crate::clock::{Moment, now};
use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// The part of a grant's time that is counted on, so that the server's clock may run faster than ours by a ninth.
const TRUSTED_TENTHS: u32 = 9;
/// What is taken off for the time between a look at the clock and what is done upon it.
const MARGIN: Duration = Duration::from_millis(100);

/// How a grant is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TenureState {
    /// Renewals succeed.
    Firm,
    /// A renewal failed; the deadline is still ahead.
    Shaky,
    /// Over, for good.
    Over,
}

/// The deadline of a grant, which any thread can look at. It counts from the sending of the last renewal that succeeded, and
/// once it has passed it comes back by no renewal.
#[derive(Debug)]
pub(crate) struct Tenure {
    /// In nanoseconds of the clock; 0 is over.
    deadline: AtomicU64,
    ttl: Duration,
    state: watch::Sender<TenureState>,
    tainted: AtomicBool,
}

impl Tenure {
    /// The tenure of a grant that lasts `ttl` from `sent` on.
    pub(crate) fn new(sent: Moment, ttl: Duration) -> Self {
        let deadline = AtomicU64::new(deadline(sent, ttl).nanos());
        Tenure { deadline, ttl, state: watch::Sender::new(TenureState::Firm), tainted: AtomicBool::new(false) }
    }

    /// How long the grant lasts at the server after each renewal.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// A request on behalf of the grant may still be on its way, and arrive when a later acquisition holds the lock: the grant is
    /// for those who have it already, and no acquisition begins with it.
    pub(crate) fn taint(&self) {
        self.tainted.store(true, Ordering::Release);
    }

    pub(crate) fn is_tainted(&self) -> bool {
        self.tainted.load(Ordering::Acquire)
    }

    /// Whether the deadline is ahead.
    pub(crate) fn is_live(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// The time until the deadline, zero when it has passed.
    pub(crate) fn remaining(&self) -> Duration {
        Moment::from_nanos(self.deadline.load(Ordering::Acquire)).since(now())
    }

    /// The time since the sending of the last renewal that succeeded, up to the deadline.
    pub(crate) fn age(&self) -> Duration {
        trusted(self.ttl).saturating_sub(self.remaining())
    }

    /// A renewal that was sent at this moment succeeded. Returns whether the tenure goes on.
    pub(crate) fn renewed(&self, sent: Moment) -> bool {
        let later = deadline(sent, self.ttl).nanos();
        let extend = |before| (before > now().nanos()).then(|| later.max(before));
        let extended = self.deadline.fetch_update(Ordering::AcqRel, Ordering::Acquire, extend).is_ok();
        match extended {
            true => self.tell(TenureState::Firm),
            false => self.end(),
        }
        extended
    }

    /// A renewal failed.
    pub(crate) fn doubt(&self) {
        self.tell(TenureState::Shaky);
    }

    /// The grant is over.
    pub(crate) fn end(&self) {
        self.deadline.store(Moment::PAST.nanos(), Ordering::Release);
        self.tell(TenureState::Over);
    }

    /// How the grant is doing, and whenever that changes.
    pub(crate) fn state(&self) -> watch::Receiver<TenureState> {
        self.state.subscribe()
    }

    fn tell(&self, new: TenureState) {
        self.state.send_if_modified(|state| {
            let changes = *state != new && *state != TenureState::Over;
            if changes {
                *state = new;
            }
            changes
        });
    }
}

/// A request on behalf of a grant that is on its way: the grant is tainted unless the answer comes.
pub(crate) struct InDoubt(Option<Arc<Tenure>>);

impl InDoubt {
    pub(crate) fn new(tenure: &Arc<Tenure>) -> Self {
        InDoubt(Some(tenure.clone()))
    }

    /// The answer has come; one that doesn't say what was done is none.
    pub(crate) fn answered<T>(mut self, answer: Result<T>) -> Result<T> {
        if !answer.as_ref().is_err_and(Error::is_indeterminate) {
            self.0 = None;
        }
        answer
    }
}

impl Drop for InDoubt {
    fn drop(&mut self) {
        self.0.iter().for_each(|tenure| tenure.taint());
    }
}

fn deadline(sent: Moment, ttl: Duration) -> Moment {
    sent.plus(trusted(ttl))
}

/// For how long after a renewal's sending its grant is counted on.
fn trusted(ttl: Duration) -> Duration {
    (ttl / 10 * TRUSTED_TENTHS).saturating_sub(MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const TTL: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn the_deadline_counts_from_the_sending() {
        let sent = now();
        advance(Duration::from_secs(3)).await;
        let tenure = Tenure::new(sent, TTL);
        assert_eq!((tenure.remaining(), tenure.age()), (Duration::from_millis(5_900), Duration::from_secs(3)));
        advance(Duration::from_millis(5_899)).await;
        assert!(tenure.is_live());
        advance(Duration::from_millis(1)).await;
        assert!(!tenure.is_live());
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_comes_too_late_brings_nothing_back() {
        let tenure = Tenure::new(now(), TTL);
        advance(Duration::from_secs(8)).await;
        let sent = now();
        advance(Duration::from_secs(1)).await;
        assert!(!tenure.renewed(sent));
        assert!(!tenure.is_live());
        assert_eq!(*tenure.state().borrow(), TenureState::Over);
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_renewal_takes_no_time_away() {
        let tenure = Tenure::new(now(), TTL);
        let first = now();
        advance(Duration::from_secs(2)).await;
        assert!(tenure.renewed(now()));
        let remaining = tenure.remaining();
        assert!(tenure.renewed(first));
        assert_eq!(tenure.remaining(), remaining);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_over_stays_over() {
        let tenure = Tenure::new(now(), TTL);
        tenure.doubt();
        assert_eq!(*tenure.state().borrow(), TenureState::Shaky);
        tenure.end();
        assert!(!tenure.renewed(now()));
        tenure.doubt();
        assert_eq!(*tenure.state().borrow(), TenureState::Over);
    }
}
