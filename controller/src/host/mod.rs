//! Host: gives each host's agent its place and its rights, and says whether it is alive.
//!
//! ```text
//!   Host ──────────────────────▶ access: namespace, service account, roles and their bindings
//!   Lease `heartbeat` ─ beat ──▶ decide ──▶ condition Ready ──▶ placement, machines
//!   maintenance ───────────────▶ evacuation: what empties it, and the condition Evacuated
//! ```
//!
//! # What it watches
//! The Host, the heartbeat Lease in its namespace, and, while the Host is being deleted or in maintenance, what is left
//! there.
//!
//! # What it decides
//! A host is Ready while its heartbeat changes, by the controller's own monotonic clock: the times that the agent writes
//! into the Lease are for people. A host that is being deleted waits until it has neither a Domain nor a Volume.
//!
//! # What it writes
//! The finalizer, what [`access`] makes, and of the status only `conditions`, `evacuation`, `availability`, `fencing`, `recovery`
//! and `observedGeneration`; the rest is the agent's.

pub mod access;
pub(crate) mod decide;
pub(crate) mod heartbeat;

#[cfg(test)]
mod tests;

use crate::{
    context::Context,
    error::Error,
    evacuation::{self, Words},
    recovery,
};
use decide::{Action, Observed, Plan, decide};
use kubexen_crds::{Domain, Host, HostStatus, Volume, condition, names::host_namespace};
use kubexen_runtime::{Key, Outcome, events::Severity};
use std::time::Duration;

const ROUNDS: usize = 4;
const LATER: Duration = Duration::from_secs(1);

/// One look at a host.
pub(crate) async fn reconcile(context: &Context, key: &Key) -> Result<Outcome, Error> {
    for _ in 0..ROUNDS {
        let Some(mut observed) = observe(context, key) else {
            context.access.forget(&key.name);
            context.evacuations.forget(&key.name);
            return Ok(Outcome::Settled);
        };
        let mut plan = plan(context, &mut observed).await?;
        let host = &*observed.host;
        let mut acted = false;
        for action in plan.actions {
            acted = true;
            match action {
                Action::AddFinalizer => context.add_finalizer(host).await?,
                Action::GrantAccess => access::grant(context, host).await?,
                Action::LetGo => {
                    if !is_empty(context, &key.name).await? {
                        return Ok(Outcome::Again(LATER));
                    }
                    context.remove_finalizer(host).await?;
                    return Ok(Outcome::Settled);
                }
            }
        }
        let evacuation = plan.evacuation.take();
        if let Some(seen) = evacuation.as_ref().and_then(|plan| plan.confirm.as_ref())
            && !evacuation::confirm(context, host, seen).await?
        {
            return Ok(Outcome::Again(LATER));
        }
        let (words, steps) = evacuation.map(|plan| (plan.words, plan.actions)).unwrap_or_default();
        if let Some(report) = plan.report {
            acted |= say(context, host, report, &words).await?;
        }
        if !steps.is_empty() {
            for step in steps {
                evacuation::carry_out(context, host, step).await?;
            }
            // The watch shows what came of it.
            return Ok(Outcome::Again(LATER));
        }
        if !acted {
            return Ok(plan.again.map_or(Outcome::Settled, Outcome::Again));
        }
    }
    Ok(Outcome::Again(LATER))
}

/// What to do. No guest leaves that would miss something elsewhere which no watch shows.
async fn plan(context: &Context, observed: &mut Observed) -> Result<Plan, Error> {
    loop {
        let plan = decide(observed, context.clock.now());
        let (Some(guests), Some(steps)) = (&mut observed.evacuation, &plan.evacuation) else {
            return Ok(plan);
        };
        if !evacuation::find_hindered(context, guests, &steps.actions).await? {
            return Ok(plan);
        }
    }
}

fn observe(context: &Context, key: &Key) -> Option<Observed> {
    let host = context.view.hosts.get(key)?;
    let namespace = host_namespace(&key.name);
    let deleting = crate::view::is_deleting(&*host);
    let left = |keys: Vec<Key>| keys.into_iter().filter(|key| key.namespace == namespace).collect();
    let fenced = is_fenced(context, &host);
    Some(Observed {
        heartbeat: context.heartbeats.of(&key.name),
        fenced,
        access_age: context.access.age(&key.name, crate::view::uid(&*host)),
        // Looked for only where it matters: it is a scan.
        domains: if deleting { left(context.view.domains.keys()) } else { Vec::new() },
        volumes: if deleting { left(context.view.volumes.keys()) } else { Vec::new() },
        evacuation: evacuation::observe(context, &host, fenced),
        host,
    })
}

/// Whether the boot that the host is at is fenced.
fn is_fenced(context: &Context, host: &Host) -> bool {
    let status = host.status.as_ref();
    let boot = status.and_then(|status| status.boot_id.as_deref());
    let board = context.recovery.board();
    if board.read.is_none() && context.recovery.store().is_some() {
        // What an earlier leader found holds until the store was read.
        let ready = status.and_then(|status| condition::find(&status.conditions, "Ready"));
        return ready.is_some_and(|ready| ready.reason == "Fenced");
    }
    boot.is_some_and(|boot| board.fenced(&Key::of(host).name, boot).is_some())
}

async fn say(
    context: &Context,
    host: &Host,
    mut report: Vec<condition::Wanted>,
    words: &Words,
) -> Result<bool, Error> {
    let before = host.status.clone().unwrap_or_default();
    let generation = host.metadata.generation;
    let was_ready = crate::view::is_ready(host);
    let ready = report.iter().find(|condition| condition.type_ == "Ready").cloned();
    let (evacuation, kept) = match words {
        Words::Keep => {
            (before.evacuation.clone(), condition::find(&before.conditions, evacuation::EVACUATED).cloned())
        }
        Words::Say(words) => {
            report.extend(words.condition.clone());
            (words.evacuation.clone(), None)
        }
    };
    let mut conditions = condition::set(&before.conditions, report, generation, context.clock.now());
    conditions.extend(kept);
    conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
    let after = HostStatus {
        observed_generation: generation,
        conditions,
        evacuation,
        availability: recovery::availability_of_host(context).or(before.availability.clone()),
        fencing: recovery::fencing_of_host(context, host),
        recovery: recovery::recovery_of_host(context, host),
        ..before.clone()
    };
    if !context.write_status(host, Some(&before), &after).await? {
        return Ok(false);
    }
    if let Some(ready) = ready.filter(|ready| was_ready != (ready.state == condition::State::True)) {
        let severity = if was_ready { Severity::Warning } else { Severity::Normal };
        context.events.record(host, severity, ready.reason, "Reconcile", ready.message);
    }
    if let Words::Say(words) = words {
        context.evacuations.note(&Key::of(host).name);
        if let Some((severity, reason, note)) = evacuation::news(host, words) {
            context.events.record(host, severity, reason, "Evacuate", note);
        }
    }
    Ok(true)
}

/// Whether the server has neither a Domain nor a Volume in the host's namespace.
async fn is_empty(context: &Context, host: &str) -> Result<bool, Error> {
    let namespace = host_namespace(host);
    let domains: Vec<Domain> = context.list_in(&namespace).await?;
    let volumes: Vec<Volume> = context.list_in(&namespace).await?;
    let empty = domains.is_empty() && volumes.is_empty();
    domains.into_iter().for_each(|domain| context.found(domain));
    volumes.into_iter().for_each(|volume| context.found(volume));
    Ok(empty)
}
