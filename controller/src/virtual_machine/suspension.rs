//! A machine that is to be suspended, or was: pure.
//!
//! ```text
//!   Suspended is asked for ─▶ a VirtualDisk for the guest's memory ─▶ the Domain is told to save to it
//!     ─▶ its agent says that the guest is saved: the status keeps what it was made of ─▶ the Domain goes
//!   Running is asked for ─▶ placed like any start, by what the guest was made of and where its memory is
//!     ─▶ a Domain that resumes from there ─▶ it runs: the memory's disk goes
//! ```
//!
//! What was saved is not trusted to any of this alone: the pool's store refuses to start afresh what is saved, so the worst
//! that a controller with an old view can do is to make a Domain that its agent does not start.

use super::{
    cloud_init,
    decide::{Action, Adjustment, Plan, deletion, keep},
    live::{self, Held, Surroundings},
    observe::{Observed, host_of},
    problem::Problem,
    references::Disk,
    status,
    synchronized::Synchronized,
};
use crate::view::{is_deleting, uid};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kubexen_crds::{
    ByteQuantity, Domain, VirtualDisk, VirtualDiskSpec, VirtualMachine, condition,
    domain::{DomainPhase, DomainPowerState, Machine, SavedState},
    names::{CONTROLLER_FINALIZER, host_object_name, suspended_disk},
    virtual_disk::{Reclaim, Source},
    virtual_machine::{PowerState, Suspended},
};
use kubexen_runtime::Key;
use std::{sync::Arc, time::Duration};

/// Room for the state of the vCPUs and of a device model, in bytes; the latter's largest part is what its devices buffer.
const STATE_OVERHEAD: u64 = 64 << 20;
/// One byte for so many of memory: each page of 4 KiB is written with a number of 8 bytes.
const BYTES_PER_NUMBER: u64 = 256;

/// When to look again whether what hinders is gone.
const LATER: Duration = Duration::from_secs(30);

/// The disk that a machine's guest is saved to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StateDisk {
    /// The VirtualDisk.
    pub(crate) disk: Arc<VirtualDisk>,
    /// Where it is, or why it cannot be used.
    pub(crate) found: Result<Disk, Problem>,
}

/// Name of that disk.
pub(crate) fn state_disk_key(machine: &VirtualMachine) -> Key {
    Key::new(machine.metadata.namespace.as_deref().unwrap_or_default(), suspended_disk(uid(machine)))
}

/// The machine whose guest a disk holds, or is made for; none for any other disk.
pub(crate) fn saved_machine(disk: &VirtualDisk) -> Option<(Key, &str)> {
    let owner =
        disk.metadata.owner_references.iter().flatten().find(|owner| owner.kind == "VirtualMachine")?;
    let namespace = disk.metadata.namespace.as_deref().unwrap_or_default();
    (disk.metadata.name.as_deref() == Some(&suspended_disk(&owner.uid)))
        .then(|| (Key::new(namespace, &owner.name), owner.uid.as_str()))
}

/// How a Domain names that disk.
pub(crate) fn saved_state(disk: &Disk) -> SavedState {
    let Key { namespace, name } = Key::of(&*disk.disk);
    SavedState { volume: host_object_name(&namespace, &name), shared: disk.shared.clone() }
}

/// Whether the Domain's agent says, of the Domain as it is, that no saved guest waits for it: it runs, or ran and stopped.
pub(crate) fn is_resumed(domain: &Domain) -> bool {
    let Some(status) = &domain.status else { return false };
    let on = match status.phase {
        Some(DomainPhase::Halted | DomainPhase::Preserved) => true,
        // An agent that could not look, or found the guest still suspended, has the phase from before.
        Some(DomainPhase::Running | DomainPhase::Paused) => {
            condition::find(&status.conditions, "Ready").is_none_or(|ready| ready.status == "True")
        }
        Some(
            DomainPhase::Pending
            | DomainPhase::Suspended
            | DomainPhase::Receiving
            | DomainPhase::Departed
            | DomainPhase::Stopping
            | DomainPhase::Failed,
        )
        | None => false,
    };
    on && domain.spec.power_state != DomainPowerState::Suspended
        && status.observed_generation == domain.metadata.generation
}

/// Whether the guest was resumed or saved, or may have been, and that is not on record yet. Who ended its Domain now would have the
/// next start look for it where it was saved, and there it is no more; or boot it afresh, which is refused.
pub(crate) fn is_unrecorded(observed: &Observed, domain: &Domain) -> bool {
    let said = domain.status.as_ref().and_then(|status| status.observed_generation);
    let resumes = domain.spec.saved_state.is_some() || observed.suspended().is_some();
    let is_saving = domain.spec.power_state == DomainPowerState::Suspended && observed.suspended().is_none();
    is_saving || (resumes && (is_resumed(domain) || said != domain.metadata.generation))
}

/// Whether all of the guest is saved.
pub(crate) fn is_saved(domain: &Domain) -> bool {
    domain.status.as_ref().is_some_and(|status| {
        status.phase == Some(DomainPhase::Suspended)
            && status.observed_generation == domain.metadata.generation
    }) && domain.spec.power_state == DomainPowerState::Suspended
}

/// Whether the Domain was to start a guest that has been saved elsewhere since, as its agent says: it was asked for long ago, and
/// came late.
pub(crate) fn is_overtaken(observed: &Observed, domain: &Domain) -> bool {
    let Some(status) = &domain.status else { return false };
    let ready = condition::find(&status.conditions, "Ready");
    ready.is_some_and(|ready| ready.reason == "Suspended")
        && status.phase == Some(DomainPhase::Failed)
        && domain.spec.saved_state.is_none()
        && observed.suspended().is_some()
}

/// The end of such a Domain.
pub(crate) fn give_way(observed: &Observed, domain: &Arc<Domain>) -> Plan {
    let why = "the guest is saved, and is resumed under another Domain";
    Plan { actions: vec![deletion(domain)], ..Plan::say(status::stopping(domain, observed.host_ready, why)) }
}

/// Whether what the disk of a machine holds is of no use any more. Both are to be read from the server.
pub(crate) fn may_be_discarded(machine: &VirtualMachine, domains: &[Domain]) -> bool {
    let off = is_deleting(machine) || machine.spec.power_state == PowerState::Halted;
    let runs = domains.iter().any(|domain| domain.spec.saved_state.is_none() && is_resumed(domain));
    let never_saved =
        domains.is_empty() && machine.status.as_ref().is_none_or(|status| status.suspended.is_none());
    (off && domains.is_empty()) || runs || never_saved
}

/// The disk for the memory of a guest that is made of this.
pub(crate) fn new_state_disk(machine: &VirtualMachine, repository: &str, size: ByteQuantity) -> VirtualDisk {
    let Key { namespace, name } = state_disk_key(machine);
    let owner = OwnerReference {
        api_version: "kubexen.io/v1alpha1".to_owned(),
        kind: "VirtualMachine".to_owned(),
        name: machine.metadata.name.clone().unwrap_or_default(),
        uid: uid(machine).to_owned(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    VirtualDisk {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace),
            finalizers: Some(vec![CONTROLLER_FINALIZER.to_owned()]),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: VirtualDiskSpec {
            repository: repository.to_owned(),
            size,
            source: Source::default(),
            reclaim: Reclaim::Delete,
        },
        status: None,
    }
}

/// Size in bytes of what is written of a guest that stands still, at the most; a multiple of 1 MiB.
pub(crate) fn state_size(machine: &Machine) -> u64 {
    let memory = machine.max_memory.bytes().unwrap_or(u64::MAX / 2);
    (memory + memory / BYTES_PER_NUMBER + STATE_OVERHEAD).next_multiple_of(1 << 20)
}

impl Observed {
    /// What is saved of the guest.
    pub(crate) fn suspended(&self) -> Option<&Suspended> {
        self.machine.status.as_ref()?.suspended.as_ref()
    }

    /// The action that lets the disk of a saved guest go, if there is one to let go.
    pub(crate) fn discard(&self) -> Option<Action> {
        let left = self.state.as_ref().filter(|state| !is_deleting(&*state.disk));
        left.map(|state| Action::DiscardState(Key::of(&*state.disk)))
    }
}

/// The machine is to be suspended.
pub(crate) fn suspend(observed: &Observed) -> Plan {
    let live: Vec<_> = observed.domains.iter().filter(|domain| !is_deleting(&***domain)).collect();
    match (live.as_slice(), observed.domains.first().or(observed.empty_domains.first())) {
        ([], Some(_)) if observed.suspended().is_some() => Plan::default(),
        ([], Some(leaving)) => {
            Plan::say(status::stopping(leaving, observed.host_ready, "the machine is to be suspended"))
        }
        ([], None) if observed.suspended().is_some() => Plan::say(status::suspended(None)),
        ([], None) => Plan {
            actions: observed.discard().into_iter().collect(),
            ..Plan::say(status::nothing_to_suspend())
        },
        ([domain], _) => save(observed, domain),
        ([_, _, ..], _) => Plan::act(Action::SettleDuplicates {
            domains: live.iter().map(|domain| Key::of(&***domain)).collect(),
        }),
    }
}

/// One Domain: it is saved when it runs.
fn save(observed: &Observed, domain: &Arc<Domain>) -> Plan {
    if is_saved(domain) {
        return saved(observed, domain);
    }
    if is_overtaken(observed, domain) {
        return give_way(observed, domain);
    }
    let moves = observed.moves(domain);
    let told = domain.spec.power_state == DomainPowerState::Suspended;
    match domain.status.as_ref().and_then(|status| status.phase) {
        // It stopped before it could be saved.
        Some(DomainPhase::Halted | DomainPhase::Preserved) => Plan {
            actions: vec![deletion(domain)],
            ..Plan::say(status::stopping(
                domain,
                observed.host_ready,
                "the guest is off, so nothing of it is saved",
            ))
        },
        Some(DomainPhase::Running | DomainPhase::Paused) if !told && !moves => tell_to_save(observed, domain),
        Some(DomainPhase::Pending | DomainPhase::Stopping | DomainPhase::Failed) | None if !told => {
            start_first(observed, domain)
        }
        Some(
            DomainPhase::Pending
            | DomainPhase::Running
            | DomainPhase::Paused
            | DomainPhase::Suspended
            | DomainPhase::Receiving
            | DomainPhase::Departed
            | DomainPhase::Stopping
            | DomainPhase::Failed,
        )
        | None => {
            let host = host_of(domain).unwrap_or_default();
            Plan::say(status::of_domain(domain, host, observed.host_ready, &Synchronized::AsTheHostSays))
        }
    }
}

/// The guest has to run before it can be saved. What it waits for may be what the machine is not to have any more, so its Domain
/// follows the machine until then.
fn start_first(observed: &Observed, domain: &Arc<Domain>) -> Plan {
    // Nobody is told when the Secret that is to be copied comes.
    let waits = cloud_init::is_missing(domain).then_some(LATER);
    let plan = keep(observed, domain);
    Plan { again: plan.again.or(waits), ..plan }
}

/// The guest is saved: first it is written down what it was made of, then its Domain goes.
fn saved(observed: &Observed, domain: &Arc<Domain>) -> Plan {
    let Key { name: disk, .. } = state_disk_key(&observed.machine);
    let suspended = Suspended { disk, machine: domain.spec.machine.clone() };
    if observed.suspended() == Some(&suspended) {
        return Plan::act(Action::DeleteUnchanged(Key::of(&**domain)));
    }
    Plan::say(status::suspended(Some(suspended)))
}

/// Makes the disk for the guest's memory, and tells the Domain to save to it.
fn tell_to_save(observed: &Observed, domain: &Arc<Domain>) -> Plan {
    let host = host_of(domain).unwrap_or_default();
    let hindered = |reason, message: String| {
        let said = status::not_suspended(domain, host, observed.host_ready, reason, message);
        Plan { again: Some(LATER), ..Plan::say(said) }
    };
    let around = Surroundings { host, room: observed.room.as_ref() };
    let Some(state) = &observed.state else {
        let resolved = observed.references.as_ref().ok().or(observed.references_in_part.as_ref());
        let first = resolved.and_then(|resolved| resolved.disks.first());
        return match first {
            Some(first) => Plan::act(Action::MakeStateDisk {
                repository: first.disk.spec.repository.clone(),
                size: ByteQuantity::from_bytes(state_size(&domain.spec.machine)),
            }),
            None => hindered(
                "NoRepository",
                "the guest's memory is saved to the repository of the machine's first disk, and it has none: add a disk \
                 to `spec.disks`, or halt the machine instead"
                    .to_owned(),
            ),
        };
    };
    let disk = match &state.found {
        Ok(disk) => disk,
        Err(Problem::DiskNew) => return Plan::default(),
        Err(problem) => return hindered(problem.reason(), problem.message()),
    };
    match live::reach(disk, &around) {
        Ok(is_new) => {
            let volumes = is_new
                .then(|| Action::MakeVolumes { host: host.to_owned(), disks: vec![Key::of(&*disk.disk)] });
            let change = Adjustment {
                power_state: Some(DomainPowerState::Suspended),
                saved_state: Some(Some(saved_state(disk))),
                ..Adjustment::default()
            };
            let adjust = Action::Adjust { domain: Key::of(&**domain), change };
            Plan { actions: volumes.into_iter().chain([adjust]).collect(), ..Plan::default() }
        }
        // It is left of an earlier time, on a host that the guest has left since.
        Err(Held { reason: "DiskElsewhere", .. }) => {
            Plan { actions: observed.discard().into_iter().collect(), ..Plan::default() }
        }
        Err(Held { reason, message }) => hindered(reason, message),
    }
}
