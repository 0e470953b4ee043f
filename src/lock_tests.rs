//! What locks do when their driver fails, hangs, panics, loses answers or its session, as a script says. Time is stopped, and
//! goes on when everybody waits for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::config::Options;
use crate::error::{Error, Result};
use crate::flaky::Fault::{Fail, Hang, Late, LoseAnswer, None as Fine, Panic, Wait};
use crate::flaky::{Script, options, unreachable};
use crate::lock::{LockEvent, LockGuard, LockOptions};
use crate::store::Store;
use crate::types::{ListOptions, Status};
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout};

pub(crate) const TTL: Duration = Duration::from_secs(10);
/// Nine tenths of it, less 100 ms.
const HELD_FOR: Duration = Duration::from_millis(8_900);

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Runs a test and all its stores on one thread, whose clock is stopped.
pub(crate) fn paused<T>(test: impl Future<Output = T>) -> T {
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    actix_rt::System::with_tokio_rt(runtime).block_on(test)
}

pub(crate) async fn open_with(script: &Arc<Script>, request_timeout: Duration) -> Store {
    let options = Options { request_timeout, connect_timeout: request_timeout, ..options() };
    Store::with_backend(script.connector(1), options).await.unwrap()
}

pub(crate) async fn open(script: &Arc<Script>) -> Store {
    open_with(script, seconds(1)).await
}

/// A store beside the script's, with whom nothing goes wrong.
pub(crate) async fn other(script: &Arc<Script>) -> Store {
    Store::connect(script.url().as_str()).await.unwrap()
}

pub(crate) fn wish() -> LockOptions {
    LockOptions { ttl: TTL, wait_for_own_task: true, ..LockOptions::default() }
}

pub(crate) fn impatient() -> LockOptions {
    LockOptions { timeout: Some(Duration::ZERO), ..wish() }
}

pub(crate) async fn lock(store: &Store) -> LockGuard {
    soon(store.lock_with("k", wish())).await.unwrap()
}

/// Wants the lock in a task of its own.
pub(crate) fn want(store: &Store, options: LockOptions) -> JoinHandle<Result<LockGuard>> {
    let store = store.clone();
    spawn_local(async move { store.lock_with("k", options).await })
}

/// Five minutes are a failure.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(seconds(300), future).await.expect("it is due")
}

/// Lets everybody do what needs no time.
pub(crate) async fn settle() {
    sleep(millis(1)).await;
}

pub(crate) async fn keys(store: &Store) -> Vec<String> {
    let page = store.list_keys("", ListOptions::default()).await.unwrap();
    page.items.into_iter().map(String::from).collect()
}

pub(crate) async fn until(store: &Store, reached: impl Fn(&Status) -> bool) {
    let mut statuses = store.status_stream();
    soon(async { while !reached(&statuses.next().await.expect("the store is open")) {} }).await;
}

/// Nothing is left of the lock, here or at the server.
pub(crate) async fn assert_nothing_left(store: &Store, other: &Store) {
    until(store, |status| status.locks == 0).await;
    assert!(keys(other).await.is_empty());
    let guard = soon(other.lock_with("k", impatient())).await.unwrap();
    guard.unlock().await.unwrap();
}

/// The script's session is lost, and replaced.
pub(crate) async fn lose_session(script: &Arc<Script>, store: &Store) {
    let restarts = store.status().restarts;
    script.recovers([Fail(unreachable())]);
    script.disruptions.add_permits(1);
    until(store, |status| status.restarts == restarts + 1 && status.session.is_none()).await;
    settle().await;
}

fn is_lost<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::LockLost { .. }))
}

pub(crate) fn is_held<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::LockHeld { .. }))
}

fn is_closed<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::Closed))
}

fn grant_is_over() -> Error {
    Error::lock_lost("the grant")
}

#[test]
fn a_silent_server_suspends_the_holder_and_the_deadline_ends_it() {
    paused(async {
        let script = Script::new();
        let store = open_with(&script, seconds(60)).await;
        script.locks.keep_alive.always(|| Hang);
        let begun = Instant::now();
        let guard = lock(&store).await;
        let mut events = guard.events();
        assert_eq!(guard.remaining(), HELD_FOR - begun.elapsed());
        assert_eq!(events.next().await, Some(LockEvent::Held));
        assert_eq!(soon(events.next()).await, Some(LockEvent::Suspended));
        assert!(guard.is_held() && begun.elapsed() < HELD_FOR - seconds(3), "{:?}", begun.elapsed());
        sleep(HELD_FOR - begun.elapsed() - millis(1)).await;
        assert!(guard.is_held());
        soon(guard.lost()).await;
        assert!(!guard.is_held() && (HELD_FOR..HELD_FOR + millis(2)).contains(&begun.elapsed()));
        assert_eq!(soon(events.next()).await, Some(LockEvent::Lost));
        assert_eq!(events.next().await, None);
        assert!(is_lost(&guard.put("a", "1").await));
    });
}

#[test]
fn failing_renewals_suspend_and_one_that_succeeds_resumes() {
    paused(async {
        let script = Script::new();
        let store = open(&script).await;
        let guard = lock(&store).await;
        let mut events = guard.events();
        script.locks.keep_alive.then([Fail(unreachable()), Panic, Hang, LoseAnswer]);
        for expected in [LockEvent::Held, LockEvent::Suspended, LockEvent::Held] {
            assert_eq!(soon(events.next()).await, Some(expected));
        }
        assert!(guard.remaining() > seconds(8));
        guard.put("a", "1").await.unwrap();
        guard.unlock().await.unwrap();
        assert_eq!(events.next().await, Some(LockEvent::Released));
    });
}

#[test]
fn a_renewal_that_comes_back_late_revives_nothing() {
    paused(async {
        let script = Script::new();
        let store = open_with(&script, seconds(60)).await;
        let guard = lock(&store).await;
        script.locks.keep_alive.then([Wait]);
        sleep(HELD_FOR + millis(10)).await;
        script.gate.add_permits(1);
        let watching = async {
            for _ in 0..100 {
                assert!(!guard.is_held());
                sleep(millis(50)).await;
            }
        };
        watching.await;
        assert_nothing_left(&store, &other(&script).await).await;
        assert!(is_lost(&guard.unlock().await));
    });
}

/// The clock jumps, and nobody has had time to see it: as when a frozen process, or a machine that slept, goes on.
fn jump(time: Duration) {
    assert!(tokio::time::advance(time).now_or_never().is_none(), "others had their turn");
}

/// The clock passes the holder's deadline unseen.
pub(crate) fn thaw() {
    jump(HELD_FOR + millis(10));
}

#[test]
fn jumps_of_the_clock_never_leave_two_holders() {
    for seed in 1..=20 {
        paused(async {
            let mut rng = fastrand::Rng::with_seed(seed);
            let script = Script::new();
            let (store, other) = (open_with(&script, seconds(60)).await, other(&script).await);
            for _ in 0..10 {
                let guard = lock(&store).await;
                // The server is silent: the clock is all there is.
                script.locks.keep_alive.always(|| Hang);
                script.locks.contend.always(|| Hang);
                let mut next = want(&other, wish());
                let later = loop {
                    jump(TTL.mul_f64(rng.f64() * 0.7));
                    sleep(millis(rng.u64(..50))).await;
                    if let Some(got) = (&mut next).now_or_never() {
                        break got.unwrap().unwrap();
                    }
                };
                assert!(!guard.is_held() && guard.token() < later.token(), "seed {seed}");
                script.locks.keep_alive.heal();
                script.locks.contend.heal();
                later.unlock().await.unwrap();
                drop(guard);
                until(&store, |status| status.locks == 0).await;
            }
        });
    }
}

#[test]
fn a_lock_is_not_given_back_after_its_deadline_even_if_nobody_has_seen_that_yet() {
    paused(async {
        let script = Script::new();
        let store = open(&script).await;
        let guard = lock(&store).await;
        // After a lost answer nobody knows who took the contender away.
        script.locks.leave.then([LoseAnswer]);
        thaw();
        assert!(is_lost(&guard.unlock().await));
        assert_nothing_left(&store, &other(&script).await).await;
    });
}

#[test]
fn a_grant_that_the_server_ended_is_lost_at_once() {
    paused(async {
        let (script, begun) = (Script::new(), Instant::now());
        let store = open(&script).await;
        let guard = lock(&store).await;
        script.locks.keep_alive.then([Fail(grant_is_over())]);
        soon(guard.lost()).await;
        assert!(begun.elapsed() < seconds(4));
        let again = lock(&store).await;
        assert!(again.is_held() && again.token() > guard.token());
        assert!(is_lost(&guard.unlock().await));
        assert!(again.is_held() && keys(&store).await == ["k"]);
    });
}

#[test]
fn a_lost_answer_is_recognised_and_what_fails_is_tried_again() {
    paused(async {
        for faults in [
            vec![LoseAnswer],
            vec![LoseAnswer, Fail(unreachable()), LoseAnswer],
            vec![Fail(unreachable()), Fail(unreachable()), Fail(unreachable())],
            vec![Hang, Fail(Error::indeterminate("as the script says"))],
            vec![Panic],
            vec![LoseAnswer, Panic, Hang],
        ] {
            let script = Script::new();
            let (store, other) = (open(&script).await, other(&script).await);
            let attempts = faults.len() + 1;
            script.locks.contend.then(faults);
            let guard = lock(&store).await;
            assert!(guard.is_held());
            assert_eq!((script.locks.contend.called(), keys(&other).await), (attempts, vec!["k".to_owned()]));
            guard.unlock().await.unwrap();
            assert_nothing_left(&store, &other).await;
            assert_eq!(script.locks.grant.called(), 1);
        }
    });
}

#[test]
fn a_grant_that_can_not_be_opened_is_opened_again_or_refused() {
    paused(async {
        let script = Script::new();
        let store = open(&script).await;
        script.locks.grant.then([Fail(unreachable()), Panic, Hang, LoseAnswer]);
        lock(&store).await.unlock().await.unwrap();
        script.locks.grant.then([Fail(Error::unsupported("as the script says"))]);
        let refused = store.lock_with("k", LockOptions { ttl: seconds(20), ..wish() }).await;
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
        until(&store, |status| status.locks == 0).await;
    });
}

#[test]
fn a_contender_whose_grant_is_over_gets_another() {
    paused(async {
        let script = Script::new();
        let store = open(&script).await;
        script.locks.contend.then([Fail(grant_is_over())]);
        script.locks.keep_alive.then([Fail(grant_is_over())]);
        let guard = lock(&store).await;
        assert!(guard.is_held());
        assert_eq!(script.locks.grant.called(), 2);
    });
}

#[test]
fn a_lock_that_can_not_be_given_back_goes_with_its_grant() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let guard = lock(&store).await;
        script.locks.leave.always(|| Fail(Error::backend("as the script says")));
        drop(guard);
        sleep(seconds(30)).await;
        assert!(keys(&other).await.is_empty());
        until(&store, |status| status.locks == 0).await;
    });
}

#[test]
fn giving_back_what_was_lost_touches_nothing_of_the_next_holder() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let guard = lock(&store).await;
        script.locks.keep_alive.then([Fail(grant_is_over())]);
        let next = soon(other.lock_with("k", wish())).await.unwrap();
        assert!(!guard.is_held() && next.is_held());
        assert!(is_lost(&guard.unlock().await));
        sleep(seconds(30)).await;
        assert!(next.is_held() && keys(&other).await == ["k"]);
        next.unlock().await.unwrap();
    });
}

#[test]
fn a_lock_that_others_took_away_is_lost_and_not_given_back_twice() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let hasty = lock(&store).await;
        other.delete("k").await.unwrap();
        assert!(is_lost(&hasty.unlock().await));
        let guard = lock(&store).await;
        sleep(seconds(1)).await;
        other.delete("k").await.unwrap();
        soon(guard.lost()).await;
        assert!(is_lost(&guard.unlock().await));
        assert_nothing_left(&store, &other).await;
    });
}

#[test]
fn a_grant_outlives_the_session() {
    paused(async {
        let script = Script::new();
        let store = open(&script).await;
        let guard = lock(&store).await;
        for _ in 0..3 {
            lose_session(&script, &store).await;
            sleep(TTL).await;
            guard.put("a", "1").await.unwrap();
        }
        guard.unlock().await.unwrap();
        assert_eq!(script.locks.grant.called(), 1);
    });
}

#[test]
fn closing_ends_what_is_being_given_back() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let guard = lock(&store).await;
        script.locks.leave.then([Hang]);
        let unlocked = spawn_local(guard.unlock());
        settle().await;
        store.close().await.unwrap();
        assert!(is_closed(&soon(unlocked).await.unwrap()));
        assert!(keys(&other).await.is_empty());
    });
}

#[test]
fn locks_share_a_grant_which_ends_when_nobody_uses_it() {
    paused(async {
        let script = Script::new();
        let store = open(&script).await;
        let guards = join_all((0..50).map(|number| store.lock_with(format!("k/{number}"), wish()))).await;
        assert!(guards.iter().all(Result::is_ok));
        let longer = store.lock_with("longer", LockOptions { ttl: seconds(30), ..wish() }).await.unwrap();
        assert_eq!(script.locks.grant.called(), 2);
        sleep(seconds(60)).await;
        assert_eq!(script.locks.revoke.called(), 0);
        drop((guards, longer));
        sleep(seconds(60)).await;
        assert_eq!(script.locks.revoke.called(), 2);
        let renewed = script.locks.keep_alive.called();
        sleep(seconds(60)).await;
        assert_eq!(script.locks.keep_alive.called(), renewed, "nothing is kept alive");
    });
}

#[test]
fn nothing_is_left_of_a_store_that_is_dropped() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let guard = lock(&store).await;
        let foreign = other.lock_with("foreign", wish()).await.unwrap();
        let mut waits = Box::pin(store.lock_with("foreign", wish()));
        assert!((&mut waits).now_or_never().is_none());
        sleep(seconds(1)).await;
        assert_eq!(script.alive(), 1);
        drop(waits);
        drop(store);
        soon(guard.lost()).await;
        sleep(seconds(5)).await;
        assert_eq!((script.alive(), keys(&other).await), (0, vec!["foreign".to_owned()]));
        foreign.unlock().await.unwrap();
    });
}

#[test]
fn doubts_that_came_before_the_lock_are_told() {
    paused(async {
        let script = Script::new();
        let store = open_with(&script, seconds(60)).await;
        script.locks.contend.then([Wait]);
        script.locks.keep_alive.always(|| Hang);
        let wanted = want(&store, wish());
        sleep(seconds(6)).await;
        script.gate.add_permits(1);
        let guard = soon(wanted).await.unwrap().unwrap();
        settle().await;
        assert!(guard.is_held());
        assert_eq!(guard.events().next().await, Some(LockEvent::Suspended));
    });
}

#[test]
fn a_lock_that_came_with_a_grant_that_is_over_is_handed_to_nobody() {
    paused(async {
        let script = Script::new();
        let store = open_with(&script, seconds(60)).await;
        script.locks.contend.then([Late]);
        script.begin_watches((0..100).map(|_| Hang));
        let (first, second) = (want(&store, wish()), want(&store, wish()));
        script.locks.keep_alive.then([Fail(grant_is_over())]);
        sleep(seconds(4)).await;
        script.gate.add_permits(1);
        for wanted in [first, second] {
            let guard = soon(wanted).await.unwrap().unwrap();
            assert!(guard.is_held());
            guard.unlock().await.unwrap();
        }
        assert_eq!(script.locks.grant.called(), 2);
    });
}

#[test]
fn giving_back_goes_on_as_long_as_the_server_may_have_the_lock() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let (guard, beside) = (lock(&store).await, store.lock_with("beside", wish()).await.unwrap());
        script.locks.leave.always(|| Fail(unreachable()));
        let unlocked = guard.unlock().await;
        assert!(matches!(unlocked, Err(Error::Unreachable { .. })), "{unlocked:?}");
        sleep(seconds(100)).await;
        script.locks.leave.heal();
        sleep(seconds(2)).await;
        assert!(beside.is_held());
        assert_eq!(keys(&other).await, ["beside"]);
    });
}

#[test]
fn giving_back_goes_on_through_an_outage() {
    paused(async {
        for faults in [
            vec![Fail(unreachable()), Fail(unreachable()), Fail(unreachable())],
            vec![LoseAnswer],
            vec![Panic, LoseAnswer, Panic],
            vec![Hang],
        ] {
            let script = Script::new();
            let (store, other) = (open(&script).await, other(&script).await);
            let guard = store.with_request_timeout(seconds(60)).lock_with("k", wish()).await.unwrap();
            script.locks.leave.then(faults);
            assert_eq!(guard.unlock().await.map_err(|error| error.to_string()), Ok(()));
            assert_nothing_left(&store, &other).await;
        }
    });
}

/// A request that is late could hit an acquisition that the server can't tell from the one that it was meant for.
#[test]
fn no_acquisition_begins_with_a_grant_that_has_requests_on_their_way() {
    paused(async {
        for fault in [|| Fine, || LoseAnswer, || Hang] {
            let script = Script::new();
            let (store, other) = (open(&script).await, other(&script).await);
            let patient = store.with_request_timeout(seconds(60));
            let elsewhere = store.lock_with("elsewhere", wish()).await.unwrap();
            let guard = patient.lock_with("k", wish()).await.unwrap();
            script.locks.leave.then([fault()]);
            guard.unlock().await.unwrap();
            store.lock_with("k", wish()).await.unwrap().unlock().await.unwrap();
            let grants = if matches!(fault(), Fine) { 1 } else { 2 };
            assert_eq!(script.locks.grant.called(), grants);
            // Those who have it already go on.
            sleep(seconds(120)).await;
            assert!(elsewhere.is_held());
            elsewhere.unlock().await.unwrap();
            assert_nothing_left(&store, &other).await;
        }
    });
}

#[test]
fn closing_gives_all_back_whatever_the_driver_does() {
    paused(async {
        for fault in [|| Fine, || Panic, || Fail(unreachable()), || LoseAnswer, || Hang] {
            let script = Script::new();
            let (store, other) = (open(&script).await, other(&script).await);
            let held = join_all((0..3).map(|number| store.lock_with(format!("held/{number}"), wish()))).await;
            let foreign = lock(&other).await;
            let waits = want(&store, wish());
            settle().await;
            script.locks.leave.then([fault()]);
            store.close().await.unwrap();
            assert!(is_closed(&soon(waits).await.unwrap()));
            assert_eq!(keys(&other).await, ["k"]);
            for guard in held {
                let guard = guard.unwrap();
                assert!(!guard.is_held());
                assert!(is_closed(&guard.unlock().await));
            }
            foreign.unlock().await.unwrap();
            drop(store);
            settle().await;
            assert_eq!(script.alive(), 0, "the driver is gone");
        }
    });
}

#[test]
fn the_deadline_counts_from_the_sending() {
    paused(async {
        let script = Script::new();
        let store = open_with(&script, seconds(60)).await;
        script.locks.grant.then([Wait]);
        script.locks.keep_alive.then([Wait]);
        let wanted = want(&store, wish());
        sleep(seconds(5)).await;
        script.gate.add_permits(1);
        let guard = soon(wanted).await.unwrap().unwrap();
        assert!(guard.remaining() <= HELD_FOR - seconds(5) + millis(2), "{:?}", guard.remaining());
        script.gate.add_permits(1);
        sleep(millis(10)).await;
        assert!(guard.remaining() > HELD_FOR - seconds(1), "it was due to be renewed, and was at once");
    });
}

#[test]
fn a_grant_is_at_hand_for_a_while_after_its_last_use() {
    paused(async {
        let script = Script::new();
        let store = open(&script).await;
        for _ in 0..5 {
            let guard = lock(&store).await;
            sleep(seconds(20)).await;
            guard.unlock().await.unwrap();
            sleep(seconds(2)).await;
        }
        assert_eq!(script.locks.grant.called(), 1);
    });
}
