//! Which znodes are keys.
//!
//! A znode that exists only to carry children must not look like a key, and a key with an empty value must. So:
//! - A directory's znode is made empty, and has version 0 as long as nobody writes to it.
//! - A key is created empty and written in the same multi: its version is at least 1, whatever its value.
//! - A key that is deleted while it has children can't go: it is overwritten with [`MARKER`], which says "no key here".
//! - A value that starts with the marker is stored with another marker before it, so that every value can be told apart.
//!
//! A znode is *vacant*, no key, if it is empty at version 0 or holds exactly the marker, or its variant [`SHARED`]. Since no key of ours has version 0,
//! removing an abandoned directory "at version 0" can't hit a key that somebody puts there at that moment.
//!
//! Znodes of other programs follow the same rule: one created with data is a key, one created empty isn't until it is written.

use crate::error::{Error, Result};
use crate::types::{BackendKind, Version};
use bytes::Bytes;
use std::borrow::Cow;
use zookeeper_client::Stat;

/// What a znode holds whose key was deleted while it had children; readable, for people who come upon it.
pub(super) const MARKER: &[u8] = b"\0kvactor: no key here, only the keys beneath\0";

/// What the znode of a lock holds that another program used as well: as [`MARKER`], but it is not for us to remove. No value
/// is stored like this, as one that starts with the marker gets another.
pub(super) const SHARED: &[u8] = b"\0kvactor: no key here, only the keys beneath\0shared\0";

/// What a znode's version is where it may have any.
pub(super) const ANY_VERSION: i32 = -1;

/// A znode as a store sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Missing,
    /// It is there for its children only.
    Vacant(Stat),
    Key(Stat),
}

impl Node {
    /// What a znode with this stat and data is.
    pub(super) fn of(stat: Stat, data: &[u8]) -> Self {
        if is_key(&stat, data) { Node::Key(stat) } else { Node::Vacant(stat) }
    }

    /// What a znode with this stat is, where that can be told without its data.
    pub(super) fn by_stat(stat: Stat) -> Option<Self> {
        match usize::try_from(stat.data_length) {
            Ok(0) => Some(Node::of(stat, &[])),
            Ok(length) if length == MARKER.len() || length == SHARED.len() => None,
            _ => Some(Node::Key(stat)),
        }
    }

    pub(super) fn stat(&self) -> Option<&Stat> {
        match self {
            Node::Missing => None,
            Node::Vacant(stat) | Node::Key(stat) => Some(stat),
        }
    }

    pub(super) fn is_key(&self) -> bool {
        matches!(self, Node::Key(_))
    }
}

/// Whether the znode with this stat and data is a key.
pub(super) fn is_key(stat: &Stat, data: &[u8]) -> bool {
    if data.is_empty() { stat.version != 0 } else { data != MARKER && data != SHARED }
}

/// The data that stands for `value`.
pub(super) fn encode(value: &[u8]) -> Cow<'_, [u8]> {
    match value.starts_with(MARKER) {
        true => Cow::Owned([MARKER, value].concat()),
        false => Cow::Borrowed(value),
    }
}

/// The value that a key's data stands for.
pub(super) fn decode(data: Vec<u8>) -> Bytes {
    let escaped = data.strip_prefix(MARKER).is_some_and(|value| value.starts_with(MARKER));
    let mut value = Bytes::from(data);
    if escaped {
        value = value.split_off(MARKER.len());
    }
    value
}

/// The version of a key. The znode's counter starts again in each incarnation, so the zxid of its creation goes along.
pub(super) fn version(stat: &Stat) -> Version {
    let counter = u64::from(stat.version.cast_unsigned());
    Version::with_counter(BackendKind::ZooKeeper, stat.mzxid.cast_unsigned(), stat.czxid.cast_unsigned(), counter)
}

/// What the server counts the writes of the znode by that has this version.
pub(super) fn counter(version: &Version) -> i32 {
    // It was one of these.
    u32::try_from(version.counter()).map_or(ANY_VERSION, u32::cast_signed)
}

/// Whether the server may remove the znode by itself: it is ephemeral, or another program's container without children.
pub(super) fn goes_away(stat: &Stat) -> bool {
    stat.ephemeral_owner != 0 && stat.num_children == 0
}

/// Whether the znode is ephemeral, and so can't have children. The field for the owner also says what is a container (the
/// smallest number) and what has a TTL of ZooKeeper's own kind (the topmost byte).
pub(super) fn is_ephemeral(stat: &Stat) -> bool {
    let owner = stat.ephemeral_owner;
    owner != 0 && owner != i64::MIN && owner.cast_unsigned() >> 56 != 0xff
}

/// Refuses a version that another backend made.
pub(super) fn check_origin(version: &Version) -> Result<()> {
    if version.backend() == BackendKind::ZooKeeper {
        return Ok(());
    }
    Err(Error::unsupported(format!("a version made by {} means nothing to zookeeper", version.backend())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stat(version: i32, length: usize) -> Stat {
        Stat {
            czxid: 7,
            mzxid: 9,
            pzxid: 7,
            ctime: 0,
            mtime: 0,
            version,
            cversion: 0,
            aversion: 0,
            ephemeral_owner: 0,
            data_length: i32::try_from(length).unwrap(),
            num_children: 0,
        }
    }

    #[test]
    fn carriers_and_markers_are_vacant() {
        assert!(!Node::of(stat(0, 0), b"").is_key());
        assert!(Node::of(stat(1, 0), b"").is_key());
        assert!(Node::of(stat(0, 1), b"x").is_key());
        assert!(!Node::of(stat(5, MARKER.len()), MARKER).is_key());
        assert!(!Node::of(stat(5, SHARED.len()), SHARED).is_key());
        assert!(encode(SHARED) != SHARED && decode(encode(SHARED).into_owned()) == SHARED);
    }

    #[test]
    fn the_stat_tells_unless_the_length_is_the_markers() {
        assert_eq!(Node::by_stat(stat(0, 0)), Some(Node::Vacant(stat(0, 0))));
        assert_eq!(Node::by_stat(stat(3, 0)), Some(Node::Key(stat(3, 0))));
        assert_eq!(Node::by_stat(stat(0, 9)), Some(Node::Key(stat(0, 9))));
        assert_eq!(Node::by_stat(stat(2, MARKER.len())), None);
    }

    #[test]
    fn versions_carry_the_incarnation() {
        for number in [0, 7, i32::MAX, i32::MIN] {
            assert_eq!(counter(&version(&stat(number, 0))), number);
        }
        let version = version(&stat(-1, 0));
        assert_eq!((version.index(), version.created(), version.counter()), (9, 7, u64::from(u32::MAX)));
        assert!(check_origin(&version).is_ok());
        assert!(matches!(check_origin(&Version::new(BackendKind::Etcd, 9)), Err(Error::Unsupported { .. })));
    }

    /// What a znode may hold: of ours, of other programs, and damaged.
    fn any_data() -> impl Strategy<Value = Vec<u8>> {
        let parts = prop_oneof![
            Just(MARKER.to_vec()),
            Just(SHARED.to_vec()),
            Just(b"shared\0".to_vec()),
            (0..MARKER.len()).prop_map(|length| MARKER[..length].to_vec()),
            prop::collection::vec(any::<u8>(), 0..4),
        ];
        prop::collection::vec(parts, 0..4).prop_map(|parts| parts.concat())
    }

    proptest! {
        /// Whatever a znode holds is a value of its own, if it is a key, and stays as it is when that is written back.
        #[test]
        fn any_data_is_a_value_or_vacant(data in any_data(), version in 0..3_i32) {
            let stat = stat(version, data.len());
            let node = Node::of(stat, &data);
            prop_assert!(Node::by_stat(stat).is_none_or(|told| told == node));
            let value = decode(data.clone());
            prop_assert!(data.ends_with(&value));
            prop_assert_eq!(decode(encode(&value).into_owned()), value.clone());
            prop_assert!(Node::of(self::stat(1, 0), &encode(&value)).is_key());
            // What only begins like the marker was written by another program, and is told as it is.
            prop_assert!(value.len() == data.len() || encode(&value) == data);
        }

        #[test]
        fn every_value_survives_and_none_is_the_marker(markers in 0..3usize, tail in any::<Vec<u8>>()) {
            let value = [MARKER.repeat(markers), tail].concat();
            let data = encode(&value).into_owned();
            prop_assert!(data != MARKER);
            prop_assert_eq!(decode(data), value);
        }
    }
}
