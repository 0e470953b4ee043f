//! Transactions.
//!
//! A multi is all or nothing, but it can't read, and all it can expect of a znode is a version. So a transaction looks at its
//! keys, judges the checks, and sends a multi that is pinned to what it saw: to the versions, and to absence by making a
//! znode and deleting it again. Where that meets a conflict nothing was changed, and the transaction looks anew. That a lock is
//! free can't be pinned: one may be taken between the look and the multi.

use super::batch::{self, Batch, is_conflict};
use super::errors;
use super::gathered::Data;
use super::node::{self, ANY_VERSION, Node};
use super::path;
use super::published::Published;
use super::session::{ATTEMPTS, Session};
use crate::error::{Error, Result};
use crate::types::{Check, Condition, Consistency, Operation, OperationResult, TxnOutcome};
use futures_util::TryFutureExt;
use futures_util::future::try_join_all;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use zookeeper_client::{CreateMode, Error as Failure, Stat};

/// What a transaction does to a key.
enum Change<'t> {
    /// It is only checked.
    None,
    /// It gets this data, by the operation at this position.
    Put(Cow<'t, [u8]>, usize),
    Delete,
}

/// A key of a transaction.
struct Part<'t> {
    path: String,
    change: Change<'t>,
}

/// Who names a key: a check or an operation, by its position.
#[derive(Clone, Copy)]
enum Named {
    Check(usize),
    Operation(usize),
}

/// The keys of a transaction, each once.
struct Parts<'t> {
    /// In the order of their paths, so that directories come before what is in them.
    parts: Vec<Part<'t>>,
    /// For each check, the position of its key.
    checked: Vec<usize>,
}

impl<'t> Parts<'t> {
    fn new(session: &Session, checks: &[Check], operations: &'t [Operation]) -> Result<Self> {
        let checked = checks.iter().enumerate().map(|(index, check)| (&check.key, Named::Check(index)));
        let changed = operations.iter().enumerate().map(|(index, op)| (op.key(), Named::Operation(index)));
        let mut named = Vec::with_capacity(checks.len() + operations.len());
        named.extend(checked.chain(changed).map(|(key, named)| (session.paths.key(key), named)));
        named.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let mut parts = Parts { parts: Vec::with_capacity(named.len()), checked: vec![0; checks.len()] };
        for (path, named) in named {
            parts.add(path, named, operations);
        }
        check_size(parts.bytes()).map(|()| parts)
    }

    /// The paths come in order.
    fn add(&mut self, path: String, named: Named, operations: &'t [Operation]) {
        if self.parts.last().is_none_or(|last| last.path != path) {
            self.parts.push(Part { path, change: Change::None });
        }
        let Some(at) = self.parts.len().checked_sub(1) else { return };
        match named {
            Named::Check(index) => self.checked[index] = at,
            Named::Operation(index) => {
                self.parts[at].change = match &operations[index] {
                    Operation::Put { value, .. } => Change::Put(node::encode(value), index),
                    Operation::Delete { .. } => Change::Delete,
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        let bytes = |part: &Part<'_>| if let Change::Put(data, _) = &part.change { data.len() } else { 0 };
        self.parts.iter().map(bytes).sum()
    }

    fn paths(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.parts.iter().map(|part| part.path.as_str())
    }

    fn position(&self, path: &str) -> Option<usize> {
        self.parts.binary_search_by(|part| part.path.as_str().cmp(path)).ok()
    }

    /// Whether the key at this path is put.
    fn puts(&self, path: &str) -> bool {
        self.position(path).is_some_and(|at| matches!(self.parts[at].change, Change::Put(..)))
    }

    fn puts_beneath(&self, path: &str) -> bool {
        let prefix = format!("{path}/");
        let first = self.parts.partition_point(|part| part.path < prefix);
        let mut beneath = self.parts[first..].iter().take_while(|part| part.path.starts_with(&prefix));
        beneath.any(|part| matches!(part.change, Change::Put(..)))
    }
}

/// What a transaction saw.
struct View {
    /// The znodes of its keys, by position.
    nodes: Vec<Node>,
    /// What the holders of those that are locks have published, by position too.
    published: BTreeMap<usize, Published>,
    /// The znodes above keys that are missing.
    above: BTreeMap<String, Option<Stat>>,
}

impl View {
    fn meets(&self, at: usize, condition: &Condition) -> bool {
        let version = match &self.nodes[at] {
            Node::Key(stat) => Some(node::version(stat)),
            _ => self.published.get(&at).map(Published::version),
        };
        match condition {
            Condition::Exists => version.is_some(),
            Condition::Absent => version.is_none(),
            Condition::Version(expected) => version == Some(*expected),
        }
    }

    fn stat(&self, parts: &Parts<'_>, path: &str) -> Option<&Stat> {
        match parts.position(path) {
            Some(at) => self.nodes[at].stat(),
            None => self.above.get(path)?.as_ref(),
        }
    }
}

/// What must be there all the while: the contender that holds a lock.
pub(super) struct Guard<'g> {
    pub(super) lock: &'g str,
    pub(super) paths: [String; 2],
}

impl Session {
    pub(super) async fn txn(&self, checks: &[Check], operations: &[Operation]) -> Result<TxnOutcome> {
        self.txn_under(None, checks, operations).await
    }

    /// A transaction under a lock.
    pub(super) async fn guarded(
        &self,
        guard: &Guard<'_>,
        checks: &[Check],
        operations: &[Operation],
    ) -> Result<TxnOutcome> {
        self.txn_under(Some(guard), checks, operations).await
    }

    async fn txn_under(
        &self,
        guard: Option<&Guard<'_>>,
        checks: &[Check],
        operations: &[Operation],
    ) -> Result<TxnOutcome> {
        check_origins(checks)?;
        let parts = Parts::new(self, checks, operations)?;
        for _ in 0..ATTEMPTS {
            let view = self.survey(&parts).await?;
            let met = |(check, at): (&Check, &usize)| view.meets(*at, &check.condition);
            if let Some(index) = checks.iter().zip(&parts.checked).position(|checked| !met(checked)) {
                self.stand_guard(guard).await?;
                return Ok(TxnOutcome::CheckFailed { index });
            }
            let multi = Plan::new(self, guard, &parts, &view)?.multi;
            if let Some(results) = self.commit(multi, operations.len()).await? {
                return Ok(TxnOutcome::Committed(results));
            }
            self.stand_guard(guard).await?;
        }
        Err(self.contended("the transaction's keys"))
    }

    /// Fails where the lock is lost. Asked when the multi, which makes sure of it, failed or isn't sent.
    async fn stand_guard(&self, guard: Option<&Guard<'_>>) -> Result<()> {
        let Some(guard) = guard else { return Ok(()) };
        let stats = self.send_stats(guard.paths.iter().map(String::as_str)).await?;
        if stats.iter().all(Option::is_some) { Ok(()) } else { Err(Error::lock_lost(guard.lock)) }
    }

    async fn survey(&self, parts: &Parts<'_>) -> Result<View> {
        let nodes = self.nodes(parts).await?;
        let mut published = BTreeMap::new();
        for (at, (path, node)) in parts.paths().zip(&nodes).enumerate() {
            if let Some(found) = self.published_at(path, node).await? {
                published.insert(at, found);
            }
        }
        let missing = parts.paths().zip(&nodes).filter(|(_, node)| node.stat().is_none());
        let above: BTreeSet<&str> = missing.flat_map(|(path, _)| path::ancestors(path)).collect();
        let stats = self.send_stats(above.iter().copied()).await?;
        let above = above.into_iter().map(str::to_owned).zip(stats).collect();
        Ok(View { nodes, published, above })
    }

    /// The znodes of a transaction's keys; read whole where they are small, as one request does for all of them then.
    async fn nodes(&self, parts: &Parts<'_>) -> Result<Vec<Node>> {
        if parts.parts.len() > 1 && self.together.portion.are_small() {
            let read = self.together.read_all(parts.paths()).await;
            let read = read.map_err(|failure| self.read_error(failure))?;
            // Who may not read a znode may look at it.
            if !read.iter().any(|read| matches!(read, Err(Failure::NoAuth))) {
                let node = |read: Result<Data, Failure>| {
                    Ok(self.unless_gone(read)?.map_or(Node::Missing, |(data, stat)| Node::of(stat, &data)))
                };
                return read.into_iter().map(node).collect();
            }
        }
        Box::pin(self.nodes_by_stats(parts)).await
    }

    /// The same, reading only what can't be told otherwise.
    async fn nodes_by_stats(&self, parts: &Parts<'_>) -> Result<Vec<Node>> {
        let synced = self.synced(Consistency::Linearizable, "/");
        let stats = self.send_stats(parts.paths());
        let (synced, stats) = tokio::join!(synced, stats);
        synced?;
        let stats = stats?;
        self.together.portion.learn(stats.iter().flatten());
        let mut nodes = Vec::with_capacity(stats.len());
        for (path, stat) in parts.paths().zip(stats) {
            nodes.push(match stat {
                Some(stat) => self.identify(path, stat).await?,
                None => Node::Missing,
            });
        }
        Ok(nodes)
    }

    /// Sends the requests at once. Their answers are in the order of the paths.
    fn send_stats<'p>(&self, paths: impl Iterator<Item = &'p str>) -> impl Future<Output = Result<Vec<Option<Stat>>>> {
        try_join_all(paths.map(|path| self.client.check_stat(path))).map_err(|failure| self.read_error(failure))
    }

    /// What came of each of so many operations; none where the multi met a conflict.
    async fn commit(&self, multi: Multi<'_>, operations: usize) -> Result<Option<Vec<OperationResult>>> {
        let Multi { batch, puts, abandoned } = multi;
        if batch.len() == 0 {
            return Ok(Some(vec![OperationResult::Deleted; operations]));
        }
        check_size(batch.bytes())?;
        let sent = batch.send();
        let swept = self.send_sweep(abandoned.iter().map(String::as_str));
        match tokio::join!(sent, swept).0 {
            Ok(stats) => self.results(operations, &puts, &stats).map(Some),
            Err(failure) if is_conflict(&failure) || failure == Failure::NoChildrenForEphemerals => Ok(None),
            Err(failure) => Err(self.write_error(failure)),
        }
    }

    fn results(&self, operations: usize, puts: &[Put], stats: &[Option<Stat>]) -> Result<Vec<OperationResult>> {
        let mut results = vec![OperationResult::Deleted; operations];
        for Put { operation, set } in puts {
            let Some(Some(stat)) = stats.get(*set) else {
                let reason = "a multi was answered without the stat of a set";
                return Err(self.write_error(Failure::UnexpectedError(reason.into())));
            };
            results[*operation] = OperationResult::Put(node::version(stat));
        }
        Ok(results)
    }
}

fn check_origins(checks: &[Check]) -> Result<()> {
    checks.iter().try_for_each(|check| match &check.condition {
        Condition::Version(version) => node::check_origin(version),
        Condition::Exists | Condition::Absent => Ok(()),
    })
}

fn check_size(bytes: usize) -> Result<()> {
    if bytes <= batch::MAX_BYTES {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "a transaction of {bytes} bytes; ZooKeeper takes {} at once, so make it several",
        batch::MAX_BYTES
    )))
}

/// Where the data of a put is set.
struct Put {
    /// The position of the operation.
    operation: usize,
    /// The position in the multi.
    set: usize,
}

/// The multi of a transaction: first the pins, then the deletions, the deepest first, then the puts, directories first.
struct Multi<'p> {
    batch: Batch<'p>,
    puts: Vec<Put>,
    /// Directories that may be empty afterwards.
    abandoned: BTreeSet<String>,
}

/// A multi in the making.
struct Plan<'p> {
    multi: Multi<'p>,
    parts: &'p Parts<'p>,
    view: &'p View,
    /// Znodes made and deleted again, to prove that they were missing.
    pinned: BTreeSet<&'p str>,
    /// Znodes that the multi has deleted so far.
    gone: BTreeSet<&'p str>,
    /// Directories that the multi has made so far.
    made: BTreeSet<&'p str>,
}

impl<'p> Plan<'p> {
    fn new(session: &'p Session, guard: Option<&Guard<'_>>, parts: &'p Parts<'p>, view: &'p View) -> Result<Self> {
        let puts = Vec::with_capacity(parts.parts.len());
        let mut multi = Multi { batch: Batch::new(session), puts, abandoned: BTreeSet::new() };
        guard.iter().flat_map(|guard| &guard.paths).for_each(|path| multi.batch.check(path, ANY_VERSION));
        let (pinned, gone, made) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut plan = Plan { multi, parts, view, pinned, gone, made };
        plan.pin_all();
        plan.delete_all(session);
        plan.put_all()?;
        Ok(plan)
    }

    fn stat(&self, path: &str) -> Option<&'p Stat> {
        self.view.stat(self.parts, path)
    }

    /// Pins each key that no operation pins by writing to it.
    fn pin_all(&mut self) {
        let view = self.view;
        for (at, (part, node)) in self.parts.parts.iter().zip(&view.nodes).enumerate() {
            if let Some(Published { path, stat, .. }) = view.published.get(&at) {
                self.multi.batch.check(path, stat.version);
            }
            match (&part.change, node) {
                (Change::Put(..), _) | (Change::Delete, Node::Key(_)) => {}
                (_, Node::Key(stat) | Node::Vacant(stat)) => self.multi.batch.check(&part.path, stat.version),
                (_, Node::Missing) => self.pin_absence(&part.path),
            }
        }
    }

    /// Proves that the uppermost missing znode on the way to `path` is missing, and with it all beneath.
    fn pin_absence(&mut self, path: &'p str) {
        let missing = path::ancestors(path).find(|dir| self.stat(dir).is_none()).unwrap_or(path);
        let parent = path::parent(missing).and_then(|parent| Some((parent, self.stat(parent)?)));
        match parent {
            // Nothing can be beneath an ephemeral znode, nor can anything be made there for proof.
            Some((parent, stat)) if node::is_ephemeral(stat) => self.multi.batch.check(parent, stat.version),
            _ if self.pinned.insert(missing) => {
                self.multi.batch.create(missing, CreateMode::Persistent);
                self.multi.batch.delete(missing, 0);
            }
            _ => {}
        }
    }

    fn delete_all(&mut self, session: &Session) {
        let view = self.view;
        for (at, (part, node)) in self.parts.parts.iter().zip(&view.nodes).enumerate().rev() {
            match (&part.change, node, view.published.get(&at)) {
                (Change::Delete, Node::Key(stat), _) => self.delete(session, &part.path, stat),
                (Change::Delete, _, Some(published)) => self.multi.batch.unpublish(published),
                _ => {}
            }
        }
    }

    fn delete(&mut self, session: &Session, path: &'p str, stat: &Stat) {
        let stays = stat.num_children > 0 || (self.parts.puts_beneath(path) && !node::is_ephemeral(stat));
        if stays {
            self.multi.batch.set(path, node::MARKER, stat.version);
            self.multi.abandoned.insert(path.to_owned());
        } else {
            self.multi.batch.delete(path, stat.version);
            self.gone.insert(path);
            self.multi.abandoned.extend(session.paths.directory_of(path).map(str::to_owned));
        }
    }

    fn put_all(&mut self) -> Result<()> {
        let view = self.view;
        for (part, node) in self.parts.parts.iter().zip(&view.nodes) {
            if let Change::Put(data, operation) = &part.change {
                self.put(&part.path, node, data)?;
                self.multi.puts.push(Put { operation: *operation, set: self.multi.batch.len() - 1 });
            }
        }
        Ok(())
    }

    fn put(&mut self, path: &'p str, node: &Node, data: &[u8]) -> Result<()> {
        match node {
            Node::Missing => {
                self.make_directories(path)?;
                self.multi.batch.create_key(path, data, CreateMode::Persistent);
            }
            Node::Key(stat) | Node::Vacant(stat) if node::goes_away(stat) => {
                self.multi.batch.delete(path, stat.version);
                self.multi.batch.create_key_anew(path, data, CreateMode::Persistent, stat.version);
            }
            Node::Key(stat) | Node::Vacant(stat) => self.multi.batch.set(path, data, stat.version),
        }
        Ok(())
    }

    fn make_directories(&mut self, path: &'p str) -> Result<()> {
        for dir in path::ancestors(path) {
            // What is put there comes first, and is persistent then.
            if self.parts.puts(dir) || self.made.contains(dir) {
                continue;
            }
            let present = if self.gone.contains(dir) { None } else { self.stat(dir) };
            match present {
                Some(stat) if node::is_ephemeral(stat) => return Err(errors::beneath_ttl_key()),
                Some(_) => {}
                None => {
                    self.multi.batch.create(dir, CreateMode::Persistent);
                    self.made.insert(dir);
                }
            }
        }
        Ok(())
    }
}
