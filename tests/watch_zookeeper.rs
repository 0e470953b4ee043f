//! Watches on ZooKeeper: what is a key, what its server keeps of watches, and what its client forgets.
#![cfg(feature = "zookeeper")]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::told::{DUE, Told};
use common::{Kind, Proxy, Server, namespace, zookeeper::four_letters};
use futures_util::StreamExt;
use futures_util::future::{join_all, try_join_all};
use kvactor::{Config, Error, Key, LinkState, PutOptions, Store, TreeEvent, TreeStream, WatchEvent, WatchStream};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use zookeeper_client::{Acls, Client, CreateMode};

/// ZooKeeper's opcode of `getData`.
const GET_DATA: i32 = 4;

async fn stores(server: &Server, test: &str) -> (Store, Store, String) {
    let name = namespace(test);
    let url = server.url(&name);
    (Store::connect(&url).await.unwrap(), Store::connect(&url).await.unwrap(), name)
}

/// The next event of a key: `key=value`, `-key`, or the name of what the link did.
async fn next(events: &mut WatchStream) -> String {
    match timeout(DUE, events.next()).await.expect("an event is due").expect("the store is open") {
        WatchEvent::Put(pair) => format!("{}={}", pair.key, String::from_utf8_lossy(&pair.value)),
        WatchEvent::Delete { key, .. } => format!("-{key}"),
        other => format!("{other:?}"),
    }
}

/// The next event of a directory, in the same way; a snapshot is `[key=value ...]`.
async fn next_of_tree(events: &mut TreeStream) -> String {
    match timeout(DUE, events.next()).await.expect("an event is due").expect("the store is open") {
        TreeEvent::Snapshot(pairs) => {
            let pairs = pairs.iter().map(|pair| format!("{}={}", pair.key, String::from_utf8_lossy(&pair.value)));
            format!("[{}]", pairs.collect::<Vec<_>>().join(" "))
        }
        TreeEvent::Put(pair) => format!("{}={}", pair.key, String::from_utf8_lossy(&pair.value)),
        TreeEvent::Delete { key, .. } => format!("-{key}"),
        other => format!("{other:?}"),
    }
}

/// The paths in this namespace that the server watches.
async fn watched(server: &Server, namespace: &str) -> Vec<String> {
    let answer = four_letters(server.address(), "wchp").await.unwrap();
    let top = format!("/{namespace}");
    let inside = |path: &&str| **path == top || path.starts_with(&format!("{top}/"));
    answer.lines().filter(inside).map(str::to_owned).collect()
}

/// Waits until the server watches as many paths as this, for one second at most.
async fn watches_soon(server: &Server, namespace: &str, count: usize) {
    let begun = Instant::now();
    loop {
        let now = watched(server, namespace).await;
        if now.len() == count {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{count} expected, watched are {now:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn only_keys_are_told_of() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, other, _) = stores(server, "keys").await;
    let mut key = store.watch("a").await.unwrap();
    let mut tree = store.watch_tree("a").await.unwrap();
    let mut all = store.watch_tree("").await.unwrap();
    assert_eq!(next(&mut key).await, "-a");
    assert_eq!(next_of_tree(&mut tree).await, "[]");
    assert_eq!(next_of_tree(&mut all).await, "[]");
    // The znodes of `a` and of `a/b` are made here, and are no keys.
    other.put("a/b/c", "1").await.unwrap();
    assert_eq!(next_of_tree(&mut tree).await, "a/b/c=1");
    assert_eq!(next_of_tree(&mut all).await, "a/b/c=1");
    // Then they are.
    other.put("a", "2").await.unwrap();
    other.put("a/b", "").await.unwrap();
    assert_eq!(next(&mut key).await, "a=2");
    assert_eq!(next_of_tree(&mut tree).await, "a/b=");
    assert_eq!([next_of_tree(&mut all).await, next_of_tree(&mut all).await], ["a=2", "a/b="]);
    // Deleted, they stay for what is in them.
    other.delete("a").await.unwrap();
    assert_eq!(next(&mut key).await, "-a");
    assert_eq!(next_of_tree(&mut all).await, "-a");
    other.put("a", "").await.unwrap();
    assert_eq!(next(&mut key).await, "a=");
    assert_eq!(next_of_tree(&mut all).await, "a=");
    // `a-b` is not in `a`; a name that ZooKeeper doesn't take is.
    other.put("a-b", "3").await.unwrap();
    other.put("a/%u{😀", "4").await.unwrap();
    assert_eq!(next_of_tree(&mut tree).await, "a/%u{😀=4");
    assert_eq!([next_of_tree(&mut all).await, next_of_tree(&mut all).await], ["a-b=3", "a/%u{😀=4"]);
    assert_eq!(other.delete_tree("a").await.unwrap(), 3);
    let mut gone = [next_of_tree(&mut tree).await, next_of_tree(&mut tree).await, next_of_tree(&mut tree).await];
    gone.sort();
    assert_eq!(gone, ["-a/%u{😀", "-a/b", "-a/b/c"]);
    other.put("a", "last").await.unwrap();
    assert_eq!(next(&mut key).await, "a=last", "`a` was not in the tree that was deleted");
}

#[tokio::test]
async fn znodes_of_other_programs_follow_the_same_rule() {
    let Some(server) = Server::start(Kind::ZooKeeper).await else { return };
    let client = Client::connect(&server.address().to_string()).await.unwrap();
    // Without a namespace: ZooKeeper's own znodes are beneath the same root.
    let store = Store::connect(&server.url("")).await.unwrap();
    let mut all = store.watch_tree("").await.unwrap();
    let mut key = store.watch("theirs").await.unwrap();
    assert_eq!(next_of_tree(&mut all).await, "[]");
    assert_eq!(next(&mut key).await, "-theirs");
    let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.create("/zookeeper/quota/theirs", b"secret", &open).await.unwrap();
    client.create("/theirs", b"", &open).await.unwrap();
    client.create("/theirs/%u{zz", b"no key of ours", &open).await.unwrap();
    client.set_data("/theirs", b"", None).await.unwrap();
    assert_eq!(next(&mut key).await, "theirs=", "written, even if with nothing");
    assert_eq!(next_of_tree(&mut all).await, "theirs=");
    client.create("/with data", b"1", &open).await.unwrap();
    assert_eq!(next_of_tree(&mut all).await, "with data=1");
}

/// The server has one watch for each path and session, in the mode asked for last, and removes it for all.
#[tokio::test]
async fn a_key_and_the_directory_of_its_name_are_watched_at_once() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, other, name) = stores(server, "beside").await;
    let check = async |key: &mut Option<WatchStream>, tree: &mut Option<TreeStream>, value: &str| {
        other.put("a", value.to_owned()).await.unwrap();
        other.put("a/b/c", value.to_owned()).await.unwrap();
        if let Some(key) = key {
            assert_eq!(next(key).await, format!("a={value}"));
        }
        if let Some(tree) = tree {
            assert_eq!(next_of_tree(tree).await, format!("a/b/c={value}"));
        }
    };
    check(&mut None, &mut None, "0").await;
    let mut key = Some(store.watch("a").await.unwrap());
    assert_eq!(next(key.as_mut().unwrap()).await, "a=0");
    check(&mut key, &mut None, "1").await;
    let mut tree = Some(store.watch_tree("a").await.unwrap());
    assert_eq!(next_of_tree(tree.as_mut().unwrap()).await, "[a/b/c=1]");
    check(&mut key, &mut tree, "2").await;
    watches_soon(server, &name, 1).await;
    tree = None;
    check(&mut key, &mut tree, "3").await;
    sleep(Duration::from_millis(300)).await;
    check(&mut key, &mut tree, "4").await;
    watches_soon(server, &name, 1).await;
    tree = Some(store.watch_tree("a").await.unwrap());
    assert_eq!(next_of_tree(tree.as_mut().unwrap()).await, "[a/b/c=4]");
    key = None;
    check(&mut key, &mut tree, "5").await;
    sleep(Duration::from_millis(300)).await;
    key = Some(store.watch("a").await.unwrap());
    assert_eq!(next(key.as_mut().unwrap()).await, "a=5");
    check(&mut key, &mut tree, "6").await;
    drop((key, tree));
    watches_soon(server, &name, 0).await;
}

/// A tree inside of another, and keys in both, each come and go by themselves.
#[tokio::test]
async fn watches_that_overlap_outlive_each_other() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, other, name) = stores(server, "overlap").await;
    let mut outer = store.watch_tree("").await.unwrap();
    assert_eq!(next_of_tree(&mut outer).await, "[]");
    for round in 0..20 {
        let mut inner = store.watch_tree("d").await.unwrap();
        let mut key = store.watch("d/k").await.unwrap();
        next_of_tree(&mut inner).await;
        next(&mut key).await;
        other.put("d/k", round.to_string()).await.unwrap();
        let told = format!("d/k={round}");
        assert_eq!(next_of_tree(&mut inner).await, told);
        assert_eq!(next(&mut key).await, told);
        assert_eq!(next_of_tree(&mut outer).await, told);
    }
    watches_soon(server, &name, 1).await;
    drop(outer);
    watches_soon(server, &name, 0).await;
}

#[tokio::test]
async fn watches_end_on_the_server_when_nobody_follows() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, other, name) = stores(server, "end").await;
    let keys = try_join_all((0..200).map(|number| store.watch(format!("k/{number}")))).await.unwrap();
    let trees = try_join_all((0..50).map(|number| store.watch_tree(format!("t/{number}")))).await.unwrap();
    assert_eq!(watched(server, &name).await.len(), 250);
    drop(keys);
    watches_soon(server, &name, 50).await;
    drop(trees);
    watches_soon(server, &name, 0).await;
    let (_key, _tree) = (store.watch("k").await.unwrap(), other.watch_tree("").await.unwrap());
    store.close().await.unwrap();
    other.close().await.unwrap();
    watches_soon(server, &name, 0).await;
}

#[tokio::test]
async fn a_key_that_goes_with_its_session_is_told_of() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, other, _) = stores(server, "session").await;
    let mut tree = store.watch_tree("").await.unwrap();
    assert_eq!(next_of_tree(&mut tree).await, "[]");
    other.put_with("d/k", "1", PutOptions::keep_alive(Duration::from_secs(60))).await.unwrap();
    assert_eq!(next_of_tree(&mut tree).await, "d/k=1");
    other.put_with("d/t", "1", PutOptions::ttl(Duration::from_secs(1))).await.unwrap();
    assert_eq!(next_of_tree(&mut tree).await, "d/t=1");
    assert_eq!(next_of_tree(&mut tree).await, "-d/t");
    other.close().await.unwrap();
    assert_eq!(next_of_tree(&mut tree).await, "-d/k");
}

/// However fast a key changes, it is read at most as often as answers come, and the last value arrives.
#[tokio::test]
async fn changes_faster_than_their_reads_are_read_once() {
    let Some(server) = common::zookeeper().await else { return };
    let proxy = server.proxy();
    let name = namespace("fast");
    let (store, other) =
        (Store::connect(&proxy.url(&name)).await.unwrap(), Store::connect(&server.url(&name)).await.unwrap());
    let mut tree = store.watch_tree("d").await.unwrap();
    assert_eq!(next_of_tree(&mut tree).await, "[]");
    proxy.hold_answers();
    for round in 0..200 {
        try_join_all((0..5).map(|number| other.put(format!("d/{number}"), round.to_string()))).await.unwrap();
    }
    proxy.reset_counts();
    proxy.restore();
    let mut told = Told::default();
    told.converge(&mut tree, &other, "d").await;
    let reads = proxy.counts().frames_of(GET_DATA);
    assert!(reads <= 200, "{reads} reads of 5 keys that changed 1000 times");
}

/// A store that comes back soon, through a proxy, and one that is never cut off.
async fn cut_off(server: &Server, session_timeout: Duration) -> (Store, Store, Proxy) {
    let (proxy, name) = (server.proxy(), namespace("cut"));
    let mut config = Config::from_url(&proxy.url(&name)).unwrap();
    config.options.session_timeout = session_timeout;
    config.options.backoff_max = Duration::from_millis(500);
    (Store::open(config).await.unwrap(), Store::connect(&server.url(&name)).await.unwrap(), proxy)
}

async fn until_up(store: &Store) {
    let mut statuses = store.status_stream();
    let up = async { while statuses.next().await.expect("the store is open").link != LinkState::Up {} };
    timeout(DUE, up).await.expect("the link comes back");
}

/// Each cut is over before anybody above the driver needs to have noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missed_over_short_cuts() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, other, proxy) = cut_off(server, Duration::from_secs(8)).await;
    let (mut tree, mut told) = (store.watch_tree("d").await.unwrap(), Told::default());
    let mut key = store.watch("d/0").await.unwrap();
    let session = store.status().session;
    for round in 0..12 {
        let writing = async {
            for number in 0..30 {
                let path = format!("d/{}/{}", number % 7, number % 2);
                match (round + number) % 3 {
                    0 => drop(other.delete(&path).await),
                    _ => drop(other.put(&path, format!("{round} {number}")).await.unwrap()),
                }
            }
            other.put("d/0", round.to_string()).await.unwrap();
        };
        let cutting = async {
            sleep(Duration::from_millis(round % 4 * 5)).await;
            proxy.cut();
            sleep(Duration::from_millis(round % 3 * 20)).await;
            proxy.restore();
        };
        tokio::join!(writing, cutting);
        timeout(DUE, told.converge(&mut tree, &other, "d")).await.expect("the directory is caught up with");
        let last = format!("d/0={round}");
        while next(&mut key).await != last {}
    }
    assert_eq!(store.status().session, session, "the session outlasts the cuts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_until_the_session_expired_is_told() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, other, proxy) = cut_off(server, Duration::from_secs(2)).await;
    other.put("d/gone", "1").await.unwrap();
    other.put("d/kept", "1").await.unwrap();
    let (mut tree, mut told) = (store.watch_tree("d").await.unwrap(), Told::default());
    let mut gone = store.watch("d/gone").await.unwrap();
    told.converge(&mut tree, &other, "d").await;
    assert_eq!(next(&mut gone).await, "d/gone=1");
    let before = store.status().session;
    proxy.cut();
    told.until_suspended(&mut tree, 1).await;
    other.delete("d/gone").await.unwrap();
    other.put("d/new", "1").await.unwrap();
    // More than 7/5 of the session's time.
    sleep(Duration::from_secs(4)).await;
    proxy.restore();
    until_up(&store).await;
    assert_ne!(store.status().session, before, "the session has expired");
    told.converge(&mut tree, &other, "d").await;
    assert_eq!(told.changes, ["-d/gone", "d/new=1"]);
    let rest = [next(&mut gone).await, next(&mut gone).await, next(&mut gone).await];
    assert!(rest.contains(&"-d/gone".to_owned()) && rest.contains(&"Resumed".to_owned()), "{rest:?}");
}

const MANY: usize = 1000;

/// The client library can't reconnect with watches of more than 128 KiB of paths: these have half a megabyte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_long_keys_outlast_a_cut() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, other, proxy) = cut_off(server, Duration::from_secs(8)).await;
    let long = "x".repeat(Key::MAX_LEN - 20);
    let path = |number: usize| format!("{}/{long}/{number}", number % 3);
    let mut watched = Vec::new();
    for number in 0..MANY {
        let mut events = store.watch(path(number)).await.unwrap();
        assert_eq!(next(&mut events).await, format!("-{}", path(number)));
        watched.push((number, events));
    }
    let session = store.status().session;
    for round in 0..2 {
        let some = (0..MANY).filter(|number| number % 2 == 0 || round == 0);
        for number in some {
            other.put(path(number), round.to_string()).await.unwrap();
        }
        let told = watched.iter_mut().filter(|(number, _)| number % 2 == 0 || round == 0);
        join_all(told.map(async |(number, events)| {
            let last = format!("{}={round}", path(*number));
            while next(events).await != last {}
        }))
        .await;
        proxy.cut();
        sleep(Duration::from_millis(100)).await;
        proxy.restore();
        for (_, events) in &mut watched {
            while next(events).await != "Resumed" {}
        }
    }
    assert_eq!(store.status().session, session, "the session outlasts the cuts");
    assert_eq!(proxy.counts().open, 1);
}

#[tokio::test]
async fn what_may_not_be_read_may_not_be_watched() {
    let Some(server) = common::zookeeper().await else { return };
    let name = namespace("acl");
    let owner = Store::connect(&format!("zk://owner:secret@{}/{name}", server.address())).await.unwrap();
    owner.put("d/k", "1").await.unwrap();
    let nobody = Store::connect(&server.url(&name)).await.unwrap();
    let errors = [nobody.watch("d/k").await.map(drop), nobody.watch_tree("d").await.map(drop)];
    for error in errors {
        assert!(matches!(error, Err(Error::PermissionDenied { .. })), "{error:?}");
    }
    watches_soon(server, &name, 0).await;
    let mut events = owner.watch("d/k").await.unwrap();
    assert_eq!(next(&mut events).await, "d/k=1");
}
