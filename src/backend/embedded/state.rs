//! [`State`]: the keys of an embedded store, and what each command does to them. No I/O and no clock of its own.

use super::lock::{Grants, Mark};
use crate::types::Depth;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// By how much an entry's time here exceeds its TTL. The TTL counts from the answer to the write, which comes after a commit
/// that a busy disk may delay; the store ends the entry in time from there, and this is the bound when the process dies.
pub(super) const TTL_RESERVE: Duration = Duration::from_millis(900);

/// A key with its namespace.
pub(super) type Path = Arc<str>;

/// A value with its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) value: Bytes,
    pub(super) revision: u64,
    /// When the key goes by itself.
    pub(super) expires: Option<Instant>,
    /// Where the key is a lock that is held: by whom. It goes with what the lock hangs on.
    pub(super) lock: Option<Mark>,
}

/// One change of one key: its new entry, or none where it is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) path: Path,
    pub(super) entry: Option<Entry>,
    /// The revision of the change, which all changes of one command share.
    pub(super) revision: u64,
}

/// A write.
#[derive(Clone, Debug)]
pub(super) enum Command {
    Put {
        path: Path,
        value: Bytes,
        ttl: Option<Duration>,
    },
    Delete {
        path: Path,
    },
    DeleteTree {
        prefix: String,
    },
    AtomicPut {
        path: Path,
        value: Bytes,
        expected: Wanted,
    },
    AtomicDelete {
        path: Path,
        revision: u64,
    },
    Txn {
        /// The lock that must be held, by its token.
        guard: Option<(Path, u64)>,
        checks: Vec<(Path, Wanted)>,
        operations: Vec<(Path, Option<Bytes>)>,
    },
    /// Gives the key more time, if it was not written since.
    Renew {
        path: Path,
        revision: u64,
        ttl: Duration,
    },
    /// Deletes the key, if it was not written since.
    Expire {
        path: Path,
        revision: u64,
    },
    /// Takes the lock for a grant, unless it is held.
    Acquire {
        path: Path,
        value: Bytes,
        grant: u64,
    },
    /// Gives the lock back, if the grant has it.
    Release {
        path: Path,
        grant: u64,
    },
    /// Changes the value of a lock that is held under this token.
    Publish {
        path: Path,
        value: Bytes,
        token: u64,
    },
    /// Gives all locks of a grant back.
    ReleaseAll {
        grant: u64,
    },
}

/// What is wanted of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Absent,
    Present,
    Revision(u64),
}

/// What a command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// The revision of the write.
    At(u64),
    /// The number of keys that are gone.
    Removed(u64),
}

/// Why a command did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    NotFound,
    Exists,
    Modified,
    /// The check at this position of a transaction.
    Check(usize),
    /// Another has the lock.
    Taken,
    /// The lock isn't, or no longer, held.
    Lost,
}

/// What a command comes to: the changes to make, and the answer to give once they are made.
pub(super) type Decision = Result<(Vec<Change>, Done), Refused>;

/// The keys of an embedded store.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    entries: BTreeMap<Path, Entry>,
    /// The entries that go by themselves, by time.
    expiries: BTreeSet<(Instant, Path)>,
    /// The entries that are locks.
    locks: BTreeSet<Path>,
    /// What the locks hang on, shared by all copies of this state.
    grants: Arc<Grants>,
    revision: u64,
}

impl State {
    /// A state as it was stored.
    #[cfg(feature = "local")]
    pub(super) fn restore(revision: u64, entries: impl IntoIterator<Item = (Path, Entry)>) -> Self {
        let mut state = State { revision, ..State::default() };
        let restored = entries.into_iter().map(|(path, entry)| Change { path, revision, entry: Some(entry) });
        restored.for_each(|change| state.apply(change));
        state
    }

    /// The revision of the latest change.
    #[cfg(feature = "local")]
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The entry at `path`, unless its time is over.
    pub(super) fn get(&self, path: &str, now: Instant) -> Option<&Entry> {
        self.entries.get(path).filter(|entry| self.is_live(entry, now))
    }

    /// The entry at `path`, unless its time is over now.
    pub(super) fn present(&self, path: &str) -> Option<&Entry> {
        // Most entries stay for ever: for them nobody looks at a clock.
        self.entries.get(path).filter(|entry| !entry.goes_away() || self.is_live(entry, Instant::now()))
    }

    fn is_live(&self, entry: &Entry, now: Instant) -> bool {
        let granted = entry.lock.is_none_or(|mark| self.grants.is_live(mark.grant, now));
        granted && entry.expires.is_none_or(|at| now < at)
    }

    /// What the locks hang on.
    pub(super) fn grants(&self) -> &Arc<Grants> {
        &self.grants
    }

    /// The entry of a lock that is held under this token.
    pub(super) fn held(&self, path: &str, token: u64, now: Instant) -> Option<&Entry> {
        self.get(path, now).filter(|entry| entry.lock.is_some_and(|mark| mark.token == token))
    }

    /// The entries whose paths start with `prefix`, behind the path `after`, in order.
    pub(super) fn beneath<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        depth: Depth,
        now: Instant,
    ) -> impl Iterator<Item = (&'a Path, &'a Entry)> {
        let start = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        let range = self.entries.range::<str, _>((start, Bound::Unbounded));
        range
            .take_while(move |(path, _)| path.starts_with(prefix))
            .filter(move |(path, _)| depth == Depth::Recursive || !path[prefix.len()..].contains('/'))
            .filter(move |(_, entry)| self.is_live(entry, now))
    }

    /// When the next entry goes by itself.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let granted = self.locks.iter().filter_map(|path| self.grants.end(self.entries.get(path)?.lock?.grant));
        granted.chain(self.expiries.first().map(|(at, _)| *at)).min()
    }

    /// The deletions that are due, each at a revision of its own.
    pub(super) fn due(&self, now: Instant) -> Vec<Change> {
        let expired = self.expiries.iter().take_while(|(at, _)| *at <= now).map(|(_, path)| path);
        let lost = self.locks.iter().filter(|path| self.get(path, now).is_none());
        let due = expired.chain(lost).zip(self.revision + 1..);
        due.map(|(path, revision)| Change { path: path.clone(), entry: None, revision }).collect()
    }

    /// What `command` comes to, without doing it.
    pub(super) fn decide(&self, command: &Command, now: Instant) -> Decision {
        let next = self.revision + 1;
        let entry = |value: &Bytes, expires| Some(Entry::new(value.clone(), next, expires));
        match command {
            Command::Put { path, value, ttl } => {
                one(path, entry(value, ttl.map(|ttl| expiry(now, ttl))), next, Done::At(next))
            }
            Command::AtomicPut { path, value, expected } => {
                self.demand(path, *expected, now)?;
                one(path, entry(value, None), next, Done::At(next))
            }
            Command::Delete { path } => {
                self.demand(path, Wanted::Present, now)?;
                one(path, None, next, Done::Removed(1))
            }
            Command::AtomicDelete { path, revision } | Command::Expire { path, revision } => {
                self.demand(path, Wanted::Revision(*revision), now)?;
                one(path, None, next, Done::Removed(1))
            }
            Command::Renew { path, revision, ttl } => {
                self.demand(path, Wanted::Revision(*revision), now)?;
                let renewed =
                    self.get(path, now).map(|entry| Entry { expires: Some(expiry(now, *ttl)), ..entry.clone() });
                one(path, renewed, *revision, Done::At(*revision))
            }
            Command::DeleteTree { prefix } => Ok(self.decide_delete_tree(prefix, now)),
            Command::Txn { guard, checks, operations } => {
                if let Some((path, token)) = guard {
                    self.held(path, *token, now).ok_or(Refused::Lost)?;
                }
                for (index, (path, wanted)) in checks.iter().enumerate() {
                    self.demand(path, *wanted, now).map_err(|_| Refused::Check(index))?;
                }
                let changes = operations.iter().map(|(path, value)| Change {
                    path: path.clone(),
                    entry: value.as_ref().and_then(|value| entry(value, None)),
                    revision: next,
                });
                Ok((changes.collect(), Done::At(next)))
            }
            Command::Acquire { path, value, grant } => self.decide_acquire(path, value, *grant, now),
            Command::Release { path, grant } => {
                let entry = self.get(path, now).filter(|entry| entry.lock.is_some_and(|mark| mark.grant == *grant));
                entry.ok_or(Refused::NotFound)?;
                one(path, None, next, Done::Removed(1))
            }
            Command::Publish { path, value, token } => {
                let held = self.held(path, *token, now).ok_or(Refused::Lost)?;
                let entry = Entry { value: value.clone(), revision: next, ..held.clone() };
                one(path, Some(entry), next, Done::At(next))
            }
            Command::ReleaseAll { grant } => {
                let of_grant = |path: &&Path| {
                    self.entries.get(*path).and_then(|entry| entry.lock).is_some_and(|mark| mark.grant == *grant)
                };
                let released = self.locks.iter().filter(of_grant);
                let gone = |path: &Path| Change { path: path.clone(), entry: None, revision: next };
                let changes: Vec<Change> = released.map(gone).collect();
                let removed = changes.len() as u64;
                Ok((changes, Done::Removed(removed)))
            }
        }
    }

    fn decide_acquire(&self, path: &Path, value: &Bytes, grant: u64, now: Instant) -> Decision {
        if !self.grants.is_live(grant, now) {
            return Err(Refused::Lost);
        }
        let next = self.revision + 1;
        let Some(entry) = self.get(path, now) else {
            let lock = Some(Mark { grant, token: next });
            let entry = Entry { lock, ..Entry::new(value.clone(), next, None) };
            return one(path, Some(entry), next, Done::At(next));
        };
        match entry.lock {
            // An answer of ours was lost. The value may be another by now.
            Some(mark) if mark.grant == grant && entry.value == *value => Ok((Vec::new(), Done::At(mark.token))),
            Some(mark) if mark.grant == grant => {
                let entry = Entry { value: value.clone(), revision: next, ..entry.clone() };
                one(path, Some(entry), next, Done::At(mark.token))
            }
            Some(_) => Err(Refused::Taken),
            None => Err(Refused::Exists),
        }
    }

    fn decide_delete_tree(&self, prefix: &str, now: Instant) -> (Vec<Change>, Done) {
        let gone = self.beneath(prefix, None, Depth::Recursive, now);
        let revision = self.revision + 1;
        let changes: Vec<Change> = gone.map(|(path, _)| Change { path: path.clone(), entry: None, revision }).collect();
        let removed = changes.len() as u64;
        (changes, Done::Removed(removed))
    }

    fn demand(&self, path: &str, wanted: Wanted, now: Instant) -> Result<(), Refused> {
        match (wanted, self.get(path, now)) {
            (Wanted::Absent, None) | (Wanted::Present, Some(_)) => Ok(()),
            (Wanted::Absent, Some(_)) => Err(Refused::Exists),
            (Wanted::Revision(revision), Some(entry)) if entry.revision == revision => Ok(()),
            (Wanted::Revision(_), Some(_)) => Err(Refused::Modified),
            (Wanted::Present | Wanted::Revision(_), None) => Err(Refused::NotFound),
        }
    }

    /// Whether the change is one to others: more time for an entry isn't, nor is the deletion of what isn't there.
    pub(super) fn is_news(&self, change: &Change) -> bool {
        let before = self.entries.get(&change.path).map(|entry| entry.revision);
        before != change.entry.as_ref().map(|entry| entry.revision)
    }

    /// Makes a change.
    pub(super) fn apply(&mut self, change: Change) {
        let Change { path, entry, revision } = change;
        self.revision = self.revision.max(revision);
        self.schedule(&path, entry.as_ref());
        match entry {
            Some(entry) => self.entries.insert(path, entry),
            None => self.entries.remove(&path),
        };
    }

    fn schedule(&mut self, path: &Path, entry: Option<&Entry>) {
        if let Some(at) = self.entries.get(path).and_then(|entry| entry.expires) {
            self.expiries.remove(&(at, path.clone()));
        }
        if let Some(at) = entry.and_then(|entry| entry.expires) {
            self.expiries.insert((at, path.clone()));
        }
        match entry.is_some_and(|entry| entry.lock.is_some()) {
            true => drop(self.locks.insert(path.clone())),
            false if self.locks.is_empty() => {}
            false => drop(self.locks.remove(path)),
        }
    }
}

impl Entry {
    /// An ordinary entry.
    pub(super) fn new(value: Bytes, revision: u64, expires: Option<Instant>) -> Self {
        Entry { value, revision, expires, lock: None }
    }

    /// Whether the entry may go by itself.
    pub(super) fn goes_away(&self) -> bool {
        self.expires.is_some() || self.lock.is_some()
    }
}

fn expiry(now: Instant, ttl: Duration) -> Instant {
    now + ttl + TTL_RESERVE
}

fn one(path: &Path, entry: Option<Entry>, revision: u64, done: Done) -> Decision {
    Ok((vec![Change { path: path.clone(), entry, revision }], done))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(1);

    fn put(path: &str, value: &str, ttl: Option<Duration>) -> Command {
        Command::Put { path: path.into(), value: value.to_owned().into(), ttl }
    }

    fn run(state: &mut State, command: &Command, now: Instant) -> Result<Done, Refused> {
        let (changes, done) = state.decide(command, now)?;
        changes.into_iter().for_each(|change| state.apply(change));
        Ok(done)
    }

    #[test]
    fn revisions_never_come_back() {
        let (mut state, now) = (State::default(), Instant::now());
        let Ok(Done::At(first)) = run(&mut state, &put("k", "v", None), now) else { panic!() };
        run(&mut state, &Command::Delete { path: "k".into() }, now).unwrap();
        let Ok(Done::At(second)) = run(&mut state, &put("k", "v", None), now) else { panic!() };
        assert!(second > first);
        let stale = Command::AtomicDelete { path: "k".into(), revision: first };
        assert_eq!(run(&mut state, &stale, now), Err(Refused::Modified));
    }

    #[test]
    fn an_expired_entry_is_absent_before_it_is_purged() {
        let (mut state, now) = (State::default(), Instant::now());
        let later = now + TTL + TTL_RESERVE;
        run(&mut state, &put("k", "v", Some(TTL)), now).unwrap();
        assert_eq!(state.next_expiry(), Some(later));
        assert!(state.get("k", now).is_some());
        assert!(state.get("k", later).is_none());
        assert_eq!(run(&mut state, &Command::Delete { path: "k".into() }, later), Err(Refused::NotFound));
        let due = state.due(later);
        assert_eq!(due.len(), 1);
        due.into_iter().for_each(|change| state.apply(change));
        assert_eq!(state.next_expiry(), None);
    }

    #[test]
    fn a_write_takes_the_expiry_of_the_one_before_away() {
        let (mut state, now) = (State::default(), Instant::now());
        run(&mut state, &put("k", "v", Some(TTL)), now).unwrap();
        run(&mut state, &put("k", "w", None), now).unwrap();
        assert_eq!(state.next_expiry(), None);
    }

    #[test]
    fn a_transaction_whose_check_fails_changes_nothing() {
        let (mut state, now) = (State::default(), Instant::now());
        run(&mut state, &put("a", "1", None), now).unwrap();
        let txn = Command::Txn {
            guard: None,
            checks: vec![("a".into(), Wanted::Present), ("b".into(), Wanted::Present)],
            operations: vec![("a".into(), None)],
        };
        assert_eq!(run(&mut state, &txn, now), Err(Refused::Check(1)));
        assert!(state.get("a", now).is_some());
    }

    #[test]
    fn all_changes_of_one_command_share_its_revision() {
        let (mut state, now) = (State::default(), Instant::now());
        for path in ["d/a", "d/b", "d/c"] {
            run(&mut state, &put(path, "", None), now).unwrap();
        }
        let operations = vec![("d/a".into(), None), ("d/b".into(), Some(Bytes::new())), ("d/d".into(), None)];
        let txn = Command::Txn { guard: None, checks: Vec::new(), operations };
        assert_eq!(run(&mut state, &txn, now), Ok(Done::At(4)));
        assert_eq!(run(&mut state, &Command::DeleteTree { prefix: "d/".into() }, now), Ok(Done::Removed(2)));
        assert_eq!(run(&mut state, &put("d/a", "", None), now), Ok(Done::At(6)));
    }

    #[test]
    fn more_time_is_no_news_nor_is_the_deletion_of_nothing() {
        let (mut state, now) = (State::default(), Instant::now());
        run(&mut state, &put("k", "v", Some(TTL)), now).unwrap();
        let news = |command| state.decide(&command, now).unwrap().0.iter().any(|change| state.is_news(change));
        assert!(!news(Command::Renew { path: "k".into(), revision: 1, ttl: TTL }));
        assert!(!news(Command::Txn { guard: None, checks: Vec::new(), operations: vec![("gone".into(), None)] }));
        assert!(news(put("k", "v", None)));
        assert!(news(Command::Delete { path: "k".into() }));
    }

    #[test]
    fn beneath_knows_segments_from_prefixes() {
        let (mut state, now) = (State::default(), Instant::now());
        for path in ["foo", "foo/a", "foo/b/c", "foobar/x"] {
            run(&mut state, &put(path, "", None), now).unwrap();
        }
        let names = |depth| state.beneath("foo/", None, depth, now).map(|(p, _)| p.to_string()).collect::<Vec<_>>();
        assert_eq!(names(Depth::Recursive), ["foo/a", "foo/b/c"]);
        assert_eq!(names(Depth::Children), ["foo/a"]);
    }
}
