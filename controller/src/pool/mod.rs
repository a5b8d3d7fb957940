//! Pool: counts the hosts, keeps the CPU level, and says how many hosts may die.
//!
//! ```text
//!   Pool, Hosts ──────────────────────────▶ decide ──▶ status
//!   protected guests ──▶ failure reserve ──┤
//!   members of the pool's store ───────────┘
//! ```
//!
//! Its policy is read by the scheduler. An installation does without the object just as well.

mod failures;
pub(crate) mod level;

use crate::{context::Context, error::Error, recovery, scheduler, view::is_ready};
use kubexen_crds::{
    PoolStatus,
    condition::{self, State, Wanted},
    pool::PoolCpu,
};
use kubexen_runtime::{Key, Outcome};
use std::time::Duration;

/// How long changes of guests are collected before the next look: a storm of machines becomes a few.
const WINDOW: Duration = Duration::from_secs(1);

/// Something changed of a guest, or of what guests need. What is told of the pool depends on it if the guest is protected, or
/// failures are to be tolerated.
pub(crate) fn wake(context: &Context, protected: bool) {
    if protected || scheduler::wanted(&context.view) > 0 {
        for key in context.view.pools.keys() {
            context.queues.add_after(&context.queues.pools, key, WINDOW);
        }
    }
}

/// One look at the pool.
pub(crate) async fn reconcile(context: &Context, key: &Key) -> Result<Outcome, Error> {
    let Some(pool) = context.view.pools.get(key) else { return Ok(Outcome::Settled) };
    let hosts = context.view.hosts.list();
    let ready = hosts.iter().filter(|host| is_ready(host)).count();
    let before = pool.status.clone().unwrap_or_default();
    let generation = pool.metadata.generation;
    let level = level::next(
        before.cpu.as_ref().map(|cpu| &cpu.level),
        hosts.iter().map(|host| &**host),
        pool.spec.cpu.level,
    );
    let standing = scheduler::standing(&context.view, &context.scheduler);
    let bounds = recovery::bounds(context);
    let mut wanted = vec![decide(hosts.len(), ready)];
    let mut kept = Vec::new();
    let mut keep = |type_| kept.extend(condition::find(&before.conditions, type_).cloned());
    match &bounds {
        Some(bounds) => wanted.extend(failures::condition(&standing, bounds)),
        None if standing.promise.is_some() => keep(failures::FAILURES_TOLERATED),
        None => {}
    }
    let mut availability = failures::status(before.availability.clone(), &standing, bounds.as_ref());
    if let Some((epoch, freeze)) = recovery::epoch_words(context)
        && (epoch.is_some() || freeze.is_some() || availability.is_some())
    {
        let availability = availability.get_or_insert_default();
        // While nothing counts, what counted last is remembered.
        availability.epoch = epoch.or(availability.epoch.take());
        availability.freeze = freeze;
    }
    match recovery::redundant_words(context) {
        Some(redundant) => wanted.push(redundant),
        None => keep("StoreRedundant"),
    }
    match recovery::pool_words(context) {
        Some((silent, recovering)) => {
            if !silent.is_empty() || availability.is_some() {
                availability.get_or_insert_default().silent_hosts = silent;
            }
            wanted.push(recovering);
        }
        None => keep("Recovering"),
    }
    let mut conditions = condition::set(&before.conditions, wanted, generation, context.clock.now());
    conditions.extend(kept);
    conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
    let after = PoolStatus {
        observed_generation: generation,
        hosts: i32::try_from(hosts.len()).ok(),
        ready_hosts: i32::try_from(ready).ok(),
        cpu: level.map(|level| PoolCpu {
            features: level.hvm.as_ref().map(|set| set.names()).unwrap_or_default(),
            level,
        }),
        availability,
        conditions,
    };
    context.write_status(&*pool, pool.status.as_ref(), &after).await?;
    Ok(Outcome::Settled)
}

fn decide(hosts: usize, ready: usize) -> Wanted {
    if hosts == 0 {
        return Wanted::new(
            "Ready",
            State::False,
            "NoHosts",
            "there are no hosts: create a Host and start its agent",
        );
    }
    if ready == hosts {
        return Wanted::new(
            "Ready",
            State::True,
            "AllHostsReady",
            format!("{hosts} of {hosts} hosts are ready"),
        );
    }
    Wanted::new("Ready", State::False, "HostsNotReady", format!("{ready} of {hosts} hosts are ready"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_ready_when_it_has_hosts_and_all_are() {
        let cases =
            [(0, 0, "NoHosts"), (3, 3, "AllHostsReady"), (3, 2, "HostsNotReady"), (1, 0, "HostsNotReady")];
        for (hosts, ready, reason) in cases {
            assert_eq!(decide(hosts, ready).reason, reason, "{ready} of {hosts}");
        }
    }
}
