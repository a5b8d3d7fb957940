//! How a guest leaves through a stream, comes back from one, and runs on where it was suspended.
//!
//! libxl copies a guest in a worker of its own, to or from one end of a socket pair; this side copies between the other
//! end and the caller's stream. A call is broken off by closing that end, never by killing libxl in the middle:
//!
//! - A suspend then fails at libxl's next write. Before the guest was asked to suspend it just runs on. Later libxl
//!   first waits until the guest has suspended, for a minute to be heard and another to be obeyed, then fails and leaves
//!   it suspended: libxl itself never resumes. So after every failure the domain is looked at and resumed here. (The
//!   write may kill libxl's helper instead of failing. Then Xen keeps track of the guest's writes until the next suspend,
//!   which costs the guest little.)
//! - A restore then fails at libxl's next read, and libxl takes apart what it had built.
//!
//! A worker that does not end in time all the same is killed, and what it left is for the caller to observe. So is what
//! an agent leaves that dies meanwhile: a guest that it had asked to suspend may still do so a little later.
//!
//! A restored domain gets its mode and its mark `kubexen/restored` in xenstore when libxl is done with it, and its token
//! when it is claimed.

use super::{
    Inner,
    config::libxl_config,
    home,
    lifecycle::{SHORT, mode_name, outcome, unexpected},
    mode_path,
    protocol::{Outcome, Request, Target},
    restored_path,
    rounds::Rounds,
    supervisor::CallError,
    token_path,
};
use crate::hypervisor::{
    DomId, DomainConfig, DomainState, HypervisorError, Incoming, OnProgress, Outgoing, Progress, Sent,
    SuspendMode, hidden_features,
};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Longest time in which a stream takes nothing.
const STALL: Duration = Duration::from_secs(60);
/// Longest time in which nothing comes, which libxl needs when a guest is slow to suspend, here or at the far end of
/// the stream; and the longest time that libxl may take once the stream is over.
const QUIET: Duration = Duration::from_secs(150);
/// Time limit of a resume, in which libxl gives a device model 60 s.
const RESUME: Duration = Duration::from_secs(90);
/// Bytes that are copied at once.
const BUFFER: usize = 1 << 20;

/// A stream that was copied to its end.
struct Copied {
    stream: Outgoing,
    bytes: u64,
}

impl Inner {
    /// Writes a guest to a stream; see [`Hypervisor::suspend`](crate::hypervisor::Hypervisor::suspend).
    pub(super) async fn suspend(
        &self,
        uuid: Uuid,
        mode: SuspendMode,
        stream: Outgoing,
        progress: OnProgress,
        stop: &CancellationToken,
    ) -> Result<Sent, HypervisorError> {
        let account = self.accounting.find(uuid).await?.ok_or(HypervisorError::NoSuchDomain(uuid))?;
        let target = Target { domid: account.domid, uuid };
        let request = Request::Suspend { target, live: mode == SuspendMode::Live };
        let call = request.call();
        let state = self.info(&account).await?.state;
        if state != DomainState::Running {
            return Err(HypervisorError::Refused { call, detail: format!("the domain is {state:?}") });
        }
        let copy = |libxl, _| copy_out(libxl, stream, progress);
        let sent = match self.transfer(request, copy, stop).await {
            (Ok((Outcome::Done, rounds)), Ok(copied)) => {
                finish(copied, rounds).await.map_err(|error| broken(call, &error))
            }
            // A worker may die of a broken stream too, and then nothing was done but what is undone below.
            (
                Ok((Outcome::Done, _))
                | Err(HypervisorError::Refused { .. } | HypervisorError::Unreachable(_)),
                Err(error),
            ) => Err(broken(call, &error)),
            (Ok((other, _)), _) => Err(unexpected(&other)),
            (Err(error), _) => Err(error),
        };
        if let Err(failure) = &sent {
            self.take_back(target).await.map_err(|error| {
                HypervisorError::Unreachable(format!("{failure}; the guest may be left suspended: {error}"))
            })?;
        }
        self.bump();
        sent
    }

    /// Makes a guest run on whose suspend failed, and forget that it was asked.
    async fn take_back(&self, target: Target) -> Result<(), HypervisorError> {
        let asked = format!("{}/control/shutdown", home(target.domid));
        if self.store.read(&asked).await?.as_deref() == Some(b"suspend") {
            self.store.write(&asked, b"").await?;
        }
        match self.resume(target.uuid).await {
            // It has ended by itself meanwhile.
            Err(HypervisorError::NoSuchDomain(_)) => Ok(()),
            other => other,
        }
    }

    /// Builds a domain from a stream; see [`Hypervisor::restore`](crate::hypervisor::Hypervisor::restore).
    pub(super) async fn restore(
        &self,
        config: &DomainConfig,
        stream: Incoming,
        stop: &CancellationToken,
    ) -> Result<DomId, HypervisorError> {
        self.make_room(config.uuid).await?;
        let hidden = hidden_features("restore", self.feature_sets().await?, config)?;
        let request = Request::Restore(libxl_config(config, &hidden, &self.build.for_restore()));
        let call = request.call();
        let copy = |libxl, answered| copy_in(stream, libxl, answered);
        let restored = match self.transfer(request, copy, stop).await {
            (Ok((Outcome::Created(domid), _)), Ok(())) => self.mark_restored(config, domid).await,
            // libxl takes an end between two records for that of the stream.
            (Ok((Outcome::Created(_), _)) | Err(HypervisorError::Refused { .. }), Err(error)) => {
                Err(broken(call, &error))
            }
            (Ok((other, _)), _) => Err(unexpected(&other)),
            (Err(error), _) => Err(error),
        };
        self.leave_nothing(config.uuid, restored).await
    }

    async fn mark_restored(&self, config: &DomainConfig, domid: u16) -> Result<DomId, HypervisorError> {
        self.withhold_vcpus(domid, config.vcpus, config.max_vcpus).await?;
        self.store.write(&mode_path(domid), mode_name(config.boot).as_bytes()).await?;
        self.store.write(&restored_path(domid), config.token.to_string().as_bytes()).await?;
        self.read_console(config.uuid).await?;
        Ok(DomId(domid))
    }

    /// Writes the token of a domain; see [`Hypervisor::claim`](crate::hypervisor::Hypervisor::claim).
    pub(super) async fn claim(&self, uuid: Uuid, token: u64) -> Result<(), HypervisorError> {
        let account = self.accounting.find(uuid).await?.ok_or(HypervisorError::NoSuchDomain(uuid))?;
        let info = self.info(&account).await?;
        if info.state != DomainState::Restored && info.token.is_none() {
            let detail = format!("the domain is {:?} and has no token", info.state);
            return Err(HypervisorError::Refused { call: "claim", detail });
        }
        // The token decides, whether the mark is still there or not.
        self.store.write(&token_path(account.domid), token.to_string().as_bytes()).await?;
        self.store.remove(&restored_path(account.domid)).await?;
        self.bump();
        Ok(())
    }

    /// Lets a suspended guest run on; see [`Hypervisor::resume`](crate::hypervisor::Hypervisor::resume).
    pub(super) async fn resume(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        let account = self.accounting.find(uuid).await?.ok_or(HypervisorError::NoSuchDomain(uuid))?;
        if !account.is_suspended() {
            return Ok(());
        }
        let target = Target { domid: account.domid, uuid };
        self.libxl(Request::Resume(target), RESUME).await?;
        self.bump();
        Ok(())
    }

    /// Performs a request and copies its stream meanwhile, until both have ended. `copy` is given libxl's end and a
    /// token that tells when libxl has answered. `stop` breaks it off.
    async fn transfer<T, F: Future<Output = io::Result<T>>>(
        &self,
        request: Request,
        copy: impl FnOnce(UnixStream, CancellationToken) -> F,
        stop: &CancellationToken,
    ) -> (Result<(Outcome, Rounds), HypervisorError>, io::Result<T>) {
        let (name, target) = (request.call(), request.target());
        let builds = matches!(request, Request::Restore(_));
        let broken_off = || Err(io::Error::other("it was broken off"));
        if stop.is_cancelled() {
            let detail = "it was broken off before it began".to_owned();
            return (Err(HypervisorError::Refused { call: name, detail }), broken_off());
        }
        let (worker, libxl) = match self.supervisor.start_streaming() {
            Ok(started) => started,
            Err(error) => {
                let refused = outcome(name, target, SHORT, Err(error));
                return (refused.map(|outcome| (outcome, Rounds::default())), broken_off());
            }
        };
        let (copied, answered) = (CancellationToken::new(), CancellationToken::new());
        let call = async {
            let enough = async {
                copied.cancelled().await;
                sleep(QUIET).await;
            };
            let answer = worker.call(request, enough).await;
            answered.cancel();
            answer
        };
        let copying = async {
            let result = tokio::select! {
                biased;
                () = stop.cancelled() => broken_off(),
                result = copy(libxl, answered.clone()) => result,
            };
            copied.cancel();
            result
        };
        let (answer, copied) = tokio::join!(call, copying);
        let outcome = match answer {
            // libxl 4.17 jumps to nowhere when a stream fails before the guest's memory begins: it stops a helper that
            // it did not start. Nobody builds any more, so what is left can be removed as after a refusal.
            Err(error @ CallError::Broken(_)) if builds => {
                Err(HypervisorError::Refused { call: name, detail: error.to_string() })
            }
            answer => {
                let rounds = answer.as_ref().map(|answer| answer.rounds).unwrap_or_default();
                outcome(name, target, QUIET, answer).map(|outcome| (outcome, rounds))
            }
        };
        (outcome, copied)
    }
}

/// Copies what libxl writes, until libxl closes its end.
async fn copy_out(mut libxl: UnixStream, mut stream: Outgoing, progress: OnProgress) -> io::Result<Copied> {
    let mut buffer = vec![0; BUFFER];
    let mut bytes = 0;
    loop {
        let length = within(QUIET, "libxl wrote nothing", libxl.read(&mut buffer)).await?;
        if length == 0 {
            return Ok(Copied { stream, bytes });
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let written = within(STALL, "the stream took nothing", stream.write(rest)).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            rest = &rest[written..];
            bytes += written as u64;
            progress(Progress { bytes });
        }
    }
}

/// Ends a stream whose last bytes were written.
async fn finish(Copied { mut stream, bytes }: Copied, rounds: Rounds) -> io::Result<Sent> {
    within(STALL, "the stream did not end", async {
        stream.flush().await?;
        stream.shutdown().await
    })
    .await?;
    Ok(Sent { bytes, rounds: rounds.count(), dirty_pages_per_second: rounds.dirty_pages_per_second() })
}

/// Copies to libxl until the stream ends or libxl has answered or wants no more; why it does not, it says itself.
async fn copy_in(mut stream: Incoming, mut libxl: UnixStream, answered: CancellationToken) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = tokio::select! {
            () = answered.cancelled() => return Ok(()),
            read = within(QUIET, "the stream gave nothing", stream.read(&mut buffer)) => read?,
        };
        if length == 0 {
            // The end that libxl sees, if it still looks.
            let _ = libxl.shutdown().await;
            return Ok(());
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            match within(STALL, "libxl read nothing", libxl.write(rest)).await {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
                Err(_) => return Ok(()),
            }
        }
    }
}

async fn within<T>(limit: Duration, what: &str, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, step).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("{what} for {} s", limit.as_secs())))
    })
}

fn broken(call: &'static str, error: &io::Error) -> HypervisorError {
    HypervisorError::StreamBroken { call, detail: error.to_string() }
}
