//! Stores under faults drawn from a seed, on clusters of three and on the embedded stores: histories are linearizable, locks exclude,
//! watches converge, and everything comes back by itself.
//!
//! ```sh
//! cargo test --all-features --test nemesis                                           # a few seeds of each backend
//! KVACTOR_NEMESIS_SEED=17 cargo test --all-features --test nemesis etcd              # the faults and calls of one seed again
//! KVACTOR_NEMESIS_RUNS=60 KVACTOR_NEMESIS_REPORT=docs/reliability.md cargo test --all-features --test nemesis
//! ```

#![cfg(any(feature = "consul", feature = "etcd", feature = "zookeeper", feature = "local", feature = "memory"))]
#![cfg_attr(not(any(feature = "consul", feature = "etcd", feature = "zookeeper")), allow(dead_code, unused_imports))]
#![cfg_attr(not(any(feature = "local", feature = "memory")), allow(dead_code, unused_imports))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod chaos;
mod common;

use chaos::plan::plan;
use chaos::report::Report;
use chaos::run::{Scene, run};
use common::wrapped::{Fault, Plan, silence_planned_panics};
use common::{Cluster, Kind, on_servers};
use fastrand::Rng;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::sleep;

/// Faults in one run.
const STEPS: usize = 3;
/// Runs of each backend where nobody asks for more.
const RUNS: u64 = 3;

/// How often a step of a driver fails while it does.
const ODDS: f64 = 0.05;

/// The seeds that are asked for.
fn seeds() -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse().expect("a number"));
    match number("KVACTOR_NEMESIS_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("KVACTOR_NEMESIS_RUNS").unwrap_or(RUNS)).collect(),
    }
}

/// Adds up all runs, and fails if any of them showed what must not be.
#[derive(Default)]
struct Account {
    report: Report,
    violations: Vec<String>,
}

impl Account {
    fn take(&mut self, backend: &str, seed: u64, (report, violations): (Report, Vec<String>)) {
        eprintln!("{backend}, seed {seed}: {report:?}");
        self.report.add(&report);
        let told = violations.iter().map(|what| format!("{backend}, KVACTOR_NEMESIS_SEED={seed}: {what}"));
        self.violations.extend(told.inspect(|what| eprintln!("{what}")));
    }

    fn settle(self, backend: &str) {
        if let Some(path) = std::env::var_os("KVACTOR_NEMESIS_REPORT") {
            self.report.write(&PathBuf::from(path), backend, self.violations.len());
        }
        assert!(self.violations.is_empty(), "{}", self.violations.join("\n"));
    }
}

async fn nothing_is_lost_and_nobody_is_misled(kind: Kind) {
    let Some(cluster) = Cluster::start(kind).await else { return };
    let backend = kind.scheme();
    let mut account = Account::default();
    for seed in seeds() {
        let steps = plan(&mut Rng::with_seed(seed), STEPS);
        eprintln!("{backend}, seed {seed}: {steps:?}");
        let faults = async {
            for step in &steps {
                step.carry_out(&cluster).await;
            }
            steps.len() as u64
        };
        let seen = run(Scene::on(&cluster, &format!("seed-{seed}")).await, seed, faults).await;
        account.take(backend, seed, seen);
    }
    account.settle(backend);
}

on_servers! { nothing_is_lost_and_nobody_is_misled }

/// On an embedded store there is no way to the server that could fail; its driver fails instead, in every way.
#[cfg(any(feature = "memory", feature = "local"))]
async fn nothing_is_lost_though_the_driver_fails(backend: &str, url: impl Fn(u64) -> String, stores: usize) {
    silence_planned_panics();
    let mut account = Account::default();
    for seed in seeds() {
        let plan = Plan::seeded(seed, ODDS);
        plan.heal();
        let (scene, mut rng) = (Scene::wrapped(&url(seed), &plan, stores).await, Rng::with_seed(seed));
        let faults = async {
            for _ in 0..STEPS {
                sleep(Duration::from_millis(rng.u64(300..900))).await;
                plan.resume();
                sleep(Duration::from_millis(rng.u64(200..1500))).await;
                plan.heal();
            }
            plan.seen().into_iter().filter(|((_, fault), _)| *fault != Fault::None).map(|(_, count)| count).sum()
        };
        account.take(backend, seed, run(scene, seed, faults).await);
    }
    account.settle(backend);
}

#[cfg(feature = "memory")]
mod memory {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_lost_and_nobody_is_misled() {
        let url = |seed| format!("memory://nemesis-{seed}");
        super::nothing_is_lost_though_the_driver_fails("memory", url, 3).await;
    }
}

#[cfg(feature = "local")]
mod local {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_lost_and_nobody_is_misled() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url = |seed| format!("local://{}", folder.path().join(format!("{seed}.redb")).display());
        // One store at a time has a file.
        super::nothing_is_lost_though_the_driver_fails("local", url, 1).await;
    }
}
