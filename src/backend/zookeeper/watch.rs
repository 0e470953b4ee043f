//! Following a target: first all that is there, then what changes.
//!
//! The watch stands before anything is read, so nothing is missed between. An event only says which znode to look at; what
//! is told is what is there when it is read. A server shows a session no older state than one it showed before, so versions
//! never go backward.

use super::hub::{Following, Hub};
use super::session::Session;
use crate::backend::{Change, Target, Update, Updates};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::types::{Consistency, KvPair, ListOptions};
use futures_util::future::{FutureExt, LocalBoxFuture};
use futures_util::stream::{self, FuturesOrdered, StreamExt};
use std::rc::{Rc, Weak};

/// How many keys one follower reads at once.
const IN_FLIGHT: usize = 32;

/// The updates of `target`.
///
/// # Errors
/// Why the server can't be asked to tell of changes.
pub(super) async fn follow(session: Rc<Session>, hub: &Rc<Hub>, target: &Target) -> Result<Updates> {
    let following = hub.follow(&session, target);
    following.inbox.standing().await?;
    let follower =
        Follower { session: Rc::downgrade(&session), following, has_state: false, reads: FuturesOrdered::new() };
    let updates = stream::unfold(Some(follower), async |follower| {
        let mut follower = follower?;
        let update = follower.next().await;
        let rest = update.is_ok().then_some(follower);
        Some((update, rest))
    });
    Ok(updates.boxed_local())
}

struct Follower {
    /// A stream that nobody asks for updates must not keep the session from closing.
    session: Weak<Session>,
    following: Following,
    /// The state was told.
    has_state: bool,
    /// The keys being read, in the order in which their answers come.
    reads: FuturesOrdered<LocalBoxFuture<'static, (Key, Result<Option<KvPair>>)>>,
}

impl Follower {
    async fn next(&mut self) -> Result<Update> {
        if self.has_state {
            return self.changes().await;
        }
        let pairs = tokio::select! {
            biased;
            error = self.following.inbox.failure() => return Err(error),
            pairs = self.state() => pairs?,
        };
        self.has_state = true;
        Ok(Update::State { pairs, position: None })
    }

    /// All that is there, as fresh as a linearizable read.
    async fn state(&self) -> Result<Vec<KvPair>> {
        let session = self.session.upgrade().ok_or(Error::Closed)?;
        match &self.following.inbox.target {
            Target::Key(key) | Target::Lock(key) => {
                let _turn = self.following.limits.requests.acquire().await;
                let pair = session.read(key, Consistency::Linearizable).await?;
                Ok(pair.into_iter().collect())
            }
            Target::Tree(dir) => {
                let _turn = self.following.limits.walks.acquire().await;
                match session.list(dir, &ListOptions::default()).await {
                    Err(Error::KeyNotFound { .. }) => Ok(Vec::new()),
                    page => Ok(page?.items),
                }
            }
        }
    }

    /// What came of the next events.
    async fn changes(&mut self) -> Result<Update> {
        loop {
            let inbox = self.following.inbox.clone();
            inbox.check()?;
            self.read_on()?;
            if self.reads.is_empty() {
                inbox.news().await;
                continue;
            }
            let answer = tokio::select! {
                biased;
                () = inbox.news() => continue,
                answer = self.reads.next() => answer,
            };
            let Some(answer) = answer else { continue };
            let mut changes = vec![self.change(answer)?];
            // Those that are there as well go along.
            while let Some(Some(answer)) = self.reads.next().now_or_never() {
                changes.push(self.change(answer)?);
            }
            return Ok(Update::Changes { changes, position: None });
        }
    }

    /// Starts reading the keys that are next.
    fn read_on(&mut self) -> Result<()> {
        while self.reads.len() < IN_FLIGHT {
            let Some(key) = self.following.inbox.next() else { break };
            let session = self.session.upgrade().ok_or(Error::Closed)?;
            let limits = self.following.limits.clone();
            let read = async move {
                let _turn = limits.requests.acquire().await;
                let pair = session.read(&key, Consistency::Stale).await;
                (key, pair)
            };
            self.reads.push_back(read.boxed_local());
        }
        Ok(())
    }

    fn change(&self, (key, pair): (Key, Result<Option<KvPair>>)) -> Result<Change> {
        self.following.inbox.done(&key);
        Ok(match pair? {
            Some(pair) => Change::Put(pair),
            None => Change::Delete { key, version: None },
        })
    }
}
