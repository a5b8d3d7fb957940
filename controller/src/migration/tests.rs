use super::{
    decide::{Action, Plan, decide},
    is_empty,
    movable::Sends,
    observe::{Beginning, Choice, Observed},
    status::render,
    turns::{self, Load, Turn},
    whereabouts,
};
use crate::{
    placement::Rejections,
    samples::{self, running},
    view::View,
    virtual_machine::problem::Problem,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kubexen_crds::{
    ByteQuantity, Domain, DomainMigration, DomainMigrationStatus, DomainStatus, MigrationPhase,
    MigrationRole, MigrationStage, VirtualMachine, VirtualMachineMigration, VirtualMachineMigrationSpec,
    VirtualMachineMigrationStatus, VirtualMachineStatus,
    condition::{self, State, Wanted, find},
    virtual_machine::PowerState,
    virtual_machine_migration::Transfer,
};
use kubexen_runtime::Key;
use std::sync::Arc;

const MACHINE: &str = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
const MIGRATION: &str = "0a0a0a0a-8b86-4d01-b42d-00cf4fc964ff";
const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn machine() -> VirtualMachine {
    samples::virtual_machine("web-1", MACHINE)
}

fn migration() -> VirtualMachineMigration {
    VirtualMachineMigration {
        metadata: ObjectMeta {
            name: Some("move-1".to_owned()),
            namespace: Some("shop".to_owned()),
            uid: Some(MIGRATION.to_owned()),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: VirtualMachineMigrationSpec {
            virtual_machine: "web-1".to_owned(),
            host: None,
            cancel: false,
            reason: None,
        },
        status: None,
    }
}

/// A migration from host a to host b that has begun.
fn begun() -> VirtualMachineMigration {
    let status = VirtualMachineMigrationStatus {
        phase: Some(MigrationPhase::Preparing),
        source: Some("a".to_owned()),
        destination: Some("b".to_owned()),
        started_at: Some(Time(NOW)),
        ..VirtualMachineMigrationStatus::default()
    };
    VirtualMachineMigration { status: Some(status), ..migration() }
}

/// The Domain of the machine on a host, in which its guest runs.
fn domain(host: &str) -> Domain {
    running(samples::domain("web-1", MACHINE, host, &format!("domain-on-{host}")))
}

/// The Domain of the machine on a host that takes part in the migration, with what its agent said of it.
fn part(host: &str, role: MigrationRole, stage: Option<MigrationStage>) -> Domain {
    let mut domain = domain(host);
    domain.metadata.creation_timestamp = Some(Time(NOW));
    domain.spec.migration = Some(DomainMigration {
        uid: MIGRATION.to_owned(),
        name: "move-1".to_owned(),
        role,
        peer: if host == "a" { "b" } else { "a" }.to_owned(),
        address: None,
        bandwidth: None,
        cancel: false,
    });
    if let (Some(status), Some(stage)) = (&mut domain.status, stage) {
        status.migration = Some(DomainMigrationStatus {
            uid: MIGRATION.to_owned(),
            stage,
            reason: None,
            message: None,
            transfer: None,
            downtime_milliseconds: None,
        });
    }
    domain
}

fn source(stage: Option<MigrationStage>) -> Domain {
    part("a", MigrationRole::Source, stage)
}

fn destination(stage: Option<MigrationStage>) -> Domain {
    part("b", MigrationRole::Destination, stage)
}

fn beginning() -> Beginning {
    Beginning {
        turn: Turn::Now(Load::default()),
        named_host_exists: true,
        source_sends: Sends::Yes,
        named_host_lacks: None,
        choice: Some(Choice::Host("b".to_owned())),
    }
}

fn unbegun() -> Observed {
    Observed {
        migration: Some(Arc::new(migration())),
        machine: Some(Arc::new(machine())),
        source: Some(Arc::new(domain("a"))),
        told_to_send: false,
        destination: None,
        surplus: Vec::new(),
        earlier: Vec::new(),
        address: None,
        source_ready: true,
        beginning: Some(beginning()),
    }
}

fn going(source: Domain, destination: Option<Domain>) -> Observed {
    Observed {
        migration: Some(Arc::new(begun())),
        told_to_send: source.spec.migration.is_some(),
        source: Some(Arc::new(source)),
        destination: destination.map(Arc::new),
        address: Some("10.77.0.2:9444".to_owned()),
        beginning: None,
        ..unbegun()
    }
}

/// Phase and reason that a plan reports.
fn said(observed: &Observed, plan: &Plan) -> Option<(MigrationPhase, String)> {
    let report = plan.report.as_ref()?;
    let migration = observed.migration.as_ref()?;
    let status = render(migration, report, NOW);
    let reason = find(&status.conditions, "Succeeded").map(|condition| condition.reason.clone());
    Some((status.phase?, reason?))
}

fn outcome(observed: &Observed) -> (Option<(MigrationPhase, String)>, Vec<Action>) {
    let plan = decide(observed, NOW);
    (said(observed, &plan), plan.actions)
}

fn key(host: &str) -> Key {
    Key::new(format!("kubexen-host-{host}"), "shop.web-1")
}

fn deletion(host: &str) -> Action {
    Action::DeleteDomain { domain: key(host), uid: format!("domain-on-{host}") }
}

#[test]
fn a_migration_whose_turn_it_is_begins_on_the_host_that_was_chosen() {
    let (said, actions) = outcome(&unbegun());
    assert_eq!(said, None, "what is only about to happen is not worth a write");
    assert_eq!(actions, [Action::Begin { host: "b".to_owned() }]);
}

#[test]
fn what_can_never_be_moved_is_refused_before_anything_moves_with_its_reason() {
    let with = |change: &dyn Fn(&mut Observed)| {
        let mut observed = unbegun();
        change(&mut observed);
        outcome(&observed)
    };
    let beginning = |change: &dyn Fn(&mut Beginning)| {
        with(&|observed| {
            let mut beginning = beginning();
            change(&mut beginning);
            observed.beginning = Some(beginning);
        })
    };
    let power = |state: PowerState| {
        with(&|observed| {
            let mut machine = machine();
            machine.spec.power_state = state;
            observed.machine = Some(Arc::new(machine));
        })
    };
    let to = |host: &str| {
        with(&|observed| {
            let mut migration = migration();
            migration.spec.host = Some(host.to_owned());
            observed.migration = Some(Arc::new(migration));
            if host != "a" {
                observed.beginning = Some(Beginning { named_host_exists: false, ..self::beginning() });
            }
        })
    };
    let off_network_at_the_destination = with(&|observed| {
        let mut migration = migration();
        migration.spec.host = Some("b".to_owned());
        observed.migration = Some(Arc::new(migration));
        let named_host_lacks = Some("fast".to_owned());
        observed.beginning = Some(Beginning { named_host_lacks, ..self::beginning() });
    });
    let problem = Problem::NetworkNotFound { network: "lan".to_owned() };
    for ((said, actions), reason) in [
        (with(&|observed| observed.machine = None), "MachineNotFound"),
        (power(PowerState::Halted), "NotRunning"),
        (power(PowerState::Paused), "NotRunning"),
        (to("a"), "AlreadyThere"),
        (to("nowhere"), "HostNotFound"),
        (beginning(&|beginning| beginning.source_sends = Sends::No), "NotMigratable"),
        (
            beginning(&|beginning| beginning.source_sends = Sends::NotOnNetwork("fast".to_owned())),
            "NotOnMigrationNetwork",
        ),
        (off_network_at_the_destination, "NotOnMigrationNetwork"),
        (beginning(&|beginning| beginning.choice = Some(Choice::None(Rejections::default()))), "NoHostFits"),
        (
            beginning(&|beginning| beginning.choice = Some(Choice::Unresolved(problem.clone()))),
            "NetworkNotFound",
        ),
    ] {
        assert_eq!(said, Some((MigrationPhase::Failed, reason.to_owned())));
        assert_eq!(actions, [], "{reason}");
    }
}

#[test]
fn a_migration_that_may_not_begin_yet_says_what_it_waits_for() {
    let before = Key::new("shop", "move-0");
    for (turn, choice, reason) in [
        (Turn::PoolBusy(8), None, "PoolLimit"),
        (Turn::HostBusy("a".to_owned(), 2), None, "HostLimit"),
        (Turn::MachineBusy(before), None, "MachineBusy"),
        (Turn::NotRunningYet, None, "NotRunningYet"),
        (Turn::Now(Load::default()), Some(Choice::Later("b".to_owned())), "HostLimit"),
    ] {
        let observed = Observed { beginning: Some(Beginning { turn, choice, ..beginning() }), ..unbegun() };
        assert_eq!(outcome(&observed), (Some((MigrationPhase::Pending, reason.to_owned())), Vec::new()));
    }
}

#[test]
fn migrations_of_a_machine_that_does_not_run_keep_no_other_from_its_turn() {
    let view = View::default();
    for (machine, domain) in [
        ("stuck", samples::domain("stuck", "m-1", "a", "d-1")),
        ("web", running(samples::domain("web", "m-2", "a", "d-2"))),
    ] {
        let status = VirtualMachineStatus { host: Some("a".to_owned()), ..VirtualMachineStatus::default() };
        let of_domain = domain.spec.virtual_machine.uid.clone();
        view.machines
            .learn(VirtualMachine { status: Some(status), ..samples::virtual_machine(machine, &of_domain) });
        view.domains_of_machine.set(&Key::of(&domain), [Key::new("shop", machine)].into());
        view.domains.learn(domain);
    }
    let most = usize::try_from(turns::policy(&view).max_per_host).unwrap();
    let asked = |name: &str, machine: &str| VirtualMachineMigration {
        metadata: samples::named("shop", name, name),
        spec: VirtualMachineMigrationSpec { virtual_machine: machine.to_owned(), ..migration().spec },
        status: None,
    };
    let stuck: Vec<_> = (0..most).map(|number| asked(&format!("first-{number}"), "stuck")).collect();
    let last = asked("last", "web");
    stuck.iter().chain([&last]).for_each(|migration| view.migrations.learn(migration.clone()));
    assert!(stuck.iter().all(|migration| turns::turn(&view, migration) == Turn::NotRunningYet));
    assert_eq!(turns::turn(&view, &last), Turn::Now(Load::default()));
    assert_eq!((turns::expected(&view).pool, turns::expected(&view).of_host("a")), (1, 1));
}

#[test]
fn the_source_is_told_to_send_once_the_destination_awaits_the_guest_and_not_before() {
    let preparing = going(domain("a"), Some(destination(None)));
    assert_eq!(outcome(&preparing), (None, Vec::new()));
    let plan = decide(&preparing, NOW + jiff::SignedDuration::from_secs(3));
    assert_eq!(said(&preparing, &plan), Some((MigrationPhase::Preparing, "Preparing".to_owned())));
    assert_eq!(plan.actions, []);
    let (said, actions) = outcome(&going(domain("a"), Some(destination(Some(MigrationStage::Awaiting)))));
    assert_eq!(said, Some((MigrationPhase::Copying, "Copying".to_owned())));
    assert_eq!(actions, [Action::Send { domain: key("a"), address: "10.77.0.2:9444".to_owned() }]);
}

#[test]
fn a_committed_move_waits_for_the_record_of_the_source_and_then_deletes_its_domain() {
    let arrived = || Some(destination(Some(MigrationStage::Committed)));
    assert_eq!(outcome(&going(source(None), arrived())), (None, Vec::new()));
    let mut left = source(Some(MigrationStage::Committed));
    if let Some(said) = left.status.as_mut().and_then(|status| status.migration.as_mut()) {
        let bytes = ByteQuantity("100Mi".to_owned());
        said.transfer =
            Some(Transfer { bytes, rounds: Some(3), dirty_pages_per_second: None, milliseconds: 9000 });
        said.downtime_milliseconds = Some(120);
    }
    let observed = going(left, arrived());
    let plan = decide(&observed, NOW);
    assert_eq!(said(&observed, &plan), Some((MigrationPhase::Succeeded, "Succeeded".to_owned())));
    assert_eq!(plan.actions, [deletion("a")]);
    let status = render(&begun(), plan.report.as_ref().unwrap(), NOW);
    assert_eq!(status.downtime_milliseconds, Some(120));
    assert_eq!(status.transfer.and_then(|transfer| transfer.rounds), Some(3));
}

#[test]
fn a_committed_move_is_on_record_also_when_the_source_is_silent() {
    let silent = Observed {
        source_ready: false,
        ..going(source(None), Some(destination(Some(MigrationStage::Committed))))
    };
    let (said, actions) = outcome(&silent);
    assert_eq!(said, Some((MigrationPhase::Succeeded, "Succeeded".to_owned())));
    assert_eq!(actions, [], "what the source's agent has not told is not deleted under its hands");
}

#[test]
fn a_guest_that_went_over_leaves_no_domain_at_the_source_when_it_is_stopped_at_once() {
    let left = || source(Some(MigrationStage::Committed));
    let stopped = going(left(), None);
    let succeeded = Some((MigrationPhase::Succeeded, "Succeeded".to_owned()));
    assert_eq!(outcome(&stopped), (succeeded, vec![deletion("a")]));
    let mut recorded = begun();
    recorded.status.as_mut().unwrap().phase = Some(MigrationPhase::Succeeded);
    let recorded = Observed { migration: Some(Arc::new(recorded)), ..stopped.clone() };
    assert_eq!(outcome(&recorded), (None, vec![deletion("a")]));
    let deleted = Observed { migration: None, ..stopped };
    assert_eq!(outcome(&deleted), (None, vec![deletion("a")]));

    // As long as the destination is silent, nothing of either end is deleted.
    let silent = Observed { migration: None, ..going(left(), Some(destination(None))) };
    assert_eq!(outcome(&silent), (None, vec![Action::Cancel(key("b"))]));
}

#[test]
fn a_move_that_the_source_took_back_fails_with_the_agents_words_and_leaves_no_domain_behind() {
    let mut back = source(Some(MigrationStage::Aborted));
    if let Some(said) = back.status.as_mut().and_then(|status| status.migration.as_mut()) {
        said.reason = Some("ConnectionLost".to_owned());
        said.message = Some("the connection to host b broke".to_owned());
    }
    let observed = going(back, Some(destination(Some(MigrationStage::Awaiting))));
    let plan = decide(&observed, NOW);
    assert_eq!(said(&observed, &plan), Some((MigrationPhase::Failed, "TransferFailed".to_owned())));
    assert_eq!(plan.actions, [deletion("b")]);
    let status = render(&begun(), plan.report.as_ref().unwrap(), NOW);
    let message = &find(&status.conditions, "Succeeded").unwrap().message;
    assert!(message.contains("the connection to host b broke"), "{message}");

    // The destination was told first that the move is called off, and hung up.
    let mut cancelled = begun();
    cancelled.spec.cancel = true;
    let observed = Observed { migration: Some(Arc::new(cancelled)), ..observed };
    assert_eq!(
        outcome(&observed),
        (Some((MigrationPhase::Cancelled, "Cancelled".to_owned())), vec![deletion("b")])
    );
}

#[test]
fn a_move_under_way_is_called_off_at_both_ends_and_never_by_deleting_a_domain() {
    let mut cancelled = begun();
    cancelled.spec.cancel = true;
    let observed = Observed {
        migration: Some(Arc::new(cancelled)),
        ..going(source(None), Some(destination(Some(MigrationStage::Awaiting))))
    };
    assert_eq!(outcome(&observed), (None, vec![Action::Cancel(key("a")), Action::Cancel(key("b"))]));
}

#[test]
fn a_deleted_migration_is_called_off_too_unless_it_is_committed() {
    let deleted = |source, destination| Observed { migration: None, ..going(source, Some(destination)) };
    let awaiting = destination(Some(MigrationStage::Awaiting));
    let (_, actions) = outcome(&deleted(source(None), awaiting.clone()));
    assert_eq!(actions, [Action::Cancel(key("a")), Action::Cancel(key("b"))]);
    let (_, actions) = outcome(&deleted(source(Some(MigrationStage::Aborted)), awaiting));
    assert_eq!(actions, [deletion("b")]);
    let committed = destination(Some(MigrationStage::Committed));
    let (_, actions) = outcome(&deleted(source(Some(MigrationStage::Committed)), committed));
    assert_eq!(actions, [deletion("a")]);
}

#[test]
fn a_destination_that_does_not_make_ready_is_given_up_after_five_minutes() {
    let observed = going(domain("a"), Some(destination(None)));
    assert!(decide(&observed, NOW).again.is_some());
    let late = NOW + jiff::SignedDuration::from_mins(5);
    let plan = decide(&observed, late);
    assert_eq!(said(&observed, &plan), Some((MigrationPhase::Failed, "NotPrepared".to_owned())));
    assert_eq!(plan.actions, [deletion("b")]);
    let mut waits = destination(None);
    let why =
        vec![Wanted::new("Ready", State::False, "VolumeNotReady", "Volume shop.web-root is not ready yet")];
    let status = DomainStatus { conditions: condition::set(&[], why, None, NOW), ..DomainStatus::default() };
    waits.status = Some(status);
    let observed = going(domain("a"), Some(waits));
    let report = decide(&observed, late).report.unwrap();
    let status = render(observed.migration.as_deref().unwrap(), &report, late);
    let message = &find(&status.conditions, "Succeeded").unwrap().message;
    assert!(message.ends_with("within 5 minutes: Volume shop.web-root is not ready yet"), "{message}");
}

#[test]
fn the_guest_is_in_one_domain_at_every_stage_but_when_both_ends_say_that_it_is_theirs() {
    let stages = [
        None,
        Some(MigrationStage::Awaiting),
        Some(MigrationStage::Aborted),
        Some(MigrationStage::Committed),
    ];
    for of_source in stages {
        for of_destination in stages {
            let both = vec![Arc::new(source(of_source)), Arc::new(destination(of_destination))];
            let (full, empty) = whereabouts(both);
            let arrived = of_destination == Some(MigrationStage::Committed);
            let left = of_source == Some(MigrationStage::Committed);
            let taken_back = of_source == Some(MigrationStage::Aborted);
            // When the source says that it has left before the destination says that it has come, nobody is asked to
            // start the guest: the machine has a Domain, if an empty one.
            let expected = usize::from(arrived || !left) + usize::from(arrived && taken_back);
            assert_eq!(full.len(), expected, "{of_source:?} {of_destination:?}");
            assert_eq!(full.len() + empty.len(), 2);
            assert!(full.iter().all(|domain| !is_empty(domain)));
        }
    }
}

#[test]
fn a_destination_that_was_asked_for_and_came_late_goes_whatever_becomes_of_the_move() {
    let late = part("c", MigrationRole::Destination, None);
    let gone = Action::DeleteDomain { domain: Key::of(&late), uid: late.metadata.uid.clone().unwrap() };
    for move_of_two in [
        going(source(None), Some(destination(Some(MigrationStage::Awaiting)))),
        going(source(Some(MigrationStage::Committed)), Some(destination(Some(MigrationStage::Committed)))),
    ] {
        let before = decide(&move_of_two, NOW);
        let with_late = Observed { surplus: vec![Arc::new(late.clone())], ..move_of_two };
        let actions = [before.actions, vec![gone.clone()]].concat();
        assert_eq!(decide(&with_late, NOW), Plan { actions, ..before });
    }
}

#[test]
fn what_became_of_an_earlier_move_of_the_machine_says_nothing_of_this_one() {
    let mut stayed = source(Some(MigrationStage::Aborted));
    if let Some(part) = &mut stayed.spec.migration {
        part.uid = MACHINE.to_owned();
    }
    let earlier =
        Observed { told_to_send: false, ..going(stayed, Some(destination(Some(MigrationStage::Awaiting)))) };
    let (said, actions) = outcome(&earlier);
    assert_eq!(said, Some((MigrationPhase::Copying, "Copying".to_owned())));
    assert!(matches!(actions.as_slice(), [Action::Send { .. }]), "{actions:?}");
}

#[test]
fn what_an_earlier_move_of_the_same_name_left_is_ended_before_this_one_begins() {
    let earlier = |of_source| Observed {
        migration: None,
        ..going(source(of_source), Some(destination(Some(MigrationStage::Awaiting))))
    };
    let waits = Some((MigrationPhase::Pending, "MachineBusy".to_owned()));
    let observed = Observed { earlier: vec![earlier(Some(MigrationStage::Aborted))], ..unbegun() };
    assert_eq!(outcome(&observed), (waits.clone(), vec![deletion("b")]));
    let observed = Observed { earlier: vec![earlier(None)], ..unbegun() };
    assert_eq!(outcome(&observed), (waits, vec![Action::Cancel(key("a")), Action::Cancel(key("b"))]));
}

#[test]
fn a_guest_that_left_and_never_came_is_lost_and_both_domains_go_so_that_it_is_started_anew() {
    let (left, mut never_came) =
        (source(Some(MigrationStage::Committed)), destination(Some(MigrationStage::Aborted)));
    let said = never_came.status.as_mut().and_then(|status| status.migration.as_mut()).unwrap();
    (said.reason, said.message) = (Some("PoolStoreUnavailable".to_owned()), Some("no answer".to_owned()));
    let lost = outcome(&going(left.clone(), Some(never_came.clone())));
    assert_eq!(lost, (Some((MigrationPhase::Failed, "GuestLost".to_owned())), vec![deletion("b")]));
    let called_off = Observed { migration: None, ..going(left.clone(), Some(never_came)) };
    assert_eq!(outcome(&called_off), (None, vec![deletion("b")]));
    let called_off = Observed { migration: None, ..going(left, None) };
    assert_eq!(outcome(&called_off), (None, vec![deletion("a")]));
}

#[test]
fn a_destination_that_does_not_tell_whether_the_guest_came_has_to_say_so_half_a_minute_after_the_source() {
    let mut left = source(Some(MigrationStage::Committed));
    let departed = vec![Wanted::new("Ready", State::False, "Departed", "The guest runs on another host")];
    left.status.as_mut().unwrap().conditions = condition::set(&[], departed, None, NOW);
    let awaits = going(left, Some(destination(Some(MigrationStage::Awaiting))));
    for (seconds, again, actions) in
        [(0, Some(30), vec![]), (29, Some(1), vec![]), (30, None, vec![Action::Cancel(key("b"))])]
    {
        let plan = decide(&awaits, NOW + jiff::SignedDuration::from_secs(seconds));
        assert_eq!(said(&awaits, &plan), Some((MigrationPhase::Copying, "Copying".to_owned())));
        assert_eq!((plan.again.map(|again| again.as_secs()), plan.actions), (again, actions), "{seconds}");
    }
}
