//! [`Registration`]: a key that is there as long as whoever registered it.

use crate::error::{Error, Result};
use crate::key::Key;
use crate::lock::Ending;
use crate::watch::Subscription;
use actix::Message;
use futures_util::{Stream, StreamExt};
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::WatchStream;

/// What becomes of a registration. It is a message too, for actors that take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegistrationEvent {
    /// The key is there. Comes again after [`Suspended`](RegistrationEvent::Suspended).
    Registered,
    /// The key may be gone: the link is down, somebody deleted the key or wrote something else to it. It is put back as soon as the
    /// link is there and nobody else's value is.
    Suspended,
    /// The registration was ended, or the store closed. Nothing follows.
    Closed,
}

impl Message for RegistrationEvent {
    type Result = ();
}

/// A key that is kept alive, and put back when it was lost, until this is dropped, [ended](Registration::unregister), or the store
/// is closed: [`Store::register`](crate::Store::register).
#[must_use = "dropping it takes the key away"]
pub struct Registration {
    key: Key,
    state: watch::Receiver<RegistrationEvent>,
    /// Dropping it ends the registration.
    end: oneshot::Sender<Ending>,
    timeout: Duration,
    _forwarder: Option<Subscription>,
}

impl Registration {
    pub(crate) fn new(
        key: Key,
        state: watch::Receiver<RegistrationEvent>,
        end: oneshot::Sender<Ending>,
        timeout: Duration,
    ) -> Self {
        Registration { key, state, end, timeout, _forwarder: None }
    }

    /// The events go to an actor as long as this lives.
    pub(crate) fn with_forwarder(mut self, forwarder: Option<Subscription>) -> Self {
        self._forwarder = forwarder;
        self
    }

    /// The key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Whether the key is there, as far as is known.
    pub fn is_registered(&self) -> bool {
        *self.state.borrow() == RegistrationEvent::Registered
    }

    /// What becomes of the registration: how it is doing now, and each change. Changes that come faster than they are taken are
    /// merged. Ends after [`Closed`](RegistrationEvent::Closed).
    pub fn events(&self) -> RegistrationEvents {
        RegistrationEvents { states: WatchStream::new(self.state.clone()), over: false }
    }

    /// Takes the key away, unless somebody else has written to it, and returns when the server has done so.
    ///
    /// Not cancelled by dropping its future: the registration ends in any case.
    ///
    /// # Errors
    /// [`Error::Closed`] where the store is closed, which took the key away; [`Error::Unreachable`] where the server doesn't answer
    /// in time: the key is no longer kept alive and goes with its TTL at the latest.
    pub async fn unregister(self) -> Result<()> {
        let (done, wait) = oneshot::channel();
        if self.end.send(done).is_err() {
            return Err(Error::Closed);
        }
        match timeout(self.timeout, wait).await {
            Ok(ended) => ended.unwrap_or(Err(Error::Closed)),
            Err(_) => Err(Error::unreachable("the key goes with its TTL")),
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Registration");
        debug.field("key", &self.key).field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}

/// The events of a registration, from [`Registration::events`].
pub struct RegistrationEvents {
    states: WatchStream<RegistrationEvent>,
    over: bool,
}

impl RegistrationEvents {
    /// The next event; none after the last. Cancel safe.
    pub async fn next(&mut self) -> Option<RegistrationEvent> {
        StreamExt::next(self).await
    }
}

impl Stream for RegistrationEvents {
    type Item = RegistrationEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<RegistrationEvent>> {
        if self.over {
            return Poll::Ready(None);
        }
        let event = ready!(self.states.poll_next_unpin(context)).unwrap_or(RegistrationEvent::Closed);
        self.over = event == RegistrationEvent::Closed;
        Poll::Ready(Some(event))
    }
}

impl fmt::Debug for RegistrationEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistrationEvents").field("over", &self.over).finish_non_exhaustive()
    }
}
