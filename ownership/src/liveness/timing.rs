//! The times of liveness, and the proof that they fit together.
//!
//! Counted from s, when the last answered renewal was sent, in true time, from which no clock runs more than ρ apart:
//!
//! ```text
//!   host    s ──── D·(1+ρ) + 1 s ─────▶ reset ───────── W ─────────▶ its last write has landed
//!   store   s ──── L·(1−ρ) − E ─────────▶ the lease ends ── G·(1−ρ) ──▶ its guests run elsewhere
//! ```
//!
//! Who answers may have been deposed and be cut off from the others: it goes on for up to 2E, after which a leader that hears
//! of no majority steps down (raft's `CheckQuorum`), so that the next one was promoted at s − 2E or later. That one gives the
//! lease L + E (etcd 3.7, `server/etcdserver/server.go`, `Promote(ElectionTimeout)`): it ends at s + L − E or later. Without
//! another leader it ends at s + L or later.

use std::fmt;
use std::time::Duration;

/// How far a clock may run from the true time, in parts of a hundred.
const CLOCK_ERROR_PERCENT: u32 = 1;
/// Xen's watchdog counts in whole seconds.
const ROUNDING: Duration = Duration::from_secs(1);
/// How long it may take to take all guarded guests apart.
const DESTRUCTION: Duration = Duration::from_millis(1_400);
/// What is left over for everything that was not thought of.
const MARGIN: Duration = Duration::from_secs(3);
/// How long a write may take to reach the disk that was under way when its host was reset.
const LATE_WRITES: Duration = Duration::from_secs(8);

/// The times of a profile. All but the grace count from when the last answered renewal was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a lease lasts.
    pub lease: Duration,
    /// When the host is reset, unless all that it guards has stopped.
    pub deadline: Duration,
    /// How often the lease is renewed.
    pub renewal: Duration,
    /// How long the controller waits after it has seen the lease gone: for writes that were under way when the host was reset.
    pub grace: Duration,
}

impl Timing {
    /// For networks and storage as they are found.
    pub const DEFAULT: Self = Self {
        lease: Duration::from_secs(30),
        deadline: Duration::from_secs(20),
        renewal: Duration::from_secs(5),
        grace: Duration::from_secs(10),
    };

    /// For networks and storage that are known to be quick.
    pub const FAST: Self = Self {
        lease: Duration::from_secs(15),
        deadline: Duration::from_secs(8),
        renewal: Duration::from_secs(2),
        grace: Duration::from_secs(4),
    };

    /// When the host warns and takes no more guests.
    #[must_use]
    pub fn refuse(&self) -> Duration {
        self.deadline / 2
    }

    /// When guarded guests are paused.
    #[must_use]
    pub fn pause(&self) -> Duration {
        self.deadline * 3 / 5
    }

    /// When guarded guests are destroyed: early enough to take them apart before the host is reset, which spares those that
    /// nobody guards. With the default profile an outage of the store of 10 s ends before that.
    #[must_use]
    pub fn stop(&self) -> Duration {
        (self.deadline * 4 / 5).min(self.deadline.saturating_sub(ROUNDING + DESTRUCTION))
    }

    /// Makes sure that what a host guards has stopped before its lease can end, `D·(1+ρ) + 1 s + 2E + 3 s < L`, and that what it
    /// had under way has landed before its guests can run elsewhere, `D·(1+ρ) + 1 s + W + E < L·(1−ρ) + G·(1−ρ)`.
    ///
    /// D is the deadline, ρ the clock error of 1 %, 1 s the watchdog's rounding, E the store's election timeout (an old leader
    /// may acknowledge renewals for up to two of them after it was cut off, and the new one gives each lease one more than its
    /// time; the first sum has that in reserve), 3 s the margin, L the lease, W the 8 s of late writes, and G the grace.
    ///
    /// # Errors
    /// [`TimingBroken`], with the sum written out.
    pub fn check(&self, election_timeout: Duration) -> Result<(), TimingBroken> {
        let broken = |promise| TimingBroken { timing: *self, election_timeout, promise };
        if self.bound(election_timeout) >= self.lease {
            Err(broken(Promise::StopsInTime))
        } else if self.last_write(election_timeout) >= self.earliest_heir() {
            Err(broken(Promise::WritesNoMore))
        } else {
            Ok(())
        }
    }

    /// The left side of the first inequality that [`Timing::check`] names.
    #[must_use]
    pub fn bound(&self, election_timeout: Duration) -> Duration {
        self.slowest_deadline() + ROUNDING + election_timeout * 2 + MARGIN
    }

    /// The left side of the second one.
    fn last_write(&self, election_timeout: Duration) -> Duration {
        self.slowest_deadline() + ROUNDING + LATE_WRITES + election_timeout
    }

    /// The right side of the second one: the lease and the grace on clocks that run fast.
    fn earliest_heir(&self) -> Duration {
        (self.lease + self.grace) * (100 - CLOCK_ERROR_PERCENT) / 100
    }

    /// The deadline on a clock that runs slow.
    fn slowest_deadline(&self) -> Duration {
        self.deadline + self.deadline * CLOCK_ERROR_PERCENT / 100
    }
}

/// What times have to prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// Guarded guests have stopped before the lease can end.
    StopsInTime,
    /// What they wrote has landed before they can run elsewhere.
    WritesNoMore,
}

/// Times that prove nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimingBroken {
    timing: Timing,
    election_timeout: Duration,
    promise: Promise,
}

impl fmt::Display for TimingBroken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timing, election_timeout, promise } = self;
        let least = Duration::ZERO;
        let (deadline, election) = (timing.slowest_deadline().as_secs_f64(), election_timeout.as_secs_f64());
        let rounding = ROUNDING.as_secs();
        let most = match promise {
            Promise::StopsInTime => {
                write!(
                    f,
                    "a host could lose its lease before it has stopped its guests: deadline {deadline:.2} s with a clock error \
                     of {CLOCK_ERROR_PERCENT} % + watchdog rounding {rounding} s + twice the store's election timeout of \
                     {election:.2} s + margin {} s = {:.2} s, which is not below the lease of {} s",
                    MARGIN.as_secs(),
                    timing.bound(*election_timeout).as_secs_f64(),
                    timing.lease.as_secs(),
                )?;
                timing.lease.saturating_sub(timing.bound(least)) / 2
            }
            Promise::WritesNoMore => {
                write!(
                    f,
                    "a guest could run elsewhere before what it wrote has landed: deadline {deadline:.2} s with a clock error \
                     of {CLOCK_ERROR_PERCENT} % + watchdog rounding {rounding} s + late writes {} s + the store's election \
                     timeout of {election:.2} s = {:.2} s, which is not below the lease of {} s and the grace of {} s, \
                     {:.2} s with that clock error",
                    LATE_WRITES.as_secs(),
                    timing.last_write(*election_timeout).as_secs_f64(),
                    timing.lease.as_secs(),
                    timing.grace.as_secs(),
                    timing.earliest_heir().as_secs_f64(),
                )?;
                timing.earliest_heir().saturating_sub(timing.last_write(least))
            }
        };
        write!(f, "; give the store an election timeout of at most {:.2} s", most.as_secs_f64())
    }
}

impl std::error::Error for TimingBroken {}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest that a store may have whose shortest lease is 2 s.
    const ELECTION: Duration = Duration::from_millis(1_334);

    #[test]
    fn both_profiles_hold_with_etcds_own_election_timeout_as_its_shortest_lease_tells_it() {
        Timing::DEFAULT.check(ELECTION).unwrap();
        Timing::FAST.check(ELECTION).unwrap();
        for timing in [Timing::DEFAULT, Timing::FAST] {
            assert!(timing.renewal * 2 <= timing.refuse(), "a lost renewal is no alarm: {timing:?}");
            assert!(timing.refuse() < timing.pause() && timing.pause() < timing.stop());
            assert!(timing.stop() < timing.deadline);
        }
    }

    #[test]
    fn what_proves_nothing_is_refused_with_the_sum() {
        let slow = Duration::from_secs(3);
        let broken = Timing::DEFAULT.check(slow).unwrap_err().to_string();
        assert_eq!(
            broken,
            "a host could lose its lease before it has stopped its guests: deadline 20.20 s with a clock error of 1 % + \
             watchdog rounding 1 s + twice the store's election timeout of 3.00 s + margin 3 s = 30.20 s, which is not \
             below the lease of 30 s; give the store an election timeout of at most 2.90 s"
        );
        let late = Timing { deadline: Duration::from_secs(9), ..Timing::FAST };
        assert!(late.check(ELECTION).is_err());
    }

    #[test]
    fn a_grace_in_which_late_writes_may_not_have_landed_is_refused_with_the_sum() {
        let short = Timing { grace: Duration::from_secs(3), ..Timing::FAST };
        let broken = short.check(ELECTION).unwrap_err().to_string();
        assert_eq!(
            broken,
            "a guest could run elsewhere before what it wrote has landed: deadline 8.08 s with a clock error of 1 % + \
             watchdog rounding 1 s + late writes 8 s + the store's election timeout of 1.33 s = 18.41 s, which is not below \
             the lease of 15 s and the grace of 3 s, 17.82 s with that clock error; give the store an election timeout of at \
             most 0.74 s"
        );
        let none = Timing { grace: Duration::ZERO, ..Timing::DEFAULT };
        assert!(none.check(ELECTION).is_err());
    }
}
