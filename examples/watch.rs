//! Prints a directory as it changes, and goes on when the server is restarted. Ends with Ctrl-C.
//!
//! ```sh
//! cargo run --example watch --features etcd -- etcd://127.0.0.1:2379/apps services
//! cargo run --example watch   # without arguments: on a store in memory, which it changes itself, and then it ends
//! ```

use kvactor::{KvPair, Result, Store, TreeEvent};
use std::collections::BTreeMap;
use std::time::SystemTime;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(url) = arguments.next() else { return demonstrate().await };
    let dir = arguments.next().unwrap_or_default();
    let mut config = kvactor::Config::from_url(&url)?;
    // The server may come up later.
    config.options.lazy = true;
    let store = Store::open(config).await?;
    tokio::select! {
        watched = follow(&store, &dir) => watched?,
        _ = tokio::signal::ctrl_c() => println!("closing"),
    }
    store.close().await
}

/// Follows a directory until the store is closed.
async fn follow(store: &Store, dir: &str) -> Result<()> {
    let mut events = loop {
        match store.watch_tree(dir).await {
            Ok(events) => break events,
            // Only the beginning needs patience of one's own: a watch that stands goes on by itself.
            Err(error) if error.is_retryable() => println!("waiting: {error}"),
            Err(error) => return Err(error),
        }
    };
    let mut tree = BTreeMap::new();
    while let Some(event) = events.next().await {
        print_event(&event);
        if apply(&mut tree, event) {
            print_tree(dir, tree.values());
        }
    }
    Ok(())
}

/// Takes an event; whether the tree changed.
fn apply(tree: &mut BTreeMap<String, KvPair>, event: TreeEvent) -> bool {
    match event {
        TreeEvent::Snapshot(pairs) => *tree = pairs.into_iter().map(|pair| (pair.key.to_string(), pair)).collect(),
        TreeEvent::Put(pair) => drop(tree.insert(pair.key.to_string(), pair)),
        TreeEvent::Delete { key, .. } => drop(tree.remove(key.as_str())),
        _ => return false,
    }
    true
}

fn print_event(event: &TreeEvent) {
    let now = humantime::format_rfc3339_seconds(SystemTime::now());
    match event {
        TreeEvent::Snapshot(pairs) => println!("{now} {} keys at first", pairs.len()),
        TreeEvent::Put(pair) => println!("{now} {} was written", pair.key),
        TreeEvent::Delete { key, .. } => println!("{now} {key} is gone"),
        TreeEvent::Suspended => println!("{now} the link is down: the tree may be out of date"),
        TreeEvent::Resumed => println!("{now} the link is back"),
        _ => println!("{now} the store is closed"),
    }
}

fn print_tree<'a>(dir: &str, pairs: impl Iterator<Item = &'a KvPair>) {
    println!("{}/", dir.trim_end_matches('/'));
    for pair in pairs {
        println!("  {} = {}", pair.key, String::from_utf8_lossy(&pair.value));
    }
}

/// Watches a store in memory while it is changed.
async fn demonstrate() -> Result<()> {
    let store = Store::connect("memory://watch").await?;
    store.put("services/web/1", "10.0.0.1:80").await?;
    let change = async {
        store.put("services/web/2", "10.0.0.2:80").await?;
        store.delete("services/web/1").await?;
        store.close().await
    };
    let (followed, changed) = tokio::join!(follow(&store, "services"), change);
    followed.and(changed)
}
