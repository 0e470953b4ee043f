//! What a key is, and that a key and a directory of its name live side by side.

use super::fixture::{Fixture, Outcome};
use super::support::{all_keys, assert_error, key, keys_of, put_all, value_of};
use crate::error::Error;
use crate::key::Key;
use crate::store::Store;
use crate::types::{
    BackendKind, Check, Condition, Consistency, Depth, Expected, ListOptions, Operation, PutOptions, TxnOutcome,
    Version,
};

/// Valid names that some server, URL, shell or file system would like to change.
const ODD_NAMES: &[&str] = &[
    " ",
    " leading space",
    "trailing space ",
    "two  spaces",
    "non\u{a0}breaking",
    "a?b",
    "?a=b&c=d",
    "a#b",
    "#",
    "%",
    "%%",
    "100%",
    "%2F",
    "a%2fb",
    "%2e%2e",
    "%00",
    "%zz",
    "%u{",
    "%u{1f600}",
    "%u{2f}",
    "a+b",
    "+",
    "a&b",
    "a=b",
    "a;b",
    "a:b",
    "a,b",
    "~",
    "~user",
    "!@$^*()",
    "[a]",
    "{a}",
    "<a>",
    "a|b",
    "`a`",
    "\\",
    "a\\b",
    "\"quoted\"",
    "'quoted'",
    "...",
    ".hidden",
    "a.",
    "a..",
    "a..b",
    "-",
    "_",
    "0",
    "-0000000001",
    "null",
    "ключ",
    "鍵",
    "مفتاح",
    "zero\u{200b}width",
    "\u{feff}",
    "\u{d7ff}",
    "\u{f900}",
    "\u{ffef}",
    "😀",
    "👩‍👩‍👧",
    "𝕜𝕖𝕪",
];

/// `/a//b/` and `a/b` are one key, and its normal form is what comes back.
pub async fn a_key_has_one_normal_form(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    store.put("/a//b/", "1").await?;
    for path in ["a/b", "/a/b", "a/b/", "//a///b//"] {
        let pair = store.get(path).await?;
        assert_eq!((pair.key.as_str(), &pair.value[..]), ("a/b", &b"1"[..]), "{path}");
        assert!(store.exists(path).await?, "{path}");
    }
    assert_eq!(all_keys(store).await?, ["a/b"]);
    assert_eq!(store.atomic_put("//a//b", "2", &store.get("a/b").await?).await?.key.as_str(), "a/b");
    store.delete("a//b/").await?;
    assert!(all_keys(store).await?.is_empty());
    Ok(())
}

/// The empty key is refused, however many slashes it is written with.
pub async fn refused_empty_key(fixture: &Fixture) -> Outcome {
    for path in ["", "/", "///"] {
        assert_no_key(fixture.store(), path).await;
    }
    Ok(())
}

/// A segment `.` or `..` is refused wherever it stands.
pub async fn refused_dot_segments(fixture: &Fixture) -> Outcome {
    for path in [".", "..", "a/.", "a/..", "./a", "../a", "a/./b", "a/../b", "/../a/", "a//..//b"] {
        assert_no_path(fixture.store(), path).await;
    }
    Ok(())
}

/// Control characters are refused, NUL among them.
pub async fn refused_control_characters(fixture: &Fixture) -> Outcome {
    for path in ["\0", "a\0b", "a/\u{1}", "tab\tbed", "line\nfeed", "\u{1f}", "\u{7f}", "\u{80}", "a\u{85}", "\u{9f}"] {
        assert_no_path(fixture.store(), path).await;
    }
    Ok(())
}

/// Code points for private use and the specials are refused.
pub async fn refused_code_points(fixture: &Fixture) -> Outcome {
    for path in ["\u{e000}", "a/b\u{f8ff}", "\u{fff0}", "\u{fffd}", "\u{fffe}/a", "a\u{ffff}"] {
        assert_no_path(fixture.store(), path).await;
    }
    Ok(())
}

/// A key of more than 512 bytes is refused, whatever its segments and characters.
pub async fn refused_overlong_key(fixture: &Fixture) -> Outcome {
    let many_segments = "ab/".repeat(171);
    for path in ["x".repeat(Key::MAX_LEN + 1), "é".repeat(257), format!("{many_segments}x"), "x/".repeat(50_000)] {
        assert_no_path(fixture.store(), &path).await;
    }
    assert!(all_keys(fixture.store()).await?.is_empty());
    Ok(())
}

/// Spaces, `?`, `#`, `%`, `+`, unicode and the like survive the trip in every call.
pub async fn odd_keys_survive_the_trip(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, ODD_NAMES).await?;
    let mut sorted = ODD_NAMES.to_vec();
    sorted.sort_unstable();
    assert_eq!(all_keys(store).await?, sorted);
    assert_eq!(keys_of(&store.list("").await?), sorted);
    assert_all_survive(async |name| odd_key(store, name).await).await;
    assert!(all_keys(store).await?.is_empty());
    Ok(())
}

async fn odd_key(store: &Store, name: &str) -> Outcome {
    let pair = store.get(name).await?;
    assert_eq!((pair.key.as_str(), &pair.value[..]), (name, format!("value of {name}").as_bytes()));
    assert!(store.exists(name).await?, "{name:?}");
    assert_eq!(store.get_with(name, Consistency::Stale).await?.key.as_str(), name);
    let replaced = store.atomic_put(name, "new", &pair).await?;
    assert_eq!(replaced.key.as_str(), name);
    let operations = vec![Operation::put(name, "newer")?];
    let outcome = store.txn(vec![Check::new(name, Condition::Version(replaced.version))?], operations).await?;
    assert!(matches!(outcome, TxnOutcome::Committed(_)), "{name:?}");
    store.delete(name).await?;
    let again = store.atomic_put(name, "again", Expected::Absent).await?;
    store.atomic_delete(name, again.version).await?;
    assert!(!store.exists(name).await?, "{name:?}");
    Ok(())
}

/// What holds for keys of odd names holds for directories of such names.
pub async fn odd_names_of_directories_survive_the_trip(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    assert_all_survive(async |name| odd_directory(store, name).await).await;
    assert!(all_keys(store).await?.is_empty());
    Ok(())
}

async fn odd_directory(store: &Store, name: &str) -> Outcome {
    let path = format!("{name}/{name}");
    store.put(&path, "").await?;
    assert_eq!(keys_of(&store.list(name).await?), [path.as_str()]);
    assert_eq!(*store.list_keys(name, ListOptions::default()).await?.items, [key(&path)]);
    let children = ListOptions { depth: Depth::Children, ..ListOptions::default() };
    assert_eq!(keys_of(&store.list_with(name, children).await?.items), [path.as_str()]);
    assert_error!(store.get(name).await, Error::KeyNotFound { .. }, "{name:?}");
    assert_eq!(store.delete_tree(name).await?, 1, "{name:?}");
    Ok(())
}

/// Tries every odd name before it fails, for all that fail.
async fn assert_all_survive(trip: impl AsyncFn(&'static str) -> Outcome) {
    let mut failed = Vec::new();
    for name in ODD_NAMES {
        if let Err(failure) = trip(name).await {
            failed.push(format!("{name:?}: {failure}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Keys are compared by their bytes: nothing normalises their unicode.
pub async fn composed_and_decomposed_characters_are_two_keys(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    store.put("caf\u{e9}", "composed").await?;
    store.put("cafe\u{301}", "decomposed").await?;
    assert_eq!(value_of(store, "caf\u{e9}").await?, "composed");
    assert_eq!(value_of(store, "cafe\u{301}").await?, "decomposed");
    assert_eq!(all_keys(store).await?, ["cafe\u{301}", "caf\u{e9}"]);
    Ok(())
}

/// Upper and lower case make different keys.
pub async fn case_matters(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["key", "Key", "KEY/x"]).await?;
    assert_eq!(value_of(store, "Key").await?, "value of Key");
    assert_error!(store.get("KEY").await, Error::KeyNotFound { .. });
    assert_eq!(all_keys(store).await?, ["KEY/x", "Key", "key"]);
    Ok(())
}

/// A key of 512 bytes works.
pub async fn longest_key_in_one_segment(fixture: &Fixture) -> Outcome {
    assert_round_trip(fixture.store(), &"x".repeat(Key::MAX_LEN)).await
}

/// 512 bytes may be as many segments as they can.
pub async fn longest_key_in_many_segments(fixture: &Fixture) -> Outcome {
    assert_round_trip(fixture.store(), &format!("{}zz", "a/".repeat(255))).await
}

/// 512 bytes may be any characters, and those that a backend has to escape don't make a key longer.
pub async fn longest_key_in_wide_characters(fixture: &Fixture) -> Outcome {
    for wide in ["é".repeat(256), "😀".repeat(128), "%".repeat(512), " ".repeat(512)] {
        assert_round_trip(fixture.store(), &wide).await?;
    }
    Ok(())
}

/// The name that ZooKeeper reserves is reserved only where there is no namespace.
pub async fn zookeeper_is_an_ordinary_name_in_a_namespace(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    if store.capabilities().backend == BackendKind::Custom {
        // Its namespace is its own affair: the store doesn't know of it, and so reserves the name.
        assert_refused(store, "zookeeper/quota").await;
        return Ok(());
    }
    put_all(store, &["zookeeper", "zookeeper/quota"]).await?;
    assert_eq!(all_keys(store).await?, ["zookeeper", "zookeeper/quota"]);
    Ok(())
}

/// Every key lives under the store's namespace: another namespace has keys of its own, even one whose name starts
/// alike.
pub async fn namespaces_are_apart(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let Some(neighbour) = fixture.neighbour().await else { return Ok(()) };
    store.put("a", "here").await?;
    assert!(neighbour.store().list("").await?.is_empty());
    neighbour.store().put("a", "there").await?;
    neighbour.store().put("b", "there").await?;
    assert_eq!(value_of(store, "a").await?, "here");
    assert_eq!(all_keys(store).await?, ["a"]);
    neighbour.store().delete("a").await?;
    assert!(store.exists("a").await?);
    neighbour.finish().await
}

/// Callers never see the namespace, in errors neither.
pub async fn errors_name_the_key_without_the_namespace(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let version = store.put("there", "1").await?;
    let missing = [
        store.get("no/such").await.err(),
        store.delete("/no//such/").await.err(),
        store.list("no/such").await.err(),
        store.delete_tree("no/such").await.err(),
        store.atomic_put("no/such", "1", version).await.err(),
        store.atomic_delete("no/such", version).await.err(),
    ];
    for error in missing {
        let Some(Error::KeyNotFound { key }) = error else { panic!("expected KeyNotFound, got {error:?}") };
        assert_eq!(&*key, "no/such");
    }
    let exists = store.atomic_put("/there", "2", Expected::Absent).await;
    assert!(matches!(&exists, Err(Error::KeyExists { key }) if &**key == "there"), "{exists:?}");
    store.put("there", "2").await?;
    let modified = store.atomic_put("/there", "3", version).await;
    assert!(matches!(&modified, Err(Error::KeyModified { key }) if &**key == "there"), "{modified:?}");
    Ok(())
}

/// A key and a directory of the same name may exist together: the key first.
pub async fn a_key_and_then_a_directory_of_its_name(fixture: &Fixture) -> Outcome {
    put_all(fixture.store(), &["a", "a/b", "a/b/c/d"]).await?;
    assert_side_by_side(fixture.store()).await
}

/// A key and a directory of the same name may exist together: the directory first.
pub async fn a_directory_and_then_a_key_of_its_name(fixture: &Fixture) -> Outcome {
    put_all(fixture.store(), &["a/b/c/d", "a/b", "a"]).await?;
    assert_side_by_side(fixture.store()).await
}

async fn assert_side_by_side(store: &Store) -> Outcome {
    for path in ["a", "a/b", "a/b/c/d"] {
        assert_eq!(value_of(store, path).await?, format!("value of {path}"));
        assert!(store.exists(path).await?);
    }
    assert_eq!(all_keys(store).await?, ["a", "a/b", "a/b/c/d"]);
    assert_eq!(keys_of(&store.list("a").await?), ["a/b", "a/b/c/d"]);
    assert_eq!(keys_of(&store.list("a/b").await?), ["a/b/c/d"]);
    Ok(())
}

/// Deleting `a` leaves `a/b`, and `a` is gone from every call.
pub async fn deleting_a_key_leaves_what_is_beneath(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "a/b"]).await?;
    store.delete("a").await?;
    assert_error!(store.get("a").await, Error::KeyNotFound { .. });
    assert!(!store.exists("a").await?);
    assert_error!(store.delete("a").await, Error::KeyNotFound { .. });
    assert_eq!(all_keys(store).await?, ["a/b"]);
    assert_eq!(value_of(store, "a/b").await?, "value of a/b");
    Ok(())
}

/// Deleting `a/b` leaves `a`.
pub async fn deleting_what_is_beneath_leaves_the_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "a/b"]).await?;
    store.delete("a/b").await?;
    assert_eq!(value_of(store, "a").await?, "value of a");
    assert_eq!(all_keys(store).await?, ["a"]);
    assert!(store.list("a").await?.is_empty());
    Ok(())
}

/// A key that was deleted above others can be made again by every write, and deleted again.
pub async fn a_key_deleted_above_others_can_be_made_again(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "a/b"]).await?;
    store.delete("a").await?;
    store.put("a", "again").await?;
    assert_eq!(value_of(store, "a").await?, "again");
    store.delete("a").await?;
    let pair = store.atomic_put("a", "", Expected::Absent).await?;
    assert_eq!(store.get("a").await?, pair);
    store.atomic_delete("a", pair.version).await?;
    let _ = store.txn(vec![Check::new("a", Condition::Absent)?], vec![Operation::put("a", "txn")?]).await?;
    assert_eq!(value_of(store, "a").await?, "txn");
    store.delete("a/b").await?;
    assert_eq!(all_keys(store).await?, ["a"]);
    Ok(())
}

/// What is there only to carry keys beneath is no key to any call.
pub async fn parents_are_not_keys(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let version = store.put("a/b/c", "1").await?;
    for parent in ["a", "a/b"] {
        assert_error!(store.get(parent).await, Error::KeyNotFound { .. });
        assert!(!store.exists(parent).await?);
        assert_error!(store.delete(parent).await, Error::KeyNotFound { .. });
        assert_error!(store.atomic_put(parent, "2", version).await, Error::KeyNotFound { .. });
        assert_error!(store.atomic_delete(parent, version).await, Error::KeyNotFound { .. });
    }
    assert_eq!(all_keys(store).await?, ["a/b/c"]);
    assert_eq!(keys_of(&store.list("a").await?), ["a/b/c"]);
    Ok(())
}

/// A directory without keys does not exist: whatever a backend leaves behind of it doesn't show.
pub async fn parents_left_behind_are_not_keys(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    store.put("a/b/c", "1").await?;
    store.delete("a/b/c").await?;
    for path in ["a", "a/b", "a/b/c"] {
        assert_error!(store.get(path).await, Error::KeyNotFound { .. });
        assert!(!store.exists(path).await?);
        assert_error!(store.list(path).await, Error::KeyNotFound { .. });
        assert_error!(store.delete_tree(path).await, Error::KeyNotFound { .. });
    }
    assert!(all_keys(store).await?.is_empty());
    store.atomic_put("a/b", "2", Expected::Absent).await?;
    assert_eq!(all_keys(store).await?, ["a/b"]);
    Ok(())
}

async fn assert_round_trip(store: &Store, path: &str) -> Outcome {
    let version = store.put(path, "1").await?;
    let pair = store.get(path).await?;
    assert_eq!((pair.key.as_str(), pair.version), (path, version));
    assert_eq!(keys_of(&store.list(key(path).parent()).await?), [path]);
    let outcome = store.txn(vec![Check::new(path, Condition::Exists)?], vec![Operation::put(path, "2")?]).await?;
    assert!(matches!(outcome, TxnOutcome::Committed(_)), "{outcome:?}");
    store.delete(path).await?;
    assert!(!store.exists(path).await?);
    Ok(())
}

/// No call takes `path` for a key or a directory.
async fn assert_no_path(store: &Store, path: &str) {
    assert_no_key(store, path).await;
    let options = ListOptions::default;
    assert_error!(store.list(path).await, Error::InvalidKey { .. }, "{path:?}");
    assert_error!(store.list_with(path, options()).await, Error::InvalidKey { .. }, "{path:?}");
    assert_error!(store.list_keys(path, options()).await, Error::InvalidKey { .. }, "{path:?}");
    assert_error!(store.delete_tree(path).await, Error::InvalidKey { .. }, "{path:?}");
}

/// No call and no constructor takes `path` for a key.
async fn assert_no_key(store: &Store, path: &str) {
    assert_refused(store, path).await;
    assert_error!(Check::new(path, Condition::Absent), Error::InvalidKey { .. }, "{path:?}");
    assert_error!(Operation::put(path, "1"), Error::InvalidKey { .. }, "{path:?}");
    assert_error!(Operation::delete(path), Error::InvalidKey { .. }, "{path:?}");
}

/// No call on one key takes `path` for one.
async fn assert_refused(store: &Store, path: &str) {
    let version = Version::new(BackendKind::Custom, 1);
    assert_error!(store.get(path).await, Error::InvalidKey { .. }, "{path:?}");
    assert_error!(store.get_with(path, Consistency::Stale).await, Error::InvalidKey { .. }, "{path:?}");
    assert_error!(store.exists(path).await, Error::InvalidKey { .. }, "{path:?}");
    assert_error!(store.exists_with(path, Consistency::Stale).await, Error::InvalidKey { .. }, "{path:?}");
    assert_error!(store.put(path, "1").await, Error::InvalidKey { .. }, "{path:?}");
    assert_error!(store.put_with(path, "1", PutOptions::default()).await, Error::InvalidKey { .. }, "{path:?}");
    assert_error!(store.delete(path).await, Error::InvalidKey { .. }, "{path:?}");
    assert_error!(store.atomic_put(path, "1", Expected::Absent).await, Error::InvalidKey { .. }, "{path:?}");
    assert_error!(store.atomic_delete(path, version).await, Error::InvalidKey { .. }, "{path:?}");
}
