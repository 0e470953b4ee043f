//! Watching keys and directories: what subscribers hold and get.

mod event;
mod queue;
mod stream;

pub(crate) use event::{Event, News};
pub use event::{TreeEvent, WatchEvent};
pub(crate) use queue::Queue;
pub(crate) use stream::{Departures, Events};
pub use stream::{Lists, Subscription, TreeStream, WatchStream};
