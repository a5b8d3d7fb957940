//! The pool's etcd is restored from a snapshot: the pool holds still until an operator confirms it.

use crate::{
    recovery::{cut_power, protected, protecting, until_back, until_guarded, until_protects},
    scene::{PATIENCE, Scene, host},
    world::World,
};
use anyhow::{Context, Result, ensure};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use kubexen_crds::{Pool, VirtualMachine, VirtualMachineMigration, condition};
use kubexen_testbed::{
    control_plane::Options,
    pool::{
        Pool as Hosts, PoolOptions,
        runs::{nothing_ran_twice, runs_of},
    },
    process::wait_until,
};
use serde_json::json;
use std::time::Duration;

/// Longer than an agent, a lease and its grace take with the profile `Fast` to do something that they must not.
const STILL: Duration = Duration::from_secs(30);

/// Waits until the Pool is frozen and says that nothing but an operator's word is missing; the epoch that it names.
async fn until_on_record(scene: &Scene) -> Result<String> {
    let pools = Api::<Pool>::all(scene.client.clone());
    wait_until("all hosts have put on record what they run", PATIENCE, async || {
        let status = pools.get("default").await?.status.unwrap_or_default();
        let said = condition::find(&status.conditions, "Recovering").context("it says nothing")?;
        ensure!(said.reason == "Frozen", "it says {said:?}");
        let epoch = status.availability.and_then(|availability| availability.freeze).context("no epoch")?;
        ensure!(said.message.contains(&epoch), "{}", said.message);
        ensure!(said.message.contains("; all hosts have put on record"), "{}", said.message);
        Ok(epoch)
    })
    .await
}

/// Moves a guest to another host; says which.
async fn moved(scene: &Scene, machine: &str) -> Result<String> {
    let migrations = scene.api::<VirtualMachineMigration>();
    let migration = json!({"metadata": {"name": machine}, "spec": {"virtualMachine": machine}});
    migrations.create(&PostParams::default(), &serde_json::from_value(migration)?).await?;
    wait_until("it has moved", PATIENCE, async || {
        let status = migrations.get(machine).await?.status.unwrap_or_default();
        ensure!(condition::is_true(&status.conditions, "Succeeded"), "it says {:?}", status.conditions);
        Ok(())
    })
    .await?;
    Ok(host(&scene.api::<VirtualMachine>().get(machine).await?)?.to_owned())
}

/// The hosts on which a machine can run at this moment.
fn running_on(hosts: &Hosts, uid: &str) -> Result<Vec<String>> {
    let open = runs_of(hosts, uid)?.into_iter().filter(|run| run.to.is_none());
    Ok(open.map(|run| run.host).collect())
}

#[tokio::test]
async fn a_pool_whose_etcd_was_restored_holds_still_until_an_operator_confirms_it() -> Result<()> {
    let three = Options { pool_etcd_members: 3, ..Options::default() };
    let options = PoolOptions { hosts: 3, hosts_per_process: 1, controllers: 2, ..PoolOptions::default() };
    let (mut world, scene) =
        protecting(World::start_on(&three, options).await?, json!({"profile": "Fast"})).await?;
    let on = protected(&world, &scene, "web", None).await?;
    let left = protected(&world, &scene, "moved", None).await?;
    let snapshot = world.control_plane.save_pool_snapshot().await?;
    // The snapshot knows nothing of it, and says that the other is where it was.
    let made_on = protected(&world, &scene, "made", None).await?;
    let moved_on = moved(&scene, "moved").await?;
    ensure!(moved_on != left, "it is where it was");
    world.control_plane.restore_pool_etcd(&snapshot).await?;
    let epoch = until_on_record(&scene).await?;
    ensure!(epoch.starts_with("2-"), "{epoch}");
    let made = scene.api::<VirtualMachine>().get("made").await?;
    let uid = made.uid().context("no uid")?;
    let record = world.control_plane.pool_value(&format!("/kubexen/owners/{uid}")).await?;
    ensure!(record.contains(&made_on), "what runs is on record: {record}");

    scene.create_machine("later", json!({})).await?;
    scene.change("made", json!({"spec": {"powerState": "Halted"}})).await?;
    tokio::time::sleep(STILL).await;
    for (name, host_name) in [("web", &on), ("made", &made_on), ("moved", &moved_on)] {
        let machine = scene.api::<VirtualMachine>().get(name).await?;
        ensure!(host(&machine)? == host_name, "{}", crate::scene::described(&machine));
    }
    ensure!(running_on(&world.pool, &uid)? == [made_on.clone()], "it was stopped");
    let later = scene.api::<VirtualMachine>().get("later").await?;
    let later = later.uid().context("no uid")?;
    ensure!(running_on(&world.pool, &later)?.is_empty(), "it was started");

    let pools = Api::<Pool>::all(scene.client.clone());
    let confirm = json!({"spec": {"availability": {"confirmedEpoch": epoch}}});
    pools.patch("default", &PatchParams::default(), &Patch::Merge(confirm)).await?;
    wait_until("the pool goes on", PATIENCE, async || {
        let availability = pools.get("default").await?.status.unwrap_or_default().availability;
        let availability = availability.context("it says nothing")?;
        ensure!(
            availability.freeze.is_none() && availability.epoch.as_ref() == Some(&epoch),
            "{availability:?}"
        );
        Ok(())
    })
    .await?;
    scene.until_ready_is("later", "True", "Running").await?;
    wait_until("it is halted", PATIENCE, async || {
        ensure!(running_on(&world.pool, &uid)?.is_empty(), "its domain is there");
        Ok(())
    })
    .await?;
    nothing_ran_twice(&world.pool)?;
    // Everything works as before, once the host has heard of it.
    until_protects(&world, &scene, &moved_on).await?;
    until_guarded(&world, &scene, "moved").await?;
    cut_power(&mut world, &moved_on)?;
    until_back(&scene, "moved", &moved_on).await?;
    nothing_ran_twice(&world.pool).map(drop)
}
