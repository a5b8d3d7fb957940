//! Carrying out one step towards a saved guest, or back.

use super::{
    Domains, ReconcileError,
    apply::{Applied, claim_disks},
    observe::Observed,
    resolve,
    saves::{Keeper, SaveStep},
};
use crate::{
    storage::VolumeId,
    suspension::{Resuming, Saving},
};
use futures::FutureExt;
use kubexen_crds::Domain;
use kubexen_ownership::{Abort, DiskUid, Resume, Run, Save, Token, VmUid};
use tracing::info;
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
    step: &SaveStep,
) -> Result<Applied, ReconcileError> {
    let (Some(saved), Some(volume)) = (&seen.saved, resolve::saved_volume(domains, domain)) else {
        return Err(ReconcileError::Outdated);
    };
    match (step, &saved.keeper) {
        (SaveStep::EndSession, _) => domains.sessions.end(uuid),
        (SaveStep::Fail(failure), _) => {
            domains.sessions.forget(uuid);
            return Err(ReconcileError::Suspension(failure.clone()));
        }
        (SaveStep::Save, Keeper::RunsHere(token)) => save(domains, domain, uuid, *token, volume).await?,
        (SaveStep::TakeBack, Keeper::RunsHere(token)) => take_back(domains, uuid, *token).await?,
        (SaveStep::Resume, _) => resume(domains, domain, uuid, volume).await?,
        (SaveStep::Claim, Keeper::ResumesHere(token)) => {
            match domains.ownership.run(VmUid(uuid), &domains.me, *token).await? {
                Run::Running(token) => claim(domains, uuid, token).await?,
                Run::Refused(_) => {}
            }
        }
        (SaveStep::Claim, Keeper::RunsHere(token)) => claim(domains, uuid, *token).await?,
        (SaveStep::LetGo, _) => domains.storage.detach(&volume).await?,
        (SaveStep::GiveBack, Keeper::ResumesHere(token)) => {
            domains.storage.detach(&volume).await?;
            let (vm, disk) = (VmUid(uuid), DiskUid(volume.uuid));
            match domains.ownership.save(vm, &domains.me, *token, disk).await? {
                Save::Saved(_) | Save::Refused(_) => domains.sessions.forget(uuid),
            }
        }
        (SaveStep::Save | SaveStep::TakeBack | SaveStep::Claim | SaveStep::GiveBack, _) => {
            return Err(ReconcileError::Outdated);
        }
    }
    Ok(Applied::Unchanged)
}

async fn save(
    domains: &Domains,
    domain: &Domain,
    uuid: Uuid,
    token: Token,
    volume: VolumeId,
) -> Result<(), ReconcileError> {
    claim_disks(domains, domain, VmUid(uuid), token).await?;
    let disks = resolve::volumes(domains, domain).into_iter().flatten().collect();
    let saving = Saving { guest: uuid, token, disks, volume };
    let (world, session) = (domains.world(), saving.volume.uuid);
    domains.sessions.depart(uuid, session, |end| saving.run(world, end).boxed());
    Ok(())
}

/// After the abort no save can take effect, so the guest may run on.
async fn take_back(domains: &Domains, uuid: Uuid, token: Token) -> Result<(), ReconcileError> {
    match domains.ownership.abort(VmUid(uuid), &domains.me, token).await? {
        Abort::Aborted(token) => {
            domains.hypervisor.claim(uuid, token.0).await?;
            domains.hypervisor.resume(uuid).await?;
            info!(guest = %uuid, %token, "not suspended after all");
        }
        Abort::Refused(_) => {}
    }
    Ok(())
}

/// Takes the ownership, then builds, as a start does.
async fn resume(
    domains: &Domains,
    domain: &Domain,
    uuid: Uuid,
    volume: VolumeId,
) -> Result<(), ReconcileError> {
    let _starting = domains.starts.read().await;
    domains.fence.may_work()?;
    let disk = DiskUid(volume.uuid);
    let token = match domains.ownership.resume(VmUid(uuid), &domains.me, disk).await? {
        Resume::Resuming(token) => token,
        Resume::Refused(Some(owner)) => return Err(ReconcileError::OwnedElsewhere(owner.host.to_string())),
        Resume::Refused(None) => return Err(ReconcileError::Outdated),
    };
    claim_disks(domains, domain, VmUid(uuid), token).await?;
    let config = resolve::configuration(domains, domain, uuid, token).await?;
    let (world, session) = (domains.world(), volume.uuid);
    let resuming = Resuming { config, volume };
    domains.sessions.depart(uuid, session, |end| resuming.run(world, end).boxed());
    Ok(())
}

/// The volume is good for nothing any more, and the domain is this host's.
async fn claim(domains: &Domains, uuid: Uuid, token: Token) -> Result<(), ReconcileError> {
    domains.hypervisor.claim(uuid, token.0).await?;
    domains.sessions.forget(uuid);
    info!(domain = %uuid, %token, "resumed");
    Ok(())
}
