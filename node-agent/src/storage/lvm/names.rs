//! Names and tags in a volume group: which logical volumes are ours, and what state they are in.

use std::fmt;
use uuid::Uuid;

/// Tag of a logical volume that is being made: its content may be anybody's, so nobody may see it yet.
pub(super) const UNFINISHED: &str = "kubexen.unfinished";
/// Tag of a logical volume whose deletion has begun.
pub(super) const DELETING: &str = "kubexen.deleting";
/// Begin of the volume group's tag that holds the greatest revision of its lock that changed it.
const REVISION: &str = "kubexen.lock-revision=";

const VOLUME: &str = "kubexen-";
const EXTENSION: &str = "-extension";

/// Longest name of a volume group as device-mapper writes it, so that names of devices stay below its 127 characters.
const LONGEST_GROUP: usize = 64;

/// A logical volume of ours, in any volume group. All others are somebody else's, and never touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LvName {
    /// The volume of this UUID.
    Volume(Uuid),
    /// Space that is being prepared, to become the end of the volume of this UUID.
    Extension(Uuid),
}

impl LvName {
    /// The name's meaning; nothing for names that are not ours.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(VOLUME)?;
        let parsed = match rest.strip_suffix(EXTENSION) {
            Some(uuid) => Self::Extension(Uuid::try_parse(uuid).ok()?),
            None => Self::Volume(Uuid::try_parse(rest).ok()?),
        };
        // A UUID can be spelt in several ways, and only one of them is ours.
        (parsed.to_string() == name).then_some(parsed)
    }

    /// Whose it is.
    pub(super) fn uuid(self) -> Uuid {
        match self {
            Self::Volume(uuid) | Self::Extension(uuid) => uuid,
        }
    }
}

impl fmt::Display for LvName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(uuid) => write!(f, "{VOLUME}{uuid}"),
            Self::Extension(uuid) => write!(f, "{VOLUME}{uuid}{EXTENSION}"),
        }
    }
}

/// Checks the name of a volume group, by LVM's rules (lvm(8), “valid names”).
pub(super) fn check_group(name: &str) -> Result<(), &'static str> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+_.-".contains(&b);
    if name.is_empty() || !name.bytes().all(allowed) || name.starts_with('-') || name == "." || name == ".." {
        return Err(
            "`volumeGroup` must be letters, digits and '+', '_', '.', '-', and must not begin with '-'",
        );
    }
    if mangled(name).len() > LONGEST_GROUP {
        return Err("`volumeGroup` is too long: 64 characters at most, where '-' counts twice");
    }
    Ok(())
}

/// Device-mapper's name of a logical volume's device.
pub(super) fn device_name(group: &str, name: LvName) -> String {
    format!("{}-{}", mangled(group), mangled(&name.to_string()))
}

/// The logical volume of ours in this group that a device of device-mapper belongs to by its name.
pub(super) fn of_device(group: &str, device: &str) -> Option<LvName> {
    let rest = device.strip_prefix(&mangled(group))?.strip_prefix('-')?;
    let name = LvName::parse(&rest.replace("--", "-"))?;
    (device_name(group, name) == device).then_some(name)
}

/// Device-mapper separates the names of group and volume by one `-`, so each of their own is written twice.
fn mangled(name: &str) -> String {
    name.replace('-', "--")
}

/// The tag for this revision of the volume group's lock.
pub(super) fn revision_tag(revision: u64) -> String {
    format!("{REVISION}{revision}")
}

/// The revision that a tag of a volume group holds; nothing for other tags.
pub(super) fn revision_of(tag: &str) -> Option<u64> {
    tag.strip_prefix(REVISION)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UUID: Uuid = Uuid::from_u128(0xab);

    #[test]
    fn only_our_own_spelling_is_ours() {
        let volume = "kubexen-00000000-0000-0000-0000-0000000000ab";
        assert_eq!(LvName::parse(volume), Some(LvName::Volume(UUID)));
        assert_eq!(LvName::parse(&format!("{volume}-extension")), Some(LvName::Extension(UUID)));
        for foreign in [
            "",
            "root",
            "kubexen-",
            "kubexen-root",
            "kubexen-000000000000000000000000000000ab",
            "kubexen-00000000-0000-0000-0000-0000000000AB",
            "kubexen-00000000-0000-0000-0000-0000000000ab-old",
            "xkubexen-00000000-0000-0000-0000-0000000000ab",
        ] {
            assert_eq!(LvName::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_device_is_ours_only_in_its_own_group() {
        let name = LvName::Volume(UUID);
        let device = "vg--san--1-kubexen--00000000--0000--0000--0000--0000000000ab";
        assert_eq!(device_name("vg-san-1", name), device);
        assert_eq!(of_device("vg-san-1", device), Some(name));
        for other in ["vg", "vg-san", "vg-san-10", "san-1", ""] {
            assert_eq!(of_device(other, device), None, "{other}");
        }
    }

    #[test]
    fn a_groups_name_is_no_option_and_no_path() {
        for good in ["vg", "vg-san-1", "VG+1_2.3"] {
            assert_eq!(check_group(good), Ok(()));
        }
        let too_long = "a".repeat(65);
        for bad in ["", "-a", ".", "..", "a/b", "a b", "a,b", "ä", "@tag", too_long.as_str()] {
            assert!(check_group(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_revision_reads_back() {
        assert_eq!(revision_of(&revision_tag(48_211)), Some(48_211));
        for other in ["kubexen.lock-revision=", "kubexen.lock-revision=x", "kubexen.unfinished", ""] {
            assert_eq!(revision_of(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn devices_read_back(group in "[a-z+_.][a-z+_.-]{0,20}", uuid: u128, extension: bool) {
            let uuid = Uuid::from_u128(uuid);
            let name = if extension { LvName::Extension(uuid) } else { LvName::Volume(uuid) };
            prop_assert_eq!(of_device(&group, &device_name(&group, name)), Some(name));
        }
    }
}
