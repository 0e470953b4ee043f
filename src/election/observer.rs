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
    /// The link is back, and all that changed meanwhile was told. A server that lost its data counts terms from the beginning:
    /// a leader of the same value and term as before is not told of again, whoever it is.
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
        let (pending, link, stale, told) = (VecDeque::new(), Link::Up, false, None);
        let observer = Observer { key, changes, connection, timeout, pending, link, stale, told };
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

/// What was told of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Up,
    Suspended,
    /// It is back, which is told once it has been looked who leads since.
    Back,
}

struct Observer {
    key: Key,
    /// Changes of the key: times to look who leads.
    changes: WatchStream,
    connection: Addr<Connection>,
    timeout: Duration,
    pending: VecDeque<LeaderEvent>,
    link: Link,
    /// Another may lead than was seen last.
    stale: bool,
    /// Who was said to lead last, if it was said.
    told: Option<Option<Leader>>,
}

impl Observer {
    async fn next(&mut self) -> Option<LeaderEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            match self.stale && self.link != Link::Suspended {
                true => self.look().await?,
                false => {
                    let event = self.changes.next().await?;
                    self.take(event);
                }
            }
        }
    }

    fn take(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Put(_) | WatchEvent::Delete { .. } => self.stale = true,
            WatchEvent::Suspended => {
                if self.link == Link::Up {
                    self.pending.push_back(LeaderEvent::Suspended);
                }
                self.link = Link::Suspended;
            }
            WatchEvent::Resumed => (self.link, self.stale) = (Link::Back, true),
            WatchEvent::Closed => self.pending.push_back(LeaderEvent::Closed),
        }
    }

    /// Looks who leads, and tells if it is news. Further changes don't begin it anew, lest it never end; that the link is lost
    /// doesn't wait for it. None: the changes are over.
    async fn look(&mut self) -> Option<()> {
        self.stale = false;
        let mut leader = pin!(leader_of(self.key.clone(), self.connection.clone(), self.timeout));
        while self.pending.is_empty() {
            tokio::select! {
                biased;
                leader = &mut leader => {
                    self.tell(leader);
                    return Some(());
                }
                event = self.changes.next() => self.take(event?),
            }
        }
        self.stale = true;
        Some(())
    }

    fn tell(&mut self, leader: Option<Leader>) {
        if self.told.as_ref() != Some(&leader) {
            self.told = Some(leader.clone());
            self.pending.push_back(leader.map_or(LeaderEvent::Vacant, LeaderEvent::Elected));
        }
        if self.link == Link::Back && !self.stale {
            self.link = Link::Up;
            self.pending.push_back(LeaderEvent::Resumed);
        }
    }
}

/// Asks who leads, however long it takes.
async fn leader_of(key: Key, connection: Addr<Connection>, timeout: Duration) -> Option<Leader> {
    loop {
        match call(&connection, timeout, HolderOf { key: key.clone() }).await {
            Ok(holder) => return holder.map(|Holder { value, token }| Leader { value, term: token }),
            // The changes say so too.
            Err(Error::Closed) => std::future::pending().await,
            Err(error) if error.is_retryable() => {}
            Err(_) => sleep(REFUSED).await,
        }
    }
}
