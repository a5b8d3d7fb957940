use super::{
    decide::{Action, Observed, Plan, QUIET, decide},
    keeper::{self, Hosts, Need},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kubexen_crds::{
    ByteQuantity, Host, HostSpec, HostStatus, VirtualDisk, VirtualDiskSpec, VirtualDiskStatus, Volume,
    VolumeSpec, VolumeStatus,
    condition::{self, State, Wanted},
    host::Location,
    names::{AGENT_FINALIZER, CONTROLLER_FINALIZER},
    quantity::HostSelector,
    virtual_disk::{Phase, Reclaim, Source},
    volume::{VirtualDiskReference, VolumePhase},
};
use kubexen_runtime::{Key, Mirror};
use proptest::prelude::*;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

fn size(text: &str) -> ByteQuantity {
    ByteQuantity(text.to_owned())
}

fn disk() -> VirtualDisk {
    VirtualDisk {
        metadata: ObjectMeta {
            name: Some("root".to_owned()),
            namespace: Some("shop".to_owned()),
            uid: Some("disk".to_owned()),
            generation: Some(1),
            finalizers: Some(vec![CONTROLLER_FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: VirtualDiskSpec {
            repository: "local".to_owned(),
            size: size("2Gi"),
            source: Source::default(),
            reclaim: Reclaim::Delete,
        },
        status: None,
    }
}

fn volume(phase: Option<VolumePhase>) -> Volume {
    let status = phase.map(|phase| VolumeStatus {
        observed_generation: Some(1),
        phase: Some(phase),
        capacity: Some(size("2Gi")),
        conditions: Vec::new(),
    });
    Volume {
        metadata: ObjectMeta {
            name: Some("shop.root".to_owned()),
            namespace: Some("kubexen-host-a".to_owned()),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: VolumeSpec {
            virtual_disk: VirtualDiskReference {
                namespace: "shop".to_owned(),
                name: "root".to_owned(),
                uid: "disk".to_owned(),
            },
            location: "local".to_owned(),
            shared: false,
            existing: false,
            saved_machine: None,
            size: size("2Gi"),
            source: Source::default(),
            reclaim: Reclaim::Delete,
        },
        status,
    }
}

fn observed(disk: VirtualDisk, volumes: Vec<Volume>) -> Observed {
    Observed {
        storage: None,
        hosts: None,
        disk: Arc::new(disk),
        volumes: volumes.into_iter().map(Arc::new).collect(),
        predecessors: Vec::new(),
        users: Vec::new(),
        about_to_be_used: false,
        repository_exists: true,
        age: QUIET,
    }
}

fn deleting() -> VirtualDisk {
    let mut disk = disk();
    disk.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    disk
}

fn reason(observed: &Observed) -> Option<&'static str> {
    decide(observed).report.map(|report| report.conditions[0].reason)
}

fn key() -> Key {
    Key::new("kubexen-host-a", "shop.root")
}

#[test]
fn the_finalizer_comes_first() {
    let mut bare = disk();
    bare.metadata.finalizers = None;
    let plan = Plan { actions: vec![Action::AddFinalizer], ..Plan::default() };
    assert_eq!(decide(&observed(bare, Vec::new())), plan);
}

#[test]
fn a_new_disk_is_silent_for_a_moment_and_then_waits_for_a_machine() {
    let young = Observed { age: Duration::from_secs(1), ..observed(disk(), Vec::new()) };
    assert_eq!(decide(&young), Plan { again: Some(Duration::from_secs(4)), ..Plan::default() });
    assert_eq!(reason(&observed(disk(), Vec::new())), Some("WaitingForConsumer"));
    let homeless = Observed { repository_exists: false, ..observed(disk(), Vec::new()) };
    assert_eq!(reason(&homeless), Some("RepositoryNotFound"));
    let successor = Observed { predecessors: vec![key()], ..observed(disk(), Vec::new()) };
    assert_eq!(reason(&successor), Some("PredecessorDeleting"));
}

#[test]
fn a_disk_is_bound_when_its_volume_is_ready() {
    let plan = decide(&observed(disk(), vec![volume(Some(VolumePhase::Ready))]));
    let report = plan.report.expect("a report");
    assert_eq!(
        (report.phase, report.host.as_deref(), report.capacity),
        (Phase::Bound, Some("a"), Some(size("2Gi")))
    );
    assert_eq!(reason(&observed(disk(), vec![volume(Some(VolumePhase::Failed))])), Some("VolumeFailed"));
    assert_eq!(reason(&observed(disk(), vec![volume(None)])), Some("Creating"));
    let mut growing = volume(Some(VolumePhase::Ready));
    growing.metadata.generation = Some(2);
    assert_eq!(reason(&observed(disk(), vec![growing])), Some("Resizing"));
}

#[test]
fn a_disk_grows_and_never_shrinks() {
    let change = |wanted: &str| {
        let mut disk = disk();
        disk.spec.size = size(wanted);
        decide(&observed(disk, vec![volume(Some(VolumePhase::Ready))])).actions
    };
    assert_eq!(change("3Gi"), [Action::Change { volume: key(), size: Some(size("3Gi")), reclaim: None }]);
    assert_eq!(change("2048Mi"), [], "the same in another unit");
    assert_eq!(change("1Gi"), []);
}

#[test]
fn a_deleted_disk_waits_for_its_users_then_its_volume_then_a_linearizable_read() {
    let present = observed(deleting(), vec![volume(Some(VolumePhase::Ready))]);
    let used =
        Observed { users: vec![Key::new("shop", "web-1"), Key::new("shop", "web-2")], ..present.clone() };
    assert_eq!((reason(&used), decide(&used).actions), (Some("InUse"), Vec::new()));
    let message = &decide(&used).report.expect("a report").conditions[0].message;
    assert!(message.contains("shop/web-1 and 1 more"), "{message}");
    let claimed = Observed { about_to_be_used: true, ..present.clone() };
    assert_eq!(decide(&claimed).actions, []);
    assert!(decide(&claimed).again.is_some());
    assert_eq!(decide(&present).actions, [Action::DeleteVolume(key())]);
    let gone = observed(deleting(), Vec::new());
    assert_eq!(decide(&gone).actions, [Action::LetGo]);
}

#[test]
fn a_disk_whose_volume_vanished_is_not_made_anew() {
    let mut lost = disk();
    lost.status = Some(VirtualDiskStatus { host: Some("a".to_owned()), ..VirtualDiskStatus::default() });
    let plan = decide(&observed(lost, Vec::new()));
    assert_eq!(plan.actions, []);
    assert_eq!(plan.report.map(|report| report.phase), Some(Phase::Failed));
}

#[test]
fn a_disk_that_does_not_fit_says_so_and_one_that_cannot_grow_is_there_all_the_same() {
    let failed = |capacity: Option<&str>| {
        let mut volume = volume(Some(VolumePhase::Failed));
        let wanted = vec![Wanted::new("Ready", State::False, "NoSpace", "too little is left")];
        let status = volume.status.as_mut().expect("a status");
        status.conditions = condition::set(&[], wanted, None, Timestamp::UNIX_EPOCH);
        status.capacity = capacity.map(size);
        let report = decide(&observed(disk(), vec![volume])).report.expect("a report");
        (report.phase, report.conditions[0].reason, report.conditions[0].message.clone())
    };
    assert_eq!(failed(None), (Phase::Failed, "NoSpace", "too little is left".to_owned()));
    assert_eq!(failed(Some("1Gi")), (Phase::Bound, "NoSpace", "too little is left".to_owned()));
}

/// A Volume of the disk in shared storage, made, on this host.
fn shared(host: &str) -> Volume {
    let mut volume = volume(Some(VolumePhase::Ready));
    volume.metadata.namespace = Some(format!("kubexen-host-{host}"));
    volume.metadata.finalizers = Some(vec![AGENT_FINALIZER.to_owned()]);
    volume.spec.shared = true;
    volume
}

fn host(name: &str, ready: bool, storage: &str) -> Host {
    let state = if ready { State::True } else { State::Unknown };
    let ready = vec![Wanted::new("Ready", state, "AgentReporting", "so it is")];
    let location = Location {
        name: "local".to_owned(),
        capacity: size("1Ti"),
        shared: true,
        images: Vec::new(),
        id: Some(storage.to_owned()),
    };
    Host {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            resource_version: Some("1".to_owned()),
            ..ObjectMeta::default()
        },
        spec: HostSpec::default(),
        status: Some(HostStatus {
            conditions: condition::set(&[], ready, None, Timestamp::UNIX_EPOCH),
            locations: vec![location],
            ..HostStatus::default()
        }),
    }
}

/// What is known when these hosts are there.
fn look(volumes: &[Volume], hosts: Vec<Host>, users: &[&str]) -> Hosts {
    let all = Mirror::default();
    hosts.into_iter().for_each(|host| all.learn(host));
    let selector = HostSelector::default();
    let need = Need { location: "local", storage: "san-1", selector: &selector };
    let volumes: Vec<_> = volumes.iter().cloned().map(Arc::new).collect();
    let users = users.iter().map(|name| (*name).to_owned()).collect();
    keeper::look(&need, &disk(), &volumes, &all, &users, &BTreeSet::new())
}

#[test]
fn an_heir_reports_reaches_the_storage_and_is_neither_in_maintenance_nor_leaving() {
    let heir = |host: Host| look(&[shared("a")], vec![host], &[]).heir;
    assert_eq!(heir(host("b", true, "san-1")), Some("b".to_owned()));
    assert_eq!(heir(host("b", false, "san-1")), None);
    assert_eq!(heir(host("b", true, "san-2")), None);
    let mut maintained = host("b", true, "san-1");
    maintained.spec.maintenance.enabled = true;
    assert_eq!(heir(maintained), None);
    let mut leaving = host("b", true, "san-1");
    leaving.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    assert_eq!(heir(leaving), None);
    let all = || vec![host("b", true, "san-1"), host("c", true, "san-1"), host("d", true, "san-1")];
    assert_eq!(look(&[shared("a")], all(), &["c"]).heir, Some("c".to_owned()), "where the guest is");
    let able = [all(), vec![host("a", true, "san-1")]].concat();
    assert_eq!(look(&[shared("a")], able, &["c"]).heir, None, "the keeper can");
}

fn known(able: &[&str], leaving: &[&str], heir: Option<&str>) -> Hosts {
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    Hosts { able: names(able), leaving: names(leaving), heir: heir.map(str::to_owned) }
}

fn key_on(host: &str) -> Key {
    Key::new(format!("kubexen-host-{host}"), "shop.root")
}

fn in_hands(disk: VirtualDisk, volumes: Vec<Volume>, hosts: Hosts) -> Observed {
    Observed { hosts: Some(hosts), storage: Some("san-1".to_owned()), ..observed(disk, volumes) }
}

fn larger() -> VirtualDisk {
    let mut disk = disk();
    disk.spec.size = size("3Gi");
    disk
}

#[test]
fn another_host_takes_over_when_the_keeper_is_away_and_something_is_to_be_done() {
    let away = || known(&[], &[], Some("b"));
    let bequest = [Action::Bequeath { volume: key_on("a"), host: "b".to_owned() }];
    assert_eq!(decide(&in_hands(larger(), vec![shared("a")], away())).actions, bequest);
    assert_eq!(decide(&in_hands(deleting(), vec![shared("a")], away())).actions, bequest);
    assert_eq!(decide(&in_hands(disk(), vec![shared("a")], away())).actions, [], "nothing is to be done");
    let leaving = known(&[], &["a"], Some("b"));
    assert_eq!(decide(&in_hands(disk(), vec![shared("a")], leaving)).actions, bequest, "the host goes");
    let mut unmade = shared("a");
    unmade.status = None;
    let unmade = in_hands(deleting(), vec![unmade], away());
    assert_eq!(decide(&unmade).actions, [Action::DeleteVolume(key_on("a"))], "it may be made this moment");
    let able = decide(&in_hands(larger(), vec![shared("a")], known(&["a"], &[], None)));
    assert_eq!(
        able.actions,
        [Action::Change { volume: key_on("a"), size: Some(size("3Gi")), reclaim: None }]
    );
}

#[test]
fn a_keeper_that_is_away_with_nobody_to_take_over_is_named() {
    let mut asked = shared("a");
    asked.spec.size = size("3Gi");
    asked.metadata.generation = Some(2);
    let stuck = in_hands(larger(), vec![asked], known(&[], &[], None));
    assert_eq!(reason(&stuck), Some("KeeperUnavailable"));
    assert!(decide(&stuck).again.is_some(), "an heir is looked for");
}

#[test]
fn the_old_volume_goes_when_the_heir_has_seen_the_data_and_the_data_goes_by_the_heirs_alone() {
    let mut heir = shared("b");
    heir.spec.existing = true;
    let hosts = || known(&["b"], &[], None);
    let release = Action::Release { volume: key_on("a"), keeper: key_on("b") };
    let mut unseen = heir.clone();
    unseen.status = None;
    let waiting = decide(&in_hands(disk(), vec![shared("a"), unseen.clone()], hosts()));
    assert_eq!((waiting.actions, waiting.report), (Vec::new(), None), "it has not looked yet");
    let seen = decide(&in_hands(larger(), vec![shared("a"), heir.clone()], hosts()));
    assert_eq!(seen.actions, std::slice::from_ref(&release));
    let ends = decide(&in_hands(deleting(), vec![shared("a"), unseen], hosts()));
    assert_eq!(ends.actions, [release, Action::DeleteVolume(key_on("b"))]);
    let both = decide(&in_hands(disk(), vec![shared("a"), heir], known(&["a", "b"], &[], None)));
    assert_eq!(both.actions, [Action::Release { volume: key_on("b"), keeper: key_on("a") }], "it came back");
}

proptest! {
    /// Whatever the hosts do: as long as the disk is wanted no Volume is deleted with its data, and one is left.
    #[test]
    fn a_wanted_disk_keeps_a_volume(
        volumes in prop::collection::btree_set(0..4_usize, 1..4),
        made in prop::collection::vec(any::<bool>(), 4),
        existing in prop::collection::vec(any::<bool>(), 4),
        able in prop::collection::btree_set(0..4_usize, 0..4),
        leaving in prop::collection::btree_set(0..4_usize, 0..4),
        heir in prop::option::of(0..4_usize),
        grows: bool,
    ) {
        const NAMES: [&str; 4] = ["a", "b", "c", "d"];
        let all: Vec<Volume> = volumes.iter().map(|&at| {
            let mut volume = shared(NAMES[at]);
            volume.spec.existing = existing[at];
            if !made[at] {
                volume.status = None;
            }
            volume
        }).collect();
        let names = |set: &BTreeSet<usize>| set.iter().map(|&at| NAMES[at]).collect::<Vec<_>>();
        let hosts = known(&names(&able), &names(&leaving), heir.map(|at| NAMES[at]));
        let wanted = if grows { larger() } else { disk() };
        let plan = decide(&in_hands(wanted, all, hosts));
        let released: Vec<&Key> = plan.actions.iter().filter_map(|action| match action {
            Action::Release { volume, keeper } => {
                assert_ne!(volume, keeper);
                Some(volume)
            }
            Action::DeleteVolume(_) | Action::LetGo => panic!("data would be deleted"),
            Action::AddFinalizer | Action::Change { .. } | Action::Bequeath { .. } => None,
        }).collect();
        prop_assert!(released.len() < volumes.len());
    }
}
