//! Locks on Consul: what they are at the server, and what they cost. Beside `consul lock`: `tests/interop.rs`.
#![cfg(all(feature = "consul", target_os = "linux"))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Kind, Proxy, Server, Setup, http, namespace};
use futures_util::future::{join_all, try_join_all};
use kvactor::{Error, LockGuard, LockOptions, Operation, Result, Store};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Longest wait for what is due, on a machine with other things to do.
const DUE: Duration = Duration::from_secs(30);
/// How long after the server let go of a lock somebody else may get it.
const PROMPT: Duration = Duration::from_secs(1);
/// Long enough for what must not happen to show, and for a lock to be watched at the server.
const A_WHILE: Duration = Duration::from_millis(600);

async fn due<T>(what: impl Future<Output = T>) -> T {
    timeout(DUE, what).await.expect("it is due")
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    due(wait).await;
}

/// A wait for a lock that goes on by itself.
fn wait_for(store: &Store, key: impl Into<String>) -> JoinHandle<Result<LockGuard>> {
    let (store, key) = (store.clone(), key.into());
    tokio::spawn(async move { store.lock(key).await })
}

/// Has the wait end within a time from now.
async fn prompt(waiting: JoinHandle<Result<LockGuard>>, within: Duration) -> LockGuard {
    let begun = Instant::now();
    let guard = due(waiting).await.unwrap().unwrap();
    assert!(begun.elapsed() < within, "{:?}", begun.elapsed());
    guard
}

/// What the server says, asked not by a store.
async fn ask(server: &Server, method: &str, path: &str) -> Value {
    let answer = http::request(server.address(), method, path, "").await.unwrap();
    match answer.status {
        404 => Value::Null,
        200 => serde_json::from_str(&answer.body).unwrap(),
        _ => panic!("{method} {path}: {answer:?}"),
    }
}

/// The key as the server shows it; null where it isn't there.
async fn shown(server: &Server, path: &str) -> Value {
    match ask(server, "GET", &format!("/v1/kv/{path}?consistent")).await {
        Value::Array(mut keys) => keys.remove(0),
        nothing => nothing,
    }
}

/// The sessions there are.
async fn sessions(server: &Server) -> BTreeSet<String> {
    let sessions = ask(server, "GET", "/v1/session/list?consistent").await;
    let ids = sessions.as_array().unwrap().iter().map(|session| session["ID"].as_str().unwrap().to_owned());
    ids.collect()
}

/// Ends the session that holds a key.
async fn end_holder(server: &Server, path: &str) {
    let held = shown(server, path).await;
    ask(server, "PUT", &format!("/v1/session/destroy/{}", held["Session"].as_str().unwrap())).await;
}

/// Other clients leave the keys of their locks where they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_left_of_a_lock_is_taken() {
    let Some(server) = common::consul().await else { return };
    let name = namespace("leftover");
    let store = Store::connect(&server.url(&name)).await.unwrap();
    let path = format!("{name}/k");
    ask(server, "PUT", &format!("/v1/kv/{path}?flags=3304740253564472344")).await;
    let left = shown(server, &path).await["ModifyIndex"].as_u64().unwrap();
    let guard = store.try_lock("k").await.unwrap();
    assert!(guard.token() > left);
    assert_eq!(shown(server, &path).await["Flags"], 3_304_740_253_564_472_344_u64);
    guard.unlock().await.unwrap();
    assert!(shown(server, &path).await.is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_kinds_of_locks_are_refused() {
    let Some(server) = common::consul().await else { return };
    let name = namespace("kinds");
    let store = Store::connect(&server.url(&name)).await.unwrap();
    // As programs do it that don't go by Consul's own clients.
    let session = ask(server, "PUT", "/v1/session/create").await["ID"].take();
    let acquired = ask(server, "PUT", &format!("/v1/kv/{name}/k?acquire={}", session.as_str().unwrap())).await;
    assert_eq!(acquired, true);
    let error = store.lock("k").await.expect_err("a refusal");
    assert!(matches!(&error, Error::Unsupported { reason } if reason.contains("flags")), "{error}");
    let leased = store.put_with("ttl", "x", kvactor::PutOptions { ttl: Some(DUE), ..Default::default() }).await;
    leased.unwrap();
    assert!(matches!(store.lock("ttl").await, Err(Error::KeyExists { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_nobody_else_wants_is_two_requests() {
    let Some(server) = common::consul().await else { return };
    let proxy = server.proxy();
    let store = Store::connect(&proxy.url(&namespace("requests"))).await.unwrap();
    let lock = async |key: &str| store.lock(key).await.unwrap();
    lock("first").await.unlock().await.unwrap();
    assert_eq!(proxy.counts().requests_like("PUT /v1/session/create"), 1);
    proxy.reset_counts();
    for key in ["a", "b", "a", "日本"] {
        lock(key).await.unlock().await.unwrap();
    }
    let requests = proxy.counts().requests;
    assert!(requests.len() == 8 && requests.iter().all(|request| request == "PUT /v1/txn"), "{requests:?}");
    let guard = lock("a").await;
    proxy.reset_counts();
    guard.put("data", "x").await.unwrap();
    guard.publish("y").await.unwrap();
    assert_eq!(proxy.counts().requests.len(), 2);
    guard.unlock().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ends_takes_the_lock_away_at_once() {
    let Some(server) = common::consul().await else { return };
    let name = namespace("ended");
    let store = Store::connect(&format!("{}?lock_delay=0s", server.url(&name))).await.unwrap();
    let guards = try_join_all(["a", "b"].map(|key| store.lock(key))).await.unwrap();
    sleep(A_WHILE).await;
    end_holder(server, &format!("{name}/a")).await;
    let ended = Instant::now();
    // Before anybody here can know.
    let write = guards[0].txn(Vec::new(), vec![Operation::put("data", "x").unwrap()]).await;
    assert!(matches!(write, Err(Error::LockLost { .. })), "{write:?}");
    due(join_all(guards.iter().map(LockGuard::lost))).await;
    assert!(ended.elapsed() < PROMPT, "told after {:?}", ended.elapsed());
    assert!(!store.exists("data").await.unwrap());
    let again = due(store.lock("a")).await.unwrap();
    assert!(again.token() > guards[0].token());
    for guard in guards {
        assert!(matches!(guard.unlock().await, Err(Error::LockLost { .. })));
    }
    assert!(again.is_held() && shown(server, &format!("{name}/a")).await.is_object());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lock_delay_is_waited_for_without_haste() {
    const DELAY: Duration = Duration::from_secs(3);
    let Some(server) = common::consul().await else { return };
    let name = namespace("delay");
    let holder = Store::connect(&format!("{}?lock_delay=3s", server.url(&name))).await.unwrap();
    let proxy = server.proxy();
    let store = Store::connect(&proxy.url(&name)).await.unwrap();
    let guard = holder.lock("k").await.unwrap();
    let waiting = wait_for(&store, "k");
    sleep(A_WHILE).await;
    proxy.reset_counts();
    let begun = Instant::now();
    end_holder(server, &format!("{name}/k")).await;
    let ended = Instant::now();
    assert!(matches!(holder.try_lock("k").await, Err(Error::LockHeld { .. })));
    let second = due(waiting).await.unwrap().unwrap();
    let (took, asked) = (ended.elapsed(), proxy.counts().requests.len());
    println!("got after {took:?} with {asked} requests");
    assert!(begun.elapsed() >= DELAY && took < DELAY + 2 * PROMPT, "{took:?}");
    // Four a second at the most, and a few to begin with.
    assert!(asked >= 4 && asked as f64 <= 4.0 * took.as_secs_f64() + 6.0, "{asked} requests in {took:?}");
    assert!(second.token() > guard.token() && !guard.is_held());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_publishes_all_the_time_does_not_busy_those_who_wait() {
    let Some(server) = common::consul().await else { return };
    let name = namespace("busy");
    let holder = Store::connect(&server.url(&name)).await.unwrap();
    let proxy = server.proxy();
    let store = Store::connect(&proxy.url(&name)).await.unwrap();
    let guard = holder.lock("k").await.unwrap();
    let waiting = wait_for(&store, "k");
    sleep(A_WHILE).await;
    proxy.reset_counts();
    let begun = Instant::now();
    let mut published = 0;
    while begun.elapsed() < Duration::from_secs(5) {
        published += 1;
        guard.publish(published.to_string()).await.unwrap();
    }
    let counts = proxy.counts();
    // Beside the watch of the key, which has a pace of its own, and renewals.
    let is_look = |request: &&String| !request.contains("&index=") && !request.contains("/renew/");
    let looks: Vec<_> = counts.requests.iter().filter(is_look).collect();
    println!("{published} values, {} requests, of which {} are looks", counts.requests.len(), looks.len());
    assert!(looks.len() as f64 <= 5.0 * begun.elapsed().as_secs_f64() + 5.0, "{looks:?}");
    assert!(looks.iter().all(|request| request.starts_with("GET")), "it only looks: {looks:?}");
    guard.unlock().await.unwrap();
    prompt(waiting, PROMPT).await.unlock().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gives_up_leaves_nothing() {
    let Some(server) = Server::start(Kind::Consul).await else { return };
    let (holder, proxy) = (Store::connect(&server.url("gone")).await.unwrap(), server.proxy());
    let store = Store::connect(&proxy.url("gone")).await.unwrap();
    let keys: Vec<_> = (0..50).map(|number| format!("k/{number}")).collect();
    let guards = try_join_all(keys.iter().map(|key| holder.lock(key))).await.unwrap();
    let waiting: Vec<_> = keys.iter().map(|key| wait_for(&store, key)).collect();
    until(async || proxy.counts().requests_like("GET /v1/kv/gone/k/7?consistent&index") > 0).await;
    assert_eq!(sessions(&server).await.len(), 2, "one for each store");
    waiting.iter().for_each(JoinHandle::abort);
    until(async || store.status().locks == 0).await;
    proxy.reset_counts();
    sleep(A_WHILE).await;
    assert_eq!(proxy.counts().requests, [""; 0], "nobody asks any more");
    drop(guards);
    until(async || holder.status().locks == 0).await;
    assert!(ask(&server, "GET", "/v1/kv/?recurse").await.is_null());
    store.close().await.unwrap();
    holder.close().await.unwrap();
    assert!(sessions(&server).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_given_back_during_an_outage_is_free_after_it() {
    let Some(server) = common::consul().await else { return };
    let name = namespace("outage");
    let (proxy, other) = (server.proxy(), Store::connect(&server.url(&name)).await.unwrap());
    let store = Store::connect(&proxy.url(&name)).await.unwrap();
    let guards = try_join_all(["a", "b", "c"].map(|key| store.lock(key))).await.unwrap();
    let waiting = wait_for(&other, "a");
    proxy.cut();
    let kept = guards.into_iter().next_back();
    sleep(A_WHILE).await;
    assert!(!waiting.is_finished(), "the server keeps what it wasn't told of");
    proxy.restore();
    let _guards = (prompt(waiting, 2 * PROMPT).await, prompt(wait_for(&other, "b"), PROMPT).await);
    assert!(kept.unwrap().is_held());
}

/// What a store's own writes do to a lock that is held: nothing, but for a delete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_writes_leave_the_holder_in_place() {
    let Some(server) = common::consul().await else { return };
    let name = namespace("plain");
    let url = format!("{}?lock_delay=0s", server.url(&name));
    let (store, other) = (Store::connect(&url).await.unwrap(), Store::connect(&url).await.unwrap());
    let guard = store.lock("k").await.unwrap();
    other.put("k", "plain").await.unwrap();
    assert!(shown(server, &format!("{name}/k")).await["Session"].is_string());
    assert!(matches!(other.try_lock("k").await, Err(Error::LockHeld { .. })));
    guard.put("data", "x").await.unwrap();
    sleep(A_WHILE).await;
    guard.publish("published").await.unwrap();
    sleep(A_WHILE).await;
    assert!(guard.is_held());
    assert_eq!(other.get("k").await.unwrap().value, "published");
    let leased = kvactor::PutOptions { ttl: Some(DUE), ..Default::default() };
    assert!(matches!(other.put_with("k", "x", leased).await, Err(Error::Unsupported { .. })));
    other.delete("k").await.unwrap();
    let deleted = Instant::now();
    due(guard.lost()).await;
    assert!(deleted.elapsed() < PROMPT, "{:?}", deleted.elapsed());
    assert!(matches!(guard.put("data", "y").await, Err(Error::LockLost { .. })));
    prompt(wait_for(&other, "k"), PROMPT).await.unlock().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_can_be_a_lock() {
    let Some(server) = common::consul().await else { return };
    let url = server.url(&namespace("odd"));
    let (store, other) = (Store::connect(&url).await.unwrap(), Store::connect(&url).await.unwrap());
    for key in ["a b?c#d%e+f&g", "d/é", "日本/東京", "x/\u{200b}", "invalid session/due to lock delay", "\"q\\"] {
        let options = LockOptions { value: key.into(), ..LockOptions::default() };
        let guard = store.lock_with(key, options).await.unwrap();
        assert_eq!(other.get(key).await.unwrap().value, key);
        assert!(matches!(other.try_lock(key).await, Err(Error::LockHeld { .. })), "{key}");
        let waiting = wait_for(&other, key);
        sleep(A_WHILE).await;
        assert!(guard.is_held() && !waiting.is_finished(), "{key}");
        guard.unlock().await.unwrap();
        prompt(waiting, PROMPT).await.unlock().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_does_not_fit_is_refused_and_nothing_is_left() {
    let Some(server) = common::consul().await else { return };
    let name = namespace("large");
    let store = Store::connect(&server.url(&name)).await.unwrap();
    let options = |size| LockOptions { value: vec![b'x'; size].into(), ..LockOptions::default() };
    let error = store.lock_with("k", options(400_000)).await.expect_err("a refusal");
    assert!(matches!(&error, Error::Unsupported { reason } if reason.contains("387072")), "{error}");
    assert!(shown(server, &format!("{name}/k")).await.is_null());
    let guard = store.lock_with("k", options(387_072)).await.unwrap();
    assert!(matches!(guard.publish(vec![b'y'; 387_073]).await, Err(Error::Unsupported { .. })));
    guard.publish(vec![b'y'; 387_072]).await.unwrap();
    assert_eq!(store.get("k").await.unwrap().value.len(), 387_072);
}

/// The most connections that the agent had while `work` was done.
async fn peak<T>(proxy: &Proxy, work: impl Future<Output = T>) -> (u64, T) {
    let mut peak = 0;
    let mut work = std::pin::pin!(work);
    loop {
        match timeout(Duration::from_millis(5), &mut work).await {
            Ok(done) => return (peak, done),
            Err(_) => peak = peak.max(proxy.counts().open),
        }
    }
}

/// How many connections an agent grants to one address.
const GRANTED: u64 = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_waits_share_few_connections() {
    const KEYS: usize = 1000;
    let Some(server) = Server::start(Kind::Consul).await else { return };
    let proxy = server.proxy();
    let holder = Store::connect(&format!("{}?max_watch_connections=16", server.url("many"))).await.unwrap();
    let store = Store::connect(&proxy.url("many")).await.unwrap();
    let key = |number: usize| format!("d{}/{number}", number % 7);
    let mut guards = Vec::new();
    for number in 0..KEYS {
        guards.push(holder.lock(key(number)).await.unwrap());
    }
    let work = async {
        let waiting: Vec<_> = (0..KEYS).map(|number| wait_for(&store, key(number))).collect();
        until(async || store.status().locks == KEYS).await;
        sleep(Duration::from_secs(3)).await;
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
        assert_eq!(sessions(&server).await.len(), 2);
        let begun = Instant::now();
        drop(guards);
        let got = due(try_join_all(waiting)).await.unwrap();
        println!("all were given back and got in {:?}", begun.elapsed());
        got.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    };
    let (peak, got) = peak(&proxy, work).await;
    println!("at most {peak} connections");
    assert!(got.iter().all(LockGuard::is_held));
    // 64 for watches and 48 for calls, by default; where calls end by their timeout others take their place.
    assert!(peak < GRANTED, "{peak} connections");
}

/// The answer to the request that got the lock is lost, and the link comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_was_got_unheard_is_known_for_ones_own() {
    let Some(server) = common::consul().await else { return };
    let name = namespace("unheard");
    let proxy = server.proxy();
    let store = Store::connect(&format!("{}?request_timeout=1s", proxy.url(&name))).await.unwrap();
    store.lock("first").await.unwrap().unlock().await.unwrap();
    proxy.hold_answers();
    let (waiting, given_up) = (wait_for(&store, "kept"), wait_for(&store, "given up"));
    let there = async |key: &str| shown(server, &format!("{name}/{key}")).await;
    until(async || there("kept").await.is_object() && there("given%20up").await.is_object()).await;
    given_up.abort();
    sleep(Duration::from_millis(1_500)).await;
    proxy.restore();
    let guard = due(waiting).await.unwrap().unwrap();
    assert_eq!(guard.token(), there("kept").await["CreateIndex"].as_u64().unwrap());
    guard.put("data", "x").await.unwrap();
    until(async || there("given%20up").await.is_null()).await;
    guard.unlock().await.unwrap();
    assert!(there("kept").await.is_null());
}

const MANAGEMENT: &str = "7b2f3c1e-3a54-4f0e-9d1c-5c5d5e0a1b2c";

/// A token with these rights.
async fn token(server: &Server, name: &str, rules: &str) -> String {
    let put = async |path: &str, body: Value| {
        let path = format!("{path}?token={MANAGEMENT}");
        let answer = http::request(server.address(), "PUT", &path, &body.to_string()).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str::<Value>(&answer.body).unwrap()
    };
    put("/v1/acl/policy", json!({ "Name": name, "Rules": rules })).await;
    let token = put("/v1/acl/token", json!({ "Policies": [{ "Name": name }] })).await;
    token["SecretID"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_token_must_allow() {
    let setup = Setup { token: Some(MANAGEMENT.to_owned()), ..Setup::default() };
    let Some(server) = Server::start_as(Kind::Consul, setup).await else { return };
    let keys = r#"key_prefix "acl/allowed/" { policy = "write" }"#;
    let enough = token(&server, "enough", &format!(r#"{keys} session_prefix "" {{ policy = "write" }}"#)).await;
    let too_little = token(&server, "too-little", keys).await;
    let open =
        async |token: &str| Store::connect(&format!("consul://:{token}@{}/acl", server.address())).await.unwrap();
    let (store, other) = (open(&enough).await, open(&enough).await);
    let guard = store.lock("allowed/k").await.unwrap();
    let waiting = wait_for(&other, "allowed/k");
    sleep(A_WHILE).await;
    guard.put("allowed/data", "x").await.unwrap();
    guard.unlock().await.unwrap();
    prompt(waiting, PROMPT).await.unlock().await.unwrap();
    for (store, key) in [(&open(&too_little).await, "allowed/k"), (&store, "forbidden")] {
        let error = due(store.lock(key)).await.expect_err("a refusal");
        assert!(matches!(error, Error::PermissionDenied { .. }), "{error}");
    }
}
