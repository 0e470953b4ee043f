//! Where the peers meet: a server, or what an embedded store needs.

use crate::client::{Result, Runtime};
use crate::common::{Cluster, Kind, Server, Setup};
use std::fmt;
use tempfile::TempDir;

/// What is compared on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Consul,
    Etcd,
    ZooKeeper,
    Local,
    Memory,
}

impl Backend {
    pub(crate) const ALL: [Backend; 5] =
        [Backend::Consul, Backend::Etcd, Backend::ZooKeeper, Backend::Local, Backend::Memory];

    /// Its server, where it has one.
    pub(crate) fn kind(self) -> Option<Kind> {
        match self {
            Backend::Consul => Some(Kind::Consul),
            Backend::Etcd => Some(Kind::Etcd),
            Backend::ZooKeeper => Some(Kind::ZooKeeper),
            Backend::Local | Backend::Memory => None,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Backend::Consul => "consul",
            Backend::Etcd => "etcd",
            Backend::ZooKeeper => "zookeeper",
            Backend::Local => "local",
            Backend::Memory => "memory",
        })
    }
}

/// It ends when this is dropped.
pub(crate) enum Site {
    Server(Box<Server>),
    Cluster(Box<Cluster>),
    Folder(TempDir),
    Memory,
}

impl Site {
    /// None where the server isn't installed, which was said then.
    pub(crate) fn open(backend: Backend, for_libkv: bool) -> Result<Option<Self>> {
        let Some(kind) = backend.kind() else {
            return Ok(Some(match backend {
                Backend::Local => Site::Folder(tempfile::tempdir()?),
                _ => Site::Memory,
            }));
        };
        // libkv speaks nothing else.
        let setup = Setup { etcd_v2: for_libkv, ..Setup::default() };
        let started = Runtime::Tokio.block_on(async { Ok(Server::start_as(kind, setup).await) })?;
        Ok(started.map(|server| Site::Server(Box::new(server))))
    }

    /// Three servers. None where they aren't installed, and where the backend has none.
    pub(crate) fn open_cluster(backend: Backend) -> Result<Option<Self>> {
        let Some(kind) = backend.kind() else { return Ok(None) };
        let started = Runtime::Tokio.block_on(async { Ok(Cluster::start(kind).await) })?;
        Ok(started.map(|cluster| Site::Cluster(Box::new(cluster))))
    }
}
