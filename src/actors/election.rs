//! [`Candidate`]: one candidacy's actor, on top of a lock: the leader is who holds it.

use super::lock::Acquired;
use super::locks::Locks;
use crate::backoff::Pauses;
use crate::election::{CampaignOptions, Candidacy};
use crate::error::Error;
use crate::key::Key;
use crate::lock::{Ending, LockOptions, LockState};
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;
use tracing::warn;

/// A candidacy from its first election on.
pub(crate) struct Candidate {
    pub(crate) key: Key,
    pub(crate) options: CampaignOptions,
    pub(crate) locks: Locks,
    /// What it publishes when it is elected.
    pub(crate) value: watch::Receiver<Bytes>,
    pub(crate) candidacy: watch::Sender<Candidacy>,
    pub(crate) resignation: oneshot::Receiver<Ending>,
}

/// How a term ended.
enum End {
    /// The candidate has resigned, or was dropped.
    Resigned,
    /// The leadership was lost.
    Lost,
    /// The store was closed.
    Closed,
}

/// The wish for the lock that makes a leader.
pub(crate) fn lock_options(options: &CampaignOptions, value: Bytes) -> LockOptions {
    LockOptions { value, ttl: options.ttl, timeout: options.timeout, ..LockOptions::default() }
}

impl Candidate {
    /// Leads, and stands again if it is to, until it resigns.
    pub(crate) async fn run(mut self, first: Acquired) {
        let mut term = Some(first);
        while let Some(acquired) = term {
            let token = acquired.hold.place.token;
            match self.lead(acquired).await {
                End::Resigned | End::Closed => break,
                End::Lost => warn!(key = %self.key, token, "a leader is demoted"),
            }
            self.candidacy.send_replace(Candidacy::Demoted);
            term = match self.options.stand_again {
                true => self.stand().await,
                false => None,
            };
        }
        self.candidacy.send_replace(Candidacy::Over);
    }

    /// One term, from the election to its end.
    async fn lead(&mut self, Acquired { hold, end }: Acquired) -> End {
        let mut states = hold.state();
        loop {
            let state = *states.borrow_and_update();
            match state {
                LockState::Held | LockState::Suspended => {
                    let suspended = state == LockState::Suspended;
                    self.candidacy.send_replace(Candidacy::Leads { hold: hold.clone(), suspended });
                }
                LockState::Lost => return End::Lost,
                LockState::Released => return End::Closed,
            }
            tokio::select! {
                _ = states.changed() => {}
                resignation = &mut self.resignation => {
                    let resignation = resignation.ok();
                    self.candidacy.send_replace(Candidacy::Demoted);
                    resign(end, resignation);
                    return End::Resigned;
                }
            }
        }
    }

    /// Stands for election again; none where the candidate resigned, or the store was closed, before it was elected.
    async fn stand(&mut self) -> Option<Acquired> {
        let mut pauses = Pauses::new(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            let options = CampaignOptions { timeout: None, ..self.options.clone() };
            let options = lock_options(&options, self.value.borrow().clone());
            let election = async {
                let elected = self.locks.acquire(&self.key, options, None).await;
                if let Err(error) = &elected
                    && !matches!(error, Error::Closed)
                {
                    warn!(key = %self.key, %error, "a candidate can't stand again; trying again");
                    sleep(pauses.next()).await;
                }
                elected
            };
            let elected = tokio::select! {
                elected = election => elected,
                resignation = &mut self.resignation => {
                    not_leading(&self.key, resignation.ok());
                    return None;
                }
            };
            match elected {
                Ok(acquired) => return Some(acquired),
                Err(Error::Closed) => return None,
                Err(_) => {}
            }
        }
    }
}

/// Gives the lock back, whose actor answers itself. Where it has ended, the answer's drop says that the lead was lost before.
fn resign(end: oneshot::Sender<Ending>, resignation: Option<Ending>) {
    match resignation {
        Some(resignation) => drop(end.send(resignation)),
        None => drop(end),
    }
}

fn not_leading(key: &Key, resignation: Option<Ending>) {
    resignation.into_iter().for_each(|resignation| drop(resignation.send(Err(Error::lock_lost(key)))));
}
