//! What those see who judge a store from outside, whatever fails.

use std::collections::BTreeMap;

use super::MemoryStore;
use crate::disk::DiskUid;
use crate::drive;
use crate::names::{HostBoot, Owner, VmUid};
use crate::record::Key;

impl MemoryStore {
    /// How often each fault had its effect on a request, by the name that the simulation has for it; and how often a transaction
    /// was executed late.
    #[must_use]
    pub fn effects(&self) -> BTreeMap<&'static str, u64> {
        self.lock().effects.clone()
    }

    /// Boots that were fenced and live at one time, which cannot be.
    #[must_use]
    pub fn fenced_alive(&self) -> Vec<HostBoot> {
        self.lock().fenced_alive.clone()
    }

    /// Virtual machines that were saved and then said to run without having been resumed, which cannot be.
    #[must_use]
    pub fn started_afresh(&self) -> Vec<VmUid> {
        self.lock().started_afresh.clone()
    }

    /// The owner of `vm` as the record stands, whatever fails.
    #[must_use]
    pub fn owner_on_record(&self, vm: VmUid) -> Option<Owner> {
        let key = Key::Owner(vm);
        let state = self.lock();
        drive::owner_in(&key, state.entries.get(&key)).ok().flatten()
    }

    /// Whether the records count: the store was not restored from a copy, or that was confirmed.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.standing_of(&self.lock()).is_current()
    }

    /// The revision that the store is at: it grows with whatever is written or ends by itself, and not with a lease that is renewed.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// How many transactions changed nothing because what they compare was not so.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.lock().refusals
    }

    /// The disks that there are records of, whatever fails.
    #[must_use]
    pub fn disks_on_record(&self) -> Vec<DiskUid> {
        let disk = |key: &Key| match key {
            Key::Disk(disk) => Some(*disk),
            Key::Owner(_) | Key::Live(_) | Key::Fenced(_) | Key::Epoch => None,
        };
        self.lock().entries.keys().filter_map(disk).collect()
    }

    /// The boots that there are fence records of, whatever fails.
    #[must_use]
    pub fn fenced_on_record(&self) -> Vec<HostBoot> {
        let boot = |key: &Key| match key {
            Key::Fenced(boot) => Some(boot.clone()),
            Key::Owner(_) | Key::Disk(_) | Key::Live(_) | Key::Epoch => None,
        };
        self.lock().entries.keys().filter_map(boot).collect()
    }
}
