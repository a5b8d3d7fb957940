//! Carrying out one change of a domain whose guest runs.

use super::{Domains, ReconcileError, live::LiveStep, resolve};
use crate::hypervisor::Change;
use kubexen_crds::Domain;
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
        LiveStep::AttachDisk(name) => Change::AttachDisk(resolve::disk(domains, domain, name).await?),
        LiveStep::DetachDisk(target) => Change::DetachDisk(target.clone()),
        LiveStep::KeepDisk(target) => Change::KeepDisk(target.clone()),
        LiveStep::ReleaseVolume(name) => {
            if let Some(volume) = resolve::volume(domains, domain, name) {
                domains.storage.detach(&volume).await?;
            }
            return Ok(());
        }
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
