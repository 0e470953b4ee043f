//! [`Hold`]: one acquisition of a lock, as its holder and the lock's actor share it.

use super::{InDoubt, Tenure};
use crate::backend::{Bid, Place};
use crate::error::{Error, Result};
use crate::key::Key;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How an acquisition is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockState {
    /// The lock is held.
    Held,
    /// A renewal failed; the lock is held until the deadline.
    Suspended,
    /// The lock was lost.
    Lost,
    /// The lock was given back.
    Released,
}

impl LockState {
    pub(crate) fn is_over(self) -> bool {
        matches!(self, LockState::Lost | LockState::Released)
    }
}

/// One acquisition of a lock.
#[derive(Debug)]
pub(crate) struct Hold {
    /// What was asked of the server, and where it stands there.
    pub(crate) bid: Bid,
    pub(crate) place: Place,
    tenure: Arc<Tenure>,
    state: watch::Sender<LockState>,
}

impl Hold {
    pub(crate) fn new(bid: Bid, place: Place, tenure: Arc<Tenure>) -> Self {
        Hold { bid, place, tenure, state: watch::Sender::new(LockState::Held) }
    }

    pub(crate) fn key(&self) -> &Key {
        &self.bid.key
    }

    /// Whether the lock is held at this very moment. Asks nobody: it looks at a clock and at what has become known.
    pub(crate) fn is_held(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// Refuses what needs the lock where it isn't held.
    ///
    /// # Errors
    /// [`Error::LockLost`].
    pub(crate) fn require(&self) -> Result<()> {
        if self.is_held() { Ok(()) } else { Err(Error::lock_lost(self.key())) }
    }

    /// The time for which the lock is held even if nothing more is heard of the server.
    pub(crate) fn remaining(&self) -> Duration {
        match self.state.borrow().is_over() {
            true => Duration::ZERO,
            false => self.tenure.remaining(),
        }
    }

    /// Makes a request that counts on the lock being held. While it may be on its way no acquisition begins with the same grant:
    /// the server couldn't tell the two apart.
    pub(crate) async fn asking<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        self.require()?;
        let doubt = InDoubt::new(&self.tenure);
        doubt.answered(request.await)
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.tenure.ttl()
    }

    /// What is known of the acquisition, and whenever that changes. What is over stays so.
    pub(crate) fn state(&self) -> watch::Receiver<LockState> {
        self.state.subscribe()
    }

    pub(crate) fn set(&self, new: LockState) {
        self.state.send_if_modified(|state| {
            let changes = *state != new && !state.is_over();
            if changes {
                *state = new;
            }
            changes
        });
    }
}
