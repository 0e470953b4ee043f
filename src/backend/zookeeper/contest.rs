//! One bid's way through the line of a lock.

use super::batch::Batch;
use super::contender::{self, Contender, Line};
use super::node::{self, Node};
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

    /// The version at which it may be removed when the line is empty; 0 if it may not.
    fn removable_at(&self) -> u64 {
        if self.is_ours() && !self.is_shared() { u64::try_from(self.stat.version).unwrap_or(0) } else { 0 }
    }
}

/// The version of a lock's znode that was made with its line.
const OPENED: u64 = 1;

/// How many znodes a contender of ours has.
const TWINS: i32 = 2;

/// A znode in whichever version.
const ANY_VERSION: i32 = -1;

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
            let Some(ground) = self.look().await? else { continue };
            if !self.bid.waits && Line::of(&ground.names).first().is_some() {
                return Ok(Standing::Taken);
            }
            if let Some(names) = self.join_line(&ground).await? {
                let line = Line::of(&names);
                let own = line.find(&self.bid.nonce).ok_or_else(|| self.lost())?;
                return self.assess(&line, &own, None, ground.removable_at()).await;
            }
        }
        Err(self.session.contended(self.bid.key.as_str()))
    }

    /// Takes a lock that has no znode yet. None: it has one.
    async fn open_line(&self) -> Result<Option<Standing>> {
        let [id, _] = contender::first_twins(&self.bid.nonce);
        let opened = self.session.with_parents(&self.path, || self.send_opening()).await?;
        Ok(opened.map(|stat| Standing::Held(Place { id, token: token(&stat), ahead: String::new(), seen: OPENED })))
    }

    /// All at one moment, so that whoever reads sees nothing, or the lock held and its value.
    fn send_opening(&self) -> impl Future<Output = Result<Stat, Failure>> {
        let [first, second] = contender::first_twins(&self.bid.nonce).map(|name| self.beneath(&name));
        let mut batch = Batch::new(self.session);
        batch.create_key(&self.path, node::MARKER, CreateMode::Persistent);
        batch.create(&first, CreateMode::Ephemeral);
        batch.create(&second, CreateMode::Ephemeral);
        batch.set(&first, &self.bid.value, 0);
        batch.send_for_stat()
    }

    /// The lock's znode and who is in line; none where it is gone.
    async fn look(&self) -> Result<Option<Ground>> {
        let (names, stat) = match self.session.client.get_children(&self.path).await {
            Ok(read) => read,
            Err(Failure::NoNode) => return Ok(None),
            Err(failure) => return Err(self.session.read_error(failure)),
        };
        let stat = match self.session.identify(&self.path, stat).await? {
            Node::Missing => return Ok(None),
            Node::Key(_) => return Err(Error::key_exists(&self.bid.key)),
            Node::Vacant(stat) => stat,
        };
        match Line::of(&names).misfit() {
            Some(misfit) => Err(another_kind(&self.bid.key, &misfit)),
            None => Ok(Some(Ground { stat, names })),
        }
    }

    /// Makes the contender, behind all that are there, and returns who is there then. None: the lock's znode has changed.
    async fn join_line(&self, ground: &Ground) -> Result<Option<Vec<String>>> {
        let [first, second] = contender::twin_prefixes(&self.bid.nonce).map(|prefix| self.beneath(&prefix));
        let mut batch = Batch::new(self.session);
        match ground.is_shared() {
            true => batch.set(&self.path, node::SHARED, ground.stat.version),
            false => batch.check(&self.path, ground.stat.version),
        }
        batch.create_with(&first, &self.bid.value, CreateMode::EphemeralSequential);
        batch.create(&second, CreateMode::EphemeralSequential);
        let joined = batch.send();
        let names = self.session.client.list_children(&self.path);
        let (joined, names) = tokio::join!(joined, names);
        if self.session.settled(joined)?.is_none() {
            return Ok(None);
        }
        // The contender is there, whether or not this answer is.
        names.map(Some).map_err(|failure| self.session.write_error(failure))
    }

    /// How the bid is doing whose contender is in this line, as its stat says, where that is known.
    async fn assess(
        &self,
        line: &Line<'_>,
        own: &Contender<'_>,
        stat: Option<Stat>,
        removable_at: u64,
    ) -> Result<Standing> {
        let mut place = Place {
            id: own.name.to_owned(),
            token: stat.as_ref().map_or(0, token),
            ahead: line.ahead_of(own).map(|ahead| self.beneath(ahead.name)).unwrap_or_default(),
            seen: removable_at,
        };
        if place.ahead.is_empty() {
            let published = match stat.filter(|stat| stat.version > 0) {
                Some(stat) => stat,
                None => self.publish(own.name, &self.bid.value).await?,
            };
            place.token = token(&published);
            return Ok(Standing::Held(place));
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
        match self.session.send_publication(&self.beneath(id), value, ANY_VERSION).await {
            Err(Failure::NoNode) => Err(self.lost()),
            result => result.map_err(|failure| self.session.write_error(failure)),
        }
    }

    /// How the bid is doing that had this place.
    pub(super) async fn stand(&self, place: &Place) -> Result<Standing> {
        let synced = self.session.synced(Consistency::Linearizable, &self.path);
        let names = self.session.client.list_children(&self.path);
        let own_path = self.beneath(&place.id);
        let stat = self.session.client.check_stat(&own_path);
        let (synced, names, stat) = tokio::join!(synced, names, stat);
        synced?;
        let names = self.session.unless_gone(names)?.unwrap_or_default();
        let stat = stat.map_err(|failure| self.session.read_error(failure))?;
        let line = Line::of(&names);
        match (line.find(&self.bid.nonce), stat) {
            // Without its twin it excludes only some.
            (Some(own), Some(stat)) if own.name == place.id && line.is_ours(&own) => {
                self.assess(&line, &own, Some(stat), place.seen).await
            }
            _ => Err(self.lost()),
        }
    }

    /// Looks whether the bid is in line, and gets it in line if not.
    pub(super) async fn find_or_enter(&self) -> Result<Standing> {
        match self.find().await? {
            Some(place) => self.stand(&place).await,
            None => self.enter().await,
        }
    }

    /// The place of a contender that may have been made. What was sent in this session before, and had no answer, is done by
    /// the time that a `sync` is, or never will be.
    async fn find(&self) -> Result<Option<Place>> {
        let synced = self.session.synced(Consistency::Linearizable, &self.path);
        let names = self.session.client.list_children(&self.path);
        let (synced, names) = tokio::join!(synced, names);
        synced?;
        let names = self.session.unless_gone(names)?.unwrap_or_default();
        let found = Line::of(&names).find(&self.bid.nonce);
        Ok(found.map(|own| Place { id: own.name.to_owned(), ..Place::default() }))
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
    /// It looks first whether others are in line: the server writes to its log what it refuses as well, so that a multi in vain
    /// takes longer than a look.
    pub(super) async fn release(&self, place: &Place) -> Result<bool> {
        let twins = self.twins(&place.id);
        if self.is_alone(place.seen).await && self.close(&twins, place.seen).await {
            return Ok(true);
        }
        let was_there = match self.leaving(&twins).send().await {
            Ok(_) => true,
            Err(Failure::NoNode) => self.leave_one_by_one(&twins).await?,
            Err(failure) => return Err(self.session.read_error(failure)),
        };
        self.tidy().await;
        Ok(was_there)
    }

    /// Whether nothing but the twins is beneath the lock's znode, which may be removed at that version. It may not be so any
    /// more.
    async fn is_alone(&self, removable_at: u64) -> bool {
        let stat = if removable_at > 0 { self.session.client.check_stat(&self.path).await } else { Ok(None) };
        matches!(stat, Ok(Some(stat)) if stat.num_children == TWINS && u64::try_from(stat.version) == Ok(removable_at))
    }

    /// Takes away the contender and the lock's znode, and the directories above that have nothing else in them. `false`: others
    /// are in line, or something else is in the way.
    async fn close(&self, twins: &[String; 2], removable_at: u64) -> bool {
        let Ok(version) = i32::try_from(removable_at) else { return false };
        let mut batch = self.leaving(twins);
        batch.delete(&self.path, version);
        let closed = batch.send();
        let swept = self.session.send_sweep(self.session.paths.directory_of(&self.path));
        tokio::join!(closed, swept).0.is_ok()
    }

    fn leaving(&self, twins: &[String; 2]) -> Batch<'c> {
        let mut batch = Batch::new(self.session);
        twins.iter().for_each(|path| batch.delete(path, ANY_VERSION));
        batch
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

fn another_kind(key: impl AsRef<str>, contender: &Contender<'_>) -> Error {
    let (key, name) = (key.as_ref(), contender.name);
    Error::unsupported(format!("`{key}` is in use as another kind of lock, by `{name}`"))
}
