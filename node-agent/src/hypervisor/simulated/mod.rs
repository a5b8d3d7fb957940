//! A model of a Xen host: the same trait, the same promises, no Xen.
//!
//! A [`SimulatedHost`] is the host: memory, domains, guests that act by themselves, and failures to inject. It is kept in
//! memory or in a folder, and outlives the agent. A [`SimulatedHypervisor`] is what one run of the agent speaks to.
//!
//! Guests understand the words on the kernel command line that the lab's guest understands: `kubexen.exit=poweroff`,
//! `reboot` or `crash`, `kubexen.exit-after=SECONDS`, `kubexen.count`, without which they do not count, and
//! `kubexen.agent` with `kubexen.address=ADDRESS/LENGTH`, without which they say nothing of themselves; and
//! `kubexen.stubborn`, with which they do not follow when their memory, virtual CPUs or disks are to change.

mod guest;
mod hardware;
mod host;
mod ledger;
mod model;
mod profile;
mod stream;
#[cfg(test)]
mod tests;
mod transfer;

pub use host::SimulatedHost;
pub use ledger::{StartEvent, StartRecord};
pub use profile::Profile;

use super::{
    Change, DomId, DomainConfig, DomainInfo, DomainUsage, GuestFacts, HostFacts, Hypervisor, HypervisorError,
    Incoming, OnProgress, Outgoing, Sent, Settings, SuspendMode,
};
use async_trait::async_trait;
use guest::{Guest, GuestState};
use host::span;
use kubexen_crds::domain::StopReason;
use kubexen_runtime::Clock;
use model::{Course, Model};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use transfer::Transfers;
use uuid::Uuid;

/// What one run of the agent speaks to. Dropping it leaves the host and its guests alone.
#[derive(Debug)]
pub struct SimulatedHypervisor {
    host: SimulatedHost,
    transfers: Transfers,
    /// Tells of what guests do by themselves.
    _alarm: AbortOnDropHandle<()>,
}

impl SimulatedHypervisor {
    /// Speaks to this host. Call it inside a tokio runtime.
    #[must_use]
    pub fn new(host: SimulatedHost) -> Self {
        let alarm = AbortOnDropHandle::new(tokio::spawn(alarm(host.clone())));
        Self { host, transfers: Transfers::default(), _alarm: alarm }
    }

    /// Speaks to the host that is kept in `folder`. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// As [`SimulatedHost::ledgered`].
    pub fn ledgered(folder: &Path, profile: Profile, clock: Arc<dyn Clock>) -> Result<Self, HypervisorError> {
        Ok(Self::new(SimulatedHost::ledgered(folder, profile, clock)?))
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &SimulatedHost {
        &self.host
    }

    /// A call of the agent. It yields once before it acts, so that concurrent calls interleave.
    async fn call<T>(
        &self,
        call: impl FnOnce(&mut Model, jiff::Timestamp) -> Result<T, HypervisorError>,
    ) -> Result<T, HypervisorError> {
        tokio::task::yield_now().await;
        self.host.awake().await;
        self.host.call(call)
    }

    /// Takes the domain apart that has this UUID, and this number if one is given.
    async fn take_apart(&self, uuid: Uuid, only: Option<DomId>) -> Result<(), HypervisorError> {
        let killed = self
            .call(|model, now| match model.get(uuid) {
                Ok(guest) if only.is_none_or(|only| guest.domid == only) => model.kill(uuid, now),
                Ok(_) | Err(_) => Ok(None),
            })
            .await?;
        let Some(domid) = killed else { return Ok(()) };
        loop {
            let wait = self
                .call(|model, now| {
                    let same = model.get(uuid).ok().filter(|guest| guest.domid == domid);
                    Ok(same.and_then(Guest::due).map(|due| span(now, due)))
                })
                .await?;
            let Some(wait) = wait else { return Ok(()) };
            tokio::time::sleep(wait).await;
        }
    }

    /// Does something to a domain that is whole.
    async fn act_on(
        &self,
        call: &'static str,
        uuid: Uuid,
        change: impl FnOnce(&mut Guest, jiff::Timestamp, &Profile),
    ) -> Result<(), HypervisorError> {
        self.call(|model, now| {
            let before = model.whole(call, uuid)?;
            let mut after = before.clone();
            change(&mut after, now, &model.profile);
            if after == *before { Ok(()) } else { model.put(after) }
        })
        .await
    }
}

/// How soon the alarm tries again after the host's files could not be written.
const ALARM_RETRY: Duration = Duration::from_secs(1);

/// Looks at the host whenever it is to change by itself, so that the change is told.
async fn alarm(host: SimulatedHost) {
    let mut changes = host.changes();
    loop {
        // Seen before the host is asked, so that a change after the answer ends the wait.
        changes.borrow_and_update();
        let wait = host.until_due().unwrap_or_else(|error| {
            tracing::warn!(%error, "a simulated host cannot go on");
            Some(ALARM_RETRY)
        });
        let due = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = changes.changed() => if changed.is_err() { return },
            () = due => {}
        }
    }
}

#[async_trait]
impl Hypervisor for SimulatedHypervisor {
    async fn facts(&self) -> Result<HostFacts, HypervisorError> {
        self.call(|model, _| Ok(model.profile.facts(model.boot_id()))).await
    }

    async fn free_memory_kib(&self) -> Result<u64, HypervisorError> {
        self.call(|model, _| Ok(model.free_kib())).await
    }

    async fn domains(&self) -> Result<Vec<DomainInfo>, HypervisorError> {
        self.call(|model, _| Ok(model.guests().map(Guest::info).collect())).await
    }

    async fn find(&self, uuid: Uuid) -> Result<Option<DomainInfo>, HypervisorError> {
        self.call(|model, _| Ok(model.get(uuid).ok().map(Guest::info))).await
    }

    async fn usage(&self) -> Result<Vec<DomainUsage>, HypervisorError> {
        self.call(|model, now| Ok(model.guests().map(|guest| guest.usage(now)).collect())).await
    }

    async fn guest(&self, uuid: Uuid) -> Result<GuestFacts, HypervisorError> {
        self.call(|model, _| model.get(uuid).map(Guest::says)).await
    }

    async fn create(&self, config: &DomainConfig) -> Result<DomId, HypervisorError> {
        let (domid, course, profile) = self
            .call(|model, now| {
                model.begin(config, now).map(|(domid, course)| (domid, course, model.profile.clone()))
            })
            .await?;
        let limit = profile.call_limit;
        let timed_out = || HypervisorError::TimedOut { call: "create", limit };
        if course == Course::Hangs || profile.create_time > limit {
            tokio::time::sleep(limit).await;
            return Err(timed_out());
        }
        tokio::time::sleep(profile.create_time).await;
        self.call(|model, _| match model.get(config.uuid) {
            Ok(guest) if guest.domid == domid && guest.state == GuestState::HalfBuilt => {
                let mut guest = guest.clone();
                guest.finish();
                model.put(guest)
            }
            Ok(_) | Err(_) => Err(HypervisorError::Refused {
                call: "create",
                detail: "the domain was destroyed while it was built".into(),
            }),
        })
        .await?;
        if course == Course::EndsUntold {
            tokio::time::sleep(limit.saturating_sub(profile.create_time)).await;
            return Err(timed_out());
        }
        Ok(domid)
    }

    async fn unpause(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.call(|model, now| model.unpause(uuid, now)).await
    }

    async fn pause(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.act_on("pause", uuid, |guest, now, _| guest.pause(now)).await
    }

    async fn request_shutdown(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.act_on("request_shutdown", uuid, |guest, now, profile| {
            if let Some(time) = profile.shutdown_time {
                guest.stop_after(now, time, StopReason::Poweroff);
            }
        })
        .await
    }

    async fn settings(&self, uuid: Uuid) -> Result<Settings, HypervisorError> {
        self.call(|model, _| Ok(model.whole("settings", uuid)?.settings())).await
    }

    async fn change(&self, uuid: Uuid, change: &Change) -> Result<(), HypervisorError> {
        self.call(|model, _| model.change(uuid, change)).await
    }

    async fn suspend(
        &self,
        uuid: Uuid,
        mode: SuspendMode,
        stream: Outgoing,
        progress: OnProgress,
    ) -> Result<Sent, HypervisorError> {
        self.suspend_to(uuid, mode, stream, progress).await
    }

    async fn restore(&self, config: &DomainConfig, stream: Incoming) -> Result<DomId, HypervisorError> {
        self.restore_from(config, stream).await
    }

    async fn claim(&self, uuid: Uuid, token: u64) -> Result<(), HypervisorError> {
        self.call(|model, now| model.claim(uuid, token, now)).await
    }

    async fn resume(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.call(|model, now| model.resume(uuid, now)).await
    }

    async fn abort(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.transfers.abort(uuid).await;
        Ok(())
    }

    async fn destroy(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.transfers.abort(uuid).await;
        self.take_apart(uuid, None).await
    }

    async fn console(&self, uuid: Uuid) -> Result<Vec<u8>, HypervisorError> {
        self.call(|model, now| Ok(model.get(uuid)?.console(now).into_bytes())).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.host.changes()
    }
}
