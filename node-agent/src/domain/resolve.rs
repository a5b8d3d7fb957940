//! From names in a Domain to the files, devices and bridges of this host.

use super::{Domains, ReconcileError, observe::Unmet};
use crate::{
    hypervisor::{DiskConfig, DomainConfig, InterfaceConfig, KernelImage},
    storage::VolumeId,
};
use kubexen_crds::{Boot, Domain, Volume, condition, domain::SharedDisk};
use kubexen_ownership::{DiskUid, Token};
use kubexen_runtime::Key;
use uuid::Uuid;

/// The volumes of the domain's disks, in their order; none where nothing says where the data is.
pub(super) fn volumes(domains: &Domains, domain: &Domain) -> Vec<Option<VolumeId>> {
    let namespace = domain.metadata.namespace.clone().unwrap_or_default();
    let machine = &domain.spec.machine;
    machine
        .disks
        .iter()
        .map(|disk| {
            if let Some(shared) = &disk.shared {
                return shared_volume(shared);
            }
            let volume = domains.mirrors.volumes.get(&Key::new(namespace.clone(), disk.volume.clone()))?;
            volume_id(&volume)
        })
        .collect()
}

/// Where the data of a Volume is.
pub(crate) fn volume_id(volume: &Volume) -> Option<VolumeId> {
    let uuid = Uuid::parse_str(&volume.spec.virtual_disk.uid).ok()?;
    Some(VolumeId { location: volume.spec.location.clone(), uuid })
}

/// Where the data of a disk on shared storage is.
fn shared_volume(disk: &SharedDisk) -> Option<VolumeId> {
    let uuid = Uuid::parse_str(&disk.uid).ok()?;
    Some(VolumeId { location: disk.location.clone(), uuid })
}

/// The disks of the domain that several hosts reach.
pub(super) fn shared_disks(domain: &Domain) -> impl Iterator<Item = (&str, DiskUid)> {
    let disks = domain.spec.machine.disks.iter();
    disks.filter_map(|disk| {
        let volume = shared_volume(disk.shared.as_ref()?)?;
        Some((disk.volume.as_str(), DiskUid(volume.uuid)))
    })
}

/// The first need of the domain that is not met. `users` are volumes in use, each with who has it.
pub(super) async fn unmet(domains: &Domains, domain: &Domain, users: &[(String, String)]) -> Option<Unmet> {
    let namespace = domain.metadata.namespace.clone().unwrap_or_default();
    let machine = &domain.spec.machine;
    if machine.memory.bytes().is_err() {
        return Some(Unmet::Malformed(format!("`memory` is {}", machine.memory)));
    }
    if let Some(kernel) = &machine.boot.kernel
        && !domains.catalogue.contains_key(&kernel.name)
    {
        return Some(Unmet::KernelMissing(kernel.name.clone()));
    }
    for disk in &machine.disks {
        let unmet = match &disk.shared {
            Some(shared) => unmet_of_shared(domains, &disk.volume, shared).await,
            None => unmet_of_local(domains, &namespace, &disk.volume),
        };
        if unmet.is_some() {
            return unmet;
        }
        if let Some((volume, by)) = users.iter().find(|(volume, _)| *volume == disk.volume) {
            return Some(Unmet::VolumeInUse { volume: volume.clone(), by: by.clone() });
        }
    }
    for interface in &machine.interfaces {
        if domains.network.bridge(&interface.uplink).await.is_err() {
            return Some(Unmet::UplinkMissing(interface.uplink.clone()));
        }
    }
    None
}

fn unmet_of_local(domains: &Domains, namespace: &str, volume: &str) -> Option<Unmet> {
    let Some(found) = domains.mirrors.volumes.get(&Key::new(namespace, volume)) else {
        return Some(Unmet::VolumeMissing(volume.to_owned()));
    };
    let conditions = found.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    (!condition::is_true(conditions, "Ready")).then(|| Unmet::VolumeNotReady(volume.to_owned()))
}

/// The storage itself is asked: the Volume is another host's to read.
async fn unmet_of_shared(domains: &Domains, volume: &str, shared: &SharedDisk) -> Option<Unmet> {
    let Some(id) = shared_volume(shared) else {
        return Some(Unmet::Malformed(format!("`shared.uid` of volume {volume} is no UUID")));
    };
    match domains.storage.find(&id).await {
        Ok(Some(_)) => None,
        Ok(None) => Some(Unmet::VolumeNotReady(volume.to_owned())),
        Err(error) => Some(Unmet::StorageUnavailable(error.to_string())),
    }
}

/// What the domain is made of on this host. Attaches its disks; attaching one that is attached changes nothing.
pub(super) async fn configuration(
    domains: &Domains,
    domain: &Domain,
    uuid: Uuid,
    token: Token,
) -> Result<DomainConfig, ReconcileError> {
    let machine = &domain.spec.machine;
    let malformed = |what: String| ReconcileError::Malformed(what);
    let memory = machine.memory.bytes().map_err(|error| malformed(error.to_string()))?;
    let mut disks = Vec::new();
    for (index, (disk, volume)) in machine.disks.iter().zip(volumes(domains, domain)).enumerate() {
        let volume = volume.ok_or_else(|| malformed(format!("volume {} is not there", disk.volume)))?;
        let device = domains.storage.attach(&volume, disk.read_only).await?;
        disks.push(DiskConfig { device, target: target_name(index), read_only: disk.read_only });
    }
    let mut interfaces = Vec::new();
    for interface in &machine.interfaces {
        let bridge = domains.network.bridge(&interface.uplink).await?;
        interfaces.push(InterfaceConfig { bridge, mac: interface.mac.clone() });
    }
    Ok(DomainConfig {
        uuid,
        token: token.0,
        boot: machine.boot.type_,
        kernel: kernel(domains, &machine.boot)?,
        vcpus: u32::try_from(machine.cpus).map_err(|_| malformed("`cpus` is negative".to_owned()))?,
        memory_kib: memory / 1024,
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

/// `xvda` to `xvdp`: the API allows 16 disks.
fn target_name(index: usize) -> String {
    let letter = u8::try_from(index).map_or('z', |index| char::from(b'a' + index.min(25)));
    format!("xvd{letter}")
}
