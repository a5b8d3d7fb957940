//! A host's hypervisor with the judge beside it.

use super::judge::Judge;
use async_trait::async_trait;
use kubexen_node_agent::hypervisor::{
    DomId, DomainConfig, DomainInfo, HostFacts, Hypervisor, HypervisorError, simulated::SimulatedHypervisor,
};
use std::sync::Arc;
use tokio::sync::watch;
use uuid::Uuid;

/// Tells the judge of every call that changes something, before it happens.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) host: String,
    pub(super) inner: SimulatedHypervisor,
    pub(super) judge: Arc<Judge>,
}

#[async_trait]
impl Hypervisor for Judged {
    async fn facts(&self) -> Result<HostFacts, HypervisorError> {
        self.inner.facts().await
    }

    async fn free_memory_kib(&self) -> Result<u64, HypervisorError> {
        self.inner.free_memory_kib().await
    }

    async fn domains(&self) -> Result<Vec<DomainInfo>, HypervisorError> {
        self.inner.domains().await
    }

    async fn find(&self, uuid: Uuid) -> Result<Option<DomainInfo>, HypervisorError> {
        self.inner.find(uuid).await
    }

    async fn create(&self, config: &DomainConfig) -> Result<DomId, HypervisorError> {
        self.judge.creating(&self.host, config.uuid, config.token);
        self.inner.create(config).await
    }

    async fn unpause(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.judge.touching(&self.host, "unpause", uuid);
        self.inner.unpause(uuid).await
    }

    async fn pause(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.judge.touching(&self.host, "pause", uuid);
        self.inner.pause(uuid).await
    }

    async fn request_shutdown(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.judge.touching(&self.host, "shutdown", uuid);
        self.inner.request_shutdown(uuid).await
    }

    async fn destroy(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.judge.destroying(&self.host, uuid);
        self.inner.destroy(uuid).await
    }

    async fn console(&self, uuid: Uuid) -> Result<Vec<u8>, HypervisorError> {
        self.inner.console(uuid).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes()
    }
}
