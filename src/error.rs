//! [`Error`]: everything that can go wrong, alike on every backend.

use std::sync::Arc;
use std::time::Duration;

/// A `Result` whose error is kvactor's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The error beneath an [`Error`]: the backend's own, shared because one failure may be told to many callers.
pub type Source = Arc<dyn std::error::Error + Send + Sync>;

/// Everything that a call can fail with, the same on each backend.
///
/// The backend's own error, where there is one, is the [`source`](std::error::Error::source). Two questions that callers
/// ask of an error have methods: [`is_retryable`](Error::is_retryable) and [`is_indeterminate`](Error::is_indeterminate).
///
/// ```
/// use kvactor::{Error, Store};
///
/// # async fn doc(store: Store) -> kvactor::Result<()> {
/// match store.get("jobs/next").await {
///     Ok(pair) => println!("{:?}", pair.value),
///     Err(Error::KeyNotFound { .. }) => println!("nothing to do"),
///     Err(error) => return Err(error),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The key, or the directory, does not exist.
    #[error("`{key}` does not exist")]
    KeyNotFound {
        /// The key or directory that was asked for.
        key: Arc<str>,
    },
    /// The key was expected to be absent and is there.
    #[error("`{key}` exists already")]
    KeyExists {
        /// The key that is there.
        key: Arc<str>,
    },
    /// The key is there, in another version than the expected one. Read it again and decide anew.
    #[error("`{key}` was modified since the version expected; read it again")]
    KeyModified {
        /// The key whose version differs.
        key: Arc<str>,
    },
    /// The key breaks a rule for keys. Nothing was sent.
    #[error("invalid key {key:?}: {reason}")]
    InvalidKey {
        /// The key as it was given, shortened where it is very long.
        key: Arc<str>,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// The value is larger than the store's limit. Nothing was sent.
    #[error(
        "the value for `{key}` has {size} bytes, more than the limit of {limit}; `max_value_size` raises it up to the backend's own"
    )]
    ValueTooLarge {
        /// The key that was to be written.
        key: Arc<str>,
        /// Size of the value in bytes.
        size: usize,
        /// Largest size allowed, in bytes.
        limit: usize,
    },
    /// The URL, a parameter or a setting is wrong.
    #[error("invalid {part}: {reason}")]
    InvalidConfig {
        /// The offending part of the URL or the name of the setting.
        part: String,
        /// What is wrong with it and what is expected.
        reason: String,
    },
    /// The call is valid, but this backend, this build or this situation can't do it.
    #[error("not supported: {reason}")]
    Unsupported {
        /// What can't be done, where, and what to do instead.
        reason: String,
    },
    /// The servers could not be reached, and the call certainly had no effect.
    #[error("the store is unreachable: {reason}")]
    Unreachable {
        /// What was tried and how it failed.
        reason: String,
        /// The backend's own error.
        #[source]
        source: Option<Source>,
    },
    /// A read got no answer before its deadline, or a call of any kind was still waiting for its turn.
    #[error("no answer within {after:?}")]
    Timeout {
        /// The time allowed for the call.
        after: Duration,
    },
    /// A write may or may not have been applied: it was on its way when the answer was lost.
    ///
    /// It is never repeated by itself, as somebody else may have written in between. Read the state and decide.
    #[error("the write may or may not have been applied: {reason}")]
    Indeterminate {
        /// How the answer was lost.
        reason: String,
        /// The backend's own error.
        #[source]
        source: Option<Source>,
    },
    /// The credentials are good but don't allow this call.
    #[error("permission denied: {reason}")]
    PermissionDenied {
        /// What the server says.
        reason: String,
        /// The backend's own error.
        #[source]
        source: Option<Source>,
    },
    /// The credentials are missing, wrong or no longer valid.
    #[error("not authenticated: {reason}")]
    Unauthenticated {
        /// What the server says.
        reason: String,
        /// The backend's own error.
        #[source]
        source: Option<Source>,
    },
    /// Another holds the lock, and the call was not to wait for it, or not for longer.
    #[error("the lock `{key}` is held: {reason}")]
    LockHeld {
        /// The lock's key.
        key: Arc<str>,
        /// Who holds it, or how long it was waited for.
        reason: String,
    },
    /// The lock is not, or no longer, held by this very acquisition. Nothing was written.
    #[error("the lock `{key}` is lost; nothing was written")]
    LockLost {
        /// The lock's key.
        key: Arc<str>,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
    /// The backend failed in a way that has no kind of its own here.
    #[error("the backend failed: {reason}")]
    Backend {
        /// What happened.
        reason: String,
        /// The backend's own error.
        #[source]
        source: Option<Source>,
    },
}

impl Error {
    /// Whether the call certainly had no effect and the same call may succeed later: [`Unreachable`](Error::Unreachable)
    /// and [`Timeout`](Error::Timeout).
    ///
    /// Such a call was already retried by the store until its deadline.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::Timeout { .. })
    }

    /// Whether the call may or may not have been applied.
    pub fn is_indeterminate(&self) -> bool {
        matches!(self, Error::Indeterminate { .. })
    }

    /// [`Error::KeyNotFound`] for `key`, which may be a [`Key`](crate::Key), a [`Dir`](crate::Dir) or a string.
    pub fn key_not_found(key: impl AsRef<str>) -> Self {
        Error::KeyNotFound { key: key.as_ref().into() }
    }

    /// [`Error::KeyExists`] for `key`.
    pub fn key_exists(key: impl AsRef<str>) -> Self {
        Error::KeyExists { key: key.as_ref().into() }
    }

    /// [`Error::KeyModified`] for `key`.
    pub fn key_modified(key: impl AsRef<str>) -> Self {
        Error::KeyModified { key: key.as_ref().into() }
    }

    /// [`Error::LockHeld`] for `key`.
    pub fn lock_held(key: impl AsRef<str>, reason: impl Into<String>) -> Self {
        Error::LockHeld { key: key.as_ref().into(), reason: reason.into() }
    }

    /// [`Error::LockLost`] for `key`.
    pub fn lock_lost(key: impl AsRef<str>) -> Self {
        Error::LockLost { key: key.as_ref().into() }
    }

    /// [`Error::InvalidConfig`], naming the offending part.
    pub fn invalid_config(part: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::InvalidConfig { part: part.into(), reason: reason.into() }
    }

    /// [`Error::Unsupported`], with what to do instead.
    pub fn unsupported(reason: impl Into<String>) -> Self {
        Error::Unsupported { reason: reason.into() }
    }

    /// [`Error::Unreachable`] without a source: a driver's word that nothing was sent.
    pub fn unreachable(reason: impl Into<String>) -> Self {
        Error::Unreachable { reason: reason.into(), source: None }
    }

    /// [`Error::Indeterminate`] without a source: a driver's word that a write may have been sent.
    pub fn indeterminate(reason: impl Into<String>) -> Self {
        Error::Indeterminate { reason: reason.into(), source: None }
    }

    /// [`Error::Backend`] without a source.
    pub fn backend(reason: impl Into<String>) -> Self {
        Error::Backend { reason: reason.into(), source: None }
    }

    /// Adds the backend's own error to a kind that carries one; the other kinds are returned as they are.
    #[must_use]
    pub fn with_source(mut self, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        if let Error::Unreachable { source, .. }
        | Error::Indeterminate { source, .. }
        | Error::PermissionDenied { source, .. }
        | Error::Unauthenticated { source, .. }
        | Error::Backend { source, .. } = &mut self
        {
            *source = Some(Arc::new(error));
        }
        self
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn the_source_is_the_backends_own_error() {
        let io = std::io::Error::other("reset by peer");
        let error = Error::indeterminate("the connection broke").with_source(io);
        assert!(error.is_indeterminate() && !error.is_retryable());
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("reset by peer"));
    }

    #[test]
    fn errors_stay_small_enough_to_return() {
        assert!(size_of::<Error>() <= 56, "{}", size_of::<Error>());
    }
}
