//! The part that a `Domain` takes in a migration: what its agent is to do, and what came of it.

use crate::{quantity::ByteQuantity, virtual_machine_migration::Transfer};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The migration that a domain takes part in. Two Domains take part in each: one on the host that the guest leaves, one
/// on the host that it goes to; their agents find each other by it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainMigration {
    /// UID of the VirtualMachineMigration.
    #[schemars(length(equal = 36), regex(pattern = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))]
    pub uid: String,
    /// Name of the VirtualMachineMigration, in the namespace of the virtual machine.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// `Source`: the guest leaves this host. `Destination`: it comes here.
    pub role: MigrationRole,
    /// The host at the other end. Its agent must prove that it is that host's.
    #[schemars(length(min = 1, max = 63))]
    pub peer: String,
    /// Where the peer's agent listens, as host and port. Set for the role Source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262))]
    pub address: Option<String>,
    /// Bytes a second that the source may send. Default: as many as the network takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<ByteQuantity>,
    /// `true` aborts the move if it is not committed yet. Default: false.
    #[serde(default)]
    pub cancel: bool,
}

/// Which end of a migration a domain is.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum MigrationRole {
    /// The guest leaves this host.
    Source,
    /// The guest comes to this host.
    Destination,
}

/// What came of a domain's part in a migration.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainMigrationStatus {
    /// The `spec.migration.uid` that this speaks of.
    #[schemars(length(max = 36))]
    pub uid: String,
    /// How far it is. `Awaiting`: the destination waits for the source. `Committed`: the destination owns the guest.
    /// `Aborted`: the source owns it.
    pub stage: MigrationStage,
    /// Why it was aborted, as one CamelCase word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub reason: Option<String>,
    /// Why it was aborted, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// What was transferred; told by the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
    /// Milliseconds for which the guest stood still; told by the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub downtime_milliseconds: Option<i64>,
}

/// How far a domain's part in a migration is. `Awaiting`: the destination has all that the guest needs and waits for the
/// source. `Committed`: the destination owns the guest. `Aborted`: the source owns it, and no part of this move can
/// change that any more.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum MigrationStage {
    /// The destination waits for the source.
    Awaiting,
    /// The destination owns the guest.
    Committed,
    /// The source owns the guest.
    Aborted,
}

impl MigrationStage {
    /// Whether the agent is done with it.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Awaiting => false,
            Self::Committed | Self::Aborted => true,
        }
    }
}
