//! [`Connection`]: the actor that takes a store's messages and carries them out on the session of the moment.

use crate::actors::election::{Candidate, lock_options};
use crate::actors::lease::Leases;
use crate::actors::lock::Acquired;
use crate::actors::locks::Locks;
use crate::actors::registration::{Counted, Registrar};
use crate::actors::watchers::Watchers;
use crate::backend::Target;
use crate::backoff::Pauses;
use crate::call::Rules;
use crate::config::Options;
use crate::election::{Candidacy, LeaderStream, Leadership};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::link::{Doubt, LinkView, Session};
use crate::lock::{LockGuard, LockOptions, Owner};
use crate::messages::{Campaign, Close, Lock, ObserveLeader, Register, Request, Watch, WatchTree};
use crate::near::{Near, Open};
use crate::registration::{Registration, RegistrationEvent};
use crate::supervisor::Closing;
use crate::types::Status;
use crate::watch::{Events, Subscription, TreeStream, WatchStream};
use actix::{Actor, Addr, AsyncContext, Context, Handler, MailboxError, Message, ResponseFuture};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot, watch};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{Instrument, Span, debug_span, warn};

/// The actor of one store's connection. It takes the messages of [`messages`](crate::messages); its address, from
/// [`Store::addr`](crate::Store::addr), stays the same over every reconnection.
///
/// Each call runs as its own task. None waits for another but for the bound on calls in flight, and where a driver lets many go
/// together.
pub struct Connection {
    calls: Rc<Calls>,
    /// Weak, so that the store closes when the last handle goes, whoever holds the actor's address.
    closing: mpsc::WeakSender<Closing>,
}

impl Connection {
    pub(crate) fn new(calls: Rc<Calls>, closing: mpsc::WeakSender<Closing>) -> Self {
        Connection { calls, closing }
    }
}

impl Actor for Connection {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        // The bound on calls in flight is the semaphore's. A smaller mailbox would only add a wait before it.
        context.set_mailbox_capacity(self.calls.max_in_flight as usize);
    }
}

/// A request with a deadline of its own, as [`Store`](crate::Store) sends it.
pub(crate) struct Timed<R> {
    pub(crate) request: R,
    pub(crate) timeout: Duration,
    pub(crate) deadline: Instant,
}

impl<R: Request> Message for Timed<R> {
    type Result = Result<R::Reply>;
}

impl<R: Request> Handler<Timed<R>> for Connection {
    type Result = ResponseFuture<Result<R::Reply>>;

    fn handle(&mut self, timed: Timed<R>, _: &mut Context<Self>) -> Self::Result {
        Box::pin(serve(self.calls.clone(), timed).instrument(call_span::<R>()))
    }
}

/// The span of a call, or none at all where nobody takes spans: one that is only disabled costs something with each poll.
fn call_span<R: Request>() -> Span {
    let span = debug_span!("call", name = R::NAME);
    if span.is_none() { Span::none() } else { span }
}

impl<R: Request> Handler<R> for Connection {
    type Result = ResponseFuture<Result<R::Reply>>;

    fn handle(&mut self, request: R, context: &mut Context<Self>) -> Self::Result {
        let timeout = self.calls.timeout;
        Handler::handle(self, Timed { request, timeout, deadline: Instant::now() + timeout }, context)
    }
}

impl Handler<Close> for Connection {
    type Result = ResponseFuture<Result<()>>;

    fn handle(&mut self, _: Close, _: &mut Context<Self>) -> Self::Result {
        let (calls, closing) = (self.calls.clone(), self.closing.upgrade());
        Box::pin(async move {
            let _reply_is_due = calls.closers.acquire().await;
            let (done, wait) = oneshot::channel();
            let closing = closing.ok_or(Error::Closed)?;
            closing.send(done).await.map_err(|_| Error::Closed)?;
            wait.await.unwrap_or(Err(Error::Closed))
        })
    }
}

/// A subscription with a deadline of its own, as [`Store`](crate::Store) asks for it.
pub(crate) struct Subscribe {
    pub(crate) target: Target,
    pub(crate) timeout: Duration,
    pub(crate) deadline: Instant,
}

impl Message for Subscribe {
    type Result = Result<Events>;
}

impl Handler<Subscribe> for Connection {
    type Result = ResponseFuture<Result<Events>>;

    fn handle(&mut self, subscribe: Subscribe, _: &mut Context<Self>) -> Self::Result {
        let calls = self.calls.clone();
        Box::pin(async move {
            let Subscribe { target, timeout, deadline } = subscribe;
            calls.subscribe(&target, timeout, deadline).await
        })
    }
}

impl Handler<Watch> for Connection {
    type Result = ResponseFuture<Result<Subscription>>;

    fn handle(&mut self, Watch { key, subscriber }: Watch, _: &mut Context<Self>) -> Self::Result {
        let calls = self.calls.clone();
        Box::pin(async move {
            let events = calls.subscribe_by_default(&Target::Key(key.clone())).await?;
            Ok(calls.watchers.forward(WatchStream::new(key, events), subscriber))
        })
    }
}

impl Handler<WatchTree> for Connection {
    type Result = ResponseFuture<Result<Subscription>>;

    fn handle(&mut self, WatchTree { dir, subscriber }: WatchTree, _: &mut Context<Self>) -> Self::Result {
        let calls = self.calls.clone();
        Box::pin(async move {
            let events = calls.subscribe_by_default(&Target::Tree(dir)).await?;
            Ok(calls.watchers.forward(TreeStream::new(events), subscriber))
        })
    }
}

/// How long a caller waits beyond its deadline for the actor's own word. Only an actor whose thread is blocked needs it.
const GRACE: Duration = Duration::from_millis(100);

/// Sends a call to a store's actor and awaits its reply.
pub(crate) async fn call<R: Request>(connection: &Addr<Connection>, timeout: Duration, request: R) -> Result<R::Reply> {
    call_until(connection, timeout, Instant::now() + timeout, request).await
}

/// As [`call`], with the deadline of a call that began before.
pub(crate) async fn call_until<R: Request>(
    connection: &Addr<Connection>,
    timeout: Duration,
    deadline: Instant,
    request: R,
) -> Result<R::Reply> {
    let lost = |reason: &'static str, error| if R::WRITES { Error::indeterminate(reason) } else { error };
    match send(connection, Timed { request, timeout, deadline }, deadline).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(lost("the store was closed during the call", Error::Closed)),
        Err(_) => Err(lost("the thread of the store's actors does not answer", Error::Timeout { after: timeout })),
    }
}

/// Sends a message to a store's actor and awaits its reply a little beyond the deadline.
pub(crate) async fn send<M>(
    connection: &Addr<Connection>,
    message: M,
    deadline: Instant,
) -> std::result::Result<std::result::Result<M::Result, MailboxError>, Elapsed>
where
    M: Message<Result: Send> + Send + 'static,
    Connection: Handler<M>,
{
    timeout_at(deadline + GRACE, connection.send(message)).await
}

/// A wish for a lock, as [`Store`](crate::Store) sends it. Who drops the other end of `reply` doesn't want it any more.
pub(crate) struct Acquire {
    pub(crate) key: Key,
    pub(crate) options: LockOptions,
    pub(crate) owner: Option<Owner>,
    pub(crate) reply: oneshot::Sender<Result<Acquired>>,
}

impl Message for Acquire {
    type Result = ();
}

impl Handler<Acquire> for Connection {
    type Result = ();

    fn handle(&mut self, acquire: Acquire, _: &mut Context<Self>) {
        let Acquire { key, options, owner, reply } = acquire;
        let calls = self.calls.clone();
        answer(reply, async move { calls.acquire(&key, options, owner).await });
    }
}

impl Handler<Lock> for Connection {
    type Result = ResponseFuture<Result<LockGuard>>;

    fn handle(&mut self, Lock { key, options, subscriber }: Lock, context: &mut Context<Self>) -> Self::Result {
        let (calls, connection) = (self.calls.clone(), context.address());
        Box::pin(async move {
            let got = calls.acquire(&key, options, None).await?;
            let guard = LockGuard::new(got, connection, calls.timeout);
            let forwarder = subscriber.map(|actor| calls.watchers.forward(guard.events(), actor));
            Ok(guard.with_forwarder(forwarder))
        })
    }
}

/// A wish to lead, as [`Store`](crate::Store) sends it. Who drops the other end of `reply` doesn't want it any more.
pub(crate) struct Elect {
    pub(crate) campaign: Campaign,
    pub(crate) owner: Option<Owner>,
    pub(crate) timeout: Duration,
    pub(crate) reply: oneshot::Sender<Result<Leadership>>,
}

impl Message for Elect {
    type Result = ();
}

impl Handler<Elect> for Connection {
    type Result = ();

    fn handle(&mut self, elect: Elect, context: &mut Context<Self>) {
        let Elect { campaign, owner, timeout, reply } = elect;
        let (calls, connection) = (self.calls.clone(), context.address());
        answer(reply, async move { calls.campaign(campaign, owner, connection, timeout).await });
    }
}

/// Works for somebody who may go away meanwhile: that ends the work, and what was got too late is given back by its drop.
fn answer<T: 'static>(mut reply: oneshot::Sender<Result<T>>, work: impl Future<Output = Result<T>> + 'static) {
    actix_rt::spawn(async move {
        let done = tokio::select! {
            biased;
            () = reply.closed() => return,
            done = work => done,
        };
        let _ = reply.send(done);
    });
}

impl Handler<Campaign> for Connection {
    type Result = ResponseFuture<Result<Leadership>>;

    fn handle(&mut self, campaign: Campaign, context: &mut Context<Self>) -> Self::Result {
        let (calls, connection) = (self.calls.clone(), context.address());
        Box::pin(async move { calls.campaign(campaign, None, connection, calls.timeout).await })
    }
}

impl Handler<ObserveLeader> for Connection {
    type Result = ResponseFuture<Result<Subscription>>;

    fn handle(
        &mut self,
        ObserveLeader { key, subscriber }: ObserveLeader,
        context: &mut Context<Self>,
    ) -> Self::Result {
        let (calls, connection) = (self.calls.clone(), context.address());
        Box::pin(async move {
            let changes = WatchStream::new(key.clone(), calls.subscribe_by_default(&Target::Lock(key.clone())).await?);
            let leaders = LeaderStream::new(key, changes, connection, calls.timeout);
            Ok(calls.watchers.forward(leaders, subscriber))
        })
    }
}

impl Handler<Register> for Connection {
    type Result = ResponseFuture<Result<Registration>>;

    fn handle(&mut self, register: Register, _: &mut Context<Self>) -> Self::Result {
        let calls = self.calls.clone();
        Box::pin(async move { calls.register(register).await })
    }
}

/// Sends a wish to lead to a store's actor and awaits what comes of it.
pub(crate) async fn elect(connection: &Addr<Connection>, campaign: Campaign, timeout: Duration) -> Result<Leadership> {
    let (reply, wait) = oneshot::channel();
    connection.do_send(Elect { campaign, owner: Some(Owner::current()), timeout, reply });
    wait.await.unwrap_or(Err(Error::Closed))
}

/// Sends a wish for a lock to a store's actor and awaits what comes of it.
pub(crate) async fn acquire(connection: &Addr<Connection>, key: Key, options: LockOptions) -> Result<Acquired> {
    let (reply, wait) = oneshot::channel();
    connection.do_send(Acquire { key, options, owner: Some(Owner::current()), reply });
    wait.await.unwrap_or(Err(Error::Closed))
}

/// What every call needs.
pub(crate) struct Calls {
    link: LinkView,
    leases: Leases,
    watchers: Watchers,
    locks: Locks,
    rules: Arc<Rules>,
    status: watch::Sender<Status>,
    timeout: Duration,
    /// One for each call that may be with the server at once.
    permits: Arc<Semaphore>,
    max_in_flight: u32,
    /// One for each `Close` that may await its reply at once.
    closers: Semaphore,
}

/// More callers than this close one store at once only by mistake; they wait for each other then.
const MAX_CLOSERS: u32 = 64;

impl Calls {
    pub(crate) fn new(
        link: LinkView,
        leases: Leases,
        watchers: Watchers,
        locks: Locks,
        rules: Rules,
        status: watch::Sender<Status>,
        options: &Options,
    ) -> Self {
        let (timeout, max_in_flight) = (options.request_timeout, options.max_in_flight);
        let permits = Arc::new(Semaphore::new(max_in_flight as usize));
        let (rules, closers) = (Arc::new(rules), Semaphore::new(MAX_CLOSERS as usize));
        Calls { link, leases, watchers, locks, rules, status, timeout, permits, max_in_flight, closers }
    }

    /// What the store's handles need to carry calls out by themselves while `open` has a way.
    pub(crate) fn near(&self, open: watch::Receiver<Option<Open>>) -> Near {
        let (rules, permits, reports) = (self.rules.clone(), self.permits.clone(), self.link.reports().clone());
        Near::new(open, rules, permits, self.leases.count().clone(), reports)
    }

    /// Subscribes to a target, unless it is one that must not be.
    async fn subscribe(&self, target: &Target, timeout: Duration, deadline: Instant) -> Result<Events> {
        let target = self.rules.target(target)?;
        self.watchers.subscribe(&target, timeout, deadline).await
    }

    /// Gets a lock, unless it is one that must not be asked for.
    async fn acquire(&self, key: &Key, options: LockOptions, owner: Option<Owner>) -> Result<Acquired> {
        self.rules.lock(key, &options)?;
        self.locks.acquire(key, options, owner).await
    }

    /// Stands for election, and has the candidacy looked after from the first election on.
    async fn campaign(
        &self,
        campaign: Campaign,
        owner: Option<Owner>,
        connection: Addr<Connection>,
        timeout: Duration,
    ) -> Result<Leadership> {
        let Campaign { key, value, options, subscriber } = campaign;
        let first = self.acquire(&key, lock_options(&options, value.clone()), owner).await?;
        let leads = Candidacy::Leads { hold: first.hold.clone(), suspended: false };
        let ((candidacy, state), (value, published)) = (watch::channel(leads), watch::channel(value));
        let (end, resignation) = oneshot::channel();
        let locks = self.locks.clone();
        let candidate = Candidate { key: key.clone(), options, locks, value: published, candidacy, resignation };
        actix_rt::spawn(candidate.run(first));
        let leadership = Leadership::new(key, state, value, end, connection, timeout);
        let forwarder = subscriber.map(|actor| self.watchers.forward(leadership.events(), actor));
        Ok(leadership.with_forwarder(forwarder))
    }

    /// Writes a key and has it looked after.
    async fn register(self: Rc<Self>, register: Register) -> Result<Registration> {
        let Register { key, value, ttl, subscriber } = register;
        let (state, shown) = watch::channel(RegistrationEvent::Registered);
        let (end, ended) = oneshot::channel();
        let _counted = Counted::new(self.status.clone());
        let registrar = Registrar { calls: self.clone(), key: key.clone(), value, ttl, state, _counted };
        let version = registrar.register().await?;
        actix_rt::spawn(registrar.run(version, ended));
        let registration = Registration::new(key, shown, end, self.timeout);
        let forwarder = subscriber.map(|actor| self.watchers.forward(registration.events(), actor));
        Ok(registration.with_forwarder(forwarder))
    }

    /// Carries a request out that the store makes by itself.
    pub(crate) async fn serve<R: Request>(self: &Rc<Self>, request: R) -> Result<R::Reply> {
        let timeout = self.timeout;
        serve(self.clone(), Timed { request, timeout, deadline: Instant::now() + timeout }).await
    }

    /// Waits for the leave to be with the server, up to the call's deadline.
    async fn permit<R>(&self, timed: &Timed<R>) -> Result<SemaphorePermit<'_>> {
        let permit = timeout_at(timed.deadline, self.permits.acquire()).await;
        permit.ok().and_then(|permit| permit.ok()).ok_or(Error::Timeout { after: timed.timeout })
    }

    pub(crate) async fn subscribe_by_default(&self, target: &Target) -> Result<Events> {
        self.subscribe(target, self.timeout, Instant::now() + self.timeout).await
    }

    /// Waits until every call has its reply: once the link is closed they all end at once.
    pub(crate) async fn ended(&self) {
        let _calls = self.permits.acquire_many(self.max_in_flight).await;
    }

    /// Waits until every call and every `Close` has its reply, and every subscriber its last event: before the thread, and with it the mailbox, goes.
    pub(crate) async fn drained(&self) {
        self.ended().await;
        let _closers = self.closers.acquire_many(MAX_CLOSERS).await;
        self.watchers.drained().await;
        self.locks.drained().await;
        // The status outlives whoever changes it.
        let _ = self.status.subscribe().wait_for(|status| status.registrations == 0).await;
    }
}

/// One call, from its checks to its reply, whatever happens to sessions meanwhile.
async fn serve<R: Request>(calls: Rc<Calls>, timed: Timed<R>) -> Result<R::Reply> {
    if calls.link.is_closed() {
        return Err(Error::Closed);
    }
    timed.request.check(&calls.rules)?;
    let _permit = match calls.permits.try_acquire() {
        Ok(permit) => permit,
        // Who waits is not passed over by others: what is freed is theirs first.
        Err(_) => Box::pin(calls.permit(&timed)).await?,
    };
    // What most calls don't need is boxed, so that they don't carry the space for it.
    let mut pauses = None;
    loop {
        let session = match calls.link.decided() {
            Some(decided) => decided?,
            None => Box::pin(calls.link.session(timed.deadline)).await?,
        };
        let error = match attempt(&calls, &timed, &session).await {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        if !matches!(error, Error::Unreachable { .. }) {
            return Err(error);
        }
        calls.link.report(session.number, Doubt::Unreachable(error.clone()));
        let pause = pauses.get_or_insert_with(attempt_pauses).next();
        Box::pin(sleep_until(timed.deadline.min(Instant::now() + pause))).await;
        if Instant::now() >= timed.deadline {
            return Err(error);
        }
    }
}

/// The link may be up again at once, and must not be hammered if it isn't.
fn attempt_pauses() -> Box<Pauses> {
    Box::new(Pauses::new(Duration::from_millis(5), Duration::from_millis(250)))
}

/// One attempt, which ends with the deadline, with the session, or with a panic of the driver.
async fn attempt<R: Request>(calls: &Calls, timed: &Timed<R>, session: &Session) -> Result<R::Reply> {
    let begun = Instant::now();
    let call = AssertUnwindSafe(timed.request.run(session, &calls.leases)).catch_unwind();
    tokio::select! {
        biased;
        done = call => match done {
            Ok(result) => result,
            Err(panic) => Err(panicked(calls, timed, session, &*panic).await),
        },
        () = sleep_until(timed.deadline) => {
            if begun.elapsed() >= SILENCE {
                calls.link.report(session.number, Doubt::Unreachable(Error::Timeout { after: timed.timeout }));
            }
            Err(out_of_time::<R>(timed.timeout))
        }
        () = calls.link.session_over(session.number) => Err(session_ended::<R>(calls)),
    }
}

/// A server that lets a call wait for so long may be dead: the supervisor has a look. What is in more of a hurry than this
/// says nothing about the server.
pub(crate) const SILENCE: Duration = Duration::from_millis(500);

pub(crate) fn out_of_time<R: Request>(after: Duration) -> Error {
    match R::WRITES {
        true => Error::indeterminate(format!("no answer within {after:?}")),
        false => Error::Timeout { after },
    }
}

fn session_ended<R: Request>(calls: &Calls) -> Error {
    let closed = calls.link.is_closed();
    match R::WRITES {
        true => Error::indeterminate("the session ended before the answer came"),
        false if closed => Error::Closed,
        false => Error::unreachable("the session ended before the answer came"),
    }
}

/// Boxed, so that calls don't carry the space for what they don't need.
#[cold]
fn panicked<'c, R: Request>(
    calls: &'c Calls,
    timed: &Timed<R>,
    session: &Session,
    panic: &(dyn std::any::Any + Send),
) -> LocalBoxFuture<'c, Error> {
    let (doubt, error) = panic_error::<R>(panic);
    let replaced = timeout_at(timed.deadline, calls.link.panicked(session.number, doubt));
    Box::pin(replaced.map(|_| error))
}

/// What a panic of the driver means for its session, and for the call.
pub(crate) fn panic_error<R: Request>(panic: &(dyn std::any::Any + Send)) -> (Doubt, Error) {
    let text = panic_text(panic);
    warn!(call = R::NAME, panic = text, "the driver panicked; its session is replaced");
    let error = match R::WRITES {
        true => Error::indeterminate(format!("the driver panicked: {text}")),
        false => Error::backend(format!("the driver panicked: {text}")),
    };
    (Doubt::Panicked(Error::backend(format!("the driver panicked: {text}"))), error)
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}
