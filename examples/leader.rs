//! A worker that leads, does guarded writes, loses the leadership, and stands again. Start three of them and stop the one that leads,
//! with Ctrl-C or `kill -9`: another takes over.
//!
//! ```sh
//! cargo run --example leader --features etcd -- etcd://127.0.0.1:2379/demo worker-1
//! cargo run --example leader   # without arguments: three workers on a store in memory, which lead one after the other
//! ```

use kvactor::{CampaignOptions, Error, LeaderEvent, Leadership, LeadershipEvent, Result, Store};
use std::time::Duration;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(url) = arguments.next() else { return demonstrate().await };
    let name = arguments.next().unwrap_or_else(|| format!("worker-{}", std::process::id()));
    let store = Store::connect(&url).await?;
    tokio::select! {
        led = lead(&store, &name, u32::MAX) => led?,
        watched = observe(&store) => watched?,
        _ = tokio::signal::ctrl_c() => println!("{name} goes"),
    }
    // Resigns, so that the next one needn't wait for the TTL.
    store.close().await
}

/// Leads whenever it is elected, for so many steps.
async fn lead(store: &Store, name: &str, steps: u32) -> Result<()> {
    println!("{name} stands for election");
    let options = CampaignOptions { ttl: Duration::from_secs(10), stand_again: true, ..CampaignOptions::default() };
    let leadership = store.campaign_with("workers/leader", name.to_owned(), options).await?;
    let mut events = leadership.events();
    while let Some(event) = events.next().await {
        match event {
            LeadershipEvent::Elected(term) => {
                println!("{name} leads in term {term}");
                if work(store, &leadership, name, steps).await? {
                    println!("{name} resigns");
                    return leadership.resign().await;
                }
            }
            LeadershipEvent::Suspended => println!("{name} may lose the lead in {:?}", leadership.remaining()),
            LeadershipEvent::Demoted => println!("{name} leads no more, and stands again"),
        }
    }
    Ok(())
}

/// A leader's work, until it has made its steps or leads no more. Returns whether it has made them.
async fn work(store: &Store, leadership: &Leadership, name: &str, steps: u32) -> Result<bool> {
    for _ in 0..steps {
        let done: u64 = match store.get("workers/progress").await {
            Ok(pair) => String::from_utf8_lossy(&pair.value).parse().unwrap_or(0),
            Err(Error::KeyNotFound { .. }) => 0,
            Err(error) if error.is_retryable() && leadership.is_leader() => continue,
            Err(error) if error.is_retryable() => return Ok(false),
            Err(error) => return Err(error),
        };
        // The server itself refuses this where another leads by now.
        match leadership.put("workers/progress", (done + 1).to_string()).await {
            Ok(()) => println!("{name} made step {}", done + 1),
            Err(Error::LockLost { .. }) => return Ok(false),
            // It may have been made: the next look at the progress tells.
            Err(error) if error.is_retryable() || error.is_indeterminate() => {}
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
            () = leadership.demoted() => return Ok(false),
        }
    }
    Ok(true)
}

/// Says who leads, as any process can see it.
async fn observe(store: &Store) -> Result<()> {
    let mut leaders = store.observe_leader("workers/leader").await?;
    while let Some(event) = leaders.next().await {
        match event {
            LeaderEvent::Elected(leader) => println!("the leader is {}", String::from_utf8_lossy(&leader.value)),
            LeaderEvent::Vacant => println!("there is no leader"),
            LeaderEvent::Suspended => println!("who leads is not known: the link is down"),
            LeaderEvent::Resumed | LeaderEvent::Closed => {}
        }
    }
    Ok(())
}

/// Three workers, each of which leads for three steps.
async fn demonstrate() -> Result<()> {
    let stores = [
        Store::connect("memory://leader").await?,
        Store::connect("memory://leader").await?,
        Store::connect("memory://leader").await?,
    ];
    let workers = stores.iter().zip(["anna", "ben", "clara"]).map(|(store, name)| lead(store, name, 3));
    futures_util::future::try_join_all(workers).await?;
    let done = stores[0].get("workers/progress").await?.value;
    println!("{} steps were made", String::from_utf8_lossy(&done));
    Ok(())
}
