//! [`Client`]: random calls on few keys, each one recorded.

use super::history::{History, Record};
use super::model::{Call, Check, KEYS, Outcome, Value};
use crate::common::wrapped::PLANNED;
use fastrand::Rng;
use kvactor::{Condition, Error, Expected, Operation, OperationResult, Store, TxnOutcome, Version};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How many groups of keys are in use at a time.
const GROUPS: usize = 3;
/// After so many calls others come into use: the checker's work grows faster than a history's length.
const CALLS: usize = 240;
/// How much longer than its deadline a call may take, on a machine with other things to do.
pub const LATE: Duration = Duration::from_secs(2);

/// What the clients of one run share.
pub struct Shared {
    pub history: History,
    calls: AtomicUsize,
    /// Which value a version stands for.
    versions: Mutex<HashMap<(String, Version), Value>>,
    faults: Mutex<Vec<String>>,
}

impl Shared {
    pub fn new() -> Arc<Self> {
        let (calls, versions, faults) = (AtomicUsize::new(0), Mutex::default(), Mutex::default());
        Arc::new(Shared { history: History::new(), calls, versions, faults })
    }

    fn group(&self, rng: &mut Rng) -> usize {
        self.calls.fetch_add(1, Ordering::Relaxed) / CALLS * GROUPS + rng.usize(..GROUPS)
    }

    /// All groups that may have been in use.
    fn groups(&self) -> usize {
        (self.calls.load(Ordering::Relaxed) / CALLS + 1) * GROUPS
    }

    /// A version belongs to one value for ever.
    fn note_version(&self, key: String, version: Version, value: Value) {
        let mut versions = self.versions.lock().unwrap();
        let known = *versions.entry((key, version)).or_insert(value);
        if known != value {
            self.fault(format!("the version {version:?} is of {known} and of {value}"));
        }
    }

    /// Something that must not be.
    pub fn fault(&self, what: String) {
        self.faults.lock().unwrap().push(what);
    }

    /// What must not be, and was.
    pub fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap().clone()
    }
}

/// One caller, which has one call on its way at a time.
pub struct Client {
    number: usize,
    store: Store,
    deadline: Duration,
    rng: Rng,
    shared: Arc<Shared>,
    /// What it heard last of each key that is there.
    known: HashMap<String, (Value, Version)>,
}

/// A write as it is about to be sent, and how the model sees it.
struct Attempt {
    checks: Vec<(usize, Check)>,
    sets: Vec<(usize, Option<Value>)>,
}

fn name(group: usize, key: usize) -> String {
    format!("calls/{group}/{key}")
}

fn value(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).expect("a value of ours")
}

impl Client {
    pub fn new(number: usize, store: Store, deadline: Duration, rng: Rng, shared: Arc<Shared>) -> Self {
        let store = store.with_request_timeout(deadline);
        Client { number, store, deadline, rng, shared, known: HashMap::new() }
    }

    /// Calls until told to stop.
    pub async fn run(&mut self, go_on: impl Fn() -> bool) {
        while go_on() {
            self.call().await;
        }
    }

    /// Reads everything that was ever written, so that a loss shows. Nothing may fail any more.
    pub async fn read_all(&mut self) {
        for group in 0..self.shared.groups() {
            for key in 0..KEYS {
                if !self.read(group, key).await {
                    return self.shared.fault(format!("{} can't be read in the end", name(group, key)));
                }
            }
        }
    }

    async fn call(&mut self) {
        let group = self.shared.group(&mut self.rng);
        let key = self.rng.usize(..KEYS);
        match self.rng.u8(..100) {
            0..40 => drop(self.read(group, key).await),
            40..58 => self.put(group, key).await,
            58..63 => self.delete(group, key).await,
            63..80 => self.atomic_put(group, key).await,
            80..85 => self.atomic_delete(group, key).await,
            _ => self.txn(group).await,
        }
    }

    async fn read(&mut self, group: usize, key: usize) -> bool {
        let name = name(group, key);
        let called = self.shared.history.now();
        let answer = self.store.get(name.as_str()).await;
        let answered = self.in_time(called);
        let found = match answer {
            Ok(pair) => {
                let value = value(&pair.value);
                self.know(name, Some((value, pair.version)));
                Some(value)
            }
            Err(Error::KeyNotFound { .. }) => {
                self.know(name, None);
                None
            }
            Err(error) => {
                self.expected(&error);
                return false;
            }
        };
        self.record(group, called, Some(answered), Call::Read { key, found });
        true
    }

    async fn put(&mut self, group: usize, key: usize) {
        let (value, name) = (self.shared.history.value(), name(group, key));
        let attempt = Attempt { checks: vec![], sets: vec![(key, Some(value))] };
        let called = self.shared.history.now();
        let answer = self.store.put(name, value.to_string()).await;
        self.written(group, called, attempt, answer.map(|version| vec![version]));
    }

    async fn delete(&mut self, group: usize, key: usize) {
        let attempt = Attempt { checks: vec![(key, Check::Exists)], sets: vec![(key, None)] };
        let called = self.shared.history.now();
        let answer = self.store.delete(name(group, key)).await;
        self.written(group, called, attempt, answer.map(|()| vec![]));
    }

    async fn atomic_put(&mut self, group: usize, key: usize) {
        let (value, name) = (self.shared.history.value(), name(group, key));
        let known = self.known.get(&name).copied();
        let expected = known.map_or(Expected::Absent, |(_, version)| Expected::Version(version));
        let check = (key, Check::Is(known.map(|(value, _)| value)));
        let attempt = Attempt { checks: vec![check], sets: vec![(key, Some(value))] };
        let called = self.shared.history.now();
        let answer = self.store.atomic_put(name, value.to_string(), expected).await;
        self.written(group, called, attempt, answer.map(|pair| vec![pair.version]));
    }

    async fn atomic_delete(&mut self, group: usize, key: usize) {
        let name = name(group, key);
        let Some((value, version)) = self.known.get(&name).copied() else { return };
        let attempt = Attempt { checks: vec![(key, Check::Is(Some(value)))], sets: vec![(key, None)] };
        let called = self.shared.history.now();
        let answer = self.store.atomic_delete(name, version).await;
        self.written(group, called, attempt, answer.map(|()| vec![]));
    }

    /// One key must be as it is known, and all are written.
    async fn txn(&mut self, group: usize) {
        let checked = self.rng.usize(..KEYS);
        let known = self.known.get(&name(group, checked)).copied();
        let condition = known.map_or(Condition::Absent, |(_, version)| Condition::Version(version));
        let sets: Vec<_> =
            (0..KEYS).map(|key| (key, self.rng.u8(..4).gt(&0).then(|| self.shared.history.value()))).collect();
        let operations = sets.iter().map(|(key, value)| match value {
            Some(value) => Operation::put(name(group, *key), value.to_string()),
            None => Operation::delete(name(group, *key)),
        });
        let operations = operations.collect::<Result<Vec<_>, _>>().expect("keys of ours");
        let check = kvactor::Check::new(name(group, checked), condition).expect("a key of ours");
        let attempt = Attempt { checks: vec![(checked, Check::Is(known.map(|(value, _)| value)))], sets };
        let called = self.shared.history.now();
        let answer = match self.store.txn(vec![check], operations).await {
            Ok(TxnOutcome::Committed(results)) => Ok(results.into_iter().filter_map(version).collect()),
            Ok(TxnOutcome::CheckFailed { .. }) => Err(Error::key_modified(name(group, checked))),
            Err(error) => Err(error),
        };
        self.written(group, called, attempt, answer);
    }

    /// Takes the answer to a write: the versions of what was put, in the order of the attempt.
    fn written(&mut self, group: usize, called: Duration, attempt: Attempt, answer: Result<Vec<Version>, Error>) {
        let answered = self.in_time(called);
        let Attempt { checks, sets } = attempt;
        let outcome = match answer {
            Ok(versions) => {
                let mut versions = versions.into_iter();
                for (key, value) in &sets {
                    let now = value.map(|value| (value, versions.next().expect("a version for each value")));
                    self.know(name(group, *key), now);
                }
                Outcome::Made
            }
            Err(Error::KeyNotFound { .. } | Error::KeyExists { .. } | Error::KeyModified { .. }) => {
                // What it knew is wrong; the next ones of this client would all be refused.
                sets.iter().for_each(|(key, _)| self.know(name(group, *key), None));
                Outcome::Refused
            }
            Err(error) if error.is_indeterminate() => Outcome::Unknown,
            // What certainly had no effect is no part of the history: if it had one somebody would read what nobody wrote.
            Err(error) => return self.expected(&error),
        };
        let answered = (outcome != Outcome::Unknown).then_some(answered);
        self.record(group, called, answered, Call::Write { checks, sets, outcome });
    }

    fn know(&mut self, name: String, now: Option<(Value, Version)>) {
        match now {
            Some((value, version)) => {
                self.shared.note_version(name.clone(), version, value);
                self.known.insert(name, (value, version));
            }
            None => {
                self.known.remove(&name);
            }
        }
    }

    fn record(&self, group: usize, called: Duration, answered: Option<Duration>, call: Call) {
        self.shared.history.add(group, Record { client: self.number, called, answered, call });
    }

    fn in_time(&self, called: Duration) -> Duration {
        let now = self.shared.history.now();
        if now - called > self.deadline + LATE {
            self.shared.fault(format!("a call took {:?}, its deadline was {:?}", now - called, self.deadline));
        }
        now
    }

    /// Under faults a call may fail because nobody answers, or because its driver panics, and for no other reason.
    fn expected(&self, error: &Error) {
        if !error.is_retryable() && !is_planned_panic(error) {
            self.shared.fault(format!("a call failed with {error:?}"));
        }
    }
}

/// What the caller of a read hears of a panic; to that of a write it is a lost answer.
pub fn is_planned_panic(error: &Error) -> bool {
    matches!(error, Error::Backend { reason, .. } if reason.contains(PLANNED))
}

fn version(result: OperationResult) -> Option<Version> {
    match result {
        OperationResult::Put(version) => Some(version),
        OperationResult::Deleted => None,
    }
}
