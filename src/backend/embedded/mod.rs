//! The embedded stores: one set of semantics ([`state`]), kept in memory ([`memory`]) or in a file as well ([`local`]).

#[cfg(feature = "local")]
pub(super) mod local;
mod lock;
#[cfg(feature = "memory")]
pub(super) mod memory;
mod state;
mod watch;

use crate::backend::shortcut::{Begun, Shortcut};
use crate::backend::{Backend, Lease, Locking, Position, Target, Updates};
use crate::error::{Error, Result};
use crate::key::{Dir, Key, Namespace};
use crate::types::{
    BackendKind, Check, Condition, Consistency, Depth, Expected, KvPair, ListOptions, Operation, OperationResult, Page,
    TxnOutcome, Version, Written,
};
use async_trait::async_trait;
use bytes::Bytes;
use state::{Change, Command, Done, Entry, Path, Refused, State, Wanted};
use std::borrow::Cow;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
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

/// What comes of a command.
type Answer = Result<Result<Done, Refused>>;

/// A command that was taken.
enum Submitted {
    Done(Answer),
    /// The answer comes; without a word where nobody knows what became of the command.
    #[cfg_attr(not(feature = "local"), expect(dead_code, reason = "memory answers at once"))]
    Waits(oneshot::Receiver<Answer>),
}

impl Submitted {
    async fn answer(self) -> Answer {
        match self {
            Submitted::Done(answer) => answer,
            Submitted::Waits(answer) => wait(answer).await,
        }
    }
}

async fn wait(answer: oneshot::Receiver<Answer>) -> Answer {
    answer.await.unwrap_or_else(|_| Err(Error::indeterminate("the thread that writes the file ended")))
}

/// How the two embedded stores differ: where commands are carried out.
#[async_trait(?Send)]
trait Engine: Send + Sync + 'static {
    fn published(&self) -> &Arc<Published>;
    /// Takes a command. The permit, where there is one, is given back with the answer.
    fn submit(&self, command: Command, permit: Option<OwnedSemaphorePermit>) -> Submitted;
    /// All that was taken is answered now: that nobody knows what becomes of it, where that isn't known yet.
    fn end_calls(&self) {}
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

    /// As [`path`](Self::path), for a look.
    fn looked_up<'a>(&self, key: &'a Key) -> Cow<'a, str> {
        match self.namespace.is_root() {
            true => Cow::Borrowed(key),
            false => Cow::Owned(self.namespace.path(key)),
        }
    }

    fn version(&self, revision: u64) -> Version {
        Version::new(self.kind, revision)
    }

    /// Carries out a command.
    async fn run(&self, command: Command) -> Answer {
        self.engine.submit(command, None).answer().await
    }

    /// Carries out a command on one key.
    async fn submit(&self, key: &str, command: Command) -> Result<Done> {
        of_key(key, self.run(command).await)
    }

    /// As [`submit`](Self::submit), for commands that write at a revision.
    async fn write(&self, key: &Key, command: Command) -> Result<Version> {
        Ok(self.version(index(self.submit(key, command).await?)))
    }

    /// Begins a command on one key for somebody on any thread, who gets the revision of the write as `reply` says.
    fn begin<T>(
        &self,
        key: &Key,
        command: Command,
        permit: OwnedSemaphorePermit,
        reply: impl FnOnce(Version) -> T + Send + 'static,
    ) -> Begun<T> {
        let kind = self.kind;
        let reply = move |done| reply(Version::new(kind, index(done)));
        match self.engine.submit(command, Some(permit)) {
            Submitted::Done(answer) => Begun::Done(of_key(key, answer).map(reply)),
            Submitted::Waits(answer) => {
                let key = key.clone();
                Begun::Waits(Box::pin(async move { of_key(&key, wait(answer).await).map(reply) }))
            }
        }
    }

    fn put_command(&self, key: &Key, value: &Bytes, ttl: Option<Duration>) -> Command {
        Command::Put { path: self.path(key), value: value.clone(), ttl }
    }

    fn atomic_put_command(&self, key: &Key, value: &Bytes, expected: &Expected) -> Command {
        let expected = match expected {
            Expected::Absent => Wanted::Absent,
            Expected::Version(version) => Wanted::Revision(version.index()),
        };
        Command::AtomicPut { path: self.path(key), value: value.clone(), expected }
    }

    /// The pair at `key`.
    fn pair(&self, key: &Key) -> Result<KvPair> {
        let shown = self.engine.published().read();
        let entry = shown.state.present(&self.looked_up(key)).ok_or_else(|| Error::key_not_found(key))?;
        Ok(KvPair { key: key.clone(), value: entry.value.clone(), version: self.version(entry.revision) })
    }

    fn is_there(&self, key: &Key) -> bool {
        self.engine.published().read().state.present(&self.looked_up(key)).is_some()
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
        let items: Vec<T> = beneath
            .filter_map(|(path, entry)| Some(item(self.namespace.shared_key(path)?, entry)))
            .take(take)
            .collect();
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
        let revision = match (self.run(command).await?, guard) {
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

/// The revision of a write.
fn index(done: Done) -> u64 {
    match done {
        Done::At(revision) | Done::Removed(revision) => revision,
    }
}

/// What a command on one key came to.
fn of_key(key: &str, answer: Answer) -> Result<Done> {
    answer?.map_err(|refused| match refused {
        Refused::NotFound => Error::key_not_found(key),
        Refused::Exists => Error::key_exists(key),
        Refused::Modified | Refused::Check(_) => Error::key_modified(key),
        Refused::Taken => Error::lock_held(key, "by another"),
        Refused::Lost => Error::lock_lost(key),
    })
}

impl<E: Engine> Shortcut for Embedded<E> {
    fn get(&self, key: &Key) -> Result<KvPair> {
        self.pair(key)
    }

    fn exists(&self, key: &Key) -> Result<bool> {
        Ok(self.is_there(key))
    }

    fn put(&self, key: &Key, value: &Bytes, permit: OwnedSemaphorePermit) -> Begun<Written> {
        let command = self.put_command(key, value, None);
        self.begin(key, command, permit, |version| Written { version, outlives_process_by: None })
    }

    fn delete(&self, key: &Key, permit: OwnedSemaphorePermit) -> Begun<()> {
        self.begin(key, Command::Delete { path: self.path(key) }, permit, drop)
    }

    fn atomic_put(&self, key: &Key, value: &Bytes, expected: &Expected, permit: OwnedSemaphorePermit) -> Begun<KvPair> {
        let command = self.atomic_put_command(key, value, expected);
        let (written, value) = (key.clone(), value.clone());
        self.begin(key, command, permit, move |version| KvPair { key: written, value, version })
    }

    fn atomic_delete(&self, key: &Key, version: &Version, permit: OwnedSemaphorePermit) -> Begun<()> {
        let command = Command::AtomicDelete { path: self.path(key), revision: version.index() };
        self.begin(key, command, permit, drop)
    }

    fn end_calls(&self) {
        self.engine.end_calls();
    }
}

/// The session is shared with those who take the short way.
#[async_trait(?Send)]
impl<E: Engine> Backend for Arc<Embedded<E>> {
    async fn get(&self, key: &Key, _: Consistency) -> Result<KvPair> {
        self.pair(key)
    }

    async fn exists(&self, key: &Key, _: Consistency) -> Result<bool> {
        Ok(self.is_there(key))
    }

    async fn put(&self, key: &Key, value: &Bytes) -> Result<Version> {
        self.write(key, self.put_command(key, value, None)).await
    }

    async fn put_leased(&self, key: &Key, value: &Bytes, ttl: Duration) -> Result<(Version, Lease)> {
        let version = self.write(key, self.put_command(key, value, Some(ttl))).await?;
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
        self.write(key, self.atomic_put_command(key, value, expected)).await
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
        Some(&**self)
    }

    fn shortcut(&self) -> Option<Arc<dyn Shortcut>> {
        Some(self.clone())
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
