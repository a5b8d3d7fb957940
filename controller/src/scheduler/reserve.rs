//! The failure reserve of the pool as the mirrors show it.

use super::{Claim, request_to_start, snapshot};
use crate::{
    context::Context,
    migration,
    placement::{
        HostView, Request, Snapshot,
        reserve::{Promise, Protected, Reserve, settled},
    },
    view::{View, host_of_namespace, is_deleting, uid},
    virtual_machine::{is_protected, references::resolve},
};
use kubexen_crds::{VirtualMachine, virtual_machine::PowerState};
use kubexen_runtime::Key;
use std::collections::BTreeMap;

/// What is known of the guests that are to be started elsewhere when their host dies.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Guests {
    /// Those that can be.
    pub(crate) protected: Vec<Protected>,
    /// Those that cannot be, because a disk is on their host alone or something that they refer to is not there, as their
    /// condition Protected says.
    pub(crate) unprotectable: Vec<Key>,
}

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
pub(crate) fn standing(context: &Context) -> Standing {
    let claims = context.scheduler.claims();
    let pool = snapshot::take(&context.view, &claims);
    let guests = guests(&context.view, &claims, &pool);
    let (protected, unprotectable) = (guests.protected.len(), guests.unprotectable.clone());
    let reserve = context.scheduler.refresh_reserve(wanted(&context.view), &pool, guests.protected);
    Standing { promise: reserve.as_ref().map(Reserve::promise), protected, unprotectable }
}

/// The reserve that is to be kept in this pool; none if nothing is asked for.
pub(super) fn current(context: &Context, claims: &[Claim], pool: &Snapshot) -> Option<Reserve> {
    let wanted = wanted(&context.view);
    let guests = if wanted == 0 { Guests::default() } else { guests(&context.view, claims, pool) };
    context.scheduler.refresh_reserve(wanted, pool, guests.protected)
}

/// The guests that are to be started elsewhere, each with the host that runs it or is to run it.
pub(super) fn guests(view: &View, claims: &[Claim], pool: &Snapshot) -> Guests {
    let hosts: BTreeMap<&str, &HostView> = pool.hosts.iter().map(|host| (host.name.as_str(), host)).collect();
    let claims: BTreeMap<&Key, &Claim> = claims.iter().map(|claim| (&claim.request.key, claim)).collect();
    let mut guests = Guests::default();
    for machine in view.machines.list().iter().filter(|machine| is_to_be_kept(machine)) {
        let key = Key::of(&**machine);
        // What was assigned counts before what is left of it on a host that died.
        let found = match claims.get(&key) {
            Some(claim) => Some((claim.host.clone(), Some(claim.request.clone()))),
            None => host_of(view, &key, machine).map(|host| (host, request(view, machine))),
        };
        let Some((host, request)) = found else { continue };
        let nowhere = HostView::default();
        let there = hosts.get(host.as_str()).copied().unwrap_or(&nowhere);
        match request.and_then(|request| settled(&request, there)) {
            Some(request) => guests.protected.push(Protected { request, host }),
            None => guests.unprotectable.push(key),
        }
    }
    guests
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
    resolve(view, machine).ok().map(|resolved| request_to_start(machine, &resolved))
}
