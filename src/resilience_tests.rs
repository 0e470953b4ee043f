//! What a store does when its driver fails, hangs, panics or loses its session: everything but the drivers themselves.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use crate::config::Options;
use crate::error::Error;
use crate::flaky::Fault::{Fail, Hang, LoseAnswer, None as Fine, Panic, Wait};
use crate::flaky::{Script, TIMEOUT, open, options, unreachable};
use crate::messages::{Get, Put};
use crate::store::Store;
use crate::types::{LinkState, PutOptions, Status};
use actix::MailboxError;
use futures_util::StreamExt;
use futures_util::future::join_all;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

fn lazy() -> Options {
    Options { lazy: true, ..options() }
}

/// Waits for a status which the test made certain; a minute is a failure.
async fn until(store: &Store, reached: impl Fn(&Status) -> bool) {
    let mut statuses = store.status_stream();
    let waited = async { while !reached(&statuses.next().await.expect("the store is open")) {} };
    tokio::time::timeout(Duration::from_secs(60), waited).await.unwrap();
}

/// Waits for something that has no event to wait for; a minute is a failure.
async fn eventually(reached: impl Fn() -> bool) {
    let begin = Instant::now();
    while !reached() {
        assert!(begin.elapsed() < Duration::from_secs(60));
        tokio::task::yield_now().await;
    }
}

async fn link(store: &Store, state: LinkState) {
    until(store, |status| status.link == state).await;
}

/// Waits until a session was lost and replaced for the `count`th time.
async fn restarted(store: &Store, count: u64) {
    until(store, |status| status.restarts == count && status.link == LinkState::Up).await;
}

#[tokio::test]
async fn a_lazy_store_whose_server_comes_up_later_works() {
    let script = Script::new().connects((0..3).map(|_| Fail(unreachable())));
    let store = Store::with_backend(script.connector(1), lazy()).await.unwrap();
    store.put("k", "v").await.unwrap();
    assert_eq!(script.connected.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn an_eager_store_tries_each_endpoint_once_and_fails_with_the_last_error() {
    let script = Script::new().connects([Fail(unreachable()), Fail(Error::unreachable("the last one"))]);
    let error = Store::with_backend(script.connector(2), options()).await.unwrap_err();
    assert_eq!(error.to_string(), "the store is unreachable: the last one");
    assert_eq!(*script.connected.lock().unwrap(), [0, 1]);
}

#[tokio::test]
async fn a_silent_endpoint_is_left_for_the_next() {
    let script = Script::new().connects([Hang, Fine]);
    let store = Store::with_backend(script.connector(2), options()).await.unwrap();
    assert_eq!(store.status().endpoint, "server-1");
    assert_eq!(store.status().link, LinkState::Up);
}

#[tokio::test]
async fn a_connector_that_panics_is_an_endpoint_that_fails() {
    let script = Script::new().connects([Panic]);
    let error = Store::with_backend(script.connector(1), options()).await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { reason, .. } if reason.contains("panicked")), "{error}");
}

#[tokio::test]
async fn calls_without_effect_are_repeated() {
    let script = Script::new();
    let store = open(&script).await;
    script.calls([Fail(unreachable()), Fail(unreachable()), Fine, Fail(unreachable())]);
    store.put("k", "v").await.unwrap();
    assert_eq!(store.get("k").await.unwrap().value, "v");
    assert_eq!(script.called(), 5);
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_never_repeated() {
    let script = Script::new();
    let store = open(&script).await;
    script.calls([LoseAnswer]);
    let error = store.put("k", "v").await.unwrap_err();
    assert!(error.is_indeterminate() && !error.is_retryable(), "{error}");
    assert_eq!(script.called(), 1);
}

#[tokio::test]
async fn a_silent_server_ends_calls_at_their_deadline() {
    let script = Script::new();
    let store = open(&script).await;
    script.calls([Hang, Hang]);
    let begin = Instant::now();
    let (read, write) = tokio::join!(store.get("k"), store.put("k", "v"));
    assert!(matches!(read, Err(Error::Timeout { .. })), "{read:?}");
    assert!(matches!(write, Err(Error::Indeterminate { .. })), "{write:?}");
    assert!(begin.elapsed() >= TIMEOUT && begin.elapsed() < 3 * TIMEOUT, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn calls_wait_for_the_link_up_to_their_deadline() {
    let script = Script::new().connects([Hang, Hang, Hang, Hang, Hang]);
    let store = Store::with_backend(script.connector(1), lazy()).await.unwrap();
    let begin = Instant::now();
    let error = store.put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(begin.elapsed() >= TIMEOUT, "{:?}", begin.elapsed());
    assert_eq!(script.called(), 0);
}

#[tokio::test]
async fn an_error_that_time_does_not_mend_is_told_at_once() {
    let refused = || Error::Unauthenticated { reason: "wrong password".into(), source: None };
    let script = Script::new().connects((0..10_000).map(|_| Fail(refused())));
    let store = Store::with_backend(script.connector(1), lazy()).await.unwrap();
    let error = store.get("k").await.unwrap_err();
    assert!(matches!(error, Error::Unauthenticated { .. }), "{error}");
}

#[tokio::test]
async fn a_panic_is_an_error_for_its_caller_and_a_new_session_for_the_rest() {
    let script = Script::new();
    let store = open(&script).await;
    script.calls([Panic]);
    let error = store.get("k").await.unwrap_err();
    assert!(error.to_string().contains("as the script says"), "{error}");
    restarted(&store, 1).await;
    script.calls([Panic]);
    assert!(store.put("k", "v").await.unwrap_err().is_indeterminate());
    restarted(&store, 2).await;
    store.put("k", "v").await.unwrap();
}

#[tokio::test]
async fn a_session_that_recovers_is_kept_and_one_that_does_not_is_replaced() {
    let script = Script::new();
    let store = open(&script).await;
    script.calls([Fail(unreachable())]);
    store.put("k", "v").await.unwrap();
    assert_eq!(store.status().restarts, 0);

    script.recovers([Fail(unreachable())]);
    script.calls([Fail(unreachable())]);
    store.put("k", "w").await.unwrap();
    assert_eq!(store.status().restarts, 1);
    assert!(store.status().last_error.is_some());
}

#[tokio::test]
async fn a_recovery_that_panics_or_hangs_ends_the_session() {
    for fault in [Panic, Hang] {
        let script = Script::new();
        let store = open(&script).await.with_request_timeout(10 * TIMEOUT);
        script.recovers([fault]);
        script.calls([Fail(unreachable())]);
        store.put("k", "v").await.unwrap();
        assert_eq!(store.status().restarts, 1);
    }
}

#[tokio::test]
async fn calls_in_flight_end_with_their_session() {
    let script = Script::new();
    let store = open(&script).await.with_request_timeout(Duration::from_secs(60));
    script.calls([Hang, Hang]);
    let (write, read) = (store.clone(), store.clone());
    let write = tokio::spawn(async move { write.put("a", "v").await });
    let read = tokio::spawn(async move { read.exists("b").await });
    eventually(|| script.running.load(SeqCst) >= 2).await;
    script.recovers([Fail(unreachable())]);
    script.disruptions.add_permits(1);
    assert!(write.await.unwrap().unwrap_err().is_indeterminate());
    assert!(!read.await.unwrap().unwrap(), "the read is made again on the new session");
}

#[tokio::test]
async fn no_more_calls_are_in_flight_than_allowed() {
    let script = Script::new();
    let limited = Options { max_in_flight: 3, request_timeout: Duration::from_secs(60), ..options() };
    let store = Store::with_backend(script.connector(1), limited).await.unwrap();
    script.calls((0..20).map(|_| Wait));
    let puts: Vec<_> = (0..20).map(|i| store.put(format!("k{i}"), "v")).collect();
    let gate = async {
        eventually(|| script.running.load(SeqCst) >= 3).await;
        script.gate.add_permits(20);
    };
    let (results, ()) = tokio::join!(join_all(puts), gate);
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(script.most_running.load(SeqCst), 3);
}

#[tokio::test]
async fn a_closed_store_refuses_everything_and_ends_its_session() {
    let script = Script::new();
    let store = open(&script).await;
    script.calls([Hang]);
    let hanging = store.clone();
    let hanging = tokio::spawn(async move { hanging.get("k").await });
    eventually(|| script.running.load(SeqCst) >= 1).await;
    store.close().await.unwrap();
    assert_eq!(script.closed.available_permits(), 1);
    assert!(matches!(hanging.await.unwrap(), Err(Error::Closed)));
    assert!(matches!(store.get("k").await, Err(Error::Closed)));
    assert!(matches!(store.put("k", "v").await, Err(Error::Closed)));
    assert!(matches!(store.close().await, Err(Error::Closed)));
    assert_eq!(store.status().link, LinkState::Closed);
}

#[tokio::test]
async fn the_last_handle_that_goes_closes_the_store() {
    let script = Script::new();
    let store = open(&script).await;
    let (addr, mut statuses) = (store.addr(), store.status_stream());
    drop(store.clone());
    assert!(!store.exists("k").await.unwrap(), "a clone that goes closes nothing");
    drop(store);
    script.closed.acquire().await.unwrap().forget();
    while statuses.next().await.is_some() {}
    let after = addr.send(Get::new("k").unwrap()).await;
    assert!(matches!(after, Err(MailboxError::Closed) | Ok(Err(Error::Closed))), "{after:?}");
}

#[tokio::test]
async fn an_opening_that_is_dropped_leaves_nothing() {
    let script = Script::new().connects([Wait]);
    let opening = Store::with_backend(script.connector(1), options());
    let given_up = tokio::time::timeout(Duration::from_millis(20), opening).await;
    assert!(given_up.is_err());
    // All that is left of the store holds the script: the thread of its actors and the supervisor in it.
    eventually(|| Arc::strong_count(&script) == 1).await;
}

#[tokio::test]
async fn the_status_stream_tells_of_losses_and_returns() {
    let script = Script::new();
    let store = open(&script).await;
    script.recovers([Wait]);
    script.disruptions.add_permits(1);
    link(&store, LinkState::Suspended).await;
    script.gate.add_permits(1);
    link(&store, LinkState::Up).await;
}

#[tokio::test]
async fn a_key_is_kept_alive_through_lost_renewals_and_removed_by_close() {
    let script = Script::new();
    let store = open(&script).await;
    let observer = Store::with_backend(script.connector(1), options()).await.unwrap();
    let ttl = Duration::from_secs(3);
    store.put_with("k", "v", PutOptions::keep_alive(ttl)).await.unwrap();
    script.calls([Fail(unreachable()), LoseAnswer, Fail(Error::backend("not yet")), Panic]);
    tokio::time::sleep(2 * ttl).await;
    assert!(observer.exists("k").await.unwrap());
    store.close().await.unwrap();
    assert!(!observer.exists("k").await.unwrap());
}

#[tokio::test]
async fn a_silent_server_is_left_for_the_next() {
    let script = Script::new();
    let patient = Options { request_timeout: Duration::from_secs(1), ..options() };
    let store = Store::with_backend(script.connector(2), patient).await.unwrap();
    script.calls([Hang]);
    script.recovers([Hang]);
    assert!(matches!(store.get("k").await, Err(Error::Timeout { .. })));
    restarted(&store, 1).await;
    assert_eq!(store.status().endpoint, "server-1");
}

#[tokio::test]
async fn sessions_that_die_at_once_are_replaced_with_pauses() {
    let script = Script::new();
    let slow =
        Options { backoff_min: Duration::from_millis(100), backoff_max: Duration::from_millis(100), ..options() };
    let store = Store::with_backend(script.connector(1), slow).await.unwrap();
    script.recovers((0..1000).map(|_| Fail(unreachable())));
    script.disruptions.add_permits(1000);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let restarts = store.status().restarts;
    assert!((2..=11).contains(&restarts), "{restarts} in a second");
}

#[tokio::test]
async fn a_close_whose_driver_panics_still_ends_the_session() {
    let script = Script::new();
    let store = open(&script).await;
    store.put_with("k", "v", PutOptions::keep_alive(Duration::from_secs(60))).await.unwrap();
    script.calls([Panic]);
    store.close().await.unwrap();
    assert_eq!(script.closed.available_permits(), 1);
}

#[tokio::test]
async fn an_endless_timeout_is_no_panic() {
    let store = open(&Script::new()).await.with_request_timeout(Duration::MAX);
    store.put("k", "v").await.unwrap();
    let endless = Options { request_timeout: Duration::MAX, ..options() };
    let error = Store::with_backend(Script::new().connector(1), endless).await.unwrap_err();
    assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
}

#[actix::test]
async fn in_an_actix_system_the_actors_share_its_thread() {
    let store = Store::connect("memory://in-a-system").await.unwrap();
    let recipient: actix::Recipient<Put> = store.addr().recipient();
    let written = recipient.send(Put::new("k", "v").unwrap()).await.unwrap().unwrap();
    assert_eq!(store.get("k").await.unwrap().version, written.version);
    let elsewhere = actix_rt::Arbiter::new();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let moved = store.clone();
    elsewhere.spawn(async move { drop(sender.send(moved.get("k").await)) });
    assert_eq!(receiver.await.unwrap().unwrap().value, "v");
    store.close().await.unwrap();
    assert!(matches!(recipient.send(Put::new("k", "v").unwrap()).await, Ok(Err(Error::Closed))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_plain_tokio_a_store_is_shared_among_tasks() {
    let store = Store::connect("memory://in-plain-tokio").await.unwrap();
    let tasks = (0..32).map(|i| {
        let store = store.clone();
        tokio::spawn(async move { store.put(format!("k{i}"), "v").await })
    });
    for put in join_all(tasks).await {
        put.unwrap().unwrap();
    }
    assert_eq!(store.list("").await.unwrap().len(), 32);
}

#[actix::test]
async fn nothing_outlives_a_store_that_ends_while_its_link_is_down() {
    let script = Script::new();
    let store = open(&script).await;
    store.put_with("k", "v", PutOptions::keep_alive(Duration::from_secs(60))).await.unwrap();
    script.recovers([Hang]);
    script.disruptions.add_permits(1);
    link(&store, LinkState::Suspended).await;
    drop(store);
    // The connector, the session and the tasks that look after the key all held the script.
    eventually(|| Arc::strong_count(&script) == 1).await;
}

#[test]
fn a_thread_whose_actix_system_is_over_opens_stores() {
    let opened = async || {
        let store = open(&Script::new()).await;
        store.put("k", "v").await.unwrap();
        store.close().await.unwrap();
    };
    actix_rt::System::new().block_on(opened());
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(opened());
}

#[tokio::test]
async fn a_panic_over_one_lease_keeps_no_other_from_being_ended_with_the_store() {
    let script = Script::new();
    let (store, other) = (open(&script).await, Store::connect(&script.url()).await.unwrap());
    for key in ["a", "b", "c"] {
        store.put_with(key, "v", PutOptions::keep_alive(Duration::from_secs(60))).await.unwrap();
    }
    script.calls([Panic]);
    store.close().await.unwrap();
    assert_eq!(other.list("").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_driver_that_panics_over_its_sessions_name_has_none() {
    let script = Script::new();
    script.nameless.store(true, SeqCst);
    let store = open(&script).await;
    assert_eq!(store.status().session, None);
    store.put("k", "v").await.unwrap();
    store.close().await.unwrap();
}
