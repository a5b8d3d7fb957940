//! `VirtualMachineMigration`: one move of a running guest to another host, and the record of how it went.

use crate::{condition::conditions_schema, quantity::ByteQuantity};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Moves a running virtual machine to another host without stopping it. The object stays as the record of the move.
/// Deleting it before the hand-over is committed aborts the move, and the guest goes on where it is.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "kubexen.io",
    version = "v1alpha1",
    kind = "VirtualMachineMigration",
    plural = "virtualmachinemigrations",
    shortname = "xvmm",
    category = "xen",
    namespaced,
    status = "VirtualMachineMigrationStatus",
    derive = "PartialEq",
    cel,
    selectable = ".spec.virtualMachine",
    printcolumn(name = "Machine", type_ = "string", json_path = ".spec.virtualMachine"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "From", type_ = "string", json_path = ".status.source"),
    printcolumn(name = "To", type_ = "string", json_path = ".status.destination"),
    printcolumn(name = "Downtime-ms", type_ = "integer", json_path = ".status.downtimeMilliseconds"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Succeeded')].reason", priority = "1"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Succeeded')].message", priority = "1"),
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("`metadata.name` must be at most 63 characters long")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.host) == has(oldSelf.host) && (!has(self.host) || self.host == oldSelf.host)")
    .message("`host` must not change: make another migration")
    .field_path(".host"))]
pub struct VirtualMachineMigrationSpec {
    /// Name of the VirtualMachine in the same namespace. Cannot be changed.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    #[x_kube(validation = Rule::new("self == oldSelf").message("`virtualMachine` must not change: make another migration"))]
    pub virtual_machine: String,
    /// Name of the Host to move to. Default: the host that fits best. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 50), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub host: Option<String>,
    /// `true` aborts the move if it is not committed yet. Default: false. It cannot go back to false.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self || !oldSelf").message("`cancel` must not go back to false: make another migration"))]
    pub cancel: bool,
    /// Why the move is wanted, for people who read the record; at most 256 characters. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub reason: Option<String>,
}

/// How the move goes, or went.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineMigrationStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// State in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<MigrationPhase>,
    /// UID of the VirtualMachine that is moved: another machine of its name has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    pub virtual_machine_uid: Option<String>,
    /// The Host that the guest leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub source: Option<String>,
    /// The Host that the guest goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub destination: Option<String>,
    /// When the move began: a host was chosen for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the move ended, well or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// What the source's agent told of the transfer, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
    /// Milliseconds for which the guest stood still, as the source saw it: from its suspension to the word that it
    /// runs on at the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub downtime_milliseconds: Option<i64>,
    /// `Succeeded`: Unknown while the move goes on; then True, or False with the cause. `Reconciling`: True while
    /// the move goes on. `Stalled`: True when it failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// What was transferred.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Transfer {
    /// Bytes of memory and state that were sent.
    pub bytes: ByteQuantity,
    /// How often the guest's memory was gone through; more rounds mean a guest that writes much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub rounds: Option<i32>,
    /// Pages of 4 KiB that the guest dirtied each second in the last round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub dirty_pages_per_second: Option<i64>,
    /// Milliseconds from the first byte to the last.
    #[schemars(range(min = 0))]
    pub milliseconds: i64,
}

/// State of a move in one word, for people; programs read the conditions. `Pending`: waits for its turn. `Preparing`: a
/// host was chosen and makes room. `Copying`: the guest's memory goes over while it runs. `Succeeded`: the guest runs
/// at the destination. `Failed`: it runs where it was; the condition says why. `Cancelled`: likewise, because that was
/// asked for.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum MigrationPhase {
    /// Waits for its turn.
    Pending,
    /// A host was chosen and makes room.
    Preparing,
    /// The guest's memory goes over while it runs.
    Copying,
    /// The guest runs at the destination.
    Succeeded,
    /// The move failed.
    Failed,
    /// The move was called off.
    Cancelled,
}

impl MigrationPhase {
    /// Whether nothing of the move goes on any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Pending | Self::Preparing | Self::Copying => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }
}
