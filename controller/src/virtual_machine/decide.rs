//! The whole policy of a virtual machine, pure.

use super::{
    cloud_init,
    live::{self, Surroundings},
    observe::{Observed, host_of},
    problem::Problem,
    protection, recovery,
    status::{self, Report},
    suspension,
    synchronized::Synchronized,
};
use crate::{
    evacuation,
    recovery::Loss,
    scheduler::Answer,
    view::{has_finalizer, is_deleting, uid},
};
use kubexen_crds::{
    ByteQuantity, Domain, RestartPriority, VirtualMachine,
    domain::{DomainPowerState, Machine, SavedState},
    names::RESTART_REQUESTED_AT,
    virtual_machine::{Lifecycle, Phase, PowerState},
};
use kubexen_runtime::Key;
use std::{sync::Arc, time::Duration};

/// When to look again whether there is room for a change.
const ROOM_LOOK: Duration = Duration::from_secs(30);
/// How long a move may take before the machine says that it is on its way.
const QUIET: Duration = Duration::from_secs(10);

/// What is to be done about a machine, and what is to be said of it then.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// What to do, in this order.
    pub(crate) actions: Vec<Action>,
    /// What the status is to say; none leaves it as it is.
    pub(crate) report: Option<Report>,
    /// Whether the machine keeps its place at the scheduler.
    pub(crate) waits_for_host: bool,
    /// When to look again even if nothing changes.
    pub(crate) again: Option<Duration>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Put the controller's finalizer on the machine.
    AddFinalizer,
    /// See by a linearizable read that no Domain of the machine is left; if one is, do nothing else.
    ConfirmGone,
    /// Take the finalizer off.
    RemoveFinalizer,
    /// Have the scheduler find a host.
    AskForHost,
    /// Make the Volumes that are missing, and the Domain, on the host that the scheduler has chosen.
    Start {
        /// The host.
        host: String,
    },
    /// Give a machine whose host is dead to another host in the pool's store, unless that was done before; then remove its
    /// Domain on the dead host, and make one on the host that has it.
    Recover {
        /// What happened to it.
        loss: Loss,
        /// The host, unless another has it already.
        to: String,
    },
    /// Give the host of a Domain what the guest's seed is made of.
    CopyUserData {
        /// The Domain.
        domain: Key,
    },
    /// Make the Volumes of disks on the host of the Domain that is to have them.
    MakeVolumes {
        /// The host.
        host: String,
        /// The VirtualDisks.
        disks: Vec<Key>,
    },
    /// Change a Domain's spec.
    Adjust {
        /// The Domain.
        domain: Key,
        /// What to change.
        change: Adjustment,
    },
    /// Delete a Domain.
    DeleteDomain {
        /// The Domain.
        domain: Key,
        /// Its uid, so that no other of its name is meant.
        uid: String,
    },
    /// Delete a Domain if it is as it was seen: nobody has told it to do something else meanwhile.
    DeleteUnchanged(Key),
    /// Make the disk that the guest is saved to.
    MakeStateDisk {
        /// The repository.
        repository: String,
        /// Its size.
        size: ByteQuantity,
    },
    /// See by linearizable reads that what the disk of a saved guest holds is of no use any more, and delete it.
    DiscardState(Key),
    /// Of several Domains leave one.
    SettleDuplicates {
        /// All of them.
        domains: Vec<Key>,
    },
}

/// A change of a Domain's spec.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Adjustment {
    /// The new power state.
    pub(crate) power_state: Option<DomainPowerState>,
    /// The new lifecycle.
    pub(crate) lifecycle: Option<Lifecycle>,
    /// Whether it is protected now.
    pub(crate) protected: Option<bool>,
    /// The new request for a restart.
    pub(crate) restart_requested: Option<String>,
    /// What it is made of now.
    pub(crate) machine: Option<Box<Machine>>,
    /// Where its guest is saved now: nowhere, if there is none in it.
    pub(crate) saved_state: Option<Option<SavedState>>,
}

impl Plan {
    pub(super) fn act(action: Action) -> Self {
        Self { actions: vec![action], ..Self::default() }
    }

    pub(super) fn say(report: Report) -> Self {
        Self { report: Some(report), ..Self::default() }
    }

    pub(super) fn keeping_place(self) -> Self {
        Self { waits_for_host: true, ..self }
    }
}

/// What to do about a machine.
pub(crate) fn decide(observed: &Observed) -> Plan {
    let machine = &*observed.machine;
    let mut plan = match (is_deleting(machine), has_finalizer(machine)) {
        (true, false) => Plan::default(),
        (false, false) => Plan::act(Action::AddFinalizer),
        (true, true) => let_go(observed),
        (false, true) => match machine.spec.power_state {
            PowerState::Halted => halt(observed),
            PowerState::Suspended => suspension::suspend(observed),
            PowerState::Running | PowerState::Paused => run(observed),
        },
    };
    if let Some(report) = &mut plan.report
        && !is_deleting(machine)
    {
        report.conditions.extend(observed.protection.clone());
    }
    plan
}

/// The machine is being deleted.
fn let_go(observed: &Observed) -> Plan {
    if observed.domains.is_empty() && observed.empty_domains.is_empty() {
        let discard = observed.discard();
        let actions = [Action::ConfirmGone].into_iter().chain(discard).chain([Action::RemoveFinalizer]);
        return Plan { actions: actions.collect(), ..Plan::default() };
    }
    stop(observed, "the machine is being deleted")
}

/// The machine is to be off.
fn halt(observed: &Observed) -> Plan {
    if observed.domains.is_empty() && observed.empty_domains.is_empty() {
        let actions = confirmation(observed).into_iter().chain(observed.discard()).collect();
        return Plan { actions, ..Plan::say(status::halted()) };
    }
    stop(observed, "the machine is to be halted")
}

/// Deletes every Domain that is not being deleted yet.
fn stop(observed: &Observed, why: &str) -> Plan {
    let all = observed.domains.iter().chain(&observed.empty_domains);
    let actions = all.clone().filter(|domain| !is_deleting(&***domain)).map(deletion).collect();
    let report = all.clone().next().map(|domain| status::stopping(domain, observed.host_ready, why));
    Plan { actions, report, ..Plan::default() }
}

pub(super) fn deletion(domain: &Arc<Domain>) -> Action {
    Action::DeleteDomain { domain: Key::of(&**domain), uid: uid(&**domain).to_owned() }
}

/// A machine that had a Domain is only said to have none after a linearizable read.
fn confirmation(observed: &Observed) -> Vec<Action> {
    let had_one = observed.machine.status.as_ref().is_some_and(|status| status.domain.is_some());
    if had_one { vec![Action::ConfirmGone] } else { Vec::new() }
}

/// The machine is to be on.
fn run(observed: &Observed) -> Plan {
    if let Some(plan) = recovery::recover(observed) {
        return plan;
    }
    let live: Vec<_> = observed.domains.iter().filter(|domain| !is_deleting(&***domain)).collect();
    match live.as_slice() {
        [] => match observed.domains.first().or(observed.empty_domains.first()) {
            Some(leaving) => Plan::say(status::stopping(
                leaving,
                observed.host_ready,
                "the machine starts again afterwards",
            )),
            None => start(observed),
        },
        [domain] if suspension::is_overtaken(observed, domain) => suspension::give_way(observed, domain),
        [domain] => keep(observed, domain),
        [_, _, ..] => Plan::act(Action::SettleDuplicates {
            domains: live.iter().map(|domain| Key::of(&***domain)).collect(),
        }),
    }
}

/// No Domain: the machine has to be placed.
fn start(observed: &Observed) -> Plan {
    let confirmation = confirmation(observed);
    if !confirmation.is_empty() {
        return Plan { actions: confirmation, ..Plan::say(status::waiting_for_host()) };
    }
    if let Some(predecessor) = observed.predecessors.first() {
        return Plan::say(status::predecessor_stopping(predecessor));
    }
    match (&observed.references, &observed.answer) {
        (Err(Problem::DiskNew), _) => Plan::default(),
        (Err(problem), _) => Plan { again: problem.again(), ..Plan::say(status::pending(problem)) },
        (Ok(_), None) => Plan::act(Action::AskForHost).keeping_place(),
        (Ok(_), Some(Answer::Waiting)) => Plan::default().keeping_place(),
        (Ok(_), Some(Answer::Rejected(why))) => Plan::say(status::unschedulable(why)).keeping_place(),
        (Ok(_), Some(Answer::Assigned(host))) => {
            Plan::act(Action::Start { host: host.clone() }).keeping_place()
        }
    }
}

/// One Domain: it follows the machine as far as a running guest can.
pub(super) fn keep(observed: &Observed, domain: &Arc<Domain>) -> Plan {
    let machine = &*observed.machine;
    let problem = observed.references.as_ref().err();
    let around = Surroundings { host: host_of(domain).unwrap_or_default(), room: observed.room.as_ref() };
    let wanted = observed.references.as_ref().ok().or(observed.references_in_part.as_ref());
    let change = wanted.map(|wanted| live::change(&machine.spec, wanted, domain, &around));
    let same_build = wanted.is_some_and(|wanted| {
        let (wanted, present) = (&wanted.machine, &domain.spec.machine);
        let build = |machine: &Machine| {
            (machine.max_cpus, machine.max_memory.bytes().ok(), machine.cpu_level.clone())
        };
        build(wanted) == build(present)
    });
    let in_place = same_build
        && change.as_ref().is_some_and(|change| change.restart.is_empty() && change.held.is_empty());
    let resumed = suspension::is_resumed(domain);
    let restart = restart_requested(machine)
        .filter(|at| domain.spec.restart_requested.as_ref() != Some(at))
        // A restart may be the end of this Domain, and a guest that is to be suspended gets no other.
        .filter(|_| machine.spec.power_state != PowerState::Suspended)
        .filter(|_| !suspension::is_unrecorded(observed, domain));
    // A guest that is off does not keep its host from being worked on, so it must not start there.
    let starts_elsewhere = observed.host_in_maintenance && evacuation::is_off(domain);
    let restart_in_place = match (&restart, problem) {
        (None, _) => None,
        (Some(at), None) if in_place && !starts_elsewhere => Some(at.clone()),
        (Some(_), None) => {
            let why = match in_place {
                true => "its host is in maintenance: the machine restarts on another",
                false => "the machine restarts with its changed spec",
            };
            return Plan {
                actions: vec![deletion(domain)],
                ..Plan::say(status::stopping(domain, observed.host_ready, why))
            };
        }
        // What the machine would be made of is not known: it restarts when that is mended.
        (Some(_), Some(_)) => None,
    };
    let power_state = domain_power_state(machine.spec.power_state);
    // A guest that is being copied to another host stays as it is until it is there.
    let moves = observed.moves(domain);
    let next = change.as_ref().map(|change| &change.next).filter(|next| **next != domain.spec.machine);
    let guarded = protection::is_to_be_guarded(
        machine,
        &observed.references,
        observed.references_in_part.as_ref(),
        domain.spec.protected,
    );
    let adjustment = Adjustment {
        saved_state: (resumed && domain.spec.saved_state.is_some()).then_some(None),
        power_state: (power_state != domain.spec.power_state).then_some(power_state),
        protected: (guarded != domain.spec.protected).then_some(guarded),
        lifecycle: (machine.spec.lifecycle != domain.spec.lifecycle).then(|| machine.spec.lifecycle.clone()),
        restart_requested: restart_in_place,
        machine: next.filter(|_| !moves).map(|next| Box::new(next.clone())),
    };
    if adjustment != Adjustment::default() {
        let disks = change.filter(|_| !moves).map(|change| change.new_disks).unwrap_or_default();
        let volumes =
            (!disks.is_empty()).then(|| Action::MakeVolumes { host: around.host.to_owned(), disks });
        // A guest that is restarted finds what its owner wrote since.
        let seed = adjustment.restart_requested.is_some() && domain.spec.machine.cloud_init.is_some();
        let seed = seed.then(|| Action::CopyUserData { domain: Key::of(&**domain) });
        let adjust = Action::Adjust { domain: Key::of(&**domain), change: adjustment };
        return Plan {
            actions: volumes.into_iter().chain(seed).chain([adjust]).collect(),
            ..Plan::default()
        };
    }
    if let Some(discard) = observed.discard().filter(|_| resumed) {
        return Plan::act(discard);
    }
    let missing = observed.domains.iter().chain(&observed.empty_domains);
    let missing = missing.filter(|domain| cloud_init::is_missing(domain));
    let copies: Vec<_> = missing.map(|domain| Action::CopyUserData { domain: Key::of(&**domain) }).collect();
    let synchronized = match (problem, change) {
        (Some(problem), _) => Synchronized::Unresolved(problem.clone()),
        (None, Some(change)) if !change.restart.is_empty() => Synchronized::RestartRequired(change.restart),
        (None, Some(change)) if change.next != domain.spec.machine => Synchronized::Moving,
        (None, Some(change)) if !change.held.is_empty() => Synchronized::Held(change.held),
        (None, _) => Synchronized::AsTheHostSays,
    };
    let held = matches!(synchronized, Synchronized::Held(_)).then_some(ROOM_LOOK);
    let again = problem.and_then(Problem::again).or(held);
    let report = status::of_domain(domain, around.host, observed.host_ready, &synchronized);
    match quiet_for(observed, &report) {
        Some(left) => Plan { actions: copies, again: Some(left), ..Plan::default() },
        None => Plan { actions: copies, again, ..Plan::say(report) },
    }
}

/// For how long it is not worth a write yet that a running guest is on its way to another host.
fn quiet_for(observed: &Observed, report: &Report) -> Option<Duration> {
    let status = observed.machine.status.as_ref()?;
    let left = QUIET.saturating_sub(observed.leaving_for?);
    let said_to_run = status.phase == Some(Phase::Running)
        && status.observed_generation == observed.machine.metadata.generation;
    (said_to_run && report.phase == Phase::Migrating && !left.is_zero()).then_some(left)
}

/// The value of the restart annotation.
pub(crate) fn restart_requested(machine: &kubexen_crds::VirtualMachine) -> Option<String> {
    machine.metadata.annotations.as_ref().and_then(|all| all.get(RESTART_REQUESTED_AT)).cloned()
}

/// Whether the machine is to be started elsewhere when its host dies, whatever room that takes.
pub(crate) fn is_protected(machine: &VirtualMachine) -> bool {
    machine.spec.availability.restart_priority == RestartPriority::Protected
}

/// What a Domain is told for a machine that has one.
pub(crate) fn domain_power_state(wanted: PowerState) -> DomainPowerState {
    match wanted {
        PowerState::Paused => DomainPowerState::Paused,
        // A halted machine has no Domain, and one that is to be suspended is told so otherwise.
        PowerState::Running | PowerState::Halted | PowerState::Suspended => DomainPowerState::Running,
    }
}
