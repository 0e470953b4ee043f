//! Registrations: keys that are there as long as who registered them.

use super::fixture::{Fixture, Outcome};
use super::support::{all_keys, assert_error, eventually};
use crate::error::Error;
use crate::registration::RegistrationEvent;
use std::time::Duration;

/// Longest wait for what is due.
const DUE: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(10);

async fn due<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DUE, what).await.expect("it is due")
}

/// What is registered is there until it is ended, dropped, or closed with its store.
pub async fn a_registration_lasts_until_it_is_ended(f: &Fixture) -> Outcome {
    let store = f.store();
    let first = store.register("services/web/1", "10.0.0.1", TTL).await?;
    let second = store.register("services/web/2", "10.0.0.2", TTL).await?;
    assert!(first.is_registered());
    let mut events = first.events();
    assert_eq!(due(events.next()).await, Some(RegistrationEvent::Registered));
    assert_eq!(store.list("services/web").await?.len(), 2);
    assert_eq!(store.status().registrations, 2);
    first.unregister().await?;
    assert_eq!(due(events.next()).await, Some(RegistrationEvent::Closed));
    assert_eq!(all_keys(store).await?, ["services/web/2"]);
    drop(second);
    eventually("a dropped registration takes its key away", async || Ok(all_keys(store).await?.is_empty())).await?;
    eventually("nothing is registered", async || Ok(store.status().registrations == 0)).await
}

/// What is registered goes with its store, and what isn't ours stays.
pub async fn closing_takes_registrations_away(f: &Fixture) -> Outcome {
    let Some(other) = f.another().await? else { return Ok(()) };
    let registration = other.register("services/web/1", "10.0.0.1", TTL).await?;
    f.store().put("services/web/2", "10.0.0.2").await?;
    other.close().await?;
    assert_eq!(all_keys(f.store()).await?, ["services/web/2"]);
    eventually("it knows of its end", async || Ok(!registration.is_registered())).await?;
    assert_error!(registration.unregister().await, Error::Closed);
    Ok(())
}

/// Whoever deletes a registered key sees it come back.
pub async fn a_registration_comes_back(f: &Fixture) -> Outcome {
    let store = f.store();
    let registration = store.register("services/web/1", "10.0.0.1", TTL).await?;
    for _ in 0..3 {
        store.delete("services/web/1").await?;
        let back = async || match store.get("services/web/1").await {
            Ok(pair) => Ok(pair.value == "10.0.0.1"),
            Err(Error::KeyNotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        };
        eventually("a registered key comes back", back).await?;
    }
    eventually("it is registered again", async || Ok(registration.is_registered())).await?;
    registration.unregister().await?;
    assert!(all_keys(store).await?.is_empty());
    Ok(())
}

/// What another writes to a registered key is left alone until it goes.
pub async fn a_registration_yields_to_another_writer(f: &Fixture) -> Outcome {
    let (store, other) = (f.store(), f.another_or_clone().await?);
    let registration = store.register("services/web/1", "old", TTL).await?;
    let newer = other.register("services/web/1", "new", TTL).await?;
    eventually("the older one knows", async || Ok(!registration.is_registered())).await?;
    assert_eq!(store.get("services/web/1").await?.value, "new");
    newer.unregister().await?;
    eventually("the older one is back", async || Ok(registration.is_registered())).await?;
    assert_eq!(store.get("services/web/1").await?.value, "old");
    let version = other.put("services/web/1", "theirs").await?;
    registration.unregister().await?;
    assert_eq!(store.get("services/web/1").await?.version, version);
    Ok(())
}

/// Bad input is refused.
pub async fn refused_registrations(f: &Fixture) -> Outcome {
    let store = f.store();
    assert_error!(store.register("", "x", TTL).await, Error::InvalidKey { .. });
    assert_error!(store.register("a", "x", Duration::ZERO).await, Error::Unsupported { .. });
    assert_error!(store.register("a", vec![0; (512 << 10) + 1], TTL).await, Error::ValueTooLarge { .. });
    assert!(all_keys(store).await?.is_empty());
    Ok(())
}
