//! `atomic_put` and `atomic_delete`.

use super::fixture::{Fixture, Outcome};
use super::support::{all_keys, assert_error, put_all, value_of};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::types::{BackendKind, Expected, KvPair, Operation, OperationResult, PutOptions, TxnOutcome, Version};

/// `Absent` creates the key.
pub async fn atomic_put_creates_an_absent_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    for path in ["a", "new/directory/a", "new/directory/b"] {
        let pair = store.atomic_put(path, "1", Expected::Absent).await?;
        assert_eq!((pair.key.as_str(), &pair.value[..]), (path, &b"1"[..]));
        assert_eq!(store.get(path).await?, pair);
    }
    Ok(())
}

/// `Absent` on a key that is there is `KeyExists`, and the key stays as it was.
pub async fn atomic_put_absent_on_an_existing_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "b/c", "b"]).await?;
    store.put("empty", "").await?;
    for path in ["a", "b", "b/c", "empty"] {
        let before = store.get(path).await?;
        assert_error!(store.atomic_put(path, "2", Expected::Absent).await, Error::KeyExists { .. }, "{path}");
        assert_eq!(store.get(path).await?, before);
    }
    Ok(())
}

/// A directory is no key: `Absent` creates the key of its name, and what is beneath stays.
pub async fn atomic_put_absent_on_a_parent(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a/b/c"]).await?;
    for path in ["a/b", "a"] {
        let pair = store.atomic_put(path, "1", Expected::Absent).await?;
        assert_eq!(store.get(path).await?, pair);
        assert_error!(store.atomic_put(path, "2", Expected::Absent).await, Error::KeyExists { .. });
    }
    assert_eq!(all_keys(store).await?, ["a", "a/b", "a/b/c"]);
    Ok(())
}

/// A deleted key is absent, with and without keys beneath it.
pub async fn atomic_put_absent_on_a_deleted_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "b", "b/c"]).await?;
    for path in ["a", "b"] {
        store.delete(path).await?;
        let pair = store.atomic_put(path, "2", Expected::Absent).await?;
        assert_eq!(store.get(path).await?, pair);
    }
    Ok(())
}

/// The version that the key has lets the write through, once.
pub async fn atomic_put_replaces_the_expected_version(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let version = store.put("a", "1").await?;
    store.atomic_put("a", "2", version).await?;
    assert_eq!(value_of(store, "a").await?, "2");
    assert_error!(store.atomic_put("a", "3", version).await, Error::KeyModified { .. });
    assert_eq!(value_of(store, "a").await?, "2");
    Ok(())
}

/// The returned pair is the one written by this call: key, value and version.
pub async fn atomic_put_returns_the_pair_as_written(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let created = store.atomic_put("/a//b/", "1", Expected::Absent).await?;
    assert_eq!((created.key.as_str(), &created.value[..]), ("a/b", &b"1"[..]));
    assert_eq!(store.get("a/b").await?, created);
    let replaced = store.atomic_put("a/b", "2", &created).await?;
    assert_eq!((replaced.key.as_str(), &replaced.value[..]), ("a/b", &b"2"[..]));
    assert_eq!(store.get("a/b").await?, replaced);
    assert!(replaced.version.index() > created.version.index());
    Ok(())
}

/// Another version than the expected one is `KeyModified`, and the key stays as it was.
pub async fn atomic_put_on_another_version(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let old = store.put("a", "1").await?;
    let older = store.put("b/c", "1").await?;
    store.put("a", "2").await?;
    store.put("b/c", "").await?;
    for (path, version) in [("a", old), ("b/c", older)] {
        let before = store.get(path).await?;
        assert_error!(store.atomic_put(path, "3", version).await, Error::KeyModified { .. });
        assert_eq!(store.get(path).await?, before);
    }
    Ok(())
}

/// A version of a key that is gone is `KeyNotFound`, and makes no key.
pub async fn atomic_put_on_a_missing_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    for path in ["a", "new/directory/a"] {
        let version = store.put(path, "1").await?;
        store.delete(path).await?;
        assert_error!(store.atomic_put(path, "2", version).await, Error::KeyNotFound { .. });
    }
    let version = store.put("b", "1").await?;
    assert_error!(store.atomic_put("never/was", "2", version).await, Error::KeyNotFound { .. });
    assert_eq!(all_keys(store).await?, ["b"]);
    Ok(())
}

/// A version of a key of which only the directory is left is `KeyNotFound`.
pub async fn atomic_put_on_a_parent(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let version = store.put("a", "1").await?;
    store.put("a/b", "1").await?;
    store.delete("a").await?;
    assert_error!(store.atomic_put("a", "2", version).await, Error::KeyNotFound { .. });
    assert_error!(store.atomic_delete("a", version).await, Error::KeyNotFound { .. });
    assert_eq!(all_keys(store).await?, ["a/b"]);
    Ok(())
}

/// The returned pair is what the next call expects, with each value and the same one again.
pub async fn atomic_put_chains(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let mut pair = store.atomic_put("a", "", Expected::Absent).await?;
    for value in ["1", "1", "", "", "2", "a longer value", "1"] {
        pair = store.atomic_put("a", value, &pair).await?;
        assert_eq!(store.get("a").await?, pair);
    }
    store.atomic_delete("a", pair.version).await?;
    Ok(())
}

/// A version from before a delete-and-recreate never matches, though value and number of writes be the same.
pub async fn atomic_put_of_an_old_incarnation(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    for (path, old) in old_incarnations(store).await? {
        let before = store.get(path).await?;
        assert_ne!(before.version, old);
        assert_error!(store.atomic_put(path, "3", old).await, Error::KeyModified { .. }, "{path}");
        assert_eq!(store.get(path).await?, before, "{path}");
    }
    Ok(())
}

/// The same for `atomic_delete`.
pub async fn atomic_delete_of_an_old_incarnation(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    for (path, old) in old_incarnations(store).await? {
        let before = store.get(path).await?;
        assert_error!(store.atomic_delete(path, old).await, Error::KeyModified { .. }, "{path}");
        assert_eq!(store.get(path).await?, before, "{path}");
    }
    Ok(())
}

/// Keys that were written, deleted and written again in the same way, with their versions from before.
async fn old_incarnations(store: &Store) -> Result<Vec<(&'static str, Version)>> {
    store.put("above/beneath", "1").await?;
    let mut old = Vec::new();
    for path in ["once", "twice", "above", "by tree/a"] {
        old.push((path, incarnation(store, path).await?));
        match path {
            "by tree/a" => store.delete_tree("by tree").await.map(drop)?,
            _ => store.delete(path).await?,
        }
        incarnation(store, path).await?;
    }
    let empty = store.put("empty", "").await?;
    store.delete("empty").await?;
    store.put("empty", "").await?;
    old.push(("empty", empty));
    Ok(old)
}

async fn incarnation(store: &Store, path: &str) -> Result<Version> {
    let version = store.put(path, "1").await?;
    if path == "twice" { store.put(path, "2").await } else { Ok(version) }
}

/// The version of another key is `KeyModified`.
pub async fn atomic_put_with_the_version_of_another_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let other = store.put("a", "1").await?;
    store.put("b", "1").await?;
    assert_error!(store.atomic_put("b", "2", other).await, Error::KeyModified { .. });
    assert_eq!(value_of(store, "b").await?, "1");
    Ok(())
}

/// The same for `atomic_delete`.
pub async fn atomic_delete_with_the_version_of_another_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    store.put("a", "1").await?;
    let other = store.put("b", "1").await?;
    assert_error!(store.atomic_delete("a", other).await, Error::KeyModified { .. });
    assert!(store.exists("a").await?);
    Ok(())
}

/// A version that another backend made is `Unsupported`, whether or not its number fits.
pub async fn atomic_put_with_the_version_of_another_backend(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let own = store.put("a", "1").await?;
    for foreign in foreign_versions(own) {
        assert_error!(store.atomic_put("a", "2", foreign).await, Error::Unsupported { .. }, "{foreign:?}");
        assert_error!(store.atomic_put("missing", "2", foreign).await, Error::Unsupported { .. }, "{foreign:?}");
    }
    assert_eq!(store.get("a").await?.version, own);
    Ok(())
}

/// The same for `atomic_delete`.
pub async fn atomic_delete_with_the_version_of_another_backend(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let own = store.put("a", "1").await?;
    for foreign in foreign_versions(own) {
        assert_error!(store.atomic_delete("a", foreign).await, Error::Unsupported { .. }, "{foreign:?}");
        assert_error!(store.atomic_delete("missing", foreign).await, Error::Unsupported { .. }, "{foreign:?}");
    }
    assert_eq!(store.get("a").await?.version, own);
    Ok(())
}

/// What the other backends might have called this version.
pub(super) fn foreign_versions(own: Version) -> impl Iterator<Item = Version> {
    use BackendKind::{Consul, Custom, Etcd, Local, Memory, ZooKeeper};
    [Consul, Etcd, ZooKeeper, Local, Memory, Custom]
        .into_iter()
        .filter(move |backend| *backend != own.backend())
        .map(move |backend| Version::with_counter(backend, own.index(), own.created(), own.counter()))
}

/// A version is the same from whichever call it comes: `put`, `put_with`, `get`, `list`, `atomic_put`, `txn`, another
/// store.
pub async fn atomic_put_with_versions_from_everywhere(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let another = fixture.another_or_clone().await?;
    let from_put = store.put("a", "1").await?;
    store.atomic_put("a", "2", from_put).await?;
    store.atomic_put("a", "3", &store.get("a").await?).await?;
    store.atomic_put("a", "4", &store.list("").await?[0]).await?;
    store.atomic_put("a", "5", &another.get("a").await?).await?;
    let from_ttl = store.put_with("a", "6", PutOptions::ttl(store.capabilities().max_ttl)).await?.version;
    another.atomic_put("a", "7", from_ttl).await?;
    let from_txn = match store.txn(vec![], vec![Operation::put("a", "8")?]).await? {
        TxnOutcome::Committed(results) => results[0],
        failed => panic!("a transaction without checks: {failed:?}"),
    };
    let OperationResult::Put(from_txn) = from_txn else { panic!("a put in a transaction: {from_txn:?}") };
    let KvPair { version, .. } = store.atomic_put("a", "9", from_txn).await?;
    another.atomic_delete("a", version).await?;
    assert!(!store.exists("a").await?);
    Ok(())
}

/// A version that was stored or sent is as good as before.
pub async fn atomic_put_with_a_serialised_version(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let travelled =
        |version: Version| -> Version { serde_json::from_str(&serde_json::to_string(&version).unwrap()).unwrap() };
    let version = store.put("a", "1").await?;
    let pair = store.atomic_put("a", "2", travelled(version)).await?;
    assert_error!(store.atomic_put("a", "3", travelled(version)).await, Error::KeyModified { .. });
    store.atomic_delete("a", travelled(pair.version)).await?;
    Ok(())
}

/// The version that the key has lets the delete through.
pub async fn atomic_delete_of_the_expected_version(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let version = store.put("a", "1").await?;
    store.atomic_delete("/a/", version).await?;
    assert!(!store.exists("a").await?);
    let empty = store.put("b/c", "").await?;
    store.atomic_delete("b/c", empty).await?;
    assert!(all_keys(store).await?.is_empty());
    Ok(())
}

/// Another version than the expected one is `KeyModified`, and the key stays as it was.
pub async fn atomic_delete_of_another_version(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let old = store.put("a", "1").await?;
    let new = store.put("a", "2").await?;
    assert_error!(store.atomic_delete("a", old).await, Error::KeyModified { .. });
    assert_eq!(value_of(store, "a").await?, "2");
    store.atomic_delete("a", new).await?;
    Ok(())
}

/// A version of a key that is gone, or never was, is `KeyNotFound`.
pub async fn atomic_delete_of_a_missing_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let version = store.put("a", "1").await?;
    store.atomic_delete("a", version).await?;
    assert_error!(store.atomic_delete("a", version).await, Error::KeyNotFound { .. });
    assert_error!(store.atomic_delete("never/was", version).await, Error::KeyNotFound { .. });
    Ok(())
}

/// `atomic_delete` of a key leaves what is beneath it.
pub async fn atomic_delete_leaves_what_is_beneath(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let version = store.put("a", "1").await?;
    store.put("a/b", "1").await?;
    assert_eq!(store.get("a").await?.version, version, "a key beneath is no change of the key");
    store.atomic_delete("a", version).await?;
    assert_error!(store.get("a").await, Error::KeyNotFound { .. });
    assert_eq!(all_keys(store).await?, ["a/b"]);
    Ok(())
}
