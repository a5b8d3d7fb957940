//! A host's hypervisor with the judge beside it.

use super::judge::Judge;
use async_trait::async_trait;
use kubexen_node_agent::hypervisor::{
    Change, DomId, DomainConfig, DomainInfo, DomainState, DomainUsage, GuestFacts, HostFacts, Hypervisor,
    HypervisorError, Incoming, OnProgress, Outgoing, Sent, Settings, SuspendMode,
    simulated::SimulatedHypervisor,
};
use kubexen_ownership::{MemoryStore, Owner, Phase, Token, VmUid};
use kubexen_runtime::Clock;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::sleep};
use uuid::Uuid;

/// Tells the judge of every call that changes something, before it happens.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) host: String,
    pub(super) inner: SimulatedHypervisor,
    pub(super) judge: Arc<Judge>,
    pub(super) owners: MemoryStore,
    pub(super) clock: Arc<dyn Clock>,
    /// How long it takes until a build begins.
    pub(super) delay: Arc<Mutex<Duration>>,
}

impl Judged {
    fn using(&self, config: &DomainConfig) {
        let written = config.disks.iter().filter(|disk| !disk.read_only);
        let devices = written.map(|disk| disk.device.clone()).collect();
        self.judge.using(self.clock.now(), &self.host, config.uuid, devices);
    }
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

    async fn usage(&self) -> Result<Vec<DomainUsage>, HypervisorError> {
        self.inner.usage().await
    }

    async fn guest(&self, uuid: Uuid) -> Result<GuestFacts, HypervisorError> {
        self.inner.guest(uuid).await
    }

    async fn create(&self, config: &DomainConfig) -> Result<DomId, HypervisorError> {
        let delay = *self.delay.lock().unwrap_or_else(PoisonError::into_inner);
        if !delay.is_zero() {
            sleep(delay).await;
        }
        self.judge.creating(&self.host, config.uuid, config.token);
        let owner = self.owners.owner_on_record(VmUid(config.uuid));
        if let Some(Owner { phase: saved @ (Phase::Saved(_) | Phase::Resuming(_)), .. }) = owner {
            let how = format_args!("{} boots {} afresh, which is {saved:?}", self.host, config.uuid);
            self.judge.violated("I7", how);
        }
        self.using(config);
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
        self.judge.asking_to_stop(&self.host, uuid);
        self.inner.request_shutdown(uuid).await
    }

    async fn settings(&self, uuid: Uuid) -> Result<Settings, HypervisorError> {
        self.inner.settings(uuid).await
    }

    async fn change(&self, uuid: Uuid, change: &Change) -> Result<(), HypervisorError> {
        self.judge.touching(&self.host, change.name(), uuid);
        if let Change::AttachDisk(disk) = change
            && !disk.read_only
        {
            self.judge.plugging(&self.host, uuid, &disk.device);
        }
        let changed = self.inner.change(uuid, change).await;
        if let Change::AttachDisk(disk) = change
            && changed.is_ok()
            && !disk.read_only
        {
            self.judge.plugging(&self.host, uuid, &disk.device);
        }
        changed
    }

    async fn suspend(
        &self,
        uuid: Uuid,
        mode: SuspendMode,
        stream: Outgoing,
        progress: OnProgress,
    ) -> Result<Sent, HypervisorError> {
        self.judge.touching(&self.host, "suspend", uuid);
        self.inner.suspend(uuid, mode, stream, progress).await
    }

    async fn restore(&self, config: &DomainConfig, stream: Incoming) -> Result<DomId, HypervisorError> {
        self.judge.touching(&self.host, "restore", config.uuid);
        self.judge.copying(&self.host, config.uuid);
        self.using(config);
        self.inner.restore(config, stream).await
    }

    async fn claim(&self, uuid: Uuid, token: u64) -> Result<(), HypervisorError> {
        self.judge.touching(&self.host, "claim", uuid);
        if self.inner.find(uuid).await?.is_some_and(|copy| copy.state == DomainState::Restored) {
            self.judge.claiming(&self.host, uuid);
        }
        self.inner.claim(uuid, token).await
    }

    async fn resume(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.judge.touching(&self.host, "resume", uuid);
        self.inner.resume(uuid).await
    }

    async fn abort(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.judge.touching(&self.host, "abort", uuid);
        self.inner.abort(uuid).await
    }

    async fn destroy(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        let owner = self.owners.owner_on_record(VmUid(uuid));
        let sent_under = self.inner.find(uuid).await?.and_then(|copy| copy.sent_under);
        let succeeds = owner.as_ref().and_then(|owner| owner.succeeds);
        let is_old_copy = sent_under.is_some_and(|token| succeeds != Some(Token(token)));
        let is_elsewhere = owner
            .as_ref()
            .is_some_and(|owner| owner.phase != Phase::Running || owner.host.as_str() != self.host)
            || is_old_copy;
        let is_guarded = owner.is_some_and(|owner| owner.guarded);
        self.judge.destroying(&self.host, uuid, is_elsewhere, is_guarded);
        self.inner.destroy(uuid).await
    }

    async fn console(&self, uuid: Uuid) -> Result<Vec<u8>, HypervisorError> {
        self.inner.console(uuid).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes()
    }
}
