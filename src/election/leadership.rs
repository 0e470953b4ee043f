//! [`Leadership`]: what a candidate holds from its first election on.

use crate::actors::connection::Connection;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::lock::{Ending, Hold, guarded, lost, publish};
use crate::types::{Check, Operation, TxnOutcome};
use crate::watch::Subscription;
use actix::{Addr, Message};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::WatchStream;

/// How a candidate stands for election: [`Store::campaign_with`](crate::Store::campaign_with).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CampaignOptions {
    /// How long the server keeps the leader at least when it hears no more of it, as
    /// [`LockOptions::ttl`](crate::LockOptions::ttl). 15 s.
    pub ttl: Duration,
    /// How long to wait for the first election at the most. None, as by default: as long as it takes.
    pub timeout: Option<Duration>,
    /// Stand again after each lost leadership, until it resigns. `false`.
    pub stand_again: bool,
}

impl Default for CampaignOptions {
    fn default() -> Self {
        CampaignOptions { ttl: Duration::from_secs(15), timeout: None, stand_again: false }
    }
}

/// How a candidacy is doing.
#[derive(Clone, Debug)]
pub(crate) enum Candidacy {
    /// It leads. The link may be down, up to the deadline.
    Leads { hold: Arc<Hold>, suspended: bool },
    /// It leads no more; it may stand again.
    Demoted,
    /// It leads no more and will not.
    Over,
}

/// What becomes of a candidacy. It is a message too, for actors that take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeadershipEvent {
    /// The candidate leads, in this term. Comes again with the same term after [`Suspended`](LeadershipEvent::Suspended), and with
    /// a later one where the candidate stood again.
    Elected(u64),
    /// The server could not be told that the leader is there. It still leads, for [`Leadership::remaining`].
    Suspended,
    /// The candidate leads no more: it lost the leadership or resigned, or the store was closed. Another may lead.
    Demoted,
}

impl Message for LeadershipEvent {
    type Result = ();
}

/// A candidate that was elected: the leader, until it [resigns](Leadership::resign), is dropped, or loses the leadership.
///
/// Leadership is a [lock](crate::LockGuard) that is held, with all that holds for it: [`is_leader`](Leadership::is_leader) is `false`
/// before anybody else can lead, whatever happened; writes through it are made only while this very term lasts; the
/// [term](Leadership::term) is the fencing token and grows with each election.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> kvactor::Result<()> {
/// use kvactor::Store;
///
/// let store = Store::connect("memory://campaign").await?;
/// let leadership = store.campaign("primary", "10.0.0.1:80").await?;
/// assert_eq!(store.get("primary").await?.value, "10.0.0.1:80");
/// while leadership.is_leader() {
///     leadership.put("progress", "1").await?;
///     break;
/// }
/// leadership.resign().await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping it resigns"]
pub struct Leadership {
    key: Key,
    candidacy: watch::Receiver<Candidacy>,
    /// What the candidate publishes when it is elected again.
    value: watch::Sender<Bytes>,
    /// Dropping it resigns.
    resignation: oneshot::Sender<Ending>,
    connection: Addr<Connection>,
    timeout: Duration,
    _forwarder: Option<Subscription>,
}

impl Leadership {
    pub(crate) fn new(
        key: Key,
        candidacy: watch::Receiver<Candidacy>,
        value: watch::Sender<Bytes>,
        resignation: oneshot::Sender<Ending>,
        connection: Addr<Connection>,
        timeout: Duration,
    ) -> Self {
        Leadership { key, candidacy, value, resignation, connection, timeout, _forwarder: None }
    }

    /// The events go to an actor as long as this lives.
    pub(crate) fn with_forwarder(mut self, forwarder: Option<Subscription>) -> Self {
        self._forwarder = forwarder;
        self
    }

    /// The election's key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Whether the candidate leads at this very moment, by this machine's own clock; as
    /// [`LockGuard::is_held`](crate::LockGuard::is_held).
    pub fn is_leader(&self) -> bool {
        self.hold().is_some()
    }

    /// For how long the candidate leads even if the server is not heard of any more; zero when it doesn't lead.
    pub fn remaining(&self) -> Duration {
        self.hold().map_or(Duration::ZERO, |hold| hold.remaining())
    }

    /// The term in which the candidate leads at this moment; none when it doesn't lead. Terms of later elections of the same key
    /// are greater, whoever was elected.
    pub fn term(&self) -> Option<u64> {
        self.hold().map(|hold| hold.place.token)
    }

    /// Waits until the candidate doesn't lead. Needs no word of the store's own thread. Cancel safe.
    pub async fn demoted(&self) {
        if let Some(hold) = self.hold() {
            lost(&hold).await;
        }
    }

    /// What becomes of the candidacy: how it is doing now, and each change. Changes that come faster than they are taken are merged,
    /// but between two terms there always is a [`Demoted`](LeadershipEvent::Demoted). Ends when the candidate will not lead again.
    pub fn events(&self) -> LeadershipEvents {
        LeadershipEvents { states: WatchStream::new(self.candidacy.clone()), told: None, pending: None, over: false }
    }

    /// Writes `value` to `key` if this very term still lasts; as [`LockGuard::put`](crate::LockGuard::put).
    ///
    /// # Errors
    /// [`Error::LockLost`] where it doesn't, and [those of all calls](crate::Store#all-calls).
    pub async fn put<K>(&self, key: K, value: impl Into<Bytes>) -> Result<()>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.txn(Vec::new(), vec![Operation::put(key, value)?]).await.map(drop)
    }

    /// Deletes `key`, if it is there, and if this very term still lasts; as [`LockGuard::delete`](crate::LockGuard::delete).
    ///
    /// # Errors
    /// As [`put`](Leadership::put).
    pub async fn delete<K>(&self, key: K) -> Result<()>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.txn(Vec::new(), vec![Operation::delete(key)?]).await.map(drop)
    }

    /// A transaction, if this very term still lasts; as [`LockGuard::txn`](crate::LockGuard::txn).
    ///
    /// # Errors
    /// As [`LockGuard::txn`](crate::LockGuard::txn).
    pub async fn txn(&self, checks: Vec<Check>, operations: Vec<Operation>) -> Result<TxnOutcome> {
        guarded(&self.connection, self.timeout, &self.require()?, checks, operations).await
    }

    /// Changes what the leader publishes, without giving up the term. A candidate that is elected again publishes it too.
    ///
    /// # Errors
    /// [`Error::LockLost`] where it doesn't lead, [`Error::ValueTooLarge`], and [those of all calls](crate::Store#all-calls).
    pub async fn publish(&self, value: impl Into<Bytes>) -> Result<()> {
        let value = value.into();
        publish(&self.connection, self.timeout, &self.require()?, value.clone()).await?;
        self.value.send_replace(value);
        Ok(())
    }

    /// Resigns, and returns when the server knows. A candidate that would stand again doesn't.
    ///
    /// Not cancelled by dropping its future: the candidate resigns in any case.
    ///
    /// # Errors
    /// [`Error::LockLost`] where it didn't lead; [`Error::Unreachable`] where the server doesn't answer in time: resigning goes on
    /// in the background.
    pub async fn resign(self) -> Result<()> {
        let (done, wait) = oneshot::channel();
        // As with a lock, the deadline decides and not what the candidate has heard of it.
        if !self.is_leader() || self.resignation.send(done).is_err() {
            return Err(Error::lock_lost(&self.key));
        }
        match timeout(self.timeout, wait).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) => Err(Error::lock_lost(&self.key)),
            Err(_) => Err(Error::unreachable("the leader resigns in the background, as soon as the server is there")),
        }
    }

    /// The acquisition by which it leads at this moment.
    fn hold(&self) -> Option<Arc<Hold>> {
        match &*self.candidacy.borrow() {
            Candidacy::Leads { hold, .. } if hold.is_held() => Some(hold.clone()),
            Candidacy::Leads { .. } | Candidacy::Demoted | Candidacy::Over => None,
        }
    }

    fn require(&self) -> Result<Arc<Hold>> {
        self.hold().ok_or_else(|| Error::lock_lost(&self.key))
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Leadership");
        debug.field("key", &self.key).field("term", &self.term()).field("remaining", &self.remaining());
        debug.finish_non_exhaustive()
    }
}

/// The events of a candidacy, from [`Leadership::events`].
pub struct LeadershipEvents {
    states: WatchStream<Candidacy>,
    /// The term that the last event, if there was any, was about; none after [`Demoted`](LeadershipEvent::Demoted).
    told: Option<Option<u64>>,
    /// What follows the last event at once.
    pending: Option<LeadershipEvent>,
    over: bool,
}

impl LeadershipEvents {
    /// The next event; none after the last. Cancel safe.
    pub async fn next(&mut self) -> Option<LeadershipEvent> {
        StreamExt::next(self).await
    }
}

impl Stream for LeadershipEvents {
    type Item = LeadershipEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<LeadershipEvent>> {
        if let Some(event) = self.pending.take() {
            return Poll::Ready(Some(event));
        }
        while !self.over {
            let state = ready!(self.states.poll_next_unpin(context)).unwrap_or(Candidacy::Over);
            self.over = matches!(state, Candidacy::Over);
            let (term, event) = match state {
                Candidacy::Leads { hold, suspended } => {
                    let term = hold.place.token;
                    let event = if suspended { LeadershipEvent::Suspended } else { LeadershipEvent::Elected(term) };
                    (Some(term), event)
                }
                Candidacy::Demoted | Candidacy::Over => (None, LeadershipEvent::Demoted),
            };
            match (self.told.replace(term), term) {
                (Some(None), None) => {}
                (Some(Some(before)), Some(now)) if before != now => {
                    self.pending = Some(event);
                    return Poll::Ready(Some(LeadershipEvent::Demoted));
                }
                _ => return Poll::Ready(Some(event)),
            }
        }
        Poll::Ready(None)
    }
}

impl fmt::Debug for LeadershipEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeadershipEvents").field("over", &self.over).finish_non_exhaustive()
    }
}
