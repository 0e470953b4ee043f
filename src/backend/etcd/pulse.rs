//! When a silent stream is asked for a sign of life, and when it is given up.

use super::transport;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How often a stream is asked before it is given up.
const CALLS: u32 = 2;

/// The signs of life of one stream.
pub(super) struct Pulse {
    /// The time between two questions; none where the connection's own keep-alive is soon enough.
    interval: Option<Duration>,
    heard: Instant,
    calls: u32,
}

impl Pulse {
    /// For a stream that may be silent for `idle`.
    pub(super) fn new(idle: Duration) -> Self {
        let interval = (idle <= transport::NOTICED_WITHIN).then(|| idle / (CALLS + 1));
        Pulse { interval, heard: Instant::now(), calls: 0 }
    }

    /// A sign of life.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
        self.calls = 0;
    }

    /// Waits until it is time to ask for one, and says whether there is any hope.
    pub(super) async fn beat(&mut self) -> bool {
        let Some(interval) = self.interval else { return std::future::pending().await };
        sleep_until(self.heard + interval * (self.calls + 1)).await;
        self.calls += 1;
        self.calls <= CALLS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(3);

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_is_asked_twice_and_given_up_in_time() {
        let began = Instant::now();
        let mut pulse = Pulse::new(IDLE);
        assert_eq!([pulse.beat().await, pulse.beat().await, pulse.beat().await], [true, true, false]);
        assert_eq!(began.elapsed(), IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn any_sign_of_life_is_good_for_the_whole_time() {
        let mut pulse = Pulse::new(IDLE);
        for _ in 0..10 {
            assert!(pulse.beat().await && pulse.beat().await);
            pulse.heard();
        }
        let began = Instant::now();
        while pulse.beat().await {}
        assert_eq!(began.elapsed(), IDLE);
    }
}
