//! [`Lock`]: one lock's actor. It contends for those who want the lock, one after the other, and looks after it while it is held.
//!
//! It is a task with an inbox, and a state machine:
//!
//! ```text
//! idle -> waiting -> held <-> suspended -> lost     -> idle
//!            ^         |          |                     |
//!            |         '----------'------> released -> idle
//!            '---------------- the next who wants it ---'
//! ```
//!
//! There is one contender at the server at a time, however many wait here.

use super::contender::{Contender, Leaving, Left, gone_at_server, leave};
use super::errand::Errands;
use super::grants::{Grants, Kept};
use super::watchers::Watchers;
use crate::backend::{Place, Progress, Standing, locking};
use crate::backoff::Pauses;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::link::{Session, far_future};
use crate::lock::{Ending, Hold, LockOptions, LockState, Owner, TenureState};
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;
use tokio::time::sleep;
use tracing::{debug, warn};

/// Somebody who wants the lock. Who doesn't want it any more has dropped the other end of `reply`.
pub(super) struct Wish {
    pub(super) options: LockOptions,
    pub(super) owner: Option<Owner>,
    pub(super) reply: oneshot::Sender<Result<Acquired>>,
}

impl Wish {
    /// Whether to wait while another holds the lock.
    pub(super) fn waits(&self) -> bool {
        self.options.timeout != Some(Duration::ZERO)
    }
}

/// A lock that was got; giving it back is what its drop does.
pub(crate) struct Acquired {
    pub(crate) hold: Arc<Hold>,
    pub(crate) end: oneshot::Sender<Ending>,
}

/// Where the lock's actor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody here wants the lock.
    Idle,
    /// It is contended for.
    Waiting,
    /// It is held, by whom.
    Held(Option<Owner>),
    /// It is held until its deadline: a renewal failed.
    Suspended(Option<Owner>),
    /// It was lost.
    Lost,
    /// It was given back.
    Released,
}

/// The store was closed.
struct Closed;

/// How holding the lock ended.
enum End {
    Released(Option<Ending>),
    Lost,
}

/// The actor of one lock.
pub(super) struct Lock {
    key: Key,
    errands: Errands,
    grants: Grants,
    watchers: Watchers,
    inbox: mpsc::Receiver<Wish>,
    queue: VecDeque<Wish>,
    state: State,
    contender: Option<Contender>,
    leaving: Option<Leaving>,
}

impl Lock {
    pub(super) fn new(
        key: Key,
        errands: Errands,
        grants: Grants,
        watchers: Watchers,
        inbox: mpsc::Receiver<Wish>,
    ) -> Self {
        let (queue, state) = (VecDeque::new(), State::Idle);
        Lock { key, errands, grants, watchers, inbox, queue, state, contender: None, leaving: None }
    }

    /// Serves all who want the lock, until nobody does. Returns what is left at the server if the store is closed meanwhile.
    pub(super) async fn run(mut self) -> Option<Left> {
        loop {
            let Err(Closed) = self.serve().await else {
                match self.wanted() {
                    true => continue,
                    false => return None,
                }
            };
            self.queue.drain(..).for_each(|wish| refuse(wish, Error::Closed));
            self.retire();
            return self.leaving.map(|leaving| (leaving.bid, leaving.progress));
        }
    }

    /// Takes in who came meanwhile. Returns whether anybody wants the lock; if nobody does the actor ends before anybody
    /// else can come.
    fn wanted(&mut self) -> bool {
        while let Ok(wish) = self.inbox.try_recv() {
            self.take_in(wish);
        }
        !self.queue.is_empty()
    }

    /// One acquisition, from the wish to the release.
    async fn serve(&mut self) -> Result<(), Closed> {
        self.enter(State::Idle);
        if self.queue.is_empty() {
            let wish = tokio::select! {
                biased;
                () = self.errands.link().closed() => None,
                wish = self.inbox.recv() => wish,
            };
            self.take_in(wish.ok_or(Closed)?);
        }
        self.enter(State::Waiting);
        let Some((wish, place)) = self.contend().await? else { return self.leave().await.map(drop) };
        self.hold(wish, place).await
    }

    fn enter(&mut self, state: State) {
        debug!(key = %self.key, from = ?self.state, to = ?state, "a lock's state");
        self.state = state;
    }

    /// Goes on with `work`, taking in others who want the lock meanwhile.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Closed> {
        let link = self.errands.link().clone();
        let (mut work, mut closed) = (pin!(work), pin!(link.closed()));
        loop {
            tokio::select! {
                biased;
                () = &mut closed => return Err(Closed),
                wish = self.inbox.recv() => match wish {
                    Some(wish) => self.take_in(wish),
                    None => return Err(Closed),
                },
                done = &mut work => return Ok(done),
            }
        }
    }

    fn take_in(&mut self, wish: Wish) {
        let holder = match self.state {
            State::Held(owner) | State::Suspended(owner) => owner,
            State::Waiting if !wish.waits() && self.is_in_line() => return refuse(wish, held_elsewhere(&self.key)),
            State::Idle | State::Waiting | State::Lost | State::Released => return self.enqueue(wish),
        };
        if !wish.waits() {
            return refuse(wish, held_here(&self.key));
        }
        if holder.is_some() && holder == wish.owner && !wish.options.wait_for_own_task {
            let reason = "by this very task, which would wait for itself (see `LockOptions::wait_for_own_task`)";
            return refuse(wish, Error::lock_held(&self.key, reason));
        }
        self.enqueue(wish);
    }

    /// Before the queue grows those who gave up are forgotten: it may be long before it is somebody's turn.
    fn enqueue(&mut self, wish: Wish) {
        if self.queue.len() == self.queue.capacity() {
            self.queue.retain(|wish| !wish.reply.is_closed());
            // Not again before it has doubled.
            self.queue.reserve(self.queue.len() + 1);
        }
        self.queue.push_back(wish);
    }

    /// Whether the server has said that another holds the lock.
    fn is_in_line(&self) -> bool {
        self.contender.as_ref().is_some_and(|contender| matches!(contender.progress, Progress::Placed(_)))
    }

    /// Contends until the lock is got for somebody who still wants it; none where nobody does.
    async fn contend(&mut self) -> Result<Option<(Wish, Place)>, Closed> {
        let mut pauses = pauses();
        loop {
            self.queue.retain(|wish| !wish.reply.is_closed());
            let Some(front) = self.queue.front() else { return Ok(None) };
            if self.contender.as_ref().is_some_and(|contender| !contender.serves(front)) {
                // Whether it was there doesn't matter.
                let _ = self.leave().await?;
                continue;
            }
            let session = match self.session().await? {
                Ok(session) => session,
                Err(error) => {
                    self.refuse_front(error);
                    continue;
                }
            };
            match self.ask(&session).await? {
                // What it hangs on has ended meanwhile: that is nothing to hand to anybody.
                Ok(Standing::Held(place)) if !self.is_live() => self.placed(place),
                Ok(Standing::Held(place)) => {
                    let Some(wish) = self.queue.pop_front() else { return Ok(None) };
                    self.placed(place.clone());
                    self.refuse_impatient(held_here);
                    return Ok(Some((wish, place)));
                }
                Ok(Standing::Waiting(place)) => {
                    pauses = self::pauses();
                    self.placed(place.clone());
                    self.refuse_impatient(held_elsewhere);
                    self.wait(&session, &place).await?;
                }
                Ok(Standing::Taken) => {
                    self.contender = None;
                    self.refuse_impatient(held_elsewhere);
                }
                Err(error) => {
                    self.failed(error);
                    self.attend(sleep(pauses.next())).await?;
                }
            }
        }
    }

    /// The session, however long it takes to come; the error of one that won't come.
    async fn session(&mut self) -> Result<Result<Session>, Closed> {
        let link = self.errands.link().clone();
        let session = while_wanted(self.queue.front_mut(), async move { link.session(far_future()).await });
        // An unwanted wish is dropped by the caller's next turn.
        let session = session.await;
        match session {
            Some(Err(Error::Closed)) => Err(Closed),
            Some(session) => Ok(session),
            None => Ok(Err(Error::Closed)),
        }
    }

    /// Asks the server for the lock, or how the contender is doing.
    async fn ask(&mut self, session: &Session) -> Result<Result<Standing>, Closed> {
        let Some(front) = self.queue.front() else { return Ok(Ok(Standing::Taken)) };
        let (ttl, value, waits) = (front.options.ttl, front.options.value.clone(), front.waits());
        let mut contender = match self.contender.take() {
            Some(contender) => contender,
            None => {
                let (grants, session) = (self.grants.clone(), session.clone());
                let kept = match self.attend(async move { grants.get(ttl, &session).await }).await? {
                    Ok(kept) => kept,
                    Err(error) => return Ok(Err(error)),
                };
                Contender::new(self.key.clone(), kept, ttl, waits)
            }
        };
        contender.bid.value = value;
        let (bid, progress) = (contender.bid.clone(), contender.progress.clone());
        // From here on the store's end must find it.
        contender.progress.sent();
        self.contender = Some(contender);
        let errands = self.errands.clone();
        let step =
            async { errands.once(session, async { locking(&*session.backend)?.contend(&bid, &progress).await }).await };
        let answer = self.attend(step).await?;
        if answer.as_ref().err().is_some_and(|error| !error.is_indeterminate())
            && let Some(contender) = &mut self.contender
        {
            contender.progress = progress;
        }
        Ok(answer)
    }

    /// Whether the contender's deadline is ahead.
    fn is_live(&self) -> bool {
        self.contender.as_ref().is_some_and(|contender| contender.kept.tenure.is_live())
    }

    fn placed(&mut self, place: Place) {
        if let Some(contender) = &mut self.contender {
            contender.progress = Progress::Placed(place);
        }
    }

    /// What an attempt's failure means for the contender and for those who wait.
    fn failed(&mut self, error: Error) {
        match &error {
            Error::LockLost { .. } => {
                debug!(key = %self.key, "a contender is gone; contending anew");
                if let Some(contender) = self.contender.take() {
                    contender.kept.doubt();
                }
            }
            error if error.is_retryable() || error.is_indeterminate() => {
                debug!(key = %self.key, %error, "contending again");
            }
            _ => self.refuse_front(error),
        }
    }

    fn refuse_front(&mut self, error: Error) {
        self.queue.pop_front().into_iter().for_each(|wish| refuse(wish, error.clone()));
    }

    /// Tells those who don't wait for the lock that it is held.
    fn refuse_impatient(&mut self, reason: impl Fn(&Key) -> Error) {
        let all = std::mem::take(&mut self.queue);
        for wish in all {
            match wish.waits() {
                true => self.queue.push_back(wish),
                false => refuse(wish, reason(&self.key)),
            }
        }
    }

    /// Waits until it is worth asking again: something happened at the server, or the first in line gave up.
    async fn wait(&mut self, session: &Session, place: &Place) -> Result<(), Closed> {
        let Some(contender) = &self.contender else { return Ok(()) };
        let (bid, kept) = (contender.bid.clone(), contender.kept.clone());
        let (errands, mut tenure) = (self.errands.clone(), kept.tenure.state());
        let Some(mut front) = self.queue.pop_front() else { return Ok(()) };
        let turn = async {
            tokio::select! {
                biased;
                () = front.reply.closed() => {}
                _ = tenure.wait_for(|state| *state == TenureState::Over) => {}
                waited = errands.long(session, async { locking(&*session.backend)?.wait(&bid, place).await }) => {
                    if let Err(error) = waited {
                        debug!(%error, "waiting for a lock was interrupted");
                        sleep(INTERRUPTED).await;
                    }
                }
            }
        };
        let waited = self.attend(turn).await;
        self.queue.push_front(front);
        waited
    }

    /// Looks after the lock while it is held.
    async fn hold(&mut self, wish: Wish, place: Place) -> Result<(), Closed> {
        let Some(contender) = &self.contender else { return Ok(()) };
        let (bid, kept) = (contender.bid.clone(), contender.kept.clone());
        let hold = Arc::new(Hold::new(bid, place, kept.tenure.clone()));
        let (end, ended) = oneshot::channel();
        // Who doesn't want it any more gives it back by dropping it.
        let _ = wish.reply.send(Ok(Acquired { hold: hold.clone(), end }));
        let ended = self.until_over(&hold, &kept, wish.owner, ended).await;
        let end = match ended {
            Ok(end) => end,
            Err(Closed) => {
                hold.set(LockState::Released);
                return Err(Closed);
            }
        };
        match end {
            End::Lost => self.lost(&hold, kept).await,
            End::Released(ending) => {
                drop(kept);
                self.released(&hold, ending).await
            }
        }
    }

    async fn until_over(
        &mut self,
        hold: &Arc<Hold>,
        kept: &Rc<Kept>,
        owner: Option<Owner>,
        mut ended: oneshot::Receiver<Ending>,
    ) -> Result<End, Closed> {
        let mut tenure = kept.tenure.state();
        let mut gone = pin!(gone_at_server(self.errands.clone(), self.watchers.clone(), hold.clone()));
        loop {
            // At first, what became of the grant before this was the holder.
            let state = *tenure.borrow_and_update();
            match state {
                TenureState::Firm => {
                    hold.set(LockState::Held);
                    self.enter(State::Held(owner));
                }
                TenureState::Shaky => {
                    hold.set(LockState::Suspended);
                    self.enter(State::Suspended(owner));
                }
                TenureState::Over => return Ok(End::Lost),
            }
            let turn = async {
                tokio::select! {
                    biased;
                    ending = &mut ended => Some(End::Released(ending.ok())),
                    () = &mut gone => Some(End::Lost),
                    _ = tenure.changed() => None,
                }
            };
            if let Some(end) = self.attend(turn).await? {
                return Ok(end);
            }
        }
    }

    /// The lock was lost. What may be left of the contender is taken away; whoever is next doesn't wait for that where a new
    /// grant is needed anyway.
    async fn lost(&mut self, hold: &Hold, kept: Rc<Kept>) -> Result<(), Closed> {
        hold.set(LockState::Lost);
        warn!(key = %self.key, token = hold.place.token, "a lock is lost");
        self.enter(State::Lost);
        kept.doubt();
        let is_live = kept.tenure.is_live();
        drop(kept);
        if is_live {
            return self.leave().await.map(drop);
        }
        self.retire();
        if let Some(leaving) = self.leaving.take() {
            let errands = self.errands.clone();
            spawn_local(async move { leave(&errands, &leaving).await });
        }
        Ok(())
    }

    async fn released(&mut self, hold: &Hold, ending: Option<Ending>) -> Result<(), Closed> {
        hold.set(LockState::Released);
        self.enter(State::Released);
        let left = self.leave().await;
        let answer = match &left {
            Err(Closed) => Err(Error::Closed),
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false) | Err(Error::LockLost { .. } | Error::Timeout { .. })) => Err(Error::lock_lost(&self.key)),
            Ok(Err(error)) => Err(error.clone()),
        };
        ending.into_iter().for_each(|ending| drop(ending.send(answer.clone())));
        left.map(drop)
    }

    /// The contender, if there is one, is of no more use.
    fn retire(&mut self) {
        if let Some(Contender { bid, progress, kept, .. }) = self.contender.take() {
            self.leaving = Some(Leaving { bid, progress, tenure: kept.tenure.clone() });
        }
    }

    /// Takes the contender away, if there is one. Returns whether it was there, as far as that is known.
    async fn leave(&mut self) -> Result<Result<bool>, Closed> {
        self.retire();
        let Some(leaving) = self.leaving.take() else { return Ok(Ok(false)) };
        let errands = self.errands.clone();
        let left = self.attend(async { leave(&errands, &leaving).await }).await;
        if left.is_err() {
            self.leaving = Some(leaving);
        }
        left
    }
}

/// How long to rest when waiting at the server was interrupted.
const INTERRUPTED: Duration = Duration::from_millis(100);

pub(super) fn pauses() -> Pauses {
    Pauses::new(Duration::from_millis(10), Duration::from_secs(1))
}

fn refuse(wish: Wish, error: Error) {
    let _ = wish.reply.send(Err(error));
}

fn held_here(key: &Key) -> Error {
    Error::lock_held(key, "by this store")
}

fn held_elsewhere(key: &Key) -> Error {
    Error::lock_held(key, "by another")
}

/// Goes on with `work` as long as somebody wants what it is for.
async fn while_wanted<T>(wish: Option<&mut Wish>, work: impl Future<Output = T>) -> Option<T> {
    let wish = wish?;
    tokio::select! {
        biased;
        () = wish.reply.closed() => None,
        done = work => Some(done),
    }
}
