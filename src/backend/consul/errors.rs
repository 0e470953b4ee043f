//! What an answer that isn't the expected one means to a caller.

use super::http::Effect;
use crate::error::Error;
use awc::http::StatusCode;

/// The request may have been carried out, and nobody knows.
pub(super) fn lost(effect: Effect, reason: String) -> Error {
    match effect {
        Effect::Repeatable => Error::unreachable(reason),
        Effect::Write => Error::indeterminate(reason),
    }
}

/// A failure of a write that may be repeated, though the request doesn't look it.
pub(super) fn repeatable(error: Error) -> Error {
    match error {
        Error::Indeterminate { reason, source } => Error::Unreachable { reason, source },
        error => error,
    }
}

fn is_permission(said: &str) -> bool {
    said.contains("ermission denied")
}

/// What a status other than the expected one means.
pub(super) fn failure(name: &str, status: StatusCode, said: &str, effect: Effect) -> Error {
    let reason = match said {
        "" => format!("{name} answered {status}"),
        said => format!("{name} answered {status}: {said}"),
    };
    match status.as_u16() {
        401 => Error::Unauthenticated { reason, source: None },
        403 if said.contains("ACL not found") => Error::Unauthenticated { reason, source: None },
        403 => Error::PermissionDenied { reason, source: None },
        500 if is_permission(said) => Error::PermissionDenied { reason, source: None },
        429 => Error::unreachable(format!("{reason}; the agent limits connections or requests, see its `limits`")),
        500 if is_before_any_effect(said) => Error::unreachable(reason),
        500 if effect == Effect::Repeatable && !is_passing(said) => Error::backend(reason),
        500..=599 => lost(effect, reason),
        400 | 405 | 413 => Error::backend(reason),
        _ => lost(effect, format!("{reason}, which Consul doesn't do here; is it a Consul agent?")),
    }
}

/// Whether a status 500 says that the request got to nobody who could carry it out. Consul itself repeats writes after
/// "No cluster leader", as no state can have changed.
fn is_before_any_effect(said: &str) -> bool {
    ["No cluster leader", "No known Consul servers", "No path to datacenter"].iter().any(|text| said.contains(text))
}

/// Whether a status 500 speaks of trouble among the servers, which passes.
fn is_passing(said: &str) -> bool {
    let trouble = ["leader", "rpc error", "EOF", "connection", "timed out", "timeout", "shutdown", "not ready"];
    trouble.iter().any(|text| said.contains(text))
}

/// The limit that an answer with status 413 names: `Request body(524289 bytes) too large, max size: 524288 bytes. See
/// ...`
pub(super) fn size_limit(said: &str) -> Option<usize> {
    let (_, limit) = said.split_once("max size: ")?;
    limit.split(' ').next()?.parse().ok()
}

/// The beginning of what an answer says, for people to read.
pub(super) fn said(body: &[u8]) -> String {
    const LENGTH: usize = 200;
    let text = String::from_utf8_lossy(body.get(..4 * LENGTH).unwrap_or(body));
    let printable = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(LENGTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, said: &str, effect: Effect) -> Error {
        failure("Consul at h:1", StatusCode::from_u16(status).unwrap(), said, effect)
    }

    #[test]
    fn a_write_is_unreachable_only_if_it_had_no_effect() {
        let write = |status, said| error(status, said, Effect::Write);
        assert!(write(500, "No cluster leader").is_retryable());
        assert!(write(500, "rpc error making call: No cluster leader").is_retryable());
        assert!(write(429, "Your IP is issuing too many concurrent connections").is_retryable());
        for said in ["leadership lost while committing log", "rpc error making call: EOF", "anything else"] {
            assert!(write(500, said).is_indeterminate(), "{said}");
        }
        assert!(write(502, "").is_indeterminate() && write(200, "<html>").is_indeterminate());
        assert!(matches!(write(400, "Missing value"), Error::Backend { .. }));
    }

    #[test]
    fn a_read_is_unreachable_where_the_trouble_passes() {
        let read = |status, said| error(status, said, Effect::Repeatable);
        assert!(read(500, "leadership lost while committing log").is_retryable());
        assert!(read(500, "rpc error getting client: failed to get conn").is_retryable());
        assert!(read(503, "").is_retryable() && read(404, "not here").is_retryable());
        assert!(matches!(read(500, "Invalid Session TTL"), Error::Backend { .. }));
    }

    #[test]
    fn refusals_of_tokens_have_kinds() {
        let read = |status, said| error(status, said, Effect::Repeatable);
        assert!(matches!(read(403, "Permission denied"), Error::PermissionDenied { .. }));
        assert!(matches!(read(403, "ACL not found"), Error::Unauthenticated { .. }));
        assert!(matches!(read(401, ""), Error::Unauthenticated { .. }));
    }

    #[test]
    fn what_a_server_says_is_cut_and_made_printable() {
        assert_eq!(said(b" a\x00\nb\xff "), "a  b\u{fffd}");
        assert_eq!(said("é".repeat(900).as_bytes()).chars().count(), 200);
        assert_eq!(size_limit("Request body(9 bytes) too large, max size: 8 bytes. See x"), Some(8));
        assert_eq!(size_limit("Transaction contains too many operations (65 > 64)"), None);
    }
}
