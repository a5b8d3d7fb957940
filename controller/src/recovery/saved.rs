//! Records of saved guests whose disk is gone. A store that was restored from a backup speaks of them, and so does one that carried a
//! SAVE out very late. While such a record is there no host starts the machine, because what it is to go on from is not there.

use std::{collections::BTreeSet, time::Duration};

use kube::{ResourceExt, api::ListParams};
use kubexen_crds::VirtualDisk;
use kubexen_ownership::{Discard, DiskUid, Owner, Phase, VmUid};
use kubexen_runtime::write::limited;
use tokio::time::sleep;
use tracing::warn;

use super::{PoolStore, decide::Halt};
use crate::{context::Context, error::Error, watched::Watched};

/// How often it is looked for such records.
const EVERY: Duration = Duration::from_secs(30);

/// Discards such records, for ever; returns at once where there is no store.
pub(super) async fn run(context: &Context) {
    let Some(store) = context.recovery.store() else { return };
    loop {
        sleep(EVERY).await;
        if let Err(error) = discard_lost(context, store).await {
            warn!(%error, category = error.category(), "it was not looked for saved guests whose disk is gone");
        }
    }
}

/// A guest is saved only to a disk that exists, and none comes back under the same uid: a disk that the API server does not have
/// after the record was read is gone for good.
async fn discard_lost(context: &Context, store: &PoolStore) -> Result<(), Error> {
    let mut lost: Vec<(VmUid, DiskUid)> = {
        let board = context.recovery.board();
        if matches!(board.halt, Some(Halt::Frozen(_))) {
            return Ok(());
        }
        board.owners.iter().filter_map(saved_to).collect()
    };
    let leave = |lost: &mut Vec<(VmUid, DiskUid)>, present: BTreeSet<String>| {
        lost.retain(|(_, disk)| !present.contains(&disk.to_string()));
    };
    leave(&mut lost, uids(context.view.disks.list().iter().map(|disk| &**disk)));
    if lost.is_empty() {
        return Ok(());
    }
    let present = limited(VirtualDisk::api_all(&context.client).list(&ListParams::default())).await?;
    leave(&mut lost, uids(present.items.iter()));
    for (vm, disk) in lost {
        if !context.leadership.holds() {
            return Ok(());
        }
        if store.ownership.discard(vm, disk).await? == Discard::Discarded {
            store.ownership.release_disk(disk, vm).await?;
            warn!(%vm, %disk, "the guest is on record as saved to a disk that is gone: if it is to run, it is started anew");
        }
    }
    Ok(())
}

fn saved_to((vm, owner): (&VmUid, &Owner)) -> Option<(VmUid, DiskUid)> {
    match owner.phase {
        Phase::Saved(disk) => Some((*vm, disk)),
        Phase::Running | Phase::Resuming(_) => None,
    }
}

fn uids<'a>(disks: impl Iterator<Item = &'a VirtualDisk>) -> BTreeSet<String> {
    disks.filter_map(ResourceExt::uid).collect()
}
