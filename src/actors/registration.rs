//! [`Registrar`]: one registration's actor. It writes the key with a TTL that is kept alive, watches it, and puts it back.

use super::connection::Calls;
use crate::backend::Target;
use crate::backoff::Pauses;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::lock::Ending;
use crate::messages::{AtomicDelete, Get, Put};
use crate::registration::RegistrationEvent;
use crate::types::{Consistency, PutOptions, Status, Version};
use crate::watch::{WatchEvent, WatchStream};
use bytes::Bytes;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;
use tracing::{debug, info};

/// A registration.
pub(crate) struct Registrar {
    pub(crate) calls: Rc<Calls>,
    pub(crate) key: Key,
    pub(crate) value: Bytes,
    pub(crate) ttl: Duration,
    pub(crate) state: watch::Sender<RegistrationEvent>,
    pub(crate) _counted: Counted,
}

/// Counts a registration in the store's status while it lives.
pub(crate) struct Counted(watch::Sender<Status>);

impl Counted {
    pub(crate) fn new(status: watch::Sender<Status>) -> Self {
        status.send_modify(|status| status.registrations += 1);
        Counted(status)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|status| status.registrations -= 1);
    }
}

/// How long the watch may take to show what was written. One that merges changes never does where the key was gone again before:
/// then the key is looked at as if its deletion had been told.
const UNSHOWN: Duration = Duration::from_secs(1);

/// How the key is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is as it was written.
    Ours,
    /// Somebody else wrote to it: that is left alone until it goes.
    Theirs,
    /// It is gone.
    Gone,
}

impl Registrar {
    /// Writes the key for the first time.
    pub(crate) async fn register(&self) -> Result<Version> {
        let options = PutOptions::keep_alive(self.ttl);
        let put = Put { key: self.key.clone(), value: self.value.clone(), options };
        Ok(self.calls.serve(put).await?.version)
    }

    /// Keeps the key, written in `version`, until the registration is ended.
    pub(crate) async fn run(self, mut version: Version, mut end: oneshot::Receiver<Ending>) {
        let events = tokio::select! {
            biased;
            ending = &mut end => return self.unregister(version, ending.ok()).await,
            events = self.watch() => events,
        };
        let Some(mut events) = events else { return self.tell(RegistrationEvent::Closed) };
        let (mut fate, mut is_shown) = (Fate::Ours, false);
        loop {
            let event = tokio::select! {
                biased;
                ending = &mut end => return self.unregister(version, ending.ok()).await,
                event = events.next() => event,
                () = sleep(UNSHOWN), if !is_shown => Some(WatchEvent::Delete { key: self.key.clone(), version: None }),
            };
            match event {
                Some(WatchEvent::Suspended) => {
                    self.tell(RegistrationEvent::Suspended);
                    continue;
                }
                Some(WatchEvent::Put(pair)) if pair.version == version => (fate, is_shown) = (Fate::Ours, true),
                Some(WatchEvent::Resumed) => {}
                Some(WatchEvent::Put(_) | WatchEvent::Delete { .. }) => {
                    let settled = tokio::select! {
                        biased;
                        ending = &mut end => return self.unregister(version, ending.ok()).await,
                        settled = self.settle(version) => settled,
                    };
                    let Some((settled, written)) = settled else { break };
                    is_shown &= written == version;
                    (fate, version) = (settled, written);
                }
                Some(WatchEvent::Closed) | None => break,
            }
            self.tell(match fate {
                Fate::Ours => RegistrationEvent::Registered,
                Fate::Theirs | Fate::Gone => RegistrationEvent::Suspended,
            });
        }
        self.tell(RegistrationEvent::Closed);
    }

    fn tell(&self, event: RegistrationEvent) {
        self.state.send_if_modified(|state| std::mem::replace(state, event) != event);
    }

    /// Watches the key; none where the store was closed.
    async fn watch(&self) -> Option<WatchStream> {
        let target = Target::Key(self.key.clone());
        let mut pauses = pauses();
        loop {
            match self.calls.subscribe_by_default(&target).await {
                Ok(events) => return Some(WatchStream::new(self.key.clone(), events)),
                Err(Error::Closed) => return None,
                Err(error) => {
                    debug!(key = %self.key, %error, "a registered key can't be watched; trying again");
                    self.tell(RegistrationEvent::Suspended);
                }
            }
            sleep(pauses.next()).await;
        }
    }

    /// Looks at the key after a change that wasn't ours, which may be older than ours, and puts it back if it is gone. None where
    /// the store was closed.
    async fn settle(&self, version: Version) -> Option<(Fate, Version)> {
        let (mut pauses, mut doubtful) = (pauses(), false);
        loop {
            let error = match self.look(version, doubtful).await {
                Ok(Fate::Gone) => {
                    self.tell(RegistrationEvent::Suspended);
                    match self.register().await {
                        Ok(version) => {
                            info!(key = %self.key, "a registered key was put back");
                            return Some((Fate::Ours, version));
                        }
                        Err(error) => {
                            doubtful |= error.is_indeterminate();
                            error
                        }
                    }
                }
                Ok(fate) => return Some((fate, version)),
                Err(error) => error,
            };
            if matches!(error, Error::Closed) {
                return None;
            }
            self.tell(RegistrationEvent::Suspended);
            debug!(key = %self.key, %error, "a registered key was not put back; trying again");
            sleep(pauses.next()).await;
        }
    }

    /// How the key is doing. Our own value in it, once the answer to a write was lost, is taken for that write's, which nobody keeps
    /// alive: it is as good as gone, and is written again.
    async fn look(&self, version: Version, doubtful: bool) -> Result<Fate> {
        match self.calls.serve(Get { key: self.key.clone(), consistency: Consistency::Linearizable }).await {
            Ok(pair) if pair.version == version => Ok(Fate::Ours),
            Ok(pair) if doubtful && pair.value == self.value => Ok(Fate::Gone),
            Ok(_) => Ok(Fate::Theirs),
            Err(Error::KeyNotFound { .. }) => Ok(Fate::Gone),
            Err(error) => Err(error),
        }
    }

    /// Takes the key away if it is still as it was written.
    async fn unregister(&self, version: Version, ending: Option<Ending>) {
        let mut pauses = pauses();
        let ended = loop {
            match self.calls.serve(AtomicDelete { key: self.key.clone(), version }).await {
                // Somebody else's doing, or an earlier attempt's.
                Ok(()) | Err(Error::KeyNotFound { .. } | Error::KeyModified { .. }) => break Ok(()),
                Err(Error::Closed) => break Err(Error::Closed),
                Err(error) => debug!(key = %self.key, %error, "a registered key was not taken away; trying again"),
            }
            sleep(pauses.next()).await;
        };
        self.tell(RegistrationEvent::Closed);
        ending.into_iter().for_each(|ending| drop(ending.send(ended.clone())));
    }
}

fn pauses() -> Pauses {
    Pauses::new(Duration::from_millis(20), Duration::from_secs(1))
}
