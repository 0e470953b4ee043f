//! The quickstart example prints the same lines on every backend.
#![cfg(all(feature = "consul", feature = "etcd", feature = "zookeeper", feature = "local", feature = "memory"))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Kind;
use std::process::Command;

/// What the example prints on the store at `url`, or on its own one.
async fn quickstart(url: Option<String>) -> String {
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--locked", "--all-features", "--example", "quickstart", "--"]);
    command.args(url).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    out.into_owned()
}

/// What every backend prints.
const LINES: &str = "\
get           quickstart/services/web/1 = 10.0.0.1:80
list          quickstart/services/web/1 = 10.0.0.1:80
list          quickstart/services/web/2 = 10.0.0.2:80
atomic_put    quickstart/leader was modified, carol has to look again
txn           committed 2 operations
txn           check 0 failed, nothing was written
ttl           quickstart/lease exists: true
ttl           quickstart/lease went in time: true
delete_tree   5 keys
";

async fn on_server(kind: Kind) {
    let Some(server) = common::shared(kind).await else { return };
    assert_eq!(quickstart(Some(server.url("quickstart"))).await, LINES);
}

#[tokio::test]
async fn without_an_argument_on_a_file() {
    assert_eq!(quickstart(None).await, LINES);
}

#[tokio::test]
async fn on_memory() {
    assert_eq!(quickstart(Some("memory://quickstart".into())).await, LINES);
}

#[tokio::test]
async fn on_consul() {
    on_server(Kind::Consul).await;
}

#[tokio::test]
async fn on_etcd() {
    on_server(Kind::Etcd).await;
}

#[tokio::test]
async fn on_zookeeper() {
    on_server(Kind::ZooKeeper).await;
}
