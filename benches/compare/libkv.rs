//! Docker's libkv (Go), by a program that drives it through its public API and prints a line of JSON for each measurement.
//!
//! `KVACTOR_PEER_LIBKV` names the program. It takes `-backend consul|etcd|zk -endpoint HOST:PORT -op watch_latency -samples N
//! -gap 20ms -value-size BYTES`, watches on a store of its own, and measures as [`watch`](crate::watch) does.

use crate::client::Result;
use crate::common::Server;
use crate::report::Figures;
use crate::watch::Plan;
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
    p50_us: f64,
    p99_us: f64,
    extra: Extra,
}

#[derive(Deserialize)]
struct Extra {
    max_us: f64,
}

pub(crate) fn watch_latency(program: Option<&Path>, server: &Server, plan: &Plan) -> Result<Figures> {
    let output = Command::new(program.ok_or(MISSING)?)
        .args(["-op", "watch_latency", "-backend", server.kind().scheme()])
        .args(["-endpoint", &server.address().to_string()])
        .args(["-samples", &plan.samples.to_string()])
        .args(["-gap", &format!("{}us", plan.gap.as_micros())])
        .args(["-value-size", &plan.value_size.to_string()])
        .output()?;
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
    }
    let Line { ops, errors, p50_us, p99_us, extra } = serde_json::from_slice(&output.stdout)?;
    Ok(Figures { samples: ops, lost: errors, p50_us, p99_us, max_us: extra.max_us })
}
