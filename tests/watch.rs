//! Watches on every backend: no gap between snapshot and stream, and convergence over killed, frozen, cut and wiped servers.
#![cfg(all(any(feature = "consul", feature = "etcd", feature = "zookeeper"), feature = "memory", feature = "local"))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::told::{DUE, Told};
use common::{Kind, Proxy, Server, on_servers};
use futures_util::StreamExt;
use futures_util::future::{join_all, try_join_all};
use kvactor::{Config, Error, LinkState, Store, TreeStream, WatchEvent, WatchStream};
use std::time::{Duration, Instant};

on_servers! {
    snapshot_and_stream_join_without_a_gap
    a_killed_server_is_told_of_and_caught_up_with
    a_frozen_server_is_noticed_in_time
    what_changed_while_the_link_was_cut_is_told
    a_silent_link_is_noticed_and_caught_up_with
    a_wiped_server_is_caught_up_with
}

/// Wherever a link is down, its watches are told within this time: the least that can be asked for, so that tests are short.
const IDLE: Duration = Duration::from_secs(3);

/// How long watches may take to catch up once the link is back.
const CATCH_UP: Duration = Duration::from_secs(2);

/// A store that notices a dead link soon, and tries to mend it often.
async fn open(url: &str) -> Store {
    let mut config = Config::from_url(url).unwrap();
    config.options.idle_timeout = IDLE;
    config.options.session_timeout = Duration::from_secs(6);
    config.options.backoff_max = Duration::from_millis(500);
    Store::open(config).await.unwrap()
}

async fn up(store: &Store) -> Instant {
    let mut statuses = store.status_stream();
    let waited = async { while statuses.next().await.expect("the store is open").link != LinkState::Up {} };
    tokio::time::timeout(DUE, waited).await.expect("the link comes back");
    Instant::now()
}

async fn put_all(store: &Store, pairs: &[(&str, &str)]) {
    for (key, value) in pairs {
        store.put(*key, value.to_string()).await.unwrap();
    }
}

/// Waits until the subscribers are told, and were told in time.
async fn caught_up(store: &Store, back: Instant, watched: &mut [(TreeStream, Told)], dir: &str) {
    let all = watched.iter_mut().map(|(events, told)| told.converge(events, store, dir));
    join_all(all).await;
    let took = back.elapsed();
    assert!(took <= CATCH_UP, "caught up {took:?} after the link came back");
}

async fn snapshot_and_stream_join_without_a_gap(kind: Kind) {
    let Some(server) = common::shared(kind).await else { return };
    let url = server.url(&common::namespace("join"));
    join_without_a_gap(open(&url).await, open(&url).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_snapshot_and_stream_join_without_a_gap() {
    join_without_a_gap(open("memory://join").await, open("memory://join").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_snapshot_and_stream_join_without_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&format!("local://{}/store.redb", folder.path().display())).await;
    join_without_a_gap(store.clone(), store).await;
}

const WRITERS: usize = 8;
const WATCHERS: u64 = 50;
const WRITES: usize = 120;

/// Writes and deletes as fast as it can, and returns the versions of its writes.
async fn write_on(store: Store, writer: usize) -> Result<Vec<u64>, Error> {
    let mut versions = Vec::new();
    for round in 0..WRITES {
        let key = format!("d/{}/{}", round % 2, (writer + round) % 5);
        if (writer + round).is_multiple_of(6) {
            match store.delete(&key).await {
                Ok(()) | Err(Error::KeyNotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        } else {
            versions.push(store.put(&key, format!("{writer} {round}")).await?.index());
        }
    }
    Ok(versions)
}

/// Subscribes after a while, and returns what it knows when what it knows is what there is.
async fn subscribe_late(store: Store, number: u64) -> (TreeStream, &'static str, WatchStream) {
    tokio::time::sleep(Duration::from_millis(number * 37 % 400)).await;
    let dir = ["d", "d/0", ""][number as usize % 3];
    let tree = store.watch_tree(dir).await.unwrap();
    (tree, dir, store.watch(format!("d/1/{}", number % 5)).await.unwrap())
}

async fn join_without_a_gap(reader: Store, writer: Store) {
    let mut early = reader.watch_tree("d").await.unwrap();
    let mut told = Told::default();
    told.next(&mut early).await;
    let writers = try_join_all((0..WRITERS).map(|number| write_on(writer.clone(), number)));
    let subscribers = join_all((0..WATCHERS).map(|number| tokio::spawn(subscribe_late(reader.clone(), number))));
    let (written, subscribers) = tokio::join!(writers, subscribers);
    // What is known may be what there is before all is told: where the last of all was a key put and deleted again.
    writer.put("d/last", "").await.unwrap();
    told.converge(&mut early, &writer, "d").await;
    if reader.capabilities().every_revision {
        let puts = told.changes.iter().filter(|change| !change.starts_with('-')).count();
        assert_eq!(puts, written.unwrap().concat().len() + 1, "each write is told once");
    }
    for subscriber in subscribers {
        let (mut tree, dir, mut key) = subscriber.unwrap();
        Told::default().converge(&mut tree, &writer, dir).await;
        converge_on_key(&mut key, &writer).await;
    }
}

/// Takes a key's events until what they say is what the store holds; versions never go back.
async fn converge_on_key(events: &mut WatchStream, store: &Store) {
    let mut known: Option<u64> = None;
    loop {
        let event = tokio::time::timeout(DUE, events.next()).await.expect("an event is due").expect("open");
        let (key, there) = match event {
            WatchEvent::Put(pair) => {
                assert!(known < Some(pair.version.index()), "`{}` went back", pair.key);
                known = Some(pair.version.index());
                (pair.key.clone(), Some(pair))
            }
            WatchEvent::Delete { key, .. } => (key, None),
            other => panic!("unexpected: {other:?}"),
        };
        if store.get(&key).await.ok() == there {
            return;
        }
    }
}

/// A directory with a few keys, and two subscribers: one from the beginning, one late.
async fn watched(store: &Store) -> Vec<(TreeStream, Told)> {
    put_all(store, &[("d/kept", "1"), ("d/changed", "1"), ("d/gone", "1"), ("d/again", "1"), ("d/deep/gone", "1")])
        .await;
    let mut watched = Vec::new();
    for _ in 0..2 {
        let (mut events, mut told) = (store.watch_tree("d").await.unwrap(), Told::default());
        told.next(&mut events).await;
        assert_eq!(told.pairs.len(), 5);
        watched.push((events, told));
    }
    watched
}

/// Changes that a watch may have missed.
async fn change(store: &Store) {
    store.delete("d/gone").await.unwrap();
    store.delete("d/again").await.unwrap();
    store.delete_tree("d/deep").await.unwrap();
    put_all(store, &[("d/changed", "2"), ("d/changed", "3"), ("d/again", "2"), ("d/new", ""), ("d/deep/new", "1")])
        .await;
    put_all(store, &[("d/passing", "1")]).await;
    store.delete("d/passing").await.unwrap();
}

async fn all_suspended(watched: &mut [(TreeStream, Told)], times: usize) {
    for (events, told) in watched {
        told.until_suspended(events, times).await;
    }
}

/// What was told is what changed, and nothing that didn't.
fn assert_just_the_differences(watched: &[(TreeStream, Told)]) {
    for (_, told) in watched {
        let last = |key: &str| told.changes.iter().rfind(|change| change.contains(key)).map(String::as_str);
        assert_eq!(last("d/kept"), None, "{:?}", told.changes);
        assert_eq!(last("d/changed"), Some("d/changed=3"), "{:?}", told.changes);
        assert_eq!(last("d/gone"), Some("-d/gone"), "{:?}", told.changes);
        assert!(told.suspended >= 1 && told.suspended == told.resumed);
    }
}

async fn a_killed_server_is_told_of_and_caught_up_with(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let store = open(&server.url("killed")).await;
    let mut watched = watched(&store).await;
    for times in 1..=2 {
        server.kill();
        all_suspended(&mut watched, times).await;
        server.restart().await;
        let other = open(&server.url("killed")).await;
        change(&other).await;
        let back = up(&store).await;
        caught_up(&other, back, &mut watched, "d").await;
        assert_just_the_differences(&watched);
        // For the next round.
        put_all(&other, &[("d/changed", "1"), ("d/gone", "1"), ("d/deep/x", "1")]).await;
        caught_up(&other, Instant::now(), &mut watched, "d").await;
    }
}

async fn a_frozen_server_is_noticed_in_time(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let store = open(&server.url("frozen")).await;
    let mut watched = watched(&store).await;
    server.freeze();
    let frozen = Instant::now();
    all_suspended(&mut watched, 1).await;
    let noticed = frozen.elapsed();
    assert!(noticed <= IDLE + Duration::from_secs(1), "noticed after {noticed:?}");
    tokio::time::sleep((IDLE * 2).saturating_sub(noticed)).await;
    server.thaw();
    let other = open(&server.url("frozen")).await;
    change(&other).await;
    let back = up(&store).await;
    caught_up(&other, back, &mut watched, "d").await;
    assert_just_the_differences(&watched);
}

async fn what_changed_while_the_link_was_cut_is_told(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let proxy = server.proxy();
    broken_link(&server, &proxy, Proxy::cut).await;
}

async fn a_silent_link_is_noticed_and_caught_up_with(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let proxy = server.proxy();
    broken_link(&server, &proxy, Proxy::blackhole).await;
}

async fn broken_link(server: &Server, proxy: &Proxy, broken: fn(&Proxy)) {
    let (store, other) = (open(&proxy.url("broken")).await, open(&server.url("broken")).await);
    let mut watched = watched(&store).await;
    let mut key = store.watch("d/gone").await.unwrap();
    assert!(matches!(key.next().await, Some(WatchEvent::Put(_))));
    broken(proxy);
    let begun = Instant::now();
    all_suspended(&mut watched, 1).await;
    let noticed = begun.elapsed();
    assert!(noticed <= IDLE + Duration::from_secs(1), "noticed after {noticed:?}");
    change(&other).await;
    proxy.restore();
    let back = up(&store).await;
    caught_up(&other, back, &mut watched, "d").await;
    assert_just_the_differences(&watched);
    // In which order the last two come depends on the server's history.
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(tokio::time::timeout(DUE, key.next()).await.expect("an event is due").expect("open"));
    }
    assert_eq!(told[0], WatchEvent::Suspended);
    assert!(told.contains(&WatchEvent::Resumed), "{told:?}");
    assert!(told.iter().any(|event| matches!(event, WatchEvent::Delete { .. })), "{told:?}");
    // And everything works as before.
    other.put("d/gone", "back").await.unwrap();
    for (events, told) in &mut watched {
        told.converge(events, &other, "d").await;
    }
}

async fn a_wiped_server_is_caught_up_with(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let store = open(&server.url("wiped")).await;
    for round in 0..20 {
        store.put("elsewhere", format!("{round}")).await.unwrap();
    }
    let mut watched = watched(&store).await;
    watched.iter_mut().for_each(|(_, told)| told.wiped = true);
    server.wipe().await;
    let other = open(&server.url("wiped")).await;
    put_all(&other, &[("d/kept", "1"), ("d/changed", "3"), ("d/new", "1")]).await;
    let back = up(&store).await;
    caught_up(&other, back, &mut watched, "d").await;
    for (_, told) in &watched {
        assert_eq!(told.pairs.keys().collect::<Vec<_>>(), ["d/changed", "d/kept", "d/new"]);
    }
    other.put("d/new", "2").await.unwrap();
    caught_up(&other, Instant::now(), &mut watched, "d").await;
}
