//! VirtualMachineMigration: moves a running guest to another host, step by step, and keeps the record.
//!
//! ```text
//!   VirtualMachineMigration ─┐             ┌─▶ Domain on the destination   its agent awaits the guest
//!   its machine, both hosts ─┼─▶ decide ─▶ ├─▶ Domain on the source        its agent sends the guest
//!   its two Domains ─────────┘             └─▶ status, then one Domain is deleted
//! ```
//!
//! # What it watches
//! The migration, the Domains of its machine, and the migrations that go before it.
//!
//! # What it decides
//! Whose turn it is, which host is the destination, and what the record says. It never decides who owns the guest: the
//! two agents do, in the pool's store, and their Domains tell. So a controller that dies, or that two believe to be,
//! cannot make a guest run twice, and what the agents have begun ends without it.
//!
//! # What it writes
//! The Domain on the destination; the destination's address into the source's Domain; the status three times; at the end
//! it deletes the Domain of the host where the guest is not. A migration has no finalizer: one that is deleted is found
//! by the Domains that name it, and is called off if it is not committed.

mod apply;
mod decide;
pub(crate) mod movable;
pub(crate) mod observe;
mod status;
pub(crate) mod turns;

#[cfg(test)]
mod tests;

use crate::{
    context::{Applied, Context},
    error::Error,
    virtual_machine::cloud_init,
};
use kubexen_crds::{
    Domain, DomainMigration, Host, MigrationRole, MigrationStage, Network, Pool, StorageRepository,
    VirtualDisk, VirtualMachine, VirtualMachineMigration, names::host_object_name,
};
use kubexen_runtime::{Key, Outcome};
use observe::{Choice, Observed};
use std::{sync::Arc, time::Duration};

pub(crate) use status::Cause;
pub(crate) use turns::{Starting, wake_next};

/// Rounds of observing and acting within one look.
const ROUNDS: usize = 6;
/// When to look again at what no watch may show.
const LATER: Duration = Duration::from_secs(1);

/// One look at a migration, or at what a deleted one has left.
pub(crate) async fn reconcile(context: &Context, key: &Key) -> Result<Outcome, Error> {
    let mut asked = false;
    for _ in 0..ROUNDS {
        let Some(mut observed) = observe::observe(context, key) else { return Ok(Outcome::Settled) };
        find_user_data(context, &mut observed).await?;
        let plan = decide::decide(&observed, context.clock.now());
        if plan.refuses() && observed.beginning.is_some() && !asked {
            // What speaks against it may be gone already, and a refusal is for good.
            catch_up(context, &observed).await?;
            asked = true;
            continue;
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

/// Looks, before a move begins, whether the guest would find its user data at the destination: Secrets are not watched.
async fn find_user_data(context: &Context, observed: &mut Observed) -> Result<(), Error> {
    let (Some(source), Some(beginning)) = (&observed.source, &mut observed.beginning) else { return Ok(()) };
    if let Some(Choice::Host(_)) = &beginning.choice
        && let Some(problem) = cloud_init::problem_of_move(context, source).await?
    {
        beginning.choice = Some(Choice::Unresolved(problem));
    }
    Ok(())
}

/// Sees what decides whether a move can begin, however far behind the watches are.
async fn catch_up(context: &Context, observed: &Observed) -> Result<(), Error> {
    let Some(migration) = &observed.migration else { return Ok(()) };
    let key = machine_of(migration);
    context.find_all::<Pool>().await?;
    context.find_all::<Host>().await?;
    context.find_all::<Network>().await?;
    context.find_all::<StorageRepository>().await?;
    for domain in context.list_named::<Domain>(&host_object_name(&key.namespace, &key.name)).await? {
        context.found(domain);
    }
    let Some(machine) = context.get::<VirtualMachine>(&key).await? else { return Ok(()) };
    let disks: Vec<Key> =
        machine.spec.disks.iter().map(|disk| Key::new(&key.namespace, &disk.disk)).collect();
    context.found(machine);
    for disk in disks {
        if let Some(disk) = context.get::<VirtualDisk>(&disk).await? {
            context.found(disk);
        }
    }
    Ok(())
}

/// The migration that a Domain takes part in.
pub(crate) fn key_of(domain: &Domain) -> Option<Key> {
    let migration = domain.spec.migration.as_ref()?;
    Some(Key::new(&domain.spec.virtual_machine.namespace, &migration.name))
}

/// The machine that a migration moves.
pub(crate) fn machine_of(migration: &VirtualMachineMigration) -> Key {
    Key::new(&Key::of(migration).namespace, &migration.spec.virtual_machine)
}

/// What a Domain's agent said of the migration that the Domain takes part in now.
pub(crate) fn stage(domain: &Domain) -> Option<MigrationStage> {
    let wanted = domain.spec.migration.as_ref()?;
    let said = domain.status.as_ref()?.migration.as_ref()?;
    (said.uid == wanted.uid).then_some(said.stage)
}

/// Whether a Domain takes part in a migration whose end its agent has not told.
pub(crate) fn under_way(domain: &Domain) -> Option<&DomainMigration> {
    let wanted = domain.spec.migration.as_ref()?;
    (!stage(domain).is_some_and(MigrationStage::is_final)).then_some(wanted)
}

/// Whether the guest is not in this Domain: it has not come yet, never came, or has left.
pub(crate) fn is_empty(domain: &Domain) -> bool {
    match (domain.spec.migration.as_ref().map(|migration| migration.role), stage(domain)) {
        (Some(MigrationRole::Destination), Some(MigrationStage::Committed)) => false,
        (
            Some(MigrationRole::Destination),
            Some(MigrationStage::Awaiting | MigrationStage::Aborted) | None,
        ) => true,
        (Some(MigrationRole::Source), Some(MigrationStage::Committed)) => true,
        (Some(MigrationRole::Source), Some(MigrationStage::Awaiting | MigrationStage::Aborted) | None) => {
            false
        }
        (None, _) => false,
    }
}

/// The Domains of one machine that the guest is in, and those that it is not in. Once the destination owns the guest, the
/// source is empty, whether or not its agent has told so yet. If both say that the guest is theirs, as they may when the pool's
/// store was restored, both count as such: only the store knows.
pub(crate) fn whereabouts(domains: Vec<Arc<Domain>>) -> (Vec<Arc<Domain>>, Vec<Arc<Domain>>) {
    let arrived: Vec<String> = domains
        .iter()
        .filter(|domain| !is_empty(domain))
        .filter_map(|domain| domain.spec.migration.as_ref())
        .filter(|migration| migration.role == MigrationRole::Destination)
        .map(|migration| migration.uid.clone())
        .collect();
    domains.into_iter().partition(|domain| {
        let left = domain.spec.migration.as_ref().is_some_and(|migration| {
            let taken_back = stage(domain) == Some(MigrationStage::Aborted);
            migration.role == MigrationRole::Source && arrived.contains(&migration.uid) && !taken_back
        });
        !is_empty(domain) && !left
    })
}
