//! `bench storm`: many machines at once on simulated hosts.
//!
//! The API server, its etcd, the controller, all agents and the client that measures share this machine. The bare client
//! runs on the same API server, half of it before the storm and half of it after, so that a machine that is busy with
//! other things slows both.

use super::{
    bare::Bare,
    measure::{calm, create_all, kinds_are_served, ours, peak_mb, this_profile},
    report::{Latencies, StormReport, WritesByClient, rounded},
    workload::create_namespace,
};
use crate::{
    control_plane::{ControlPlane, Options},
    pool::{Pool, PoolOptions, SimulatedHostOptions, install_chart},
    progress::Step,
};
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use tokio::time::sleep;

/// Namespace of the storm's machines.
const NAMESPACE: &str = "storm";
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
    let (elapsed, latencies) = create_all(&client, NAMESPACE, machines).await?;
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
    PoolOptions {
        hosts,
        hosts_per_process: 1,
        controllers: 1,
        simulated,
        profile: this_profile(),
        ..PoolOptions::default()
    }
}
