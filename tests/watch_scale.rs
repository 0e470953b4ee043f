//! Watches in numbers: many subscribers, many keys, and a subscriber that never reads. What is measured of a process is
//! measured in one of its own.
#![cfg(all(target_os = "linux", feature = "memory"))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(any(feature = "consul", feature = "etcd", feature = "zookeeper"))]
mod common;

use futures_util::FutureExt;
use futures_util::future::try_join_all;
use kvactor::{KvPair, Operation, Store, TreeEvent, TxnOutcome, WatchEvent, WatchStream};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Longest wait for what is due.
const DUE: Duration = Duration::from_secs(60);

/// A test, and the part of it that runs in a process of its own.
macro_rules! in_its_own_process {
    ($($(#[$gate:meta])* $name:ident: $part:expr;)*) => {
        $($(#[$gate])*
        mod $name {
            #[test]
            fn test() {
                super::run_alone(concat!(stringify!($name), "::part"));
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "a part of the test beside it, which runs it in a process of its own"]
            async fn part() {
                $part.await;
            }
        })*
    };
}

in_its_own_process! {
    memory_ten_thousand_subscribers: super::ten_thousand_subscribers(super::Store::connect("memory://many").await.unwrap());
    #[cfg(feature = "local")]
    local_ten_thousand_subscribers: super::local_ten_thousand_subscribers();
    memory_a_subscriber_that_never_reads: super::a_subscriber_that_never_reads();
    #[cfg(feature = "consul")]
    consul_ten_thousand_subscribers: super::servers::ten_thousand_subscribers(crate::common::Kind::Consul);
    #[cfg(feature = "etcd")]
    etcd_ten_thousand_subscribers: super::servers::ten_thousand_subscribers(crate::common::Kind::Etcd);
    #[cfg(feature = "zookeeper")]
    zookeeper_ten_thousand_subscribers: super::servers::ten_thousand_subscribers(crate::common::Kind::ZooKeeper);
    #[cfg(feature = "consul")]
    consul_a_thousand_keys: super::servers::a_thousand_keys(crate::common::Kind::Consul);
    #[cfg(feature = "etcd")]
    etcd_a_thousand_keys: super::servers::a_thousand_keys(crate::common::Kind::Etcd);
    #[cfg(feature = "zookeeper")]
    zookeeper_a_thousand_keys: super::servers::a_thousand_keys(crate::common::Kind::ZooKeeper);
}

fn run_alone(part: &str) {
    let program = std::env::current_exe().unwrap();
    let arguments = ["--exact", part, "--ignored", "--nocapture", "--test-threads=1"];
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "{part} failed:\n{text}");
}

/// The memory that the process has in use, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// The processor time that the process has used so far, in hundredths of a second: Linux counts it so.
#[cfg(any(feature = "consul", feature = "etcd", feature = "zookeeper"))]
fn processor_time() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // Behind the name, which may hold anything: the 14th and 15th field of all.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

const SUBSCRIBERS: usize = 10_000;

async fn ten_thousand_subscribers(store: Store) {
    store.put("one/key", "1").await.unwrap();
    let mut first = store.watch("one/key").await.unwrap();
    assert!(matches!(first.next().await, Some(WatchEvent::Put(_))));
    let before = resident();
    let mut subscribers = Vec::with_capacity(SUBSCRIBERS);
    for _ in 0..SUBSCRIBERS / 100 {
        let some = (0..100).map(|_| store.watch("one/key"));
        for mut events in try_join_all(some).await.unwrap() {
            assert!(matches!(events.next().now_or_never(), Some(Some(WatchEvent::Put(_)))), "the state is known");
            subscribers.push(events);
        }
    }
    let each = resident().saturating_sub(before) / SUBSCRIBERS;
    assert_eq!(store.status().watches, 1);
    let left = Arc::new((AtomicUsize::new(SUBSCRIBERS), Notify::new()));
    let told: Vec<_> = subscribers.into_iter().map(|events| tokio::spawn(wait_for_two(events, left.clone()))).collect();
    tokio::task::yield_now().await;
    let mut took = Vec::new();
    for value in ["2", "3", "4", "5", "6"] {
        left.0.store(SUBSCRIBERS, SeqCst);
        let begun = Instant::now();
        store.put("one/key", value).await.unwrap();
        tokio::time::timeout(DUE, left.1.notified()).await.expect("all are told");
        took.push(begun.elapsed());
    }
    took.sort();
    println!("{SUBSCRIBERS} subscribers: {each} bytes each; one put reaches all in {took:?}");
    assert!(each < 2048, "a subscriber costs {each} bytes");
    // What else the machine does only makes it slower: the fastest is what it takes.
    assert!(took[0] < Duration::from_millis(100), "a put reaches all in {took:?}");
    drop(told);
}

#[cfg(feature = "local")]
async fn local_ten_thousand_subscribers() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("local://{}/store.redb", folder.path().display());
    ten_thousand_subscribers(Store::connect(&url).await.unwrap()).await;
}

/// Takes events and says so.
async fn wait_for_two(mut events: WatchStream, left: Arc<(AtomicUsize, Notify)>) {
    while let Some(WatchEvent::Put(_)) = events.next().await {
        if left.0.fetch_sub(1, SeqCst) == 1 {
            left.1.notify_one();
        }
    }
}

const CHANGES: usize = 1_000_000;
const TXN: usize = 50;

/// Many changes of some keys, and many keys that come and go.
fn operations(round: usize) -> Vec<Operation> {
    let of = |number: usize| match (round % 4, number % 2) {
        (_, 0) => Operation::put(format!("d/stays/{}", (round * TXN + number) % 1000), vec![0; 100]),
        (0 | 2, _) => Operation::put(format!("d/comes and goes/{}/{number}", round / 2), "1"),
        (_, _) => Operation::delete(format!("d/comes and goes/{}/{number}", round / 2)),
    };
    (0..TXN).map(|number| of(number).unwrap()).collect()
}

async fn a_subscriber_that_never_reads() {
    let store = Store::connect("memory://never-reads").await.unwrap();
    let mut lazy = store.watch_tree("d").await.unwrap();
    let mut eager = store.watch_tree("d").await.unwrap();
    let reader = tokio::spawn(async move {
        let (mut pairs, mut count) = (BTreeMap::new(), 0);
        while !pairs.contains_key("d/end") {
            fold(&mut pairs, eager.next().await.unwrap());
            count += 1;
        }
        (pairs, count)
    });
    let mut after_a_tenth = 0;
    for round in 0..CHANGES / TXN {
        let outcome = store.txn(Vec::new(), operations(round)).await.unwrap();
        assert!(matches!(outcome, TxnOutcome::Committed(_)));
        if round == CHANGES / TXN / 10 {
            after_a_tenth = resident();
        }
    }
    store.put("d/end", "").await.unwrap();
    let grown = resident().saturating_sub(after_a_tenth);
    let (eager, told) = tokio::time::timeout(DUE, reader).await.expect("the other reader isn't held up").unwrap();
    let mut pairs = BTreeMap::new();
    let mut count = 0;
    while let Some(Some(event)) = lazy.next().now_or_never() {
        fold(&mut pairs, event);
        count += 1;
    }
    println!(
        "{CHANGES} changes: grown by {grown} bytes in the last nine tenths; {told} events to the one, {count} to the other"
    );
    let there: Vec<KvPair> = store.list("d").await.unwrap();
    assert!(pairs.values().eq(&there), "who reads late sees the latest state");
    assert!(eager.values().eq(&there));
    assert!(count <= 2 * 1000 + 100, "{count} events waited");
    assert!(grown < 16 * 1024 * 1024, "memory grew by {grown} bytes");
}

fn fold(pairs: &mut BTreeMap<String, KvPair>, event: TreeEvent) {
    match event {
        TreeEvent::Snapshot(all) => *pairs = all.into_iter().map(|pair| (pair.key.to_string(), pair)).collect(),
        TreeEvent::Put(pair) => drop(pairs.insert(pair.key.to_string(), pair)),
        TreeEvent::Delete { key, .. } => drop(pairs.remove(key.as_str()).expect("it was known")),
        other => panic!("unexpected: {other:?}"),
    }
}

#[cfg(any(feature = "consul", feature = "etcd", feature = "zookeeper"))]
mod servers {
    use super::*;
    use crate::common::{Kind, Server};
    use futures_util::future::join_all;

    pub(super) async fn ten_thousand_subscribers(kind: Kind) {
        let Some(server) = Server::start(kind).await else { return };
        super::ten_thousand_subscribers(Store::connect(&server.url("many")).await.unwrap()).await;
    }

    const KEYS: usize = 1000;

    /// Ten seconds, so that a hundredth of the processor is ten hundredths of a second.
    const IDLE: Duration = Duration::from_secs(10);

    /// Half of them in one directory, half in one of their own.
    fn key(number: usize) -> String {
        match number % 2 {
            0 => format!("together/{number}"),
            _ => format!("apart/{number}/key"),
        }
    }

    pub(super) async fn a_thousand_keys(kind: Kind) {
        let Some(server) = Server::start(kind).await else { return };
        let store = Store::connect(&server.url("keys")).await.unwrap();
        store.put("elsewhere", "0").await.unwrap();
        let at_first = resident();
        let mut watched = Vec::new();
        for some in (0..KEYS).collect::<Vec<_>>().chunks(50) {
            let watches = some.iter().map(|number| store.watch(key(*number)));
            watched.extend(try_join_all(watches).await.unwrap());
        }
        for events in &mut watched {
            let first = tokio::time::timeout(DUE, events.next()).await.expect("the state is known");
            assert!(matches!(first, Some(WatchEvent::Delete { version: None, .. })), "{first:?}");
        }
        let sockets = sockets_to(server.address().port());
        for round in 0..3 {
            let begun = Instant::now();
            for some in (0..KEYS).collect::<Vec<_>>().chunks(50) {
                let puts = some.iter().map(|number| store.put(key(*number), format!("{round}")));
                try_join_all(puts).await.unwrap();
            }
            let told = join_all(watched.iter_mut().map(|events| tokio::time::timeout(DUE, events.next()))).await;
            for event in told {
                let event = event.expect("every key is told of").unwrap();
                assert!(matches!(&event, WatchEvent::Put(pair) if pair.value == format!("{round}")), "{event:?}");
            }
            println!("{KEYS} keys written and told of in {:?}", begun.elapsed());
        }
        let used = processor_time();
        tokio::time::sleep(IDLE).await;
        let used = processor_time() - used;
        let (rss, begun) = (resident(), Instant::now());
        for number in 0..100 {
            store.put("elsewhere", format!("{number}")).await.unwrap();
            assert_eq!(store.get("elsewhere").await.unwrap().value, format!("{number}"));
        }
        let calls = begun.elapsed() / 200;
        println!(
            "{kind}: {sockets} sockets, {} KiB resident, {} before, {calls:?} for a call beside, {used} hundredths of a second of work in {IDLE:?} at rest",
            rss / 1024,
            at_first / 1024
        );
        assert_eq!(store.status().watches, KEYS);
        // One more for the calls themselves.
        assert!(sockets <= 64 + 1, "{sockets} sockets");
        assert!(rss < 40_000_000, "{rss} bytes resident");
        assert!(used <= 10, "{used} hundredths of a second in {IDLE:?} without a change");
        assert!(calls < Duration::from_millis(50), "a call takes {calls:?}");
    }

    /// How many connections to this port of this machine are established, seen from the clients' side.
    fn sockets_to(port: u16) -> usize {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let remote = format!(":{port:04X}");
        let established = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[2].ends_with(&remote) && fields[3] == "01"
        };
        table.lines().skip(1).filter(|line| established(line)).count()
    }
}
