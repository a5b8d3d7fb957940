//! `Domain` (host kind): one virtual machine, resolved for one host.

use crate::{
    boot::Boot,
    cd::DomainCd,
    cloud_init::DomainCloudInit,
    condition::conditions_schema,
    cpu::FeatureSet,
    domain_migration::{DomainMigration, DomainMigrationStatus},
    guest::GuestStatus,
    guest_size::default_weight,
    quantity::ByteQuantity,
    virtual_machine::Lifecycle,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One virtual machine resolved for one host, in that host's namespace. Written by the controller, carried out by
/// the agent. Deleting it shuts the guest down; the object goes when the domain is gone.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "kubexen.io",
    version = "v1alpha1",
    kind = "Domain",
    plural = "domains",
    shortname = "xdom",
    category = "xen",
    namespaced,
    status = "DomainStatus",
    derive = "PartialEq",
    cel,
    selectable = ".spec.virtualMachine.namespace",
    selectable = ".spec.virtualMachine.name",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Domid", type_ = "integer", json_path = ".status.domid"),
    printcolumn(name = "Token", type_ = "integer", json_path = ".status.ownerToken"),
    printcolumn(name = "Restarts", type_ = "integer", json_path = ".status.restarts"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = "1"
    ),
    validation = Rule::new("self.metadata.name == self.spec.virtualMachine.__namespace__ + '.' + self.spec.virtualMachine.name")
        .message("`metadata.name` must be \"<namespace>.<name>\" of the virtual machine"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.ownerToken) || (has(self.status) && has(self.status.ownerToken) && self.status.ownerToken >= oldSelf.status.ownerToken)")
        .message("`status.ownerToken` must not go back: a later owner of this domain is known already")
        .field_path(".status.ownerToken")
)]
#[serde(rename_all = "camelCase")]
pub struct DomainSpec {
    /// The virtual machine that this domain is. Its uid is the domain's UUID in Xen. Cannot be changed.
    #[x_kube(validation = Rule::new("self == oldSelf").message("`virtualMachine` must not change"))]
    pub virtual_machine: VirtualMachineReference,
    /// Whether the domain runs: `Running` (default), `Paused` (in memory, its vCPUs stand still), or `Suspended` (saved
    /// to the Volume of `savedState`; the domain is gone then).
    #[serde(default)]
    pub power_state: DomainPowerState,
    /// Asks for one restart when it differs from `status.restartHandled`: the virtual machine's restart annotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub restart_requested: Option<String>,
    /// What the domain is made of. What can be changed while the guest runs may change; the rest is another domain.
    #[x_kube(validation = Rule::new("self.boot == oldSelf.boot").message("`boot` must not change: delete this Domain and make another"))]
    #[x_kube(validation = Rule::new("self.maxCpus == oldSelf.maxCpus").message("`maxCpus` must not change: delete this Domain and make another"))]
    #[x_kube(validation = Rule::new("self.maxMemory == oldSelf.maxMemory").message("`maxMemory` must not change: delete this Domain and make another"))]
    #[x_kube(validation = Rule::new("has(self.cloudInit) == has(oldSelf.cloudInit) && (!has(self.cloudInit) || self.cloudInit == oldSelf.cloudInit)").message("`cloudInit` must not change: delete this Domain and make another"))]
    #[x_kube(validation = Rule::new("!has(self.cloudInit) || !has(self.disks) || self.disks.all(disk, disk.target != 'xvdp')").message("`disks` must not have the target \"xvdp\" when `cloudInit` is set: the seed has it"))]
    #[x_kube(validation = Rule::new("!has(self.cds) || !has(self.disks) || self.cds.all(cd, self.disks.all(disk, disk.target != cd.target && (!cd.target.startsWith('hd') || disk.target.substring(3) != cd.target.substring(2))))").message("`cds` must not have a `target` of `disks`, for which `hdc` is \"xvdc\" and `hdd` is \"xvdd\""))]
    #[x_kube(validation = Rule::new("!has(self.cds) || self.boot.type == 'HVM' || self.cds.all(cd, !cd.target.startsWith('hd'))").message("`cds` must not have the target \"hdc\" or \"hdd\" unless `boot.type` is \"HVM\": other guests have no emulated drives"))]
    #[x_kube(validation = Rule::new("self.cpus <= self.maxCpus").message("`cpus` must not exceed `maxCpus`"))]
    pub machine: Machine,
    /// What happens when the guest stops. Default: the defaults of its fields.
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// Whether the guest is started elsewhere when this host falls silent: then the agent stops it before that could happen,
    /// and has Xen reset the host if it cannot. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub protected: bool,
    /// Where the guest is saved to, or was saved to and is resumed from. A Domain that names one is never booted afresh
    /// while the guest is there. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved_state: Option<SavedState>,
    /// The migration that the domain takes part in. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<DomainMigration>,
}

/// The virtual machine that a domain is.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineReference {
    /// Namespace of the VirtualMachine.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of the VirtualMachine.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// UID of the VirtualMachine: another machine of the same name has another.
    #[schemars(length(equal = 36), regex(pattern = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))]
    pub uid: String,
}

/// Whether a domain runs or stands still.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum DomainPowerState {
    /// Runs.
    #[default]
    Running,
    /// In memory; its vCPUs stand still.
    Paused,
    /// Saved to a Volume.
    Suspended,
}

/// What a domain is made of.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// Number of virtual CPUs, 1 to 128.
    #[schemars(range(min = 1, max = 128))]
    pub cpus: i32,
    /// Number of virtual CPUs that the domain is built for, 1 to 128. Cannot be changed.
    #[schemars(range(min = 1, max = 128))]
    pub max_cpus: i32,
    /// Weight at the scheduler, 1 to 65535. Default: 256.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1, max = 65535))]
    pub cpu_weight: i32,
    /// Most CPU time, in percent of one physical CPU, 0 to 12800. Default: 0, which is no limit.
    #[serde(default)]
    #[schemars(range(min = 0, max = 12800))]
    pub cpu_cap_percent: i32,
    /// Memory of the guest, in bytes.
    pub memory: ByteQuantity,
    /// Memory that the domain is built for, in bytes. Cannot be changed.
    pub max_memory: ByteQuantity,
    /// How it boots. Cannot be changed.
    pub boot: Boot,
    /// CPU features that the guest may use, as words in hexadecimal: the pool's level when it was started. Default: all
    /// that its host gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_level: Option<FeatureSet>,
    /// Disks in the guest's order, at most 16. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other.volume == one.volume))")
        .message("`disks` must not name one Volume twice: its content would be damaged"))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other.target == one.target))")
        .message("`disks` must not have one `target` twice"))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub disks: Vec<DomainDisk>,
    /// CD drives, at most 2. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other.target == one.target))")
        .message("`cds` must not have one `target` twice"))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub cds: Vec<DomainCd>,
    /// Interfaces in the guest's order, at most 8. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other.mac == one.mac))")
        .message("`interfaces` must not have one `mac` twice"))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other.index == one.index))")
        .message("`interfaces` must not have one `index` twice"))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub interfaces: Vec<DomainInterface>,
    /// Where the seed comes from that the guest configures itself by. Default: it has none. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<DomainCloudInit>,
}

impl DomainSpec {
    /// The Volumes that the domain uses.
    pub fn volumes(&self) -> impl Iterator<Item = &str> {
        let saved = self.saved_state.iter().map(|saved| saved.volume.as_str());
        self.machine.disks.iter().map(|disk| disk.volume.as_str()).chain(saved)
    }
}

/// Where a guest is saved.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SavedState {
    /// Name of the Volume: in the same namespace, or in that of another host if `shared` is set.
    #[schemars(length(min = 1, max = 253))]
    pub volume: String,
    /// Where the data is, on storage that several hosts reach. Default: where the Volume says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<SharedDisk>,
}

/// A disk of a domain.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainDisk {
    /// Name of the disk within its machine.
    #[schemars(length(min = 1, max = 32))]
    pub name: String,
    /// Name of the Volume: in the same namespace, or in that of another host if `shared` is set.
    #[schemars(length(min = 1, max = 253))]
    pub volume: String,
    /// Where the data is, for a disk on storage that several hosts reach. Default: where the Volume says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<SharedDisk>,
    /// Whether the guest may only read the disk. Default: false.
    #[serde(default)]
    pub read_only: bool,
    /// Name under which the guest sees it: `xvda` to `xvdp`.
    #[schemars(length(equal = 4), regex(pattern = r"^xvd[a-p]$"))]
    pub target: String,
    /// Whether the guest is to let go of the disk. It stays listed, and its Volume in use, until `status.detached` says
    /// that the guest did. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach: bool,
}

/// A disk on storage that several hosts reach.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SharedDisk {
    /// Name of the storage location in the agent's configuration.
    #[schemars(length(min = 1, max = 63))]
    pub location: String,
    /// UID of the VirtualDisk, which names the data.
    #[schemars(length(equal = 36), regex(pattern = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))]
    pub uid: String,
}

/// An interface of a domain.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainInterface {
    /// Name of the interface within its machine.
    #[schemars(length(min = 1, max = 32))]
    pub name: String,
    /// Name of the uplink in the agent's configuration.
    #[schemars(length(min = 1, max = 63))]
    pub uplink: String,
    /// Hardware address in lower case.
    #[schemars(length(equal = 17), regex(pattern = r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$"))]
    pub mac: String,
    /// Which of the guest's interfaces it is, 0 to 7: 0 is its `eth0`.
    #[schemars(range(min = 0, max = 7))]
    pub index: i32,
    /// Most that the guest may send, in bytes per second. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<ByteQuantity>,
}

/// What the agent saw of a domain.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// State in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<DomainPhase>,
    /// Xen's number for the domain while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub domid: Option<i32>,
    /// The ownership token under which this host runs the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub owner_token: Option<i64>,
    /// The `spec.restartRequested` that was carried out last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub restart_handled: Option<String>,
    /// How often the guest was started again since this Domain was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub restarts: Option<i32>,
    /// Crashes in a row, without ten minutes of running between them; decides the back-off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub crashes: Option<i32>,
    /// How and when the guest stopped by itself last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_stop: Option<Stop>,
    /// What the guest says of itself while it is here; none if it has no agent that Xen's tools know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestStatus>,
    /// What came of the domain's part in a migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<DomainMigrationStatus>,
    /// Virtual CPUs that the guest runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub cpus: Option<i32>,
    /// Memory that the guest holds: the spec's where it is that but for what Xen rounds, otherwise in whole MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteQuantity>,
    /// Disks that are to be detached and that the guest has no more, by name, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 32)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub detached: Vec<String>,
    /// `Ready`: the domain runs, stands still or is off as the spec wants it. `Synchronized`: the guest has what `machine`
    /// says; False while it is given to it, and when the guest does not take it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// State of a domain in one word. `Pending`: waits for what it needs, such as a volume, its ownership, or the end of a
/// back-off. `Running`. `Paused`: in memory, its vCPUs stand still. `Suspended`: saved to a Volume. `Receiving`: the guest is to come here from
/// another host. `Departed`: the guest runs on another host. `Stopping`: was asked to shut down. `Halted`: the guest stopped by itself and its policy leaves it so. `Preserved`: the guest crashed and its memory is kept for
/// inspection. `Failed`: cannot be started as it is; tried again, ever more rarely.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum DomainPhase {
    /// Waits for what it needs: a volume, its ownership, the end of a back-off.
    Pending,
    /// Runs.
    Running,
    /// In memory; vCPUs stand still.
    Paused,
    /// Saved to a Volume; there is no domain.
    Suspended,
    /// The guest is to come here from another host.
    Receiving,
    /// The guest runs on another host.
    Departed,
    /// Was asked to shut down.
    Stopping,
    /// The guest stopped by itself and its policy leaves it so.
    Halted,
    /// The guest crashed and its memory is kept for inspection.
    Preserved,
    /// Cannot be started as it is; tried again, ever more rarely.
    Failed,
}

/// How and when a guest stopped by itself.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stop {
    /// What the guest did: `Poweroff`, `Reboot`, `Crash` (its watchdog included), or `Vanished` (the host was
    /// rebooted, or somebody else destroyed the domain).
    pub reason: StopReason,
    /// When the agent saw it.
    pub at: Time,
}

/// What a guest did when it stopped by itself.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum StopReason {
    /// It powered itself off.
    Poweroff,
    /// It rebooted.
    Reboot,
    /// It crashed, or its watchdog fired.
    Crash,
    /// Its domain vanished: the host was rebooted, or somebody else destroyed it.
    Vanished,
}
