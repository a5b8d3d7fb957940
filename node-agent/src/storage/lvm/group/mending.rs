//! Puts right what operations that ended halfway have left, as [`repair`] says.

use super::{VolumeGroup, lock_of};
use crate::storage::{
    StorageError,
    lvm::{
        metadata,
        repair::{self, Leftover, LocalRepair},
        report::GroupReport,
    },
};
use kubexen_ownership::lock::Guard;
use std::{collections::BTreeSet, sync::atomic::Ordering};
use tracing::{info, warn};
use uuid::Uuid;

impl VolumeGroup {
    /// Puts right what is left of this volume. Answers the group as it is then.
    pub(super) async fn settle(&self, hold: &mut Guard, uuid: Uuid) -> Result<GroupReport, StorageError> {
        let report = self.look_and_repair_here().await?;
        let leftovers = repair::leftovers(&report);
        let mut changed = false;
        for leftover in leftovers.iter().filter(|leftover| leftover.volume() == uuid) {
            info!(location = self.location, ?leftover, "putting right what ended halfway");
            match leftover {
                Leftover::Remove(name) => {
                    let mut metadata = self.lock_metadata(hold, &report.uuid).await?;
                    let remove = ["lvremove", "--yes", &self.path(*name)];
                    let result = metadata.change("remove what was left", &remove, "").await;
                    metadata.unlock(&result).await;
                    result?;
                }
                Leftover::FinishDeletion(uuid) => self.finish_deletion(hold, &report, *uuid).await?,
            }
            changed = true;
        }
        if changed { self.look().await } else { Ok(report) }
    }

    /// Puts right what is left of any volume, when this is the first use of the group, or an operation has failed.
    /// What resists is tried again by the next call, and keeps nobody from working with other volumes.
    pub(super) async fn repair_group(&self) {
        if self.repair_due.swap(false, Ordering::Relaxed)
            && let Err(error) = self.repair_leftovers().await
        {
            warn!(location = self.location, %error, "what ended halfway stays so for now");
            self.repair_due.store(true, Ordering::Relaxed);
        }
    }

    async fn repair_leftovers(&self) -> Result<(), StorageError> {
        let report = self.look_and_repair_here().await?;
        let volumes: BTreeSet<Uuid> = repair::leftovers(&report).iter().map(Leftover::volume).collect();
        let mut all = Ok(());
        for uuid in volumes {
            // What somebody else holds is theirs to finish.
            if let Some(mut hold) = metadata::take_if_free(&*self.locks, lock_of(uuid)).await? {
                let result = self.settle(&mut hold, uuid).await.map(drop);
                metadata::let_go(hold, &result).await;
                all = all.and(result);
            }
        }
        all
    }

    /// Reads the group, and puts devices right whose disk was away and has come back.
    pub(in crate::storage::lvm) async fn look_and_lead_back(&self) -> Result<GroupReport, StorageError> {
        if self.active()?.values().any(|device| device.dead) {
            self.local_repair_due.store(true, Ordering::Relaxed);
        }
        self.look_and_repair_here().await
    }

    /// Reads the group. At the first use of it, puts right what is left on this host.
    pub(super) async fn look_and_repair_here(&self) -> Result<GroupReport, StorageError> {
        if !self.local_repair_due.swap(false, Ordering::Relaxed) {
            return self.look().await;
        }
        let repaired = self.repair_here().await;
        if repaired.is_err() {
            self.local_repair_due.store(true, Ordering::Relaxed);
        }
        repaired
    }

    async fn repair_here(&self) -> Result<GroupReport, StorageError> {
        // Before the group is read: a device that is active by then and has no volume later will never have one.
        let active = self.active()?;
        let report = self.look().await?;
        for repair in repair::local(&report, &active) {
            info!(location = self.location, ?repair, "putting right what is left on this host");
            let result = match &repair {
                LocalRepair::Refresh(name) => {
                    let read_only = active.get(name).is_some_and(|device| device.read_only);
                    self.refresh(*name, read_only).await
                }
                LocalRepair::RemoveDevice(name) => self.remove_stale(*name).await,
            };
            if let Err(error) = result {
                warn!(location = self.location, ?repair, %error, "what is left on this host stays");
            }
        }
        Ok(report)
    }
}
