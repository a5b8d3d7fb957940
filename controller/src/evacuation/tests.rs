use super::{
    apply::migration_name,
    decide::{Action, Plan, Words, decide},
    observe::{Guest, Observed},
    status::{EVACUATED, Report, news},
};
use crate::{
    migration::{movable::Sends, turns::Load},
    placement::{HostView, Request, Snapshot, group_key},
    samples::{self, named, running},
    virtual_machine::problem::Problem,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kubexen_crds::{
    BootType, ByteQuantity, Domain, DomainMigration, EvacuationAction, Host, HostSpec, HostStatus,
    Maintenance, MigrationPhase, MigrationRole, VirtualMachineMigration, VirtualMachineMigrationSpec,
    VirtualMachineMigrationStatus,
    condition::{self, State, Wanted},
    domain::DomainPhase,
    names::EVACUATION_ATTEMPT,
    pool::{MigrationPolicy, PlacementPolicy},
    quantity::HostSelector,
    virtual_machine::{AntiAffinityMode, OnMaintenance},
};
use kubexen_runtime::{Key, events::Severity};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const GIB: u64 = 1 << 30;

fn host(enabled: bool) -> Host {
    Host {
        metadata: ObjectMeta {
            name: Some("a".to_owned()),
            uid: Some("6f9619ff-8b86-4d01-b42d-00cf4fc964ff".to_owned()),
            generation: Some(4),
            ..ObjectMeta::default()
        },
        spec: HostSpec { schedulable: true, maintenance: Maintenance { enabled }, ..HostSpec::default() },
        status: None,
    }
}

/// Another host, on which guests fit.
fn other(name: &str) -> HostView {
    HostView {
        name: name.to_owned(),
        ready: true,
        schedulable: true,
        memory_allocatable: 16 * GIB,
        cpus: 16,
        receives: [BootType::Pvh].into(),
        on_migration_network: true,
        capabilities: ["hap", "hvm"].map(str::to_owned).into(),
        ..HostView::default()
    }
}

/// A guest that runs on host a and can go anywhere.
fn guest(name: &str) -> Guest {
    let machine_uid = format!("machine-{name}");
    let machine = samples::virtual_machine(name, &machine_uid);
    let domain = running(samples::domain(name, &machine_uid, "a", &format!("domain-{name}")));
    let request = |moves| Request {
        key: Key::new("shop", name),
        memory: GIB,
        vcpus: 1,
        growth: 0,
        boot: BootType::Pvh,
        cpu_level: None,
        kernel: None,
        boot_loader: false,
        firmware: None,
        selector: HostSelector::default(),
        anti_affinity: None,
        networks: Vec::new(),
        images: Vec::new(),
        disks: Vec::new(),
        moves,
        protected: false,
        recovers: false,
        avoid: None,
    };
    Guest {
        key: Key::new("shop", name),
        domain: Arc::new(domain),
        machine: Some(Arc::new(machine)),
        is_here: true,
        sends: Sends::Yes,
        record: None,
        other_move: None,
        to_move: Ok(request(true)),
        to_start: Ok(request(false)),
    }
}

fn with(mut guest: Guest, change: impl FnOnce(&mut Domain)) -> Guest {
    change(Arc::make_mut(&mut guest.domain));
    guest
}

fn with_policy(guest: Guest, policy: OnMaintenance) -> Guest {
    with(guest, |domain| domain.spec.lifecycle.on_maintenance = policy)
}

fn in_phase(guest: Guest, phase: DomainPhase) -> Guest {
    with(guest, |domain| domain.status.as_mut().unwrap().phase = Some(phase))
}

/// A guest that cannot leave its host while it runs.
fn tied(name: &str, policy: OnMaintenance) -> Guest {
    Guest { sends: Sends::No, ..with_policy(guest(name), policy) }
}

fn record(guest: &Guest, attempt: u32, phase: Option<MigrationPhase>) -> VirtualMachineMigration {
    let mut migration = VirtualMachineMigration {
        metadata: named("shop", &format!("{}-away", guest.key.name), &format!("record-{}", guest.key.name)),
        spec: VirtualMachineMigrationSpec {
            virtual_machine: guest.key.name.clone(),
            host: Some("b".to_owned()),
            cancel: false,
            reason: None,
        },
        status: None,
    };
    let attempt = BTreeMap::from([(EVACUATION_ATTEMPT.to_owned(), attempt.to_string())]);
    migration.metadata.annotations = Some(attempt);
    let why = vec![Wanted::new("Succeeded", State::False, "TransferFailed", "the connection broke")];
    migration.status = phase.map(|phase| VirtualMachineMigrationStatus {
        phase: Some(phase),
        destination: Some("b".to_owned()),
        finished_at: phase.is_final().then_some(Time(NOW)),
        conditions: condition::set(&[], why, None, NOW),
        ..VirtualMachineMigrationStatus::default()
    });
    migration
}

fn recorded(guest: Guest, attempt: u32, phase: Option<MigrationPhase>) -> Guest {
    Guest { record: Some(Arc::new(record(&guest, attempt, phase))), ..guest }
}

fn observed(guests: Vec<Guest>) -> Observed {
    Observed {
        host: Arc::new(host(true)),
        reports: true,
        fenced: false,
        records: guests.iter().filter_map(|guest| guest.record.clone()).collect(),
        guests,
        pool: Snapshot { hosts: vec![other("b"), other("c")], policy: PlacementPolicy::default() },
        load: Load::default(),
        limits: MigrationPolicy::default(),
        told: None,
    }
}

fn said(plan: &Plan) -> Report {
    match &plan.words {
        Words::Say(report) => report.clone(),
        Words::Keep => panic!("nothing is said"),
    }
}

/// Name, action, destination and reason of each guest.
fn lines(plan: &Plan) -> Vec<(String, EvacuationAction, Option<String>, String)> {
    let machines = said(plan).evacuation.expect("a plan").machines;
    machines.into_iter().map(|step| (step.name, step.action, step.destination, step.reason)).collect()
}

fn line(
    name: &str,
    action: EvacuationAction,
    destination: Option<&str>,
    reason: &str,
) -> (String, EvacuationAction, Option<String>, String) {
    (name.to_owned(), action, destination.map(str::to_owned), reason.to_owned())
}

fn verdict(plan: &Plan) -> (State, &'static str) {
    let condition = said(plan).condition.expect("a condition");
    assert_eq!(condition.type_, EVACUATED);
    (condition.state, condition.reason)
}

fn begins(plan: &Plan) -> Vec<(&str, &str)> {
    let begin = |action: &'_ Action| match action {
        Action::Begin { .. } => true,
        Action::Withdraw { .. } | Action::Stop { .. } => false,
    };
    plan.actions
        .iter()
        .filter(|action| begin(action))
        .map(|action| match action {
            Action::Begin { machine, destination, .. } => (machine.name.as_str(), destination.as_str()),
            Action::Withdraw { .. } | Action::Stop { .. } => unreachable!(),
        })
        .collect()
}

/// The Host with this said of it.
fn saying(report: &Report) -> Arc<Host> {
    let mut host = host(true);
    host.status = Some(HostStatus {
        evacuation: report.evacuation.clone(),
        conditions: condition::set(&[], report.condition.clone().into_iter().collect(), Some(4), NOW),
        ..HostStatus::default()
    });
    Arc::new(host)
}

use EvacuationAction::{Leave, Migrate, Restart, Wait};

#[test]
fn a_plan_spreads_the_guests_and_begins_as_many_moves_as_the_limits_allow() {
    let large = with(guest("large"), |domain| domain.spec.machine.memory = ByteQuantity("4Gi".to_owned()));
    let plan = decide(&observed(vec![guest("one"), guest("two"), large, guest("three")]), NOW);
    assert_eq!(
        lines(&plan),
        [
            line("large", Migrate, Some("b"), "Moving"),
            line("one", Migrate, Some("c"), "Moving"),
            line("three", Migrate, Some("b"), "Planned"),
            line("two", Migrate, Some("c"), "Planned"),
        ]
    );
    assert_eq!(begins(&plan), [("large", "b"), ("one", "c")]);
    assert_eq!(verdict(&plan), (State::False, "Evacuating"));
    let full = Observed { load: Load { pool: 8, ..Load::default() }, ..observed(vec![guest("one")]) };
    assert_eq!(begins(&decide(&full, NOW)), []);
}

#[test]
fn a_destination_that_takes_part_in_enough_moves_lets_those_for_others_go_first() {
    let load = Load { pool: 2, hosts: BTreeMap::from([("b".to_owned(), 2)]) };
    let plan = decide(&Observed { load, ..observed(vec![guest("one"), guest("two")]) }, NOW);
    assert_eq!(begins(&plan), [("two", "c")]);
}

#[test]
fn guests_of_one_group_that_must_be_apart_are_planned_onto_different_hosts() {
    let apart = |name: &str| {
        let group = Some((group_key("shop", "web"), AntiAffinityMode::Required));
        let request = Request { anti_affinity: group, ..guest(name).to_move.unwrap() };
        Guest { to_move: Ok(request), ..guest(name) }
    };
    let plan = decide(&observed(vec![apart("one"), apart("three"), apart("two")]), NOW);
    assert_eq!(begins(&plan), [("one", "b"), ("three", "c")]);
    assert_eq!(lines(&plan)[0], line("two", Wait, None, "NoHostFits"));
}

#[test]
fn what_cannot_move_does_as_its_policy_says() {
    let wait = decide(&observed(vec![tied("vm", OnMaintenance::Wait)]), NOW);
    assert_eq!(lines(&wait), [line("vm", Wait, None, "NotMigratable")]);
    assert_eq!((verdict(&wait), &wait.actions[..]), ((State::False, "Blocked"), &[][..]));
    let restart = decide(&observed(vec![tied("vm", OnMaintenance::Restart)]), NOW);
    assert_eq!(lines(&restart), [line("vm", Restart, Some("b"), "Stopping")]);
    assert!(matches!(&restart.actions[..], [Action::Stop { uid, .. }] if uid == "domain-vm"));
    let leave = decide(&observed(vec![tied("vm", OnMaintenance::Leave)]), NOW);
    assert_eq!(lines(&leave), [line("vm", Leave, None, "NotMigratable")]);
    assert_eq!(verdict(&leave), (State::True, "GuestsLeft"));
    let seen = (Key::new("kubexen-host-a", "shop.vm"), Some("7".to_owned()));
    assert_eq!(leave.confirm, Some(vec![seen]));
}

#[test]
fn what_can_move_moves_whatever_its_policy_for_others_says() {
    for policy in [OnMaintenance::Wait, OnMaintenance::Restart, OnMaintenance::Leave] {
        let plan = decide(&observed(vec![with_policy(guest("vm"), policy)]), NOW);
        assert_eq!(begins(&plan), [("vm", "b")], "{policy:?}");
    }
}

#[test]
fn a_guest_is_not_shut_down_when_no_other_host_could_start_it() {
    let nowhere =
        Observed { pool: Snapshot::default(), ..observed(vec![tied("vm", OnMaintenance::Restart)]) };
    let plan = decide(&nowhere, NOW);
    assert_eq!(lines(&plan), [line("vm", Wait, None, "NotMigratable")]);
    assert_eq!(plan.actions, []);
    let message = said(&plan).evacuation.unwrap().machines[0].message.clone().unwrap();
    assert!(message.contains("nor can it start on another host"), "{message}");
}

#[test]
fn a_guest_that_no_host_receives_while_it_runs_may_start_on_one() {
    let mut seen = observed(vec![with_policy(guest("vm"), OnMaintenance::Restart)]);
    seen.pool.hosts.iter_mut().for_each(|host| host.receives.clear());
    assert_eq!(lines(&decide(&seen, NOW)), [line("vm", Restart, Some("b"), "Stopping")]);
    seen.guests = vec![guest("vm")];
    assert_eq!(lines(&decide(&seen, NOW)), [line("vm", Wait, None, "NoHostFits")]);
}

#[test]
fn only_so_many_guests_are_shut_down_at_a_time() {
    let guests = ["a", "b", "c"].map(|name| tied(name, OnMaintenance::Restart)).to_vec();
    assert_eq!(decide(&observed(guests), NOW).actions.len(), 2);
}

#[test]
fn a_guest_that_is_not_in_a_state_to_decide_about_is_waited_for() {
    let deleting = |guest: Guest| with(guest, |domain| domain.metadata.deletion_timestamp = Some(Time(NOW)));
    let arriving = with(Guest { is_here: false, ..guest("vm") }, |domain| {
        domain.spec.migration = Some(part(MigrationRole::Destination));
    });
    let left = with(Guest { is_here: false, ..guest("vm") }, |domain| {
        domain.spec.migration = Some(part(MigrationRole::Source));
    });
    let leaving = with(guest("vm"), |domain| domain.spec.migration = Some(part(MigrationRole::Source)));
    for (guest, action, reason) in [
        (in_phase(guest("vm"), DomainPhase::Pending), Wait, "NotRunningYet"),
        (in_phase(guest("vm"), DomainPhase::Failed), Wait, "StartFailed"),
        (in_phase(guest("vm"), DomainPhase::Halted), Leave, "StoppedByGuest"),
        (Guest { machine: None, ..guest("vm") }, Wait, "Stopping"),
        (deleting(guest("vm")), Restart, "Stopping"),
        (deleting(Guest { machine: None, ..guest("vm") }), Wait, "Stopping"),
        (arriving, Wait, "Arriving"),
        (left, Migrate, "Moving"),
        (leaving, Migrate, "Moving"),
        (recorded(guest("vm"), 1, None), Migrate, "Moving"),
        (Guest { other_move: Some("mine".to_owned()), ..guest("vm") }, Migrate, "Moving"),
    ] {
        let plan = decide(&observed(vec![guest]), NOW);
        let (_, was, _, said) = lines(&plan).remove(0);
        assert_eq!((was, said.as_str()), (action, reason));
        assert_eq!(plan.actions, [], "{reason}");
    }
    let silent = decide(&Observed { reports: false, ..observed(vec![guest("vm")]) }, NOW);
    assert_eq!(lines(&silent), [line("vm", Wait, None, "HostSilent")]);
    let fenced = Observed { reports: false, fenced: true, ..observed(vec![guest("vm")]) };
    assert_eq!(lines(&decide(&fenced, NOW)), [line("vm", Wait, None, "HostFenced")]);
}

fn part(role: MigrationRole) -> DomainMigration {
    DomainMigration {
        uid: "move".to_owned(),
        name: "move".to_owned(),
        role,
        peer: "b".to_owned(),
        address: None,
        bandwidth: None,
        cancel: false,
    }
}

#[test]
fn a_move_that_failed_is_tried_again_later_and_to_another_host_if_one_fits() {
    let failed = |attempt| observed(vec![recorded(guest("vm"), attempt, Some(MigrationPhase::Failed))]);
    let soon = decide(&failed(1), NOW);
    assert_eq!(lines(&soon), [line("vm", Migrate, None, "Retrying")]);
    assert_eq!((&soon.actions[..], soon.again), (&[][..], Some(Duration::from_secs(10))));
    let again = decide(&failed(1), NOW + SignedDuration::from_secs(10));
    assert_eq!(begins(&again), [("vm", "c")]);
    assert!(matches!(&again.actions[..], [Action::Withdraw { .. }, Action::Begin { attempt: 2, .. }]));
    let patient = decide(&failed(3), NOW + SignedDuration::from_secs(20));
    assert_eq!(lines(&patient), [line("vm", Migrate, None, "Retrying")]);
    assert_eq!(begins(&decide(&failed(30), NOW + SignedDuration::from_mins(5))), [("vm", "c")]);
}

#[test]
fn an_end_that_a_fast_clock_dated_into_the_future_delays_no_try_beyond_the_usual_time() {
    let mut moved = recorded(guest("vm"), 1, Some(MigrationPhase::Failed));
    let mut record = moved.record.as_deref().unwrap().clone();
    record.metadata.creation_timestamp = Some(Time(NOW));
    record.status.as_mut().unwrap().finished_at = Some(Time(NOW + SignedDuration::from_hours(24)));
    moved.record = Some(std::sync::Arc::new(record));
    let seen = observed(vec![moved]);
    assert_eq!(decide(&seen, NOW).again, Some(Duration::from_secs(10)));
    assert_eq!(begins(&decide(&seen, NOW + SignedDuration::from_secs(10))), [("vm", "c")]);
}

#[test]
fn a_guest_whose_moves_keep_failing_counts_as_one_that_cannot_move() {
    let failed = |policy| recorded(with_policy(guest("vm"), policy), 3, Some(MigrationPhase::Failed));
    let lines_of = |policy| lines(&decide(&observed(vec![failed(policy)]), NOW));
    assert_eq!(lines_of(OnMaintenance::Restart), [line("vm", Restart, Some("b"), "Stopping")]);
    assert_eq!(lines_of(OnMaintenance::Leave), [line("vm", Leave, None, "TransferFailed")]);
    assert_eq!(lines_of(OnMaintenance::Wait), [line("vm", Migrate, None, "Retrying")]);
}

#[test]
fn a_move_that_waits_for_a_guest_that_does_not_run_gives_its_turn_up() {
    let idle = recorded(in_phase(guest("vm"), DomainPhase::Pending), 1, Some(MigrationPhase::Pending));
    assert!(matches!(&decide(&observed(vec![idle]), NOW).actions[..], [Action::Withdraw { .. }]));
}

#[test]
fn an_empty_host_is_said_to_be_so_only_after_a_look_at_the_server() {
    let plan = decide(&observed(Vec::new()), NOW);
    assert_eq!((verdict(&plan), plan.confirm.clone()), ((State::True, "Empty"), Some(Vec::new())));
    let known = decide(&Observed { host: saying(&said(&plan)), ..observed(Vec::new()) }, NOW);
    assert_eq!((known.words, known.confirm, known.again), (Words::Keep, None, None));
    let mut changed = Host::clone(&saying(&said(&plan)));
    changed.metadata.generation = Some(5);
    let changed = decide(&Observed { host: Arc::new(changed), ..observed(Vec::new()) }, NOW);
    assert_eq!(changed.confirm, Some(Vec::new()), "the spec is another, so it is said anew");
}

#[test]
fn progress_is_written_every_five_seconds_at_most_and_the_end_at_once() {
    let before = said(&decide(&observed(vec![guest("one"), guest("two")]), NOW));
    let seen = |guests, age| Observed {
        host: saying(&before),
        told: Some(Duration::from_secs(age)),
        ..observed(guests)
    };
    let early = decide(&seen(vec![guest("two")], 1), NOW);
    assert_eq!((early.words, early.again), (Words::Keep, Some(Duration::from_secs(4))));
    assert_ne!(decide(&seen(vec![guest("two")], 5), NOW).words, Words::Keep);
    assert_ne!(decide(&seen(Vec::new(), 1), NOW).words, Words::Keep);
    let same = decide(&seen(vec![guest("one"), guest("two")], 60), NOW);
    assert_eq!(same.words, Words::Keep);
}

#[test]
fn a_guest_that_was_left_on_an_evacuated_host_is_not_moved_later() {
    let before = said(&decide(&observed(vec![tied("vm", OnMaintenance::Leave)]), NOW));
    let free = with_policy(guest("vm"), OnMaintenance::Leave);
    let plan = decide(&Observed { host: saying(&before), ..observed(vec![free]) }, NOW);
    assert_eq!(plan.actions, []);
}

#[test]
fn the_end_of_a_maintenance_calls_off_what_has_not_begun_to_copy_and_takes_the_plan_away() {
    for (phase, withdrawn) in [
        (None, true),
        (Some(MigrationPhase::Pending), true),
        (Some(MigrationPhase::Preparing), true),
        (Some(MigrationPhase::Copying), false),
        (Some(MigrationPhase::Succeeded), true),
        (Some(MigrationPhase::Failed), true),
    ] {
        let seen = observed(vec![recorded(guest("vm"), 1, phase)]);
        let plan = decide(&Observed { host: Arc::new(host(false)), guests: Vec::new(), ..seen }, NOW);
        assert_eq!(plan.actions.len(), usize::from(withdrawn), "{phase:?}");
        assert_eq!(said(&plan), Report::default());
    }
}

#[test]
fn a_guest_that_cannot_start_elsewhere_is_not_stopped_and_the_plan_says_why() {
    let gone = || Problem::SecretNotFound { secret: "web".to_owned(), namespace: "shop".to_owned() };
    let told = |guest: Guest| {
        let plan = decide(&observed(vec![guest]), NOW);
        assert_eq!(plan.actions, []);
        let step = said(&plan).evacuation.unwrap().machines.remove(0);
        (step.reason, step.message.unwrap())
    };
    let stuck = Guest { to_move: Err(gone()), to_start: Err(gone()), ..guest("vm") };
    for policy in [OnMaintenance::Wait, OnMaintenance::Restart, OnMaintenance::Leave] {
        let told = told(with_policy(stuck.clone(), policy));
        assert_eq!(told, ("SecretNotFound".to_owned(), gone().message()), "{policy:?}");
    }
    let tied = Guest { to_start: Err(gone()), ..tied("vm", OnMaintenance::Restart) };
    let (reason, message) = told(tied);
    assert_eq!(reason, "NotMigratable");
    let both = format!("; nor can it start on another host: {}", gone().message());
    assert!(message.ends_with(&both), "{message}");
}

#[test]
fn people_hear_of_it_when_an_evacuation_takes_a_turn() {
    let tell = |before: Option<Vec<Guest>>, after: Vec<Guest>| {
        let before = before
            .map_or_else(|| Arc::new(host(true)), |guests| saying(&said(&decide(&observed(guests), NOW))));
        let now = said(&decide(&observed(after), NOW));
        news(&before, &now).map(|(severity, reason, _)| (severity, reason))
    };
    let blocked = || vec![tied("vm", OnMaintenance::Wait)];
    assert_eq!(tell(None, vec![guest("vm")]), Some((Severity::Normal, "Evacuating")));
    assert_eq!(tell(Some(vec![guest("vm"), guest("two")]), vec![guest("vm")]), None);
    assert_eq!(tell(Some(vec![guest("vm")]), blocked()), Some((Severity::Warning, "EvacuationBlocked")));
    assert_eq!(tell(Some(blocked()), Vec::new()), Some((Severity::Normal, "Evacuated")));
    let ended = news(&saying(&said(&decide(&observed(Vec::new()), NOW))), &Report::default());
    assert_eq!(ended.map(|(_, reason, _)| reason), Some("MaintenanceEnded"));
}

#[test]
fn a_plan_is_bounded_and_counts_what_it_does_not_name() {
    let guests: Vec<Guest> = (0..100).map(|number| guest(&format!("vm-{number:03}"))).collect();
    let plan = decide(&Observed { pool: Snapshot::default(), ..observed(guests) }, NOW);
    let evacuation = said(&plan).evacuation.unwrap();
    assert_eq!((evacuation.waiting, evacuation.machines.len()), (100, 64));
    let message = said(&plan).condition.unwrap().message;
    assert!(message.ends_with("and 97 more"), "{message}");
}

#[test]
fn the_name_of_a_move_is_fixed_fits_and_is_a_name() {
    let long = format!("{}.{}", "a".repeat(39), "b".repeat(23));
    let name = migration_name(&host(true), &long, "uid");
    assert_eq!(name, migration_name(&host(true), &long, "uid"));
    assert!(name.len() <= 63 && name.starts_with(&format!("{}-evacuation-", "a".repeat(39))), "{name}");
    assert_ne!(name, migration_name(&host(true), &long, "other"));
}
