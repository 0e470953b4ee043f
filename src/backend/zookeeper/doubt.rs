//! Leased writes whose answer was lost.
//!
//! On the server a key with a TTL is an ephemeral znode: it lasts as long as the session, not as long as its TTL, and it is
//! this process that ends it. A write that failed with [`Error::Indeterminate`](crate::Error::Indeterminate), or that nobody
//! waits for any more, may have made a znode that nobody would ever end. So each leased write opens a doubt; only its answer
//! closes it. Otherwise a task looks once the TTL is over, and deletes the znode if this session made it in that write:
//! if its zxid is beyond that of all leased writes known to have succeeded by then.

use super::session::Session;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use zookeeper_client::{Client, Error as Failure, SessionState, Stat};

/// The open doubts of a session.
#[derive(Debug)]
pub(super) struct Doubts {
    book: Arc<Mutex<Book>>,
    /// Dropped with the session, which ends the tasks that watch it.
    alive: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Book {
    /// By path: the latest leased write that is open, and the zxid that its znode is beyond.
    open: HashMap<String, (u64, i64)>,
    writes: u64,
    /// The latest zxid of a leased write.
    latest: i64,
}

/// A leased write on its way.
pub(super) struct Doubt<'s> {
    session: &'s Session,
    path: &'s str,
    ttl: Duration,
    id: u64,
    /// An earlier write to the same key is in doubt too, and left to this one.
    inherited: bool,
}

impl Doubts {
    pub(super) fn new() -> Self {
        Doubts { book: Arc::default(), alive: watch::Sender::new(()) }
    }

    pub(super) fn open<'s>(&self, session: &'s Session, path: &'s str, ttl: Duration) -> Doubt<'s> {
        let mut book = lock(&self.book);
        book.writes += 1;
        let (id, before) = (book.writes, book.open.get(path).copied());
        let floor = before.map_or(book.latest, |(_, floor)| floor);
        book.open.insert(path.to_owned(), (id, floor));
        Doubt { session, path, ttl, id, inherited: before.is_some() }
    }
}

impl Book {
    /// The zxid that the znode of this write is beyond, if the write is the latest of its key.
    fn floor(&self, path: &str, id: u64) -> Option<i64> {
        self.open.get(path).filter(|(latest, _)| *latest == id).map(|(_, floor)| *floor)
    }

    fn close(&mut self, path: &str, id: u64) {
        if self.floor(path, id).is_some() {
            self.open.remove(path);
        }
    }
}

impl Doubt<'_> {
    /// The write succeeded: what is in doubt about this key from now on came after it.
    pub(super) fn succeeded(self, stat: &Stat) {
        let mut book = lock(&self.session.doubts.book);
        book.latest = book.latest.max(stat.czxid);
        book.close(self.path, self.id);
        if let Some((_, floor)) = book.open.get_mut(self.path) {
            *floor = stat.czxid.max(*floor);
        }
    }

    /// The write certainly had no effect.
    pub(super) fn failed(self) {
        if !self.inherited {
            lock(&self.session.doubts.book).close(self.path, self.id);
        }
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        let doubts = &self.session.doubts;
        let open = lock(&doubts.book).floor(self.path, self.id).is_some();
        // Without a runtime the process is about to end, and the session with it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !open {
            return;
        }
        let (book, mut session_end) = (doubts.book.clone(), doubts.alive.subscribe());
        let (client, path, id, ttl) = (self.session.client.clone(), self.path.to_owned(), self.id, self.ttl);
        runtime.spawn(async move {
            tokio::select! {
                _ = session_end.changed() => {}
                () = clear_up(client, book, &path, id, ttl) => {}
            }
        });
    }
}

/// Ends what the write in doubt may have made, when its time is over and the server can be asked.
async fn clear_up(client: Client, book: Arc<Mutex<Book>>, path: &str, id: u64, ttl: Duration) {
    tokio::time::sleep(ttl).await;
    while is_connected(&client).await {
        // Asked under the lock: a later write to this key, if there is one, is sent behind the question.
        let (floor, look) = {
            let book = lock(&book);
            let Some(floor) = book.floor(path, id) else { return };
            (floor, client.check_stat(path))
        };
        let deleted = match look.await {
            Ok(Some(stat)) if stat.czxid > floor && stat.ephemeral_owner == client.session_id().0 => {
                client.delete(path, Some(stat.version)).await
            }
            Ok(_) => Ok(()),
            Err(failure) => Err(failure),
        };
        if !matches!(deleted, Err(Failure::ConnectionLoss | Failure::Custom(_))) {
            return lock(&book).close(path, id);
        }
    }
}

/// Waits for the link; `false` where the session is over.
async fn is_connected(client: &Client) -> bool {
    let mut watcher = client.state_watcher();
    let mut state = watcher.peek_state();
    while !super::is_final(state) {
        if state == SessionState::SyncConnected {
            return true;
        }
        state = watcher.changed().await;
    }
    false
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}
