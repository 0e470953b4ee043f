//! Watches on Consul: what blocking queries, shared by many, make of them.
#![cfg(all(feature = "consul", target_os = "linux"))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Kind, Proxy, Server, Setup, http, namespace};
use futures_util::FutureExt;
use kvactor::{Config, Error, Store, TreeEvent, WatchEvent, WatchStream};
use serde_json::json;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Longest wait for what is due, on a machine with other things to do.
const DUE: Duration = Duration::from_secs(30);
/// How late a change may be told of, however many keys are watched and however hot they are.
const PROMPT: Duration = Duration::from_secs(2);
/// What a store may hold of an agent's connections for its watches, by default.
const MAX_WATCH_CONNECTIONS: u64 = 64;

async fn next(events: &mut WatchStream) -> WatchEvent {
    timeout(DUE, events.next()).await.expect("an event is due").expect("the store is open")
}

/// Waits until the key is told to have this value; none means that it is gone.
async fn told(events: &mut WatchStream, value: Option<&str>) {
    loop {
        let now = match next(events).await {
            WatchEvent::Put(pair) => Some(pair.value),
            WatchEvent::Delete { .. } => None,
            other => panic!("the link is up: {other:?}"),
        };
        if now.as_deref() == value.map(str::as_bytes) {
            return;
        }
    }
}

/// How many connections to this address are established, seen from the client's side.
fn sockets_to(address: SocketAddr) -> usize {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let remote = format!(":{:04X}", address.port());
    let is_one = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[2].ends_with(&remote) && fields[3] == "01"
    };
    table.lines().skip(1).filter(|line| is_one(line)).count()
}

/// Watches how many connections the agent has, until it is told to stop.
fn peak(proxy: Arc<Proxy>, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    tokio::spawn(async move {
        let mut peak = 0;
        while !stop.load(SeqCst) {
            peak = peak.max(proxy.counts().open);
            sleep(Duration::from_millis(5)).await;
        }
        peak
    })
}

const KEYS: usize = 1000;

/// A thousand watches that come one by one, each a change before the next, with calls beside.
async fn a_thousand_keys(key: fn(usize) -> String) {
    let Some(server) = Server::start(Kind::Consul).await else { return };
    let proxy = Arc::new(server.proxy());
    let store = Store::connect(&proxy.url("thousand")).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let peak = peak(proxy.clone(), stop.clone());
    let mut watched = Vec::new();
    for number in 0..KEYS {
        let mut events = store.watch(key(number)).await.unwrap();
        assert!(matches!(next(&mut events).await, WatchEvent::Delete { version: None, .. }));
        watched.push(events);
    }
    for round in ["1", "2"] {
        for number in 0..KEYS {
            store.put(key(number), round).await.unwrap();
        }
        let written = Instant::now();
        for events in &mut watched {
            told(events, Some(round)).await;
        }
        assert!(written.elapsed() < PROMPT, "told {:?} after the last of many changes", written.elapsed());
    }
    for events in &mut watched[..KEYS / 2] {
        assert!(events.next().now_or_never().is_none(), "a state is told once");
    }
    let begun = Instant::now();
    for number in (0..KEYS).step_by(50) {
        store.delete(key(number)).await.unwrap();
        assert!(matches!(store.get(key(number)).await, Err(Error::KeyNotFound { .. })));
    }
    let calls = begun.elapsed() / 40;
    assert!(calls < Duration::from_millis(50), "a call takes {calls:?}");
    for events in watched.iter_mut().step_by(50) {
        told(events, None).await;
    }
    stop.store(true, SeqCst);
    let peak = peak.await.unwrap();
    println!("at most {peak} connections; {calls:?} for a call beside");
    // The test makes one call after the other; beside that, a watch reads for itself before it shares a query, and a shared
    // query is read often until it can wait: two more.
    assert!(peak <= MAX_WATCH_CONNECTIONS + 3, "{peak} connections at the agent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_keys_in_one_directory() {
    a_thousand_keys(|number| format!("together/{number}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_keys_in_a_thousand_directories() {
    a_thousand_keys(|number| format!("apart/{number}/key")).await;
}

/// The agent goes on with a query whose connection is closed, and counts it among the 200 that it grants.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_come_and_go_do_not_use_up_the_agents_connections() {
    let Some(server) = Server::start(Kind::Consul).await else { return };
    let proxy = Arc::new(server.proxy());
    let store = Store::connect(&proxy.url("churn")).await.unwrap();
    let mut stays = store.watch("stays").await.unwrap();
    next(&mut stays).await;
    for number in 0..400 {
        let mut events = store.watch(format!("k/{number}")).await.unwrap();
        next(&mut events).await;
        drop(events);
        // The watch ends a moment after its last subscriber.
        while store.status().watches > 1 {
            sleep(Duration::from_millis(1)).await;
        }
    }
    let open = proxy.counts().open;
    assert!(open <= MAX_WATCH_CONNECTIONS + 3, "{open} connections at the agent");
    let mut late = store.watch("late").await.unwrap();
    next(&mut late).await;
    let written = Instant::now();
    store.put("late", "1").await.unwrap();
    store.put("stays", "1").await.unwrap();
    told(&mut late, Some("1")).await;
    told(&mut stays, Some("1")).await;
    assert!(written.elapsed() < PROMPT, "told after {:?}", written.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_many_watches_have_queries_of_their_own_again() {
    let Some(server) = common::consul().await else { return };
    let proxy = server.proxy();
    let name = namespace("few-again");
    let store = Store::connect(&format!("{}?max_watch_connections=4", proxy.url(&name))).await.unwrap();
    let mut watched = Vec::new();
    for number in 0..20 {
        let mut events = store.watch(format!("d/{number}")).await.unwrap();
        next(&mut events).await;
        watched.push(events);
    }
    let asks = |what: &str| proxy.counts().requests_like(&format!("GET /v1/kv/{name}/{what}?consistent&index"));
    // A place at the agent is free when the queries of before would be over.
    let begun = Instant::now();
    while asks("d/") == 0 {
        assert!(begun.elapsed() < DUE, "the directory is asked for as one");
        sleep(Duration::from_millis(50)).await;
    }
    watched.truncate(2);
    proxy.reset_counts();
    let begun = Instant::now();
    while asks("d/0") == 0 || asks("d/1") == 0 {
        assert!(begun.elapsed() < DUE, "{:?}", proxy.counts().requests);
        sleep(Duration::from_millis(50)).await;
    }
    for (number, events) in watched.iter_mut().enumerate() {
        store.put(format!("d/{number}"), "1").await.unwrap();
        told(events, Some("1")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_last_watch_ends_its_query_within_a_second() {
    let Some(server) = common::consul().await else { return };
    let proxy = server.proxy();
    let store = Store::connect(&proxy.url(&namespace("drop"))).await.unwrap();
    let (one, two) = (store.watch("k").await.unwrap(), store.watch("k").await.unwrap());
    let tree = store.watch_tree("d").await.unwrap();
    let asked = || proxy.counts().requests_like("GET");
    assert_eq!(sockets_to(proxy.address()), 3, "one for calls, two for queries");
    drop((one, tree));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(sockets_to(proxy.address()), 2, "one subscriber is left");
    drop(two);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(sockets_to(proxy.address()), 1);
    let before = asked();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(asked(), before, "nobody asks any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_key_is_asked_for_at_a_pace_and_the_last_value_arrives() {
    let Some(server) = common::consul().await else { return };
    let proxy = server.proxy();
    let name = namespace("hot");
    let store = Store::connect(&proxy.url(&name)).await.unwrap();
    let mut events = store.watch("hot").await.unwrap();
    let begun = Instant::now();
    let mut last = 0;
    while begun.elapsed() < Duration::from_secs(5) {
        last += 1;
        store.put("hot", last.to_string()).await.unwrap();
    }
    let asked = proxy.counts().requests_like(&format!("GET /v1/kv/{name}/hot?consistent"));
    let (written, took) = (Instant::now(), begun.elapsed());
    told(&mut events, Some(&last.to_string())).await;
    println!("{last} puts, asked {asked} times; the last was told after {:?}", written.elapsed());
    assert!(written.elapsed() < PROMPT);
    // Three seconds' worth at will, and then a hundred times a second.
    let most = 300 + took.as_millis() / 10 + 10;
    assert!((20..=most).contains(&(asked as u128)), "asked {asked} times");
    drop(events);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(sockets_to(proxy.address()), 1, "the query's connection goes also between two requests");
}

/// The server answers a query for an absent key when any key is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_key_does_not_wake_its_subscribers() {
    let Some(server) = common::consul().await else { return };
    let proxy = server.proxy();
    let name = namespace("missing");
    let store = Store::connect(&proxy.url(&name)).await.unwrap();
    let mut missing = store.watch("missing").await.unwrap();
    assert!(matches!(next(&mut missing).await, WatchEvent::Delete { version: None, .. }));
    let mut tree = store.watch_tree("none").await.unwrap();
    assert!(matches!(timeout(DUE, tree.next()).await, Ok(Some(TreeEvent::Snapshot(pairs))) if pairs.is_empty()));
    let asked = || proxy.counts().requests_like(&format!("GET /v1/kv/{name}/missing"));
    let (before, begun) = (asked(), Instant::now());
    for number in 0..50 {
        store.put("missing too", number.to_string()).await.unwrap();
        store.put("missin", number.to_string()).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    let (woken, took) = (asked() - before, begun.elapsed());
    println!("woken {woken} times");
    assert!(woken as u128 <= 16 + took.as_millis() / 200 + 1, "asked {woken} times in vain within {took:?}");
    assert!(missing.next().now_or_never().is_none() && tree.next().now_or_never().is_none());
    store.put("missing", "1").await.unwrap();
    assert!(matches!(next(&mut missing).await, WatchEvent::Put(pair) if pair.value == "1"));
    store.delete("missing").await.unwrap();
    assert!(matches!(next(&mut missing).await, WatchEvent::Delete { version: Some(_), .. }));
}

/// What isn't ASCII isn't asked for by its own path; keys like `..` would be cleaned away from URLs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_can_be_watched() {
    let Some(server) = common::consul().await else { return };
    let store = Store::connect(&server.url(&namespace("odd"))).await.unwrap();
    for key in ["a b?c#d%e+f&g", "d/é", "日本/東京", "x/\u{200b}", ".../x", "a/.é"] {
        let mut events = store.watch(key).await.unwrap();
        assert!(matches!(next(&mut events).await, WatchEvent::Delete { version: None, .. }), "{key}");
        let version = store.put(key, "1").await.unwrap();
        assert!(matches!(next(&mut events).await, WatchEvent::Put(pair) if pair.version == version), "{key}");
        let mut tree = store.watch_tree(key).await.unwrap();
        assert!(matches!(timeout(DUE, tree.next()).await, Ok(Some(TreeEvent::Snapshot(pairs))) if pairs.is_empty()));
        store.put(format!("{key}/é"), "2").await.unwrap();
        let told = timeout(DUE, tree.next()).await;
        assert!(matches!(told, Ok(Some(TreeEvent::Put(pair))) if pair.value == "2"), "{key}");
        store.delete(key).await.unwrap();
        assert!(matches!(next(&mut events).await, WatchEvent::Delete { .. }), "{key}");
    }
}

fn consul(server: &Server, arguments: &[&str]) {
    let address = format!("-http-addr={}", server.address());
    let (group, rest) = arguments.split_at(2);
    let output = Command::new("consul").args(group).arg(address).args(rest).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The index goes backward and no connection is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_restored_from_a_snapshot_is_caught_up_with() {
    let Some(server) = Server::start(Kind::Consul).await else { return };
    let store = Store::connect(&server.url("restored")).await.unwrap();
    let (mut key, mut gone) = (store.watch("d/k").await.unwrap(), store.watch("d/gone").await.unwrap());
    store.put("d/k", "1").await.unwrap();
    told(&mut key, Some("1")).await;
    let file = server.dir().join("snapshot");
    consul(&server, &["snapshot", "save", file.to_str().unwrap()]);
    for value in ["2", "3", "4"] {
        store.put("d/k", value).await.unwrap();
        store.put("d/gone", value).await.unwrap();
    }
    told(&mut key, Some("4")).await;
    told(&mut gone, Some("4")).await;
    consul(&server, &["snapshot", "restore", file.to_str().unwrap()]);
    let restored = Instant::now();
    for (events, value) in [(&mut key, Some("1")), (&mut gone, None)] {
        until(events, value).await;
    }
    assert!(restored.elapsed() < DUE / 2, "told after {:?}", restored.elapsed());
    store.put("d/k", "5").await.unwrap();
    until(&mut key, Some("5")).await;
}

/// As [`told`], passing over what the link does.
async fn until(events: &mut WatchStream, value: Option<&str>) {
    loop {
        let now = match next(events).await {
            WatchEvent::Put(pair) => Some(pair.value),
            WatchEvent::Delete { .. } => None,
            _ => continue,
        };
        if now.as_deref() == value.map(str::as_bytes) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_server_is_caught_up_with_by_shared_queries() {
    let Some(server) = Server::start(Kind::Consul).await else { return };
    let mut config = Config::from_url(&server.url("wiped")).unwrap();
    config.options.max_watch_connections = 3;
    let store = Store::open(config).await.unwrap();
    let mut watched = Vec::new();
    for number in 0..50 {
        store.put(format!("d/{number}"), "before").await.unwrap();
        let mut events = store.watch(format!("d/{number}")).await.unwrap();
        told(&mut events, Some("before")).await;
        watched.push(events);
    }
    server.wipe().await;
    store.with_request_timeout(DUE).put("d/0", "after").await.unwrap();
    until(&mut watched[0], Some("after")).await;
    for events in &mut watched[1..] {
        until(events, None).await;
    }
}

const MANAGEMENT: &str = "7b2f3c1e-3a54-4f0e-9d1c-5c5d5e0a1b2c";

/// A token that may read the keys beneath `allowed/`.
async fn limited_token(server: &Server) -> String {
    let policy = json!({ "Name": "some", "Rules": "key_prefix \"acl/allowed/\" { policy = \"read\" }" });
    let put = async |path: &str, body: serde_json::Value| {
        let path = format!("{path}?token={MANAGEMENT}");
        let answer = http::request(server.address(), "PUT", &path, &body.to_string()).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str::<serde_json::Value>(&answer.body).unwrap()
    };
    put("/v1/acl/policy", policy).await;
    let token = put("/v1/acl/token", json!({ "Policies": [{ "Name": "some" }] })).await;
    token["SecretID"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_not_allowed_is_refused_also_where_queries_are_shared() {
    let setup = Setup { token: Some(MANAGEMENT.to_owned()), ..Setup::default() };
    let Some(server) = Server::start_as(Kind::Consul, setup).await else { return };
    let token = limited_token(&server).await;
    let url = format!("consul://:{token}@{}/acl?max_watch_connections=3", server.address());
    let store = Store::connect(&url).await.unwrap();
    let refused = async || {
        let error = store.watch("forbidden").await.expect_err("a refusal");
        assert!(matches!(error, Error::PermissionDenied { .. }), "{error}");
        assert!(!error.to_string().contains(&token));
    };
    refused().await;
    let mut watched = Vec::new();
    for number in 0..10 {
        watched.push(store.watch(format!("allowed/{number}")).await.unwrap());
    }
    refused().await;
    let owner = Store::connect(&format!("consul://:{MANAGEMENT}@{}/acl", server.address())).await.unwrap();
    for (number, events) in watched.iter_mut().enumerate() {
        owner.put(format!("allowed/{number}"), "1").await.unwrap();
        told(events, Some("1")).await;
    }
}
