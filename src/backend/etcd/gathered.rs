//! Calls of several callers in one transaction: what the server does for a request, it does once for all of them.
//!
//! - A transaction of reads is no write to etcd, and comes back as fresh as the reads in it are asked to be.
//! - Writes are made at one revision, which is then the version of each. So no key is written twice in one.
//! - Where a condition doesn't hold nothing was done, and all keys with conditions are looked at: those whose conditions don't hold are
//!   told, and the rest goes again. Conditions in transactions inside the transaction would need no second attempt, but
//!   etcd 3.5.16, for one, doesn't check the user's rights there.
//! - Where the server refuses all of it nothing was done, and each goes by itself: it may have been on account of one.

use super::kv::{Found, Wanted, look, looked};
use super::session::{Session, reading};
use super::status::Effect;
use crate::backend::gather::{Gathered, Gatherer, Job, is_about_one};
use crate::backend::portion::{MAX_VALUE, Sizes, may_join};
use crate::error::{Error, Result};
use crate::types::{Consistency, Version};
use bytes::Bytes;
use etcd_client::proto::{PbResponseOp, PbTxnOpResponse, PbTxnResponse};
use etcd_client::{GetOptions, KeyValue, Txn, TxnOp, TxnResponse};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, join_all};
use std::rc::Rc;

/// How many requests of a kind are on their way for one caller each before others go together: the server spreads them over its
/// processors.
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
        self.sizes.learn(read.size(&found).into_iter());
        Ok(found)
    }

    pub(super) async fn write(&self, write: Write) -> Result<Written> {
        if write.bytes() > MAX_VALUE {
            return write.alone(&self.session).await;
        }
        match self.writes.lane() {
            Some(_lane) => write.alone(&self.session).await,
            None => self.writes.ask(write).await,
        }
    }
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

    /// The size of the value, if there was one to see.
    fn size(&self, found: &Option<KeyValue>) -> Option<usize> {
        found.as_ref().filter(|_| !self.keys_only).map(|found| found.value().len())
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
        let mut largest = None;
        for job in jobs {
            let found = found.next().flatten();
            largest = largest.max(found.as_ref().and_then(|found| job.asked.size(found)));
            job.answer(found.ok_or_else(|| self.session.senseless(Effect::Read)));
        }
        self.sizes.learn(largest.into_iter());
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

    async fn alone(&self, session: &Session) -> Result<Written> {
        if self.wanted.is_some() {
            let answer = session.write(async || session.kv().txn(together(&[self])).await).await?;
            let made = Written::Made { version: session.written(answer.header())?, found: true };
            return match (answer.succeeded(), looked(answer.0).as_deref()) {
                (true, _) => Ok(made),
                (false, Some([found])) => Ok(Written::Refused(*found)),
                // Nothing was changed, that much is clear.
                (false, _) => Err(session.senseless(Effect::Read)),
            };
        }
        let Some(value) = &self.value else {
            let answer = session.write(async || session.kv().delete(self.path.as_slice(), None).await).await?;
            return Ok(Written::Made { version: session.written(answer.header())?, found: answer.deleted() > 0 });
        };
        let answer = session.write(async || session.kv().put(self.path.as_slice(), value.as_ref(), None).await).await?;
        Ok(Written::Made { version: session.written(answer.header())?, found: true })
    }
}

/// Makes all of these changes if all keys are as wanted, and else looks at those.
fn together(writes: &[&Write]) -> Txn {
    let wanted = || writes.iter().filter_map(|write| Some((write.wanted?, write.path.clone())));
    let compares: Vec<_> = wanted().map(|(wanted, path)| wanted.compare(path)).collect();
    let changes: Vec<_> = writes.iter().map(|write| write.change()).collect();
    let looks: Vec<_> = wanted().map(|(_, path)| look(path)).collect();
    Txn::new().when(compares).and_then(changes).or_else(looks)
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

async fn write_all(session: Rc<Session>, mut jobs: Vec<Job<Write>>) {
    while !jobs.is_empty() {
        let writes: Vec<_> = jobs.iter().map(|job| &job.asked).collect();
        let answer = session.write(async || session.kv().txn(together(&writes)).await).await;
        jobs = match answer {
            Ok(answer) if answer.succeeded() => return tell_made(&session, jobs, answer),
            Ok(answer) => tell_refused(&session, jobs, answer.0),
            Err(error) if is_about_one(&error) => return each(&session, jobs).await,
            Err(error) => return tell_all(jobs, &error),
        };
    }
}

fn tell_all(jobs: Vec<Job<Write>>, error: &Error) {
    jobs.into_iter().for_each(|job| job.answer(Err(error.clone())));
}

async fn each(session: &Session, jobs: Vec<Job<Write>>) {
    join_all(jobs.into_iter().map(async |job| {
        let written = job.asked.alone(session).await;
        job.answer(written);
    }))
    .await;
}

fn tell_made(session: &Session, jobs: Vec<Job<Write>>, answer: TxnResponse) {
    let version = match session.written(answer.header()) {
        Ok(version) => version,
        Err(error) => return tell_all(jobs, &error),
    };
    let mut made = answer.0.responses.into_iter().map(|answer| made(answer, version));
    for job in jobs {
        job.answer(made.next().flatten().ok_or_else(|| session.senseless(Effect::Write)));
    }
}

/// What came of a change in a transaction; none if the server answered something else.
fn made(answer: PbResponseOp, version: Version) -> Option<Written> {
    match answer.response? {
        PbTxnOpResponse::ResponsePut(_) => Some(Written::Made { version, found: true }),
        PbTxnOpResponse::ResponseDeleteRange(deleted) => Some(Written::Made { version, found: deleted.deleted > 0 }),
        _ => None,
    }
}

/// Tells those whose keys aren't as wanted, and returns the others. Nothing was changed.
fn tell_refused(session: &Session, jobs: Vec<Job<Write>>, answer: PbTxnResponse) -> Vec<Job<Write>> {
    let asked = jobs.iter().filter(|job| job.asked.wanted.is_some()).count();
    let Some(found) = looked(answer).filter(|found| found.len() == asked) else {
        tell_all(jobs, &session.senseless(Effect::Read));
        return Vec::new();
    };
    let (mut found, all) = (found.into_iter(), jobs.len());
    let mut rest = Vec::with_capacity(all);
    for job in jobs {
        let refused = job.asked.wanted.and_then(|wanted| found.next().filter(|found| !wanted.holds(*found)));
        match refused {
            Some(found) => job.answer(Ok(Written::Refused(found))),
            None => rest.push(job),
        }
    }
    if rest.len() == all {
        // They are all as wanted, and the server says otherwise.
        tell_all(rest, &session.senseless(Effect::Read));
        return Vec::new();
    }
    rest
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
        let written = |found| Some(Written::Made { version, found });
        let deleted =
            |deleted| op(PbTxnOpResponse::ResponseDeleteRange(PbDeleteResponse { deleted, ..Default::default() }));
        let put = || op(PbTxnOpResponse::ResponsePut(PbPutResponse::default()));
        let nothing = || op(PbTxnOpResponse::ResponseRange(PbRangeResponse::default()));
        let empty = || PbResponseOp { response: None };
        assert_eq!(made(put(), version), written(true));
        assert_eq!((made(deleted(1), version), made(deleted(0), version)), (written(true), written(false)));
        assert!(made(nothing(), version).is_none() && made(empty(), version).is_none());
        assert!(range(nothing()).is_some_and(|found| found.is_none()));
        assert!(range(put()).is_none() && range(empty()).is_none());
    }
}
