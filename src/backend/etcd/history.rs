//! Whether the server's history is still the one in which a watch left off.
//!
//! etcd's name for a cluster comes of the addresses of its members and a word in their configuration: a cluster whose data was
//! wiped, or restored from a backup, keeps the name, and its revisions count up to ours again. So the store remembers one
//! change of the past, the last put that a watch has seen, and asks on each new stream whether it is in the server's past too.
//! What this can't tell apart: a backup older than the position, restored, and written to beyond the position before the
//! link is back, if the put that is remembered is in the backup and none overwrote it.

use super::session::Session;
use crate::backend::Position;
use crate::error::Result;
use etcd_client::GetOptions;
use etcd_client::proto::PbKeyValue;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a store knows of its server's history, over all sessions.
#[derive(Debug, Default)]
pub(super) struct Chronicle(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Our number for the history.
    history: u64,
    witness: Option<Witness>,
}

/// A history on one stream, which is one server's from its begin to its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Era {
    /// Our number for it.
    pub(super) history: u64,
    cluster: u64,
    term: u64,
}

/// A put that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Witness {
    path: Vec<u8>,
    mark: u64,
    /// A revision at which the put was the key's last.
    at: i64,
    cluster: u64,
    term: u64,
}

impl Chronicle {
    /// The era of a stream to this cluster, with a leader of this term.
    ///
    /// # Errors
    /// Those of asking the server.
    pub(super) async fn era(&self, session: &Session, cluster: u64, term: u64) -> Result<Era> {
        let witness = self.known().witness.clone();
        let same = match witness {
            Some(witness) if witness.cluster == cluster && witness.term <= term => witness.heard(session).await?,
            _ => false,
        };
        let mut known = self.known();
        if !same {
            *known = Known { history: known.history + 1, witness: None };
        }
        Ok(Era { history: known.history, cluster, term })
    }

    /// Remembers a put that was the last of its key at the revision `at`.
    pub(super) fn witness(&self, era: &Era, put: &PbKeyValue, at: i64) {
        let mut known = self.known();
        let newer = known.witness.as_ref().is_none_or(|witness| witness.at <= at);
        if era.history == known.history && newer {
            let Era { cluster, term, .. } = *era;
            known.witness = Some(Witness { path: put.key.clone(), mark: mark(put), at, cluster, term });
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Each change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Witness {
    /// Whether the put is in the server's past.
    async fn heard(&self, session: &Session) -> Result<bool> {
        let then = || GetOptions::new().with_revision(self.at);
        let found = session.past(async || session.kv().get(self.path.as_slice(), Some(then())).await).await?;
        Ok(found.is_some_and(|found| found.kvs().first().is_some_and(|found| mark(&found.0) == self.mark)))
    }
}

/// Tells the put from any other.
fn mark(put: &PbKeyValue) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&put.key, put.create_revision, put.mod_revision, put.version, put.lease, &put.value).hash(&mut hasher);
    hasher.finish()
}

/// What a [`Position`] of this driver says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) history: u64,
    pub(super) revision: i64,
    /// There was nothing at the target, which a server can be asked about whatever its history.
    pub(super) empty: bool,
}

impl Place {
    /// None for a position that this driver didn't make.
    pub(super) fn of(position: &Position) -> Option<Self> {
        let revision = i64::try_from(position.revision).ok()?;
        Some(Place { history: position.history >> 1, revision, empty: position.history & 1 == 1 })
    }

    pub(super) fn position(self) -> Position {
        let revision = u64::try_from(self.revision).unwrap_or_default();
        Position { history: self.history << 1 | u64::from(self.empty), revision }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(revision: i64, value: &str) -> PbKeyValue {
        PbKeyValue { key: b"k".into(), mod_revision: revision, value: value.into(), ..PbKeyValue::default() }
    }

    #[test]
    fn a_position_says_where_it_was() {
        for empty in [false, true] {
            let place = Place { history: 7, revision: 9, empty };
            assert_eq!(Place::of(&place.position()), Some(place));
        }
        assert_eq!(Place::of(&Position { history: 0, revision: u64::MAX }), None);
    }

    #[test]
    fn the_newest_put_is_remembered_and_only_of_this_history() {
        let chronicle = Chronicle::default();
        let era = Era { history: 0, cluster: 1, term: 2 };
        let at = || chronicle.known().witness.as_ref().map(|witness| witness.at);
        chronicle.witness(&era, &put(5, "a"), 8);
        chronicle.witness(&era, &put(7, "b"), 7);
        assert_eq!(at(), Some(8));
        chronicle.witness(&Era { history: 1, ..era }, &put(9, "c"), 9);
        assert_eq!(at(), Some(8));
        chronicle.witness(&era, &put(9, "c"), 9);
        assert_eq!(at(), Some(9));
    }

    #[test]
    fn puts_are_told_apart() {
        assert_eq!(mark(&put(5, "a")), mark(&put(5, "a")));
        assert_ne!(mark(&put(5, "a")), mark(&put(5, "b")));
        assert_ne!(mark(&put(5, "a")), mark(&put(6, "a")));
    }
}
