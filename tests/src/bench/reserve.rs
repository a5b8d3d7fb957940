//! `bench reserve`: how long the failure reserve of a large pool takes, computed anew and after one change.
//!
//! All in one thread, measured by its CPU time: the reserve is a pure function. Two pools are measured, made by the same seed: one that tolerates
//! what is wanted and is as full as it may be then, one that is fuller and does not. Every machine is protected, which is the
//! hardest case.

use super::report::rounded;
use anyhow::{Result, ensure};
use kubexen_controller::placement::{
    DiskNeed, HostView, NetworkNeed, Request, Room, Snapshot, Verdict, group_key, memory_with_overhead,
    place,
    reserve::{Promise, Protected, Reserve},
};
use kubexen_crds::{BootType, quantity::HostSelector, virtual_machine::AntiAffinityMode};
use kubexen_runtime::Key;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::time::{ClockId, Timespec, clock_gettime};
use serde::Serialize;
use std::{fmt, hint::black_box};

const HOSTS: usize = 64;
const GIB: u64 = 1 << 30;
const SEED: u64 = 0x6b75_6265_7865_6e21;
/// Memory of a host of a pool that tolerates two failures, and of one that does not.
const ROOMY: u64 = 216;
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
/// When an update does not lead to what is computed anew.
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
    let mut pool = BenchPool::new(machines, gib, &mut dice);
    let mut full = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let guests = pool.guests.clone();
        let began = Watch::start();
        black_box(Reserve::new(&pool.snapshot, guests, FAILURES));
        full.push(began.millis());
    }
    let mut reserve = Reserve::new(&pool.snapshot, pool.guests.clone(), FAILURES);
    let (tolerates, running) = (reserve.promise().tolerates, pool.guests.len());
    let (mut updates, mut turns, mut before) = (Vec::with_capacity(CHANGES), 0, tolerates);
    for _ in 0..CHANGES {
        let took = pool.change(&mut reserve, &mut dice);
        updates.push(took);
        let Promise { tolerates, .. } = reserve.promise();
        turns += usize::from(tolerates != before);
        before = tolerates;
    }
    let anew = Reserve::new(&pool.snapshot, pool.guests.clone(), FAILURES).promise();
    ensure!(anew.protected == reserve.promise().protected, "guests were lost on the way");
    ensure!(
        before >= anew.tolerates,
        "after all changes {before} failures are tolerated, not {}",
        anew.tolerates
    );
    full.sort_by(f64::total_cmp);
    updates.sort_by(f64::total_cmp);
    let at = |percent: usize| rounded_millis(updates[(updates.len() - 1) * percent / 100]);
    Ok(PoolFigures {
        machines: running,
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

/// A pool, and the guests that run in it.
struct BenchPool {
    snapshot: Snapshot,
    guests: Vec<Protected>,
    made: usize,
}

impl BenchPool {
    /// Places machines as the scheduler does.
    fn new(machines: usize, gib: u64, dice: &mut StdRng) -> Self {
        let hosts = (0..HOSTS).map(|index| host(index, gib)).collect();
        let mut pool = Self {
            snapshot: Snapshot { hosts, ..Snapshot::default() },
            guests: Vec::with_capacity(machines),
            made: machines,
        };
        let requests: Vec<Request> = (0..machines).map(|number| request(number, dice)).collect();
        let verdicts = place(&pool.snapshot, &requests);
        for (request, verdict) in requests.into_iter().zip(verdicts) {
            if let Verdict::Placed { host } = verdict {
                pool.occupy(&host, &request);
                pool.guests.push(Protected { request, host });
            }
        }
        pool
    }

    fn view(&mut self, host: &str) -> &mut HostView {
        let position = self.snapshot.hosts.iter().position(|view| view.name == host);
        &mut self.snapshot.hosts[position.unwrap_or(0)]
    }

    fn occupy(&mut self, host: &str, request: &Request) {
        let view = self.view(host);
        view.memory_used += memory_with_overhead(request.memory, request.vcpus, request.boot);
        view.vcpus_used += request.vcpus;
        if let Some((group, _)) = &request.anti_affinity {
            *view.groups.entry(group.clone()).or_default() += 1;
        }
    }

    fn leave(&mut self, host: &str, request: &Request) {
        let view = self.view(host);
        view.memory_used -= memory_with_overhead(request.memory, request.vcpus, request.boot);
        view.vcpus_used -= request.vcpus;
        if let Some((group, _)) = &request.anti_affinity {
            *view.groups.entry(group.clone()).or_default() -= 1;
        }
    }

    /// Changes one thing, tells the reserve, and returns how long that took it: a guest stops and another starts, one moves, or
    /// a host goes into maintenance or comes out of it.
    fn change(&mut self, reserve: &mut Reserve, dice: &mut StdRng) -> f64 {
        match dice.random_range(0..10) {
            0 => {
                let host = dice.random_range(0..HOSTS);
                let in_maintenance = self.snapshot.hosts.iter().position(|view| view.maintenance);
                let host = in_maintenance.unwrap_or(host);
                self.snapshot.hosts[host].maintenance ^= true;
                let began = Watch::start();
                reserve.set_host(&self.snapshot.hosts[host]);
                began.millis()
            }
            1..=3 => {
                let index = dice.random_range(0..self.guests.len());
                let gone = self.guests.swap_remove(index);
                self.leave(&gone.host, &gone.request);
                let view = self.view(&gone.host).clone();
                let began = Watch::start();
                reserve.remove_guest(&gone.request.key);
                reserve.set_host(&view);
                began.millis()
            }
            4..=6 => {
                let request = request(self.made, dice);
                self.made += 1;
                let verdict = place(&self.snapshot, std::slice::from_ref(&request)).pop();
                let Some(Verdict::Placed { host }) = verdict else { return 0.0 };
                self.occupy(&host, &request);
                let view = self.view(&host).clone();
                let guest = Protected { request, host };
                self.guests.push(guest.clone());
                let began = Watch::start();
                reserve.set_host(&view);
                reserve.set_guest(guest);
                began.millis()
            }
            _ => {
                let index = dice.random_range(0..self.guests.len());
                let Protected { request, host } = self.guests[index].clone();
                let verdict = place(&self.snapshot, std::slice::from_ref(&request)).pop();
                let Some(Verdict::Placed { host: to }) = verdict else { return 0.0 };
                self.leave(&host, &request);
                self.occupy(&to, &request);
                let (from, view) = (self.view(&host).clone(), self.view(&to).clone());
                let guest = Protected { request, host: to };
                self.guests[index] = guest.clone();
                let began = Watch::start();
                reserve.set_host(&from);
                reserve.set_host(&view);
                reserve.set_guest(guest);
                began.millis()
            }
        }
    }
}

/// A host with 32 CPUs, on one of two storages, and on a second network if it is one of every two.
fn host(index: usize, gib: u64) -> HostView {
    let storage = Some(if index % 4 == 3 { "san-2" } else { "san-1" }.to_owned());
    let uplinks = if (index / 4).is_multiple_of(2) { vec!["lan", "dmz"] } else { vec!["lan"] };
    HostView {
        name: format!("host-{index:02}"),
        ready: true,
        schedulable: true,
        memory_allocatable: gib * GIB,
        cpus: 32,
        locations: [("san".to_owned(), Room { capacity: 1 << 50, used: 0, storage })].into(),
        uplinks: uplinks.into_iter().map(str::to_owned).collect(),
        kernels: ["linux".to_owned()].into(),
        capabilities: ["hvm", "hap"].map(str::to_owned).into(),
        ..HostView::default()
    }
}

/// A machine of 2 to 12 GiB and 1 to 4 vCPUs. One in eight needs the second network, one in four is on the second storage,
/// and one in twelve is of a group of eight that share no host.
fn request(number: usize, dice: &mut StdRng) -> Request {
    let storage = if dice.random_range(0..4) == 0 { "san-2" } else { "san-1" };
    let second = dice.random_range(0..8) == 0;
    let mut uplinks = vec!["lan"];
    uplinks.extend(second.then_some("dmz"));
    let network = |uplink: &str| NetworkNeed {
        network: uplink.to_owned(),
        uplink: uplink.to_owned(),
        selector: HostSelector::default(),
    };
    Request {
        key: Key::new("shop", format!("vm-{number:05}")),
        memory: dice.random_range(2..=10) * GIB,
        vcpus: dice.random_range(1..=4),
        growth: 0,
        boot: BootType::Pvh,
        cpu_level: None,
        kernel: Some("linux".to_owned()),
        boot_loader: false,
        firmware: None,
        selector: HostSelector::default(),
        anti_affinity: (number.is_multiple_of(12))
            .then(|| (group_key("shop", &format!("group-{}", number / 96)), AntiAffinityMode::Required)),
        networks: uplinks.into_iter().map(network).collect(),
        disks: vec![DiskNeed::Shared {
            repository: "san".to_owned(),
            location: "san".to_owned(),
            storage: storage.to_owned(),
            selector: HostSelector::default(),
        }],
        images: Vec::new(),
        moves: false,
        protected: true,
        recovers: false,
        avoid: None,
    }
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
