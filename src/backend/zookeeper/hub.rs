//! The watches that a session holds on the server, shared by all who follow something.
//!
//! The server keeps one persistent watch for each path, in the mode asked for last; and removing a watch removes it for the
//! whole session. So there is one [`Arm`] for each path, however many follow the key or the directory there: its mode is
//! the furthest that one of them needs, and where that changes it is armed anew. Only followers of the key itself outlast
//! such a change - the others are why it changes -, and they read again.
//!
//! After a reconnection nothing is armed on the server any more, and what happened meanwhile was told to nobody: with the
//! first word of a change of the session every follower fails. They come back when the link is up.

use super::errors;
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
use zookeeper_client::{AddWatchMode, Error as Failure, EventType, PersistentWatcher, SessionState};

/// How many requests for one znode all watches together have on their way.
const REQUESTS: usize = 64;

/// How many trees are walked at once for watches.
const WALKS: usize = 2;

/// The most bytes that the armed paths may have together. With more than 128 KiB the client library can't reconnect: it
/// sends the paths in several requests of one number, and takes the second answer for an error. What doesn't fit is watched
/// by one watch of the whole namespace.
const MAX_PATH_BYTES: usize = 64 * 1024;

/// How far a watch reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Node,
    Tree,
}

impl Reach {
    fn of(target: &Target) -> Self {
        match target {
            Target::Key(_) => Reach::Node,
            Target::Tree(_) => Reach::Tree,
        }
    }

    fn mode(self) -> AddWatchMode {
        match self {
            Reach::Node => AddWatchMode::Persistent,
            Reach::Tree => AddWatchMode::PersistentRecursive,
        }
    }
}

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

/// One watch on the server.
struct Arm {
    users: Vec<User>,
    wanted: watch::Sender<Reach>,
    standing: Option<Reach>,
    task: AbortHandle,
}

struct User {
    inbox: Rc<Inbox>,
    reach: Reach,
}

impl Drop for Arm {
    fn drop(&mut self) {
        self.task.abort();
    }
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
            Target::Key(key) => session.paths.key(key),
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

    fn stands(&self, path: &str, reach: Reach) {
        if let Some(arm) = self.table.borrow_mut().arms.get_mut(path) {
            arm.stands(reach);
        }
    }

    /// The watch at `path` can't be armed.
    fn fail(&self, path: &str, error: &Error) {
        let arm = self.table.borrow_mut().disarm(path);
        arm.iter().flat_map(|arm| &arm.users).for_each(|user| user.inbox.fail(error.clone()));
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
        let (wanted, wanted_by_task) = watch::channel(user.reach);
        let task = spawn(wanted_by_task);
        self.path_bytes += path.len();
        self.arms.insert(path, Arm { users: vec![user], wanted, standing: None, task });
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
        arm.users.retain(|user| is_other(&user.inbox));
        match arm.users.is_empty() {
            true => drop(self.disarm(&following.arm)),
            false => arm.want(),
        }
    }

    /// Tells those whom it may concern that something happened to the znode of `key`.
    fn route(&self, path: &str, key: &Key) {
        let at = self.followers.get(path).into_iter().flatten();
        at.filter(|inbox| Reach::of(&inbox.target) == Reach::Node).for_each(|inbox| inbox.mark(key));
        let above = path::ancestors(path).chain(["/"]).filter_map(|above| self.followers.get(above)).flatten();
        above.filter(|inbox| Reach::of(&inbox.target) == Reach::Tree).for_each(|inbox| inbox.mark(key));
    }
}

impl Arm {
    fn join(&mut self, user: User) {
        self.users.push(user);
        self.want();
        if let (true, Some(user)) = (self.standing == Some(*self.wanted.borrow()), self.users.last()) {
            user.inbox.stand();
        }
    }

    /// Sees to it that the watch reaches as far as its users need.
    fn want(&mut self) {
        let Some(needed) = self.users.iter().map(|user| user.reach).max() else { return };
        let changed = self.wanted.send_if_modified(|wanted| std::mem::replace(wanted, needed) != needed);
        // It was about to be changed and won't be: those who waited for that needn't.
        if changed && self.standing == Some(needed) {
            self.users.iter().for_each(|user| user.inbox.stand());
        }
    }

    fn stands(&mut self, reach: Reach) {
        self.standing = Some(reach);
        if *self.wanted.borrow() == reach {
            self.users.iter().for_each(|user| user.inbox.stand_anew());
        }
    }
}

/// Keeps one watch on the server, and tells the hub what it hears.
struct Keeper {
    hub: Weak<Hub>,
    limits: Rc<Limits>,
    session: Rc<Session>,
    path: String,
    wanted: watch::Receiver<Reach>,
}

impl Drop for Keeper {
    /// Where the task ended by itself, which only a panic can make it do, nobody must go on waiting for it.
    fn drop(&mut self) {
        if let (true, Some(hub)) = (self.is_wanted(), self.hub.upgrade()) {
            hub.fail(&self.path, &Error::unreachable("the task that listens to ZooKeeper has failed"));
        }
    }
}

impl Keeper {
    async fn keep(mut self) {
        while self.is_wanted() {
            let reach = *self.wanted.borrow_and_update();
            let armed = self.arm(reach).await;
            let Some(hub) = self.hub.upgrade() else { return };
            match armed {
                Ok(mut watcher) => {
                    hub.stands(&self.path, reach);
                    drop(hub);
                    self.listen(&mut watcher, reach).await;
                    // The watcher goes before another is asked for: a server that keeps both modes would keep both.
                }
                Err(failure) => return hub.fail(&self.path, &errors::of_watch(&self.session.servers, failure)),
            }
        }
    }

    /// Whether the hub still has this watch.
    fn is_wanted(&self) -> bool {
        self.wanted.has_changed().is_ok()
    }

    async fn arm(&self, reach: Reach) -> Result<PersistentWatcher, Failure> {
        let _turn = self.limits.requests.acquire().await;
        self.session.client.watch(&self.path, reach.mode()).await
    }

    /// Listens until another reach is wanted, or none.
    async fn listen(&mut self, watcher: &mut PersistentWatcher, reach: Reach) {
        loop {
            tokio::select! {
                biased;
                changed = self.wanted.changed() => {
                    if changed.is_err() || *self.wanted.borrow() != reach {
                        return;
                    }
                }
                event = watcher.changed() => match event.event_type {
                    // The library panics where one goes on listening after a session's last event.
                    EventType::Session => return self.give_up(event.session_state),
                    EventType::NodeChildrenChanged => {}
                    _ => self.tell(&event.path),
                },
            }
        }
    }

    fn tell(&self, path: &str) {
        let Some(hub) = self.hub.upgrade() else { return };
        if let Some(key) = self.session.paths.read(path) {
            hub.table.borrow().route(path, &key);
        }
    }

    fn give_up(&self, state: SessionState) {
        if let Some(hub) = self.hub.upgrade() {
            hub.fail_all(&errors::of_state(&self.session.servers, state));
        }
    }
}
