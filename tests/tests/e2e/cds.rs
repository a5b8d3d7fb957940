//! Images in CD drives.

use crate::{
    scene::{PATIENCE, Scene, condition_is, host, message},
    world::World,
};
use anyhow::{Context, Result, ensure};
use kube::Api;
use kubexen_crds::{Domain, Host, VirtualDisk, VirtualMachine, condition, names::host_namespace};
use kubexen_testbed::process::wait_until;
use serde_json::{Value, json};

fn drive(image: Option<(&str, &str)>) -> Value {
    let image = image.map(|(repository, name)| json!({"repository": repository, "name": name}));
    json!([{"name": "cd", "image": image}])
}

/// Puts images onto a host that has none, and waits until it tells them.
async fn put_images(world: &World, scene: &Scene, name: &str, images: &[&str]) -> Result<()> {
    let folder = world.pool.host_folder(name).join("disks/images");
    std::fs::create_dir_all(&folder)?;
    for image in images {
        std::fs::write(folder.join(image), "content")?;
    }
    let hosts: Api<Host> = Api::all(scene.client.clone());
    wait_until("the host tells its images", PATIENCE, async || {
        let status = hosts.get(name).await?.status.unwrap_or_default();
        ensure!(status.locations.iter().any(|location| location.images == images));
        Ok(())
    })
    .await
}

async fn synchronized(
    scene: &Scene,
    name: &str,
    status: &'static str,
    reason: &'static str,
) -> Result<VirtualMachine> {
    let is_so = |machine: &VirtualMachine| condition_is(machine, "Synchronized", status, reason);
    scene.until(name, reason, is_so).await
}

/// What the simulated host keeps of a machine's domain.
fn record(world: &World, host: &str, machine: &VirtualMachine) -> Result<String> {
    world.kept_of_domain(host, machine)?.context("no domain")
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

    put_images(world, &scene, "host-3", &["debian.iso", "drivers.iso"]).await?;
    let running = scene.until_ready_is("reader", "True", "Running").await?;
    ensure!(host(&running)? == "host-3");

    scene.change("reader", json!({"spec": {"cds": drive(Some(("cds", "drivers.iso")))}})).await?;
    synchronized(&scene, "reader", "True", "Synchronized").await?;
    ensure!(
        record(world, "host-3", &running)?.contains("/images/drivers.iso"),
        "the guest has another image"
    );
    scene.change("reader", json!({"spec": {"cds": drive(Some(("cds", "absent.iso")))}})).await?;
    synchronized(&scene, "reader", "False", "ImageMissing").await?;
    scene.change("reader", json!({"spec": {"cds": drive(None)}})).await?;
    synchronized(&scene, "reader", "True", "Synchronized").await?;
    scene.delete::<VirtualMachine>("reader").await
}

#[tokio::test]
async fn what_is_in_an_emulated_drive_changes_live_and_the_drives_of_an_hvm_machine_at_its_restart()
-> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "drives").await?;
    scene.create_disk("root", "16Mi").await?;
    put_images(world, &scene, "host-2", &["setup.iso", "tools.iso"]).await?;
    let boot =
        json!({"type": "HVM", "kernel": {"name": "linux", "commandLine": "console=ttyS0 kubexen.stubborn"}});
    let installs = |boot: Value| {
        let cds = drive(Some(("drives", "setup.iso")));
        json!({"boot": boot, "cds": cds, "lifecycle": {"shutdownTimeout": "0s"}})
    };
    let mut spec = installs(json!({"type": "HVM"}));
    spec["disks"] = json!([{"name": "root", "disk": "root"}]);
    scene.create_machine("pc", spec).await?;
    scene.create_machine("keeper", installs(boot)).await?;
    let running = scene.until_ready_is("pc", "True", "Running").await?;
    ensure!(host(&running)? == "host-2" && record(world, "host-2", &running)?.contains("/images/setup.iso"));
    ensure!(targets(&scene).await? == "cd=hdd", "{}", targets(&scene).await?);

    scene.change("pc", json!({"spec": {"cds": drive(Some(("drives", "tools.iso")))}})).await?;
    synchronized(&scene, "pc", "True", "Synchronized").await?;
    ensure!(record(world, "host-2", &running)?.contains("/images/tools.iso"), "it has another image");
    scene.change("pc", json!({"spec": {"cds": drive(None)}})).await?;
    synchronized(&scene, "pc", "True", "Synchronized").await?;
    ensure!(!record(world, "host-2", &running)?.contains("/images/"), "it was not ejected");

    let first = json!({"name": "more", "bootOrder": 1});
    scene.change("pc", json!({"spec": {"cds": [{"name": "cd"}, first]}})).await?;
    let waits = synchronized(&scene, "pc", "False", "RestartRequired").await?;
    let status = waits.status.unwrap_or_default();
    let said = condition::find(&status.conditions, "Synchronized").map(|said| said.message.as_str());
    ensure!(said == Some("spec.cds[more] will take effect at the next restart"), "{said:?}");
    scene.restart("pc").await?;
    synchronized(&scene, "pc", "True", "Synchronized").await?;
    ensure!(targets(&scene).await? == "more=hdc first, cd=hdd", "{}", targets(&scene).await?);

    scene.until_ready_is("keeper", "True", "Running").await?;
    scene.change("keeper", json!({"spec": {"cds": drive(None)}})).await?;
    synchronized(&scene, "keeper", "False", "DiskInUse").await?;
    scene.change("keeper", json!({"spec": {"cds": drive(Some(("drives", "setup.iso")))}})).await?;
    synchronized(&scene, "keeper", "True", "Synchronized").await?;
    for machine in ["pc", "keeper"] {
        scene.delete::<VirtualMachine>(machine).await?;
    }
    scene.delete::<VirtualDisk>("root").await
}

/// The drives of the Domain of `pc`.
async fn targets(scene: &Scene) -> Result<String> {
    let domains: Api<Domain> = Api::namespaced(scene.client.clone(), &host_namespace("host-2"));
    let domain = domains.get(&format!("{}.pc", scene.name)).await?;
    let told = domain.spec.machine.cds.iter().map(|cd| {
        let first = if cd.before_disks { " first" } else { "" };
        format!("{}={}{first}", cd.name, cd.target)
    });
    Ok(told.collect::<Vec<_>>().join(", "))
}
