//! The local store and its file: durability, group commit, and what else there may be in a file.
#![cfg(feature = "local")]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::worker::{Worker, say, told};
use common::wrapped::{Fault, Plan, Step, Wrapped, silence_planned_panics};
use futures_util::future::join_all;
use kvactor::{Config, Error, LinkState, LockOptions, PutOptions, Store};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn url(file: &Path) -> String {
    format!("local://{}", file.display())
}

/// Not a test of its own but the process that tests below start and kill: eight callers put numbered keys and say so when
/// they are acknowledged.
#[tokio::test]
#[ignore = "a part of the tests that start a second process"]
async fn writer_process() {
    let Some(file) = told("WRITER_FILE") else { return };
    let store = Store::connect(&url(Path::new(&file))).await.unwrap();
    let writers = (0..8).map(|writer| {
        let store = store.clone();
        async move {
            for number in 0.. {
                let key = format!("acknowledged/{writer}/{number}");
                store.put(&key, number.to_string()).await.unwrap();
                say(format_args!("put {key}"));
            }
        }
    });
    join_all(writers).await;
}

fn start_writer(file: &Path) -> Worker {
    Worker::start("writer_process", &[("WRITER_FILE", &file.display().to_string())])
}

/// Kills the writer when it has said that `count` keys were acknowledged, and returns all that it had said by then.
fn kill_after(mut writer: Worker, count: usize) -> Vec<String> {
    let mut keys: Vec<String> = (0..count).map(|_| writer.hear_of("put ", Duration::from_secs(30))).collect();
    writer.kill();
    let rest = writer.hear_all();
    keys.extend(rest.iter().filter_map(|line| line.strip_prefix("put ")).map(str::to_owned));
    keys
}

#[tokio::test]
async fn no_acknowledged_put_is_lost_by_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.redb");
    for round in 1..=5 {
        let (victim, count) = (start_writer(&file), 150 * round);
        let mut keys = tokio::task::spawn_blocking(move || kill_after(victim, count)).await.unwrap();
        // Without its newline the last line may be a key cut short.
        keys.pop();
        assert!(keys.len() >= count - 1);
        let store = Store::connect(&url(&file)).await.unwrap();
        let found = store.list_keys("acknowledged", Default::default()).await.unwrap().items;
        let found: std::collections::HashSet<String> = found.into_iter().map(String::from).collect();
        let lost: Vec<_> = keys.iter().filter(|key| !found.contains(*key)).collect();
        assert!(lost.is_empty(), "round {round}: {lost:?}");
        store.delete_tree("acknowledged").await.unwrap();
        store.close().await.unwrap();
    }
}

/// What the stores of this process say in their traces.
static TRACES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Traces;

impl Write for Traces {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        TRACES.lock().unwrap().write(line)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How many commands went into each commit of this file.
fn commits(file: &Path) -> Vec<usize> {
    let traces = String::from_utf8_lossy(&TRACES.lock().unwrap()).into_owned();
    let of_file = format!("file={} ", file.display());
    let commits = traces.lines().filter(|line| line.contains("committed") && line.contains(&of_file));
    let commands = |line: &str| line.split("commands=").nth(1)?.split_whitespace().next()?.parse().ok();
    commits.map(|line| commands(line).unwrap()).collect()
}

const CALLERS: usize = 64;

/// Whatever the disk, the calls that wait while a commit is on its way share the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_wait_together_are_committed_together() {
    let traces = tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::TRACE);
    traces.with_ansi(false).with_writer(|| Traces).init();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = folder.path().join("store.redb");
    let store = Store::connect(&url(&file)).await.unwrap();
    let caller = |caller: usize| {
        let store = store.clone();
        async move {
            for number in 0..100 {
                store.put(format!("{caller}/{number}"), "1").await.unwrap();
            }
        }
    };
    join_all((0..CALLERS).map(caller)).await;
    let commits = commits(&file);
    println!("{} commits of {} commands", commits.len(), commits.iter().sum::<usize>());
    assert_eq!(commits.iter().sum::<usize>(), 100 * CALLERS);
    assert!(commits.len() <= 100 * CALLERS / 20, "{} commits", commits.len());
}

/// In what the callers run.
#[derive(Clone, Copy)]
enum Callers {
    OneTask,
    TasksOfTheirOwn,
}

/// How many puts `callers` make in a second, together.
async fn put_rate(store: &Store, run: Callers, callers: usize) -> f64 {
    let (begin, time) = (Instant::now(), Duration::from_secs(1));
    let caller = |caller: usize| {
        let store = store.clone();
        async move {
            let mut puts = 0u32;
            while begin.elapsed() < time {
                store.put(format!("rate/{callers}/{caller}"), vec![0; 100]).await.unwrap();
                puts += 1;
            }
            puts
        }
    };
    let all = (0..callers).map(caller);
    let puts: u32 = match run {
        Callers::OneTask => join_all(all).await.into_iter().sum(),
        Callers::TasksOfTheirOwn => join_all(all.map(tokio::spawn)).await.into_iter().map(|puts| puts.unwrap()).sum(),
    };
    f64::from(puts) / begin.elapsed().as_secs_f64()
}

/// The callers live beside the store's actors as in an actix application.
#[actix::test]
async fn many_callers_reach_many_times_the_rate_of_one() {
    many_reach_many_times_the_rate_of_one(Callers::OneTask).await;
}

/// The store has a thread of its own here and below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_in_one_task_reach_many_times_the_rate_of_one() {
    many_reach_many_times_the_rate_of_one(Callers::OneTask).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_reach_many_times_the_rate_of_one() {
    many_reach_many_times_the_rate_of_one(Callers::TasksOfTheirOwn).await;
}

/// One such measurement at a time.
static MEASURING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// By how much the rate grows with the callers.
async fn many_reach_many_times_the_rate_of_one(run: Callers) {
    let _turn = MEASURING.lock().await;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = Store::connect(&url(&folder.path().join("store.redb"))).await.unwrap();
    let mut ratios = Vec::new();
    for _ in 0..5 {
        let (one, many) = (put_rate(&store, run, 1).await, put_rate(&store, run, CALLERS).await);
        println!("puts a second: 1 caller {one:.0}, {CALLERS} callers {many:.0}, ratio {:.1}", many / one);
        ratios.push(many / one);
    }
    ratios.sort_by(f64::total_cmp);
    // A debug build spends more time on its own code than on the disk, and the other tests share the machine with it.
    let least = if cfg!(debug_assertions) { 8.0 } else { 20.0 };
    assert!(ratios[2] >= least, "the median of {ratios:.1?} is below {least}");
}

#[tokio::test]
async fn a_second_opening_is_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.redb");
    let store = Store::connect(&url(&file)).await.unwrap();
    let error = Store::connect(&url(&file)).await.unwrap_err();
    assert!(error.to_string().contains("open already"), "{error}");
    store.put("k", "v").await.unwrap();
    store.close().await.unwrap();
    let again = Store::connect(&url(&file)).await.unwrap();
    assert_eq!(again.get("k").await.unwrap().value, "v");
}

#[tokio::test]
async fn another_process_that_has_the_file_is_named_as_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.redb");
    let writer = start_writer(&file);
    writer.hear_of("put ", Duration::from_secs(30));
    let error = Store::connect(&url(&file)).await.unwrap_err();
    assert!(error.to_string().contains("open already"), "{error}");
}

#[tokio::test]
async fn a_wrong_path_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for file in [folder.path().join("missing/store.redb"), folder.path().to_owned()] {
        let error = Store::connect(&url(&file)).await.unwrap_err();
        assert!(
            matches!(&error, Error::InvalidConfig { part, .. } if part.contains(file.to_str().unwrap())),
            "{error}"
        );
    }
}

#[tokio::test]
async fn what_is_no_store_is_an_error_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("letter.txt");
    for contents in [b"Dear store, I am a letter.".to_vec(), vec![0xff; 8192], b"redb\x1A\x0A\xA9\x0D\x0A".to_vec()] {
        std::fs::write(&file, &contents).unwrap();
        let error = Store::connect(&url(&file)).await.unwrap_err();
        assert!(matches!(error, Error::Backend { .. }), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), contents, "{error}");
    }
}

#[tokio::test]
async fn a_damaged_file_is_an_error_or_still_right() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, broken) = (folder.path().join("whole.redb"), folder.path().join("broken.redb"));
    let store = Store::connect(&url(&whole)).await.unwrap();
    for number in 0..200 {
        store.put(format!("k{number}"), vec![7; 100]).await.unwrap();
    }
    store.close().await.unwrap();
    let bytes = std::fs::read(&whole).unwrap();
    // From 1: cut down to nothing it would be a new store.
    for damage in 1..60 {
        let mut damaged = bytes.clone();
        let at = damage * 1009 % damaged.len();
        match damage % 3 {
            0 => damaged.truncate(at),
            1 => damaged[at] ^= 0x55,
            _ => damaged[at..].iter_mut().take(4096).for_each(|byte| *byte = 0xa5),
        }
        std::fs::write(&broken, damaged).unwrap();
        match Store::connect(&url(&broken)).await {
            Ok(store) => {
                let pairs = store.list("").await.unwrap();
                assert!(pairs.len() == 200 && pairs.iter().all(|pair| pair.value == vec![7; 100]), "damage {damage}");
                store.close().await.unwrap();
            }
            Err(error) => assert!(matches!(error, Error::Backend { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn ttls_go_on_while_the_file_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.redb");
    let store = Store::connect(&url(&file)).await.unwrap();
    let put = |key: &'static str, seconds| store.put_with(key, "v", PutOptions::ttl(Duration::from_secs(seconds)));
    put("short", 1).await.unwrap();
    let written = Instant::now();
    put("long", 60).await.unwrap();
    let before = store.put("permanent", "v").await.unwrap();
    store.close().await.unwrap();
    tokio::time::sleep(Duration::from_millis(2000).saturating_sub(written.elapsed())).await;
    let store = Store::connect(&url(&file)).await.unwrap();
    let keys = store.list_keys("", Default::default()).await.unwrap().items;
    assert_eq!(keys.iter().map(|key| key.as_str()).collect::<Vec<_>>(), ["long", "permanent"]);
    assert!(store.put("short", "v").await.unwrap().index() > before.index());
}

#[tokio::test]
async fn versions_grow_over_reopenings() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.redb");
    let mut last = 0;
    for _ in 0..3 {
        let store = Store::connect(&url(&file)).await.unwrap();
        let version = store.put("k", "v").await.unwrap();
        assert!(version.index() > last);
        store.delete("k").await.unwrap();
        last = version.index();
        store.close().await.unwrap();
    }
}

/// Not a test of its own but a process that holds a lock until it is killed.
#[tokio::test]
#[ignore = "a part of the tests that start a second process"]
async fn lock_holding_process() {
    let Some(file) = told("LOCKED_FILE") else { return };
    let store = Store::connect(&url(Path::new(&file))).await.unwrap();
    let options = LockOptions { value: "holder".into(), ..LockOptions::default() };
    let guard = store.lock_with("lock", options).await.unwrap();
    say(format_args!("holds {}", guard.token()));
    guard.lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_holds_a_lock_when_its_process_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.redb");
    let mut holder = Worker::start("lock_holding_process", &[("LOCKED_FILE", &file.display().to_string())]);
    let token: u64 = holder.hear_of("holds", Duration::from_secs(30)).parse().unwrap();
    holder.kill();
    let store = Store::connect(&url(&file)).await.unwrap();
    let found = store.get("lock").await;
    assert!(matches!(found, Err(Error::KeyNotFound { .. })), "{found:?}");
    let guard = store.try_lock("lock").await.unwrap();
    assert!(guard.token() > token, "{} after {token}", guard.token());
    store.close().await.unwrap();
}

/// Locks are in memory: with the session they go, long before their deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_holds_a_lock_when_the_file_was_opened_again() {
    silence_planned_panics();
    let folder = tempfile::tempdir().unwrap();
    let config = Config::from_url(&url(&folder.path().join("store.redb"))).unwrap();
    let panics = Arc::new(AtomicBool::new(false));
    let next = panics.clone();
    let plan = Plan::new(move |step| match step == Step::Put && next.swap(false, Ordering::SeqCst) {
        true => Fault::PanicBefore,
        false => Fault::None,
    });
    let store = Store::with_backend(Wrapped::of(&config, plan), config.options.clone()).await.unwrap();
    let ttl = Duration::from_secs(6);
    let guard = store.lock_with("lock", LockOptions { ttl, ..LockOptions::default() }).await.unwrap();
    panics.store(true, Ordering::SeqCst);
    let interrupted = store.put("k", "1").await;
    assert!(matches!(interrupted, Err(Error::Indeterminate { .. })), "{interrupted:?}");
    let status = store.status();
    assert!(status.restarts == 1 || status.link != LinkState::Up, "who hears of the panic finds another session");
    let guarded = guard.put("k", "2").await;
    assert!(matches!(guarded, Err(Error::LockLost { .. })), "{guarded:?}");
    assert!(matches!(store.get("k").await, Err(Error::KeyNotFound { .. })));
    let told = tokio::time::timeout(ttl / 3 + Duration::from_secs(2), guard.lost()).await;
    assert!(told.is_ok(), "{guard:?} after a renewal was due");
    assert_eq!(store.status().restarts, 1);
    let later = store.lock("lock").await.unwrap();
    assert!(later.token() > guard.token(), "{} after {}", later.token(), guard.token());
    store.close().await.unwrap();
}
