//! Where a store's actors run.

use crate::error::{Error, Result};
use actix_rt::{Arbiter, System};

/// Runs the future that `start` makes on this thread's actix arbiter, or on a thread of its own where there is none. Such a
/// thread ends with the future.
///
/// # Errors
/// [`Error::Backend`] where no thread can be started.
pub(crate) fn spawn<F>(start: impl FnOnce() -> F + Send + 'static) -> Result<()>
where
    F: Future<Output = ()> + 'static,
{
    // A thread remembers the arbiter of a system that has ended; such a one takes nothing.
    if let Some(arbiter) = Arbiter::try_current().filter(|arbiter| arbiter.alive()) {
        let run = move || {
            actix_rt::spawn(start());
        };
        return match arbiter.spawn_fn(run) {
            true => Ok(()),
            false => Err(Error::backend("the actix arbiter of this thread has just stopped")),
        };
    }
    let thread = std::thread::Builder::new().name("kvactor".into());
    let spawned = thread.spawn(move || System::new().block_on(start()));
    spawned.map(drop).map_err(|error| Error::backend("no thread could be started").with_source(error))
}
