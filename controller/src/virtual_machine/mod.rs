//! VirtualMachine: finds each machine its host, writes its Domain there, and says how it goes.
//!
//! ```text
//!  VirtualMachine, VirtualDisks, Networks, StorageRepositories     (what is wanted)
//!          │
//!          ▼            ask                       assigned
//!   observe → decide ──────────▶ scheduler ─────────────────────┐
//!               │ ▲                                              │ looks again
//!               │ └──────────────────────────────────────────────┘
//!               ├──▶ apply: finalizer · Volumes and Domain in the host's namespace · changes of the Domain
//!               └──▶ status, from the Domain's status and the host's readiness
//! ```
//!
//! # What it watches
//! The machine; its Domains, found by the machine's name and told apart by its uid; the disks, networks and
//! repositories that it names; whether its host is Ready. The Secret with its user data is not watched: see
//! [`cloud_init`].
//!
//! # What it decides
//! All policy is in [`decide`], which is pure. Two rules are worth more than the others:
//! - A machine has a Domain on at most one host. Before a machine that had a Domain is placed anew, called Halted or
//!   let go, a linearizable read shows that the Domain is gone.
//! - A machine on a silent host is never started elsewhere: silence proves nothing about a guest. One on a host that is
//!   known to be dead is, after it was stolen in the pool's store: see [`recovery`].
//!
//! A Domain whose machine is gone is deleted: see [`crate::orphan`].
//!
//! What of a running machine changes without a restart is decided in [`live`], how one is suspended and resumed in
//! [`suspension`].
//!
//! # What it writes
//! A plain start costs the finalizer, the Domain, and the status twice: when the Domain is there and when the guest
//! runs. A look goes on until it finds nothing to do, so its own writes need not wake it, and a look that finds
//! nothing at once writes nothing.

mod address;
mod apply;
mod cds;
pub(crate) mod cloud_init;
mod decide;
mod live;
mod observe;
pub(crate) mod problem;
mod protection;
mod recovery;
pub(crate) mod references;
mod status;
pub(crate) mod suspension;
mod synchronized;

#[cfg(test)]
mod tests;

pub(crate) use decide::is_protected;
pub(crate) use recovery::had_ended;

use crate::{
    context::{Applied, Context},
    error::Error,
    orphan,
};
use kubexen_crds::{Domain, VirtualMachine, virtual_machine::PowerState};
use kubexen_runtime::{Key, Outcome};
use std::time::Duration;

/// Rounds of observing and acting within one look. A start takes two; the bound is for what nobody foresaw.
const ROUNDS: usize = 6;
/// When to look again at what could not be finished for a reason that no watch may show.
const LATER: Duration = Duration::from_secs(1);

/// Whether the machine's guest is to run, or to be paused: what is started elsewhere if its host dies.
pub(crate) fn is_wanted_on(machine: &VirtualMachine) -> bool {
    match machine.spec.power_state {
        PowerState::Running | PowerState::Paused => !crate::view::is_deleting(machine),
        PowerState::Halted | PowerState::Suspended => false,
    }
}

/// One look at a machine.
pub(crate) async fn reconcile(context: &Context, key: &Key) -> Result<Outcome, Error> {
    let domains = context.view.domains_of_machine(key);
    orphan::remove::<VirtualMachine, Domain>(context, key, domains, |domain| {
        &domain.spec.virtual_machine.uid
    })
    .await?;
    for _ in 0..ROUNDS {
        let Some(observed) = observe::observe(context, key).await? else {
            context.scheduler.forget(key);
            return Ok(Outcome::Settled);
        };
        let plan = decide::decide(&observed);
        if !plan.waits_for_host {
            context.scheduler.forget(key);
        }
        let again = plan.again;
        match apply::apply(context, &observed, plan).await? {
            Applied::Nothing => return Ok(again.map_or(Outcome::Settled, Outcome::Again)),
            Applied::Something => {}
            Applied::Behind => return Ok(Outcome::Again(LATER)),
        }
    }
    Ok(Outcome::Again(LATER))
}
