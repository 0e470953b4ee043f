//! What subscribers are told.

use crate::key::Key;
use crate::types::{KvPair, Version};
use actix::Message;
use std::sync::Arc;

/// What the subscriber of a key is told. The first event is the state at the time of the subscription: a
/// [`Put`](WatchEvent::Put), or a [`Delete`](WatchEvent::Delete) where the key does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchEvent {
    /// The key has this value now.
    Put(KvPair),
    /// The key does not exist.
    Delete {
        /// The key.
        key: Key,
        /// The version of the deletion on etcd, local and memory, the last version before it on Consul and ZooKeeper; none
        /// where the key did not exist at the time of the subscription.
        version: Option<Version>,
    },
    /// The link is down: what was told last may not be the truth any more.
    Suspended,
    /// The link is back and events come in time again. What was missed was told before this, or follows at once where the
    /// server keeps history.
    Resumed,
    /// The store is closed. This is the last event.
    Closed,
}

/// What the subscriber of a directory is told. The first event is a [`Snapshot`](TreeEvent::Snapshot).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TreeEvent {
    /// All pairs beneath the directory at the time of the subscription, sorted by key. Comes once, and first.
    Snapshot(Vec<KvPair>),
    /// A key has this value now.
    Put(KvPair),
    /// A key does not exist any more.
    Delete {
        /// The key.
        key: Key,
        /// The version of the deletion on etcd, local and memory, the last version before it on Consul and ZooKeeper.
        version: Version,
    },
    /// The link is down: what was told last may not be the truth any more.
    Suspended,
    /// The link is back and events come in time again. What was missed was told before this, or follows at once where the
    /// server keeps history.
    Resumed,
    /// The store is closed. This is the last event.
    Closed,
}

impl Message for WatchEvent {
    type Result = ();
}

impl Message for TreeEvent {
    type Result = ();
}

/// An event on its way to a subscriber of either kind. Cheap to clone, for ten thousand may get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The state at the time of the subscription.
    Opening(Arc<Vec<KvPair>>),
    Changed(Arc<News>),
    Suspended,
    Resumed,
    Closed,
}

/// A change of what subscribers know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    Put {
        pair: KvPair,
        /// Whether the key is new to who was told all before.
        created: bool,
    },
    Delete {
        key: Key,
        version: Version,
    },
}

impl News {
    pub(crate) fn key(&self) -> &Key {
        match self {
            News::Put { pair, .. } => &pair.key,
            News::Delete { key, .. } => key,
        }
    }
}

impl WatchEvent {
    pub(crate) fn from_event(key: &Key, event: Event) -> Self {
        match event {
            Event::Opening(pairs) => match pairs.first() {
                Some(pair) => WatchEvent::Put(pair.clone()),
                None => WatchEvent::Delete { key: key.clone(), version: None },
            },
            Event::Changed(news) => match Arc::unwrap_or_clone(news) {
                News::Put { pair, .. } => WatchEvent::Put(pair),
                News::Delete { key, version } => WatchEvent::Delete { key, version: Some(version) },
            },
            Event::Suspended => WatchEvent::Suspended,
            Event::Resumed => WatchEvent::Resumed,
            Event::Closed => WatchEvent::Closed,
        }
    }
}

impl TreeEvent {
    pub(crate) fn from_event(event: Event) -> Self {
        match event {
            Event::Opening(pairs) => TreeEvent::Snapshot(Arc::unwrap_or_clone(pairs)),
            Event::Changed(news) => match Arc::unwrap_or_clone(news) {
                News::Put { pair, .. } => TreeEvent::Put(pair),
                News::Delete { key, version } => TreeEvent::Delete { key, version },
            },
            Event::Suspended => TreeEvent::Suspended,
            Event::Resumed => TreeEvent::Resumed,
            Event::Closed => TreeEvent::Closed,
        }
    }
}
