//! The pool as placement sees it.

use super::{Claim, domain_memory};
use crate::{
    migration::movable,
    placement::{HostView, Room, Snapshot, group_key, memory_with_overhead},
    view::{View, has_finalizer, host_of_namespace, is_deleting, is_in_maintenance, is_ready, uid, user_key},
};
use kubexen_crds::{Domain, FeatureSets, Host, ProtectionState};
use kubexen_runtime::Key;
use std::collections::{BTreeMap, BTreeSet};

/// The hosts, with all that their Domains and Volumes use, those that are being deleted included, and with what was
/// assigned and is not in the mirrors yet.
pub(crate) fn take(view: &View, claims: &[Claim]) -> Snapshot {
    let mut hosts: BTreeMap<String, HostView> = view
        .hosts
        .list()
        .iter()
        .map(|host| {
            let seen = host_view(view, host);
            (seen.name.clone(), seen)
        })
        .collect();
    for domain in view.domains.list() {
        if let Some(host) = host_of(&domain.metadata.namespace).and_then(|host| hosts.get_mut(host)) {
            add_domain(view, host, &domain);
        }
    }
    let volumes = view.volumes.list();
    let mut counted = BTreeSet::new();
    for volume in &volumes {
        let Some(host) = host_of(&volume.metadata.namespace).and_then(|host| hosts.get_mut(host)) else {
            continue;
        };
        // While a disk goes into another host's hands it has two Volumes, and takes room once.
        if volume.spec.shared && !counted.insert(&volume.spec.virtual_disk.uid) {
            continue;
        }
        let size = volume.spec.size.bytes().unwrap_or(u64::MAX);
        add_volume(host, &volume.spec.location, size);
    }
    for claim in claims {
        if let Some(host) = hosts.get_mut(&claim.host) {
            add_claim(view, host, claim);
        }
    }
    sum_shared_storage(&mut hosts);
    // The schema allows for one Pool, named default.
    let policy = view.pools.list().first().map(|pool| pool.spec.placement.clone()).unwrap_or_default();
    Snapshot { hosts: hosts.into_values().collect(), policy }
}

fn host_of(namespace: &Option<String>) -> Option<&str> {
    namespace.as_deref().and_then(host_of_namespace)
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

fn add_volume(host: &mut HostView, location: &str, size: u64) {
    if let Some(room) = host.locations.get_mut(location) {
        room.used = room.used.saturating_add(size);
    }
}

/// What one host has made in shared storage is used for all that reach it.
fn sum_shared_storage(hosts: &mut BTreeMap<String, HostView>) {
    let mut used: BTreeMap<(String, String), u64> = BTreeMap::new();
    for (name, room) in hosts.values().flat_map(|host| &host.locations) {
        if let Some(storage) = &room.storage {
            let sum = used.entry((name.clone(), storage.clone())).or_default();
            *sum = sum.saturating_add(room.used);
        }
    }
    for (name, room) in hosts.values_mut().flat_map(|host| &mut host.locations) {
        if let Some(storage) = &room.storage {
            room.used = used[&(name.clone(), storage.clone())];
        }
    }
}

fn add_claim(view: &View, host: &mut HostView, claim: &Claim) {
    let Claim { host: _, request, disks: _, new_disks } = claim;
    host.vcpus_used = host.vcpus_used.saturating_add(request.vcpus);
    host.memory_used =
        host.memory_used.saturating_add(memory_with_overhead(request.memory, request.vcpus, request.boot));
    host.memory_used = host.memory_used.saturating_add(request.growth);
    if let Some((group, _)) = &request.anti_affinity {
        *host.groups.entry(group.clone()).or_insert(0) += 1;
    }
    for (disk, (location, size)) in new_disks {
        // A Volume that is in the mirror already was counted there.
        if view.volumes_of_disk(disk).is_empty() {
            add_volume(host, location, *size);
        }
    }
}
