//! CD drives: which of a guest's they are, what is in them, and what of them changes while the guest runs.
//!
//! A guest without emulated drives sees an image as a disk, so its drives come and go as disks do. Those of an HVM guest are
//! part of the PC that it was started as; while it runs only what is in them changes.

use super::{
    live::{Change, Surroundings, targets},
    problem::Problem,
    references::{Resolved, location},
};
use crate::{
    placement::ImageNeed,
    view::{View, is_deleting},
};
use kubexen_crds::{
    BootType, Cd, DomainCd, DomainImage, VirtualMachineSpec,
    cd::{CD_TARGETS, cd_targets, takes_place},
    domain::Machine,
    quantity::HostSelector,
};
use kubexen_runtime::Key;

/// A drive that a machine asks for.
pub(super) struct Drive<'a> {
    entry: &'a Cd,
    target: &'static str,
    before_disks: bool,
}

/// The drives of a machine in the order in which it boots from them.
pub(super) fn drives(spec: &VirtualMachineSpec) -> impl Iterator<Item = Drive<'_>> {
    let mut ordered: Vec<&Cd> = spec.cds.iter().collect();
    ordered.sort_by_key(|entry| entry.boot_order.unwrap_or(i32::MAX));
    let of_disks = || spec.disks.iter().filter_map(|disk| disk.boot_order);
    ordered.into_iter().zip(cd_targets(spec.boot.type_, spec.cds.len())).map(move |(entry, target)| Drive {
        entry,
        target,
        before_disks: entry.boot_order.is_some_and(|order| of_disks().all(|other| order < other)),
    })
}

/// The targets that the disks of a machine have at its start, in their order.
pub(super) fn disk_targets(spec: &VirtualMachineSpec) -> impl Iterator<Item = String> {
    let cds = cd_targets(spec.boot.type_, spec.cds.len()).iter().take(spec.cds.len());
    targets().filter(move |target| !cds.clone().any(|cd| takes_place(cd, target)))
}

impl Drive<'_> {
    pub(super) fn name(&self) -> &str {
        &self.entry.name
    }

    /// Whether there is to be an image in it.
    pub(super) fn has_image(&self) -> bool {
        self.entry.image.is_some()
    }

    /// The image that is to be in it, if there is to be one.
    pub(super) fn image(&self, view: &View) -> Result<Option<ImageNeed>, Problem> {
        let Some(image) = &self.entry.image else { return Ok(None) };
        let found = view.repositories.get(&Key::cluster(&image.repository));
        let usable = found.as_deref().filter(|repository| !is_deleting(*repository));
        match usable.and_then(|repository| location(repository).map(|location| (repository, location))) {
            Some((repository, location)) => Ok(Some(ImageNeed {
                repository: image.repository.clone(),
                location: location.to_owned(),
                image: image.name.clone(),
                selector: repository.spec.host_selector.clone(),
            })),
            None => Err(Problem::ImageRepositoryNotFound {
                repository: image.repository.clone(),
                image: image.name.clone(),
            }),
        }
    }

    /// It as a Domain has it.
    pub(super) fn resolved(&self, need: Option<&ImageNeed>) -> DomainCd {
        let image =
            need.map(|need| DomainImage { location: need.location.clone(), name: need.image.clone() });
        DomainCd {
            name: self.entry.name.clone(),
            target: self.target.to_owned(),
            image,
            before_disks: self.before_disks,
        }
    }
}

/// The image that a saved guest has in a drive.
pub(super) fn saved_image(entry: &DomainCd) -> Option<ImageNeed> {
    let DomainImage { location, name } = entry.image.clone()?;
    let selector = HostSelector::default();
    Some(ImageNeed { repository: location.clone(), location, image: name, selector })
}

/// Drives keep their targets; what is in them changes as soon as the host has it.
pub(super) fn change(change: &mut Change, wanted: &Resolved, present: &Machine, around: &Surroundings<'_>) {
    let mut next: Vec<DomainCd> = Vec::new();
    let named = change.restart.len();
    for entry in &wanted.machine.cds {
        let old = present.cds.iter().find(|old| old.name == entry.name);
        let target = match (old, present.boot.type_) {
            (Some(old), _) => old.target.clone(),
            (None, BootType::Hvm) => {
                change.restart.push(format!("spec.cds[{}]", entry.name));
                continue;
            }
            (None, BootType::Pvh | BootType::Pv) => match free_target(&next, present) {
                Some(target) => target.to_owned(),
                None => {
                    let message = format!(
                        "drive {} is added at the next restart, or when a disk is removed",
                        entry.name
                    );
                    change.held("TooManyDisks", message);
                    continue;
                }
            },
        };
        let before_disks = old.is_some_and(|old| old.before_disks);
        if let Some(old) = old.filter(|_| present.boot.type_ == wanted.machine.boot.type_) {
            if old.is_emulated() != entry.is_emulated() {
                change.restart.push(format!("spec.cds[{}]", entry.name));
            } else if before_disks != entry.before_disks {
                change.restart.push(format!("spec.cds[{}].bootOrder", entry.name));
            }
        }
        let image = image_for(change, entry, old, wanted, around);
        next.push(DomainCd { name: entry.name.clone(), target, image, before_disks });
    }
    let target = |entry: &DomainCd| next.iter().find(|cd| cd.name == entry.name && cd.is_emulated());
    let is_sorted = wanted.machine.cds.iter().filter_map(target).is_sorted_by_key(|cd| cd.target.as_str());
    if change.restart.len() == named && !is_sorted {
        change.restart.push("spec.cds".to_owned());
    }
    let is_wanted = |old: &DomainCd| wanted.machine.cds.iter().any(|entry| entry.name == old.name);
    for old in present.cds.iter().filter(|old| old.is_emulated() && !is_wanted(old)) {
        change.restart.push(format!("spec.cds[{}]", old.name));
        next.push(DomainCd { image: None, ..old.clone() });
    }
    change.next.cds = next;
}

/// A name that neither a drive nor a disk has.
fn free_target(next: &[DomainCd], present: &Machine) -> Option<&'static str> {
    let is_taken = |target: &str| {
        next.iter().chain(&present.cds).any(|cd| cd.target == target)
            || present.disks.iter().any(|disk| disk.target == target)
    };
    CD_TARGETS.into_iter().find(|target| !is_taken(target))
}

/// What is to be in a drive now: another image only if the host has it.
fn image_for(
    change: &mut Change,
    entry: &DomainCd,
    old: Option<&DomainCd>,
    wanted: &Resolved,
    around: &Surroundings<'_>,
) -> Option<DomainImage> {
    match (&entry.image, old.and_then(|old| old.image.as_ref())) {
        (Some(image), before) if Some(image) != before && !has_image(wanted, image, around) => {
            let message = format!(
                "host {} has no image {} for drive {}: put it there, or change `spec.cds`",
                around.host, image.name, entry.name
            );
            change.held("ImageMissing", message);
            before.cloned()
        }
        (image, _) => image.clone(),
    }
}

fn has_image(wanted: &Resolved, image: &DomainImage, around: &Surroundings<'_>) -> bool {
    let is_it = |need: &&ImageNeed| need.location == image.location && need.image == image.name;
    let need = wanted.images.iter().find(is_it);
    need.zip(around.room).is_some_and(|(need, room)| room.host.has_image(need))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(boot: &Value, disks: &Value, cds: &Value) -> VirtualMachineSpec {
        serde_json::from_value(json!({"memory": {"size": "1Gi"}, "boot": boot, "disks": disks, "cds": cds}))
            .unwrap()
    }

    #[test]
    fn the_drives_of_an_hvm_guest_come_by_boot_order_and_may_come_before_its_disks() {
        let seen = |boot: &Value, disks: &Value, cds: &Value| -> Vec<(String, &str, bool)> {
            let spec = spec(boot, disks, cds);
            drives(&spec).map(|drive| (drive.name().to_owned(), drive.target, drive.before_disks)).collect()
        };
        let drive = |name: &str, target, before| (name.to_owned(), target, before);
        let (hvm, pvh) = (json!({"type": "HVM"}), json!({"type": "PVH"}));
        let none = json!([{"name": "root", "disk": "root"}]);
        let two = json!([{"name": "root", "disk": "root", "bootOrder": 2}]);
        let (a, b) = (json!({"name": "a"}), json!({"name": "b"}));
        let (first, third) = (json!({"name": "b", "bootOrder": 1}), json!({"name": "b", "bootOrder": 3}));
        for (boot, disks, cds, expected) in [
            (&pvh, &none, json!([a, b]), vec![drive("a", "xvdo", false), drive("b", "xvdn", false)]),
            (&hvm, &none, json!([a]), vec![drive("a", "hdd", false)]),
            (&hvm, &none, json!([a, b]), vec![drive("a", "hdc", false), drive("b", "hdd", false)]),
            (&hvm, &none, json!([a, third]), vec![drive("b", "hdc", true), drive("a", "hdd", false)]),
            (&hvm, &two, json!([first]), vec![drive("b", "hdd", true)]),
            (&hvm, &two, json!([third]), vec![drive("b", "hdd", false)]),
        ] {
            assert_eq!(seen(boot, disks, &cds), expected, "{boot} {disks} {cds}");
        }
    }

    #[test]
    fn no_disk_of_an_hvm_guest_has_the_place_of_a_drive() {
        let targets = |boot: &str, cds: &Value| -> Vec<String> {
            disk_targets(&spec(&json!({"type": boot}), &json!([]), cds)).take(4).collect()
        };
        let (one, two) = (json!([{"name": "a"}]), json!([{"name": "a"}, {"name": "b"}]));
        assert_eq!(targets("HVM", &json!([])), ["xvda", "xvdb", "xvdc", "xvdd"]);
        assert_eq!(targets("HVM", &one), ["xvda", "xvdb", "xvdc", "xvde"]);
        assert_eq!(targets("HVM", &two), ["xvda", "xvdb", "xvde", "xvdf"]);
        assert_eq!(targets("PVH", &two), ["xvda", "xvdb", "xvdc", "xvdd"]);
    }
}
