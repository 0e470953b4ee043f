//! [`Proxy`]: what lies between a client and a server, to be cut, clogged and measured.

use super::meter::{Counts, Meter};
use super::ports::free_port;
use super::server::Kind;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Forwards a loopback port to a server. Runs on a thread of its own, so that a busy test doesn't hold it up.
///
/// Each order is carried out when its method returns.
pub struct Proxy {
    kind: Kind,
    address: SocketAddr,
    orders: Option<mpsc::UnboundedSender<Order>>,
    counts: Arc<Mutex<Counts>>,
    thread: Option<JoinHandle<()>>,
}

/// A new state, and where to say that it is in force.
type Order = (State, std::sync::mpsc::Sender<()>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Forward,
    Blackhole,
    HoldAnswers,
    Cut,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

impl State {
    fn lets_through(self, direction: Direction) -> bool {
        match self {
            State::Forward => true,
            State::HoldAnswers => direction == Direction::ToServer,
            State::Blackhole | State::Cut => false,
        }
    }
}

impl Proxy {
    /// A proxy in front of `target`, which speaks the protocol of a server of this kind.
    pub fn start(kind: Kind, target: SocketAddr) -> Self {
        let listener = listen();
        let address = listener.local_addr().expect("the listener's address");
        let counts = Arc::new(Mutex::new(Counts::default()));
        let link = Link { kind, target, state: watch::Sender::new(State::Forward), counts: counts.clone() };
        let (orders, received) = mpsc::unbounded_channel();
        let thread = std::thread::spawn(move || run(listener, link, received));
        Proxy { kind, address, orders: Some(orders), counts, thread: Some(thread) }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A store URL that goes through the proxy, with all keys under `namespace`.
    pub fn url(&self, namespace: &str) -> String {
        format!("{}://{}/{namespace}", self.kind.scheme(), self.address)
    }

    /// Closes every connection, and refuses new ones until [`restore`](Proxy::restore).
    pub fn cut(&self) {
        self.order(State::Cut);
    }

    /// Forwards nothing more, either way: connections stay open, and new ones are accepted. What is sent meanwhile arrives
    /// after [`restore`](Proxy::restore), as after an outage of the network; nothing does after [`cut`](Proxy::cut).
    pub fn blackhole(&self) {
        self.order(State::Blackhole);
    }

    /// As [`blackhole`](Proxy::blackhole), only for what the server sends: it carries out requests and nobody hears of it.
    pub fn hold_answers(&self) {
        self.order(State::HoldAnswers);
    }

    /// Forwards again.
    pub fn restore(&self) {
        self.order(State::Forward);
    }

    /// What has gone through so far.
    pub fn counts(&self) -> Counts {
        lock(&self.counts).clone()
    }

    /// Counts from zero again, but for the connections that are open.
    pub fn reset_counts(&self) {
        let mut counts = lock(&self.counts);
        *counts = Counts { open: counts.open, ..Counts::default() };
    }

    fn order(&self, state: State) {
        let (done, in_force) = std::sync::mpsc::channel();
        let orders = self.orders.as_ref().expect("open until the drop");
        orders.send((state, done)).expect("the proxy's thread");
        in_force.recv().expect("the proxy's thread");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // Best effort: a panic here could hide the one that the test ends with.
            let _ = thread.join();
        }
    }
}

/// What the proxy's tasks share.
#[derive(Clone)]
struct Link {
    kind: Kind,
    target: SocketAddr,
    state: watch::Sender<State>,
    counts: Arc<Mutex<Counts>>,
}

fn listen() -> std::net::TcpListener {
    // A port that was free may be taken when it is bound.
    let bind = || std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).ok();
    std::iter::repeat_with(bind).flatten().next().expect("an iterator without end")
}

fn run(listener: std::net::TcpListener, link: Link, orders: mpsc::UnboundedReceiver<Order>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        listener.set_nonblocking(true).expect("a listener for tokio");
        serve(TcpListener::from_std(listener).expect("a listener for tokio"), link, orders).await;
    });
}

async fn serve(listener: TcpListener, link: Link, mut orders: mpsc::UnboundedReceiver<Order>) {
    let address = listener.local_addr().expect("the listener's address");
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // First, so that nothing is accepted after an order to cut.
            biased;
            order = orders.recv() => {
                let Some((state, done)) = order else { return };
                link.state.send_replace(state);
                if state == State::Cut {
                    listener = None;
                    connections.shutdown().await;
                } else if listener.is_none() {
                    listener = Some(TcpListener::bind(address).await.expect("the proxy's port"));
                }
                // Whoever gave the order may have been cancelled meanwhile.
                let _ = done.send(());
            }
            client = accept(listener.as_ref()) => {
                connections.spawn(relay(client, link.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// The next client; never returns where nobody listens.
async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        // An error is about that one client, which gave up before its turn.
        if let Ok((client, _)) = listener.accept().await {
            return client;
        }
    }
}

async fn relay(client: TcpStream, link: Link) -> io::Result<()> {
    let _open = Open::new(&link.counts);
    link.passage(Direction::ToServer).await;
    let server = TcpStream::connect(link.target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(
        pump(&link, Direction::ToServer, from_client, to_server),
        pump(&link, Direction::ToClient, from_server, to_client),
    )?;
    Ok(())
}

async fn pump(link: &Link, way: Direction, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
    let mut meter = Meter::new(link.kind);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        link.passage(way).await;
        if length == 0 {
            return to.shutdown().await;
        }
        link.count(way, &buffer[..length], &mut meter);
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            link.passage(way).await;
            let written = to.write(rest).await?;
            rest = &rest[written..];
        }
    }
}

impl Link {
    /// Returns when bytes may pass this way.
    async fn passage(&self, way: Direction) {
        // The sender is ours: there is always one.
        let _ = self.state.subscribe().wait_for(|state| state.lets_through(way)).await;
    }

    fn count(&self, way: Direction, bytes: &[u8], meter: &mut Meter) {
        let mut counts = lock(&self.counts);
        match way {
            Direction::ToServer => {
                counts.to_server += bytes.len() as u64;
                meter.feed(bytes, &mut counts);
            }
            Direction::ToClient => counts.to_client += bytes.len() as u64,
        }
    }
}

/// Counts a connection as open until it is dropped.
struct Open(Arc<Mutex<Counts>>);

impl Open {
    fn new(counts: &Arc<Mutex<Counts>>) -> Self {
        let mut held = lock(counts);
        held.connections += 1;
        held.open += 1;
        Open(counts.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        lock(&self.0).open -= 1;
    }
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
