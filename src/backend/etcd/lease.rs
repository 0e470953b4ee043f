//! Keys with a TTL: each has an etcd lease of its own.

use super::kv;
use super::session::Session;
use super::status::{self, Effect};
use crate::backend::Lease;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::types::Version;
use bytes::Bytes;
use std::time::{Duration, Instant};

/// The shortest lease that etcd grants at its default election timeout, in seconds.
const MIN_SECONDS: u64 = 2;
/// The longest lease that etcd grants, in seconds.
const MAX_SECONDS: u64 = 9_000_000_000;
/// A lease counts from its grant, a TTL from the write a little later: by so much longer a lease is asked for, in seconds.
const SPARE_SECONDS: u64 = 1;
/// How much later than at its end etcd may notice that a lease is over: it looks twice a second.
const SERVER_SLACK: Duration = Duration::from_secs(1);

/// The longest TTL that a lease can keep.
pub(super) const MAX_TTL: Duration = Duration::from_secs(MAX_SECONDS - SPARE_SECONDS);

/// A lease as it was granted.
#[derive(Clone, Copy)]
struct Grant {
    id: i64,
    lasts: Duration,
}

pub(super) async fn put(session: &Session, key: &Key, value: &Bytes, ttl: Duration) -> Result<(Version, Lease)> {
    let asked = Instant::now();
    let grant = grant(session, ttl).await?;
    let version = match kv::put(session, key, value, grant.id).await {
        Ok(version) => version,
        Err(error) => {
            abandon(session, grant, &error).await;
            return Err(error);
        }
    };
    if grant.lasts.saturating_sub(asked.elapsed()) < ttl {
        renew_late(session, grant).await?;
    }
    let lease = Lease {
        key: key.clone(),
        version,
        id: format!("{:x}", grant.id),
        renew_within: grant.lasts,
        outlives_process_by: grant.lasts + SERVER_SLACK,
    };
    Ok((version, lease))
}

pub(super) async fn renew(session: &Session, lease: &Lease) -> Result<()> {
    let id = id(lease)?;
    // Renewing twice is as good as once: a lost answer is no harm.
    keep_alive(session, id).await?.ok_or_else(|| Error::key_not_found(&lease.key))
}

pub(super) async fn expire(session: &Session, lease: &Lease) -> Result<()> {
    let id = id(lease)?;
    match session.call(async || session.leases().revoke(id).await).await? {
        Ok(_) => Ok(()),
        Err(failure) if status::is_lease_gone(&failure) => Ok(()),
        Err(failure) => Err(session.error(failure, Effect::Write)),
    }
}

/// Gets a lease. A lost answer is no harm: a lease without a key changes nothing and ends by itself.
async fn grant(session: &Session, ttl: Duration) -> Result<Grant> {
    let seconds = i64::try_from(seconds(ttl)).unwrap_or(i64::MAX);
    let answer = session.read(async || session.leases().grant(seconds, None).await).await?;
    match u64::try_from(answer.ttl()) {
        Ok(granted) if granted > 0 && answer.error().is_empty() => {
            Ok(Grant { id: answer.id(), lasts: Duration::from_secs(granted) })
        }
        _ => Err(session.senseless(Effect::Read)),
    }
}

/// Renews a lease whose spare time was over before its key was written.
async fn renew_late(session: &Session, grant: Grant) -> Result<()> {
    let too_late =
        || Error::indeterminate("the key was written, but too late for its lease, which may have ended since");
    match keep_alive(session, grant.id).await {
        Ok(Some(())) => Ok(()),
        Ok(None) | Err(Error::Unreachable { .. }) => Err(too_late()),
        Err(error) => Err(error),
    }
}

/// Renews a lease; none where it is over.
async fn keep_alive(session: &Session, id: i64) -> Result<Option<()>> {
    match session.call(async || session.leases().keep_alive(id).await).await? {
        Ok(_) => Ok(Some(())),
        Err(failure) if status::is_lease_gone(&failure) => Ok(None),
        Err(failure) => Err(session.error(failure, Effect::Read)),
    }
}

/// Gives back a lease whose key the server refused. Where the key may have been written, or the link is down, the lease is
/// left to end by itself: that is what it was asked for, or can't be helped.
async fn abandon(session: &Session, grant: Grant, error: &Error) {
    if error.is_indeterminate() || error.is_retryable() {
        return;
    }
    if let Err(failure) = session.leases().revoke(grant.id).await {
        tracing::debug!(%failure, lease = grant.id, "a lease without a key is left to end by itself");
    }
}

/// The whole seconds of the lease for a TTL.
fn seconds(ttl: Duration) -> u64 {
    let whole = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    whole.saturating_add(SPARE_SECONDS).clamp(MIN_SECONDS, MAX_SECONDS)
}

fn id(lease: &Lease) -> Result<i64> {
    i64::from_str_radix(&lease.id, 16).map_err(|_| Error::unsupported(format!("`{}` is no lease of etcd's", lease.id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_longer_than_the_ttl_by_the_time_to_write() {
        let of = |millis| seconds(Duration::from_millis(millis));
        assert_eq!([of(1), of(1_000), of(1_001), of(2_000), of(59_999)], [2, 2, 3, 3, 61]);
        assert_eq!(seconds(MAX_TTL), MAX_SECONDS);
        assert_eq!(seconds(Duration::MAX), MAX_SECONDS);
    }
}
