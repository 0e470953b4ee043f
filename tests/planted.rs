//! The checks of tests/chaos find bugs: each of these drivers has one, and is caught.

#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod chaos;
mod common;

use async_trait::async_trait;
use bytes::Bytes;
use chaos::clients::{Client, Shared};
use chaos::history::Reads;
use chaos::holders::Holding;
use common::wrapped::{Plan, Tamper, Wrapped};
use fastrand::Rng;
use kvactor::{
    Backend, Bid, Consistency, Expected, Grant, Key, KvPair, Locking, Options, Progress, Result, Standing, Store,
    Version,
};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::time::sleep;

const CLIENTS: usize = 8;
const TIME: Duration = Duration::from_millis(1500);

/// A store in memory whose driver does some calls otherwise.
async fn store(name: &str, tamper: impl Tamper + Send + Sync) -> Store {
    let driver = Wrapped::new(&format!("memory://planted-{name}"), Plan::none()).tampered(tamper);
    Store::with_backend(driver, Options::default()).await.unwrap()
}

/// What is wrong with what clients of these stores were answered.
async fn verdict(stores: &[Store]) -> std::result::Result<(), String> {
    let (shared, until) = (Shared::new(), Instant::now() + TIME);
    let clients = (0..CLIENTS).map(|number| {
        let store = stores[number % stores.len()].clone();
        let mut client =
            Client::new(number, store, Duration::from_secs(5), Rng::with_seed(number as u64), shared.clone());
        tokio::spawn(async move { client.run(|| Instant::now() < until).await })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    assert!(shared.history.count().0 > 500, "too little to judge by: {:?}", shared.history.count());
    assert_eq!(shared.faults(), Vec::<String>::new());
    shared.history.check(Reads::Linearizable)
}

/// One in so many calls is done wrongly.
const SOMETIMES: u64 = 50;

fn sometimes() -> bool {
    fastrand::u64(..SOMETIMES) == 0
}

struct Faultless;

impl Tamper for Faultless {}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_without_a_bug_is_acquitted() {
    verdict(&[store("none", Faultless).await, store("none", Faultless).await]).await.unwrap();
}

/// Takes a lost answer for a lost request, and sends that again.
struct RepeatsPuts;

#[async_trait(?Send)]
impl Tamper for RepeatsPuts {
    async fn put(&self, driver: &dyn Backend, key: &Key, value: &Bytes) -> Result<Version> {
        let version = driver.put(key, value).await?;
        if !sometimes() {
            return Ok(version);
        }
        sleep(Duration::from_millis(5)).await;
        driver.put(key, value).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_put_is_found() {
    let verdict = verdict(&[store("put", RepeatsPuts).await, store("put", RepeatsPuts).await]).await;
    assert!(verdict.is_err_and(|reason| reason.contains("not Linearizable")));
}

/// The same for writes with a condition: what it sees the second time is its own write.
struct RepeatsSwaps;

#[async_trait(?Send)]
impl Tamper for RepeatsSwaps {
    async fn atomic_put(&self, driver: &dyn Backend, key: &Key, value: &Bytes, expected: &Expected) -> Result<Version> {
        let version = driver.atomic_put(key, value, expected).await?;
        if !sometimes() {
            return Ok(version);
        }
        driver.atomic_put(key, value, expected).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_swap_is_found() {
    let verdict = verdict(&[store("swap", RepeatsSwaps).await]).await;
    assert!(verdict.is_err_and(|reason| reason.contains("not Linearizable")));
}

/// Answers from what it read before.
#[derive(Default)]
struct ReadsStale(Mutex<HashMap<Key, KvPair>>);

#[async_trait(?Send)]
impl Tamper for ReadsStale {
    async fn get(&self, driver: &dyn Backend, key: &Key, consistency: Consistency) -> Result<KvPair> {
        if let Some(pair) = self.0.lock().unwrap().remove(key).filter(|_| sometimes()) {
            return Ok(pair);
        }
        let pair = driver.get(key, consistency).await?;
        self.0.lock().unwrap().insert(key.clone(), pair.clone());
        Ok(pair)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_read_is_found() {
    let verdict = verdict(&[store("stale", ReadsStale::default()).await]).await;
    assert!(verdict.is_err_and(|reason| reason.contains("not Linearizable")));
}

/// Takes it for granted that a lock which was got once is held, and asks nobody any more.
struct TrustsAFlag;

#[async_trait(?Send)]
impl Tamper for TrustsAFlag {
    async fn keep_alive(&self, _: &dyn Locking, _: &Grant) -> Result<()> {
        Ok(())
    }

    async fn contend(&self, locks: &dyn Locking, bid: &Bid, progress: &Progress) -> Result<Standing> {
        match progress {
            Progress::Placed(place) if place.token != 0 => Ok(Standing::Held(place.clone())),
            _ => locks.contend(bid, progress).await,
        }
    }
}

const TTL: Duration = Duration::from_secs(1);

/// What is wrong with the times at which two candidates led, of whom the first won't let go by itself for a while.
async fn verdict_on_leaders(first: Store, second: Store) -> std::result::Result<(), String> {
    let holding = Holding::new(Shared::new(), TTL, TTL * 4);
    let until = Instant::now() + TTL * 3;
    let going_on = || Instant::now() < until;
    tokio::join!(holding.stand(&first, "first", going_on), holding.stand(&second, "second", going_on));
    assert_eq!(holding.shared.faults(), Vec::<String>::new());
    holding.terms.check("the leader")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_trusts_a_flag_is_found() {
    let honest = async || (store("fair", Faultless).await, store("fair", Faultless).await);
    let (first, second) = honest().await;
    verdict_on_leaders(first, second).await.unwrap();
    let (first, second) = (store("flag", TrustsAFlag).await, store("flag", TrustsAFlag).await);
    let verdict = verdict_on_leaders(first, second).await;
    assert!(verdict.is_err_and(|reason| reason.contains("the leader")));
}
