//! Writing one key: the two ways that Consul has for it, and what becomes of a TTL that hangs on the key.

use super::codec::{self, MAX_TXN_VALUE, Meta, Op, Refusal, encode_path, is_printable, nonce};
use super::errors::size_limit;
use super::gathered::{TooLarge, Write, Written, write_alone};
use super::http::{Effect, Request};
use super::read::Way;
use super::session::Meaning;
use super::{Consul, version};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::types::{Consistency, Version};
use awc::http::StatusCode;
use bytes::Bytes;

/// How often a lease tries to take a key that changes hands meanwhile. Each failure is another writer's success.
const TAKEOVERS: usize = 8;

/// On what condition a value is written.
#[derive(Clone, Copy)]
pub(super) enum Mode<'a> {
    /// On none.
    Set,
    /// If the version is this one; if the key is absent, where it is 0.
    Cas(u64),
    /// If no session holds the key, which this one does then.
    Lock(&'a str),
}

impl Mode<'_> {
    fn query(&self, flags: u64) -> String {
        match self {
            Mode::Set => format!("flags={flags}"),
            Mode::Cas(index) => format!("flags={flags}&cas={index}"),
            Mode::Lock(session) => format!("flags={flags}&acquire={}", codec::encode(session)),
        }
    }
}

/// What became of a write.
pub(super) enum Outcome {
    /// The value is there. A deletion tells what was there.
    Written(Placed),
    /// The condition didn't hold; the server's words, if it has any.
    Refused(Vec<Refusal>),
}

/// A value that was written.
pub(super) struct Placed {
    pub(super) version: Version,
    /// The session that holds the key. Consul lets anybody write what a session holds, and the session stays.
    pub(super) session: Option<String>,
}

impl From<&Meta<'_>> for Placed {
    fn from(meta: &Meta<'_>) -> Self {
        Placed {
            version: version(meta.index),
            session: meta.session.as_ref().map(|session| session.0.to_string()).filter(|session| !session.is_empty()),
        }
    }
}

impl Consul {
    /// Writes `value` by a transaction, which answers with the version, or as it is, where it is too large for one.
    pub(super) async fn write(&self, key: &Key, value: &Bytes, mode: Mode<'_>) -> Result<Outcome> {
        self.require_way(key, value)?;
        if value.len() > MAX_TXN_VALUE {
            return Box::pin(self.write_large(key, value, mode)).await;
        }
        match self.write_small(self.namespace.path(key), value, mode).await? {
            Ok(outcome) => Ok(outcome),
            Err(TooLarge(_)) => Box::pin(self.write_large(key, value, mode)).await,
        }
    }

    /// Writes by a transaction.
    async fn write_small(&self, path: String, value: &Bytes, mode: Mode<'_>) -> Result<Written> {
        let index = match mode {
            Mode::Set => None,
            Mode::Cas(index) => Some(index),
            Mode::Lock(session) => {
                return Box::pin(write_alone(&self.http, &[Op::Lock { path: &path, value, session }])).await;
            }
        };
        self.together.write(Write::put(path, value, index)).await
    }

    /// Deletes the key, if it is there; if it is of a version, where there is an index. `false`: it wasn't.
    pub(super) async fn erase(&self, key: &Key, index: Option<u64>) -> Result<bool> {
        match self.together.write(Write::delete(self.namespace.path(key), index)).await? {
            Ok(outcome) => Ok(matches!(outcome, Outcome::Written(_))),
            Err(TooLarge(said)) => Err(Error::backend(said)),
        }
    }

    /// Fails where the value is too large for a transaction and the key can't be in a URL: there is no other way.
    pub(super) fn require_way(&self, key: &Key, value: &Bytes) -> Result<()> {
        match value.len() <= MAX_TXN_VALUE || is_printable(&self.namespace.path(key)) {
            true => Ok(()),
            false => Err(unprintable(key, value.len())),
        }
    }

    /// What the last operation of a transaction wrote; none where an operation failed.
    async fn run_to_write(&self, ops: &[Op<'_>]) -> Result<Option<Placed>> {
        match self.run(ops, Consistency::Linearizable).await? {
            Some(placed) => placed.into_iter().next_back().map(Some).ok_or_else(|| self.http.too_few_results()),
            None => Ok(None),
        }
    }

    /// Writes `value` as the body of a request, which isn't blown up by base64 but is answered only by true or false:
    /// the flags tell afterwards whether what is there is this write.
    async fn write_large(&self, key: &Key, value: &Bytes, mode: Mode<'_>) -> Result<Outcome> {
        let flags = nonce();
        let plain = self.namespace.path(key);
        let path = format!("kv/{}", encode_path(&plain));
        let mut request = Request::put(&path, value.clone(), Effect::Write);
        request.query = mode.query(flags);
        let answer = self.http.send(request).await?;
        match (answer.status, answer.body.trim_ascii()) {
            (StatusCode::OK, b"true") => self.locate(&path, flags).await.map(Outcome::Written).map_err(after_write),
            (StatusCode::OK, b"false") => Ok(Outcome::Refused(Vec::new())),
            (StatusCode::PAYLOAD_TOO_LARGE, said) => match size_limit(&String::from_utf8_lossy(said)) {
                Some(limit) => Err(Error::ValueTooLarge { key: (**key).into(), size: value.len(), limit }),
                None => Err(self.http.failure(&answer)),
            },
            // An agent knows fewer characters than we do if it is older.
            (StatusCode::BAD_REQUEST, b"") if Way::to(&plain) == Way::Txn => Err(unprintable(key, value.len())),
            _ => Err(self.http.failure(&answer)),
        }
    }

    /// The version of the write with these flags. If the key was written again since, it can't be told any more, nor
    /// can it match any more: it is a version then that no read returns and that no write accepts.
    async fn locate(&self, path: &str, flags: u64) -> Result<Placed> {
        let overwritten = |at: u64| Placed {
            version: Version::with_counter(crate::BackendKind::Consul, at.saturating_sub(1), flags | 1, 0),
            session: None,
        };
        // A 404 has the index of the deletion, or of something later.
        let answer = self.http.send(Request::get(path, "consistent")).await?;
        match (answer.status, answer.index) {
            (StatusCode::NOT_FOUND, Some(index)) => return Ok(overwritten(index)),
            (StatusCode::OK, _) => {}
            _ => return Err(self.http.failure(&answer)),
        }
        match self.http.json::<Vec<Meta<'_>>>(&answer)?.first() {
            Some(meta) if meta.flags == flags => Ok(meta.into()),
            Some(meta) => Ok(overwritten(meta.index)),
            None => Ok(overwritten(0)),
        }
    }

    /// Makes the value that was just written permanent and returns its final version. If this is dropped or fails
    /// halfway, the key is written and still goes away with its TTL, which is as indeterminate as a write can be.
    pub(super) async fn settle(&self, key: &Key, value: &Bytes, placed: Placed) -> Result<Version> {
        match placed.session {
            None => Ok(placed.version),
            // Boxed, as what is rare takes room in the state of every write otherwise.
            Some(session) => Box::pin(self.outlive(key, value, placed.version, &session)).await.map_err(after_write),
        }
    }

    /// Lets the value of `written` outlive the TTL that `session` stands for. A lock is left alone: plain writes have
    /// nothing to do with locks in Consul.
    ///
    /// Every step has a condition: what others write meanwhile stays, and `written` is returned then.
    async fn outlive(&self, key: &Key, value: &Bytes, written: Version, session: &str) -> Result<Version> {
        match self.stands_for(session).await? {
            Meaning::Lock | Meaning::Other => return Ok(written),
            Meaning::Over => return self.after_end(key, value, written, session).await,
            Meaning::Ttl => {}
        }
        if let Some(version) = self.detach(key, value, written, session).await? {
            // Its owner learns in this way that there is nothing to renew. If it fails, the session ends by itself.
            let _ = self.destroy(session).await;
            return Ok(version);
        }
        match self.stands_for(session).await? {
            Meaning::Over => self.after_end(key, value, written, session).await,
            Meaning::Ttl | Meaning::Lock | Meaning::Other => Ok(written),
        }
    }

    /// Takes the key from `session`, if it still has the version `written`.
    async fn detach(&self, key: &Key, value: &Bytes, written: Version, session: &str) -> Result<Option<Version>> {
        let path = self.namespace.path(key);
        let check = Op::CheckIndex { path: &path, index: written.index() };
        if value.len() <= MAX_TXN_VALUE {
            let placed = self.run_to_write(&[check, Op::Unlock { path: &path, value, session }]).await?;
            return Ok(placed.map(|placed| placed.version));
        }
        // A condition on the version and so large a value don't go together, but for the condition of absence.
        match self.run(&[check, Op::Delete { path: &path }], Consistency::Linearizable).await? {
            Some(_) => self.put_back(key, value, written).await.map(Some),
            None => Ok(None),
        }
    }

    /// Writes again what the end of `session` took away right after it was written.
    async fn after_end(&self, key: &Key, value: &Bytes, written: Version, session: &str) -> Result<Version> {
        self.prove_over(key, session).await?;
        self.put_back(key, value, written).await
    }

    /// Creates the key again, unless somebody else did.
    async fn put_back(&self, key: &Key, value: &Bytes, written: Version) -> Result<Version> {
        match self.write(key, value, Mode::Cas(0)).await? {
            Outcome::Written(placed) => Ok(placed.version),
            Outcome::Refused(_) => Ok(written),
        }
    }

    /// Writes a value that `session` holds, also where another TTL hangs on the key.
    pub(super) async fn write_held(&self, key: &Key, value: &Bytes, session: &str) -> Result<Version> {
        for _ in 0..TAKEOVERS {
            let refusals = match self.write(key, value, Mode::Lock(session)).await? {
                Outcome::Written(placed) => return Ok(placed.version),
                Outcome::Refused(refusals) => refusals,
            };
            if refusals.iter().any(Refusal::is_lock_delay) {
                return Err(Error::unsupported(format!(
                    "`{key}` was a lock whose holder was lost, and Consul lets nobody take it, not even for a TTL, \
                     until the lock-delay is over"
                )));
            }
            let Some(other) = self.session_of(key).await? else { continue };
            if let Some(version) = self.take_over(key, value, session, &other).await? {
                return Ok(version);
            }
        }
        Err(Error::unreachable(format!(
            "`{key}` can't be taken for a TTL: it changes hands all the time, or a lock-delay holds it"
        )))
    }

    /// Writes a value that `session` holds in place of `other`, if that stands for a TTL. None where `other` has let
    /// go.
    async fn take_over(&self, key: &Key, value: &Bytes, session: &str, other: &str) -> Result<Option<Version>> {
        match self.stands_for(other).await? {
            Meaning::Over => return self.prove_over(key, other).await.map(|()| None),
            Meaning::Ttl => {}
            Meaning::Lock | Meaning::Other => {
                return Err(Error::unsupported(format!(
                    "`{key}` is held by a lock, and Consul knows one holder of a key: it can't have a TTL as well"
                )));
            }
        }
        let version = match value.len() <= MAX_TXN_VALUE {
            true => self.swap(key, value, session, other).await?,
            false => self.swap_large(key, value, session, other).await?,
        };
        if version.is_some() {
            // Its owner learns in this way that there is nothing to renew. If it fails, the session ends by itself.
            let _ = self.destroy(other).await;
        }
        Ok(version)
    }

    /// Writes a value that `session` holds, if `other` holds the key.
    async fn swap(&self, key: &Key, value: &Bytes, session: &str, other: &str) -> Result<Option<Version>> {
        let path = self.namespace.path(key);
        // What the first of the two writes is never seen, as nothing comes between them.
        let letting_go = Op::Unlock { path: &path, value: &Bytes::new(), session: other };
        let placed = self.run_to_write(&[letting_go, Op::Lock { path: &path, value, session }]).await?;
        Ok(placed.map(|placed| placed.version))
    }

    /// The same for a value that is too large for a transaction: the key goes away to be locked anew.
    async fn swap_large(&self, key: &Key, value: &Bytes, session: &str, other: &str) -> Result<Option<Version>> {
        let path = self.namespace.path(key);
        let ops = [Op::CheckSession { path: &path, session: other }, Op::Delete { path: &path }];
        if self.run(&ops, Consistency::Linearizable).await?.is_none() {
            return Ok(None);
        }
        match self.write(key, value, Mode::Lock(session)).await.map_err(after_write)? {
            Outcome::Written(placed) => Ok(Some(placed.version)),
            Outcome::Refused(_) => Ok(None),
        }
    }
}

/// Nothing was written: the key can't be in a URL, nor the value in a transaction.
fn unprintable(key: &Key, size: usize) -> Error {
    Error::unsupported(format!(
        "`{}` has characters that Consul takes only in transactions, whose values have at most {MAX_TXN_VALUE} bytes, \
         and this one has {size}; write less, or under a key of printable characters",
        key.escape_debug()
    ))
}

/// A failure after the value was written: no other kind of error leaves room for that.
fn after_write(error: Error) -> Error {
    match error {
        Error::Unreachable { reason, source }
        | Error::PermissionDenied { reason, source }
        | Error::Unauthenticated { reason, source }
        | Error::Backend { reason, source } => Error::Indeterminate { reason, source },
        Error::Indeterminate { .. } => error,
        error => Error::indeterminate(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_of_large_values() {
        assert_eq!(Mode::Set.query(7), "flags=7");
        assert_eq!(Mode::Cas(3).query(7), "flags=7&cas=3");
        assert_eq!(Mode::Lock("a&b").query(7), "flags=7&acquire=a%26b");
    }

    #[test]
    fn what_cannot_be_written_says_why() {
        let reason = unprintable(&Key::parse("a\u{200b}").unwrap(), 400_000).to_string();
        assert!(reason.contains(r"`a\u{200b}`") && reason.contains("400000") && reason.contains("387072"), "{reason}");
    }

    #[test]
    fn every_failure_after_a_write_is_indeterminate() {
        assert!(after_write(Error::unreachable("x")).is_indeterminate());
        assert!(after_write(Error::backend("x")).is_indeterminate());
        assert!(after_write(Error::unsupported("x")).is_indeterminate());
    }
}
