//! The examples on real servers: `quickstart` prints the same lines on every backend, `watch` outlives a server's restart.
#![cfg(all(feature = "consul", feature = "etcd", feature = "zookeeper", feature = "local", feature = "memory"))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Kind, Server, on_servers};
use kvactor::Store;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

on_servers! {
    quickstart_prints_the_same_lines
    watch_outlives_a_restart
}

fn example(name: &str) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--locked", "--all-features", "--example", name, "--"]);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// What the example prints on the store at `url`, or on its own one.
async fn quickstart(url: Option<String>) -> String {
    let mut command = example("quickstart");
    command.args(url);
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

async fn quickstart_prints_the_same_lines(kind: Kind) {
    let Some(server) = common::shared(kind).await else { return };
    assert_eq!(quickstart(Some(server.url("quickstart"))).await, LINES);
}

/// The lines that the `watch` example prints.
struct Lines(tokio::sync::mpsc::UnboundedReceiver<String>);

impl Lines {
    /// Reads on until a line says this; two minutes are a failure, for the example may have to be built first.
    async fn until(&mut self, said: &str) {
        let mut before = Vec::new();
        let line = async {
            while let Some(line) = self.0.recv().await {
                if line.contains(said) {
                    return true;
                }
                before.push(line);
            }
            false
        };
        let found = tokio::time::timeout(std::time::Duration::from_secs(120), line).await;
        assert!(matches!(found, Ok(true)), "no `{said}` behind {before:?}");
    }
}

/// Ends the example with the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn watch_outlives_a_restart(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let url = server.url("watch");
    let store = Store::connect(&url).await.unwrap();
    store.put("services/web/1", "10.0.0.1").await.unwrap();
    // Built and run once by cargo; then without it, whose end would not be the program's.
    let built = tokio::task::spawn_blocking(|| example("watch").stdout(Stdio::null()).status().unwrap());
    assert!(built.await.unwrap().success());
    let program = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples/watch");
    let mut running = Command::new(program).args([&url, "services"]).stdout(Stdio::piped()).spawn().unwrap();
    let printed = BufReader::new(running.stdout.take().unwrap()).lines();
    let _running = Running(running);
    let (sender, lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || printed.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut lines = Lines(lines);
    lines.until("1 keys at first").await;
    store.put("services/web/2", "10.0.0.2").await.unwrap();
    lines.until("services/web/2 was written").await;
    server.kill();
    lines.until("the link is down").await;
    server.restart().await;
    lines.until("the link is back").await;
    let store = Store::connect(&url).await.unwrap();
    store.delete("services/web/1").await.unwrap();
    lines.until("services/web/1 is gone").await;
}

#[tokio::test]
async fn without_an_argument_on_a_file() {
    assert_eq!(quickstart(None).await, LINES);
}

#[tokio::test]
async fn on_memory() {
    assert_eq!(quickstart(Some("memory://quickstart".into())).await, LINES);
}
