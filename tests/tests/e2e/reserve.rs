//! Room that is kept for the protected machines of hosts that may die.

use crate::{
    fixpoint,
    scene::{PATIENCE, Scene, condition_is, message, with_disk},
    world::World,
};
use anyhow::{Context, Result, ensure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use kubexen_crds::{Host, Pool, VirtualMachine, condition::find};
use kubexen_testbed::{
    pool::{PoolOptions, SimulatedHostOptions},
    process::wait_until,
};
use serde_json::{Value, json};

/// Protected machines that fit if one of the hosts may die.
const FIT: usize = 8;

/// Two of its vCPUs; hosts have eight.
fn of_two_vcpus(priority: &str) -> Value {
    json!({"cpu": {"count": 2}, "availability": {"restartPriority": priority}})
}

/// Waits until the pool says this of the failures that it tolerates; returns the condition.
async fn until_tolerated(scene: &Scene, state: &str, tolerates: i32, protected: usize) -> Result<Condition> {
    let pools: Api<Pool> = Api::all(scene.client.clone());
    wait_until(&format!("FailuresTolerated={state}, {tolerates} of 1"), PATIENCE, async || {
        let status = pools.get("default").await?.status.unwrap_or_default();
        let said = find(&status.conditions, "FailuresTolerated").context("it says nothing")?.clone();
        let counts = status.availability.context("it has no figures")?;
        ensure!(
            said.status == state
                && counts.tolerates == Some(tolerates)
                && counts.protected == i32::try_from(protected).ok(),
            "{said:?}, {counts:?}"
        );
        Ok(said)
    })
    .await
}

#[tokio::test]
async fn room_is_kept_for_protected_machines_and_the_pool_says_when_there_is_too_little() -> Result<()> {
    let simulated = SimulatedHostOptions { cpus: 2, ..SimulatedHostOptions::default() };
    let world = World::start(PoolOptions { hosts: 3, simulated, ..PoolOptions::default() }).await?;
    let scene = Scene::new(&world, "reserve").await?;
    let pools: Api<Pool> = Api::all(scene.client.clone());
    let spec = json!({"availability": {"hostFailuresToTolerate": 1}});
    let pool = serde_json::from_value(json!({"metadata": {"name": "default"}, "spec": spec}))?;
    pools.create(&PostParams::default(), &pool).await?;
    until_tolerated(&scene, "True", 1, 0).await?;

    for number in 1..=FIT {
        let name = format!("web-{number}");
        scene.create_machine(&name, of_two_vcpus("Protected")).await?;
        let running = scene.until_ready_is(&name, "True", "Running").await?;
        ensure!(condition_is(&running, "Protected", "True", "Protected"), "{name} is not protected");
    }
    until_tolerated(&scene, "True", 1, FIT).await?;
    for (name, priority) in [("one-more", "Protected"), ("batch", "None"), ("spare", "BestEffort")] {
        scene.create_machine(name, of_two_vcpus(priority)).await?;
        let refused = scene.until_ready_is(name, "False", "Unschedulable").await?;
        let why = message(&refused);
        ensure!(why.contains("failure reserve"), "{name} hears {why:?}");
    }
    scene.delete::<VirtualMachine>("one-more").await?;
    scene.delete::<VirtualMachine>("spare").await?;
    fixpoint::is_kept(&world).await?;

    change_host(&scene, json!({"maintenance": {"enabled": true}})).await?;
    let said = until_tolerated(&scene, "False", 0, FIT).await?;
    ensure!(said.reason == "NotEnoughRoom", "{said:?}");
    ensure!(
        said.message.contains("reserve/web-") && said.message.contains("end the maintenance of host-3"),
        "it says {:?}",
        said.message
    );
    change_host(&scene, json!({"maintenance": {"enabled": false}})).await?;
    until_tolerated(&scene, "True", 1, FIT).await?;

    scene.delete::<VirtualMachine>("web-1").await?;
    scene.delete::<VirtualMachine>("web-2").await?;
    scene.until_ready_is("batch", "True", "Running").await?;
    until_tolerated(&scene, "True", 1, FIT - 2).await?;
    Ok(())
}

async fn change_host(scene: &Scene, spec: Value) -> Result<()> {
    let hosts: Api<Host> = Api::all(scene.client.clone());
    hosts.patch("host-3", &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await?;
    Ok(())
}

#[tokio::test]
async fn a_machine_on_a_local_disk_hears_at_once_that_it_cannot_be_protected() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::with_shared_repository(world, "bound").await?;
    scene.create_disk("local", "16Mi").await?;
    scene.create_disk_in("bound-san", "shared", "16Mi").await?;
    let protected = |disk: &str| {
        let mut spec = with_disk(disk);
        spec["availability"] = json!({"restartPriority": "Protected"});
        spec["powerState"] = json!("Halted");
        spec
    };
    scene.create_machine("web", protected("local")).await?;
    let is = |status: &'static str, reason: &'static str| {
        move |machine: &VirtualMachine| condition_is(machine, "Protected", status, reason)
    };
    scene.until("web", "is bound to a host", is("False", "LocalDisk")).await?;
    scene.create_machine("db", protected("shared")).await?;
    scene.until("db", "can be protected", is("True", "Protected")).await?;
    scene.change("web", json!({"spec": {"availability": {"restartPriority": "None"}}})).await?;
    scene
        .until("web", "is not to be protected any more", |machine| {
            let status = machine.status.clone().unwrap_or_default();
            status.observed_generation == machine.metadata.generation
                && find(&status.conditions, "Protected").is_none()
        })
        .await?;
    scene.delete::<VirtualMachine>("web").await?;
    scene.delete::<VirtualMachine>("db").await
}
