//! A turn of a peer that lives in this program is taken by a process of its own: what it needs of processor and memory is then
//! its own, and nothing is left over from the one before. Only [`failover`](crate::failover) is measured by who started the servers, as
//! it kills them.

use crate::calls::{self, Caller, Load};
use crate::case::{Case, Peer, Task};
use crate::client::{Result, Runtime};
use crate::crowd::{self, fan_out};
use crate::figures::Figures;
use crate::linear;
use crate::options::Amounts;
use crate::resources::peak;
use crate::site::Place;
use crate::{client, handoff, kvactor, lock, raw, watch};
use ::kvactor::Store;
use serde::{Deserialize, Serialize};
use std::process::{Command, Stdio};

/// What such a process is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) case: Case,
    pub(crate) place: Place,
    pub(crate) amounts: Amounts,
    pub(crate) step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// Makes what there must be at the server.
    Prepare,
    Measure,
}

/// By this the program knows that it is such a process; the job follows.
const FLAG: &str = "--worker";

/// Has a process do it, and returns what that measured.
pub(crate) fn employ(job: &Job) -> Result<Figures> {
    let output = Command::new(std::env::current_exe()?)
        .args([FLAG, &serde_json::to_string(job)?])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()?;
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The job of this process, if it is such a one.
pub(crate) fn job() -> Result<Option<Job>> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(FLAG) {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&arguments.next().ok_or("no job")?)?))
}

/// Does it.
pub(crate) fn work(job: &Job) -> Result<()> {
    let figures = match job.step {
        Step::Prepare => prepare(job).map(|()| Figures::default())?,
        Step::Measure => measure(job)?,
    };
    let figures = Figures { peak_bytes: figures.peak_bytes.or_else(|| peak("self")), ..figures };
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

/// What one of these gives to another generic function that each peer's own types are filled into: closures can't be generic.
macro_rules! with_peer {
    ($job:expr, |$peer:ident, $runtime:ident| $work:expr) => {
        match ($job.case.peer, &$job.place) {
            (Peer::Kvactor, place) => {
                let ($peer, $runtime) = (&kvactor::Peer::at(place), Runtime::Actix);
                $work
            }
            (Peer::KvactorTokio, place) => {
                let ($peer, $runtime) = (&kvactor::Peer::at(place), Runtime::Tokio);
                $work
            }
            (Peer::Raw, Place::Server { scheme, address }) if scheme == "consul" => {
                let ($peer, $runtime) = (&raw::consul::Peer::at(address), Runtime::Actix);
                $work
            }
            (Peer::Raw, Place::Server { scheme, address }) if scheme == "etcd" => {
                let ($peer, $runtime) = (&raw::etcd::Peer::at(address), Runtime::Actix);
                $work
            }
            (Peer::Raw, Place::Server { address, .. }) => {
                let ($peer, $runtime) = (&raw::zookeeper::Peer::at(address), Runtime::Actix);
                $work
            }
            (Peer::Raw | Peer::Libkv, _) => Err("there is nothing to measure".into()),
        }
    };
}

fn prepare(job: &Job) -> Result<()> {
    let Some(plan) = job.linear() else { return Ok(()) };
    if let (Peer::Raw, Place::Folder(folder)) = (job.case.peer, &job.place) {
        let engine = raw::redb::Engine::open(folder)?;
        return Runtime::Actix.block_on(async { linear::prepare(&engine, plan).await });
    }
    with_peer!(job, |peer, runtime| runtime.block_on(async {
        let client = client::Peer::connect(peer).await?;
        linear::prepare(&client, plan).await?;
        calls::Calls::close(client).await
    }))
}

fn measure(job: &Job) -> Result<Figures> {
    let amounts = &job.amounts;
    match job.case.task {
        Task::Watch => with_peer!(job, |peer, runtime| watch::latency(peer, runtime, &amounts.watch_plan())),
        Task::Lock => with_peer!(job, |peer, runtime| lock::rate(peer, runtime, amounts.lock_time)),
        Task::Handoff => with_peer!(job, |peer, runtime| handoff::latency(peer, runtime, amounts.handoffs)),
        Task::Fanout => fan_out_here(job),
        Task::Idle => with_store(job, |store| crowd::idle(store, amounts.idle)),
        Task::Calls { .. } | Task::Linear { .. } => calls_here(job),
        Task::Failover => Err("who started the servers measures this".into()),
    }
}

/// The runtime in which many tasks make calls.
fn block_on<T>(peer: Peer, work: impl Future<Output = Result<T>>) -> Result<T> {
    match peer {
        Peer::KvactorTokio => tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work),
        _ => Runtime::Actix.block_on(work),
    }
}

fn with_store<F: Future<Output = Result<Figures>>>(job: &Job, work: impl FnOnce(Store) -> F) -> Result<Figures> {
    block_on(job.case.peer, async { work(client::Peer::connect(&kvactor::Peer::at(&job.place)).await?).await })
}

fn fan_out_here(job: &Job) -> Result<Figures> {
    let Amounts { subscribers, fan_outs, .. } = job.amounts;
    match job.case.peer {
        Peer::KvactorTokio => {
            with_store(job, |store| fan_out(store, subscribers, fan_outs, crowd::follow, tokio::spawn))
        }
        _ => with_store(job, |store| fan_out(store, subscribers, fan_outs, crowd::follow, tokio::task::spawn_local)),
    }
}

fn calls_here(job: &Job) -> Result<Figures> {
    match (job.case.peer, &job.place) {
        (Peer::KvactorTokio, _) => with_store(job, |store| call_from_threads(store, job)),
        (Peer::Raw, Place::Folder(folder)) => {
            let engine = raw::redb::Engine::open(folder)?;
            Runtime::Actix.block_on(call_from_one_thread(engine, job))
        }
        _ => with_peer!(job, |peer, runtime| runtime.block_on(async {
            let client = client::Peer::connect(peer).await?;
            call_from_one_thread(client, job).await
        })),
    }
}

async fn call_from_one_thread<C: calls::Calls>(client: C, job: &Job) -> Result<Figures> {
    match (job.load(), job.linear()) {
        (Some(load), _) => calls::measure(client, load, Caller::run, tokio::task::spawn_local).await,
        (_, Some(plan)) => {
            job.prepare_memory(&client, plan).await?;
            linear::measure(client, plan, Caller::run, tokio::task::spawn_local).await
        }
        _ => Err("there is nothing to measure".into()),
    }
}

/// The same with tasks that may run on any thread, as only those of our own can.
async fn call_from_threads(store: Store, job: &Job) -> Result<Figures> {
    match (job.load(), job.linear()) {
        (Some(load), _) => calls::measure(store, load, Caller::<Store>::run, tokio::spawn).await,
        (_, Some(plan)) => {
            job.prepare_memory(&store, plan).await?;
            linear::measure(store, plan, Caller::<Store>::run, tokio::spawn).await
        }
        _ => Err("there is nothing to measure".into()),
    }
}

impl Job {
    fn load(&self) -> Option<Load> {
        let Task::Calls { call, callers } = self.case.task else { return None };
        let Amounts { call_time: time, value_size, .. } = self.amounts;
        Some(Load { call, callers, time, value_size })
    }

    fn linear(&self) -> Option<linear::Plan> {
        let Task::Linear { work, times } = self.case.task else { return None };
        let Amounts { call_time: time, value_size, .. } = self.amounts;
        Some(linear::Plan { work, times, time, value_size })
    }

    /// What is in this process's memory only can't have been made by another one.
    async fn prepare_memory(&self, client: &impl calls::Calls, plan: linear::Plan) -> Result<()> {
        match self.place {
            Place::Memory => linear::prepare(client, plan).await,
            Place::Server { .. } | Place::Folder(_) => Ok(()),
        }
    }
}
