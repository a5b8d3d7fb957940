//! `VirtualMachine`: a guest that its owner wants.

pub use crate::guest_size::{Cpu, Memory};
use crate::{
    availability::{Availability, MachineRecovery},
    boot::Boot,
    cd::Cd,
    cloud_init::CloudInit,
    condition::conditions_schema,
    domain::Machine,
    guest::GuestStatus,
    quantity::{ByteQuantity, HostSelector, TimeSpan},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A virtual machine: what guest is wanted, on what disks and networks. The controller finds a host for it, the
/// agent of that host runs it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "kubexen.io",
    version = "v1alpha1",
    kind = "VirtualMachine",
    plural = "virtualmachines",
    shortname = "xvm",
    category = "xen",
    namespaced,
    status = "VirtualMachineStatus",
    derive = "PartialEq",
    cel,
    selectable = ".spec.powerState",
    selectable = ".status.host",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Host", type_ = "string", json_path = ".status.host"),
    printcolumn(name = "CPUs", type_ = "integer", json_path = ".spec.cpu.count"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.memory.size"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.guest.interfaces[0].addresses[0]", priority = "1"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason", priority = "1"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = "1"),
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("`metadata.name` must be at most 63 characters long"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.ownerToken) || (has(self.status) && has(self.status.ownerToken) && self.status.ownerToken >= oldSelf.status.ownerToken)")
        .message("`status.ownerToken` must not go back: a later owner of this machine is known already")
        .field_path(".status.ownerToken")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.boot.kernel) || (has(self.disks) && size(self.disks) > 0)")
    .message("`disks` must name a disk to boot from: there is no `boot.kernel`")
    .field_path(".disks"))]
#[x_kube(validation = Rule::new("!has(self.cds) || size(self.cds) == 0 || !has(self.disks) || size(self.disks) <= 13")
    .message("`disks` must not exceed 13 when there are `cds`: the guest sees them behind its disks")
    .field_path(".disks"))]
#[x_kube(validation = Rule::new("self.boot.type != 'HVM' || !has(self.disks) || (self.disks.all(disk, !has(disk.readOnly) || !disk.readOnly || !has(disk.bootOrder) || self.disks.filter(other, has(other.bootOrder) && other.bootOrder < disk.bootOrder).size() + (has(self.cds) ? self.cds.size() : 0) >= 4) && [0, 1, 2, 3].all(place, place + self.disks.filter(disk, has(disk.bootOrder)).size() + (has(self.cds) ? self.cds.size() : 0) >= 4 || place >= self.disks.filter(disk, !has(disk.bootOrder)).size() || !has(self.disks.filter(disk, !has(disk.bootOrder))[place].readOnly) || !self.disks.filter(disk, !has(disk.bootOrder))[place].readOnly))")
    .message("`disks` must not have `readOnly` on the first 4, less one for each of `cds`, when `boot.type` is \"HVM\": they are emulated IDE disks, which cannot be read-only. Put other disks before it, leave `readOnly` out, or make it an image for `cds`")
    .field_path(".disks"))]
#[x_kube(validation = Rule::new("!has(self.cds) || self.cds.all(cd, !has(cd.bootOrder)) || (self.boot.type == 'HVM' && (!has(self.boot.firmware) || self.boot.firmware == 'BIOS'))")
    .message("`cds` must not have a `bootOrder` unless `boot` is of type \"HVM\" with the firmware \"BIOS\": UEFI tries CD drives before disks, and other guests do not boot from them")
    .field_path(".cds"))]
#[x_kube(validation = Rule::new("!has(self.cds) || self.cds.all(cd, !has(cd.bootOrder) || (self.cds.exists_one(other, has(other.bootOrder) && other.bootOrder == cd.bootOrder) && (!has(self.disks) || self.disks.all(disk, !has(disk.bootOrder) || disk.bootOrder != cd.bootOrder))))")
    .message("`cds` must not have one `bootOrder` twice, nor one of `disks`")
    .field_path(".cds"))]
#[x_kube(validation = Rule::new("!has(self.cloudInit) || !has(self.disks) || size(self.disks) <= 15")
    .message("`disks` must not exceed 15 when `cloudInit` is set: the guest sees its seed as the last one")
    .field_path(".disks"))]
pub struct VirtualMachineSpec {
    /// Whether the guest runs. `Running` (default), `Halted` (shut down, and what it used is free for others),
    /// `Paused` (in memory, its vCPUs stand still) or `Suspended` (saved to a disk in the repository of its first disk,
    /// and what it used is free for others; set to `Running` it goes on where it was, set to `Halted` what was saved is
    /// lost).
    #[serde(default)]
    pub power_state: PowerState,
    /// Virtual CPUs. Default: one of them.
    #[serde(default)]
    #[x_kube(validation = Rule::new("!has(self.max) || self.count <= self.max")
        .message("`count` must not exceed `max`")
        .field_path(".count"))]
    #[x_kube(validation = Rule::new("!has(self.capPercent) || self.capPercent <= 100 * (has(self.max) ? self.max : self.count)")
        .message("`capPercent` must not exceed 100 for each virtual CPU")
        .field_path(".capPercent"))]
    pub cpu: Cpu,
    /// Memory of the guest.
    #[x_kube(validation = Rule::new("!has(self.min) || !isQuantity(self.min) || !isQuantity(self.size) || quantity(self.min).compareTo(quantity(self.size)) <= 0")
        .message("`size` must not be below `min`")
        .field_path(".size"))]
    #[x_kube(validation = Rule::new("!has(self.max) || !isQuantity(self.max) || !isQuantity(self.size) || quantity(self.size).compareTo(quantity(self.max)) <= 0")
        .message("`size` must not exceed `max`")
        .field_path(".size"))]
    pub memory: Memory,
    /// How the guest boots.
    pub boot: Boot,
    /// Disks, at most 16. Default: none. At the start the guest sees those with a `bootOrder` first, by that, and then the
    /// others in this order (`xvda`, `xvdb` …). While it runs disks are attached, under the first free name, and detached;
    /// other changes take effect at the next restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.all(one, self.exists_one(other, other.disk == one.disk))")
        .message("`disks` must not name one VirtualDisk twice: its content would be damaged"))]
    #[x_kube(validation = Rule::new("self.all(one, !has(one.bootOrder) || self.exists_one(other, has(other.bootOrder) && other.bootOrder == one.bootOrder))")
        .message("`disks` must not have one `bootOrder` twice"))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub disks: Vec<Disk>,
    /// CD drives, at most 2. Default: none. An HVM guest sees them as emulated drives, with a disc or without, and its
    /// firmware boots from them; they have the places of the last two of its four IDE drives. Other guests see the image in
    /// the first as the read-only disk `xvdo`, in the second as `xvdn`. While the guest runs images are changed and ejected.
    /// Drives are added and removed at the next restart of an HVM guest, and while other guests run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub cds: Vec<Cd>,
    /// Network interfaces, at most 8. Default: none. At the start the guest sees them in this order (`eth0`, `eth1` …).
    /// While it runs interfaces are added, removed, moved to another network and limited; a change of `mac` takes
    /// effect at the next restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(validation = Rule::new("self.all(one, !has(one.mac) || self.exists_one(other, has(other.mac) && other.mac == one.mac))")
        .message("`interfaces` must not have one `mac` twice"))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub interfaces: Vec<Interface>,
    /// Which hosts may run the guest, and which guests it avoids. Default: any host.
    #[serde(default)]
    pub placement: Placement,
    /// What happens when the guest stops. Default: the defaults of its fields.
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// What the guest configures itself by with cloud-init. It finds that on a read-only disk, `xvdp`, which carries the
    /// label that the data source NoCloud looks for. Default: none. A change takes effect at the next restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    /// What happens to the guest when its host dies. Default: it waits for its host.
    #[serde(default)]
    pub availability: Availability,
}

/// Whether a guest runs.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum PowerState {
    /// Runs.
    #[default]
    Running,
    /// Shut down; uses no memory and no CPU.
    Halted,
    /// In memory; its vCPUs stand still.
    Paused,
    /// Saved to a disk; uses no memory and no CPU.
    Suspended,
}

/// A disk of a guest.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Name of the disk within this machine, at most 32 characters.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Name of a VirtualDisk in the same namespace. A VirtualDisk serves one running guest at a time.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub disk: String,
    /// Whether the guest may only read the disk. Default: false.
    #[serde(default)]
    pub read_only: bool,
    /// When a guest without `boot.kernel` tries to boot from the disk, 1 to 16: the lowest first. Disks without it come after
    /// those that have it. BIOS tries the first disk only, and then the drives of `cds`; UEFI and pvgrub try one disk after the
    /// other. Default: none. A change takes effect at the next restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub boot_order: Option<i32>,
}

/// A network interface of a guest.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Name of the interface within this machine, at most 32 characters.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Name of the Network that the interface is connected to.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub network: String,
    /// Hardware address in lower case, as in `00:16:3e:12:34:56`. Default: one that is derived from the machine and
    /// stays the same; `status.interfaces` shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(equal = 17), regex(pattern = r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$"))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$') && self != '00:00:00:00:00:00'")
        .message("`mac` must be a unicast address: six pairs of hexadecimal digits in lower case, the second digit even, as in \"00:16:3e:12:34:56\""))]
    pub mac: Option<String>,
    /// Most that the guest may send through the interface, in bytes per second: `100Mi` is 100 MiB/s. At least 1Ki and at
    /// most 100Gi. Default: no limit. Changes while the guest runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('1Ki')) >= 0 && quantity(self).compareTo(quantity('100Gi')) <= 0")
        .message("`rateLimit` must be a quantity between \"1Ki\" and \"100Gi\""))]
    pub rate_limit: Option<ByteQuantity>,
}

/// Where a guest may run.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Labels that the host must carry. Default: none. A change takes effect at the next start.
    #[serde(default)]
    pub host_selector: HostSelector,
    /// Guests to keep away from. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anti_affinity: Option<AntiAffinity>,
}

/// Guests of one group avoid each other's hosts.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AntiAffinity {
    /// Name of the group, at most 63 characters. Machines of one namespace with the same group avoid each other.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub group: String,
    /// `Required`: rather do not start than share a host. `Preferred` (default): share only where nothing else fits.
    #[serde(default)]
    pub mode: AntiAffinityMode,
}

/// How strict anti-affinity is.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum AntiAffinityMode {
    /// Never share a host.
    Required,
    /// Share a host only where nothing else fits.
    #[default]
    Preferred,
}

/// What happens when a guest stops.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    /// How long a guest that was asked to shut down may take, 0s to 1h; then it is stopped by force. Default: 60s.
    #[serde(default = "default_shutdown_timeout")]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,4}h)?([0-9]{1,5}m)?([0-9]{1,6}s)?$') && duration(self) <= duration('1h')")
        .message("`shutdownTimeout` must be a time span of at most \"1h\", as in \"90s\" or \"5m\""))]
    pub shutdown_timeout: TimeSpan,
    /// When the guest powers itself off: `Halt` (default) leaves it off until it is restarted by annotation or by
    /// `powerState`; `Restart` starts it again.
    #[serde(default)]
    pub on_shutdown: OnShutdown,
    /// When the guest reboots itself: `Restart` (default) or `Halt`.
    #[serde(default)]
    pub on_reboot: OnReboot,
    /// When the guest crashes: `Restart` (default; a guest that crashes again and again waits longer each time, 5 min at
    /// the most), `Halt`, or `Preserve` (its memory is kept for inspection; nothing runs).
    #[serde(default)]
    pub on_crash: OnCrash,
    /// When the guest's host is put into maintenance and the guest cannot move to another host while it runs: `Wait`
    /// (default) leaves it running, and the host is not evacuated until the guest can move; `Restart` shuts it down and
    /// starts it on another host, if one fits; `Leave` leaves it running, and it goes down with its host.
    #[serde(default)]
    pub on_maintenance: OnMaintenance,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            shutdown_timeout: default_shutdown_timeout(),
            on_shutdown: OnShutdown::default(),
            on_reboot: OnReboot::default(),
            on_crash: OnCrash::default(),
            on_maintenance: OnMaintenance::default(),
        }
    }
}

fn default_shutdown_timeout() -> TimeSpan {
    TimeSpan("60s".to_owned())
}

/// What follows when a guest powers itself off.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum OnShutdown {
    /// It stays off.
    #[default]
    Halt,
    /// It is started again.
    Restart,
}

/// What follows when a guest reboots itself.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum OnReboot {
    /// It is started again.
    #[default]
    Restart,
    /// It stays off.
    Halt,
}

/// What follows when a guest crashes.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum OnCrash {
    /// It is started again, after a back-off.
    #[default]
    Restart,
    /// It stays off.
    Halt,
    /// Its memory is kept for inspection.
    Preserve,
}

/// What a guest does that cannot move away from a host in maintenance.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum OnMaintenance {
    /// It stays, and the host is not evacuated until it can move.
    #[default]
    Wait,
    /// It is shut down and started on another host.
    Restart,
    /// It stays, and does not stand in the way.
    Leave,
}

/// What was seen of a virtual machine.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// State in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The Host that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub host: Option<String>,
    /// The Domain object that stands for this machine on its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<DomainReference>,
    /// The last ownership token that was seen: the revision at which the pool's store named the host that runs this
    /// machine. It never goes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub owner_token: Option<i64>,
    /// Virtual CPUs that the guest runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub cpus: Option<i32>,
    /// Memory that the guest holds, which is not `spec.memory.size` as long as its balloon driver has not followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteQuantity>,
    /// The interfaces with the hardware addresses they have, at most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub interfaces: Vec<InterfaceStatus>,
    /// What the guest says of itself while it is on; none if it has no agent that Xen's tools know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestStatus>,
    /// What was saved of the guest while it is suspended; it goes when the guest runs again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<Suspended>,
    /// How the guest last came back after its host had died.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<MachineRecovery>,
    /// `Ready`: what the spec asks for is so. `Scheduled`: a host was found. `Synchronized`: the guest runs with
    /// the spec as it stands; False with reason RestartRequired when a change waits for a restart, Applying while it is
    /// made, GuestNotResponding or DiskInUse when the guest does not do its part. `Protected`: of a machine whose
    /// `spec.availability.restartPriority` is Protected, whether it can start on another host; False with reason LocalDisk
    /// when a disk of it is on one host alone, NoOtherHost when only one host can run it, HostCannotProtect when its host
    /// cannot stop it in time, NoPoolStore, Disarmed or StoreNotRedundant when no guest of the pool is protected. `Stalled`: nothing goes on until
    /// somebody changes something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// State of a virtual machine in one word, for people; programs read the conditions. `Pending`: waits for something
/// it needs, such as a disk. `Scheduling`: waits for a host that fits. `Starting`: a host is starting it. `Running`.
/// `Paused`: in memory, its vCPUs stand still. `Suspended`: saved to a disk. `Migrating`: runs, and is on its way to another host. `Stopping`: is being
/// shut down. `Halted`: off. `Failed`: cannot go on
/// without somebody's help. `Unknown`: its host does not answer.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Phase {
    /// Waits for something it needs: a disk, a network.
    Pending,
    /// Waits for a host that fits.
    Scheduling,
    /// A host is starting it.
    Starting,
    /// Runs.
    Running,
    /// In memory, vCPUs stand still.
    Paused,
    /// Saved to a disk.
    Suspended,
    /// On its way to another host.
    Migrating,
    /// Is being shut down.
    Stopping,
    /// Off.
    Halted,
    /// Cannot go on without somebody's help.
    Failed,
    /// Its host does not answer; nobody knows.
    Unknown,
}

/// A guest that was saved to a disk.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Suspended {
    /// Name of the VirtualDisk that holds the guest's memory, in the machine's namespace. Deleting it gives the guest up:
    /// it boots afresh then.
    #[schemars(length(max = 63))]
    pub disk: String,
    /// What the guest was made of, which is what it is resumed as; later changes of the spec take effect afterwards.
    pub machine: Machine,
}

/// Where the Domain of a machine is.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainReference {
    /// Namespace of the host.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the Domain.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Xen's number for the domain while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub domid: Option<i32>,
}

/// An interface as it is.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// Name of the interface within its machine.
    #[schemars(length(max = 32))]
    pub name: String,
    /// Its hardware address.
    #[schemars(length(max = 17))]
    pub mac: String,
}
