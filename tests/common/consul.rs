//! How a Consul agent is run and asked.

use super::http;
use super::server::{Setup, on_path};
use serde_json::json;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// HTTP, gossip, and the servers' own.
pub const PORTS: usize = 3;

pub fn missing() -> Option<String> {
    (!on_path("consul")).then(|| "no `consul` on PATH".to_owned())
}

/// A server with its Raft log on disk; `-dev` would keep it in memory.
pub fn command(dir: &Path, ports: &[u16], setup: &Setup) -> Vec<String> {
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
    // Agents from 1.14 on listen for gRPC over TLS unless told otherwise; older ones refuse the very name of the setting.
    if version() >= (1, 14) {
        config["ports"]["grpc_tls"] = json!(-1);
    }
    if let Some(tls) = &setup.tls {
        config["ports"]["https"] = json!(ports[PORTS]);
        config["cert_file"] = json!(tls.identity.cert);
        config["key_file"] = json!(tls.identity.key);
        config["ca_file"] = json!(tls.clients);
        config["verify_incoming_https"] = json!(tls.demanding);
    }
    if let Some(token) = &setup.token {
        let name = if version() >= (1, 11) { "initial_management" } else { "master" };
        config["acl"] = json!({ "enabled": true, "default_policy": "deny", "tokens": { name: token } });
    }
    let file = dir.join("consul.json");
    std::fs::write(&file, config.to_string()).expect("the agent's configuration");
    vec!["consul".into(), "agent".into(), format!("-config-file={}", file.display())]
}

fn version() -> (u32, u32) {
    static VERSION: OnceLock<(u32, u32)> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let output = Command::new("consul").arg("version").output().expect("consul's version");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().next().and_then(|line| line.split_once('v')).map_or("", |(_, version)| version);
        let mut numbers = version.split('.').map_while(|part| part.parse().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    })
}

/// The consistent read needs a leader that is done with taking over, and sessions need the node in the catalogue.
pub async fn healthy(address: SocketAddr, setup: &Setup) -> bool {
    let token = setup.token.as_ref().map(|token| format!("X-Consul-Token: {token}\r\n")).unwrap_or_default();
    let answer = http::get_as(address, "/v1/health/state/passing?consistent", &token).await;
    answer.is_ok_and(|answer| answer.status == 200 && answer.body.contains("serfHealth"))
}
