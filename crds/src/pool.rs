//! `Pool`: policy for all hosts of an installation.

use crate::{
    availability::{PoolAvailability, PoolAvailabilityStatus},
    condition::conditions_schema,
    cpu::FeatureSets,
    quantity::ByteQuantity,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Policy of the pool. There is one, named `default`; without it the defaults below hold.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "kubexen.io",
    version = "v1alpha1",
    kind = "Pool",
    plural = "pools",
    shortname = "xpool",
    category = "xen",
    status = "PoolStatus",
    derive = "PartialEq",
    cel,
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Hosts", type_ = "integer", json_path = ".status.hosts"),
    printcolumn(name = "Ready-Hosts", type_ = "integer", json_path = ".status.readyHosts"),
    printcolumn(name = "Strategy", type_ = "string", json_path = ".spec.placement.strategy"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name == 'default'").message("`metadata.name` must be \"default\": an installation has one pool")
)]
#[serde(rename_all = "camelCase")]
pub struct PoolSpec {
    /// How hosts are chosen for guests. Default: the defaults of its fields.
    #[serde(default)]
    pub placement: PlacementPolicy,
    /// Which CPU features guests are given. Default: the defaults of its fields.
    #[serde(default)]
    pub cpu: CpuPolicy,
    /// How many guests move at a time, how fast, and over which network. Default: the defaults of its fields.
    #[serde(default)]
    pub migration: MigrationPolicy,
    /// What is done about hosts that die. Default: the defaults of its fields.
    #[serde(default)]
    pub availability: PoolAvailability,
}

/// Which CPU features guests are given.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CpuPolicy {
    /// How `status.cpu.level` moves, at which machines start. `OnlyDown` (default): down to what all hosts have, and it
    /// stays there when the host that lacked a feature leaves. `Follow`: always what all hosts have. Machines that run
    /// keep the level that they were started at.
    #[serde(default)]
    pub level: LevelPolicy,
}

/// How the pool's CPU level moves.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum LevelPolicy {
    /// Down to what all hosts have, never up.
    #[default]
    OnlyDown,
    /// Always what all hosts have.
    Follow,
}

/// How guests move between hosts.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationPolicy {
    /// How many moves one host may take part in at a time, 1 to 64; the others wait for their turn. Default: 2.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 64))]
    pub max_per_host: i32,
    /// How many moves may go on in the pool at a time, 1 to 1024. Default: 8.
    #[serde(default = "eight")]
    #[schemars(range(min = 1, max = 1024))]
    pub max_per_pool: i32,
    /// Bytes a second that one move may send, at least 1Mi. Default: as many as the network takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('1Mi')) >= 0")
        .message("`bandwidth` must be a quantity of at least \"1Mi\" a second"))]
    pub bandwidth: Option<ByteQuantity>,
    /// Name of the network that guests move over, as the configuration of the hosts' agents has it: hosts that have no address
    /// on it neither send nor receive guests. Default: each host's address for migrations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub network: Option<String>,
}

impl Default for MigrationPolicy {
    fn default() -> Self {
        Self { max_per_host: two(), max_per_pool: eight(), bandwidth: None, network: None }
    }
}

fn two() -> i32 {
    2
}

fn eight() -> i32 {
    8
}

/// How hosts are chosen.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlacementPolicy {
    /// `Spread` (default): the emptiest host that fits. `Pack`: the fullest one.
    #[serde(default)]
    pub strategy: Strategy,
    /// How many vCPUs of guests one CPU of a host may carry, 1 to 64. Default: 4.
    #[serde(default = "four")]
    #[schemars(range(min = 1, max = 64))]
    pub cpu_overcommit: i32,
}

impl Default for PlacementPolicy {
    fn default() -> Self {
        Self { strategy: Strategy::default(), cpu_overcommit: four() }
    }
}

fn four() -> i32 {
    4
}

/// Which of the hosts that fit is taken.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Strategy {
    /// The emptiest.
    #[default]
    Spread,
    /// The fullest.
    Pack,
}

/// What was seen of the pool.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Number of hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub hosts: Option<i32>,
    /// Number of hosts that are Ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub ready_hosts: Option<i32>,
    /// The CPU features that machines are started with; none before a host has published its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<PoolCpu>,
    /// What the pool can take of hosts that die.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub availability: Option<PoolAvailabilityStatus>,
    /// `Ready`: there are hosts, and all of them are Ready. `FailuresTolerated`: there is room for the protected guests of as
    /// many hosts as `spec.availability` asks for, and they can be started elsewhere; False with reason NotEnoughRoom when there is
    /// not, NotCertain when that could not be shown in a large pool, StoreNotRedundant when the pool's store would not outlive
    /// those hosts, NoPoolStore, Disarmed or Frozen when nothing is started elsewhere; the message names hosts, the machine that
    /// would stay down, and what would help. Absent when no failure is to be tolerated. `Recovering`: guests of dead hosts are being started elsewhere; False with
    /// the reason StormBrake when too many hosts are silent for that, Frozen when the pool's store was restored, Disarmed when
    /// nothing is to be done. `StoreRedundant`: the pool's store outlives the death of any one host; False with the reason
    /// HostHoldsMajority when so many of its members run on one host that the rest is no majority: then no guest is protected;
    /// Unknown with the reason MembersNotPlaced when a member is known by a name or address that no Host has, MembersNotRead when
    /// the store does not say who they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// The CPU features that machines are started with.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolCpu {
    /// The level: features that all hosts have, or had.
    pub level: FeatureSets,
    /// Names of the features of PVH and HVM guests at this level, as Linux has them, sorted, at most 512.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512), inner(length(max = 32)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub features: Vec<String>,
}
