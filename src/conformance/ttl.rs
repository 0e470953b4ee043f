//! Keys with a TTL, and those that are kept alive.

use super::fixture::{Fixture, Outcome};
use super::support::{Moment, all_keys, assert_error, eventually, put_all, value_of};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::types::{Check, Condition, Expected, Operation, PutOptions, TxnOutcome, Version};
use futures_util::future::try_join_all;
use std::time::Duration;

/// A TTL that every backend keeps.
const TTL: Duration = Duration::from_secs(2);

/// A put with [`TTL`], and when it was.
async fn put_ttl(store: &Store, path: &str) -> Result<(Moment, Version)> {
    let (moment, written) = Moment::of(store.put_with(path, "with a TTL", PutOptions::ttl(TTL))).await?;
    Ok((moment, written.version))
}

/// The key is gone no earlier than its TTL after the write, and no later than one second after that.
pub async fn ttl_key_goes_in_time(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let (moment, _) = put_ttl(store, "a/b").await?;
    moment.assert_gone_in_time(store, "a/b", TTL).await?;
    assert_error!(store.get("a/b").await, Error::KeyNotFound { .. });
    assert_error!(store.delete("a/b").await, Error::KeyNotFound { .. });
    assert!(all_keys(store).await?.is_empty());
    Ok(())
}

/// The same for a TTL that is no whole number of seconds, though the server may count in such.
pub async fn ttl_of_fractions_of_seconds(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let ttl = Duration::from_millis(2700);
    let (moment, _) = Moment::of(store.put_with("a", "1", PutOptions::ttl(ttl))).await?;
    moment.assert_gone_in_time(store, "a", ttl).await
}

/// While it lives, a key with a TTL is a key like others.
pub async fn ttl_key_is_a_key_like_others(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let options = PutOptions::ttl(Duration::from_secs(60).min(store.capabilities().max_ttl));
    for path in ["a", "new/directory/a"] {
        let written = store.put_with(path, "1", options).await?;
        let pair = store.get(path).await?;
        assert_eq!((&pair.value[..], pair.version), (&b"1"[..], written.version));
        assert!(store.exists(path).await?);
        assert_error!(store.atomic_put(path, "2", Expected::Absent).await, Error::KeyExists { .. });
        let again = store.put_with(path, "2", options).await?;
        assert!(again.version.index() > written.version.index());
        assert_error!(store.atomic_delete(path, written.version).await, Error::KeyModified { .. });
        assert_eq!(store.list("").await?[0].version, again.version);
        store.atomic_delete(path, again.version).await?;
        assert!(!store.exists(path).await?);
    }
    assert_eq!(store.put_with("d/a", "1", options).await.map(drop).and(store.delete_tree("d").await)?, 1);
    Ok(())
}

/// A write with a TTL says how long the key can outlive the process, one without doesn't.
pub async fn ttl_bound_is_returned(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    for options in [PutOptions::ttl(TTL), PutOptions::keep_alive(TTL)] {
        assert!(store.put_with("a", "1", options).await?.outlives_process_by.is_some());
    }
    assert_eq!(store.put_with("a", "1", PutOptions::default()).await?.outlives_process_by, None);
    Ok(())
}

/// The shortest and the longest TTL of the capabilities work, and two seconds do everywhere.
pub async fn ttl_bounds_are_kept(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let (shortest, longest) = (store.capabilities().min_ttl, store.capabilities().max_ttl);
    assert!(shortest <= TTL && TTL <= longest, "{shortest:?} to {longest:?}");
    store.put_with("longest", "1", PutOptions::ttl(longest)).await?;
    let (moment, _) = Moment::of(store.put_with("shortest", "1", PutOptions::ttl(shortest))).await?;
    moment.assert_gone_in_time(store, "shortest", shortest).await?;
    assert_eq!(all_keys(store).await?, ["longest"]);
    store.delete("longest").await?;
    Ok(())
}

/// A TTL that the backend can't keep is `Unsupported`, with the bounds in the reason, and nothing is written.
pub async fn ttl_out_of_bounds_is_refused(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let (shortest, longest) = (store.capabilities().min_ttl, store.capabilities().max_ttl);
    let nanosecond = Duration::from_nanos(1);
    for ttl in [Duration::ZERO, nanosecond, shortest - nanosecond, longest + nanosecond, Duration::MAX] {
        for options in [PutOptions::ttl(ttl), PutOptions::keep_alive(ttl)] {
            match store.put_with("a", "1", options).await {
                Err(Error::Unsupported { reason }) => {
                    assert!(reason.contains(|c: char| c.is_ascii_digit()), "{reason}")
                }
                other => panic!("a TTL of {ttl:?}: {other:?}"),
            }
        }
    }
    assert!(!store.exists("a").await?);
    Ok(())
}

/// Many keys with TTLs go in time as one does.
pub async fn ttl_of_many_keys(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let paths: Vec<_> = (0..50).map(|number| format!("d/{number}")).collect();
    let moments = try_join_all(paths.iter().map(|path| put_ttl(store, path))).await?;
    try_join_all(moments.iter().zip(&paths).map(|((moment, _), path)| moment.assert_gone_in_time(store, path, TTL)))
        .await?;
    assert!(all_keys(store).await?.is_empty());
    Ok(())
}

/// A later put with a TTL starts the time again, be its TTL the same or another one.
pub async fn ttl_starts_again_with_a_later_put(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    for path in ["same", "longer"] {
        put_ttl(store, path).await?;
    }
    store.put_with("shorter", "1", PutOptions::ttl(TTL * 10)).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let longer = TTL + Duration::from_secs(1);
    let (second_of_longer, _) = Moment::of(store.put_with("longer", "2", PutOptions::ttl(longer))).await?;
    let (second_of_same, _) = put_ttl(store, "same").await?;
    let (second_of_shorter, _) = put_ttl(store, "shorter").await?;
    tokio::try_join!(
        second_of_same.assert_gone_in_time(store, "same", TTL),
        second_of_shorter.assert_gone_in_time(store, "shorter", TTL),
        second_of_longer.assert_gone_in_time(store, "longer", longer),
    )?;
    Ok(())
}

/// A put with a TTL on a permanent key lets it go.
pub async fn ttl_on_a_permanent_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a"]).await?;
    let (moment, _) = put_ttl(store, "a").await?;
    assert_eq!(value_of(store, "a").await?, "with a TTL");
    moment.assert_gone_in_time(store, "a", TTL).await
}

/// A later write without a TTL makes the key permanent: `put`, `atomic_put` and `txn` alike.
pub async fn ttl_ends_with_a_later_write(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_ttl(store, "put").await?;
    let (_, version) = put_ttl(store, "atomic").await?;
    put_ttl(store, "dir/same value").await?;
    let (last, _) = put_ttl(store, "txn").await?;
    store.put("put", "1").await?;
    store.atomic_put("atomic", "1", version).await?;
    store.put("dir/same value", "with a TTL").await?;
    let outcome = store.txn(vec![Check::new("txn", Condition::Exists)?], vec![Operation::put("txn", "1")?]).await?;
    assert!(matches!(outcome, TxnOutcome::Committed(_)));
    let versions = store.list("").await?;
    last.ttl_is_over(TTL).await;
    assert_eq!(all_keys(store).await?, ["atomic", "dir/same value", "put", "txn"]);
    assert_eq!(store.list("").await?, versions);
    Ok(())
}

/// A write that fails leaves the TTL as it was.
pub async fn ttl_survives_a_failed_write(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let (_, old) = put_ttl(store, "a").await?;
    let (moment, _) = Moment::of(store.put_with("a", "2", PutOptions::ttl(TTL))).await?;
    assert_error!(store.atomic_put("a", "3", Expected::Absent).await, Error::KeyExists { .. });
    assert_error!(store.atomic_put("a", "3", old).await, Error::KeyModified { .. });
    assert_error!(store.atomic_delete("a", old).await, Error::KeyModified { .. });
    let checks = vec![Check::new("a", Condition::Absent)?];
    let outcome = store.txn(checks, vec![Operation::put("a", "3")?]).await?;
    assert_eq!(outcome, TxnOutcome::CheckFailed { index: 0 });
    moment.assert_gone_in_time(store, "a", TTL).await
}

/// A key that was deleted by whichever call and written anew isn't taken by its old TTL.
pub async fn ttl_ends_with_a_delete(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_ttl(store, "delete").await?;
    put_ttl(store, "tree/a").await?;
    put_ttl(store, "txn").await?;
    let (last, version) = put_ttl(store, "atomic").await?;
    store.delete("delete").await?;
    store.delete_tree("tree").await?;
    store.atomic_delete("atomic", version).await?;
    let _ = store.txn(vec![], vec![Operation::delete("txn")?]).await?;
    assert!(all_keys(store).await?.is_empty());
    let keys = ["atomic", "delete", "tree/a", "txn"];
    put_all(store, &keys).await?;
    last.ttl_is_over(TTL).await;
    assert_eq!(all_keys(store).await?, keys);
    Ok(())
}

/// A key that went is absent to every call, and its version never comes back.
pub async fn ttl_key_that_went_is_absent(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let (moment, version) = put_ttl(store, "d/a").await?;
    moment.assert_gone_in_time(store, "d/a", TTL).await?;
    assert_error!(store.list("d").await, Error::KeyNotFound { .. });
    assert_error!(store.atomic_put("d/a", "1", version).await, Error::KeyNotFound { .. });
    let pair = store.atomic_put("d/a", "1", Expected::Absent).await?;
    assert!(pair.version.index() > version.index());
    assert_error!(store.atomic_delete("d/a", version).await, Error::KeyModified { .. });
    assert_eq!(all_keys(store).await?, ["d/a"]);
    Ok(())
}

/// Where the capabilities say so, a key with a TTL may stand above others, which stay when it goes; else `Unsupported`.
pub async fn ttl_key_above_others(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "a/b", "c/d"]).await?;
    for path in ["a", "c"] {
        if store.capabilities().ttl_on_directories {
            let (moment, _) = put_ttl(store, path).await?;
            moment.assert_gone_in_time(store, path, TTL).await?;
        } else {
            let before = store.list("").await?;
            assert_error!(put_ttl(store, path).await, Error::Unsupported { .. });
            assert_eq!(store.list("").await?, before);
        }
    }
    assert_eq!(value_of(store, "a/b").await?, "value of a/b");
    assert_eq!(value_of(store, "c/d").await?, "value of c/d");
    Ok(())
}

/// Where the capabilities say so, keys may be put beneath a key with a TTL, and stay when it goes; else `Unsupported`.
pub async fn ttl_key_and_a_put_beneath(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let (moment, version) = put_ttl(store, "a").await?;
    if store.capabilities().ttl_on_directories {
        put_all(store, &["a/b", "a/c/d"]).await?;
    } else {
        assert_error!(store.put("a/b", "1").await, Error::Unsupported { .. });
        assert_error!(store.put("a/c/d", "1").await, Error::Unsupported { .. });
        assert_error!(store.atomic_put("a/b", "1", Expected::Absent).await, Error::Unsupported { .. });
        assert_error!(put_ttl(store, "a/b").await, Error::Unsupported { .. });
        let operations = vec![Operation::put("b", "1")?, Operation::put("a/b", "1")?];
        assert_error!(store.txn(vec![], operations).await, Error::Unsupported { .. });
        assert_eq!(all_keys(store).await?, ["a"]);
    }
    assert_eq!(store.get("a").await?.version, version);
    moment.assert_gone_in_time(store, "a", TTL).await?;
    put_all(store, &["a/b", "a/c/d"]).await?;
    assert_eq!(all_keys(store).await?, ["a/b", "a/c/d"]);
    Ok(())
}

/// A key that is kept alive stays for several TTLs, in one version.
pub async fn keep_alive_outlasts_the_ttl(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let another = fixture.another_or_clone().await?;
    let version = store.put_with("a", "1", PutOptions::keep_alive(TTL)).await?.version;
    let end = tokio::time::Instant::now() + TTL * 3 + TTL / 2;
    while tokio::time::Instant::now() < end {
        assert_eq!(another.get("a").await?.version, version);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    store.delete("a").await?;
    assert!(!another.exists("a").await?);
    Ok(())
}

/// `close` ends what keeps keys alive, and the keys go with it at once; others stay.
pub async fn keep_alive_ends_with_the_store(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let Some(another) = fixture.another().await? else { return Ok(()) };
    let long = PutOptions::keep_alive(Duration::from_secs(60).min(store.capabilities().max_ttl));
    store.put_with("kept/alive", "1", long).await?;
    store.put("permanent", "1").await?;
    another.put_with("of another", "1", long).await?;
    store.close().await?;
    assert_eq!(all_keys(&another).await?, ["of another", "permanent"]);
    Ok(())
}

/// A later put without a TTL makes the key permanent: it outlives the store that kept it alive.
pub async fn keep_alive_ends_with_a_later_put(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let (moment, _) = Moment::of(store.put_with("a", "1", PutOptions::keep_alive(TTL))).await?;
    let version = store.put("a", "2").await?;
    moment.ttl_is_over(TTL).await;
    assert_eq!(store.get("a").await?.version, version);
    let Some(another) = fixture.another().await? else { return Ok(()) };
    store.close().await?;
    assert_eq!(another.get("a").await?.version, version);
    Ok(())
}

/// A later put with a TTL lets the key go.
pub async fn keep_alive_ends_with_a_later_ttl(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    store.put_with("a", "1", PutOptions::keep_alive(TTL)).await?;
    let (moment, _) = put_ttl(store, "a").await?;
    moment.assert_gone_in_time(store, "a", TTL).await
}

/// A key that was deleted, here or elsewhere, is not put back.
pub async fn keep_alive_ends_with_a_delete(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let another = fixture.another_or_clone().await?;
    store.put_with("here", "1", PutOptions::keep_alive(TTL)).await?;
    let (moment, _) = Moment::of(store.put_with("elsewhere", "1", PutOptions::keep_alive(TTL))).await?;
    store.delete("here").await?;
    another.delete("elsewhere").await?;
    store.put_with("staying", "1", PutOptions::keep_alive(TTL)).await?;
    moment.ttl_is_over(TTL).await;
    assert_eq!(all_keys(store).await?, ["staying"]);
    store.delete("staying").await?;
    eventually("the deleted key is gone for others too", async || Ok(all_keys(&another).await?.is_empty())).await
}

/// There is nothing to keep alive without a TTL: `InvalidConfig`.
pub async fn keep_alive_without_a_ttl(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let options = PutOptions { ttl: None, keep_alive: true };
    assert_error!(store.put_with("a", "1", options).await, Error::InvalidConfig { .. });
    assert!(!store.exists("a").await?);
    Ok(())
}
