//! Locks: one holder at a time, and nobody is misled about who it is.

use super::fixture::{Fixture, Outcome};
use super::support::{all_keys, assert_error, key, keys_of};
use crate::error::{Error, Result};
use crate::lock::{LockEvent, LockGuard, LockOptions};
use crate::store::Store;
use crate::types::{Check, Condition, ListOptions, Operation, OperationResult, TxnOutcome};
use crate::watch::WatchEvent;
use futures_util::future::{join_all, try_join_all};
use std::time::{Duration, Instant};

/// Longest wait for what is due.
const DUE: Duration = Duration::from_secs(20);
/// Long enough for what must not happen to show.
const A_WHILE: Duration = Duration::from_millis(300);

/// Whether the backend has locks. One that hasn't must say so.
async fn has_locks(store: &Store) -> bool {
    if !store.capabilities().locks {
        assert_error!(store.lock("lock").await, Error::Unsupported { .. });
    }
    store.capabilities().locks
}

fn valued(value: &'static str) -> LockOptions {
    LockOptions { value: value.into(), ..LockOptions::default() }
}

fn within(timeout: Duration) -> LockOptions {
    LockOptions { timeout: Some(timeout), ..LockOptions::default() }
}

/// For holders and those who wait in one task.
fn in_one_task() -> LockOptions {
    LockOptions { wait_for_own_task: true, ..LockOptions::default() }
}

/// A wait for a lock that goes on by itself.
fn wait_for(store: &Store, path: &'static str, options: LockOptions) -> tokio::task::JoinHandle<Result<LockGuard>> {
    let store = store.clone();
    tokio::spawn(async move { store.lock_with(path, options).await })
}

async fn due<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DUE, what).await.expect("it is due")
}

/// What is held is not given to another before it is given back; tokens grow.
pub async fn a_lock_has_one_holder(f: &Fixture) -> Outcome {
    let (store, other) = (f.store(), f.another_or_clone().await?);
    if !has_locks(store).await {
        return Ok(());
    }
    let first = store.lock("lock").await?;
    assert!(first.is_held() && first.remaining() > Duration::ZERO && first.remaining() <= first.ttl());
    let mut waiting = wait_for(&other, "lock", LockOptions::default());
    assert!(tokio::time::timeout(A_WHILE, &mut waiting).await.is_err(), "two holders");
    assert!(first.is_held());
    let token = first.token();
    first.unlock().await?;
    let second = due(waiting).await.unwrap()?;
    assert!(second.is_held() && second.token() > token, "{} after {token}", second.token());
    second.unlock().await?;
    Ok(())
}

/// Tokens grow from one acquisition to the next, whoever gets it.
pub async fn tokens_of_a_lock_grow(f: &Fixture) -> Outcome {
    let (store, other) = (f.store(), f.another_or_clone().await?);
    if !has_locks(store).await {
        return Ok(());
    }
    let mut last = 0;
    for round in 0..10 {
        let guard = if round % 3 == 2 { &other } else { store }.lock("lock").await?;
        assert!(guard.token() > last, "{} after {last}", guard.token());
        last = guard.token();
        guard.unlock().await?;
    }
    Ok(())
}

/// While a lock is held its key has the holder's value; otherwise it doesn't exist. Those who wait never show.
pub async fn a_held_lock_is_a_key_with_its_holders_value(f: &Fixture) -> Outcome {
    let (store, other) = (f.store(), f.another_or_clone().await?);
    if !has_locks(store).await {
        return Ok(());
    }
    store.put("locks/a", "before").await?;
    let guard = store.lock_with("locks/b", valued("first")).await?;
    let waiting = wait_for(&other, "locks/b", valued("second"));
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(other.get("locks/b").await?.value, "first");
    assert!(other.exists("locks/b").await?);
    assert_eq!(keys_of(&store.list("locks").await?), ["locks/a", "locks/b"]);
    assert_eq!(store.list("locks").await?[1].value, "first");
    assert_eq!(all_keys(store).await?, ["locks/a", "locks/b"]);
    assert!(store.list("locks/b").await?.is_empty());
    guard.unlock().await?;
    let guard = due(waiting).await.unwrap()?;
    assert_eq!(store.get("locks/b").await?.value, "second");
    guard.unlock().await?;
    assert_error!(store.get("locks/b").await, Error::KeyNotFound { .. });
    assert_eq!(all_keys(store).await?, ["locks/a"]);
    Ok(())
}

/// The value is changed without giving the lock up.
pub async fn a_holder_publishes_another_value(f: &Fixture) -> Outcome {
    let (store, other) = (f.store(), f.another_or_clone().await?);
    if !has_locks(store).await {
        return Ok(());
    }
    let guard = store.lock_with("lock", valued("first")).await?;
    let token = guard.token();
    guard.publish("second").await?;
    guard.publish("").await?;
    assert_eq!(other.get("lock").await?.value, "");
    guard.publish("third").await?;
    assert_eq!(other.get("lock").await?.value, "third");
    tokio::time::sleep(2 * A_WHILE).await;
    assert!(guard.is_held() && guard.token() == token);
    assert_error!(guard.publish(vec![0; (512 << 10) + 1]).await, Error::ValueTooLarge { .. });
    guard.unlock().await?;
    assert!(!other.exists("lock").await?);
    Ok(())
}

/// `try_lock` doesn't wait, and leaves nothing behind.
pub async fn try_lock_does_not_wait(f: &Fixture) -> Outcome {
    let (store, other) = (f.store(), f.another_or_clone().await?);
    if !has_locks(store).await {
        return Ok(());
    }
    let guard = store.try_lock("lock").await?;
    assert_error!(store.try_lock("lock").await, Error::LockHeld { .. });
    assert_error!(other.try_lock("lock").await, Error::LockHeld { .. });
    guard.unlock().await?;
    assert!(all_keys(store).await?.is_empty());
    let guard = other.try_lock("lock").await?;
    guard.unlock().await?;
    Ok(())
}

/// `try_lock` doesn't wait either where others of its store do.
pub async fn try_lock_does_not_wait_with_others(f: &Fixture) -> Outcome {
    let (store, other) = (f.store(), f.another_or_clone().await?);
    if !has_locks(store).await {
        return Ok(());
    }
    let guard = store.lock("lock").await?;
    let waiting = wait_for(&other, "lock", LockOptions::default());
    tokio::time::sleep(A_WHILE).await;
    let begun = Instant::now();
    assert_error!(other.try_lock("lock").await, Error::LockHeld { .. });
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    guard.unlock().await?;
    due(waiting).await.unwrap()?.unlock().await?;
    Ok(())
}

/// Waiting ends when its time is over, and leaves nothing behind.
pub async fn waiting_for_a_lock_ends_in_time(f: &Fixture) -> Outcome {
    let (store, other) = (f.store(), f.another_or_clone().await?);
    if !has_locks(store).await {
        return Ok(());
    }
    let guard = store.lock("lock").await?;
    let begun = Instant::now();
    let waited = tokio::spawn(async move { other.lock_with("lock", within(A_WHILE)).await }).await.unwrap();
    assert_error!(waited, Error::LockHeld { .. });
    assert!(begun.elapsed() >= A_WHILE && begun.elapsed() < DUE);
    guard.unlock().await?;
    let guard = store.lock_with("lock", within(DUE)).await?;
    guard.unlock().await?;
    Ok(())
}

/// A task that would wait for itself is told so; another task of the same store waits, and one that gave its guard away may.
pub async fn a_task_does_not_wait_for_itself(f: &Fixture) -> Outcome {
    let store = f.store();
    if !has_locks(store).await {
        return Ok(());
    }
    let guard = store.lock("lock").await?;
    assert_error!(store.lock("lock").await, Error::LockHeld { .. });
    let elsewhere = wait_for(store, "lock", LockOptions::default());
    let allowed = LockOptions { timeout: Some(A_WHILE), ..in_one_task() };
    assert_error!(store.lock_with("lock", allowed).await, Error::LockHeld { .. });
    guard.unlock().await?;
    due(elsewhere).await.unwrap()?.unlock().await?;
    Ok(())
}

/// Those who wait in one store are served in the order in which they came.
pub async fn waiters_of_a_store_are_served_in_order(f: &Fixture) -> Outcome {
    let store = f.store();
    if !has_locks(store).await {
        return Ok(());
    }
    let served = std::sync::Mutex::new(Vec::new());
    let guard = store.lock("lock").await?;
    let waiting = join_all((0..20).map(|number| {
        let served = &served;
        async move {
            let guard = store.lock_with("lock", in_one_task()).await?;
            served.lock().unwrap().push(number);
            guard.unlock().await
        }
    }));
    let release = async {
        tokio::time::sleep(A_WHILE).await;
        guard.unlock().await
    };
    let (released, all) = due(futures_util::future::join(release, waiting)).await;
    released?;
    for one in all {
        one?;
    }
    assert!(served.lock().unwrap().iter().copied().eq(0..20), "{served:?}");
    Ok(())
}

/// Dropping the wait at any moment leaves nothing that stands in the way.
pub async fn who_gives_up_waiting_leaves_nothing(f: &Fixture) -> Outcome {
    let (store, other) = (f.store(), f.another_or_clone().await?);
    if !has_locks(store).await {
        return Ok(());
    }
    for micros in [0, 200, 1_000, 3_000, 10_000, 50_000, 200_000] {
        let guard = store.lock("lock").await?;
        let waiting = wait_for(&other, "lock", LockOptions::default());
        tokio::time::sleep(Duration::from_micros(micros)).await;
        waiting.abort();
        drop(waiting);
        guard.unlock().await?;
        // Without one who holds it.
        let getting = wait_for(&other, "lock", LockOptions::default());
        tokio::time::sleep(Duration::from_micros(micros / 10)).await;
        getting.abort();
        drop(getting);
        due(store.lock("lock")).await?.unlock().await?;
        assert!(all_keys(store).await?.is_empty());
    }
    Ok(())
}

/// Dropping a guard gives the lock back.
pub async fn a_dropped_guard_gives_the_lock_back(f: &Fixture) -> Outcome {
    let (store, other) = (f.store(), f.another_or_clone().await?);
    if !has_locks(store).await {
        return Ok(());
    }
    let guard = store.lock("lock").await?;
    let waiting = wait_for(&other, "lock", LockOptions::default());
    drop(guard);
    due(waiting).await.unwrap()?.unlock().await?;
    Ok(())
}

/// Guarded writes are made while the lock is held.
pub async fn guarded_writes_are_made_while_the_lock_is_held(f: &Fixture) -> Outcome {
    let store = f.store();
    if !has_locks(store).await {
        return Ok(());
    }
    let guard = store.lock("lock").await?;
    let version = guard.put("data/a", "1").await?;
    assert_eq!(store.get("data/a").await?.version, version);
    guard.put("data/b", "2").await?;
    guard.delete("data/b").await?;
    guard.delete("data/b").await?;
    assert_eq!(keys_of(&store.list("data").await?), ["data/a"]);
    let checks = vec![Check::new("data/a", Condition::Version(version))?, Check::new("data/c", Condition::Absent)?];
    let operations = vec![Operation::put("data/c", "3")?, Operation::delete("data/a")?];
    let outcome = guard.txn(checks.clone(), operations.clone()).await?;
    let TxnOutcome::Committed(results) = outcome else { panic!("{outcome:?}") };
    assert!(matches!(results[..], [OperationResult::Put(_), OperationResult::Deleted]));
    assert_eq!(guard.txn(checks, operations).await?, TxnOutcome::CheckFailed { index: 0 });
    let absent = vec![Check::new("data/c", Condition::Exists)?, Check::new("data/c", Condition::Absent)?];
    assert_eq!(guard.txn(absent, Vec::new()).await?, TxnOutcome::CheckFailed { index: 1 });
    assert_eq!(keys_of(&store.list("data").await?), ["data/c"]);
    guard.unlock().await?;
    Ok(())
}

/// A transaction of the largest size fits, and one more is refused.
pub async fn the_largest_guarded_transaction(f: &Fixture) -> Outcome {
    let store = f.store();
    if !has_locks(store).await {
        return Ok(());
    }
    let guard = store.lock("lock").await?;
    let puts = |count: usize| {
        (0..count).map(|number| Operation::put(format!("data/{number}"), "x")).collect::<Result<Vec<_>>>()
    };
    assert!(matches!(guard.txn(Vec::new(), puts(63)?).await?, TxnOutcome::Committed(_)));
    assert_eq!(store.list("data").await?.len(), 63);
    assert_error!(guard.txn(Vec::new(), puts(64)?).await, Error::Unsupported { .. });
    guard.unlock().await?;
    Ok(())
}

/// An ordinary key is no lock, and stays as it is.
pub async fn an_ordinary_key_is_no_lock(f: &Fixture) -> Outcome {
    let store = f.store();
    if !has_locks(store).await {
        return Ok(());
    }
    let version = store.put("key", "value").await?;
    assert_error!(store.lock("key").await, Error::KeyExists { .. });
    assert_error!(store.try_lock("key").await, Error::KeyExists { .. });
    let pair = store.get("key").await?;
    assert_eq!((&pair.value[..], pair.version), (&b"value"[..], version));
    assert_eq!(all_keys(store).await?, ["key"]);
    store.delete("key").await?;
    store.lock("key").await?.unlock().await?;
    Ok(())
}

/// A lock may have keys beneath it, and they may have locks beneath them.
pub async fn a_lock_beside_keys_beneath_it(f: &Fixture) -> Outcome {
    let (store, other) = (f.store(), f.another_or_clone().await?);
    if !has_locks(store).await {
        return Ok(());
    }
    store.put("jobs/a", "1").await?;
    let outer = store.lock("jobs").await?;
    let inner = other.lock("jobs/b/c").await?;
    assert_eq!(all_keys(store).await?, ["jobs", "jobs/a", "jobs/b/c"]);
    assert_error!(other.try_lock("jobs").await, Error::LockHeld { .. });
    outer.unlock().await?;
    assert_eq!(all_keys(store).await?, ["jobs/a", "jobs/b/c"]);
    inner.unlock().await?;
    let children = ListOptions { depth: crate::Depth::Children, ..ListOptions::default() };
    assert_eq!(store.list_keys("jobs", children).await?.items, [key("jobs/a")]);
    Ok(())
}

/// Who watches the key sees who holds the lock.
pub async fn watch_tells_who_holds_a_lock(f: &Fixture) -> Outcome {
    let (store, other) = (f.store(), f.another_or_clone().await?);
    if !has_locks(store).await {
        return Ok(());
    }
    let mut events = other.watch("lock").await?;
    let mut value = async || loop {
        match due(events.next()).await {
            Some(WatchEvent::Put(pair)) => return Some(pair.value),
            Some(WatchEvent::Delete { .. }) => return None,
            Some(_) => {}
            None => panic!("the store is open"),
        }
    };
    assert_eq!(value().await, None);
    let guard = store.lock_with("lock", valued("first")).await?;
    assert_eq!(value().await.as_deref(), Some(&b"first"[..]));
    guard.publish("second").await?;
    assert_eq!(value().await.as_deref(), Some(&b"second"[..]));
    guard.unlock().await?;
    assert_eq!(value().await, None);
    Ok(())
}

/// A lock that is given back tells so.
pub async fn a_lock_tells_of_its_end(f: &Fixture) -> Outcome {
    let store = f.store();
    if !has_locks(store).await {
        return Ok(());
    }
    let guard = store.lock("lock").await?;
    let mut events = guard.events();
    assert_eq!(due(events.next()).await, Some(LockEvent::Held));
    guard.unlock().await?;
    assert_eq!(due(events.next()).await, Some(LockEvent::Released));
    assert_eq!(events.next().await, None);
    Ok(())
}

/// Closing a store gives its locks back at once; its guards know.
pub async fn closing_gives_locks_back(f: &Fixture) -> Outcome {
    let Some(other) = f.another().await? else { return Ok(()) };
    if !has_locks(f.store()).await {
        return Ok(());
    }
    let guard = other.lock("lock").await?;
    let waiting = wait_for(f.store(), "lock", LockOptions::default());
    let also_waiting = wait_for(&other, "lock", LockOptions::default());
    tokio::time::sleep(A_WHILE).await;
    other.close().await?;
    assert!(!guard.is_held() && guard.remaining().is_zero());
    due(guard.lost()).await;
    assert_error!(guard.put("data", "x").await, Error::LockLost { .. });
    assert_error!(guard.unlock().await, Error::Closed);
    assert_error!(also_waiting.await.unwrap(), Error::Closed);
    assert_error!(other.lock("lock").await, Error::Closed);
    let begun = Instant::now();
    let guard = due(waiting).await.unwrap()?;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    guard.unlock().await?;
    assert!(all_keys(f.store()).await?.is_empty());
    Ok(())
}

/// Bad input is refused.
pub async fn refused_locks(f: &Fixture) -> Outcome {
    let store = f.store();
    if !has_locks(store).await {
        return Ok(());
    }
    assert_error!(store.lock("").await, Error::InvalidKey { .. });
    assert_error!(store.lock("a/../b").await, Error::InvalidKey { .. });
    let too_large = LockOptions { value: vec![0; (512 << 10) + 1].into(), ..LockOptions::default() };
    assert_error!(store.lock_with("lock", too_large).await, Error::ValueTooLarge { .. });
    let capabilities = store.capabilities();
    for ttl in [Duration::ZERO, capabilities.min_lock_ttl / 2, capabilities.max_lock_ttl * 2] {
        let refused = store.lock_with("lock", LockOptions { ttl, ..LockOptions::default() }).await;
        let Err(Error::Unsupported { reason }) = refused else { panic!("{ttl:?}: {refused:?}") };
        assert!(reason.contains(&format!("{:?}", capabilities.min_lock_ttl)), "{reason}");
    }
    assert!(all_keys(store).await?.is_empty());
    Ok(())
}

/// Several stores and tasks count under one lock, and no count is lost.
pub async fn counting_under_a_lock(f: &Fixture) -> Outcome {
    const TASKS: u64 = 4;
    const ROUNDS: u64 = 5;
    let store = f.store();
    if !has_locks(store).await {
        return Ok(());
    }
    let stores = [store.clone(), f.another_or_clone().await?];
    store.put("counter", "0").await?;
    let count = async |store: Store| {
        for _ in 0..ROUNDS {
            let guard = store.lock_with("lock", in_one_task()).await?;
            let text = store.get("counter").await?.value;
            let counter: u64 = std::str::from_utf8(&text).unwrap().parse().unwrap();
            guard.put("counter", (counter + 1).to_string()).await?;
            guard.unlock().await?;
        }
        Ok::<(), Error>(())
    };
    let tasks = (0..TASKS).flat_map(|_| stores.clone()).map(count);
    due(try_join_all(tasks)).await?;
    let counted = store.get("counter").await?.value;
    assert_eq!(counted, (TASKS * 2 * ROUNDS).to_string());
    Ok(())
}
