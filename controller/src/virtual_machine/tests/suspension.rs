//! The policy of a machine that is suspended and resumed.

use super::*;
use crate::virtual_machine::{
    references::{Disk, Site},
    suspension::{StateDisk, may_be_discarded, new_state_disk, saved_machine, saved_state, state_size},
};
use kubexen_crds::{VirtualDisk, condition, virtual_machine::Suspended};
use serde_json::json;

/// The disk for the guest's memory, on this host.
pub(super) fn state_disk(host: &str) -> StateDisk {
    let disk = Arc::new(new_state_disk(&vm(), "local", ByteQuantity("2Gi".to_owned())));
    let found = Disk { disk: Arc::clone(&disk), site: Site::On(host.to_owned()), shared: None };
    StateDisk { disk, found: Ok(found) }
}

fn suspended() -> Suspended {
    Suspended { disk: format!("suspended-{UID}"), machine: machine() }
}

fn to_be_suspended() -> VirtualMachine {
    changed(|machine| machine.spec.power_state = PowerState::Suspended)
}

fn with_memory_of(machine: VirtualMachine) -> VirtualMachine {
    let status = VirtualMachineStatus { suspended: Some(suspended()), ..VirtualMachineStatus::default() };
    VirtualMachine { status: Some(status), ..machine }
}

/// A Domain that was told to save its guest.
fn saving(phase: DomainPhase) -> Domain {
    let mut domain = in_phase(domain_on("a"), phase);
    domain.spec.power_state = DomainPowerState::Suspended;
    domain.spec.saved_state = state_disk("a").found.ok().map(|disk| saved_state(&disk));
    domain
}

fn with_disk(mut seen: Observed) -> Observed {
    let spec = json!({"repository": "san", "size": "1Gi"});
    let disk = VirtualDisk {
        metadata: ObjectMeta { name: Some("root".to_owned()), ..ObjectMeta::default() },
        spec: serde_json::from_value(spec).unwrap(),
        status: None,
    };
    let disk = Disk { disk: Arc::new(disk), site: Site::On("a".to_owned()), shared: None };
    seen.references = Ok(Resolved { disks: vec![disk], ..resolved() });
    seen
}

#[test]
fn a_running_machine_gets_a_disk_for_its_memory_and_is_told_to_save_to_it() {
    let running =
        || with_disk(observed(to_be_suspended(), vec![in_phase(domain_on("a"), DomainPhase::Running)]));
    let size = ByteQuantity::from_bytes(state_size(&machine()));
    assert_eq!(decide(&running()).actions, [Action::MakeStateDisk { repository: "san".to_owned(), size }]);
    let there = decide(&Observed { state: Some(state_disk("a")), ..running() }).actions;
    let [Action::Adjust { change, .. }] = &there[..] else { panic!("{there:?}") };
    assert_eq!(change.power_state, Some(DomainPowerState::Suspended));
    let saved_state = change.saved_state.clone().flatten().map(|state| state.volume);
    assert_eq!(saved_state, Some(format!("shop.suspended-{UID}")));
    let elsewhere = decide(&Observed { state: Some(state_disk("b")), ..running() }).actions;
    assert!(
        matches!(&elsewhere[..], [Action::DiscardState(_)]),
        "one that is left of an earlier time: {elsewhere:?}"
    );
}

#[test]
fn a_machine_without_a_disk_says_why_it_is_not_suspended() {
    let seen = observed(to_be_suspended(), vec![in_phase(domain_on("a"), DomainPhase::Running)]);
    is(&seen, Phase::Running, "False", "NoRepository");
}

#[test]
fn a_guest_that_waits_is_given_what_its_machine_asks_for_now_before_it_is_saved() {
    let attached = json!({"name": "data", "volume": "shop.data", "target": "xvda"});
    let waiting = |phase| {
        let mut domain = in_phase(domain_on("a"), phase);
        domain.spec.machine.disks = vec![serde_json::from_value(attached.clone()).unwrap()];
        domain
    };
    let of = |mut machine: VirtualMachine, domain| {
        let at = (RESTART_REQUESTED_AT.to_owned(), "now".to_owned());
        machine.metadata.annotations = Some([at].into());
        observed(machine, vec![domain])
    };
    for phase in [DomainPhase::Pending, DomainPhase::Stopping, DomainPhase::Failed] {
        let actions = decide(&of(to_be_suspended(), waiting(phase))).actions;
        let [Action::Adjust { change, .. }] = &actions[..] else { panic!("{phase:?} {actions:?}") };
        let disks = &change.machine.as_ref().expect("its machine changes").disks;
        assert!(disks.iter().all(|disk| disk.detach), "{phase:?} {disks:?}");
        assert_eq!(change.restart_requested, None, "a restart is for a machine that is to run");
    }
    let mut told = waiting(DomainPhase::Pending);
    told.spec.power_state = DomainPowerState::Suspended;
    assert_eq!(decide(&of(to_be_suspended(), told)).actions, [], "what is being saved stays as it is");
}

#[test]
fn what_is_saved_is_written_down_before_the_domain_goes() {
    let seen = observed(to_be_suspended(), vec![saving(DomainPhase::Suspended)]);
    is(&seen, Phase::Suspended, "True", "Suspended");
    let status = status_after(&seen);
    assert_eq!(status.suspended, Some(suspended()));
    let known = VirtualMachine { status: Some(status), ..to_be_suspended() };
    let actions = decide(&observed(known.clone(), vec![saving(DomainPhase::Suspended)])).actions;
    assert!(matches!(&actions[..], [Action::DeleteUnchanged(_)]), "{actions:?}");
    is(&observed(known, Vec::new()), Phase::Suspended, "True", "Suspended");
}

#[test]
fn a_guest_that_is_being_saved_is_not_said_to_be_suspended() {
    is(
        &observed(to_be_suspended(), vec![saving(DomainPhase::Running)]),
        Phase::Running,
        "False",
        "Suspending",
    );
}

#[test]
fn a_machine_that_is_off_has_nothing_to_suspend() {
    is(&observed(to_be_suspended(), Vec::new()), Phase::Halted, "True", "NothingToSuspend");
    let off = observed(to_be_suspended(), vec![in_phase(domain_on("a"), DomainPhase::Halted)]);
    assert_eq!(decide(&off).actions, [delete_on("a")]);
}

#[test]
fn a_domain_that_comes_after_its_guest_was_saved_gives_way_to_one_that_resumes_it() {
    let mut late = in_phase(domain_on("a"), DomainPhase::Failed);
    let status = late.status.as_mut().unwrap();
    let refused = Wanted::new("Ready", State::False, "Suspended", "the guest is saved");
    status.conditions = condition::set(&[], vec![refused], None, jiff::Timestamp::UNIX_EPOCH);
    for machine in [with_memory_of(vm()), with_memory_of(to_be_suspended())] {
        assert_eq!(decide(&observed(machine, vec![late.clone()])).actions, [delete_on("a")]);
    }
    let never_saved = observed(vm(), vec![late]);
    assert!(!decide(&never_saved).actions.contains(&delete_on("a")), "the status tells whether it was");
}

#[test]
fn a_machine_that_runs_again_forgets_what_was_saved_step_by_step() {
    let resuming = |phase| {
        let mut domain = saving(phase);
        domain.spec.power_state = DomainPowerState::Running;
        Observed { state: Some(state_disk("a")), ..observed(with_memory_of(vm()), vec![domain]) }
    };
    assert!(decide(&resuming(DomainPhase::Pending)).actions.is_empty(), "it is not resumed yet");
    assert_eq!(status_after(&resuming(DomainPhase::Pending)).suspended, Some(suspended()));
    let actions = decide(&resuming(DomainPhase::Running)).actions;
    assert!(
        matches!(&actions[..], [Action::Adjust { change: Adjustment { saved_state: Some(None), .. }, .. }]),
        "{actions:?}"
    );
    let mut runs = resuming(DomainPhase::Running);
    Arc::make_mut(&mut runs.domains[0]).spec.saved_state = None;
    assert!(matches!(&decide(&runs).actions[..], [Action::DiscardState(_)]));
    runs.state = None;
    assert_eq!(status_after(&runs).suspended, None);
    let mut stands = resuming(DomainPhase::Running);
    let status = Arc::make_mut(&mut stands.domains[0]).status.as_mut().unwrap();
    let still = Wanted::new("Ready", State::False, "Suspended", "it was suspended and not resumed");
    status.conditions = condition::set(&[], vec![still], None, jiff::Timestamp::UNIX_EPOCH);
    assert!(decide(&stands).actions.is_empty(), "its agent has to let it go on first");
}

#[test]
fn a_restart_that_is_asked_for_while_a_guest_is_saved_or_resumed_waits_until_that_is_on_record() {
    let asked_of = |mut machine: VirtualMachine, domain| {
        let at = (RESTART_REQUESTED_AT.to_owned(), "now".to_owned());
        machine.metadata.annotations = Some([at].into());
        Observed { state: Some(state_disk("a")), ..observed(machine, vec![domain]) }
    };
    let asked = |phase, status: bool| {
        let mut domain = saving(phase);
        domain.spec.power_state = DomainPowerState::Running;
        domain.status = domain.status.filter(|_| status);
        asked_of(with_memory_of(vm()), domain)
    };
    let restarts = |seen: &Observed| {
        decide(seen).actions.iter().any(|action| {
            matches!(action, Action::Adjust { change: Adjustment { restart_requested: Some(_), .. }, .. })
        })
    };
    assert!(!restarts(&asked(DomainPhase::Pending, false)), "it may run by now");
    assert!(
        !restarts(&asked(DomainPhase::Running, true)),
        "the next start would look for it where it was saved"
    );
    assert!(restarts(&asked(DomainPhase::Failed, true)), "it is not resumed here");
    for phase in [DomainPhase::Running, DomainPhase::Suspended] {
        let larger = changed(|machine| machine.spec.memory.size = ByteQuantity("8Gi".to_owned()));
        for machine in [vm(), larger] {
            let actions = decide(&asked_of(machine, saving(phase))).actions;
            let [Action::Adjust { change, .. }] = &actions[..] else { panic!("{phase:?} {actions:?}") };
            assert_eq!(
                change.power_state,
                Some(DomainPowerState::Running),
                "first it is resumed where it is"
            );
            assert_eq!(change.restart_requested, None);
        }
    }
}

#[test]
fn a_halted_or_deleted_machine_gives_up_what_was_saved() {
    let halted = changed(|machine| machine.spec.power_state = PowerState::Halted);
    let seen = Observed { state: Some(state_disk("a")), ..observed(with_memory_of(halted), Vec::new()) };
    assert!(decide(&seen).actions.iter().any(|action| matches!(action, Action::DiscardState(_))));
    assert_eq!(status_after(&seen).suspended, None);
    let gone =
        Observed { state: Some(state_disk("a")), ..observed(deleting(with_memory_of(vm())), Vec::new()) };
    assert!(decide(&gone).actions.iter().any(|action| matches!(action, Action::DiscardState(_))));
}

#[test]
fn what_is_saved_is_discarded_only_for_a_machine_that_is_off_or_runs() {
    let running = in_phase(domain_on("a"), DomainPhase::Running);
    let halted = changed(|machine| machine.spec.power_state = PowerState::Halted);
    assert!(may_be_discarded(&halted, &[]));
    assert!(may_be_discarded(&with_memory_of(vm()), std::slice::from_ref(&running)));
    assert!(may_be_discarded(&to_be_suspended(), &[]), "nothing was saved");
    assert!(!may_be_discarded(&with_memory_of(to_be_suspended()), &[]));
    assert!(!may_be_discarded(&with_memory_of(vm()), &[]), "it is about to be resumed");
    assert!(!may_be_discarded(&vm(), &[saving(DomainPhase::Running)]), "it is being saved");
    let mut resuming = saving(DomainPhase::Pending);
    resuming.spec.power_state = DomainPowerState::Running;
    assert!(!may_be_discarded(&vm(), &[resuming]));
}

#[test]
fn the_disk_for_a_guests_memory_is_known_by_its_owner_and_name() {
    let disk = new_state_disk(&vm(), "local", ByteQuantity("2Gi".to_owned()));
    assert_eq!(saved_machine(&disk), Some((Key::new("shop", "web-1"), UID)));
    let mut other = disk.clone();
    other.metadata.name = Some("data".to_owned());
    assert_eq!(saved_machine(&other), None);
    assert_eq!(state_size(&machine()), (1024 + 4 + 64) << 20);
}
