//! Locks: a key that a session holds, as Consul's own clients do it, on the same path and with the same flags.
//! `lock("a/.lock")` in the namespace `ns` and `consul lock ns/a` exclude each other, and so do Go's `LockKey("ns/a/.lock")`
//! and whatever else follows Consul's guide for leader elections.
//!
//! - A grant is a session named `kvactor-lock` without checks: only its TTL ends it, and not that an agent isn't well for a
//!   moment. It belongs to the node of the agent that was asked for it and ends when that node leaves the cluster, or is taken
//!   to have left, as servers that fail are after some seconds (autopilot's `cleanup_dead_servers`).
//! - The lock's key is made anew with each acquisition and deleted with each release. Its CreateIndex is therefore the index of
//!   the acquisition, whatever is written to the key meanwhile, by the holder or by others: the fencing token.
//! - There is no line. Who waits has nothing at the server; it watches the key and tries again when nobody holds it.
//! - A session that ends without a release leaves the lock-delay behind, during which nobody gets the lock and nothing tells of
//!   its end: who waits tries again by time.
//! - Locks are advisory, as all of Consul's: plain writes go through, and leave the holder in place; a plain delete takes the
//!   lock away. Values are limited to what a transaction carries, 378 KiB.

use super::codec::{LockMeta, MAX_TXN_VALUE, Op, Refusal, nonce};
use super::errors::repeatable;
use super::http::{Effect, Transaction};
use super::read::Extent;
use super::session::{Meaning, NewSession};
use super::txn::Guard;
use super::{Consul, MAX_SESSION_TTL, MIN_SESSION_TTL, SESSION_TTL_MULTIPLIER};
use crate::backend::{Bid, Grant, Holder, Locking, Place, Progress, Standing, Target, Update};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::types::{Check, Consistency, Operation, TxnOutcome};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// How often a bid tries to take a lock that changes hands meanwhile. Each failure is another's success.
const ATTEMPTS: usize = 8;
/// How long a bid waits before it tries again, at least, where nothing tells it when to; and at most that much longer.
const RETRY: Duration = Duration::from_millis(250);
/// How long a bid waits between two looks at a key that its holder writes all the time.
const REST: Duration = Duration::from_millis(200);

#[async_trait(?Send)]
impl Locking for Consul {
    async fn grant(&self, ttl: Duration) -> Result<Grant> {
        let ttl = whole_seconds(ttl)?;
        let id = self.open(&NewSession::lock(ttl, self.lock_delay)).await?;
        Ok(Grant { id, ttl, outlives_process_by: SESSION_TTL_MULTIPLIER * ttl })
    }

    async fn keep_alive(&self, grant: &Grant) -> Result<()> {
        self.keep(&grant.id).await?.ok_or_else(|| Error::lock_lost(&grant.id))
    }

    /// What the session holds still is subject to the lock-delay.
    async fn revoke(&self, grant: &Grant) -> Result<()> {
        self.destroy(&grant.id).await
    }

    async fn contend(&self, bid: &Bid, progress: &Progress) -> Result<Standing> {
        match progress {
            Progress::Placed(place) if is_held(place) => self.confirm(bid, place).await,
            // Nothing is at the server before the bid is the first.
            Progress::Placed(_) | Progress::New | Progress::Unknown => self.bid(bid).await,
        }
    }

    async fn wait(&self, bid: &Bid, place: &Place) -> Result<()> {
        match place.ahead.is_empty() {
            true => sleep(RETRY + RETRY * u32::from(nonce() as u8) / 256).await,
            false => self.until_free(&bid.key, place.seen).await?,
        }
        Ok(())
    }

    /// The key is released by its deletion, after which there is no lock-delay.
    async fn leave(&self, bid: &Bid, progress: &Progress) -> Result<bool> {
        if *progress == Progress::New {
            return Ok(false);
        }
        let path = self.namespace.path(&bid.key);
        let ops = [Op::CheckSession { path: &path, session: &bid.grant.id }, Op::Delete { path: &path }];
        let left = self.run(&ops, Consistency::Linearizable).await.map_err(repeatable)?;
        Ok(left.is_some())
    }

    async fn guarded(
        &self,
        bid: &Bid,
        place: &Place,
        checks: &[Check],
        operations: &[Operation],
    ) -> Result<TxnOutcome> {
        self.transact(Some(Guard { key: &bid.key, session: &place.id }), checks, operations).await
    }

    async fn publish(&self, bid: &Bid, place: &Place, value: &Bytes) -> Result<()> {
        require_room(&bid.key, value)?;
        self.write_as_holder(&bid.key, &place.id, value).await?.ok_or_else(|| Error::lock_lost(&bid.key))
    }

    async fn holder(&self, key: &Key) -> Result<Option<Holder>> {
        let path = self.namespace.path(key);
        let shown = self.http.show(&path, Extent::Key, Consistency::Linearizable).await?;
        let Some(lock) = self.http.only::<LockMeta>(&path, &shown)? else { return Ok(None) };
        if !self.is_held_lock(&lock).await? {
            return Ok(None);
        }
        let entry = self.http.only(&path, &shown)?;
        entry.map(|entry| Ok(Holder { value: self.http.value(&entry)?, token: lock.token() })).transpose()
    }
}

/// What came of trying to take a lock.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    /// It is ours, by the acquisition with this token.
    Acquired(u64),
    /// The lock-delay runs.
    Delayed,
    /// The key isn't as it was expected to be.
    Occupied,
}

/// What is at the path of a lock that isn't free for the taking.
#[derive(Debug, PartialEq, Eq)]
enum Sight {
    /// Nothing, by now.
    Nothing,
    /// A lock that nobody holds, at this ModifyIndex: other clients leave their keys there.
    Leftover(u64),
    /// A lock that the bid's own session holds, by the acquisition with this token.
    Ours(u64),
    /// A lock that another session holds.
    Taken { by: String, modified: u64 },
}

impl Consul {
    /// Takes the lock, or says who has it. One request where nobody does.
    async fn bid(&self, bid: &Bid) -> Result<Standing> {
        require_room(&bid.key, &bid.value)?;
        let mut leftover = None;
        for _ in 0..ATTEMPTS {
            match self.attempt(bid, leftover).await? {
                Attempt::Acquired(token) => return Ok(held(bid, token)),
                Attempt::Delayed => return Ok(behind(bid, String::new(), 0)),
                Attempt::Occupied => {}
            }
            leftover = match self.look(bid).await? {
                Sight::Nothing => None,
                Sight::Leftover(index) => Some(index),
                Sight::Taken { by, modified } => return Ok(behind(bid, by, modified)),
                Sight::Ours(token) => match self.write_as_holder(&bid.key, &bid.grant.id, &bid.value).await? {
                    Some(()) => return Ok(held(bid, token)),
                    None => None,
                },
            };
        }
        Ok(behind(bid, String::new(), 0))
    }

    /// Makes the key, in place of what another client left there.
    async fn attempt(&self, bid: &Bid, leftover: Option<u64>) -> Result<Attempt> {
        let path = self.namespace.path(&bid.key);
        let path = path.as_ref();
        let acquire = Op::Acquire { path, value: &bid.value, session: &bid.grant.id };
        let ops = match leftover {
            None => vec![Op::CheckNotExists { path }, acquire],
            Some(index) => vec![Op::CheckIndex { path, index }, Op::Delete { path }, acquire],
        };
        match self.http.txn(&ops, Consistency::Linearizable).await? {
            Transaction::Applied(body) => {
                let made: Option<LockMeta> = self.http.entries(&body, Effect::Write)?.last();
                made.map(|made| Attempt::Acquired(made.token())).ok_or_else(|| self.http.too_few_results())
            }
            Transaction::Refused(refusals) => refused(&bid.key, &refusals),
            Transaction::TooLarge(said) => Err(Error::unsupported(format!("Consul refused a lock's value: {said}"))),
        }
    }

    /// What is there, and whose it is.
    async fn lock_at(&self, key: &Key) -> Result<Option<LockMeta>> {
        let path = self.namespace.path(key);
        let shown = self.http.show(&path, Extent::Key, Consistency::Linearizable).await?;
        self.http.only(&path, &shown)
    }

    async fn look(&self, bid: &Bid) -> Result<Sight> {
        let Some(lock) = self.lock_at(&bid.key).await? else { return Ok(Sight::Nothing) };
        match lock.holder() {
            Some(session) if session == bid.grant.id => Ok(Sight::Ours(lock.token())),
            _ if lock.is_semaphore() => Err(other_kind(&bid.key, "a semaphore of Consul's own clients")),
            Some(session) if lock.is_lock() => Ok(taken(session, &lock)),
            Some(session) => self.look_at_session(&bid.key, session, &lock).await,
            None if lock.is_lock() => Ok(Sight::Leftover(lock.modify_index)),
            None => Err(Error::key_exists(&bid.key)),
        }
    }

    /// What a key is that a session holds and whose flags aren't those of a lock: somebody may have written to a lock.
    async fn look_at_session(&self, key: &Key, session: &str, lock: &LockMeta) -> Result<Sight> {
        match self.stands_for(session).await? {
            Meaning::Lock => Ok(taken(session, lock)),
            Meaning::Ttl => Err(Error::key_exists(key)),
            Meaning::Other => Err(other_kind(key, "a key that a session holds, without the flags of a lock")),
            Meaning::Over => self.prove_over(key, session).await.map(|()| Sight::Nothing),
        }
    }

    /// Whether the bid's acquisition holds the lock still.
    async fn confirm(&self, bid: &Bid, place: &Place) -> Result<Standing> {
        let is_it = |lock: LockMeta| lock.holder() == Some(&place.id) && lock.token() == place.token;
        match self.lock_at(&bid.key).await?.is_some_and(is_it) {
            true => Ok(Standing::Held(place.clone())),
            false => Err(Error::lock_lost(&bid.key)),
        }
    }

    /// Writes to a lock's key that `session` holds; none where it doesn't.
    async fn write_as_holder(&self, key: &Key, session: &str, value: &Bytes) -> Result<Option<()>> {
        let path = self.namespace.path(key);
        // Alone, the second would take a lock that isn't held.
        let ops = [Op::CheckSession { path: &path, session }, Op::Acquire { path: &path, value, session }];
        Ok(self.run(&ops, Consistency::Linearizable).await?.map(drop))
    }

    /// Waits until nobody holds the key, which was seen at the index `seen` and held.
    async fn until_free(&self, key: &Key, mut seen: u64) -> Result<()> {
        let mut updates = self.follow(&Target::Key(key.clone())).await?;
        let mut rested = Instant::now();
        while let Some(update) = updates.next().await {
            match modified(&update?) {
                None => return Ok(()),
                Some(index) if index == seen => continue,
                // It was written, released or taken by a third.
                Some(_) => sleep_until(rested).await,
            }
            match self.holder_at(key).await? {
                Some(index) => seen = index,
                None => return Ok(()),
            }
            rested = Instant::now() + REST;
        }
        Err(Error::unreachable(format!("the watch of the lock `{key}` ended")))
    }

    /// At which index the key is held; none where it isn't.
    async fn holder_at(&self, key: &Key) -> Result<Option<u64>> {
        let lock = self.lock_at(key).await?;
        Ok(lock.filter(|lock| lock.holder().is_some()).map(|lock| lock.modify_index))
    }

    async fn is_held_lock(&self, lock: &LockMeta) -> Result<bool> {
        match lock.holder() {
            None => Ok(false),
            Some(_) if lock.is_lock() || lock.is_semaphore() => Ok(lock.is_lock()),
            Some(session) => Ok(self.stands_for(session).await? == Meaning::Lock),
        }
    }
}

/// Why the lock isn't ours. All operations that fail are told, of which the first is about the key as it was.
fn refused(key: &Key, refusals: &[Refusal]) -> Result<Attempt> {
    if refusals.iter().any(Refusal::is_session_over) {
        return Err(Error::lock_lost(key));
    }
    if refusals.iter().any(Refusal::is_lock_delay) {
        return Ok(Attempt::Delayed);
    }
    match refusals.iter().any(|refusal| refusal.op_index == 0) {
        true => Ok(Attempt::Occupied),
        false => Err(Error::backend(format!("Consul refused to let a session hold `{key}`: {refusals:?}"))),
    }
}

fn held(bid: &Bid, token: u64) -> Standing {
    Standing::Held(Place { id: bid.grant.id.clone(), token, ..Place::default() })
}

/// Another holds the lock, whose name is empty where that isn't known or nobody does for now.
fn behind(bid: &Bid, ahead: String, seen: u64) -> Standing {
    match bid.waits {
        true => Standing::Waiting(Place { id: bid.grant.id.clone(), token: 0, ahead, seen }),
        false => Standing::Taken,
    }
}

/// No acquisition has the index 0.
fn is_held(place: &Place) -> bool {
    place.token != 0
}

fn taken(by: &str, lock: &LockMeta) -> Sight {
    Sight::Taken { by: by.to_owned(), modified: lock.modify_index }
}

/// The index of the only key of a watch; none where it is gone.
fn modified(update: &Update) -> Option<u64> {
    let Update::State { pairs, .. } = update else { return None };
    pairs.first().map(|pair| pair.version.index())
}

fn other_kind(key: &Key, kind: &str) -> Error {
    Error::unsupported(format!("`{key}` is in use as {kind}, and not as a lock"))
}

/// Fails where the value doesn't fit into the transaction that takes the lock.
fn require_room(key: &Key, value: &Bytes) -> Result<()> {
    match value.len() <= MAX_TXN_VALUE {
        true => Ok(()),
        false => Err(Error::unsupported(format!(
            "the value of the lock `{key}` has {} bytes, and Consul takes at most {MAX_TXN_VALUE} with a lock",
            value.len()
        ))),
    }
}

/// The TTL of a session that lasts for `ttl`.
fn whole_seconds(ttl: Duration) -> Result<Duration> {
    let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    match (MIN_SESSION_TTL..=MAX_SESSION_TTL).contains(&ttl) {
        true => Ok(Duration::from_secs(seconds)),
        false => Err(Error::unsupported(format!(
            "a lock with a TTL of {ttl:?}: Consul's sessions last between {MIN_SESSION_TTL:?} and {MAX_SESSION_TTL:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::parse("due to lock delay").unwrap()
    }

    fn refusal(op_index: usize, what: &str) -> Refusal {
        Refusal { op_index, what: what.into() }
    }

    #[test]
    fn refusals_have_reasons() {
        let exists = refusal(0, r#"key "due to lock delay" exists"#);
        let held = refusal(1, r#"failed to lock key "due to lock delay", lock is already held"#);
        assert_eq!(refused(&key(), &[exists.clone(), held]).unwrap(), Attempt::Occupied);
        let delayed = refusal(1, r#"failed to lock key "k" due to lock delay"#);
        assert_eq!(refused(&key(), &[delayed]).unwrap(), Attempt::Delayed);
        let over = refusal(1, r#"invalid session "00000000""#);
        assert!(matches!(refused(&key(), &[exists, over]), Err(Error::LockLost { .. })));
        assert!(matches!(refused(&key(), &[refusal(1, "no")]), Err(Error::Backend { .. })));
    }

    #[test]
    fn sessions_last_for_whole_seconds_within_bounds() {
        let seconds = |millis| whole_seconds(Duration::from_millis(millis)).map(|ttl| ttl.as_secs());
        assert_eq!([10_000, 10_001, 86_400_000].map(|millis| seconds(millis).unwrap()), [10, 11, 86_400]);
        for out_of_bounds in [9_999, 86_400_001] {
            let error = seconds(out_of_bounds).unwrap_err().to_string();
            assert!(error.contains("10s") && error.contains("86400s"), "{error}");
        }
        assert!(whole_seconds(Duration::MAX).is_err());
    }

    #[test]
    fn a_value_that_does_not_fit_is_refused() {
        assert!(require_room(&key(), &Bytes::from(vec![0; MAX_TXN_VALUE])).is_ok());
        let error = require_room(&key(), &Bytes::from(vec![0; MAX_TXN_VALUE + 1])).unwrap_err().to_string();
        assert!(error.contains("387073") && error.contains("387072"), "{error}");
    }
}
