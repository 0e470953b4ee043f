//! awc: PUT of the value, and blocking queries from index to index for it, in Consul's default consistency.
//!
//! A lock is a key that a session holds: made by a transaction and deleted by another. Who waits asks until it is gone, and
//! tries again.

use crate::client::{self, HOLDER, Result};
use crate::common::Server;
use awc::Client;
use awc::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::SocketAddr;

pub(crate) struct Peer {
    /// The URLs of the API.
    apis: VecDeque<String>,
}

impl Peer {
    pub(crate) fn at(server: &Server) -> Self {
        Peer::among(&[server.address()])
    }

    /// One after the other is tried.
    pub(crate) fn among(hosts: &[SocketAddr]) -> Self {
        Peer { apis: hosts.iter().map(|host| format!("http://{host}/v1")).collect() }
    }
}

impl client::Peer for Peer {
    type Client = Agent;

    async fn connect(&self) -> Result<Agent> {
        // A query waits for longer than awc would.
        let http = Client::builder().disable_timeout().finish();
        let (apis, session) = (self.apis.clone(), String::new());
        let mut agent = Agent { http, apis, session };
        // It lasts for longer than a turn, without a renewal.
        let (_, opened) = agent.put_json("session/create", &json!({"TTL": "60s", "LockDelay": "0s"})).await?;
        agent.session = serde_json::from_slice::<Opened>(&opened)?.id;
        Ok(agent)
    }
}

#[derive(Deserialize)]
struct Opened {
    #[serde(rename = "ID")]
    id: String,
}

pub(crate) struct Agent {
    http: Client,
    /// The first one is asked.
    apis: VecDeque<String>,
    session: String,
}

impl Agent {
    async fn put_json(&self, path: &str, body: &Value) -> Result<(StatusCode, Bytes)> {
        let request = self.http.put(format!("{}/{path}", self.apis[0]));
        let mut response = request.send_json(body).await.map_err(|error| error.to_string())?;
        Ok((response.status(), response.body().await?))
    }

    /// Whether the transaction was applied.
    async fn txn(&self, operations: &[Value]) -> Result<bool> {
        let operations: Vec<_> = operations.iter().map(|operation| json!({"KV": operation})).collect();
        match self.put_json("txn", &Value::Array(operations)).await? {
            (StatusCode::OK, _) => Ok(true),
            (StatusCode::CONFLICT, _) => Ok(false),
            (status, body) => Err(format!("{status}: {body:?}").into()),
        }
    }

    fn url(&self, key: &str) -> String {
        format!("{}/kv/raw/{key}", self.apis[0])
    }

    /// Waits until a key isn't there.
    async fn until_gone(&self, key: &str) -> Result<()> {
        let mut index = "0".to_owned();
        loop {
            let request = self.http.get(format!("{}?index={index}&wait=60s", self.url(key)));
            let response = request.send().await.map_err(|error| error.to_string())?;
            if response.status() == StatusCode::NOT_FOUND {
                return Ok(());
            }
            index = response.headers().get("X-Consul-Index").ok_or("an answer without an index")?.to_str()?.to_owned();
        }
    }
}

impl client::Client for Agent {
    type Watch = Query;
    type Held = String;

    async fn put(&mut self, key: &str, value: Bytes) -> Result<()> {
        let request = self.http.put(self.url(key));
        let mut response = request.send_body(value).await.map_err(|error| error.to_string())?;
        let body = response.body().await?;
        match response.status() {
            StatusCode::OK if body == "true" => Ok(()),
            status => Err(format!("{status}: {body:?}").into()),
        }
    }

    async fn turn_elsewhere(&mut self) -> Result<()> {
        self.apis.rotate_left(1);
        Ok(())
    }

    async fn watch(&mut self, key: &str) -> Result<Query> {
        let mut query = Query { http: self.http.clone(), url: format!("{}?raw", self.url(key)), index: 0 };
        client::Watch::next(&mut query).await?;
        Ok(query)
    }

    async fn lock(&mut self, key: &str) -> Result<String> {
        let path = format!("raw/{key}");
        let value = STANDARD.encode(HOLDER);
        let operations = [
            json!({"Verb": "check-not-exists", "Key": path}),
            json!({"Verb": "lock", "Key": path, "Value": value, "Session": self.session}),
        ];
        while !self.txn(&operations).await? {
            self.until_gone(key).await?;
        }
        Ok(path)
    }

    async fn unlock(&mut self, path: String) -> Result<()> {
        let operations = [
            json!({"Verb": "check-session", "Key": path, "Session": self.session}),
            json!({"Verb": "delete", "Key": path}),
        ];
        if self.txn(&operations).await? { Ok(()) } else { Err("the lock was lost".into()) }
    }

    async fn close(self) -> Result<()> {
        self.put_json(&format!("session/destroy/{}", self.session), &Value::Null).await?;
        Ok(())
    }
}

pub(crate) struct Query {
    http: Client,
    url: String,
    index: u64,
}

impl client::Watch for Query {
    async fn next(&mut self) -> Result<Bytes> {
        let request = self.http.get(format!("{}&index={}&wait=60s", self.url, self.index));
        let mut response = request.send().await.map_err(|error| error.to_string())?;
        let index = response.headers().get("X-Consul-Index").ok_or("an answer without an index")?;
        self.index = index.to_str()?.parse()?;
        Ok(response.body().await?)
    }
}
