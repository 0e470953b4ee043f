//! What a lock is likely to be like, as it was before.
//!
//! A multi that meets a conflict costs the server a sync of its log, as any other, and a look costs a round trip. So it is
//! worth guessing which of the two a lock needs. Nothing rests on a guess: a wrong one costs one request in vain.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many locks are remembered; where there are more, all are forgotten.
const MEMORY: usize = 1024;

/// Those locks, by their paths, of which something was so the last time. Of others it is taken not to be.
#[derive(Debug, Default)]
pub(super) struct Hunch(Mutex<HashSet<String>>);

impl Hunch {
    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was so the last time.
    pub(super) fn says(&self, path: &str) -> bool {
        self.lock().contains(path)
    }

    pub(super) fn learn(&self, path: &str, is_so: bool) {
        let mut so = self.lock();
        if !is_so {
            so.remove(path);
        } else if !so.contains(path) {
            if so.len() >= MEMORY {
                so.clear();
            }
            so.insert(path.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_time_counts_and_not_all_is_remembered() {
        let hunch = Hunch::default();
        assert!(!hunch.says("/a"));
        hunch.learn("/a", true);
        assert!(hunch.says("/a") && !hunch.says("/b"));
        hunch.learn("/a", false);
        assert!(!hunch.says("/a"));
        (0..=MEMORY).for_each(|number| hunch.learn(&format!("/{number}"), true));
        assert!(hunch.says(&format!("/{MEMORY}")) && hunch.lock().len() <= MEMORY);
    }
}
