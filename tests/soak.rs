//! Long-lived stores under load and faults, and nothing is left of them afterwards.
//!
//! ```sh
//! cargo test --all-features --test soak -- --nocapture                     # fifteen minutes
//! KVACTOR_SOAK=2h KVACTOR_SOAK_SEED=5 cargo test --all-features --test soak -- --nocapture
//! ```

#![cfg(any(feature = "consul", feature = "etcd", feature = "zookeeper"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod chaos;
mod common;

use chaos::footprint::{Footprint, resident};
use chaos::plan::plan;
use chaos::report::Report;
use chaos::run::{Scene, run};
use common::{Cluster, Kind};
use fastrand::Rng;
use std::time::{Duration, Instant};

const SOAK: Duration = Duration::from_secs(15 * 60);
/// Part of the time that each of the rounds on one backend has. What a round leaves is compared with what the first one left.
const ROUNDS: u32 = 3;
/// The servers notice a broken connection when they next write to it, or by the end of a session.
const PATIENCE: Duration = Duration::from_secs(45);
/// What an allocator may keep for later, and the servers' answers to our own questions.
const SLACK: u64 = 24 * 1024 * 1024;

fn setting<T>(name: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(parse(&text).unwrap_or_else(|| panic!("`{name}` is {text:?}")))
}

/// One after the other: what is in use is told by the process, which all of them share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_live_through_everything_and_leave_nothing() {
    let soak = setting("KVACTOR_SOAK", |text| humantime::parse_duration(text).ok()).unwrap_or(SOAK);
    let seed = setting("KVACTOR_SOAK_SEED", |text| text.parse().ok()).unwrap_or(1);
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| has_driver(*kind)).collect();
    for kind in &kinds {
        let Some(cluster) = Cluster::start(*kind).await else { continue };
        soak_on(&cluster, seed, soak / kinds.len() as u32).await;
    }
}

fn has_driver(kind: Kind) -> bool {
    match kind {
        Kind::Etcd => cfg!(feature = "etcd"),
        Kind::Consul => cfg!(feature = "consul"),
        Kind::ZooKeeper => cfg!(feature = "zookeeper"),
    }
}

async fn soak_on(cluster: &Cluster, seed: u64, time: Duration) {
    let kind = cluster.kind();
    let mut rng = Rng::with_seed(seed);
    let mut total = Report::default();
    let base = Footprint::take(cluster).await.expect("the servers' answers");
    let mut memory = None;
    for round in 0..ROUNDS {
        let until = Instant::now() + time / ROUNDS;
        let mut steps = Vec::new();
        let faults = async {
            while Instant::now() < until {
                let [step] = &plan(&mut rng, 1)[..] else { unreachable!("one step") };
                steps.push(step.fault);
                step.carry_out(cluster).await;
            }
            steps.len() as u64
        };
        let scene = Scene::on(cluster, &format!("soak-{seed}-{round}")).await;
        let (report, violations) = run(scene, seed, faults).await;
        println!("{kind}, round {round}: {report:?} under {steps:?}");
        assert!(violations.is_empty(), "{kind}, KVACTOR_SOAK_SEED={seed}, {steps:?}: {}", violations.join("\n"));
        total.add(&report);
        if let Err(left) = Footprint::back_to(&base, cluster, PATIENCE).await {
            panic!("{kind}, KVACTOR_SOAK_SEED={seed}, {steps:?}: {left}");
        }
        let now = resident();
        let first = *memory.get_or_insert(now);
        println!("{kind}, round {round}: {} KiB resident, {} after the first one", now / 1024, first / 1024);
        assert!(now <= first + SLACK, "{kind}: memory grew from {first} to {now} bytes");
    }
    println!("{kind}: {total:?}; nothing is left");
}
