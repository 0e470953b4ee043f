//! Calls on single keys, and transactions.

use super::gathered::{Together, Write, Written};
use super::line;
use super::session::{Session, revision, version};
use super::status::Effect;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::types::{Check, Condition, Consistency, Expected, KvPair, Operation, OperationResult, TxnOutcome, Version};
use bytes::Bytes;
use etcd_client::proto::{PbKeyValue, PbResponseOp, PbTxnOpResponse, PbTxnResponse};
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, Txn, TxnOp};

pub(super) async fn get(together: &Together, key: &Key, consistency: Consistency) -> Result<KvPair> {
    let found = together.read(together.session().path(key), false, consistency).await?;
    found
        .filter(|found| !line::is_contender(&found.0))
        .map(|found| pair(key.clone(), found))
        .ok_or_else(|| Error::key_not_found(key))
}

pub(super) async fn exists(together: &Together, key: &Key, consistency: Consistency) -> Result<bool> {
    let found = together.read(together.session().path(key), true, consistency).await?;
    Ok(found.is_some_and(|found| !line::is_contender(&found.0)))
}

pub(super) async fn put(together: &Together, key: &Key, value: &Bytes) -> Result<Version> {
    match together.write(Write::put(together.session().path(key), value, None)).await? {
        Written::Made { version, .. } => Ok(version),
        Written::Refused(_) => Err(together.session().senseless(Effect::Write)),
    }
}

pub(super) async fn delete(together: &Together, key: &Key) -> Result<()> {
    match together.write(Write::delete(together.session().path(key), None)).await? {
        Written::Made { found: true, .. } => Ok(()),
        _ => Err(Error::key_not_found(key)),
    }
}

pub(super) async fn atomic_put(together: &Together, key: &Key, value: &Bytes, expected: &Expected) -> Result<Version> {
    let wanted = match expected {
        Expected::Absent => Wanted::Absent,
        Expected::Version(version) => Wanted::ChangedAt(revision(version)?),
    };
    match (together.write(Write::put(together.session().path(key), value, Some(wanted))).await?, expected) {
        (Written::Made { version, .. }, _) => Ok(version),
        (Written::Refused(_), Expected::Absent) => Err(Error::key_exists(key)),
        (Written::Refused(found), Expected::Version(_)) => Err(mismatch(key, found)),
    }
}

pub(super) async fn atomic_delete(together: &Together, key: &Key, version: &Version) -> Result<()> {
    let wanted = Wanted::ChangedAt(revision(version)?);
    match together.write(Write::delete(together.session().path(key), Some(wanted))).await? {
        Written::Made { .. } => Ok(()),
        Written::Refused(found) => Err(mismatch(key, found)),
    }
}

/// Why a key didn't have the version expected.
fn mismatch(key: &Key, found: Option<Found>) -> Error {
    match found {
        Some(_) => Error::key_modified(key),
        None => Error::key_not_found(key),
    }
}

pub(super) async fn txn(session: &Session, checks: &[Check], operations: &[Operation]) -> Result<TxnOutcome> {
    let wanted = checks.iter().map(|check| wanted(session, check)).collect::<Result<Vec<_>>>()?;
    transact(session, &wanted, operations).await
}

/// As [`txn`], while the key at `path` is the one that was created at `revision`; none if it isn't.
pub(super) async fn guarded(
    session: &Session,
    (path, revision): (&[u8], i64),
    checks: &[Check],
    operations: &[Operation],
) -> Result<Option<TxnOutcome>> {
    let guard = Ok((path.to_vec(), Wanted::CreatedAt(revision)));
    let checks = checks.iter().map(|check| wanted(session, check));
    let wanted = std::iter::once(guard).chain(checks).collect::<Result<Vec<_>>>()?;
    Ok(match transact(session, &wanted, operations).await? {
        TxnOutcome::CheckFailed { index } => index.checked_sub(1).map(|index| TxnOutcome::CheckFailed { index }),
        committed => Some(committed),
    })
}

/// What a check asks of which of the server's keys.
fn wanted(session: &Session, check: &Check) -> Result<(Vec<u8>, Wanted)> {
    Ok((session.path(&check.key), Wanted::new(&check.condition)?))
}

async fn transact(session: &Session, wanted: &[(Vec<u8>, Wanted)], operations: &[Operation]) -> Result<TxnOutcome> {
    let send = async || {
        let compares: Vec<_> = wanted.iter().map(|(path, wanted)| wanted.compare(path.clone())).collect();
        let changes: Vec<_> = operations.iter().map(|operation| change(session, operation)).collect();
        let looks: Vec<_> = wanted.iter().map(|(path, _)| look(path.clone())).collect();
        session.kv().txn(Txn::new().when(compares).and_then(changes).or_else(looks)).await
    };
    let answer = session.write(send).await?;
    if answer.succeeded() {
        let version = session.written(answer.header())?;
        return Ok(TxnOutcome::Committed(operations.iter().map(|operation| result(operation, version)).collect()));
    }
    let failed = looked(answer.0).and_then(|found| first_failed(wanted, &found));
    let index = failed.ok_or_else(|| session.senseless(Effect::Read))?;
    Ok(TxnOutcome::CheckFailed { index })
}

fn change(session: &Session, operation: &Operation) -> TxnOp {
    let path = session.path(operation.key());
    match operation {
        Operation::Put { value, .. } => TxnOp::put(path, value.as_ref(), None),
        Operation::Delete { .. } => TxnOp::delete(path, None),
    }
}

/// All changes of one etcd transaction are made at one revision.
fn result(operation: &Operation, version: Version) -> OperationResult {
    match operation {
        Operation::Put { .. } => OperationResult::Put(version),
        Operation::Delete { .. } => OperationResult::Deleted,
    }
}

/// What a condition asks of a key, in etcd's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Present,
    Absent,
    ChangedAt(i64),
    CreatedAt(i64),
}

/// The revisions of a key that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    created: i64,
    changed: i64,
}

impl Wanted {
    fn new(condition: &Condition) -> Result<Self> {
        Ok(match condition {
            Condition::Exists => Wanted::Present,
            Condition::Absent => Wanted::Absent,
            Condition::Version(version) => Wanted::ChangedAt(revision(version)?),
        })
    }

    /// The condition for the server. A key that doesn't exist has the create revision 0.
    pub(super) fn compare(self, path: Vec<u8>) -> Compare {
        match self {
            Wanted::Present => Compare::create_revision(path, CompareOp::Greater, 0),
            Wanted::Absent => Compare::create_revision(path, CompareOp::Equal, 0),
            Wanted::ChangedAt(revision) => Compare::mod_revision(path, CompareOp::Equal, revision),
            Wanted::CreatedAt(revision) => Compare::create_revision(path, CompareOp::Equal, revision),
        }
    }

    /// The condition for a key as it was found; none where it doesn't exist.
    pub(super) fn holds(self, found: Option<Found>) -> bool {
        match self {
            Wanted::Present => found.is_some(),
            Wanted::Absent => found.is_none(),
            Wanted::ChangedAt(revision) => found.is_some_and(|found| found.changed == revision),
            Wanted::CreatedAt(revision) => found.is_some_and(|found| found.created == revision),
        }
    }
}

/// The first condition that the keys as they were found don't meet. etcd itself doesn't tell which.
fn first_failed(wanted: &[(Vec<u8>, Wanted)], found: &[Option<Found>]) -> Option<usize> {
    wanted.iter().zip(found).position(|((_, wanted), found)| !wanted.holds(*found))
}

/// Asks for everything of a key but its value.
pub(super) fn look(path: Vec<u8>) -> TxnOp {
    TxnOp::get(path, Some(GetOptions::new().with_keys_only()))
}

/// The answers to [`look`]s, in their order; none if the server answered something else.
pub(super) fn looked(answer: PbTxnResponse) -> Option<Vec<Option<Found>>> {
    let found = |found: &PbKeyValue| Found { created: found.create_revision, changed: found.mod_revision };
    let one = |operation: PbResponseOp| match operation.response? {
        PbTxnOpResponse::ResponseRange(range) => Some(range.kvs.first().map(found)),
        _ => None,
    };
    answer.responses.into_iter().map(one).collect()
}

/// A key as it was found; its value is moved, not copied.
pub(super) fn pair(key: Key, found: KeyValue) -> KvPair {
    let version = version(found.mod_revision());
    let (_, value) = found.into_key_value();
    KvPair { key, value: value.into(), version }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failed_check_is_found() {
        let wanted = [Wanted::Present, Wanted::Absent, Wanted::ChangedAt(7), Wanted::CreatedAt(5)];
        let wanted = wanted.map(|wanted| (Vec::new(), wanted));
        let at = |created, changed| Some(Found { created, changed });
        let some = at(1, 1);
        assert_eq!(first_failed(&wanted, &[some, None, at(5, 7), at(5, 7)]), None);
        assert_eq!(first_failed(&wanted, &[None, some, at(5, 8), some]), Some(0));
        assert_eq!(first_failed(&wanted, &[some, some, None, None]), Some(1));
        assert_eq!(first_failed(&wanted, &[some, None, None, at(5, 5)]), Some(2));
        assert_eq!(first_failed(&wanted, &[some, None, at(7, 8), at(5, 5)]), Some(2));
        assert_eq!(first_failed(&wanted, &[some, None, at(7, 7), None]), Some(3));
        assert_eq!(first_failed(&wanted, &[some, None, at(7, 7), at(4, 5)]), Some(3));
    }

    #[test]
    fn a_version_that_no_key_has_never_holds() {
        let made_up = Version::new(crate::types::BackendKind::Etcd, 0);
        let wanted = Wanted::new(&Condition::Version(made_up)).unwrap();
        assert!(!wanted.holds(None) && !wanted.holds(Some(Found { created: 0, changed: 0 })));
    }

    #[test]
    fn an_empty_answer_makes_no_panic() {
        let empty = PbResponseOp { response: None };
        assert_eq!(looked(PbTxnResponse { header: None, succeeded: false, responses: vec![empty] }), None);
    }
}
