//! The whole policy of a virtual disk, pure.

use super::{host_of, keeper::Hosts};
use crate::view::{has_finalizer, is_deleting};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
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

/// How often a host is looked for that can take over.
const HEIR_LOOK: Duration = Duration::from_secs(10);

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
    /// The hosts that look after it or could, if it is on shared storage whose name is known.
    pub(crate) hosts: Option<Hosts>,
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
    /// Have another host look after the data of a Volume too.
    Bequeath {
        /// The Volume.
        volume: Key,
        /// The host.
        host: String,
    },
    /// Let a Volume go and leave the data, which another Volume stands for, as a linearizable read must show.
    Release {
        /// The Volume to let go.
        volume: Key,
        /// The other one.
        keeper: Key,
    },
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
        (false, true) => match observed.keeper() {
            None => report_unmade(observed),
            Some(volume) => keep(observed, volume),
        },
    }
}

impl Observed {
    /// The Volume of the host that looks after the disk.
    fn keeper(&self) -> Option<&Arc<Volume>> {
        match &self.hosts {
            Some(hosts) => hosts.keeper(&self.volumes),
            None => self.volumes.first(),
        }
    }

    /// Lets those Volumes go that are not needed beside the keeper's.
    fn releases(&self, keeper: &Arc<Volume>) -> Vec<Action> {
        let spare = self.hosts.iter().flat_map(|hosts| hosts.spare(keeper, &self.volumes));
        spare.map(|volume| Action::Release { volume, keeper: Key::of(&**keeper) }).collect()
    }

    /// Has another host take over, if the keeper cannot do what is to be done and one is there.
    fn bequest(&self, keeper: &Arc<Volume>) -> Option<Action> {
        let host = self.hosts.as_ref()?.heir_of(keeper)?.clone();
        Some(Action::Bequeath { volume: Key::of(&**keeper), host })
    }

    /// Whether the keeper is known to be unable to do anything.
    fn is_abandoned(&self, keeper: &Volume) -> bool {
        self.hosts.as_ref().is_some_and(|hosts| !hosts.can_keep(keeper))
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
    let Some(keeper) = observed.keeper() else {
        return Plan { actions: vec![Action::LetGo], ..Plan::default() };
    };
    if let Some(bequest) = observed.bequest(keeper) {
        return Plan { actions: vec![bequest], ..Plan::default() };
    }
    let mut actions = observed.releases(keeper);
    let stays = |key: &Key| !actions.iter().any(|action| action.releases(key));
    let left: Vec<&Arc<Volume>> =
        observed.volumes.iter().filter(|volume| stays(&Key::of(&***volume))).collect();
    let hosts: Vec<&str> = left.iter().filter_map(|volume| host_of(volume)).collect();
    let again = observed.is_abandoned(keeper).then_some(HEIR_LOOK);
    let plan = Plan { again, ..say("Deleting", format!("being removed from host {}", hosts.join(", "))) };
    let doomed = left.into_iter().filter(|volume| !is_deleting(&***volume));
    let doomed: Vec<Action> = doomed.map(|volume| Action::DeleteVolume(Key::of(&**volume))).collect();
    actions.extend(doomed);
    Plan { actions, ..plan }
}

impl Action {
    fn releases(&self, key: &Key) -> bool {
        match self {
            Self::Release { volume, keeper: _ } => volume == key,
            Self::AddFinalizer
            | Self::Change { .. }
            | Self::DeleteVolume(_)
            | Self::Bequeath { .. }
            | Self::LetGo => false,
        }
    }
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
    let seen = volume.status.as_ref().and_then(|status| status.capacity.as_ref());
    if seen.is_some() {
        let releases = observed.releases(volume);
        if !releases.is_empty() {
            return Plan { actions: releases, ..Plan::default() };
        }
    }
    let capacity = seen.or(disk.status.as_ref().and_then(|status| status.capacity.as_ref()));
    let grows = capacity.and_then(|capacity| capacity.bytes().ok()).is_some_and(|bytes| bytes < wanted);
    let leaves = observed.hosts.as_ref().is_some_and(|hosts| hosts.is_leaving(volume));
    if (grows || leaves)
        && let Some(bequest) = observed.bequest(volume)
    {
        return Plan { actions: vec![bequest], ..Plan::default() };
    }
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
        _ if grows && observed.is_abandoned(volume) => {
            let message = format!(
                "the disk is to grow, but host {host}, which looks after it, does not report or does not reach the \
                 storage, and no other host can take over"
            );
            Report::new(Phase::Bound, State::False, "KeeperUnavailable", message)
        }
        Some(VolumePhase::Ready) => {
            Report::new(Phase::Bound, State::False, "Resizing", format!("host {host} is applying a change"))
        }
        Some(VolumePhase::Failed) => {
            let message = said.unwrap_or_else(|| format!("host {host} cannot make the disk and tries again"));
            let reason = status.and_then(|status| find(&status.conditions, "Ready")).map(failure);
            // A disk that only cannot grow is there, and whoever has it keeps it.
            let phase = if grows { Phase::Bound } else { Phase::Failed };
            Report::new(phase, State::False, reason.unwrap_or("VolumeFailed"), message)
        }
        Some(VolumePhase::Pending) | None => {
            if untold && observed.age < QUIET {
                return Plan { again: Some(QUIET - observed.age), ..Plan::default() };
            }
            if volume.spec.existing {
                // A host takes over within moments, and then says more.
                return Plan::default();
            }
            let message = said.unwrap_or_else(|| format!("host {host} is making the disk"));
            Report::new(Phase::Pending, State::False, "Creating", message)
        }
    };
    let report = Report { storage: observed.storage.clone(), ..report.at(volume) };
    // As long as nobody has said what the storage is called, no other host can use the disk.
    let nameless = (volume.spec.shared && observed.storage.is_none()).then_some(QUIET);
    let again = nameless.or(((grows || leaves) && observed.is_abandoned(volume)).then_some(HEIR_LOOK));
    Plan { report: Some(report), again, ..Plan::default() }
}

/// What a host says of a Volume that it cannot make or grow, as far as people can do something about it.
fn failure(ready: &Condition) -> &'static str {
    match ready.reason.as_str() {
        "NoSpace" => "NoSpace",
        "DataMissing" => "DataMissing",
        _ => "VolumeFailed",
    }
}
