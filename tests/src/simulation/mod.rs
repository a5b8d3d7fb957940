//! A whole pool under virtual time, by seed: the controller and the agents run as they are, inside one thread, on an
//! API server, hosts, disks and a pool store in memory. The same seed gives the same trace, byte for byte.
//!
//! ```text
//!   users ──▶ MemoryApi ◀──wire──▶ 2 controllers         wires delay, lose and break; watches are late
//!                │  ▲  ◀──wire──▶ 3 agents ──▶ simulated hosts, storage, pool store: each with its faults
//!                ▼  │                                    any process crashes at any moment
//!              the judge: I1 I2 I3 I4 I5 I7 I8 I9 L2 L6 while it happens, I1 I2 I3 I5 by the whole history,
//!                         L1 L3 L4 L5 I6 after faults have stopped
//! ```
//!
//! A schedule is some minutes of people and faults, then calm until a host in maintenance is empty or says why not, until the
//! desired state is reached, a minute without a write, and the deletion of everything.

mod aftermath;
pub mod command;
mod dice;
mod disks;
mod dom0;
mod effects;
mod ends;
pub mod faults;
pub mod floor;
#[cfg(test)]
mod freeze_tests;
mod gate;
mod heard;
mod hypervisor;
mod judge;
#[cfg(test)]
mod ladder_tests;
#[cfg(feature = "mutants")]
pub mod mutants;
mod perform;
mod reached;
mod recoveries;
#[cfg(test)]
mod recovery_tests;
pub mod scenario;
mod seam;
mod settle;
mod shrink;
mod silence;
#[cfg(test)]
mod stage;
pub mod step;
mod stops;
mod storage;
#[cfg(test)]
mod takeover_tests;
#[cfg(test)]
mod tests;
mod users;
mod wire;
mod world;

use dice::Dice;
use faults::{Faults, LONG_OUTAGE};
use std::{
    num::NonZeroU64,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use step::{Action, Step};
use tokio::{
    runtime::Builder,
    task::LocalSet,
    time::{Instant, sleep_until},
};
use world::World;

/// What is done to a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// What everything follows from that happens by chance.
    pub seed: u64,
    /// Whether connections to the API server are late and lossy.
    pub bad_weather: bool,
    /// Whether calls to the pool's store and to hypervisors take time then, and links between hosts.
    pub slow_calls: bool,
    /// In the order of time.
    pub steps: Vec<Step>,
    /// When all faults end, and the pool is judged.
    pub end: Duration,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { seed: 1, bad_weather: false, slow_calls: false, steps: Vec::new(), end: Duration::ZERO }
    }
}

/// How a schedule went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// The promises that were broken, and how.
    pub violations: Vec<String>,
    /// What people and faults did.
    pub schedule: Schedule,
    /// Every write, every change of a domain and every fault, each with its virtual time in seconds.
    pub trace: Vec<String>,
    /// Writes to the API server.
    pub writes: usize,
    /// How long it took in virtual time.
    pub lasted: Duration,
    /// How often what happened.
    pub counts: floor::Counts,
}

/// Most lines of a trace that are shown with a violation.
const SHOWN: usize = 60;

impl Outcome {
    /// What a person needs who is to repair it; none if every promise was kept.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        if self.violations.is_empty() {
            return None;
        }
        let last = &self.trace[self.trace.len().saturating_sub(SHOWN)..];
        Some(format!(
            "seed {seed}: {violations}\nthe end of its trace:\n{last}\nto see it all: cargo xtask simulate --seed {seed}; \
             to make it short: the same with --shrink",
            seed = self.seed,
            violations = self.violations.join("; "),
            last = last.join("\n"),
        ))
    }
}

/// Runs the schedule of a seed.
///
/// # Panics
/// Inside another runtime, and when the process can get no more from the system.
#[must_use]
pub fn simulate(seed: u64) -> Outcome {
    simulate_under(seed, &Faults::default())
}

/// As [`simulate`], with these faults alone.
///
/// # Panics
/// As [`simulate`].
#[must_use]
pub fn simulate_under(seed: u64, faults: &Faults) -> Outcome {
    in_virtual_time(by_chance(seed, faults))
}

/// Runs a schedule that was written down.
///
/// # Panics
/// As [`simulate`].
#[must_use]
pub fn replay(schedule: &Schedule) -> Outcome {
    in_virtual_time(as_written(schedule))
}

/// The shortest schedule that breaks the same promise; none if this one keeps every promise.
#[must_use]
pub fn shrink(schedule: &Schedule) -> Option<Schedule> {
    shrink::shrink(schedule, replay)
}

fn in_virtual_time(work: impl Future<Output = Outcome>) -> Outcome {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs next to nothing from the system");
    LocalSet::new().block_on(&runtime, work)
}

/// Runs the schedules of these seeds on as many threads as the machine has CPUs, and hands each outcome to `seen`.
pub fn simulate_all(seeds: Range<u64>, faults: &Faults, mut seen: impl FnMut(Outcome) + Send) {
    simulate_until(seeds, faults, |outcome| {
        seen(outcome);
        false
    });
}

/// As [`simulate_all`], until `seen` says that it has seen enough: what is under way then is still handed to it.
pub fn simulate_until(seeds: Range<u64>, faults: &Faults, seen: impl FnMut(Outcome) -> bool + Send) {
    let (next, seen) = (AtomicU64::new(seeds.start), Mutex::new(seen));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = simulate_under(seed, faults);
                    if seen.lock().unwrap_or_else(PoisonError::into_inner)(outcome) {
                        next.store(seeds.end, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// The first line in which two traces differ, with both texts.
#[must_use]
pub fn first_difference(one: &[String], other: &[String]) -> Option<(usize, String, String)> {
    let text = |trace: &[String], line: usize| trace.get(line).cloned().unwrap_or_default();
    (0..one.len().max(other.len()))
        .find(|&line| one.get(line) != other.get(line))
        .map(|line| (line, text(one, line), text(other, line)))
}

async fn by_chance(seed: u64, faults: &Faults) -> Outcome {
    let mut world = World::new(seed);
    world.slow_links(seed);
    world.begin().await;
    world.act(users::make_pool(&world)).await;
    let steps = 20 + world.dice.below(40);
    for _ in 0..steps {
        if world.judge.is_upset() {
            break;
        }
        let pause = if world.dice.chance(30) { 0..200 } else { 0..10_000 };
        world.wait(world.dice.millis(pause)).await;
        let actions =
            if world.dice.chance(60) { users::act(&world) } else { faults.of(faults::choose(&world)) };
        for action in actions {
            // A schedule does not last that long by itself.
            let whole = matches!(action, Action::StoreOutage { r#for } if r#for == LONG_OUTAGE);
            world.act(action).await;
            if whole {
                world.wait(LONG_OUTAGE.duration()).await;
            }
        }
    }
    world.outcome(Schedule { seed, bad_weather: true, slow_calls: true, ..Schedule::default() }).await
}

async fn as_written(schedule: &Schedule) -> Outcome {
    let mut world = World::new(schedule.seed);
    if !schedule.bad_weather {
        world.weather.calm_down();
    }
    if schedule.slow_calls {
        world.slow_links(schedule.seed);
    } else {
        world.weather.hasten_calls();
    }
    world.begin().await;
    for step in &schedule.steps {
        if world.judge.is_upset() {
            break;
        }
        world.wait(step.at.saturating_sub(world.began.elapsed())).await;
        world.act(step.action.clone()).await;
    }
    world.wait(schedule.end.saturating_sub(world.began.elapsed())).await;
    world.outcome(Schedule { steps: Vec::new(), ..*schedule }).await
}

impl World {
    /// Lets what hosts send each other take its time, most of the time so long that a move lasts some seconds.
    fn slow_links(&self, seed: u64) {
        let dice = Dice::new(seed, "links");
        self.migrations.set_latency(dice.millis(0..100));
        if dice.chance(70) {
            let rate = 300 + dice.millis(0..2_000).as_millis();
            self.migrations.set_rate(u64::try_from(rate).ok().and_then(NonZeroU64::new));
        }
    }

    /// Sets the pool up, and starts its programs.
    async fn begin(&mut self) {
        for action in users::set_up() {
            self.carry_out(&action).await;
        }
        self.start_everything();
    }

    /// The time that has passed, in whole milliseconds.
    fn now(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Does something, and takes it down.
    async fn act(&mut self, action: Action) {
        let at = self.now();
        self.perform(&action).await;
        // Whatever was done, the time of lost guests begins anew.
        self.recoveries.clear();
        self.judge_recoveries();
        self.taken.push(Step { at, action });
    }

    /// Lets time pass, in which what lasts comes to its end. No time is no wait, so that steps of one moment follow each other as
    /// closely when a schedule is replayed.
    async fn wait(&mut self, time: Duration) {
        if time.is_zero() {
            return;
        }
        let until = Instant::now() + time;
        loop {
            let judge = Arc::clone(&self.judge);
            let next = self.next_end().map_or(until, |end| end.min(until));
            tokio::select! {
                biased;
                () = judge.wake.notified() => {}
                () = sleep_until(next) => {}
            }
            self.tick().await;
            if Instant::now() >= until {
                return;
            }
        }
    }

    /// Ends all faults, and judges what becomes of the pool then. The schedule is that of before, apart from what was done.
    async fn outcome(&mut self, schedule: Schedule) -> Outcome {
        let schedule = Schedule { steps: self.taken.clone(), end: self.now(), ..schedule };
        let seed = schedule.seed;
        // What people do from here on follows from the seed alone, and not from how the steps were chosen: a replay ends alike.
        self.dice = Dice::new(seed, "settling");
        if !self.judge.is_upset() {
            // A host that has just lost its power does not start a guest within the time in which late writes land.
            let off = disks::LATE_WRITES + Duration::from_secs(2);
            // And what was asked of an API server that stands still takes effect when that was to end.
            self.wait(off.max(self.standstill.left())).await;
            while self.last_loss.elapsed() < off {
                self.wait(Duration::from_secs(1)).await;
            }
            self.end_faults();
            // What is written down is judged longer.
            let silence = if schedule.bad_weather { settle::QUIET } else { settle::QUIET * 6 };
            settle::judge(self, silence).await;
            self.judge.judge_history();
        }
        if self.judge.is_upset() {
            aftermath::note(self).await;
        }
        for boot in self.pool_store.fenced_alive() {
            self.judge.violated("I5", format_args!("{boot} was fenced while it was live"));
        }
        for vm in self.pool_store.started_afresh() {
            self.judge.violated("I7", format_args!("{vm} was saved, and was started afresh"));
        }
        let (violations, trace, writes) = self.judge.verdict();
        let counts = floor::count(self, &trace);
        Outcome { seed, violations, schedule, trace, writes, lasted: self.began.elapsed(), counts }
    }
}
