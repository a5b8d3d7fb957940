//! Random histories of hosts that start, release, reboot and lose requests against the memory store.
//!
//! What is checked is what the hosts were told, not what the store holds: at no moment do two hosts believe that they
//! own one virtual machine, and each ownership has a greater token than those before it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use kubexen_ownership::conformance::{host, vm};
use kubexen_ownership::{HostBoot, MemoryStore, OwnershipStore, Release, Start, Token, VmUid};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use tokio::task::JoinSet;

const HOSTS: usize = 3;
const VMS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Call {
    Start,
    Release { token_back: usize },
}

#[derive(Clone, Debug)]
enum Step {
    /// These calls at once, each of (host, virtual machine); a host makes one call at a time for each of them.
    Calls(BTreeMap<(usize, usize), Call>),
    Reboot(usize),
    LoseAnswers(u32),
    LoseRequests(u32),
    OutageAfterWrite,
    Outage(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let call = prop_oneof![
        3 => Just(Call::Start),
        2 => (0..3_usize).prop_map(|token_back| Call::Release { token_back }),
    ];
    prop_oneof![
        8 => prop::collection::btree_map((0..HOSTS, 0..VMS), call, 1..6).prop_map(Step::Calls),
        1 => (0..HOSTS).prop_map(Step::Reboot),
        1 => (1..4_u32).prop_map(Step::LoseAnswers),
        1 => (1..8_u32).prop_map(Step::LoseRequests),
        1 => Just(Step::OutageAfterWrite),
        1 => Just(Step::Outage(true)),
        2 => Just(Step::Outage(false)),
    ]
}

/// What the hosts were told about one virtual machine.
#[derive(Default)]
struct Told {
    /// Who believes itself the owner: from the answer of a start to the call of a release, or a reboot.
    believers: BTreeSet<HostBoot>,
    /// Every ownership that was ever told of. A token is of one host at one boot.
    tokens: BTreeMap<Token, HostBoot>,
}

impl Told {
    fn owns(&mut self, vm: VmUid, me: &HostBoot, token: Token) {
        let of = self.tokens.entry(token).or_insert_with(|| me.clone());
        assert_eq!(of, me, "token {token} of {vm} was given twice");
        self.believers.insert(me.clone());
        assert_eq!(self.believers.len(), 1, "{vm} has two owners: {:?}", self.believers);
    }

    fn newest(&self) -> Option<Token> {
        self.tokens.keys().next_back().copied()
    }
}

type Ledger = Arc<Mutex<BTreeMap<VmUid, Told>>>;

async fn make(call: Call, store: MemoryStore, ledger: Ledger, vm: VmUid, me: HostBoot) {
    match call {
        Call::Start => {
            let before = ledger.lock().unwrap().entry(vm).or_default().newest();
            let answer = store.start(vm, &me).await;
            let mut ledger = ledger.lock().unwrap();
            let told = ledger.entry(vm).or_default();
            match answer {
                Ok(Start::Acquired(token)) => {
                    assert!(before < Some(token), "{token} of {vm} follows {before:?}");
                    told.owns(vm, &me, token);
                }
                Ok(Start::AlreadyMine(token)) => told.owns(vm, &me, token),
                Ok(Start::Refused(owner)) => assert_ne!(owner.host, me.host),
                Err(error) => assert!(matches!(error.category(), "unavailable" | "unknown"), "{error}"),
            }
        }
        Call::Release { token_back } => {
            let token = {
                let mut ledger = ledger.lock().unwrap();
                let told = ledger.entry(vm).or_default();
                told.believers.remove(&me);
                told.tokens.keys().rev().nth(token_back).copied().unwrap_or(Token(1))
            };
            match store.release(vm, &me, token).await {
                Ok(Release::Released) => {
                    let ledger = ledger.lock().unwrap();
                    assert_eq!(ledger[&vm].tokens[&token].host, me.host, "released by another host");
                }
                Ok(Release::NotOwner(owner)) => {
                    let mine = owner.is_some_and(|owner| owner.host == me.host && owner.token == token);
                    assert!(!mine, "{me} owns {vm} under {token} and could not release it");
                }
                Err(error) => assert!(matches!(error.category(), "unavailable" | "unknown"), "{error}"),
            }
        }
    }
}

async fn play(steps: Vec<Step>) {
    let (store, ledger) = (MemoryStore::new(), Ledger::default());
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
                    running.spawn(make(call, store, ledger, vms[vm], at(&boots, number)));
                }
                running.join_all().await;
            }
            Step::Reboot(number) => {
                let gone = at(&boots, number);
                boots[number] += 1;
                ledger.lock().unwrap().values_mut().for_each(|told| {
                    told.believers.remove(&gone);
                });
            }
            Step::LoseAnswers(writes) => store.lose_answers(writes),
            Step::LoseRequests(writes) => store.lose_requests(writes),
            Step::OutageAfterWrite => store.begin_outage_after_next_write(),
            Step::Outage(outage) => store.set_outage(outage),
        }
    }
    settle(&store, &ledger, &vms).await;
}

/// When the faults have stopped, whoever believes itself the owner is, and every virtual machine can be had again.
async fn settle(store: &MemoryStore, ledger: &Ledger, vms: &[VmUid]) {
    store.end_faults();
    for vm in vms {
        let owner = store.owner(*vm).await.unwrap();
        let believer = ledger.lock().unwrap().get(vm).and_then(|told| told.believers.iter().next().cloned());
        if let Some(believer) = believer {
            let owner = owner.as_ref().map(|owner| (&owner.host, &owner.boot_id));
            assert_eq!(owner, Some((&believer.host, &believer.boot_id)), "the owner of {vm}");
        }
        if let Some(owner) = owner {
            let me = HostBoot { host: owner.host, boot_id: owner.boot_id };
            assert_eq!(store.release(*vm, &me, owner.token).await.unwrap(), Release::Released);
        }
        let before = ledger.lock().unwrap().get(vm).and_then(Told::newest);
        match store.start(*vm, &host("xen-9", "boot-1")).await.unwrap() {
            Start::Acquired(token) => assert!(before < Some(token), "{token} of {vm} follows {before:?}"),
            other => panic!("{vm} is lost: {other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
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
