//! The source's session: sends a guest, and leaves it suspended.

use super::{
    Failure, Report, World,
    link::{FrameReceiver, FrameSender, frames::framed},
    messages::{FromDestination, FromSource, Hello, VERSION},
    rate_limit::RateLimited,
    sessions::until_ended,
};
use crate::{hypervisor::SuspendMode, storage::VolumeId};
use futures::FutureExt;
use kubexen_crds::{ByteQuantity, virtual_machine_migration::Transfer};
use kubexen_mutants::Mutant;
use kubexen_ownership::{HostName, Token};
use std::{num::NonZeroU64, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt, copy_buf, duplex},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long a destination may take to answer that the guest may come.
const ANSWER: Duration = Duration::from_secs(20);
/// How long a destination may take, after the last byte, until the guest runs there. The guest stands still meanwhile.
const HAND_OVER: Duration = Duration::from_secs(30);
/// Bytes between the hypervisor and the connection.
const BUFFER: usize = 1 << 20;

/// A guest that is to leave.
#[derive(Clone, Debug)]
pub(crate) struct Departure {
    /// UUID of the guest.
    pub guest: Uuid,
    /// UID of the VirtualMachineMigration.
    pub migration: Uuid,
    /// The guest's disks.
    pub disks: Vec<VolumeId>,
    /// The ownership that the destination is to take over.
    pub token: Token,
    /// The destination.
    pub peer: HostName,
    /// Where its agent listens.
    pub address: String,
    /// Bytes a second at the most.
    pub bandwidth: Option<NonZeroU64>,
}

impl Departure {
    /// Sends the guest. Whatever is reported, the guest may be suspended here afterwards.
    pub(crate) async fn run(self, world: World, end: CancellationToken) -> Report {
        let mut report = Report::default();
        let sent = until_ended(&end, self.send(&world, &mut report)).await;
        if let Err(failure) = sent {
            // What goes on of the suspend must not outlive the session.
            if let Err(error) = world.hypervisor.abort(self.guest).await {
                tracing::warn!(guest = %self.guest, %error, "breaking off the suspend");
            }
            report.failure = Some(failure);
        }
        report
    }

    async fn send(&self, world: &World, report: &mut Report) -> Result<(), Failure> {
        let connection = world.network.connect(&self.peer, &self.address).await?;
        let (mut sender, mut receiver) = framed(connection);
        let hello = Hello {
            version: VERSION,
            migration: self.migration,
            guest: self.guest,
            boot_id: world.me.boot_id.clone(),
            token: self.token,
        };
        sender.send(&hello).await?;
        expect(&mut receiver, FromDestination::Ready, ANSWER).await?;
        report.transfer = Some(self.copy(world, &mut sender, &mut receiver).await?);
        let stands_still = Instant::now();
        // A write that is still on its way could land after the guest's next one, from the destination.
        for disk in self.disks.iter().filter(|_| !Mutant::SourceNotQuiet.is_active()) {
            world.storage.wait_until_quiet(disk).await?;
        }
        sender.send(&FromSource::Suspended).await?;
        expect(&mut receiver, FromDestination::Running, HAND_OVER).await?;
        report.downtime = Some(stands_still.elapsed());
        Ok(())
    }

    /// Sends memory and state. The destination says something meanwhile only if it fails.
    async fn copy(
        &self,
        world: &World,
        sender: &mut FrameSender,
        receiver: &mut FrameReceiver,
    ) -> Result<Transfer, Failure> {
        let began = Instant::now();
        let (into, from) = duplex(BUFFER);
        let suspend =
            world.hypervisor.suspend(self.guest, SuspendMode::Live, Box::new(into), Arc::new(|_| {}));
        let forward = async {
            let data = sender.data();
            let mut data: Box<dyn AsyncWrite + Send + Unpin> = match self.bandwidth {
                Some(rate) => Box::new(RateLimited::new(data, rate)),
                None => Box::new(data),
            };
            let mut from = tokio::io::BufReader::with_capacity(BUFFER, from);
            copy_buf(&mut from, &mut data).await?;
            data.shutdown().await
        };
        let both = async {
            let (suspended, forwarded) = tokio::join!(suspend, forward);
            // When the connection breaks both fail, and the connection is the cause.
            forwarded.map_err(|error| Failure::connection_lost(&error))?;
            Ok::<_, Failure>(suspended?)
        };
        let sent = tokio::select! {
            biased;
            sent = both => sent?,
            failed = receiver.receive::<FromDestination>(Duration::MAX).map(unexpected) => return Err(failed),
        };
        Ok(Transfer {
            bytes: ByteQuantity::from_bytes(sent.bytes),
            rounds: sent.rounds.and_then(|rounds| rounds.try_into().ok()),
            dirty_pages_per_second: sent.dirty_pages_per_second.and_then(|pages| pages.try_into().ok()),
            milliseconds: i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX),
        })
    }
}

/// Waits for one answer.
async fn expect(
    receiver: &mut FrameReceiver,
    expected: FromDestination,
    limit: Duration,
) -> Result<(), Failure> {
    match receiver.receive::<FromDestination>(limit).await {
        Ok(answer) if answer == expected => Ok(()),
        other => Err(unexpected(other)),
    }
}

fn unexpected(answer: Result<FromDestination, super::link::LinkError>) -> Failure {
    match answer {
        Ok(FromDestination::Failed { message }) => Failure::new("DestinationFailed", message),
        Ok(answer) => Failure::new("ProtocolError", format!("the destination said {answer:?} out of turn")),
        Err(error) => error.into(),
    }
}
