//! What happens to guests whose host dies: what their owners want, what the pool's policy is, what operators say, and how it
//! went.

use crate::quantity::TimeSpan;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What happens to a guest when its host dies.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Availability {
    /// `Protected`: the guest is started on another host, the pool keeps room for that, and its host stops it before that
    /// could happen. `BestEffort`: it is started on another host once the dead one is known to be dead, if there is room that
    /// no protected guest needs. `None` (default): it waits for its host.
    #[serde(default)]
    pub restart_priority: RestartPriority,
    /// Guests of a dead host are started in this order, 0 to 1000: the lowest first, and the next when those have started
    /// and their `startDelay` is over. Default: 100.
    #[serde(default = "hundred")]
    #[schemars(range(min = 0, max = 1000))]
    pub order: i32,
    /// How long guests of a higher `order` wait after this one has started, 0s to 1h. Default: 0s.
    #[serde(default = "no_delay")]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,4}h)?([0-9]{1,5}m)?([0-9]{1,6}s)?$') && duration(self) <= duration('1h')")
        .message("`startDelay` must be a time span of at most \"1h\", as in \"90s\" or \"5m\""))]
    pub start_delay: TimeSpan,
}

impl Default for Availability {
    fn default() -> Self {
        Self { restart_priority: RestartPriority::default(), order: hundred(), start_delay: no_delay() }
    }
}

fn hundred() -> i32 {
    100
}

fn no_delay() -> TimeSpan {
    TimeSpan("0s".to_owned())
}

/// Whether a guest is started elsewhere when its host dies.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
pub enum RestartPriority {
    /// It is, and the pool keeps room for it.
    Protected,
    /// It is, if there is room to spare.
    BestEffort,
    /// It waits for its host.
    #[default]
    None,
}

/// What the pool does about hosts that die.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolAvailability {
    /// How many hosts may die at once without a protected guest staying down, 0 to 32. Placement keeps room for that, and the
    /// condition FailuresTolerated says whether there is. Default: 0, which keeps no room.
    #[serde(default)]
    #[schemars(range(min = 0, max = 32))]
    pub host_failures_to_tolerate: i32,
    /// How soon a silent host counts as dead. `Default`: its lease lasts 30 s, it stops protected guests within 20 s, and 10 s
    /// after the lease they are started elsewhere. `Fast`: 15 s, 8 s and 4 s. Default: `Default`. Agents take a change over
    /// at once.
    #[serde(default)]
    pub profile: Profile,
    /// Percentage of hosts that may be silent at once, at least one host, and at least `hostFailuresToTolerate`: while there are
    /// more, no guest is started elsewhere, because the fault is then rather between the hosts and the pool's store. 1 to 100.
    /// Default: 30.
    #[serde(default = "thirty")]
    #[schemars(range(min = 1, max = 100))]
    pub max_silent_percent: i32,
    /// Whether nothing is done about hosts that die, and no host stops guests because of its lease, as while the pool's
    /// store is worked on. Default: false.
    #[serde(default)]
    pub disarmed: bool,
    /// The epoch of the pool's store that an operator has confirmed: after a restore from a backup nothing is started or
    /// stopped before the epoch that `status.availability.freeze` names stands here. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub confirmed_epoch: Option<String>,
}

impl Default for PoolAvailability {
    fn default() -> Self {
        Self {
            host_failures_to_tolerate: 0,
            profile: Profile::default(),
            max_silent_percent: thirty(),
            disarmed: false,
            confirmed_epoch: None,
        }
    }
}

fn thirty() -> i32 {
    30
}

/// How soon a silent host counts as dead.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Profile {
    /// 40 s after its last sign of life.
    #[default]
    Default,
    /// 18 s after its last sign of life.
    Fast,
}

/// What an operator says of a host's boots.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostFencing {
    /// A boot of the host, as `status.bootID` shows it, that somebody has seen to be off: its guests are started elsewhere at
    /// once, whatever the storm brake says. A boot that is alive after all, by its lease or by its agent's heartbeat at the API
    /// server, is not believed to be dead, and one that nobody knows neither: an event of the Host says why. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub confirmed_dead: Option<String>,
    /// A fenced boot of the host that somebody has seen to run no protected guest: it may come back without a reboot. It is
    /// followed once, which `status.fencing.unfenced` says; take it away and give it again to repeat it. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub unfenced: Option<String>,
}

/// What was done by an operator's word about a host's boots. Written by the controller.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostFencingStatus {
    /// `spec.fencing.unfenced`, once it was followed: the boot was unfenced then, or was not fenced. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub unfenced: Option<String>,
}

/// What the pool's policy asks of a host's agent, which cannot read the Pool. Written by the controller.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostAvailability {
    /// `spec.availability.profile` of the Pool: `Default` or `Fast`. Default: `Default`.
    #[serde(default)]
    pub profile: Profile,
    /// `spec.availability.disarmed` of the Pool. Default: false.
    #[serde(default)]
    pub disarmed: bool,
    /// Why no guest is protected in this pool whatever the host can do. Default: none, when guests are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub refused: Option<String>,
    /// `status.availability.epoch` of the Pool: an agent that was not at work before on this boot believes no store that does not
    /// say that it follows that one. Default: none, as long as none has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub epoch: Option<String>,
}

/// Whether a host can keep the promise to stop protected guests in time. Written by its agent.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostProtection {
    /// `Ready`: what is protected here is guarded; the host has had a lease, and a watchdog that resets it if it must could be had
    /// when that was last looked at. A host that hears nothing of the pool's store for a while stays `Ready` and guards no more
    /// guests. `Unavailable`: protected guests run here all the same, but nobody is guarded, so they wait for an operator if the
    /// host dies.
    pub state: ProtectionState,
    /// Why it is unavailable; empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub message: String,
    /// The epoch of the pool's store in which all guests of this host are on record, as number of confirmed restores and the
    /// cluster id of the store that answers. Default: none, before they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub epoch: Option<String>,
}

/// Whether protected guests are guarded on a host.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum ProtectionState {
    /// They are guarded.
    Ready,
    /// They may run, and are not guarded.
    Unavailable,
}

/// How the guests of a host that died came back. Written by the controller.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostRecovery {
    /// The boot that died.
    #[serde(rename = "bootID")]
    #[schemars(length(max = 64))]
    pub boot_id: String,
    /// The latest heartbeat of its agent at the API server that the controller saw before it found the lease gone, by the
    /// controller's clock. An agent beats every 10 s. Absent if the controller saw none of this boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sign: Option<MicroTime>,
    /// When its lease was first seen gone.
    pub lease_gone: MicroTime,
    /// When it was fenced: from then on it can never come back to life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced: Option<MicroTime>,
    /// Guests that it had and that are to be started elsewhere. Those that had ended before it died are none of them.
    #[schemars(range(min = 0))]
    pub machines: i32,
    /// How many of those have been started elsewhere.
    #[schemars(range(min = 0))]
    pub recovered: i32,
    /// When the last of them was Ready, or none was left to be started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<MicroTime>,
}

/// How a guest came back after its host had died. Written by the controller.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineRecovery {
    /// The host that died.
    #[schemars(length(max = 63))]
    pub from: String,
    /// The boot of it that died.
    #[serde(rename = "bootID")]
    #[schemars(length(max = 64))]
    pub boot_id: String,
    /// When that was fenced.
    pub fenced: MicroTime,
    /// The host that it was given to.
    #[schemars(length(max = 63))]
    pub to: String,
    /// When the pool's store named that host as its owner.
    pub stolen: MicroTime,
    /// When that host was first seen to run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<MicroTime>,
    /// When it was Ready there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<MicroTime>,
}

/// What the pool can take of hosts that die. Written by the controller.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolAvailabilityStatus {
    /// How many hosts may die at once, whichever they are, without a protected guest staying down, as things are; as many as there
    /// is room for, at most as many as the pool's store outlives, none while nothing is started elsewhere, and at most as many
    /// as `spec.availability.hostFailuresToTolerate` asks for. Absent when it asks for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub tolerates: Option<i32>,
    /// Number of protected guests that are on. Those whose condition Protected is False because a disk is on their host
    /// alone, or because something that they refer to is missing, do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub protected: Option<i32>,
    /// Hosts that own guests, whose lease is gone and that are not fenced yet, at most 64. While the condition Recovering says
    /// StormBrake: the hosts that count as silent for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub silent_hosts: Vec<String>,
    /// The epoch of the pool's store in which its records count, as number of confirmed restores and etcd's cluster id. Default:
    /// none, before the store has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub epoch: Option<String>,
    /// The epoch that the pool's store would begin, as long as it waits for an operator: nothing is started, given to another
    /// host or stopped before `spec.availability.confirmedEpoch` is the same. Default: none, when nothing waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub freeze: Option<String>,
}
