//! The controller that leads dies or stands still in the middle of a recovery, and another one ends it.

use crate::{
    crashes::leader,
    recovery::{
        BACK, cut_power, number_of, protected, protecting, until_back, until_guarded, until_protects,
    },
    scene::host,
    world::World,
};
use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kubexen_testbed::{
    control_plane::Options,
    pool::{
        PoolOptions,
        runs::{nothing_ran_twice, runs_of},
    },
    process::wait_until,
};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_outlives_a_controller_that_is_killed_and_one_that_stands_still() -> Result<()> {
    let three = Options { pool_etcd_members: 3, ..Options::default() };
    let options = PoolOptions { hosts: 3, hosts_per_process: 1, controllers: 2, ..PoolOptions::default() };
    let world = World::start_on(&three, options).await?;
    let (mut world, scene) = protecting(world, json!({"profile": "Fast"})).await?;
    let dead = protected(&world, &scene, "web", None).await?;

    cut_power(&mut world, &dead)?;
    wait_until("the host is fenced", BACK, async || {
        ensure!(world.fenced(&dead).await? == 1, "it is not");
        Ok(())
    })
    .await?;
    let (leading, killed) = leader(&scene, None).await?;
    world.pool.kill_controller(leading)?;
    let machine = until_back(&scene, "web", &dead).await.context("after a kill")?;
    nothing_ran_twice(&world.pool)?;
    world.pool.start_controller(leading)?;
    let number = number_of(&world, &dead)?;
    world.pool.start_agent(number)?;
    until_protects(&world, &scene, &dead).await?;
    until_guarded(&world, &scene, "web").await?;

    let dead = host(&machine)?.to_owned();
    let (leading, _) = leader(&scene, Some(&killed)).await?;
    cut_power(&mut world, &dead)?;
    wait_until("its lease is gone", BACK, async || {
        let live = world.control_plane.pool_keys(&format!("/kubexen/hosts/{dead}/live/")).await?;
        ensure!(live.is_empty(), "{live:?}");
        Ok(())
    })
    .await?;
    // In the grace: it has seen the lease gone, and goes on with that when another has long recovered the guest.
    let controller = world.pool.controller(leading).context("it does not run")?;
    controller.pause()?;
    let machine = until_back(&scene, "web", &dead).await.context("while one stands still")?;
    controller.resume()?;
    until_guarded(&world, &scene, "web").await?;
    scene.create_machine("other", json!({})).await?;
    scene.until_ready_is("other", "True", "Running").await?;
    nothing_ran_twice(&world.pool)?;
    let runs = runs_of(&world.pool, &machine.uid().context("no uid")?)?;
    ensure!(runs.len() == 3 && runs.iter().all(|run| run.booted), "it ran {runs:?}");
    Ok(())
}
