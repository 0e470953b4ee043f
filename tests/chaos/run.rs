//! One run: clients, watchers, holders of locks, leaders and registrations, while faults happen; and what must be true afterwards.

use super::clients::{Client, Shared};
use super::history::Reads;
use super::holders::{self, Holding, LEADER};
use super::report::Report;
use crate::common::told::Told;
use crate::common::wrapped::{Plan, Wrapped};
use crate::common::{Cluster, Kind};
use fastrand::Rng;
use kvactor::{Config, DeleteTreeOptions, Store, TreeStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

/// What a run takes place on.
pub struct Scene {
    /// Stores of one namespace that the faults hit.
    pub stores: Vec<Store>,
    /// One that looks at the end what there is; faults on the way to the servers don't hit it.
    pub judge: Store,
    /// What locks, leaders and registrations ask for.
    pub ttl: Duration,
    /// How long until everything that depends on the TTL is right again.
    pub settles_within: Duration,
    pub reads: Reads,
}

impl Scene {
    /// On a cluster where all is well. One store begins with each of the nodes.
    pub async fn on(cluster: &Cluster, namespace: &str) -> Scene {
        let (ttl, settles_within) = match cluster.kind() {
            Kind::Etcd => (Duration::from_secs(2), Duration::from_secs(10)),
            Kind::ZooKeeper => (Duration::from_secs(4), Duration::from_secs(20)),
            // A session of ten seconds may take twenty to end, and more when the leader changes.
            Kind::Consul => (Duration::from_secs(10), Duration::from_secs(60)),
        };
        let delay = if cluster.kind() == Kind::Consul { "&lock_delay=1ms" } else { "" };
        let mut stores = Vec::new();
        for first in 0..3 {
            let hosts: Vec<_> = (0..3).map(|node| cluster.proxy((first + node) % 3).address().to_string()).collect();
            let options = format!("connect_timeout=1s&idle_timeout=3s&session_timeout=4s&backoff_max=500ms{delay}");
            let url = format!("{}://{}/{namespace}?{options}", cluster.kind().scheme(), hosts.join(","));
            stores.push(Store::connect(&url).await.expect("a store while all is well"));
        }
        let judge = Store::connect(&cluster.direct_url(namespace)).await.expect("a store while all is well");
        let reads = if cluster.kind() == Kind::ZooKeeper { Reads::Monotonic } else { Reads::Linearizable };
        Scene { stores, judge, ttl, settles_within, reads }
    }

    /// On an embedded store whose driver does what `plan` says: nothing yet. What is to be judged is looked at by one of those who
    /// are in trouble where there can be no other.
    pub async fn wrapped(url: &str, plan: &Arc<Plan>, stores: usize) -> Scene {
        let config = Config::from_url(&format!("{url}?connect_timeout=1s&backoff_max=500ms")).expect("a store URL");
        let driver = Wrapped::of(&config, plan.clone()).impatient();
        let mut opened = Vec::new();
        for _ in 0..stores {
            let store = Store::with_backend(driver.clone(), config.options.clone()).await;
            opened.push(store.expect("a store while all is well"));
        }
        let judge = match stores {
            1 => opened[0].clone(),
            _ => Store::connect(url).await.expect("a store while all is well"),
        };
        let (ttl, settles_within) = (Duration::from_secs(1), Duration::from_secs(10));
        Scene { stores: opened, judge, ttl, settles_within, reads: Reads::Linearizable }
    }
}

const CLIENTS: usize = 12;
/// The deadline of the clients' calls.
const DEADLINE: Duration = Duration::from_secs(1);
/// How long a watch may take after the last fault until it has told everything.
const CONVERGES: Duration = Duration::from_secs(20);

/// Runs everything while `faults` happen, and returns what was seen, with all that must not be.
pub async fn run(scene: Scene, seed: u64, faults: impl Future<Output = u64>) -> (Report, Vec<String>) {
    let mut load =
        timeout(CONVERGES, Load::start(&scene, seed)).await.expect("watches, registrations and observers that begin");
    let count = faults.await;
    load.stop().await;
    let mut report = load.look(&scene).await;
    report.faults = count;
    if load.shared.faults().is_empty() {
        // So that the next runs have as much to do as this one.
        let all = DeleteTreeOptions { allow_root: true };
        let _ = scene.judge.delete_tree_with("", all).await;
    }
    for store in scene.stores.iter().chain([&scene.judge]) {
        if timeout(CONVERGES, store.close()).await.is_err() {
            load.shared.fault("a store doesn't close".to_owned());
        }
    }
    (report, load.shared.faults())
}

/// All that goes on in a run.
struct Load {
    shared: Arc<Shared>,
    holding: Arc<Holding>,
    go_on: Arc<AtomicBool>,
    tasks: JoinSet<()>,
    watchers: Vec<JoinHandle<(Told, TreeStream)>>,
    registrations: Vec<(String, kvactor::Registration)>,
}

impl Load {
    async fn start(scene: &Scene, seed: u64) -> Load {
        let shared = Shared::new();
        let holding = Holding::new(shared.clone(), scene.ttl, Duration::from_millis(700));
        let go_on = Arc::new(AtomicBool::new(true));
        let mut load =
            Load { shared, holding, go_on, tasks: JoinSet::new(), watchers: Vec::new(), registrations: Vec::new() };
        // While all is well: what isn't there before the first fault can't be expected to last.
        for (number, store) in scene.stores.iter().enumerate() {
            load.begin_to_watch(store).await;
            let name = format!("registered/{number}");
            let registered = store.register(name.as_str(), "here", scene.ttl).await;
            load.registrations.push((name, registered.expect("a registration while all is well")));
            load.begin_to_hold(number, store).await;
        }
        load.begin_to_call(scene, seed);
        load
    }

    /// Whether the run goes on, for a task of its own.
    fn going_on(&self) -> impl Fn() -> bool + Send + 'static {
        let go_on = self.go_on.clone();
        move || go_on.load(Ordering::Relaxed)
    }

    fn begin_to_call(&mut self, scene: &Scene, seed: u64) {
        let mut rng = Rng::with_seed(seed);
        for number in 0..CLIENTS {
            let store = scene.stores[number % scene.stores.len()].clone();
            let mut client = Client::new(number, store, DEADLINE, rng.fork(), self.shared.clone());
            let go_on = self.going_on();
            self.tasks.spawn(async move { client.run(go_on).await });
        }
    }

    async fn begin_to_watch(&mut self, store: &Store) {
        let mut events = store.watch_tree("calls").await.expect("a watch while all is well");
        let go_on = self.going_on();
        self.watchers.push(tokio::spawn(async move {
            let mut told = Told::default();
            while go_on() {
                if let Ok(event) = timeout(Duration::from_millis(100), events.next()).await {
                    told.take(event.expect("the store is open"));
                }
            }
            (told, events)
        }));
    }

    async fn begin_to_hold(&mut self, number: usize, store: &Store) {
        let leaders = store.observe_leader(LEADER).await.expect("an observer while all is well");
        let (holding, owner, go_on) = (self.holding.clone(), store.clone(), self.going_on());
        self.tasks.spawn(async move { holding.lock(&owner, go_on).await });
        let (holding, owner, go_on) = (self.holding.clone(), store.clone(), self.going_on());
        self.tasks.spawn(async move { holding.stand(&owner, &format!("candidate {number}"), go_on).await });
        let (shared, go_on) = (self.shared.clone(), self.going_on());
        self.tasks.spawn(async move {
            holders::observe(leaders, &shared, go_on).await;
        });
    }

    /// Ends the load; everything that was begun is finished.
    async fn stop(&mut self) {
        // Some of it without faults: what doesn't come back by itself shows.
        sleep(Duration::from_millis(500)).await;
        self.go_on.store(false, Ordering::Relaxed);
        let shared = self.shared.clone();
        let ended = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Err(panic) = ended {
                    shared.fault(format!("a task of the load: {panic}"));
                }
            }
        };
        if timeout(CONVERGES, ended).await.is_err() {
            self.shared.fault(format!("{} tasks of the load hang", self.tasks.len()));
            self.tasks.abort_all();
        }
    }

    /// Looks whether everything is as it must be.
    async fn look(&mut self, scene: &Scene) -> Report {
        let mut report = Report { runs: 1, ..Report::default() };
        let mut judge =
            Client::new(CLIENTS, scene.judge.clone(), DEADLINE * 10, Rng::with_seed(0), self.shared.clone());
        judge.read_all().await;
        self.look_at_watches(scene, &mut report).await;
        self.look_at_registrations(scene).await;
        (report.calls, report.lost) = self.shared.history.count();
        report.locks = self.holding.locks.count();
        report.terms = self.holding.terms.count();
        let counted = holders::count(&scene.judge).await.expect("a read while all is well");
        let history = match self.shared.history.check(Reads::Linearizable) {
            Err(_) if scene.reads == Reads::Monotonic => {
                report.stale_runs = 1;
                self.shared.history.check(Reads::Monotonic)
            }
            checked => checked,
        };
        let checks = [
            history,
            self.holding.locks.check("the lock"),
            self.holding.terms.check("the leader"),
            self.holding.counter.check(counted),
        ];
        checks.into_iter().filter_map(Result::err).for_each(|reason| self.shared.fault(reason));
        report
    }

    async fn look_at_watches(&mut self, scene: &Scene, report: &mut Report) {
        for watcher in self.watchers.drain(..) {
            let converged = async {
                let (mut told, mut events) = watcher.await.map_err(|panic| format!("a watch: {panic}"))?;
                told.converge(&mut events, &scene.judge, "calls").await;
                Ok::<_, String>(told)
            };
            match timeout(CONVERGES, tokio::task::LocalSet::new().run_until(converged)).await {
                Ok(Ok(told)) => {
                    report.events += told.changes.len() as u64;
                    report.suspensions += told.suspended as u64;
                }
                Ok(Err(reason)) => self.shared.fault(reason),
                Err(_) => self.shared.fault(format!("a watch hasn't told everything after {CONVERGES:?}")),
            }
        }
    }

    /// All are there again, and gone when they are taken back.
    async fn look_at_registrations(&mut self, scene: &Scene) {
        let deadline = Instant::now() + scene.settles_within;
        for (name, registration) in self.registrations.drain(..) {
            while !(registration.is_registered() && scene.judge.exists(name.as_str()).await.unwrap_or(false)) {
                if Instant::now() > deadline {
                    self.shared.fault(format!("`{name}` isn't registered after {:?}", scene.settles_within));
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
            match timeout(CONVERGES, registration.unregister()).await {
                Ok(Ok(())) => {}
                ended => self.shared.fault(format!("`{name}` can't be taken back: {ended:?}")),
            }
        }
    }
}
