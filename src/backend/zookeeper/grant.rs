//! What locks hang on: a ZooKeeper session of their own for each TTL, which the loss of the store's session doesn't touch.
//!
//! These sessions live beside the connector, so that those of the store, as they come and go, all find them. Everything is
//! asked of a lock's own session while that is connected: its requests come in order, even behind one whose answer was lost.
//!
//! # How long a session lasts
//! It is the leader that ends sessions, and it hears of them late: the member that a client is connected to answers reads by
//! itself, even when it is cut off, and tells the leader every half tick which sessions it heard of. Until that was told it can
//! be lost with the member. So
//! - a grant is kept alive by `sync`, which only the leader can answer;
//! - a session lasts half as long again as its locks' TTL: a third of it is for what the leader hasn't heard yet. The client
//!   library sends something every tenth of the session's time at least, see [`Pace::Brisk`]; half a tick is a quarter of the
//!   shortest time that servers offer by default, and less of all others.

use super::connect::{Ensemble, Pace};
use super::session::Session;
use super::{errors, is_final, state_that};
use crate::backend::Grant;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use zookeeper_client::SessionState;

/// The sessions for locks, by the servers' names for them.
#[derive(Default)]
pub(super) struct Grants(Mutex<HashMap<String, Arc<Session>>>);

impl Grants {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None: it was revoked, or found to be over.
    pub(super) fn get(&self, grant: &Grant) -> Option<Arc<Session>> {
        self.lock().get(&grant.id).cloned()
    }

    /// The session, if its link is up. `subject` is what is lost where it is over.
    pub(super) fn connected(&self, grant: &Grant, subject: &str) -> Result<Arc<Session>> {
        let session = self.get(grant).ok_or_else(|| Error::lock_lost(subject))?;
        match session.client.state() {
            SessionState::SyncConnected => Ok(session),
            state if is_final(state) => Err(Error::lock_lost(subject)),
            state => Err(errors::of_state(&session.servers, state)),
        }
    }

    fn add(&self, session: Session) -> String {
        let id = session.client.session_id().to_string();
        self.lock().insert(id.clone(), Arc::new(session));
        id
    }

    fn remove(&self, grant: &Grant) -> Option<Arc<Session>> {
        self.lock().remove(&grant.id)
    }
}

impl Ensemble {
    pub(super) async fn grant(&self, ttl: Duration) -> Result<Grant> {
        let asked = whole_milliseconds(session_timeout(ttl));
        let session = self.open(asked, Pace::Brisk).await?;
        let offered = session.client.session_timeout();
        if offered != asked {
            let servers = session.servers.clone();
            end(Arc::new(session)).await;
            return Err(out_of_bounds(&servers, ttl, asked, offered));
        }
        // The leader looks for sessions that are over once a tick, of which the shortest timeout has two.
        Ok(Grant { id: self.grants.add(session), ttl, outlives_process_by: offered * 3 / 2 })
    }

    pub(super) async fn keep_alive(&self, grant: &Grant) -> Result<()> {
        let kept = self.touch(grant).await;
        if let Err(Error::LockLost { .. }) = kept {
            self.grants.remove(grant);
        }
        kept
    }

    async fn touch(&self, grant: &Grant) -> Result<()> {
        let session = self.grants.connected(grant, &grant.id)?;
        match session.client.sync("/").await {
            Ok(()) => Ok(()),
            Err(failure) => Err(session.lost_or(&grant.id, session.read_error(failure))),
        }
    }

    pub(super) async fn revoke(&self, grant: &Grant) -> Result<()> {
        if let Some(session) = self.grants.remove(grant) {
            end(session).await;
        }
        Ok(())
    }
}

impl Session {
    /// The error of a request for a lock: if the session is over by now, that is what matters.
    pub(super) fn lost_or(&self, subject: &str, error: Error) -> Error {
        if is_final(self.client.state()) { Error::lock_lost(subject) } else { error }
    }
}

/// Lets go of the session, and waits until its last user has and the server has ended it.
async fn end(session: Arc<Session>) {
    let state = session.client.state_watcher();
    drop(session);
    state_that(state, is_final).await;
}

/// The protocol has no fractions of a millisecond, and a TTL may become longer but not shorter.
fn whole_milliseconds(ttl: Duration) -> Duration {
    let cut = Duration::from_millis(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    if cut < ttl { cut + Duration::from_millis(1) } else { cut }
}

/// How long a session for locks with this TTL is to last.
fn session_timeout(ttl: Duration) -> Duration {
    ttl * 3 / 2
}

/// The TTL for which a session that lasts this long is enough.
fn longest_ttl(session_timeout: Duration) -> Duration {
    session_timeout * 2 / 3
}

fn out_of_bounds(servers: &str, ttl: Duration, asked: Duration, offered: Duration) -> Error {
    let (bound, setting) =
        if offered > asked { ("at least", "minSessionTimeout") } else { ("at most", "maxSessionTimeout") };
    Error::unsupported(format!(
        "a lock whose TTL is {ttl:?}: {servers} keeps sessions for {bound} {offered:?} (its `{setting}`), which makes a TTL of \
         {bound} {:?}",
        longest_ttl(offered)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_up() {
        for (ttl, asked) in [(0, 0), (1_000_000, 1), (1_000_001, 2), (4_999_999_999, 5000)] {
            assert_eq!(whole_milliseconds(Duration::from_nanos(ttl)), Duration::from_millis(asked));
        }
    }
}
