//! How good a host is for a guest, of those that fit.

use kubexen_crds::pool::Strategy;

/// A whole resource. Shares are in millionths: integers, so that equal input gives equal scores on every machine.
const WHOLE: u64 = 1_000_000;

/// How much of a resource is used, in millionths; at most the whole.
pub(super) fn share(used: u64, capacity: u64) -> i64 {
    let share = used.saturating_mul(WHOLE) / capacity.max(1);
    i64::from(u32::try_from(share.min(WHOLE)).unwrap_or(u32::MAX))
}

/// Shares of a host's resources that are used, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    /// Of its memory.
    pub(super) memory: i64,
    /// Of the vCPUs that it may carry.
    pub(super) cpu: i64,
}

impl Load {
    fn scarcer(self) -> i64 {
        self.memory.max(self.cpu)
    }

    fn skew(self) -> i64 {
        (self.memory - self.cpu).abs()
    }
}

/// Cost of taking a host from one load to another, in quarters of a millionth; the lowest is best. See the module
/// documentation of [`placement`](super) for what it weighs.
pub(super) fn cost(strategy: Strategy, before: Load, after: Load) -> i64 {
    let load = match strategy {
        Strategy::Spread => after.scarcer(),
        Strategy::Pack => -after.scarcer(),
    };
    4 * load + after.skew() - before.skew()
}
