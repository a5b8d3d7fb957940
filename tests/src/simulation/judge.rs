//! The judge: sees every write and every start and stop of a domain as it happens, keeps the trace, and says which
//! promise was broken. It looks from outside, at the server's and the hosts' own state.

use super::{
    disks::Disks,
    silence::Heard,
    stops::{Wishes, may_be_stopped, may_run},
};
use crate::memory_api::{Object, Observer, Write};
use jiff::Timestamp;
use kubexen_crds::names::host_namespace;
use kubexen_node_agent::hypervisor::{
    DomainInfo,
    simulated::{SimulatedHost, StartEvent, StartRecord},
};
use kubexen_runtime::Clock;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{sync::Notify, time::Instant};
use uuid::Uuid;

/// Sees and judges.
#[derive(Debug)]
pub(super) struct Judge {
    began: Instant,
    pub(super) clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Told when the write came after which a process is to crash.
    pub(super) wake: Notify,
}

#[derive(Debug)]
pub(super) struct State {
    trace: Vec<String>,
    violations: Vec<String>,
    /// The largest token seen of each virtual machine, by uid.
    tokens: BTreeMap<String, u64>,
    /// The boot at which each virtual machine was built last, and under which token.
    builds: BTreeMap<Uuid, (String, u64)>,
    /// Present Domain objects, by namespace and the uid of their virtual machine.
    domains: BTreeMap<(String, String), Arc<Object>>,
    pub(super) machines: BTreeSet<Uuid>,
    pub(super) hosts: BTreeMap<String, SimulatedHost>,
    disks: Disks,
    /// When each host began to build its copy of a guest.
    copies: BTreeMap<(String, Uuid), Timestamp>,
    /// When hosts last heard of the pool's store.
    pub(super) heard: BTreeMap<String, Heard>,
    foreign: BTreeSet<Uuid>,
    /// Guests that stop by themselves, or did, and were not built anew since.
    stopped: BTreeSet<Uuid>,
    wishes: Wishes,
    /// Hosts that are said to be evacuated, with the machines that were left there.
    evacuated: BTreeMap<String, BTreeSet<String>>,
    /// The process whose writes are counted down, and how many are left.
    armed: Option<(String, usize)>,
    last_write: Instant,
    writes: usize,
}

impl Judge {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let now = Instant::now();
        Self {
            began: now,
            clock,
            state: Mutex::new(State {
                trace: Vec::new(),
                violations: Vec::new(),
                tokens: BTreeMap::new(),
                builds: BTreeMap::new(),
                domains: BTreeMap::new(),
                machines: BTreeSet::new(),
                hosts: BTreeMap::new(),
                disks: Disks::default(),
                copies: BTreeMap::new(),
                heard: BTreeMap::new(),
                foreign: BTreeSet::new(),
                stopped: BTreeSet::new(),
                wishes: Wishes::default(),
                evacuated: BTreeMap::new(),
                armed: None,
                last_write: now,
                writes: 0,
            }),
            wake: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line to the trace.
    pub(super) fn note(&self, what: impl Display) {
        let at = self.began.elapsed();
        self.lock().trace.push(format!("{:>8}.{:03} {what}", at.as_secs(), at.subsec_millis()));
    }

    /// A promise was broken.
    pub(super) fn violated(&self, promise: &str, how: impl Display) {
        self.note(format_args!("VIOLATION {promise}: {how}"));
        self.lock().violations.push(format!("{promise}: {how}"));
    }

    /// Whether a promise was broken.
    pub(super) fn is_upset(&self) -> bool {
        !self.lock().violations.is_empty()
    }

    /// What was broken, the trace, and the number of writes.
    pub(super) fn verdict(&self) -> (Vec<String>, Vec<String>, usize) {
        let state = self.lock();
        (state.violations.clone(), state.trace.clone(), state.writes)
    }

    /// The moment of the last write, leases not counted.
    pub(super) fn last_write(&self) -> Instant {
        self.lock().last_write
    }

    /// The uid of every virtual machine that there ever was.
    pub(super) fn machines(&self) -> BTreeSet<Uuid> {
        self.lock().machines.clone()
    }

    pub(super) fn add_host(&self, name: &str, host: SimulatedHost) {
        self.lock().hosts.insert(name.to_owned(), host);
    }

    /// A domain that others made: nobody may touch it.
    pub(super) fn add_foreign(&self, uuid: Uuid) {
        self.lock().foreign.insert(uuid);
    }

    /// Tells by [`Judge::wake`] when the process of this name has written so many times from now on.
    pub(super) fn arm(&self, process: &str, writes: usize) {
        self.lock().armed = Some((process.to_owned(), writes));
    }

    /// Whether the process that was armed has written as often as it was to.
    pub(super) fn is_crash_due(&self) -> bool {
        self.lock().armed.as_ref().is_some_and(|(_, left)| *left == 0)
    }

    /// The process that was armed, if any; it is no more.
    pub(super) fn disarm(&self) -> Option<String> {
        self.lock().armed.take().map(|(process, _)| process)
    }

    /// An agent begins to build a domain.
    pub(super) fn creating(&self, host: &str, uuid: Uuid, token: u64) {
        self.note(format_args!("{host} create {uuid} token {token}"));
        self.arriving(host, uuid);
        let (others, newest) = {
            let state = self.lock();
            let others: Vec<String> = state
                .hosts
                .iter()
                .filter(|(name, other)| {
                    name.as_str() != host
                        && other.domains().is_ok_and(|domains| {
                            domains.iter().any(|domain| domain.uuid == uuid && may_run(domain.state))
                        })
                })
                .map(|(name, _)| name.clone())
                .collect();
            (others, state.tokens.get(&uuid.to_string()).copied().unwrap_or(0))
        };
        if !others.is_empty() {
            self.violated("I1", format_args!("{host} builds {uuid}, which is on {}", others.join(", ")));
        }
        if token < newest {
            self.violated("I3", format_args!("{host} builds {uuid} under {token} after {newest}"));
        }
        let boot = self.lock().hosts.get(host).and_then(|host| host.boot_id().ok()).unwrap_or_default();
        let before = self.lock().builds.insert(uuid, (boot.clone(), token));
        if before.is_some_and(|(before, under)| before != boot && token <= under) {
            self.violated(
                "I3",
                format_args!("{host} builds {uuid} under {token}, the token of an earlier boot"),
            );
        }
        let state = &mut *self.lock();
        state.tokens.insert(uuid.to_string(), token.max(newest));
        state.stopped.remove(&uuid);
    }

    /// A guest is about to be on this host. Nobody comes to one that automation may be switching off.
    fn arriving(&self, host: &str, uuid: Uuid) {
        let left = self.lock().evacuated.get(host).cloned();
        if left.is_some_and(|left| !left.contains(&uuid.to_string())) {
            self.violated("L5", format_args!("{uuid} comes to {host}, which is said to be evacuated"));
        }
    }

    /// A guest stops by itself, at once or when it runs.
    pub(super) fn stops_by_itself(&self, uuid: Uuid) {
        self.lock().stopped.insert(uuid);
    }

    /// Whether a guest has stopped by itself, and was not built since.
    pub(super) fn has_stopped(&self, uuid: Uuid) -> bool {
        self.lock().stopped.contains(&uuid)
    }

    /// A host begins to build a copy of a guest from what is sent to it.
    pub(super) fn copying(&self, host: &str, uuid: Uuid) {
        let now = self.clock.now();
        self.lock().copies.insert((host.to_owned(), uuid), now);
    }

    /// A host lets its copy of a guest run on: the guest has not begun to run anywhere since the copy was begun, for then its disks
    /// are newer than the copy's memory.
    pub(super) fn claiming(&self, host: &str, uuid: Uuid) {
        let state = self.lock();
        let copied = state.copies.get(&(host.to_owned(), uuid)).copied();
        let logs: Vec<_> = state.hosts.values().map(|host| host.start_log().unwrap_or_default()).collect();
        drop(state);
        let begins = |event| matches!(event, StartEvent::Start | StartEvent::Arrive | StartEvent::Resume);
        let mut runs = logs.iter().flatten().filter(|record| record.uuid == uuid && begins(record.event));
        if let Some(since) = runs.find(|record| copied.is_some_and(|copied| record.at > copied)) {
            let how = format_args!("{host} runs a copy of {uuid}, which has run since, at {}", since.at);
            self.violated("I9", how);
        }
    }

    /// An agent is about to build a domain on these devices.
    pub(super) fn using(&self, at: Timestamp, host: &str, uuid: Uuid, devices: BTreeSet<PathBuf>) {
        self.lock().disks.give(at, host, uuid, devices);
    }

    /// A guest is about to be given one more device, or was.
    pub(super) fn plugging(&self, host: &str, uuid: Uuid, device: &Path) {
        let now = self.clock.now();
        let disks = &mut self.lock().disks;
        let mut devices = disks.of(host, uuid).cloned().unwrap_or_default();
        if devices.insert(device.to_owned()) {
            disks.give(now, host, uuid, devices);
        }
    }

    /// Sees which devices guests have let go of.
    pub(super) fn look_at_disks(&self) {
        let now = self.clock.now();
        let state = &mut *self.lock();
        for (name, host) in &state.hosts {
            for (uuid, devices) in devices_of(host) {
                let Some(known) = state.disks.of(name, uuid) else { continue };
                if !known.is_subset(&devices) {
                    let left = known.intersection(&devices).cloned().collect();
                    state.disks.give(now, name, uuid, left);
                }
            }
        }
    }

    /// The guests that can run and have a device with this in its name, each with its host.
    pub(super) fn users_of(&self, device: &str) -> Vec<String> {
        let mut users = Vec::new();
        for (name, host) in &self.lock().hosts {
            let has = |devices: &BTreeSet<PathBuf>| {
                devices.iter().any(|path| path.to_string_lossy().contains(device))
            };
            let found = devices_of(host).into_iter().filter(|(_, devices)| has(devices));
            users.extend(found.map(|(uuid, _)| format!("{uuid} on {name}")));
        }
        users
    }

    /// A host lost its power or was reset, and its guests with it.
    pub(super) fn lost(&self, host: &str, at: Timestamp) {
        self.lock().disks.lose(host, at);
    }

    /// An agent is about to ask a guest to power off.
    pub(super) fn asking_to_stop(&self, host: &str, uuid: Uuid) {
        self.touching(host, "shutdown", uuid);
        let (present, record) = {
            let state = self.lock();
            (state.domain(host, uuid), state.domains.get(&(host_namespace(host), uuid.to_string())).cloned())
        };
        if let Some(present) = present
            && let Err(why) = may_be_stopped(&present, record.as_deref(), false)
        {
            self.violated("I4", format_args!("{host} shuts {uuid} down: {why}"));
        }
    }

    /// An agent is about to take a domain apart. `is_elsewhere` says that the guest is another host's by the store, or in a volume;
    /// `is_guarded` that the host has promised to stop it.
    pub(super) fn destroying(&self, host: &str, uuid: Uuid, is_elsewhere: bool, is_guarded: bool) {
        let (present, record, is_silent, was_guarded, runs_elsewhere) = {
            let state = self.lock();
            let heard = state.heard.get(host);
            let is_silent = heard.is_some_and(Heard::is_silent);
            let was_guarded = heard.is_some_and(|heard| heard.promised.contains_key(&uuid));
            let record = state.domains.get(&(host_namespace(host), uuid.to_string())).cloned();
            let runs = |domain: &DomainInfo| domain.uuid == uuid && may_run(domain.state);
            // A restored store may say otherwise.
            let mut others = state.hosts.iter().filter(|(other, _)| *other != host);
            let runs_elsewhere =
                others.any(|(_, other)| other.domains().is_ok_and(|all| all.iter().any(runs)));
            (state.domain(host, uuid), record, is_silent, was_guarded, runs_elsewhere)
        };
        let Some(present) = present else { return };
        self.note(format_args!("{host} destroy {uuid} {:?}", present.state));
        // A promise that was begun may be on record nowhere yet.
        let is_promised = is_guarded
            || was_guarded
            || record.as_deref().is_some_and(|record| record["spec"]["protected"] == true);
        if is_silent && is_promised {
            // What a host guards stops when it hears nothing of the pool's store.
            return;
        }
        if let Err(why) = may_be_stopped(&present, record.as_deref(), is_elsewhere || runs_elsewhere) {
            self.violated("I4", format_args!("{host} destroys {uuid}: {why}"));
        }
    }

    /// An agent does something else to a domain.
    pub(super) fn touching(&self, host: &str, what: &str, uuid: Uuid) {
        self.note(format_args!("{host} {what} {uuid}"));
        if what == "restore" {
            self.arriving(host, uuid);
        }
        if self.lock().foreign.contains(&uuid) {
            self.violated("I4", format_args!("{host}: {what} of the foreign domain {uuid}"));
        }
    }

    /// Judges the whole history of domains and disks.
    pub(super) fn judge_history(&self) {
        let logs: BTreeMap<String, Vec<StartRecord>> = {
            let state = self.lock();
            let log = |host: &SimulatedHost| host.start_log().unwrap_or_default();
            state.hosts.iter().map(|(name, host)| (name.clone(), log(host))).collect()
        };
        let overlaps = self.lock().disks.overlaps(&logs);
        for overlap in overlaps {
            self.violated(overlap.promise(), &overlap);
        }
        let mut records: Vec<_> = logs.into_values().flatten().collect();
        records.sort_by_key(|record| (record.at, record.token));
        let mut tokens: BTreeMap<Uuid, u64> = BTreeMap::new();
        for record in records {
            match record.event {
                StartEvent::Start | StartEvent::Arrive | StartEvent::Resume | StartEvent::Claim => {
                    let newest = tokens.entry(record.uuid).or_default();
                    if record.token < *newest {
                        self.violated("I3", format_args!("{}: {} after {newest}", record.uuid, record.token));
                    }
                    *newest = record.token.max(*newest);
                }
                StartEvent::Suspend | StartEvent::Stop => {}
            }
        }
    }

    fn host_written(&self, host: &Value) {
        let meta = &host["metadata"];
        let name = meta["name"].as_str().unwrap_or_default().to_owned();
        let conditions = host["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let evacuated = conditions.iter().any(|condition| {
            condition["type"] == "Evacuated"
                && condition["status"] == "True"
                && condition["observedGeneration"] == meta["generation"]
        });
        let mut state = self.lock();
        if !evacuated {
            state.evacuated.remove(&name);
        } else if !state.evacuated.contains_key(&name) {
            let namespace = host_namespace(&name);
            let here = state.domains.keys().filter(|(of, _)| *of == namespace);
            let left = here.map(|(_, uid)| uid.clone()).collect();
            state.evacuated.insert(name, left);
        }
    }

    fn token_written(&self, write: &Write<'_>) {
        let token = |object: &Value| object["status"]["ownerToken"].as_u64();
        let before = write.before.and_then(|before| token(before));
        let after = token(write.object);
        if before.is_some() && after < before {
            let name = name_of(write.object);
            let how = format!("{} of {name} goes from {before:?} to {after:?}", write.kind);
            self.violated("I3", how);
        }
    }
}

impl State {
    /// The domain of a guest on a host, if it is there.
    fn domain(&self, host: &str, uuid: Uuid) -> Option<DomainInfo> {
        let domains = self.hosts.get(host)?.domains().ok()?;
        domains.into_iter().find(|domain| domain.uuid == uuid)
    }

    /// Why this write may not be, as it ends a guest that runs and is wanted; none if it may.
    fn forbid(&self, write: &Write<'_>) -> Option<String> {
        let before = write.before.filter(|_| write.kind == "Domain")?;
        let domain = write.object;
        let uuid = domain["spec"]["virtualMachine"]["uid"].as_str()?.parse().ok()?;
        let host = domain["metadata"]["namespace"].as_str()?.strip_prefix(&host_namespace(""))?;
        self.domain(host, uuid).filter(|present| may_run(present.state))?;
        let is_deleting = |object: &Value| !object["metadata"]["deletionTimestamp"].is_null();
        if !is_deleting(before) && (is_deleting(domain) || write.deleted) {
            return self.wishes.forbid_deletion(write.client, domain);
        }
        self.wishes.forbid_restart(before, domain)
    }
}

/// The devices of each guest that can run on a host.
fn devices_of(host: &SimulatedHost) -> Vec<(Uuid, BTreeSet<PathBuf>)> {
    let running = host.domains().unwrap_or_default().into_iter().filter(|domain| may_run(domain.state));
    let devices = |guest: DomainInfo| {
        let settings = host.settings(guest.uuid).ok()?;
        Some((guest.uuid, settings.disks.into_iter().filter_map(|disk| disk.device).collect()))
    };
    running.filter_map(devices).collect()
}

fn name_of(object: &Value) -> String {
    let meta = &object["metadata"];
    let text = |field: &str| meta[field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

impl Observer for Judge {
    fn wrote(&self, write: Write<'_>) {
        let verb = match (write.before, write.deleted) {
            (None, _) => "creates",
            (Some(_), false) => "changes",
            (Some(_), true) => "ends",
        };
        let object = write.object;
        let (meta, phase) = (&object["metadata"], object["status"]["phase"].as_str().unwrap_or_default());
        let version = meta["resourceVersion"].as_str().unwrap_or_default();
        let said = if write.kind == "Event" { object["reason"].as_str().unwrap_or_default() } else { phase };
        let deleting = if meta["deletionTimestamp"].is_null() { "" } else { " deleting" };
        let name = name_of(object);
        self.note(format_args!(
            "{} {verb} {} {name} at {version} {said}{deleting}",
            write.client, write.kind
        ));
        let mut state = self.lock();
        state.writes += 1;
        if write.kind != "Lease" {
            state.last_write = Instant::now();
        }
        if write.kind == "VirtualMachine"
            && let Some(uid) = meta["uid"].as_str().and_then(|uid| Uuid::parse_str(uid).ok())
            && state.machines.insert(uid)
        {
            let name = meta["name"].as_str().unwrap_or_default();
            state.trace.push(format!("             machine {name} has the uid {uid}"));
        }
        state.wishes.wrote(&write);
        let forbidden = state.forbid(&write);
        if write.kind == "Domain" {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let key = (text(&meta["namespace"]), text(&object["spec"]["virtualMachine"]["uid"]));
            if write.deleted {
                state.domains.remove(&key);
            } else {
                state.domains.insert(key, Arc::clone(object));
            }
        }
        if let Some((process, left)) = &mut state.armed
            && write.client == process
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.wake.notify_one();
            }
        }
        drop(state);
        if let Some(why) = forbidden {
            self.violated("I4", format_args!("{} ends the guest of {name}: {why}", write.client));
        }
        if write.kind == "VirtualMachine" || write.kind == "Domain" {
            self.token_written(&write);
        }
        if write.kind == "Host" {
            self.host_written(object);
        }
    }

    fn read(&self, client: &str, object: &Value) {
        if object["kind"] == "VirtualMachine" {
            self.lock().wishes.read(client, object);
        }
    }
}
