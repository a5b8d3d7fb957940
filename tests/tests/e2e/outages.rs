//! The servers below KubeXen fail under load.

use crate::{fixpoint, scene::Scene, storm, world::World};
use anyhow::Result;
use kubexen_testbed::control_plane::Part;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_outlives_crashes_of_the_api_server_and_of_both_etcds() -> Result<()> {
    const WAVE: usize = 50;
    let mut world = World::start(storm::pool()).await?;
    let scene = Scene::new(&world, "storm").await?;
    let mut count = 0;
    for part in [Part::ApiServer, Part::Etcd, Part::PoolEtcd, Part::ControllerManager] {
        tokio::try_join!(storm::create(&scene, count..count + WAVE), world.control_plane.restart(part))?;
        count += WAVE;
    }
    let machines = storm::calm(&scene, count).await?;
    storm::each_started_once(&world, &machines)?;
    fixpoint::is_kept(&world).await?;
    let uids = storm::uids(&scene).await?;
    storm::delete(&scene).await?;
    world.control_plane.restart(Part::PoolEtcd).await?;
    world.control_plane.restart(Part::ApiServer).await?;
    storm::gone(&world, &scene, &uids).await
}
