//! Service discovery: instances register themselves, clients follow who is there. Kill an instance: it disappears; restart the server:
//! it comes back.
//!
//! ```sh
//! cargo run --example discovery --features consul -- consul://127.0.0.1:8500/demo register web 10.0.0.1:80
//! cargo run --example discovery --features consul -- consul://127.0.0.1:8500/demo follow web
//! cargo run --example discovery   # without arguments: both on a store in memory
//! ```

use futures_util::StreamExt;
use kvactor::{Error, KvPair, RegistrationEvent, Result, Store};
use std::time::Duration;

/// How soon an instance that died disappears, as far as the server's own bound allows.
const TTL: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => demonstrate().await,
        [url, "register", service, address] => register(&Store::connect(url).await?, service, address).await,
        [url, "follow", service] => follow(&Store::connect(url).await?, service, usize::MAX).await,
        _ => Err(Error::invalid_config("arguments", "they are: URL register SERVICE ADDRESS, or: URL follow SERVICE")),
    }
}

/// Is there until Ctrl-C.
async fn register(store: &Store, service: &str, address: &str) -> Result<()> {
    let key = format!("services/{service}/{address}");
    let registration = store.register(key, address.to_owned(), TTL).await?;
    let mut events = registration.events();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(RegistrationEvent::Registered) => println!("{address} is registered"),
                Some(RegistrationEvent::Suspended) => println!("{address} may not be registered just now"),
                Some(RegistrationEvent::Closed) | None => break,
            },
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    // Clients needn't wait for the TTL.
    registration.unregister().await?;
    store.close().await
}

/// Prints who is there, at first and whenever that changes; so many times.
async fn follow(store: &Store, service: &str, times: usize) -> Result<()> {
    let lists = store.watch_tree(format!("services/{service}")).await?.lists();
    let mut lists = lists.take(times);
    while let Some(instances) = lists.next().await {
        let addresses = |pair: &KvPair| String::from_utf8_lossy(&pair.value).into_owned();
        println!("{service} is at {:?}", instances.iter().map(addresses).collect::<Vec<_>>());
    }
    Ok(())
}

/// Two instances come, and one goes.
async fn demonstrate() -> Result<()> {
    let store = Store::connect("memory://discovery").await?;
    let first = store.register("services/web/1", "10.0.0.1:80", TTL).await?;
    follow(&store, "web", 1).await?;
    let second = store.register("services/web/2", "10.0.0.2:80", TTL).await?;
    follow(&store, "web", 1).await?;
    first.unregister().await?;
    follow(&store, "web", 1).await?;
    drop(second);
    store.close().await
}
