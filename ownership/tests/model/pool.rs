//! The model: which events may happen in a state, and what is promised of every state.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use kubexen_ownership::Key;
use kubexen_ownership::liveness::Rung;
use kubexen_ownership::protocol::{Decision, Outcome, Transaction, Verb, Write};
use stateright::{Model, Property};

use crate::clock::{DEPOSED, LATE, timing};
use crate::event::Event;
use crate::flaw::Flaw;
use crate::state::{Call, Controller, Guest, HOSTS, Host, Parcel, State, VMS, Wrongs, name, uid};
use crate::store::Store;

/// Which events a run explores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// How many faults may happen: crashes, stalls, cuts, outages, new leaders, slow, late and lost messages.
    pub faults: u8,
    /// Whether time passes and hosts fail, fall silent, and are fenced and robbed.
    pub failover: bool,
    /// Whether guests are handed over.
    pub migration: bool,
    /// Whether guests are started and released beyond what the rest needs.
    pub lifecycle: bool,
    /// Whether promises are taken back, and made again.
    pub unguard: bool,
    /// Whether fenced boots are let in again.
    pub unfence: bool,
    /// How many controllers take themselves for the leader.
    pub controllers: usize,
    /// How many hosts there are.
    pub hosts: usize,
    /// Whether faults befall the first host alone, and there is the first virtual machine alone.
    pub focus: bool,
    /// Whether the first host has yet to join, and no guest runs.
    pub blank: bool,
}

/// What a run may come across.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sight {
    FailsOver,
    GoesOn,
    Commits,
    Aborts,
    Releases,
    TakesBack,
    Rejoins,
    HearsTheDeposed,
    LateCopy,
}

/// The pool, with a fault in its protocol or none.
#[derive(Debug)]
pub struct Pool {
    pub flaw: Option<Flaw>,
    pub scope: Scope,
    /// What was seen so far. It is no part of the state, in which it would tell apart what is the same.
    pub sights: Arc<Mutex<BTreeSet<Sight>>>,
}

impl Pool {
    pub fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    pub fn see(&self, sight: Sight) {
        self.sights.lock().unwrap().insert(sight);
    }

    /// Whether a host may take a virtual machine and run it now: it may not without a lease that it has just renewed.
    pub fn may_run(&self, state: &State, host: usize) -> bool {
        state.hosts[host].rung(timing(self.flaw), state.now) == Rung::Healthy
    }

    /// Executes a transaction in the store, and watches tokens grow.
    pub fn execute(&self, state: &mut State, transaction: &Transaction) -> Option<Outcome> {
        let outcome = Arc::make_mut(&mut state.store).execute(transaction, self.has(Flaw::TokenOfTheKey));
        if let Some(Outcome::Executed { revision }) = outcome {
            for vm in 0..VMS {
                let puts =
                    |write: &Write| matches!(write, Write::Put { key, .. } if *key == Key::Owner(uid(vm)));
                if transaction.writes.iter().any(puts) {
                    state.wrongs.token_shrank |= revision <= state.tokens[vm];
                    state.tokens[vm] = state.tokens[vm].max(revision);
                }
            }
        }
        outcome
    }

    /// Sends a transaction: it is executed and answered, or, if `lost`, is under way for as long as it likes.
    pub fn send(&self, state: &mut State, mut transaction: Transaction, lost: bool) -> Option<Outcome> {
        if let Some(flaw) = self.flaw {
            flaw.spoil(&mut transaction);
        }
        if lost {
            state.faults += 1;
            state.wire.push(Parcel { transaction, copies: 2 });
            return None;
        }
        self.execute(state, &transaction)
    }

    /// Carries a verb through the store as the crate does: read, decide, execute.
    ///
    /// Ok with the answer; Err if there is none yet, with whether a transaction is under way because of it.
    pub fn carry<V: Verb>(
        &self,
        state: &mut State,
        verb: &V,
        unresolved: bool,
        lost: bool,
    ) -> Result<V::Answer, bool> {
        match verb.decide(state.store.owner(verb.vm()), unresolved) {
            Decision::Answer(_) if lost => Err(false),
            Decision::Answer(answer) => Ok(answer),
            Decision::Execute(transaction) => match self.send(state, transaction, lost) {
                None => Err(lost),
                Some(Outcome::Executed { revision }) => Ok(verb.executed(revision)),
                Some(Outcome::Refused(found)) => verb.refused(&found).ok_or(false),
            },
        }
    }

    /// What follows by itself from any event: guests that execute write, and what is over is forgotten.
    fn settle(&self, state: &mut State) {
        for host in &state.hosts {
            for vm in 0..VMS {
                if let Guest::Running(token) = host.guests[vm] {
                    state.wrongs.stale_write |= token < state.disks[vm];
                    state.disks[vm] = state.disks[vm].max(token);
                }
            }
        }
        for host in &mut state.hosts {
            host.guards &= host.guests[0] != Guest::Absent;
        }
        let now = state.now;
        state.late.retain(|write| now <= write.until);
        let comes_back = self.has(Flaw::TokenOfTheKey);
        let store = &state.store;
        state
            .wire
            .retain(|parcel| parcel.copies > 0 && (comes_back || store.may_execute(&parcel.transaction)));
    }

    /// All hosts up; each has joined, but perhaps the first.
    fn pool(&self) -> State {
        let mut state = State {
            now: 0,
            faults: 0,
            outage: false,
            deposed: 0,
            store: Arc::new(Store::new()),
            wire: Vec::new(),
            hosts: std::array::from_fn(|_| Host {
                boot: 0,
                down: None,
                stalled: false,
                connected: true,
                held: None,
                renewing: None,
                guards: false,
                guests: [Guest::Absent; VMS],
                calls: [None; VMS],
            }),
            controllers: std::array::from_fn(|_| Controller::default()),
            disks: [0; VMS],
            late: Vec::new(),
            tokens: [0; VMS],
            wrongs: Wrongs::default(),
            exact: self.has(Flaw::TokenOfTheKey),
        };
        for host in usize::from(self.scope.blank)..self.scope.hosts {
            self.join(&mut state, host, false);
        }
        if !self.scope.blank {
            self.call(&mut state, 0, 0, Call::Start, false, false);
            self.call(&mut state, 0, 0, Call::Guard(0), false, false);
            if !self.scope.focus {
                self.call(&mut state, 1, 1, Call::Start, false, false);
            }
        }
        self.settle(&mut state);
        state
    }
}

impl Model for Pool {
    type State = State;
    type Action = Event;

    fn init_states(&self) -> Vec<State> {
        vec![self.pool()]
    }

    fn actions(&self, state: &State, events: &mut Vec<Event>) {
        let faulty = state.faults < self.scope.faults;
        if self.scope.failover {
            events.push(Event::Tick);
            self.weather(state, faulty, events);
            self.judgements(state, faulty, events);
        }
        for host in 0..self.scope.hosts {
            self.host_events(state, host, faulty, events);
        }
        events.extend((0..state.wire.len()).map(Event::Deliver));
        events.extend((0..state.late.len()).map(Event::LateWrite));
    }

    fn next_state(&self, last: &State, event: Event) -> Option<State> {
        let mut state = last.clone();
        match event {
            Event::Tick => self.tick(&mut state),
            Event::Ladder(host, quarters) => self.climb(&mut state, host, quarters),
            Event::Crash(host) => {
                state.faults += 1;
                self.reset(&mut state, host);
            }
            Event::Boot(host) => {
                let host = &mut state.hosts[host];
                (host.boot, host.down) = (host.boot + 1, None);
            }
            Event::Stall(host) => {
                state.faults += 1;
                state.hosts[host].stalled = true;
            }
            Event::Unstall(host) => state.hosts[host].stalled = false,
            Event::Cut(host) => {
                state.faults += 1;
                state.hosts[host].connected = false;
            }
            Event::Mend(host) => state.hosts[host].connected = true,
            Event::Outage => {
                state.faults += 1;
                state.outage = true;
            }
            Event::OutageEnds => {
                state.outage = false;
                self.promote(&mut state);
            }
            Event::StoreLeader => {
                state.faults += 1;
                state.deposed = state.now + DEPOSED;
                self.promote(&mut state);
            }
            Event::Join(host) => self.join(&mut state, host, false),
            Event::JoinLost(host) => self.join(&mut state, host, true),
            Event::Renew(host) => self.renew(&mut state, host, false),
            Event::RenewSlow(host) => {
                state.faults += 1;
                self.renew(&mut state, host, true);
            }
            Event::RenewDeposed(host) => self.renew_deposed(&mut state, host),
            Event::Answer(host) => self.answer(&mut state, host),
            Event::Call(host, vm, call) => self.call(&mut state, host, vm, call, false, false),
            Event::CallLost(host, vm, call) => self.call(&mut state, host, vm, call, false, true),
            Event::Resolve(host, vm) => {
                let call = state.hosts[host].calls[vm]?;
                self.call(&mut state, host, vm, call, true, false);
            }
            Event::Deliver(parcel) => {
                let transaction = state.wire[parcel].transaction.clone();
                state.wire[parcel].copies -= 1;
                if let Some(Outcome::Executed { .. }) = self.execute(&mut state, &transaction) {
                    self.see(Sight::LateCopy);
                }
            }
            Event::Depart(from, vm, to) => self.depart(&mut state, from, vm, to),
            Event::Unpause(host, vm) => self.unpause(&mut state, host, vm),
            Event::Drop(host, vm) => state.hosts[host].guests[vm] = Guest::Absent,
            Event::LateWrite(write) => {
                let late = state.late.remove(write);
                state.wrongs.stale_write |= late.token < state.disks[late.vm];
                state.disks[late.vm] = state.disks[late.vm].max(late.token);
            }
            Event::Look(controller) => drop(self.look(&mut state, controller, None)),
            Event::NewTerm(controller) => {
                state.faults += 1;
                state.controllers[controller] = Controller::default();
            }
            Event::Fence(controller, host, boot) => {
                self.fence(&mut state, controller, name(host, boot), false, false);
            }
            Event::FenceLost(controller, host, boot) => {
                self.fence(&mut state, controller, name(host, boot), false, true);
            }
            Event::Confirm(controller, host) => {
                let boot = state.me(host);
                self.fence(&mut state, controller, boot, true, false);
            }
            Event::Steal(vm, to) => self.steal(&mut state, vm, to, false),
            Event::StealLost(vm, to) => self.steal(&mut state, vm, to, true),
            Event::Unfence(host, boot) => self.unfence(&mut state, name(host, boot), false),
            Event::UnfenceLost(host, boot) => self.unfence(&mut state, name(host, boot), true),
        }
        self.settle(&mut state);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I1", |_, state: &State| (0..VMS).all(|vm| state.running(vm) <= 1)),
            Property::always("I2", |_, state: &State| !state.wrongs.stale_write),
            Property::always("I3", |_, state: &State| !state.wrongs.token_shrank),
            Property::always("I5", |_, state: &State| !state.fenced_while_live()),
            Property::always("kept", |_, state: &State| state.promises_are_kept()),
        ]
    }
}

impl State {
    /// Whether a boot is fenced whose live key is there, or whose host holds a lease that has not ended.
    fn fenced_while_live(&self) -> bool {
        let fenced = self.store.entries().keys().filter_map(|key| match key {
            Key::Fenced(boot) => Some(boot),
            Key::Owner(_) | Key::Disk(_) | Key::Live(_) | Key::Epoch => None,
        });
        let holders: Vec<_> = (0..HOSTS)
            .filter(|host| self.hosts[*host].is_up())
            .filter(|host| {
                self.hosts[*host].held.is_some_and(|held| self.store.leases.contains_key(&held.lease))
            })
            .map(|host| self.me(host))
            .collect();
        fenced
            .into_iter()
            .any(|boot| self.store.entry(&Key::Live(boot.clone())).is_some() || holders.contains(&boot))
    }

    /// Whether no guest executes on a host that is on record as guarding it, and has no lease any more.
    fn promises_are_kept(&self) -> bool {
        (0..VMS).all(|vm| {
            let guarding = self.store.owner(uid(vm)).filter(|owner| owner.guarded);
            guarding.is_none_or(|owner| {
                (0..HOSTS).filter(|host| owner.is(self.me(*host))).all(|host| {
                    !matches!(self.hosts[host].guests[vm], Guest::Running(_))
                        || self.store.entry(&Key::Live(self.me(host).clone())).is_some()
                })
            })
        })
    }

    /// Whether what a host had under way when it went off has landed, so that it may have booted, or a person may have
    /// walked there.
    pub fn is_long_down(&self, host: usize) -> bool {
        self.hosts[host].down.is_some_and(|since| self.now > since + LATE)
    }
}
