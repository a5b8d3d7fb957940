use super::decide::{Action, Observed, Plan, QUIET, decide};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kubexen_crds::{
    ByteQuantity, VirtualDisk, VirtualDiskSpec, VirtualDiskStatus, Volume, VolumeSpec, VolumeStatus,
    names::CONTROLLER_FINALIZER,
    virtual_disk::{Phase, Reclaim, Source},
    volume::{VirtualDiskReference, VolumePhase},
};
use kubexen_runtime::Key;
use std::{sync::Arc, time::Duration};

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
