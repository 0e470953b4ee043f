//! Requests that go together: reads in a multiRead, writes in a multi, whether of several callers or of one call that has many znodes
//! to read. To a server a request is a request, and what is in it costs little more.
//!
//! - Reads that are to be fresh share one sync, sent when all of them had been asked for.
//! - Writes of several callers are all or nothing. Where one fails nothing was done: its caller is told, and each of the others goes
//!   by itself.
//! - A multiRead's answer is one packet, so that it takes no more znodes than are likely to be small enough.

use crate::backend::gather::{Gathered, Gatherer, Job};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, OptionFuture, join_all};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use zookeeper_client::{Client, Error as Failure, MultiReadResult, MultiWriteError, MultiWriteResult, Stat};

/// How many requests of a kind are on their way at once.
const LANES: usize = 4;
/// What an answer should have at most, in bytes.
const ANSWER_BYTES: usize = 1024 * 1024;
/// How many znodes are read together at most.
const MAX_READS: usize = 128;
/// How many znodes are written together at most, how large their values are, and what they have at most in all: far below what
/// a server takes as a packet.
const MAX_WRITES: usize = 64;
const MAX_VALUE: usize = 8 * 1024;
const MAX_BYTES: usize = 128 * 1024;

/// A znode's data and stat.
pub(super) type Data = (Vec<u8>, Stat);

/// How many znodes to read together.
#[derive(Debug)]
pub(super) struct Portion {
    /// The size of the largest that was seen of late.
    largest: AtomicUsize,
    /// Whether the servers know multiRead.
    is_known: Knowledge,
}

/// Whether the servers know multiRead, which came with ZooKeeper 3.6. Older ones answer that they don't and hang up, with whatever
/// else is on the way: so it is asked when the first session is opened.
pub(super) type Knowledge = Arc<AtomicBool>;

impl Portion {
    fn new(is_known: Knowledge) -> Self {
        // Nothing was seen yet: sixteen are a good start.
        Portion { largest: AtomicUsize::new(ANSWER_BYTES / 16), is_known }
    }

    pub(super) fn knows_multi_read(&self) -> bool {
        self.is_known.load(Ordering::Relaxed)
    }

    pub(super) fn size(&self) -> usize {
        match self.knows_multi_read() {
            true => (ANSWER_BYTES / self.largest.load(Ordering::Relaxed).max(1)).clamp(1, MAX_READS),
            false => 1,
        }
    }

    /// Whether znodes are so small that their data may be read where the stat would do.
    pub(super) fn is_large(&self) -> bool {
        self.size() >= MAX_READS / 2
    }

    /// A znode of this size was seen. What was larger is forgotten by and by.
    pub(super) fn learn(&self, stat: &Stat) {
        let (largest, seen) = (self.largest.load(Ordering::Relaxed), usize::try_from(stat.data_length).unwrap_or(0));
        self.largest.store(seen.max(largest - largest / 16), Ordering::Relaxed);
    }
}

/// What many callers ask at once, gathered.
pub(super) struct Together {
    client: Client,
    pub(super) portion: Arc<Portion>,
    fresh: Gatherer<Read>,
    stale: Gatherer<Read>,
    writes: Gatherer<Write>,
}

impl Together {
    pub(super) fn new(client: &Client, is_known: Knowledge) -> Self {
        let portion = Arc::new(Portion::new(is_known));
        let reads = |is_fresh| Reader { client: client.clone(), portion: portion.clone(), is_fresh };
        let (fresh, stale) = (Gatherer::new(LANES, reads(true)), Gatherer::new(LANES, reads(false)));
        let writes = Gatherer::new(LANES, client.clone());
        Together { client: client.clone(), portion, fresh, stale, writes }
    }

    /// Reads a znode; one that is to be fresh behind a sync.
    pub(super) async fn read(&self, path: &str, is_fresh: bool) -> Result<Data, Failure> {
        let gatherer = if is_fresh { &self.fresh } else { &self.stale };
        let lane = gatherer.lane();
        if lane.is_none() && self.portion.size() > 1 {
            return self.gather(gatherer, path).await;
        }
        let (data, stat) = read_one(&self.client, path, is_fresh).await?;
        self.portion.learn(&stat);
        Ok((data, stat))
    }

    /// Asks whether the server knows multiRead. It is to be thought of as gone where it doesn't.
    pub(super) fn prove<'s>(&'s self, path: &str) -> impl Future<Output = Result<bool, Failure>> + use<'s> {
        let sent = read_together(&self.client, &self.portion, &[(path, Part::Data)]);
        async move { sent?.await.map(|parts| parts.is_some()) }
    }

    /// What is at each of these paths, as it is now.
    pub(super) async fn read_all(
        &self,
        paths: impl ExactSizeIterator<Item = &str> + Clone,
    ) -> Result<Vec<Result<Data, Failure>>, Failure> {
        read_each(&self.client, &self.portion, true, paths).await
    }

    /// A znode's stat, with its data where it was read with others: that is the better way where many look at once, and what they
    /// look at is small.
    pub(super) async fn look(&self, path: &str, is_fresh: bool) -> Result<(Stat, Option<Vec<u8>>), Failure> {
        let gatherer = if is_fresh { &self.fresh } else { &self.stale };
        let lane = gatherer.lane();
        if lane.is_none() && self.portion.is_large() {
            let (data, stat) = self.gather(gatherer, path).await?;
            return Ok((stat, Some(data)));
        }
        let sync = is_fresh.then(|| self.client.sync(path));
        let stat = self.client.check_stat(path);
        let (synced, stat) = tokio::join!(OptionFuture::from(sync), stat);
        synced.transpose()?;
        let stat = stat?.ok_or(Failure::NoNode)?;
        self.portion.learn(&stat);
        Ok((stat, None))
    }

    async fn gather(&self, gatherer: &Gatherer<Read>, path: &str) -> Result<Data, Failure> {
        let read = Read { path: path.to_owned(), most: self.portion.size() };
        let (data, stat) = gatherer.ask(read).await.unwrap_or(Err(Failure::ClientClosed))?;
        self.portion.learn(&stat);
        Ok((data, stat))
    }

    /// Writes over a znode; only at this version, where there is one.
    pub(super) async fn write(&self, path: &str, data: &[u8], version: Option<i32>) -> Result<Stat, Failure> {
        let lane = self.writes.lane();
        if lane.is_some() || data.len() > MAX_VALUE {
            return self.client.set_data(path, data, version).await;
        }
        let write = Write { path: path.to_owned(), data: Bytes::copy_from_slice(data), version };
        self.writes.ask(write).await.unwrap_or(Err(Failure::ClientClosed))
    }
}

/// A znode to read, with no more than so many others.
struct Read {
    path: String,
    most: usize,
}

impl Gathered for Read {
    type Answer = Result<Data, Failure>;
    type Server = Reader;

    fn joins(&self, batch: &[Job<Read>]) -> bool {
        batch.len() < self.most
    }

    fn carry_out(reader: &Reader, batch: Vec<Job<Read>>) -> LocalBoxFuture<'static, ()> {
        reader.clone().read_all(batch).boxed_local()
    }
}

/// Sends the requests at once. What is read behind a sync is answered behind it.
fn read_one<'c>(
    client: &'c Client,
    path: &str,
    is_fresh: bool,
) -> impl Future<Output = Result<Data, Failure>> + use<'c> {
    let sync = is_fresh.then(|| client.sync(path));
    let read = client.get_data(path);
    async move {
        let (synced, read) = tokio::join!(OptionFuture::from(sync), read);
        synced.transpose()?;
        read
    }
}

/// Who reads what was gathered.
#[derive(Clone)]
struct Reader {
    client: Client,
    portion: Arc<Portion>,
    is_fresh: bool,
}

impl Reader {
    async fn read_all(self, jobs: Vec<Job<Read>>) {
        let paths = jobs.iter().map(|job| job.asked.path.as_str());
        match read_each(&self.client, &self.portion, self.is_fresh, paths).await {
            Ok(reads) => jobs.into_iter().zip(reads).for_each(|(job, read)| job.answer(read)),
            Err(failure) => jobs.into_iter().for_each(|job| job.answer(Err(failure.clone()))),
        }
    }
}

/// What is at each of these paths.
async fn read_each(
    client: &Client,
    portion: &Portion,
    is_fresh: bool,
    paths: impl ExactSizeIterator<Item = &str> + Clone,
) -> Result<Vec<Result<Data, Failure>>, Failure> {
    if paths.len() > 1 && portion.size() > 1 {
        let sync = is_fresh.then(|| client.sync("/"));
        let asked: Vec<_> = paths.clone().map(|path| (path, Part::Data)).collect();
        let read = read_together(client, portion, &asked)?;
        if let Some(sync) = sync {
            sync.await?;
        }
        if let Some(parts) = read.await? {
            return Ok(parts.into_iter().map(into_data).collect());
        }
    }
    Ok(join_all(paths.map(|path| read_one(client, path, is_fresh))).await)
}

fn into_data(part: MultiReadResult) -> Result<Data, Failure> {
    match part {
        MultiReadResult::Data { data, stat } => Ok((data, stat)),
        MultiReadResult::Error { err } => Err(err),
        other => Err(Failure::UnexpectedError(format!("a multiRead was answered with {other:?}"))),
    }
}

/// What is asked of a znode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Data,
    /// The names of its children.
    Children,
}

/// Sends one request for all of these at once, which is answered in their order; by none where the server doesn't know it.
pub(super) fn read_together<'c>(
    client: &'c Client,
    portion: &'c Portion,
    asked: &[(&str, Part)],
) -> Result<impl Future<Output = Result<Option<Vec<MultiReadResult>>, Failure>> + use<'c>, Failure> {
    let count = asked.len();
    let mut reader = client.new_multi_reader();
    for &(path, part) in asked {
        match part {
            Part::Data => reader.add_get_data(path)?,
            Part::Children => reader.add_get_children(path)?,
        }
    }
    let answer = reader.commit();
    Ok(async move {
        match answer.await {
            Ok(parts) if parts.len() == count => Ok(Some(parts)),
            Ok(parts) => Err(Failure::UnexpectedError(format!("{} answers to a multiRead of {count}", parts.len()))),
            Err(Failure::Unimplemented) => {
                portion.is_known.store(false, Ordering::Relaxed);
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    })
}

/// A znode to write over.
struct Write {
    path: String,
    data: Bytes,
    version: Option<i32>,
}

impl Gathered for Write {
    type Answer = Result<Stat, Failure>;
    type Server = Client;

    fn joins(&self, batch: &[Job<Write>]) -> bool {
        let bytes: usize = batch.iter().map(|job| job.asked.data.len()).sum();
        let fits = batch.len() < MAX_WRITES && bytes + self.data.len() <= MAX_BYTES;
        fits && batch.iter().all(|job| job.asked.path != self.path)
    }

    fn carry_out(client: &Client, batch: Vec<Job<Write>>) -> LocalBoxFuture<'static, ()> {
        write_all(client.clone(), batch).boxed_local()
    }
}

async fn write_all(client: Client, mut jobs: Vec<Job<Write>>) {
    if jobs.len() > 1 {
        match write_together(&client, &jobs).await {
            Ok(results) => return tell_written(jobs, results),
            // Others may be in the way too, of which this says nothing: new keys often come together.
            Err(MultiWriteError::OperationFailed { index, source }) if index < jobs.len() => {
                jobs.remove(index).answer(Err(source));
            }
            Err(failure) => {
                let failure = Failure::from(failure);
                return jobs.into_iter().for_each(|job| job.answer(Err(failure.clone())));
            }
        }
    }
    let sent = jobs.into_iter().map(|job| {
        let Write { path, data, version } = &job.asked;
        let written = client.set_data(path, data, *version);
        async move { job.answer(written.await) }
    });
    join_all(sent).await;
}

async fn write_together(client: &Client, jobs: &[Job<Write>]) -> Result<Vec<MultiWriteResult>, MultiWriteError> {
    let mut writer = client.new_multi_writer();
    for Job { asked: Write { path, data, version }, .. } in jobs {
        writer.add_set_data(path, data, *version)?;
    }
    writer.commit().await
}

fn tell_written(jobs: Vec<Job<Write>>, results: Vec<MultiWriteResult>) {
    let mut results = results.into_iter();
    for job in jobs {
        job.answer(match results.next() {
            Some(MultiWriteResult::SetData { stat }) => Ok(stat),
            other => Err(Failure::UnexpectedError(format!("a set in a multi was answered with {other:?}"))),
        });
    }
}
