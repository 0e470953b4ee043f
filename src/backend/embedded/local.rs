//! `local`: a durable store in one file, which one process has open at a time.
//!
//! The whole state is in memory too: reads never touch the file. Writes go to one thread, which takes all that wait, decides
//! them one after the other, commits them in one transaction of the file with one fsync, and only then publishes and
//! acknowledges them. What nobody was told of may be lost in a crash, and nobody has read it.

use super::state::{Change, Command, Done, Entry, Path, Refused, State, TTL_RESERVE};
use super::{Answer, Embedded, Engine, Published, Submitted};
use crate::backend::{Backend, Connector};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::key::Namespace;
use crate::types::{BackendKind, Capabilities};
use async_trait::async_trait;
use bytes::Bytes;
use redb::{
    Database, DatabaseError, ReadableTable, StorageError, Table, TableDefinition, TableHandle, WriteTransaction,
};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio::time::Instant;
use tracing::trace;

/// Path -> revision, expiry as Unix time in milliseconds (0: none), value.
const ENTRIES: TableDefinition<'_, &str, (u64, u64, &[u8])> = TableDefinition::new("entries");
/// Facts about the store itself.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const FORMAT: &str = "format";
/// The version of the two tables above.
const FORMAT_VERSION: u64 = 1;

/// How many commands are committed together at the most; it bounds the memory of a transaction, not the rate.
const BATCH: usize = 4096;

/// In about how many portions a batch that still arrives is carried out.
const PORTIONS: usize = 4;

/// A session with the file.
struct Local {
    published: Arc<Published>,
    jobs: Arc<Queue>,
    /// Closed when the writer has closed the file.
    writer: watch::Receiver<()>,
}

impl Local {
    async fn writer_ended(&self) {
        let mut writer = self.writer.clone();
        while writer.changed().await.is_ok() {}
    }
}

/// A session may be lost without being closed: after a panic, or a call that took too long. The file is to be opened again.
impl Drop for Local {
    fn drop(&mut self) {
        self.jobs.close();
    }
}

#[async_trait(?Send)]
impl Engine for Local {
    fn published(&self) -> &Arc<Published> {
        &self.published
    }

    fn submit(&self, command: Command, permit: Option<OwnedSemaphorePermit>) -> Submitted {
        let (answer, wait) = oneshot::channel();
        match self.jobs.push(command, Caller { answer, permit }) {
            Ok(()) => Submitted::Waits(wait),
            Err(Closed) => {
                Submitted::Done(Err(Error::unreachable("the file is closed after a failure; it is opened again")))
            }
        }
    }

    fn end_calls(&self) {
        self.jobs.end_calls();
    }

    fn outlives_process_by(&self, ttl: Duration) -> Duration {
        ttl + TTL_RESERVE
    }

    async fn failed(&self) -> Error {
        self.writer_ended().await;
        Error::unreachable("the file could not be written; it is opened again")
    }

    async fn close(&self) -> Result<()> {
        self.jobs.close();
        self.writer_ended().await;
        Ok(())
    }
}

/// Opens one file.
struct LocalConnector {
    file: PathBuf,
    namespace: Namespace,
    before: Mutex<Option<Writer>>,
}

/// The writer of a session, by which its file is taken from it.
#[derive(Clone)]
struct Writer {
    jobs: Arc<Queue>,
    /// Closed when it has closed the file.
    ended: watch::Receiver<()>,
}

impl LocalConnector {
    /// Takes the file from the session before, to which calls may cling until there is another, and waits until its writer has let
    /// go, which a slow disk may delay.
    async fn turn(&self, next: Writer) {
        // A panic can't leave it half changed.
        let place = || self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let before = place().clone();
        if let Some(Writer { jobs, mut ended }) = before {
            jobs.close();
            while ended.changed().await.is_ok() {}
        }
        *place() = Some(next);
    }
}

pub(in crate::backend) fn connector(config: &Config) -> Result<Arc<dyn Connector>> {
    let (file, namespace) = (config.location.clone(), config.namespace.clone());
    Ok(Arc::new(LocalConnector { file, namespace, before: Mutex::default() }))
}

#[async_trait(?Send)]
impl Connector for LocalConnector {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(BackendKind::Local)
    }

    fn endpoints(&self) -> Vec<String> {
        vec![format!("local://{}", self.file.display())]
    }

    /// A large file takes its time to be read and checked, and there is no other to turn to.
    fn connect_within(&self) -> Option<Duration> {
        Some(Duration::from_secs(24 * 3600))
    }

    async fn connect(&self, _: usize) -> Result<Rc<dyn Backend>> {
        let jobs = Arc::<Queue>::default();
        let (opened, wait) = oneshot::channel();
        let (end, ended) = watch::channel(());
        self.turn(Writer { jobs: jobs.clone(), ended: ended.clone() }).await;
        let (published, file) = (Arc::<Published>::default(), self.file.clone());
        let (shared, inbox) = (published.clone(), jobs.clone());
        let writer = move || {
            // However this thread ends, nobody may wait for it any more.
            let inbox = ClosedAtEnd(inbox);
            let store = File::open(&file).and_then(|mut file| Ok((file.load()?, file)));
            match store {
                Ok((state, file)) => {
                    shared.write().state = state.clone();
                    if opened.send(Ok(())).is_ok() {
                        write(file, state, &shared, &inbox.0);
                    }
                }
                Err(error) => drop(opened.send(Err(error))),
            }
            drop(end);
        };
        let thread = std::thread::Builder::new().name("kvactor-local".into()).spawn(writer);
        thread.map_err(|error| Error::unreachable("no thread could be started").with_source(error))?;
        // Who doesn't wait for the end of this drops it, and the writer goes too.
        let engine = Local { published, jobs, writer: ended };
        // A thread that is gone without a word panicked, as a damaged file can make the storage engine do.
        wait.await.unwrap_or_else(|_| Err(damaged(&self.file, "its contents make no sense")))?;
        let namespace = self.namespace.clone();
        Ok(Rc::new(Arc::new(Embedded { kind: BackendKind::Local, namespace, engine })))
    }
}

/// The writer's loop, which ends when the session is closed or the file can't be written.
fn write(file: File, mut state: State, published: &Published, inbox: &Queue) {
    let mut pace = Pace::default();
    while inbox.wait(state.next_expiry()).is_ok() {
        let mut batch = Batch { pace, decided: Vec::new(), changes: Vec::new() };
        let commit = match file.carry_out(&mut batch, &mut state, inbox) {
            Ok(commit) => commit,
            Err(error) => return inbox.fail(Error::indeterminate("the file could not be written").with_source(error)),
        };
        let Batch { decided, changes, .. } = batch;
        trace!(file = %file.path.display(), commands = decided.len(), took = ?commit, "committed");
        published.write().apply(changes);
        pace = inbox.answer(decided, commit);
    }
}

/// What is committed together.
struct Batch {
    pace: Pace,
    /// What came of the commands, in their order.
    decided: Vec<Result<Done, Refused>>,
    changes: Vec<Change>,
}

impl Batch {
    /// Decides commands, and makes their changes in the state and in a table of the file.
    fn make(
        &mut self,
        commands: Vec<Command>,
        state: &mut State,
        entries: &mut Entries<'_>,
    ) -> Result<(), StorageError> {
        // Behind the moment at which the last of them was given: what its caller saw to be over is over.
        let now = Instant::now();
        self.change(state.due(now), state, entries)?;
        for command in commands {
            let decided = match state.decide(&command, now) {
                Ok((changes, done)) => {
                    self.change(changes, state, entries)?;
                    Ok(done)
                }
                Err(refused) => Err(refused),
            };
            self.decided.push(decided);
        }
        Ok(())
    }

    fn change(
        &mut self,
        changes: Vec<Change>,
        state: &mut State,
        entries: &mut Entries<'_>,
    ) -> Result<(), StorageError> {
        for change in changes {
            store(&change, entries)?;
            state.apply(change.clone());
            self.changes.push(change);
        }
        Ok(())
    }
}

/// The session is over.
struct Closed;

/// Who gave a command.
struct Caller {
    answer: oneshot::Sender<Answer>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Caller {
    fn answer(self, answer: Answer) {
        // First, so that who has the answer finds the permit.
        drop(self.permit);
        let _ = self.answer.send(answer);
    }
}

/// The commands that wait for the writer. It is woken a few times for a batch, not once for each command.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    enough: Condvar,
}

#[derive(Default)]
struct Waiting {
    commands: Vec<Command>,
    /// Those who have no answer yet: first those whose commands the writer is at work on, then those of `commands`. One who
    /// was told that the session is over leaves a gap.
    callers: VecDeque<Option<Caller>>,
    /// How many commands the writer wants to be woken for; 0 while it is at work.
    wanted: usize,
    closed: bool,
}

/// What the batch before says of the next.
#[derive(Clone, Copy, Default)]
struct Pace {
    /// How many commands are likely to come.
    expected: usize,
    /// For how long they are waited for.
    until: Option<Instant>,
}

impl Queue {
    fn push(&self, command: Command, caller: Caller) -> Result<(), Closed> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(Closed);
        }
        waiting.commands.push(command);
        waiting.callers.push_back(Some(caller));
        let enough = waiting.commands.len() == waiting.wanted;
        drop(waiting);
        if enough {
            self.enough.notify_one();
        }
        Ok(())
    }

    /// Lets the writer finish what waits and end.
    fn close(&self) {
        self.lock().closed = true;
        self.enough.notify_one();
    }

    /// Nobody waits any longer. What was taken is still carried out.
    fn end_calls(&self) {
        let mut waiting = self.lock();
        let ended = || Error::indeterminate("the session ended before the answer came");
        waiting.callers.iter_mut().filter_map(Option::take).for_each(|caller| caller.answer(Err(ended())));
    }

    /// Waits until there is a command, or an entry's time is over.
    fn wait(&self, expiry: Option<Instant>) -> Result<(), Closed> {
        let waiting = self.wait_for(1, expiry, self.lock());
        match waiting.closed && waiting.commands.is_empty() {
            true => Err(Closed),
            false => Ok(()),
        }
    }

    /// The next commands of a batch that has `taken` already; none when it is whole.
    ///
    /// Callers who were answered together come back together, but not at one instant: without a moment's patience they would
    /// fall apart into two groups that wait for each other's commits, each half as large as it could be. What has come is
    /// carried out meanwhile, in a few portions.
    fn more(&self, taken: usize, pace: &Pace) -> Vec<Command> {
        let mut waiting = self.lock();
        let missing = pace.expected.min(BATCH).saturating_sub(taken);
        if taken > 0 && missing == 0 {
            return Vec::new();
        }
        if waiting.commands.len() < missing {
            waiting = self.wait_for((missing / PORTIONS).max(1), pace.until, waiting);
        }
        let rest = waiting.commands.len().min(BATCH - taken);
        let rest = waiting.commands.split_off(rest);
        std::mem::replace(&mut waiting.commands, rest)
    }

    /// Answers the commands that the writer was at work on.
    fn answer(&self, decided: Vec<Result<Done, Refused>>, commit: Duration) -> Pace {
        let mut waiting = self.lock();
        let callers: Vec<_> = waiting.callers.drain(..decided.len()).collect();
        let expected = callers.len() + waiting.commands.len();
        drop(waiting);
        for (caller, decided) in callers.into_iter().zip(decided) {
            caller.into_iter().for_each(|caller| caller.answer(Ok(decided)));
        }
        Pace { expected, until: Some(Instant::now() + commit) }
    }

    /// Answers the commands that the writer was at work on: nobody knows what became of them.
    fn fail(&self, error: Error) {
        let mut waiting = self.lock();
        let at_work = waiting.callers.len() - waiting.commands.len();
        let callers = waiting.callers.drain(..at_work).flatten();
        callers.for_each(|caller| caller.answer(Err(error.clone())));
    }

    /// Waits until there are so many commands, the time has come, or the session is closed.
    fn wait_for<'a>(
        &'a self,
        wanted: usize,
        until: Option<Instant>,
        mut waiting: MutexGuard<'a, Waiting>,
    ) -> MutexGuard<'a, Waiting> {
        waiting.wanted = wanted;
        while waiting.commands.len() < wanted && !waiting.closed {
            waiting = match until {
                None => self.enough.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.enough.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        waiting.wanted = 0;
        waiting
    }

    /// A panic can't leave the commands half changed.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer's end of the queue.
struct ClosedAtEnd(Arc<Queue>);

impl Drop for ClosedAtEnd {
    fn drop(&mut self) {
        self.0.close();
        self.0.fail(Error::indeterminate("the thread that writes the file ended"));
        // Nobody has begun with what is left.
        let mut waiting = self.0.lock();
        waiting.commands.clear();
        let untouched = || Error::unreachable("the file could not be written; it is opened again");
        waiting.callers.drain(..).flatten().for_each(|caller| caller.answer(Err(untouched())));
    }
}

/// The file.
struct File {
    database: Database,
    path: PathBuf,
}

impl File {
    fn open(path: &std::path::Path) -> Result<Self> {
        let mut database = Database::create(path).map_err(|error| cannot_open(path, error))?;
        // All of it is read right afterwards: what the checksums don't cover would be taken for the truth.
        match database.check_integrity() {
            Ok(true) => {}
            Ok(false) => return Err(damaged(path, "its checksums are wrong")),
            Err(error) => return Err(cannot_open(path, error)),
        }
        sync_directory(path).map_err(|error| damaged(path, error))?;
        Ok(File { database, path: path.to_owned() })
    }

    /// The state as it was committed last, without the entries whose time is over; those go from the file as well.
    fn load(&mut self) -> Result<State> {
        let Stored { revision, entries, expired } = self.read().map_err(|error| damaged(&self.path, error))?;
        let revision = revision + expired.len() as u64;
        let purged: Vec<Change> = expired.into_iter().map(|path| Change { path, entry: None, revision }).collect();
        if !purged.is_empty() {
            self.commit(&purged, revision).map_err(|error| damaged(&self.path, error))?;
        }
        Ok(State::restore(revision, entries))
    }

    /// Reads everything, and makes a new file's tables.
    fn read(&self) -> Result<Stored, redb::Error> {
        let transaction = self.database.begin_write()?;
        let mut stored = Stored { revision: begin(&transaction)?, ..Stored::default() };
        for item in transaction.open_table(ENTRIES)?.iter()? {
            let (path, row) = item?;
            let (path, (revision, expires, value)) = (Path::from(path.value()), row.value());
            match remaining(expires) {
                Remaining::Over => stored.expired.push(path),
                Remaining::Until(expires) => {
                    let value = Bytes::copy_from_slice(value);
                    stored.entries.push((path, Entry::new(value, revision, expires)));
                }
            }
        }
        transaction.commit()?;
        Ok(stored)
    }

    /// Makes the changes durable.
    fn commit(&self, changes: &[Change], revision: u64) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        let mut entries = transaction.open_table(ENTRIES)?;
        changes.iter().try_for_each(|change| store(change, &mut entries))?;
        drop(entries);
        finish(transaction, revision)
    }

    /// Gathers a batch, carries it out and makes it durable, and returns how long that last step took. Almost all else is done
    /// while the batch still arrives.
    fn carry_out(&self, batch: &mut Batch, state: &mut State, inbox: &Queue) -> Result<Duration, redb::Error> {
        let transaction = self.database.begin_write()?;
        let mut entries = transaction.open_table(ENTRIES)?;
        loop {
            let commands = inbox.more(batch.decided.len(), &batch.pace);
            let whole = commands.is_empty();
            batch.make(commands, state, &mut entries)?;
            if whole {
                break;
            }
        }
        drop(entries);
        let begun = Instant::now();
        match batch.changes.is_empty() {
            true => transaction.abort()?,
            false => finish(transaction, state.revision())?,
        }
        Ok(begun.elapsed())
    }
}

/// The entries in a file that is being written.
type Entries<'a> = Table<'a, &'static str, (u64, u64, &'static [u8])>;

/// Makes a change in the file.
fn store(change: &Change, entries: &mut Entries<'_>) -> Result<(), StorageError> {
    match &change.entry {
        Some(entry) => {
            let row = (entry.revision, stored_expiry(entry), entry.value.as_ref());
            entries.insert(change.path.as_ref(), row).map(drop)
        }
        None => entries.remove(change.path.as_ref()).map(drop),
    }
}

fn finish(transaction: WriteTransaction, revision: u64) -> Result<(), redb::Error> {
    transaction.open_table(META)?.insert(REVISION, revision)?;
    Ok(transaction.commit()?)
}

/// Makes the file's name durable, which is the directory's affair: without it a new file may be gone after a power cut.
#[cfg(unix)]
fn sync_directory(file: &std::path::Path) -> std::io::Result<()> {
    match file.parent() {
        Some(directory) => std::fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Elsewhere directories can't be synced, nor need they be.
#[cfg(not(unix))]
fn sync_directory(_: &std::path::Path) -> std::io::Result<()> {
    Ok(())
}

/// What a file holds.
#[derive(Default)]
struct Stored {
    revision: u64,
    entries: Vec<(Path, Entry)>,
    expired: Vec<Path>,
}

/// Checks, or writes, what says that the file is ours, and returns the revision of the latest change.
fn begin(transaction: &WriteTransaction) -> Result<u64, redb::Error> {
    let foreign = transaction.list_tables()?.any(|table| table.name() != ENTRIES.name() && table.name() != META.name());
    if foreign {
        return Err(redb::Error::Corrupted("the tables of another program are in it".into()));
    }
    let mut meta = transaction.open_table(META)?;
    let format = meta.insert(FORMAT, FORMAT_VERSION)?.map_or(FORMAT_VERSION, |format| format.value());
    if format != FORMAT_VERSION {
        return Err(redb::Error::Corrupted(format!("this version of kvactor does not know the format {format}")));
    }
    Ok(meta.get(REVISION)?.map_or(0, |revision| revision.value()))
}

/// What is left of a stored entry's time.
enum Remaining {
    Over,
    Until(Option<Instant>),
}

fn remaining(expires: u64) -> Remaining {
    if expires == 0 {
        return Remaining::Until(None);
    }
    let at = UNIX_EPOCH + Duration::from_millis(expires);
    match at.duration_since(SystemTime::now()) {
        Ok(left) => Remaining::Until(Some(Instant::now() + left)),
        Err(_) => Remaining::Over,
    }
}

/// The wall-clock time of an instant, for the file. Rounded up: a key never goes before its time.
/// An expiry that is over whenever it is read.
const OVER: u64 = 1;

/// When the entry goes by itself, as the file says it. A lock's holders are of the process that has the file open: at the next
/// opening nobody holds it.
fn stored_expiry(entry: &Entry) -> u64 {
    if entry.lock.is_some() { OVER } else { unix_millis(entry.expires) }
}

fn unix_millis(expires: Option<Instant>) -> u64 {
    let Some(expires) = expires else { return 0 };
    let at = SystemTime::now() + expires.saturating_duration_since(Instant::now());
    at.duration_since(UNIX_EPOCH).map_or(OVER, |at| at.as_millis() as u64 + 1)
}

fn cannot_open(path: &std::path::Path, error: DatabaseError) -> Error {
    let shown = path.display();
    let invalid = |reason: String| Error::invalid_config(format!("file `{shown}`"), reason);
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
            let advice = "is open already, here or in another process; clone the `Store` or close it there first";
            Error::unreachable(format!("`{shown}` {advice}"))
        }
        DatabaseError::Storage(StorageError::Io(error)) => match error.kind() {
            std::io::ErrorKind::NotFound => invalid("its directory does not exist; make it first".into()),
            std::io::ErrorKind::PermissionDenied => invalid("this process may not read and write it".into()),
            std::io::ErrorKind::IsADirectory => invalid("it is a directory".into()),
            _ => damaged(path, error),
        },
        other => damaged(path, other),
    }
}

fn damaged(path: &std::path::Path, why: impl std::fmt::Display) -> Error {
    let advice = "it is no kvactor store or is damaged; restore it from a backup, or move it away to begin anew";
    Error::backend(format!("`{}` can't be used: {why}; {advice}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;
    use futures_util::FutureExt;
    use redb::StorageBackend;
    use redb::backends::InMemoryBackend;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use tokio::sync::Semaphore;

    /// A disk that fails when it is told to.
    #[derive(Debug)]
    struct Disk {
        memory: InMemoryBackend,
        broken: Arc<AtomicBool>,
        /// It hangs while somebody has this.
        hanging: Arc<Mutex<()>>,
    }

    impl Disk {
        fn new(broken: &Arc<AtomicBool>) -> Self {
            Disk { memory: InMemoryBackend::new(), broken: broken.clone(), hanging: Arc::default() }
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> Result<u64, std::io::Error> {
            self.memory.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
            self.memory.read(offset, out)
        }
        fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
            self.memory.set_len(len)
        }
        fn sync_data(&self) -> Result<(), std::io::Error> {
            let _hangs = self.hanging.lock().unwrap();
            match self.broken.load(SeqCst) {
                true => Err(std::io::Error::other("the disk is broken")),
                false => self.memory.sync_data(),
            }
        }
        fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
            self.memory.write(offset, data)
        }
    }

    fn put(path: &str) -> Command {
        Command::Put { path: path.into(), value: Bytes::from_static(b"v"), ttl: None }
    }

    fn push(queue: &Queue, path: &str) -> oneshot::Receiver<Answer> {
        let (answer, wait) = oneshot::channel();
        assert!(queue.push(put(path), Caller { answer, permit: None }).is_ok());
        wait
    }

    /// A session with a file on that disk, and its writer.
    fn open(disk: Disk) -> (Local, std::thread::JoinHandle<()>) {
        let database = Database::builder().create_with_backend(disk).unwrap();
        let mut file = File { database, path: "a disk of a test".into() };
        let state = file.load().unwrap();
        let (published, queue) = (Arc::<Published>::default(), Arc::<Queue>::default());
        let (end, writer) = watch::channel(());
        let (shared, inbox) = (published.clone(), ClosedAtEnd(queue.clone()));
        let thread = std::thread::spawn(move || {
            write(file, state, &shared, &inbox.0);
            drop((inbox, end));
        });
        (Local { published, jobs: queue, writer }, thread)
    }

    async fn run(engine: &Local, path: &str) -> Answer {
        engine.submit(put(path), None).answer().await
    }

    /// What a failed commit may have made durable is indeterminate, what comes behind it certainly isn't done, and nobody has
    /// read either.
    #[tokio::test]
    async fn a_broken_disk_ends_the_session_and_every_call() {
        let broken = Arc::new(AtomicBool::new(false));
        let (engine, thread) = open(Disk::new(&broken));
        let fine = run(&engine, "a").await.unwrap();
        assert_eq!(fine, Ok(Done::At(1)));
        broken.store(true, SeqCst);
        let lost = push(&engine.jobs, "b").await.unwrap();
        assert!(matches!(lost, Err(Error::Indeterminate { .. })), "{lost:?}");
        assert!(matches!(engine.failed().await, Error::Unreachable { .. }));
        let refused = run(&engine, "c").await;
        assert!(matches!(refused, Err(Error::Unreachable { .. })), "{refused:?}");
        assert!(engine.published().read().state.present("b").is_none());
        engine.close().await.unwrap();
        thread.join().unwrap();
    }

    /// A session that is given up without being closed, as after a panic, must not have the file open for ever.
    #[tokio::test]
    async fn the_writer_ends_with_the_session() {
        let (engine, thread) = open(Disk::new(&Arc::default()));
        let waits = engine.submit(put("a"), None);
        drop(engine);
        thread.join().unwrap();
        assert_eq!(waits.answer().await.unwrap(), Ok(Done::At(1)));
    }

    /// A disk that hangs holds nobody up whose session is over, nor the permits.
    #[tokio::test]
    async fn calls_end_with_the_session_while_the_disk_hangs() {
        let disk = Disk::new(&Arc::default());
        let (hanging, permits) = (disk.hanging.clone(), Arc::new(Semaphore::new(2)));
        let (engine, thread) = open(disk);
        let hung = hanging.lock().unwrap();
        let submit = |path| engine.submit(put(path), Some(permits.clone().try_acquire_owned().unwrap()));
        let (at_work, waiting) = (submit("a"), submit("b"));
        assert_eq!(permits.available_permits(), 0);
        engine.end_calls();
        assert_eq!(permits.available_permits(), 2);
        for call in [at_work, waiting] {
            let ended = call.answer().now_or_never();
            assert!(matches!(ended, Some(Err(Error::Indeterminate { .. }))), "{ended:?}");
        }
        drop(hung);
        // Nobody mixes the answers of those who are gone up with those of others.
        assert!(matches!(run(&engine, "c").await, Ok(Ok(Done::At(3)))));
        engine.close().await.unwrap();
        thread.join().unwrap();
    }

    fn connector(file: &std::path::Path) -> LocalConnector {
        LocalConnector { file: file.to_owned(), namespace: Namespace::default(), before: Mutex::default() }
    }

    /// A session is not always closed: a panic, or a call that took too long, ends it as well, and other calls cling to it.
    #[tokio::test]
    async fn a_session_that_is_lost_leaves_the_file_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let connector = connector(&folder.path().join("store.redb"));
        let (key, mut lost) = (Key::parse("k").unwrap(), Vec::new());
        for round in 0..10 {
            let session = connector.connect(0).await.unwrap();
            session.put(&key, &Bytes::from(round.to_string())).await.unwrap();
            lost.extend((round % 2 == 0).then_some(session));
        }
        for session in &lost {
            let late = session.put(&key, &Bytes::new()).await;
            assert!(matches!(late, Err(Error::Unreachable { .. })), "{late:?}");
        }
        let session = connector.connect(0).await.unwrap();
        assert_eq!(session.get(&key, Default::default()).await.unwrap().value, "9");
    }

    /// Nor is an attempt always seen to its end.
    #[tokio::test]
    async fn an_attempt_that_is_given_up_leaves_the_file_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let connector = connector(&folder.path().join("store.redb"));
        for _ in 0..10 {
            assert!(connector.connect(0).now_or_never().is_none());
            connector.connect(0).await.unwrap();
        }
    }

    /// Whoever waits when the writer ends learns that nothing was done.
    #[tokio::test]
    async fn what_the_writer_never_took_is_not_done() {
        let queue = Arc::<Queue>::default();
        let waiting = push(&queue, "a");
        drop(ClosedAtEnd(queue.clone()));
        let answer = waiting.await.unwrap();
        assert!(matches!(answer, Err(Error::Unreachable { .. })), "{answer:?}");
        let (answer, _wait) = oneshot::channel();
        assert!(queue.push(put("b"), Caller { answer, permit: None }).is_err());
    }

    /// Nor does anybody claim that of what it took and has no word of.
    #[tokio::test]
    async fn what_the_writer_took_before_it_panicked_is_indeterminate() {
        let queue = Arc::<Queue>::default();
        let taken = push(&queue, "a");
        assert_eq!(queue.more(0, &Pace::default()).len(), 1);
        let waiting = push(&queue, "b");
        drop(ClosedAtEnd(queue));
        assert!(matches!(taken.await.unwrap(), Err(Error::Indeterminate { .. })));
        assert!(matches!(waiting.await.unwrap(), Err(Error::Unreachable { .. })));
    }

    #[test]
    fn the_writer_takes_what_waits_before_it_ends() {
        let queue = Queue::default();
        let _answers = (push(&queue, "a"), push(&queue, "b"));
        queue.close();
        assert!(queue.wait(None).is_ok());
        assert_eq!(queue.more(0, &Pace::default()).len(), 2);
        assert!(queue.more(2, &Pace::default()).is_empty());
        assert!(queue.wait(None).is_err());
    }

    #[test]
    fn the_writer_waits_for_those_it_answered_but_not_long() {
        let queue = Queue::default();
        let _answer = push(&queue, "a");
        let patience = Duration::from_millis(20);
        let begun = std::time::Instant::now();
        let pace = Pace { expected: 3, until: Some(Instant::now() + patience) };
        assert_eq!(queue.more(0, &pace).len(), 1);
        assert!(queue.more(1, &pace).is_empty());
        assert!(begun.elapsed() >= patience);
    }

    /// Those who came while it was answering others are expected once, not twice: nobody waits for callers who don't exist.
    #[test]
    fn the_writer_expects_those_it_answered_and_those_who_wait() {
        let queue = Queue::default();
        let _answers = (push(&queue, "a"), push(&queue, "b"));
        assert_eq!(queue.more(0, &Pace::default()).len(), 2);
        let _answer = push(&queue, "c");
        let pace = queue.answer(vec![Ok(Done::At(1)), Ok(Done::At(2))], Duration::ZERO);
        assert_eq!(pace.expected, 3);
    }
}
