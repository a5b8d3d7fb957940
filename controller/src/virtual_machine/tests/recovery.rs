//! Machines whose host is dead.

use super::*;
use crate::{
    recovery::{Hold, Loss, LossKind},
    virtual_machine::{
        observe::Lost,
        references::{Disk, Site},
        suspension::new_state_disk,
    },
};
use kubexen_crds::{MigrationRole, RestartPriority, quantity::HostSelector};
use kubexen_ownership::{BootId, HostBoot, HostName, Token};
use proptest::prelude::*;

fn boot(host: &str) -> HostBoot {
    HostBoot { host: HostName::new(host).expect("a name"), boot_id: BootId::new("boot-1").expect("a boot") }
}

fn loss(kind: LossKind) -> Loss {
    Loss { from: boot("a"), kind, is_off: false, resuming: false, is_back: false }
}

fn protected() -> VirtualMachine {
    changed(|machine| machine.spec.availability.restart_priority = RestartPriority::Protected)
}

fn domain(host: &str, phase: DomainPhase) -> Domain {
    let mut domain = in_phase(domain_on(host), phase);
    domain.spec.protected = true;
    domain
}

/// A machine that ran on host a.
fn lost(kind: LossKind) -> Observed {
    let lost = Some(Lost { loss: loss(kind), turn: true });
    let domains = vec![domain("a", DomainPhase::Running)];
    Observed { lost, host_ready: false, ..observed(protected(), domains) }
}

fn owned() -> LossKind {
    LossKind::Owned(Token(7))
}

fn recovery(kind: LossKind) -> Action {
    Action::Recover { loss: loss(kind), to: "b".to_owned() }
}

#[test]
fn a_lost_machine_asks_for_a_host_and_is_given_to_it_without_a_word_in_between() {
    for kind in [owned(), LossKind::Unowned] {
        let mut seen = lost(kind.clone());
        for (answer, action) in [
            (None, vec![Action::AskForHost]),
            (Some(Answer::Waiting), Vec::new()),
            (Some(Answer::Assigned("b".to_owned())), vec![recovery(kind.clone())]),
        ] {
            seen.answer = answer;
            let plan = decide(&seen);
            assert_eq!(plan, Plan { actions: action, waits_for_host: true, ..Plan::default() });
        }
    }
}

#[test]
fn a_machine_that_was_given_to_a_host_starts_there_whatever_was_planned() {
    let given = LossKind::Given(boot("b"));
    let seen = Observed { answer: Some(Answer::Assigned("c".to_owned())), ..lost(given.clone()) };
    assert_eq!(decide(&seen).actions, [recovery(given.clone())]);
    let nowhere = Observed { domains: Vec::new(), ..lost(given.clone()) };
    assert_eq!(decide(&nowhere).actions, [recovery(given.clone())], "its Domain was removed before");
    let started = Observed {
        domains: vec![Arc::new(domain("b", DomainPhase::Pending))],
        host_ready: true,
        ..lost(given)
    };
    is(&started, Phase::Starting, "False", "Starting");
    let to_itself = Observed {
        domains: vec![Arc::new(domain("a", DomainPhase::Pending))],
        host_ready: true,
        ..lost(LossKind::Given(boot("a")))
    };
    is(&to_itself, Phase::Starting, "False", "Starting");
    assert_eq!(decide(&to_itself).actions, [], "a later boot of its host finds its Domain");
}

#[test]
fn a_machine_that_was_given_a_disk_elsewhere_since_is_not_started_where_it_is_not() {
    for (site, starts) in [
        (Site::On("b".to_owned()), true),
        (Site::On("c".to_owned()), false),
        (Site::New { location: "san".to_owned(), shared: true, selector: HostSelector::default() }, true),
    ] {
        let disk = Arc::new(new_state_disk(&vm(), "san", ByteQuantity("2Gi".to_owned())));
        let disks = vec![Disk { disk, site: site.clone(), shared: None }];
        let references = Ok(Resolved { disks, ..resolved() });
        let seen = Observed { references, ..lost(LossKind::Given(boot("b"))) };
        assert_eq!(decide(&seen).actions.iter().any(is_recovery), starts, "{site:?}");
    }
}

#[test]
fn a_machine_that_is_not_to_be_started_elsewhere_says_why() {
    for (hold, words) in [
        (Hold::NotGuarded, "confirmedDead"),
        (Hold::StormBrake, "too many hosts"),
        (Hold::Disarmed, "disarmed"),
        (Hold::Frozen, "backup"),
    ] {
        let seen = lost(LossKind::Held(hold));
        is(&seen, Phase::Unknown, "Unknown", "HostDead");
        let status = status_after(&seen);
        let ready = find(&status.conditions, "Ready").expect("Ready");
        assert!(ready.message.contains(words), "{}", ready.message);
    }
    let waits = Observed { machine: Arc::new(vm()), ..lost(owned()) };
    is(&waits, Phase::Unknown, "Unknown", "HostDead");
    assert_eq!(decide(&waits).actions, []);
    let rejected = Observed { answer: Some(Answer::Rejected("0/3 hosts fit".to_owned())), ..lost(owned()) };
    is(&rejected, Phase::Unknown, "Unknown", "Unschedulable");
    assert!(decide(&rejected).waits_for_host, "it tries on");
}

#[test]
fn a_machine_waits_for_its_turn() {
    let lost_one = lost(owned());
    let later = Observed { lost: lost_one.lost.clone().map(|lost| Lost { turn: false, ..lost }), ..lost_one };
    assert_eq!(decide(&later).actions, []);
    is(&later, Phase::Unknown, "Unknown", "HostDead");
}

#[test]
fn a_guest_that_had_ended_by_itself_or_is_not_to_run_is_not_started_elsewhere() {
    for phase in [DomainPhase::Halted, DomainPhase::Preserved] {
        let ended = Observed { domains: vec![Arc::new(domain("a", phase))], ..lost(owned()) };
        assert_eq!(decide(&ended).actions, [], "{phase:?}");
    }
    for state in [PowerState::Halted, PowerState::Suspended] {
        let mut machine = protected();
        machine.spec.power_state = state;
        let seen = Observed { machine: Arc::new(machine), ..lost(owned()) };
        assert!(!decide(&seen).actions.iter().any(is_recovery), "{state:?}");
    }
}

#[test]
fn what_a_migration_left_on_the_chosen_host_goes_first() {
    let half = domain_on("b");
    let key = Key::of(&half);
    let mut seen = Observed {
        empty_domains: vec![Arc::new(half.clone())],
        answer: Some(Answer::Assigned("b".to_owned())),
        ..lost(owned())
    };
    assert_eq!(decide(&seen).actions, [Action::DeleteUnchanged(key)]);
    seen.empty_domains = vec![Arc::new(deleting(half))];
    assert_eq!(decide(&seen).actions, []);
    seen.answer = Some(Answer::Assigned("c".to_owned()));
    assert_eq!(decide(&seen).actions, [Action::Recover { loss: loss(owned()), to: "c".to_owned() }]);
}

#[test]
fn a_recovery_that_was_cut_short_is_finished_and_a_migration_that_went_over_is_left_to_its_end() {
    let both = |kind, of_a: Domain, of_b: Domain| Observed {
        domains: vec![Arc::new(of_a), Arc::new(of_b)],
        host_ready: true,
        ..lost(kind)
    };
    let (on_a, on_b) = (domain("a", DomainPhase::Running), domain("b", DomainPhase::Pending));
    let given = || LossKind::Given(boot("b"));
    for kind in [given(), owned(), LossKind::Unowned] {
        assert_eq!(decide(&both(kind.clone(), on_a.clone(), on_b.clone())).actions, [recovery(kind)]);
    }
    let mut ends = both(given(), deleting(on_a.clone()), on_b.clone());
    assert_eq!(decide(&ends).actions, [recovery(given())], "no agent ends it");
    ends.lost.as_mut().expect("it is lost").loss.is_back = true;
    is(&ends, Phase::Starting, "False", "Starting");
    let (mut left, mut came) = (on_a, on_b);
    left.spec.migration = part(MigrationRole::Source, "b");
    came.spec.migration = part(MigrationRole::Destination, "a");
    assert!(!decide(&both(given(), left, came)).actions.iter().any(is_recovery));
}

#[test]
fn what_a_migration_left_on_a_dead_host_is_for_its_agent_to_end_and_keeps_the_guest_from_nothing() {
    let mut never_came = domain("a", DomainPhase::Receiving);
    never_came.spec.migration = part(MigrationRole::Destination, "c");
    let with = |kind, never_came: Domain, others: Vec<Domain>| Observed {
        domains: others.into_iter().map(Arc::new).collect(),
        empty_domains: vec![Arc::new(never_came)],
        answer: Some(Answer::Assigned("b".to_owned())),
        host_ready: true,
        ..lost(kind)
    };
    let ends = deleting(never_came.clone());
    let unowned = with(LossKind::Unowned, ends.clone(), Vec::new());
    assert_eq!(decide(&unowned).actions, [recovery(LossKind::Unowned)], "the guest does not wait for it");
    let given = || LossKind::Given(boot("b"));
    let on_b = domain("b", DomainPhase::Running);
    let told = with(given(), never_came, vec![on_b.clone()]);
    assert_eq!(decide(&told).actions, [recovery(given())], "somebody has to delete it");
    let mut started = with(given(), ends, vec![on_b]);
    let mut seen_off = started.clone();
    let loss = &mut seen_off.lost.as_mut().expect("it is lost").loss;
    loss.is_off = true;
    let removes = Action::Recover { loss: loss.clone(), to: "b".to_owned() };
    assert_eq!(decide(&seen_off).actions, [removes], "nothing is left of it, and no agent to end it");
    started.references.as_mut().expect("all is there").machine.cpu_weight += 1;
    let actions = decide(&started).actions;
    let [Action::Adjust { change, .. }] = &actions[..] else { panic!("{actions:?}") };
    assert!(change.machine.is_some(), "nothing is copied any more");
}

fn part(role: MigrationRole, peer: &str) -> Option<DomainMigration> {
    Some(DomainMigration {
        uid: "move-1".to_owned(),
        name: "move".to_owned(),
        role,
        peer: peer.to_owned(),
        address: None,
        bandwidth: None,
        cancel: false,
    })
}

fn is_recovery(action: &Action) -> bool {
    matches!(action, Action::Recover { .. })
}

proptest! {
    #[test]
    fn a_machine_whose_boot_is_not_fenced_is_never_recovered(
        priority in prop::sample::select(vec![
            RestartPriority::Protected, RestartPriority::BestEffort, RestartPriority::None,
        ]),
        state in prop::sample::select(vec![
            PowerState::Running, PowerState::Paused, PowerState::Halted, PowerState::Suspended,
        ]),
        phase in prop::option::of(prop::sample::select(vec![
            DomainPhase::Pending, DomainPhase::Running, DomainPhase::Halted, DomainPhase::Failed,
        ])),
        assigned in any::<bool>(),
        ready in any::<bool>(),
        gone in any::<bool>(),
    ) {
        let mut machine = vm();
        machine.spec.availability.restart_priority = priority;
        machine.spec.power_state = state;
        let domain = phase.map_or_else(|| domain_on("a"), |phase| in_phase(domain_on("a"), phase));
        let seen = Observed {
            host_ready: ready,
            answer: assigned.then(|| Answer::Assigned("b".to_owned())),
            ..observed(machine, if gone { Vec::new() } else { vec![domain] })
        };
        prop_assert!(!decide(&seen).actions.iter().any(is_recovery));
    }
}
