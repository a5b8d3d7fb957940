//! From names in a Domain to the files, devices and bridges of this host.

use super::{
    Domains, ReconcileError,
    live::{Asked, AskedDisk, AskedInterface},
    observe::Unmet,
};
use crate::{
    hypervisor::{DiskConfig, DomainConfig, InterfaceConfig, KernelImage, RATE_UNIT, Scheduling, Settings},
    storage::VolumeId,
};
use kubexen_crds::{
    Boot, Domain, Volume, condition,
    domain::{DomainDisk, DomainInterface, Machine},
};
use kubexen_ownership::Token;
use kubexen_runtime::Key;
use uuid::Uuid;

/// The volumes of the domain's disks, in their order; none where the Volume object is not there.
pub(super) fn volumes(domains: &Domains, domain: &Domain) -> Vec<Option<VolumeId>> {
    domain.spec.machine.disks.iter().map(|disk| volume_of(domains, domain, disk)).collect()
}

/// The volume of the domain's disk of this name.
pub(super) fn volume(domains: &Domains, domain: &Domain, name: &str) -> Option<VolumeId> {
    let found = domain.spec.machine.disks.iter().find(|disk| disk.name == name)?;
    volume_of(domains, domain, found)
}

fn volume_of(domains: &Domains, domain: &Domain, disk: &DomainDisk) -> Option<VolumeId> {
    let namespace = domain.metadata.namespace.clone().unwrap_or_default();
    let volume = domains.mirrors.volumes.get(&Key::new(namespace, disk.volume.clone()))?;
    volume_id(&volume)
}

/// Where the data of a Volume is.
pub(crate) fn volume_id(volume: &Volume) -> Option<VolumeId> {
    let uuid = Uuid::parse_str(&volume.spec.virtual_disk.uid).ok()?;
    Some(VolumeId { location: volume.spec.location.clone(), uuid })
}

/// The first need of the domain that is not met. `users` are volumes in use, each with who has it.
pub(super) async fn unmet(domains: &Domains, domain: &Domain, users: &[(String, String)]) -> Option<Unmet> {
    let machine = &domain.spec.machine;
    for (field, memory) in [("memory", &machine.memory), ("maxMemory", &machine.max_memory)] {
        if memory.bytes().is_err() {
            return Some(Unmet::Malformed(format!("`{field}` is {memory}")));
        }
    }
    if let Some(kernel) = &machine.boot.kernel
        && !domains.catalogue.contains_key(&kernel.name)
    {
        return Some(Unmet::KernelMissing(kernel.name.clone()));
    }
    for disk in machine.disks.iter().filter(|disk| !disk.detach) {
        if let Some(need) = unmet_of_disk(domains, domain, disk, users) {
            return Some(need);
        }
    }
    for interface in &machine.interfaces {
        if let Err(need) = bridge(domains, interface).await {
            return Some(need);
        }
    }
    None
}

/// What keeps a disk from being attached.
fn unmet_of_disk(
    domains: &Domains,
    domain: &Domain,
    disk: &DomainDisk,
    users: &[(String, String)],
) -> Option<Unmet> {
    let namespace = domain.metadata.namespace.clone().unwrap_or_default();
    let Some(volume) = domains.mirrors.volumes.get(&Key::new(namespace, disk.volume.clone())) else {
        return Some(Unmet::VolumeMissing(disk.volume.clone()));
    };
    let conditions = volume.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    if !condition::is_true(conditions, "Ready") {
        return Some(Unmet::VolumeNotReady(disk.volume.clone()));
    }
    let user = users.iter().find(|(volume, _)| *volume == disk.volume);
    user.map(|(volume, by)| Unmet::VolumeInUse { volume: volume.clone(), by: by.clone() })
}

async fn bridge(domains: &Domains, interface: &DomainInterface) -> Result<String, Unmet> {
    let found = domains.network.bridge(&interface.uplink).await;
    found.map_err(|_| Unmet::UplinkMissing(interface.uplink.clone()))
}

/// What the domain asks for of what can change while its guest runs. `present` is what it has, `stored` are the volumes
/// that are devices of this host, `users` are volumes in use, each with who has it.
pub(super) async fn asked(
    domains: &Domains,
    domain: &Domain,
    present: Option<&Settings>,
    stored: impl Fn(&VolumeId) -> bool,
    users: &[(String, String)],
) -> Result<Asked, ReconcileError> {
    let machine = &domain.spec.machine;
    let has =
        |target: &str| present.is_some_and(|present| present.disks.iter().any(|disk| disk.target == target));
    let disks = machine
        .disks
        .iter()
        .map(|disk| AskedDisk {
            name: disk.name.clone(),
            target: disk.target.clone(),
            detach: disk.detach,
            need: (!disk.detach && !has(&disk.target))
                .then(|| unmet_of_disk(domains, domain, disk, users))
                .flatten(),
            stored: disk.detach && volume_of(domains, domain, disk).is_some_and(|volume| stored(&volume)),
        })
        .collect();
    let mut interfaces = Vec::new();
    for interface in machine.interfaces.iter().filter(|_| present.is_some()) {
        interfaces.push(AskedInterface {
            name: interface.name.clone(),
            index: index(interface)?,
            mac: interface.mac.clone(),
            bridge: bridge(domains, interface).await,
            rate_limit: rate_limit(interface)?,
        });
    }
    Ok(Asked {
        vcpus: number(machine.cpus, "cpus")?,
        scheduling: scheduling(machine)?,
        memory_kib: bytes(&machine.memory)? / 1024,
        disks,
        interfaces,
    })
}

fn malformed(what: impl Into<String>) -> ReconcileError {
    ReconcileError::Malformed(what.into())
}

fn number(number: i32, field: &str) -> Result<u32, ReconcileError> {
    u32::try_from(number).map_err(|_| malformed(format!("`{field}` is negative")))
}

fn bytes(quantity: &kubexen_crds::ByteQuantity) -> Result<u64, ReconcileError> {
    quantity.bytes().map_err(|error| malformed(error.to_string()))
}

fn scheduling(machine: &Machine) -> Result<Scheduling, ReconcileError> {
    Ok(Scheduling {
        weight: number(machine.cpu_weight, "cpuWeight")?,
        cap_percent: number(machine.cpu_cap_percent, "cpuCapPercent")?,
    })
}

fn index(interface: &DomainInterface) -> Result<u32, ReconcileError> {
    number(interface.index, "index")
}

fn rate_limit(interface: &DomainInterface) -> Result<Option<u64>, ReconcileError> {
    let limit = interface.rate_limit.as_ref().map(bytes).transpose()?;
    Ok(limit.map(|limit| limit / RATE_UNIT * RATE_UNIT))
}

/// The domain's disk of this name. Attaches its volume; attaching one that is attached changes nothing.
pub(super) async fn disk(
    domains: &Domains,
    domain: &Domain,
    name: &str,
) -> Result<DiskConfig, ReconcileError> {
    let found = domain.spec.machine.disks.iter().find(|disk| disk.name == name);
    let disk = found.ok_or_else(|| malformed(format!("there is no disk {name}")))?;
    let volume = volume_of(domains, domain, disk)
        .ok_or_else(|| malformed(format!("volume {} is not there", disk.volume)))?;
    let device = domains.storage.attach(&volume, disk.read_only).await?;
    Ok(DiskConfig { device, target: disk.target.clone(), read_only: disk.read_only })
}

/// The domain's interface of this name.
pub(super) async fn interface(
    domains: &Domains,
    domain: &Domain,
    name: &str,
) -> Result<InterfaceConfig, ReconcileError> {
    let found = domain.spec.machine.interfaces.iter().find(|interface| interface.name == name);
    let interface = found.ok_or_else(|| malformed(format!("there is no interface {name}")))?;
    Ok(InterfaceConfig {
        bridge: domains.network.bridge(&interface.uplink).await?,
        mac: interface.mac.clone(),
        index: index(interface)?,
        rate_limit: rate_limit(interface)?,
    })
}

/// What the domain is made of on this host. Attaches its disks; attaching one that is attached changes nothing.
pub(super) async fn configuration(
    domains: &Domains,
    domain: &Domain,
    uuid: Uuid,
    token: Token,
) -> Result<DomainConfig, ReconcileError> {
    let machine = &domain.spec.machine;
    let mut disks = Vec::new();
    for wanted in machine.disks.iter().filter(|disk| !disk.detach) {
        disks.push(disk(domains, domain, &wanted.name).await?);
    }
    let mut interfaces = Vec::new();
    for wanted in &machine.interfaces {
        interfaces.push(interface(domains, domain, &wanted.name).await?);
    }
    Ok(DomainConfig {
        uuid,
        token: token.0,
        boot: machine.boot.type_,
        kernel: kernel(domains, &machine.boot)?,
        vcpus: number(machine.cpus, "cpus")?,
        max_vcpus: number(machine.max_cpus, "maxCpus")?,
        scheduling: scheduling(machine)?,
        memory_kib: bytes(&machine.memory)? / 1024,
        max_memory_kib: bytes(&machine.max_memory)? / 1024,
        disks,
        interfaces,
    })
}

fn kernel(domains: &Domains, boot: &Boot) -> Result<Option<KernelImage>, ReconcileError> {
    let Some(kernel) = &boot.kernel else { return Ok(None) };
    let entry = domains
        .catalogue
        .get(&kernel.name)
        .ok_or_else(|| ReconcileError::Malformed(format!("no kernel {} in the catalogue", kernel.name)))?;
    Ok(Some(KernelImage {
        kernel: entry.kernel.clone(),
        ramdisk: entry.ramdisk.clone(),
        command_line: kernel.command_line.clone(),
    }))
}
