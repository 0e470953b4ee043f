//! Consul, by its HTTP API.
//!
//! What a reader of the server's data should know:
//! - The flags of keys that kvactor writes are random. They make each write a change; see [`codec::nonce`].
//! - A key with a TTL is held by a session named `kvactor-ttl` that deletes it at its end. Sessions with other names
//!   are locks to this driver, whose ordinary writes leave them alone; its own are in [`lock`].
//! - Values of more than 378 KiB don't fit into Consul's transactions. Alone they are written in another way, with one
//!   more request; in a transaction they are refused.
//! - Agents take no URL with characters that Go doesn't print, such as U+00A0 or U+200B. Keys that aren't ASCII are
//!   therefore read by transactions, which show values also where only the names of keys are asked for. That other way of
//!   writing large values isn't open to keys with such characters: writing more than 378 KiB to them fails with
//!   [`Error::Unsupported`], and nothing is written.

mod blocking;
mod codec;
mod elements;
mod errors;
mod gathered;
mod http;
mod hub;
mod list;
mod lock;
mod plan;
mod read;
mod session;
mod txn;
mod watch;
mod write;

use crate::backend::{Backend, Connector, Lease, Locking, Position, Target, Updates};
use crate::config::{Config, Endpoint};
use crate::error::{Error, Result};
use crate::key::{Dir, Key, Namespace};
use crate::types::{
    BackendKind, Capabilities, Check, Consistency, Expected, KvPair, ListOptions, Operation, Page, TxnOutcome, Version,
};
use async_trait::async_trait;
use awc::http::StatusCode;
use awc::http::header::HeaderValue;
use bytes::Bytes;
use codec::{Meta, Op};
use gathered::Together;
use http::{Effect, Http, Request, Settings, Transaction};
use hub::Hub;
use session::NewSession;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use write::{Mode, Outcome, Placed};

/// Consul's own limit for a value (`kv_max_value_size`). A few keys have a lower one, see [`Consul::require_way`].
const MAX_VALUE_SIZE: usize = 512 * 1024;
/// Consul's bounds for the TTL of a session.
const MIN_SESSION_TTL: Duration = Duration::from_secs(10);
const MAX_SESSION_TTL: Duration = Duration::from_secs(86400);
/// Consul ends a session that isn't renewed for this many times its TTL.
const SESSION_TTL_MULTIPLIER: u32 = 2;

/// The connector for the Consul agents of `config`, each of which is an endpoint.
pub(crate) fn connector(config: &Config) -> Result<Arc<dyn Connector>> {
    if config.endpoints.is_empty() {
        return Err(Error::invalid_config("endpoints", "Consul needs the address of an agent, such as 127.0.0.1:8500"));
    }
    if config.options.datacenter.as_deref() == Some("") {
        return Err(Error::invalid_config("datacenter", "it is empty; leave it out for the agent's own"));
    }
    let settings = Settings {
        connect_timeout: config.options.connect_timeout,
        token: token(config)?,
        datacenter: config.options.datacenter.clone(),
        #[cfg(feature = "tls")]
        tls: tls(config)?,
    };
    #[cfg(not(feature = "tls"))]
    if config.tls.is_some() {
        return Err(Error::unsupported("TLS needs the crate feature `tls`, which this build doesn't have"));
    }
    Ok(Arc::new(ConsulConnector {
        endpoints: config.endpoints.clone(),
        namespace: config.namespace.clone(),
        settings,
        idle_timeout: config.options.idle_timeout,
        max_watch_connections: usize::try_from(config.options.max_watch_connections).unwrap_or(usize::MAX),
        lock_delay: config.options.lock_delay,
    }))
}

/// The ACL token, as the header's value.
fn token(config: &Config) -> Result<Option<HeaderValue>> {
    let wrong = |reason: &str| Err(Error::invalid_config("credentials", reason));
    let Some(credentials) = &config.credentials else { return Ok(None) };
    if credentials.password.is_empty() {
        return wrong("Consul knows no users; give the token as the password, as in consul://:token@host");
    }
    match HeaderValue::from_str(&credentials.password) {
        Ok(mut token) => {
            token.set_sensitive(true);
            Ok(Some(token))
        }
        Err(_) => wrong("the token has characters that no Consul token has"),
    }
}

#[cfg(feature = "tls")]
fn tls(config: &Config) -> Result<Option<Arc<rustls::ClientConfig>>> {
    let Some(tls) = &config.tls else { return Ok(None) };
    // awc hands the host with its brackets to rustls, which takes no such name.
    if let Some(endpoint) = config.endpoints.iter().find(|endpoint| endpoint.host.starts_with('[')) {
        return Err(Error::unsupported(format!("TLS to an IPv6 address; give `{endpoint}` a host name")));
    }
    crate::tls::client_config(tls).map(|tls| Some(Arc::new(tls)))
}

struct ConsulConnector {
    endpoints: Vec<Endpoint>,
    namespace: Namespace,
    settings: Settings,
    idle_timeout: Duration,
    max_watch_connections: usize,
    lock_delay: Duration,
}

impl ConsulConnector {
    fn hub(&self, endpoint: &Endpoint, calls: Rc<Http>) -> Rc<Hub> {
        let (queries, silence) = (self.max_watch_connections, self.idle_timeout);
        let (endpoint, settings) = (endpoint.clone(), self.settings.clone());
        let client = Box::new(move || Http::for_one_query(silence, &endpoint, &settings));
        Hub::new(client, calls, self.namespace.clone(), silence, queries)
    }
}

#[async_trait(?Send)]
impl Connector for ConsulConnector {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_value_size: MAX_VALUE_SIZE,
            min_ttl: Duration::from_secs(1),
            max_ttl: SESSION_TTL_MULTIPLIER * (MAX_SESSION_TTL - Duration::from_secs(1)),
            min_lock_ttl: MIN_SESSION_TTL,
            max_lock_ttl: MAX_SESSION_TTL,
            every_revision: false,
            ..Capabilities::new(BackendKind::Consul)
        }
    }

    fn endpoints(&self) -> Vec<String> {
        self.endpoints.iter().map(ToString::to_string).collect()
    }

    async fn connect(&self, index: usize) -> Result<Rc<dyn Backend>> {
        let endpoint =
            self.endpoints.get(index).ok_or_else(|| Error::backend(format!("there is no endpoint {index}")))?;
        let http = Rc::new(Http::new(endpoint, &self.settings));
        let hub = self.hub(endpoint, http.clone());
        let (namespace, lock_delay) = (self.namespace.clone(), self.lock_delay);
        let (together, reads_only) = (Together::new(http.clone()), Cell::new(false));
        let consul = Consul { http, together, hub, namespace, lock_delay, reads_only };
        consul.probe().await?;
        Ok(Rc::new(consul))
    }
}

/// A session with one agent, which is but its connections: all state is on the servers.
struct Consul {
    /// For calls.
    http: Rc<Http>,
    /// What many callers ask at once.
    together: Together,
    /// For watches, with connections of its own: however many they are, calls don't wait for them.
    hub: Rc<Hub>,
    namespace: Namespace,
    lock_delay: Duration,
    /// Whether the token was once found to be without the right to write a key.
    reads_only: Cell<bool>,
}

fn version(index: u64) -> Version {
    Version::new(BackendKind::Consul, index)
}

/// The index to compare with the server's.
fn index(version: &Version) -> Result<u64> {
    match (version.backend(), version.index()) {
        // 0 would mean absence; no key has it, nor the index that takes its place.
        (BackendKind::Consul, 0) => Ok(u64::MAX),
        (BackendKind::Consul, index) => Ok(index),
        (other, _) => Err(Error::unsupported(format!("a version of {other} means nothing to Consul"))),
    }
}

/// The TTL of the session behind a TTL of `ttl`, in whole seconds: the server waits for twice as long. One second is to
/// spare.
fn session_ttl(ttl: Duration) -> Duration {
    let half = ttl.as_nanos().div_ceil(u128::from(SESSION_TTL_MULTIPLIER) * 1_000_000_000);
    let seconds = u64::try_from(half).unwrap_or(u64::MAX).saturating_add(1);
    Duration::from_secs(seconds).clamp(MIN_SESSION_TTL, MAX_SESSION_TTL)
}

impl Consul {
    /// Proves that a Consul agent answers, that its servers have a leader, and that they know the token.
    async fn probe(&self) -> Result<()> {
        let answer = self.http.expect_ok(Request::get("status/leader", "")).await.map_err(unreachable)?;
        let leader: String = self.http.json(&answer)?;
        if leader.is_empty() {
            return Err(Error::unreachable(format!("{} knows of no leader among its servers", self.http.name())));
        }
        match self.http.has_token() {
            true => self.probe_token().await,
            false => Ok(()),
        }
    }

    /// Fails if the servers don't know the token. Any other answer is as good as a yes: 401 says that access isn't
    /// controlled, older servers don't know the request.
    async fn probe_token(&self) -> Result<()> {
        let answer = self.http.send(Request::get("acl/token/self", "")).await?;
        match answer.status {
            StatusCode::FORBIDDEN => Err(self.http.failure(&answer)),
            _ => Ok(()),
        }
    }

    /// Runs a transaction and returns the entries of its answer; none where an operation failed.
    async fn run(&self, ops: &[Op<'_>], consistency: Consistency) -> Result<Option<Vec<Placed>>> {
        match self.http.txn(ops, consistency).await? {
            Transaction::Applied(body) => {
                let entries = self.http.entries(&body, Effect::of(ops))?;
                Ok(Some(entries.map(|entry| Placed::from(&entry)).collect()))
            }
            Transaction::Refused(_) => Ok(None),
            Transaction::TooLarge(said) => Err(Error::backend(said)),
        }
    }

    /// Why a key didn't have the version that was expected.
    async fn mismatch(&self, key: &Key) -> Error {
        match self.is_there(key, Consistency::Linearizable).await {
            Ok(true) => Error::key_modified(key),
            Ok(false) => Error::key_not_found(key),
            Err(error) => error,
        }
    }
}

/// A failure of the probe: there may be other agents, or this one will come to itself.
fn unreachable(error: Error) -> Error {
    match error {
        Error::Backend { reason, source } => Error::Unreachable { reason, source },
        error => error,
    }
}

#[async_trait(?Send)]
impl Backend for Consul {
    async fn watch(&self, target: &Target, _: Option<&Position>) -> Result<Updates> {
        self.follow(target).await
    }

    async fn get(&self, key: &Key, consistency: Consistency) -> Result<KvPair> {
        match self.together.read(&self.namespace.path(key), consistency).await? {
            Some((value, index)) => Ok(KvPair { key: key.clone(), value, version: version(index) }),
            None => Err(Error::key_not_found(key)),
        }
    }

    async fn exists(&self, key: &Key, consistency: Consistency) -> Result<bool> {
        self.is_there(key, consistency).await
    }

    async fn put(&self, key: &Key, value: &Bytes) -> Result<Version> {
        match self.write(key, value, Mode::Set).await? {
            Outcome::Written(placed) => self.settle(key, value, placed).await,
            Outcome::Refused(refusals) => Err(Error::backend(format!("Consul refused a plain write: {refusals:?}"))),
        }
    }

    async fn put_leased(&self, key: &Key, value: &Bytes, ttl: Duration) -> Result<(Version, Lease)> {
        self.require_way(key, value)?;
        let ttl = session_ttl(ttl);
        let id = self.open(&NewSession::ttl(ttl)).await?;
        match self.write_held(key, value, &id).await {
            Ok(version) => {
                let outlives_process_by = SESSION_TTL_MULTIPLIER * ttl;
                Ok((version, Lease { key: key.clone(), version, id, renew_within: ttl, outlives_process_by }))
            }
            Err(error) => {
                // If this fails too, the session ends by itself.
                let _ = self.destroy(&id).await;
                Err(error)
            }
        }
    }

    async fn renew(&self, lease: &Lease) -> Result<()> {
        self.keep(&lease.id).await?.ok_or_else(|| Error::key_not_found(&lease.key))
    }

    /// Ends the session, which deletes the key if it still holds it. A plain write by a program other than kvactor
    /// leaves the key with the session, as everywhere in Consul.
    async fn expire(&self, lease: &Lease) -> Result<()> {
        self.destroy(&lease.id).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        match self.erase(key, None).await? {
            true => Ok(()),
            false => Err(Error::key_not_found(key)),
        }
    }

    async fn list(&self, dir: &Dir, options: &ListOptions) -> Result<Page<KvPair>> {
        self.pairs(dir, options).await
    }

    async fn list_keys(&self, dir: &Dir, options: &ListOptions) -> Result<Page<Key>> {
        self.keys(dir, options).await
    }

    async fn delete_tree(&self, dir: &Dir) -> Result<u64> {
        let prefix = self.namespace.prefix(dir);
        let ops = [Op::GetTree { prefix: &prefix }, Op::DeleteTree { prefix: &prefix }];
        let body = match self.http.txn(&ops, Consistency::Linearizable).await? {
            Transaction::Applied(body) => body,
            Transaction::Refused(refusals) => {
                return Err(Error::backend(format!("Consul refused to delete a directory: {refusals:?}")));
            }
            Transaction::TooLarge(said) => return Err(Error::backend(said)),
        };
        let entries = self.http.entries(&body, Effect::Write)?;
        let deleted = entries.filter(|entry: &Meta<'_>| self.namespace.has_key(&entry.path)).count();
        if deleted == 0 {
            Box::pin(self.require(dir, &ListOptions::default())).await?;
        }
        Ok(u64::try_from(deleted).unwrap_or(u64::MAX))
    }

    async fn atomic_put(&self, key: &Key, value: &Bytes, expected: &Expected) -> Result<Version> {
        let mode = match expected {
            Expected::Absent => Mode::Cas(0),
            Expected::Version(version) => Mode::Cas(index(version)?),
        };
        match (self.write(key, value, mode).await?, expected) {
            (Outcome::Written(placed), _) => self.settle(key, value, placed).await,
            (Outcome::Refused(_), Expected::Absent) => Err(Error::key_exists(key)),
            (Outcome::Refused(_), Expected::Version(_)) => Err(Box::pin(self.mismatch(key)).await),
        }
    }

    async fn atomic_delete(&self, key: &Key, version: &Version) -> Result<()> {
        match self.erase(key, Some(index(version)?)).await? {
            true => Ok(()),
            false => Err(Box::pin(self.mismatch(key)).await),
        }
    }

    async fn txn(&self, checks: &[Check], operations: &[Operation]) -> Result<TxnOutcome> {
        self.transact(None, checks, operations).await
    }

    fn locks(&self) -> Option<&dyn Locking> {
        Some(self)
    }

    async fn recover(&self) -> Result<()> {
        self.probe().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::carried;

    type C = &'static Consul;
    type K = &'static Key;

    #[test]
    fn calls_carry_no_more_than_a_kilobyte() {
        let sizes = [
            carried(|(c, path): (C, &'static str)| c.together.read(path, Consistency::Stale)),
            carried(|(c, k): (C, K)| c.is_there(k, Consistency::Stale)),
            carried(|(c, k, v): (C, K, &'static Bytes)| c.write(k, v, Mode::Cas(1))),
            carried(|(c, k): (C, K)| c.erase(k, None)),
            carried(|(c, checks, o): (C, &'static [Check], &'static [Operation])| c.transact(None, checks, o)),
            carried(|(c, d, o): (C, &'static Dir, &'static ListOptions)| c.pairs(d, o)),
        ];
        assert!(sizes.iter().all(|size| *size <= 1024), "{sizes:?}");
    }

    fn wrong_part(url: &str) -> String {
        match connector(&Config::from_url(url).unwrap()) {
            Err(Error::InvalidConfig { part, .. }) => part,
            other => panic!("{:?}", other.map(|connector| connector.endpoints())),
        }
    }

    #[test]
    fn what_is_wrong_for_consul_is_named() {
        assert_eq!(wrong_part("consul://token@h"), "credentials");
        assert_eq!(wrong_part("consul://:a%0Ab@h"), "credentials");
        assert_eq!(wrong_part("consul://h?datacenter="), "datacenter");
        let connector = connector(&Config::from_url("consul://:token@h1,h2:1").unwrap()).unwrap();
        assert_eq!(connector.endpoints(), ["h1:8500", "h2:1"]);
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_names_its_feature() {
        let error = connector(&Config::from_url("consul+tls://h").unwrap()).err().unwrap();
        assert!(matches!(&error, Error::Unsupported { reason } if reason.contains("`tls`")), "{error}");
    }

    #[test]
    fn the_server_waits_for_longer_than_the_ttl() {
        let capabilities = connector(&Config::from_url("consul://h").unwrap()).unwrap().capabilities();
        for ttl in [capabilities.min_ttl, Duration::from_millis(30_500), capabilities.max_ttl] {
            let session = session_ttl(ttl);
            assert!(session * SESSION_TTL_MULTIPLIER > ttl && session.subsec_nanos() == 0);
            assert!((MIN_SESSION_TTL..=MAX_SESSION_TTL).contains(&session), "{ttl:?}");
        }
        assert_eq!(session_ttl(Duration::from_secs(30)), Duration::from_secs(16));
        assert_eq!(session_ttl(Duration::from_millis(30_001)), Duration::from_secs(17));
    }

    #[test]
    fn no_version_means_absence() {
        assert_eq!(index(&version(7)).unwrap(), 7);
        assert_ne!(index(&version(0)).unwrap(), 0);
        assert!(matches!(index(&Version::new(BackendKind::Etcd, 7)), Err(Error::Unsupported { .. })));
    }
}
