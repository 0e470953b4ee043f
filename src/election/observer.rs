//! [`LeaderStream`]: who leads, for those who don't stand for election.

use crate::actors::connection::{Connection, call};
use crate::backend::Holder;
use crate::error::Error;
use crate::key::Key;
use crate::messages::HolderOf;
use crate::watch::{WatchEvent, WatchStream};
use actix::{Addr, Message};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use std::collections::VecDeque;
use std::fmt;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::sleep;

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// What the leader published.
    pub value: Bytes,
    /// The term: greater than those of all leaders of this key before.
    pub term: u64,
}

/// What becomes of a key's leaders. It is a message too, for actors that take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaderEvent {
    /// This one leads, or has published another value.
    Elected(Leader),
    /// Nobody leads.
    Vacant,
    /// The link is down: who was said to lead may do so no more.
    Suspended,
    /// The link is back, and all that changed meanwhile was told.
    Resumed,
    /// The store was closed. Nothing follows.
    Closed,
}

impl Message for LeaderEvent {
    type Result = ();
}

/// Who leads, from [`Store::observe_leader`](crate::Store::observe_leader): first who does now, then each change. Changes that come
/// faster than they are read are merged: the last one is always told. Ends after [`Closed`](LeaderEvent::Closed).
pub struct LeaderStream {
    events: BoxStream<'static, LeaderEvent>,
}

impl LeaderStream {
    /// The leaders of a key, as whoever writes to the key makes one look.
    pub(crate) fn new(key: Key, changes: WatchStream, connection: Addr<Connection>, timeout: Duration) -> Self {
        let (pending, told) = (VecDeque::new(), None);
        let (is_stale, is_suspended) = (false, false);
        let observer = Observer { key, changes, connection, timeout, pending, told, is_stale, is_suspended };
        let events = stream::unfold(observer, async |mut observer| Some((observer.next().await?, observer)));
        LeaderStream { events: events.boxed() }
    }

    /// The next event; none after [`Closed`](LeaderEvent::Closed). Cancel safe.
    pub async fn next(&mut self) -> Option<LeaderEvent> {
        StreamExt::next(self).await
    }
}

impl Stream for LeaderStream {
    type Item = LeaderEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<LeaderEvent>> {
        self.events.poll_next_unpin(context)
    }
}

impl fmt::Debug for LeaderStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaderStream").finish_non_exhaustive()
    }
}

/// How long to wait before asking again where the server refused to say who leads.
const REFUSED: Duration = Duration::from_secs(1);

struct Observer {
    key: Key,
    /// Changes of the key: times to look who leads.
    changes: WatchStream,
    connection: Addr<Connection>,
    timeout: Duration,
    pending: VecDeque<LeaderEvent>,
    /// Who was said to lead last, if it was said.
    told: Option<Option<Leader>>,
    /// Something changed that was not looked at.
    is_stale: bool,
    /// The link was said to be down, and not to be back.
    is_suspended: bool,
}

impl Observer {
    async fn next(&mut self) -> Option<LeaderEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if self.is_stale {
                self.look().await;
                continue;
            }
            let change = self.changes.next().await?;
            self.heed(&change);
        }
    }

    fn heed(&mut self, change: &WatchEvent) {
        match change {
            WatchEvent::Put(_) | WatchEvent::Delete { .. } | WatchEvent::Resumed => self.is_stale = true,
            WatchEvent::Suspended if self.is_suspended => {}
            WatchEvent::Suspended => {
                self.is_suspended = true;
                self.pending.push_back(LeaderEvent::Suspended);
            }
            WatchEvent::Closed => self.pending.push_back(LeaderEvent::Closed),
        }
    }

    /// Looks who leads, however long it takes, and tells if it is news. If the link goes down meanwhile that is told at once;
    /// when it is back it is looked again.
    async fn look(&mut self) {
        self.is_stale = false;
        let mut look = pin!(leader(self.connection.clone(), self.timeout, self.key.clone()));
        let leader = loop {
            tokio::select! {
                leader = &mut look => break leader,
                Some(change) = self.changes.next() => {
                    self.heed(&change);
                    if matches!(change, WatchEvent::Suspended | WatchEvent::Closed) {
                        return;
                    }
                }
            }
        };
        // The changes say so too when the store is closed.
        let Some(leader) = leader else { return };
        self.tell(leader);
        if std::mem::take(&mut self.is_suspended) {
            self.pending.push_back(LeaderEvent::Resumed);
        }
    }

    fn tell(&mut self, leader: Option<Leader>) {
        if self.told.as_ref() != Some(&leader) {
            self.told = Some(leader.clone());
            self.pending.push_back(leader.map_or(LeaderEvent::Vacant, LeaderEvent::Elected));
        }
    }
}

/// Who leads, asked until there is an answer; none where the store is closed.
async fn leader(connection: Addr<Connection>, timeout: Duration, key: Key) -> Option<Option<Leader>> {
    loop {
        match call(&connection, timeout, HolderOf { key: key.clone() }).await {
            Ok(holder) => return Some(holder.map(|Holder { value, token }| Leader { value, term: token })),
            Err(Error::Closed) => return None,
            Err(error) if error.is_retryable() => {}
            Err(_) => sleep(REFUSED).await,
        }
    }
}
