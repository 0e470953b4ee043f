//! [`Told`]: what somebody who was told a watch's events knows, and what it was told on the way.

use kvactor::{Error, KvPair, Store, TreeEvent, TreeStream};
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest wait for an event that is due.
pub const DUE: Duration = Duration::from_secs(30);

/// Folds the events of a directory.
#[derive(Default)]
pub struct Told {
    pub pairs: BTreeMap<String, KvPair>,
    /// The changes since the snapshot: `key=value` and `-key`.
    pub changes: Vec<String>,
    pub suspended: usize,
    pub resumed: usize,
    /// Whether versions may start again, because the server lost its data.
    pub wiped: bool,
}

impl Told {
    /// Takes an event, which must be news.
    pub fn take(&mut self, event: TreeEvent) {
        match event {
            TreeEvent::Snapshot(pairs) => {
                assert!(self.pairs.is_empty() && self.changes.is_empty(), "a second snapshot");
                self.pairs = pairs.into_iter().map(|pair| (pair.key.to_string(), pair)).collect();
            }
            TreeEvent::Put(pair) => {
                self.changes.push(format!("{}={}", pair.key, String::from_utf8_lossy(&pair.value)));
                let now = pair.version.index();
                if let Some(before) = self.pairs.insert(pair.key.to_string(), pair) {
                    let grew = before.version.index() < now;
                    assert!(grew || self.wiped, "`{}` went from {} to {now}", before.key, before.version.index());
                }
            }
            TreeEvent::Delete { key, version } => {
                self.changes.push(format!("-{key}"));
                let before = self.pairs.remove(key.as_str()).unwrap_or_else(|| panic!("`{key}` was not known"));
                assert!(before.version.index() <= version.index() || self.wiped);
            }
            TreeEvent::Suspended => {
                self.suspended += 1;
                assert_eq!(self.suspended, self.resumed + 1, "suspended twice");
            }
            TreeEvent::Resumed => {
                self.resumed += 1;
                assert_eq!(self.suspended, self.resumed, "resumed and was not suspended");
            }
            other => panic!("unexpected: {other:?}"),
        }
    }

    /// Takes the next event.
    pub async fn next(&mut self, events: &mut TreeStream) {
        let event = tokio::time::timeout(DUE, events.next()).await;
        let event = event.unwrap_or_else(|_| panic!("no event in {DUE:?}; told were {:?}", self.changes));
        self.take(event.expect("the store is open"));
    }

    /// Takes events until this many `Suspended` were among them.
    pub async fn until_suspended(&mut self, events: &mut TreeStream, times: usize) {
        while self.suspended < times {
            self.next(events).await;
        }
    }

    /// Takes events until the link is back and what is known is what the store, which nobody changes any more, holds.
    pub async fn converge(&mut self, events: &mut TreeStream, store: &Store, dir: &str) {
        let there = match store.list(dir).await {
            Err(Error::KeyNotFound { .. }) => Vec::new(),
            listed => listed.expect("a list"),
        };
        while self.suspended != self.resumed || !self.pairs.values().eq(&there) {
            self.next(events).await;
        }
    }
}
