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

/// The keys of a transaction by their paths, so that directories come before what is in them.
type Parts<'t> = BTreeMap<String, Change<'t>>;

/// What a transaction saw.
struct View {
    /// The znodes of its keys.
    nodes: BTreeMap<String, Node>,
    /// What the holders of those that are locks have published.
    published: BTreeMap<String, Published>,
    /// The znodes above keys that are missing.
    above: BTreeMap<String, Option<Stat>>,
}

impl View {
    fn node(&self, path: &str) -> Node {
        self.nodes.get(path).copied().unwrap_or(Node::Missing)
    }

    fn meets(&self, path: &str, condition: &Condition) -> bool {
        let version = match (self.node(path), self.published.get(path)) {
            (Node::Key(stat), _) => Some(node::version(&stat)),
            (_, published) => published.map(Published::version),
        };
        match condition {
            Condition::Exists => version.is_some(),
            Condition::Absent => version.is_none(),
            Condition::Version(expected) => version == Some(*expected),
        }
    }

    fn stat(&self, path: &str) -> Option<&Stat> {
        match self.nodes.get(path) {
            Some(node) => node.stat(),
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
        let conditions = self.conditions(checks)?;
        let parts = self.parts(&conditions, operations)?;
        for _ in 0..ATTEMPTS {
            let view = self.survey(&parts).await?;
            let failed = conditions.iter().position(|(path, condition)| !view.meets(path, condition));
            if let Some(index) = failed {
                self.stand_guard(guard).await?;
                return Ok(TxnOutcome::CheckFailed { index });
            }
            let plan = Plan::new(self, guard, &parts, &view)?;
            if let Some(stats) = self.commit(plan).await? {
                return Ok(TxnOutcome::Committed(self.results(operations, &stats)?));
            }
            self.stand_guard(guard).await?;
        }
        Err(self.contended("the transaction's keys"))
    }

    /// Fails where the lock is lost. Asked when the multi, which makes sure of it, failed or isn't sent.
    async fn stand_guard(&self, guard: Option<&Guard<'_>>) -> Result<()> {
        let Some(guard) = guard else { return Ok(()) };
        let stats = self.send_stats(guard.paths.iter()).await?;
        if stats.values().all(Option::is_some) { Ok(()) } else { Err(Error::lock_lost(guard.lock)) }
    }

    fn conditions<'t>(&self, checks: &'t [Check]) -> Result<Vec<(String, &'t Condition)>> {
        for check in checks {
            if let Condition::Version(version) = &check.condition {
                node::check_origin(version)?;
            }
        }
        Ok(checks.iter().map(|check| (self.paths.key(&check.key), &check.condition)).collect())
    }

    fn parts<'t>(&self, conditions: &[(String, &Condition)], operations: &'t [Operation]) -> Result<Parts<'t>> {
        let mut parts: Parts<'t> = conditions.iter().map(|(path, _)| (path.clone(), Change::None)).collect();
        let mut bytes = 0;
        for (index, operation) in operations.iter().enumerate() {
            let change = match operation {
                Operation::Put { value, .. } => Change::Put(node::encode(value), index),
                Operation::Delete { .. } => Change::Delete,
            };
            bytes += if let Change::Put(data, _) = &change { data.len() } else { 0 };
            parts.insert(self.paths.key(operation.key()), change);
        }
        check_size(bytes).map(|()| parts)
    }

    async fn survey(&self, parts: &Parts<'_>) -> Result<View> {
        let (mut nodes, mut published) = (BTreeMap::new(), BTreeMap::new());
        for (path, node) in self.nodes(parts).await? {
            if let Some(found) = self.published_at(path, &node).await? {
                published.insert(path.to_owned(), found);
            }
            nodes.insert(path.to_owned(), node);
        }
        let missing = nodes.iter().filter(|(_, node)| node.stat().is_none());
        let above: BTreeSet<String> = missing.flat_map(|(path, _)| path::ancestors(path)).map(str::to_owned).collect();
        let above = self.send_stats(above.iter()).await?;
        Ok(View { nodes, published, above })
    }

    /// The znodes of a transaction's keys; read whole where they are small, as one request does for all of them then.
    async fn nodes<'t>(&self, parts: &'t Parts<'_>) -> Result<Vec<(&'t str, Node)>> {
        if parts.len() > 1 && self.together.portion.are_small() {
            let read = self.together.read_all(parts.keys().map(String::as_str)).await;
            let read = read.map_err(|failure| self.read_error(failure))?;
            // Who may not read a znode may look at it.
            if !read.iter().any(|read| matches!(read, Err(Failure::NoAuth))) {
                let node = |(path, read): (&'t String, Result<Data, Failure>)| {
                    let read = self.unless_gone(read)?;
                    Ok((path.as_str(), read.map_or(Node::Missing, |(data, stat)| Node::of(stat, &data))))
                };
                return parts.keys().zip(read).map(node).collect();
            }
        }
        let synced = self.synced(Consistency::Linearizable, "/");
        let stats = self.send_stats(parts.keys());
        let (synced, stats) = tokio::join!(synced, stats);
        synced?;
        let stats = stats?;
        self.together.portion.learn(stats.values().flatten());
        let mut nodes = Vec::with_capacity(parts.len());
        for path in parts.keys() {
            let node = match stats.get(path).copied().flatten() {
                Some(stat) => self.identify(path, stat).await?,
                None => Node::Missing,
            };
            nodes.push((path.as_str(), node));
        }
        Ok(nodes)
    }

    fn send_stats<'p>(
        &self,
        paths: impl Iterator<Item = &'p String>,
    ) -> impl Future<Output = Result<BTreeMap<String, Option<Stat>>>> {
        let looks: Vec<_> = paths.map(|path| (path.clone(), self.client.check_stat(path))).collect();
        async move {
            let mut stats = BTreeMap::new();
            for (path, look) in looks {
                stats.insert(path, look.await.map_err(|failure| self.read_error(failure))?);
            }
            Ok(stats)
        }
    }

    /// The stats after each operation that put a key, by the operation's position; none where the plan met a conflict.
    async fn commit(&self, plan: Plan<'_>) -> Result<Option<BTreeMap<usize, Stat>>> {
        let Plan { batch, puts, abandoned, .. } = plan;
        if batch.len() == 0 {
            return Ok(Some(BTreeMap::new()));
        }
        check_size(batch.bytes())?;
        let sent = batch.send();
        let swept = self.send_sweep(abandoned.iter().map(String::as_str));
        match tokio::join!(sent, swept).0 {
            Ok(stats) => {
                Ok(Some(puts.into_iter().filter_map(|(index, at)| Some((index, stats.get(at).copied()??))).collect()))
            }
            Err(failure) if is_conflict(&failure) || failure == Failure::NoChildrenForEphemerals => Ok(None),
            Err(failure) => Err(self.write_error(failure)),
        }
    }

    fn results(&self, operations: &[Operation], stats: &BTreeMap<usize, Stat>) -> Result<Vec<OperationResult>> {
        let result = |(index, operation): (usize, &Operation)| match (operation, stats.get(&index)) {
            (Operation::Delete { .. }, _) => Ok(OperationResult::Deleted),
            (Operation::Put { .. }, Some(stat)) => Ok(OperationResult::Put(node::version(stat))),
            (Operation::Put { .. }, None) => {
                Err(self.write_error(Failure::UnexpectedError("a multi was answered without the stat of a set".into())))
            }
        };
        operations.iter().enumerate().map(result).collect()
    }
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

/// The multi of a transaction: first the pins, then the deletions, the deepest first, then the puts, directories first.
struct Plan<'p> {
    batch: Batch<'p>,
    parts: &'p Parts<'p>,
    view: &'p View,
    /// Znodes made and deleted again, to prove that they were missing.
    pinned: BTreeSet<&'p str>,
    /// Znodes that the multi has deleted so far.
    gone: BTreeSet<&'p str>,
    /// Znodes that the multi has made or found persistent so far.
    made: BTreeSet<&'p str>,
    /// Where in the multi each put's data is set: position of the operation, position in the multi.
    puts: Vec<(usize, usize)>,
    /// Directories that may be empty afterwards.
    abandoned: BTreeSet<String>,
}

impl<'p> Plan<'p> {
    fn new(session: &'p Session, guard: Option<&Guard<'_>>, parts: &'p Parts<'p>, view: &'p View) -> Result<Self> {
        let mut plan = Plan {
            batch: Batch::new(session),
            parts,
            view,
            pinned: BTreeSet::new(),
            gone: BTreeSet::new(),
            made: BTreeSet::new(),
            puts: Vec::new(),
            abandoned: BTreeSet::new(),
        };
        guard.iter().flat_map(|guard| &guard.paths).for_each(|path| plan.batch.check(path, ANY_VERSION));
        plan.pin_all();
        plan.delete_all(session);
        plan.put_all()?;
        Ok(plan)
    }

    /// Pins each key that no operation pins by writing to it.
    fn pin_all(&mut self) {
        for (path, change) in self.parts {
            if let Some(Published { path, stat, .. }) = self.view.published.get(path) {
                self.batch.check(path, stat.version);
            }
            match (change, self.view.node(path)) {
                (Change::Put(..), _) | (Change::Delete, Node::Key(_)) => {}
                (_, Node::Key(stat) | Node::Vacant(stat)) => self.batch.check(path, stat.version),
                (_, Node::Missing) => self.pin_absence(path),
            }
        }
    }

    /// Proves that the uppermost missing znode on the way to `path` is missing, and with it all beneath.
    fn pin_absence(&mut self, path: &'p str) {
        let view = self.view;
        let missing = path::ancestors(path).find(|dir| view.stat(dir).is_none()).unwrap_or(path);
        let parent = path::parent(missing).and_then(|parent| Some((parent, view.stat(parent)?)));
        match parent {
            // Nothing can be beneath an ephemeral znode, nor can anything be made there for proof.
            Some((parent, stat)) if node::is_ephemeral(stat) => self.batch.check(parent, stat.version),
            _ if self.pinned.insert(missing) => {
                self.batch.create(missing, CreateMode::Persistent);
                self.batch.delete(missing, 0);
            }
            _ => {}
        }
    }

    fn delete_all(&mut self, session: &Session) {
        for (path, change) in self.parts.iter().rev() {
            match (change, self.view.node(path), self.view.published.get(path)) {
                (Change::Delete, Node::Key(stat), _) => self.delete(session, path, &stat),
                (Change::Delete, _, Some(published)) => self.batch.unpublish(published),
                _ => {}
            }
        }
    }

    fn delete(&mut self, session: &Session, path: &'p str, stat: &Stat) {
        let stays = stat.num_children > 0 || (self.is_put_beneath(path) && !node::is_ephemeral(stat));
        if stays {
            self.batch.set(path, node::MARKER, stat.version);
            self.abandoned.insert(path.to_owned());
        } else {
            self.batch.delete(path, stat.version);
            self.gone.insert(path);
            self.abandoned.extend(session.paths.directory_of(path).map(str::to_owned));
        }
    }

    fn is_put_beneath(&self, path: &str) -> bool {
        let prefix = format!("{path}/");
        let beneath = self.parts.range(prefix.clone()..).take_while(|(other, _)| other.starts_with(&prefix));
        beneath.into_iter().any(|(_, change)| matches!(change, Change::Put(..)))
    }

    fn put_all(&mut self) -> Result<()> {
        for (path, change) in self.parts {
            if let Change::Put(data, index) = change {
                self.put(path, data)?;
                self.puts.push((*index, self.batch.len() - 1));
            }
        }
        Ok(())
    }

    fn put(&mut self, path: &'p str, data: &[u8]) -> Result<()> {
        match self.view.node(path) {
            Node::Missing => {
                self.make_directories(path)?;
                self.batch.create_key(path, data, CreateMode::Persistent);
            }
            Node::Key(stat) | Node::Vacant(stat) if node::goes_away(&stat) => {
                self.batch.delete(path, stat.version);
                self.batch.create_key_anew(path, data, CreateMode::Persistent, stat.version);
            }
            Node::Key(stat) | Node::Vacant(stat) => self.batch.set(path, data, stat.version),
        }
        self.made.insert(path);
        Ok(())
    }

    fn make_directories(&mut self, path: &'p str) -> Result<()> {
        for dir in path::ancestors(path) {
            let present = if self.gone.contains(dir) { None } else { self.view.stat(dir) };
            match present {
                _ if self.made.contains(dir) => {}
                Some(stat) if node::is_ephemeral(stat) => return Err(errors::beneath_ttl_key()),
                Some(_) => {}
                None => {
                    self.batch.create(dir, CreateMode::Persistent);
                    self.made.insert(dir);
                }
            }
        }
        Ok(())
    }
}
