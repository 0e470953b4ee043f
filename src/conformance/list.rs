//! `list`, `list_with` and `list_keys`.

use super::fixture::{Fixture, Outcome};
use super::support::{STALE, all_keys, assert_error, eventually, key, keys_of, put_all};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::store::Store;
use crate::types::{Depth, KvPair, ListOptions, Page};
use futures_util::{StreamExt, TryStreamExt, stream};

fn children() -> ListOptions {
    ListOptions { depth: Depth::Children, ..ListOptions::default() }
}

fn after(path: &str) -> ListOptions {
    ListOptions { after: Some(key(path)), ..ListOptions::default() }
}

fn limit(limit: usize) -> ListOptions {
    ListOptions { limit: Some(limit), ..ListOptions::default() }
}

/// `list` goes down to all depths.
pub async fn list_is_recursive(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["d/a", "d/b/c", "d/b/d/e/f/g", "d/b"]).await?;
    assert_eq!(keys_of(&store.list("d").await?), ["d/a", "d/b", "d/b/c", "d/b/d/e/f/g"]);
    assert_eq!(keys_of(&store.list("d/b").await?), ["d/b/c", "d/b/d/e/f/g"]);
    assert_eq!(keys_of(&store.list("d/b/d/e").await?), ["d/b/d/e/f/g"]);
    Ok(())
}

/// `list` shows the values and versions that `get` shows.
pub async fn list_shows_what_get_shows(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["d/a", "d/b", "d/b/c", "d/c"]).await?;
    store.put("d/a", "changed").await?;
    store.put("d/b", "").await?;
    let pairs = store.list("d").await?;
    assert_eq!(pairs.len(), 4);
    for pair in pairs {
        assert_eq!(store.get(&pair.key).await?, pair);
    }
    Ok(())
}

/// `list("foo")` never returns `foo` itself or `foobar/x`, nor anything else that merely starts alike.
pub async fn list_holds_what_is_strictly_beneath(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let apart =
        ["fo", "fo/o", "foo", "foo bar/x", "foo!", "foo-bar/x", "foo.", "foo0", "foobar", "foobar/x", "bar/foo/x"];
    put_all(store, &apart).await?;
    assert!(store.list("foo").await?.is_empty());
    put_all(store, &["foo/bar", "foo/foo/x"]).await?;
    assert_eq!(keys_of(&store.list("foo").await?), ["foo/bar", "foo/foo/x"]);
    assert_eq!(keys_of(&store.list_with("foo", children()).await?.items), ["foo/bar"]);
    Ok(())
}

/// The order is that of the keys' bytes, at all depths at once: `a b`, `a-b`, `a/b`, `a0`.
pub async fn list_is_sorted_by_bytes(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let sorted = [
        "d/ ", "d/!/x", "d/-", "d/0", "d/10", "d/2", "d/A", "d/B/a", "d/a", "d/a b", "d/a b/c", "d/a!", "d/a-b",
        "d/a.b", "d/a/b", "d/a/b/c", "d/a/é", "d/a0", "d/aa", "d/z", "d/~", "d/é", "d/鍵", "d/😀",
    ];
    let mut shuffled = sorted;
    shuffled.sort_by_key(|path| path.bytes().rev().collect::<Vec<_>>());
    put_all(store, &shuffled).await?;
    assert_eq!(keys_of(&store.list("d").await?), sorted);
    assert_eq!(keys_of(&store.list("").await?), sorted);
    assert_eq!(all_keys(store).await?, sorted);
    assert_eq!(keys_of(&store.list("d/a").await?), ["d/a/b", "d/a/b/c", "d/a/é"]);
    let direct: Vec<_> = sorted.into_iter().filter(|path| path.matches('/').count() == 1).collect();
    assert_eq!(keys_of(&store.list_with("d", children()).await?.items), direct);
    Ok(())
}

/// `/d//e/` and `d/e` are one directory.
pub async fn list_takes_any_form_of_the_directory(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["d/e/a"]).await?;
    for path in ["d/e", "/d/e", "d/e/", "//d///e//"] {
        assert_eq!(keys_of(&store.list(path).await?), ["d/e/a"], "{path}");
    }
    for path in ["", "/", "//"] {
        assert_eq!(keys_of(&store.list(path).await?), ["d/e/a"], "{path:?}");
    }
    Ok(())
}

/// `list` is `KeyNotFound` if neither the directory nor a key of that name exists.
pub async fn list_of_a_missing_directory(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["dd/a", "a/d/b"]).await?;
    for path in ["d", "a/d/c", "a/d/b/c", "x/y/z"] {
        assert_error!(store.list(path).await, Error::KeyNotFound { .. }, "{path}");
        assert_error!(store.list_with(path, children()).await, Error::KeyNotFound { .. }, "{path}");
        assert_error!(store.list_with(path, limit(1)).await, Error::KeyNotFound { .. }, "{path}");
        assert_error!(store.list_keys(path, ListOptions::default()).await, Error::KeyNotFound { .. }, "{path}");
    }
    Ok(())
}

/// A key without keys beneath lists as empty, whatever its value.
pub async fn list_of_a_key_without_keys_beneath(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    store.put("full", "1").await?;
    store.put("empty", "").await?;
    for path in ["full", "empty"] {
        for options in [ListOptions::default(), children(), limit(1)] {
            let nothing = Page { items: vec![], next: None };
            assert_eq!(store.list_with(path, options.clone()).await?, nothing, "{path}");
            assert!(store.list_keys(path, options).await?.items.is_empty(), "{path}");
        }
    }
    Ok(())
}

/// `list("")` lists the namespace.
pub async fn list_of_the_root(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "b/c", "d/e/f"]).await?;
    assert_eq!(keys_of(&store.list("").await?), ["a", "b/c", "d/e/f"]);
    assert_eq!(keys_of(&store.list_with("", children()).await?.items), ["a"]);
    Ok(())
}

/// The root always exists: an empty namespace lists as empty.
pub async fn list_of_an_empty_root(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    assert!(store.list("").await?.is_empty());
    assert!(store.list_with("/", children()).await?.items.is_empty());
    assert_eq!(store.list_keys("", limit(3)).await?, Page { items: vec![], next: None });
    put_all(store, &["a"]).await?;
    store.delete("a").await?;
    assert!(store.list("").await?.is_empty());
    Ok(())
}

/// A directory goes with its last key.
pub async fn list_after_the_last_delete(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["d/a", "d/b"]).await?;
    store.delete("d/a").await?;
    assert_eq!(keys_of(&store.list("d").await?), ["d/b"]);
    store.delete("d/b").await?;
    assert_error!(store.list("d").await, Error::KeyNotFound { .. });
    Ok(())
}

/// `Depth::Children` lists the keys directly in the directory, and neither deeper keys nor directories.
pub async fn list_children_leaves_out_deeper_keys(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["d", "d/a", "d/b", "d/b/c", "d/e/f", "d/g"]).await?;
    let page = store.list_with("d", children()).await?;
    assert_eq!((keys_of(&page.items), page.next), (vec!["d/a", "d/b", "d/g"], None));
    for pair in page.items {
        assert_eq!(store.get(&pair.key).await?, pair);
    }
    Ok(())
}

/// A directory that holds only deeper keys exists, and has no children that are keys.
pub async fn list_children_of_a_directory_with_only_deeper_keys(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["d/e/f"]).await?;
    assert_eq!(store.list_with("d", children()).await?, Page { items: vec![], next: None });
    assert!(store.list_with("", children()).await?.items.is_empty());
    Ok(())
}

/// `list_keys` returns the keys that `list` returns, under each option.
pub async fn list_keys_is_list_without_values(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "d/a", "d/b", "d/b/c", "d/e/f", "d/é", "d0"]).await?;
    for dir in ["", "d", "d/b"] {
        for options in [ListOptions::default(), children(), limit(2), after("d/b/a"), after("d/b/c")] {
            let pairs = store.list_with(dir, options.clone()).await?;
            let keys: Vec<_> = pairs.items.into_iter().map(|pair| pair.key).collect();
            let expected = Page { items: keys, next: pairs.next };
            assert_eq!(store.list_keys(dir, options.clone()).await?, expected, "{dir:?} {options:?}");
        }
    }
    Ok(())
}

/// A listing's pages hold at most the limit and add up to the whole, whatever the limit.
pub async fn list_in_pages_is_the_whole(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(
        store,
        &["d", "d/a", "d/a b", "d/a/b", "d/a/b/c", "d/a/d", "d/a0", "d/b/c/d/e", "d/b/f", "d/é", "d0/x", "e"],
    )
    .await?;
    for dir in ["d", "d/a", ""] {
        let whole = store.list(dir).await?;
        for size in [1, 2, 3, 7, 1000] {
            assert_eq!(in_pages(store, dir, limit(size)).await?, whole, "{dir:?} by {size}");
        }
    }
    Ok(())
}

/// The same for `Depth::Children`, where deeper keys lie between those that are listed.
pub async fn list_children_in_pages_is_the_whole(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    for number in 0..8 {
        put_all(store, &[&format!("d/{number}/x"), &format!("d/{number}/y/z")]).await?;
        if number % 2 == 0 {
            put_all(store, &[&format!("d/{number}")]).await?;
        }
    }
    let whole = store.list_with("d", children()).await?.items;
    assert_eq!(keys_of(&whole), ["d/0", "d/2", "d/4", "d/6"]);
    for size in [1, 3, 4, 5] {
        let options = ListOptions { limit: Some(size), ..children() };
        assert_eq!(in_pages(store, "d", options).await?, whole, "by {size}");
    }
    Ok(())
}

async fn in_pages(store: &Store, dir: &str, mut options: ListOptions) -> Result<Vec<KvPair>> {
    let mut pairs = Vec::new();
    loop {
        let page = store.list_with(dir, options.clone()).await?;
        assert!(
            page.items.len() <= options.limit.unwrap_or(usize::MAX),
            "{} entries for {options:?}",
            page.items.len()
        );
        assert!(page.next.is_none() || !page.items.is_empty(), "an empty page in the middle");
        pairs.extend(page.items);
        if page.next.is_none() {
            return Ok(pairs);
        }
        options.after = page.next;
    }
}

/// A page knows that nothing is left, at exactly its limit too.
pub async fn list_page_at_the_exact_limit_is_the_last(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["d/a", "d/b", "d/c", "d0"]).await?;
    let next = async |size| Ok::<_, Error>(store.list_with("d", limit(size)).await?.next);
    assert_eq!(next(3).await?, None);
    assert_eq!(next(4).await?, None);
    assert_eq!(next(2).await?.as_deref(), Some("d/b"));
    Ok(())
}

/// A listing goes on behind a key that was deleted since, be it the last one there.
pub async fn list_continues_behind_a_deleted_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["d/a", "d/b", "d/c"]).await?;
    let page = store.list_with("d", limit(2)).await?;
    store.delete("d/b").await?;
    let rest = ListOptions { after: page.next, ..limit(2) };
    assert_eq!(keys_of(&store.list_with("d", rest.clone()).await?.items), ["d/c"]);
    store.delete_tree("d").await?;
    assert_eq!(store.list_with("d", rest).await?, Page { items: vec![], next: None });
    Ok(())
}

/// `after` may be any key of the directory: one that never was, the last, one above another.
pub async fn list_continues_behind_any_key(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["d/a", "d/a/b", "d/c"]).await?;
    for (path, left) in [
        ("d/ ", vec!["d/a", "d/a/b", "d/c"]),
        ("d/a", vec!["d/a/b", "d/c"]),
        ("d/a ", vec!["d/a/b", "d/c"]),
        ("d/a/a", vec!["d/a/b", "d/c"]),
        ("d/a/b", vec!["d/c"]),
        ("d/a/c", vec!["d/c"]),
        ("d/b", vec!["d/c"]),
        ("d/c", vec![]),
        ("d/d/e", vec![]),
    ] {
        assert_eq!(keys_of(&store.list_with("d", after(path)).await?.items), left, "after {path:?}");
        assert_eq!(keys_of(&store.list_with("", after(path)).await?.items), left, "after {path:?} in the root");
    }
    let direct = store.list_with("d", ListOptions { after: Some(key("d/a")), ..children() }).await?;
    assert_eq!(keys_of(&direct.items), ["d/c"]);
    Ok(())
}

/// A page has at least one entry: a limit of zero is `InvalidConfig`.
pub async fn list_with_a_limit_of_zero(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["d/a"]).await?;
    assert_error!(store.list_with("d", limit(0)).await, Error::InvalidConfig { .. });
    assert_error!(store.list_keys("d", limit(0)).await, Error::InvalidConfig { .. });
    Ok(())
}

/// To continue behind a key that is not beneath the directory makes no sense: `InvalidConfig`.
pub async fn list_behind_a_key_of_another_directory(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["d", "d/a"]).await?;
    for path in ["c", "d", "dd/a", "e/d/a"] {
        assert_error!(store.list_with("d", after(path)).await, Error::InvalidConfig { .. }, "{path}");
        assert_error!(store.list_keys("d", after(path)).await, Error::InvalidConfig { .. }, "{path}");
    }
    Ok(())
}

/// Keys written between two pages show if they are behind the first.
pub async fn list_shows_keys_written_behind_a_page(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["d/b", "d/d", "d/f"]).await?;
    let page = store.list_with("d", limit(2)).await?;
    put_all(store, &["d/a", "d/c", "d/e"]).await?;
    let rest = store.list_with("d", ListOptions { after: page.next, ..limit(9) }).await?;
    assert_eq!(keys_of(&rest.items), ["d/e", "d/f"]);
    Ok(())
}

/// A stale listing may lag, and catches up.
pub async fn list_stale_sees_a_write_in_the_end(fixture: &Fixture) -> Outcome {
    let reader = fixture.another_or_clone().await?;
    put_all(fixture.store(), &["d/a", "d/b"]).await?;
    let whole = fixture.store().list("d").await?;
    let stale = || ListOptions { consistency: STALE, ..ListOptions::default() };
    eventually("a stale `list` sees the writes", async || match reader.list_with("d", stale()).await {
        Ok(page) => Ok(page.items == whole),
        Err(Error::KeyNotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    })
    .await?;
    assert_eq!(reader.list_keys("d", stale()).await?.items.len(), 2);
    Ok(())
}

/// A thousand keys, made side by side in nested directories, list and page as few do.
pub async fn list_of_a_thousand_keys(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let mut paths: Vec<_> = (0..1000).map(|number| format!("many/{}/{number}", number % 10)).collect();
    let puts = stream::iter(&paths).map(|path| store.put(path, path.clone()));
    puts.buffer_unordered(64).try_for_each(|_| async { Ok(()) }).await?;
    paths.sort();
    let pairs = store.list("many").await?;
    assert_eq!(keys_of(&pairs), paths);
    assert!(pairs.iter().all(|pair| pair.value == pair.key.as_str()));
    assert_eq!(in_pages(store, "many", limit(300)).await?, pairs);
    let keys: Vec<Key> = store.list_keys("many/7", ListOptions::default()).await?.items;
    assert_eq!(keys.len(), 100);
    assert_eq!(store.delete_tree("many").await?, 1000);
    Ok(())
}
