//! Listings. Consul has no pages: each answer holds everything beneath the prefix, and is cut down here.

use super::codec::{Entry, Meta, encode_path};
use super::http::freshness;
use super::read::{Extent, Way};
use super::watch::sorted;
use super::{Consul, version};
use crate::error::{Error, Result};
use crate::key::{Dir, Key};
use crate::types::{Consistency, Depth, KvPair, ListOptions, Page};
use std::borrow::Cow;

impl Consul {
    /// The keys beneath `dir` with their values.
    pub(super) async fn pairs(&self, dir: &Dir, options: &ListOptions) -> Result<Page<KvPair>> {
        let shown = self.http.show(&self.namespace.prefix(dir), Extent::Tree, options.consistency).await?;
        // Keys are sorted as their paths are.
        let entries: Vec<Entry<'_>> = sorted(self.http.parse(&shown)?);
        let mut any = false;
        let keys = entries.iter().filter_map(|entry| Some((self.namespace.key(&entry.path)?, entry)));
        let mut listed = keys.inspect(|_| any = true).filter(|(key, _)| is_listed(dir, options, key));
        let limit = options.limit.unwrap_or(usize::MAX);
        let mut pairs = Vec::with_capacity(likely(options, entries.len()));
        for (key, entry) in listed.by_ref().take(limit) {
            pairs.push(KvPair { key, value: self.http.value(entry)?, version: version(entry.index) });
        }
        let more = listed.next().is_some();
        if !any {
            self.require(dir, options).await?;
        }
        Ok(Page::cut(pairs, options.limit, more, |pair| &pair.key))
    }

    /// The keys beneath `dir`.
    pub(super) async fn keys(&self, dir: &Dir, options: &ListOptions) -> Result<Page<Key>> {
        let paths = self.paths(dir, options.depth, options.consistency).await?;
        let mut keys = paths.keys;
        keys.retain(|key| is_listed(dir, options, key));
        keys.sort_unstable();
        if !paths.any_key && !self.any_deeper_key(dir, options, paths.any_directory).await? {
            self.require(dir, options).await?;
        }
        Ok(Page::cut(keys, options.limit, false, |key| key))
    }

    /// Whether there are keys in the directories of a listing that shows but those.
    async fn any_deeper_key(&self, dir: &Dir, options: &ListOptions, any_directory: bool) -> Result<bool> {
        if !any_directory || dir.is_root() || options.after.is_some() {
            return Ok(any_directory);
        }
        Ok(self.paths(dir, Depth::Recursive, options.consistency).await?.any_key)
    }

    /// What the server calls keys: at [`Depth::Children`], names of directories too, or all that is in them.
    async fn paths(&self, dir: &Dir, depth: Depth, consistency: Consistency) -> Result<Paths> {
        let prefix = self.namespace.prefix(dir);
        if Way::to(&prefix) == Way::Txn {
            let shown = self.http.show(&prefix, Extent::Tree, consistency).await?;
            let metas: Vec<Meta<'_>> = self.http.parse(&shown)?;
            return Ok(self.sift(&prefix, metas.into_iter().map(|meta| meta.path)));
        }
        let separator = match depth {
            Depth::Recursive => "",
            Depth::Children => "&separator=%2F",
        };
        let query = format!("keys{separator}&{}", freshness(consistency));
        let path = format!("kv/{}", encode_path(&prefix));
        let Some((answer, _)) = self.http.read_keys(&path, query).await? else { return Ok(Paths::default()) };
        let paths: Vec<Cow<'_, str>> = self.http.json(&answer)?;
        Ok(self.sift(&prefix, paths.into_iter()))
    }

    /// Tells keys from what else the server shows beneath `prefix`.
    fn sift<'a>(&self, prefix: &str, paths: impl Iterator<Item = Cow<'a, str>>) -> Paths {
        let mut sifted = Paths::default();
        for path in paths {
            sifted.any_directory |= path.ends_with('/') && path.len() > prefix.len();
            sifted.keys.extend(self.namespace.key(&path));
        }
        sifted.any_key = !sifted.keys.is_empty();
        sifted
    }

    /// Fails where nothing is beneath `dir` and the rules want an error for that.
    pub(super) async fn require(&self, dir: &Dir, options: &ListOptions) -> Result<()> {
        let Some(key) = dir.as_key() else { return Ok(()) };
        if options.after.is_some() || self.is_there(&key, options.consistency).await? {
            return Ok(());
        }
        Err(Error::key_not_found(key))
    }
}

/// What a listing of keys shows.
#[derive(Default)]
struct Paths {
    keys: Vec<Key>,
    any_key: bool,
    /// Whether there is a directory, beneath which there may be keys, or just what other programs call directories.
    any_directory: bool,
}

/// How many of so many entries a listing is likely to show: whoever keeps it shouldn't keep room for those that it leaves out.
fn likely(options: &ListOptions, entries: usize) -> usize {
    match (options.depth, &options.after) {
        (Depth::Recursive, None) => options.limit.map_or(entries, |limit| limit.min(entries)),
        _ => 0,
    }
}

fn is_listed(dir: &Dir, options: &ListOptions, key: &Key) -> bool {
    let is_deep_enough = match options.depth {
        Depth::Recursive => dir.relative(key).is_some(),
        Depth::Children => dir.relative(key).is_some_and(|rest| !rest.contains('/')),
    };
    is_deep_enough && options.after.as_ref().is_none_or(|after| key > after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_and_continuation() {
        let dir = Dir::parse("a").unwrap();
        let listed = |options: &ListOptions, key: &str| is_listed(&dir, options, &Key::parse(key).unwrap());
        let all = ListOptions::default();
        assert!(listed(&all, "a/b") && listed(&all, "a/b/c") && !listed(&all, "a") && !listed(&all, "ab"));
        let children = ListOptions { depth: Depth::Children, ..ListOptions::default() };
        assert!(listed(&children, "a/b") && !listed(&children, "a/b/c"));
        let rest = ListOptions { after: Some(Key::parse("a/b").unwrap()), ..ListOptions::default() };
        assert!(!listed(&rest, "a/b") && listed(&rest, "a/b/c") && listed(&rest, "a/c"));
    }
}
