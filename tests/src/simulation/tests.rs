//! The judge notices what it is there for.

use super::{
    faults,
    judge::Judge,
    settle,
    step::{Action, Kind, Seconds},
    users,
    world::World,
};
use crate::memory_api::{Object, Observer, Perfect, Write};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use kubexen_crds::Network;
use kubexen_node_agent::hypervisor::{
    DomainConfig, Hypervisor, Scheduling,
    simulated::{Profile, SimulatedHost, SimulatedHypervisor},
};
use kubexen_ownership::{BootId, HostBoot, HostName, OwnershipStore, VmUid, liveness::Timing};
use kubexen_runtime::clock::VirtualClock;
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{
    task::{LocalSet, spawn_local},
    time::{Instant, sleep},
};
use uuid::Uuid;

const UUID: Uuid = Uuid::from_u128(1);

#[tokio::test(start_paused = true)]
async fn every_fault_that_happens_by_chance_can_be_asked_for_by_its_name() {
    let chosen = async {
        let mut world = World::new(1);
        let mut chosen = BTreeSet::new();
        // A store can be restored once it was copied.
        for backup in [None, Some(world.pool_store.backup())] {
            world.backup = backup;
            let faults = (0..5_000).flat_map(|_| faults::choose(&world));
            chosen.extend(faults.map(|fault| fault.name()));
        }
        chosen
    };
    let mut chosen = LocalSet::new().run_until(chosen).await;
    // A guest stops by itself only where there is one, and no fault is none.
    chosen.extend(["stop-guest".to_owned(), "none".to_owned()]);
    assert_eq!(chosen, faults::NAMES.map(str::to_owned).into());
}

async fn judge_with_a_domain_on(host: &str) -> Judge {
    let judge = Judge::new(Arc::new(VirtualClock::starting_at(jiff::Timestamp::UNIX_EPOCH)));
    for name in ["host-a", "host-b"] {
        let clock = Arc::new(VirtualClock::starting_at(jiff::Timestamp::UNIX_EPOCH));
        let simulated = SimulatedHost::in_memory(name, Profile::default(), clock);
        judge.add_host(name, simulated.clone());
        if name == host {
            let hypervisor = SimulatedHypervisor::new(simulated);
            hypervisor.create(&config()).await.unwrap();
            hypervisor.unpause(UUID).await.unwrap();
        }
    }
    judge
}

fn config() -> DomainConfig {
    DomainConfig {
        uuid: UUID,
        token: 5,
        cpu_level: None,
        boot: kubexen_crds::BootType::Pvh,
        firmware: None,
        kernel: None,
        vcpus: 1,
        max_vcpus: 1,
        scheduling: Scheduling::default(),
        memory_kib: 1024,
        max_memory_kib: 1024,
        disks: Vec::new(),
        cds: Vec::new(),
        cds_first: false,
        interfaces: Vec::new(),
    }
}

fn domain(deleting: bool) -> Value {
    let mut domain = json!({
        "metadata": {"namespace": "kubexen-host-host-a", "name": "shop.web"},
        "spec": {"virtualMachine": {"uid": UUID.to_string()}},
        "status": {"ownerToken": 5},
    });
    if deleting {
        domain["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
    domain
}

fn wrote(judge: &Judge, before: Option<Value>, object: Value) {
    let (before, object) = (before.map(Object::new).map(Arc::new), Arc::new(Object::new(object)));
    let (before, object) = (before.as_ref(), &object);
    judge.wrote(Write { client: "test", kind: "Domain", before, object, deleted: false });
}

fn broken(judge: &Judge) -> Vec<String> {
    judge.verdict().0.iter().filter_map(|how| how.split(':').next().map(str::to_owned)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_domain_that_is_built_on_a_second_host_breaks_a_promise() {
    let judge = judge_with_a_domain_on("host-a").await;
    judge.creating("host-a", UUID, 5);
    assert!(!judge.is_upset());
    judge.creating("host-b", UUID, 6);
    assert_eq!(broken(&judge), ["I1"]);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_goes_back_breaks_a_promise() {
    let judge = judge_with_a_domain_on("host-a").await;
    judge.creating("host-a", UUID, 5);
    judge.creating("host-a", UUID, 4);
    let (before, mut after) = (domain(false), domain(false));
    after["status"] = json!({});
    wrote(&judge, Some(before), after);
    assert_eq!(broken(&judge), ["I3", "I3"]);
}

#[tokio::test(start_paused = true)]
async fn a_domain_that_is_built_at_another_boot_under_an_old_token_breaks_a_promise() {
    let judge = judge_with_a_domain_on("host-c").await;
    judge.creating("host-a", UUID, 5);
    judge.creating("host-a", UUID, 5);
    assert!(!judge.is_upset(), "a host may build its guest again");
    judge.creating("host-b", UUID, 5);
    assert_eq!(broken(&judge), ["I3"]);
}

#[tokio::test(start_paused = true)]
async fn a_guarded_guest_that_runs_on_a_silent_host_breaks_a_promise() {
    for (silence, guarded, promises) in [(20, true, 0), (22, false, 0), (22, true, 1)] {
        let judge = judge_with_a_domain_on("host-a").await;
        judge.heard("host-a", Instant::now(), Timing::DEFAULT, |_| false);
        sleep(Duration::from_secs(silence)).await;
        judge.judge_silence(|_, _| guarded);
        judge.judge_silence(|_, _| guarded);
        assert_eq!(broken(&judge), vec!["I8"; promises], "after {silence} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_running_domain_is_destroyed_only_when_its_object_says_so() {
    let judge = judge_with_a_domain_on("host-a").await;
    judge.destroying("host-a", UUID, false, false);
    assert_eq!(broken(&judge), ["I4"], "without an object");
    wrote(&judge, None, domain(false));
    judge.destroying("host-a", UUID, false, false);
    assert_eq!(broken(&judge), ["I4", "I4"], "with an object that is wanted");
    wrote(&judge, Some(domain(false)), domain(true));
    judge.destroying("host-a", UUID, false, false);
    assert_eq!(broken(&judge).len(), 2, "with an object that is being deleted");
}

/// The promises that a pool with one machine breaks, in which nothing fails but what `sabotage` does.
async fn broken_by(sabotage: impl AsyncFnOnce(&World)) -> Vec<String> {
    let judge = async {
        let mut world = World::new(1);
        world.weather.calm_down();
        world.begin().await;
        for action in users::make_machine(&world, "vm-0") {
            world.perform(&action).await;
        }
        sabotage(&world).await;
        settle::judge(&mut world, settle::QUIET).await;
        broken(&world.judge)
    };
    LocalSet::new().run_until(judge).await
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_nothing_happens_to_keeps_every_promise() {
    assert_eq!(broken_by(async |_| {}).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_never_gets_where_its_spec_says_breaks_a_promise() {
    let sabotage = async |world: &World| {
        world.hosts.iter().for_each(|side| side.host.refuse_creates(u32::MAX));
    };
    assert_eq!(broken_by(sabotage).await, ["L1"]);
}

#[tokio::test(start_paused = true)]
async fn writes_that_never_end_break_a_promise() {
    let sabotage = async |world: &World| {
        let networks: Api<Network> = Api::all(world.api.client("restless", Arc::new(Perfect)));
        spawn_local(async move {
            for round in 0_u64.. {
                sleep(Duration::from_secs(20)).await;
                let label = json!({"metadata": {"labels": {"round": round.to_string()}}});
                networks.patch("lan", &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
            }
        });
    };
    assert_eq!(broken_by(sabotage).await, ["L4"]);
}

#[tokio::test(start_paused = true)]
async fn an_owner_record_that_outlives_its_machine_breaks_a_promise() {
    let sabotage = async |world: &World| {
        let boot_id = BootId::new("boot").unwrap();
        // A host of the pool would give it back.
        let me = HostBoot { host: HostName::new("elsewhere").unwrap(), boot_id };
        world.pool_store.start(VmUid(UUID), &me).await.unwrap();
    };
    assert_eq!(broken_by(sabotage).await, ["I6"]);
}

#[tokio::test(start_paused = true)]
async fn a_protected_guest_that_runs_nowhere_after_its_host_died_breaks_a_promise() {
    for (refused, promises) in [(0, vec![]), (u32::MAX, vec!["L2"])] {
        let judge = async {
            let mut world = World::new(1);
            world.weather.calm_down();
            world.begin().await;
            let pool = json!({"metadata": {"name": "default"}, "spec": {}});
            world.act(Action::Create { kind: Kind::Pool, object: pool }).await;
            for action in users::plain_machine("web", "Protected", Some("san")) {
                world.act(action).await;
            }
            world.wait(Duration::from_mins(1)).await;
            world.act(Action::Expect { machine: "web".to_owned(), on: Some("host-a".to_owned()) }).await;
            world.hosts.iter().for_each(|side| side.host.refuse_creates(refused));
            world.act(Action::CutPower { host: "host-a".to_owned(), r#for: Seconds(600.0) }).await;
            world.wait(Duration::from_secs(110)).await;
            broken(&world.judge)
        };
        assert_eq!(LocalSet::new().run_until(judge).await, promises, "with {refused} builds refused");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_asked_to_power_off_without_a_reason_breaks_a_promise() {
    let judge = judge_with_a_domain_on("host-a").await;
    wrote(&judge, None, domain(false));
    judge.asking_to_stop("host-a", UUID);
    assert_eq!(broken(&judge), ["I4"]);
    wrote(&judge, Some(domain(false)), domain(true));
    judge.asking_to_stop("host-a", UUID);
    assert_eq!(broken(&judge).len(), 1, "its object is being deleted");
}

#[tokio::test(start_paused = true)]
async fn the_domain_of_a_guest_that_runs_and_is_wanted_is_not_deleted() {
    let judge = judge_with_a_domain_on("host-a").await;
    let machine = json!({"metadata": {"uid": UUID.to_string()}, "spec": {"powerState": "Running"}});
    let machine = Arc::new(Object::new(machine));
    judge.wrote(Write {
        client: super::users::PEOPLE,
        kind: "VirtualMachine",
        before: None,
        object: &machine,
        deleted: false,
    });
    wrote(&judge, None, domain(false));
    wrote(&judge, Some(domain(false)), domain(true));
    assert_eq!(broken(&judge), ["I4"]);
}
