//! Volumes as logical volumes of LVM, in volume groups on storage that several hosts may see.
//!
//! - A group's metadata is changed by one host at a time, under a lock in the pool etcd (`metadata`).
//! - A logical volume is named after its volume, and marked while it is made or deleted (`names`). No other logical
//!   volume is ever touched.
//! - A volume is active where it is attached, and nowhere else: nothing but an attachment activates it, and who may
//!   attach it is decided by ownership, not here. Reading and activation need no lock.
//! - Nobody ever reads another's old blocks: they are wiped before a volume, or a new end of it, is shown, and again
//!   before they are given back.
//! - An agent that was killed leaves marks from which the next one, on whichever host, finishes or undoes (`repair`).
//!
//! A write that the storage delays for longer than a lock lasts may still land in blocks that somebody else has by then;
//! only the storage itself could refuse it.

mod command;
mod device;
mod group;
mod metadata;
mod names;
mod repair;
mod report;
mod wipe;

use super::{LocationFacts, LocationsSeen, Obstacle, Storage, StorageError, VolumeId, check_size};
use async_trait::async_trait;
use futures::future::join_all;
use group::VolumeGroup;
use kubexen_ownership::lock::Locks;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tracing::{info, warn};

/// A volume group for volumes, from the agent's configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LvmConfig {
    /// The group's name. Its owner makes it; it must not be in the hands of `lvmlockd` or of a cluster.
    pub volume_group: String,
    /// How blocks are made to read as zeroes.
    pub wipe: Wipe,
}

/// How blocks are made to read as zeroes before a volume is shown, and before they are given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Wipe {
    /// Zeroes are written. The storage helps where it can, and the blocks stay allocated in it.
    #[default]
    Zero,
    /// The blocks are given back to the storage where they certainly read as zeroes then; elsewhere zeroes are written.
    Discard,
}

/// Volumes as logical volumes, one volume group a location.
///
/// A call that only reads or attaches ends within a few times 20 s. One that changes the group waits for its turn, for
/// up to 100 s each time. Wiping takes as long as the storage does, at 2 MiB/s at the least.
#[derive(Debug)]
pub struct LvmStorage {
    locations: BTreeMap<String, Location>,
}

#[derive(Debug)]
struct Location {
    group: VolumeGroup,
    usable: AtomicBool,
}

impl LvmStorage {
    /// Storage in these volume groups, whose metadata is changed under `locks` of the pool.
    ///
    /// # Errors
    /// `BadConfig` when the configuration cannot be followed whatever the host looks like.
    pub fn new(configs: BTreeMap<String, LvmConfig>, locks: &Arc<dyn Locks>) -> Result<Self, StorageError> {
        let mut groups = BTreeSet::new();
        let mut locations = BTreeMap::new();
        for (name, config) in configs {
            let bad =
                |reason: &str| StorageError::BadConfig { location: name.clone(), reason: reason.to_owned() };
            names::check_group(&config.volume_group).map_err(bad)?;
            if !groups.insert(config.volume_group.clone()) {
                return Err(bad("another location has the same `volumeGroup`"));
            }
            let group = VolumeGroup::new(name.clone(), config.volume_group, config.wipe, Arc::clone(locks));
            locations.insert(name, Location { group, usable: AtomicBool::new(true) });
        }
        Ok(Self { locations })
    }

    /// Whether this location is one of these.
    #[must_use]
    pub fn has(&self, location: &str) -> bool {
        self.locations.contains_key(location)
    }

    fn group(&self, location: &str) -> Result<&VolumeGroup, StorageError> {
        let location = self.locations.get(location).map(|location| &location.group).ok_or(location);
        location.map_err(|name| StorageError::UnknownLocation(name.to_owned()))
    }
}

impl Location {
    /// The location's facts, or why it cannot be used. Whether it can is logged whenever that changes.
    async fn facts(&self, name: &str) -> Result<LocationFacts, Obstacle> {
        let look = match self.group.look_and_lead_back().await {
            Ok(report) => match report.ailment {
                None => Ok(report),
                Some(ailment) => Err(format!("The volume group cannot be used: {ailment}")),
            },
            Err(error) => Err(error.to_string()),
        };
        let was_usable = self.usable.swap(look.is_ok(), Ordering::Relaxed);
        match &look {
            Err(reason) if was_usable => warn!(location = name, reason, "storage location cannot be used"),
            Ok(_) if !was_usable => info!(location = name, "storage location can be used again"),
            Ok(_) | Err(_) => {}
        }
        let name = name.to_owned();
        match look {
            Ok(report) => {
                let capacity = report.capacity();
                Ok(LocationFacts { name, capacity, shared: true, id: Some(report.uuid), images: Vec::new() })
            }
            Err(reason) => Err(Obstacle { name, reason }),
        }
    }
}

#[async_trait]
impl Storage for LvmStorage {
    async fn locations(&self) -> LocationsSeen {
        let facts = self.locations.iter().map(|(name, location)| location.facts(name));
        LocationsSeen::collect(join_all(facts).await)
    }

    async fn find(&self, volume: &VolumeId) -> Result<Option<u64>, StorageError> {
        self.group(&volume.location)?.find(volume.uuid).await
    }

    async fn create(&self, volume: &VolumeId, size: u64) -> Result<(), StorageError> {
        check_size(size)?;
        self.group(&volume.location)?.create(volume.uuid, size).await
    }

    async fn grow(&self, volume: &VolumeId, size: u64) -> Result<(), StorageError> {
        check_size(size)?;
        self.group(&volume.location)?.grow(volume.uuid, size).await
    }

    async fn delete(&self, volume: &VolumeId) -> Result<(), StorageError> {
        self.group(&volume.location)?.delete(volume.uuid).await
    }

    async fn attach(&self, volume: &VolumeId, read_only: bool) -> Result<PathBuf, StorageError> {
        self.group(&volume.location)?.attach(volume.uuid, read_only).await
    }

    async fn detach(&self, volume: &VolumeId) -> Result<(), StorageError> {
        self.group(&volume.location)?.detach(volume.uuid).await
    }

    async fn wait_until_quiet(&self, volume: &VolumeId) -> Result<(), StorageError> {
        self.group(&volume.location)?.wait_until_quiet(volume.uuid).await
    }

    async fn check_readable(&self, volume: &VolumeId) -> Result<(), StorageError> {
        self.group(&volume.location)?.check_readable(volume.uuid).await
    }

    async fn attached(&self) -> Result<BTreeSet<VolumeId>, StorageError> {
        let mut attached = BTreeSet::new();
        for (name, location) in &self.locations {
            let volume = |uuid| VolumeId { location: name.clone(), uuid };
            attached.extend(location.group.attached()?.into_iter().map(volume));
        }
        Ok(attached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubexen_ownership::{HostName, lock::MemoryLocks};

    fn storage(groups: &[(&str, &str)]) -> Result<LvmStorage, StorageError> {
        let config = |(name, group): &(&str, &str)| {
            let config = LvmConfig { volume_group: (*group).to_owned(), wipe: Wipe::Zero };
            ((*name).to_owned(), config)
        };
        let locks: Arc<dyn Locks> = Arc::new(MemoryLocks::new(HostName::new("xen-1").unwrap()));
        LvmStorage::new(groups.iter().map(config).collect(), &locks)
    }

    #[test]
    fn a_group_that_is_no_groups_name_or_is_named_twice_is_refused() {
        assert!(storage(&[("a", "vg-1"), ("b", "vg-2")]).is_ok());
        for bad in [&[("a", "vg-1"), ("b", "vg-1")][..], &[("a", "--all")], &[("a", "vg/lv")]] {
            let refused = storage(bad);
            assert!(matches!(refused, Err(StorageError::BadConfig { .. })), "{refused:?}");
        }
    }

    #[tokio::test]
    async fn a_group_that_is_not_there_is_no_usable_location_and_nothing_is_attached_from_it() {
        let storage = storage(&[("a", "kubexen-no-such-group")]).unwrap();
        let seen = storage.locations().await;
        assert_eq!(seen.usable, []);
        assert_eq!(seen.unusable[0].name, "a");
        assert_eq!(storage.attached().await.unwrap(), BTreeSet::new());
    }
}
