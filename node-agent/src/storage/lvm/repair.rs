//! What operations that ended halfway have left behind, and what is to be done about it: pure.
//!
//! | left by | seen as | put right by |
//! |---|---|---|
//! | a creation | a volume tagged as unfinished | its removal: nobody was told that it exists |
//! | a growth | an extension | its removal |
//! | a deletion | a volume tagged as deleting | another wipe, and its removal |
//! | a growth of an active volume | a device that stands still | a refresh |
//! | a removal by another host | a device that no volume stands for | the device's removal |
//! | a disk that went and came back | a device that leads nowhere, of a group that is whole | a refresh |

use super::{device::Device, names::LvName, report::GroupReport};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Something in the volume group that is to be put right, by whoever holds the volume's lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Leftover {
    /// Remove this logical volume; its content was never a volume's.
    Remove(LvName),
    /// Wipe the volume and remove it.
    FinishDeletion(Uuid),
}

impl Leftover {
    /// The volume that it is left of.
    pub(super) fn volume(&self) -> Uuid {
        match self {
            Self::Remove(name) => name.uuid(),
            Self::FinishDeletion(uuid) => *uuid,
        }
    }
}

/// Something on this host that is to be put right, which takes no lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LocalRepair {
    /// Make the device as the volume group has it, and let it go on. Whoever has it open keeps it.
    Refresh(LvName),
    /// Remove the device of this name, for which no logical volume stands.
    RemoveDevice(LvName),
}

/// What is left in a volume group.
pub(super) fn leftovers(report: &GroupReport) -> Vec<Leftover> {
    let leftover = |(name, volume): (&LvName, &super::report::LogicalVolume)| match name {
        LvName::Extension(_) => Some(Leftover::Remove(*name)),
        LvName::Volume(_) if volume.unfinished => Some(Leftover::Remove(*name)),
        LvName::Volume(uuid) if volume.deleting => Some(Leftover::FinishDeletion(*uuid)),
        LvName::Volume(_) => None,
    };
    report.volumes.iter().filter_map(leftover).collect()
}

/// What is left on this host.
pub(super) fn local(report: &GroupReport, active: &BTreeMap<LvName, Device>) -> Vec<LocalRepair> {
    let repair = |(name, device): (&LvName, &Device)| {
        let volume = report.volumes.get(name);
        if !volume.is_some_and(|volume| device.is_of(&report.uuid, &volume.uuid)) {
            Some(LocalRepair::RemoveDevice(*name))
        } else if device.suspended || (device.dead && report.ailment.is_none()) {
            Some(LocalRepair::Refresh(*name))
        } else {
            None
        }
    };
    active.iter().filter_map(repair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::lvm::report::LogicalVolume;

    const ONE: Uuid = Uuid::from_u128(1);
    const TWO: Uuid = Uuid::from_u128(2);

    fn report(volumes: &[(LvName, bool, bool)]) -> GroupReport {
        let volume = |(name, unfinished, deleting): &(LvName, bool, bool)| {
            let volume = LogicalVolume {
                uuid: name.uuid().simple().to_string(),
                size: 1 << 20,
                unfinished: *unfinished,
                deleting: *deleting,
                open: false,
                ranges: Vec::new(),
            };
            (*name, volume)
        };
        GroupReport {
            uuid: "group".to_owned(),
            free: 0,
            extent: 1 << 20,
            ailment: None,
            revision: 0,
            revision_tags: Vec::new(),
            volumes: volumes.iter().map(volume).collect(),
        }
    }

    #[test]
    fn only_what_is_not_whole_is_left_over() {
        let report = report(&[
            (LvName::Volume(ONE), false, false),
            (LvName::Extension(ONE), true, false),
            (LvName::Volume(TWO), true, false),
            (LvName::Volume(Uuid::from_u128(3)), false, true),
            (LvName::Volume(Uuid::from_u128(4)), true, true),
        ]);
        let expected = [
            Leftover::Remove(LvName::Volume(TWO)),
            Leftover::FinishDeletion(Uuid::from_u128(3)),
            Leftover::Remove(LvName::Volume(Uuid::from_u128(4))),
            Leftover::Remove(LvName::Extension(ONE)),
        ];
        assert_eq!(leftovers(&report), expected);
    }

    #[test]
    fn a_device_stays_if_its_volume_does_and_goes_on_if_it_stands_still() {
        let report = report(&[(LvName::Volume(ONE), false, false)]);
        let device = |uuid: &str| Device::of_test("device", &format!("LVM-group{uuid}"));
        let active = |name, device| BTreeMap::from([(name, device)]);
        let (one, simple) = (LvName::Volume(ONE), ONE.simple().to_string());
        assert_eq!(local(&report, &active(one, device(&simple))), []);
        let mut suspended = device(&simple);
        suspended.suspended = true;
        assert_eq!(local(&report, &active(one, suspended)), [LocalRepair::Refresh(one)]);
        let gone = |name| [LocalRepair::RemoveDevice(name)];
        assert_eq!(local(&report, &active(one, device("earlier"))), gone(one), "an earlier volume's");
        let two = LvName::Volume(TWO);
        assert_eq!(local(&report, &active(two, device(&simple))), gone(two));
    }

    #[test]
    fn a_device_whose_disk_came_back_is_led_there_once_the_group_is_whole() {
        let (one, mut report) = (LvName::Volume(ONE), report(&[(LvName::Volume(ONE), false, false)]));
        let mut device = Device::of_test("device", &format!("LVM-group{}", ONE.simple()));
        device.dead = true;
        let active = BTreeMap::from([(one, device)]);
        assert_eq!(local(&report, &active), [LocalRepair::Refresh(one)]);
        report.ailment = Some("a physical volume is missing");
        assert_eq!(local(&report, &active), []);
    }
}
