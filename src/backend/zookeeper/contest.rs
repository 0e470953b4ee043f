//! One bid's way through the line of a lock.

use super::batch::{Batch, is_conflict};
use super::contender::{self, Contender, Line};
use super::node::{self, ANY_VERSION, Node};
use super::session::{ATTEMPTS, Session};
use crate::backend::{Bid, Place, Progress, Standing};
use crate::error::{Error, Result};
use crate::types::Consistency;
use zookeeper_client::{CreateMode, Error as Failure, Stat};

/// A bid, and the session through which something is done about it.
pub(super) struct Contest<'c> {
    session: &'c Session,
    bid: &'c Bid,
    /// The znode of the lock.
    path: String,
}

/// The znode of a lock, as it is before a bid joins the line there.
struct Ground {
    stat: Stat,
    names: Vec<String>,
}

impl Ground {
    /// Whether a store made it, and nobody else was seen to use it.
    fn is_ours(&self) -> bool {
        usize::try_from(self.stat.data_length) == Ok(node::MARKER.len())
    }

    fn is_shared(&self) -> bool {
        self.is_ours() && Line::of(&self.names).has_foreign()
    }

    /// Whether nobody is in line, whatever else is there.
    fn is_vacant(&self) -> bool {
        Line::of(&self.names).first().is_none()
    }

    /// The number that the next contender will get, as servers count: what was ever made in the znode. The stat's count is
    /// that of the changes.
    fn next_number(&self) -> i64 {
        (i64::from(self.stat.cversion) + i64::from(self.stat.num_children)) / 2
    }

    /// The version at which it may be removed when the line is empty; 0 if it may not.
    fn removable_at(&self) -> u64 {
        if self.is_ours() && !self.is_shared() { u64::try_from(self.stat.version).unwrap_or(0) } else { 0 }
    }
}

/// The version of a lock's znode that was made with its line.
const OPENED: u64 = 1;

/// How many znodes a contender of ours has.
const TWINS: usize = 2;

/// The fencing token of a contender.
pub(super) fn token(stat: &Stat) -> u64 {
    stat.czxid.cast_unsigned()
}

impl<'c> Contest<'c> {
    pub(super) fn new(session: &'c Session, bid: &'c Bid) -> Self {
        Contest { session, bid, path: session.paths.key(&bid.key) }
    }

    fn lost(&self) -> Error {
        Error::lock_lost(&self.bid.key)
    }

    fn beneath(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    /// The paths of the bid's two znodes.
    pub(super) fn twins(&self, id: &str) -> [String; 2] {
        let names = contender::with_twin(id).unwrap_or_else(|| contender::first_twins(&self.bid.nonce));
        names.map(|name| self.beneath(&name))
    }

    /// Gets in line; nothing of this bid is there yet.
    pub(super) async fn enter(&self) -> Result<Standing> {
        for _ in 0..ATTEMPTS {
            if let Some(held) = self.open_line().await? {
                return Ok(held);
            }
            let ground = self.look().await?;
            self.session.taken.learn(&self.path, ground.is_some());
            let Some(ground) = ground else { continue };
            if let Some(held) = self.take_vacant(&ground).await? {
                return Ok(held);
            }
            if !self.bid.waits && !ground.is_vacant() {
                return Ok(Standing::Taken);
            }
            if let Some(names) = self.join_line(&ground).await? {
                let line = Line::of(&names);
                let own = line.find(&self.bid.nonce).ok_or_else(|| self.lost())?;
                return self.wait_or_take(self.place(&line, &own, ground.removable_at())).await;
            }
        }
        Err(self.session.contended(self.bid.key.as_str()))
    }

    /// Takes a lock that has no znode yet. None: it has one, or is likely to.
    async fn open_line(&self) -> Result<Option<Standing>> {
        if self.session.taken.says(&self.path) {
            return Ok(None);
        }
        let opened = self.session.with_parents(&self.path, || self.send_opening()).await?;
        let [id, _] = contender::first_twins(&self.bid.nonce);
        Ok(opened.map(|stat| self.held(id, &stat, OPENED)))
    }

    /// All at one moment, so that whoever reads sees nothing, or the lock held and its value.
    fn send_opening(&self) -> impl Future<Output = Result<Stat, Failure>> {
        let [first, second] = contender::first_twins(&self.bid.nonce).map(|name| self.beneath(&name));
        let mut batch = Batch::new(self.session);
        batch.create_key(&self.path, node::MARKER, CreateMode::Persistent);
        batch.create_with(&first, &self.bid.value, CreateMode::Ephemeral);
        batch.create(&second, CreateMode::Ephemeral);
        batch.announce(&second);
        batch.send_for_stat()
    }

    /// Takes a lock whose znode has nobody in line. None: somebody is, or was since.
    async fn take_vacant(&self, ground: &Ground) -> Result<Option<Standing>> {
        if !ground.is_vacant() {
            return Ok(None);
        }
        let [id, second] = contender::twins(&self.bid.nonce, ground.next_number());
        let mut batch = self.joining(ground);
        // Another number than foreseen is another name, and a multi that fails.
        batch.announce(&self.beneath(&second));
        let taken = self.session.settled(batch.send_for_stat().await)?;
        Ok(taken.map(|stat| self.held(id, &stat, ground.removable_at())))
    }

    /// The lock is held by the contender of this name; a stat of one of its twins is enough, which are made at one moment.
    fn held(&self, id: String, stat: &Stat, removable_at: u64) -> Standing {
        Standing::Held(Place { id, token: token(stat), ahead: String::new(), seen: removable_at })
    }

    /// The lock's znode and who is in line; none where it is gone.
    async fn look(&self) -> Result<Option<Ground>> {
        let names = self.session.client.get_children(&self.path);
        let data = self.session.client.get_data(&self.path);
        let (names, data) = tokio::join!(names, data);
        let (names, data) = (self.session.unless_gone(names)?, self.session.unless_gone(data)?);
        let (Some((names, stat)), Some((data, _))) = (names, data) else { return Ok(None) };
        // Where the data was written since, it has another version, and nothing is done at this one.
        if Node::of(stat, &data).is_key() {
            return Err(Error::key_exists(&self.bid.key));
        }
        match Line::of(&names).misfit() {
            Some(misfit) => Err(another_kind(&self.bid.key, &misfit)),
            None => Ok(Some(Ground { stat, names })),
        }
    }

    /// Makes the contender, behind all that are there, and returns who is there then. None: the lock's znode has changed.
    async fn join_line(&self, ground: &Ground) -> Result<Option<Vec<String>>> {
        let joined = self.joining(ground).send();
        let names = self.session.client.list_children(&self.path);
        let (joined, names) = tokio::join!(joined, names);
        if self.session.settled(joined)?.is_none() {
            return Ok(None);
        }
        // The contender is there, whether or not this answer is.
        names.map(Some).map_err(|failure| self.session.write_error(failure))
    }

    fn joining(&self, ground: &Ground) -> Batch<'c> {
        let [first, second] = contender::twin_prefixes(&self.bid.nonce).map(|prefix| self.beneath(&prefix));
        let mut batch = Batch::new(self.session);
        match ground.is_shared() {
            true => batch.set(&self.path, node::SHARED, ground.stat.version),
            false => batch.check(&self.path, ground.stat.version),
        }
        batch.create_with(&first, &self.bid.value, CreateMode::EphemeralSequential);
        batch.create(&second, CreateMode::EphemeralSequential);
        batch
    }

    /// Where the bid's contender stands in this line.
    fn place(&self, line: &Line<'_>, own: &Contender<'_>, removable_at: u64) -> Place {
        let ahead = line.ahead_of(own).map(|ahead| self.beneath(ahead.name)).unwrap_or_default();
        Place { id: own.name.to_owned(), token: 0, ahead, seen: removable_at }
    }

    /// What becomes of a bid whose contender stands there with nothing published.
    async fn wait_or_take(&self, place: Place) -> Result<Standing> {
        if place.ahead.is_empty() {
            let stat = self.publish(&place.id, &self.bid.value).await?;
            return Ok(self.held(place.id, &stat, place.seen));
        }
        if self.bid.waits {
            return Ok(Standing::Waiting(place));
        }
        match self.release(&place).await {
            Ok(_) => Ok(Standing::Taken),
            Err(Error::Unreachable { reason, source }) => Err(Error::Indeterminate { reason, source }),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn publish(&self, id: &str, value: &[u8]) -> Result<Stat> {
        let mut batch = Batch::new(self.session);
        batch.publish(&self.twins(id), value);
        match batch.send_for_stat().await {
            Err(Failure::NoNode) => Err(self.lost()),
            result => result.map_err(|failure| self.session.write_error(failure)),
        }
    }

    /// How the bid is doing that had this place: it held the lock, or waited for it.
    pub(super) async fn stand(&self, place: &Place) -> Result<Standing> {
        match place.ahead.is_empty() {
            true => self.confirm(place).await,
            false => self.advance(place).await,
        }
    }

    /// Whether the lock is still held.
    async fn confirm(&self, place: &Place) -> Result<Standing> {
        let names = self.names().await?;
        let line = Line::of(&names);
        // Without its twin it excludes only some.
        match line.first() {
            Some(first) if first.name == place.id && line.is_ours(&first) => Ok(Standing::Held(place.clone())),
            _ => Err(self.lost()),
        }
    }

    /// Looks how far the bid has come that is in line there. It needs no fresher read than what its session has seen: nobody gets
    /// in ahead of it, and that the one ahead is gone was told by the server that is asked. Whoever held the lock may have
    /// published the bid's value on leaving.
    async fn advance(&self, place: &Place) -> Result<Standing> {
        let [first, second] = self.twins(&place.id);
        let client = &self.session.client;
        let looks = (client.list_children(&self.path), client.check_stat(&second), client.get_data(&first));
        let (names, twin, own) = tokio::join!(looks.0, looks.1, looks.2);
        let (names, own) = (self.session.unless_gone(names)?, self.session.unless_gone(own)?);
        let twin = twin.map_err(|failure| self.session.read_error(failure))?;
        let (Some(names), Some((data, stat)), Some(twin)) = (names, own, twin) else { return Err(self.lost()) };
        let line = Line::of(&names);
        let own = line.find(&self.bid.nonce).filter(|own| own.name == place.id).ok_or_else(|| self.lost())?;
        let place = self.place(&line, &own, place.seen);
        let has_value = data == self.bid.value;
        if place.ahead.is_empty() && has_value && twin.version > 0 {
            return Ok(self.held(place.id, &stat, place.seen));
        }
        if !place.ahead.is_empty() && !has_value {
            self.change_value(&first).await?;
        }
        self.wait_or_take(place).await
    }

    /// Gives a contender that waits the value of another wish, which is not to be seen before it is its turn.
    async fn change_value(&self, first: &str) -> Result<()> {
        let mut batch = Batch::new(self.session);
        batch.change(first, &self.bid.value);
        match batch.send().await {
            Ok(_) => Ok(()),
            Err(Failure::NoNode) => Err(self.lost()),
            Err(failure) => Err(self.session.write_error(failure)),
        }
    }

    /// Looks whether the bid is in line, and gets it in line if not.
    pub(super) async fn find_or_enter(&self) -> Result<Standing> {
        match self.find().await? {
            Some(place) => self.advance(&place).await,
            None => self.enter().await,
        }
    }

    /// The place of a contender that may have been made. What was sent in this session before, and had no answer, is done by
    /// the time that a `sync` is, or never will be.
    async fn find(&self) -> Result<Option<Place>> {
        let names = self.names().await?;
        let line = Line::of(&names);
        Ok(line.find(&self.bid.nonce).map(|own| self.place(&line, &own, 0)))
    }

    /// The names in the lock's znode, by a fresh read.
    async fn names(&self) -> Result<Vec<String>> {
        let synced = self.session.synced(Consistency::Linearizable, &self.path);
        let names = self.session.client.list_children(&self.path);
        let (synced, names) = tokio::join!(synced, names);
        synced?;
        Ok(self.session.unless_gone(names)?.unwrap_or_default())
    }

    pub(super) async fn leave(&self, progress: &Progress) -> Result<bool> {
        match progress {
            Progress::New => Ok(false),
            Progress::Placed(place) => self.release(place).await,
            Progress::Unknown => match self.find().await? {
                Some(place) => self.release(&place).await,
                None => Ok(false),
            },
        }
    }

    /// Takes the contender away, and the lock's znode with the last. Returns whether the contender was there.
    ///
    /// Where others may be in line it looks first: the server writes to its log what it refuses as well, so that a multi in
    /// vain takes longer than a look.
    pub(super) async fn release(&self, place: &Place) -> Result<bool> {
        let (twins, wanted) = (self.twins(&place.id), &self.session.wanted);
        let may_close = place.ahead.is_empty() && place.seen > 0;
        if may_close && !wanted.says(&self.path) && self.close(&twins, place.seen).await? {
            return Ok(true);
        }
        // Whether this is right the next request tells.
        let Ok((names, stat)) = self.session.client.get_children(&self.path).await else {
            return self.withdraw(&twins, true).await;
        };
        let is_last = may_close && names.len() == TWINS && u64::try_from(stat.version) == Ok(place.seen);
        if place.ahead.is_empty() {
            wanted.learn(&self.path, !is_last);
        }
        if is_last && self.close(&twins, place.seen).await? {
            return Ok(true);
        }
        let line = Line::of(&names);
        match line.heir_of(&place.id) {
            Some(heir) if self.hand_over(&twins, &heir).await? => {}
            _ => return self.withdraw(&twins, line.has_foreign()).await,
        }
        if line.has_foreign() {
            self.tidy().await;
        }
        Ok(true)
    }

    /// Takes the contender away and publishes for the next. `false`: one of the two has gone.
    async fn hand_over(&self, twins: &[String; 2], heir: &Contender<'_>) -> Result<bool> {
        let mut batch = Batch::new(self.session);
        // First, as who sees the contender go may look before all is done.
        batch.announce(&self.beneath(heir.name));
        leave_with(&mut batch, twins);
        self.applied(batch.send().await)
    }

    /// Takes the contender away, whoever else is there, and tidies up behind it where it was the last thing there, or others
    /// may have been seen that are no stores.
    async fn withdraw(&self, twins: &[String; 2], may_have_foreign: bool) -> Result<bool> {
        let mut batch = Batch::new(self.session);
        leave_with(&mut batch, twins);
        let left = batch.send();
        let rest = self.session.client.check_stat(&self.path);
        let (left, rest) = tokio::join!(left, rest);
        let (was_there, is_last) = match left {
            Ok(_) => (true, !matches!(rest, Ok(Some(stat)) if stat.num_children > 0)),
            Err(Failure::NoNode) => (self.leave_one_by_one(twins).await?, true),
            Err(failure) => return Err(self.session.read_error(failure)),
        };
        if may_have_foreign || is_last {
            self.tidy().await;
        }
        Ok(was_there)
    }

    /// Takes away the contender and the lock's znode, and the directories above that have nothing else in them. `false`: others
    /// are in line, or something else is in the way.
    async fn close(&self, twins: &[String; 2], removable_at: u64) -> Result<bool> {
        let Ok(version) = i32::try_from(removable_at) else { return Ok(false) };
        let mut batch = Batch::new(self.session);
        leave_with(&mut batch, twins);
        batch.delete(&self.path, version);
        let closed = batch.send();
        let swept = self.session.send_sweep(self.session.paths.directory_of(&self.path));
        self.applied(tokio::join!(closed, swept).0)
    }

    /// Whether a multi that takes away was applied. `false`: it certainly wasn't, but another may be.
    fn applied<T>(&self, result: Result<T, Failure>) -> Result<bool> {
        match result {
            Ok(_) => Ok(true),
            Err(failure) if is_conflict(&failure) || failure == Failure::NoAuth => Ok(false),
            Err(failure) => Err(self.session.read_error(failure)),
        }
    }

    /// Somebody has taken one of them away, or both. Returns whether the one was there that the lock is held by.
    async fn leave_one_by_one(&self, [first, second]: &[String; 2]) -> Result<bool> {
        let (first, second) = (self.session.client.delete(first, None), self.session.client.delete(second, None));
        let (first, second) = tokio::join!(first, second);
        self.session.unless_gone(second)?;
        Ok(self.session.unless_gone(first)?.is_some())
    }

    /// Removes the lock's znode if a store made it and nobody is in line any more, or makes a note that it is another program's
    /// as well. It has done its best where a request fails.
    async fn tidy(&self) {
        let Ok(Some(ground)) = self.look().await else { return };
        let version = Some(ground.stat.version);
        if ground.is_shared() {
            let _ = self.session.client.set_data(&self.path, node::SHARED, version).await;
        } else if ground.is_ours() && ground.names.is_empty() {
            let removed = self.session.client.delete(&self.path, version).await;
            if let (Ok(()), Some(above)) = (removed, self.session.paths.directory_of(&self.path)) {
                self.session.sweep(above).await;
            }
        }
    }
}

fn leave_with(batch: &mut Batch<'_>, twins: &[String; 2]) {
    twins.iter().for_each(|path| batch.delete(path, ANY_VERSION));
}

fn another_kind(key: impl AsRef<str>, contender: &Contender<'_>) -> Error {
    let (key, name) = (key.as_ref(), contender.name);
    Error::unsupported(format!("`{key}` is in use as another kind of lock, by `{name}`"))
}
