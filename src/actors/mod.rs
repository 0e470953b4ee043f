//! The actors and tasks of a store; all of them live on one thread.

pub(crate) mod connection;
mod contender;
pub(crate) mod election;
pub(crate) mod errand;
mod grants;
pub(crate) mod lease;
pub(crate) mod lock;
pub(crate) mod locks;
pub(crate) mod registration;
mod view;
mod watcher;
pub(crate) mod watchers;
