//! [`Near`]: calls on an embedded store are carried out where they are made, while it is open. All others, and those that have
//! to wait for the link, for their turn or for another attempt, go to the actor.

use crate::actors::connection::{SILENCE, out_of_time, panic_error};
use crate::actors::lease::LeaseCount;
use crate::backend::shortcut::{Begun, Shortcut};
use crate::call::Rules;
use crate::error::{Error, Result};
use crate::link::{Doubt, Link, Report};
use crate::messages::Request;
use futures_util::future::BoxFuture;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument, Span, debug_span};

/// The short way to a session that serves calls.
pub(crate) struct Open {
    session: u64,
    shortcut: Arc<dyn Shortcut>,
}

impl Open {
    /// The short way where the link is up and its backend has one.
    pub(crate) fn by(link: &Link) -> Option<Self> {
        let Link::Up(session) = link else { return None };
        let shortcut = session.backend.shortcut()?;
        Some(Open { session: session.number, shortcut })
    }
}

/// What a handle needs to carry calls out by itself.
pub(crate) struct Near {
    /// Nobody begins a call by a way that was closed: it is looked at under this channel's lock.
    open: watch::Receiver<Option<Open>>,
    rules: Arc<Rules>,
    permits: Arc<Semaphore>,
    leases: LeaseCount,
    reports: mpsc::Sender<Report>,
}

/// A call that was begun here.
enum Here<R> {
    Done(Result<R>),
    Waits { session: u64, answer: BoxFuture<'static, Result<R>>, span: Span },
    Panicked { session: u64, doubt: Doubt, error: Error },
}

impl Near {
    pub(crate) fn new(
        open: watch::Receiver<Option<Open>>,
        rules: Arc<Rules>,
        permits: Arc<Semaphore>,
        leases: LeaseCount,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        Near { open, rules, permits, leases, reports }
    }

    /// Carries a request out here; none where it has to go to the actor, and had no effect yet.
    pub(crate) async fn call<R: Request>(
        &self,
        request: &R,
        timeout: Duration,
        deadline: Instant,
    ) -> Option<Result<R::Reply>> {
        match self.begin(request)? {
            Here::Done(done) => {
                // Who does nothing but calls that never wait lets others of its runtime have their turn too.
                consume_budget().await;
                Some(done)
            }
            Here::Waits { session, answer, span } => {
                let done = timeout_at(deadline, answer).instrument(span).await;
                self.end::<R>(session, timeout, done.ok())
            }
            Here::Panicked { session, doubt, error } => {
                // Boxed, so that calls don't carry the space for what they don't need.
                let _ = Box::pin(timeout_at(deadline, self.panicked(session, doubt))).await;
                Some(Err(error))
            }
        }
    }

    fn begin<R: Request>(&self, request: &R) -> Option<Here<R::Reply>> {
        let open = self.open.borrow();
        let Open { session, shortcut } = open.as_ref()?;
        let span = debug_span!("call", name = R::NAME);
        let begin = || span.in_scope(|| self.carry_out(request, &**shortcut));
        let begun = match std::panic::catch_unwind(AssertUnwindSafe(begin)) {
            Ok(begun) => begun?,
            Err(panic) => {
                let (doubt, error) = panic_error::<R>(&*panic);
                return Some(Here::Panicked { session: *session, doubt, error });
            }
        };
        match begun {
            Begun::Done(Err(Error::Unreachable { .. })) => None,
            Begun::Done(done) => Some(Here::Done(done)),
            Begun::Waits(answer) => Some(Here::Waits { session: *session, answer, span }),
        }
    }

    fn carry_out<R: Request>(&self, request: &R, shortcut: &dyn Shortcut) -> Option<Begun<R::Reply>> {
        if let Err(error) = request.check(&self.rules) {
            return Some(Begun::Done(Err(error)));
        }
        if !R::WRITES {
            return request.read(shortcut).map(Begun::Done);
        }
        // The keys with a TTL are looked after on the store's thread, which hears of each write while there are any.
        if self.leases.any() {
            return None;
        }
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        request.write(shortcut, permit)
    }

    /// What came of a call that waited for its answer; none of it within the deadline.
    fn end<R: Request>(
        &self,
        session: u64,
        timeout: Duration,
        done: Option<Result<R::Reply>>,
    ) -> Option<Result<R::Reply>> {
        match done {
            Some(Err(Error::Unreachable { .. })) => None,
            Some(done) => Some(done),
            None => {
                if timeout >= SILENCE {
                    self.report(session, Doubt::Unreachable(Error::Timeout { after: timeout }));
                }
                Some(Err(out_of_time::<R>(timeout)))
            }
        }
    }

    /// As [`LinkView::panicked`](crate::link::LinkView::panicked): the way is closed then.
    async fn panicked(&self, session: u64, doubt: Doubt) {
        let _ = self.reports.send(Report { session, doubt }).await;
        let is_closed = |open: &Option<Open>| open.as_ref().is_none_or(|open| open.session != session);
        // An error says that the supervisor is gone, and with it every session.
        let _ = self.open.clone().wait_for(is_closed).await;
    }

    /// Tells the supervisor of a doubt. When many come at once, the first few are enough.
    fn report(&self, session: u64, doubt: Doubt) {
        let _ = self.reports.try_send(Report { session, doubt });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, Namespace};
    use crate::messages::{Exists, Get, List, Put};
    use crate::types::{BackendKind, Capabilities, Expected, KvPair, ListOptions, PutOptions, Version, Written};
    use bytes::Bytes;
    use futures_util::FutureExt;
    use std::pin::pin;
    use std::sync::Mutex;
    use tokio::sync::{OwnedSemaphorePermit, oneshot};

    const SECOND: Duration = Duration::from_secs(1);

    /// A short way on which everything goes wrong.
    #[derive(Default)]
    struct Bad {
        /// The writes that wait for their answers, with their permits.
        waiting: Mutex<Vec<(oneshot::Sender<Result<Written>>, OwnedSemaphorePermit)>>,
    }

    impl Shortcut for Bad {
        fn get(&self, _: &Key) -> Result<KvPair> {
            panic!("out of tune")
        }

        fn exists(&self, _: &Key) -> Result<bool> {
            Ok(true)
        }

        fn put(&self, _: &Key, _: &Bytes, permit: OwnedSemaphorePermit) -> Begun<Written> {
            let (answer, wait) = oneshot::channel();
            self.waiting.lock().unwrap().push((answer, permit));
            Begun::Waits(Box::pin(async { wait.await.unwrap() }))
        }

        fn delete(&self, _: &Key, _: OwnedSemaphorePermit) -> Begun<()> {
            Begun::Done(Err(Error::unreachable("nobody is there")))
        }

        fn atomic_put(&self, _: &Key, _: &Bytes, _: &Expected, _: OwnedSemaphorePermit) -> Begun<KvPair> {
            panic!("out of tune")
        }

        fn atomic_delete(&self, _: &Key, _: &Version, _: OwnedSemaphorePermit) -> Begun<()> {
            Begun::Done(Ok(()))
        }

        fn end_calls(&self) {}
    }

    /// A handle's end, the short way that it has, and everybody else's ends.
    struct Scene {
        near: Near,
        bad: Arc<Bad>,
        open: watch::Sender<Option<Open>>,
        leases: LeaseCount,
        reports: mpsc::Receiver<Report>,
    }

    fn scene(permits: usize) -> Scene {
        let bad = Arc::<Bad>::default();
        let (open, opened) = watch::channel(Some(Open { session: 7, shortcut: bad.clone() }));
        let rules = Rules::new(&Namespace::default(), 10, Capabilities::new(BackendKind::Local)).unwrap();
        let (sender, reports) = mpsc::channel(8);
        let leases = LeaseCount::default();
        let near = Near::new(opened, Arc::new(rules), Arc::new(Semaphore::new(permits)), leases.clone(), sender);
        Scene { near, bad, open, leases, reports }
    }

    impl Scene {
        async fn call<R: Request>(&self, request: R) -> Option<Result<R::Reply>> {
            self.near.call(&request, SECOND, Instant::now() + SECOND).await
        }
    }

    fn put() -> Put {
        Put::new("k", "v").unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_an_error_and_a_doubt() {
        let mut scene = scene(1);
        let begun = Instant::now();
        let read = scene.call(Get::new("k").unwrap()).await.unwrap();
        assert!(matches!(&read, Err(Error::Backend { .. })), "{read:?}");
        let report = scene.reports.try_recv().unwrap();
        assert!(report.session == 7 && matches!(report.doubt, Doubt::Panicked(_)));
        let write = scene.call(crate::messages::AtomicPut::new("k", "v", Expected::Absent).unwrap()).await.unwrap();
        assert!(matches!(&write, Err(Error::Indeterminate { .. })), "{write:?}");
        assert_eq!(begun.elapsed().as_secs(), 2, "a supervisor that does nothing is waited for until the deadline");
        assert!(matches!(scene.call(Exists::new("k").unwrap()).await, Some(Ok(true))));
    }

    #[tokio::test(start_paused = true)]
    async fn who_hears_of_a_panic_finds_another_session() {
        let mut scene = scene(1);
        let begun = Instant::now();
        let get = Get::new("k").unwrap();
        let mut read = pin!(scene.near.call(&get, SECOND, begun + SECOND));
        assert!((&mut read).now_or_never().is_none());
        assert!(matches!(scene.reports.try_recv().unwrap().doubt, Doubt::Panicked(_)));
        assert!((&mut read).now_or_never().is_none());
        scene.open.send_replace(None);
        assert!(matches!(read.await, Some(Err(Error::Backend { .. }))));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_without_an_answer_is_indeterminate_at_its_deadline() {
        let mut scene = scene(1);
        let begun = Instant::now();
        let write = scene.call(put()).await.unwrap();
        assert!(matches!(&write, Err(Error::Indeterminate { .. })), "{write:?}");
        assert_eq!(begun.elapsed().as_secs(), 1);
        assert!(matches!(scene.reports.try_recv().unwrap().doubt, Doubt::Unreachable(Error::Timeout { .. })));
        // It is still on its way, and counts.
        assert!(scene.call(put()).await.is_none());
        scene.bad.waiting.lock().unwrap().clear();
        assert!(scene.call(put()).await.is_some());
    }

    #[tokio::test]
    async fn bad_input_is_refused_before_it_goes_anywhere() {
        let scene = scene(1);
        let refused = scene.call(Put::new("k", "far too long").unwrap()).await.unwrap();
        assert!(matches!(&refused, Err(Error::ValueTooLarge { .. })), "{refused:?}");
        let refused = scene.call(Get::new("zookeeper/k").unwrap()).await.unwrap();
        assert!(matches!(&refused, Err(Error::InvalidKey { .. })), "{refused:?}");
        assert!(scene.bad.waiting.lock().unwrap().is_empty());
    }

    /// None of these has a short way, or an effect.
    #[tokio::test]
    async fn what_has_to_wait_or_be_repeated_goes_to_the_actor() {
        let scene = scene(1);
        assert!(scene.call(crate::messages::Delete::new("k").unwrap()).await.is_none());
        let list = List { dir: "".try_into().unwrap(), options: ListOptions::default() };
        assert!(scene.call(list).await.is_none());
        assert!(scene.call(Put { options: PutOptions::ttl(SECOND), ..put() }).await.is_none());
        let lease = scene.leases.counted();
        assert!(scene.call(put()).await.is_none());
        lease.uncount();
        scene.open.send_replace(None);
        assert!(scene.call(put()).await.is_none());
        assert!(scene.call(Exists::new("k").unwrap()).await.is_none());
        assert!(scene.bad.waiting.lock().unwrap().is_empty());
    }
}
