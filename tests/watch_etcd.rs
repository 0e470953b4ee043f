//! Watches on etcd: what its history, its streams and its access control make of them.
#![cfg(feature = "etcd")]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Kind, Server, etcd, http, namespace};
use futures_util::future::{join_all, try_join_all};
use kvactor::{Error, KvPair, Operation, Store, TreeEvent, TreeStream, Version, WatchEvent, WatchStream};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// Longest wait for what is due, on a machine with other things to do.
const DUE: Duration = Duration::from_secs(30);

async fn next(events: &mut WatchStream) -> WatchEvent {
    timeout(DUE, events.next()).await.expect("an event is due").expect("the store is open")
}

async fn next_of_tree(events: &mut TreeStream) -> TreeEvent {
    timeout(DUE, events.next()).await.expect("an event is due").expect("the store is open")
}

async fn snapshot(events: &mut TreeStream) -> Vec<KvPair> {
    match next_of_tree(events).await {
        TreeEvent::Snapshot(pairs) => pairs,
        other => panic!("expected a snapshot, got {other:?}"),
    }
}

/// The next change; what the link does is passed over.
async fn change(events: &mut TreeStream) -> Change {
    loop {
        match next_of_tree(events).await {
            TreeEvent::Put(pair) => return Change::Put(pair.key.to_string(), pair.value.to_vec(), pair.version),
            TreeEvent::Delete { key, version } => return Change::Delete(key.to_string(), version),
            TreeEvent::Suspended | TreeEvent::Resumed => {}
            other => panic!("expected a change, got {other:?}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Put(String, Vec<u8>, Version),
    Delete(String, Version),
}

impl Change {
    fn revision(&self) -> u64 {
        match self {
            Change::Put(_, _, version) | Change::Delete(_, version) => version.index(),
        }
    }

    fn apply(self, state: &mut BTreeMap<String, Vec<u8>>) {
        match self {
            Change::Put(key, value, _) => drop(state.insert(key, value)),
            Change::Delete(key, _) => drop(state.remove(&key)),
        }
    }
}

/// Writes a key again and again, and tells the puts, and of each whether the key was deleted behind it.
async fn write(store: Store, key: String, rounds: usize) -> Vec<(Change, bool)> {
    let mut written = Vec::new();
    for round in 0..rounds {
        let value = format!("{key} {round}");
        let version = store.put(&key, value.clone()).await.unwrap();
        let deleted = round % 3 == 2;
        written.push((Change::Put(key.clone(), value.into(), version), deleted));
        if deleted {
            store.delete(&key).await.unwrap();
        }
    }
    written
}

/// A number that the server tells of itself.
async fn metric(server: &Server, name: &str) -> i64 {
    let metrics = http::get(server.address(), "/metrics").await.expect("etcd's metrics").body;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).expect("the metric");
    line.trim().parse::<f64>().expect("a number") as i64
}

async fn watchers(server: &Server) -> i64 {
    metric(server, "etcd_debugging_mvcc_watcher_total").await
}

async fn streams(server: &Server) -> i64 {
    metric(server, "etcd_debugging_mvcc_watch_stream_total").await
}

async fn compact(server: &Server, version: Version) {
    let body = format!(r#"{{"revision":"{}","physical":true}}"#, version.index());
    etcd::administer(server, "kv/compaction", &body).await;
}

#[tokio::test]
async fn a_snapshot_and_its_stream_join_while_others_write() {
    let Some(server) = common::etcd().await else { return };
    let url = server.url(&namespace("join"));
    let (store, other) = (Store::connect(&url).await.unwrap(), Store::connect(&url).await.unwrap());
    let writers = (0..4).map(|writer| write(other.clone(), format!("t/{writer}"), 60));
    let watchers = (0..6_u64).map(|watcher| {
        let store = store.clone();
        async move {
            sleep(Duration::from_millis(watcher * 20)).await;
            let mut events = store.watch_tree("t").await.unwrap();
            let mut state: BTreeMap<_, _> = snapshot(&mut events)
                .await
                .into_iter()
                .map(|pair| (pair.key.to_string(), pair.value.to_vec()))
                .collect();
            let mut told = Vec::new();
            while !matches!(told.last(), Some(Change::Put(key, ..)) if key == "t/end") {
                let change = change(&mut events).await;
                change.clone().apply(&mut state);
                told.push(change);
            }
            (told, state)
        }
    });
    let (watched, written) = tokio::join!(join_all(watchers), async {
        let written = join_all(writers).await;
        other.put("t/end", "").await.unwrap();
        written
    });
    let there: BTreeMap<_, _> =
        other.list("t").await.unwrap().into_iter().map(|pair| (pair.key.to_string(), pair.value.to_vec())).collect();
    for (told, state) in watched {
        assert_eq!(state, there);
        assert!(told.is_sorted_by(|a, b| a.revision() < b.revision()), "each revision once, in order");
        let first = told[0].revision();
        let puts: Vec<_> = told.iter().filter(|change| matches!(change, Change::Put(..))).collect();
        let mut expected: Vec<_> =
            written.iter().flatten().map(|(put, _)| put).filter(|put| put.revision() >= first).collect();
        expected.sort_by_key(|put| put.revision());
        assert_eq!(puts[..puts.len() - 1], expected);
        let deletions = written.iter().flatten().filter(|(put, deleted)| *deleted && put.revision() >= first).count();
        assert!(told.len() - puts.len() >= deletions);
    }
}

#[tokio::test]
async fn every_revision_of_an_outage_is_told_when_it_is_over() {
    let Some(server) = common::etcd().await else { return };
    let (proxy, namespace) = (server.proxy(), namespace("outage"));
    let store = Store::connect(&proxy.url(&namespace)).await.unwrap();
    let direct = Store::connect(&server.url(&namespace)).await.unwrap();
    // One that there was nothing of before, and one that there was.
    direct.put("old", "0").await.unwrap();
    let (mut new, mut old) = (store.watch("new").await.unwrap(), store.watch("old").await.unwrap());
    assert!(matches!(next(&mut new).await, WatchEvent::Delete { version: None, .. }));
    assert!(matches!(next(&mut old).await, WatchEvent::Put(_)));
    for _ in 0..2 {
        proxy.cut();
        assert_eq!((next(&mut new).await, next(&mut old).await), (WatchEvent::Suspended, WatchEvent::Suspended));
        let mut versions = Vec::new();
        for number in 0..20 {
            versions.push(direct.put("new", number.to_string()).await.unwrap());
            versions.push(direct.put("old", number.to_string()).await.unwrap());
        }
        proxy.restore();
        for events in [&mut new, &mut old] {
            assert_eq!(next(events).await, WatchEvent::Resumed);
        }
        for expected in versions.chunks(2) {
            for (events, version) in [&mut new, &mut old].into_iter().zip(expected) {
                match next(events).await {
                    WatchEvent::Put(pair) => assert_eq!(pair.version, *version),
                    other => panic!("expected a put, got {other:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn an_outage_without_anything_known_loses_nothing_either() {
    let Some(server) = common::etcd().await else { return };
    let (proxy, namespace) = (server.proxy(), namespace("nothing"));
    let store = Store::connect(&proxy.url(&namespace)).await.unwrap();
    let direct = Store::connect(&server.url(&namespace)).await.unwrap();
    let mut events = store.watch_tree("").await.unwrap();
    assert!(snapshot(&mut events).await.is_empty());
    proxy.cut();
    let first = direct.put("a", "1").await.unwrap();
    let second = direct.put("a", "2").await.unwrap();
    proxy.restore();
    assert_eq!(change(&mut events).await, Change::Put("a".into(), "1".into(), first));
    assert_eq!(change(&mut events).await, Change::Put("a".into(), "2".into(), second));
}

#[tokio::test]
async fn history_that_is_gone_is_made_up_for_by_what_differs() {
    let Some(server) = Server::start(Kind::Etcd).await else { return };
    let proxy = server.proxy();
    let store = Store::connect(&proxy.url("compacted")).await.unwrap();
    let direct = Store::connect(&server.url("compacted")).await.unwrap();
    for key in ["t/a", "t/b", "t/c"] {
        direct.put(key, "1").await.unwrap();
    }
    let mut events = store.watch_tree("t").await.unwrap();
    assert_eq!(snapshot(&mut events).await.len(), 3);
    proxy.cut();
    direct.put("t/a", "2").await.unwrap();
    let a = direct.put("t/a", "3").await.unwrap();
    direct.delete("t/b").await.unwrap();
    let d = direct.put("t/d", "1").await.unwrap();
    compact(&server, direct.put("elsewhere", "").await.unwrap()).await;
    proxy.restore();
    let mut told = vec![change(&mut events).await, change(&mut events).await, change(&mut events).await];
    told.sort_by_key(|change| format!("{change:?}"));
    assert!(matches!(&told[0], Change::Delete(key, _) if key == "t/b"), "{told:?}");
    assert_eq!(told[1..], [Change::Put("t/a".into(), "3".into(), a), Change::Put("t/d".into(), "1".into(), d)]);
    let last = direct.put("t/c", "2").await.unwrap();
    assert_eq!(change(&mut events).await, Change::Put("t/c".into(), "2".into(), last));
}

#[tokio::test]
async fn a_wiped_server_is_noticed_even_when_its_revisions_have_passed_ours() {
    let Some(server) = Server::start(Kind::Etcd).await else { return };
    let proxy = server.proxy();
    let store = Store::connect(&proxy.url("wiped")).await.unwrap();
    for key in ["t/a", "t/b", "t/c"] {
        store.put(key, "1").await.unwrap();
    }
    let mut events = store.watch_tree("t").await.unwrap();
    let mut alone = store.watch("t/a").await.unwrap();
    assert_eq!(snapshot(&mut events).await.len(), 3);
    assert!(matches!(next(&mut alone).await, WatchEvent::Put(_)));
    proxy.cut();
    server.wipe().await;
    let direct = Store::connect(&server.url("wiped")).await.unwrap();
    for _ in 0..20 {
        direct.put("t/c", "2").await.unwrap();
    }
    proxy.restore();
    let mut state: BTreeMap<_, _> = ["t/a", "t/b", "t/c"].map(|key| (key.to_owned(), b"1".to_vec())).into();
    for _ in 0..3 {
        change(&mut events).await.apply(&mut state);
    }
    assert_eq!(state, [("t/c".to_owned(), b"2".to_vec())].into());
    assert_eq!(next(&mut alone).await, WatchEvent::Suspended);
    assert!(matches!(next(&mut alone).await, WatchEvent::Delete { .. }));
    // And as soon as it is back, without a proxy's help, with fewer revisions than before.
    server.wipe().await;
    assert!(matches!(change(&mut events).await, Change::Delete(key, _) if key == "t/c"));
}

#[tokio::test]
async fn a_restarted_server_goes_on_where_it_was() {
    let Some(server) = Server::start(Kind::Etcd).await else { return };
    let store = Store::connect(&server.url("restart")).await.unwrap().with_request_timeout(DUE);
    store.put("t/a", "1").await.unwrap();
    let mut events = store.watch_tree("t").await.unwrap();
    assert_eq!(snapshot(&mut events).await.len(), 1);
    server.restart().await;
    let mut versions = Vec::new();
    for _ in 0..5 {
        versions.push(store.put("t/a", "2").await.unwrap());
    }
    for version in versions {
        assert_eq!(change(&mut events).await, Change::Put("t/a".into(), "2".into(), version));
    }
}

#[tokio::test]
async fn a_thousand_watches_are_one_stream_and_end_when_dropped() {
    const WATCHES: usize = 1_000;
    let Some(server) = Server::start(Kind::Etcd).await else { return };
    let proxy = server.proxy();
    let store = Store::connect(&proxy.url("many")).await.unwrap();
    let (idle_streams, idle_watchers) = (streams(&server).await, watchers(&server).await);
    let key = |number: usize| format!("k/{number}");
    let begun = Instant::now();
    let mut watches = try_join_all((0..WATCHES).map(|number| store.watch(key(number)))).await.unwrap();
    for events in &mut watches {
        assert!(matches!(next(events).await, WatchEvent::Delete { version: None, .. }));
    }
    println!("{WATCHES} watches stand after {:?}", begun.elapsed());
    assert_eq!(watchers(&server).await - idle_watchers, WATCHES as i64);
    assert_eq!(streams(&server).await - idle_streams, 1);
    assert_eq!(proxy.counts().open, 1, "connections");
    let begun = Instant::now();
    let versions = try_join_all((0..WATCHES).map(|number| store.put(key(number), "1"))).await.unwrap();
    for (events, version) in watches.iter_mut().zip(versions) {
        assert!(matches!(next(events).await, WatchEvent::Put(pair) if pair.version == version));
    }
    println!("{WATCHES} puts are told after {:?}", begun.elapsed());
    let rest = watches.split_off(WATCHES / 2);
    drop(watches);
    ends(&server, idle_watchers + (WATCHES / 2) as i64).await;
    drop(rest);
    ends(&server, idle_watchers).await;
    assert_eq!(streams(&server).await, idle_streams);
}

/// The server watches only so much a second later.
async fn ends(server: &Server, expected: i64) {
    let dropped = Instant::now();
    while watchers(server).await != expected {
        assert!(dropped.elapsed() < Duration::from_secs(1), "{} instead of {expected}", watchers(server).await);
        sleep(Duration::from_millis(20)).await;
    }
    println!("the server is down to {expected} watches after {:?}", dropped.elapsed());
}

#[tokio::test]
async fn a_thousand_watches_come_back_after_an_outage() {
    let Some(server) = common::etcd().await else { return };
    let (proxy, namespace) = (server.proxy(), namespace("back"));
    let store = Store::connect(&proxy.url(&namespace)).await.unwrap();
    let direct = Store::connect(&server.url(&namespace)).await.unwrap();
    let key = |number: usize| format!("k/{number}");
    let mut watches = try_join_all((0..1_000).map(|number| store.watch(key(number)))).await.unwrap();
    for events in &mut watches {
        assert!(matches!(next(events).await, WatchEvent::Delete { version: None, .. }));
    }
    proxy.cut();
    let versions = try_join_all((0..1_000).map(|number| direct.put(key(number), "1"))).await.unwrap();
    proxy.restore();
    let begun = Instant::now();
    for (events, version) in watches.iter_mut().zip(versions) {
        let pair = loop {
            match next(events).await {
                WatchEvent::Put(pair) => break pair,
                WatchEvent::Suspended | WatchEvent::Resumed => {}
                other => panic!("expected the put, got {other:?}"),
            }
        };
        assert_eq!(pair.version, version);
    }
    println!("1000 watches are back after {:?}", begun.elapsed());
}

/// The server sends what was missed in parts, each of which holds only some of the revisions.
#[tokio::test]
async fn a_large_history_is_told_in_order() {
    let Some(server) = Server::start(Kind::Etcd).await else { return };
    let proxy = server.proxy();
    let store = Store::connect(&proxy.url("large")).await.unwrap();
    let direct = Store::connect(&server.url("large")).await.unwrap();
    direct.put("t/0", "").await.unwrap();
    let mut events = store.watch_tree("t").await.unwrap();
    assert_eq!(snapshot(&mut events).await.len(), 1);
    proxy.cut();
    let mut versions = Vec::new();
    for number in 0..150 {
        versions.push(direct.put(format!("t/{}", number % 7), vec![b'x'; 200_000]).await.unwrap());
    }
    proxy.restore();
    for version in versions {
        assert_eq!(change(&mut events).await.revision(), version.index());
    }
}

/// One revision that the server sends in several parts.
#[tokio::test]
async fn a_revision_larger_than_a_response_is_told_whole() {
    const KEYS: usize = 8_000;
    let Some(server) = common::etcd().await else { return };
    let store = Store::connect(&server.url(&namespace("whole"))).await.unwrap();
    let key = |number: usize| format!("t/{number:0>400}");
    let numbers: Vec<_> = (0..KEYS).collect();
    for chunk in numbers.chunks(64 * 16) {
        let transactions = chunk.chunks(64).map(|chunk| {
            let puts = chunk.iter().map(|number| Operation::put(key(*number), "").unwrap()).collect();
            store.txn(vec![], puts)
        });
        assert!(try_join_all(transactions).await.is_ok());
    }
    let mut events = store.watch_tree("t").await.unwrap();
    assert_eq!(snapshot(&mut events).await.len(), KEYS);
    assert_eq!(store.delete_tree("t").await.unwrap(), KEYS as u64);
    let mut deletions = BTreeMap::new();
    while deletions.len() < KEYS {
        match change(&mut events).await {
            Change::Delete(key, version) => assert!(deletions.insert(key, version).is_none()),
            put => panic!("expected a deletion, got {put:?}"),
        }
    }
    let revisions: BTreeSet<_> = deletions.values().map(Version::index).collect();
    assert_eq!(revisions.len(), 1);
}

/// A listing takes several answers, and the first of them says which moment it is of.
#[tokio::test]
async fn a_listing_of_many_pages_is_of_one_moment() {
    let Some(server) = common::etcd().await else { return };
    let store = Store::connect(&server.url(&namespace("pages"))).await.unwrap();
    let numbers: Vec<_> = (0..4_500).collect();
    for chunk in numbers.chunks(64) {
        let puts = chunk.iter().map(|number| Operation::put(format!("t/{number:04}"), "").unwrap()).collect();
        assert!(store.txn(vec![], puts).await.is_ok());
    }
    let alike = |pairs: &[KvPair]| pairs[0].value == pairs[4_499].value;
    let reader = async {
        for _ in 0..10 {
            let (mut first, mut second) = (store.watch_tree("t").await.unwrap(), store.watch_tree("t").await.unwrap());
            assert!(alike(&snapshot(&mut first).await) && alike(&snapshot(&mut second).await));
            assert!(alike(&store.list("t").await.unwrap()));
        }
    };
    let writer = async {
        for number in 0.. {
            let both = ["t/0000", "t/4499"].map(|key| Operation::put(key, number.to_string()).unwrap());
            assert!(store.txn(vec![], both.into()).await.is_ok());
        }
    };
    tokio::select! {
        () = reader => {}
        () = writer => {}
    }
}

#[tokio::test]
async fn a_watch_that_is_given_up_while_it_begins_leaves_nothing() {
    let Some(server) = Server::start(Kind::Etcd).await else { return };
    let store = Store::connect(&server.url("abandoned")).await.unwrap();
    let kept = store.watch("kept").await.unwrap();
    let before = watchers(&server).await;
    for millis in 0..8 {
        let begin = join_all((0..100).map(|number| store.watch(format!("{millis}/{number}"))));
        drop(timeout(Duration::from_millis(millis * 4), begin).await);
    }
    ends(&server, before).await;
    drop(kept);
}

#[tokio::test]
async fn a_silent_link_is_noticed_in_time_and_a_quiet_one_is_left_alone() {
    let Some(server) = common::etcd().await else { return };
    for (query, bound) in [("?idle_timeout=3s", Duration::from_secs(3)), ("", Duration::from_secs(10))] {
        let (proxy, namespace) = (server.proxy(), namespace("silent"));
        let store = Store::connect(&format!("{}{query}", proxy.url(&namespace))).await.unwrap();
        let direct = Store::connect(&server.url(&namespace)).await.unwrap();
        let mut events = store.watch("a").await.unwrap();
        assert!(matches!(next(&mut events).await, WatchEvent::Delete { version: None, .. }));
        assert!(timeout(bound + bound / 2, events.next()).await.is_err(), "nothing happens");
        proxy.blackhole();
        let silent = Instant::now();
        assert_eq!(next(&mut events).await, WatchEvent::Suspended);
        println!("noticed after {:?} of {bound:?}", silent.elapsed());
        assert!(silent.elapsed() < bound + Duration::from_millis(500));
        let version = direct.put("a", "1").await.unwrap();
        proxy.restore();
        assert_eq!(next(&mut events).await, WatchEvent::Resumed);
        assert!(matches!(next(&mut events).await, WatchEvent::Put(pair) if pair.version == version));
    }
}

async fn with_users() -> Option<Server> {
    let server = Server::start(Kind::Etcd).await?;
    for (service, body) in [
        ("user/add", r#"{"name":"root","password":"secret"}"#),
        ("user/add", r#"{"name":"app","password":"secret"}"#),
        ("role/add", r#"{"name":"app"}"#),
        // All that starts with `app/`.
        ("role/grant", r#"{"name":"app","perm":{"permType":2,"key":"YXBwLw==","range_end":"YXBwMA=="}}"#),
        ("user/grant", r#"{"user":"app","role":"app"}"#),
        ("user/grant", r#"{"user":"root","role":"root"}"#),
        ("enable", "{}"),
    ] {
        etcd::administer(&server, &format!("auth/{service}"), body).await;
    }
    Some(server)
}

fn url_of_app(server: &Server, namespace: &str) -> String {
    format!("etcd://app:secret@{}/{namespace}", server.address())
}

#[tokio::test]
async fn a_token_that_expired_between_two_watches_is_renewed() {
    let Some(server) = with_users().await else { return };
    let store = Store::connect(&url_of_app(&server, "app")).await.unwrap();
    let mut first = store.watch("a").await.unwrap();
    assert!(matches!(next(&mut first).await, WatchEvent::Delete { version: None, .. }));
    sleep(Duration::from_secs(etcd::TOKEN_TTL + 2)).await;
    let mut rest = try_join_all((0..50).map(|number| store.watch(format!("b/{number}")))).await.unwrap();
    for events in &mut rest {
        assert!(matches!(next(events).await, WatchEvent::Delete { version: None, .. }));
    }
    for (key, events) in [("a", &mut first), ("b/7", &mut rest[7])] {
        let version = store.put(key, "1").await.unwrap();
        // With no word of a lost link before it.
        assert!(matches!(next(events).await, WatchEvent::Put(pair) if pair.version == version));
    }
    assert!(common::etcd_grpc_count(&server, "Authenticate").await <= 3);
}

#[tokio::test]
async fn what_may_not_be_read_is_refused() {
    let Some(server) = with_users().await else { return };
    let store = Store::connect(&url_of_app(&server, "other")).await.unwrap();
    let refused = store.watch("a").await.expect_err("a refusal");
    assert!(matches!(refused, Error::PermissionDenied { .. }), "{refused}");
    let refused = store.watch_tree("").await.expect_err("a refusal");
    assert!(matches!(refused, Error::PermissionDenied { .. }), "{refused}");
}
