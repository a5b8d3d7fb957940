//! The session that saves a guest, and leaves it suspended.

use super::{BUFFER, state};
use crate::{
    hypervisor::SuspendMode,
    migration::{Failure, Report, World, until_ended},
    storage::VolumeId,
};
use kubexen_ownership::{DiskUid, Save, Token, VmUid};
use std::sync::Arc;
use tokio::io::duplex;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A guest that is to be saved.
#[derive(Clone, Debug)]
pub(crate) struct Saving {
    /// UUID of the guest.
    pub guest: Uuid,
    /// The ownership under which it runs.
    pub token: Token,
    /// The guest's disks.
    pub disks: Vec<VolumeId>,
    /// The volume that it is saved to.
    pub volume: VolumeId,
}

impl Saving {
    /// Saves the guest. Whatever is reported, the guest may be suspended here afterwards.
    pub(crate) async fn run(self, world: World, end: CancellationToken) -> Report {
        let done = async {
            until_ended(&end, self.save(&world)).await?;
            // From here on nothing but the store decides, so nobody can call it off.
            self.commit(&world).await
        };
        match done.await {
            Ok(()) => Report::default(),
            Err(failure) => {
                // What goes on of the suspend must not outlive the session.
                if let Err(error) = world.hypervisor.abort(self.guest).await {
                    tracing::warn!(guest = %self.guest, %error, "breaking off the suspend");
                }
                Report::failed(failure)
            }
        }
    }

    /// Writes the whole guest to the volume, which is free for others then.
    async fn save(&self, world: &World) -> Result<(), Failure> {
        let content = world.storage.open(&self.volume).await?;
        state::clear(&*content).await.map_err(|error| Failure::of_volume(&error))?;
        let held = world.hypervisor.settings(self.guest).await?.memory_kib;
        let (into, from) = duplex(BUFFER);
        let suspend =
            world.hypervisor.suspend(self.guest, SuspendMode::Still, Box::new(into), Arc::new(|_| {}));
        let (suspended, written) = tokio::join!(suspend, state::write(&*content, self.guest, held, from));
        // When the volume fails both do, and the volume is the cause.
        let header = written.map_err(|error| Failure::of_volume(&error))?;
        suspended?;
        for disk in &self.disks {
            world.storage.wait_until_quiet(disk).await?;
        }
        state::commit(&*content, &header).await.map_err(|error| Failure::of_volume(&error))?;
        tracing::info!(guest = %self.guest, bytes = header.bytes, "saved");
        drop(content);
        Ok(world.storage.detach(&self.volume).await?)
    }

    async fn commit(&self, world: &World) -> Result<(), Failure> {
        let (vm, disk) = (VmUid(self.guest), DiskUid(self.volume.uuid));
        match world.ownership.save(vm, &world.me, self.token, disk).await? {
            Save::Saved(_) => Ok(()),
            Save::Refused(_) => Err(Failure::new("NotOwner", "another host owns the guest meanwhile")),
        }
    }
}
