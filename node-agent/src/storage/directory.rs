//! Volumes as raw sparse files in folders.
//!
//! On a real host a file is attached through a loop device. On a simulated host ([`DirectoryStorage::files_only`]) it
//! is its own device node, and a marker file tells that it is attached.

use super::{
    ImageId, LocationFacts, LocationsSeen, Obstacle, Storage, StorageError, VolumeId, check_size,
    folder::{Access, Folder},
};
use async_trait::async_trait;
use futures::future::join_all;
use kubexen_crds::ByteQuantity;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Mutex, task::spawn_blocking, time::timeout};
use tracing::{info, warn};

/// A folder for volumes, from the agent's configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DirectoryConfig {
    /// The folder: an absolute path. It must exist, so that volumes never end up below a mount point that is not mounted.
    pub path: PathBuf,
    /// The sum that the sizes of volumes may reach, a quantity. Default: the size of the file system. Because files are
    /// sparse it may be larger than the file system; guests then see write errors when the space is used up.
    #[serde(default)]
    pub capacity: Option<ByteQuantity>,
    /// What the storage is called, for simulated hosts that have the same folder as hosts have a shared volume group. Not
    /// for real hosts, whose folders are their own. Default: none.
    #[serde(default)]
    pub shared_as: Option<String>,
}

/// Time limit of each call.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Volumes as raw sparse files in folders, one folder a location.
#[derive(Debug)]
pub struct DirectoryStorage {
    locations: BTreeMap<String, Location>,
}

#[derive(Debug)]
struct Location {
    folder: Arc<Folder>,
    shared_as: Option<String>,
    /// One call at a time works in a folder, and a call that hangs occupies one thread, not all.
    turn: Arc<Mutex<()>>,
    usable: AtomicBool,
}

impl DirectoryStorage {
    /// Storage whose volumes are attached through loop devices.
    ///
    /// # Errors
    /// `BadConfig` when the configuration cannot be followed whatever the host looks like.
    pub fn new(locations: BTreeMap<String, DirectoryConfig>) -> Result<Self, StorageError> {
        if let Some((location, _)) = locations.iter().find(|(_, config)| config.shared_as.is_some()) {
            let reason = "`sharedAs` is for simulated hosts".to_owned();
            return Err(StorageError::BadConfig { location: location.clone(), reason });
        }
        Self::with_access(locations, |_| Access::LoopDevice)
    }

    /// Storage of a simulated host: an attached volume's device node is its file. What is attached is marked by files
    /// below `markers`, one folder for each host, because hosts may share a location but not attachments.
    ///
    /// # Errors
    /// As [`DirectoryStorage::new`].
    pub fn files_only(
        locations: BTreeMap<String, DirectoryConfig>,
        markers: &Path,
    ) -> Result<Self, StorageError> {
        Self::with_access(locations, |name| Access::Marker { folder: markers.join(name) })
    }

    fn with_access(
        configs: BTreeMap<String, DirectoryConfig>,
        access: impl Fn(&str) -> Access,
    ) -> Result<Self, StorageError> {
        let mut paths = BTreeSet::new();
        let mut locations = BTreeMap::new();
        for (name, config) in configs {
            let bad = |reason: String| StorageError::BadConfig { location: name.clone(), reason };
            if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
                return Err(bad("its name must be usable as a file name".into()));
            }
            if !config.path.is_absolute() {
                return Err(bad("`path` must be absolute".into()));
            }
            if !paths.insert(config.path.clone()) {
                return Err(bad("another location has the same `path`".into()));
            }
            let capacity = config.capacity.as_ref().map(ByteQuantity::bytes).transpose();
            let capacity = capacity.map_err(|error| bad(format!("`capacity`: {error}")))?;
            let folder = Folder::new(name.clone(), config.path, capacity, access(&name));
            let location = Location {
                folder: Arc::new(folder),
                shared_as: config.shared_as,
                turn: Arc::default(),
                usable: AtomicBool::new(true),
            };
            locations.insert(name, location);
        }
        Ok(Self { locations })
    }

    /// Does blocking work in a location's folder. Past the time limit it goes on in its thread, and keeps its turn.
    async fn work<T: Send + 'static>(
        &self,
        call: &'static str,
        location: &str,
        work: impl FnOnce(&Folder) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let unknown = || StorageError::UnknownLocation(location.to_owned());
        let location = self.locations.get(location).ok_or_else(unknown)?;
        let (folder, turn) = (Arc::clone(&location.folder), Arc::clone(&location.turn));
        let done = async {
            let turn = turn.lock_owned().await;
            let work = spawn_blocking(move || {
                let result = work(&folder);
                drop(turn);
                result
            });
            work.await.map_err(|panic| StorageError::Io { call, source: io::Error::other(panic) })?
        };
        let timed_out = |_| StorageError::TimedOut { call, limit: CALL_LIMIT };
        timeout(CALL_LIMIT, done).await.map_err(timed_out)?
    }

    /// A location's facts, or why it cannot be used. Whether it can is logged whenever that changes.
    async fn facts(&self, name: &str, location: &Location) -> Result<LocationFacts, Obstacle> {
        let measure = |folder: &Folder| Ok((folder.capacity()?, folder.images()?));
        let capacity = self.work("statvfs", name, measure).await;
        let was_usable = location.usable.swap(capacity.is_ok(), Ordering::Relaxed);
        match &capacity {
            Ok(_) if !was_usable => info!(location = name, "storage location can be used again"),
            Err(error) if was_usable => {
                warn!(
                    location = name,
                    %error,
                    "storage location cannot be used"
                );
            }
            Ok(_) | Err(_) => {}
        }
        let (name, id) = (name.to_owned(), location.shared_as.clone());
        match capacity {
            Ok((capacity, images)) => Ok(LocationFacts { name, capacity, shared: id.is_some(), id, images }),
            Err(error) => Err(Obstacle { name, reason: error.to_string() }),
        }
    }
}

#[async_trait]
impl Storage for DirectoryStorage {
    async fn locations(&self) -> LocationsSeen {
        let facts = self.locations.iter().map(|(name, location)| self.facts(name, location));
        LocationsSeen::collect(join_all(facts).await)
    }

    async fn find(&self, volume: &VolumeId) -> Result<Option<u64>, StorageError> {
        let uuid = volume.uuid;
        self.work("find", &volume.location, move |folder| folder.find(uuid)).await
    }

    async fn create(&self, volume: &VolumeId, size: u64) -> Result<(), StorageError> {
        check_size(size)?;
        let uuid = volume.uuid;
        self.work("create", &volume.location, move |folder| folder.create(uuid, size)).await
    }

    async fn grow(&self, volume: &VolumeId, size: u64) -> Result<(), StorageError> {
        check_size(size)?;
        let uuid = volume.uuid;
        self.work("grow", &volume.location, move |folder| folder.grow(uuid, size)).await
    }

    async fn delete(&self, volume: &VolumeId) -> Result<(), StorageError> {
        let uuid = volume.uuid;
        self.work("delete", &volume.location, move |folder| folder.delete(uuid)).await
    }

    async fn attach(&self, volume: &VolumeId, read_only: bool) -> Result<PathBuf, StorageError> {
        let uuid = volume.uuid;
        self.work("attach", &volume.location, move |folder| folder.attach(uuid, read_only)).await
    }

    async fn detach(&self, volume: &VolumeId) -> Result<(), StorageError> {
        let uuid = volume.uuid;
        self.work("detach", &volume.location, move |folder| folder.detach(uuid)).await
    }

    async fn wait_until_quiet(&self, _: &VolumeId) -> Result<(), StorageError> {
        Ok(())
    }

    async fn check_readable(&self, _: &VolumeId) -> Result<(), StorageError> {
        Ok(())
    }

    async fn attached(&self) -> Result<BTreeSet<VolumeId>, StorageError> {
        let mut attached = BTreeSet::new();
        for location in self.locations.keys() {
            let uuids = self.work("attached", location, Folder::attached).await?;
            attached.extend(uuids.into_iter().map(|uuid| VolumeId { location: location.clone(), uuid }));
        }
        Ok(attached)
    }

    async fn attach_image(&self, image: &ImageId) -> Result<PathBuf, StorageError> {
        let wanted = image.clone();
        self.work("attach an image", &image.location, move |folder| folder.attach_image(&wanted)).await
    }

    async fn image_file(&self, image: &ImageId) -> Result<PathBuf, StorageError> {
        let wanted = image.clone();
        self.work("find an image", &image.location, move |folder| folder.image_file(&wanted)).await
    }

    async fn detach_image(&self, image: &ImageId) -> Result<(), StorageError> {
        let name = image.name.clone();
        self.work("detach an image", &image.location, move |folder| folder.detach_image(&name)).await
    }

    async fn attached_images(&self) -> Result<BTreeMap<ImageId, PathBuf>, StorageError> {
        let mut attached = BTreeMap::new();
        for location in self.locations.keys() {
            let images = self.work("list attached images", location, Folder::attached_images).await?;
            let id = |name| ImageId { location: location.clone(), name };
            attached.extend(images.into_iter().map(|(name, device)| (id(name), device)));
        }
        Ok(attached)
    }
}

#[cfg(test)]
mod tests;
