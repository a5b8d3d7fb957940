//! From names in a Domain to the files, devices and bridges of this host.

use super::{
    Domains, ReconcileError, cds, cloud_init,
    live::{Asked, AskedDisk, AskedInterface, LiveStep, Tried},
    observe::Unmet,
};
use crate::{
    hypervisor::{DiskConfig, DomainConfig, InterfaceConfig, KernelImage, RATE_UNIT, Scheduling, Settings},
    storage::VolumeId,
};
use kubexen_crds::{
    Boot, Domain, Volume, condition,
    domain::{DomainDisk, DomainInterface, Machine, SavedState, SharedDisk},
};
use kubexen_ownership::{DiskUid, Token};
use kubexen_runtime::Key;
use uuid::Uuid;

/// The volumes of the domain's disks, in their order; none where nothing says where the data is.
pub(super) fn volumes(domains: &Domains, domain: &Domain) -> Vec<Option<VolumeId>> {
    domain.spec.machine.disks.iter().map(|disk| volume_of(domains, domain, disk)).collect()
}

/// All volumes that a Domain names, those to be detached and the one that it is saved to included; none if nothing says where the
/// data of one is.
pub(super) fn all_volumes(domains: &Domains, domain: &Domain) -> Option<Vec<VolumeId>> {
    let saved = domain.spec.saved_state.as_ref().map(|_| saved_volume(domains, domain));
    volumes(domains, domain).into_iter().chain(saved).collect()
}

/// The volume of the domain's disk of this name.
pub(super) fn volume(domains: &Domains, domain: &Domain, name: &str) -> Option<VolumeId> {
    let found = domain.spec.machine.disks.iter().find(|disk| disk.name == name)?;
    volume_of(domains, domain, found)
}

fn volume_of(domains: &Domains, domain: &Domain, disk: &DomainDisk) -> Option<VolumeId> {
    let namespace = domain.metadata.namespace.clone().unwrap_or_default();
    if let Some(shared) = &disk.shared {
        return shared_volume(shared);
    }
    let volume = domains.mirrors.volumes.get(&Key::new(namespace, disk.volume.clone()))?;
    volume_id(&volume)
}

/// Where the data of a Volume is.
pub(crate) fn volume_id(volume: &Volume) -> Option<VolumeId> {
    let uuid = Uuid::parse_str(&volume.spec.virtual_disk.uid).ok()?;
    Some(VolumeId { location: volume.spec.location.clone(), uuid })
}

/// The volume that the guest is saved to.
pub(super) fn saved_volume(domains: &Domains, domain: &Domain) -> Option<VolumeId> {
    let saved = domain.spec.saved_state.as_ref()?;
    let namespace = domain.metadata.namespace.clone().unwrap_or_default();
    match &saved.shared {
        Some(shared) => shared_volume(shared),
        None => volume_id(&*domains.mirrors.volumes.get(&Key::new(namespace, saved.volume.clone()))?),
    }
}

/// The disk that the guest is saved to, if several hosts reach it.
pub(super) fn saved_disk(domain: &Domain) -> Option<DiskUid> {
    Some(DiskUid(shared_volume(domain.spec.saved_state.as_ref()?.shared.as_ref()?)?.uuid))
}

/// What keeps the guest from being saved to its volume, or resumed from there.
pub(super) async fn unmet_of_saved(domains: &Domains, domain: &Domain, saved: &SavedState) -> Option<Unmet> {
    let namespace = domain.metadata.namespace.as_deref().unwrap_or_default();
    match &saved.shared {
        Some(shared) => unmet_of_shared(domains, namespace, &saved.volume, shared).await,
        None => unmet_of_local(domains, namespace, &saved.volume).await,
    }
}

/// Where the data of a disk on shared storage is.
fn shared_volume(disk: &SharedDisk) -> Option<VolumeId> {
    let uuid = Uuid::parse_str(&disk.uid).ok()?;
    Some(VolumeId { location: disk.location.clone(), uuid })
}

/// The disks that the domain is to have and that several hosts reach.
pub(super) fn shared_disks(domain: &Domain) -> impl Iterator<Item = (&str, DiskUid)> {
    let disks = domain.spec.machine.disks.iter().filter(|disk| !disk.detach);
    disks.filter_map(|disk| Some((disk.volume.as_str(), shared_disk(disk)?)))
}

/// The domain's disk of this name with its volume, if several hosts reach it.
pub(super) fn shared_disk_named<'a>(domain: &'a Domain, name: &str) -> Option<(&'a str, DiskUid)> {
    let disk = domain.spec.machine.disks.iter().find(|disk| disk.name == name)?;
    Some((disk.volume.as_str(), shared_disk(disk)?))
}

/// The identity of a disk, if several hosts reach it.
pub(super) fn shared_disk(disk: &DomainDisk) -> Option<DiskUid> {
    Some(DiskUid(shared_volume(disk.shared.as_ref()?)?.uuid))
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
    if let Some(need) = unmet_of_boot(domains, &machine.boot).await {
        return Some(need);
    }
    for disk in machine.disks.iter().filter(|disk| !disk.detach) {
        if let Some(need) = unmet_of_disk(domains, domain, disk, users).await {
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

/// What this host lacks of what starts the guest.
async fn unmet_of_boot(domains: &Domains, boot: &Boot) -> Option<Unmet> {
    // A host whose facts cannot be had has been reported; the hypervisor itself refuses what is not there.
    let facts = domains.hypervisor.facts().await.ok()?;
    if boot.needs_boot_loader() && !facts.boot_loaders.contains(&boot.type_) {
        return Some(Unmet::BootLoaderMissing(boot.type_));
    }
    let missing = boot.firmware().filter(|firmware| !facts.firmware.contains(firmware));
    missing.map(Unmet::FirmwareMissing)
}

/// What keeps a disk from being attached.
async fn unmet_of_disk(
    domains: &Domains,
    domain: &Domain,
    disk: &DomainDisk,
    users: &[(String, String)],
) -> Option<Unmet> {
    let namespace = domain.metadata.namespace.as_deref().unwrap_or_default();
    let unmet = match &disk.shared {
        Some(shared) => unmet_of_shared(domains, namespace, &disk.volume, shared).await,
        None => unmet_of_local(domains, namespace, &disk.volume).await,
    };
    let in_use = || {
        let user = users.iter().find(|(volume, _)| *volume == disk.volume);
        user.map(|(volume, by)| Unmet::VolumeInUse { volume: volume.clone(), by: by.clone() })
    };
    unmet.or_else(in_use)
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
    tried: &Tried,
) -> Result<Asked, ReconcileError> {
    let machine = &domain.spec.machine;
    let has =
        |target: &str| present.is_some_and(|present| present.disks.iter().any(|disk| disk.target == target));
    let mut disks = Vec::new();
    for disk in &machine.disks {
        let absent = !disk.detach && !has(&disk.target);
        disks.push(AskedDisk {
            name: disk.name.clone(),
            target: disk.target.clone(),
            detach: disk.detach,
            need: if absent { unmet_of_disk(domains, domain, disk, users).await } else { None },
            stored: disk.detach
                && (volume_of(domains, domain, disk).is_some_and(|volume| stored(&volume))
                    || is_claimed(disk, tried)),
        });
    }
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
        cds: cds::asked(domains, domain).await?,
        interfaces,
    })
}

/// Whether the pool's store may say that the disk is this machine's: it is not asked, but told again in each look.
fn is_claimed(disk: &DomainDisk, tried: &Tried) -> bool {
    disk.shared.is_some() && !tried.done.contains(&LiveStep::ReleaseVolume(disk.name.clone()))
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

/// A Volume that only cannot grow is there all the same: the storage itself is asked about one that is not Ready.
async fn unmet_of_local(domains: &Domains, namespace: &str, volume: &str) -> Option<Unmet> {
    let Some(found) = domains.mirrors.volumes.get(&Key::new(namespace, volume)) else {
        return Some(Unmet::VolumeMissing(volume.to_owned()));
    };
    let status = found.status.clone().unwrap_or_default();
    if condition::is_true(&status.conditions, "Ready") {
        return None;
    }
    let not_ready = not_ready(volume, Some(&found));
    match volume_id(&found).filter(|_| status.capacity.is_some()) {
        None => Some(not_ready),
        Some(id) => match domains.storage.find(&id).await {
            Ok(Some(_)) => None,
            Ok(None) => Some(not_ready),
            Err(error) => Some(Unmet::StorageUnavailable(error.to_string())),
        },
    }
}

/// The storage itself is asked: the Volume is another host's to read.
async fn unmet_of_shared(
    domains: &Domains,
    namespace: &str,
    volume: &str,
    shared: &SharedDisk,
) -> Option<Unmet> {
    let Some(id) = shared_volume(shared) else {
        return Some(Unmet::Malformed(format!("`shared.uid` of volume {volume} is no UUID")));
    };
    match domains.storage.find(&id).await {
        Ok(Some(_)) => None,
        Ok(None) => {
            let found = domains.mirrors.volumes.get(&Key::new(namespace, volume));
            Some(not_ready(volume, found.as_deref()))
        }
        Err(error) => Some(Unmet::StorageUnavailable(error.to_string())),
    }
}

/// That a volume is not ready, with what its object says of that if this host makes it.
fn not_ready(volume: &str, object: Option<&Volume>) -> Unmet {
    let status = object.and_then(|object| object.status.as_ref());
    let said = status.and_then(|status| condition::find(&status.conditions, "Ready"));
    let why = said.filter(|ready| ready.status != "True").map(|ready| ready.message.clone());
    Unmet::VolumeNotReady { volume: volume.to_owned(), why }
}

/// What the domain is made of on this host. Makes its seed and attaches its disks; attaching one that is attached changes
/// nothing.
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
    disks.extend(cds::disks(domains, domain).await?);
    disks.extend(cloud_init::disk(domains, domain, uuid).await?);
    let mut interfaces = Vec::new();
    for wanted in &machine.interfaces {
        interfaces.push(interface(domains, domain, &wanted.name).await?);
    }
    Ok(DomainConfig {
        uuid,
        token: token.0,
        boot: machine.boot.type_,
        cpu_level: machine.cpu_level.clone(),
        firmware: machine.boot.firmware(),
        kernel: kernel(domains, &machine.boot)?,
        vcpus: number(machine.cpus, "cpus")?,
        max_vcpus: number(machine.max_cpus, "maxCpus")?,
        scheduling: scheduling(machine)?,
        memory_kib: bytes(&machine.memory)? / 1024,
        max_memory_kib: bytes(&machine.max_memory)? / 1024,
        disks,
        cds: cds::drives(domains, domain).await?,
        cds_first: machine.cds.iter().any(|cd| cd.before_disks),
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
