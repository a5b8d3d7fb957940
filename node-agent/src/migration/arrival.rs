//! The destination's session: receives a guest, takes it over, and lets it run.

use super::{
    Failure, Report, Sessions, World,
    link::{Connection, FrameReceiver, FrameSender, MigrationNetwork, frames::framed},
    messages::{FromDestination, FromSource, Hello, VERSION},
    sessions::until_ended,
};
use crate::{hypervisor::DomainConfig, storage::VolumeId};
use futures::StreamExt;
use kubexen_mutants::Mutant;
use kubexen_ownership::{Abort, Commit, HostBoot, HostName, Owner, Token, VmUid};
use std::time::Duration;
use tokio::{
    io::{AsyncWriteExt, copy_buf, duplex},
    sync::oneshot,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// How long a source may take to say who it is.
const GREETING: Duration = Duration::from_secs(10);
/// Sources that may be about to say who they are at one moment.
const GREETINGS: usize = 16;
/// How long a source may take, after the last byte, to say that the guest stands still.
const SUSPENDED: Duration = Duration::from_secs(30);
/// Wait between two attempts to learn who owns the guest.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Bytes between the connection and the hypervisor.
const BUFFER: usize = 1 << 20;

/// A guest that is to come.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// The host that it is to come from.
    pub source: HostName,
    /// What it is to be made of here. Its token is the source's, which the source tells.
    pub config: DomainConfig,
    /// The guest's disks.
    pub disks: Vec<VolumeId>,
    /// Whether it is to run, or to stay paused.
    pub runs: bool,
}

/// Takes the connections of sources and hands each to the session that waits for it, for ever.
pub(crate) async fn receive_connections(network: &dyn MigrationNetwork, sessions: &Sessions) {
    let connections = futures::stream::unfold((), |()| async { Some((network.accept().await, ())) });
    connections
        .for_each_concurrent(GREETINGS, |accepted| async {
            match accepted {
                Ok((peer, connection)) => greet(sessions, &peer, connection).await,
                Err(error) => {
                    tracing::warn!(%error, "no connections from other hosts");
                    sleep(ASK_AGAIN).await;
                }
            }
        })
        .await;
}

/// Reads who the guest is, without its connection's other frames.
async fn greet(sessions: &Sessions, peer: &HostName, connection: Connection) {
    let (sender, mut receiver) = framed(connection);
    let refused = match receiver.receive::<Hello>(GREETING).await {
        Ok(hello) if hello.version != VERSION => Err((
            sender,
            format!("this agent speaks version {VERSION} of the migration protocol, not {}", hello.version),
        )),
        Ok(hello) => sessions.deliver(peer, hello, (sender, receiver)),
        Err(error) => {
            tracing::warn!(%peer, %error, "a connection without a greeting");
            return;
        }
    };
    if let Err((mut sender, message)) = refused {
        tracing::warn!(%peer, message, "a guest is turned away");
        // The source may be gone already.
        drop(sender.send(&FromDestination::Failed { message }).await);
    }
}

/// Both directions of a source's connection, after its greeting.
pub(crate) type Greeted = (FrameSender, FrameReceiver);

impl Arrival {
    /// Waits for the guest, receives it, takes it over. Whatever is reported, the store says whose the guest is.
    pub(crate) async fn run(
        mut self,
        world: World,
        end: CancellationToken,
        connection: oneshot::Receiver<(Hello, Greeted)>,
    ) -> Report {
        let arrived =
            async { connection.await.map_err(|_| Failure::new("Interrupted", "the agent is stopping")) };
        let (hello, (mut sender, receiver)) = match until_ended(&end, arrived).await {
            Ok(arrived) => arrived,
            Err(failure) => return Report::failed(failure),
        };
        self.config.token = hello.token.0;
        let done = async {
            until_ended(&end, self.receive(&world, &mut sender, receiver)).await?;
            if Mutant::UnpauseBeforeCommit.is_active() {
                self.take_over(&world, hello.token).await?;
            }
            // From here on nothing but the store decides, so nobody can call it off.
            let token = self.commit(&world, &hello).await?;
            self.take_over(&world, token).await
        };
        match done.await {
            Ok(()) => {
                // If this is lost, the source learns it from the store.
                drop(sender.send(&FromDestination::Running).await);
                Report::default()
            }
            Err(failure) => {
                if let Err(error) = world.hypervisor.abort(self.config.uuid).await {
                    tracing::warn!(guest = %self.config.uuid, %error, "breaking off the restore");
                }
                drop(sender.send(&FromDestination::Failed { message: failure.message.clone() }).await);
                Report::failed(failure)
            }
        }
    }

    /// Receives the guest and restores it, until it stands still at the source.
    async fn receive(
        &self,
        world: &World,
        sender: &mut FrameSender,
        mut receiver: FrameReceiver,
    ) -> Result<(), Failure> {
        sender.send(&FromDestination::Ready).await?;
        let (into, from) = duplex(BUFFER);
        let restore = world.hypervisor.restore(&self.config, Box::new(from));
        let forward = async {
            // Owned here: when the connection breaks, the restore must not wait for the rest.
            let mut into = into;
            copy_buf(&mut receiver.data(), &mut into).await?;
            into.shutdown().await
        };
        let (restored, forwarded) = tokio::join!(restore, forward);
        // When the hypervisor refuses, both fail, and the hypervisor is the cause; likewise with the connection.
        match (restored, forwarded) {
            (Ok(_), Ok(())) => {}
            (Err(error), Ok(())) => return Err(error.into()),
            (Err(error), Err(broken)) if broken.kind() == std::io::ErrorKind::BrokenPipe => {
                return Err(error.into());
            }
            (_, Err(broken)) => return Err(Failure::connection_lost(&broken)),
        }
        let FromSource::Suspended = receiver.receive::<FromSource>(SUSPENDED).await?;
        // The guest still has its disks at the source; once it was taken over it has them only here.
        for disk in &self.disks {
            world.storage.check_readable(disk).await?;
        }
        Ok(())
    }

    /// Takes the ownership over, and does not end before it is certain whether that came about.
    async fn commit(&self, world: &World, hello: &Hello) -> Result<Token, Failure> {
        let vm = VmUid(self.config.uuid);
        let source = HostBoot { host: self.source.clone(), boot_id: hello.boot_id.clone() };
        match world.ownership.commit(vm, &source, hello.token, &world.me).await {
            Ok(Commit::Committed(token)) => return Ok(token),
            Ok(Commit::Refused(owner)) => return handed_over(world, hello, owner),
            Err(error) => {
                tracing::warn!(guest = %self.config.uuid, %error, "whether the guest was taken over")
            }
        }
        // A commit may be on its way. Only when the source's ownership is renewed can it do no harm any more.
        loop {
            match world.ownership.abort(vm, &source, hello.token).await {
                Ok(Abort::Aborted(_)) => {
                    return Err(Failure::new(
                        "PoolStoreUnavailable",
                        "the pool's store did not answer in time",
                    ));
                }
                Ok(Abort::Refused(owner)) => return handed_over(world, hello, owner),
                Err(error) => {
                    tracing::warn!(guest = %self.config.uuid, %error, "asking again who owns the guest")
                }
            }
            sleep(ASK_AGAIN).await;
        }
    }

    /// Makes the restored domain whole and lets it run, after a read of its own has shown that it may.
    async fn take_over(&self, world: &World, token: Token) -> Result<(), Failure> {
        let uuid = self.config.uuid;
        world.hypervisor.claim(uuid, token.0).await?;
        if !Mutant::UnpauseBeforeCommit.is_active() {
            mine(world, world.ownership.owner(VmUid(uuid)).await?)?;
        }
        if self.runs {
            world.hypervisor.unpause(uuid).await?;
        }
        for interface in &self.config.interfaces {
            if let Err(error) = world.bridges.announce(&interface.bridge, &interface.mac).await {
                tracing::warn!(guest = %uuid, %error, "the network learns from the guest alone where it is");
            }
        }
        Ok(())
    }
}

/// The token under which this host owns the guest that was sent, if it does.
fn handed_over(world: &World, hello: &Hello, owner: Option<Owner>) -> Result<Token, Failure> {
    let succeeds = owner.as_ref().and_then(|owner| owner.succeeds);
    let token = mine(world, owner)?;
    if succeeds == Some(hello.token) || Mutant::ClaimOldCopy.is_active() {
        return Ok(token);
    }
    Err(Failure::new(
        "NotOwner",
        "this host owns the guest by an older record, which says nothing of this copy",
    ))
}

/// The token under which this host owns the guest, if it does.
fn mine(world: &World, owner: Option<Owner>) -> Result<Token, Failure> {
    match owner {
        Some(owner) if owner.host == world.me.host && owner.boot_id == world.me.boot_id => Ok(owner.token),
        Some(owner) => Err(Failure::new("NotOwner", format!("host {} owns the guest", owner.host))),
        None => Err(Failure::new("NotOwner", "nobody owns the guest")),
    }
}
