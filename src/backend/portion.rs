//! How much goes together in one request: as many writes as any server takes at once, and as many reads as make an answer that
//! nobody waits long for.

use super::gather::{Gathered, Job};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most writes that go together, and the most bytes of their values: far below what any server takes at once.
const MAX_WRITES: usize = 64;
const MAX_BYTES: usize = 128 * 1024;
/// The largest value that goes together with others.
pub(crate) const MAX_VALUE: usize = 8 * 1024;

/// Whether a write of so many bytes to this path may join those. No path is written twice in a batch.
pub(crate) fn may_join<A: Gathered>(
    batch: &[Job<A>],
    (path, bytes): (&[u8], usize),
    write: impl Fn(&A) -> (&[u8], usize),
) -> bool {
    let others = || batch.iter().map(|job| write(&job.asked));
    let sum: usize = others().map(|(_, bytes)| bytes).sum();
    batch.len() < MAX_WRITES && sum + bytes <= MAX_BYTES && others().all(|(other, _)| other != path)
}

/// What an answer should have at most, in bytes: it is one packet, and whoever asks for something small waits for all of it.
const ANSWER_BYTES: usize = 1024 * 1024;
/// How many values are read together at most.
pub(crate) const MAX_READS: usize = 128;

/// How large values are, by those that were seen of late, and therefore how many are read together: nobody knows a value's size
/// before it is there.
#[derive(Debug)]
pub(crate) struct Sizes {
    /// The size of the largest, in bytes.
    largest: AtomicUsize,
}

impl Sizes {
    /// Nothing was seen yet: sixteen are a good start.
    pub(crate) fn new() -> Self {
        Sizes { largest: AtomicUsize::new(ANSWER_BYTES / 16) }
    }

    /// How many to read together.
    pub(crate) fn portion(&self) -> usize {
        (ANSWER_BYTES / self.largest.load(Ordering::Relaxed).max(1)).clamp(1, MAX_READS)
    }

    /// These were in one answer. What was larger is forgotten by and by.
    pub(crate) fn learn(&self, sizes: impl Iterator<Item = usize>) {
        let largest = self.largest.load(Ordering::Relaxed);
        let seen = sizes.max().unwrap_or(largest);
        self.largest.store(seen.max(largest - largest / 4), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_portion_follows_the_largest_of_late() {
        let sizes = Sizes::new();
        assert_eq!(sizes.portion(), 16);
        (0..20).for_each(|_| sizes.learn([100, 7].into_iter()));
        assert_eq!(sizes.portion(), MAX_READS);
        sizes.learn([100, 1024 * 1024].into_iter());
        assert_eq!(sizes.portion(), 1);
        sizes.learn([].into_iter());
        (0..4).for_each(|_| sizes.learn([0].into_iter()));
        assert_eq!(sizes.portion(), 3);
    }
}
