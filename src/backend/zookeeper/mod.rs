//! The zookeeper driver, on the `zookeeper-client` crate.
//!
//! - `connect` and `tls`: opening a session with an ensemble.
//! - `path` and `node`: how a key becomes a znode, and which znodes are keys.
//! - `session`: the steps that calls are made of; `batch`: several of them at one moment;
//!   `gathered`: what many ask at once.
//! - `key`, `walk` and `tree`, `lease`, `txn`: the calls.
//! - `lock` and `contest`: locks; `grant`: the sessions that they hang on; `contender` and `published`: what is in a lock's znode;
//!   `hunch`: what to expect of it.
//! - `watch`: following a target; `inbox`: what was heard of it; `hub` and `arm`: what the server is asked to tell.
//! - `doubt`: what becomes of leased writes whose answer was lost.
//! - `errors`: what failures mean.

mod arm;
mod batch;
mod connect;
mod contender;
mod contest;
mod doubt;
mod errors;
mod gathered;
mod grant;
mod hub;
mod hunch;
mod inbox;
mod key;
mod lease;
mod lock;
mod node;
mod path;
mod published;
mod session;
mod tls;
mod tree;
mod txn;
mod walk;
mod watch;

pub(crate) use connect::connector;

use self::connect::Ensemble;
use self::hub::Hub;
use self::session::Session;
use crate::backend::{Backend, Lease, Locking, Position, Target, Updates};
use crate::error::{Error, Result};
use crate::key::{Dir, Key};
use crate::types::{Check, Consistency, Expected, KvPair, ListOptions, Operation, Page, TxnOutcome, Version};
use async_trait::async_trait;
use bytes::Bytes;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use zookeeper_client::{SessionState, StateWatcher};

/// A session with an ensemble, until it is closed.
struct ZooKeeper {
    /// Calls hold it too while they last. None: closed.
    session: RefCell<Option<Rc<Session>>>,
    hub: Rc<Hub>,
    ensemble: Arc<Ensemble>,
    state: StateWatcher,
    /// The server's name for the session.
    id: String,
    servers: String,
}

impl ZooKeeper {
    fn new(session: Session, ensemble: Arc<Ensemble>) -> Self {
        ZooKeeper {
            ensemble,
            state: session.client.state_watcher(),
            id: session.client.session_id().to_string(),
            servers: session.servers.clone(),
            session: RefCell::new(Some(Rc::new(session))),
            hub: Hub::new(),
        }
    }

    /// The session, if its link is up. Without this check requests would queue up in the client library, and be sent whenever
    /// the link is back.
    fn session(&self) -> Result<Rc<Session>> {
        let session = self.session.borrow().clone().ok_or(Error::Closed)?;
        match session.client.state() {
            SessionState::SyncConnected => Ok(session),
            state => Err(errors::of_state(&self.servers, state)),
        }
    }

    async fn state_that(&self, wanted: impl Fn(SessionState) -> bool) -> SessionState {
        state_that(self.state.clone(), wanted).await
    }
}

/// The first state, the present one included, that is among those wanted.
async fn state_that(mut watcher: StateWatcher, wanted: impl Fn(SessionState) -> bool) -> SessionState {
    let mut state = watcher.state();
    while !wanted(state) {
        state = watcher.changed().await;
    }
    state
}

fn is_final(state: SessionState) -> bool {
    matches!(state, SessionState::Expired | SessionState::AuthFailed | SessionState::Closed)
}

#[async_trait(?Send)]
impl Backend for ZooKeeper {
    async fn get(&self, key: &Key, consistency: Consistency) -> Result<KvPair> {
        self.session()?.get(key, consistency).await
    }

    async fn exists(&self, key: &Key, consistency: Consistency) -> Result<bool> {
        self.session()?.exists(key, consistency).await
    }

    async fn put(&self, key: &Key, value: &Bytes) -> Result<Version> {
        self.session()?.put(key, value).await
    }

    async fn put_leased(&self, key: &Key, value: &Bytes, ttl: Duration) -> Result<(Version, Lease)> {
        self.session()?.put_leased(key, value, ttl).await
    }

    async fn renew(&self, lease: &Lease) -> Result<()> {
        self.session()?.renew(lease).await
    }

    async fn expire(&self, lease: &Lease) -> Result<()> {
        self.session()?.expire(lease).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.session()?.delete(key).await
    }

    async fn list(&self, dir: &Dir, options: &ListOptions) -> Result<Page<KvPair>> {
        self.session()?.list(dir, options).await
    }

    async fn list_keys(&self, dir: &Dir, options: &ListOptions) -> Result<Page<Key>> {
        self.session()?.list_keys(dir, options).await
    }

    async fn delete_tree(&self, dir: &Dir) -> Result<u64> {
        self.session()?.delete_tree(dir).await
    }

    async fn atomic_put(&self, key: &Key, value: &Bytes, expected: &Expected) -> Result<Version> {
        self.session()?.atomic_put(key, value, expected).await
    }

    async fn atomic_delete(&self, key: &Key, version: &Version) -> Result<()> {
        self.session()?.atomic_delete(key, version).await
    }

    async fn txn(&self, checks: &[Check], operations: &[Operation]) -> Result<TxnOutcome> {
        self.session()?.txn(checks, operations).await
    }

    /// ZooKeeper keeps no history to follow from a position on.
    async fn watch(&self, target: &Target, _after: Option<&Position>) -> Result<Updates> {
        watch::follow(self.session()?, &self.hub, target).await
    }

    fn locks(&self) -> Option<&dyn Locking> {
        Some(self)
    }

    async fn disrupted(&self) -> Error {
        let state = self.state_that(|state| state != SessionState::SyncConnected).await;
        errors::of_state(&self.servers, state)
    }

    async fn recover(&self) -> Result<()> {
        match self.state_that(|state| state == SessionState::SyncConnected || is_final(state)).await {
            SessionState::SyncConnected => Ok(()),
            state => Err(errors::of_state(&self.servers, state)),
        }
    }

    fn session(&self) -> Option<String> {
        Some(self.id.clone())
    }

    /// The session ends when its last user lets go of it; the server has then removed its ephemeral znodes.
    async fn close(&self) -> Result<()> {
        self.hub.fail_all(&Error::Closed);
        drop(self.session.take());
        self.state_that(is_final).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::carried;

    type S = &'static Session;
    type K = &'static Key;

    #[test]
    fn calls_carry_no_more_than_a_kilobyte() {
        let sizes = [
            carried(|(s, k): (S, K)| s.get(k, Consistency::Stale)),
            carried(|(s, k): (S, K)| s.exists(k, Consistency::Stale)),
            carried(|(s, k, v): (S, K, &'static Bytes)| s.put(k, v)),
            carried(|(s, k): (S, K)| s.delete(k)),
            carried(|(s, k, v, e): (S, K, &'static Bytes, &'static Expected)| s.atomic_put(k, v, e)),
            carried(|(s, k, v): (S, K, &'static Version)| s.atomic_delete(k, v)),
            carried(|(s, c, o): (S, &'static [Check], &'static [Operation])| s.txn(c, o)),
            carried(|(s, d, o): (S, &'static Dir, &'static ListOptions)| s.list(d, o)),
            carried(|(s, d): (S, &'static Dir)| s.delete_tree(d)),
        ];
        assert!(sizes.iter().all(|size| *size <= 1024), "{sizes:?}");
    }
}
