//! Files of this host that guests boot from their own disks with: boot loaders and firmware.
//!
//! The defaults are those of Debian's packages `grub-xen-host`, `seabios` and `ovmf`.

use kubexen_crds::{BootType, Firmware};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Images of the boot loader pvgrub, which are started in place of a guest's kernel and read the `grub.cfg` on its disks.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BootLoaders {
    /// The one for PVH guests.
    pub pvh: PathBuf,
    /// The one for PV guests.
    pub pv: PathBuf,
}

impl Default for BootLoaders {
    fn default() -> Self {
        Self {
            pvh: "/usr/lib/grub-xen/grub-i386-xen_pvh.bin".into(),
            pv: "/usr/lib/grub-xen/grub-x86_64-xen.bin".into(),
        }
    }
}

/// Firmware of HVM guests.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FirmwareFiles {
    /// SeaBIOS.
    pub bios: PathBuf,
    /// OVMF, code and variables in one file.
    pub uefi: PathBuf,
}

impl Default for FirmwareFiles {
    fn default() -> Self {
        Self { bios: "/usr/share/seabios/bios-256k.bin".into(), uefi: "/usr/share/ovmf/OVMF.fd".into() }
    }
}

/// What guests boot from their own disks with, whether it is installed or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootFiles {
    /// Boot loaders.
    pub boot_loaders: BootLoaders,
    /// Firmware.
    pub firmware: FirmwareFiles,
}

impl BootFiles {
    /// The boot loader for guests of this mode; none for those that have firmware.
    #[must_use]
    pub fn boot_loader(&self, boot: BootType) -> Option<&Path> {
        match boot {
            BootType::Pvh => Some(&self.boot_loaders.pvh),
            BootType::Pv => Some(&self.boot_loaders.pv),
            BootType::Hvm => None,
        }
    }

    /// The firmware's file.
    #[must_use]
    pub fn firmware(&self, firmware: Firmware) -> &Path {
        match firmware {
            Firmware::Bios => &self.firmware.bios,
            Firmware::Uefi => &self.firmware.uefi,
        }
    }

    /// The modes whose boot loader is installed.
    #[must_use]
    pub fn installed_boot_loaders(&self) -> Vec<BootType> {
        let is_installed = |boot: &BootType| self.boot_loader(*boot).is_some_and(Path::is_file);
        [BootType::Pv, BootType::Pvh].into_iter().filter(is_installed).collect()
    }

    /// The firmware that is installed.
    #[must_use]
    pub fn installed_firmware(&self) -> Vec<Firmware> {
        let is_installed = |firmware: &Firmware| self.firmware(*firmware).is_file();
        [Firmware::Bios, Firmware::Uefi].into_iter().filter(is_installed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_is_what_is_there_as_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("pvh.bin"), "x").unwrap();
        std::fs::write(path("OVMF.fd"), "x").unwrap();
        std::fs::create_dir(path("bios.bin")).unwrap();
        let files = BootFiles {
            boot_loaders: BootLoaders { pvh: path("pvh.bin"), pv: path("pv.bin") },
            firmware: FirmwareFiles { bios: path("bios.bin"), uefi: path("OVMF.fd") },
        };
        assert_eq!(files.installed_boot_loaders(), [BootType::Pvh]);
        assert_eq!(files.installed_firmware(), [Firmware::Uefi]);
    }
}
