//! `Network`: a layer-2 network that guests connect to (XAPI's network and PIF).

use crate::{condition::conditions_schema, quantity::HostSelector};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A layer-2 network. Hosts attach it when their agent's configuration has the named uplink.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "kubexen.io",
    version = "v1alpha1",
    kind = "Network",
    plural = "networks",
    shortname = "xnet",
    category = "xen",
    status = "NetworkStatus",
    derive = "PartialEq",
    cel,
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Uplink", type_ = "string", json_path = ".spec.bridge.uplink"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Hosts", type_ = "integer", json_path = ".status.attachedHosts"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = "1"),
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("`metadata.name` must be at most 63 characters long")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.type == 'Bridge') == has(self.bridge)")
    .message("`bridge` must be set when, and only when, `type` is \"Bridge\"")
    .field_path(".bridge"))]
pub struct NetworkSpec {
    /// Kind of network. `Bridge`: a Linux bridge on each host, described by `bridge`. Cannot be changed.
    #[serde(rename = "type")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("`type` must not change"))]
    pub type_: NetworkType,
    /// A Linux bridge on each host. Set when `type` is Bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Bridge>,
    /// Labels that a host must carry to attach the network. Default: every host that has the uplink.
    #[serde(default)]
    pub host_selector: HostSelector,
}

/// Kinds of networks.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum NetworkType {
    /// A Linux bridge on each host.
    Bridge,
}

/// A Linux bridge on each host.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bridge {
    /// Name of an uplink in the agents' configuration, at most 63 characters. Cannot be changed.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("`uplink` must not change: make another Network"))]
    pub uplink: String,
}

/// What was seen of a network.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
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
    /// `Ready`: at least one host has it, and none that should have it lacks it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}
