//! One volume group as a location: what the calls of the storage do in it.
//!
//! Whoever makes, grows or deletes a volume holds the volume's lock all the while, and the group's for each change of
//! metadata only, so that wiping a large volume keeps nobody else waiting. Blocks are wiped before a volume, or a new
//! end of one, is shown to anybody, and again before they are given back.

mod activation;
mod mending;

use super::{
    Wipe,
    device::{self, Device},
    metadata::{self, COMMAND_LIMIT, MARGIN, Metadata},
    names::{self, LvName},
    report::{GroupReport, LogicalVolume},
    wipe::{STEP_LIMIT, Wiping},
};
use crate::storage::{StorageError, VolumeId, content};
use kubexen_ownership::lock::{Guard, Locks};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

/// How long a volume that nobody uses any more may take to come to rest.
const QUIET_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks whether it has.
const QUIET_LOOK: Duration = Duration::from_millis(20);

/// A volume group on storage that several hosts may see.
#[derive(Debug)]
pub(super) struct VolumeGroup {
    location: String,
    name: String,
    wipe: Wipe,
    locks: Arc<dyn Locks>,
    /// Whether something may be left of operations that ended halfway: on this host, and in the group.
    local_repair_due: AtomicBool,
    repair_due: AtomicBool,
}

impl VolumeGroup {
    pub(super) fn new(location: String, name: String, wipe: Wipe, locks: Arc<dyn Locks>) -> Self {
        Self {
            location,
            name,
            wipe,
            locks,
            local_repair_due: AtomicBool::new(true),
            repair_due: AtomicBool::new(true),
        }
    }

    pub(super) async fn look(&self) -> Result<GroupReport, StorageError> {
        metadata::look(&self.name).await
    }

    pub(super) async fn find(&self, uuid: Uuid) -> Result<Option<u64>, StorageError> {
        let report = self.look_and_repair_here().await?;
        let volume = report.volumes.get(&LvName::Volume(uuid)).filter(|volume| !volume.unfinished);
        Ok(volume.map(|volume| volume.size))
    }

    pub(super) async fn create(&self, uuid: Uuid, size: u64) -> Result<(), StorageError> {
        self.repair_group().await;
        let mut hold = self.hold(uuid).await?;
        let result = self.create_held(&mut hold, uuid, size).await;
        self.end(hold, result).await
    }

    async fn create_held(&self, hold: &mut Guard, uuid: Uuid, size: u64) -> Result<(), StorageError> {
        let name = LvName::Volume(uuid);
        let report = self.settle(hold, uuid).await?;
        let wanted = report.rounded(size);
        match report.volumes.get(&name) {
            Some(volume) if volume.size == wanted => return Ok(()),
            Some(volume) => {
                let (volume, existing) = (self.volume(uuid), volume.size);
                return Err(StorageError::OtherSize { volume, existing, requested: size });
            }
            None => {}
        }
        self.allocate(hold, &report.uuid, name, wanted).await?;
        self.blank(hold, name, wanted).await?;
        let mut metadata = self.lock_metadata(hold, &report.uuid).await?;
        let path = self.path(name);
        let finish = ["lvchange", "--deltag", names::UNFINISHED, &path];
        let result = metadata.change("finish the volume", &finish, "").await;
        metadata.unlock(&result).await;
        result
    }

    pub(super) async fn grow(&self, uuid: Uuid, size: u64) -> Result<(), StorageError> {
        self.repair_group().await;
        let mut hold = self.hold(uuid).await?;
        let result = self.grow_held(&mut hold, uuid, size).await;
        self.end(hold, result).await
    }

    async fn grow_held(&self, hold: &mut Guard, uuid: Uuid, size: u64) -> Result<(), StorageError> {
        let (name, extension) = (LvName::Volume(uuid), LvName::Extension(uuid));
        let report = self.settle(hold, uuid).await?;
        let volume =
            report.volumes.get(&name).ok_or_else(|| StorageError::NoSuchVolume(self.volume(uuid)))?;
        let wanted = report.rounded(size);
        let Some(more) = wanted.checked_sub(volume.size) else {
            let (volume, existing) = (self.volume(uuid), volume.size);
            return Err(StorageError::WouldShrink { volume, existing, requested: size });
        };
        if more > 0 {
            self.allocate(hold, &report.uuid, extension, more).await?;
            self.blank(hold, extension, more).await?;
            let mut metadata = self.lock_metadata(hold, &report.uuid).await?;
            let result = self.join_extension(&mut metadata, uuid).await;
            metadata.unlock(&result).await;
            result?;
        }
        match self.active()?.get(&name) {
            Some(device) if device.size != wanted => self.refresh(name, device.read_only).await,
            Some(_) | None => Ok(()),
        }
    }

    /// Gives the extension's blocks to the volume. In between they are nobody's, which the group's lock keeps so.
    async fn join_extension(&self, metadata: &mut Metadata<'_>, uuid: Uuid) -> Result<(), StorageError> {
        let (name, extension) = (LvName::Volume(uuid), LvName::Extension(uuid));
        let lost = || failed("grow the volume", "the extension is gone");
        let LogicalVolume { size, ranges, .. } =
            metadata.report.volumes.get(&extension).cloned().ok_or_else(lost)?;
        let read_only = self.active()?.get(&name).is_some_and(|device| device.read_only);
        let (path, extension) = (self.path(name), self.path(extension));
        metadata.change("remove the extension", &["lvremove", "--yes", &extension], "").await?;
        let extents = format!("+{}", size / metadata.report.extent);
        let mut extend = vec!["lvextend", "--extents", &extents, &path];
        extend.extend(ranges.iter().map(String::as_str));
        metadata.change("grow the volume", &extend, &self.access(name, read_only)).await
    }

    pub(super) async fn delete(&self, uuid: Uuid) -> Result<(), StorageError> {
        self.repair_group().await;
        let mut hold = self.hold(uuid).await?;
        let result = self.delete_held(&mut hold, uuid).await;
        self.end(hold, result).await
    }

    async fn delete_held(&self, hold: &mut Guard, uuid: Uuid) -> Result<(), StorageError> {
        let name = LvName::Volume(uuid);
        let report = self.settle(hold, uuid).await?;
        if !report.volumes.contains_key(&name) {
            return Ok(());
        }
        if self.active()?.contains_key(&name) {
            return Err(StorageError::InUse(self.volume(uuid)));
        }
        let mut metadata = self.lock_metadata(hold, &report.uuid).await?;
        let path = self.path(name);
        let begin = ["lvchange", "--addtag", names::DELETING, &path];
        let result = metadata.change("begin the deletion", &begin, "").await;
        metadata.unlock(&result).await;
        result?;
        self.finish_deletion(hold, &report, uuid).await
    }

    pub(super) async fn attach(&self, uuid: Uuid, read_only: bool) -> Result<PathBuf, StorageError> {
        let name = LvName::Volume(uuid);
        let report = self.look_and_repair_here().await?;
        let volume = report.volumes.get(&name).filter(|volume| !volume.unfinished && !volume.deleting);
        let volume = volume.ok_or_else(|| StorageError::NoSuchVolume(self.volume(uuid)))?;
        match self.active()?.get(&name) {
            Some(device) if !device.is_of(&report.uuid, &volume.uuid) => {
                // An earlier volume's of the same name, which nobody finished.
                self.remove_stale(name).await?;
            }
            Some(device) if device.read_only != read_only => {
                return Err(StorageError::InUse(self.volume(uuid)));
            }
            Some(device) => {
                if device.size != volume.size || device.suspended || device.dead {
                    self.refresh(name, read_only).await?;
                }
                return Ok(device.node());
            }
            None => {}
        }
        Ok(self.activate(name, read_only).await?.node())
    }

    pub(super) async fn detach(&self, uuid: Uuid) -> Result<(), StorageError> {
        let name = LvName::Volume(uuid);
        if !self.active()?.contains_key(&name) {
            return Ok(());
        }
        let attempt = self.deactivate(name).await;
        if let Err(StorageError::TimedOut { .. }) = attempt {
            return attempt;
        }
        let Some(device) = self.active()?.remove(&name) else { return Ok(()) };
        let in_use = || StorageError::InUse(self.volume(uuid));
        match self.look().await {
            Ok(report) => match report.volumes.get(&name) {
                Some(volume) if device.is_of(&report.uuid, &volume.uuid) && volume.open => {
                    return Err(in_use());
                }
                Some(volume) if device.is_of(&report.uuid, &volume.uuid) => {
                    return attempt.and(Err(in_use()));
                }
                Some(_) | None => {}
            },
            Err(error @ StorageError::TimedOut { .. }) => return Err(error),
            // The disk is away. LVM does nothing then, but the kernel takes away what nobody has open.
            Err(_) => {}
        }
        match self.remove_stale(name).await {
            Err(StorageError::Io { .. }) => Err(in_use()),
            result => result,
        }
    }

    /// Requests that the guest left in its ring reach the device within moments; so it is quiet when nothing was on its
    /// way twice, and nothing was done in between.
    pub(super) async fn wait_until_quiet(&self, uuid: Uuid) -> Result<(), StorageError> {
        let name = LvName::Volume(uuid);
        let traffic = || {
            device::traffic(&self.name, name)
                .map_err(|source| StorageError::Io { call: "look at the volume's traffic", source })
        };
        let quiet = async {
            let mut before = None;
            loop {
                let Some(now) = traffic()? else { return Ok(()) };
                let rests = now.on_its_way == 0;
                if rests && before.as_ref() == Some(&now) {
                    return Ok(());
                }
                before = Some(now);
                sleep(QUIET_LOOK).await;
            }
        };
        let timed_out =
            |_| StorageError::TimedOut { call: "wait until the volume is quiet", limit: QUIET_LIMIT };
        timeout(QUIET_LIMIT, quiet).await.map_err(timed_out)?
    }

    pub(super) async fn check_readable(&self, uuid: Uuid) -> Result<(), StorageError> {
        match self.active()?.get(&LvName::Volume(uuid)) {
            Some(device) => content::check_readable(&device.node()).await,
            None => Err(StorageError::NoSuchVolume(self.volume(uuid))),
        }
    }

    pub(super) fn attached(&self) -> Result<BTreeSet<Uuid>, StorageError> {
        let volume = |name: LvName| match name {
            LvName::Volume(uuid) => Some(uuid),
            LvName::Extension(_) => None,
        };
        Ok(self.active()?.into_keys().filter_map(volume).collect())
    }

    /// Makes a logical volume that nobody may see yet, and that is not active anywhere.
    async fn allocate(
        &self,
        hold: &mut Guard,
        group: &str,
        name: LvName,
        size: u64,
    ) -> Result<(), StorageError> {
        let mut metadata = self.lock_metadata(hold, group).await?;
        let result = self.allocate_under(&mut metadata, name, size).await;
        metadata.unlock(&result).await;
        result
    }

    async fn allocate_under(
        &self,
        metadata: &mut Metadata<'_>,
        name: LvName,
        size: u64,
    ) -> Result<(), StorageError> {
        let available = metadata.report.free;
        if size > available {
            let location = self.location.clone();
            return Err(StorageError::NoSpace { location, available, requested: size });
        }
        let (size, name) = (format!("{size}b"), name.to_string());
        let create = [
            "lvcreate",
            "--yes",
            "--activate=n",
            "--zero=n",
            "--wipesignatures=n",
            // Whatever activates all volumes when a host starts leaves ours alone.
            "--setactivationskip=y",
            "--addtag",
            names::UNFINISHED,
            "--size",
            &size,
            "--name",
            &name,
            &self.name,
        ];
        metadata.change("allocate the volume", &create, "").await
    }

    /// Wipes a logical volume, for which it is active for a while.
    async fn blank(&self, hold: &mut Guard, name: LvName, size: u64) -> Result<(), StorageError> {
        hold.last_for(COMMAND_LIMIT + MARGIN).await?;
        let device = self.activate(name, false).await?;
        let mut wiping = Wiping::begin(&device.node(), size, self.wipe)?;
        loop {
            hold.last_for(STEP_LIMIT + MARGIN).await?;
            if !wiping.step().await? {
                break;
            }
        }
        drop(wiping);
        hold.last_for(COMMAND_LIMIT + MARGIN).await?;
        self.deactivate(name).await
    }

    async fn finish_deletion(
        &self,
        hold: &mut Guard,
        report: &GroupReport,
        uuid: Uuid,
    ) -> Result<(), StorageError> {
        let name = LvName::Volume(uuid);
        let Some(volume) = report.volumes.get(&name) else { return Ok(()) };
        self.blank(hold, name, volume.size).await?;
        let mut metadata = self.lock_metadata(hold, &report.uuid).await?;
        let result = metadata.change("remove the volume", &["lvremove", "--yes", &self.path(name)], "").await;
        metadata.unlock(&result).await;
        result
    }

    /// The lock of a volume.
    async fn hold(&self, uuid: Uuid) -> Result<Guard, StorageError> {
        metadata::take(&*self.locks, lock_of(uuid), None).await
    }

    /// Ends an operation under a volume's lock. What one that failed has left is put right by the next.
    async fn end(&self, hold: Guard, result: Result<(), StorageError>) -> Result<(), StorageError> {
        metadata::let_go(hold, &result).await;
        if matches!(result, Err(StorageError::Io { .. } | StorageError::TimedOut { .. })) {
            self.repair_due.store(true, Ordering::Relaxed);
            self.local_repair_due.store(true, Ordering::Relaxed);
        }
        result
    }

    async fn lock_metadata<'a>(&self, hold: &'a mut Guard, uuid: &str) -> Result<Metadata<'a>, StorageError> {
        Metadata::lock(&*self.locks, hold, &self.name, uuid).await
    }

    fn active(&self) -> Result<BTreeMap<LvName, Device>, StorageError> {
        device::active(&self.name).map_err(|source| StorageError::Io { call: "list active volumes", source })
    }

    fn path(&self, name: LvName) -> String {
        format!("{}/{name}", self.name)
    }

    fn volume(&self, uuid: Uuid) -> VolumeId {
        VolumeId { location: self.location.clone(), uuid }
    }
}

fn lock_of(uuid: Uuid) -> String {
    format!("volume.{uuid}")
}

fn failed(call: &'static str, reason: &'static str) -> StorageError {
    StorageError::Io { call, source: io::Error::other(reason) }
}
