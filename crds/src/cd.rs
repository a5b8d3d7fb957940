//! CDs: images that guests may read, many guests each.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Names under which guests see the discs in their drives: behind their disks, before the seed.
pub const CD_TARGETS: [&str; 2] = ["xvdo", "xvdn"];

/// A CD drive of a guest.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cd {
    /// Name of the drive within this machine, at most 32 characters.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The image in the drive. Default: none, the drive is empty. Changes while the guest runs, when the guest lets go
    /// of the image that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
}

/// An image in a repository.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Name of a StorageRepository of type Directory.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub repository: String,
    /// Name of a file in the folder `images` of the repository's location, at most 128 letters, digits, `.`, `_` and `-`.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    pub name: String,
}

/// A CD drive of a domain.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainCd {
    /// Name of the drive within its machine.
    #[schemars(length(min = 1, max = 32))]
    pub name: String,
    /// Name under which the guest sees an image in it.
    #[schemars(length(equal = 4), regex(pattern = r"^xvd[no]$"))]
    pub target: String,
    /// The image in it. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<DomainImage>,
}

/// An image on a host.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainImage {
    /// Name of the storage location in the agent's configuration.
    #[schemars(length(min = 1, max = 63))]
    pub location: String,
    /// Name of the file.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    pub name: String,
}
