//! What resets the host when nobody moves its deadline, and what is kept beside it for the next agent.

use std::{collections::BTreeSet, fmt, time::Duration};

use kubexen_ownership::{
    BootId, LeaseId,
    liveness::{Epoch, Timing},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

/// A timer that resets the host, outside of the agent's process, with what has to be known to go on with it.
///
/// There is one for each host. It outlives the process, and not the boot, and an agent that starts again goes on with it.
pub trait Watchdog: Send + Sync + fmt::Debug {
    /// Whether it could be used.
    ///
    /// # Errors
    /// [`WatchdogError`], with what stands in the way.
    fn check(&self) -> Result<(), WatchdogError>;

    /// Resets the host at the last whole second before `deadline`, as counted from the moment at which the timer is set, and in
    /// one second at the earliest, unless this is called again before. When it returns, the timer runs.
    ///
    /// # Errors
    /// [`WatchdogError`]; then the timer is as it was, or set to a moment before the deadline.
    fn set(&self, deadline: Instant) -> Result<(), WatchdogError>;

    /// Stops the timer, if it runs.
    ///
    /// # Errors
    /// [`WatchdogError`]; then the timer is as it was.
    fn disarm(&self) -> Result<(), WatchdogError>;

    /// The time since the host was booted, by a clock that goes on whatever becomes of the agent.
    fn uptime(&self) -> Duration;

    /// Keeps this for the next agent, in place of what was kept before. Whole or not at all.
    ///
    /// # Errors
    /// [`WatchdogError`]; then what was kept before stands.
    fn keep(&self, checkpoint: &Checkpoint) -> Result<(), WatchdogError>;

    /// What an agent of this boot has kept last; none if none has, or if it cannot be read.
    fn kept(&self) -> Option<Checkpoint>;
}

/// What an agent has to know of the one before it to keep what that has promised, also while the pool's store tells it nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// The boot that it is about.
    pub boot_id: BootId,
    /// The lease that the host is live on; none if it has ended, or if another was asked for and it is not known which one counts.
    pub lease: Option<i64>,
    /// When the last renewal was sent that the store has answered, as [`Watchdog::uptime`] counts, or earlier.
    pub sent: Duration,
    /// How long the lease lasts that was asked for last.
    pub lasts: Duration,
    /// When the host is to be reset after that renewal.
    pub deadline: Duration,
    /// How often it renews.
    pub renewal: Duration,
    /// How long the controller waits once the lease has ended.
    pub grace: Duration,
    /// All guests that the store says are guarded, or that it may be about to say so of.
    pub guarded: BTreeSet<Uuid>,
    /// In which store that was promised, as [`Epoch`] is written; none if an agent has left this that did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
}

impl Checkpoint {
    /// Of a host that has promised this under these times.
    #[must_use]
    pub fn new(
        boot_id: BootId,
        lease: Option<LeaseId>,
        sent: Duration,
        timing: Timing,
        guarded: BTreeSet<Uuid>,
        store: Option<Epoch>,
    ) -> Self {
        let Timing { lease: lasts, deadline, renewal, grace } = timing;
        let (lease, store) = (lease.map(|lease| lease.0), store.map(|store| store.to_string()));
        Self { boot_id, lease, sent, lasts, deadline, renewal, grace, guarded, store }
    }

    /// The times that the host went by.
    #[must_use]
    pub fn timing(&self) -> Timing {
        let Self { lasts, deadline, renewal, grace, .. } = *self;
        Timing { lease: lasts, deadline, renewal, grace }
    }
}

/// Why the watchdog could not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watchdog of the host cannot be used: {0}")]
pub struct WatchdogError(pub String);
