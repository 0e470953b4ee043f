//! The leader's term, as far as a session has heard of it, and the end of calls that a former leader took along.
//!
//! A member forwards what it is asked to the leader. What the leader had not spread when it died is lost, and the member goes on
//! waiting for it until a timeout of its own, which is longer than most deadlines. So where a call takes long the session asks
//! for the term: a read that the quorum confirms, in a later term than the call's, comes after all that has survived of
//! the time before.

use std::cell::Cell;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

/// A call that takes longer makes the session ask.
const LONG: Duration = Duration::from_millis(500);
/// And again so often, as long as there is such a call.
const PAUSE: Duration = Duration::from_millis(200);
/// How much later than the confirmation an answer may arrive: also that to a call which was made in the new term.
const GRACE: Duration = Duration::from_millis(300);

/// What is known of the term.
#[derive(Default)]
pub(super) struct Term {
    latest: Cell<u64>,
    asked: Cell<Option<Instant>>,
    /// Held while the session asks: many calls may take long at once.
    asking: Mutex<()>,
}

impl Term {
    /// An answer was given in this term.
    pub(super) fn heard(&self, term: u64) {
        self.latest.set(self.latest.get().max(term));
    }

    /// Returns when a call that begins now won't be answered any more, as it was made in an earlier term. `ask` reads something
    /// that takes a quorum, and hears the term of the answer.
    pub(super) async fn passed_by(&self, ask: impl AsyncFn()) {
        let begun = self.latest.get();
        sleep(LONG).await;
        while self.latest.get() <= begun {
            self.ask_in_turn(&ask).await;
            if self.latest.get() <= begun {
                sleep(PAUSE).await;
            }
        }
        sleep(GRACE).await;
    }

    async fn ask_in_turn(&self, ask: impl AsyncFn()) {
        let _turn = self.asking.lock().await;
        if self.asked.get().is_none_or(|asked| asked.elapsed() >= PAUSE) {
            ask().await;
            self.asked.set(Some(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;
    use tokio::time::timeout;

    #[tokio::test(start_paused = true)]
    async fn a_call_is_given_up_only_in_a_later_term() {
        let (term, begun) = (Term::default(), Instant::now());
        term.heard(3);
        let same = term.passed_by(async || term.heard(3));
        assert!(timeout(Duration::from_secs(60), same).await.is_err());
        let later = Instant::now() + Duration::from_secs(5);
        term.passed_by(async || term.heard(if Instant::now() < later { 3 } else { 4 })).await;
        let took = later.elapsed();
        assert!((GRACE..=GRACE + PAUSE).contains(&took), "{took:?}");
        assert!(begun.elapsed() > Duration::from_secs(65));
    }

    #[tokio::test(start_paused = true)]
    async fn many_calls_ask_as_often_as_one() {
        let (term, asked) = (Term::default(), Cell::new(0));
        let ask = async || asked.set(asked.get() + 1);
        let calls = join_all((0..1000).map(|_| term.passed_by(ask)));
        assert!(timeout(LONG + 10 * PAUSE, calls).await.is_err());
        assert!((9..=11).contains(&asked.get()), "{asked:?}");
    }
}
