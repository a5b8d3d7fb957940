//! A simulated host, and what a test does to it behind the agent's back.

use super::{guest::later, ledger::StartRecord, model::Model, profile::Profile};
use crate::{
    fence::{Checkpoint, Watchdog, WatchdogError},
    hypervisor::{DomId, DomainInfo, HypervisorError, Settings},
};
use jiff::{SignedDuration, Timestamp};
use kubexen_crds::domain::StopReason;
use kubexen_runtime::Clock;
use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use uuid::Uuid;

/// A simulated host. Its guests go on without an agent, as long as one clone of this, or its folder, is kept.
///
/// Time is the given clock's. Guests act at moments of that clock and calls wait by `tokio::time`, so under paused time
/// the clock must be a [`VirtualClock`](kubexen_runtime::clock::VirtualClock).
#[derive(Clone, Debug)]
pub struct SimulatedHost {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    model: Mutex<Model>,
    /// Each who listens has a channel of its own: one channel's receivers are woken in an order that tokio draws by lot, and a
    /// seed would not give the same trace.
    listeners: Mutex<Vec<watch::Sender<u64>>>,
    stopped: Mutex<bool>,
    /// Told when the toolstack goes on.
    awake: Notify,
    clock: Arc<dyn Clock>,
}

impl SimulatedHost {
    /// A host that was just booted and is kept in memory. Its boot id follows from its name and the time.
    #[must_use]
    pub fn in_memory(name: &str, profile: Profile, clock: Arc<dyn Clock>) -> Self {
        let model = Model::booted(name, profile, clock.now());
        Self::with_model(model, clock)
    }

    /// The host whose domains are kept as files in `folder`, so that they outlive the process: a process that is killed
    /// and started again finds them where they would be by now. One process at a time may use the folder.
    ///
    /// # Errors
    /// `Unreachable` when the folder cannot be used or holds a file that cannot be read.
    pub fn ledgered(folder: &Path, profile: Profile, clock: Arc<dyn Clock>) -> Result<Self, HypervisorError> {
        let model = Model::ledgered(folder, profile, clock.now())?;
        Ok(Self::with_model(model, clock))
    }

    fn with_model(model: Model, clock: Arc<dyn Clock>) -> Self {
        let (model, listeners) = (Mutex::new(model), Mutex::default());
        let (stopped, awake) = (Mutex::default(), Notify::new());
        Self { shared: Arc::new(Shared { model, listeners, stopped, awake, clock }) }
    }

    /// All domains as they are at this moment, sorted by UUID.
    ///
    /// # Errors
    /// `Unreachable` when the host's files cannot be written.
    pub fn domains(&self) -> Result<Vec<DomainInfo>, HypervisorError> {
        self.with(|model, _| Ok(model.guests().map(super::guest::Guest::info).collect()))
    }

    /// What a domain has of what can change.
    ///
    /// # Errors
    /// `NoSuchDomain`; `Refused` for a domain that is half built or being taken apart.
    pub fn settings(&self, uuid: Uuid) -> Result<Settings, HypervisorError> {
        self.with(|model, _| Ok(model.whole("settings", uuid)?.settings()))
    }

    /// When every domain that has a token could run, in the order of time. A host in a folder keeps them in
    /// `starts.log` alone, one in memory for as long as it lives.
    ///
    /// # Errors
    /// `Unreachable` when the host's files cannot be read.
    pub fn start_log(&self) -> Result<Vec<StartRecord>, HypervisorError> {
        self.with(|model, _| model.log())
    }

    /// Adds a running domain that somebody else made.
    ///
    /// # Errors
    /// `AlreadyExists` when the UUID is taken.
    pub fn add_foreign(&self, uuid: Uuid, memory_kib: u64) -> Result<DomId, HypervisorError> {
        self.with(|model, now| model.add_foreign(uuid, memory_kib, now))
    }

    /// The guest stops by itself: at once if it runs, otherwise as soon as it does.
    ///
    /// # Errors
    /// `NoSuchDomain`; `Refused` for a domain that is half built or being taken apart.
    pub fn stop_guest(&self, uuid: Uuid, reason: StopReason) -> Result<(), HypervisorError> {
        self.with(|model, now| {
            let mut guest = model.whole("stop_guest", uuid)?.clone();
            guest.stop_after(now, Duration::ZERO, reason);
            model.put(guest)?;
            model.advance(now)
        })
    }

    /// The host loses all its domains at once, and boots again under another boot id.
    ///
    /// # Errors
    /// `Unreachable` when the host's files cannot be written.
    pub fn reboot(&self) -> Result<(), HypervisorError> {
        self.with(Model::reboot)
    }

    /// The identity of the present boot.
    ///
    /// # Errors
    /// `Unreachable` when the host's files cannot be written.
    pub fn boot_id(&self) -> Result<String, HypervisorError> {
        self.with(|model, _| Ok(model.boot_id().to_owned()))
    }

    /// When the present boot of the host began.
    ///
    /// # Errors
    /// When the host's folder cannot be read.
    pub fn booted_at(&self) -> Result<Timestamp, HypervisorError> {
        self.with(|model, _| Ok(model.booted_at()))
    }

    /// When the watchdog resets the host, if it runs.
    ///
    /// # Errors
    /// `Unreachable` when the host's files cannot be written.
    pub fn watchdog(&self) -> Result<Option<Timestamp>, HypervisorError> {
        self.with(|model, _| Ok(model.watchdog()))
    }

    /// Whether guests listen when they are asked to power off from now on, and how long they take.
    pub fn set_shutdown_time(&self, time: Option<Duration>) {
        self.lock().profile.shutdown_time = time;
    }

    /// Begins or ends an outage: during it every call of the agent fails as `Unreachable`; guests go on.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.lock().faults.unreachable = unreachable;
    }

    /// Stops the toolstack, as with dom0, or lets it go on: calls of the agent stop where they are, and guests and the watchdog go on.
    pub fn set_stopped(&self, stopped: bool) {
        *self.stopped() = stopped;
        self.shared.awake.notify_waiters();
    }

    /// Waits until the toolstack is not stopped.
    pub(super) async fn awake(&self) {
        loop {
            // Heard from here on, so that nothing is missed that is told after the look.
            let told = self.shared.awake.notified();
            if !*self.stopped() {
                return;
            }
            told.await;
        }
    }

    fn stopped(&self) -> MutexGuard<'_, bool> {
        self.shared.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses each of the next `creates`; nothing is left of them.
    pub fn refuse_creates(&self, creates: u32) {
        self.lock().faults.creates.refused = creates;
    }

    /// Lets each of the next `creates` hang until its time limit; a half-built domain is left.
    pub fn hang_creates(&self, creates: u32) {
        self.lock().faults.creates.hanging = creates;
    }

    /// Does each of the next `creates`, but tells nobody: they end at their time limit, and the domain is whole.
    pub fn lose_creates(&self, creates: u32) {
        self.lock().faults.creates.lost = creates;
    }

    /// Refuses each of the next `suspends`; the guest runs on.
    pub fn refuse_suspends(&self, suspends: u32) {
        self.lock().faults.suspends.refused = suspends;
    }

    /// Lets each of the next `suspends` hang until its time limit once the guest is suspended and before the stream is
    /// whole; the guest is left suspended.
    pub fn hang_suspends(&self, suspends: u32) {
        self.lock().faults.suspends.hanging = suspends;
    }

    /// Does each of the next `suspends`, but tells nobody: the stream is whole, and the call ends at its time limit.
    pub fn lose_suspends(&self, suspends: u32) {
        self.lock().faults.suspends.lost = suspends;
    }

    /// Breaks the stream of the next suspend once this many bytes were written; the guest runs on.
    pub fn break_suspend(&self, at_byte: u64) {
        self.lock().faults.break_suspend = Some(at_byte);
    }

    /// Refuses each of the next `restores`; nothing is left of them.
    pub fn refuse_restores(&self, restores: u32) {
        self.lock().faults.restores.refused = restores;
    }

    /// Lets each of the next `restores` hang until its time limit; a half-built domain is left.
    pub fn hang_restores(&self, restores: u32) {
        self.lock().faults.restores.hanging = restores;
    }

    /// Does each of the next `restores`, but tells nobody: they end at their time limit, and the domain waits to be
    /// claimed.
    pub fn lose_restores(&self, restores: u32) {
        self.lock().faults.restores.lost = restores;
    }

    /// Changes whenever the host does.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        let (tell, hear) = watch::channel(0);
        self.listeners().push(tell);
        hear
    }

    /// How long it is until the host changes by itself, after it did what it was to do by now.
    pub(super) fn until_due(&self) -> Result<Option<Duration>, HypervisorError> {
        self.with(|model, now| Ok(model.due().map(|due| span(now, due))))
    }

    /// A call of the agent: fails during an outage.
    pub(super) fn call<T>(
        &self,
        call: impl FnOnce(&mut Model, Timestamp) -> Result<T, HypervisorError>,
    ) -> Result<T, HypervisorError> {
        self.with(|model, now| {
            if model.faults.unreachable {
                Err(HypervisorError::Unreachable("outage injected".into()))
            } else {
                call(model, now)
            }
        })
    }

    /// Looks at the model, or changes it, as it is at this moment. Files are written right here, in the executor: they are
    /// small, not synced, and a test's or a demonstration's.
    fn with<T>(
        &self,
        work: impl FnOnce(&mut Model, Timestamp) -> Result<T, HypervisorError>,
    ) -> Result<T, HypervisorError> {
        let now = self.shared.clock.now();
        let mut model = self.lock();
        let result = model.advance(now).and_then(|()| work(&mut model, now));
        let changed = model.take_changed();
        drop(model);
        if changed {
            self.listeners().retain(|listener| {
                listener.send_modify(|count| *count += 1);
                !listener.is_closed()
            });
        }
        result
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<watch::Sender<u64>>> {
        self.shared.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.shared.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time from one moment to a later one.
pub(super) fn span(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}

impl Watchdog for SimulatedHost {
    fn check(&self) -> Result<(), WatchdogError> {
        Ok(())
    }

    fn set(&self, deadline: Instant) -> Result<(), WatchdogError> {
        // As Xen's, it counts in whole seconds.
        let remaining = deadline.saturating_duration_since(Instant::now());
        let seconds = i64::try_from(remaining.as_secs()).unwrap_or(i64::MAX).max(1);
        let set = |model: &mut Model, now: Timestamp| {
            model.set_watchdog(Some(later(now, SignedDuration::from_secs(seconds))))
        };
        self.with(set).map_err(|error| WatchdogError(error.to_string()))
    }

    fn disarm(&self) -> Result<(), WatchdogError> {
        self.with(|model, _| model.set_watchdog(None)).map_err(|error| WatchdogError(error.to_string()))
    }

    fn uptime(&self) -> Duration {
        self.with(|model, now| Ok(span(model.booted_at(), now))).unwrap_or_default()
    }

    fn keep(&self, checkpoint: &Checkpoint) -> Result<(), WatchdogError> {
        self.with(|model, _| model.keep(checkpoint.clone())).map_err(|error| WatchdogError(error.to_string()))
    }

    fn kept(&self) -> Option<Checkpoint> {
        self.with(|model, _| Ok(model.checkpoint().cloned())).ok().flatten()
    }
}
