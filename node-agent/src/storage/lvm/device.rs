//! Active logical volumes, as the kernel's device-mapper shows them in sysfs: no command, and no disk is asked.

use super::names::{self, LvName};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// A logical volume of ours that is active on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Device-mapper's name.
    pub(super) name: String,
    /// Device-mapper's identity, which holds LVM's.
    uuid: String,
    /// Bytes.
    pub(super) size: u64,
    /// Whether nobody may write to it.
    pub(super) read_only: bool,
    /// Whether it stands still: a change of it was begun and not ended.
    pub(super) suspended: bool,
    /// Whether it leads to a disk that the kernel does not have any more. If that disk comes back it is another one to the
    /// kernel, and the device still leads nowhere.
    pub(super) dead: bool,
}

impl Device {
    /// Whether it belongs to the logical volume of this identity in the group of that one.
    pub(super) fn is_of(&self, group_uuid: &str, volume_uuid: &str) -> bool {
        let bare = format!("{group_uuid}{volume_uuid}").replace('-', "");
        self.uuid.strip_prefix("LVM-") == Some(bare.as_str())
    }

    #[cfg(test)]
    pub(super) fn of_test(name: &str, uuid: &str) -> Self {
        let (name, uuid) = (name.to_owned(), uuid.to_owned());
        Self { name, uuid, size: 0, read_only: false, suspended: false, dead: false }
    }

    /// Its node.
    pub(super) fn node(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }
}

/// Our active logical volumes in this group.
pub(super) fn active(group: &str) -> io::Result<BTreeMap<LvName, Device>> {
    active_below(Path::new("/sys/block"), group)
}

fn active_below(devices: &Path, group: &str) -> io::Result<BTreeMap<LvName, Device>> {
    let mut active = BTreeMap::new();
    for entry in fs::read_dir(devices)? {
        let path = entry?.path();
        let Some(name) = attribute(&path, "dm/name")? else { continue };
        let Some(lv) = names::of_device(group, &name) else { continue };
        let text = |attribute: io::Result<Option<String>>| attribute.map(Option::unwrap_or_default);
        let sectors = text(attribute(&path, "size"))?.parse::<u64>().unwrap_or(0);
        let device = Device {
            name,
            uuid: text(attribute(&path, "dm/uuid"))?,
            // The kernel counts in sectors of 512 bytes, whatever the disk's are.
            size: sectors.saturating_mul(512),
            read_only: text(attribute(&path, "ro"))? == "1",
            suspended: text(attribute(&path, "dm/suspended"))? == "1",
            dead: !leads_to_disks(&path)?,
        };
        active.insert(lv, device);
    }
    Ok(active)
}

/// Whether the kernel has every disk that a device leads to. `slaves` holds a link to each, and when a disk is gone its link
/// leads nowhere.
fn leads_to_disks(device: &Path) -> io::Result<bool> {
    let links = match fs::read_dir(device.join("slaves")) {
        Ok(links) => links,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut any = false;
    for link in links {
        if !link?.path().exists() {
            return Ok(false);
        }
        any = true;
    }
    Ok(any)
}

/// What a device has to do with at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Traffic {
    /// Requests that were begun and have not ended.
    pub(super) on_its_way: u64,
    /// The kernel's counters of what was done.
    done: String,
}

/// The traffic of a logical volume of ours; nothing if it is not active.
pub(super) fn traffic(group: &str, lv: LvName) -> io::Result<Option<Traffic>> {
    traffic_below(Path::new("/sys/block"), group, lv)
}

/// The attributes are those of Linux' `Documentation/ABI/stable/sysfs-block`: `inflight` holds two numbers, and the first
/// eight of `stat` count requests, sectors and milliseconds.
fn traffic_below(devices: &Path, group: &str, lv: LvName) -> io::Result<Option<Traffic>> {
    for entry in fs::read_dir(devices)? {
        let path = entry?.path();
        let Some(name) = attribute(&path, "dm/name")? else { continue };
        if names::of_device(group, &name) != Some(lv) {
            continue;
        }
        let numbers = |name| -> io::Result<Vec<u64>> {
            let text = attribute(&path, name)?.unwrap_or_default();
            text.split_whitespace().map(|number| number.parse().map_err(io::Error::other)).collect()
        };
        let (inflight, done) = (numbers("inflight")?, numbers("stat")?);
        let done = done.iter().take(8).map(u64::to_string).collect::<Vec<_>>().join(" ");
        return Ok(Some(Traffic { on_its_way: inflight.iter().sum(), done }));
    }
    Ok(None)
}

/// An attribute of a device; nothing if it has none of this name, or is gone.
fn attribute(device: &Path, name: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(device.join(name)) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => Ok(None),
        // The device went away between the opening of its attribute and the reading.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const UUID: Uuid = Uuid::from_u128(0xab);

    fn device(folder: &Path, number: u32, attributes: &[(&str, &str)]) {
        let device = folder.join(format!("dm-{number}"));
        fs::create_dir_all(device.join("dm")).unwrap();
        for (name, value) in attributes {
            fs::write(device.join(name), format!("{value}\n")).unwrap();
        }
    }

    #[test]
    fn traffic_is_what_is_on_its_way_and_what_was_done() {
        let folder = tempfile::tempdir().unwrap();
        let (lv, stat) = (LvName::Volume(UUID), "1 0 8 2 3 0 24 5 4 9 7 0 0");
        let attributes =
            [("dm/name", names::device_name("vg-1", lv)), ("inflight", "       1        2".to_owned())];
        let attributes: Vec<_> = attributes.iter().map(|(name, value)| (*name, value.as_str())).collect();
        device(folder.path(), 0, &[attributes, vec![("stat", stat)]].concat());
        let seen = traffic_below(folder.path(), "vg-1", lv).unwrap().unwrap();
        assert_eq!(seen, Traffic { on_its_way: 3, done: "1 0 8 2 3 0 24 5".to_owned() });
        assert_eq!(traffic_below(folder.path(), "vg-2", lv).unwrap(), None);
    }

    #[test]
    fn our_devices_are_told_from_others_by_name_and_from_stale_ones_by_identity() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sda")).unwrap();
        let name = names::device_name("vg-1", LvName::Volume(UUID));
        let ours = [
            ("dm/name", &*name),
            ("dm/uuid", "LVM-aaaabbbb"),
            ("dm/suspended", "1"),
            ("ro", "1"),
            ("size", "2048"),
        ];
        device(folder.path(), 0, &ours);
        let slaves = folder.path().join("dm-0/slaves");
        fs::create_dir(&slaves).unwrap();
        std::os::unix::fs::symlink(folder.path().join("sda"), slaves.join("sda")).unwrap();
        device(folder.path(), 1, &[("dm/name", "vg--1-root"), ("dm/uuid", "LVM-aaaacccc"), ("size", "8")]);
        let active = active_below(folder.path(), "vg-1").unwrap();
        assert_eq!(active.keys().copied().collect::<Vec<_>>(), [LvName::Volume(UUID)]);
        let device = &active[&LvName::Volume(UUID)];
        assert!(device.read_only && device.suspended && device.size == 1 << 20);
        assert!(device.is_of("aa-aa", "bb-bb") && !device.is_of("aa-aa", "cc-cc"));
        assert_eq!(device.node(), Path::new("/dev/mapper").join(&name));
        assert!(active_below(folder.path(), "vg").unwrap().is_empty());
        assert!(!device.dead);
        fs::remove_dir(folder.path().join("sda")).unwrap();
        assert!(active_below(folder.path(), "vg-1").unwrap()[&LvName::Volume(UUID)].dead, "its disk is gone");
    }
}
