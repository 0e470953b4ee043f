//! Leases: each key with a TTL has one of its own, and all locks of one TTL share one.

use super::session::Session;
use super::status::{self, Effect};
use crate::backend::{Grant, Lease};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::types::Version;
use bytes::Bytes;
use etcd_client::PutOptions;
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

/// The shortest TTL of a lock.
pub(super) const MIN_LOCK_TTL: Duration = Duration::from_secs(MIN_SECONDS);
/// The longest TTL of a lock.
pub(super) const MAX_LOCK_TTL: Duration = Duration::from_secs(MAX_SECONDS);

/// A lease as it was granted.
#[derive(Clone, Copy)]
struct Granted {
    id: i64,
    lasts: Duration,
}

pub(super) async fn put(session: &Session, key: &Key, value: &Bytes, ttl: Duration) -> Result<(Version, Lease)> {
    let asked = Instant::now();
    let grant = grant(session, with_spare(ttl)).await?;
    let version = match put_on(session, key, value, grant.id).await {
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

/// Writes `value`, for as long as the lease lasts.
async fn put_on(session: &Session, key: &Key, value: &Bytes, lease: i64) -> Result<Version> {
    let options = || PutOptions::new().with_lease(lease);
    let send = async || session.kv().put(session.path(key), value.as_ref(), Some(options())).await;
    session.written(session.write(send).await?.header())
}

pub(super) async fn renew(session: &Session, lease: &Lease) -> Result<()> {
    keep(session, &lease.id).await?.ok_or_else(|| Error::key_not_found(&lease.key))
}

pub(super) async fn expire(session: &Session, lease: &Lease) -> Result<()> {
    revoke(session, &lease.id).await
}

/// Opens a lease for locks.
pub(super) async fn open(session: &Session, ttl: Duration) -> Result<Grant> {
    if ttl > MAX_LOCK_TTL {
        return Err(Error::unsupported(format!("etcd keeps locks for {MAX_LOCK_TTL:?} at most, not for {ttl:?}")));
    }
    let Granted { id, lasts } = grant(session, seconds(ttl)).await?;
    if lasts < ttl {
        return Err(Error::unsupported(format!("the server granted {lasts:?} instead of {ttl:?}")));
    }
    Ok(Grant { id: format!("{id:x}"), ttl: lasts, outlives_process_by: lasts + SERVER_SLACK })
}

/// Renews a lease; none where it is over. Renewing twice is as good as once: a lost answer is no harm.
pub(super) async fn keep(session: &Session, id: &str) -> Result<Option<()>> {
    keep_alive(session, self::id(id)?).await
}

/// Ends a lease and all that hangs on it.
pub(super) async fn revoke(session: &Session, id: &str) -> Result<()> {
    let id = self::id(id)?;
    match session.call(async || session.leases().revoke(id).await).await? {
        Ok(_) => Ok(()),
        Err(failure) if status::is_lease_gone(&failure) => Ok(()),
        Err(failure) => Err(session.error(failure, Effect::Write)),
    }
}

/// Gets a lease. A lost answer is no harm: a lease without a key changes nothing and ends by itself.
async fn grant(session: &Session, seconds: u64) -> Result<Granted> {
    let seconds = i64::try_from(seconds.clamp(MIN_SECONDS, MAX_SECONDS)).unwrap_or(i64::MAX);
    let answer = session.read(async || session.leases().grant(seconds, None).await).await?;
    match u64::try_from(answer.ttl()) {
        Ok(granted) if granted > 0 && answer.error().is_empty() => {
            Ok(Granted { id: answer.id(), lasts: Duration::from_secs(granted) })
        }
        _ => Err(session.senseless(Effect::Read)),
    }
}

/// Renews a lease whose spare time was over before its key was written.
async fn renew_late(session: &Session, grant: Granted) -> Result<()> {
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
async fn abandon(session: &Session, grant: Granted, error: &Error) {
    if error.is_indeterminate() || error.is_retryable() {
        return;
    }
    if let Err(failure) = session.leases().revoke(grant.id).await {
        tracing::debug!(%failure, lease = grant.id, "a lease without a key is left to end by itself");
    }
}

/// The seconds of the lease for a TTL that counts from the write.
fn with_spare(ttl: Duration) -> u64 {
    seconds(ttl).saturating_add(SPARE_SECONDS)
}

/// A TTL in whole seconds, or a little more.
fn seconds(ttl: Duration) -> u64 {
    ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0))
}

/// The number of a lease.
pub(super) fn id(id: &str) -> Result<i64> {
    i64::from_str_radix(id, 16).map_err(|_| Error::unsupported(format!("`{id}` is no lease of etcd's")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_longer_than_the_ttl_by_the_time_to_write() {
        let of = |millis| with_spare(Duration::from_millis(millis));
        assert_eq!([of(1), of(1_000), of(1_001), of(2_000), of(59_999)], [2, 2, 3, 3, 61]);
        assert_eq!(with_spare(MAX_TTL), MAX_SECONDS);
        assert_eq!(with_spare(Duration::MAX), u64::MAX);
    }
}
