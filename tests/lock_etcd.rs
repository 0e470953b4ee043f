//! Locks on etcd: in how many requests, and what the server is left with. Beside etcd's own clients: `tests/interop.rs`.
#![cfg(feature = "etcd")]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Kind, Server, etcd, namespace};
use futures_util::future::join_all;
use kvactor::{Error, LockGuard, LockOptions, Store};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Longest wait for what is due, on a machine with other things to do.
const DUE: Duration = Duration::from_secs(30);
/// A lock that is held for so long is watched.
const WATCHED: Duration = Duration::from_secs(1);

async fn due<T>(what: impl Future<Output = T>) -> T {
    timeout(DUE, what).await.expect("it is due")
}

fn valued(value: &'static str) -> LockOptions {
    LockOptions { value: value.into(), ..LockOptions::default() }
}

/// For holders and those who wait in one task.
fn in_one_task() -> LockOptions {
    LockOptions { wait_for_own_task: true, ..LockOptions::default() }
}

/// What `etcdctl` says.
async fn etcdctl(server: &Server, arguments: &[&str]) -> String {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", server.address())).args(arguments);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.expect("etcdctl on PATH, see scripts/install-servers");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// A wait for a lock that goes on by itself.
fn wait_for(store: &Store, path: impl Into<String>) -> JoinHandle<kvactor::Result<LockGuard>> {
    let (store, path) = (store.clone(), path.into());
    tokio::spawn(async move { store.lock(path).await })
}

/// All keys that the server has in a namespace, contenders included.
async fn keys(server: &Server, namespace: &str) -> Vec<String> {
    let listing = etcdctl(server, &["get", "--prefix", "--keys-only", &format!("{namespace}/")]).await;
    listing.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Those who contend for the lock, in the order in which they came.
async fn line(server: &Server, lock: &str) -> Vec<String> {
    let beneath = format!("{lock}/");
    let arguments = ["get", "--prefix", "--keys-only", "--sort-by=CREATE", "--order=ASCEND", &beneath];
    etcdctl(server, &arguments).await.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

async fn until_in_line(server: &Server, lock: &str, number: usize) {
    let grown = async {
        while line(server, lock).await.len() != number {
            sleep(Duration::from_millis(20)).await;
        }
    };
    due(grown).await;
}

/// The calls that the server has served: all but streams, and renewals, which are streams too.
async fn requests(server: &Server) -> u64 {
    let mut sum = 0;
    for method in ["Range", "Put", "DeleteRange", "Txn", "LeaseGrant", "LeaseRevoke"] {
        sum += common::etcd_grpc_count(server, method).await;
    }
    sum
}

async fn cost<T>(server: &Server, work: impl Future<Output = T>) -> (u64, T) {
    let before = requests(server).await;
    let done = work.await;
    (requests(server).await - before, done)
}

#[tokio::test]
async fn a_lock_is_one_request_and_so_is_its_release() {
    // Of its own: the server counts everybody's requests.
    let Some(server) = Server::start(Kind::Etcd).await else { return };
    let (store, other) = (connect(&server, "costs").await, connect(&server, "costs").await);
    for store in [&store, &other] {
        store.lock("lease").await.unwrap().unlock().await.unwrap();
    }
    // A machine that takes its time gives a holder cause to watch its lock.
    let mut cheapest = [u64::MAX; 5];
    for _ in 0..5 {
        let (lock, guard) = cost(&server, store.lock("lock")).await;
        let guard = guard.unwrap();
        let (refused, answer) = cost(&server, other.try_lock("lock")).await;
        assert!(matches!(answer, Err(Error::LockHeld { .. })));
        let (write, written) = cost(&server, guard.put("data", "x")).await;
        written.unwrap();
        let (unlock, unlocked) = cost(&server, guard.unlock()).await;
        unlocked.unwrap();
        let (attempt, guard) = cost(&server, store.try_lock("lock")).await;
        guard.unwrap().unlock().await.unwrap();
        for (cheapest, now) in cheapest.iter_mut().zip([lock, refused, write, unlock, attempt]) {
            *cheapest = now.min(*cheapest);
        }
    }
    assert_eq!(cheapest, [1; 5], "lock, try_lock of a lock that is held, guarded put, unlock, try_lock");
}

#[tokio::test]
async fn a_release_wakes_one_of_those_who_wait() {
    const WAITING: usize = 8;
    let Some(server) = Server::start(Kind::Etcd).await else { return };
    let stores = join_all((0..WAITING).map(|_| connect(&server, "wakes"))).await;
    for store in &stores {
        store.lock("lease").await.unwrap().unlock().await.unwrap();
    }
    let guard = stores[0].lock("lock").await.unwrap();
    let mut waiting = Vec::new();
    for (number, store) in stores.iter().cloned().enumerate().skip(1) {
        waiting.push(tokio::spawn(async move { store.lock("lock").await.unwrap().unlock().await.unwrap() }));
        until_in_line(&server, "wakes/lock", number + 1).await;
    }
    let (requests, done) = cost(&server, async {
        guard.unlock().await.unwrap();
        due(join_all(waiting)).await
    })
    .await;
    assert!(done.iter().all(Result::is_ok));
    println!("{requests} requests until {WAITING} had the lock");
    // Two each; if every release woke all who wait it would be more than as many again for each.
    assert!(requests <= 3 * WAITING as u64, "{requests} requests for {WAITING} locks");
    assert_eq!(keys(&server, "wakes").await, [""; 0]);
}

#[tokio::test]
async fn who_gives_up_waiting_leaves_nothing_at_the_server() {
    let Some(server) = common::etcd().await else { return };
    let namespace = namespace("given-up");
    let (holder, waiter) = (connect(server, &namespace).await, connect(server, &namespace).await);
    let guard = holder.lock("lock").await.unwrap();
    let held = keys(server, &namespace).await;
    assert_eq!(held.len(), 2, "{held:?}");
    for step in 0..40_u64 {
        let wait = waiter.lock_with("lock", in_one_task());
        assert!(timeout(Duration::from_micros(step * step * 20), wait).await.is_err());
        let free = waiter.lock(format!("free/{step}"));
        drop(timeout(Duration::from_micros(step * 100), free).await);
    }
    let left = async {
        while keys(server, &namespace).await != held {
            sleep(Duration::from_millis(20)).await;
        }
    };
    due(left).await;
    guard.unlock().await.unwrap();
    assert_eq!(keys(server, &namespace).await, [""; 0]);
}

/// The lease that a key hangs on, in hexadecimal.
async fn lease(server: &Server, lock: &str) -> String {
    line(server, lock).await[0].rsplit_once('/').unwrap().1.to_owned()
}

async fn is_lost_within(guard: &LockGuard, limit: Duration) {
    let begun = Instant::now();
    due(guard.lost()).await;
    println!("lost after {:?}", begun.elapsed());
    assert!(begun.elapsed() < limit && !guard.is_held() && guard.remaining().is_zero());
}

#[tokio::test]
async fn a_holder_hears_at_once_that_its_lease_is_revoked() {
    let Some(server) = common::etcd().await else { return };
    let namespace = namespace("revoked");
    let (store, other) = (connect(server, &namespace).await, connect(server, &namespace).await);
    for held_for in [WATCHED, Duration::ZERO] {
        let guard = store.lock("lock").await.unwrap();
        let next = wait_for(&other, "lock");
        until_in_line(server, &format!("{namespace}/lock"), 2).await;
        sleep(held_for).await;
        etcdctl(server, &["lease", "revoke", &lease(server, &format!("{namespace}/lock")).await]).await;
        is_lost_within(&guard, Duration::from_secs(1)).await;
        assert!(matches!(guard.put("data", "x").await, Err(Error::LockLost { .. })));
        assert!(matches!(guard.unlock().await, Err(Error::LockLost { .. })));
        due(next).await.unwrap().unwrap().unlock().await.unwrap();
        assert_eq!(keys(server, &namespace).await, [""; 0]);
    }
    store.lock("lock").await.unwrap().unlock().await.unwrap();
}

#[tokio::test]
async fn a_holder_hears_of_its_lock_going_with_the_tree_it_is_in() {
    let Some(server) = common::etcd().await else { return };
    let store = connect(server, &namespace("tree")).await;
    let guard = store.lock("locks/a/b").await.unwrap();
    sleep(WATCHED).await;
    store.delete_tree("locks").await.unwrap();
    is_lost_within(&guard, Duration::from_secs(1)).await;
    assert!(matches!(guard.put("data", "x").await, Err(Error::LockLost { .. })));
    store.lock("locks/a/b").await.unwrap().unlock().await.unwrap();
}

/// Before the holder can know it, the server refuses the write; and soon it knows.
#[tokio::test]
async fn a_guarded_write_without_the_contender_writes_nothing() {
    let Some(server) = common::etcd().await else { return };
    let namespace = namespace("guarded");
    let (store, other) = (connect(server, &namespace).await, connect(server, &namespace).await);
    let guard = store.lock("lock").await.unwrap();
    guard.put("data", "before").await.unwrap();
    etcdctl(server, &["del", &line(server, &format!("{namespace}/lock")).await[0]]).await;
    assert!(matches!(guard.put("data", "after").await, Err(Error::LockLost { .. })));
    assert!(matches!(guard.publish("after").await, Err(Error::LockLost { .. })));
    assert_eq!(store.get("data").await.unwrap().value, "before");
    is_lost_within(&guard, Duration::from_secs(1)).await;
    let free = async {
        while store.exists("lock").await.unwrap() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    due(free).await;
    other.lock("lock").await.unwrap().unlock().await.unwrap();
    assert_eq!(keys(server, &namespace).await, [format!("{namespace}/data")]);
}

#[tokio::test]
async fn a_value_that_somebody_deletes_is_published_again_and_one_put_over_it_stays() {
    let Some(server) = common::etcd().await else { return };
    let namespace = namespace("value");
    let store = connect(server, &namespace).await;
    let guard = store.lock_with("lock", valued("ours")).await.unwrap();
    sleep(WATCHED).await;
    store.delete("lock").await.unwrap();
    let published = async {
        while !store.exists("lock").await.unwrap() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    due(published).await;
    assert_eq!(store.get("lock").await.unwrap().value, "ours");
    store.put("lock", "theirs").await.unwrap();
    sleep(WATCHED).await;
    assert!(guard.is_held());
    guard.put("data", "x").await.unwrap();
    guard.unlock().await.unwrap();
    assert_eq!(keys(server, &namespace).await, ["data", "lock"].map(|key| format!("{namespace}/{key}")));
    assert_eq!(store.get("lock").await.unwrap().value, "theirs");
}

/// More than the server is asked for at a glance, before and behind each contender.
#[tokio::test]
async fn ordinary_keys_beneath_a_lock_stand_in_nobodys_way() {
    let Some(server) = common::etcd().await else { return };
    let namespace = namespace("ordinary");
    let (store, other) = (connect(server, &namespace).await, connect(server, &namespace).await);
    let put = async |name: &str| {
        for number in 0..20 {
            store.put(format!("lock/{name}{number}"), "x").await.unwrap();
        }
    };
    put("before").await;
    let guard = store.try_lock("lock").await.unwrap();
    put("between").await;
    let next = wait_for(&other, "lock");
    until_in_line(server, &format!("{namespace}/lock"), 42).await;
    put("behind").await;
    assert!(!next.is_finished());
    guard.unlock().await.unwrap();
    due(next).await.unwrap().unwrap().unlock().await.unwrap();
    store.lock("lock").await.unwrap().unlock().await.unwrap();
    assert_eq!(keys(server, &namespace).await.len(), 60);
    assert_eq!(store.list("lock").await.unwrap().len(), 60);
}

#[tokio::test]
async fn a_key_with_a_ttl_is_no_lock_either() {
    let Some(server) = common::etcd().await else { return };
    let namespace = namespace("leased");
    let store = connect(server, &namespace).await;
    let options = kvactor::PutOptions { ttl: Some(DUE), ..kvactor::PutOptions::default() };
    store.put_with("key", "x", options).await.unwrap();
    assert!(matches!(store.lock("key").await, Err(Error::KeyExists { .. })));
    assert!(matches!(store.try_lock("key").await, Err(Error::KeyExists { .. })));
    assert_eq!(keys(server, &namespace).await, [format!("{namespace}/key")]);
    assert_eq!(store.get("key").await.unwrap().value, "x");
}

#[tokio::test]
async fn a_release_during_an_outage_is_not_missed() {
    let Some(server) = common::etcd().await else { return };
    let (proxy, namespace) = (server.proxy(), namespace("outage"));
    let waiter = Store::connect(&proxy.url(&namespace)).await.unwrap();
    let holder = connect(server, &namespace).await;
    let guard = holder.lock("lock").await.unwrap();
    let next = wait_for(&waiter, "lock");
    until_in_line(server, &format!("{namespace}/lock"), 2).await;
    proxy.cut();
    guard.unlock().await.unwrap();
    sleep(Duration::from_millis(500)).await;
    assert!(!next.is_finished());
    proxy.restore();
    let guard = due(next).await.unwrap().unwrap();
    guard.put("data", "x").await.unwrap();
    guard.unlock().await.unwrap();
    assert_eq!(keys(server, &namespace).await, [format!("{namespace}/data")]);
}

/// What was asked may have been done.
#[tokio::test]
async fn a_contender_whose_answer_was_lost_is_ones_own() {
    let Some(server) = common::etcd().await else { return };
    let (proxy, namespace) = (server.proxy(), namespace("doubt"));
    let store = Store::connect(&proxy.url(&namespace)).await.unwrap();
    store.lock("lease").await.unwrap().unlock().await.unwrap();
    for number in 0..4 {
        let path = format!("locks/{number}");
        proxy.hold_answers();
        let got = wait_for(&store, path.clone());
        until_in_line(server, &format!("{namespace}/{path}"), 1).await;
        proxy.cut();
        proxy.restore();
        let guard = due(got).await.unwrap().unwrap();
        assert_eq!(line(server, &format!("{namespace}/{path}")).await.len(), 1);
        guard.put("data", "x").await.unwrap();
        guard.unlock().await.unwrap();
    }
    // Given up before the answer is there.
    proxy.hold_answers();
    let lock = format!("{namespace}/locks/given-up");
    let got = wait_for(&store, "locks/given-up");
    until_in_line(server, &lock, 1).await;
    got.abort();
    proxy.cut();
    proxy.restore();
    until_in_line(server, &lock, 0).await;
    assert_eq!(keys(server, &namespace).await, [format!("{namespace}/data")]);
}

#[tokio::test]
async fn a_user_of_the_namespace_alone_can_lock() {
    let Some(server) = Server::start(Kind::Etcd).await else { return };
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
    let url = format!("etcd://app:secret@{}/app", server.address());
    let (store, other) = (Store::connect(&url).await.unwrap(), Store::connect(&url).await.unwrap());
    let guard = store.lock_with("lock", valued("ours")).await.unwrap();
    let next = wait_for(&other, "lock");
    // Longer than a token is good for that isn't used.
    sleep(Duration::from_secs(etcd::TOKEN_TTL + 1)).await;
    guard.put("data", "x").await.unwrap();
    assert!(guard.is_held() && !next.is_finished());
    guard.unlock().await.unwrap();
    due(next).await.unwrap().unwrap().unlock().await.unwrap();
    store.close().await.unwrap();
}

async fn connect(server: &Server, namespace: &str) -> Store {
    Store::connect(&server.url(namespace)).await.unwrap()
}
