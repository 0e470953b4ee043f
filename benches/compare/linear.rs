//! The same work once, ten times and a hundred times: what it costs must grow as the work does.
//!
//! Once is one listing of a hundred keys, or a hundred puts by 64 callers.

use crate::calls::{Caller, Calls, Crowd, Load, directory_of, names};
use crate::case::{Call, Work};
use crate::client::Result;
use crate::figures::{Figures, Growth};
use crate::resources::{forget_peak, peak, processor_time, resident};
use bytes::Bytes;
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How many keys are the work.
pub(crate) const KEYS: usize = 100;
/// How many callers put.
const CALLERS: usize = 64;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) work: Work,
    pub(crate) times: usize,
    pub(crate) time: Duration,
    pub(crate) value_size: usize,
}

pub(crate) async fn measure<C: Calls, F: Future<Output = Result<Caller<C>>>>(
    client: C,
    plan: Plan,
    run: impl Fn(Caller<C>) -> F,
    spawn: impl Fn(F) -> JoinHandle<Result<Caller<C>>>,
) -> Result<Figures> {
    match plan.work {
        Work::List => list(client, plan).await,
        Work::Put => put(client, plan, run, spawn).await,
    }
}

async fn list(client: impl Calls, plan: Plan) -> Result<Figures> {
    let keys = KEYS * plan.times;
    let dir = directory_of(keys);
    // What only the first listing needs isn't the work's.
    client.list(&directory_of(KEYS)).await?;
    let growth = growth(&client, &dir, keys, plan.value_size).await?;
    let (mut latencies, begun, processor) = (Histogram::<u64>::new(3)?, Instant::now(), processor_time());
    while begun.elapsed() < plan.time {
        let from = Instant::now();
        client.list(&dir).await?;
        latencies.record(u64::try_from(from.elapsed().as_nanos())?)?;
    }
    let (took, processor) = (begun.elapsed(), processor_time() - processor);
    client.close().await?;
    Ok(Figures { growth, ..Figures::new(&latencies, 0, took).with_processor_time(processor) })
}

/// Makes the directories that are to be listed. Memory that was in use for this, freed, and not given back to the system would
/// hide a part of what a listing takes: wherever the keys outlive it, this is done by a process of its own.
pub(crate) async fn prepare(client: &impl Calls, plan: Plan) -> Result<()> {
    for keys in [KEYS, KEYS * plan.times] {
        let dir = directory_of(keys);
        if client.list(&dir).await? != keys {
            client.fill(&dir, names(keys), Bytes::from(vec![b'x'; plan.value_size])).await?;
        }
    }
    Ok(())
}

/// How much more memory was in use during a listing than before, and the bytes of the keys and values in it.
async fn growth(client: &impl Calls, dir: &str, keys: usize, value_size: usize) -> Result<Option<Growth>> {
    forget_peak();
    let Some(before) = resident() else { return Ok(None) };
    let found = client.list(dir).await?;
    if found != keys {
        return Err(format!("found {found} keys where {keys} were expected").into());
    }
    let Some(most) = peak("self") else { return Ok(None) };
    let names: usize = names(keys).iter().map(|name| dir.len() + 1 + name.len()).sum();
    let units = u64::try_from(names + keys * value_size)?;
    Ok(Some(Growth { bytes: most.saturating_sub(before), units }))
}

async fn put<C: Calls, F: Future<Output = Result<Caller<C>>>>(
    client: C,
    plan: Plan,
    run: impl Fn(Caller<C>) -> F,
    spawn: impl Fn(F) -> JoinHandle<Result<Caller<C>>>,
) -> Result<Figures> {
    let Plan { times, time, value_size, .. } = plan;
    let mut crowd = Crowd::gather(client, Load { call: Call::Put, callers: CALLERS, time, value_size }).await?;
    crowd.go(time / 4, &run, &spawn).await?;
    crowd.forget();
    let mut latencies = Histogram::<u64>::new(3)?;
    while crowd.spent.time < time {
        crowd.allot(KEYS * times);
        let from = Instant::now();
        crowd.go(Duration::from_secs(600), &run, &spawn).await?;
        latencies.record(u64::try_from(from.elapsed().as_nanos())?)?;
    }
    let figures = Figures::new(&latencies, 0, crowd.spent.time).with_processor_time(crowd.spent.processor);
    crowd.into_client().close().await?;
    Ok(figures)
}
