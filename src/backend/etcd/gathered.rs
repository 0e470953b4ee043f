//! Calls of several callers in one transaction: what the server does for a request, it does once for all of them.
//!
//! - A transaction of reads is no write to etcd, and comes back as fresh as the reads in it are asked to be.
//! - Writes are made at one revision, which is then the version of each. A condition is that of its own write only: it is in a
//!   transaction inside the transaction, and where it doesn't hold the others are made all the same.
//! - Where the server refuses all of it nothing was done, and each goes by itself: it may have been on account of one.

use super::kv::{Found, Wanted, look, looked};
use super::session::{Session, reading};
use super::status::Effect;
use crate::backend::gather::{Gathered, Gatherer, Job, MAX_VALUE, Sizes, may_join};
use crate::error::{Error, Result};
use crate::types::{Consistency, Version};
use bytes::Bytes;
use etcd_client::proto::{PbResponseOp, PbTxnOpResponse, PbTxnResponse};
use etcd_client::{GetOptions, KeyValue, Txn, TxnOp};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, join_all};
use std::rc::Rc;

/// How many requests of a kind are on their way at once: the server spreads them over its processors.
const LANES: usize = 4;

/// What many callers ask at once, gathered.
pub(super) struct Together {
    session: Rc<Session>,
    sizes: Rc<Sizes>,
    fresh: Gatherer<Read>,
    stale: Gatherer<Read>,
    writes: Gatherer<Write>,
}

impl Together {
    pub(super) fn new(session: Rc<Session>) -> Self {
        let sizes = Rc::new(Sizes::new());
        let reads =
            |consistency| Gatherer::new(LANES, Reader { session: session.clone(), sizes: sizes.clone(), consistency });
        let (fresh, stale) = (reads(Consistency::Linearizable), reads(Consistency::Stale));
        let writes = Gatherer::new(LANES, session.clone());
        Together { session, sizes, fresh, stale, writes }
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// What is at a path, if anything; without its value where that isn't asked for.
    pub(super) async fn read(
        &self,
        path: Vec<u8>,
        keys_only: bool,
        consistency: Consistency,
    ) -> Result<Option<KeyValue>> {
        let gatherer = match consistency {
            Consistency::Linearizable => &self.fresh,
            Consistency::Stale => &self.stale,
        };
        let read = Read { path, keys_only, most: self.sizes.portion() };
        let lane = gatherer.lane();
        if lane.is_none() && read.most > 1 {
            return gatherer.ask(read).await;
        }
        let found = read.alone(&self.session, consistency).await?;
        self.sizes.learn(found.iter().map(|found| found.value().len()));
        Ok(found)
    }

    pub(super) async fn write(&self, write: Write) -> Result<Written> {
        let lane = self.writes.lane();
        if lane.is_none() && write.bytes() <= MAX_VALUE {
            return self.writes.ask(write).await;
        }
        write.alone(&self.session).await
    }
}

/// Whether an error may be that of one of several calls, of which nothing was done.
fn is_about_one(error: &Error) -> bool {
    matches!(error, Error::PermissionDenied { .. } | Error::Backend { .. })
}

/// A path to read, with no more than so many others.
struct Read {
    path: Vec<u8>,
    keys_only: bool,
    most: usize,
}

impl Read {
    fn options(&self, consistency: Consistency) -> GetOptions {
        let options = reading(consistency);
        if self.keys_only { options.with_keys_only() } else { options }
    }

    fn op(&self, consistency: Consistency) -> TxnOp {
        TxnOp::get(self.path.as_slice(), Some(self.options(consistency)))
    }

    async fn alone(&self, session: &Session, consistency: Consistency) -> Result<Option<KeyValue>> {
        let send = async || session.kv().get(self.path.as_slice(), Some(self.options(consistency))).await;
        Ok(session.read(send).await?.take_kvs().pop())
    }
}

impl Gathered for Read {
    type Answer = Result<Option<KeyValue>>;
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
    session: Rc<Session>,
    sizes: Rc<Sizes>,
    consistency: Consistency,
}

impl Reader {
    async fn read_all(self, jobs: Vec<Job<Read>>) {
        let ops = || jobs.iter().map(|job| job.asked.op(self.consistency)).collect::<Vec<_>>();
        let send = async || self.session.kv().txn(Txn::new().and_then(ops())).await;
        match self.session.read(send).await {
            Ok(answer) => self.tell(jobs, answer.0),
            Err(error) if is_about_one(&error) => self.each(jobs).await,
            Err(error) => jobs.into_iter().for_each(|job| job.answer(Err(error.clone()))),
        }
    }

    async fn each(&self, jobs: Vec<Job<Read>>) {
        join_all(jobs.into_iter().map(async |job| {
            let found = job.asked.alone(&self.session, self.consistency).await;
            job.answer(found);
        }))
        .await;
    }

    fn tell(&self, jobs: Vec<Job<Read>>, answer: PbTxnResponse) {
        let mut found = answer.responses.into_iter().map(range);
        let mut largest = 0;
        for job in jobs {
            let found = found.next().flatten().ok_or_else(|| self.session.senseless(Effect::Read));
            largest = found.iter().flatten().map(|found| found.value().len()).fold(largest, usize::max);
            job.answer(found);
        }
        self.sizes.learn(std::iter::once(largest));
    }
}

/// What a read in a transaction found; none if the server answered something else.
fn range(answer: PbResponseOp) -> Option<Option<KeyValue>> {
    match answer.response? {
        PbTxnOpResponse::ResponseRange(range) => Some(range.kvs.into_iter().next().map(KeyValue)),
        _ => None,
    }
}

/// A change of one key, which may depend on how it is.
pub(super) struct Write {
    path: Vec<u8>,
    /// None: the key is deleted.
    value: Option<Bytes>,
    wanted: Option<Wanted>,
}

/// What came of a [`Write`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It was made, at this version; or there was nothing to delete.
    Made { version: Version, found: bool },
    /// The condition doesn't hold for what there is.
    Refused(Option<Found>),
}

impl Write {
    pub(super) fn put(path: Vec<u8>, value: &Bytes, wanted: Option<Wanted>) -> Self {
        Write { path, value: Some(value.clone()), wanted }
    }

    pub(super) fn delete(path: Vec<u8>, wanted: Option<Wanted>) -> Self {
        Write { path, value: None, wanted }
    }

    fn bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Bytes::len)
    }

    fn weight(&self) -> (&[u8], usize) {
        (&self.path, self.bytes())
    }

    fn change(&self) -> TxnOp {
        match &self.value {
            Some(value) => TxnOp::put(self.path.as_slice(), value.as_ref(), None),
            None => TxnOp::delete(self.path.as_slice(), None),
        }
    }

    /// Changes the key if it is as wanted, and else looks at it.
    fn change_if(&self, wanted: Wanted) -> Txn {
        let compare = wanted.compare(self.path.clone());
        Txn::new().when([compare]).and_then([self.change()]).or_else([look(self.path.clone())])
    }

    fn op(&self) -> TxnOp {
        match self.wanted {
            Some(wanted) => TxnOp::txn(self.change_if(wanted)),
            None => self.change(),
        }
    }

    async fn alone(&self, session: &Session) -> Result<Written> {
        if let Some(wanted) = self.wanted {
            let answer = session.write(async || session.kv().txn(self.change_if(wanted)).await).await?;
            let version = session.written(answer.header())?;
            return decided(answer.0, version).ok_or_else(|| session.senseless(Effect::Write));
        }
        let Some(value) = &self.value else {
            let answer = session.write(async || session.kv().delete(self.path.as_slice(), None).await).await?;
            return Ok(Written::Made { version: session.written(answer.header())?, found: answer.deleted() > 0 });
        };
        let answer = session.write(async || session.kv().put(self.path.as_slice(), value.as_ref(), None).await).await?;
        Ok(Written::Made { version: session.written(answer.header())?, found: true })
    }
}

impl Gathered for Write {
    type Answer = Result<Written>;
    type Server = Rc<Session>;

    fn joins(&self, batch: &[Job<Write>]) -> bool {
        may_join(batch, self.weight(), Write::weight)
    }

    fn carry_out(session: &Rc<Session>, batch: Vec<Job<Write>>) -> LocalBoxFuture<'static, ()> {
        write_all(session.clone(), batch).boxed_local()
    }
}

async fn write_all(session: Rc<Session>, jobs: Vec<Job<Write>>) {
    let ops = || jobs.iter().map(|job| job.asked.op()).collect::<Vec<_>>();
    let send = async || session.kv().txn(Txn::new().and_then(ops())).await;
    let answer = session.write(send).await;
    let made = answer.and_then(|answer| Ok((session.written(answer.header())?, answer.0.responses)));
    match made {
        Ok((version, answers)) => tell_written(&session, jobs, version, answers),
        Err(error) if is_about_one(&error) => each(&session, jobs).await,
        Err(error) => jobs.into_iter().for_each(|job| job.answer(Err(error.clone()))),
    }
}

async fn each(session: &Session, jobs: Vec<Job<Write>>) {
    join_all(jobs.into_iter().map(async |job| {
        let written = job.asked.alone(session).await;
        job.answer(written);
    }))
    .await;
}

fn tell_written(session: &Session, jobs: Vec<Job<Write>>, version: Version, answers: Vec<PbResponseOp>) {
    let mut written = answers.into_iter().map(|answer| written(answer, version));
    for job in jobs {
        job.answer(written.next().flatten().ok_or_else(|| session.senseless(Effect::Write)));
    }
}

/// What came of a write in a transaction; none if the server answered something else.
fn written(answer: PbResponseOp, version: Version) -> Option<Written> {
    match answer.response? {
        PbTxnOpResponse::ResponsePut(_) => Some(Written::Made { version, found: true }),
        PbTxnOpResponse::ResponseDeleteRange(deleted) => Some(Written::Made { version, found: deleted.deleted > 0 }),
        PbTxnOpResponse::ResponseTxn(answer) => decided(answer, version),
        PbTxnOpResponse::ResponseRange(_) => None,
    }
}

/// What came of a write with a condition.
fn decided(answer: PbTxnResponse, version: Version) -> Option<Written> {
    if answer.succeeded {
        return Some(Written::Made { version, found: true });
    }
    match looked(answer)?.as_slice() {
        [found] => Some(Written::Refused(*found)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::version;
    use super::*;
    use etcd_client::proto::{PbDeleteResponse, PbPutResponse, PbRangeResponse};

    fn op(response: PbTxnOpResponse) -> PbResponseOp {
        PbResponseOp { response: Some(response) }
    }

    #[test]
    fn answers_are_taken_for_what_they_are() {
        let version = version(7);
        let made = |found| Some(Written::Made { version, found });
        let deleted = |deleted| PbDeleteResponse { deleted, ..PbDeleteResponse::default() };
        let txn = |succeeded, responses| PbTxnResponse { header: None, succeeded, responses };
        let nothing = || op(PbTxnOpResponse::ResponseRange(PbRangeResponse::default()));
        let of = |response| written(op(response), version);
        assert_eq!(of(PbTxnOpResponse::ResponsePut(PbPutResponse::default())), made(true));
        assert_eq!(of(PbTxnOpResponse::ResponseDeleteRange(deleted(1))), made(true));
        assert_eq!(of(PbTxnOpResponse::ResponseDeleteRange(deleted(0))), made(false));
        assert_eq!(of(PbTxnOpResponse::ResponseTxn(txn(true, vec![]))), made(true));
        let refused = txn(false, vec![nothing()]);
        assert_eq!(of(PbTxnOpResponse::ResponseTxn(refused)), Some(Written::Refused(None)));
        assert_eq!(of(PbTxnOpResponse::ResponseTxn(txn(false, vec![]))), None);
        assert_eq!(written(nothing(), version), None);
        assert!(range(nothing()).is_some_and(|found| found.is_none()));
        assert!(range(op(PbTxnOpResponse::ResponsePut(PbPutResponse::default()))).is_none());
        let empty = || PbResponseOp { response: None };
        assert!(range(empty()).is_none() && written(empty(), version).is_none());
    }
}
