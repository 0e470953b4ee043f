//! awc: PUT of the value, and blocking queries from index to index for it, in Consul's default consistency.

use crate::client::{self, Result};
use crate::common::Server;
use awc::Client;
use awc::http::StatusCode;
use bytes::Bytes;

pub(crate) struct Peer {
    base: String,
}

impl Peer {
    pub(crate) fn at(server: &Server) -> Self {
        Peer { base: format!("http://{}/v1/kv/raw", server.address()) }
    }
}

impl client::Peer for Peer {
    type Client = Agent;

    async fn connect(&self) -> Result<Agent> {
        // A query waits for longer than awc would.
        Ok(Agent { http: Client::builder().disable_timeout().finish(), base: self.base.clone() })
    }
}

pub(crate) struct Agent {
    http: Client,
    base: String,
}

impl client::Client for Agent {
    type Watch = Query;

    async fn put(&mut self, key: &str, value: Bytes) -> Result<()> {
        let request = self.http.put(format!("{}/{key}", self.base));
        let mut response = request.send_body(value).await.map_err(|error| error.to_string())?;
        let body = response.body().await?;
        match response.status() {
            StatusCode::OK if body == "true" => Ok(()),
            status => Err(format!("{status}: {body:?}").into()),
        }
    }

    async fn watch(&mut self, key: &str) -> Result<Query> {
        let mut query = Query { http: self.http.clone(), url: format!("{}/{key}?raw", self.base), index: 0 };
        client::Watch::next(&mut query).await?;
        Ok(query)
    }

    async fn close(self) -> Result<()> {
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
