//! Network: says how many hosts have it attached, and keeps it while machines name it.
//!
//! ```text
//!   Network, Hosts (uplinks, labels), VirtualMachines that name it ──▶ decide ──▶ finalizer, status
//! ```
//!
//! The policy is that of everything that hosts attach: [`crate::attachment`].

use crate::{
    attachment::{self, Action},
    context::Context,
    error::Error,
    virtual_machine::references::uplink,
};
use kubexen_crds::{NetworkStatus, condition};
use kubexen_runtime::{Key, Outcome};

/// One look at a network.
pub(crate) async fn reconcile(context: &Context, key: &Key) -> Result<Outcome, Error> {
    let Some(network) = context.view.networks.get(key) else { return Ok(Outcome::Settled) };
    let uplink = uplink(&network).unwrap_or_default();
    let users = context.view.machines_of_network.to(key);
    let hosts = context.view.hosts.list();
    let observed = attachment::observe(&*network, &hosts, &network.spec.host_selector, users, |host| {
        let uplinks = host.status.as_ref().map(|status| status.uplinks.as_slice()).unwrap_or_default();
        if uplinks.iter().any(|found| found.name == uplink) { Ok(()) } else { Err(None) }
    });
    let plan = attachment::decide(&observed, &format!("uplink {uplink}"), "VirtualMachine");
    match plan.action {
        None => {}
        Some(Action::AddFinalizer) => {
            context.add_finalizer(&*network).await?;
            return Ok(Outcome::Again(std::time::Duration::ZERO));
        }
        Some(Action::RemoveFinalizer) => context.remove_finalizer(&*network).await?,
    }
    if let Some(report) = plan.report {
        let before = network.status.clone().unwrap_or_default();
        let generation = network.metadata.generation;
        let ready = vec![report.ready];
        let after = NetworkStatus {
            observed_generation: generation,
            attached_hosts: Some(report.attached_hosts),
            missing_hosts: report.missing_hosts,
            conditions: condition::set(&before.conditions, ready, generation, context.clock.now()),
        };
        context.write_status(&*network, network.status.as_ref(), &after).await?;
    }
    Ok(Outcome::Settled)
}
