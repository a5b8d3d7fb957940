//! Wall-clock time through a seam. Spans of time are measured with `tokio::time`, which tests can make virtual.

use jiff::{SignedDuration, Timestamp};
use std::fmt;
use tokio::time::Instant;

/// Tells the wall-clock time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The time of day, UTC.
    fn now(&self) -> Timestamp;
}

/// The clock of the machine.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A clock that starts at a fixed moment and goes as fast as `tokio::time`: under paused time it is virtual.
#[derive(Debug, Clone, Copy)]
pub struct VirtualClock {
    origin: Timestamp,
    started: Instant,
}

impl VirtualClock {
    /// A clock that shows `origin` now. Call it inside a tokio runtime.
    #[must_use]
    pub fn starting_at(origin: Timestamp) -> Self {
        Self { origin, started: Instant::now() }
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        let elapsed = SignedDuration::try_from(self.started.elapsed()).unwrap_or(SignedDuration::MAX);
        self.origin.saturating_add(elapsed).unwrap_or(Timestamp::MAX)
    }
}
