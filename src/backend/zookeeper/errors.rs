//! What a failure of ZooKeeper or of its client library means to a caller.

use crate::error::Error;
use zookeeper_client::{Error as Failure, SessionState};

/// Codes of ZooKeeper that the client library doesn't know and that leave open whether the request was done: connection
/// loss between servers, and two kinds of timeout.
const UNSETTLED_CODES: [i32; 3] = [-4, -7, -122];

/// The error of a read that failed. It had no effect in any case.
pub(super) fn of_read(servers: &str, failure: Failure) -> Error {
    let error = refusal(servers, &failure).unwrap_or_else(|| {
        Error::unreachable(format!("the connection to {servers} was lost before it answered ({failure})"))
    });
    error.with_source(failure)
}

/// The error of a write that failed. It may have been applied, unless the server said no.
pub(super) fn of_write(servers: &str, failure: Failure) -> Error {
    let error = refusal(servers, &failure).unwrap_or_else(|| {
        Error::indeterminate(format!("the connection to {servers} was lost before it answered ({failure})"))
    });
    error.with_source(failure)
}

/// The error of a watch that can't be armed.
pub(super) fn of_watch(servers: &str, failure: Failure) -> Error {
    match failure {
        Failure::Unimplemented => Error::unsupported(format!("{servers} can't watch: it takes ZooKeeper 3.6 or newer")),
        failure => of_read(servers, failure),
    }
}

/// The error of an attempt to open a session.
pub(super) fn of_connect(servers: &str, failure: Failure) -> Error {
    let error = match &failure {
        Failure::NoHosts => Error::unreachable(format!(
            "no connection to ZooKeeper at {servers}: refused, unknown host, TLS on one side only, or certificates that \
             don't fit"
        )),
        Failure::Timeout => Error::unreachable(format!("no ZooKeeper server answered in time at {servers}")),
        Failure::BadArguments(reason) => Error::invalid_config("ZooKeeper connection", **reason),
        _ => return of_read(servers, failure),
    };
    error.with_source(failure)
}

/// The error of a call that can't be sent, as the session is in this state.
pub(super) fn of_state(servers: &str, state: SessionState) -> Error {
    match state {
        SessionState::AuthFailed => unauthenticated(servers),
        SessionState::Expired => Error::unreachable(format!("the ZooKeeper session with {servers} expired")),
        SessionState::Closed => Error::unreachable(format!("the ZooKeeper session with {servers} is closed")),
        SessionState::ConnectedReadOnly => Error::unreachable(format!("{servers} is without a quorum")),
        SessionState::Disconnected | SessionState::SyncConnected => {
            Error::unreachable(format!("the connection to ZooKeeper at {servers} is down"))
        }
    }
}

/// The error where the server certainly did not do as told; none where the answer was lost.
fn refusal(servers: &str, failure: &Failure) -> Option<Error> {
    Some(match failure {
        Failure::ConnectionLoss
        | Failure::Custom(_)
        | Failure::SessionExpired
        | Failure::ClientClosed
        | Failure::NoHosts
        | Failure::Timeout
        | Failure::RuntimeInconsistent
        | Failure::UnmarshalError { .. }
        | Failure::UnexpectedError(_) => return None,
        Failure::UnexpectedErrorCode(code) if UNSETTLED_CODES.contains(code) => return None,
        Failure::NoAuth => Error::PermissionDenied {
            reason: format!("an ACL at {servers} does not allow this; check the credentials and the znodes' ACLs"),
            source: None,
        },
        Failure::AuthFailed => unauthenticated(servers),
        Failure::NoChildrenForEphemerals => beneath_ttl_key(),
        Failure::SessionMoved | Failure::NotReadOnly | Failure::Throttled => {
            Error::unreachable(format!("{servers} turned the request away for now ({failure})"))
        }
        _ => Error::backend(format!("{servers} refused the request: {failure}")),
    })
}

pub(super) fn beneath_ttl_key() -> Error {
    Error::unsupported(
        "ZooKeeper holds no keys beneath a key with a TTL; choose another key, or put that one without a TTL",
    )
}

fn unauthenticated(servers: &str) -> Error {
    Error::Unauthenticated { reason: format!("{servers} does not accept the credentials"), source: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_answers_leave_writes_open_and_reads_repeatable() {
        let lost = [
            Failure::ConnectionLoss,
            Failure::SessionExpired,
            Failure::ClientClosed,
            Failure::UnexpectedError("junk".into()),
            Failure::UnexpectedErrorCode(-122),
        ];
        for failure in lost {
            assert!(of_write("h", failure.clone()).is_indeterminate(), "{failure}");
            assert!(of_read("h", failure.clone()).is_retryable(), "{failure}");
        }
    }

    #[test]
    fn refusals_are_certain() {
        assert!(of_write("h", Failure::Throttled).is_retryable());
        assert!(matches!(of_write("h", Failure::NoAuth), Error::PermissionDenied { source: Some(_), .. }));
        assert!(matches!(of_write("h", Failure::AuthFailed), Error::Unauthenticated { .. }));
        assert!(matches!(of_write("h", Failure::NoChildrenForEphemerals), Error::Unsupported { .. }));
        assert!(matches!(of_write("h", Failure::QuotaExceeded), Error::Backend { .. }));
        assert!(of_connect("h", Failure::NoHosts).is_retryable());
    }
}
