//! What a group of keys may answer: the sequential specification that histories are compared with.

use todc_utils::Specification;

/// Keys that transactions change together, and whose history is therefore checked together.
pub const KEYS: usize = 2;

/// What was written: no two writes of a run have the same value.
pub type Value = u64;

/// One call on a group of keys, with its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A read and what it found.
    Read { key: usize, found: Option<Value> },
    /// A put, delete, atomic_put, atomic_delete or txn.
    Write {
        /// All must hold for the write to be made.
        checks: Vec<(usize, Check)>,
        /// The keys as they are afterwards; none: deleted.
        sets: Vec<(usize, Option<Value>)>,
        outcome: Outcome,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    Exists,
    /// The key has this value, or is absent.
    Is(Option<Value>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Made,
    /// The checks didn't hold.
    Refused,
    /// The answer was lost: it may have been made, at any time after the call, or never.
    Unknown,
}

impl Call {
    pub fn is_write(&self) -> bool {
        matches!(self, Call::Write { .. })
    }

    pub fn is_unknown(&self) -> bool {
        matches!(self, Call::Write { outcome: Outcome::Unknown, .. })
    }
}

impl Check {
    fn holds(self, now: Option<Value>) -> bool {
        match self {
            Check::Exists => now.is_some(),
            Check::Is(value) => now == value,
        }
    }
}

/// A group of keys, none of which is there at first.
pub struct Keys;

impl Specification for Keys {
    type State = [Option<Value>; KEYS];
    type Operation = Call;

    fn init() -> Self::State {
        [None; KEYS]
    }

    fn apply(call: &Call, state: &Self::State) -> (bool, Self::State) {
        match call {
            Call::Read { key, found } => (state[*key] == *found, *state),
            Call::Write { checks, sets, outcome } => {
                let holds = checks.iter().all(|(key, check)| check.holds(state[*key]));
                let possible = match outcome {
                    Outcome::Made => holds,
                    Outcome::Refused => !holds,
                    // What was never made is as good as made after everything else.
                    Outcome::Unknown => true,
                };
                let mut after = *state;
                if holds {
                    sets.iter().for_each(|(key, value)| after[*key] = *value);
                }
                (possible, after)
            }
        }
    }
}
