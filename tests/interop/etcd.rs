//! `etcdctl lock` and `etcdctl elect`, which are Go's `concurrency.Mutex` and `Election`.

use super::common::{self, Server, namespace};
use super::{Peer, a_while, connect, due, next_leader, stand, wait_for};
use etcd_client::{Client, GetOptions, WatchOptions};
use kvactor::{Error, LeaderEvent, Store};
use std::process::Stdio;
use tokio::process::Command;

fn command(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", server.address())).args(arguments);
    command
}

fn etcdctl(server: &Server, arguments: &[&str]) -> Peer {
    Peer::start(&mut command(server, arguments))
}

/// Asks `etcdctl` for the keys with this prefix, contenders included.
async fn keys(server: &Server, prefix: &str, order: &str) -> Vec<String> {
    let mut get = command(server, &["get", "--prefix", "--keys-only", order, prefix]);
    let output = get.stdin(Stdio::null()).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let listing = String::from_utf8(output.stdout).unwrap();
    listing.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

async fn assert_nothing_left(server: &Server, namespace: &str) {
    assert_eq!(keys(server, &format!("{namespace}/"), "--order=ASCEND").await, [""; 0]);
}

/// Who contends, in the order in which they came.
async fn line(server: &Server, lock: &str) -> Vec<String> {
    keys(server, &format!("{lock}/"), "--sort-by=CREATE").await
}

/// Waits until so many contend.
async fn until_in_line(server: &Server, lock: &str, count: usize) {
    let mut client = Client::connect([server.address().to_string()], None).await.unwrap();
    let beneath = format!("{lock}/");
    let options = GetOptions::new().with_prefix().with_count_only();
    loop {
        let found = client.get(beneath.as_str(), Some(options.clone())).await.unwrap();
        if found.count() == i64::try_from(count).unwrap() {
            return;
        }
        let next = found.header().unwrap().revision() + 1;
        let watch = WatchOptions::new().with_prefix().with_start_revision(next);
        let mut changes = client.watch(beneath.as_str(), Some(watch)).await.unwrap();
        // The first message says that the watch stands.
        while due(changes.message()).await.unwrap().unwrap().events().is_empty() {}
    }
}

#[tokio::test]
async fn who_waits_for_a_lock_stands_in_one_line() {
    let Some(server) = common::etcd().await else { return };
    let namespace = namespace("line");
    let lock = format!("{namespace}/lock");
    let (one, two) = (connect(server, &namespace).await, connect(server, &namespace).await);
    let guard = one.lock("lock").await.unwrap();
    let mut first = etcdctl(server, &["lock", &lock]);
    until_in_line(server, &lock, 2).await;
    let ours = wait_for(&two, "lock");
    until_in_line(server, &lock, 3).await;
    let mut second = etcdctl(server, &["lock", &lock]);
    until_in_line(server, &lock, 4).await;
    let line = line(server, &lock).await;

    guard.unlock().await.unwrap();
    assert_eq!(first.says().await, line[1]);
    a_while().await;
    assert!(!ours.is_finished(), "etcdctl has it");
    first.interrupt();
    let guard = due(ours).await.unwrap().unwrap();
    assert!(first.ended().await);
    a_while().await;
    assert!(guard.is_held() && second.process.try_wait().unwrap().is_none());
    guard.put("data", "written as the holder").await.unwrap();
    guard.delete("data").await.unwrap();
    guard.unlock().await.unwrap();
    assert_eq!(second.says().await, line[3]);
    second.interrupt();
    assert!(second.ended().await);
    assert_nothing_left(server, &namespace).await;
}

#[tokio::test]
async fn a_command_runs_while_no_store_has_the_lock() {
    let Some(server) = common::etcd().await else { return };
    let namespace = namespace("command");
    let lock = format!("{namespace}/lock");
    let (one, two) = (connect(server, &namespace).await, connect(server, &namespace).await);
    let guard = one.lock("lock").await.unwrap();
    let mut theirs = etcdctl(server, &["lock", &lock, "--", "sh", "-c", "echo $ETCD_LOCK_KEY; echo $ETCD_LOCK_REV"]);
    until_in_line(server, &lock, 2).await;
    let contender = line(server, &lock).await.remove(1);
    let ours = wait_for(&two, "lock");
    until_in_line(server, &lock, 3).await;
    a_while().await;
    guard.unlock().await.unwrap();
    assert_eq!(theirs.says().await, contender);
    let revision: u64 = theirs.says().await.parse().unwrap();
    assert!(theirs.ended().await);
    let guard = due(ours).await.unwrap().unwrap();
    // It is of the moment at which they got the lock, not of the one at which they got in line as our tokens are.
    assert!(guard.token() < revision);
    guard.unlock().await.unwrap();
    assert_nothing_left(server, &namespace).await;
}

#[tokio::test]
async fn a_lock_that_etcdctl_holds_is_taken_and_no_key() {
    let Some(server) = common::etcd().await else { return };
    let namespace = namespace("theirs");
    let lock = format!("{namespace}/locks/a");
    let store = connect(server, &namespace).await;
    let mut theirs = etcdctl(server, &["lock", &lock]);
    let contender = theirs.says().await;
    assert_eq!(line(server, &lock).await, [contender.as_str()]);

    assert!(matches!(store.try_lock("locks/a").await, Err(Error::LockHeld { .. })));
    assert!(!store.exists("locks/a").await.unwrap());
    assert!(matches!(store.list("locks").await, Err(Error::KeyNotFound { .. })));
    let contender = contender.strip_prefix(&format!("{namespace}/")).unwrap();
    assert!(!store.exists(contender).await.unwrap());
    assert!(matches!(store.get(contender).await, Err(Error::KeyNotFound { .. })));

    let ours = wait_for(&store, "locks/a");
    until_in_line(server, &lock, 2).await;
    theirs.interrupt();
    due(ours).await.unwrap().unwrap().unlock().await.unwrap();
    assert!(theirs.ended().await);
    assert_nothing_left(server, &namespace).await;
}

/// One that stops waiting is no contender any more, on either side.
#[tokio::test]
async fn who_gives_up_lets_the_others_through() {
    let Some(server) = common::etcd().await else { return };
    let namespace = namespace("gives-up");
    let lock = format!("{namespace}/lock");
    let (one, two) = (connect(server, &namespace).await, connect(server, &namespace).await);
    let guard = one.lock("lock").await.unwrap();
    let theirs = etcdctl(server, &["lock", &lock]);
    until_in_line(server, &lock, 2).await;
    let ours = wait_for(&two, "lock");
    until_in_line(server, &lock, 3).await;
    let mut last = etcdctl(server, &["lock", &lock]);
    until_in_line(server, &lock, 4).await;
    theirs.interrupt();
    until_in_line(server, &lock, 3).await;
    ours.abort();
    until_in_line(server, &lock, 2).await;
    a_while().await;
    assert!(guard.is_held() && last.process.try_wait().unwrap().is_none());
    let line = line(server, &lock).await;
    guard.unlock().await.unwrap();
    assert_eq!(last.says().await, line[1]);
    last.interrupt();
    assert!(last.ended().await);
    assert_nothing_left(server, &namespace).await;
}

#[tokio::test]
async fn one_leads_of_all_candidates() {
    let Some(server) = common::etcd().await else { return };
    let namespace = namespace("election");
    let name = format!("{namespace}/leader");
    let (one, two) = (connect(server, &namespace).await, connect(server, &namespace).await);
    let leadership = one.campaign("leader", "one").await.unwrap();
    let (first_term, first) = (leadership.term().unwrap(), line(server, &name).await.remove(0));
    let mut listener = etcdctl(server, &["elect", "--listen", &name]);
    assert_eq!((listener.says().await, listener.says().await), (first.clone(), "one".to_owned()));
    leadership.publish("still one").await.unwrap();
    assert_eq!((listener.says().await, listener.says().await), (first, "still one".to_owned()));

    let mut theirs = etcdctl(server, &["elect", &name, "theirs"]);
    until_in_line(server, &name, 2).await;
    let ours = stand(&two, "leader", "two");
    until_in_line(server, &name, 3).await;
    let line = line(server, &name).await;
    assert!(leadership.is_leader());
    leadership.resign().await.unwrap();
    assert_eq!((theirs.says().await, theirs.says().await), (line[1].clone(), "theirs".to_owned()));
    assert_eq!((listener.says().await, listener.says().await), (line[1].clone(), "theirs".to_owned()));
    a_while().await;
    assert!(!ours.is_finished(), "they lead");

    theirs.interrupt();
    let leadership = due(ours).await.unwrap().unwrap();
    assert!(theirs.ended().await);
    assert!(leadership.term().unwrap() > first_term);
    assert_eq!((listener.says().await, listener.says().await), (line[2].clone(), "two".to_owned()));
    leadership.resign().await.unwrap();
    assert_nothing_left(server, &namespace).await;
}

#[tokio::test]
async fn observers_see_foreign_leaders() {
    let Some(server) = common::etcd().await else { return };
    let namespace = namespace("observed");
    let name = format!("{namespace}/leader");
    let store = connect(server, &namespace).await;
    let mut leaders = store.observe_leader("leader").await.unwrap();
    assert_eq!(next_leader(&mut leaders).await, None);
    let mut first = etcdctl(server, &["elect", &name, "first"]);
    let (value, first_term) = next_leader(&mut leaders).await.unwrap();
    assert_eq!((value.as_str(), first.says().await), ("first", line(server, &name).await.remove(0)));
    assert!(!store.exists("leader").await.unwrap(), "it publishes nothing at the key itself");
    let mut late = store.observe_leader("leader").await.unwrap();
    assert_eq!(next_leader(&mut late).await.unwrap(), ("first".to_owned(), first_term));

    let mut second = etcdctl(server, &["elect", &name, "second"]);
    until_in_line(server, &name, 2).await;
    // What ordinary keys beneath it do is no news of a leader.
    store.put("leader/beneath", "x").await.unwrap();
    store.delete("leader/beneath").await.unwrap();
    first.interrupt();
    let (value, second_term) = next_leader(&mut leaders).await.unwrap();
    assert!(value == "second" && second_term > first_term, "{value} in term {second_term}");
    second.says().await;

    let ours = stand(&store, "leader", "ours");
    until_in_line(server, &name, 2).await;
    second.interrupt();
    let leadership = due(ours).await.unwrap().unwrap();
    let our_term = leadership.term().unwrap();
    assert_eq!(next_leader(&mut leaders).await.unwrap(), ("ours".to_owned(), our_term));
    let mut third = etcdctl(server, &["elect", &name, "third"]);
    until_in_line(server, &name, 2).await;
    leadership.resign().await.unwrap();
    let (value, third_term) = next_leader(&mut leaders).await.unwrap();
    assert!(value == "third" && third_term > our_term, "{value} in term {third_term}");
    third.says().await;
    third.interrupt();
    assert_eq!(next_leader(&mut leaders).await, None);
    for peer in [first, second, third] {
        assert!(peer.ended().await);
    }
    assert_nothing_left(server, &namespace).await;
}

/// Leaders that come and go while the link is down, and one that goes with its lease.
#[tokio::test]
async fn a_foreign_leader_that_changed_during_an_outage_is_told() {
    let Some(server) = common::etcd().await else { return };
    let (proxy, namespace) = (server.proxy(), namespace("outage"));
    let name = format!("{namespace}/leader");
    let store = Store::connect(&proxy.url(&namespace)).await.unwrap();
    let mut leaders = store.observe_leader("leader").await.unwrap();
    assert_eq!(next_leader(&mut leaders).await, None);
    let first = etcdctl(server, &["elect", &name, "first"]);
    assert_eq!(next_leader(&mut leaders).await.unwrap().0, "first");
    let mut second = etcdctl(server, &["elect", &name, "second"]);
    until_in_line(server, &name, 2).await;
    proxy.cut();
    assert_eq!(due(leaders.next()).await, Some(LeaderEvent::Suspended));
    first.interrupt();
    assert!(first.ended().await);
    let contender = second.says().await;
    proxy.restore();
    assert_eq!(next_leader(&mut leaders).await.unwrap().0, "second");
    assert_eq!(due(leaders.next()).await, Some(LeaderEvent::Resumed));
    let (_, lease) = contender.rsplit_once('/').unwrap();
    assert!(etcdctl(server, &["lease", "revoke", lease]).ended().await);
    assert_eq!(next_leader(&mut leaders).await, None);
}
