//! Sessions: what keys with a TTL and locks hang on.

use super::Consul;
use super::codec::encode;
use super::http::{Effect, Request};
use crate::error::{Error, Result};
use crate::key::Key;
use awc::http::StatusCode;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::time::Duration;

/// The body of a request for a session at whose end the keys that it holds go away.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NewSession {
    name: &'static str,
    behavior: &'static str,
    #[serde(rename = "TTL")]
    ttl: String,
    /// For how long nobody can lock what the session held at its end. With its unit: the server takes small numbers for seconds.
    lock_delay: String,
    /// No checks, so that the session lives by its TTL alone and not by the agent's health. Newer servers read the
    /// second.
    checks: [&'static str; 0],
    node_checks: [&'static str; 0],
}

/// The name of the sessions that stand for a TTL, and by which any kvactor store tells them from locks.
const TTL_SESSION: &str = "kvactor-ttl";
/// The name of the sessions that hold locks.
const LOCK_SESSION: &str = "kvactor-lock";

impl NewSession {
    /// A session for a TTL. Nobody waits after its end.
    pub(super) fn ttl(ttl: Duration) -> Self {
        NewSession::new(TTL_SESSION, ttl, Duration::ZERO)
    }

    /// A session for locks.
    pub(super) fn lock(ttl: Duration, delay: Duration) -> Self {
        NewSession::new(LOCK_SESSION, ttl, delay)
    }

    /// A session that the server keeps for `ttl`, whole seconds, after it was last renewed.
    fn new(name: &'static str, ttl: Duration, lock_delay: Duration) -> Self {
        NewSession {
            name,
            behavior: "delete",
            ttl: format!("{}s", ttl.as_secs()),
            lock_delay: format!("{}ms", lock_delay.as_millis()),
            checks: [],
            node_checks: [],
        }
    }
}

/// The answer to a request for a session.
#[derive(Deserialize)]
struct CreatedSession {
    #[serde(rename = "ID")]
    id: String,
}

/// What matters of a session.
#[derive(Deserialize)]
struct SessionInfo<'a> {
    #[serde(rename = "Name", borrow)]
    name: Cow<'a, str>,
}

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
    fn sessions_say_how_long_they_last() {
        let session = NewSession::lock(Duration::from_secs(30), Duration::from_millis(1_500));
        let json = serde_json::to_value(session).unwrap();
        assert_eq!((&json["TTL"], &json["LockDelay"]), (&"30s".into(), &"1500ms".into()));
        assert_eq!((&json["Name"], &json["Checks"]), (&LOCK_SESSION.into(), &serde_json::json!([])));
        assert_eq!(serde_json::to_value(NewSession::ttl(Duration::from_secs(10))).unwrap()["LockDelay"], "0ms");
    }

    #[test]
    fn sessions_are_known_by_their_names() {
        assert_eq!(["kvactor-ttl", "kvactor-lock"].map(Meaning::of), [Meaning::Ttl, Meaning::Lock]);
        assert_eq!(["", "Consul API Lock"].map(Meaning::of), [Meaning::Other; 2]);
    }
}
