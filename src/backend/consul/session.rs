//! Sessions: what keys with a TTL and locks hang on.

use super::Consul;
use super::codec::{CreatedSession, LOCK_SESSION, NewSession, SessionInfo, TTL_SESSION, encode};
use super::http::{Effect, Request};
use crate::error::{Error, Result};
use crate::key::Key;
use awc::http::StatusCode;
use bytes::Bytes;

/// What a session that holds a key stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A TTL, of any kvactor store.
    Ttl,
    /// The locks of a kvactor store.
    Lock,
    /// What other programs lock.
    Other,
    /// The session is over, and what it held is gone or let go.
    Over,
}

impl Meaning {
    fn of(name: &str) -> Self {
        match name {
            TTL_SESSION => Meaning::Ttl,
            LOCK_SESSION => Meaning::Lock,
            _ => Meaning::Other,
        }
    }
}

impl Consul {
    /// Opens a session. One whose answer is lost holds nothing, and ends by itself.
    pub(super) async fn open(&self, session: &NewSession) -> Result<String> {
        let body = serde_json::to_vec(session)
            .map_err(|error| Error::backend("a session could not be written as JSON").with_source(error))?;
        let answer = self.http.expect_ok(Request::put("session/create", body, Effect::Repeatable)).await?;
        let CreatedSession { id } = self.http.json(&answer)?;
        Ok(id)
    }

    /// Lets a session last for its whole TTL again; none where it is over.
    pub(super) async fn keep(&self, session: &str) -> Result<Option<()>> {
        let path = format!("session/renew/{}", encode(session));
        let answer = self.http.send(Request::put(path, Bytes::new(), Effect::Repeatable)).await?;
        match answer.status {
            StatusCode::OK => Ok(Some(())),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.http.failure(&answer)),
        }
    }

    /// Ends a session, and with it the keys that it holds. It is no error if the session is over.
    pub(super) async fn destroy(&self, session: &str) -> Result<()> {
        let path = format!("session/destroy/{}", encode(session));
        self.http.expect_ok(Request::put(path, Bytes::new(), Effect::Repeatable)).await.map(drop)
    }

    /// What the server knows of a session that was seen to hold a key.
    pub(super) async fn stands_for(&self, session: &str) -> Result<Meaning> {
        let path = format!("session/info/{}", encode(session));
        let answer = self.http.expect_ok(Request::get(path, "consistent")).await?;
        let sessions: Option<Vec<SessionInfo<'_>>> = self.http.json(&answer)?;
        Ok(sessions.unwrap_or_default().first().map_or(Meaning::Over, |info| Meaning::of(&info.name)))
    }

    /// Fails where a session that the server doesn't show isn't over but hidden from our token: it holds the key still.
    pub(super) async fn prove_over(&self, key: &Key, session: &str) -> Result<()> {
        match self.session_of(key).await? {
            Some(holder) if holder == session => Err(Error::PermissionDenied {
                reason: format!(
                    "{} hides the session that holds `{key}`, so it can't be told whether it is a TTL or a lock; \
                     the token needs `session:read`",
                    self.http.name()
                ),
                source: None,
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_known_by_their_names() {
        assert_eq!(["kvactor-ttl", "kvactor-lock"].map(Meaning::of), [Meaning::Ttl, Meaning::Lock]);
        assert_eq!(["", "Consul API Lock"].map(Meaning::of), [Meaning::Other; 2]);
    }
}
