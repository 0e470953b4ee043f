//! Writes of several callers in one transaction: what the agent and its servers do for a request, they do once for all of them.
//!
//! Consul applies a transaction as a whole, and gives everything in it one index. So no two writes of a key go together, whose
//! versions would be the same. Where a transaction is refused nothing of it was applied, and Consul names every operation that was
//! in the way: those callers are told, and the rest goes again.

use super::codec::{Meta, Op, Refusal};
use super::http::{Effect, Http, Transaction};
use super::write::{Outcome, Placed};
use crate::backend::gather::{Gathered, Gatherer, Job, may_join};
use crate::error::{Error, Result};
use crate::types::Consistency;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, join_all};
use std::rc::Rc;

/// How many requests with writes are on their way at once: the servers sync their log for several of them together, and the
/// next batch is under way while the one before is written.
const LANES: usize = 4;

/// A write of one key, which may depend on its version.
pub(super) struct Write {
    pub(super) path: String,
    pub(super) value: Bytes,
    /// As [`Op::Cas`]'s.
    pub(super) index: Option<u64>,
}

impl Write {
    /// Its path, and the bytes of its value.
    fn weight(&self) -> (&[u8], usize) {
        (self.path.as_bytes(), self.value.len())
    }

    pub(super) fn op(&self) -> Op<'_> {
        let Write { path, value, index } = self;
        match *index {
            None => Op::Set { path, value },
            Some(index) => Op::Cas { path, value, index },
        }
    }
}

impl Gathered for Write {
    /// None: the agent takes no transaction of this size, not even of this write alone.
    type Answer = Result<Option<Outcome>>;

    type Server = Rc<Http>;

    fn joins(&self, batch: &[Job<Write>]) -> bool {
        may_join(batch, self.weight(), Write::weight)
    }

    fn carry_out(http: &Rc<Http>, batch: Vec<Job<Write>>) -> LocalBoxFuture<'static, ()> {
        write_all(http.clone(), batch)
    }
}

pub(super) fn gatherer(http: Rc<Http>) -> Gatherer<Write> {
    Gatherer::new(LANES, http)
}

fn write_all(http: Rc<Http>, mut jobs: Vec<Job<Write>>) -> LocalBoxFuture<'static, ()> {
    async move {
        while !jobs.is_empty() {
            let ops: Vec<_> = jobs.iter().map(|job| job.asked.op()).collect();
            let done = http.txn(&ops, Consistency::Linearizable).await;
            jobs = match done {
                Ok(Transaction::Applied(body)) => return tell_written(&http, jobs, &body),
                Ok(Transaction::Refused(refusals)) if names_all(&refusals, jobs.len()) => tell_refused(jobs, refusals),
                Ok(Transaction::Refused(_) | Transaction::TooLarge(_)) if jobs.len() > 1 => {
                    return each(http, jobs).await;
                }
                Ok(Transaction::Refused(refusals)) => return tell_all(jobs, &Ok(refusals)),
                Ok(Transaction::TooLarge(_)) => return jobs.into_iter().for_each(|job| job.answer(Ok(None))),
                Err(error) if jobs.len() > 1 && is_about_one(&error) => return each(http, jobs).await,
                Err(error) => return tell_all(jobs, &Err(error)),
            };
        }
    }
    .boxed_local()
}

/// Each by itself, where nothing was applied and it isn't clear on whose account.
async fn each(http: Rc<Http>, jobs: Vec<Job<Write>>) {
    join_all(jobs.into_iter().map(|job| write_all(http.clone(), vec![job]))).await;
}

/// Whether an error may be that of one of several writes, of which nothing was applied.
fn is_about_one(error: &Error) -> bool {
    matches!(error, Error::PermissionDenied { .. } | Error::Backend { .. } | Error::Unsupported { .. })
}

fn tell_written(http: &Http, jobs: Vec<Job<Write>>, body: &Bytes) {
    let placed = http.entries::<Meta<'_>>(body, Effect::Write).map(|entries| entries.map(|meta| Placed::from(&meta)));
    let mut placed = match placed {
        Ok(placed) => placed,
        Err(error) => return tell_all(jobs, &Err(error)),
    };
    for job in jobs {
        let written = placed.next().map(|placed| Some(Outcome::Written(placed)));
        job.answer(written.ok_or_else(|| http.too_few_results()));
    }
}

/// Whether the refusals are of operations that there are, so that fewer are left without those.
fn names_all(refusals: &[Refusal], ops: usize) -> bool {
    !refusals.is_empty() && refusals.iter().all(|refusal| refusal.op_index < ops)
}

/// Tells those whose operations were refused, and returns the others.
fn tell_refused(jobs: Vec<Job<Write>>, refusals: Vec<Refusal>) -> Vec<Job<Write>> {
    let mut of_each = vec![Vec::new(); jobs.len()];
    for refusal in refusals {
        if let Some(own) = of_each.get_mut(refusal.op_index) {
            own.push(Refusal { op_index: 0, ..refusal });
        }
    }
    let mut rest = Vec::with_capacity(jobs.len());
    for (job, own) in jobs.into_iter().zip(of_each) {
        match own.is_empty() {
            true => rest.push(job),
            false => job.answer(Ok(Some(Outcome::Refused(own)))),
        }
    }
    rest
}

/// Tells all of them the same.
fn tell_all(jobs: Vec<Job<Write>>, refused: &Result<Vec<Refusal>>) {
    for job in jobs {
        job.answer(refused.clone().map(|refusals| Some(Outcome::Refused(refusals))));
    }
}
