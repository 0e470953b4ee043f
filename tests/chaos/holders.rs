//! Locks and leaders under faults: when each was held, by which token, and what was written meanwhile.

use super::clients::{Shared, is_planned_panic};
use kvactor::{CampaignOptions, Error, LeaderEvent, LeaderStream, Leadership, LockGuard, LockOptions, Store};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Who held something, and when, by the holder's own look at it.
#[derive(Clone, Copy, Debug)]
pub struct Tenure {
    pub token: u64,
    pub from: Duration,
    /// When it was held for certain for the last time.
    pub until: Duration,
}

/// Who held one lock, or led one election.
#[derive(Default)]
pub struct Tenures(Mutex<Vec<Tenure>>);

impl Tenures {
    fn begin(&self, tenure: Tenure) -> usize {
        let mut tenures = self.0.lock().unwrap();
        tenures.push(tenure);
        tenures.len() - 1
    }

    /// It is held at this moment, which was before the holder looked.
    fn lasts(&self, number: usize, at: Duration) {
        self.0.lock().unwrap()[number].until = at;
    }

    pub fn count(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }

    /// No token comes twice, and no two are held at once: who has the greater token came later.
    pub fn check(&self, what: &str) -> Result<(), String> {
        let mut tenures = self.0.lock().unwrap().clone();
        tenures.sort_by_key(|tenure| tenure.token);
        match tenures.windows(2).find(|pair| pair[0].token == pair[1].token || pair[0].until >= pair[1].from) {
            Some(pair) => Err(format!("{what}: {:?} and then {:?}", pair[0], pair[1])),
            None => Ok(()),
        }
    }
}

/// The counter that is written under the lock.
#[derive(Default)]
pub struct Counter {
    /// Writes that were made for certain, and those whose answers were lost.
    made: Mutex<(u64, u64)>,
}

impl Counter {
    /// Each write that was made counts, and no other does.
    pub fn check(&self, counted: u64) -> Result<(), String> {
        let (made, lost) = *self.made.lock().unwrap();
        match (made..=made + lost).contains(&counted) {
            true => Ok(()),
            false => Err(format!("the counter is at {counted}; {made} writes were made, and {lost} answers were lost")),
        }
    }

    fn take(&self, written: &Result<(), Error>) {
        let mut made = self.made.lock().unwrap();
        match written {
            Ok(()) => made.0 += 1,
            Err(error) if error.is_indeterminate() => made.1 += 1,
            Err(_) => {}
        }
    }
}

/// What those who hold things share in one run.
pub struct Holding {
    pub shared: Arc<Shared>,
    pub ttl: Duration,
    /// For how long somebody leads before it resigns.
    pub leads_for: Duration,
    pub locks: Tenures,
    pub terms: Tenures,
    pub counter: Counter,
}

/// How long somebody waits for the lock before it looks whether the run is over.
const PATIENCE: Duration = Duration::from_secs(2);

pub const LOCK: &str = "held/lock";
pub const COUNTER: &str = "held/counter";
pub const LEADER: &str = "held/leader";

impl Holding {
    pub fn new(shared: Arc<Shared>, ttl: Duration, leads_for: Duration) -> Arc<Self> {
        let (locks, terms, counter) = (Tenures::default(), Tenures::default(), Counter::default());
        Arc::new(Holding { shared, ttl, leads_for, locks, terms, counter })
    }

    /// Gets the lock, counts under it, and gives it back, again and again.
    pub async fn lock(&self, store: &Store, go_on: impl Fn() -> bool) {
        while go_on() {
            let options = LockOptions { ttl: self.ttl, timeout: Some(PATIENCE), ..LockOptions::default() };
            let done = match store.lock_with(LOCK, options).await {
                Ok(guard) => self.count_under(store, guard).await,
                Err(error) => Err(error),
            };
            self.only_faults(done);
        }
    }

    async fn count_under(&self, store: &Store, guard: LockGuard) -> Result<(), Error> {
        let now = self.shared.history.now();
        // One that arrived late may be over already.
        if !guard.is_held() {
            return Err(Error::lock_lost(guard.key()));
        }
        let tenure = self.locks.begin(Tenure { token: guard.token(), from: now, until: now });
        let counted = count(store).await?;
        let written = guard.put(COUNTER, (counted + 1).to_string()).await.map(drop);
        self.counter.take(&written);
        let now = self.shared.history.now();
        if guard.is_held() {
            self.locks.lasts(tenure, now);
        }
        written.and(guard.unlock().await)
    }

    /// Leads whenever it can.
    pub async fn stand(&self, store: &Store, name: &str, go_on: impl Fn() -> bool) {
        let options = CampaignOptions { ttl: self.ttl, timeout: Some(PATIENCE), stand_again: true };
        while go_on() {
            match store.campaign_with(LEADER, name.to_owned(), options.clone()).await {
                Ok(leadership) => self.lead(leadership, &go_on).await,
                Err(error) => self.only_faults(Err(error)),
            }
        }
    }

    /// Leads for a while, over lost terms too, and resigns.
    async fn lead(&self, leadership: Leadership, go_on: &impl Fn() -> bool) {
        let until = self.shared.history.now() + self.leads_for;
        let mut last = None;
        while go_on() && self.shared.history.now() < until {
            let now = self.shared.history.now();
            match (leadership.term(), last) {
                (Some(term), Some((known, tenure))) if term == known => self.terms.lasts(tenure, now),
                (Some(token), _) => {
                    // Before the look another may have led, and after it too.
                    let tenure = Tenure { token, from: self.shared.history.now(), until: now };
                    last = Some((token, self.terms.begin(tenure)));
                }
                (None, _) => {}
            }
            sleep(Duration::from_millis(2)).await;
        }
        self.only_faults(leadership.resign().await);
    }

    /// Under faults things are lost or out of reach, and nothing else happens.
    fn only_faults(&self, done: Result<(), Error>) {
        match done {
            Ok(()) | Err(Error::LockLost { .. } | Error::LockHeld { .. } | Error::KeyNotFound { .. }) => {}
            Err(error) if error.is_retryable() || error.is_indeterminate() || is_planned_panic(&error) => {}
            Err(error) => self.shared.fault(format!("a lock failed with {error:?}")),
        }
    }
}

/// What the counter is at.
pub async fn count(store: &Store) -> Result<u64, Error> {
    match store.get(COUNTER).await {
        Ok(pair) => Ok(std::str::from_utf8(&pair.value).ok().and_then(|text| text.parse().ok()).expect("a number")),
        Err(Error::KeyNotFound { .. }) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Observes the leaders until the run is over: their terms only grow.
pub async fn observe(mut leaders: LeaderStream, shared: &Shared, go_on: impl Fn() -> bool) -> u64 {
    let (mut latest, mut seen) = (0, 0);
    while go_on() {
        let Ok(event) = timeout(Duration::from_millis(100), leaders.next()).await else { continue };
        match event {
            Some(LeaderEvent::Elected(leader)) => {
                if leader.term < latest {
                    shared.fault(format!("an observer saw the term {} after {latest}", leader.term));
                }
                latest = leader.term;
                seen += 1;
            }
            Some(_) => {}
            None => shared.fault("an observer's stream ended while the store was open".to_owned()),
        }
    }
    seen
}
