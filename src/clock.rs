//! A clock that goes on while the machine sleeps, as the servers' clocks do: for deadlines that both sides count.

use std::time::Duration;

/// A moment, in nanoseconds of [`now`]'s clock. At the rate of this clock the moments of one machine can be compared, also
/// between processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    /// A moment before all others.
    pub(crate) const PAST: Moment = Moment(0);

    pub(crate) fn from_nanos(nanos: u64) -> Self {
        Moment(nanos)
    }

    pub(crate) fn nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this moment; none where it is the other way round.
    pub(crate) fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub(crate) fn plus(self, time: Duration) -> Self {
        Moment(self.0.saturating_add(nanos(time)))
    }

    #[cfg(any(test, not(any(target_os = "linux", target_os = "android"))))]
    fn minus(self, time: Duration) -> Self {
        Moment(self.0.saturating_sub(nanos(time)))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The present.
#[cfg(all(not(test), any(target_os = "linux", target_os = "android")))]
pub(crate) fn now() -> Moment {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = Duration::from_secs(time.tv_sec.unsigned_abs());
    Moment::PAST.plus(seconds + Duration::from_nanos(time.tv_nsec.unsigned_abs()))
}

/// The present, by a clock that stands still while the machine sleeps: the best that `std` has on this system.
///
/// The crate's own unit tests have tokio's clock, which they can stop and move.
#[cfg(any(test, not(any(target_os = "linux", target_os = "android"))))]
pub(crate) fn now() -> Moment {
    moment(tokio::time::Instant::now())
}

/// Somewhere in the middle of time: a clock that was stopped, in a test, may be behind the one that was looked at first.
#[cfg(any(test, not(any(target_os = "linux", target_os = "android"))))]
fn moment(at: tokio::time::Instant) -> Moment {
    use std::sync::LazyLock;
    use tokio::time::Instant;
    const MIDDLE: Moment = Moment(u64::MAX / 2);
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    match at.checked_duration_since(*FIRST) {
        Some(after) => MIDDLE.plus(after),
        None => MIDDLE.minus(FIRST.saturating_duration_since(at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_neither_wrap_nor_panic() {
        let last = Moment::from_nanos(u64::MAX);
        assert_eq!(last.plus(Duration::MAX), last);
        assert_eq!(Moment::PAST.since(last), Duration::ZERO);
        assert!(now() > Moment::PAST);
    }

    #[test]
    fn a_clock_behind_the_first_one_goes_on_too() {
        let first = now();
        let behind = tokio::time::Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        assert!(moment(behind) < first);
        assert_eq!(moment(behind + Duration::from_millis(1)).since(moment(behind)), Duration::from_millis(1));
    }
}
