//! Locks.
//!
//! A lock at `<key>` is etcd's own: contenders are keys `<key>/<lease in hexadecimal>`, and who was created first holds it.
//! Go's `concurrency.NewMutex(session, "<key>")` and `NewElection`, `etcdctl lock <key>` and `etcdctl elect <key>`, and the
//! server's lock and election services stand in the same line, where `<key>` is the store's namespace and key together.
//!
//! On top of that a holder of ours publishes its value at `<key>` itself, on the same lease and in the same transaction by
//! which it becomes the holder, and which takes both away. Holders in other languages publish nothing there. The contender
//! has the value too, which is where those languages look for it: a value goes into a request twice, so that the largest is
//! half as large as an ordinary key's.
//!
//! Ordinary keys beneath a lock's key don't stand in its line. For clients in Go they do: those wait for any key there. And
//! the server looks at all that is beneath a lock's key whenever somebody contends for it.
//!
//! Contenders aren't keys of the store, and no call shows them, with one exception: the tree beneath a directory goes with
//! the contenders in it, and `delete_tree` counts them. The holder hears of it as of any loss.

use super::Driver;
use super::attempt::{Attempt, token, unsigned};
use super::{kv, lease, line};
use crate::backend::lock::{Bid, Grant, Holder, Locking, Place, Progress, Standing};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::types::{Check, Operation, TxnOutcome};
use async_trait::async_trait;
use bytes::Bytes;
use std::time::Duration;

#[async_trait(?Send)]
impl Locking for Driver {
    async fn grant(&self, ttl: Duration) -> Result<Grant> {
        lease::open(&self.session, ttl).await
    }

    async fn keep_alive(&self, grant: &Grant) -> Result<()> {
        let kept = lease::keep(&self.session, &grant.id).await?;
        kept.ok_or_else(|| Error::lock_lost(format!("on the lease {}", grant.id)))
    }

    async fn revoke(&self, grant: &Grant) -> Result<()> {
        lease::revoke(&self.session, &grant.id).await
    }

    async fn contend(&self, bid: &Bid, progress: &Progress) -> Result<Standing> {
        let attempt = Attempt::new(&self.session, bid)?;
        match progress {
            Progress::Placed(place) if place.ahead.is_empty() => attempt.confirm(place).await,
            Progress::Placed(place) => attempt.advance(token(place)).await,
            // One that may be there is found as surely as none: its name is that of the lease.
            Progress::New | Progress::Unknown if bid.waits => attempt.line_up().await,
            Progress::New | Progress::Unknown => attempt.snatch().await,
        }
    }

    async fn wait(&self, _: &Bid, place: &Place) -> Result<()> {
        let seen = i64::try_from(place.seen).unwrap_or(i64::MAX);
        self.watches.deleted(place.ahead.as_bytes(), seen).await
    }

    /// The value at the key stays where only the contender is deleted, by hand say.
    async fn gone(&self, bid: &Bid, place: &Place) -> Result<()> {
        // From now on: history may not reach back to when the lock was got.
        match Attempt::new(&self.session, bid)?.confirm(place).await {
            Ok(Standing::Held(now)) => self.wait(bid, &Place { ahead: now.id.clone(), ..now }).await,
            Ok(_) | Err(Error::LockLost { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn leave(&self, bid: &Bid, progress: &Progress) -> Result<bool> {
        let attempt = Attempt::new(&self.session, bid)?;
        match progress {
            Progress::New => Ok(false),
            Progress::Placed(place) => attempt.withdraw(token(place)).await,
            Progress::Unknown => match attempt.find().await? {
                Some(token) => attempt.withdraw(token).await,
                None => Ok(false),
            },
        }
    }

    async fn guarded(
        &self,
        bid: &Bid,
        place: &Place,
        checks: &[Check],
        operations: &[Operation],
    ) -> Result<TxnOutcome> {
        let guard = (place.id.as_bytes(), token(place));
        let outcome = kv::guarded(&self.session, guard, checks, operations).await?;
        outcome.ok_or_else(|| Error::lock_lost(&bid.key))
    }

    async fn publish(&self, bid: &Bid, place: &Place, value: &Bytes) -> Result<()> {
        Attempt::new(&self.session, bid)?.publish(token(place), value).await
    }

    async fn holder(&self, key: &Key) -> Result<Option<Holder>> {
        let first = line::first(&self.session, &self.session.path(key)).await?;
        Ok(first.map(|first| Holder { token: unsigned(first.create_revision), value: first.value.into() }))
    }
}
