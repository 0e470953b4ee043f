//! Subscribers in numbers, on one key.
//!
//! Nobody but kvactor is measured: what it stands on has one watch at the server for each subscriber, and libkv too.

use crate::client::Result;
use crate::figures::{Figures, Growth};
use crate::resources::{processor_time, resident};
use ::kvactor::{Store, WatchEvent, WatchStream};
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const KEY: &str = "crowded";
/// How many subscribe at a time.
const AT_ONCE: u64 = 100;
/// Who isn't told by then never will be.
const PATIENCE: Duration = Duration::from_secs(10);

/// What all subscribers of an event have in common.
pub(crate) struct Told {
    /// How many have yet to be told.
    left: AtomicU64,
    all: Notify,
}

/// How long it takes from just before a put is sent to when the last of all subscribers has the event.
pub(crate) async fn fan_out<F: Future<Output = ()>>(
    store: Store,
    subscribers: u64,
    puts: u64,
    follow: impl Fn(WatchStream, Arc<Told>) -> F,
    spawn: impl Fn(F) -> JoinHandle<()>,
) -> Result<Figures> {
    store.put(KEY, "0").await?;
    let told = Arc::new(Told { left: AtomicU64::new(subscribers), all: Notify::new() });
    for _ in 0..subscribers / AT_ONCE {
        for stream in subscribe(&store, AT_ONCE).await? {
            spawn(follow(stream, told.clone()));
        }
    }
    let (mut latencies, mut lost) = (Histogram::<u64>::new(3)?, 0);
    let (begun, processor) = (Instant::now(), processor_time());
    for number in 0..puts {
        told.left.store(subscribers, Ordering::SeqCst);
        let from = Instant::now();
        store.put(KEY, number.to_string()).await?;
        match timeout(PATIENCE, told.all.notified()).await {
            Ok(()) => latencies.record(u64::try_from(from.elapsed().as_nanos())?)?,
            Err(_) => lost += 1,
        }
    }
    let (took, processor) = (begun.elapsed(), processor_time() - processor);
    store.close().await?;
    Ok(Figures::new(&latencies, lost, took).with_processor_time(processor))
}

/// One subscriber.
pub(crate) async fn follow(mut events: WatchStream, told: Arc<Told>) {
    while let Some(WatchEvent::Put(_)) = events.next().await {
        if told.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            told.all.notify_one();
        }
    }
}

/// What subscriptions cost that have nothing to tell: how long each takes to make, and the memory of all.
pub(crate) async fn idle(store: Store, subscribers: u64) -> Result<Figures> {
    store.put(KEY, "0").await?;
    let mut streams = subscribe(&store, AT_ONCE).await?;
    streams.reserve_exact(usize::try_from(subscribers)?);
    let before = resident();
    let (mut latencies, begun, processor) = (Histogram::<u64>::new(3)?, Instant::now(), processor_time());
    for _ in 0..subscribers / AT_ONCE {
        let from = Instant::now();
        streams.extend(subscribe(&store, AT_ONCE).await?);
        latencies.record(u64::try_from(from.elapsed().as_nanos())?)?;
    }
    let (took, processor) = (begun.elapsed(), processor_time() - processor);
    let grown = |before| Some(Growth { bytes: resident()?.saturating_sub(before), units: subscribers });
    let growth = before.and_then(grown);
    drop(streams);
    store.close().await?;
    Ok(Figures { growth, ..Figures::new(&latencies, 0, took).with_processor_time(processor) })
}

/// So many subscriptions, each of which has told the present state.
async fn subscribe(store: &Store, number: u64) -> Result<Vec<WatchStream>> {
    let mut streams = try_join_all((0..number).map(|_| store.watch(KEY))).await?;
    for stream in &mut streams {
        match stream.next().await {
            Some(WatchEvent::Put(_)) => {}
            other => return Err(format!("unexpected: {other:?}").into()),
        }
    }
    Ok(streams)
}
