//! `get` and `exists`, and what a value is.

use super::fixture::{Fixture, Outcome};
use super::support::{STALE, all_keys, assert_error, eventually, put_all, value_of};
use crate::error::Error;
use crate::types::{Expected, Operation, PutOptions};
use bytes::Bytes;

/// `get` returns the key, the value and its version.
pub async fn get_returns_what_was_put(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let version = store.put("a/b", "value").await?;
    let pair = store.get("a/b").await?;
    assert_eq!((pair.key.as_str(), &pair.value[..], pair.version), ("a/b", &b"value"[..], version));
    assert_eq!(store.get("a/b").await?, pair, "a read changes nothing");
    Ok(())
}

/// `get` of a key that isn't there is `KeyNotFound`, beside keys of similar names too.
pub async fn get_of_a_missing_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    assert_error!(store.get("a").await, Error::KeyNotFound { .. });
    put_all(store, &["ab", "a/b", "A"]).await?;
    for path in ["a", "b", "a/bc", "ab/c", "a/b/c"] {
        assert_error!(store.get(path).await, Error::KeyNotFound { .. });
        assert_error!(store.get_with(path, STALE).await, Error::KeyNotFound { .. });
    }
    Ok(())
}

/// `get` of a deleted key is `KeyNotFound`.
pub async fn get_of_a_deleted_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    store.put("a", "1").await?;
    store.delete("a").await?;
    assert_error!(store.get("a").await, Error::KeyNotFound { .. });
    Ok(())
}

/// A linearizable read sees every write that was acknowledged before it began, by whomever.
pub async fn get_sees_the_writes_of_another_store_at_once(fixture: &Fixture) -> Outcome {
    let writer = fixture.store();
    let reader = fixture.another_or_clone().await?;
    for round in 0..20 {
        let value = round.to_string();
        let version = writer.put("a", value.clone()).await?;
        let pair = reader.get("a").await?;
        assert_eq!((pair.value, pair.version), (value.into(), version));
    }
    writer.delete("a").await?;
    assert!(!reader.exists("a").await?);
    Ok(())
}

/// A stale read may lag, and catches up.
pub async fn get_stale_sees_a_write_in_the_end(fixture: &Fixture) -> Outcome {
    let reader = fixture.another_or_clone().await?;
    let version = fixture.store().put("a", "1").await?;
    eventually("a stale `get` sees the write", async || match reader.get_with("a", STALE).await {
        Ok(pair) => Ok(pair.version == version && pair.value == "1"),
        Err(Error::KeyNotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    })
    .await
}

/// `exists` says whether a key is there, with each value and after each change.
pub async fn exists_tells_keys_from_absence(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    assert!(!store.exists("a").await?);
    store.put("a", "1").await?;
    assert!(store.exists("a").await?);
    store.put("a", "").await?;
    assert!(store.exists("a").await?);
    store.delete("a").await?;
    assert!(!store.exists("a").await?);
    store.put("ab", "1").await?;
    assert!(!store.exists("a").await?, "a longer name is another key");
    Ok(())
}

/// A stale `exists` may lag, and catches up, with deletes too.
pub async fn exists_stale_sees_a_write_in_the_end(fixture: &Fixture) -> Outcome {
    let reader = fixture.another_or_clone().await?;
    fixture.store().put("a", "1").await?;
    eventually("a stale `exists` sees the put", async || reader.exists_with("a", STALE).await).await?;
    fixture.store().delete("a").await?;
    eventually("a stale `exists` sees the delete", async || Ok(!reader.exists_with("a", STALE).await?)).await
}

/// Empty is a value and differs from absent, by whichever call it was written.
pub async fn an_empty_value_is_no_absence(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    store.put("put", "").await?;
    store.put_with("put/ttl", "", PutOptions::ttl(store.capabilities().max_ttl)).await?;
    store.atomic_put("created", "", Expected::Absent).await?;
    let version = store.put("replaced", "not empty").await?;
    store.atomic_put("replaced", "", version).await?;
    let _ = store.txn(vec![], vec![Operation::put("txn", "")?]).await?;
    let keys = ["created", "put", "put/ttl", "replaced", "txn"];
    assert_eq!(all_keys(store).await?, keys);
    for (path, pair) in keys.into_iter().zip(store.list("").await?) {
        assert!(store.exists(path).await?, "{path}");
        let read = store.get(path).await?;
        assert!(read.value.is_empty(), "{path}");
        assert_eq!(read, pair);
        assert_error!(store.atomic_put(path, "", Expected::Absent).await, Error::KeyExists { .. }, "{path}");
        store.delete(path).await?;
        assert!(!store.exists(path).await?, "{path}");
    }
    Ok(())
}

/// A key with an empty value stays one while keys beneath it come and go.
pub async fn an_empty_value_beside_keys_beneath(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    for above in ["first", "last"] {
        let beneath = format!("{above}/beneath");
        if above == "first" {
            store.put(above, "").await?;
            store.put(&beneath, "").await?;
        } else {
            store.put(&beneath, "").await?;
            store.put(above, "").await?;
        }
        let version = store.get(above).await?.version;
        store.delete(&beneath).await?;
        assert_eq!(store.get(above).await?.version, version, "{above}");
        let full = store.atomic_put(above, "full", version).await?;
        store.atomic_put(above, "", full.version).await?;
        assert_eq!(value_of(store, above).await?, "");
    }
    assert_eq!(all_keys(store).await?, ["first", "last"]);
    Ok(())
}

/// A value is bytes: any of them, in any order.
pub async fn every_byte_survives_in_a_value(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let every_byte: Vec<u8> = (0..=u8::MAX).chain((0..=u8::MAX).rev()).collect();
    let values = [Bytes::from(every_byte), Bytes::from_static(b"\0"), Bytes::from_static(b"\xff\xfe\r\n\0 ")];
    for value in values {
        store.put("put", value.clone()).await?;
        assert_eq!(value_of(store, "put").await?, value);
        let pair = store.get("put").await?;
        assert_eq!(store.atomic_put("put", value.clone(), &pair).await?.value, value);
        let _ = store.txn(vec![], vec![Operation::put("txn", value.clone())?]).await?;
        let listed: Vec<_> = store.list("").await?.into_iter().map(|pair| pair.value).collect();
        assert_eq!(listed, [value.clone(), value]);
    }
    Ok(())
}
