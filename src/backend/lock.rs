//! What locks need of a driver: the few steps in which backends differ. The rules - who waits for whom, when a lock is lost,
//! what is done about a lost answer - are written once, in [`actors::lock`](crate::actors) and its neighbours.

use crate::error::Result;
use crate::key::Key;
use crate::types::{Check, Operation, TxnOutcome};
use async_trait::async_trait;
use bytes::Bytes;
use std::time::Duration;

/// The steps of a lock at the server. A backend that has none is one without locks.
///
/// All rules for [`Backend`](crate::Backend)'s calls hold here too: what certainly had no effect fails with
/// [`Error::Unreachable`](crate::Error::Unreachable), what may have had one with
/// [`Error::Indeterminate`](crate::Error::Indeterminate); nothing is retried; every future may be dropped at any await point.
#[async_trait(?Send)]
pub trait Locking {
    /// Opens a grant: what all locks of one TTL hang on, at the server. It lasts [`Grant::ttl`] from the sending of this
    /// request, and again from the sending of each [`keep_alive`](Locking::keep_alive) that succeeds. When it ends, by time or
    /// otherwise, all contenders that hang on it are gone with the values that they published.
    ///
    /// A lost answer may leave a grant behind that ends by itself: it is [`Error::Unreachable`](crate::Error::Unreachable).
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported), naming the bounds, for a TTL that this server can't keep.
    async fn grant(&self, ttl: Duration) -> Result<Grant>;

    /// Lets the grant last for its whole time again. It may have been opened in a session before this one. Keeping alive twice
    /// is as good as once, so that a lost answer is [`Error::Unreachable`](crate::Error::Unreachable).
    ///
    /// # Errors
    /// [`Error::LockLost`](crate::Error::LockLost) where the grant is over, or can't be kept by this session: that is final.
    async fn keep_alive(&self, grant: &Grant) -> Result<()>;

    /// Ends the grant and all that hangs on it. One that is over already is no error.
    async fn revoke(&self, grant: &Grant) -> Result<()>;

    /// Contends for the lock, or looks how the bid is doing, as `progress` says. Where the bid turns out to be the first, its
    /// value - the one it has in this very call - is what [`get`](crate::Backend::get) answers for the key from the same moment
    /// on, until the contender goes.
    ///
    /// With [`Progress::Unknown`] the call before may have made a contender: it is found by the bid's nonce, and none is made
    /// beside it. With [`Progress::Placed`] nothing is made: the contender stands or is gone.
    ///
    /// # Errors
    /// - [`Error::LockLost`](crate::Error::LockLost): the grant is over, or the contender that was placed is gone;
    /// - [`Error::KeyExists`](crate::Error::KeyExists): an ordinary key is there;
    /// - [`Error::Unsupported`](crate::Error::Unsupported): the key is in use as another kind of lock, as a semaphore.
    async fn contend(&self, bid: &Bid, progress: &Progress) -> Result<Standing>;

    /// Waits until it is worth asking again how the bid is doing: whoever was just ahead of it is gone, or may be. Returning
    /// early is allowed, but not at once and again and again. What happened since the [`contend`](Locking::contend) that made
    /// `place` is not missed.
    ///
    /// # Errors
    /// [`Error::Unreachable`](crate::Error::Unreachable) where waiting again may succeed; the store then contends again to see.
    async fn wait(&self, bid: &Bid, place: &Place) -> Result<()>;

    /// Waits until the server tells that the contender of a lock that is held is gone, or may be. Needed only where a
    /// [`watch`](crate::Backend::watch) of the lock's key doesn't tell as much, as it does for the default, which waits for ever.
    ///
    /// # Errors
    /// [`Error::Unreachable`](crate::Error::Unreachable) where waiting again may succeed.
    async fn gone(&self, _bid: &Bid, _place: &Place) -> Result<()> {
        std::future::pending().await
    }

    /// Takes the contender away, held or waiting, with the value that it published: what this very bid made and nothing else.
    /// With [`Progress::Unknown`] it is looked for by the nonce. Returns whether it was there. Leaving twice is as good
    /// as once, so that a lost answer is [`Error::Unreachable`](crate::Error::Unreachable).
    async fn leave(&self, bid: &Bid, progress: &Progress) -> Result<bool>;

    /// As [`txn`](crate::Backend::txn), at a moment at which the lock is held by the contender at `place`.
    ///
    /// # Errors
    /// [`Error::LockLost`](crate::Error::LockLost) where it isn't; nothing is changed then.
    async fn guarded(&self, bid: &Bid, place: &Place, checks: &[Check], operations: &[Operation])
    -> Result<TxnOutcome>;

    /// Changes what the holder published. The lock, its token and its place stay.
    ///
    /// # Errors
    /// [`Error::LockLost`](crate::Error::LockLost) where the lock isn't held by the contender at `place`.
    async fn publish(&self, bid: &Bid, place: &Place, value: &Bytes) -> Result<()>;

    /// Who holds the lock at `key`, by a linearizable read; none where nobody does. Programs in other languages that hold it
    /// show too, as far as the backend can tell.
    async fn holder(&self, key: &Key) -> Result<Option<Holder>>;
}

/// What the locks of one TTL hang on: etcd's lease, Consul's session, a ZooKeeper session of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The server's name for it.
    pub id: String,
    /// How long the server keeps it at least, without a word from us. May be longer than what was asked for, never shorter.
    pub ttl: Duration,
    /// How long the server may take to let go of it, at most, when it hears no more of us.
    pub outlives_process_by: Duration,
}

/// An attempt of this store to get a lock. There is one at a time for each key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bid {
    /// The lock's key.
    pub key: Key,
    /// What the key is to have as its value while the lock is held.
    pub value: Bytes,
    /// What the contender hangs on.
    pub grant: Grant,
    /// 32 random hexadecimal digits, that no other bid has.
    pub nonce: String,
    /// Whether to wait in line if another holds the lock; otherwise nothing is left behind then.
    pub waits: bool,
}

/// What is known of a bid's contender at the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is none: this is the first call, or all before certainly had no effect.
    New,
    /// There may be one: an answer was lost.
    Unknown,
    /// There was one, when it was last heard of.
    Placed(Place),
}

impl Progress {
    /// A request that may make a contender is on its way.
    pub(crate) fn sent(&mut self) {
        if *self == Progress::New {
            *self = Progress::Unknown;
        }
    }
}

/// Where a bid's contender stands. Drivers put in it what they need to find it again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The server's name for the contender.
    pub id: String,
    /// The fencing token of the acquisition: grows with each one of the key. May be unknown, and 0, until the lock is held.
    pub token: u64,
    /// Whoever is just ahead, by the server's name for it; empty where that is not known or nobody.
    pub ahead: String,
    /// The moment in the server's history at which this was so.
    pub seen: u64,
}

/// How a bid is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The lock is this bid's, and its value is published.
    Held(Place),
    /// The contender is in line, or, where the backend knows no lines, another holds the lock.
    Waiting(Place),
    /// Another holds the lock, and the bid doesn't wait.
    Taken,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// What the holder published.
    pub value: Bytes,
    /// The fencing token of its acquisition.
    pub token: u64,
}
