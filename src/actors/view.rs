//! [`View`]: what a watcher has told its subscribers, with which news are compared.

use crate::backend::Change;
use crate::key::Key;
use crate::types::KvPair;
use crate::watch::News;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What was told.
#[derive(Debug, Default)]
pub(super) struct View {
    pairs: BTreeMap<Key, KvPair>,
    /// The pairs as late subscribers get them; none after a change.
    opening: Option<Arc<Vec<KvPair>>>,
}

impl View {
    /// The differences to a state that was read anew: deletions, then writes in the order of their versions.
    pub(super) fn compare(&mut self, state: Vec<KvPair>) -> Vec<News> {
        let state: BTreeMap<Key, KvPair> = state.into_iter().map(|pair| (pair.key.clone(), pair)).collect();
        let gone = self.pairs.values().filter(|pair| !state.contains_key(&pair.key));
        let gone: Vec<Change> = gone.map(|pair| Change::Delete { key: pair.key.clone(), version: None }).collect();
        let mut written: Vec<KvPair> = state.into_values().filter(|pair| !self.knows(pair)).collect();
        written.sort_by_key(|pair| pair.version.index());
        self.change(gone.into_iter().chain(written.into_iter().map(Change::Put)))
    }

    /// The changes among these that are news.
    pub(super) fn change(&mut self, changes: impl IntoIterator<Item = Change>) -> Vec<News> {
        let news: Vec<News> = changes.into_iter().filter_map(|change| self.take(change)).collect();
        if !news.is_empty() {
            self.opening = None;
        }
        news
    }

    /// What a new subscriber is told first.
    pub(super) fn opening(&mut self) -> Arc<Vec<KvPair>> {
        self.opening.get_or_insert_with(|| Arc::new(self.pairs.values().cloned().collect())).clone()
    }

    fn take(&mut self, change: Change) -> Option<News> {
        match change {
            Change::Put(pair) if self.knows(&pair) => None,
            Change::Put(pair) => {
                let created = self.pairs.insert(pair.key.clone(), pair.clone()).is_none();
                Some(News::Put { pair, created })
            }
            Change::Delete { key, version } => {
                let known = self.pairs.remove(&key)?.version;
                Some(News::Delete { key, version: version.unwrap_or(known) })
            }
        }
    }

    /// The value is compared too: a server that was wiped may give a version a second time.
    fn knows(&self, pair: &KvPair) -> bool {
        self.pairs.get(&pair.key) == Some(pair)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BackendKind, Version};

    fn pair(key: &str, index: u64, value: &'static str) -> KvPair {
        let (key, version) = (Key::parse(key).unwrap(), Version::new(BackendKind::Custom, index));
        KvPair { key, value: value.into(), version }
    }

    fn told(news: &[News]) -> Vec<String> {
        let text = |news: &News| match news {
            News::Put { pair, created: true } => format!("+{}@{}", pair.key, pair.version.index()),
            News::Put { pair, created: false } => format!("{}@{}", pair.key, pair.version.index()),
            News::Delete { key, version } => format!("-{key}@{}", version.index()),
        };
        news.iter().map(text).collect()
    }

    #[test]
    fn a_state_makes_just_the_differences() {
        let mut view = View::default();
        let first = vec![pair("a", 1, "x"), pair("b", 2, "x"), pair("c", 3, "x")];
        assert_eq!(told(&view.compare(first.clone())), ["+a@1", "+b@2", "+c@3"]);
        assert!(view.compare(first).is_empty());
        let second = vec![pair("a", 9, "x"), pair("c", 3, "x"), pair("d", 7, "x")];
        assert_eq!(told(&view.compare(second)), ["-b@2", "+d@7", "a@9"]);
    }

    #[test]
    fn a_version_that_comes_twice_with_another_value_is_news() {
        let mut view = View::default();
        view.compare(vec![pair("a", 1, "x")]);
        assert_eq!(told(&view.compare(vec![pair("a", 1, "y")])), ["a@1"]);
    }

    #[test]
    fn changes_that_were_told_already_are_no_news() {
        let mut view = View::default();
        view.compare(vec![pair("a", 1, "x")]);
        let version = Some(Version::new(BackendKind::Custom, 5));
        let key = Key::parse("a").unwrap();
        let delete = Change::Delete { key, version };
        let news = view.change([Change::Put(pair("a", 1, "x")), delete.clone(), delete]);
        assert_eq!(told(&news), ["-a@5"]);
    }

    #[test]
    fn late_subscribers_share_one_opening_until_something_changes() {
        let mut view = View::default();
        view.compare(vec![pair("a", 1, "x")]);
        let (one, two) = (view.opening(), view.opening());
        assert!(Arc::ptr_eq(&one, &two));
        view.change([Change::Put(pair("b", 2, "x"))]);
        assert_eq!(view.opening().len(), 2);
    }
}
