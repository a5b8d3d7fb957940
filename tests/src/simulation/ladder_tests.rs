//! What a host does that hears nothing of the pool's store, or hears that a guest of its own is another host's.

use super::{
    stage::{Stage, object, play, protected},
    step::{Action, Seconds},
    world::{HOSTS, USERS},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use kubexen_crds::VirtualDisk;
use kubexen_node_agent::hypervisor::DomainState;
use kubexen_ownership::{Cut, Owner, VmUid, liveness::Timing};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How the domain of a machine stands on the host that it is on.
fn state(stage: &Stage, name: &str) -> Option<DomainState> {
    let uid = stage.machine(name)["metadata"]["uid"].as_str()?.to_owned();
    let domains = stage.world.hosts.iter().flat_map(|side| side.host.domains().unwrap_or_default());
    domains.into_iter().find(|domain| domain.uuid.to_string() == uid).map(|domain| domain.state)
}

/// Whether the watchdog runs on the host that a machine is on.
fn has_watchdog(stage: &Stage, name: &str) -> bool {
    let host = stage.machine(name)["status"]["host"].clone();
    let side = stage.world.hosts.iter().find(|side| host == side.name);
    side.is_some_and(|side| side.host.watchdog().unwrap().is_some())
}

/// The record of a machine, whatever fails.
fn record(stage: &Stage, name: &str) -> Option<Owner> {
    let vm: VmUid = stage.machine(name)["metadata"]["uid"].as_str()?.parse().ok()?;
    stage.world.pool_store.owner_on_record(vm)
}

/// Makes the record of a machine say that this host has it.
fn give_to(stage: &Stage, name: &str, host: &str) {
    let boot = stage.boot(host).unwrap();
    let value = json!({"version": 1, "host": boot.host, "bootId": boot.boot_id, "phase": "Running"});
    let vm: VmUid = stage.machine(name)["metadata"]["uid"].as_str().unwrap().parse().unwrap();
    stage.world.pool_store.overwrite(vm, value.to_string().as_bytes());
}

/// What the only Domain says of whether it is Ready.
fn ready(stage: &Stage) -> Option<Value> {
    let domain = stage.world.api.objects("domains").into_iter().next()?;
    let conditions = domain["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == "Ready").cloned()
}

/// Whether it says that two hosts have the guest, and which.
fn tells_of_both(stage: &Stage, owner: &str, here: &str) -> bool {
    let Some(ready) = ready(stage).filter(|ready| ready["reason"] == "OwnershipViolated") else {
        return false;
    };
    let message = ready["message"].as_str().unwrap_or_default();
    ready["status"] == "False" && message.contains(owner) && message.contains(here)
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_runs_and_is_another_hosts_by_its_record_runs_on_and_that_is_said() {
    play(json!({}), async |stage| {
        stage.machines_on("host-a", &[("one", protected())]).await;
        give_to(stage, "one", "host-b");
        stage.until("it is said", |stage| tells_of_both(stage, "host-b", "host-a")).await;
        assert_eq!(state(stage, "one"), Some(DomainState::Running));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_stands_still_and_is_another_hosts_by_its_record_is_never_let_run_and_that_is_said() {
    play(json!({}), async |stage| {
        stage.machines_on("host-a", &[("one", protected())]).await;
        stage.world.hosts[0].agent.store.set_cut(Cut::Requests);
        stage.until("it stands still", |stage| state(stage, "one") == Some(DomainState::Paused)).await;
        give_to(stage, "one", "host-b");
        stage.world.hosts[0].agent.store.set_cut(Cut::None);
        for _ in 0..120 {
            sleep(Duration::from_secs(1)).await;
            assert_eq!(state(stage, "one"), Some(DomainState::Paused));
        }
        assert!(tells_of_both(stage, "host-b", "host-a"), "{:?}", ready(stage));
        // Nor to be asked to power itself off.
        stage.machines.delete("one", &DeleteParams::default()).await.unwrap();
        while let Some(state) = state(stage, "one") {
            assert_ne!(state, DomainState::Running);
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_the_ladder_has_paused_is_not_let_run_to_be_asked_to_power_itself_off() {
    play(json!({}), async |stage| {
        stage.machines_on("host-a", &[("one", protected())]).await;
        stage.world.hosts[0].agent.store.set_cut(Cut::Requests);
        stage.until("it stands still", |stage| state(stage, "one") == Some(DomainState::Paused)).await;
        stage.machines.delete("one", &DeleteParams::default()).await.unwrap();
        let began = Instant::now();
        while state(stage, "one").is_some() {
            assert_ne!(state(stage, "one"), Some(DomainState::Running));
            assert!(began.elapsed() < Timing::DEFAULT.deadline, "the ladder does not stop it");
            sleep(Duration::from_millis(20)).await;
        }
        stage.nothing_is_broken();
    })
    .await;
}

/// Makes a protected machine whose domain is built for so long that its host stops what it guards before the end of that, once it
/// hears nothing, and waits until it is guarded.
async fn guarded_before_it_is_built(stage: &Stage, late: Duration) {
    for side in &stage.world.hosts {
        *side.build_delay.lock().unwrap() = late;
    }
    let disks: Api<VirtualDisk> = Api::namespaced(stage.machines.clone().into_client(), USERS);
    let disk = json!({"metadata": {"name": "one"}, "spec": {"repository": "san", "size": "64Mi"}});
    disks.create(&PostParams::default(), &object(disk)).await.unwrap();
    let machine = json!({"metadata": {"name": "one"}, "spec": {
        "memory": {"size": "256Mi"},
        "boot": {"type": "PVH", "kernel": {"name": "linux", "commandLine": ""}},
        "disks": [{"name": "root", "disk": "one"}],
        "availability": protected(),
    }});
    stage.machines.create(&PostParams::default(), &object(machine)).await.unwrap();
    stage.until_guarded("one").await;
    assert_eq!(state(stage, "one"), None, "it is not built yet");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_not_to_be_protected_any_more_is_not_let_run_while_its_record_says_that_it_is() {
    play(json!({}), async |stage| {
        let late = Timing::DEFAULT.lease;
        guarded_before_it_is_built(stage, late).await;
        stage.world.pool_store.set_outage(true);
        let change = json!({"spec": {"availability": {"restartPriority": "BestEffort"}}});
        stage.machines.patch("one", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
        sleep(late + Duration::from_secs(1)).await;
        stage.until("it is built", |stage| state(stage, "one").is_some()).await;
        let began = Instant::now();
        loop {
            let runs = state(stage, "one") == Some(DomainState::Running);
            let is_guarded = record(stage, "one").is_some_and(|owner| owner.guarded);
            assert!(!runs || !is_guarded || has_watchdog(stage, "one"), "it is stolen while it runs");
            if runs {
                break;
            }
            if began.elapsed() > Duration::from_secs(60) {
                stage.world.pool_store.set_outage(false);
            }
            assert!(began.elapsed() < Duration::from_secs(180), "it does not run");
            sleep(Duration::from_millis(100)).await;
        }
        stage.nothing_is_broken();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_built_while_the_ladder_is_climbed_is_not_let_run_before_the_store_answers() {
    play(json!({}), async |stage| {
        let late = Timing::DEFAULT.lease;
        guarded_before_it_is_built(stage, late).await;
        stage.world.pool_store.set_outage(true);
        // All that was guarded is gone, as far as the ladder sees, before the guest is there.
        sleep(late + Duration::from_secs(1)).await;
        stage.until("it is built", |stage| state(stage, "one").is_some()).await;
        for _ in 0..60 {
            let state = state(stage, "one");
            assert!(state.is_none_or(|state| state != DomainState::Running), "{state:?}");
            sleep(Duration::from_secs(1)).await;
        }
        for host in HOSTS {
            let (process, late, r#for) = (format!("agent-{host}"), Seconds(1.5), Seconds(30.0));
            stage.world.perform(&Action::SlowStore { process, late, r#for }).await;
        }
        stage.world.pool_store.set_outage(false);
        stage.until("it runs", |stage| state(stage, "one") == Some(DomainState::Running)).await;
        assert!(has_watchdog(stage, "one"), "it runs, and nobody keeps what was promised of it");
        stage.until_guarded("one").await;
        stage.nothing_is_broken();
    })
    .await;
}
