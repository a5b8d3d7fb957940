//! The host itself: publishes its facts in the `Host` object, and renews its heartbeat.
//!
//! Watches: its own Host object. Writes: the status of that object, all but the conditions, when a fact changed; and
//! the heartbeat Lease every few seconds. The object is made by the host's owner; without it the agent waits and
//! says so.

pub mod facts;
mod heartbeat;

pub use heartbeat::beat;

use crate::{
    config::Catalogue,
    domain::MANAGER,
    fence::Fence,
    hypervisor::{Hypervisor, HypervisorError},
    migration::link::MigrationNetwork,
    mirrors::Mirrors,
    network::HostNetwork,
    storage::Storage,
};
use facts::Measured;
use kube::{Api, Client};
use kubexen_crds::{Host, HostStatus};
use kubexen_runtime::{Key, write};
use std::{collections::BTreeSet, sync::Arc};
use tracing::warn;
use uuid::Uuid;

/// What the host's facts are gathered from.
pub struct Publisher {
    /// Connection with the agent's own credentials.
    pub client: Client,
    /// Name of the Host object.
    pub host: String,
    /// Xen.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Disks.
    pub storage: Arc<dyn Storage>,
    /// Bridges.
    pub network: Arc<dyn HostNetwork>,
    /// Other hosts' agents.
    pub migrations: Arc<dyn MigrationNetwork>,
    /// Kernels.
    pub catalogue: Catalogue,
    /// The namespace's objects.
    pub mirrors: Mirrors,
    /// The promise to stop guarded guests in time.
    pub fence: Arc<Fence>,
}

impl Publisher {
    /// Compares the facts with what the Host object says, and writes what differs; says whether that is all that can be done for
    /// now: not if the object had changed in between.
    pub async fn publish(&self) -> bool {
        let Some(host) = self.mirrors.hosts.get(&Key::cluster(self.host.clone())) else {
            warn!(
                host = self.host,
                "there is no Host object of this name; make it, and this agent will report in it"
            );
            return true;
        };
        let before = facts::of_the_agent(host.status.clone().unwrap_or_default());
        match self.measure().await {
            Ok(measured) => self.write(&host, &before, &measured.status(&before)).await,
            Err(error) => {
                warn!(%error, "the host's facts could not be gathered");
                true
            }
        }
    }

    async fn write(&self, host: &Host, before: &HostStatus, after: &HostStatus) -> bool {
        let api: Api<Host> = Api::all(self.client.clone());
        match write::status(&api, host, MANAGER, Some(before), after).await {
            Ok(written) => written.into_iter().for_each(|host| self.mirrors.hosts.learn(host)),
            Err(error) if error.is_conflict() => return false,
            Err(error) => warn!(%error, "the host's facts could not be written"),
        }
        true
    }

    async fn measure(&self) -> Result<Measured, HypervisorError> {
        let known: BTreeSet<Uuid> = self
            .mirrors
            .domains
            .list()
            .iter()
            .filter_map(|domain| Uuid::parse_str(&domain.spec.virtual_machine.uid).ok())
            .collect();
        Ok(Measured {
            facts: self.hypervisor.facts().await?,
            free_memory_kib: self.hypervisor.free_memory_kib().await?,
            domains: self.hypervisor.domains().await?,
            known,
            locations: self.storage.locations().await,
            uplinks: self.network.uplinks().await,
            addresses: self.network.addresses().await,
            migration_address: self.migrations.address(),
            migration_networks: self.migrations.networks(),
            kernels: self.catalogue.keys().cloned().collect(),
            protection: self.fence.protection(),
            judged: self.fence.has_judged(),
        })
    }
}
