//! kvactor side by side with its peers, on the same servers, in turn: the raw Rust clients beneath it, and Docker's libkv.
//!
//! ```sh
//! KVACTOR_PEER_LIBKV=path/to/libkv cargo bench --all-features --bench compare
//! ```
//!
//! What is compared is one module each: [`watch`], [`lock`], [`handoff`], [`failover`]. A further one needs a [`Subject`], what it calls in
//! [`client::Client`], its two columns in [`report`], what the compiler then misses, and libkv's operation in [`libkv`].

#[path = "../../tests/common/mod.rs"]
mod common;

mod client;
mod failover;
mod handoff;
mod kvactor;
mod libkv;
mod lock;
mod options;
mod raw;
mod report;
mod site;
mod watch;

use client::{Result, Runtime};
use options::Options;
use report::{Case, Figures, Report};
use site::{Backend, Site};
use std::fmt;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// The latency from put to event.
    Watch,
    /// How often a lock is got and given back that nobody else wants.
    Lock,
    /// The latency from the release of a lock to the next holder.
    Handoff,
    /// How long no put succeeds when the leader of three servers is killed.
    Failover,
}

impl Subject {
    const ALL: [Subject; 4] = [Subject::Watch, Subject::Lock, Subject::Handoff, Subject::Failover];

    /// Whether it takes three servers, where the others take one.
    fn is_of_a_cluster(self) -> bool {
        self == Subject::Failover
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Subject::Watch => "watch",
            Subject::Lock => "lock",
            Subject::Handoff => "handoff",
            Subject::Failover => "failover",
        })
    }
}

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

/// All that is compared on one backend, whose servers run alone meanwhile.
fn compare(backend: Backend, options: &Options, report: &mut Report) -> Result<()> {
    let of_a_cluster =
        |is: bool| options.subjects.iter().copied().filter(|subject| subject.is_of_a_cluster() == is).collect();
    let (on_one, on_three): (Vec<_>, Vec<_>) = (of_a_cluster(false), of_a_cluster(true));
    if !on_one.is_empty() {
        compare_on_one(backend, &on_one, options, report)?;
    }
    if !on_three.is_empty() && backend.kind().is_some() {
        compare_on_three(backend, &on_three, options, report)?;
    }
    Ok(())
}

fn compare_on_one(backend: Backend, subjects: &[Subject], options: &Options, report: &mut Report) -> Result<()> {
    let mut peers: Vec<_> = options.peers.iter().copied().filter(|peer| peer.runs_on(backend)).collect();
    let cases = |peer| subjects.iter().map(move |subject| Case { subject: *subject, backend, peer });
    let Some(site) = Site::open(backend, options.libkv.is_some())? else {
        peers.into_iter().flat_map(cases).for_each(|case| report.skip(case, "no server"));
        return Ok(());
    };
    if options.libkv.is_none() && peers.contains(&Peer::Libkv) {
        cases(Peer::Libkv).for_each(|case| report.skip(case, libkv::MISSING));
        peers.retain(|peer| *peer != Peer::Libkv);
    }
    for subject in subjects {
        take_turns(*subject, backend, &site, peers.clone(), options, report)?;
    }
    Ok(())
}

/// libkv isn't asked.
fn compare_on_three(backend: Backend, subjects: &[Subject], options: &Options, report: &mut Report) -> Result<()> {
    let peers: Vec<_> = options.peers.iter().copied().filter(|peer| *peer != Peer::Libkv).collect();
    let cases = |peer| subjects.iter().map(move |subject| Case { subject: *subject, backend, peer });
    let Some(site) = Site::open_cluster(backend)? else {
        peers.into_iter().flat_map(cases).for_each(|case| report.skip(case, "no servers"));
        return Ok(());
    };
    for subject in subjects {
        take_turns(*subject, backend, &site, peers.clone(), options, report)?;
    }
    Ok(())
}

/// All rounds of one comparison.
fn take_turns(
    subject: Subject,
    backend: Backend,
    site: &Site,
    mut peers: Vec<Peer>,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let case = |peer| Case { subject, backend, peer };
    if let Err(error) = warm_up(subject, site, options) {
        report.fail(case(Peer::KvactorTokio), &*error);
    }
    for round in 1..=options.rounds {
        for peer in &peers {
            match measure(subject, *peer, site, options) {
                Ok(figures) => report.add(case(*peer), round, figures)?,
                Err(error) => report.fail(case(*peer), &*error),
            }
        }
        // Nobody is always the one who comes behind the same other.
        peers.rotate_left(1);
    }
    Ok(())
}

/// A server has more to do at first, and ZooKeeper is compiled as it runs: that isn't to be the first one's burden.
fn warm_up(subject: Subject, site: &Site, options: &Options) -> Result<()> {
    let options = Options { gap: Duration::ZERO, failovers: 1, ..options.clone() };
    measure(subject, Peer::KvactorTokio, site, &options).map(drop)
}

fn measure(subject: Subject, peer: Peer, site: &Site, options: &Options) -> Result<Figures> {
    let ours = |runtime| measure_here(subject, &kvactor::Peer::at(site), runtime, options);
    match (peer, site) {
        (_, Site::Cluster(cluster)) => fail_over(peer, cluster, options),
        (Peer::Kvactor, _) => ours(Runtime::Actix),
        (Peer::KvactorTokio, _) => ours(Runtime::Tokio),
        (Peer::Libkv, Site::Server(server)) => libkv::measure(options.libkv.as_deref(), subject, server, options),
        (Peer::Raw, Site::Server(server)) => measure_raw(subject, server, options),
        (Peer::Raw | Peer::Libkv, Site::Folder(_) | Site::Memory) => Err("there is no server to speak to".into()),
    }
}

fn measure_raw(subject: Subject, server: &common::Server, options: &Options) -> Result<Figures> {
    match server.kind() {
        common::Kind::Consul => measure_here(subject, &raw::consul::Peer::at(server), Runtime::Actix, options),
        common::Kind::Etcd => measure_here(subject, &raw::etcd::Peer::at(server), Runtime::Actix, options),
        common::Kind::ZooKeeper => measure_here(subject, &raw::zookeeper::Peer::at(server), Runtime::Actix, options),
    }
}

fn fail_over(peer: Peer, cluster: &common::Cluster, options: &Options) -> Result<Figures> {
    use common::Kind::{Consul, Etcd, ZooKeeper};
    let (kind, samples) = (cluster.kind(), options.failovers);
    let ours = |runtime| {
        let among = |hosts: &[SocketAddr]| kvactor::Peer::among(kind.scheme(), hosts);
        failover::time(among, runtime, cluster, samples)
    };
    match (peer, kind) {
        (Peer::Kvactor, _) => ours(Runtime::Actix),
        (Peer::KvactorTokio, _) => ours(Runtime::Tokio),
        (Peer::Raw, Consul) => failover::time(raw::consul::Peer::among, Runtime::Actix, cluster, samples),
        (Peer::Raw, Etcd) => failover::time(raw::etcd::Peer::among, Runtime::Actix, cluster, samples),
        (Peer::Raw, ZooKeeper) => failover::time(raw::zookeeper::Peer::among, Runtime::Actix, cluster, samples),
        (Peer::Libkv, _) => Err("its program measures no failover".into()),
    }
}

/// What is measured of a peer that runs in this process.
fn measure_here(subject: Subject, peer: &impl client::Peer, runtime: Runtime, options: &Options) -> Result<Figures> {
    match subject {
        Subject::Watch => watch::latency(peer, runtime, &options.plan()),
        Subject::Lock => lock::rate(peer, runtime, options.lock_time),
        Subject::Handoff => handoff::latency(peer, runtime, options.handoffs),
        Subject::Failover => Err("that takes three servers".into()),
    }
}
