//! Volumes: makes the disks of this host agree with the `Volume` objects of its namespace.
//!
//! Watches: Volumes, and Domains for who uses them. Writes: the status of a Volume, and its finalizer when the data
//! is gone. Data is deleted only after the object was read from the API server and is the same one (uid), being
//! deleted, and used by no Domain; data that several hosts reach, only after the pool's store has shown that no virtual
//! machine has it, and made sure that none ever will. A volume that was there once and is not found any more is reported, never made
//! anew: a blank disk in its place would look like lost data to its guest.

pub mod decide;
#[cfg(test)]
mod tests;

use crate::{
    domain::{Domains, MANAGER, ReconcileError, volume_id},
    storage::VolumeId,
};
use decide::{Observed, Plan, decide};
use kube::{Api, ResourceExt};
use kubexen_crds::{Volume, VolumeStatus, names::AGENT_FINALIZER};
use kubexen_ownership::{Discard, DiskUid, ForgetDisk, RetireDisk, VmUid};
use kubexen_runtime::{Key, Outcome, events::Severity, write};
use std::{str::FromStr, time::Duration};
use tracing::{info, warn};

/// Most steps in one reconcile: detach, delete, let go.
const MOST_STEPS: usize = 6;

/// How often a volume that waits for its users is looked at, although their end is told.
const USERS_LOOK: Duration = Duration::from_secs(10);

impl Domains {
    /// Brings one Volume nearer to what it should be.
    pub async fn reconcile_volume(&self, key: &Key) -> Outcome {
        let Some(volume) = self.mirrors.volumes.get(key) else { return Outcome::Settled };
        match self.walk_volume(&volume).await {
            Ok(outcome) => outcome,
            Err(error) => {
                warn!(volume = %volume.name_any(), %error, "reconcile failed");
                self.events.record(
                    &*volume,
                    Severity::Warning,
                    error.category(),
                    "Reconcile",
                    error.to_string(),
                );
                let status = decide::failed(&volume, error.category(), error.to_string(), self.clock.now());
                if let Err(error) = self.write_volume_status(&volume, &status).await {
                    warn!(volume = %volume.name_any(), %error, "the failure could not be written down");
                }
                Outcome::Failed
            }
        }
    }

    async fn walk_volume(&self, volume: &Volume) -> Result<Outcome, ReconcileError> {
        let id = volume_id(volume)
            .ok_or_else(|| ReconcileError::Malformed("`virtualDisk.uid` is no UUID".to_owned()))?;
        let mut told_size = false;
        for _ in 0..MOST_STEPS {
            let seen = self.observe_volume(volume, &id, told_size).await?;
            let plan = decide(&seen);
            match &plan {
                Plan::Create(size) => self.storage.create(&id, *size).await?,
                Plan::Grow(size) => {
                    self.storage.grow(&id, *size).await?;
                    told_size = true;
                }
                Plan::Detach => self.storage.detach(&id).await?,
                Plan::Delete => {
                    self.confirm_deletion(volume).await?;
                    self.retire(volume, &id).await?;
                    info!(volume = %volume.name_any(), "deleting the data");
                    self.storage.delete(&id).await?;
                }
                Plan::LetGo => {
                    self.forget(volume, &id).await?;
                    return self.let_volume_go(volume).await;
                }
                Plan::WaitForUser(_) | Plan::Settled | Plan::ReportMissing => {
                    let status = decide::status(volume, &seen, &plan, self.clock.now());
                    self.write_volume_status(volume, &status).await?;
                    return Ok(match plan {
                        Plan::WaitForUser(_) => Outcome::Again(USERS_LOOK),
                        _ => Outcome::Settled,
                    });
                }
            }
        }
        Ok(Outcome::Again(Duration::from_secs(1)))
    }

    async fn observe_volume(
        &self,
        volume: &Volume,
        id: &VolumeId,
        told_size: bool,
    ) -> Result<Observed, ReconcileError> {
        let size = volume.spec.size.bytes().map_err(|error| ReconcileError::Malformed(error.to_string()))?;
        let name = volume.name_any();
        let capacity = volume.status.as_ref().and_then(|status| status.capacity.as_ref());
        let user = self
            .mirrors
            .domains
            .list()
            .into_iter()
            .find(|domain| domain.spec.volumes().any(|volume| volume == name))
            .map(|domain| domain.name_any());
        Ok(Observed {
            deleting: volume.metadata.deletion_timestamp.is_some(),
            reclaim: volume.spec.reclaim,
            wanted: size,
            present: self.storage.find(id).await?,
            attached: self.storage.attached().await?.contains(id),
            made_before: volume.spec.existing || capacity.is_some(),
            told_size: told_size || capacity.is_some_and(|capacity| capacity.bytes() == Ok(size)),
            user,
        })
    }

    async fn confirm_deletion(&self, volume: &Volume) -> Result<(), ReconcileError> {
        let live = write::limited(self.volumes(volume).get_opt(&volume.name_any())).await?;
        let same = live.is_some_and(|live| {
            live.metadata.uid == volume.metadata.uid && live.metadata.deletion_timestamp.is_some()
        });
        if same { Ok(()) } else { Err(ReconcileError::Outdated) }
    }

    /// Sees to it that no host uses a shared volume, and that none resumes a guest from any, now or later.
    async fn retire(&self, volume: &Volume, id: &VolumeId) -> Result<(), ReconcileError> {
        self.discard_saved(volume, id).await?;
        if !volume.spec.shared {
            return Ok(());
        }
        match self.ownership.retire_disk(DiskUid(id.uuid)).await? {
            RetireDisk::Retired => Ok(()),
            RetireDisk::HeldBy(holder) => Err(taken(volume, holder)),
        }
    }

    /// Leaves nothing of a shared volume in the pool's store, unless a host uses it.
    async fn forget(&self, volume: &Volume, id: &VolumeId) -> Result<(), ReconcileError> {
        self.discard_saved(volume, id).await?;
        if !volume.spec.shared {
            return Ok(());
        }
        match self.ownership.forget_disk(DiskUid(id.uuid)).await? {
            ForgetDisk::Forgotten => Ok(()),
            ForgetDisk::HeldBy(holder) => Err(taken(volume, holder)),
        }
    }

    /// Sees to it that no host resumes a guest from the volume, if one is saved to it.
    async fn discard_saved(&self, volume: &Volume, id: &VolumeId) -> Result<(), ReconcileError> {
        if let Some(machine) = &volume.spec.saved_machine {
            let vm = VmUid::from_str(machine)
                .map_err(|_| ReconcileError::Malformed("`savedMachine` is no UUID".to_owned()))?;
            match self.ownership.discard(vm, DiskUid(id.uuid)).await? {
                // Nobody but its own machine ever claims it, which has no use for it any more.
                Discard::Discarded => self.ownership.release_disk(DiskUid(id.uuid), vm).await?,
                Discard::Refused(owner) => return Err(ReconcileError::BeingResumed(owner.host)),
            }
        }
        Ok(())
    }

    async fn let_volume_go(&self, volume: &Volume) -> Result<Outcome, ReconcileError> {
        let Some(change) = write::without_finalizer(volume, AGENT_FINALIZER) else {
            return Ok(Outcome::Settled);
        };
        match write::merge(&self.volumes(volume), &volume.name_any(), MANAGER, &change).await {
            Ok(_) => Ok(Outcome::Settled),
            Err(error) if error.is_not_found() => Ok(Outcome::Settled),
            Err(error) if error.is_conflict() => Err(ReconcileError::Outdated),
            Err(error) => Err(error.into()),
        }
    }

    async fn write_volume_status(
        &self,
        volume: &Volume,
        status: &VolumeStatus,
    ) -> Result<(), ReconcileError> {
        let api = self.volumes(volume);
        match write::status(&api, volume, MANAGER, volume.status.as_ref(), status).await {
            Ok(Some(written)) => {
                self.mirrors.volumes.learn(written);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) if error.is_not_found() || error.is_conflict() => Err(ReconcileError::Outdated),
            Err(error) => Err(error.into()),
        }
    }

    fn volumes(&self, volume: &Volume) -> Api<Volume> {
        Api::namespaced(self.client.clone(), &volume.namespace().unwrap_or_default())
    }
}

fn taken(volume: &Volume, holder: VmUid) -> ReconcileError {
    ReconcileError::DiskTaken { volume: volume.name_any(), holder }
}
