//! What of a running machine can be changed as it is: pure.
//!
//! [`change`] compares what a machine asks for with what its Domain is made of. What the guest can be given while it runs goes
//! into the next state of the Domain; what it cannot is named, and waits for a restart; what it could but for something
//! else, such as room on its host, is held, and tried again. Each field is judged by itself, so that the order in which they
//! are changed does not matter and none waits for another. Nothing is remembered: a field that is set back is as if it had
//! never been changed.

use super::{
    cds,
    references::{Disk, Resolved, Site},
};
use crate::{
    placement::{HostView, Room},
    scheduler::{Growth, HostRoom, Reserved, domain_memory},
    view::uid,
};
use kubexen_crds::{
    ByteQuantity, Domain, VirtualMachineSpec,
    cd::takes_place,
    cloud_init::SEED_TARGET,
    domain::{DomainDisk, DomainInterface, Machine},
    names::host_object_name,
};
use kubexen_runtime::Key;

/// What a changed machine means for its Domain.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    /// What the Domain is to be made of now.
    pub(crate) next: Machine,
    /// Disks that have to be made on the host first.
    pub(crate) new_disks: Vec<Key>,
    /// Fields that take effect at the next restart.
    pub(crate) restart: Vec<String>,
    /// Fields that wait for something else.
    pub(crate) held: Vec<Held>,
}

/// A change that could be made if it were not for something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// One word from a fixed set.
    pub(crate) reason: &'static str,
    /// What is so, and what helps.
    pub(crate) message: String,
}

/// What a Domain is seen in.
pub(crate) struct Surroundings<'a> {
    /// Name of its host.
    pub(crate) host: &'a str,
    /// What its host has and what is used of it; looked up only where a guest is to have more than it has.
    pub(crate) room: Option<&'a HostRoom>,
}

impl Surroundings<'_> {
    fn reserved(&self) -> Reserved {
        self.room.map(|room| room.reserved).unwrap_or_default()
    }
}

impl Change {
    pub(super) fn held(&mut self, reason: &'static str, message: String) {
        self.held.push(Held { reason, message });
    }
}

/// Whether a Domain would need more of its host than it has.
pub(crate) fn needs_room(wanted: &Machine, present: &Machine) -> bool {
    let grows = wanted.cpus > present.cpus || bytes(&wanted.memory) > bytes(&present.memory);
    let has_disk =
        |disk: &DomainDisk| present.disks.iter().any(|other| other.name == disk.name && !other.detach);
    let has_uplink =
        |interface: &DomainInterface| present.interfaces.iter().any(|other| other.uplink == interface.uplink);
    let new_image = wanted.cds.iter().any(|cd| cd.image.is_some() && !present.cds.contains(cd));
    grows || new_image || !wanted.disks.iter().all(has_disk) || !wanted.interfaces.iter().all(has_uplink)
}

/// How much more a Domain would take of its host. Memory that its guest was built for and does not have yet, it may have.
pub(crate) fn growth(wanted: &Machine, domain: &Domain) -> Growth {
    let present = &domain.spec.machine;
    let next = Machine { memory: wanted.memory.clone(), ..present.clone() };
    Growth {
        memory: domain_memory(&next, None).saturating_sub(domain_memory(present, domain.status.as_ref())),
        vcpus: u32::try_from(wanted.cpus.min(present.max_cpus) - present.cpus).unwrap_or(0),
        protected: domain.spec.protected,
    }
}

/// What to make of a machine that asks for `wanted` and has a Domain.
pub(crate) fn change(
    spec: &VirtualMachineSpec,
    wanted: &Resolved,
    domain: &Domain,
    around: &Surroundings<'_>,
) -> Change {
    let present = &domain.spec.machine;
    let mut change =
        Change { next: present.clone(), new_disks: Vec::new(), restart: Vec::new(), held: Vec::new() };
    change_cpu(&mut change, spec, &wanted.machine, present, around);
    change_memory(&mut change, spec, &wanted.machine, domain, around);
    let (boot, old) = (&wanted.machine.boot, &present.boot);
    for (field, differs) in [
        ("spec.boot.type", boot.type_ != old.type_),
        ("spec.boot.firmware", boot.type_ == old.type_ && boot.firmware() != old.firmware()),
        ("spec.boot.kernel", boot.kernel != old.kernel),
        ("spec.cloudInit", wanted.machine.cloud_init != present.cloud_init),
    ] {
        if differs {
            change.restart.push(field.to_owned());
        }
    }
    cds::change(&mut change, wanted, present, around);
    change_disks(&mut change, wanted, domain, around);
    change_interfaces(&mut change, &wanted.machine.interfaces, present, around);
    change
}

fn change_cpu(
    change: &mut Change,
    spec: &VirtualMachineSpec,
    wanted: &Machine,
    present: &Machine,
    around: &Surroundings<'_>,
) {
    change.next.cpu_weight = wanted.cpu_weight;
    if wanted.cpu_cap_percent > present.max_cpus.saturating_mul(100) {
        change.restart.push("spec.cpu.capPercent".to_owned());
    } else {
        change.next.cpu_cap_percent = wanted.cpu_cap_percent;
    }
    if wanted.cpus > present.max_cpus {
        change.restart.push("spec.cpu.count".to_owned());
    } else {
        let more = u32::try_from(wanted.cpus - present.cpus).unwrap_or(0);
        match around.room.map(HostRoom::vcpus_left) {
            Some(left) if u64::from(more) > left => change.held(
                "NoRoom",
                format!(
                    "host {} has CPUs for {left} more virtual ones, `spec.cpu.count` needs {more}: it is set when there is \
                     room, or at the next restart on a host that has it",
                    around.host
                ),
            ),
            Some(_) if more > 0 && around.reserved().vcpus => {
                change.held("FailureReserve", reserved(around.host, "spec.cpu.count"));
            }
            None if more > 0 => change.held("HostUnknown", unknown(around.host)),
            Some(_) | None => change.next.cpus = wanted.cpus,
        }
    }
    if spec.cpu.max.is_some_and(|max| max != present.max_cpus) {
        change.restart.push("spec.cpu.max".to_owned());
    }
}

fn change_memory(
    change: &mut Change,
    spec: &VirtualMachineSpec,
    wanted: &Machine,
    domain: &Domain,
    around: &Surroundings<'_>,
) {
    let present = &domain.spec.machine;
    let (size, max) = (bytes(&wanted.memory), bytes(&present.max_memory));
    // Only its owner knows whether a guest has a balloon driver, and says so by giving it a range.
    let balloons = spec.memory.min.is_some() || spec.memory.max.is_some();
    if size != bytes(&present.memory) {
        if !balloons || size > max {
            change.restart.push("spec.memory.size".to_owned());
        } else {
            let more = growth(wanted, domain).memory;
            match around.room.map(HostRoom::memory_left) {
                Some(left) if more > left => change.held(
                    "NoRoom",
                    format!(
                        "host {} has {} MiB left for guests, `spec.memory.size` needs {} MiB more: it is set when there is \
                         room, or at the next restart on a host that has it",
                        around.host,
                        left >> 20,
                        more.div_ceil(1 << 20)
                    ),
                ),
                Some(_) if more > 0 && around.reserved().memory => {
                    change.held("FailureReserve", reserved(around.host, "spec.memory.size"));
                }
                None if more > 0 => change.held("HostUnknown", unknown(around.host)),
                Some(_) | None => change.next.memory = wanted.memory.clone(),
            }
        }
    }
    if spec.memory.max.as_ref().is_some_and(|wanted| bytes(wanted) != max) {
        change.restart.push("spec.memory.max".to_owned());
    }
}

fn change_disks(change: &mut Change, wanted: &Resolved, domain: &Domain, around: &Surroundings<'_>) {
    let asked = &wanted.machine.disks;
    let mut next: Vec<DomainDisk> = Vec::new();
    let named = change.restart.len();
    for present in &domain.spec.machine.disks {
        let entry = asked.iter().find(|entry| entry.name == present.name);
        let same =
            |entry: &&DomainDisk| entry.volume == present.volume && entry.read_only == present.read_only;
        let succeeded = is_succeeded(present, wanted);
        match entry.filter(|_| !succeeded) {
            Some(entry) if same(&entry) && !present.detach => next.push(present.clone()),
            // The guest may have come here without it.
            Some(entry) if same(&entry) && !is_detached(domain, &present.name) => {
                let back = to_be_made(entry, wanted, around);
                next.push(DomainDisk { detach: back.is_err(), ..present.clone() });
                match back {
                    Ok(new) => change.new_disks.extend(new),
                    Err(held) => change.held.push(held),
                }
            }
            Some(_) if !present.detach => {
                change.restart.push(format!("spec.disks[{}]", present.name));
                next.push(present.clone());
            }
            // The guest may have the disk until its host says otherwise.
            Some(_) | None if present.detach && is_detached(domain, &present.name) => {}
            Some(_) | None => next.push(DomainDisk { detach: true, ..present.clone() }),
        }
    }
    for entry in asked {
        if next.iter().any(|disk| disk.name == entry.name) {
            continue;
        }
        let free = free_target(&next, &change.next);
        match target_for(entry, wanted, free, around) {
            Ok((target, new)) => {
                change.new_disks.extend(new);
                next.push(DomainDisk { target, ..entry.clone() });
            }
            Err(held) => change.held.push(held),
        }
    }
    let target = |entry: &DomainDisk| {
        next.iter().find(|disk| disk.name == entry.name && !disk.detach).map(|disk| disk.target.clone())
    };
    if change.restart.len() == named && !asked.iter().filter_map(target).is_sorted() {
        change.restart.push("spec.disks".to_owned());
    }
    change.next.disks = next;
}

/// Whether a disk on shared storage is an earlier one of the name that another has now.
fn is_succeeded(present: &DomainDisk, wanted: &Resolved) -> bool {
    let Some(shared) = &present.shared else { return false };
    let now = wanted.disks.iter().find(|disk| volume_name(disk) == present.volume);
    now.is_some_and(|now| uid(&*now.disk) != shared.uid)
}

fn volume_name(disk: &Disk) -> String {
    let Key { namespace, name } = Key::of(&*disk.disk);
    host_object_name(&namespace, &name)
}

/// Whether the agent says so of the Domain as it stands, in which the disk is to be detached.
fn is_detached(domain: &Domain, disk: &str) -> bool {
    domain.status.as_ref().is_some_and(|status| {
        status.observed_generation == domain.metadata.generation
            && status.detached.iter().any(|name| name == disk)
    })
}

/// A name that no disk has, and whose place is neither a CD drive's nor the seed's.
fn free_target(present: &[DomainDisk], machine: &Machine) -> Option<String> {
    let is_taken = |target: &String| {
        present.iter().any(|disk| disk.target == *target)
            || machine.cds.iter().any(|cd| takes_place(&cd.target, target))
            || (machine.cloud_init.is_some() && target == SEED_TARGET)
    };
    targets().find(|target| !is_taken(target))
}

/// The name that the guest will see, and the disk if it has to be made first; or why it cannot be attached here.
fn target_for(
    entry: &DomainDisk,
    wanted: &Resolved,
    free: Option<String>,
    around: &Surroundings<'_>,
) -> Result<(String, Option<Key>), Held> {
    let Some(target) = free else {
        let message = format!("disk {} is attached when the guest has let go of another", entry.name);
        return Err(Held { reason: "TooManyDisks", message });
    };
    Ok((target, to_be_made(entry, wanted, around)?))
}

/// The disk of an entry if it has to be made on the Domain's host first; or why it cannot be had there.
fn to_be_made(entry: &DomainDisk, wanted: &Resolved, around: &Surroundings<'_>) -> Result<Option<Key>, Held> {
    let Some(disk) = wanted.disks.iter().find(|disk| volume_name(disk) == entry.volume) else {
        return Ok(None);
    };
    Ok(reach(disk, around)?.then(|| Key::of(&*disk.disk)))
}

/// Whether the disk has to be made on the Domain's host first; or why it cannot be had there.
pub(crate) fn reach(disk: &Disk, around: &Surroundings<'_>) -> Result<bool, Held> {
    let held = |reason, message| Err(Held { reason, message });
    let key = Key::of(&*disk.disk);
    match &disk.site {
        Site::On(host) if host == around.host => Ok(false),
        Site::On(host) => held(
            "DiskElsewhere",
            format!(
                "VirtualDisk {} is on host {host} and the guest on host {}: remove it from `spec.disks`, or restart the \
                 machine if all its disks are there",
                key.name, around.host
            ),
        ),
        Site::Shared { location, storage, selector } => {
            let Some(HostRoom { host, .. }) = around.room else {
                return held("HostUnknown", unknown(around.host));
            };
            let reaches =
                host.locations.get(location).is_some_and(|room| room.storage.as_ref() == Some(storage));
            if reaches && selector.matches(&host.labels) {
                Ok(false)
            } else {
                not_attached(disk, &key, around)
            }
        }
        Site::New { location, shared, selector } => {
            let Some(HostRoom { host, .. }) = around.room else {
                return held("HostUnknown", unknown(around.host));
            };
            let size = disk.disk.spec.size.bytes().unwrap_or(u64::MAX);
            match offered(host, location, *shared).filter(|_| selector.matches(&host.labels)) {
                Some(room) if size <= room.left() => Ok(true),
                Some(_) => held(
                    "NoRoom",
                    format!(
                        "location {location} of host {} has no room for VirtualDisk {}",
                        around.host, key.name
                    ),
                ),
                None => not_attached(disk, &key, around),
            }
        }
    }
}

fn offered<'a>(host: &'a HostView, location: &str, shared: bool) -> Option<&'a Room> {
    host.locations.get(location).filter(|room| room.storage.is_some() == shared)
}

fn not_attached(disk: &Disk, key: &Key, around: &Surroundings<'_>) -> Result<bool, Held> {
    let message = format!(
        "StorageRepository {} of VirtualDisk {} is not attached on host {}",
        disk.disk.spec.repository, key.name, around.host
    );
    Err(Held { reason: "RepositoryNotAttached", message })
}

/// `xvda` to `xvdp`: the API allows 16 disks.
pub(crate) fn targets() -> impl Iterator<Item = String> {
    ('a'..='p').map(|letter| format!("xvd{letter}"))
}

fn change_interfaces(
    change: &mut Change,
    asked: &[DomainInterface],
    present: &Machine,
    around: &Surroundings<'_>,
) {
    let mut next: Vec<DomainInterface> = Vec::new();
    let named = change.restart.len();
    for old in &present.interfaces {
        let Some(entry) = asked.iter().find(|entry| entry.name == old.name) else { continue };
        if entry.mac != old.mac {
            change.restart.push(format!("spec.interfaces[{}].mac", old.name));
        }
        let uplink = if entry.uplink == old.uplink || has_uplink(change, entry, around) {
            entry.uplink.clone()
        } else {
            old.uplink.clone()
        };
        next.push(DomainInterface { uplink, rate_limit: entry.rate_limit.clone(), ..old.clone() });
    }
    for entry in asked {
        if next.iter().any(|interface| interface.name == entry.name) || !has_uplink(change, entry, around) {
            continue;
        }
        let is_free = |index: &i32| next.iter().all(|interface| interface.index != *index);
        // The API allows for as many entries as there are numbers.
        let Some(index) = (0..).find(is_free) else { continue };
        next.push(DomainInterface { index, ..entry.clone() });
    }
    let index = |entry: &DomainInterface| {
        next.iter().find(|interface| interface.name == entry.name).map(|interface| interface.index)
    };
    if change.restart.len() == named && !asked.iter().filter_map(index).is_sorted() {
        change.restart.push("spec.interfaces".to_owned());
    }
    change.next.interfaces = next;
}

/// Whether the host leads to the network of an interface that it is to have; if not, that is told.
fn has_uplink(change: &mut Change, entry: &DomainInterface, around: &Surroundings<'_>) -> bool {
    let DomainInterface { name, uplink, .. } = entry;
    match around.room {
        // Another interface of the guest is connected to it.
        None => true,
        Some(room) if room.host.uplinks.contains(uplink) => true,
        Some(_) => {
            let message = format!(
                "host {} has no uplink {uplink}, which interface {name} is to be connected to",
                around.host
            );
            change.held("NetworkNotAttached", message);
            false
        }
    }
}

fn unknown(host: &str) -> String {
    format!("nobody knows what host {host} has room for: its Host object is gone")
}

fn reserved(host: &str, field: &str) -> String {
    format!(
        "what host {host} has left is kept for the protected guests of hosts that may die: `{field}` is set when there is more, or at \
         the next restart on a host that has it"
    )
}

fn bytes(quantity: &ByteQuantity) -> u64 {
    quantity.bytes().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
