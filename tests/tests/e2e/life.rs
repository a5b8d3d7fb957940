//! The life of a virtual machine, from `kubectl apply` to the last trace.

use crate::{
    scene::{Scene, condition_is, host, machine, ready_is},
    traces,
    world::World,
};
use anyhow::{Context, Result, ensure};
use kube::{Api, ResourceExt};
use kubexen_crds::{Domain, VirtualDisk, VirtualMachine, names::host_namespace};
use kubexen_testbed::pool::runs::runs_of;
use serde_json::json;
use std::{collections::BTreeSet, path::PathBuf};

fn with_disk_and_interface(scene: &Scene) -> serde_json::Value {
    json!({
        "disks": [{"name": "data", "disk": "data"}],
        "interfaces": [{"name": "eth0", "network": scene.name}],
    })
}

/// The file of a disk on a simulated host.
fn disk_file(world: &World, host: &str, disk: &VirtualDisk) -> PathBuf {
    world.pool.host_folder(host).join("disks").join(format!("{}.raw", disk.uid().unwrap_or_default()))
}

async fn domain_of(scene: &Scene, machine: &VirtualMachine) -> Result<Domain> {
    let namespace = host_namespace(host(machine)?);
    let name = format!("{}.{}", scene.name, machine.name_any());
    Ok(Api::namespaced(scene.client.clone(), &namespace).get(&name).await?)
}

#[tokio::test]
async fn a_machine_starts_pauses_restarts_halts_comes_back_to_its_disk_and_leaves_nothing() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "life").await?;
    let disk = scene.create_disk("data", "64Mi").await?;
    let made = scene.create_machine("web", with_disk_and_interface(&scene)).await?;
    let uid = made.uid().context("no uid")?;

    let running = scene.until_ready_is("web", "True", "Running").await?;
    let home = host(&running)?.to_owned();
    ensure!(
        running.status.as_ref().is_some_and(|status| status.interfaces.len() == 1),
        "no address is shown"
    );
    ensure!(
        std::fs::metadata(disk_file(world, &home, &disk))?.len() == 64 << 20,
        "the disk has another size"
    );
    ensure!(runs_of(&world.pool, &uid)?.len() == 1, "started otherwise than once");

    scene.set_power_state("web", "Paused").await?;
    scene.until_ready_is("web", "True", "Paused").await?;
    scene.set_power_state("web", "Running").await?;
    scene.until_ready_is("web", "True", "Running").await?;
    ensure!(runs_of(&world.pool, &uid)?.len() == 1, "a pause is no restart");

    scene.restart("web").await?;
    scene
        .until("web", "restarted", |machine| {
            ready_is(machine, "True", "Running")
                && runs_of(&world.pool, &uid).is_ok_and(|runs| runs.len() == 2)
        })
        .await?;

    scene.set_power_state("web", "Halted").await?;
    let halted = scene.until_ready_is("web", "True", "Halted").await?;
    ensure!(
        halted.status.as_ref().is_some_and(|status| status.host.is_none()),
        "a halted machine has a host"
    );
    ensure!(world.kept_of_domain(&home, &halted)?.is_none(), "the domain is still there");
    ensure!(runs_of(&world.pool, &uid)?.iter().all(|run| run.to.is_some()), "the guest is said to run");
    ensure!(disk_file(world, &home, &disk).exists(), "the disk went with the domain");
    let owners = world.control_plane.pool_keys("/kubexen/owners/").await?;
    ensure!(!owners.iter().any(|key| key.ends_with(&uid)), "a halted machine has an owner");

    scene.set_power_state("web", "Running").await?;
    let back = scene.until_ready_is("web", "True", "Running").await?;
    ensure!(host(&back)? == home, "it did not come back to the host of its disk");

    let uids = BTreeSet::from([uid, disk.uid().context("no uid")?]);
    scene.delete::<VirtualMachine>("web").await?;
    scene.delete::<VirtualDisk>("data").await?;
    traces::are_gone(world, &scene.client, &uids).await
}

#[tokio::test]
async fn a_changed_spec_waits_for_a_restart_and_says_so() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "change").await?;
    scene.create_machine("web", json!({})).await?;
    scene.until_ready_is("web", "True", "Running").await?;
    scene.change("web", json!({"spec": {"cpu": {"count": 2}}})).await?;
    let changed = scene
        .until("web", "the change waits", |machine| {
            condition_is(machine, "Synchronized", "False", "RestartRequired")
        })
        .await?;
    ensure!(ready_is(&changed, "True", "Running"), "the change disturbed the guest");
    ensure!(domain_of(&scene, &changed).await?.spec.machine.cpus == 1, "the change was not to be done yet");
    scene.restart("web").await?;
    let restarted = scene
        .until("web", "the change is done", |machine| {
            condition_is(machine, "Synchronized", "True", "Synchronized")
                && ready_is(machine, "True", "Running")
        })
        .await?;
    ensure!(domain_of(&scene, &restarted).await?.spec.machine.cpus == 2, "restarted without the change");
    scene.delete::<VirtualMachine>("web").await
}

#[tokio::test]
async fn a_successor_of_the_same_name_waits_until_its_predecessor_is_gone() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "successor").await?;
    let first = scene.create_machine("web", json!({})).await?.uid().context("no uid")?;
    scene.until_ready_is("web", "True", "Running").await?;
    scene.delete::<VirtualMachine>("web").await?;
    let second = scene.api().create(&Default::default(), &machine("web", json!({}))?).await?;
    let second = second.uid().context("no uid")?;
    scene.until_ready_is("web", "True", "Running").await?;
    let (before, after) = (runs_of(&world.pool, &first)?, runs_of(&world.pool, &second)?);
    let ended = before.last().and_then(|run| run.to).context("the predecessor still runs")?;
    let began = after.first().context("the successor does not run")?.from;
    ensure!(ended <= began, "the successor began before its predecessor was gone");
    scene.delete::<VirtualMachine>("web").await
}
