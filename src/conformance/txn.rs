//! `txn`: all or nothing over several keys.

use super::atomic::foreign_versions;
use super::fixture::{Fixture, Outcome};
use super::support::{all_keys, assert_error, put_all, value_of};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::types::{Check, Condition, MAX_TXN_OPERATIONS, Operation, OperationResult, TxnOutcome, Version};

fn check(path: &str, condition: Condition) -> Check {
    Check::new(path, condition).unwrap()
}

fn put(path: &str, value: &'static str) -> Operation {
    Operation::put(path, value).unwrap()
}

fn delete(path: &str) -> Operation {
    Operation::delete(path).unwrap()
}

/// The results of a transaction that must be applied.
async fn commit(store: &Store, checks: Vec<Check>, operations: Vec<Operation>) -> Result<Vec<OperationResult>> {
    let count = operations.len();
    match store.txn(checks, operations).await? {
        TxnOutcome::Committed(results) => {
            assert_eq!(results.len(), count, "one result for each operation");
            Ok(results)
        }
        failed => panic!("the checks should hold: {failed:?}"),
    }
}

/// Which of the conditions fails first for `path`; none where all hold.
async fn failed(store: &Store, path: &str, condition: Condition) -> Result<bool> {
    match store.txn(vec![check(path, condition)], vec![]).await? {
        TxnOutcome::Committed(_) => Ok(false),
        TxnOutcome::CheckFailed { index } => {
            assert_eq!(index, 0);
            Ok(true)
        }
    }
}

fn version(result: &OperationResult) -> Version {
    match result {
        OperationResult::Put(version) => *version,
        OperationResult::Deleted => panic!("expected the result of a put"),
    }
}

/// A transaction whose checks hold applies all its operations.
pub async fn txn_applies_everything(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["from", "gone"]).await?;
    let checks = vec![check("from", Condition::Exists), check("to", Condition::Absent)];
    commit(store, checks, vec![delete("from"), put("to", "moved"), put("gone", "kept")]).await?;
    assert_eq!(all_keys(store).await?, ["gone", "to"]);
    assert_eq!(value_of(store, "to").await?, "moved");
    assert_eq!(value_of(store, "gone").await?, "kept");
    Ok(())
}

/// A transaction of nothing holds and does nothing.
pub async fn txn_of_nothing(fixture: &Fixture) -> Outcome {
    assert!(commit(fixture.store(), vec![], vec![]).await?.is_empty());
    Ok(())
}

/// A transaction may be checks alone: a look at several keys at one moment.
pub async fn txn_of_checks_alone(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "b"]).await?;
    let holds = vec![check("a", Condition::Exists), check("b", Condition::Exists), check("c", Condition::Absent)];
    assert!(commit(store, holds.clone(), vec![]).await?.is_empty());
    store.delete("b").await?;
    assert_eq!(store.txn(holds, vec![]).await?, TxnOutcome::CheckFailed { index: 1 });
    Ok(())
}

/// A transaction with a failed check changes nothing.
pub async fn txn_with_a_failed_check_changes_nothing(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "b"]).await?;
    let before = store.list("").await?;
    let operations = vec![put("a", "2"), delete("b"), put("new/c", "2"), delete("missing")];
    let outcome = store.txn(vec![check("a", Condition::Exists), check("b", Condition::Absent)], operations).await?;
    assert_eq!(outcome, TxnOutcome::CheckFailed { index: 1 });
    assert_eq!(store.list("").await?, before);
    Ok(())
}

/// The index is that of the first check that failed, in the order given.
pub async fn txn_names_the_first_failed_check(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["there"]).await?;
    let stale = store.get("there").await?.version;
    store.put("there", "2").await?;
    let failing = [
        check("missing", Condition::Exists),
        check("there", Condition::Absent),
        check("there", Condition::Version(stale)),
        check("missing", Condition::Version(stale)),
    ];
    for first in &failing {
        for index in 0..4 {
            let holding = [check("there", Condition::Exists), check("missing", Condition::Absent)];
            let mut checks: Vec<_> = holding.into_iter().cycle().take(index).collect();
            checks.push(first.clone());
            checks.extend(failing.iter().cloned());
            let outcome = store.txn(checks, vec![put("new", "1")]).await?;
            assert_eq!(outcome, TxnOutcome::CheckFailed { index }, "{first:?}");
        }
    }
    assert_eq!(all_keys(store).await?, ["there"]);
    Ok(())
}

/// `Condition::Exists` holds for keys, with each value, and for nothing else.
pub async fn txn_checks_existence(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "b/c"]).await?;
    store.put("empty", "").await?;
    for (path, fails) in [("a", false), ("b/c", false), ("empty", false), ("missing", true), ("a/b", true)] {
        assert_eq!(failed(store, path, Condition::Exists).await?, fails, "{path}");
    }
    store.delete("a").await?;
    assert!(failed(store, "a", Condition::Exists).await?);
    Ok(())
}

/// `Condition::Absent` holds where there is no key.
pub async fn txn_checks_absence(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "b/c"]).await?;
    store.put("empty", "").await?;
    for (path, fails) in [("a", true), ("b/c", true), ("empty", true), ("missing", false), ("x/y/z", false)] {
        assert_eq!(failed(store, path, Condition::Absent).await?, fails, "{path}");
    }
    store.delete("a").await?;
    assert!(!failed(store, "a", Condition::Absent).await?);
    Ok(())
}

/// `Condition::Version` holds for the version that the key has, and for no other and no missing key.
pub async fn txn_checks_versions(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let old = store.put("a", "1").await?;
    let other = store.put("b", "1").await?;
    let now = store.put("a", "2").await?;
    for (path, version, fails) in
        [("a", now, false), ("a", old, true), ("a", other, true), ("b", other, false), ("missing", now, true)]
    {
        assert_eq!(failed(store, path, Condition::Version(version)).await?, fails, "{path} {version:?}");
    }
    store.delete("a").await?;
    assert!(failed(store, "a", Condition::Version(now)).await?);
    Ok(())
}

/// A version from before a delete-and-recreate never holds, though value and number of writes be the same.
pub async fn txn_checks_no_old_incarnation(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    store.put("above/beneath", "1").await?;
    for path in ["a", "above"] {
        let old = store.put(path, "1").await?;
        store.delete(path).await?;
        let now = store.put(path, "1").await?;
        assert!(failed(store, path, Condition::Version(old)).await?);
        assert!(!failed(store, path, Condition::Version(now)).await?);
        let checks = vec![check(path, Condition::Version(old))];
        assert_eq!(store.txn(checks, vec![delete(path)]).await?, TxnOutcome::CheckFailed { index: 0 });
        assert!(store.exists(path).await?);
    }
    Ok(())
}

/// A check for a version that another backend made is `Unsupported`.
pub async fn txn_checks_refuse_versions_of_another_backend(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let own = store.put("a", "1").await?;
    for foreign in foreign_versions(own) {
        let checks = vec![check("a", Condition::Exists), check("a", Condition::Version(foreign))];
        assert_error!(store.txn(checks, vec![put("a", "2")]).await, Error::Unsupported { .. }, "{foreign:?}");
    }
    assert_eq!(store.get("a").await?.version, own);
    Ok(())
}

/// What is there only to carry keys beneath is absent, whether or not a key was there before.
pub async fn txn_checks_take_parents_for_absent(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a/b/c", "d", "d/e"]).await?;
    let version = store.get("d").await?.version;
    store.delete("d").await?;
    for path in ["a", "a/b", "d"] {
        assert!(!failed(store, path, Condition::Absent).await?, "{path}");
        assert!(failed(store, path, Condition::Exists).await?, "{path}");
        assert!(failed(store, path, Condition::Version(version)).await?, "{path}");
        commit(store, vec![check(path, Condition::Absent)], vec![put(path, "1")]).await?;
        assert_eq!(value_of(store, path).await?, "1");
    }
    assert_eq!(all_keys(store).await?, ["a", "a/b", "a/b/c", "d", "d/e"]);
    Ok(())
}

/// A key may be checked, several times, and changed in one transaction.
pub async fn txn_checks_and_changes_one_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let created = commit(store, vec![check("a", Condition::Absent)], vec![put("a", "1")]).await?;
    let current = version(&created[0]);
    let checks = || vec![check("a", Condition::Exists), check("a", Condition::Version(current))];
    commit(store, checks(), vec![put("a", "2")]).await?;
    assert_eq!(store.txn(checks(), vec![put("a", "3")]).await?, TxnOutcome::CheckFailed { index: 1 });
    assert_eq!(value_of(store, "a").await?, "2");
    commit(store, vec![check("a", Condition::Exists)], vec![delete("a")]).await?;
    assert!(!store.exists("a").await?);
    Ok(())
}

/// A delete is content with a key that isn't there.
pub async fn txn_deletes_what_is_there_or_not(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "b/c"]).await?;
    let operations =
        vec![delete("missing"), delete("a"), delete("no/such"), delete("b"), delete("b/c/d"), put("e", "1")];
    let results = commit(store, vec![], operations).await?;
    assert!(results[..5].iter().all(|result| *result == OperationResult::Deleted));
    assert_eq!(all_keys(store).await?, ["b/c", "e"]);
    Ok(())
}

/// The results are in the order of the operations.
pub async fn txn_results_are_in_order(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["b", "d", "e"]).await?;
    let operations =
        vec![put("z/new", "1"), delete("b"), put("a", "2"), delete("missing"), put("d", "3"), put("e", "")];
    let results = commit(store, vec![check("e", Condition::Exists)], operations).await?;
    for (index, path) in [(0, "z/new"), (2, "a"), (4, "d"), (5, "e")] {
        assert_eq!(store.get(path).await?.version, version(&results[index]), "{path}");
    }
    assert_eq!((results[1], results[3]), (OperationResult::Deleted, OperationResult::Deleted));
    Ok(())
}

/// The versions in the results are those of the keys, and the next write can expect them.
pub async fn txn_versions_are_true(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let old = store.put("a", "1").await?;
    let results = commit(store, vec![], vec![put("a", "2"), put("b/c", "2")]).await?;
    assert!(version(&results[0]).index() > old.index());
    assert_error!(store.atomic_put("a", "3", old).await, Error::KeyModified { .. });
    store.atomic_put("a", "3", version(&results[0])).await?;
    store.atomic_delete("b/c", version(&results[1])).await?;
    Ok(())
}

/// 64 checks and operations together are allowed.
pub async fn txn_of_64_entries(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let half = MAX_TXN_OPERATIONS / 2;
    let puts = |count| (0..count).map(|number| put(&format!("d/{number:02}"), "1")).collect::<Vec<_>>();
    let absent =
        |count| (0..count).map(|number| check(&format!("d/{number:02}"), Condition::Absent)).collect::<Vec<_>>();
    commit(store, absent(half), puts(half)).await?;
    assert_eq!(all_keys(store).await?.len(), half);
    commit(store, vec![], puts(MAX_TXN_OPERATIONS)).await?;
    assert_eq!(all_keys(store).await?.len(), MAX_TXN_OPERATIONS);
    let deletes = puts(MAX_TXN_OPERATIONS).iter().map(|put| delete(put.key())).collect();
    commit(store, vec![], deletes).await?;
    commit(store, absent(MAX_TXN_OPERATIONS), vec![]).await?;
    Ok(())
}

/// One more is `Unsupported`, and nothing is changed.
pub async fn txn_of_65_entries(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let puts = |count| (0..count).map(|number| put(&format!("d/{number}"), "1")).collect::<Vec<_>>();
    let checks = |count| (0..count).map(|number| check(&format!("c/{number}"), Condition::Absent)).collect::<Vec<_>>();
    for count in [0, 1, 32, 65] {
        let outcome = store.txn(checks(count), puts(MAX_TXN_OPERATIONS + 1 - count)).await;
        assert_error!(outcome, Error::Unsupported { .. }, "{count} checks");
    }
    assert!(all_keys(store).await?.is_empty());
    Ok(())
}

/// Two operations on one key are `Unsupported`, however the key is written, and nothing is changed.
pub async fn txn_changing_a_key_twice(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a/b"]).await?;
    for (first, second) in [
        (put("a/b", "2"), put("a/b", "3")),
        (put("a/b", "2"), delete("a/b")),
        (delete("a/b"), put("a/b", "2")),
        (delete("a/b"), delete("/a//b/")),
    ] {
        let operations = vec![put("other", "1"), first, second];
        assert_error!(store.txn(vec![], operations).await, Error::Unsupported { .. });
    }
    assert_eq!(all_keys(store).await?, ["a/b"]);
    assert_eq!(value_of(store, "a/b").await?, "value of a/b");
    Ok(())
}

/// Keys may lie in directories that don't exist yet.
pub async fn txn_in_new_directories(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let operations = vec![put("new/a/b", "1"), put("new/a/c", "2"), put("newer/d/e/f", "3"), put("g", "4")];
    commit(store, vec![check("new/a", Condition::Absent)], operations).await?;
    assert_eq!(all_keys(store).await?, ["g", "new/a/b", "new/a/c", "newer/d/e/f"]);
    assert_error!(store.get("new/a").await, Error::KeyNotFound { .. });
    Ok(())
}

/// One transaction may change keys above and beneath each other, in any order of the operations.
pub async fn txn_with_keys_above_and_beneath_each_other(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    commit(store, vec![], vec![put("a/b/c", "1"), put("a", "2"), put("a/b", "")]).await?;
    commit(store, vec![], vec![put("d", ""), put("d/e", "2"), put("d/e/f", "3")]).await?;
    assert_eq!(all_keys(store).await?, ["a", "a/b", "a/b/c", "d", "d/e", "d/e/f"]);
    assert_eq!(value_of(store, "a/b").await?, "");
    commit(store, vec![], vec![delete("a"), delete("a/b/c"), put("a/b/d", "4"), delete("a/b")]).await?;
    commit(store, vec![], vec![delete("d/e/f"), put("d/e", "5"), delete("d")]).await?;
    assert_eq!(all_keys(store).await?, ["a/b/d", "d/e"]);
    commit(store, vec![], vec![delete("a/b/d"), put("a/b", "6"), delete("d/e"), put("d/e/f", "7")]).await?;
    assert_eq!(all_keys(store).await?, ["a/b", "d/e/f"]);
    assert_eq!(value_of(store, "a/b").await?, "6");
    Ok(())
}

/// Putting and deleting a key leaves what is beneath it.
pub async fn txn_on_keys_with_others_beneath(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "a/b", "c/d"]).await?;
    commit(store, vec![], vec![delete("a"), put("c", "1")]).await?;
    assert_eq!(all_keys(store).await?, ["a/b", "c", "c/d"]);
    commit(store, vec![check("a", Condition::Absent)], vec![put("a", "2"), delete("c")]).await?;
    assert_eq!(all_keys(store).await?, ["a", "a/b", "c/d"]);
    assert_eq!(value_of(store, "a/b").await?, "value of a/b");
    Ok(())
}

/// An empty value written by a transaction is a value: of new keys, old ones, directories and deleted keys.
pub async fn txn_writes_empty_values(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["old", "parent/x", "deleted", "deleted/x"]).await?;
    store.delete("deleted").await?;
    let results =
        commit(store, vec![], vec![put("new", ""), put("old", ""), put("parent", ""), put("deleted", "")]).await?;
    for (path, result) in ["new", "old", "parent", "deleted"].into_iter().zip(&results) {
        let pair = store.get(path).await?;
        assert_eq!((pair.value.len(), pair.version), (0, version(result)), "{path}");
    }
    assert_eq!(all_keys(store).await?, ["deleted", "deleted/x", "new", "old", "parent", "parent/x"]);
    Ok(())
}
