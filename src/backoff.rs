//! Pauses between attempts: exponential, with jitter, without an end.

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use std::time::Duration;

/// Pauses that begin at `min` and double up to `max`; each lasts up to twice as long by chance, and `max` at the most.
pub(crate) struct Pauses {
    backoff: ExponentialBackoff,
    max: Duration,
}

impl Pauses {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        let builder = ExponentialBuilder::default().with_min_delay(min).with_max_delay(max);
        Pauses { backoff: builder.with_jitter().without_max_times().build(), max }
    }

    pub(crate) fn next(&mut self) -> Duration {
        self.backoff.next().map_or(self.max, |pause| pause.min(self.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_never_end() {
        let (min, max) = (Duration::from_millis(10), Duration::from_millis(500));
        let mut pauses = Pauses::new(min, max);
        let first = pauses.next();
        assert!((min..=2 * min).contains(&first), "{first:?}");
        for _ in 0..1000 {
            assert!(pauses.next() <= max);
        }
        assert_eq!(pauses.next(), max);
    }
}
