//! The store without etcd: a model of it in memory, with faults to inject, for simulation and tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::disk::{self, DiskUid};
use crate::drive::{self, Backend, RequestError};
use crate::names::{HostBoot, Owner, Token, VmUid};
use crate::protocol::{
    AbortVerb, CommitVerb, Compare, DiscardVerb, Outcome, ReleaseVerb, ResumeVerb, RunVerb, SaveVerb,
    StartVerb, Transaction, Write,
};
use crate::record::{Entry, Key};
use crate::store::{
    Abort, ClaimDisk, Commit, Discard, OwnershipStore, Release, Resume, RetireDisk, Run, Save, Start,
    StoreError,
};

/// An ownership store in memory. It executes the transactions that [`EtcdStore`](crate::EtcdStore) sends to etcd, and
/// counts revisions as etcd does: one counter for all keys, raised by each transaction that changes something.
///
/// A clone is another client of the same store. Each request yields to the executor once before it is executed, so that
/// concurrent calls interleave as they do over a network; in what order is the executor's choice alone.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    entries: BTreeMap<Key, Entry>,
    revision: u64,
    faults: Faults,
    under_way: Vec<Transaction>,
}

impl Default for State {
    fn default() -> Self {
        // An empty etcd is at revision 1 as well.
        Self { entries: BTreeMap::new(), revision: 1, faults: Faults::default(), under_way: Vec::new() }
    }
}

#[derive(Debug, Default)]
struct Faults {
    outage: bool,
    lost_requests: u32,
    delayed_requests: u32,
    lost_answers: u32,
    outage_after_write: bool,
}

/// A fault that was injected.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("outage injected")]
    Outage,
    #[error("request lost by injection")]
    RequestLost,
    #[error("request delayed by injection")]
    RequestDelayed,
    #[error("answer lost by injection")]
    AnswerLost,
}

impl MemoryStore {
    /// An empty store without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins or ends an outage: during it no request is executed, and none is answered.
    pub fn set_outage(&self, outage: bool) {
        self.lock().faults.outage = outage;
    }

    /// Executes each of the next `writes` transactions, and loses its answer.
    pub fn lose_answers(&self, writes: u32) {
        self.lock().faults.lost_answers = writes;
    }

    /// Loses each of the next `writes` transactions before it is executed. To the client it looks as a lost answer does.
    pub fn lose_requests(&self, writes: u32) {
        self.lock().faults.lost_requests = writes;
    }

    /// Keeps each of the next `writes` transactions under way until [`MemoryStore::deliver_delayed`]. To the client it
    /// looks as a lost answer does.
    pub fn delay_requests(&self, writes: u32) {
        self.lock().faults.delayed_requests = writes;
    }

    /// Executes the transactions that are under way, in the order in which they were sent; nobody is told.
    pub fn deliver_delayed(&self) {
        let mut state = self.lock();
        for transaction in std::mem::take(&mut state.under_way) {
            state.execute(&transaction);
        }
    }

    /// Executes the next transaction, loses its answer, and begins an outage with that.
    pub fn begin_outage_after_next_write(&self) {
        self.lock().faults.outage_after_write = true;
    }

    /// Ends every fault, those included that wait for a write. What is under way stays so.
    pub fn end_faults(&self) {
        self.lock().faults = Faults::default();
    }

    /// The owner of `vm` as the record stands, whatever fails; for those who judge from outside.
    #[must_use]
    pub fn owner_on_record(&self, vm: VmUid) -> Option<Owner> {
        let key = Key::Owner(vm);
        let state = self.lock();
        drive::owner_in(key, state.entries.get(&key)).ok().flatten()
    }

    /// The disks that there are records of, whatever fails; for those who judge from outside.
    #[must_use]
    pub fn disks_on_record(&self) -> Vec<DiskUid> {
        let disk = |key: &Key| match key {
            Key::Disk(disk) => Some(*disk),
            Key::Owner(_) => None,
        };
        self.lock().entries.keys().filter_map(disk).collect()
    }

    /// Writes `value` as the record of `vm` behind the protocol's back, as a faulty or hostile client could.
    pub fn overwrite(&self, vm: VmUid, value: &[u8]) {
        self.lock().execute(&Transaction {
            compares: Vec::new(),
            writes: vec![Write::Put { key: Key::Owner(vm), value: value.to_vec() }],
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No section under this lock can panic half-way through a change, so a poisoned state is a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn holds(&self, compare: &Compare) -> bool {
        let entry = self.entries.get(&compare.key());
        match compare {
            Compare::Absent(_) => entry.is_none(),
            Compare::Unchanged { key: _, mod_revision } => {
                entry.is_some_and(|entry| entry.mod_revision == *mod_revision)
            }
        }
    }

    fn execute(&mut self, transaction: &Transaction) -> Outcome {
        if !transaction.compares.iter().all(|compare| self.holds(compare)) {
            let compared = transaction.compares.iter().map(Compare::key);
            let found = compared.filter_map(|key| Some((key, self.entries.get(&key)?.clone())));
            return Outcome::Refused(found.collect());
        }
        let mod_revision = self.revision + 1;
        for write in &transaction.writes {
            match write {
                Write::Put { key, value } => {
                    self.entries.insert(*key, Entry { value: value.clone(), mod_revision });
                    self.revision = mod_revision;
                }
                Write::Delete(key) => {
                    if self.entries.remove(key).is_some() {
                        self.revision = mod_revision;
                    }
                }
            }
        }
        Outcome::Executed { revision: self.revision }
    }

    fn reachable(&self) -> Result<(), Fault> {
        if self.faults.outage { Err(Fault::Outage) } else { Ok(()) }
    }
}

/// Takes one from `count`, if there is one.
fn take(count: &mut u32) -> bool {
    let some = *count > 0;
    *count = count.saturating_sub(1);
    some
}

impl Backend for MemoryStore {
    fn read_attempts(&self) -> u32 {
        1
    }

    async fn read(&self, key: Key) -> Result<Option<Entry>, RequestError> {
        tokio::task::yield_now().await;
        let state = self.lock();
        state.reachable().map_err(|fault| RequestError::NoAnswer(fault.into()))?;
        Ok(state.entries.get(&key).cloned())
    }

    async fn execute(&self, transaction: &Transaction) -> Result<Outcome, RequestError> {
        tokio::task::yield_now().await;
        let mut state = self.lock();
        state.reachable().map_err(|fault| RequestError::NoAnswer(fault.into()))?;
        if take(&mut state.faults.lost_requests) {
            return Err(RequestError::NoAnswer(Fault::RequestLost.into()));
        }
        if take(&mut state.faults.delayed_requests) {
            state.under_way.push(transaction.clone());
            return Err(RequestError::NoAnswer(Fault::RequestDelayed.into()));
        }
        let outcome = state.execute(transaction);
        let answer_lost = take(&mut state.faults.lost_answers);
        if std::mem::take(&mut state.faults.outage_after_write) {
            state.faults.outage = true;
            return Err(RequestError::NoAnswer(Fault::Outage.into()));
        }
        if answer_lost { Err(RequestError::NoAnswer(Fault::AnswerLost.into())) } else { Ok(outcome) }
    }
}

#[async_trait]
impl OwnershipStore for MemoryStore {
    async fn owner(&self, vm: VmUid) -> Result<Option<Owner>, StoreError> {
        let key = Key::Owner(vm);
        drive::owner_in(key, drive::read(self, key).await?.as_ref())
    }

    async fn owners(&self) -> Result<BTreeMap<VmUid, Owner>, StoreError> {
        tokio::task::yield_now().await;
        let state = self.lock();
        state.reachable().map_err(|fault| StoreError::Unavailable { source: fault.into() })?;
        let records = state.entries.iter().filter_map(|(key, entry)| match key {
            Key::Owner(vm) => Some((*vm, entry)),
            Key::Disk(_) => None,
        });
        Ok(drive::readable_owners(records))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, host, vm};

    #[async_trait]
    impl conformance::Subject for MemoryStore {
        fn client(&self) -> Arc<dyn OwnershipStore> {
            Arc::new(self.clone())
        }

        async fn lose_answers(&self, writes: u32) {
            self.lose_answers(writes);
        }

        async fn overwrite(&self, vm: VmUid, value: &[u8]) {
            self.overwrite(vm, value);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_store_passes_the_conformance_script() {
        conformance::run(&MemoryStore::new()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_request_is_sent_again() {
        let (store, vm, me) = (MemoryStore::new(), vm("a"), host("xen-1", "boot-1"));
        store.lose_requests(2);
        let Start::Acquired(token) = store.start(vm, &me).await.unwrap() else { panic!("not acquired") };
        store.lose_requests(2);
        assert_eq!(store.release(vm, &me, token).await.unwrap(), Release::Released);
        assert_eq!(store.owner(vm).await.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_that_is_delayed_for_long_hands_over_only_what_was_not_aborted() {
        let (store, from, to) = (MemoryStore::new(), host("xen-1", "boot-1"), host("xen-2", "boot-1"));
        for (name, abort) in [("aborted", true), ("not aborted", false)] {
            let vm = vm(name);
            let Start::Acquired(token) = store.start(vm, &from).await.unwrap() else {
                panic!("not acquired")
            };
            store.delay_requests(u32::MAX);
            assert_eq!(store.commit(vm, &from, token, &to).await.unwrap_err().category(), "unknown");
            store.end_faults();
            assert!(store.owner(vm).await.unwrap().unwrap().is(&from));
            if abort {
                let Abort::Aborted(_) = store.abort(vm, &from, token).await.unwrap() else {
                    panic!("not mine")
                };
            }
            store.deliver_delayed();
            assert!(store.owner(vm).await.unwrap().unwrap().is(if abort { &from } else { &to }));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_before_anything_is_sent_is_known_to_change_nothing() {
        let (store, vm, me) = (MemoryStore::new(), vm("a"), host("xen-1", "boot-1"));
        store.set_outage(true);
        assert_eq!(store.start(vm, &me).await.unwrap_err().category(), "unavailable");
        assert_eq!(store.owner(vm).await.unwrap_err().category(), "unavailable");
        assert_eq!(store.owners().await.unwrap_err().category(), "unavailable");
        store.set_outage(false);
        assert_eq!(store.owner(vm).await.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_in_the_middle_leaves_the_result_unknown_and_asking_again_settles_it() {
        let (store, vm, me) = (MemoryStore::new(), vm("a"), host("xen-1", "boot-1"));
        store.begin_outage_after_next_write();
        assert_eq!(store.start(vm, &me).await.unwrap_err().category(), "unknown");
        store.set_outage(false);
        let Start::AlreadyMine(token) = store.start(vm, &me).await.unwrap() else { panic!("not mine") };

        store.begin_outage_after_next_write();
        assert_eq!(store.release(vm, &me, token).await.unwrap_err().category(), "unknown");
        store.set_outage(false);
        assert_eq!(store.release(vm, &me, token).await.unwrap(), Release::NotOwner(None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_that_ends_soon_is_waited_for_once_something_was_sent() {
        let (store, vm, me) = (MemoryStore::new(), vm("a"), host("xen-1", "boot-1"));
        store.begin_outage_after_next_write();
        let end = async {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            store.set_outage(false);
        };
        let (start, ()) = tokio::join!(store.start(vm, &me), end);
        assert!(matches!(start.unwrap(), Start::Acquired(_)));
    }
}
