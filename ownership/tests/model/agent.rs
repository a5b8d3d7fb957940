//! What hosts and their agents do.

use std::sync::Arc;

use kubexen_ownership::liveness::{Rung, joining};
use kubexen_ownership::protocol::{AbortVerb, CommitVerb, GuardVerb, Outcome, ReleaseVerb, StartVerb};
use kubexen_ownership::{Abort, Commit, Guard, Key, Release, Start, Token};
use tokio::time::Instant;

use crate::clock::{GRACE, LEASE, TICK, instant, timing};
use crate::event::Event;
use crate::flaw::Flaw;
use crate::pool::Pool;
use crate::state::{Call, Guest, HOSTS, Held, LateWrite, State, VMS, is_guarded, uid};

impl Pool {
    /// Time goes on by a tick. Watchdogs fire and leases end at its beginning, then agents renew and look at their ladder.
    pub fn tick(&self, state: &mut State) {
        state.now += 1;
        let now = instant(state.now);
        for host in 0..HOSTS {
            let due = state.hosts[host].vitals(timing(self.flaw)).deadline().is_some_and(|due| due <= now);
            if state.hosts[host].is_up() && state.hosts[host].armed && due {
                self.reset(state, host);
            }
        }
        if !state.outage {
            let gone = Arc::make_mut(&mut state.store).end_leases(state.now);
            if self.has(Flaw::OwnerKeyOnLease) {
                let owned = |key: &Key, entry: &kubexen_ownership::Entry| {
                    matches!(key, Key::Owner(_)) && gone.iter().any(|boot| entry.owner().unwrap().is(boot))
                };
                Arc::make_mut(&mut state.store).entries.retain(|key, entry| !owned(key, entry));
            }
        }
        for host in 0..HOSTS {
            if state.reaches(host) && state.hosts[host].renewing.is_none() {
                self.renew(state, host, false);
            }
            self.climb(state, host, false);
        }
    }

    /// A host stops at once, with all that it runs.
    pub fn reset(&self, state: &mut State, host: usize) {
        for vm in 0..VMS {
            if let Guest::Running(token) = state.hosts[host].guests[vm] {
                state.late.push(LateWrite { vm, token, until: state.now + GRACE });
            }
        }
        let host = &mut state.hosts[host];
        host.down = Some(state.now);
        host.stalled = false;
        host.held = None;
        host.renewing = None;
        host.armed = false;
        host.guests = [Guest::Absent; VMS];
        host.calls = [None; VMS];
    }

    /// Every lease gets its whole time anew.
    pub fn promote(&self, state: &mut State) {
        let ends = state.now + LEASE;
        Arc::make_mut(&mut state.store).leases.values_mut().for_each(|lease| *lease = ends);
    }

    /// The agent does what its ladder has due, now or, with `later`, shortly before the next tick.
    pub fn climb(&self, state: &mut State, number: usize, later: bool) {
        let now: Instant = instant(state.now) + if later { TICK / 4 } else { std::time::Duration::ZERO };
        let host = &mut state.hosts[number];
        if !host.acts() || host.held.is_none() {
            return;
        }
        let rung = host.vitals(timing(self.flaw)).rung(now);
        for vm in (0..VMS).filter(|vm| is_guarded(*vm)) {
            match (rung, host.guests[vm]) {
                (Rung::Pause, Guest::Running(token)) => host.guests[vm] = Guest::Paused(token),
                (
                    Rung::Stop | Rung::Reset,
                    Guest::Running(_) | Guest::Paused(_) | Guest::Restored | Guest::Suspended(..),
                ) => {
                    host.guests[vm] = Guest::Absent;
                    host.calls[vm] = None;
                    host.armed = false;
                }
                (Rung::Healthy, Guest::Paused(token)) => {
                    host.guests[vm] = Guest::Running(token);
                    state.past.resumed = true;
                }
                (Rung::Healthy | Rung::Refuse | Rung::Pause | Rung::Stop | Rung::Reset, _) => {}
            }
        }
    }

    pub fn join(&self, state: &mut State, host: usize, lost: bool) {
        let (me, sent) = (state.me(host), state.now);
        let store = Arc::make_mut(&mut state.store);
        let lease = store.grant(sent + LEASE);
        let transaction = joining(me, "", lease, store.entries.get(&Key::Live(me.clone())));
        match self.send(state, transaction, lost) {
            Some(Outcome::Executed { .. }) => self.answered(state, host, Held { lease, sent, ended: false }),
            Some(Outcome::Refused(_)) | None => {}
        }
    }

    /// The agent renews its lease; if `slow`, the answer is under way.
    pub fn renew(&self, state: &mut State, host: usize, slow: bool) {
        let Some(lease) = state.hosts[host].vitals(timing(self.flaw)).lease() else { return };
        let now = state.now;
        match Arc::make_mut(&mut state.store).leases.get_mut(&lease) {
            Some(ends) => {
                *ends = now + LEASE;
                if slow {
                    state.hosts[host].renewing = Some((lease, now));
                } else {
                    self.answered(state, host, Held { lease, sent: now, ended: false });
                }
            }
            None if self.has(Flaw::TtlZeroIgnored) => {
                self.answered(state, host, Held { lease, sent: now, ended: false });
            }
            None => {
                if let Some(held) = &mut state.hosts[host].held {
                    held.ended = true;
                }
            }
        }
    }

    /// A slow answer comes.
    pub fn answer(&self, state: &mut State, host: usize) {
        if let Some((lease, sent)) = state.hosts[host].renewing.take() {
            let sent = if self.has(Flaw::DeadlineFromReceipt) { state.now } else { sent };
            self.answered(state, host, Held { lease, sent, ended: false });
        }
    }

    /// The agent learns that it holds a lease, as `Vitals::answered` has it.
    fn answered(&self, state: &mut State, host: usize, held: Held) {
        let before = state.hosts[host].held;
        if before.is_none_or(|before| before.lease != held.lease || before.sent < held.sent) {
            let sent = before.map_or(held.sent, |before| before.sent.max(held.sent));
            state.hosts[host].held = Some(Held { sent, ..held });
        }
        self.climb(state, host, false);
    }

    /// A guest executes from now on.
    fn run(&self, state: &mut State, host: usize, vm: usize, token: u64) {
        let guest = &mut state.hosts[host];
        guest.guests[vm] = Guest::Running(token);
        guest.armed |= is_guarded(vm) && !self.has(Flaw::NoWatchdog);
        state.past.stolen_runs |= state.past.stolen;
    }

    /// A host calls a verb, sends it and loses the answer, or, if `unresolved`, learns what became of a call that was lost.
    pub fn call(&self, state: &mut State, host: usize, vm: usize, call: Call, unresolved: bool, lost: bool) {
        let (me, id, guest) = (state.me(host), uid(vm), state.hosts[host].guests[vm]);
        let under_way = match call {
            Call::Start => {
                self.carry(state, &StartVerb { vm: id, me }, unresolved, lost).map(|start| match start {
                    Start::Acquired(token) | Start::AlreadyMine(token) => self.run(state, host, vm, token.0),
                    Start::Refused(_) => {}
                })
            }
            Call::Guard(token) => {
                // The first promise is for what was just started.
                let token = match guest {
                    Guest::Running(running) if token == 0 => running,
                    _ => token,
                };
                let verb = GuardVerb { vm: id, me, token: Token(token), guarded: true };
                self.carry(state, &verb, unresolved, lost).map(|guard| match (guard, guest) {
                    (Guard::Written(token), Guest::Running(_)) => self.run(state, host, vm, token.0),
                    (Guard::Written(_) | Guard::NotLive, _) => {}
                    (Guard::Refused(_), _) => state.hosts[host].guests[vm] = Guest::Absent,
                })
            }
            Call::Commit => {
                let Guest::Suspended(token, to) = guest else { return };
                let verb = CommitVerb { vm: id, from: me, token: Token(token), to: state.me(to) };
                self.carry(state, &verb, unresolved, lost).map(|commit| {
                    state.hosts[host].guests[vm] = Guest::Absent;
                    state.past.committed |= matches!(commit, Commit::Committed(_));
                })
            }
            Call::Abort => {
                let Guest::Suspended(token, _) = guest else { return };
                if self.has(Flaw::ResumeOnRead) {
                    match state.store.owner(id).filter(|owner| owner.is(me)) {
                        Some(owner) => self.run(state, host, vm, owner.token.0),
                        None => state.hosts[host].guests[vm] = Guest::Absent,
                    }
                    Ok(())
                } else {
                    let verb = AbortVerb { vm: id, me, token: Token(token) };
                    self.carry(state, &verb, unresolved, lost).map(|abort| match abort {
                        Abort::Aborted(token) => {
                            self.run(state, host, vm, token.0);
                            state.past.aborted = true;
                        }
                        Abort::Refused(_) => state.hosts[host].guests[vm] = Guest::Absent,
                    })
                }
            }
            Call::Release => {
                let (Guest::Running(token) | Guest::Releasing(token)) = guest else { return };
                state.hosts[host].guests[vm] = Guest::Releasing(token);
                let verb = ReleaseVerb { vm: id, me, token: Token(token) };
                self.carry(state, &verb, unresolved, lost).map(|release| match release {
                    Release::Released | Release::NotOwner(_) => state.hosts[host].guests[vm] = Guest::Absent,
                })
            }
        };
        match under_way {
            Ok(()) => state.hosts[host].calls[vm] = None,
            Err(true) => {
                state.hosts[host].calls[vm] = Some(call);
                if self.has(Flaw::ResumeOnTimeout)
                    && let (Call::Commit, Guest::Suspended(token, _)) = (call, guest)
                {
                    self.run(state, host, vm, token);
                }
            }
            Err(false) => {}
        }
    }

    pub fn depart(&self, state: &mut State, from: usize, vm: usize, to: usize) {
        if let Guest::Running(token) = state.hosts[from].guests[vm] {
            state.hosts[from].guests[vm] = Guest::Suspended(token, to);
            state.hosts[to].guests[vm] = Guest::Restored;
        }
    }

    pub fn unpause(&self, state: &mut State, host: usize, vm: usize) {
        let owner = state.store.owner(uid(vm));
        let token = match owner {
            Some(owner) if owner.is(state.me(host)) => owner.token.0,
            Some(owner) if self.has(Flaw::UnpauseBeforeCommit) => owner.token.0,
            Some(_) | None => return,
        };
        self.run(state, host, vm, token);
    }

    /// What may happen at one host.
    pub fn host_events(&self, state: &State, number: usize, faulty: bool, events: &mut Vec<Event>) {
        let host = &state.hosts[number];
        let owns = |vm: usize| state.store.owner(uid(vm)).is_some_and(|owner| owner.is(state.me(number)));
        if !state.reaches(number) {
            return;
        }
        if host.vitals(timing(self.flaw)).lease().is_none() {
            events.push(Event::Join(number));
            if faulty && (self.scope.lifecycle || self.scope.blank && number == 0) {
                events.push(Event::JoinLost(number));
            }
        }
        for vm in (0..VMS).filter(|vm| !self.scope.focus || *vm == 0) {
            if host.calls[vm].is_some() {
                events.push(Event::Resolve(number, vm));
            }
            let mut call = |call, lost: bool| {
                events.push(Event::Call(number, vm, call));
                if lost && faulty {
                    events.push(Event::CallLost(number, vm, call));
                }
            };
            let idle = host.calls[vm].is_none();
            let ready = self.may_run(state, number);
            let (lifecycle, migration) = (self.scope.lifecycle, self.scope.migration);
            match host.guests[vm] {
                Guest::Absent if idle && ready => {
                    let startable =
                        state.store.owner(uid(vm)).is_none_or(|owner| owner.host == state.me(number).host);
                    if startable {
                        call(Call::Start, lifecycle);
                    }
                }
                Guest::Running(token) if idle => {
                    let guarded = state.store.owner(uid(vm)).is_some_and(|owner| owner.guarded);
                    if is_guarded(vm) && ready && !guarded {
                        call(Call::Guard(token), lifecycle);
                    }
                    if lifecycle {
                        call(Call::Release, true);
                    }
                    if migration {
                        let fits = |to: &usize| {
                            let there = &state.hosts[*to];
                            *to != number
                                && there.acts()
                                && there.guests[vm] == Guest::Absent
                                && there.calls[vm].is_none()
                                && self.may_run(state, *to)
                        };
                        events.extend((0..HOSTS).filter(fits).map(|to| Event::Depart(number, vm, to)));
                    }
                }
                Guest::Suspended(..) => {
                    if idle {
                        call(Call::Commit, true);
                    }
                    if ready && host.calls[vm] != Some(Call::Abort) {
                        call(Call::Abort, true);
                    }
                }
                Guest::Restored if owns(vm) => {
                    if ready {
                        events.push(Event::Unpause(number, vm));
                    }
                }
                Guest::Restored => {
                    events.push(Event::Drop(number, vm));
                    if self.has(Flaw::UnpauseBeforeCommit) {
                        events.push(Event::Unpause(number, vm));
                    }
                }
                Guest::Absent | Guest::Running(_) | Guest::Paused(_) | Guest::Releasing(_) => {}
            }
        }
    }

    /// What may befall hosts and the store.
    pub fn weather(&self, state: &State, faulty: bool, events: &mut Vec<Event>) {
        for number in 0..HOSTS {
            let host = &state.hosts[number];
            if !host.is_up() {
                if state.is_long_down(number) && host.boot + 1 < crate::state::BOOTS {
                    events.push(Event::Boot(number));
                }
                continue;
            }
            if faulty && (!self.scope.focus || number == 0) {
                events.push(Event::Crash(number));
                if !host.stalled {
                    events.push(Event::Stall(number));
                }
                if host.connected {
                    events.push(Event::Cut(number));
                }
                if state.reaches(number) && host.renewing.is_none() && host.held.is_some() {
                    events.push(Event::RenewSlow(number));
                }
            }
            if host.stalled {
                events.push(Event::Unstall(number));
            }
            if !host.connected {
                events.push(Event::Mend(number));
            }
            if state.reaches(number) {
                if host.renewing.is_some() {
                    events.push(Event::Answer(number));
                } else if host.held.is_some_and(|held| held.sent < state.now && !held.ended) {
                    events.push(Event::Renew(number));
                }
            }
            if host.acts() && host.rung(timing(self.flaw), state.now) == Rung::Pause {
                events.push(Event::Ladder(number));
            }
        }
        if state.outage {
            events.push(Event::OutageEnds);
        } else if faulty {
            events.push(Event::Outage);
            events.push(Event::StoreLeader);
        }
    }
}
