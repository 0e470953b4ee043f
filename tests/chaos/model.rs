//! What a group of keys may answer: the sequential specification that histories are compared with.

use std::cell::Cell;
use std::collections::HashSet;
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

/// A call as the checker sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Its answer is known.
    Answered(Call),
    /// A write whose answer was lost, and which of its like it is: of those that do the same to the same keys the one that was called
    /// first is as good as any other, so that only their number matters and not which of them were made.
    Lost { call: Call, like: usize, number: usize },
    /// All is over: what was lost and not made until now was never made.
    End,
}

/// A group of keys at a moment, and how it came about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    keys: [Option<Value>; KEYS],
    /// How many lost writes of each kind were made.
    made: Vec<usize>,
    ended: bool,
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

    /// Whether a key has one of these values afterwards.
    pub fn sets_any(&self, values: &HashSet<Value>) -> bool {
        match self {
            Call::Read { .. } => false,
            Call::Write { sets, .. } => {
                sets.iter().any(|(_, value)| value.is_some_and(|value| values.contains(&value)))
            }
        }
    }

    /// The same call, writing other values.
    pub fn writing(mut self, instead: impl Fn(Value) -> Value) -> Call {
        if let Call::Write { sets, .. } = &mut self {
            sets.iter_mut().for_each(|(_, value)| *value = value.map(&instead));
        }
        self
    }
}

impl Check {
    /// The value that it expects.
    pub fn value(self) -> Option<Value> {
        match self {
            Check::Exists => None,
            Check::Is(value) => value,
        }
    }

    fn holds(self, now: Option<Value>) -> bool {
        match self {
            Check::Exists => now.is_some(),
            Check::Is(value) => now == value,
        }
    }
}

/// A group of keys, none of which is there at first.
pub struct Keys;

/// How many steps a search may take: a minute of them, and some gigabytes.
const STEPS: u64 = 10_000_000;

thread_local! {
    static STEPS_LEFT: Cell<u64> = const { Cell::new(STEPS) };
}

impl Keys {
    /// Runs a search on this thread. `None` where it took too long: then it says nothing.
    pub fn search<T>(search: impl FnOnce() -> T) -> Option<T> {
        Keys::search_for(STEPS, search)
    }

    fn search_for<T>(steps: u64, search: impl FnOnce() -> T) -> Option<T> {
        STEPS_LEFT.set(steps);
        let found = search();
        (STEPS_LEFT.get() > 0).then_some(found)
    }
}

impl Specification for Keys {
    type State = State;
    type Operation = Step;

    fn init() -> State {
        State::default()
    }

    fn apply(step: &Step, state: &State) -> (bool, State) {
        let left = STEPS_LEFT.get().saturating_sub(1);
        STEPS_LEFT.set(left);
        if left == 0 {
            // Nothing goes on from here, which ends the search soon.
            return (false, state.clone());
        }
        match step {
            Step::Answered(call) => state.after_answered(call),
            Step::Lost { .. } if state.ended => (true, state.clone()),
            Step::Lost { call, like, number } => state.after_lost(call, *like, *number),
            Step::End => (true, State { ended: true, ..state.clone() }),
        }
    }
}

impl State {
    fn after_answered(&self, call: &Call) -> (bool, State) {
        match call {
            Call::Read { key, found } => (self.keys[*key] == *found, self.clone()),
            Call::Write { checks, outcome: Outcome::Refused, .. } => (!self.allows(checks), self.clone()),
            Call::Write { checks, sets, .. } => (self.allows(checks), self.with(sets)),
        }
    }

    /// What changes nothing needn't be thought of as made.
    fn after_lost(&self, call: &Call, like: usize, number: usize) -> (bool, State) {
        let (possible, mut after) = self.after_answered(call);
        let made = self.made.get(like).copied().unwrap_or(0);
        if !possible || made != number || after.keys == self.keys {
            return (false, after);
        }
        after.made.resize(after.made.len().max(like + 1), 0);
        after.made[like] += 1;
        (true, after)
    }

    fn allows(&self, checks: &[(usize, Check)]) -> bool {
        checks.iter().all(|(key, check)| check.holds(self.keys[*key]))
    }

    fn with(&self, sets: &[(usize, Option<Value>)]) -> State {
        let mut after = self.clone();
        sets.iter().for_each(|(key, value)| after.keys[*key] = *value);
        after
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use todc_utils::{Action, History, WGLChecker};

    #[test]
    fn a_search_that_takes_too_long_says_nothing() {
        let put = Step::Answered(Call::Write { checks: vec![], sets: vec![(0, Some(1))], outcome: Outcome::Made });
        let actions =
            (0..5).flat_map(|number| [(number, Action::Call(put.clone())), (number, Action::Response(put.clone()))]);
        let history = History::from_actions(actions.collect());
        let search = || WGLChecker::<Keys>::is_linearizable(history.clone());
        assert_eq!(Keys::search_for(100, search), Some(true));
        assert_eq!(Keys::search_for(3, search), None);
    }
}
