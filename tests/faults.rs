//! Servers that are killed, frozen, cut off, absent, silent or not what they should be.
#![cfg(any(feature = "consul", feature = "etcd", feature = "zookeeper"))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Kind, Server, on_servers};
use futures_util::StreamExt;
use futures_util::future::join_all;
use kvactor::{Config, Error, LinkState, Result, Store};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

on_servers! {
    a_loop_of_puts_and_gets_outlives_a_killed_server
    a_store_whose_server_comes_up_later_works
    a_frozen_server_ends_calls_at_their_deadline_and_is_used_again
    a_write_whose_answer_is_held_back_is_indeterminate
    a_cut_link_is_told_of_and_mended
    a_dead_first_host_is_passed_over
    nobody_there_is_an_error_that_names_the_address
    a_silent_port_is_an_error_in_time
    a_port_that_talks_rubbish_is_an_error_in_time
}

async fn open(url: &str, request_timeout: Duration) -> Result<Store> {
    let mut config = Config::from_url(url)?;
    config.options.request_timeout = request_timeout;
    config.options.connect_timeout = Duration::from_secs(3);
    Store::open(config).await
}

async fn until(store: &Store, state: LinkState) {
    let mut statuses = store.status_stream();
    let waited = async { while statuses.next().await.expect("the store is open").link != state {} };
    tokio::time::timeout(Duration::from_secs(30), waited).await.unwrap_or_else(|_| panic!("never {state:?}"));
}

/// What one caller knows of its own key after a number of puts.
struct Known {
    /// The number of the last put that was acknowledged.
    acknowledged: u64,
    /// The number of the last put that may have been applied.
    possible: u64,
}

/// Puts numbers, one after the other, and reads each back, until told to stop.
async fn count_up(store: Store, key: String, stop: tokio::sync::watch::Receiver<bool>) -> Known {
    let mut known = Known { acknowledged: 0, possible: 0 };
    while !*stop.borrow() {
        known.possible += 1;
        match store.put(&key, known.possible.to_string()).await {
            Ok(_) => known.acknowledged = known.possible,
            Err(error) => assert!(error.is_indeterminate() || error.is_retryable(), "{error}"),
        }
        match store.get(&key).await {
            Ok(pair) => assert!(number(&pair.value) >= known.acknowledged, "an acknowledged put is not there"),
            Err(Error::KeyNotFound { .. }) => assert_eq!(known.acknowledged, 0, "an acknowledged put is lost"),
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
    known
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

async fn a_loop_of_puts_and_gets_outlives_a_killed_server(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let store = open(&server.url("loop"), Duration::from_secs(5)).await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let callers = (0..8).map(|caller| {
        let (store, stop) = (store.clone(), stopped.clone());
        tokio::spawn(count_up(store, format!("k{caller}"), stop))
    });
    let callers: Vec<_> = callers.collect();
    progress(&store, 8).await;
    for _ in 0..2 {
        server.kill();
        server.restart().await;
        progress(&store, 8).await;
    }
    stop.send(true).unwrap();
    for (caller, known) in join_all(callers).await.into_iter().enumerate() {
        let known = known.unwrap();
        let last = number(&store.get(format!("k{caller}")).await.unwrap().value);
        assert!((known.acknowledged..=known.possible).contains(&last), "caller {caller}");
        assert!(known.acknowledged > 0);
    }
    store.close().await.unwrap();
}

/// Waits until each caller has put something new: the loop goes on.
async fn progress(store: &Store, callers: usize) {
    let patient = store.with_request_timeout(Duration::from_secs(60));
    let state = async || -> BTreeMap<String, u64> {
        let pairs = patient.list("").await.unwrap_or_default();
        pairs.into_iter().map(|pair| (pair.key.to_string(), number(&pair.value))).collect()
    };
    let before = state().await;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let now = state().await;
        let moved = now.iter().filter(|(key, number)| before.get(*key).is_none_or(|before| *number > before));
        if moved.count() == callers {
            return;
        }
        assert!(Instant::now() < deadline, "the callers are stuck at {now:?}");
    }
}

async fn a_store_whose_server_comes_up_later_works(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    server.kill();
    let store =
        open(&format!("{}?lazy=true&backoff_max=200ms", server.url("late")), Duration::from_secs(90)).await.unwrap();
    assert_eq!(store.status().link, LinkState::Connecting);
    let early = store.with_request_timeout(Duration::from_millis(300)).put("early", "v").await;
    assert!(matches!(early, Err(Error::Unreachable { .. })), "{early:?}");
    let waiting = store.put("k", "v");
    let (put, ()) = tokio::join!(waiting, server.restart());
    put.unwrap();
    assert_eq!(store.get("k").await.unwrap().value, "v");
    assert!(!store.exists("early").await.unwrap(), "a put that was unreachable had an effect");
    store.close().await.unwrap();
}

async fn a_frozen_server_ends_calls_at_their_deadline_and_is_used_again(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let store = open(&server.url("frozen"), Duration::from_secs(1)).await.unwrap();
    store.put("k", "before").await.unwrap();
    server.freeze();
    let begin = Instant::now();
    let (read, write) = tokio::join!(store.get("k"), store.put("k", "meanwhile"));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(matches!(read, Err(Error::Timeout { .. } | Error::Unreachable { .. })), "{read:?}");
    assert!(matches!(write, Err(Error::Indeterminate { .. })), "{write:?}");
    server.thaw();
    let patient = store.with_request_timeout(Duration::from_secs(60));
    let value = patient.get("k").await.unwrap().value;
    assert!(value == "before" || value == "meanwhile");
    patient.put("k", "after").await.unwrap();
    assert_eq!(patient.get("k").await.unwrap().value, "after");
    store.close().await.unwrap();
}

async fn a_write_whose_answer_is_held_back_is_indeterminate(kind: Kind) {
    let Some(server) = common::shared(kind).await else { return };
    let proxy = server.proxy();
    let name = common::namespace("held-back");
    let store = open(&proxy.url(&name), Duration::from_secs(1)).await.unwrap();
    store.put("k", "before").await.unwrap();
    proxy.hold_answers();
    let error = store.put("k", "after").await.unwrap_err();
    assert!(error.is_indeterminate(), "{error}");
    // Whether it was applied is for the server to say, and here it was.
    let direct = open(&server.url(&name), Duration::from_secs(5)).await.unwrap();
    assert_eq!(direct.get("k").await.unwrap().value, "after");
    proxy.restore();
    let patient = store.with_request_timeout(Duration::from_secs(60));
    assert_eq!(patient.get("k").await.unwrap().value, "after");
}

async fn a_cut_link_is_told_of_and_mended(kind: Kind) {
    let Some(server) = common::shared(kind).await else { return };
    let proxy = server.proxy();
    let store = open(&proxy.url(&common::namespace("cut")), Duration::from_secs(1)).await.unwrap();
    store.put("k", "v").await.unwrap();
    proxy.cut();
    let read = store.get("k").await;
    // ZooKeeper's client may have taken the request in before it saw the cut, and holds it then for the reconnection.
    assert!(matches!(read, Err(Error::Unreachable { .. } | Error::Timeout { .. })), "{read:?}");
    until(&store, LinkState::Suspended).await;
    assert!(store.status().last_error.is_some());
    proxy.restore();
    until(&store, LinkState::Up).await;
    assert_eq!(store.get("k").await.unwrap().value, "v");
    store.close().await.unwrap();
}

async fn a_dead_first_host_is_passed_over(kind: Kind) {
    let Some(server) = common::shared(kind).await else { return };
    let name = common::namespace("dead-first");
    let nobody = Nobody::new();
    let url = format!("{}://{},{}/{name}", kind.scheme(), nobody.address, server.address());
    let store = open(&url, Duration::from_secs(10)).await.unwrap();
    store.put("k", "v").await.unwrap();
    assert_eq!(store.get("k").await.unwrap().value, "v");
    assert!(store.status().endpoint.contains(&server.address().to_string()));
    store.close().await.unwrap();
}

/// An address that refuses connections, and that nobody else can take as long as this lives.
struct Nobody {
    address: SocketAddr,
    _bound: tokio::net::TcpSocket,
}

impl Nobody {
    fn new() -> Self {
        let bound = tokio::net::TcpSocket::new_v4().unwrap();
        bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Nobody { address: bound.local_addr().unwrap(), _bound: bound }
    }
}

/// Opening fails in time, with an error that names the address.
async fn fails_to_open(kind: Kind, address: SocketAddr) {
    let begin = Instant::now();
    let url = format!("{}://user:s3cret@{address}/x", kind.scheme());
    let error = open(&url, Duration::from_secs(5)).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
}

async fn nobody_there_is_an_error_that_names_the_address(kind: Kind) {
    fails_to_open(kind, Nobody::new().address).await;
}

async fn a_silent_port_is_an_error_in_time(kind: Kind) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    fails_to_open(kind, listener.local_addr().unwrap()).await;
}

/// Answers every connection with `words` and closes it.
fn babble(words: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let _ = connection.and_then(|mut connection| connection.write_all(words));
        }
    });
    address
}

async fn a_port_that_talks_rubbish_is_an_error_in_time(kind: Kind) {
    let rubbish: [&[u8]; 5] = [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"\x00\x00\x00\x25\xff\xff\xff\xff\x7f\xff\xff\xff\xde\xad\xbe\xef",
        &[0xff; 4096],
    ];
    for words in rubbish {
        fails_to_open(kind, babble(words)).await;
    }
}
