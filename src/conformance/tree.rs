//! `delete_tree`.

use super::fixture::{Fixture, Outcome};
use super::support::{all_keys, assert_error, put_all, value_of};
use crate::error::Error;
use crate::store::DeleteTreeOptions;
use futures_util::{StreamExt, TryStreamExt, stream};

const WITH_ROOT: DeleteTreeOptions = DeleteTreeOptions { allow_root: true };

/// `delete_tree` returns the number of keys it removed: neither directories nor what was deleted before counts.
pub async fn delete_tree_counts_what_it_removes(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["d/a", "d/b", "d/b/c", "d/e/f/g/h", "d/gone", "d/gone/i"]).await?;
    store.delete("d/gone").await?;
    store.put("d/b", "").await?;
    assert_eq!(store.delete_tree("/d//").await?, 5);
    assert!(all_keys(store).await?.is_empty());
    assert_error!(store.list("d").await, Error::KeyNotFound { .. });
    Ok(())
}

/// The keys strictly beneath go; the key of the directory's name and those that merely start alike stay.
pub async fn delete_tree_removes_what_is_strictly_beneath(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let stay = ["d", "d b/c", "d-b/c", "d.", "d0", "dd/a", "x/d/a"];
    put_all(store, &stay).await?;
    put_all(store, &["d/a", "d/b/c", "d/d"]).await?;
    assert_eq!(store.delete_tree("d").await?, 3);
    assert_eq!(all_keys(store).await?, stay);
    assert_eq!(value_of(store, "d").await?, "value of d");
    Ok(())
}

/// `delete_tree` is `KeyNotFound` if neither the directory nor a key of that name exists.
pub async fn delete_tree_of_a_missing_directory(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["dd/a", "a/d/b"]).await?;
    for path in ["d", "a/d/c", "a/d/b/c", "x/y/z"] {
        assert_error!(store.delete_tree(path).await, Error::KeyNotFound { .. }, "{path}");
    }
    assert_eq!(all_keys(store).await?, ["a/d/b", "dd/a"]);
    Ok(())
}

/// A key without keys beneath is an empty directory: nothing is removed, and that is no error.
pub async fn delete_tree_of_a_key_without_keys_beneath(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    store.put("full", "1").await?;
    store.put("empty", "").await?;
    assert_eq!(store.delete_tree("full").await?, 0);
    assert_eq!(store.delete_tree("empty").await?, 0);
    assert_eq!(all_keys(store).await?, ["empty", "full"]);
    Ok(())
}

/// The second `delete_tree` finds nothing.
pub async fn delete_tree_twice(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["d/a", "d/b/c"]).await?;
    assert_eq!(store.delete_tree("d").await?, 2);
    assert_error!(store.delete_tree("d").await, Error::KeyNotFound { .. });
    put_all(store, &["d"]).await?;
    assert_eq!(store.delete_tree("d").await?, 0);
    Ok(())
}

/// `delete_tree` takes odd names as they are.
pub async fn delete_tree_of_odd_names(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a?b#c%/x y", "a?b#c%/%2F/ü", "a?b#c%/😀", "a?b", "a%2F/x"]).await?;
    assert_eq!(store.delete_tree("a?b#c%").await?, 3);
    assert_eq!(store.delete_tree("a%2F").await?, 1);
    assert_eq!(all_keys(store).await?, ["a?b"]);
    Ok(())
}

/// A tree that is deep and wide goes whole, in one call.
pub async fn delete_tree_of_a_deep_and_wide_tree(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let wide = (0..300).map(|number| format!("d/{}/{number}", number % 3));
    let deep = (1..40).map(|depth| format!("d/{}", vec!["deep"; depth].join("/")));
    let puts = stream::iter(wide.chain(deep)).map(|path| store.put(path, "1"));
    puts.buffer_unordered(64).try_for_each(|_| async { Ok(()) }).await?;
    store.put("e", "1").await?;
    assert_eq!(store.delete_tree("d").await?, 339);
    assert_eq!(all_keys(store).await?, ["e"]);
    Ok(())
}

/// The root is refused, unless it is allowed expressly.
pub async fn delete_tree_refuses_the_root(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "b/c"]).await?;
    for path in ["", "/", "//"] {
        assert_error!(store.delete_tree(path).await, Error::InvalidKey { .. });
        assert_error!(store.delete_tree_with(path, DeleteTreeOptions::default()).await, Error::InvalidKey { .. });
    }
    assert_eq!(all_keys(store).await?, ["a", "b/c"]);
    Ok(())
}

/// The root may be emptied where that is allowed expressly; the option changes nothing for other directories.
pub async fn delete_tree_of_the_root_when_allowed(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    put_all(store, &["a", "b/c", "b/d", "e"]).await?;
    assert_eq!(store.delete_tree_with("b", WITH_ROOT).await?, 2);
    assert_eq!(store.delete_tree_with("", WITH_ROOT).await?, 2);
    assert!(all_keys(store).await?.is_empty());
    put_all(store, &["a"]).await?;
    assert_eq!(all_keys(store).await?, ["a"]);
    Ok(())
}

/// The root always exists: emptying an empty one removes nothing.
pub async fn delete_tree_of_an_empty_root(fixture: &Fixture) -> Outcome {
    assert_eq!(fixture.store().delete_tree_with("/", WITH_ROOT).await?, 0);
    assert_eq!(fixture.store().delete_tree_with("/", WITH_ROOT).await?, 0);
    Ok(())
}

/// The root is that of the namespace: other namespaces keep their keys.
pub async fn delete_tree_of_the_root_stays_in_the_namespace(fixture: &Fixture) -> Outcome {
    let Some(neighbour) = fixture.neighbour().await else { return Ok(()) };
    put_all(fixture.store(), &["a", "b/c"]).await?;
    put_all(neighbour.store(), &["a", "b/c"]).await?;
    assert_eq!(fixture.store().delete_tree_with("", WITH_ROOT).await?, 2);
    assert_eq!(all_keys(neighbour.store()).await?, ["a", "b/c"]);
    neighbour.finish().await
}

/// The keys of a deleted tree can be written again, the directory's own name too.
pub async fn a_deleted_tree_can_be_made_again(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    for _ in 0..3 {
        put_all(store, &["d/a/b", "d/c"]).await?;
        assert_eq!(store.delete_tree("d").await?, 2);
    }
    put_all(store, &["d", "d/a", "d/c/e"]).await?;
    assert_eq!(all_keys(store).await?, ["d", "d/a", "d/c/e"]);
    Ok(())
}
