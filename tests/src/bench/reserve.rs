//! `bench reserve`: how long it takes a controller to say how many host failures a large pool tolerates, computed anew as at the
//! beginning of a term, and after one change.
//!
//! What is measured is what the controller does: from mirrors that show Hosts, machines, Domains and disks to the promise that stands
//! in the Pool's status, by way of the snapshot, the guests that are kept for, and the reserve. All in one thread, measured by its CPU
//! time. Two pools are measured, made by the same seed: one that tolerates what is wanted and is nearly as full as it may be then, one
//! that is fuller and does not. Every machine is protected, which is the hardest case.

use super::report::rounded;
use anyhow::{Context, Result, ensure};
use kubexen_controller::{
    Rehearsal,
    placement::{memory_with_overhead, reserve::Promise},
};
use kubexen_crds::{
    BootType, Domain, FeatureSet, FeatureSets, Host, Network, Pool, StorageRepository, VirtualDisk,
    VirtualMachine, Volume,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::time::{ClockId, Timespec, clock_gettime};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fmt};

const HOSTS: usize = 64;
const GIB: u64 = 1 << 30;
const SEED: u64 = 0x6b75_6265_7865_6e21;
/// Memory of a host of a pool that tolerates two failures, and of one that does not.
const ROOMY: u64 = 256;
const FULL: u64 = 208;
/// How often all is computed, of which the median counts.
const ROUNDS: usize = 9;
/// Changes that are measured.
const CHANGES: usize = 2000;
/// How many failures are to be tolerated.
const FAILURES: u32 = 2;

/// How large the pool is.
#[derive(Clone, Copy, Debug)]
pub struct ReserveBench {
    /// Number of machines, on 64 hosts.
    pub machines: usize,
}

/// What was measured; milliseconds of CPU time.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ReserveReport {
    /// All computed anew, in the pool that takes longer: the median.
    pub full_ms: f64,
    /// After one change, in the pool where that takes longer: the median.
    pub update_ms: f64,
    /// The pool that tolerates what is wanted.
    pub kept: PoolFigures,
    /// The pool that does not.
    pub broken: PoolFigures,
}

/// Of one pool; milliseconds of CPU time.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PoolFigures {
    /// Number of machines that run.
    pub machines: usize,
    /// How many failures are tolerated of the two that are wanted.
    pub tolerates: u32,
    /// All computed anew: the median.
    pub full: f64,
    /// After one change: half took at most this.
    pub update_p50: f64,
    /// After one change: 99 of 100 took at most this.
    pub update_p99: f64,
    /// After one change: the longest.
    pub update_max: f64,
    /// After how many of the changes another number of failures was tolerated than before.
    pub turns: usize,
}

/// Measures both pools.
///
/// # Errors
/// When the changes do not lead to what is computed anew, or an object cannot be made.
pub fn run(bench: ReserveBench) -> Result<ReserveReport> {
    let kept = measure(bench.machines, ROOMY)?;
    let broken = measure(bench.machines, FULL)?;
    Ok(ReserveReport {
        full_ms: kept.full.max(broken.full),
        update_ms: kept.update_p50.max(broken.update_p50),
        kept,
        broken,
    })
}

fn measure(machines: usize, gib: u64) -> Result<PoolFigures> {
    let mut dice = StdRng::seed_from_u64(SEED);
    let mut pool = BenchPool::new(machines, gib, &mut dice)?;
    let mut full = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        pool.controller.begin_term();
        full.push(pool.promise()?.0);
    }
    let (_, Promise { tolerates, protected, .. }) = pool.promise()?;
    ensure!(protected == pool.guests.len(), "{protected} of {} guests are counted", pool.guests.len());
    let (mut updates, mut turns, mut before) = (Vec::with_capacity(CHANGES), 0, tolerates);
    while updates.len() < CHANGES {
        // What could not be placed changes nothing, and is no sample.
        if !pool.change(&mut dice)? {
            continue;
        }
        let (took, promise) = pool.promise()?;
        updates.push(took);
        turns += usize::from(promise.tolerates != before);
        before = promise.tolerates;
    }
    let by_changes = pool.promise()?.1;
    pool.controller.begin_term();
    let anew = pool.promise()?.1;
    ensure!(
        (by_changes.tolerates, by_changes.protected) == (anew.tolerates, anew.protected),
        "after all changes {by_changes:?}, and anew {anew:?}"
    );
    full.sort_by(f64::total_cmp);
    updates.sort_by(f64::total_cmp);
    let at = |percent: usize| rounded_millis(updates[(updates.len() - 1) * percent / 100]);
    Ok(PoolFigures {
        machines: protected,
        tolerates,
        full: rounded_millis(full[ROUNDS / 2]),
        update_p50: at(50),
        update_p99: at(99),
        update_max: at(100),
        turns,
    })
}

/// CPU time of this thread: what others do on the machine at the same time does not count.
#[derive(Clone, Copy, Debug)]
struct Watch(Timespec);

impl Watch {
    fn start() -> Self {
        Self(clock_gettime(ClockId::ThreadCPUTime))
    }

    /// Milliseconds since the start.
    fn millis(self) -> f64 {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        (now.tv_sec - self.0.tv_sec) as f64 * 1e3 + (now.tv_nsec - self.0.tv_nsec) as f64 / 1e6
    }
}

fn rounded_millis(millis: f64) -> f64 {
    rounded(millis * 10.0) / 10.0
}

/// A pool as a controller sees it, and what is put into it.
struct BenchPool {
    controller: Rehearsal,
    gib: u64,
    /// By host.
    used: Vec<Used>,
    in_maintenance: Option<usize>,
    guests: Vec<Guest>,
    made: usize,
    /// The resource version of what was made last.
    version: u64,
}

/// What guests use of a host.
#[derive(Clone, Debug, Default)]
struct Used {
    memory: u64,
    vcpus: u32,
    groups: BTreeSet<usize>,
}

/// A machine, and the host that runs it.
#[derive(Clone, Debug)]
struct Guest {
    number: usize,
    /// Of what it sees.
    gib: u64,
    vcpus: u32,
    storage: usize,
    second_network: bool,
    group: Option<usize>,
    host: usize,
}

impl Guest {
    /// A machine of 2 to 10 GiB and 1 to 4 vCPUs. One in eight needs the second network, one in four is on the second storage, and
    /// one in twelve is of a group of eight that share no host.
    fn drawn(number: usize, dice: &mut StdRng) -> Self {
        Self {
            number,
            gib: dice.random_range(2..=10),
            vcpus: dice.random_range(1..=4),
            storage: usize::from(dice.random_range(0..4) == 0),
            second_network: dice.random_range(0..8) == 0,
            group: number.is_multiple_of(12).then_some(number / 96),
            host: 0,
        }
    }

    fn memory(&self) -> u64 {
        memory_with_overhead(self.gib * GIB, self.vcpus, BootType::Pvh)
    }

    /// What the machine is made of, for its spec and its Domain.
    fn build(&self) -> Value {
        json!({"type": "PVH", "kernel": {"name": "linux"}})
    }

    fn machine(&self) -> Value {
        let mut interfaces = vec![json!({"name": "eth0", "network": "lan"})];
        if self.second_network {
            interfaces.push(json!({"name": "eth1", "network": "dmz"}));
        }
        let anti_affinity =
            self.group.map(|group| json!({"group": format!("group-{group}"), "mode": "Required"}));
        json!({
            "cpu": {"count": self.vcpus},
            "memory": {"size": format!("{}Gi", self.gib)},
            "boot": self.build(),
            "disks": [{"name": "root", "disk": self.name()}],
            "interfaces": interfaces,
            "placement": anti_affinity.map_or(json!({}), |group| json!({"antiAffinity": group})),
            "availability": {"restartPriority": "Protected"},
        })
    }

    fn domain(&self) -> Value {
        let memory = format!("{}Gi", self.gib);
        json!({
            "virtualMachine": {"namespace": "shop", "name": self.name(), "uid": self.name()},
            "machine": {
                "cpus": self.vcpus, "maxCpus": self.vcpus, "memory": memory, "maxMemory": memory, "boot": self.build(),
                "disks": [{"name": "root", "volume": format!("shop.{}", self.name()), "target": "xvda"}],
            },
            "protected": true,
        })
    }

    fn name(&self) -> String {
        format!("vm-{:05}", self.number)
    }
}

impl BenchPool {
    fn new(machines: usize, gib: u64, dice: &mut StdRng) -> Result<Self> {
        let mut pool = Self {
            controller: Rehearsal::default(),
            gib,
            used: vec![Used::default(); HOSTS],
            in_maintenance: None,
            guests: Vec::with_capacity(machines),
            made: 0,
            version: 0,
        };
        let spec = json!({"availability": {"hostFailuresToTolerate": FAILURES}});
        // As a controller writes it down at its first look.
        let status = json!({"cpu": {"level": features()}});
        let made: Pool = pool.object("Pool", None, "default", &spec, Some(status))?;
        pool.controller.pool(made);
        for storage in 0..2 {
            let name = format!("san-{storage}");
            let spec = json!({"type": "LVM", "lvm": {"location": name}});
            let made: StorageRepository = pool.object("StorageRepository", None, &name, &spec, None)?;
            pool.controller.repository(made);
        }
        for name in ["lan", "dmz"] {
            let spec = json!({"type": "Bridge", "bridge": {"uplink": name}});
            let made: Network = pool.object("Network", None, name, &spec, None)?;
            pool.controller.network(made);
        }
        for host in 0..HOSTS {
            pool.show_host(host)?;
        }
        // Those that fit nowhere are left out.
        for _ in 0..machines {
            pool.start(dice)?;
        }
        Ok(pool)
    }

    /// What is promised, and how long it took to say so.
    fn promise(&self) -> Result<(f64, Promise)> {
        let began = Watch::start();
        let promise = self.controller.promise();
        Ok((began.millis(), promise.context("failures are to be tolerated")?))
    }

    /// Changes one thing, unless what was drawn is not possible: a guest stops, another starts, one moves, or a host goes into
    /// maintenance or comes out of it.
    fn change(&mut self, dice: &mut StdRng) -> Result<bool> {
        match dice.random_range(0..10) {
            0 => {
                let host = dice.random_range(0..HOSTS);
                let (host, next) = match self.in_maintenance {
                    Some(host) => (host, None),
                    None => (host, Some(host)),
                };
                self.in_maintenance = next;
                self.show_host(host)?;
                Ok(true)
            }
            1..=3 if !self.guests.is_empty() => {
                let index = dice.random_range(0..self.guests.len());
                let guest = self.guests.swap_remove(index);
                self.leave(&guest)?;
                Ok(true)
            }
            4..=6 => self.start(dice),
            _ if self.guests.is_empty() => Ok(false),
            _ => {
                let index = dice.random_range(0..self.guests.len());
                let guest = self.guests[index].clone();
                let Some(host) = self.best(&guest).filter(|host| *host != guest.host) else {
                    return Ok(false);
                };
                // As between a copy's arrival and the end of what it was made of, both are there for a moment.
                self.leave(&guest)?;
                self.guests[index].host = host;
                let guest = self.guests[index].clone();
                self.come(&guest)?;
                Ok(true)
            }
        }
    }

    fn start(&mut self, dice: &mut StdRng) -> Result<bool> {
        let mut guest = Guest::drawn(self.made, dice);
        let Some(host) = self.best(&guest) else { return Ok(false) };
        guest.host = host;
        self.made += 1;
        let name = guest.name();
        let spec = json!({"repository": format!("san-{}", guest.storage), "size": "10Gi"});
        let status = json!({"storage": format!("vg-{}", guest.storage), "host": host_name(host)});
        let disk: VirtualDisk = self.object("VirtualDisk", Some("shop"), &name, &spec, Some(status))?;
        self.controller.disk(disk);
        let spec = json!({
            "virtualDisk": {"namespace": "shop", "name": name, "uid": name}, "location": format!("san-{}", guest.storage),
            "shared": true, "size": "10Gi",
        });
        let namespace = format!("kubexen-host-{}", host_name(host));
        let volume: Volume = self.object("Volume", Some(&namespace), &format!("shop.{name}"), &spec, None)?;
        self.controller.volume(volume);
        let machine: VirtualMachine =
            self.object("VirtualMachine", Some("shop"), &name, &guest.machine(), None)?;
        self.controller.machine(machine);
        self.come(&guest)?;
        self.guests.push(guest);
        Ok(true)
    }

    /// The host with most memory left of those that the guest can go to.
    fn best(&self, guest: &Guest) -> Option<usize> {
        let fits = |host: &usize| {
            let used = &self.used[*host];
            self.in_maintenance != Some(*host)
                && storage_of(*host) == guest.storage
                && (!guest.second_network || has_second_network(*host))
                && used.memory + guest.memory() <= self.gib * GIB
                && used.vcpus + guest.vcpus <= 128
                && guest.group.is_none_or(|group| !used.groups.contains(&group))
        };
        (0..HOSTS).filter(fits).min_by_key(|host| self.used[*host].memory)
    }

    /// The guest is on its host.
    fn come(&mut self, guest: &Guest) -> Result<()> {
        let used = &mut self.used[guest.host];
        used.memory += guest.memory();
        used.vcpus += guest.vcpus;
        used.groups.extend(guest.group);
        let domain = self.domain(guest)?;
        self.controller.domain(domain);
        Ok(())
    }

    /// The guest is gone from its host.
    fn leave(&mut self, guest: &Guest) -> Result<()> {
        let used = &mut self.used[guest.host];
        used.memory -= guest.memory();
        used.vcpus -= guest.vcpus;
        if let Some(group) = guest.group {
            used.groups.remove(&group);
        }
        let domain = self.domain(guest)?;
        self.controller.domain_gone(domain);
        Ok(())
    }

    fn domain(&mut self, guest: &Guest) -> Result<Domain> {
        let namespace = format!("kubexen-host-{}", host_name(guest.host));
        self.object("Domain", Some(&namespace), &format!("shop.{}", guest.name()), &guest.domain(), None)
    }

    /// A host with 32 CPUs, on one of two storages, and on a second network if it is one of every two.
    fn show_host(&mut self, host: usize) -> Result<()> {
        let storage = storage_of(host);
        let mut uplinks = vec![json!({"name": "lan"})];
        uplinks.extend(has_second_network(host).then(|| json!({"name": "dmz"})));
        let memory = format!("{}Gi", self.gib);
        let ready = json!({
            "type": "Ready", "status": "True", "reason": "AgentReporting", "message": "",
            "lastTransitionTime": "2026-01-31T12:00:00Z",
        });
        let status = json!({
            "cpu": {
                "count": 32, "sockets": 1, "coresPerSocket": 32, "threadsPerCore": 1, "model": "any", "featureSets": features(),
            },
            "memory": {"total": memory, "allocatable": memory},
            "locations": [{
                "name": format!("san-{storage}"), "capacity": "1Pi", "shared": true, "id": format!("vg-{storage}"),
            }],
            "uplinks": uplinks, "kernels": ["linux"], "protection": {"state": "Ready"},
            "xen": {"version": "4.17", "simulated": true, "capabilities": ["hvm", "hap"]},
            "conditions": [ready],
        });
        let spec = json!({"maintenance": {"enabled": self.in_maintenance == Some(host)}});
        let host: Host = self.object("Host", None, &host_name(host), &spec, Some(status))?;
        self.controller.host(host);
        Ok(())
    }

    /// An object in its next version, whose name is its uid too.
    fn object<K: DeserializeOwned>(
        &mut self,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
        spec: &Value,
        status: Option<Value>,
    ) -> Result<K> {
        self.version += 1;
        let uid = name.strip_prefix("shop.").unwrap_or(name);
        let mut object = json!({
            "apiVersion": "kubexen.io/v1alpha1", "kind": kind,
            "metadata": {
                "name": name, "uid": uid, "generation": 1, "resourceVersion": self.version.to_string(),
                "finalizers": ["kubexen.io/controller"],
            },
            "spec": spec,
        });
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        if let Some(status) = status {
            object["status"] = status;
        }
        serde_json::from_value(object).with_context(|| format!("{kind} {name}"))
    }
}

/// The CPU features that every host has.
fn features() -> FeatureSets {
    FeatureSets { hvm: Some(FeatureSet::from_names(["avx", "avx2", "sse4_2"])), pv: None }
}

fn host_name(host: usize) -> String {
    format!("host-{host:02}")
}

/// One host in four is on the second storage.
fn storage_of(host: usize) -> usize {
    usize::from(host % 4 == 3)
}

fn has_second_network(host: usize) -> bool {
    (host / 4).is_multiple_of(2)
}

impl fmt::Display for ReserveReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, pool) in [("kept", self.kept), ("broken", self.broken)] {
            let PoolFigures { machines, tolerates, full, update_p50, update_p99, update_max, turns } = pool;
            writeln!(
                f,
                "promise {name:<8}             {machines} machines, {tolerates} of {FAILURES} failures"
            )?;
            writeln!(f, "  computed anew              {full:.2} ms")?;
            writeln!(f, "  after one change           {update_p50:.3} ms")?;
            writeln!(f, "    99 of 100 within         {update_p99:.3} ms")?;
            writeln!(f, "    longest                  {update_max:.3} ms")?;
            writeln!(f, "  changes that turned it     {turns} of {CHANGES}")?;
        }
        Ok(())
    }
}
