//! The calls on one key.

use super::node::{self, Node};
use super::session::{ATTEMPTS, Session};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::types::{Consistency, Expected, KvPair, Version};
use bytes::Bytes;
use zookeeper_client::{CreateMode, Error as Failure, Stat};

impl Session {
    pub(super) async fn get(&self, key: &Key, consistency: Consistency) -> Result<KvPair> {
        self.read(key, consistency).await?.ok_or_else(|| Error::key_not_found(key))
    }

    /// The key, if it exists.
    pub(super) async fn read(&self, key: &Key, consistency: Consistency) -> Result<Option<KvPair>> {
        let path = self.paths.key(key);
        let synced = self.synced(consistency, &path);
        let read = self.client.get_data(&path);
        let (synced, read) = tokio::join!(synced, read);
        synced?;
        match read {
            Ok((data, stat)) if Node::of(stat, &data).is_key() => {
                Ok(Some(KvPair { key: key.clone(), value: node::decode(data), version: node::version(&stat) }))
            }
            Ok(_) | Err(Failure::NoNode) => Ok(None),
            Err(failure) => Err(self.read_error(failure)),
        }
    }

    pub(super) async fn exists(&self, key: &Key, consistency: Consistency) -> Result<bool> {
        Ok(self.look(&self.paths.key(key), consistency).await?.is_key())
    }

    pub(super) async fn put(&self, key: &Key, value: &Bytes) -> Result<Version> {
        let (path, data) = (self.paths.key(key), node::encode(value));
        for _ in 0..ATTEMPTS {
            let written = match self.client.set_data(&path, &data, None).await {
                Ok(stat) => self.made_permanent(&path, &data, stat).await?,
                Err(Failure::NoNode) => self.create(&path, &data, CreateMode::Persistent).await?,
                Err(failure) => return Err(self.write_error(failure)),
            };
            if let Some(stat) = written {
                return Ok(node::version(&stat));
            }
        }
        Err(self.contended(key))
    }

    /// Makes the key, just written as `stat` shows, permanent if it has a TTL. None: its TTL was over, or somebody deleted it
    /// while this call is still going on; either way it can be written again.
    async fn made_permanent(&self, path: &str, data: &[u8], stat: Stat) -> Result<Option<Stat>> {
        if !node::goes_away(&stat) {
            return Ok(Some(stat));
        }
        match self.overwrite(path, data, &stat, CreateMode::Persistent).await {
            Ok(stat) => Ok(Some(stat)),
            // Somebody wrote after us: that write decides what becomes of the key, and ours has happened.
            Err(Failure::BadVersion) => Ok(Some(stat)),
            Err(failure) => self.settled(Err(failure)),
        }
    }

    pub(super) async fn delete(&self, key: &Key) -> Result<()> {
        let path = self.paths.key(key);
        for _ in 0..ATTEMPTS {
            let Node::Key(stat) = self.look(&path, Consistency::Linearizable).await? else {
                return Err(Error::key_not_found(key));
            };
            if self.remove(&path, &stat).await? {
                return Ok(());
            }
        }
        Err(self.contended(key))
    }

    pub(super) async fn atomic_put(&self, key: &Key, value: &Bytes, expected: &Expected) -> Result<Version> {
        let data = node::encode(value);
        let stat = match expected {
            Expected::Absent => self.put_new(key, &data).await?,
            Expected::Version(version) => self.put_over(key, &data, version).await?,
        };
        Ok(node::version(&stat))
    }

    async fn put_new(&self, key: &Key, data: &[u8]) -> Result<Stat> {
        let path = self.paths.key(key);
        for _ in 0..ATTEMPTS {
            if let Some(stat) = self.create(&path, data, CreateMode::Persistent).await? {
                return Ok(stat);
            }
            let written = match self.look(&path, Consistency::Linearizable).await? {
                Node::Key(_) => return Err(Error::key_exists(key)),
                Node::Missing => continue,
                Node::Vacant(stat) => self.overwrite(&path, data, &stat, CreateMode::Persistent).await,
            };
            if let Some(stat) = self.settled(written)? {
                return Ok(stat);
            }
        }
        Err(self.contended(key))
    }

    async fn put_over(&self, key: &Key, data: &[u8], version: &Version) -> Result<Stat> {
        let path = self.paths.key(key);
        let stat = self.at_version(key, &path, version).await?;
        let written = self.overwrite(&path, data, &stat, CreateMode::Persistent).await;
        match self.settled(written)? {
            Some(stat) => Ok(stat),
            None => Err(self.changed(key, &path).await),
        }
    }

    pub(super) async fn atomic_delete(&self, key: &Key, version: &Version) -> Result<()> {
        let path = self.paths.key(key);
        let stat = self.at_version(key, &path, version).await?;
        match self.remove(&path, &stat).await? {
            true => Ok(()),
            false => Err(self.changed(key, &path).await),
        }
    }

    /// The stat of the key if it has this version. ZooKeeper compares a counter that starts again in each incarnation of a
    /// znode; looking first tells a later incarnation. What is left is a key that is deleted, made anew and written to the
    /// same count in the one round trip between the look and the write.
    async fn at_version(&self, key: &Key, path: &str, version: &Version) -> Result<Stat> {
        node::check_origin(version)?;
        match self.look(path, Consistency::Linearizable).await? {
            Node::Key(stat) if node::version(&stat) == *version => Ok(stat),
            Node::Key(_) => Err(Error::key_modified(key)),
            Node::Missing | Node::Vacant(_) => Err(Error::key_not_found(key)),
        }
    }

    /// Why a key no longer has the version that it was just seen with.
    async fn changed(&self, key: &Key, path: &str) -> Error {
        match self.look(path, Consistency::Linearizable).await {
            Ok(Node::Key(_)) => Error::key_modified(key),
            Ok(Node::Missing | Node::Vacant(_)) => Error::key_not_found(key),
            Err(error) => error,
        }
    }
}
