//! [`WatchStream`] and [`TreeStream`]: what subscribers hold.

use super::event::{Event, TreeEvent, WatchEvent};
use super::queue::Queue;
use crate::key::Key;
use crate::types::KvPair;
use futures_util::{Stream, StreamExt};
use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// How a watcher hears of subscribers who are gone.
#[derive(Debug, Default)]
pub(crate) struct Departures {
    /// How many of them the watcher still has on its list.
    pub(crate) count: AtomicUsize,
    pub(crate) notify: Notify,
}

/// The subscriber's end of a queue. Its drop ends the subscription.
pub(crate) struct Events {
    queue: Arc<Queue>,
    left: Arc<Departures>,
}

impl Events {
    pub(crate) fn new(queue: Arc<Queue>, left: Arc<Departures>) -> Self {
        Events { queue, left }
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.queue.poll(context)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // First: the watcher counts down when it finds the queue abandoned.
        self.left.count.fetch_add(1, Ordering::AcqRel);
        self.queue.abandon();
        self.left.notify.notify_one();
    }
}

/// The events of one key, from [`Store::watch`](crate::Store::watch): a `Stream` which ends after
/// [`Closed`](WatchEvent::Closed). Dropping it ends the subscription.
pub struct WatchStream {
    key: Key,
    events: Events,
}

impl WatchStream {
    pub(crate) fn new(key: Key, events: Events) -> Self {
        WatchStream { key, events }
    }

    /// The next event; none after [`Closed`](WatchEvent::Closed). Cancel safe: an event that wasn't returned is not lost.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        StreamExt::next(self).await
    }
}

impl Stream for WatchStream {
    type Item = WatchEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<WatchEvent>> {
        let event = ready!(self.events.poll_next_unpin(context));
        Poll::Ready(event.map(|event| WatchEvent::from_event(&self.key, event)))
    }
}

impl fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchStream").field("key", &self.key).finish_non_exhaustive()
    }
}

/// The events of one directory, from [`Store::watch_tree`](crate::Store::watch_tree): a `Stream` which ends after
/// [`Closed`](TreeEvent::Closed). Dropping it ends the subscription.
pub struct TreeStream {
    events: Events,
}

impl TreeStream {
    pub(crate) fn new(events: Events) -> Self {
        TreeStream { events }
    }

    /// The next event; none after [`Closed`](TreeEvent::Closed). Cancel safe: an event that wasn't returned is not lost.
    pub async fn next(&mut self) -> Option<TreeEvent> {
        StreamExt::next(self).await
    }

    /// The whole directory, sorted by key: at first and after each change, as libkv's `WatchTree` gives it. Changes that wait
    /// already make one list together.
    pub fn lists(self) -> Lists {
        Lists { events: self, pairs: BTreeMap::new() }
    }
}

impl Stream for TreeStream {
    type Item = TreeEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TreeEvent>> {
        let event = ready!(self.events.poll_next_unpin(context));
        Poll::Ready(event.map(TreeEvent::from_event))
    }
}

impl fmt::Debug for TreeStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeStream").finish_non_exhaustive()
    }
}

/// A directory's pairs after each change, from [`TreeStream::lists`]. The stream ends when the store is closed. While the link
/// is down it is silent; what changed meanwhile makes a list when the link is back.
#[derive(Debug)]
pub struct Lists {
    events: TreeStream,
    pairs: BTreeMap<Key, KvPair>,
}

/// How many events make one list at the most.
const GATHERED: usize = 1024;

impl Lists {
    /// The next list; none when the store is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<Vec<KvPair>> {
        StreamExt::next(self).await
    }

    /// Whether the event changed the list.
    fn apply(&mut self, event: TreeEvent) -> bool {
        match event {
            TreeEvent::Snapshot(pairs) => {
                self.pairs = pairs.into_iter().map(|pair| (pair.key.clone(), pair)).collect();
                true
            }
            TreeEvent::Put(pair) => {
                self.pairs.insert(pair.key.clone(), pair);
                true
            }
            TreeEvent::Delete { key, .. } => self.pairs.remove(&key).is_some(),
            TreeEvent::Suspended | TreeEvent::Resumed | TreeEvent::Closed => false,
        }
    }
}

impl Stream for Lists {
    type Item = Vec<KvPair>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Vec<KvPair>>> {
        let mut changed = false;
        for _ in 0..GATHERED {
            match self.events.poll_next_unpin(context) {
                Poll::Ready(Some(event)) => changed |= self.apply(event),
                _ if changed => return Poll::Ready(Some(self.pairs.values().cloned().collect())),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
        // Events may come as fast as they are taken; other tasks want their turn.
        context.waker().wake_by_ref();
        match changed {
            true => Poll::Ready(Some(self.pairs.values().cloned().collect())),
            false => Poll::Pending,
        }
    }
}

/// An actor's subscription, the reply to [`messages::Watch`](crate::messages::Watch) and
/// [`messages::WatchTree`](crate::messages::WatchTree). Dropping it ends the subscription; an event that is on its way to the
/// actor already may still arrive.
#[derive(Debug)]
#[must_use = "dropping it ends the subscription"]
pub struct Subscription {
    forwarder: AbortHandle,
}

impl Subscription {
    pub(crate) fn new(forwarder: AbortHandle) -> Self {
        Subscription { forwarder }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}
