//! Blocking work on one folder of volumes. Callers do one thing at a time in it.
//!
//! Names of files are made from UUIDs alone and are opened relative to the folder without following links, so nothing
//! that stands in the folder leads out of it.

use super::{
    StorageError, VolumeId,
    images::{self, ImageId},
    loop_device, marker,
};
use rustix::{
    fs::{self as sys, AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags},
    io::Errno,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::OwnedFd,
    path::PathBuf,
};
use uuid::Uuid;

/// A folder of volumes.
#[derive(Debug)]
pub(super) struct Folder {
    location: String,
    path: PathBuf,
    capacity: Option<u64>,
    access: Access,
}

/// How a volume becomes a device node.
#[derive(Debug)]
pub(super) enum Access {
    /// Through a loop device.
    LoopDevice,
    /// Not at all: its file is the node, and a marker in this folder tells that it is attached.
    Marker { folder: PathBuf },
}

const SUFFIX: &str = ".raw";

impl Folder {
    pub(super) fn new(location: String, path: PathBuf, capacity: Option<u64>, access: Access) -> Self {
        Self { location, path, capacity, access }
    }

    /// The sum that sizes may reach, in bytes. Fails where the folder cannot be used.
    pub(super) fn capacity(&self) -> Result<u64, StorageError> {
        let folder = self.open()?;
        let space = sys::fstatvfs(&folder).map_err(io("statvfs"))?;
        Ok(self.capacity.unwrap_or(space.f_blocks.saturating_mul(space.f_frsize)))
    }

    pub(super) fn find(&self, uuid: Uuid) -> Result<Option<u64>, StorageError> {
        size(&self.open()?, &file_name(uuid))
    }

    pub(super) fn create(&self, uuid: Uuid, size_wanted: u64) -> Result<(), StorageError> {
        let folder = self.open()?;
        let name = file_name(uuid);
        match size(&folder, &name)? {
            Some(existing) if existing == size_wanted => return Ok(()),
            Some(existing) => {
                let volume = self.volume(uuid);
                return Err(StorageError::OtherSize { volume, existing, requested: size_wanted });
            }
            None => {}
        }
        self.reserve(&folder, size_wanted)?;
        let temporary = temporary_name(uuid);
        unlink(&folder, &temporary)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = sys::openat(&folder, &temporary, flags, Mode::RUSR | Mode::WUSR).map_err(io("open"))?;
        let made = sys::ftruncate(&file, size_wanted)
            .and_then(|()| self.sync(&file))
            .and_then(|()| sys::renameat_with(&folder, &temporary, &folder, &name, RenameFlags::NOREPLACE))
            .and_then(|()| self.sync(&folder))
            .map_err(io("create"));
        if made.is_err() {
            unlink(&folder, &temporary)?;
        }
        made
    }

    pub(super) fn grow(&self, uuid: Uuid, size_wanted: u64) -> Result<(), StorageError> {
        let folder = self.open()?;
        let existing = size(&folder, &file_name(uuid))?;
        let existing = existing.ok_or_else(|| StorageError::NoSuchVolume(self.volume(uuid)))?;
        let Some(more) = size_wanted.checked_sub(existing) else {
            let volume = self.volume(uuid);
            return Err(StorageError::WouldShrink { volume, existing, requested: size_wanted });
        };
        if more > 0 {
            self.reserve(&folder, more)?;
            let file = self.open_file(&folder, uuid, OFlags::WRONLY)?;
            sys::ftruncate(&file, size_wanted).and_then(|()| self.sync(&file)).map_err(io("grow"))?;
        }
        match &self.access {
            // Also where the file has its size already: an agent may have been killed before the device learnt it.
            Access::LoopDevice => {
                let path = self.file_path(uuid)?;
                let devices = loop_device::devices_of(&path).map_err(failed("list loop devices"))?;
                devices.into_iter().try_for_each(|device| {
                    loop_device::learn_size(device, &path).map_err(failed("resize a loop device"))
                })
            }
            Access::Marker { .. } => Ok(()),
        }
    }

    pub(super) fn delete(&self, uuid: Uuid) -> Result<(), StorageError> {
        if self.attached()?.contains(&uuid) {
            return Err(StorageError::InUse(self.volume(uuid)));
        }
        let folder = self.open()?;
        unlink(&folder, &file_name(uuid))?;
        // What a creation that was killed has left.
        unlink(&folder, &temporary_name(uuid))?;
        self.sync(&folder).map_err(io("fsync"))
    }

    pub(super) fn attach(&self, uuid: Uuid, read_only: bool) -> Result<PathBuf, StorageError> {
        let flags = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let file = self.open_file(&self.open()?, uuid, flags)?;
        let path = self.file_path(uuid)?;
        let in_use = || StorageError::InUse(self.volume(uuid));
        match &self.access {
            Access::LoopDevice => {
                let devices = loop_device::devices_of(&path).map_err(failed("list loop devices"))?;
                let device = match devices.first() {
                    Some(&device) => {
                        let attachment =
                            loop_device::attachment(device).map_err(failed("read a loop device"))?;
                        if attachment.read_only != read_only || attachment.vanishing {
                            return Err(in_use());
                        }
                        device
                    }
                    None => {
                        loop_device::attach(&file, read_only).map_err(failed("configure a loop device"))?
                    }
                };
                Ok(loop_device::node(device))
            }
            Access::Marker { folder } => match marker::place(folder, uuid, read_only) {
                Ok(true) => Ok(path),
                Ok(false) => Err(in_use()),
                Err(error) => Err(failed("write a marker")(error)),
            },
        }
    }

    pub(super) fn detach(&self, uuid: Uuid) -> Result<(), StorageError> {
        match &self.access {
            Access::LoopDevice => {
                let path = self.file_path(uuid)?;
                for device in loop_device::devices_of(&path).map_err(failed("list loop devices"))? {
                    if !loop_device::detach(device, &path).map_err(failed("clear a loop device"))? {
                        return Err(StorageError::InUse(self.volume(uuid)));
                    }
                }
                Ok(())
            }
            Access::Marker { folder } => marker::remove(folder, uuid).map_err(failed("remove a marker")),
        }
    }

    pub(super) fn attached(&self) -> Result<BTreeSet<Uuid>, StorageError> {
        match &self.access {
            Access::LoopDevice => {
                let folder = self.real_path()?;
                let files = loop_device::backing_files().map_err(failed("list loop devices"))?;
                let ours = files.values().filter(|path| path.parent() == Some(&folder));
                Ok(ours.filter_map(|path| volume_of(path.file_name()?.to_str()?)).collect())
            }
            Access::Marker { folder } => marker::all(folder).map_err(failed("list markers")),
        }
    }

    pub(super) fn images(&self) -> Result<Vec<String>, StorageError> {
        images::list(&self.path)
    }

    pub(super) fn attach_image(&self, image: &ImageId) -> Result<PathBuf, StorageError> {
        images::attach(&self.path, image, self.has_loop_devices())
    }

    pub(super) fn image_file(&self, image: &ImageId) -> Result<PathBuf, StorageError> {
        images::file(&self.path, image).map(|(path, _)| path)
    }

    pub(super) fn detach_image(&self, image: &str) -> Result<(), StorageError> {
        images::detach(&self.path, image, self.has_loop_devices())
    }

    pub(super) fn attached_images(&self) -> Result<BTreeMap<String, PathBuf>, StorageError> {
        images::attached(&self.path, self.has_loop_devices())
    }

    fn has_loop_devices(&self) -> bool {
        match self.access {
            Access::LoopDevice => true,
            Access::Marker { .. } => false,
        }
    }

    /// Refuses unless `more` bytes fit below the capacity and into the file system.
    fn reserve(&self, folder: &OwnedFd, more: u64) -> Result<(), StorageError> {
        let available = self.capacity()?.saturating_sub(used(folder)?);
        let free = match &self.access {
            Access::LoopDevice => {
                let space = sys::fstatvfs(folder).map_err(io("statvfs"))?;
                space.f_bavail.saturating_mul(space.f_frsize)
            }
            // Nobody ever writes into the volumes of a simulated host.
            Access::Marker { .. } => u64::MAX,
        };
        let available = available.min(free);
        if more <= available {
            Ok(())
        } else {
            Err(StorageError::NoSpace { location: self.location.clone(), available, requested: more })
        }
    }

    fn open(&self) -> Result<OwnedFd, StorageError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        sys::openat(CWD, &self.path, flags, Mode::empty()).map_err(io("open the folder"))
    }

    fn open_file(&self, folder: &OwnedFd, uuid: Uuid, flags: OFlags) -> Result<OwnedFd, StorageError> {
        let name = file_name(uuid);
        // Looked at before it is opened: opening a device or a pipe that somebody put there has effects.
        size(folder, &name)?.ok_or_else(|| StorageError::NoSuchVolume(self.volume(uuid)))?;
        sys::openat(folder, &name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .map_err(io("open"))
    }

    /// The folder's path as the kernel tells it. A folder that is not there has the path from the configuration, so
    /// that what was attached from it is still known.
    fn real_path(&self) -> Result<PathBuf, StorageError> {
        match fs::canonicalize(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(self.path.clone()),
            result => result.map_err(failed("resolve the folder")),
        }
    }

    fn file_path(&self, uuid: Uuid) -> Result<PathBuf, StorageError> {
        Ok(self.real_path()?.join(file_name(uuid)))
    }

    /// Makes what was written last through a power failure; a simulated host has none.
    fn sync(&self, file: &OwnedFd) -> Result<(), Errno> {
        match self.access {
            Access::LoopDevice => sys::fsync(file),
            Access::Marker { .. } => Ok(()),
        }
    }

    fn volume(&self, uuid: Uuid) -> VolumeId {
        VolumeId { location: self.location.clone(), uuid }
    }
}

fn file_name(uuid: Uuid) -> String {
    format!("{uuid}{SUFFIX}")
}

/// Under this name a file is made; it counts for nothing.
fn temporary_name(uuid: Uuid) -> String {
    format!(".{uuid}.new")
}

/// The volume that a file of this name is. The kernel adds a word to the names of deleted files that are still attached.
fn volume_of(name: &str) -> Option<Uuid> {
    let name = name.strip_suffix(loop_device::DELETED).unwrap_or(name);
    Uuid::try_parse(name.strip_suffix(SUFFIX)?).ok()
}

/// The size of a regular file in bytes, if it is there.
fn size(folder: &OwnedFd, name: &str) -> Result<Option<u64>, StorageError> {
    match sys::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
            Ok(Some(u64::try_from(stat.st_size).unwrap_or(0)))
        }
        Ok(_) => {
            Err(failed("stat")(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is no file"))))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(io("stat")(errno)),
    }
}

/// The sum of the sizes of all volumes in bytes.
fn used(folder: &OwnedFd) -> Result<u64, StorageError> {
    let mut sum: u64 = 0;
    for entry in Dir::read_from(folder).map_err(io("list the folder"))? {
        let entry = entry.map_err(io("list the folder"))?;
        let Some(uuid) = entry.file_name().to_str().ok().and_then(volume_of) else { continue };
        sum = sum.saturating_add(size(folder, &file_name(uuid))?.unwrap_or(0));
    }
    Ok(sum)
}

/// Removes a name, if it is there.
fn unlink(folder: &OwnedFd, name: &str) -> Result<(), StorageError> {
    match sys::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(io("unlink")(errno)),
    }
}

fn io(call: &'static str) -> impl Fn(Errno) -> StorageError {
    move |errno| StorageError::Io { call, source: errno.into() }
}

fn failed(call: &'static str) -> impl Fn(io::Error) -> StorageError {
    move |source| StorageError::Io { call, source }
}
