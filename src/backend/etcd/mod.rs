//! The driver for etcd's v3 API.
//!
//! Every call is one request while all goes well, or shares one with others. A key's version is the revision at which it was last
//! changed, which no other change of that key shares.

mod attempt;
mod events;
mod gathered;
mod history;
mod hub;
mod kv;
mod lease;
mod line;
mod lock;
mod pulse;
mod range;
mod sentinel;
mod session;
mod status;
mod term;
mod transport;
mod watch;

use crate::backend::{Backend, Connector, Lease, Locking, Position, Target, Updates};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::key::{Dir, Key};
use crate::types::{
    BackendKind, Capabilities, Check, Consistency, Expected, KvPair, ListOptions, Operation, Page, TxnOutcome, Version,
};
use async_trait::async_trait;
use bytes::Bytes;
use gathered::Together;
use history::Chronicle;
use session::Session;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use watch::Watches;

/// The largest value that fits into a request, which etcd limits to 1.5 MiB by default: a transaction names its key three
/// times over, and a key has up to 1,025 bytes together with its namespace.
const MAX_VALUE_SIZE: usize = 1536 * 1024 - 4096;

/// A connector for the servers of `config`.
///
/// # Errors
/// [`Error::InvalidConfig`] and [`Error::Unsupported`], before anything is contacted.
pub(crate) fn connector(config: &Config) -> Result<Arc<dyn Connector>> {
    let servers: Vec<_> = config.endpoints.iter().map(ToString::to_string).collect();
    if servers.is_empty() {
        return Err(Error::invalid_config("endpoints", "etcd needs at least one server"));
    }
    config.tls.as_ref().map_or(Ok(()), transport::check_files)?;
    for server in &servers {
        transport::endpoint(config, server)?;
    }
    Ok(Arc::new(EtcdConnector { config: config.clone(), servers, chronicle: Arc::default() }))
}

struct EtcdConnector {
    config: Config,
    servers: Vec<String>,
    chronicle: Arc<Chronicle>,
}

#[async_trait(?Send)]
impl Connector for EtcdConnector {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_value_size: MAX_VALUE_SIZE,
            max_ttl: lease::MAX_TTL,
            min_lock_ttl: lease::MIN_LOCK_TTL,
            max_lock_ttl: lease::MAX_LOCK_TTL,
            holders_are_keys: false,
            ..Capabilities::new(BackendKind::Etcd)
        }
    }

    fn endpoints(&self) -> Vec<String> {
        self.servers.clone()
    }

    async fn connect(&self, index: usize) -> Result<Rc<dyn Backend>> {
        let no_such = || Error::invalid_config("endpoints", format!("there is none at position {index}"));
        let server = self.servers.get(index).ok_or_else(no_such)?;
        let endpoint = transport::endpoint(&self.config, server)?;
        let Config { namespace, credentials, .. } = self.config.clone();
        match Session::open(&endpoint, server.clone(), namespace, credentials).await {
            Ok(session) => Ok(Rc::new(self.driver(session))),
            // Whatever else a server says to the first question, another one or another time may do better.
            Err(error @ (Error::Backend { .. } | Error::Indeterminate { .. })) => Err(no_etcd(server, error)),
            Err(error) if status::is_broken_connection(&error) => Err(self.hung_up(error)),
            Err(error) => Err(error),
        }
    }
}

impl EtcdConnector {
    fn driver(&self, session: Session) -> Driver {
        let session = Rc::new(session);
        let watches = Watches::new(session.clone(), self.chronicle.clone(), self.config.options.idle_timeout);
        Driver { together: Together::new(session.clone()), session, watches: Rc::new(watches) }
    }

    /// The server took the connection and let it go before it answered. Many do so where TLS is amiss, and the alert that
    /// says more than that may be lost.
    fn hung_up(&self, error: Error) -> Error {
        let hint = match self.config.tls {
            Some(_) => "does it ask for a client certificate (`tls_cert`, `tls_key`), or for another one?",
            None => "does it want TLS (etcds://)?",
        };
        match error {
            Error::Unreachable { reason, source } => {
                Error::Unreachable { reason: format!("{reason}; is this etcd's port for clients, and {hint}"), source }
            }
            error => error,
        }
    }
}

fn no_etcd(server: &str, error: Error) -> Error {
    let reason = format!("{server} doesn't answer as a working etcd server: {error}");
    Error::unreachable(reason).with_source(error)
}

/// A session, what many callers ask of it at once, and its watches.
struct Driver {
    session: Rc<Session>,
    together: Together,
    watches: Rc<Watches>,
}

#[async_trait(?Send)]
impl Backend for Driver {
    async fn get(&self, key: &Key, consistency: Consistency) -> Result<KvPair> {
        kv::get(&self.together, key, consistency).await
    }

    async fn exists(&self, key: &Key, consistency: Consistency) -> Result<bool> {
        kv::exists(&self.together, key, consistency).await
    }

    async fn put(&self, key: &Key, value: &Bytes) -> Result<Version> {
        kv::put(&self.together, key, value).await
    }

    async fn put_leased(&self, key: &Key, value: &Bytes, ttl: Duration) -> Result<(Version, Lease)> {
        lease::put(&self.session, key, value, ttl).await
    }

    async fn renew(&self, lease: &Lease) -> Result<()> {
        lease::renew(&self.session, lease).await
    }

    async fn expire(&self, lease: &Lease) -> Result<()> {
        lease::expire(&self.session, lease).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        kv::delete(&self.together, key).await
    }

    async fn list(&self, dir: &Dir, options: &ListOptions) -> Result<Page<KvPair>> {
        range::list(&self.session, dir, options).await
    }

    async fn list_keys(&self, dir: &Dir, options: &ListOptions) -> Result<Page<Key>> {
        range::list_keys(&self.session, dir, options).await
    }

    async fn delete_tree(&self, dir: &Dir) -> Result<u64> {
        range::delete_tree(&self.session, dir).await
    }

    async fn atomic_put(&self, key: &Key, value: &Bytes, expected: &Expected) -> Result<Version> {
        kv::atomic_put(&self.together, key, value, expected).await
    }

    async fn atomic_delete(&self, key: &Key, version: &Version) -> Result<()> {
        kv::atomic_delete(&self.together, key, version).await
    }

    async fn txn(&self, checks: &[Check], operations: &[Operation]) -> Result<TxnOutcome> {
        kv::txn(&self.session, checks, operations).await
    }

    async fn watch(&self, target: &Target, after: Option<&Position>) -> Result<Updates> {
        Ok(self.watches.clone().follow(target, after))
    }

    fn locks(&self) -> Option<&dyn Locking> {
        Some(self)
    }

    async fn disrupted(&self) -> Error {
        self.session.broken().await
    }

    async fn recover(&self) -> Result<()> {
        self.session.prove().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::carried;

    type T = &'static Together;
    type S = &'static Session;
    type K = &'static Key;

    #[test]
    fn calls_carry_no_more_than_a_kilobyte() {
        let sizes = [
            carried(|(t, k): (T, K)| kv::get(t, k, Consistency::Stale)),
            carried(|(t, k): (T, K)| kv::exists(t, k, Consistency::Stale)),
            carried(|(t, k, v): (T, K, &'static Bytes)| kv::put(t, k, v)),
            carried(|(t, k): (T, K)| kv::delete(t, k)),
            carried(|(t, k, v, e): (T, K, &'static Bytes, &'static Expected)| kv::atomic_put(t, k, v, e)),
            carried(|(t, k, v): (T, K, &'static Version)| kv::atomic_delete(t, k, v)),
            carried(|(s, c, o): (S, &'static [Check], &'static [Operation])| kv::txn(s, c, o)),
            carried(|(s, d, o): (S, &'static Dir, &'static ListOptions)| range::list(s, d, o)),
            carried(|(s, d): (S, &'static Dir)| range::delete_tree(s, d)),
        ];
        assert!(sizes.iter().all(|size| *size <= 1024), "{sizes:?}");
    }
}
