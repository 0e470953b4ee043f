//! `consul lock`, which is the Go API's `Lock` at the key `.lock` beneath the prefix that it is given.

use super::common::{self, Server, http, namespace};
use super::{Peer, a_while, connect, due, next_leader, stand, wait_for};
use kvactor::Error;
use tokio::process::Command;

/// `consul lock`, and a command that says that it runs, and ends when it is hung up on.
fn consul_lock(server: &Server, options: &[&str], prefix: &str) -> Peer {
    let mut command = Command::new("consul");
    command.args(["lock", &format!("-http-addr={}", server.address()), "-pass-stdin"]);
    command.args(options).args([prefix, "echo runs; cat >/dev/null"]);
    Peer::start(&mut command)
}

/// What the server has beneath a namespace.
async fn keys(server: &Server, namespace: &str) -> String {
    let answer = http::get(server.address(), &format!("/v1/kv/{namespace}/?keys&consistent")).await.unwrap();
    answer.body
}

#[tokio::test]
async fn consul_lock_waits_for_a_store() {
    let Some(server) = common::consul().await else { return };
    let namespace = namespace("cli-waits");
    let (store, prefix) = (connect(server, &namespace).await, format!("{namespace}/job"));
    let guard = store.lock("job/.lock").await.unwrap();
    let hasty = consul_lock(server, &["-timeout=1s"], &prefix);
    assert!(!hasty.ended().await, "it gives up");
    let mut theirs = consul_lock(server, &[], &prefix);
    a_while().await;
    assert!(guard.is_held());
    let runs = tokio::spawn(async move { (theirs.says().await, theirs) });
    a_while().await;
    assert!(!runs.is_finished());
    guard.unlock().await.unwrap();
    let (said, mut theirs) = due(runs).await.unwrap();
    assert_eq!(said, "runs");
    assert!(matches!(store.try_lock("job/.lock").await, Err(Error::LockHeld { .. })));
    theirs.hang_up();
    assert!(theirs.ended().await);
}

#[tokio::test]
async fn a_store_waits_for_consul_lock() {
    let Some(server) = common::consul().await else { return };
    let namespace = namespace("ours-waits");
    let store = connect(server, &namespace).await;
    let before = store.lock("job/.lock").await.unwrap();
    let token = before.token();
    before.unlock().await.unwrap();
    let mut theirs = consul_lock(server, &[], &format!("{namespace}/job"));
    assert_eq!(theirs.says().await, "runs");
    assert!(matches!(store.try_lock("job/.lock").await, Err(Error::LockHeld { .. })));
    let waiting = wait_for(&store, "job/.lock");
    a_while().await;
    assert!(!waiting.is_finished());
    theirs.hang_up();
    // It sees that its command is done, and gives the lock back before it ends.
    let guard = due(waiting).await.unwrap().unwrap();
    assert!(guard.token() > token);
    assert!(theirs.ended().await);
    guard.put("data", "x").await.unwrap();
    assert!(guard.is_held(), "its cleaning up doesn't take the key away");
    guard.unlock().await.unwrap();
    assert_eq!(keys(server, &namespace).await, format!(r#"["{namespace}/data"]"#));
}

#[tokio::test]
async fn a_candidate_waits_for_consul_lock_and_observers_see_it() {
    let Some(server) = common::consul().await else { return };
    let namespace = namespace("election");
    let store = connect(server, &namespace).await;
    let mut leaders = store.observe_leader("job/.lock").await.unwrap();
    assert_eq!(next_leader(&mut leaders).await, None);
    let mut theirs = consul_lock(server, &[], &format!("{namespace}/job"));
    assert_eq!(theirs.says().await, "runs");
    let (value, term) = next_leader(&mut leaders).await.unwrap();
    assert_eq!(value, "", "it publishes nothing");
    let ours = stand(&store, "job/.lock", "ours");
    a_while().await;
    assert!(!ours.is_finished());
    theirs.hang_up();
    let leadership = due(ours).await.unwrap().unwrap();
    assert!(theirs.ended().await);
    let mut told = next_leader(&mut leaders).await;
    if told.is_none() {
        told = next_leader(&mut leaders).await;
    }
    assert_eq!(told.unwrap(), ("ours".to_owned(), leadership.term().unwrap()));
    assert!(leadership.term().unwrap() > term);
    let mut theirs = consul_lock(server, &[], &format!("{namespace}/job"));
    a_while().await;
    assert!(leadership.is_leader());
    leadership.resign().await.unwrap();
    assert_eq!(theirs.says().await, "runs");
    theirs.hang_up();
    assert!(theirs.ended().await);
}

#[tokio::test]
async fn a_semaphore_is_no_lock() {
    let Some(server) = common::consul().await else { return };
    let namespace = namespace("semaphore");
    let store = connect(server, &namespace).await;
    let mut theirs = consul_lock(server, &["-n=2"], &format!("{namespace}/job"));
    assert_eq!(theirs.says().await, "runs");
    let error = store.lock("job/.lock").await.expect_err("a refusal");
    assert!(matches!(&error, Error::Unsupported { reason } if reason.contains("semaphore")), "{error}");
    theirs.hang_up();
    assert!(theirs.ended().await);
}
