//! The pool etcd: keys, leases and revisions, and what is on its way there.

use std::collections::BTreeMap;

use kubexen_ownership::liveness::Roll;
use kubexen_ownership::protocol::{Compare, Outcome, Transaction, Write};
use kubexen_ownership::{Entry, HostBoot, Key, LeaseId, Owner, VmUid};

use crate::clock::Tick;

/// What etcd holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Store {
    pub revision: u64,
    entries: BTreeMap<Key, Entry>,
    /// What the entries of owners say.
    owners: BTreeMap<VmUid, Owner>,
    pub leased: BTreeMap<Key, LeaseId>,
    /// When each lease ends.
    pub leases: BTreeMap<LeaseId, Tick>,
    pub last_lease: i64,
}

impl Store {
    pub fn new() -> Self {
        Self { revision: 1, ..Self::default() }
    }

    pub fn owner(&self, vm: VmUid) -> Option<&Owner> {
        self.owners.get(&vm)
    }

    pub fn entry(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub fn entries(&self) -> &BTreeMap<Key, Entry> {
        &self.entries
    }

    pub fn remove(&mut self, key: &Key) {
        self.entries.remove(key);
        self.leased.remove(key);
        if let Key::Owner(vm) = key {
            self.owners.remove(vm);
        }
    }

    pub fn roll(&self) -> Roll {
        Roll::of(1, self.revision, &self.entries)
    }

    pub fn grant(&mut self, ends: Tick) -> LeaseId {
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        self.leases.insert(lease, ends);
        lease
    }

    /// Whether a transaction may be executed at some time, if its conditions are what they were when it was sent: revisions and
    /// leases never come back.
    pub fn may_execute(&self, transaction: &Transaction) -> bool {
        let is_past =
            |compare: &Compare| matches!(compare, Compare::Unchanged { .. }) && !self.holds(compare);
        !self.names_no_lease(transaction) && !transaction.compares.iter().any(is_past)
    }

    fn names_no_lease(&self, transaction: &Transaction) -> bool {
        transaction.writes.iter().any(|write| match write {
            Write::PutLeased { lease, .. } => !self.leases.contains_key(lease),
            Write::Put { .. } | Write::Delete(_) => false,
        })
    }

    pub fn holds(&self, compare: &Compare) -> bool {
        let entry = self.entries.get(&compare.key());
        match compare {
            Compare::Absent(_) => entry.is_none(),
            Compare::Present(_) => entry.is_some(),
            Compare::Unchanged { key: _, mod_revision } => {
                entry.is_some_and(|entry| entry.mod_revision == *mod_revision)
            }
        }
    }

    /// Executes a transaction; none if it names a lease that has ended. With `versions` a key counts its own writes.
    pub fn execute(&mut self, transaction: &Transaction, versions: bool) -> Option<Outcome> {
        if self.names_no_lease(transaction) {
            return None;
        }
        if !transaction.compares.iter().all(|compare| self.holds(compare)) {
            let compared = transaction.compares.iter().map(Compare::key);
            let found = compared.filter_map(|key| Some((key.clone(), self.entries.get(&key)?.clone())));
            return Some(Outcome::Refused(found.collect()));
        }
        self.revision += 1;
        let mut revision = self.revision;
        for write in &transaction.writes {
            match write {
                Write::Put { key, value } => {
                    revision = self.put(key, value, versions);
                    self.leased.remove(key);
                }
                Write::PutLeased { key, value, lease } => {
                    revision = self.put(key, value, versions);
                    self.leased.insert(key.clone(), *lease);
                }
                Write::Delete(key) => self.remove(key),
            }
        }
        Some(Outcome::Executed { revision })
    }

    fn put(&mut self, key: &Key, value: &[u8], versions: bool) -> u64 {
        let version = self.entries.get(key).map_or(0, |entry| entry.mod_revision) + 1;
        let mod_revision = if versions { version } else { self.revision };
        let entry = Entry { value: value.to_vec(), mod_revision };
        if let Key::Owner(vm) = key {
            self.owners.insert(*vm, entry.owner().unwrap());
        }
        self.entries.insert(key.clone(), entry);
        mod_revision
    }

    /// Ends the leases whose time is over, and tells whose they were.
    pub fn end_leases(&mut self, now: Tick) -> Vec<HostBoot> {
        let ended: Vec<LeaseId> =
            self.leases.iter().filter(|(_, ends)| **ends <= now).map(|(lease, _)| *lease).collect();
        let mut gone = Vec::new();
        for lease in ended {
            self.leases.remove(&lease);
            let keys: Vec<Key> =
                self.leased.iter().filter(|(_, of)| **of == lease).map(|(key, _)| key.clone()).collect();
            self.revision += u64::from(!keys.is_empty());
            for key in keys {
                self.remove(&key);
                if let Key::Live(boot) = key {
                    gone.push(boot);
                }
            }
        }
        gone
    }
}
