//! [`Errands`]: what the store's own tasks ask of the server, as leases and locks do: one attempt at a time, bounded, safe from
//! panics, and repeated where repeating does no harm.

use super::connection::panic_text;
use crate::backoff::Pauses;
use crate::error::{Error, Result};
use crate::link::{Doubt, LinkView, Session, far_future};
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Asks the server, on the session of the moment.
#[derive(Clone)]
pub(crate) struct Errands {
    link: LinkView,
    /// How long one attempt may take.
    timeout: Duration,
}

impl Errands {
    pub(crate) fn new(link: LinkView, timeout: Duration) -> Self {
        Errands { link, timeout }
    }

    pub(crate) fn link(&self) -> &LinkView {
        &self.link
    }

    /// How long one attempt may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// One attempt, which also ends with its session. The supervisor hears of a failure that puts the session in doubt.
    ///
    /// # Errors
    /// What the step fails with; [`Error::Indeterminate`] for silence, a panic, and the end of the session.
    pub(crate) async fn once<T>(&self, session: &Session, step: impl Future<Output = Result<T>>) -> Result<T> {
        self.within(self.timeout, session, step).await
    }

    /// As [`once`](Self::once), for what may take any time, as waiting does.
    pub(crate) async fn long<T>(&self, session: &Session, step: impl Future<Output = Result<T>>) -> Result<T> {
        self.within(Duration::MAX, session, step).await
    }

    async fn within<T>(&self, limit: Duration, session: &Session, step: impl Future<Output = Result<T>>) -> Result<T> {
        let step = timeout(limit, AssertUnwindSafe(step).catch_unwind());
        let answer = tokio::select! {
            biased;
            answer = step => answer,
            () = self.link.session_over(session.number) => {
                return Err(Error::indeterminate("the session ended before the answer came"));
            }
        };
        let (error, doubt) = match answer {
            Ok(Ok(Ok(done))) => return Ok(done),
            Ok(Ok(Err(error))) if !(error.is_retryable() || error.is_indeterminate()) => return Err(error),
            Ok(Ok(Err(error))) => (error.clone(), Doubt::Unreachable(error)),
            Ok(Err(panic)) => {
                let error = Error::indeterminate(format!("the driver panicked: {}", panic_text(&*panic)));
                (error.clone(), Doubt::Panicked(error))
            }
            Err(_) => {
                let error = Error::indeterminate(format!("no answer within {limit:?}"));
                (error.clone(), Doubt::Unreachable(error))
            }
        };
        self.link.report(session.number, doubt);
        Err(error)
    }

    /// One attempt when the store is closed and there is no link to report to: safe from panics, so that one step's doesn't keep
    /// others from being taken. The caller bounds its time.
    pub(crate) async fn last<T>(&self, step: impl Future<Output = Result<T>>) -> Result<T> {
        let answer = AssertUnwindSafe(step).catch_unwind().await;
        answer.unwrap_or_else(|panic| Err(Error::backend(format!("the driver panicked: {}", panic_text(&*panic)))))
    }

    /// Repeats a step that does no harm when it is done twice, until the server has answered or `patience` is over.
    pub(crate) async fn until_answered<T>(
        &self,
        patience: Duration,
        step: impl AsyncFn(&Session) -> Result<T>,
    ) -> Result<T> {
        let give_up = Instant::now().checked_add(patience).unwrap_or_else(far_future);
        let mut pauses = Pauses::new(Duration::from_millis(20), Duration::from_secs(1));
        while Instant::now() < give_up {
            match self.link.session(give_up).await {
                Ok(session) => match self.once(&session, step(&session)).await {
                    Ok(done) => return Ok(done),
                    Err(error) if is_final(&error) => return Err(error),
                    Err(_) => {}
                },
                Err(Error::Closed) => return Err(Error::Closed),
                // What the server says while it comes up again, of our credentials say, isn't its last word.
                Err(_) => {}
            }
            sleep(pauses.next()).await;
        }
        Err(Error::Timeout { after: patience })
    }
}

/// Whether asking again would get the same answer.
fn is_final(error: &Error) -> bool {
    matches!(error, Error::KeyNotFound { .. } | Error::LockLost { .. } | Error::Unsupported { .. } | Error::Closed)
}
