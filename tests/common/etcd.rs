//! How etcd is run and asked.

use super::http;
use super::server::{Server, on_path};
use std::net::SocketAddr;
use std::path::Path;

/// For clients, and for the peers that it hasn't.
pub const PORTS: usize = 2;

pub fn missing() -> Option<String> {
    (!on_path("etcd")).then(|| "no `etcd` on PATH".to_owned())
}

pub fn command(dir: &Path, ports: &[u16]) -> Vec<String> {
    let clients = format!("http://127.0.0.1:{}", ports[0]);
    let peers = format!("http://127.0.0.1:{}", ports[1]);
    vec![
        "etcd".into(),
        "--name=test".into(),
        format!("--data-dir={}", dir.join("data").display()),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=test={peers}"),
        "--log-level=warn".into(),
    ]
}

pub async fn healthy(address: SocketAddr) -> bool {
    http::get(address, "/health").await.is_ok_and(|answer| answer.body.contains(r#""health":"true""#))
}

/// How many calls of this gRPC method, such as `Put` or `LeaseKeepAlive`, the server has begun to serve. A stream is one call.
pub async fn etcd_grpc_count(server: &Server, method: &str) -> u64 {
    let metrics = http::get(server.address(), "/metrics").await.expect("etcd's metrics").body;
    let method = format!("grpc_method=\"{method}\"");
    let lines = metrics.lines().filter(|line| line.starts_with("grpc_server_started_total{") && line.contains(&method));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}
