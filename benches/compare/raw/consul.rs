//! awc: PUT of the value, and blocking queries from index to index for it, in Consul's default consistency.
//!
//! Calls are those that our driver makes: writes are transactions, whose answers have the version.
//!
//! A lock is a key that a session holds: made by a transaction and deleted by another. Who waits asks until it is gone, and
//! tries again.

use super::NAMESPACE;
use crate::calls::{Calls, Freshness};
use crate::client::{self, HOLDER, Result};
use awc::Client;
use awc::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::VecDeque;

pub(crate) struct Peer {
    /// The URLs of the API.
    apis: VecDeque<String>,
}

impl Peer {
    pub(crate) fn at(address: &str) -> Self {
        Peer::among(&[address.to_owned()])
    }

    /// One after the other is tried.
    pub(crate) fn among(hosts: &[String]) -> Self {
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

#[derive(Clone)]
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
    async fn attempt(&self, operations: &[Value]) -> Result<bool> {
        let operations: Vec<_> = operations.iter().map(|operation| json!({"KV": operation})).collect();
        match self.put_json("txn", &Value::Array(operations)).await? {
            (StatusCode::OK, _) => Ok(true),
            (StatusCode::CONFLICT, _) => Ok(false),
            (status, body) => Err(format!("{status}: {body:?}").into()),
        }
    }

    fn url(&self, key: &str) -> String {
        format!("{}/kv/{NAMESPACE}/{key}", self.apis[0])
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
        let path = format!("{NAMESPACE}/{key}");
        let value = STANDARD.encode(HOLDER);
        let operations = [
            json!({"Verb": "check-not-exists", "Key": path}),
            json!({"Verb": "lock", "Key": path, "Value": value, "Session": self.session}),
        ];
        while !self.attempt(&operations).await? {
            self.until_gone(key).await?;
        }
        Ok(path)
    }

    async fn unlock(&mut self, path: String) -> Result<()> {
        let operations = [
            json!({"Verb": "check-session", "Key": path, "Session": self.session}),
            json!({"Verb": "delete", "Key": path}),
        ];
        if self.attempt(&operations).await? { Ok(()) } else { Err("the lock was lost".into()) }
    }

    async fn close(self) -> Result<()> {
        self.put_json(&format!("session/destroy/{}", self.session), &Value::Null).await?;
        Ok(())
    }
}

/// How many keys are made at a time.
const BATCH: usize = 50;

/// One operation of a transaction.
#[derive(Serialize)]
struct Op<'a> {
    #[serde(rename = "KV")]
    fields: Fields<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Fields<'a> {
    verb: &'static str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
}

impl<'a> Op<'a> {
    fn new(verb: &'static str, key: &'a str) -> Self {
        Op { fields: Fields { verb, key, value: None, index: None } }
    }

    fn set(key: &'a str, value: &'a str) -> Self {
        Op { fields: Fields { value: Some(value), ..Op::new("set", key).fields } }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Results<'a> {
    #[serde(borrow)]
    results: Option<Vec<Applied<'a>>>,
}

#[derive(Deserialize)]
struct Applied<'a> {
    #[serde(rename = "KV", borrow)]
    entry: Entry<'a>,
}

/// A key as the agent shows it. A transaction's answer to a write has no value.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    modify_index: u64,
    #[serde(borrow)]
    value: Option<&'a str>,
}

impl Entry<'_> {
    fn pair(&self) -> Result<(String, Bytes, u64)> {
        let value = STANDARD.decode(self.value.unwrap_or_default())?;
        Ok((self.key.to_string(), value.into(), self.modify_index))
    }
}

impl Agent {
    /// Applies a transaction, and returns what it answered.
    async fn apply(&self, operations: &[Op<'_>]) -> Result<Bytes> {
        let request = self.http.put(format!("{}/txn", self.apis[0]));
        let sent = request.send_body(serde_json::to_vec(operations)?).await;
        let mut response = sent.map_err(|error| error.to_string())?;
        let body = response.body().await?;
        match response.status() {
            StatusCode::OK => Ok(body),
            status => Err(format!("{status}: {body:?}").into()),
        }
    }

    /// The version that a transaction of one write gave the key.
    async fn write(&self, operation: Op<'_>) -> Result<u64> {
        let answer = self.apply(&[operation]).await?;
        let results: Results<'_> = serde_json::from_slice(&answer)?;
        let first = results.results.and_then(|results| results.into_iter().next());
        Ok(first.ok_or("an answer without a version")?.entry.modify_index)
    }
}

impl Calls for Agent {
    type Version = u64;

    async fn get(&self, key: &str, freshness: Freshness) -> Result<usize> {
        let freshness = if freshness == Freshness::Stale { "stale" } else { "consistent" };
        let request = self.http.get(format!("{}?raw&{freshness}", self.url(key)));
        let mut response = request.send().await.map_err(|error| error.to_string())?;
        match response.status() {
            StatusCode::OK => Ok(response.body().await?.len()),
            status => Err(format!("{status} for `{key}`").into()),
        }
    }

    async fn put(&self, key: &str, value: Bytes) -> Result<u64> {
        self.write(Op::set(&format!("{NAMESPACE}/{key}"), &STANDARD.encode(value))).await
    }

    async fn atomic_put(&self, key: &str, value: Bytes, expected: &u64) -> Result<u64> {
        let (path, value) = (format!("{NAMESPACE}/{key}"), STANDARD.encode(value));
        let set = Op::set(&path, &value).fields;
        self.write(Op { fields: Fields { verb: "cas", index: Some(*expected), ..set } }).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let path = format!("{NAMESPACE}/{key}");
        self.apply(&[Op::new("get", &path), Op::new("delete", &path)]).await.map(drop)
    }

    async fn list(&self, dir: &str) -> Result<usize> {
        let request = self.http.get(format!("{}/?recurse&consistent", self.url(dir)));
        let mut response = request.send().await.map_err(|error| error.to_string())?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(0);
        }
        let body = response.body().limit(usize::MAX).await?;
        let entries: Vec<Entry<'_>> = serde_json::from_slice(&body)?;
        Ok(entries.iter().map(Entry::pair).collect::<Result<Vec<_>>>()?.len())
    }

    async fn delete_tree(&self, dir: &str) -> Result<usize> {
        let prefix = format!("{NAMESPACE}/{dir}/");
        let answer = self.apply(&[Op::new("get-tree", &prefix), Op::new("delete-tree", &prefix)]).await?;
        let results: Results<'_> = serde_json::from_slice(&answer)?;
        Ok(results.results.map_or(0, |results| results.len()))
    }

    async fn txn(&self, keys: &[String], value: Bytes) -> Result<()> {
        let paths: Vec<_> = keys.iter().map(|key| format!("{NAMESPACE}/{key}")).collect();
        let value = STANDARD.encode(value);
        let operations: Vec<_> = paths.iter().map(|path| Op::set(path, &value)).collect();
        let answer = self.apply(&operations).await?;
        let results: Results<'_> = serde_json::from_slice(&answer)?;
        match results.results {
            Some(results) if results.len() == keys.len() => Ok(()),
            _ => Err("an answer without versions".into()),
        }
    }

    async fn fill(&self, dir: &str, names: Vec<String>, value: Bytes) -> Result<()> {
        let keys: Vec<_> = names.iter().map(|name| format!("{dir}/{name}")).collect();
        try_join_all(keys.chunks(BATCH).map(|batch| self.txn(batch, value.clone()))).await?;
        Ok(())
    }

    async fn close(self) -> Result<()> {
        client::Client::close(self).await
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
