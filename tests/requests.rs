//! How many requests each call costs, counted on the wire or by the server itself.
#![cfg(all(feature = "consul", feature = "etcd", feature = "zookeeper"))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Counts, Kind, Proxy, Server};
use kvactor::{Check, Condition, Consistency, Expected, KvPair, ListOptions, Operation, Store, TxnOutcome};

/// Runs `call` and says how many requests it cost.
async fn cost<T>(meter: &impl Meter, call: impl Future<Output = kvactor::Result<T>>) -> (u64, T) {
    let before = meter.requests().await;
    let done = call.await.unwrap();
    (meter.requests().await - before, done)
}

trait Meter {
    async fn requests(&self) -> u64;
}

/// Consul's HTTP requests and ZooKeeper's frames, as a proxy sees them.
impl Meter for Proxy {
    async fn requests(&self) -> u64 {
        self.counts().calls()
    }
}

/// etcd's calls on keys, as the server counts them.
impl Meter for Server {
    async fn requests(&self) -> u64 {
        let mut sum = 0;
        for method in ["Range", "Put", "DeleteRange", "Txn"] {
            sum += common::etcd_grpc_count(self, method).await;
        }
        sum
    }
}

/// The calls of which each is one request, on Consul and etcd.
async fn each_call_is_one_request(store: &Store, meter: &impl Meter) {
    let one = |name: &str, requests: u64| assert_eq!(requests, 1, "{name}");
    one("put of a new key", cost(meter, store.put("a", "1")).await.0);
    one("put", cost(meter, store.put("a", "2")).await.0);
    one("get", cost(meter, store.get("a")).await.0);
    one("stale get", cost(meter, store.get_with("a", Consistency::Stale)).await.0);
    one("exists", cost(meter, store.exists("a")).await.0);
    one("exists of nothing", cost(meter, store.exists("b")).await.0);
    let (requests, pair): (u64, KvPair) = cost(meter, store.atomic_put("b", "1", Expected::Absent)).await;
    one("atomic_put of a new key", requests);
    let (requests, pair) = cost(meter, store.atomic_put("b", "2", &pair)).await;
    one("atomic_put", requests);
    one("atomic_delete", cost(meter, store.atomic_delete("b", pair.version)).await.0);
    store.put("d/1", "1").await.unwrap();
    store.put("d/e/2", "2").await.unwrap();
    one("list", cost(meter, store.list("d")).await.0);
    one("list_keys", cost(meter, store.list_keys("d", ListOptions::default())).await.0);
    one("delete_tree", cost(meter, store.delete_tree("d")).await.0);
    let checks = vec![Check::new("a", Condition::Exists).unwrap()];
    let operations = vec![Operation::put("t/1", "1").unwrap(), Operation::put("t/2", "2").unwrap()];
    let (requests, outcome) = cost(meter, store.txn(checks, operations)).await;
    assert!(matches!(outcome, TxnOutcome::Committed(_)));
    one("txn", requests);
    one("delete", cost(meter, store.delete("a")).await.0);
}

#[tokio::test]
async fn consul() {
    let Some(server) = common::consul().await else { return };
    let proxy = server.proxy();
    let store = Store::connect(&proxy.url("requests")).await.unwrap();
    each_call_is_one_request(&store, &proxy).await;
    let Counts { connections, .. } = proxy.counts();
    assert_eq!(connections, 1, "connections are kept and used again");
}

#[tokio::test]
async fn etcd() {
    // Of its own: the server counts everybody's requests.
    let Some(server) = Server::start(Kind::Etcd).await else { return };
    let store = Store::connect(&server.url("requests")).await.unwrap();
    each_call_is_one_request(&store, &server).await;
}

#[tokio::test]
async fn zookeeper() {
    let Some(server) = common::zookeeper().await else { return };
    let proxy = server.proxy();
    let store = Store::connect(&proxy.url("requests")).await.unwrap();
    store.put("a", "1").await.unwrap();
    assert_eq!(cost(&proxy, store.put("a", "2")).await.0, 1, "put of a key that exists");
    assert_eq!(cost(&proxy, store.put("b", "2")).await.0, 2, "put of a new key tries to set and then creates");
    assert_eq!(cost(&proxy, store.get_with("a", Consistency::Stale)).await.0, 1, "stale get");
    assert_eq!(cost(&proxy, store.exists_with("a", Consistency::Stale)).await.0, 1, "stale exists");
    assert_eq!(cost(&proxy, store.get("a")).await.0, 2, "get: sync and read, sent together");
    let (requests, pair) = cost(&proxy, store.atomic_put("c", "1", Expected::Absent)).await;
    assert_eq!(requests, 1, "atomic_put of a new key");
    assert_eq!(cost(&proxy, store.atomic_put("c", "2", &pair)).await.0, 3, "atomic_put: sync and look, then write");
    assert_eq!(cost(&proxy, store.delete("c")).await.0, 3, "delete: sync and look, then delete");
    let Counts { connections, .. } = proxy.counts();
    assert_eq!(connections, 1);
}
