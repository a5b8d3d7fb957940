//! What is said of a machine.

use super::{
    problem::Problem,
    protection,
    suspension::is_resumed,
    synchronized::{self, Synchronized},
};
use crate::{migration, view::is_deleting};
use jiff::Timestamp;
use kube::Resource;
use kubexen_crds::{
    ByteQuantity, Domain, GuestStatus, MigrationRole, VirtualMachine, VirtualMachineStatus,
    condition::{self, State, Wanted, find},
    domain::{DomainPhase, DomainPowerState, DomainStatus},
    virtual_machine::{DomainReference, InterfaceStatus, Phase, Suspended},
};
use kubexen_runtime::{Key, events::Severity};

/// What is to be said of a machine, without what only its present status knows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report {
    pub(crate) phase: Phase,
    pub(crate) placed: Option<Placed>,
    pub(crate) memory: SavedMemory,
    pub(crate) conditions: Vec<Wanted>,
}

/// What is known of a saved guest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SavedMemory {
    /// What was known before.
    AsBefore,
    /// This.
    Saved(Box<Suspended>),
    /// There is none.
    None,
}

/// Where a machine is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placed {
    host: String,
    domain: DomainReference,
    owner_token: Option<i64>,
    interfaces: Vec<InterfaceStatus>,
    cpus: Option<i32>,
    memory: Option<ByteQuantity>,
    guest: Option<GuestStatus>,
    /// Whether the guest came from another host, where it said what it has not said here yet.
    moved_here: bool,
}

fn ready(state: State, reason: &'static str, message: impl Into<String>) -> Wanted {
    Wanted::new("Ready", state, reason, message)
}

fn scheduled(state: State, reason: &'static str, message: impl Into<String>) -> Wanted {
    Wanted::new("Scheduled", state, reason, message)
}

fn stalled(reason: &'static str, message: impl Into<String>) -> Wanted {
    Wanted::new("Stalled", State::True, reason, message)
}

/// It is off, as it is to be.
pub(crate) fn halted() -> Report {
    Report {
        phase: Phase::Halted,
        placed: None,
        memory: SavedMemory::None,
        conditions: vec![ready(State::True, "Halted", "the machine is off, as `spec.powerState` asks for")],
    }
}

/// Its guest is saved, as it is to be; told for the first time with what it was made of.
pub(crate) fn suspended(newly: Option<Suspended>) -> Report {
    let message = "the guest is saved, and goes on when `spec.powerState` is set to Running";
    Report {
        phase: Phase::Suspended,
        placed: None,
        memory: newly.map_or(SavedMemory::AsBefore, |suspended| SavedMemory::Saved(Box::new(suspended))),
        conditions: vec![ready(State::True, "Suspended", message)],
    }
}

/// It is to be suspended, and is off.
pub(crate) fn nothing_to_suspend() -> Report {
    let message =
        "the machine is off, so there is no guest to suspend: set `spec.powerState` to Running to start it";
    Report {
        phase: Phase::Halted,
        placed: None,
        memory: SavedMemory::None,
        conditions: vec![ready(State::True, "NothingToSuspend", message)],
    }
}

/// It has no host yet.
pub(crate) fn waiting_for_host() -> Report {
    Report {
        phase: Phase::Scheduling,
        placed: None,
        memory: SavedMemory::AsBefore,
        conditions: vec![
            ready(State::False, "Scheduling", "a host is being looked for"),
            scheduled(State::False, "Scheduling", "a host is being looked for"),
        ],
    }
}

/// No host fits.
pub(crate) fn unschedulable(why: &str) -> Report {
    Report {
        phase: Phase::Scheduling,
        placed: None,
        memory: SavedMemory::AsBefore,
        conditions: vec![
            ready(State::False, "Unschedulable", why),
            scheduled(State::False, "Unschedulable", why),
        ],
    }
}

/// Something that it needs is not there.
pub(crate) fn pending(problem: &Problem) -> Report {
    let (reason, message) = (problem.reason(), problem.message());
    let mut conditions =
        vec![ready(State::False, reason, message.clone()), scheduled(State::False, reason, message.clone())];
    if problem.is_terminal() {
        conditions.push(stalled(reason, message));
    }
    Report { phase: Phase::Pending, placed: None, memory: SavedMemory::AsBefore, conditions }
}

/// An earlier machine of its name is not gone.
pub(crate) fn predecessor_stopping(predecessor: &Key) -> Report {
    let message = format!("an earlier machine of this name is still being stopped: Domain {predecessor}");
    Report {
        phase: Phase::Pending,
        placed: None,
        memory: SavedMemory::AsBefore,
        conditions: vec![
            ready(State::False, "PredecessorStopping", message.clone()),
            scheduled(State::False, "PredecessorStopping", message),
        ],
    }
}

/// Its Domain is being deleted.
pub(crate) fn stopping(domain: &Domain, host_ready: bool, why: &str) -> Report {
    let placed = placed(domain);
    if !host_ready {
        return silent(placed);
    }
    let conditions = vec![
        ready(State::False, "Stopping", format!("host {} is stopping the guest: {why}", placed.host)),
        placed_condition(&placed),
    ];
    Report { phase: Phase::Stopping, placed: Some(placed), memory: SavedMemory::AsBefore, conditions }
}

/// Its host does not answer.
fn silent(placed: Placed) -> Report {
    let message = format!(
        "host {} does not report, so nobody knows whether the guest runs; it is not started elsewhere",
        placed.host
    );
    let conditions = vec![ready(State::Unknown, "HostSilent", message), placed_condition(&placed)];
    Report { phase: Phase::Unknown, placed: Some(placed), memory: SavedMemory::AsBefore, conditions }
}

/// Its host is dead, and for this reason it is not started elsewhere yet.
pub(crate) fn lost(domain: Option<&Domain>, host: &str, reason: &'static str, why: &str) -> Report {
    let message = format!("host {host} is taken for dead: {why}");
    let placed = domain.map(placed);
    let mut conditions = vec![ready(State::Unknown, reason, message.clone())];
    conditions.push(match &placed {
        Some(placed) => placed_condition(placed),
        None => scheduled(State::False, reason, message),
    });
    Report { phase: Phase::Unknown, placed, memory: SavedMemory::AsBefore, conditions }
}

/// It has a Domain.
pub(crate) fn of_domain(
    domain: &Domain,
    host: &str,
    host_ready: bool,
    synchronized: &Synchronized,
) -> Report {
    let placed = placed(domain);
    if !host_ready {
        let mut report = silent(placed);
        report.conditions.push(synchronized.condition(domain));
        return report;
    }
    let (phase, ready) = condition_of_domain(domain, host);
    let mut conditions = vec![placed_condition(&placed), synchronized.condition(domain)];
    conditions.extend(stalled_by_agent(domain));
    if phase == Phase::Failed && ready.reason == "Preserved" {
        conditions.push(stalled("Preserved", ready.message.clone()));
    }
    conditions.push(ready);
    let memory = match domain.spec.saved_state.is_none() && is_resumed(domain) {
        true => SavedMemory::None,
        false => SavedMemory::AsBefore,
    };
    Report { phase, placed: Some(placed), memory, conditions }
}

/// It is to be suspended and cannot be.
pub(crate) fn not_suspended(
    domain: &Domain,
    host: &str,
    host_ready: bool,
    reason: &'static str,
    message: String,
) -> Report {
    let mut report = of_domain(domain, host, host_ready, &Synchronized::AsTheHostSays);
    if host_ready {
        report.conditions.retain(|condition| condition.type_ != "Ready");
        report.conditions.push(ready(State::False, reason, message));
    }
    report
}

fn condition_of_domain(domain: &Domain, host: &str) -> (Phase, Wanted) {
    let not_yet = |phase, reason, message: String| (phase, ready(State::False, reason, message));
    let starting = || match domain.spec.saved_state {
        None => not_yet(Phase::Starting, "Starting", format!("host {host} is starting the guest")),
        Some(_) => not_yet(Phase::Starting, "Resuming", format!("host {host} is resuming the guest")),
    };
    let Some(status) = domain.status.as_ref() else { return starting() };
    let outdated = status.observed_generation != domain.meta().generation;
    let restarting =
        domain.spec.restart_requested.is_some() && domain.spec.restart_requested != status.restart_handled;
    let leaving =
        migration::under_way(domain).is_some_and(|migration| migration.role == MigrationRole::Source);
    let said = agent_message(status);
    match status.phase {
        _ if domain.spec.power_state == DomainPowerState::Suspended
            && status.phase != Some(DomainPhase::Stopping) =>
        {
            let failed =
                find(&status.conditions, "Ready").filter(|ready| ready.status != State::True.as_str());
            let message = failed
                .filter(|_| status.observed_generation == domain.meta().generation)
                .map_or_else(|| format!("host {host} is saving the guest"), |ready| ready.message.clone());
            not_yet(Phase::Running, "Suspending", message)
        }
        None => starting(),
        Some(DomainPhase::Pending) => not_yet(
            Phase::Starting,
            "Starting",
            said.unwrap_or_else(|| format!("host {host} is starting the guest")),
        ),
        Some(DomainPhase::Failed) => not_yet(
            Phase::Failed,
            "StartFailed",
            said.unwrap_or_else(|| format!("host {host} cannot start the guest and tries again")),
        ),
        Some(DomainPhase::Stopping) => {
            not_yet(Phase::Stopping, "Stopping", format!("host {host} is stopping the guest"))
        }
        Some(DomainPhase::Preserved) => not_yet(
            Phase::Failed,
            "Preserved",
            "the guest crashed and its memory is kept for inspection: restart the machine, or delete it"
                .to_owned(),
        ),
        Some(DomainPhase::Running | DomainPhase::Paused | DomainPhase::Halted) if restarting => {
            not_yet(Phase::Starting, "Restarting", format!("host {host} is restarting the guest"))
        }
        Some(DomainPhase::Halted) => (
            Phase::Halted,
            ready(
                State::True,
                "StoppedByGuest",
                "the guest stopped by itself and `spec.lifecycle` leaves it so: restart the machine to start it",
            ),
        ),
        Some(DomainPhase::Running) => match domain.spec.power_state {
            DomainPowerState::Paused => {
                not_yet(Phase::Running, "Pausing", format!("host {host} is pausing the guest"))
            }
            DomainPowerState::Running if leaving => {
                (Phase::Migrating, ready(State::True, "Running", format!("the guest runs on host {host}")))
            }
            DomainPowerState::Running if outdated => {
                not_yet(Phase::Running, "Applying", format!("host {host} is applying a change"))
            }
            DomainPowerState::Running | DomainPowerState::Suspended => {
                (Phase::Running, ready(State::True, "Running", format!("the guest runs on host {host}")))
            }
        },
        // A Domain of which the agent says so is not what the machine is judged by, but for a moment.
        Some(DomainPhase::Receiving | DomainPhase::Departed) => not_yet(
            Phase::Migrating,
            "Migrating",
            said.unwrap_or_else(|| format!("the guest is on its way from or to host {host}")),
        ),
        Some(DomainPhase::Suspended) => {
            not_yet(Phase::Starting, "Resuming", format!("host {host} is resuming the guest"))
        }
        Some(DomainPhase::Paused) => match domain.spec.power_state {
            DomainPowerState::Running | DomainPowerState::Suspended => {
                not_yet(Phase::Paused, "Resuming", format!("host {host} is resuming the guest"))
            }
            DomainPowerState::Paused if outdated => {
                not_yet(Phase::Paused, "Applying", format!("host {host} is applying a change"))
            }
            DomainPowerState::Paused => {
                (Phase::Paused, ready(State::True, "Paused", format!("the guest is paused on host {host}")))
            }
        },
    }
}

fn agent_message(status: &DomainStatus) -> Option<String> {
    find(&status.conditions, "Ready").map(|ready| ready.message.clone()).filter(|message| !message.is_empty())
}

fn stalled_by_agent(domain: &Domain) -> Option<Wanted> {
    let conditions = domain.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    find(conditions, "Stalled")
        .filter(|condition| condition.status == State::True.as_str())
        .map(|condition| stalled("DomainStalled", condition.message.clone()))
}

fn placed_condition(placed: &Placed) -> Wanted {
    scheduled(State::True, "Scheduled", format!("placed on host {}", placed.host))
}

fn placed(domain: &Domain) -> Placed {
    let meta = domain.meta();
    let status = domain.status.as_ref();
    Placed {
        host: super::observe::host_of(domain).unwrap_or_default().to_owned(),
        domain: DomainReference {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            domid: status.and_then(|status| status.domid),
        },
        owner_token: status.and_then(|status| status.owner_token),
        guest: status.and_then(|status| status.guest.clone()),
        moved_here: domain
            .spec
            .migration
            .as_ref()
            .is_some_and(|part| part.role == MigrationRole::Destination),
        interfaces: domain
            .spec
            .machine
            .interfaces
            .iter()
            .map(|interface| InterfaceStatus { name: interface.name.clone(), mac: interface.mac.clone() })
            .collect(),
        cpus: status.and_then(|status| status.cpus),
        memory: status.and_then(|status| status.memory.clone()),
    }
}

/// The status of a machine of which this is to be said.
///
/// The ownership token never goes back, and hardware addresses are remembered while the machine is off. What the guest
/// said on another host stands until it says something here, which its agent may take its time for.
pub(crate) fn render(machine: &VirtualMachine, report: &Report, now: Timestamp) -> VirtualMachineStatus {
    let before = machine.status.clone().unwrap_or_default();
    let generation = machine.metadata.generation;
    let Report { phase, placed, memory, conditions } = report.clone();
    let conditions = condition::set(&before.conditions, conditions, generation, now);
    let status = VirtualMachineStatus {
        observed_generation: generation,
        phase: Some(phase),
        conditions,
        owner_token: before.owner_token,
        interfaces: before.interfaces,
        guest: None,
        host: None,
        domain: None,
        cpus: None,
        memory: None,
        suspended: match memory {
            SavedMemory::AsBefore => before.suspended,
            SavedMemory::Saved(suspended) => Some(*suspended),
            SavedMemory::None => None,
        },
        recovery: before.recovery,
    };
    match placed {
        None => status,
        Some(Placed { host, domain, owner_token, interfaces, cpus, memory, guest, moved_here }) => {
            VirtualMachineStatus {
                cpus,
                memory,
                guest: guest.or(before.guest.filter(|_| moved_here && is_on(phase))),
                host: Some(host),
                domain: Some(domain),
                owner_token: owner_token.max(status.owner_token),
                interfaces,
                ..status
            }
        }
    }
}

/// Whether the guest is in memory.
fn is_on(phase: Phase) -> bool {
    match phase {
        Phase::Running | Phase::Paused | Phase::Migrating => true,
        Phase::Pending
        | Phase::Scheduling
        | Phase::Starting
        | Phase::Stopping
        | Phase::Suspended
        | Phase::Halted
        | Phase::Failed
        | Phase::Unknown => false,
    }
}

/// Something that happened to a machine, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Happening {
    pub(crate) severity: Severity,
    pub(crate) reason: &'static str,
    pub(crate) note: String,
}

/// What happened between two states of a machine.
pub(crate) fn happenings(machine: &VirtualMachine, report: &Report) -> Vec<Happening> {
    let before = machine.status.as_ref();
    let phase_before = before.and_then(|status| status.phase);
    let mut happenings = Vec::new();
    let mut tell = |severity, reason, note: String| happenings.push(Happening { severity, reason, note });
    let host_before = before.and_then(|status| status.host.as_deref());
    if let Some(placed) = report.placed.as_ref().filter(|placed| host_before != Some(placed.host.as_str()))
        && !is_deleting(machine)
    {
        tell(Severity::Normal, "Scheduled", format!("placed on host {}", placed.host));
    }
    if let Some((severity, reason, note)) = synchronized::happening(before, report.phase, &report.conditions)
    {
        tell(severity, reason, note);
    }
    if let Some((severity, reason, note)) = protection::happening(before, &report.conditions) {
        tell(severity, reason, note);
    }
    let Some(ready) = report.conditions.iter().find(|condition| condition.type_ == "Ready") else {
        return happenings;
    };
    let reason_before =
        before.and_then(|status| find(&status.conditions, "Ready")).map(|ready| ready.reason.as_str());
    if phase_before == Some(report.phase) && reason_before == Some(ready.reason) {
        return happenings;
    }
    let note = || ready.message.clone();
    match report.phase {
        Phase::Running if ready.state == State::True => {
            let reason = match phase_before {
                Some(Phase::Paused) => "Resumed",
                Some(Phase::Unknown) => "HostReturned",
                Some(Phase::Migrating) => return happenings,
                _ => "Started",
            };
            if reason_before != Some("Applying") {
                tell(Severity::Normal, reason, note());
            }
        }
        Phase::Paused if ready.state == State::True => tell(Severity::Normal, "Paused", note()),
        Phase::Halted => tell(Severity::Normal, "Halted", note()),
        Phase::Suspended => tell(Severity::Normal, "Suspended", note()),
        Phase::Pending | Phase::Failed | Phase::Unknown => tell(Severity::Warning, ready.reason, note()),
        Phase::Scheduling if ready.reason == "Unschedulable" => {
            tell(Severity::Warning, "Unschedulable", note())
        }
        Phase::Stopping if phase_before != Some(Phase::Stopping) => {
            tell(Severity::Normal, "Stopping", note())
        }
        Phase::Scheduling
        | Phase::Starting
        | Phase::Running
        | Phase::Paused
        | Phase::Migrating
        | Phase::Stopping => {}
    }
    happenings
}
