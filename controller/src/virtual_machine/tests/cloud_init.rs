//! User data: when it matters, and when it is copied.

use super::*;
use crate::virtual_machine::cloud_init::matters;
use kubexen_crds::{CloudInit, DomainCloudInit, cloud_init::SecretReference, condition};

const ASKED: &str = "2026-01-31T12:00:00Z";

fn with_user_data(mut machine: VirtualMachine) -> VirtualMachine {
    let user_data_secret = SecretReference { name: "web".to_owned() };
    machine.spec.cloud_init = Some(CloudInit { user_data_secret });
    machine
}

fn with_seed(mut domain: Domain) -> Domain {
    domain.spec.machine.cloud_init = Some(DomainCloudInit {
        secret: "cloud-init.shop.web-1".to_owned(),
        user_data_secret: "web".to_owned(),
    });
    domain
}

fn missing(domain: Domain) -> Domain {
    let mut domain = in_phase(with_seed(domain), DomainPhase::Pending);
    let ready = Wanted::new("Ready", State::False, "SecretMissing", "it is not there");
    if let Some(status) = &mut domain.status {
        status.conditions = condition::set(&[], vec![ready], Some(1), Timestamp::UNIX_EPOCH);
    }
    domain
}

fn restarted(mut machine: VirtualMachine) -> VirtualMachine {
    let annotation = (RESTART_REQUESTED_AT.to_owned(), ASKED.to_owned());
    machine.metadata.annotations = Some(BTreeMap::from([annotation]));
    machine
}

fn seen(machine: VirtualMachine, domain: Domain) -> Observed {
    let mut seen = observed(with_user_data(machine), vec![with_seed(domain)]);
    if let Ok(resolved) = &mut seen.references {
        resolved.machine = seen.domains[0].spec.machine.clone();
    }
    seen
}

fn copy_on(host: &str) -> Action {
    Action::CopyUserData { domain: Key::new(format!("kubexen-host-{host}"), "shop.web-1") }
}

#[test]
fn a_machine_whose_secret_is_missing_says_so_and_looks_again() {
    let mut seen = observed(with_user_data(vm()), Vec::new());
    seen.references = Err(Problem::SecretNotFound { secret: "web".to_owned(), namespace: "shop".to_owned() });
    is(&seen, Phase::Pending, "False", "SecretNotFound");
    let plan = decide(&seen);
    assert!(plan.actions.is_empty() && plan.again.is_some(), "{plan:?}");
}

#[test]
fn a_restarted_guest_gets_what_its_owner_wrote_since_before_it_is_restarted() {
    let running = in_phase(domain_on("a"), DomainPhase::Running);
    let plan = decide(&seen(restarted(vm()), running.clone()));
    let change = Adjustment { restart_requested: Some(ASKED.to_owned()), ..Adjustment::default() };
    assert_eq!(plan.actions, [copy_on("a"), Action::Adjust { domain: Key::of(&running), change }]);
    assert_eq!(decide(&seen(vm(), running)).actions, []);
}

#[test]
fn whoever_misses_a_copy_gets_it_also_the_destination_of_a_move() {
    assert_eq!(decide(&seen(vm(), missing(domain_on("a")))).actions, [copy_on("a")]);
    let mut moving = seen(vm(), in_phase(domain_on("a"), DomainPhase::Running));
    moving.empty_domains = vec![Arc::new(missing(domain_on("b")))];
    assert_eq!(decide(&moving).actions, [copy_on("b")]);
}

#[test]
fn a_secret_is_looked_at_only_for_a_guest_that_is_about_to_start() {
    let there = |domain| vec![Arc::new(with_seed(domain))];
    let running = || there(in_phase(domain_on("a"), DomainPhase::Running));
    let halted = changed(|machine| machine.spec.power_state = PowerState::Halted);
    for (machine, domains, empty, expected) in [
        (with_user_data(vm()), Vec::new(), Vec::new(), true),
        (vm(), Vec::new(), Vec::new(), false),
        (with_user_data(halted), Vec::new(), Vec::new(), false),
        (deleting(with_user_data(vm())), Vec::new(), Vec::new(), false),
        (with_user_data(vm()), running(), Vec::new(), false),
        (restarted(with_user_data(vm())), running(), Vec::new(), true),
        (with_user_data(vm()), there(missing(domain_on("a"))), Vec::new(), true),
        (with_user_data(vm()), running(), there(missing(domain_on("b"))), true),
    ] {
        assert_eq!(
            matters(&machine, &domains, &empty),
            expected,
            "{machine:?} with {domains:?} and {empty:?}"
        );
    }
}
