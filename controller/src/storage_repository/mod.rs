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
    virtual_machine::references::{is_shared, location},
};
use kubexen_crds::{
    Host, StorageRepositoryStatus,
    condition::{self, State, Wanted},
    quantity::HostSelector,
};
use kubexen_runtime::{Key, Outcome};
use std::sync::Arc;

/// One look at a repository.
pub(crate) async fn reconcile(context: &Context, key: &Key) -> Result<Outcome, Error> {
    let Some(repository) = context.view.repositories.get(key) else { return Ok(Outcome::Settled) };
    let location = location(&repository).unwrap_or_default();
    let users = context.view.disks_of_repository.to(key);
    let hosts = context.view.hosts.list();
    let shared = is_shared(&repository);
    let offered = |host: &Host| {
        let found = host.status.as_ref()?.locations.iter().find(|found| found.name == location)?;
        (found.shared == shared).then(|| found.id.clone())
    };
    let selector = &repository.spec.host_selector;
    let why_not = |host: &Host| {
        let unusable = &host.status.as_ref()?.unusable_locations;
        unusable.iter().find(|found| found.name == location).map(|found| found.message.clone())
    };
    let observed = attachment::observe(&*repository, &hosts, selector, users, |host| match offered(host) {
        Some(_) => Ok(()),
        None => Err(why_not(host)),
    });
    let kind = if shared { "shared storage" } else { "storage" };
    let mut plan = attachment::decide(&observed, &format!("{kind} location {location}"), "VirtualDisk");
    if let (Some(report), true) = (&mut plan.report, shared)
        && report.ready.state == State::True
        && let Some((one, other)) = different(&hosts, selector, offered)
    {
        let message = format!(
            "location {location} of host {one} and that of host {other} are different storage: give one of them another \
             name in its agent's configuration"
        );
        report.ready = Wanted::new("Ready", State::False, "DifferentStorage", message);
    }
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

/// Two hosts that have the location and do not see the same storage there, the first ones by name.
fn different(
    hosts: &[Arc<Host>],
    selector: &HostSelector,
    offered: impl Fn(&Host) -> Option<Option<String>>,
) -> Option<(String, String)> {
    let no_labels = std::collections::BTreeMap::new();
    let matching =
        hosts.iter().filter(|host| selector.matches(host.metadata.labels.as_ref().unwrap_or(&no_labels)));
    let mut offers: Vec<_> =
        matching.filter_map(|host| Some((Key::of(&**host).name, offered(host)?))).collect();
    offers.sort();
    let (first, storage) = offers.first()?;
    let other = offers.iter().find(|(_, other)| other != storage)?;
    Some((first.clone(), other.0.clone()))
}
