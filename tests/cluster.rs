//! A store on three nodes, any one of which is killed, frozen or cut off: calls go on by themselves, and nothing is lost.
#![cfg(any(feature = "consul", feature = "etcd", feature = "zookeeper"))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::told::Told;
use common::{Cluster, Kind, on_servers};
use kvactor::{Error, Store, TreeStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::sleep;

on_servers! {
    calls_go_on_when_nodes_are_killed
    calls_go_on_when_the_link_to_a_node_fails
    calls_go_on_while_all_nodes_are_restarted_in_turn
}

const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
const OPTIONS: &str = "request_timeout=2s&connect_timeout=1s&backoff_max=500ms&idle_timeout=3s";
/// How much later than its deadline a call may end, on a machine with other things to do.
const GRACE: Duration = Duration::from_millis(500);
/// Whatever happens to one node, calls succeed again within this time.
const BOUND: Duration = Duration::from_secs(10);
const CALLERS: usize = 4;

/// Callers that put and get all the time, and somebody who watches what they put.
struct Load {
    cluster: Cluster,
    store: Store,
    callers: Vec<(Arc<Caller>, JoinHandle<Vec<String>>)>,
    watch: TreeStream,
}

#[derive(Default)]
struct Caller {
    acknowledged: AtomicU64,
    ends: AtomicBool,
}

impl Load {
    async fn on(cluster: Cluster) -> Self {
        let store = Store::connect(&format!("{}?{OPTIONS}", cluster.url("load"))).await.unwrap();
        let watch = store.watch_tree("").await.unwrap();
        let callers = (0..CALLERS).map(|number| {
            let caller = Arc::new(Caller::default());
            let calls = tokio::spawn(call(store.clone(), number, caller.clone()));
            (caller, calls)
        });
        let callers = callers.collect();
        let load = Load { cluster, store, callers, watch };
        load.goes_on("the start").await;
        load
    }

    /// Waits until each caller has put several keys more, the last of which began after this did.
    async fn goes_on(&self, after: &str) {
        let begun = Instant::now();
        let counts = || self.callers.iter().map(|(caller, _)| caller.acknowledged.load(Ordering::Relaxed));
        let goals: Vec<_> = counts().map(|count| count + 2).collect();
        while !counts().zip(&goals).all(|(count, goal)| count >= *goal) {
            // A caller that panicked makes no progress, and says why itself.
            assert!(self.callers.iter().all(|(_, calls)| !calls.is_finished()), "a caller failed after {after}");
            assert!(begun.elapsed() < BOUND, "the calls are stuck after {after}");
            sleep(Duration::from_millis(5)).await;
        }
        println!("{}: calls went on {:?} after {after}", self.cluster.kind(), begun.elapsed());
    }

    /// The node that the store's calls go to.
    async fn connected_to(&self) -> usize {
        let nodes = 0..self.cluster.nodes().len();
        nodes.clone().for_each(|node| self.cluster.proxy(node).reset_counts());
        self.goes_on("nothing").await;
        nodes.max_by_key(|node| self.cluster.proxy(*node).counts().to_server).unwrap()
    }

    /// Ends the callers, and looks whether all that they were told has been done is there, and was told to who watches.
    async fn ends_well(mut self) {
        let mut acknowledged = Vec::new();
        for (caller, calls) in self.callers {
            caller.ends.store(true, Ordering::Relaxed);
            acknowledged.extend(calls.await.unwrap());
        }
        let direct = Store::connect(&self.cluster.direct_url("load")).await.unwrap();
        let there = direct.list("").await.unwrap();
        let there: std::collections::BTreeSet<_> = there.iter().map(|pair| pair.key.as_str()).collect();
        let lost: Vec<_> = acknowledged.iter().filter(|key| !there.contains(key.as_str())).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        Told::default().converge(&mut self.watch, &direct, "").await;
        self.store.close().await.unwrap();
        direct.close().await.unwrap();
    }
}

/// Puts a new key each time, and gets the last one that was acknowledged. Returns those.
async fn call(store: Store, number: usize, caller: Arc<Caller>) -> Vec<String> {
    let mut acknowledged: Vec<String> = Vec::new();
    for put in 0.. {
        if caller.ends.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("{number}-{put}");
        match in_time("put", store.put(&key, "v")).await {
            Ok(_) => {
                caller.acknowledged.fetch_add(1, Ordering::Relaxed);
                acknowledged.push(key);
            }
            Err(error) => assert!(error.is_indeterminate() || error.is_retryable(), "put: {error}"),
        }
        let Some(last) = acknowledged.last() else { continue };
        match in_time("get", store.get(last)).await {
            Ok(_) => {}
            Err(error) => assert!(error.is_retryable(), "get of an acknowledged key: {error}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
    acknowledged
}

/// What a call comes to, within its deadline.
async fn in_time<T>(what: &str, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let begun = Instant::now();
    let result = call.await;
    let took = begun.elapsed();
    assert!(took < REQUEST_TIMEOUT + GRACE, "a {what} took {took:?}");
    result
}

async fn calls_go_on_when_nodes_are_killed(kind: Kind) {
    let Some(cluster) = Cluster::start(kind).await else { return };
    let load = Load::on(cluster).await;
    let leader = load.cluster.leader().await.unwrap();
    load.cluster.nodes()[leader].kill();
    load.goes_on("the leader was killed").await;
    load.cluster.heal().await;
    let leader = load.cluster.leader().await.unwrap();
    load.cluster.nodes()[(leader + 1) % 3].kill();
    load.goes_on("a follower was killed").await;
    load.cluster.heal().await;
    let connected = load.connected_to().await;
    load.cluster.wipe(connected).await;
    load.goes_on("a node was wiped").await;
    load.ends_well().await;
}

async fn calls_go_on_when_the_link_to_a_node_fails(kind: Kind) {
    type Fault = (&'static str, fn(&Cluster, usize));
    let faults: [Fault; 7] = [
        ("the node was frozen", |cluster, node| cluster.nodes()[node].freeze()),
        ("the link was cut", |cluster, node| cluster.proxy(node).cut()),
        ("the link was half open", |cluster, node| cluster.proxy(node).half_open()),
        ("answers were held", |cluster, node| cluster.proxy(node).hold_answers()),
        ("nothing was forwarded", |cluster, node| cluster.proxy(node).blackhole()),
        ("everything came late", |cluster, node| cluster.proxy(node).delay(Duration::from_millis(150))),
        ("answers were cut short", |cluster, node| cluster.proxy(node).close_at(20)),
    ];
    let Some(cluster) = Cluster::start(kind).await else { return };
    let load = Load::on(cluster).await;
    for (what, fault) in faults {
        fault(&load.cluster, load.connected_to().await);
        load.goes_on(what).await;
        load.cluster.heal().await;
    }
    load.ends_well().await;
}

async fn calls_go_on_while_all_nodes_are_restarted_in_turn(kind: Kind) {
    let Some(cluster) = Cluster::start(kind).await else { return };
    let load = Load::on(cluster).await;
    for node in 0..3 {
        load.cluster.nodes()[node].kill();
        load.cluster.heal().await;
        load.goes_on("a node was restarted").await;
    }
    load.ends_well().await;
}

/// Through a member that forwarded them to the leader, who is dead since.
#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_puts_that_died_with_the_leader_end_when_there_is_another_one() {
    let Some(cluster) = Cluster::start(Kind::Etcd).await else { return };
    let leader = cluster.leader().await.unwrap();
    let follower = cluster.nodes()[(leader + 1) % 3].url("orphans");
    let store = Store::connect(&format!("{follower}?request_timeout=30s")).await.unwrap();
    store.put("k", "before").await.unwrap();
    cluster.nodes()[leader].kill();
    let begun = Instant::now();
    let orphans = futures_util::future::join_all((0..100).map(|put| store.put(format!("k{put}"), "v"))).await;
    let took = begun.elapsed();
    println!(
        "{} of 100 puts ended well, all of them within {took:?}",
        orphans.iter().filter(|put| put.is_ok()).count()
    );
    assert!(orphans.iter().any(Result::is_err), "none was lost: this shows nothing");
    for orphan in orphans.into_iter().filter_map(Result::err) {
        assert!(orphan.is_indeterminate(), "{orphan}");
    }
    // An election takes up to 2 s.
    assert!(took < Duration::from_secs(5), "{took:?}");
    store.put("k", "after").await.unwrap();
    assert_eq!(store.get("k").await.unwrap().value, "after");
}
