//! How etcd is run and asked.

use super::http;
use super::server::{Server, Setup, on_path};
use std::net::SocketAddr;
use std::path::Path;

/// For clients, and for the peers that it hasn't.
pub const PORTS: usize = 2;

pub fn missing() -> Option<String> {
    (!on_path("etcd")).then(|| "no `etcd` on PATH".to_owned())
}

/// For how many seconds a token is good that isn't used, where access is controlled.
pub const TOKEN_TTL: u64 = 2;

pub fn command(dir: &Path, ports: &[u16], setup: &Setup) -> Vec<String> {
    let mut clients = format!("http://127.0.0.1:{}", ports[0]);
    let peers = format!("http://127.0.0.1:{}", ports[1]);
    let mut tls = Vec::new();
    if let Some(setup) = &setup.tls {
        clients = format!("{clients},https://127.0.0.1:{}", ports[PORTS]);
        tls.push(format!("--cert-file={}", setup.identity.cert.display()));
        tls.push(format!("--key-file={}", setup.identity.key.display()));
        if setup.demanding {
            tls.push("--client-cert-auth".into());
            tls.push(format!("--trusted-ca-file={}", setup.clients.display()));
        }
    }
    let mut command = vec![
        "etcd".into(),
        "--name=test".into(),
        format!("--data-dir={}", dir.join("data").display()),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=test={peers}"),
        format!("--auth-token-ttl={TOKEN_TTL}"),
        "--log-level=warn".into(),
    ];
    command.extend(setup.etcd_v2.then(|| "--enable-v2".into()));
    command.extend(tls);
    command
}

pub async fn healthy(address: SocketAddr) -> bool {
    http::get(address, "/health").await.is_ok_and(|answer| answer.body.contains(r#""health":"true""#))
}

/// Changes who may do what, by etcd's JSON way into its gRPC services: `auth/user/add`.
pub async fn administer(server: &Server, service: &str, body: &str) {
    let answer = http::request(server.address(), "POST", &format!("/v3/{service}"), body).await.expect("etcd's answer");
    assert_eq!(answer.status, 200, "{service}: {}", answer.body);
}

/// How many calls of this gRPC method, such as `Put` or `LeaseKeepAlive`, the server has begun to serve. A stream is one call.
pub async fn etcd_grpc_count(server: &Server, method: &str) -> u64 {
    let metrics = http::get(server.address(), "/metrics").await.expect("etcd's metrics").body;
    let method = format!("grpc_method=\"{method}\"");
    let lines = metrics.lines().filter(|line| line.starts_with("grpc_server_started_total{") && line.contains(&method));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}
