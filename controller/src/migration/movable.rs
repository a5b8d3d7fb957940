//! Whether a guest can leave its host while it runs: what cannot, and why, is said here and nowhere else.

use super::{observe::host_of, status::Cause, turns::policy};
use crate::view::View;
use kubexen_crds::{
    Domain, VirtualMachine, domain::DomainPhase, host::HostMigration, virtual_machine::PowerState,
};
use kubexen_runtime::Key;

/// Whether guests like one can leave its host while they run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sends {
    /// They can.
    Yes,
    /// Its agent takes part in no migrations, or its Xen cannot log their writes.
    No,
    /// The host has no address on this network, which the Pool names.
    NotOnNetwork(String),
}

/// Why the guest cannot leave its host while it runs, however long one waits; none if nothing speaks against it.
/// `sends` is whether guests like it can leave that host, as [`sends`] tells.
pub(crate) fn obstacle(machine: &VirtualMachine, source: Option<&Domain>, sends: &Sends) -> Option<Cause> {
    match machine.spec.power_state {
        PowerState::Running => {}
        PowerState::Halted => return Some(Cause::NotRunning("Halted")),
        PowerState::Paused => return Some(Cause::NotRunning("Paused")),
        PowerState::Suspended => return Some(Cause::NotRunning("Suspended")),
    }
    let source = source?;
    match source.status.as_ref().and_then(|status| status.phase) {
        Some(DomainPhase::Halted | DomainPhase::Preserved) => {
            return Some(Cause::NotRunning("stopped by the guest"));
        }
        Some(
            DomainPhase::Pending
            | DomainPhase::Running
            | DomainPhase::Paused
            | DomainPhase::Suspended
            | DomainPhase::Receiving
            | DomainPhase::Departed
            | DomainPhase::Stopping
            | DomainPhase::Failed,
        )
        | None => {}
    }
    let host = || host_of(source).to_owned();
    match sends {
        Sends::Yes => None,
        Sends::No => Some(Cause::SourceCannotSend(host(), source.spec.machine.boot.type_)),
        Sends::NotOnNetwork(network) => Some(Cause::NotOnNetwork { host: host(), network: network.clone() }),
    }
}

/// Whether guests of this Domain's boot type can leave its host while they run.
pub(crate) fn sends(view: &View, source: &Domain) -> Sends {
    let boot = source.spec.machine.boot.type_;
    let takes_part = migration_of(view, host_of(source)).is_some_and(|it| it.boot_types.contains(&boot));
    match off_network(view, host_of(source)) {
        _ if !takes_part => Sends::No,
        Some(network) => Sends::NotOnNetwork(network),
        None => Sends::Yes,
    }
}

/// The network that the Pool names for migrations, if this host takes part in them and has no address on it.
pub(crate) fn off_network(view: &View, host: &str) -> Option<String> {
    let migration = migration_of(view, host)?;
    let network = policy(view).network?;
    address_on(Some(&network), &migration).is_none().then_some(network)
}

/// Where guests for this host are to be sent.
pub(crate) fn address(view: &View, host: &str) -> Option<String> {
    let migration = migration_of(view, host)?;
    address_on(policy(view).network.as_deref(), &migration).map(str::to_owned)
}

/// A host's address on the network of this name, or the one that it has for all migrations.
fn address_on<'a>(network: Option<&str>, migration: &'a HostMigration) -> Option<&'a str> {
    match network {
        None => Some(&migration.address),
        Some(name) => {
            migration.networks.iter().find(|network| network.name == name).map(|network| &*network.address)
        }
    }
}

fn migration_of(view: &View, host: &str) -> Option<HostMigration> {
    view.hosts.get(&Key::cluster(host))?.status.as_ref()?.migration.clone()
}

/// Whether the guest of a Domain runs, and nothing of it waits to be carried out.
pub(crate) fn runs(domain: &Domain) -> bool {
    let Some(status) = domain.status.as_ref() else { return false };
    status.phase == Some(DomainPhase::Running)
        && status.observed_generation == domain.metadata.generation
        && domain.metadata.deletion_timestamp.is_none()
        && (domain.spec.restart_requested.is_none()
            || domain.spec.restart_requested == status.restart_handled)
}
