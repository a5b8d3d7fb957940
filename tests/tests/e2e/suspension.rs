//! Machines that are suspended, and go on later.

use crate::{
    scene::{PATIENCE, Scene, host, message, with_disk},
    world::World,
};
use anyhow::{Context, Result, ensure};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use kubexen_crds::{Domain, Host, VirtualDisk, VirtualMachine, Volume};
use kubexen_testbed::pool::runs::nothing_ran_twice;
use kubexen_testbed::{pool::PoolOptions, process::wait_until};
use serde_json::json;

async fn suspend(scene: &Scene, name: &str) -> Result<VirtualMachine> {
    scene.set_power_state(name, "Suspended").await?;
    let machine = scene.until_ready_is(name, "True", "Suspended").await?;
    let domains: Api<Domain> = Api::all(scene.client.clone());
    let uid = machine.uid();
    wait_until("no host has anything of it", PATIENCE, async || {
        let all = domains.list(&Default::default()).await?.items;
        ensure!(all.iter().all(|domain| Some(&domain.spec.virtual_machine.uid) != uid.as_ref()));
        Ok(())
    })
    .await?;
    Ok(machine)
}

async fn volumes(scene: &Scene, name: &str) -> Result<usize> {
    let all = Api::<Volume>::all(scene.client.clone()).list(&Default::default()).await?.items;
    Ok(all.iter().filter(|volume| volume.spec.virtual_disk.name.starts_with(name)).count())
}

/// Keeps the machine from all hosts but this one.
async fn bind(scene: &Scene, machine: &str, host: &str) -> Result<()> {
    let hosts: Api<Host> = Api::all(scene.client.clone());
    let label = Patch::Merge(json!({"metadata": {"labels": {&scene.name: "here"}}}));
    hosts.patch(host, &PatchParams::default(), &label).await?;
    let here = json!({"hostSelector": {"matchLabels": {&scene.name: "here"}}});
    scene.change(machine, json!({"spec": {"placement": here}})).await
}

/// How often the machine's guest was booted, and not resumed, on the hosts of the pool.
fn boots(world: &World, machine: &VirtualMachine) -> Result<usize> {
    let uid = machine.uid().context("no uid")?.parse()?;
    let runs = nothing_ran_twice(&world.pool)?.remove(&uid).unwrap_or_default();
    Ok(runs.iter().filter(|run| run.booted).count())
}

#[tokio::test]
async fn a_suspended_guest_goes_on_on_another_host_and_was_booted_once() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::with_shared_repository(world, "suspended").await?;
    scene.create_disk_in("suspended-san", "root", "16Mi").await?;
    scene.create_machine("web", with_disk("root")).await?;
    let before = scene.until_ready_is("web", "True", "Running").await?;
    let first = host(&before)?.to_owned();
    let machine = suspend(&scene, "web").await?;
    let saved =
        machine.status.and_then(|status| status.suspended).context("nothing is said of what was saved")?;
    let disks: Api<VirtualDisk> = scene.api();
    ensure!(disks.get(&saved.disk).await?.spec.repository == "suspended-san");

    // Nobody else gets the disk of a guest that still has it.
    scene.create_machine("other", with_disk("root")).await?;
    let refused = scene.until_ready_is("other", "False", "DiskInUse").await?;
    ensure!(message(&refused).contains("suspended/web"), "{}", message(&refused));
    scene.delete::<VirtualMachine>("other").await?;

    let hosts: Api<Host> = Api::all(scene.client.clone());
    let mut all = hosts.list(&Default::default()).await?.items.into_iter().map(|host| host.name_any());
    let second = all.find(|host| *host != first).context("two hosts")?;
    bind(&scene, "web", &second).await?;
    scene.set_power_state("web", "Running").await?;
    let after = scene.until_ready_is("web", "True", "Running").await?;
    ensure!(host(&after)? == second, "it is on {}", host(&after)?);
    ensure!(boots(world, &after)? == 1, "it was booted afresh");
    let left = scene.until("web", "nothing of what was saved is left", |machine| {
        machine.status.as_ref().is_some_and(|status| status.suspended.is_none())
    });
    left.await?;
    wait_until("the disk of its memory is gone", PATIENCE, async || {
        ensure!(disks.get_opt(&saved.disk).await?.is_none());
        ensure!(volumes(&scene, "suspended-").await? == 0, "a volume is left");
        Ok(())
    })
    .await?;
    scene.delete::<VirtualMachine>("web").await?;
    scene.delete::<VirtualDisk>("root").await
}

#[tokio::test]
async fn suspended_guests_outlive_a_power_cut_of_the_whole_pool() -> Result<()> {
    let mut world = World::start(PoolOptions::default()).await?;
    let scene = Scene::with_shared_repository(&world, "power-cut").await?;
    for (name, repository) in [("one", "power-cut-san"), ("two", "power-cut")] {
        scene.create_disk_in(repository, name, "16Mi").await?;
        scene.create_machine(name, with_disk(name)).await?;
        scene.until_ready_is(name, "True", "Running").await?;
        suspend(&scene, name).await?;
    }
    world.reboot(0)?;
    for name in ["one", "two"] {
        scene.set_power_state(name, "Running").await?;
        let machine = scene.until_ready_is(name, "True", "Running").await?;
        ensure!(boots(&world, &machine)? == 1, "{name} was booted afresh");
    }
    Ok(())
}

#[tokio::test]
async fn a_guest_that_is_not_suspended_after_all_leaves_no_disk_behind() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::with_shared_repository(world, "undecided").await?;
    scene.create_disk_in("undecided-san", "root", "16Mi").await?;
    // A gigabyte a second makes the save take long enough to be called off.
    let spec = json!({"memory": {"size": "4Gi"}, "disks": [{"name": "root", "disk": "root"}]});
    scene.create_machine("web", spec).await?;
    let before = scene.until_ready_is("web", "True", "Running").await?;
    scene.set_power_state("web", "Suspended").await?;
    scene.until_ready_is("web", "False", "Suspending").await?;
    scene.set_power_state("web", "Running").await?;
    let after = scene.until_ready_is("web", "True", "Running").await?;
    ensure!(host(&after)? == host(&before)? && boots(world, &after)? == 1, "it was booted afresh");
    let disks: Api<VirtualDisk> = scene.api();
    wait_until("the disk for its memory is gone", PATIENCE, async || {
        let left = disks.list(&Default::default()).await?.items.into_iter().map(|disk| disk.name_any());
        ensure!(left.eq(["root".to_owned()]));
        Ok(())
    })
    .await?;
    scene.delete::<VirtualMachine>("web").await?;
    scene.delete::<VirtualDisk>("root").await
}

#[tokio::test]
async fn what_is_saved_is_lost_only_when_that_is_asked_for() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::with_shared_repository(world, "given-up").await?;
    for name in ["halted", "discarded"] {
        scene.create_disk(name, "16Mi").await?;
        scene.create_machine(name, with_disk(name)).await?;
        scene.until_ready_is(name, "True", "Running").await?;
        suspend(&scene, name).await?;
    }
    scene.set_power_state("halted", "Halted").await?;
    scene.until_ready_is("halted", "True", "Halted").await?;
    let disk =
        scene.api::<VirtualMachine>().get("discarded").await?.status.and_then(|status| status.suspended);
    scene.delete::<VirtualDisk>(&disk.context("nothing was saved")?.disk).await?;
    for name in ["halted", "discarded"] {
        scene.set_power_state(name, "Running").await?;
        let machine = scene.until_ready_is(name, "True", "Running").await?;
        ensure!(boots(world, &machine)? == 2, "{name} was not booted afresh");
        scene.delete::<VirtualMachine>(name).await?;
    }
    Ok(())
}
