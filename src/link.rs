//! [`Link`]: whether there is a session at the moment, as the supervisor says and everybody else on its thread sees.

use crate::backend::Backend;
use crate::backend::listings::Listings;
use crate::backend::transactions::Transactions;
use crate::error::{Error, Result};
use crate::key::{Dir, Key};
use crate::types::{Check, KvPair, ListOptions, Operation, Page, TxnOutcome};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

/// A session that serves calls. Its number tells it from the sessions before and after it.
#[derive(Clone)]
pub struct Session {
    pub(crate) backend: Rc<dyn Backend>,
    /// None where the backend is in this process: no request is saved then.
    together: Option<Rc<Together>>,
    pub(crate) number: u64,
}

/// What callers ask a server together.
struct Together {
    listings: Listings,
    transactions: Transactions,
}

impl Session {
    pub(crate) fn new(backend: Rc<dyn Backend>, number: u64) -> Self {
        let together =
            || Together { listings: Listings::new(backend.clone()), transactions: Transactions::new(backend.clone()) };
        let together = backend.shortcut().is_none().then(|| Rc::new(together()));
        Session { backend, together, number }
    }

    /// As [`Backend::list`].
    pub(crate) async fn list(&self, dir: &Dir, options: &ListOptions) -> Result<Page<KvPair>> {
        match &self.together {
            Some(together) => together.listings.pairs(dir, options).await,
            None => self.backend.list(dir, options).await,
        }
    }

    /// As [`Backend::list_keys`].
    pub(crate) async fn list_keys(&self, dir: &Dir, options: &ListOptions) -> Result<Page<Key>> {
        match &self.together {
            Some(together) => together.listings.keys(dir, options).await,
            None => self.backend.list_keys(dir, options).await,
        }
    }

    /// As [`Backend::txn`].
    pub(crate) async fn txn(&self, checks: &[Check], operations: &[Operation]) -> Result<TxnOutcome> {
        match &self.together {
            Some(together) => together.transactions.run(checks, operations).await,
            None => self.backend.txn(checks, operations).await,
        }
    }
}

/// The state of the link.
#[derive(Clone)]
pub(crate) enum Link {
    /// No session serves calls just now. The error is the last one, if there was any.
    Down(Option<Error>),
    /// Calls are served.
    Up(Session),
    /// The store is closed.
    Closed,
}

/// How one session is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It serves calls.
    Up,
    /// It is in doubt, or lost and not yet replaced.
    Down,
    /// Another session took its place, or the store is closed.
    Over,
}

/// Why a session is in doubt.
pub(crate) enum Doubt {
    /// A call did not get through: ask the driver whether the session can go on.
    Unreachable(Error),
    /// The driver panicked: nothing can be trusted any more.
    Panicked(Error),
}

/// A doubt about the session with this number.
pub(crate) struct Report {
    pub(crate) session: u64,
    pub(crate) doubt: Doubt,
}

/// The link as its users see it.
#[derive(Clone)]
pub(crate) struct LinkView {
    link: watch::Receiver<Link>,
    reports: mpsc::Sender<Report>,
}

/// How many reports may wait for the supervisor. One is enough to make it look, and it takes them faster than calls can fail.
const REPORTS: usize = 1024;

/// The supervisor's end and everybody else's.
pub(crate) fn link() -> (watch::Sender<Link>, LinkView, mpsc::Receiver<Report>) {
    let (sender, link) = watch::channel(Link::Down(None));
    let (reports, inbox) = mpsc::channel(REPORTS);
    (sender, LinkView { link, reports }, inbox)
}

impl LinkView {
    /// The session, once there is one.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::Unreachable`] when the deadline passes; the error of the last attempt to connect where
    /// trying again won't help.
    pub(crate) async fn session(&self, deadline: Instant) -> Result<Session> {
        let mut link = self.link.clone();
        let waited = timeout_at(deadline, link.wait_for(|link| decided(link).is_some())).await;
        match waited {
            Ok(Ok(link)) => decided(&link).unwrap_or(Err(Error::Closed)),
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(self.unreachable()),
        }
    }

    /// The session, or the error that [`session`](Self::session) would fail with at once; none where it would wait.
    pub(crate) fn decided(&self) -> Option<Result<Session>> {
        decided(&self.link.borrow())
    }

    /// Waits until the session with this number is over: replaced by another, or the store closed.
    pub(crate) async fn session_over(&self, number: u64) {
        // An error says that the supervisor is gone, and with it every session.
        let _ = self.link.clone().wait_for(|link| presence(link, number) == Presence::Over).await;
    }

    /// Waits until the session with this number is doing otherwise than `before`, and says how.
    pub(crate) async fn presence_after(&self, before: Presence, number: u64) -> Presence {
        let mut link = self.link.clone();
        match link.wait_for(|link| presence(link, number) != before).await {
            Ok(link) => presence(&link, number),
            Err(_) => Presence::Over,
        }
    }

    /// Waits until the store is closed.
    pub(crate) async fn closed(&self) {
        // An error says that the supervisor is gone, which is as good.
        let _ = self.link.clone().wait_for(|link| matches!(link, Link::Closed)).await;
    }

    /// The number of the session that serves calls just now.
    pub(crate) fn session_number(&self) -> Option<u64> {
        match &*self.link.borrow() {
            Link::Up(session) => Some(session.number),
            Link::Down(_) | Link::Closed => None,
        }
    }

    /// Whether the store is closed.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(*self.link.borrow(), Link::Closed)
    }

    /// Tells the supervisor of a doubt. When many come at once, the first few are enough.
    pub(crate) fn report(&self, session: u64, doubt: Doubt) {
        let _ = self.reports.try_send(Report { session, doubt });
    }

    /// Tells the supervisor that a session's driver panicked, and waits until the session serves no more calls: whoever hears
    /// of the panic behind this doesn't find that session again.
    pub(crate) async fn panicked(&self, session: u64, doubt: Doubt) {
        // An error says that the supervisor is gone, and with it every session.
        let _ = self.reports.send(Report { session, doubt }).await;
        self.presence_after(Presence::Up, session).await;
    }

    /// Where doubts are told.
    pub(crate) fn reports(&self) -> &mpsc::Sender<Report> {
        &self.reports
    }

    /// Why there is no session.
    pub(crate) fn unreachable(&self) -> Error {
        match &*self.link.borrow() {
            Link::Down(Some(Error::Unreachable { reason, source })) => {
                Error::Unreachable { reason: reason.clone(), source: source.clone() }
            }
            Link::Down(Some(error)) => Error::unreachable(error.to_string()),
            _ => Error::unreachable("no connection was made before the deadline"),
        }
    }
}

fn presence(link: &Link, number: u64) -> Presence {
    match link {
        Link::Up(session) if session.number == number => Presence::Up,
        Link::Up(_) | Link::Closed => Presence::Over,
        Link::Down(_) => Presence::Down,
    }
}

/// A time that no process lives to see.
pub(crate) fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(30 * 365 * 24 * 3600)
}

/// What the link means for a call, or none where the call has to wait.
fn decided(link: &Link) -> Option<Result<Session>> {
    match link {
        Link::Up(session) => Some(Ok(session.clone())),
        Link::Closed => Some(Err(Error::Closed)),
        Link::Down(Some(error)) if !error.is_retryable() => Some(Err(error.clone())),
        Link::Down(_) => None,
    }
}
