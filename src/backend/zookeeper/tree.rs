//! The calls on a directory: listing, and deleting a tree.

use super::batch::{Batch, is_conflict};
use super::node::{ANY_VERSION, Node};
use super::path;
use super::session::Session;
use super::walk::{Found, FoundLine, Quest};
use crate::error::{Error, Result};
use crate::key::{Dir, Key};
use crate::types::{Consistency, Depth, KvPair, ListOptions, Page};
use futures_util::future::OptionFuture;
use zookeeper_client::{Error as Failure, Stat};

/// How many znodes one multi deletes at most: so many that even the longest paths fit into a packet.
const BATCH_SIZE: usize = 256;

/// A directory's own znode.
struct Top {
    path: String,
    stat: Stat,
    /// The names of the znodes in it.
    names: Vec<String>,
}

/// A directory in which everything is about to be deleted.
#[derive(Clone, Copy)]
struct Emptied<'t> {
    dir: &'t Top,
    /// All that was seen in it goes. To try in vain costs the servers as much as a write.
    surely: bool,
}

/// Whether it is deleted with its tree. Ephemeral znodes that are no keys belong to another program's living session.
fn is_ours(found: &Found) -> bool {
    found.is_key() || !found.is_owned
}

/// A znode to delete.
struct Doomed {
    key: Key,
    /// The name of the contender that is meant, where it isn't the key's own znode.
    contender: Option<String>,
    /// The znode's.
    version: i32,
    is_key: bool,
    /// It was a key to those who looked: it has a value, or is the holder of a lock.
    counts: bool,
}

impl Session {
    pub(super) async fn list(&self, dir: &Dir, options: &ListOptions) -> Result<Page<KvPair>> {
        let found = self.find(dir, options, true).await?;
        let pairs = found.into_iter().map(|(key, found)| found.pair(key));
        Ok(Page::cut(pairs.collect(), options.limit, false, |pair| &pair.key))
    }

    pub(super) async fn list_keys(&self, dir: &Dir, options: &ListOptions) -> Result<Page<Key>> {
        let found = self.find(dir, options, false).await?;
        Ok(Page::cut(found.into_iter().map(|(key, _)| key).collect(), options.limit, false, |key| key))
    }

    /// The keys of a listing, one more than its limit at least where there are more.
    async fn find(&self, dir: &Dir, options: &ListOptions, values: bool) -> Result<Vec<(Key, Found)>> {
        let continued = options.after.is_some();
        let Some(top) = self.open_dir(dir, options.consistency).await? else {
            return if continued || dir.is_root() { Ok(Vec::new()) } else { Err(Error::key_not_found(dir)) };
        };
        let descend = options.depth == Depth::Recursive;
        let enough = options.limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
        let quest = Quest { values, descend, vacant: false, after: options.after.as_ref(), enough };
        let found = self.walk(dir, &top.names, quest).await?;
        if found.is_empty() && !continued && !Box::pin(self.is_listable(dir, &top, descend)).await? {
            return Err(Error::key_not_found(dir));
        }
        Ok(found)
    }

    /// The directory's znode and the names in it; none where it isn't there.
    async fn open_dir(&self, dir: &Dir, consistency: Consistency) -> Result<Option<Top>> {
        let path = self.paths.dir(dir);
        let synced = self.synced(consistency, &path);
        let read = self.client.get_children(&path);
        let (synced, read) = tokio::join!(synced, read);
        synced?;
        match read {
            Ok((names, stat)) => Ok(Some(Top { path, stat, names })),
            Err(Failure::NoNode) => Ok(None),
            Err(failure) => Err(self.read_error(failure)),
        }
    }

    /// Whether a directory in which no key was found may be listed all the same: the root, a key without children, and one
    /// that has keys further down than the listing went.
    async fn is_listable(&self, dir: &Dir, top: &Top, descended: bool) -> Result<bool> {
        if dir.is_root() || self.identify(&top.path, top.stat).await?.is_key() {
            return Ok(true);
        }
        if self.published_among(&top.path, &top.names).await?.is_some() {
            return Ok(true);
        }
        if descended || top.names.is_empty() {
            return Ok(false);
        }
        let quest = Quest { vacant: false, enough: 1, ..Quest::EVERYTHING };
        Ok(!self.walk(dir, &top.names, quest).await?.is_empty())
    }

    /// Deletes the keys that are beneath `dir` now, and the directories that are empty then. Keys made or written meanwhile
    /// may stay: they count as written after the deletion.
    pub(super) async fn delete_tree(&self, dir: &Dir) -> Result<u64> {
        let Some(top) = self.open_dir(dir, Consistency::Linearizable).await? else {
            return if dir.is_root() { Ok(0) } else { Err(Error::key_not_found(dir)) };
        };
        let found = self.walk(dir, &top.names, Quest::EVERYTHING).await?;
        let some = found.iter().any(|(_, found)| found.is_key());
        if !some && !Box::pin(self.is_listable(dir, &top, true)).await? {
            return Err(Error::key_not_found(dir));
        }
        let is_child = |key: &Key| dir.relative(key).is_some_and(|name| !name.contains('/'));
        let leaving = found.iter().filter(|(key, found)| is_ours(found) && is_child(key)).count();
        let emptied = (!dir.is_root()).then_some(Emptied { dir: &top, surely: leaving == top.names.len() });
        self.delete_all(&Self::doomed(found), emptied).await
    }

    /// Removes the directory's own znode, if it has nothing in it any more, and those above it that it was the last thing in.
    async fn remove_dir(&self, Emptied { dir, surely }: Emptied<'_>) {
        let vacant = match Node::by_stat(dir.stat) {
            Some(Node::Vacant(stat)) if surely && stat.ephemeral_owner == 0 => stat,
            _ => return Box::pin(self.sweep(&dir.path)).await,
        };
        let deleted = self.client.delete(&dir.path, Some(vacant.version));
        let swept = self.send_sweep(self.paths.directory_of(&dir.path));
        // It was a key meanwhile, and may be none again.
        if let (Err(Failure::BadVersion), ()) = tokio::join!(deleted, swept) {
            Box::pin(self.sweep(&dir.path)).await;
        }
    }

    /// What is to be deleted, the deepest first: the contenders of a lock with it, whose holders are told that they lost it.
    fn doomed(found: Vec<(Key, Found)>) -> Vec<Doomed> {
        let mut doomed = Vec::with_capacity(found.len());
        for (key, found) in found.into_iter().rev().filter(|(_, found)| is_ours(found)) {
            let (version, is_key) = (found.counter(), found.has_value);
            let FoundLine { published, contenders } = found.line.map(|line| *line).unwrap_or_default();
            let holder = published.as_ref().and_then(|published| path::name(&published.path));
            doomed.extend(contenders.into_iter().map(|name| Doomed {
                key: key.clone(),
                counts: holder == Some(&name),
                contender: Some(name),
                // Whatever it has published by then.
                version: ANY_VERSION,
                is_key: false,
            }));
            doomed.push(Doomed { key, contender: None, version, is_key, counts: is_key });
        }
        doomed
    }

    /// Writes the path of the znode over a text.
    fn write_path(&self, doomed: &Doomed, path: &mut String) {
        self.paths.write_key(&doomed.key, path);
        if let Some(name) = &doomed.contender {
            path.push('/');
            path.push_str(name);
        }
    }

    /// Deletes these in batches, each at the version seen, and returns how many of them were keys. A batch in which something
    /// has changed since is halved until the changed znodes are alone. The request that removes the directory they are in goes right
    /// behind the last batch, and is carried out after it.
    async fn delete_all(&self, doomed: &[Doomed], mut emptied: Option<Emptied<'_>>) -> Result<u64> {
        let mut rest: Vec<&[Doomed]> = doomed.chunks(BATCH_SIZE).rev().collect();
        let mut count = 0;
        loop {
            let batch = rest.pop().unwrap_or_default();
            let removed = emptied.filter(|_| rest.is_empty()).map(|emptied| Box::pin(self.remove_dir(emptied)));
            let (deleted, _) = tokio::join!(biased; self.delete_some(batch), OptionFuture::from(removed));
            match deleted {
                Ok(Some(keys)) => count += keys,
                Ok(None) => {
                    emptied = emptied.map(|emptied| Emptied { surely: false, ..emptied });
                    let (first, second) = batch.split_at(batch.len() / 2);
                    rest.extend([second, first]);
                }
                Err(Error::Unreachable { reason, source }) if count > 0 => {
                    return Err(Error::Indeterminate {
                        reason: format!("{count} keys were deleted, then {reason}"),
                        source,
                    });
                }
                Err(error) => return Err(error),
            }
            if rest.is_empty() {
                return Ok(count);
            }
        }
    }

    async fn delete_some(&self, batch: &[Doomed]) -> Result<Option<u64>> {
        match batch {
            [] => Ok(Some(0)),
            [one] => Box::pin(self.delete_one(one)).await.map(Some),
            many => self.delete_batch(many).await,
        }
    }

    /// How many keys a batch deleted; none where it met a conflict and deleted nothing.
    async fn delete_batch(&self, doomed: &[Doomed]) -> Result<Option<u64>> {
        let (mut batch, mut path) = (Batch::new(self), String::new());
        for one in doomed {
            self.write_path(one, &mut path);
            batch.delete(&path, one.version);
        }
        let keys = doomed.iter().map(|one| u64::from(one.counts)).sum();
        match batch.send().await {
            Ok(_) => Ok(Some(keys)),
            Err(failure) if is_conflict(&failure) => Ok(None),
            Err(failure) => Err(self.write_error(failure)),
        }
    }

    async fn delete_one(&self, doomed: &Doomed) -> Result<u64> {
        let mut path = String::new();
        self.write_path(doomed, &mut path);
        if doomed.is_key {
            // What was beneath it is deleted by now; if not, the server says so and a marker is left.
            return Ok(u64::from(self.remove(&path, doomed.version, false).await?));
        }
        let deleted = self.client.delete(&path, Some(doomed.version)).await;
        Ok(u64::from(self.settled(deleted)?.is_some() && doomed.counts))
    }
}
