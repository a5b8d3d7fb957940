//! How a domain boots; shared by VirtualMachine and Domain.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the guest is virtualised and what it boots.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.firmware) || self.type == 'HVM'")
    .message("`firmware` must not be set unless `type` is \"HVM\": a guest of another type has none")
    .field_path(".firmware"))]
#[x_kube(validation = Rule::new("!has(self.kernel) || !has(self.firmware) || self.firmware != 'UEFI'")
    .message("`kernel` must not be set when `firmware` is \"UEFI\": such a guest boots from its disks")
    .field_path(".kernel"))]
pub struct Boot {
    /// Virtualisation mode. `PVH` (default): hardware-assisted, no emulated devices; the right one for Linux.
    /// `HVM`: a full PC with emulated devices. `PV`: paravirtualised, for kernels that are too old for PVH.
    #[serde(rename = "type", default)]
    pub type_: BootType,
    /// Firmware of an HVM guest: `BIOS` (default) or `UEFI`. Must not be set for other types.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// The kernel to start, from the catalogues of the hosts. Without it the guest boots from its disks: an HVM guest by its
    /// firmware, a PVH or PV guest by the boot loader pvgrub, which reads the `grub.cfg` on a disk of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
}

impl Boot {
    /// The firmware that the guest starts with; none for a guest that has none.
    #[must_use]
    pub fn firmware(&self) -> Option<Firmware> {
        match self.type_ {
            BootType::Hvm => Some(self.firmware.unwrap_or_default()),
            BootType::Pvh | BootType::Pv => None,
        }
    }

    /// Whether the guest is started by a boot loader of its host, which boots it from its disks.
    #[must_use]
    pub fn needs_boot_loader(&self) -> bool {
        match self.type_ {
            BootType::Hvm => false,
            BootType::Pvh | BootType::Pv => self.kernel.is_none(),
        }
    }
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

/// Firmware of a guest: `BIOS` or `UEFI`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    #[serde(rename = "BIOS")]
    Bios,
    /// OVMF.
    #[serde(rename = "UEFI")]
    Uefi,
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
