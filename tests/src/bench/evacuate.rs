//! `bench evacuate`: a host of a large pool is put into maintenance.
//!
//! What a move takes is measured first, by moves on the calm pool, one at a time. The bound is what the limits allow then:
//! as many moves at a time as one host may take part in, one right after the other.

use super::{
    measure::{calm, cpu_seconds, create_all, kinds_are_served, ours, peak_mb, this_profile},
    report::{EvacuateReport, WritesByClient, rounded},
    workload::{create_namespace, name},
};
use crate::{
    control_plane::{ControlPlane, Options},
    pool::{Pool, PoolOptions, SimulatedHostOptions},
    process::wait_until,
    progress::Step,
};
use anyhow::{Context, Result, bail, ensure};
use futures::TryStreamExt;
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams},
    runtime::watcher::{self, Event},
};
use kubexen_crds::{
    Host, MigrationPhase, VirtualMachineMigration, condition, names::EVACUATES, pool::MigrationPolicy,
};
use serde_json::json;
use std::{pin::pin, time::Duration};
use tokio::time::{Instant, timeout};

/// Namespace of the machines.
const NAMESPACE: &str = "evacuate";
/// Machines on each host.
const PER_HOST: usize = 30;
/// Agents of so many hosts share a process.
const HOSTS_PER_PROCESS: usize = 16;
/// How fast a guest's 64 MiB go over: a move takes four seconds, as one of a small guest on a real network.
const BYTES_PER_SECOND: u64 = 16 << 20;
/// Moves that are measured alone.
const ALONE: usize = 3;
/// The host that is emptied.
const HOST: &str = "host-1";
/// Longest time for all of it.
const LIMIT: Duration = Duration::from_secs(1800);

/// A host of a pool is emptied.
#[derive(Clone, Copy, Debug)]
pub struct Evacuate {
    /// Number of machines in the pool, 30 on each host.
    pub machines: usize,
}

/// Measures an evacuation.
///
/// # Errors
/// When something does not start, a machine does not become Ready, or the host is not empty in time.
pub async fn run(evacuate: Evacuate) -> Result<EvacuateReport> {
    let machines = evacuate.machines;
    let hosts = machines.div_ceil(PER_HOST).max(2);
    let step = Step::begin(format!("Starting the control plane, the controller and {hosts} simulated hosts"));
    let control_plane = ControlPlane::start(&Options::default()).await?;
    let pool = Pool::start(&control_plane, options(hosts)).await?;
    let client = control_plane.client().await?;
    kinds_are_served(&client).await?;
    create_namespace(&client, NAMESPACE).await?;
    step.done();
    let step = Step::begin(format!("Starting {machines} machines"));
    create_all(&client, NAMESPACE, machines).await?;
    calm(&control_plane).await?;
    step.done();
    let step = Step::begin(format!("Measuring {ALONE} moves, one at a time"));
    let alone = moves_alone(&client).await?;
    calm(&control_plane).await?;
    step.done();

    let step = Step::begin(format!("Emptying {HOST}"));
    let controller = pool.controller(0).context("the controller is gone")?;
    let (mark, cpu) = (control_plane.audit_mark()?, cpu_seconds(controller)?);
    let elapsed = empty(&client).await?;
    step.done();
    let cpu = cpu_seconds(controller)? - cpu;
    calm(&control_plane).await?;
    let writes = ours(control_plane.writes_since(mark)?);
    let moved = moved(&client).await?;
    ensure!(moved > 0, "there was nobody on {HOST}");
    let events: u64 =
        writes.by_kind.iter().filter(|(kind, _)| kind.resource == "events").map(|(_, n)| n).sum();
    let at_a_time = usize::try_from(MigrationPolicy::default().max_per_host)?;
    let rounds = u32::try_from(moved.div_ceil(at_a_time))?;
    let bound = alone * rounds;
    Ok(EvacuateReport {
        migrations: moved,
        writes_per_migration: rounded((writes.total() - events) as f64 / moved as f64),
        events_per_migration: rounded(events as f64 / moved as f64),
        seconds: rounded(elapsed.as_secs_f64()),
        bound_seconds: rounded(bound.as_secs_f64()),
        time_ratio: rounded(elapsed.as_secs_f64() / bound.as_secs_f64()),
        controller_cpu_seconds: rounded(cpu),
        controller_peak_mb: rounded(peak_mb(controller)?),
        writes_by_client: WritesByClient::of(&writes),
    })
}

fn options(hosts: usize) -> PoolOptions {
    let simulated = SimulatedHostOptions {
        memory: "64Gi".to_owned(),
        migration_bytes_per_second: BYTES_PER_SECOND,
        ..SimulatedHostOptions::default()
    };
    PoolOptions {
        hosts,
        hosts_per_process: HOSTS_PER_PROCESS,
        controllers: 1,
        simulated,
        profile: this_profile(),
        ..PoolOptions::default()
    }
}

/// How long a move takes that is alone, from its create to its end: the median.
async fn moves_alone(client: &Client) -> Result<Duration> {
    let migrations = Api::<VirtualMachineMigration>::namespaced(client.clone(), NAMESPACE);
    let mut times = Vec::with_capacity(ALONE);
    for number in 0..ALONE {
        let object = json!({"metadata": {"name": name(number)}, "spec": {"virtualMachine": name(number)}});
        let only = watcher::Config::default().fields(&format!("metadata.name={}", name(number)));
        let mut events = pin!(watcher::watcher(migrations.clone(), only));
        let began = Instant::now();
        migrations.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        let over = async {
            while let Some(event) = events.try_next().await? {
                if let Event::Apply(seen) | Event::InitApply(seen) = event
                    && let Some(phase) =
                        seen.status.and_then(|status| status.phase).filter(|it| it.is_final())
                {
                    ensure!(phase == MigrationPhase::Succeeded, "a move ended as {phase:?}");
                    return Ok(began.elapsed());
                }
            }
            bail!("the watch ended")
        };
        times.push(timeout(Duration::from_secs(120), over).await.context("a move does not end")??);
    }
    times.sort_unstable();
    Ok(times[ALONE / 2])
}

/// Puts the host into maintenance, and waits until it is evacuated.
async fn empty(client: &Client) -> Result<Duration> {
    let hosts = Api::<Host>::all(client.clone());
    let only = watcher::Config::default().fields(&format!("metadata.name={HOST}"));
    let mut events = pin!(watcher::watcher(hosts.clone(), only));
    let began = Instant::now();
    let maintenance = json!({"spec": {"maintenance": {"enabled": true}}});
    hosts.patch(HOST, &PatchParams::default(), &Patch::Merge(maintenance)).await?;
    let empty = async {
        while let Some(event) = events.try_next().await? {
            if let Event::Apply(host) | Event::InitApply(host) = event
                && condition::is_true(&host.status.unwrap_or_default().conditions, "Evacuated")
            {
                return Ok(began.elapsed());
            }
        }
        bail!("the watch ended")
    };
    timeout(LIMIT, empty).await.context("the host does not become empty")?
}

/// Number of machines that have moved, each once and at the first try.
async fn moved(client: &Client) -> Result<usize> {
    let migrations = Api::<VirtualMachineMigration>::namespaced(client.clone(), NAMESPACE);
    let ours = ListParams::default().labels(&format!("{EVACUATES}={HOST}"));
    wait_until("every move has ended", Duration::from_secs(30), async || {
        let all = migrations.list(&ours).await?.items;
        let phases = all.iter().map(|one| one.status.as_ref().and_then(|status| status.phase));
        ensure!(phases.clone().all(|phase| phase == Some(MigrationPhase::Succeeded)), "not all succeeded");
        Ok(phases.count())
    })
    .await
}
