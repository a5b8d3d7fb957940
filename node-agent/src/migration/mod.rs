//! Live migration: a running guest goes to another host.
//!
//! ```text
//!   source's session                       destination's session
//!   ────────────────                       ─────────────────────
//!   connect, Hello ──────────────────────▶ the awaited guest? ── Ready
//!   suspend, live ═══════ the guest ═════▶ restore: whole, paused, nobody's
//!   the guest stands still, its disks are
//!   quiet: Suspended ────────────────────▶ COMMIT in the pool's store, claim, run
//!   destroy ◀───────────────────── Running
//! ```
//!
//! A session carries one end of one migration. It may end at any point, with its agent or with the connection: what then
//! becomes of the guest is decided from the pool's store and the hypervisor alone, in [`crate::domain::moves`].
//!
//! - [`link`] is the connection between the agents of two hosts.
//! - [`rate_limit`] keeps a stream to a rate.
//! - [`Sessions`] are the sessions of this agent.

mod arrival;
mod departure;
pub mod link;
mod messages;
pub mod rate_limit;
mod sessions;

pub(crate) use arrival::{Arrival, receive_connections};
pub(crate) use departure::Departure;
pub(crate) use sessions::until_ended;
pub use sessions::{Sessions, Standing};

use crate::{
    hypervisor::{Hypervisor, HypervisorError},
    network::HostNetwork,
    storage::{Storage, StorageError},
};
use kubexen_crds::virtual_machine_migration::Transfer;
use kubexen_ownership::{HostBoot, OwnershipStore, StoreError};
use link::{LinkError, MigrationNetwork};
use serde::Serialize;
use std::{sync::Arc, time::Duration};

/// What a session reaches the world through.
#[derive(Clone, Debug)]
pub struct World {
    /// This host, at this boot.
    pub me: HostBoot,
    /// Xen.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Disks.
    pub storage: Arc<dyn Storage>,
    /// Who may run what.
    pub ownership: Arc<dyn OwnershipStore>,
    /// Bridges.
    pub bridges: Arc<dyn HostNetwork>,
    /// Other hosts' agents.
    pub network: Arc<dyn MigrationNetwork>,
}

/// What a session has to tell when it is over. Who has the guest then is not its to tell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Why it did not come to its end; none if it did.
    pub failure: Option<Failure>,
    /// What was sent; told by the source.
    pub transfer: Option<Transfer>,
    /// How long the guest stood still; told by the source.
    pub downtime: Option<Duration>,
}

impl Report {
    pub(crate) fn failed(failure: impl Into<Failure>) -> Self {
        Self { failure: Some(failure.into()), ..Self::default() }
    }
}

/// Why a migration was aborted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// One CamelCase word from a fixed set.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

impl Failure {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// The connection to the other host's agent broke.
    fn connection_lost(error: &std::io::Error) -> Self {
        let message = match error.kind() {
            std::io::ErrorKind::UnexpectedEof => "the other host's agent ended the connection".to_owned(),
            _ => format!("the connection to the other host's agent broke: {error}"),
        };
        Self::new("ConnectionLost", message)
    }

    /// The volume that a guest is saved to, or was saved to, cannot be written or read, or does not hold the guest.
    pub(crate) fn of_volume(error: &std::io::Error) -> Self {
        let reason = match error.kind() {
            std::io::ErrorKind::InvalidData => "SavedStateDamaged",
            _ => "StorageFailed",
        };
        Self::new(reason, format!("the volume of the guest's memory: {error}"))
    }

    /// It was called off.
    #[must_use]
    pub fn cancelled() -> Self {
        Self::new("Cancelled", "the move was called off")
    }

    /// The agent that carried it was stopped, or the guest stopped by itself.
    #[must_use]
    pub fn interrupted() -> Self {
        Self::new("Interrupted", "the agent was restarted during the move, or the guest stopped by itself")
    }
}

impl From<HypervisorError> for Failure {
    fn from(error: HypervisorError) -> Self {
        Self::new(error.category(), error.to_string())
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self::new(error.category(), error.to_string())
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        let reason = match &error {
            LinkError::Broken(source) => return Self::connection_lost(source),
            LinkError::NoMigrations | LinkError::Credentials { .. } | LinkError::Listen { .. } => {
                "NotConfigured"
            }
            LinkError::Unreachable { .. } => "PeerUnreachable",
            LinkError::NotProven { .. } | LinkError::TurnedAway { .. } => "PeerNotTrusted",
            LinkError::TimedOut { .. } | LinkError::Closed => "ConnectionLost",
            LinkError::Protocol(_) | LinkError::NoJson(_) | LinkError::TooLong { .. } => "ProtocolError",
        };
        Self::new(reason, format!("{:#}", anyhow::Error::from(error)))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new("PoolStoreUnavailable", error.to_string())
    }
}
