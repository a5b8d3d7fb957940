//! Whether a guest can leave its host while it runs: what cannot, and why, is said here and nowhere else.

use super::{observe::host_of, status::Cause};
use crate::view::View;
use kubexen_crds::{Domain, VirtualMachine, domain::DomainPhase, virtual_machine::PowerState};
use kubexen_runtime::Key;

/// Why the guest cannot leave its host while it runs, however long one waits; none if nothing speaks against it.
/// `sends` is whether guests like it can leave that host, as [`sends`] tells.
pub(crate) fn obstacle(machine: &VirtualMachine, source: Option<&Domain>, sends: bool) -> Option<Cause> {
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
    (!sends).then(|| Cause::SourceCannotSend(host_of(source).to_owned(), source.spec.machine.boot.type_))
}

/// Whether guests of this Domain's boot type can leave its host while they run.
pub(crate) fn sends(view: &View, source: &Domain) -> bool {
    let host = view.hosts.get(&Key::cluster(host_of(source)));
    host.and_then(|host| host.status.as_ref()?.migration.clone())
        .is_some_and(|migration| migration.boot_types.contains(&source.spec.machine.boot.type_))
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
