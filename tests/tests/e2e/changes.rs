//! Changes of running machines.

use crate::{
    scene::{PATIENCE, Scene, condition_is, host, ready_is},
    world::World,
};
use anyhow::{Context, Result, ensure};
use kube::{Api, ResourceExt, api::DeleteParams};
use kubexen_crds::{Domain, Network, VirtualDisk, VirtualMachine, condition, names::host_namespace};
use kubexen_testbed::pool::runs::runs_of;
use kubexen_testbed::process::wait_until;
use serde_json::{Value, json};

impl Scene {
    pub async fn until_synchronized(&self, name: &str) -> Result<VirtualMachine> {
        self.until(name, "has its spec as it is", |machine| {
            condition_is(machine, "Synchronized", "True", "Synchronized")
                && ready_is(machine, "True", "Running")
        })
        .await
    }

    /// Waits until the machine says why it does not have its spec as it is; returns it with what it says.
    pub async fn until_not_synchronized(&self, name: &str, reason: &str) -> Result<(VirtualMachine, String)> {
        let machine = self
            .until(name, &format!("Synchronized=False/{reason}"), |machine| {
                condition_is(machine, "Synchronized", "False", reason)
            })
            .await?;
        let status = machine.status.clone().unwrap_or_default();
        let said = condition::find(&status.conditions, "Synchronized").context("no condition")?;
        Ok((machine, said.message.clone()))
    }

    /// Merges `spec` into the machine's.
    pub async fn change_spec(&self, name: &str, spec: &Value) -> Result<()> {
        self.change(name, json!({ "spec": spec })).await
    }

    pub async fn domain_of(&self, machine: &VirtualMachine) -> Result<Domain> {
        let namespace = host_namespace(host(machine)?);
        let name = format!("{}.{}", self.name, machine.name_any());
        Ok(Api::namespaced(self.client.clone(), &namespace).get(&name).await?)
    }
}

/// What a guest holds: virtual CPUs and memory.
fn held(machine: &VirtualMachine) -> (Option<i32>, Option<&str>) {
    let status = machine.status.as_ref();
    let memory = status.and_then(|status| status.memory.as_ref()).map(|memory| memory.0.as_str());
    (status.and_then(|status| status.cpus), memory)
}

#[tokio::test]
async fn a_running_machine_gets_processors_memory_disks_and_interfaces_and_gives_them_back() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "live").await?;
    let disk = scene.create_disk("data", "16Mi").await?;
    let small = json!({
        "cpu": {"count": 1, "max": 4},
        "memory": {"size": "64Mi", "min": "32Mi", "max": "256Mi"},
        "interfaces": [{"name": "eth0", "network": "live"}],
    });
    let uid = scene.create_machine("web", small).await?.uid().context("no uid")?;
    let first = scene.until_synchronized("web").await?;
    ensure!(held(&first) == (Some(1), Some("64Mi")), "{:?}", held(&first));

    let larger = json!({
        "cpu": {"count": 3, "weight": 512, "capPercent": 200},
        "memory": {"size": "256Mi"},
        "disks": [{"name": "data", "disk": "data"}],
        "interfaces": [
            {"name": "eth1", "network": "live"},
            {"name": "eth0", "network": "live", "rateLimit": "10Mi"},
        ],
    });
    // The new interface stands first, but no guest sees its first interface change.
    scene.change_spec("web", &larger).await?;
    scene.until_not_synchronized("web", "RestartRequired").await?;
    let in_order = json!([
        {"name": "eth0", "network": "live", "rateLimit": "10Mi"},
        {"name": "eth1", "network": "live"},
    ]);
    scene.change_spec("web", &json!({ "interfaces": in_order })).await?;
    let grown = scene.until_synchronized("web").await?;
    ensure!(held(&grown) == (Some(3), Some("256Mi")), "{:?}", held(&grown));
    let domain = scene.domain_of(&grown).await?;
    ensure!(domain.spec.machine.disks[0].target == "xvda", "{:?}", domain.spec.machine.disks);
    let file = format!("disks/{}.raw", disk.uid().context("no uid")?);
    ensure!(world.pool.host_folder(host(&grown)?).join(&file).exists(), "the disk was not made");

    let smaller = json!({
        "cpu": {"count": 1, "weight": null, "capPercent": null},
        "memory": {"size": "32Mi"},
        "disks": [],
        "interfaces": [{"name": "eth1", "network": "live"}],
    });
    scene.change_spec("web", &smaller).await?;
    let shrunk = scene.until_synchronized("web").await?;
    ensure!(held(&shrunk) == (Some(1), Some("32Mi")), "{:?}", held(&shrunk));
    let machine = scene.domain_of(&shrunk).await?.spec.machine;
    ensure!(machine.disks.is_empty() && machine.interfaces.len() == 1, "{machine:?}");
    ensure!(machine.interfaces[0].index == 1, "eth1 is another interface now: {:?}", machine.interfaces);
    scene.delete::<VirtualDisk>("data").await?;
    ensure!(runs_of(&world.pool, &uid)?.len() == 1, "it was restarted");
    scene.delete::<VirtualMachine>("web").await
}

#[tokio::test]
async fn what_needs_a_restart_is_named_done_at_the_restart_and_unsaid_when_it_is_set_back() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "restarts").await?;
    let uid = scene.create_machine("web", json!({})).await?.uid().context("no uid")?;
    scene.until_synchronized("web").await?;
    scene.change_spec("web", &json!({"cpu": {"count": 2}, "memory": {"size": "128Mi"}})).await?;
    let (_, message) = scene.until_not_synchronized("web", "RestartRequired").await?;
    ensure!(message.starts_with("spec.cpu.count, spec.memory.size "), "{message}");
    scene.change_spec("web", &json!({"cpu": {"count": 1}, "memory": {"size": "64Mi"}})).await?;
    scene.until_synchronized("web").await?;
    ensure!(runs_of(&world.pool, &uid)?.len() == 1, "nothing was to be restarted");
    scene.change_spec("web", &json!({"cpu": {"count": 2, "max": 4}})).await?;
    scene.until_not_synchronized("web", "RestartRequired").await?;
    scene.restart("web").await?;
    scene.until_synchronized("web").await?;
    scene.change_spec("web", &json!({"cpu": {"count": 4}})).await?;
    let grown = scene.until_synchronized("web").await?;
    ensure!(held(&grown).0 == Some(4), "{:?}", held(&grown));
    ensure!(runs_of(&world.pool, &uid)?.len() == 2, "restarted otherwise than once");
    scene.delete::<VirtualMachine>("web").await
}

#[tokio::test]
async fn a_guest_that_keeps_its_disk_and_its_memory_keeps_its_data_and_is_told_of() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "stubborn").await?;
    let disk = scene.create_disk("data", "16Mi").await?;
    let stubborn = json!({
        "boot": {"type": "PVH", "kernel": {"name": "linux", "commandLine": "console=hvc0 kubexen.stubborn"}},
        "memory": {"size": "64Mi", "min": "32Mi"},
        "disks": [{"name": "data", "disk": "data"}],
    });
    scene.create_machine("web", stubborn).await?;
    let first = scene.until_synchronized("web").await?;
    let file = format!("disks/{}.raw", disk.uid().context("no uid")?);
    let file = world.pool.host_folder(host(&first)?).join(file);
    std::fs::write(&file, vec![7; 16 << 20])?;

    scene.change_spec("web", &json!({"memory": {"size": "32Mi"}})).await?;
    let (behind, message) = scene.until_not_synchronized("web", "GuestNotResponding").await?;
    ensure!(message.contains("holds 64 MiB") && message.contains("32 MiB"), "{message}");
    ensure!(held(&behind).1 == Some("64Mi"), "{:?}", held(&behind));
    scene.change_spec("web", &json!({"memory": {"size": "64Mi"}})).await?;
    scene.until_synchronized("web").await?;

    scene.change_spec("web", &json!({"disks": []})).await?;
    let (_, message) = scene.until_not_synchronized("web", "DiskInUse").await?;
    ensure!(message.contains("data (xvda)"), "{message}");
    // Nobody else gets it, and nobody deletes it.
    scene.create_machine("thief", json!({"disks": [{"name": "data", "disk": "data"}]})).await?;
    scene.until_ready_is("thief", "False", "DiskInUse").await?;
    scene.delete::<VirtualMachine>("thief").await?;
    ensure!(std::fs::read(&file)?.iter().all(|byte| *byte == 7), "data was lost");
    scene.change_spec("web", &json!({"disks": [{"name": "data", "disk": "data"}]})).await?;
    scene.until_synchronized("web").await?;
    scene.delete::<VirtualMachine>("web").await?;
    ensure!(std::fs::read(&file)?.iter().all(|byte| *byte == 7), "data was lost");
    scene.delete::<VirtualDisk>("data").await
}

#[tokio::test]
async fn a_host_without_room_and_a_network_that_goes_hold_nothing_else_up() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "held").await?;
    scene.create_network("held-old").await?;
    let machine = json!({
        "cpu": {"count": 1, "max": 4},
        "memory": {"size": "64Mi", "max": "1Ti"},
        "interfaces": [{"name": "eth0", "network": "held-old"}],
    });
    scene.create_machine("web", machine).await?;
    scene.until_synchronized("web").await?;
    scene.change_spec("web", &json!({"memory": {"size": "512Gi"}, "cpu": {"count": 2}})).await?;
    let (_, message) = scene.until_not_synchronized("web", "NoRoom").await?;
    ensure!(message.contains("`spec.memory.size`"), "{message}");
    scene
        .until("web", "has a second processor and its memory", |machine| {
            held(machine) == (Some(2), Some("64Mi"))
        })
        .await?;
    scene.change_spec("web", &json!({"memory": {"size": "64Mi"}})).await?;
    scene.until_synchronized("web").await?;

    let networks: Api<Network> = Api::all(scene.client.clone());
    networks.delete("held-old", &DeleteParams::default()).await?;
    scene.until_not_synchronized("web", "NetworkDeleting").await?;
    scene.change_spec("web", &json!({"cpu": {"count": 3}})).await?;
    let cut_off = scene
        .until("web", "has a third processor, and runs on", |machine| {
            held(machine).0 == Some(3)
                && condition_is(machine, "Synchronized", "False", "NetworkDeleting")
                && ready_is(machine, "True", "Running")
        })
        .await?;
    ensure!(scene.domain_of(&cut_off).await?.spec.machine.interfaces.len() == 1, "it lost its interface");
    let moved = json!({"interfaces": [{"name": "eth0", "network": "held"}]});
    scene.change_spec("web", &moved).await?;
    scene.until_synchronized("web").await?;
    wait_until("the network is gone", PATIENCE, async || {
        ensure!(networks.get_opt("held-old").await?.is_none(), "it is still there");
        Ok(())
    })
    .await?;
    scene.delete::<VirtualMachine>("web").await
}
