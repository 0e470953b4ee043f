//! Walking what is beneath a directory.
//!
//! ZooKeeper has no request for a whole tree: a walk asks for many znodes at a time, those first that come first in the order of
//! the keys' bytes. It ends as soon as enough is found and nothing unread could come before it.

use super::contender::Line;
use super::gathered::{MultiRead, Part};
use super::node;
use super::published::Published;
use super::session::Session;
use crate::error::{Error, Result};
use crate::key::{Dir, Key};
use crate::types::{KvPair, Version};
use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::cmp::Ordering;
use std::collections::{BTreeSet, VecDeque};
use zookeeper_client::{Error as Failure, MultiReadResult, Stat};

/// How many requests of one walk are on their way at once, if each is for one znode.
const IN_FLIGHT: usize = 64;
/// How many requests of one walk are on their way at once, if each is for many znodes.
const REQUESTS: usize = 4;
/// How many more znodes are asked for at a time than are needed.
const SPARE: usize = 8;

/// What a walk is after.
#[derive(Clone, Copy)]
pub(super) struct Quest<'q> {
    /// The values too.
    pub(super) values: bool,
    /// Also what is beneath the directory's own children.
    pub(super) descend: bool,
    /// Also znodes that are no keys.
    pub(super) vacant: bool,
    /// Only what comes behind this key.
    pub(super) after: Option<&'q Key>,
    /// At most so many entries need to be found; more may be.
    pub(super) enough: usize,
}

impl Quest<'_> {
    /// All znodes of a tree.
    pub(super) const EVERYTHING: Self =
        Quest { values: false, descend: true, vacant: true, after: None, enough: usize::MAX };

    /// What is still to be seen of this znode, to tell what it is and what is beneath it.
    fn rest(&self, stat: &Stat, found: &Found) -> Rest {
        match stat.num_children > 0 {
            true if self.vacant || !found.has_value => Rest::Line,
            true if self.descend => Rest::Names,
            _ => Rest::Nothing,
        }
    }

    /// Whether this is one of the entries that it is after.
    fn wants(&self, key: &Key, found: &Found) -> bool {
        (found.is_key() || self.vacant) && self.after.is_none_or(|after| key > after)
    }
}

/// A znode found. There may be a great many.
pub(super) struct Found {
    /// The znode's, and the key's where the znode itself is one.
    version: Version,
    /// The value, where the quest is after values.
    value: Bytes,
    /// Whether the znode itself is a key.
    pub(super) has_value: bool,
    /// The znode is ephemeral, or of another kind that the server removes by itself.
    pub(super) is_owned: bool,
    /// Those in line, where there are any and somebody looked.
    pub(super) line: Option<Box<FoundLine>>,
}

/// Who is in line at a znode, for the lock of that name.
#[derive(Default)]
pub(super) struct FoundLine {
    /// What the holder of the lock published, where the znode is vacant.
    pub(super) published: Option<Published>,
    /// The names of all who contend, where they were read.
    pub(super) contenders: Vec<String>,
}

impl Found {
    fn new(stat: &Stat, has_value: bool, value: Bytes) -> Self {
        let is_owned = stat.ephemeral_owner != 0;
        Found { version: node::version(stat), value, has_value, is_owned, line: None }
    }

    /// The znode that has this data.
    fn read(data: Vec<u8>, stat: &Stat, quest: Quest<'_>) -> Self {
        let is_key = node::is_key(stat, &data);
        Found::new(stat, is_key, if quest.values { node::decode(data) } else { Bytes::new() })
    }

    /// With those in line, by the names of the znode's children.
    fn in_line(mut self, published: Option<Published>, names: &[String]) -> Self {
        let contenders: Vec<_> = Line::of(names).names().map(str::to_owned).collect();
        if published.is_some() || !contenders.is_empty() {
            self.line = Some(Box::new(FoundLine { published, contenders }));
        }
        self
    }

    /// What the server counts the znode's writes by.
    pub(super) fn counter(&self) -> i32 {
        node::counter(&self.version)
    }

    pub(super) fn is_key(&self) -> bool {
        self.has_value || self.line.as_ref().is_some_and(|line| line.published.is_some())
    }

    pub(super) fn pair(self, key: Key) -> KvPair {
        match self.line.and_then(|line| line.published) {
            Some(published) => published.pair(&key),
            None => KvPair { key, value: self.value, version: self.version },
        }
    }
}

/// What to ask: for a znode, or for the names of its children. Sorting visits sorts the keys that come of them: `a`, then
/// `a-b`, then what is beneath `a/`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Visit {
    key: Key,
    part: Part,
}

impl PartialOrd for Visit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Visit {
    fn cmp(&self, other: &Self) -> Ordering {
        if !self.is_children() && !other.is_children() {
            return self.key.cmp(&other.key);
        }
        let common = self.key.len().min(other.key.len());
        let ([mine, my_rest], [theirs, their_rest]) = (self.order(common), other.order(common));
        mine.cmp(theirs).then_with(|| my_rest.iter().chain(self.slash()).cmp(their_rest.iter().chain(other.slash())))
    }
}

impl Visit {
    fn node(key: Key) -> Self {
        Visit { key, part: Part::Data }
    }

    fn children(key: Key) -> Self {
        Visit { key, part: Part::Children }
    }

    fn is_children(&self) -> bool {
        self.part == Part::Children
    }

    /// What visits are sorted by, but for the slash, in two parts.
    fn order(&self, at: usize) -> [&[u8]; 2] {
        let (first, rest) = self.key.as_bytes().split_at(at);
        [first, rest]
    }

    /// What follows the key where its children are meant.
    fn slash(&self) -> &'static [u8] {
        if self.is_children() { b"/" } else { b"" }
    }

    /// Whether a key behind `after` can come of this. All keys beneath `a` are before `a0`, as `0` follows `/`.
    fn leads_behind(&self, after: &Key, descend: bool) -> bool {
        let comes_behind = |end: &[u8]| self.key.bytes().chain(end.iter().copied()).gt(after.bytes());
        comes_behind(self.slash()) || (descend && comes_behind(b"0"))
    }
}

/// What came of a visit.
#[derive(Default)]
struct Seen {
    found: Option<Found>,
    children: Vec<String>,
    /// There are children whose names are to be asked for.
    unread: bool,
}

impl Seen {
    fn directory(found: Found) -> Self {
        Seen { found: Some(found), children: Vec::new(), unread: true }
    }
}

/// What is still to be seen of a znode whose own data is known.
enum Rest {
    Nothing,
    /// The names of its children.
    Names,
    /// Its children: it may be a lock, or have a line of contenders that goes with it.
    Line,
}

/// The visits that are still to be made, the first of them first.
#[derive(Default)]
struct Open {
    /// What one directory holds, in order: often there is no more.
    listed: VecDeque<Visit>,
    /// What was found since.
    others: BTreeSet<Visit>,
}

impl Open {
    fn extend(&mut self, visits: Vec<Visit>) {
        match self.listed.is_empty() {
            true => self.listed = visits.into(),
            false => self.others.extend(visits),
        }
    }

    fn len(&self) -> usize {
        self.listed.len() + self.others.len()
    }

    fn first(&self) -> Option<&Visit> {
        self.listed.front().into_iter().chain(self.others.first()).min()
    }

    fn pop_first(&mut self) -> Option<Visit> {
        match (self.listed.front(), self.others.first()) {
            (Some(listed), Some(other)) if other < listed => self.others.pop_first(),
            (None, _) => self.others.pop_first(),
            _ => self.listed.pop_front(),
        }
    }
}

/// A walk in progress.
struct Walk<'q> {
    quest: Quest<'q>,
    /// Not asked yet.
    open: Open,
    /// The first of each request that is not answered yet.
    asked: BTreeSet<Visit>,
    /// How many are asked for in all.
    on_their_way: usize,
    found: Vec<(Key, Found)>,
    /// What is found is in the order of the keys: nearly always it is.
    in_order: bool,
}

/// What came of one request.
struct Answer {
    /// The first visit that it was for.
    first: Option<Visit>,
    /// How many visits it was for.
    count: usize,
    /// What the quest is after, as far as a znode's own data told it: of most there is no more to see.
    found: Vec<(Key, Found)>,
    /// All else that was seen.
    seen: Vec<(Visit, Seen)>,
}

impl Answer {
    /// Nothing yet.
    fn to(visits: &[Visit]) -> Self {
        Answer { first: visits.first().cloned(), count: visits.len(), found: Vec::new(), seen: Vec::new() }
    }
}

impl Session {
    /// What is beneath `dir`, whose children have these names, in the keys' order.
    pub(super) async fn walk(&self, dir: &Dir, names: &[String], quest: Quest<'_>) -> Result<Vec<(Key, Found)>> {
        let mut walk = Walk::new(quest);
        let mut answers = FuturesUnordered::new();
        walk.open_children(self, dir, names);
        while !walk.is_complete() {
            while let Some(visits) = walk.next_visits(self.portion(quest)) {
                answers.push(self.visit(visits, quest));
            }
            let Some(answer) = answers.next().await else { break };
            walk.take(self, answer?);
        }
        walk.sort();
        Ok(walk.found)
    }

    /// How many znodes to ask for together: one, where that would read values that nobody wants and that may be large.
    fn portion(&self, quest: Quest<'_>) -> usize {
        let portion = &self.together.portion;
        if quest.values || portion.are_small() { portion.size() } else { 1 }
    }

    /// Asks for these, in one request where that is no more than what is wanted: it brings the data too.
    async fn visit(&self, visits: Vec<Visit>, quest: Quest<'_>) -> Result<Answer> {
        if visits.len() > 1 {
            let answered = match self.send_multi_read(&visits) {
                Ok(sent) => sent.await,
                Err(failure) => Err(failure),
            };
            if let Some(parts) = answered.map_err(|failure| self.read_error(failure))? {
                return self.see_all(visits, parts, quest).await;
            }
        }
        let mut answer = Answer::to(&visits);
        let seen = visits.into_iter().map(async |visit| {
            let seen = self.see(&visit, quest).await?;
            Ok::<_, Error>((visit, seen))
        });
        answer.seen = try_join_all(seen).await?;
        Ok(answer)
    }

    fn send_multi_read(
        &self,
        visits: &[Visit],
    ) -> Result<impl Future<Output = Result<Option<Vec<MultiReadResult>>, Failure>> + use<'_>, Failure> {
        let (mut read, mut path) = (MultiRead::new(&self.client, &self.together.portion), String::new());
        for visit in visits {
            self.paths.write_key(&visit.key, &mut path);
            read.add(&path, visit.part)?;
        }
        Ok(read.send())
    }

    /// What one request found out about these.
    async fn see_all(&self, visits: Vec<Visit>, parts: Vec<MultiReadResult>, quest: Quest<'_>) -> Result<Answer> {
        let stats = parts
            .iter()
            .filter_map(|part| if let MultiReadResult::Data { stat, .. } = part { Some(stat) } else { None });
        self.together.portion.learn(stats);
        let (mut answer, mut unclear) = (Answer::to(&visits), Vec::new());
        answer.found.reserve(visits.len());
        for (visit, part) in visits.into_iter().zip(parts) {
            match part {
                MultiReadResult::Data { data, stat } => {
                    let found = Found::read(data, &stat, quest);
                    match quest.rest(&stat, &found) {
                        Rest::Nothing if quest.wants(&visit.key, &found) => answer.found.push((visit.key, found)),
                        Rest::Nothing => {}
                        Rest::Names => answer.seen.push((visit, Seen::directory(found))),
                        Rest::Line => unclear.push((visit, Some(found))),
                    }
                }
                MultiReadResult::Children { children } => {
                    answer.seen.push((visit, Seen { children, ..Seen::default() }))
                }
                MultiReadResult::Error { err: Failure::NoNode } => {}
                // Who may not read a znode may look at it.
                MultiReadResult::Error { err: Failure::NoAuth } if !quest.values => unclear.push((visit, None)),
                MultiReadResult::Error { err } => return Err(self.read_error(err)),
                other => {
                    let reason = format!("a multiRead was answered with {other:?}");
                    return Err(self.read_error(Failure::UnexpectedError(reason)));
                }
            }
        }
        let clear = unclear.into_iter().map(async |(visit, found)| {
            let seen = match found {
                Some(found) => self.see_line(&self.paths.key(&visit.key), found, quest).await?,
                None => self.see(&visit, quest).await?,
            };
            Ok::<_, Error>((visit, seen))
        });
        answer.seen.extend(try_join_all(clear).await?);
        Ok(answer)
    }

    async fn see(&self, visit: &Visit, quest: Quest<'_>) -> Result<Seen> {
        let path = self.paths.key(&visit.key);
        let seen = match (visit.is_children(), quest.values) {
            (true, _) => self.see_names(&path).await?,
            (false, true) => self.see_value(&path, quest).await?,
            (false, false) => self.see_node(&path, quest.descend).await?,
        };
        // A znode that has gone since its name was read is as if it had never been.
        Ok(seen.unwrap_or_default())
    }

    async fn see_names(&self, path: &str) -> Result<Option<Seen>> {
        let names = self.unless_gone(self.client.list_children(path).await)?;
        Ok(names.map(|children| Seen { children, ..Seen::default() }))
    }

    async fn see_value(&self, path: &str, quest: Quest<'_>) -> Result<Option<Seen>> {
        let Some((data, stat)) = self.unless_gone(self.client.get_data(path).await)? else { return Ok(None) };
        self.together.portion.learn([&stat]);
        let found = Found::read(data, &stat, quest);
        match quest.rest(&stat, &found) {
            Rest::Nothing => Ok(Some(Seen { found: Some(found), ..Seen::default() })),
            Rest::Names => Ok(Some(Seen::directory(found))),
            Rest::Line => self.see_line(path, found, quest).await.map(Some),
        }
    }

    /// What the children of a znode say about it. If the walk goes there anyway, this is when it reads their names.
    async fn see_line(&self, path: &str, found: Found, quest: Quest<'_>) -> Result<Seen> {
        let names = self.unless_gone(self.client.list_children(path).await)?.unwrap_or_default();
        let published = if found.has_value { None } else { self.published_among(path, &names).await? };
        let found = found.in_line(published, &names);
        let children = if quest.descend { names } else { Vec::new() };
        Ok(Seen { found: Some(found), children, unread: false })
    }

    /// One request brings both the stat and the names of the children, where those are wanted.
    async fn see_node(&self, path: &str, descend: bool) -> Result<Option<Seen>> {
        let read = match descend {
            true => self.unless_gone(self.client.get_children(path).await)?,
            false => self.unless_gone(self.client.check_stat(path).await)?.flatten().map(|stat| (Vec::new(), stat)),
        };
        let Some((children, stat)) = read else { return Ok(None) };
        let node = self.identify(path, stat).await?;
        let Some(&stat) = node.stat() else { return Ok(None) };
        self.together.portion.learn([&stat]);
        let published = match descend {
            _ if node.is_key() => None,
            true => self.published_among(path, &children).await?,
            false => self.published_at(path, &node).await?,
        };
        let found = Found::new(&stat, node.is_key(), Bytes::new()).in_line(published, &children);
        Ok(Some(Seen { found: Some(found), children, unread: false }))
    }

    pub(super) fn unless_gone<T>(&self, result: Result<T, Failure>) -> Result<Option<T>> {
        match result {
            Ok(read) => Ok(Some(read)),
            Err(Failure::NoNode) => Ok(None),
            Err(failure) => Err(self.read_error(failure)),
        }
    }
}

impl<'q> Walk<'q> {
    fn new(quest: Quest<'q>) -> Self {
        let (open, asked) = (Open::default(), BTreeSet::new());
        Walk { quest, open, asked, on_their_way: 0, found: Vec::new(), in_order: true }
    }

    /// What to ask for next, in requests for so many znodes each; none where enough is on its way.
    fn next_visits(&mut self, portion: usize) -> Option<Vec<Visit>> {
        let requests = if portion == 1 { IN_FLIGHT } else { REQUESTS };
        let coming = self.found.len() + self.on_their_way;
        if self.asked.len() >= requests || (self.on_their_way > 0 && coming >= self.quest.enough) {
            return None;
        }
        // Some may be no keys.
        let missing = self.quest.enough.saturating_sub(coming).saturating_add(SPARE);
        let mut visits = Vec::with_capacity(portion.min(missing).min(self.open.len()));
        visits.extend(std::iter::from_fn(|| self.open.pop_first()).take(portion.min(missing)));
        self.asked.insert(visits.first()?.clone());
        self.on_their_way += visits.len();
        Some(visits)
    }

    fn take(&mut self, session: &Session, answer: Answer) {
        if let Some(first) = answer.first {
            self.asked.remove(&first);
        }
        self.on_their_way -= answer.count;
        self.add(answer.found);
        for (visit, seen) in answer.seen {
            self.take_one(session, visit, seen);
        }
    }

    fn add(&mut self, found: Vec<(Key, Found)>) {
        if let (Some((last, _)), Some((first, _))) = (self.found.last(), found.first()) {
            self.in_order &= last < first;
        }
        let coming = self.on_their_way + self.open.len();
        if self.found.is_empty() && coming == 0 {
            self.found = found;
            return;
        }
        self.found.reserve(found.len() + coming.min(self.quest.enough));
        self.found.extend(found);
    }

    fn take_one(&mut self, session: &Session, visit: Visit, seen: Seen) {
        if !seen.children.is_empty() {
            self.open_children(session, &visit.key.as_dir(), &seen.children);
        }
        if seen.unread {
            let visit = Visit::children(visit.key.clone());
            if self.is_wanted(&visit) {
                self.open.others.insert(visit);
            }
        }
        if let Some(found) = seen.found.filter(|found| self.quest.wants(&visit.key, found)) {
            self.found.push((visit.key, found));
            self.in_order = false;
        }
    }

    fn open_children(&mut self, session: &Session, dir: &Dir, names: &[String]) {
        // The server tells them in no order. Keys that are made in order lie in order too, and that is how they are read.
        let mut names: Vec<_> = names.iter().map(String::as_str).collect();
        names.sort_unstable();
        let mut visits = Vec::with_capacity(names.len());
        let mut children = session.paths.children(dir);
        let keys = names.into_iter().filter_map(|name| children.key(name));
        visits.extend(keys.map(Visit::node).filter(|visit| self.is_wanted(visit)));
        if children.have_escapes() {
            // Such a name may sort otherwise than its key.
            visits.sort_unstable();
        }
        self.open.extend(visits);
    }

    fn is_wanted(&self, visit: &Visit) -> bool {
        self.quest.after.is_none_or(|after| visit.leads_behind(after, self.quest.descend))
    }

    fn sort(&mut self) {
        if !self.in_order {
            self.found.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            self.in_order = true;
        }
    }

    /// Whether enough is found that nothing unread can come before.
    fn is_complete(&mut self) -> bool {
        if self.found.len() >= self.quest.enough {
            self.sort();
        }
        let Some(unread) = self.asked.first().into_iter().chain(self.open.first()).min() else { return true };
        if self.found.len() < self.quest.enough {
            return false;
        }
        let last = self.quest.enough.checked_sub(1).and_then(|index| self.found.get(index));
        last.is_none_or(|(last, _)| *unread > Visit::node(last.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::BackendKind;
    use proptest::prelude::*;

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    #[test]
    fn visits_sort_as_the_keys_that_come_of_them() {
        let mut visits =
            [Visit::children(key("a")), Visit::node(key("a0")), Visit::node(key("a-b")), Visit::node(key("a"))];
        visits.sort();
        let order = visits.each_ref().map(shown);
        assert_eq!(order, ["a", "a-b", "a/", "a0"]);
    }

    fn shown(visit: &Visit) -> String {
        format!("{}{}", visit.key, if visit.is_children() { "/" } else { "" })
    }

    fn any_visit() -> impl Strategy<Value = Visit> {
        ("[ab0é-]{1,3}(/[ab0-]{1,2}){0,2}", any::<bool>()).prop_map(|(path, is_children)| match is_children {
            true => Visit::children(key(&path)),
            false => Visit::node(key(&path)),
        })
    }

    proptest! {
        #[test]
        fn visits_sort_as_they_are_written(a in any_visit(), b in any_visit()) {
            prop_assert_eq!(a.cmp(&b), shown(&a).cmp(&shown(&b)));
        }
    }

    proptest! {
        /// Directories are found on the way, beneath what was visited.
        #[test]
        fn the_first_visit_comes_first(
            listed in prop::collection::btree_set(any_visit(), 0..8),
            found in prop::collection::btree_map(any_visit(), 0..4_usize, 0..8),
        ) {
            // No znode is come upon twice.
            let found: Vec<_> = found.into_iter().filter(|(visit, _)| !listed.contains(visit)).rev().collect();
            let (mut open, mut expected) = (Open::default(), listed.clone());
            open.extend(listed.into_iter().collect());
            for (visit, count) in found {
                expected.insert(visit.clone());
                open.extend(vec![visit]);
                for _ in 0..count {
                    prop_assert_eq!(open.first(), expected.first());
                    prop_assert_eq!(open.pop_first(), expected.pop_first());
                }
            }
            prop_assert!(std::iter::from_fn(|| open.pop_first()).eq(expected));
        }
    }

    /// Several at a time, and each time some that lie in order.
    fn any_answers() -> impl Strategy<Value = Vec<Vec<String>>> {
        prop::collection::btree_set("[a-c]{1,3}", 0..16).prop_flat_map(|keys| {
            let keys: Vec<_> = keys.into_iter().collect();
            Just(keys.chunks(3).map(<[_]>::to_vec).collect::<Vec<_>>()).prop_shuffle()
        })
    }

    proptest! {
        #[test]
        fn answers_that_overtake_each_other_are_put_in_order(answers in any_answers()) {
            let mut walk = Walk::new(Quest::EVERYTHING);
            for answer in &answers {
                let version = Version::new(BackendKind::ZooKeeper, 1);
                let found = || Found { version, value: Bytes::new(), has_value: true, is_owned: false, line: None };
                walk.add(answer.iter().map(|name| (key(name), found())).collect());
            }
            walk.sort();
            let found: Vec<_> = walk.found.iter().map(|(key, _)| key.as_str()).collect();
            let mut expected: Vec<_> = answers.iter().flatten().map(String::as_str).collect();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn what_lies_before_the_continuation_is_not_visited() {
        let after = key("b/m");
        for (visit, expected) in [
            (Visit::node(key("a")), false),
            (Visit::children(key("a")), false),
            (Visit::node(key("b")), true),
            (Visit::children(key("b")), true),
            (Visit::node(key("b/a")), false),
            (Visit::node(key("b/m")), true),
            (Visit::node(key("b/n")), true),
            (Visit::node(key("c")), true),
        ] {
            assert_eq!(visit.leads_behind(&after, true), expected, "{visit:?}");
        }
        assert!(Visit::node(key("a")).leads_behind(&key("a-b"), true), "a/x is behind a-b");
        assert!(!Visit::node(key("a")).leads_behind(&key("a-b"), false));
    }
}
