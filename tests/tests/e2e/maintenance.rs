//! Hosts that are emptied for work on them.

use crate::{
    fixpoint,
    scene::{PATIENCE, Scene, boot_that_ends, host, ready_is},
    world::World,
};
use anyhow::{Context, Result, bail, ensure};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use kubexen_crds::{
    Domain, EvacuationAction, Host, HostStatus, MigrationPhase, VirtualMachine, VirtualMachineMigration,
    condition::{find, is_true},
};
use kubexen_testbed::pool::runs::nothing_ran_twice;
use kubexen_testbed::{
    pool::{PoolOptions, SimulatedHostOptions},
    process::wait_until,
};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};

/// The how-to's loop.
const ROLLING_REBOOT: &str = include_str!("../../../docs/how-to/rolling-reboot.md");

/// A pool of simulated hosts, each with an agent process of its own.
fn pool(hosts: usize, simulated: SimulatedHostOptions) -> PoolOptions {
    PoolOptions { hosts, hosts_per_process: 1, simulated, ..PoolOptions::default() }
}

impl Scene {
    pub async fn change_host(&self, name: &str, spec: Value) -> Result<()> {
        let hosts: Api<Host> = Api::all(self.client.clone());
        hosts.patch(name, &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await?;
        Ok(())
    }

    async fn maintain(&self, name: &str, enabled: bool) -> Result<()> {
        self.change_host(name, json!({"maintenance": {"enabled": enabled}})).await
    }

    /// Makes machines on one host, and waits until they run.
    async fn create_on(&self, home: &str, all: &[String], machines: &[(&str, Value)]) -> Result<()> {
        self.let_in(all, |name| name == home).await?;
        for (name, spec) in machines {
            self.create_machine(name, spec.clone()).await?;
        }
        for (name, _) in machines {
            let placed = self
                .until(name, "is there", |machine| {
                    ready_is(machine, "True", "Running")
                        || ready_is(machine, "True", "Paused")
                        || ready_is(machine, "True", "StoppedByGuest")
                })
                .await?;
            ensure!(host(&placed)? == home);
        }
        self.let_in(all, |_| true).await
    }

    pub async fn let_in(&self, all: &[String], lets: impl Fn(&str) -> bool) -> Result<()> {
        for name in all {
            self.change_host(name, json!({"schedulable": lets(name)})).await?;
        }
        Ok(())
    }

    pub async fn until_host(
        &self,
        name: &str,
        what: &str,
        accept: impl Fn(&HostStatus) -> bool,
    ) -> Result<HostStatus> {
        let hosts: Api<Host> = Api::all(self.client.clone());
        wait_until(&format!("{name}: {what}"), PATIENCE, async || {
            let host = hosts.get(name).await?;
            let status = host.status.unwrap_or_default();
            let current = status.observed_generation == host.metadata.generation;
            ensure!(current && accept(&status), "it says {}", serde_json::to_string(&status.conditions)?);
            Ok(status)
        })
        .await
    }

    async fn migrations(&self) -> Result<Vec<VirtualMachineMigration>> {
        Ok(self.api::<VirtualMachineMigration>().list(&ListParams::default()).await?.items)
    }

    async fn domains_on(&self, host: &str) -> Result<usize> {
        let domains: Api<Domain> = Api::namespaced(self.client.clone(), &format!("kubexen-host-{host}"));
        Ok(domains.list(&ListParams::default()).await?.items.len())
    }
}

/// Waits as automation does.
async fn kubectl_wait(world: &World, host: &str) -> Result<()> {
    let output = world
        .control_plane
        .kubectl()?
        .args(["wait", "--for=condition=Evacuated", "--timeout=60s"])
        .arg(format!("xhost/{host}"))
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl wait: {said}");
    Ok(())
}

fn says(status: &HostStatus, state: &str, reason: &str) -> bool {
    find(&status.conditions, "Evacuated")
        .is_some_and(|condition| condition.status == state && condition.reason == reason)
}

/// Name, action and destination of each guest in the plan.
fn plan(status: &HostStatus) -> Vec<(String, EvacuationAction, bool)> {
    let machines = status.evacuation.clone().unwrap_or_default().machines;
    machines.into_iter().map(|step| (step.name, step.action, step.destination.is_some())).collect()
}

#[tokio::test]
async fn a_host_in_maintenance_becomes_empty_within_twelve_writes_a_move_and_takes_nobody() -> Result<()> {
    let simulated = SimulatedHostOptions { migration_bytes_per_second: 64 << 20, ..Default::default() };
    let world = World::start(pool(4, simulated)).await?;
    let scene = Scene::new(&world, "empties").await?;
    let all = world.pool.host_names();
    let home = all[0].as_str();
    let apart = |group: &str| json!({"placement": {"antiAffinity": {"group": group, "mode": "Required"}}});
    let names: Vec<String> = (0..9).map(|number| format!("vm-{number}")).collect();
    let machines: Vec<(&str, Value)> =
        names.iter().map(|name| (name.as_str(), json!({"memory": {"size": "128Mi"}}))).collect();
    scene.create_on(home, all, &machines).await?;
    for name in &all[1..] {
        // Each of the other hosts has a guest that one of those that come keeps away from.
        scene.let_in(all, |one| one == name).await?;
        scene.create_machine(&format!("lone-{name}"), apart("lone")).await?;
        scene.until_ready_is(&format!("lone-{name}"), "True", "Running").await?;
    }
    scene.let_in(all, |one| one == home).await?;
    scene.create_machine("tight", apart("lone")).await?;
    scene.until_ready_is("tight", "True", "Running").await?;
    scene.let_in(all, |_| true).await?;
    fixpoint::is_kept(&world).await?;

    let mark = world.control_plane.audit_mark()?;
    scene.maintain(home, true).await?;
    let begun = scene.until_host(home, "has a plan", |status| status.evacuation.is_some()).await?;
    let of_plan = plan(&begun);
    ensure!(of_plan.first() == Some(&("tight".to_owned(), EvacuationAction::Wait, false)), "{of_plan:?}");
    ensure!(of_plan[1..].iter().all(|(_, action, goes)| *action == EvacuationAction::Migrate && *goes));
    scene.until_host(home, "is blocked", |status| says(status, "False", "Blocked")).await?;
    ensure!(scene.domains_on(home).await? == 1);
    fixpoint::is_kept(&world).await?;
    let writes = fixpoint::ours_since(&world, mark)?.filter(|kind| kind.resource != "events");
    ensure!(writes.total() <= 12 * 9, "{} writes for 9 moves:\n{writes}", writes.total());
    scene.delete::<VirtualMachine>(&format!("lone-{}", all[2])).await?;
    kubectl_wait(&world, home).await?;
    ensure!(scene.domains_on(home).await? == 0, "it is said to be evacuated");
    for name in &names {
        let moved = scene.until_ready_is(name, "True", "Running").await?;
        ensure!(host(&moved)? != home);
    }
    for name in &all[1..] {
        let there = scene.domains_on(name).await?;
        ensure!((3..=5).contains(&there), "{there} guests are on {name}: they are not spread");
    }
    nothing_ran_twice(&world.pool)?;

    let migration = json!({"metadata": {"name": "back"}, "spec": {"virtualMachine": "vm-0", "host": home}});
    scene
        .api()
        .create(&PostParams::default(), &serde_json::from_value::<VirtualMachineMigration>(migration)?)
        .await?;
    wait_until("a move to it is refused", PATIENCE, async || {
        let status = scene.api::<VirtualMachineMigration>().get("back").await?.status.unwrap_or_default();
        ensure!(status.phase == Some(MigrationPhase::Failed));
        let message =
            find(&status.conditions, "Succeeded").map(|one| one.message.clone()).unwrap_or_default();
        ensure!(message.contains("1 in maintenance"), "{message}");
        Ok(())
    })
    .await?;
    fixpoint::is_kept(&world).await?;
    ensure!(scene.domains_on(home).await? == 0);

    scene.maintain(home, false).await?;
    scene
        .until_host(home, "is in service", |status| {
            status.evacuation.is_none() && find(&status.conditions, "Evacuated").is_none()
        })
        .await?;
    wait_until("the records are gone", PATIENCE, async || {
        let left: Vec<String> = scene.migrations().await?.iter().map(ResourceExt::name_any).collect();
        ensure!(left == ["back"], "there are {left:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_cannot_move_waits_restarts_elsewhere_or_stays_as_its_policy_says() -> Result<()> {
    let world = World::start(pool(2, SimulatedHostOptions::default())).await?;
    let scene = Scene::new(&world, "policies").await?;
    let all = world.pool.host_names();
    let home = all[0].as_str();
    scene.create_disk("waits", "16Mi").await?;
    scene.create_disk("stays", "16Mi").await?;
    let with_disk = |disk: &str, policy: &str| {
        json!({
            "disks": [{"name": "root", "disk": disk}],
            "lifecycle": {"onMaintenance": policy, "shutdownTimeout": "0s"},
        })
    };
    let lifecycle = json!({"onMaintenance": "Restart", "shutdownTimeout": "0s"});
    let machines = [
        ("waits", with_disk("waits", "Wait")),
        ("stays", with_disk("stays", "Leave")),
        ("restarts", json!({"powerState": "Paused", "lifecycle": lifecycle})),
        ("moves", json!({"lifecycle": lifecycle})),
        ("off", json!({"boot": boot_that_ends("poweroff", 0)})),
    ];
    scene.create_on(home, all, &machines).await?;
    scene.until_ready_is("off", "True", "StoppedByGuest").await?;
    scene.maintain(home, true).await?;
    let blocked = scene
        .until_host(home, "is blocked by one", |status| {
            says(status, "False", "Blocked") && plan(status).len() == 3
        })
        .await?;
    let expected = [
        ("waits".to_owned(), EvacuationAction::Wait, false),
        ("off".to_owned(), EvacuationAction::Leave, false),
        ("stays".to_owned(), EvacuationAction::Leave, false),
    ];
    ensure!(plan(&blocked) == expected, "{:?}", plan(&blocked));
    let message = find(&blocked.conditions, "Evacuated").map(|one| one.message.clone()).unwrap_or_default();
    ensure!(
        message.contains("policies/waits") && message.contains("disk waits is on another host"),
        "{message}"
    );
    let restarted = scene.until_ready_is("restarts", "True", "Paused").await?;
    ensure!(host(&restarted)? == all[1]);
    let moved = scene.until_ready_is("moves", "True", "Running").await?;
    ensure!(host(&moved)? == all[1]);
    ensure!(scene.migrations().await?.len() == 1, "the one that can move was not restarted");
    fixpoint::is_kept(&world).await?;

    scene.change("waits", json!({"spec": {"lifecycle": {"onMaintenance": "Leave"}}})).await?;
    kubectl_wait(&world, home).await?;
    scene.until_host(home, "leaves three", |status| says(status, "True", "GuestsLeft")).await?;
    for name in ["waits", "stays"] {
        ensure!(host(&scene.until_ready_is(name, "True", "Running").await?)? == home);
    }
    // A guest that is off does not start on a host that may be switched off at any moment.
    scene.change("off", json!({"spec": {"boot": {"kernel": {"commandLine": "console=hvc0"}}}})).await?;
    scene.restart("off").await?;
    let started = scene.until_ready_is("off", "True", "Running").await?;
    ensure!(host(&started)? == all[1]);
    Ok(())
}

#[tokio::test]
async fn a_maintenance_that_is_undone_calls_off_what_has_not_begun_and_lets_the_rest_finish() -> Result<()> {
    let simulated = SimulatedHostOptions { migration_bytes_per_second: 64 << 20, ..Default::default() };
    let world = World::start(pool(3, simulated)).await?;
    let scene = Scene::new(&world, "undone").await?;
    let all = world.pool.host_names();
    let home = all[0].as_str();
    let names: Vec<String> = (0..6).map(|number| format!("vm-{number}")).collect();
    // Each move takes 8 s.
    let machines: Vec<(&str, Value)> =
        names.iter().map(|name| (name.as_str(), json!({"memory": {"size": "512Mi"}}))).collect();
    scene.create_on(home, all, &machines).await?;
    scene.maintain(home, true).await?;
    let copying = |migrations: &[VirtualMachineMigration]| {
        let phases = migrations.iter().filter_map(|one| one.status.as_ref()?.phase);
        phases.filter(|phase| *phase == MigrationPhase::Copying).count()
    };
    wait_until("two moves copy", PATIENCE, async || {
        let migrations = scene.migrations().await?;
        ensure!(copying(&migrations) == 2, "{} do", copying(&migrations));
        Ok(())
    })
    .await?;
    scene.maintain(home, false).await?;
    wait_until("every record is gone", PATIENCE, async || {
        let left = scene.migrations().await?.len();
        ensure!(left == 0, "{left} are left");
        Ok(())
    })
    .await?;
    let status = scene.until_host(home, "has no plan", |status| status.evacuation.is_none()).await?;
    ensure!(find(&status.conditions, "Evacuated").is_none());
    ensure!(scene.domains_on(home).await? == 4, "two have moved, and no more");
    for name in &names {
        scene.until_ready_is(name, "True", "Running").await?;
    }
    nothing_ran_twice(&world.pool)?;
    fixpoint::is_kept(&world).await
}

/// The hosts that the loop asked to reboot since the last look.
fn asked(world: &World, requests: &Path) -> Vec<usize> {
    let asked = |name: &String| std::fs::remove_file(requests.join(name)).is_ok();
    let hosts = world.pool.host_names().iter().enumerate();
    hosts.filter(|(_, name)| asked(name)).map(|(number, _)| number).collect()
}

#[tokio::test]
async fn the_loop_of_the_how_to_reboots_a_whole_pool_with_one_hosts_worth_of_reserve() -> Result<()> {
    // Each host has 1 GiB for guests: two have room for the six guests of the pool, and not for another one.
    let simulated = SimulatedHostOptions { memory: "3Gi".to_owned(), ..Default::default() };
    let mut world = World::start(pool(3, simulated)).await?;
    let scene = Scene::new(&world, "rolling").await?;
    let names: Vec<String> = (0..6).map(|number| format!("vm-{number}")).collect();
    for name in &names {
        scene.create_machine(name, json!({"memory": {"size": "320Mi"}})).await?;
    }
    for name in &names {
        scene.until_ready_is(name, "True", "Running").await?;
    }
    let hosts: Api<Host> = Api::all(scene.client.clone());
    let boots = async || -> Result<Vec<Option<String>>> {
        let all = hosts.list(&ListParams::default()).await?.items;
        Ok(all.into_iter().map(|host| host.status.unwrap_or_default().boot_id).collect())
    };
    let before = boots().await?;

    let folder = world.pool.folder().join("rolling");
    let requests = folder.join("requests");
    std::fs::create_dir_all(&requests)?;
    let script = ROLLING_REBOOT.split("```bash\n").nth(1).and_then(|rest| rest.split("```").next());
    std::fs::write(folder.join("loop"), script.context("the how-to has no loop")?)?;
    // What stands for ssh asks the test to reboot the host.
    let ssh = folder.join("ssh");
    std::fs::write(&ssh, format!("#!/bin/sh\n: > {}/\"${{1#root@}}\"\n", requests.display()))?;
    std::fs::set_permissions(&ssh, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let kubectl = world.control_plane.kubectl()?;
    let tools = Path::new(kubectl.as_std().get_program()).parent().context("kubectl is nowhere")?.to_owned();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut rolling = tokio::process::Command::new("bash");
    rolling
        .arg(folder.join("loop"))
        .env("KUBECONFIG", world.control_plane.kubeconfig())
        .env("PATH", format!("{}:{}:{path}", folder.display(), tools.display()))
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true);
    let mut rolling = rolling.spawn()?;
    let limit = tokio::time::Instant::now() + Duration::from_secs(240);
    let status = loop {
        for number in asked(&world, &requests) {
            ensure!(scene.domains_on(&world.pool.host_names()[number]).await? == 0, "it is not empty");
            world.reboot(number)?;
        }
        match tokio::time::timeout(Duration::from_millis(200), rolling.wait()).await {
            Ok(status) => break status?,
            Err(_) if tokio::time::Instant::now() > limit => bail!("the loop does not end"),
            Err(_) => {}
        }
    };
    ensure!(status.success(), "the loop failed: {status}");
    let after = boots().await?;
    ensure!(before.iter().zip(&after).all(|(before, after)| before != after), "{before:?} {after:?}");
    for name in &names {
        scene.until_ready_is(name, "True", "Running").await?;
    }
    for host in hosts.list(&ListParams::default()).await?.items {
        let status = host.status.unwrap_or_default();
        ensure!(is_true(&status.conditions, "Ready") && status.evacuation.is_none());
    }
    let runs = nothing_ran_twice(&world.pool)?;
    // Every guest has been on more than one host.
    for name in &names {
        let uid = scene.api::<VirtualMachine>().get(name).await?.uid().context("no uid")?;
        let of_guest = runs.get(&uuid::Uuid::parse_str(&uid)?).map_or(0, Vec::len);
        ensure!(of_guest >= 2, "{name} never moved");
    }
    Ok(())
}
