//! `bench storm`: many machines at once on simulated hosts.
//!
//! The API server, its etcd, the controller, all agents and the client that measures share this machine. The bare client
//! runs on the same API server, half of it before the storm and half of it after, so that a machine that is busy with
//! other things slows both.

use super::{
    bare::Bare,
    report::{Latencies, StormReport, WritesByClient, rounded},
    watcher::all_ready,
    workload::{create_namespace, for_each, machine, name},
};
use crate::{
    control_plane::{ControlPlane, Mark, Options, Writes},
    pool::{Pool, PoolOptions, Profile, SimulatedHostOptions, install_chart},
    process::{Process, wait_until},
    progress::Step,
};
use anyhow::{Context, Result, ensure};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use kubexen_crds::{Domain, VirtualMachine};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Namespace of the storm's machines.
const NAMESPACE: &str = "storm";
/// Silence after which the storm's last write is made.
const CALM: Duration = Duration::from_secs(5);
/// Longest time until then: events, and what hosts say of themselves.
const CALM_WITHIN: Duration = Duration::from_secs(120);
/// How long writes are counted at the fixpoint.
const MINUTE: Duration = Duration::from_secs(60);

/// A storm.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    /// Number of machines.
    pub machines: usize,
    /// Number of hosts, each with an agent process of its own.
    pub hosts: usize,
}

/// Measures a storm.
///
/// # Errors
/// When something does not start, or a machine does not become Ready in time.
pub async fn run(storm: Storm) -> Result<StormReport> {
    let Storm { machines, hosts } = storm;
    ensure!(machines >= 2, "a storm needs two machines");
    let step = Step::begin("Starting the control plane");
    let control_plane = ControlPlane::start(&Options::default()).await?;
    install_chart(&control_plane).await?;
    let client = control_plane.client().await?;
    kinds_are_served(&client).await?;
    step.done();

    let (first, second) = (0..machines / 2, machines / 2..machines);
    let step = Step::begin(format!("The same writes for {} machines without KubeXen", first.len()));
    let bare = Bare::prepare(client.clone(), "bare", hosts).await?;
    let before = bare.run(first.clone()).await?;
    tell_rate(first.len(), before);
    bare.clear(first).await?;
    step.done();

    let step = Step::begin(format!("Starting the controller and {hosts} agents"));
    let pool = Pool::start(&control_plane, pool(storm)).await?;
    create_namespace(&client, NAMESPACE).await?;
    calm(&control_plane).await?;
    step.done();

    let step = Step::begin(format!("Creating {machines} machines at once"));
    let mark = control_plane.audit_mark()?;
    let (elapsed, latencies) = measure(&client, machines).await?;
    tell_rate(machines, elapsed);
    step.done();
    let step = Step::begin("Waiting for calm, then a minute at the fixpoint");
    calm(&control_plane).await?;
    let writes = control_plane.writes_since(mark)?;
    let mark = control_plane.audit_mark()?;
    sleep(MINUTE).await;
    let at_fixpoint = ours(control_plane.writes_since(mark)?).total();
    step.done();
    let controller_peak_mb = pool.controller(0).context("the controller is gone").and_then(peak_mb)?;
    let agents = (0..pool.agent_count()).filter_map(|number| pool.agent(number));
    let agent_peak_mb = agents.map(peak_mb).collect::<Result<Vec<_>>>()?.into_iter().fold(0.0, f64::max);
    drop(pool);

    let step = Step::begin(format!("The same writes for {} machines without KubeXen", second.len()));
    let after = bare.run(second.clone()).await?;
    tell_rate(second.len(), after);
    step.done();

    let vms = machines as f64;
    let vms_per_second = vms / elapsed.as_secs_f64();
    let bare_vms_per_second = vms / (before + after).as_secs_f64();
    let written = ours(writes.clone());
    let events: u64 =
        written.by_kind.iter().filter(|(kind, _)| kind.resource == "events").map(|(_, n)| n).sum();
    Ok(StormReport {
        create_to_ready_seconds: Latencies::of(latencies),
        vms_per_second: rounded(vms_per_second),
        bare_vms_per_second: rounded(bare_vms_per_second),
        ratio: rounded(vms_per_second / bare_vms_per_second),
        api_writes_per_vm: rounded((written.total() - events) as f64 / vms),
        events_per_vm: rounded(events as f64 / vms),
        writes_by_client: WritesByClient::of(&writes),
        fixpoint_writes_per_minute: at_fixpoint,
        controller_peak_mb: rounded(controller_peak_mb),
        agent_peak_mb: rounded(agent_peak_mb),
    })
}

/// Says how fast a part went: halves of the bare client that differ much mean that the machine was busy with other things.
fn tell_rate(machines: usize, elapsed: Duration) {
    eprintln!("{:.1} machines a second", machines as f64 / elapsed.as_secs_f64());
}

fn pool(storm: Storm) -> PoolOptions {
    let Storm { machines, hosts } = storm;
    // Room for a spread that is far from even.
    let per_host = u32::try_from(machines.div_ceil(hosts)).unwrap_or(u32::MAX);
    let simulated = SimulatedHostOptions {
        cpus: per_host.max(32),
        memory: format!("{}Gi", per_host.max(64)),
        ..SimulatedHostOptions::default()
    };
    // The same build as this program.
    let profile = if cfg!(debug_assertions) { Profile::Debug } else { Profile::Release };
    PoolOptions { hosts, hosts_per_process: 1, controllers: 1, simulated, profile }
}

async fn kinds_are_served(client: &Client) -> Result<()> {
    wait_until("the API server serves our kinds", Duration::from_secs(30), async || {
        let one = ListParams::default().limit(1);
        Api::<VirtualMachine>::all(client.clone()).list(&one).await?;
        Api::<Domain>::all(client.clone()).list(&one).await?;
        Ok(())
    })
    .await
}

/// Creates the machines and waits until all are Ready: the whole time, and each machine's own from its create on.
async fn measure(client: &Client, count: usize) -> Result<(Duration, Vec<Duration>)> {
    let machines = Api::<VirtualMachine>::namespaced(client.clone(), NAMESPACE);
    let limit = Duration::from_secs(120) + Duration::from_millis(200) * u32::try_from(count)?;
    let (sent, began) = (Mutex::new(BTreeMap::new()), Instant::now());
    let create = for_each(0..count, async |number| {
        sent.lock().unwrap_or_else(PoisonError::into_inner).insert(name(number), Instant::now());
        machines.create(&PostParams::default(), &machine(number)?).await?;
        Ok(())
    });
    let ((), ready) = tokio::try_join!(create, all_ready(machines.clone(), count, limit))?;
    let elapsed = ready.values().max().map_or(Duration::ZERO, |last| last.duration_since(began));
    let sent = sent.into_inner().unwrap_or_else(PoisonError::into_inner);
    let latencies = sent.iter().filter_map(|(name, sent)| Some(ready.get(name)?.duration_since(*sent)));
    Ok((elapsed, latencies.collect()))
}

/// Waits until nothing is written any more.
async fn calm(control_plane: &ControlPlane) -> Result<()> {
    wait_until("the last write was made", CALM_WITHIN, async || {
        let mark = control_plane.audit_mark()?;
        sleep(CALM).await;
        let writes = ours_since(control_plane, mark)?;
        ensure!(writes.total() == 0, "still written:\n{writes}");
        Ok(())
    })
    .await
}

fn ours_since(control_plane: &ControlPlane, mark: Mark) -> Result<Writes> {
    control_plane.writes_since(mark).map(ours)
}

/// The writes of the controller and of agents.
fn ours(writes: Writes) -> Writes {
    writes.filter(|kind| kind.user.starts_with("system:serviceaccount:kubexen-"))
}

/// The most memory that a process ever had resident, in megabytes of 10⁶ bytes.
fn peak_mb(process: &Process) -> Result<f64> {
    let path = format!("/proc/{}/status", process.id());
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u32 =
        line.trim().trim_end_matches(" kB").parse().with_context(|| format!("VmHWM is {line:?}"))?;
    Ok(f64::from(kib) * 1024.0 / 1e6)
}
