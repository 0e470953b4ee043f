//! A backend of one's own: a map in this process, complete, and small enough to read in one go.
//!
//! ```sh
//! cargo run --example custom_backend
//! ```
//!
//! `tests/custom_backend.rs` runs the conformance suite on it, as the author of a real one would.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use kvactor::{
    Backend, BackendKind, Capabilities, Check, Condition, Connector, Consistency, Depth, Dir, Error, Expected, Key,
    KvPair, Lease, ListOptions, Operation, OperationResult, Options, Page, Position, Result, Store, Target, TxnOutcome,
    Update, Updates, Version,
};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::sleep_until;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let store = Store::with_backend(MapConnector::default(), Options::default()).await?;
    store.put("greeting", "hello").await?;
    let pair = store.get("greeting").await?;
    println!("{} = {:?}, on a backend of kind {}", pair.key, pair.value, store.capabilities().backend);
    store.close().await
}

/// Opens sessions with one map. A real connector has the addresses of servers here; it crosses threads, its sessions don't.
#[derive(Clone, Default)]
pub struct MapConnector {
    map: Arc<Mutex<Map>>,
}

#[async_trait(?Send)]
impl Connector for MapConnector {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(BackendKind::Custom);
        capabilities.locks = false;
        capabilities.every_revision = false;
        capabilities
    }

    fn endpoints(&self) -> Vec<String> {
        vec!["the map in this process".into()]
    }

    /// A real connector connects here, and proves that the server answers.
    async fn connect(&self, _: usize) -> Result<Rc<dyn Backend>> {
        Ok(Rc::new(MapSession { map: self.map.clone() }))
    }
}

/// The keys, and the number of the last write.
#[derive(Default)]
struct Map {
    entries: BTreeMap<Key, Entry>,
    writes: u64,
    /// Told of every change.
    changed: watch::Sender<()>,
}

struct Entry {
    value: Bytes,
    version: Version,
    expires: Option<Instant>,
}

impl Map {
    /// The entries whose time isn't over.
    fn live(&mut self) -> &mut BTreeMap<Key, Entry> {
        let (now, before) = (Instant::now(), self.entries.len());
        self.entries.retain(|_, entry| entry.expires.is_none_or(|at| now < at));
        if self.entries.len() < before {
            self.changed.send_replace(());
        }
        &mut self.entries
    }

    fn write(&mut self, key: &Key, value: &Bytes, expires: Option<Instant>) -> Version {
        self.writes += 1;
        let version = Version::new(BackendKind::Custom, self.writes);
        self.entries.insert(key.clone(), Entry { value: value.clone(), version, expires });
        self.changed.send_replace(());
        version
    }

    fn remove(&mut self, key: &Key) -> Option<Entry> {
        self.changed.send_replace(());
        self.live().remove(key)
    }

    fn demand(&mut self, key: &Key, condition: &Condition) -> Result<()> {
        match (self.live().get(key), condition) {
            (None, Condition::Absent) | (Some(_), Condition::Exists) => Ok(()),
            (Some(entry), Condition::Version(version)) if entry.version == *version => Ok(()),
            (Some(_), Condition::Absent) => Err(Error::key_exists(key)),
            (Some(_), Condition::Version(_)) => Err(Error::key_modified(key)),
            (None, Condition::Exists | Condition::Version(_)) => Err(Error::key_not_found(key)),
        }
    }

    /// The keys strictly beneath `dir`; an error where nothing is there and nobody promised that there is.
    fn beneath(&mut self, dir: &Dir, options: &ListOptions) -> Result<Vec<Key>> {
        let all: Vec<Key> = self.live().keys().filter(|key| dir.relative(key).is_some()).cloned().collect();
        let named = dir.as_key().is_none_or(|key| self.entries.contains_key(&key));
        if all.is_empty() && !named && options.after.is_none() {
            return Err(Error::key_not_found(dir));
        }
        let wanted = |key: &Key| {
            let child = dir.relative(key).is_some_and(|rest| !rest.contains('/'));
            let behind = options.after.as_ref().is_none_or(|after| key > after);
            behind && (child || options.depth == Depth::Recursive)
        };
        Ok(all.into_iter().filter(wanted).collect())
    }

    fn pair(&self, key: Key) -> Option<KvPair> {
        let entry = self.entries.get(&key)?;
        Some(KvPair { value: entry.value.clone(), version: entry.version, key })
    }
}

fn lock(map: &Mutex<Map>) -> MutexGuard<'_, Map> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One session. A real one holds a connection.
struct MapSession {
    map: Arc<Mutex<Map>>,
}

impl MapSession {
    fn map(&self) -> MutexGuard<'_, Map> {
        lock(&self.map)
    }
}

/// Follows a key or directory.
struct Follower {
    map: Arc<Mutex<Map>>,
    target: Target,
    changed: watch::Receiver<()>,
}

impl Follower {
    /// The target's pairs, once something may have changed.
    async fn next_state(&mut self) -> Vec<KvPair> {
        let expiry = lock(&self.map).entries.values().filter_map(|entry| entry.expires).min();
        tokio::select! {
            // An error says that the map is gone, which it can't be.
            _ = self.changed.changed() => {}
            () = sleep_until(expiry.unwrap_or_else(Instant::now).into()), if expiry.is_some() => {}
        }
        self.changed.mark_unchanged();
        let mut map = lock(&self.map);
        let wanted = |key: &&Key| match &self.target {
            Target::Key(wanted) | Target::Lock(wanted) => *key == wanted,
            Target::Tree(dir) => dir.relative(key).is_some(),
        };
        let keys: Vec<Key> = map.live().keys().filter(wanted).cloned().collect();
        keys.into_iter().filter_map(|key| map.pair(key)).collect()
    }
}

#[async_trait(?Send)]
impl Backend for MapSession {
    async fn get(&self, key: &Key, _: Consistency) -> Result<KvPair> {
        let mut map = self.map();
        map.live();
        map.pair(key.clone()).ok_or_else(|| Error::key_not_found(key))
    }

    async fn exists(&self, key: &Key, _: Consistency) -> Result<bool> {
        Ok(self.map().live().contains_key(key))
    }

    async fn put(&self, key: &Key, value: &Bytes) -> Result<Version> {
        Ok(self.map().write(key, value, None))
    }

    async fn put_leased(&self, key: &Key, value: &Bytes, ttl: Duration) -> Result<(Version, Lease)> {
        let version = self.map().write(key, value, Some(Instant::now() + ttl));
        let (key, id) = (key.clone(), String::new());
        Ok((version, Lease { key, version, id, renew_within: ttl, outlives_process_by: Duration::ZERO }))
    }

    async fn renew(&self, lease: &Lease) -> Result<()> {
        match self.map().live().get_mut(&lease.key) {
            Some(entry) if entry.version == lease.version => {
                entry.expires = Some(Instant::now() + lease.renew_within);
                Ok(())
            }
            _ => Err(Error::key_not_found(&lease.key)),
        }
    }

    async fn expire(&self, lease: &Lease) -> Result<()> {
        match self.atomic_delete(&lease.key, &lease.version).await {
            Err(Error::KeyNotFound { .. } | Error::KeyModified { .. }) => Ok(()),
            other => other,
        }
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.map().remove(key).map(drop).ok_or_else(|| Error::key_not_found(key))
    }

    async fn list(&self, dir: &Dir, options: &ListOptions) -> Result<Page<KvPair>> {
        let mut map = self.map();
        let keys = map.beneath(dir, options)?;
        let pairs = keys.into_iter().filter_map(|key| map.pair(key)).collect();
        Ok(Page::cut(pairs, options.limit, false, |pair| &pair.key))
    }

    async fn list_keys(&self, dir: &Dir, options: &ListOptions) -> Result<Page<Key>> {
        Ok(Page::cut(self.map().beneath(dir, options)?, options.limit, false, |key| key))
    }

    async fn delete_tree(&self, dir: &Dir) -> Result<u64> {
        let mut map = self.map();
        let keys = map.beneath(dir, &ListOptions::default())?;
        keys.iter().for_each(|key| drop(map.remove(key)));
        Ok(keys.len() as u64)
    }

    async fn atomic_put(&self, key: &Key, value: &Bytes, expected: &Expected) -> Result<Version> {
        let condition = match expected {
            Expected::Absent => Condition::Absent,
            Expected::Version(version) => Condition::Version(*version),
        };
        let mut map = self.map();
        map.demand(key, &condition)?;
        Ok(map.write(key, value, None))
    }

    async fn atomic_delete(&self, key: &Key, version: &Version) -> Result<()> {
        let mut map = self.map();
        map.demand(key, &Condition::Version(*version))?;
        map.remove(key);
        Ok(())
    }

    async fn txn(&self, checks: &[Check], operations: &[Operation]) -> Result<TxnOutcome> {
        let mut map = self.map();
        if let Some(index) = checks.iter().position(|check| map.demand(&check.key, &check.condition).is_err()) {
            return Ok(TxnOutcome::CheckFailed { index });
        }
        let results = operations.iter().map(|operation| match operation {
            Operation::Put { key, value } => OperationResult::Put(map.write(key, value, None)),
            Operation::Delete { key } => {
                map.remove(key);
                OperationResult::Deleted
            }
        });
        Ok(TxnOutcome::Committed(results.collect()))
    }

    /// A real driver has its server tell what changes. It may as well tell all that there is, as here, whenever something
    /// changed: the store compares that with what it told before.
    async fn watch(&self, target: &Target, _: Option<&Position>) -> Result<Updates> {
        let mut changed = self.map().changed.subscribe();
        changed.mark_changed();
        let follower = Follower { map: self.map.clone(), target: target.clone(), changed };
        Ok(stream::unfold(follower, async |mut follower| {
            let pairs = follower.next_state().await;
            Some((Ok(Update::State { pairs, position: None }), follower))
        })
        .boxed_local())
    }

    /// A real backend waits here until its server answers again, or says that the session is lost.
    async fn recover(&self) -> Result<()> {
        Ok(())
    }
}
