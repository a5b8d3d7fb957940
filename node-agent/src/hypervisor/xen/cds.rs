//! Emulated CD drives of HVM guests.
//!
//! libxl keeps a drive as a disk whose back end is the device model, so it stands beside the other disks below `/libxl` and has
//! its back end elsewhere. To change what is in it libxl speaks to the device model over QMP: it has the drive opened and emptied,
//! writes that down, opens the new image itself and passes the descriptor on, which a device model without privileges takes too
//! (`libxl_cdrom_insert`, Xen 4.13 and later). An image is given as a file, because QEMU 6.0 and later take the descriptor of
//! a file and not that of a block device.

use super::{
    Inner, config,
    protocol::{Request, Target},
    settings::ATTACH,
    xenstore::sanitize,
};
use crate::hypervisor::{CdConfig, DomainConfig, HypervisorError};
use serde_json::{Value, json};
use std::path::PathBuf;

/// What QEMU says of a drive that the guest has locked, as Linux does while the disc is mounted. The guest is told that
/// somebody wants to have the drive opened.
const LOCKED: &str = "is locked and force was not specified";

/// A `libxl_device_disk` that is a CD drive.
pub(super) fn disk(cd: &CdConfig) -> Value {
    let mut disk = json!({
        "vdev": cd.target,
        "is_cdrom": 1,
        "removable": 1,
        "readwrite": 0,
        "backend": "qdisk",
        "format": "empty",
    });
    if let Some(image) = &cd.image {
        disk["format"] = "raw".into();
        disk["pdev_path"] = config::path(image);
    }
    disk
}

/// The kinds of drives that BIOS boots from, one letter each: `c` is the first disk, `d` all CD drives one after the other. What
/// is left out is tried at the end. UEFI does not look at it.
pub(super) fn boot_order(config: &DomainConfig) -> &'static str {
    match (config.cds.is_empty(), config.cds_first) {
        (true, _) => "c",
        (false, false) => "cd",
        (false, true) => "dc",
    }
}

impl Inner {
    /// What is in a domain's drives.
    pub(super) async fn cds(&self, domid: u16) -> Result<Vec<CdConfig>, HypervisorError> {
        let mut cds = Vec::new();
        for (_, backend) in self.backends(domid, "vbd", "qdisk").await? {
            let read = |name: &'static str| {
                let node = format!("{backend}/{name}");
                async move { self.store.read(&node).await }
            };
            if read("device-type").await?.as_deref() != Some(b"cdrom") {
                continue;
            }
            let Some(target) = read("dev").await? else { continue };
            let image = image(&read("params").await?.unwrap_or_default());
            cds.push(CdConfig { target: sanitize(&target, 64), image });
        }
        cds.sort_by(|one, other| one.target.cmp(&other.target));
        Ok(cds)
    }

    pub(super) async fn change_cd(&self, target: Target, cd: &CdConfig) -> Result<(), HypervisorError> {
        if self.cds(target.domid).await?.contains(cd) {
            return Ok(());
        }
        match self.done(Request::ChangeCd { target, cd: disk(cd) }, ATTACH).await {
            Err(HypervisorError::Refused { detail, .. }) if detail.contains(LOCKED) => {
                Err(HypervisorError::InUse(format!(
                    "The guest does not let go of the disc in its CD drive {}; unmount it in the guest, or eject it there",
                    cd.target
                )))
            }
            other => other,
        }
    }
}

/// The file that `params` of a back end names, behind its format.
fn image(params: &[u8]) -> Option<PathBuf> {
    let params = sanitize(params, 4096);
    let (_, file) = params.split_once(':')?;
    (!file.is_empty()).then(|| file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_with_an_image_and_an_empty_one_are_told_to_libxl() {
        let empty = CdConfig { target: "hdc".to_owned(), image: None };
        let expected = json!({
            "vdev": "hdc",
            "is_cdrom": 1,
            "removable": 1,
            "readwrite": 0,
            "backend": "qdisk",
            "format": "empty",
        });
        assert_eq!(disk(&empty), expected);
        let full = CdConfig { image: Some("/srv/images/debian.iso".into()), ..empty };
        let expected = json!({
            "vdev": "hdc",
            "is_cdrom": 1,
            "removable": 1,
            "readwrite": 0,
            "backend": "qdisk",
            "format": "raw",
            "pdev_path": "/srv/images/debian.iso",
        });
        assert_eq!(disk(&full), expected);
    }

    #[test]
    fn the_image_is_what_follows_the_format() {
        for (params, expected) in
            [("aio:/srv/images/a:b.iso", Some("/srv/images/a:b.iso")), ("aio:", None), ("", None)]
        {
            assert_eq!(image(params.as_bytes()), expected.map(Into::into), "{params}");
        }
    }
}
