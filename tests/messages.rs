//! Locks, candidacies and registrations by messages: what an actix application sends, and what its actors are told.
#![cfg(feature = "memory")]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use actix::{Actor, Addr, Context, Handler, Message, Recipient};
use kvactor::messages::{Campaign, Lock, ObserveLeader, Register};
use kvactor::{Error, Leader, LeaderEvent, LeadershipEvent, LockEvent, RegistrationEvent, Store};
use std::time::Duration;
use tokio::sync::mpsc;

/// Passes on what it is told.
struct Listener<E>(mpsc::UnboundedSender<E>);

impl<E: Unpin + 'static> Actor for Listener<E> {
    type Context = Context<Self>;
}

impl<E: Message<Result = ()> + Unpin + 'static> Handler<E> for Listener<E> {
    type Result = ();

    fn handle(&mut self, event: E, _: &mut Self::Context) {
        // A test that is over listens no more.
        let _ = self.0.send(event);
    }
}

/// An actor, and what it was told.
fn listener<E: Message<Result = ()> + Send + Unpin + 'static>() -> (Recipient<E>, mpsc::UnboundedReceiver<E>) {
    let (sender, told) = mpsc::unbounded_channel();
    let listener: Addr<Listener<E>> = Listener(sender).start();
    (listener.recipient(), told)
}

async fn next<E>(told: &mut mpsc::UnboundedReceiver<E>) -> E {
    tokio::time::timeout(Duration::from_secs(10), told.recv()).await.expect("it is due").expect("the actor is there")
}

#[actix::test]
async fn an_actor_is_told_of_its_lock() {
    let store = Store::connect("memory://messages-lock").await.unwrap();
    let (subscriber, mut told) = listener();
    let lock = Lock { subscriber: Some(subscriber), ..Lock::new("lock").unwrap() };
    let guard = store.addr().send(lock).await.unwrap().unwrap();
    assert_eq!(next(&mut told).await, LockEvent::Held);
    assert!(guard.is_held());
    // Not the way to end a lock, but one.
    store.delete("lock").await.unwrap();
    assert_eq!(next(&mut told).await, LockEvent::Lost);
    assert!(matches!(guard.put("data", "x").await, Err(Error::LockLost { .. })));
    assert!(matches!(Lock::new("a/../b"), Err(Error::InvalidKey { .. })));
    store.close().await.unwrap();
}

#[actix::test]
async fn actors_are_told_who_leads() {
    let store = Store::connect("memory://messages-leader").await.unwrap();
    let (subscriber, mut seen) = listener();
    let observe = ObserveLeader { key: "leader".try_into().unwrap(), subscriber };
    let observing = store.addr().send(observe).await.unwrap().unwrap();
    assert_eq!(next(&mut seen).await, LeaderEvent::Vacant);
    let (subscriber, mut told) = listener();
    let campaign = Campaign { subscriber: Some(subscriber), ..Campaign::new("leader", "me").unwrap() };
    let leadership = store.addr().send(campaign).await.unwrap().unwrap();
    let term = leadership.term().unwrap();
    assert_eq!(next(&mut told).await, LeadershipEvent::Elected(term));
    assert_eq!(next(&mut seen).await, LeaderEvent::Elected(Leader { value: "me".into(), term }));
    leadership.resign().await.unwrap();
    assert_eq!(next(&mut seen).await, LeaderEvent::Vacant);
    drop(observing);
    store.close().await.unwrap();
}

#[actix::test]
async fn an_actor_is_told_of_its_registration() {
    let store = Store::connect("memory://messages-register").await.unwrap();
    let (subscriber, mut told) = listener();
    let register = Register::new("services/web/1", "10.0.0.1", Duration::from_secs(10)).unwrap();
    let register = Register { subscriber: Some(subscriber), ..register };
    let registration = store.addr().send(register).await.unwrap().unwrap();
    assert_eq!(next(&mut told).await, RegistrationEvent::Registered);
    store.close().await.unwrap();
    assert_eq!(next(&mut told).await, RegistrationEvent::Closed);
    assert!(!registration.is_registered());
}

#[actix::test]
async fn who_is_gone_before_it_is_elected_leaves_no_leader() {
    let store = Store::connect("memory://messages-gone").await.unwrap();
    let guard = store.lock("leader").await.unwrap();
    store.addr().do_send(Campaign::new("leader", "me").unwrap());
    guard.unlock().await.unwrap();
    // The campaign was sent first and is elected first; nobody takes its leadership.
    let guard = store.lock("leader").await.unwrap();
    assert!(guard.is_held());
    guard.unlock().await.unwrap();
    store.close().await.unwrap();
}
