//! Images in CD drives: attached for all guests of this host that read them, and given back when no Domain names them.

use super::{
    Domains, ReconcileError,
    live::{AskedCd, AskedImage},
};
use crate::{hypervisor::DiskConfig, storage::ImageId};
use kubexen_crds::{Domain, DomainCd, DomainImage};
use kubexen_runtime::Key;
use std::collections::{BTreeMap, BTreeSet};

/// The images of a domain as disks that it starts with.
pub(super) async fn disks(domains: &Domains, domain: &Domain) -> Result<Vec<DiskConfig>, ReconcileError> {
    let mut disks = Vec::new();
    for cd in &domain.spec.machine.cds {
        if let Some(image) = &cd.image {
            disks.push(inserted(domains, cd, image).await?);
        }
    }
    Ok(disks)
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
    let attached = match cds.iter().any(|cd| cd.image.is_some()) {
        true => domains.storage.attached_images().await?,
        false => BTreeMap::new(),
    };
    let image = |image: &DomainImage| AskedImage { device: attached.get(&id(image)).cloned() };
    Ok(cds
        .iter()
        .map(|cd| AskedCd {
            name: cd.name.clone(),
            target: cd.target.clone(),
            image: cd.image.as_ref().map(image),
        })
        .collect())
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
            named.extend(domain.spec.machine.cds.iter().filter_map(|cd| Some(id(cd.image.as_ref()?))));
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
