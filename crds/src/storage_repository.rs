//! `StorageRepository`: where disks are kept (XAPI's SR and PBD).

use crate::{condition::conditions_schema, quantity::HostSelector};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Storage that hosts attach. Hosts attach it when their agent's configuration has the named location.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "kubexen.io",
    version = "v1alpha1",
    kind = "StorageRepository",
    plural = "storagerepositories",
    shortname = "xsr",
    category = "xen",
    status = "StorageRepositoryStatus",
    derive = "PartialEq",
    cel,
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Hosts", type_ = "integer", json_path = ".status.attachedHosts"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = "1"),
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("`metadata.name` must be at most 63 characters long")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.type == 'Directory') == has(self.directory)")
    .message("`directory` must be set when, and only when, `type` is \"Directory\"")
    .field_path(".directory"))]
#[x_kube(validation = Rule::new("(self.type == 'LVM') == has(self.lvm)")
    .message("`lvm` must be set when, and only when, `type` is \"LVM\"")
    .field_path(".lvm"))]
pub struct StorageRepositorySpec {
    /// Kind of storage. `Directory`: raw sparse files in a directory of each host, described by `directory`. `LVM`: a
    /// volume group that several hosts reach, described by `lvm`. Cannot be changed.
    #[serde(rename = "type")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("`type` must not change"))]
    pub type_: RepositoryType,
    /// A directory on each host; its disks are local to the host. Set when `type` is Directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<Directory>,
    /// A volume group that several hosts reach; a machine with its disks there can move between these hosts. Set when
    /// `type` is LVM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lvm: Option<Lvm>,
    /// Labels that a host must carry to attach the repository. Default: every host that has the location.
    #[serde(default)]
    pub host_selector: HostSelector,
}

/// Kinds of storage.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum RepositoryType {
    /// Raw sparse files in a directory of each host.
    Directory,
    /// A volume group that several hosts reach.
    #[serde(rename = "LVM")]
    Lvm,
}

/// Raw sparse files in a directory of each host.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Directory {
    /// Name of a storage location in the agents' configuration, at most 63 characters. Cannot be changed.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("`location` must not change: the disks are there"))]
    pub location: String,
}

/// A volume group that several hosts reach.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lvm {
    /// Name of a storage location of type LVM in the agents' configuration, at most 63 characters. On every host it must
    /// be the same volume group. Cannot be changed.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("`location` must not change: the disks are there"))]
    pub location: String,
}

/// What was seen of a repository.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageRepositoryStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Number of hosts that have it attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub attached_hosts: Option<i32>,
    /// Hosts that match but do not have it attached; the first 16 by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub missing_hosts: Vec<String>,
    /// `Ready`: at least one host has it, none that should have it lacks it, and all that have it see the same storage
    /// if it is shared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}
