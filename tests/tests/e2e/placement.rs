//! Where machines go, and what those hear that can go nowhere.

use crate::{
    scene::{Scene, host, message},
    world::World,
};
use anyhow::{Result, ensure};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use kubexen_crds::{Host, VirtualMachine};
use serde_json::{Value, json};
use std::collections::BTreeSet;

async fn change_host(scene: &Scene, name: &str, change: Value) -> Result<()> {
    let hosts = Api::<Host>::all(scene.client.clone());
    hosts.patch(name, &PatchParams::default(), &Patch::Merge(change)).await?;
    Ok(())
}

#[tokio::test]
async fn a_machine_that_fits_nowhere_counts_the_reasons_and_starts_when_its_host_lets_it_in() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "cordon").await?;
    let labels = json!({"metadata": {"labels": {"e2e/cordon": "yes"}}});
    change_host(&scene, "host-4", labels).await?;
    change_host(&scene, "host-4", json!({"spec": {"schedulable": false}})).await?;
    let only_there = json!({"placement": {"hostSelector": {"matchLabels": {"e2e/cordon": "yes"}}}});
    scene.create_machine("web", only_there).await?;
    let rejected = scene.until_ready_is("web", "False", "Unschedulable").await?;
    let expected = "0/4 hosts fit: 3 host selector does not match, 1 not schedulable";
    ensure!(message(&rejected) == expected, "it says {:?}", message(&rejected));
    change_host(&scene, "host-4", json!({"spec": {"schedulable": true}})).await?;
    let running = scene.until_ready_is("web", "True", "Running").await?;
    ensure!(host(&running)? == "host-4", "it runs on {}", host(&running)?);
    scene.delete::<VirtualMachine>("web").await
}

#[tokio::test]
async fn machines_that_must_avoid_each_other_never_share_a_host() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "apart").await?;
    let apart = json!({"placement": {"antiAffinity": {"group": "web", "mode": "Required"}}});
    let mut homes = BTreeSet::new();
    for name in ["web-1", "web-2", "web-3", "web-4"] {
        scene.create_machine(name, apart.clone()).await?;
        homes.insert(host(&scene.until_ready_is(name, "True", "Running").await?)?.to_owned());
    }
    ensure!(homes.len() == 4, "some share a host: {homes:?}");
    scene.create_machine("web-5", apart).await?;
    let rejected = scene.until_ready_is("web-5", "False", "Unschedulable").await?;
    ensure!(message(&rejected).contains("anti-affinity"), "it says {:?}", message(&rejected));
    scene.delete::<VirtualMachine>("web-3").await?;
    scene.until_ready_is("web-5", "True", "Running").await?;
    for name in ["web-1", "web-2", "web-4", "web-5"] {
        scene.delete::<VirtualMachine>(name).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_machine_too_large_for_any_host_says_so() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "large").await?;
    scene.create_machine("db", json!({"memory": {"size": "1Ti"}})).await?;
    let rejected = scene.until_ready_is("db", "False", "Unschedulable").await?;
    ensure!(message(&rejected).ends_with("4 memory"), "it says {:?}", message(&rejected));
    scene.delete::<VirtualMachine>("db").await
}
