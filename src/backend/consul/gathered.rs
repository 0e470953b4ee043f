//! Calls of several callers in one transaction: what the agent and its servers do for a request, they do once for all of them.
//!
//! - Consul applies a transaction as a whole, and gives everything in it one index. So no two writes of a key go together, whose
//!   versions would be the same. Where a transaction is refused nothing of it was applied, and Consul names every operation that
//!   was in the way: those callers are told, and the rest goes again.
//! - A transaction of reads fails where one of the keys isn't there, and leaves out what the token may not see. Those are asked for
//!   alone, which tells one from the other.

use super::codec::{Entry, Meta, Op, Refusal};
use super::http::{Effect, Http, Transaction};
use super::write::{Outcome, Placed};
use crate::backend::gather::{Gathered, Gatherer, Job, is_about_one};
use crate::backend::portion::{MAX_VALUE, Sizes, may_join};
use crate::error::Result;
use crate::types::Consistency;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, join_all};
use std::iter::repeat_n;
use std::rc::Rc;

/// How many requests of a kind are on their way for one caller each before others go together: the servers sync their log for
/// several writes together, and the next batch is under way while the one before is written.
const LANES: usize = 4;
/// How many operations the server takes in one transaction.
const MAX_OPS: usize = 64;

/// What many callers ask at once, gathered.
pub(super) struct Together {
    http: Rc<Http>,
    sizes: Rc<Sizes>,
    fresh: Gatherer<Read>,
    stale: Gatherer<Read>,
    writes: Gatherer<Write>,
}

impl Together {
    pub(super) fn new(http: Rc<Http>) -> Self {
        let sizes = Rc::new(Sizes::new());
        let reads =
            |consistency| Gatherer::new(LANES, Reader { http: http.clone(), sizes: sizes.clone(), consistency });
        let (fresh, stale) = (reads(Consistency::Linearizable), reads(Consistency::Stale));
        let writes = Gatherer::new(LANES, http.clone());
        Together { http, sizes, fresh, stale, writes }
    }

    /// The value at a path and its index.
    pub(super) async fn read(&self, path: &str, consistency: Consistency) -> Result<Found> {
        let gatherer = match consistency {
            Consistency::Linearizable => &self.fresh,
            Consistency::Stale => &self.stale,
        };
        let lane = gatherer.lane();
        let most = self.sizes.portion().min(MAX_OPS);
        if lane.is_none() && most > 1 {
            return gatherer.ask(Read { path: path.to_owned(), most }).await;
        }
        let found = self.http.read(path, consistency).await?;
        self.sizes.learn(found.iter().map(|(value, _)| value.len()));
        Ok(found)
    }

    /// Writes by a transaction.
    pub(super) async fn write(&self, write: Write) -> Result<Written> {
        if write.bytes() > MAX_VALUE {
            return write.alone(&self.http).await;
        }
        match self.writes.lane() {
            Some(_lane) => write.alone(&self.http).await,
            None => self.writes.ask(Write { most_shown: self.sizes.portion(), ..write }).await,
        }
    }
}

/// The value at a path and its index, if there is such a key.
pub(super) type Found = Option<(Bytes, u64)>;

/// A path to read, with no more than so many others.
struct Read {
    path: String,
    most: usize,
}

impl Gathered for Read {
    type Answer = Result<Found>;
    type Server = Reader;

    fn joins(&self, batch: &[Job<Read>]) -> bool {
        batch.len() < self.most
    }

    fn carry_out(reader: &Reader, batch: Vec<Job<Read>>) -> LocalBoxFuture<'static, ()> {
        reader.clone().read_all(batch).boxed_local()
    }
}

/// Who reads what was gathered.
#[derive(Clone)]
struct Reader {
    http: Rc<Http>,
    sizes: Rc<Sizes>,
    consistency: Consistency,
}

impl Reader {
    async fn read_all(self, mut jobs: Vec<Job<Read>>) {
        let mut alone = Vec::new();
        while !jobs.is_empty() {
            let ops: Vec<_> = jobs.iter().map(|job| Op::Get { path: &job.asked.path }).collect();
            jobs = match self.http.txn(&ops, self.consistency).await {
                Ok(Transaction::Applied(body)) => {
                    alone.extend(self.tell(jobs, &body));
                    break;
                }
                Ok(Transaction::Refused(refusals)) if names_all(&refusals, jobs.len()) => {
                    let (missing, rest) = parted(jobs, &refusals);
                    alone.extend(missing);
                    rest
                }
                Err(error) if !is_about_one(&error) => {
                    return jobs.into_iter().chain(alone).for_each(|job| job.answer(Err(error.clone())));
                }
                _ => {
                    alone.extend(jobs);
                    break;
                }
            };
        }
        self.each(alone).await;
    }

    async fn each(&self, jobs: Vec<Job<Read>>) {
        join_all(jobs.into_iter().map(async |job| {
            let found = self.http.read(&job.asked.path, self.consistency).await;
            job.answer(found);
        }))
        .await;
    }

    /// Tells those whose keys were shown, and returns the others.
    fn tell(&self, jobs: Vec<Job<Read>>, body: &Bytes) -> Vec<Job<Read>> {
        let entries = self.http.entries::<Entry<'_>>(body, Effect::Repeatable);
        let Ok(mut entries) = entries.map(Iterator::peekable) else { return jobs };
        let (mut largest, mut others) = (None, Vec::new());
        for job in jobs {
            let Some(entry) = entries.next_if(|entry| entry.path == job.asked.path) else {
                others.push(job);
                continue;
            };
            let value = self.http.value(&entry);
            largest = largest.max(value.as_ref().ok().map(Bytes::len));
            job.answer(value.map(|value| Some((value, entry.index))));
        }
        self.sizes.learn(largest.into_iter());
        others
    }
}

/// Those that were refused, and the rest.
fn parted<A: Gathered>(jobs: Vec<Job<A>>, refusals: &[Refusal]) -> (Vec<Job<A>>, Vec<Job<A>>) {
    let is_refused = |index| refusals.iter().any(|refusal| refusal.op_index == index);
    let (mut refused, mut rest) = (Vec::new(), Vec::new());
    for (index, job) in jobs.into_iter().enumerate() {
        if is_refused(index) { refused.push(job) } else { rest.push(job) }
    }
    (refused, rest)
}

/// A change of one key, which may depend on how it is.
pub(super) struct Write {
    path: String,
    /// None: the key is deleted.
    value: Option<Bytes>,
    /// Of what version the key must be: as [`Op::Cas`]'s for a value, and as [`Op::CheckIndex`]'s for a deletion, which without
    /// one needs the key to be there.
    index: Option<u64>,
    /// An answer brings the values of keys along that are deleted without a version: with no more than so many of them.
    most_shown: usize,
}

/// What came of a [`Write`], if the agent takes a transaction of this size at all.
pub(super) type Written = std::result::Result<Outcome, TooLarge>;

/// The agent takes no transaction of this size, not even of one write; nothing was applied. The agent's words.
#[derive(Clone)]
pub(super) struct TooLarge(pub(super) String);

impl Write {
    pub(super) fn put(path: String, value: &Bytes, index: Option<u64>) -> Self {
        Write { path, value: Some(value.clone()), index, most_shown: 1 }
    }

    pub(super) fn delete(path: String, index: Option<u64>) -> Self {
        Write { path, value: None, index, most_shown: 1 }
    }

    async fn alone(&self, http: &Http) -> Result<Written> {
        write_alone(http, &self.ops().collect::<Vec<_>>()).await
    }

    fn bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Bytes::len)
    }

    /// Its path, and the bytes of its value.
    fn weight(&self) -> (&[u8], usize) {
        (self.path.as_bytes(), self.bytes())
    }

    /// The first of them has an entry in the answer.
    fn ops(&self) -> impl Iterator<Item = Op<'_>> {
        let path = &self.path;
        let (first, second) = match (&self.value, self.index) {
            (Some(value), None) => (Op::Set { path, value }, None),
            (Some(value), Some(index)) => (Op::Cas { path, value, index }, None),
            // A delete alone succeeds also where there is nothing, and so does `delete-cas`.
            (None, None) => (Op::Get { path }, Some(Op::Delete { path })),
            (None, Some(index)) => (Op::CheckIndex { path, index }, Some(Op::Delete { path })),
        };
        std::iter::once(first).chain(second)
    }

    fn op_count(&self) -> usize {
        if self.value.is_some() { 1 } else { 2 }
    }

    /// Whether the answer has the value of the key, which may be a large one.
    fn is_shown(&self) -> bool {
        self.value.is_none() && self.index.is_none()
    }
}

impl Gathered for Write {
    type Answer = Result<Written>;
    type Server = Rc<Http>;

    fn joins(&self, batch: &[Job<Write>]) -> bool {
        let writes = || batch.iter().map(|job| &job.asked).chain([self]);
        may_join(batch, self.weight(), Write::weight)
            && writes().map(Write::op_count).sum::<usize>() <= MAX_OPS
            && (!self.is_shown() || writes().filter(|write| write.is_shown()).count() <= self.most_shown)
    }

    fn carry_out(http: &Rc<Http>, batch: Vec<Job<Write>>) -> LocalBoxFuture<'static, ()> {
        write_all(http.clone(), batch)
    }
}

/// Writes by a transaction for one key.
pub(super) async fn write_alone(http: &Http, ops: &[Op<'_>]) -> Result<Written> {
    match http.txn(ops, Consistency::Linearizable).await? {
        Transaction::Applied(body) => {
            let entry = http.entries::<Meta<'_>>(&body, Effect::Write)?.next();
            let placed = entry.map(|entry| Ok(Outcome::Written(Placed::from(&entry))));
            placed.ok_or_else(|| http.too_few_results())
        }
        Transaction::Refused(refusals) => Ok(Ok(Outcome::Refused(refusals))),
        Transaction::TooLarge(said) => Ok(Err(TooLarge(said))),
    }
}

fn write_all(http: Rc<Http>, mut jobs: Vec<Job<Write>>) -> LocalBoxFuture<'static, ()> {
    async move {
        while !jobs.is_empty() {
            let ops: Vec<_> = jobs.iter().flat_map(|job| job.asked.ops()).collect();
            let done = http.txn(&ops, Consistency::Linearizable).await;
            jobs = match done {
                Ok(Transaction::Applied(body)) => return tell_written(&http, jobs, &body),
                Ok(Transaction::Refused(refusals)) if names_all(&refusals, ops.len()) => tell_refused(jobs, refusals),
                Ok(Transaction::Refused(_) | Transaction::TooLarge(_)) if jobs.len() > 1 => {
                    return each(http, jobs).await;
                }
                Ok(Transaction::Refused(refusals)) => {
                    return tell_all(jobs, || Ok(Ok(Outcome::Refused(refusals.clone()))));
                }
                Ok(Transaction::TooLarge(said)) => return tell_all(jobs, || Ok(Err(TooLarge(said.clone())))),
                Err(error) if jobs.len() > 1 && is_about_one(&error) => return each(http, jobs).await,
                Err(error) => return tell_all(jobs, || Err(error.clone())),
            };
        }
    }
    .boxed_local()
}

/// Each by itself, where nothing was applied and it isn't clear on whose account.
async fn each(http: Rc<Http>, jobs: Vec<Job<Write>>) {
    join_all(jobs.into_iter().map(|job| write_all(http.clone(), vec![job]))).await;
}

fn tell_written(http: &Http, jobs: Vec<Job<Write>>, body: &Bytes) {
    let mut entries = match http.entries::<Meta<'_>>(body, Effect::Write) {
        Ok(entries) => entries,
        Err(error) => return tell_all(jobs, || Err(error.clone())),
    };
    for job in jobs {
        let entry = entries.next().filter(|entry| entry.path == job.asked.path);
        let written = entry.map(|entry| Ok(Outcome::Written(Placed::from(&entry))));
        job.answer(written.ok_or_else(|| http.too_few_results()));
    }
}

/// Whether the refusals are of operations that there are, so that fewer are left without those.
fn names_all(refusals: &[Refusal], ops: usize) -> bool {
    !refusals.is_empty() && refusals.iter().all(|refusal| refusal.op_index < ops)
}

/// Tells those whose operations were refused, and returns the others.
fn tell_refused(jobs: Vec<Job<Write>>, refusals: Vec<Refusal>) -> Vec<Job<Write>> {
    let of_job = |(index, job): (usize, &Job<Write>)| repeat_n(index, job.asked.op_count());
    let jobs_of_ops: Vec<_> = jobs.iter().enumerate().flat_map(of_job).collect();
    let mut of_each = vec![Vec::new(); jobs.len()];
    for refusal in refusals {
        if let Some(own) = jobs_of_ops.get(refusal.op_index).and_then(|job| of_each.get_mut(*job)) {
            own.push(Refusal { op_index: 0, ..refusal });
        }
    }
    let mut rest = Vec::with_capacity(jobs.len());
    for (job, own) in jobs.into_iter().zip(of_each) {
        match own.is_empty() {
            true => rest.push(job),
            false => job.answer(Ok(Ok(Outcome::Refused(own)))),
        }
    }
    rest
}

/// Tells all of them the same.
fn tell_all(jobs: Vec<Job<Write>>, answer: impl Fn() -> Result<Written>) {
    jobs.into_iter().for_each(|job| job.answer(answer()));
}
