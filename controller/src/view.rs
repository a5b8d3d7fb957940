//! What the controller sees of the cluster: a mirror of every kind, and who refers to whom.

use crate::{relation::Relation, scheduler::Touched};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Resource, ResourceExt};
use kubexen_crds::{
    Domain, Host, Network, Pool, StorageRepository, VirtualDisk, VirtualMachine, VirtualMachineMigration,
    Volume,
    condition::is_true,
    names::{CONTROLLER_FINALIZER, host_namespace},
};
use kubexen_runtime::{Key, Mirror};
use std::{collections::BTreeSet, sync::Arc};

/// Mirrors and the relations between their objects.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) machines: Mirror<VirtualMachine>,
    pub(crate) disks: Mirror<VirtualDisk>,
    pub(crate) networks: Mirror<Network>,
    pub(crate) repositories: Mirror<StorageRepository>,
    pub(crate) hosts: Mirror<Host>,
    pub(crate) pools: Mirror<Pool>,
    pub(crate) domains: Mirror<Domain>,
    pub(crate) volumes: Mirror<Volume>,
    pub(crate) heartbeats: Mirror<Lease>,
    pub(crate) migrations: Mirror<VirtualMachineMigration>,
    /// Domain → VirtualMachine, by name: whatever its uid.
    pub(crate) domains_of_machine: Relation,
    /// Domain → its namespace.
    pub(crate) domains_of_host: Relation,
    /// Domain → VirtualDisk.
    pub(crate) domains_of_disk: Relation,
    /// Domain → hardware address.
    pub(crate) domains_of_address: Relation,
    /// Suspended VirtualMachine → VirtualDisk that its guest had.
    pub(crate) suspended_of_disk: Relation,
    /// Volume → VirtualDisk, by name: whatever its uid.
    pub(crate) volumes_of_disk: Relation,
    /// Volume → its namespace.
    pub(crate) volumes_of_host: Relation,
    /// VirtualMachine → VirtualDisk.
    pub(crate) machines_of_disk: Relation,
    /// VirtualMachineMigration → VirtualMachine.
    pub(crate) migrations_of_machine: Relation,
    /// VirtualMachineMigration → the Host that it empties.
    pub(crate) migrations_of_evacuation: Relation,
    /// VirtualMachine → Network.
    pub(crate) machines_of_network: Relation,
    /// VirtualDisk → StorageRepository.
    pub(crate) disks_of_repository: Relation,
    /// What has changed of all this since the scheduler looked last.
    pub(crate) touched: Touched,
}

impl View {
    /// Waits until every mirror has its first list.
    pub(crate) async fn synced(&self) {
        self.machines.synced().await;
        self.disks.synced().await;
        self.networks.synced().await;
        self.repositories.synced().await;
        self.hosts.synced().await;
        self.pools.synced().await;
        self.domains.synced().await;
        self.volumes.synced().await;
        self.migrations.synced().await;
        self.heartbeats.synced().await;
    }

    /// The Domains of the machine of this name, whatever their uid, sorted by host.
    pub(crate) fn domains_of_machine(&self, machine: &Key) -> Vec<Arc<Domain>> {
        self.domains_of_machine.read(machine, |key| self.domains.get(key))
    }

    /// The Volumes of the disk of this name, whatever their uid, sorted by host.
    pub(crate) fn volumes_of_disk(&self, disk: &Key) -> Vec<Arc<Volume>> {
        self.volumes_of_disk.read(disk, |key| self.volumes.get(key))
    }

    /// The Volumes on this host.
    pub(crate) fn volumes_of_host(&self, host: &str) -> Vec<Arc<Volume>> {
        let namespace = Key::cluster(host_namespace(host));
        self.volumes_of_host.read(&namespace, |key| self.volumes.get(key))
    }

    /// The Domains that have the disk of this name attached.
    pub(crate) fn domains_of_disk(&self, disk: &Key) -> Vec<Arc<Domain>> {
        self.domains_of_disk.read(disk, |key| self.domains.get(key))
    }

    /// The Domains on this host.
    pub(crate) fn domains_of_host(&self, host: &str) -> Vec<Arc<Domain>> {
        let namespace = Key::cluster(host_namespace(host));
        self.domains_of_host.read(&namespace, |key| self.domains.get(key))
    }

    /// The migrations that empty this host, or have done so.
    pub(crate) fn migrations_of_evacuation(&self, host: &str) -> Vec<Arc<VirtualMachineMigration>> {
        self.migrations_of_evacuation.read(&Key::cluster(host), |key| self.migrations.get(key))
    }

    /// Whether this host is known to be in maintenance.
    pub(crate) fn is_in_maintenance(&self, host: &str) -> bool {
        self.hosts.get(&Key::cluster(host)).is_some_and(|host| is_in_maintenance(&host))
    }

    /// Whether a Domain of another machine has this hardware address.
    pub(crate) fn is_address_taken(&self, address: &str, machine_uid: &str) -> bool {
        let domains = self.domains_of_address.read(&Key::cluster(address), |key| self.domains.get(key));
        domains.iter().any(|domain| domain.spec.virtual_machine.uid != machine_uid)
    }

    /// Whether this host's agent is known to be alive.
    pub(crate) fn is_host_ready(&self, host: &str) -> bool {
        self.hosts.get(&Key::cluster(host)).is_some_and(|host| is_ready(&host))
    }
}

/// Whether the host's agent is known to be alive.
pub(crate) fn is_ready(host: &Host) -> bool {
    host.status.as_ref().is_some_and(|status| is_true(&status.conditions, "Ready"))
}

/// Whether the host is to be emptied.
pub(crate) fn is_in_maintenance(host: &Host) -> bool {
    host.spec.maintenance.enabled
}

/// Whether the object is being deleted.
pub(crate) fn is_deleting(object: &impl Resource) -> bool {
    object.meta().deletion_timestamp.is_some()
}

/// Whether the controller's finalizer is on the object.
pub(crate) fn has_finalizer(object: &impl Resource) -> bool {
    object.finalizers().iter().any(|name| name == CONTROLLER_FINALIZER)
}

/// The uid of the object; empty for one that was never stored.
pub(crate) fn uid(object: &impl Resource) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}

/// The host that a namespace belongs to.
pub(crate) fn host_of_namespace(namespace: &str) -> Option<&str> {
    namespace.strip_prefix(&host_namespace("")).filter(|host| !host.is_empty())
}

/// The user-kind object that a host-kind object of this name stands for.
pub(crate) fn user_key(host_object: &str) -> Option<Key> {
    host_object.split_once('.').map(|(namespace, name)| Key::new(namespace, name))
}

/// The disks that a domain uses.
pub(crate) fn disks_of(domain: &Domain) -> BTreeSet<Key> {
    domain.spec.volumes().filter_map(user_key).collect()
}

/// The disks that a suspended machine's guest had.
pub(crate) fn suspended_disks(machine: &VirtualMachine) -> BTreeSet<Key> {
    let suspended = machine.status.as_ref().and_then(|status| status.suspended.as_ref());
    suspended
        .iter()
        .flat_map(|suspended| &suspended.machine.disks)
        .filter_map(|disk| user_key(&disk.volume))
        .collect()
}
