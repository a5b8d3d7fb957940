//! A model of one domain and the guest in it.

use super::{hardware::Hardware, profile::Profile};
use crate::hypervisor::{
    DomId, DomainConfig, DomainInfo, DomainState, DomainUsage, GuestFacts, MemoryUse, guest::LONGEST_TEXT,
};
use jiff::{SignedDuration, Timestamp};
use kubexen_crds::{BootType, domain::StopReason};
use serde::{Deserialize, Serialize};
use std::{fmt::Write, time::Duration};
use uuid::Uuid;

/// One domain of the model. It is kept as JSON in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Guest {
    pub(super) uuid: Uuid,
    pub(super) domid: DomId,
    /// The token it was made under, is being made under, or was claimed with; none if others made it.
    pub(super) token: Option<u64>,
    pub(super) boot: BootType,
    /// Memory that it holds.
    pub(super) memory_kib: u64,
    pub(super) state: GuestState,
    pub(super) hardware: Hardware,
    /// Whether the log of starts tells of it: a restored domain begins only when it runs.
    pub(super) started: bool,
    /// Whether the guest in it ever ran, here or where it came from.
    booted: bool,
    /// What the agent inside it tells; none if it has none.
    #[serde(default)]
    agent: Option<Agent>,
    /// The CPU features that it sees and tells on its console when it starts.
    #[serde(default)]
    cpu_features: Vec<String>,
    /// The first second of its life that it tells on this console; none if it does not count.
    counts_from: Option<i64>,
    /// How long it ran before it was paused last.
    ran: SignedDuration,
    /// When it stops by itself.
    stop: Option<Stop>,
    console: String,
}

/// What a stream carries of a guest. Its console stays behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedGuest {
    pub(super) uuid: Uuid,
    boot: BootType,
    memory_kib: u64,
    max_memory_kib: u64,
    max_vcpus: u32,
    vcpus_online: u32,
    stubborn: bool,
    ran: SignedDuration,
    counts: bool,
    #[serde(default)]
    agent: Option<Agent>,
    stop: Option<Stop>,
}

/// What the agent inside a guest tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Agent {
    /// What there is to tell, with this address of the first interface.
    Truth {
        address: String,
    },
    Nonsense,
}

/// What a domain of the model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum GuestState {
    HalfBuilt,
    Paused,
    Running { since: Timestamp },
    Suspended,
    Restored,
    Shutdown(StopReason),
    Dying { until: Timestamp },
}

/// A guest stops by itself after it ran for some time; while it is paused that time stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stop {
    after: SignedDuration,
    reason: StopReason,
}

/// How long a guest runs before it does what `kubexen.exit` says, if `kubexen.exit-after` says nothing.
const DEFAULT_EXIT_AFTER: SignedDuration = SignedDuration::from_secs(5);
/// Makes a guest tell each second of its life.
const COUNT: &str = "kubexen.count";
/// Seconds of its life that are kept of what a guest tells.
const COUNTS_KEPT: i64 = 1000;

impl Guest {
    /// A domain whose building begins.
    pub(super) fn half_built(domid: DomId, config: &DomainConfig, profile: &Profile) -> Self {
        Self {
            uuid: config.uuid,
            domid,
            token: Some(config.token),
            boot: config.boot,
            memory_kib: config.memory_kib,
            hardware: Hardware::of(config),
            state: GuestState::HalfBuilt,
            started: true,
            booted: false,
            cpu_features: seen_features(config, profile),
            counts_from: config
                .kernel
                .as_ref()
                .and_then(|kernel| word(&kernel.command_line, COUNT))
                .map(|_| 0),
            agent: config.kernel.as_ref().and_then(|kernel| asked_agent(&kernel.command_line)),
            ran: SignedDuration::ZERO,
            stop: config.kernel.as_ref().and_then(|kernel| asked_stop(&kernel.command_line)),
            console: String::new(),
        }
    }

    /// A domain whose building from a stream begins.
    pub(super) fn half_restored(domid: DomId, config: &DomainConfig, profile: &Profile) -> Self {
        Self { started: false, ..Self::half_built(domid, config, profile) }
    }

    /// What a stream carries of it.
    pub(super) fn saved(&self) -> SavedGuest {
        SavedGuest {
            uuid: self.uuid,
            boot: self.boot,
            memory_kib: self.memory_kib,
            max_memory_kib: self.hardware.max_memory_kib,
            max_vcpus: self.hardware.max_vcpus,
            vcpus_online: self.hardware.vcpus_online,
            stubborn: self.hardware.stubborn,
            ran: self.ran,
            counts: self.counts_from.is_some(),
            agent: self.agent.clone(),
            stop: self.stop,
        }
    }

    /// Ends the building from a stream, if the stream's guest fits in.
    pub(super) fn finish_restore(&mut self, saved: &SavedGuest) -> Result<(), &'static str> {
        let made_for = (self.uuid, self.boot, self.hardware.max_memory_kib, self.hardware.max_vcpus);
        if made_for != (saved.uuid, saved.boot, saved.max_memory_kib, saved.max_vcpus) {
            return Err("the stream is of another guest");
        }
        if saved.memory_kib > self.hardware.memory_target_kib {
            return Err("the guest holds more memory than the domain may have");
        }
        self.memory_kib = saved.memory_kib;
        self.hardware.vcpus_online = saved.vcpus_online;
        self.hardware.stubborn = saved.stubborn;
        self.state = GuestState::Restored;
        self.booted = true;
        self.counts_from = saved.counts.then(|| saved.ran.as_secs() + 1);
        self.agent.clone_from(&saved.agent);
        self.ran = saved.ran;
        self.stop = saved.stop;
        Ok(())
    }

    /// A running domain that somebody else made.
    pub(super) fn foreign(domid: DomId, uuid: Uuid, memory_kib: u64, now: Timestamp) -> Self {
        Self {
            uuid,
            domid,
            token: None,
            boot: BootType::Pvh,
            memory_kib,
            hardware: Hardware::foreign(memory_kib),
            state: GuestState::Running { since: now },
            started: true,
            booted: true,
            cpu_features: Vec::new(),
            agent: None,
            counts_from: None,
            ran: SignedDuration::ZERO,
            stop: None,
            console: String::new(),
        }
    }

    /// The domain as the hypervisor shows it.
    pub(super) fn info(&self) -> DomainInfo {
        let (state, token) = match self.state {
            GuestState::HalfBuilt => (DomainState::HalfBuilt, None),
            GuestState::Paused => (DomainState::Paused, self.token),
            GuestState::Running { .. } => (DomainState::Running, self.token),
            GuestState::Suspended => (DomainState::Suspended, self.token),
            GuestState::Restored => (DomainState::Restored, None),
            GuestState::Shutdown(reason) => (DomainState::Shutdown(reason), self.token),
            GuestState::Dying { .. } => (DomainState::Dying, self.token),
        };
        DomainInfo {
            uuid: self.uuid,
            domid: self.domid,
            state,
            token,
            sent_under: self.token.filter(|_| self.state == GuestState::Restored),
            memory_kib: self.memory_kib,
            vcpus: self.hardware.max_vcpus,
        }
    }

    /// What it uses of the host. Its vCPUs are given all the time in which it runs here or ran before.
    pub(super) fn usage(&self, now: Timestamp) -> DomainUsage {
        DomainUsage {
            uuid: self.uuid,
            domid: self.domid,
            memory_kib: self.memory_kib,
            vcpus: self.hardware.vcpus_online,
            cpu_time: Duration::try_from(self.ran_until(now)).unwrap_or_default() * self.hardware.max_vcpus,
        }
    }

    /// What its agent tells, if it has one and ever ran.
    pub(super) fn says(&self) -> GuestFacts {
        let address = match self.agent.as_ref().filter(|_| self.booted) {
            None => return GuestFacts::default(),
            Some(Agent::Nonsense) => {
                return GuestFacts {
                    kernel_version: Some("x".repeat(LONGEST_TEXT)),
                    ..GuestFacts::default()
                };
            }
            Some(Agent::Truth { address }) => address,
        };
        let text = |text: &str| Some(text.to_owned());
        let mut facts = GuestFacts {
            os_name: text("KubeXen simulated guest"),
            os_version: text("1.0"),
            kernel_version: text("1.0-simulated"),
            agent_version: text(env!("CARGO_PKG_VERSION")),
            memory: Some(MemoryUse { total_kib: self.memory_kib, free_kib: self.memory_kib / 2 }),
            ..GuestFacts::default()
        };
        facts.add_address(0, address);
        facts
    }

    /// Ends the building.
    pub(super) fn finish(&mut self) {
        self.state = GuestState::Paused;
    }

    /// Lets a paused guest run.
    pub(super) fn unpause(&mut self, now: Timestamp) {
        if self.state == GuestState::Paused {
            if !self.booted {
                self.booted = true;
                let (uuid, vcpus, memory) = (self.uuid, self.hardware.vcpus, self.memory_kib);
                self.say(format_args!("Simulated guest {uuid} started with {vcpus} vCPUs and {memory} KiB"));
                let features = self.cpu_features.join(" ");
                self.say(format_args!("FLAGS {features} ."));
            }
            self.state = GuestState::Running { since: now };
        }
    }

    /// Stops a running guest's time.
    pub(super) fn pause(&mut self, now: Timestamp) {
        if matches!(self.state, GuestState::Running { .. }) {
            self.ran = self.ran_until(now);
            self.state = GuestState::Paused;
        }
    }

    /// Suspends a running guest.
    pub(super) fn suspend(&mut self, now: Timestamp) {
        if matches!(self.state, GuestState::Running { .. }) {
            self.ran = self.ran_until(now);
            self.state = GuestState::Suspended;
        }
    }

    /// Lets a suspended guest run on.
    pub(super) fn resume(&mut self, now: Timestamp) {
        if self.state == GuestState::Suspended {
            self.state = GuestState::Running { since: now };
        }
    }

    /// What it wrote to its console until now. What it counts is not kept, but follows from how long it ran; the last
    /// of it is told.
    pub(super) fn console(&self, now: Timestamp) -> String {
        let mut text = self.console.clone();
        if let (Some(from), true) = (self.counts_from, self.booted) {
            let last = self.ran_until(now).as_secs();
            for second in from.max(last - COUNTS_KEPT)..=last {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "TICK {second}\r");
            }
        }
        text
    }

    /// Makes the guest stop after it ran for `delay` from now on, unless it stops before that.
    pub(super) fn stop_after(&mut self, now: Timestamp, delay: Duration, reason: StopReason) {
        let after = self.ran_until(now).saturating_add(signed(delay));
        if self.stop.is_none_or(|stop| after < stop.after) {
            self.stop = Some(Stop { after, reason });
        }
    }

    /// The moment at which the domain changes by itself, if it does.
    pub(super) fn due(&self) -> Option<Timestamp> {
        match self.state {
            GuestState::Running { since } => {
                self.stop.map(|stop| later(since, stop.after.saturating_sub(self.ran)))
            }
            GuestState::Dying { until } => Some(until),
            GuestState::HalfBuilt
            | GuestState::Paused
            | GuestState::Suspended
            | GuestState::Restored
            | GuestState::Shutdown(_) => None,
        }
    }

    /// The guest does what it was to do by itself.
    pub(super) fn stop_now(&mut self) {
        if let Some(stop) = self.stop {
            let word = match stop.reason {
                StopReason::Poweroff => "Power down",
                StopReason::Reboot => "Restarting system",
                StopReason::Crash => "Kernel panic",
                StopReason::Vanished => "Gone",
            };
            self.say(format_args!("{word}"));
            self.ran = stop.after;
            self.state = GuestState::Shutdown(stop.reason);
        }
    }

    fn ran_until(&self, now: Timestamp) -> SignedDuration {
        match self.state {
            GuestState::Running { since } => self.ran.saturating_add(now.duration_since(since)),
            GuestState::HalfBuilt
            | GuestState::Paused
            | GuestState::Suspended
            | GuestState::Restored
            | GuestState::Shutdown(_)
            | GuestState::Dying { .. } => self.ran,
        }
    }

    fn say(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.console, "{line}\r");
    }
}

/// The moment `span` after another; a model has no need of the end of time.
pub(super) fn later(moment: Timestamp, span: SignedDuration) -> Timestamp {
    moment.saturating_add(span).unwrap_or(Timestamp::MAX)
}

/// A span with a sign, which jiff's arithmetic takes.
pub(super) fn signed(span: Duration) -> SignedDuration {
    SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX)
}

/// What follows `name` in the last word of a command line that begins so.
pub(super) fn word<'a>(command_line: &'a str, name: &str) -> Option<&'a str> {
    command_line.split_whitespace().rev().find_map(|word| word.strip_prefix(name))
}

/// The CPU features that a guest sees on a host like this.
fn seen_features(config: &DomainConfig, profile: &Profile) -> Vec<String> {
    let given = profile.feature_sets().of(config.boot).cloned().unwrap_or_default();
    config.cpu_level.as_ref().map_or(given.clone(), |level| given.intersection(level)).names()
}

/// What the agent inside a guest is to tell, if there is one.
fn asked_agent(command_line: &str) -> Option<Agent> {
    if word(command_line, "kubexen.babble").is_some() {
        return Some(Agent::Nonsense);
    }
    word(command_line, "kubexen.agent")?;
    let address = word(command_line, "kubexen.address=").unwrap_or_default();
    Some(Agent::Truth { address: address.split('/').next().unwrap_or_default().to_owned() })
}

/// What the guest is told to do by its kernel's command line. The lab's guest understands the same words.
fn asked_stop(command_line: &str) -> Option<Stop> {
    let value = |name: &str| word(command_line, name);
    let reason = match value("kubexen.exit=")? {
        "poweroff" => StopReason::Poweroff,
        "reboot" => StopReason::Reboot,
        "crash" => StopReason::Crash,
        _ => return None,
    };
    let after = value("kubexen.exit-after=").and_then(|text| text.parse::<u32>().ok());
    Some(Stop { after: after.map_or(DEFAULT_EXIT_AFTER, |s| SignedDuration::from_secs(s.into())), reason })
}
