//! [`LockEvent`]: what becomes of a lock that is held.

use super::hold::LockState;
use actix::Message;
use futures_util::{Stream, StreamExt};
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

/// What becomes of a lock that is held. It is a message too, for actors that take it: see [`messages::Lock`](crate::messages::Lock).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockEvent {
    /// The lock is held, for the first time or again after [`Suspended`](LockEvent::Suspended).
    Held,
    /// The server could not be told that the holder is there. The lock is still held, for
    /// [`LockGuard::remaining`](crate::LockGuard::remaining): the time to bring one's work to an end.
    Suspended,
    /// The lock is no longer held, and another may hold it. Nothing follows.
    Lost,
    /// The lock was given back. Nothing follows.
    Released,
}

impl Message for LockEvent {
    type Result = ();
}

impl From<LockState> for LockEvent {
    fn from(state: LockState) -> Self {
        match state {
            LockState::Held => LockEvent::Held,
            LockState::Suspended => LockEvent::Suspended,
            LockState::Lost => LockEvent::Lost,
            LockState::Released => LockEvent::Released,
        }
    }
}

/// The events of one lock, from [`LockGuard::events`](crate::LockGuard::events): how it is doing now, and each change. Changes that
/// come faster than they are taken are merged. Ends after [`Lost`](LockEvent::Lost) or [`Released`](LockEvent::Released).
pub struct LockEvents {
    states: WatchStream<LockState>,
    over: bool,
}

impl LockEvents {
    pub(crate) fn new(states: watch::Receiver<LockState>) -> Self {
        LockEvents { states: WatchStream::new(states), over: false }
    }

    /// The next event; none after the last. Cancel safe.
    pub async fn next(&mut self) -> Option<LockEvent> {
        StreamExt::next(self).await
    }
}

impl Stream for LockEvents {
    type Item = LockEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<LockEvent>> {
        if self.over {
            return Poll::Ready(None);
        }
        let state = std::task::ready!(self.states.poll_next_unpin(context));
        self.over = state.is_none_or(LockState::is_over);
        Poll::Ready(state.map(LockEvent::from))
    }
}

impl fmt::Debug for LockEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockEvents").field("over", &self.over).finish_non_exhaustive()
    }
}
