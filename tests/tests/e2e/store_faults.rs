//! The pool's etcd loses a member or its quorum, is defragmented, and runs full: nobody is fenced for it, nothing runs twice,
//! and all goes on afterwards.

use crate::{
    recovery::{BACK, cut_power, protected, protecting, until_back, until_guarded},
    scene::Scene,
    world::World,
};
use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use kube::ResourceExt;
use kubexen_crds::VirtualMachine;
use kubexen_ownership::liveness::Timing;
use kubexen_testbed::{
    control_plane::{Options, Part},
    pool::{
        PoolOptions,
        runs::{Run, nothing_ran_twice, runs_of},
    },
    process::wait_until,
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::sleep;

/// What a member keeps before it says that its disk is full.
const QUOTA: u64 = 4 << 20;
/// How late a guest may be stopped on a busy machine, in seconds.
const LATE: f64 = 2.0;
/// Below what the kernel takes for one argument of a program.
const FILLER: usize = 100_000;

/// Three members with little room, and one protected guest on each of three hosts.
async fn bed() -> Result<(World, Scene)> {
    let three = Options { pool_etcd_members: 3, pool_etcd_quota: QUOTA, ..Options::default() };
    let options = PoolOptions { hosts: 3, hosts_per_process: 1, controllers: 2, ..PoolOptions::default() };
    let world = World::start_on(&three, options).await?;
    let (world, scene) = protecting(world, json!({"profile": "Fast"})).await?;
    for host in world.pool.host_names() {
        protected(&world, &scene, host, Some(host)).await?;
    }
    Ok((world, scene))
}

/// Longer than a lease, the grace, and a look at it.
async fn long_enough_to_be_fenced() {
    sleep(Timing::FAST.lease + Timing::FAST.grace + Duration::from_secs(2)).await;
}

async fn nobody_is_fenced(world: &World) -> Result<()> {
    for host in world.pool.host_names() {
        ensure!(world.fenced(host).await? == 0, "{host} was fenced");
    }
    nothing_ran_twice(&world.pool).map(drop)
}

async fn runs(world: &World, scene: &Scene, name: &str) -> Result<Vec<Run>> {
    let machine = scene.api::<VirtualMachine>().get(name).await?;
    runs_of(&world.pool, &machine.uid().context("no uid")?)
}

/// Makes sure that every guest has run without a break where it was.
async fn nobody_noticed(world: &World, scene: &Scene) -> Result<()> {
    nobody_is_fenced(world).await?;
    for host in world.pool.host_names() {
        let runs = runs(world, scene, host).await?;
        ensure!(matches!(runs.as_slice(), [Run { to: None, .. }]), "{host} ran {runs:?}");
    }
    Ok(())
}

/// Takes the quorum away for so long: guests stop where the deadline wants it, and run again afterwards.
async fn lose_quorum(world: &mut World, scene: &Scene, seconds: u64) -> Result<()> {
    for member in [0, 1] {
        world.control_plane.pause(Part::PoolEtcdMember(member))?;
    }
    let since = Timestamp::now();
    sleep(Duration::from_secs(seconds)).await;
    for member in [0, 1] {
        world.control_plane.resume(Part::PoolEtcdMember(member))?;
    }
    for host in world.pool.host_names() {
        until_guarded(world, scene, host).await?;
        let runs = runs(world, scene, host).await?;
        let ends = runs.iter().filter_map(|run| run.to);
        let end =
            ends.filter(|end| *end >= since).min().with_context(|| format!("nobody stopped {host}'s"))?;
        let late = end.duration_since(since).as_secs_f64() - Timing::FAST.deadline.as_secs_f64();
        ensure!(late <= LATE, "it ended {late:.1} s after the deadline: {runs:?}");
    }
    nothing_ran_twice(&world.pool).map(drop)
}

/// Makes sure that nobody was fenced, and no guest was anywhere but on its host.
async fn nobody_moved(world: &World, scene: &Scene) -> Result<()> {
    nobody_is_fenced(world).await?;
    for host in world.pool.host_names() {
        let hosts: BTreeSet<String> =
            runs(world, scene, host).await?.into_iter().map(|run| run.host).collect();
        ensure!(hosts == BTreeSet::from([host.clone()]), "{host} was on {hosts:?}");
    }
    Ok(())
}

/// Has each member write its whole database anew, half of which is empty.
async fn defragment(world: &World) -> Result<()> {
    let filler = "x".repeat(FILLER);
    for number in 0..QUOTA / 2 / u64::try_from(FILLER)? {
        world.control_plane.etcdctl(&["put", &format!("/filler-{number}"), &filler]).await?;
    }
    world.control_plane.etcdctl(&["del", "--prefix", "/filler-"]).await?;
    world.control_plane.etcdctl(&["defrag"]).await.map(drop)
}

/// Writes until there is no room left.
async fn fill(world: &World) -> Result<()> {
    let filler = "x".repeat(FILLER);
    for _ in 0..10 * QUOTA / u64::try_from(FILLER)? {
        if let Err(error) = world.control_plane.etcdctl(&["put", "/filler", &filler]).await {
            ensure!(format!("{error:#}").contains("database space exceeded"), "{error:#}");
            return Ok(());
        }
    }
    bail!("there is room for ever");
}

/// What an operator does.
async fn make_room(world: &World) -> Result<()> {
    let etcd = &world.control_plane;
    let found: Value = serde_json::from_str(&etcd.etcdctl(&["get", "--write-out=json", "/filler"]).await?)?;
    let revision = found["header"]["revision"].as_u64().context("no revision")?;
    etcd.etcdctl(&["compact", &revision.to_string()]).await?;
    etcd.etcdctl(&["defrag"]).await?;
    etcd.etcdctl(&["alarm", "disarm"]).await.map(drop)
}

/// While nothing can be written, hosts stay alive, and what a dead one had cannot be given away.
async fn run_full(world: &mut World, scene: &Scene) -> Result<()> {
    fill(world).await?;
    cut_power(world, "host-1")?;
    wait_until("the lease of the dead host is gone", BACK, async || {
        let live = world.control_plane.pool_keys("/kubexen/hosts/host-1/live/").await?;
        ensure!(live.is_empty(), "{live:?}");
        Ok(())
    })
    .await?;
    sleep(Timing::FAST.grace + Duration::from_secs(3)).await;
    nobody_is_fenced(world).await?;
    for host in ["host-2", "host-3"] {
        let live = world.control_plane.pool_keys(&format!("/kubexen/hosts/{host}/live/")).await?;
        ensure!(live.len() == 1, "{host} is not live");
        let runs = runs(world, scene, host).await?;
        ensure!(runs.last().is_some_and(|run| run.to.is_none()), "{host} ran {runs:?}");
    }
    let given = runs(world, scene, "host-1").await?;
    ensure!(given.iter().all(|run| run.host == "host-1" && run.to.is_some()), "it was given away: {given:?}");
    make_room(world).await?;
    until_back(scene, "host-1", "host-1").await?;
    nothing_ran_twice(&world.pool).map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_fenced_for_a_lost_member_or_quorum_or_a_full_disk_and_all_goes_on_afterwards() -> Result<()>
{
    let (mut world, scene) = bed().await?;
    world.control_plane.crash(Part::PoolEtcdMember(0))?;
    long_enough_to_be_fenced().await;
    nobody_noticed(&world, &scene).await.context("a lost member")?;
    world.control_plane.restart(Part::PoolEtcdMember(0)).await?;
    defragment(&world).await?;
    long_enough_to_be_fenced().await;
    nobody_noticed(&world, &scene).await.context("a defragmentation")?;
    lose_quorum(&mut world, &scene, 10).await.context("10 s without a quorum")?;
    nobody_moved(&world, &scene).await.context("10 s without a quorum")?;
    run_full(&mut world, &scene).await.context("a full disk")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes two minutes: the quorum is away for longer than any lease"]
async fn guests_come_back_after_a_minute_without_a_quorum_and_nothing_runs_twice() -> Result<()> {
    let (mut world, scene) = bed().await?;
    // A member that led and stood still ends all leases when it goes on, so that a host may be fenced that is late to join anew.
    lose_quorum(&mut world, &scene, 20).await?;
    lose_quorum(&mut world, &scene, 60).await
}
