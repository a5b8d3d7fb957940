//! The state of a simulated host, without time: callers say what time it is.

use super::{
    guest::{Guest, GuestState, later, signed},
    ledger::{HostRecord, Ledger, StartEvent, StartRecord},
    profile::Profile,
};
use crate::{
    fence::Checkpoint,
    hypervisor::{Change, DomId, DomainConfig, HypervisorError, hidden_features},
};
use jiff::Timestamp;
use kubexen_crds::BootType;
use std::{collections::BTreeMap, io, path::Path};
use uuid::Uuid;

/// All there is to know of a simulated host.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) profile: Profile,
    pub(super) faults: Faults,
    name: String,
    host: HostRecord,
    guests: BTreeMap<Uuid, Guest>,
    ledger: Option<Ledger>,
    /// What a host without a ledger remembers of its domains.
    log: Vec<StartRecord>,
    changed: bool,
}

/// Failures that are to be injected.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) unreachable: bool,
    pub(super) creates: CallFaults,
    pub(super) suspends: CallFaults,
    pub(super) restores: CallFaults,
    /// The byte at which the stream of the next suspend breaks.
    pub(super) break_suspend: Option<u64>,
}

/// How many of the next calls of a kind fail in each way.
#[derive(Debug, Default)]
pub(super) struct CallFaults {
    pub(super) refused: u32,
    pub(super) hanging: u32,
    pub(super) lost: u32,
}

/// How a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    Ends,
    /// Until its time limit.
    Hangs,
    /// It does its work, and its answer is lost.
    EndsUntold,
}

impl CallFaults {
    /// How the next call goes, or that it is refused.
    pub(super) fn next(&mut self, call: &'static str) -> Result<Course, HypervisorError> {
        for (count, course) in [
            (&mut self.refused, None),
            (&mut self.hanging, Some(Course::Hangs)),
            (&mut self.lost, Some(Course::EndsUntold)),
        ] {
            if *count > 0 {
                *count -= 1;
                return course.ok_or_else(|| refused(call, "refusal injected"));
            }
        }
        Ok(Course::Ends)
    }
}

/// Numbers from here on are Xen's own (`DOMID_FIRST_RESERVED`).
const FIRST_RESERVED_DOMID: u16 = 0x7ff0;

impl Model {
    /// A host that was just booted.
    pub(super) fn booted(name: &str, profile: Profile, now: Timestamp) -> Self {
        Self {
            profile,
            faults: Faults::default(),
            name: name.to_owned(),
            host: HostRecord::booted(name, now),
            guests: BTreeMap::new(),
            ledger: None,
            log: Vec::new(),
            changed: false,
        }
    }

    /// The host that a folder tells of; one that was just booted if the folder is empty.
    pub(super) fn ledgered(folder: &Path, profile: Profile, now: Timestamp) -> Result<Self, HypervisorError> {
        let (ledger, found) = Ledger::open(folder).map_err(lost)?;
        let mut model = Self::booted(&folder.to_string_lossy(), profile, now);
        if let Some(host) = found.host {
            model.host = host;
        } else {
            ledger.save_host(&model.host).map_err(lost)?;
        }
        let mut open = BTreeMap::new();
        for record in ledger.records().map_err(lost)? {
            match record.event {
                StartEvent::Start
                | StartEvent::Arrive
                | StartEvent::Resume
                | StartEvent::Claim
                | StartEvent::Suspend => {
                    open.insert(record.uuid, (record.token, record.event));
                }
                StartEvent::Stop => drop(open.remove(&record.uuid)),
            }
        }
        (model.guests, model.ledger) = (found.guests, Some(ledger));
        for (uuid, (token, last)) in open {
            let state = model.guests.get(&uuid).filter(|guest| guest.started).map(|guest| guest.state);
            match state {
                None => model.record(StartEvent::Stop, uuid, Some(token), now)?,
                Some(GuestState::Suspended) if last != StartEvent::Suspend => {
                    model.record(StartEvent::Suspend, uuid, Some(token), now)?;
                }
                Some(_) => {}
            }
        }
        Ok(model)
    }

    /// When this boot began.
    pub(super) fn booted_at(&self) -> Timestamp {
        self.host.booted_at
    }

    /// The identity of this boot.
    pub(super) fn boot_id(&self) -> &str {
        &self.host.boot_id
    }

    pub(super) fn guests(&self) -> impl Iterator<Item = &Guest> {
        self.guests.values()
    }

    pub(super) fn log(&self) -> Result<Vec<StartRecord>, HypervisorError> {
        match &self.ledger {
            Some(ledger) => ledger.records().map_err(lost),
            None => Ok(self.log.clone()),
        }
    }

    /// Whether something changed since this was asked last.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn get(&self, uuid: Uuid) -> Result<&Guest, HypervisorError> {
        self.guests.get(&uuid).ok_or(HypervisorError::NoSuchDomain(uuid))
    }

    /// A domain that can be paused, unpaused and asked: neither half built nor being taken apart.
    pub(super) fn whole(&self, call: &'static str, uuid: Uuid) -> Result<&Guest, HypervisorError> {
        let guest = self.get(uuid)?;
        match guest.state {
            GuestState::HalfBuilt => Err(refused(call, "the domain is half built")),
            GuestState::Dying { .. } => Err(refused(call, "the domain is being taken apart")),
            GuestState::Paused
            | GuestState::Running { .. }
            | GuestState::Suspended
            | GuestState::Restored
            | GuestState::Shutdown(_) => Ok(guest),
        }
    }

    /// Memory that no domain holds, in KiB.
    pub(super) fn free_kib(&self) -> u64 {
        let held: u64 = self.guests.values().map(|guest| guest.memory_kib).sum();
        self.profile.memory_kib.saturating_sub(self.profile.dom0_memory_kib).saturating_sub(held)
    }

    /// The moment at which the host changes next by itself.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.guests.values().filter_map(Guest::due).chain(self.host.watchdog).min()
    }

    /// Does what happens by itself up to `now`, whether or not anybody looked: the watchdog resets the host at its time.
    pub(super) fn advance(&mut self, now: Timestamp) -> Result<(), HypervisorError> {
        if let Some(reset) = self.host.watchdog.filter(|reset| *reset <= now) {
            self.advance_guests(reset)?;
            self.reboot(reset)?;
        }
        self.advance_guests(now)
    }

    pub(super) fn watchdog(&self) -> Option<Timestamp> {
        self.host.watchdog
    }

    /// Moves the watchdog's time, or stops it.
    pub(super) fn set_watchdog(&mut self, reset: Option<Timestamp>) -> Result<(), HypervisorError> {
        self.host.watchdog = reset;
        self.changed = true;
        self.save_host()
    }

    pub(super) fn checkpoint(&self) -> Option<&Checkpoint> {
        self.host.checkpoint.as_ref()
    }

    /// Keeps this as long as the host is not booted again.
    pub(super) fn keep(&mut self, checkpoint: Checkpoint) -> Result<(), HypervisorError> {
        self.host.checkpoint = Some(checkpoint);
        self.save_host()
    }

    /// Does what guests and dying domains do by themselves up to `now`.
    fn advance_guests(&mut self, now: Timestamp) -> Result<(), HypervisorError> {
        let due = |guest: &&Guest| guest.due().is_some_and(|due| due <= now);
        let mut ready: Vec<Guest> = self.guests.values().filter(due).cloned().collect();
        ready.sort_by_key(|guest| (guest.due(), guest.uuid));
        for mut guest in ready {
            if matches!(guest.state, GuestState::Dying { .. }) {
                self.remove(&guest, now)?;
            } else {
                guest.stop_now();
                let (uuid, token) = (guest.uuid, guest.token.filter(|_| guest.started));
                guest.started = false;
                self.put(guest)?;
                self.record(StartEvent::Stop, uuid, token, now)?;
            }
        }
        Ok(())
    }

    /// Begins to build a domain.
    pub(super) fn begin(
        &mut self,
        config: &DomainConfig,
        now: Timestamp,
    ) -> Result<(DomId, Course), HypervisorError> {
        self.make_room("create", config)?;
        let course = self.faults.creates.next("create")?;
        let domid = self.take_domid()?;
        self.record(StartEvent::Start, config.uuid, Some(config.token), now)?;
        self.put(Guest::half_built(domid, config, &self.profile))?;
        Ok((domid, course))
    }

    /// Begins to build a domain from a stream.
    pub(super) fn begin_restore(
        &mut self,
        config: &DomainConfig,
    ) -> Result<(DomId, Course), HypervisorError> {
        self.make_room("restore", config)?;
        let course = self.faults.restores.next("restore")?;
        let domid = self.take_domid()?;
        self.put(Guest::half_restored(domid, config, &self.profile))?;
        Ok((domid, course))
    }

    /// Whether what starts the guest is there.
    fn check_boot(&self, call: &'static str, config: &DomainConfig) -> Result<(), HypervisorError> {
        let Profile { boot_loaders, firmware, .. } = &self.profile;
        match config.boot {
            BootType::Pvh | BootType::Pv
                if config.kernel.is_none() && !boot_loaders.contains(&config.boot) =>
            {
                Err(refused(call, "there is no boot loader for the guest"))
            }
            BootType::Hvm if !firmware.contains(&config.firmware.unwrap_or_default()) => {
                Err(refused(call, "the firmware is not there"))
            }
            BootType::Pvh | BootType::Pv | BootType::Hvm => Ok(()),
        }
    }

    fn make_room(&self, call: &'static str, config: &DomainConfig) -> Result<(), HypervisorError> {
        if self.guests.contains_key(&config.uuid) {
            return Err(HypervisorError::AlreadyExists(config.uuid));
        }
        if config.vcpus == 0 || config.memory_kib == 0 {
            return Err(refused(call, "a domain needs a vCPU and memory"));
        }
        hidden_features(call, &self.profile.feature_sets(), config)?;
        if config.vcpus > config.max_vcpus || config.memory_kib > config.max_memory_kib {
            return Err(refused(call, "a domain cannot have more than it is built for"));
        }
        self.check_boot(call, config)?;
        let free = self.free_kib();
        if config.memory_kib > free {
            let detail = format!("{free} KiB are free, {} KiB are needed", config.memory_kib);
            return Err(HypervisorError::OutOfMemory(detail));
        }
        Ok(())
    }

    /// Lets a paused domain run.
    pub(super) fn unpause(&mut self, uuid: Uuid, now: Timestamp) -> Result<(), HypervisorError> {
        let mut guest = self.whole("unpause", uuid)?.clone();
        if guest.state == GuestState::Restored {
            return Err(refused("unpause", "the restored domain was not claimed"));
        }
        if guest.state != GuestState::Paused {
            return Ok(());
        }
        if !guest.started {
            guest.started = true;
            self.record(StartEvent::Arrive, uuid, guest.token, now)?;
        }
        guest.unpause(now);
        guest.follow(self.free_kib());
        self.put(guest)
    }

    /// Changes a domain, and lets the guest follow.
    pub(super) fn change(&mut self, uuid: Uuid, change: &Change) -> Result<(), HypervisorError> {
        let before = self.whole("change", uuid)?;
        let mut guest = before.clone();
        guest.change(change)?;
        guest.follow(self.free_kib());
        if guest == *before { Ok(()) } else { self.put(guest) }
    }

    /// A running domain can no longer run.
    pub(super) fn suspend(&mut self, uuid: Uuid, now: Timestamp) -> Result<(), HypervisorError> {
        let mut guest = self.whole("suspend", uuid)?.clone();
        if !matches!(guest.state, GuestState::Running { .. }) {
            return Err(refused("suspend", "the domain does not run"));
        }
        guest.suspend(now);
        let token = guest.token;
        self.put(guest)?;
        self.record(StartEvent::Suspend, uuid, token, now)
    }

    /// Lets a suspended domain run on; others stay as they are.
    pub(super) fn resume(&mut self, uuid: Uuid, now: Timestamp) -> Result<(), HypervisorError> {
        let mut guest = self.get(uuid)?.clone();
        if guest.state != GuestState::Suspended {
            return Ok(());
        }
        self.record(StartEvent::Resume, uuid, guest.token, now)?;
        guest.resume(now);
        guest.follow(self.free_kib());
        self.put(guest)
    }

    /// Gives a restored or whole domain its token.
    pub(super) fn claim(&mut self, uuid: Uuid, token: u64, now: Timestamp) -> Result<(), HypervisorError> {
        let mut guest = self.whole("claim", uuid)?.clone();
        if guest.state == GuestState::Restored {
            guest.state = GuestState::Paused;
        } else if guest.token.is_none() {
            return Err(refused("claim", "others made the domain"));
        }
        guest.token = Some(token);
        let started = guest.started;
        self.put(guest)?;
        if started { self.record(StartEvent::Claim, uuid, Some(token), now) } else { Ok(()) }
    }

    /// Adds a running domain that somebody else made.
    pub(super) fn add_foreign(
        &mut self,
        uuid: Uuid,
        memory_kib: u64,
        now: Timestamp,
    ) -> Result<DomId, HypervisorError> {
        if self.guests.contains_key(&uuid) {
            return Err(HypervisorError::AlreadyExists(uuid));
        }
        let domid = self.take_domid()?;
        self.put(Guest::foreign(domid, uuid, memory_kib, now))?;
        Ok(domid)
    }

    /// Begins to take a domain apart, if it is there.
    pub(super) fn kill(&mut self, uuid: Uuid, now: Timestamp) -> Result<Option<DomId>, HypervisorError> {
        let Some(guest) = self.guests.get(&uuid) else { return Ok(None) };
        let domid = guest.domid;
        if !matches!(guest.state, GuestState::Dying { .. }) {
            let mut guest = guest.clone();
            guest.state = GuestState::Dying { until: later(now, signed(self.profile.destroy_time)) };
            self.put(guest)?;
        }
        Ok(Some(domid))
    }

    /// The host loses all domains at once and boots again.
    pub(super) fn reboot(&mut self, now: Timestamp) -> Result<(), HypervisorError> {
        for guest in self.guests.values().cloned().collect::<Vec<_>>() {
            self.remove(&guest, now)?;
        }
        self.host = HostRecord::booted(&self.name, now);
        self.changed = true;
        self.save_host()
    }

    /// Keeps a domain's new state.
    pub(super) fn put(&mut self, guest: Guest) -> Result<(), HypervisorError> {
        if let Some(ledger) = &self.ledger {
            ledger.save(&guest).map_err(lost)?;
        }
        self.guests.insert(guest.uuid, guest);
        self.changed = true;
        Ok(())
    }

    fn remove(&mut self, guest: &Guest, now: Timestamp) -> Result<(), HypervisorError> {
        if let Some(ledger) = &self.ledger {
            ledger.remove(guest.uuid).map_err(lost)?;
        }
        self.guests.remove(&guest.uuid);
        self.changed = true;
        self.record(StartEvent::Stop, guest.uuid, guest.token.filter(|_| guest.started), now)
    }

    /// Logs what happened to a domain that has a token; those of others are none of our business.
    fn record(
        &mut self,
        event: StartEvent,
        uuid: Uuid,
        token: Option<u64>,
        at: Timestamp,
    ) -> Result<(), HypervisorError> {
        let Some(token) = token else { return Ok(()) };
        let record = StartRecord { event, uuid, token, at };
        match &mut self.ledger {
            Some(ledger) => ledger.log(&record).map_err(lost),
            None => {
                self.log.push(record);
                Ok(())
            }
        }
    }

    /// The next number that no domain has, as Xen counts them.
    fn take_domid(&mut self) -> Result<DomId, HypervisorError> {
        for _ in 1..FIRST_RESERVED_DOMID {
            let domid = DomId(self.host.next_domid);
            self.host.next_domid = if domid.0 + 1 < FIRST_RESERVED_DOMID { domid.0 + 1 } else { 1 };
            if self.guests.values().all(|guest| guest.domid != domid) {
                self.save_host()?;
                return Ok(domid);
            }
        }
        Err(refused("create", "no domain number is free"))
    }

    fn save_host(&self) -> Result<(), HypervisorError> {
        self.ledger.as_ref().map_or(Ok(()), |ledger| ledger.save_host(&self.host)).map_err(lost)
    }
}

pub(super) fn refused(call: &'static str, detail: &str) -> HypervisorError {
    HypervisorError::Refused { call, detail: detail.to_owned() }
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that map_err takes")]
fn lost(error: io::Error) -> HypervisorError {
    HypervisorError::Unreachable(format!("the simulated host's files: {error}"))
}
