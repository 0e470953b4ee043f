//! `watch` and `watch_tree`: what subscribers are told.

use super::fixture::{Fixture, Outcome};
use super::support::{assert_error, eventually, key, keys_of, put_all};
use crate::error::Error;
use crate::store::Store;
use crate::types::{Expected, KvPair, Operation, PutOptions, Version};
use crate::watch::{Lists, TreeEvent, TreeStream, WatchEvent, WatchStream};
use futures_util::future::try_join_all;
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest wait for an event that is due.
const DUE: Duration = Duration::from_secs(15);

/// The next event of a key.
async fn next(events: &mut WatchStream) -> WatchEvent {
    let event = tokio::time::timeout(DUE, events.next()).await;
    event.expect("an event is due").expect("the store is open")
}

/// The next event of a directory.
async fn next_of_tree(events: &mut TreeStream) -> TreeEvent {
    let event = tokio::time::timeout(DUE, events.next()).await;
    event.expect("an event is due").expect("the store is open")
}

async fn next_list(lists: &mut Lists) -> Vec<KvPair> {
    tokio::time::timeout(DUE, lists.next()).await.expect("a list is due").expect("the store is open")
}

/// The next event is a put of this value in this version.
async fn assert_put(events: &mut WatchStream, value: &str, version: Version) {
    match next(events).await {
        WatchEvent::Put(pair) => assert_eq!((&pair.value[..], pair.version), (value.as_bytes(), version)),
        other => panic!("expected the put of `{value}`, got {other:?}"),
    }
}

/// The next event is a deletion of what was known.
async fn assert_delete(events: &mut WatchStream, path: &str, known: Version) {
    match next(events).await {
        WatchEvent::Delete { key, version: Some(version) } => {
            assert_eq!(key.as_str(), path);
            assert!(version.index() >= known.index());
        }
        other => panic!("expected the deletion of `{path}`, got {other:?}"),
    }
}

async fn assert_absent(events: &mut WatchStream, path: &str) {
    assert_eq!(next(events).await, WatchEvent::Delete { key: key(path), version: None });
}

/// The first event of a directory.
async fn snapshot(events: &mut TreeStream) -> Vec<KvPair> {
    match next_of_tree(events).await {
        TreeEvent::Snapshot(pairs) => pairs,
        other => panic!("expected a snapshot, got {other:?}"),
    }
}

/// What somebody who was told these events knows.
#[derive(Default)]
struct Told(BTreeMap<String, KvPair>);

impl Told {
    /// Takes an event, which must be news.
    fn take(&mut self, event: TreeEvent) {
        match event {
            TreeEvent::Snapshot(pairs) => {
                assert!(self.0.is_empty(), "a second snapshot");
                assert!(pairs.is_sorted_by_key(|pair| pair.key.clone()));
                self.0 = pairs.into_iter().map(|pair| (pair.key.to_string(), pair)).collect();
            }
            TreeEvent::Put(pair) => {
                let now = pair.version.index();
                if let Some(before) = self.0.insert(pair.key.to_string(), pair) {
                    assert!(
                        before.version.index() < now,
                        "`{}` went from {} to {now}",
                        before.key,
                        before.version.index()
                    );
                }
            }
            TreeEvent::Delete { key, version } => {
                let before = self.0.remove(key.as_str()).unwrap_or_else(|| panic!("`{key}` was not known"));
                assert!(before.version.index() <= version.index());
            }
            TreeEvent::Suspended | TreeEvent::Resumed => {}
            TreeEvent::Closed => panic!("the store is open"),
        }
    }

    /// Takes events until what is known is what the store holds, which does not change any more.
    async fn converge(&mut self, events: &mut TreeStream, store: &Store, dir: &str) -> Outcome {
        let there = match store.list(dir).await {
            Err(Error::KeyNotFound { .. }) => Vec::new(),
            listed => listed?,
        };
        while !self.0.values().eq(&there) {
            self.take(next_of_tree(events).await);
        }
        Ok(())
    }
}

/// The first event is the state: the pair, or that there is none.
pub async fn watch_opens_with_the_state(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let version = store.put("there", "1").await?;
    assert_put(&mut store.watch("there").await?, "1", version).await;
    assert_absent(&mut store.watch("not/there").await?, "not/there").await;
    Ok(())
}

/// Writes and deletions are events, in order, of a key that didn't exist at first.
pub async fn watch_tells_of_writes_and_deletions(fixture: &Fixture) -> Outcome {
    let (store, other) = (fixture.store(), fixture.another_or_clone().await?);
    let mut events = store.watch("a/b").await?;
    assert_absent(&mut events, "a/b").await;
    for round in 0..3 {
        let first = other.put("a/b", format!("{round}")).await?;
        assert_put(&mut events, &format!("{round}"), first).await;
        let second = other.put("a/b", "").await?;
        assert_put(&mut events, "", second).await;
        other.delete("a/b").await?;
        assert_delete(&mut events, "a/b", second).await;
    }
    Ok(())
}

/// Whatever changes the key is told.
pub async fn watch_tells_of_every_kind_of_change(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let mut events = store.watch("d/k").await?;
    assert_absent(&mut events, "d/k").await;
    let created = store.atomic_put("d/k", "created", Expected::Absent).await?;
    assert_put(&mut events, "created", created.version).await;
    let changed = store.atomic_put("d/k", "changed", &created).await?;
    assert_put(&mut events, "changed", changed.version).await;
    store.atomic_delete("d/k", changed.version).await?;
    assert_delete(&mut events, "d/k", changed.version).await;
    let _ = store.txn(vec![], vec![Operation::put("d/k", "in a txn")?]).await?;
    let version = store.get("d/k").await?.version;
    assert_put(&mut events, "in a txn", version).await;
    let _ = store.txn(vec![], vec![Operation::delete("d/k")?]).await?;
    assert_delete(&mut events, "d/k", version).await;
    let version = store.put("d/k", "in a tree").await?;
    assert_put(&mut events, "in a tree", version).await;
    store.delete_tree("d").await?;
    assert_delete(&mut events, "d/k", version).await;
    Ok(())
}

/// The end of a TTL is a deletion, and the renewals before it are no events.
pub async fn watch_tells_of_the_end_of_a_ttl(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let mut events = store.watch("short").await?;
    assert_absent(&mut events, "short").await;
    let options = PutOptions::ttl(store.capabilities().min_ttl);
    let version = store.put_with("short", "1", options).await?.version;
    assert_put(&mut events, "1", version).await;
    assert_delete(&mut events, "short", version).await;
    Ok(())
}

/// Neither keys beneath nor those that start alike are events of a key.
pub async fn watch_sees_only_its_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let mut events = store.watch("a").await?;
    assert_absent(&mut events, "a").await;
    put_all(store, &["a/b", "ab", "a b", "b/a"]).await?;
    store.delete("a/b").await?;
    let version = store.put("a", "1").await?;
    assert_put(&mut events, "1", version).await;
    put_all(store, &["a/b", "a/c/d"]).await?;
    store.delete("a").await?;
    assert_delete(&mut events, "a", version).await;
    Ok(())
}

/// Names that need escaping somewhere are told as they are.
pub async fn watch_of_odd_keys(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let mut tree = store.watch_tree("odd dir?#%").await?;
    assert!(snapshot(&mut tree).await.is_empty());
    for path in ["odd dir?#%/a b", "odd dir?#%/50%", "odd dir?#%/\u{e4}\u{1f980}+x", "odd dir?#%/q?r#s"] {
        let mut events = store.watch(path).await?;
        assert_absent(&mut events, path).await;
        let version = store.put(path, "1").await?;
        assert_put(&mut events, "1", version).await;
        match next_of_tree(&mut tree).await {
            TreeEvent::Put(pair) => assert_eq!((pair.key.as_str(), pair.version), (path, version)),
            other => panic!("expected the put of `{path}`, got {other:?}"),
        }
    }
    Ok(())
}

/// The first event of a directory is all that is strictly beneath it, sorted, and empty where nothing is.
pub async fn watch_tree_opens_with_a_snapshot(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["foo", "foobar/x", "foo/b/c", "foo/a", "foo/b"]).await?;
    let pairs = snapshot(&mut store.watch_tree("foo").await?).await;
    assert_eq!(keys_of(&pairs), ["foo/a", "foo/b", "foo/b/c"]);
    assert_eq!(pairs, store.list("foo").await?);
    assert!(snapshot(&mut store.watch_tree("missing").await?).await.is_empty());
    let all = snapshot(&mut store.watch_tree("").await?).await;
    assert_eq!(all, store.list("").await?);
    Ok(())
}

/// Only what is strictly beneath the directory is told of, at any depth.
pub async fn watch_tree_tells_of_what_is_strictly_beneath(fixture: &Fixture) -> Outcome {
    let (store, other) = (fixture.store(), fixture.another_or_clone().await?);
    let mut events = store.watch_tree("foo").await?;
    assert!(snapshot(&mut events).await.is_empty());
    put_all(&other, &["foo", "foobar/x", "foobar", "fo"]).await?;
    let deep = other.put("foo/a/b/c", "deep").await?;
    match next_of_tree(&mut events).await {
        TreeEvent::Put(pair) => assert_eq!((pair.key.as_str(), pair.version), ("foo/a/b/c", deep)),
        other => panic!("expected the put of `foo/a/b/c`, got {other:?}"),
    }
    // A key where only a directory was, and its deletion, which leaves the directory.
    let between = other.put("foo/a", "").await?;
    match next_of_tree(&mut events).await {
        TreeEvent::Put(pair) => assert_eq!((pair.key.as_str(), pair.version), ("foo/a", between)),
        other => panic!("expected the put of `foo/a`, got {other:?}"),
    }
    other.delete("foo").await?;
    other.delete("foo/a").await?;
    match next_of_tree(&mut events).await {
        TreeEvent::Delete { key, version } => assert!(key.as_str() == "foo/a" && version.index() >= between.index()),
        other => panic!("expected the deletion of `foo/a`, got {other:?}"),
    }
    Ok(())
}

/// Each key of a deleted tree is an event, and so is what comes again.
pub async fn watch_tree_tells_of_a_deleted_tree(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let keys = ["t/a", "t/b/c", "t/b/d/e", "t/f"];
    put_all(store, &keys).await?;
    let (mut events, mut told) = (store.watch_tree("t").await?, Told::default());
    told.converge(&mut events, store, "t").await?;
    for _ in 0..2 {
        store.delete_tree("t").await?;
        told.converge(&mut events, store, "t").await?;
        put_all(store, &keys).await?;
        told.converge(&mut events, store, "t").await?;
    }
    Ok(())
}

/// The watch of a key and of the directory of its name stand beside each other, and one survives the other.
pub async fn watch_of_a_key_beside_that_of_its_directory(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let mut tree = store.watch_tree("a").await?;
    assert!(snapshot(&mut tree).await.is_empty());
    for round in 0..2 {
        let mut events = store.watch("a").await?;
        assert_absent(&mut events, "a").await;
        store.put("a/b", "1").await?;
        assert!(matches!(next_of_tree(&mut tree).await, TreeEvent::Put(_)), "round {round}");
        let version = store.put("a", "1").await?;
        assert_put(&mut events, "1", version).await;
        store.delete("a").await?;
        assert_delete(&mut events, "a", version).await;
        drop(events);
        store.delete("a/b").await?;
        assert!(matches!(next_of_tree(&mut tree).await, TreeEvent::Delete { .. }), "round {round}");
    }
    Ok(())
}

/// A late subscriber gets the present state from the same watch, and the last to leave ends it.
pub async fn watch_is_shared_by_its_subscribers(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let mut first = store.watch("a").await?;
    assert_absent(&mut first, "a").await;
    let version = store.put("a", "1").await?;
    assert_put(&mut first, "1", version).await;
    let mut late = try_join_all((0..20).map(|_| store.watch("a"))).await?;
    for events in &mut late {
        assert_put(events, "1", version).await;
    }
    assert_eq!(store.status().watches, 1);
    let version = store.put("a", "2").await?;
    drop(first);
    for events in &mut late {
        assert_put(events, "2", version).await;
    }
    drop(late);
    eventually("the watch ends", async || Ok(store.status().watches == 0)).await?;
    let mut again = store.watch("a").await?;
    assert_put(&mut again, "2", version).await;
    Ok(())
}

/// The last event is that the store is closed; then the stream ends.
pub async fn watch_ends_with_the_store(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let (mut of_key, mut of_tree) = (store.watch("a").await?, store.watch_tree("a").await?);
    assert_absent(&mut of_key, "a").await;
    assert!(snapshot(&mut of_tree).await.is_empty());
    store.close().await?;
    assert_eq!((of_key.next().await, of_key.next().await), (Some(WatchEvent::Closed), None));
    assert_eq!((of_tree.next().await, of_tree.next().await), (Some(TreeEvent::Closed), None));
    assert_error!(store.watch("a").await, Error::Closed);
    assert_error!(store.watch_tree("a").await, Error::Closed);
    Ok(())
}

/// What is no key is no target either.
pub async fn watch_refuses_invalid_keys(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    assert_error!(store.watch("").await, Error::InvalidKey { .. });
    assert_error!(store.watch("a/../b").await, Error::InvalidKey { .. });
    assert_error!(store.watch_tree("a/./b").await, Error::InvalidKey { .. });
    assert_eq!(store.status().watches, 0);
    Ok(())
}

/// Whole lists, as libkv gives them: at first and whenever something changed.
pub async fn watch_tree_as_lists(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    store.put("d/a", "1").await?;
    let mut lists = store.watch_tree("d").await?.lists();
    assert_eq!(next_list(&mut lists).await, store.list("d").await?);
    store.put("d/b", "1").await?;
    assert_eq!(next_list(&mut lists).await, store.list("d").await?);
    store.delete("d/a").await?;
    assert_eq!(next_list(&mut lists).await, store.list("d").await?);
    store.delete("d/b").await?;
    assert!(next_list(&mut lists).await.is_empty());
    Ok(())
}

/// Where the backend keeps every revision, each is told once and in order.
pub async fn watch_tells_every_revision(fixture: &Fixture) -> Outcome {
    let (store, other) = (fixture.store(), fixture.another_or_clone().await?);
    if !store.capabilities().every_revision {
        return Ok(());
    }
    let mut events = store.watch_tree("r").await?;
    assert!(snapshot(&mut events).await.is_empty());
    let writer = |writer: usize| {
        let other = other.clone();
        async move {
            let mut versions = Vec::new();
            for round in 0..60 {
                versions.push(other.put(format!("r/{}", (writer + round) % 5), format!("{round}")).await?.index());
            }
            Ok::<_, Error>(versions)
        }
    };
    let mut written = try_join_all((0..8).map(writer)).await?.concat();
    written.sort_unstable();
    for version in written {
        match next_of_tree(&mut events).await {
            TreeEvent::Put(pair) => assert_eq!(pair.version.index(), version),
            other => panic!("expected version {version}, got {other:?}"),
        }
    }
    Ok(())
}

/// Whenever one subscribes while others write and delete, what one is told comes to what the store holds.
pub async fn watch_converges_amid_writers(fixture: &Fixture) -> Outcome {
    let (store, other) = (fixture.store(), fixture.another_or_clone().await?);
    let writer = |writer: usize| {
        let other = other.clone();
        async move {
            for round in 0..40 {
                let path = format!("w/{}/{}", (writer * 7 + round) % 3, round % 5);
                match (writer + round) % 4 {
                    0 => match other.delete(&path).await {
                        Err(Error::KeyNotFound { .. }) => {}
                        deleted => deleted?,
                    },
                    _ => drop(other.put(&path, format!("{writer} {round}")).await?),
                }
            }
            Ok::<_, Error>(())
        }
    };
    let dir = |number: u64| ["w", "w/1"][number as usize % 2];
    let subscriber = |number: u64| async move {
        tokio::time::sleep(Duration::from_millis(number * 5)).await;
        Ok::<_, Error>((store.watch_tree(dir(number)).await?, dir(number)))
    };
    let (_, subscribers) = tokio::try_join!(try_join_all((0..8).map(writer)), try_join_all((0..20).map(subscriber)))?;
    for (mut events, dir) in subscribers {
        Told::default().converge(&mut events, &other, dir).await?;
    }
    Ok(())
}
