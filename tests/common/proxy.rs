//! [`Proxy`]: what lies between a client and a server, to be cut, clogged and measured.

use super::meter::{Counts, Meter};
use super::ports::free_port;
use super::server::Kind;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

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
    HoldRequests,
    Delay(Duration),
    /// Bytes per second.
    Throttle(u64),
    /// After so many bytes.
    CloseAt(u64),
    HalfOpen,
    Cut,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

/// What is to be done with the bytes that are next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Send at most this many.
    Pass(u64),
    /// Wait for another state.
    Hold,
    /// Reset the connection.
    Reset,
}

impl State {
    /// What is to be done where `gone` bytes of a connection have gone this way since the state is in force.
    fn verdict(self, way: Direction, gone: u64) -> Verdict {
        match (self, way) {
            (State::HoldAnswers, Direction::ToClient) | (State::HoldRequests, Direction::ToServer) => Verdict::Hold,
            (State::Blackhole | State::HalfOpen | State::Cut, _) => Verdict::Hold,
            (State::CloseAt(bytes), Direction::ToClient) if gone >= bytes => Verdict::Reset,
            (State::CloseAt(bytes), Direction::ToClient) => Verdict::Pass(bytes - gone),
            // Little at a time, so that it flows.
            (State::Throttle(rate), _) => Verdict::Pass((rate / 20).max(1)),
            _ => Verdict::Pass(u64::MAX),
        }
    }

    /// How long what arrives now is under way.
    fn delay(self) -> Duration {
        if let State::Delay(delay) = self { delay } else { Duration::ZERO }
    }

    /// How long nothing may follow these bytes.
    fn pause_behind(self, bytes: u64) -> Duration {
        if let State::Throttle(rate) = self {
            Duration::from_secs_f64(bytes as f64 / rate as f64)
        } else {
            Duration::ZERO
        }
    }

    fn accepts(self) -> bool {
        self != State::Cut
    }

    /// Whether every connection is closed when this takes the place of the state before. One that was accepted by nobody is
    /// never served.
    fn closes_all(self, before: State) -> bool {
        matches!(self, State::Cut | State::HalfOpen) || before == State::HalfOpen
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

    /// The other one: nothing gets to the server, and what it sends still arrives.
    pub fn hold_requests(&self) {
        self.order(State::HoldRequests);
    }

    /// Every piece is under way for so long, either way, however many are. Connections are made at once.
    pub fn delay(&self, delay: Duration) {
        self.order(State::Delay(delay));
    }

    /// Each connection carries no more than this either way.
    pub fn throttle(&self, bytes_per_second: u64) {
        assert!(bytes_per_second > 0, "that is a black hole");
        self.order(State::Throttle(bytes_per_second));
    }

    /// Resets each connection, open or new, when so many more bytes of it have gone to the client: in the midst of an answer.
    pub fn close_at(&self, bytes: u64) {
        self.order(State::CloseAt(bytes));
    }

    /// Closes every connection. New ones are accepted, and nothing that is sent on them ever arrives, as with a server that
    /// is stuck: they are closed by [`restore`](Proxy::restore) or the next order.
    pub fn half_open(&self) {
        self.order(State::HalfOpen);
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
                let before = link.state.send_replace(state);
                if !state.accepts() {
                    listener = None;
                }
                if state.closes_all(before) {
                    connections.shutdown().await;
                }
                if state.accepts() && listener.is_none() {
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
    Gate::new(&link, Direction::ToServer).decided().await;
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

/// Some bytes, or none for the end of them, and when they have been under way for long enough.
struct Piece {
    bytes: Vec<u8>,
    due: Instant,
}

/// How many pieces may be under way. A delay doesn't slow down what is less.
const UNDER_WAY: usize = 1024;

async fn pump(link: &Link, way: Direction, from: OwnedReadHalf, to: OwnedWriteHalf) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel(UNDER_WAY);
    tokio::try_join!(take(link, way, from, sender), deliver(link, way, receiver, to))?;
    Ok(())
}

async fn take(link: &Link, way: Direction, mut from: OwnedReadHalf, pieces: mpsc::Sender<Piece>) -> io::Result<()> {
    let mut gate = Gate::new(link, way);
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        let due = Instant::now() + link.state.borrow().delay();
        // Where nothing passes, the sender is to feel that after a while.
        gate.decided().await;
        let piece = Piece { bytes: buffer[..length].to_vec(), due };
        if pieces.send(piece).await.is_err() || length == 0 {
            return Ok(());
        }
    }
}

async fn deliver(
    link: &Link,
    way: Direction,
    mut pieces: mpsc::Receiver<Piece>,
    mut to: OwnedWriteHalf,
) -> io::Result<()> {
    let delivered = deliver_all(link, way, &mut pieces, &mut to).await;
    if delivered.is_err() {
        // Closed without this, the connection would end as if all were said.
        to.as_ref().set_zero_linger()?;
        to.forget();
    }
    delivered
}

async fn deliver_all(
    link: &Link,
    way: Direction,
    pieces: &mut mpsc::Receiver<Piece>,
    to: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let (mut meter, mut gate) = (Meter::new(link.kind), Gate::new(link, way));
    while let Some(Piece { bytes, due }) = pieces.recv().await {
        if due > Instant::now() {
            sleep_until(due).await;
        }
        gate.opens().await?;
        if bytes.is_empty() {
            return to.shutdown().await;
        }
        link.count(way, &bytes, &mut meter);
        gate.send(&bytes, to).await?;
    }
    Ok(())
}

/// Sees to it that one direction of one connection does what the state says.
struct Gate {
    state: watch::Receiver<State>,
    way: Direction,
    /// The bytes that have gone since the state is in force.
    gone: u64,
}

impl Gate {
    fn new(link: &Link, way: Direction) -> Self {
        Gate { state: link.state.subscribe(), way, gone: 0 }
    }

    /// Returns when bytes may pass, with how many at once. An error says that the connection is to be reset.
    async fn opens(&mut self) -> io::Result<usize> {
        match self.decided().await {
            Verdict::Pass(bytes) => Ok(usize::try_from(bytes).unwrap_or(usize::MAX)),
            Verdict::Reset | Verdict::Hold => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    /// Waits as long as everything is held up.
    async fn decided(&mut self) -> Verdict {
        loop {
            if self.state.has_changed().unwrap_or(false) {
                self.gone = 0;
            }
            match self.state.borrow_and_update().verdict(self.way, self.gone) {
                Verdict::Hold => {}
                verdict => return verdict,
            }
            self.another_state().await;
        }
    }

    async fn another_state(&mut self) {
        // The sender is the link's: there always is one.
        let _ = self.state.changed().await;
        self.gone = 0;
    }

    async fn send(&mut self, mut bytes: &[u8], to: &mut OwnedWriteHalf) -> io::Result<()> {
        loop {
            // Also behind the last of them, where the connection may have to end.
            let at_most = self.opens().await?;
            if bytes.is_empty() {
                return Ok(());
            }
            let written = to.write(&bytes[..bytes.len().min(at_most)]).await?;
            bytes = &bytes[written..];
            self.gone += written as u64;
            let pause = self.state.borrow().pause_behind(written as u64);
            if !pause.is_zero() {
                let _ = timeout(pause, self.another_state()).await;
            }
        }
    }
}

impl Link {
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
