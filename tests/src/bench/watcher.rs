//! When each machine became Ready, as a client sees it.

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use kube::{
    Api, ResourceExt,
    runtime::watcher::{self, Event},
};
use kubexen_crds::{VirtualMachine, condition};
use std::{collections::BTreeMap, pin::pin, time::Duration};
use tokio::time::{Instant, timeout_at};

/// How often progress is told.
const TELL: Duration = Duration::from_secs(2);

/// Watches until `count` machines are Ready; returns when each of them became so.
pub(super) async fn all_ready(
    machines: Api<VirtualMachine>,
    count: usize,
    limit: Duration,
) -> Result<BTreeMap<String, Instant>> {
    let deadline = Instant::now() + limit;
    let mut told = Instant::now();
    let mut ready = BTreeMap::new();
    let mut events = pin!(watcher::watcher(machines, watcher::Config::default()));
    while ready.len() < count {
        let event = timeout_at(deadline, events.try_next()).await.with_context(|| {
            format!("{} of {count} machines are Ready after {} s", ready.len(), limit.as_secs())
        })?;
        match event? {
            Some(Event::Apply(machine) | Event::InitApply(machine)) => {
                if is_ready(&machine) {
                    ready.entry(machine.name_any()).or_insert_with(Instant::now);
                }
            }
            Some(Event::Delete(_) | Event::Init | Event::InitDone) => {}
            None => bail!("the watch ended"),
        }
        if told.elapsed() >= TELL {
            told = Instant::now();
            eprintln!("{} of {count} machines are Ready", ready.len());
        }
    }
    Ok(ready)
}

fn is_ready(machine: &VirtualMachine) -> bool {
    machine.status.as_ref().is_some_and(|status| condition::is_true(&status.conditions, "Ready"))
}
