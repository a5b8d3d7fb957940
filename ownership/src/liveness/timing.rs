//! The times of liveness, and the proof that they fit together.

use std::fmt;
use std::time::Duration;

/// How far two clocks may run apart, in parts of a hundred.
const CLOCK_ERROR_PERCENT: u32 = 1;
/// Xen's watchdog counts in whole seconds.
const ROUNDING: Duration = Duration::from_secs(1);
/// How long it may take to take all guarded guests apart.
const DESTRUCTION: Duration = Duration::from_millis(1_400);
/// What is left over for everything that was not thought of.
const MARGIN: Duration = Duration::from_secs(3);

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
        grace: Duration::from_secs(3),
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

    /// Makes sure that what a host guards has stopped before its lease can end: `D·(1+ρ) + 1 s + 2E + 3 s < L`, where D is
    /// the deadline, ρ the clock error of 1 %, 1 s the watchdog's rounding, E the store's election timeout (an old leader may
    /// acknowledge renewals for up to two of them after it was cut off), 3 s the margin and L the lease.
    ///
    /// # Errors
    /// [`TimingBroken`], with the sum written out.
    pub fn check(&self, election_timeout: Duration) -> Result<(), TimingBroken> {
        if self.bound(election_timeout) < self.lease {
            Ok(())
        } else {
            Err(TimingBroken { timing: *self, election_timeout })
        }
    }

    /// The left side of the inequality that [`Timing::check`] names.
    #[must_use]
    pub fn bound(&self, election_timeout: Duration) -> Duration {
        self.slowest_deadline() + ROUNDING + election_timeout * 2 + MARGIN
    }

    /// The deadline on a clock that runs slow.
    fn slowest_deadline(&self) -> Duration {
        self.deadline + self.deadline * CLOCK_ERROR_PERCENT / 100
    }
}

/// Times that prove nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimingBroken {
    timing: Timing,
    election_timeout: Duration,
}

impl fmt::Display for TimingBroken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timing, election_timeout } = self;
        write!(
            f,
            "a host could lose its lease before it has stopped its guests: deadline {:.2} s with a clock error of \
             {CLOCK_ERROR_PERCENT} % + watchdog rounding {} s + twice the store's election timeout of {:.2} s + margin {} s \
             = {:.2} s, which is not below the lease of {} s; give the store an election timeout of at most {:.2} s",
            timing.slowest_deadline().as_secs_f64(),
            ROUNDING.as_secs(),
            election_timeout.as_secs_f64(),
            MARGIN.as_secs(),
            timing.bound(*election_timeout).as_secs_f64(),
            timing.lease.as_secs(),
            timing.lease.saturating_sub(timing.bound(Duration::ZERO)).as_secs_f64() / 2.0,
        )
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
}
