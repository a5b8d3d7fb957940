//! What a machine refers to, resolved: the disks, networks and repositories that it names, and what a Domain for it
//! is therefore made of.

use super::{
    address,
    apply::domain_name,
    cds,
    problem::Problem,
    suspension::{saved_machine, saved_state, state_disk_key},
};
use crate::{
    placement::ImageNeed,
    pool::level::level,
    view::{View, has_finalizer, host_of_namespace, is_deleting, uid, user_key},
};
use kubexen_crds::{
    ByteQuantity, Domain, DomainCloudInit, StorageRepository, VirtualDisk, VirtualMachine, Volume,
    cloud_init::seed_secret_name,
    domain::{DomainDisk, DomainInterface, Machine, SavedState, SharedDisk},
    names::host_object_name,
    network::NetworkType,
    quantity::HostSelector,
    storage_repository::RepositoryType,
    virtual_machine::{Disk as MachineDisk, Interface, Suspended},
};
use kubexen_runtime::Key;
use std::{collections::BTreeSet, sync::Arc};

/// A machine's references, resolved.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resolved {
    /// What its Domain is made of.
    pub(crate) machine: Machine,
    /// Its disks, in the order in which it boots from them.
    pub(crate) disks: Vec<Disk>,
    /// Its networks, in the order of its interfaces.
    pub(crate) networks: Vec<Network>,
    /// Where its guest is saved, if it is to be resumed from there; that disk is one of `disks`.
    pub(crate) saved_state: Option<SavedState>,
    /// The images in its CD drives.
    pub(crate) images: Vec<ImageNeed>,
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Disk {
    /// The VirtualDisk.
    pub(crate) disk: Arc<VirtualDisk>,
    /// Where it is, or where it can be made.
    pub(crate) site: Site,
    /// How hosts name it, if several of them reach it.
    pub(crate) shared: Option<SharedDisk>,
}

/// Where a disk is, or can be made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Site {
    /// It is on this host.
    On(String),
    /// It is on storage that several hosts reach.
    Shared {
        /// Storage location that the host must have.
        location: String,
        /// What that storage is called.
        storage: String,
        /// Hosts that the repository is for.
        selector: HostSelector,
    },
    /// It is not made yet.
    New {
        /// Storage location that the host must have.
        location: String,
        /// Whether that is to be storage that several hosts reach.
        shared: bool,
        /// Hosts that the repository is for.
        selector: HostSelector,
    },
}

/// A network of a machine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Network {
    /// Name of the Network.
    pub(crate) name: String,
    /// Uplink that the host must have.
    pub(crate) uplink: String,
    /// Hosts that the Network is for.
    pub(crate) selector: HostSelector,
}

/// Resolves what a machine refers to. A machine that has a Domain keeps what it has: disks in its use are no problem.
pub(crate) fn resolve(view: &View, machine: &VirtualMachine) -> Result<Resolved, Problem> {
    let mut resolved = resolve_without_devices(view, machine)?;
    let entries = in_boot_order(&machine.spec.disks).zip(cds::disk_targets(&machine.spec));
    for ((entry, target), found) in entries.zip(&resolved.disks) {
        resolved.machine.disks.push(domain_disk(machine, entry, found, target));
    }
    for ((interface, network), index) in machine.spec.interfaces.iter().zip(&resolved.networks).zip(0..) {
        resolved.machine.interfaces.push(domain_interface(view, machine, interface, &network.uplink, index));
    }
    let mut images = resolved.images.iter();
    for drive in cds::drives(&machine.spec) {
        let image = if drive.has_image() { images.next() } else { None };
        resolved.machine.cds.push(drive.resolved(image));
    }
    Ok(resolved)
}

/// As [`resolve`], but for the devices that the guest is to find: all that tells which hosts suit the machine.
pub(crate) fn resolve_without_devices(view: &View, machine: &VirtualMachine) -> Result<Resolved, Problem> {
    let mut resolved = Resolved {
        machine: without_devices(view, machine)?,
        disks: Vec::with_capacity(machine.spec.disks.len()),
        networks: Vec::with_capacity(machine.spec.interfaces.len()),
        saved_state: None,
        images: Vec::new(),
    };
    let mut seen = BTreeSet::new();
    for entry in in_boot_order(&machine.spec.disks) {
        if !seen.insert(&entry.disk) {
            return Err(Problem::DiskListedTwice { disk: entry.disk.clone() });
        }
        resolved.disks.push(disk_of_spec(view, machine, entry)?);
    }
    for interface in &machine.spec.interfaces {
        resolved.networks.push(network(view, &interface.network)?);
    }
    for drive in cds::drives(&machine.spec) {
        resolved.images.extend(drive.image(view)?);
    }
    Ok(resolved)
}

/// As [`resolve`], for a machine that has no Domain: if its guest is saved, it is resumed as what it was made of. If the
/// disk that it was saved to was deleted, which is how its owner gives it up, it boots afresh.
pub(crate) fn resolve_to_start(view: &View, machine: &VirtualMachine) -> Result<Resolved, Problem> {
    let suspended = machine.status.as_ref().and_then(|status| status.suspended.as_ref());
    let kept =
        |_: &&Suspended| view.disks.get(&state_disk_key(machine)).is_some_and(|disk| !is_deleting(&*disk));
    match suspended.filter(kept) {
        Some(suspended) => resolve_suspended(view, machine, suspended),
        None => resolve(view, machine),
    }
}

fn resolve_suspended(
    view: &View,
    machine: &VirtualMachine,
    suspended: &Suspended,
) -> Result<Resolved, Problem> {
    let memory = state_disk(view, machine)?;
    let mut disks = Vec::new();
    for entry in suspended.machine.disks.iter().filter(|entry| !entry.detach) {
        let key = user_key(&entry.volume);
        let name = key.as_ref().map_or(entry.volume.as_str(), |key| key.name.as_str());
        // One that is being deleted waits for this guest, suspended or not.
        disks.push(disk_unless(view, machine, name, |_| false)?);
    }
    let of_spec = |name: &str| machine.spec.interfaces.iter().find(|interface| interface.name == name);
    let networks = suspended.machine.interfaces.iter().map(|entry| {
        let named = of_spec(&entry.name).and_then(|interface| network(view, &interface.network).ok());
        // The spec may have come to name another network, to which the guest moves when it runs.
        named.filter(|network| network.uplink == entry.uplink).unwrap_or_else(|| Network {
            name: entry.uplink.clone(),
            uplink: entry.uplink.clone(),
            selector: HostSelector::default(),
        })
    });
    Ok(Resolved {
        machine: suspended.machine.clone(),
        networks: networks.collect(),
        images: suspended.machine.cds.iter().filter_map(cds::saved_image).collect(),
        saved_state: Some(saved_state(&memory)),
        disks: disks.into_iter().chain([memory]).collect(),
    })
}

/// The disk that the machine's guest is saved to, or is to be.
pub(crate) fn state_disk(view: &View, machine: &VirtualMachine) -> Result<Disk, Problem> {
    disk(view, machine, &state_disk_key(machine).name)
}

/// As [`resolve`], for a machine that has this Domain: what cannot be resolved is as the guest has it, so that one reference that
/// leads nowhere keeps nothing else from being changed. A disk that was deleted since, and has a successor of its name, goes: it
/// is what the successor waits for.
pub(crate) fn resolve_in_part(view: &View, machine: &VirtualMachine, domain: &Domain) -> Resolved {
    let present = &domain.spec.machine;
    let mut resolved = Resolved {
        machine: without_devices(view, machine).unwrap_or_else(|_| Machine {
            cds: Vec::new(),
            disks: Vec::new(),
            interfaces: Vec::new(),
            ..present.clone()
        }),
        disks: Vec::new(),
        networks: Vec::new(),
        saved_state: None,
        images: Vec::new(),
    };
    for (entry, target) in in_boot_order(&machine.spec.disks).zip(cds::disk_targets(&machine.spec)) {
        match disk_of_spec(view, machine, entry) {
            Ok(found) => {
                resolved.machine.disks.push(domain_disk(machine, entry, &found, target));
                resolved.disks.push(found);
            }
            Err(_) => {
                let old = present.disks.iter().find(|disk| disk.name == entry.name);
                resolved.machine.disks.extend(old.filter(|old| !has_successor(view, domain, old)).cloned());
            }
        }
    }
    for (interface, index) in machine.spec.interfaces.iter().zip(0..) {
        match network(view, &interface.network) {
            Ok(network) => {
                let entry = domain_interface(view, machine, interface, &network.uplink, index);
                resolved.machine.interfaces.push(entry);
                resolved.networks.push(network);
            }
            Err(_) => {
                let old = present.interfaces.iter().find(|old| old.name == interface.name);
                resolved.machine.interfaces.extend(old.cloned());
            }
        }
    }
    for drive in cds::drives(&machine.spec) {
        match drive.image(view) {
            Ok(need) => {
                resolved.machine.cds.push(drive.resolved(need.as_ref()));
                resolved.images.extend(need);
            }
            Err(_) => {
                let old = present.cds.iter().find(|old| old.name == drive.name());
                resolved.machine.cds.extend(old.cloned());
            }
        }
    }
    resolved
}

/// Whether a disk that a Domain has is an earlier one of the name that another has now.
fn has_successor(view: &View, domain: &Domain, entry: &DomainDisk) -> bool {
    let Some(disk) = user_key(&entry.volume).and_then(|key| view.disks.get(&key)) else { return false };
    let volume = || {
        let namespace = domain.metadata.namespace.as_deref().unwrap_or_default();
        Some(view.volumes.get(&Key::new(namespace, &entry.volume))?.spec.virtual_disk.uid.clone())
    };
    let present = entry.shared.as_ref().map(|shared| shared.uid.clone()).or_else(volume);
    present.is_some_and(|present| present != uid(&*disk))
}

/// The disks as the guest is to find them: those with a boot order first, by that. What boots a guest tries its disks in
/// the order of their names.
fn in_boot_order(disks: &[MachineDisk]) -> impl Iterator<Item = &MachineDisk> {
    let mut ordered: Vec<&MachineDisk> = disks.iter().collect();
    ordered.sort_by_key(|disk| disk.boot_order.unwrap_or(i32::MAX));
    ordered.into_iter()
}

/// What a machine is made of besides its disks and interfaces.
fn without_devices(view: &View, machine: &VirtualMachine) -> Result<Machine, Problem> {
    let spec = &machine.spec;
    let bytes = |field, quantity: &ByteQuantity| match quantity.bytes() {
        Ok(bytes) => Ok(ByteQuantity::from_bytes(bytes)),
        Err(_) => Err(Problem::Malformed { field, value: quantity.to_string() }),
    };
    let memory = bytes("spec.memory.size", &spec.memory.size)?;
    let max_memory = match &spec.memory.max {
        Some(max) => bytes("spec.memory.max", max)?,
        None => memory.clone(),
    };
    Ok(Machine {
        cpus: spec.cpu.count,
        max_cpus: spec.cpu.max.unwrap_or(spec.cpu.count),
        cpu_weight: spec.cpu.weight,
        cpu_cap_percent: spec.cpu.cap_percent,
        memory,
        max_memory,
        boot: spec.boot.clone(),
        cpu_level: level(view).and_then(|level| level.of(spec.boot.type_).cloned()),
        disks: Vec::new(),
        cds: Vec::new(),
        interfaces: Vec::new(),
        cloud_init: machine.spec.cloud_init.as_ref().map(|wanted| DomainCloudInit {
            secret: seed_secret_name(&domain_name(machine)),
            user_data_secret: wanted.user_data_secret.name.clone(),
        }),
    })
}

fn domain_disk(machine: &VirtualMachine, entry: &MachineDisk, found: &Disk, target: String) -> DomainDisk {
    let namespace = machine.metadata.namespace.as_deref().unwrap_or_default();
    DomainDisk {
        name: entry.name.clone(),
        volume: host_object_name(namespace, &entry.disk),
        shared: found.shared.clone(),
        read_only: entry.read_only,
        target,
        detach: false,
    }
}

fn domain_interface(
    view: &View,
    machine: &VirtualMachine,
    interface: &Interface,
    uplink: &str,
    index: i32,
) -> DomainInterface {
    DomainInterface {
        name: interface.name.clone(),
        uplink: uplink.to_owned(),
        mac: address_of(view, machine, interface),
        index,
        rate_limit: interface.rate_limit.clone(),
    }
}

fn disk_of_spec(view: &View, machine: &VirtualMachine, entry: &MachineDisk) -> Result<Disk, Problem> {
    let found = disk(view, machine, &entry.disk)?;
    match saved_machine(&found.disk) {
        Some((machine, _)) => Err(Problem::DiskHoldsGuest { disk: entry.disk.clone(), machine }),
        None => Ok(found),
    }
}

fn disk(view: &View, machine: &VirtualMachine, name: &str) -> Result<Disk, Problem> {
    disk_unless(view, machine, name, is_deleting)
}

fn disk_unless(
    view: &View,
    machine: &VirtualMachine,
    name: &str,
    is_going: impl Fn(&VirtualDisk) -> bool,
) -> Result<Disk, Problem> {
    let namespace = machine.metadata.namespace.as_deref().unwrap_or_default();
    let name = name.to_owned();
    let key = Key::new(namespace, &name);
    let Some(disk) = view.disks.get(&key) else {
        return Err(Problem::DiskNotFound { disk: name, namespace: namespace.to_owned() });
    };
    if is_going(&disk) {
        return Err(Problem::DiskDeleting { disk: name });
    }
    if !has_finalizer(&*disk) {
        return Err(Problem::DiskNew);
    }
    let user = view.domains_of_disk(&key).into_iter().map(|domain| domain.spec.virtual_machine.clone());
    if let Some(other) = user.into_iter().find(|user| user.uid != uid(machine)) {
        return Err(Problem::DiskInUse { disk: name, machine: Key::new(other.namespace, other.name) });
    }
    if let Some(other) = view.suspended_of_disk.to(&key).into_iter().find(|other| *other != Key::of(machine))
    {
        return Err(Problem::DiskInUse { disk: name, machine: other });
    }
    let volumes = view.volumes_of_disk(&key);
    let site = site(view, &key, &disk, &volumes)?;
    let location = match (volumes.first(), &site) {
        (Some(volume), _) => volume.spec.shared.then(|| &volume.spec.location),
        (None, Site::New { location, shared, .. }) => shared.then_some(location),
        (None, Site::On(_) | Site::Shared { .. }) => None,
    };
    let shared =
        location.map(|location| SharedDisk { location: location.clone(), uid: uid(&*disk).to_owned() });
    Ok(Disk { site, shared, disk })
}

fn site(view: &View, key: &Key, disk: &VirtualDisk, volumes: &[Arc<Volume>]) -> Result<Site, Problem> {
    let host = |namespace: Option<&String>| {
        namespace.and_then(|namespace| host_of_namespace(namespace)).unwrap_or_default().to_owned()
    };
    if let Some(other) = volumes.iter().find(|volume| volume.spec.virtual_disk.uid != uid(disk)) {
        return Err(Problem::DiskPredecessor {
            disk: key.name.clone(),
            host: host(other.metadata.namespace.as_ref()),
        });
    }
    let found = view.repositories.get(&Key::cluster(&disk.spec.repository));
    let bound = disk.status.as_ref().and_then(|status| status.host.clone());
    match (volumes.first(), bound) {
        (None, Some(host)) => return Err(Problem::DiskLost { disk: key.name.clone(), host }),
        (Some(volume), bound) => {
            let storage = if volume.spec.shared { storage(view, disk, volume) } else { None };
            return Ok(match storage {
                Some(storage) => Site::Shared {
                    location: volume.spec.location.clone(),
                    storage,
                    selector: found.map(|found| found.spec.host_selector.clone()).unwrap_or_default(),
                },
                // Of shared storage that has not said its name, only the host that looks after the disk is certain.
                None => Site::On(bound.unwrap_or_else(|| host(volume.metadata.namespace.as_ref()))),
            });
        }
        (None, None) => {}
    }
    let usable = found.as_deref().filter(|repository| !is_deleting(*repository));
    match usable.and_then(|repository| location(repository).map(|location| (repository, location))) {
        Some((repository, location)) => Ok(Site::New {
            location: location.to_owned(),
            shared: is_shared(repository),
            selector: repository.spec.host_selector.clone(),
        }),
        None => Err(Problem::RepositoryNotFound {
            repository: disk.spec.repository.clone(),
            disk: key.name.clone(),
        }),
    }
}

/// The storage location of a repository; a schema rule makes sure that there is one.
pub(crate) fn location(repository: &StorageRepository) -> Option<&str> {
    match repository.spec.type_ {
        RepositoryType::Directory => {
            repository.spec.directory.as_ref().map(|directory| directory.location.as_str())
        }
        RepositoryType::Lvm => repository.spec.lvm.as_ref().map(|lvm| lvm.location.as_str()),
    }
}

/// Whether several hosts reach the disks of a repository.
pub(crate) fn is_shared(repository: &StorageRepository) -> bool {
    match repository.spec.type_ {
        RepositoryType::Directory => false,
        RepositoryType::Lvm => true,
    }
}

/// What the shared storage is called that a Volume is on: as it was written down, or as the host says that looks after
/// the Volume.
pub(crate) fn storage(view: &View, disk: &VirtualDisk, volume: &Volume) -> Option<String> {
    if let Some(known) = disk.status.as_ref().and_then(|status| status.storage.clone()) {
        return Some(known);
    }
    let host = host_of_namespace(volume.metadata.namespace.as_deref()?)?;
    let host = view.hosts.get(&Key::cluster(host))?;
    let location = host.status.as_ref()?.locations.iter().find(|found| found.name == volume.spec.location)?;
    location.id.clone().filter(|_| location.shared)
}

/// The uplink of a network; a schema rule makes sure that there is one.
pub(crate) fn uplink(network: &kubexen_crds::Network) -> Option<&str> {
    match network.spec.type_ {
        NetworkType::Bridge => network.spec.bridge.as_ref().map(|bridge| bridge.uplink.as_str()),
    }
}

fn network(view: &View, name: &str) -> Result<Network, Problem> {
    let network = view.networks.get(&Key::cluster(name));
    if network.as_deref().is_some_and(is_deleting) {
        return Err(Problem::NetworkDeleting { network: name.to_owned() });
    }
    match (network.as_deref().and_then(uplink), network.as_deref()) {
        (Some(uplink), Some(network)) => Ok(Network {
            name: name.to_owned(),
            uplink: uplink.to_owned(),
            selector: network.spec.host_selector.clone(),
        }),
        _ => Err(Problem::NetworkNotFound { network: name.to_owned() }),
    }
}

/// The address of an interface: the given one, the one it had, or a derived one.
fn address_of(view: &View, machine: &VirtualMachine, interface: &Interface) -> String {
    if let Some(given) = &interface.mac {
        return given.clone();
    }
    let me = uid(machine);
    let taken = |address: &str| view.is_address_taken(address, me);
    let present = machine.status.as_ref().map(|status| status.interfaces.as_slice()).unwrap_or_default();
    match present.iter().find(|present| present.name == interface.name) {
        Some(present) if !taken(&present.mac) => present.mac.clone(),
        Some(_) | None => address::derive(me, &interface.name, taken),
    }
}

#[cfg(test)]
mod tests;
