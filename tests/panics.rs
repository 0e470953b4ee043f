//! Drivers that panic, hang and fail anywhere: every call ends in time, and the store recovers by itself once they behave.
//!
//! `KVACTOR_FAULT_SEED=7` runs that one seed, `KVACTOR_FAULT_SEEDS=200` as many in place of the usual few.
#![cfg(any(feature = "memory", feature = "local", feature = "etcd"))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::wrapped::{Fault, Plan, Step, Wrapped, silence_planned_panics};
use futures_util::future::join_all;
use kvactor::{
    BackendKind, CampaignOptions, Check, Condition, Config, Error, Expected, Key, KvPair, Leadership, LinkState,
    ListOptions, LockGuard, LockOptions, Operation, PutOptions, Registration, Result, Store, TreeEvent, Version,
    WatchEvent,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How long the drivers are in trouble, for each seed.
const STORM: Duration = Duration::from_millis(1500);
const CALLERS: usize = 6;
/// By how much a call may miss its deadline: the time of a busy machine to run what is due.
const MARGIN: Duration = Duration::from_secs(2);
/// How long a store may take to be itself again, once its driver is.
const RECOVERY: Duration = Duration::from_secs(20);
/// How many seeds run at once.
const AT_ONCE: u64 = 4;

/// The shortest TTL of keys and locks that all these backends have.
const TTL: Duration = Duration::from_secs(2);

#[cfg(feature = "memory")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() {
    all_seeds(16, &[], async |seed| survives(&format!("memory://panics-{seed}/ns"), seed).await).await;
}

#[cfg(feature = "local")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local() {
    let folder = tempfile::tempdir().unwrap();
    let file = |seed| format!("local://{}/{seed}.redb?namespace=ns", folder.path().display());
    // One process has the file, so that its locks are waited for here and not there.
    all_seeds(16, &[Step::Wait], async |seed| survives(&file(seed), seed).await).await;
}

#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd() {
    let Some(server) = common::etcd().await else { return };
    let url = |seed| server.url(&format!("panics-{seed}"));
    all_seeds(8, Step::ALL, async |seed| survives(&url(seed), seed).await).await;
}

type Seen = BTreeMap<(Step, Fault), u64>;

/// Runs so many seeds, a few at a time; the first that fails is named. More follow, within bounds, where some step has not been
/// in trouble: a busy machine gets through less. A step that never was, but for these, would mean that nothing was tested of it.
async fn all_seeds(count: u64, but: &[Step], case: impl AsyncFn(u64) -> Seen) {
    silence_planned_panics();
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("KVACTOR_FAULT_SEED") {
        named(seed, &case).await;
        return;
    }
    let count = number("KVACTOR_FAULT_SEEDS").unwrap_or(count);
    let (mut seen, mut next) = (Seen::new(), 0);
    while next < count || (next < 4 * count && !untroubled(&seen, but).is_empty()) {
        let seeds = next..next + AT_ONCE;
        next = seeds.end;
        let cases = join_all(seeds.map(|seed| named(seed, &case))).await;
        cases.into_iter().flatten().for_each(|(fault, times)| *seen.entry(fault).or_default() += times);
    }
    assert!(untroubled(&seen, but).is_empty(), "never in trouble: {:?}; {seen:?}", untroubled(&seen, but));
}

fn untroubled(seen: &Seen, but: &[Step]) -> Vec<Step> {
    let troubled: BTreeSet<Step> =
        seen.keys().filter(|(_, fault)| *fault != Fault::None).map(|(step, _)| *step).collect();
    Step::ALL.iter().filter(|step| !troubled.contains(step) && !but.contains(step)).copied().collect()
}

async fn named(seed: u64, case: &impl AsyncFn(u64) -> Seen) -> Seen {
    let failed = Named(seed);
    let seen = case(seed).await;
    std::mem::forget(failed);
    seen
}

/// Names a seed that fails.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        eprintln!("not survived, or not to the end: KVACTOR_FAULT_SEED={}", self.0);
    }
}

/// How many stores of this process may have a thread.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// How many threads of stores there are; none where the system doesn't say.
fn threads() -> usize {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0 };
    let names = tasks.flatten().map(|task| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default());
    names.filter(|name| name.trim_end().starts_with("kvactor")).count()
}

/// One store on a driver in trouble, from its opening to its end.
async fn survives(url: &str, seed: u64) -> Seen {
    let mut random = fastrand::Rng::with_seed(seed);
    let odds = [0.03, 0.1, 0.3][random.usize(0..3)];
    let plan = Plan::seeded(random.u64(..), odds);
    let mut config = Config::from_url(url).unwrap();
    config.options.request_timeout = Duration::from_millis(random.u64(250..900));
    config.options.connect_timeout = Duration::from_millis(250);
    config.options.backoff_min = Duration::from_millis(2);
    config.options.backoff_max = Duration::from_millis(50);
    config.options.lazy = true;
    // Another for the thread that has the file, or for the rival.
    OPEN.fetch_add(2, SeqCst);
    let driver = Wrapped::of(&config, plan.clone()).impatient();
    let store = Store::with_backend(driver.clone(), config.options.clone()).await.unwrap();
    let case =
        Case { seed, url: url.to_owned(), store, request: config.options.request_timeout, worst: Arc::default() };

    let tree = Follower::start(case.clone());
    let rival = (config.backend != BackendKind::Local).then(|| tokio::spawn(rival(url.to_owned())));
    let known = case.storm(&mut random).await;
    if let Some(rival) = rival {
        rival.await.expect("a rival that saw nothing wrong");
    }
    plan.heal();
    case.recovers(&known).await;
    tree.converges(&case.store).await;
    case.locks_are_free().await;
    case.nothing_is_left().await;

    let in_trouble = random.bool();
    if in_trouble {
        plan.resume();
    }
    case.close(tree, in_trouble).await;
    println!("seed {seed}: the slowest call missed its deadline by {} us", case.worst.load(SeqCst));
    drop(case);
    eventually("every session is dropped", async || driver.sessions() == 0).await;
    OPEN.fetch_sub(2, SeqCst);
    eventually("every thread has ended", async || threads() <= OPEN.load(SeqCst)).await;
    plan.seen()
}

/// Another store on the same backend, without trouble, that wants the same locks.
async fn rival(url: String) {
    let (store, end) = (Store::connect(&url).await.unwrap(), Instant::now() + STORM);
    while Instant::now() < end {
        for key in LOCKS {
            let time = Some(Duration::from_millis(200));
            let options = LockOptions { ttl: TTL, timeout: time, ..LockOptions::default() };
            let Ok(guard) = store.lock_with(key, options).await else { continue };
            let guard = hold(&url, key, guard);
            sleep(Duration::from_millis(100)).await;
            let given_back = let_go(&url, key, guard).unlock().await;
            assert!(matches!(given_back, Ok(()) | Err(Error::LockLost { .. })), "{url}: {given_back:?}");
        }
    }
    store.close().await.unwrap();
}

/// Who holds a lock now, whichever store it is of. No two ever do at one moment.
fn hold(url: &str, key: &'static str, guard: LockGuard) -> Arc<LockGuard> {
    let guard = Arc::new(guard);
    let mut held = HELD.lock().unwrap();
    let others = held.entry((url.to_owned(), key)).or_default();
    for other in others.iter() {
        // Held before the other was looked at and after it: held when it was.
        let both = guard.is_held() && other.is_held() && guard.is_held();
        assert!(!both, "{url}: {other:?} and {guard:?} are held");
    }
    others.push(guard.clone());
    guard
}

fn let_go(url: &str, key: &'static str, guard: Arc<LockGuard>) -> LockGuard {
    HELD.lock().unwrap().entry((url.to_owned(), key)).or_default().retain(|other| !Arc::ptr_eq(other, &guard));
    Arc::into_inner(guard).expect("the only one that is left")
}

/// The locks that are held, by store and key.
static HELD: Mutex<Held> = Mutex::new(BTreeMap::new());

type Held = BTreeMap<(String, &'static str), Vec<Arc<LockGuard>>>;

/// Waits for something that has no event to wait for.
async fn eventually(what: &str, reached: impl AsyncFn() -> bool) {
    let begin = Instant::now();
    while !reached().await {
        assert!(begin.elapsed() < RECOVERY, "never: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[derive(Clone)]
struct Case {
    seed: u64,
    url: String,
    store: Store,
    request: Duration,
    /// By how much the slowest call missed its deadline, in microseconds.
    worst: Arc<AtomicU64>,
}

impl Case {
    /// Awaits a call, which must end by its deadline.
    async fn timed<T>(&self, what: &str, limit: Duration, call: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let Ok(answer) = timeout(limit + 10 * MARGIN, call).await else {
            panic!("seed {}: `{what}` hangs", self.seed);
        };
        let late = begun.elapsed().saturating_sub(limit);
        self.worst.fetch_max(late.as_micros() as u64, SeqCst);
        assert!(late < MARGIN, "seed {}: `{what}` missed its deadline of {limit:?} by {late:?}", self.seed);
        answer
    }

    async fn read<T>(&self, what: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        let answer = self.timed(what, self.request, call).await;
        if let Err(error) = &answer {
            let allowed = matches!(
                error,
                Error::KeyNotFound { .. } | Error::Unreachable { .. } | Error::Timeout { .. } | Error::Backend { .. }
            );
            assert!(allowed, "seed {}: `{what}` fails with {error:?}", self.seed);
        }
        answer
    }

    async fn write<T>(&self, what: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        let answer = self.timed(what, self.request, call).await;
        if let Err(error) = &answer {
            let refused =
                matches!(error, Error::KeyNotFound { .. } | Error::KeyExists { .. } | Error::KeyModified { .. });
            let allowed = refused || error.is_retryable() || error.is_indeterminate();
            let allowed = allowed || matches!(error, Error::LockLost { .. });
            assert!(allowed, "seed {}: `{what}` fails with {error:?}", self.seed);
        }
        answer
    }

    /// Callers ask for anything while the driver is in trouble. Returns what they know of their own keys.
    async fn storm(&self, random: &mut fastrand::Rng) -> Vec<Known> {
        let end = Instant::now() + STORM;
        let callers = (0..CALLERS).map(|number| {
            let caller = Caller::new(self.clone(), number, random.fork());
            tokio::spawn(caller.run(end))
        });
        let known = join_all(callers).await.into_iter().map(|caller| caller.expect("a caller that saw nothing wrong"));
        known.collect()
    }

    async fn recovers(&self, known: &[Known]) {
        let (store, seed) = (&self.store, self.seed);
        eventually("a put and a get", async || {
            let put = store.put("after", "the storm").await;
            let got = store.get("after").await;
            put.is_ok() && got.is_ok_and(|pair| pair.value == "the storm")
        })
        .await;
        eventually("the link is up", async || store.status().link == LinkState::Up).await;
        for known in known {
            let found = match store.get(&known.key).await {
                Ok(pair) => Some(pair.value),
                Err(Error::KeyNotFound { .. }) => None,
                Err(error) => panic!("seed {seed}: {error}"),
            };
            known.check(seed, &found);
        }
    }

    /// Whatever became of those who held locks in the storm, others get them now.
    async fn locks_are_free(&self) {
        for key in LOCKS {
            let restarts = self.store.status().restarts;
            let options = LockOptions { ttl: TTL, timeout: Some(RECOVERY), ..LockOptions::default() };
            let guard = self.store.lock_with(key, options).await;
            let guard = guard.unwrap_or_else(|error| panic!("seed {}: `{key}`: {error}", self.seed));
            assert!(guard.is_held());
            self.gives_back(restarts, guard.unlock()).await;
        }
        let restarts = self.store.status().restarts;
        let options = CampaignOptions { ttl: TTL, timeout: Some(RECOVERY), ..CampaignOptions::default() };
        let leader = self.store.campaign_with(ELECTION, "after the storm", options).await;
        let leader = leader.unwrap_or_else(|error| panic!("seed {}: the election: {error}", self.seed));
        self.gives_back(restarts, leader.resign()).await;
    }

    /// A disk or server that just now takes its time is no failure: giving back goes on, or the session is lost, and with a file that
    /// is opened again all locks are. There were so many restarts before.
    async fn gives_back(&self, restarts: u64, giving: impl Future<Output = Result<()>>) {
        let answer = giving.await;
        let is_fine = match &answer {
            Ok(()) | Err(Error::Unreachable { .. }) => true,
            Err(Error::LockLost { .. }) => self.url.starts_with("local:") && self.store.status().restarts > restarts,
            Err(_) => false,
        };
        assert!(is_fine, "seed {}: {answer:?}; {:?}, {restarts} restarts before", self.seed, self.store.status());
    }

    /// All that was asked for in the storm is over. The two watches are those of the follower.
    async fn nothing_is_left(&self) {
        eventually(&format!("seed {}: nothing is left", self.seed), async || {
            let status = self.store.status();
            (status.link, status.locks, status.registrations, status.watches) == (LinkState::Up, 0, 0, 2)
        })
        .await;
    }

    /// The end, with a lock held, a leader, a registration and a key that is kept alive.
    async fn close(&self, follower: Follower, in_trouble: bool) {
        let store = &self.store;
        let options = LockOptions { ttl: TTL, timeout: Some(self.request), ..LockOptions::default() };
        let guard = store.lock_with(LOCKS[0], options).await;
        let registration = store.register("register/last", "x", TTL).await;
        let kept = store.put_with("kept", "x", PutOptions::keep_alive(TTL)).await;
        if !in_trouble {
            assert!(guard.is_ok() && registration.is_ok() && kept.is_ok(), "{guard:?} {registration:?} {kept:?}");
        }
        // Locks, leases and the session have half of the time of a request each.
        self.timed("close", self.request * 3 / 2, store.close()).await.unwrap();
        assert!(guard.is_ok_and(|guard| !guard.is_held()) || in_trouble);
        assert!(matches!(store.get("k").await, Err(Error::Closed)));
        assert!(matches!(store.close().await, Err(Error::Closed)));
        follower.ended().await;
        let status = async || {
            let status = store.status();
            (status.link, status.locks, status.registrations, status.watches) == (LinkState::Closed, 0, 0, 0)
        };
        eventually(&format!("seed {}: nothing is left of a closed store", self.seed), status).await;
    }
}

const LOCKS: [&str; 2] = ["locks/a", "locks/b"];
const ELECTION: &str = "election";

/// What a caller knows of a key that nobody else writes.
struct Known {
    key: String,
    /// What the last write that was acknowledged left.
    acknowledged: Option<Bytes>,
    /// What writes may have left whose answers were lost. They may be on their way for any time.
    possible: BTreeSet<Option<Bytes>>,
}

impl Known {
    fn wrote(&mut self, value: Option<Bytes>, result: Result<(), &Error>) {
        match result {
            Ok(()) => self.acknowledged = value,
            Err(error) if error.is_indeterminate() => drop(self.possible.insert(value)),
            Err(_) => {}
        }
    }

    fn check(&self, seed: u64, found: &Option<Bytes>) {
        let known = *found == self.acknowledged || self.possible.contains(found);
        let Known { key, acknowledged, possible } = self;
        assert!(known, "seed {seed}: {key} is {found:?}, not {acknowledged:?} or one of {possible:?}");
    }
}

/// One of those who ask for anything.
struct Caller {
    case: Case,
    number: usize,
    random: fastrand::Rng,
    known: Known,
    version: Option<Version>,
    written: u64,
    leaders: Vec<Leadership>,
    registrations: Vec<Registration>,
}

impl Caller {
    fn new(case: Case, number: usize, random: fastrand::Rng) -> Self {
        let known = Known { key: format!("own/{number}"), acknowledged: None, possible: BTreeSet::new() };
        let (leaders, registrations) = (Vec::new(), Vec::new());
        Caller { case, number, random, known, version: None, written: 0, leaders, registrations }
    }

    /// A value that no other write has, and that says where it belongs.
    fn value(&mut self, key: &str) -> Bytes {
        self.written += 1;
        Bytes::from(format!("{key}={}.{}", self.number, self.written))
    }

    fn shared(&mut self) -> String {
        format!("shared/{}", self.random.u8(0..4))
    }

    async fn run(mut self, end: Instant) -> Known {
        while Instant::now() < end {
            match self.random.u8(0..19) {
                0 => self.get().await,
                1 | 2 => self.put_own().await,
                3 => self.delete_own().await,
                4 => self.read_own().await,
                5 => self.put_shared().await,
                6 => self.put_with_ttl().await,
                7 => self.delete().await,
                8 => self.list().await,
                9 => self.delete_tree().await,
                10 => self.atomic_put().await,
                11 => self.atomic_delete().await,
                12 => self.txn().await,
                13 => self.watch().await,
                14 => self.watch_tree().await,
                15 => self.lock().await,
                16 => self.campaign().await,
                17 => self.register().await,
                _ => self.observe().await,
            }
            assert!(self.case.store.status().link != LinkState::Closed, "seed {}: the store died", self.case.seed);
        }
        self.known
    }

    fn check_pair(&self, pair: &KvPair) {
        let (seed, key) = (self.case.seed, pair.key.as_str());
        if key.starts_with("shared/") || key.starts_with("own/") || key.starts_with("tree/") {
            assert!(pair.value.starts_with(format!("{key}=").as_bytes()), "seed {seed}: {pair:?}");
        }
        assert!(pair.version.index() > 0, "seed {seed}: {pair:?}");
    }

    async fn get(&mut self) {
        let key = self.shared();
        let case = self.case.clone();
        if let Ok(pair) = case.read("get", case.store.get(&key)).await {
            assert_eq!(pair.key.as_str(), key);
            self.check_pair(&pair);
        }
        let _ = case.read("exists", case.store.exists(&key)).await;
    }

    async fn put_own(&mut self) {
        let case = self.case.clone();
        let key = self.known.key.clone();
        let value = self.value(&key);
        let put = case.write("put", case.store.put(&key, value.clone())).await;
        self.known.wrote(Some(value), put.as_ref().map(drop));
        self.version = put.ok();
    }

    async fn delete_own(&mut self) {
        let case = self.case.clone();
        let deleted = case.write("delete", case.store.delete(&self.known.key)).await;
        match &deleted {
            Err(Error::KeyNotFound { .. }) => self.known.check(case.seed, &None),
            other => self.known.wrote(None, other.as_ref().map(drop)),
        }
    }

    async fn read_own(&mut self) {
        let case = self.case.clone();
        match case.read("get", case.store.get(&self.known.key)).await {
            Ok(pair) => self.known.check(case.seed, &Some(pair.value)),
            Err(Error::KeyNotFound { .. }) => self.known.check(case.seed, &None),
            Err(_) => {}
        }
    }

    async fn put_shared(&mut self) {
        let (case, key) = (self.case.clone(), self.shared());
        let value = self.value(&key);
        let _ = case.write("put", case.store.put(&key, value)).await;
    }

    async fn put_with_ttl(&mut self) {
        let (case, key) = (self.case.clone(), self.shared());
        let value = self.value(&key);
        let options = if self.random.bool() { PutOptions::ttl(TTL) } else { PutOptions::keep_alive(TTL) };
        let _ = case.write("put with a TTL", case.store.put_with(&key, value, options)).await;
    }

    async fn delete(&mut self) {
        let (case, key) = (self.case.clone(), self.shared());
        let _ = case.write("delete", case.store.delete(&key)).await;
    }

    async fn list(&mut self) {
        let case = self.case.clone();
        if let Ok(pairs) = case.read("list", case.store.list("shared")).await {
            assert!(pairs.is_sorted_by(|one, other| one.key < other.key), "{pairs:?}");
            pairs.iter().for_each(|pair| self.check_pair(pair));
        }
        let _ = case.read("list_keys", case.store.list_keys("", ListOptions::default())).await;
    }

    async fn delete_tree(&mut self) {
        let case = self.case.clone();
        let dir = format!("tree/{}", self.number);
        for child in ["a", "b/c"] {
            let key = format!("{dir}/{child}");
            let value = self.value(&key);
            let _ = case.write("put", case.store.put(&key, value)).await;
        }
        if let Ok(count) = case.write("delete_tree", case.store.delete_tree(&dir)).await {
            assert!(count <= 2, "seed {}: {count}", case.seed);
        }
    }

    async fn atomic_put(&mut self) {
        let case = self.case.clone();
        let key = self.known.key.clone();
        let value = self.value(&key);
        let expected = self.version.map_or(Expected::Absent, Expected::Version);
        let put = case.write("atomic_put", case.store.atomic_put(&key, value.clone(), expected)).await;
        if let Ok(pair) = &put {
            assert_eq!(pair.value, value);
        }
        self.known.wrote(Some(value), put.as_ref().map(drop));
        self.version = put.ok().map(|pair| pair.version);
    }

    async fn atomic_delete(&mut self) {
        let Some(version) = self.version.take() else { return };
        let case = self.case.clone();
        let deleted = case.write("atomic_delete", case.store.atomic_delete(&self.known.key, version)).await;
        self.known.wrote(None, deleted.as_ref().map(drop));
    }

    async fn txn(&mut self) {
        let (case, key) = (self.case.clone(), self.shared());
        let value = self.value(&key);
        let checks = vec![Check::new("never", Condition::Absent).unwrap()];
        let operations = vec![Operation::put(&key, value).unwrap(), Operation::delete("shared/gone").unwrap()];
        let _ = case.write("txn", case.store.txn(checks, operations)).await;
    }

    async fn watch(&mut self) {
        let (case, key) = (self.case.clone(), self.shared());
        let Ok(mut events) = case.read("watch", case.store.watch(&key)).await else { return };
        match timeout(Duration::from_millis(20), events.next()).await {
            Ok(Some(WatchEvent::Put(pair))) => self.check_pair(&pair),
            Ok(Some(WatchEvent::Closed) | None) => panic!("seed {}: a watch ended", case.seed),
            _ => {}
        }
    }

    async fn watch_tree(&mut self) {
        let case = self.case.clone();
        let Ok(mut events) = case.read("watch_tree", case.store.watch_tree("shared")).await else { return };
        match timeout(Duration::from_millis(20), events.next()).await {
            Ok(Some(TreeEvent::Snapshot(pairs))) => pairs.iter().for_each(|pair| self.check_pair(pair)),
            Ok(other) => panic!("seed {}: a watch begins with {other:?}", case.seed),
            Err(_) => panic!("seed {}: a watch without its beginning", case.seed),
        }
    }

    async fn lock(&mut self) {
        let case = self.case.clone();
        let key = LOCKS[self.random.usize(0..LOCKS.len())];
        let waits = self.random.bool();
        let time = Duration::from_millis(if waits { self.random.u64(1..500) } else { 0 });
        let value = self.value(key);
        let options = LockOptions { value, ttl: TTL, timeout: Some(time), wait_for_own_task: true };
        let limit = if waits { time } else { case.request };
        let guard = match case.timed("lock", limit, case.store.lock_with(key, options)).await {
            Ok(guard) => guard,
            Err(error) => return self.not_locked("lock", &error),
        };
        let guard = hold(&case.url, key, guard);
        let value = self.value("guarded");
        let _ = case.write("a guarded put", guard.put("guarded", value)).await;
        let value = self.value(key);
        let _ = case.write("publish", guard.publish(value)).await;
        sleep(Duration::from_millis(self.random.u64(0..400))).await;
        let guard = let_go(&case.url, key, guard);
        if self.random.bool() {
            drop(guard);
        } else if let Err(error) = case.timed("unlock", case.request, guard.unlock()).await {
            let allowed = matches!(error, Error::LockLost { .. } | Error::Unreachable { .. });
            assert!(allowed, "seed {}: `unlock` fails with {error:?}", case.seed);
        }
    }

    fn not_locked(&self, what: &str, error: &Error) {
        let allowed = error.is_retryable() || matches!(error, Error::LockHeld { .. });
        assert!(allowed, "seed {}: `{what}` fails with {error:?}", self.case.seed);
    }

    async fn campaign(&mut self) {
        let case = self.case.clone();
        let time = Duration::from_millis(self.random.u64(1..500));
        let stand_again = self.random.bool();
        let options = CampaignOptions { ttl: TTL, timeout: Some(time), stand_again };
        let value = self.value(ELECTION);
        match case.timed("campaign", time, case.store.campaign_with(ELECTION, value, options)).await {
            Ok(leader) => {
                let value = self.value(ELECTION);
                let _ = case.write("publish", leader.publish(value)).await;
                self.leaders.push(leader);
            }
            Err(error) => self.not_locked("campaign", &error),
        }
        let Some(leader) = self.leaders.pop_if(|_| self.random.bool()) else { return };
        if let Err(error) = case.timed("resign", case.request, leader.resign()).await {
            let allowed = matches!(error, Error::LockLost { .. } | Error::Unreachable { .. });
            assert!(allowed, "seed {}: `resign` fails with {error:?}", case.seed);
        }
    }

    async fn register(&mut self) {
        let case = self.case.clone();
        let key = format!("register/{}-{}", self.number, self.random.u8(0..3));
        match case.write("register", case.store.register(&key, "x", TTL)).await {
            Ok(registration) => self.registrations.push(registration),
            Err(_) => return,
        }
        if self.random.bool() {
            return;
        }
        let index = self.random.usize(0..self.registrations.len());
        let registration = self.registrations.swap_remove(index);
        if let Err(error) = case.timed("unregister", case.request, registration.unregister()).await {
            assert!(
                matches!(error, Error::Unreachable { .. }),
                "seed {}: `unregister` fails with {error:?}",
                case.seed
            );
        }
    }

    async fn observe(&mut self) {
        let case = self.case.clone();
        let key = if self.random.bool() { ELECTION } else { LOCKS[0] };
        let Ok(mut leaders) = case.read("observe_leader", case.store.observe_leader(key)).await else { return };
        let _ = timeout(Duration::from_millis(50), leaders.next()).await;
    }
}

/// What a follower was told.
#[derive(Default)]
struct Told {
    /// None before the first event.
    pairs: Option<BTreeMap<Key, KvPair>>,
    /// The newest version of each key, deleted ones included.
    newest: BTreeMap<Key, u64>,
    suspended: bool,
    closed: bool,
    /// What was told against the rules.
    wrong: Vec<String>,
}

impl Told {
    fn take(&mut self, event: TreeEvent) {
        if self.closed {
            self.wrong.push(format!("{event:?} behind the last event"));
        }
        match event {
            TreeEvent::Snapshot(pairs) => {
                if self.pairs.is_some() {
                    self.wrong.push("a second snapshot".into());
                }
                self.pairs = Some(pairs.into_iter().map(|pair| (pair.key.clone(), pair)).collect());
            }
            TreeEvent::Put(pair) => {
                let version = pair.version;
                self.grows(&pair.key, version);
                let before = self.pairs.get_or_insert_default().insert(pair.key.clone(), pair);
                if before.is_some_and(|before| before.version == version) {
                    self.wrong.push("an unchanged pair was told again".into());
                }
            }
            TreeEvent::Delete { key, version } => {
                self.grows(&key, version);
                if self.pairs.get_or_insert_default().remove(&key).is_none() {
                    self.wrong.push(format!("{key} was deleted twice"));
                }
            }
            TreeEvent::Suspended => self.suspended = true,
            TreeEvent::Resumed => self.suspended = false,
            TreeEvent::Closed => self.closed = true,
            other => self.wrong.push(format!("{other:?}")),
        }
    }

    fn grows(&mut self, key: &Key, version: Version) {
        let newest = self.newest.entry(key.clone()).or_default();
        if version.index() < *newest {
            self.wrong.push(format!("{key} went back from {newest} to {}", version.index()));
        }
        *newest = version.index();
    }
}

/// Follows the whole store and one key of it, from before the storm to the end.
struct Follower {
    tree: watch::Receiver<Told>,
    key: watch::Receiver<Option<WatchEvent>>,
}

impl Follower {
    fn start(case: Case) -> Self {
        let (tell_tree, tree) = watch::channel(Told::default());
        let (tell_key, key) = watch::channel(None);
        let (store, seed) = (case.store.clone(), case.seed);
        tokio::spawn(async move {
            let mut events = loop {
                match store.watch_tree("").await {
                    Ok(events) => break events,
                    Err(error) => assert!(!matches!(error, Error::Closed), "seed {seed}: {error}"),
                }
            };
            drop(store);
            while let Some(event) = events.next().await {
                tell_tree.send_modify(|told| told.take(event));
            }
        });
        tokio::spawn(async move {
            let mut events = loop {
                match case.store.watch("shared/0").await {
                    Ok(events) => break events,
                    Err(error) => assert!(!matches!(error, Error::Closed), "seed {seed}: {error}"),
                }
            };
            drop(case);
            while let Some(event) = events.next().await {
                if !matches!(event, WatchEvent::Suspended | WatchEvent::Resumed) {
                    tell_key.send_replace(Some(event));
                }
            }
        });
        Follower { tree, key }
    }

    /// What was told becomes what is there.
    async fn converges(&self, store: &Store) {
        eventually("the watch of the tree converges", async || {
            let listed = store.list("").await.unwrap_or_default();
            let told = self.tree.borrow();
            assert_eq!(told.wrong, [""; 0]);
            let listed: BTreeMap<_, _> = listed.into_iter().map(|pair| (pair.key.clone(), pair)).collect();
            told.pairs.as_ref() == Some(&listed) && !told.suspended
        })
        .await;
        eventually("the watch of a key converges", async || {
            let found = store.get("shared/0").await;
            match (&*self.key.borrow(), found) {
                (Some(WatchEvent::Put(told)), Ok(found)) => *told == found,
                (Some(WatchEvent::Delete { .. }), Err(Error::KeyNotFound { .. })) => true,
                _ => false,
            }
        })
        .await;
    }

    /// The last event comes.
    async fn ended(mut self) {
        let told = self.tree.wait_for(|told| told.closed);
        let told = timeout(RECOVERY, told).await.expect("the end in time").expect("the last event");
        assert_eq!(told.wrong, [""; 0]);
        let last = |event: &Option<WatchEvent>| matches!(event, Some(WatchEvent::Closed));
        timeout(RECOVERY, self.key.wait_for(last)).await.expect("the end in time").expect("the last event");
    }
}
