//! What is known of a machine at one moment.

use super::{
    cloud_init, live,
    problem::Problem,
    protection,
    references::{self, Resolved},
    suspension::{StateDisk, state_disk_key},
};
use crate::{
    context::Context,
    error::Error,
    migration,
    recovery::{self, Loss},
    scheduler::{self, Answer, HostRoom},
    view::{host_of_namespace, is_deleting, uid},
};
use kube::Resource;
use kubexen_crds::{Domain, MigrationRole, VirtualMachine, condition::Wanted, virtual_machine::PowerState};
use kubexen_runtime::Key;
use std::{sync::Arc, time::Duration};

/// What is known of a machine at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// The machine.
    pub(crate) machine: Arc<VirtualMachine>,
    /// The Domains that the guest is in or is to start in, sorted by host; more than one only after a deposed
    /// controller's late write.
    pub(crate) domains: Vec<Arc<Domain>>,
    /// Domains that a migration has made or left, and that the guest is not in.
    pub(crate) empty_domains: Vec<Arc<Domain>>,
    /// Domains of an earlier machine of the same name.
    pub(crate) predecessors: Vec<Key>,
    /// The disk that its guest is saved to, or is to be.
    pub(crate) state: Option<StateDisk>,
    /// What it refers to.
    pub(crate) references: Result<Resolved, Problem>,
    /// What it refers to as far as that is there, if it has a Domain and not all of it is.
    pub(crate) references_in_part: Option<Resolved>,
    /// What is to be said of its protection; none if it is not to be protected.
    pub(crate) protection: Option<Wanted>,
    /// What the host of the Domain that stands for it has: of the first that nobody has deleted, if there is one; looked up only if the guest is to have more than it has.
    pub(crate) room: Option<HostRoom>,
    /// What the scheduler says of it; none if it was not asked for the machine as it is now.
    pub(crate) answer: Option<Answer>,
    /// What happened to it, if its host is dead.
    pub(crate) lost: Option<Lost>,
    /// Whether the host of that Domain is Ready.
    pub(crate) host_ready: bool,
    /// Whether that host is to be emptied.
    pub(crate) host_in_maintenance: bool,
    /// How long the guest has been on its way to another host; none if it is not.
    pub(crate) leaving_for: Option<Duration>,
}

/// What is known of a machine whose host is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// What happened to it.
    pub(crate) loss: Loss,
    /// Whether it is the turn of machines of its order.
    pub(crate) turn: bool,
}

impl Observed {
    /// Whether the guest of this Domain takes part in a migration. What is being deleted receives none, and may wait for a dead host.
    pub(super) fn moves(&self, domain: &Domain) -> bool {
        let others = self.empty_domains.iter().filter(|other| !is_deleting(&***other)).map(|other| &**other);
        others.chain([domain]).any(|part| migration::under_way(part).is_some())
    }
}

/// Looks at a machine; none if there is no such machine.
///
/// # Errors
/// When the Secret with its user data has to be looked at and cannot be asked for.
pub(crate) async fn observe(context: &Context, key: &Key) -> Result<Option<Observed>, Error> {
    let Some(machine) = context.view.machines.get(key) else { return Ok(None) };
    let (domains, others): (Vec<_>, Vec<_>) = context
        .view
        .domains_of_machine(key)
        .into_iter()
        .filter(|domain| !is_removed(context, domain))
        .partition(|domain| domain.spec.virtual_machine.uid == uid(&*machine));
    let (domains, empty_domains) = migration::whereabouts(domains);
    let standing = domains.iter().find(|domain| !is_deleting(&***domain)).or(domains.first());
    let host = standing.and_then(|domain| host_of(domain));
    let lost = lost(context, &machine, &domains);
    let resumes = lost.as_ref().map_or(domains.is_empty(), |lost| lost.loss.resuming);
    let resolve = || match resumes {
        true => references::resolve_to_start(&context.view, &machine),
        false => references::resolve(&context.view, &machine),
    };
    let references = match resolve() {
        Ok(_) if cloud_init::matters(&machine, &domains, &empty_domains) => {
            // What it refers to may have changed while the Secret was asked for.
            match cloud_init::problem(context, &machine).await? {
                Some(problem) => Err(problem),
                None => resolve(),
            }
        }
        resolved => resolved,
    };
    let state = context
        .view
        .disks
        .get(&state_disk_key(&machine))
        .map(|disk| StateDisk { found: references::state_disk(&context.view, &machine), disk });
    let references_in_part = match (&references, standing) {
        (Err(_), Some(domain)) => Some(references::resolve_in_part(&context.view, &machine, domain)),
        (Ok(_) | Err(_), _) => None,
    };
    let room = match (references.as_ref().ok().or(references_in_part.as_ref()), standing) {
        (Some(wanted), Some(domain))
            if live::needs_room(&wanted.machine, &domain.spec.machine)
                || (state.is_some() && machine.spec.power_state == PowerState::Suspended) =>
        {
            let growth = live::growth(&wanted.machine, domain);
            host.and_then(|host| scheduler::room_on(context, host, growth))
        }
        (_, _) => None,
    };
    let arriving = |domain: &&Arc<Domain>| {
        domain.spec.migration.as_ref().is_some_and(|part| part.role == MigrationRole::Destination)
    };
    Ok(Some(Observed {
        state,
        protection: protection::observe(
            &context.view,
            &machine,
            &references,
            host,
            recovery::obstacle(context),
        ),
        references,
        references_in_part,
        room,
        answer: context.scheduler.answer(key, &machine),
        lost,
        predecessors: others.iter().map(|domain| Key::of(&**domain)).collect(),
        host_ready: host.is_some_and(|host| context.view.is_host_ready(host)),
        host_in_maintenance: host.is_some_and(|host| context.view.is_in_maintenance(host)),
        leaving_for: empty_domains.iter().find(arriving).map(|domain| context.age(&**domain)),
        domains,
        empty_domains,
        machine,
    }))
}

/// What happened to a machine with one of the hosts that its Domains are on, or with the one that it was on last.
fn lost(context: &Context, machine: &VirtualMachine, domains: &[Arc<Domain>]) -> Option<Lost> {
    let last = machine.status.as_ref().and_then(|status| status.host.as_deref());
    let hosts = domains.iter().filter_map(|domain| host_of(domain));
    let uid = uid(machine).parse().ok()?;
    let board = context.recovery.board();
    let loss = hosts
        .chain(last.filter(|_| domains.is_empty()))
        .find_map(|host| board.loss(uid, host, context.view.hosts.get(&Key::cluster(host)).as_deref()))?;
    let turn = board.is_turn(&loss.from, machine.spec.availability.order);
    Some(Lost { loss, turn })
}

/// Whether a Domain is gone although the mirror still shows it.
fn is_removed(context: &Context, domain: &Domain) -> bool {
    let machine = domain.spec.virtual_machine.uid.parse();
    machine.is_ok_and(|machine| context.recovery.board().is_removed(machine, uid(domain)))
}

/// The host that a Domain is on.
pub(crate) fn host_of(domain: &Domain) -> Option<&str> {
    domain.meta().namespace.as_deref().and_then(host_of_namespace)
}
