//! What a change of the pool does to the plans.

use super::{
    super::{HostView, Request, Snapshot},
    Case, Failed, Level, Protected, Reserve, TRIES, complete, estimate,
    facts::{GuestFacts, HostFacts},
    overcommit, settled,
};
use kubexen_runtime::Key;
use std::collections::BTreeMap;

/// Cases as they were before a change.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// By position, the earliest first; none of a change that is never undone.
    cases: Option<Vec<(usize, Case)>>,
}

impl Journal {
    fn to_undo() -> Self {
        Self { cases: Some(Vec::new()) }
    }

    /// Notes a case that is about to change.
    pub(super) fn note(&mut self, position: usize, case: &Case) {
        if let Some(cases) = &mut self.cases {
            cases.push((position, case.clone()));
        }
    }
}

/// What has to be put back when a change is undone.
struct Before {
    host: usize,
    view: HostView,
    tolerates: u32,
    failed: Option<Failed>,
}

impl Reserve {
    /// Takes over a later snapshot, and how these guests stand then: what each is, or that it is none that is kept for. The others
    /// are as they were.
    ///
    /// What differs is worked out one change after the other. All is computed anew if a host has come or gone, has begun or
    /// ceased to report, or is of another kind than before.
    pub fn update(
        &mut self,
        snapshot: &Snapshot,
        changed: impl IntoIterator<Item = (Key, Option<Protected>)>,
        wanted: u32,
    ) {
        let mut hosts: Vec<&HostView> = snapshot.hosts.iter().collect();
        hosts.sort_by(|one, other| one.name.cmp(&other.name));
        let different: Option<Vec<usize>> = (hosts.len() == self.facts.views.len())
            .then(|| {
                let pairs = hosts.iter().zip(&self.facts.views).enumerate();
                let different = pairs.filter(|(_, (now, before))| **now != *before);
                different.map(|(at, (now, before))| is_of_same_kind(now, before).then_some(at)).collect()
            })
            .flatten();
        let same_pool = wanted == self.wanted && overcommit(snapshot) == self.facts.overcommit;
        let Some(different) = different.filter(|_| same_pool) else {
            let mut guests: BTreeMap<Key, Protected> =
                self.facts.all().map(|(key, guest)| (key.clone(), self.protected(guest))).collect();
            for (key, now) in changed {
                match now {
                    Some(guest) => guests.insert(key, guest),
                    None => guests.remove(&key),
                };
            }
            *self = Self::new(snapshot, guests.into_values().collect(), wanted);
            return;
        };
        let mut journal = Journal::default();
        let mut came = Vec::new();
        for (key, now) in changed {
            let before = self.facts.number(&key).and_then(|number| self.facts.guest(number));
            let same = |now: &Protected, before: &GuestFacts| {
                now.request == *before.request && self.host_name(before) == Some(&now.host)
            };
            match (&now, before) {
                (Some(now), Some(before)) if same(now, before) => continue,
                (_, Some(_)) => _ = self.guest_gone(&key, &mut journal),
                (_, None) => {}
            }
            came.extend(now);
        }
        for position in different {
            self.host_changed(position, hosts[position].clone(), &mut journal);
        }
        for guest in came {
            self.guest_came(guest, &mut journal);
        }
        self.settle(&mut journal);
    }

    /// Whether a guest that is on a host may have so much more memory, in bytes, and so many more vCPUs of it, which the host has
    /// left, as far as others may need that: by the rules of a start. Changes nothing.
    pub fn may_grow(&mut self, host: &str, memory: u64, vcpus: u32, protected: bool) -> bool {
        let Some(host) = self.facts.views.iter().position(|view| view.name == host) else { return true };
        let (before, mut journal) = (self.before(host), Journal::to_undo());
        let mut view = before.view.clone();
        view.memory_used = view.memory_used.saturating_add(memory);
        view.vcpus_used = view.vcpus_used.saturating_add(vcpus);
        let may = if protected {
            self.host_changed(host, view, &mut journal);
            self.settle(&mut journal);
            self.tolerates >= self.wanted || before.tolerates < self.wanted
        } else {
            self.facts.set_view(host, view);
            self.is_no_worse(host, false, &mut journal)
        };
        self.undo(before, journal);
        may
    }

    fn protected(&self, guest: &GuestFacts) -> Protected {
        Protected {
            request: Request::clone(&guest.request),
            host: self.host_name(guest).cloned().unwrap_or_default(),
        }
    }

    /// Counts those of these guests that are protected and recover as homeless, if it does not know them: nobody runs them
    /// any more, and each must leave room for the others.
    pub(in super::super) fn await_recovery(&mut self, requests: &[Request]) {
        let (mut journal, mut any) = (Journal::default(), false);
        for request in requests.iter().filter(|request| request.protected && request.recovers) {
            let known = self.facts.number(&request.key).is_some();
            if let Some(settled) = settled(request, &HostView::default()).filter(|_| !known) {
                self.guest_came(Protected { request: settled, host: String::new() }, &mut journal);
                any = true;
            }
        }
        if any {
            self.settle(&mut journal);
        }
    }

    /// Counts a guest that starts on a host, unless that breaks a promise; says whether it was counted. The guest fits
    /// there.
    ///
    /// A protected guest may come if as many failures are tolerated with it as are wanted, or fewer are already. Any
    /// other guest may come if no plan has to leave one guest more than before. A protected guest that recovers may
    /// come if the others that are homeless now can still be placed: those that can be.
    pub(in super::super) fn take(&mut self, host: usize, request: &Request) -> bool {
        let settled = request.protected.then(|| settled(request, &self.facts.views[host])).flatten();
        match settled {
            None => self.take_unprotected(host, request),
            Some(settled) if request.recovers => self.recover(host, settled, false),
            Some(settled) => self.take_protected(host, settled),
        }
    }

    /// Counts a protected guest that recovers on a host, whatever that breaks.
    pub(in super::super) fn take_anyway(&mut self, host: usize, request: &Request) {
        if let Some(settled) = settled(request, &self.facts.views[host]) {
            self.recover(host, settled, true);
        }
    }

    fn take_unprotected(&mut self, host: usize, request: &Request) -> bool {
        let (before, mut journal) = (self.before(host), Journal::to_undo());
        self.facts.occupy(host, request);
        let kept = self.is_no_worse(host, request.anti_affinity.is_some(), &mut journal);
        if !kept {
            self.undo(before, journal);
        }
        kept
    }

    /// Mends the plans after there has become less room on a host; whether none leaves one guest more than before, and no estimate
    /// has failed that held. `meets` says whether a group may be present there that was not.
    fn is_no_worse(&mut self, host: usize, meets: bool, journal: &mut Journal) -> bool {
        let mut budget = TRIES;
        for position in self.cases.broken_at(&self.facts, host, meets) {
            let is_worse = self.cases.change(position, journal, |case| {
                let left_before = case.left.len();
                case.repair(&self.facts, host);
                if case.left.len() > left_before && left_before == 0 {
                    complete(case, &self.facts, &mut budget);
                }
                case.left.len() > left_before
            });
            if is_worse {
                return false;
            }
        }
        self.levels.iter().take(self.tolerates as usize + 1).all(|level| match level {
            Level::Each(_) => true,
            Level::Estimated(failures) => estimate::doubt(&self.facts, *failures).is_none(),
        })
    }

    fn take_protected(&mut self, host: usize, settled: Request) -> bool {
        let (before, mut journal) = (self.before(host), Journal::to_undo());
        let key = settled.key.clone();
        self.come_to(host, settled, &mut journal);
        self.settle(&mut journal);
        let kept = self.tolerates >= self.wanted || before.tolerates < self.wanted;
        if !kept {
            if let Some(number) = self.facts.number(&key) {
                self.facts.remove(number);
            }
            self.undo(before, journal);
        }
        kept
    }

    fn recover(&mut self, host: usize, settled: Request, insist: bool) -> bool {
        let (before, mut journal) = (self.before(host), Journal::to_undo());
        let left = self.cases[0].left.iter().filter_map(|guest| self.facts.guest(*guest));
        let left = left.filter(|guest| guest.request.key != settled.key).count();
        let key = settled.key.clone();
        let was = self.guest_gone(&key, &mut journal);
        self.come_to(host, settled, &mut journal);
        self.settle(&mut journal);
        let kept = insist || self.cases[0].left.len() <= left;
        if !kept {
            if let Some(number) = self.facts.number(&key) {
                self.facts.remove(number);
            }
            self.undo(before, journal);
            // It has its number again, which the plans that were put back know it by.
            if let Some((number, was)) = was {
                self.facts.put_back(number, was);
            }
        }
        kept
    }

    fn come_to(&mut self, host: usize, settled: Request, journal: &mut Journal) {
        let mut view = self.facts.views[host].clone();
        super::facts::occupy(&mut view, &settled);
        self.host_changed(host, view, journal);
        let name = self.facts.views[host].name.clone();
        self.guest_came(Protected { request: settled, host: name }, journal);
    }

    fn before(&self, host: usize) -> Before {
        let view = self.facts.views[host].clone();
        Before { host, view, tolerates: self.tolerates, failed: self.failed.clone() }
    }

    fn undo(&mut self, before: Before, journal: Journal) {
        let Before { host, view, tolerates, failed } = before;
        for (position, case) in journal.cases.into_iter().flatten().rev() {
            self.cases.put_back(position, case);
        }
        self.facts.set_view(host, view);
        (self.tolerates, self.failed) = (tolerates, failed);
    }

    fn host_name(&self, guest: &GuestFacts) -> Option<&String> {
        guest.at.map(|host| &self.facts.views[host].name)
    }

    fn host_changed(&mut self, host: usize, view: HostView, journal: &mut Journal) {
        let before = (self.facts.hosts[host].clone(), self.facts.views[host].groups.clone());
        self.facts.set_view(host, view);
        let now = (self.facts.hosts[host].clone(), self.facts.views[host].groups.clone());
        let (better, worse) = (is_better(&before, &now), is_better(&now, &before));
        if !better && !worse {
            return;
        }
        if worse {
            for position in self.cases.broken_at(&self.facts, host, has_group_of(&now, &before)) {
                self.cases.change(position, journal, |case| case.repair(&self.facts, host));
            }
        }
        if better {
            for position in 0..self.cases.len() {
                let case = &self.cases[position];
                if case.is_covered() || case.dead.contains(&host) {
                    continue;
                }
                let may_fill = case.may_fill(&self.facts, host);
                self.cases.doubt(position);
                if may_fill {
                    self.cases.change(position, journal, |case| case.fill(&self.facts, host));
                }
            }
        }
    }

    fn guest_came(&mut self, guest: Protected, journal: &mut Journal) {
        let number = self.facts.add(guest);
        for position in 0..self.cases.len() {
            if self.facts.is_homeless(number, &self.cases[position].dead) {
                self.cases.change(position, journal, |case| case.add(&self.facts, number));
            }
        }
    }

    fn guest_gone(&mut self, key: &Key, journal: &mut Journal) -> Option<(usize, GuestFacts)> {
        let number = self.facts.number(key)?;
        let concerned: Vec<bool> =
            self.cases.iter().map(|case| self.facts.is_homeless(number, &case.dead)).collect();
        let gone = self.facts.remove(number)?;
        for position in (0..self.cases.len()).filter(|position| concerned[*position]) {
            self.cases.change(position, journal, |case| {
                let freed = case.remove(number);
                case.searched = false;
                if let Some(host) = freed.filter(|host| case.may_fill(&self.facts, *host)) {
                    case.fill(&self.facts, host);
                }
            });
        }
        Some((number, gone))
    }
}

/// What plans heed of a host: what it is, and how many of each group are on it.
type Heeded = (HostFacts, BTreeMap<String, u32>);

/// Whether a host that was like `before` may take in some respect what it could not.
fn is_better(before: &Heeded, now: &Heeded) -> bool {
    now.0.free.memory > before.0.free.memory
        || now.0.free.vcpus > before.0.free.vcpus
        || (now.0.open && !before.0.open)
        || has_group_of(before, now)
}

/// Whether a group is on one and not on the other.
fn has_group_of((_, one): &Heeded, (_, other): &Heeded) -> bool {
    let absent = |group: &String| other.get(group).copied().unwrap_or(0) == 0;
    one.iter().any(|(group, members)| *members > 0 && absent(group))
}

/// Whether two views are of a host that differs at most in what is used of it and in whether guests may come.
fn is_of_same_kind(one: &HostView, other: &HostView) -> bool {
    let HostView {
        name,
        labels,
        maintenance: _,
        ready,
        schedulable: _,
        protects: _,
        memory_allocatable: _,
        memory_used: _,
        cpus,
        vcpus_used: _,
        cpu_features,
        locations,
        images,
        uplinks,
        kernels,
        boot_loaders,
        firmware,
        receives: _,
        on_migration_network: _,
        capabilities,
        groups: _,
    } = one;
    *name == other.name
        && *labels == other.labels
        && *ready == other.ready
        && *cpus == other.cpus
        && *cpu_features == other.cpu_features
        && locations.len() == other.locations.len()
        && locations
            .iter()
            .zip(&other.locations)
            .all(|((name, room), (other, other_room))| name == other && room.storage == other_room.storage)
        && *images == other.images
        && *uplinks == other.uplinks
        && *kernels == other.kernels
        && *boot_loaders == other.boot_loaders
        && *firmware == other.firmware
        && *capabilities == other.capabilities
}
