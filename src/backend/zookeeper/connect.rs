//! Opening sessions.

use super::ZooKeeper;
use super::doubt::Doubts;
use super::errors;
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
use std::time::Duration;
use zookeeper_client::{Acls, Client};

/// How often the client library is given the list of servers. When it lost its connection it goes through the list without
/// pausing, then waits longer with every round, up to longer than the session lasts: a long list keeps it trying.
const ROUNDS: usize = 20;

/// The largest value: the server's limit for a packet, 1 MiB by default, without room for paths and headers.
const MAX_VALUE_SIZE: usize = (1024 - 16) * 1024;

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
    Ok(Arc::new(Ensemble { config: config.clone(), tls }))
}

struct Ensemble {
    config: Config,
    tls: Option<Tls>,
}

#[async_trait(?Send)]
impl Connector for Ensemble {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(BackendKind::ZooKeeper);
        capabilities.max_value_size = MAX_VALUE_SIZE;
        capabilities.atomic_delete_tree = false;
        capabilities.ttl_on_directories = false;
        capabilities.exact_versions = false;
        capabilities.every_revision = false;
        capabilities
    }

    /// One entry for all hosts: they are one ensemble, and a session moves among them by itself.
    fn endpoints(&self) -> Vec<String> {
        vec![self.servers()]
    }

    /// Until the server has surely let the session go: the client library says so at 7/5 of the session timeout, which the
    /// server may have raised.
    fn recover_within(&self) -> Option<Duration> {
        Some((self.config.options.session_timeout * 2).max(Duration::from_secs(60)))
    }

    async fn connect(&self, _index: usize) -> Result<Rc<dyn Backend>> {
        let servers = self.servers();
        let client = self.open(&servers).await.map_err(|failure| errors::of_connect(&servers, failure))?;
        let paths = Paths::new(self.config.namespace.clone());
        client.check_stat(&paths.dir(&Dir::root())).await.map_err(|failure| errors::of_connect(&servers, failure))?;
        let acls = if self.config.credentials.is_some() { Acls::creator_all() } else { Acls::anyone_all() };
        Ok(Rc::new(ZooKeeper::new(Session { client, paths, acls, servers, doubts: Doubts::new() })))
    }
}

impl Ensemble {
    fn servers(&self) -> String {
        self.config.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    async fn open(&self, servers: &str) -> Result<Client, zookeeper_client::Error> {
        let options = &self.config.options;
        let mut connector = Client::connector()
            .with_session_timeout(options.session_timeout.min(Duration::from_secs(3600)))
            .with_connection_timeout(self.connection_timeout())
            .with_fail_eagerly();
        if let Some(credentials) = &self.config.credentials {
            let secret = format!("{}:{}", credentials.user, credentials.password);
            connector = connector.with_auth("digest", secret.as_bytes());
        }
        let servers = vec![servers; ROUNDS].join(",");
        match &self.tls {
            Some(tls) => tls.connect(connector, &servers).await,
            None => connector.connect(&servers).await,
        }
    }

    /// After how long a silent server is given up: early enough that another one can be tried in the time allowed for
    /// connecting, and that the session can be kept by one.
    fn connection_timeout(&self) -> Duration {
        let options = &self.config.options;
        let for_session = options.session_timeout * 2 / 5;
        match self.config.endpoints.len() {
            1 => for_session,
            _ => for_session.min(options.connect_timeout * 2 / 3),
        }
    }
}
