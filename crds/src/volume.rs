//! `Volume` (host kind): one disk on one host.

use crate::{
    condition::conditions_schema,
    quantity::ByteQuantity,
    virtual_disk::{Reclaim, Source},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One disk on one host, in that host's namespace. Written by the controller, carried out by the agent. Deleting
/// it deletes the data, unless `reclaim` says Retain.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "kubexen.io",
    version = "v1alpha1",
    kind = "Volume",
    plural = "volumes",
    shortname = "xvol",
    category = "xen",
    namespaced,
    status = "VolumeStatus",
    derive = "PartialEq",
    cel,
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Size", type_ = "string", json_path = ".spec.size"),
    printcolumn(name = "Location", type_ = "string", json_path = ".spec.location"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = "1"
    ),
    validation = Rule::new("self.metadata.name == self.spec.virtualDisk.__namespace__ + '.' + self.spec.virtualDisk.name")
        .message("`metadata.name` must be \"<namespace>.<name>\" of the virtual disk")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.shared) && self.shared) == (has(oldSelf.shared) && oldSelf.shared)")
    .message("`shared` must not change")
    .field_path(".shared"))]
#[x_kube(validation = Rule::new("(has(self.existing) && self.existing) == (has(oldSelf.existing) && oldSelf.existing)")
    .message("`existing` must not change")
    .field_path(".existing"))]
pub struct VolumeSpec {
    /// The VirtualDisk that this volume is. Its uid names the data on the host. Cannot be changed.
    #[x_kube(validation = Rule::new("self == oldSelf").message("`virtualDisk` must not change"))]
    pub virtual_disk: VirtualDiskReference,
    /// Name of the storage location in the agent's configuration. Cannot be changed.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("`location` must not change"))]
    pub location: String,
    /// Whether domains of other hosts may use the data too; this host alone makes, grows and deletes it. Cannot be
    /// changed. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// Whether the data was there before this object was: a disk on shared storage has come from a host that looked after it
    /// before. Such data is never made here, and it is reported if it is missing. Cannot be changed. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub existing: bool,
    /// UID of the VirtualMachine whose guest is saved to this volume: the guest is given up before the data is deleted.
    /// Cannot be changed. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(equal = 36), regex(pattern = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("`savedMachine` must not change"))]
    pub saved_machine: Option<String>,
    /// Size in bytes. It only grows.
    #[x_kube(validation = Rule::new("!isQuantity(self) || quantity(self).compareTo(quantity(oldSelf)) >= 0")
        .message("`size` must not become smaller: data would be lost"))]
    pub size: ByteQuantity,
    /// What the volume contains at first. Cannot be changed. Default: blank.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("`source` must not change"))]
    pub source: Source,
    /// What happens to the data when the volume is deleted: `Delete` (default) or `Retain` (it stays on the host).
    #[serde(default)]
    pub reclaim: Reclaim,
}

/// The VirtualDisk that a volume is.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualDiskReference {
    /// Namespace of the VirtualDisk.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of the VirtualDisk.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// UID of the VirtualDisk: another disk of the same name has another.
    #[schemars(length(equal = 36), regex(pattern = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))]
    pub uid: String,
}

/// What the agent saw of a volume.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// State in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<VolumePhase>,
    /// Size in bytes that the volume really has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<ByteQuantity>,
    /// `Ready`: the volume exists in its full size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// State of a volume in one word. `Pending`: not made yet. `Ready`: there in its full size. `Failed`: cannot be made as
/// it is; tried again, ever more rarely.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum VolumePhase {
    /// Not made yet.
    Pending,
    /// There in its full size.
    Ready,
    /// Cannot be made as it is; tried again, ever more rarely.
    Failed,
}
