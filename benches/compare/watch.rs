//! The latency from put to event: from just before a put is sent to when the application on the other side has the value.
//!
//! The writer and the watcher are two threads with a connection each, as two applications would be. One value is written at a
//! time; the next one when the watcher has it and a gap is over.

use crate::client::{Client, Peer, Result, Runtime, Watch};
use crate::figures::Figures;
use bytes::Bytes;
use hdrhistogram::Histogram;
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

const KEY: &str = "watched";

/// How long the watcher has it quiet before the first put.
const SETTLE: Duration = Duration::from_millis(200);
/// What comes later is lost.
const PATIENCE: Duration = Duration::from_secs(3);

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) samples: u64,
    pub(crate) gap: Duration,
    pub(crate) value_size: usize,
}

/// The watcher has the value with this number.
struct Seen {
    number: u64,
    at: Instant,
}

pub(crate) fn latency<P: Peer>(peer: &P, runtime: Runtime, plan: &Plan) -> Result<Figures> {
    let (exists, wait_exists) = oneshot::channel();
    let (tell, told) = mpsc::unbounded_channel();
    thread::scope(|scope| {
        let watcher = scope.spawn(move || runtime.block_on(watch(peer, wait_exists, tell)));
        let written = runtime.block_on(write(peer, plan, exists, told));
        let watched = watcher.join().map_err(|_| "the watcher panicked")?;
        // Where the watcher failed, the writer only knows that it is gone.
        watched.and(written)
    })
}

/// Tells what it is told, once there is something to watch and until nobody listens.
async fn watch(peer: &impl Peer, exists: oneshot::Receiver<()>, tell: UnboundedSender<Seen>) -> Result<()> {
    if exists.await.is_err() {
        return Ok(());
    }
    let mut client = peer.connect().await?;
    let mut events = client.watch(KEY).await?;
    tell.send(Seen { number: 0, at: Instant::now() })?;
    loop {
        let value = tokio::select! {
            biased;
            () = tell.closed() => break,
            value = events.next() => value?,
        };
        let at = Instant::now();
        tell.send(Seen { number: number(&value)?, at })?;
    }
    drop(events);
    client.close().await
}

async fn write(
    peer: &impl Peer,
    plan: &Plan,
    exists: oneshot::Sender<()>,
    mut told: UnboundedReceiver<Seen>,
) -> Result<Figures> {
    let mut client = peer.connect().await?;
    client.put(KEY, value(0, plan.value_size)).await?;
    // Where the watcher is gone, that shows below.
    let _ = exists.send(());
    until(&mut told, 0).await?;
    sleep(SETTLE).await;
    let (mut latencies, mut lost, begun) = (Histogram::<u64>::new(3)?, 0, Instant::now());
    for number in 1..=plan.samples {
        let value = value(number, plan.value_size);
        let sent = Instant::now();
        client.put(KEY, value).await?;
        match timeout(PATIENCE, until(&mut told, number)).await {
            Ok(at) => latencies.record(u64::try_from((at? - sent).as_nanos())?)?,
            Err(_) => lost += 1,
        }
        sleep(plan.gap).await;
    }
    let took = begun.elapsed();
    drop(told);
    client.close().await?;
    Ok(Figures::new(&latencies, lost, took))
}

/// When the watcher had the value with this number.
async fn until(told: &mut UnboundedReceiver<Seen>, number: u64) -> Result<Instant> {
    while let Some(seen) = told.recv().await {
        if seen.number == number {
            return Ok(seen.at);
        }
    }
    Err("the watch ended".into())
}

/// A value of this size that begins with its number.
fn value(number: u64, size: usize) -> Bytes {
    format!("{:x<size$}", format!("{number:012}:")).into()
}

fn number(value: &[u8]) -> Result<u64> {
    let digits = value.split(|byte| *byte == b':').next().unwrap_or_default();
    Ok(std::str::from_utf8(digits)?.parse()?)
}
