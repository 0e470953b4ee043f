//! A lock changes hands: from just before its release is sent to when who waits for it, on another connection, has it.
//!
//! The two are threads with a connection each, as two applications would be. For `local` and `memory` they share the store.

use crate::client::{Client, Peer, Result, Runtime};
use crate::figures::Figures;
use hdrhistogram::Histogram;
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{sleep, timeout};

const KEY: &str = "wanted";

/// How long the one holds the lock while the other gets in line and falls asleep. As long as in libkv's program.
const SETTLE: Duration = Duration::from_millis(100);
/// A lock that isn't got by then never will be.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn latency<P: Peer>(peer: &P, runtime: Runtime, samples: u64) -> Result<Figures> {
    let (ask, asked) = mpsc::unbounded_channel();
    let (tell, told) = mpsc::unbounded_channel();
    thread::scope(|scope| {
        let waiter = scope.spawn(move || runtime.block_on(wait(peer, asked, tell)));
        let held = runtime.block_on(hold(peer, samples, ask, told));
        let waited = waiter.join().map_err(|_| "the waiter panicked")?;
        // Where the waiter failed, the holder only knows that it is gone.
        waited.and(held)
    })
}

/// Whenever it is asked to, gets the lock, and tells when it had it once it is free again.
async fn wait(peer: &impl Peer, mut asked: UnboundedReceiver<()>, tell: UnboundedSender<Instant>) -> Result<()> {
    let mut client = peer.connect().await?;
    while asked.recv().await.is_some() {
        let held = client.lock(KEY).await?;
        let at = Instant::now();
        client.unlock(held).await?;
        tell.send(at)?;
    }
    client.close().await
}

async fn hold(
    peer: &impl Peer,
    samples: u64,
    ask: UnboundedSender<()>,
    mut told: UnboundedReceiver<Instant>,
) -> Result<Figures> {
    let mut client = peer.connect().await?;
    let (mut latencies, begun) = (Histogram::<u64>::new(3)?, Instant::now());
    for _ in 0..samples {
        let held = client.lock(KEY).await?;
        ask.send(())?;
        sleep(SETTLE).await;
        if !told.is_empty() {
            return Err("both held the lock at one time".into());
        }
        let released = Instant::now();
        client.unlock(held).await?;
        let got = timeout(PATIENCE, told.recv()).await?.ok_or("the waiter is gone")?;
        latencies.record(u64::try_from((got - released).as_nanos())?)?;
    }
    let took = begun.elapsed();
    drop(ask);
    client.close().await?;
    Ok(Figures::new(&latencies, 0, took))
}
