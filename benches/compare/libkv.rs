//! Docker's libkv (Go), by a program that drives it through its public API and prints a line of JSON for each measurement.
//!
//! `KVACTOR_PEER_LIBKV` names the program. It takes `-backend consul|etcd|zk -endpoint HOST:PORT` and what [`arguments`] has for
//! each subject, and measures as the subject's module does, with a store of its own for either side.

use crate::Subject;
use crate::client::Result;
use crate::common::Server;
use crate::options::Options;
use crate::report::Figures;
use serde::Deserialize;
use std::path::Path;
use std::process::Command;

/// Names the program.
pub(crate) const VARIABLE: &str = "KVACTOR_PEER_LIBKV";
/// Why libkv isn't compared.
pub(crate) const MISSING: &str = "KVACTOR_PEER_LIBKV doesn't name its program";

/// What the program prints, as far as it matters here.
#[derive(Deserialize)]
struct Line {
    ops: u64,
    errors: u64,
    seconds: f64,
    p50_us: f64,
    p99_us: f64,
    extra: Extra,
}

#[derive(Deserialize)]
struct Extra {
    max_us: f64,
}

pub(crate) fn measure(program: Option<&Path>, subject: Subject, server: &Server, options: &Options) -> Result<Figures> {
    let output = Command::new(program.ok_or(MISSING)?)
        .args(["-backend", server.kind().scheme(), "-endpoint", &server.address().to_string()])
        .args(arguments(subject, options))
        .output()?;
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
    }
    let Line { ops, errors, seconds, p50_us, p99_us, extra } = serde_json::from_slice(&output.stdout)?;
    Ok(Figures { samples: ops, lost: errors, seconds, p50_us, p99_us, max_us: extra.max_us })
}

fn arguments(subject: Subject, options: &Options) -> Vec<String> {
    let Options { samples, gap, value_size, lock_time, handoffs, .. } = options;
    let arguments = match subject {
        Subject::Watch => {
            format!("-op watch_latency -samples {samples} -gap {}us -value-size {value_size}", gap.as_micros())
        }
        Subject::Lock => format!("-op lock_reuse -seconds {}", lock_time.as_secs_f64()),
        Subject::Handoff => format!("-op lock_handoff -samples {handoffs}"),
        // It isn't asked: it would need a second server, and to be told of the kill.
        Subject::Failover => String::new(),
    };
    arguments.split(' ').map(str::to_owned).collect()
}
