//! A host's storage with the judge beside it.

use super::{disks::LATE_AFTER_SUSPEND, judge::Judge};
use async_trait::async_trait;
use kubexen_node_agent::storage::{Content, LocationsSeen, MemoryStorage, Storage, StorageError, VolumeId};
use std::{collections::BTreeSet, path::PathBuf, sync::Arc};
use tokio::time::sleep;

/// Tells the judge who has which disk whenever one is attached or detached, and of every volume that is deleted.
#[derive(Debug)]
pub(super) struct JudgedStorage {
    pub(super) host: String,
    pub(super) inner: MemoryStorage,
    pub(super) judge: Arc<Judge>,
}

#[async_trait]
impl Storage for JudgedStorage {
    async fn locations(&self) -> LocationsSeen {
        self.inner.locations().await
    }

    async fn find(&self, volume: &VolumeId) -> Result<Option<u64>, StorageError> {
        self.inner.find(volume).await
    }

    async fn create(&self, volume: &VolumeId, size: u64) -> Result<(), StorageError> {
        self.inner.create(volume, size).await
    }

    async fn grow(&self, volume: &VolumeId, size: u64) -> Result<(), StorageError> {
        self.inner.grow(volume, size).await
    }

    async fn delete(&self, volume: &VolumeId) -> Result<(), StorageError> {
        let users = self.judge.users_of(&volume.uuid.to_string());
        let deleted = self.inner.delete(volume).await;
        if !users.is_empty() && matches!(deleted, Ok(()) | Err(StorageError::TimedOut { .. })) {
            let how =
                format_args!("{} deletes the volume {volume}, which {} has", self.host, users.join(", "));
            self.judge.violated("I2", how);
        }
        deleted
    }

    async fn attach(&self, volume: &VolumeId, read_only: bool) -> Result<PathBuf, StorageError> {
        self.judge.look_at_disks();
        self.inner.attach(volume, read_only).await
    }

    async fn open(&self, volume: &VolumeId) -> Result<Box<dyn Content>, StorageError> {
        self.inner.open(volume).await
    }

    async fn detach(&self, volume: &VolumeId) -> Result<(), StorageError> {
        self.judge.look_at_disks();
        self.inner.detach(volume).await
    }

    async fn wait_until_quiet(&self, volume: &VolumeId) -> Result<(), StorageError> {
        self.inner.wait_until_quiet(volume).await?;
        sleep(LATE_AFTER_SUSPEND).await;
        Ok(())
    }

    async fn check_readable(&self, volume: &VolumeId) -> Result<(), StorageError> {
        self.inner.check_readable(volume).await
    }

    async fn attached(&self) -> Result<BTreeSet<VolumeId>, StorageError> {
        self.inner.attached().await
    }
}
