//! Following a key or a directory: a listing at one revision, and the server's events from the next one on.

use super::events::{self, Joint};
use super::history::{Chronicle, Place};
use super::hub::{Feed, Hub, News, Opening};
use super::line;
use super::range::{self, Range};
use super::session::{Session, version};
use super::status::{self, Effect};
use crate::backend::{Change, Position, Target, Update, Updates};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::types::KvPair;
use bytes::Bytes;
use etcd_client::proto::{PbEvent, PbKeyValue};
use etcd_client::{GetOptions, WatchFilterType, WatchOptions};
use futures_util::StreamExt;
use futures_util::stream::try_unfold;
use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

/// How many watches may begin at once: a thousand that want to neither hold up calls nor burst memory with their listings.
const BEGINNINGS: usize = 16;

/// The watches of one session. They share a stream while its token is good.
pub(super) struct Watches {
    session: Rc<Session>,
    chronicle: Arc<Chronicle>,
    idle: Duration,
    /// The stream for new watches.
    hub: RefCell<Weak<Hub>>,
    /// Held while it is opened.
    opening: Mutex<()>,
    beginnings: Semaphore,
}

impl Watches {
    /// Watches whose streams are taken for dead after a silence of `idle`.
    pub(super) fn new(session: Rc<Session>, chronicle: Arc<Chronicle>, idle: Duration) -> Self {
        let (hub, opening, beginnings) = (RefCell::default(), Mutex::default(), Semaphore::new(BEGINNINGS));
        Watches { session, chronicle, idle, hub, opening, beginnings }
    }

    /// Follows `target`, from `after` on where the server can.
    pub(super) fn follow(self: Rc<Self>, target: &Target, after: Option<&Position>) -> Updates {
        let subject = Subject::of(&self.session, target);
        let stage = Stage::Beginning(after.and_then(Place::of));
        try_unfold(Follower { watches: self, subject, stage }, Follower::next).boxed_local()
    }

    /// The stream for a new watch.
    async fn hub(&self) -> Result<Rc<Hub>> {
        let _turn = self.opening.lock().await;
        let hub = self.hub.borrow().upgrade();
        if let Some(hub) = hub.filter(|hub| !hub.is_over()) {
            return Ok(hub);
        }
        let opened = timeout(self.idle, self.open()).await;
        let hub = Rc::new(opened.unwrap_or_else(|_| Err(self.session.silent()))?);
        self.hub.replace(Rc::downgrade(&hub));
        Ok(hub)
    }

    async fn open(&self) -> Result<Hub> {
        let opening = Opening::new(&self.session).await?;
        // Asked while the stream stands, so that the answer is of the same server.
        let era = self.chronicle.era(&self.session, opening.cluster, opening.term).await?;
        Ok(Hub::new(self.session.clone(), opening, era, self.idle))
    }

    /// No new watches on this stream: its token, which it keeps for life, is no good any more. Those that it has go on.
    fn retire(&self, hub: &Rc<Hub>) {
        let mut current = self.hub.borrow_mut();
        if std::ptr::eq(current.as_ptr(), Rc::as_ptr(hub)) {
            *current = Weak::new();
        }
    }
}

/// What is followed at the server, and what is told of it.
struct Subject {
    range: Range,
    /// The range is the line of this lock: its key is told as written whenever somebody comes, goes, or writes there.
    lock: Option<Key>,
}

impl Subject {
    fn of(session: &Session, target: &Target) -> Self {
        let (range, lock) = match target {
            Target::Key(key) => (Range::one(session.path(key)), None),
            Target::Tree(dir) => (Range::beneath(session.prefix(dir)), None),
            Target::Lock(key) => (line::beneath(&session.path(key)), Some(key.clone())),
        };
        Subject { range, lock }
    }

    /// What there is, as it was found at `revision`.
    fn state(&self, session: &Session, found: Vec<PbKeyValue>, revision: i64) -> Vec<KvPair> {
        match &self.lock {
            None => found.into_iter().filter_map(|found| events::pair(session, found)).collect(),
            Some(lock) => vec![stirred(lock, revision)],
        }
    }

    fn changes(&self, session: &Session, events: Vec<PbEvent>) -> Vec<Change> {
        let Some(lock) = &self.lock else {
            return events.into_iter().filter_map(|event| events::change(session, event)).collect();
        };
        // Ordinary keys may be beneath it too. Of what is gone the server doesn't say what it was.
        let concerns = |event: &&PbEvent| events::put(event).is_none_or(line::is_contender);
        let last = events.iter().rfind(concerns).map(events::revision);
        last.map(|revision| Change::Put(stirred(lock, revision))).into_iter().collect()
    }
}

/// A lock about which something is new at `revision`.
fn stirred(lock: &Key, revision: i64) -> KvPair {
    KvPair { key: lock.clone(), value: Bytes::new(), version: version(revision) }
}

/// One watch, for as long as somebody follows it.
struct Follower {
    watches: Rc<Watches>,
    subject: Subject,
    stage: Stage,
}

enum Stage {
    Beginning(Option<Place>),
    Following(Feed, Joint),
}

impl Follower {
    async fn next(mut self) -> Result<Option<(Update, Self)>> {
        loop {
            let (stage, update) = match self.stage {
                Stage::Beginning(after) => {
                    let (feed, update) = self.watches.begin(&self.subject, after).await?;
                    (Stage::Following(feed, Joint::default()), Some(update))
                }
                Stage::Following(mut feed, joint) => match feed.next().await? {
                    News::Events { events, more } => self.watches.join(&self.subject, feed, joint, events, more),
                    // The server has forgotten what comes next: only a new listing tells how things are.
                    News::Cancelled { compacted: true, .. } => (Stage::Beginning(None), None),
                    News::Cancelled { reason, .. } => {
                        return Err(self.watches.session.error(status::cancelled(&reason), Effect::Read));
                    }
                },
            };
            self.stage = stage;
            if let Some(update) = update {
                return Ok(Some((update, self)));
            }
        }
    }
}

impl Watches {
    async fn begin(&self, subject: &Subject, after: Option<Place>) -> Result<(Feed, Update)> {
        let _turn = self.beginnings.acquire().await;
        let begin = async || self.try_to_begin(subject, after).await;
        // In a box of its own, so that what a watch holds for all its life stays small.
        Box::pin(self.session.authenticated(begin)).await
    }

    async fn try_to_begin(&self, subject: &Subject, after: Option<Place>) -> Result<(Feed, Update)> {
        let hub = self.hub().await?;
        let begun = match after {
            Some(after) => self.resume(&hub, subject, after).await,
            None => self.start(&hub, subject).await,
        };
        if let Err(Error::Unauthenticated { .. }) = begun {
            self.retire(&hub);
        }
        begun
    }

    /// Waits until the key at `path`, which was there at `revision`, is deleted, or may have been.
    pub(super) async fn deleted(&self, path: &[u8], revision: i64) -> Result<()> {
        let mut feed = self.session.authenticated(async || self.deletions(path, revision).await).await?;
        loop {
            match feed.next().await? {
                News::Events { events, .. } if events.is_empty() => {}
                News::Events { .. } | News::Cancelled { compacted: true, .. } => return Ok(()),
                News::Cancelled { reason, .. } => {
                    return Err(self.session.error(status::cancelled(&reason), Effect::Read));
                }
            }
        }
    }

    async fn deletions(&self, path: &[u8], revision: i64) -> Result<Feed> {
        let hub = self.hub().await?;
        let range = Range::one(path.to_vec());
        let feed = hub.clone().watch(events_after(&range, revision).with_filters([WatchFilterType::NoPut])).await;
        if let Err(Error::Unauthenticated { .. }) = feed {
            self.retire(&hub);
        }
        feed
    }

    /// Goes on where an earlier watch ended, if it is on the same road.
    async fn resume(&self, hub: &Rc<Hub>, subject: &Subject, after: Place) -> Result<(Feed, Update)> {
        let range = &subject.range;
        let history = hub.era().history;
        if after.history == history || (after.empty && hub.meanwhile(self.was_empty(range, after.revision)).await?) {
            let feed = hub.clone().watch(events_after(range, after.revision)).await?;
            // A server that never came so far has another history after all.
            if feed.revision() >= after.revision {
                let position = Some(Place { history, ..after }.position());
                return Ok((feed, Update::Changes { changes: Vec::new(), position }));
            }
        }
        self.start(hub, subject).await
    }

    async fn was_empty(&self, range: &Range, revision: i64) -> Result<bool> {
        let then = || GetOptions::new().with_range(range.end()).with_revision(revision).with_count_only();
        let found = self.session.past(async || self.session.kv().get(range.start(), Some(then())).await).await?;
        Ok(found.is_some_and(|found| found.count() == 0))
    }

    /// Tells how things are, and follows from there.
    async fn start(&self, hub: &Rc<Hub>, subject: &Subject) -> Result<(Feed, Update)> {
        let (found, revision) = hub.meanwhile(range::snapshot(&self.session, subject.range.clone())).await?;
        let feed = hub.clone().watch(events_after(&subject.range, revision)).await?;
        let era = hub.era();
        if let Some(newest) = found.iter().max_by_key(|found| found.mod_revision) {
            self.chronicle.witness(era, newest, revision);
        }
        let place = Place { history: era.history, revision, empty: found.is_empty() };
        let pairs = subject.state(&self.session, found, revision);
        Ok((feed, Update::State { pairs, position: Some(place.position()) }))
    }

    /// The changes of the revisions that are complete with these events.
    fn join(
        &self,
        subject: &Subject,
        feed: Feed,
        mut joint: Joint,
        part: Vec<PbEvent>,
        more: bool,
    ) -> (Stage, Option<Update>) {
        let events = joint.join(part, more);
        let era = feed.era();
        if let Some(put) = events.iter().rev().find_map(events::put) {
            self.chronicle.witness(era, put, put.mod_revision);
        }
        let revision = events.last().map(events::revision);
        let update = revision.map(|revision| {
            let place = Place { history: era.history, revision, empty: false };
            let changes = subject.changes(&self.session, events);
            Update::Changes { changes, position: Some(place.position()) }
        });
        (Stage::Following(feed, joint), update)
    }
}

/// A watch of what happens behind `revision`. Large responses come in parts: etcd sends a thousand revisions at once.
fn events_after(range: &Range, revision: i64) -> WatchOptions {
    let options = WatchOptions::new().with_key(range.start()).with_range(range.end());
    options.with_start_revision(revision.saturating_add(1)).with_fragment()
}
