//! All who follow something in a session, and the watches that serve them: one for each path, however many follow the key
//! or the directory there.
//!
//! After a reconnection nothing is armed on the server any more, and what happened meanwhile was told to nobody: with the
//! first word of a change of the session every follower fails. They come back when the link is up.

use super::arm::{Arm, Keeper, Reach, User};
use super::inbox::Inbox;
use super::path;
use super::session::Session;
use crate::backend::Target;
use crate::error::Error;
use crate::key::{Dir, Key};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, spawn_local};

/// How many requests for one znode all watches together have on their way.
const REQUESTS: usize = 64;

/// How many trees are walked at once for watches.
const WALKS: usize = 2;

/// The most bytes that the armed paths may have together. With more than 128 KiB the client library can't reconnect: it
/// sends the paths in several requests of one number, and takes the second answer for an error. What doesn't fit is watched
/// by one watch of the whole namespace.
const MAX_PATH_BYTES: usize = 64 * 1024;

/// All watches of a session.
pub(super) struct Hub {
    table: RefCell<Table>,
    limits: Rc<Limits>,
}

/// What keeps watches from crowding out the calls.
pub(super) struct Limits {
    pub(super) requests: Semaphore,
    pub(super) walks: Semaphore,
}

#[derive(Default)]
struct Table {
    /// Those who follow a target, by its znode.
    followers: HashMap<String, Vec<Rc<Inbox>>>,
    /// The watches, by znode.
    arms: HashMap<String, Arm>,
    path_bytes: usize,
}

/// Somebody follows a target, until this is dropped.
pub(super) struct Following {
    pub(super) inbox: Rc<Inbox>,
    pub(super) limits: Rc<Limits>,
    hub: Weak<Hub>,
    /// The znode of the target.
    path: String,
    /// The znode of the watch that serves it.
    arm: String,
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.table.borrow_mut().leave(self);
        }
    }
}

impl Hub {
    pub(super) fn new() -> Rc<Self> {
        let limits = Limits { requests: Semaphore::new(REQUESTS), walks: Semaphore::new(WALKS) };
        Rc::new(Hub { table: RefCell::default(), limits: Rc::new(limits) })
    }

    /// Has the server tell of changes at `target`, from when the inbox says that the watch stands.
    pub(super) fn follow(self: &Rc<Self>, session: &Rc<Session>, target: &Target) -> Following {
        let path = match target {
            Target::Key(key) | Target::Lock(key) => session.paths.key(key),
            Target::Tree(dir) => session.paths.dir(dir),
        };
        let inbox = Rc::new(Inbox::new(target.clone()));
        let mut table = self.table.borrow_mut();
        let (arm, reach) = match table.has_room(&path) {
            true => (path.clone(), Reach::of(target)),
            false => (session.paths.dir(&Dir::root()), Reach::Tree),
        };
        let user = User { inbox: inbox.clone(), reach };
        match table.arms.get_mut(&arm) {
            Some(standing) => standing.join(user),
            None => table.arm(arm.clone(), user, |wanted| self.spawn(session.clone(), arm.clone(), wanted)),
        }
        table.followers.entry(path.clone()).or_default().push(inbox.clone());
        Following { inbox, limits: self.limits.clone(), hub: Rc::downgrade(self), path, arm }
    }

    /// Ends all watches.
    pub(super) fn fail_all(&self, error: &Error) {
        let table = self.table.take();
        table.followers.values().flatten().for_each(|inbox| inbox.fail(error.clone()));
    }

    /// Starts the task that keeps a watch.
    fn spawn(self: &Rc<Self>, session: Rc<Session>, path: String, wanted: watch::Receiver<Reach>) -> AbortHandle {
        let keeper = Keeper { hub: Rc::downgrade(self), limits: self.limits.clone(), session, path, wanted };
        spawn_local(keeper.keep()).abort_handle()
    }

    /// The watch at `path` stands and reaches this far, or doesn't stand for now.
    pub(super) fn stands(&self, path: &str, reach: Option<Reach>) {
        if let Some(arm) = self.table.borrow_mut().arms.get_mut(path) {
            arm.stands(reach);
        }
    }

    /// Tells those whom it may concern that something happened to the znode of `key`.
    pub(super) fn tell(&self, path: &str, key: &Key) {
        self.table.borrow().route(path, key);
    }

    /// The watch at `path` can't be armed.
    pub(super) fn fail(&self, path: &str, error: &Error) {
        let arm = self.table.borrow_mut().disarm(path);
        if let Some(arm) = arm {
            arm.fail(error);
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.fail_all(&Error::unreachable("the ZooKeeper session was given up"));
    }
}

impl Table {
    fn has_room(&self, path: &str) -> bool {
        self.arms.contains_key(path) || self.path_bytes + path.len() <= MAX_PATH_BYTES
    }

    fn arm(&mut self, path: String, user: User, spawn: impl FnOnce(watch::Receiver<Reach>) -> AbortHandle) {
        self.path_bytes += path.len();
        self.arms.insert(path, Arm::new(user, spawn));
    }

    fn disarm(&mut self, path: &str) -> Option<Arm> {
        let arm = self.arms.remove(path)?;
        self.path_bytes -= path.len();
        Some(arm)
    }

    fn leave(&mut self, following: &Following) {
        let is_other = |inbox: &Rc<Inbox>| !Rc::ptr_eq(inbox, &following.inbox);
        if let Some(inboxes) = self.followers.get_mut(&following.path) {
            inboxes.retain(is_other);
            if inboxes.is_empty() {
                self.followers.remove(&following.path);
            }
        }
        let Some(arm) = self.arms.get_mut(&following.arm) else { return };
        if !arm.leave(&following.inbox) {
            self.disarm(&following.arm);
        }
    }

    fn route(&self, path: &str, key: &Key) {
        let at = self.followers.get(path).into_iter().flatten();
        at.filter(|inbox| Reach::of(&inbox.target) == Reach::Node).for_each(|inbox| inbox.mark(key));
        let above = path::ancestors(path).chain(["/"]).filter_map(|above| self.followers.get(above)).flatten();
        above.filter(|inbox| Reach::of(&inbox.target) == Reach::Tree).for_each(|inbox| inbox.mark(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    fn tree(text: &str) -> Target {
        Target::Tree(Dir::parse(text).unwrap())
    }

    #[test]
    fn an_event_reaches_those_whom_it_concerns() {
        let mut table = Table::default();
        let mut follow = |path: &str, target: Target| {
            let inbox = Rc::new(Inbox::new(target));
            table.followers.entry(path.to_owned()).or_default().push(inbox.clone());
            inbox
        };
        let (own, beside) = (follow("/n/a", Target::Key(key("a"))), follow("/n/b", Target::Key(key("b"))));
        let beneath = follow("/n/a/b", Target::Key(key("a/b")));
        let (same, sibling) = (follow("/n/a", tree("a")), follow("/n/ab", tree("ab")));
        let (above, namespace, root) = (follow("/n/a", tree("a")), follow("/n", tree("")), follow("/", tree("")));
        table.route("/n/a", &key("a"));
        for (inbox, told) in [(&own, true), (&namespace, true), (&root, true), (&beside, false), (&beneath, false)] {
            assert_eq!(inbox.next(), told.then(|| key("a")), "{:?}", inbox.target);
        }
        assert_eq!((same.next(), sibling.next(), above.next()), (None, None, None), "no key of its own tree");
        table.route("/n/a/b", &key("a/b"));
        assert_eq!((beneath.next(), above.next(), same.next()), (Some(key("a/b")), Some(key("a/b")), Some(key("a/b"))));
        assert_eq!((own.next(), sibling.next()), (None, None));
    }

    #[test]
    fn paths_have_room_up_to_a_bound() {
        let mut table = Table { path_bytes: MAX_PATH_BYTES - 5, ..Table::default() };
        assert!(table.has_room("/n/ab"));
        assert!(!table.has_room("/n/abc"));
        table.path_bytes = 0;
        assert!(table.disarm("/n/ab").is_none());
        assert!(table.has_room("/n/abc"));
    }
}
