//! [`Watcher`]: follows one key or directory for all who subscribed to it, over every session of the store.
//!
//! It is one task per target, and a state machine: listing -> following -> suspended -> resyncing -> following again; closed
//! at any time. The driver only tells what changes; what of it is news, who hears of it and what happens when the link is lost
//! are decided here.

use super::connection::panic_text;
use super::view::View;
use crate::backend::{Position, Target, Update, Updates};
use crate::backoff::Pauses;
use crate::error::{Error, Result};
use crate::link::{Doubt, LinkView, Presence, Session, far_future};
use crate::watch::{Departures, Event, Events, News, Queue};
use futures_util::{FutureExt, StreamExt};
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

/// A wish to subscribe.
pub(super) type Join = oneshot::Sender<Result<Events>>;

/// How a watcher goes about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// How long the server may take to begin.
    pub(super) patience: Duration,
    /// The longest wait between two attempts.
    pub(super) backoff_max: Duration,
    /// A watch that stood for so long starts again without a wait.
    pub(super) backoff_reset: Duration,
    /// How many events wait for a subscriber in order.
    pub(super) buffer: u32,
}

/// Where the watcher is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The state was never read. Nobody was told anything.
    Listing,
    /// Subscribers are told of changes as they come.
    Following,
    /// The link is down, and the subscribers know.
    Suspended,
    /// The link is back; what was missed is on its way.
    Resyncing,
}

/// Why the watcher leaves what it is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The store is closed.
    Closed,
    /// Nobody is subscribed any more.
    Deserted,
}

/// What became of a stream of updates.
enum Lost {
    /// The watch has to be begun anew.
    Stream(Error),
    /// The store is on another session, or on its way to one.
    Session,
}

/// Follows one target.
pub(super) struct Watcher {
    target: Target,
    link: LinkView,
    manner: Manner,
    inbox: mpsc::Receiver<Join>,
    left: Arc<Departures>,
    subscribers: Vec<Arc<Queue>>,
    /// Those who wait for the state to be known.
    waiting: Vec<Join>,
    phase: Phase,
    view: View,
    position: Option<Position>,
    /// Why the watch was refused just now, and isn't tried again yet.
    refusal: Option<Error>,
    /// When the watch put the session in doubt, if it has told nothing since.
    doubted: Option<Instant>,
}

impl Watcher {
    pub(super) fn new(target: Target, link: LinkView, manner: Manner, inbox: mpsc::Receiver<Join>) -> Self {
        Watcher {
            target,
            link,
            manner,
            inbox,
            left: Arc::default(),
            subscribers: Vec::new(),
            waiting: Vec::new(),
            phase: Phase::Listing,
            view: View::default(),
            position: None,
            refusal: None,
            doubted: None,
        }
    }

    /// Follows the target until nobody is subscribed any more or the store is closed.
    pub(super) async fn run(mut self) {
        let Err(stop) = self.live().await;
        debug!(target = ?self.target, ?stop, "a watch ends");
        if stop == Stop::Closed {
            self.waiting.drain(..).for_each(|join| drop(join.send(Err(Error::Closed))));
        }
    }

    /// Watch after watch.
    async fn live(&mut self) -> Result<Infallible, Stop> {
        let mut pauses = self.pauses();
        loop {
            self.stay()?;
            let begun = Instant::now();
            let error = match self.watch_once().await? {
                Lost::Stream(error) => error,
                Lost::Session => continue,
            };
            let pause = match error.is_retryable() {
                true if begun.elapsed() >= self.manner.backoff_reset => {
                    pauses = self.pauses();
                    Duration::ZERO
                }
                true => pauses.next(),
                // Whoever waits is told. Those who were told of a state before keep their hope: a permission may come back.
                false => {
                    self.waiting.drain(..).for_each(|join| drop(join.send(Err(error.clone()))));
                    self.stay()?;
                    self.refuse(error).await?;
                    continue;
                }
            };
            self.attend(sleep(pause)).await?;
        }
    }

    /// Pauses after a refusal. Another session may say otherwise, so that ends the pause.
    async fn refuse(&mut self, error: Error) -> Result<(), Stop> {
        self.refusal = Some(error);
        let (link, pause) = (self.link.clone(), self.manner.backoff_max);
        let number = link.session_number().unwrap_or_default();
        // Whether it was over or the time was.
        let _ = self.attend(timeout(pause, link.session_over(number))).await?;
        self.refusal = None;
        Ok(())
    }

    fn pauses(&self) -> Pauses {
        Pauses::new(Duration::from_millis(10), Duration::from_millis(500).min(self.manner.backoff_max))
    }

    /// One watch at the server, from its beginning to its loss.
    async fn watch_once(&mut self) -> Result<Lost, Stop> {
        let link = self.link.clone();
        let session = match self.attend(link.session(far_future())).await? {
            Ok(session) => session,
            Err(Error::Closed) => return Err(Stop::Closed),
            Err(error) => return Ok(Lost::Stream(error)),
        };
        if self.phase == Phase::Suspended {
            self.phase = Phase::Resyncing;
        }
        let lost = match self.begin(&session).await? {
            Ok(updates) => self.follow(&session, updates).await?,
            Err(lost) => lost,
        };
        self.suspend();
        if let Lost::Stream(error) = &lost {
            debug!(target = ?self.target, %error, "a watch is lost");
        }
        Ok(lost)
    }

    /// Begins to watch at the server.
    async fn begin(&mut self, session: &Session) -> Result<Result<Updates, Lost>, Stop> {
        let (target, position, patience) = (self.target.clone(), self.position, self.manner.patience);
        let backend = session.backend.clone();
        let watch = async { backend.watch(&target, position.as_ref()).await };
        let watch = timeout(patience, AssertUnwindSafe(watch).catch_unwind());
        let (link, number) = (self.link.clone(), session.number);
        let turn = async {
            tokio::select! {
                biased;
                begun = watch => Some(begun),
                () = link.session_over(number) => None,
            }
        };
        Ok(match self.attend(turn).await? {
            Some(Ok(Ok(Ok(updates)))) => Ok(updates),
            Some(Ok(Ok(Err(error)))) => Err(Lost::Stream(self.doubt(session, error))),
            Some(Ok(Err(panic))) => Err(Lost::Stream(self.panicked(session, &*panic))),
            Some(Err(_)) => Err(Lost::Stream(self.doubt(session, Error::Timeout { after: patience }))),
            None => Err(Lost::Session),
        })
    }

    /// Passes on what the server tells, until it is over.
    async fn follow(&mut self, session: &Session, mut updates: Updates) -> Result<Lost, Stop> {
        let link = self.link.clone();
        let (mut synced, mut presence) = (false, Presence::Up);
        loop {
            let turn = async {
                tokio::select! {
                    biased;
                    presence = link.presence_after(presence, session.number) => Err(presence),
                    update = AssertUnwindSafe(updates.next()).catch_unwind() => Ok(update),
                }
            };
            let update = match self.attend(turn).await? {
                Err(Presence::Over) => return Ok(Lost::Session),
                Err(changed) => {
                    presence = changed;
                    self.presence_changed(changed, synced);
                    continue;
                }
                Ok(Ok(update)) => update,
                Ok(Err(panic)) => return Ok(Lost::Stream(self.panicked(session, &*panic))),
            };
            let ended = || Err(Error::unreachable("the server ended the watch"));
            match update.unwrap_or_else(ended) {
                Ok(update) => self.apply(update, presence),
                Err(error) => return Ok(Lost::Stream(self.doubt(session, error))),
            }
            synced = true;
        }
    }

    /// The link went or came while the watch at the server stands. What the server told last is all that it has to tell, if it
    /// told anything yet.
    fn presence_changed(&mut self, presence: Presence, synced: bool) {
        match presence {
            Presence::Up if synced => self.resume(),
            Presence::Up if self.phase == Phase::Suspended => self.phase = Phase::Resyncing,
            Presence::Up => {}
            Presence::Down | Presence::Over => self.suspend(),
        }
    }

    /// Goes on with `work`, serving subscribers meanwhile.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stop> {
        let (left, link) = (self.left.clone(), self.link.clone());
        let (mut work, mut closed) = (pin!(work), pin!(link.closed()));
        loop {
            tokio::select! {
                biased;
                () = &mut closed => return Err(Stop::Closed),
                join = self.inbox.recv() => match join {
                    Some(join) => self.join(join),
                    None => return Err(Stop::Closed),
                },
                () = left.notify.notified() => {
                    self.strike_off();
                    self.stay()?;
                }
                () = given_up(&mut self.waiting), if self.subscribers.is_empty() && !self.waiting.is_empty() => self.stay()?,
                done = &mut work => return Ok(done),
            }
        }
    }

    /// Takes those who are gone off the list, once they are half of it: going through it for each would cost too much.
    fn strike_off(&mut self) {
        if self.left.count.load(Ordering::Acquire) * 2 >= self.subscribers.len() {
            self.keep(|queue| !queue.is_abandoned());
        }
    }

    /// Keeps the subscribers who are still there.
    fn keep(&mut self, is_there: impl Fn(&Queue) -> bool) {
        let before = self.subscribers.len();
        self.subscribers.retain(|queue| is_there(queue));
        self.left.count.fetch_sub(before - self.subscribers.len(), Ordering::AcqRel);
    }

    /// Whether anybody is there to be told.
    fn stay(&self) -> Result<(), Stop> {
        match self.subscribers.is_empty() && self.waiting.iter().all(Join::is_closed) && self.inbox.is_empty() {
            true => Err(Stop::Deserted),
            false => Ok(()),
        }
    }

    /// Takes a subscriber in: at once where the state is known, otherwise when it is.
    fn join(&mut self, join: Join) {
        if let Some(refusal) = &self.refusal {
            let _ = join.send(Err(refusal.clone()));
            return;
        }
        if self.phase != Phase::Following {
            self.waiting.retain(|join| !join.is_closed());
            self.waiting.push(join);
            return;
        }
        let queue = Arc::new(Queue::new(self.manner.buffer));
        queue.push(&[Event::Opening(self.view.opening())]);
        self.subscribers.push(queue.clone());
        // One who doesn't wait any more leaves again by dropping this.
        let _ = join.send(Ok(Events::new(queue, self.left.clone())));
    }

    fn apply(&mut self, update: Update, presence: Presence) {
        let (news, position) = match update {
            Update::State { pairs, position } => (self.view.compare(pairs), position),
            Update::Changes { changes, position } => (self.view.change(changes), position),
        };
        (self.position, self.doubted) = (position, None);
        // Nobody was told of a state yet, so nobody is told of the way there.
        if self.phase != Phase::Listing {
            self.tell(news);
        }
        if presence == Presence::Up && self.phase != Phase::Following {
            self.resume();
        }
    }

    fn tell(&mut self, news: Vec<News>) {
        let events: Vec<Event> = news.into_iter().map(|news| Event::Changed(Arc::new(news))).collect();
        self.tell_events(&events);
    }

    fn tell_events(&mut self, events: &[Event]) {
        if !events.is_empty() {
            self.keep(|queue| queue.push(events));
        }
    }

    fn suspend(&mut self) {
        match self.phase {
            Phase::Following => {
                self.phase = Phase::Suspended;
                self.tell_events(&[Event::Suspended]);
            }
            Phase::Resyncing => self.phase = Phase::Suspended,
            Phase::Listing | Phase::Suspended => {}
        }
    }

    /// The state is known and changes come in time.
    fn resume(&mut self) {
        if self.phase != Phase::Listing {
            self.tell_events(&[Event::Resumed]);
        }
        self.phase = Phase::Following;
        std::mem::take(&mut self.waiting).into_iter().for_each(|join| self.join(join));
    }

    /// Tells the supervisor of a failure that puts the session in doubt. A watch that fails again and again though the
    /// supervisor finds nothing wrong tells so once in a while only: each time all others are suspended for a moment.
    fn doubt(&mut self, session: &Session, error: Error) -> Error {
        let told = self.doubted.is_some_and(|at| at.elapsed() < self.manner.backoff_max);
        if error.is_retryable() && !told {
            self.doubted = Some(Instant::now());
            self.link.report(session.number, Doubt::Unreachable(error.clone()));
        }
        error
    }

    fn panicked(&self, session: &Session, panic: &(dyn std::any::Any + Send)) -> Error {
        let text = panic_text(panic);
        warn!(target = ?self.target, panic = text, "the driver panicked over a watch; its session is replaced");
        let error = Error::unreachable(format!("the driver panicked: {text}"));
        self.link.report(session.number, Doubt::Panicked(error.clone()));
        error
    }
}

/// Waits until none of those who wait does so any more.
async fn given_up(waiting: &mut Vec<Join>) {
    while let Some(join) = waiting.last_mut() {
        join.closed().await;
        waiting.pop();
    }
}

impl Drop for Watcher {
    /// However the watcher ends, even by a panic: nobody waits for events that nobody sends.
    fn drop(&mut self) {
        self.tell_events(&[Event::Closed]);
    }
}
