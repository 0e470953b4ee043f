//! How a Consul agent is run and asked.

use super::cluster::Standing;
use super::http;
use super::server::{Setup, on_path};
use serde_json::{Value, json};
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
        "node_name": name(setup),
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
    if let Some(member) = &setup.member {
        let gossip = member.ports.iter().map(|ports| json!(format!("127.0.0.1:{}", ports[1])));
        config["bootstrap_expect"] = json!(member.ports.len());
        // It is still itself when it has lost everything.
        config["node_id"] = json!(format!("00000000-0000-4000-8000-{:012}", member.index));
        config["retry_join"] = gossip.collect();
        config["retry_interval"] = json!("500ms");
    }
    let file = dir.join("consul.json");
    std::fs::write(&file, config.to_string()).expect("the agent's configuration");
    vec!["consul".into(), "agent".into(), format!("-config-file={}", file.display())]
}

fn name(setup: &Setup) -> String {
    format!("test-{}", setup.member.as_ref().map_or(0, |member| member.index))
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
    let passing = |answer: http::Answer| serde_json::from_str::<Value>(&answer.body).ok();
    let passing = answer.ok().filter(|answer| answer.status == 200).and_then(passing);
    let Some(Value::Array(checks)) = passing else { return false };
    checks.iter().any(|check| check["CheckID"] == "serfHealth" && check["Node"] == name(setup))
}

/// How the server stands that answers here.
pub async fn standing(address: SocketAddr) -> Option<Standing> {
    let answer = http::get(address, "/v1/agent/self").await.ok()?;
    let raft = &serde_json::from_str::<Value>(&answer.body).ok()?["Stats"]["raft"];
    let number = |name: &str| raft[name].as_str()?.parse().ok();
    Some(Standing { leads: raft["state"] == "Leader", term: number("term")?, applied: number("applied_index")? })
}
