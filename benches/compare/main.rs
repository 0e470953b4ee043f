//! kvactor side by side with its peers, on the same servers, in turn: the raw Rust clients beneath it, and Docker's libkv.
//!
//! ```sh
//! KVACTOR_PEER_LIBKV=path/to/libkv cargo bench --all-features --bench compare
//! ```
//!
//! What is compared is one module each: [`watch`] so far. A further one needs what it calls in [`client::Client`], the figures
//! that it takes in [`report`], and an arm in [`measure`].

#[path = "../../tests/common/mod.rs"]
mod common;

mod client;
mod kvactor;
mod libkv;
mod options;
mod raw;
mod report;
mod site;
mod watch;

use client::{Result, Runtime};
use options::Options;
use report::{Figures, Report};
use site::{Backend, Site};
use std::fmt;
use std::process::ExitCode;

/// Who is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// Ours, in an actix system: the store's actors run on the caller's thread.
    Kvactor,
    /// Ours, in a tokio runtime: the store's actors have a thread of their own.
    KvactorTokio,
    /// The Rust client that ours stands on, as one would use it directly.
    Raw,
    /// Docker's libkv, in a process of its own.
    Libkv,
}

impl Peer {
    const ALL: [Peer; 4] = [Peer::Kvactor, Peer::KvactorTokio, Peer::Raw, Peer::Libkv];

    fn runs_on(self, backend: Backend) -> bool {
        backend.kind().is_some() || matches!(self, Peer::Kvactor | Peer::KvactorTokio)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Peer::Kvactor => "kvactor",
            Peer::KvactorTokio => "kvactor-tokio",
            Peer::Raw => "raw",
            Peer::Libkv => "libkv",
        })
    }
}

fn main() -> Result<ExitCode> {
    let Some(options) = Options::from_command_line()? else { return Ok(ExitCode::SUCCESS) };
    let mut report = Report::new(&options)?;
    for backend in &options.backends {
        compare(*backend, &options, &mut report)?;
    }
    print!("{report}");
    Ok(if report.has_failures() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// All rounds on one backend, whose server runs alone meanwhile.
fn compare(backend: Backend, options: &Options, report: &mut Report) -> Result<()> {
    let mut peers: Vec<_> = options.peers.iter().copied().filter(|peer| peer.runs_on(backend)).collect();
    let Some(site) = Site::open(backend, options.libkv.is_some())? else {
        peers.iter().for_each(|peer| report.skip(backend, *peer, "no server"));
        return Ok(());
    };
    if options.libkv.is_none() && peers.contains(&Peer::Libkv) {
        report.skip(backend, Peer::Libkv, libkv::MISSING);
        peers.retain(|peer| *peer != Peer::Libkv);
    }
    if let Err(error) = warm_up(&site, options) {
        report.fail(backend, Peer::KvactorTokio, &*error);
    }
    for round in 1..=options.rounds {
        for peer in &peers {
            match measure(*peer, &site, options) {
                Ok(figures) => report.add(backend, *peer, round, figures)?,
                Err(error) => report.fail(backend, *peer, &*error),
            }
        }
        // Nobody is always the one who comes behind the same other.
        peers.rotate_left(1);
    }
    Ok(())
}

/// A server has more to do at first, and ZooKeeper is compiled as it runs: that isn't to be the first one's burden.
fn warm_up(site: &Site, options: &Options) -> Result<()> {
    let options = Options { gap: std::time::Duration::ZERO, ..options.clone() };
    measure(Peer::KvactorTokio, site, &options).map(drop)
}

fn measure(peer: Peer, site: &Site, options: &Options) -> Result<Figures> {
    let plan = &options.plan();
    match (peer, site) {
        (Peer::Kvactor, _) => watch::latency(&kvactor::Peer::at(site), Runtime::Actix, plan),
        (Peer::KvactorTokio, _) => watch::latency(&kvactor::Peer::at(site), Runtime::Tokio, plan),
        (Peer::Libkv, Site::Server(server)) => libkv::watch_latency(options.libkv.as_deref(), server, plan),
        (Peer::Raw, Site::Server(server)) => match server.kind() {
            common::Kind::Consul => watch::latency(&raw::consul::Peer::at(server), Runtime::Actix, plan),
            common::Kind::Etcd => watch::latency(&raw::etcd::Peer::at(server), Runtime::Actix, plan),
            common::Kind::ZooKeeper => watch::latency(&raw::zookeeper::Peer::at(server), Runtime::Actix, plan),
        },
        (Peer::Raw | Peer::Libkv, Site::Folder(_) | Site::Memory) => Err("there is no server to speak to".into()),
    }
}
