//! StorageRepository: says how many hosts have it attached, and keeps it while disks name it.
//!
//! ```text
//!   StorageRepository, Hosts (locations, labels), VirtualDisks that name it ──▶ decide ──▶ finalizer, status
//! ```
//!
//! The policy is that of everything that hosts attach: [`crate::attachment`].

use crate::{
    attachment::{self, Action},
    context::Context,
    error::Error,
    virtual_machine::references::location,
};
use kubexen_crds::{StorageRepositoryStatus, condition};
use kubexen_runtime::{Key, Outcome};

/// One look at a repository.
pub(crate) async fn reconcile(context: &Context, key: &Key) -> Result<Outcome, Error> {
    let Some(repository) = context.view.repositories.get(key) else { return Ok(Outcome::Settled) };
    let location = location(&repository).unwrap_or_default();
    let users = context.view.disks_of_repository.to(key);
    let hosts = context.view.hosts.list();
    let observed = attachment::observe(&*repository, &hosts, &repository.spec.host_selector, users, |host| {
        host.status.as_ref().is_some_and(|status| status.locations.iter().any(|found| found.name == location))
    });
    let plan = attachment::decide(&observed, &format!("storage location {location}"), "VirtualDisk");
    match plan.action {
        None => {}
        Some(Action::AddFinalizer) => {
            context.add_finalizer(&*repository).await?;
            return Ok(Outcome::Again(std::time::Duration::ZERO));
        }
        Some(Action::RemoveFinalizer) => context.remove_finalizer(&*repository).await?,
    }
    if let Some(report) = plan.report {
        let before = repository.status.clone().unwrap_or_default();
        let generation = repository.metadata.generation;
        let ready = vec![report.ready];
        let after = StorageRepositoryStatus {
            observed_generation: generation,
            attached_hosts: Some(report.attached_hosts),
            missing_hosts: report.missing_hosts,
            conditions: condition::set(&before.conditions, ready, generation, context.clock.now()),
        };
        context.write_status(&*repository, repository.status.as_ref(), &after).await?;
    }
    Ok(Outcome::Settled)
}
