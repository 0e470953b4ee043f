//! Where the peers meet: a server, or what an embedded store needs.

use crate::case::{Backend, Subject};
use crate::client::{Result, Runtime};
use crate::common::{Cluster, Kind, Server, Setup};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use tempfile::TempDir;

impl Backend {
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

/// It ends when this is dropped.
pub(crate) enum Site {
    Server(Box<Server>),
    Cluster(Box<Cluster>),
    Folder(TempDir),
    Memory,
}

impl Site {
    /// Three servers where a leader is to be lost. None where the server isn't installed, which was said then.
    pub(crate) fn open(backend: Backend, subject: Subject, for_libkv: bool) -> Result<Option<Self>> {
        if subject == Subject::Failover {
            return Self::open_cluster(backend);
        }
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

    fn open_cluster(backend: Backend) -> Result<Option<Self>> {
        let Some(kind) = backend.kind() else { return Ok(None) };
        let started = Runtime::Tokio.block_on(async { Ok(Cluster::start(kind).await) })?;
        Ok(started.map(|cluster| Site::Cluster(Box::new(cluster))))
    }

    /// What a peer must know to come here.
    pub(crate) fn place(&self) -> Result<Place> {
        Ok(match self {
            Site::Server(server) => {
                Place::Server { scheme: server.kind().scheme().into(), address: server.address().to_string() }
            }
            Site::Folder(folder) => Place::Folder(folder.path().into()),
            Site::Memory => Place::Memory,
            Site::Cluster(_) => return Err("three servers are only for who can kill one of them".into()),
        })
    }
}

/// Where a site is, for a process of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Place {
    Server { scheme: String, address: String },
    Folder(PathBuf),
    Memory,
}
