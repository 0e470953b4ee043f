//! One watch on the server, and its users.
//!
//! The server keeps one persistent watch for each path and session, in the mode asked for last; and removing a watch removes
//! it for the whole session. So all who need one at a path share an [`Arm`]: it reaches as far as one of them needs, and
//! where that changes it is armed anew. Whoever needs it to reach far is the reason for that and comes or goes with it;
//! those who follow the key itself outlast the change, and read again what may have happened meanwhile.

use super::contender;
use super::errors;
use super::hub::{Hub, Limits};
use super::inbox::Inbox;
use super::session::Session;
use crate::backend::Target;
use crate::error::Error;
use std::rc::{Rc, Weak};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use zookeeper_client::{AddWatchMode, Error as Failure, EventType, PersistentWatcher, SessionState};

/// How far a watch reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    Node,
    Tree,
}

impl Reach {
    pub(super) fn of(target: &Target) -> Self {
        match target {
            Target::Key(_) | Target::Lock(_) => Reach::Node,
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

/// One watch on the server.
pub(super) struct Arm {
    users: Vec<User>,
    wanted: watch::Sender<Reach>,
    /// How far the watch reaches; none while it isn't armed.
    standing: Option<Reach>,
    task: AbortHandle,
}

pub(super) struct User {
    pub(super) inbox: Rc<Inbox>,
    pub(super) reach: Reach,
}

impl Drop for Arm {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Arm {
    /// A watch for this user. `spawn` starts the task that keeps it, as far as is wanted.
    pub(super) fn new(user: User, spawn: impl FnOnce(watch::Receiver<Reach>) -> AbortHandle) -> Self {
        let (wanted, wanted_by_task) = watch::channel(user.reach);
        Arm { users: vec![user], wanted, standing: None, task: spawn(wanted_by_task) }
    }

    pub(super) fn join(&mut self, user: User) {
        self.users.push(user);
        self.want();
        if let (true, Some(user)) = (self.standing == Some(*self.wanted.borrow()), self.users.last()) {
            user.inbox.stand();
        }
    }

    /// A user is gone. `false`: it was the last.
    pub(super) fn leave(&mut self, inbox: &Rc<Inbox>) -> bool {
        self.users.retain(|user| !Rc::ptr_eq(&user.inbox, inbox));
        self.want();
        !self.users.is_empty()
    }

    pub(super) fn fail(self, error: &Error) {
        self.users.iter().for_each(|user| user.inbox.fail(error.clone()));
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

    pub(super) fn stands(&mut self, reach: Option<Reach>) {
        self.standing = reach;
        if reach == Some(*self.wanted.borrow()) {
            self.users.iter().for_each(|user| user.inbox.stand_anew());
        }
    }
}

/// Keeps one watch on the server, and tells the hub what it hears.
pub(super) struct Keeper {
    pub(super) hub: Weak<Hub>,
    pub(super) limits: Rc<Limits>,
    pub(super) session: Rc<Session>,
    pub(super) path: String,
    pub(super) wanted: watch::Receiver<Reach>,
}

impl Drop for Keeper {
    /// Where the task ended by itself, which only a panic can make it do, nobody must go on waiting for it.
    fn drop(&mut self) {
        self.fail(&Error::unreachable("the task that listens to ZooKeeper has failed"));
    }
}

impl Keeper {
    pub(super) async fn keep(mut self) {
        while self.is_wanted() {
            let reach = *self.wanted.borrow_and_update();
            let armed = self.arm(reach).await;
            let mut watcher = match armed {
                Ok(watcher) => watcher,
                Err(failure) => return self.fail(&errors::of_watch(&self.session.servers, failure)),
            };
            self.stands(Some(reach));
            self.listen(&mut watcher, reach).await;
            // The watcher goes before another is asked for: a server that keeps both modes would keep both.
            self.stands(None);
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
                    // Of children too: where contenders come and go, a lock changes hands.
                    _ => self.tell(contender::subject(&event.path)),
                },
            }
        }
    }

    /// The hub, if it still has this watch: at the same path it may have another by now.
    fn hub(&self) -> Option<Rc<Hub>> {
        self.hub.upgrade().filter(|_| self.is_wanted())
    }

    fn stands(&self, reach: Option<Reach>) {
        if let Some(hub) = self.hub() {
            hub.stands(&self.path, reach);
        }
    }

    fn tell(&self, path: &str) {
        if let (Some(hub), Some(key)) = (self.hub(), self.session.paths.read(path)) {
            hub.tell(path, &key);
        }
    }

    fn fail(&self, error: &Error) {
        if let Some(hub) = self.hub() {
            hub.fail(&self.path, error);
        }
    }

    fn give_up(&self, state: SessionState) {
        if let Some(hub) = self.hub() {
            hub.fail_all(&errors::of_state(&self.session.servers, state));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Dir, Key};
    use futures_util::FutureExt;

    fn user(target: Target) -> User {
        User { reach: Reach::of(&target), inbox: Rc::new(Inbox::new(target)) }
    }

    fn of_key() -> User {
        user(Target::Key(Key::parse("a").unwrap()))
    }

    fn of_tree() -> User {
        user(Target::Tree(Dir::parse("a").unwrap()))
    }

    fn arm(user: User) -> (Arm, watch::Receiver<Reach>) {
        let mut wanted = None;
        let arm = Arm::new(user, |receiver| {
            wanted = Some(receiver);
            tokio::spawn(async {}).abort_handle()
        });
        (arm, wanted.unwrap())
    }

    fn stands(inbox: &Inbox) -> bool {
        inbox.standing().now_or_never().is_some_and(|standing| standing.is_ok())
    }

    #[tokio::test]
    async fn a_watch_reaches_as_far_as_one_of_its_users_needs() {
        let (key, tree) = (of_key(), of_tree());
        let (key_inbox, tree_inbox) = (key.inbox.clone(), tree.inbox.clone());
        let (mut arm, wanted) = arm(key);
        arm.stands(Some(Reach::Node));
        assert!(stands(&key_inbox));
        arm.join(tree);
        assert_eq!(*wanted.borrow(), Reach::Tree);
        assert!(!stands(&tree_inbox), "the server isn't asked yet");
        arm.stands(None);
        arm.stands(Some(Reach::Tree));
        assert!(stands(&tree_inbox));
        assert!(key_inbox.next().is_some(), "the watch did not stand for a moment");
        assert!(arm.leave(&tree_inbox));
        assert_eq!(*wanted.borrow(), Reach::Node);
        assert!(!arm.leave(&key_inbox));
    }

    #[tokio::test]
    async fn nobody_is_told_of_a_watch_that_is_being_armed_anew() {
        let (key, tree, late) = (of_key(), of_tree(), of_tree());
        let (tree_inbox, late_inbox) = (tree.inbox.clone(), late.inbox.clone());
        let (mut arm, _wanted) = arm(key);
        arm.join(tree);
        arm.stands(Some(Reach::Tree));
        arm.leave(&tree_inbox);
        arm.stands(None);
        arm.join(late);
        assert!(!stands(&late_inbox), "it would read before the watch stands");
        arm.stands(Some(Reach::Node));
        assert!(!stands(&late_inbox));
        arm.stands(Some(Reach::Tree));
        assert!(stands(&late_inbox));
    }

    #[tokio::test]
    async fn a_change_of_mind_needs_no_new_watch() {
        let (key, second, tree) = (of_key(), of_key(), of_tree());
        let (second_inbox, tree_inbox) = (second.inbox.clone(), tree.inbox.clone());
        let (mut arm, _wanted) = arm(key);
        arm.stands(Some(Reach::Node));
        arm.join(tree);
        arm.join(second);
        assert!(!stands(&second_inbox), "it is about to be armed anew");
        arm.leave(&tree_inbox);
        assert!(stands(&second_inbox), "it isn't any more");
    }
}
