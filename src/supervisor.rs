//! The supervisor: opens a store's sessions, notices when one is lost, and opens the next, with backoff.
//!
//! It is one task per store, and a state machine: connecting -> up -> suspended -> up again, or connecting; closed at any
//! time. It is not on the path of calls: it publishes the [`Link`], which calls look at, and the [`Status`], which people
//! look at.

use crate::actors::connection::{Calls, panic_text};
use crate::actors::lease::Leases;
use crate::actors::locks::Locks;
use crate::backend::{Backend, Connector};
use crate::backoff::Pauses;
use crate::config::Options;
use crate::error::{Error, Result};
use crate::link::{Doubt, Link, Report, Session};
use crate::near::Open;
use crate::types::{LinkState, Status};
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

/// A wish to close, with the place for the answer.
pub(crate) type Closing = oneshot::Sender<Result<()>>;

/// What the supervisor is given.
pub(crate) struct Supervisor {
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) options: Options,
    pub(crate) link: watch::Sender<Link>,
    pub(crate) near: watch::Sender<Option<Open>>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) reports: mpsc::Receiver<Report>,
    /// Closes the store when something arrives, or when all senders are gone.
    pub(crate) closing: mpsc::Receiver<Closing>,
    pub(crate) leases: Leases,
    pub(crate) locks: Locks,
    pub(crate) calls: Rc<Calls>,
}

/// The status of a store that was not connected yet.
pub(crate) fn initial_status(connector: &dyn Connector) -> Status {
    Status {
        link: LinkState::Connecting,
        since: SystemTime::now(),
        endpoint: connector.endpoints().join(","),
        session: None,
        restarts: 0,
        watches: 0,
        locks: 0,
        registrations: 0,
        last_error: None,
    }
}

/// How a phase of the store's life ended.
enum Phase<T> {
    Over(T),
    /// The store is to be closed; whoever wants to know is told when it is done.
    Closing(Option<Closing>),
}

impl Supervisor {
    /// Looks after the store until it is closed. `opened` is told how the first connection went: a lazy store's is told at
    /// once, any other's after each endpoint was tried once, and ends when none would do.
    pub(crate) async fn run(mut self, opened: oneshot::Sender<Result<()>>) {
        let mut opened = Some(opened);
        if self.options.lazy {
            tell_opened(&mut opened, Ok(()));
        }
        let closing = self.live(&mut opened).await;
        tell_opened(&mut opened, Err(Error::Closed));
        self.publish_closed();
        if let Some(closing) = closing {
            let _ = closing.send(Ok(()));
        }
        while let Ok(also) = self.closing.try_recv() {
            let _ = also.send(Ok(()));
        }
    }

    /// Session after session, until the store is to be closed.
    async fn live(&mut self, opened: &mut Option<oneshot::Sender<Result<()>>>) -> Option<Closing> {
        let mut pauses = self.pauses();
        let mut endpoint = 0;
        for number in 1.. {
            let backend = match self.connect(&mut endpoint, &mut pauses, opened).await {
                Phase::Over(Some(backend)) => backend,
                Phase::Over(None) => return None,
                Phase::Closing(closing) => return closing,
            };
            let session = Session::new(backend, number);
            self.publish_up(&session);
            tell_opened(opened, Ok(()));
            let since = Instant::now();
            let error = match self.serve(&session).await {
                Phase::Over(error) => error,
                Phase::Closing(closing) => {
                    self.end(&session).await;
                    return closing;
                }
            };
            warn!(session = number, %error, "the session is lost; opening another");
            self.publish_down(LinkState::Suspended, passing(error));
            self.status.send_modify(|status| status.restarts += 1);
            end_calls(&session);
            drop(session);
            // The next endpoint first: this one may be half broken.
            endpoint += 1;
            if since.elapsed() >= self.options.backoff_reset {
                pauses = self.pauses();
            } else if let Phase::Closing(closing) = or_closing(&mut self.closing, sleep(pauses.next())).await {
                return closing;
            }
        }
        None
    }

    fn pauses(&self) -> Pauses {
        Pauses::new(self.options.backoff_min, self.options.backoff_max)
    }

    /// Tries the endpoints in turn, from this one on, until one serves; pauses after each round. None where the store was to
    /// be opened at once and the first round failed.
    async fn connect(
        &mut self,
        next: &mut usize,
        pauses: &mut Pauses,
        opened: &mut Option<oneshot::Sender<Result<()>>>,
    ) -> Phase<Option<Rc<dyn Backend>>> {
        let endpoints = self.connector.endpoints();
        loop {
            let mut last = Error::unreachable("there is no endpoint");
            for _ in &endpoints {
                let index = *next % endpoints.len();
                let endpoint = &endpoints[index];
                let attempt = attempt(self.connector.clone(), index, endpoint, self.options.connect_timeout);
                last = match or_closing(&mut self.closing, attempt).await {
                    Phase::Over(Ok(backend)) => {
                        self.publish_endpoint(endpoint);
                        return Phase::Over(Some(backend));
                    }
                    Phase::Over(Err(error)) => error,
                    Phase::Closing(closing) => return Phase::Closing(closing),
                };
                warn!(endpoint, error = %last, "no connection");
                *next += 1;
            }
            let state = self.status.borrow().link;
            self.publish_down(state, last.clone());
            if opened.is_some() {
                tell_opened(opened, Err(last));
                return Phase::Over(None);
            }
            if let Phase::Closing(closing) = or_closing(&mut self.closing, sleep(pauses.next())).await {
                return Phase::Closing(closing);
            }
        }
    }

    /// Serves calls with the session until it is lost.
    async fn serve(&mut self, session: &Session) -> Phase<Error> {
        loop {
            let doubt = next_doubt(&mut self.reports, session);
            let doubt = match or_closing(&mut self.closing, doubt).await {
                Phase::Over(doubt) => doubt,
                Phase::Closing(closing) => return Phase::Closing(closing),
            };
            let error = match doubt {
                Doubt::Panicked(error) => return Phase::Over(error),
                Doubt::Unreachable(error) => error,
            };
            warn!(session = session.number, %error, "the link is in doubt");
            self.publish_down(LinkState::Suspended, passing(error));
            let recovery = recovery(self.connector.as_ref(), session, self.options.connect_timeout);
            match or_closing(&mut self.closing, recovery).await {
                Phase::Over(Ok(())) => info!(session = session.number, "the link is back"),
                Phase::Over(Err(error)) => return Phase::Over(error),
                Phase::Closing(closing) => return Phase::Closing(closing),
            }
            if let Some(error) = self.settle_doubts(session) {
                return Phase::Over(error);
            }
            self.publish_up(session);
        }
    }

    /// Many calls may have raised the doubt that was just settled. A panic among the reports still ends the session.
    fn settle_doubts(&mut self, session: &Session) -> Option<Error> {
        while let Ok(report) = self.reports.try_recv() {
            match report.doubt {
                Doubt::Panicked(error) if report.session == session.number => return Some(error),
                Doubt::Panicked(_) | Doubt::Unreachable(_) => {}
            }
        }
        None
    }

    /// Ends what the session holds on the server.
    async fn end(&self, session: &Session) {
        // From here on new calls are refused, and those on their way end: none of them leaves a lease behind.
        self.set_link(Link::Closed);
        end_calls(session);
        self.calls.ended().await;
        self.end_step("locks", async {
            self.locks.close(session).await;
            Ok(())
        })
        .await;
        self.end_step("leases", async {
            self.leases.close(session).await;
            Ok(())
        })
        .await;
        self.end_step("session", session.backend.close()).await;
    }

    async fn end_step(&self, what: &str, step: impl Future<Output = Result<()>>) {
        let limit = self.options.request_timeout / 2;
        match timeout(limit, AssertUnwindSafe(step).catch_unwind()).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => warn!(what, %error, "not ended; the server does by itself"),
            Ok(Err(panic)) => warn!(what, panic = panic_text(&*panic), "the driver panicked while closing"),
            Err(_) => warn!(what, "not ended in time; the server does by itself"),
        }
    }

    /// Changes what calls see of the link. Those who take the short way are told first that it is closed.
    fn set_link(&self, link: Link) {
        self.near.send_replace(Open::by(&link));
        self.link.send_replace(link);
    }

    fn publish_closed(&self) {
        self.set_link(Link::Closed);
        self.status.send_if_modified(|status| {
            let closes = status.link != LinkState::Closed;
            if closes {
                status.link = LinkState::Closed;
                status.since = SystemTime::now();
                status.session = None;
            }
            closes
        });
    }

    fn publish_up(&self, session: &Session) {
        let name = session_name(&*session.backend);
        self.set_link(Link::Up(session.clone()));
        self.status.send_modify(|status| {
            status.link = LinkState::Up;
            status.since = SystemTime::now();
            status.session = name;
        });
    }

    fn publish_endpoint(&self, endpoint: &str) {
        info!(endpoint, "connected");
        self.status.send_modify(|status| endpoint.clone_into(&mut status.endpoint));
    }

    fn publish_down(&self, link: LinkState, error: Error) {
        self.set_link(Link::Down(Some(error.clone())));
        self.status.send_modify(|status| {
            if status.link != link {
                status.link = link;
                status.since = SystemTime::now();
            }
            status.last_error = Some(error);
        });
    }
}

impl Drop for Supervisor {
    /// However the supervisor ends, even by a panic: nobody waits for a link that nobody restores.
    fn drop(&mut self) {
        self.publish_closed();
        self.leases.abandon();
    }
}

/// The driver's name for its session; a panic over it is no reason to do without the session.
fn session_name(backend: &dyn Backend) -> Option<String> {
    let name = std::panic::catch_unwind(AssertUnwindSafe(|| backend.session()));
    name.unwrap_or_else(|panic| {
        warn!(panic = panic_text(&*panic), "the driver panicked over the session's name");
        None
    })
}

/// Ends the calls that took the short way and wait for their answers. The others look at the link.
fn end_calls(session: &Session) {
    if let Some(shortcut) = session.backend.shortcut() {
        shortcut.end_calls();
    }
}

/// The error of a link that is being restored: calls wait for it, whatever brought it down.
fn passing(error: Error) -> Error {
    match error.is_retryable() {
        true => error,
        false => Error::unreachable(error.to_string()).with_source(error),
    }
}

fn tell_opened(opened: &mut Option<oneshot::Sender<Result<()>>>, result: Result<()>) {
    if let Some(opened) = opened.take() {
        let _ = opened.send(result);
    }
}

/// Goes on with `phase`, but for a wish to close.
async fn or_closing<T>(closing: &mut mpsc::Receiver<Closing>, phase: impl Future<Output = T>) -> Phase<T> {
    tokio::select! {
        biased;
        closing = closing.recv() => Phase::Closing(closing),
        over = phase => Phase::Over(over),
    }
}

/// One attempt to connect, bounded in time and safe from panics.
async fn attempt(
    connector: Arc<dyn Connector>,
    index: usize,
    endpoint: &str,
    limit: Duration,
) -> Result<Rc<dyn Backend>> {
    let limit = connector.connect_within().unwrap_or(limit);
    match timeout(limit, AssertUnwindSafe(connector.connect(index)).catch_unwind()).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(panic)) => Err(Error::unreachable(format!("the driver panicked: {}", panic_text(&*panic)))),
        Err(_) => Err(Error::unreachable(format!("{endpoint} did not answer within {limit:?} (`connect_timeout`)"))),
    }
}

/// The next doubt about this session, from its driver or from a call.
async fn next_doubt(reports: &mut mpsc::Receiver<Report>, session: &Session) -> Doubt {
    let reported = async {
        while let Some(report) = reports.recv().await {
            if report.session == session.number {
                return report.doubt;
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        doubt = reported => doubt,
        noticed = AssertUnwindSafe(session.backend.disrupted()).catch_unwind() => match noticed {
            Ok(error) => Doubt::Unreachable(error),
            Err(panic) => Doubt::Panicked(Error::backend(format!("the driver panicked: {}", panic_text(&*panic)))),
        },
    }
}

/// The driver's attempt to go on with the session, bounded in time and safe from panics.
async fn recovery(connector: &dyn Connector, session: &Session, connect_timeout: Duration) -> Result<()> {
    let limit = connector.recover_within().unwrap_or(connect_timeout);
    match timeout(limit, AssertUnwindSafe(session.backend.recover()).catch_unwind()).await {
        Ok(Ok(recovered)) => recovered,
        Ok(Err(panic)) => Err(Error::backend(format!("the driver panicked: {}", panic_text(&*panic)))),
        Err(_) => Err(Error::unreachable(format!("the link did not come back within {limit:?}"))),
    }
}
