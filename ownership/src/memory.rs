//! The store without etcd: a model of it in memory, with faults to inject, for simulation and tests.

mod model;
mod outside;
mod way;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub use self::model::Backup;
use self::model::{Fault, Faults, Lease, SHORTEST_LEASE, State, take};
pub use self::way::Way;
use crate::disk::DiskUid;
use crate::drive::{self, Backend, HostRecords, Leases, RequestError};
use crate::liveness::{Epoch, OldMember, Standing, Trust, Voter};
use crate::medium::Medium;
use crate::names::{LeaseId, VmUid};
use crate::protocol::{Outcome, Transaction, Write};
use crate::record::{Entry, Key};
use crate::store::StoreError;

/// An ownership store in memory. It executes the transactions that [`EtcdStore`](crate::EtcdStore) sends to etcd, and
/// counts revisions as etcd does: one counter for all keys, raised by each transaction that changes something.
///
/// A clone is another client of the same store, over the same connection; [`MemoryStore::client`] has a connection of its
/// own. Each request yields to the executor once before it is executed, so that concurrent calls interleave as they do over a
/// network; in what order is the executor's choice alone.
///
/// It keeps no history: this crate reads what is and watches nothing, so etcd's compaction makes no difference to it.
///
/// Leases run out by tokio's clock, and as etcd's do: not during an outage, in which there is no leader to end them, and a new
/// leader gives each its whole time again and an election timeout on top (etcd 3.6, `server/lease/lessor.go`, `Promote`).
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    connection: Arc<Mutex<Connection>>,
}

/// What a client has of its own.
#[derive(Debug, Default)]
struct Connection {
    cut: Cut,
    /// How long an answer is under way.
    latency: Duration,
    /// By how much the client's leases run faster than its clock, if not as all do.
    percent_fast: Option<i32>,
    /// Until when nothing gets through, after a transaction was delayed.
    silent_until: Option<Instant>,
    way: Option<Arc<dyn Way>>,
    trust: Trust,
}

/// What does not get through between a client and the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// Everything gets through.
    #[default]
    None,
    /// No request reaches the store.
    Requests,
    /// Requests are executed, and no answer comes back.
    Answers,
}

impl MemoryStore {
    /// An empty store without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A client of the same store with a connection of its own.
    #[must_use]
    pub fn client(&self) -> Self {
        Self { state: Arc::clone(&self.state), connection: Arc::default() }
    }

    /// This client and its clones know nothing of the store any more, as a process that has just begun.
    pub fn forget(&self) {
        self.connection().trust = Trust::default();
    }

    /// Cuts the connection of this client and its clones, or mends it.
    pub fn set_cut(&self, cut: Cut) {
        self.connection().cut = cut;
    }

    /// Lets each answer to this client and its clones be under way for so long.
    pub fn set_latency(&self, latency: Duration) {
        self.connection().latency = latency;
    }

    /// Lets all requests of this client and its clones pass this way from now on.
    pub fn set_way(&self, way: Arc<dyn Way>) {
        self.connection().way = Some(way);
    }

    /// Begins or ends an outage: during it no request is executed, none is answered, and no lease ends. A new leader ends it.
    /// One that waits for a write does not begin any more once it is to have ended; other faults go on.
    pub fn set_outage(&self, outage: bool) {
        let mut state = self.lock();
        if state.faults.outage && !outage {
            state.promote();
        }
        state.faults.outage = outage;
        state.faults.outage_after_write &= outage;
    }

    /// Another leader is elected at once: every lease begins anew. The one before does not know it for `deposed`, and acknowledges
    /// meanwhile that leases are renewed, which has no effect any more. An etcd that is cut off notices within two election timeouts.
    pub fn elect_leader(&self, deposed: Duration) {
        let mut state = self.lock();
        state.promote();
        state.deposed_until = Some(Instant::now() + deposed);
    }

    /// From now on there is no room, or there is again: leases are renewed and reads answered, and nothing is written and no lease
    /// granted, as with etcd's alarm `NOSPACE`.
    pub fn set_full(&self, full: bool) {
        self.lock().faults.full = full;
    }

    /// Lets the time of leases run this much faster than everybody else's, or slower, for leases that are granted or renewed from now
    /// on.
    pub fn set_clock(&self, percent_fast: i32) {
        self.lock().percent_fast = percent_fast;
    }

    /// As [`MemoryStore::set_clock`] for the leases of this client and its clones alone, whatever that says of all: by so much the
    /// client's own clock runs slower than the store's. None ends it.
    pub fn set_own_clock(&self, percent_fast: Option<i32>) {
        self.connection().percent_fast = percent_fast;
    }

    /// What the store holds, as a backup of it.
    #[must_use]
    pub fn backup(&self) -> Backup {
        self.lock().backup()
    }

    /// Replaces the store by one that is made of a backup: revisions go on from far beyond those that were, as
    /// `etcdutl snapshot restore --bump-revision` has it, the identity is another, and leases have their whole time again.
    pub fn restore(&self, backup: &Backup) {
        let mut state = self.lock();
        state.restore(backup);
        state.cluster += 1;
    }

    /// As [`MemoryStore::restore`], with the token and the addresses of the one that was: the identity is the same.
    pub fn restore_as_it_was_called(&self, backup: &Backup) {
        self.lock().restore(backup);
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
    /// looks as a lost answer does, and the client hears nothing of the store for `silence`: if that outlasts its attempts to learn
    /// what became of the transaction, it has gone on to something else when the transaction is executed.
    pub fn delay_requests(&self, writes: u32, silence: Duration) {
        let mut state = self.lock();
        (state.faults.delayed_requests, state.faults.silence) = (writes, silence);
    }

    /// Executes the transactions that are under way, in the order in which they were sent; nobody is told. During an outage they
    /// stay under way.
    pub fn deliver_delayed(&self) {
        let mut state = self.lock();
        if state.faults.outage {
            return;
        }
        for transaction in std::mem::take(&mut state.under_way) {
            if state.has_room().is_err() || state.names_no_lease(&transaction) {
                continue;
            }
            if matches!(state.execute(&transaction), Outcome::Executed { .. }) {
                state.had("late-transaction");
            }
        }
    }

    /// Executes the next transaction, loses its answer, and begins an outage with that.
    pub fn begin_outage_after_next_write(&self) {
        self.lock().faults.outage_after_write = true;
    }

    /// Ends every fault, those included that wait for a write. What is under way stays so.
    pub fn end_faults(&self) {
        self.set_outage(false);
        self.lock().faults = Faults::default();
        self.set_cut(Cut::None);
    }

    /// Writes `value` as the record of `vm` behind the protocol's back, as a faulty or hostile client could.
    pub fn overwrite(&self, vm: VmUid, value: &[u8]) {
        self.lock().execute(&Transaction {
            compares: Vec::new(),
            writes: vec![Write::Put { key: Key::Owner(vm), value: value.to_vec() }],
        });
    }

    /// Makes these the members of the store that have a vote.
    pub fn set_voters(&self, voters: Vec<Voter>) {
        self.lock().voters = voters;
    }

    /// Makes these the members of the store that are too old.
    pub fn set_old_members(&self, old: Vec<OldMember>) {
        self.lock().old_members = old;
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By how much the leases of this client run faster than its clock.
    fn percent_fast(&self, state: &State) -> i32 {
        self.connection().percent_fast.unwrap_or(state.percent_fast)
    }

    /// How the store stands for this client.
    fn standing_of(&self, state: &State) -> Standing {
        let entry = state.entries.get(&Key::Epoch);
        let mut connection = self.connection();
        let floor = connection.trust.revision();
        connection.trust.look((state.cluster, state.revision), entry, floor, Instant::now())
    }

    /// Refuses to tell or do anything decisive in a store that was restored and not confirmed.
    fn admit(&self, state: &State, mut keys: impl Iterator<Item = Key>) -> Result<(), RequestError> {
        let decisive = keys.any(|key| key.is_decisive());
        if decisive && !self.standing_of(state).is_current() {
            return Err(RequestError::Final(StoreError::Frozen));
        }
        Ok(())
    }

    async fn transact(
        &self,
        transaction: &Transaction,
        admit: impl FnOnce(&State) -> Result<(), RequestError>,
    ) -> Result<Outcome, RequestError> {
        self.request(|state| {
            admit(state)?;
            if take(&mut state.faults.lost_requests) {
                return Err(state.silent(Fault::RequestLost));
            }
            if take(&mut state.faults.delayed_requests) {
                state.under_way.push(transaction.clone());
                self.connection().silent_until = Some(Instant::now() + state.faults.silence);
                return Err(state.silent(Fault::RequestDelayed));
            }
            state.has_room()?;
            if state.names_no_lease(transaction) {
                let source = "requested lease not found".into();
                return Err(RequestError::Final(StoreError::Rejected { source }));
            }
            let outcome = state.execute(transaction);
            let answer_lost = take(&mut state.faults.lost_answers);
            if std::mem::take(&mut state.faults.outage_after_write) {
                state.faults.outage = true;
                return Err(state.silent(Fault::Outage));
            }
            if answer_lost { Err(state.silent(Fault::AnswerLost)) } else { Ok(outcome) }
        })
        .await?
    }

    /// The state, without what hung on leases that have ended by now.
    fn lock(&self) -> MutexGuard<'_, State> {
        // No section under this lock can panic half-way through a change, so a poisoned state is a whole one.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.end_leases(Instant::now());
        state
    }

    /// All records, as of one moment, whose key `subject` reads.
    async fn records<T>(&self, subject: impl Fn(&Key) -> Option<T>) -> Result<Vec<(T, Entry)>, StoreError> {
        let list = |state: &mut State| {
            let entries = state.entries.iter();
            entries.filter_map(|(key, entry)| Some((subject(key)?, entry.clone()))).collect()
        };
        drive::retry(self.read_attempts(), || self.request(list)).await
    }

    /// Executes a request, unless a fault keeps it from that, or its answer from coming back.
    async fn request<T>(&self, execute: impl FnOnce(&mut State) -> T) -> Result<T, RequestError> {
        let way = self.connection().way.clone();
        if let Some(way) = &way {
            way.there().await;
        }
        tokio::task::yield_now().await;
        let (cut, latency) = {
            let connection = self.connection();
            let silent = connection.silent_until.is_some_and(|until| Instant::now() < until);
            (if silent { Cut::Requests } else { connection.cut }, connection.latency)
        };
        let answer = {
            let mut state = self.lock();
            state.reachable()?;
            if cut == Cut::Requests {
                return Err(state.silent(Fault::Cut));
            }
            let answer = execute(&mut state);
            if cut == Cut::Answers {
                return Err(state.silent(Fault::Cut));
            }
            if !latency.is_zero() {
                state.had("slow-store");
            }
            answer
        };
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        if let Some(way) = &way {
            way.back().await;
        }
        Ok(answer)
    }
}

impl Backend for MemoryStore {
    fn read_attempts(&self) -> u32 {
        1
    }

    async fn read(&self, key: Key) -> Result<Option<Entry>, RequestError> {
        self.request(|state| {
            self.admit(state, std::iter::once(key.clone()))?;
            Ok(state.entries.get(&key).cloned())
        })
        .await?
    }

    async fn execute(&self, transaction: &Transaction) -> Result<Outcome, RequestError> {
        self.transact(transaction, |state| self.admit(state, transaction.writes.iter().map(Write::key))).await
    }
}

/// The store whether it is confirmed or not, for what is there to put it in order.
struct Unconfirmed<'a>(&'a MemoryStore);

impl Backend for Unconfirmed<'_> {
    fn read_attempts(&self) -> u32 {
        self.0.read_attempts()
    }

    async fn read(&self, key: Key) -> Result<Option<Entry>, RequestError> {
        self.0.request(|state| state.entries.get(&key).cloned()).await
    }

    async fn execute(&self, transaction: &Transaction) -> Result<Outcome, RequestError> {
        self.0.transact(transaction, |_| Ok(())).await
    }
}

impl Leases for MemoryStore {
    async fn grant(&self, seconds: i64) -> Result<(LeaseId, i64), RequestError> {
        self.request(|state| {
            state.has_room()?;
            let seconds = seconds.max(SHORTEST_LEASE);
            let ttl = Duration::from_secs(seconds.unsigned_abs());
            state.last_lease += 1;
            let lease = LeaseId(state.last_lease);
            let percent_fast = self.percent_fast(state);
            state.leases.insert(lease, Lease::new(ttl, percent_fast));
            Ok((lease, seconds))
        })
        .await?
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<bool, RequestError> {
        self.request(|state| {
            let Some(ttl) = state.leases.get(&lease).map(|lease| lease.ttl) else { return false };
            if state.deposed_until.is_some_and(|until| Instant::now() < until) {
                state.had("store-election");
                return true;
            }
            let percent_fast = self.percent_fast(state);
            state.leases.insert(lease, Lease::new(ttl, percent_fast));
            true
        })
        .await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), RequestError> {
        self.request(|state| state.end_lease(lease)).await
    }

    async fn hosts(&self) -> Result<HostRecords, RequestError> {
        self.request(|state| {
            let entries = state.entries.iter().filter(|(key, _)| match key {
                Key::Live(_) | Key::Fenced(_) => true,
                Key::Owner(_) | Key::Disk(_) | Key::Epoch => false,
            });
            let entries = entries.map(|(key, entry)| (key.clone(), entry.clone())).collect();
            HostRecords { cluster: state.cluster, revision: state.revision, entries }
        })
        .await
    }
}

impl Medium for MemoryStore {
    fn unconfirmed(&self) -> impl Backend {
        Unconfirmed(self)
    }

    async fn look(&self) -> Result<Standing, RequestError> {
        self.request(|state| self.standing_of(state)).await
    }

    fn recalls(&self, seen_as: Epoch) {
        self.connection().trust.recall(seen_as, Instant::now());
    }

    async fn owner_records(&self) -> Result<Vec<(VmUid, Entry)>, StoreError> {
        self.records(|key| match key {
            Key::Owner(vm) => Some(*vm),
            Key::Disk(_) | Key::Live(_) | Key::Fenced(_) | Key::Epoch => None,
        })
        .await
    }

    async fn disk_records(&self) -> Result<Vec<(DiskUid, Entry)>, StoreError> {
        self.records(|key| match key {
            Key::Disk(disk) => Some(*disk),
            Key::Owner(_) | Key::Live(_) | Key::Fenced(_) | Key::Epoch => None,
        })
        .await
    }

    async fn old_members(&self) -> Result<Vec<OldMember>, RequestError> {
        self.request(|state| state.old_members.clone()).await
    }

    async fn members(&self) -> Result<Vec<Voter>, RequestError> {
        self.request(|state| state.voters.clone()).await
    }
}

#[cfg(test)]
mod tests;
