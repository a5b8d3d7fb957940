//! How a domain boots; shared by VirtualMachine and Domain.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the guest is virtualised and what it boots.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.type == 'HVM' || has(self.kernel)")
    .message("`kernel` must be set when `type` is \"PVH\" or \"PV\": such a guest has no firmware that could boot a disk")
    .field_path(".kernel"))]
pub struct Boot {
    /// Virtualisation mode. `PVH` (default): hardware-assisted, no emulated devices; the right one for Linux.
    /// `HVM`: a full PC with emulated devices. `PV`: paravirtualised, for kernels that are too old for PVH.
    #[serde(rename = "type", default)]
    pub type_: BootType,
    /// The kernel to start, from the catalogues of the hosts. Needed for PVH and PV. An HVM guest without it boots
    /// the first of its disks through BIOS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
}

/// Virtualisation mode of a guest: `PVH` (hardware-assisted, without emulated devices), `HVM` (a full PC with emulated
/// devices) or `PV` (paravirtualised).
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
pub enum BootType {
    /// Hardware-assisted without emulated devices.
    #[default]
    #[serde(rename = "PVH")]
    Pvh,
    /// A full PC with emulated devices.
    #[serde(rename = "HVM")]
    Hvm,
    /// Paravirtualised.
    #[serde(rename = "PV")]
    Pv,
}

/// A kernel of the hosts' catalogue.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Kernel {
    /// Name of an entry in the hosts' kernel catalogue, at most 63 characters. Only hosts that have it can run the
    /// guest.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,
    /// Kernel command line, at most 1024 printable ASCII characters. Default: empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024), regex(pattern = r"^[ -~]*$"))]
    pub command_line: String,
}
