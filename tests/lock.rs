//! Locks on real servers, with processes killed and frozen, links cut, servers restarted and wiped: never two holders, and no
//! holder who doesn't know in time.
#![cfg(all(any(feature = "consul", feature = "etcd", feature = "zookeeper"), feature = "memory"))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::worker::{Worker, clock, say, told};
use common::{Kind, Server, on_servers};
use futures_util::future::join_all;
use kvactor::{Error, ListOptions, LockEvent, LockGuard, LockOptions, Operation, Store};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

on_servers! {
    no_two_processes_hold_a_lock
    a_frozen_process_knows_that_it_holds_no_more
    a_holder_that_is_cut_off_knows_before_the_server_lets_go
    a_lock_given_back_during_an_outage_leaves_nothing
    a_lock_outlives_the_servers_restart
    a_wiped_server_takes_its_locks_along
}

/// Longest wait for what is due.
const DUE: Duration = Duration::from_secs(90);

/// The shortest TTL that the server keeps.
fn shortest(kind: Kind) -> Duration {
    match kind {
        Kind::Etcd => Duration::from_secs(2),
        Kind::Consul => Duration::from_secs(10),
        Kind::ZooKeeper => Duration::from_secs(4),
    }
}

/// A namespace at this address, without the time that Consul gives what a lost holder has on its way.
fn url(kind: Kind, url: String) -> String {
    match kind {
        Kind::Consul => format!("{url}?lock_delay=1ms"),
        Kind::Etcd | Kind::ZooKeeper => url,
    }
}

async fn open(url: &str) -> Store {
    Store::connect(url).await.unwrap()
}

fn with_ttl(ttl: Duration) -> LockOptions {
    LockOptions { ttl, wait_for_own_task: true, ..LockOptions::default() }
}

async fn due<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DUE, what).await.expect("it is due")
}

/// Waits for an event of a lock that is held.
async fn event(guard: &LockGuard, wanted: LockEvent) {
    let mut events = guard.events();
    due(async { while events.next().await.expect("more events") != wanted {} }).await;
}

async fn keys(store: &Store) -> Vec<String> {
    let page = store.list_keys("", ListOptions::default()).await.unwrap();
    page.items.into_iter().map(String::from).collect()
}

const WORKERS: usize = 8;
const ROUNDS: usize = 200;

/// Not a test of its own but the process that tests below start, kill and freeze: it counts under a lock, and says when it held it.
#[tokio::test]
#[ignore = "a part of the tests that start further processes"]
async fn counting_process() {
    let Some(url) = told("URL") else { return };
    let ttl = Duration::from_millis(told("TTL").unwrap().parse().unwrap());
    let store = open(&url).await;
    let mut counted = 0;
    while counted < ROUNDS {
        match count_once(&store, ttl).await {
            Ok(()) => counted += 1,
            // What a frozen process, or one whose server is down, may hear. The next attempt waits for the link.
            Err(
                Error::LockLost { .. }
                | Error::Indeterminate { .. }
                | Error::Unreachable { .. }
                | Error::Timeout { .. },
            ) => {}
            Err(error) => panic!("{error}"),
        }
    }
    say(format_args!("done"));
}

async fn count_once(store: &Store, ttl: Duration) -> Result<(), Error> {
    let guard = store.lock_with("lock", with_ttl(ttl)).await?;
    let since = clock();
    // One that was got by a process that was then frozen may be over when it arrives.
    if !guard.is_held() {
        return Err(Error::lock_lost(guard.key()));
    }
    let mut until = since;
    let counted = count(store, &guard).await;
    let now = clock();
    if guard.is_held() {
        until = now;
    }
    say(format_args!("held {} {since} {until}", guard.token()));
    if counted.is_ok() {
        say(format_args!("counted {}", guard.token()));
    }
    counted.and(guard.unlock().await)
}

/// Reads and writes as if nobody else could: a second holder would make a count get lost.
async fn count(store: &Store, guard: &LockGuard) -> Result<(), Error> {
    let count: u64 = match store.get("count").await {
        Ok(pair) => std::str::from_utf8(&pair.value).unwrap().parse().unwrap(),
        Err(Error::KeyNotFound { .. }) => 0,
        Err(error) => return Err(error),
    };
    let log = Operation::put(format!("log/{}", guard.token()), "")?;
    guard.txn(Vec::new(), vec![Operation::put("count", (count + 1).to_string())?, log]).await.map(drop)
}

/// What the processes said.
#[derive(Default)]
struct Account {
    /// Token -> from when until when the lock was held for certain.
    held: BTreeMap<u64, (u64, u64)>,
    counted: Vec<u64>,
}

impl Account {
    fn take(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["held", token, since, until] => {
                let interval = (since.parse().unwrap(), until.parse().unwrap());
                let before = self.held.insert(token.parse().unwrap(), interval);
                assert_eq!(before, None, "two acquisitions with the token {token}");
            }
            ["counted", token] => self.counted.push(token.parse().unwrap()),
            // A line that a kill cut short, or the last word.
            _ => {}
        }
    }

    /// Tokens grow from holder to holder, and nobody holds the lock before the one before him has ceased to.
    fn check(&self) {
        let mut before: Option<(u64, u64)> = None;
        for (token, (since, until)) in &self.held {
            assert!(since <= until);
            if let Some((last, ceased)) = before {
                assert!(ceased <= *since, "{token} held the lock {} ns before {last} ceased to", ceased - since);
            }
            before = Some((*token, *until));
        }
    }
}

async fn no_two_processes_hold_a_lock(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let url = url(kind, server.url("count"));
    let ttl = shortest(kind).as_millis().to_string();
    let start = || Worker::start("counting_process", &[("URL", &url), ("TTL", &ttl)]);
    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| start()).collect();
    let mut account = Account::default();
    // The faults, spread over the time in which there is something to disturb.
    for fault in 0..4 {
        listen(&mut workers, &mut account, (fault + 1) * WORKERS * ROUNDS / 6).await;
        match fault {
            0 => workers[0].kill(),
            1 => freeze_for(&workers[1], shortest(kind) * 3 / 2).await,
            2 => server.restart().await,
            _ => {
                workers[2].kill();
                workers.push(start());
                freeze_for(&workers[3], shortest(kind) * 3 / 2).await;
            }
        }
    }
    for worker in workers {
        worker.hear_all().iter().for_each(|line| account.take(line));
    }
    account.check();
    assert!(account.counted.len() > (WORKERS - 2) * ROUNDS, "{}", account.counted.len());
    let store = open(&url).await;
    let log: Vec<u64> =
        store.list("log").await.unwrap().iter().map(|pair| pair.key.as_str()[4..].parse().unwrap()).collect();
    let count = store.get("count").await.unwrap().value;
    assert_eq!(count, log.len().to_string(), "a count was lost: there were two holders");
    let lost: Vec<_> = account.counted.iter().filter(|token| !log.contains(token)).collect();
    assert!(lost.is_empty(), "acknowledged and not there: {lost:?}");
}

/// Takes down what the workers say until they have counted so far.
async fn listen(workers: &mut [Worker], account: &mut Account, enough: usize) {
    let begun = Instant::now();
    while account.counted.len() < enough {
        for worker in workers.iter() {
            while let Some(line) = worker.hear(Duration::ZERO) {
                account.take(&line);
            }
        }
        assert!(begun.elapsed() < DUE, "{} counted, {enough} wanted", account.counted.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Time is what is asked for here: the server must have let go meanwhile.
async fn freeze_for(worker: &Worker, time: Duration) {
    worker.freeze();
    tokio::time::sleep(time).await;
    worker.thaw();
}

/// Not a test of its own but a process that holds a lock and says when it last did.
#[tokio::test]
#[ignore = "a part of the tests that start further processes"]
async fn holding_process() {
    let Some(url) = told("URL") else { return };
    let ttl = Duration::from_millis(told("TTL").unwrap().parse().unwrap());
    let store = open(&url).await;
    let guard = store.lock_with("lock", with_ttl(ttl)).await.unwrap();
    say(format_args!("holds {}", guard.token()));
    // The store has a thread of its own: this one does nothing but look.
    let last = loop {
        let now = clock();
        if !guard.is_held() {
            break now;
        }
        std::thread::sleep(Duration::from_micros(200));
    };
    say(format_args!("knows {last}"));
    assert!(guard.remaining().is_zero());
    let written = guard.put("data", "stale").await;
    assert!(matches!(written, Err(Error::LockLost { .. })), "{written:?}");
    let unlocked = guard.unlock().await;
    assert!(matches!(unlocked, Err(Error::LockLost { .. })), "{unlocked:?}");
    say(format_args!("done"));
}

async fn a_frozen_process_knows_that_it_holds_no_more(kind: Kind) {
    let Some(server) = common::shared(kind).await else { return };
    let url = url(kind, server.url(&common::namespace("frozen")));
    let ttl = shortest(kind);
    let worker = Worker::start("holding_process", &[("URL", &url), ("TTL", &ttl.as_millis().to_string())]);
    let token: u64 = worker.hear_of("holds", DUE).parse().unwrap();
    worker.freeze();
    let frozen = Instant::now();
    let store = open(&url).await;
    let guard = due(store.lock_with("lock", with_ttl(ttl))).await.unwrap();
    assert!(guard.token() > token);
    tokio::time::sleep((2 * ttl).saturating_sub(frozen.elapsed())).await;
    let thawed = clock();
    worker.thaw();
    let knows: u64 = worker.hear_of("knows", DUE).parse().unwrap();
    // Its very next look; the kernel lets it go on when it likes.
    assert!(knows >= thawed - ttl.as_nanos() as u64 * 3);
    assert!(knows.saturating_sub(thawed) < 250_000_000, "it took {} ns to know", knows - thawed);
    worker.hear_of("done", DUE);
    assert!(guard.is_held() && !store.exists("data").await.unwrap());
    guard.unlock().await.unwrap();
}

/// How many locks are cut off at once, to see the order as often.
const CUT_OFF: usize = 20;

async fn a_holder_that_is_cut_off_knows_before_the_server_lets_go(kind: Kind) {
    let Some(server) = common::shared(kind).await else { return };
    let proxy = server.proxy();
    let namespace = common::namespace("cut-off");
    let (holder, waiter) =
        (open(&url(kind, proxy.url(&namespace))).await, open(&url(kind, server.url(&namespace))).await);
    let names: Vec<String> = (0..CUT_OFF).map(|number| format!("lock/{number}")).collect();
    let ttl = shortest(kind);
    let guards = join_all(names.iter().map(|name| holder.lock_with(name, with_ttl(ttl)))).await;
    let guards: Vec<LockGuard> = guards.into_iter().map(Result::unwrap).collect();
    let waiting = join_all(names.iter().map(|name| {
        let (waiter, name) = (waiter.clone(), name.clone());
        tokio::spawn(async move { (waiter.lock_with(&name, with_ttl(ttl)).await.unwrap(), clock()) })
    }));
    proxy.blackhole();
    let knowing = join_all(guards.into_iter().map(|guard| {
        tokio::spawn(async move {
            event(&guard, LockEvent::Suspended).await;
            guard.lost().await;
            (clock(), guard.is_held())
        })
    }));
    let (knew, got) = due(futures_util::future::join(knowing, waiting)).await;
    for (knew, got) in knew.into_iter().zip(got) {
        let ((knew, still_held), (guard, got)) = (knew.unwrap(), got.unwrap());
        assert!(!still_held && knew <= got, "lost {} ns after another had it", knew.saturating_sub(got));
        guard.unlock().await.unwrap();
    }
    proxy.restore();
}

async fn a_lock_given_back_during_an_outage_leaves_nothing(kind: Kind) {
    let Some(server) = common::shared(kind).await else { return };
    let proxy = server.proxy();
    let namespace = common::namespace("outage");
    let (holder, other) =
        (open(&url(kind, proxy.url(&namespace))).await, open(&url(kind, server.url(&namespace))).await);
    // So long that only the release itself can free the lock in time.
    let long = with_ttl(Duration::from_secs(25));
    let dropped = holder.lock_with("dropped", long.clone()).await.unwrap();
    let unlocked = holder.lock_with("unlocked", long.clone()).await.unwrap();
    proxy.cut();
    drop(dropped);
    let answer = unlocked.unlock().await;
    assert!(matches!(answer, Err(Error::Unreachable { .. })), "{answer:?}");
    proxy.restore();
    let back = Instant::now();
    for name in ["dropped", "unlocked"] {
        due(other.lock_with(name, long.clone())).await.unwrap().unlock().await.unwrap();
    }
    assert!(back.elapsed() < Duration::from_secs(8), "{:?}", back.elapsed());
    assert!(keys(&other).await.is_empty());
}

async fn a_lock_outlives_the_servers_restart(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let store = open(&url(kind, server.url("restart"))).await;
    let guard = store.lock_with("lock", with_ttl(Duration::from_secs(20))).await.unwrap();
    let (token, before) = (guard.token(), guard.remaining());
    server.restart().await;
    // A renewal after the restart gives the guard more time than it had.
    let renewed = async {
        while guard.remaining() <= before.saturating_sub(Duration::from_secs(2))
            || guard.put("data", "x").await.is_err()
        {
            assert!(guard.is_held(), "lost over a restart");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    due(renewed).await;
    assert_eq!(guard.token(), token);
    guard.unlock().await.unwrap();
    assert_eq!(keys(&store).await, ["data"]);
}

async fn a_wiped_server_takes_its_locks_along(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let store = open(&url(kind, server.url("wiped"))).await;
    let guard = store.lock_with("lock", with_ttl(Duration::from_secs(25))).await.unwrap();
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { store.lock_with("lock", with_ttl(Duration::from_secs(25))).await })
    };
    server.wipe().await;
    due(guard.lost()).await;
    let written = guard.put("data", "x").await;
    assert!(matches!(written, Err(Error::LockLost { .. })), "{written:?}");
    let next = due(waiting).await.unwrap().unwrap();
    assert!(next.is_held() && !guard.is_held());
    next.unlock().await.unwrap();
}

/// The thread of a store is blocked, as a careless handler of an actix application can do it: nothing is renewed, and the guard knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_thread_loses_its_locks_in_time() {
    const TTL: Duration = Duration::from_secs(2);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let blocked = std::thread::spawn(move || {
        actix::System::new().block_on(async move {
            let store = open("memory://blocked").await;
            let guard = store.lock_with("lock", with_ttl(TTL)).await.unwrap();
            sender.send(guard).unwrap();
            // The very thread on which the store's actors run.
            std::thread::sleep(2 * TTL);
            store
        })
    });
    let guard = receiver.await.unwrap();
    let waiter = open("memory://blocked").await;
    // A guard doesn't keep its store open.
    let store = waiter.clone();
    let waiting = tokio::spawn(async move { (store.lock_with("lock", with_ttl(TTL)).await.unwrap(), clock()) });
    due(guard.lost()).await;
    let knew = clock();
    assert!(!guard.is_held());
    let (next, got) = due(waiting).await.unwrap();
    assert!(knew <= got && next.token() > guard.token());
    drop(blocked.join().unwrap());
    assert!(!guard.is_held() && next.is_held());
    waiter.close().await.unwrap();
}
