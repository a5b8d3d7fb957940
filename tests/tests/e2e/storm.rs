//! Many machines at once.

use crate::{
    fixpoint,
    scene::{Scene, described, machine, ready_is},
    traces,
    world::World,
};
use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use kubexen_crds::{VirtualDisk, VirtualMachine};
use kubexen_testbed::pool::runs;
use kubexen_testbed::{
    pool::{PoolOptions, SimulatedHostOptions},
    process::wait_until,
};
use serde_json::json;
use std::{collections::BTreeSet, ops::Range, time::Duration};
use tokio::time::sleep;

/// Longest time until a storm of some hundreds has calmed, whatever happened meanwhile.
const CALM_WITHIN: Duration = Duration::from_secs(150);
/// How often a storm is looked at. One look reads every machine.
const LOOK: Duration = Duration::from_millis(250);
/// Requests of the user in flight.
const IN_FLIGHT: usize = 16;

/// The pool of a storm: six hosts, two to a process.
pub fn pool() -> PoolOptions {
    let simulated = SimulatedHostOptions { memory: "32Gi".to_owned(), ..SimulatedHostOptions::default() };
    PoolOptions { hosts: 6, hosts_per_process: 2, simulated, ..PoolOptions::default() }
}

/// Makes machines `vm-N`; every fourth has a disk and an interface. The user tries again until each is there, as
/// `kubectl apply` in a loop does.
pub async fn create(scene: &Scene, numbers: Range<usize>) -> Result<()> {
    let all = stream::iter(numbers).map(|number| create_one(scene, number));
    all.buffer_unordered(IN_FLIGHT).try_collect().await
}

async fn create_one(scene: &Scene, number: usize) -> Result<()> {
    let (name, disk) = (format!("vm-{number}"), format!("disk-{number}"));
    let mut spec = json!({});
    if number.is_multiple_of(4) {
        let object = json!({"metadata": {"name": disk}, "spec": {"repository": scene.name, "size": "16Mi"}});
        insist(&scene.api::<VirtualDisk>(), &serde_json::from_value(object)?).await?;
        spec = json!({
            "disks": [{"name": "data", "disk": disk}],
            "interfaces": [{"name": "eth0", "network": scene.name}],
        });
    }
    insist(&scene.api(), &machine(&name, spec)?).await
}

/// Creates an object, again and again until the API server says that it is there.
async fn insist<K>(api: &Api<K>, object: &K) -> Result<()>
where
    K: Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    wait_until("the API server takes an object", CALM_WITHIN, async || {
        match api.create(&PostParams::default(), object).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            Err(error) => Err(error.into()),
        }
    })
    .await
}

/// Waits until `count` machines are there and all of them run.
pub async fn calm(scene: &Scene, count: usize) -> Result<Vec<VirtualMachine>> {
    wait_until("every machine runs", CALM_WITHIN, async || {
        sleep(LOOK).await;
        let machines = scene.api::<VirtualMachine>().list(&ListParams::default()).await?.items;
        let waiting: Vec<_> =
            machines.iter().filter(|machine| !ready_is(machine, "True", "Running")).collect();
        let running = machines.len() - waiting.len();
        let first = waiting.first().map(|one| format!("{} is {}", one.name_any(), described(one)));
        ensure!(running == count, "{running} of {count} run; {}", first.unwrap_or_default());
        Ok(machines)
    })
    .await
}

/// The UIDs of all machines and disks.
pub async fn uids(scene: &Scene) -> Result<BTreeSet<String>> {
    let machines = scene.api::<VirtualMachine>().list(&ListParams::default()).await?;
    let disks = scene.api::<VirtualDisk>().list(&ListParams::default()).await?;
    let machines = machines.iter().filter_map(ResourceExt::uid);
    Ok(machines.chain(disks.iter().filter_map(ResourceExt::uid)).collect())
}

/// Deletes all machines and disks at once.
pub async fn delete(scene: &Scene) -> Result<()> {
    let (parameters, all) = (DeleteParams::background(), ListParams::default());
    scene.api::<VirtualMachine>().delete_collection(&parameters, &all).await?;
    scene.api::<VirtualDisk>().delete_collection(&parameters, &all).await?;
    Ok(())
}

/// Waits until no machine and no disk is left, and makes sure that nothing else is left of them either.
pub async fn gone(world: &World, scene: &Scene, uids: &BTreeSet<String>) -> Result<()> {
    wait_until("every machine and disk is gone", CALM_WITHIN, async || {
        sleep(LOOK).await;
        let machines = scene.api::<VirtualMachine>().list(&ListParams::default()).await?.items;
        let disks = scene.api::<VirtualDisk>().list(&ListParams::default()).await?.items;
        let first = machines.first().map(|one| format!("{} is {}", one.name_any(), described(one)));
        let disk = disks.first().map(|disk| format!("{}: {:?}", disk.name_any(), disk.status));
        ensure!(
            machines.is_empty() && disks.is_empty(),
            "{} machines and {} disks are left; {} {}",
            machines.len(),
            disks.len(),
            first.unwrap_or_default(),
            disk.unwrap_or_default()
        );
        Ok(())
    })
    .await?;
    traces::are_gone(world, &scene.client, uids).await
}

/// Makes sure that every domain was started, and none but once.
pub fn each_started_once(world: &World, machines: &[VirtualMachine]) -> Result<()> {
    let runs = runs::nothing_ran_twice(&world.pool)?;
    for machine in machines {
        let uid = machine.uid().unwrap_or_default().parse()?;
        let of_machine = runs.get(&uid).map(Vec::as_slice).unwrap_or_default();
        ensure!(
            of_machine.len() == 1,
            "{} was started otherwise than once: {of_machine:?}",
            machine.name_any()
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_machines_at_once_run_then_rest_and_leave_nothing() -> Result<()> {
    const COUNT: usize = 200;
    let world = World::start(pool()).await?;
    let scene = Scene::new(&world, "storm").await?;
    create(&scene, 0..COUNT).await?;
    let machines = calm(&scene, COUNT).await?;
    each_started_once(&world, &machines)?;
    fixpoint::is_kept(&world).await?;
    let uids = uids(&scene).await?;
    delete(&scene).await?;
    gone(&world, &scene, &uids).await
}
