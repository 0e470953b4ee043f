//! Locks of the embedded stores: an entry with a [`Mark`], which lives as long as the grant that it hangs on.
//!
//! Grants are in memory only, in both stores. All who can hold a lock are in this process: when it ends nobody holds one, and
//! `local` purges the entries at the next opening.

use super::state::{Command, Done, Refused};
use super::watch;
use super::{Embedded, Engine};
use crate::backend::{Bid, Change, Grant, Holder, Locking, Place, Progress, Standing, Target, Update};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::types::{Check, Operation, TxnOutcome};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Who has a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) grant: u64,
    /// The revision of the acquisition.
    pub(super) token: u64,
}

/// The grants that stand, and when they end.
#[derive(Debug, Default)]
pub(super) struct Grants(Mutex<HashMap<u64, Instant>>);

/// Numbers the grants of this process: those of a file that is opened again are not taken for those of before.
static LAST: AtomicU64 = AtomicU64::new(0);

impl Grants {
    fn open(&self, ttl: Duration) -> u64 {
        let id = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        self.ends().insert(id, Instant::now() + ttl);
        id
    }

    /// Gives a grant its whole time again. Returns whether it still stands.
    fn keep(&self, id: u64, ttl: Duration) -> bool {
        let mut ends = self.ends();
        let now = Instant::now();
        match ends.get_mut(&id).filter(|end| now < **end) {
            Some(end) => {
                *end = now + ttl;
                true
            }
            None => false,
        }
    }

    fn revoke(&self, id: u64) {
        self.ends().remove(&id);
    }

    /// When a grant ends; the past where it has.
    pub(super) fn end(&self, id: u64) -> Option<Instant> {
        Some(self.ends().get(&id).copied().unwrap_or_else(Instant::now))
    }

    /// Whether a grant stands. One that was seen to be over stays so.
    pub(super) fn is_live(&self, id: u64, now: Instant) -> bool {
        let mut ends = self.ends();
        let live = ends.get(&id).is_some_and(|end| now < *end);
        if !live {
            ends.remove(&id);
        }
        live
    }

    /// No code panics while it has the lock.
    fn ends(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn id(grant: &Grant) -> Result<u64> {
    grant.id.parse().map_err(|_| Error::unsupported(format!("`{}` is no grant of an embedded store", grant.id)))
}

impl<E: Engine> Embedded<E> {
    fn lost(&self, grant: &Grant) -> Error {
        Error::lock_lost(format!("grant {}", grant.id))
    }

    async fn acquire(&self, bid: &Bid) -> Result<Standing> {
        let (path, value, grant) = (self.path(&bid.key), bid.value.clone(), id(&bid.grant)?);
        match self.run(Command::Acquire { path, value, grant }).await? {
            Ok(Done::At(token) | Done::Removed(token)) => Ok(Standing::Held(place(token))),
            Err(Refused::Taken) if bid.waits => Ok(Standing::Waiting(Place::default())),
            Err(Refused::Taken) => Ok(Standing::Taken),
            Err(Refused::Exists) => Err(Error::key_exists(&bid.key)),
            Err(_) => Err(self.lost(&bid.grant)),
        }
    }

    fn is_held(&self, key: &Key, token: u64) -> bool {
        self.engine.published().read().state.held(&self.path(key), token, Instant::now()).is_some()
    }
}

fn place(token: u64) -> Place {
    Place { token, ..Place::default() }
}

#[async_trait(?Send)]
impl<E: Engine> Locking for Embedded<E> {
    async fn grant(&self, ttl: Duration) -> Result<Grant> {
        let id = self.engine.published().read().state.grants().open(ttl).to_string();
        Ok(Grant { id, ttl, outlives_process_by: Duration::ZERO })
    }

    async fn keep_alive(&self, grant: &Grant) -> Result<()> {
        match self.engine.published().read().state.grants().keep(id(grant)?, grant.ttl) {
            true => Ok(()),
            false => Err(self.lost(grant)),
        }
    }

    async fn revoke(&self, grant: &Grant) -> Result<()> {
        let id = id(grant)?;
        self.engine.published().read().state.grants().revoke(id);
        // Without a grant the locks are free already; this takes their entries away.
        self.run(Command::ReleaseAll { grant: id }).await.map(drop)
    }

    async fn contend(&self, bid: &Bid, progress: &Progress) -> Result<Standing> {
        match progress {
            // Nobody waits in line here: until it is held a bid has no place.
            Progress::Placed(place) if place.token != 0 => match self.is_held(&bid.key, place.token) {
                true => Ok(Standing::Held(place.clone())),
                false => Err(Error::lock_lost(&bid.key)),
            },
            Progress::New | Progress::Unknown | Progress::Placed(_) => self.acquire(bid).await,
        }
    }

    async fn wait(&self, bid: &Bid, _: &Place) -> Result<()> {
        let (namespace, published) = (self.namespace.clone(), self.engine.published().clone());
        let mut updates = watch::updates(self.kind, namespace, published, &Target::Key(bid.key.clone()));
        while let Some(update) = updates.next().await.transpose()? {
            let is_free = match update {
                Update::State { pairs, .. } => pairs.is_empty(),
                Update::Changes { changes, .. } => changes.iter().any(|change| matches!(change, Change::Delete { .. })),
            };
            if is_free {
                break;
            }
        }
        Ok(())
    }

    async fn leave(&self, bid: &Bid, _: &Progress) -> Result<bool> {
        let (path, grant) = (self.path(&bid.key), id(&bid.grant)?);
        Ok(self.run(Command::Release { path, grant }).await?.is_ok())
    }

    async fn guarded(
        &self,
        bid: &Bid,
        place: &Place,
        checks: &[Check],
        operations: &[Operation],
    ) -> Result<TxnOutcome> {
        self.txn_at(Some((&bid.key, place.token)), checks, operations).await
    }

    async fn publish(&self, bid: &Bid, place: &Place, value: &Bytes) -> Result<()> {
        let (path, value, token) = (self.path(&bid.key), value.clone(), place.token);
        self.submit(&bid.key, Command::Publish { path, value, token }).await.map(drop)
    }

    async fn holder(&self, key: &Key) -> Result<Option<Holder>> {
        let shown = self.engine.published().read();
        let entry = shown.state.get(&self.path(key), Instant::now());
        Ok(entry.and_then(|entry| Some(Holder { value: entry.value.clone(), token: entry.lock?.token })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_grant_that_was_seen_to_be_over_stays_so() {
        let (grants, ttl) = (Grants::default(), Duration::from_secs(1));
        let id = grants.open(ttl);
        tokio::time::advance(ttl / 2).await;
        assert!(grants.keep(id, ttl));
        tokio::time::advance(ttl * 3 / 4).await;
        assert!(grants.is_live(id, Instant::now()));
        assert!(!grants.is_live(id, Instant::now() + ttl));
        assert!(!grants.keep(id, ttl));
        assert!(!grants.is_live(id, Instant::now()));
    }
}
