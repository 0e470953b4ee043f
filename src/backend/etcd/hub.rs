//! One gRPC stream that carries many watches.
//!
//! A task reads the stream and hands what it says to the watches, each through a bounded queue of its own. The stream lives as
//! long as one of them, and tells all of them when it breaks.

use super::history::Era;
use super::pulse::Pulse;
use super::session::Session;
use super::status::{self, Effect};
use crate::error::{Error, Result};
use etcd_client::proto::{PbEvent, PbWatchResponse};
use etcd_client::{Error as ClientError, WatchOptions, WatchRequestSender, WatchResponseStream, WatchStream};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::timeout;

/// How much of the server's news waits for one watch.
const QUEUE: usize = 16;
/// How long a watch that takes none may hold up the others.
const PATIENCE: Duration = Duration::from_secs(1);

/// A stream that stands. It ends when this is dropped, and with it all that the server does for it.
pub(super) struct Hub {
    session: Rc<Session>,
    table: Rc<Table>,
    requests: WatchRequestSender,
    reader: AbortHandle,
    era: Era,
}

/// One watch of a hub, which ends on the server when this is dropped.
pub(super) struct Feed {
    opened: Opened,
    hub: Rc<Hub>,
}

/// What the server says to one watch.
#[derive(Debug)]
pub(super) enum News {
    /// Something changed.
    Events {
        /// The changes, in order.
        events: Vec<PbEvent>,
        /// Whether the response goes on in the next one, maybe in the middle of a revision.
        more: bool,
    },
    /// The server has ended the watch.
    Cancelled {
        /// It has forgotten the revisions that the watch asks for.
        compacted: bool,
        /// Its words.
        reason: String,
    },
}

/// A new stream, before it carries anything.
pub(super) struct Opening {
    stream: WatchStream,
    /// The server's cluster.
    pub(super) cluster: u64,
    /// The term of its leader.
    pub(super) term: u64,
}

impl Opening {
    /// Opens a stream, and waits for the server's first word on it.
    pub(super) async fn new(session: &Session) -> Result<Self> {
        let mut stream = session.watch(call(session)).await?;
        let answer = stream.message().await.map_err(|failure| session.error(failure, Effect::Read))?;
        let answer = answer.ok_or_else(|| session.senseless(Effect::Read))?.0;
        if answer.canceled {
            accept(status::cancelled(&answer.cancel_reason), session)?;
        } else {
            let ended = stream.cancel(answer.watch_id).await;
            ended.map_err(|failure| session.error(failure, Effect::Read))?;
        }
        let header = answer.header.ok_or_else(|| session.senseless(Effect::Read))?;
        Ok(Opening { stream, cluster: header.cluster_id, term: header.raft_term })
    }
}

/// A call to which a server answers on the stream and that leaves nothing behind there: a watch of a range without keys, which
/// it refuses. Progress requests won't do: they go without an answer while any watch of the stream waits for a revision to come.
fn call(session: &Session) -> WatchOptions {
    let key = session.guard();
    WatchOptions::new().with_key(key.clone()).with_range(key)
}

/// Only where the server wants to know who we are is its refusal of a [`call`] one of all watches.
fn accept(refusal: ClientError, session: &Session) -> Result<()> {
    match session.error(refusal, Effect::Read) {
        error @ Error::Unauthenticated { .. } => Err(error),
        _ => Ok(()),
    }
}

impl Hub {
    /// Lets the stream carry watches. It is taken for dead after a silence of `idle`.
    pub(super) fn new(session: Rc<Session>, opening: Opening, era: Era, idle: Duration) -> Self {
        let (requests, responses) = opening.stream.split();
        let table = Rc::new(Table::default());
        let reader = Reader {
            session: session.clone(),
            table: table.clone(),
            requests: WatchRequestSender(requests.0.clone()),
            responses,
            pulse: Pulse::new(idle),
        };
        let reader = spawn_local(reader.run()).abort_handle();
        Hub { session, table, requests, reader, era }
    }

    /// The part of history that all of the stream's watches are in.
    pub(super) fn era(&self) -> &Era {
        &self.era
    }

    /// Whether the stream carries nothing any more.
    pub(super) fn is_over(&self) -> bool {
        self.table.ended.borrow().is_some()
    }

    /// Begins a watch.
    pub(super) async fn watch(self: Rc<Self>, options: WatchOptions) -> Result<Feed> {
        let room = self.requests.0.reserve().await;
        let Ok(room) = room.map_err(drop) else { return Err(self.end()) };
        if self.is_over() {
            return Err(self.end());
        }
        // The server answers in the order of the requests: nothing may come between these two.
        let answer = self.table.expect();
        room.send(options.into());
        let opened = answer.await.map_err(|_| self.end())?;
        let opened = opened.map_err(|refusal| self.session.error(refusal, Effect::Read))?;
        Ok(Feed { opened, hub: self })
    }

    /// Does something that makes sense only while the stream stands.
    pub(super) async fn meanwhile<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut ended = self.table.ended.subscribe();
        tokio::select! {
            biased;
            // Our own table has the sender.
            _ = async { ended.wait_for(Option::is_some).await.map(drop) } => Err(self.end()),
            done = work => done,
        }
    }

    /// Why a watch ended.
    fn end(&self) -> Error {
        let slow = || Error::unreachable(format!("a watch took nothing for {PATIENCE:?} and was ended"));
        self.table.ended.borrow().clone().unwrap_or_else(slow)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Feed {
    /// The part of history that the watch is in.
    pub(super) fn era(&self) -> &Era {
        &self.hub.era
    }

    /// The server's revision when it began the watch.
    pub(super) fn revision(&self) -> i64 {
        self.opened.revision
    }

    /// What the server says next.
    pub(super) async fn next(&mut self) -> Result<News> {
        self.opened.news.recv().await.ok_or_else(|| self.hub.end())
    }
}

/// A watch that the server has begun.
struct Opened {
    revision: i64,
    news: mpsc::Receiver<News>,
    _ticket: Ticket,
}

/// Ends the watch when it is dropped.
struct Ticket {
    id: i64,
    table: Rc<Table>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.table.leave(self.id);
    }
}

/// What the reader shares with the watches.
#[derive(Default)]
struct Table {
    /// The watches that the server was asked for and hasn't begun, in that order.
    expected: RefCell<VecDeque<Expected>>,
    /// Where the news of each watch goes, by the server's name for it.
    slots: RefCell<HashMap<i64, mpsc::Sender<News>>>,
    /// Watches to end.
    orphans: RefCell<VecDeque<i64>>,
    orphaned: Notify,
    /// Why the stream broke.
    ended: watch::Sender<Option<Error>>,
}

enum Expected {
    /// An answer to a [`call`].
    Sign,
    Watch(oneshot::Sender<Result<Opened, ClientError>>),
}

impl Table {
    /// Expects the server to begin a watch.
    fn expect(&self) -> oneshot::Receiver<Result<Opened, ClientError>> {
        let (answer, answered) = oneshot::channel();
        self.expected.borrow_mut().push_back(Expected::Watch(answer));
        answered
    }

    /// Nobody follows this watch any more.
    fn leave(&self, id: i64) {
        self.slots.borrow_mut().remove(&id);
        self.orphans.borrow_mut().push_back(id);
        self.orphaned.notify_one();
    }

    async fn dispatch(self: &Rc<Self>, response: PbWatchResponse) {
        let id = response.watch_id;
        if response.created {
            return self.created(response);
        }
        // The others are the server's answers to what has left.
        let Some(slot) = self.slots.borrow().get(&id).cloned() else { return };
        let last = response.canceled;
        let delivered = match news(response) {
            Some(news) => deliver(&slot, news).await,
            None => true,
        };
        if last || !delivered {
            self.slots.borrow_mut().remove(&id);
        }
    }

    /// The server has begun a watch, or refused to.
    fn created(self: &Rc<Self>, response: PbWatchResponse) {
        let expected = self.expected.borrow_mut().pop_front();
        match expected {
            // Whoever asked may be gone: the watch then ends with what is sent to nobody.
            Some(Expected::Watch(answer)) => drop(answer.send(self.opened(response))),
            // A server that finds nothing wrong with a range without keys.
            _ if !response.canceled => self.leave(response.watch_id),
            _ => {}
        }
    }

    fn opened(self: &Rc<Self>, response: PbWatchResponse) -> Result<Opened, ClientError> {
        let compacted = response.compact_revision > 0;
        if response.canceled && !compacted {
            return Err(status::cancelled(&response.cancel_reason));
        }
        let id = response.watch_id;
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        let (slot, received) = mpsc::channel(QUEUE);
        // Most servers tell of a compaction later, those behind a proxy maybe at once.
        match news(response) {
            Some(news) => drop(slot.try_send(news)),
            None => drop(self.slots.borrow_mut().insert(id, slot)),
        }
        Ok(Opened { revision, news: received, _ticket: Ticket { id, table: self.clone() } })
    }

    /// The stream is broken: all who wait for it hear of it.
    fn end(&self, error: Error) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(error);
            first
        });
        self.expected.borrow_mut().clear();
        self.slots.borrow_mut().clear();
    }
}

/// What a response means to its watch, if anything.
fn news(response: PbWatchResponse) -> Option<News> {
    if response.canceled {
        return Some(News::Cancelled { compacted: response.compact_revision > 0, reason: response.cancel_reason });
    }
    let anything = !response.events.is_empty() || response.fragment;
    anything.then_some(News::Events { events: response.events, more: response.fragment })
}

/// Whether the watch took its news, within bounds.
async fn deliver(slot: &mpsc::Sender<News>, news: News) -> bool {
    match slot.try_send(news) {
        Ok(()) => true,
        Err(TrySendError::Full(news)) => matches!(timeout(PATIENCE, slot.send(news)).await, Ok(Ok(()))),
        Err(TrySendError::Closed(_)) => false,
    }
}

/// The task that reads the stream.
struct Reader {
    session: Rc<Session>,
    table: Rc<Table>,
    requests: WatchRequestSender,
    responses: WatchResponseStream,
    pulse: Pulse,
}

impl Reader {
    async fn run(mut self) {
        let error = self.read().await;
        self.table.end(error);
    }

    async fn read(&mut self) -> Error {
        loop {
            let orphan = self.table.orphans.borrow().front().copied();
            tokio::select! {
                biased;
                // Before the news, of which there may always be more. It never waits alone for the server to take requests,
                // which may itself be waiting for us to take its news.
                _ = self.requests.cancel(orphan.unwrap_or_default()), if orphan.is_some() => {
                    self.table.orphans.borrow_mut().pop_front();
                }
                response = self.responses.message() => match response {
                    Ok(Some(response)) => {
                        self.pulse.heard();
                        self.table.dispatch(response.0).await;
                    }
                    Ok(None) => return self.session.hung_up(),
                    Err(failure) => return self.session.error(failure, Effect::Read),
                },
                () = self.table.orphaned.notified() => {}
                alive = self.pulse.beat() => {
                    if !alive {
                        return self.session.silent();
                    }
                    self.call();
                }
            }
        }
    }

    /// Asks for a sign of life, unless requests pile up, which is none.
    fn call(&self) {
        if let Ok(room) = self.requests.0.try_reserve() {
            self.table.expected.borrow_mut().push_back(Expected::Sign);
            room.send(call(&self.session).into());
        }
    }
}

impl Drop for Reader {
    /// However it ends, even by a panic: nobody waits for a stream that nobody reads.
    fn drop(&mut self) {
        self.table.end(self.session.hung_up());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    fn nothing() -> News {
        News::Events { events: Vec::new(), more: false }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_takes_nothing_holds_up_the_others_for_a_moment_only() {
        let (slot, mut news) = mpsc::channel(1);
        let begun = Instant::now();
        assert!(deliver(&slot, nothing()).await);
        assert!(!deliver(&slot, nothing()).await);
        assert_eq!(begun.elapsed(), PATIENCE);
        news.recv().await;
        assert!(deliver(&slot, nothing()).await);
        drop(news);
        assert!(!deliver(&slot, nothing()).await);
        assert_eq!(begun.elapsed(), PATIENCE);
    }

    #[test]
    fn the_last_word_of_a_watch_is_told_from_its_events() {
        let of = |response: PbWatchResponse| format!("{:?}", news(response));
        assert_eq!(of(PbWatchResponse::default()), "None");
        let cancelled = PbWatchResponse { canceled: true, compact_revision: 5, ..PbWatchResponse::default() };
        assert!(of(cancelled).contains("compacted: true"));
        let fragment = PbWatchResponse { fragment: true, ..PbWatchResponse::default() };
        assert!(of(fragment).contains("more: true"));
    }

    #[tokio::test]
    async fn the_server_answers_in_the_order_of_the_requests() {
        let table = Rc::new(Table::default());
        let (first, second) = (table.expect(), table.expect());
        let created =
            |watch_id, canceled| PbWatchResponse { created: true, watch_id, canceled, ..PbWatchResponse::default() };
        table.dispatch(created(-1, true)).await;
        table.dispatch(created(0, false)).await;
        assert!(matches!(first.await, Ok(Err(_))));
        let opened = second.await;
        assert!(matches!(opened, Ok(Ok(_))));
        assert_eq!(table.slots.borrow().len(), 1);
        drop(opened);
        assert!(table.slots.borrow().is_empty());
        assert_eq!(*table.orphans.borrow(), [0]);
        drop(table.expect());
        table.dispatch(created(1, false)).await;
        assert_eq!(*table.orphans.borrow(), [0, 1], "nobody waits for it any more");
    }

    #[tokio::test]
    async fn everybody_hears_of_the_end() {
        let table = Rc::new(Table::default());
        let (begun, waiting) = (table.expect(), table.expect());
        table.dispatch(PbWatchResponse { created: true, ..PbWatchResponse::default() }).await;
        let Ok(Ok(mut opened)) = begun.await else { panic!("not begun") };
        table.end(Error::unreachable("first"));
        table.end(Error::unreachable("second"));
        assert!(opened.news.recv().await.is_none() && waiting.await.is_err());
        assert!(table.ended.borrow().as_ref().is_some_and(|error| error.to_string().contains("first")));
    }
}
