//! Images in CD drives: those that guests see as disks are attached for all guests of this host that read them, and given back
//! when no Domain names them; those in emulated drives are files that the device model reads.

use super::{
    Domains, ReconcileError,
    live::{AskedCd, AskedImage},
};
use crate::{
    hypervisor::{CdConfig, DiskConfig},
    storage::{ImageId, StorageError},
};
use kubexen_crds::{Domain, DomainCd, DomainImage};
use kubexen_runtime::Key;
use std::collections::{BTreeMap, BTreeSet};

/// The images of a domain that it starts with as disks.
pub(super) async fn disks(domains: &Domains, domain: &Domain) -> Result<Vec<DiskConfig>, ReconcileError> {
    let mut disks = Vec::new();
    for cd in domain.spec.machine.cds.iter().filter(|cd| !cd.is_emulated()) {
        if let Some(image) = &cd.image {
            disks.push(inserted(domains, cd, image).await?);
        }
    }
    Ok(disks)
}

/// The emulated drives of a domain.
pub(super) async fn drives(domains: &Domains, domain: &Domain) -> Result<Vec<CdConfig>, ReconcileError> {
    let mut drives = Vec::new();
    for cd in domain.spec.machine.cds.iter().filter(|cd| cd.is_emulated()) {
        drives.push(filled(domains, cd).await?);
    }
    Ok(drives)
}

/// The emulated drive of this name.
pub(super) async fn drive(
    domains: &Domains,
    domain: &Domain,
    name: &str,
) -> Result<CdConfig, ReconcileError> {
    match domain.spec.machine.cds.iter().find(|cd| cd.name == name) {
        Some(cd) => Ok(filled(domains, cd).await?),
        None => Err(ReconcileError::Malformed(format!("there is no drive {name}"))),
    }
}

async fn filled(domains: &Domains, cd: &DomainCd) -> Result<CdConfig, StorageError> {
    let image = match &cd.image {
        Some(image) => Some(domains.storage.image_file(&id(image)).await?),
        None => None,
    };
    Ok(CdConfig { target: cd.target.clone(), image })
}

/// The image in the drive of this name as a disk.
pub(super) async fn disk(
    domains: &Domains,
    domain: &Domain,
    name: &str,
) -> Result<DiskConfig, ReconcileError> {
    let cd = domain.spec.machine.cds.iter().find(|cd| cd.name == name);
    match cd.and_then(|cd| cd.image.as_ref().map(|image| (cd, image))) {
        Some((cd, image)) => inserted(domains, cd, image).await,
        None => Err(ReconcileError::Malformed(format!("there is no image in drive {name}"))),
    }
}

async fn inserted(
    domains: &Domains,
    cd: &DomainCd,
    image: &DomainImage,
) -> Result<DiskConfig, ReconcileError> {
    let device = domains.storage.attach_image(&id(image)).await?;
    Ok(DiskConfig { device, target: cd.target.clone(), read_only: true })
}

/// What the domain asks for of its drives.
pub(super) async fn asked(domains: &Domains, domain: &Domain) -> Result<Vec<AskedCd>, ReconcileError> {
    let cds = &domain.spec.machine.cds;
    let attached = match cds.iter().any(|cd| cd.image.is_some() && !cd.is_emulated()) {
        true => domains.storage.attached_images().await?,
        false => BTreeMap::new(),
    };
    let mut asked = Vec::new();
    for cd in cds {
        let image = match &cd.image {
            // One that is missing is told of when it is to be put in.
            Some(image) if cd.is_emulated() => {
                Some(AskedImage { device: domains.storage.image_file(&id(image)).await.ok() })
            }
            Some(image) => Some(AskedImage { device: attached.get(&id(image)).cloned() }),
            None => None,
        };
        let (name, target, emulated) = (cd.name.clone(), cd.target.clone(), cd.is_emulated());
        asked.push(AskedCd { name, target, emulated, image });
    }
    Ok(asked)
}

/// Takes the devices of images away that no Domain names, but for `leaving`, whose domain is gone.
pub(super) async fn release_unused(
    domains: &Domains,
    leaving: Option<&Domain>,
) -> Result<(), ReconcileError> {
    let leaving = leaving.map(Key::of);
    let mut named = BTreeSet::new();
    for domain in domains.mirrors.domains.list() {
        if leaving != Some(Key::of(&*domain)) {
            let disks = domain.spec.machine.cds.iter().filter(|cd| !cd.is_emulated());
            named.extend(disks.filter_map(|cd| Some(id(cd.image.as_ref()?))));
        }
    }
    for image in domains.storage.attached_images().await?.into_keys().filter(|image| !named.contains(image)) {
        domains.storage.detach_image(&image).await?;
    }
    Ok(())
}

fn id(image: &DomainImage) -> ImageId {
    ImageId { location: image.location.clone(), name: image.name.clone() }
}
