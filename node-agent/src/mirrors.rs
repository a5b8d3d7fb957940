//! The objects of this host's namespace, and the host's own.

use kubexen_crds::{Domain, Host, Volume};
use kubexen_runtime::Mirror;

/// What the agent sees of the cluster: nothing but its own host.
#[derive(Clone, Debug, Default)]
pub struct Mirrors {
    /// Domains of the namespace.
    pub domains: Mirror<Domain>,
    /// Volumes of the namespace.
    pub volumes: Mirror<Volume>,
    /// The Host object, once its owner made it.
    pub hosts: Mirror<Host>,
}
