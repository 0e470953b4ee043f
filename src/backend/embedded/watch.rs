//! [`Followers`]: those who are told of the changes of an embedded store, each of the key or directory that it watches.

use super::Published;
use super::state::{Change, Path, State};
use crate::backend::{self, Target, Update, Updates};
use crate::key::Namespace;
use crate::types::{BackendKind, Depth, KvPair, Version};
use futures_util::stream::{self, StreamExt};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::time::Instant;

/// How many changes wait for a follower. One that is further behind reads the state anew.
const BACKLOG: usize = 8192;

/// What a follower watches, with its namespace.
enum Watched {
    Key(Path),
    /// All paths with this prefix, which is empty or ends in a slash.
    Prefix(Path),
}

/// Everybody who follows a store, by what they watch: a change costs its own followers and no others.
#[derive(Debug, Default)]
pub(super) struct Followers {
    keys: HashMap<Path, Vec<Arc<Follower>>>,
    prefixes: HashMap<Path, Vec<Arc<Follower>>>,
}

impl Followers {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.prefixes.is_empty()
    }

    /// Tells a change to those whom it concerns.
    pub(super) fn tell(&self, change: &Change) {
        let path = &*change.path;
        let of_key = self.keys.get(path).into_iter().flatten();
        of_key.for_each(|follower| follower.push(change));
        if self.prefixes.is_empty() {
            return;
        }
        let directories = path.match_indices('/').map(|(at, _)| &path[..=at]);
        let of_directories = std::iter::once("").chain(directories).filter_map(|prefix| self.prefixes.get(prefix));
        of_directories.flatten().for_each(|follower| follower.push(change));
    }

    fn of(&mut self, watched: &Watched) -> (&mut HashMap<Path, Vec<Arc<Follower>>>, Path) {
        match watched {
            Watched::Key(path) => (&mut self.keys, path.clone()),
            Watched::Prefix(prefix) => (&mut self.prefixes, prefix.clone()),
        }
    }

    fn add(&mut self, watched: &Watched, follower: Arc<Follower>) {
        let (followers, path) = self.of(watched);
        followers.entry(path).or_default().push(follower);
    }

    fn remove(&mut self, watched: &Watched, follower: &Arc<Follower>) {
        let (followers, path) = self.of(watched);
        let Some(all) = followers.get_mut(&path) else { return };
        all.retain(|other| !Arc::ptr_eq(other, follower));
        if all.is_empty() {
            followers.remove(&path);
        }
    }
}

/// One follower.
#[derive(Debug, Default)]
struct Follower {
    backlog: Mutex<Backlog>,
    arrived: Notify,
}

/// What a follower was not yet asked for.
#[derive(Debug, Default)]
enum Backlog {
    Changes(Vec<Change>),
    /// The state must be read anew: at the beginning, and when the changes became too many.
    #[default]
    State,
}

impl Follower {
    fn push(&self, change: &Change) {
        let mut backlog = self.backlog();
        match &mut *backlog {
            Backlog::Changes(changes) if changes.len() < BACKLOG => changes.push(change.clone()),
            _ => *backlog = Backlog::State,
        }
        self.arrived.notify_one();
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A follower's place among the followers, which it leaves when this is dropped.
struct Following {
    kind: BackendKind,
    namespace: Namespace,
    published: Arc<Published>,
    watched: Watched,
    follower: Arc<Follower>,
}

/// The updates of a target.
pub(super) fn updates(kind: BackendKind, namespace: Namespace, published: Arc<Published>, target: &Target) -> Updates {
    let watched = match target {
        Target::Key(key) | Target::Lock(key) => Watched::Key(namespace.path(key).into()),
        Target::Tree(dir) => Watched::Prefix(namespace.prefix(dir).into()),
    };
    let follower = Arc::<Follower>::default();
    published.write().followers.add(&watched, follower.clone());
    let following = Following { kind, namespace, published, watched, follower };
    stream::unfold(following, async |following| Some((Ok(following.next().await), following))).boxed_local()
}

impl Following {
    async fn next(&self) -> Update {
        loop {
            let update = self.take();
            match update {
                Update::Changes { changes, .. } if changes.is_empty() => self.follower.arrived.notified().await,
                update => return update,
            }
        }
    }

    /// What there is now.
    fn take(&self) -> Update {
        // While the state can't change: what is told later is behind what is read here.
        let shown = self.published.read();
        let taken = std::mem::replace(&mut *self.follower.backlog(), Backlog::Changes(Vec::new()));
        match taken {
            Backlog::State => Update::State { pairs: self.pairs(&shown.state), position: None },
            Backlog::Changes(changes) => {
                let changes = changes.into_iter().filter_map(|change| self.change(change)).collect();
                Update::Changes { changes, position: None }
            }
        }
    }

    fn pairs(&self, state: &State) -> Vec<KvPair> {
        let now = Instant::now();
        let pair = |path: &str, value, revision| {
            Some(KvPair { key: self.namespace.key(path)?, value, version: Version::new(self.kind, revision) })
        };
        match &self.watched {
            Watched::Key(path) => {
                let entry = state.get(path, now);
                entry.and_then(|entry| pair(path, entry.value.clone(), entry.revision)).into_iter().collect()
            }
            Watched::Prefix(prefix) => {
                let beneath = state.beneath(prefix, None, Depth::Recursive, now);
                beneath.filter_map(|(path, entry)| pair(path, entry.value.clone(), entry.revision)).collect()
            }
        }
    }

    fn change(&self, change: Change) -> Option<backend::Change> {
        let (key, version) = (self.namespace.key(&change.path)?, Version::new(self.kind, change.revision));
        Some(match change.entry {
            Some(entry) => backend::Change::Put(KvPair { key, value: entry.value, version }),
            None => backend::Change::Delete { key, version: Some(version) },
        })
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.published.write().followers.remove(&self.watched, &self.follower);
    }
}
