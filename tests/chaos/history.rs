//! [`History`]: what clients called and what they were answered, and whether a store can have answered so.

use super::model::{Call, Check, Keys, Outcome, Step, Value};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use todc_utils::{Action, WGLChecker};

/// The calls of one run.
pub struct History {
    begun: Instant,
    next_value: AtomicU64,
    groups: Mutex<BTreeMap<usize, Vec<Record>>>,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Record {
    /// Who called: each client has one call at a time.
    pub client: usize,
    pub called: Duration,
    /// When the answer was there; never where it was lost.
    pub answered: Option<Duration>,
    pub call: Call,
}

/// What is asked of a store's reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Each tells of every write that was answered before it.
    Linearizable,
    /// They may tell of an earlier time, but to one client never of an earlier one than before. And where a key is deleted while a
    /// write on a version of it is on its way, that write may hit what was made in the key's place.
    Monotonic,
}

impl History {
    pub fn new() -> Self {
        History { begun: Instant::now(), next_value: AtomicU64::new(1), groups: Mutex::default() }
    }

    /// A value that nothing else of this run has.
    pub fn value(&self) -> Value {
        self.next_value.fetch_add(1, Ordering::Relaxed)
    }

    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub fn add(&self, group: usize, record: Record) {
        self.groups.lock().unwrap().entry(group).or_default().push(record);
    }

    /// How many calls were answered, and how many answers were lost.
    pub fn count(&self) -> (u64, u64) {
        let groups = self.groups.lock().unwrap();
        let records = groups.values().flatten();
        records.fold((0, 0), |(known, lost), record| match record.answered {
            Some(_) => (known + 1, lost),
            None => (known, lost + 1),
        })
    }

    /// The first group whose history no store of this kind can have made, with that history.
    pub fn check(&self, reads: Reads) -> Result<(), String> {
        let groups = self.groups.lock().unwrap();
        groups.iter().try_for_each(|(group, records)| check_group(*group, records, reads))
    }
}

fn check_group(group: usize, records: &[Record], reads: Reads) -> Result<(), String> {
    let fits = match reads {
        Reads::Linearizable => is_linearizable(records),
        Reads::Monotonic => {
            let writes: Vec<Record> = records.iter().filter(|record| record.call.is_write()).cloned().collect();
            let writes: Vec<Record> = writes.iter().map(|write| with_window(write, &writes)).collect();
            is_linearizable(&writes).map(|is| is && reads_go_forward(records))
        }
    };
    match fits {
        Some(true) => Ok(()),
        Some(false) => Err(format!("group {group} is not {reads:?}:\n{}", told(records))),
        None => Err(format!("whether group {group} is {reads:?} takes too long to say:\n{}", told(records))),
    }
}

/// Whether some order of the calls explains all answers; `None` where that takes too long to say.
fn is_linearizable(records: &[Record]) -> Option<bool> {
    // A lost write that nobody heard of may be thought of as never made. Where that explains everything there is no need to look at
    // all the moments at which it may have been made instead, which are very many.
    let mentioned = mentioned(records);
    let (heard_of, unheard_of): (Vec<&Record>, Vec<&Record>) =
        records.iter().partition(|record| !record.call.is_unknown() || record.call.sets_any(&mentioned));
    match explained(&heard_of, &mentioned) {
        Some(true) => Some(true),
        found if unheard_of.is_empty() => found,
        _ => explained(&records.iter().collect::<Vec<_>>(), &mentioned),
    }
}

fn explained(records: &[&Record], mentioned: &HashSet<Value>) -> Option<bool> {
    // Calls before answers where the clock tells no difference: that allows more, never less. The number tells them apart, as
    // the checker wants one call at a time of each process.
    let mut actions = Vec::with_capacity(records.len() * 2 + 2);
    let mut begin_and_end = |called, answered, step: Step| {
        let number = actions.len();
        actions.push(((called, 0), (number, Action::Call(step.clone()))));
        actions.push(((answered, 1), (number, Action::Response(step))));
    };
    for (record, step) in records.iter().zip(steps(records, mentioned)) {
        begin_and_end(record.called, record.answered.unwrap_or(Duration::MAX), step);
    }
    begin_and_end(Duration::MAX, Duration::MAX, Step::End);
    actions.sort_by_key(|(at, _)| *at);
    let actions = actions.into_iter().map(|(_, action)| action).collect();
    Keys::search(|| WGLChecker::<Keys>::is_linearizable(todc_utils::History::from_actions(actions)))
}

/// What values nobody mentions are to the checker: all the same.
const UNMENTIONED: Value = 0;

/// The calls as the checker is to see them. There are as few different ones as can be, as it looks at all orders of those that are.
fn steps(records: &[&Record], mentioned: &HashSet<Value>) -> Vec<Step> {
    let mut numbers: Vec<usize> = (0..records.len()).collect();
    numbers.sort_by_key(|number| records[*number].called);
    // The kinds of lost writes, and how many there are of each.
    let mut kinds: Vec<(Call, usize)> = Vec::new();
    let mut steps = vec![Step::End; records.len()];
    for number in numbers {
        let written = |value| if mentioned.contains(&value) { value } else { UNMENTIONED };
        let call = records[number].call.clone().writing(written);
        if !call.is_unknown() {
            steps[number] = Step::Answered(call);
            continue;
        }
        let like = kinds.iter().position(|(kind, _)| *kind == call).unwrap_or_else(|| {
            kinds.push((call.clone(), 0));
            kinds.len() - 1
        });
        steps[number] = Step::Lost { call, like, number: kinds[like].1 };
        kinds[like].1 += 1;
    }
    steps
}

/// The write, for which any incarnation of a key will do that somebody deleted meanwhile.
fn with_window(write: &Record, writes: &[Record]) -> Record {
    let mut write = write.clone();
    let (called, answered) = (write.called, write.answered.unwrap_or(Duration::MAX));
    let meanwhile = |other: &&Record| other.called <= answered && other.answered.is_none_or(|at| called <= at);
    let deletes =
        |key| move |other: &Record| matches!(&other.call, Call::Write { sets, .. } if sets.contains(&(key, None)));
    if let Call::Write { checks, outcome: Outcome::Made, .. } = &mut write.call {
        for (key, check) in checks {
            let is_deleted = writes.iter().filter(meanwhile).any(deletes(*key));
            if matches!(check, Check::Is(Some(_))) && is_deleted {
                *check = Check::Exists;
            }
        }
    }
    write
}

/// The values that somebody read or expected somewhere.
fn mentioned(records: &[Record]) -> HashSet<Value> {
    let mentioned = records.iter().flat_map(|record| match &record.call {
        Call::Read { found, .. } => vec![*found],
        Call::Write { checks, .. } => checks.iter().map(|(_, check)| check.value()).collect(),
    });
    mentioned.flatten().collect()
}

/// Whether each read tells of something that was written, and what one client reads never goes back behind a write whose
/// answer it had itself.
fn reads_go_forward(records: &[Record]) -> bool {
    let mut written = HashMap::new();
    for record in records {
        if let Call::Write { sets, .. } = &record.call {
            written.extend(sets.iter().filter_map(|(key, value)| Some(((*key, (*value)?), record))));
        }
    }
    let mut latest: HashMap<(usize, usize), Duration> = HashMap::new();
    let mut in_order: Vec<&Record> = records.iter().collect();
    in_order.sort_by_key(|record| record.called);
    in_order.into_iter().all(|record| {
        let Call::Read { key, found: Some(value) } = &record.call else { return true };
        let Some(write) = written.get(&(*key, *value)) else { return false };
        let Some(made_before) = write.answered else { return true };
        let latest = latest.entry((record.client, *key)).or_default();
        // What this write was certainly over before can't be seen after something later was.
        let goes_back = made_before < *latest;
        *latest = (*latest).max(write.called);
        record.answered.is_some_and(|answered| write.called <= answered) && !goes_back
    })
}

fn told(records: &[Record]) -> String {
    let mut in_order: Vec<&Record> = records.iter().collect();
    in_order.sort_by_key(|record| record.called);
    in_order.into_iter().fold(String::new(), |mut text, Record { client, called, answered, call }| {
        let answered = answered.map_or_else(|| "lost".to_owned(), |at| format!("{at:?}"));
        let _ = writeln!(text, "  client {client}, {called:?} to {answered}: {call:?}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(client: usize, from: u64, to: impl Into<Option<u64>>, call: Call) -> Record {
        let answered = to.into().map(Duration::from_millis);
        Record { client, called: Duration::from_millis(from), answered, call }
    }

    fn read(found: impl Into<Option<Value>>) -> Call {
        Call::Read { key: 0, found: found.into() }
    }

    fn write(checks: Vec<(usize, Check)>, value: impl Into<Option<Value>>, outcome: Outcome) -> Call {
        Call::Write { checks, sets: vec![(0, value.into())], outcome }
    }

    fn put(value: Value) -> Call {
        write(vec![], value, Outcome::Made)
    }

    fn check(records: &[Record], reads: Reads) -> bool {
        check_group(0, records, reads).is_ok()
    }

    #[test]
    fn a_read_must_tell_of_the_last_write() {
        let stale = [record(0, 0, 1, put(1)), record(0, 2, 3, put(2)), record(1, 4, 5, read(1))];
        assert!(!check(&stale, Reads::Linearizable));
        assert!(check(&stale, Reads::Monotonic));
        let at_once = [record(0, 0, 1, put(1)), record(0, 2, 6, put(2)), record(1, 4, 5, read(1))];
        assert!(check(&at_once, Reads::Linearizable));
    }

    #[test]
    fn reads_of_one_client_go_forward() {
        let writes = [record(0, 0, 1, put(1)), record(0, 2, 3, put(2))];
        let two =
            |first, second| [record(1, 4, 5, read(1)), record(second, 6, 7, read(2)), record(first, 8, 9, read(1))];
        let history = |reads: [Record; 3]| writes.iter().cloned().chain(reads).collect::<Vec<_>>();
        assert!(check(&history(two(1, 2)), Reads::Monotonic));
        assert!(!check(&history(two(2, 2)), Reads::Monotonic));
        assert!(!check(&[record(0, 0, 1, read(9))], Reads::Monotonic));
    }

    #[test]
    fn a_lost_write_may_be_made_late_or_never_but_once() {
        let lost = |value| record(0, 0, None, write(vec![], value, Outcome::Unknown));
        let history = |reads: &[Option<Value>]| {
            let reads = reads.iter().zip(2..).map(|(found, at)| record(1, at * 10, at * 10 + 1, read(*found)));
            std::iter::once(lost(7)).chain([record(1, 1, 2, put(1))]).chain(reads).collect::<Vec<_>>()
        };
        assert!(check(&history(&[Some(1), Some(1)]), Reads::Linearizable));
        assert!(check(&history(&[Some(1), Some(7)]), Reads::Linearizable));
        assert!(!check(&history(&[Some(7), Some(1)]), Reads::Linearizable));
        assert!(!check(&history(&[None, Some(1)]), Reads::Linearizable));
    }

    #[test]
    fn a_lost_write_that_nobody_read_explains_a_refusal() {
        let expects = vec![(0, Check::Is(Some(1)))];
        let refused = record(1, 4, 5, write(expects, 3, Outcome::Refused));
        let lost = record(0, 2, None, write(vec![], 2, Outcome::Unknown));
        assert!(check(&[record(0, 0, 1, put(1)), lost, refused.clone()], Reads::Linearizable));
        assert!(!check(&[record(0, 0, 1, put(1)), refused], Reads::Linearizable));
    }

    #[test]
    fn a_swap_hits_another_incarnation_only_while_the_key_is_deleted() {
        let swap = write(vec![(0, Check::Is(Some(1)))], 3, Outcome::Made);
        let history = |deleted| {
            let delete = record(2, 2, deleted, write(vec![(0, Check::Exists)], None, Outcome::Made));
            let again = record(2, deleted, deleted + 1, put(2));
            [record(0, 0, 1, put(1)), delete, again, record(1, 5, 9, swap.clone()), record(1, 10, 11, read(3))]
        };
        assert!(check(&history(6), Reads::Monotonic) && !check(&history(6), Reads::Linearizable));
        assert!(!check(&history(3), Reads::Monotonic));
    }

    #[test]
    fn two_swaps_of_one_value_do_not_both_win() {
        let swap = |value| write(vec![(0, Check::Is(Some(1)))], value, Outcome::Made);
        let both = [record(0, 0, 1, put(1)), record(1, 2, 9, swap(2)), record(2, 2, 9, swap(3))];
        assert!(!check(&both, Reads::Linearizable) && !check(&both, Reads::Monotonic));
    }

    /// An outage takes the answers of a dozen clients at a time. Which of their writes were made, and when, are very many
    /// possibilities, all of which must be ruled out.
    #[test]
    fn a_contradiction_is_found_among_many_lost_writes() {
        let lost = |number: u64| {
            let value = (!number.is_multiple_of(2)).then_some(1000 + number);
            let key = (number / 2 % 2) as usize;
            let call = Call::Write { checks: vec![], sets: vec![(key, value)], outcome: Outcome::Unknown };
            record(number as usize + 2, number, None, call)
        };
        let lost = (0..32).map(lost);
        let known = (100..120).map(|number| record(0, number * 10, number * 10 + 15, put(number)));
        let read_at = |value: Option<Value>, at| record(1, at, at + 1, read(value));
        let history =
            |reads: &[Record]| lost.clone().chain(known.clone()).chain(reads.iter().cloned()).collect::<Vec<_>>();
        assert!(check(&history(&[read_at(Some(119), 1500), read_at(None, 1502)]), Reads::Linearizable));
        let stale = history(&[read_at(Some(119), 1500), read_at(Some(117), 1502)]);
        assert!(!check(&stale, Reads::Linearizable));
        assert!(!check(&stale, Reads::Monotonic));
    }

    /// Every order of the calls that the clock allows, with and without each of the lost ones.
    fn some_order_explains(left: &[Record], keys: [Option<Value>; 2]) -> bool {
        let first_answer = left.iter().filter_map(|record| record.answered).min();
        let Some(first_answer) = first_answer else { return true };
        (0..left.len()).filter(|next| left[*next].called <= first_answer).any(|next| {
            let mut rest = left.to_vec();
            let record = rest.remove(next);
            let mut after = keys;
            let holds = match &record.call {
                Call::Read { key, found } => keys[*key] == *found,
                Call::Write { checks, sets, outcome } => {
                    let holds = checks.iter().all(|(key, check)| match check {
                        Check::Exists => keys[*key].is_some(),
                        Check::Is(value) => keys[*key] == *value,
                    });
                    if holds && *outcome != Outcome::Refused {
                        sets.iter().for_each(|(key, value)| after[*key] = *value);
                    }
                    holds != (*outcome == Outcome::Refused)
                }
            };
            (holds && some_order_explains(&rest, after))
                || (record.call.is_unknown() && some_order_explains(&rest, keys))
        })
    }

    #[test]
    fn what_the_checker_is_spared_changes_no_verdict() {
        let (mut rng, mut verdicts) = (fastrand::Rng::with_seed(1), [0; 2]);
        for _ in 0..20_000 {
            let mut at = 0;
            let records: Vec<Record> = (1..rng.u64(4..9)).map(|number| random(number, &mut at, &mut rng)).collect();
            let expected = some_order_explains(&records, [None; 2]);
            assert_eq!(is_linearizable(&records), Some(expected), "{}", told(&records));
            verdicts[usize::from(expected)] += 1;
        }
        assert!(verdicts.iter().all(|count| *count > 2_000), "{verdicts:?}");
    }

    /// A call that overlaps with some of those before it, on values that they may have written.
    fn random(number: u64, at: &mut u64, rng: &mut fastrand::Rng) -> Record {
        *at += rng.u64(1..4);
        let (from, key) = (*at, rng.usize(..2));
        let to = from + rng.u64(1..6);
        let known = |rng: &mut fastrand::Rng| rng.bool().then(|| rng.u64(1..number.max(2)));
        if rng.u8(..3) == 0 {
            return record(number as usize, from, to, Call::Read { key, found: known(rng) });
        }
        let check = match rng.u8(..4) {
            0 => Some((key, Check::Exists)),
            1 => Some((rng.usize(..2), Check::Is(known(rng)))),
            _ => None,
        };
        let mut sets = vec![(key, rng.bool().then_some(number))];
        if rng.u8(..4) == 0 {
            sets.push((1 - key, rng.bool().then_some(number)));
        }
        let outcome = match (rng.u8(..4), check) {
            (0 | 1, _) => Outcome::Unknown,
            (2, Some(_)) => Outcome::Refused,
            _ => Outcome::Made,
        };
        let answered = (outcome != Outcome::Unknown).then_some(to);
        record(number as usize, from, answered, Call::Write { checks: check.into_iter().collect(), sets, outcome })
    }
}
