//! Makes a logical volume a device of this host, and takes the device away. No lock is needed, and no metadata changes.

use super::{VolumeGroup, failed};
use crate::storage::{
    StorageError,
    lvm::{
        command,
        device::Device,
        metadata::COMMAND_LIMIT,
        names::{self, LvName},
    },
};
use std::{fs, io, path::Path};

impl VolumeGroup {
    pub(super) async fn activate(&self, name: LvName, read_only: bool) -> Result<Device, StorageError> {
        const CALL: &str = "activate the volume";
        let path = self.path(name);
        let activate = ["lvchange", "--activate=y", "--ignoreactivationskip", &path];
        command::lvm(CALL, &activate, &self.access(name, read_only), COMMAND_LIMIT).await?;
        match self.active()?.remove(&name) {
            Some(device) if device.read_only == read_only => Ok(device),
            Some(_) => Err(failed(CALL, "its device has the wrong access")),
            None => Err(failed(CALL, "it has no device")),
        }
    }

    pub(super) async fn deactivate(&self, name: LvName) -> Result<(), StorageError> {
        let deactivate = ["lvchange", "--activate=n", &self.path(name)];
        command::lvm("deactivate the volume", &deactivate, "", COMMAND_LIMIT).await.map(drop)
    }

    /// Makes the device as the group has it, its size above all.
    pub(super) async fn refresh(&self, name: LvName, read_only: bool) -> Result<(), StorageError> {
        let refresh = ["lvchange", "--refresh", &self.path(name)];
        let access = self.access(name, read_only);
        command::lvm("refresh the volume", &refresh, &access, COMMAND_LIMIT).await.map(drop)
    }

    /// Removes a device that no logical volume stands for any more. LVM knows nothing of it, so its link in the group's
    /// folder is removed as well, where no udev does it.
    pub(super) async fn remove_stale(&self, name: LvName) -> Result<(), StorageError> {
        const CALL: &str = "remove a device";
        command::dmsetup(CALL, &["remove", &names::device_name(&self.name, name)], COMMAND_LIMIT).await?;
        let folder = Path::new("/dev").join(&self.name);
        let removed = match fs::remove_file(folder.join(name.to_string())) {
            // Other links may be in the folder.
            Ok(()) => fs::remove_dir(folder).or(Ok(())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        removed.map_err(|source| StorageError::Io { call: CALL, source })
    }

    /// LVM's configuration that makes a volume's device read-only, if it is to be.
    pub(super) fn access(&self, name: LvName, read_only: bool) -> String {
        if read_only {
            format!("activation{{read_only_volume_list=[\"{}\"]}}", self.path(name))
        } else {
            String::new()
        }
    }
}
