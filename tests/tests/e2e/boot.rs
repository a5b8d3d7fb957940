//! What machines boot from, and what hosts must have for it.

use crate::{
    scene::{Scene, condition_is, message, ready_is},
    world::World,
};
use anyhow::{Context, Result, ensure};
use kube::Api;
use kubexen_crds::{Domain, VirtualDisk, VirtualMachine, condition, names::host_namespace};
use serde_json::json;

#[tokio::test]
async fn a_machine_goes_where_its_boot_loader_is_and_names_the_one_that_no_host_has() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "boot-loader").await?;
    scene.create_disk("root", "16Mi").await?;
    let from_disk = json!({"boot": {"type": "PV"}, "disks": [{"name": "root", "disk": "root"}]});
    scene.create_machine("web", from_disk).await?;
    let rejected = scene.until_ready_is("web", "False", "Unschedulable").await?;
    ensure!(message(&rejected) == "0/4 hosts fit: 4 pvgrub for PV not installed", "{:?}", message(&rejected));
    scene.change("web", json!({"spec": {"boot": {"type": "PVH"}}})).await?;
    scene.until_ready_is("web", "True", "Running").await?;
    scene.change("web", json!({"spec": {"boot": {"type": "HVM", "firmware": "UEFI"}}})).await?;
    let waits = scene.until("web", "waits for its restart", waits_for_restart).await?;
    ensure!(waiting(&waits).contains("spec.boot.type"), "it says {:?}", waiting(&waits));
    scene.restart("web").await?;
    scene.until("web", "is as it should be", is_synchronized).await?;
    scene.delete::<VirtualMachine>("web").await?;
    scene.delete::<VirtualDisk>("root").await
}

#[tokio::test]
async fn another_boot_order_takes_effect_at_the_restart() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "boot-order").await?;
    for disk in ["old", "new"] {
        scene.create_disk(disk, "16Mi").await?;
    }
    let (old, new) = (json!({"name": "old", "disk": "old"}), json!({"name": "new", "disk": "new"}));
    let spec = json!({"boot": {"type": "HVM"}, "disks": [old, new]});
    scene.create_machine("web", spec).await?;
    scene.until_ready_is("web", "True", "Running").await?;
    ensure!(targets(&scene).await? == ["old xvda", "new xvdb"], "{:?}", targets(&scene).await?);
    let new_first = json!({"name": "new", "disk": "new", "bootOrder": 1});
    scene.change("web", json!({"spec": {"disks": [old, new_first]}})).await?;
    let waits = scene.until("web", "waits for its restart", waits_for_restart).await?;
    ensure!(waiting(&waits).contains("spec.disks"), "it says {:?}", waiting(&waits));
    scene.restart("web").await?;
    scene.until("web", "is as it should be", is_synchronized).await?;
    ensure!(targets(&scene).await? == ["new xvda", "old xvdb"], "{:?}", targets(&scene).await?);
    scene.delete::<VirtualMachine>("web").await?;
    for disk in ["old", "new"] {
        scene.delete::<VirtualDisk>(disk).await?;
    }
    Ok(())
}

fn waits_for_restart(machine: &VirtualMachine) -> bool {
    condition_is(machine, "Synchronized", "False", "RestartRequired")
}

fn is_synchronized(machine: &VirtualMachine) -> bool {
    machine.status.as_ref().is_some_and(|status| condition::is_true(&status.conditions, "Synchronized"))
        && ready_is(machine, "True", "Running")
}

/// What the condition `Synchronized` says.
fn waiting(machine: &VirtualMachine) -> &str {
    let status = machine.status.as_ref();
    let found = status.and_then(|status| condition::find(&status.conditions, "Synchronized"));
    found.map_or("", |found| found.message.as_str())
}

/// The disks of the machine's Domain with the names under which the guest sees them, sorted by these.
async fn targets(scene: &Scene) -> Result<Vec<String>> {
    let machine = scene.api::<VirtualMachine>().get("web").await?;
    let host = machine.status.and_then(|status| status.host).context("it has no host")?;
    let domains: Api<Domain> = Api::namespaced(scene.client.clone(), &host_namespace(&host));
    let domain = domains.get(&format!("{}.web", scene.name)).await?;
    let mut disks = domain.spec.machine.disks;
    disks.sort_by(|one, other| one.target.cmp(&other.target));
    Ok(disks.iter().map(|disk| format!("{} {}", disk.name, disk.target)).collect())
}
