//! What stores take of this process and of the servers, to see that nothing is left of them.

use crate::common::zookeeper::four_letters;
use crate::common::{Cluster, Kind, Server, http};
use std::io;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The thread of timers that ZooKeeper's client begins once in a process, for all sessions that there will ever be.
const ONCE_FOR_ALL: &str = "async-io";

/// What is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// The names of this process's threads.
    pub threads: Vec<String>,
    /// Sockets of this process, the proxies' included.
    pub sockets: usize,
    /// Connections through the proxies.
    pub connections: u64,
    /// At the servers.
    pub watches: u64,
    /// At the servers: sessions, or leases.
    pub sessions: u64,
}

impl Footprint {
    pub async fn take(cluster: &Cluster) -> io::Result<Footprint> {
        let (mut watches, mut sessions) = (0, 0);
        for node in cluster.nodes() {
            watches += watches_of(node).await?;
            sessions += sessions_of(node).await?;
        }
        let connections = (0..cluster.nodes().len()).map(|node| cluster.proxy(node).counts().open).sum();
        let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        let names = names.map(|name| name.trim_end().to_owned());
        let mut threads: Vec<String> = names.filter(|name| name != ONCE_FOR_ALL).collect();
        threads.sort_unstable();
        let fds = std::fs::read_dir("/proc/self/fd").expect("Linux");
        // One may be closed while it is looked at.
        let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        let sockets = links.filter(|link| link.to_string_lossy().starts_with("socket:")).count();
        Ok(Footprint { threads, sockets, connections, watches, sessions })
    }

    /// Whether nothing of this is more than in `base`.
    fn within(&self, base: &Footprint) -> bool {
        self.threads.len() <= base.threads.len()
            && self.sockets <= base.sockets
            && self.connections <= base.connections
            && self.watches <= base.watches
            && self.sessions <= base.sessions
    }

    /// Waits until no more is in use than was.
    pub async fn back_to(base: &Footprint, cluster: &Cluster, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        loop {
            let now = Footprint::take(cluster).await;
            if now.as_ref().is_ok_and(|now| now.within(base)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("left after {patience:?}: {now:?}; there was {base:?}"));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The memory that the process has in use, in bytes.
pub fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("the size");
    line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("a number") * 1024
}

async fn watches_of(node: &Server) -> io::Result<u64> {
    Ok(match node.kind() {
        Kind::Etcd => {
            let metrics = http::get(node.address(), "/metrics").await?.body;
            let name = "etcd_debugging_mvcc_watcher_total ";
            let number = metrics.lines().find_map(|line| line.strip_prefix(name)).expect("the metric");
            number.trim().parse::<f64>().expect("a number") as u64
        }
        // They are the connections, which the proxies count.
        Kind::Consul => 0,
        Kind::ZooKeeper => {
            let answer = four_letters(node.address(), "wchs").await?;
            let total = answer.lines().find_map(|line| line.strip_prefix("Total watches:")).expect("the total");
            total.trim().parse().expect("a number")
        }
    })
}

async fn sessions_of(node: &Server) -> io::Result<u64> {
    Ok(match node.kind() {
        Kind::Etcd => {
            let answer = http::request(node.address(), "POST", "/v3/lease/leases", "{}").await?;
            answer.body.matches("\"ID\"").count() as u64
        }
        Kind::Consul => {
            let answer = http::get(node.address(), "/v1/session/list?stale").await?;
            answer.body.matches("\"ID\"").count() as u64
        }
        // What looks is one itself.
        Kind::ZooKeeper => {
            let answer = four_letters(node.address(), "cons").await?;
            answer.matches("sid=").count() as u64
        }
    })
}
