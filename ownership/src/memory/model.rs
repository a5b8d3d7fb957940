//! What the store in memory holds: keys, leases and revisions, as etcd has them, and the faults that are to come.

use std::collections::BTreeMap;
use std::time::Duration;

use kubexen_mutants::Mutant;
use tokio::time::Instant;

use crate::drive::RequestError;
use crate::liveness::{OldMember, Voter};
use crate::names::{HostBoot, LeaseId, Phase, VmUid};
use crate::protocol::{Compare, Outcome, Transaction, Write};
use crate::record::{Entry, Key, decode};
use crate::store::StoreError;

/// The election timeout of the modelled etcd, which is etcd's default.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// The shortest lease that such an etcd grants, in seconds.
pub(super) const SHORTEST_LEASE: i64 = 2;

#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub(super) ttl: Duration,
    pub(super) ends: Instant,
    /// By how much it runs faster than its holder's clock.
    pub(super) percent_fast: i32,
}

impl Lease {
    /// A lease of this time, which begins now.
    pub(super) fn new(ttl: Duration, percent_fast: i32) -> Self {
        Self { ttl, ends: Instant::now() + lasts(ttl, percent_fast), percent_fast }
    }
}

/// How long a lease of this time lasts on a clock that runs slower by so much.
fn lasts(ttl: Duration, percent_fast: i32) -> Duration {
    ttl * 100 / 100_u32.saturating_add_signed(percent_fast)
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) entries: BTreeMap<Key, Entry>,
    pub(super) leases: BTreeMap<LeaseId, Lease>,
    /// The keys that hang on leases.
    pub(super) leased: BTreeMap<Key, LeaseId>,
    pub(super) last_lease: i64,
    pub(super) revision: u64,
    /// Transactions whose comparisons failed.
    pub(super) refusals: u64,
    pub(super) cluster: u64,
    pub(super) faults: Faults,
    /// By how much leases run faster than the clocks of others.
    pub(super) percent_fast: i32,
    /// Until when a leader that was deposed acknowledges what it cannot do any more.
    pub(super) deposed_until: Option<Instant>,
    /// Boots that were fenced and live at one time.
    pub(super) fenced_alive: Vec<HostBoot>,
    /// Virtual machines that were saved, and had a host that runs them without having been resumed.
    pub(super) started_afresh: Vec<VmUid>,
    pub(super) under_way: Vec<Transaction>,
    /// How often each fault had its effect.
    pub(super) effects: BTreeMap<&'static str, u64>,
    pub(super) voters: Vec<Voter>,
    pub(super) old_members: Vec<OldMember>,
}

impl Default for State {
    fn default() -> Self {
        // An empty etcd is at revision 1 as well.
        Self {
            entries: BTreeMap::new(),
            leases: BTreeMap::new(),
            leased: BTreeMap::new(),
            last_lease: 0,
            revision: 1,
            refusals: 0,
            cluster: 1,
            faults: Faults::default(),
            percent_fast: 0,
            deposed_until: None,
            fenced_alive: Vec::new(),
            started_afresh: Vec::new(),
            under_way: Vec::new(),
            effects: BTreeMap::new(),
            voters: Vec::new(),
            old_members: Vec::new(),
        }
    }
}

/// What a store held at one moment.
#[derive(Clone, Debug)]
pub struct Backup {
    entries: BTreeMap<Key, Entry>,
    leases: BTreeMap<LeaseId, Lease>,
    leased: BTreeMap<Key, LeaseId>,
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) outage: bool,
    pub(super) full: bool,
    pub(super) lost_requests: u32,
    pub(super) delayed_requests: u32,
    /// How long a client hears nothing whose transaction was delayed.
    pub(super) silence: Duration,
    pub(super) lost_answers: u32,
    pub(super) outage_after_write: bool,
}

/// A fault that was injected.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("outage injected")]
    Outage,
    #[error("connection cut by injection")]
    Cut,
    #[error("request lost by injection")]
    RequestLost,
    #[error("request delayed by injection")]
    RequestDelayed,
    #[error("answer lost by injection")]
    AnswerLost,
}

impl Fault {
    /// What the simulation calls it.
    fn name(&self) -> &'static str {
        match self {
            Self::Outage => "store-outage",
            Self::Cut => "cut-from-store",
            Self::RequestLost | Self::AnswerLost => "store-loses",
            Self::RequestDelayed => "store-delays",
        }
    }
}

impl State {
    /// A fault has its effect.
    pub(super) fn had(&mut self, effect: &'static str) {
        *self.effects.entry(effect).or_default() += 1;
    }

    /// What a client gets to see of a fault: nothing.
    pub(super) fn silent(&mut self, fault: Fault) -> RequestError {
        self.had(fault.name());
        RequestError::NoAnswer(fault.into())
    }

    fn holds(&self, compare: &Compare) -> bool {
        let entry = self.entries.get(&compare.key());
        match compare {
            Compare::Absent(_) => entry.is_none(),
            Compare::Present(_) => entry.is_some(),
            Compare::Unchanged { key: _, mod_revision } => {
                entry.is_some_and(|entry| entry.mod_revision == *mod_revision)
            }
        }
    }

    pub(super) fn execute(&mut self, transaction: &Transaction) -> Outcome {
        if !transaction.compares.iter().all(|compare| self.holds(compare)) {
            self.refusals += 1;
            let compared = transaction.compares.iter().map(Compare::key);
            let found = compared.filter_map(|key| Some((key.clone(), self.entries.get(&key)?.clone())));
            return Outcome::Refused(found.collect());
        }
        let mod_revision = self.revision + 1;
        for write in &transaction.writes {
            match write {
                Write::Put { key, value } => {
                    if let Key::Fenced(boot) = key
                        && self.entries.contains_key(&Key::Live(boot.clone()))
                    {
                        self.fenced_alive.push(boot.clone());
                    }
                    let entry = Entry { value: value.clone(), mod_revision };
                    if let Key::Owner(vm) = key
                        && self.is_started_afresh(transaction, key, &entry)
                    {
                        self.started_afresh.push(*vm);
                    }
                    self.entries.insert(key.clone(), entry);
                    self.leased.remove(key);
                    self.revision = mod_revision;
                }
                Write::PutLeased { key, value, lease } => {
                    if let Key::Live(boot) = key
                        && self.entries.contains_key(&Key::Fenced(boot.clone()))
                    {
                        self.fenced_alive.push(boot.clone());
                    }
                    self.entries.insert(key.clone(), Entry { value: value.clone(), mod_revision });
                    self.leased.insert(key.clone(), *lease);
                    self.revision = mod_revision;
                }
                Write::Delete(key) => {
                    if self.entries.remove(key).is_some() {
                        self.leased.remove(key);
                        self.revision = mod_revision;
                    }
                }
            }
        }
        Outcome::Executed { revision: self.revision }
    }

    /// Whether what is saved is said to run. Only in a store that was restored may it do so already.
    fn is_started_afresh(&self, transaction: &Transaction, key: &Key, after: &Entry) -> bool {
        let phase = |entry: &Entry| decode(entry).map(|owner| owner.phase).ok();
        let saved = self.entries.get(key).and_then(phase).is_some_and(|phase| match phase {
            Phase::Saved(_) => true,
            Phase::Running | Phase::Resuming(_) => false,
        });
        saved
            && phase(after) == Some(Phase::Running)
            && !transaction.compares.iter().any(|compare| compare.key() == Key::Epoch)
    }

    /// Whether the store would turn the transaction away, because a lease that it names has ended.
    pub(super) fn names_no_lease(&self, transaction: &Transaction) -> bool {
        transaction.writes.iter().any(|write| match write {
            Write::PutLeased { lease, .. } => !self.leases.contains_key(lease),
            Write::Put { .. } | Write::Delete(_) => false,
        })
    }

    pub(super) fn end_leases(&mut self, now: Instant) {
        if self.faults.outage {
            return;
        }
        let ended: Vec<LeaseId> =
            self.leases.iter().filter(|(_, lease)| lease.ends <= now).map(|(id, _)| *id).collect();
        ended.into_iter().for_each(|lease| self.end_lease(lease));
    }

    pub(super) fn end_lease(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
        let keys: Vec<Key> =
            self.leased.iter().filter(|(_, of)| **of == lease).map(|(key, _)| key.clone()).collect();
        self.revision += u64::from(!keys.is_empty());
        for key in keys {
            self.leased.remove(&key);
            self.entries.remove(&key);
            if let (true, Key::Live(boot)) = (Mutant::OwnerOnLease.is_active(), &key) {
                self.entries.retain(|_, entry| !decode(entry).is_ok_and(|owner| owner.is(boot)));
            }
        }
    }

    pub(super) fn promote(&mut self) {
        let now = Instant::now();
        for lease in self.leases.values_mut() {
            lease.ends = now + lasts(lease.ttl + ELECTION_TIMEOUT, lease.percent_fast);
        }
    }

    pub(super) fn backup(&self) -> Backup {
        Backup { entries: self.entries.clone(), leases: self.leases.clone(), leased: self.leased.clone() }
    }

    pub(super) fn restore(&mut self, backup: &Backup) {
        self.entries.clone_from(&backup.entries);
        self.leases.clone_from(&backup.leases);
        self.leased.clone_from(&backup.leased);
        self.revision += 1_000_000_000;
        self.under_way.clear();
        self.promote();
    }

    /// What etcd answers to what it would have to write down.
    pub(super) fn has_room(&mut self) -> Result<(), RequestError> {
        if !self.faults.full {
            return Ok(());
        }
        self.had("store-full");
        let source = "etcdserver: mvcc: database space exceeded".into();
        Err(RequestError::Final(StoreError::Rejected { source }))
    }

    pub(super) fn reachable(&mut self) -> Result<(), RequestError> {
        if self.faults.outage { Err(self.silent(Fault::Outage)) } else { Ok(()) }
    }
}

/// Takes one from `count`, if there is one.
pub(super) fn take(count: &mut u32) -> bool {
    let some = *count > 0;
    *count = count.saturating_sub(1);
    some
}
