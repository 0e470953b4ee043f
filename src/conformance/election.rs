//! Leader election: one leader, whom everybody can tell.

use super::fixture::{Fixture, Outcome};
use super::support::{all_keys, assert_error};
use crate::election::{CampaignOptions, LeaderEvent, LeaderStream, LeadershipEvent};
use crate::error::Error;
use crate::lock::LockOptions;
use crate::store::Store;
use std::time::Duration;

/// Longest wait for what is due.
const DUE: Duration = Duration::from_secs(20);

async fn due<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DUE, what).await.expect("it is due")
}

/// The next that is told of leaders: value and term, or none.
async fn leader(leaders: &mut LeaderStream) -> Option<(String, u64)> {
    loop {
        match due(leaders.next()).await {
            Some(LeaderEvent::Elected(leader)) => {
                return Some((String::from_utf8_lossy(&leader.value).into_owned(), leader.term));
            }
            Some(LeaderEvent::Vacant) => return None,
            Some(LeaderEvent::Suspended | LeaderEvent::Resumed) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Whether the backend has elections. One that hasn't must say so.
async fn has_elections(store: &Store) -> bool {
    if !store.capabilities().locks {
        assert_error!(store.campaign("leader", "a").await, Error::Unsupported { .. });
        assert_error!(store.observe_leader("leader").await, Error::Unsupported { .. });
    }
    store.capabilities().locks
}

/// One candidate leads; when it resigns the next does, in a later term.
pub async fn one_candidate_leads(f: &Fixture) -> Outcome {
    let (store, other) = (f.store(), f.another_or_clone().await?);
    if !has_elections(store).await {
        return Ok(());
    }
    let first = store.campaign("leader", "a").await?;
    let mut events = first.events();
    let term = first.term().unwrap();
    assert_eq!(due(events.next()).await, Some(LeadershipEvent::Elected(term)));
    assert!(first.is_leader() && first.remaining() > Duration::ZERO);
    let hurried = CampaignOptions { timeout: Some(Duration::from_millis(200)), ..CampaignOptions::default() };
    let not_elected = {
        let other = other.clone();
        tokio::spawn(async move { other.campaign_with("leader", "b", hurried).await })
    };
    assert_error!(not_elected.await.unwrap(), Error::LockHeld { .. });
    let next = tokio::spawn(async move { other.campaign("leader", "b").await });
    assert_eq!(store.get("leader").await?.value, "a");
    first.put("progress", "1").await?;
    first.resign().await?;
    assert_eq!(due(events.next()).await, Some(LeadershipEvent::Demoted));
    assert_eq!(events.next().await, None);
    let second = due(next).await.unwrap()?;
    assert!(second.term().unwrap() > term);
    assert_eq!(store.get("leader").await?.value, "b");
    second.resign().await?;
    assert_eq!(all_keys(store).await?, ["progress"]);
    Ok(())
}

/// Observers see each leader, what it publishes and its term, and that there is none.
pub async fn observers_see_who_leads(f: &Fixture) -> Outcome {
    let (store, other) = (f.store(), f.another_or_clone().await?);
    if !has_elections(store).await {
        return Ok(());
    }
    let mut leaders = other.observe_leader("leader").await?;
    assert_eq!(leader(&mut leaders).await, None);
    let leadership = store.campaign("leader", "a").await?;
    let term = leadership.term().unwrap();
    assert_eq!(leader(&mut leaders).await, Some(("a".to_owned(), term)));
    leadership.publish("a, busy").await?;
    assert_eq!(leader(&mut leaders).await, Some(("a, busy".to_owned(), term)));
    let mut late = store.observe_leader("leader").await?;
    assert_eq!(leader(&mut late).await, Some(("a, busy".to_owned(), term)));
    leadership.resign().await?;
    assert_eq!(leader(&mut leaders).await, None);
    let guard = store.lock_with("leader", LockOptions { value: "b".into(), ..LockOptions::default() }).await?;
    assert_eq!(leader(&mut leaders).await, Some(("b".to_owned(), guard.token())));
    guard.unlock().await?;
    Ok(())
}

/// Who is dropped resigns; who waits and is dropped is no candidate any more.
pub async fn dropping_a_leadership_resigns(f: &Fixture) -> Outcome {
    let (store, other) = (f.store(), f.another_or_clone().await?);
    if !has_elections(store).await {
        return Ok(());
    }
    let leadership = store.campaign("leader", "a").await?;
    let waiting = {
        let other = other.clone();
        tokio::spawn(async move { other.campaign("leader", "b").await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    waiting.abort();
    drop(waiting);
    drop(leadership);
    let leadership = due(store.campaign("leader", "c")).await?;
    assert_eq!(store.get("leader").await?.value, "c");
    leadership.resign().await?;
    assert!(all_keys(store).await?.is_empty());
    Ok(())
}

/// A leader whose lock is taken away is demoted; asked to, it stands again and leads in a later term.
pub async fn a_demoted_candidate_stands_again(f: &Fixture) -> Outcome {
    let store = f.store();
    if !has_elections(store).await {
        return Ok(());
    }
    let options = CampaignOptions { stand_again: true, ..CampaignOptions::default() };
    let leadership = store.campaign_with("elections/leader", "a", options).await?;
    let mut events = leadership.events();
    let first = leadership.term().unwrap();
    assert_eq!(due(events.next()).await, Some(LeadershipEvent::Elected(first)));
    leadership.publish("b").await?;
    // Not the way to end a leadership, but one.
    store.delete_tree("elections").await?;
    let second = loop {
        match due(events.next()).await {
            Some(LeadershipEvent::Elected(term)) if term != first => break term,
            Some(LeadershipEvent::Elected(_) | LeadershipEvent::Demoted | LeadershipEvent::Suspended) => {}
            None => panic!("it stands no more"),
        }
    };
    assert!(second > first);
    assert_eq!(leadership.term(), Some(second));
    assert_eq!(store.get("elections/leader").await?.value, "b");
    leadership.put("progress", "2").await?;
    leadership.resign().await?;
    assert_eq!(all_keys(store).await?, ["progress"]);
    Ok(())
}
