//! What a host has heard of the pool's store, with the judge beside it.

use super::{judge::Judge, silence::shorter};
use async_trait::async_trait;
use kubexen_ownership::{
    HostBoot, LeaseId, MemoryStore, StoreError, VmUid,
    liveness::{
        Epoch, Fence, FenceRecord, Join, Liveness, OldMember, Roll, Standing, Timing, Unfence, Voter,
    },
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use uuid::Uuid;

/// Tells the judge when a request was sent whose answer made the host live for longer.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) host: String,
    pub(super) inner: MemoryStore,
    pub(super) judge: Arc<Judge>,
    /// The times that the host goes by.
    pub(super) timing: Mutex<Timing>,
}

impl Heard {
    /// An agent that starts has the lease of the one before it, if it finds one.
    pub(super) fn new(host: &str, inner: MemoryStore, judge: Arc<Judge>) -> Self {
        let timing = Mutex::new(judge.timing_of(host));
        Self { host: host.to_owned(), inner, judge, timing }
    }

    /// A lease is asked for: a shorter one counts from now on.
    fn asks_for(&self, lease: Duration) -> Timing {
        let asked = if lease == Timing::FAST.lease { Timing::FAST } else { Timing::DEFAULT };
        {
            let timing = &mut *self.timing.lock().unwrap_or_else(PoisonError::into_inner);
            *timing = shorter(*timing, asked);
        }
        self.judge.asks_for(&self.host, asked);
        asked
    }

    fn joined(&self, timing: Timing, sent: Instant) {
        *self.timing.lock().unwrap_or_else(PoisonError::into_inner) = timing;
        self.heard(sent);
    }

    fn heard(&self, sent: Instant) {
        let timing = *self.timing.lock().unwrap_or_else(PoisonError::into_inner);
        let is_guarded = |guest: Uuid| {
            let owner = self.inner.owner_on_record(VmUid(guest));
            owner.is_some_and(|owner| owner.guarded && owner.host.as_str() == self.host)
        };
        self.judge.heard(&self.host, sent, timing, is_guarded);
    }
}

#[async_trait]
impl Liveness for Heard {
    async fn join(&self, me: &HostBoot, agent: &str, lease: Duration) -> Result<Join, StoreError> {
        let sent = Instant::now();
        let asked = self.asks_for(lease);
        let answer = self.inner.join(me, agent, lease).await?;
        if let Join::Joined(_) = answer {
            self.joined(asked, sent);
        }
        Ok(answer)
    }

    async fn renew(&self, lease: LeaseId) -> Result<bool, StoreError> {
        let sent = Instant::now();
        let renewed = self.inner.renew(lease).await?;
        if renewed {
            self.heard(sent);
        }
        Ok(renewed)
    }

    async fn is_live_by(&self, me: &HostBoot, lease: LeaseId) -> Result<bool, StoreError> {
        self.inner.is_live_by(me, lease).await
    }

    async fn rejoin(
        &self,
        me: &HostBoot,
        agent: &str,
        lease: Duration,
        seen: &Standing,
    ) -> Result<Option<LeaseId>, StoreError> {
        let sent = Instant::now();
        let asked = self.asks_for(lease);
        let answer = self.inner.rejoin(me, agent, lease, seen).await?;
        if answer.is_some() {
            self.joined(asked, sent);
        }
        Ok(answer)
    }

    async fn leave(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.leave(lease).await
    }

    async fn roll(&self) -> Result<Roll, StoreError> {
        self.inner.roll().await
    }

    async fn fence(&self, boot: &HostBoot, record: &FenceRecord) -> Result<Fence, StoreError> {
        self.inner.fence(boot, record).await
    }

    async fn unfence(&self, boot: &HostBoot, record: &FenceRecord) -> Result<Unfence, StoreError> {
        self.inner.unfence(boot, record).await
    }

    fn recall(&self, seen_as: Epoch) {
        self.inner.recall(seen_as);
    }

    async fn standing(&self) -> Result<Standing, StoreError> {
        self.inner.standing().await
    }

    async fn begin_epoch(&self, epoch: Epoch, seen: &Standing) -> Result<bool, StoreError> {
        self.inner.begin_epoch(epoch, seen).await
    }

    async fn old_members(&self) -> Result<Vec<OldMember>, StoreError> {
        self.inner.old_members().await
    }

    async fn voters(&self) -> Result<Vec<Voter>, StoreError> {
        self.inner.voters().await
    }

    async fn shortest_lease(&self) -> Result<Duration, StoreError> {
        self.inner.shortest_lease().await
    }
}
