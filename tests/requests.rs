//! How many requests each call costs, counted on the wire or by the server itself.
#![cfg(all(feature = "consul", feature = "etcd", feature = "zookeeper"))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Counts, Kind, Proxy, Server};
use futures_util::future::try_join_all;
use kvactor::{Check, Condition, Consistency, Expected, KvPair, ListOptions, Operation, Store, TxnOutcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

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

/// Ideally four go at once, and all others together behind the first of them that is back; how many come in time is chance.
fn assert_few(requests: u64, what: &str) {
    assert!(requests < 20, "{requests} requests for 64 {what} at once");
}

/// What each of 64 callers does at once. They are polled by one task.
async fn by_all<T>(
    store: &Store,
    meter: &impl Meter,
    call: impl AsyncFn(&Store, String) -> kvactor::Result<T>,
) -> (u64, Vec<T>) {
    cost(meter, try_join_all((0..64).map(|number| call(store, format!("all/{number}"))))).await
}

/// Of transactions of ten puts six fit into one: ideally four go at once, and then ten.
async fn small_transactions_go_together(store: &Store, meter: &impl Meter, requests_each: u64) {
    let run = async |store: &Store, path: String| {
        let put = |key: usize| Operation::put(format!("ten/{}-{key}", path.replace('/', "-")), "1");
        store.txn(Vec::new(), (0..10).map(put).collect::<Result<_, _>>()?).await
    };
    store.put("ten/first", "1").await.unwrap();
    let (requests, outcomes) = by_all(store, meter, run).await;
    assert!(requests <= 20 * requests_each, "{requests} requests for 64 transactions at once");
    assert!(outcomes.iter().all(|outcome| matches!(outcome, TxnOutcome::Committed(results) if results.len() == 10)));
}

/// Two of those who ask the same go at once, and all others together behind the first that is back.
async fn a_listing_of_many_callers_is_made_a_few_times(store: &Store, meter: &impl Meter, requests_each: u64) {
    let (requests, pages) = by_all(store, meter, async |store, _| store.list("all").await).await;
    assert!(requests < 10 * requests_each, "{requests} requests for 64 listings at once");
    let first = &pages[0];
    assert!(first.len() == 64 && pages.iter().all(|page| page == first));
    let keys = async |store: &Store, _| store.list_keys("all", ListOptions::default()).await;
    let (requests, pages) = by_all(store, meter, keys).await;
    assert!(requests < 10 * requests_each, "{requests} requests for 64 listings of keys at once");
    assert!(pages.iter().all(|page| page.items.iter().eq(first.iter().map(|pair| &pair.key))));
}

#[tokio::test]
async fn consul() {
    let Some(server) = common::consul().await else { return };
    let proxy = server.proxy();
    let store = Store::connect(&proxy.url("requests")).await.unwrap();
    each_call_is_one_request(&store, &proxy).await;
    let Counts { connections, .. } = proxy.counts();
    assert_eq!(connections, 1, "connections are kept and used again");
    let (requests, versions) = by_all(&store, &proxy, async |store, path| store.put(path, "1").await).await;
    assert_few(requests, "puts");
    let versions = std::cell::RefCell::new(versions);
    let swap = async |store: &Store, path: String| {
        let version = versions.borrow_mut().remove(0);
        store.atomic_put(path, "2", version).await
    };
    let (requests, written) = by_all(&store, &proxy, swap).await;
    assert_few(requests, "atomic_puts");
    assert_eq!(written.len(), 64);
    let get = async |store: &Store, path: String| store.get(path).await;
    // Until it knows how large values are, sixteen together are the most.
    by_all(&store, &proxy, get).await;
    let (requests, pairs) = by_all(&store, &proxy, get).await;
    assert_few(requests, "gets");
    assert!(pairs.iter().map(|pair| pair.version).eq(written.iter().map(|pair| pair.version)));
    assert!(pairs.iter().all(|pair| pair.value == "2"));
    let stale = async |store: &Store, path: String| store.get_with(path, Consistency::Stale).await;
    assert_few(by_all(&store, &proxy, stale).await.0, "stale gets");
    a_listing_of_many_callers_is_made_a_few_times(&store, &proxy, 1).await;
    small_transactions_go_together(&store, &proxy, 1).await;
    let erase = async |store: &Store, path: String| {
        let pair = pairs.iter().find(|pair| *pair.key == path).unwrap();
        store.atomic_delete(path, pair.version).await
    };
    assert_few(by_all(&store, &proxy, erase).await.0, "atomic_deletes");
    let large = "x".repeat(100_000);
    let (requests, _) = by_all(&store, &proxy, async |store, path| store.put(path, large.clone()).await).await;
    assert_eq!(requests, 64, "large values go by themselves");
    assert_few(by_all(&store, &proxy, async |store, path| store.delete(path).await).await.0, "deletes");
}

#[tokio::test]
async fn etcd() {
    // Of its own: the server counts everybody's requests.
    let Some(server) = Server::start(Kind::Etcd).await else { return };
    let store = Store::connect(&server.url("requests")).await.unwrap();
    each_call_is_one_request(&store, &server).await;
    let put = async |store: &Store, path: String| store.put(path, "1").await;
    let (requests, written) = by_all(&store, &server, put).await;
    assert_few(requests, "puts");
    let get = async |store: &Store, path: String| store.get(path).await;
    // Until it knows how large values are, sixteen together are the most.
    by_all(&store, &server, get).await;
    let (requests, pairs) = by_all(&store, &server, get).await;
    assert_few(requests, "gets");
    assert!(pairs.iter().map(|pair| pair.version).eq(written));
    let stale = async |store: &Store, path: String| store.get_with(path, Consistency::Stale).await;
    assert_few(by_all(&store, &server, stale).await.0, "stale gets");
    assert_few(by_all(&store, &server, async |store, path| store.exists(path).await).await.0, "looks");
    a_listing_of_many_callers_is_made_a_few_times(&store, &server, 1).await;
    small_transactions_go_together(&store, &server, 1).await;
    let versions: Vec<_> = pairs.into_iter().map(|pair| (pair.key.to_string(), pair.version)).collect();
    let swap = async |store: &Store, path: String| {
        let (_, version) = versions.iter().find(|(key, _)| *key == path).unwrap();
        store.atomic_put(path, "2", *version).await
    };
    assert_few(by_all(&store, &server, swap).await.0, "atomic_puts");
    assert_few(by_all(&store, &server, async |store, path| store.delete(path).await).await.0, "deletes");
    let large = "x".repeat(100_000);
    let (requests, _) = by_all(&store, &server, async |store, path| store.put(path, large.clone()).await).await;
    assert_eq!(requests, 64, "large values go by themselves");
    by_all(&store, &server, get).await;
    let (requests, _) = by_all(&store, &server, get).await;
    assert!(requests > 8, "{requests} requests for what has 100 kB");
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

/// ZooKeeper's opcode of `multiRead`.
const MULTI_READ: i32 = 22;

#[tokio::test]
async fn zookeeper_in_numbers() {
    let Some(server) = common::zookeeper().await else { return };
    let proxy = server.proxy();
    let store = Store::connect(&proxy.url("requests-at-once")).await.unwrap();
    let put = async |store: &Store, path: String| store.put(path, "1").await;
    by_all(&store, &proxy, put).await;
    assert_few(by_all(&store, &proxy, put).await.0, "puts");
    let get = async |store: &Store, path: String| store.get(path).await;
    // Until it knows how large values are, sixteen together are the most.
    by_all(&store, &proxy, get).await;
    let (requests, pairs) = by_all(&store, &proxy, get).await;
    assert_few(requests, "gets");
    assert!(pairs.iter().all(|pair| pair.value == "1"));
    let stale = async |store: &Store, path: String| store.get_with(path, Consistency::Stale).await;
    assert_few(by_all(&store, &proxy, stale).await.0, "stale gets");
    let versions: Vec<_> = pairs.into_iter().map(|pair| (pair.key.to_string(), pair.version)).collect();
    let swap = async |store: &Store, path: String| {
        let (_, version) = versions.iter().find(|(key, _)| *key == path).unwrap();
        store.atomic_put(path, "2", *version).await
    };
    let (requests, _) = by_all(&store, &proxy, swap).await;
    // How many come back at the same time is chance; alone they would be 192.
    assert!(requests < 64, "{requests} requests for atomic_puts at once");
    assert_eq!(cost(&proxy, store.list("all")).await.0, 3, "list: sync and names, then all in one");
    a_listing_of_many_callers_is_made_a_few_times(&store, &proxy, 3).await;
    small_transactions_go_together(&store, &proxy, 4).await;
    assert_eq!(
        cost(&proxy, store.delete_tree("all")).await.0,
        5,
        "delete_tree: as list, a multi, the directory itself"
    );
    assert!(proxy.counts().frames_of(MULTI_READ) > 0);
}

/// A server that is too old for reads that go together, as far as can be told from how it answers: the opcode is one that no
/// server knows.
#[tokio::test]
async fn zookeeper_before_3_6() {
    let Some(server) = common::zookeeper().await else { return };
    let old = without_multi_read(server.address()).await;
    let store = Store::connect(&format!("zk://{old}/requests-of-old")).await.unwrap();
    for _ in 0..2 {
        let call = async |path: String| {
            store.put(&path, "1").await?;
            store.get(&path).await
        };
        let pairs = try_join_all((0..64).map(|number| call(format!("all/{number}")))).await.unwrap();
        assert!(pairs.iter().all(|pair| pair.value == "1"));
        assert_eq!(store.list("all").await.unwrap().len(), 64);
        let checks = (0..10).map(|number| Check::new(format!("all/{number}"), Condition::Exists).unwrap());
        let outcome = store.txn(checks.collect(), Vec::new()).await.unwrap();
        assert!(matches!(outcome, TxnOutcome::Committed(_)));
        assert_eq!(store.delete_tree("all").await.unwrap(), 64);
    }
    assert_eq!(store.status().restarts, 0);
}

/// A way to a server on which each `multiRead` becomes a request that it doesn't know.
async fn without_multi_read(server: std::net::SocketAddr) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = tokio::net::TcpStream::connect(server).await else { continue };
            let (from_client, mut to_client) = client.into_split();
            let (mut from_server, to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            tokio::spawn(relay_requests(from_client, to_server));
        }
    });
    address
}

async fn relay_requests(mut client: OwnedReadHalf, mut server: OwnedWriteHalf) -> std::io::Result<()> {
    let mut is_first = true;
    loop {
        let length = client.read_i32().await?;
        let mut frame = vec![0; usize::try_from(length).unwrap()];
        client.read_exact(&mut frame).await?;
        // The opcode follows the request's number; the first frame, which opens the session, has neither.
        if !is_first && frame[4..8] == MULTI_READ.to_be_bytes() {
            frame[4..8].copy_from_slice(&77_i32.to_be_bytes());
        }
        is_first = false;
        server.write_i32(length).await?;
        server.write_all(&frame).await?;
    }
}
