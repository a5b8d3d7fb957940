//! Hosts lose their power, and their protected guests run elsewhere.

use crate::scene::{PATIENCE, Scene, host};
use crate::world::World;
use anyhow::{Context, Result, ensure};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use kubexen_crds::{Host, Pool, ProtectionState, VirtualMachine, condition};
use kubexen_ownership::liveness::Timing;
use kubexen_testbed::{
    pool::{PoolOptions, runs::nothing_ran_twice},
    process::wait_until,
};
use serde_json::{Value, json};
use std::time::Duration;

/// Longer than a lease, its grace and a start take with the profile `Fast`, on a busy machine.
pub const BACK: Duration = Duration::from_secs(120);

/// A pool of its own, with a Pool object, a scene with shared storage, and hosts that can protect guests.
pub async fn pool_of(hosts: usize, availability: Value) -> Result<(World, Scene)> {
    let options = PoolOptions { hosts, hosts_per_process: 1, ..PoolOptions::default() };
    protecting(World::start(options).await?, availability).await
}

/// Gives a pool of agents with one host each a Pool object, and a scene with shared storage; its hosts can protect guests then.
pub async fn protecting(world: World, availability: Value) -> Result<(World, Scene)> {
    let scene = Scene::with_shared_repository(&world, "recovery").await?;
    let pool = json!({"metadata": {"name": "default"}, "spec": {"availability": availability}});
    let pools = Api::<Pool>::all(scene.client.clone());
    pools.create(&PostParams::default(), &serde_json::from_value(pool)?).await?;
    for name in world.pool.host_names() {
        until_protects(&world, &scene, name).await?;
    }
    Ok((world, scene))
}

/// Waits until a host can protect guests, on the lease of the profile Fast.
pub async fn until_protects(world: &World, scene: &Scene, name: &str) -> Result<()> {
    let all = Api::<Host>::all(scene.client.clone());
    wait_until("the host protects guests", BACK, async || {
        let status = all.get(name).await?.status.unwrap_or_default();
        let protects = status.protection.as_ref().is_some_and(|said| said.state == ProtectionState::Ready);
        ensure!(protects, "{name} does not protect guests: {:?}", status.protection);
        let boot = status.boot_id.context("it has no boot")?;
        let lease = world.control_plane.pool_lease(&format!("/kubexen/hosts/{name}/live/{boot}")).await?;
        ensure!(lease == Some(Timing::FAST.lease), "{name} has a lease of {lease:?}");
        Ok(())
    })
    .await
}

/// Makes a protected machine with a shared disk, and waits until it runs, on this host if one is named, and is guarded; says
/// where.
pub async fn protected(world: &World, scene: &Scene, name: &str, on: Option<&str>) -> Result<String> {
    scene.create_disk_in("recovery-san", name, "16Mi").await?;
    let mut spec = json!({
        "disks": [{"name": "root", "disk": name}],
        "availability": {"restartPriority": "Protected"},
    });
    if let Some(on) = on {
        let label = json!({"metadata": {"labels": {"first": name}}});
        let hosts = Api::<Host>::all(scene.client.clone());
        hosts.patch(on, &PatchParams::default(), &Patch::Merge(label)).await?;
        spec["placement"] = json!({"hostSelector": {"matchLabels": {"first": name}}});
    }
    scene.create_machine(name, spec).await?;
    let machine = until_guarded(world, scene, name).await?;
    if on.is_some() {
        scene.change(name, json!({"spec": {"placement": null}})).await?;
    }
    Ok(host(&machine)?.to_owned())
}

/// Waits until a machine runs and its host has promised to stop it in time.
pub async fn until_guarded(world: &World, scene: &Scene, name: &str) -> Result<VirtualMachine> {
    let machines = scene.api::<VirtualMachine>();
    wait_until("it runs and is guarded", BACK, async || {
        let machine = machines.get(name).await?;
        let status = machine.status.clone().unwrap_or_default();
        ensure!(condition::is_true(&status.conditions, "Ready"), "{}", crate::scene::described(&machine));
        let uid = machine.uid().context("no uid")?;
        let record = world.control_plane.pool_value(&format!("/kubexen/owners/{uid}")).await?;
        ensure!(record.contains(r#""guarded":true"#), "the record is {record}");
        Ok(machine)
    })
    .await
}

/// The number of a host, and of its agent.
pub fn number_of(world: &World, host: &str) -> Result<usize> {
    world.pool.host_names().iter().position(|name| name == host).context("no such host")
}

pub fn cut_power(world: &mut World, host: &str) -> Result<()> {
    let number = number_of(world, host)?;
    world.pool.cut_power(number)
}

pub async fn until_back(scene: &Scene, name: &str, dead: &str) -> Result<VirtualMachine> {
    let machines = scene.api::<VirtualMachine>();
    wait_until(&format!("{name} runs elsewhere"), BACK, async || {
        let machine = machines.get(name).await?;
        let status = machine.status.clone().unwrap_or_default();
        ensure!(condition::is_true(&status.conditions, "Ready"), "{}", crate::scene::described(&machine));
        ensure!(status.host.as_deref() != Some(dead), "it is still on {dead}");
        Ok(machine)
    })
    .await
}

async fn until_pool_says(scene: &Scene, status: &str, reason: &str) -> Result<Pool> {
    let pools = Api::<Pool>::all(scene.client.clone());
    wait_until(&format!("the Pool says {reason}"), BACK, async || {
        let pool = pools.get("default").await?;
        let conditions = pool.status.clone().unwrap_or_default().conditions;
        let said = condition::find(&conditions, "Recovering").context("it says nothing")?;
        ensure!(said.status == status && said.reason == reason, "it says {said:?}");
        Ok(pool)
    })
    .await
}

#[tokio::test]
async fn a_protected_guest_of_a_host_without_power_runs_elsewhere_and_nowhere_twice() -> Result<()> {
    let (mut world, scene) = pool_of(3, json!({"profile": "Fast"})).await?;
    let dead = protected(&world, &scene, "web", None).await?;
    cut_power(&mut world, &dead)?;
    let machine = until_back(&scene, "web", &dead).await?;
    let status = machine.status.context("no status")?;
    let recovery = status.recovery.context("no timeline")?;
    ensure!(recovery.from == dead && Some(&recovery.to) == status.host.as_ref(), "{recovery:?}");
    let ready = recovery.ready.as_ref().context("it is not Ready")?;
    ensure!(recovery.fenced.0 <= recovery.stolen.0 && recovery.stolen.0 <= ready.0, "{recovery:?}");
    let hosts = Api::<Host>::all(scene.client.clone());
    let of_host = wait_until("the host's record is complete", PATIENCE, async || {
        let status = hosts.get(&dead).await?.status.unwrap_or_default();
        let fenced = condition::find(&status.conditions, "Ready").context("no condition")?;
        ensure!(fenced.reason == "Fenced", "it says {fenced:?}");
        status.recovery.filter(|recovery| recovery.completed.is_some()).context("it is not complete")
    })
    .await?;
    ensure!((of_host.machines, of_host.recovered) == (1, 1), "{of_host:?}");
    let (last, gone) = (of_host.last_sign.as_ref().context("no last sign")?, &of_host.lease_gone);
    let fenced = of_host.fenced.as_ref().context("not fenced")?;
    ensure!(last.0 <= gone.0 && gone.0 < fenced.0 && fenced.0 <= recovery.stolen.0, "{of_host:?}");
    nothing_ran_twice(&world.pool)?;

    // It comes back at another boot, and takes guests again.
    let number = world.pool.host_names().iter().position(|name| *name == dead).context("no such host")?;
    world.pool.start_agent(number)?;
    wait_until("the host is back", BACK, async || {
        let status = hosts.get(&dead).await?.status.unwrap_or_default();
        ensure!(condition::is_true(&status.conditions, "Ready"), "{dead} is not Ready");
        Ok(())
    })
    .await?;
    nothing_ran_twice(&world.pool)?;
    Ok(())
}

#[tokio::test]
async fn when_half_of_the_hosts_are_silent_an_operator_has_to_confirm_one() -> Result<()> {
    let (mut world, scene) = pool_of(4, json!({"profile": "Fast"})).await?;
    let (one, two) = ("host-1".to_owned(), "host-2".to_owned());
    protected(&world, &scene, "one", Some(&one)).await?;
    protected(&world, &scene, "two", Some(&two)).await?;
    cut_power(&mut world, &one)?;
    cut_power(&mut world, &two)?;
    let pool = until_pool_says(&scene, "False", "StormBrake").await?;
    let silent = pool.status.and_then(|status| status.availability).unwrap_or_default().silent_hosts;
    ensure!(silent == [one.clone(), two.clone()], "{silent:?}");
    let hosts = Api::<Host>::all(scene.client.clone());
    let boot = hosts.get(&one).await?.status.and_then(|status| status.boot_id).context("no boot")?;
    let confirmed = json!({"spec": {"fencing": {"confirmedDead": boot}}});
    hosts.patch(&one, &PatchParams::default(), &Patch::Merge(confirmed)).await?;
    until_back(&scene, "one", &one).await?;
    until_back(&scene, "two", &two).await?;
    nothing_ran_twice(&world.pool)?;
    Ok(())
}

#[tokio::test]
async fn a_disarmed_pool_leaves_guests_where_they_were_until_it_is_armed() -> Result<()> {
    let (mut world, scene) = pool_of(3, json!({"profile": "Fast"})).await?;
    let dead = protected(&world, &scene, "web", None).await?;
    let pools = Api::<Pool>::all(scene.client.clone());
    let disarmed = |disarmed: bool| Patch::Merge(json!({"spec": {"availability": {"disarmed": disarmed}}}));
    // Before the host hears of it: it would take its promise back.
    cut_power(&mut world, &dead)?;
    pools.patch("default", &PatchParams::default(), &disarmed(true)).await?;
    until_pool_says(&scene, "False", "Disarmed").await?;
    wait_until("the host is silent", BACK, async || {
        let silent = pools.get("default").await?.status.and_then(|status| status.availability);
        ensure!(silent.unwrap_or_default().silent_hosts == [dead.clone()], "it is not");
        Ok(())
    })
    .await?;
    let hosts = Api::<Host>::all(scene.client.clone());
    wait_until("the controller misses the host", BACK, async || {
        let status = hosts.get(&dead).await?.status.unwrap_or_default();
        let ready = condition::find(&status.conditions, "Ready").context("no condition")?;
        // By then the grace is long over.
        ensure!(ready.reason == "AgentSilent", "{ready:?}");
        Ok(())
    })
    .await?;
    let machine = scene.api::<VirtualMachine>().get("web").await?;
    ensure!(host(&machine)? == dead, "it was given away");
    pools.patch("default", &PatchParams::default(), &disarmed(false)).await?;
    until_back(&scene, "web", &dead).await?;
    nothing_ran_twice(&world.pool)?;
    Ok(())
}
