//! Randomness by seed.

use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A stream of choices that follows from a seed and a name. Clones draw from the same stream.
#[derive(Clone, Debug)]
pub(super) struct Dice(Arc<Mutex<StdRng>>);

impl Dice {
    pub(super) fn new(seed: u64, name: &str) -> Self {
        // FNV-1a: different names give different streams.
        let mark = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed ^ mark))))
    }

    /// True in `percent` of 100 cases.
    pub(super) fn chance(&self, percent: u32) -> bool {
        self.lock().random_range(0..100) < percent
    }

    /// A number below `limit`, which must not be 0.
    pub(super) fn below(&self, limit: usize) -> usize {
        self.lock().random_range(0..limit)
    }

    /// A time span within this range of milliseconds.
    pub(super) fn millis(&self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.lock().random_range(range))
    }

    /// One of these, of which there must be some.
    pub(super) fn pick<'a, T>(&self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn lock(&self) -> MutexGuard<'_, StdRng> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
