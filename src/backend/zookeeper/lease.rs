//! Keys with a TTL: ephemeral znodes of this session, which the session's pings keep alive.
//!
//! The server removes them when it has not heard of the session for the session timeout. It checks once a tick, which by its
//! defaults is at most half of the shortest timeout it grants, so a key outlives its process by one and a half timeouts.

use super::errors;
use super::node::{self, Node};
use super::session::{ATTEMPTS, Session};
use crate::backend::Lease;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::types::{Consistency, Version};
use bytes::Bytes;
use std::time::Duration;
use zookeeper_client::{CreateMode, Error as Failure, Stat};

impl Session {
    pub(super) async fn put_leased(&self, key: &Key, value: &Bytes, ttl: Duration) -> Result<(Version, Lease)> {
        let path = self.paths.key(key);
        let doubt = self.doubts.open(self, &path, ttl);
        let written = self.write_ephemeral(key, &path, &node::encode(value)).await;
        match &written {
            Ok(stat) => doubt.succeeded(stat),
            Err(error) if error.is_indeterminate() => drop(doubt),
            Err(_) => doubt.failed(),
        }
        written.map(|stat| self.lease(key, &stat))
    }

    async fn write_ephemeral(&self, key: &Key, path: &str, data: &[u8]) -> Result<Stat> {
        for _ in 0..ATTEMPTS {
            if let Some(stat) = self.create(path, data, CreateMode::Ephemeral).await? {
                return Ok(stat);
            }
            let (Node::Key(stat) | Node::Vacant(stat)) = self.look(path, Consistency::Linearizable).await? else {
                continue;
            };
            if stat.num_children > 0 {
                return Err(errors::beneath_ttl_key());
            }
            let written = self.overwrite(path, data, &stat, CreateMode::Ephemeral).await;
            if let Some(stat) = self.settled(written)? {
                return Ok(stat);
            }
        }
        Err(self.contended(key))
    }

    fn lease(&self, key: &Key, stat: &Stat) -> (Version, Lease) {
        let version = node::version(stat);
        let lease = Lease {
            key: key.clone(),
            version,
            id: stat.czxid.to_string(),
            renew_within: Duration::MAX,
            outlives_process_by: self.client.session_timeout() * 3 / 2,
        };
        (version, lease)
    }

    /// There is nothing to renew on the server; what matters is whether the znode is still the one of the lease.
    pub(super) async fn renew(&self, lease: &Lease) -> Result<()> {
        match self.look(&self.paths.key(&lease.key), Consistency::Linearizable).await?.stat() {
            Some(stat) if self.holds(lease, stat) => Ok(()),
            _ => Err(Error::key_not_found(&lease.key)),
        }
    }

    pub(super) async fn expire(&self, lease: &Lease) -> Result<()> {
        let path = self.paths.key(&lease.key);
        let node = self.look(&path, Consistency::Linearizable).await?;
        let Some(stat) = node.stat().filter(|stat| self.holds(lease, stat) && node::version(stat) == lease.version)
        else {
            return Ok(());
        };
        let deleted = self.client.delete(&path, Some(stat.version));
        let swept = self.send_sweep(self.paths.directory_of(&path));
        match tokio::join!(deleted, swept).0 {
            Ok(()) | Err(Failure::NoNode | Failure::BadVersion) => Ok(()),
            Err(failure) => Err(self.write_error(failure)),
        }
    }

    /// Whether the znode is the one that the lease was given with, by this very session.
    fn holds(&self, lease: &Lease, stat: &Stat) -> bool {
        stat.czxid.cast_unsigned() == lease.version.created() && stat.ephemeral_owner == self.client.session_id().0
    }
}
