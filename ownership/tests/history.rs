//! Random histories of hosts that start, release, hand over, abort, reboot and lose or delay requests against the memory
//! store.
//!
//! What is checked is what the hosts were told, not what the store holds: at no moment do two hosts believe that they
//! may run one virtual machine, and each ownership has a greater token than those before it. The hosts obey what
//! [`OwnershipStore`] demands of its callers, which [`Role`] tells.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kubexen_ownership::conformance::{host, vm};
use kubexen_ownership::{
    Abort, Commit, HostBoot, MemoryStore, OwnershipStore, Release, Start, StoreError, Token, VmUid,
};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use tokio::task::JoinSet;

const HOSTS: usize = 3;
const VMS: usize = 2;

/// A call of one host for one virtual machine. A token is named by how many newer ones have been told of.
#[derive(Clone, Copy, Debug)]
enum Call {
    Start,
    Release { token_back: usize },
    Commit { token_back: usize, hosts_on: usize },
    Abort { token_back: usize },
    LookAsDestination { gives_up: bool },
}

#[derive(Clone, Debug)]
enum Step {
    /// These calls at once, each of (host, virtual machine); a host makes one call at a time for each of them.
    Calls(BTreeMap<(usize, usize), Call>),
    Reboot(usize),
    LoseAnswers(u32),
    LoseRequests(u32),
    DelayRequests(u32),
    DeliverDelayed,
    OutageAfterWrite,
    Outage(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let token_back = || prop_oneof![3 => Just(0_usize), 1 => 1..3_usize];
    let call = prop_oneof![
        6 => Just(Call::Start),
        3 => token_back().prop_map(|token_back| Call::Release { token_back }),
        5 => (token_back(), 1..HOSTS)
            .prop_map(|(token_back, hosts_on)| Call::Commit { token_back, hosts_on }),
        3 => token_back().prop_map(|token_back| Call::Abort { token_back }),
        4 => any::<bool>().prop_map(|gives_up| Call::LookAsDestination { gives_up }),
    ];
    prop_oneof![
        12 => prop::collection::btree_map((0..HOSTS, 0..VMS), call, 1..6).prop_map(Step::Calls),
        1 => (0..HOSTS).prop_map(Step::Reboot),
        1 => (1..4_u32).prop_map(Step::LoseAnswers),
        1 => (1..8_u32).prop_map(Step::LoseRequests),
        2 => prop_oneof![1..3_u32, 6..9_u32].prop_map(Step::DelayRequests),
        2 => Just(Step::DeliverDelayed),
        1 => Just(Step::OutageAfterWrite),
        1 => Just(Step::Outage(true)),
        2 => Just(Step::Outage(false)),
    ]
}

/// What a host does with one virtual machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Role {
    /// It has no domain.
    #[default]
    Idle,
    /// It was told that it is the owner: it may run the domain.
    Runs,
    /// It has no domain, and a release of it is not settled: it must not start.
    Releases,
    /// Its domain is suspended for a hand-over: it must not run it before an abort.
    HandsOver,
    /// It has a restored, paused domain: it must not run it before it has seen itself as the owner.
    Awaits,
}

/// What the hosts were told about one virtual machine.
#[derive(Default)]
struct Told {
    roles: BTreeMap<HostBoot, Role>,
    /// Every ownership that was ever told of. A token is of one host at one boot.
    tokens: BTreeMap<Token, HostBoot>,
}

impl Told {
    fn role(&self, me: &HostBoot) -> Role {
        self.roles.get(me).copied().unwrap_or_default()
    }

    fn believer(&self) -> Option<&HostBoot> {
        self.roles.iter().find(|(_, role)| **role == Role::Runs).map(|(host, _)| host)
    }

    fn learns(&mut self, vm: VmUid, owner: &HostBoot, token: Token) {
        let of = self.tokens.entry(token).or_insert_with(|| owner.clone());
        assert_eq!(of, owner, "token {token} of {vm} was given twice");
    }

    fn runs(&mut self, vm: VmUid, me: &HostBoot, token: Token) {
        self.learns(vm, me, token);
        self.roles.insert(me.clone(), Role::Runs);
        let believers = self.roles.iter().filter(|(_, role)| **role == Role::Runs);
        assert_eq!(believers.count(), 1, "{vm} runs twice: {:?}", self.roles);
    }

    fn newest(&self) -> Option<Token> {
        self.tokens.keys().next_back().copied()
    }

    fn token(&self, back: usize) -> Token {
        self.tokens.keys().rev().nth(back).copied().unwrap_or(Token(1))
    }
}

/// One host and one virtual machine.
struct Caller {
    store: MemoryStore,
    ledger: Arc<Mutex<BTreeMap<VmUid, Told>>>,
    vm: VmUid,
    me: HostBoot,
}

impl Caller {
    fn told<T>(&self, look: impl FnOnce(&mut Told) -> T) -> T {
        let mut ledger = self.ledger.lock().unwrap();
        look(ledger.entry(self.vm).or_default())
    }

    fn take(&self, role: Role) {
        self.told(|told| told.roles.insert(self.me.clone(), role));
    }

    fn token(&self, back: usize) -> Token {
        self.told(|told| told.token(back))
    }

    async fn make(self, call: Call, to: HostBoot) {
        match (call, self.told(|told| told.role(&self.me))) {
            (Call::Start, Role::Idle | Role::Runs) => self.start().await,
            (Call::Release { token_back }, Role::Idle | Role::Runs | Role::Releases) => {
                self.release(self.token(token_back)).await;
            }
            (Call::Commit { token_back, .. }, Role::Idle | Role::Runs | Role::HandsOver) => {
                self.commit(self.token(token_back), to).await;
            }
            (Call::Abort { token_back }, Role::Idle | Role::HandsOver) => {
                self.abort(self.token(token_back)).await;
            }
            (Call::LookAsDestination { gives_up }, Role::Awaits) => self.look(gives_up).await,
            // What the callers of a store must not do, or what makes no sense.
            _ => {}
        }
    }

    async fn start(&self) {
        let before = self.told(|told| told.newest());
        match self.store.start(self.vm, &self.me).await {
            Ok(Start::Acquired(token)) => {
                assert!(before < Some(token), "{token} of {} follows {before:?}", self.vm);
                self.told(|told| told.runs(self.vm, &self.me, token));
            }
            Ok(Start::AlreadyMine(token)) => self.told(|told| told.runs(self.vm, &self.me, token)),
            Ok(Start::Refused(owner)) => assert_ne!(owner.host, self.me.host),
            Err(error) => assert_bearable(&error),
        }
    }

    async fn release(&self, token: Token) {
        self.take(Role::Releases);
        match self.store.release(self.vm, &self.me, token).await {
            Ok(Release::Released) => {
                let of = self.told(|told| told.tokens[&token].clone());
                assert_eq!(of.host, self.me.host, "released by another host");
                self.take(Role::Idle);
            }
            Ok(Release::NotOwner(Some(owner))) if owner.host == self.me.host => {
                assert_ne!(owner.token, token, "{} owns {} and could not release it", self.me, self.vm);
                let of = HostBoot { host: owner.host, boot_id: owner.boot_id };
                self.told(|told| told.learns(self.vm, &of, owner.token));
            }
            Ok(Release::NotOwner(_)) => self.take(Role::Idle),
            Err(error) => assert_bearable(&error),
        }
    }

    async fn commit(&self, token: Token, to: HostBoot) {
        self.take(Role::HandsOver);
        self.told(|told| {
            if told.role(&to) == Role::Idle {
                told.roles.insert(to.clone(), Role::Awaits);
            }
        });
        match self.store.commit(self.vm, &self.me, token, &to).await {
            Ok(Commit::Committed(new)) => {
                assert!(new > token, "{new} of {} follows {token}", self.vm);
                self.told(|told| {
                    assert_eq!(told.tokens[&token], self.me, "handed over by another host");
                    told.learns(self.vm, &to, new);
                });
                self.take(Role::Idle);
            }
            Ok(Commit::Refused(Some(owner))) if owner.is(&self.me) => {
                assert_ne!(owner.token, token, "{} owns {} and could not hand it over", self.me, self.vm);
            }
            Ok(Commit::Refused(_)) => self.take(Role::Idle),
            Err(error) => assert_bearable(&error),
        }
    }

    async fn abort(&self, token: Token) {
        self.take(Role::HandsOver);
        let before = self.told(|told| told.newest());
        match self.store.abort(self.vm, &self.me, token).await {
            Ok(Abort::Aborted(new)) => {
                assert!(before < Some(new), "{new} of {} follows {before:?}", self.vm);
                self.told(|told| {
                    assert_eq!(told.tokens[&token], self.me, "aborted by another host");
                    told.runs(self.vm, &self.me, new);
                });
            }
            Ok(Abort::Refused(Some(owner))) if owner.is(&self.me) => {
                assert_ne!(owner.token, token, "{} owns {} and could not abort", self.me, self.vm);
                self.told(|told| told.learns(self.vm, &self.me, owner.token));
            }
            Ok(Abort::Refused(_)) => self.take(Role::Idle),
            Err(error) => assert_bearable(&error),
        }
    }

    async fn look(&self, gives_up: bool) {
        match self.store.owner(self.vm).await {
            Ok(Some(owner)) if owner.is(&self.me) => {
                self.told(|told| told.runs(self.vm, &self.me, owner.token));
            }
            Ok(_) if gives_up => self.take(Role::Idle),
            Ok(_) => {}
            Err(error) => assert_bearable(&error),
        }
    }
}

fn assert_bearable(error: &StoreError) {
    assert!(matches!(error.category(), "unavailable" | "unknown"), "{error}");
}

async fn play(steps: Vec<Step>) {
    let (store, ledger) = (MemoryStore::new(), Arc::<Mutex<BTreeMap<VmUid, Told>>>::default());
    let vms: Vec<VmUid> = (0..VMS).map(|number| vm(&format!("vm {number}"))).collect();
    let mut boots = [1; HOSTS];
    let at = |boots: &[u32; HOSTS], number: usize| {
        host(&format!("xen-{number}"), &format!("boot-{}", boots[number]))
    };
    for step in steps {
        match step {
            Step::Calls(calls) => {
                let mut running = JoinSet::new();
                for ((number, vm), call) in calls {
                    let (store, ledger) = (store.clone(), Arc::clone(&ledger));
                    let caller = Caller { store, ledger, vm: vms[vm], me: at(&boots, number) };
                    let hosts_on = if let Call::Commit { hosts_on, .. } = call { hosts_on } else { 0 };
                    running.spawn(caller.make(call, at(&boots, (number + hosts_on) % HOSTS)));
                }
                running.join_all().await;
            }
            Step::Reboot(number) => {
                let gone = at(&boots, number);
                boots[number] += 1;
                ledger.lock().unwrap().values_mut().for_each(|told| {
                    told.roles.remove(&gone);
                });
            }
            Step::LoseAnswers(writes) => store.lose_answers(writes),
            Step::LoseRequests(writes) => store.lose_requests(writes),
            Step::DelayRequests(writes) => store.delay_requests(writes, Duration::ZERO),
            Step::DeliverDelayed => store.deliver_delayed(),
            Step::OutageAfterWrite => store.begin_outage_after_next_write(),
            Step::Outage(outage) => store.set_outage(outage),
        }
    }
    store.end_faults();
    store.deliver_delayed();
    for vm in vms {
        let told = ledger.lock().unwrap().remove(&vm).unwrap_or_default();
        settle(&store, vm, &told).await;
    }
}

/// When the faults have stopped, whoever believes itself the owner is, and the virtual machine can be had again.
async fn settle(store: &MemoryStore, vm: VmUid, told: &Told) {
    let owner = store.owner(vm).await.unwrap();
    if let Some(believer) = told.believer() {
        assert!(
            owner.as_ref().is_some_and(|owner| owner.is(believer)),
            "{believer} runs, {owner:?} owns {vm}"
        );
    }
    if let Some(owner) = owner {
        let me = HostBoot { host: owner.host, boot_id: owner.boot_id };
        assert_eq!(store.release(vm, &me, owner.token).await.unwrap(), Release::Released);
    }
    let before = told.newest();
    match store.start(vm, &host("xen-9", "boot-1")).await.unwrap() {
        Start::Acquired(token) => assert!(before < Some(token), "{token} of {vm} follows {before:?}"),
        other => panic!("{vm} is lost: {other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4096,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_history_gives_a_virtual_machine_two_owners_or_a_token_twice(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play(steps));
    }
}
