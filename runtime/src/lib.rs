//! What the controller and the node-agent share: how they see the cluster, queue work, write, tell the time and
//! report on themselves.
//!
//! Nothing in here knows what a virtual machine is. Time comes from [`clock::Clock`] and `tokio::time`, the cluster
//! from a [`kube::Client`] whose transport the caller chooses, so everything also runs under virtual time against an
//! API server in memory.

pub mod clock;
pub mod concurrent;
pub mod connect;
pub mod events;
pub mod mirror;
pub mod queue;
pub mod telemetry;
pub mod write;

pub use clock::Clock;
pub use mirror::{Key, Mirror};
pub use queue::{Outcome, WorkQueue};
