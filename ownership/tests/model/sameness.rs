//! When two states of the pool count as one: when no event and no property can ever tell them apart.
//!
//! - Of times only the distance from now matters, and not that once it is longer than everything that is measured by it.
//! - Of revisions only the order matters, among those of one virtual machine.
//! - Of leases only matters which are the same, and of those that nobody names nothing.
//! - The order of messages that are under way does not matter.
//!
//! With that a run comes to an end by itself, however long paths may be.

use std::hash::{DefaultHasher, Hash, Hasher};

use kubexen_ownership::liveness::Roll;
use kubexen_ownership::protocol::{Compare, Write};
use kubexen_ownership::{Entry, Key, LeaseId, Owner, Phase};

use crate::clock::{LATE, TIMING, Tick};
use crate::state::{Call, Controller, Guest, Host, Parcel, State, VMS, uid};

/// The longest time that anybody measures, in ticks.
const LONGEST: Tick = 6;

const _: () = assert!(TIMING.deadline.as_secs() < 60 && TIMING.grace.as_secs() < 60 && LATE < 6);

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let names = Names::of(self);
        (self.faults, self.outage, self.wrongs, ahead(self.deposed + 1, self.now)).hash(hasher);
        for (key, entry) in self.store.entries() {
            names.entry(key, entry, hasher);
        }
        for host in &self.hosts {
            names.host(host, hasher);
        }
        for controller in &self.controllers {
            names.controller(controller, hasher);
        }
        for vm in 0..VMS {
            (names.revision(vm, self.disks[vm]), names.revision(vm, self.tokens[vm])).hash(hasher);
        }
        names.leases(hasher);
        let late = |late: &crate::state::LateWrite| {
            (late.vm, names.revision(late.vm, late.token), ahead(late.until, self.now))
        };
        sorted(self.late.iter().map(late)).hash(hasher);
        sorted(self.wire.iter().map(|parcel| names.parcel(parcel))).hash(hasher);
    }
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort_unstable();
    items
}

/// How long ago that was.
fn ago(tick: Tick, now: Tick) -> Tick {
    now.saturating_sub(tick).min(LONGEST)
}

/// How long it is until then.
fn ahead(tick: Tick, now: Tick) -> Tick {
    tick.saturating_sub(now)
}

/// What revisions and leases of a state are called.
struct Names<'a> {
    state: &'a State,
    /// The revisions of each virtual machine that occur, in order.
    revisions: [Vec<u64>; VMS],
    /// The leases that occur.
    leases: Vec<LeaseId>,
}

impl<'a> Names<'a> {
    fn of(state: &'a State) -> Self {
        let mut names = Self { state, revisions: std::array::from_fn(|_| vec![0]), leases: Vec::new() };
        for vm in 0..VMS {
            let revisions = &mut names.revisions[vm];
            revisions.extend([state.disks[vm], state.tokens[vm]]);
            if let Some(owner) = state.store.owner(uid(vm)) {
                revisions.push(owner.token.0);
                revisions.extend(owner.succeeds.map(|token| token.0));
            }
            for host in &state.hosts {
                revisions.extend(token_of(host.guests[vm]));
                revisions.extend(host.calls[vm].and_then(token_in));
            }
        }
        for late in &state.late {
            names.revisions[late.vm].push(late.token);
        }
        for host in &state.hosts {
            names.leases.extend(host.held.map(|held| held.lease));
            names.leases.extend(host.renewing.map(|(lease, _)| lease));
        }
        names.leases.extend(state.store.leased.values());
        for parcel in &state.wire {
            for compare in &parcel.transaction.compares {
                if let Compare::Unchanged { key: Key::Owner(vm), mod_revision } = compare {
                    names.revisions[number(*vm)].push(*mod_revision);
                }
            }
            for write in &parcel.transaction.writes {
                match write {
                    Write::Put { key: Key::Owner(vm), value } => {
                        names.revisions[number(*vm)].extend(owner(value).succeeds.map(|token| token.0));
                    }
                    Write::PutLeased { lease, .. } => names.leases.push(*lease),
                    Write::Put { .. } | Write::Delete(_) => {}
                }
            }
        }
        for revisions in &mut names.revisions {
            revisions.sort_unstable();
            revisions.dedup();
        }
        names
    }

    fn revision(&self, vm: usize, revision: u64) -> u64 {
        if self.state.exact {
            return revision;
        }
        self.revisions[vm].binary_search(&revision).map_or(u64::MAX, |place| place as u64)
    }

    fn lease(&self, lease: LeaseId) -> Option<usize> {
        self.leases.iter().position(|named| *named == lease)
    }

    /// Until when the leases last that anybody names.
    fn leases<H: Hasher>(&self, hasher: &mut H) {
        for (place, lease) in self.leases.iter().enumerate() {
            if self.lease(*lease) == Some(place) {
                let ends = self.state.store.leases.get(lease);
                ends.map(|ends| ahead(*ends, self.state.now)).hash(hasher);
            }
        }
    }

    fn owner<H: Hasher>(&self, vm: usize, owner: &Owner, hasher: &mut H) {
        let succeeds = owner.succeeds.map(|token| self.revision(vm, token.0));
        (&owner.host, &owner.boot_id, owner.phase == Phase::Running, owner.guarded, succeeds).hash(hasher);
    }

    fn entry<H: Hasher>(&self, key: &Key, entry: &Entry, hasher: &mut H) {
        key.hash(hasher);
        match key {
            Key::Owner(vm) => {
                let vm = number(*vm);
                self.revision(vm, entry.mod_revision).hash(hasher);
                self.owner(vm, self.state.store.owner(uid(vm)).unwrap(), hasher);
            }
            Key::Live(_) => {
                self.state.store.leased.get(key).and_then(|lease| self.lease(*lease)).hash(hasher);
            }
            Key::Fenced(_) => covers_unguarded(key, &entry.value).hash(hasher),
            Key::Disk(_) | Key::Epoch => entry.value.hash(hasher),
        }
    }

    fn host<H: Hasher>(&self, host: &Host, hasher: &mut H) {
        let now = self.state.now;
        (host.boot, host.down.map(|since| ago(since, now)), host.stalled, host.connected, host.guards)
            .hash(hasher);
        host.held.map(|held| (self.lease(held.lease), ago(held.sent, now), held.ended)).hash(hasher);
        host.renewing.map(|(lease, sent)| (self.lease(lease), ago(sent, now))).hash(hasher);
        for vm in 0..VMS {
            std::mem::discriminant(&host.guests[vm]).hash(hasher);
            token_of(host.guests[vm]).map(|token| self.revision(vm, token)).hash(hasher);
            if let Guest::Suspended(_, to) = host.guests[vm] {
                to.hash(hasher);
            }
            host.calls[vm].map(|call| std::mem::discriminant(&call)).hash(hasher);
            host.calls[vm].and_then(token_in).map(|token| self.revision(vm, token)).hash(hasher);
        }
    }

    fn controller<H: Hasher>(&self, controller: &Controller, hasher: &mut H) {
        let now = self.state.now;
        (!controller.gone.is_empty()).then(|| ago(controller.looked, now)).hash(hasher);
        for (boot, gone) in &controller.gone {
            (boot, ago(*gone, now)).hash(hasher);
        }
    }

    fn parcel(&self, parcel: &Parcel) -> u64 {
        let mut hasher = DefaultHasher::new();
        parcel.copies.hash(&mut hasher);
        for compare in &parcel.transaction.compares {
            (std::mem::discriminant(compare), compare.key()).hash(&mut hasher);
            match compare {
                Compare::Unchanged { key: Key::Owner(vm), mod_revision } => {
                    self.revision(number(*vm), *mod_revision).hash(&mut hasher);
                }
                Compare::Unchanged { .. } => self.state.store.holds(compare).hash(&mut hasher),
                Compare::Absent(_) | Compare::Present(_) => {}
            }
        }
        for write in &parcel.transaction.writes {
            (std::mem::discriminant(write), write.key()).hash(&mut hasher);
            match write {
                Write::Put { key: Key::Owner(vm), value } => {
                    self.owner(number(*vm), &owner(value), &mut hasher);
                }
                Write::Put { key, value } => covers_unguarded(key, value).hash(&mut hasher),
                Write::PutLeased { lease, .. } => self.lease(*lease).hash(&mut hasher),
                Write::Delete(_) => {}
            }
        }
        hasher.finish()
    }
}

fn number(vm: kubexen_ownership::VmUid) -> usize {
    (0..VMS).find(|number| uid(*number) == vm).unwrap()
}

fn owner(value: &[u8]) -> Owner {
    Entry { value: value.to_vec(), mod_revision: 1 }.owner().unwrap()
}

/// Whether a fence record proves that guests stopped which nobody guarded.
fn covers_unguarded(key: &Key, value: &[u8]) -> bool {
    let entry = Entry { value: value.to_vec(), mod_revision: 1 };
    Roll::of(0, 0, [(key, &entry)]).fenced.values().all(|record| record.proof.covers_unguarded())
}

fn token_of(guest: Guest) -> Option<u64> {
    match guest {
        Guest::Running(token)
        | Guest::Paused(token)
        | Guest::Suspended(token, _)
        | Guest::Releasing(token) => Some(token),
        Guest::Absent | Guest::Restored => None,
    }
}

fn token_in(call: Call) -> Option<u64> {
    match call {
        Call::Guard(token) | Call::Unguard(token) => Some(token),
        Call::Start | Call::Commit | Call::Abort | Call::Release => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap, VecDeque};

    use stateright::Model;

    use super::*;
    use crate::pool::Pool;

    /// States that are looked at in each run.
    const LOOKS: usize = 20_000;

    fn name(state: &State) -> u64 {
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        hasher.finish()
    }

    #[test]
    fn states_that_count_as_one_have_the_same_future() {
        for run in crate::RUNS {
            let pool = Pool { flaw: None, scope: run.scope, sights: std::sync::Arc::default() };
            let mut states = VecDeque::from(pool.init_states());
            let mut futures = HashMap::new();
            let mut twins = 0;
            for _ in 0..LOOKS {
                let Some(state) = states.pop_front() else { break };
                let next: Vec<State> = pool.next_steps(&state).into_iter().map(|(_, next)| next).collect();
                let future: BTreeSet<u64> = next.iter().map(name).collect();
                match futures.get(&name(&state)) {
                    Some((first, known)) => {
                        assert_eq!(known, &future, "{first:#?} is not {state:#?}");
                        twins += usize::from(*first != state);
                    }
                    None => {
                        states.extend(next);
                        futures.insert(name(&state), (state, future));
                    }
                }
            }
            assert!(twins > 0, "no two states of {} counted as one", run.name);
        }
    }
}
