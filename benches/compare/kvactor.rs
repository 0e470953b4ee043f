//! Ours.

use crate::client::{self, HOLDER, Result};
use crate::failover;
use crate::site::Site;
use ::kvactor::{Error, LockGuard, LockOptions, Store, WatchEvent, WatchStream};
use bytes::Bytes;
use std::net::SocketAddr;
use tokio::sync::OnceCell;

/// One run's store.
pub(crate) struct Peer {
    url: String,
    /// The one store for all, where it is in this process; with a server each connects for itself.
    embedded: Option<OnceCell<Store>>,
}

impl Peer {
    pub(crate) fn at(site: &Site) -> Self {
        let url = match site {
            Site::Server(server) => server.url("kvactor"),
            Site::Folder(folder) => format!("local://{}/store.redb", folder.path().display()),
            Site::Cluster(cluster) => cluster.direct_url("kvactor"),
            Site::Memory => "memory://compare".to_owned(),
        };
        let is_embedded = !matches!(site, Site::Server(_) | Site::Cluster(_));
        Peer { url, embedded: is_embedded.then(OnceCell::new) }
    }
}

impl Peer {
    /// One of several servers.
    pub(crate) fn among(scheme: &str, hosts: &[SocketAddr]) -> Self {
        let hosts = hosts.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",");
        let timeout = failover::ATTEMPT.as_millis();
        Peer { url: format!("{scheme}://{hosts}/kvactor?request_timeout={timeout}ms"), embedded: None }
    }
}

impl client::Peer for Peer {
    type Client = Store;

    async fn connect(&self) -> Result<Store> {
        let connect = || Store::connect(&self.url);
        Ok(match &self.embedded {
            Some(store) => store.get_or_try_init(connect).await?.clone(),
            None => connect().await?,
        })
    }
}

impl client::Client for Store {
    type Watch = WatchStream;
    type Held = LockGuard;

    async fn put(&mut self, key: &str, value: Bytes) -> Result<()> {
        Store::put(self, key, value).await?;
        Ok(())
    }

    async fn watch(&mut self, key: &str) -> Result<WatchStream> {
        Ok(Store::watch(self, key).await?)
    }

    async fn lock(&mut self, key: &str) -> Result<LockGuard> {
        Ok(self.lock_with(key, LockOptions { value: HOLDER.into(), ..LockOptions::default() }).await?)
    }

    async fn unlock(&mut self, held: LockGuard) -> Result<()> {
        Ok(held.unlock().await?)
    }

    async fn close(self) -> Result<()> {
        match Store::close(&self).await {
            // Where there is one for both sides, the other one was first.
            Err(Error::Closed) => Ok(()),
            closed => Ok(closed?),
        }
    }
}

impl client::Watch for WatchStream {
    async fn next(&mut self) -> Result<Bytes> {
        match WatchStream::next(self).await {
            Some(WatchEvent::Put(pair)) => Ok(pair.value),
            other => Err(format!("unexpected: {other:?}").into()),
        }
    }
}
