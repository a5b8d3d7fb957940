//! Carrying out one step of a plan.

use super::{
    Domains, MANAGER, ReconcileError, cds,
    decide::{DestroyReason, Plan},
    move_steps,
    observe::Observed,
    resolve, save_steps, status,
};
use crate::hypervisor::DomainState;
use kube::ResourceExt;
use kubexen_crds::{Domain, names::AGENT_FINALIZER};
use kubexen_mutants::Mutant;
use kubexen_ownership::{Abort, ClaimDisk, DiskUid, Owner, Phase, Start, Token, VmUid};
use kubexen_runtime::{
    events::Severity,
    write::{self, WriteError},
};
use tracing::info;
use uuid::Uuid;

/// What a step did to the object.
#[derive(Debug)]
pub enum Applied {
    /// The object stands as it was; the host may have changed.
    Unchanged,
    /// The object as it stands now.
    Changed(Box<Domain>),
    /// The object is let go.
    Gone,
}

/// Carries out `plan`.
///
/// # Errors
/// When a step fails. What was done of it is found by the next look.
pub async fn apply(
    domains: &Domains,
    domain: &Domain,
    uuid: Uuid,
    seen: &Observed,
    plan: &Plan,
) -> Result<Applied, ReconcileError> {
    let now = domains.clock.now();
    let generation = domain.metadata.generation;
    match plan {
        Plan::RecordStop { reason, then } => {
            let status = status::stopped(seen, *reason, *then, generation, now);
            let note = format!("The guest stopped by itself: {reason:?}");
            domains.events.record(domain, Severity::Warning, "GuestStopped", "Observe", note);
            record(domains, domain, &status).await
        }
        Plan::RecordRestart => record(domains, domain, &status::restarting(seen, generation, now)).await,
        Plan::Start => start(domains, domain, uuid).await,
        Plan::Unpause => {
            domains.permit(domain, uuid).await?;
            domains.hypervisor.unpause(uuid).await?;
            Ok(Applied::Unchanged)
        }
        Plan::Pause => {
            domains.hypervisor.pause(uuid).await?;
            Ok(Applied::Unchanged)
        }
        Plan::RequestShutdown => {
            confirm(domains, domain, seen).await?;
            if seen.present.as_ref().is_some_and(|present| present.state == DomainState::Paused) {
                match domains.permit(domain, uuid).await {
                    // A guest that stands still cannot hear the request.
                    Ok(()) => domains.hypervisor.unpause(uuid).await?,
                    // It stands still until its time is over.
                    Err(ReconcileError::Taken { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            domains.hypervisor.request_shutdown(uuid).await?;
            domains.shutdowns.asked(uuid);
            Ok(Applied::Unchanged)
        }
        Plan::Destroy(reason) => {
            match reason {
                DestroyReason::Deleted | DestroyReason::Restart => confirm(domains, domain, seen).await?,
                DestroyReason::Departed => confirm_departed(domains, uuid).await?,
                DestroyReason::Saved => confirm_saved(domains, uuid).await?,
                DestroyReason::HalfBuilt | DestroyReason::Stopped => {}
            }
            domains.hypervisor.destroy(uuid).await?;
            match reason {
                // It is another host's, or nobody's to run.
                DestroyReason::Departed | DestroyReason::Saved => domains.fence.forget(uuid),
                DestroyReason::Deleted
                | DestroyReason::Restart
                | DestroyReason::HalfBuilt
                | DestroyReason::Stopped => {}
            }
            domains.shutdowns.forget(uuid);
            Ok(Applied::Unchanged)
        }
        Plan::DetachDisks => {
            detach(domains, domain, uuid).await?;
            Ok(Applied::Unchanged)
        }
        Plan::Move(step) => move_steps::apply(domains, domain, uuid, seen, step).await,
        Plan::Save(step) => save_steps::apply(domains, domain, uuid, seen, step).await,
        Plan::Finish => finish(domains, domain, uuid).await,
        // A change is made by the walk itself, which goes on when it fails.
        Plan::Change(_) | Plan::Wait(..) | Plan::Settled => Ok(Applied::Unchanged),
    }
}

pub(super) async fn record(
    domains: &Domains,
    domain: &Domain,
    status: &kubexen_crds::DomainStatus,
) -> Result<Applied, ReconcileError> {
    Ok(match domains.write_status(domain, status).await? {
        Some(written) => Applied::Changed(Box::new(written)),
        None => Applied::Unchanged,
    })
}

/// Takes the ownership, then builds. The order is the promise that no virtual machine runs twice.
async fn start(domains: &Domains, domain: &Domain, uuid: Uuid) -> Result<Applied, ReconcileError> {
    let _starts = domains.starts.read().await;
    domains.fence.may_work()?;
    let mut starting = domains.fence.starting(uuid);
    let (token, is_new) = match domains.ownership.start(VmUid(uuid), &domains.me).await? {
        Start::Acquired(token) => (token, true),
        Start::AlreadyMine(token) if domains.fence.is_outdated(token) => {
            match domains.ownership.abort(VmUid(uuid), &domains.me, token).await? {
                Abort::Aborted(token) => (token, true),
                Abort::Refused(_) => return Err(ReconcileError::Outdated),
            }
        }
        Start::AlreadyMine(token) => (token, false),
        Start::Refused(owner) if Mutant::StartWithoutOwner.is_active() => (owner.token, true),
        Start::Refused(Owner { phase: Phase::Saved(disk) | Phase::Resuming(disk), .. }) => {
            return Err(ReconcileError::Saved(disk));
        }
        Start::Refused(owner) => return Err(ReconcileError::OwnedElsewhere(owner.host.to_string())),
    };
    let guarded = if domain.spec.protected { domains.fence.guard(uuid, token).await? } else { None };
    let token = match guarded {
        Some(token) => token,
        None if is_new => token,
        // What was promised of an earlier run may still be on record, and nobody would keep it.
        None => domains.fence.unguard(uuid, token).await?,
    };
    claim_disks(domains, domain, VmUid(uuid), token).await?;
    let config = resolve::configuration(domains, domain, uuid, token).await?;
    // The store may have been slow.
    domains.fence.may_work()?;
    starting.builds();
    let domid = domains.hypervisor.create(&config).await?;
    info!(domain = %domain.name_any(), %domid, %token, "built");
    Ok(Applied::Unchanged)
}

/// Makes sure that no other virtual machine, on whichever host, has a disk that several hosts reach.
pub(super) async fn claim_disks(
    domains: &Domains,
    domain: &Domain,
    vm: VmUid,
    token: Token,
) -> Result<(), ReconcileError> {
    if Mutant::DiskNotClaimed.is_active() {
        return Ok(());
    }
    let saved = domain.spec.saved_state.as_ref().map(|saved| saved.volume.as_str());
    let saved = saved.zip(resolve::saved_disk(domain));
    for (volume, disk) in resolve::shared_disks(domain).chain(saved) {
        claim_disk(domains, volume, disk, vm, token).await?;
    }
    Ok(())
}

/// Makes sure that no other virtual machine has this one.
pub(super) async fn claim_disk(
    domains: &Domains,
    volume: &str,
    disk: DiskUid,
    vm: VmUid,
    token: Token,
) -> Result<(), ReconcileError> {
    match domains.ownership.claim_disk(disk, vm, token).await? {
        ClaimDisk::Claimed => Ok(()),
        ClaimDisk::HeldBy(holder) => Err(ReconcileError::DiskTaken { volume: volume.to_owned(), holder }),
        ClaimDisk::Retired => Err(ReconcileError::DiskRetired(volume.to_owned())),
        ClaimDisk::NotOwner => Err(ReconcileError::Outdated),
    }
}

/// Reads the object from the API server and makes sure that it still asks for what `seen` says: the same object,
/// still being deleted, or still with the restart that is not carried out.
async fn confirm(domains: &Domains, domain: &Domain, seen: &Observed) -> Result<(), ReconcileError> {
    let live = write::limited(domains.api(domain).get_opt(&domain.name_any())).await?;
    let asks = live.is_some_and(|live| {
        live.metadata.uid == domain.metadata.uid
            && live.metadata.deletion_timestamp.is_some() == seen.deleting
            && live.spec.restart_requested == seen.restart_requested
    });
    if asks { Ok(()) } else { Err(ReconcileError::Outdated) }
}

/// Reads from the pool's store that another host owns the guest.
async fn confirm_departed(domains: &Domains, uuid: Uuid) -> Result<(), ReconcileError> {
    match domains.ownership.owner(VmUid(uuid)).await? {
        Some(owner) if owner.host != domains.me.host => Ok(()),
        Some(_) | None => Err(ReconcileError::Outdated),
    }
}

/// Reads from the pool's store that all of the guest is in a volume.
async fn confirm_saved(domains: &Domains, uuid: Uuid) -> Result<(), ReconcileError> {
    match domains.ownership.owner(VmUid(uuid)).await?.map(|owner| owner.phase) {
        Some(Phase::Saved(_)) => Ok(()),
        Some(Phase::Running | Phase::Resuming(_)) | None => Err(ReconcileError::Outdated),
    }
}

async fn detach(domains: &Domains, domain: &Domain, uuid: Uuid) -> Result<(), ReconcileError> {
    let saved = resolve::saved_volume(domains, domain);
    for volume in resolve::volumes(domains, domain).into_iter().flatten().chain(saved) {
        domains.storage.detach(&volume).await?;
    }
    if !domain.spec.machine.cds.is_empty() {
        cds::release_unused(domains, Some(domain)).await?;
    }
    Ok(domains.seeds.remove(uuid).await?)
}

/// Lets other machines have the disks. Whoever comes before this machine has an owner again could have them anyway, but it may
/// start again without them.
async fn give_disks_back(domains: &Domains, domain: &Domain, vm: VmUid) -> Result<(), ReconcileError> {
    for disk in domain.spec.machine.disks.iter().filter_map(resolve::shared_disk) {
        domains.ownership.release_disk(disk, vm).await?;
    }
    Ok(())
}

/// The domain is gone: gives back what it had, then lets the object go.
async fn finish(domains: &Domains, domain: &Domain, uuid: Uuid) -> Result<Applied, ReconcileError> {
    if !Mutant::FinalizerBeforeDetach.is_active() {
        detach(domains, domain, uuid).await?;
    }
    let vm = VmUid(uuid);
    if let Some(owner) = domains.ownership.owner(vm).await?
        && owner.host == domains.me.host
    {
        if owner.phase == Phase::Running {
            give_disks_back(domains, domain, vm).await?;
        }
        domains.ownership.release(vm, &domains.me, owner.token).await?;
    }
    domains.fence.forget(uuid);
    domains.shutdowns.forget(uuid);
    let Some(change) = write::without_finalizer(domain, AGENT_FINALIZER) else { return Ok(Applied::Gone) };
    match write::merge(&domains.api(domain), &domain.name_any(), MANAGER, &change).await {
        Ok(_) => Ok(Applied::Gone),
        Err(error) if error.is_not_found() => Ok(Applied::Gone),
        Err(error) if error.is_conflict() => Err(ReconcileError::Outdated),
        Err(error @ (WriteError::Api(_) | WriteError::TimedOut | WriteError::Serialize(_))) => {
            Err(error.into())
        }
    }
}
