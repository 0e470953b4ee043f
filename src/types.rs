//! The plain types that calls take and return.

use crate::error::{Error, Result};
use crate::key::Key;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Which backend a store, a version or an error comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BackendKind {
    /// Consul.
    Consul,
    /// etcd, version 3 of its API.
    Etcd,
    /// ZooKeeper.
    ZooKeeper,
    /// The durable embedded store.
    Local,
    /// The embedded store in memory.
    Memory,
    /// A backend that isn't part of this crate.
    Custom,
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackendKind::Consul => "consul",
            BackendKind::Etcd => "etcd",
            BackendKind::ZooKeeper => "zookeeper",
            BackendKind::Local => "local",
            BackendKind::Memory => "memory",
            BackendKind::Custom => "custom",
        })
    }
}

/// The version of a key: changes with every write of the key, and comes back in no later incarnation of it.
///
/// Versions are compared for equality only; they can be stored and sent with serde. They belong to
/// one key (keys that one transaction wrote may have equal versions) and to the backend that made them: another one refuses
/// them with [`Error::Unsupported`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    backend: BackendKind,
    index: u64,
    /// Which incarnation of the key this is, on backends whose counter starts again when a key is made anew (ZooKeeper).
    #[serde(default, skip_serializing_if = "is_zero")]
    created: u64,
    /// The counter that such a backend compares.
    #[serde(default, skip_serializing_if = "is_zero")]
    counter: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Version {
    /// For drivers: a version that the backend's own index alone identifies.
    pub fn new(backend: BackendKind, index: u64) -> Self {
        Version { backend, index, created: 0, counter: 0 }
    }

    /// For drivers: a version of a backend that compares `counter`, which starts again in each incarnation `created` of a key.
    pub fn with_counter(backend: BackendKind, index: u64, created: u64, counter: u64) -> Self {
        Version { backend, index, created, counter }
    }

    /// A number that grows with every change of the key on its backend (libkv's `LastIndex`): Consul's ModifyIndex, etcd's
    /// modification revision, ZooKeeper's mzxid, the revision of an embedded store.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The backend that made this version.
    pub fn backend(&self) -> BackendKind {
        self.backend
    }

    /// For drivers: the incarnation of the key, where the backend counts anew in each.
    pub fn created(&self) -> u64 {
        self.created
    }

    /// For drivers: the counter within the incarnation.
    pub fn counter(&self) -> u64 {
        self.counter
    }
}

/// A key, its value, and the version of the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvPair {
    /// The key, in its normal form and without the store's namespace.
    pub key: Key,
    /// The value. Empty is a value; an absent key has none.
    pub value: Bytes,
    /// The version, for [`Store::atomic_put`](crate::Store::atomic_put) and [`Store::atomic_delete`](crate::Store::atomic_delete).
    pub version: Version,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// The read sees every write that was acknowledged before it began. ZooKeeper: `sync` before the read, which its makers
    /// call linearizable but for the moment of a leader change.
    #[default]
    Linearizable,
    /// Any replica answers, as cheaply as the backend can; the answer may be arbitrarily old. The embedded stores have one
    /// replica and are always fresh.
    Stale,
}

/// Options of [`Store::put_with`](crate::Store::put_with).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// The key goes away this long after the write. None: it stays until it is deleted.
    pub ttl: Option<Duration>,
    /// The TTL starts again and again while this store is open, until the key is written or deleted through it. Needs a
    /// `ttl`, which then says how soon the key goes when the process dies.
    pub keep_alive: bool,
}

impl PutOptions {
    /// A key that goes away `ttl` after the write.
    pub fn ttl(ttl: Duration) -> Self {
        PutOptions { ttl: Some(ttl), keep_alive: false }
    }

    /// A key that stays while this store is open and goes away about `ttl` after the process died.
    pub fn keep_alive(ttl: Duration) -> Self {
        PutOptions { ttl: Some(ttl), keep_alive: true }
    }
}

/// What [`Store::put_with`](crate::Store::put_with) did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The version of this very write.
    pub version: Version,
    /// Where the write has a TTL: the longest time that the key can outlive this process, which is the server's own bound.
    /// While the process lives, the key is gone no later than one second after its TTL.
    pub outlives_process_by: Option<Duration>,
}

/// How deep a listing goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Depth {
    /// All keys beneath the directory.
    #[default]
    Recursive,
    /// Only the keys directly in the directory. Keys in directories beneath it, and those directories, are left out.
    Children,
}

/// Options of [`Store::list_with`](crate::Store::list_with) and [`Store::list_keys`](crate::Store::list_keys).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListOptions {
    /// How deep to go.
    pub depth: Depth,
    /// At most so many entries; none for all of them.
    pub limit: Option<usize>,
    /// Only entries behind this key: [`Page::next`] of the page before.
    pub after: Option<Key>,
    /// How fresh the listing must be.
    pub consistency: Consistency,
}

/// A part of a listing, in the order of the keys' bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The entries.
    pub items: Vec<T>,
    /// Where the listing goes on: give it as [`ListOptions::after`]. None where nothing is left.
    ///
    /// Each page is consistent in itself on etcd, Consul and the embedded stores. Keys written between two pages show if
    /// they are behind this one.
    pub next: Option<Key>,
}

impl<T> Page<T> {
    /// For drivers: sorted entries, cut down to `limit`. `more` tells that the backend has further ones in any case.
    pub fn cut(mut items: Vec<T>, limit: Option<usize>, more: bool, key: impl Fn(&T) -> &Key) -> Self {
        let limit = limit.unwrap_or(usize::MAX);
        let more = more || items.len() > limit;
        items.truncate(limit);
        let next = if more { items.last().map(|last| key(last).clone()) } else { None };
        Page { items, next }
    }
}

/// What [`Store::atomic_put`](crate::Store::atomic_put) expects of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The key does not exist; otherwise [`Error::KeyExists`].
    Absent,
    /// The key has this version; otherwise [`Error::KeyModified`], or [`Error::KeyNotFound`] where it is gone.
    Version(Version),
}

impl From<Version> for Expected {
    fn from(version: Version) -> Self {
        Expected::Version(version)
    }
}

impl From<&KvPair> for Expected {
    fn from(pair: &KvPair) -> Self {
        Expected::Version(pair.version)
    }
}

/// What a transaction demands of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key exists.
    Exists,
    /// The key does not exist.
    Absent,
    /// The key has this version.
    Version(Version),
}

/// One condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The key.
    pub key: Key,
    /// What must hold for it.
    pub condition: Condition,
}

impl Check {
    /// A check that `key` meets `condition`.
    ///
    /// # Errors
    /// [`Error::InvalidKey`].
    pub fn new<K>(key: K, condition: Condition) -> Result<Self>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        Ok(Check { key: key.try_into()?, condition })
    }
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes the value; the key becomes permanent.
    Put {
        /// The key to write.
        key: Key,
        /// Its new value.
        value: Bytes,
    },
    /// Deletes the key if it is there. Add a [`Check`] where it must be.
    Delete {
        /// The key to delete.
        key: Key,
    },
}

impl Operation {
    /// An operation that writes `value` to `key`.
    ///
    /// # Errors
    /// [`Error::InvalidKey`].
    pub fn put<K>(key: K, value: impl Into<Bytes>) -> Result<Self>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        Ok(Operation::Put { key: key.try_into()?, value: value.into() })
    }

    /// An operation that deletes `key` if it is there.
    ///
    /// # Errors
    /// [`Error::InvalidKey`].
    pub fn delete<K>(key: K) -> Result<Self>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        Ok(Operation::Delete { key: key.try_into()? })
    }

    /// The key that the operation changes.
    pub fn key(&self) -> &Key {
        match self {
            Operation::Put { key, .. } | Operation::Delete { key } => key,
        }
    }
}

/// The largest number of checks and operations in one transaction, together.
pub const MAX_TXN_OPERATIONS: usize = 64;

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a transaction whose check failed has changed nothing"]
pub enum TxnOutcome {
    /// Every check held and every operation was applied, at one moment. The results are in the operations' order.
    Committed(Vec<OperationResult>),
    /// A check did not hold, and nothing was changed.
    CheckFailed {
        /// Position of the first failed check.
        index: usize,
    },
}

/// What one operation of a committed transaction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationResult {
    /// The key was written, in this version.
    Put(Version),
    /// The key is gone, whether or not it was there.
    Deleted,
}

/// What a backend can do, and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The backend.
    pub backend: BackendKind,
    /// Largest value that the backend itself takes, in bytes: the upper bound of the option `max_value_size`.
    pub max_value_size: usize,
    /// Shortest TTL of a key.
    pub min_ttl: Duration,
    /// Longest TTL of a key.
    pub max_ttl: Duration,
    /// Whether the backend has locks, and with them elections.
    pub locks: bool,
    /// Shortest TTL of a lock. ZooKeeper's servers have bounds of their own within these, about 2.7 s and 26.7 s by default.
    pub min_lock_ttl: Duration,
    /// Longest TTL of a lock.
    pub max_lock_ttl: Duration,
    /// Whether a lock that another program holds shows as a key. On etcd it doesn't: `get` and `watch` know holders that are
    /// stores, and `observe_leader` all.
    pub holders_are_keys: bool,
    /// Whether `delete_tree` removes all keys at one moment. ZooKeeper removes them in batches.
    pub atomic_delete_tree: bool,
    /// Whether a key with a TTL may have keys beneath it. ZooKeeper's may not.
    pub ttl_on_directories: bool,
    /// Whether a version can never match a later incarnation of its key. On ZooKeeper there is a window between the check
    /// of the incarnation and the write, about a round trip wide.
    pub exact_versions: bool,
    /// Whether watches tell of every revision while history lasts. Consul and ZooKeeper merge changes of one key that come
    /// faster than their notifications; the last one always arrives.
    pub every_revision: bool,
}

impl Capabilities {
    /// The capabilities of a backend without restrictions; a driver lowers what it can't keep.
    pub fn new(backend: BackendKind) -> Self {
        Capabilities {
            backend,
            max_value_size: 64 * 1024 * 1024,
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(10 * 365 * 24 * 3600),
            locks: true,
            min_lock_ttl: Duration::from_secs(1),
            max_lock_ttl: Duration::from_secs(24 * 3600),
            holders_are_keys: true,
            atomic_delete_tree: true,
            ttl_on_directories: true,
            exact_versions: true,
            every_revision: true,
        }
    }
}

/// Whether the store's link is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkState {
    /// The first connection is not made yet.
    Connecting,
    /// Calls are served.
    Up,
    /// The link is down and being restored; calls wait for it up to their deadlines.
    Suspended,
    /// The store is closed, for good.
    Closed,
}

/// How a store is doing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// Whether the link is up.
    pub link: LinkState,
    /// Since when the link is in this state, by the machine's clock.
    pub since: std::time::SystemTime,
    /// The server, or the servers, that the link goes to.
    pub endpoint: String,
    /// The server's name for the session, where the backend has one.
    pub session: Option<String>,
    /// How often a lost session was replaced by a new one.
    pub restarts: u64,
    /// How many keys and directories are watched, each once however many subscribed to it.
    pub watches: usize,
    /// How many locks are held or waited for, candidacies included.
    pub locks: usize,
    /// How many keys are registered: [`Store::register`](crate::Store::register).
    pub registrations: usize,
    /// Why the link is down, or was last.
    pub last_error: Option<Error>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_version() -> impl Strategy<Value = Version> {
        let kinds = prop::sample::select(vec![
            BackendKind::Consul,
            BackendKind::Etcd,
            BackendKind::ZooKeeper,
            BackendKind::Local,
            BackendKind::Memory,
            BackendKind::Custom,
        ]);
        let numbers = any::<(u64, u64, u64)>();
        (kinds, numbers)
            .prop_map(|(kind, (index, created, counter))| Version::with_counter(kind, index, created, counter))
    }

    proptest! {
        #[test]
        fn versions_survive_storing(version in any_version()) {
            let json = serde_json::to_string(&version).unwrap();
            prop_assert_eq!(serde_json::from_str::<Version>(&json).unwrap(), version);
        }

        /// One that was stored and damaged is refused, or the version that it says it is.
        #[test]
        fn what_is_read_as_a_version_is_one(
            version in any_version(),
            at in any::<prop::sample::Index>(),
            to in prop::collection::vec(any::<u8>(), 0..4),
            gone in 0..4_usize,
        ) {
            let mut json = serde_json::to_vec(&version).unwrap();
            let at = at.index(json.len());
            json.splice(at..(at + gone).min(json.len()), to);
            if let Ok(read) = serde_json::from_slice::<Version>(&json) {
                let said: serde_json::Value = serde_json::from_slice(&json).unwrap();
                let number = |name: &str| said.get(name).map_or(Some(0), serde_json::Value::as_u64);
                prop_assert_eq!(said["backend"].as_str().unwrap(), read.backend().to_string());
                prop_assert_eq!(said["index"].as_u64(), Some(read.index()));
                prop_assert_eq!((number("created"), number("counter")), (Some(read.created()), Some(read.counter())));
            }
            let _ = serde_json::from_slice::<Version>(&json[at..]);
        }
    }
}
