//! Where ownership stands in the pool etcd, and how its values are written.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::disk::DiskUid;
use crate::names::{BootId, HostBoot, HostName, Owner, Phase, Token, VmUid};

/// The folder of all owner keys.
pub(crate) const OWNERS: &str = "/kubexen/owners/";

/// The folder of all disk keys.
pub(crate) const DISKS: &str = "/kubexen/disks/";

/// The folder of what is known of hosts.
pub(crate) const HOSTS: &str = "/kubexen/hosts/";

/// The record of the epoch.
pub(crate) const EPOCH: &str = "/kubexen/epoch";

/// A key of the pool etcd.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `/kubexen/owners/<vm-uid>`: who may run this virtual machine. Persistent, never attached to a lease.
    Owner(VmUid),
    /// `/kubexen/disks/<disk-uid>`: which virtual machine has this shared disk. Persistent.
    Disk(DiskUid),
    /// `/kubexen/hosts/<host>/live/<boot-id>`: the host is alive at this boot. On the lease of its agent.
    Live(HostBoot),
    /// `/kubexen/hosts/<host>/fenced/<boot-id>`: this boot is dead, and can never come back to life. Persistent.
    Fenced(HostBoot),
    /// `/kubexen/epoch`: in which cluster the records count. Persistent.
    Epoch,
}

impl Key {
    /// Whether the key tells who may run or have what, or who is dead: what nobody may go by in a store that was restored.
    pub(crate) fn is_decisive(&self) -> bool {
        match self {
            Self::Owner(_) | Self::Disk(_) | Self::Fenced(_) => true,
            Self::Live(_) | Self::Epoch => false,
        }
    }

    /// What the record is about, for people.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::Owner(vm) => format!("virtual machine {vm}"),
            Self::Disk(disk) => format!("disk {disk}"),
            Self::Live(boot) | Self::Fenced(boot) => format!("host {boot}"),
            Self::Epoch => "the pool's store".to_owned(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner(vm) => write!(f, "{OWNERS}{vm}"),
            Self::Disk(disk) => write!(f, "{DISKS}{disk}"),
            Self::Live(HostBoot { host, boot_id }) => write!(f, "{HOSTS}{host}/live/{boot_id}"),
            Self::Fenced(HostBoot { host, boot_id }) => write!(f, "{HOSTS}{host}/fenced/{boot_id}"),
            Self::Epoch => write!(f, "{EPOCH}"),
        }
    }
}

/// The virtual machine that an owner key speaks of; nothing for any other key.
pub(crate) fn vm_of(key: &[u8]) -> Option<VmUid> {
    let vm: VmUid = std::str::from_utf8(key).ok()?.strip_prefix(OWNERS)?.parse().ok()?;
    is_spelt_as(&Key::Owner(vm), key).then_some(vm)
}

/// The disk that a disk key speaks of; nothing for any other key.
pub(crate) fn disk_of(key: &[u8]) -> Option<DiskUid> {
    let disk = DiskUid(std::str::from_utf8(key).ok()?.strip_prefix(DISKS)?.parse().ok()?);
    is_spelt_as(&Key::Disk(disk), key).then_some(disk)
}

/// A UUID can be spelt in several ways, and only one of them is the key that would be read.
fn is_spelt_as(key: &Key, spelt: &[u8]) -> bool {
    key.to_string().as_bytes() == spelt
}

/// The key of a host that this is, if it is one.
pub(crate) fn host_key(key: &[u8]) -> Option<Key> {
    let mut segments = std::str::from_utf8(key).ok()?.strip_prefix(HOSTS)?.split('/');
    let host = HostName::new(segments.next()?).ok()?;
    let folder = segments.next()?;
    let boot = HostBoot { host, boot_id: BootId::new(segments.next()?).ok()? };
    match (folder, segments.next()) {
        ("live", None) => Some(Key::Live(boot)),
        ("fenced", None) => Some(Key::Fenced(boot)),
        (_, _) => None,
    }
}

/// What a key holds, with the revisions that transactions compare.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The value as stored.
    pub value: Vec<u8>,
    /// The store's revision at the last write of the key; greater than 0.
    pub mod_revision: u64,
}

impl Entry {
    /// The owner that this entry of an owner key names.
    ///
    /// # Errors
    /// The reason why it cannot be read.
    pub fn owner(&self) -> Result<Owner, String> {
        decode(self)
    }
}

/// The only version of the value that there is so far.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OwnerValue {
    version: u32,
    host: HostName,
    boot_id: BootId,
    phase: Phase,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    guarded: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    succeeds: Option<Token>,
}

/// Read before the rest, so that a value of a later version is called that and not merely malformed.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// The value that makes `owner` the owner, after the ownership that it succeeds if the guest comes from another host.
pub(crate) fn encode(owner: &HostBoot, phase: Phase, guarded: bool, succeeds: Option<Token>) -> Vec<u8> {
    let HostBoot { host, boot_id } = owner.clone();
    let value = OwnerValue { version: VERSION, host, boot_id, phase, guarded, succeeds };
    serde_json::to_vec(&value).expect("strings, numbers and a unit variant always have a JSON form")
}

/// The owner that `entry` names, or the reason why it cannot be read.
pub(crate) fn decode(entry: &Entry) -> Result<Owner, String> {
    let Versioned { version } = serde_json::from_slice(&entry.value).map_err(|e| e.to_string())?;
    if version != VERSION {
        return Err(format!("its value has version {version}, and this program knows version {VERSION}"));
    }
    let OwnerValue { version: _, host, boot_id, phase, guarded, succeeds } =
        serde_json::from_slice(&entry.value).map_err(|e| e.to_string())?;
    Ok(Owner { host, boot_id, phase, guarded, token: Token(entry.mod_revision), succeeds })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn entry(value: &str) -> Entry {
        Entry { value: value.into(), mod_revision: 7 }
    }

    #[test]
    fn the_layout_of_key_and_value_is_the_one_that_other_versions_read() {
        let me = HostBoot { host: HostName::new("xen-1").unwrap(), boot_id: BootId::new("boot-1").unwrap() };
        let value = encode(&me, Phase::Running, false, None);
        let text = r#"{"version":1,"host":"xen-1","bootId":"boot-1","phase":"Running"}"#;
        assert_eq!(String::from_utf8(value).unwrap(), text);
        let owner = decode(&entry(text)).unwrap();
        assert_eq!((&owner.host, &owner.boot_id, owner.token), (&me.host, &me.boot_id, Token(7)));
        assert!(!owner.guarded);
        let guarded = encode(&me, Phase::Running, true, Some(Token(5)));
        let decoded = decode(&Entry { value: guarded, mod_revision: 7 }).unwrap();
        assert_eq!((decoded.guarded, decoded.succeeds), (true, Some(Token(5))));

        let vm = VmUid(Uuid::from_u128(5));
        let key = Key::Owner(vm).to_string();
        assert_eq!(key, "/kubexen/owners/00000000-0000-0000-0000-000000000005");
        assert_eq!(vm_of(key.as_bytes()), Some(vm));
    }

    #[test]
    fn a_key_in_another_spelling_is_not_an_owner_key() {
        for key in [
            "/kubexen/owners/00000000000000000000000000000005",
            "/kubexen/owners/{00000000-0000-0000-0000-000000000005}",
            "/kubexen/owners/00000000-0000-0000-0000-000000000005/x",
            "/kubexen/hosts/00000000-0000-0000-0000-000000000005",
        ] {
            assert_eq!(vm_of(key.as_bytes()), None, "{key}");
        }
        assert_eq!(vm_of(b"/kubexen/owners/\xff"), None);
    }

    #[test]
    fn a_key_of_a_host_is_read_as_it_is_written_and_no_other_is_one() {
        let boot = HostBoot { host: HostName::new("xen-1").unwrap(), boot_id: BootId::new("b-1").unwrap() };
        for (key, text) in [
            (Key::Live(boot.clone()), "/kubexen/hosts/xen-1/live/b-1"),
            (Key::Fenced(boot), "/kubexen/hosts/xen-1/fenced/b-1"),
        ] {
            assert_eq!(key.to_string(), text);
            assert_eq!(host_key(text.as_bytes()), Some(key));
        }
        for text in
            ["/kubexen/hosts/xen-1/live/b-1/x", "/kubexen/hosts/xen-1/dead/b-1", "/kubexen/hosts/xen-1", "/x"]
        {
            assert_eq!(host_key(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_value_of_a_later_version_says_so() {
        let reason = decode(&entry(r#"{"version":2,"owner":["xen-1"]}"#)).unwrap_err();
        assert!(reason.contains("version 2"), "{reason}");
    }

    #[test]
    fn a_field_added_by_a_later_release_of_the_same_version_is_no_obstacle() {
        let value = r#"{"version":1,"host":"xen-1","bootId":"b","phase":"Running","note":1}"#;
        assert!(decode(&entry(value)).is_ok());
    }

    #[test]
    fn nothing_malformed_is_taken_for_an_owner() {
        for value in [
            "",
            "null",
            "{}",
            r#"{"version":1}"#,
            r#"{"version":1,"host":"XEN","bootId":"b","phase":"Running"}"#,
            r#"{"version":1,"host":"xen-1","bootId":"b","phase":"Dancing"}"#,
        ] {
            assert!(decode(&entry(value)).is_err(), "{value}");
        }
    }
}
