//! What the holders of locks publish.
//!
//! The znode of a lock is no key itself: what the first in its line published shows as the key's value, with a version of
//! that contender's znode. So it goes when the holder goes, whatever way that is. It takes requests of its own to look for, so
//! calls do that only where a znode is vacant and has children.
//!
//! A contender of ours has its value from the moment it is made, in the first of its twins; that the second was written to
//! since publishes it. So whoever gives a lock back publishes for the next in line, without knowing what, in the multi that
//! takes its own contender away: the next finds its value published, and needs no write of its own. The version's index is
//! the zxid of the later of the two writes, so that versions grow from holder to holder, also where the one before has
//! published after the next had got in line.
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
use futures_util::future::OptionFuture;
use zookeeper_client::{Error as Failure, Stat};

/// What the holder of a lock published.
#[derive(Clone, Debug)]
pub(super) struct Published {
    /// The holder's znode.
    pub(super) path: String,
    /// The znode's, with the moment of the publication as that of its last change.
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
            Node::Vacant(stat) if stat.num_children > 0 => Box::pin(self.published(path)).await,
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
        let (holder, twin) = (format!("{path}/{}", first.name), line.twin_of(&first));
        // In this order: whatever value is read is published by then, and its znode has the moment if that was after the look.
        let twin = twin.map(|twin| self.client.check_stat(&format!("{path}/{}", twin.name)));
        let data = self.client.get_data(&holder);
        let (twin, data) = tokio::join!(OptionFuture::from(twin), data);
        let Some((data, mut stat)) = self.unless_gone(data)? else { return Ok(First::Gone) };
        if let Some(twin) = twin {
            let twin = twin.map_err(|failure| self.read_error(failure))?;
            let Some(twin) = twin else { return Ok(First::Gone) };
            if twin.version == 0 {
                return Ok(First::Nothing);
            }
            stat.mzxid = stat.mzxid.max(twin.mzxid);
        }
        if data == node::MARKER {
            return Ok(First::Nothing);
        }
        Ok(First::Published(Published { path: holder, stat, value: data.into() }))
    }

    /// Takes away what is published. `false`: that has changed since.
    pub(super) async fn unpublish(&self, published: &Published) -> Result<bool> {
        let mut batch = Batch::new(self);
        batch.unpublish(published);
        Ok(self.settled(batch.send().await)?.is_some())
    }
}
