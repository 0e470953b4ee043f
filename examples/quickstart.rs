//! The main job in one sitting: put, get, list, atomic_put, a transaction, a TTL. It prints the same on every backend.
//!
//! ```sh
//! cargo run --example quickstart
//! cargo run --example quickstart --features etcd -- etcd://127.0.0.1:2379/quickstart
//! ```

use kvactor::{Check, Condition, Error, Expected, Operation, PutOptions, Store, TxnOutcome};
use std::time::{Duration, Instant};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Without an argument: a file of our own, which is gone afterwards.
    let folder = tempfile::tempdir()?;
    let embedded = format!("local://{}/quickstart.redb", folder.path().display());
    let url = std::env::args().nth(1).unwrap_or(embedded);
    let store = Store::connect(&url).await?;
    // What an earlier run may have left.
    match store.delete_tree("quickstart").await {
        Ok(_) | Err(Error::KeyNotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }

    // Put and get.
    store.put("quickstart/services/web/1", "10.0.0.1:80").await?;
    store.put("quickstart/services/web/2", "10.0.0.2:80").await?;
    let pair = store.get("quickstart/services/web/1").await?;
    println!("get           {} = {}", pair.key, text(&pair.value));

    // List: everything beneath a directory, sorted.
    for pair in store.list("quickstart/services").await? {
        println!("list          {} = {}", pair.key, text(&pair.value));
    }

    // Atomic put: only the first of two writers who read the same state gets through.
    let leader = store.atomic_put("quickstart/leader", "alice", Expected::Absent).await?;
    store.atomic_put("quickstart/leader", "bob", &leader).await?;
    match store.atomic_put("quickstart/leader", "carol", &leader).await {
        Err(Error::KeyModified { key }) => println!("atomic_put    {key} was modified, carol has to look again"),
        other => return Err(format!("carol should not have got through: {other:?}").into()),
    }

    // A transaction: both writes or none.
    let checks = vec![Check::new("quickstart/queue/1", Condition::Absent)?];
    let operations = vec![Operation::put("quickstart/queue/1", "job")?, Operation::put("quickstart/queue/last", "1")?];
    match store.txn(checks.clone(), operations.clone()).await? {
        TxnOutcome::Committed(results) => println!("txn           committed {} operations", results.len()),
        TxnOutcome::CheckFailed { index } => println!("txn           check {index} failed"),
    }
    match store.txn(checks, operations).await? {
        TxnOutcome::Committed(results) => println!("txn           committed {} operations", results.len()),
        TxnOutcome::CheckFailed { index } => println!("txn           check {index} failed, nothing was written"),
    }

    // A TTL: the key goes by itself.
    let written = Instant::now();
    store.put_with("quickstart/lease", "for two seconds", PutOptions::ttl(Duration::from_secs(2))).await?;
    println!("ttl           quickstart/lease exists: {}", store.exists("quickstart/lease").await?);
    while store.exists("quickstart/lease").await? {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let kept = (2.0..3.5).contains(&written.elapsed().as_secs_f64());
    println!("ttl           quickstart/lease went in time: {kept}");

    // Clean up.
    println!("delete_tree   {} keys", store.delete_tree("quickstart").await?);
    store.close().await?;
    Ok(())
}

fn text(value: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(value)
}
