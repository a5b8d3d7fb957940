//! The pool as placement sees it.

use super::{Claim, domain_memory};
use crate::{
    migration::movable,
    placement::{HostView, Room, group_key, memory_with_overhead},
    view::{View, has_finalizer, host_of_namespace, is_deleting, is_in_maintenance, is_ready, uid, user_key},
};
use kube::core::ObjectMeta;
use kubexen_crds::{Domain, FeatureSets, Host, ProtectionState, Volume};
use kubexen_runtime::Key;
use std::collections::BTreeMap;

/// What disks use of each host's locations, in bytes, by host and location.
pub(super) type Used = BTreeMap<String, BTreeMap<String, u64>>;

/// A host, with all that its Domains use, those that are being deleted included, and with what was assigned and is not in the
/// mirrors yet; without what is used of its locations.
pub(super) fn with_guests<'a>(
    view: &View,
    host: &Host,
    claims: impl IntoIterator<Item = &'a Claim>,
) -> HostView {
    let mut seen = host_view(view, host);
    for domain in view.domains_of_host(&seen.name) {
        add_domain(view, &mut seen, &domain);
    }
    for claim in claims {
        if claim.host == seen.name {
            add_claim(&mut seen, claim);
        }
    }
    seen
}

/// What the Volumes on a host use of its locations, those that are being deleted included.
pub(super) fn used_on(view: &View, host: &str) -> BTreeMap<String, u64> {
    let mut used = BTreeMap::<String, u64>::new();
    let volumes = view.volumes_of_host(host);
    for volume in volumes.iter().filter(|volume| !is_counted_before(view, volume)) {
        let size = volume.spec.size.bytes().unwrap_or(u64::MAX);
        match used.get_mut(&volume.spec.location) {
            Some(sum) => *sum = sum.saturating_add(size),
            None => _ = used.insert(volume.spec.location.clone(), size),
        }
    }
    used
}

/// Whether the disk is counted on a host that comes before: while it goes into another host's hands it has two Volumes, and takes
/// room once.
fn is_counted_before(view: &View, volume: &Volume) -> bool {
    let Volume { metadata: ObjectMeta { namespace, .. }, spec, .. } = volume;
    let is_same = |other: &Volume| other.spec.shared && other.spec.virtual_disk.uid == spec.virtual_disk.uid;
    let on_known_host = |other: &Volume| {
        let host = other.metadata.namespace.as_deref().and_then(host_of_namespace);
        host.is_some_and(|host| view.hosts.get(&Key::cluster(host)).is_some())
    };
    let disk = Key::new(&spec.virtual_disk.namespace, &spec.virtual_disk.name);
    if !spec.shared || view.volumes_of_disk.count_to(&disk) < 2 {
        return false;
    }
    let volumes = view.volumes_of_disk(&disk);
    // They are sorted by namespace.
    let mut before = volumes.iter().take_while(|other| other.metadata.namespace != *namespace);
    before.any(|other| is_same(other) && on_known_host(other))
}

fn add_volume(used: &mut Used, host: &str, location: &str, size: u64) {
    let there = used.entry(host.to_owned()).or_default().entry(location.to_owned()).or_default();
    *there = there.saturating_add(size);
}

/// Puts in what is used of each location: by Volumes, and by disks that are about to be made. What one host has made in shared
/// storage is used for all that reach it.
pub(super) fn fill_locations<'a>(
    view: &View,
    hosts: &mut [HostView],
    used: &Used,
    claims: impl IntoIterator<Item = &'a Claim>,
) {
    let mut new = Used::new();
    for claim in claims {
        for (disk, (location, size)) in &claim.new_disks {
            // A Volume that is in the mirror already was counted there.
            if view.volumes_of_disk(disk).is_empty() {
                add_volume(&mut new, &claim.host, location, *size);
            }
        }
    }
    let on = |used: &Used, host: &str, location: &str| {
        used.get(host).and_then(|locations| locations.get(location)).copied().unwrap_or(0)
    };
    let mut sums: BTreeMap<(String, String), u64> = BTreeMap::new();
    for HostView { name: host, locations, .. } in &mut *hosts {
        for (location, room) in locations {
            room.used = on(used, host, location).saturating_add(on(&new, host, location));
            if let Some(storage) = &room.storage {
                let sum = sums.entry((location.clone(), storage.clone())).or_default();
                *sum = sum.saturating_add(room.used);
            }
        }
    }
    for (location, room) in hosts.iter_mut().flat_map(|host| &mut host.locations) {
        if let Some(storage) = &room.storage {
            room.used = sums[&(location.clone(), storage.clone())];
        }
    }
}

/// A host, without what is used of it.
pub(crate) fn host_view(view: &View, host: &Host) -> HostView {
    let status = host.status.clone().unwrap_or_default();
    let cpu_features: Option<FeatureSets> = status.cpu.as_ref().and_then(|cpu| cpu.feature_sets.clone());
    HostView {
        name: Key::of(host).name,
        labels: host.metadata.labels.clone().unwrap_or_default(),
        maintenance: is_in_maintenance(host),
        ready: is_ready(host),
        schedulable: host.spec.schedulable && !is_deleting(host) && has_finalizer(host),
        protects: status
            .protection
            .as_ref()
            .is_some_and(|protection| protection.state == ProtectionState::Ready),
        memory_allocatable: status.memory.and_then(|memory| memory.allocatable.bytes().ok()).unwrap_or(0),
        memory_used: 0,
        cpus: status.cpu.and_then(|cpu| u32::try_from(cpu.count).ok()).unwrap_or(0),
        vcpus_used: 0,
        cpu_features: cpu_features.unwrap_or_default(),
        images: status
            .locations
            .iter()
            .map(|location| (location.name.clone(), location.images.iter().cloned().collect()))
            .collect(),
        locations: status
            .locations
            .into_iter()
            .map(|location| {
                let capacity = location.capacity.bytes().unwrap_or(0);
                let storage = location.id.filter(|_| location.shared);
                (location.name, Room { capacity, used: 0, storage })
            })
            .collect(),
        uplinks: status.uplinks.into_iter().map(|uplink| uplink.name).collect(),
        kernels: status.kernels.into_iter().collect(),
        boot_loaders: status.boot_loaders.into_iter().collect(),
        firmware: status.firmware.into_iter().collect(),
        receives: status
            .migration
            .map(|migration| migration.boot_types)
            .unwrap_or_default()
            .into_iter()
            .collect(),
        on_migration_network: movable::off_network(view, &Key::of(host).name).is_none(),
        capabilities: status.xen.map(|xen| xen.capabilities).unwrap_or_default().into_iter().collect(),
        groups: BTreeMap::new(),
    }
}

fn add_domain(view: &View, host: &mut HostView, domain: &Domain) {
    let machine = &domain.spec.machine;
    let vcpus = u32::try_from(machine.cpus).unwrap_or(u32::MAX);
    host.vcpus_used = host.vcpus_used.saturating_add(vcpus);
    host.memory_used = host.memory_used.saturating_add(domain_memory(machine, domain.status.as_ref()));
    let owner = &domain.spec.virtual_machine;
    let group = user_key(domain.metadata.name.as_deref().unwrap_or_default())
        .and_then(|key| view.machines.get(&key))
        .filter(|machine| uid(&**machine) == owner.uid)
        .and_then(|machine| machine.spec.placement.anti_affinity.clone());
    if let Some(group) = group {
        *host.groups.entry(group_key(&owner.namespace, &group.group)).or_insert(0) += 1;
    }
}

fn add_claim(host: &mut HostView, claim: &Claim) {
    let Claim { host: _, request, disks: _, new_disks: _ } = claim;
    host.vcpus_used = host.vcpus_used.saturating_add(request.vcpus);
    host.memory_used =
        host.memory_used.saturating_add(memory_with_overhead(request.memory, request.vcpus, request.boot));
    host.memory_used = host.memory_used.saturating_add(request.growth);
    if let Some((group, _)) = &request.anti_affinity {
        *host.groups.entry(group.clone()).or_insert(0) += 1;
    }
}
