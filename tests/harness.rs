//! The test harness itself: servers that start, stop, come back and never stay behind, and proxies that count right.

// Its tests of clusters are for the servers that this build has drivers for.
#![cfg_attr(not(any(feature = "consul", feature = "etcd", feature = "zookeeper")), allow(dead_code, unused_imports))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::meter::{CONNECT, Meter, PING};
use common::{Cluster, Counts, Kind, Proxy, Server, http, on_servers, zookeeper::four_letters};
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

on_servers! {
    a_cluster_survives_the_loss_of_any_node
    a_cluster_goes_on_without_its_frozen_leader_and_heals
    a_wiped_node_gets_everything_from_the_others
}

const SOON: Duration = Duration::from_millis(300);
const LATE: Duration = Duration::from_secs(20);

async fn answers(address: SocketAddr, path: &str) -> bool {
    timeout(SOON, http::get(address, path)).await.is_ok_and(|answer| answer.is_ok())
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waited = timeout(LATE, async {
        while !condition().await {
            sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "never happened: {what}");
}

async fn consul_put(address: SocketAddr, key: &str, value: &str) {
    let answer = http::request(address, "PUT", &format!("/v1/kv/{key}"), value).await.unwrap();
    assert_eq!(answer.body.trim(), "true");
}

async fn consul_get(address: SocketAddr, key: &str) -> http::Answer {
    http::get(address, &format!("/v1/kv/{key}?raw")).await.unwrap()
}

/// Over etcd's JSON gateway; the base64 in it is of `k` and `v`.
async fn etcd_put(address: SocketAddr) {
    let answer = http::request(address, "POST", "/v3/kv/put", r#"{"key":"aw==","value":"dg=="}"#).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
}

async fn etcd_has(address: SocketAddr) -> bool {
    let answer = http::request(address, "POST", "/v3/kv/range", r#"{"key":"aw=="}"#).await.unwrap();
    answer.body.contains(r#""value":"dg==""#)
}

/// A ZooKeeper session by hand, with just enough of the protocol to make a node.
struct ZooKeeperSession(TcpStream);

impl ZooKeeperSession {
    const CREATE: i32 = 1;

    async fn open(address: SocketAddr) -> Self {
        let mut session = ZooKeeperSession(TcpStream::connect(address).await.unwrap());
        // Version, last zxid, timeout, session id, and a password of 16 bytes.
        let connect = [&[0; 4][..], &[0; 8], &5000i32.to_be_bytes(), &[0; 8], &16i32.to_be_bytes(), &[0; 16]].concat();
        session.call(&connect).await;
        session
    }

    async fn create(&mut self, path: &str) {
        let text = |text: &str| [&(text.len() as i32).to_be_bytes(), text.as_bytes()].concat();
        // Number, opcode, path, no data, one ACL with every permission for anyone, no flags.
        let header = [1i32.to_be_bytes(), Self::CREATE.to_be_bytes()].concat();
        let acl = [&1i32.to_be_bytes()[..], &31i32.to_be_bytes(), &text("world"), &text("anyone")].concat();
        self.call(&[&header[..], &text(path), &[0; 4], &acl, &[0; 4]].concat()).await;
    }

    async fn ping(&mut self) {
        self.call(&[(-2i32).to_be_bytes(), PING.to_be_bytes()].concat()).await;
    }

    async fn call(&mut self, request: &[u8]) {
        self.0.write_u32(request.len() as u32).await.unwrap();
        self.0.write_all(request).await.unwrap();
        let length = self.0.read_u32().await.unwrap();
        self.0.read_exact(&mut vec![0; length as usize]).await.unwrap();
    }
}

async fn zookeeper_nodes(address: SocketAddr) -> String {
    let answer = four_letters(address, "srvr").await.unwrap();
    answer.lines().find(|line| line.starts_with("Node count")).unwrap().to_owned()
}

#[tokio::test]
async fn shared_servers_are_started_once() {
    for kind in Kind::ALL {
        let Some(server) = common::shared(kind).await else { continue };
        assert!(std::ptr::eq(server, common::shared(kind).await.unwrap()));
        assert_eq!(server.url("a/b"), format!("{}://127.0.0.1:{}/a/b", kind.scheme(), server.address().port()));
    }
    assert_ne!(common::namespace("test"), common::namespace("test"));
}

#[tokio::test]
async fn etcd_keeps_its_data_over_a_restart_and_loses_it_by_a_wipe() {
    let Some(server) = Server::start(Kind::Etcd).await else { return };
    etcd_put(server.address()).await;
    assert_eq!(common::etcd_grpc_count(&server, "Put").await, 1);
    assert_eq!(common::etcd_grpc_count(&server, "LeaseGrant").await, 0);
    server.kill();
    assert_eq!(http::get(server.address(), "/health").await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    server.restart().await;
    assert!(etcd_has(server.address()).await);
    server.wipe().await;
    assert!(!etcd_has(server.address()).await);
}

#[tokio::test]
async fn consul_keeps_its_data_over_a_restart_and_loses_it_by_a_wipe() {
    let Some(server) = Server::start(Kind::Consul).await else { return };
    consul_put(server.address(), "k", "v").await;
    server.kill();
    server.restart().await;
    assert_eq!(consul_get(server.address(), "k").await.body, "v");
    let session = http::request(server.address(), "PUT", "/v1/session/create", "").await.unwrap();
    assert_eq!(session.status, 200, "{session:?}");
    server.wipe().await;
    assert_eq!(consul_get(server.address(), "k").await.status, 404);
}

#[tokio::test]
async fn zookeeper_keeps_its_data_over_a_restart_and_loses_it_by_a_wipe() {
    let Some(server) = Server::start(Kind::ZooKeeper).await else { return };
    let empty = zookeeper_nodes(server.address()).await;
    ZooKeeperSession::open(server.address()).await.create("/node").await;
    let one_more = zookeeper_nodes(server.address()).await;
    assert_ne!(empty, one_more);
    server.restart().await;
    assert_eq!(zookeeper_nodes(server.address()).await, one_more);
    server.wipe().await;
    assert_eq!(zookeeper_nodes(server.address()).await, empty);
}

#[tokio::test]
async fn a_frozen_server_is_silent_until_it_thaws() {
    let Some(server) = Server::start(Kind::Etcd).await else { return };
    server.freeze();
    assert!(!answers(server.address(), "/health").await);
    server.thaw();
    eventually("etcd answers again", async || answers(server.address(), "/health").await).await;
}

#[tokio::test]
async fn a_dropped_server_leaves_nothing_behind() {
    let Some(server) = Server::start(Kind::Etcd).await else { return };
    let (address, dir) = (server.address(), server.dir());
    assert!(dir.join("data").is_dir());
    server.freeze();
    drop(server);
    assert!(TcpStream::connect(address).await.is_err());
    assert!(!dir.exists());
}

/// Run by the test below in a process of its own, which never comes back from here.
#[tokio::test]
#[ignore = "a part of the test a_killed_test_process_leaves_nothing_behind"]
async fn a_test_process_that_gets_killed() {
    if std::env::var_os("KVACTOR_TEST_TO_BE_KILLED").is_none() {
        return;
    }
    let Some(server) = Server::start(Kind::Etcd).await else { return };
    server.freeze();
    println!("\nstarted {} {}", server.address(), server.dir().display());
    std::future::pending().await
}

#[tokio::test]
async fn a_killed_test_process_leaves_nothing_behind() {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "a_test_process_that_gets_killed"])
        .env("KVACTOR_TEST_TO_BE_KILLED", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines().map_while(Result::ok);
    let started = lines.into_iter().find_map(|line| line.strip_prefix("started ").map(str::to_owned));
    owner.kill().unwrap();
    owner.wait().unwrap();
    // Without etcd the other process has skipped its part.
    let Some(started) = started else { return };
    let (address, dir) = started.split_once(' ').unwrap();
    eventually("the server is gone", async || TcpStream::connect(address).await.is_err()).await;
    eventually("its directory is gone", async || !Path::new(dir).exists()).await;
}

/// Who leads instead of `former`, which must be somebody within 10 s.
async fn leader_besides(cluster: &Cluster, former: usize) -> usize {
    let begun = Instant::now();
    loop {
        match cluster.leader().await {
            Some(leader) if leader != former => return leader,
            _ => assert!(begun.elapsed() < Duration::from_secs(10), "nobody leads instead of {former}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Makes one key, or one more node.
async fn write(server: &Server) {
    match server.kind() {
        Kind::Etcd => etcd_put(server.address()).await,
        Kind::Consul => consul_put(server.address(), "k", "v").await,
        Kind::ZooKeeper => ZooKeeperSession::open(server.address()).await.create("/k").await,
    }
}

/// Whether the server itself, whatever the others have, has what was written.
async fn has(server: &Server) -> bool {
    match server.kind() {
        Kind::Etcd => {
            let body = r#"{"key":"aw==","serializable":true}"#;
            let answer = http::request(server.address(), "POST", "/v3/kv/range", body).await.unwrap();
            answer.body.contains(r#""value":"dg==""#)
        }
        Kind::Consul => http::get(server.address(), "/v1/kv/k?raw&stale").await.unwrap().body == "v",
        // Of its own there are the root, and four beneath it.
        Kind::ZooKeeper => zookeeper_nodes(server.address()).await == "Node count: 6",
    }
}

async fn a_cluster_survives_the_loss_of_any_node(kind: Kind) {
    let Some(cluster) = Cluster::start(kind).await else { return };
    let node = |index: usize| &cluster.nodes()[index % 3];
    let leader = cluster.leader().await.unwrap();
    assert!(!has(node(leader)).await);
    write(node(leader)).await;
    node(leader).kill();
    assert!(node(leader).is_down());
    let leader = leader_besides(&cluster, leader).await;
    // It has it in its log, and applies that once the other one has acknowledged something new.
    eventually("the next leader has it", async || has(node(leader)).await).await;
    cluster.heal().await;
    all_have_it(&cluster).await;
    let leader = cluster.leader().await.unwrap();
    node(leader + 1).kill();
    assert_eq!(cluster.leader().await, Some(leader));
    cluster.heal().await;
    all_have_it(&cluster).await;
}

async fn a_cluster_goes_on_without_its_frozen_leader_and_heals(kind: Kind) {
    let Some(cluster) = Cluster::start(kind).await else { return };
    let node = |index: usize| &cluster.nodes()[index % 3];
    let leader = cluster.leader().await.unwrap();
    node(leader).freeze();
    assert!(node(leader).is_frozen() && !node(leader).is_down());
    let next = leader_besides(&cluster, leader).await;
    write(node(next)).await;
    node((0..3).find(|other| ![leader, next].contains(other)).unwrap()).kill();
    (0..3).for_each(|node| cluster.proxy(node).cut());
    cluster.heal().await;
    all_have_it(&cluster).await;
    for index in 0..3 {
        assert!(!node(index).is_frozen() && !node(index).is_down());
        TcpStream::connect(cluster.proxy(index).address()).await.unwrap();
    }
}

async fn a_wiped_node_gets_everything_from_the_others(kind: Kind) {
    let Some(cluster) = Cluster::start(kind).await else { return };
    let leader = cluster.leader().await.unwrap();
    write(&cluster.nodes()[leader]).await;
    let follower = (leader + 1) % 3;
    let trace = cluster.nodes()[follower].dir().join("data/trace");
    std::fs::write(&trace, "of before").unwrap();
    cluster.wipe(follower).await;
    assert!(!trace.exists(), "the data was not wiped");
    all_have_it(&cluster).await;
    cluster.wipe(leader).await;
    all_have_it(&cluster).await;
    for index in 0..3 {
        assert!(cluster.url("a").contains(&cluster.proxy(index).address().to_string()));
        assert!(cluster.direct_url("a").contains(&cluster.nodes()[index].address().to_string()));
    }
}

/// Who has caught up with the leader has what was written; so has the leader.
async fn all_have_it(cluster: &Cluster) {
    assert!(cluster.leader().await.is_some());
    for node in cluster.nodes() {
        assert!(has(node).await, "{} at {}", cluster.kind(), node.address());
    }
}

#[tokio::test]
async fn a_proxy_cuts_clogs_and_restores() {
    let Some(server) = common::etcd().await else { return };
    let proxy = server.proxy();
    assert_eq!(http::get(proxy.address(), "/health").await.unwrap().status, 200);
    let mut connected = TcpStream::connect(proxy.address()).await.unwrap();
    proxy.cut();
    assert_eq!(connected.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(proxy.counts().open, 0);
    let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    proxy.blackhole();
    proxy.reset_counts();
    let clogged = http::get(proxy.address(), "/health");
    tokio::pin!(clogged);
    assert!(timeout(SOON, &mut clogged).await.is_err());
    assert_eq!((proxy.counts().to_server, proxy.counts().open), (0, 1));
    proxy.restore();
    assert_eq!(clogged.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_proxy_can_hold_answers_to_requests_that_are_carried_out() {
    let Some(server) = Server::start(Kind::Consul).await else { return };
    let proxy = server.proxy();
    proxy.hold_answers();
    let put = tokio::spawn(async move {
        consul_put(proxy.address(), "k", "v").await;
    });
    eventually("the value is there", async || consul_get(server.address(), "k").await.status == 200).await;
    assert!(!put.is_finished());
}

#[tokio::test]
async fn a_proxy_can_hold_requests_while_answers_arrive() {
    let Some(server) = Server::start(Kind::Consul).await else { return };
    let proxy = server.proxy();
    let index = consul_put_and_index(server.address(), "k", "1").await;
    let mut query = TcpStream::connect(proxy.address()).await.unwrap();
    query
        .write_all(
            format!("GET /v1/kv/k?raw&index={index} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await
        .unwrap();
    let mut idle = TcpStream::connect(proxy.address()).await.unwrap();
    eventually("the query is with the server", async || proxy.counts().calls() == 1).await;
    proxy.hold_requests();
    let request = b"PUT /v1/kv/k HTTP/1.0\r\nContent-Length: 1\r\n\r\n2";
    idle.write_all(request).await.unwrap();
    sleep(SOON).await;
    assert_eq!(consul_get(server.address(), "k").await.body, "1");
    consul_put(server.address(), "k", "3").await;
    let mut answer = String::new();
    timeout(LATE, query.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with("\r\n\r\n3"), "{answer}");
    proxy.restore();
    eventually("the request arrives", async || consul_get(server.address(), "k").await.body == "2").await;
}

async fn consul_put_and_index(address: SocketAddr, key: &str, value: &str) -> u64 {
    consul_put(address, key, value).await;
    let answer = http::get(address, &format!("/v1/kv/{key}")).await.unwrap();
    let index = answer.body.split("\"ModifyIndex\":").nth(1).unwrap();
    index.split(|next: char| !next.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// Much more than one piece of what goes through a proxy.
const LARGE: usize = 256 * 1024;

/// How long it takes to read the large value.
async fn time_of_a_large_answer(proxy: &Proxy) -> Duration {
    let begun = Instant::now();
    assert_eq!(consul_get(proxy.address(), "large").await.body.len(), LARGE);
    begun.elapsed()
}

#[tokio::test]
async fn a_proxy_delays_every_piece_and_does_not_slow_them_down() {
    let Some(server) = Server::start(Kind::Consul).await else { return };
    let proxy = server.proxy();
    consul_put(server.address(), "large", &"x".repeat(LARGE)).await;
    let delay = Duration::from_millis(400);
    proxy.delay(delay);
    let took = time_of_a_large_answer(&proxy).await;
    // There and back; 16 pieces or more, one after the other, would take 6 s.
    assert!((2 * delay..6 * delay).contains(&took), "{took:?}");
    proxy.restore();
    assert!(time_of_a_large_answer(&proxy).await < delay);
}

#[tokio::test]
async fn a_proxy_lets_only_so_much_through_in_a_second() {
    let Some(server) = Server::start(Kind::Consul).await else { return };
    let proxy = server.proxy();
    consul_put(server.address(), "large", &"x".repeat(LARGE)).await;
    proxy.throttle(LARGE as u64 / 2);
    let took = time_of_a_large_answer(&proxy).await;
    assert!((1900..4000).contains(&took.as_millis()), "{took:?}");
    proxy.throttle(10);
    let slow = tokio::spawn(async move { (time_of_a_large_answer(&proxy).await, proxy) });
    sleep(SOON).await;
    assert!(!slow.is_finished());
    slow.abort();
}

#[tokio::test]
async fn a_half_open_proxy_takes_connections_and_nothing_else() {
    let Some(server) = common::etcd().await else { return };
    let proxy = server.proxy();
    let mut former = TcpStream::connect(proxy.address()).await.unwrap();
    former.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    former.read_exact(&mut [0; 12]).await.unwrap();
    proxy.half_open();
    proxy.reset_counts();
    let mut rest = Vec::new();
    timeout(LATE, former.read_to_end(&mut rest)).await.unwrap().ok();
    let mut taken = TcpStream::connect(proxy.address()).await.unwrap();
    taken.write_all(b"GET /health HTTP/1.0\r\n\r\n").await.unwrap();
    assert!(timeout(SOON, taken.read(&mut [0])).await.is_err());
    proxy.restore();
    assert_eq!(timeout(LATE, taken.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    assert_eq!(proxy.counts().to_server, 0);
    assert_eq!(http::get(proxy.address(), "/health").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_proxy_resets_connections_in_the_midst_of_an_answer() {
    let Some(server) = Server::start(Kind::Consul).await else { return };
    let proxy = server.proxy();
    consul_put(server.address(), "large", &"x".repeat(LARGE)).await;
    let request = b"GET /v1/kv/large?raw HTTP/1.1\r\nHost: x\r\n\r\n";
    // Consul's answer ends in an address in quotes.
    let leader = async |stream: &mut TcpStream| {
        stream.write_all(b"GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        while stream.read_u8().await.unwrap() != b'"' {}
        while stream.read_u8().await.unwrap() != b'"' {}
    };
    let mut open = TcpStream::connect(proxy.address()).await.unwrap();
    leader(&mut open).await;
    for bytes in [0, 1, 100_000] {
        proxy.close_at(bytes);
        let mut new = TcpStream::connect(proxy.address()).await.unwrap();
        new.write_all(request).await.unwrap();
        assert_eq!(until_reset(&mut new).await, bytes);
    }
    open.write_all(request).await.unwrap();
    assert_eq!(until_reset(&mut open).await, 100_000);
    proxy.restore();
    leader(&mut TcpStream::connect(proxy.address()).await.unwrap()).await;
}

/// How many bytes arrive before the connection is reset.
async fn until_reset(stream: &mut TcpStream) -> u64 {
    let (mut buffer, mut arrived) = ([0; 4096], 0);
    loop {
        match timeout(LATE, stream.read(&mut buffer)).await.unwrap() {
            Ok(0) => panic!("the connection was closed after {arrived} bytes as if all were said"),
            Ok(length) => arrived += length as u64,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                return arrived;
            }
        }
    }
}

#[tokio::test]
async fn a_proxy_counts_zookeeper_requests() {
    let Some(server) = common::zookeeper().await else { return };
    let proxy = server.proxy();
    let mut session = ZooKeeperSession::open(proxy.address()).await;
    session.create("/counted").await;
    session.ping().await;
    session.ping().await;
    let counts = proxy.counts();
    let of = |opcode| counts.frames_of(opcode);
    assert_eq!((of(CONNECT), of(ZooKeeperSession::CREATE), of(PING)), (1, 1, 2), "{counts:?}");
    assert_eq!((counts.calls(), counts.connections, counts.open), (1, 1, 1));
}

#[tokio::test]
async fn a_proxy_counts_consul_requests() {
    let Some(server) = common::consul().await else { return };
    let proxy = server.proxy();
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    for request in ["GET /v1/kv/a?raw HTTP/1.1\r\nHost: x\r\n\r\n", "GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n\r\n"]
    {
        stream.write_all(request.as_bytes()).await.unwrap();
    }
    eventually("both requests are through", async || proxy.counts().calls() == 2).await;
    assert_eq!(proxy.counts().requests_like("GET /v1/kv/"), 1);
    drop(stream);
    eventually("the connection is closed", async || proxy.counts().open == 0).await;
    proxy.reset_counts();
    assert_eq!((proxy.counts().connections, proxy.counts().calls()), (0, 0));
}

/// What a meter counts must not depend on how the bytes are cut into packets.
fn in_pieces_of_any_size(kind: Kind, bytes: &[u8]) -> Counts {
    let count = |size: usize| {
        let (mut meter, mut counts) = (Meter::new(kind), Counts::default());
        bytes.chunks(size).for_each(|piece| meter.feed(piece, &mut counts));
        counts
    };
    let whole = count(bytes.len());
    for size in 1..bytes.len() {
        let counts = count(size);
        assert_eq!((&counts.requests, &counts.frames), (&whole.requests, &whole.frames), "in pieces of {size}");
    }
    whole
}

#[test]
fn http_requests_are_counted_wherever_packets_end() {
    let body = "GET /not/a/request HTTP/1.1\r\n\r\n";
    let stream = format!(
        "PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}\
         GET /v1/kv/b HTTP/1.1\r\n\r\n\
         POST /v1/kv/c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
         DELETE /v1/kv/d HTTP/1.1\r\nContent-Length:0\r\n\r\n",
        body.len()
    );
    let counts = in_pieces_of_any_size(Kind::Consul, stream.as_bytes());
    assert_eq!(counts.requests, ["PUT /v1/kv/a", "GET /v1/kv/b", "POST /v1/kv/c", "DELETE /v1/kv/d"]);
}

#[test]
fn zookeeper_requests_are_counted_wherever_packets_end() {
    let frame = |opcode: i32, rest: usize| {
        let length = 8 + rest as u32;
        [&length.to_be_bytes()[..], &7i32.to_be_bytes(), &opcode.to_be_bytes(), &vec![PING as u8; rest]].concat()
    };
    let stream = [frame(0, 36), frame(4, 20), frame(PING, 0), frame(4, 1), frame(-11, 0)].concat();
    let counts = in_pieces_of_any_size(Kind::ZooKeeper, &stream);
    assert_eq!(counts.frames, [(CONNECT, 1), (4, 2), (PING, 1), (-11, 1)].into());
    assert!(in_pieces_of_any_size(Kind::ZooKeeper, b"srvr, and then some").frames.is_empty());
}
