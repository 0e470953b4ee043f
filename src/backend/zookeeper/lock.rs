//! Locks: ephemeral znodes in line beneath the lock's own, on a session that lasts for the lock's TTL.
//!
//! A bid has two znodes, twins, so that programs of two dialects exclude it and are excluded: see [`contender`](super::contender).
//! The fencing token is the zxid of their creation.
//!
//! Most locks are free and new: then one multi makes the lock's znode, the twins, and publishes the value, and only one such
//! multi can succeed. Otherwise the twins join the line, at the version at which the lock's znode was seen to be no key; in
//! the same round trip the line is read. Who isn't first watches whoever is just ahead, as a directory: an ephemeral znode
//! can have nothing in it, so that the watch tells of its end alone, and a release wakes one.
//!
//! A release is one multi as well. Where nobody else was in line the last time it takes all of it away, which fails if somebody
//! is now; otherwise it is known by a look who is next, and the multi publishes for that one: see [`published`](super::published).
//! The next looks once, and writes only if its value isn't published: whoever was ahead died, gave up, or was no store.
//!
//! A lock's znode that a store made goes with the last of its line. What another program made stays, and what it has been
//! seen in line for: a `Lock` of kazoo makes sure of the lock's znode only when it is used first, and fails with `NoNodeError` when
//! it is gone later. It can still happen to one that only ever tried, without waiting, while one of ours had the lock: what
//! helps is that somebody else makes the znode beforehand (`ensure_path`).

use super::contest::{self, Contest};
use super::session::Session;
use super::txn::Guard;
use super::{ZooKeeper, errors, is_final};
use crate::backend::{Bid, Grant, Holder, Locking, Place, Progress, Standing};
use crate::error::Result;
use crate::key::Key;
use crate::types::{Check, Consistency, Operation, TxnOutcome};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use zookeeper_client::{Error as Failure, SessionState};

#[async_trait(?Send)]
impl Locking for ZooKeeper {
    async fn grant(&self, ttl: Duration) -> Result<Grant> {
        self.ensemble.grant(ttl).await
    }

    async fn keep_alive(&self, grant: &Grant) -> Result<()> {
        self.ensemble.keep_alive(grant).await
    }

    async fn revoke(&self, grant: &Grant) -> Result<()> {
        self.ensemble.revoke(grant).await
    }

    async fn contend(&self, bid: &Bid, progress: &Progress) -> Result<Standing> {
        let session = self.session_of(bid)?;
        let contest = Contest::new(&session, bid);
        let standing = match progress {
            Progress::New => contest.enter().await,
            Progress::Unknown => contest.find_or_enter().await,
            Progress::Placed(place) => contest.stand(place).await,
        };
        standing.map_err(|error| session.lost_or(bid.key.as_str(), error))
    }

    async fn wait(&self, bid: &Bid, place: &Place) -> Result<()> {
        let session = self.session_of(bid)?;
        let gone = match session.client.get_and_watch_children(&place.ahead).await {
            Ok((.., watcher)) => watcher.changed(),
            Err(Failure::NoNode) => return Ok(()),
            Err(failure) => return Err(session.lost_or(bid.key.as_str(), session.read_error(failure))),
        };
        // Whoever waits must not keep the session from closing, which ends the watch too.
        drop(session);
        gone.await;
        Ok(())
    }

    async fn leave(&self, bid: &Bid, progress: &Progress) -> Result<bool> {
        let Some(own) = self.ensemble.grants.get(&bid.grant) else { return Ok(false) };
        match (progress, own.client.state()) {
            (Progress::New, _) => Ok(false),
            (_, SessionState::SyncConnected) => Contest::new(&own, bid).leave(progress).await,
            // Another session can take away what is known, but not what may still be on its way.
            (Progress::Placed(place), state) => match self.session() {
                Ok(other) => Contest::new(&other, bid).release(place).await,
                Err(_) => gone_with(&own, state),
            },
            (Progress::Unknown, state) => gone_with(&own, state),
        }
    }

    async fn guarded(
        &self,
        bid: &Bid,
        place: &Place,
        checks: &[Check],
        operations: &[Operation],
    ) -> Result<TxnOutcome> {
        let session = self.session_of(bid)?;
        let guard = Guard { lock: bid.key.as_str(), paths: Contest::new(&session, bid).twins(&place.id) };
        let outcome = session.guarded(&guard, checks, operations).await;
        outcome.map_err(|error| session.lost_or(bid.key.as_str(), error))
    }

    async fn publish(&self, bid: &Bid, place: &Place, value: &Bytes) -> Result<()> {
        let session = self.session_of(bid)?;
        let published = Contest::new(&session, bid).publish(&place.id, value).await;
        published.map(drop).map_err(|error| session.lost_or(bid.key.as_str(), error))
    }

    async fn holder(&self, key: &Key) -> Result<Option<Holder>> {
        let session = self.session()?;
        let path = session.paths.key(key);
        let synced = session.synced(Consistency::Linearizable, &path);
        let (synced, published) = tokio::join!(synced, session.published(&path));
        synced?;
        Ok(published?.map(|published| Holder { token: contest::token(&published.stat), value: published.value }))
    }
}

impl ZooKeeper {
    fn session_of(&self, bid: &Bid) -> Result<Arc<Session>> {
        self.ensemble.grants.connected(&bid.grant, bid.key.as_str())
    }
}

/// What becomes of contenders whose session is in this state, and can't be asked: with it they go.
fn gone_with(session: &Session, state: SessionState) -> Result<bool> {
    if is_final(state) { Ok(false) } else { Err(errors::of_state(&session.servers, state)) }
}
