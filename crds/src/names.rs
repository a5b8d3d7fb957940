//! Names that the controller, the agents and the chart agree upon.

/// API group of every kind here.
pub const GROUP: &str = "kubexen.io";

/// Annotation on a VirtualMachine: a time (RFC 3339). A value that was not handled yet restarts the guest once.
pub const RESTART_REQUESTED_AT: &str = "kubexen.io/restart-requested-at";

/// Label on a VirtualMachineMigration that empties a host in maintenance: the host. The controller deletes those that
/// carry it when the maintenance ends.
pub const EVACUATES: &str = "kubexen.io/evacuates";

/// Annotation on such a VirtualMachineMigration: which try it is, from 1 on.
pub const EVACUATION_ATTEMPT: &str = "kubexen.io/evacuation-attempt";

/// Finalizer of the controller on user kinds: what the object stands for is gone from every host before the
/// object is.
pub const CONTROLLER_FINALIZER: &str = "kubexen.io/controller";

/// Finalizer of the agent on host kinds: the domain or the volume is gone from the host before the object is.
pub const AGENT_FINALIZER: &str = "kubexen.io/node-agent";

/// Namespace that holds the host kinds of `host`, and its agent's identity.
#[must_use]
pub fn host_namespace(host: &str) -> String {
    format!("kubexen-host-{host}")
}

/// Name of a host-kind object for a user-kind object. A namespace contains no dot, so no two can collide.
#[must_use]
pub fn host_object_name(namespace: &str, name: &str) -> String {
    format!("{namespace}.{name}")
}

/// ServiceAccount of the agent in its host's namespace.
pub const AGENT_SERVICE_ACCOUNT: &str = "node-agent";

/// Name of the Lease in the host's namespace that the agent renews as its heartbeat.
pub const HEARTBEAT_LEASE: &str = "heartbeat";

/// Seconds between two renewals of the heartbeat lease.
pub const HEARTBEAT_SECONDS: u64 = 10;

/// Seconds without a renewal after which the controller calls a host's agent silent.
pub const HEARTBEAT_TIMEOUT_SECONDS: u64 = 40;

/// Name of the VirtualDisk that a machine's guest is saved to while it is suspended; `uid` is the machine's.
#[must_use]
pub fn suspended_disk(uid: &str) -> String {
    format!("suspended-{uid}")
}
