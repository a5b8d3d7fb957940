//! What is known of a host that is to be emptied, or was, at one moment.

use super::decide::Action;
use crate::{
    context::Context,
    error::Error,
    migration::{
        self,
        movable::{self, Sends},
        turns::{self, Load},
    },
    placement::{Request, Snapshot},
    scheduler,
    view::{View, is_in_maintenance, is_ready, uid},
    virtual_machine::{cloud_init, problem::Problem, references},
};
use kubexen_crds::{
    Domain, Host, MigrationPhase, VirtualMachine, VirtualMachineMigration, condition::find,
    pool::MigrationPolicy,
};
use kubexen_runtime::Key;
use std::{sync::Arc, time::Duration};

/// What is known of a host that is to be emptied, or was.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// The host.
    pub(crate) host: Arc<Host>,
    /// Whether its agent reports.
    pub(crate) reports: bool,
    /// Whether its boot is dead for good.
    pub(crate) fenced: bool,
    /// Its guests; none if it is not in maintenance.
    pub(crate) guests: Vec<Guest>,
    /// The migrations that were made to empty it.
    pub(crate) records: Vec<Arc<VirtualMachineMigration>>,
    /// The pool that the guests are placed in.
    pub(crate) pool: Snapshot,
    /// Moves that go on or wait for their turn.
    pub(crate) load: Load,
    /// How many may.
    pub(crate) limits: MigrationPolicy,
    /// How long ago this process wrote the plan.
    pub(crate) told: Option<Duration>,
}

/// A Domain on the host, and what its guest would need elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// Its machine.
    pub(crate) key: Key,
    /// The Domain.
    pub(crate) domain: Arc<Domain>,
    /// The machine, if it is there.
    pub(crate) machine: Option<Arc<VirtualMachine>>,
    /// Whether the guest is in this Domain: not on its way here, and not gone.
    pub(crate) is_here: bool,
    /// Whether guests like it can leave the host while they run.
    pub(crate) sends: Sends,
    /// The migration that was made to move it away from here, whatever came of it.
    pub(crate) record: Option<Arc<VirtualMachineMigration>>,
    /// Another migration of it that is not over.
    pub(crate) other_move: Option<String>,
    /// What it needs to go elsewhere while it runs.
    pub(crate) to_move: Result<Request, Problem>,
    /// What it needs to start elsewhere.
    pub(crate) to_start: Result<Request, Problem>,
}

impl Observed {
    fn guest_mut(&mut self, machine: &Key) -> Option<&mut Guest> {
        self.guests.iter_mut().find(|guest| guest.key == *machine)
    }
}

/// Looks at a host; none if it is not in maintenance and nothing is left of one.
pub(crate) fn observe(context: &Context, host: &Arc<Host>, fenced: bool) -> Option<Observed> {
    let view = &context.view;
    let name = Key::of(&**host).name;
    let records = view.migrations_of_evacuation(&name);
    let wanted = is_in_maintenance(host);
    let said = host.status.as_ref().is_some_and(|status| {
        status.evacuation.is_some() || find(&status.conditions, super::EVACUATED).is_some()
    });
    if !wanted && !said && records.is_empty() {
        return None;
    }
    let domains = if wanted { view.domains_of_host(&name) } else { Vec::new() };
    let guests: Vec<Guest> = domains.iter().map(|domain| guest(view, domain, &records)).collect();
    Some(Observed {
        reports: is_ready(host),
        fenced,
        // The pool matters only to those that are to go somewhere.
        pool: if guests.is_empty() { Snapshot::default() } else { scheduler::pool(context) },
        load: if guests.is_empty() { Load::default() } else { turns::expected(view) },
        limits: turns::policy(view),
        told: context.evacuations.age(&name),
        host: Arc::clone(host),
        guests,
        records,
    })
}

/// Looks whether the guests that are to leave now would find their user data elsewhere: Secrets are not watched, so each is read
/// when its guest's turn comes. What would miss it is noted, and true returned.
pub(crate) async fn find_hindered(
    context: &Context,
    observed: &mut Observed,
    actions: &[Action],
) -> Result<bool, Error> {
    let mut found = false;
    for action in actions {
        match action {
            Action::Begin { machine, .. } => {
                if let Some(guest) = observed.guest_mut(machine)
                    && let Some(problem) = cloud_init::problem_of_move(context, &guest.domain).await?
                {
                    guest.to_move = Err(problem);
                    found = true;
                }
            }
            Action::Stop { machine, .. } => {
                if let Some(guest) = observed.guest_mut(machine)
                    && let Some(machine) = &guest.machine
                    && let Some(problem) = cloud_init::problem(context, machine).await?
                {
                    guest.to_start = Err(problem);
                    found = true;
                }
            }
            Action::Withdraw { .. } => {}
        }
    }
    Ok(found)
}

fn guest(view: &View, domain: &Arc<Domain>, records: &[Arc<VirtualMachineMigration>]) -> Guest {
    let owner = &domain.spec.virtual_machine;
    let key = Key::new(&owner.namespace, &owner.name);
    let machine = view.machines.get(&key).filter(|machine| uid(&**machine) == owner.uid);
    let of_machine = view.domains_of_machine(&key).into_iter();
    let (full, _) = migration::whereabouts(
        of_machine.filter(|other| other.spec.virtual_machine.uid == owner.uid).collect(),
    );
    let moves = |record: &VirtualMachineMigration| {
        record.metadata.namespace.as_ref() == Some(&key.namespace) && record.spec.virtual_machine == key.name
    };
    let record = records.iter().find(|record| moves(record)).cloned();
    let other_move = view
        .migrations_of_machine
        .read(&key, |migration| view.migrations.get(migration))
        .into_iter()
        .filter(|other| record.as_ref().is_none_or(|record| uid(&**record) != uid(&**other)))
        .find(|other| {
            !other.status.as_ref().and_then(|status| status.phase).is_some_and(MigrationPhase::is_final)
        })
        .map(|other| Key::of(&*other).name);
    let resolved = match &machine {
        Some(machine) => references::resolve(view, machine).map(|resolved| (Arc::clone(machine), resolved)),
        None => Err(Problem::Malformed { field: "spec.virtualMachine", value: key.to_string() }),
    };
    Guest {
        is_here: full.iter().any(|other| Key::of(&**other) == Key::of(&**domain)),
        sends: movable::sends(view, domain),
        to_move: resolved
            .as_ref()
            .map_err(Clone::clone)
            .map(|(machine, resolved)| scheduler::request_to_move(machine, resolved, &domain.spec.machine)),
        to_start: resolved.map(|(machine, resolved)| scheduler::request_to_start(&machine, &resolved)),
        domain: Arc::clone(domain),
        machine,
        record,
        other_move,
        key,
    }
}
