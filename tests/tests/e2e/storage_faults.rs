//! Bad luck of storage: it fills up, a host loses it, a host that looks after disks is away.

use crate::{
    scene::{PATIENCE, Scene, host, message, ready_is, with_disk},
    shared_storage::disk_records,
    world::World,
};
use anyhow::{Context, Result, ensure};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use kubexen_crds::{
    Host, MigrationPhase, StorageRepository, VirtualDisk, VirtualDiskStatus, VirtualMachine, Volume,
    condition::{self, find},
    names::host_namespace,
    virtual_disk::Phase,
};
use kubexen_testbed::pool::runs::{nothing_ran_twice, runs_of};
use kubexen_testbed::{
    pool::{PoolOptions, SimulatedHostOptions, remove_host},
    process::wait_until,
};
use serde_json::json;
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

impl Scene {
    async fn grow(&self, disk: &str, size: &str) -> Result<()> {
        let change = Patch::Merge(json!({"spec": {"size": size}}));
        self.api::<VirtualDisk>().patch(disk, &PatchParams::default(), &change).await?;
        Ok(())
    }

    async fn until_disk(
        &self,
        name: &str,
        what: &str,
        accept: impl Fn(&VirtualDiskStatus) -> bool,
    ) -> Result<VirtualDiskStatus> {
        let disks = self.api::<VirtualDisk>();
        wait_until(&format!("disk {name}: {what}"), PATIENCE, async || {
            let disk = disks.get(name).await?;
            let status = disk.status.unwrap_or_default();
            let current = status.observed_generation == disk.metadata.generation;
            ensure!(current && accept(&status), "it is {}", serde_json::to_string(&status)?);
            Ok(status)
        })
        .await
    }

    async fn until_disk_says(&self, name: &str, state: &str, reason: &str) -> Result<VirtualDiskStatus> {
        self.until_disk(name, &format!("Ready={state}/{reason}"), |status| {
            find(&status.conditions, "Ready")
                .is_some_and(|said| said.status == state && said.reason == reason)
        })
        .await
    }

    async fn until_bound(&self, name: &str, mib: u64) -> Result<VirtualDiskStatus> {
        self.until_disk(name, &format!("has {mib} MiB"), |status| has(status, mib)).await
    }

    async fn volumes_on(&self, host: &str) -> Result<usize> {
        let volumes: Api<Volume> = Api::namespaced(self.client.clone(), &host_namespace(host));
        Ok(volumes.list(&ListParams::default()).await?.items.len())
    }

    async fn until_repository_says(&self, name: &str, state: &str, reason: &str) -> Result<String> {
        let repositories: Api<StorageRepository> = Api::all(self.client.clone());
        wait_until(&format!("{name} says {state}/{reason}"), PATIENCE, async || {
            let conditions = repositories.get(name).await?.status.unwrap_or_default().conditions;
            let ready = find(&conditions, "Ready").context("no condition")?;
            ensure!(ready.status == state && ready.reason == reason, "{ready:?}");
            Ok(ready.message.clone())
        })
        .await
    }
}

/// Whether a disk is whole and has this many MiB.
fn has(status: &VirtualDiskStatus, mib: u64) -> bool {
    let capacity = status.capacity.as_ref().and_then(|capacity| capacity.bytes().ok());
    condition::is_true(&status.conditions, "Ready")
        && status.phase == Some(Phase::Bound)
        && capacity == Some(mib * MIB)
}

fn says(status: &VirtualDiskStatus, words: &str) -> bool {
    find(&status.conditions, "Ready").is_some_and(|said| said.message.contains(words))
}

/// The file of a disk on the storage that all hosts share.
fn file(world: &World, disk: &VirtualDisk) -> Result<PathBuf> {
    Ok(world.pool.shared_folder().join(format!("{}.raw", disk.uid().context("no uid")?)))
}

/// Something that can only be the disk's own data.
fn write_data(world: &World, disk: &VirtualDisk) -> Result<()> {
    Ok(std::fs::write(file(world, disk)?, vec![7; 16 << 20])?)
}

fn has_its_data(world: &World, disk: &VirtualDisk) -> Result<()> {
    let data = std::fs::read(file(world, disk)?)?;
    ensure!(data.len() >= 16 << 20 && data[..16 << 20].iter().all(|byte| *byte == 7), "data was lost");
    Ok(())
}

#[tokio::test]
async fn storage_that_fills_up_says_so_harms_nobody_and_goes_on_when_there_is_room() -> Result<()> {
    let simulated = SimulatedHostOptions { disk: "64Mi".to_owned(), ..SimulatedHostOptions::default() };
    let world = World::start(PoolOptions { hosts: 2, simulated, ..PoolOptions::default() }).await?;
    let scene = Scene::with_shared_repository(&world, "full").await?;
    let root = scene.create_disk_in("full-san", "root", "32Mi").await?;
    let uid = scene.create_machine("web", with_disk("root")).await?.uid().context("no uid")?;
    scene.until_ready_is("web", "True", "Running").await?;

    // Something of somebody else's takes room that the pool does not know of.
    let foreign = world.pool.shared_folder().join("00000000-0000-0000-0000-00000000000f.raw");
    std::fs::File::create(&foreign)?.set_len(24 * MIB)?;
    scene.create_disk_in("full-san", "late", "24Mi").await?;
    scene.create_machine("late", with_disk("late")).await?;
    let refused = scene.until_disk_says("late", "False", "NoSpace").await?;
    ensure!(refused.phase == Some(Phase::Failed) && says(&refused, "8388608 bytes left"), "{refused:?}");
    scene
        .until("late", "says what it waits for", |machine| {
            ready_is(machine, "False", "Starting") && message(machine).contains("8388608 bytes left")
        })
        .await?;
    std::fs::remove_file(&foreign)?;
    scene.until_bound("late", 24).await?;
    scene.until_ready_is("late", "True", "Running").await?;

    scene.create_disk_in("full-san", "huge", "16Mi").await?;
    scene.create_machine("huge", with_disk("huge")).await?;
    let waiting = scene.until_ready_is("huge", "False", "Unschedulable").await?;
    ensure!(message(&waiting).contains("2 room in repository full-san"), "{}", message(&waiting));
    scene.delete::<VirtualMachine>("huge").await?;

    scene.grow("root", "48Mi").await?;
    let refused = scene.until_disk_says("root", "False", "NoSpace").await?;
    let capacity = refused.capacity.as_ref().and_then(|capacity| capacity.bytes().ok());
    ensure!(refused.phase == Some(Phase::Bound) && capacity == Some(32 * MIB), "{refused:?}");
    ensure!(file(&world, &root)?.metadata()?.len() == 32 * MIB, "it has another size");
    ensure!(runs_of(&world.pool, &uid)?.len() == 1, "the guest was disturbed");
    scene.until_ready_is("web", "True", "Running").await?;
    scene.restart("web").await?;
    wait_until("the guest starts with the size that the disk has", PATIENCE, async || {
        ensure!(runs_of(&world.pool, &uid)?.len() == 2);
        Ok(())
    })
    .await?;
    scene.until_ready_is("web", "True", "Running").await?;
    scene.delete::<VirtualMachine>("late").await?;
    scene.delete::<VirtualDisk>("late").await?;
    scene.until_bound("root", 48).await?;

    // The same of a disk on one host.
    let local = scene.create_disk("local", "32Mi").await?;
    scene.create_machine("db", with_disk("local")).await?;
    let running = scene.until_ready_is("db", "True", "Running").await?;
    let at = world.pool.host_folder(host(&running)?).join("disks");
    scene.grow("local", "96Mi").await?;
    scene.until_disk_says("local", "False", "NoSpace").await?;
    scene.set_power_state("db", "Halted").await?;
    scene.until_ready_is("db", "True", "Halted").await?;
    scene.set_power_state("db", "Running").await?;
    scene.until_ready_is("db", "True", "Running").await?;
    let file = at.join(format!("{}.raw", local.uid().context("no uid")?));
    ensure!(file.metadata()?.len() == 32 * MIB, "it has another size");
    Ok(())
}

#[tokio::test]
async fn a_host_that_loses_shared_storage_says_so_and_what_needs_it_goes_elsewhere_until_it_is_back()
-> Result<()> {
    let world = World::start(PoolOptions { hosts: 2, ..PoolOptions::default() }).await?;
    let scene = Scene::with_shared_repository(&world, "lost").await?;
    let all = world.pool.host_names();
    let (home, other) = (all[0].as_str(), all[1].as_str());
    scene.let_in(all, |name| name == home).await?;
    let root = scene.create_disk_in("lost-san", "root", "16Mi").await?;
    let uid = scene.create_machine("web", with_disk("root")).await?.uid().context("no uid")?;
    scene.until_ready_is("web", "True", "Running").await?;
    scene.until_bound("root", 16).await?;
    scene.let_in(all, |_| true).await?;
    write_data(&world, &root)?;

    world.pool.reach_shared_storage(home, false)?;
    let lost = scene
        .until_host(home, "lacks the location", |status| {
            status.locations.iter().all(|location| location.name != "san")
        })
        .await?;
    let why = lost.unusable_locations.iter().find(|location| location.name == "san").context("no reason")?;
    ensure!(why.message.contains("No such file"), "{why:?}");
    let said = scene.until_repository_says("lost-san", "False", "HostsMissing").await?;
    ensure!(said.contains(&format!("{home} says: ")), "{said}");
    scene.until_ready_is("web", "True", "Running").await?;
    ensure!(runs_of(&world.pool, &uid)?.len() == 1, "its guest was not left alone");

    scene.create_disk_in("lost-san", "new", "16Mi").await?;
    scene.create_machine("new", with_disk("new")).await?;
    ensure!(host(&scene.until_ready_is("new", "True", "Running").await?)? == other);
    let here = json!({"hostSelector": {"matchLabels": {"lost": "here"}}});
    let hosts: Api<Host> = Api::all(scene.client.clone());
    let label = Patch::Merge(json!({"metadata": {"labels": {"lost": "here"}}}));
    hosts.patch(home, &PatchParams::default(), &label).await?;
    scene.create_disk_in("lost-san", "stuck", "16Mi").await?;
    scene
        .create_machine("stuck", json!({"disks": [{"name": "root", "disk": "stuck"}], "placement": here}))
        .await?;
    let stuck = scene.until_ready_is("stuck", "False", "Unschedulable").await?;
    ensure!(message(&stuck).contains("1 repository lost-san not attached"), "{}", message(&stuck));

    // The host that made it cannot grow it; another one does.
    scene.grow("root", "32Mi").await?;
    let grown = scene.until_bound("root", 32).await?;
    ensure!(grown.host.as_deref() == Some(other), "{grown:?}");
    scene.set_power_state("web", "Halted").await?;
    scene.until_ready_is("web", "True", "Halted").await?;
    scene.set_power_state("web", "Running").await?;
    ensure!(host(&scene.until_ready_is("web", "True", "Running").await?)? == other);
    has_its_data(&world, &root)?;

    world.pool.reach_shared_storage(home, true)?;
    scene.until_repository_says("lost-san", "True", "Attached").await?;
    scene
        .until_host(home, "has the location", |status| {
            status.unusable_locations.is_empty()
                && status.locations.iter().any(|location| location.name == "san")
        })
        .await?;
    ensure!(host(&scene.until_ready_is("stuck", "True", "Running").await?)? == home);
    has_its_data(&world, &root)?;
    nothing_ran_twice(&world.pool)?;
    Ok(())
}

#[tokio::test]
async fn a_disk_outlives_the_host_that_looks_after_it_and_grows_and_goes_without_it() -> Result<()> {
    let mut world =
        World::start(PoolOptions { hosts: 3, hosts_per_process: 1, ..PoolOptions::default() }).await?;
    let scene = Scene::with_shared_repository(&world, "keeper").await?;
    let all = world.pool.host_names().to_vec();
    let (first, second, third) = (all[0].as_str(), all[1].as_str(), all[2].as_str());
    scene.let_in(&all, |name| name == first).await?;
    let root = scene.create_disk_in("keeper-san", "root", "16Mi").await?;
    let extra = scene.create_disk_in("keeper-san", "extra", "16Mi").await?;
    for (name, disk) in [("web", "root"), ("brief", "extra")] {
        scene.create_machine(name, with_disk(disk)).await?;
        scene.until_ready_is(name, "True", "Running").await?;
        scene.until_bound(disk, 16).await?;
    }
    write_data(&world, &root)?;
    scene.delete::<VirtualMachine>("brief").await?;
    scene.let_in(&all, |_| true).await?;
    scene.migrate("away", json!({"virtualMachine": "web", "host": second})).await?;
    scene.until_over("away", MigrationPhase::Succeeded).await?;

    world.pool.kill_agent(0)?;
    scene.until_host(first, "is silent", |status| !condition::is_true(&status.conditions, "Ready")).await?;
    let untouched = scene.until_bound("root", 16).await?;
    ensure!(untouched.host.as_deref() == Some(first), "it went away although nothing was to be done");
    scene.grow("root", "32Mi").await?;
    let grown = scene.until_bound("root", 32).await?;
    ensure!(grown.host.as_deref() == Some(second), "not where its guest is: {grown:?}");
    scene.delete::<VirtualDisk>("extra").await?;
    ensure!(!file(&world, &extra)?.exists(), "its data is left");
    ensure!(disk_records(&world, &extra).await? == 0, "a record of it is left");
    wait_until("nothing of the disks is on the host that is away", PATIENCE, async || {
        let left = scene.volumes_on(first).await?;
        ensure!(left == 0, "{left} Volumes are left");
        Ok(())
    })
    .await?;
    has_its_data(&world, &root)?;

    // Who comes back finds nothing to do.
    world.pool.start_agent(0)?;
    scene.until_host(first, "is back", |status| condition::is_true(&status.conditions, "Ready")).await?;
    scene.migrate("on", json!({"virtualMachine": "web", "host": third})).await?;
    scene.until_over("on", MigrationPhase::Succeeded).await?;
    has_its_data(&world, &root)?;

    let hosts: Api<Host> = Api::all(scene.client.clone());
    remove_host(&scene.client, second).await?;
    wait_until("the host is gone", PATIENCE, async || {
        let left = hosts.get_opt(second).await?;
        ensure!(left.is_none(), "{:?}", left.and_then(|host| host.status).map(|status| status.conditions));
        Ok(())
    })
    .await?;
    let kept = scene.until_bound("root", 32).await?;
    ensure!(kept.host.as_deref() == Some(third), "not where its guest is: {kept:?}");
    scene.until_ready_is("web", "True", "Running").await?;
    has_its_data(&world, &root)?;
    nothing_ran_twice(&world.pool)?;
    scene.delete::<VirtualMachine>("web").await?;
    scene.delete::<VirtualDisk>("root").await?;
    ensure!(!file(&world, &root)?.exists() && disk_records(&world, &root).await? == 0, "something is left");
    let volumes: Api<Volume> = Api::all(scene.client.clone());
    let left = volumes.list(&ListParams::default()).await?.items;
    ensure!(
        left.is_empty(),
        "Volumes are left: {:?}",
        left.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
    );
    Ok(())
}
