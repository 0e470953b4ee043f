//! [`Cluster`]: three nodes of etcd, Consul or ZooKeeper, each behind a proxy.

use super::etcd;
use super::ports::free_port;
use super::proxy::Proxy;
use super::server::{Kind, Member, START_ATTEMPTS, START_TIMEOUT, Server, Setup, skip};
use futures_util::future::{join_all, try_join_all};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const NODES: usize = 3;
/// Between two looks at how the nodes are doing.
const PAUSE: Duration = Duration::from_millis(50);

/// How one node stands among the others, as it says itself.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub leads: bool,
    /// Of two who say that they lead, the one in the later term does.
    pub term: u64,
    /// How far it has applied the common log. A leader acknowledges nothing before.
    pub applied: u64,
}

/// Three nodes that end when this is dropped.
pub struct Cluster {
    kind: Kind,
    nodes: Vec<Server>,
    proxies: Vec<Proxy>,
}

impl Cluster {
    /// Starts three nodes and waits until all are healthy and one leads. `None` skips the test, as
    /// [`Server::start`] does.
    pub async fn start(kind: Kind) -> Option<Cluster> {
        if let Some(missing) = kind.missing() {
            skip(&format!("{kind} isn't installed here ({missing}); run scripts/install-servers"));
            return None;
        }
        let mut failure = String::new();
        for _ in 0..START_ATTEMPTS {
            let nodes = nodes(kind);
            nodes.iter().for_each(Server::boot);
            let proxies = nodes.iter().map(Server::proxy).collect();
            let cluster = Cluster { kind, nodes, proxies };
            match cluster.settled(&cluster.everybody()).await {
                Ok(()) => return Some(cluster),
                Err(reason) => failure = reason,
            }
        }
        panic!("{failure}");
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// A store URL with all nodes, each through its proxy, and all keys under `namespace`.
    pub fn url(&self, namespace: &str) -> String {
        self.url_of(self.proxies.iter().map(Proxy::address), namespace)
    }

    /// The same without the proxies.
    pub fn direct_url(&self, namespace: &str) -> String {
        self.url_of(self.nodes.iter().map(Server::address), namespace)
    }

    fn url_of(&self, addresses: impl Iterator<Item = SocketAddr>, namespace: &str) -> String {
        let hosts = addresses.map(|address| address.to_string()).collect::<Vec<_>>().join(",");
        format!("{}://{hosts}/{namespace}", self.kind.scheme())
    }

    pub fn nodes(&self) -> &[Server] {
        &self.nodes
    }

    /// What lies between clients and this node. The nodes speak to each other without it.
    pub fn proxy(&self, node: usize) -> &Proxy {
        &self.proxies[node]
    }

    /// Who leads, as those say who are neither down nor frozen.
    pub async fn leader(&self) -> Option<usize> {
        leader(&self.standings(&self.everybody()).await)
    }

    /// Takes a node's data away, kills it if it runs, and starts it with nothing. The others must be healthy, or become so by
    /// themselves. Returns when the node has caught up with them.
    pub async fn wipe(&self, node: usize) {
        self.nodes[node].kill();
        // What only this node and one other had is on both of the others by then. Otherwise those two who don't have it, one of
        // them the wiped node, could go on without it: it would be lost, and nobody but this test to blame.
        self.settle(&self.all_but(node)).await;
        self.nodes[node].forget_all();
        if self.kind == Kind::Etcd {
            self.replace_in_etcd(node).await;
        }
        self.nodes[node].boot();
        self.settle(&self.everybody()).await;
    }

    /// Restores all links, thaws who is frozen and starts who is down. Returns when all are healthy, one leads, and everybody
    /// has caught up with it.
    pub async fn heal(&self) {
        self.proxies.iter().for_each(Proxy::restore);
        self.nodes.iter().filter(|node| node.is_frozen()).for_each(Server::thaw);
        self.nodes.iter().filter(|node| node.is_down()).for_each(Server::boot);
        self.settle(&self.everybody()).await;
    }

    fn everybody(&self) -> Vec<usize> {
        (0..self.nodes.len()).collect()
    }

    fn all_but(&self, node: usize) -> Vec<usize> {
        self.everybody().into_iter().filter(|other| *other != node).collect()
    }

    /// To etcd a node without its data is another one.
    async fn replace_in_etcd(&self, node: usize) {
        let live = self.nodes[self.all_but(node)[0]].address();
        let deadline = Instant::now() + START_TIMEOUT;
        while let Err(reason) = etcd::replace(live, self.nodes[node].ports()).await {
            assert!(Instant::now() < deadline, "{reason}");
            sleep(PAUSE).await;
        }
    }

    /// Waits until these nodes are healthy, and starts those again that end by themselves, as one does whose port was taken.
    async fn settle(&self, nodes: &[usize]) {
        let deadline = Instant::now() + START_TIMEOUT;
        while let Err(reason) = self.settled(nodes).await {
            assert!(Instant::now() < deadline, "{reason}");
            nodes.iter().map(|node| &self.nodes[*node]).filter(|node| node.is_down()).for_each(Server::boot);
        }
    }

    /// Waits until these nodes are healthy, one of them leads, and the others have caught up with it. An error tells who ended
    /// by itself, or isn't healthy in time.
    async fn settled(&self, nodes: &[usize]) -> Result<(), String> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let healthy = try_join_all(nodes.iter().map(|node| self.nodes[*node].is_healthy())).await?;
            if healthy.iter().all(|healthy| *healthy) && self.caught_up(nodes).await {
                return Ok(());
            }
            if Instant::now() > deadline {
                let sick = healthy.iter().position(|healthy| !healthy).unwrap_or(0);
                let standings = self.standings(nodes).await;
                return Err(self.nodes[nodes[sick]].failure(&format!("isn't healthy in time, as {standings:?}")));
            }
            sleep(PAUSE).await;
        }
    }

    /// Whether one of these nodes leads and the others have what it had when this was called.
    async fn caught_up(&self, nodes: &[usize]) -> bool {
        let before = self.standings(nodes).await;
        let Some(leader) = before.iter().flatten().find(|standing| standing.leads) else { return false };
        let after = self.standings(nodes).await;
        let leaders = after.iter().flatten().filter(|standing| standing.leads).count();
        leaders == 1 && after.iter().all(|standing| standing.is_some_and(|standing| standing.applied >= leader.applied))
    }

    async fn standings(&self, nodes: &[usize]) -> Vec<Option<Standing>> {
        join_all(nodes.iter().map(async |node| {
            let node = &self.nodes[*node];
            if node.is_down() || node.is_frozen() { None } else { node.standing().await }
        }))
        .await
    }
}

fn leader(standings: &[Option<Standing>]) -> Option<usize> {
    let leaders = standings.iter().enumerate().filter_map(|(node, standing)| Some((node, (*standing)?)));
    let leaders = leaders.filter(|(_, standing)| standing.leads);
    leaders.max_by_key(|(_, standing)| standing.term).map(|(node, _)| node)
}

fn nodes(kind: Kind) -> Vec<Server> {
    let ports: Vec<Vec<u16>> = (0..NODES).map(|_| (0..kind.ports()).map(|_| free_port()).collect()).collect();
    let node = |index: usize| {
        let member = Member { index, ports: ports.clone() };
        Server::new(kind, Setup { member: Some(member), ..Setup::default() }, ports[index].clone())
    };
    (0..NODES).map(node).collect()
}
