//! Time in the model: whole ticks of ten seconds, and the times of liveness that fit them.

use std::sync::LazyLock;
use std::time::Duration;

use kubexen_ownership::liveness::Timing;
use tokio::time::Instant;

use crate::flaw::Flaw;

/// A moment, in ticks since the beginning.
pub type Tick = u16;

/// How long a tick is.
pub const TICK: Duration = Duration::from_secs(10);
/// How long a lease lasts, in ticks: [`TIMING`]'s.
pub const LEASE: Tick = 4;
/// How long a deposed leader of the store acknowledges renewals, in ticks: twice [`ELECTION`], rounded up.
pub const DEPOSED: Tick = 1;
/// How long a write may be under way when its host is reset, in ticks, rounded up.
pub const LATE: Tick = 1;
/// For how long a controller may not have looked before it forgets what it saw, in ticks: less than a lease lasts.
pub const BLIND: Tick = LEASE - 1;
/// The election timeout of the store.
pub const ELECTION: Duration = Duration::from_secs(3);
/// Times as short as the ticks allow. A silent host pauses at tick 2, stops and is reset at tick 3, and loses its lease at
/// tick 4; what it had under way has landed by then, or a tick later if it heard a deposed leader last, and it is fenced at
/// tick 6.
pub const TIMING: Timing = Timing {
    lease: Duration::from_secs(40),
    deadline: Duration::from_secs(29),
    renewal: Duration::from_secs(5),
    grace: Duration::from_secs(20),
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
