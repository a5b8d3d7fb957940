//! Disks on storage that several hosts reach.

use crate::{
    scene::{PATIENCE, Scene, host, message, with_disk},
    world::World,
};
use anyhow::{Context, Result, ensure};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use kubexen_crds::{
    Host, MigrationPhase, StorageRepository, VirtualDisk, VirtualMachine, condition, virtual_disk::Phase,
};
use kubexen_testbed::pool::runs::nothing_ran_twice;
use kubexen_testbed::process::wait_until;
use serde_json::json;

pub async fn disk_records(world: &World, disk: &VirtualDisk) -> Result<usize> {
    let uid = disk.uid().context("no uid")?;
    let keys = world.control_plane.pool_keys("/kubexen/disks/").await?;
    Ok(keys.iter().filter(|key| key.contains(&uid)).count())
}

#[tokio::test]
async fn a_guest_moves_with_its_shared_disk_and_starts_on_any_host_that_reaches_it() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::with_shared_repository(world, "shared-moves").await?;
    let disk = scene.create_disk_in("shared-moves-san", "root", "16Mi").await?;
    scene.create_machine("web", with_disk("root")).await?;
    let first = host(&scene.until_ready_is("web", "True", "Running").await?)?.to_owned();
    let disks: Api<VirtualDisk> = scene.api();
    wait_until("the disk says where it is", PATIENCE, async || {
        let status = disks.get("root").await?.status.unwrap_or_default();
        ensure!(
            status.phase == Some(Phase::Bound) && status.storage.as_deref() == Some("san-1"),
            "{status:?}"
        );
        Ok(())
    })
    .await?;

    scene.migrate("away", json!({"virtualMachine": "web"})).await?;
    let away = scene.until_over("away", MigrationPhase::Succeeded).await?;
    let second = away.status.and_then(|status| status.destination).context("no destination")?;
    ensure!(second != first);
    scene.until_one_domain().await?;

    scene.set_power_state("web", "Halted").await?;
    scene.until_ready_is("web", "True", "Halted").await?;
    let hosts: Api<Host> = Api::all(scene.client.clone());
    let mut all = hosts.list(&Default::default()).await?.items.into_iter().map(|host| host.name_any());
    let third = all.find(|host| *host != first && *host != second).context("three hosts")?;
    let label = Patch::Merge(json!({"metadata": {"labels": {"shared-moves": "here"}}}));
    hosts.patch(&third, &PatchParams::default(), &label).await?;
    let here = json!({"hostSelector": {"matchLabels": {"shared-moves": "here"}}});
    scene.change("web", json!({"spec": {"placement": here, "powerState": "Running"}})).await?;
    ensure!(host(&scene.until_ready_is("web", "True", "Running").await?)? == third);
    ensure!(disk_records(world, &disk).await? == 1, "the store knows whose the disk is");

    scene.delete::<VirtualMachine>("web").await?;
    scene.delete::<VirtualDisk>("root").await?;
    ensure!(disk_records(world, &disk).await? == 0, "a record of the disk is left");
    nothing_ran_twice(&world.pool)?;
    Ok(())
}

#[tokio::test]
async fn a_disk_that_another_machine_has_is_not_shared_and_not_deleted() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::with_shared_repository(world, "shared-users").await?;
    scene.create_disk_in("shared-users-san", "root", "16Mi").await?;
    scene.create_machine("first", with_disk("root")).await?;
    scene.until_ready_is("first", "True", "Running").await?;
    scene.create_machine("second", with_disk("root")).await?;
    let refused = scene.until_ready_is("second", "False", "DiskInUse").await?;
    ensure!(message(&refused).contains("shared-users/first"), "{}", message(&refused));

    let disks: Api<VirtualDisk> = scene.api();
    disks.delete("root", &Default::default()).await?;
    wait_until("the disk says who keeps it", PATIENCE, async || {
        let conditions = disks.get("root").await?.status.unwrap_or_default().conditions;
        let ready = condition::find(&conditions, "Ready").context("no condition")?;
        ensure!(ready.reason == "InUse" && ready.message.contains("shared-users/first"), "{ready:?}");
        Ok(())
    })
    .await?;
    scene.until_ready_is("first", "True", "Running").await?;
    scene.delete::<VirtualMachine>("second").await?;
    scene.delete::<VirtualMachine>("first").await?;
    wait_until("the disk is gone", PATIENCE, async || {
        ensure!(disks.get_opt("root").await?.is_none());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_repository_says_when_its_hosts_do_not_share_its_storage() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::with_shared_repository(world, "shared-facts").await?;
    let repositories: Api<StorageRepository> = Api::all(scene.client.clone());
    let until = async |name: &str, status: &str, reason: &str| {
        wait_until(&format!("{name} is {status}/{reason}"), PATIENCE, async || {
            let conditions = repositories.get(name).await?.status.unwrap_or_default().conditions;
            let ready = condition::find(&conditions, "Ready").context("no condition")?;
            ensure!(ready.status == status && ready.reason == reason, "{ready:?}");
            Ok(())
        })
        .await
    };
    until("shared-facts-san", "True", "Attached").await?;
    // A folder of each host is no shared storage, whatever a repository calls it.
    let spec = json!({"type": "LVM", "lvm": {"location": "default"}});
    let repository = json!({"metadata": {"name": "shared-facts-local"}, "spec": spec});
    scene.create_cluster_wide::<StorageRepository>(repository).await?;
    until("shared-facts-local", "False", "NotAttached").await
}

#[tokio::test]
async fn a_shared_disk_goes_from_one_running_guest_to_another() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::with_shared_repository(world, "shared-hands").await?;
    let disk = scene.create_disk_in("shared-hands-san", "data", "16Mi").await?;
    let data = json!({"disks": [{"name": "data", "disk": "data"}]});
    for name in ["one", "two"] {
        scene.create_machine(name, json!({})).await?;
        scene.until_synchronized(name).await?;
    }
    scene.change_spec("one", &data).await?;
    scene.until_synchronized("one").await?;
    ensure!(disk_records(world, &disk).await? == 1, "nothing says whose the disk is");
    scene.change_spec("two", &data).await?;
    scene.until_not_synchronized("two", "DiskInUse").await?;
    scene.change_spec("one", &json!({"disks": []})).await?;
    let second = scene.until_synchronized("two").await?;
    let first = scene.until_synchronized("one").await?;
    ensure!(scene.domain_of(&first).await?.spec.machine.disks.is_empty(), "the first machine still has it");
    ensure!(scene.domain_of(&second).await?.spec.machine.disks.len() == 1, "the second machine has it not");
    for name in ["one", "two"] {
        scene.delete::<VirtualMachine>(name).await?;
    }
    scene.delete::<VirtualDisk>("data").await
}

#[tokio::test]
async fn a_disk_that_its_machine_was_started_without_is_free_for_another() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::with_shared_repository(world, "shared-left").await?;
    scene.create_disk_in("shared-left-san", "data", "16Mi").await?;
    scene.create_machine("one", with_disk("data")).await?;
    scene.until_ready_is("one", "True", "Running").await?;
    scene.set_power_state("one", "Halted").await?;
    scene.until_ready_is("one", "True", "Halted").await?;
    scene.change_spec("one", &json!({"disks": [], "powerState": "Running"})).await?;
    scene.until_ready_is("one", "True", "Running").await?;
    scene.create_machine("two", with_disk("data")).await?;
    scene.until_ready_is("two", "True", "Running").await?;
    for name in ["one", "two"] {
        scene.delete::<VirtualMachine>(name).await?;
    }
    scene.delete::<VirtualDisk>("data").await
}
