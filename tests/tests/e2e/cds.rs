//! Images in CD drives.

use crate::{
    scene::{PATIENCE, Scene, condition_is, host, message},
    world::World,
};
use anyhow::{Result, ensure};
use kube::{Api, ResourceExt};
use kubexen_crds::{Host, VirtualMachine};
use kubexen_testbed::process::wait_until;
use serde_json::{Value, json};

fn drive(image: Option<(&str, &str)>) -> Value {
    let image = image.map(|(repository, name)| json!({"repository": repository, "name": name}));
    json!([{"name": "cd", "image": image}])
}

#[tokio::test]
async fn a_machine_runs_where_its_image_is_and_images_are_changed_and_ejected_live() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "cds").await?;
    scene.create_machine("reader", json!({"cds": drive(Some(("cds", "debian.iso")))})).await?;
    let waiting = scene.until_ready_is("reader", "False", "Unschedulable").await?;
    ensure!(
        message(&waiting).contains("image debian.iso of repository cds missing"),
        "{}",
        message(&waiting)
    );

    let images = world.pool.host_folder("host-3").join("disks/images");
    std::fs::create_dir_all(&images)?;
    for name in ["debian.iso", "drivers.iso"] {
        std::fs::write(images.join(name), "content")?;
    }
    let hosts: Api<Host> = Api::all(scene.client.clone());
    wait_until("the host tells its images", PATIENCE, async || {
        let status = hosts.get("host-3").await?.status.unwrap_or_default();
        ensure!(status.locations.iter().any(|location| location.images == ["debian.iso", "drivers.iso"]));
        Ok(())
    })
    .await?;
    let running = scene.until_ready_is("reader", "True", "Running").await?;
    ensure!(host(&running)? == "host-3");

    let synchronized = async |status: &'static str, reason: &'static str| {
        let is_so = |machine: &VirtualMachine| condition_is(machine, "Synchronized", status, reason);
        scene.until("reader", reason, is_so).await
    };
    let disks = |machine: &VirtualMachine| -> Result<String> {
        let simulated = world.pool.host_folder("host-3").join("state/simulated");
        let uid = machine.uid().unwrap_or_default();
        let mut found = String::new();
        for entry in std::fs::read_dir(simulated)? {
            let text = std::fs::read_to_string(entry?.path()).unwrap_or_default();
            if text.contains(&uid) && text.contains("/images/") {
                found.push_str(&text);
            }
        }
        Ok(found)
    };
    scene.change("reader", json!({"spec": {"cds": drive(Some(("cds", "drivers.iso")))}})).await?;
    synchronized("True", "Synchronized").await?;
    ensure!(disks(&running)?.contains("drivers.iso"), "the guest has another image");
    scene.change("reader", json!({"spec": {"cds": drive(Some(("cds", "absent.iso")))}})).await?;
    synchronized("False", "ImageMissing").await?;
    scene.change("reader", json!({"spec": {"cds": drive(None)}})).await?;
    synchronized("True", "Synchronized").await?;
    scene.delete::<VirtualMachine>("reader").await
}
