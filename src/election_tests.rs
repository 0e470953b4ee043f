//! What candidates and registrations do when their driver fails, as a script says. Time is stopped, and goes on when everybody
//! waits for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::election::{CampaignOptions, Leader, LeaderEvent, LeadershipEvent};
use crate::error::Error;
use crate::flaky::Fault::{Fail, Hang, LoseAnswer, None as Fine};
use crate::flaky::{Script, unreachable};
use crate::lock_tests::{
    TTL, assert_nothing_left, keys, lose_session, open, other, paused, seconds, soon, thaw, until,
};
use crate::registration::{RegistrationEvent, RegistrationEvents};
use crate::store::Store;
use tokio::time::{Instant, sleep};

fn standing_again() -> CampaignOptions {
    CampaignOptions { ttl: TTL, stand_again: true, ..CampaignOptions::default() }
}

#[test]
fn a_candidate_that_resigns_while_it_stands_again_leaves_nothing() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let leadership = store.campaign_with("k", "us", standing_again()).await.unwrap();
        script.locks.keep_alive.then([Fail(Error::lock_lost("the grant"))]);
        let next = soon(other.campaign("k", "them")).await.unwrap();
        sleep(seconds(1)).await;
        assert!(!leadership.is_leader() && next.is_leader());
        assert!(matches!(leadership.resign().await, Err(Error::LockLost { .. })));
        until(&store, |status| status.locks == 0).await;
        sleep(seconds(30)).await;
        assert!(next.is_leader() && other.get("k").await.unwrap().value == "them");
    });
}

#[test]
fn a_leader_whose_deadline_has_passed_does_not_resign() {
    paused(async {
        let script = Script::new();
        let store = open(&script).await;
        let options = CampaignOptions { ttl: TTL, ..CampaignOptions::default() };
        let leadership = store.campaign_with("k", "us", options).await.unwrap();
        script.locks.leave.then([LoseAnswer]);
        thaw();
        assert!(matches!(leadership.resign().await, Err(Error::LockLost { .. })));
        assert_nothing_left(&store, &other(&script).await).await;
    });
}

async fn state(events: &mut RegistrationEvents, wanted: RegistrationEvent) {
    soon(async { while events.next().await.expect("more events") != wanted {} }).await;
}

async fn registered(store: &Store) -> crate::registration::Registration {
    store.register("r", "us", TTL).await.unwrap()
}

#[test]
fn a_registered_key_is_put_back() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let registration = registered(&store).await;
        let mut events = registration.events();
        sleep(seconds(1)).await;
        other.delete("r").await.unwrap();
        state(&mut events, RegistrationEvent::Registered).await;
        sleep(seconds(1)).await;
        assert_eq!(other.get("r").await.unwrap().value, "us");
        lose_session(&script, &store).await;
        sleep(TTL * 3).await;
        assert!(registration.is_registered() && keys(&other).await == ["r"]);
        registration.unregister().await.unwrap();
        assert!(keys(&other).await.is_empty());
        until(&store, |status| status.registrations == 0 && status.watches == 0).await;
    });
}

#[test]
fn a_registration_yields_to_another_writer_until_that_goes() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let registration = registered(&store).await;
        sleep(seconds(1)).await;
        other.put("r", "them").await.unwrap();
        sleep(TTL * 3).await;
        assert!(!registration.is_registered());
        assert_eq!(other.get("r").await.unwrap().value, "them");
        other.delete("r").await.unwrap();
        sleep(seconds(1)).await;
        assert!(registration.is_registered());
        assert_eq!(other.get("r").await.unwrap().value, "us");
        other.put("r", "them").await.unwrap();
        registration.unregister().await.unwrap();
        assert_eq!(other.get("r").await.unwrap().value, "them");
    });
}

#[test]
fn closing_takes_registrations_along() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let registration = registered(&store).await;
        let leadership = store.campaign("k", "us").await.unwrap();
        store.close().await.unwrap();
        assert!(keys(&other).await.is_empty() && !leadership.is_leader());
        assert_eq!(registration.events().next().await, Some(RegistrationEvent::Closed));
        assert!(matches!(registration.unregister().await, Err(Error::Closed)));
        let status = store.status();
        assert_eq!((status.locks, status.registrations, status.watches), (0, 0, 0));
        drop((store, leadership));
        sleep(seconds(1)).await;
        assert_eq!(script.alive(), 0);
    });
}

#[test]
fn a_registration_whose_key_can_not_be_watched_ends_all_the_same() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        script.begin_watches((0..1_000).map(|_| Fail(Error::unsupported("as the script says"))));
        let registration = registered(&store).await;
        sleep(seconds(5)).await;
        assert_eq!(keys(&other).await, ["r"]);
        assert_eq!(registration.unregister().await.map_err(|error| error.to_string()), Ok(()));
        assert!(keys(&other).await.is_empty());
        until(&store, |status| status.registrations == 0).await;
    });
}

#[test]
fn a_key_put_back_with_its_answer_lost_is_known_as_ones_own() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let registration = registered(&store).await;
        sleep(seconds(1)).await;
        // Not the look at the key but the write behind it.
        script.calls([Fine, LoseAnswer]);
        other.delete("r").await.unwrap();
        let begun = Instant::now();
        while !registration.is_registered() || begun.elapsed() < seconds(1) {
            assert!(begun.elapsed() < seconds(5), "it is taken for somebody else's");
            sleep(seconds(1)).await;
        }
        for _ in 0..40 {
            assert_eq!(keys(&other).await, ["r"]);
            sleep(seconds(1)).await;
        }
        registration.unregister().await.unwrap();
        assert!(keys(&other).await.is_empty());
    });
}

#[test]
fn a_candidate_stands_again() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let leadership = store.campaign_with("k", "us", standing_again()).await.unwrap();
        let first = leadership.term().unwrap();
        let mut events = leadership.events();
        assert_eq!(soon(events.next()).await, Some(LeadershipEvent::Elected(first)));
        leadership.publish("us too").await.unwrap();
        script.locks.contend.then([Fail(unreachable())]);
        script.locks.keep_alive.then([Fail(Error::lock_lost("the grant"))]);
        soon(leadership.demoted()).await;
        assert_eq!(soon(events.next()).await, Some(LeadershipEvent::Demoted));
        let Some(LeadershipEvent::Elected(second)) = soon(events.next()).await else { panic!("not elected again") };
        assert!(second > first && leadership.term() == Some(second));
        assert_eq!(other.get("k").await.unwrap().value, "us too");
        leadership.resign().await.unwrap();
        assert_eq!(soon(events.next()).await, Some(LeadershipEvent::Demoted));
        assert_eq!(soon(events.next()).await, None);
        until(&store, |status| status.locks == 0).await;
        assert!(keys(&other).await.is_empty());
    });
}

#[test]
fn an_observer_hears_of_an_outage_while_it_looks_who_leads() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let mut leaders = store.observe_leader("k").await.unwrap();
        assert_eq!(soon(leaders.next()).await, Some(LeaderEvent::Vacant));
        script.calls([Hang]);
        script.recovers([Fail(unreachable())]);
        let _ = script.connects((0..100_000).map(|_| Fail(unreachable())));
        let leadership = other.campaign("k", "them").await.unwrap();
        let told = tokio::time::timeout(seconds(60), leaders.next()).await;
        assert_eq!(told, Ok(Some(LeaderEvent::Suspended)));
        script.connects.lock().unwrap().clear();
        let leader = Leader { value: "them".into(), term: leadership.term().unwrap() };
        assert_eq!(soon(leaders.next()).await, Some(LeaderEvent::Elected(leader)));
        assert_eq!(soon(leaders.next()).await, Some(LeaderEvent::Resumed));
        leadership.resign().await.unwrap();
        assert_eq!(soon(leaders.next()).await, Some(LeaderEvent::Vacant));
        store.close().await.unwrap();
        assert_eq!(soon(leaders.next()).await, Some(LeaderEvent::Closed));
        assert_eq!(soon(leaders.next()).await, None);
    });
}
