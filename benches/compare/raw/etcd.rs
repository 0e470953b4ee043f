//! etcd-client: Put, and a Watch stream.

use crate::client::{self, Result};
use crate::common::Server;
use bytes::Bytes;
use etcd_client::{Client, WatchStream};

pub(crate) struct Peer {
    address: String,
}

impl Peer {
    pub(crate) fn at(server: &Server) -> Self {
        Peer { address: server.address().to_string() }
    }
}

impl client::Peer for Peer {
    type Client = Client;

    async fn connect(&self) -> Result<Client> {
        Ok(Client::connect([&self.address], None).await?)
    }
}

impl client::Client for Client {
    type Watch = WatchStream;

    async fn put(&mut self, key: &str, value: Bytes) -> Result<()> {
        Client::put(self, path(key), value, None).await?;
        Ok(())
    }

    async fn watch(&mut self, key: &str) -> Result<WatchStream> {
        let mut stream = Client::watch(self, path(key), None).await?;
        let first = stream.message().await?;
        match first.is_some_and(|first| first.created()) {
            true => Ok(stream),
            false => Err("the watch wasn't created".into()),
        }
    }

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl client::Watch for WatchStream {
    async fn next(&mut self) -> Result<Bytes> {
        let response = self.message().await?.ok_or("the stream ended")?;
        let event = response.events().last().ok_or("a response without an event")?;
        let pair = event.kv().ok_or("an event without a pair")?;
        Ok(Bytes::copy_from_slice(pair.value()))
    }
}

fn path(key: &str) -> String {
    format!("raw/{key}")
}
