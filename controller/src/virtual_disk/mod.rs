//! VirtualDisk: says where each disk is, lets it grow, and lets it go.
//!
//! ```text
//!   VirtualDisk ─┐                      ┌──▶ finalizer
//!   its Volumes ─┼─▶ decide ─▶ apply ───┼──▶ Volume: size, reclaim, deletion, another host
//!   its users ───┤                      └──▶ status
//!   their hosts ─┘
//! ```
//!
//! # What it watches
//! The disk, the Volumes that stand for it, the Domains that have it attached, the hosts of these Volumes.
//!
//! # What it decides
//! A disk is made with its first machine: the machine's own look creates the Volume on the host that was chosen, because
//! only then is the host known. From then on the disk is there. A disk that is being deleted waits for the last Domain
//! that has it; a linearizable read shows that its Volume is gone before the object goes. What happens when the host cannot
//! look after a disk on shared storage is in [`keeper`]. A Volume whose disk is gone is deleted: see [`crate::orphan`].
//!
//! # What it writes
//! The finalizer and, as a rule, the status once: as long as a disk is new, what is only about to happen is not worth a
//! write.

pub(crate) mod decide;
mod hand_over;
pub(crate) mod keeper;

#[cfg(test)]
mod tests;

use crate::{
    context::{Applied, Context},
    error::Error,
    orphan,
    view::{host_of_namespace, uid},
    virtual_machine::references::storage,
};
use decide::{Action, Observed, Plan, decide};
use keeper::Need;
use kubexen_crds::{VirtualDisk, Volume, condition, names::host_object_name, quantity::HostSelector};
use kubexen_runtime::{Key, Outcome};
use serde_json::{Map, json};
use std::time::Duration;

const ROUNDS: usize = 6;
const LATER: Duration = Duration::from_secs(1);

/// One look at a disk.
pub(crate) async fn reconcile(context: &Context, key: &Key) -> Result<Outcome, Error> {
    let volumes = context.view.volumes_of_disk(key);
    orphan::remove::<VirtualDisk, Volume>(context, key, volumes, |volume| &volume.spec.virtual_disk.uid)
        .await?;
    for _ in 0..ROUNDS {
        let Some(observed) = observe(context, key) else { return Ok(Outcome::Settled) };
        let plan = decide(&observed);
        let again = plan.again;
        match apply(context, &observed, plan).await? {
            Applied::Nothing => return Ok(again.map_or(Outcome::Settled, Outcome::Again)),
            Applied::Something => {}
            Applied::Behind => return Ok(Outcome::Again(LATER)),
        }
    }
    Ok(Outcome::Again(LATER))
}

fn observe(context: &Context, key: &Key) -> Option<Observed> {
    let disk = context.view.disks.get(key)?;
    let (volumes, predecessors): (Vec<_>, Vec<_>) = context
        .view
        .volumes_of_disk(key)
        .into_iter()
        .partition(|volume| volume.spec.virtual_disk.uid == uid(&*disk));
    let mut users: Vec<Key> = context
        .view
        .domains_of_disk(key)
        .iter()
        .map(|domain| Key::new(&domain.spec.virtual_machine.namespace, &domain.spec.virtual_machine.name))
        .collect();
    users.extend(context.view.suspended_of_disk.to(key));
    users.sort();
    users.dedup();
    let repository = context.view.repositories.get(&Key::cluster(&disk.spec.repository));
    let shared = volumes.first().filter(|volume| volume.spec.shared);
    let storage = shared.and_then(|volume| storage(&context.view, &disk, volume));
    let hosts = shared.zip(storage.as_deref()).map(|(volume, storage)| {
        let everywhere = HostSelector::default();
        let need = Need {
            location: &volume.spec.location,
            storage,
            selector: repository.as_ref().map_or(&everywhere, |found| &found.spec.host_selector),
        };
        let domains = context.view.domains_of_disk(key);
        let users =
            domains.iter().filter_map(|domain| host_of_namespace(domain.metadata.namespace.as_deref()?));
        let taken = predecessors.iter().filter_map(|volume| host_of(volume));
        let (users, taken) = (users.map(str::to_owned).collect(), taken.map(str::to_owned).collect());
        keeper::look(&need, &disk, &volumes, &context.view.hosts, &users, &taken)
    });
    Some(Observed {
        storage,
        hosts,
        volumes,
        predecessors: predecessors.iter().map(|volume| Key::of(&**volume)).collect(),
        users,
        about_to_be_used: context.scheduler.claims_disk(key),
        repository_exists: repository.is_some(),
        age: context.age(&*disk),
        disk,
    })
}

async fn apply(context: &Context, observed: &Observed, plan: Plan) -> Result<Applied, Error> {
    let disk = &*observed.disk;
    let mut applied = Applied::Nothing;
    let mut handed_over = false;
    for action in plan.actions {
        let went_through = match action {
            Action::AddFinalizer => context.add_finalizer(disk).await.map(|()| true)?,
            Action::Change { volume, size, reclaim } => {
                let mut spec = Map::new();
                if let Some(size) = size {
                    spec.insert("size".to_owned(), serde_json::to_value(size)?);
                }
                if let Some(reclaim) = reclaim {
                    spec.insert("reclaim".to_owned(), serde_json::to_value(reclaim)?);
                }
                context.merge::<Volume>(&volume, &json!({ "spec": spec })).await?;
                true
            }
            Action::DeleteVolume(volume) => match context.view.volumes.get(&volume) {
                Some(volume) if volume.spec.virtual_disk.uid == uid(disk) => context.delete(&*volume).await?,
                Some(_) | None => true,
            },
            Action::Bequeath { volume, host } => hand_over::bequeath(context, disk, &volume, &host).await?,
            Action::Release { volume, keeper } => {
                handed_over = true;
                hand_over::release(context, disk, &volume, &keeper).await?
            }
            Action::LetGo => {
                if !is_gone(context, disk).await? {
                    return Ok(Applied::Behind);
                }
                context.remove_finalizer(disk).await?;
                return Ok(Applied::Nothing);
            }
        };
        if !went_through {
            return Ok(Applied::Behind);
        }
        applied = Applied::Something;
    }
    if handed_over {
        // The watch shows when it is gone.
        return Ok(Applied::Behind);
    }
    if let Some(report) = plan.report {
        let before = disk.status.clone().unwrap_or_default();
        let generation = disk.metadata.generation;
        let after = kubexen_crds::VirtualDiskStatus {
            observed_generation: generation,
            phase: Some(report.phase),
            // The data stays where it is: once known, the host is never unsaid, but another may look after shared storage.
            host: match observed.hosts {
                Some(_) => report.host.or(before.host.clone()),
                None => before.host.clone().or(report.host),
            },
            storage: before.storage.clone().or(report.storage),
            capacity: report.capacity.or(before.capacity.clone()),
            conditions: condition::set(
                &before.conditions,
                report.conditions,
                generation,
                context.clock.now(),
            ),
        };
        if context.write_status(disk, disk.status.as_ref(), &after).await? {
            applied = Applied::Something;
        }
    }
    Ok(applied)
}

/// Whether the server has no Volume of the disk; those that it has are learnt.
async fn is_gone(context: &Context, disk: &VirtualDisk) -> Result<bool, Error> {
    let Key { namespace, name } = Key::of(disk);
    let left: Vec<Volume> = context.list_named(&host_object_name(&namespace, &name)).await?;
    let mut gone = true;
    for volume in left {
        gone &= volume.spec.virtual_disk.uid != uid(disk);
        context.found(volume);
    }
    Ok(gone)
}

/// The host that a Volume is on.
pub(crate) fn host_of(volume: &Volume) -> Option<&str> {
    volume.metadata.namespace.as_deref().and_then(host_of_namespace)
}
