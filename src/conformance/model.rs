//! Random sequences of calls, compared step by step with the simplest store there is: a sorted map.

use super::fixture::{Fixture, Outcome};
use super::support::key;
use crate::error::{Error, Result};
use crate::key::{Dir, Key};
use crate::store::Store;
use crate::types::{
    Check, Condition, Depth, Expected, KvPair, ListOptions, Operation, OperationResult, Page, TxnOutcome, Version,
};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::Handle;

/// Keys above, beneath and beside each other, with names that sort around the slash.
const KEYS: &[&str] = &["a", "a/b", "a/b/c", "a/b/d", "a b", "a-b/c", "a0", "ab/c", "b", "b/c"];
const DIRS: &[&str] = &["", "a", "a/b", "a-b", "b", "b/c", "none"];
const VALUES: &[&str] = &["", "", "1", "2"];

const STEPS: usize = 24;
const SEQUENCES: u32 = 32;

/// Which version a call expects.
#[derive(Clone, Debug)]
enum Choice {
    /// The one that this key has; where it has none, one that some key once had.
    Current(&'static str),
    /// The one that the write so many writes ago had, of whichever key.
    Past(usize),
}

#[derive(Clone, Debug)]
enum Wanted {
    Exists,
    Absent,
    Version(Choice),
}

#[derive(Clone, Debug)]
struct Listing {
    depth: Depth,
    limit: Option<usize>,
    after: Option<&'static str>,
}

/// One call.
#[derive(Clone, Debug)]
enum Step {
    Get(&'static str),
    Exists(&'static str),
    Put(&'static str, &'static str),
    Delete(&'static str),
    Create(&'static str, &'static str),
    Replace(&'static str, &'static str, Choice),
    AtomicDelete(&'static str, Choice),
    List(&'static str, Listing),
    ListKeys(&'static str, Listing),
    DeleteTree(&'static str),
    Txn(Vec<(&'static str, Wanted)>, Vec<(&'static str, Option<&'static str>)>),
}

fn choice(path: &'static str) -> impl Strategy<Value = Choice> {
    prop_oneof![3 => Just(Choice::Current(path)), 1 => (0..8_usize).prop_map(Choice::Past)]
}

fn wanted() -> impl Strategy<Value = (&'static str, Wanted)> {
    select(KEYS).prop_flat_map(|path| {
        let wanted = prop_oneof![
            2 => Just(Wanted::Exists),
            2 => Just(Wanted::Absent),
            3 => choice(path).prop_map(Wanted::Version),
        ];
        (Just(path), wanted)
    })
}

fn listing() -> impl Strategy<Value = Listing> {
    let depth = select(vec![Depth::Recursive, Depth::Children]);
    let limit = proptest::option::weighted(0.4, 1..4_usize);
    let after = proptest::option::weighted(0.3, select(KEYS));
    (depth, limit, after).prop_map(|(depth, limit, after)| Listing { depth, limit, after })
}

fn step() -> impl Strategy<Value = Step> {
    let path = || select(KEYS);
    let dir = || select(DIRS);
    let value = || select(VALUES);
    let versioned = || path().prop_flat_map(|path| (Just(path), choice(path)));
    let operation = (path(), proptest::option::weighted(0.7, value()));
    prop_oneof![
        2 => path().prop_map(Step::Get),
        1 => path().prop_map(Step::Exists),
        6 => (path(), value()).prop_map(|(path, value)| Step::Put(path, value)),
        3 => path().prop_map(Step::Delete),
        2 => (path(), value()).prop_map(|(path, value)| Step::Create(path, value)),
        2 => (versioned(), value()).prop_map(|((path, choice), value)| Step::Replace(path, value, choice)),
        2 => versioned().prop_map(|(path, choice)| Step::AtomicDelete(path, choice)),
        2 => (dir(), listing()).prop_map(|(dir, listing)| Step::List(dir, listing)),
        1 => (dir(), listing()).prop_map(|(dir, listing)| Step::ListKeys(dir, listing)),
        1 => dir().prop_map(Step::DeleteTree),
        3 => (vec(wanted(), 0..3), vec(operation, 0..4)).prop_map(|(checks, puts)| Step::Txn(checks, puts)),
    ]
}

/// What a call did, with the versions that only the store can know taken out.
#[derive(Debug, PartialEq)]
enum Effect {
    Nothing,
    Pair(KvPair),
    Existence(bool),
    Pairs(Page<KvPair>),
    Keys(Page<Key>),
    Removed(u64),
    Committed,
    CheckFailed(usize),
    Refused(&'static str),
}

/// The kind of an error that the model knows of; any other one is a failure in itself.
fn refusal(error: &Error) -> Option<&'static str> {
    Some(match error {
        Error::KeyNotFound { .. } => "KeyNotFound",
        Error::KeyExists { .. } => "KeyExists",
        Error::KeyModified { .. } => "KeyModified",
        Error::Unsupported { .. } => "Unsupported",
        Error::InvalidConfig { .. } => "InvalidConfig",
        _ => return None,
    })
}

/// The sorted map. Versions are opaque to it: it takes them from the store's answers, and knows only when they are
/// equal.
struct Model {
    root: Dir,
    pairs: BTreeMap<Key, KvPair>,
    /// Versions of all writes, the latest last.
    history: Vec<Version>,
}

impl Model {
    fn key(&self, path: &str) -> Key {
        key(&format!("{}/{path}", self.root))
    }

    fn dir(&self, path: &str) -> Dir {
        Dir::parse(&format!("{}/{path}", self.root)).unwrap()
    }

    fn version(&self, choice: &Choice) -> Option<Version> {
        let past = |back: usize| self.history.iter().rev().cycle().nth(back).copied();
        match choice {
            Choice::Current(path) => self.pairs.get(&self.key(path)).map(|pair| pair.version).or_else(|| past(0)),
            Choice::Past(back) => past(*back),
        }
    }

    fn write(&mut self, key: Key, value: &'static str, version: Version) {
        self.history.push(version);
        self.pairs.insert(key.clone(), KvPair { key, value: Bytes::from_static(value.as_bytes()), version });
    }

    fn expect_version(&self, key: &Key, version: Version) -> Effect {
        match self.pairs.get(key) {
            None => Effect::Refused("KeyNotFound"),
            Some(pair) if pair.version != version => Effect::Refused("KeyModified"),
            Some(_) => Effect::Nothing,
        }
    }

    fn beneath<'m>(&'m self, dir: &'m Dir) -> impl Iterator<Item = &'m KvPair> {
        self.pairs.values().filter(move |pair| dir.relative(&pair.key).is_some())
    }

    fn is_missing(&self, dir: &Dir) -> bool {
        self.beneath(dir).next().is_none() && !dir.as_key().is_some_and(|key| self.pairs.contains_key(&key))
    }

    fn list(&self, dir: &Dir, options: &ListOptions) -> std::result::Result<Page<KvPair>, Effect> {
        if options.after.as_ref().is_some_and(|after| dir.relative(after).is_none()) {
            return Err(Effect::Refused("InvalidConfig"));
        }
        if options.after.is_none() && self.is_missing(dir) {
            return Err(Effect::Refused("KeyNotFound"));
        }
        let direct = |pair: &&KvPair| options.depth == Depth::Recursive || pair.key.parent() == *dir;
        let behind = |pair: &&KvPair| options.after.as_ref().is_none_or(|after| pair.key > *after);
        let items: Vec<_> = self.beneath(dir).filter(direct).filter(behind).cloned().collect();
        Ok(Page::cut(items, options.limit, false, |pair| &pair.key))
    }

    fn holds(&self, check: &Check) -> bool {
        let pair = self.pairs.get(&check.key);
        match check.condition {
            Condition::Exists => pair.is_some(),
            Condition::Absent => pair.is_none(),
            Condition::Version(version) => pair.is_some_and(|pair| pair.version == version),
        }
    }
}

/// A store and the model that it must agree with.
struct Comparison<'s> {
    store: &'s Store,
    model: Model,
}

impl Comparison<'_> {
    async fn run(&mut self, step: &Step) -> std::result::Result<(), TestCaseError> {
        let (expected, actual) = match step {
            Step::Get(path) => self.get(path).await,
            Step::Exists(path) => self.exists(path).await,
            Step::Put(path, value) => self.put(path, value).await,
            Step::Delete(path) => self.delete(path).await,
            Step::Create(path, value) => self.create(path, value).await,
            Step::Replace(path, value, choice) => self.replace(path, value, choice).await,
            Step::AtomicDelete(path, choice) => self.atomic_delete(path, choice).await,
            Step::List(dir, listing) => self.list(dir, listing).await,
            Step::ListKeys(dir, listing) => self.list_keys(dir, listing).await,
            Step::DeleteTree(dir) => self.delete_tree(dir).await,
            Step::Txn(checks, operations) => self.txn(checks, operations).await,
        };
        match actual.or_else(|error| refusal(&error).map(Effect::Refused).ok_or(error)) {
            Ok(actual) if actual == expected => Ok(()),
            Ok(actual) => {
                Err(TestCaseError::fail(format!("{step:?}: the store says {actual:?}, expected {expected:?}")))
            }
            Err(error) => Err(TestCaseError::fail(format!("{step:?}: {error:?}, expected {expected:?}"))),
        }
    }

    async fn get(&mut self, path: &str) -> (Effect, Result<Effect>) {
        let key = self.model.key(path);
        let expected = self.model.pairs.get(&key).cloned().map_or(Effect::Refused("KeyNotFound"), Effect::Pair);
        (expected, self.store.get(&key).await.map(Effect::Pair))
    }

    async fn exists(&mut self, path: &str) -> (Effect, Result<Effect>) {
        let key = self.model.key(path);
        let expected = Effect::Existence(self.model.pairs.contains_key(&key));
        (expected, self.store.exists(&key).await.map(Effect::Existence))
    }

    async fn put(&mut self, path: &str, value: &'static str) -> (Effect, Result<Effect>) {
        let key = self.model.key(path);
        let written = self.store.put(&key, value).await;
        (Effect::Nothing, written.map(|version| self.model.write(key, value, version)).map(|()| Effect::Nothing))
    }

    async fn delete(&mut self, path: &str) -> (Effect, Result<Effect>) {
        let key = self.model.key(path);
        let removed = self.model.pairs.remove(&key);
        let expected = if removed.is_some() { Effect::Nothing } else { Effect::Refused("KeyNotFound") };
        (expected, self.store.delete(&key).await.map(|()| Effect::Nothing))
    }

    async fn create(&mut self, path: &str, value: &'static str) -> (Effect, Result<Effect>) {
        let key = self.model.key(path);
        let there = self.model.pairs.contains_key(&key);
        let expected = if there { Effect::Refused("KeyExists") } else { Effect::Nothing };
        let written = self.store.atomic_put(&key, value, Expected::Absent).await;
        (expected, written.map(|pair| self.written(key, value, pair)))
    }

    async fn replace(&mut self, path: &str, value: &'static str, choice: &Choice) -> (Effect, Result<Effect>) {
        let key = self.model.key(path);
        let Some(version) = self.model.version(choice) else { return (Effect::Nothing, Ok(Effect::Nothing)) };
        let expected = self.model.expect_version(&key, version);
        let written = self.store.atomic_put(&key, value, version).await;
        (expected, written.map(|pair| self.written(key, value, pair)))
    }

    /// The returned pair must be what was given, in a version that only the store knows.
    fn written(&mut self, key: Key, value: &'static str, pair: KvPair) -> Effect {
        if pair.key != key || pair.value != value {
            return Effect::Pair(pair);
        }
        self.model.write(key, value, pair.version);
        Effect::Nothing
    }

    async fn atomic_delete(&mut self, path: &str, choice: &Choice) -> (Effect, Result<Effect>) {
        let key = self.model.key(path);
        let Some(version) = self.model.version(choice) else { return (Effect::Nothing, Ok(Effect::Nothing)) };
        let expected = self.model.expect_version(&key, version);
        if expected == Effect::Nothing {
            self.model.pairs.remove(&key);
        }
        (expected, self.store.atomic_delete(&key, version).await.map(|()| Effect::Nothing))
    }

    fn options(&self, listing: &Listing) -> ListOptions {
        let after = listing.after.map(|path| self.model.key(path));
        ListOptions { depth: listing.depth, limit: listing.limit, after, ..ListOptions::default() }
    }

    async fn list(&mut self, dir: &str, listing: &Listing) -> (Effect, Result<Effect>) {
        let (dir, options) = (self.model.dir(dir), self.options(listing));
        let expected = self.model.list(&dir, &options).map_or_else(|refused| refused, Effect::Pairs);
        (expected, self.store.list_with(&dir, options).await.map(Effect::Pairs))
    }

    async fn list_keys(&mut self, dir: &str, listing: &Listing) -> (Effect, Result<Effect>) {
        let (dir, options) = (self.model.dir(dir), self.options(listing));
        let keys = |page: Page<KvPair>| {
            let items = page.items.into_iter().map(|pair| pair.key).collect();
            Effect::Keys(Page { items, next: page.next })
        };
        let expected = self.model.list(&dir, &options).map_or_else(|refused| refused, keys);
        (expected, self.store.list_keys(&dir, options).await.map(Effect::Keys))
    }

    async fn delete_tree(&mut self, dir: &str) -> (Effect, Result<Effect>) {
        let dir = self.model.dir(dir);
        let gone: Vec<_> = self.model.beneath(&dir).map(|pair| pair.key.clone()).collect();
        let missing = self.model.is_missing(&dir);
        let expected = if missing { Effect::Refused("KeyNotFound") } else { Effect::Removed(gone.len() as u64) };
        self.model.pairs.retain(|key, _| !gone.contains(key));
        (expected, self.store.delete_tree(&dir).await.map(Effect::Removed))
    }

    async fn txn(
        &mut self,
        checks: &[(&'static str, Wanted)],
        operations: &[(&'static str, Option<&'static str>)],
    ) -> (Effect, Result<Effect>) {
        let checks: Vec<_> = checks.iter().filter_map(|(path, wanted)| self.check(path, wanted)).collect();
        let entries = operations.iter().map(|(path, value)| self.operation(path, *value)).collect();
        let keys: HashSet<_> = operations.iter().map(|(path, _)| path).collect();
        let failed = checks.iter().position(|check| !self.model.holds(check));
        let expected = match failed {
            _ if keys.len() < operations.len() => Effect::Refused("Unsupported"),
            Some(index) => Effect::CheckFailed(index),
            None => Effect::Committed,
        };
        let outcome = self.store.txn(checks, entries).await;
        (expected, outcome.map(|outcome| self.apply(operations, outcome)))
    }

    fn check(&self, path: &str, wanted: &Wanted) -> Option<Check> {
        let condition = match wanted {
            Wanted::Exists => Condition::Exists,
            Wanted::Absent => Condition::Absent,
            Wanted::Version(choice) => Condition::Version(self.model.version(choice)?),
        };
        Some(Check { key: self.model.key(path), condition })
    }

    fn operation(&self, path: &str, value: Option<&'static str>) -> Operation {
        let key = self.model.key(path);
        match value {
            Some(value) => Operation::Put { key, value: Bytes::from_static(value.as_bytes()) },
            None => Operation::Delete { key },
        }
    }

    fn apply(&mut self, operations: &[(&'static str, Option<&'static str>)], outcome: TxnOutcome) -> Effect {
        let results = match outcome {
            TxnOutcome::Committed(results) => results,
            TxnOutcome::CheckFailed { index } => return Effect::CheckFailed(index),
        };
        assert_eq!(results.len(), operations.len(), "one result for each operation");
        for ((path, value), result) in operations.iter().zip(results) {
            let key = self.model.key(path);
            match (value, result) {
                (Some(value), OperationResult::Put(version)) => self.model.write(key, value, version),
                (None, OperationResult::Deleted) => drop(self.model.pairs.remove(&key)),
                mixed => panic!("operation and result don't belong together: {mixed:?}"),
            }
        }
        Effect::Committed
    }

    /// Whatever the steps answered, the store must now hold what the model holds.
    async fn same_state(&self) -> std::result::Result<(), TestCaseError> {
        let actual = match self.store.list(&self.model.root).await {
            Err(Error::KeyNotFound { .. }) => Vec::new(),
            other => other.map_err(|error| TestCaseError::fail(format!("the final list: {error:?}")))?,
        };
        prop_assert_eq!(actual, self.model.pairs.values().cloned().collect::<Vec<_>>(), "the final state");
        Ok(())
    }
}

async fn compare(store: &Store, root: Dir, steps: Vec<Step>) -> std::result::Result<(), TestCaseError> {
    let mut comparison = Comparison { store, model: Model { root, pairs: BTreeMap::new(), history: Vec::new() } };
    for step in &steps {
        comparison.run(step).await?;
    }
    comparison.same_state().await
}

/// The same sequences in each run, unless the environment asks for others.
fn runner() -> TestRunner {
    let from_environment = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let sequences = from_environment("KVACTOR_CONFORMANCE_SEQUENCES");
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&from_environment("KVACTOR_CONFORMANCE_SEED").unwrap_or_default().to_le_bytes());
    let config = Config {
        cases: sequences.map_or(SEQUENCES, |count| count.try_into().unwrap_or(u32::MAX)),
        failure_persistence: None,
        max_shrink_iters: 2048,
        max_shrink_time: 20_000,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

/// Random sequences of all calls have the results and effects that they have on a sorted map.
pub async fn random_sequences_follow_the_model(fixture: &Fixture) -> Outcome {
    let store = fixture.store().clone();
    let runtime = Handle::current();
    let sequences = AtomicUsize::new(0);
    let compare_next = move |steps| {
        // Each sequence has a directory of its own, those of shrinking too.
        let root = Dir::parse(&format!("sequence {}", sequences.fetch_add(1, Ordering::Relaxed))).unwrap();
        runtime.block_on(compare(&store, root, steps))
    };
    let all = tokio::task::spawn_blocking(move || runner().run(&vec(step(), 1..=STEPS), compare_next));
    match all.await.unwrap() {
        Ok(()) => Ok(()),
        Err(TestError::Fail(reason, steps)) => panic!("{reason}\nafter the least steps that show it: {steps:#?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}
