//! Locks and elections beside other programs on the same path, both ways: `etcdctl`, `consul lock`, and kazoo.
#![cfg(any(feature = "consul", feature = "etcd", feature = "zookeeper"))]
// Each of them needs a part of what is here.
#![cfg_attr(not(all(feature = "consul", feature = "etcd", feature = "zookeeper")), allow(dead_code))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

#[cfg(feature = "consul")]
#[path = "interop/consul.rs"]
mod consul;
#[cfg(feature = "etcd")]
#[path = "interop/etcd.rs"]
mod etcd;
#[cfg(feature = "zookeeper")]
#[path = "interop/zookeeper.rs"]
mod zookeeper;

use common::Server;
use common::told::DUE;
use kvactor::{LeaderEvent, LeaderStream, Leadership, LockGuard, Result, Store};
use rustix::process::{Pid, Signal, kill_process};
use std::panic::Location;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

#[track_caller]
fn due<T>(what: impl Future<Output = T>) -> impl Future<Output = T> {
    let from = Location::caller();
    async move { timeout(DUE, what).await.unwrap_or_else(|_| panic!("what is waited for at {from} is due")) }
}

/// Long enough for what must not happen to show.
async fn a_while() {
    sleep(Duration::from_millis(300)).await;
}

async fn connect(server: &Server, namespace: &str) -> Store {
    Store::connect(&server.url(namespace)).await.unwrap()
}

/// A wait for a lock that goes on by itself.
fn wait_for(store: &Store, path: &str) -> JoinHandle<Result<LockGuard>> {
    let (store, path) = (store.clone(), path.to_owned());
    tokio::spawn(async move { store.lock(path).await })
}

/// A candidate that stands by itself.
fn stand(store: &Store, path: &str, candidate: &'static str) -> JoinHandle<Result<Leadership>> {
    let (store, path) = (store.clone(), path.to_owned());
    tokio::spawn(async move { store.campaign(path, candidate).await })
}

/// The next leader that is told, by value and term; none where nobody leads.
async fn next_leader(leaders: &mut LeaderStream) -> Option<(String, u64)> {
    match due(leaders.next()).await {
        Some(LeaderEvent::Elected(leader)) => Some((String::from_utf8(leader.value.into()).unwrap(), leader.term)),
        Some(LeaderEvent::Vacant) => None,
        other => panic!("{other:?}"),
    }
}

/// Another program. It says what it has to say in lines, and ends with this.
struct Peer {
    process: Child,
    orders: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    fn start(command: &mut Command) -> Self {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = piped.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (orders, output) = (process.stdin.take(), process.stdout.take());
        Peer { process, orders, lines: BufReader::new(output.unwrap()).lines() }
    }

    async fn tell(&mut self, order: &str) {
        self.orders.as_mut().unwrap().write_all(format!("{order}\n").as_bytes()).await.unwrap();
    }

    /// The next line that it says.
    async fn says(&mut self) -> String {
        due(self.lines.next_line()).await.unwrap().expect("it ended without a word")
    }

    /// Ends its stdin.
    fn hang_up(&mut self) {
        self.orders = None;
    }

    /// As Ctrl-C does.
    fn interrupt(&self) {
        let pid = Pid::from_raw(self.process.id().unwrap().cast_signed()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
    }

    /// Whether it ends well.
    async fn ended(mut self) -> bool {
        due(self.process.wait()).await.unwrap().success()
    }
}
