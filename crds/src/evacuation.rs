//! Maintenance of a `Host`: that it is wanted, and what happens to the guests that are still there.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether a host is to be emptied, so that it can be worked on.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Maintenance {
    /// `true`: no guest comes here, and those that are here move away, as many at a time as the Pool allows. What cannot
    /// move does what its `spec.lifecycle.onMaintenance` says. The condition Evacuated tells when it is done. Default:
    /// false; it may go back to false at any time.
    #[serde(default)]
    pub enabled: bool,
}

/// What happens to the guests that are still on a host in maintenance.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostEvacuation {
    /// Number of guests that move to other hosts while they run.
    #[schemars(range(min = 0))]
    pub migrating: i32,
    /// Number of guests that are shut down and started on other hosts.
    #[schemars(range(min = 0))]
    pub restarting: i32,
    /// Number of guests that stand in the way: they can neither move nor be restarted elsewhere as things are.
    #[schemars(range(min = 0))]
    pub waiting: i32,
    /// Number of guests that stay and stand in nobody's way.
    #[schemars(range(min = 0))]
    pub staying: i32,
    /// The guests, those that wait first; at most 64, the numbers above count the others too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["namespace".into(), "name".into()]))]
    pub machines: Vec<EvacuationStep>,
}

/// What happens to one guest of a host in maintenance.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvacuationStep {
    /// Namespace of the VirtualMachine.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the VirtualMachine.
    #[schemars(length(max = 63))]
    pub name: String,
    /// What happens to it.
    pub action: EvacuationAction,
    /// The Host that it goes to; for one whose turn has not come this is the plan, and may change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub destination: Option<String>,
    /// Why, as one CamelCase word: `Planned`, `Moving`, `Retrying`, `Stopping`, or what stands in the way.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
}

/// What happens to a guest of a host in maintenance. `Migrate`: it moves to another host while it runs. `Restart`: it is
/// shut down and started on another host. `Wait`: it stays until it can do either, and stands in the way. `Leave`: it
/// stays, and does not stand in the way.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
pub enum EvacuationAction {
    /// Stays until it can move, and stands in the way.
    Wait,
    /// Is shut down and started on another host.
    Restart,
    /// Moves to another host while it runs.
    Migrate,
    /// Stays, and does not stand in the way.
    Leave,
}
