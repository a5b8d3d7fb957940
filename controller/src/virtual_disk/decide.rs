//! The whole policy of a virtual disk, pure.

use super::host_of;
use crate::view::{has_finalizer, is_deleting};
use kubexen_crds::{
    ByteQuantity, VirtualDisk, Volume,
    condition::{State, Wanted, find},
    virtual_disk::{Phase, Reclaim},
    volume::VolumePhase,
};
use kubexen_runtime::Key;
use std::{sync::Arc, time::Duration};

/// How long a new disk may go without a status: a start needs less as a rule, and says everything with one write.
pub(crate) const QUIET: Duration = Duration::from_secs(5);

/// What is known of a disk at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// The disk.
    pub(crate) disk: Arc<VirtualDisk>,
    /// The Volumes that stand for it, sorted by host.
    pub(crate) volumes: Vec<Arc<Volume>>,
    /// Volumes of an earlier disk of the same name.
    pub(crate) predecessors: Vec<Key>,
    /// Machines that have a Domain which has the disk attached.
    pub(crate) users: Vec<Key>,
    /// Whether a machine that was assigned a host is about to use it.
    pub(crate) about_to_be_used: bool,
    /// Whether its repository exists.
    pub(crate) repository_exists: bool,
    /// What the shared storage is called that holds it; none for a disk that is local to its host.
    pub(crate) storage: Option<String>,
    /// Its age, as far as clocks agree.
    pub(crate) age: Duration,
}

/// What is to be done about a disk, and what is to be said of it then.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// What to do, in this order.
    pub(crate) actions: Vec<Action>,
    /// What the status is to say; none leaves it as it is.
    pub(crate) report: Option<Report>,
    /// When to look again even if nothing changes.
    pub(crate) again: Option<Duration>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Put the controller's finalizer on the disk.
    AddFinalizer,
    /// Change a Volume's spec.
    Change {
        /// The Volume.
        volume: Key,
        /// The new size.
        size: Option<ByteQuantity>,
        /// What is to happen to the data in the end.
        reclaim: Option<Reclaim>,
    },
    /// Delete a Volume.
    DeleteVolume(Key),
    /// See by a linearizable read that no Volume is left, and take the finalizer off.
    LetGo,
}

/// What is to be said of a disk.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report {
    pub(crate) phase: Phase,
    pub(crate) host: Option<String>,
    pub(crate) storage: Option<String>,
    pub(crate) capacity: Option<ByteQuantity>,
    pub(crate) conditions: Vec<Wanted>,
}

impl Report {
    fn new(phase: Phase, state: State, reason: &'static str, message: impl Into<String>) -> Self {
        let conditions = vec![Wanted::new("Ready", state, reason, message)];
        Self { phase, host: None, storage: None, capacity: None, conditions }
    }

    fn at(self, volume: &Volume) -> Self {
        let capacity = volume.status.as_ref().and_then(|status| status.capacity.clone());
        Self { host: host_of(volume).map(str::to_owned), capacity, ..self }
    }
}

/// What to do about a disk.
pub(crate) fn decide(observed: &Observed) -> Plan {
    let disk = &*observed.disk;
    match (is_deleting(disk), has_finalizer(disk)) {
        (true, false) => Plan::default(),
        (false, false) => Plan { actions: vec![Action::AddFinalizer], ..Plan::default() },
        (true, true) => delete(observed),
        (false, true) => match observed.volumes.first() {
            None => report_unmade(observed),
            Some(volume) => keep(observed, volume),
        },
    }
}

fn delete(observed: &Observed) -> Plan {
    let phase = observed.disk.status.as_ref().and_then(|status| status.phase).unwrap_or(Phase::Pending);
    let say = |reason, message: String| Plan {
        report: Some(Report::new(phase, State::False, reason, message)),
        ..Plan::default()
    };
    if let Some(user) = observed.users.first() {
        let more = match observed.users.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        return say(
            "InUse",
            format!("used by VirtualMachine {user}{more}: halt or delete it to let the disk go"),
        );
    }
    if observed.about_to_be_used {
        return Plan { again: Some(Duration::from_secs(1)), ..Plan::default() };
    }
    if observed.volumes.is_empty() {
        return Plan { actions: vec![Action::LetGo], ..Plan::default() };
    }
    let actions = observed
        .volumes
        .iter()
        .filter(|volume| !is_deleting(&***volume))
        .map(|volume| Action::DeleteVolume(Key::of(&**volume)))
        .collect();
    let hosts: Vec<&str> = observed.volumes.iter().filter_map(|volume| host_of(volume)).collect();
    Plan { actions, ..say("Deleting", format!("being removed from host {}", hosts.join(", "))) }
}

fn report_unmade(observed: &Observed) -> Plan {
    let disk = &*observed.disk;
    let say = |phase, reason, message: String| Plan {
        report: Some(Report::new(phase, State::False, reason, message)),
        ..Plan::default()
    };
    if let Some(host) = disk.status.as_ref().and_then(|status| status.host.as_ref()) {
        let message =
            format!("the disk's Volume on host {host} does not exist any more, and its data with it");
        let mut report = Report::new(Phase::Failed, State::False, "VolumeMissing", message.clone());
        report.conditions.push(Wanted::new("Stalled", State::True, "VolumeMissing", message));
        return Plan { report: Some(report), ..Plan::default() };
    }
    if let Some(predecessor) = observed.predecessors.first() {
        let message = format!("an earlier disk of this name is still being deleted: Volume {predecessor}");
        return say(Phase::Pending, "PredecessorDeleting", message);
    }
    let untold = disk.status.as_ref().and_then(|status| find(&status.conditions, "Ready")).is_none();
    if untold && observed.age < QUIET {
        return Plan { again: Some(QUIET - observed.age), ..Plan::default() };
    }
    if !observed.repository_exists {
        let repository = &disk.spec.repository;
        let message =
            format!("StorageRepository {repository} does not exist: create it, or use another disk");
        return say(Phase::Pending, "RepositoryNotFound", message);
    }
    // One reason whether or not a machine names it, so that the status need not follow machines that come and go.
    let message = "the disk is made on the host of the first machine that starts with it".to_owned();
    say(Phase::Pending, "WaitingForConsumer", message)
}

fn keep(observed: &Observed, volume: &Arc<Volume>) -> Plan {
    let disk = &*observed.disk;
    let (wanted, present) =
        (disk.spec.size.bytes().unwrap_or(0), volume.spec.size.bytes().unwrap_or(u64::MAX));
    let size = (wanted > present).then(|| disk.spec.size.clone());
    let reclaim = (disk.spec.reclaim != volume.spec.reclaim).then_some(disk.spec.reclaim);
    if (size.is_some() || reclaim.is_some()) && !is_deleting(&**volume) {
        let action = Action::Change { volume: Key::of(&**volume), size, reclaim };
        return Plan { actions: vec![action], ..Plan::default() };
    }
    let untold = disk.status.as_ref().and_then(|status| find(&status.conditions, "Ready")).is_none();
    let host = host_of(volume).unwrap_or_default();
    let status = volume.status.as_ref();
    let current = status.and_then(|status| status.observed_generation) == volume.metadata.generation;
    let said = status
        .and_then(|status| find(&status.conditions, "Ready"))
        .map(|ready| ready.message.clone())
        .filter(|message| !message.is_empty());
    let report = match status.and_then(|status| status.phase) {
        Some(VolumePhase::Ready) if current => {
            let place = match volume.spec.shared {
                true => format!("shared storage, and host {host} looks after it"),
                false => format!("host {host}"),
            };
            Report::new(Phase::Bound, State::True, "Bound", format!("the disk is on {place}"))
        }
        Some(VolumePhase::Ready) => {
            Report::new(Phase::Bound, State::False, "Resizing", format!("host {host} is applying a change"))
        }
        Some(VolumePhase::Failed) => {
            let message = said.unwrap_or_else(|| format!("host {host} cannot make the disk and tries again"));
            Report::new(Phase::Failed, State::False, "VolumeFailed", message)
        }
        Some(VolumePhase::Pending) | None => {
            if untold && observed.age < QUIET {
                return Plan { again: Some(QUIET - observed.age), ..Plan::default() };
            }
            let message = said.unwrap_or_else(|| format!("host {host} is making the disk"));
            Report::new(Phase::Pending, State::False, "Creating", message)
        }
    };
    let report = Report { storage: observed.storage.clone(), ..report.at(volume) };
    // As long as nobody has said what the storage is called, no other host can use the disk.
    let again = (volume.spec.shared && observed.storage.is_none()).then_some(QUIET);
    Plan { report: Some(report), again, ..Plan::default() }
}
