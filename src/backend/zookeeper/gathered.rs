//! Requests that go together: reads in a multiRead, writes in a multi, whether of several callers or of one call that has many znodes
//! to read. To a server a request is a request, and what is in it costs little more.
//!
//! - Reads that are to be fresh share one sync, sent when all of them had been asked for.
//! - Writes of several callers are all or nothing. Where one fails nothing was done: its caller is told, and each of the others goes
//!   by itself.
//! - What is to be written at a version is looked at in the round trip just before, as when it is written alone: the version of a
//!   znode says nothing of its incarnation. Whoever isn't sure to be right then is left to look for themselves.
//! - A multiRead's answer is one packet, so that it takes no more znodes than are likely to be small enough.

use super::batch::is_conflict;
use super::node::{self, Node};
use crate::backend::gather::{Gathered, Gatherer, Job, Lane};
use crate::backend::portion::{MAX_READS, MAX_VALUE, Sizes, may_join};
use crate::types::Version;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, OptionFuture, join, join_all};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use zookeeper_client::{
    Client, Error as Failure, MultiReadResult, MultiReader, MultiWriteError, MultiWriteResult, Stat,
};

/// How many requests of a kind are on their way for one caller each before others go together.
const LANES: usize = 4;

/// A znode's data and stat.
pub(super) type Data = (Vec<u8>, Stat);

/// How many znodes to read together.
#[derive(Debug)]
pub(super) struct Portion {
    sizes: Sizes,
    /// Whether the servers know multiRead.
    is_known: Knowledge,
}

/// Whether the servers know multiRead, which came with ZooKeeper 3.6. Older ones answer that they don't and hang up, with whatever
/// else is on the way: so it is asked when the first session is opened.
pub(super) type Knowledge = Arc<AtomicBool>;

impl Portion {
    fn new(is_known: Knowledge) -> Self {
        Portion { sizes: Sizes::new(), is_known }
    }

    pub(super) fn knows_multi_read(&self) -> bool {
        self.is_known.load(Ordering::Relaxed)
    }

    pub(super) fn size(&self) -> usize {
        if self.knows_multi_read() { self.sizes.portion() } else { 1 }
    }

    /// Whether znodes are so small that their data may be read where the stat would do.
    pub(super) fn are_small(&self) -> bool {
        self.size() >= MAX_READS / 2
    }

    /// These were in one answer.
    pub(super) fn learn<'s>(&self, stats: impl IntoIterator<Item = &'s Stat>) {
        self.sizes.learn(stats.into_iter().map(|stat| usize::try_from(stat.data_length).unwrap_or(0)));
    }
}

/// What many callers ask at once, gathered.
pub(super) struct Together {
    client: Client,
    pub(super) portion: Arc<Portion>,
    fresh: Gatherer<Read>,
    stale: Gatherer<Read>,
    puts: Gatherer<Write>,
    swaps: Gatherer<Write>,
}

impl Together {
    pub(super) fn new(client: &Client, is_known: Knowledge) -> Self {
        let portion = Arc::new(Portion::new(is_known));
        let reads = |is_fresh| Reader { client: client.clone(), portion: portion.clone(), is_fresh };
        let (fresh, stale) = (Gatherer::new(LANES, reads(true)), Gatherer::new(LANES, reads(false)));
        let writes = || Writer { client: client.clone(), portion: portion.clone() };
        let (puts, swaps) = (Gatherer::new(LANES, writes()), Gatherer::new(LANES, writes()));
        Together { client: client.clone(), portion, fresh, stale, puts, swaps }
    }

    /// Reads a znode; one that is to be fresh behind a sync.
    pub(super) async fn read(&self, path: &str, is_fresh: bool) -> Result<Data, Failure> {
        let gatherer = self.reads(is_fresh);
        let lane = gatherer.lane();
        if lane.is_none() && self.portion.size() > 1 {
            return self.gather(gatherer, path).await;
        }
        let (data, stat) = read_one(&self.client, path, is_fresh).await?;
        self.portion.learn([&stat]);
        Ok((data, stat))
    }

    /// Asks whether the server knows multiRead. It is to be thought of as gone where it doesn't.
    pub(super) fn prove<'s>(&'s self, path: &str) -> impl Future<Output = Result<bool, Failure>> + use<'s> {
        let mut read = MultiRead::new(&self.client, &self.portion);
        let sent = read.add(path, Part::Data).map(|()| read.send());
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
        let gatherer = self.reads(is_fresh);
        let lane = gatherer.lane();
        if lane.is_none() && self.portion.are_small() {
            match self.gather(gatherer, path).await {
                // Who may not read a znode may look at it.
                Err(Failure::NoAuth) => {}
                read => return read.map(|(data, stat)| (stat, Some(data))),
            }
        }
        let sync = is_fresh.then(|| self.client.sync(path));
        let stat = self.client.check_stat(path);
        let (synced, stat) = join(OptionFuture::from(sync), stat).await;
        synced.transpose()?;
        let stat = stat?.ok_or(Failure::NoNode)?;
        self.portion.learn([&stat]);
        Ok((stat, None))
    }

    fn reads(&self, is_fresh: bool) -> &Gatherer<Read> {
        if is_fresh { &self.fresh } else { &self.stale }
    }

    async fn gather(&self, gatherer: &Gatherer<Read>, path: &str) -> Result<Data, Failure> {
        gatherer.ask(Read { path: path.to_owned(), most: self.portion.size() }).await
    }

    /// Writes over a znode.
    pub(super) async fn put(&self, path: &str, data: &[u8]) -> Result<Stat, Failure> {
        let lane = self.puts.lane();
        if lane.is_some() || data.len() > MAX_VALUE {
            return self.client.set_data(path, data, None).await;
        }
        let written = self.puts.ask(Write::new(path, data, None)).await?;
        written.ok_or_else(|| Failure::UnexpectedError("a put without a condition found that it didn't hold".into()))
    }

    /// A lane for who looks at a key and then writes to its version.
    pub(super) fn swap_lane(&self) -> Option<Lane<'_, Write>> {
        self.swaps.lane()
    }

    /// Whether such a write may go with others, where there is no lane: what is looked at is read then.
    pub(super) fn may_swap(&self, data: &[u8]) -> bool {
        data.len() <= MAX_VALUE && self.portion.are_small()
    }

    /// Writes over a key that has this version. None: that didn't turn out to be so, or others were in the way, and nothing was done.
    pub(super) async fn swap(&self, path: &str, data: &[u8], version: Version) -> Result<Option<Stat>, Failure> {
        self.swaps.ask(Write::new(path, data, Some(version))).await
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
    join(OptionFuture::from(sync), read).map(|(synced, read)| {
        synced.transpose()?;
        read
    })
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
            Ok(reads) => {
                self.portion.learn(reads.iter().flatten().map(|(_, stat)| stat));
                jobs.into_iter().zip(reads).for_each(|(job, read)| job.answer(read));
            }
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
        let mut read = MultiRead::new(client, portion);
        paths.clone().try_for_each(|path| read.add(path, Part::Data))?;
        let sync = is_fresh.then(|| client.sync("/"));
        let (synced, read) = join(OptionFuture::from(sync), read.send()).await;
        synced.transpose()?;
        if let Some(parts) = read? {
            return Ok(parts.into_iter().map(into_data).collect());
        }
    }
    Ok(Box::pin(join_all(paths.map(|path| read_one(client, path, is_fresh)))).await)
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

/// One request for many znodes.
pub(super) struct MultiRead<'c> {
    reader: MultiReader<'c>,
    portion: &'c Portion,
    count: usize,
}

impl<'c> MultiRead<'c> {
    pub(super) fn new(client: &'c Client, portion: &'c Portion) -> Self {
        MultiRead { reader: client.new_multi_reader(), portion, count: 0 }
    }

    pub(super) fn add(&mut self, path: &str, part: Part) -> Result<(), Failure> {
        self.count += 1;
        match part {
            Part::Data => self.reader.add_get_data(path),
            Part::Children => self.reader.add_get_children(path),
        }
    }

    /// Sends the request at once. It is answered in the order of what was added; by none where the server doesn't know it.
    pub(super) fn send(mut self) -> impl Future<Output = Result<Option<Vec<MultiReadResult>>, Failure>> + use<'c> {
        let (answer, portion, count) = (self.reader.commit(), self.portion, self.count);
        answer.map(move |answer| match answer {
            Ok(parts) if parts.len() == count => Ok(Some(parts)),
            Ok(parts) => Err(Failure::UnexpectedError(format!("{} answers to a multiRead of {count}", parts.len()))),
            Err(Failure::Unimplemented) => {
                portion.is_known.store(false, Ordering::Relaxed);
                Ok(None)
            }
            Err(failure) => Err(failure),
        })
    }
}

/// A znode to write over.
pub(super) struct Write {
    path: String,
    data: Bytes,
    /// The version that the key must have, if any.
    expected: Option<Version>,
}

impl Write {
    fn new(path: &str, data: &[u8], expected: Option<Version>) -> Self {
        Write { path: path.to_owned(), data: Bytes::copy_from_slice(data), expected }
    }

    /// Its path, and the bytes of its value.
    fn weight(&self) -> (&[u8], usize) {
        (self.path.as_bytes(), self.data.len())
    }
}

impl Gathered for Write {
    /// None: nothing was done, as the version wasn't the one expected, or may not have been.
    type Answer = Result<Option<Stat>, Failure>;
    type Server = Writer;

    fn joins(&self, batch: &[Job<Write>]) -> bool {
        may_join(batch, self.weight(), Write::weight)
    }

    fn carry_out(writer: &Writer, batch: Vec<Job<Write>>) -> LocalBoxFuture<'static, ()> {
        let writer = writer.clone();
        async move {
            let ready = writer.judge(batch).await;
            writer.write_all(ready).await;
        }
        .boxed_local()
    }
}

/// Who writes what was gathered.
#[derive(Clone)]
pub(super) struct Writer {
    client: Client,
    portion: Arc<Portion>,
}

/// What may be written now, at this version of the znode's.
struct Ready {
    job: Job<Write>,
    version: Option<i32>,
}

impl Writer {
    /// Those that may be written now; the others are told. The batch is of those that expect a version, or of those that don't.
    async fn judge(&self, jobs: Vec<Job<Write>>) -> Vec<Ready> {
        if jobs.iter().all(|job| job.asked.expected.is_none()) {
            return jobs.into_iter().map(|job| Ready { job, version: None }).collect();
        }
        let paths = jobs.iter().map(|job| job.asked.path.as_str());
        // Nothing is done where this fails.
        let reads = read_each(&self.client, &self.portion, true, paths).await.unwrap_or_default();
        let mut reads = reads.into_iter();
        let mut ready = Vec::with_capacity(jobs.len());
        for job in jobs {
            match reads.next().and_then(Result::ok).filter(|(data, stat)| is_as_expected(&job.asked, data, stat)) {
                Some((_, stat)) => ready.push(Ready { job, version: Some(stat.version) }),
                None => job.answer(Ok(None)),
            }
        }
        ready
    }

    async fn write_all(&self, mut ready: Vec<Ready>) {
        if ready.len() > 1 {
            match self.write_together(&ready).await {
                Ok(results) => return tell_written(ready, results),
                // Others may be in the way too, of which this says nothing: new keys often come together.
                Err(MultiWriteError::OperationFailed { index, source }) if index < ready.len() => {
                    let Ready { job, version } = ready.remove(index);
                    job.answer(if version.is_some() { Ok(None) } else { Err(source) });
                    ready = still_ready(ready);
                }
                Err(failure) => {
                    let failure = Failure::from(failure);
                    return ready.into_iter().for_each(|ready| ready.job.answer(Err(failure.clone())));
                }
            }
        }
        join_all(ready.into_iter().map(|ready| self.write_alone(ready))).await;
    }

    async fn write_together(&self, ready: &[Ready]) -> Result<Vec<MultiWriteResult>, MultiWriteError> {
        let mut writer = self.client.new_multi_writer();
        for Ready { job, version } in ready {
            writer.add_set_data(&job.asked.path, &job.asked.data, *version)?;
        }
        writer.commit().await
    }

    /// Sends the request at once.
    fn write_alone(&self, Ready { job, version }: Ready) -> impl Future<Output = ()> {
        let written = self.client.set_data(&job.asked.path, &job.asked.data, version);
        async move {
            let written = written.await;
            job.answer(match written {
                Err(failure) if version.is_some() && is_conflict(&failure) => Ok(None),
                written => written.map(Some),
            });
        }
    }
}

fn is_as_expected(write: &Write, data: &[u8], stat: &Stat) -> bool {
    let is_key = Node::of(*stat, data).is_key() && !node::goes_away(stat);
    is_key && Some(node::version(stat)) == write.expected
}

/// What was looked at a round trip earlier has to be looked at again, by whoever wants it.
fn still_ready(ready: Vec<Ready>) -> Vec<Ready> {
    let (old, still): (Vec<_>, Vec<_>) = ready.into_iter().partition(|ready| ready.version.is_some());
    old.into_iter().for_each(|ready| ready.job.answer(Ok(None)));
    still
}

fn tell_written(ready: Vec<Ready>, results: Vec<MultiWriteResult>) {
    let mut results = results.into_iter();
    for Ready { job, .. } in ready {
        job.answer(match results.next() {
            Some(MultiWriteResult::SetData { stat }) => Ok(Some(stat)),
            other => Err(Failure::UnexpectedError(format!("a set in a multi was answered with {other:?}"))),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat() -> Stat {
        let (czxid, mzxid, pzxid, ctime, mtime, ephemeral_owner) = (1, 1, 1, 0, 0, 0);
        let (version, cversion, aversion, data_length, num_children) = (1, 0, 0, 0, 0);
        Stat {
            czxid,
            mzxid,
            pzxid,
            ctime,
            mtime,
            version,
            cversion,
            aversion,
            ephemeral_owner,
            data_length,
            num_children,
        }
    }

    #[test]
    fn who_does_not_know_multi_read_is_asked_for_one_znode_at_a_time() {
        let portion = Portion::new(Arc::new(AtomicBool::new(true)));
        assert_eq!((portion.size(), portion.are_small()), (16, false));
        (0..20).for_each(|_| portion.learn(&[Stat { data_length: 100, ..stat() }]));
        assert_eq!((portion.size(), portion.are_small()), (MAX_READS, true));
        portion.is_known.store(false, Ordering::Relaxed);
        assert_eq!((portion.size(), portion.are_small()), (1, false));
    }
}
