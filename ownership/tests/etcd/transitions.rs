//! Owners change while members of etcd are killed, stand still and pass the lead on, and what clients are told stays true.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use etcd_client::Client as EtcdClient;
use kubexen_ownership::conformance::{host, vm};
use kubexen_ownership::liveness::Join;
use kubexen_ownership::{DiskUid, EtcdStore, HostBoot, LeaseId, Owner, Phase, Token};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::history::{Client, Event, History, linearizable};
use crate::server::Etcd;
use crate::spec::{Hosts, Op, Ret};
use crate::store;

/// Virtual machines that change hands at a time.
const AT_ONCE: usize = 6;
/// What each client does with one of them: few enough operations for all of their orders to be looked at.
const TURNS: usize = 6;

/// What a client does at its turn, once it knows the owner.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Start,
    Release,
    Guard,
    Commit,
    Abort,
    /// A release under a token that is none, or was one.
    Late,
    /// It goes to a disk, and comes back from there.
    Save,
    /// What the disk holds is given up.
    Discard,
    /// Its host joins anew, whether it is live or not.
    Join,
    /// Its host gives its lease up.
    Leave,
}

/// Who does it, and how long after the last turn.
fn turns(runner: &mut TestRunner) -> Vec<(Turn, Duration)> {
    let turn = prop_oneof![
        3 => Just(Turn::Start),
        2 => Just(Turn::Release),
        2 => Just(Turn::Guard),
        2 => Just(Turn::Commit),
        1 => Just(Turn::Abort),
        1 => Just(Turn::Late),
        2 => Just(Turn::Save),
        1 => Just(Turn::Discard),
        1 => Just(Turn::Join),
        1 => Just(Turn::Leave),
    ];
    let pause = (0..20_u64).prop_map(Duration::from_millis);
    prop::collection::vec((turn, pause), TURNS).new_tree(runner).unwrap().current()
}

/// A host, and what is taken while it starts the machine, or is handed it: agents do one of that at a time.
type Place = (HostBoot, Arc<Mutex<()>>);

/// A host with a virtual machine.
async fn live(mut client: Client, (me, here): Place, (other, there): Place, turns: Vec<(Turn, Duration)>) {
    let disk = DiskUid(uuid::Uuid::from_u128(9));
    let mut lease = join(&mut client, &me).await;
    for (turn, pause) in turns {
        sleep(pause).await;
        let Some(owner) = client.read().await else { continue };
        let mine = owner.clone().filter(|owner| owner.is(&me)).map(|owner| (owner.phase, owner));
        let op = match (turn, mine) {
            (Turn::Join, _) => {
                lease = join(&mut client, &me).await.or(lease);
                continue;
            }
            (Turn::Leave, _) => match lease.take() {
                Some(lease) => Op::Leave { me: me.clone(), lease },
                None => continue,
            },
            (Turn::Discard, _) => Op::Discard { disk },
            (Turn::Late, _) => {
                let token = owner.map_or(Token(1), |owner| Token(owner.token.0 - 1));
                Op::Release { me: me.clone(), token }
            }
            (_, Some((Phase::Saved(disk), _))) => Op::Resume { me: me.clone(), disk },
            (Turn::Save | Turn::Abort, Some((Phase::Resuming(disk), Owner { token, .. }))) => {
                Op::Save { me: me.clone(), token, disk }
            }
            (_, Some((Phase::Resuming(_), Owner { token, .. }))) => Op::Run { me: me.clone(), token },
            (Turn::Start, Some((Phase::Running, _))) => Op::Start { me: me.clone() },
            (Turn::Release, Some((Phase::Running, Owner { token, .. }))) => {
                Op::Release { me: me.clone(), token }
            }
            (Turn::Guard, Some((Phase::Running, Owner { token, guarded, .. }))) => {
                Op::Guard { me: me.clone(), token, guarded: !guarded }
            }
            (Turn::Commit, Some((Phase::Running, Owner { token, .. }))) => {
                Op::Commit { from: me.clone(), token, to: other.clone() }
            }
            (Turn::Abort, Some((Phase::Running, Owner { token, .. }))) => Op::Abort { me: me.clone(), token },
            (Turn::Save, Some((Phase::Running, Owner { token, .. }))) => {
                Op::Save { me: me.clone(), token, disk }
            }
            (_, None) => match owner.map(|owner| owner.phase) {
                Some(Phase::Saved(disk)) => Op::Resume { me: me.clone(), disk },
                Some(Phase::Running | Phase::Resuming(_)) | None => Op::Start { me: me.clone() },
            },
        };
        let busy = match &op {
            Op::Start { .. } | Op::Resume { .. } => Some(&here),
            Op::Commit { .. } => Some(&there),
            Op::Read
            | Op::Release { .. }
            | Op::Guard { .. }
            | Op::Abort { .. }
            | Op::Steal { .. }
            | Op::Save { .. }
            | Op::Run { .. }
            | Op::Discard { .. }
            | Op::Join { .. }
            | Op::Leave { .. }
            | Op::Fence { .. } => None,
        };
        let _busy = match busy {
            Some(busy) => Some(busy.lock().await),
            None => None,
        };
        client.ask(op).await;
    }
}

/// The lease on which a host is live, as far as it is told.
async fn join(client: &mut Client, me: &HostBoot) -> Option<LeaseId> {
    match client.ask(Op::Join { me: me.clone() }).await {
        Some(Ret::Join(Join::Joined(lease))) => Some(lease),
        Some(_) | None => None,
    }
}

/// Who fences the owner, gives guests of the dead away, and tries to with those of the living.
async fn steal(mut client: Client, heirs: [Place; 3], turns: Vec<(Turn, Duration)>) {
    for ((turn, pause), (to, busy)) in turns.into_iter().zip(heirs.into_iter().cycle()) {
        sleep(pause).await;
        let Some(Some(owner)) = client.read().await else { continue };
        let Owner { host, boot_id, token, .. } = owner;
        let from = HostBoot { host, boot_id };
        if !matches!(turn, Turn::Late | Turn::Discard) {
            client.ask(Op::Fence { boot: from.clone() }).await;
        }
        let _busy = busy.lock().await;
        client.ask(Op::Steal { from, token, to }).await;
    }
}

#[tokio::test]
async fn what_clients_are_told_of_owners_is_linearizable_whatever_befalls_members() {
    let mut members = Etcd::start_three().await;
    let endpoints = members.each_ref().map(Etcd::endpoint);
    let over = Arc::new(AtomicBool::new(false));
    let mut lanes = JoinSet::new();
    for lane in 0..AT_ONCE {
        let over = Arc::clone(&over);
        // Clients begin at different members.
        let stores: Vec<Arc<EtcdStore>> = (0..4)
            .map(|client| {
                let mut endpoints = endpoints.to_vec();
                endpoints.rotate_left((lane + client) % 3);
                Arc::new(store(&endpoints))
            })
            .collect();
        lanes.spawn(async move {
            let (mut histories, mut runner) = (Vec::new(), TestRunner::default());
            while !over.load(Ordering::SeqCst) {
                let number = histories.len();
                let history = History::new(vm(&format!("vm {lane}/{number}")));
                // Hosts of its own, because theirs is a part of what is told.
                let [a, b, c, absent] = ["a", "b", "c", "absent"].map(|name| {
                    (host(&format!("xen-{name}-{lane}-{number}"), "boot-1"), Arc::<Mutex<()>>::default())
                });
                let client = |number: usize| history.client(Arc::clone(&stores[number]));
                tokio::join!(
                    live(client(0), a.clone(), b.clone(), turns(&mut runner)),
                    live(client(1), b.clone(), a.clone(), turns(&mut runner)),
                    live(client(2), c.clone(), a.clone(), turns(&mut runner)),
                    steal(client(3), [a.clone(), absent.clone(), b.clone()], turns(&mut runner)),
                );
                histories.push(history);
            }
            histories
        });
    }
    harm(&mut members).await;
    over.store(true, Ordering::SeqCst);
    let histories: Vec<History> = lanes.join_all().await.into_iter().flatten().collect();
    tell(&histories);
    for history in &histories {
        assert!(history.is_linearizable(), "{:#?}", history.events());
    }
    let broken: Vec<Vec<Event>> = histories.iter().filter_map(with_old_state_at_the_end).take(20).collect();
    assert!(broken.len() == 20, "there are only {} histories in which an owner changed", broken.len());
    for events in &broken {
        assert!(!linearizable(vm("broken"), &Hosts::default(), events), "{events:#?}");
    }
}

/// A history as it was, after which somebody is told of the first of several owners that were read.
fn with_old_state_at_the_end(history: &History) -> Option<Vec<Event>> {
    let mut events = history.events().clone();
    let mut owners = events.iter().filter_map(|event| match event {
        Event::Return(_, Ret::Read(owner)) => owner.clone(),
        Event::Return(..) | Event::Invoke(..) | Event::Nothing(_) => None,
    });
    let (first, last) = (owners.next()?, owners.next_back()?);
    let reader = usize::MAX;
    events.push(Event::Invoke(reader, Op::Read));
    events.push(Event::Return(reader, Ret::Read(Some(first.clone()))));
    (first.token < last.token).then_some(events)
}

/// Everything that may befall members, one after the other. Two that stand still take the quorum along.
async fn harm(members: &mut [Etcd; 3]) {
    let calm = || sleep(Duration::from_millis(700));
    calm().await;
    for number in 0..3 {
        members[number].kill();
        calm().await;
        members[number].restart().await;
        calm().await;
        members[number].pause().await;
        calm().await;
        members[number].resume();
        pass_the_lead_on(members).await;
        calm().await;
    }
    for (one, other) in [(0, 1), (1, 2)] {
        members[one].pause().await;
        members[other].pause().await;
        sleep(Duration::from_secs(4)).await;
        members[one].resume();
        members[other].resume();
        calm().await;
    }
}

/// Has the leader make another member the leader. That there is none just now, or that it cannot, is nothing to this test.
async fn pass_the_lead_on(members: &[Etcd; 3]) {
    for member in members {
        let mut client = EtcdClient::connect([member.endpoint()], None).await.unwrap();
        let Ok(status) = client.status().await else { continue };
        let me = status.header().map_or(0, etcd_client::ResponseHeader::member_id);
        if status.leader() != me {
            continue;
        }
        let Ok(list) = client.member_list().await else { continue };
        if let Some(next) = list.members().iter().map(etcd_client::Member::id).find(|id| *id != me) {
            let _ = client.move_leader(next).await;
        }
    }
}

/// Makes sure that there was something to look at, and says how much.
fn tell(histories: &[History]) {
    let (mut operations, mut answers, mut nothing) = (0, 0, 0);
    for history in histories {
        for event in history.events().iter() {
            match event {
                Event::Invoke(..) => operations += 1,
                Event::Return(..) => answers += 1,
                Event::Nothing(_) => nothing += 1,
            }
        }
    }
    println!(
        "{} histories, {operations} operations: {answers} answered, {nothing} changed nothing, {} unknown",
        histories.len(),
        operations - answers - nothing
    );
    assert!(histories.len() > 20, "there are only {} histories", histories.len());
    assert!(answers < operations, "no member's fate was noticed");
}
