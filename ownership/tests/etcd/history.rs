//! What clients asked for and were told, in order of time, and whether one record can have told it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kubexen_ownership::liveness::{FenceRecord, Liveness, Proof};
use kubexen_ownership::{
    Abort, Commit, Discard, EtcdStore, Guard, HostBoot, Owner, OwnershipStore, Resume, Run, Save, Start,
    Steal, StoreError, VmUid,
};
use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::spec::{Hosts, Op, Record, Ret};

/// An operation's beginning or end. A client that does not know what came of one is another client from then on.
#[derive(Clone, Debug)]
pub enum Event {
    Invoke(usize, Op),
    Return(usize, Ret),
    /// It certainly changed nothing, and it told nothing.
    Nothing(usize),
}

/// How long a lease lasts: longer than a history, so that it ends only when it is given up.
const LEASE: Duration = Duration::from_secs(600);

/// The operations on one virtual machine, and on the hosts that want it.
#[derive(Clone)]
pub struct History {
    pub vm: VmUid,
    events: Arc<Mutex<Vec<Event>>>,
    clients: Arc<AtomicUsize>,
}

impl History {
    pub fn new(vm: VmUid) -> Self {
        Self { vm, events: Arc::default(), clients: Arc::default() }
    }

    pub fn client(&self, store: Arc<EtcdStore>) -> Client {
        Client { history: self.clone(), store, number: self.clients.fetch_add(1, Ordering::SeqCst) }
    }

    pub fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap()
    }

    /// Whether one record can have told all of it.
    pub fn is_linearizable(&self) -> bool {
        linearizable(self.vm, &Hosts::default(), &self.events())
    }
}

/// Whether there is an order of the operations, each between its beginning and its end, in which the pure core gives these
/// answers. One without an end may have taken effect at any time, or never. One that was refused may have taken effect where
/// others can have undone that: its answer was lost, and it asked again.
///
/// All orders are looked at, but what is ahead of two that end in one state only once, which a tester does not that tries each
/// order by itself.
pub fn linearizable(vm: VmUid, hosts: &Hosts, events: &[Event]) -> bool {
    let fences = events.iter().filter_map(|event| match event {
        Event::Invoke(_, Op::Fence { boot }) => Some(boot.clone()),
        Event::Invoke(..) | Event::Return(..) | Event::Nothing(_) => None,
    });
    let mortal: BTreeSet<HostBoot> = hosts.fenced.iter().cloned().chain(fences).collect();
    let mut operations = Vec::new();
    for (begin, event) in events.iter().enumerate() {
        let Event::Invoke(client, op) = event else { continue };
        let end = events.iter().enumerate().skip(begin).find_map(|(place, event)| match event {
            Event::Return(other, ret) if other == client => Some(Some((place, ret.clone()))),
            Event::Nothing(other) if other == client => Some(None),
            Event::Return(..) | Event::Nothing(_) | Event::Invoke(..) => None,
        });
        let (op, told) = match end {
            Some(None) => continue,
            Some(Some(told)) => (op.clone(), Some(told)),
            None => (op.clone(), None),
        };
        let found = told.as_ref().and_then(|(_, ret)| undone_by(&mortal, &op, ret));
        operations.push(Operation { op, begin, told, found });
    }
    assert!(operations.len() <= 128, "too many operations for a set of them in one word");
    let orders = Orders { operations, start: Record::new(vm, hosts.clone()) };
    orders.checker().finish_when(HasDiscoveries::Any).spawn_dfs().join().discovery(TOLD).is_some()
}

/// The owner who was named to an operation that was refused, if that may have undone it: nobody takes a machine from a host
/// that is not `mortal`, because nobody ever fences it.
fn undone_by(mortal: &BTreeSet<HostBoot>, op: &Op, ret: &Ret) -> Option<Option<Owner>> {
    let is_dead = |host: &HostBoot| mortal.contains(host);
    match (op, ret) {
        (Op::Start { me }, Ret::Start(Start::Refused(owner))) if is_dead(me) => Some(Some(owner.clone())),
        (Op::Guard { me, .. }, Ret::Guard(Guard::Refused(owner))) if is_dead(me) => Some(owner.clone()),
        (Op::Abort { me, .. }, Ret::Abort(Abort::Refused(owner))) if is_dead(me) => Some(owner.clone()),
        (
            _,
            Ret::Commit(Commit::Refused(owner))
            | Ret::Steal(Steal::Refused(owner))
            | Ret::Save(Save::Refused(owner))
            | Ret::Resume(Resume::Refused(owner))
            | Ret::Run(Run::Refused(owner)),
        ) => Some(owner.clone()),
        (_, Ret::Discard(Discard::Refused(owner))) => Some(Some(owner.clone())),
        (_, _) => None,
    }
}

#[derive(Clone)]
struct Operation {
    op: Op,
    /// Its place among the events.
    begin: usize,
    /// The place of its end, and what it was told.
    told: Option<(usize, Ret)>,
    /// The owner who was found after it was undone, if it may have been.
    found: Option<Option<Owner>>,
}

/// The orders that there may have been.
#[derive(Clone)]
struct Orders {
    operations: Vec<Operation>,
    start: Record,
}

/// The property that is looked for.
const TOLD: &str = "all that was told can have been";

/// A beginning of an order, as far as it matters for the rest.
#[derive(Clone, Debug, PartialEq, Hash)]
struct Past {
    /// A bit for each operation that has given its answer.
    told: u128,
    /// A bit for each that took effect without one.
    lost: u128,
    record: Record,
}

/// The next operation of an order, by its number.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Next {
    Tells(usize),
    IsLost(usize),
}

impl Orders {
    fn tells(&self, past: &Past, number: usize) -> Option<Past> {
        let Operation { op, told, found, .. } = &self.operations[number];
        let (_, ret) = told.as_ref()?;
        let mut next = past.clone();
        next.told |= 1 << number;
        let possible = match found {
            Some(found) if past.lost & (1 << number) != 0 => {
                next.record.tells(&Op::Read, &Ret::Read(found.clone()))
            }
            Some(_) | None => next.record.tells(op, ret),
        };
        possible.then_some(next)
    }

    fn is_lost(&self, past: &Past, number: usize) -> Option<Past> {
        let mut next = past.clone();
        next.lost |= 1 << number;
        next.record.may_have_done(&self.operations[number].op);
        (next.record != past.record).then_some(next)
    }
}

impl Model for Orders {
    type State = Past;
    type Action = Next;

    fn init_states(&self) -> Vec<Past> {
        vec![Past { told: 0, lost: 0, record: self.start.clone() }]
    }

    fn actions(&self, past: &Past, actions: &mut Vec<Next>) {
        let open = |number: &usize| past.told & (1 << number) == 0;
        let ends = self.operations.iter().enumerate().filter(|(number, _)| open(number));
        let first_end = ends.filter_map(|(_, operation)| Some(operation.told.as_ref()?.0)).min();
        for number in (0..self.operations.len()).filter(open) {
            let Operation { op, begin, told, found } = &self.operations[number];
            if first_end.is_some_and(|end| end < *begin) {
                continue;
            }
            if let Some(next) = self.tells(past, number) {
                // What a disk holds is given up whether it holds anything or not, so that this may yet be needed.
                let may_do_more = matches!(op, Op::Discard { .. });
                if next.record == past.record && found.is_none() && !may_do_more {
                    // It disturbs no other: whatever order there is, there is one in which it comes now.
                    *actions = vec![Next::Tells(number)];
                    return;
                }
                actions.push(Next::Tells(number));
            }
            let may_be_lost = told.is_none() || found.is_some();
            if may_be_lost && past.lost & (1 << number) == 0 && self.is_lost(past, number).is_some() {
                actions.push(Next::IsLost(number));
            }
        }
    }

    fn next_state(&self, past: &Past, next: Next) -> Option<Past> {
        match next {
            Next::Tells(number) => self.tells(past, number),
            Next::IsLost(number) => self.is_lost(past, number),
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::sometimes(TOLD, |orders: &Self, past: &Past| {
            let told = |(number, operation): (usize, &Operation)| {
                operation.told.is_none() || past.told & (1 << number) != 0
            };
            orders.operations.iter().enumerate().all(told)
        })]
    }
}

/// Somebody who asks the store about one virtual machine, one thing at a time.
pub struct Client {
    history: History,
    store: Arc<EtcdStore>,
    number: usize,
}

impl Client {
    /// The owner; nothing if the store did not say.
    pub async fn read(&mut self) -> Option<Option<Owner>> {
        match self.ask(Op::Read).await {
            Some(Ret::Read(owner)) => Some(owner),
            Some(other) => panic!("a read was told {other:?}"),
            None => None,
        }
    }

    /// What the store answers, if it does.
    pub async fn ask(&mut self, op: Op) -> Option<Ret> {
        self.history.events().push(Event::Invoke(self.number, op.clone()));
        let answer = self.call(&op).await;
        let mut events = self.history.events();
        match answer {
            Ok(ret) => {
                events.push(Event::Return(self.number, ret.clone()));
                Some(ret)
            }
            // Whether a lease has ended that was to end is told by nothing but an answer.
            Err(StoreError::Unavailable { .. } | StoreError::Contended { .. })
                if !matches!(op, Op::Leave { .. }) =>
            {
                events.push(Event::Nothing(self.number));
                None
            }
            Err(
                StoreError::Unknown { .. } | StoreError::Unavailable { .. } | StoreError::Contended { .. },
            ) => {
                self.number = self.history.clients.fetch_add(1, Ordering::SeqCst);
                None
            }
            Err(error) => panic!("{op:?}: {error}"),
        }
    }

    async fn call(&self, op: &Op) -> Result<Ret, StoreError> {
        let (store, vm) = (&self.store, self.history.vm);
        Ok(match op {
            Op::Read => Ret::Read(store.owner(vm).await?),
            Op::Start { me } => Ret::Start(store.start(vm, me).await?),
            Op::Release { me, token } => Ret::Release(store.release(vm, me, *token).await?),
            Op::Guard { me, token, guarded } => Ret::Guard(store.guard(vm, me, *token, *guarded).await?),
            Op::Commit { from, token, to } => Ret::Commit(store.commit(vm, from, *token, to).await?),
            Op::Abort { me, token } => Ret::Abort(store.abort(vm, me, *token).await?),
            Op::Steal { from, token, to } => Ret::Steal(store.steal(vm, from, *token, to).await?),
            Op::Save { me, token, disk } => Ret::Save(store.save(vm, me, *token, *disk).await?),
            Op::Resume { me, disk } => Ret::Resume(store.resume(vm, me, *disk).await?),
            Op::Run { me, token } => Ret::Run(store.run(vm, me, *token).await?),
            Op::Discard { disk } => Ret::Discard(store.discard(vm, *disk).await?),
            Op::Join { me } => Ret::Join(store.join(me, "1", LEASE).await?),
            Op::Leave { me: _, lease } => {
                store.leave(*lease).await?;
                Ret::Left
            }
            Op::Fence { boot } => {
                let record = FenceRecord { by: "test".to_owned(), proof: Proof::LeaseEnded, revision: 1 };
                Ret::Fence(store.fence(boot, &record).await?)
            }
        })
    }
}

/// Histories that tell what they are to show.
#[cfg(test)]
mod tests {
    use kubexen_ownership::conformance::{host, vm};
    use kubexen_ownership::liveness::{Fence, Join};
    use kubexen_ownership::{DiskUid, LeaseId, Phase, Release, Token};

    use super::*;

    fn a() -> HostBoot {
        host("xen-a", "boot-1")
    }

    fn b() -> HostBoot {
        host("xen-b", "boot-1")
    }

    fn dead() -> HostBoot {
        host("xen-d", "boot-1")
    }

    fn owner(of: HostBoot, token: u64) -> Owner {
        let HostBoot { host, boot_id } = of;
        Owner { host, boot_id, phase: Phase::Running, guarded: false, token: Token(token), succeeds: None }
    }

    fn successor(of: HostBoot, token: u64, before: u64) -> Owner {
        Owner { succeeds: Some(Token(before)), ..owner(of, token) }
    }

    fn start(client: usize, me: HostBoot, told: Start) -> [Event; 2] {
        [Event::Invoke(client, Op::Start { me }), Event::Return(client, Ret::Start(told))]
    }

    fn read(client: usize, owner: Option<Owner>) -> [Event; 2] {
        [Event::Invoke(client, Op::Read), Event::Return(client, Ret::Read(owner))]
    }

    fn holds(events: &[&[Event]]) -> bool {
        let hosts =
            Hosts { live: [a(), b()].into(), fenced: [dead()].into(), leases: [(a(), LeaseId(1))].into() };
        linearizable(vm("told"), &hosts, &events.concat())
    }

    fn acquired(token: u64) -> Start {
        Start::Acquired(Token(token))
    }

    #[test]
    fn what_one_record_can_have_told_is_linearizable() {
        let release = Op::Release { me: a(), token: Token(5) };
        let released = Event::Return(0, Ret::Release(Release::Released));
        let commit = Op::Commit { from: b(), token: Token(7), to: a() };
        assert!(holds(&[
            &start(0, a(), acquired(5)),
            &[Event::Invoke(0, release)],
            // It comes before the release or after it.
            &start(1, b(), acquired(7)),
            &[released],
            &[Event::Invoke(1, commit), Event::Return(1, Ret::Commit(Commit::Committed(Token(9))))],
            &read(0, Some(successor(a(), 9, 7))),
        ]));
    }

    #[test]
    fn two_owners_at_once_are_not() {
        assert!(!holds(&[&start(0, a(), acquired(5)), &start(1, b(), acquired(7))]));
    }

    #[test]
    fn an_old_state_read_after_a_newer_one_was_told_is_not() {
        assert!(!holds(&[&start(0, a(), acquired(5)), &read(1, None)]));
    }

    #[test]
    fn a_token_that_goes_back_is_not() {
        let release = Op::Release { me: a(), token: Token(5) };
        assert!(!holds(&[
            &start(0, a(), acquired(5)),
            &[Event::Invoke(0, release), Event::Return(0, Ret::Release(Release::Released))],
            &start(1, b(), acquired(4)),
        ]));
    }

    #[test]
    fn a_host_that_is_alive_is_not_stolen_from() {
        let steal = |from: HostBoot, token| {
            let told = Ret::Steal(Steal::Stolen(Token(token + 1)));
            [Event::Invoke(1, Op::Steal { from, token: Token(token), to: b() }), Event::Return(1, told)]
        };
        assert!(holds(&[&start(0, dead(), acquired(5)), &steal(dead(), 5)]));
        assert!(!holds(&[&start(0, a(), acquired(5)), &steal(a(), 5)]));
    }

    fn told(client: usize, op: Op, ret: Ret) -> [Event; 2] {
        [Event::Invoke(client, op), Event::Return(client, ret)]
    }

    #[test]
    fn a_host_is_stolen_from_only_after_its_lease_has_ended_and_it_was_fenced() {
        let record = FenceRecord { by: "test".to_owned(), proof: Proof::LeaseEnded, revision: 1 };
        let fenced = told(1, Op::Fence { boot: a() }, Ret::Fence(Fence::Fenced(record.clone())));
        let alive = told(1, Op::Fence { boot: a() }, Ret::Fence(Fence::Alive));
        let left = told(0, Op::Leave { me: a(), lease: LeaseId(1) }, Ret::Left);
        let joined = told(0, Op::Join { me: a() }, Ret::Join(Join::Joined(LeaseId(2))));
        let refused = told(0, Op::Join { me: a() }, Ret::Join(Join::Fenced(record)));
        let op = Op::Steal { from: a(), token: Token(5), to: b() };
        let stolen = told(1, op, Ret::Steal(Steal::Stolen(Token(6))));
        let started = start(0, a(), acquired(5));
        assert!(holds(&[&started, &alive, &left, &fenced, &refused, &stolen]));
        assert!(!holds(&[&started, &fenced]), "it is live");
        assert!(!holds(&[&started, &left, &stolen]), "it is not fenced");
        assert!(!holds(&[&left, &fenced, &joined]));
        assert!(holds(&[&joined, &left, &alive]), "it is live on another lease");
        let lost = [Event::Invoke(2, Op::Leave { me: a(), lease: LeaseId(1) })];
        assert!(holds(&[&started, &lost, &alive, &fenced, &stolen]));
    }

    #[test]
    fn what_is_saved_is_resumed_once() {
        let disk = DiskUid(uuid::Uuid::from_u128(9));
        let save = Op::Save { me: a(), token: Token(5), disk };
        let saved = told(0, save, Ret::Save(Save::Saved(Token(6))));
        let resumed = |client, me: HostBoot, token| {
            told(client, Op::Resume { me, disk }, Ret::Resume(Resume::Resuming(Token(token))))
        };
        let run = Op::Run { me: b(), token: Token(7) };
        let runs = told(1, run, Ret::Run(Run::Running(Token(8))));
        let started = start(0, a(), acquired(5));
        assert!(holds(&[&started, &saved, &resumed(1, b(), 7), &resumed(1, b(), 7), &runs]));
        assert!(!holds(&[&started, &saved, &resumed(1, b(), 7), &resumed(0, a(), 8)]));
        assert!(!holds(&[&started, &resumed(1, b(), 7)]), "it is not saved");
        let discarded = told(2, Op::Discard { disk }, Ret::Discard(Discard::Discarded));
        let [discard, done] = discarded.clone();
        let [save, is_saved] = saved.clone();
        assert!(
            holds(&[&started, &[save, discard, is_saved, done], &read(1, None)]),
            "it comes after the save"
        );
        assert!(!holds(&[&started, &saved, &discarded, &resumed(1, b(), 7)]));
    }

    #[test]
    fn what_a_dead_host_handed_over_may_be_told_as_stolen_for_the_same_host_and_for_no_other() {
        let told = |to: HostBoot| {
            let steal = Op::Steal { from: dead(), token: Token(5), to };
            let commit = Op::Commit { from: dead(), token: Token(5), to: a() };
            holds(&[
                &start(0, dead(), acquired(5)),
                &[Event::Invoke(1, steal), Event::Invoke(0, commit)],
                &[Event::Return(0, Ret::Commit(Commit::Committed(Token(7))))],
                &[Event::Return(1, Ret::Steal(Steal::Stolen(Token(7))))],
            ])
        };
        assert!(told(a()));
        assert!(!told(b()));
    }

    #[test]
    fn what_was_refused_may_have_been_done_and_undone() {
        let op = Op::Steal { from: dead(), token: Token(5), to: a() };
        let release = Op::Release { me: a(), token: Token(6) };
        let of_a = read(0, Some(successor(a(), 6, 5)));
        let between = [Event::Invoke(0, release), Event::Return(0, Ret::Release(Release::Released))];
        let refused = Event::Return(1, Ret::Steal(Steal::Refused(None)));
        let steal = Event::Invoke(1, op);
        assert!(holds(&[
            &start(2, dead(), acquired(5)),
            std::slice::from_ref(&steal),
            &of_a,
            &between,
            std::slice::from_ref(&refused),
        ]));
        assert!(
            !holds(&[&start(2, dead(), acquired(5)), &of_a, &[steal], &between, &[refused]]),
            "it came later"
        );
    }

    #[test]
    fn what_nobody_was_told_of_may_have_happened_at_any_time_or_never_and_once() {
        let lost = [Event::Invoke(0, Op::Start { me: a() })];
        assert!(holds(&[&lost, &read(1, None), &read(1, Some(owner(a(), 5)))]));
        assert!(holds(&[&lost, &read(1, None), &start(1, b(), acquired(7))]));
        assert!(!holds(&[&lost, &read(1, Some(owner(a(), 5))), &read(1, Some(owner(a(), 6)))]));
        assert!(!holds(&[&lost, &read(1, Some(owner(a(), 5))), &read(1, None)]));
        let nothing = [Event::Nothing(0)];
        assert!(
            !holds(&[&lost, &nothing, &read(1, Some(owner(a(), 5)))]),
            "it was said to have changed nothing"
        );
    }
}
