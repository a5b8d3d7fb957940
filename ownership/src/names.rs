//! Who and what ownership speaks of: virtual machines, hosts, boots and tokens.

use std::fmt;
use std::str::FromStr;

use kubexen_mutants::Mutant;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk::DiskUid;

/// The identity of a virtual machine: the UID of its Kubernetes object, which no successor of the same name shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VmUid(pub Uuid);

impl fmt::Display for VmUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for VmUid {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

/// A name that breaks the rules of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a {kind}: {rule}")]
pub struct InvalidName {
    kind: &'static str,
    rule: &'static str,
    name: String,
}

/// One boot of one host, as the kernel of its dom0 names it (`/proc/sys/kernel/random/boot_id`).
///
/// 1 to 64 ASCII letters, digits and `-`: it becomes a segment of a key, so it must not hold a `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootId(String);

impl BootId {
    /// Checks `id` and wraps it.
    ///
    /// # Errors
    /// [`InvalidName`] when it is empty, too long, or holds another character than a boot id may.
    pub fn new(id: impl Into<String>) -> Result<Self, InvalidName> {
        let id = id.into();
        let fits = (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if fits {
            Ok(Self(id))
        } else {
            Err(InvalidName { kind: "boot id", rule: "1 to 64 letters, digits and '-'", name: id })
        }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a host: a DNS label as RFC 1123 allows it, like the name of its `Host` object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

impl HostName {
    /// Checks `name` and wraps it.
    ///
    /// # Errors
    /// [`InvalidName`] unless it is 1 to 63 lower-case letters, digits and `-`, with no `-` at either end.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
        let name = name.into();
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let fits = (1..=63).contains(&name.len())
            && name.bytes().all(allowed)
            && !name.starts_with('-')
            && !name.ends_with('-');
        if fits {
            Ok(Self(name))
        } else {
            let rule = "1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends";
            Err(InvalidName { kind: "host name", rule, name })
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_name {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

text_name!(BootId);
text_name!(HostName);

/// A host during one boot. A domain cannot outlive the boot of its host, so this is what owns a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostBoot {
    /// The host.
    pub host: HostName,
    /// Its boot.
    pub boot_id: BootId,
}

impl fmt::Display for HostBoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (boot {})", self.host, self.boot_id)
    }
}

/// An ownership token: the revision at which the owner's key was last written.
///
/// Each write of the key yields a greater one. That holds across release and a new start too, because the store
/// counts revisions for all its keys together; a per-key version would begin again at one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub u64);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of a lease in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub i64);

/// What the owner is doing with the virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// It starts, runs or stops the domain on its own.
    Running,
    /// It has saved all of the guest to this disk. No host runs the guest, and any may resume it.
    Saved(DiskUid),
    /// It is about to resume the guest from this disk, which still holds all of it.
    Resuming(DiskUid),
}

/// Who may run a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The owning host.
    pub host: HostName,
    /// The boot of that host at which it became the owner.
    pub boot_id: BootId,
    /// What it is doing.
    pub phase: Phase,
    /// Whether the host has promised to have stopped the guest before its lease can end. Only then does the end of the lease
    /// prove anything about the guest.
    pub guarded: bool,
    /// The token of this ownership.
    pub token: Token,
    /// The ownership that this one followed, if it was handed over or stolen. A copy of the guest that was made under that one
    /// is the guest; any other is older.
    pub succeeds: Option<Token>,
}

impl Owner {
    /// Whether it is `host`, at this very boot.
    #[must_use]
    pub fn is(&self, host: &HostBoot) -> bool {
        self.host == host.host && (self.boot_id == host.boot_id || Mutant::BootNotCompared.is_active())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_is_a_dns_label() {
        let longest = "a".repeat(63);
        for good in ["a", "xen-07", "7", longest.as_str()] {
            assert_eq!(HostName::new(good).unwrap().as_str(), good);
        }
        let too_long = "a".repeat(64);
        for bad in ["", "Xen", "xen.1", "-xen", "xen-", "a/b", "ä", too_long.as_str()] {
            assert!(HostName::new(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_boot_id_cannot_leave_its_segment_of_a_key() {
        assert!(BootId::new("0a5b2c7e-9d41-4a58-8f51-2f0f5e3b1c11").is_ok());
        for bad in ["", "a/b", "..", "a b", "a\n"] {
            assert!(BootId::new(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn names_are_checked_when_they_are_read_from_json() {
        assert!(serde_json::from_str::<HostName>("\"xen-1\"").is_ok());
        let error = serde_json::from_str::<HostName>("\"xen/1\"").unwrap_err().to_string();
        assert!(error.contains("\"xen/1\" is not a host name"), "{error}");
    }

    #[test]
    fn a_vm_uid_reads_back_what_it_shows() {
        let uid = VmUid(Uuid::from_u128(0x1234));
        assert_eq!(uid.to_string().parse::<VmUid>().unwrap(), uid);
        assert_eq!(serde_json::to_string(&uid).unwrap(), format!("\"{uid}\""));
    }
}
