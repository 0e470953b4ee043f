//! Docker's libkv (Go), by a program that drives it through its public API and prints a line of JSON for each measurement.
//!
//! `KVACTOR_PEER_LIBKV` names the program. It takes `-backend consul|etcd|zk -endpoint HOST:PORT` and what [`arguments`] has for
//! each task, and measures as the task's module does, with a store of its own for either side.

use crate::case::{Backend, Call, Case, Task};
use crate::client::Result;
use crate::figures::Figures;
use crate::options::Amounts;
use crate::resources::peak;
use crate::site::Place;
use serde::Deserialize;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// Names the program.
pub(crate) const VARIABLE: &str = "KVACTOR_PEER_LIBKV";
/// Why libkv isn't compared.
pub(crate) const MISSING: &str = "KVACTOR_PEER_LIBKV doesn't name its program";
/// How often the program's memory is looked at: it doesn't tell of it.
const LOOK: Duration = Duration::from_millis(20);

/// What the program prints, as far as it matters here.
#[derive(Deserialize)]
struct Line {
    ops: u64,
    errors: u64,
    seconds: f64,
    p50_us: f64,
    p99_us: f64,
    client_cpu_us_per_op: f64,
    #[serde(default)]
    first_error: String,
    extra: Extra,
}

#[derive(Deserialize)]
struct Extra {
    max_us: f64,
}

pub(crate) fn measure(program: Option<&Path>, case: Case, place: &Place, amounts: &Amounts) -> Result<Figures> {
    let Place::Server { scheme, address } = place else { return Err("there is no server to speak to".into()) };
    let mut child = Command::new(program.ok_or(MISSING)?)
        .args(["-backend", scheme, "-endpoint", address])
        .args(arguments(case, amounts)?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let peak_bytes = watch_memory(&mut child)?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
    }
    let line: Line = serde_json::from_slice(&output.stdout)?;
    if line.ops == 0 {
        return Err(format!("not one was done: {}", line.first_error).into());
    }
    Ok(Figures {
        samples: line.ops,
        lost: line.errors,
        seconds: line.seconds,
        p50_us: line.p50_us,
        p99_us: line.p99_us,
        max_us: line.extra.max_us,
        // With watches and locks there are pauses, and two clients, and it doesn't say how it counts.
        cpu_us: matches!(case.task, Task::Calls { .. }).then_some(line.client_cpu_us_per_op),
        peak_bytes,
        growth: None,
    })
}

/// Waits until the program is over, and returns the most memory that it was seen to have in use. It prints no more than what a
/// pipe holds.
fn watch_memory(child: &mut Child) -> Result<Option<u64>> {
    let (process, mut most) = (child.id().to_string(), None);
    while child.try_wait()?.is_none() {
        most = most.max(peak(&process));
        thread::sleep(LOOK);
    }
    Ok(most)
}

/// The program's name for a call, where it has it. Its `get` is a consistent read, but on ZooKeeper, where it reads what the one
/// server has.
pub(crate) fn operation(backend: Backend, call: Call, callers: usize) -> Option<&'static str> {
    match call {
        Call::Get => (backend != Backend::ZooKeeper).then_some("get"),
        Call::StaleGet => (backend == Backend::ZooKeeper).then_some("get"),
        Call::Put => Some("put"),
        Call::AtomicPut => Some("atomic_put"),
        Call::List100 => Some("list_100"),
        Call::List1000 => Some("list_1000"),
        // It has one caller, whatever it is told.
        Call::DeleteTree100 => (callers == 1).then_some("delete_tree_100"),
        Call::Delete | Call::Txn10 | Call::List100Apart | Call::List10000 => None,
    }
}

fn arguments(case: Case, amounts: &Amounts) -> Result<Vec<String>> {
    let Amounts { call_time, value_size, samples, gap, lock_time, handoffs, .. } = amounts;
    let arguments = match case.task {
        Task::Calls { call, callers } => {
            let operation = operation(case.backend, call, callers).ok_or("libkv's program doesn't measure this")?;
            let seconds = call_time.as_secs_f64();
            format!("-op {operation} -concurrency {callers} -seconds {seconds} -value-size {value_size}")
        }
        Task::Watch => {
            format!("-op watch_latency -samples {samples} -gap {}us -value-size {value_size}", gap.as_micros())
        }
        Task::Lock => format!("-op lock_reuse -seconds {}", lock_time.as_secs_f64()),
        Task::Handoff => format!("-op lock_handoff -samples {handoffs}"),
        // Failover would take being told of the kill.
        Task::Linear { .. } | Task::Fanout | Task::Idle | Task::Failover => {
            return Err("libkv's program doesn't measure this".into());
        }
    };
    Ok(arguments.split(' ').map(str::to_owned).collect())
}
