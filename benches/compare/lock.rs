//! Locks that nobody else wants: how often one caller can get one and give it back.
//!
//! What the lock hangs on at the server, a session or a lease, is there before the first one counts.

use crate::client::{Client, Peer, Result, Runtime};
use crate::figures::Figures;
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

const KEY: &str = "free";

pub(crate) fn rate<P: Peer>(peer: &P, runtime: Runtime, time: Duration) -> Result<Figures> {
    runtime.block_on(async {
        let mut client = peer.connect().await?;
        once(&mut client).await?;
        let (mut latencies, begun) = (Histogram::<u64>::new(3)?, Instant::now());
        while begun.elapsed() < time {
            let from = Instant::now();
            once(&mut client).await?;
            latencies.record(u64::try_from(from.elapsed().as_nanos())?)?;
        }
        let took = begun.elapsed();
        client.close().await?;
        Ok(Figures::new(&latencies, 0, took))
    })
}

async fn once(client: &mut impl Client) -> Result<()> {
    let held = client.lock(KEY).await?;
    client.unlock(held).await
}
