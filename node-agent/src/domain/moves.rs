//! What to do about a domain that takes part in a migration: pure, total, and all of the policy.
//!
//! Two agents hand a guest over, and the pool's store says who has it. The destination commits the hand-over after it
//! has the whole guest, which stands still at both ends then. Whoever finds a hand-over unfinished asks the store:
//!
//! ```text
//!               the store names      a session is alive     no session
//!  source       this host            wait                   suspended: abort in the store, then resume · runs: send, or aborted
//!               the other end        wait                   suspended: destroy · gone: committed
//!               a third host         wait                   suspended: destroy · gone: aborted
//!  destination  this host            wait                   restored: claim, then run, or destroy · runs: committed
//!               another host         wait                   restored: abort in the store, then destroy · nothing: await
//! ```
//!
//! An abort gives the source a new token, so a commit that is still on its way when a session dies can never take effect
//! afterwards. That is why neither end resumes or destroys before it.
//!
//! What was restored is the guest only if the record succeeds the ownership under which it was sent. After any other the guest
//! has run since, at its source or elsewhere: a source took it back and died later, or an old backup names this host for an
//! earlier stay. Its memory would not fit its disks any more, so it is taken apart, and the guest starts afresh.

use super::{
    decide::{DestroyReason, Plan, Waiting},
    observe::Observed,
};
use crate::{
    hypervisor::DomainState,
    migration::{Failure, Standing},
};
use kubexen_crds::{MigrationRole, MigrationStage};
use kubexen_mutants::Mutant;
use kubexen_ownership::{Owner, Token};
use std::time::Duration;

/// How often a guest is looked at that the hypervisor is taking apart, or a session that was told to end.
const LOOK: Duration = Duration::from_secs(1);
/// How often a session is looked at that goes on, although its end is told.
const LONG_LOOK: Duration = Duration::from_secs(30);

/// A migration that is not over for this host.
#[derive(Clone, Debug, PartialEq)]
pub struct Move {
    /// UID of the VirtualMachineMigration.
    pub uid: String,
    /// Which end this is.
    pub role: MigrationRole,
    /// The host at the other end.
    pub peer: String,
    /// Whether it was called off.
    pub cancelled: bool,
    /// Who the pool's store says may run the guest, read at this moment.
    pub owner: OwnedBy,
    /// What the agent's own part of it does.
    pub session: Standing,
}

/// Who may run the guest.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnedBy {
    /// This host. A record of an earlier boot is of a guest that died with it, and is this host's all the same.
    Me {
        /// The ownership.
        token: Token,
        /// The one that it followed, if the guest came from another host.
        succeeds: Option<Token>,
    },
    /// Another host.
    Another(Owner),
    /// Nobody.
    Nobody,
}

/// A step of a migration.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub enum MoveStep {
    /// Make ready for the guest and wait for the source.
    Await,
    /// Send the guest.
    Send,
    /// End this agent's part as soon as that is safe.
    EndSession,
    /// Abort in the store, and let the suspended guest run on here.
    TakeBack,
    /// Abort in the store if the guest runs at the source, and take apart what was restored here.
    GiveUp,
    /// Make the restored domain this host's, and whole.
    Claim,
    /// Write down how it ended.
    Record {
        /// How.
        stage: MigrationStage,
        /// Why, if it was aborted.
        failure: Option<Failure>,
    },
}

/// What to do about a domain whose migration is not over.
#[must_use]
pub fn decide(seen: &Observed, part: &Move) -> Plan {
    if let Standing::Alive { ending } = part.session {
        let to_end = part.cancelled || seen.deleting || is_awaited_in_vain(seen, part);
        return match (to_end, ending) {
            (true, false) => Plan::Move(MoveStep::EndSession),
            (true, true) => Plan::Wait(Waiting::Move(part.role), LOOK),
            (false, _) => Plan::Wait(Waiting::Move(part.role), LONG_LOOK),
        };
    }
    match part.role {
        MigrationRole::Source => source(seen, part),
        MigrationRole::Destination => destination(seen, part),
    }
}

/// Whether a guest is awaited that is this host's already and is not here: a restored store says so of a run before the move.
fn is_awaited_in_vain(seen: &Observed, part: &Move) -> bool {
    part.role == MigrationRole::Destination
        && matches!(part.owner, OwnedBy::Me { .. })
        && seen.present.is_none()
}

fn source(seen: &Observed, part: &Move) -> Plan {
    let state = seen.present.as_ref().map(|present| present.state);
    match (&part.owner, state) {
        (_, Some(DomainState::Dying)) => Plan::Wait(Waiting::Dying, LOOK),
        (OwnedBy::Another(owner), None) if owner.host.as_str() == part.peer => {
            record(part, MigrationStage::Committed)
        }
        // It was lost with an earlier boot of this host, and given to a third one.
        (OwnedBy::Another(_), None) => record(part, MigrationStage::Aborted),
        (
            OwnedBy::Another(_),
            Some(DomainState::Suspended | DomainState::Shutdown(_) | DomainState::HalfBuilt),
        ) => Plan::Destroy(DestroyReason::Departed),
        // Two hosts would run it. Nothing here may end a guest that runs: people decide.
        (
            OwnedBy::Another(owner),
            Some(DomainState::Running | DomainState::Paused | DomainState::Restored),
        ) => Plan::Wait(Waiting::TakenBy(owner.host.to_string()), LONG_LOOK),
        (OwnedBy::Me { .. }, Some(DomainState::Suspended)) => Plan::Move(MoveStep::TakeBack),
        (OwnedBy::Me { .. }, Some(DomainState::Running)) if wants_to_go(seen, part) => {
            Plan::Move(MoveStep::Send)
        }
        (
            OwnedBy::Me { .. } | OwnedBy::Nobody,
            None
            | Some(
                DomainState::Running
                | DomainState::Paused
                | DomainState::Suspended
                | DomainState::Restored
                | DomainState::Shutdown(_)
                | DomainState::HalfBuilt,
            ),
        ) => record(part, MigrationStage::Aborted),
    }
}

/// Whether the move has not been tried yet, and nothing speaks against it.
fn wants_to_go(seen: &Observed, part: &Move) -> bool {
    part.session == Standing::None && !part.cancelled && !seen.deleting
}

fn destination(seen: &Observed, part: &Move) -> Plan {
    let state = seen.present.as_ref().map(|present| present.state);
    match (&part.owner, state) {
        (_, Some(DomainState::Dying)) => Plan::Wait(Waiting::Dying, LOOK),
        (OwnedBy::Me { succeeds, .. }, Some(DomainState::Restored)) => {
            Plan::Move(if was_sent_under(seen, *succeeds) { MoveStep::Claim } else { MoveStep::GiveUp })
        }
        // Committed, and then lost with the host or its domain: it starts again like any guest that vanished.
        (OwnedBy::Me { .. }, _) => record(part, MigrationStage::Committed),
        (OwnedBy::Another(_) | OwnedBy::Nobody, Some(DomainState::Restored | DomainState::HalfBuilt)) => {
            Plan::Move(MoveStep::GiveUp)
        }
        (
            OwnedBy::Another(_) | OwnedBy::Nobody,
            Some(
                DomainState::Running
                | DomainState::Paused
                | DomainState::Suspended
                | DomainState::Shutdown(_),
            ),
        ) => Plan::Wait(Waiting::TakenBy(owner_name(&part.owner)), LONG_LOOK),
        (OwnedBy::Another(_) | OwnedBy::Nobody, None) => match &part.session {
            _ if part.cancelled || seen.deleting => record(part, MigrationStage::Aborted),
            Standing::Over(_) => record(part, MigrationStage::Aborted),
            Standing::None | Standing::Alive { .. } => match &seen.unmet {
                Some(unmet) => Plan::Wait(Waiting::Needs(unmet.clone()), LOOK),
                None => Plan::Move(MoveStep::Await),
            },
        },
    }
}

/// Whether what was restored here was sent under this ownership.
fn was_sent_under(seen: &Observed, succeeds: Option<Token>) -> bool {
    let sent_under = seen.present.as_ref().and_then(|present| present.sent_under);
    Mutant::ClaimOldCopy.is_active() || sent_under.is_some() && sent_under == succeeds.map(|token| token.0)
}

fn owner_name(owner: &OwnedBy) -> String {
    match owner {
        OwnedBy::Another(owner) => owner.host.to_string(),
        OwnedBy::Me { .. } | OwnedBy::Nobody => "nobody".to_owned(),
    }
}

fn record(part: &Move, stage: MigrationStage) -> Plan {
    let failure = match (&part.session, stage) {
        (_, MigrationStage::Committed | MigrationStage::Awaiting) => None,
        (Standing::Over(report), MigrationStage::Aborted) => report.failure.clone(),
        (Standing::None | Standing::Alive { .. }, MigrationStage::Aborted) => None,
    };
    let failure = match (failure, stage) {
        (None, MigrationStage::Aborted) if part.cancelled => Some(Failure::cancelled()),
        (None, MigrationStage::Aborted) => Some(Failure::interrupted()),
        (failure, MigrationStage::Aborted | MigrationStage::Committed | MigrationStage::Awaiting) => failure,
    };
    Plan::Move(MoveStep::Record { stage, failure })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{decide::decide as decide_all, live::Live},
        hypervisor::{DomId, DomainInfo},
        migration::Report,
    };
    use jiff::Timestamp;
    use kubexen_crds::{
        DomainStatus,
        domain::{DomainPowerState, StopReason},
        virtual_machine::Lifecycle,
    };
    use kubexen_ownership::{BootId, HostName, Phase};
    use uuid::Uuid;

    const MINE: OwnedBy = OwnedBy::Me { token: Token(7), succeeds: Some(Token(6)) };

    fn theirs() -> OwnedBy {
        OwnedBy::Another(Owner {
            host: HostName::new("b").unwrap(),
            boot_id: BootId::new("boot").unwrap(),
            phase: Phase::Running,
            guarded: false,
            token: Token(8),
            succeeds: None,
        })
    }

    fn over() -> Standing {
        let failure = Failure { reason: "ConnectionLost", message: "the link broke".to_owned() };
        Standing::Over(Report { failure: Some(failure), ..Report::default() })
    }

    fn part(role: MigrationRole, owner: OwnedBy, session: Standing) -> Move {
        Move { uid: Uuid::nil().to_string(), role, peer: "b".to_owned(), cancelled: false, owner, session }
    }

    fn seen(state: Option<DomainState>, part: Move) -> Observed {
        Observed {
            host: "a".to_owned(),
            guest: None,
            deleting: false,
            power_state: DomainPowerState::Running,
            restart_requested: None,
            lifecycle: Lifecycle::default(),
            status: DomainStatus::default(),
            present: state.map(|state| DomainInfo {
                uuid: Uuid::nil(),
                domid: DomId(3),
                state,
                token: None,
                sent_under: (state == DomainState::Restored).then_some(6),
                memory_kib: 1024,
                vcpus: 1,
            }),
            unmet: None,
            disks_attached: false,
            shutdown_left: None,
            live: Live::default(),
            moved: None,
            part: Some(part),
            saved: None,
        }
    }

    fn plan(state: Option<DomainState>, part: Move) -> Plan {
        decide_all(&seen(state, part), Timestamp::UNIX_EPOCH)
    }

    fn recorded(stage: MigrationStage, reason: Option<&str>) -> impl Fn(&Plan) -> bool {
        move |plan| match plan {
            Plan::Move(MoveStep::Record { stage: told, failure }) => {
                *told == stage && failure.as_ref().map(|failure| failure.reason) == reason
            }
            _ => false,
        }
    }

    #[test]
    fn a_source_sends_a_guest_that_runs_and_tries_it_once() {
        let source = |session| part(MigrationRole::Source, MINE, session);
        let running = Some(DomainState::Running);
        assert_eq!(plan(running, source(Standing::None)), Plan::Move(MoveStep::Send));
        let failed = plan(running, source(over()));
        assert!(recorded(MigrationStage::Aborted, Some("ConnectionLost"))(&failed), "{failed:?}");
        let cancelled = plan(running, Move { cancelled: true, ..source(Standing::None) });
        assert!(recorded(MigrationStage::Aborted, Some("Cancelled"))(&cancelled), "{cancelled:?}");
    }

    #[test]
    fn a_suspended_guest_is_resumed_only_by_its_owner_and_destroyed_only_by_another() {
        for session in [Standing::None, over()] {
            let source = |owner| part(MigrationRole::Source, owner, session.clone());
            let suspended = Some(DomainState::Suspended);
            assert_eq!(plan(suspended, source(MINE)), Plan::Move(MoveStep::TakeBack));
            assert_eq!(plan(suspended, source(theirs())), Plan::Destroy(DestroyReason::Departed));
            assert!(recorded(MigrationStage::Committed, None)(&plan(None, source(theirs()))));
            let given_to_a_third = Move { peer: "c".to_owned(), ..source(theirs()) };
            assert!(matches!(
                plan(None, given_to_a_third),
                Plan::Move(MoveStep::Record { stage: MigrationStage::Aborted, .. })
            ));
        }
    }

    #[test]
    fn a_restored_guest_is_claimed_only_by_its_owner_and_given_up_only_by_another() {
        for session in [Standing::None, over()] {
            let destination = |owner| part(MigrationRole::Destination, owner, session.clone());
            let restored = Some(DomainState::Restored);
            assert_eq!(plan(restored, destination(MINE)), Plan::Move(MoveStep::Claim));
            assert_eq!(plan(restored, destination(theirs())), Plan::Move(MoveStep::GiveUp));
            for succeeds in [None, Some(Token(5))] {
                let another_stay = OwnedBy::Me { token: Token(7), succeeds };
                assert_eq!(plan(restored, destination(another_stay)), Plan::Move(MoveStep::GiveUp));
            }
            let running = plan(Some(DomainState::Running), destination(MINE));
            assert!(recorded(MigrationStage::Committed, None)(&running), "{running:?}");
        }
    }

    #[test]
    fn a_destination_awaits_its_guest_once_and_does_not_start_it() {
        let destination = |session| part(MigrationRole::Destination, theirs(), session);
        assert_eq!(plan(None, destination(Standing::None)), Plan::Move(MoveStep::Await));
        let failed = plan(None, destination(over()));
        assert!(recorded(MigrationStage::Aborted, Some("ConnectionLost"))(&failed), "{failed:?}");
        for stage in [MigrationStage::Awaiting, MigrationStage::Aborted] {
            let mut left = seen(None, destination(Standing::None));
            (left.part, left.moved) = (None, Some((MigrationRole::Destination, stage)));
            assert_eq!(decide_all(&left, Timestamp::UNIX_EPOCH), Plan::Settled);
        }
    }

    #[test]
    fn nothing_is_done_to_a_guest_whose_session_is_alive_but_to_end_the_session() {
        let states = [
            None,
            Some(DomainState::Running),
            Some(DomainState::Suspended),
            Some(DomainState::Restored),
            Some(DomainState::HalfBuilt),
            Some(DomainState::Shutdown(StopReason::Crash)),
        ];
        for role in [MigrationRole::Source, MigrationRole::Destination] {
            for state in states {
                for owner in [MINE, theirs(), OwnedBy::Nobody] {
                    let alive = |ending| part(role, owner.clone(), Standing::Alive { ending });
                    // The store says that the guest was here before, and it is not.
                    if role == MigrationRole::Destination && owner == MINE && state.is_none() {
                        assert_eq!(plan(state, alive(false)), Plan::Move(MoveStep::EndSession));
                    } else {
                        assert!(matches!(plan(state, alive(false)), Plan::Wait(Waiting::Move(_), _)));
                    }
                    let called_off = |ending| Move { cancelled: true, ..alive(ending) };
                    assert_eq!(plan(state, called_off(false)), Plan::Move(MoveStep::EndSession));
                    assert!(matches!(plan(state, called_off(true)), Plan::Wait(Waiting::Move(_), _)));
                }
            }
        }
    }

    #[test]
    fn a_guest_that_runs_here_and_belongs_to_another_host_is_left_to_people() {
        for role in [MigrationRole::Source, MigrationRole::Destination] {
            for state in [DomainState::Running, DomainState::Paused] {
                let taken = plan(Some(state), part(role, theirs(), Standing::None));
                assert!(matches!(taken, Plan::Wait(Waiting::TakenBy(_), _)), "{taken:?}");
            }
        }
    }
}
