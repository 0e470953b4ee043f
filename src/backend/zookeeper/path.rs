//! Keys as znode paths. ZooKeeper takes nearly every key as it is; what it refuses is escaped.
//!
//! ZooKeeper checks paths by UTF-16 code units and refuses surrogates, so no character above U+FFFF (emoji, for one) can
//! be in a znode's name. Such a character is written `%u{1F600}`; where a key itself has `%u{`, its `%` is written `%u{25}`.
//! Everything else, a lone `%` too, stays as it is, and other programs see the keys under their own names. A znode whose
//! name this escaping can't have produced belongs to another program, and is no key; nor are the contenders of locks.

use super::contender::Contender;
use crate::key::{self, Dir, Key, Namespace};
use std::borrow::Cow;
use std::fmt::Write as _;

/// What an escaped character starts with.
const ESCAPE: &str = "%u{";

/// Translates between keys and znode paths.
#[derive(Debug)]
pub(super) struct Paths {
    namespace: Namespace,
    /// The namespace's own znode.
    root: String,
}

impl Paths {
    pub(super) fn new(namespace: Namespace) -> Self {
        let root = format!("/{}", encode(namespace.dir()));
        Paths { namespace, root }
    }

    /// The znode of `key`.
    pub(super) fn key(&self, key: &Key) -> String {
        let mut path = String::with_capacity(self.root.len() + 1 + key.len());
        self.write_key(key, &mut path);
        path
    }

    /// Writes the path of the znode of `key` over a text.
    pub(super) fn write_key(&self, key: &Key, path: &mut String) {
        path.clear();
        path.push_str(self.root.trim_end_matches('/'));
        path.push('/');
        // No escape reaches over a slash.
        path.push_str(&encode(key));
    }

    /// The znode of `dir`.
    pub(super) fn dir(&self, dir: &Dir) -> String {
        match dir.as_key() {
            Some(key) => self.key(&key),
            None => self.root.clone(),
        }
    }

    /// Makes the keys of the znodes in `dir`.
    pub(super) fn children(&self, dir: &Dir) -> Children {
        let is_top = dir.is_root() && self.namespace.is_root();
        Children { keys: key::Children::of(dir), is_top, have_escapes: false }
    }

    /// The key of the znode at `path`, or none where that is no key of ours.
    pub(super) fn read(&self, path: &str) -> Option<Key> {
        let inside = path.strip_prefix(self.root.trim_end_matches('/'))?.strip_prefix('/')?;
        let name = decode(inside)?;
        let key = Key::parse(&name).ok().filter(|key| key.as_str() == name)?;
        let reserved = self.namespace.is_root() && key.first_segment() == "zookeeper";
        (!reserved).then_some(key)
    }

    /// The znode above `path`, if it is strictly beneath the namespace: one that this store may remove.
    pub(super) fn directory_of<'p>(&self, path: &'p str) -> Option<&'p str> {
        let (parent, _) = path.rsplit_once('/')?;
        let inside = parent.strip_prefix(self.root.trim_end_matches('/'))?;
        (inside.len() > 1 && inside.starts_with('/')).then_some(parent)
    }
}

/// Makes the keys of the znodes in one directory.
pub(super) struct Children {
    keys: key::Children,
    /// The directory is the server's own root.
    is_top: bool,
    have_escapes: bool,
}

impl Children {
    /// The key of the znode of this name, or none where that is no key of ours.
    pub(super) fn key(&mut self, name: &str) -> Option<Key> {
        let is_reserved = self.is_top && name == "zookeeper";
        if is_reserved || Contender::parse(name).is_some() {
            return None;
        }
        let decoded = decode(name)?;
        self.have_escapes |= matches!(decoded, Cow::Owned(_));
        self.keys.key(&decoded)
    }

    /// Whether a name was another than its key's.
    pub(super) fn have_escapes(&self) -> bool {
        self.have_escapes
    }
}

/// The znodes above `path` without the root, the uppermost first.
pub(super) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').skip(1).map(|(end, _)| &path[..end])
}

/// The znode above `path`; none where that is the root.
pub(super) fn parent(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(parent, _)| parent).filter(|parent| !parent.is_empty())
}

/// The znode's own name.
pub(super) fn name(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(_, name)| name)
}

fn encode(text: &str) -> Cow<'_, str> {
    if is_plain(text) || !text.contains(ESCAPE) && text.chars().all(fits_utf16_unit) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() + 16);
    for (position, c) in text.char_indices() {
        if fits_utf16_unit(c) && !text[position..].starts_with(ESCAPE) {
            encoded.push(c);
        } else {
            // Writing to a `String` can't fail.
            let _ = write!(encoded, "{ESCAPE}{:X}}}", u32::from(c));
        }
    }
    Cow::Owned(encoded)
}

/// Whether a text certainly needs no escaping and has none. Most have neither, which is told at one look.
fn is_plain(text: &str) -> bool {
    text.is_ascii() && !text.as_bytes().contains(&b'%')
}

fn fits_utf16_unit(c: char) -> bool {
    c.len_utf16() == 1
}

/// The reverse of [`encode`]: none where `name` is not what `encode` makes of any text.
fn decode(name: &str) -> Option<Cow<'_, str>> {
    if is_plain(name) {
        return Some(Cow::Borrowed(name));
    }
    let mut pieces = name.split(ESCAPE);
    let start = pieces.next()?;
    if start.len() == name.len() {
        return name.chars().all(fits_utf16_unit).then_some(Cow::Borrowed(name));
    }
    let mut decoded = start.to_owned();
    for piece in pieces {
        let (code, plain) = piece.split_once('}')?;
        decoded.push(char::from_u32(u32::from_str_radix(code, 16).ok()?)?);
        decoded.push_str(plain);
    }
    (encode(&decoded) == name).then_some(Cow::Owned(decoded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn in_namespace(namespace: &str) -> Paths {
        Paths::new(Namespace::new(Dir::parse(namespace).unwrap()))
    }

    #[test]
    fn only_what_zookeeper_refuses_is_escaped() {
        let paths = in_namespace("app");
        for (key, path) in [
            ("a/b", "/app/a/b"),
            ("100%/u{1}?#+ é漢", "/app/100%/u{1}?#+ é漢"),
            ("😀/x", "/app/%u{1F600}/x"),
            ("%u{1F600}", "/app/%u{25}u{1F600}"),
            ("%%u{", "/app/%%u{25}u{"),
        ] {
            assert_eq!(paths.key(&Key::parse(key).unwrap()), path);
        }
        assert_eq!(paths.dir(&Dir::root()), "/app");
        assert_eq!(in_namespace("").dir(&Dir::root()), "/");
    }

    #[test]
    fn znodes_elsewhere_and_of_other_programs_are_no_keys() {
        let paths = in_namespace("app");
        for path in ["/", "/app", "/application/x", "/other", "/app/%u{1f600}", "/app/%u{2F}", "/app/a%u{1F/600}"] {
            assert_eq!(paths.read(path), None, "{path}");
        }
        assert_eq!(in_namespace("").read("/a/zookeeper"), Some(Key::parse("a/zookeeper").unwrap()));
        for path in ["/", "/zookeeper", "/zookeeper/quota"] {
            assert_eq!(in_namespace("").read(path), None, "{path}");
        }
    }

    #[test]
    fn names_that_are_not_ours_are_no_keys() {
        let paths = in_namespace("");
        let dir = Dir::parse("a").unwrap();
        for name in ["%u{", "%u{zz}", "%u{41}", "%u{1f600}", "%u{01F600}", "%u{D800}", "%u{25}", "%u{+1F600}"] {
            assert_eq!(paths.children(&dir).key(name), None, "{name}");
        }
        assert_eq!(paths.children(&Dir::root()).key("zookeeper"), None);
        assert!(paths.children(&dir).key("zookeeper").is_some());
        assert_eq!(paths.children(&dir).key(&"x".repeat(511)), None);
    }

    #[test]
    fn directories_end_at_the_namespace() {
        let paths = in_namespace("app/x");
        assert_eq!(paths.directory_of("/app/x/a/b"), Some("/app/x/a"));
        assert_eq!(paths.directory_of("/app/x/a"), None);
        assert_eq!(paths.directory_of("/app/x"), None);
        assert_eq!(in_namespace("").directory_of("/a/b"), Some("/a"));
        assert_eq!(in_namespace("").directory_of("/a"), None);
        assert_eq!(ancestors("/a/b/c").collect::<Vec<_>>(), ["/a", "/a/b"]);
        assert_eq!((parent("/a/b"), parent("/a")), (Some("/a"), None));
    }

    proptest! {
        #[test]
        fn every_key_survives_the_trip(text in "([a-c%u{}/é]|\\PC|%u\\{|😀){1,32}") {
            if let Ok(key) = Key::parse(&text) {
                let (parent, paths) = (key.parent(), in_namespace("ns"));
                let path = paths.key(&key);
                let (_, name) = path.rsplit_once('/').unwrap();
                prop_assert!(path.chars().all(fits_utf16_unit));
                prop_assert_eq!(paths.read(&path), Some(key.clone()));
                prop_assert_eq!(paths.children(&parent).key(name), Some(key));
            }
        }

        /// Other programs may have made anything.
        #[test]
        fn a_znode_is_one_key_or_none(
            space in prop::sample::select(vec!["", "ns", "a/%u{", "😀"]),
            text in prop_oneof![any::<String>(), "(/|%u\\{|1F600|\\}|[a.%é]|zookeeper|_c_|0000000001){0,10}"],
            inside in any::<bool>(),
        ) {
            let paths = in_namespace(space);
            let path = if inside { format!("{}/{text}", paths.root.trim_end_matches('/')) } else { text.clone() };
            if let Some(key) = paths.read(&path) {
                prop_assert_eq!(paths.key(&key), path.as_str());
            }
            let dir = Dir::parse("d").unwrap();
            if let Some(key) = paths.children(&dir).key(&text) {
                prop_assert_eq!(paths.key(&key), format!("{}/{text}", paths.dir(&dir)));
            }
            let _ = (paths.directory_of(&path), parent(&path), ancestors(&path).count());
            let subject = super::super::contender::subject(&path);
            prop_assert!(path.starts_with(subject));
        }

        #[test]
        fn decoding_takes_only_what_encoding_makes(name in "([a-c%u{}1F60]|%u\\{1F600\\}){0,16}") {
            if let Some(text) = decode(&name) {
                prop_assert_eq!(encode(&text), name.as_str());
            }
        }
    }
}
