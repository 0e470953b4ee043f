//! What one follower of a watched target has yet to look at.
//!
//! An event says only that something happened to a znode. So a follower is told of keys to look at, and a key that is told
//! of again before it was read is read once: however fast changes come, what waits is bounded by the number of keys.

use crate::backend::Target;
use crate::error::Error;
use crate::key::Key;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use tokio::sync::Notify;

/// The messages for one follower.
pub(super) struct Inbox {
    pub(super) target: Target,
    content: RefCell<Content>,
    /// There is something new. One waits at a time: the follower.
    news: Notify,
}

#[derive(Default)]
struct Content {
    /// The server tells of changes from now on.
    standing: bool,
    /// Why it doesn't any more.
    failure: Option<Error>,
    dirty: Dirty,
}

impl Inbox {
    pub(super) fn new(target: Target) -> Self {
        Inbox { target, content: RefCell::default(), news: Notify::new() }
    }

    /// Something happened to the znode of `key`.
    pub(super) fn mark(&self, key: &Key) {
        self.content.borrow_mut().dirty.mark(key);
        self.news.notify_one();
    }

    /// The watch stands.
    pub(super) fn stand(&self) {
        self.content.borrow_mut().standing = true;
        self.news.notify_one();
    }

    /// The watch stands, and may not have stood for a moment. Only followers of a key outlast that: see [`Arm`](super::arm::Arm).
    pub(super) fn stand_anew(&self) {
        let stood = self.content.borrow().standing;
        match &self.target {
            Target::Key(key) | Target::Lock(key) if stood => self.mark(key),
            _ => self.stand(),
        }
    }

    /// The watch is over.
    pub(super) fn fail(&self, error: Error) {
        self.content.borrow_mut().failure.get_or_insert(error);
        self.news.notify_one();
    }

    /// Waits until the watch stands.
    ///
    /// # Errors
    /// Why it never will.
    pub(super) async fn standing(&self) -> Result<(), Error> {
        loop {
            self.check()?;
            if self.content.borrow().standing {
                return Ok(());
            }
            self.news().await;
        }
    }

    /// Waits until the watch is over, and returns why. News of other kinds are left for later.
    pub(super) async fn failure(&self) -> Error {
        loop {
            if let Err(error) = self.check() {
                return error;
            }
            self.news().await;
        }
    }

    /// Fails where the watch is over.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.content.borrow().failure.clone().map_or(Ok(()), Err)
    }

    /// Waits until something came in since this returned before.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// The next key to read, to be [`done`](Inbox::done) with before it is given out again.
    pub(super) fn next(&self) -> Option<Key> {
        self.content.borrow_mut().dirty.next()
    }

    /// The key was read.
    pub(super) fn done(&self, key: &Key) {
        self.content.borrow_mut().dirty.done(key);
    }
}

/// Keys to read, each in the line once, in the order in which they came up.
#[derive(Default)]
struct Dirty {
    line: VecDeque<Key>,
    stages: HashMap<Key, Stage>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// In the line.
    Waiting,
    /// Being read.
    Reading,
    /// Being read, and the answer may be from before the last event.
    ReadingInVain,
}

impl Dirty {
    /// What is kept of the memory that a burst took.
    const CAPACITY: usize = 64;

    fn mark(&mut self, key: &Key) {
        match self.stages.get_mut(key) {
            Some(Stage::Waiting) => {}
            Some(stage) => *stage = Stage::ReadingInVain,
            None => self.wait(key.clone()),
        }
    }

    fn wait(&mut self, key: Key) {
        self.stages.insert(key.clone(), Stage::Waiting);
        self.line.push_back(key);
    }

    fn next(&mut self) -> Option<Key> {
        let key = self.line.pop_front()?;
        self.stages.insert(key.clone(), Stage::Reading);
        Some(key)
    }

    fn done(&mut self, key: &Key) {
        if self.stages.remove(key) == Some(Stage::ReadingInVain) {
            self.wait(key.clone());
        }
        if self.stages.is_empty() {
            self.stages.shrink_to(Self::CAPACITY);
            self.line.shrink_to(Self::CAPACITY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    fn inbox() -> Inbox {
        Inbox::new(Target::Key(key("a")))
    }

    #[test]
    fn a_key_told_of_many_times_is_read_once() {
        let inbox = inbox();
        for _ in 0..1000 {
            inbox.mark(&key("a"));
            inbox.mark(&key("b"));
        }
        assert_eq!(inbox.next(), Some(key("a")));
        assert_eq!(inbox.next(), Some(key("b")));
        assert_eq!(inbox.next(), None);
    }

    #[test]
    fn a_key_is_read_again_only_when_it_was_read() {
        let inbox = inbox();
        inbox.mark(&key("a"));
        assert_eq!(inbox.next(), Some(key("a")));
        inbox.mark(&key("a"));
        inbox.mark(&key("a"));
        assert_eq!(inbox.next(), None, "two reads of one key at once");
        inbox.done(&key("a"));
        assert_eq!(inbox.next(), Some(key("a")), "an event during the read is lost");
        inbox.done(&key("a"));
        assert_eq!(inbox.next(), None);
        assert!(inbox.content.borrow().dirty.stages.is_empty());
    }

    #[test]
    fn a_burst_leaves_no_memory_behind() {
        let mut dirty = Dirty::default();
        let keys: Vec<_> = (0..10_000).map(|number| key(&format!("k{number}"))).collect();
        keys.iter().for_each(|key| dirty.mark(key));
        while let Some(key) = dirty.next() {
            dirty.done(&key);
        }
        assert!(dirty.stages.capacity() < 256 && dirty.line.capacity() < 256);
    }

    #[test]
    fn a_watch_that_stands_anew_has_its_key_read() {
        let inbox = inbox();
        inbox.stand_anew();
        assert!(inbox.standing().now_or_never().unwrap().is_ok());
        assert_eq!(inbox.next(), None, "the first read is the follower's own business");
        inbox.stand_anew();
        assert_eq!(inbox.next(), Some(key("a")));
    }

    #[test]
    fn the_first_failure_is_told_and_stays() {
        let inbox = inbox();
        assert!(inbox.failure().now_or_never().is_none());
        inbox.stand();
        inbox.fail(Error::Closed);
        inbox.fail(Error::unreachable("later"));
        assert!(matches!(inbox.failure().now_or_never(), Some(Error::Closed)));
        assert!(matches!(inbox.standing().now_or_never(), Some(Err(Error::Closed))));
    }
}
