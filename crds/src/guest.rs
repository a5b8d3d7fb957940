//! What a guest says of itself.

use crate::quantity::ByteQuantity;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What the agent inside a guest says of it. Only the guest vouches for it: nothing is decided by it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestStatus {
    /// Name of the operating system, as in `Debian GNU/Linux 12 (bookworm)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub os_name: Option<String>,
    /// Version of the operating system, as in `12.4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub os_version: Option<String>,
    /// Release of the guest's kernel, as in `6.1.0-18-amd64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub kernel_version: Option<String>,
    /// Version of the agent inside the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub agent_version: Option<String>,
    /// The guest's use of its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<GuestMemory>,
    /// Addresses of its interfaces, at most 8; interfaces without one are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub interfaces: Vec<GuestInterface>,
}

/// A guest's use of its memory.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestMemory {
    /// Bytes that the guest's kernel manages.
    pub total: ByteQuantity,
    /// Bytes of them that are in use. It stays until the figure has moved by a sixteenth of `total`; the agent's metrics
    /// have what Xen measures.
    pub used: ByteQuantity,
}

/// Addresses of an interface of a guest.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestInterface {
    /// Name of the interface within its machine.
    #[schemars(length(max = 32))]
    pub name: String,
    /// Its IP addresses, at most 8, those of version 4 first.
    #[schemars(length(max = 8), inner(length(max = 45)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub addresses: Vec<String>,
}
