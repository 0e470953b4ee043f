//! Keys and directories: the only place that normalises, validates and namespaces a path.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

/// The key of a value: a UTF-8 path in its normal form, without leading, trailing or doubled slashes.
///
/// What is valid on one backend is valid on all. Refused are: the empty key, a `.` or `..` segment, control characters,
/// code points that are no characters or are reserved for private use, more than [`Key::MAX_LEN`] bytes and, where the
/// store has no namespace, a first segment `zookeeper`, which belongs to ZooKeeper.
///
/// ```
/// use kvactor::Key;
///
/// let key: Key = "/services//web/".parse()?;
/// assert_eq!(key.as_str(), "services/web");
/// assert!("a/../b".parse::<Key>().is_err());
/// # Ok::<(), kvactor::Error>(())
/// ```
///
/// Cloning shares the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(Arc<str>);

/// A directory: a path like a [`Key`], or the root, which holds every key of the namespace and is written as `""` or `"/"`.
///
/// A directory holds the keys strictly beneath it: `foo` holds `foo/bar`, neither `foo` itself nor `foobar/x`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Dir(Arc<str>);

impl Key {
    /// Longest key in bytes, in its normal form.
    pub const MAX_LEN: usize = 512;

    /// Brings `path` to its normal form and checks it.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] with the rule that `path` breaks.
    pub fn parse(path: &str) -> Result<Self> {
        let text = normalise(path)?;
        if text.is_empty() {
            return Err(invalid(path, "a key needs at least one segment"));
        }
        Ok(Key(text))
    }

    /// The normal form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory of the same name, which holds the keys beneath this one.
    pub fn as_dir(&self) -> Dir {
        Dir(self.0.clone())
    }

    /// The directory that this key lies in.
    pub fn parent(&self) -> Dir {
        match self.0.rfind('/') {
            Some(end) => Dir(self.0[..end].into()),
            None => Dir::root(),
        }
    }

    /// The first segment.
    pub fn first_segment(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }
}

impl Dir {
    /// The root of the namespace.
    pub fn root() -> Self {
        Dir::default()
    }

    /// Brings `path` to its normal form and checks it. `""` and `"/"` are the root.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] with the rule that `path` breaks.
    pub fn parse(path: &str) -> Result<Self> {
        normalise(path).map(Dir)
    }

    /// The normal form; empty for the root.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The key of the same name; none for the root.
    pub fn as_key(&self) -> Option<Key> {
        (!self.is_root()).then(|| Key(self.0.clone()))
    }

    /// The path of `key` relative to this directory, or none where `key` is not beneath it.
    pub fn relative<'k>(&self, key: &'k str) -> Option<&'k str> {
        if self.is_root() {
            return Some(key);
        }
        key.strip_prefix(self.as_str())?.strip_prefix('/')
    }
}

/// Makes the keys of one directory of their names.
#[cfg(feature = "zookeeper")]
#[derive(Debug)]
pub(crate) struct Children {
    /// The directory and a slash, and then the name that was made a key of last.
    path: String,
    stem: usize,
}

#[cfg(feature = "zookeeper")]
impl Children {
    pub(crate) fn of(dir: &Dir) -> Self {
        let path = if dir.is_root() { String::new() } else { [dir.as_str(), "/"].concat() };
        Children { stem: path.len(), path }
    }

    /// The key of a name; none where that is no valid key in normal form.
    pub(crate) fn key(&mut self, name: &str) -> Option<Key> {
        self.path.truncate(self.stem);
        self.path.push_str(name);
        key_of(&self.path)
    }
}

/// Where a store's keys live on its server: what the URL's path says. Drivers translate with it; callers never see it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Namespace(Dir);

impl Namespace {
    /// The namespace at `dir`.
    pub fn new(dir: Dir) -> Self {
        Namespace(dir)
    }

    /// Whether keys live at the server's own root.
    pub fn is_root(&self) -> bool {
        self.0.is_root()
    }

    /// The namespace's own directory on the server.
    pub fn dir(&self) -> &Dir {
        &self.0
    }

    /// The server's path of `key`, without a leading slash: `prefix/a/b`.
    pub fn path(&self, key: &Key) -> String {
        self.join(key.as_str())
    }

    /// What all keys beneath `dir` start with on the server: `prefix/a/`, or `""` for the root without a namespace.
    pub fn prefix(&self, dir: &Dir) -> String {
        let mut path = self.join(dir.as_str());
        if !path.is_empty() {
            path.push('/');
        }
        path
    }

    /// The caller's key of a server's path, or none where the path is outside of the namespace or no valid key (another
    /// program may have written anything).
    pub fn key(&self, path: &str) -> Option<Key> {
        key_of(self.0.relative(path)?)
    }

    /// Whether there is a [`key`](Self::key) of this path.
    #[cfg(feature = "consul")]
    pub(crate) fn has_key(&self, path: &str) -> bool {
        self.0.relative(path).is_some_and(|inside| is_plain(inside) || key_of(inside).is_some())
    }

    /// As [`key`](Self::key), of a text that the key can share.
    #[cfg(any(feature = "local", feature = "memory"))]
    pub(crate) fn shared_key(&self, path: &Arc<str>) -> Option<Key> {
        match self.is_root() && is_plain(path) {
            true => Some(Key(path.clone())),
            false => self.key(path),
        }
    }

    fn join(&self, path: &str) -> String {
        let namespace = self.0.as_str();
        let mut joined = String::with_capacity(namespace.len() + path.len() + 2);
        joined.push_str(namespace);
        if !namespace.is_empty() && !path.is_empty() {
            joined.push('/');
        }
        joined.push_str(path);
        joined
    }
}

/// Whether `path` is a key in its normal form, as far as one look at each byte can tell. Nearly every key is: the others have
/// characters beyond ASCII, or segments that start with a dot.
fn is_plain(path: &str) -> bool {
    let mut before = b'/';
    for byte in path.bytes() {
        let is_fine = match byte {
            // No segment is empty, and none is `.` or `..`.
            b'/' | b'.' => before != b'/',
            b' '..=b'~' => true,
            _ => false,
        };
        if !is_fine {
            return false;
        }
        before = byte;
    }
    before != b'/' && path.len() <= Key::MAX_LEN
}

/// The key that `path` is; none where that is no valid key in normal form.
fn key_of(path: &str) -> Option<Key> {
    match is_plain(path) {
        true => Some(Key(path.into())),
        false => Key::parse(path).ok().filter(|key| key.as_str() == path),
    }
}

/// The normal form of `path`, checked; empty for the root.
fn normalise(path: &str) -> Result<Arc<str>> {
    if is_plain(path) {
        return Ok(path.into());
    }
    if let Some(reason) = path.chars().find_map(forbidden) {
        return Err(invalid(path, reason));
    }
    if path.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(invalid(path, "`.` and `..` are no segments of a key"));
    }
    let trimmed = path.trim_matches('/');
    let text: Arc<str> = match trimmed.contains("//") {
        false => trimmed.into(),
        true => trimmed.split('/').filter(|segment| !segment.is_empty()).collect::<Vec<_>>().join("/").into(),
    };
    if text.len() > Key::MAX_LEN {
        return Err(invalid(path, "a key has at most 512 bytes"));
    }
    Ok(text)
}

/// Why a character can't be part of a key. ZooKeeper refuses these; what it refuses is refused everywhere.
fn forbidden(c: char) -> Option<&'static str> {
    match c {
        '\0' => Some("NUL is not allowed"),
        c if c.is_control() => Some("control characters are not allowed"),
        '\u{e000}'..='\u{f8ff}' => Some("characters for private use are not allowed"),
        '\u{fff0}'..='\u{ffff}' => Some("the code points U+FFF0 to U+FFFF are not allowed"),
        _ => None,
    }
}

fn invalid(path: &str, reason: &'static str) -> Error {
    let shown: String = path.chars().take(64).collect();
    let shown = if shown.len() < path.len() { format!("{shown}…") } else { shown };
    Error::InvalidKey { key: shown.into(), reason }
}

/// What keys and directories have in common: conversions and looks.
macro_rules! path_type {
    ($type:ident) => {
        impl Deref for $type {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
        impl FromStr for $type {
            type Err = Error;
            fn from_str(path: &str) -> Result<Self> {
                $type::parse(path)
            }
        }
        impl TryFrom<&str> for $type {
            type Error = Error;
            fn try_from(path: &str) -> Result<Self> {
                $type::parse(path)
            }
        }
        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(path: String) -> Result<Self> {
                $type::parse(&path)
            }
        }
        impl TryFrom<&String> for $type {
            type Error = Error;
            fn try_from(path: &String) -> Result<Self> {
                $type::parse(path)
            }
        }
        impl From<&$type> for $type {
            fn from(path: &$type) -> Self {
                path.clone()
            }
        }
        impl From<$type> for String {
            fn from(path: $type) -> Self {
                path.0.as_ref().to_owned()
            }
        }
    };
}
path_type!(Key);
path_type!(Dir);

/// The text, shared and not copied.
impl From<&Key> for Arc<str> {
    fn from(key: &Key) -> Self {
        key.0.clone()
    }
}

impl From<Key> for Dir {
    fn from(key: Key) -> Self {
        Dir(key.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_key_has_one_form() {
        for path in ["a/b", "/a/b", "a/b/", "//a///b//"] {
            assert_eq!(Key::parse(path).unwrap().as_str(), "a/b", "{path}");
        }
    }

    #[test]
    fn broken_rules_are_named() {
        let long = "x".repeat(513);
        for path in ["", "/", "///", ".", "a/..", "a/./b", "a\0b", "a\u{7f}", "\u{85}", "\u{e000}", "\u{fffe}", &long] {
            assert!(matches!(Key::parse(path), Err(Error::InvalidKey { .. })), "{path:?}");
        }
        assert!(Key::parse(&"x".repeat(512)).is_ok());
        assert!(Dir::parse("//").unwrap().is_root());
    }

    #[test]
    fn a_directory_holds_what_is_strictly_beneath_it() {
        let dir = Dir::parse("foo").unwrap();
        assert_eq!(dir.relative("foo/bar"), Some("bar"));
        assert_eq!(dir.relative("foo"), None);
        assert_eq!(dir.relative("foobar/x"), None);
        assert_eq!(Dir::root().relative("foo"), Some("foo"));
        assert_eq!(Key::parse("a/b").unwrap().parent(), Dir::parse("a").unwrap());
        assert_eq!(Key::parse("a").unwrap().parent(), Dir::root());
    }

    #[test]
    fn foreign_paths_outside_of_the_rules_are_no_keys() {
        let namespace = Namespace::new(Dir::parse("app").unwrap());
        assert_eq!(namespace.key("app/a/b").unwrap().as_str(), "a/b");
        for path in ["app", "app/", "app//x", "application/x", "app/a/", "other/a"] {
            assert_eq!(namespace.key(path), None, "{path}");
        }
    }

    /// Any text, and texts made of what the rules are about.
    fn any_path() -> impl Strategy<Value = String> {
        let odd = "[./a\u{0}\u{7f}\u{85}\u{e000}\u{f8ff}\u{fff0}\u{fffd}\u{ffff}\u{2028}é😀]{0,24}";
        prop_oneof![
            any::<String>(),
            odd,
            "(/|\\.{1,3}|a|zookeeper|é){0,12}",
            // Around the longest.
            "/{0,2}[aé/]{500,520}/{0,2}",
        ]
    }

    /// The rules, in other words than the code's.
    fn by_the_rules(path: &str) -> Option<String> {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let is_allowed = |c: char| {
            let code = u32::from(c);
            code >= 0x20
                && !(0x7f..=0x9f).contains(&code)
                && !(0xe000..=0xf8ff).contains(&code)
                && !(0xfff0..=0xffff).contains(&code)
        };
        let joined = segments.join("/");
        let allowed = path.chars().all(is_allowed) && !segments.contains(&".") && !segments.contains(&"..");
        (allowed && joined.len() <= 512).then_some(joined)
    }

    proptest! {
        #[test]
        fn a_path_is_refused_or_has_one_form(path in any_path()) {
            let (dir, key, expected) = (Dir::parse(&path), Key::parse(&path), by_the_rules(&path));
            prop_assert_eq!(dir.as_ref().ok().map(Dir::as_str), expected.as_deref());
            prop_assert_eq!(key.as_ref().ok().map(Key::as_str), expected.as_deref().filter(|path| !path.is_empty()));
            for error in [dir.as_ref().err(), key.as_ref().err()].into_iter().flatten() {
                let is_short = |key: &str| key.chars().count() <= 65;
                prop_assert!(matches!(error, Error::InvalidKey { key, .. } if is_short(key)), "{error:?}");
            }
            if let Ok(key) = key {
                prop_assert_eq!(key.to_string().parse::<Key>().unwrap(), key.clone());
                let json = serde_json::to_string(&key).unwrap();
                prop_assert_eq!(serde_json::from_str::<Key>(&json).unwrap(), key.clone());
                prop_assert_eq!(key.as_dir().as_key(), Some(key.clone()));
                prop_assert!(key.parent().relative(&key).is_some_and(|name| !name.contains('/')));
            }
        }

        #[test]
        fn what_is_read_as_a_key_is_one(json in prop_oneof![
            any::<Vec<u8>>(),
            any_path().prop_map(|path| serde_json::to_vec(&path).unwrap()),
        ]) {
            if let Ok(key) = serde_json::from_slice::<Key>(&json) {
                prop_assert_eq!(by_the_rules(&key), Some(key.to_string()));
                prop_assert!(!key.is_empty());
            }
            if let Ok(dir) = serde_json::from_slice::<Dir>(&json) {
                prop_assert_eq!(by_the_rules(&dir), Some(dir.to_string()));
            }
        }

        #[test]
        fn a_servers_path_is_one_key_or_none(space in any_path(), path in any_path(), inside in any::<bool>()) {
            let Ok(dir) = Dir::parse(&space) else { return Ok(()) };
            let namespace = Namespace::new(dir.clone());
            let path = if inside { format!("{dir}/{path}") } else { path };
            #[cfg(feature = "consul")]
            prop_assert_eq!(namespace.has_key(&path), namespace.key(&path).is_some());
            if let Some(key) = namespace.key(&path) {
                prop_assert_eq!(namespace.path(&key), path);
            }
        }

        #[test]
        fn what_looks_plain_is_a_key_in_its_normal_form(path in any_path()) {
            if is_plain(&path) {
                prop_assert_eq!(by_the_rules(&path).filter(|form| !form.is_empty()), Some(path));
            }
        }

        #[test]
        fn the_normal_form_is_stable(path in any::<String>()) {
            if let Ok(key) = Key::parse(&path) {
                prop_assert_eq!(Key::parse(key.as_str()).unwrap(), key.clone());
                prop_assert!(!key.contains("//") && !key.starts_with('/') && !key.ends_with('/'));
                prop_assert!(key.len() <= Key::MAX_LEN && !key.is_empty());
            }
        }

        #[test]
        fn a_namespace_is_invisible(space in "[a-z]{0,4}(/[a-z]{1,3}){0,2}", path in "[a-z ?#%+é/]{1,24}") {
            let namespace = Namespace::new(Dir::parse(&space).unwrap());
            if let Ok(key) = Key::parse(&path) {
                prop_assert_eq!(namespace.key(&namespace.path(&key)), Some(key.clone()));
                prop_assert!(namespace.path(&key).starts_with(&namespace.prefix(&Dir::root())));
            }
        }
    }
}
