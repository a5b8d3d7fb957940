//! CDs: images that guests may read, many guests each.
//!
//! A PVH or PV guest sees an image as a read-only disk, which comes and goes. An HVM guest has emulated drives, in which images
//! come and go. These are IDE drives, and so are the first four of its disks (`xvda` is `hda`): the last of the four are left
//! to its CD drives.

use crate::boot::BootType;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Names under which PVH and PV guests see the discs in their drives: behind their disks, before the seed.
pub const CD_TARGETS: [&str; 2] = ["xvdo", "xvdn"];

/// The emulated drives that HVM guests can have.
pub const EMULATED_CD_TARGETS: [&str; 2] = ["hdc", "hdd"];

/// The targets of so many drives of a guest of this mode, in their order.
#[must_use]
pub fn cd_targets(boot: BootType, count: usize) -> &'static [&'static str] {
    match boot {
        BootType::Hvm => &EMULATED_CD_TARGETS[EMULATED_CD_TARGETS.len().saturating_sub(count)..],
        BootType::Pvh | BootType::Pv => &CD_TARGETS,
    }
}

/// Whether no disk can have the target `disk` because a CD drive has the target `cd`.
#[must_use]
pub fn takes_place(cd: &str, disk: &str) -> bool {
    let drive = cd.strip_prefix("hd");
    disk == cd || (drive.is_some() && disk.strip_prefix("xvd") == drive)
}

/// A CD drive of a guest.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cd {
    /// Name of the drive within this machine, at most 32 characters.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The image in the drive. Default: none, the drive is empty. Changes while the guest runs, when the guest lets go
    /// of the image that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// When a guest that boots by BIOS tries to boot from the drive, 1 to 16, counted together with the `bootOrder` of
    /// `disks`. If a drive comes before all disks, BIOS tries the CD drives first, one after the other. Default: none, the
    /// drives are tried when the first disk cannot be booted. UEFI tries CD drives first in any case. A change takes effect
    /// at the next restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub boot_order: Option<i32>,
}

/// An image in a repository.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Name of a StorageRepository of type Directory.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub repository: String,
    /// Name of a file in the folder `images` of the repository's location, at most 128 letters, digits, `.`, `_` and `-`.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    pub name: String,
}

/// A CD drive of a domain.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainCd {
    /// Name of the drive within its machine.
    #[schemars(length(min = 1, max = 32))]
    pub name: String,
    /// Name under which the guest sees an image in it: `xvdo` and `xvdn`; or the emulated drive that it is, `hdc` or `hdd`,
    /// which cannot be changed, added or removed.
    #[schemars(length(min = 3, max = 4), regex(pattern = r"^(xvd[no]|hd[cd])$"))]
    pub target: String,
    /// The image in it. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<DomainImage>,
    /// Whether BIOS tries emulated drives before the disks because of this one. Default: false. Cannot be changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub before_disks: bool,
}

impl DomainCd {
    /// Whether it is an emulated drive.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        EMULATED_CD_TARGETS.contains(&self.target.as_str())
    }
}

/// An image on a host.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainImage {
    /// Name of the storage location in the agent's configuration.
    #[schemars(length(min = 1, max = 63))]
    pub location: String,
    /// Name of the file.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drives_of_hvm_guests_are_the_last_ide_drives_in_their_order() {
        assert_eq!(cd_targets(BootType::Pvh, 1), CD_TARGETS);
        assert_eq!(cd_targets(BootType::Hvm, 0), [""; 0]);
        assert_eq!(cd_targets(BootType::Hvm, 1), ["hdd"]);
        assert_eq!(cd_targets(BootType::Hvm, 2), ["hdc", "hdd"]);
    }

    #[test]
    fn a_drive_has_the_place_of_the_disk_that_would_be_the_same_ide_drive() {
        for (cd, disk, expected) in [
            ("xvdo", "xvdo", true),
            ("xvdo", "xvdc", false),
            ("hdc", "xvdc", true),
            ("hdc", "xvdd", false),
            ("hdd", "xvdd", true),
        ] {
            assert_eq!(takes_place(cd, disk), expected, "{cd} {disk}");
        }
    }
}
