//! What a watch does when its driver fails, hangs, panics or loses its session, as a script says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::config::Options;
use crate::error::{Error, Result};
use crate::flaky::Fault::{Fail, Hang, Panic, Wait};
use crate::flaky::{Script, open, options, unreachable};
use crate::messages::{Watch, WatchTree};
use crate::store::Store;
use crate::types::{LinkState, Version};
use crate::watch::{Subscription, TreeEvent, TreeStream, WatchEvent, WatchStream};
use actix::{Actor, Addr, Context, Handler};
use futures_util::StreamExt;
use std::time::Duration;
use tokio::sync::mpsc;

fn denied() -> Error {
    Error::PermissionDenied { reason: "as the script says".into(), source: None }
}

/// A minute is a failure.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it is due")
}

async fn next(events: &mut WatchStream) -> WatchEvent {
    soon(events.next()).await.expect("the store is open")
}

async fn next_of_tree(events: &mut TreeStream) -> TreeEvent {
    soon(events.next()).await.expect("the store is open")
}

async fn assert_put(events: &mut WatchStream, value: &str) {
    match next(events).await {
        WatchEvent::Put(pair) => assert_eq!(pair.value, value),
        other => panic!("expected the put of `{value}`, got {other:?}"),
    }
}

async fn watches(store: &Store, count: usize) {
    let mut statuses = store.status_stream();
    soon(async { while statuses.next().await.expect("the store is open").watches != count {} }).await;
}

/// A watch on `k`, which holds `1`.
async fn watch(store: &Store) -> WatchStream {
    store.put("k", "1").await.unwrap();
    let mut events = store.watch("k").await.unwrap();
    assert_put(&mut events, "1").await;
    events
}

#[tokio::test]
async fn a_watch_that_can_not_begin_is_begun_again() {
    let script = Script::new();
    script.begin_watches([Fail(unreachable()), Panic, Hang, Fail(unreachable())]);
    let store = open(&script).await;
    store.put("k", "1").await.unwrap();
    let patient = store.with_request_timeout(Duration::from_secs(60));
    assert_put(&mut patient.watch("k").await.unwrap(), "1").await;
    assert_eq!(store.status().restarts, 1, "the panic ends its session");
}

#[tokio::test]
async fn whoever_waits_for_a_watch_that_is_refused_is_told_why() {
    let script = Script::new();
    script.begin_watches([Fail(denied())]);
    let store = open(&script).await;
    let refused = store.watch("k").await;
    assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
    watches(&store, 0).await;
    store.watch("k").await.unwrap();
}

#[tokio::test]
async fn whoever_asks_again_is_told_again_why_a_watch_is_refused() {
    let script = Script::new();
    let patient = Options { backoff_max: Duration::from_secs(60), ..options() };
    let store = Store::with_backend(script.connector(1), patient).await.unwrap();
    script.begin_watches([Fail(denied()), Fail(denied())]);
    for _ in 0..2 {
        let refused = store.watch("k").await;
        assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
    }
    let mut events = watch(&store).await;
    script.break_watches([Fail(denied())]);
    script.breaks.add_permits(1);
    assert_eq!(next(&mut events).await, WatchEvent::Suspended);
    let refused = store.watch("k").await;
    assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
}

#[tokio::test]
async fn subscriptions_given_up_leave_no_watches_while_the_link_is_down() {
    let script = Script::new().connects((0..100_000).map(|_| Fail(unreachable())));
    let store = Store::with_backend(script.connector(1), Options { lazy: true, ..options() }).await.unwrap();
    let hasty = store.with_request_timeout(Duration::from_millis(20));
    for number in 0..10 {
        assert!(hasty.watch(format!("k{number}")).await.is_err());
    }
    watches(&store, 0).await;
}

#[tokio::test]
async fn a_watch_that_hangs_begins_again_with_the_next_session() {
    let script = Script::new();
    let patient = Options { request_timeout: Duration::from_secs(600), ..options() };
    let store = Store::with_backend(script.connector(1), patient).await.unwrap();
    store.put("k", "1").await.unwrap();
    script.begin_watches([Hang]);
    script.recovers([Fail(unreachable())]);
    let (events, ()) = tokio::join!(soon(store.watch("k")), async {
        watches(&store, 1).await;
        while !script.watches.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        script.disruptions.add_permits(1);
    });
    assert_put(&mut events.unwrap(), "1").await;
}

#[tokio::test]
async fn a_subscription_waits_for_the_link_up_to_its_deadline() {
    let script = Script::new().connects((0..1000).map(|_| Fail(unreachable())));
    let store = Store::with_backend(script.connector(1), Options { lazy: true, ..options() }).await.unwrap();
    let late = store.watch("k").await;
    assert!(matches!(late, Err(Error::Unreachable { .. })), "{late:?}");
}

#[tokio::test]
async fn a_subscription_that_hangs_ends_at_its_deadline() {
    let script = Script::new();
    script.begin_watches([Hang]);
    let store = open(&script).await;
    let late = store.with_request_timeout(Duration::from_millis(50)).watch("k").await;
    assert!(matches!(late, Err(Error::Timeout { .. })), "{late:?}");
}

#[tokio::test]
async fn a_subscription_given_up_leaves_no_watch() {
    let script = Script::new();
    script.begin_watches([Hang]);
    let store = open(&script).await;
    assert!(tokio::time::timeout(Duration::from_millis(20), store.watch("k")).await.is_err());
    watches(&store, 0).await;
}

#[tokio::test]
async fn a_broken_watch_tells_just_the_differences() {
    let script = Script::new();
    let store = open(&script).await;
    for (key, value) in [("d/kept", "1"), ("d/changed", "1"), ("d/gone", "1"), ("d/again", "1")] {
        store.put(key, value).await.unwrap();
    }
    let mut events = store.watch_tree("d").await.unwrap();
    assert!(matches!(next_of_tree(&mut events).await, TreeEvent::Snapshot(pairs) if pairs.len() == 4));
    // The watch breaks and can't be begun again before the script lets it.
    script.begin_watches((0..3).map(|_| Fail(unreachable())));
    script.breaks.add_permits(1);
    assert_eq!(next_of_tree(&mut events).await, TreeEvent::Suspended);
    store.delete("d/gone").await.unwrap();
    store.put("d/changed", "2").await.unwrap();
    store.delete("d/again").await.unwrap();
    store.put("d/again", "2").await.unwrap();
    store.put("d/new", "1").await.unwrap();
    store.put("d/new", "2").await.unwrap();
    let mut told = Vec::new();
    loop {
        match next_of_tree(&mut events).await {
            TreeEvent::Put(pair) => told.push(format!("{}={}", pair.key, String::from_utf8_lossy(&pair.value))),
            TreeEvent::Delete { key, .. } => told.push(format!("-{key}")),
            TreeEvent::Resumed => break,
            other => panic!("{other:?}"),
        }
    }
    // What was written while the watch was on its way may be told in one piece or two; where it ends is the same.
    let last = |key: &str| told.iter().rfind(|told| told.contains(key)).cloned();
    assert_eq!(last("gone"), Some("-d/gone".into()), "{told:?}");
    assert_eq!(last("kept"), None, "{told:?}");
}

#[tokio::test]
async fn a_subscriber_waits_while_the_watch_is_suspended() {
    let script = Script::new();
    let store = open(&script).await;
    let mut events = watch(&store).await;
    script.begin_watches([Wait]);
    script.breaks.add_permits(1);
    assert_eq!(next(&mut events).await, WatchEvent::Suspended);
    store.put("k", "2").await.unwrap();
    let patient = store.with_request_timeout(Duration::from_secs(60));
    let mut late = std::pin::pin!(patient.watch("k"));
    let too_early = tokio::time::timeout(Duration::from_millis(50), &mut late).await;
    assert!(too_early.is_err(), "{too_early:?}");
    script.gate.add_permits(1);
    assert_put(&mut late.await.unwrap(), "2").await;
    assert_eq!(store.status().watches, 1);
}

#[tokio::test]
async fn a_watch_that_is_refused_later_goes_on_when_it_is_allowed_again() {
    let script = Script::new();
    let store = open(&script).await;
    let mut events = watch(&store).await;
    script.break_watches([Fail(denied())]);
    script.begin_watches([Fail(denied()), Fail(denied())]);
    script.breaks.add_permits(1);
    assert_eq!(next(&mut events).await, WatchEvent::Suspended);
    assert_eq!(next(&mut events).await, WatchEvent::Resumed);
    store.put("k", "2").await.unwrap();
    assert_put(&mut events, "2").await;
}

#[tokio::test]
async fn a_panic_of_the_driver_in_the_midst_of_a_watch_costs_nobody_anything() {
    let script = Script::new();
    let store = open(&script).await;
    let mut events = watch(&store).await;
    script.break_watches([Panic]);
    script.breaks.add_permits(1);
    assert_eq!(next(&mut events).await, WatchEvent::Suspended);
    assert_eq!(next(&mut events).await, WatchEvent::Resumed);
    store.put("k", "2").await.unwrap();
    assert_put(&mut events, "2").await;
    assert_eq!(store.status().restarts, 1);
}

#[tokio::test]
async fn a_link_that_recovers_is_told_and_the_watch_stands() {
    let script = Script::new();
    let store = open(&script).await;
    let mut events = watch(&store).await;
    script.begin_watches([Fail(Error::backend("nobody watches again"))]);
    script.recovers([crate::flaky::Fault::Wait]);
    script.disruptions.add_permits(1);
    assert_eq!(next(&mut events).await, WatchEvent::Suspended);
    script.gate.add_permits(1);
    assert_eq!(next(&mut events).await, WatchEvent::Resumed);
    store.put("k", "2").await.unwrap();
    assert_put(&mut events, "2").await;
}

#[tokio::test]
async fn a_new_session_takes_the_watch_over() {
    let script = Script::new();
    let store = open(&script).await;
    let mut events = watch(&store).await;
    script.recovers([Fail(unreachable())]);
    script.disruptions.add_permits(1);
    assert_eq!(next(&mut events).await, WatchEvent::Suspended);
    assert_eq!(next(&mut events).await, WatchEvent::Resumed);
    assert_eq!(store.status().restarts, 1);
    store.put("k", "2").await.unwrap();
    assert_put(&mut events, "2").await;
}

#[tokio::test]
async fn a_watch_goes_on_as_soon_as_a_server_that_refused_the_session_takes_it() {
    let script = Script::new();
    let (connect_timeout, backoff_max) = (Duration::from_secs(60), Duration::from_secs(600));
    let patient = Options { connect_timeout, backoff_max, ..options() };
    let store = Store::with_backend(script.connector(1), patient).await.unwrap();
    let mut events = watch(&store).await;
    script.recovers([Fail(unreachable())]);
    script.connects([Fail(denied()), crate::flaky::Fault::Wait]);
    script.disruptions.add_permits(1);
    assert_eq!(next(&mut events).await, WatchEvent::Suspended);
    script.breaks.add_permits(1);
    while !matches!(store.watch("k").await, Err(Error::PermissionDenied { .. })) {}
    script.gate.add_permits(1);
    assert_eq!(next(&mut events).await, WatchEvent::Resumed);
    assert_put(&mut store.watch("k").await.unwrap(), "1").await;
}

#[tokio::test]
async fn the_last_handle_takes_the_watches_with_it() {
    let script = Script::new();
    let store = open(&script).await;
    let mut events = watch(&store).await;
    drop(store);
    assert_eq!(soon(events.next()).await, Some(WatchEvent::Closed));
    assert_eq!(soon(events.next()).await, None);
}

#[tokio::test]
async fn close_ends_a_watch_that_can_not_begin() {
    let script = Script::new();
    script.begin_watches([Hang]);
    let store = open(&script).await;
    let (watched, closed) = tokio::join!(store.watch("k"), async {
        watches(&store, 1).await;
        store.close().await
    });
    assert!(matches!(watched, Err(Error::Closed)), "{watched:?}");
    closed.unwrap();
    assert_eq!(store.status().link, LinkState::Closed);
}

/// An actor that passes on what it is told.
struct Listener(mpsc::UnboundedSender<String>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<WatchEvent> for Listener {
    type Result = ();

    fn handle(&mut self, event: WatchEvent, _: &mut Self::Context) {
        let text = match event {
            WatchEvent::Put(pair) => String::from_utf8_lossy(&pair.value).into_owned(),
            other => format!("{other:?}"),
        };
        let _ = self.0.send(text);
    }
}

impl Handler<TreeEvent> for Listener {
    type Result = ();

    fn handle(&mut self, event: TreeEvent, _: &mut Self::Context) {
        let text = match event {
            TreeEvent::Snapshot(pairs) => format!("{} pairs", pairs.len()),
            TreeEvent::Put(pair) => pair.key.to_string(),
            other => format!("{other:?}"),
        };
        let _ = self.0.send(text);
    }
}

fn listen() -> (Addr<Listener>, mpsc::UnboundedReceiver<String>) {
    let (sender, heard) = mpsc::unbounded_channel();
    (Listener(sender).start(), heard)
}

async fn subscribe(store: &Store, listener: &Addr<Listener>) -> Result<Subscription> {
    store.addr().send(Watch::new("k", listener.clone().recipient()).unwrap()).await.unwrap()
}

#[actix::test]
async fn actors_are_told_as_streams_are() {
    let script = Script::new();
    let store = open(&script).await;
    store.put("k", "1").await.unwrap();
    let (listener, mut heard) = listen();
    let _of_key = subscribe(&store, &listener).await.unwrap();
    assert_eq!(soon(heard.recv()).await.unwrap(), "1");
    let tree = WatchTree::new("", listener.recipient()).unwrap();
    let of_tree = store.addr().send(tree).await.unwrap().unwrap();
    assert_eq!(soon(heard.recv()).await.unwrap(), "1 pairs");
    store.put("other", "1").await.unwrap();
    assert_eq!(soon(heard.recv()).await.unwrap(), "other");
    drop(of_tree);
    watches(&store, 1).await;
    script.breaks.add_permits(1);
    assert_eq!(soon(heard.recv()).await.unwrap(), "Suspended");
    assert_eq!(soon(heard.recv()).await.unwrap(), "Resumed");
    store.close().await.unwrap();
    assert_eq!(soon(heard.recv()).await.unwrap(), "Closed");
}

#[actix::test]
async fn the_end_of_an_actor_ends_its_subscription() {
    let script = Script::new();
    let store = open(&script).await;
    let (sender, mut heard) = mpsc::unbounded_channel();
    // On a thread of its own, which the test can end.
    let arbiter = actix_rt::Arbiter::new();
    let listener = Listener::start_in_arbiter(&arbiter.handle(), move |_| Listener(sender));
    let _subscription = subscribe(&store, &listener).await.unwrap();
    soon(heard.recv()).await.unwrap();
    drop(listener);
    arbiter.stop();
    arbiter.join().unwrap();
    store.put("k", "2").await.unwrap();
    watches(&store, 0).await;
}

#[actix::test]
async fn an_actor_is_refused_as_a_stream_is() {
    let script = Script::new();
    let store = open(&script).await;
    let (listener, _heard) = listen();
    assert!(matches!(Watch::new("a/../b", listener.clone().recipient()), Err(Error::InvalidKey { .. })));
    script.begin_watches([Fail(denied())]);
    let refused = subscribe(&store, &listener).await;
    assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
    store.close().await.unwrap();
    let closed = subscribe(&store, &listener).await;
    assert!(matches!(closed, Err(Error::Closed)), "{closed:?}");
}

#[tokio::test]
async fn versions_of_deletions_are_those_of_the_server() {
    let store = open(&Script::new()).await;
    let mut events = watch(&store).await;
    store.put("other", "1").await.unwrap();
    store.delete("k").await.unwrap();
    let WatchEvent::Delete { version: Some(version), .. } = next(&mut events).await else { panic!("no deletion") };
    assert_eq!(version, Version::new(store.capabilities().backend, 3));
}

#[tokio::test]
async fn a_watch_that_fails_again_and_again_leaves_the_others_alone() {
    let script = Script::new();
    let seldom =
        Options { backoff_max: Duration::from_secs(60), request_timeout: Duration::from_secs(60), ..options() };
    let store = Store::with_backend(script.connector(1), seldom).await.unwrap();
    let mut events = watch(&store).await;
    script.begin_watches((0..8).map(|_| Fail(unreachable())));
    let _failing = store.watch("other").await.unwrap();
    store.put("k", "2").await.unwrap();
    let mut suspended = 0;
    loop {
        match next(&mut events).await {
            WatchEvent::Suspended => suspended += 1,
            WatchEvent::Put(_) => break,
            _ => {}
        }
    }
    // A link that recovers at once may be up again before anybody looks.
    assert!(suspended <= 1, "suspended {suspended} times");
    assert!(script.recovered() <= 1, "doubted {} times", script.recovered());
}
