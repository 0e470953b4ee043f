//! What an error of etcd, or of the connection to it, says about the call: did it have an effect, and is it worth another try.

use crate::error::Error;
use etcd_client::Error as ClientError;
use std::error::Error as StdError;
use tonic::{Code, ConnectError, Status};

/// Whether a call changes anything that another attempt could change again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing: a lost answer is no harm.
    Read,
    /// Something: a lost answer leaves the outcome open.
    Write,
}

/// What happened to a call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It certainly had no effect, and may succeed later.
    NotApplied,
    /// It may have been applied; the answer was lost, or says nothing definite.
    Lost,
    /// The server doesn't know who we are.
    Unauthenticated,
    /// The server knows who we are and says no.
    Denied,
    /// The server won't take so large a request.
    TooLarge,
    /// The server's database has reached its quota.
    NoSpace,
    /// The server says no, and will say so again.
    Refused,
}

/// Answers that etcd gives before it proposes a change to the cluster, or instead of applying it, for a reason that passes.
/// Timeouts, `leader changed` and `server stopped` are not among them: the proposal may be on its way by then.
const NOT_APPLIED: [&str; 8] = [
    // Of the interceptor that `hasleader` asks for, which comes before the call itself.
    "etcdserver: no leader",
    "etcdserver: too many requests",
    "etcdserver: rpc not supported for learner",
    "raft proposal dropped",
    // A write with a lease is checked against the lease when it is applied.
    "etcdserver: requested lease not found",
    // Only reads ask for a revision.
    "required revision has been compacted",
    "required revision is a future revision",
    // Of tonic, where its connection's task is gone.
    "Service was not ready",
];

/// Answers by which etcd says that it doesn't know us, though their code says "invalid argument".
const UNAUTHENTICATED: [&str; 3] =
    [USER_EMPTY, OLD_AUTH_REVISION, "authentication failed, invalid user ID or password"];
const USER_EMPTY: &str = "user name is empty";
const OLD_AUTH_REVISION: &str = "revision of auth store is old";

/// The error that a call fails with, for a failure of the client.
pub(super) fn error(failure: ClientError, effect: Effect, server: &str) -> Error {
    match failure {
        ClientError::GRpcStatus(status) => of_status(status, effect, server),
        ClientError::InvalidArgs(_) | ClientError::InvalidUri(_) | ClientError::InvalidMetadataValue(_) => {
            Error::backend(format!("etcd at {server}: {failure}")).with_source(failure)
        }
        _ => lost(effect, format!("etcd at {server}: {failure}")).with_source(failure),
    }
}

/// The error of a call whose answer makes no sense: it was answered, so it may have been applied.
pub(super) fn senseless(effect: Effect, server: &str) -> Error {
    lost(effect, format!("{server} answers, but not as an etcd server does"))
}

/// The failure of a call that got no answer, as another leader came in between; etcd gives it to some calls by itself.
pub(super) fn leader_changed() -> ClientError {
    ClientError::GRpcStatus(Status::unavailable("etcdserver: leader changed, and no answer came"))
}

/// Whether the failure says that our token is no good, which etcd finds out before it changes anything.
pub(super) fn wants_new_token(failure: &ClientError) -> bool {
    let ClientError::GRpcStatus(status) = failure else { return false };
    match (status.source(), status.code()) {
        (None, Code::Unauthenticated) => true,
        (None, Code::InvalidArgument) => contains_any(status, &[USER_EMPTY, OLD_AUTH_REVISION]),
        _ => false,
    }
}

/// Whether the failure says that the server asks nobody for a password.
pub(super) fn is_auth_disabled(failure: &ClientError) -> bool {
    matches!(failure, ClientError::GRpcStatus(status)
        if status.source().is_none() && status.message().contains("authentication is not enabled"))
}

/// Whether the failure says that the server hasn't got the revision asked for: it has forgotten it, or never came so far.
pub(super) fn is_revision_missing(failure: &ClientError) -> bool {
    matches!(failure, ClientError::GRpcStatus(status) if status.source().is_none() && status.code() == Code::OutOfRange)
}

/// The failure of a watch that the server ended or didn't begin, of which it tells in words only.
pub(super) fn cancelled(reason: &str) -> ClientError {
    let words = reason.rsplit_once("desc = ").map_or(reason, |(_, words)| words);
    let code = match words {
        _ if words.contains("permission denied") => Code::PermissionDenied,
        _ if words.contains("invalid auth token") => Code::Unauthenticated,
        _ if UNAUTHENTICATED.iter().any(|text| words.contains(text)) => Code::InvalidArgument,
        _ => Code::Unavailable,
    };
    let words = if words.is_empty() { "the watch was cancelled" } else { words };
    ClientError::GRpcStatus(Status::new(code, words))
}

/// Whether the failure says that a lease is over.
pub(super) fn is_lease_gone(failure: &ClientError) -> bool {
    match failure {
        ClientError::GRpcStatus(status) => status.source().is_none() && status.code() == Code::NotFound,
        // The client's own words for an answer with no time left.
        ClientError::LeaseKeepAliveError(reason) => reason.contains("lease not found"),
        _ => false,
    }
}

/// Whether the error says that a connection was made, and broke.
pub(super) fn is_broken_connection(error: &Error) -> bool {
    let Error::Unreachable { source: Some(source), .. } = error else { return false };
    let status = source.downcast_ref::<Status>();
    let source = status.and_then(|status| status.source());
    source.is_some_and(|source| !causes(source).any(|cause| cause.is::<ConnectError>()))
}

fn of_status(status: Status, effect: Effect, server: &str) -> Error {
    let reason = format!("etcd at {server}: {}", describe(&status));
    let error = match verdict(&status) {
        Verdict::NotApplied => Error::unreachable(reason),
        Verdict::Lost => lost(effect, reason),
        Verdict::Unauthenticated => {
            Error::Unauthenticated { reason: format!("{reason}; check the user and the password"), source: None }
        }
        Verdict::Denied => {
            Error::PermissionDenied { reason: format!("{reason}; the user's roles don't allow it"), source: None }
        }
        Verdict::TooLarge => {
            Error::backend(format!("{reason}; write less at once, or start etcd with a larger --max-request-bytes"))
        }
        Verdict::NoSpace => Error::backend(format!(
            "{reason}; compact and defragment etcd or raise its --quota-backend-bytes, then disarm the alarm"
        )),
        Verdict::Refused => Error::backend(reason),
    };
    error.with_source(status)
}

fn lost(effect: Effect, reason: String) -> Error {
    match effect {
        Effect::Read => Error::unreachable(reason),
        Effect::Write => Error::indeterminate(reason),
    }
}

fn verdict(status: &Status) -> Verdict {
    // The server's own statuses have no source. The others are tonic's view of a broken connection, and their codes, which
    // may look like a refusal, say nothing about the call.
    if let Some(source) = status.source() {
        return if was_never_sent(source) { Verdict::NotApplied } else { Verdict::Lost };
    }
    if contains_any(status, &NOT_APPLIED) {
        return Verdict::NotApplied;
    }
    match status.code() {
        Code::Unauthenticated => Verdict::Unauthenticated,
        Code::PermissionDenied => Verdict::Denied,
        Code::InvalidArgument if contains_any(status, &UNAUTHENTICATED) => Verdict::Unauthenticated,
        Code::InvalidArgument | Code::ResourceExhausted
            if contains_any(status, &["request is too large", "message larger than max"]) =>
        {
            Verdict::TooLarge
        }
        Code::ResourceExhausted if contains_any(status, &["database space exceeded"]) => Verdict::NoSpace,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::ResourceExhausted
        | Code::DataLoss => Verdict::Refused,
        _ => Verdict::Lost,
    }
}

fn contains_any(status: &Status, texts: &[&str]) -> bool {
    texts.iter().any(|text| status.message().contains(text))
}

/// Whether the connection failed before the request was written to it: it couldn't be made at all, or was found closed.
fn was_never_sent(error: &(dyn StdError + 'static)) -> bool {
    causes(error).any(|cause| {
        cause.is::<ConnectError>() || cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
    })
}

fn causes<'e>(error: &'e (dyn StdError + 'static)) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| StdError::source(*error))
}

/// The status in words: its message, and those of its causes that add to it.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    for cause in status.source().into_iter().flat_map(causes).map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    if text.is_empty() { status.code().to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn of(status: Status, effect: Effect) -> Error {
        error(ClientError::GRpcStatus(status), effect, "h:1")
    }

    fn refused_connection() -> Status {
        let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "refused");
        Status::from_error(Box::new(ConnectError(refused.into())))
    }

    #[test]
    fn a_connection_that_was_never_made_had_no_effect() {
        assert!(of(refused_connection(), Effect::Write).is_retryable());
    }

    #[test]
    fn a_broken_connection_leaves_a_write_open_whatever_its_code() {
        let broken = || Status::from_error(Box::new(io::Error::from(io::ErrorKind::ConnectionReset)));
        assert!(of(broken(), Effect::Write).is_indeterminate());
        assert!(of(broken(), Effect::Read).is_retryable());
        let mut refusing = Status::permission_denied("a reset stream can look like this");
        refusing.set_source(std::sync::Arc::new(io::Error::other("reset")));
        assert!(of(refusing, Effect::Write).is_indeterminate());
    }

    #[test]
    fn only_what_etcd_says_before_a_proposal_is_certain() {
        for certain in ["etcdserver: no leader", "etcdserver: too many requests"] {
            assert!(of(Status::unavailable(certain), Effect::Write).is_retryable(), "{certain}");
        }
        for open in ["etcdserver: request timed out", "etcdserver: leader changed", "etcdserver: server stopped"] {
            assert!(of(Status::unavailable(open), Effect::Write).is_indeterminate(), "{open}");
            assert!(of(Status::unavailable(open), Effect::Read).is_retryable(), "{open}");
        }
        for code in [Code::Unknown, Code::Internal, Code::DeadlineExceeded, Code::Cancelled, Code::Aborted] {
            assert!(of(Status::new(code, "?"), Effect::Write).is_indeterminate(), "{code}");
        }
    }

    #[test]
    fn a_write_without_an_answer_is_open_when_the_leader_changed() {
        assert!(error(leader_changed(), Effect::Write, "h:1").is_indeterminate());
        assert!(error(leader_changed(), Effect::Read, "h:1").is_retryable());
    }

    #[test]
    fn refusals_are_told_apart() {
        let failed = Status::invalid_argument("etcdserver: authentication failed, invalid user ID or password");
        assert!(matches!(of(failed, Effect::Write), Error::Unauthenticated { .. }));
        assert!(matches!(of(Status::permission_denied("no"), Effect::Write), Error::PermissionDenied { .. }));
        let full = of(Status::resource_exhausted("etcdserver: mvcc: database space exceeded"), Effect::Write);
        assert!(matches!(&full, Error::Backend { reason, .. } if reason.contains("--quota-backend-bytes")), "{full}");
        let large = of(Status::invalid_argument("etcdserver: request is too large"), Effect::Write);
        assert!(matches!(&large, Error::Backend { reason, .. } if reason.contains("--max-request-bytes")), "{large}");
    }

    #[test]
    fn a_token_is_renewed_only_where_etcd_says_so() {
        let renew = |status| wants_new_token(&ClientError::GRpcStatus(status));
        assert!(renew(Status::unauthenticated("etcdserver: invalid auth token")));
        assert!(renew(Status::invalid_argument("etcdserver: revision of auth store is old")));
        assert!(!renew(Status::invalid_argument("etcdserver: duplicate key given in txn request")));
        assert!(!renew(Status::permission_denied("etcdserver: permission denied")));
    }

    #[test]
    fn a_cancelled_watch_says_why_in_words() {
        let of = |reason| error(cancelled(reason), Effect::Read, "h:1");
        let denied = of("rpc error: code = PermissionDenied desc = etcdserver: permission denied");
        assert!(matches!(denied, Error::PermissionDenied { .. }), "{denied}");
        for token in ["etcdserver: invalid auth token", "etcdserver: user name is empty", OLD_AUTH_REVISION] {
            assert!(matches!(of(token), Error::Unauthenticated { .. }), "{token}");
        }
        for passing in ["", "etcdserver: no leader", "mvcc: watcher range is empty"] {
            assert!(of(passing).is_retryable(), "{passing}");
        }
    }

    #[test]
    fn reasons_name_the_server_and_the_cause() {
        let text = of(refused_connection(), Effect::Write).to_string();
        assert!(text.contains("h:1") && text.contains("refused"), "{text}");
    }
}
