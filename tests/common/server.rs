//! [`Server`]: an etcd, Consul or ZooKeeper of the test's own, alone or one of a [`Cluster`](super::Cluster).

use super::cluster::Standing;
use super::ports::free_port;
use super::process::Process;
use super::proxy::Proxy;
use super::tls::ServerTls;
use super::{consul, etcd, zookeeper};
use std::fmt;
use std::fs::DirBuilder;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long a server may take until it is healthy, on a machine with other things to do.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(45);
/// A port that was free may be taken when the server comes to it.
pub(super) const START_ATTEMPTS: usize = 3;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Etcd,
    Consul,
    ZooKeeper,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Etcd, Kind::Consul, Kind::ZooKeeper];

    /// The scheme of store URLs.
    pub fn scheme(self) -> &'static str {
        match self {
            Kind::Etcd => "etcd",
            Kind::Consul => "consul",
            Kind::ZooKeeper => "zk",
        }
    }

    /// The scheme of store URLs with TLS.
    pub fn secure_scheme(self) -> &'static str {
        match self {
            Kind::Etcd => "etcds",
            Kind::Consul => "consul+tls",
            Kind::ZooKeeper => "zk+tls",
        }
    }

    /// How many ports a server takes.
    pub(super) fn ports(self) -> usize {
        match self {
            Kind::Etcd => etcd::PORTS,
            Kind::Consul => consul::PORTS,
            Kind::ZooKeeper => zookeeper::PORTS,
        }
    }

    /// What this machine lacks to run the server.
    pub(super) fn missing(self) -> Option<String> {
        match self {
            Kind::Etcd => etcd::missing(),
            Kind::Consul => consul::missing(),
            Kind::ZooKeeper => zookeeper::missing(),
        }
    }

    /// The command that runs the server with its data in `dir/data`; the first port is for clients, and the last one for
    /// those who speak TLS, where `setup` has it.
    fn command(self, dir: &Path, ports: &[u16], setup: &Setup) -> Vec<String> {
        match self {
            Kind::Etcd => etcd::command(dir, ports, setup),
            Kind::Consul => consul::command(dir, ports, setup),
            Kind::ZooKeeper => zookeeper::command(dir, ports, setup),
        }
    }

    /// Whether the server says that it takes reads and writes.
    async fn healthy(self, address: SocketAddr, setup: &Setup) -> bool {
        match self {
            Kind::Etcd => etcd::healthy(address).await,
            Kind::Consul => consul::healthy(address, setup).await,
            Kind::ZooKeeper => zookeeper::healthy(address, setup).await,
        }
    }

    /// What a member of a cluster says of itself, if it says anything.
    async fn standing(self, address: SocketAddr) -> Option<Standing> {
        match self {
            Kind::Etcd => etcd::standing(address).await,
            Kind::Consul => consul::standing(address).await,
            Kind::ZooKeeper => zookeeper::standing(address).await,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// In what a server differs from the ordinary one.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Speak TLS as well, on a port of its own.
    pub tls: Option<ServerTls>,
    /// Allow nothing but to this token. Consul has it in its configuration; in others access is set up while they run.
    pub token: Option<String>,
    /// Have etcd, up to 3.5, speak its former protocol as well.
    pub etcd_v2: bool,
    /// Be one of several.
    pub member: Option<Member>,
}

/// A server's place in a cluster.
#[derive(Clone, Debug)]
pub struct Member {
    /// Which of them it is.
    pub index: usize,
    /// The ports of all of them.
    pub ports: Vec<Vec<u16>>,
}

/// A server with its data on disk. It ends when this is dropped, or when the test process ends in whatever way.
pub struct Server {
    kind: Kind,
    setup: Setup,
    ports: Vec<u16>,
    process: Mutex<Process>,
}

impl Server {
    /// Starts a server of the test's own and waits until it is healthy. `None` skips the test, after saying so on stderr:
    /// the server isn't installed, and nobody demanded that it be.
    pub async fn start(kind: Kind) -> Option<Server> {
        Server::start_as(kind, Setup::default()).await
    }

    /// As [`start`](Server::start), of a server that isn't the ordinary one.
    pub async fn start_as(kind: Kind, setup: Setup) -> Option<Server> {
        if let Some(missing) = kind.missing() {
            skip(&format!("{kind} isn't installed here ({missing}); run scripts/install-servers"));
            return None;
        }
        let mut failure = String::new();
        for _ in 0..START_ATTEMPTS {
            let ports = kind.ports() + usize::from(setup.tls.is_some());
            let server = Server::new(kind, setup.clone(), (0..ports).map(|_| free_port()).collect());
            match server.launch().await {
                Ok(()) => return Some(server),
                Err(reason) => failure = reason,
            }
        }
        panic!("{failure}");
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[0]).into()
    }

    /// A store URL with all keys under `namespace`.
    pub fn url(&self, namespace: &str) -> String {
        format!("{}://{}/{namespace}", self.kind.scheme(), self.address())
    }

    /// Where clients connect that speak TLS.
    pub fn secure_address(&self) -> SocketAddr {
        assert!(self.setup.tls.is_some(), "a server without TLS");
        (Ipv4Addr::LOCALHOST, *self.ports.last().expect("a port")).into()
    }

    /// A new proxy in front of the server, which counts what the server's protocol lets it count.
    pub fn proxy(&self) -> Proxy {
        Proxy::start(self.kind, self.address())
    }

    /// The pid of the server, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process().pid()
    }

    /// Everything that the server writes is in here.
    pub fn dir(&self) -> PathBuf {
        self.process().dir().to_owned()
    }

    /// Kills the server as `kill -9` does. It is gone when this returns.
    pub fn kill(&self) {
        self.process().kill();
    }

    /// Stops the server in its tracks: its connections stay open, new ones are taken by the system, and nothing answers.
    pub fn freeze(&self) {
        self.process().freeze();
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        self.process().thaw();
    }

    /// Kills the server if it runs and starts it again, on the same ports, with the same data. Returns when it is healthy.
    pub async fn restart(&self) {
        let deadline = Instant::now() + START_TIMEOUT;
        while let Err(reason) = self.launch().await {
            assert!(Instant::now() < deadline, "{reason}");
        }
    }

    /// Kills the server, deletes its data, and starts it again on the same ports. Returns when it is healthy.
    pub async fn wipe(&self) {
        assert!(self.setup.member.is_none(), "a member of a cluster is wiped by it, as the others must know");
        self.kill();
        self.forget_all();
        self.restart().await;
    }

    pub(super) fn new(kind: Kind, setup: Setup, ports: Vec<u16>) -> Self {
        Server { kind, setup, ports, process: Mutex::new(Process::new()) }
    }

    pub(super) fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Whether there is no process, as it was killed or ended by itself.
    pub fn is_down(&self) -> bool {
        let mut process = self.process();
        process.exited().is_some() || process.pid().is_none()
    }

    /// Whether it is stopped in its tracks.
    pub fn is_frozen(&self) -> bool {
        self.process().is_frozen()
    }

    /// Deletes the data of a server that is down. The folder stays.
    pub(super) fn forget_all(&self) {
        let data = self.dir().join("data");
        std::fs::remove_dir_all(&data).expect("the server's data");
        // Some ask that nobody else may look into it.
        DirBuilder::new().mode(0o700).create(&data).expect("the server's folder");
    }

    /// Starts the process, and doesn't wait for it.
    pub(super) fn boot(&self) {
        let command = self.kind.command(&self.dir(), &self.ports, &self.setup);
        self.process().start(&command);
    }

    /// What it says of itself as a member of a cluster, if it says anything just now.
    pub(super) async fn standing(&self) -> Option<Standing> {
        timeout(Duration::from_secs(1), self.kind.standing(self.address())).await.ok().flatten()
    }

    /// Starts the process; an error tells why it isn't healthy.
    async fn launch(&self) -> Result<(), String> {
        self.boot();
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.is_healthy().await? {
            if Instant::now() > deadline {
                return Err(self.failure(&format!("isn't healthy after {START_TIMEOUT:?}")));
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Whether it takes reads and writes; an error tells how it ended.
    pub(super) async fn is_healthy(&self) -> Result<bool, String> {
        let answer = self.kind.healthy(self.address(), &self.setup);
        let healthy = timeout(Duration::from_secs(2), answer).await.unwrap_or(false);
        // Asked after the other question: where the port was taken, the one who answered it is somebody else.
        let exited = self.process().exited();
        match exited {
            Some(status) => Err(self.failure(&format!("ended by itself ({status})"))),
            None => Ok(healthy),
        }
    }

    pub(super) fn failure(&self, what: &str) -> String {
        format!("{} at {} {what}; its log ends with:\n{}", self.kind, self.address(), self.process().log_tail())
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        // A test that panicked while it held the lock has failed already; others may go on.
        self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Says loudly that the test is skipped, for a reason; where nothing may be skipped the test fails.
pub fn skip(reason: &str) {
    let demanded = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    assert!(!demanded("CI") && !demanded("KVACTOR_REQUIRE_SERVERS"), "{reason}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Not `eprintln!`, which libtest shows only of tests that fail; and at once, because tests run side by side.
    let _ = std::io::stderr().write_all(format!("SKIPPED: {test}: {reason}\n").as_bytes());
}

/// Whether `name` is a program on PATH.
pub(super) fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}
