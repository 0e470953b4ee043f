//! Locks as their holders see them: what is asked for, what is held, and how a holder hears that it holds no more.

mod event;
mod guard;
mod hold;
mod tenure;

pub use event::{LockEvent, LockEvents};
pub(crate) use guard::{Ending, Owner, guarded, lost, publish};
pub use guard::{LockGuard, LockOptions};
pub(crate) use hold::{Hold, LockState};
pub(crate) use tenure::{InDoubt, Tenure, TenureState};
