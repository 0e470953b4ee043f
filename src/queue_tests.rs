//! Who waits for a lock, in which order, and what is left of those who give up, as a script says. Time is stopped, as in
//! [`lock_tests`](crate::lock_tests).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::flaky::Fault::{Fail, LoseAnswer, None as Fine, Panic, Wait};
use crate::flaky::{Script, unreachable};
use crate::lock::LockOptions;
use crate::lock_tests::{
    assert_nothing_left, impatient, is_held, lock, lose_session, millis, open, open_with, other, paused, seconds,
    settle, soon, want, wish,
};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use tokio::task::{spawn_local, yield_now};
use tokio::time::{Instant, sleep};

/// A value of which it can be told whether anybody remembers it.
struct Value(Arc<[u8; 8]>);

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        &*self.0
    }
}

#[test]
fn waiting_goes_on_whatever_the_driver_does() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let first = lock(&other).await;
        script.locks.wait.then([Fail(unreachable()), Panic, Fail(unreachable()), Fine]);
        let wanted = want(&store, wish());
        sleep(seconds(5)).await;
        lose_session(&script, &store).await;
        sleep(seconds(60)).await;
        assert!(script.locks.contend.called() < 10, "{} attempts", script.locks.contend.called());
        first.unlock().await.unwrap();
        let begun = Instant::now();
        let guard = soon(wanted).await.unwrap().unwrap();
        assert!(guard.is_held() && begun.elapsed() < seconds(1));
        guard.unlock().await.unwrap();
        assert_nothing_left(&store, &other).await;
    });
}

#[test]
fn whoever_gives_up_leaves_nothing_at_whatever_moment() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        for is_free in [true, false] {
            for polls in 0..24 {
                let held = if is_free { None } else { Some(lock(&other).await) };
                let mut wanted = Box::pin(store.lock_with("k", wish()));
                for _ in 0..polls {
                    if (&mut wanted).now_or_never().is_some() {
                        break;
                    }
                    yield_now().await;
                }
                drop(wanted);
                if let Some(held) = held {
                    settle().await;
                    held.unlock().await.unwrap();
                }
                assert_nothing_left(&store, &other).await;
            }
        }
    });
}

#[test]
fn whoever_gives_up_while_the_driver_is_slow_leaves_nothing() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open_with(&script, seconds(60)).await, other(&script).await);
        for slow in [&script.locks.grant, &script.locks.contend, &script.locks.leave, &script.locks.wait] {
            let held = lock(&other).await;
            slow.then([Wait]);
            let wanted = want(&store, LockOptions { ttl: seconds(11), ..wish() });
            sleep(seconds(1)).await;
            wanted.abort();
            sleep(seconds(1)).await;
            script.gate.add_permits(1);
            sleep(seconds(1)).await;
            held.unlock().await.unwrap();
            assert_nothing_left(&store, &other).await;
            slow.heal();
            while script.gate.try_acquire().map(|permit| permit.forget()).is_ok() {}
            sleep(seconds(30)).await;
        }
    });
}

#[test]
fn a_thousand_who_wait_are_one_contender_and_served_in_order() {
    paused(async {
        const WAITING: usize = 1_000;
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let held = lock(&other).await;
        let served = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..WAITING)
            .map(|number| {
                let (store, served) = (store.clone(), served.clone());
                spawn_local(async move {
                    let guard = store.lock_with("k", wish()).await.unwrap();
                    served.borrow_mut().push((number, guard.token()));
                    guard.unlock().await.unwrap();
                })
            })
            .collect();
        sleep(seconds(1)).await;
        assert_eq!((script.locks.contend.called(), script.locks.wait.called(), store.status().locks), (1, 1, 1));
        held.unlock().await.unwrap();
        soon(join_all(tasks)).await;
        let served = served.take();
        assert!(served.len() == WAITING && served.is_sorted());
        assert_eq!(script.locks.contend.called(), WAITING + 1);
        assert_eq!((script.locks.leave.called(), script.locks.grant.called()), (WAITING, 1));
        assert_nothing_left(&store, &other).await;
    });
}

#[test]
fn wishes_of_all_kinds_are_served_in_one_queue() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let held = lock(&other).await;
        let kind = |number: usize| match number % 4 {
            0 => wish(),
            1 => LockOptions { ttl: seconds(20), ..wish() },
            2 => LockOptions { timeout: Some(seconds(3)), ..wish() },
            _ => impatient(),
        };
        let served = Rc::new(RefCell::new(Vec::new()));
        let wants: Vec<_> = (0..16)
            .map(|number| {
                let (store, served) = (store.clone(), served.clone());
                spawn_local(async move {
                    let guard = store.lock_with("k", kind(number)).await?;
                    assert_eq!(guard.ttl(), kind(number).ttl);
                    served.borrow_mut().push(number);
                    sleep(millis(10)).await;
                    guard.unlock().await
                })
            })
            .collect();
        sleep(seconds(5)).await;
        held.unlock().await.unwrap();
        for (number, want) in wants.into_iter().enumerate() {
            let got = soon(want).await.unwrap();
            assert_eq!(got.is_ok(), number % 4 < 2, "{number}: {got:?}");
            assert!(got.is_ok() || is_held(&got), "{number}: {got:?}");
        }
        assert_eq!(*served.borrow(), [0, 1, 4, 5, 8, 9, 12, 13]);
        assert_nothing_left(&store, &other).await;
    });
}

#[test]
fn a_task_is_not_let_wait_for_itself() {
    paused(async {
        let script = Script::new();
        let store = open(&script).await;
        let options = LockOptions { wait_for_own_task: false, ..wish() };
        let guard = store.lock_with("k", options.clone()).await.unwrap();
        assert!(is_held(&soon(store.lock_with("k", options.clone())).await));
        let elsewhere = want(&store, options.clone());
        settle().await;
        guard.unlock().await.unwrap();
        let guard = soon(elsewhere).await.unwrap().unwrap();
        let waits = store.lock_with("k", options);
        drop(guard);
        soon(waits).await.unwrap().unlock().await.unwrap();
    });
}

#[test]
fn who_does_not_wait_is_answered_while_another_does() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        let held = lock(&other).await;
        let waits = want(&store, wish());
        sleep(seconds(1)).await;
        let begun = Instant::now();
        let refused = store.lock_with("k", impatient()).await;
        assert!(is_held(&refused), "{refused:?}");
        assert!(begun.elapsed() < millis(100));
        held.unlock().await.unwrap();
        let guard = soon(waits).await.unwrap().unwrap();
        assert!(is_held(&store.lock_with("k", impatient()).await));
        guard.unlock().await.unwrap();
        store.lock_with("k", impatient()).await.unwrap().unlock().await.unwrap();
    });
}

#[test]
fn whoever_has_given_up_is_forgotten_while_others_hold_or_wait() {
    paused(async {
        let script = Script::new();
        let (store, other) = (open(&script).await, other(&script).await);
        for holder in [&store, &other] {
            let held = lock(holder).await;
            let patient = want(&store, wish());
            let remembered = Arc::new([0_u8; 8]);
            for _ in 0..1_000 {
                let value = Bytes::from_owner(Value(remembered.clone()));
                let hasty = LockOptions { value, timeout: Some(millis(10)), ..wish() };
                assert!(is_held(&store.lock_with("k", hasty).await));
            }
            assert!(Arc::strong_count(&remembered) < 100, "{} are remembered", Arc::strong_count(&remembered));
            held.unlock().await.unwrap();
            soon(patient).await.unwrap().unwrap().unlock().await.unwrap();
        }
    });
}

#[test]
fn the_value_is_that_of_whoever_holds_the_lock() {
    paused(async {
        let script = Script::new();
        let store = open(&script).await;
        script.locks.contend.then([LoseAnswer]);
        let first = want(&store, LockOptions { value: "first".into(), ..wish() });
        let second = want(&store, LockOptions { value: "second".into(), ..wish() });
        while script.locks.contend.called() == 0 {
            yield_now().await;
        }
        first.abort();
        let guard = soon(second).await.unwrap().unwrap();
        assert!(guard.is_held());
        assert_eq!(store.get("k").await.unwrap().value, "second");
    });
}
