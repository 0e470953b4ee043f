//! Watching. Consul tells of no changes; it lets a read wait until there may be one, and each answer is the whole state
//! ([`blocking`](super::blocking)). A query that waits holds a connection, so queries are shared where targets are many
//! ([`plan`](super::plan)), and the [`Hub`](super::hub::Hub) runs them.

use super::codec::Entry;
use super::http::Http;
use super::hub::Hub;
use super::plan::Scope;
use super::read::Extent;
use super::{Consul, version};
use crate::backend::{Target, Update, Updates};
use crate::error::Result;
use crate::key::Namespace;
use crate::types::{Consistency, KvPair};
use futures_util::stream;
use std::cell::RefCell;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::rc::Rc;
use tokio::sync::Notify;

impl Consul {
    /// Follows `target` from its state now on.
    ///
    /// Where it has a query of its own, the query's first answer is that state. Who shares a query with others reads for
    /// itself first: the query may have been sent long ago, and a directory is shown without the keys in it that the token
    /// doesn't allow, where a read of such a key fails.
    pub(super) async fn follow(&self, target: &Target) -> Result<Updates> {
        let scope = scope(target, &self.namespace);
        let told = match self.hub.has_query_for(&scope) {
            true => None,
            false => Some(self.hub.read(async { Ok((self.hub.now(), self.state(&scope).await?)) }).await?),
        };
        Ok(updates(self.hub.subscribe(scope, told)))
    }

    async fn state(&self, scope: &Scope) -> Result<State> {
        let path = scope.path();
        match scope {
            Scope::Key(_) => {
                let shown = self.http.show(path, Extent::Key, Consistency::Linearizable).await?;
                let entry = self.http.only(path, &shown)?;
                State::of(entry.as_slice(), self.hub.marks(), &self.http, &self.namespace)
            }
            Scope::Tree(_) => {
                let shown = self.http.show(path, Extent::Tree, Consistency::Linearizable).await?;
                State::of(&sorted(self.http.parse(&shown)?), self.hub.marks(), &self.http, &self.namespace)
            }
        }
    }
}

fn scope(target: &Target, namespace: &Namespace) -> Scope {
    match target {
        Target::Key(key) | Target::Lock(key) => Scope::key(&namespace.path(key)),
        Target::Tree(dir) => Scope::tree(&namespace.prefix(dir)),
    }
}

/// What is at a target.
pub(super) struct State {
    /// By which it is told from other states.
    pub(super) mark: Mark,
    pub(super) pairs: Vec<KvPair>,
}

impl State {
    fn of(entries: &[Entry<'_>], marks: &RandomState, http: &Http, namespace: &Namespace) -> Result<Self> {
        Ok(State { mark: mark(entries, marks), pairs: pairs(entries, http, namespace)? })
    }
}

/// Stands for the paths and versions of a state. Two that differ have the same with a probability of 2^-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u64);

pub(super) fn mark(entries: &[Entry<'_>], marks: &RandomState) -> Mark {
    let mut hasher = marks.build_hasher();
    for entry in entries {
        entry.path.hash(&mut hasher);
        hasher.write_u64(entry.index);
    }
    Mark(hasher.finish())
}

/// The pairs that are the caller's: other programs may have written paths that are no keys.
pub(super) fn pairs(entries: &[Entry<'_>], http: &Http, namespace: &Namespace) -> Result<Vec<KvPair>> {
    let keys = entries.iter().filter_map(|entry| Some((namespace.key(&entry.path)?, entry)));
    keys.map(|(key, entry)| Ok(KvPair { key, value: http.value(entry)?, version: version(entry.index) })).collect()
}

/// The entries by their paths, as servers send them anyway.
pub(super) fn sorted(mut entries: Vec<Entry<'_>>) -> Vec<Entry<'_>> {
    if !entries.is_sorted_by(|a, b| a.path <= b.path) {
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    }
    entries
}

/// The ones among sorted entries that are in `scope`.
pub(super) fn within<'e, 'a>(entries: &'e [Entry<'a>], scope: &Scope) -> &'e [Entry<'a>] {
    let start = entries.partition_point(|entry| *entry.path < *scope.path());
    let length = entries[start..].partition_point(|entry| scope.holds(&entry.path));
    &entries[start..start + length]
}

/// Where a watch finds its news. A state that wasn't fetched gives way to the next one.
#[derive(Default)]
pub(super) struct Outbox {
    latest: RefCell<Option<Result<Update>>>,
    filled: Notify,
}

impl Outbox {
    pub(super) fn put(&self, news: Result<Update>) {
        self.latest.replace(Some(news));
        self.filled.notify_one();
    }

    pub(super) fn put_state(&self, pairs: Vec<KvPair>) {
        self.put(Ok(Update::State { pairs, position: None }));
    }

    async fn take(&self) -> Result<Update> {
        loop {
            if let Some(news) = self.latest.take() {
                return news;
            }
            self.filled.notified().await;
        }
    }
}

/// One watch of the hub's, which ends with this.
pub(super) struct Subscription {
    pub(super) hub: Rc<Hub>,
    pub(super) id: u64,
    pub(super) outbox: Rc<Outbox>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.unsubscribe(self.id);
    }
}

/// The news of a subscription, up to the first error.
fn updates(subscription: Subscription) -> Updates {
    Box::pin(stream::unfold(Some(subscription), |subscription| async {
        let subscription = subscription?;
        let news = subscription.outbox.take().await;
        let next = news.is_ok().then_some(subscription);
        Some((news, next))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use futures_util::FutureExt;

    const LIST: &str = r#"[{"Key":"a","ModifyIndex":3,"Value":null},{"Key":"a/","ModifyIndex":4,"Value":null},
        {"Key":"a/b","ModifyIndex":5,"Value":"eA=="},{"Key":"a/b/c","ModifyIndex":6,"Value":null},
        {"Key":"ab","ModifyIndex":7,"Value":null}]"#;

    fn entries() -> Vec<Entry<'static>> {
        serde_json::from_str(LIST).unwrap()
    }

    fn paths<'a>(entries: &'a [Entry<'_>]) -> Vec<&'a str> {
        entries.iter().map(|entry| entry.path.as_ref()).collect()
    }

    #[test]
    fn an_answer_is_split_by_target() {
        let entries = sorted(entries().into_iter().rev().collect());
        assert_eq!(paths(within(&entries, &Scope::key("a/b"))), ["a/b"]);
        assert_eq!(paths(within(&entries, &Scope::tree("a/"))), ["a/", "a/b", "a/b/c"]);
        assert_eq!(paths(within(&entries, &Scope::tree(""))).len(), 5);
        for absent in [Scope::key("a/bc"), Scope::key("z"), Scope::tree("b/"), Scope::key("0")] {
            assert!(within(&entries, &absent).is_empty(), "{absent:?}");
        }
    }

    #[test]
    fn marks_tell_states_apart() {
        let (marks, entries) = (RandomState::new(), entries());
        let all = mark(&entries, &marks);
        assert_eq!(all, mark(&self::entries(), &marks));
        assert_ne!(all, mark(&entries[1..], &marks));
        let mut written = self::entries();
        written[4].index = 8;
        assert_ne!(all, mark(&written, &marks));
    }

    #[tokio::test]
    async fn the_latest_news_wins() {
        let outbox = Outbox::default();
        assert!(outbox.take().now_or_never().is_none());
        outbox.put_state(Vec::new());
        outbox.put(Err(Error::unreachable("x")));
        assert!(outbox.take().now_or_never().unwrap().is_err());
        assert!(outbox.take().now_or_never().is_none());
    }
}
