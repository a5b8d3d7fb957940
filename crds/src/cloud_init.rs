//! Cloud-init: what a guest configures itself by when it starts for the first time.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Key of the user's Secret that holds the user data.
pub const USER_DATA: &str = "userData";

/// Key of the user's Secret that holds the network configuration, if the user gives one.
pub const NETWORK_DATA: &str = "networkData";

/// Type of the Secrets that the controller puts into the namespaces of hosts.
pub const SEED_SECRET_TYPE: &str = "kubexen.io/cloud-init";

/// Name under which a guest sees its seed: behind all its disks, so that it changes none of their names.
pub const SEED_TARGET: &str = "xvdp";

/// Name of the Secret in a host's namespace that a Domain's seed is made from.
#[must_use]
pub fn seed_secret_name(domain: &str) -> String {
    format!("cloud-init.{domain}")
}

/// What a guest configures itself by when it starts for the first time.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloudInit {
    /// The Secret in the machine's namespace with the user data under the key `userData`, and, if cloud-init is not to
    /// configure the network by itself, a network configuration under `networkData`. It is read when the machine is
    /// started or its restart is asked for; a change of it takes effect at the next of these.
    pub user_data_secret: SecretReference,
}

/// A Secret in the same namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Its name.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,
}

/// Where the seed of a domain comes from. Its content never stands in a Domain.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainCloudInit {
    /// Name of the Secret in the host's namespace, which belongs to this Domain: a copy of the user's.
    #[schemars(length(min = 1, max = 253))]
    pub secret: String,
    /// Name of the user's Secret, in the namespace of the virtual machine.
    #[schemars(length(min = 1, max = 253))]
    pub user_data_secret: String,
}
