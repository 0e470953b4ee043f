//! [`Gatherer`]: what many callers ask at the same time goes to the server together.
//!
//! A few calls at a time go on their own, at once. All others who come at the same moment go together: in one request, or in several
//! at the same time where they don't fit into one. Who comes while these are on their way too waits in line until any of them is
//! back, and goes with all who wait then. So nobody waits where there is little to do, and the busier a store is, the less each
//! call costs.

use futures_util::future::{LocalBoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// What can be asked together with others of its kind.
pub(crate) trait Gathered: Sized + 'static {
    type Answer: 'static;
    /// Who is asked.
    type Server: 'static;

    /// Whether this may join those. The first of a batch isn't asked.
    fn joins(&self, batch: &[Job<Self>]) -> bool;

    /// Carries out what came together, one or more, and answers each.
    fn carry_out(server: &Self::Server, batch: Vec<Job<Self>>) -> LocalBoxFuture<'static, ()>;
}

/// What is asked, and who waits for the answer.
pub(crate) struct Job<A: Gathered> {
    pub(crate) asked: A,
    reply: oneshot::Sender<A::Answer>,
    /// Ends when the caller doesn't wait any more.
    left: oneshot::Receiver<Infallible>,
}

/// Whether an error may be that of one of several that went together, of which nothing was done.
#[cfg(any(feature = "consul", feature = "etcd"))]
pub(crate) fn is_about_one(error: &crate::error::Error) -> bool {
    use crate::error::Error;
    matches!(error, Error::PermissionDenied { .. } | Error::Backend { .. } | Error::Unsupported { .. })
}

impl<A: Gathered> Job<A> {
    /// Whether the caller is still there.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.reply.is_closed()
    }

    /// Tells the caller, if it is still there.
    pub(crate) fn answer(self, answer: A::Answer) {
        let _ = self.reply.send(answer);
    }
}

/// The lanes to the server, and the line before them.
struct Traffic<A: Gathered> {
    server: A::Server,
    state: Mutex<State<A>>,
}

struct State<A: Gathered> {
    free_lanes: usize,
    line: VecDeque<Job<A>>,
}

/// Gathers what is asked while others are on their way. Dropping it ends what is on its way together: it belongs to a session.
pub(crate) struct Gatherer<A: Gathered> {
    traffic: Arc<Traffic<A>>,
    running: Mutex<JoinSet<()>>,
}

/// How many lanes no caller has for itself. Without one, those whose calls come back together would wait for the first of them to be
/// back once more before the others set off.
const SHARED_LANES: usize = 1;

impl<A: Gathered> Gatherer<A> {
    /// So many callers' requests may be on their way alone before others go together.
    pub(crate) fn new(lanes: usize, server: A::Server) -> Self {
        let state = Mutex::new(State { free_lanes: lanes + SHARED_LANES, line: VecDeque::new() });
        Gatherer { traffic: Arc::new(Traffic { server, state }), running: Mutex::default() }
    }

    /// A lane for the caller alone, which keeps it until its call is over; none while it has to go with [others](Self::ask).
    pub(crate) fn lane(&self) -> Option<Lane<'_, A>> {
        let taken = self.traffic.take_lane(SHARED_LANES)?;
        Some(Lane { gatherer: self, taken: Some(taken) })
    }

    /// Asks together with others. Who stops waiting before its batch sets off doesn't go; a batch for which nobody waits any more
    /// ends, as a call does that one makes alone. A panic of the driver is each caller's.
    pub(crate) async fn ask(&self, asked: A) -> A::Answer {
        let (reply, answer) = oneshot::channel();
        let (_here, left) = oneshot::channel();
        self.traffic.state().line.push_back(Job { asked, reply, left });
        self.dispatch();
        // Only a panic takes the answer away: the batch belongs to this gatherer, which is still there.
        answer.await.unwrap_or_else(|_| resume_unwind(Box::new("the driver panicked over calls that went together")))
    }

    /// Lets those who wait go while there are lanes for them.
    fn dispatch(&self) {
        if !self.traffic.is_awaited() {
            return;
        }
        let Some(lane) = self.traffic.take_lane(0) else { return };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        while running.try_join_next().is_some() {}
        running.spawn_local(lane.run());
    }
}

impl<A: Gathered> Traffic<A> {
    /// Nothing panics while this is held.
    fn state(&self) -> MutexGuard<'_, State<A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_awaited(&self) -> bool {
        !self.state().line.is_empty()
    }

    /// A lane, where more than so many are free.
    fn take_lane(self: &Arc<Self>, others: usize) -> Option<Taken<A>> {
        let mut state = self.state();
        let is_free = state.free_lanes > others;
        is_free.then(|| {
            state.free_lanes -= 1;
            Taken(self.clone())
        })
    }

    /// Those at the head of the line who may go together; nobody where nobody waits any more.
    fn next_batch(&self) -> Vec<Job<A>> {
        let line = &mut self.state().line;
        let mut batch = Vec::with_capacity(line.len());
        while let Some(job) = line.pop_front() {
            if !job.is_awaited() {
                continue;
            }
            if !batch.is_empty() && !job.asked.joins(&batch) {
                line.push_front(job);
                break;
            }
            batch.push(job);
        }
        batch
    }
}

/// How many batches of those who can't go in one are on their way on a lane.
const MAX_BATCHES: usize = 16;

/// A lane that is taken until this is dropped.
struct Taken<A: Gathered>(Arc<Traffic<A>>);

impl<A: Gathered> Taken<A> {
    /// Carries out all who wait, and who comes meanwhile, until nobody is left.
    async fn run(self) {
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < MAX_BATCHES {
                let batch = self.0.next_batch();
                if batch.is_empty() {
                    break;
                }
                running.push(self.carry_out(batch));
            }
            if running.next().await.is_none() {
                return;
            }
        }
    }

    async fn carry_out(&self, mut batch: Vec<Job<A>>) {
        // A receiver of its own takes the place of each: nothing is ever sent.
        let left = join_all(batch.iter_mut().map(|job| std::mem::replace(&mut job.left, oneshot::channel().1)));
        let work = AssertUnwindSafe(async { A::carry_out(&self.0.server, batch).await }).catch_unwind();
        tokio::select! {
            biased;
            // Its callers hear of a panic, as their answers are gone.
            _ = work => {}
            _ = left => {}
        }
    }
}

impl<A: Gathered> Drop for Taken<A> {
    fn drop(&mut self) {
        self.0.state().free_lanes += 1;
    }
}

/// A lane that one caller has for itself. Those who came meanwhile go when it is dropped.
pub(crate) struct Lane<'g, A: Gathered> {
    gatherer: &'g Gatherer<A>,
    taken: Option<Taken<A>>,
}

impl<A: Gathered> Drop for Lane<'_, A> {
    fn drop(&mut self) {
        drop(self.taken.take());
        self.gatherer.dispatch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use tokio::sync::Semaphore;
    use tokio::task::LocalSet;

    /// What a server was asked, batch by batch; it answers when it is let.
    struct Server {
        batches: Mutex<Vec<Vec<u32>>>,
        answers: Semaphore,
    }

    /// A number that goes with smaller ones only.
    struct Number(u32);

    impl Gathered for Number {
        type Answer = u32;
        type Server = Arc<Server>;

        fn joins(&self, batch: &[Job<Number>]) -> bool {
            batch.iter().all(|job| job.asked.0 < self.0)
        }

        fn carry_out(server: &Arc<Server>, batch: Vec<Job<Number>>) -> LocalBoxFuture<'static, ()> {
            server.batches.lock().unwrap().push(batch.iter().map(|job| job.asked.0).collect());
            let server = server.clone();
            async move {
                server.answers.acquire().await.unwrap().forget();
                assert!(batch.iter().all(|job| job.asked.0 != 13), "an unlucky number");
                batch.into_iter().for_each(|job| {
                    let doubled = 2 * job.asked.0;
                    job.answer(doubled);
                });
            }
            .boxed_local()
        }
    }

    fn scene(lanes: usize) -> (Arc<Gatherer<Number>>, Arc<Server>) {
        let server = Arc::new(Server { batches: Mutex::default(), answers: Semaphore::new(0) });
        (Arc::new(Gatherer::new(lanes, server.clone())), server)
    }

    async fn settle() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_comes_while_others_are_on_their_way_goes_together() {
        let (gatherer, server) = scene(2);
        let test = async {
            let (first, second) = (gatherer.lane().unwrap(), gatherer.lane().unwrap());
            assert!(gatherer.lane().is_none());
            let ask = |numbers: [u32; 3]| join_all(numbers.map(|number| gatherer.ask(Number(number))));
            let (mut at_once, mut later) = (pin!(ask([1, 2, 3])), pin!(ask([4, 5, 6])));
            assert!((&mut at_once).now_or_never().is_none());
            settle().await;
            assert_eq!(*server.batches.lock().unwrap(), [[1, 2, 3]]);
            assert!((&mut later).now_or_never().is_none());
            settle().await;
            assert_eq!(server.batches.lock().unwrap().len(), 1);
            drop(first);
            settle().await;
            assert_eq!(*server.batches.lock().unwrap(), [[1, 2, 3], [4, 5, 6]]);
            server.answers.add_permits(2);
            assert_eq!((at_once.await, later.await), (vec![2, 4, 6], vec![8, 10, 12]));
            drop(second);
            settle().await;
            assert_eq!(gatherer.traffic.state().free_lanes, 3);
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn who_may_not_join_goes_at_the_same_time() {
        let (gatherer, server) = scene(1);
        let test = async {
            let mut asked = pin!(join_all([5, 7, 6, 8, 1].map(|number| gatherer.ask(Number(number)))));
            assert!((&mut asked).now_or_never().is_none());
            settle().await;
            assert_eq!(*server.batches.lock().unwrap(), [vec![5, 7], vec![6, 8], vec![1]]);
            assert_eq!(gatherer.traffic.state().free_lanes, 1);
            server.answers.add_permits(3);
            assert_eq!(asked.await, [10, 14, 12, 16, 2]);
            settle().await;
            assert_eq!(gatherer.traffic.state().free_lanes, 2);
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn who_has_stopped_waiting_does_not_go() {
        let (gatherer, server) = scene(1);
        let test = async {
            let lane = gatherer.lane();
            let mut stays = pin!(gatherer.ask(Number(2)));
            {
                let mut leaves = pin!(gatherer.ask(Number(1)));
                assert!((&mut leaves).now_or_never().is_none() && (&mut stays).now_or_never().is_none());
            }
            drop(lane);
            server.answers.add_permits(1);
            assert_eq!(stays.await, 4);
            assert_eq!(*server.batches.lock().unwrap(), [[2]]);
            // A line of such callers only leaves the lane free.
            let lane = gatherer.lane();
            {
                let mut leaves = pin!(gatherer.ask(Number(1)));
                assert!((&mut leaves).now_or_never().is_none());
            }
            drop(lane);
            settle().await;
            assert_eq!(gatherer.traffic.state().free_lanes, 2);
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn a_panic_is_told_to_its_batch_and_to_no_other() {
        let (gatherer, server) = scene(1);
        let test = async {
            let lane = gatherer.lane();
            let ask = async |number| AssertUnwindSafe(gatherer.ask(Number(number))).catch_unwind().await.ok();
            let mut asked = pin!(join_all([12, 13, 3].map(ask)));
            assert!((&mut asked).now_or_never().is_none());
            drop(lane);
            server.answers.add_permits(2);
            assert_eq!(asked.await, [None, None, Some(6)]);
            settle().await;
            assert!(gatherer.lane().is_some());
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn a_batch_without_an_answer_ends_when_nobody_waits_for_it() {
        let (gatherer, server) = scene(1);
        let test = async {
            {
                let mut asked = pin!(join_all([1, 2].map(|number| gatherer.ask(Number(number)))));
                assert!((&mut asked).now_or_never().is_none());
                settle().await;
                assert!((&mut asked).now_or_never().is_none());
                assert_eq!(gatherer.traffic.state().free_lanes, 1);
                assert_eq!(*server.batches.lock().unwrap(), [[1, 2]]);
            }
            settle().await;
            assert_eq!(gatherer.traffic.state().free_lanes, 2);
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn nothing_outlives_the_gatherer() {
        let (gatherer, server) = scene(1);
        let test = async {
            let asked = tokio::task::spawn_local({
                let gatherer = gatherer.clone();
                async move { gatherer.ask(Number(1)).await }
            });
            settle().await;
            assert_eq!(*server.batches.lock().unwrap(), [[1]]);
            asked.abort();
            drop(gatherer);
            settle().await;
            server.answers.add_permits(1);
            settle().await;
            assert_eq!((server.answers.available_permits(), Arc::strong_count(&server)), (1, 1));
        };
        LocalSet::new().run_until(test).await;
    }
}
