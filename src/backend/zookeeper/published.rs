//! What the holders of locks publish.
//!
//! The znode of a lock is no key itself: what the first in its line published shows as the key's value, with a version of
//! that contender's znode. So it goes when the holder goes, whatever way that is. It takes requests of its own to look for, so
//! calls do that only where a znode is vacant and has children.
//!
//! What others do to such a key, a `put` for one, is about the znode of the lock: from then on that has a value of its own, which
//! hides what holders publish. They stay holders; those who come later find the key in use. A `delete` takes away what the
//! holder published, and leaves it the lock.

use super::batch::Batch;
use super::contender::Line;
use super::node::{self, Node};
use super::session::{ATTEMPTS, Session};
use crate::error::Result;
use crate::key::Key;
use crate::types::{KvPair, Version};
use bytes::Bytes;
use zookeeper_client::{Error as Failure, Stat};

/// What the holder of a lock published.
#[derive(Clone, Debug)]
pub(super) struct Published {
    /// The holder's znode.
    pub(super) path: String,
    pub(super) stat: Stat,
    pub(super) value: Bytes,
}

impl Published {
    pub(super) fn version(&self) -> Version {
        node::version(&self.stat)
    }

    pub(super) fn pair(self, key: &Key) -> KvPair {
        KvPair { key: key.clone(), version: self.version(), value: self.value }
    }
}

/// What the first in a line has to tell.
enum First {
    Published(Published),
    /// Nobody is first, or has published anything.
    Nothing,
    /// It has gone since the names were read.
    Gone,
}

impl Session {
    /// What is published at this znode; without a question to the server where that can't be anything.
    pub(super) async fn published_at(&self, path: &str, node: &Node) -> Result<Option<Published>> {
        match node {
            Node::Vacant(stat) if stat.num_children > 0 => self.published(path).await,
            _ => Ok(None),
        }
    }

    pub(super) async fn published(&self, path: &str) -> Result<Option<Published>> {
        for _ in 0..ATTEMPTS {
            let names = match self.client.list_children(path).await {
                Ok(names) => names,
                Err(Failure::NoNode) => return Ok(None),
                Err(failure) => return Err(self.read_error(failure)),
            };
            match self.first_of(path, &names).await? {
                First::Published(published) => return Ok(Some(published)),
                First::Nothing => return Ok(None),
                First::Gone => {}
            }
        }
        Err(self.contended(path))
    }

    /// As [`published`](Session::published), where the names of the children have just been read.
    pub(super) async fn published_among(&self, path: &str, names: &[String]) -> Result<Option<Published>> {
        match self.first_of(path, names).await? {
            First::Published(published) => Ok(Some(published)),
            First::Nothing => Ok(None),
            First::Gone => self.published(path).await,
        }
    }

    async fn first_of(&self, path: &str, names: &[String]) -> Result<First> {
        let line = Line::of(names);
        let Some(first) = line.first() else { return Ok(First::Nothing) };
        let path = format!("{path}/{}", first.name);
        let (data, stat) = match self.client.get_data(&path).await {
            Ok(read) => read,
            Err(Failure::NoNode) => return Ok(First::Gone),
            Err(failure) => return Err(self.read_error(failure)),
        };
        let silent = (line.is_ours(&first) && stat.version == 0) || data == node::MARKER;
        Ok(if silent { First::Nothing } else { First::Published(Published { path, stat, value: data.into() }) })
    }

    /// Takes away what is published. `false`: that has changed since.
    pub(super) async fn unpublish(&self, published: &Published) -> Result<bool> {
        let Published { path, stat, .. } = published;
        let written = self.send_publication(path, node::MARKER, stat.version).await;
        Ok(self.settled(written)?.is_some())
    }

    pub(super) fn send_publication(
        &self,
        path: &str,
        data: &[u8],
        version: i32,
    ) -> impl Future<Output = Result<Stat, Failure>> {
        let mut batch = Batch::new(self);
        batch.publish(path, data, version);
        batch.send_for_stat()
    }
}
