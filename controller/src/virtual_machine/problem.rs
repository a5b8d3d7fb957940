//! Why a machine cannot be started yet, or not be as its spec says.

use kubexen_crds::cloud_init::USER_DATA;
use kubexen_runtime::Key;
use std::time::Duration;

/// How often a Secret is looked for that a machine waits for.
const SECRET_LOOK: Duration = Duration::from_secs(5);

/// Why a machine cannot be started yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// A disk does not exist.
    DiskNotFound { disk: String, namespace: String },
    /// A disk is being deleted.
    DiskDeleting { disk: String },
    /// A disk is there since a moment and will be usable in another.
    DiskNew,
    /// The machine names a disk twice.
    DiskListedTwice { disk: String },
    /// Another machine's Domain has the disk.
    DiskInUse { disk: String, machine: Key },
    /// A disk is for the memory of a suspended guest.
    DiskHoldsGuest { disk: String, machine: Key },
    /// A disk that had the same name is still being removed from a host.
    DiskPredecessor { disk: String, host: String },
    /// A disk was made, and its Volume is not there any more.
    DiskLost { disk: String, host: String },
    /// A disk's repository does not exist.
    RepositoryNotFound { repository: String, disk: String },
    /// A network does not exist.
    NetworkNotFound { network: String },
    /// A network is being deleted.
    NetworkDeleting { network: String },
    /// The repository of an image does not exist.
    ImageRepositoryNotFound { repository: String, image: String },
    /// The Secret with the user data does not exist.
    SecretNotFound { secret: String, namespace: String },
    /// The Secret has no user data.
    SecretKeyMissing { secret: String },
    /// A field cannot be understood; the API server lets no such value through.
    Malformed { field: &'static str, value: String },
}

impl Problem {
    /// One word from a fixed set.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::DiskNotFound { .. } => "DiskNotFound",
            Self::DiskDeleting { .. } => "DiskDeleting",
            Self::DiskNew => "DiskNotReady",
            Self::DiskListedTwice { .. } => "DiskListedTwice",
            Self::DiskInUse { .. } => "DiskInUse",
            Self::DiskHoldsGuest { .. } => "DiskHoldsGuest",
            Self::DiskPredecessor { .. } => "DiskPredecessorDeleting",
            Self::DiskLost { .. } => "DiskLost",
            Self::RepositoryNotFound { .. } => "RepositoryNotFound",
            Self::NetworkNotFound { .. } => "NetworkNotFound",
            Self::NetworkDeleting { .. } => "NetworkDeleting",
            Self::ImageRepositoryNotFound { .. } => "RepositoryNotFound",
            Self::SecretNotFound { .. } => "SecretNotFound",
            Self::SecretKeyMissing { .. } => "SecretKeyMissing",
            Self::Malformed { .. } => "InvalidSpec",
        }
    }

    /// What is so, and what to change.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::DiskNotFound { disk, namespace } => format!(
                "VirtualDisk {disk} does not exist in namespace {namespace}: create it, or change `spec.disks`"
            ),
            Self::DiskDeleting { disk } => {
                format!("VirtualDisk {disk} is being deleted: create it again, or change `spec.disks`")
            }
            Self::DiskNew => "a disk is being taken into account".to_owned(),
            Self::DiskListedTwice { disk } => {
                format!("VirtualDisk {disk} is listed twice: remove one of its entries from `spec.disks`")
            }
            Self::DiskInUse { disk, machine } => format!(
                "VirtualDisk {disk} is used by VirtualMachine {machine}: halt that one, or change `spec.disks`"
            ),
            Self::DiskHoldsGuest { disk, machine } => format!(
                "VirtualDisk {disk} is for the memory of VirtualMachine {machine} while that is suspended: change \
                 `spec.disks`"
            ),
            Self::DiskPredecessor { disk, host } => {
                format!("an earlier VirtualDisk {disk} is still being deleted from host {host}")
            }
            Self::DiskLost { disk, host } => format!(
                "the Volume of VirtualDisk {disk} on host {host} does not exist any more: change `spec.disks`, or create \
                 the disk again"
            ),
            Self::RepositoryNotFound { repository, disk } => format!(
                "StorageRepository {repository} of VirtualDisk {disk} does not exist: create it, or use another disk"
            ),
            Self::NetworkNotFound { network } => {
                format!("Network {network} does not exist: create it, or change `spec.interfaces`")
            }
            Self::NetworkDeleting { network } => {
                format!("Network {network} is being deleted: change `spec.interfaces`")
            }
            Self::ImageRepositoryNotFound { repository, image } => format!(
                "StorageRepository {repository} of image {image} does not exist: create it, or change `spec.cds`"
            ),
            Self::SecretNotFound { secret, namespace } => format!(
                "Secret {secret} does not exist in namespace {namespace}: create it, or change `spec.cloudInit`"
            ),
            Self::SecretKeyMissing { secret } => format!(
                "Secret {secret} has no key `{USER_DATA}`: put the user data there, or change `spec.cloudInit`"
            ),
            Self::Malformed { field, value } => format!("`{field}` is {value:?}, which cannot be understood"),
        }
    }

    /// Whether nothing but a change of the machine itself helps.
    pub(crate) fn is_terminal(&self) -> bool {
        match self {
            Self::DiskListedTwice { .. } | Self::DiskHoldsGuest { .. } | Self::Malformed { .. } => true,
            Self::DiskNotFound { .. }
            | Self::DiskDeleting { .. }
            | Self::DiskNew
            | Self::DiskInUse { .. }
            | Self::DiskPredecessor { .. }
            | Self::DiskLost { .. }
            | Self::RepositoryNotFound { .. }
            | Self::NetworkNotFound { .. }
            | Self::NetworkDeleting { .. }
            | Self::ImageRepositoryNotFound { .. }
            | Self::SecretNotFound { .. }
            | Self::SecretKeyMissing { .. } => false,
        }
    }

    /// When to look again, where no watch tells that it has passed.
    pub(crate) fn again(&self) -> Option<Duration> {
        match self {
            Self::SecretNotFound { .. } | Self::SecretKeyMissing { .. } => Some(SECRET_LOOK),
            Self::DiskNotFound { .. }
            | Self::DiskDeleting { .. }
            | Self::DiskNew
            | Self::DiskListedTwice { .. }
            | Self::DiskInUse { .. }
            | Self::DiskHoldsGuest { .. }
            | Self::DiskPredecessor { .. }
            | Self::DiskLost { .. }
            | Self::RepositoryNotFound { .. }
            | Self::NetworkNotFound { .. }
            | Self::NetworkDeleting { .. }
            | Self::ImageRepositoryNotFound { .. }
            | Self::Malformed { .. } => None,
        }
    }
}
