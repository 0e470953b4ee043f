//! `close`: nothing works afterwards, and nothing else suffers.

use super::fixture::{Fixture, Outcome};
use super::support::{STALE, all_keys, assert_error, put_all, value_of};
use crate::error::Error;
use crate::store::Store;
use crate::types::{Expected, LinkState, ListOptions, Operation, PutOptions};
use futures_util::future::join_all;
use std::collections::HashSet;

/// After `close` every call returns `Closed`, and the status says so.
pub async fn close_refuses_every_call(fixture: &Fixture) -> Outcome {
    let store = fixture.store();
    let version = store.put("a", "1").await?;
    store.close().await?;
    assert_eq!(store.status().link, LinkState::Closed);
    assert_error!(store.get("a").await, Error::Closed);
    assert_error!(store.get_with("a", STALE).await, Error::Closed);
    assert_error!(store.exists("a").await, Error::Closed);
    assert_error!(store.exists_with("a", STALE).await, Error::Closed);
    assert_error!(store.put("a", "2").await, Error::Closed);
    let options = PutOptions::ttl(store.capabilities().max_ttl);
    assert_error!(store.put_with("a", "2", options).await, Error::Closed);
    assert_error!(store.delete("a").await, Error::Closed);
    assert_error!(store.list("").await, Error::Closed);
    assert_error!(store.list_with("", ListOptions::default()).await, Error::Closed);
    assert_error!(store.list_keys("", ListOptions::default()).await, Error::Closed);
    assert_error!(store.delete_tree("a").await, Error::Closed);
    assert_error!(store.atomic_put("a", "2", version).await, Error::Closed);
    assert_error!(store.atomic_delete("a", version).await, Error::Closed);
    assert_error!(store.txn(vec![], vec![Operation::put("a", "2")?]).await, Error::Closed);
    assert_error!(store.close().await, Error::Closed);
    Ok(())
}

/// Clones share one store: closing one closes all.
pub async fn close_closes_every_clone(fixture: &Fixture) -> Outcome {
    let clone = fixture.store().clone();
    clone.put("a", "1").await?;
    fixture.store().close().await?;
    assert_error!(clone.get("a").await, Error::Closed);
    assert_error!(clone.put("a", "1").await, Error::Closed);
    assert_error!(clone.close().await, Error::Closed);
    assert_eq!(clone.status().link, LinkState::Closed);
    Ok(())
}

/// Other stores on the same namespace go on.
pub async fn close_leaves_other_stores_alone(fixture: &Fixture) -> Outcome {
    let Some(another) = fixture.another().await? else { return Ok(()) };
    fixture.store().put("a", "1").await?;
    fixture.store().close().await?;
    assert_eq!(value_of(&another, "a").await?, "1");
    another.put("b", "2").await?;
    another.delete("a").await?;
    assert_eq!(all_keys(&another).await?, ["b"]);
    Ok(())
}

/// Permanent keys stay when the store that wrote them is closed, and their versions hold.
pub async fn close_keeps_the_keys(fixture: &Fixture) -> Outcome {
    let Some(another) = fixture.another().await? else { return Ok(()) };
    put_all(fixture.store(), &["a", "a/b", "c/d"]).await?;
    let before = fixture.store().list("").await?;
    fixture.store().close().await?;
    assert_eq!(another.list("").await?, before);
    another.atomic_put("a", "2", &before[0]).await?;
    Ok(())
}

/// Calls that are on their way when the store closes end, with the truth: a write that succeeded is there, and one that
/// was refused as `Closed` isn't.
pub async fn close_answers_the_calls_on_their_way(fixture: &Fixture) -> Outcome {
    let reader = fixture.another().await?;
    let writes: Vec<_> = (0..64).map(|number| tokio::spawn(create(fixture.store().clone(), number))).collect();
    fixture.store().close().await?;
    let outcomes: Vec<_> = join_all(writes).await.into_iter().map(|outcome| outcome.unwrap()).collect();
    let Some(reader) = reader else { return Ok(()) };
    let there: HashSet<_> = all_keys(&reader).await?.into_iter().collect();
    for (number, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(_) => assert!(there.contains(&path(number)), "write {number} succeeded and is not there"),
            Err(Error::Closed) => assert!(!there.contains(&path(number)), "write {number} was refused and is there"),
            Err(Error::Indeterminate { .. }) => {}
            Err(error) => panic!("write {number}: {error:?}"),
        }
    }
    Ok(())
}

fn path(number: usize) -> String {
    format!("d/{number}")
}

async fn create(store: Store, number: usize) -> crate::Result<()> {
    store.atomic_put(path(number), "1", Expected::Absent).await.map(drop)
}
