//! How a Consul agent is run and asked.

use super::http;
use super::server::on_path;
use serde_json::json;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

/// HTTP, gossip, and the servers' own.
pub const PORTS: usize = 3;

pub fn missing() -> Option<String> {
    (!on_path("consul")).then(|| "no `consul` on PATH".to_owned())
}

/// A server with its Raft log on disk; `-dev` would keep it in memory.
pub fn command(dir: &Path, ports: &[u16]) -> Vec<String> {
    let mut config = json!({
        "node_name": "test",
        "data_dir": dir.join("data"),
        "server": true,
        "bootstrap_expect": 1,
        "bind_addr": "127.0.0.1",
        "client_addr": "127.0.0.1",
        "disable_update_check": true,
        "performance": { "raft_multiplier": 1 },
        "ports": { "http": ports[0], "serf_lan": ports[1], "server": ports[2], "serf_wan": -1, "dns": -1, "grpc": -1 },
    });
    if has_grpc_tls() {
        config["ports"]["grpc_tls"] = json!(-1);
    }
    let file = dir.join("consul.json");
    std::fs::write(&file, config.to_string()).expect("the agent's configuration");
    vec!["consul".into(), "agent".into(), format!("-config-file={}", file.display())]
}

/// Agents from 1.14 on listen for gRPC over TLS unless told otherwise; older ones refuse the very name of the setting.
fn has_grpc_tls() -> bool {
    let output = Command::new("consul").arg("version").output().expect("consul's version");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.lines().next().and_then(|line| line.split_once("v")).map(|(_, version)| version.to_owned());
    let mut numbers = version.as_deref().unwrap_or_default().split('.').map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (1, 14)
}

/// The consistent read needs a leader that is done with taking over, and sessions need the node in the catalogue.
pub async fn healthy(address: SocketAddr) -> bool {
    let answer = http::get(address, "/v1/health/state/passing?consistent").await;
    answer.is_ok_and(|answer| answer.status == 200 && answer.body.contains("serfHealth"))
}
