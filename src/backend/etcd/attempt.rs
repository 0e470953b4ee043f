//! What one bid for a lock asks of the server, and what it makes of the answers.

use super::kv::look;
use super::lease;
use super::line::{self, Line};
use super::session::Session;
use super::status::{self, Effect};
use crate::backend::lock::{Bid, Place, Standing};
use crate::error::{Error, Result};
use bytes::Bytes;
use etcd_client::proto::{PbKeyValue, PbRangeResponse, PbResponseOp, PbTxnOpResponse, PbTxnResponse};
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};

/// One bid, in the server's terms. Its token is the revision at which its contender was created.
pub(super) struct Attempt<'a> {
    session: &'a Session,
    bid: &'a Bid,
    lease: i64,
    /// The server's name for the lock's key.
    lock: Vec<u8>,
    /// The server's name for the contender.
    contender: Vec<u8>,
}

/// What came of an attempt to become the holder.
enum Claim {
    /// The lock is held, since the revision.
    Done(i64),
    /// The lock isn't held.
    Not(Scene),
}

/// How things are at one moment.
struct Scene {
    /// The bid's contender.
    mine: Option<PbKeyValue>,
    line: Line,
    /// What is at the lock's key.
    value: Option<PbKeyValue>,
    revision: i64,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(session: &'a Session, bid: &'a Bid) -> Result<Self> {
        let (lease, lock) = (lease::id(&bid.grant.id)?, session.path(&bid.key));
        let contender = line::contender(&lock, lease);
        Ok(Attempt { session, bid, lease, lock, contender })
    }

    /// Gets the lock, or stands in line for it. Nothing but the own contender is ever made twice, and that isn't either.
    pub(super) async fn line_up(&self) -> Result<Standing> {
        let rivals = [self.nobody_since(0), self.unchanged(None)];
        let txn = || {
            // etcd compares before it changes anything: the contender that this very transaction makes is no rival.
            let publish = Txn::new().when(rivals.clone()).and_then([self.put(&self.lock, &self.bid.value)]);
            let publish = publish.or_else([line::glance(&self.lock, 0), look(self.lock.clone())]);
            let make = [self.put(&self.contender, &self.bid.value), TxnOp::txn(publish)];
            Txn::new().when([self.stands(0)]).and_then(make).or_else(self.look_around(0))
        };
        let answer = self.commit(txn, Effect::Write).await?;
        let done = match self.placed(answer).ok_or_else(|| self.session.senseless(Effect::Write))? {
            Claim::Done(token) => return Ok(self.held(token, token)),
            Claim::Not(scene) => self.settle(scene).await,
        };
        done.map_err(doubtful)
    }

    /// Gets the lock if nobody has it, and makes nothing otherwise.
    pub(super) async fn snatch(&self) -> Result<Standing> {
        let (mut since, mut value) = (0, None);
        loop {
            let compares = [self.nobody_since(since), self.unchanged(value.as_ref())];
            let scene = match self.claim_if(&compares, 0).await? {
                Claim::Done(token) => return Ok(self.held(token, token)),
                Claim::Not(scene) => scene,
            };
            if scene.mine.is_some() {
                return self.snatched(scene).await.map_err(doubtful);
            }
            if scene.has_ordinary_value() {
                return Err(self.occupied());
            }
            if scene.line.before(self.session, &self.lock, i64::MAX).await?.is_some() {
                return Ok(Standing::Taken);
            }
            if !self.may_replace(scene.value.as_ref()) {
                return Err(self.occupied());
            }
            // Only ordinary keys are there, all of them older than this: whoever comes now has a later revision.
            (since, value) = (scene.revision, scene.value);
        }
    }

    /// How the contender is doing that an earlier call of a bid made that doesn't wait.
    async fn snatched(&self, scene: Scene) -> Result<Standing> {
        match self.settle(scene).await? {
            Standing::Waiting(place) => self.withdraw(token(&place)).await.map(|_| Standing::Taken),
            standing => Ok(standing),
        }
    }

    /// Takes the lock over if nobody is ahead any more.
    pub(super) async fn advance(&self, token: i64) -> Result<Standing> {
        let first = [self.stands(token), self.nobody_before(token), self.unchanged(None)];
        match self.claim_if(&first, token.saturating_sub(1)).await? {
            Claim::Done(revision) => Ok(self.held(token, revision)),
            Claim::Not(scene) if scene.shows(token) => self.settle(scene).await,
            Claim::Not(_) => Err(self.lost()),
        }
    }

    /// Whether the lock is still held: only with its contender is it lost. What somebody else has put over the value stays;
    /// if the value is gone it is published again.
    pub(super) async fn confirm(&self, place: &Place) -> Result<Standing> {
        let token = token(place);
        let look = || Txn::new().when([self.stands(token)]).and_then([look(self.lock.clone())]);
        let answer = self.commit(look, Effect::Read).await?;
        if !answer.succeeded {
            return Err(self.lost());
        }
        let seen = revision(&answer);
        if self.looked(answer)?.is_some() {
            return Ok(self.held(token, seen));
        }
        match self.claim_if(&[self.stands(token), self.unchanged(None)], token).await? {
            Claim::Done(revision) => Ok(self.held(token, revision)),
            Claim::Not(scene) if scene.shows(token) => Ok(self.held(token, scene.revision)),
            Claim::Not(_) => Err(self.lost()),
        }
    }

    /// What becomes of a contender that stands.
    async fn settle(&self, scene: Scene) -> Result<Standing> {
        let Some(token) = scene.token(self.lease) else { return Err(self.occupied()) };
        if scene.has_ordinary_value() {
            return self.give_way(token).await;
        }
        let Scene { line, value, revision, .. } = scene;
        if let Some(ahead) = line.before(self.session, &self.lock, token).await? {
            let place = Place { ahead: text(&ahead.key), ..self.place(token, revision) };
            return Ok(Standing::Waiting(place));
        }
        if !self.may_replace(value.as_ref()) {
            return self.give_way(token).await;
        }
        match self.claim_if(&[self.stands(token), self.unchanged(value.as_ref())], token).await? {
            Claim::Done(revision) => Ok(self.held(token, revision)),
            Claim::Not(scene) if scene.shows(token) => self.give_way(token).await,
            Claim::Not(_) => Err(self.lost()),
        }
    }

    /// Changes what the holder published.
    pub(super) async fn publish(&self, token: i64, value: &Bytes) -> Result<()> {
        let txn = || Txn::new().when([self.stands(token)]).and_then(self.claim(value));
        let done = self.commit(txn, Effect::Write).await?.succeeded;
        if done { Ok(()) } else { Err(self.lost()) }
    }

    /// Takes the contender away because an ordinary key is where the lock's value would be.
    async fn give_way(&self, token: i64) -> Result<Standing> {
        self.withdraw(token).await?;
        Err(self.occupied())
    }

    /// Takes the contender away, and the value that is published with it. A contender of the same name that isn't this one is
    /// a later bid's, and so is the value then. Returns whether it was there.
    pub(super) async fn withdraw(&self, token: i64) -> Result<bool> {
        let txn = || {
            let leave = [TxnOp::delete(self.contender.as_slice(), None), self.unpublish([self.is_published()])];
            let clear = [self.unpublish([self.stands(0), self.is_published()])];
            Txn::new().when([self.stands(token)]).and_then(leave).or_else(clear)
        };
        // Doing so twice is as good as once.
        self.commit(txn, Effect::Read).await.map(|answer| answer.succeeded)
    }

    /// Looks for the contender. This is no mere read: those may overtake a transaction that is on its way.
    pub(super) async fn find(&self) -> Result<Option<i64>> {
        let look = || {
            let clear = [self.unpublish([self.is_published()])];
            Txn::new().when([self.stands(0)]).and_then(clear).or_else([look(self.contender.clone())])
        };
        let answer = self.commit(look, Effect::Read).await?;
        if answer.succeeded {
            return Ok(None);
        }
        let found = self.looked(answer)?;
        Ok(found.filter(|found| found.lease == self.lease).map(|found| found.create_revision))
    }

    /// Becomes the holder if all of this holds. Otherwise it looks around, at the line as far as it came no later than at `until`.
    async fn claim_if(&self, compares: &[Compare], until: i64) -> Result<Claim> {
        let claim = || Txn::new().when(compares).and_then(self.claim(&self.bid.value)).or_else(self.look_around(until));
        let answer = self.commit(claim, Effect::Write).await?;
        if answer.succeeded {
            return Ok(Claim::Done(revision(&answer)));
        }
        // Nothing was changed, that much is clear.
        Scene::of(answer).map(Claim::Not).ok_or_else(|| self.session.senseless(Effect::Read))
    }

    /// The answer to [`line_up`](Attempt::line_up), if it is one.
    fn placed(&self, answer: PbTxnResponse) -> Option<Claim> {
        if !answer.succeeded {
            return Scene::of(answer).map(Claim::Not);
        }
        let revision = revision(&answer);
        let Some(PbTxnOpResponse::ResponseTxn(publish)) = answer.responses.into_iter().nth(1)?.response else {
            return None;
        };
        if publish.succeeded {
            return Some(Claim::Done(revision));
        }
        let [line, value] = ranges(publish.responses)?.try_into().ok()?;
        let mine = PbKeyValue { create_revision: revision, lease: self.lease, ..PbKeyValue::default() };
        Some(Claim::Not(Scene::new(Some(mine), line, value, revision)))
    }

    /// The answer to one [`look`].
    fn looked(&self, answer: PbTxnResponse) -> Result<Option<PbKeyValue>> {
        let found = ranges(answer.responses).and_then(|found| found.into_iter().next());
        Ok(found.ok_or_else(|| self.session.senseless(Effect::Read))?.kvs.into_iter().next())
    }

    async fn commit(&self, txn: impl Fn() -> Txn, effect: Effect) -> Result<PbTxnResponse> {
        let answer = self.session.call(async || self.session.kv().txn(txn()).await).await?;
        answer.map(|answer| answer.0).map_err(|failure| match status::is_lease_gone(&failure) {
            true => self.lost(),
            false => self.session.error(failure, effect),
        })
    }

    /// Nobody has come beneath the lock's key who is still there, since this revision.
    fn nobody_since(&self, revision: i64) -> Compare {
        let line = line::beneath(&self.lock);
        Compare::create_revision(line.start(), CompareOp::Less, revision.saturating_add(1)).with_range(line.end())
    }

    /// Nobody who came before the token is there.
    fn nobody_before(&self, token: i64) -> Compare {
        let line = line::beneath(&self.lock);
        Compare::create_revision(line.start(), CompareOp::Greater, token.saturating_sub(1)).with_range(line.end())
    }

    /// The contender of this token is there; none, where it is 0.
    fn stands(&self, token: i64) -> Compare {
        Compare::create_revision(self.contender.as_slice(), CompareOp::Equal, token)
    }

    /// The lock's key is as it was found.
    fn unchanged(&self, value: Option<&PbKeyValue>) -> Compare {
        let changed = value.map_or(0, |value| value.mod_revision);
        Compare::mod_revision(self.lock.as_slice(), CompareOp::Equal, changed)
    }

    /// What is at the lock's key hangs on our lease.
    fn is_published(&self) -> Compare {
        Compare::lease(self.lock.as_slice(), CompareOp::Equal, self.lease)
    }

    /// Takes the value away if all of this holds.
    fn unpublish(&self, when: impl Into<Vec<Compare>>) -> TxnOp {
        TxnOp::txn(Txn::new().when(when).and_then([TxnOp::delete(self.lock.as_slice(), None)]))
    }

    /// Becomes the holder, or stays it with another value.
    fn claim(&self, value: &Bytes) -> [TxnOp; 2] {
        [self.put(&self.contender, value), self.put(&self.lock, value)]
    }

    fn put(&self, path: &[u8], value: &Bytes) -> TxnOp {
        TxnOp::put(path, value.as_ref(), Some(PutOptions::new().with_lease(self.lease)))
    }

    /// What makes a [`Scene`].
    fn look_around(&self, until: i64) -> [TxnOp; 3] {
        [look(self.contender.clone()), line::glance(&self.lock, until), look(self.lock.clone())]
    }

    /// Whether what is at the lock's key, if anything, is of this lease and may be written over.
    fn may_replace(&self, value: Option<&PbKeyValue>) -> bool {
        value.is_none_or(|value| value.lease == self.lease)
    }

    fn held(&self, token: i64, seen: i64) -> Standing {
        Standing::Held(self.place(token, seen))
    }

    /// A place with nobody ahead.
    fn place(&self, token: i64, seen: i64) -> Place {
        let (token, seen) = (unsigned(token), unsigned(seen));
        Place { id: text(&self.contender), token, ahead: String::new(), seen }
    }

    fn lost(&self) -> Error {
        Error::lock_lost(&self.bid.key)
    }

    fn occupied(&self) -> Error {
        Error::key_exists(&self.bid.key)
    }
}

impl Scene {
    fn new(mine: Option<PbKeyValue>, line: PbRangeResponse, value: PbRangeResponse, revision: i64) -> Self {
        Scene { mine, line: Line::new(line, revision), value: value.kvs.into_iter().next(), revision }
    }

    /// What [`look_around`](Attempt::look_around) found; none if the server answered something else.
    fn of(answer: PbTxnResponse) -> Option<Self> {
        let revision = revision(&answer);
        let [mine, line, value] = ranges(answer.responses)?.try_into().ok()?;
        Some(Scene::new(mine.kvs.into_iter().next(), line, value, revision))
    }

    /// The token of the contender, if it is the lease's. Anybody may write a key of any name.
    fn token(&self, lease: i64) -> Option<i64> {
        self.mine.as_ref().filter(|mine| mine.lease == lease).map(|mine| mine.create_revision)
    }

    /// Whether the contender of this token is there.
    fn shows(&self, token: i64) -> bool {
        self.mine.as_ref().is_some_and(|mine| mine.create_revision == token)
    }

    /// Whether at the lock's key is what hangs on no lease, and so is no holder's value.
    fn has_ordinary_value(&self) -> bool {
        self.value.as_ref().is_some_and(|value| value.lease == 0)
    }
}

/// The answers to reads, in their order; none if the server answered something else.
fn ranges(responses: Vec<PbResponseOp>) -> Option<Vec<PbRangeResponse>> {
    let one = |operation: PbResponseOp| match operation.response? {
        PbTxnOpResponse::ResponseRange(range) => Some(range),
        _ => None,
    };
    responses.into_iter().map(one).collect()
}

/// The error of a call that failed after it had made a contender, which is still there unless the error says otherwise.
fn doubtful(error: Error) -> Error {
    match error {
        Error::LockLost { .. } | Error::KeyExists { .. } | Error::Indeterminate { .. } => error,
        Error::Unreachable { reason, source } => Error::Indeterminate { reason, source },
        error => Error::indeterminate(error.to_string()).with_source(error),
    }
}

/// The revision of the answer: that of its changes, if it made any.
fn revision(answer: &PbTxnResponse) -> i64 {
    answer.header.as_ref().map_or(0, |header| header.revision)
}

/// The token of a place, or one that no contender has.
pub(super) fn token(place: &Place) -> i64 {
    const OF_NONE: i64 = -1;
    // 0 would match a contender that doesn't exist.
    i64::try_from(place.token).ok().filter(|token| *token > 0).unwrap_or(OF_NONE)
}

pub(super) fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or_default()
}

/// Keys beneath one of ours with a name in hexadecimal are text.
fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
