//! Many callers at once. Each case runs its callers as tasks, over two connections where the backend can have them.

use super::fixture::{Fixture, Outcome};
use super::support::{Moment, all_keys, assert_error, key, keys_of, put_all, value_of};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::types::{Check, Condition, Expected, KvPair, Operation, OperationResult, PutOptions, TxnOutcome};
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::time::Duration;

/// A TTL that every backend keeps.
const TTL: Duration = Duration::from_secs(2);

/// The two stores that callers use in turn.
struct Callers([Store; 2]);

impl Callers {
    async fn on(fixture: &Fixture) -> Result<Self> {
        Ok(Callers([fixture.store().clone(), fixture.another_or_clone().await?]))
    }

    /// Runs `caller` as `count` tasks at once and waits for their results.
    async fn run<T, F>(&self, count: usize, caller: impl Fn(Store, usize) -> F) -> Vec<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let tasks: Vec<_> = (0..count).map(|number| tokio::spawn(caller(self.0[number % 2].clone(), number))).collect();
        join_all(tasks).await.into_iter().map(|result| result.unwrap()).collect()
    }

    /// Runs `caller` as `count` tasks at once, each of which must succeed.
    async fn try_run<T, F>(&self, count: usize, caller: impl Fn(Store, usize) -> F) -> Result<Vec<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.run(count, caller).await.into_iter().collect()
    }
}

/// 64 callers raise one counter by `atomic_put`, each until it succeeds once: no step is lost and none is counted
/// twice.
pub async fn sixty_four_callers_count_together(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    store.put("counter", "0").await?;
    let callers = Callers::on(fixture).await?;
    let written = callers.try_run(64, |store, _| async move { increment(&store).await }).await?;
    let steps: BTreeSet<_> = written.iter().map(number_in).collect();
    assert_eq!(steps, (1..=64).collect::<BTreeSet<_>>(), "each step was returned to one caller");
    let mut by_version = written;
    by_version.sort_by_key(|pair| pair.version.index());
    assert!(by_version.is_sorted_by(|a, b| a.version.index() < b.version.index() && number_in(a) < number_in(b)));
    assert_eq!(store.get("counter").await?, by_version[63]);
    Ok(())
}

async fn increment(store: &Store) -> Result<KvPair> {
    loop {
        let before = store.get("counter").await?;
        let value = (number_in(&before) + 1).to_string();
        match store.atomic_put("counter", value, &before).await {
            Err(Error::KeyModified { .. }) => {}
            done => return done,
        }
    }
}

fn number_in(pair: &KvPair) -> u64 {
    std::str::from_utf8(&pair.value).unwrap().parse().unwrap()
}

/// Of racing `Absent` writes one wins and the others find `KeyExists`.
pub async fn of_racing_creates_one_wins(fixture: &Fixture) -> Outcome {
    let callers = Callers::on(fixture).await?;
    for path in ["a", "new/directory/a", "b"] {
        let create = |store: Store, number: usize| async move {
            store.atomic_put(path, number.to_string(), Expected::Absent).await
        };
        let (won, lost): (Vec<_>, Vec<_>) = callers.run(16, create).await.into_iter().partition(Result::is_ok);
        assert!(lost.iter().all(|lost| matches!(lost, Err(Error::KeyExists { .. }))), "{lost:?}");
        assert_eq!(won.len(), 1, "{path}");
        assert_eq!(fixture.store().get(path).await?, won.into_iter().next().unwrap()?);
    }
    Ok(())
}

/// Two racing deletes give one success and one `KeyNotFound`.
pub async fn of_two_racing_deletes_one_succeeds(fixture: &Fixture) -> Outcome {
    let callers = Callers::on(fixture).await?;
    put_all(fixture.store(), &["above/a", "above"]).await?;
    for round in 0..20 {
        let path = if round % 2 == 0 { "a" } else { "above" };
        fixture.store().put(path, "1").await?;
        let outcomes = callers.run(2, |store, _| async move { store.delete(path).await }).await;
        assert_one_found_it(&outcomes);
    }
    assert_eq!(all_keys(fixture.store()).await?, ["above/a"]);
    Ok(())
}

/// Of sixteen racing deletes one succeeds.
pub async fn of_many_racing_deletes_one_succeeds(fixture: &Fixture) -> Outcome {
    let callers = Callers::on(fixture).await?;
    for path in ["a", "d/a"] {
        fixture.store().put(path, "1").await?;
        let outcomes = callers.run(16, |store, _| async move { store.delete(path).await }).await;
        assert_one_found_it(&outcomes);
    }
    Ok(())
}

/// Of racing `atomic_delete`s one succeeds.
pub async fn of_racing_atomic_deletes_one_succeeds(fixture: &Fixture) -> Outcome {
    let callers = Callers::on(fixture).await?;
    for path in ["a", "d/a"] {
        let version = fixture.store().put(path, "1").await?;
        let outcomes = callers.run(16, |store, _| async move { store.atomic_delete(path, version).await }).await;
        assert_one_found_it(&outcomes);
    }
    Ok(())
}

fn assert_one_found_it(outcomes: &[Result<()>]) {
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    let missed = outcomes.iter().filter(|outcome| matches!(outcome, Err(Error::KeyNotFound { .. })));
    assert_eq!(missed.count(), outcomes.len() - 1, "{outcomes:?}");
}

/// Of racing transactions for the same keys one is applied, whole.
pub async fn of_racing_txns_one_wins(fixture: &Fixture) -> Outcome {
    let take_all = |store: Store, number: usize| async move {
        let (value, turned) = (number.to_string(), number.is_multiple_of(2));
        let mut paths = ["a", "new/directory/b", "c"];
        if turned {
            paths.reverse();
        }
        let checks = paths.map(|path| Check::new(path, Condition::Absent).unwrap());
        let operations = paths.map(|path| Operation::put(path, value.clone()).unwrap());
        store.txn(checks.into(), operations.into()).await
    };
    let outcomes = Callers::on(fixture).await?.try_run(16, take_all).await?;
    let winners = outcomes.iter().enumerate().filter(|(_, outcome)| matches!(outcome, TxnOutcome::Committed(_)));
    let winners: Vec<_> = winners.map(|(number, _)| number.to_string()).collect();
    assert_eq!(winners.len(), 1, "{outcomes:?}");
    for path in ["a", "new/directory/b", "c"] {
        assert_eq!(value_of(fixture.store(), path).await?, winners[0]);
    }
    Ok(())
}

/// Racing transfers between accounts neither make money nor lose any.
pub async fn racing_txns_keep_the_sum(fixture: &Fixture) -> Outcome {
    const ACCOUNTS: usize = 3;
    let store = fixture.store();
    for account in 0..ACCOUNTS {
        store.put(format!("accounts/{account}"), "100").await?;
    }
    let transfers = |store: Store, number: usize| async move {
        let (from, to) = (number % ACCOUNTS, (number + 1) % ACCOUNTS);
        transfer(&store, &format!("accounts/{from}"), &format!("accounts/{to}"), number as u64).await
    };
    Callers::on(fixture).await?.try_run(12, transfers).await?;
    // Caller `number` moved `number` on from account `number % 3`.
    let balances: Vec<_> = store.list("accounts").await?.iter().map(number_in).collect();
    assert_eq!(balances, [100 - 18 + 26, 100 - 22 + 18, 100 - 26 + 22]);
    Ok(())
}

async fn transfer(store: &Store, from: &str, to: &str, amount: u64) -> Result<()> {
    loop {
        let (source, target) = (store.get(from).await?, store.get(to).await?);
        let check = |pair: &KvPair| Check::new(&pair.key, Condition::Version(pair.version));
        let operations = vec![
            Operation::put(from, (number_in(&source) - amount).to_string())?,
            Operation::put(to, (number_in(&target) + amount).to_string())?,
        ];
        // An identical write may leave the version, as on Consul: the amount 0 then just checks.
        if let TxnOutcome::Committed(_) = store.txn(vec![check(&source)?, check(&target)?], operations).await? {
            return Ok(());
        }
    }
}

/// Each of racing puts has a version of its own, and the last one is the key's.
pub async fn racing_puts_have_versions_of_their_own(fixture: &Fixture) -> Outcome {
    let put = |store: Store, number: usize| async move {
        let version = store.put("a", number.to_string()).await?;
        Ok((version.index(), number.to_string()))
    };
    let mut versions = Callers::on(fixture).await?.try_run(32, put).await?;
    versions.sort_unstable();
    assert!(versions.is_sorted_by(|a, b| a.0 < b.0), "{versions:?}");
    let pair = fixture.store().get("a").await?;
    let (index, value) = versions.pop().unwrap();
    assert_eq!((pair.version.index(), pair.value), (index, value.into()));
    Ok(())
}

/// Of many transactions at once each has an outcome of its own, whatever comes of the others. They all check one key, and change some
/// of their own. At first all are applied, and then not all.
pub async fn each_of_many_txns_has_its_own_outcome(fixture: &Fixture) -> Outcome {
    const CALLERS: usize = 100;
    let (store, callers) = (fixture.store(), Callers::on(fixture).await?);
    store.put("epoch", "1").await?;
    for (round, kinds) in [&[0, 3, 4][..], &[0, 1, 2, 3, 4][..]].into_iter().enumerate() {
        let kind = |number: usize| kinds[number % kinds.len()];
        let paths = |number: usize| (format!("own/{round}-{number}"), format!("fresh/{round}-{number}"));
        let old = join_all((0..CALLERS).map(|number| store.put(paths(number).0, "old"))).await;
        let old = old.into_iter().collect::<Result<Vec<_>>>()?;
        for number in (0..CALLERS).filter(|number| kind(*number) == 1) {
            store.put(paths(number).0, "newer").await?;
        }
        let run = |store: Store, number: usize| {
            let (kind, (own, fresh), old) = (kind(number), paths(number), old[number]);
            async move {
                let mut checks =
                    vec![Check::new("epoch", Condition::Exists)?, Check::new(&own, Condition::Version(old))?];
                let mut operations = vec![Operation::put(&own, "new")?, Operation::put(&fresh, "new")?];
                match kind {
                    2 => checks.push(Check::new(&fresh, Condition::Exists)?),
                    3 => operations[0] = Operation::delete(&own)?,
                    4 => operations.clear(),
                    _ => {}
                }
                store.txn(checks, operations).await
            }
        };
        for (number, outcome) in callers.try_run(CALLERS, run).await?.into_iter().enumerate() {
            let (own, fresh) = paths(number);
            let (own, fresh) = (store.get(own).await, store.get(fresh).await);
            let results = match outcome {
                TxnOutcome::CheckFailed { index } => {
                    assert!(matches!((kind(number), index), (1, 1) | (2, 2)), "{number}: {index}");
                    assert_ne!(own?.value, "new", "{number}");
                    assert_error!(fresh, Error::KeyNotFound { .. }, "{number}");
                    continue;
                }
                TxnOutcome::Committed(results) => results,
            };
            match kind(number) {
                0 => {
                    let written = [own?, fresh?].map(|pair| OperationResult::Put(pair.version));
                    assert_eq!(results, written, "{number}");
                }
                3 => {
                    assert_error!(own, Error::KeyNotFound { .. }, "{number}");
                    assert_eq!(results, [OperationResult::Deleted, OperationResult::Put(fresh?.version)], "{number}");
                }
                kind => assert!(kind == 4 && results.is_empty() && own?.value == "old", "{number}"),
            }
        }
    }
    Ok(())
}

/// Transactions of many callers may change keys above and beneath each other's, and keys with a TTL.
pub async fn txns_above_and_beneath_each_other(fixture: &Fixture) -> Outcome {
    const CALLERS: usize = 60;
    let (store, callers) = (fixture.store(), Callers::on(fixture).await?);
    for number in (0..CALLERS).step_by(4) {
        store.put(format!("k/{number}"), "old").await?;
        store.put_with(format!("k/{}", number + 1), "short", PutOptions::ttl(TTL)).await?;
    }
    let run = |store: Store, number: usize| async move {
        let above = |number: usize| format!("k/{number}");
        let operation = match number % 4 {
            0 => Operation::delete(above(number))?,
            1 => Operation::put(above(number), "long")?,
            // Of the deleted key's caller, who is on the same connection.
            2 => Operation::put(format!("{}/beneath", above(number - 2)), "new")?,
            _ => Operation::delete(format!("{}/nothing", above(number - 3)))?,
        };
        store.txn(Vec::new(), vec![operation]).await
    };
    let outcomes = callers.try_run(CALLERS, run).await?;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, TxnOutcome::Committed(_))), "{outcomes:?}");
    let left = |number: usize| [format!("k/{number}/beneath"), format!("k/{}", number + 1)];
    let expected: BTreeSet<_> = (0..CALLERS).step_by(4).flat_map(left).collect();
    let listed = store.list("k").await?;
    assert_eq!(keys_of(&listed).into_iter().collect::<BTreeSet<_>>(), expected.iter().map(String::as_str).collect());
    assert!(listed.iter().all(|pair| pair.value != "short" && pair.value != "old"));
    Ok(())
}

/// Of two transactions of which each needs the other's key to be missing one is applied, however many others there are.
pub async fn of_two_txns_in_each_others_way_one_wins(fixture: &Fixture) -> Outcome {
    const CALLERS: usize = 64;
    let run = |store: Store, number: usize| async move {
        // Partners on one connection, which are two apart.
        let partner = number ^ 2;
        let checks = vec![Check::new(format!("k/{partner}"), Condition::Absent)?];
        store.txn(checks, vec![Operation::put(format!("k/{number}"), "mine")?]).await
    };
    let outcomes = Callers::on(fixture).await?.try_run(CALLERS, run).await?;
    let won = |number: usize| matches!(outcomes[number], TxnOutcome::Committed(_));
    assert!((0..CALLERS).all(|number| won(number) != won(number ^ 2)), "{outcomes:?}");
    assert_eq!(fixture.store().list("k").await?.len(), CALLERS / 2);
    Ok(())
}

/// Of many writes and reads at once each has an outcome of its own, whatever comes of the others: some are of what is there, some
/// of what isn't, and some on versions that are no more.
pub async fn each_of_many_calls_has_its_own_outcome(fixture: &Fixture) -> Outcome {
    const CALLERS: usize = 100;
    const KINDS: usize = 10;
    let store = fixture.store();
    let path = |number: usize| format!("many/{number}");
    let old = join_all((0..CALLERS).map(|number| store.put(path(number), "old"))).await;
    let old = old.into_iter().collect::<Result<Vec<_>>>()?;
    let mut versions = old.clone();
    for number in (0..CALLERS).filter(|number| [2, 8].contains(&(number % KINDS))) {
        versions[number] = store.put(path(number), "newer").await?;
    }
    let call = |store: Store, number: usize| {
        let (path, none, old) = (path(number), format!("none/{number}"), old[number]);
        async move {
            let written = match number % KINDS {
                0 => store.put(&path, "new").await.map(Some),
                1 | 2 => store.atomic_put(&path, "new", old).await.map(|pair| Some(pair.version)),
                3 => store.atomic_put(&path, "new", Expected::Absent).await.map(|pair| Some(pair.version)),
                4 => store.atomic_put(&none, "new", old).await.map(|pair| Some(pair.version)),
                5 => store.put(format!("fresh/{number}"), "new").await.map(Some),
                6 => store.delete(&path).await.map(|()| None),
                7 | 8 => store.atomic_delete(&path, old).await.map(|()| None),
                _ => store.delete(&none).await.map(|()| None),
            };
            (written, store.get(&path).await, store.exists(&path).await, store.get(&none).await)
        }
    };
    let outcomes = Callers::on(fixture).await?.run(CALLERS, call).await;
    for (number, (written, read, exists, nothing)) in outcomes.into_iter().enumerate() {
        assert_error!(nothing, Error::KeyNotFound { .. }, "{number}");
        assert_eq!(exists?, read.is_ok(), "{number}");
        match number % KINDS {
            0 | 1 => {
                let pair = read?;
                assert!(written? == Some(pair.version) && pair.version != versions[number], "{number}");
                assert_eq!(pair.value, "new");
                continue;
            }
            6 | 7 => {
                assert_eq!(written?, None, "{number}");
                assert_error!(read, Error::KeyNotFound { .. }, "{number}");
                continue;
            }
            2 | 8 => assert_error!(written, Error::KeyModified { .. }, "{number}"),
            3 => assert_error!(written, Error::KeyExists { .. }, "{number}"),
            5 => assert_eq!(Some(store.get(format!("fresh/{number}")).await?.version), written?, "{number}"),
            _ => assert_error!(written, Error::KeyNotFound { .. }, "{number}"),
        }
        assert_eq!(read?.version, versions[number], "{number}");
    }
    Ok(())
}

/// Many callers may put into a directory that isn't there yet: each succeeds.
pub async fn racing_puts_into_a_new_directory(fixture: &Fixture) -> Outcome {
    let put = |store: Store, number: usize| async move {
        let directory = ["p/q/r", "p/q", "p/q/r/s/t"][number % 3];
        store.put(format!("{directory}/{number}"), "1").await
    };
    Callers::on(fixture).await?.try_run(64, put).await?;
    assert_eq!(all_keys(fixture.store()).await?.len(), 64);
    Ok(())
}

/// Callers that put and delete side by side in one directory, which so comes and goes, don't disturb each other.
pub async fn racing_puts_and_deletes_in_one_directory(fixture: &Fixture) -> Outcome {
    let come_and_go = |store: Store, number: usize| async move {
        let path = format!("comes/and/goes/{number}");
        for round in 0..10 {
            let version = store.put(&path, round.to_string()).await?;
            assert_eq!(store.get(&path).await?.version, version);
            store.delete(&path).await?;
        }
        Ok(())
    };
    Callers::on(fixture).await?.try_run(8, come_and_go).await?;
    assert!(all_keys(fixture.store()).await?.is_empty());
    Ok(())
}

/// Of a `delete_tree` amid creates: what was created and isn't there any more was counted, once, and nothing else was
/// touched.
pub async fn delete_tree_against_creates(fixture: &Fixture) -> Outcome {
    const CREATES: usize = 120;
    let store = fixture.store();
    let apart = ["d", "d b/x", "dd/x"];
    put_all(store, &apart).await?;
    let deletes = tokio::spawn(delete_again_and_again(fixture.another_or_clone().await?));
    let create = |store: Store, number: usize| async move {
        for round in 0..CREATES / 8 {
            store.atomic_put(format!("d/{}/{number}/{round}", round % 3), "1", Expected::Absent).await?;
        }
        Ok(())
    };
    Callers::on(fixture).await?.try_run(8, create).await?;
    let removed = deletes.await.unwrap()?;
    let left = store.list("d").await?.len() as u64;
    assert_eq!(removed + left, CREATES as u64, "{removed} were removed and {left} are left");
    assert_eq!(store.delete_tree("d").await?, left);
    assert_eq!(all_keys(store).await?, apart);
    Ok(())
}

async fn delete_again_and_again(store: Store) -> Result<u64> {
    let mut removed = 0;
    for _ in 0..10 {
        removed += store.delete_tree("d").await?;
        tokio::task::yield_now().await;
    }
    Ok(removed)
}

/// A listing amid writes succeeds and is sorted, and holds what was there all the time.
pub async fn lists_amid_writes_are_sound(fixture: &Fixture) -> Outcome {
    let constant = ["d/0", "d/3/x", "d/5", "d/9/y/z"];
    put_all(fixture.store(), &constant).await?;
    let list_or_write = move |store: Store, number: usize| async move {
        for round in 0..15 {
            if number.is_multiple_of(2) {
                assert_sound(&store.list("d").await?, &constant);
            } else {
                let path = format!("d/{}/{number}", round % 10);
                store.put(&path, "1").await?;
                store.delete(&path).await?;
            }
        }
        Ok(())
    };
    Callers::on(fixture).await?.try_run(4, list_or_write).await?;
    Ok(())
}

fn assert_sound(pairs: &[KvPair], constant: &[&str]) {
    let keys = keys_of(pairs);
    assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
    let missing: Vec<_> = constant.iter().filter(|path| !keys.contains(path)).collect();
    assert!(missing.is_empty(), "{missing:?} were there all the time, and are not in {keys:?}");
    let directory = key("d").as_dir();
    assert!(keys.iter().all(|path| directory.relative(path).is_some()), "{keys:?}");
}

/// Of racing puts with a TTL the last to be applied counts: the TTLs of the others don't take its key.
pub async fn racing_puts_with_a_ttl_last_their_time(fixture: &Fixture) -> Outcome {
    let callers = Callers::on(fixture).await?;
    let put = |store: Store, number: usize| async move {
        store.put_with("a", number.to_string(), PutOptions::ttl(TTL)).await
    };
    let (moment, _) = Moment::of(callers.try_run(32, put)).await?;
    moment.assert_gone_in_time(fixture.store(), "a", TTL).await
}

/// A put with a TTL that is applied after a racing delete, or after a racing put without one, lasts its time.
pub async fn racing_ends_of_a_ttl_spare_a_later_one(fixture: &Fixture) -> Outcome {
    let race = |store: Store, number: usize| async move {
        let path = format!("d/{number}");
        store.put_with(&path, "first", PutOptions::ttl(TTL)).await?;
        let second = Moment::of(store.put_with(&path, "second", PutOptions::ttl(TTL)));
        let (second, ended) = tokio::join!(second, end_ttl(&store, &path, number));
        let ((moment, written), ()) = (second?, ended?);
        match store.get(&path).await {
            Ok(pair) if pair.version == written.version => Ok(Some((moment, path))),
            Ok(_) | Err(Error::KeyNotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    };
    let applied_last = Callers::on(fixture).await?.try_run(24, race).await?;
    for (moment, path) in applied_last.into_iter().flatten() {
        moment.assert_gone_in_time(fixture.store(), &path, TTL).await?;
    }
    Ok(())
}

async fn end_ttl(store: &Store, path: &str, number: usize) -> Result<()> {
    match number % 2 {
        0 => store.delete(path).await,
        _ => store.put(path, "without").await.map(drop),
    }
}
