//! [`Transactions`]: small transactions of several callers go to the server as one.
//!
//! Transactions that have no key in common, but for keys that all of them only check, do the same together as one after the other in
//! whatever order. Where a check fails nothing was done: its caller is told, and each of the others goes by itself.

use super::Backend;
use super::gather::{Gathered, Gatherer, Job};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::types::{Check, MAX_TXN_OPERATIONS, Operation, OperationResult, TxnOutcome};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, join_all};
use std::rc::Rc;

/// How many go by themselves before others go together.
const LANES: usize = 4;
/// The most checks and operations that a transaction has that goes together with others: with more there would be few of them.
const MAX_SIZE: usize = MAX_TXN_OPERATIONS / 4;
/// The most bytes that the values of such a transaction have, and of all that go together.
const MAX_BYTES: usize = 16 * 1024;
const MAX_BYTES_TOGETHER: usize = 128 * 1024;

/// The transactions of one session.
pub(crate) struct Transactions {
    backend: Rc<dyn Backend>,
    gatherer: Gatherer<Transaction>,
}

impl Transactions {
    pub(crate) fn new(backend: Rc<dyn Backend>) -> Self {
        Transactions { gatherer: Gatherer::new(LANES, backend.clone()), backend }
    }

    /// As [`Backend::txn`].
    pub(crate) async fn run(&self, checks: &[Check], operations: &[Operation]) -> Result<TxnOutcome> {
        if checks.len() + operations.len() > MAX_SIZE || bytes(operations) > MAX_BYTES {
            return self.backend.txn(checks, operations).await;
        }
        match self.gatherer.lane() {
            Some(_lane) => self.backend.txn(checks, operations).await,
            None => self.gatherer.ask(Transaction { checks: checks.to_vec(), operations: operations.to_vec() }).await,
        }
    }
}

/// The bytes of the values.
fn bytes(operations: &[Operation]) -> usize {
    let bytes = |operation: &Operation| if let Operation::Put { value, .. } = operation { value.len() } else { 0 };
    operations.iter().map(bytes).sum()
}

struct Transaction {
    checks: Vec<Check>,
    operations: Vec<Operation>,
}

impl Transaction {
    /// One of nothing counts too.
    fn size(&self) -> usize {
        (self.checks.len() + self.operations.len()).max(1)
    }

    fn checks(&self, key: &Key) -> bool {
        self.checks.iter().any(|check| check.key == *key)
    }

    fn changes(&self, key: &Key) -> bool {
        self.operations.iter().any(|operation| operation.key() == key)
    }

    /// Whether it matters which of the two is first.
    fn meets(&self, other: &Transaction) -> bool {
        self.checks.iter().any(|check| other.changes(&check.key))
            || self.operations.iter().map(Operation::key).any(|key| other.checks(key) || other.changes(key))
    }
}

impl Gathered for Transaction {
    type Answer = Result<TxnOutcome>;
    type Server = Rc<dyn Backend>;

    fn joins(&self, batch: &[Job<Self>]) -> bool {
        let others = || batch.iter().map(|job| &job.asked);
        let all = || others().chain([self]);
        all().map(Transaction::size).sum::<usize>() <= MAX_TXN_OPERATIONS
            && all().map(|txn| bytes(&txn.operations)).sum::<usize>() <= MAX_BYTES_TOGETHER
            && !others().any(|other| self.meets(other))
    }

    fn carry_out(backend: &Rc<dyn Backend>, batch: Vec<Job<Self>>) -> LocalBoxFuture<'static, ()> {
        let backend = backend.clone();
        async move {
            if batch.len() == 1 {
                return each(&*backend, batch).await;
            }
            let checks: Vec<_> = batch.iter().flat_map(|job| &job.asked.checks).cloned().collect();
            let operations: Vec<_> = batch.iter().flat_map(|job| &job.asked.operations).cloned().collect();
            match backend.txn(&checks, &operations).await {
                Ok(TxnOutcome::Committed(results)) => tell_committed(batch, results.into_iter()),
                Ok(TxnOutcome::CheckFailed { index }) => each(&*backend, tell_failed(batch, index)).await,
                Err(error) if is_everybodys(&error) => tell_error(batch, &error),
                Err(_) => each(&*backend, batch).await,
            }
        }
        .boxed_local()
    }
}

/// Whether all who go together have this error. Any other may be on account of one of them; nothing was done then.
fn is_everybodys(error: &Error) -> bool {
    matches!(
        error,
        Error::Unreachable { .. }
            | Error::Indeterminate { .. }
            | Error::Unauthenticated { .. }
            | Error::Closed
            | Error::Timeout { .. }
    )
}

/// Who changes nothing can ask again whatever became of the others.
fn tell_error(batch: Vec<Job<Transaction>>, error: &Error) {
    for job in batch {
        let is_read = job.asked.operations.is_empty();
        job.answer(Err(match error.clone() {
            Error::Indeterminate { reason, source } if is_read => Error::Unreachable { reason, source },
            error => error,
        }));
    }
}

/// Each by itself; nothing was done so far, and nothing is for those who are gone.
async fn each(backend: &dyn Backend, batch: Vec<Job<Transaction>>) {
    join_all(batch.into_iter().filter(Job::is_awaited).map(async |job| {
        let done = backend.txn(&job.asked.checks, &job.asked.operations).await;
        job.answer(done);
    }))
    .await;
}

fn tell_committed(batch: Vec<Job<Transaction>>, mut results: impl Iterator<Item = OperationResult>) {
    for job in batch {
        let own: Vec<_> = results.by_ref().take(job.asked.operations.len()).collect();
        let is_whole = own.len() == job.asked.operations.len();
        let missing = || Error::indeterminate("the backend answered a transaction with too few results");
        job.answer(is_whole.then_some(TxnOutcome::Committed(own)).ok_or_else(missing));
    }
}

/// Tells the one whose check it is, counted through all of them, and returns the others.
fn tell_failed(batch: Vec<Job<Transaction>>, index: usize) -> Vec<Job<Transaction>> {
    let (mut first, mut others) = (0, Vec::with_capacity(batch.len()));
    for job in batch {
        let own = first..first + job.asked.checks.len();
        first = own.end;
        match own.contains(&index) {
            true => job.answer(Ok(TxnOutcome::CheckFailed { index: index - own.start })),
            false => others.push(job),
        }
    }
    others
}

#[cfg(test)]
#[cfg(feature = "memory")]
mod tests {
    use super::*;
    use crate::backend::Connector;
    use crate::flaky::{Fault, Script, unreachable};
    use crate::types::Condition;
    use std::pin::pin;
    use std::sync::Arc;
    use tokio::task::LocalSet;

    /// Transactions of which the first few are on their way.
    struct Scene {
        transactions: Rc<Transactions>,
        script: Arc<Script>,
    }

    impl Scene {
        async fn open() -> Self {
            let script = Script::new();
            let transactions = Rc::new(Transactions::new(script.connector(1).connect(0).await.unwrap()));
            script.calls((0..LANES).map(|_| Fault::Wait));
            for _ in 0..LANES {
                let transactions = transactions.clone();
                tokio::task::spawn_local(async move { transactions.run(&[], &[]).await.unwrap() });
            }
            tokio::task::yield_now().await;
            assert_eq!(script.called(), LANES);
            Scene { transactions, script }
        }

        /// What comes of transactions that all wait for a lane, and how many requests were made for them.
        async fn outcomes(&self, asked: &[Transaction]) -> (Vec<Result<TxnOutcome>>, usize) {
            let all = asked.iter().map(|txn| self.transactions.run(&txn.checks, &txn.operations));
            let mut outcomes = pin!(join_all(all));
            assert!((&mut outcomes).now_or_never().is_none());
            self.script.gate.add_permits(LANES);
            let outcomes = outcomes.await;
            (outcomes, self.script.called() - LANES)
        }
    }

    fn exists(path: &str) -> Check {
        Check::new(path, Condition::Exists).unwrap()
    }

    fn absent(path: &str) -> Check {
        Check::new(path, Condition::Absent).unwrap()
    }

    /// A transaction that puts these keys.
    fn txn(checks: impl Into<Vec<Check>>, paths: &[&str]) -> Transaction {
        let operations = paths.iter().map(|path| Operation::put(*path, "v").unwrap()).collect();
        Transaction { checks: checks.into(), operations }
    }

    fn committed(outcome: &Result<TxnOutcome>) -> usize {
        match outcome {
            Ok(TxnOutcome::Committed(results)) => results.len(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn those_that_have_no_key_in_common_go_as_one() {
        let test = async {
            let scene = Scene::open().await;
            let asked = [txn([absent("e")], &["a", "b"]), txn([], &[]), txn([absent("e"), absent("c")], &["c"])];
            let (outcomes, requests) = scene.outcomes(&asked).await;
            assert_eq!((outcomes.iter().map(committed).collect::<Vec<_>>(), requests), (vec![2, 0, 1], 1));
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn a_failed_check_is_its_own_callers_alone() {
        let test = async {
            let scene = Scene::open().await;
            let asked =
                [txn([absent("e")], &["a"]), txn([absent("x"), exists("y")], &["b"]), txn([exists("z")], &["c"])];
            let (outcomes, requests) = scene.outcomes(&asked).await;
            assert_eq!(committed(&outcomes[0]), 1);
            assert_eq!(outcomes[1].as_ref().unwrap(), &TxnOutcome::CheckFailed { index: 1 });
            assert_eq!(outcomes[2].as_ref().unwrap(), &TxnOutcome::CheckFailed { index: 0 });
            assert_eq!(requests, 3);
        };
        LocalSet::new().run_until(test).await;
    }

    /// Together each would see that the other's key is missing, which is so for the first of them only.
    #[tokio::test]
    async fn those_that_check_what_others_change_go_by_themselves() {
        let test = async {
            let scene = Scene::open().await;
            let asked = [txn([absent("a")], &["b"]), txn([absent("b")], &["a"])];
            let (outcomes, requests) = scene.outcomes(&asked).await;
            assert_eq!((committed(&outcomes[0]), requests), (1, 2));
            assert_eq!(outcomes[1].as_ref().unwrap(), &TxnOutcome::CheckFailed { index: 0 });
        };
        LocalSet::new().run_until(test).await;
    }

    #[test]
    fn who_has_a_key_in_common_meets() {
        let meet = |a: &Transaction, b: &Transaction| {
            assert_eq!(a.meets(b), b.meets(a));
            a.meets(b)
        };
        assert!(meet(&txn([], &["a", "b"]), &txn([], &["b"])));
        assert!(meet(&txn([exists("a")], &["b"]), &txn([], &["a"])));
        assert!(!meet(&txn([exists("a")], &["b"]), &txn([absent("a")], &["c"])));
        assert!(!meet(&txn([exists("a")], &["a"]), &txn([exists("c")], &["b"])));
    }

    #[tokio::test]
    async fn no_more_go_together_than_a_transaction_may_have() {
        let test = async {
            let scene = Scene::open().await;
            let path = |txn: usize, key: usize| format!("{txn}/{key}");
            let put = |txn, key| Operation::put(path(txn, key), "v").unwrap();
            let asked: Vec<_> = (0..MAX_TXN_OPERATIONS)
                .map(|txn| Transaction { checks: vec![], operations: (0..10).map(|key| put(txn, key)).collect() })
                .collect();
            let (outcomes, requests) = scene.outcomes(&asked).await;
            assert!(outcomes.iter().map(committed).all(|count| count == 10));
            assert_eq!(requests, MAX_TXN_OPERATIONS.div_ceil(6));
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn what_is_large_does_not_wait_for_others() {
        let test = async {
            let scene = Scene::open().await;
            let large = Operation::put("large", vec![0; MAX_BYTES + 1]).unwrap();
            let many: Vec<_> = (0..=MAX_SIZE).map(|key| exists(&format!("k/{key}"))).collect();
            let outcome = scene.transactions.run(&[], &[large]).await;
            assert_eq!(committed(&outcome), 1);
            let outcome = scene.transactions.run(&many, &[]).await.unwrap();
            assert_eq!(outcome, TxnOutcome::CheckFailed { index: 0 });
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn an_error_of_one_is_not_the_others_and_an_error_of_the_server_is() {
        let test = async {
            let scene = Scene::open().await;
            scene.script.calls([Fault::Fail(Error::backend("one of you must not"))]);
            let asked = [txn([], &["a"]), txn([], &["b"]), txn([absent("c")], &[])];
            let (outcomes, requests) = scene.outcomes(&asked).await;
            assert_eq!((outcomes.iter().map(committed).collect::<Vec<_>>(), requests), (vec![1, 1, 0], 4));
            let scene = Scene::open().await;
            scene.script.calls([Fault::Fail(unreachable())]);
            let (outcomes, requests) = scene.outcomes(&asked).await;
            assert!(requests == 1 && outcomes.iter().all(is_unreachable), "{outcomes:?}");
        };
        LocalSet::new().run_until(test).await;
    }

    fn is_unreachable(outcome: &Result<TxnOutcome>) -> bool {
        matches!(outcome, Err(Error::Unreachable { .. }))
    }

    /// Nobody knows what became of the changes. Who made none may ask again.
    #[tokio::test]
    async fn a_lost_answer_leaves_open_what_was_changed_alone() {
        let test = async {
            let scene = Scene::open().await;
            scene.script.calls([Fault::LoseAnswer]);
            let (outcomes, requests) = scene.outcomes(&[txn([], &["a"]), txn([absent("c")], &[])]).await;
            assert!(matches!(outcomes[0], Err(Error::Indeterminate { .. })) && requests == 1, "{outcomes:?}");
            assert!(is_unreachable(&outcomes[1]), "{outcomes:?}");
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn who_has_left_makes_no_second_attempt() {
        let test = async {
            let scene = Scene::open().await;
            scene.script.calls([Fault::Wait]);
            let (leaves, stays) = (txn([], &["a"]), txn([exists("b")], &["b"]));
            let mut stays = pin!(scene.transactions.run(&stays.checks, &stays.operations));
            {
                let mut leaves = pin!(scene.transactions.run(&leaves.checks, &leaves.operations));
                assert!((&mut leaves).now_or_never().is_none() && (&mut stays).now_or_never().is_none());
                scene.script.gate.add_permits(LANES);
                while scene.script.called() == LANES {
                    tokio::task::yield_now().await;
                }
            }
            scene.script.gate.add_permits(1);
            assert_eq!(stays.await.unwrap(), TxnOutcome::CheckFailed { index: 0 });
            let a = scene.transactions.run(&[absent("a")], &[]).await;
            assert_eq!((committed(&a), scene.script.called()), (0, LANES + 2));
        };
        LocalSet::new().run_until(test).await;
    }
}
