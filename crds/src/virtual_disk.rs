//! `VirtualDisk`: storage for one guest (XAPI's VDI).

use crate::{condition::conditions_schema, quantity::ByteQuantity};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A disk that a virtual machine can use. It is made on the host where its first virtual machine is placed. In a
/// repository that is local to each host that binds the machine to the host; in a shared one it does not.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "kubexen.io",
    version = "v1alpha1",
    kind = "VirtualDisk",
    plural = "virtualdisks",
    shortname = "xvd",
    category = "xen",
    namespaced,
    status = "VirtualDiskStatus",
    derive = "PartialEq",
    cel,
    selectable = ".spec.repository",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Size", type_ = "string", json_path = ".spec.size"),
    printcolumn(name = "Repository", type_ = "string", json_path = ".spec.repository"),
    printcolumn(name = "Host", type_ = "string", json_path = ".status.host"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = "1"),
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("`metadata.name` must be at most 63 characters long")
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualDiskSpec {
    /// Name of the StorageRepository that holds the disk. Cannot be changed.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    #[x_kube(validation = Rule::new("self == oldSelf").message("`repository` must not change: make a new disk in the other repository"))]
    pub repository: String,
    /// Size of the disk as the guest sees it, 1Mi to 64Ti, a multiple of 512 bytes. It can grow, never shrink; a
    /// running guest sees the new size after its next restart.
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('1Mi')) >= 0 && quantity(self).compareTo(quantity('64Ti')) <= 0")
        .message("`size` must be a quantity between \"1Mi\" and \"64Ti\""))]
    #[x_kube(validation = Rule::new("!isQuantity(self) || !quantity(self).isInteger() || quantity(self).asInteger() % 512 == 0")
        .message("`size` must be a multiple of 512 bytes, the size of a sector"))]
    #[x_kube(validation = Rule::new("!isQuantity(self) || quantity(self).compareTo(quantity(oldSelf)) >= 0")
        .message("`size` must not become smaller: data would be lost"))]
    pub size: ByteQuantity,
    /// What the disk contains at first. Cannot be changed. Default: blank.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("`source` must not change"))]
    pub source: Source,
    /// What happens to the data when the VirtualDisk is deleted: `Delete` (default) or `Retain` (the host keeps
    /// the file; nothing uses it any more).
    #[serde(default)]
    pub reclaim: Reclaim,
}

/// What a disk contains at first.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// `Blank` (default): all zeroes.
    #[serde(rename = "type", default)]
    pub type_: SourceType,
}

/// Kinds of first content.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum SourceType {
    /// All zeroes.
    #[default]
    Blank,
}

/// What happens to the data of a deleted disk.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Reclaim {
    /// It is deleted.
    #[default]
    Delete,
    /// It is kept.
    Retain,
}

/// What was seen of a disk.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.host) || !has(oldSelf.host) || self.host == oldSelf.host || has(self.storage)")
    .message("`host` must not change: the data is there")
    .field_path(".host"))]
pub struct VirtualDiskStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// State in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The Host that holds the disk, once one does; it never changes. For a disk on shared storage the Host that looks
    /// after it, which another may come to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub host: Option<String>,
    /// The shared storage that holds the disk, once it does: `status.locations[].id` of the hosts that reach it. It never
    /// changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("`storage` must not change: the data is there"))]
    pub storage: Option<String>,
    /// Size in bytes that the disk really has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<ByteQuantity>,
    /// `Ready`: the disk exists in its full size. False with reason WaitingForConsumer until a virtual machine uses it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// State of a disk in one word, for people; programs read the conditions. `Pending`: not made yet. `Bound`: made, and
/// bound to where it is. `Failed`: cannot go on without somebody's help.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Phase {
    /// Not made yet.
    Pending,
    /// Made, and bound to where it is.
    Bound,
    /// Cannot go on without somebody's help.
    Failed,
}
