//! What resets the host when nobody moves its deadline.

use std::fmt;
use std::time::Duration;

/// A timer that resets the host, outside of the agent's process.
///
/// There is one for each host. It outlives the process, and an agent that starts again goes on with it.
pub trait Watchdog: Send + Sync + fmt::Debug {
    /// Whether it could be used.
    ///
    /// # Errors
    /// [`WatchdogError`], with what stands in the way.
    fn check(&self) -> Result<(), WatchdogError>;

    /// Resets the host when `remaining` has passed from now, rounded down to whole seconds and at least one, unless this is
    /// called again before. When it returns, the timer runs.
    ///
    /// # Errors
    /// [`WatchdogError`]; then the timer is as it was.
    fn set(&self, remaining: Duration) -> Result<(), WatchdogError>;

    /// Stops the timer, if it runs.
    ///
    /// # Errors
    /// [`WatchdogError`]; then the timer is as it was.
    fn disarm(&self) -> Result<(), WatchdogError>;
}

/// Why the watchdog could not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watchdog of the host cannot be used: {0}")]
pub struct WatchdogError(pub String);
