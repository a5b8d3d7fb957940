//! What an agent writes into its host's dom0, which may have no room.

use super::effects::Effects;
use async_trait::async_trait;
use kubexen_node_agent::storage::{MemorySeeds, Seeds, StorageError};
use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use uuid::Uuid;

/// The seed images of a host. Clones are of the same host.
#[derive(Clone, Debug)]
pub(super) struct Dom0Seeds {
    inner: MemorySeeds,
    full: Arc<AtomicBool>,
    effects: Effects,
}

impl Dom0Seeds {
    pub(super) fn new(effects: &Effects) -> Self {
        Self { inner: MemorySeeds::default(), full: Arc::default(), effects: effects.clone() }
    }

    /// From now on nothing more can be written, or it can again.
    pub(super) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }
}

#[async_trait]
impl Seeds for Dom0Seeds {
    async fn place(&self, guest: Uuid, image: Vec<u8>) -> Result<PathBuf, StorageError> {
        // An image that is there takes no more room.
        if self.full.load(Ordering::Relaxed) && self.inner.image(guest).as_ref() != Some(&image) {
            self.effects.had("dom0-full");
            let source = io::ErrorKind::StorageFull.into();
            return Err(StorageError::Io { call: "write a seed", source });
        }
        self.inner.place(guest, image).await
    }

    async fn remove(&self, guest: Uuid) -> Result<(), StorageError> {
        self.inner.remove(guest).await
    }

    async fn present(&self) -> Result<BTreeSet<Uuid>, StorageError> {
        self.inner.present().await
    }
}
