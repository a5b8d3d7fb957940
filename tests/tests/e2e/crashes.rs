//! The controller and the agents are killed in the middle of storms.

use crate::{fixpoint, scene::Scene, storm, world::World};
use anyhow::{Context, Result, bail};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kubexen_controller::LEASE;
use kubexen_testbed::pool::runs;
use kubexen_testbed::{
    pool::{PoolOptions, SYSTEM_NAMESPACE},
    process::wait_until,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::time::Duration;

/// Longest time until another controller leads: the lease of the one that was killed must run out first.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(60);

/// The environment variable that repeats a run: the seed that a failed one printed.
const SEED: &str = "KUBEXEN_SEED";

/// Chance that can be repeated.
fn dice() -> StdRng {
    let given = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
    println!("{SEED}={seed}");
    StdRng::seed_from_u64(seed)
}

/// A random point of a storm.
async fn some_time(dice: &mut StdRng) {
    tokio::time::sleep(Duration::from_millis(dice.random_range(100..1500))).await;
}

/// The number of the controller that leads, and its identity, which is other than `but`: one that was killed may lead again
/// when it was started again.
pub async fn leader(scene: &Scene, but: Option<&str>) -> Result<(usize, String)> {
    let leases = Api::<Lease>::namespaced(scene.client.clone(), SYSTEM_NAMESPACE);
    wait_until("another controller leads", TAKEN_OVER_WITHIN, async || {
        let holder = leases.get(LEASE).await?.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        let number = holder.strip_prefix("controller-").and_then(|rest| rest.split('_').next());
        let number = number.with_context(|| format!("held by {holder:?}"))?.parse()?;
        if Some(holder.as_str()) == but {
            bail!("{holder} still holds the lease");
        }
        Ok((number, holder))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_killed_at_random_points_of_a_storm_start_nothing_twice() -> Result<()> {
    const WAVE: usize = 60;
    let mut dice = dice();
    let mut world = World::start(PoolOptions { controllers: 2, ..storm::pool() }).await?;
    let scene = Scene::new(&world, "storm").await?;
    let mut count = 0;
    let mut killed: Option<String> = None;
    for _ in 0..3 {
        let (leading, holder) = leader(&scene, killed.as_deref()).await?;
        let kill = async {
            some_time(&mut dice).await;
            world.pool.kill_controller(leading)?;
            world.pool.start_controller(leading)
        };
        tokio::try_join!(storm::create(&scene, count..count + WAVE), kill)?;
        count += WAVE;
        killed = Some(holder);
    }
    let machines = storm::calm(&scene, count).await?;
    storm::each_started_once(&world, &machines)?;
    fixpoint::is_kept(&world).await?;
    let uids = storm::uids(&scene).await?;
    storm::delete(&scene).await?;
    some_time(&mut dice).await;
    let (leading, _) = leader(&scene, None).await?;
    world.pool.kill_controller(leading)?;
    storm::gone(&world, &scene, &uids).await?;
    runs::nothing_ran_twice(&world.pool).map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_killed_at_random_points_of_a_storm_start_nothing_twice_and_leave_nothing() -> Result<()> {
    const COUNT: usize = 150;
    const KILLS: usize = 12;
    let mut dice = dice();
    let mut world = World::start(storm::pool()).await?;
    let scene = Scene::new(&world, "storm").await?;
    tokio::try_join!(storm::create(&scene, 0..COUNT), kill_agents(&mut world, &mut dice, KILLS))?;
    storm::calm(&scene, COUNT).await?;
    runs::nothing_ran_twice(&world.pool)?;
    fixpoint::is_kept(&world).await?;
    let uids = storm::uids(&scene).await?;
    storm::delete(&scene).await?;
    kill_agents(&mut world, &mut dice, KILLS / 2).await?;
    storm::gone(&world, &scene, &uids).await?;
    runs::nothing_ran_twice(&world.pool).map(drop)
}

async fn kill_agents(world: &mut World, dice: &mut StdRng, times: usize) -> Result<()> {
    for _ in 0..times {
        some_time(dice).await;
        let number = dice.random_range(0..world.pool.agent_count());
        world.pool.kill_agent(number)?;
        world.pool.start_agent(number)?;
    }
    Ok(())
}
