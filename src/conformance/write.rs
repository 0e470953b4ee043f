//! `put` and `delete`, and what a version is.

use super::fixture::{Fixture, Outcome};
use super::support::{all_keys, assert_error, value_of};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::types::{Expected, Operation, OperationResult, PutOptions, TxnOutcome, Version};

/// A second `put` replaces the value.
pub async fn put_overwrites(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    for value in ["1", "a longer value", "", "2"] {
        store.put("a", value).await?;
        assert_eq!(value_of(store, "a").await?, value);
    }
    assert_eq!(all_keys(store).await?, ["a"]);
    Ok(())
}

/// `put` returns the version of its write: the one that `get` and `list` show.
pub async fn put_returns_the_version_that_get_shows(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    for path in ["a", "new/directory/a", "a", "new/directory", "new"] {
        let version = store.put(path, "1").await?;
        store.put("another", path).await?;
        assert_eq!(store.get(path).await?.version, version, "{path}");
    }
    let version = store.put("a", "").await?;
    assert_eq!(store.list("").await?[0].version, version);
    Ok(())
}

/// `put_with` without options does what `put` does.
pub async fn put_with_default_options_is_put(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let written = store.put_with("a", "1", PutOptions::default()).await?;
    assert_eq!(written.outlives_process_by, None);
    let pair = store.get("a").await?;
    assert_eq!((pair.version, pair.value), (written.version, "1".into()));
    Ok(())
}

/// Writing the same bytes again returns the version that the key then has, and the key can be changed by it.
pub async fn put_of_the_same_value_keeps_a_true_version(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let first = store.put("a", "same").await?;
    let second = store.put("a", "same").await?;
    assert!(second.index() >= first.index());
    assert_eq!(store.get("a").await?.version, second);
    store.atomic_put("a", "other", second).await?;
    Ok(())
}

/// `Version::index` grows with every change of the key, by whichever call.
pub async fn versions_grow_with_every_change(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let mut versions = vec![store.atomic_put("a", "0", Expected::Absent).await?.version];
    for round in 1..10 {
        versions.push(change(store, round).await?);
    }
    assert_grow(&versions);
    Ok(())
}

/// `Version::index` grows on when the key is deleted and made again, and no version of it comes back.
pub async fn versions_grow_over_delete_and_recreate(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let mut versions = Vec::new();
    for _ in 0..5 {
        versions.push(store.put("a", "1").await?);
        versions.push(store.put("a", "2").await?);
        store.delete("a").await?;
    }
    assert_grow(&versions);
    Ok(())
}

async fn change(store: &Store, round: usize) -> Result<Version> {
    let value = round.to_string();
    let before = store.get("a").await?;
    Ok(match round % 3 {
        0 => store.put("a", value).await?,
        1 => store.atomic_put("a", value, &before).await?.version,
        _ => match store.txn(vec![], vec![Operation::put("a", value)?]).await? {
            TxnOutcome::Committed(results) => put_version(&results[0]),
            failed => panic!("a transaction without checks: {failed:?}"),
        },
    })
}

fn put_version(result: &OperationResult) -> Version {
    match result {
        OperationResult::Put(version) => *version,
        deleted => panic!("a put in a transaction: {deleted:?}"),
    }
}

fn assert_grow(versions: &[Version]) {
    for pair in versions.windows(2) {
        assert!(pair[0].index() < pair[1].index(), "versions must grow: {versions:?}");
        assert_ne!(pair[0], pair[1]);
    }
}

/// A version knows the backend that made it.
pub async fn versions_name_their_backend(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let backend = store.capabilities().backend;
    assert_eq!(store.put("a", "1").await?.backend(), backend);
    assert_eq!(store.get("a").await?.version.backend(), backend);
    assert_eq!(store.list("").await?[0].version.backend(), backend);
    Ok(())
}

/// A version can be stored and sent: it comes back from serde as it was.
pub async fn versions_survive_serialisation(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    for value in ["1", "2", "3"] {
        let version = store.put("a", value).await?;
        let text = serde_json::to_string(&version).unwrap();
        assert_eq!(serde_json::from_str::<Version>(&text).unwrap(), version, "{text}");
    }
    Ok(())
}

/// `delete` removes the key from every call.
pub async fn delete_removes_the_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    store.put("a/b", "1").await?;
    store.put("a/c", "1").await?;
    store.delete("a/b").await?;
    assert_error!(store.get("a/b").await, Error::KeyNotFound { .. });
    assert!(!store.exists("a/b").await?);
    assert_eq!(all_keys(store).await?, ["a/c"]);
    Ok(())
}

/// `delete` of a key that isn't there is `KeyNotFound`.
pub async fn delete_of_a_missing_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    assert_error!(store.delete("a").await, Error::KeyNotFound { .. });
    store.put("ab", "1").await?;
    assert_error!(store.delete("a").await, Error::KeyNotFound { .. });
    assert_error!(store.delete("ab/c/d").await, Error::KeyNotFound { .. });
    assert_eq!(all_keys(store).await?, ["ab"]);
    Ok(())
}

/// The second of two deletes finds nothing.
pub async fn delete_twice(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    store.put("a", "1").await?;
    store.delete("a").await?;
    assert_error!(store.delete("a").await, Error::KeyNotFound { .. });
    store.put("a", "2").await?;
    store.delete("a").await?;
    assert_error!(store.get("a").await, Error::KeyNotFound { .. });
    Ok(())
}
