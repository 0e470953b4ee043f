//! Opening sessions.

use super::ZooKeeper;
use super::errors;
use super::gathered::Knowledge;
use super::grant::Grants;
use super::path::Paths;
use super::session::Session;
use super::tls::Tls;
use crate::backend::{Backend, Connector};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::key::Dir;
use crate::types::{BackendKind, Capabilities};
use async_trait::async_trait;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use zookeeper_client::{Acls, Client, Error as Failure};

/// How many servers the client library is given, the same ones again and again. When it lost its connection it goes through the
/// list without pausing, then waits before each round: first a tenth of a second for each server of the list, at most a second,
/// then twice as long each time; and within a round a little longer behind each server. One that is alone takes a while to come
/// back: a long list keeps the library trying. Several have elected a leader before a second is over, and serve again.
const ALONE: usize = 20;
const AMONG_SEVERAL: usize = 6;

/// How often a server may hang up on a question, whose answer is lost then at times, before it is taken for one that doesn't know it.
const QUESTIONS: usize = 3;

/// The largest value: the server's limit for a packet, 1 MiB by default, without room for paths and headers.
const MAX_VALUE_SIZE: usize = (1024 - 16) * 1024;

/// The longest time for which the servers are asked to keep a session.
const MAX_SESSION: Duration = Duration::from_secs(3600);

/// The TTLs of locks that the servers are asked for. Their own bounds for sessions are 2 and 20 of their ticks.
const MIN_LOCK_TTL: Duration = Duration::from_secs(1);
const MAX_LOCK_TTL: Duration = Duration::from_secs(2400);

/// A connector for the ensemble that `config` names.
///
/// With credentials the session authenticates by ZooKeeper's scheme `digest`, and what it creates belongs to them alone
/// (`CREATOR_ALL`); without, znodes are open to everybody.
///
/// # Errors
/// [`Error::InvalidConfig`], and [`Error::Unsupported`] for TLS in a build without the feature `tls`.
pub(crate) fn connector(config: &Config) -> Result<Arc<dyn Connector>> {
    if config.endpoints.is_empty() {
        return Err(Error::invalid_config("endpoints", "ZooKeeper needs at least one host"));
    }
    let tls = config.tls.as_ref().map(|tls| Tls::load(tls, &config.endpoints)).transpose()?;
    let knows_multi_read = Arc::new(AtomicBool::new(true));
    let ensemble = Ensemble { config: config.clone(), tls, grants: Grants::default(), knows_multi_read };
    Ok(Arc::new(ZooKeeperConnector { ensemble: Arc::new(ensemble) }))
}

struct ZooKeeperConnector {
    ensemble: Arc<Ensemble>,
}

/// How soon a session's connection is given up when nothing is heard, and with it how often the client library sends a ping
/// when there is nothing else: when three eighths of that time are over, which it looks for every eighth.
#[derive(Clone, Copy)]
pub(super) enum Pace {
    /// After two fifths of the session's time.
    Calm,
    /// After one fifth: something is sent in every tenth of the session's time.
    Brisk,
}

impl Pace {
    /// In fifths of the session's time.
    fn patience(self) -> u32 {
        match self {
            Pace::Calm => 2,
            Pace::Brisk => 1,
        }
    }
}

/// The servers, as this store knows them, and what it holds there beyond a session.
pub(super) struct Ensemble {
    config: Config,
    tls: Option<Tls>,
    pub(super) grants: Grants,
    knows_multi_read: Knowledge,
}

#[async_trait(?Send)]
impl Connector for ZooKeeperConnector {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(BackendKind::ZooKeeper);
        capabilities.max_value_size = MAX_VALUE_SIZE;
        capabilities.atomic_delete_tree = false;
        capabilities.ttl_on_directories = false;
        capabilities.exact_versions = false;
        capabilities.every_revision = false;
        capabilities.min_lock_ttl = MIN_LOCK_TTL;
        capabilities.max_lock_ttl = MAX_LOCK_TTL;
        capabilities
    }

    /// One entry for all hosts: they are one ensemble, and a session moves among them by itself.
    fn endpoints(&self) -> Vec<String> {
        vec![self.ensemble.servers()]
    }

    /// Until the server has surely let the session go: the client library says so at 7/5 of the session timeout, which the
    /// server may have raised.
    fn recover_within(&self) -> Option<Duration> {
        Some((self.ensemble.config.options.session_timeout * 2).max(Duration::from_secs(60)))
    }

    async fn connect(&self, _index: usize) -> Result<Rc<dyn Backend>> {
        let open = || self.ensemble.open(self.ensemble.config.options.session_timeout, Pace::Calm);
        let mut session = open().await?;
        for _ in 0..QUESTIONS {
            if answers(&session).await? {
                return Ok(Rc::new(ZooKeeper::new(session, self.ensemble.clone())));
            }
            session = open().await?;
        }
        self.ensemble.knows_multi_read.store(false, Ordering::Relaxed);
        answers(&session).await?;
        Ok(Rc::new(ZooKeeper::new(session, self.ensemble.clone())))
    }
}

/// Fails unless the server answers; `false`: it then hung up on the question whether it knows what it takes to read many znodes
/// together.
async fn answers(session: &Session) -> Result<bool> {
    let root = session.paths.dir(&Dir::root());
    let failed = |failure| errors::of_connect(&session.servers, failure);
    // Not both at once: with the one question the answer to the other would be lost.
    session.client.check_stat(&root).await.map_err(failed)?;
    if !session.together.portion.knows_multi_read() {
        return Ok(true);
    }
    match session.together.prove(&root).await {
        Err(Failure::ConnectionLoss) => Ok(false),
        known => known.map_err(failed),
    }
}

impl Ensemble {
    fn servers(&self) -> String {
        self.config.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// A new session, which the servers are asked to keep for this long when they hear nothing of it.
    pub(super) async fn open(&self, timeout: Duration, pace: Pace) -> Result<Session> {
        let servers = self.servers();
        let client = self.client(&servers, timeout.min(MAX_SESSION), pace).await;
        let client = client.map_err(|failure| errors::of_connect(&servers, failure))?;
        let paths = Paths::new(self.config.namespace.clone());
        let acls = if self.config.credentials.is_some() { Acls::creator_all() } else { Acls::anyone_all() };
        Ok(Session::new(client, paths, acls, servers, self.knows_multi_read.clone()))
    }

    async fn client(&self, servers: &str, timeout: Duration, pace: Pace) -> Result<Client, Failure> {
        let mut connector = Client::connector()
            .with_session_timeout(timeout)
            .with_connection_timeout(self.connection_timeout(timeout, pace))
            .with_fail_eagerly();
        if let Some(credentials) = &self.config.credentials {
            let secret = format!("{}:{}", credentials.user, credentials.password);
            connector = connector.with_auth("digest", secret.as_bytes());
        }
        let servers = vec![servers; rounds(self.config.endpoints.len())].join(",");
        match &self.tls {
            Some(tls) => tls.connect(connector, &servers).await,
            None => connector.connect(&servers).await,
        }
    }

    /// After how long a silent server is given up: early enough that another one can be tried in the time allowed for
    /// connecting, and that the session can be kept by one.
    fn connection_timeout(&self, session_timeout: Duration, pace: Pace) -> Duration {
        let for_session = session_timeout * pace.patience() / 5;
        match self.config.endpoints.len() {
            1 => for_session,
            _ => for_session.min(self.config.options.connect_timeout * 2 / 3),
        }
    }
}

/// How often the client library is given the list of this many servers.
fn rounds(servers: usize) -> usize {
    let most = if servers == 1 { ALONE } else { AMONG_SEVERAL };
    (most / servers).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_several_servers_stays_short() {
        let lengths = (1..=8).map(|servers| servers * rounds(servers));
        assert!(lengths.eq([20, 6, 6, 4, 5, 6, 7, 8]));
    }
}
