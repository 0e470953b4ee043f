//! zookeeper-client: setData, and one persistent watch with a getData for each event. The loop of one-shot watches
//! (`get_and_watch_data`) takes the same two ways, and misses what happens between them.

use crate::client::{self, Result};
use crate::common::Server;
use bytes::Bytes;
use zookeeper_client::{Acls, AddWatchMode, Client, CreateMode, Error, EventType, PersistentWatcher};

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
        Ok(Client::connect(&self.address).await?)
    }
}

impl client::Client for Client {
    type Watch = Watch;

    async fn put(&mut self, key: &str, value: Bytes) -> Result<()> {
        let path = path(key);
        match self.set_data(&path, &value, None).await {
            Err(Error::NoNode) => drop(self.create(&path, &value, &open_to_all()).await?),
            written => drop(written?),
        }
        Ok(())
    }

    async fn watch(&mut self, key: &str) -> Result<Watch> {
        let (client, path) = (self.clone(), path(key));
        let watcher = Client::watch(self, &path, AddWatchMode::Persistent).await?;
        Ok(Watch { client, path, watcher })
    }

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

pub(crate) struct Watch {
    client: Client,
    path: String,
    watcher: PersistentWatcher,
}

impl client::Watch for Watch {
    async fn next(&mut self) -> Result<Bytes> {
        let event = self.watcher.changed().await;
        if event.event_type != EventType::NodeDataChanged {
            return Err(format!("unexpected: {event:?}").into());
        }
        let (value, _) = self.client.get_data(&self.path).await?;
        Ok(value.into())
    }
}

fn path(key: &str) -> String {
    format!("/raw-{key}")
}

fn open_to_all() -> zookeeper_client::CreateOptions<'static> {
    CreateMode::Persistent.with_acls(Acls::anyone_all())
}
