//! The session that builds a guest from what was saved of it, and leaves it paused and without a token.

use super::{BUFFER, state};
use crate::{
    hypervisor::DomainConfig,
    migration::{Failure, Report, World, until_ended},
    storage::VolumeId,
};
use tokio_util::sync::CancellationToken;

/// A guest that is to be resumed.
#[derive(Clone, Debug)]
pub(crate) struct Resuming {
    /// What it is to be made of. Its token is not used.
    pub config: DomainConfig,
    /// The volume that it was saved to.
    pub volume: VolumeId,
}

impl Resuming {
    /// Restores the guest. It does not run before the store says so.
    pub(crate) async fn run(self, world: World, end: CancellationToken) -> Report {
        match until_ended(&end, self.restore(&world)).await {
            Ok(()) => Report::default(),
            Err(failure) => {
                if let Err(error) = world.hypervisor.abort(self.config.uuid).await {
                    tracing::warn!(guest = %self.config.uuid, %error, "breaking off the restore");
                }
                Report::failed(failure)
            }
        }
    }

    async fn restore(&self, world: &World) -> Result<(), Failure> {
        let content = world.storage.open(&self.volume).await?;
        let header = state::read_header(&*content, self.config.uuid).await;
        let header = header.map_err(|error| Failure::of_volume(&error))?;
        let (stream, work) = state::read(&*content, &header, BUFFER);
        // It gives back what it is not to hold once it runs.
        let memory_kib = self.config.memory_kib.max(header.memory_kib);
        let config = DomainConfig { memory_kib, ..self.config.clone() };
        let restore = world.hypervisor.restore(&config, Box::new(stream));
        // When the hypervisor refuses, both fail, and the hypervisor is the cause; likewise with the volume.
        match tokio::join!(restore, work) {
            (Ok(_), Ok(())) => Ok(()),
            (Err(error), Ok(())) => Err(error.into()),
            (Err(error), Err(broken)) if broken.kind() == std::io::ErrorKind::BrokenPipe => Err(error.into()),
            (_, Err(broken)) => Err(Failure::of_volume(&broken)),
        }
    }
}
