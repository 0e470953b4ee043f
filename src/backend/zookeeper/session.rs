//! One session with an ensemble, and the steps of which the calls consist.
//!
//! The client library sends a request when its method is called, not when its future is polled, and ZooKeeper answers a
//! session's requests in order. Functions here that are not `async` rely on it: they send at once, so that requests made one
//! after the other share a round trip.
//!
//! A future has room for all that it may come to wait for. So what is rare is boxed, and what is only waited for is mapped: an
//! `async` block would have room twice for a future that is moved into it.

use super::batch::{Batch, is_conflict};
use super::doubt::Doubts;
use super::errors;
use super::gathered::{Data, Knowledge, Together};
use super::hunch::Hunch;
use super::node::{self, Node};
use super::path::{self, Paths};
use crate::error::{Error, Result};
use crate::types::Consistency;
use futures_util::FutureExt;
use futures_util::future::{OptionFuture, join_all};
use zookeeper_client::{Acls, Client, CreateMode, Error as Failure, Stat};

/// How often a call decides anew because others changed the znodes between its reading and its writing.
pub(super) const ATTEMPTS: usize = 32;

/// A session, and what is known about the ensemble and the namespace. Dropping it ends the session.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) together: Together,
    pub(super) paths: Paths,
    pub(super) acls: Acls<'static>,
    /// The servers' names, for people.
    pub(super) servers: String,
    pub(super) doubts: Doubts,
    /// The locks that are likely to have a znode already.
    pub(super) taken: Hunch,
    /// The locks for which others are likely to be in line when they are given back.
    pub(super) wanted: Hunch,
}

impl Session {
    pub(super) fn new(
        client: Client,
        paths: Paths,
        acls: Acls<'static>,
        servers: String,
        knows_multi_read: Knowledge,
    ) -> Self {
        let (doubts, taken, wanted) = (Doubts::new(), Hunch::default(), Hunch::default());
        let together = Together::new(&client, knows_multi_read);
        Session { client, together, paths, acls, servers, doubts, taken, wanted }
    }
}

impl Session {
    pub(super) fn read_error(&self, failure: Failure) -> Error {
        errors::of_read(&self.servers, failure)
    }

    pub(super) fn write_error(&self, failure: Failure) -> Error {
        errors::of_write(&self.servers, failure)
    }

    /// Nothing was written in [`ATTEMPTS`] attempts.
    pub(super) fn contended(&self, what: &str) -> Error {
        Error::unreachable(format!("`{what}` was changed by others {ATTEMPTS} times while this call looked at it"))
    }

    /// Has the server catch up with its leader, where the consistency asks for it. Reads sent after this are fresh.
    pub(super) fn synced(&self, consistency: Consistency, path: &str) -> impl Future<Output = Result<()>> {
        let sync = (consistency == Consistency::Linearizable).then(|| self.client.sync(path));
        OptionFuture::from(sync).map(|synced| synced.unwrap_or(Ok(())).map_err(|failure| self.read_error(failure)))
    }

    /// A znode's data and stat; none where there is no znode.
    pub(super) async fn data(&self, path: &str, consistency: Consistency) -> Result<Option<Data>> {
        self.unless_gone(self.together.read(path, consistency == Consistency::Linearizable).await)
    }

    /// What the znode is. Its data is read only where the stat alone doesn't tell, and where many look at once at what is small.
    pub(super) async fn look(&self, path: &str, consistency: Consistency) -> Result<Node> {
        let looked = self.together.look(path, consistency == Consistency::Linearizable).await;
        match self.unless_gone(looked)? {
            None => Ok(Node::Missing),
            Some((stat, Some(data))) => Ok(Node::of(stat, &data)),
            Some((stat, None)) => self.identify(path, stat).await,
        }
    }

    /// What the znode with this stat is.
    pub(super) async fn identify(&self, path: &str, stat: Stat) -> Result<Node> {
        if let Some(node) = Node::by_stat(stat) {
            return Ok(node);
        }
        match Box::pin(self.client.get_data(path)).await {
            Ok((data, stat)) => Ok(Node::of(stat, &data)),
            Err(Failure::NoNode) => Ok(Node::Missing),
            Err(failure) => Err(self.read_error(failure)),
        }
    }

    /// Makes a key with this data, and the directories above it. None: something is at `path` already, or a directory was
    /// removed at the same moment.
    pub(super) async fn create(&self, path: &str, data: &[u8], mode: CreateMode) -> Result<Option<Stat>> {
        self.with_parents(path, || self.send_create(path, data, mode)).await
    }

    /// What `send` makes at `path`, with the directories above it where they are missing. None: it met a conflict.
    pub(super) async fn with_parents<F>(&self, path: &str, send: impl Fn() -> F) -> Result<Option<Stat>>
    where
        F: Future<Output = Result<Stat, Failure>>,
    {
        match send().await {
            Err(Failure::NoNode) => {}
            result => return self.settled(result),
        }
        let parents = self.send_parents(path);
        let created = send();
        match Box::pin(async { tokio::join!(parents, created) }).await {
            (Err(failure), Err(Failure::NoNode)) => Err(self.write_error(failure)),
            (_, result) => self.settled(result),
        }
    }

    fn send_create(&self, path: &str, data: &[u8], mode: CreateMode) -> impl Future<Output = Result<Stat, Failure>> {
        let mut batch = Batch::new(self);
        batch.create_key(path, data, mode);
        batch.send_for_stat()
    }

    /// Makes the directories above `path`. A failure matters only if they turn out not to be there: who may not make `/a`
    /// may well find it.
    fn send_parents(&self, path: &str) -> impl Future<Output = Result<(), Failure>> {
        let created: Vec<_> = path::ancestors(path).map(|parent| self.send_directory(parent)).collect();
        async move {
            let mut outcome = Ok(());
            for create in created {
                match create.await {
                    Ok(_) | Err(Failure::NodeExists | Failure::NoNode) => {}
                    Err(failure) => outcome = outcome.and(Err(failure)),
                }
            }
            outcome
        }
    }

    /// Makes one directory, in a multi of its own, as others may be there already.
    fn send_directory<'s>(&'s self, path: &str) -> impl Future<Output = Result<Vec<Option<Stat>>, Failure>> + use<'s> {
        let mut batch = Batch::new(self);
        batch.create(path, CreateMode::Persistent);
        batch.send()
    }

    /// Writes over the znode as `stat` shows it, and makes it of this mode. ZooKeeper can't change the mode of a znode, so it
    /// is made anew where that differs.
    pub(super) async fn overwrite(
        &self,
        path: &str,
        data: &[u8],
        stat: &Stat,
        mode: CreateMode,
    ) -> Result<Stat, Failure> {
        if mode == CreateMode::Persistent && !node::goes_away(stat) {
            return self.client.set_data(path, data, Some(stat.version)).await;
        }
        let mut batch = Batch::new(self);
        batch.delete(path, stat.version);
        batch.create_key_anew(path, data, mode, stat.version);
        Box::pin(batch.send_for_stat()).await
    }

    /// The outcome of a write that can be tried again where it met a conflict (none).
    pub(super) fn settled<T>(&self, result: Result<T, Failure>) -> Result<Option<T>> {
        match result {
            Ok(done) => Ok(Some(done)),
            Err(failure) if is_conflict(&failure) => Ok(None),
            Err(failure) => Err(self.write_error(failure)),
        }
    }

    /// Deletes the key at the znode's version, or leaves a marker where it has children. `false`: the znode has changed since.
    pub(super) async fn remove(&self, path: &str, version: i32, has_children: bool) -> Result<bool> {
        if !has_children {
            let deleted = self.client.delete(path, Some(version));
            let swept = self.send_sweep(self.paths.directory_of(path));
            match tokio::join!(deleted, swept).0 {
                Err(Failure::NotEmpty) => {}
                result => return Ok(self.settled(result)?.is_some()),
            }
        }
        let marked = self.client.set_data(path, node::MARKER, Some(version)).await;
        let marked = self.settled(marked)?;
        if marked.is_some_and(|stat| stat.num_children == 0) {
            Box::pin(self.sweep(path)).await;
        }
        Ok(marked.is_some())
    }

    /// Removes those of `directories` that are no keys and have nothing in them any more. Deletions sent before it are done
    /// by the time these look, so that nothing is asked in vain, and there is another round trip only if something is empty.
    pub(super) fn send_sweep<'p>(&self, directories: impl IntoIterator<Item = &'p str>) -> impl Future<Output = ()> {
        let sweeps = directories.into_iter().map(|path| {
            let look = self.client.check_stat(path);
            async move {
                if matches!(look.await, Ok(Some(stat)) if stat.num_children == 0) {
                    Box::pin(self.sweep(path)).await;
                }
            }
        });
        join_all(sweeps).map(drop)
    }

    /// Removes the directory, and those above it that it was the last thing in. It has done its best where a request fails:
    /// empty directories are in nobody's way.
    pub(super) async fn sweep(&self, path: &str) {
        let mut next = Some(path);
        while let Some(path) = next {
            let Ok(Node::Vacant(stat)) = self.look(path, Consistency::Stale).await else { return };
            let abandoned = stat.num_children == 0 && stat.ephemeral_owner == 0;
            if !abandoned || self.client.delete(path, Some(stat.version)).await.is_err() {
                return;
            }
            next = self.paths.directory_of(path);
        }
    }
}
