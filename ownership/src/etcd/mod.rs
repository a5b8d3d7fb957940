//! The store in the pool etcd.

mod config;
pub(crate) mod link;
mod version;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use etcd_client::{
    Compare as EtcdCompare, CompareOp, GetOptions, GetResponse, KeyValue, Member, PutOptions, ResponseHeader,
    Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use tokio::time::Instant;

pub use self::config::{EtcdConfig, TlsFiles};
use self::link::{Link, revision};
use crate::disk::DiskUid;
use crate::drive::{self, Backend, HostRecords, Leases, RequestError};
use crate::liveness::{Epoch, OldMember, Standing, Trust, Voter};
use crate::medium::Medium;
use crate::names::{LeaseId, VmUid};
use crate::protocol::{Compare, Outcome, Transaction, Write};
use crate::record::{DISKS, Entry, HOSTS, Key, OWNERS, disk_of, host_key, vm_of};
use crate::store::StoreError;

/// How many records one answer holds at most: 1,000 of 150 bytes are far below the 4 MiB that the client accepts.
const PAGE: i64 = 1_000;

/// The ownership store in etcd.
///
/// etcd must be 3.4.42, 3.5.28, 3.6.9 or later: before that, a member that had been paused could answer a linearizable
/// read with an old state (etcd issue 20418). `Liveness::old_members` tells members that are not.
///
/// It connects at the first call, and again after each failure, to the next endpoint. A call ends within a few times
/// the request limit: a read is tried once more than there are endpoints; a verb is a read and a transaction and, if
/// the answer of the transaction is lost, up to five more requests and 1.5 s of pauses between them.
pub struct EtcdStore {
    link: Link,
    /// What this process knows of the cluster that it works with.
    trust: Arc<Mutex<Trust>>,
}

impl EtcdStore {
    /// A store that is reached as `config` says. Does no I/O.
    #[must_use]
    pub fn new(config: EtcdConfig) -> Self {
        Self { link: Link::new(config), trust: Arc::default() }
    }

    /// The same store over a connection of its own, which is reached as `config` says. Both know the same of it: what one finds
    /// out of a restore, the other heeds.
    #[must_use]
    pub fn beside(&self, config: EtcdConfig) -> Self {
        Self { link: Link::new(config), trust: Arc::clone(&self.trust) }
    }

    /// All records below `folder`, as of one moment, by what `subject` reads from their keys.
    async fn records<T>(
        &self,
        folder: &'static str,
        subject: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<(T, Entry)>, StoreError> {
        let mut records = Vec::new();
        let mut from = folder.as_bytes().to_vec();
        let mut revision = 0;
        loop {
            let page = drive::retry(self.read_attempts(), || self.page(folder, &from, revision)).await?;
            if revision == 0 {
                // The first page is the newest state, read linearizably; the others show that same revision.
                revision = page.header().map_or(0, ResponseHeader::revision);
            }
            for kv in page.kvs() {
                match subject(kv.key()) {
                    Some(subject) => records.push((subject, entry(kv))),
                    None => tracing::error!(key = %kv.key().escape_ascii(), "not a record of {folder}"),
                }
            }
            match page.kvs().last() {
                Some(last) if page.more() => from = [last.key(), b"\0"].concat(),
                Some(_) | None => return Ok(records),
            }
        }
    }

    /// At most [`PAGE`] records of `folder` from the key `from` on, as of `revision`, or of now if that is 0.
    async fn page(&self, folder: &str, from: &[u8], revision: i64) -> Result<GetResponse, RequestError> {
        // `0` is the character after the `/` that ends the prefix.
        let end = format!("{}0", folder.trim_end_matches('/'));
        let options = GetOptions::new().with_range(end).with_limit(PAGE).with_revision(revision);
        self.link.request(|mut etcd| async move { etcd.get(from, Some(options)).await }).await
    }
}

impl EtcdStore {
    async fn read_raw(&self, key: &Key) -> Result<GetResponse, RequestError> {
        let path = key.to_string();
        self.link.request(|mut etcd| async move { etcd.get(path, None).await }).await
    }

    async fn execute_raw(&self, transaction: &Transaction) -> Result<TxnResponse, RequestError> {
        let request = etcd_transaction(transaction);
        self.link.request(|mut etcd| async move { etcd.txn(request).await }).await
    }

    fn trust(&self) -> MutexGuard<'_, Trust> {
        // No section under this lock can panic half-way through a change, so a poisoned state is a whole one.
        self.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses an answer that decides something and is of a store that was restored and not confirmed. `floor` is the newest
    /// revision that was known when the request was sent.
    async fn admit(&self, header: Option<&ResponseHeader>, floor: u64) -> Result<(), RequestError> {
        let (cluster, revision) = (cluster(header), revision(header)?);
        if self.trust().admits(cluster, revision, floor, Instant::now()) {
            return Ok(());
        }
        let standing = self.look().await?;
        if standing.is_current() && standing.cluster == cluster && revision >= floor {
            Ok(())
        } else {
            Err(RequestError::Final(StoreError::Frozen))
        }
    }
}

/// The store whether it is confirmed or not, for what is there to put it in order.
struct Unconfirmed<'a>(&'a EtcdStore);

impl Backend for Unconfirmed<'_> {
    fn read_attempts(&self) -> u32 {
        self.0.read_attempts()
    }

    async fn read(&self, key: Key) -> Result<Option<Entry>, RequestError> {
        Ok(self.0.read_raw(&key).await?.kvs().first().map(entry))
    }

    async fn execute(&self, transaction: &Transaction) -> Result<Outcome, RequestError> {
        outcome(transaction, &self.0.execute_raw(transaction).await?)
    }
}

fn cluster(header: Option<&ResponseHeader>) -> u64 {
    header.map_or(0, ResponseHeader::cluster_id)
}

/// What an answer to `transaction` says.
fn outcome(transaction: &Transaction, answer: &TxnResponse) -> Result<Outcome, RequestError> {
    if answer.succeeded() {
        return Ok(Outcome::Executed { revision: revision(answer.header())? });
    }
    let compared = transaction.compares.iter().map(Compare::key);
    let found = compared.zip(answer.op_responses()).filter_map(|(key, found)| match found {
        TxnOpResponse::Get(found) => Some((key, entry(found.kvs().first()?))),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    });
    Ok(Outcome::Refused(found.collect()))
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
        let floor = self.trust().revision();
        let answer = self.read_raw(&key).await?;
        if key.is_decisive() {
            self.admit(answer.header(), floor).await?;
        }
        Ok(answer.kvs().first().map(entry))
    }

    async fn execute(&self, transaction: &Transaction) -> Result<Outcome, RequestError> {
        let floor = self.trust().revision();
        let answer = self.execute_raw(transaction).await?;
        if transaction.writes.iter().any(|write| write.key().is_decisive()) {
            self.admit(answer.header(), floor).await?;
        }
        outcome(transaction, &answer)
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

impl Medium for EtcdStore {
    fn unconfirmed(&self) -> impl Backend {
        Unconfirmed(self)
    }

    async fn look(&self) -> Result<Standing, RequestError> {
        let floor = self.trust().revision();
        let answer = self.read_raw(&Key::Epoch).await?;
        let (cluster, revision) = (cluster(answer.header()), revision(answer.header())?);
        let entry = answer.kvs().first().map(entry);
        let (known, names_it) = {
            let fresh = Trust::default().look((cluster, revision), entry.as_ref(), 0, Instant::now());
            (self.trust().cluster(), fresh.is_current())
        };
        if known != Some(cluster) && !(known.is_none() && names_it) {
            self.link.expect_majority_of(cluster).await?;
        }
        Ok(self.trust().look((cluster, revision), entry.as_ref(), floor, Instant::now()))
    }

    fn recalls(&self, seen_as: Epoch) {
        self.trust().recall(seen_as, Instant::now());
    }

    async fn owner_records(&self) -> Result<Vec<(VmUid, Entry)>, StoreError> {
        self.records(OWNERS, vm_of).await
    }

    async fn disk_records(&self) -> Result<Vec<(DiskUid, Entry)>, StoreError> {
        self.records(DISKS, disk_of).await
    }

    async fn old_members(&self) -> Result<Vec<OldMember>, RequestError> {
        let answer = self.link.request(|mut etcd| async move { etcd.member_list().await }).await?;
        let asked = answer.members().iter().map(|member| async {
            let version = self.link.version_of(member.client_urls()).await?;
            let least = version::floor_of(&version)?;
            Some(OldMember { name: member.name().to_owned(), version, least })
        });
        Ok(futures::future::join_all(asked).await.into_iter().flatten().collect())
    }

    async fn members(&self) -> Result<Vec<Voter>, RequestError> {
        let answer = self.link.request(|mut etcd| async move { etcd.member_list().await }).await?;
        let voting = answer.members().iter().filter(|member| !member.is_learner());
        let voter = |member: &Member| {
            let urls = member.peer_urls().iter().chain(member.client_urls());
            Voter::new(member.name(), urls.map(String::as_str))
        };
        Ok(voting.map(voter).collect())
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
