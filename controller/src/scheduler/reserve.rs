//! The failure reserve of the pool as the mirrors show it.

use super::{Claim, Scheduler, request_to_start};
use crate::{
    migration,
    placement::{
        HostView, Request,
        reserve::{Promise, Protected, Reserve, settled},
    },
    view::{View, host_of_namespace, is_deleting, uid},
    virtual_machine::{is_protected, references::resolve_without_devices},
};
use kubexen_crds::{VirtualMachine, virtual_machine::PowerState};
use kubexen_runtime::Key;

/// How the pool stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Standing {
    /// What is tolerated; none if nothing is asked for.
    pub(crate) promise: Option<Promise>,
    /// Number of guests that are protected.
    pub(crate) protected: usize,
    /// Guests that are to be, and cannot be.
    pub(crate) unprotectable: Vec<Key>,
}

/// How many host failures are to be tolerated.
pub(crate) fn wanted(view: &View) -> u32 {
    let pools = view.pools.list();
    let wanted = pools.first().map_or(0, |pool| pool.spec.availability.host_failures_to_tolerate);
    u32::try_from(wanted).unwrap_or(0)
}

/// How the pool stands now.
pub(crate) fn standing(view: &View, scheduler: &Scheduler) -> Standing {
    let books = scheduler.books(view);
    let unprotectable = books.guests.iter().filter(|(_, guest)| guest.is_none());
    let unprotectable: Vec<Key> = unprotectable.map(|(key, _)| key.clone()).collect();
    Standing {
        promise: books.reserve.as_ref().map(Reserve::promise),
        protected: books.guests.len() - unprotectable.len(),
        unprotectable,
    }
}

/// What is kept for a machine that is to be started elsewhere when the host dies that runs it or is to run it; none if it is not to
/// be, or is nowhere. Nothing is kept for one that cannot be started elsewhere.
pub(super) fn guest<'a>(
    view: &View,
    key: &Key,
    machine: &VirtualMachine,
    claim: Option<&Claim>,
    host_named: impl Fn(&str) -> Option<&'a HostView>,
) -> Option<Option<Protected>> {
    if !is_to_be_kept(machine) {
        return None;
    }
    // What was assigned counts before what is left of it on a host that died.
    let (host, request) = match claim {
        Some(claim) => (claim.host.clone(), Some(claim.request.clone())),
        None => (host_of(view, key, machine)?, request(view, machine)),
    };
    let nowhere = HostView::default();
    let there = host_named(&host).unwrap_or(&nowhere);
    Some(request.and_then(|request| settled(&request, there)).map(|request| Protected { request, host }))
}

/// Whether the machine is protected, and on.
fn is_to_be_kept(machine: &VirtualMachine) -> bool {
    let on = match machine.spec.power_state {
        PowerState::Running | PowerState::Paused => true,
        PowerState::Halted | PowerState::Suspended => false,
    };
    on && is_protected(machine) && !is_deleting(machine)
}

fn host_of(view: &View, key: &Key, machine: &VirtualMachine) -> Option<String> {
    let domains = view.domains_of_machine(key).into_iter();
    let domains = domains.filter(|domain| domain.spec.virtual_machine.uid == uid(machine)).collect();
    let (full, _) = migration::whereabouts(domains);
    full.first()?.metadata.namespace.as_deref().and_then(host_of_namespace).map(str::to_owned)
}

fn request(view: &View, machine: &VirtualMachine) -> Option<Request> {
    resolve_without_devices(view, machine).ok().map(|resolved| request_to_start(machine, &resolved))
}
