//! What a call costs where the server costs next to nothing: the embedded stores, and a backend that answers at once.
//!
//! ```sh
//! cargo bench --all-features --bench embedded
//! cargo bench --all-features --bench embedded -- group    # only the lines whose names have `group` in them
//! ```
//!
//! Each line is one way to call, with the rate of each round and their median, and the processor time per call, of all threads.

#[path = "../examples/custom_backend.rs"]
#[allow(dead_code, unreachable_pub, reason = "the example's own `main` is not run here")]
mod custom_backend;

use custom_backend::MapConnector;
use futures_util::future::join_all;
use kvactor::{Options, Store};
use rustix::time::{ClockId, clock_gettime};
use std::future::Future;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// In what the callers run.
#[derive(Clone, Copy)]
enum Runtime {
    /// All in the task of `main`, in a tokio runtime of two workers; the store has a thread of its own.
    OneTask,
    /// Each in a task of its own, in such a runtime.
    Spawned,
    /// In an actix system, beside the store's actors.
    Actix,
}

#[derive(Clone, Copy)]
enum Call {
    Put,
    Get,
}

#[derive(Clone, Copy)]
enum Backend {
    Memory,
    Local,
    /// Not embedded, as far as the store knows: what it answers at once goes the whole way of a call to a server.
    Custom,
}

/// One line.
struct Line {
    name: String,
    backend: Backend,
    runtime: Runtime,
    call: Call,
    callers: usize,
}

const MANY: usize = 64;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(1);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    let (mut by_bench, mut wanted) = (false, String::new());
    for argument in &mut arguments {
        match argument.as_str() {
            "--bench" => by_bench = true,
            text => wanted = text.to_owned(),
        }
    }
    if !by_bench {
        println!("Nothing is measured but by `cargo bench`.");
        return Ok(());
    }
    for (name, runtime) in [("one task", Runtime::OneTask), ("spawned", Runtime::Spawned), ("actix", Runtime::Actix)] {
        for line in lines(name, runtime).into_iter().filter(|line| line.name.contains(&wanted)) {
            rates(&line)?;
        }
        let group = format!("group commit, {name}");
        if group.contains(&wanted) {
            group_commit(&group, runtime)?;
        }
    }
    Ok(())
}

fn lines(runtime_name: &str, runtime: Runtime) -> Vec<Line> {
    let backends = [("memory", Backend::Memory), ("local", Backend::Local), ("custom", Backend::Custom)];
    let mut lines = Vec::new();
    for (backend_name, backend) in backends {
        for (call_name, call) in [("put", Call::Put), ("get", Call::Get)] {
            for callers in [1, MANY] {
                if matches!((backend, call), (Backend::Local, Call::Put)) {
                    continue;
                }
                let name = format!("{backend_name} {call_name} of {callers}, {runtime_name}");
                lines.push(Line { name, backend, runtime, call, callers });
            }
        }
    }
    lines
}

/// What one round came to.
struct Round {
    rate: f64,
    micros_of_processor: f64,
}

fn rates(line: &Line) -> Result<()> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let rounds = block_on(line.runtime, async || {
        let store = open(line.backend, &folder).await?;
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            rounds.push(round(&store, line.runtime, line.call, line.callers).await?);
        }
        store.close().await?;
        Ok(rounds)
    })?;
    let rate = median(rounds.iter().map(|round| round.rate));
    let processor = median(rounds.iter().map(|round| round.micros_of_processor));
    println!("{:32} {rate:10.0}/s {processor:7.2} us of processor each", line.name);
    Ok(())
}

/// By how much the rate of `local` grows with the callers.
fn group_commit(name: &str, runtime: Runtime) -> Result<()> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let rounds = block_on(runtime, async || {
        let store = open(Backend::Local, &folder).await?;
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let one = round(&store, runtime, Call::Put, 1).await?;
            rounds.push((one, round(&store, runtime, Call::Put, MANY).await?));
        }
        store.close().await?;
        Ok(rounds)
    })?;
    let ratios: Vec<f64> = rounds.iter().map(|(one, many)| many.rate / one.rate).collect();
    let (one, many) =
        (median(rounds.iter().map(|round| round.0.rate)), median(rounds.iter().map(|round| round.1.rate)));
    let one_processor = median(rounds.iter().map(|round| round.0.micros_of_processor));
    let processor = median(rounds.iter().map(|round| round.1.micros_of_processor));
    println!(
        "{name:32} {one:.0}/s -> {many:.0}/s, {one_processor:.2} -> {processor:.2} us of processor each; ratio {:.1} of {ratios:.1?}",
        median(ratios.iter().copied())
    );
    Ok(())
}

async fn open(backend: Backend, folder: &tempfile::TempDir) -> Result<Store> {
    Ok(match backend {
        Backend::Memory => Store::connect("memory://calls").await?,
        Backend::Local => Store::connect(&format!("local://{}/store.redb", folder.path().display())).await?,
        Backend::Custom => Store::with_backend(MapConnector::default(), Options::default()).await?,
    })
}

async fn round(store: &Store, runtime: Runtime, call: Call, callers: usize) -> Result<Round> {
    for caller in 0..callers {
        store.put(key(callers, caller), vec![0; 100]).await?;
    }
    let (begin, processor) = (Instant::now(), processor_time());
    let until = begin + ROUND;
    let caller = |number| calls(store.clone(), call, key(callers, number), until);
    let calls: u64 = match runtime {
        Runtime::Spawned => {
            let tasks = (0..callers).map(|number| tokio::spawn(caller(number)));
            join_all(tasks).await.into_iter().map(|calls| calls?).sum::<Result<u64>>()?
        }
        Runtime::OneTask | Runtime::Actix => {
            join_all((0..callers).map(caller)).await.into_iter().sum::<Result<u64>>()?
        }
    };
    let (time, processor) = (begin.elapsed(), processor_time() - processor);
    Ok(Round {
        rate: calls as f64 / time.as_secs_f64(),
        micros_of_processor: processor.as_secs_f64() * 1e6 / calls as f64,
    })
}

fn key(callers: usize, caller: usize) -> String {
    format!("rate/{callers}/{caller}")
}

async fn calls(store: Store, call: Call, key: String, until: Instant) -> Result<u64> {
    let mut calls = 0;
    let value = bytes::Bytes::from(vec![0; 100]);
    while Instant::now() < until {
        match call {
            Call::Put => drop(store.put(key.as_str(), value.clone()).await?),
            Call::Get => drop(store.get(key.as_str()).await?),
        }
        calls += 1;
    }
    Ok(calls)
}

fn block_on<T, F: Future<Output = Result<T>>>(runtime: Runtime, work: impl FnOnce() -> F) -> Result<T> {
    match runtime {
        Runtime::Actix => actix_rt::System::new().block_on(work()),
        Runtime::OneTask | Runtime::Spawned => {
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work())
        }
    }
}

/// What all threads of this process have used.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
