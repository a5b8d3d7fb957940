//! The locations of a host, each with the kind of storage that the agent's configuration names.

use super::{
    Content, DirectoryStorage, ImageId, LocationsSeen, LvmStorage, Storage, StorageError, VolumeId,
    directory::DirectoryConfig,
    lvm::{LvmConfig, Wipe},
};
use async_trait::async_trait;
use kubexen_crds::ByteQuantity;
use kubexen_ownership::lock::Locks;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A storage location in the agent's configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Fields")]
pub enum LocationConfig {
    /// A folder of this host.
    Directory(DirectoryConfig),
    /// A volume group on storage that several hosts may see.
    Lvm(LvmConfig),
}

/// What the file says, before it is known which fields belong together.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Fields {
    #[serde(default, rename = "type")]
    kind: Kind,
    path: Option<PathBuf>,
    capacity: Option<ByteQuantity>,
    shared_as: Option<String>,
    volume_group: Option<String>,
    wipe: Option<Wipe>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Kind {
    #[default]
    Directory,
    #[serde(rename = "LVM")]
    Lvm,
}

/// Why a location's fields do not fit its type.
#[derive(Debug, thiserror::Error)]
enum FieldError {
    #[error("a location of type {kind} needs `{field}`")]
    Missing { kind: &'static str, field: &'static str },
    #[error("`{field}` does not belong to a location of type {kind}")]
    Foreign { kind: &'static str, field: &'static str },
}

impl TryFrom<Fields> for LocationConfig {
    type Error = FieldError;

    fn try_from(fields: Fields) -> Result<Self, FieldError> {
        let Fields { kind, path, capacity, shared_as, volume_group, wipe } = fields;
        let none = |kind, given: bool, field| {
            if given { Err(FieldError::Foreign { kind, field }) } else { Ok(()) }
        };
        match kind {
            Kind::Directory => {
                let kind = "Directory";
                none(kind, volume_group.is_some(), "volumeGroup")?;
                none(kind, wipe.is_some(), "wipe")?;
                let path = path.ok_or(FieldError::Missing { kind, field: "path" })?;
                Ok(Self::Directory(DirectoryConfig { path, capacity, shared_as }))
            }
            Kind::Lvm => {
                let kind = "LVM";
                none(kind, path.is_some(), "path")?;
                none(kind, capacity.is_some(), "capacity")?;
                none(kind, shared_as.is_some(), "sharedAs")?;
                let volume_group = volume_group.ok_or(FieldError::Missing { kind, field: "volumeGroup" })?;
                Ok(Self::Lvm(LvmConfig { volume_group, wipe: wipe.unwrap_or_default() }))
            }
        }
    }
}

/// The storage of a host: each call goes to the driver of the location that it names.
#[derive(Debug)]
pub struct Locations {
    directory: DirectoryStorage,
    lvm: LvmStorage,
}

impl Locations {
    /// The storage of a real host. What several hosts share is changed under `locks` of the pool.
    ///
    /// # Errors
    /// `BadConfig` when the configuration cannot be followed whatever the host looks like.
    pub fn new(
        configs: BTreeMap<String, LocationConfig>,
        locks: &Arc<dyn Locks>,
    ) -> Result<Self, StorageError> {
        let (folders, groups) = by_type(configs);
        Ok(Self { directory: DirectoryStorage::new(folders)?, lvm: LvmStorage::new(groups, locks)? })
    }

    /// The storage of a simulated host, which has folders only. See [`DirectoryStorage::files_only`].
    ///
    /// # Errors
    /// `BadConfig`, as [`Locations::new`].
    pub fn simulated(
        configs: BTreeMap<String, LocationConfig>,
        markers: &Path,
    ) -> Result<DirectoryStorage, StorageError> {
        let (folders, groups) = by_type(configs);
        if let Some(location) = groups.into_keys().next() {
            let reason = "a simulated host has no volume groups".to_owned();
            return Err(StorageError::BadConfig { location, reason });
        }
        DirectoryStorage::files_only(folders, markers)
    }

    fn of(&self, volume: &VolumeId) -> &dyn Storage {
        // A location that nobody knows is refused by any driver.
        if self.lvm.has(&volume.location) { &self.lvm } else { &self.directory }
    }
}

fn by_type(
    configs: BTreeMap<String, LocationConfig>,
) -> (BTreeMap<String, DirectoryConfig>, BTreeMap<String, LvmConfig>) {
    let (mut folders, mut groups) = (BTreeMap::new(), BTreeMap::new());
    for (name, config) in configs {
        match config {
            LocationConfig::Directory(config) => drop(folders.insert(name, config)),
            LocationConfig::Lvm(config) => drop(groups.insert(name, config)),
        }
    }
    (folders, groups)
}

#[async_trait]
impl Storage for Locations {
    async fn locations(&self) -> LocationsSeen {
        let (folders, groups) = futures::join!(self.directory.locations(), self.lvm.locations());
        let usable = folders.usable.into_iter().chain(groups.usable).map(Ok);
        let unusable = folders.unusable.into_iter().chain(groups.unusable).map(Err);
        LocationsSeen::collect(usable.chain(unusable))
    }

    async fn find(&self, volume: &VolumeId) -> Result<Option<u64>, StorageError> {
        self.of(volume).find(volume).await
    }

    async fn create(&self, volume: &VolumeId, size: u64) -> Result<(), StorageError> {
        self.of(volume).create(volume, size).await
    }

    async fn grow(&self, volume: &VolumeId, size: u64) -> Result<(), StorageError> {
        self.of(volume).grow(volume, size).await
    }

    async fn delete(&self, volume: &VolumeId) -> Result<(), StorageError> {
        self.of(volume).delete(volume).await
    }

    async fn attach(&self, volume: &VolumeId, read_only: bool) -> Result<PathBuf, StorageError> {
        self.of(volume).attach(volume, read_only).await
    }

    async fn open(&self, volume: &VolumeId) -> Result<Box<dyn Content>, StorageError> {
        self.of(volume).open(volume).await
    }

    async fn detach(&self, volume: &VolumeId) -> Result<(), StorageError> {
        self.of(volume).detach(volume).await
    }

    async fn wait_until_quiet(&self, volume: &VolumeId) -> Result<(), StorageError> {
        self.of(volume).wait_until_quiet(volume).await
    }

    async fn check_readable(&self, volume: &VolumeId) -> Result<(), StorageError> {
        self.of(volume).check_readable(volume).await
    }

    async fn attached(&self) -> Result<BTreeSet<VolumeId>, StorageError> {
        let mut all = self.directory.attached().await?;
        all.extend(self.lvm.attached().await?);
        Ok(all)
    }

    async fn attach_image(&self, image: &ImageId) -> Result<PathBuf, StorageError> {
        self.directory.attach_image(image).await
    }

    async fn image_file(&self, image: &ImageId) -> Result<PathBuf, StorageError> {
        self.directory.image_file(image).await
    }

    async fn detach_image(&self, image: &ImageId) -> Result<(), StorageError> {
        self.directory.detach_image(image).await
    }

    async fn attached_images(&self) -> Result<BTreeMap<ImageId, PathBuf>, StorageError> {
        self.directory.attached_images().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubexen_ownership::{HostName, lock::MemoryLocks};

    fn parse(text: &str) -> Result<LocationConfig, String> {
        serde_yaml_ng::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_location_without_a_type_is_a_folder() {
        let folder = LocationConfig::Directory(DirectoryConfig {
            path: "/srv".into(),
            capacity: None,
            shared_as: None,
        });
        assert_eq!(parse("{path: /srv}").unwrap(), folder);
        assert_eq!(parse("{type: Directory, path: /srv}").unwrap(), folder);
        let group = |wipe| LocationConfig::Lvm(LvmConfig { volume_group: "vg-san-1".into(), wipe });
        assert_eq!(parse("{type: LVM, volumeGroup: vg-san-1}").unwrap(), group(Wipe::Zero));
        let discarding = parse("{type: LVM, volumeGroup: vg-san-1, wipe: Discard}").unwrap();
        assert_eq!(discarding, group(Wipe::Discard));
    }

    #[test]
    fn fields_of_another_type_and_missing_ones_are_named() {
        for (text, expected) in [
            ("{type: LVM}", "a location of type LVM needs `volumeGroup`"),
            ("{}", "a location of type Directory needs `path`"),
            ("{path: /srv, wipe: Zero}", "`wipe` does not belong to a location of type Directory"),
            ("{type: LVM, volumeGroup: a, path: /srv}", "`path` does not belong to a location of type LVM"),
            ("{type: NFS}", "unknown variant `NFS`"),
            ("{path: /srv, colour: red}", "unknown field `colour`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text} led to {error}");
        }
    }

    #[tokio::test]
    async fn each_call_goes_to_the_driver_of_its_location() {
        let folder = tempfile::tempdir().unwrap();
        let configs = BTreeMap::from([
            (
                "local".to_owned(),
                LocationConfig::Directory(DirectoryConfig {
                    path: folder.path().into(),
                    capacity: None,
                    shared_as: None,
                }),
            ),
            (
                "san".to_owned(),
                LocationConfig::Lvm(LvmConfig {
                    volume_group: "kubexen-no-such-group".into(),
                    wipe: Wipe::Zero,
                }),
            ),
        ]);
        let locks: Arc<dyn Locks> = Arc::new(MemoryLocks::new(HostName::new("xen-1").unwrap()));
        let storage = Locations::new(configs.clone(), &locks).unwrap();
        let in_location =
            |location: &str| VolumeId { location: location.into(), uuid: uuid::Uuid::from_u128(1) };
        assert_eq!(storage.find(&in_location("local")).await.unwrap(), None);
        let san = storage.find(&in_location("san")).await;
        assert!(matches!(san, Err(StorageError::Io { call: "read the volume group", .. })), "{san:?}");
        let unknown = storage.find(&in_location("nowhere")).await;
        assert!(matches!(unknown, Err(StorageError::UnknownLocation(_))), "{unknown:?}");
        let seen = storage.locations().await;
        let names: Vec<_> = seen.usable.into_iter().map(|facts| (facts.name, facts.shared)).collect();
        assert_eq!(names, [("local".to_owned(), false)]);
        let names: Vec<_> = seen.unusable.into_iter().map(|obstacle| obstacle.name).collect();
        assert_eq!(names, ["san"]);
        assert!(Locations::simulated(configs, folder.path()).is_err());
    }
}
