//! From the server's events to changes.

use super::session::{Session, version};
use crate::backend::Change;
use crate::types::KvPair;
use etcd_client::EventType;
use etcd_client::proto::{PbEvent, PbKeyValue};

/// Puts the parts of large responses together, as far as it takes to keep each revision whole.
#[derive(Debug, Default)]
pub(super) struct Joint {
    /// The last revision so far of a response that goes on.
    open: Vec<PbEvent>,
}

impl Joint {
    /// Takes the next part of a response, behind which there is maybe `more`, and gives the revisions that are complete.
    pub(super) fn join(&mut self, mut part: Vec<PbEvent>, more: bool) -> Vec<PbEvent> {
        let mut events = std::mem::take(&mut self.open);
        events.append(&mut part);
        if more {
            let last = events.last().map(revision);
            let complete = events.iter().rposition(|event| Some(revision(event)) != last).map_or(0, |index| index + 1);
            self.open = events.split_off(complete);
        }
        events
    }
}

/// The revision at which the event happened.
pub(super) fn revision(event: &PbEvent) -> i64 {
    event.kv.as_ref().map_or(0, |found| found.mod_revision)
}

/// The key and value that were put, if that is what happened.
pub(super) fn put(event: &PbEvent) -> Option<&PbKeyValue> {
    event.kv.as_ref().filter(|_| event.r#type != EventType::Delete as i32)
}

/// What happened; none where it happened to what is no key here.
pub(super) fn change(session: &Session, event: PbEvent) -> Option<Change> {
    let delete = put(&event).is_none();
    let found = event.kv?;
    if delete {
        let version = Some(version(found.mod_revision));
        return session.key(&found).map(|key| Change::Delete { key, version });
    }
    pair(session, found).map(Change::Put)
}

/// A pair as it was found; none where the server's key is none here. The value is moved, not copied.
pub(super) fn pair(session: &Session, found: PbKeyValue) -> Option<KvPair> {
    let key = session.key(&found)?;
    Some(KvPair { key, value: found.value.into(), version: version(found.mod_revision) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(revisions: &[i64]) -> Vec<PbEvent> {
        let event = |&mod_revision: &i64| {
            let found = PbKeyValue { mod_revision, ..PbKeyValue::default() };
            PbEvent { kv: Some(found), ..PbEvent::default() }
        };
        revisions.iter().map(event).collect()
    }

    fn revisions(events: &[PbEvent]) -> Vec<i64> {
        events.iter().map(revision).collect()
    }

    #[test]
    fn a_revision_stays_whole() {
        let mut joint = Joint::default();
        assert_eq!(revisions(&joint.join(events(&[1, 2]), false)), [1, 2]);
        assert_eq!(revisions(&joint.join(events(&[3, 4]), true)), [3]);
        assert_eq!(revisions(&joint.join(events(&[4, 4]), true)), [0; 0]);
        assert_eq!(revisions(&joint.join(events(&[4, 5]), false)), [4, 4, 4, 4, 5]);
        assert!(joint.open.is_empty());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_torn(
            mut all in prop::collection::vec(1_i64..9, 0..30),
            cuts in prop::collection::vec(0_usize..30, 0..6),
        ) {
            all.sort_unstable();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(all.len())).collect();
            cuts.sort_unstable();
            let (mut joint, mut told, mut from) = (Joint::default(), Vec::new(), 0);
            for cut in cuts {
                let part = revisions(&joint.join(events(&all[from..cut]), true));
                prop_assert!(told.last().is_none() || part.is_empty() || told.last() != part.first());
                told.extend(part);
                from = cut;
            }
            told.extend(revisions(&joint.join(events(&all[from..]), false)));
            prop_assert_eq!(told, all);
        }
    }
}
