//! Time in the model: whole ticks of ten seconds, and the times of liveness that fit them.

use std::sync::LazyLock;
use std::time::Duration;

use kubexen_ownership::liveness::Timing;
use tokio::time::Instant;

use crate::flaw::Flaw;

/// A moment, in ticks since the beginning.
pub type Tick = u8;

/// How long a tick is.
pub const TICK: Duration = Duration::from_secs(10);
/// How long a lease lasts, in ticks: [`TIMING`]'s, rounded up.
pub const LEASE: Tick = 4;
/// How long a write may be under way when its host is reset, in ticks: [`TIMING`]'s grace.
pub const GRACE: Tick = 1;
/// Times as short as the ticks allow with all rungs of the ladder apart. A silent host pauses at tick 2, stops a little
/// later, is reset at tick 3, loses its lease at tick 4 and is fenced at tick 5.
pub const TIMING: Timing = Timing {
    lease: Duration::from_secs(38),
    deadline: Duration::from_secs(30),
    renewal: Duration::from_secs(5),
    grace: Duration::from_secs(10),
};

static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The moment that this tick is.
pub fn instant(tick: Tick) -> Instant {
    *BASE + TICK * u32::from(tick)
}

/// The times by which agents and controllers go.
pub fn timing(flaw: Option<Flaw>) -> Timing {
    match flaw {
        Some(Flaw::DeadlineOfTheLease) => Timing { deadline: TICK * u32::from(LEASE), ..TIMING },
        Some(Flaw::NoGrace) => Timing { grace: Duration::ZERO, ..TIMING },
        Some(_) | None => TIMING,
    }
}
