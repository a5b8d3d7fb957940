//! Moves of running guests between hosts.

use crate::{
    scene::{PATIENCE, Scene, host},
    world::World,
};
use anyhow::{Context, Result, ensure};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use kubexen_crds::{Domain, Host, MigrationPhase, VirtualMachine, VirtualMachineMigration, condition::find};
use kubexen_testbed::pool::runs::{nothing_ran_twice, runs_of};
use kubexen_testbed::{pool::PoolOptions, process::wait_until};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddrV4};

impl Scene {
    pub async fn migrate(&self, name: &str, spec: Value) -> Result<VirtualMachineMigration> {
        let migration = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}))?;
        Ok(self.api().create(&PostParams::default(), &migration).await?)
    }

    pub async fn until_over(&self, name: &str, phase: MigrationPhase) -> Result<VirtualMachineMigration> {
        let migrations: Api<VirtualMachineMigration> = self.api();
        wait_until(&format!("{name} is {phase:?}"), PATIENCE, async || {
            let migration = migrations.get(name).await?;
            let status = serde_json::to_string(&migration.status)?;
            ensure!(
                migration.status.as_ref().and_then(|status| status.phase) == Some(phase),
                "it is {status}"
            );
            Ok(migration)
        })
        .await
    }

    async fn domains(&self) -> Result<Vec<Domain>> {
        let domains: Api<Domain> = Api::all(self.client.clone());
        let of_scene = |domain: &Domain| domain.spec.virtual_machine.namespace == self.name;
        Ok(domains.list(&Default::default()).await?.items.into_iter().filter(of_scene).collect())
    }

    pub async fn until_one_domain(&self) -> Result<Domain> {
        wait_until("one Domain is left", PATIENCE, async || {
            let mut domains = self.domains().await?;
            ensure!(domains.len() == 1, "there are {}", domains.len());
            domains.pop().context("there is one")
        })
        .await
    }
}

fn reason(migration: &VirtualMachineMigration) -> String {
    let conditions = migration.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    find(conditions, "Succeeded").map(|condition| condition.reason.clone()).unwrap_or_default()
}

#[tokio::test]
async fn a_running_guest_moves_and_its_record_stays() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "moves").await?;
    let interface = json!({"interfaces": [{"name": "eth0", "network": "moves"}]});
    let uid = scene.create_machine("web", interface).await?.uid().context("no uid")?;
    let before = scene.until_ready_is("web", "True", "Running").await?;
    let source = host(&before)?.to_owned();
    scene.migrate("first", json!({"virtualMachine": "web", "reason": "to see it move"})).await?;
    let first = scene.until_over("first", MigrationPhase::Succeeded).await?.status.context("no status")?;
    ensure!(first.source.as_deref() == Some(&source) && first.virtual_machine_uid == Some(uid.clone()));
    let transfer = first.transfer.as_ref().context("nothing is told of the transfer")?;
    ensure!(transfer.rounds == Some(2) && transfer.dirty_pages_per_second > Some(0), "{transfer:?}");
    ensure!(first.downtime_milliseconds.is_some(), "{first:?}");
    let destination = first.destination.context("no destination")?;
    let after = scene
        .until("web", "runs at the destination", |machine| {
            host(machine).is_ok_and(|host| host == destination)
                && crate::scene::ready_is(machine, "True", "Running")
        })
        .await?;
    let token = |machine: &VirtualMachine| machine.status.as_ref().and_then(|status| status.owner_token);
    ensure!(token(&after) > token(&before), "the token did not grow");
    scene.until_one_domain().await?;
    // The same guest went on: it was built once, and ran on both hosts, one after the other.
    let runs = runs_of(&world.pool, &uid)?;
    ensure!(runs.len() == 2 && runs[0].host == source && runs[1].host == destination, "{runs:?}");
    nothing_ran_twice(&world.pool)?;

    scene.migrate("back", json!({"virtualMachine": "web", "host": source})).await?;
    scene.until_over("back", MigrationPhase::Succeeded).await?;
    scene.until_one_domain().await?;
    scene.delete::<VirtualMachine>("web").await?;
    let keys = world.control_plane.pool_keys("/kubexen/owners/").await?;
    ensure!(!keys.iter().any(|key| key.contains(&uid)), "an owner key is left");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_moved_is_refused_with_its_reason_and_runs_on() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "refusals").await?;
    scene.create_disk("local", "16Mi").await?;
    scene.create_machine("tied", json!({"disks": [{"name": "root", "disk": "local"}]})).await?;
    scene.create_machine("off", json!({"powerState": "Halted"})).await?;
    scene.create_machine("still", json!({"powerState": "Paused"})).await?;
    let tied = scene.until_ready_is("tied", "True", "Running").await?;
    scene.until_ready_is("off", "True", "Halted").await?;
    scene.until_ready_is("still", "True", "Paused").await?;
    let home = host(&tied)?.to_owned();
    for (name, spec, expected) in [
        ("none", json!({"virtualMachine": "nobody"}), "MachineNotFound"),
        ("off", json!({"virtualMachine": "off"}), "NotRunning"),
        ("still", json!({"virtualMachine": "still"}), "NotRunning"),
        ("here", json!({"virtualMachine": "tied", "host": home}), "AlreadyThere"),
        ("nowhere", json!({"virtualMachine": "tied", "host": "nowhere"}), "HostNotFound"),
        ("tied", json!({"virtualMachine": "tied"}), "NoHostFits"),
    ] {
        scene.migrate(name, spec).await?;
        let refused = scene.until_over(name, MigrationPhase::Failed).await?;
        ensure!(reason(&refused) == expected, "{name}: {}", serde_json::to_string(&refused.status)?);
    }
    let unmoved = scene.until_ready_is("tied", "True", "Running").await?;
    ensure!(host(&unmoved)? == home && scene.domains().await?.len() == 2);
    Ok(())
}

#[tokio::test]
async fn a_move_that_is_called_off_leaves_the_guest_where_it_was() -> Result<()> {
    let mut options = PoolOptions::default();
    // A guest of 4 GiB takes a minute, time enough to call its move off.
    options.simulated.migration_bytes_per_second = 64 << 20;
    let world = World::start(options).await?;
    let scene = Scene::new(&world, "calls").await?;
    let uid =
        scene.create_machine("big", json!({"memory": {"size": "4Gi"}})).await?.uid().context("no uid")?;
    let source = host(&scene.until_ready_is("big", "True", "Running").await?)?.to_owned();
    let migrations: Api<VirtualMachineMigration> = scene.api();
    for (name, deleted) in [("cancelled", false), ("deleted", true)] {
        scene.migrate(name, json!({"virtualMachine": "big"})).await?;
        scene.until_over(name, MigrationPhase::Copying).await?;
        if deleted {
            migrations.delete(name, &DeleteParams::default()).await?;
        } else {
            let cancel = Patch::Merge(json!({"spec": {"cancel": true}}));
            migrations.patch(name, &PatchParams::default(), &cancel).await?;
            let cancelled = scene.until_over(name, MigrationPhase::Cancelled).await?;
            ensure!(reason(&cancelled) == "Cancelled");
        }
        scene.until_one_domain().await?;
        let left = scene.until_ready_is("big", "True", "Running").await?;
        ensure!(host(&left)? == source);
    }
    let runs = runs_of(&world.pool, &uid)?;
    ensure!(runs.len() == 1 && runs[0].to.is_none(), "the guest did not run on: {runs:?}");
    Ok(())
}

/// Connections that somebody on this machine has made to this address.
fn connections_to(address: SocketAddrV4) -> Result<usize> {
    // proc(5): the address as the bytes in memory, in this machine's order, then the port.
    let number = u32::from_ne_bytes(address.ip().octets());
    let remote = format!("{number:08X}:{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    Ok(table.lines().filter(|line| line.split_whitespace().nth(2) == Some(&*remote)).count())
}

#[tokio::test]
async fn guests_move_over_the_network_that_the_pool_names_or_not_at_all() -> Result<()> {
    let mut options = PoolOptions { hosts: 2, ..PoolOptions::default() };
    options.simulated.migration_bytes_per_second = 16 << 20;
    let world = World::start(options).await?;
    let scene = Scene::new(&world, "networks").await?;
    let pools: Api<kubexen_crds::Pool> = Api::all(scene.client.clone());
    let policy = json!({"metadata": {"name": "default"}, "spec": {"migration": {"network": "nowhere"}}});
    pools.create(&PostParams::default(), &serde_json::from_value(policy)?).await?;
    scene.create_machine("web", json!({"memory": {"size": "128Mi"}})).await?;
    let source = host(&scene.until_ready_is("web", "True", "Running").await?)?.to_owned();
    scene.migrate("nowhere", json!({"virtualMachine": "web"})).await?;
    let refused = scene.until_over("nowhere", MigrationPhase::Failed).await?;
    let refusal = serde_json::to_string(&refused.status)?;
    let named = format!("host {source} has no address on the migration network nowhere");
    ensure!(reason(&refused) == "NotOnMigrationNetwork" && refusal.contains(&named), "{refusal}");

    let policy = Patch::Merge(json!({"spec": {"migration": {"network": "fast"}}}));
    pools.patch("default", &PatchParams::default(), &policy).await?;
    let hosts: Api<Host> = Api::all(scene.client.clone());
    let all = hosts.list(&Default::default()).await?.items;
    let other = all.iter().find(|host| host.name_any() != source).context("there is one host")?;
    let migration = other.status.as_ref().and_then(|status| status.migration.as_ref());
    let fast = migration.context("it takes part in none")?.networks.first().context("no network")?;
    let address: SocketAddrV4 = fast.address.parse()?;
    ensure!(fast.name == "fast" && *address.ip() == Ipv4Addr::new(127, 0, 0, 2), "{fast:?}");
    wait_until("the network is the Pool's", PATIENCE, async || {
        let pool = pools.get_status("default").await?;
        let observed = pool.status.and_then(|status| status.observed_generation);
        ensure!(observed == pool.metadata.generation, "only {observed:?} was seen");
        Ok(())
    })
    .await?;
    scene.migrate("fast", json!({"virtualMachine": "web", "host": other.name_any()})).await?;
    wait_until("the guest goes over that network", PATIENCE, async || {
        ensure!(connections_to(address)? > 0, "nobody is connected to {address}");
        Ok(())
    })
    .await?;
    scene.until_over("fast", MigrationPhase::Succeeded).await?;
    nothing_ran_twice(&world.pool).map(drop)
}

#[tokio::test]
async fn moves_keep_to_the_limits_of_the_pool_and_cost_at_most_twelve_writes() -> Result<()> {
    let mut options = PoolOptions::default();
    options.simulated.migration_bytes_per_second = 64 << 20;
    let world = World::start(options).await?;
    let scene = Scene::new(&world, "limits").await?;
    let names: Vec<String> = (0..6).map(|number| format!("vm-{number}")).collect();
    for name in &names {
        scene.create_machine(name, json!({"memory": {"size": "128Mi"}})).await?;
    }
    for name in &names {
        scene.until_ready_is(name, "True", "Running").await?;
    }
    let pools: Api<kubexen_crds::Pool> = Api::all(scene.client.clone());
    let policy = json!({"metadata": {"name": "default"}, "spec": {"migration": {"maxPerPool": 2}}});
    pools.create(&PostParams::default(), &serde_json::from_value(policy)?).await?;
    let mark = world.control_plane.audit_mark()?;
    for name in &names {
        scene.migrate(name, json!({"virtualMachine": name})).await?;
    }
    let migrations: Api<VirtualMachineMigration> = scene.api();
    let mut most = 0;
    wait_until("every machine has moved", PATIENCE, async || {
        let all = migrations.list(&Default::default()).await?.items;
        let phases: Vec<_> = all.iter().filter_map(|migration| migration.status.as_ref()?.phase).collect();
        let going =
            |phase: &&MigrationPhase| matches!(phase, MigrationPhase::Preparing | MigrationPhase::Copying);
        most = most.max(phases.iter().filter(going).count());
        ensure!(most <= 2, "{most} moves at a time");
        ensure!(
            phases.iter().filter(|phase| **phase == MigrationPhase::Succeeded).count() == 6,
            "{phases:?}"
        );
        Ok(())
    })
    .await?;
    nothing_ran_twice(&world.pool)?;
    let domains = || async { Ok::<_, anyhow::Error>(scene.domains().await?.len()) };
    wait_until("the Domains at the sources are gone", PATIENCE, async || {
        let left = domains().await?;
        ensure!(left == names.len(), "there are {left}");
        Ok(())
    })
    .await?;
    crate::fixpoint::is_kept(&world).await?;
    let writes = crate::fixpoint::ours_since(&world, mark)?.filter(|kind| kind.resource != "events");
    ensure!(writes.total() <= 12 * names.len() as u64, "{} writes for 6 moves:\n{writes}", writes.total());
    Ok(())
}
