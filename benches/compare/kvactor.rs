//! Ours.

use crate::calls::{Calls, Freshness};
use crate::client::{self, HOLDER, Result};
use crate::failover;
use crate::site::Place;
use ::kvactor::{
    Consistency, Error, LockGuard, LockOptions, Operation, Store, TxnOutcome, Version, WatchEvent, WatchStream,
};
use bytes::Bytes;
use futures_util::future::ready;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::time::Duration;
use tokio::sync::OnceCell;

/// One run's store.
pub(crate) struct Peer {
    url: String,
    /// The one store for all, where it is in this process; with a server each connects for itself.
    embedded: Option<OnceCell<Store>>,
}

impl Peer {
    pub(crate) fn at(place: &Place) -> Self {
        let url = match place {
            Place::Server { scheme, address } => format!("{scheme}://{address}/kvactor"),
            Place::Folder(folder) => format!("local://{}/store.redb", folder.display()),
            Place::Memory => "memory://compare".to_owned(),
        };
        let is_embedded = !matches!(place, Place::Server { .. });
        Peer { url, embedded: is_embedded.then(OnceCell::new) }
    }

    /// One of several servers.
    pub(crate) fn among(scheme: &str, hosts: &[String]) -> Self {
        let (hosts, timeout) = (hosts.join(","), failover::ATTEMPT.as_millis());
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

impl Calls for Store {
    type Version = Version;

    async fn get(&self, key: &str, freshness: Freshness) -> Result<usize> {
        let consistency = match freshness {
            Freshness::Linearizable => Consistency::Linearizable,
            Freshness::Stale => Consistency::Stale,
        };
        Ok(self.get_with(key, consistency).await?.value.len())
    }

    async fn put(&self, key: &str, value: Bytes) -> Result<Version> {
        Ok(Store::put(self, key, value).await?)
    }

    async fn atomic_put(&self, key: &str, value: Bytes, expected: &Version) -> Result<Version> {
        Ok(Store::atomic_put(self, key, value, *expected).await?.version)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        Ok(Store::delete(self, key).await?)
    }

    async fn list(&self, dir: &str) -> Result<usize> {
        match self.patient().list(dir).await {
            Ok(pairs) => Ok(pairs.len()),
            Err(Error::KeyNotFound { .. }) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    async fn delete_tree(&self, dir: &str) -> Result<usize> {
        Ok(usize::try_from(self.patient().delete_tree(dir).await?)?)
    }

    async fn txn(&self, keys: &[String], value: Bytes) -> Result<()> {
        let operation = |key| Operation::put(key, value.clone());
        let operations = keys.iter().map(operation).collect::<Result<_, _>>()?;
        match Store::txn(self, Vec::new(), operations).await? {
            TxnOutcome::Committed(_) => Ok(()),
            TxnOutcome::CheckFailed { .. } => Err("a check failed where none was made".into()),
        }
    }

    async fn fill(&self, dir: &str, names: Vec<String>, value: Bytes) -> Result<()> {
        let store = self.patient();
        let put = |name| store.put(format!("{dir}/{name}"), value.clone());
        stream::iter(names).map(put).buffer_unordered(64).try_for_each(|_| ready(Ok(()))).await?;
        Ok(())
    }

    async fn close(self) -> Result<()> {
        client::Client::close(self).await
    }
}

/// Much work of many callers at once takes longer than one call usually may.
trait Patient {
    fn patient(&self) -> Store;
}

impl Patient for Store {
    fn patient(&self) -> Store {
        self.with_request_timeout(Duration::from_secs(60))
    }
}
