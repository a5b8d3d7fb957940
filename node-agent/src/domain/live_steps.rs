//! Carrying out one change of a domain whose guest runs.

use super::{Domains, ReconcileError, apply::claim_disk, cds, live::LiveStep, resolve};
use crate::hypervisor::{Change, DiskConfig};
use kubexen_crds::Domain;
use kubexen_ownership::VmUid;
use uuid::Uuid;

/// Carries out `step`.
///
/// # Errors
/// When it fails. What was done of it is found by the next look.
pub(super) async fn apply(
    domains: &Domains,
    domain: &Domain,
    uuid: Uuid,
    step: &LiveStep,
) -> Result<(), ReconcileError> {
    let change = match step {
        LiveStep::SetVcpus(vcpus) => Change::Vcpus(*vcpus),
        LiveStep::SetScheduling(scheduling) => Change::Scheduling(*scheduling),
        LiveStep::SetMemory(kib) => Change::Memory(*kib),
        LiveStep::AttachDisk(name) => {
            // Whoever gives back what is not used waits until the disk that was claimed is there.
            let _starting = domains.starts.read().await;
            let disk = claimed(domains, domain, uuid, name).await?;
            return Ok(domains.hypervisor.change(uuid, &Change::AttachDisk(disk)).await?);
        }
        LiveStep::DetachDisk(target) => Change::DetachDisk(target.clone()),
        LiveStep::KeepDisk(target) => Change::KeepDisk(target.clone()),
        LiveStep::ReleaseVolume(name) => return release(domains, domain, uuid, name).await,
        LiveStep::InsertImage(name) => Change::AttachDisk(cds::disk(domains, domain, name).await?),
        LiveStep::EjectImage(target) => {
            domains.hypervisor.change(uuid, &Change::DetachDisk(target.clone())).await?;
            // Whoever has it open still keeps it until they let go.
            return cds::release_unused(domains, None).await;
        }
        LiveStep::ChangeCd(name) => Change::Cd(cds::drive(domains, domain, name).await?),
        LiveStep::AttachInterface(name) => {
            Change::AttachInterface(resolve::interface(domains, domain, name).await?)
        }
        LiveStep::DetachInterface(index) => Change::DetachInterface(*index),
        LiveStep::MoveInterface(index, bridge) => {
            Change::MoveInterface { index: *index, bridge: bridge.clone() }
        }
        LiveStep::LimitInterface(index, rate_limit) => {
            Change::LimitInterface { index: *index, rate_limit: *rate_limit }
        }
    };
    Ok(domains.hypervisor.change(uuid, &change).await?)
}

/// A disk to be attached: no other virtual machine may have it, on whichever host.
async fn claimed(
    domains: &Domains,
    domain: &Domain,
    uuid: Uuid,
    name: &str,
) -> Result<DiskConfig, ReconcileError> {
    if let Some((volume, disk)) = resolve::shared_disk_named(domain, name) {
        // The other end of a move that was broken off may have given this host a newer token than the domain was made with.
        match domains.ownership.owner(VmUid(uuid)).await? {
            Some(owner) if owner.host == domains.me.host => {
                claim_disk(domains, volume, disk, VmUid(uuid), owner.token).await?;
            }
            Some(_) | None => return Err(ReconcileError::Outdated),
        }
    }
    resolve::disk(domains, domain, name).await
}

/// The guest has the disk no more: its device goes, and then others may have it.
async fn release(domains: &Domains, domain: &Domain, uuid: Uuid, name: &str) -> Result<(), ReconcileError> {
    if let Some(volume) = resolve::volume(domains, domain, name) {
        domains.storage.detach(&volume).await?;
    }
    if let Some((_, disk)) = resolve::shared_disk_named(domain, name) {
        domains.ownership.release_disk(disk, VmUid(uuid)).await?;
    }
    Ok(())
}
