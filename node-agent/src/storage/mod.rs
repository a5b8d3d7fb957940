//! The storage boundary: volumes as block devices of this host.
//!
//! A volume lives in a location, a place that the agent's configuration names, and is known by the UUID of its
//! `VirtualDisk`. What exists and what is attached is read from the storage and from the kernel each time, so an
//! agent that was killed loses nothing. Every call ends within a time limit.
//!
//! - [`content`] is what a volume holds, for the agent's own use.
//! - [`directory`] keeps raw sparse files in a folder and attaches them through loop devices.
//! - [`lvm`] keeps logical volumes in a volume group, on a LUN that several hosts may see.
//! - [`locations`] puts them together as the agent's configuration says.
//! - [`memory`] is a model for simulation, with faults to inject.
//! - [`seeds`] keeps the small disks that the agent itself writes.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::PathBuf,
    time::Duration,
};
use uuid::Uuid;

#[cfg(feature = "conformance")]
pub mod command;
#[cfg(any(test, feature = "conformance"))]
mod conformance;
pub mod content;
pub mod directory;
mod folder;
pub mod images;
pub mod locations;
mod loop_device;
pub mod lvm;
mod marker;
pub mod memory;
pub mod seeds;

pub use content::Content;
pub use directory::DirectoryStorage;
pub use images::ImageId;
pub use locations::{LocationConfig, Locations};
pub use lvm::LvmStorage;
pub use memory::{MemoryStorage, SharedLocation};
pub use seeds::{HostSeeds, MemorySeeds, Seeds};

/// A volume: where it lives and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeId {
    /// Name of the location in the agent's configuration.
    pub location: String,
    /// The uid of its `VirtualDisk`.
    pub uuid: Uuid,
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.uuid, self.location)
    }
}

/// A location that can be used at this moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocationFacts {
    /// Its name in the agent's configuration.
    pub name: String,
    /// The sum that the sizes of its volumes may reach, in bytes.
    pub capacity: u64,
    /// Whether other hosts may see the same volumes.
    pub shared: bool,
    /// What the storage itself is called, equal on every host that sees it; nothing where no such name exists.
    pub id: Option<String>,
    /// Images for CD drives that lie there, sorted.
    pub images: Vec<String>,
}

/// A location that the configuration names and that cannot be used at this moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    /// The location's name.
    pub name: String,
    /// Why it cannot be used.
    pub reason: String,
}

/// The locations of a host at one moment, each list sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocationsSeen {
    /// Those that can be used.
    pub usable: Vec<LocationFacts>,
    /// Those that cannot.
    pub unusable: Vec<Obstacle>,
}

impl LocationsSeen {
    /// Puts together what was seen of each location.
    fn collect(seen: impl IntoIterator<Item = Result<LocationFacts, Obstacle>>) -> Self {
        let mut all = Self::default();
        for location in seen {
            match location {
                Ok(facts) => all.usable.push(facts),
                Err(obstacle) => all.unusable.push(obstacle),
            }
        }
        all.usable.sort_by(|one, other| one.name.cmp(&other.name));
        all.unusable.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }
}

/// Why a call to the storage failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The agent's configuration names no such location.
    #[error("This host has no storage location {0}")]
    UnknownLocation(String),
    /// The configuration cannot be followed whatever the host looks like.
    #[error("The storage location {location} cannot be used: {reason}")]
    BadConfig {
        /// The location.
        location: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such volume.
    #[error("There is no volume {0}")]
    NoSuchVolume(VolumeId),
    /// There is no such image.
    #[error("There is no image {0}")]
    NoSuchImage(ImageId),
    /// The volume exists with another size than it is to be created with.
    #[error("The volume {volume} exists with {existing} bytes, not {requested}")]
    OtherSize {
        /// The volume.
        volume: VolumeId,
        /// Its size in bytes.
        existing: u64,
        /// The size asked for, in bytes.
        requested: u64,
    },
    /// A volume never shrinks.
    #[error("The volume {volume} has {existing} bytes and cannot shrink to {requested}")]
    WouldShrink {
        /// The volume.
        volume: VolumeId,
        /// Its size in bytes.
        existing: u64,
        /// The size asked for, in bytes.
        requested: u64,
    },
    /// A size that no volume can have.
    #[error("{size} bytes is no size of a volume: it must be a positive multiple of {SECTOR_BYTES}")]
    BadSize {
        /// The size asked for, in bytes.
        size: u64,
    },
    /// The location's capacity, or the space that is free below it, does not suffice.
    #[error("The storage location {location} has {available} bytes left, {requested} more are needed")]
    NoSpace {
        /// The location.
        location: String,
        /// What is left of it, in bytes.
        available: u64,
        /// What the call needs, in bytes.
        requested: u64,
    },
    /// The volume is attached, or its device is still open, or it is attached for another kind of access.
    #[error("The volume {0} is in use")]
    InUse(VolumeId),
    /// The call did not end in time. What it did is unknown: observe.
    #[error("{call} did not end within {} s; what it did is not known", limit.as_secs())]
    TimedOut {
        /// The call.
        call: &'static str,
        /// The time limit.
        limit: Duration,
    },
    /// The storage cannot be reached, or refused. The text tells the reason too, because people read it in conditions.
    #[error("Cannot {call}: {source}")]
    Io {
        /// What was done.
        call: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

impl StorageError {
    /// A label from a fixed set, for metrics and conditions.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::UnknownLocation(_) => "UnknownLocation",
            Self::BadConfig { .. } => "BadConfig",
            Self::NoSuchVolume(_) => "NoSuchVolume",
            Self::NoSuchImage(_) => "NoSuchImage",
            Self::OtherSize { .. } => "OtherSize",
            Self::WouldShrink { .. } => "WouldShrink",
            Self::BadSize { .. } => "BadSize",
            Self::NoSpace { .. } => "NoSpace",
            Self::InUse(_) => "InUse",
            Self::TimedOut { .. } => "TimedOut",
            Self::Io { .. } => "Io",
        }
    }
}

/// Sizes are multiples of this: it is the sector that every guest sees, on whatever host it runs.
pub const SECTOR_BYTES: u64 = 512;

/// Refuses what is no size of a volume.
fn check_size(size: u64) -> Result<(), StorageError> {
    if size != 0 && size.is_multiple_of(SECTOR_BYTES) { Ok(()) } else { Err(StorageError::BadSize { size }) }
}

/// The storage of one host.
#[async_trait]
pub trait Storage: Send + Sync + fmt::Debug {
    /// The locations as they are at this moment.
    async fn locations(&self) -> LocationsSeen;

    /// The size of a volume in bytes, or nothing if there is no such volume.
    async fn find(&self, volume: &VolumeId) -> Result<Option<u64>, StorageError>;

    /// Makes a blank volume of this size in bytes, rounded up to what the location's sizes are multiples of. It is there
    /// whole or not at all. Succeeds when the volume exists with this size.
    ///
    /// # Errors
    /// `OtherSize` when it exists with another size; `NoSpace` when the location's capacity does not allow it.
    async fn create(&self, volume: &VolumeId, size: u64) -> Result<(), StorageError>;

    /// Makes a volume larger, by space that reads as zeroes; sizes are rounded up as in [`Storage::create`]. A device that
    /// is attached on this host learns its new size; one on another host does when it is attached there once more.
    /// Succeeds when the volume has this size.
    ///
    /// # Errors
    /// `WouldShrink` when it is larger already, `NoSuchVolume`, `NoSpace`.
    async fn grow(&self, volume: &VolumeId, size: u64) -> Result<(), StorageError>;

    /// Deletes a volume with its content. Succeeds when there is no such volume.
    ///
    /// # Errors
    /// `InUse` while it is attached on this host.
    async fn delete(&self, volume: &VolumeId) -> Result<(), StorageError>;

    /// Makes a volume a device node of this host. A volume that is attached answers the device that it has, with the size
    /// that the volume has by now.
    ///
    /// # Errors
    /// `NoSuchVolume`; `InUse` when it is attached with another `read_only`.
    async fn attach(&self, volume: &VolumeId, read_only: bool) -> Result<PathBuf, StorageError>;

    /// Attaches a volume for reading and writing, if it is not yet, and opens what it holds. To be dropped before the volume
    /// is detached.
    ///
    /// # Errors
    /// As [`Storage::attach`].
    async fn open(&self, volume: &VolumeId) -> Result<Box<dyn Content>, StorageError> {
        let device = self.attach(volume, false).await?;
        Ok(Box::new(content::FileContent::open(&device).await?))
    }

    /// Takes the device away. Succeeds when the volume is not attached, or does not exist.
    ///
    /// # Errors
    /// `InUse` when somebody holds the device open: it goes when they let go, so try again.
    async fn detach(&self, volume: &VolumeId) -> Result<(), StorageError>;

    /// Waits until nothing that this host wrote to the volume, or reads from it, is on its way any more. For a volume
    /// that nobody on this host uses any longer and that another host is about to use. Returns at once where no other
    /// host can.
    ///
    /// # Errors
    /// `TimedOut` when it does not come to rest.
    async fn wait_until_quiet(&self, volume: &VolumeId) -> Result<(), StorageError>;

    /// Reads from an attached volume, past every cache: for a volume that a guest is about to use which another host has
    /// used so far. Returns at once where no other host can.
    ///
    /// # Errors
    /// `Io` when the storage below it cannot be reached from this host, or does not answer in time; `NoSuchVolume` when it is
    /// not attached.
    async fn check_readable(&self, volume: &VolumeId) -> Result<(), StorageError>;

    /// The volumes that are attached on this host, as the host itself sees it.
    async fn attached(&self) -> Result<BTreeSet<VolumeId>, StorageError>;

    /// Makes an image a device node of this host that can only be read. An image that is attached answers the device that
    /// it has. Storage without images knows none.
    ///
    /// # Errors
    /// `NoSuchImage`.
    async fn attach_image(&self, image: &ImageId) -> Result<PathBuf, StorageError> {
        Err(StorageError::NoSuchImage(image.clone()))
    }

    /// The file of an image, for a device model that reads files itself. Storage without images knows none.
    ///
    /// # Errors
    /// `NoSuchImage`.
    async fn image_file(&self, image: &ImageId) -> Result<PathBuf, StorageError> {
        Err(StorageError::NoSuchImage(image.clone()))
    }

    /// Takes the device of an image away: at once, or when the last who holds it open lets go. Succeeds when it has none.
    async fn detach_image(&self, _: &ImageId) -> Result<(), StorageError> {
        Ok(())
    }

    /// The images that are attached on this host with their devices, as the host itself sees it.
    async fn attached_images(&self) -> Result<BTreeMap<ImageId, PathBuf>, StorageError> {
        Ok(BTreeMap::new())
    }
}
