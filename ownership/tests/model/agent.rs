//! What hosts and their agents do.

use std::collections::BTreeMap;
use std::sync::Arc;

use kubexen_ownership::liveness::{Rung, joining};
use kubexen_ownership::protocol::{
    AbortVerb, CommitVerb, Decision, GuardVerb, Outcome, ReleaseVerb, StartVerb, Verb,
};
use kubexen_ownership::{Abort, Commit, Entry, Guard, Key, Owner, Release, Start, Token, VmUid};
use tokio::time::Instant;

use crate::clock::{LATE, LEASE, TICK, instant, timing};
use crate::event::Event;
use crate::flaw::Flaw;
use crate::pool::{Pool, Sight};
use crate::state::{Call, Guest, HOSTS, Held, LateWrite, State, VMS, is_guarded, uid};

impl Pool {
    /// Time goes on by a tick. Watchdogs fire and leases end at its beginning, then agents renew and look at their ladder.
    pub fn tick(&self, state: &mut State) {
        state.now += 1;
        let now = instant(state.now);
        for host in 0..HOSTS {
            let due = state.hosts[host].vitals(timing(self.flaw)).deadline().is_some_and(|due| due <= now);
            let armed = state.hosts[host].guards && !self.has(Flaw::NoWatchdog);
            if state.hosts[host].is_up() && armed && due {
                self.reset(state, host);
            }
        }
        if !state.outage {
            let gone = Arc::make_mut(&mut state.store).end_leases(state.now);
            if self.has(Flaw::OwnerKeyOnLease) {
                let owned = |vm: &VmUid| {
                    state.store.owner(*vm).is_some_and(|owner| gone.iter().any(|boot| owner.is(boot)))
                };
                let keys: Vec<Key> = (0..VMS).map(uid).filter(owned).map(Key::Owner).collect();
                keys.iter().for_each(|key| Arc::make_mut(&mut state.store).remove(key));
            }
        }
        for host in 0..HOSTS {
            if state.reaches(host) && state.hosts[host].renewing.is_none() {
                self.renew(state, host, false);
            }
            self.climb(state, host, 0);
        }
    }

    /// A host stops at once, with all that it runs.
    pub fn reset(&self, state: &mut State, host: usize) {
        for vm in 0..VMS {
            if let Guest::Running(token) = state.hosts[host].guests[vm] {
                state.late.push(LateWrite { vm, token, until: state.now + LATE });
            }
        }
        let host = &mut state.hosts[host];
        host.down = Some(state.now);
        host.stalled = false;
        host.held = None;
        host.renewing = None;
        host.guards = false;
        host.guests = [Guest::Absent; VMS];
        host.calls = [None; VMS];
    }

    /// Every lease gets its whole time anew.
    pub fn promote(&self, state: &mut State) {
        let ends = state.now + LEASE;
        Arc::make_mut(&mut state.store).leases.values_mut().for_each(|lease| *lease = ends);
    }

    /// The agent does what its ladder has due when so many quarters of this tick have passed.
    pub fn climb(&self, state: &mut State, number: usize, quarters: u32) {
        let now: Instant = instant(state.now) + TICK * quarters / 4;
        let host = &mut state.hosts[number];
        if !host.acts() || !host.guards || host.held.is_none() {
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
                }
                (Rung::Healthy, Guest::Paused(token)) => {
                    host.guests[vm] = Guest::Running(token);
                    self.see(Sight::GoesOn);
                }
                (Rung::Healthy | Rung::Refuse | Rung::Pause | Rung::Stop | Rung::Reset, _) => {}
            }
        }
    }

    pub fn join(&self, state: &mut State, host: usize, lost: bool) {
        let (me, sent) = (state.me(host), state.now);
        let store = Arc::make_mut(&mut state.store);
        let lease = store.grant(sent + LEASE);
        let transaction = joining(me, "", lease, store.entry(&Key::Live(me.clone())));
        let again = state.hosts[host].held.is_some_and(|held| held.ended);
        match self.send(state, transaction, lost) {
            Some(Outcome::Executed { .. }) => {
                if again {
                    self.see(Sight::Rejoins);
                }
                self.answered(state, host, Held { lease, sent, ended: false });
            }
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

    /// A deposed leader that is cut off with the host acknowledges a renewal, of a lease that it knows: one that had not ended
    /// before the new leader was promoted, and so has not ended yet.
    pub fn renew_deposed(&self, state: &mut State, host: usize) {
        let lease = state.hosts[host].vitals(timing(self.flaw)).lease();
        if let Some(lease) = lease.filter(|lease| state.store.leases.contains_key(lease)) {
            self.see(Sight::HearsTheDeposed);
            let sent = state.now;
            self.answered(state, host, Held { lease, sent, ended: false });
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
        self.climb(state, host, 0);
    }

    /// A guest executes from now on.
    fn run(&self, state: &mut State, host: usize, vm: usize, token: u64) {
        let here = &mut state.hosts[host];
        here.guests[vm] = Guest::Running(token);
        here.guards |= is_guarded(vm);
        let is_heir = state.store.owner(uid(vm)).is_some_and(|owner| owner.succeeds.is_some());
        if is_heir && state.store.entries().keys().any(|key| matches!(key, Key::Fenced(_))) {
            self.see(Sight::FailsOver);
        }
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
                state.hosts[host].guards |= matches!(guest, Guest::Running(_));
                let verb = GuardVerb { vm: id, me, token: Token(token), guarded: true };
                self.carry(state, &verb, unresolved, lost).map(|guard| {
                    if let (Guard::Written(token), Guest::Running(_)) = (&guard, guest) {
                        self.run(state, host, vm, token.0);
                    } else if let Guard::Refused(owner) = guard {
                        self.outdated(state, host, vm, owner.as_ref());
                    }
                })
            }
            Call::Unguard(token) => {
                let verb = GuardVerb { vm: id, me, token: Token(token), guarded: false };
                let verb = TakeBack { verb, by_reading: self.has(Flaw::TakenBackByReading) };
                self.carry(state, &verb, unresolved, lost).map(|guard| {
                    if let (Guard::Written(token), Guest::Running(_)) = (&guard, guest) {
                        state.hosts[host].guests[vm] = Guest::Running(token.0);
                        state.hosts[host].guards = false;
                        self.see(Sight::TakesBack);
                    } else if let Guard::Refused(owner) = guard {
                        self.outdated(state, host, vm, owner.as_ref());
                    }
                })
            }
            Call::Commit => {
                let Guest::Suspended(token, to) = guest else { return };
                let verb = CommitVerb { vm: id, from: me, token: Token(token), to: state.me(to) };
                self.carry(state, &verb, unresolved, lost).map(|commit| {
                    state.hosts[host].guests[vm] = Guest::Absent;
                    if let Commit::Committed(_) = commit {
                        self.see(Sight::Commits);
                    }
                })
            }
            Call::Abort => {
                let Guest::Suspended(token, _) = guest else { return };
                if self.has(Flaw::ResumeOnRead) {
                    let token = state.store.owner(id).filter(|owner| owner.is(me)).map(|owner| owner.token);
                    match token {
                        Some(token) => self.run(state, host, vm, token.0),
                        None => state.hosts[host].guests[vm] = Guest::Absent,
                    }
                    Ok(())
                } else {
                    let verb = AbortVerb { vm: id, me, token: Token(token) };
                    self.carry(state, &verb, unresolved, lost).map(|abort| match abort {
                        Abort::Aborted(token) => {
                            self.run(state, host, vm, token.0);
                            self.see(Sight::Aborts);
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
                    Release::Released | Release::NotOwner(_) => {
                        state.hosts[host].guests[vm] = Guest::Absent;
                        self.see(Sight::Releases);
                    }
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

    /// A host learns that its token is none any more: it goes on under the one that it has, or drops the guest.
    fn outdated(&self, state: &mut State, host: usize, vm: usize, owner: Option<&Owner>) {
        let mine = owner.filter(|owner| owner.is(state.me(host)));
        let guest = &mut state.hosts[host].guests[vm];
        *guest = match (*guest, mine) {
            (Guest::Running(_), Some(owner)) => Guest::Running(owner.token.0),
            (_, _) => Guest::Absent,
        };
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
        let record = |vm: usize| state.store.owner(uid(vm)).filter(|owner| owner.is(state.me(number)));
        if !state.reaches(number) {
            return;
        }
        if host.vitals(timing(self.flaw)).lease().is_none() {
            events.push(Event::Join(number));
            if faulty {
                events.push(Event::JoinLost(number));
            }
        }
        for vm in (0..VMS).filter(|vm| !self.scope.focus || *vm == 0) {
            if host.calls[vm].is_some() {
                events.push(Event::Resolve(number, vm));
            }
            let mut call = |call| {
                events.push(Event::Call(number, vm, call));
                if faulty {
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
                        call(Call::Start);
                    }
                }
                Guest::Running(token) => {
                    let guarded = state.store.owner(uid(vm)).is_some_and(|owner| owner.guarded);
                    let token = record(vm).map_or(token, |owner| owner.token.0);
                    // One that is asked for again under another token, or the other way round, does not wait for the first.
                    let turns = |call: Option<Call>| matches!(call, Some(Call::Guard(_) | Call::Unguard(_)));
                    let before = host.calls[vm].filter(|call| turns(Some(*call)));
                    let may_turn = idle || before.is_some() && self.scope.unguard;
                    if is_guarded(vm) && ready && !guarded && may_turn && before != Some(Call::Guard(token)) {
                        call(Call::Guard(token));
                    }
                    if is_guarded(vm)
                        && self.scope.unguard
                        && (guarded || before.is_some())
                        && may_turn
                        && before != Some(Call::Unguard(token))
                    {
                        call(Call::Unguard(token));
                    }
                    if lifecycle && idle {
                        call(Call::Release);
                    }
                    if migration && idle {
                        let fits = |to: &usize| {
                            let there = &state.hosts[*to];
                            *to != number
                                && there.acts()
                                && there.guests[vm] == Guest::Absent
                                && there.calls[vm].is_none()
                                && self.may_run(state, *to)
                        };
                        events.extend(
                            (0..self.scope.hosts).filter(fits).map(|to| Event::Depart(number, vm, to)),
                        );
                    }
                }
                Guest::Suspended(..) => {
                    if idle {
                        call(Call::Commit);
                    }
                    if ready && host.calls[vm] != Some(Call::Abort) {
                        call(Call::Abort);
                    }
                }
                Guest::Restored if record(vm).is_some() => {
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
                Guest::Absent | Guest::Paused(_) | Guest::Releasing(_) => {}
            }
        }
    }

    /// What may befall hosts and the store.
    pub fn weather(&self, state: &State, faulty: bool, events: &mut Vec<Event>) {
        for number in 0..self.scope.hosts {
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
            let cut_off = host.acts() && !host.connected && state.now <= state.deposed;
            if cut_off && host.held.is_some_and(|held| held.sent < state.now && !held.ended) {
                events.push(Event::RenewDeposed(number));
            }
            if host.acts() && host.guards && host.rung(timing(self.flaw), state.now) >= Rung::Refuse {
                events.extend([1, 2].map(|quarters| Event::Ladder(number, quarters)));
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

/// GUARD, as a host takes its promise back.
struct TakeBack<'a> {
    verb: GuardVerb<'a>,
    by_reading: bool,
}

impl Verb for TakeBack<'_> {
    type Answer = Guard;

    fn name(&self) -> &'static str {
        self.verb.name()
    }

    fn vm(&self) -> VmUid {
        self.verb.vm()
    }

    fn decide(&self, owner: Option<&Owner>, unresolved: bool) -> Decision<Guard> {
        match owner.filter(|owner| owner.token == self.verb.token) {
            Some(owner) if self.by_reading && !owner.guarded => Decision::Answer(Guard::Written(owner.token)),
            Some(_) | None => self.verb.decide(owner, unresolved),
        }
    }

    fn executed(&self, revision: u64) -> Guard {
        self.verb.executed(revision)
    }

    fn refused(&self, found: &BTreeMap<Key, Entry>) -> Option<Guard> {
        self.verb.refused(found)
    }
}
