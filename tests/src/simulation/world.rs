//! A whole pool inside one thread: the programs as they are, everything around them a model.

use super::{
    dice::Dice,
    dom0::Dom0Seeds,
    effects::Effects,
    ends::Ends,
    gate::Gate,
    heard::Heard,
    hypervisor::Judged,
    judge::Judge,
    reached::{Failing, Reached},
    recoveries::Recoveries,
    seam::{Seam, Stopping},
    step::Step,
    storage::JudgedStorage,
    wire::{Standstill, Weather, Wire},
};
use crate::memory_api::{MemoryApi, Observer};
use jiff::{SignedDuration, Timestamp};
use kubexen_controller::{Dependencies as ControllerDependencies, Options, PoolStore};
use kubexen_node_agent::{
    agent::{self, Dependencies},
    config::{Catalogue, CatalogueKernel},
    hypervisor::simulated::{Profile, SimulatedHost, SimulatedHypervisor},
    metrics::Metrics,
    migration::link::MemoryNetwork,
    network::SimulatedNetwork,
    storage::{MemoryStorage, SharedLocation},
};
use kubexen_ownership::{Backup, HostBoot, HostName, MemoryStore};
use kubexen_runtime::{Clock, clock::VirtualClock, telemetry::Readiness};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::{JoinHandle, spawn_local},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The hosts' names.
pub(super) const HOSTS: [&str; 3] = ["host-a", "host-b", "host-c"];
/// How many controllers there are; one leads.
pub(super) const CONTROLLERS: usize = 2;
/// Namespace of the controllers' lease.
const SYSTEM: &str = "kubexen-system";
/// Namespace of the users' objects.
pub(super) const USERS: &str = "shop";

/// A program that can crash and be started again.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) name: String,
    pub(super) wire: Wire,
    /// Its connection to the pool's store.
    pub(super) store: MemoryStore,
    pub(super) gate: Gate,
    pub(super) seam: Seam,
    /// How long it will be away that ends at a call.
    pub(super) away: Duration,
    runs: u32,
    task: Option<JoinHandle<()>>,
    /// By how many seconds its wall clock is ahead.
    pub(super) ahead: Arc<AtomicI64>,
}

/// The wall clock of a process, which may be set.
#[derive(Debug)]
struct OwnClock {
    right: Arc<dyn Clock>,
    ahead: Arc<AtomicI64>,
}

impl Clock for OwnClock {
    fn now(&self) -> Timestamp {
        let ahead = SignedDuration::from_secs(self.ahead.load(Ordering::Relaxed));
        self.right.now().saturating_add(ahead).unwrap_or(Timestamp::MAX)
    }
}

/// A host: what outlives its agent, and the agent.
#[derive(Debug)]
pub(super) struct HostSide {
    pub(super) name: &'static str,
    pub(super) host: SimulatedHost,
    pub(super) storage: MemoryStorage,
    pub(super) seeds: Dom0Seeds,
    pub(super) foreign: Uuid,
    /// The boot that is known; another one means that the watchdog has reset the host.
    boot_id: String,
    /// How the next call of a kind goes wrong.
    pub(super) failing: Failing,
    /// How long it takes until the build of a domain begins.
    pub(super) build_delay: Arc<Mutex<Duration>>,
    /// Whether it was lost at least once, and all domains with it.
    pub(super) rebooted: bool,
    pub(super) agent: Process,
}

/// The pool.
#[derive(Debug)]
pub(super) struct World {
    pub(super) api: MemoryApi,
    pub(super) judge: Arc<Judge>,
    pub(super) dice: Dice,
    pub(super) weather: Weather,
    pub(super) standstill: Standstill,
    pub(super) pool_store: MemoryStore,
    /// The storage that all hosts reach.
    pub(super) san: SharedLocation,
    pub(super) migrations: MemoryNetwork,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) hosts: Vec<HostSide>,
    pub(super) controllers: Vec<Process>,
    /// Faults under way.
    pub(super) ends: Ends,
    pub(super) began: Instant,
    /// When a host was found to have lost its guests last.
    pub(super) last_loss: Instant,
    /// Whether the pool's store got a request that its client had given up.
    pub(super) is_late: bool,
    /// Whether the pool's store was restored.
    pub(super) is_restored: bool,
    /// What the pool's store held when it was copied last.
    pub(super) backup: Option<Backup>,
    /// What was done so far.
    pub(super) taken: Vec<Step>,
    /// Which faults had their effect.
    pub(super) effects: Effects,
    /// Whether all faults have ended, those included that wait for their moment.
    pub(super) are_faults_over: bool,
    /// The guests that are to run again on another host.
    pub(super) recoveries: Recoveries,
}

impl Process {
    fn new(
        name: String,
        seed: u64,
        weather: &Weather,
        store: &MemoryStore,
        standstill: &Standstill,
        effects: &Effects,
        judge: &Arc<Judge>,
    ) -> Self {
        let wire = Wire::new(Dice::new(seed, &name), weather.clone(), standstill.clone(), effects.clone());
        let (store, gate) = (store.client(), Gate::default());
        let dice = Dice::new(seed, &format!("{name}'s calls"));
        let seam = Seam::new(gate.clone(), dice, weather.clone(), effects.clone(), Arc::clone(judge));
        store.set_way(Arc::new(seam.clone()));
        Self {
            name,
            wire,
            store,
            gate,
            seam,
            away: Duration::ZERO,
            runs: 0,
            task: None,
            ahead: Arc::default(),
        }
    }

    fn clock(&self, right: &Arc<dyn Clock>) -> Arc<dyn Clock> {
        Arc::new(OwnClock { right: Arc::clone(right), ahead: Arc::clone(&self.ahead) })
    }

    /// Lets it end after so many more calls, and be away for so long.
    pub(super) fn end_at_call(&mut self, call: usize, away: Duration) {
        self.seam.end_at_call(Some(call));
        self.away = away;
    }

    /// Whether it should be running.
    pub(super) fn is_up(&self) -> bool {
        self.task.is_some()
    }

    /// Ends it at whatever it waits for right now, as a crash would.
    pub(super) async fn crash(&mut self, judge: &Judge) {
        let Some(task) = self.task.take() else { return };
        judge.note(format_args!("{} crashes", self.name));
        task.abort();
        match task.await {
            Err(error) if error.is_cancelled() => {}
            Err(error) => judge.violated("panic", format_args!("{}: {error}", self.name)),
            Ok(()) => judge.violated("panic", format_args!("{} ended by itself", self.name)),
        }
    }

    /// Complains if it ended by itself.
    pub(super) async fn check(&mut self, judge: &Judge) {
        if self.task.as_ref().is_some_and(JoinHandle::is_finished) {
            self.crash(judge).await;
        }
    }
}

impl World {
    /// A pool whose programs do not run yet.
    pub(super) fn new(seed: u64) -> Self {
        let origin = Timestamp::from_second(1_800_000_000).unwrap_or_default();
        let clock: Arc<dyn Clock> = Arc::new(VirtualClock::starting_at(origin));
        let judge = Arc::new(Judge::new(Arc::clone(&clock)));
        let observer: Arc<dyn Observer> = Arc::<Judge>::clone(&judge);
        let api = MemoryApi::new(&format!("seed {seed}"), Arc::clone(&clock), Some(observer));
        api.add_namespace(SYSTEM);
        api.add_namespace(USERS);
        let (weather, standstill, effects) = (Weather::worse(), Standstill::default(), Effects::default());
        let san = SharedLocation::new("san-1", 1 << 40);
        let pool_store = MemoryStore::new();
        let process = |name| Process::new(name, seed, &weather, &pool_store, &standstill, &effects, &judge);
        let hosts = HOSTS
            .into_iter()
            .map(|name| {
                let profile =
                    Profile { memory_kib: 16 << 20, dom0_memory_kib: 1 << 20, ..Profile::default() };
                let host = SimulatedHost::in_memory(name, profile, Arc::clone(&clock));
                let foreign = Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes());
                judge.add_host(name, host.clone());
                judge.add_foreign(foreign);
                if let Err(error) = host.add_foreign(foreign, 64 << 10) {
                    judge.violated("set-up", error);
                }
                let local = BTreeMap::from([("local".to_owned(), 1 << 40)]);
                let storage = MemoryStorage::new(local).reaching("san", &san);
                let agent = process(format!("agent-{name}"));
                HostSide {
                    name,
                    boot_id: host.boot_id().unwrap_or_default(),
                    host,
                    storage,
                    seeds: Dom0Seeds::new(&effects),
                    foreign,
                    failing: Failing::default(),
                    build_delay: Arc::default(),
                    rebooted: false,
                    agent,
                }
            })
            .collect();
        let controllers = (0..CONTROLLERS).map(|number| process(format!("controller-{number}"))).collect();
        Self {
            api,
            judge,
            dice: Dice::new(seed, "scenario"),
            weather,
            standstill,
            pool_store,
            san,
            migrations: MemoryNetwork::new(),
            clock,
            hosts,
            controllers,
            ends: Ends::default(),
            began: Instant::now(),
            last_loss: Instant::now(),
            is_late: false,
            is_restored: false,
            backup: None,
            taken: Vec::new(),
            effects,
            are_faults_over: false,
            recoveries: Recoveries::new(),
        }
    }

    /// How often each fault had its effect so far.
    pub(super) fn effects(&self) -> BTreeMap<&'static str, u64> {
        let mut effects = self.effects.all();
        effects.extend(self.pool_store.effects());
        effects.extend(Some(("cut-link", self.migrations.cuts_felt())).filter(|(_, felt)| *felt > 0));
        effects
    }

    /// Starts a controller that does not run.
    pub(super) fn start_controller(&mut self, number: usize) {
        let process = &mut self.controllers[number];
        if process.task.is_some() {
            return;
        }
        process.runs += 1;
        process.store.forget();
        let identity = format!("{}-{}", process.name, process.runs);
        self.judge.note(format_args!("{identity} starts"));
        let store = process.store.clone();
        let dependencies = ControllerDependencies {
            client: self.api.client(&process.name, Arc::new(process.wire.clone())),
            clock: process.clock(&self.clock),
            readiness: Readiness::default(),
            metrics: kubexen_controller::Metrics::new(&mut Default::default()),
            pool_store: Some(PoolStore { ownership: Arc::new(store.clone()), liveness: Arc::new(store) }),
        };
        let options = Options { namespace: SYSTEM.to_owned(), identity };
        process.gate.set_shut(false);
        let run = kubexen_controller::run(dependencies, options, CancellationToken::new());
        let gate = process.gate.clone();
        process.task = Some(spawn_local(gate.pass(process.name.clone(), Arc::clone(&self.judge), run)));
    }

    /// Starts the agent of a host if it does not run.
    pub(super) fn start_agent(&mut self, number: usize) {
        let side = &mut self.hosts[number];
        if side.agent.task.is_some() {
            return;
        }
        side.agent.runs += 1;
        side.agent.store.forget();
        let (judge, name) = (Arc::clone(&self.judge), side.name);
        judge.note(format_args!("{} starts", side.agent.name));
        let host = match HostName::new(name) {
            Ok(host) => host,
            Err(error) => return judge.violated("set-up", error),
        };
        let hypervisor = Judged {
            host: name.to_owned(),
            inner: SimulatedHypervisor::new(side.host.clone()),
            judge: Arc::clone(&judge),
            owners: self.pool_store.clone(),
            clock: Arc::clone(&self.clock),
            delay: Arc::clone(&side.build_delay),
        };
        let dependencies = Dependencies {
            client: self.api.client(&side.agent.name, Arc::new(side.agent.wire.clone())),
            hypervisor: Arc::new(Reached {
                inner: hypervisor,
                seam: side.agent.seam.clone(),
                effects: self.effects.clone(),
                failing: side.failing.clone(),
            }),
            storage: Arc::new(JudgedStorage {
                host: name.to_owned(),
                inner: side.storage.clone(),
                judge: Arc::clone(&judge),
            }),
            seeds: Arc::new(side.seeds.clone()),
            network: Arc::new(SimulatedNetwork::new(["lan".to_owned()])),
            ownership: Arc::new(side.agent.store.clone()),
            liveness: Arc::new(Heard::new(name, side.agent.store.clone(), Arc::clone(&judge))),
            watchdog: Arc::new(side.host.clone()),
            migrations: Arc::new(Stopping {
                inner: self.migrations.agent(&host),
                gate: side.agent.gate.clone(),
            }),
            clock: side.agent.clock(&self.clock),
        };
        side.agent.gate.set_shut(false);
        let reset = until_reset(side.host.clone(), side.boot_id.clone());
        let gate = side.agent.gate.clone();
        let run = gate.pass(side.agent.name.clone(), Arc::clone(&judge), async move {
            let metrics = Arc::new(Metrics::new(&mut Default::default()));
            agent::run(host, catalogue(), dependencies, metrics).await
        });
        side.agent.task = Some(spawn_local(async move {
            tokio::select! {
                biased;
                () = reset => {}
                Err(error) = run => return judge.violated("set-up", error),
            }
            judge.wake.notify_one();
            std::future::pending().await
        }));
    }

    /// The process of this name.
    pub(super) fn process(&mut self, name: &str) -> Option<&mut Process> {
        let agents = self.hosts.iter_mut().map(|side| &mut side.agent);
        agents.chain(&mut self.controllers).find(|process| process.name == name)
    }

    /// Starts whatever does not run.
    pub(super) fn start_everything(&mut self) {
        (0..self.controllers.len()).for_each(|number| self.start_controller(number));
        (0..self.hosts.len()).for_each(|number| self.start_agent(number));
    }

    /// Complains about processes that ended by themselves.
    pub(super) async fn check_processes(&mut self) {
        let agents = self.hosts.iter_mut().map(|side| &mut side.agent);
        for process in agents.chain(&mut self.controllers) {
            process.check(&self.judge).await;
        }
    }

    /// Hosts whose agents run at a boot that is fenced.
    pub(super) fn fenced_hosts(&self) -> Vec<String> {
        let fenced = self.pool_store.fenced_on_record();
        let here = |side: &&HostSide| {
            let is_here =
                |boot: &HostBoot| boot.host.as_str() == side.name && boot.boot_id.as_str() == side.boot_id;
            side.agent.is_up() && fenced.iter().any(is_here)
        };
        self.hosts.iter().filter(here).map(|side| side.name.to_owned()).collect()
    }

    /// Hosts whose watchdog has reset them since this was asked last.
    pub(super) fn resets(&mut self) -> Vec<usize> {
        let mut reset = Vec::new();
        for (number, side) in self.hosts.iter_mut().enumerate() {
            let boot_id = side.host.boot_id().unwrap_or_default();
            if boot_id != side.boot_id {
                side.boot_id = boot_id;
                self.judge.was_reset(side.name);
                match side.host.booted_at() {
                    Ok(at) => self.judge.lost(side.name, at),
                    Err(error) => self.judge.violated("set-up", error),
                }
                self.last_loss = Instant::now();
                reset.push(number);
            }
        }
        reset
    }

    /// A host loses its power, with its guests and its agent; it boots when its agent is started.
    pub(super) async fn lose_host(&mut self, number: usize) {
        let side = &mut self.hosts[number];
        side.agent.crash(&self.judge).await;
        self.judge.lost(side.name, self.clock.now());
        self.last_loss = Instant::now();
        if let Err(error) = side.host.reboot() {
            self.judge.violated("set-up", error);
        }
        side.boot_id = side.host.boot_id().unwrap_or_default();
        side.host.set_stopped(false);
        side.storage.reboot();
        side.rebooted = true;
    }
}

/// Waits until the host is at another boot.
async fn until_reset(host: SimulatedHost, boot_id: String) {
    let mut changes = host.changes();
    while host.boot_id().is_ok_and(|now| now == boot_id) && changes.changed().await.is_ok() {}
}

fn catalogue() -> Catalogue {
    let kernel = CatalogueKernel { kernel: "/boot/vmlinux".into(), ramdisk: None };
    Catalogue::from([("linux".to_owned(), kernel)])
}
