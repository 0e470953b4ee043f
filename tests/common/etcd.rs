//! How etcd is run and asked.

use super::cluster::Standing;
use super::http;
use super::server::{Member, Server, Setup, on_path};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;

/// For clients, and for peers.
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
        format!("--name={}", name(setup.member.as_ref().map_or(0, |member| member.index))),
        format!("--data-dir={}", dir.join("data").display()),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster={}", setup.member.as_ref().map_or(format!("{}={peers}", name(0)), everybody)),
        format!("--auth-token-ttl={TOKEN_TTL}"),
        "--log-level=warn".into(),
    ];
    // Where there is data this means nothing. Where it was wiped its folder is still there, and the cluster as well.
    let comes_later = setup.member.is_some() && dir.join("data").exists();
    command.extend(comes_later.then(|| "--initial-cluster-state=existing".into()));
    command.extend(setup.etcd_v2.then(|| "--enable-v2".into()));
    command.extend(tls);
    command
}

fn name(index: usize) -> String {
    format!("test-{index}")
}

fn peer_url(ports: &[u16]) -> String {
    format!("http://127.0.0.1:{}", ports[1])
}

fn everybody(member: &Member) -> String {
    let all = member.ports.iter().enumerate();
    all.map(|(index, ports)| format!("{}={}", name(index), peer_url(ports))).collect::<Vec<_>>().join(",")
}

/// How the member stands that answers here.
pub async fn standing(address: SocketAddr) -> Option<Standing> {
    let status = ask(address, "maintenance/status", &json!({})).await.ok()?;
    let number = |value: &Value| value.as_str()?.parse().ok();
    let leads = status.get("leader").is_some_and(|leader| *leader == status["header"]["member_id"]);
    Some(Standing { leads, term: number(&status["raftTerm"])?, applied: number(&status["raftAppliedIndex"])? })
}

/// Has the cluster take its member with these ports for a new one, which comes with nothing. An error may pass: the cluster
/// takes no change while its members haven't known each other for 5 s.
pub async fn replace(live: SocketAddr, ports: &[u16]) -> Result<(), String> {
    let members = ask(live, "cluster/member/list", &json!({})).await?;
    let members = members["members"].as_array().ok_or("no members")?;
    // One that was added and has never run has no name, but the URL.
    let url = peer_url(ports);
    let is_it = |member: &&Value| member["peerURLs"].as_array().is_some_and(|urls| urls.contains(&json!(url)));
    let former = members.iter().find(is_it);
    if former.is_some_and(|member| member.get("name").is_none()) {
        return Ok(());
    }
    if let Some(former) = former {
        ask(live, "cluster/member/remove", &json!({ "ID": former["ID"] })).await?;
    }
    ask(live, "cluster/member/add", &json!({ "peerURLs": [url] })).await?;
    Ok(())
}

/// The JSON way into etcd's gRPC services.
async fn ask(address: SocketAddr, service: &str, body: &Value) -> Result<Value, String> {
    let answer = http::request(address, "POST", &format!("/v3/{service}"), &body.to_string()).await;
    let answer = answer.map_err(|error| format!("{service}: {error}"))?;
    match answer.status {
        200 => serde_json::from_str(&answer.body).map_err(|error| format!("{service}: {error}")),
        status => Err(format!("{service}: {status}: {}", answer.body)),
    }
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
