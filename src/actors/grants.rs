//! [`Grants`]: what a store's locks hang on at the server, one grant for each TTL, each with a task that renews it.

use super::errand::Errands;
use crate::backend::{Grant, locking};
use crate::backoff::Pauses;
use crate::clock::{Moment, now};
use crate::error::{Error, Result};
use crate::link::Session;
use crate::lock::Tenure;
use futures_util::future::join_all;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Notify};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

/// A grant is renewed when this part of its time is over since the last renewal was sent, so that two renewals may fail.
const RENEWALS: u32 = 3;
/// An answer that takes longer than this part of the grant's time is told to the holders as a doubt.
const SILENCE: u32 = 6;
/// How often a task looks at the clock at least. Its timer stands still while the machine sleeps; the clock doesn't.
const LOOK: Duration = Duration::from_secs(1);

/// The grants of a store, by TTL.
#[derive(Clone)]
pub(super) struct Grants(Rc<Shared>);

struct Shared {
    errands: Errands,
    kept: RefCell<HashMap<Duration, Slot>>,
}

/// Where the grant of one TTL is kept. Its lock lets one caller open a grant while the others wait for it.
type Slot = Rc<Mutex<Option<Rc<Kept>>>>;

/// A grant that is kept alive while somebody uses it.
pub(super) struct Kept {
    pub(super) grant: Grant,
    pub(super) tenure: Arc<Tenure>,
    used: Cell<Moment>,
    /// Whether it is the one for its TTL: a tainted one is followed by another while those who have it go on.
    is_current: Cell<bool>,
    /// Somebody wants the grant to be renewed at once, to see whether it still stands.
    doubted: Notify,
}

impl Kept {
    /// Somebody heard that the grant may be over.
    pub(super) fn doubt(&self) {
        self.doubted.notify_one();
    }
}

/// What a grant's task does next.
enum Turn {
    Renew,
    /// The deadline has passed.
    Over,
    /// Nobody has used the grant for a while.
    Idle,
    /// The store is closed, which ends its grants when its locks are given back.
    Closed,
}

impl Grants {
    pub(super) fn new(errands: Errands) -> Self {
        Grants(Rc::new(Shared { errands, kept: RefCell::default() }))
    }

    /// The grant for a TTL, opened if there is none that stands.
    pub(super) async fn get(&self, ttl: Duration, session: &Session) -> Result<Rc<Kept>> {
        let place = self.0.kept.borrow_mut().entry(ttl).or_default().clone();
        let mut place = place.lock().await;
        if let Some(kept) = place.as_ref().filter(|kept| kept.tenure.is_live() && !kept.tenure.is_tainted()) {
            kept.used.set(now());
            return Ok(kept.clone());
        }
        let sent = now();
        let grant = self.0.errands.once(session, async { locking(&*session.backend)?.grant(ttl).await }).await?;
        debug!(id = grant.id, ttl = ?grant.ttl, "a grant for locks was opened");
        let (tenure, used) = (Arc::new(Tenure::new(sent, grant.ttl)), Cell::new(now()));
        let kept = Rc::new(Kept { grant, tenure, used, is_current: Cell::new(true), doubted: Notify::new() });
        if let Some(before) = place.replace(kept.clone()) {
            before.is_current.set(false);
        }
        spawn_local(self.clone().look_after(kept.clone(), ttl));
        Ok(kept)
    }

    /// The life of one grant.
    async fn look_after(self, kept: Rc<Kept>, ttl: Duration) {
        let (mut again, mut pauses) = (None, None);
        loop {
            match self.turn(&kept, again).await {
                Turn::Over => {
                    break warn!(id = kept.grant.id, "a grant for locks is over, and all that are held with it");
                }
                Turn::Idle => break,
                Turn::Closed => return,
                Turn::Renew => {}
            }
            match self.renew(&kept).await {
                Ok(()) => (again, pauses) = (None, None),
                Err(Error::Closed) => return,
                Err(Error::LockLost { .. }) => break,
                Err(error) => {
                    debug!(id = kept.grant.id, %error, "a grant for locks was not renewed");
                    kept.tenure.doubt();
                    let pause = || Pauses::new(Duration::from_millis(20), kept.grant.ttl / 10);
                    again = Some(Instant::now() + pauses.get_or_insert_with(pause).next());
                }
            }
        }
        kept.tenure.end();
        self.forget(&kept, ttl);
        self.revoke(&kept.grant).await;
    }

    /// Waits until there is something to do about a grant; `again` is when to try once more where a renewal failed.
    async fn turn(&self, kept: &Rc<Kept>, again: Option<Instant>) -> Turn {
        loop {
            let remaining = kept.tenure.remaining();
            if remaining.is_zero() {
                return Turn::Over;
            }
            if self.is_idle(kept) {
                return Turn::Idle;
            }
            let until_renewal = match again {
                Some(again) => again.saturating_duration_since(Instant::now()),
                None => (kept.grant.ttl / RENEWALS).saturating_sub(kept.tenure.age()),
            };
            if until_renewal.is_zero() {
                return Turn::Renew;
            }
            tokio::select! {
                () = sleep(until_renewal.min(remaining).min(LOOK)) => {}
                () = kept.doubted.notified() => return Turn::Renew,
                () = self.0.errands.link().closed() => return Turn::Closed,
            }
        }
    }

    /// Whether nobody but the list and the task has the grant, and nobody had for the time of a renewal, as far as was looked.
    fn is_idle(&self, kept: &Rc<Kept>) -> bool {
        if Rc::strong_count(kept) > 1 + usize::from(kept.is_current.get()) {
            kept.used.set(now());
        }
        now().since(kept.used.get()) >= kept.grant.ttl / RENEWALS
    }

    /// One renewal. It is given up at the deadline, beyond which it is of no use.
    async fn renew(&self, kept: &Kept) -> Result<()> {
        let remaining = kept.tenure.remaining();
        let renewal = async {
            let session = self.0.errands.link().session(Instant::now() + remaining).await?;
            let sent = now();
            self.0.errands.once(&session, async { locking(&*session.backend)?.keep_alive(&kept.grant).await }).await?;
            Ok(sent)
        };
        let given_up = Err(Error::unreachable("no answer before the grant's deadline"));
        let mut renewal = pin!(timeout(remaining, renewal));
        // The holders hear of silence while there is time to act on it.
        let answer = match timeout(kept.grant.ttl / SILENCE, &mut renewal).await {
            Ok(answer) => answer,
            Err(_) => {
                kept.tenure.doubt();
                renewal.await
            }
        };
        let sent = answer.unwrap_or(given_up)?;
        match kept.tenure.renewed(sent) {
            true => Ok(()),
            false => Err(Error::lock_lost(&kept.grant.id)),
        }
    }

    /// Takes a grant off the list, and its place where nobody is about to use that: there may be any number of TTLs in time.
    fn forget(&self, kept: &Rc<Kept>, ttl: Duration) {
        let mut places = self.0.kept.borrow_mut();
        let Some(place) = places.get(&ttl) else { return };
        // Whoever has the place just now is opening the next one.
        let Ok(mut open) = place.try_lock() else { return };
        open.take_if(|other| Rc::ptr_eq(other, kept));
        let is_free = open.is_none() && Rc::strong_count(place) == 1;
        drop(open);
        if is_free {
            places.remove(&ttl);
        }
    }

    /// Ends a grant at the server, until which it may stand in others' way.
    async fn revoke(&self, grant: &Grant) {
        let patience = grant.outlives_process_by + self.0.errands.timeout();
        let step = async |session: &Session| locking(&*session.backend)?.revoke(grant).await;
        let revoked = self.0.errands.until_answered(patience, step).await;
        debug!(id = grant.id, ?revoked, "a grant for locks was ended");
    }

    /// Ends all grants with the store; what hangs on them was taken away before.
    pub(super) async fn close(&self, session: &Session) {
        let places = std::mem::take(&mut *self.0.kept.borrow_mut());
        let ends = places.into_values().map(|place| async move {
            let Some(kept) = place.lock().await.take() else { return };
            kept.tenure.end();
            let revoke = async { locking(&*session.backend)?.revoke(&kept.grant).await };
            let revoked = self.0.errands.last(revoke).await;
            debug!(id = kept.grant.id, ?revoked, "a grant for locks was ended with the store");
        });
        join_all(ends).await;
    }
}

#[cfg(all(test, feature = "memory"))]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::flaky::Script;
    use crate::link::{Link, link};
    use tokio::task::LocalSet;

    #[tokio::test(start_paused = true)]
    async fn grants_that_are_over_are_forgotten() {
        let test = async {
            let backend = crate::backend::Connector::connect(&Script::new().connector(1), 0).await.unwrap();
            let session = Session::new(backend, 1);
            let (sender, view, _reports) = link();
            sender.send_replace(Link::Up(session.clone()));
            let grants = Grants::new(Errands::new(view, Duration::from_secs(1)));
            for seconds in 10..20 {
                let kept = grants.get(Duration::from_secs(seconds), &session).await.unwrap();
                assert!(kept.tenure.is_live());
            }
            assert_eq!(grants.0.kept.borrow().len(), 10);
            sleep(Duration::from_secs(20)).await;
            assert_eq!(grants.0.kept.borrow().len(), 0);
        };
        LocalSet::new().run_until(test).await;
    }
}
