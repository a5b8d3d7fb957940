//! What the benchmarks found, for people and for programs.

use crate::control_plane::Writes;
use serde::Serialize;
use std::{collections::BTreeMap, fmt, time::Duration};

/// What a storm showed.
#[derive(Clone, Debug, Serialize)]
pub struct StormReport {
    /// From sending a machine's create to seeing it Ready.
    pub create_to_ready_seconds: Latencies,
    /// Machines by the time from the first create to the last Ready.
    pub vms_per_second: f64,
    /// What a client without KubeXen reaches with the same writes.
    pub bare_vms_per_second: f64,
    /// The first by the second.
    pub ratio: f64,
    /// Writes of the controller and the agents, events and leases excluded.
    pub api_writes_per_vm: f64,
    /// Events that the controller and the agents wrote.
    pub events_per_vm: f64,
    /// All writes by who made them, then by verb and kind.
    pub writes_by_client: WritesByClient,
    /// Writes of the controller and the agents in the minute after everything had calmed, leases excluded.
    pub fixpoint_writes_per_minute: u64,
    /// Most memory the controller had resident, in megabytes.
    pub controller_peak_mb: f64,
    /// The same of the agent that had most; each serves one host.
    pub agent_peak_mb: f64,
}

/// What the evacuation of a host showed.
#[derive(Clone, Debug, Serialize)]
pub struct EvacuateReport {
    /// Guests that moved.
    pub migrations: usize,
    /// Writes of the controller and the agents from the maintenance's beginning until all had calmed, events and leases
    /// excluded, by move.
    pub writes_per_migration: f64,
    /// Events that the controller and the agents wrote, by move.
    pub events_per_migration: f64,
    /// From the write that began the maintenance to the condition Evacuated.
    pub seconds: f64,
    /// What the limits allow: moves that follow each other at once, each as long as one that is alone.
    pub bound_seconds: f64,
    /// The first by the second.
    pub time_ratio: f64,
    /// CPU time of the controller in that time.
    pub controller_cpu_seconds: f64,
    /// Most memory the controller had resident, in megabytes.
    pub controller_peak_mb: f64,
    /// All writes by who made them, then by verb and kind.
    pub writes_by_client: WritesByClient,
}

/// What hosts that lost their power showed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FailoverReport {
    /// With the profile Default.
    pub default: Rounds,
    /// With the profile Fast.
    pub fast: Rounds,
    /// Longest time from the death of the leading controller until a machine that was made then ran.
    pub controller_takeover_seconds: f64,
    /// Boots that were fenced for 10 s without the pool's etcd, and for the loss of the member that led.
    pub false_fences: usize,
    /// Guests that their hosts stopped in those 10 s, of eight: where the deadline is shorter, that is all of them.
    pub guests_stopped_by_outage: Profiles,
}

/// A number for each profile.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Profiles {
    /// With the profile Default.
    pub default: usize,
    /// With the profile Fast.
    pub fast: usize,
}

/// One round: when what happened, in seconds after the cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    /// The controller saw the host's lease gone.
    pub(super) lease_gone: f64,
    /// The host was fenced.
    pub(super) fenced: f64,
    /// The guest ran on another host.
    pub(super) back: f64,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lease_gone, fenced, back } = self;
        write!(f, "lease gone after {lease_gone:.1} s, fenced after {fenced:.1} s, back after {back:.1} s")
    }
}

/// Rounds with one profile, in seconds after the cut.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rounds {
    /// The median of when the guest ran on another host.
    pub p50_seconds: f64,
    /// The longest of a hundred; with fewer rounds the longest.
    pub p99_seconds: f64,
    /// The median of when the lease was gone.
    pub lease_gone_p50_seconds: f64,
    /// The median of when the host was fenced.
    pub fenced_p50_seconds: f64,
    /// How many times a guest began on a host before it had ended on another.
    pub overlaps: usize,
}

impl Rounds {
    /// Of at least one round.
    pub(super) fn of(rounds: &[Round], overlaps: usize) -> Self {
        let at = |percent: usize, what: fn(&Round) -> f64| {
            let mut seconds: Vec<f64> = rounds.iter().map(what).collect();
            seconds.sort_by(f64::total_cmp);
            let place = (seconds.len() * percent).div_ceil(100).saturating_sub(1);
            seconds.get(place).copied().map_or(f64::NAN, rounded)
        };
        Self {
            p50_seconds: at(50, |round| round.back),
            p99_seconds: at(99, |round| round.back),
            lease_gone_p50_seconds: at(50, |round| round.lease_gone),
            fenced_p50_seconds: at(50, |round| round.fenced),
            overlaps,
        }
    }
}

impl fmt::Display for FailoverReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, rounds) in [("Default", &self.default), ("Fast", &self.fast)] {
            let Rounds { p50_seconds, p99_seconds, lease_gone_p50_seconds, fenced_p50_seconds, overlaps } =
                rounds;
            writeln!(f, "{name:8} back after            {p50_seconds:.1} s (p50), {p99_seconds:.1} s (p99)")?;
            writeln!(f, "  lease gone                 {lease_gone_p50_seconds:.1} s (p50)")?;
            writeln!(f, "  fenced                     {fenced_p50_seconds:.1} s (p50)")?;
            writeln!(f, "  two places at once         {overlaps}")?;
        }
        writeln!(f, "another controller works     {:.1} s", self.controller_takeover_seconds)?;
        writeln!(f, "hosts fenced for nothing     {}", self.false_fences)?;
        let Profiles { default, fast } = self.guests_stopped_by_outage;
        writeln!(f, "guests stopped in 10 s without etcd: Default {default}, Fast {fast}, of 8")?;
        writeln!(f, "behind each time stand the watchdog and the grace; no storage confirms anything")
    }
}

/// What starts of a domain showed; medians.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DomainReport {
    /// From the create of the Domain object until its status says Running.
    pub agent_seconds: f64,
    /// From the request to bare libxl until the domain was let run.
    pub libxl_seconds: f64,
    /// The first by the second.
    pub ratio: f64,
}

impl fmt::Display for EvacuateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "moves                        {}", self.migrations)?;
        writeln!(f, "writes per move              {:.2}", self.writes_per_migration)?;
        writeln!(f, "events per move              {:.2}", self.events_per_migration)?;
        writeln!(f, "until it was evacuated       {:.1} s", self.seconds)?;
        writeln!(f, "  what the limits allow      {:.1} s", self.bound_seconds)?;
        writeln!(f, "  ratio                      {:.2}", self.time_ratio)?;
        writeln!(f, "CPU time, controller         {:.2} s", self.controller_cpu_seconds)?;
        writeln!(f, "peak memory, controller      {:.1} MB", self.controller_peak_mb)?;
        self.writes_by_client.fmt(f)
    }
}

impl fmt::Display for DomainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "a start through the agent    {:.2} s", self.agent_seconds)?;
        writeln!(f, "a start by bare libxl        {:.2} s", self.libxl_seconds)?;
        writeln!(f, "ratio                        {:.2}", self.ratio)
    }
}

/// A distribution of times, in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latencies {
    /// Half took at most this.
    pub p50: f64,
    /// 95 of 100 took at most this.
    pub p95: f64,
    /// 99 of 100 took at most this.
    pub p99: f64,
}

impl Latencies {
    /// The distribution of these times; zeros if there are none.
    #[must_use]
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100);
            rounded(rank.checked_sub(1).and_then(|index| times.get(index)).map_or(0.0, Duration::as_secs_f64))
        };
        Self { p50: at(50), p95: at(95), p99: at(99) }
    }
}

/// Number of writes by client, then by verb and kind, such as `create domains`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct WritesByClient(BTreeMap<String, BTreeMap<String, u64>>);

impl WritesByClient {
    /// Counts writes by client; all agents are one, leases are a kind of their own.
    #[must_use]
    pub fn of(writes: &Writes) -> Self {
        let mut clients: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        let mut add = |user: &str, what: String, count: u64| {
            *clients.entry(client(user).to_owned()).or_default().entry(what).or_default() += count;
        };
        for (kind, count) in &writes.by_kind {
            let slash = if kind.subresource.is_empty() { "" } else { "/" };
            add(&kind.user, format!("{} {}{slash}{}", kind.verb, kind.resource, kind.subresource), *count);
        }
        for (user, count) in &writes.leases {
            add(user, "leases".to_owned(), *count);
        }
        Self(clients)
    }
}

/// Who a user is, in one word where it is one of ours.
fn client(user: &str) -> &str {
    let Some(account) = user.strip_prefix("system:serviceaccount:kubexen-") else { return user };
    if account.starts_with("host-") {
        "agents"
    } else if account == "system:kubexen-controller" {
        "controller"
    } else {
        user
    }
}

/// Three decimals are more than any of this is worth.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The middle of the values; of an even number of them the greater one in the middle.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

impl fmt::Display for StormReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latencies { p50, p95, p99 } = self.create_to_ready_seconds;
        writeln!(f, "create to Ready              p50 {p50:.2} s, p95 {p95:.2} s, p99 {p99:.2} s")?;
        writeln!(f, "machines per second          {:.1}", self.vms_per_second)?;
        writeln!(f, "  the same writes, bare      {:.1}", self.bare_vms_per_second)?;
        writeln!(f, "  ratio                      {:.2}", self.ratio)?;
        writeln!(f, "API writes per machine       {:.2}", self.api_writes_per_vm)?;
        writeln!(f, "events per machine           {:.2}", self.events_per_vm)?;
        writeln!(f, "writes at the fixpoint       {} a minute", self.fixpoint_writes_per_minute)?;
        writeln!(f, "peak memory, controller      {:.1} MB", self.controller_peak_mb)?;
        writeln!(f, "peak memory, one agent       {:.1} MB", self.agent_peak_mb)?;
        self.writes_by_client.fmt(f)
    }
}

impl fmt::Display for WritesByClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (client, writes) in &self.0 {
            writeln!(f, "writes of {client}")?;
            for (what, count) in writes {
                writeln!(f, "{count:>8}  {what}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_plane::WriteKind;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times = (1..=200).rev().map(Duration::from_secs).collect();
        let Latencies { p50, p95, p99 } = Latencies::of(times);
        assert_eq!((p50, p95, p99), (100.0, 190.0, 198.0));
        assert_eq!(Latencies::of(vec![Duration::from_secs(3)]).p99, 3.0);
        assert_eq!(Latencies::of(Vec::new()).p50, 0.0);
    }

    #[test]
    fn all_agents_are_one_client() {
        let mut writes = Writes::default();
        for (user, count) in [
            ("system:serviceaccount:kubexen-host-a:node-agent", 1),
            ("system:serviceaccount:kubexen-host-b:node-agent", 2),
            ("system:serviceaccount:kubexen-system:kubexen-controller", 4),
            ("admin", 8),
        ] {
            let kind = WriteKind {
                user: user.to_owned(),
                verb: "patch".to_owned(),
                resource: "domains".to_owned(),
                subresource: "status".to_owned(),
            };
            writes.by_kind.insert(kind, count);
            writes.leases.insert(user.to_owned(), 1);
        }
        let WritesByClient(clients) = WritesByClient::of(&writes);
        let domains: Vec<_> =
            clients.iter().map(|(who, what)| (who.as_str(), what["patch domains/status"])).collect();
        assert_eq!(domains, [("admin", 8), ("agents", 3), ("controller", 4)]);
        assert_eq!(clients["agents"]["leases"], 2);
    }
}
