//! What to do about one domain: pure, total, and all of the policy.
//!
//! [`decide`] looks at what is and names one [`Plan`]. The caller carries it out and looks again, until nothing is
//! left to do; so an agent that was killed at any point goes on where the host stands, not where its memory stood.

use super::{
    live::LiveStep,
    moves::{self, MoveStep},
    observe::{Observed, Unmet},
    saves::{self, SaveStep},
};
use crate::hypervisor::{DomainInfo, DomainState};
use jiff::{SignedDuration, Timestamp};
use kubexen_crds::{
    MigrationRole, MigrationStage,
    domain::{DomainPhase, DomainPowerState, Stop, StopReason},
    virtual_machine::{OnCrash, OnReboot, OnShutdown},
};
use serde::Serialize;
use std::time::Duration;

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Plan {
    /// Write down that the guest stopped by itself, before what shows it is taken apart.
    RecordStop {
        /// How.
        reason: StopReason,
        /// What the policy makes of it.
        then: AfterStop,
    },
    /// Write down that the wanted restart is being carried out: its old domain is gone.
    RecordRestart,
    /// Become the owner, attach the disks, build the domain.
    Start,
    /// Let the domain run.
    Unpause,
    /// Stop its vCPUs.
    Pause,
    /// Ask the guest to power itself off.
    RequestShutdown,
    /// Take the domain apart.
    Destroy(DestroyReason),
    /// The guest is off and stays off: give its disks back.
    DetachDisks,
    /// A change of a guest that runs.
    Change(LiveStep),
    /// A step of the migration that the domain takes part in.
    Move(MoveStep),
    /// A step towards a saved guest, or back.
    Save(SaveStep),
    /// The domain is gone for good: give back its disks and its ownership, and let its object go.
    Finish,
    /// Nothing now; look again after this time, even if nothing changes.
    Wait(Waiting, Duration),
    /// Nothing until something changes.
    Settled,
}

/// What follows a stop that the guest made itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum AfterStop {
    /// It is started again.
    Restart,
    /// It stays off.
    Halt,
    /// Its memory stays for inspection.
    Preserve,
}

/// Why a domain is taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum DestroyReason {
    /// Its building did not end.
    HalfBuilt,
    /// The guest stopped by itself, and that is written down.
    Stopped,
    /// Its object is being deleted, and the guest is off or had its time.
    Deleted,
    /// A restart was asked for, and the guest is off or had its time.
    Restart,
    /// Another host owns the guest, which stands still here.
    Departed,
    /// All of the guest is in a volume, and it stands still here.
    Saved,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Waiting {
    /// Something that the domain needs.
    Needs(Unmet),
    /// The guest, which was asked to power itself off.
    Shutdown,
    /// Xen, which is taking the domain apart.
    Dying,
    /// The end of the back-off after crashes.
    Backoff,
    /// Time enough without a crash to forget the earlier ones.
    Stability,
    /// The guest, which has not followed a change yet, or something that a change needs.
    Guest,
    /// The session that sends or receives the guest.
    Move(MigrationRole),
    /// The session that saves or resumes the guest.
    Session,
    /// People: another host owns the guest that is here.
    TakenBy(String),
    /// People: the guest that is here is in a volume too.
    SavedToo,
}

/// A guest that ran this long without a crash starts over with the shortest back-off.
pub const STABLE_AFTER: SignedDuration = SignedDuration::from_mins(10);
/// Longest wait before a guest that keeps crashing is started again.
pub const LONGEST_BACKOFF: SignedDuration = SignedDuration::from_mins(5);
/// How often Xen is looked at while it takes a domain apart.
const DYING_LOOK: Duration = Duration::from_secs(1);

/// How long to wait before the start after `crashes` crashes in a row: nothing after the first, then 10 s, doubling
/// to [`LONGEST_BACKOFF`].
#[must_use]
pub fn backoff(crashes: i32) -> SignedDuration {
    let Ok(doublings) = u32::try_from(crashes - 2) else { return SignedDuration::ZERO };
    SignedDuration::from_secs(10_i64 << doublings.min(10)).min(LONGEST_BACKOFF)
}

/// The next thing to do about a domain.
#[must_use]
pub fn decide(seen: &Observed, now: Timestamp) -> Plan {
    if let Some(part) = &seen.part {
        return moves::decide(seen, part);
    }
    if let Some(plan) = seen.saved.as_ref().and_then(|saved| saves::decide(seen, saved)) {
        return plan;
    }
    match (seen.deleting, &seen.present) {
        (true, None) => Plan::Finish,
        (true, Some(present)) => take_down(seen, present, DestroyReason::Deleted),
        (false, None) => bring_up(seen, now),
        (false, Some(present)) => keep(seen, present, now),
    }
}

/// Ends a domain that is there: the guest is asked first and has its time.
fn take_down(seen: &Observed, present: &DomainInfo, reason: DestroyReason) -> Plan {
    match present.state {
        DomainState::HalfBuilt | DomainState::Restored => Plan::Destroy(DestroyReason::HalfBuilt),
        DomainState::Dying => Plan::Wait(Waiting::Dying, DYING_LOOK),
        DomainState::Suspended | DomainState::Shutdown(_) => Plan::Destroy(reason),
        DomainState::Running | DomainState::Paused => match seen.shutdown_left {
            None => Plan::RequestShutdown,
            Some(Duration::ZERO) => Plan::Destroy(reason),
            Some(left) => Plan::Wait(Waiting::Shutdown, left),
        },
    }
}

/// Starts a domain that is not there, if it is to be.
fn bring_up(seen: &Observed, now: Timestamp) -> Plan {
    if seen.guest_is_elsewhere() {
        return if seen.disks_attached { Plan::DetachDisks } else { Plan::Settled };
    }
    if seen.restart_pending() {
        return Plan::RecordRestart;
    }
    match seen.status.phase {
        // It was to be saved when it was lost with its host, so nothing was left to save. By now it is to run, and nobody who uses it
        // has ended it.
        Some(DomainPhase::Halted) if seen.has_vanished() => {}
        Some(DomainPhase::Halted | DomainPhase::Preserved) if seen.disks_attached => {
            return Plan::DetachDisks;
        }
        Some(DomainPhase::Halted | DomainPhase::Preserved) => {
            return seen.live.next_step().map_or(Plan::Settled, Plan::Change);
        }
        Some(DomainPhase::Running | DomainPhase::Paused) => {
            return Plan::RecordStop { reason: StopReason::Vanished, then: AfterStop::Restart };
        }
        Some(
            DomainPhase::Pending
            | DomainPhase::Receiving
            | DomainPhase::Departed
            | DomainPhase::Suspended
            | DomainPhase::Stopping
            | DomainPhase::Failed,
        )
        | None => {}
    }
    if let Some(Stop { reason: StopReason::Crash, at }) = &seen.status.last_stop
        && let Some(left) = left(backoff(seen.status.crashes.unwrap_or(0)), at.0, now)
    {
        return Plan::Wait(Waiting::Backoff, left);
    }
    match &seen.unmet {
        Some(unmet) => Plan::Wait(Waiting::Needs(unmet.clone()), unmet.look_again()),
        None => Plan::Start,
    }
}

/// Keeps a domain that is there as it is wanted.
fn keep(seen: &Observed, present: &DomainInfo, now: Timestamp) -> Plan {
    if seen.restart_pending() {
        return take_down(seen, present, DestroyReason::Restart);
    }
    match present.state {
        DomainState::HalfBuilt | DomainState::Restored => Plan::Destroy(DestroyReason::HalfBuilt),
        DomainState::Dying => Plan::Wait(Waiting::Dying, DYING_LOOK),
        // Whoever suspended it resumes it.
        DomainState::Suspended => Plan::Settled,
        DomainState::Shutdown(reason) => after_stop(seen, present, reason),
        DomainState::Running if seen.power_state == DomainPowerState::Paused => Plan::Pause,
        DomainState::Paused if seen.power_state != DomainPowerState::Paused => Plan::Unpause,
        DomainState::Running | DomainState::Paused => follow(seen, present, now),
    }
}

/// Changes a domain that runs or stands still as it is to, until it is what it is to be.
fn follow(seen: &Observed, present: &DomainInfo, now: Timestamp) -> Plan {
    if let Some(step) = seen.live.next_step() {
        return Plan::Change(step);
    }
    match (seen.live.look_again(&seen.status, now), present.state) {
        (Some(after), _) => Plan::Wait(Waiting::Guest, after),
        (None, DomainState::Running) => forget_crashes(seen, now),
        (None, _) => Plan::Settled,
    }
}

fn after_stop(seen: &Observed, present: &DomainInfo, reason: StopReason) -> Plan {
    if !seen.stop_is_recorded(present.domid) {
        return Plan::RecordStop { reason, then: seen.after(reason) };
    }
    match seen.status.phase {
        Some(DomainPhase::Preserved) => Plan::Settled,
        Some(
            DomainPhase::Pending
            | DomainPhase::Running
            | DomainPhase::Paused
            | DomainPhase::Receiving
            | DomainPhase::Departed
            | DomainPhase::Suspended
            | DomainPhase::Stopping
            | DomainPhase::Halted
            | DomainPhase::Failed,
        )
        | None => Plan::Destroy(DestroyReason::Stopped),
    }
}

/// What is left of a wait that began at this moment; nothing if that is to come, as a clock that ran ahead has dated it.
fn left(wait: SignedDuration, began: Timestamp, now: Timestamp) -> Option<Duration> {
    let passed = Some(began.duration_until(now)).filter(|passed| !passed.is_negative())?;
    Duration::try_from(wait - passed).ok().filter(|left| !left.is_zero())
}

fn forget_crashes(seen: &Observed, now: Timestamp) -> Plan {
    match (&seen.status.last_stop, seen.status.crashes) {
        (Some(stop), Some(crashes)) if crashes > 0 => {
            let left = left(backoff(crashes) + STABLE_AFTER, stop.at.0, now);
            left.map_or(Plan::Settled, |left| Plan::Wait(Waiting::Stability, left))
        }
        (Some(_) | None, Some(_) | None) => Plan::Settled,
    }
}

impl Observed {
    /// Whether a migration that is over has left the guest on another host: the domain is none to be started here.
    fn guest_is_elsewhere(&self) -> bool {
        match self.moved {
            Some((MigrationRole::Source, MigrationStage::Committed)) => true,
            Some((MigrationRole::Destination, MigrationStage::Aborted | MigrationStage::Awaiting)) => true,
            Some((MigrationRole::Source, MigrationStage::Aborted | MigrationStage::Awaiting)) => false,
            Some((MigrationRole::Destination, MigrationStage::Committed)) | None => false,
        }
    }

    /// Whether it ended last because its domain was lost.
    fn has_vanished(&self) -> bool {
        self.status.last_stop.as_ref().is_some_and(|stop| stop.reason == StopReason::Vanished)
    }

    /// What the owner's policy makes of a stop.
    #[must_use]
    pub fn after(&self, reason: StopReason) -> AfterStop {
        match reason {
            StopReason::Poweroff => match self.lifecycle.on_shutdown {
                OnShutdown::Halt => AfterStop::Halt,
                OnShutdown::Restart => AfterStop::Restart,
            },
            StopReason::Reboot => match self.lifecycle.on_reboot {
                OnReboot::Restart => AfterStop::Restart,
                OnReboot::Halt => AfterStop::Halt,
            },
            StopReason::Crash => match self.lifecycle.on_crash {
                OnCrash::Restart => AfterStop::Restart,
                OnCrash::Halt => AfterStop::Halt,
                OnCrash::Preserve => AfterStop::Preserve,
            },
            StopReason::Vanished => AfterStop::Restart,
        }
    }
}
