//! Calls on directories: listings, read in pages at one revision, and the deletion of whole trees.

use super::kv::pair;
use super::session::{Session, reading};
use super::status::Effect;
use crate::error::{Error, Result};
use crate::key::{Dir, Key};
use crate::types::{Consistency, Depth, KvPair, ListOptions, Page};
use etcd_client::proto::PbKeyValue;
use etcd_client::{DeleteOptions, GetResponse, KeyValue};

/// Most keys to ask for at once with their values. As many of the largest values stay below gRPC's limit of 2 GiB.
const MAX_PAIRS: i64 = 1_000;
/// Most keys to ask for at once without values.
const MAX_KEYS: i64 = 10_000;
/// What a page should weigh, so that a listing of large values neither bursts memory nor holds up other calls for long.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

pub(super) async fn list(session: &Session, dir: &Dir, options: &ListOptions) -> Result<Page<KvPair>> {
    scan(session, dir, options, Content::Pairs, pair, |pair| &pair.key).await
}

pub(super) async fn list_keys(session: &Session, dir: &Dir, options: &ListOptions) -> Result<Page<Key>> {
    scan(session, dir, options, Content::Keys, |key, _| key, |key| key).await
}

pub(super) async fn delete_tree(session: &Session, dir: &Dir) -> Result<u64> {
    let range = Range::beneath(session.prefix(dir));
    let options = || DeleteOptions::new().with_range(range.end.clone());
    let send = async || session.kv().delete(range.start.clone(), Some(options())).await;
    let answer = session.write(send).await?;
    match u64::try_from(answer.deleted()).unwrap_or_default() {
        0 => {
            let at = answer.header().map_or(0, |header| header.revision());
            require(session, dir, At { revision: at, consistency: Consistency::Linearizable }).await.map(|()| 0)
        }
        deleted => Ok(deleted),
    }
}

/// All that is in the range at one moment, and the revision of it.
pub(super) async fn snapshot(session: &Session, range: Range) -> Result<(Vec<PbKeyValue>, i64)> {
    entries(session, range, 0, Content::Pairs).await
}

/// All that was in the range at `revision`, without the values.
pub(super) async fn keys_at(session: &Session, range: Range, revision: i64) -> Result<Vec<PbKeyValue>> {
    entries(session, range, revision, Content::Keys).await.map(|(entries, _)| entries)
}

async fn entries(
    session: &Session,
    mut range: Range,
    revision: i64,
    content: Content,
) -> Result<(Vec<PbKeyValue>, i64)> {
    let mut pager = Pager::new(content, usize::MAX);
    let mut at = At { revision, consistency: Consistency::Linearizable };
    let mut entries = Vec::new();
    loop {
        let mut answer = read(session, &range, at, content, pager.page).await?;
        at = at.pinned(session, &answer)?;
        let next = answer.kvs().last().filter(|_| answer.more()).map(|last| behind(last.key()));
        if next.is_some() {
            pager.adapt(&answer);
        }
        entries.extend(answer.take_kvs().into_iter().map(|found| found.0));
        match next {
            Some(next) => range.skip_to(next),
            None => return Ok((entries, at.revision)),
        }
    }
}

/// What to read of each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Pairs,
    Keys,
}

impl Content {
    fn max_page(self) -> i64 {
        match self {
            Content::Pairs => MAX_PAIRS,
            Content::Keys => MAX_KEYS,
        }
    }
}

/// When to read: at a revision, or now where it is 0.
#[derive(Clone, Copy)]
struct At {
    revision: i64,
    consistency: Consistency,
}

impl At {
    /// The revision of the first answer. Later ones name the server's latest, not the one that they are of.
    fn pinned(self, session: &Session, answer: &GetResponse) -> Result<Self> {
        let revision = match self.revision {
            0 => answer.header().map(|header| header.revision()).ok_or_else(|| session.senseless(Effect::Read))?,
            revision => revision,
        };
        Ok(At { revision, ..self })
    }

    fn options(self) -> etcd_client::GetOptions {
        match self.revision {
            0 => reading(self.consistency),
            // What was is the same on every member that knows the revision, and this one does: it named it.
            revision => reading(Consistency::Stale).with_revision(revision),
        }
    }
}

/// Reads the entries beneath `dir`, page by page, all pages at the revision of the first.
async fn scan<T>(
    session: &Session,
    dir: &Dir,
    options: &ListOptions,
    content: Content,
    entry: impl Fn(Key, KeyValue) -> T,
    key_of: impl Fn(&T) -> &Key,
) -> Result<Page<T>> {
    let prefix = session.prefix(dir);
    let mut range = Range::beneath(prefix.clone());
    if let Some(after) = &options.after {
        range.skip_to(behind(&session.path(after)));
    }
    // One more than asked for tells whether the listing goes on.
    let wanted = options.limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
    let mut pager = Pager::new(content, wanted);
    let mut at = At { revision: 0, consistency: options.consistency };
    let mut entries = Vec::new();
    let mut anything = false;
    while !range.is_empty() {
        let mut answer = read(session, &range, at, content, pager.page).await?;
        at = at.pinned(session, &answer)?;
        let next = answer.kvs().last().filter(|_| answer.more()).map(|last| next(last.key(), &prefix, options.depth));
        if next.is_some() {
            pager.adapt(&answer);
        }
        if options.depth == Depth::Recursive {
            entries.reserve(answer.kvs().len());
        }
        for found in answer.take_kvs() {
            let Some(key) = session.key(&found.0) else { continue };
            anything = true;
            if options.depth == Depth::Recursive || child(found.key(), &prefix) {
                entries.push(entry(key, found));
            }
        }
        match next {
            Some(next) if entries.len() < wanted => range.skip_to(next),
            _ => break,
        }
    }
    if !anything && options.after.is_none() {
        require(session, dir, at).await?;
    }
    Ok(Page::cut(entries, options.limit, false, key_of))
}

async fn read(session: &Session, range: &Range, at: At, content: Content, limit: i64) -> Result<GetResponse> {
    let options = || {
        let options = at.options().with_range(range.end.clone()).with_limit(limit);
        match content {
            Content::Pairs => options,
            Content::Keys => options.with_keys_only(),
        }
    };
    session.read(async || session.kv().get(range.start.clone(), Some(options())).await).await
}

/// Fails unless `dir`, beneath which nothing was found, is the root or there is a key of its name.
async fn require(session: &Session, dir: &Dir, at: At) -> Result<()> {
    let Some(key) = dir.as_key() else { return Ok(()) };
    let send = async || session.kv().get(session.path(&key), Some(at.options().with_count_only())).await;
    match session.read(send).await?.count() {
        0 => Err(Error::key_not_found(dir)),
        _ => Ok(()),
    }
}

/// A range of etcd's keys: from `start` on and below `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    start: Vec<u8>,
    end: Vec<u8>,
}

/// As a range's end: there is none. As its start: the first key there can be.
const EDGE: &[u8] = b"\0";

impl Range {
    /// One key; no end is etcd's sign of that.
    pub(super) fn one(path: Vec<u8>) -> Self {
        Range { start: path, end: Vec::new() }
    }

    pub(super) fn start(&self) -> &[u8] {
        &self.start
    }

    pub(super) fn end(&self) -> &[u8] {
        &self.end
    }

    /// All keys that start with `prefix`, which ends in a slash or is empty.
    pub(super) fn beneath(prefix: Vec<u8>) -> Self {
        match prefix.strip_suffix(b"/") {
            Some(dir) => Range { end: past(dir), start: prefix },
            None => Range { start: EDGE.to_vec(), end: EDGE.to_vec() },
        }
    }

    /// Leaves out the keys before `start`.
    fn skip_to(&mut self, start: Vec<u8>) {
        if start > self.start {
            self.start = start;
        }
    }

    fn is_empty(&self) -> bool {
        self.end != EDGE && self.start >= self.end
    }
}

/// The first key that can follow `key`.
fn behind(key: &[u8]) -> Vec<u8> {
    [key, b"\0"].concat()
}

/// The first key that can follow all those beneath `dir`: `0` is what comes after `/`.
fn past(dir: &[u8]) -> Vec<u8> {
    [dir, b"0"].concat()
}

/// Whether `key`, which starts with `prefix`, lies in that directory itself.
fn child(key: &[u8], prefix: &[u8]) -> bool {
    key.get(prefix.len()..).is_some_and(|name| !name.contains(&b'/'))
}

/// Where a listing goes on behind `last`. One of children leaves out what is left of the directory that `last` is in, which
/// bounds what it reads of each: a page in the middle of a million keys is the last one of them.
fn next(last: &[u8], prefix: &[u8], depth: Depth) -> Vec<u8> {
    let name = last.get(prefix.len()..).unwrap_or_default();
    match name.iter().position(|byte| *byte == b'/') {
        Some(slash) if depth == Depth::Children => past(&last[..prefix.len() + slash]),
        _ => behind(last),
    }
}

/// How many keys to ask for at once.
struct Pager {
    page: i64,
    max: i64,
}

impl Pager {
    fn new(content: Content, wanted: usize) -> Self {
        let max = content.max_page();
        Pager { page: i64::try_from(wanted).unwrap_or(max).clamp(1, max), max }
    }

    fn adapt(&mut self, answer: &GetResponse) {
        let bytes = answer.kvs().iter().map(|found| found.key().len() + found.value().len()).sum();
        self.page = self.after(answer.kvs().len(), bytes);
    }

    /// The size of the page that follows one of so many keys and bytes. A listing that wants few entries asks for few keys,
    /// and for more and more where those turn out to be none of its own.
    fn after(&self, keys: usize, bytes: usize) -> i64 {
        let fitting = PAGE_BYTES.saturating_mul(keys) / bytes.max(1);
        let fitting = i64::try_from(fitting).unwrap_or(self.max);
        fitting.min(self.page.saturating_mul(2)).clamp(1, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_directory_is_a_range() {
        let range = Range::beneath(b"a/b/".to_vec());
        assert_eq!((range.start.as_slice(), range.end.as_slice()), (&b"a/b/"[..], &b"a/b0"[..]));
        let all = Range::beneath(Vec::new());
        assert_eq!((all.start.as_slice(), all.end.as_slice()), (EDGE, EDGE));
        assert!(!all.is_empty());
    }

    #[test]
    fn a_range_only_gets_shorter() {
        let mut range = Range::beneath(b"b/".to_vec());
        range.skip_to(behind(b"a"));
        assert_eq!(range.start, b"b/");
        range.skip_to(behind(b"c"));
        assert!(range.is_empty());
    }

    #[test]
    fn a_listing_of_children_leaves_out_directories() {
        assert_eq!(next(b"d/x/y/z", b"d/", Depth::Children), b"d/x0");
        assert_eq!(next(b"d/x", b"d/", Depth::Children), b"d/x\0");
        assert_eq!(next(b"d/x/y", b"d/", Depth::Recursive), b"d/x/y\0");
        assert_eq!(next(b"x/y", b"", Depth::Children), b"x0");
        assert!(child(b"d/x", b"d/") && !child(b"d/x/y", b"d/") && !child(b"d", b"d/"));
    }

    #[test]
    fn pages_fit_the_values() {
        let pager = Pager::new(Content::Pairs, usize::MAX);
        assert_eq!(pager.page, MAX_PAIRS);
        assert_eq!(pager.after(1_000, 10_000), MAX_PAIRS);
        assert_eq!(pager.after(1_000, 1_000 * PAGE_BYTES), 1);
        assert_eq!(pager.after(1_000, 100 * PAGE_BYTES), 10);
        assert_eq!(pager.after(0, 0), 1);
        let few = Pager::new(Content::Keys, 11);
        assert_eq!((few.page, few.after(11, 100)), (11, 22));
    }

    /// What `scan` does, over a set instead of a server.
    fn children(keys: &BTreeSet<Vec<u8>>, prefix: &[u8], page: usize) -> Vec<Vec<u8>> {
        let mut range = Range::beneath(prefix.to_vec());
        let mut found = Vec::new();
        while !range.is_empty() {
            let inside = |key: &&Vec<u8>| range.end == EDGE || **key < range.end;
            let rest: Vec<_> = keys.range(range.start.clone()..).take_while(inside).collect();
            found.extend(rest.iter().take(page).filter(|key| child(key, prefix)).map(|key| key.to_vec()));
            match rest.get(page - 1).filter(|_| rest.len() > page) {
                Some(last) => range.skip_to(next(last, prefix, Depth::Children)),
                None => break,
            }
        }
        found
    }

    proptest! {
        #[test]
        fn skipping_misses_no_child(
            keys in prop::collection::btree_set("[ab!]{1,2}(/[ab0]{1,2}){0,3}", 0..40),
            dir in prop::sample::select(vec!["", "a/", "b/a/"]),
            page in 1_usize..5,
        ) {
            let keys: BTreeSet<_> = keys.into_iter().map(String::into_bytes).collect();
            let all: Vec<_> =
                keys.iter().filter(|key| key.starts_with(dir.as_bytes()) && child(key, dir.as_bytes())).cloned().collect();
            prop_assert_eq!(children(&keys, dir.as_bytes(), page), all);
        }
    }
}
