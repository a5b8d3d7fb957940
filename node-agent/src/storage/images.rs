//! Images for CD drives: files that people put into the folder `images` of a location.
//!
//! An image is attached read-only, once for all guests of this host that read it; device models read its file. Names are checked, only regular files
//! count, and no link is followed, so that no name leads to another file of the host.

use super::{StorageError, loop_device};
use rustix::{
    fs::{self as sys, AtFlags, Dir, FileType, Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// Most images of a location that are told, the first by name.
pub const MOST_IMAGES: usize = 128;
/// Folder of the images in that of a location.
const FOLDER: &str = "images";
const LONGEST_NAME: usize = 128;

/// An image: where it lies, and what it is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageId {
    /// Name of the location in the agent's configuration.
    pub location: String,
    /// Name of the file.
    pub name: String,
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.name, self.location)
    }
}

/// Whether an image may have this name.
pub(super) fn is_name(name: &str) -> bool {
    let may_stand = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    name.len() <= LONGEST_NAME
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(may_stand)
}

/// The images below a location's folder, sorted; none where there is no such folder.
pub(super) fn list(location: &Path) -> Result<Vec<String>, StorageError> {
    let Some(folder) = open(location)? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in Dir::read_from(&folder).map_err(failed("list images"))? {
        let entry = entry.map_err(failed("list images"))?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if is_name(name) && is_file(&folder, name)? {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    names.truncate(MOST_IMAGES);
    Ok(names)
}

/// The file of an image, and the folder that it lies in.
pub(super) fn file(location: &Path, image: &ImageId) -> Result<(PathBuf, OwnedFd), StorageError> {
    let missing = || StorageError::NoSuchImage(image.clone());
    let folder = open(location)?.filter(|_| is_name(&image.name)).ok_or_else(missing)?;
    // Looked at before it is opened: opening a device or a pipe that somebody put there has effects.
    if !is_file(&folder, &image.name)? {
        return Err(missing());
    }
    Ok((path(location)?.join(&image.name), folder))
}

/// Makes an image a device node; its file is the node where there are no loop devices.
pub(super) fn attach(location: &Path, image: &ImageId, loop_devices: bool) -> Result<PathBuf, StorageError> {
    let (path, folder) = file(location, image)?;
    if !loop_devices {
        return Ok(path);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = sys::openat(&folder, &image.name, flags, Mode::empty()).map_err(failed("open an image"))?;
    for device in loop_device::devices_of(&path).map_err(io_failed("list loop devices"))? {
        let attachment = loop_device::attachment(device).map_err(io_failed("read a loop device"))?;
        if attachment.read_only && !attachment.vanishing {
            return Ok(loop_device::node(device));
        }
    }
    let device = loop_device::attach(&file, true).map_err(io_failed("configure a loop device"))?;
    Ok(loop_device::node(device))
}

/// The images that have a device, by name.
pub(super) fn attached(
    location: &Path,
    loop_devices: bool,
) -> Result<BTreeMap<String, PathBuf>, StorageError> {
    let folder = path(location)?;
    if !loop_devices {
        return Ok(list(location)?.into_iter().map(|name| (name.clone(), folder.join(name))).collect());
    }
    let mut found = BTreeMap::new();
    for (device, file) in loop_device::backing_files().map_err(io_failed("list loop devices"))? {
        let name = file.file_name().and_then(|name| name.to_str()).filter(|_| file.parent() == Some(&folder));
        let Some(name) = name else { continue };
        if !loop_device::attachment(device).map_err(io_failed("read a loop device"))?.vanishing {
            found.insert(name.to_owned(), loop_device::node(device));
        }
    }
    Ok(found)
}

/// Takes the devices of an image away; those that somebody holds open go when they let go.
pub(super) fn detach(location: &Path, image: &str, loop_devices: bool) -> Result<(), StorageError> {
    if loop_devices {
        let path = path(location)?.join(image);
        for device in loop_device::devices_of(&path).map_err(io_failed("list loop devices"))? {
            loop_device::detach(device, &path).map_err(io_failed("clear a loop device"))?;
        }
    }
    Ok(())
}

fn open(location: &Path) -> Result<Option<OwnedFd>, StorageError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let location = sys::open(location, flags, Mode::empty()).map_err(failed("open the folder"))?;
    match sys::openat(&location, FOLDER, flags | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(failed("open the folder of images")(errno)),
    }
}

fn is_file(folder: &OwnedFd, name: &str) -> Result<bool, StorageError> {
    match sys::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(failed("look at an image")(errno)),
    }
}

/// The folder's path as the kernel tells it, or from the configuration while it is not there.
fn path(location: &Path) -> Result<PathBuf, StorageError> {
    match fs::canonicalize(location) {
        Ok(path) => Ok(path.join(FOLDER)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(location.join(FOLDER)),
        Err(error) => Err(io_failed("resolve the folder")(error)),
    }
}

fn failed(call: &'static str) -> impl Fn(Errno) -> StorageError {
    move |errno| StorageError::Io { call, source: errno.into() }
}

fn io_failed(call: &'static str) -> impl Fn(io::Error) -> StorageError {
    move |source| StorageError::Io { call, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_regular_files_with_plain_names_in_the_folder_itself_are_images() {
        let location = tempfile::tempdir().unwrap();
        assert_eq!(list(location.path()).unwrap(), Vec::<String>::new());
        let folder = location.path().join(FOLDER);
        fs::create_dir_all(folder.join("folder.iso")).unwrap();
        for name in ["debian-12.iso", "a_b.img", ".hidden", "two words", "-dash"] {
            fs::write(folder.join(name), "content").unwrap();
        }
        fs::write(location.path().join("outside.raw"), "secret").unwrap();
        symlink("../outside.raw", folder.join("link.iso")).unwrap();
        assert_eq!(list(location.path()).unwrap(), ["a_b.img", "debian-12.iso"]);

        let image = |name: &str| ImageId { location: "isos".to_owned(), name: name.to_owned() };
        let node = attach(location.path(), &image("debian-12.iso"), false).unwrap();
        assert_eq!(fs::read_to_string(node).unwrap(), "content");
        for name in ["link.iso", "../outside.raw", ".hidden", "folder.iso", "", "absent.iso"] {
            let refused = attach(location.path(), &image(name), false);
            assert!(matches!(refused, Err(StorageError::NoSuchImage(_))), "{name}: {refused:?}");
            assert!(file(location.path(), &image(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_folder_of_images_that_is_a_link_has_none() {
        let location = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("shadow"), "secret").unwrap();
        symlink(elsewhere.path(), location.path().join(FOLDER)).unwrap();
        assert_eq!(list(location.path()).unwrap(), Vec::<String>::new());
        let image = ImageId { location: "isos".to_owned(), name: "shadow".to_owned() };
        assert!(attach(location.path(), &image, false).is_err());
    }
}
