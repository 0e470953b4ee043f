//! `local`: a durable store in one file, which one process has open at a time.
//!
//! The whole state is in memory too: reads never touch the file. Writes go to one thread, which takes all that wait, decides
//! them one after the other, commits them in one transaction of the file with one fsync, and only then publishes and
//! acknowledges them. What nobody was told of may be lost in a crash, and nobody has read it.

use super::state::{Change, Command, Done, Entry, Path, Refused, State, TTL_RESERVE};
use super::{Embedded, Engine, Published};
use crate::backend::{Backend, Connector};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::key::Namespace;
use crate::types::{BackendKind, Capabilities};
use async_trait::async_trait;
use bytes::Bytes;
use redb::{Database, DatabaseError, ReadableTable, StorageError, TableDefinition, TableHandle, WriteTransaction};
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

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

type Answer = Result<Result<Done, Refused>>;

/// A command with the place for its answer.
struct Job {
    command: Command,
    answer: oneshot::Sender<Answer>,
}

/// A session with the file.
struct Local {
    published: Arc<Published>,
    /// None once the session is closed.
    jobs: RefCell<Option<Sender<Job>>>,
    /// Closed when the writer has closed the file.
    writer: watch::Receiver<()>,
}

impl Local {
    async fn writer_ended(&self) {
        let mut writer = self.writer.clone();
        while writer.changed().await.is_ok() {}
    }
}

#[async_trait(?Send)]
impl Engine for Local {
    fn published(&self) -> &Published {
        &self.published
    }

    async fn submit(&self, command: Command) -> Answer {
        let (answer, wait) = oneshot::channel();
        let sent = match &*self.jobs.borrow() {
            Some(jobs) => jobs.send(Job { command, answer }).is_ok(),
            None => false,
        };
        if !sent {
            return Err(Error::unreachable("the file is closed after a failure; it is opened again"));
        }
        wait.await.unwrap_or_else(|_| Err(Error::indeterminate("the thread that writes the file ended")))
    }

    fn outlives_process_by(&self, ttl: Duration) -> Duration {
        ttl + TTL_RESERVE
    }

    async fn failed(&self) -> Error {
        self.writer_ended().await;
        Error::unreachable("the file could not be written; it is opened again")
    }

    async fn close(&self) -> Result<()> {
        self.jobs.take();
        self.writer_ended().await;
        Ok(())
    }
}

/// Opens one file.
struct LocalConnector {
    file: PathBuf,
    namespace: Namespace,
}

pub(in crate::backend) fn connector(config: &Config) -> Result<Arc<dyn Connector>> {
    Ok(Arc::new(LocalConnector { file: config.location.clone(), namespace: config.namespace.clone() }))
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
        let (jobs, inbox) = channel();
        let (opened, wait) = oneshot::channel();
        let (end, ended) = watch::channel(());
        let (published, file) = (Arc::<Published>::default(), self.file.clone());
        let shared = published.clone();
        let writer = move || {
            let store = File::open(&file).and_then(|mut file| Ok((file.load()?, file)));
            match store {
                Ok((state, file)) => {
                    *shared.write() = state.clone();
                    if opened.send(Ok(())).is_ok() {
                        write(file, state, &shared, &inbox);
                    }
                }
                Err(error) => drop(opened.send(Err(error))),
            }
            drop(end);
        };
        let thread = std::thread::Builder::new().name("kvactor-local".into()).spawn(writer);
        thread.map_err(|error| Error::unreachable("no thread could be started").with_source(error))?;
        // A thread that is gone without a word panicked, as a damaged file can make the storage engine do.
        wait.await.unwrap_or_else(|_| Err(damaged(&self.file, "its contents make no sense")))?;
        let engine = Local { published, jobs: RefCell::new(Some(jobs)), writer: ended };
        Ok(Rc::new(Embedded { kind: BackendKind::Local, namespace: self.namespace.clone(), engine }))
    }
}

/// The writer's loop, which ends when the session is closed or the file can't be written.
fn write(mut file: File, mut state: State, published: &Published, inbox: &Receiver<Job>) {
    let mut pace = Pace::default();
    loop {
        let Ok(jobs) = next_jobs(inbox, state.next_expiry(), &pace) else { return };
        let (now, batch) = (Instant::now(), jobs.len());
        let mut changes = state.due(now);
        state.apply(changes.clone());
        let mut answers = Vec::with_capacity(jobs.len());
        for Job { command, answer } in jobs {
            let decided = state.decide(&command, now).map(|(made, done)| {
                state.apply(made.clone());
                changes.extend(made);
                done
            });
            answers.push((answer, decided));
        }
        if let Err(error) = file.commit(&changes, state.revision()) {
            let failed = Error::indeterminate("the file could not be written").with_source(error);
            answers.into_iter().for_each(|(answer, _)| drop(answer.send(Err(failed.clone()))));
            // Nobody has begun with these.
            let untouched = || Error::unreachable("the file could not be written; it is opened again");
            inbox.try_iter().for_each(|job| drop(job.answer.send(Err(untouched()))));
            return;
        }
        pace = Pace { batch, commit: now.elapsed() };
        published.write().apply(changes);
        answers.into_iter().for_each(|(answer, decided)| drop(answer.send(Ok(decided))));
    }
}

/// The session is over.
struct Closed;

/// The batch before, by which the next is gathered.
#[derive(Default)]
struct Pace {
    batch: usize,
    commit: Duration,
}

/// All commands that wait, once there is one; none when an entry's time is over first.
///
/// Callers who were answered together come back together, but not at one instant: without a moment's patience the first to
/// come back would be committed alone, and all others a whole commit later.
fn next_jobs(inbox: &Receiver<Job>, expiry: Option<Instant>, pace: &Pace) -> Result<Vec<Job>, Closed> {
    let first = match expiry {
        None => inbox.recv().map_err(|_| Closed)?,
        Some(at) => match inbox.recv_timeout(at.saturating_duration_since(Instant::now())) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => return Ok(Vec::new()),
            Err(RecvTimeoutError::Disconnected) => return Err(Closed),
        },
    };
    let mut jobs = vec![first];
    let patience = Instant::now() + pace.commit / 2;
    while jobs.len() < pace.batch.min(BATCH) {
        let Ok(job) = inbox.recv_timeout(patience.saturating_duration_since(Instant::now())) else { break };
        jobs.push(job);
    }
    jobs.extend(inbox.try_iter().take(BATCH.saturating_sub(jobs.len())));
    Ok(jobs)
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
        let purged: Vec<Change> = expired.into_iter().map(|path| Change { path, entry: None }).collect();
        self.commit(&purged, revision).map_err(|error| damaged(&self.path, error))?;
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
                    stored.entries.push((path, Entry { value, revision, expires }));
                }
            }
        }
        transaction.commit()?;
        Ok(stored)
    }

    /// Makes the changes durable.
    fn commit(&mut self, changes: &[Change], revision: u64) -> Result<(), redb::Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let transaction = self.database.begin_write()?;
        {
            let mut entries = transaction.open_table(ENTRIES)?;
            for Change { path, entry } in changes {
                match entry {
                    Some(entry) => {
                        let row = (entry.revision, unix_millis(entry.expires), entry.value.as_ref());
                        entries.insert(path.as_ref(), row)?;
                    }
                    None => drop(entries.remove(path.as_ref())?),
                }
            }
            transaction.open_table(META)?.insert(REVISION, revision)?;
        }
        Ok(transaction.commit()?)
    }
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
fn unix_millis(expires: Option<Instant>) -> u64 {
    let Some(expires) = expires else { return 0 };
    let at = SystemTime::now() + expires.saturating_duration_since(Instant::now());
    at.duration_since(UNIX_EPOCH).map_or(1, |at| at.as_millis() as u64 + 1)
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
