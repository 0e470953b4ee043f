//! Who stands in line for a lock: the names of contenders, and their order.

use super::range::{self, Range};
use super::session::Session;
use crate::error::Result;
use etcd_client::proto::{PbKeyValue, PbRangeResponse};
use etcd_client::{GetOptions, SortOrder, SortTarget, TxnOp};

/// How many of a line to look at. One would do, but for ordinary keys beneath the lock's.
const GLANCE: i64 = 8;

/// The name of what contends on `lease` for the lock at `lock`, as etcd's Go package and `etcdctl` have it.
pub(super) fn contender(lock: &[u8], lease: i64) -> Vec<u8> {
    [lock, format!("/{lease:x}").as_bytes()].concat()
}

/// Whether the key contends for some lock: it is named after the lease that it hangs on.
pub(super) fn is_contender(found: &PbKeyValue) -> bool {
    found.lease != 0 && lock_of(found).is_some_and(|lock| !lock.is_empty())
}

/// Whether the key contends for the lock at `lock`.
pub(super) fn contends_for(found: &PbKeyValue, lock: &[u8]) -> bool {
    found.lease != 0 && lock_of(found) == Some(lock)
}

/// The lock for which a key contends that hangs on a lease.
fn lock_of(found: &PbKeyValue) -> Option<&[u8]> {
    found.key.strip_suffix(format!("/{:x}", found.lease).as_bytes())
}

/// A part of what is beneath a lock's key, at one moment.
#[derive(Debug, Default)]
pub(super) struct Line {
    entries: Vec<PbKeyValue>,
    more: bool,
    revision: i64,
}

impl Line {
    /// What [`glance`] found, at `revision`.
    pub(super) fn new(found: PbRangeResponse, revision: i64) -> Self {
        Line { entries: found.kvs, more: found.more, revision }
    }

    /// Who contends for the lock and came last before `token`.
    pub(super) async fn before(self, session: &Session, lock: &[u8], token: i64) -> Result<Option<PbKeyValue>> {
        let ahead = |found: &PbKeyValue| contends_for(found, lock) && found.create_revision < token;
        let last =
            |entries: Vec<PbKeyValue>| entries.into_iter().filter(ahead).max_by_key(|found| found.create_revision);
        match last(self.entries) {
            None if self.more => Ok(last(whole(session, lock, self.revision).await?)),
            found => Ok(found),
        }
    }
}

/// Looks at those who came last; only at those who came no later than at `until`, where it isn't 0.
pub(super) fn glance(lock: &[u8], until: i64) -> TxnOp {
    let line = beneath(lock);
    let options = GetOptions::new().with_range(line.end()).with_keys_only().with_max_create_revision(until);
    TxnOp::get(line.start(), Some(options.with_sort(SortTarget::Create, SortOrder::Descend).with_limit(GLANCE)))
}

/// Who was the first in line.
pub(super) async fn first(session: &Session, lock: &[u8]) -> Result<Option<PbKeyValue>> {
    let line = beneath(lock);
    let options = || GetOptions::new().with_range(line.end()).with_sort(SortTarget::Create, SortOrder::Ascend);
    let send = async || session.kv().get(line.start(), Some(options().with_limit(1))).await;
    let answer = session.read(send).await?.0;
    let revision = answer.header.map_or(0, |header| header.revision);
    match answer.kvs.into_iter().next() {
        Some(found) if contends_for(&found, lock) => Ok(Some(found)),
        // Ordinary keys are in the way.
        Some(_) => first_of(session, lock, whole(session, lock, revision).await?, revision).await,
        None => Ok(None),
    }
}

async fn first_of(
    session: &Session,
    lock: &[u8],
    entries: Vec<PbKeyValue>,
    revision: i64,
) -> Result<Option<PbKeyValue>> {
    let contenders = entries.into_iter().filter(|found| contends_for(found, lock));
    let Some(first) = contenders.min_by_key(|found| found.create_revision) else { return Ok(None) };
    let then = || GetOptions::new().with_revision(revision);
    let send = async || session.kv().get(first.key.as_slice(), Some(then())).await;
    Ok(session.read(send).await?.0.kvs.into_iter().next())
}

/// All that was beneath the lock's key at `revision`, without values.
async fn whole(session: &Session, lock: &[u8], revision: i64) -> Result<Vec<PbKeyValue>> {
    range::keys_at(session, beneath(lock), revision).await
}

/// The range of all that is beneath the lock's key.
pub(super) fn beneath(lock: &[u8]) -> Range {
    Range::beneath([lock, b"/"].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Dir, Namespace};
    use proptest::prelude::*;

    fn key(path: &str, lease: i64) -> PbKeyValue {
        PbKeyValue { key: path.into(), lease, ..PbKeyValue::default() }
    }

    #[test]
    fn a_contender_is_named_after_its_lease() {
        assert_eq!(contender(b"a/b", 0x694d), b"a/b/694d");
        assert!(is_contender(&key("a/b/694d", 0x694d)) && contends_for(&key("a/b/694d", 0x694d), b"a/b"));
        for (path, lease) in [("a/694d", 0), ("a/694d", 0x694e), ("a/694D", 0x694d), ("a/0694d", 0x694d), ("a/0", 0)] {
            assert!(!is_contender(&key(path, lease)), "{path} {lease:x}");
        }
        for path in ["694d", "/694d", "a694d"] {
            assert!(!is_contender(&key(path, 0x694d)), "{path}");
        }
    }

    #[test]
    fn a_lock_beneath_another_is_another() {
        assert!(is_contender(&key("a/b/694d", 0x694d)) && !contends_for(&key("a/b/694d", 0x694d), b"a"));
    }

    proptest! {
        /// Other programs may have written anything.
        #[test]
        fn what_is_found_is_a_contender_a_key_or_neither(
            path in prop_oneof![any::<Vec<u8>>(), "(ns|/|[0-9a-f]{1,16}|é|\\.){0,6}".prop_map(String::into_bytes)],
            lease in prop_oneof![any::<i64>(), 0..20_i64],
            named in any::<bool>(),
        ) {
            let key = if named { contender(&path, lease) } else { path.clone() };
            let found = PbKeyValue { key: key.clone(), lease, ..PbKeyValue::default() };
            prop_assert!(!named || contends_for(&found, &path) || lease == 0);
            let named_after = contender(b"", lease);
            prop_assert!(!is_contender(&found) || lease != 0 && key.ends_with(&named_after));
            let namespace = Namespace::new(Dir::parse("ns").unwrap());
            let read = std::str::from_utf8(&key).ok().and_then(|path| namespace.key(path));
            prop_assert!(read.is_none_or(|read| namespace.path(&read).into_bytes() == key));
        }
    }
}
