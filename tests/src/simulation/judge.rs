//! The judge: sees every write and every start and stop of a domain as it happens, keeps the trace, and says which
//! promise was broken. It looks from outside, at the server's and the hosts' own state.

use super::disks::Disks;
use crate::memory_api::{Observer, Write};
use jiff::Timestamp;
use kubexen_crds::names::host_namespace;
use kubexen_node_agent::hypervisor::{
    DomainInfo, DomainState,
    simulated::{SimulatedHost, StartEvent, StartRecord},
};
use kubexen_ownership::liveness::Timing;
use kubexen_runtime::Clock;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use uuid::Uuid;

/// Sees and judges.
#[derive(Debug)]
pub(super) struct Judge {
    began: Instant,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Told when the write came after which a process is to crash.
    pub(super) wake: Notify,
}

/// When a host sent its last two requests to the pool's store that were answered with a lease, and when the last answer came.
#[derive(Clone, Debug)]
struct Heard {
    before: Option<Instant>,
    last: Instant,
    told: Instant,
    /// When the host is to have stopped what it guards; none once that was judged.
    due: Option<Instant>,
    /// What it guarded then, as far as the store said. It may not be told that the store has taken that back.
    promised: BTreeSet<Uuid>,
}

/// What a host has more than its deadline: its watchdog counts in whole seconds.
const ROUNDING: Duration = Duration::from_secs(1);

impl Heard {
    /// Whether the host was silent for so long that it stops what it guards. What it has begun then it may end within a
    /// second after it has heard of the store again.
    fn is_silent(&self) -> bool {
        let counts =
            if self.told.elapsed() <= Duration::from_secs(1) { self.before } else { Some(self.last) };
        counts.is_none_or(|counts| counts.elapsed() >= Timing::FAST.stop())
    }
}

#[derive(Debug)]
struct State {
    trace: Vec<String>,
    violations: Vec<String>,
    /// The largest token seen of each virtual machine, by uid.
    tokens: BTreeMap<String, u64>,
    /// The boot at which each virtual machine was built last, and under which token.
    builds: BTreeMap<Uuid, (String, u64)>,
    /// Present Domain objects, by namespace and the uid of their virtual machine.
    domains: BTreeMap<(String, String), Arc<Value>>,
    machines: BTreeSet<Uuid>,
    hosts: BTreeMap<String, SimulatedHost>,
    disks: Disks,
    /// When each host began to build its copy of a guest.
    copies: BTreeMap<(String, Uuid), Timestamp>,
    /// When hosts last heard of the pool's store.
    heard: BTreeMap<String, Heard>,
    foreign: BTreeSet<Uuid>,
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
                evacuated: BTreeMap::new(),
                armed: None,
                last_write: now,
                writes: 0,
            }),
            wake: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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
        self.lock().tokens.insert(uuid.to_string(), token.max(newest));
    }

    /// A guest is about to be on this host. Nobody comes to one that automation may be switching off.
    fn arriving(&self, host: &str, uuid: Uuid) {
        let left = self.lock().evacuated.get(host).cloned();
        if left.is_some_and(|left| !left.contains(&uuid.to_string())) {
            self.violated("L5", format_args!("{uuid} comes to {host}, which is said to be evacuated"));
        }
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

    /// A host sent a request at this moment that made it live for longer, and is to have stopped what it guards a `deadline`
    /// later.
    pub(super) fn heard(
        &self,
        host: &str,
        sent: Instant,
        deadline: Duration,
        is_guarded: impl Fn(Uuid) -> bool,
    ) {
        let mut state = self.lock();
        let promised = state.machines.iter().copied().filter(|guest| is_guarded(*guest)).collect();
        let before = state.heard.get(host).map(|heard| heard.last);
        let due = sent + deadline + ROUNDING;
        state.heard.insert(
            host.to_owned(),
            Heard { before, last: sent, told: Instant::now(), due: Some(due), promised },
        );
    }

    /// The next moment at which a host is to have stopped what it guards, if it hears nothing until then.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.lock().heard.values().filter_map(|heard| heard.due).min()
    }

    /// Judges hosts that have heard nothing for their deadline: what they guard has stopped by then, or they were reset.
    pub(super) fn judge_silence(&self, is_guarded: impl Fn(&str, Uuid) -> bool) {
        let now = Instant::now();
        let mut silent = Vec::new();
        for (host, heard) in &mut self.lock().heard {
            if let Some(due) = heard.due.take_if(|due| *due <= now) {
                silent.push((host.clone(), due));
            }
        }
        for (host, due) in silent {
            for guest in self.running_since(&host, due) {
                if is_guarded(&host, guest) {
                    self.violated("I8", format_args!("{guest} runs on {host}, which should have stopped it"));
                }
            }
        }
    }

    /// The guests that run on a host, and have since this moment or longer.
    fn running_since(&self, host: &str, since: Instant) -> Vec<Uuid> {
        let Some(host) = self.lock().hosts.get(host).cloned() else { return Vec::new() };
        let (domains, log) = (host.domains().unwrap_or_default(), host.start_log().unwrap_or_default());
        let (now, age) = (self.clock.now(), since.elapsed());
        let runs_for = |guest: Uuid| {
            let begins = |record: &&StartRecord| record.uuid == guest && record.event != StartEvent::Claim;
            Duration::try_from(now.duration_since(log.iter().rev().find(begins)?.at)).ok()
        };
        let running = domains.into_iter().filter(|domain| domain.state == DomainState::Running);
        let running = running.map(|domain| domain.uuid);
        running.filter(|guest| runs_for(*guest).is_some_and(|time| time >= age)).collect()
    }

    /// A host lost its power or was reset, and its guests with it.
    pub(super) fn lost(&self, host: &str, at: Timestamp) {
        self.lock().disks.lose(host, at);
    }

    /// An agent is about to take a domain apart. `is_elsewhere` says that the guest is another host's by the store, or in a volume;
    /// `is_guarded` that the host has promised to stop it.
    pub(super) fn destroying(&self, host: &str, uuid: Uuid, is_elsewhere: bool, is_guarded: bool) {
        let (present, record, is_silent, was_guarded, runs_elsewhere) = {
            let state = self.lock();
            let heard = state.heard.get(host);
            let is_silent = heard.is_some_and(Heard::is_silent);
            let was_guarded = heard.is_some_and(|heard| heard.promised.contains(&uuid));
            let domains = state.hosts.get(host).and_then(|host| host.domains().ok()).unwrap_or_default();
            let record = state.domains.get(&(host_namespace(host), uuid.to_string())).cloned();
            let runs = |domain: &DomainInfo| domain.uuid == uuid && may_run(domain.state);
            // A restored store may say otherwise.
            let mut others = state.hosts.iter().filter(|(other, _)| *other != host);
            let runs_elsewhere =
                others.any(|(_, other)| other.domains().is_ok_and(|all| all.iter().any(runs)));
            let present = domains.into_iter().find(|domain| domain.uuid == uuid);
            (present, record, is_silent, was_guarded, runs_elsewhere)
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
        if let Err(why) = may_be_destroyed(&present, record.as_deref(), is_elsewhere || runs_elsewhere) {
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
        let before = write.before.and_then(token);
        let after = token(write.object);
        if before.is_some() && after < before {
            let name = name_of(write.object);
            let how = format!("{} of {name} goes from {before:?} to {after:?}", write.kind);
            self.violated("I3", how);
        }
    }
}

/// Whether a domain in this state can execute without another word of the pool's store.
fn may_run(state: DomainState) -> bool {
    match state {
        DomainState::Running | DomainState::Paused => true,
        // What a dying domain still writes is judged in the end.
        DomainState::Dying
        | DomainState::HalfBuilt
        | DomainState::Suspended
        | DomainState::Restored
        | DomainState::Shutdown(_) => false,
    }
}

/// Why this domain must not be destroyed now, given the truth about its object.
///
/// A copy of a guest that stands still here while the guest is elsewhere may go, and nothing else that is whole.
fn may_be_destroyed(present: &DomainInfo, record: Option<&Value>, is_elsewhere: bool) -> Result<(), String> {
    let Some(record) = record else { return Err("it has no object on this host".to_owned()) };
    match present.state {
        DomainState::HalfBuilt | DomainState::Shutdown(_) | DomainState::Dying => return Ok(()),
        DomainState::Suspended | DomainState::Restored if is_elsewhere => return Ok(()),
        DomainState::Running | DomainState::Paused | DomainState::Suspended | DomainState::Restored => {}
    }
    let asked = &record["spec"]["restartRequested"];
    let restart = !asked.is_null() && *asked != record["status"]["restartHandled"];
    if restart || !record["metadata"]["deletionTimestamp"].is_null() {
        return Ok(());
    }
    Err(format!("it is {:?}, and its object is wanted", present.state))
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
        if write.kind == "Domain" {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let key = (text(&meta["namespace"]), text(&object["spec"]["virtualMachine"]["uid"]));
            if write.deleted {
                state.domains.remove(&key);
            } else {
                state.domains.insert(key, Arc::new(object.clone()));
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
        if write.kind == "VirtualMachine" || write.kind == "Domain" {
            self.token_written(&write);
        }
        if write.kind == "Host" {
            self.host_written(object);
        }
    }
}
