//! The actors and tasks of a store; all of them live on one thread.

pub(crate) mod connection;
pub(crate) mod lease;
mod view;
mod watcher;
pub(crate) mod watchers;
