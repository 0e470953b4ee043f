//! [`Contender`]: what stands at the server for a lock's actor; how it is noticed that it is gone, and how it is taken away.

use super::errand::Errands;
use super::grants::Kept;
use super::lock::{Wish, pauses};
use super::watchers::Watchers;
use crate::backend::{Bid, Progress, Standing, Target, locking};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::link::{Session, far_future};
use crate::lock::{Hold, Tenure};
use futures_util::StreamExt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::debug;

/// A lock that is held for longer than this is watched at the server, so that its loss is noticed before the next renewal. One
/// that is held for a moment only is not worth the requests.
const UNWATCHED: Duration = Duration::from_millis(300);

/// What is left of a lock at the server when its actor ends with the store.
pub(super) type Left = (Bid, Progress);

/// A contender that is being taken away. It doesn't hold on to its grant: where that takes too long, and nobody else uses the
/// grant, the contender goes with it.
pub(super) struct Leaving {
    pub(super) bid: Bid,
    pub(super) progress: Progress,
    pub(super) tenure: Arc<Tenure>,
}

/// The contender for the lock, and what it hangs on.
pub(super) struct Contender {
    pub(super) bid: Bid,
    pub(super) progress: Progress,
    pub(super) kept: Rc<Kept>,
    /// The TTL that was asked for.
    pub(super) ttl: Duration,
}

impl Contender {
    pub(super) fn new(key: Key, kept: Rc<Kept>, ttl: Duration, waits: bool) -> Self {
        let bid = Bid { key, value: Default::default(), grant: kept.grant.clone(), nonce: nonce(), waits };
        Contender { bid, progress: Progress::New, kept, ttl }
    }

    /// Whether it can contend for this wish.
    pub(super) fn serves(&self, wish: &Wish) -> bool {
        self.ttl == wish.options.ttl && self.bid.waits == wish.waits() && self.kept.tenure.is_live()
    }
}

/// 32 hexadecimal digits that no other bid has.
fn nonce() -> String {
    // Each `RandomState` has keys of its own, seeded by the system: the cheapest randomness in `std`.
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

/// Takes a contender away: again and again, until the server has answered or has let it go by itself. Returns whether it was
/// still there, as far as that is known.
pub(super) async fn leave(errands: &Errands, Leaving { bid, progress, tenure }: &Leaving) -> Result<bool> {
    if *progress == Progress::New {
        return Ok(true);
    }
    if *progress == Progress::Unknown {
        // What was to make the contender may arrive after all.
        tenure.taint();
    }
    let doubtful = std::cell::Cell::new(false);
    let step = async |session: &Session| {
        // Once an answer was lost, what is gone may have gone by us, and the request may arrive late.
        let doubted = doubtful.replace(true);
        if doubted {
            tenure.taint();
        }
        let left = locking(&*session.backend)?.leave(bid, progress).await?;
        Ok(left || doubted)
    };
    let left = loop {
        let left = errands.until_answered(bid.grant.outlives_process_by + errands.timeout(), &step).await;
        // A grant that is kept alive for other locks keeps this contender too.
        if !matches!(left, Err(Error::Timeout { .. })) || !tenure.is_live() {
            break left;
        }
    };
    debug!(key = %bid.key, ?left, "a contender was taken away");
    left
}

/// Waits until the server says that the acquisition is over.
pub(super) async fn gone_at_server(errands: Errands, watchers: Watchers, hold: Arc<Hold>) {
    sleep(UNWATCHED).await;
    tokio::select! {
        () = gone_by_key(&errands, &watchers, &hold) => {}
        () = gone_by_contender(&errands, &hold) => {}
    }
}

/// Looks whenever something becomes of the lock's key.
async fn gone_by_key(errands: &Errands, watchers: &Watchers, hold: &Hold) {
    let target = Target::Key(hold.key().clone());
    let limit = errands.timeout();
    loop {
        match watchers.subscribe(&target, limit, Instant::now() + limit).await {
            Ok(mut events) => {
                while events.next().await.is_some() {
                    if is_gone(errands, hold).await {
                        return;
                    }
                }
            }
            Err(error) => {
                debug!(key = %hold.key(), %error, "a lock that is held can't be watched; renewals tell of its loss");
            }
        }
        sleep(limit).await;
    }
}

/// Looks whenever something became of the contender.
async fn gone_by_contender(errands: &Errands, hold: &Hold) {
    let mut pauses = pauses();
    loop {
        if let Ok(session) = errands.link().session(far_future()).await {
            let gone = async { locking(&*session.backend)?.gone(&hold.bid, &hold.place).await };
            let heard = errands.long(&session, gone).await;
            if heard.is_ok() && is_gone(errands, hold).await {
                return;
            }
        }
        sleep(pauses.next()).await;
    }
}

/// Whether the acquisition is over, as the server says.
async fn is_gone(errands: &Errands, hold: &Hold) -> bool {
    let progress = Progress::Placed(hold.place.clone());
    let step = async |session: &Session| locking(&*session.backend)?.contend(&hold.bid, &progress).await;
    match errands.until_answered(hold.ttl(), step).await {
        Ok(Standing::Held(_)) => false,
        Ok(Standing::Waiting(_) | Standing::Taken) | Err(Error::LockLost { .. }) => true,
        Err(error) => {
            debug!(key = %hold.key(), %error, "whether a lock is still held is not known; renewals will tell");
            false
        }
    }
}
