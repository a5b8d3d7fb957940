//! What is due of the guarded guests: pure.

use super::Guarded;
use crate::hypervisor::{DomainInfo, DomainState};
use kubexen_mutants::Mutant;
use kubexen_ownership::liveness::Rung;
use std::collections::BTreeMap;
use uuid::Uuid;

/// One thing to do. They do not depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// Let the guest stand still.
    Pause(Uuid),
    /// Let a guest go on that was paused here, if it is still this host's.
    Resume(Uuid),
    /// Take the guest apart.
    Destroy(Uuid),
    /// None of the guests is left: the host need not be reset.
    Disarm,
}

/// What is due on this rung, with these domains on the host. Guests that nobody guards are no concern of it.
pub(super) fn decide(rung: Rung, guarded: &BTreeMap<Uuid, Guarded>, domains: &[DomainInfo]) -> Vec<Step> {
    let here: Vec<(&DomainInfo, Guarded)> =
        domains.iter().filter_map(|domain| Some((domain, *guarded.get(&domain.uuid)?))).collect();
    match rung {
        Rung::Healthy => {
            let paused = here.iter().filter(|(_, guarded)| guarded.paused);
            paused.map(|(domain, _)| Step::Resume(domain.uuid)).collect()
        }
        Rung::Refuse => Vec::new(),
        Rung::Pause => {
            let runs = here.iter().filter(|(domain, _)| can_run(domain.state));
            runs.map(|(domain, _)| Step::Pause(domain.uuid)).collect()
        }
        Rung::Stop | Rung::Reset if Mutant::GuestsNotStopped.is_active() => Vec::new(),
        Rung::Stop | Rung::Reset if here.is_empty() => vec![Step::Disarm],
        Rung::Stop | Rung::Reset => here.iter().map(|(domain, _)| Step::Destroy(domain.uuid)).collect(),
    }
}

/// Whether the vCPUs of a domain in this state may run.
fn can_run(state: DomainState) -> bool {
    match state {
        DomainState::Running => true,
        DomainState::Paused
        | DomainState::HalfBuilt
        | DomainState::Restored
        | DomainState::Suspended
        | DomainState::Shutdown(_)
        | DomainState::Dying => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::DomId;

    fn domain(number: u128, state: DomainState) -> DomainInfo {
        DomainInfo {
            uuid: Uuid::from_u128(number),
            domid: DomId(1),
            state,
            memory_kib: 1,
            vcpus: 1,
            token: Some(1),
            sent_under: None,
        }
    }

    #[test]
    fn guarded_guests_stand_still_then_go_and_the_host_is_spared_when_all_are_gone() {
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let guarded = BTreeMap::from([(one, Guarded::default()), (two, Guarded { paused: true })]);
        let domains = [
            domain(1, DomainState::Running),
            domain(2, DomainState::Paused),
            domain(3, DomainState::Running),
        ];
        for (rung, steps) in [
            (Rung::Healthy, vec![Step::Resume(two)]),
            (Rung::Refuse, vec![]),
            (Rung::Pause, vec![Step::Pause(one)]),
            (Rung::Stop, vec![Step::Destroy(one), Step::Destroy(two)]),
            (Rung::Reset, vec![Step::Destroy(one), Step::Destroy(two)]),
        ] {
            assert_eq!(decide(rung, &guarded, &domains), steps, "{rung:?}");
        }
        assert_eq!(
            decide(Rung::Stop, &guarded, &domains[2..]),
            [Step::Disarm],
            "the third is nobody's concern"
        );
        let dying = [domain(1, DomainState::Dying)];
        assert_eq!(decide(Rung::Stop, &guarded, &dying), [Step::Destroy(one)], "dying is not gone");
    }
}
