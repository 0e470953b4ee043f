//! The rules of Consul's blocking queries: which index to wait at, for how long, how often, and how many at once.

use super::codec::nonce;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// The longest wait, whatever the silence that is allowed. The server takes no more than twice as much.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// How long a query may ask at will when it comes to it rested.
const CREDIT: Duration = Duration::from_secs(3);
/// What an answer with news costs at least: a key that changes all the time is read a hundred times a second.
const LEAST_COST: Duration = Duration::from_millis(10);
/// What each KiB of it costs: a large directory that changes all the time is read at a MiB a second.
const COST_PER_KIB: Duration = Duration::from_millis(1);
/// What an answer without news costs. Writes elsewhere wake queries for what doesn't exist, every one of them.
const COST_IN_VAIN: Duration = Duration::from_millis(200);

/// The index up to which one query has seen everything.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor(u64);

/// What an index says about the answer that carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The wait was over: all is as it was.
    None,
    /// Something may have changed. The server wakes queries also for changes elsewhere.
    Maybe,
    /// The server isn't where it was: it was wiped or restored, or forgot about old deletions. What is there is to be read
    /// anew, without waiting.
    Backward,
}

impl Cursor {
    /// The query for what comes behind this index; with none, the answer comes at once.
    ///
    /// Always consistent. The first answer is linearizable by that, and no later one is older than those before it, also
    /// while the servers change their leader: a server makes sure that it leads each time before it looks.
    pub(super) fn query(&self, wait: Duration) -> String {
        match self.0 {
            0 => "consistent".to_owned(),
            index => format!("consistent&index={index}&wait={}ms", wait.as_millis()),
        }
    }

    /// Moves on to the index of an answer.
    pub(super) fn advance(&mut self, answered: u64) -> News {
        // Waiting at 0 is no waiting at all.
        let answered = answered.max(1);
        let news = match answered.cmp(&self.0) {
            std::cmp::Ordering::Less => News::Backward,
            std::cmp::Ordering::Equal => News::None,
            std::cmp::Ordering::Greater => News::Maybe,
        };
        self.0 = if news == News::Backward { 0 } else { answered };
        news
    }

    /// Has the next query answered at once.
    pub(super) fn restart(&mut self) {
        self.0 = 0;
    }
}

/// How long the server is to wait so that its answer comes within `silence`: it adds up to a sixteenth by itself, and the way
/// takes its time too. Of random length, so that queries that began together don't stay together.
pub(super) fn wait(silence: Duration) -> Duration {
    let longest = (silence * 4 / 5).min(MAX_WAIT);
    let jitter = longest / 8 * u32::from(nonce() as u8) / 256;
    longest - jitter
}

/// How often those are read that find no place to wait on the server.
pub(super) const POLL: Duration = Duration::from_secs(1);

/// What an answer was worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    /// It was news to somebody, and of so many bytes.
    News(usize),
    Nothing,
}

impl Worth {
    fn cost(self) -> Duration {
        match self {
            Worth::News(bytes) => LEAST_COST.max(COST_PER_KIB * u32::try_from(bytes / 1024).unwrap_or(u32::MAX)),
            Worth::Nothing => COST_IN_VAIN,
        }
    }
}

/// Keeps one query from asking too often. Answers cost time; what the credit covers is free, and for the rest the query waits.
#[derive(Debug)]
pub(super) struct Pacer {
    /// When the credit would be whole again.
    whole: Instant,
}

impl Pacer {
    pub(super) fn new(now: Instant) -> Self {
        Pacer { whole: now }
    }

    /// An answer came.
    pub(super) fn charge(&mut self, now: Instant, worth: Worth) {
        self.whole = self.whole.max(now) + worth.cost();
    }

    /// When the next query may be sent, where that isn't now: even the shortest sleep takes a millisecond.
    pub(super) fn pause(&self, now: Instant) -> Option<Instant> {
        self.whole.checked_sub(CREDIT).filter(|due| *due > now)
    }
}

/// The longest time for which a server goes on with a query that was to wait for `wait`, whoever is gone meanwhile.
fn longest(wait: Duration) -> Duration {
    wait + wait / 16 + Duration::from_millis(100)
}

/// How many queries may wait on the server at once.
///
/// The server doesn't notice that the one who asked is gone, and counts its connection until the wait is over. So a place is
/// taken until then, and watches that come and go can't use up the connections that an agent grants.
pub(super) struct Places {
    free: Cell<usize>,
    /// Of queries that were given up: when the server is done with each.
    lingering: RefCell<Vec<Instant>>,
}

impl Places {
    pub(super) fn new(number: usize) -> Rc<Self> {
        Rc::new(Places { free: Cell::new(number), lingering: RefCell::default() })
    }

    /// A place, if there is one.
    pub(super) fn take(self: &Rc<Self>, now: Instant) -> Option<Place> {
        let mut lingering = self.lingering.borrow_mut();
        let before = lingering.len();
        lingering.retain(|end| *end > now);
        self.free.set(self.free.get() + before - lingering.len());
        self.free.set(self.free.get().checked_sub(1)?);
        Some(Place { places: self.clone(), waits_until: None })
    }
}

/// The right to have one query wait on the server.
pub(super) struct Place {
    places: Rc<Places>,
    waits_until: Option<Instant>,
}

impl Place {
    /// A query is about to be sent that waits for so long.
    pub(super) fn waits(&mut self, now: Instant, wait: Duration) {
        self.waits_until = Some(now + longest(wait));
    }

    /// The query was answered.
    pub(super) fn answered(&mut self) {
        self.waits_until = None;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match self.waits_until {
            Some(end) => self.places.lingering.borrow_mut().push(end),
            None => self.places.free.set(self.places.free.get() + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_grows_is_followed() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.query(Duration::from_secs(8)), "consistent");
        assert_eq!(cursor.advance(7), News::Maybe);
        assert_eq!(cursor.query(Duration::from_secs(8)), "consistent&index=7&wait=8000ms");
        assert_eq!(cursor.advance(7), News::None);
        assert_eq!(cursor.advance(9), News::Maybe);
        assert_eq!(cursor, Cursor(9));
    }

    #[test]
    fn an_index_that_falls_starts_again_from_nothing() {
        let mut cursor = Cursor(9);
        assert_eq!(cursor.advance(8), News::Backward);
        assert_eq!(cursor.query(Duration::from_secs(1)), "consistent");
        assert_eq!(cursor.advance(8), News::Maybe);
        cursor.restart();
        assert_eq!(cursor.advance(8), News::Maybe);
    }

    #[test]
    fn an_index_below_1_is_1() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.advance(0), News::Maybe);
        assert!(cursor.query(Duration::from_secs(1)).contains("index=1&"), "the next query waits");
        assert_eq!(cursor.advance(0), News::None);
    }

    #[test]
    fn the_answer_comes_within_the_silence() {
        for silence in [3, 10, 3600].map(Duration::from_secs) {
            let waits: Vec<_> = (0..100).map(|_| wait(silence)).collect();
            assert!(waits.iter().all(|wait| *wait + *wait / 16 < silence * 9 / 10 && *wait <= MAX_WAIT));
            assert!(waits.iter().all(|wait| *wait >= silence.min(MAX_WAIT) / 2));
            assert!(waits.iter().any(|wait| *wait != waits[0]));
        }
    }

    #[test]
    fn a_place_is_free_again_when_the_server_is_done() {
        let (places, now, wait) = (Places::new(2), Instant::now(), Duration::from_secs(8));
        let (mut first, mut second) = (places.take(now).unwrap(), places.take(now).unwrap());
        assert!(places.take(now).is_none());
        first.waits(now, wait);
        first.answered();
        drop(first);
        let third = places.take(now).unwrap();
        second.waits(now, wait);
        drop(second);
        assert!(places.take(now + wait).is_none(), "the server adds a sixteenth");
        let _fourth = places.take(now + wait * 17 / 16 + Duration::from_millis(100)).unwrap();
        drop(third);
        assert!(places.take(now).is_some() && places.take(now).is_some());
    }

    /// How often a query asks in ten seconds whose answers come at once and are worth this.
    fn asked(worth: Worth, pacer: &mut Pacer, start: Instant) -> usize {
        let (mut now, mut asked) = (start, 0);
        while now < start + Duration::from_secs(10) {
            pacer.charge(now, worth);
            now = pacer.pause(now).unwrap_or(now);
            asked += 1;
        }
        asked
    }

    #[test]
    fn what_changes_all_the_time_is_read_at_a_pace() {
        let start = Instant::now();
        for (worth, times) in [(Worth::News(100), 1300), (Worth::News(200 * 1024), 65), (Worth::Nothing, 65)] {
            let mut pacer = Pacer::new(start);
            assert_eq!(asked(worth, &mut pacer, start), times, "{worth:?}");
            // After a rest the credit is whole again, and no more than that.
            assert_eq!(asked(worth, &mut pacer, start + Duration::from_secs(60)), times, "{worth:?} after a rest");
        }
    }

    #[test]
    fn a_value_of_any_size_is_read_again() {
        let start = Instant::now();
        let mut pacer = Pacer::new(start);
        pacer.charge(start, Worth::News(usize::MAX));
        assert!(pacer.pause(start).is_some());
    }
}
