//! `Host`: a machine that runs Xen, with the agent in its dom0.

use crate::{
    availability::{HostAvailability, HostFencing, HostFencingStatus, HostProtection, HostRecovery},
    boot::{BootType, Firmware},
    condition::conditions_schema,
    cpu::FeatureSets,
    evacuation::{HostEvacuation, Maintenance},
    quantity::ByteQuantity,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// A Xen host. Creating it gives the host a namespace and its agent an identity there; deleting it takes both away.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "kubexen.io",
    version = "v1alpha1",
    kind = "Host",
    plural = "hosts",
    shortname = "xhost",
    category = "xen",
    status = "HostStatus",
    derive = "PartialEq",
    cel,
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Schedulable", type_ = "boolean", json_path = ".spec.schedulable"),
    printcolumn(name = "Maintenance", type_ = "boolean", json_path = ".spec.maintenance.enabled"),
    printcolumn(name = "Evacuated", type_ = "string", json_path = ".status.conditions[?(@.type=='Evacuated')].status"),
    printcolumn(name = "CPUs", type_ = "integer", json_path = ".status.cpu.count"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.memory.allocatable"),
    printcolumn(name = "Xen", type_ = "string", json_path = ".status.xen.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Simulated", type_ = "boolean", json_path = ".status.xen.simulated", priority = "1"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = "1"),
    printcolumn(name = "Evacuation", type_ = "string", json_path = ".status.conditions[?(@.type=='Evacuated')].message", priority = "1"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 50")
        .message("`metadata.name` must be a host name without dots, at most 50 characters long")
)]
#[serde(rename_all = "camelCase")]
pub struct HostSpec {
    /// Whether new guests may be placed here. Default: true. Guests that are here stay.
    #[serde(default = "yes")]
    pub schedulable: bool,
    /// Whether the host is to be emptied. Default: it is not.
    #[serde(default)]
    pub maintenance: Maintenance,
    /// What an operator says of boots of this host that do not answer. Default: nothing.
    #[serde(default)]
    pub fencing: HostFencing,
}

fn yes() -> bool {
    true
}

/// What the host's agent said of it, and the controller's conditions.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// The `metadata.generation` that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Kernel's identity of this boot of dom0; a new one after each boot.
    #[serde(rename = "bootID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub boot_id: Option<String>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_version: Option<String>,
    /// The hypervisor that runs there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xen: Option<Xen>,
    /// Physical CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<HostCpu>,
    /// Physical memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<HostMemory>,
    /// Storage locations that the agent's configuration names and that can be used, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub locations: Vec<Location>,
    /// Storage locations that the agent's configuration names and that cannot be used at the moment, at most 64. Default:
    /// none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub unusable_locations: Vec<UnusableLocation>,
    /// Uplinks that the agent's configuration names and that are up, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub uplinks: Vec<Uplink>,
    /// How guests come here from other hosts; none if the agent's configuration says nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<HostMigration>,
    /// IP addresses of the host that others may reach, at most 32: by them the pool's store is known to have members here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 45)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub addresses: Vec<String>,
    /// Names in the host's kernel catalogue, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub kernels: Vec<String>,
    /// Boot types of guests that can boot from their disks by pvgrub here: of `PVH` and `PV` those for which it is
    /// installed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub boot_loaders: Vec<BootType>,
    /// Firmware that is installed for HVM guests: of `BIOS` and `UEFI` what is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub firmware: Vec<Firmware>,
    /// Domains that run here and that no Domain object stands for; never touched. The first 32 by UUID.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uuid".into()]))]
    pub unknown_domains: Vec<UnknownDomain>,
    /// Whether protected guests may run here; none before the agent has asked the pool's store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protection: Option<HostProtection>,
    /// What the pool's policy asks of the agent; none before the controller has said so. Written by the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub availability: Option<HostAvailability>,
    /// What was done by what `spec.fencing` says; none before anything was. Written by the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fencing: Option<HostFencingStatus>,
    /// How guests of this host last came back elsewhere, after it had died. Written by the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<HostRecovery>,
    /// What happens to the guests that are still here, while the host is in maintenance. Written by the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evacuation: Option<HostEvacuation>,
    /// `Ready`: the agent is alive and reports. `Evacuated`, while the host is in maintenance: True when no guest is here
    /// but those whose owners leave them here. Written by the controller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// The hypervisor of a host.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Xen {
    /// Version, as in `4.17.4`.
    #[schemars(length(max = 64))]
    pub version: String,
    /// What Xen can do: `pv`, `hvm`, `hap` …, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 32)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub capabilities: Vec<String>,
    /// Whether this is no Xen but a model of one, for tests and demonstrations.
    pub simulated: bool,
    /// User as whom the device models of HVM guests run that are started here, and from whose number on each guest has its
    /// own. Such guests do not move while they run. If there is none the device models run as root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub device_model_user: Option<String>,
}

/// Physical CPUs of a host.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostCpu {
    /// Logical CPUs that Xen schedules guests on.
    #[schemars(range(min = 0, max = 65536))]
    pub count: i32,
    /// CPU sockets.
    #[schemars(range(min = 0, max = 65536))]
    pub sockets: i32,
    /// Cores in each socket.
    #[schemars(range(min = 0, max = 65536))]
    pub cores_per_socket: i32,
    /// Threads in each core.
    #[schemars(range(min = 0, max = 64))]
    pub threads_per_core: i32,
    /// Model name as the CPU gives it.
    #[schemars(length(max = 128))]
    pub model: String,
    /// Feature flags as Linux names them, sorted, at most 512.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512), inner(length(max = 32)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub features: Vec<String>,
    /// What Xen gives to guests of these features, as long as nothing is hidden from them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_sets: Option<FeatureSets>,
}

/// Physical memory of a host.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostMemory {
    /// All memory of the machine, in bytes.
    pub total: ByteQuantity,
    /// Bytes that are there for guests that KubeXen runs, those that run now included: total less Xen, dom0 and
    /// domains that KubeXen does not know.
    pub allocatable: ByteQuantity,
}

/// How guests come to a host from other hosts.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostMigration {
    /// Where its agent listens, as host and port.
    #[schemars(length(max = 262))]
    pub address: String,
    /// Boot types of guests that can move while they run, as this Xen is built: of `PVH`, `HVM` and `PV` those that can.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub boot_types: Vec<BootType>,
    /// Networks for migrations that the agent's configuration names, at most 16; one of them is used where the Pool asks
    /// for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub networks: Vec<MigrationNetworkAddress>,
}

/// A host's address on a network for migrations.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationNetworkAddress {
    /// Name in the agent's configuration.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Where the agent is reached there, as host and port.
    #[schemars(length(max = 262))]
    pub address: String,
}

/// A storage location of a host.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Location {
    /// Name in the agent's configuration.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Bytes that the disks here may have in sum.
    pub capacity: ByteQuantity,
    /// Whether other hosts may see the same disks. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// Images for CD drives that lie here, sorted, at most 128. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub images: Vec<String>,
    /// What the storage itself is called: locations of several hosts that are shared and have the same `id` are one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub id: Option<String>,
}

/// A storage location of a host that cannot be used.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnusableLocation {
    /// Name in the agent's configuration.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Why it cannot be used.
    #[schemars(length(max = 512))]
    pub message: String,
}

/// An uplink of a host.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Uplink {
    /// Name in the agent's configuration.
    #[schemars(length(max = 63))]
    pub name: String,
}

/// A domain that no Domain object stands for.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnknownDomain {
    /// Its UUID.
    #[schemars(length(max = 36))]
    pub uuid: String,
    /// Xen's number for it.
    #[schemars(range(min = 0, max = 65535))]
    pub domid: i32,
}
