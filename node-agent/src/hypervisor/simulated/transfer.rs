//! How a simulated guest leaves through a stream and comes back from one.

use super::{
    SimulatedHypervisor,
    guest::{Guest, GuestState},
    model::{Course, refused},
    stream::{self, Frame},
};
use crate::hypervisor::{
    DomId, DomainConfig, HypervisorError, Incoming, OnProgress, Outgoing, Progress, Sent, SuspendMode,
};
use kubexen_crds::BootType;
use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Memory that is written at once, in bytes.
const CHUNK: u64 = 16 << 20;
/// Bytes of a page.
const PAGE: u64 = 4096;
/// The part of its memory that a guest writes to while it is copied live.
const DIRTIED: u64 = 16;

/// The suspends and restores in progress, one for each UUID at most.
#[derive(Debug, Default)]
pub(super) struct Transfers(Mutex<BTreeMap<Uuid, Transfer>>);

#[derive(Clone, Debug, Default)]
struct Transfer {
    stop: CancellationToken,
    ended: CancellationToken,
}

/// Ends a transfer when it is dropped.
struct InProgress<'a> {
    transfers: &'a Transfers,
    uuid: Uuid,
    transfer: Transfer,
}

impl Transfers {
    fn begin(&self, call: &'static str, uuid: Uuid) -> Result<InProgress<'_>, HypervisorError> {
        let mut transfers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if transfers.contains_key(&uuid) {
            return Err(refused(call, "the domain is being copied already"));
        }
        let transfer = Transfer::default();
        transfers.insert(uuid, transfer.clone());
        Ok(InProgress { transfers: self, uuid, transfer })
    }

    /// Breaks a transfer off and waits for its end.
    pub(super) async fn abort(&self, uuid: Uuid) {
        let transfer = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&uuid).cloned();
        if let Some(Transfer { stop, ended }) = transfer {
            stop.cancel();
            ended.cancelled().await;
        }
    }
}

impl InProgress<'_> {
    /// Does a step of the transfer, unless it is broken off meanwhile or takes longer than the limit.
    async fn step<T>(
        &self,
        call: &'static str,
        limit: Duration,
        step: impl Future<Output = io::Result<T>>,
    ) -> Result<T, HypervisorError> {
        let broken = |detail: String| HypervisorError::StreamBroken { call, detail };
        tokio::select! {
            biased;
            () = self.transfer.stop.cancelled() => Err(broken("it was broken off".into())),
            result = timeout(limit, step) => match result {
                Err(_) => Err(broken(format!("nothing moved for {} s", limit.as_secs()))),
                Ok(Err(error)) => match error.kind() {
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
                        Err(refused(call, &error.to_string()))
                    }
                    _ => Err(broken(error.to_string())),
                },
                Ok(Ok(done)) => Ok(done),
            }
        }
    }

    /// Lets time pass.
    async fn pass(&self, call: &'static str, time: Duration) -> Result<(), HypervisorError> {
        let pass = async {
            sleep(time).await;
            Ok(())
        };
        self.step(call, Duration::MAX, pass).await
    }

    /// Does nothing until the limit, and then says so.
    async fn hang(&self, call: &'static str, limit: Duration) -> HypervisorError {
        self.pass(call, limit).await.err().unwrap_or(HypervisorError::TimedOut { call, limit })
    }
}

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.transfers.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.uuid);
        self.transfer.ended.cancel();
    }
}

/// What a suspend does.
struct Suspend {
    uuid: Uuid,
    domid: DomId,
    mode: SuspendMode,
    memory: u64,
    rate: u64,
    limit: Duration,
    course: Course,
    breaks_at: u64,
}

impl SimulatedHypervisor {
    /// See [`Hypervisor::suspend`](crate::hypervisor::Hypervisor::suspend).
    pub(super) async fn suspend_to(
        &self,
        uuid: Uuid,
        mode: SuspendMode,
        mut stream: Outgoing,
        progress: OnProgress,
    ) -> Result<Sent, HypervisorError> {
        let transfer = self.transfers.begin("suspend", uuid)?;
        let suspend = self
            .call(|model, now| {
                let guest = model.whole("suspend", uuid)?;
                let (domid, memory, boot) = (guest.domid, guest.memory_kib * 1024, guest.boot);
                if !matches!(guest.state, GuestState::Running { .. }) {
                    return Err(refused("suspend", "the domain does not run"));
                }
                let live = mode == SuspendMode::Live;
                if live && boot == BootType::Pv {
                    return Err(refused("suspend", "this host cannot tell which pages a PV guest wrote to"));
                }
                let course = model.faults.suspends.next("suspend")?;
                let breaks_at = model.faults.break_suspend.take().unwrap_or(u64::MAX);
                let (rate, limit) =
                    (model.profile.migration_bytes_per_second.get(), model.profile.call_limit);
                if !live {
                    model.suspend(uuid, now)?;
                }
                Ok(Suspend { uuid, domid, mode, memory, rate, limit, course, breaks_at })
            })
            .await?;
        let written = self.write_guest(&transfer, &suspend, &mut stream, &progress).await;
        match written {
            Ok(_) if suspend.course == Course::EndsUntold => {
                sleep(suspend.limit).await;
                Err(HypervisorError::TimedOut { call: "suspend", limit: suspend.limit })
            }
            Err(error @ (HypervisorError::Refused { .. } | HypervisorError::StreamBroken { .. })) => {
                self.call(|model, now| match model.get(uuid) {
                    Ok(guest) if guest.domid == suspend.domid => model.resume(uuid, now),
                    Ok(_) | Err(_) => Ok(()),
                })
                .await?;
                Err(error)
            }
            other => other,
        }
    }

    async fn write_guest(
        &self,
        transfer: &InProgress<'_>,
        suspend: &Suspend,
        stream: &mut Outgoing,
        progress: &OnProgress,
    ) -> Result<Sent, HypervisorError> {
        let Suspend { uuid, domid, limit, .. } = *suspend;
        transfer.step("suspend", limit, stream::begin(stream)).await?;
        let (began, mut rounds, mut dirty_pages_per_second) = (Instant::now(), 1, None);
        let mut bytes = self.write_memory(transfer, suspend, stream, progress, 0, suspend.memory).await?;
        if suspend.mode == SuspendMode::Live {
            self.call(|model, now| {
                if model.get(uuid)?.domid != domid {
                    return Err(HypervisorError::NoSuchDomain(uuid));
                }
                model.suspend(uuid, now)
            })
            .await?;
            let dirtied = suspend.memory / DIRTIED;
            let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
            dirty_pages_per_second = Some((dirtied / PAGE).saturating_mul(1000) / milliseconds);
            rounds += 1;
            bytes = self.write_memory(transfer, suspend, stream, progress, bytes, dirtied).await?;
        }
        if suspend.course == Course::Hangs {
            return Err(transfer.hang("suspend", limit).await);
        }
        let saved = self.call(|model, _| model.get(uuid).map(Guest::saved)).await?;
        transfer.step("suspend", limit, stream::write(stream, &Frame::State(saved))).await?;
        transfer
            .step("suspend", limit, async {
                stream.flush().await?;
                stream.shutdown().await
            })
            .await?;
        Ok(Sent { bytes, rounds: Some(rounds), dirty_pages_per_second })
    }

    /// Writes this much memory after the first `bytes`, and returns how many bytes were written in all.
    async fn write_memory(
        &self,
        transfer: &InProgress<'_>,
        suspend: &Suspend,
        stream: &mut Outgoing,
        progress: &OnProgress,
        mut bytes: u64,
        memory: u64,
    ) -> Result<u64, HypervisorError> {
        let end = bytes + memory;
        while bytes < end {
            let length = CHUNK.min(end - bytes);
            let takes = Duration::from_nanos(length * 1_000_000_000 / suspend.rate);
            let copy = async {
                sleep(takes).await;
                if bytes + length > suspend.breaks_at {
                    return Err(io::Error::other("break injected"));
                }
                stream::write(stream, &Frame::Memory(length)).await
            };
            transfer.step("suspend", suspend.limit.saturating_add(takes), copy).await?;
            bytes += length;
            progress(Progress { bytes });
        }
        Ok(bytes)
    }

    /// See [`Hypervisor::restore`](crate::hypervisor::Hypervisor::restore).
    pub(super) async fn restore_from(
        &self,
        config: &DomainConfig,
        mut stream: Incoming,
    ) -> Result<DomId, HypervisorError> {
        let uuid = config.uuid;
        let transfer = self.transfers.begin("restore", uuid)?;
        let (domid, course, profile) = self
            .call(|model, _| {
                model.begin_restore(config).map(|(domid, course)| (domid, course, model.profile.clone()))
            })
            .await?;
        if course == Course::Hangs {
            return Err(transfer.hang("restore", profile.call_limit).await);
        }
        let built = async {
            // How long a stream may take is its writer's business.
            let saved = transfer.step("restore", Duration::MAX, stream::read(&mut stream)).await?;
            transfer.pass("restore", profile.create_time).await?;
            self.call(|model, _| match model.get(uuid) {
                Ok(guest) if guest.domid == domid && guest.state == GuestState::HalfBuilt => {
                    let mut guest = guest.clone();
                    guest.finish_restore(&saved).map_err(|detail| refused("restore", detail))?;
                    model.put(guest)
                }
                Ok(_) | Err(_) => Err(refused("restore", "the domain was destroyed while it was built")),
            })
            .await
        };
        match built.await {
            Ok(()) if course == Course::EndsUntold => {
                sleep(profile.call_limit).await;
                Err(HypervisorError::TimedOut { call: "restore", limit: profile.call_limit })
            }
            Ok(()) => Ok(domid),
            Err(error @ (HypervisorError::Refused { .. } | HypervisorError::StreamBroken { .. })) => {
                self.take_apart(uuid, Some(domid)).await?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }
}
