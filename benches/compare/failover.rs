//! The leader of three servers is killed: from the last put that succeeded before to the end of the first one that does after.
//!
//! Each attempt at a put may take a second, whoever makes it, and the next one follows at once, or [`PAUSE`] after a refusal. The
//! leader is the first of the hosts that a client is given, then the second, then the third, as only some clients keep to the
//! first one.

use crate::case;
use crate::client::{Client, Peer, Result, Runtime};
use crate::common::{Cluster, Kind};
use crate::figures::Figures;
use crate::{kvactor, raw};
use bytes::Bytes;
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

const KEY: &str = "precious";

/// How long all goes well, and a client may find its way to the servers.
const BEFORE: Duration = Duration::from_millis(500);
/// After how long somebody in a hurry gives an attempt up.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(1);
/// What somebody with manners waits before the next one, where the answer was no.
const PAUSE: Duration = Duration::from_millis(20);
/// Who isn't back by then never will be.
const PATIENCE: Duration = Duration::from_secs(60);

/// A peer loses the leader, `samples` times. That is measured in this process, which alone can kill the servers that it has started.
pub(crate) fn measure(peer: case::Peer, cluster: &Cluster, samples: u64) -> Result<Figures> {
    let ours = |runtime| {
        let among = |hosts: &[String]| kvactor::Peer::among(cluster.kind().scheme(), hosts);
        time(among, runtime, cluster, samples)
    };
    match (peer, cluster.kind()) {
        (case::Peer::Kvactor, _) => ours(Runtime::Actix),
        (case::Peer::KvactorTokio, _) => ours(Runtime::Tokio),
        (case::Peer::Raw, Kind::Consul) => time(raw::consul::Peer::among, Runtime::Actix, cluster, samples),
        (case::Peer::Raw, Kind::Etcd) => time(raw::etcd::Peer::among, Runtime::Actix, cluster, samples),
        (case::Peer::Raw, Kind::ZooKeeper) => time(raw::zookeeper::Peer::among, Runtime::Actix, cluster, samples),
        (case::Peer::Libkv, _) => Err("its program measures no failover".into()),
    }
}

/// The client that `peer` makes for these hosts loses the leader, `samples` times.
fn time<P: Peer>(peer: impl Fn(&[String]) -> P, runtime: Runtime, cluster: &Cluster, samples: u64) -> Result<Figures> {
    let (mut times, mut lost, begun) = (Histogram::<u64>::new(3)?, 0, Instant::now());
    for sample in 0..samples {
        runtime.block_on(async {
            cluster.heal().await;
            let leader = cluster.leader().await.ok_or("nobody leads")?;
            let mut hosts: Vec<_> = cluster.nodes().iter().map(|node| node.address().to_string()).collect();
            hosts.rotate_left((leader + sample as usize) % 3);
            match once(&peer(&hosts), || cluster.nodes()[leader].kill()).await? {
                Some(took) => times.record(u64::try_from(took.as_nanos())?)?,
                None => lost += 1,
            }
            Ok(())
        })?;
    }
    Ok(Figures::new(&times, lost, begun.elapsed()))
}

async fn once(peer: &impl Peer, kill: impl FnOnce()) -> Result<Option<Duration>> {
    let mut client = peer.connect().await?;
    let begun = Instant::now();
    let mut last = begun;
    while begun.elapsed() < BEFORE {
        client.put(KEY, Bytes::from_static(b"before")).await?;
        last = Instant::now();
    }
    kill();
    while last.elapsed() < PATIENCE {
        match timeout(ATTEMPT, client.put(KEY, Bytes::from_static(b"after"))).await {
            Ok(Ok(())) => return Ok(Some(last.elapsed())),
            Ok(Err(_)) => sleep(PAUSE).await,
            Err(_) => {}
        }
        // Only who has to find another server by himself needs time for it.
        let _ = timeout(ATTEMPT, client.turn_elsewhere()).await;
    }
    Ok(None)
}
