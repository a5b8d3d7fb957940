//! The pool as the scheduler counts it: hosts with what is used of them, the guests that room is kept for, and the failure
//! reserve. Kept from one look to the next, of which each works out only what has changed.

use super::{
    Claim,
    reserve::{guest, wanted},
    snapshot::{self, Used},
    touched::Marks,
};
use crate::{
    placement::{
        HostView, Snapshot,
        reserve::{Protected, Reserve},
    },
    view::View,
};
use kubexen_runtime::Key;
use std::collections::{BTreeMap, BTreeSet};

/// The pool as the scheduler counts it.
#[derive(Debug, Default)]
pub(crate) struct Books {
    /// Whether it has looked at all.
    begun: bool,
    /// All hosts, with what is used of them and what was assigned; sorted by name.
    pub(crate) pool: Snapshot,
    /// What disks use of each host's locations.
    used: Used,
    /// What was assigned, by machine.
    claims: BTreeMap<Key, Claim>,
    /// The guests that are to be started elsewhere when their host dies; none of those that cannot be, because a disk is on their
    /// host alone or something that they refer to is not there.
    pub(crate) guests: BTreeMap<Key, Option<Protected>>,
    /// Guests that the reserve may count otherwise.
    stale: BTreeSet<Key>,
    /// The reserve; none if no failure is to be tolerated.
    pub(crate) reserve: Option<Reserve>,
}

impl Books {
    /// Takes over what the mirrors show now, and what was assigned.
    pub(super) fn refresh(&mut self, view: &View, claims: Vec<Claim>) {
        let mut marks = view.touched.take();
        let claims: BTreeMap<Key, Claim> =
            claims.into_iter().map(|claim| (claim.request.key.clone(), claim)).collect();
        self.mark_claims(&claims, &mut marks);
        self.claims = claims;
        if !self.begun || marks.all {
            self.begun = true;
            marks.hosts = view.hosts.keys().into_iter().map(|key| key.name).collect();
            marks.hosts.extend(self.pool.hosts.drain(..).map(|host| host.name));
            marks.volumes = marks.hosts.clone();
            marks.machines = view.machines.keys().into_iter().chain(self.guests.keys().cloned()).collect();
        }
        // The schema allows for one Pool, named default.
        self.pool.policy =
            view.pools.list().first().map(|pool| pool.spec.placement.clone()).unwrap_or_default();
        self.look_at_hosts(view, &marks);
        for key in marks.machines {
            self.look_at_guest(view, key);
        }
        self.count(wanted(view));
    }

    /// What the reserve was told of a guest that is being placed may not come to pass.
    pub(super) fn doubt(&mut self, guests: impl IntoIterator<Item = Key>) {
        self.stale.extend(guests);
    }

    fn mark_claims(&self, claims: &BTreeMap<Key, Claim>, marks: &mut Marks) {
        let news = claims.iter().filter(|(key, claim)| self.claims.get(*key) != Some(*claim));
        let gone = self.claims.iter().filter(|(key, claim)| claims.get(*key) != Some(*claim));
        for (key, claim) in news.chain(gone) {
            marks.hosts.insert(claim.host.clone());
            marks.machines.insert(key.clone());
        }
    }

    fn look_at_hosts(&mut self, view: &View, marks: &Marks) {
        for name in &marks.hosts {
            let host = view.hosts.get(&Key::cluster(name.as_str()));
            let host = host.map(|host| snapshot::with_guests(view, &host, self.claims.values()));
            let position = self.pool.hosts.binary_search_by(|other| other.name.cmp(name));
            match (position, host) {
                (Ok(position), Some(host)) => self.pool.hosts[position] = host,
                (Err(position), Some(host)) => self.pool.hosts.insert(position, host),
                (Ok(position), None) => _ = self.pool.hosts.remove(position),
                (Err(_), None) => {}
            }
        }
        for name in &marks.volumes {
            match view.hosts.get(&Key::cluster(name.as_str())) {
                Some(_) => self.used.insert(name.clone(), snapshot::used_on(view, name)),
                None => self.used.remove(name),
            };
        }
        if !marks.volumes.is_empty() || !marks.hosts.is_empty() {
            snapshot::fill_locations(view, &mut self.pool.hosts, &self.used, self.claims.values());
        }
    }

    fn look_at_guest(&mut self, view: &View, key: Key) {
        let host = |name: &str| -> Option<&HostView> {
            let hosts = &self.pool.hosts;
            hosts.binary_search_by(|host| host.name.as_str().cmp(name)).ok().map(|position| &hosts[position])
        };
        let machine = view.machines.get(&key);
        let now = machine.and_then(|machine| guest(view, &key, &machine, self.claims.get(&key), host));
        if self.guests.get(&key) == now.as_ref() {
            return;
        }
        self.stale.insert(key.clone());
        match now {
            Some(guest) => self.guests.insert(key, guest),
            None => self.guests.remove(&key),
        };
    }

    fn count(&mut self, wanted: u32) {
        if wanted == 0 {
            (self.reserve, self.stale) = (None, BTreeSet::new());
            return;
        }
        let stale = std::mem::take(&mut self.stale);
        match &mut self.reserve {
            Some(reserve) => {
                let how = |key: Key| {
                    let guest = self.guests.get(&key).cloned().flatten();
                    (key, guest)
                };
                reserve.update(&self.pool, stale.into_iter().map(how), wanted);
            }
            None => {
                let guests = self.guests.values().flatten().cloned().collect();
                self.reserve = Some(Reserve::new(&self.pool, guests, wanted));
            }
        }
    }
}
