//! What the cases have in common.

use super::fixture::Outcome;
use crate::error::Result;
use crate::key::Key;
use crate::store::Store;
use crate::types::{Consistency, KvPair, ListOptions};
use bytes::Bytes;
use std::time::{Duration, Instant};

/// Asserts that a result is an error of this kind.
macro_rules! assert_error {
    ($result:expr, $pattern:pat) => {
        $crate::conformance::support::assert_error!($result, $pattern, "")
    };
    ($result:expr, $pattern:pat, $($context:tt)+) => {
        match $result {
            Err($pattern) => {}
            other => panic!("expected {}, got {other:?} {}", stringify!($pattern), format_args!($($context)+)),
        }
    };
}
pub(super) use assert_error;

/// How long a stale replica may lag before a case gives up.
const CATCH_UP: Duration = Duration::from_secs(8);

/// How long to pause between two looks at something that time changes.
const POLL: Duration = Duration::from_millis(25);

pub(super) const STALE: Consistency = Consistency::Stale;

pub(super) fn key(path: &str) -> Key {
    Key::parse(path).unwrap()
}

pub(super) fn keys_of(pairs: &[KvPair]) -> Vec<&str> {
    pairs.iter().map(|pair| pair.key.as_str()).collect()
}

/// All keys of the namespace.
pub(super) async fn all_keys(store: &Store) -> Result<Vec<String>> {
    let page = store.list_keys("", ListOptions::default()).await?;
    Ok(page.items.into_iter().map(String::from).collect())
}

pub(super) async fn put_all(store: &Store, keys: &[&str]) -> Outcome {
    for path in keys {
        store.put(*path, format!("value of {path}")).await?;
    }
    Ok(())
}

pub(super) async fn value_of(store: &Store, path: &str) -> Result<Bytes> {
    Ok(store.get(path).await?.value)
}

/// Looks again and again until `condition` holds.
pub(super) async fn eventually(what: &str, condition: impl AsyncFn() -> Result<bool>) -> Outcome {
    let deadline = Instant::now() + CATCH_UP;
    while !condition().await? {
        assert!(Instant::now() < deadline, "not within {CATCH_UP:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// When a write happened, as far as its caller can tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    sent: Instant,
    acknowledged: Instant,
}

impl Moment {
    /// Awaits a write and takes its times.
    pub(super) async fn of<T>(write: impl Future<Output = Result<T>>) -> Result<(Self, T)> {
        let sent = Instant::now();
        let written = write.await?;
        Ok((Moment { sent, acknowledged: Instant::now() }, written))
    }

    /// Watches `path` go: no earlier than `ttl` after the write, and no later than one second after that.
    pub(super) async fn assert_gone_in_time(self, store: &Store, path: &str, ttl: Duration) -> Outcome {
        loop {
            let asked = Instant::now();
            if !store.exists(path).await? {
                let lived = self.sent.elapsed();
                assert!(lived >= ttl, "`{path}` with a TTL of {ttl:?} was gone {lived:?} after the write was sent");
                return Ok(());
            }
            let lived = asked - self.acknowledged;
            let latest = ttl + Duration::from_secs(1);
            assert!(lived <= latest, "`{path}` with a TTL of {ttl:?} was still there {lived:?} after the write");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until a key written then would be gone, had it this TTL and no grace left.
    pub(super) async fn ttl_is_over(self, ttl: Duration) {
        let end = self.acknowledged + ttl + Duration::from_millis(1200);
        tokio::time::sleep_until(end.into()).await;
    }
}
