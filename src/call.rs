//! What a message has to know to be carried out: [`Call`], and the [`Rules`] that refuse bad input before any I/O.

use crate::actors::lease::Leases;
use crate::backend::Target;
use crate::backend::shortcut::{Begun, Shortcut};
use crate::error::{Error, Result};
use crate::key::{Dir, Key, Namespace};
use crate::link::Session;
use crate::lock::LockOptions;
use crate::types::{Capabilities, Check, Condition, ListOptions, MAX_TXN_OPERATIONS, Operation, PutOptions, Version};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use std::collections::HashSet;
use tokio::sync::OwnedSemaphorePermit;

/// What a request does when it is its turn; outside of the crate's reach, so that no other message becomes a request.
pub trait Call<R> {
    /// For traces.
    const NAME: &'static str;
    /// Whether the call changes anything: a write is never repeated when its fate is unknown.
    const WRITES: bool;
    /// Refuses bad input, before any I/O.
    fn check(&self, rules: &Rules) -> Result<()>;
    /// Carries the call out. May be called again when the one before certainly had no effect.
    fn run<'a>(&'a self, session: &'a Session, leases: &'a Leases) -> LocalBoxFuture<'a, Result<R>>;
    /// Carries a read out on the thread that asks; none where that can't be done.
    fn read(&self, _: &dyn Shortcut) -> Option<Result<R>> {
        None
    }
    /// Begins a write on the thread that asks; none where that can't be done.
    fn write(&self, _: &dyn Shortcut, _: OwnedSemaphorePermit) -> Option<Begun<R>> {
        None
    }
}

/// What is allowed in this store; bad input is refused by it before any I/O.
#[derive(Debug)]
pub struct Rules {
    reserve_zookeeper: bool,
    max_value_size: usize,
    capabilities: Capabilities,
}

impl Rules {
    pub(crate) fn new(namespace: &Namespace, max_value_size: usize, capabilities: Capabilities) -> Result<Self> {
        if max_value_size > capabilities.max_value_size {
            let limit = capabilities.max_value_size;
            let backend = capabilities.backend;
            return Err(Error::invalid_config("max_value_size", format!("{backend} takes at most {limit} bytes")));
        }
        Ok(Rules { reserve_zookeeper: namespace.is_root(), max_value_size, capabilities })
    }

    pub(crate) fn path(&self, path: &str) -> Result<()> {
        let reserved = self.reserve_zookeeper && path.split('/').next() == Some("zookeeper");
        if !reserved {
            return Ok(());
        }
        let reason = "`zookeeper` is reserved as the first segment; give the store a namespace in its URL's path";
        Err(Error::InvalidKey { key: path.into(), reason })
    }

    /// What to watch for a target, unless it is one that must not be watched.
    pub(crate) fn target(&self, target: &Target) -> Result<Target> {
        let watched = match target {
            Target::Lock(key) if self.capabilities.holders_are_keys => Target::Key(key.clone()),
            target => target.clone(),
        };
        match &watched {
            Target::Key(key) | Target::Lock(key) => self.path(key)?,
            Target::Tree(dir) => self.path(dir)?,
        }
        Ok(watched)
    }

    pub(crate) fn value(&self, key: &Key, value: &Bytes) -> Result<()> {
        if value.len() <= self.max_value_size {
            return Ok(());
        }
        Err(Error::ValueTooLarge { key: key.as_str().into(), size: value.len(), limit: self.max_value_size })
    }

    pub(crate) fn version(&self, version: &Version) -> Result<()> {
        let own = self.capabilities.backend;
        if version.backend() == own {
            return Ok(());
        }
        Err(Error::unsupported(format!("this version comes from {}, the store is on {own}", version.backend())))
    }

    pub(crate) fn put_options(&self, options: &PutOptions) -> Result<()> {
        let Some(ttl) = options.ttl else {
            return match options.keep_alive {
                true => Err(Error::invalid_config("keep_alive", "it needs a `ttl`")),
                false => Ok(()),
            };
        };
        let Capabilities { min_ttl, max_ttl, backend, .. } = &self.capabilities;
        if (*min_ttl..=*max_ttl).contains(&ttl) {
            return Ok(());
        }
        Err(Error::unsupported(format!("a TTL of {ttl:?}: {backend} keeps one from {min_ttl:?} to {max_ttl:?}")))
    }

    /// What may be asked of a lock.
    pub(crate) fn lock(&self, key: &Key, options: &LockOptions) -> Result<()> {
        self.path(key)?;
        self.value(key, &options.value)?;
        let Capabilities { locks, min_lock_ttl, max_lock_ttl, backend, .. } = &self.capabilities;
        if !locks {
            return Err(Error::unsupported(format!("{backend} has no locks")));
        }
        if (*min_lock_ttl..=*max_lock_ttl).contains(&options.ttl) {
            return Ok(());
        }
        let reason = format!(
            "a lock with a TTL of {:?}: {backend} keeps one from {min_lock_ttl:?} to {max_lock_ttl:?}",
            options.ttl
        );
        Err(Error::unsupported(reason))
    }

    pub(crate) fn txn(&self, checks: &[Check], operations: &[Operation]) -> Result<()> {
        self.txn_of(MAX_TXN_OPERATIONS, checks, operations)
    }

    /// As [`txn`](Self::txn); the check of the lock is one of those that are allowed.
    pub(crate) fn guarded(&self, checks: &[Check], operations: &[Operation]) -> Result<()> {
        self.txn_of(MAX_TXN_OPERATIONS - 1, checks, operations)
    }

    fn txn_of(&self, most: usize, checks: &[Check], operations: &[Operation]) -> Result<()> {
        let size = checks.len() + operations.len();
        if size > most {
            let reason = format!("a transaction of {size} checks and operations; at most {most} are allowed");
            return Err(Error::unsupported(reason));
        }
        for check in checks {
            self.path(&check.key)?;
            if let Condition::Version(version) = &check.condition {
                self.version(version)?;
            }
        }
        let mut changed = HashSet::with_capacity(operations.len());
        for operation in operations {
            self.path(operation.key())?;
            if let Operation::Put { key, value } = operation {
                self.value(key, value)?;
            }
            if !changed.insert(operation.key()) {
                return Err(Error::unsupported(format!("a transaction that changes `{}` twice", operation.key())));
            }
        }
        Ok(())
    }

    pub(crate) fn listing(&self, dir: &Dir, options: &ListOptions) -> Result<()> {
        self.path(dir)?;
        if options.limit == Some(0) {
            return Err(Error::invalid_config("limit", "a page has at least one entry"));
        }
        match &options.after {
            Some(after) if dir.relative(after).is_none() => {
                Err(Error::invalid_config("after", format!("`{after}` is not beneath the directory that is listed")))
            }
            _ => Ok(()),
        }
    }
}
