//! A job that must not run twice at one moment. Start it several times: one process works at a time, the others wait.
//!
//! ```sh
//! cargo run --example lock --features etcd -- etcd://127.0.0.1:2379/demo
//! cargo run --example lock   # without an argument: two workers on a store in memory
//! ```

use kvactor::{Error, LockGuard, LockOptions, Result, Store};
use std::time::Duration;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let store = Store::connect(&std::env::args().nth(1).unwrap_or_else(|| "memory://lock".into())).await?;
    let name = std::process::id();
    // Two workers here; more in other processes.
    let (first, second) = (work(&store, format!("{name}/1")), work(&store, format!("{name}/2")));
    let (first, second) = tokio::join!(first, second);
    first.and(second)?;
    store.close().await
}

async fn work(store: &Store, name: String) -> Result<()> {
    // The two are one task, which may hold and wait at one time as they don't wait for each other in a circle.
    let options = LockOptions { value: name.clone().into(), wait_for_own_task: true, ..LockOptions::default() };
    for _ in 0..3 {
        let lock = store.lock_with("jobs/nightly", options.clone()).await?;
        match job(&lock, &name).await {
            Ok(()) => lock.unlock().await?,
            // Nothing was written. The next round waits for the lock again.
            Err(Error::LockLost { .. }) => println!("{name} lost the lock"),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The job itself: its writes are made only while this very acquisition holds the lock.
async fn job(lock: &LockGuard, name: &str) -> Result<()> {
    println!("{name} works, with the fencing token {}", lock.token());
    for step in 1..=3 {
        // Work that takes time ends early when the lock is lost.
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(30)) => {}
            () = lock.lost() => {}
        }
        lock.put("progress/nightly", format!("{name}: step {step}")).await?;
    }
    println!("{name} is done");
    Ok(())
}
