//! kvactor side by side with its peers, on the same servers, in turn: the raw Rust clients beneath it, and Docker's libkv.
//!
//! ```sh
//! KVACTOR_PEER_LIBKV=path/to/libkv cargo bench --all-features --bench compare
//! ```
//!
//! What is compared is one module each: [`calls`], [`linear`], [`watch`], [`crowd`], [`lock`], [`handoff`], [`failover`]. A further one
//! needs a [`Task`](case::Task), what it calls in [`client::Client`] or [`calls::Calls`], its columns in [`report`], what the
//! compiler then misses, and libkv's operation in [`libkv`].

#[path = "../../tests/common/mod.rs"]
mod common;

mod calls;
mod case;
mod chart;
mod client;
mod cores;
mod crowd;
mod failover;
mod figures;
mod handoff;
mod kvactor;
mod libkv;
mod linear;
mod lock;
mod options;
mod progress;
mod raw;
mod report;
mod resources;
mod site;
mod table;
mod watch;
mod worker;

use case::{Backend, Call, Case, Peer, Subject, Task, Work};
use client::Result;
use figures::Figures;
use options::{Amounts, Options};
use report::Report;
use site::{Place, Site};
use std::process::ExitCode;
use std::time::Duration;
use worker::{Job, Step};

fn main() -> Result<ExitCode> {
    if let Some(job) = worker::job()? {
        return worker::work(&job).map(|()| ExitCode::SUCCESS);
    }
    let Some(options) = Options::from_command_line()? else { return Ok(ExitCode::SUCCESS) };
    let mut report = Report::new(&options)?;
    match options.from.is_empty() {
        true => compare_all(&options, &mut report)?,
        false => options.from.iter().try_for_each(|file| report.read(file))?,
    }
    report.finish()?;
    if let Some(file) = &options.svg {
        chart::draw(file, &report)?;
    }
    print!("{report}");
    Ok(if report.has_failures() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn compare_all(options: &Options, report: &mut Report) -> Result<()> {
    for backend in &options.backends {
        for subject in &options.subjects {
            compare(*subject, *backend, options, report)?;
        }
    }
    Ok(())
}

/// All rounds of one subject on one backend, whose servers run alone meanwhile.
fn compare(subject: Subject, backend: Backend, options: &Options, report: &mut Report) -> Result<()> {
    let tasks = options.tasks(subject);
    let takes_part = |peer: &Peer| tasks.iter().any(|task| Case { task: *task, backend, peer: *peer }.exists());
    let mut peers: Vec<_> = options.peers.iter().copied().filter(takes_part).collect();
    let mut random = fastrand::Rng::with_seed(0);
    if options.libkv.is_none() && peers.contains(&Peer::Libkv) {
        report.skip(subject, backend, Peer::Libkv, libkv::MISSING);
        peers.retain(|peer| *peer != Peer::Libkv);
    }
    if peers.is_empty() {
        return Ok(());
    }
    let mut site = None;
    for round in 1..=options.rounds(subject) {
        // Millions of writes make a server slow, and etcd refuses more in the end: later rounds would measure that.
        let worn = site.is_none() || matches!(subject, Subject::Calls | Subject::Linear);
        if worn {
            drop(site);
            let open = || Site::open(backend, subject, options.libkv.is_some());
            site = if subject == Subject::Failover { open()? } else { options.cores.for_servers(open)? };
        }
        let Some(site) = &site else {
            peers.iter().for_each(|peer| report.skip(subject, backend, *peer, "no server"));
            return Ok(());
        };
        if worn {
            warm_up(subject, backend, site, options, report);
        }
        for task in tasks.iter().copied() {
            // Nobody is always the one who comes behind the same other, and has the burden of what that leaves the server to do.
            random.shuffle(&mut peers);
            for peer in peers.iter().copied() {
                take_turn(Case { task, backend, peer }, round, site, options, report)?;
            }
        }
    }
    Ok(())
}

fn take_turn(case: Case, round: u32, site: &Site, options: &Options, report: &mut Report) -> Result<()> {
    if !case.exists() {
        return Ok(());
    }
    report.begin(case, round);
    match measure(case, site, &options.amounts, options) {
        Ok(figures) => report.add(case, round, figures),
        Err(error) => {
            report.fail(case, &*error);
            Ok(())
        }
    }
}

/// A server has more to do at first, and ZooKeeper is compiled as it runs: that isn't to be the first one's burden.
fn warm_up(subject: Subject, backend: Backend, site: &Site, options: &Options, report: &mut Report) {
    let amounts = Amounts { gap: Duration::ZERO, fan_outs: 5, idle: 1000, failovers: 1, ..options.amounts.clone() };
    let busy = |call| Task::Calls { call, callers: 64 };
    let tasks = match (subject, backend.kind()) {
        (Subject::Calls | Subject::Linear, Some(_)) => vec![busy(Call::Put), busy(Call::Get), busy(Call::List100)],
        // What there is to warm is in the processes themselves.
        (Subject::Calls | Subject::Linear, None) => Vec::new(),
        _ => options.tasks(subject),
    };
    let warming = tasks.into_iter().map(|task| (Case { task, backend, peer: Peer::KvactorTokio }, &amounts));
    let briefly = Amounts { call_time: Duration::from_millis(1), ..amounts.clone() };
    // etcd reads faster what was written just now: nobody is to be the one who has made its directory in its turn.
    let takes_part = |peer: &Peer| *peer == Peer::KvactorTokio || options.peers.contains(peer);
    let making = [Peer::KvactorTokio, Peer::Raw]
        .into_iter()
        .filter(takes_part)
        .flat_map(|peer| listings(options, subject, backend).map(move |task| Case { task, backend, peer }));
    for (case, amounts) in warming.chain(making.map(|case| (case, &briefly))) {
        if let Err(error) = measure(case, site, amounts, options) {
            report.fail(case, &*error);
        }
    }
}

/// The calls that list a directory, or one for each caller, which another process can have made: what is in memory goes with it.
fn listings(options: &Options, subject: Subject, backend: Backend) -> impl Iterator<Item = Task> {
    let outlives = subject == Subject::Calls && backend != Backend::Memory;
    let tasks = if outlives { options.tasks(subject) } else { Vec::new() };
    tasks.into_iter().filter(|task| matches!(task, Task::Calls { call, .. } if call.is_list()))
}

fn measure(case: Case, site: &Site, amounts: &Amounts, options: &Options) -> Result<Figures> {
    if let Site::Cluster(cluster) = site {
        return failover::measure(case.peer, cluster, amounts.failovers);
    }
    let place = site.place()?;
    if case.peer == Peer::Libkv {
        return options.cores.for_clients(|| libkv::measure(options.libkv.as_deref(), case, &place, amounts));
    }
    let job = |step| Job { case, place: place.clone(), amounts: amounts.clone(), step };
    let is_prepared = matches!(place, Place::Server { .. } | Place::Folder(_));
    if is_prepared && matches!(case.task, Task::Linear { work: Work::List, .. }) {
        worker::employ(&job(Step::Prepare))?;
    }
    let measured = || worker::employ(&job(Step::Measure));
    match place {
        Place::Server { .. } => options.cores.for_clients(measured),
        // There is no server to keep apart from.
        Place::Folder(_) | Place::Memory => measured(),
    }
}
