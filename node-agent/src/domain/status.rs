//! What is written down of a domain.

use super::{
    ReconcileError,
    decide::{AfterStop, Plan, Waiting, decide},
    moves::Move,
    observe::Observed,
};
use crate::{
    hypervisor::DomainState,
    migration::{Failure, Standing},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kubexen_crds::{
    DomainMigrationStatus, DomainStatus, MigrationRole, MigrationStage,
    condition::{self, State, Wanted},
    domain::{DomainPhase, Stop, StopReason},
};
use std::time::Duration;

const READY: &str = "Ready";

/// Longest message of a failed migration, in characters; the schema allows as many.
const LONGEST_MESSAGE: usize = 1024;

/// The status once nothing is left to do: `plan` is what was decided last, Wait or Settled.
#[must_use]
pub fn settled(seen: &Observed, plan: &Plan, generation: Option<i64>, now: Timestamp) -> DomainStatus {
    let (phase, ready) = phase(seen, plan);
    let conditions = [Some(ready), seen.live.condition(&seen.status, now)].into_iter().flatten().collect();
    let runs = phase == DomainPhase::Running || phase == DomainPhase::Paused;
    let token =
        seen.present.as_ref().and_then(|present| present.token).and_then(|token| i64::try_from(token).ok());
    DomainStatus {
        observed_generation: generation,
        phase: Some(phase),
        domid: seen.present.as_ref().map(|present| i32::from(present.domid.0)),
        owner_token: token.max(seen.status.owner_token),
        restart_handled: if runs && !seen.restart_pending() {
            seen.restart_requested.clone()
        } else {
            seen.status.restart_handled.clone()
        },
        restarts: seen.status.restarts,
        crashes: match plan {
            Plan::Settled if phase == DomainPhase::Running => None,
            _ => seen.status.crashes,
        },
        last_stop: seen.status.last_stop.clone(),
        guest: if is_on(seen) { seen.guest.clone() } else { None },
        migration: awaiting(seen, plan).or_else(|| seen.status.migration.clone()),
        cpus: seen.live.vcpus_online(),
        memory: seen.live.memory(),
        detached: seen.live.detached(),
        conditions: condition::set(&seen.status.conditions, conditions, generation, now),
    }
}

/// Whether the guest is in memory, and not only what it left.
fn is_on(seen: &Observed) -> bool {
    match seen.present.as_ref().map(|present| present.state) {
        Some(DomainState::Running | DomainState::Paused | DomainState::Suspended) => true,
        Some(
            DomainState::HalfBuilt | DomainState::Restored | DomainState::Shutdown(_) | DomainState::Dying,
        )
        | None => false,
    }
}

/// That the destination awaits the guest, if it does.
fn awaiting(seen: &Observed, plan: &Plan) -> Option<DomainMigrationStatus> {
    let part = seen.part.as_ref()?;
    match plan {
        Plan::Wait(Waiting::Move(MigrationRole::Destination), _) => Some(DomainMigrationStatus {
            uid: part.uid.clone(),
            stage: MigrationStage::Awaiting,
            reason: None,
            message: None,
            transfer: None,
            downtime_milliseconds: None,
        }),
        _ => None,
    }
}

/// The status once a migration has ended for this host, as it will stand when nothing else is left to do.
#[must_use]
pub fn moved(
    seen: &Observed,
    part: &Move,
    stage: MigrationStage,
    failure: Option<&Failure>,
    generation: Option<i64>,
    now: Timestamp,
) -> DomainStatus {
    let report = match &part.session {
        Standing::Over(report) => Some(report),
        Standing::None | Standing::Alive { .. } => None,
    };
    let milliseconds = |downtime: Duration| i64::try_from(downtime.as_millis()).unwrap_or(i64::MAX);
    let told = DomainMigrationStatus {
        uid: part.uid.clone(),
        stage,
        reason: failure.map(|failure| failure.reason.to_owned()),
        message: failure.map(|failure| failure.message.chars().take(LONGEST_MESSAGE).collect()),
        transfer: report.and_then(|report| report.transfer.clone()),
        downtime_milliseconds: report.and_then(|report| report.downtime).map(milliseconds),
    };
    let after = Observed {
        part: None,
        moved: Some((part.role, stage)),
        status: DomainStatus { migration: Some(told), ..seen.status.clone() },
        ..seen.clone()
    };
    match decide(&after, now) {
        plan @ (Plan::Settled | Plan::Wait(..)) => settled(&after, &plan, generation, now),
        // Its disks are given back, or it is unpaused, without another word.
        Plan::DetachDisks | Plan::Unpause => settled(&after, &Plan::Settled, generation, now),
        _ => {
            let ready = Wanted::new(READY, State::False, "Starting", "The guest is started");
            DomainStatus {
                observed_generation: generation,
                phase: Some(DomainPhase::Pending),
                conditions: condition::set(&after.status.conditions, vec![ready], generation, now),
                ..without_guest(&after.status)
            }
        }
    }
}

fn phase(seen: &Observed, plan: &Plan) -> (DomainPhase, Wanted) {
    let not_ready = |reason, message: String| Wanted::new(READY, State::False, reason, message);
    if let Plan::Wait(waiting, _) = plan {
        match waiting {
            Waiting::Needs(unmet) => {
                return (DomainPhase::Pending, not_ready(unmet.reason(), unmet.message()));
            }
            Waiting::Shutdown => {
                let message = "The guest was asked to power itself off".to_owned();
                return (DomainPhase::Stopping, not_ready("ShuttingDown", message));
            }
            Waiting::Dying => {
                return (DomainPhase::Stopping, not_ready("Dying", "Xen takes the domain apart".to_owned()));
            }
            Waiting::Backoff => {
                let crashes = seen.status.crashes.unwrap_or(0);
                let message =
                    format!("The guest crashed {crashes} times in a row; it is started again after a while");
                return (DomainPhase::Pending, not_ready("CrashLoop", message));
            }
            Waiting::Stability | Waiting::Guest | Waiting::Session | Waiting::Move(MigrationRole::Source) => {
            }
            Waiting::SavedToo => {
                let message = "The pool's store says that this guest is saved in a volume, but it is here too; nothing is \
                               done to either: find out which one is right, and delete the other one by hand";
                let phase = seen.status.phase.unwrap_or(DomainPhase::Failed);
                return (phase, not_ready("OwnershipViolated", message.to_owned()));
            }
            Waiting::Move(MigrationRole::Destination) => {
                let message = "All is ready for the guest, which is to come from another host".to_owned();
                return (DomainPhase::Receiving, not_ready("Receiving", message));
            }
            Waiting::TakenBy(owner) => {
                let message = format!(
                    "The pool's store says that {owner} runs this guest, but it is on {} too; nothing is done to either: \
                     find out which one is right, and delete the other one's domain by hand",
                    seen.host
                );
                let phase = seen.status.phase.unwrap_or(DomainPhase::Failed);
                return (phase, not_ready("OwnershipViolated", message));
            }
        }
    }
    match seen.present.as_ref().map(|present| present.state) {
        None if seen.is_saved() => (
            DomainPhase::Suspended,
            Wanted::new(READY, State::True, "Suspended", "The guest is saved, and uses nothing of this host"),
        ),
        Some(DomainState::Running) => {
            (DomainPhase::Running, Wanted::new(READY, State::True, "Running", "The domain runs"))
        }
        Some(DomainState::Paused) => (
            DomainPhase::Paused,
            Wanted::new(READY, State::True, "Paused", "The domain stands still, as it should"),
        ),
        Some(DomainState::Shutdown(_)) if seen.status.phase == Some(DomainPhase::Preserved) => {
            (DomainPhase::Preserved, preserved())
        }
        Some(DomainState::Suspended) => (
            DomainPhase::Paused,
            not_ready("Suspended", "The guest was suspended and not resumed".to_owned()),
        ),
        Some(
            DomainState::Shutdown(_) | DomainState::HalfBuilt | DomainState::Restored | DomainState::Dying,
        ) => (DomainPhase::Stopping, not_ready("Stopping", "The domain is being taken apart".to_owned())),
        None => match seen.moved {
            Some((MigrationRole::Source, MigrationStage::Committed)) => {
                (DomainPhase::Departed, not_ready("Departed", "The guest runs on another host".to_owned()))
            }
            Some((MigrationRole::Destination, MigrationStage::Aborted | MigrationStage::Awaiting)) => {
                (DomainPhase::Receiving, not_ready("NotReceived", "The guest stayed where it was".to_owned()))
            }
            Some((MigrationRole::Source, MigrationStage::Aborted | MigrationStage::Awaiting))
            | Some((MigrationRole::Destination, MigrationStage::Committed))
            | None => (DomainPhase::Halted, halted()),
        },
    }
}

/// The status that says that the guest stopped by itself, written before its domain is taken apart.
#[must_use]
pub fn stopped(
    seen: &Observed,
    reason: StopReason,
    then: AfterStop,
    generation: Option<i64>,
    now: Timestamp,
) -> DomainStatus {
    let (phase, ready) = match then {
        AfterStop::Halt => (DomainPhase::Halted, halted()),
        AfterStop::Preserve => (DomainPhase::Preserved, preserved()),
        AfterStop::Restart => {
            let what = match reason {
                StopReason::Poweroff => "powered itself off",
                StopReason::Reboot => "rebooted",
                StopReason::Crash => "crashed",
                StopReason::Vanished => "vanished from this host",
            };
            let message = format!("The guest {what} and is started again");
            (DomainPhase::Pending, Wanted::new(READY, State::False, "Restarting", message))
        }
    };
    let crashes = match reason {
        StopReason::Crash => Some(seen.status.crashes.unwrap_or(0).saturating_add(1)),
        StopReason::Poweroff | StopReason::Reboot | StopReason::Vanished => None,
    };
    DomainStatus {
        observed_generation: generation,
        phase: Some(phase),
        domid: seen.present.as_ref().map(|present| i32::from(present.domid.0)),
        restarts: counted(seen, then == AfterStop::Restart),
        crashes,
        last_stop: Some(Stop { reason, at: Time(now) }),
        guest: None,
        conditions: condition::set(&seen.status.conditions, vec![ready], generation, now),
        ..without_guest(&seen.status)
    }
}

/// The status that says that the restart asked for is being carried out.
#[must_use]
pub fn restarting(seen: &Observed, generation: Option<i64>, now: Timestamp) -> DomainStatus {
    let ready =
        Wanted::new(READY, State::False, "Restarting", "The guest is started again, as was asked for");
    DomainStatus {
        observed_generation: generation,
        phase: Some(DomainPhase::Pending),
        domid: None,
        restart_handled: seen.restart_requested.clone(),
        restarts: counted(seen, true),
        crashes: None,
        last_stop: None,
        guest: None,
        conditions: condition::set(&seen.status.conditions, vec![ready], generation, now),
        ..without_guest(&seen.status)
    }
}

/// The status after a step failed.
#[must_use]
pub fn failed(
    before: &DomainStatus,
    error: &ReconcileError,
    generation: Option<i64>,
    now: Timestamp,
) -> DomainStatus {
    let ready = Wanted::new(READY, State::False, error.category(), error.to_string());
    let phase = match before.phase {
        None | Some(DomainPhase::Pending | DomainPhase::Failed) => DomainPhase::Failed,
        Some(
            phase @ (DomainPhase::Running
            | DomainPhase::Paused
            | DomainPhase::Stopping
            | DomainPhase::Receiving
            | DomainPhase::Departed
            | DomainPhase::Suspended
            | DomainPhase::Halted
            | DomainPhase::Preserved),
        ) => phase,
    };
    DomainStatus {
        observed_generation: generation,
        phase: Some(phase),
        conditions: condition::set(&before.conditions, vec![ready], generation, now),
        ..without_guest(before)
    }
}

/// What stays true of a status when nothing is known of the guest: least of all which disks it has let go of, since that
/// is believed of the generation that the status speaks of.
fn without_guest(status: &DomainStatus) -> DomainStatus {
    DomainStatus { cpus: None, memory: None, detached: Vec::new(), ..status.clone() }
}

fn counted(seen: &Observed, restarted: bool) -> Option<i32> {
    if restarted { Some(seen.status.restarts.unwrap_or(0).saturating_add(1)) } else { seen.status.restarts }
}

fn halted() -> Wanted {
    Wanted::new(
        READY,
        State::True,
        "StoppedByGuest",
        "The guest powered itself off, and its policy leaves it off",
    )
}

fn preserved() -> Wanted {
    Wanted::new(
        READY,
        State::False,
        "Preserved",
        "The guest crashed; its memory is kept for inspection, as `onCrash` says",
    )
}
