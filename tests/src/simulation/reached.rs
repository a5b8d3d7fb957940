//! A host's hypervisor as far as the agent reaches it.

use super::{
    effects::Effects,
    seam::Seam,
    step::{Call, Failure},
};
use async_trait::async_trait;
use kubexen_node_agent::hypervisor::{
    Change, DomId, DomainConfig, DomainInfo, DomainUsage, GuestFacts, HostFacts, Hypervisor, HypervisorError,
    Incoming, OnProgress, Outgoing, Sent, Settings, SuspendMode,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::sleep};
use uuid::Uuid;

/// How the next call of a kind goes wrong, for calls that are over at once. Clones are of the same host.
#[derive(Clone, Debug, Default)]
pub(super) struct Failing(Arc<Mutex<BTreeMap<Call, Failure>>>);

impl Failing {
    /// The next call of this kind goes wrong.
    pub(super) fn next(&self, call: Call, failure: Failure) {
        self.lock().insert(call, failure);
    }

    /// No call is to go wrong any more.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn take(&self, call: Call) -> Option<Failure> {
        self.lock().remove(&call)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Call, Failure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Time limit of a call, which is the simulated host's.
const LIMIT: Duration = Duration::from_mins(1);

/// Lets every call pass the seam, and some go wrong.
#[derive(Debug)]
pub(super) struct Reached<H> {
    pub(super) inner: H,
    pub(super) seam: Seam,
    pub(super) effects: Effects,
    pub(super) failing: Failing,
}

impl<H: Hypervisor> Reached<H> {
    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, HypervisorError>>,
    ) -> Result<T, HypervisorError> {
        let answer = self.seam.call(call).await;
        match &answer {
            Err(HypervisorError::Unreachable(_)) => self.effects.had("hypervisor-outage"),
            Err(HypervisorError::TimedOut { .. }) => self.effects.had("fail-call"),
            Err(HypervisorError::Refused { detail, .. }) if detail == INJECTED => {
                self.effects.had("fail-call");
            }
            Ok(_) | Err(_) => {}
        }
        answer
    }

    /// Makes a call that may be one to go wrong.
    async fn fallible(
        &self,
        kind: Call,
        name: &'static str,
        call: impl Future<Output = Result<(), HypervisorError>>,
    ) -> Result<(), HypervisorError> {
        let failing = async {
            let failure = self.failing.take(kind);
            match failure {
                Some(Failure::Refused) => {
                    return Err(HypervisorError::Refused { call: name, detail: INJECTED.to_owned() });
                }
                Some(Failure::Hangs) => {}
                Some(Failure::Untold) | None => call.await?,
            }
            if failure.is_some() {
                sleep(LIMIT).await;
                return Err(HypervisorError::TimedOut { call: name, limit: LIMIT });
            }
            Ok(())
        };
        self.call(failing).await
    }
}

/// What a refusal says that was injected.
const INJECTED: &str = "refusal injected";

#[async_trait]
impl<H: Hypervisor> Hypervisor for Reached<H> {
    async fn facts(&self) -> Result<HostFacts, HypervisorError> {
        self.call(self.inner.facts()).await
    }

    async fn free_memory_kib(&self) -> Result<u64, HypervisorError> {
        self.call(self.inner.free_memory_kib()).await
    }

    async fn domains(&self) -> Result<Vec<DomainInfo>, HypervisorError> {
        self.call(self.inner.domains()).await
    }

    async fn find(&self, uuid: Uuid) -> Result<Option<DomainInfo>, HypervisorError> {
        self.call(self.inner.find(uuid)).await
    }

    async fn usage(&self) -> Result<Vec<DomainUsage>, HypervisorError> {
        self.call(self.inner.usage()).await
    }

    async fn guest(&self, uuid: Uuid) -> Result<GuestFacts, HypervisorError> {
        self.call(self.inner.guest(uuid)).await
    }

    async fn create(&self, config: &DomainConfig) -> Result<DomId, HypervisorError> {
        self.call(self.inner.create(config)).await
    }

    async fn unpause(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.fallible(Call::Unpause, "unpause", self.inner.unpause(uuid)).await
    }

    async fn pause(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.fallible(Call::Pause, "pause", self.inner.pause(uuid)).await
    }

    async fn request_shutdown(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.call(self.inner.request_shutdown(uuid)).await
    }

    async fn settings(&self, uuid: Uuid) -> Result<Settings, HypervisorError> {
        self.call(self.inner.settings(uuid)).await
    }

    async fn change(&self, uuid: Uuid, change: &Change) -> Result<(), HypervisorError> {
        self.call(self.inner.change(uuid, change)).await
    }

    async fn suspend(
        &self,
        uuid: Uuid,
        mode: SuspendMode,
        stream: Outgoing,
        progress: OnProgress,
    ) -> Result<Sent, HypervisorError> {
        self.call(self.inner.suspend(uuid, mode, stream, progress)).await
    }

    async fn restore(&self, config: &DomainConfig, stream: Incoming) -> Result<DomId, HypervisorError> {
        self.call(self.inner.restore(config, stream)).await
    }

    async fn claim(&self, uuid: Uuid, token: u64) -> Result<(), HypervisorError> {
        self.fallible(Call::Claim, "claim", self.inner.claim(uuid, token)).await
    }

    async fn resume(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.fallible(Call::Resume, "resume", self.inner.resume(uuid)).await
    }

    async fn abort(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.call(self.inner.abort(uuid)).await
    }

    async fn destroy(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.fallible(Call::Destroy, "destroy", self.inner.destroy(uuid)).await
    }

    async fn console(&self, uuid: Uuid) -> Result<Vec<u8>, HypervisorError> {
        self.call(self.inner.console(uuid)).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes()
    }
}
