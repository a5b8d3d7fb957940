//! The store in the pool etcd.

mod config;
pub(crate) mod link;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Compare as EtcdCompare, CompareOp, GetOptions, GetResponse, KeyValue, PutOptions, ResponseHeader, Txn,
    TxnOp, TxnOpResponse,
};

pub use self::config::{EtcdConfig, TlsFiles};
use self::link::{Link, revision};
use crate::disk::{self, DiskUid};
use crate::drive::{self, Backend, HostRecords, Leases, RequestError};
use crate::liveness::{self, Fence, FenceRecord, Join, Liveness, Roll};
use crate::names::{HostBoot, LeaseId, Owner, Token, VmUid};
use crate::protocol::{
    AbortVerb, CommitVerb, Compare, DiscardVerb, GuardVerb, Outcome, ReleaseVerb, ResumeVerb, RunVerb,
    SaveVerb, StartVerb, StealVerb, Transaction, Write,
};
use crate::record::{Entry, HOSTS, Key, OWNERS, host_key, vm_of};
use crate::store::{
    Abort, ClaimDisk, Commit, Discard, Guard, OwnershipStore, Release, Resume, RetireDisk, Run, Save, Start,
    Steal, StoreError,
};

/// How many records one answer holds at most: 1,000 of 150 bytes are far below the 4 MiB that the client accepts.
const PAGE: i64 = 1_000;

/// The ownership store in etcd.
///
/// etcd must be 3.4.42, 3.5.28, 3.6.9 or later: before that, a member that had been paused could answer a linearizable
/// read with an old state (etcd issue 20418).
///
/// It connects at the first call, and again after each failure, to the next endpoint. A call ends within a few times
/// the request limit: a read is tried once more than there are endpoints; a verb is a read and a transaction and, if
/// the answer of the transaction is lost, up to five more requests and 1.5 s of pauses between them.
pub struct EtcdStore {
    link: Link,
}

impl EtcdStore {
    /// A store that is reached as `config` says. Does no I/O.
    #[must_use]
    pub fn new(config: EtcdConfig) -> Self {
        Self { link: Link::new(config) }
    }

    /// At most [`PAGE`] records from the key `from` on, as of `revision`, or of now if that is 0.
    async fn page(&self, from: &[u8], revision: i64) -> Result<GetResponse, RequestError> {
        // `0` is the character after the `/` that ends the prefix.
        let end = format!("{}0", OWNERS.trim_end_matches('/'));
        let options = GetOptions::new().with_range(end).with_limit(PAGE).with_revision(revision);
        self.link.request(|mut etcd| async move { etcd.get(from, Some(options)).await }).await
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore").field("config", self.link.config()).finish_non_exhaustive()
    }
}

impl Backend for EtcdStore {
    fn read_attempts(&self) -> u32 {
        u32::try_from(self.link.config().endpoints.len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    async fn read(&self, key: Key) -> Result<Option<Entry>, RequestError> {
        let path = key.to_string();
        let answer = self.link.request(|mut etcd| async move { etcd.get(path, None).await }).await?;
        Ok(answer.kvs().first().map(entry))
    }

    async fn execute(&self, transaction: &Transaction) -> Result<Outcome, RequestError> {
        let compared: Vec<Key> = transaction.compares.iter().map(Compare::key).collect();
        let request = etcd_transaction(transaction);
        let answer = self.link.request(|mut etcd| async move { etcd.txn(request).await }).await?;
        if answer.succeeded() {
            return Ok(Outcome::Executed { revision: revision(answer.header())? });
        }
        let found = compared.into_iter().zip(answer.op_responses()).filter_map(|(key, found)| match found {
            TxnOpResponse::Get(found) => Some((key, entry(found.kvs().first()?))),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        });
        Ok(Outcome::Refused(found.collect()))
    }
}

impl Leases for EtcdStore {
    async fn grant(&self, seconds: i64) -> Result<(LeaseId, i64), RequestError> {
        let answer =
            self.link.request(|etcd| async move { etcd.lease_client().grant(seconds, None).await }).await?;
        Ok((LeaseId(answer.id()), answer.ttl()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<bool, RequestError> {
        self.link.request(|etcd| link::keep_alive(etcd, lease)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), RequestError> {
        self.link.request(|etcd| link::revoke(etcd, lease)).await
    }

    async fn hosts(&self) -> Result<HostRecords, RequestError> {
        let options = GetOptions::new().with_prefix();
        let answer =
            self.link.request(|mut etcd| async move { etcd.get(HOSTS, Some(options)).await }).await?;
        let mut entries = BTreeMap::new();
        for kv in answer.kvs() {
            match host_key(kv.key()) {
                Some(key) => drop(entries.insert(key, entry(kv))),
                None => tracing::error!(key = %kv.key().escape_ascii(), "not a record of a host"),
            }
        }
        let cluster = answer.header().map_or(0, ResponseHeader::cluster_id);
        Ok(HostRecords { cluster, revision: revision(answer.header())?, entries })
    }
}

#[async_trait]
impl OwnershipStore for EtcdStore {
    async fn owner(&self, vm: VmUid) -> Result<Option<Owner>, StoreError> {
        let key = Key::Owner(vm);
        drive::owner_in(&key, drive::read(self, key.clone()).await?.as_ref())
    }

    async fn owners(&self) -> Result<BTreeMap<VmUid, Owner>, StoreError> {
        let mut records = Vec::new();
        let mut from = OWNERS.as_bytes().to_vec();
        let mut revision = 0;
        loop {
            let page = drive::retry(self.read_attempts(), || self.page(&from, revision)).await?;
            if revision == 0 {
                // The first page is the newest state, read linearizably; the others show that same revision.
                revision = page.header().map_or(0, ResponseHeader::revision);
            }
            for kv in page.kvs() {
                match vm_of(kv.key()) {
                    Some(vm) => records.push((vm, entry(kv))),
                    None => tracing::error!(key = %kv.key().escape_ascii(), "not an ownership record"),
                }
            }
            match page.kvs().last() {
                Some(last) if page.more() => from = [last.key(), b"\0"].concat(),
                Some(_) | None => break,
            }
        }
        Ok(drive::readable_owners(records.iter().map(|(vm, entry)| (*vm, entry))))
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

    async fn claim_disk(&self, disk: DiskUid, vm: VmUid, token: Token) -> Result<ClaimDisk, StoreError> {
        disk::claim(self, disk, vm, token).await
    }

    async fn release_disk(&self, disk: DiskUid, vm: VmUid) -> Result<(), StoreError> {
        disk::release(self, disk, vm).await
    }

    async fn retire_disk(&self, disk: DiskUid) -> Result<RetireDisk, StoreError> {
        disk::retire(self, disk).await
    }

    async fn forget_disk(&self, disk: DiskUid) -> Result<(), StoreError> {
        disk::forget(self, disk).await
    }
}

#[async_trait]
impl Liveness for EtcdStore {
    async fn join(&self, me: &HostBoot, agent: &str, lease: Duration) -> Result<Join, StoreError> {
        liveness::join(self, me, agent, lease).await
    }

    async fn renew(&self, lease: LeaseId) -> Result<bool, StoreError> {
        drive::retry(1, || self.keep_alive(lease)).await
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

    async fn unfence(&self, boot: &HostBoot) -> Result<(), StoreError> {
        liveness::unfence(self, boot).await
    }

    async fn shortest_lease(&self) -> Result<Duration, StoreError> {
        liveness::shortest_lease(self).await
    }
}

fn entry(kv: &KeyValue) -> Entry {
    // A revision is never negative: etcd counts from 1 up.
    Entry { value: kv.value().to_vec(), mod_revision: u64::try_from(kv.mod_revision()).unwrap_or(0) }
}

/// `transaction` as etcd has it: if it is refused, the compared keys are read in the same step.
fn etcd_transaction(transaction: &Transaction) -> Txn {
    let compares: Vec<EtcdCompare> = transaction.compares.iter().map(etcd_compare).collect();
    let writes: Vec<TxnOp> = transaction.writes.iter().map(etcd_write).collect();
    let reads: Vec<TxnOp> =
        transaction.compares.iter().map(|compare| TxnOp::get(compare.key().to_string(), None)).collect();
    Txn::new().when(compares).and_then(writes).or_else(reads)
}

fn etcd_compare(compare: &Compare) -> EtcdCompare {
    match compare {
        Compare::Absent(key) => EtcdCompare::create_revision(key.to_string(), CompareOp::Equal, 0),
        Compare::Present(key) => EtcdCompare::create_revision(key.to_string(), CompareOp::Greater, 0),
        Compare::Unchanged { key, mod_revision } => {
            // No key has so great a revision, so the comparison fails, as it must.
            let revision = i64::try_from(*mod_revision).unwrap_or(i64::MAX);
            EtcdCompare::mod_revision(key.to_string(), CompareOp::Equal, revision)
        }
    }
}

fn etcd_write(write: &Write) -> TxnOp {
    match write {
        Write::Put { key, value } => TxnOp::put(key.to_string(), value.as_slice(), None),
        Write::PutLeased { key, value, lease } => {
            let options = PutOptions::new().with_lease(lease.0);
            TxnOp::put(key.to_string(), value.as_slice(), Some(options))
        }
        Write::Delete(key) => TxnOp::delete(key.to_string(), None),
    }
}
