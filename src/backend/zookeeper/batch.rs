//! A multi: several changes that ZooKeeper applies all or none.

use super::contender;
use super::node::{self, ANY_VERSION};
use super::published::Published;
use super::session::Session;
use futures_util::future::{Either, ready};
use futures_util::{FutureExt, TryFutureExt};
use zookeeper_client::{CreateMode, Error as Failure, MultiWriteResult, MultiWriter, Stat};

/// The largest multi that is sent. The server's limit for a packet is 1,048,575 bytes by default; above it the server cuts
/// the connection.
pub(super) const MAX_BYTES: usize = 1_048_575 - 4096;

/// What an operation takes in a packet beside its path and data: headers, lengths, version, flags and ACL.
const OVERHEAD: usize = 16 * size_of::<u32>();

/// Collects the operations of a multi.
pub(super) struct Batch<'s> {
    session: &'s Session,
    writer: MultiWriter<'s>,
    operations: usize,
    bytes: usize,
    /// An operation that the client library does not take.
    broken: Option<Failure>,
}

impl<'s> Batch<'s> {
    pub(super) fn new(session: &'s Session) -> Self {
        Batch { session, writer: session.client.new_multi_writer(), operations: 0, bytes: 0, broken: None }
    }

    /// How many operations there are.
    pub(super) fn len(&self) -> usize {
        self.operations
    }

    /// How large the packet gets, at most.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn check(&mut self, path: &str, version: i32) {
        let added = self.writer.add_check_version(path, version);
        self.added(added, path.len());
    }

    /// Makes an empty znode: a directory, or a key about to be [`set`](Batch::set).
    pub(super) fn create(&mut self, path: &str, mode: CreateMode) {
        self.create_with(path, &[], mode);
    }

    pub(super) fn create_with(&mut self, path: &str, data: &[u8], mode: CreateMode) {
        let added = self.writer.add_create(path, data, &mode.with_acls(self.session.acls));
        self.added(added, path.len() + data.len());
    }

    pub(super) fn set(&mut self, path: &str, data: &[u8], version: i32) {
        let added = self.writer.add_set_data(path, data, Some(version));
        self.added(added, path.len() + data.len());
    }

    pub(super) fn delete(&mut self, path: &str, version: i32) {
        let added = self.writer.add_delete(path, Some(version));
        self.added(added, path.len());
    }

    /// Makes a key. The stat that a create inside a multi is answered with may be garbage (ZOOKEEPER-4026); a set's isn't.
    pub(super) fn create_key(&mut self, path: &str, data: &[u8], mode: CreateMode) {
        self.create(path, mode);
        self.set(path, data, 0);
    }

    /// Makes a key in the place of a znode just deleted at version `before`. It gets another version, so that nobody who is
    /// about to change the old one changes the new one instead.
    pub(super) fn create_key_anew(&mut self, path: &str, data: &[u8], mode: CreateMode, before: i32) {
        self.create(path, mode);
        if before == 1 {
            self.set(path, &[], 0);
        }
        self.set(path, data, i32::from(before == 1));
    }

    /// Publishes this value for the contender of ours that has these twins. It ends with the set of the first.
    pub(super) fn publish(&mut self, [first, second]: &[String; 2], data: &[u8]) {
        self.announce(second);
        self.change(first, data);
    }

    /// Gives a contender of ours this value, by the first of its twins, published or not.
    pub(super) fn change(&mut self, first: &str, data: &[u8]) {
        self.nudge(first);
        self.set(first, data, ANY_VERSION);
    }

    /// Publishes what a contender of ours has as its value, by the second of its twins.
    pub(super) fn announce(&mut self, second: &str) {
        self.set(second, &[], ANY_VERSION);
    }

    /// Takes away what the holder of a lock published.
    pub(super) fn unpublish(&mut self, published: &Published) {
        self.nudge(&published.path);
        self.set(&published.path, node::MARKER, published.stat.version);
    }

    /// Who watches a lock watches its znode, and hears if children of that come and go, but not if a contender is written to.
    fn nudge(&mut self, contender: &str) {
        let nudge = contender::nudge_beside(contender);
        self.create(&nudge, CreateMode::Ephemeral);
        self.delete(&nudge, 0);
    }

    fn added(&mut self, added: Result<(), Failure>, bytes: usize) {
        self.operations += 1;
        self.bytes += bytes + OVERHEAD;
        if let Err(failure) = added {
            self.broken.get_or_insert(failure);
        }
    }

    /// Sends the multi at once; the future waits for the answer: for each operation the stat of a znode that was set.
    pub(super) fn send(mut self) -> impl Future<Output = Result<Vec<Option<Stat>>, Failure>> + use<'s> {
        let sent = match self.broken {
            Some(failure) => Either::Left(ready(Err(failure))),
            None => Either::Right(self.writer.commit().map_err(Failure::from)),
        };
        sent.map_ok(|results| results.into_iter().map(set_stat).collect())
    }

    /// As [`send`](Batch::send), for a multi that ends with a set, whose stat is returned.
    pub(super) fn send_for_stat(self) -> impl Future<Output = Result<Stat, Failure>> + use<'s> {
        self.send().map(|stats| {
            let stat = stats?.pop().flatten();
            stat.ok_or_else(|| Failure::UnexpectedError("a multi was answered without the stat of its set".into()))
        })
    }
}

fn set_stat(result: MultiWriteResult) -> Option<Stat> {
    match result {
        MultiWriteResult::SetData { stat } => Some(stat),
        _ => None,
    }
}

/// Whether a multi or a write pinned to a version failed because the znodes were not as expected. It had no effect then.
pub(super) fn is_conflict(failure: &Failure) -> bool {
    matches!(failure, Failure::NoNode | Failure::NodeExists | Failure::BadVersion | Failure::NotEmpty)
}
