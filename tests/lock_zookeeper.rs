//! Locks on ZooKeeper: what is in the line, who is woken, what other programs see, and what outlasts what.
#![cfg(feature = "zookeeper")]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::told::{DUE, Told};
use common::{Kind, Proxy, Server, namespace};
use futures_util::future::join_all;
use kvactor::{
    Check, Condition, Config, Error, Expected, LeaderEvent, ListOptions, LockEvent, LockGuard, LockOptions, Operation,
    Store, TxnOutcome, WatchEvent,
};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use zookeeper_client::{Acls, Client, CreateMode};

/// ZooKeeper's opcode of `multi`.
const MULTI: i32 = 14;

/// That of `getChildren2`, which brings the stat along.
const LOOK: i32 = 12;

/// Long enough for what must not happen to show.
const A_WHILE: Duration = Duration::from_millis(300);

fn ttl(ttl: Duration) -> LockOptions {
    LockOptions { ttl, ..LockOptions::default() }
}

fn valued(value: &'static str) -> LockOptions {
    LockOptions { value: value.into(), ..LockOptions::default() }
}

fn wait_for(store: &Store, options: LockOptions) -> JoinHandle<kvactor::Result<LockGuard>> {
    let store = store.clone();
    tokio::spawn(async move { store.lock_with("lock", options).await })
}

async fn due<T>(what: impl Future<Output = T>) -> T {
    timeout(DUE, what).await.expect("it is due")
}

/// A store, a client of the server's own, and the path of the lock.
async fn beside(server: &Server, test: &str) -> (Store, Client, String) {
    let name = namespace(test);
    let store = Store::connect(&server.url(&name)).await.unwrap();
    let client = Client::connect(&server.address().to_string()).await.unwrap();
    (store, client, format!("/{name}/lock"))
}

async fn in_line(client: &Client, path: &str) -> Vec<String> {
    let mut names = client.list_children(path).await.unwrap_or_default();
    names.sort_by_key(|name| name[name.len() - 10..].to_owned());
    names
}

/// Waits until so many are in line.
async fn until_in_line(client: &Client, path: &str, count: usize) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let names = in_line(client, path).await;
        if names.len() == count {
            return names;
        }
        assert!(begun.elapsed() < DUE, "{count} expected, in line are {names:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn contender(client: &Client, path: &str, prefix: &str, value: &str) -> String {
    let options = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
    let prefix = format!("{path}/{prefix}");
    let (_, number) = client.create(&prefix, value.as_bytes(), &options).await.unwrap();
    format!("{prefix}{number}")
}

async fn directory(client: &Client, path: &str) {
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.mkdir(path, &options).await.unwrap();
}

const KAZOO: &str = "0123456789abcdef0123456789abcdef__lock__";
const KAZOO_READER: &str = "0123456789abcdef0123456789abcdef__rlock__";
const CURATOR: &str = "_c_01234567-89ab-cdef-0123-456789abcdef-lock-";
const CURATOR_SEMAPHORE: &str = "_c_01234567-89ab-cdef-0123-456789abcdef-lease-";

/// What `what` costs: requests, and how many of them write.
async fn cost<T>(proxy: &Proxy, what: impl Future<Output = kvactor::Result<T>>) -> ((u64, u64), T) {
    proxy.reset_counts();
    let done = what.await.unwrap();
    let counts = proxy.counts();
    ((counts.calls(), counts.frames_of(MULTI)), done)
}

#[tokio::test]
async fn a_free_lock_takes_one_write_and_its_end_another() {
    let Some(server) = common::zookeeper().await else { return };
    let proxy = server.proxy();
    let store = Store::connect(&proxy.url(&namespace("requests"))).await.unwrap();
    // The directory of the locks, and their session.
    store.put("locks/other", "1").await.unwrap();
    store.lock("locks/a").await.unwrap().unlock().await.unwrap();
    for _ in 0..3 {
        let (locked, guard) = cost(&proxy, store.lock("locks/a")).await;
        assert_eq!(locked, (1, 1));
        // Behind the write, in one round trip with it, goes a look whether the directory is empty now.
        assert_eq!(cost(&proxy, guard.unlock()).await.0, (2, 1));
    }
    let guard = store.lock("at-the-top").await.unwrap();
    assert_eq!(cost(&proxy, guard.unlock()).await.0, (1, 1), "there is no directory");
}

/// Whether others are in line is guessed at from the last time.
#[tokio::test]
async fn a_wanted_lock_takes_one_write_and_its_end_another() {
    let Some(server) = common::zookeeper().await else { return };
    let (proxy, client) = (server.proxy(), Client::connect(&server.address().to_string()).await.unwrap());
    let name = namespace("wanted");
    let store = Store::connect(&proxy.url(&name)).await.unwrap();
    let other = Store::connect(&server.url(&name)).await.unwrap();
    // Looks and writes. One who holds a lock for long enough asks for other things as well.
    let costs = || (proxy.counts().frames_of(LOOK), proxy.counts().frames_of(MULTI));
    let unlock = async |guard: LockGuard| {
        proxy.reset_counts();
        guard.unlock().await.unwrap();
        costs()
    };
    for (guess, released) in [("wrong", (1, 2)), ("right", (1, 1)), ("right", (1, 1))] {
        let guard = store.lock("lock").await.unwrap();
        let waiting = wait_for(&other, LockOptions::default());
        until_in_line(&client, &format!("/{name}/lock"), 4).await;
        assert_eq!(unlock(guard).await, released, "{guess}");
        due(waiting).await.unwrap().unwrap().unlock().await.unwrap();
    }
    assert_eq!(unlock(store.lock("lock").await.unwrap()).await, (1, 1), "a look in vain");
    assert_eq!(unlock(store.lock("lock").await.unwrap()).await, (0, 1));
    let guard = other.lock("lock").await.unwrap();
    assert!(matches!(store.try_lock("lock").await, Err(Error::LockHeld { .. })));
    proxy.reset_counts();
    assert!(matches!(store.try_lock("lock").await, Err(Error::LockHeld { .. })));
    assert_eq!(costs(), (1, 0), "what is taken is only looked at");
    guard.unlock().await.unwrap();
}

#[tokio::test]
async fn a_lock_that_has_a_znode_takes_one_write() {
    let Some(server) = common::zookeeper().await else { return };
    let proxy = server.proxy();
    let store = Store::connect(&proxy.url(&namespace("znode"))).await.unwrap();
    store.put("lock/beneath", "1").await.unwrap();
    store.lock("lock").await.unwrap().unlock().await.unwrap();
    for number in 0..3 {
        // Numbers go on with whatever is made beneath the lock, and are not taken back.
        store.put(&format!("lock/{number}"), "1").await.unwrap();
        store.delete("lock/beneath").await.unwrap();
        store.put("lock/beneath", "1").await.unwrap();
        let (locked, guard) = cost(&proxy, store.lock_with("lock", valued("held"))).await;
        assert_eq!(locked, (3, 1), "a look, which is two requests sent together, and the contender with its value");
        assert_eq!(cost(&proxy, guard.unlock()).await.0, (3, 1), "a look, a write, and a look sent with it");
        let guard = store.lock_with("lock", valued("held")).await.unwrap();
        assert_eq!(store.get("lock").await.unwrap().value, "held");
        guard.publish("changed").await.unwrap();
        assert_eq!(store.get("lock").await.unwrap().value, "changed");
        guard.unlock().await.unwrap();
        assert!(!store.exists("lock").await.unwrap());
    }
}

#[tokio::test]
async fn all_locks_of_a_ttl_share_a_session() {
    let Some(server) = common::zookeeper().await else { return };
    let proxy = server.proxy();
    let store = Store::connect(&proxy.url(&namespace("share"))).await.unwrap();
    let guards = join_all((0..50).map(|number| store.lock(format!("locks/{number}")))).await;
    assert_eq!(proxy.counts().open, 2);
    let longer = store.lock_with("longer", ttl(Duration::from_secs(20))).await.unwrap();
    assert_eq!(proxy.counts().open, 3);
    for guard in guards {
        guard.unwrap().unlock().await.unwrap();
    }
    longer.unlock().await.unwrap();
    store.close().await.unwrap();
    due(async {
        while proxy.counts().open > 0 {
            sleep(Duration::from_millis(5)).await
        }
    })
    .await;
}

#[tokio::test]
async fn nothing_is_left_in_line() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, client, path) = beside(server, "left").await;
    let (namespace, _) = path.rsplit_once('/').unwrap();
    let other = Store::connect(&server.url(&namespace[1..])).await.unwrap();
    let guard = store.lock("lock").await.unwrap();
    until_in_line(&client, &path, 2).await;
    assert!(matches!(other.try_lock("lock").await, Err(Error::LockHeld { .. })));
    for _ in 0..3 {
        let waiting = wait_for(&other, LockOptions::default());
        until_in_line(&client, &path, 4).await;
        waiting.abort();
        until_in_line(&client, &path, 2).await;
    }
    guard.unlock().await.unwrap();
    assert_eq!(client.list_children(namespace).await.unwrap(), [""; 0]);
    let guard = store.lock("lock").await.unwrap();
    let waiting = wait_for(&other, LockOptions::default());
    until_in_line(&client, &path, 4).await;
    guard.unlock().await.unwrap();
    due(waiting).await.unwrap().unwrap().unlock().await.unwrap();
    assert_eq!(client.list_children(namespace).await.unwrap(), [""; 0]);
}

/// One that waits over a proxy of its own, whose requests can be counted.
struct Waiter {
    proxy: Proxy,
    lock: JoinHandle<kvactor::Result<LockGuard>>,
    /// Its locks are given back with it.
    _store: Store,
}

async fn waiters(server: &Server, client: &Client, path: &str, count: usize) -> Vec<Waiter> {
    let namespace = path.split('/').nth(1).unwrap();
    let mut waiters = Vec::new();
    for number in 0..count {
        let proxy = server.proxy();
        let store = Store::connect(&proxy.url(namespace)).await.unwrap();
        waiters.push(Waiter { proxy, lock: wait_for(&store, LockOptions::default()), _store: store });
        until_in_line(client, path, 2 * number + 4).await;
    }
    waiters
}

#[tokio::test]
async fn a_release_wakes_the_next_in_line_and_nobody_else() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, client, path) = beside(server, "wake").await;
    let mut guard = store.lock("lock").await.unwrap();
    let mut waiting = waiters(server, &client, &path, 6).await;
    sleep(A_WHILE).await;
    let mut served = Vec::new();
    while !waiting.is_empty() {
        waiting.iter().for_each(|waiter| waiter.proxy.reset_counts());
        let token = guard.token();
        guard.unlock().await.unwrap();
        let mut next = waiting.remove(0);
        guard = due(&mut next.lock).await.unwrap().unwrap();
        assert!(guard.token() > token);
        let woken = next.proxy.counts();
        assert_eq!((woken.calls(), woken.frames_of(MULTI)), (3, 0), "one look, in one round trip: {woken:?}");
        for waiter in &waiting {
            assert_eq!(waiter.proxy.counts().calls(), 0, "{:?}", waiter.proxy.counts());
            assert!(!waiter.lock.is_finished());
        }
        served.push(next);
    }
    guard.unlock().await.unwrap();
}

/// Also where the one who has it published after the next had got in line.
#[tokio::test]
async fn who_gets_a_lock_has_published_before_it_knows() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, client, path) = beside(server, "publish").await;
    let name = path.split('/').nth(1).unwrap();
    let proxy = server.proxy();
    let (other, third) =
        (Store::connect(&proxy.url(name)).await.unwrap(), Store::connect(&server.url(name)).await.unwrap());
    let mut events = third.watch("lock").await.unwrap();
    let mut leaders = third.observe_leader("lock").await.unwrap();
    let guard = store.lock_with("lock", valued("first")).await.unwrap();
    let token = guard.token();
    let waiting = wait_for(&other, valued("second"));
    until_in_line(&client, &path, 4).await;
    guard.publish("first, still").await.unwrap();
    let before = third.get("lock").await.unwrap();
    assert_eq!(before.value, "first, still");
    // The next doesn't hear of it.
    proxy.blackhole();
    guard.unlock().await.unwrap();
    let after = third.get("lock").await.unwrap();
    assert_eq!(after.value, "second");
    assert!(after.version.index() > before.version.index(), "{:?} after {:?}", after.version, before.version);
    let listed = third.list("").await.unwrap();
    assert_eq!(listed, std::slice::from_ref(&after));
    let mut told = async || loop {
        match due(events.next()).await.unwrap() {
            WatchEvent::Put(pair) if pair.value == "second" => break pair,
            _ => {}
        }
    };
    assert_eq!(told().await, after);
    let leader = loop {
        match due(leaders.next()).await.unwrap() {
            LeaderEvent::Elected(leader) if leader.value == "second" => break leader,
            _ => {}
        }
    };
    assert!(leader.term > token);
    proxy.restore();
    let guard = due(waiting).await.unwrap().unwrap();
    assert_eq!(guard.token(), leader.term);
    assert_eq!(third.get("lock").await.unwrap(), after, "written once");
    assert!(matches!(third.atomic_put("lock", "x", before.version).await, Err(Error::KeyModified { .. })));
    third.atomic_delete("lock", after.version).await.unwrap();
    assert!(!third.exists("lock").await.unwrap());
    guard.unlock().await.unwrap();
}

/// Nobody has published for one whose predecessor just went.
#[tokio::test]
async fn who_follows_one_that_died_publishes_itself() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, client, path) = beside(server, "died").await;
    let other = Store::connect(&server.url(path.split('/').nth(1).unwrap())).await.unwrap();
    let guard = store.lock_with("lock", valued("first")).await.unwrap();
    let waiting = wait_for(&other, valued("second"));
    let names = until_in_line(&client, &path, 4).await;
    guard.publish("first, still").await.unwrap();
    let before = other.get("lock").await.unwrap();
    let mut gone = client.new_multi_writer();
    names[..2].iter().for_each(|name| gone.add_delete(&format!("{path}/{name}"), None).unwrap());
    gone.commit().await.unwrap();
    let next = due(waiting).await.unwrap().unwrap();
    let after = other.get("lock").await.unwrap();
    assert!(after.value == "second" && after.version.index() > before.version.index(), "{after:?} after {before:?}");
    next.unlock().await.unwrap();
}

/// What the contender was made with is the value of one who has given up.
#[tokio::test]
async fn nothing_is_published_for_who_gave_up() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, client, path) = beside(server, "gave-up").await;
    let name = path.split('/').nth(1).unwrap();
    let proxy = server.proxy();
    let (other, third) =
        (Store::connect(&proxy.url(name)).await.unwrap(), Store::connect(&server.url(name)).await.unwrap());
    let guard = store.lock_with("lock", valued("holder")).await.unwrap();
    let impatient = wait_for(&other, valued("impatient"));
    let names = until_in_line(&client, &path, 4).await;
    let patient = wait_for(&other, valued("patient"));
    sleep(A_WHILE).await;
    impatient.abort();
    let contender = format!("{path}/{}", names[2]);
    due(async {
        while client.get_data(&contender).await.unwrap().0 != b"patient" {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(third.get("lock").await.unwrap().value, "holder");
    proxy.blackhole();
    guard.unlock().await.unwrap();
    assert_eq!(third.get("lock").await.unwrap().value, "patient");
    proxy.restore();
    let guard = due(patient).await.unwrap().unwrap();
    assert_eq!(third.get("lock").await.unwrap().value, "patient");
    guard.unlock().await.unwrap();
}

#[tokio::test]
async fn one_who_gives_up_in_the_middle_wakes_nobody_to_the_lock() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, client, path) = beside(server, "middle").await;
    let guard = store.lock("lock").await.unwrap();
    let waiting = waiters(server, &client, &path, 3).await;
    waiting[1].lock.abort();
    until_in_line(&client, &path, 6).await;
    let [first, _, last] = <[_; 3]>::try_from(waiting).ok().unwrap();
    sleep(A_WHILE).await;
    assert!(guard.is_held() && !first.lock.is_finished() && !last.lock.is_finished());
    guard.unlock().await.unwrap();
    let guard = due(first.lock).await.unwrap().unwrap();
    sleep(A_WHILE).await;
    assert!(!last.lock.is_finished());
    guard.unlock().await.unwrap();
    due(last.lock).await.unwrap().unwrap().unlock().await.unwrap();
}

/// Each dialect sees one of the twins, in the same place among all.
#[tokio::test]
async fn other_programs_exclude_us_and_we_them() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, client, path) = beside(server, "dialects").await;
    let other = Store::connect(&server.url(path.split('/').nth(1).unwrap())).await.unwrap();
    for prefix in [KAZOO, CURATOR] {
        directory(&client, &path).await;
        let first = contender(&client, &path, prefix, "first").await;
        let waiting = wait_for(&store, valued("ours"));
        let names = until_in_line(&client, &path, 3).await;
        let last = contender(&client, &path, prefix, "last").await;
        let kind = prefix.trim_start_matches(|c: char| c.is_ascii_hexdigit() || "_c-".contains(c));
        let seen: Vec<_> = in_line(&client, &path).await.into_iter().filter(|name| name.contains(kind)).collect();
        assert_eq!(seen.len(), 3, "{names:?}");
        assert!(first.ends_with(&seen[0]) && last.ends_with(&seen[2]), "{seen:?}");
        assert_eq!(store.get("lock").await.unwrap().value, "first");
        assert!(matches!(other.try_lock("lock").await, Err(Error::LockHeld { .. })));
        sleep(A_WHILE).await;
        assert!(!waiting.is_finished());
        client.delete(&first, None).await.unwrap();
        let guard = due(waiting).await.unwrap().unwrap();
        assert_eq!(store.get("lock").await.unwrap().value, "ours");
        guard.unlock().await.unwrap();
        assert_eq!(store.get("lock").await.unwrap().value, "last");
        client.delete(&last, None).await.unwrap();
        assert!(!store.exists("lock").await.unwrap());
    }
}

#[tokio::test]
async fn what_is_in_use_as_another_kind_of_lock_is_refused() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, client, path) = beside(server, "kinds").await;
    directory(&client, &path).await;
    for prefix in [KAZOO_READER, CURATOR_SEMAPHORE] {
        let other = contender(&client, &path, prefix, "").await;
        for refused in [store.try_lock("lock").await, store.lock("lock").await] {
            assert!(matches!(&refused, Err(Error::Unsupported { reason }) if reason.contains(prefix)), "{refused:?}");
        }
        assert_eq!(in_line(&client, &path).await.len(), 1);
        client.delete(&other, None).await.unwrap();
    }
    store.lock("lock").await.unwrap().unlock().await.unwrap();
}

/// Kazoo makes sure of a lock's znode once only, and fails when it is gone later.
#[tokio::test]
async fn znodes_that_others_use_are_left_to_them() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, client, path) = beside(server, "kept").await;
    directory(&client, &path).await;
    store.lock("lock").await.unwrap().unlock().await.unwrap();
    assert!(client.check_stat(&path).await.unwrap().is_some(), "another program made it");
    client.delete(&path, None).await.unwrap();

    let guard = store.lock("lock").await.unwrap();
    let other = contender(&client, &path, KAZOO, "").await;
    guard.unlock().await.unwrap();
    client.delete(&other, None).await.unwrap();
    store.lock("lock").await.unwrap().unlock().await.unwrap();
    assert!(client.check_stat(&path).await.unwrap().is_some(), "another program was seen in line");
    assert!(!store.exists("lock").await.unwrap());
    store.put("lock/x", "1").await.unwrap();
    store.delete("lock/x").await.unwrap();
    assert!(client.check_stat(&path).await.unwrap().is_none(), "it was a directory of ours");

    let guard = store.lock("lock").await.unwrap();
    let waiting = {
        let (client, path) = (client.clone(), path.clone());
        tokio::spawn(async move { contender(&client, &path, CURATOR, "").await })
    };
    let other = due(waiting).await.unwrap();
    let other_store = Store::connect(&server.url(path.split('/').nth(1).unwrap())).await.unwrap();
    let behind = wait_for(&other_store, valued("behind"));
    until_in_line(&client, &path, 5).await;
    client.delete(&other, None).await.unwrap();
    guard.unlock().await.unwrap();
    due(behind).await.unwrap().unwrap().unlock().await.unwrap();
    assert!(client.check_stat(&path).await.unwrap().is_some(), "another program was seen when joining the line");
}

#[tokio::test]
async fn a_tree_shows_holders_and_no_contenders() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, client, path) = beside(server, "tree").await;
    let other = Store::connect(&server.url(path.split('/').nth(1).unwrap())).await.unwrap();
    let (mut tree, mut told) = (other.watch_tree("").await.unwrap(), Told::default());
    told.converge(&mut tree, &other, "").await;
    store.put("beside", "1").await.unwrap();
    let guard = store.lock_with("lock", valued("first")).await.unwrap();
    told.converge(&mut tree, &other, "").await;
    guard.publish("second").await.unwrap();
    told.converge(&mut tree, &other, "").await;
    let waiting = wait_for(&other, valued("third"));
    until_in_line(&client, &path, 4).await;
    other.put("lock/beneath", "1").await.unwrap();
    told.converge(&mut tree, &other, "").await;
    guard.unlock().await.unwrap();
    let guard = due(waiting).await.unwrap().unwrap();
    told.converge(&mut tree, &other, "").await;
    guard.unlock().await.unwrap();
    told.converge(&mut tree, &other, "").await;
    let mut told = told.changes;
    // Between two holders the key may be seen to be gone.
    let third = told.iter().position(|change| change == "lock=third").unwrap();
    if told[third - 1] == "-lock" {
        told.remove(third - 1);
    }
    assert_eq!(told, ["beside=1", "lock=first", "lock=second", "lock/beneath=1", "lock=third", "-lock"]);
    assert_eq!(client.list_children(&path).await.unwrap(), ["beneath"]);
}

#[tokio::test]
async fn listings_of_all_kinds_know_locks() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, ..) = beside(server, "lists").await;
    for number in [1, 3] {
        store.put(&format!("d/{number}/x"), "x").await.unwrap();
        store.put(&format!("d/{number}-x"), "x").await.unwrap();
    }
    let _inner = store.lock_with("d/1", valued("1")).await.unwrap();
    let _alone = store.lock_with("d/2", valued("2")).await.unwrap();
    let all = ["d/1", "d/1-x", "d/1/x", "d/2", "d/3-x", "d/3/x"];
    for limit in 1..8 {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut options = ListOptions { limit: Some(limit), ..ListOptions::default() };
        loop {
            let page = store.list_keys("d", options.clone()).await.unwrap();
            let pairs = store.list_with("d", options.clone()).await.unwrap();
            assert_eq!(page.items, pairs.items.iter().map(|pair| pair.key.clone()).collect::<Vec<_>>());
            values.extend(pairs.items.iter().map(|pair| String::from_utf8_lossy(&pair.value).into_owned()));
            keys.extend(page.items.iter().map(ToString::to_string));
            options.after = page.next;
            if options.after.is_none() {
                break;
            }
        }
        assert_eq!((keys.as_slice(), values.join(" ").as_str()), (&all.map(str::to_owned)[..], "1 x x 2 x x"));
    }
    let children = ListOptions { depth: kvactor::Depth::Children, ..ListOptions::default() };
    let page = store.list_keys("d", children.clone()).await.unwrap();
    assert_eq!(page.items.iter().map(ToString::to_string).collect::<Vec<_>>(), ["d/1", "d/1-x", "d/2", "d/3-x"]);
    assert_eq!(store.list_with("d", children).await.unwrap().items[2].value, "2");
    assert!(store.list("d/2").await.unwrap().is_empty(), "a key without children");
}

/// What others do to the key of a lock.
#[tokio::test]
async fn a_lock_that_is_written_to_is_still_held() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, _, path) = beside(server, "written").await;
    let other = Store::connect(&server.url(path.split('/').nth(1).unwrap())).await.unwrap();
    let guard = store.lock_with("lock", valued("holder")).await.unwrap();
    let held = other.get("lock").await.unwrap();
    assert!(matches!(other.atomic_put("lock", "x", Expected::Absent).await, Err(Error::KeyExists { .. })));
    let elsewhere = other.put("elsewhere", "1").await.unwrap();
    assert!(matches!(other.atomic_put("lock", "x", elsewhere).await, Err(Error::KeyModified { .. })));
    assert!(matches!(other.atomic_delete("lock", elsewhere).await, Err(Error::KeyModified { .. })));
    let checks = |condition| vec![Check::new("lock", condition).unwrap()];
    for (condition, holds) in [
        (Condition::Exists, true),
        (Condition::Absent, false),
        (Condition::Version(held.version), true),
        (Condition::Version(elsewhere), false),
    ] {
        let outcome = other.txn(checks(condition), vec![Operation::put("by-txn", "1").unwrap()]).await.unwrap();
        assert_eq!(matches!(outcome, TxnOutcome::Committed(_)), holds, "{condition:?}");
    }
    other.delete("lock").await.unwrap();
    assert!(!other.exists("lock").await.unwrap());
    assert!(matches!(other.delete("lock").await, Err(Error::KeyNotFound { .. })));
    sleep(2 * A_WHILE).await;
    assert!(guard.is_held(), "only what it published is gone");
    assert!(matches!(other.try_lock("lock").await, Err(Error::LockHeld { .. })));
    guard.publish("again").await.unwrap();
    let again = other.get("lock").await.unwrap();
    assert!(again.version.index() > held.version.index());
    let written = other.atomic_put("lock", "a key now", &again).await.unwrap();
    assert_eq!(other.get("lock").await.unwrap(), written);
    guard.publish("unseen").await.unwrap();
    assert_eq!(other.get("lock").await.unwrap(), written);
    assert!(guard.is_held());
    assert!(matches!(other.lock("lock").await, Err(Error::KeyExists { .. })));
    other.delete("lock").await.unwrap();
    assert_eq!(other.get("lock").await.unwrap().value, "unseen");
    let outcome = other.txn(checks(Condition::Exists), vec![Operation::delete("lock").unwrap()]).await.unwrap();
    assert!(matches!(outcome, TxnOutcome::Committed(_)));
    assert!(!other.exists("lock").await.unwrap());
    guard.unlock().await.unwrap();
}

#[tokio::test]
async fn deleting_a_tree_takes_the_locks_in_it() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, client, path) = beside(server, "delete").await;
    let (root, _) = path.rsplit_once('/').unwrap();
    let other = Store::connect(&server.url(&root[1..])).await.unwrap();
    let guard = store.lock("d/lock").await.unwrap();
    let waiting = {
        let other = other.clone();
        tokio::spawn(async move { other.lock("d/lock").await })
    };
    until_in_line(&client, &format!("{root}/d/lock"), 4).await;
    other.put("d/x", "1").await.unwrap();
    sleep(2 * A_WHILE).await;
    let begun = Instant::now();
    assert_eq!(other.delete_tree("d").await.unwrap(), 2);
    due(guard.lost()).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(matches!(guard.put("y", "1").await, Err(Error::LockLost { .. })));
    // Who waited gets in line again.
    let guard = due(waiting).await.unwrap().unwrap();
    assert!(guard.is_held());
    guard.unlock().await.unwrap();
    assert_eq!(client.list_children(root).await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_contender_that_vanishes_is_a_lock_lost_within_a_second() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, client, path) = beside(server, "vanish").await;
    for settled in [Duration::ZERO, 2 * A_WHILE] {
        let guard = store.lock("lock").await.unwrap();
        sleep(settled).await;
        let names = in_line(&client, &path).await;
        client.delete(&format!("{path}/{}", names[0]), None).await.unwrap();
        let begun = Instant::now();
        assert!(matches!(guard.put("x", "1").await, Err(Error::LockLost { .. })));
        due(guard.lost()).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        until_in_line(&client, &path, 0).await;
    }
    assert!(!store.exists("x").await.unwrap());
}

/// Without one of the twins the lock excludes only some programs.
#[tokio::test]
async fn nothing_is_written_under_half_a_lock() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, client, path) = beside(server, "half").await;
    let guard = store.lock("lock").await.unwrap();
    let names = in_line(&client, &path).await;
    client.delete(&format!("{path}/{}", names[1]), None).await.unwrap();
    assert!(matches!(guard.put("x", "1").await, Err(Error::LockLost { .. })));
    let checks = vec![Check::new("x", Condition::Exists).unwrap()];
    assert!(matches!(guard.txn(checks, Vec::new()).await, Err(Error::LockLost { .. })));
    guard.unlock().await.unwrap();
    assert!(client.check_stat(&path).await.unwrap().is_none());
    assert!(!store.exists("x").await.unwrap());
}

async fn over_a_proxy(server: &Server, session_timeout: Duration) -> (Store, Store, Proxy) {
    let (proxy, name) = (server.proxy(), namespace("proxy"));
    let mut config = Config::from_url(&proxy.url(&name)).unwrap();
    config.options.session_timeout = session_timeout;
    config.options.backoff_max = Duration::from_millis(500);
    (Store::open(config).await.unwrap(), Store::connect(&server.url(&name)).await.unwrap(), proxy)
}

/// Waits until the link is back, and the lock still held.
async fn until_it_writes(guard: &LockGuard) {
    due(async {
        while let Err(error) = guard.put("x", "1").await {
            assert!(!matches!(error, Error::LockLost { .. }), "{error}");
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_outlasts_the_stores_own_session() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, other, proxy) = over_a_proxy(server, Duration::from_secs(1)).await;
    let session = store.status().session;
    let guard = store.lock_with("lock", ttl(Duration::from_secs(12))).await.unwrap();
    let mut events = guard.events();
    assert_eq!(events.next().await, Some(LockEvent::Held));
    proxy.cut();
    sleep(Duration::from_secs(6)).await;
    assert!(guard.is_held());
    proxy.restore();
    until_it_writes(&guard).await;
    assert_ne!(store.status().session, session);
    assert!(guard.is_held());
    let next = wait_for(&other, LockOptions::default());
    // The lock's whole time after the last word before the cut.
    sleep(Duration::from_secs(8)).await;
    assert!(guard.is_held() && !next.is_finished());
    guard.unlock().await.unwrap();
    due(next).await.unwrap().unwrap().unlock().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_is_cut_off_loses_the_lock_before_another_has_it() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, other, proxy) = over_a_proxy(server, Duration::from_secs(8)).await;
    let guard = store.lock_with("lock", ttl(Duration::from_secs(2))).await.unwrap();
    let token = guard.token();
    let next = wait_for(&other, LockOptions::default());
    let begun = Instant::now();
    proxy.blackhole();
    due(guard.lost()).await;
    assert!(begun.elapsed() < Duration::from_secs(2) && !next.is_finished(), "{:?}", begun.elapsed());
    let next = due(next).await.unwrap().unwrap();
    // A session lasts half as long again as the TTL, and the server looks for those that are over once a tick.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(next.token() > token);
    proxy.restore();
    assert!(matches!(guard.unlock().await, Err(Error::LockLost { .. })));
    let again = wait_for(&store, ttl(Duration::from_secs(2)));
    sleep(A_WHILE).await;
    assert!(next.is_held() && !again.is_finished());
    next.unlock().await.unwrap();
    due(again).await.unwrap().unwrap().unlock().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_outlasts_a_restart_of_the_server() {
    let Some(server) = Server::start(Kind::ZooKeeper).await else { return };
    let (store, client, path) = beside(&server, "restart").await;
    // Long enough for a server that starts on a busy machine.
    let lasting = LockOptions { ttl: Duration::from_secs(25), ..valued("holder") };
    let guard = store.lock_with("lock", lasting).await.unwrap();
    let other = Store::connect(&server.url(path.split('/').nth(1).unwrap())).await.unwrap();
    let waiting = wait_for(&other, valued("next"));
    until_in_line(&client, &path, 4).await;
    for _ in 0..2 {
        server.restart().await;
        until_it_writes(&guard).await;
        assert!(guard.is_held() && !waiting.is_finished());
    }
    assert_eq!(
        due(async {
            loop {
                if let Ok(pair) = store.get("lock").await {
                    break pair;
                }
            }
        })
        .await
        .value,
        "holder"
    );
    due(guard.unlock()).await.unwrap();
    let next = due(waiting).await.unwrap().unwrap();
    assert!(next.is_held());
}

#[tokio::test]
async fn times_that_the_server_does_not_offer_are_refused() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, client, path) = beside(server, "bounds").await;
    let refused = store.lock_with("lock", ttl(Duration::from_secs(90))).await;
    let Err(Error::Unsupported { reason }) = refused else { panic!("{refused:?}") };
    assert!(["90s", "at most 40s", "at most 26.6"].iter().all(|part| reason.contains(part)), "{reason}");
    assert!(client.check_stat(&path).await.unwrap().is_none());
    store.lock_with("lock", ttl(Duration::from_micros(1_500_100))).await.unwrap().unlock().await.unwrap();
}

#[tokio::test]
async fn a_lock_beneath_a_key_with_a_ttl_is_refused() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, ..) = beside(server, "ephemeral").await;
    store.put_with("key", "1", kvactor::PutOptions::keep_alive(Duration::from_secs(60))).await.unwrap();
    assert!(matches!(store.lock("key/lock").await, Err(Error::Unsupported { .. })));
    assert!(matches!(store.lock("key").await, Err(Error::KeyExists { .. })));
}

#[tokio::test]
async fn the_largest_value_is_published() {
    let Some(server) = common::zookeeper().await else { return };
    let name = namespace("large");
    let size = (1024 - 16) * 1024;
    let store = Store::connect(&format!("{}?max_value_size={size}", server.url(&name))).await.unwrap();
    let other = Store::connect(&format!("{}?max_value_size={size}", server.url(&name))).await.unwrap();
    let large = LockOptions { value: vec![b'x'; size].into(), ..LockOptions::default() };
    let guard = store.lock_with("lock", large.clone()).await.unwrap();
    let next = wait_for(&other, large);
    sleep(A_WHILE).await;
    assert_eq!(other.get("lock").await.unwrap().value.len(), size);
    guard.publish(vec![b'y'; size]).await.unwrap();
    guard.unlock().await.unwrap();
    let next = due(next).await.unwrap().unwrap();
    assert_eq!(store.get("lock").await.unwrap().value.len(), size);
    next.unlock().await.unwrap();
}

/// However often its znode is looked at because of what is beneath it.
#[tokio::test]
async fn an_ordinary_key_is_told_of_only_when_it_changes() {
    let Some(server) = common::zookeeper().await else { return };
    let (store, client, path) = beside(server, "ordinary").await;
    store.put("lock", "1").await.unwrap();
    let mut events = store.watch("lock").await.unwrap();
    assert!(matches!(due(events.next()).await, Some(WatchEvent::Put(_))));
    contender(&client, &path, KAZOO, "foreign").await;
    store.put("lock/beneath", "1").await.unwrap();
    store.put("lock", "2").await.unwrap();
    let Some(WatchEvent::Put(pair)) = due(events.next()).await else { panic!("the key was written") };
    assert_eq!(pair.value, "2");
}
