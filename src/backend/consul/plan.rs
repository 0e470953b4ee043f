//! Which queries follow which targets, so that no more connections are needed than allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What one query asks for, in the server's paths. Cloning shares the text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Scope {
    /// The key with this very path.
    Key(Rc<str>),
    /// All keys whose path starts so. Empty, or a path with a slash at its end.
    Tree(Rc<str>),
}

impl Scope {
    pub(super) fn key(path: &str) -> Self {
        Scope::Key(path.into())
    }

    pub(super) fn tree(prefix: &str) -> Self {
        Scope::Tree(prefix.into())
    }

    pub(super) fn path(&self) -> &str {
        match self {
            Scope::Key(path) | Scope::Tree(path) => path,
        }
    }

    /// Whether `path` is of what is asked for.
    pub(super) fn holds(&self, path: &str) -> bool {
        match self {
            Scope::Key(key) => path == &**key,
            Scope::Tree(prefix) => path.starts_with(&**prefix),
        }
    }

    /// The prefixes of the directories around this, from the innermost out to `root`.
    pub(super) fn around<'a>(&'a self, root: &str) -> impl Iterator<Item = &'a str> {
        let path = self.path();
        let inner = match self {
            Scope::Key(path) => path.len(),
            Scope::Tree(prefix) => prefix.len().saturating_sub(1),
        };
        let ends = path[..inner].rmatch_indices('/').map(|(slash, _)| slash + 1);
        let outermost = (inner > 0).then_some(0);
        let (shortest, length) = (root.len(), path.len());
        ends.chain(outermost).filter(move |end| *end >= shortest && *end < length).map(move |end| &path[..end])
    }

    /// What a URL can ask for and this is part of: servers may refuse what isn't ASCII in one.
    pub(super) fn in_url(&self) -> Scope {
        let path = self.path();
        match path.find(|c: char| !c.is_ascii()) {
            None => self.clone(),
            Some(odd) => Scope::tree(&path[..path[..odd].rfind('/').map_or(0, |slash| slash + 1)]),
        }
    }
}

/// Which query follows each of `targets`, for at most `budget` queries, of which none reaches beyond `root`.
///
/// Each has its own while that is possible. Otherwise neighbours are gathered, and a query asks for all that is in their
/// directory: the deepest directories first, of these the fullest, and no more than has to be.
pub(super) fn plan(targets: &BTreeSet<Scope>, budget: usize, root: &str) -> BTreeMap<Scope, Scope> {
    let mut queries = targets.clone();
    let deepest = targets.iter().map(|target| depth(target.path())).max().unwrap_or(0);
    for depth in (depth(root)..=deepest).rev() {
        gather(&mut queries, depth, budget, root);
    }
    let query = |target: &Scope| covering(target, root, |scope| queries.contains(scope));
    targets.iter().map(|target| (target.clone(), query(target).unwrap_or_else(|| target.clone()))).collect()
}

/// The first of the target itself and of the directories around it that `is_query` says yes to.
pub(super) fn covering(target: &Scope, root: &str, is_query: impl Fn(&Scope) -> bool) -> Option<Scope> {
    let around = target.around(root).map(Scope::tree);
    std::iter::once(target.clone()).chain(around).find(is_query)
}

/// How many directories a prefix names.
fn depth(prefix: &str) -> usize {
    prefix.bytes().filter(|byte| *byte == b'/').count()
}

/// Replaces queries by those for whole directories at `depth`, until they are within the budget.
fn gather(queries: &mut BTreeSet<Scope>, at: usize, budget: usize, root: &str) {
    if queries.len() <= budget {
        return;
    }
    let mut dirs: BTreeMap<Scope, usize> = BTreeMap::new();
    for query in queries.iter() {
        if let Some(dir) = query.around(root).find(|dir| depth(dir) == at) {
            *dirs.entry(Scope::tree(dir)).or_default() += 1;
        }
    }
    // One query is needed for the directory, and may be there already.
    let savings = dirs.into_iter().map(|(dir, within)| (within - usize::from(!queries.contains(&dir)), dir));
    let mut savings: Vec<_> = savings.filter(|(saving, _)| *saving > 0).collect();
    savings.sort_by(|(a, _), (b, _)| b.cmp(a));
    for (_, dir) in savings {
        if queries.len() <= budget {
            return;
        }
        queries.retain(|query| !dir.holds(query.path()));
        queries.insert(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(paths: impl IntoIterator<Item = String>) -> BTreeSet<Scope> {
        paths.into_iter().map(|path| Scope::key(&path)).collect()
    }

    fn queries(plan: &BTreeMap<Scope, Scope>) -> BTreeSet<Scope> {
        plan.values().cloned().collect()
    }

    #[test]
    fn directories_around() {
        let around = |scope: Scope, root| scope.around(root).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(around(Scope::key("ns/a/b"), "ns/"), ["ns/a/", "ns/"]);
        assert_eq!(around(Scope::tree("ns/a/"), "ns/"), ["ns/"]);
        assert_eq!(around(Scope::tree("ns/"), "ns/"), [""; 0]);
        assert_eq!(around(Scope::key("a/b"), ""), ["a/", ""]);
        assert_eq!(around(Scope::key("a"), ""), [""]);
        assert_eq!(around(Scope::tree(""), ""), [""; 0]);
    }

    #[test]
    fn what_is_not_ascii_is_asked_for_by_its_directory() {
        assert_eq!(Scope::key("a/b").in_url(), Scope::key("a/b"));
        assert_eq!(Scope::key("a/.é").in_url(), Scope::tree("a/"));
        assert_eq!(Scope::tree("a/b/é/c/").in_url(), Scope::tree("a/b/"));
        assert_eq!(Scope::key("é").in_url(), Scope::tree(""));
    }

    #[test]
    fn each_target_has_a_query_while_there_are_enough() {
        let targets = keys((0..64).map(|n| format!("d/{n}")));
        assert!(plan(&targets, 64, "").iter().all(|(target, query)| target == query));
    }

    #[test]
    fn a_full_directory_is_asked_for_as_one_and_others_keep_their_own() {
        let targets = keys((0..1000).map(|n| format!("ns/d/{n}")).chain((0..60).map(|n| format!("ns/e{n}/x/y"))));
        let plan = plan(&targets, 64, "ns/");
        assert_eq!(queries(&plan).len(), 61);
        assert_eq!(plan[&Scope::key("ns/d/7")], Scope::tree("ns/d/"));
        assert_eq!(plan[&Scope::key("ns/e7/x/y")], Scope::key("ns/e7/x/y"));
    }

    #[test]
    fn no_more_is_gathered_than_has_to_be() {
        let targets = keys((0..10).flat_map(|dir| (0..=dir).map(move |n| format!("d{dir}/{n}"))));
        assert_eq!(targets.len(), 55);
        let plan = plan(&targets, 40, "");
        assert_eq!(queries(&plan).len(), 55 - 9 - 8);
        assert_eq!(plan[&Scope::key("d9/0")], Scope::tree("d9/"));
        assert_eq!(plan[&Scope::key("d7/0")], Scope::key("d7/0"));
    }

    #[test]
    fn as_many_directories_as_keys_are_asked_for_from_the_root() {
        let targets = keys((0..1000).map(|n| format!("ns/d{n}/k")));
        assert_eq!(queries(&plan(&targets, 64, "ns/")), [Scope::tree("ns/")].into());
    }

    #[test]
    fn a_watched_directory_takes_in_what_is_in_it() {
        let targets = [Scope::tree("a/"), Scope::key("a/b"), Scope::key("a"), Scope::key("ab")].into();
        let plan = plan(&targets, 3, "");
        assert_eq!(plan[&Scope::key("a/b")], Scope::tree("a/"));
        assert_eq!(plan[&Scope::key("ab")], Scope::key("ab"));
    }

    fn target() -> impl Strategy<Value = Scope> {
        ("[ab]{1,2}(/[ab]{1,2}){0,3}", any::<bool>()).prop_map(|(path, tree)| match tree {
            true => Scope::tree(&format!("ns/{path}/")),
            false => Scope::key(&format!("ns/{path}")),
        })
    }

    proptest! {
        #[test]
        fn every_target_is_followed_within_the_budget(
            targets in proptest::collection::btree_set(target(), 0..40),
            budget in 1_usize..20,
        ) {
            let plan = plan(&targets, budget, "ns/");
            prop_assert!(queries(&plan).len() <= budget);
            prop_assert_eq!(plan.len(), targets.len());
            for (target, query) in &plan {
                prop_assert!(target == query || query.holds(target.path()), "{target:?} by {query:?}");
                prop_assert!(query.path().starts_with("ns/"));
            }
        }
    }
}
