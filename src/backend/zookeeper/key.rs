//! The calls on one key.

use super::batch::Batch;
use super::node::{self, Node};
use super::published::Published;
use super::session::{ATTEMPTS, Session};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::types::{Consistency, Expected, KvPair, Version};
use bytes::Bytes;
use zookeeper_client::{CreateMode, Error as Failure, Stat};

/// What has the value of a key.
enum Bearer {
    /// The key's own znode.
    Key(Stat),
    /// The holder of a lock; the lock's own znode is vacant, as the stat shows it.
    Lock(Stat, Published),
}

impl Bearer {
    fn version(&self) -> Version {
        match self {
            Bearer::Key(stat) => node::version(stat),
            Bearer::Lock(_, published) => published.version(),
        }
    }
}

impl Session {
    pub(super) async fn get(&self, key: &Key, consistency: Consistency) -> Result<KvPair> {
        self.read(key, consistency).await?.ok_or_else(|| Error::key_not_found(key))
    }

    /// The key, if it exists.
    pub(super) async fn read(&self, key: &Key, consistency: Consistency) -> Result<Option<KvPair>> {
        let path = self.paths.key(key);
        let Some((data, stat)) = self.data(&path, consistency).await? else { return Ok(None) };
        let node = Node::of(stat, &data);
        if node.is_key() {
            return Ok(Some(KvPair { key: key.clone(), value: node::decode(data), version: node::version(&stat) }));
        }
        let published = self.published_at(&path, &node).await?;
        Ok(published.map(|published| published.pair(key)))
    }

    pub(super) async fn exists(&self, key: &Key, consistency: Consistency) -> Result<bool> {
        let path = self.paths.key(key);
        let node = self.look(&path, consistency).await?;
        Ok(node.is_key() || self.published_at(&path, &node).await?.is_some())
    }

    pub(super) async fn put(&self, key: &Key, value: &Bytes) -> Result<Version> {
        let (path, data) = (self.paths.key(key), node::encode(value));
        for _ in 0..ATTEMPTS {
            let written = match self.together.put(&path, &data).await {
                Ok(stat) => self.made_permanent(&path, &data, stat).await?,
                Err(Failure::NoNode) => Box::pin(self.create(&path, &data, CreateMode::Persistent)).await?,
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
            let Some(bearer) = self.bearer(&path).await? else { return Err(Error::key_not_found(key)) };
            if self.remove_value(&path, &bearer).await? {
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
            let vacant = match self.look(&path, Consistency::Linearizable).await? {
                Node::Key(_) => return Err(Error::key_exists(key)),
                Node::Missing => continue,
                Node::Vacant(stat) => stat,
            };
            if self.published_at(&path, &Node::Vacant(vacant)).await?.is_some() {
                return Err(Error::key_exists(key));
            }
            let written = self.overwrite(&path, data, &vacant, CreateMode::Persistent).await;
            if let Some(stat) = self.settled(written)? {
                return Ok(stat);
            }
        }
        Err(self.contended(key))
    }

    async fn put_over(&self, key: &Key, data: &[u8], version: &Version) -> Result<Stat> {
        let path = self.paths.key(key);
        node::check_origin(version)?;
        let lane = self.together.swap_lane();
        if lane.is_none() && self.together.may_swap(data) {
            let written = self.together.swap(&path, data, *version).await;
            if let Some(stat) = written.map_err(|failure| self.write_error(failure))? {
                return Ok(stat);
            }
        }
        let bearer = self.at_version(key, &path, version).await?;
        let written = match &bearer {
            Bearer::Key(stat) => self.overwrite(&path, data, stat, CreateMode::Persistent).await,
            Bearer::Lock(vacant, published) => Box::pin(self.hide(&path, data, vacant, published)).await,
        };
        match self.settled(written)? {
            Some(stat) => Ok(stat),
            None => Err(Box::pin(self.changed(key, &path)).await),
        }
    }

    pub(super) async fn atomic_delete(&self, key: &Key, version: &Version) -> Result<()> {
        let path = self.paths.key(key);
        let bearer = self.at_version(key, &path, version).await?;
        match self.remove_value(&path, &bearer).await? {
            true => Ok(()),
            false => Err(Box::pin(self.changed(key, &path)).await),
        }
    }

    /// What has the value of the key, if it exists.
    async fn bearer(&self, path: &str) -> Result<Option<Bearer>> {
        let node = self.look(path, Consistency::Linearizable).await?;
        Ok(match node {
            Node::Missing => None,
            Node::Key(stat) => Some(Bearer::Key(stat)),
            Node::Vacant(stat) => self.published_at(path, &node).await?.map(|published| Bearer::Lock(stat, published)),
        })
    }

    /// `false`: the value has changed since.
    async fn remove_value(&self, path: &str, bearer: &Bearer) -> Result<bool> {
        match bearer {
            Bearer::Key(stat) => self.remove(path, stat.version, stat.num_children > 0).await,
            Bearer::Lock(_, published) => Box::pin(self.unpublish(published)).await,
        }
    }

    /// Gives a lock a value of its own in place of the one published.
    async fn hide(&self, path: &str, data: &[u8], vacant: &Stat, published: &Published) -> Result<Stat, Failure> {
        let mut batch = Batch::new(self);
        batch.check(&published.path, published.stat.version);
        batch.set(path, data, vacant.version);
        batch.send_for_stat().await
    }

    /// What has the value of the key if that is of this version. ZooKeeper compares a counter that starts again in each
    /// incarnation of a znode; looking first tells a later incarnation. What is left is a key that is deleted, made anew and
    /// written to the same count in the one round trip between the look and the write.
    async fn at_version(&self, key: &Key, path: &str, version: &Version) -> Result<Bearer> {
        node::check_origin(version)?;
        match self.bearer(path).await? {
            Some(bearer) if bearer.version() == *version => Ok(bearer),
            Some(_) => Err(Error::key_modified(key)),
            None => Err(Error::key_not_found(key)),
        }
    }

    /// Why a key no longer has the version that it was just seen with.
    async fn changed(&self, key: &Key, path: &str) -> Error {
        match self.bearer(path).await {
            Ok(Some(_)) => Error::key_modified(key),
            Ok(None) => Error::key_not_found(key),
            Err(error) => error,
        }
    }
}
