//! What is ours alone, to be counted in instructions: `scripts/micro` runs each case under callgrind, twice with a different number
//! of repetitions, so that what starting and ending costs drops out. Counts don't depend on how busy the machine is.
//!
//! ```sh
//! kvactor-micro                 # names the cases, each with a number of repetitions that takes callgrind some seconds
//! kvactor-micro key_parse 1000  # does one of them that often
//! ```
//!
//! Everything is done through the public API. Consul's answers are decoded as they come from a socket, which an agent of
//! this program's own writes them to.

mod agent;
mod prompt;

use actix_rt::System;
use agent::Agent;
use futures_util::future::try_join_all;
use kvactor::{Key, Options, Result, Store, WatchEvent};
use prompt::Answers;
use std::error::Error;
use std::hint::black_box;
use std::process::ExitCode;

type Outcome = Result<(), Box<dyn Error>>;

/// One thing that is counted.
struct Case {
    name: &'static str,
    /// How often it is done: often enough that what differs from run to run hardly shows.
    times: usize,
    run: fn(usize) -> Outcome,
}

const CASES: [Case; 13] = [
    Case { name: "key_parse", times: 20_000, run: key_parse },
    Case { name: "memory_get", times: 2_000, run: |times| in_system(memory_get(times)) },
    Case { name: "memory_get_of_64", times: 64 * 40, run: |times| in_system(memory_get_of_64(times)) },
    Case { name: "memory_put", times: 2_000, run: |times| in_system(memory_put(times)) },
    Case { name: "call_at_once", times: 2_000, run: |times| in_system(call(times, Answers::AtOnce)) },
    Case { name: "call", times: 2_000, run: |times| in_system(call(times, Answers::Later)) },
    Case { name: "call_put", times: 2_000, run: |times| in_system(call_put(times)) },
    Case { name: "call_of_64", times: 64 * 40, run: |times| in_system(call_of_64(times)) },
    Case { name: "memory_list_1000", times: 20, run: |times| in_system(memory_list(times)) },
    Case { name: "watch_fan_out_1000", times: 20, run: |times| in_system(fan_out(times)) },
    Case { name: "consul_list_1000", times: 20, run: |times| in_system(consul_list(times)) },
    Case { name: "local_get", times: 20_000, run: |times| in_system(local_get(times)) },
    Case { name: "local_put", times: 200, run: |times| in_system(local_put(times)) },
];

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        CASES.iter().for_each(|case| println!("{} {}", case.name, case.times));
        return Ok(ExitCode::SUCCESS);
    };
    let case = CASES.iter().find(|case| case.name == name).ok_or("no such case")?;
    let times = arguments.next().map_or(Ok(case.times), |times| times.parse())?;
    (case.run)(times)?;
    Ok(ExitCode::SUCCESS)
}

/// The store's actors run on this very thread, as in an actix application.
fn in_system(work: impl Future<Output = Outcome>) -> Outcome {
    System::new().block_on(work)
}

/// Paths as applications write them: in normal form, not in normal form, deep, not in ASCII.
const PATHS: [&str; 4] =
    ["services/web/1", "/services//web/1/", "apps/shop/eu-west/frontend/config/feature/flags/checkout", "städte/köln"];

fn key_parse(times: usize) -> Outcome {
    for number in 0..times {
        black_box(Key::parse(black_box(PATHS[number % PATHS.len()]))?);
    }
    Ok(())
}

async fn memory() -> Result<Store> {
    let store = Store::connect("memory://micro").await?;
    store.put("services/web/1", "10.0.0.1:80").await?;
    Ok(store)
}

async fn memory_get(times: usize) -> Outcome {
    get(&memory().await?, times).await
}

async fn get(store: &Store, times: usize) -> Outcome {
    for _ in 0..times {
        black_box(store.get(black_box("services/web/1")).await?);
    }
    Ok(())
}

/// What goes the way of a call to a server.
async fn call(times: usize, answers: Answers) -> Outcome {
    get(&Store::with_backend(answers, Options::default()).await?, times).await
}

async fn call_put(times: usize) -> Outcome {
    put(&Store::with_backend(Answers::Later, Options::default()).await?, times).await
}

async fn call_of_64(times: usize) -> Outcome {
    get_of_64(&Store::with_backend(Answers::Later, Options::default()).await?, times).await
}

async fn memory_get_of_64(times: usize) -> Outcome {
    get_of_64(&memory().await?, times).await
}

/// Gets by many callers at once.
async fn get_of_64(store: &Store, times: usize) -> Outcome {
    for _ in 0..times / 64 {
        black_box(try_join_all((0..64).map(|_| store.get(black_box("services/web/1")))).await?);
    }
    Ok(())
}

async fn memory_put(times: usize) -> Outcome {
    put(&memory().await?, times).await
}

async fn put(store: &Store, times: usize) -> Outcome {
    for _ in 0..times {
        black_box(store.put("services/web/1", "10.0.0.1:80").await?);
    }
    Ok(())
}

async fn memory_list(times: usize) -> Outcome {
    let store = memory().await?;
    for number in 0..1000 {
        store.put(format!("of/k{number:05}"), "10.0.0.1:80").await?;
    }
    list(&store, times).await
}

async fn list(store: &Store, times: usize) -> Outcome {
    for _ in 0..times {
        match black_box(store.list("of").await?).len() {
            1000 => {}
            other => return Err(format!("{other} pairs").into()),
        }
    }
    Ok(())
}

/// A put, and the event that each of a thousand subscribers takes.
async fn fan_out(times: usize) -> Outcome {
    let store = memory().await?;
    let mut subscribers = try_join_all((0..1000).map(|_| store.watch("services/web/1"))).await?;
    // The state that was there.
    take_all(&mut subscribers).await?;
    for _ in 0..times {
        store.put("services/web/1", "10.0.0.1:80").await?;
        take_all(&mut subscribers).await?;
    }
    Ok(())
}

async fn take_all(subscribers: &mut [kvactor::WatchStream]) -> Outcome {
    for events in subscribers {
        match black_box(events.next().await) {
            Some(WatchEvent::Put(_)) => {}
            other => return Err(format!("unexpected: {other:?}").into()),
        }
    }
    Ok(())
}

async fn consul_list(times: usize) -> Outcome {
    let agent = Agent::start(1000)?;
    let store = Store::connect(&format!("consul://{}/micro", agent.address())).await?;
    list(&store, times).await
}

async fn local_get(times: usize) -> Outcome {
    let folder = tempfile::tempdir()?;
    let store = local(&folder).await?;
    store.put("services/web/1", "10.0.0.1:80").await?;
    get(&store, times).await?;
    Ok(store.close().await?)
}

/// One after the other: each is a transaction of its own.
async fn local_put(times: usize) -> Outcome {
    let folder = tempfile::tempdir()?;
    let store = local(&folder).await?;
    put(&store, times).await?;
    Ok(store.close().await?)
}

async fn local(folder: &tempfile::TempDir) -> Result<Store> {
    Store::connect(&format!("local://{}/store.redb", folder.path().display())).await
}
