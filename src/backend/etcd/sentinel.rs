//! A stream that is open for as long as the connection works.
//!
//! It has two uses. Its end tells at once that the connection broke or that the server lost its leader. And while it is open
//! the connection isn't idle in etcd's eyes: etcd closes connections that send HTTP/2 keep-alives without an open stream.

use etcd_client::{Error as ClientError, WatchStream};
use futures_util::Stream;
use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Holds the stream and whoever waits for its end.
#[derive(Default)]
pub(super) struct Sentinel {
    stream: RefCell<Option<WatchStream>>,
    waiting: RefCell<Option<Waker>>,
}

impl Sentinel {
    /// Watches over `stream` from now on, instead of the one before.
    pub(super) fn arm(&self, stream: WatchStream) {
        self.stream.replace(Some(stream));
        // Whoever waits is registered with the stream before.
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    /// Waits for the end of the stream and returns its error, if it ended with one. Without a stream it waits for one.
    pub(super) async fn ended(&self) -> Option<ClientError> {
        poll_fn(|context| self.poll_ended(context)).await
    }

    fn poll_ended(&self, context: &mut Context<'_>) -> Poll<Option<ClientError>> {
        self.waiting.replace(Some(context.waker().clone()));
        let mut slot = self.stream.borrow_mut();
        let Some(stream) = slot.as_mut() else { return Poll::Pending };
        loop {
            let end = match Pin::new(&mut *stream).poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(_))) => continue,
                Poll::Ready(Some(Err(error))) => Some(error),
                Poll::Ready(None) => None,
            };
            *slot = None;
            return Poll::Ready(end);
        }
    }
}
