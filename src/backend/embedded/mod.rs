//! The embedded stores: one set of semantics ([`state`]), kept in memory ([`memory`]) or in a file as well ([`local`]).

#[cfg(feature = "local")]
pub(super) mod local;
mod lock;
#[cfg(feature = "memory")]
pub(super) mod memory;
mod state;
mod watch;

use crate::backend::{Backend, Lease, Locking, Position, Target, Updates};
use crate::error::{Error, Result};
use crate::key::{Dir, Key, Namespace};
use crate::types::{
    BackendKind, Check, Condition, Consistency, Depth, Expected, KvPair, ListOptions, Operation, OperationResult, Page,
    TxnOutcome, Version,
};
use async_trait::async_trait;
use bytes::Bytes;
use state::{Change, Command, Done, Entry, Path, Refused, State, Wanted};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use tokio::time::Instant;
use watch::Followers;

/// What readers and watchers see: what is acknowledged, and on `local` durable.
#[derive(Debug, Default)]
struct Published(RwLock<Shown>);

/// The state, and who is told of its changes.
#[derive(Debug, Default)]
struct Shown {
    state: State,
    followers: Followers,
}

impl Shown {
    fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            if !self.followers.is_empty() && self.state.is_news(&change) {
                self.followers.tell(&change);
            }
            self.state.apply(change);
        }
    }
}

impl Published {
    /// Changes are applied without a point at which they could panic half way, so a poisoned lock guards a whole state.
    fn read(&self) -> RwLockReadGuard<'_, Shown> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shown> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the two embedded stores differ: where commands are carried out.
#[async_trait(?Send)]
trait Engine: 'static {
    fn published(&self) -> &Arc<Published>;
    async fn submit(&self, command: Command) -> Result<Result<Done, Refused>>;
    /// How long a key with this TTL can outlive the process.
    fn outlives_process_by(&self, ttl: Duration) -> Duration;
    /// Waits until the engine can't go on, and says why. A store in memory always can.
    async fn failed(&self) -> Error {
        std::future::pending().await
    }
    async fn close(&self) -> Result<()>;
}

/// A session with an embedded store.
struct Embedded<E> {
    kind: BackendKind,
    namespace: Namespace,
    engine: E,
}

impl<E: Engine> Embedded<E> {
    fn path(&self, key: &Key) -> Path {
        match self.namespace.is_root() {
            true => key.into(),
            false => self.namespace.path(key).into(),
        }
    }

    fn version(&self, revision: u64) -> Version {
        Version::new(self.kind, revision)
    }

    /// Carries out a command on one key.
    async fn submit(&self, key: &str, command: Command) -> Result<Done> {
        self.engine.submit(command).await?.map_err(|refused| match refused {
            Refused::NotFound => Error::key_not_found(key),
            Refused::Exists => Error::key_exists(key),
            Refused::Modified | Refused::Check(_) => Error::key_modified(key),
            Refused::Taken => Error::lock_held(key, "by another"),
            Refused::Lost => Error::lock_lost(key),
        })
    }

    /// As [`submit`](Self::submit), for commands that write at a revision.
    async fn write(&self, key: &Key, command: Command) -> Result<Version> {
        match self.submit(key, command).await? {
            Done::At(revision) | Done::Removed(revision) => Ok(self.version(revision)),
        }
    }

    fn page<T>(&self, dir: &Dir, options: &ListOptions, item: impl Fn(Key, &Entry) -> T) -> Result<Page<T>>
    where
        T: HasKey,
    {
        let (shown, now) = (self.engine.published().read(), Instant::now());
        let state = &shown.state;
        let prefix = self.namespace.prefix(dir);
        let after = options.after.as_ref().map(|after| self.namespace.path(after));
        let beneath = state.beneath(&prefix, after.as_deref(), options.depth, now);
        let take = options.limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
        let items: Vec<T> =
            beneath.filter_map(|(path, entry)| Some(item(self.namespace.key(path)?, entry))).take(take).collect();
        if items.is_empty() && options.after.is_none() {
            self.directory_exists(state, dir, options.depth, now)?;
        }
        Ok(Page::cut(items, options.limit, false, HasKey::key))
    }

    /// What an empty listing means: fine for the root, for a key without children, and where only `depth` hides the rest.
    fn directory_exists(&self, state: &State, dir: &Dir, depth: Depth, now: Instant) -> Result<()> {
        let Some(key) = dir.as_key() else { return Ok(()) };
        let prefix = self.namespace.prefix(dir);
        let hidden =
            || depth == Depth::Children && state.beneath(&prefix, None, Depth::Recursive, now).next().is_some();
        if state.get(&self.path(&key), now).is_some() || hidden() {
            return Ok(());
        }
        Err(Error::key_not_found(key))
    }

    /// A transaction; where there is a guard, at a moment at which its lock is held under its token.
    async fn txn_at(
        &self,
        guard: Option<(&Key, u64)>,
        checks: &[Check],
        operations: &[Operation],
    ) -> Result<TxnOutcome> {
        let checks = checks.iter().map(|check| (self.path(&check.key), Self::wanted(&check.condition))).collect();
        let changes = operations.iter().map(|operation| match operation {
            Operation::Put { key, value } => (self.path(key), Some(value.clone())),
            Operation::Delete { key } => (self.path(key), None),
        });
        let guarded = guard.map(|(key, token)| (self.path(key), token));
        let command = Command::Txn { guard: guarded, checks, operations: changes.collect() };
        let revision = match (self.engine.submit(command).await?, guard) {
            (Err(Refused::Check(index)), _) => return Ok(TxnOutcome::CheckFailed { index }),
            (Err(Refused::Lost), Some((key, _))) => return Err(Error::lock_lost(key)),
            (Err(other), _) => return Err(Error::backend(format!("a transaction was refused as {other:?}"))),
            (Ok(Done::At(revision) | Done::Removed(revision)), _) => revision,
        };
        let results = operations.iter().map(|operation| match operation {
            Operation::Put { .. } => OperationResult::Put(self.version(revision)),
            Operation::Delete { .. } => OperationResult::Deleted,
        });
        Ok(TxnOutcome::Committed(results.collect()))
    }

    fn wanted(condition: &Condition) -> Wanted {
        match condition {
            Condition::Exists => Wanted::Present,
            Condition::Absent => Wanted::Absent,
            Condition::Version(version) => Wanted::Revision(version.index()),
        }
    }
}

/// What a page is sorted by.
trait HasKey {
    fn key(&self) -> &Key;
}

impl HasKey for Key {
    fn key(&self) -> &Key {
        self
    }
}

impl HasKey for KvPair {
    fn key(&self) -> &Key {
        &self.key
    }
}

#[async_trait(?Send)]
impl<E: Engine> Backend for Embedded<E> {
    async fn get(&self, key: &Key, _: Consistency) -> Result<KvPair> {
        let shown = self.engine.published().read();
        let entry = shown.state.get(&self.path(key), Instant::now()).ok_or_else(|| Error::key_not_found(key))?;
        Ok(KvPair { key: key.clone(), value: entry.value.clone(), version: self.version(entry.revision) })
    }

    async fn exists(&self, key: &Key, _: Consistency) -> Result<bool> {
        Ok(self.engine.published().read().state.get(&self.path(key), Instant::now()).is_some())
    }

    async fn put(&self, key: &Key, value: &Bytes) -> Result<Version> {
        self.write(key, Command::Put { path: self.path(key), value: value.clone(), ttl: None }).await
    }

    async fn put_leased(&self, key: &Key, value: &Bytes, ttl: Duration) -> Result<(Version, Lease)> {
        let command = Command::Put { path: self.path(key), value: value.clone(), ttl: Some(ttl) };
        let version = self.write(key, command).await?;
        let lease = Lease {
            key: key.clone(),
            version,
            id: String::new(),
            renew_within: ttl,
            outlives_process_by: self.engine.outlives_process_by(ttl),
        };
        Ok((version, lease))
    }

    async fn renew(&self, lease: &Lease) -> Result<()> {
        let (path, revision) = (self.path(&lease.key), lease.version.index());
        let renewal = Command::Renew { path, revision, ttl: lease.renew_within };
        match self.submit(&lease.key, renewal).await {
            Err(Error::KeyModified { key }) => Err(Error::KeyNotFound { key }),
            other => other.map(drop),
        }
    }

    async fn expire(&self, lease: &Lease) -> Result<()> {
        let (path, revision) = (self.path(&lease.key), lease.version.index());
        match self.submit(&lease.key, Command::Expire { path, revision }).await {
            Err(Error::KeyModified { .. } | Error::KeyNotFound { .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.submit(key, Command::Delete { path: self.path(key) }).await.map(drop)
    }

    async fn list(&self, dir: &Dir, options: &ListOptions) -> Result<Page<KvPair>> {
        self.page(dir, options, |key, entry| KvPair {
            key,
            value: entry.value.clone(),
            version: self.version(entry.revision),
        })
    }

    async fn list_keys(&self, dir: &Dir, options: &ListOptions) -> Result<Page<Key>> {
        self.page(dir, options, |key, _| key)
    }

    async fn delete_tree(&self, dir: &Dir) -> Result<u64> {
        let prefix = self.namespace.prefix(dir);
        match self.submit(dir, Command::DeleteTree { prefix }).await? {
            Done::Removed(0) => {
                let (shown, now) = (self.engine.published().read(), Instant::now());
                self.directory_exists(&shown.state, dir, Depth::Recursive, now).map(|()| 0)
            }
            Done::Removed(removed) | Done::At(removed) => Ok(removed),
        }
    }

    async fn atomic_put(&self, key: &Key, value: &Bytes, expected: &Expected) -> Result<Version> {
        let expected = match expected {
            Expected::Absent => Wanted::Absent,
            Expected::Version(version) => Wanted::Revision(version.index()),
        };
        self.write(key, Command::AtomicPut { path: self.path(key), value: value.clone(), expected }).await
    }

    async fn atomic_delete(&self, key: &Key, version: &Version) -> Result<()> {
        let command = Command::AtomicDelete { path: self.path(key), revision: version.index() };
        self.submit(key, command).await.map(drop)
    }

    async fn txn(&self, checks: &[Check], operations: &[Operation]) -> Result<TxnOutcome> {
        self.txn_at(None, checks, operations).await
    }

    async fn watch(&self, target: &Target, _: Option<&Position>) -> Result<Updates> {
        Ok(watch::updates(self.kind, self.namespace.clone(), self.engine.published().clone(), target))
    }

    fn locks(&self) -> Option<&dyn Locking> {
        Some(self)
    }

    async fn disrupted(&self) -> Error {
        self.engine.failed().await
    }

    async fn recover(&self) -> Result<()> {
        Err(Error::unreachable("the store has to be opened again"))
    }

    async fn close(&self) -> Result<()> {
        self.engine.close().await
    }
}
