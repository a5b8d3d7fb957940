//! What a machine needs and does not have yet.

use crate::{
    scene::{Scene, host, message},
    world::World,
};
use anyhow::{Result, ensure};
use kubexen_crds::{VirtualDisk, VirtualMachine};
use serde_json::json;

#[tokio::test]
async fn a_machine_whose_network_is_missing_names_it_and_starts_when_it_is_made() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "network").await?;
    let interface = json!({"interfaces": [{"name": "eth0", "network": "network-late"}]});
    scene.create_machine("web", interface).await?;
    let waiting = scene.until_ready_is("web", "False", "NetworkNotFound").await?;
    ensure!(message(&waiting).contains("network-late"), "it says {:?}", message(&waiting));
    scene.create_network("network-late").await?;
    scene.until_ready_is("web", "True", "Running").await?;
    scene.delete::<VirtualMachine>("web").await
}

#[tokio::test]
async fn a_machine_whose_disk_is_missing_names_it_and_starts_when_it_is_made() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "disk").await?;
    scene.create_machine("db", json!({"disks": [{"name": "data", "disk": "late"}]})).await?;
    let waiting = scene.until_ready_is("db", "False", "DiskNotFound").await?;
    ensure!(message(&waiting).contains("late"), "it says {:?}", message(&waiting));
    scene.create_disk("late", "16Mi").await?;
    scene.until_ready_is("db", "True", "Running").await?;
    scene.delete::<VirtualMachine>("db").await?;
    scene.delete::<VirtualDisk>("late").await
}

#[tokio::test]
async fn a_disk_serves_one_running_machine_at_a_time() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "shared-disk").await?;
    scene.create_disk("data", "16Mi").await?;
    let with_disk = json!({"disks": [{"name": "data", "disk": "data"}]});
    scene.create_machine("first", with_disk.clone()).await?;
    let first = scene.until_ready_is("first", "True", "Running").await?;
    scene.create_machine("second", with_disk).await?;
    let waiting = scene.until_ready_is("second", "False", "DiskInUse").await?;
    ensure!(message(&waiting).contains("shared-disk/first"), "it says {:?}", message(&waiting));
    scene.set_power_state("first", "Halted").await?;
    let second = scene.until_ready_is("second", "True", "Running").await?;
    ensure!(host(&second)? == host(&first)?, "the disk is on {}", host(&first)?);
    scene.delete::<VirtualMachine>("second").await?;
    scene.delete::<VirtualMachine>("first").await?;
    scene.delete::<VirtualDisk>("data").await
}
