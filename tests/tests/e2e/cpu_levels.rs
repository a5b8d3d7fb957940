//! Hosts with unlike CPUs: the pool's level, and what it means for machines.

use crate::{
    scene::{PATIENCE, Scene, host},
    world::World,
};
use anyhow::{Context, Result, ensure};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use kubexen_crds::{
    Domain, Host, MigrationPhase, Pool, VirtualMachine, VirtualMachineMigration, condition::find,
    names::host_namespace,
};
use kubexen_testbed::{pool::PoolOptions, process::wait_until};
use serde_json::json;

/// The feature that a host loses and gets back.
const FEATURE: &str = "avx2";

/// Starts the agent of a host anew, with CPUs that have these features.
fn change_cpus(world: &mut World, number: usize, features: &[&str]) -> Result<()> {
    world.pool.kill_agent(number)?;
    let file = world.pool.host_folder(&world.pool.host_names()[number]).join("agent.yaml");
    let mut config: serde_json::Value = serde_yaml_ng::from_str(&std::fs::read_to_string(&file)?)?;
    config["hypervisor"]["profile"]["cpuFeatures"] = json!(features);
    std::fs::write(&file, serde_yaml_ng::to_string(&config)?)?;
    world.pool.start_agent(number)
}

fn has_feature(names: &[String]) -> bool {
    names.iter().any(|name| name == FEATURE)
}

async fn until_the_pool_has_it(scene: &Scene, wanted: bool) -> Result<()> {
    let pools: Api<Pool> = Api::all(scene.client.clone());
    wait_until(&format!("{FEATURE} in the pool's level: {wanted}"), PATIENCE, async || {
        let cpu = pools.get("default").await?.status.unwrap_or_default().cpu.context("it has no level")?;
        ensure!(has_feature(&cpu.features) == wanted, "it has {:?}", cpu.features);
        Ok(())
    })
    .await
}

async fn until_the_host_gives_it(scene: &Scene, host: &str, wanted: bool) -> Result<()> {
    let hosts: Api<Host> = Api::all(scene.client.clone());
    wait_until(&format!("{host} gives {FEATURE}: {wanted}"), PATIENCE, async || {
        let cpu = hosts.get(host).await?.status.unwrap_or_default().cpu.unwrap_or_default();
        ensure!(has_feature(&cpu.features) == wanted, "it has {:?}", cpu.features);
        Ok(())
    })
    .await
}

async fn the_guest_may_use_it(scene: &Scene, host: &str) -> Result<bool> {
    let domains: Api<Domain> = Api::namespaced(scene.client.clone(), &host_namespace(host));
    let domain = domains.get(&format!("{}.web", scene.name)).await?;
    Ok(has_feature(&domain.spec.machine.cpu_level.context("it has no level")?.names()))
}

async fn migrate(scene: &Scene, name: &str, phase: MigrationPhase) -> Result<String> {
    let migrations: Api<VirtualMachineMigration> = scene.api();
    let object = json!({"metadata": {"name": name}, "spec": {"virtualMachine": "web"}});
    migrations.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    wait_until(&format!("{name} is {phase:?}"), PATIENCE, async || {
        let status = migrations.get(name).await?.status.unwrap_or_default();
        ensure!(status.phase == Some(phase), "it is {}", serde_json::to_string(&status)?);
        Ok(find(&status.conditions, "Succeeded").map(|one| one.message.clone()).unwrap_or_default())
    })
    .await
}

#[tokio::test]
async fn a_machine_keeps_its_level_until_it_is_restarted_and_the_pools_rises_by_policy_alone() -> Result<()> {
    let options = PoolOptions { hosts: 2, hosts_per_process: 1, ..PoolOptions::default() };
    let mut world = World::start(options).await?;
    let scene = Scene::new(&world, "levels").await?;
    let pools: Api<Pool> = Api::all(scene.client.clone());
    let pool = serde_json::from_value(json!({"metadata": {"name": "default"}, "spec": {}}))?;
    pools.create(&PostParams::default(), &pool).await?;
    until_the_pool_has_it(&scene, true).await?;
    scene.create_machine("web", json!({})).await?;
    let home = host(&scene.until_ready_is("web", "True", "Running").await?)?.to_owned();
    ensure!(the_guest_may_use_it(&scene, &home).await?, "it was started below the pool's level");

    let names = world.pool.host_names().to_vec();
    let weak = names.iter().position(|name| *name != home).context("there is one host only")?;
    change_cpus(&mut world, weak, &["lahf_lm", "lm", "nx", "sse4_2"])?;
    until_the_pool_has_it(&scene, false).await?;
    ensure!(the_guest_may_use_it(&scene, &home).await?, "a running guest lost its level");
    let why = migrate(&scene, "refused", MigrationPhase::Failed).await?;
    ensure!(why.contains("CPU feature avx2 missing"), "it says {why:?}");

    scene.restart("web").await?;
    scene.until_ready_is("web", "True", "Running").await?;
    let home = wait_until("it runs at the pool's level", PATIENCE, async || {
        let home = host(&scene.until_ready_is("web", "True", "Running").await?)?.to_owned();
        ensure!(!the_guest_may_use_it(&scene, &home).await?, "it kept its level");
        Ok(home)
    })
    .await?;
    migrate(&scene, "allowed", MigrationPhase::Succeeded).await?;
    let moved = scene
        .until("web", "runs on the other host", |machine| host(machine).is_ok_and(|host| *host != home))
        .await?;
    ensure!(!the_guest_may_use_it(&scene, host(&moved)?).await?, "the move changed its level");

    change_cpus(&mut world, weak, &["avx2", "lahf_lm", "lm", "nx", "sse4_2"])?;
    until_the_host_gives_it(&scene, &names[weak], true).await?;
    until_the_pool_has_it(&scene, false).await?;
    let follow = Patch::Merge(json!({"spec": {"cpu": {"level": "Follow"}}}));
    pools.patch("default", &PatchParams::default(), &follow).await?;
    until_the_pool_has_it(&scene, true).await?;
    let moved = scene.until_ready_is("web", "True", "Running").await?;
    ensure!(!the_guest_may_use_it(&scene, host(&moved)?).await?, "the level rose under a running guest");
    scene.delete::<VirtualMachine>("web").await
}
