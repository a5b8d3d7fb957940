//! The pool's store is restored from a backup: the pool holds still until an operator confirms it, and nothing runs twice.

use super::{
    stage::{Stage, condition, object, play, protected},
    world::USERS,
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use kubexen_crds::VirtualMachineMigration;
use kubexen_ownership::{MemoryStore, OwnershipStore, VmUid, liveness::Liveness};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::sleep;

/// Longer than a lease, its grace and a start take.
const LONG: Duration = Duration::from_mins(3);

/// What the Pool says of its store: the epoch that waits, and the message.
fn freeze(stage: &Stage) -> Option<(String, String)> {
    let pool = stage.world.api.object("pools", "", "default")?;
    let said = condition(&pool["status"], "Recovering").filter(|said| said["reason"] == "Frozen")?;
    let epoch = pool["status"]["availability"]["freeze"].as_str()?.to_owned();
    Some((epoch, said["message"].as_str()?.to_owned()))
}

async fn until_frozen_and_on_record(stage: &mut Stage) -> String {
    stage
        .until("all guests are on record", |stage| {
            freeze(stage).is_some_and(|(_, message)| message.contains("; all hosts have put on record"))
        })
        .await;
    freeze(stage).unwrap().0
}

async fn confirm(stage: &Stage, epoch: &str) {
    let change = json!({"spec": {"availability": {"confirmedEpoch": epoch}}});
    stage.pools.patch("default", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
}

async fn until_thawed(stage: &mut Stage) {
    stage
        .until("the pool goes on", |stage| {
            let pool = stage.world.api.object("pools", "", "default").unwrap();
            freeze(stage).is_none() && pool["status"]["availability"]["freeze"].is_null()
        })
        .await;
}

async fn change(stage: &Stage, name: &str, change: Value) {
    stage.machines.patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
}

async fn move_to(stage: &mut Stage, name: &str, host: &str) {
    stage
        .until("its spec is known", |stage| {
            let machine = stage.machine(name);
            machine["status"]["observedGeneration"] == machine["metadata"]["generation"]
        })
        .await;
    let migrations: Api<VirtualMachineMigration> =
        Api::namespaced(stage.machines.clone().into_client(), USERS);
    let wanted = json!({"metadata": {"name": name}, "spec": {"virtualMachine": name, "host": host}});
    migrations.create(&PostParams::default(), &object(wanted)).await.unwrap();
    stage.until("it has moved", |stage| stage.is_ready_on(name).as_deref() == Some(host)).await;
    stage
        .until("the move is over", |stage| {
            let migration = stage.world.api.object("virtualmachinemigrations", USERS, name).unwrap();
            migration["status"]["phase"] == "Succeeded"
        })
        .await;
    migrations.delete(name, &DeleteParams::default()).await.unwrap();
}

/// The hosts on which a machine has a domain.
fn domains(stage: &Stage, name: &str) -> Vec<&'static str> {
    let machine = stage.machine(name);
    let uid = machine["metadata"]["uid"].as_str().unwrap();
    let has = |domains: Vec<kubexen_node_agent::hypervisor::DomainInfo>| {
        domains.iter().any(|domain| domain.uuid.to_string() == uid)
    };
    let sides = stage.world.hosts.iter().filter(|side| side.host.domains().is_ok_and(has));
    sides.map(|side| side.name).collect()
}

async fn recorded(stage: &Stage, name: &str) -> Option<String> {
    let vm: VmUid = stage.machine(name)["metadata"]["uid"].as_str()?.parse().ok()?;
    stage.world.pool_store.owners().await.unwrap().get(&vm).map(|owner| owner.host.to_string())
}

#[tokio::test(start_paused = true)]
async fn nothing_is_started_stopped_or_stolen_before_an_operator_confirms_the_restored_store() {
    play(json!({}), async |stage| {
        stage.machines_on("host-a", &[("moved", protected()), ("gone", json!({}))]).await;
        let backup = stage.world.pool_store.backup();
        move_to(stage, "moved", "host-b").await;
        stage.until_guarded("moved").await;
        stage.machines_on("host-b", &[("made", json!({}))]).await;
        stage.machines.delete("gone", &DeleteParams::default()).await.unwrap();
        stage.until("it is gone", |stage| stage.machine("gone").is_null()).await;

        stage.world.pool_store.restore(&backup);
        let epoch = until_frozen_and_on_record(stage).await;
        assert!(epoch.starts_with("2-"), "{epoch}");
        change(stage, "made", json!({"spec": {"powerState": "Halted"}})).await;
        let boot = json!({"type": "PVH", "kernel": {"name": "linux", "commandLine": ""}});
        let spec = json!({"memory": {"size": "256Mi"}, "boot": boot});
        let later = json!({"metadata": {"name": "later"}, "spec": spec});
        stage.machines.create(&PostParams::default(), &object(later)).await.unwrap();
        // An agent that is started anew knows it from the store alone.
        let agent = &mut stage.world.hosts[1].agent;
        agent.crash(&stage.world.judge).await;
        stage.world.start_agent(1);
        confirm(stage, "1-1").await;
        sleep(LONG).await;
        assert!(freeze(stage).is_some(), "another epoch confirms nothing");
        assert_eq!(domains(stage, "moved"), ["host-b"]);
        assert_eq!(domains(stage, "made"), ["host-b"], "it is not stopped");
        assert_eq!(domains(stage, "later"), Vec::<&str>::new(), "it is not started");
        assert!(stage.world.pool_store.roll().await.unwrap().fenced.is_empty());
        for name in ["moved", "made"] {
            assert_eq!(recorded(stage, name).await.as_deref(), Some("host-b"), "what runs is on record");
        }

        confirm(stage, &epoch).await;
        until_thawed(stage).await;
        stage.until("it is started", |stage| stage.is_ready_on("later").is_some()).await;
        stage.until("it is stopped", |stage| domains(stage, "made").is_empty()).await;
        stage.until_guarded("moved").await;
        assert_eq!(domains(stage, "moved"), ["host-b"]);
        // What the backup said of a machine that is gone is given back.
        let began = tokio::time::Instant::now();
        while stage.world.pool_store.owners().await.unwrap().len() > 2 {
            assert!(began.elapsed() < LONG, "{:?}", stage.world.pool_store.owners().await);
            sleep(Duration::from_secs(1)).await;
        }
        stage.cut_power("host-b").await;
        stage.until_back("moved", "host-b").await;
        stage.nothing_is_broken();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_off_is_waited_for_until_it_is_confirmed_dead_and_only_what_it_ran_is_started_elsewhere()
 {
    play(json!({}), async |stage| {
        stage.machines_on("host-a", &[("moved", protected()), ("stays", protected())]).await;
        let backup = stage.world.pool_store.backup();
        move_to(stage, "moved", "host-b").await;
        stage.until_guarded("moved").await;
        stage.machines_on("host-a", &[("made", protected())]).await;
        stage.world.pool_store.restore(&backup);
        stage.cut_power("host-a").await;
        stage.until("the pool is frozen", |stage| freeze(stage).is_some()).await;
        let (epoch, _) = freeze(stage).unwrap();
        confirm(stage, &epoch).await;
        sleep(LONG).await;
        let (_, message) = freeze(stage).expect("it is frozen still");
        assert!(message.contains("wait for host-a"), "{message}");
        for (name, on) in [("moved", "host-b"), ("stays", "host-a"), ("made", "host-a")] {
            assert_eq!(stage.machine(name)["status"]["host"], on, "{name} is left where it was");
        }
        stage.confirm_dead("host-a").await;
        until_thawed(stage).await;
        for name in ["stays", "made"] {
            stage.until_back(name, "host-a").await;
        }
        assert_eq!(domains(stage, "moved"), ["host-b"], "the old record does not count");
        stage.nothing_is_broken();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_store_in_the_place_of_the_old_one_freezes_the_pool_too() {
    play(json!({}), async |stage| {
        stage.machines_on("host-a", &[("one", protected())]).await;
        stage
            .until("the epoch is remembered", |stage| {
                let pool = stage.world.api.object("pools", "", "default").unwrap();
                pool["status"]["availability"]["epoch"] == "1-1"
            })
            .await;
        stage.world.pool_store.restore(&MemoryStore::new().backup());
        let epoch = until_frozen_and_on_record(stage).await;
        sleep(LONG).await;
        assert_eq!(domains(stage, "one"), ["host-a"]);
        confirm(stage, &epoch).await;
        until_thawed(stage).await;
        stage.until_guarded("one").await;
        assert_eq!(domains(stage, "one"), ["host-a"]);
        stage.nothing_is_broken();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_cut_off_from_a_frozen_store_keeps_its_promise_all_the_same() {
    play(json!({}), async |stage| {
        stage.machines_on("host-a", &[("one", protected())]).await;
        let backup = stage.world.pool_store.backup();
        stage.world.pool_store.restore(&backup);
        let epoch = until_frozen_and_on_record(stage).await;
        stage.cut_power("host-a").await;
        confirm(stage, &epoch).await;
        // It was on record when it died.
        until_thawed(stage).await;
        stage.until_back("one", "host-a").await;
        stage.nothing_is_broken();
    })
    .await;
}
