//! What to do about a domain that is to be saved to a volume, or was: pure, total, and all of the policy.
//!
//! The pool's store says where the guest is. As long as it is in the volume nobody starts it afresh, and it is resumed once:
//!
//! ```text
//!   the store says      to be suspended                          to run
//!   it runs here        runs: save · suspended: take back        suspended: take back · restored: claim · runs: let go
//!   it is resumed here  nothing left: give back                  nothing: resume · restored: claim
//!   it is saved         suspended: destroy · nothing: done       suspended: destroy · nothing: resume
//! ```
//!
//! To take a guest back is to write the store's record anew first: a SAVE that is still on its way when a session dies can
//! then never take effect. A session that is alive is left alone, but for telling it to end.

use super::{
    decide::{AfterStop, DestroyReason, Plan, Waiting},
    observe::{Observed, Unmet},
};
use crate::{
    hypervisor::DomainState,
    migration::{Failure, Standing},
};
use kubexen_crds::domain::{DomainPhase, DomainPowerState, StopReason};
use kubexen_ownership::Token;
use std::time::Duration;

/// How often a session is looked at that was told to end.
const LOOK: Duration = Duration::from_secs(1);
/// How often something is looked at whose end is told, or whose need changes without a word.
const LONG_LOOK: Duration = Duration::from_secs(10);

/// A guest that is to be saved, or was.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// Where the guest is, read from the pool's store at this moment.
    pub keeper: Keeper,
    /// What the agent's own part of it does.
    pub session: Standing,
    /// Why the volume cannot be used, if it cannot.
    pub unmet: Option<Unmet>,
    /// Whether the volume is attached on this host.
    pub attached: bool,
}

/// Where a guest is, as the pool's store says.
#[derive(Clone, Debug, PartialEq)]
pub enum Keeper {
    /// It runs on this host, under this token.
    RunsHere(Token),
    /// It is in the volume, and this host resumes it under this token.
    ResumesHere(Token),
    /// It is in the volume.
    Volume,
    /// It is another host's, or in another volume.
    Elsewhere(String),
    /// Nobody has it.
    Nobody,
}

/// A step towards a saved guest, or back.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub enum SaveStep {
    /// Save the guest that runs.
    Save,
    /// End this agent's part as soon as that is safe.
    EndSession,
    /// Make sure that no save takes effect any more, and let the suspended guest run on.
    TakeBack,
    /// Become the one who resumes the guest, and build it from the volume.
    Resume,
    /// Take the volume's content out of use, and make the restored domain whole.
    Claim,
    /// The guest stays in the volume, for whoever resumes it.
    GiveBack,
    /// The guest runs, so nothing needs the volume: give its device back.
    LetGo,
    /// The session failed: say so, and try again later.
    Fail(Failure),
}

impl Observed {
    /// Whether all of the guest is in the volume.
    #[must_use]
    pub fn is_saved(&self) -> bool {
        self.saved.as_ref().is_some_and(|saved| saved.keeper == Keeper::Volume)
    }
}

/// What to do about it; none: what is done about any domain.
#[must_use]
pub fn decide(seen: &Observed, saved: &Saved) -> Option<Plan> {
    let to_be_saved = !seen.deleting && seen.power_state == DomainPowerState::Suspended;
    let to_run = !seen.deleting && !to_be_saved;
    if let Standing::Alive { ending } = saved.session {
        let wanted = match saved.keeper {
            Keeper::ResumesHere(_) => to_run,
            Keeper::RunsHere(_) | Keeper::Volume | Keeper::Elsewhere(_) | Keeper::Nobody => to_be_saved,
        };
        return Some(match (wanted, ending) {
            (true, _) => Plan::Wait(Waiting::Session, LONG_LOOK),
            (false, false) => Plan::Save(SaveStep::EndSession),
            (false, true) => Plan::Wait(Waiting::Session, LOOK),
        });
    }
    let state = seen.present.as_ref().map(|present| present.state);
    match (&saved.keeper, state) {
        (_, Some(DomainState::Dying)) => None,
        (Keeper::RunsHere(_), state) => runs_here(seen, saved, state, to_be_saved),
        (Keeper::ResumesHere(_), None) if to_run => Some(try_to(SaveStep::Resume, saved)),
        (Keeper::ResumesHere(_), None) => Some(Plan::Save(SaveStep::GiveBack)),
        (Keeper::ResumesHere(_), Some(DomainState::Restored)) if to_run => Some(match &saved.session {
            // What was restored may not be what was saved.
            Standing::Over(report) if report.failure.is_some() => Plan::Destroy(DestroyReason::HalfBuilt),
            Standing::None | Standing::Alive { .. } | Standing::Over(_) => Plan::Save(SaveStep::Claim),
        }),
        (Keeper::ResumesHere(_), Some(DomainState::Restored | DomainState::HalfBuilt)) => {
            Some(Plan::Destroy(DestroyReason::HalfBuilt))
        }
        (
            Keeper::Volume,
            Some(
                DomainState::Suspended
                | DomainState::Shutdown(_)
                | DomainState::Restored
                | DomainState::HalfBuilt,
            ),
        ) => Some(Plan::Destroy(DestroyReason::Saved)),
        // Nothing here may end a guest that runs: people decide.
        (Keeper::Volume, Some(DomainState::Running | DomainState::Paused))
        | (
            Keeper::ResumesHere(_),
            Some(
                DomainState::Running
                | DomainState::Paused
                | DomainState::Suspended
                | DomainState::Shutdown(_),
            ),
        ) => Some(Plan::Wait(Waiting::SavedToo, LONG_LOOK)),
        (Keeper::Volume, None) if seen.deleting => None,
        (Keeper::Volume, None) if to_run => Some(try_to(SaveStep::Resume, saved)),
        (Keeper::Volume, None) if seen.disks_attached => Some(Plan::DetachDisks),
        (Keeper::Volume, None) => Some(Plan::Settled),
        (Keeper::Elsewhere(owner), Some(_)) => Some(Plan::Wait(Waiting::TakenBy(owner.clone()), LONG_LOOK)),
        (Keeper::Elsewhere(_) | Keeper::Nobody, None) if to_run => {
            Some(Plan::Wait(Waiting::Needs(Unmet::NotSaved), LONG_LOOK))
        }
        (Keeper::Nobody | Keeper::Elsewhere(_), None) if to_be_saved => Some(nothing_to_save(seen)),
        (Keeper::Nobody | Keeper::Elsewhere(_), _) => None,
    }
}

fn runs_here(seen: &Observed, saved: &Saved, state: Option<DomainState>, to_be_saved: bool) -> Option<Plan> {
    match state {
        Some(DomainState::Suspended) if !seen.deleting => Some(Plan::Save(SaveStep::TakeBack)),
        Some(DomainState::Restored) if !seen.deleting => Some(Plan::Save(SaveStep::Claim)),
        Some(DomainState::Running) if to_be_saved => Some(try_to(SaveStep::Save, saved)),
        // A guest that stands still cannot help to save it.
        Some(DomainState::Paused) if to_be_saved => Some(Plan::Unpause),
        None if to_be_saved => Some(nothing_to_save(seen)),
        Some(DomainState::Running | DomainState::Paused) if saved.attached => {
            Some(Plan::Save(SaveStep::LetGo))
        }
        Some(_) | None => None,
    }
}

/// Begins a session, unless the one before failed, which is told first, or a need is not met.
fn try_to(step: SaveStep, saved: &Saved) -> Plan {
    let failure = match &saved.session {
        Standing::Over(report) => report.failure.clone(),
        Standing::None | Standing::Alive { .. } => None,
    };
    match (failure, &saved.unmet) {
        (Some(failure), _) => Plan::Save(SaveStep::Fail(failure)),
        (None, Some(unmet)) => Plan::Wait(Waiting::Needs(unmet.clone()), unmet.look_again()),
        (None, None) => Plan::Save(step),
    }
}

/// The guest stopped before it was saved: it is not started only to be saved.
fn nothing_to_save(seen: &Observed) -> Plan {
    match seen.status.phase {
        Some(DomainPhase::Running | DomainPhase::Paused) => {
            Plan::RecordStop { reason: StopReason::Vanished, then: AfterStop::Halt }
        }
        Some(
            DomainPhase::Pending
            | DomainPhase::Suspended
            | DomainPhase::Receiving
            | DomainPhase::Departed
            | DomainPhase::Stopping
            | DomainPhase::Halted
            | DomainPhase::Preserved
            | DomainPhase::Failed,
        )
        | None
            if seen.disks_attached =>
        {
            Plan::DetachDisks
        }
        Some(_) | None => Plan::Settled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{decide::decide as decide_all, tests::observed},
        migration::Report,
    };
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kubexen_crds::domain::Stop;

    const HERE: Keeper = Keeper::RunsHere(Token(7));
    const RESUMES: Keeper = Keeper::ResumesHere(Token(8));
    const STATES: [Option<DomainState>; 7] = [
        None,
        Some(DomainState::Running),
        Some(DomainState::Paused),
        Some(DomainState::Suspended),
        Some(DomainState::Restored),
        Some(DomainState::HalfBuilt),
        Some(DomainState::Shutdown(StopReason::Crash)),
    ];

    fn failed() -> Standing {
        let failure = Failure::new("StorageFailed", "the volume is gone");
        Standing::Over(Report { failure: Some(failure), ..Report::default() })
    }

    fn seen(
        state: Option<DomainState>,
        wanted: DomainPowerState,
        keeper: Keeper,
        session: Standing,
    ) -> Observed {
        let saved = Saved { keeper, session, unmet: None, attached: false };
        Observed { power_state: wanted, saved: Some(saved), ..observed(state) }
    }

    fn plan(state: Option<DomainState>, wanted: DomainPowerState, keeper: Keeper) -> Plan {
        decide_all(&seen(state, wanted, keeper, Standing::None), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_guest_is_saved_then_destroyed_then_gone() {
        let to = |state, keeper| plan(state, DomainPowerState::Suspended, keeper);
        assert_eq!(to(Some(DomainState::Paused), HERE), Plan::Unpause);
        assert_eq!(to(Some(DomainState::Running), HERE), Plan::Save(SaveStep::Save));
        assert_eq!(to(Some(DomainState::Suspended), Keeper::Volume), Plan::Destroy(DestroyReason::Saved));
        assert_eq!(to(None, Keeper::Volume), Plan::Settled);
    }

    #[test]
    fn a_guest_is_resumed_then_claimed_then_runs() {
        let to = |state, keeper| plan(state, DomainPowerState::Running, keeper);
        assert_eq!(to(None, Keeper::Volume), Plan::Save(SaveStep::Resume));
        assert_eq!(to(None, RESUMES), Plan::Save(SaveStep::Resume));
        assert_eq!(to(Some(DomainState::Restored), RESUMES), Plan::Save(SaveStep::Claim));
        assert_eq!(to(Some(DomainState::Restored), HERE), Plan::Save(SaveStep::Claim));
        assert_eq!(to(Some(DomainState::Paused), HERE), Plan::Unpause);
        assert_eq!(to(Some(DomainState::Running), HERE), Plan::Settled);
    }

    #[test]
    fn a_guest_that_runs_keeps_no_volume_that_it_was_saved_to_or_was_to_be() {
        for state in [DomainState::Running, DomainState::Paused] {
            for session in [Standing::None, failed()] {
                let mut runs = seen(Some(state), DomainPowerState::Running, HERE, session);
                runs.saved.as_mut().unwrap().attached = true;
                assert_eq!(decide_all(&runs, Timestamp::UNIX_EPOCH), Plan::Save(SaveStep::LetGo));
            }
        }
    }

    #[test]
    fn a_suspended_guest_runs_on_only_after_every_save_of_it_is_void() {
        for wanted in [DomainPowerState::Running, DomainPowerState::Suspended] {
            let back = plan(Some(DomainState::Suspended), wanted, HERE);
            assert_eq!(back, Plan::Save(SaveStep::TakeBack));
        }
    }

    #[test]
    fn what_a_failed_session_restored_is_not_run() {
        let restored = Some(DomainState::Restored);
        let seen = seen(restored, DomainPowerState::Running, RESUMES, failed());
        assert_eq!(decide_all(&seen, Timestamp::UNIX_EPOCH), Plan::Destroy(DestroyReason::HalfBuilt));
    }

    #[test]
    fn a_failure_is_told_before_the_next_try() {
        for (state, wanted, keeper) in [
            (Some(DomainState::Running), DomainPowerState::Suspended, HERE),
            (None, DomainPowerState::Running, Keeper::Volume),
            (None, DomainPowerState::Running, RESUMES),
        ] {
            let plan = decide_all(&seen(state, wanted, keeper, failed()), Timestamp::UNIX_EPOCH);
            assert!(matches!(plan, Plan::Save(SaveStep::Fail(_))), "{plan:?}");
        }
    }

    #[test]
    fn nothing_is_started_afresh_unless_it_runs_here() {
        for wanted in [DomainPowerState::Running, DomainPowerState::Paused, DomainPowerState::Suspended] {
            for keeper in [RESUMES, Keeper::Volume, Keeper::Elsewhere("b".to_owned()), Keeper::Nobody] {
                for session in [Standing::None, failed()] {
                    for phase in [None, Some(DomainPhase::Running), Some(DomainPhase::Suspended)] {
                        let mut seen = seen(None, wanted, keeper.clone(), session.clone());
                        seen.status.phase = phase;
                        let plan = decide_all(&seen, Timestamp::UNIX_EPOCH);
                        assert_ne!(plan, Plan::Start, "{wanted:?} {keeper:?} {phase:?}");
                    }
                }
            }
        }
        assert_eq!(plan(None, DomainPowerState::Running, HERE), Plan::Start, "it ran here, and vanished");
        assert_ne!(plan(None, DomainPowerState::Suspended, HERE), Plan::Start);
    }

    #[test]
    fn a_guest_that_runs_is_destroyed_by_no_save() {
        for wanted in [DomainPowerState::Running, DomainPowerState::Paused, DomainPowerState::Suspended] {
            for keeper in [HERE, RESUMES, Keeper::Volume, Keeper::Elsewhere("b".to_owned()), Keeper::Nobody] {
                for state in [DomainState::Running, DomainState::Paused] {
                    let plan = plan(Some(state), wanted, keeper.clone());
                    assert!(!matches!(plan, Plan::Destroy(_)), "{wanted:?} {keeper:?} {state:?}: {plan:?}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_done_to_a_guest_whose_session_is_alive_but_to_end_the_session() {
        for state in STATES {
            for keeper in [HERE, RESUMES, Keeper::Volume] {
                for deleting in [false, true] {
                    for wanted in [DomainPowerState::Running, DomainPowerState::Suspended] {
                        for ending in [false, true] {
                            let alive = Standing::Alive { ending };
                            let seen = Observed { deleting, ..seen(state, wanted, keeper.clone(), alive) };
                            let plan = decide_all(&seen, Timestamp::UNIX_EPOCH);
                            let ends = plan == Plan::Save(SaveStep::EndSession) && !ending;
                            assert!(ends || matches!(plan, Plan::Wait(Waiting::Session, _)), "{plan:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_domain_that_is_deleted_leaves_what_is_saved() {
        let deleted = |state, keeper| {
            let seen =
                Observed { deleting: true, ..seen(state, DomainPowerState::Running, keeper, Standing::None) };
            decide_all(&seen, Timestamp::UNIX_EPOCH)
        };
        assert_eq!(deleted(None, RESUMES), Plan::Save(SaveStep::GiveBack));
        assert_eq!(deleted(None, Keeper::Volume), Plan::Finish);
        assert_eq!(deleted(Some(DomainState::Restored), RESUMES), Plan::Destroy(DestroyReason::HalfBuilt));
    }

    #[test]
    fn a_guest_that_stopped_before_it_was_saved_stays_off() {
        let mut stopped = seen(None, DomainPowerState::Suspended, HERE, Standing::None);
        stopped.status.phase = Some(DomainPhase::Running);
        let recorded = Plan::RecordStop { reason: StopReason::Vanished, then: AfterStop::Halt };
        assert_eq!(decide_all(&stopped, Timestamp::UNIX_EPOCH), recorded);
        stopped.status.phase = Some(DomainPhase::Halted);
        assert_eq!(decide_all(&stopped, Timestamp::UNIX_EPOCH), Plan::Settled);
    }

    #[test]
    fn a_guest_that_was_lost_before_it_was_saved_starts_when_it_is_to_run() {
        let mut lost = seen(None, DomainPowerState::Suspended, HERE, Standing::None);
        lost.status.phase = Some(DomainPhase::Halted);
        lost.saved = None;
        let stop = |reason| Some(Stop { reason, at: Time(Timestamp::UNIX_EPOCH) });
        lost.status.last_stop = stop(StopReason::Poweroff);
        assert_eq!(decide_all(&lost, Timestamp::UNIX_EPOCH), Plan::Settled);
        lost.status.last_stop = stop(StopReason::Vanished);
        assert_eq!(decide_all(&lost, Timestamp::UNIX_EPOCH), Plan::Start);
    }
}
