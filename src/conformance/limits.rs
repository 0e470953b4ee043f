//! How large a value may be.

use super::fixture::{Fixture, Outcome};
use super::support::{all_keys, assert_error, value_of};
use crate::error::{Error, Result};
use crate::types::{Expected, ListOptions, Operation, PutOptions};
use bytes::Bytes;
use futures_util::future::try_join_all;

/// The largest value that every backend takes, and the limit unless a store is configured otherwise.
const LIMIT: usize = 512 * 1024;

/// Bytes that don't compress and are no text.
fn bytes(size: usize) -> Bytes {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..size).map(|_| next()).collect()
}

/// 512 KiB can be put, with and without a TTL.
pub async fn largest_value_by_put(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let value = bytes(LIMIT);
    store.put("a", value.clone()).await?;
    assert!(value_of(store, "a").await? == value);
    let options = PutOptions::ttl(store.capabilities().max_ttl);
    store.put_with("b", value.clone(), options).await?;
    assert!(value_of(store, "b").await? == value);
    Ok(())
}

/// 512 KiB can be written by `atomic_put`, to an absent key and over a version.
pub async fn largest_value_by_atomic_put(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let value = bytes(LIMIT);
    let pair = store.atomic_put("a", value.clone(), Expected::Absent).await?;
    assert!(store.get("a").await? == pair && pair.value == value);
    let reversed: Bytes = value.iter().rev().copied().collect();
    let pair = store.atomic_put("a", reversed.clone(), &pair).await?;
    assert!(store.get("a").await? == pair && pair.value == reversed);
    Ok(())
}

/// A directory may hold more than any message of a server's protocol: list it whole, in pages and by keys, and delete
/// it.
pub async fn largest_values_in_a_list(fixture: &Fixture) -> Outcome {
    const COUNT: usize = 10;
    let store = fixture.store();
    let value = bytes(LIMIT);
    let paths: Vec<_> = (0..COUNT).map(|number| format!("large/{number}")).collect();
    try_join_all(paths.iter().map(|path| store.put(path, value.clone()))).await?;
    let pairs = store.list("large").await?;
    assert_eq!(pairs.len(), COUNT);
    assert!(pairs.iter().all(|pair| pair.value == value));
    let page = store.list_with("large", ListOptions { limit: Some(COUNT - 1), ..ListOptions::default() }).await?;
    assert_eq!((page.items.len(), page.next.as_deref()), (COUNT - 1, Some("large/8")));
    assert_eq!(all_keys(store).await?, paths);
    assert_eq!(store.delete_tree("large").await?, COUNT as u64);
    assert!(all_keys(store).await?.is_empty());
    Ok(())
}

fn assert_too_large<T: std::fmt::Debug>(result: Result<T>) {
    match result {
        Err(Error::ValueTooLarge { key, size, limit }) => {
            assert_eq!((&*key, size, limit), ("a", LIMIT + 1, LIMIT));
        }
        other => panic!("expected ValueTooLarge, got {other:?}"),
    }
}

/// One byte more is `ValueTooLarge`, and what was there stays.
pub async fn too_large_a_value_is_refused_by_put(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let value = bytes(LIMIT + 1);
    assert_too_large(store.put("a", value.clone()).await);
    assert_too_large(store.put_with("a", value.clone(), PutOptions::default()).await);
    let options = PutOptions::keep_alive(store.capabilities().max_ttl);
    assert_too_large(store.put_with("a", value.clone(), options).await);
    assert!(!store.exists("a").await?);
    let version = store.put("a", "small").await?;
    assert_too_large(store.put("a", value).await);
    assert_eq!(store.get("a").await?.version, version);
    Ok(())
}

/// One byte more is `ValueTooLarge`, whatever is expected.
pub async fn too_large_a_value_is_refused_by_atomic_put(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let value = bytes(LIMIT + 1);
    assert_too_large(store.atomic_put("a", value.clone(), Expected::Absent).await);
    let version = store.put("a", "small").await?;
    assert_too_large(store.atomic_put("a", value.clone(), version).await);
    assert_too_large(store.atomic_put("a", value, Expected::Absent).await);
    assert_eq!(store.get("a").await?.version, version);
    Ok(())
}

/// One byte more in one operation is `ValueTooLarge`, and none of the operations is applied.
pub async fn too_large_a_value_is_refused_by_txn(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let operations = vec![Operation::put("b", "small")?, Operation::put("a", bytes(LIMIT + 1))?];
    assert_too_large(store.txn(vec![], operations).await);
    assert_error!(store.get("b").await, Error::KeyNotFound { .. });
    Ok(())
}
