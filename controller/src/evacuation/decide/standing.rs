//! How one guest of a host in maintenance stands, before anything is placed.

use super::super::{
    observe::{Guest, Observed},
    status::Step,
};
use crate::{
    migration::{Cause, movable, under_way},
    view::is_deleting,
    virtual_machine::problem::Problem,
};
use jiff::Timestamp;
use kubexen_crds::{
    Domain, EvacuationAction, MigrationPhase, MigrationRole, VirtualMachineMigration,
    condition::find,
    domain::DomainPhase,
    names::EVACUATION_ATTEMPT,
    virtual_machine::{OnMaintenance, PowerState},
};
use std::{fmt::Display, time::Duration};

/// After so many failures in a row a guest counts as one that cannot move, unless its policy is to wait.
const ATTEMPTS: u32 = 3;
/// Wait after the first failure; it doubles with each, up to [`LONGEST_BACKOFF`].
const SHORTEST_BACKOFF: Duration = Duration::from_secs(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);

/// How a guest stands.
#[derive(Debug)]
pub(super) enum Standing {
    /// There is nothing to decide about it.
    Known {
        action: EvacuationAction,
        destination: Option<String>,
        reason: String,
        message: Option<String>,
        /// When that changes by itself.
        again: Option<Duration>,
    },
    /// It can go to any host that fits.
    Free {
        /// Which try it would be.
        attempt: u32,
        /// Where the last one failed.
        avoid: Option<String>,
    },
    /// It cannot move while it runs.
    Hindered(Hindrance),
}

/// What stands in the way of a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hindrance {
    /// One CamelCase word.
    pub(crate) reason: String,
    /// In words.
    pub(crate) message: String,
}

impl Hindrance {
    fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }

    pub(super) fn of(cause: &Cause) -> Self {
        Self::new(cause.reason(), cause.message())
    }

    pub(super) fn of_problem(problem: &Problem) -> Self {
        Self::new(problem.reason(), problem.message())
    }

    /// It cannot start elsewhere either.
    pub(super) fn nor_start(self, why: impl Display) -> Self {
        let message = format!("{}; nor can it start on another host: {why}", self.message);
        Self { message, ..self }
    }
}

fn known(action: EvacuationAction, reason: &str, message: impl Into<String>) -> Standing {
    let message = Some(message.into());
    Standing::Known { action, destination: None, reason: reason.to_owned(), message, again: None }
}

fn moving(destination: Option<String>, message: impl Into<String>) -> Standing {
    Standing::Known {
        action: EvacuationAction::Migrate,
        destination,
        reason: Step::MOVING.to_owned(),
        message: Some(message.into()),
        again: None,
    }
}

pub(super) fn standing(guest: &Guest, observed: &Observed, now: Timestamp) -> Standing {
    let domain = &*guest.domain;
    if !guest.is_here {
        return match &domain.spec.migration {
            Some(part) if part.role == MigrationRole::Source => {
                moving(Some(part.peer.clone()), "the guest has left; its Domain goes")
            }
            Some(_) | None => known(
                EvacuationAction::Wait,
                "Arriving",
                "it was on its way here before the maintenance began, and moves on when it has come",
            ),
        };
    }
    let wanted = guest.machine.as_deref().filter(|machine| {
        let wanted_on = match machine.spec.power_state {
            PowerState::Running | PowerState::Paused => true,
            PowerState::Halted | PowerState::Suspended => false,
        };
        wanted_on && !is_deleting(*machine)
    });
    let machine = match (wanted, is_deleting(domain)) {
        (Some(_), true) => {
            let why = "it is being shut down, and starts on another host then";
            return known(EvacuationAction::Restart, Step::STOPPING, why);
        }
        (None, _) => return known(EvacuationAction::Wait, Step::STOPPING, "it is being shut down"),
        (Some(machine), false) => machine,
    };
    if is_off(domain) {
        let why = "the guest has stopped by itself; it starts on another host when it is restarted";
        return known(EvacuationAction::Leave, "StoppedByGuest", why);
    }
    if let Some(standing) = on_its_way(guest) {
        return standing;
    }
    if observed.fenced {
        let why = "this boot of the host is dead for good, so the guest leaves it only by being started on another host";
        return known(EvacuationAction::Wait, "HostFenced", why);
    }
    if !observed.reports {
        let why = "the host's agent does not report, so nobody knows whether the guest runs";
        return known(EvacuationAction::Wait, "HostSilent", why);
    }
    if let Some(standing) = not_running(domain, machine.spec.power_state) {
        return standing;
    }
    match movable::obstacle(machine, Some(domain), &guest.sends) {
        Some(cause) => Standing::Hindered(Hindrance::of(&cause)),
        None => after_earlier_tries(guest, now),
    }
}

/// Whether the guest stopped by itself, is to stay so, and nobody has asked for a restart.
pub(crate) fn is_off(domain: &Domain) -> bool {
    domain.status.as_ref().is_some_and(|status| {
        status.phase == Some(DomainPhase::Halted)
            && status.observed_generation == domain.metadata.generation
            && domain.spec.restart_requested == status.restart_handled
    })
}

fn phase(domain: &Domain) -> Option<DomainPhase> {
    domain.status.as_ref().and_then(|status| status.phase)
}

/// A move of the guest that is not over.
fn on_its_way(guest: &Guest) -> Option<Standing> {
    if let Some(part) = under_way(&guest.domain).filter(|part| part.role == MigrationRole::Source) {
        return Some(moving(Some(part.peer.clone()), format!("by VirtualMachineMigration {}", part.name)));
    }
    if let Some(record) = guest.record.as_deref().filter(|record| !is_over(record))
        && idle_record(guest).is_none()
    {
        let status = record.status.as_ref();
        let destination = status.and_then(|status| status.destination.clone());
        let name = record.metadata.name.as_deref().unwrap_or_default();
        return Some(moving(
            destination.or(record.spec.host.clone()),
            format!("by VirtualMachineMigration {name}"),
        ));
    }
    // A move that others asked for goes first, if it can.
    let other = guest.other_move.as_ref().filter(|_| phase(&guest.domain) == Some(DomainPhase::Running))?;
    Some(moving(None, format!("by VirtualMachineMigration {other}")))
}

fn is_over(record: &VirtualMachineMigration) -> bool {
    record.status.as_ref().and_then(|status| status.phase).is_some_and(MigrationPhase::is_final)
}

/// The migration that was made for the guest and waits for it to run. By then another host may suit better, so it is made anew.
pub(super) fn idle_record(guest: &Guest) -> Option<&VirtualMachineMigration> {
    let record = guest.record.as_deref().filter(|record| !is_over(record))?;
    let waits = match record.status.as_ref().and_then(|status| status.phase) {
        None | Some(MigrationPhase::Pending) => true,
        Some(
            MigrationPhase::Preparing
            | MigrationPhase::Copying
            | MigrationPhase::Succeeded
            | MigrationPhase::Failed
            | MigrationPhase::Cancelled,
        ) => false,
    };
    (waits && phase(&guest.domain) != Some(DomainPhase::Running)).then_some(record)
}

/// A guest that does not run: it will in a moment, or cannot be started here.
fn not_running(domain: &Domain, wanted: PowerState) -> Option<Standing> {
    let in_a_moment = || {
        let why = "the guest does not run yet; it moves when it does";
        Some(known(EvacuationAction::Wait, "NotRunningYet", why))
    };
    match phase(domain) {
        None
        | Some(
            DomainPhase::Pending
            | DomainPhase::Suspended
            | DomainPhase::Stopping
            | DomainPhase::Receiving
            | DomainPhase::Departed,
        ) => in_a_moment(),
        Some(DomainPhase::Paused) if wanted == PowerState::Running => in_a_moment(),
        // One that is off, and is to be so, does not get here.
        Some(DomainPhase::Halted) => in_a_moment(),
        Some(DomainPhase::Failed) => {
            let conditions = domain.status.as_ref().map(|status| status.conditions.as_slice());
            let said = find(conditions.unwrap_or_default(), "Ready").map(|ready| ready.message.clone());
            let why = said.unwrap_or_else(|| "the host cannot start the guest".to_owned());
            Some(Standing::Hindered(Hindrance::new("StartFailed", why)))
        }
        Some(DomainPhase::Running | DomainPhase::Paused | DomainPhase::Preserved) => None,
    }
}

/// A guest that can move, as far as earlier moves that failed allow.
fn after_earlier_tries(guest: &Guest, now: Timestamp) -> Standing {
    let first = Standing::Free { attempt: 1, avoid: None };
    let Some(record) = guest.record.as_deref() else { return first };
    let Some(status) = record.status.as_ref() else { return first };
    match status.phase {
        Some(MigrationPhase::Failed | MigrationPhase::Cancelled) => {}
        Some(
            MigrationPhase::Pending
            | MigrationPhase::Preparing
            | MigrationPhase::Copying
            | MigrationPhase::Succeeded,
        )
        | None => return first,
    }
    let attempt = attempt_of(record);
    let said = find(&status.conditions, "Succeeded");
    let message = said.map(|said| said.message.clone()).unwrap_or_default();
    match guest.domain.spec.lifecycle.on_maintenance {
        OnMaintenance::Restart | OnMaintenance::Leave if attempt >= ATTEMPTS => {
            let reason = said.map_or("Failed", |said| said.reason.as_str());
            return Standing::Hindered(Hindrance::new(reason, message));
        }
        OnMaintenance::Wait | OnMaintenance::Restart | OnMaintenance::Leave => {}
    }
    let backoff = SHORTEST_BACKOFF.saturating_mul(1 << (attempt - 1).min(8)).min(LONGEST_BACKOFF);
    let ended = status.finished_at.as_ref().map(|ended| ended.0);
    let created = record.metadata.creation_timestamp.as_ref().map(|created| created.0);
    // A clock that ran ahead dates the end into the future; the API server's own does not.
    let since = [ended, created].into_iter().flatten().find(|moment| *moment <= now);
    let due = since.and_then(|moment| moment.checked_add(backoff).ok()).unwrap_or(now);
    match Duration::try_from(due.duration_since(now)) {
        Ok(left) if !left.is_zero() => Standing::Known {
            action: EvacuationAction::Migrate,
            destination: None,
            reason: "Retrying".to_owned(),
            message: Some(format!("try {attempt} failed, the next one is at {due}: {message}")),
            again: Some(left),
        },
        Ok(_) | Err(_) => {
            Standing::Free { attempt: attempt.saturating_add(1), avoid: status.destination.clone() }
        }
    }
}

/// Which try a record is of.
fn attempt_of(record: &VirtualMachineMigration) -> u32 {
    let annotations = record.metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get(EVACUATION_ATTEMPT)?.parse().ok())
        .filter(|attempt| *attempt > 0)
        .unwrap_or(1)
}
