//! [`OwnershipStore`] and [`Liveness`] over any medium that keeps records: the verbs are the same for etcd and for its model in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;

use crate::disk::{self, DiskUid};
use crate::drive::{self, Backend, Leases, RequestError};
use crate::liveness::{
    self, Epoch, Fence, FenceRecord, Join, Liveness, OldMember, Roll, Standing, Unfence, Voter,
};
use crate::names::{HostBoot, LeaseId, Owner, Token, VmUid};
use crate::protocol::{
    AbortVerb, CommitVerb, DiscardVerb, GuardVerb, ReclaimVerb, ReleaseVerb, ResumeVerb, RunVerb, SaveVerb,
    StartVerb, StealVerb,
};
use crate::record::{Entry, Key};
use crate::store::{
    Abort, ClaimDisk, Commit, Discard, ForgetDisk, Guard, OwnershipStore, Reclaim, Release, Resume,
    RetireDisk, Run, Save, Start, Steal, StoreError,
};

/// What keeps the records of a pool.
pub(crate) trait Medium: Leases + Send + fmt::Debug {
    /// The same, whether it is confirmed or not, for what is there to put it in order.
    fn unconfirmed(&self) -> impl Backend + Send;

    /// How it stands, asked once.
    fn look(&self) -> impl Future<Output = Result<Standing, RequestError>> + Send;

    /// Another process of this boot has worked with a store that it saw as this.
    fn recalls(&self, seen_as: Epoch);

    /// The records of all virtual machines, as of one moment.
    fn owner_records(&self) -> impl Future<Output = Result<Vec<(VmUid, Entry)>, StoreError>> + Send;

    /// The records of all disks, as of one moment.
    fn disk_records(&self) -> impl Future<Output = Result<Vec<(DiskUid, Entry)>, StoreError>> + Send;

    /// The members that are too old, asked once.
    fn old_members(&self) -> impl Future<Output = Result<Vec<OldMember>, RequestError>> + Send;

    /// The members that vote, asked once.
    fn members(&self) -> impl Future<Output = Result<Vec<Voter>, RequestError>> + Send;
}

#[async_trait]
impl<M: Medium> OwnershipStore for M {
    async fn owner(&self, vm: VmUid) -> Result<Option<Owner>, StoreError> {
        let key = Key::Owner(vm);
        drive::owner_in(&key, drive::read(self, key.clone()).await?.as_ref())
    }

    async fn owners(&self) -> Result<BTreeMap<VmUid, Owner>, StoreError> {
        let records = self.owner_records().await?;
        Ok(drive::readable_owners(records.iter().map(|(vm, entry)| (*vm, entry))))
    }

    async fn disks(&self) -> Result<BTreeMap<DiskUid, VmUid>, StoreError> {
        let records = self.disk_records().await?;
        Ok(disk::holders(records.iter().map(|(disk, entry)| (*disk, entry))))
    }

    async fn start(&self, vm: VmUid, me: &HostBoot) -> Result<Start, StoreError> {
        drive::run(self, &StartVerb { vm, me }).await
    }

    async fn release(&self, vm: VmUid, me: &HostBoot, token: Token) -> Result<Release, StoreError> {
        drive::run(self, &ReleaseVerb { vm, me, token }).await
    }

    async fn commit(
        &self,
        vm: VmUid,
        from: &HostBoot,
        token: Token,
        to: &HostBoot,
    ) -> Result<Commit, StoreError> {
        drive::run(self, &CommitVerb { vm, from, token, to }).await
    }

    async fn abort(&self, vm: VmUid, me: &HostBoot, token: Token) -> Result<Abort, StoreError> {
        drive::run(self, &AbortVerb { vm, me, token }).await
    }

    async fn save(&self, vm: VmUid, me: &HostBoot, token: Token, disk: DiskUid) -> Result<Save, StoreError> {
        drive::run(self, &SaveVerb { vm, me, token, disk }).await
    }

    async fn resume(&self, vm: VmUid, me: &HostBoot, disk: DiskUid) -> Result<Resume, StoreError> {
        drive::run(self, &ResumeVerb { vm, me, disk }).await
    }

    async fn run(&self, vm: VmUid, me: &HostBoot, token: Token) -> Result<Run, StoreError> {
        drive::run(self, &RunVerb { vm, me, token }).await
    }

    async fn discard(&self, vm: VmUid, disk: DiskUid) -> Result<Discard, StoreError> {
        drive::run(self, &DiscardVerb { vm, disk }).await
    }

    async fn guard(
        &self,
        vm: VmUid,
        me: &HostBoot,
        token: Token,
        guarded: bool,
    ) -> Result<Guard, StoreError> {
        drive::run(self, &GuardVerb { vm, me, token, guarded }).await
    }

    async fn steal(
        &self,
        vm: VmUid,
        from: &HostBoot,
        token: Token,
        to: &HostBoot,
    ) -> Result<Steal, StoreError> {
        drive::run(self, &StealVerb { vm, from, token, to }).await
    }

    async fn reclaim(
        &self,
        vm: VmUid,
        me: &HostBoot,
        runs: bool,
        guarded: bool,
        seen: &Standing,
    ) -> Result<Reclaim, StoreError> {
        drive::run(&self.unconfirmed(), &ReclaimVerb { vm, me, runs, guarded, seen }).await
    }

    async fn claim_disk(&self, disk: DiskUid, vm: VmUid, token: Token) -> Result<ClaimDisk, StoreError> {
        disk::claim(self, disk, vm, token).await
    }

    async fn release_disk(&self, disk: DiskUid, vm: VmUid) -> Result<(), StoreError> {
        disk::release(self, disk, vm).await
    }

    async fn retire_disk(&self, disk: DiskUid) -> Result<RetireDisk, StoreError> {
        disk::retire(self, disk).await
    }

    async fn forget_disk(&self, disk: DiskUid) -> Result<ForgetDisk, StoreError> {
        disk::forget(self, disk).await
    }
}

#[async_trait]
impl<M: Medium> Liveness for M {
    async fn join(&self, me: &HostBoot, agent: &str, lease: Duration) -> Result<Join, StoreError> {
        liveness::join(self, me, agent, lease).await
    }

    async fn rejoin(
        &self,
        me: &HostBoot,
        agent: &str,
        lease: Duration,
        seen: &Standing,
    ) -> Result<Option<LeaseId>, StoreError> {
        liveness::rejoin(self, &self.unconfirmed(), me, agent, lease, seen).await
    }

    async fn renew(&self, lease: LeaseId) -> Result<bool, StoreError> {
        drive::retry(1, || self.keep_alive(lease)).await
    }

    async fn is_live_by(&self, me: &HostBoot, lease: LeaseId) -> Result<bool, StoreError> {
        liveness::is_live_by(self, me, lease).await
    }

    async fn leave(&self, lease: LeaseId) -> Result<(), StoreError> {
        drive::retry(self.read_attempts(), || self.revoke(lease)).await
    }

    async fn roll(&self) -> Result<Roll, StoreError> {
        liveness::roll(self).await
    }

    async fn fence(&self, boot: &HostBoot, record: &FenceRecord) -> Result<Fence, StoreError> {
        liveness::fence(self, boot, record).await
    }

    async fn unfence(&self, boot: &HostBoot, record: &FenceRecord) -> Result<Unfence, StoreError> {
        liveness::unfence(self, boot, record).await
    }

    async fn shortest_lease(&self) -> Result<Duration, StoreError> {
        liveness::shortest_lease(self).await
    }

    fn recall(&self, seen_as: Epoch) {
        self.recalls(seen_as);
    }

    async fn standing(&self) -> Result<Standing, StoreError> {
        drive::retry(self.read_attempts(), || self.look()).await
    }

    async fn begin_epoch(&self, epoch: Epoch, seen: &Standing) -> Result<bool, StoreError> {
        liveness::begin_epoch(self, epoch, seen).await
    }

    async fn old_members(&self) -> Result<Vec<OldMember>, StoreError> {
        drive::retry(self.read_attempts(), || Medium::old_members(self)).await
    }

    async fn voters(&self) -> Result<Vec<Voter>, StoreError> {
        drive::retry(self.read_attempts(), || self.members()).await
    }
}
