//! What the benchmarks of pools have in common: machines that are made at once, calm, and what processes used.

use super::{
    watcher::all_ready,
    workload::{for_each, machine, name},
};
use crate::{
    control_plane::{ControlPlane, Mark, Writes},
    pool::Profile,
    process::{Process, wait_until},
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

/// Silence after which the last write is made.
const CALM: Duration = Duration::from_secs(5);
/// Longest time until then: events, and what hosts say of themselves.
const CALM_WITHIN: Duration = Duration::from_secs(120);
/// The kernel's clock ticks in a second, as `/proc` counts them on x86-64.
const TICKS: f64 = 100.0;

/// The same build as this program.
pub(super) fn this_profile() -> Profile {
    if cfg!(debug_assertions) { Profile::Debug } else { Profile::Release }
}

pub(super) async fn kinds_are_served(client: &Client) -> Result<()> {
    wait_until("the API server serves our kinds", Duration::from_secs(30), async || {
        let one = ListParams::default().limit(1);
        Api::<VirtualMachine>::all(client.clone()).list(&one).await?;
        Api::<Domain>::all(client.clone()).list(&one).await?;
        Ok(())
    })
    .await
}

/// Creates the machines and waits until all are Ready: the whole time, and each machine's own from its create on.
pub(super) async fn create_all(
    client: &Client,
    namespace: &str,
    count: usize,
) -> Result<(Duration, Vec<Duration>)> {
    let machines = Api::<VirtualMachine>::namespaced(client.clone(), namespace);
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
pub(super) async fn calm(control_plane: &ControlPlane) -> Result<()> {
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
pub(super) fn ours(writes: Writes) -> Writes {
    writes.filter(|kind| kind.user.starts_with("system:serviceaccount:kubexen-"))
}

/// The most memory that a process ever had resident, in megabytes of 10⁶ bytes.
pub(super) fn peak_mb(process: &Process) -> Result<f64> {
    let path = format!("/proc/{}/status", process.id());
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u32 =
        line.trim().trim_end_matches(" kB").parse().with_context(|| format!("VmHWM is {line:?}"))?;
    Ok(f64::from(kib) * 1024.0 / 1e6)
}

/// The CPU time that a process has used, in seconds.
pub(super) fn cpu_seconds(process: &Process) -> Result<f64> {
    let path = format!("/proc/{}/stat", process.id());
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // Its name stands in parentheses, and may contain anything.
    let fields = text.rsplit_once(')').map(|(_, rest)| rest).context("no name")?;
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<_, _>>()?;
    Ok(ticks as f64 / TICKS)
}
