//! zookeeper-client: setData, and one persistent watch with a getData for each event. The loop of one-shot watches
//! (`get_and_watch_data`) takes the same two ways, and misses what happens between them.
//!
//! A lock is ZooKeeper's own recipe: an ephemeral sequential znode and, in the same round trip, a look at the line; a delete.
//! Who waits watches the one ahead, and then looks again.

use crate::client::{self, HOLDER, Result};
use crate::common::Server;
use bytes::Bytes;
use std::net::SocketAddr;
use zookeeper_client::{Acls, AddWatchMode, Client, CreateMode, Error, EventType, PersistentWatcher};

pub(crate) struct Peer {
    addresses: String,
}

impl Peer {
    pub(crate) fn at(server: &Server) -> Self {
        Peer::among(&[server.address()])
    }

    /// The client moves among all of them, and its session with it.
    pub(crate) fn among(hosts: &[SocketAddr]) -> Self {
        Peer { addresses: hosts.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",") }
    }
}

impl client::Peer for Peer {
    type Client = Client;

    async fn connect(&self) -> Result<Client> {
        Ok(Client::connect(&self.addresses).await?)
    }
}

impl client::Client for Client {
    type Watch = Watch;
    /// The path of the contender's znode.
    type Held = String;

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

    async fn lock(&mut self, key: &str) -> Result<String> {
        let line = format!("{}-lock", path(key));
        let name = match contend(self, &line).await {
            Err(Error::NoNode) => {
                let made = self.create(&line, b"", &open_to_all()).await;
                made.map(drop).or_else(|error| if error == Error::NodeExists { Ok(()) } else { Err(error) })?;
                contend(self, &line).await
            }
            contender => contender,
        };
        let (name, mut names) = name?;
        while let Some(ahead) = names.into_iter().filter(|other| *other < name).max() {
            let (there, watcher) = self.check_and_watch_stat(&format!("{line}/{ahead}")).await?;
            if there.is_some() {
                watcher.changed().await;
            }
            names = self.list_children(&line).await?;
        }
        Ok(format!("{line}/{name}"))
    }

    async fn unlock(&mut self, held: String) -> Result<()> {
        Ok(self.delete(&held, None).await?)
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

/// Joins the line of a lock. Returns the contender's name, and who is in line with it.
async fn contend(client: &Client, line: &str) -> Result<(String, Vec<String>), Error> {
    let prefix = format!("{line}/");
    let options = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
    let made = client.create(&prefix, HOLDER.as_bytes(), &options);
    let names = client.list_children(line);
    let (made, names) = tokio::join!(made, names);
    let (_, number) = made?;
    Ok((number.to_string(), names?))
}

fn path(key: &str) -> String {
    format!("/raw-{key}")
}

fn open_to_all() -> zookeeper_client::CreateOptions<'static> {
    CreateMode::Persistent.with_acls(Acls::anyone_all())
}
