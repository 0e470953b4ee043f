//! [`Watchers`]: one watcher for each key or directory that is watched, however many subscribe to it.

use super::watcher::{Join, Manner, Watcher};
use crate::backend::Target;
use crate::config::Options;
use crate::error::{Error, Result};
use crate::link::LinkView;
use crate::types::Status;
use crate::watch::{Events, Subscription};
use actix::{MailboxError, Message, Recipient};
use futures_util::{Stream, StreamExt};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout, timeout_at};

/// The watchers of a store.
#[derive(Clone)]
pub(crate) struct Watchers(Rc<Shared>);

struct Shared {
    link: LinkView,
    manner: Manner,
    status: watch::Sender<Status>,
    running: RefCell<HashMap<Target, mpsc::Sender<Join>>>,
    /// The tasks that send events to actors.
    forwarders: Cell<usize>,
    /// A watcher or forwarder ended.
    ended: Notify,
}

/// How many wishes to subscribe wait for a watcher at once; further ones wait for these.
const JOINS: usize = 64;

/// How long an actor may take over its last event when the store is closed.
const LAST_EVENT: Duration = Duration::from_secs(1);

impl Watchers {
    pub(crate) fn new(link: LinkView, options: &Options, status: watch::Sender<Status>) -> Self {
        let manner = Manner {
            patience: options.request_timeout,
            backoff_max: options.backoff_max,
            backoff_reset: options.backoff_reset,
            buffer: options.watch_buffer,
        };
        let (running, forwarders, ended) = (RefCell::default(), Cell::default(), Notify::new());
        Watchers(Rc::new(Shared { link, manner, status, running, forwarders, ended }))
    }

    /// Subscribes to a target; its state is known when this returns.
    pub(crate) async fn subscribe(&self, target: &Target, after: Duration, deadline: Instant) -> Result<Events> {
        loop {
            if self.0.link.is_closed() {
                return Err(Error::Closed);
            }
            let (join, wait) = oneshot::channel();
            let watcher = self.watcher(target);
            let joined = async {
                watcher.send(join).await.ok()?;
                wait.await.ok()
            };
            match timeout_at(deadline, joined).await {
                Ok(Some(joined)) => return joined,
                // It just ended, for want of subscribers.
                Ok(None) => {}
                Err(_) => return Err(self.out_of_time(after)),
            }
        }
    }

    /// The watcher of a target, which is started if there is none.
    fn watcher(&self, target: &Target) -> mpsc::Sender<Join> {
        let mut running = self.0.running.borrow_mut();
        if let Some(watcher) = running.get(target).filter(|watcher| !watcher.is_closed()) {
            return watcher.clone();
        }
        let (sender, inbox) = mpsc::channel(JOINS);
        let watcher = Watcher::new(target.clone(), self.0.link.clone(), self.0.manner, inbox);
        let end = Ended { watchers: self.clone(), target: target.clone() };
        spawn_local(async move {
            let _end = end;
            watcher.run().await;
        });
        running.insert(target.clone(), sender.clone());
        self.publish(running.len());
        sender
    }

    fn out_of_time(&self, after: Duration) -> Error {
        match self.0.link.session_number() {
            Some(_) => Error::Timeout { after },
            None => self.0.link.unreachable(),
        }
    }

    fn publish(&self, watches: usize) {
        self.0.status.send_modify(|status| status.watches = watches);
    }

    /// Sends events to an actor until one side ends.
    pub(crate) fn forward<E>(&self, events: impl Stream<Item = E> + 'static, actor: Recipient<E>) -> Subscription
    where
        E: Message<Result = ()> + Send + 'static,
    {
        let count = Forwarding::new(self.clone());
        let forwarder = spawn_local(async move {
            let (_count, mut events) = (count, pin!(events));
            while let Some(event) = events.next().await {
                // Waiting for each before the next keeps the actor's mailbox free and the queue's bound in force.
                if let Err(MailboxError::Closed) = actor.send(event).await {
                    return;
                }
            }
        });
        Subscription::new(forwarder.abort_handle())
    }

    /// Waits until all subscribers were told that the store is closed.
    pub(crate) async fn drained(&self) {
        self.ended(|shared| shared.running.borrow().is_empty()).await;
        let _ = timeout(LAST_EVENT, self.ended(|shared| shared.forwarders.get() == 0)).await;
    }

    async fn ended(&self, done: impl Fn(&Shared) -> bool) {
        while !done(&self.0) {
            self.0.ended.notified().await;
        }
    }
}

/// Takes a watcher off the list when it ends, even by a panic.
struct Ended {
    watchers: Watchers,
    target: Target,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let mut running = self.watchers.0.running.borrow_mut();
        // A new one may have taken the place of one that panicked.
        if running.get(&self.target).is_some_and(mpsc::Sender::is_closed) {
            running.remove(&self.target);
        }
        self.watchers.publish(running.len());
        self.watchers.0.ended.notify_one();
    }
}

/// Counts a forwarder while it lives.
struct Forwarding(Watchers);

impl Forwarding {
    fn new(watchers: Watchers) -> Self {
        watchers.0.forwarders.set(watchers.0.forwarders.get() + 1);
        Forwarding(watchers)
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let shared = &self.0.0;
        shared.forwarders.set(shared.forwarders.get() - 1);
        shared.ended.notify_one();
    }
}
