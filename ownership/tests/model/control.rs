//! What controllers do: look, fence and steal.

use std::collections::{BTreeMap, BTreeSet};

use kubexen_ownership::liveness::{
    Evidence, FenceRecord, Judge, Proof, Roll, Tolerance, Verdict, fencing, unfencing,
};
use kubexen_ownership::protocol::StealVerb;
use kubexen_ownership::{HostBoot, HostName, Key, Owner};

use crate::clock::{BLIND, instant, timing};
use crate::event::Event;
use crate::flaw::Flaw;
use crate::pool::Pool;
use crate::state::{Controller, State, VMS, name, uid};

/// Every host may be silent at once: the brake is no part of the proof, and would only hide states.
const NO_BRAKE: Tolerance = Tolerance { share: 100, least: usize::MAX };

impl Pool {
    /// A controller reads the roll and the owners, and judges. `confirmed` is what a person says is off.
    pub fn look(&self, state: &mut State, controller: usize, confirmed: Option<&HostBoot>) -> Verdict {
        let mut judge = Judge::new(timing(self.flaw).grace);
        if state.now > state.controllers[controller].looked + BLIND && !self.has(Flaw::BlindRemembers) {
            state.controllers[controller] = Controller::default();
        }
        let memory = &state.controllers[controller];
        if let Some(first) = memory.gone.values().min() {
            // A judge remembers only what it saw itself, so it is shown that again.
            for tick in *first..=memory.looked {
                let owning = memory
                    .gone
                    .iter()
                    .filter(|(_, gone)| **gone <= tick)
                    .map(|(boot, _)| boot.clone())
                    .collect();
                judge.look(instant(tick), &Roll::default(), &evidence(&owning, &BTreeSet::new()));
            }
        }
        let owners = (0..VMS).filter_map(|vm| state.store.owner(uid(vm)));
        let owning = owners.map(boot_of).collect();
        let confirmed = confirmed.into_iter().cloned().collect();
        let verdict = judge.look(instant(state.now), &state.store.roll(), &evidence(&owning, &confirmed));
        let before = &memory.gone;
        let gone: BTreeMap<_, _> = verdict
            .silent
            .iter()
            .map(|silence| {
                let earlier = before.get(&silence.boot).filter(|tick| instant(**tick) == silence.gone);
                (silence.boot.clone(), earlier.copied().unwrap_or(state.now))
            })
            .collect();
        let memory = &mut state.controllers[controller];
        memory.looked = if gone.is_empty() { 0 } else { state.now };
        memory.gone = gone;
        verdict
    }

    /// A controller looks, and fences a boot if that is due.
    pub fn fence(&self, state: &mut State, controller: usize, boot: &HostBoot, confirmed: bool, lost: bool) {
        let verdict = self.look(state, controller, confirmed.then_some(boot));
        let due = verdict.silent.iter().find(|silence| silence.boot == *boot).and_then(|silence| silence.due);
        let Some(proof) = due else { return };
        let record = FenceRecord { by: String::new(), proof, revision: state.store.revision };
        let before = state.store.entry(&Key::Fenced(boot.clone()));
        if let Ok(transaction) = fencing(boot, &record, before) {
            self.send(state, transaction, lost);
        }
    }

    /// A controller gives a virtual machine of a dead host to another host.
    pub fn steal(&self, state: &mut State, vm: usize, to: usize, lost: bool) {
        let Some(owner) = state.store.owner(uid(vm)) else { return };
        let (from, token) = (boot_of(owner), owner.token);
        let verb = StealVerb { vm: uid(vm), from: &from, token, to: state.me(to) };
        // What became of it is read from the record by whoever asks next.
        drop(self.carry(state, &verb, false, lost));
    }

    /// A controller lets a boot in again.
    pub fn unfence(&self, state: &mut State, boot: &HostBoot, lost: bool) {
        if let Some(fenced) = state.store.entry(&Key::Fenced(boot.clone())) {
            let transaction = unfencing(boot, fenced);
            self.send(state, transaction, lost);
        }
    }

    /// Whether a controller would try to steal, by what it reads.
    fn may_steal(&self, state: &State, vm: usize) -> bool {
        let Some(owner) = state.store.owner(uid(vm)) else { return false };
        let from = boot_of(owner);
        let roll = state.store.roll();
        match roll.fenced.get(&from) {
            Some(record) => {
                owner.guarded || record.proof.covers_unguarded() || self.has(Flaw::StealUnguarded)
            }
            None => self.has(Flaw::StealWithoutFence) && owner.guarded && !roll.live.contains_key(&from),
        }
    }

    /// What controllers may do.
    pub fn judgements(&self, state: &State, faulty: bool, events: &mut Vec<Event>) {
        if state.outage {
            return;
        }
        let roll = state.store.roll();
        let owners: Vec<&Owner> = (0..VMS).filter_map(|vm| state.store.owner(uid(vm))).collect();
        let silent: Vec<(usize, usize)> = (0..self.scope.hosts)
            .flat_map(|host| (0..=state.hosts[host].boot).map(move |boot| (host, boot)))
            .filter(|(host, boot)| {
                let boot = name(*host, *boot);
                !roll.live.contains_key(boot) && owners.iter().any(|owner| owner.is(boot))
            })
            .collect();
        for controller in 0..self.scope.controllers {
            let memory = &state.controllers[controller];
            if (!silent.is_empty() || !memory.gone.is_empty())
                && (memory.looked != state.now || memory.gone.is_empty())
            {
                events.push(Event::Look(controller));
            }
            if faulty && !memory.gone.is_empty() {
                events.push(Event::NewTerm(controller));
            }
            for (host, boot) in silent.iter().copied() {
                let proof = roll.fenced.get(name(host, boot)).map(|record| record.proof);
                if proof.is_some_and(Proof::covers_unguarded) {
                    continue;
                }
                if memory.gone.contains_key(name(host, boot)) {
                    events.push(Event::Fence(controller, host, boot));
                    if faulty {
                        events.push(Event::FenceLost(controller, host, boot));
                    }
                }
                if boot == state.hosts[host].boot && state.is_long_down(host) {
                    events.push(Event::Confirm(controller, host));
                }
            }
        }
        for vm in (0..VMS).filter(|vm| self.may_steal(state, *vm)) {
            for to in (0..self.scope.hosts).filter(|to| roll.live.contains_key(state.me(*to))) {
                events.push(Event::Steal(vm, to));
                if faulty {
                    events.push(Event::StealLost(vm, to));
                }
            }
        }
        if !self.scope.unfence {
            return;
        }
        // As the controller has it: not while guests of the boot are to be started elsewhere.
        for host in 0..self.scope.hosts {
            for number in 0..=state.hosts[host].boot {
                let boot = name(host, number);
                let robbed = owners.iter().all(|owner| !owner.guarded || !owner.is(boot));
                if robbed && roll.fenced.contains_key(boot) {
                    events.push(Event::Unfence(host, number));
                    if faulty {
                        events.push(Event::UnfenceLost(host, number));
                    }
                }
            }
        }
    }
}

fn evidence<'a>(owning: &'a BTreeSet<HostBoot>, confirmed: &'a BTreeSet<HostBoot>) -> Evidence<'a> {
    static NO_HOSTS: BTreeSet<HostName> = BTreeSet::new();
    Evidence { hosts: &NO_HOSTS, owning, guarding: owning, confirmed, tolerance: NO_BRAKE }
}

fn boot_of(owner: &Owner) -> HostBoot {
    HostBoot { host: owner.host.clone(), boot_id: owner.boot_id.clone() }
}
