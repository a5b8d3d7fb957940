//! Carrying out one change of a domain whose guest runs.

use super::{Domains, ReconcileError, apply::claim_disk, live::LiveStep, observe::Observed, resolve};
use crate::hypervisor::{Change, DiskConfig};
use kubexen_crds::Domain;
use kubexen_ownership::{Token, VmUid};
use uuid::Uuid;

/// Carries out `step`.
///
/// # Errors
/// When it fails. What was done of it is found by the next look.
pub(super) async fn apply(
    domains: &Domains,
    domain: &Domain,
    uuid: Uuid,
    seen: &Observed,
    step: &LiveStep,
) -> Result<(), ReconcileError> {
    let change = match step {
        LiveStep::SetVcpus(vcpus) => Change::Vcpus(*vcpus),
        LiveStep::SetScheduling(scheduling) => Change::Scheduling(*scheduling),
        LiveStep::SetMemory(kib) => Change::Memory(*kib),
        LiveStep::AttachDisk(name) => Change::AttachDisk(claimed(domains, domain, uuid, seen, name).await?),
        LiveStep::DetachDisk(target) => Change::DetachDisk(target.clone()),
        LiveStep::KeepDisk(target) => Change::KeepDisk(target.clone()),
        LiveStep::ReleaseVolume(name) => return release(domains, domain, uuid, name).await,
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
    seen: &Observed,
    name: &str,
) -> Result<DiskConfig, ReconcileError> {
    if let Some((volume, disk)) = resolve::shared_disk_named(domain, name) {
        let token = seen.present.as_ref().and_then(|present| present.token);
        let token = token.ok_or(ReconcileError::Outdated)?;
        claim_disk(domains, volume, disk, VmUid(uuid), Token(token)).await?;
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
