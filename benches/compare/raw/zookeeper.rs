//! zookeeper-client: setData, and one persistent watch with a getData for each event. The loop of one-shot watches
//! (`get_and_watch_data`) takes the same two ways, and misses what happens between them.
//!
//! Calls are the requests that our driver makes, sent as early as they can be: a read is a sync and a read behind it, on the way
//! together; what writes to a version looks first; a listing reads
//! many znodes in one request.
//!
//! A lock is ZooKeeper's own recipe: an ephemeral sequential znode and, in the same round trip, a look at the line; a delete.
//! Who waits watches the one ahead, and then looks again.

use super::NAMESPACE;
use crate::calls::{Calls, Freshness};
use crate::client::{self, HOLDER, Result};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use zookeeper_client::{
    Acls, AddWatchMode, Client, CreateMode, Error, EventType, MultiReadResult, PersistentWatcher, Stat,
};

pub(crate) struct Peer {
    addresses: String,
}

impl Peer {
    pub(crate) fn at(address: &str) -> Self {
        Peer::among(&[address.to_owned()])
    }

    /// The client moves among all of them, and its session with it.
    pub(crate) fn among(hosts: &[String]) -> Self {
        Peer { addresses: hosts.join(",") }
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

/// How many znodes are read together, as in our driver.
const TOGETHER: usize = 128;
/// How many are when keys are made.
const AT_ONCE: usize = 256;

/// Sees to it that what is read behind this is fresh. It is sent at once, and answered in its turn.
fn sync(client: &Client, path: &str, freshness: Freshness) -> impl Future<Output = Result<(), Error>> {
    let sync = (freshness == Freshness::Linearizable).then(|| client.sync(path));
    async move {
        match sync {
            Some(sync) => sync.await,
            None => Ok(()),
        }
    }
}

/// The znode as the leader knows it.
async fn look(client: &Client, path: &str) -> Result<Stat> {
    let synced = sync(client, path, Freshness::Linearizable);
    let (synced, stat) = tokio::join!(synced, client.check_stat(path));
    synced?;
    Ok(stat?.ok_or("no such znode")?)
}

/// The names in a directory; none where it isn't there.
async fn children(client: &Client, path: &str) -> Result<Vec<String>> {
    let synced = sync(client, path, Freshness::Linearizable);
    let (synced, read) = tokio::join!(synced, client.get_children(path));
    synced?;
    match read {
        Ok((names, _)) => Ok(names),
        Err(Error::NoNode) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// What is at these paths, all of which exist.
async fn read_all(client: &Client, paths: &[String]) -> Result<Vec<(Vec<u8>, Stat)>> {
    let mut found = Vec::with_capacity(paths.len());
    let mut answers = Vec::new();
    for paths in paths.chunks(TOGETHER) {
        let mut reader = client.new_multi_reader();
        paths.iter().try_for_each(|path| reader.add_get_data(path))?;
        answers.push(reader.commit());
    }
    for answer in answers {
        for read in answer.await? {
            match read {
                MultiReadResult::Data { data, stat } => found.push((data, stat)),
                other => return Err(format!("unexpected: {other:?}").into()),
            }
        }
    }
    Ok(found)
}

async fn make(client: &Client, path: &str, value: &[u8]) -> Result<()> {
    match client.create(path, value, &open_to_all()).await {
        Ok(_) | Err(Error::NodeExists) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Calls for Client {
    /// What the znode's writes are counted by.
    type Version = i32;

    async fn get(&self, key: &str, freshness: Freshness) -> Result<usize> {
        let path = path(key);
        let synced = sync(self, &path, freshness);
        let (synced, read) = tokio::join!(synced, self.get_data(&path));
        synced?;
        Ok(read?.0.len())
    }

    async fn put(&self, key: &str, value: Bytes) -> Result<i32> {
        let path = path(key);
        match self.set_data(&path, &value, None).await {
            Ok(stat) => Ok(stat.version),
            Err(Error::NoNode) => {
                make(self, parent(&path), b"").await?;
                make(self, &path, &value).await.map(|()| 0)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn atomic_put(&self, key: &str, value: Bytes, expected: &i32) -> Result<i32> {
        let path = path(key);
        match look(self, &path).await?.version {
            version if version == *expected => Ok(self.set_data(&path, &value, Some(version)).await?.version),
            _ => Err("somebody else wrote the znode".into()),
        }
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let path = path(key);
        let stat = look(self, &path).await?;
        let deleted = self.delete(&path, Some(stat.version));
        // Whether its directory is empty now, and can go too.
        let (deleted, dir) = tokio::join!(deleted, self.check_stat(parent(&path)));
        deleted?;
        dir?;
        Ok(())
    }

    async fn list(&self, dir: &str) -> Result<usize> {
        let path = path(dir);
        let names = children(self, &path).await?;
        let paths: Vec<_> = names.iter().map(|name| format!("{path}/{name}")).collect();
        let read = read_all(self, &paths).await?;
        let pair = |(name, (value, stat)): (String, (Vec<u8>, Stat))| (name, Bytes::from(value), stat.version);
        let mut pairs: Vec<_> = names.into_iter().zip(read).map(pair).collect();
        pairs.sort_unstable_by(|(a, ..), (b, ..)| a.cmp(b));
        Ok(pairs.len())
    }

    async fn delete_tree(&self, dir: &str) -> Result<usize> {
        let path = path(dir);
        let paths: Vec<_> = children(self, &path).await?.into_iter().map(|name| format!("{path}/{name}")).collect();
        let found = read_all(self, &paths).await?;
        let mut multi = self.new_multi_writer();
        for (path, (_, stat)) in paths.iter().zip(&found) {
            multi.add_delete(path, Some(stat.version))?;
        }
        // The directory goes in the same round trip, and the one above is looked at as with `delete`.
        let (deleted, removed) = (multi.commit(), Client::delete(self, &path, None));
        let (deleted, removed, above) = tokio::join!(deleted, removed, self.check_stat(parent(&path)));
        deleted?;
        removed?;
        above?;
        Ok(paths.len())
    }

    async fn txn(&self, keys: &[String], value: Bytes) -> Result<()> {
        let paths: Vec<_> = keys.iter().map(|key| path(key)).collect();
        let synced = sync(self, "/", Freshness::Linearizable);
        let (synced, found) = tokio::join!(synced, read_all(self, &paths));
        synced?;
        let mut multi = self.new_multi_writer();
        for (path, (_, stat)) in paths.iter().zip(found?) {
            multi.add_set_data(path, &value, Some(stat.version))?;
        }
        multi.commit().await?;
        Ok(())
    }

    async fn fill(&self, dir: &str, names: Vec<String>, value: Bytes) -> Result<()> {
        let dir = path(dir);
        for (end, _) in dir.match_indices('/').skip(1) {
            make(self, &dir[..end], b"").await?;
        }
        make(self, &dir, b"").await?;
        let made = names.into_iter().map(async |name| make(self, &format!("{dir}/{name}"), &value).await);
        stream::iter(made).buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn close(self) -> Result<()> {
        client::Client::close(self).await
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

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn path(key: &str) -> String {
    format!("/{NAMESPACE}-{key}")
}

fn open_to_all() -> zookeeper_client::CreateOptions<'static> {
    CreateMode::Persistent.with_acls(Acls::anyone_all())
}
