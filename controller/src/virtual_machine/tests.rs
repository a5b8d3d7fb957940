use super::{
    apply::survivor,
    decide::{Action, Adjustment, Plan, decide},
    observe::Observed,
    problem::Problem,
    references::Resolved,
    status::{happenings, render},
};
use crate::{samples, scheduler::Answer};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use kubexen_crds::{
    Boot, ByteQuantity, Domain, DomainMigration, DomainStatus, FeatureSet, GuestStatus, Kernel,
    MigrationRole, VirtualMachine, VirtualMachineSpec, VirtualMachineStatus,
    condition::{State, Wanted, find},
    domain::{DomainInterface, DomainPhase, DomainPowerState, Machine},
    names::{CONTROLLER_FINALIZER, RESTART_REQUESTED_AT},
    virtual_machine::{Cpu, Phase, PowerState},
};
use kubexen_runtime::Key;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

mod cloud_init;
mod properties;
mod recovery;
mod suspension;

const UID: &str = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";

fn boot() -> Boot {
    let kernel = Kernel { name: "linux".to_owned(), command_line: String::new() };
    Boot { type_: kubexen_crds::BootType::Pvh, firmware: None, kernel: Some(kernel) }
}

fn vm() -> VirtualMachine {
    VirtualMachine {
        metadata: ObjectMeta {
            name: Some("web-1".to_owned()),
            namespace: Some("shop".to_owned()),
            uid: Some(UID.to_owned()),
            generation: Some(3),
            finalizers: Some(vec![CONTROLLER_FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: VirtualMachineSpec {
            cpu: Cpu { count: 2, ..Cpu::default() },
            boot: boot(),
            ..samples::machine_spec()
        },
        status: None,
    }
}

fn machine() -> Machine {
    Machine {
        cpus: 2,
        max_cpus: 2,
        boot: boot(),
        interfaces: vec![DomainInterface {
            name: "eth0".to_owned(),
            uplink: "lan".to_owned(),
            mac: "00:16:3e:00:00:01".to_owned(),
            index: 0,
            rate_limit: None,
        }],
        ..samples::resolved_machine()
    }
}

fn resolved() -> Resolved {
    Resolved {
        machine: machine(),
        disks: Vec::new(),
        networks: Vec::new(),
        images: Vec::new(),
        saved_state: None,
    }
}

fn domain_on(host: &str) -> Domain {
    let mut domain = samples::domain("web-1", UID, host, &format!("domain-on-{host}"));
    domain.spec.machine = machine();
    domain
}

fn in_phase(mut domain: Domain, phase: DomainPhase) -> Domain {
    domain.status = Some(DomainStatus {
        phase: Some(phase),
        observed_generation: domain.metadata.generation,
        owner_token: Some(7),
        domid: Some(4),
        ..DomainStatus::default()
    });
    domain
}

fn observed(machine: VirtualMachine, domains: Vec<Domain>) -> Observed {
    Observed {
        machine: Arc::new(machine),
        domains: domains.into_iter().map(Arc::new).collect(),
        empty_domains: Vec::new(),
        predecessors: Vec::new(),
        state: None,
        references: Ok(resolved()),
        references_in_part: None,
        protection: None,
        room: None,
        answer: None,
        lost: None,
        host_ready: true,
        host_in_maintenance: false,
        leaving_for: None,
    }
}

fn deleting<K: kube::Resource>(mut object: K) -> K {
    object.meta_mut().deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    object
}

fn changed(change: impl FnOnce(&mut VirtualMachine)) -> VirtualMachine {
    let mut machine = vm();
    change(&mut machine);
    machine
}

fn status_after(observed: &Observed) -> VirtualMachineStatus {
    let report = decide(observed).report.expect("something is to be said");
    render(&observed.machine, &report, Timestamp::UNIX_EPOCH)
}

/// Phase, and status and reason of the condition Ready.
fn said(observed: &Observed) -> (Phase, String, String) {
    let status = status_after(observed);
    let ready = find(&status.conditions, "Ready").expect("Ready is always there");
    (status.phase.expect("a phase"), ready.status.clone(), ready.reason.clone())
}

fn is(observed: &Observed, phase: Phase, ready: &str, reason: &str) {
    assert_eq!(said(observed), (phase, ready.to_owned(), reason.to_owned()));
}

fn delete_on(host: &str) -> Action {
    Action::DeleteDomain {
        domain: Key::new(format!("kubexen-host-{host}"), "shop.web-1"),
        uid: format!("domain-on-{host}"),
    }
}

#[test]
fn the_finalizer_comes_before_everything_else() {
    let bare = changed(|machine| machine.metadata.finalizers = None);
    let plan = decide(&observed(bare.clone(), Vec::new()));
    assert_eq!(plan, Plan { actions: vec![Action::AddFinalizer], ..Plan::default() });
    assert_eq!(decide(&observed(deleting(bare), Vec::new())), Plan::default());
}

#[test]
fn a_machine_without_a_domain_asks_for_a_host_waits_and_starts_there() {
    let mut seen = observed(vm(), Vec::new());
    assert_eq!(decide(&seen).actions, [Action::AskForHost]);
    seen.answer = Some(Answer::Waiting);
    assert_eq!(decide(&seen), Plan { waits_for_host: true, ..Plan::default() });
    seen.answer = Some(Answer::Assigned("a".to_owned()));
    assert_eq!(decide(&seen).actions, [Action::Start { host: "a".to_owned() }]);
    assert_eq!(decide(&seen).report, None, "the Domain speaks for itself once it is there");
    seen.answer = Some(Answer::Rejected("0/2 hosts fit: 2 memory".to_owned()));
    is(&seen, Phase::Scheduling, "False", "Unschedulable");
    assert!(decide(&seen).waits_for_host);
}

#[test]
fn nothing_is_started_while_something_is_in_the_way() {
    let mut seen = observed(vm(), Vec::new());
    seen.answer = Some(Answer::Assigned("a".to_owned()));
    seen.references = Err(Problem::NetworkNotFound { network: "prod".to_owned() });
    is(&seen, Phase::Pending, "False", "NetworkNotFound");
    assert_eq!(decide(&seen).actions, []);
    seen.references = Err(Problem::DiskListedTwice { disk: "root".to_owned() });
    assert!(find(&status_after(&seen).conditions, "Stalled").is_some(), "only a change of the spec helps");
    seen.references = Err(Problem::DiskNew);
    assert_eq!(decide(&seen), Plan::default(), "a moment is not worth a write");
    seen.references = Ok(resolved());
    seen.predecessors = vec![Key::new("kubexen-host-a", "shop.web-1")];
    is(&seen, Phase::Pending, "False", "PredecessorStopping");
    assert_eq!(decide(&seen).actions, []);
}

#[test]
fn a_machine_that_had_a_domain_is_placed_anew_only_after_a_linearizable_read() {
    let running = observed(vm(), vec![in_phase(domain_on("a"), DomainPhase::Running)]);
    let status = status_after(&running);
    for power_state in [PowerState::Running, PowerState::Halted] {
        let lost = changed(|machine| {
            machine.status = Some(status.clone());
            machine.spec.power_state = power_state;
        });
        let plan = decide(&observed(lost, Vec::new()));
        assert_eq!(plan.actions, [Action::ConfirmGone], "{power_state:?}");
    }
}

#[test]
fn a_running_domain_makes_its_machine_ready_with_all_that_was_allocated() {
    let seen = observed(vm(), vec![in_phase(domain_on("a"), DomainPhase::Running)]);
    is(&seen, Phase::Running, "True", "Running");
    let status = status_after(&seen);
    assert_eq!(status.host.as_deref(), Some("a"));
    assert_eq!(status.owner_token, Some(7));
    assert_eq!(status.domain.and_then(|domain| domain.domid), Some(4));
    assert_eq!(status.interfaces[0].mac, "00:16:3e:00:00:01");
    assert_eq!(status.observed_generation, Some(3));
    let generations: Vec<_> =
        status.conditions.iter().map(|condition| condition.observed_generation).collect();
    assert_eq!(generations, [Some(3), Some(3), Some(3)]);
}

#[test]
fn every_phase_of_a_domain_has_its_word() {
    let cases = [
        (None, Phase::Starting, "False", "Starting"),
        (Some(DomainPhase::Pending), Phase::Starting, "False", "Starting"),
        (Some(DomainPhase::Running), Phase::Running, "True", "Running"),
        (Some(DomainPhase::Paused), Phase::Paused, "False", "Resuming"),
        (Some(DomainPhase::Stopping), Phase::Stopping, "False", "Stopping"),
        (Some(DomainPhase::Halted), Phase::Halted, "True", "StoppedByGuest"),
        (Some(DomainPhase::Preserved), Phase::Failed, "False", "Preserved"),
        (Some(DomainPhase::Failed), Phase::Failed, "False", "StartFailed"),
    ];
    for (domain, phase, ready, reason) in cases {
        let domain = domain.map_or_else(|| domain_on("a"), |phase| in_phase(domain_on("a"), phase));
        is(&observed(vm(), vec![domain]), phase, ready, reason);
    }
}

#[test]
fn a_paused_machine_is_ready_when_its_domain_is_paused() {
    let paused = changed(|machine| machine.spec.power_state = PowerState::Paused);
    let mut domain = in_phase(domain_on("a"), DomainPhase::Running);
    let plan = decide(&observed(paused.clone(), vec![domain.clone()]));
    let change = Adjustment { power_state: Some(DomainPowerState::Paused), ..Adjustment::default() };
    assert_eq!(plan.actions, [Action::Adjust { domain: Key::of(&domain), change }]);
    domain.spec.power_state = DomainPowerState::Paused;
    is(&observed(paused.clone(), vec![domain.clone()]), Phase::Running, "False", "Pausing");
    is(&observed(paused, vec![in_phase(domain, DomainPhase::Paused)]), Phase::Paused, "True", "Paused");
}

#[test]
fn ready_waits_until_the_agent_has_seen_the_whole_spec() {
    let mut domain = in_phase(domain_on("a"), DomainPhase::Running);
    domain.metadata.generation = Some(2);
    is(&observed(vm(), vec![domain]), Phase::Running, "False", "Applying");
}

#[test]
fn a_silent_host_makes_the_machine_unknown_and_starts_it_nowhere_else() {
    let mut seen = observed(vm(), vec![in_phase(domain_on("a"), DomainPhase::Running)]);
    seen.host_ready = false;
    is(&seen, Phase::Unknown, "Unknown", "HostSilent");
    assert_eq!(decide(&seen).actions, []);
}

#[test]
fn a_change_that_needs_a_restart_is_named_and_not_done() {
    let domain = in_phase(domain_on("a"), DomainPhase::Running);
    let mut seen = observed(vm(), vec![domain]);
    if let Ok(resolved) = &mut seen.references {
        resolved.machine.cpus = 4;
        resolved.machine.interfaces[0].mac = "00:16:3e:00:00:02".to_owned();
    }
    assert_eq!(decide(&seen).actions, []);
    let status = status_after(&seen);
    let synchronized = find(&status.conditions, "Synchronized").unwrap();
    assert_eq!((synchronized.status.as_str(), synchronized.reason.as_str()), ("False", "RestartRequired"));
    assert!(
        synchronized.message.starts_with("spec.cpu.count, spec.interfaces[eth0].mac "),
        "{}",
        synchronized.message
    );
    seen.references = Ok(resolved());
    let status = status_after(&seen);
    assert_eq!(find(&status.conditions, "Synchronized").unwrap().status, "True");
}

#[test]
fn a_restart_is_done_in_place_or_by_another_domain() {
    let restarted = changed(|machine| {
        let at = (RESTART_REQUESTED_AT.to_owned(), "2026-01-01T00:00:00Z".to_owned());
        machine.metadata.annotations = Some(BTreeMap::from([at]));
    });
    let domain = in_phase(domain_on("a"), DomainPhase::Running);
    let mut seen = observed(restarted.clone(), vec![domain.clone()]);
    let change =
        Adjustment { restart_requested: Some("2026-01-01T00:00:00Z".to_owned()), ..Adjustment::default() };
    assert_eq!(decide(&seen).actions, [Action::Adjust { domain: Key::of(&domain), change }]);
    seen.references = Err(Problem::NetworkNotFound { network: "prod".to_owned() });
    assert_eq!(decide(&seen).actions, [], "a restart waits for what the machine needs");
    let mut resolved = resolved();
    resolved.machine.cpus = 4;
    seen.references = Ok(resolved);
    assert_eq!(decide(&seen).actions, [delete_on("a")]);
    let mut asked = domain;
    asked.spec.restart_requested = Some("2026-01-01T00:00:00Z".to_owned());
    is(&observed(restarted.clone(), vec![asked.clone()]), Phase::Starting, "False", "Restarting");
    if let Some(status) = &mut asked.status {
        status.restart_handled.clone_from(&asked.spec.restart_requested);
    }
    is(&observed(restarted, vec![asked]), Phase::Running, "True", "Running");
}

#[test]
fn a_guest_that_is_off_on_a_host_in_maintenance_restarts_on_another() {
    let restarted = changed(|machine| {
        let at = (RESTART_REQUESTED_AT.to_owned(), "2026-01-01T00:00:00Z".to_owned());
        machine.metadata.annotations = Some(BTreeMap::from([at]));
    });
    let of = |phase| Observed {
        host_in_maintenance: true,
        ..observed(restarted.clone(), vec![in_phase(domain_on("a"), phase)])
    };
    assert_eq!(decide(&of(DomainPhase::Halted)).actions, [delete_on("a")]);
    let running = decide(&of(DomainPhase::Running)).actions;
    assert!(matches!(&running[..], [Action::Adjust { .. }]), "one that runs is not new there: {running:?}");
}

#[test]
fn a_short_move_is_not_worth_a_write_while_it_goes_on() {
    let part = DomainMigration {
        uid: UID.to_owned(),
        name: "move-1".to_owned(),
        role: MigrationRole::Source,
        peer: "b".to_owned(),
        address: None,
        bandwidth: None,
        cancel: false,
    };
    let mut leaving = in_phase(domain_on("a"), DomainPhase::Running);
    let before = observed(vm(), vec![leaving.clone()]);
    let running = VirtualMachine { status: Some(status_after(&before)), ..vm() };
    leaving.spec.migration = Some(part);
    let after =
        |time| Observed { leaving_for: Some(time), ..observed(running.clone(), vec![leaving.clone()]) };
    let short = decide(&after(Duration::from_secs(4)));
    assert_eq!((short.report, short.again), (None, Some(Duration::from_secs(6))));
    is(&after(Duration::from_secs(10)), Phase::Migrating, "True", "Running");
}

#[test]
fn a_machine_is_halted_when_its_domain_is_gone() {
    let halted = changed(|machine| machine.spec.power_state = PowerState::Halted);
    let seen = observed(halted.clone(), vec![in_phase(domain_on("a"), DomainPhase::Running)]);
    assert_eq!(decide(&seen).actions, [delete_on("a")]);
    is(&seen, Phase::Stopping, "False", "Stopping");
    let leaving = observed(halted.clone(), vec![deleting(in_phase(domain_on("a"), DomainPhase::Stopping))]);
    assert_eq!(decide(&leaving).actions, [], "once is enough");
    is(&observed(halted, Vec::new()), Phase::Halted, "True", "Halted");
}

#[test]
fn a_deleted_machine_is_let_go_only_after_all_its_domains() {
    let seen = observed(deleting(vm()), vec![domain_on("a"), domain_on("b")]);
    assert_eq!(decide(&seen).actions, [delete_on("a"), delete_on("b")]);
    let gone = observed(deleting(vm()), Vec::new());
    assert_eq!(decide(&gone).actions, [Action::ConfirmGone, Action::RemoveFinalizer]);
}

#[test]
fn of_two_domains_the_one_with_the_later_token_stays() {
    let seen = observed(vm(), vec![domain_on("a"), domain_on("b")]);
    let keys = seen.domains.iter().map(|domain| Key::of(&**domain)).collect();
    assert_eq!(decide(&seen).actions, [Action::SettleDuplicates { domains: keys }]);
    let with = |host: &str, token: Option<i64>| {
        let mut domain = in_phase(domain_on(host), DomainPhase::Running);
        if let Some(status) = &mut domain.status {
            status.owner_token = token;
        }
        domain
    };
    let cases = [
        (None, None, "a"),
        (Some(3), None, "a"),
        (None, Some(3), "b"),
        (Some(3), Some(9), "b"),
        (Some(9), Some(3), "a"),
    ];
    for (a, b, kept) in cases {
        let domains = [with("a", a), with("b", b)];
        for (owner, kept) in [(None, kept), (Some("c"), kept), (Some("a"), "a"), (Some("b"), "b")] {
            let survivor = survivor(&domains, owner).expect("one stays");
            let namespace = Some(format!("kubexen-host-{kept}"));
            assert_eq!(survivor.metadata.namespace, namespace, "{a:?} {b:?} {owner:?}");
        }
    }
}

#[test]
fn the_token_never_goes_back_and_addresses_outlive_a_halt() {
    let running = observed(vm(), vec![in_phase(domain_on("a"), DomainPhase::Running)]);
    let status = status_after(&running);
    let fresh = observed(changed(|machine| machine.status = Some(status.clone())), vec![domain_on("b")]);
    assert_eq!(status_after(&fresh).owner_token, Some(7));
    let off = changed(|machine| {
        machine.status = Some(status.clone());
        machine.spec.power_state = PowerState::Halted;
    });
    let halted = status_after(&observed(off, Vec::new()));
    assert_eq!((halted.owner_token, halted.host, halted.domain), (Some(7), None, None));
    assert_eq!(halted.interfaces, status.interfaces);
}

#[test]
fn a_plain_start_is_told_in_two_events() {
    let reasons = |machine: &VirtualMachine, domain: Domain| {
        let seen = observed(machine.clone(), vec![domain]);
        let report = decide(&seen).report.expect("a report");
        let told: Vec<_> = happenings(machine, &report).iter().map(|happening| happening.reason).collect();
        (told, render(machine, &report, Timestamp::UNIX_EPOCH))
    };
    let (told, starting) = reasons(&vm(), domain_on("a"));
    assert_eq!(told, ["Scheduled"]);
    let started = changed(|machine| machine.status = Some(starting));
    let (told, running) = reasons(&started, in_phase(domain_on("a"), DomainPhase::Running));
    assert_eq!(told, ["Started"]);
    let settled = changed(|machine| machine.status = Some(running));
    let (told, _) = reasons(&settled, in_phase(domain_on("a"), DomainPhase::Running));
    assert_eq!(told, [""; 0]);
    let behind = |reason: &str| {
        let wanted = vec![Wanted::new("Synchronized", State::False, "GuestNotResponding", "1 of 2 CPUs")];
        let mut domain = in_phase(domain_on("a"), DomainPhase::Running);
        domain.status.as_mut().expect("a status").conditions =
            kubexen_crds::condition::set(&[], wanted, None, Timestamp::UNIX_EPOCH);
        let (told, status) = reasons(&settled, domain);
        assert_eq!(told, [reason]);
        changed(|machine| machine.status = Some(status))
    };
    let behind = behind("GuestNotResponding");
    let (told, _) = reasons(&behind, in_phase(domain_on("a"), DomainPhase::Running));
    assert_eq!(told, ["Synchronized"]);
}

#[test]
fn a_machine_keeps_its_cpu_level_until_it_is_restarted_and_then_takes_the_pools() {
    let leveled = |names: &[&str]| Machine {
        cpu_level: Some(FeatureSet::from_names(names.iter().copied())),
        ..machine()
    };
    let mut domain = in_phase(domain_on("a"), DomainPhase::Running);
    domain.spec.machine = leveled(&["avx", "avx2"]);
    let mut seen = observed(vm(), vec![domain.clone()]);
    seen.references = Ok(Resolved { machine: leveled(&["avx"]), ..resolved() });
    assert_eq!(decide(&seen).actions, []);
    let synchronized = find(&status_after(&seen).conditions, "Synchronized").map(|one| one.status.clone());
    assert_eq!(synchronized.as_deref(), Some("True"));
    let restart = BTreeMap::from([(RESTART_REQUESTED_AT.to_owned(), "now".to_owned())]);
    let restarted = changed(|machine| machine.metadata.annotations = Some(restart.clone()));
    let again = Observed { machine: Arc::new(restarted.clone()), ..seen };
    assert_eq!(decide(&again).actions, [delete_on("a")]);
    let same = Observed { references: Ok(Resolved { machine: domain.spec.machine, ..resolved() }), ..again };
    assert!(matches!(decide(&same).actions.as_slice(), [Action::Adjust { .. }]));
}

#[test]
fn what_the_guest_said_follows_it_to_another_host_and_ends_when_it_is_off() {
    let guest = GuestStatus { os_name: Some("Debian".to_owned()), ..GuestStatus::default() };
    let with_guest = |guest: Option<&GuestStatus>, role: Option<MigrationRole>, phase| {
        let mut domain = in_phase(domain_on("a"), phase);
        domain.spec.migration = role.map(|role| DomainMigration {
            uid: UID.to_owned(),
            name: "away".to_owned(),
            role,
            peer: "b".to_owned(),
            address: None,
            bandwidth: None,
            cancel: false,
        });
        if let Some(status) = domain.status.as_mut() {
            status.guest = guest.cloned();
        }
        domain
    };
    let said = |domain| {
        let machine = changed(|machine| {
            machine.status = Some(VirtualMachineStatus { guest: Some(guest.clone()), ..Default::default() });
        });
        status_after(&observed(machine, vec![domain])).guest
    };
    let (running, destination) = (DomainPhase::Running, Some(MigrationRole::Destination));
    assert_eq!(said(with_guest(Some(&guest), None, running)), Some(guest.clone()));
    assert_eq!(said(with_guest(None, destination, running)), Some(guest.clone()));
    assert_eq!(said(with_guest(None, None, running)), None);
    assert_eq!(said(with_guest(None, destination, DomainPhase::Pending)), None);
}
