//! Transactions, also those that take place only while a lock is held.

use super::codec::{Meta, Op, Refusal};
use super::http::{Effect, Transaction};
use super::write::Placed;
use super::{Consul, index};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::types::{Check, Condition, Consistency, Operation, OperationResult, TxnOutcome};
use bytes::Bytes;
use futures_util::future::try_join_all;

/// The lock that must be held.
#[derive(Clone, Copy)]
pub(super) struct Guard<'a> {
    pub(super) key: &'a Key,
    pub(super) session: &'a str,
}

impl Consul {
    /// Runs a transaction, of which the first operation is the guard's, if there is one.
    pub(super) async fn transact(
        &self,
        guard: Option<Guard<'_>>,
        checks: &[Check],
        operations: &[Operation],
    ) -> Result<TxnOutcome> {
        let guard_path = guard.map(|guard| self.namespace.path(guard.key));
        let guard_op =
            guard.zip(guard_path.as_ref()).map(|(guard, path)| Op::CheckSession { path, session: guard.session });
        let keys = checks.iter().map(|check| &check.key).chain(operations.iter().map(Operation::key));
        let paths: Vec<_> = keys.map(|key| self.namespace.path(key)).collect();
        let (check_paths, write_paths) = paths.split_at(checks.len());
        let check_ops = check_paths.iter().zip(checks).map(|(path, check)| check_op(path, &check.condition));
        let write_ops = write_paths.iter().zip(operations).map(|(path, operation)| Ok(write_op(path, operation)));
        let ops: Vec<_> = guard_op.map(Ok).into_iter().chain(check_ops).chain(write_ops).collect::<Result<_>>()?;
        match self.http.txn(&ops, Consistency::Linearizable).await? {
            Transaction::Applied(body) => {
                let placed = self.placed(&ops, &body)?;
                self.settle_all(operations, placed).await.map(TxnOutcome::Committed)
            }
            Transaction::Refused(refusals) => refused(guard.map(|guard| guard.key), checks.len(), &refusals),
            Transaction::TooLarge(said) => Err(too_large(guard, &said)),
        }
    }

    /// What the puts among `operations` wrote, from the entries of the answer to `ops`. What is only checked is missing there where
    /// the token may not see it.
    fn placed(&self, ops: &[Op<'_>], body: &Bytes) -> Result<Vec<Placed>> {
        let mut entries = self.http.entries::<Meta<'_>>(body, Effect::Write)?.peekable();
        let mut placed = Vec::new();
        for op in ops.iter().filter(|op| op.is_answered()) {
            let entry = entries.next_if(|entry| entry.path == op.path());
            if let Op::Set { .. } = op {
                placed.push(Placed::from(&entry.ok_or_else(|| self.http.too_few_results())?));
            }
        }
        Ok(placed)
    }

    /// The results of a transaction that was applied, its puts made permanent.
    async fn settle_all(&self, operations: &[Operation], placed: Vec<Placed>) -> Result<Vec<OperationResult>> {
        let mut placed = placed.into_iter();
        let settled = operations.iter().map(|operation| {
            let placed = matches!(operation, Operation::Put { .. }).then(|| placed.next());
            async move {
                let Operation::Put { key, value } = operation else { return Ok(OperationResult::Deleted) };
                let placed = placed.flatten().ok_or_else(|| self.http.too_few_results())?;
                self.settle(key, value, placed).await.map(OperationResult::Put)
            }
        });
        try_join_all(settled).await
    }
}

/// Which of the checks failed, or the guard before them.
fn refused(guard: Option<&Key>, checks: usize, refusals: &[Refusal]) -> Result<TxnOutcome> {
    let first = usize::from(guard.is_some());
    let failed = refusals.iter().map(|refusal| refusal.op_index).filter(|index| *index < first + checks).min();
    match (failed, guard) {
        (Some(0), Some(key)) => Err(Error::lock_lost(key)),
        (Some(index), _) => Ok(TxnOutcome::CheckFailed { index: index - first }),
        (None, _) => Err(Error::backend(format!("Consul refused a transaction: {refusals:?}"))),
    }
}

/// Older agents take no more than 64 operations, and the guard is one of them.
fn too_large(guard: Option<Guard<'_>>, said: &str) -> Error {
    let guarded = guard.map_or("", |_| "; to make sure of the lock is an operation too");
    Error::unsupported(format!("Consul refused a transaction: {said}{guarded}"))
}

/// The operation of Consul's that makes sure of a condition.
fn check_op<'a>(path: &'a str, condition: &Condition) -> Result<Op<'a>> {
    Ok(match condition {
        Condition::Exists => Op::Get { path },
        Condition::Absent => Op::CheckNotExists { path },
        Condition::Version(version) => Op::CheckIndex { path, index: index(version)? },
    })
}

fn write_op<'a>(path: &'a str, operation: &'a Operation) -> Op<'a> {
    match operation {
        Operation::Put { value, .. } => Op::Set { path, value },
        Operation::Delete { .. } => Op::Delete { path },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusals(indices: &[usize]) -> Vec<Refusal> {
        indices.iter().map(|index| Refusal { op_index: *index, what: "no".into() }).collect()
    }

    #[test]
    fn the_first_check_that_failed_is_told() {
        let failed = |refusals_at: &[usize]| refused(None, 2, &refusals(refusals_at));
        assert!(matches!(failed(&[1, 0, 2]), Ok(TxnOutcome::CheckFailed { index: 0 })));
        assert!(matches!(failed(&[1]), Ok(TxnOutcome::CheckFailed { index: 1 })));
        assert!(matches!(failed(&[2]), Err(Error::Backend { .. })));
    }

    #[test]
    fn a_lock_that_is_lost_comes_before_all_checks() {
        let key = Key::parse("k").unwrap();
        let failed = |refusals_at: &[usize]| refused(Some(&key), 2, &refusals(refusals_at));
        assert!(matches!(failed(&[0, 1]), Err(Error::LockLost { .. })));
        assert!(matches!(failed(&[2]), Ok(TxnOutcome::CheckFailed { index: 1 })));
        assert!(matches!(failed(&[3]), Err(Error::Backend { .. })));
    }
}
