//! Listings. Consul has no pages: each answer holds everything beneath the prefix, and is cut down here.

use super::codec::{Entry, Meta, encode_path};
use super::http::freshness;
use super::read::{Extent, Way};
use super::{Consul, version};
use crate::error::{Error, Result};
use crate::key::{Dir, Key};
use crate::types::{Consistency, Depth, KvPair, ListOptions, Page};
use bytes::Bytes;
use std::borrow::Cow;

impl Consul {
    /// The keys beneath `dir` with their values.
    pub(super) async fn pairs(&self, dir: &Dir, options: &ListOptions) -> Result<Page<KvPair>> {
        let prefix = self.namespace.prefix(dir);
        let mut listing = Listing::new(dir, options);
        let mut take = |entry: Entry<'_>| match self.namespace.key(&entry.path) {
            Some(key) => listing.take(key, entry.index, || self.http.value(&entry)),
            None => Ok(()),
        };
        match Way::to(&prefix) {
            Way::Url => {
                let query = format!("recurse&{}", freshness(options.consistency));
                self.http.each_key(&format!("kv/{}", encode_path(&prefix)), query, take).await?;
            }
            Way::Txn => {
                let shown = self.http.show(&prefix, Extent::Tree, options.consistency).await?;
                self.http.parse(&shown)?.into_iter().try_for_each(&mut take)?;
            }
        }
        if !listing.any {
            self.require(dir, options).await?;
        }
        Ok(listing.page())
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

/// The pairs that a listing shows, of all those beneath its directory.
struct Listing<'l> {
    dir: &'l Dir,
    options: &'l ListOptions,
    pairs: Vec<KvPair>,
    /// Whether there was any key.
    any: bool,
    /// The last key that there is room for, where not all have room.
    last: Option<Key>,
}

impl<'l> Listing<'l> {
    fn new(dir: &'l Dir, options: &'l ListOptions) -> Self {
        Listing { dir, options, pairs: Vec::new(), any: false, last: None }
    }

    /// Takes a key, and its value if that is shown.
    fn take(&mut self, key: Key, index: u64, value: impl FnOnce() -> Result<Bytes>) -> Result<()> {
        self.any = true;
        let has_room = self.last.as_ref().is_none_or(|last| key < *last);
        if !has_room || !is_listed(self.dir, self.options, &key) {
            return Ok(());
        }
        self.pairs.push(KvPair { key, value: value()?, version: version(index) });
        match self.options.limit {
            Some(limit) if self.pairs.len() > limit.saturating_mul(2) => self.make_room(limit),
            _ => {}
        }
        Ok(())
    }

    fn make_room(&mut self, limit: usize) {
        self.sort();
        self.pairs.truncate(limit);
        self.last = self.pairs.last().map(|pair| pair.key.clone());
    }

    /// Servers send keys in the order of their paths anyway, which is that of the keys.
    fn sort(&mut self) {
        if !self.pairs.is_sorted_by(|a, b| a.key <= b.key) {
            self.pairs.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        }
    }

    fn page(mut self) -> Page<KvPair> {
        self.sort();
        let mut page = Page::cut(self.pairs, self.options.limit, self.last.is_some(), |pair| &pair.key);
        // Whoever keeps it shouldn't keep room for what may have come, or was left out.
        page.items.shrink_to_fit();
        page
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
    fn a_page_has_the_first_keys_in_whichever_order_they_come() {
        let (dir, decoded) = (Dir::parse("a").unwrap(), std::cell::Cell::new(0));
        for seed in 0..50 {
            let mut names: Vec<_> = (10..99).collect();
            if seed > 0 {
                fastrand::Rng::with_seed(seed).shuffle(&mut names);
            }
            for limit in [None, Some(1), Some(7), Some(89), Some(90)] {
                let options = ListOptions { limit, ..ListOptions::default() };
                let mut listing = Listing::new(&dir, &options);
                decoded.set(0);
                for name in &names {
                    let value = || {
                        decoded.set(decoded.get() + 1);
                        Ok(Bytes::from(vec![*name]))
                    };
                    listing.take(Key::parse(&format!("a/{name}")).unwrap(), u64::from(*name), value).unwrap();
                }
                let page = listing.page();
                assert_eq!(page.items.capacity(), page.items.len(), "{limit:?}, {seed}");
                let shown = limit.unwrap_or(89).min(89);
                let expected = (10..99).take(shown).map(|name| (format!("a/{name}"), u64::from(name), vec![name]));
                let pairs = page
                    .items
                    .into_iter()
                    .map(|pair| (pair.key.to_string(), pair.version.index(), pair.value.to_vec()));
                assert!(pairs.eq(expected), "{limit:?}, {seed}");
                assert_eq!(page.next.is_some(), shown < 89, "{limit:?}, {seed}");
                // Where they come in order, what isn't shown is hardly decoded.
                assert!(seed > 0 || decoded.get() <= 2 * shown + 1, "{limit:?}");
            }
        }
    }

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
