//! A whole pool under virtual time, by seed: the controller and the agents run as they are, inside one thread, on an
//! API server, hosts, disks and a pool store in memory. The same seed gives the same trace, byte for byte.
//!
//! ```text
//!   users ──▶ MemoryApi ◀──wire──▶ 2 controllers         wires delay, lose and break; watches are late
//!                │  ▲  ◀──wire──▶ 3 agents ──▶ simulated hosts, storage, pool store: each with its faults
//!                ▼  │                                    any process crashes at any moment
//!              the judge: I1 I3 I4 while it happens, L1 L4 L5 I6 after faults have stopped
//! ```
//!
//! A schedule is some minutes of people and faults, then calm until a host in maintenance is empty or says why not, until the desired state is reached, a minute without a
//! write, and the deletion of everything.

pub mod command;
mod dice;
mod faults;
#[cfg(test)]
mod freeze_tests;
mod hypervisor;
mod judge;
#[cfg(test)]
mod ladder_tests;
#[cfg(test)]
mod recovery_tests;
mod settle;
#[cfg(test)]
mod tests;
mod users;
mod wire;
mod world;

use faults::Faults;
use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::Builder,
    task::LocalSet,
    time::{Instant, sleep},
};
use users::Users;
use world::World;

/// How a schedule went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// The promises that were broken, and how.
    pub violations: Vec<String>,
    /// Every write, every change of a domain and every fault, each with its virtual time in seconds.
    pub trace: Vec<String>,
    /// Writes to the API server.
    pub writes: usize,
    /// How long it took in virtual time.
    pub lasted: Duration,
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
            "seed {seed}: {violations}\nthe end of its trace:\n{last}\nto see it all: cargo run -p kubexen-testbed -- \
             simulate --seed {seed}",
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
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs next to nothing from the system");
    LocalSet::new().block_on(&runtime, schedule(seed))
}

/// Runs the schedules of these seeds on as many threads as the machine has CPUs, and hands each outcome to `seen`.
pub fn simulate_all(seeds: Range<u64>, seen: impl FnMut(Outcome) + Send) {
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
                    let outcome = simulate(seed);
                    seen.lock().unwrap_or_else(PoisonError::into_inner)(outcome);
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

async fn schedule(seed: u64) -> Outcome {
    let began = Instant::now();
    let mut world = World::new(seed);
    let users = Users::of(&world);
    let mut faults = Faults::default();
    users.set_up(&world).await;
    world.start_everything();
    let steps = 20 + world.dice.below(40);
    for _ in 0..steps {
        if world.judge.is_upset() {
            break;
        }
        let judge = Arc::clone(&world.judge);
        let pause = if world.dice.chance(30) { 0..200 } else { 0..10_000 };
        tokio::select! {
            biased;
            () = judge.crash.notified() => faults.crash_armed(&mut world).await,
            () = sleep(world.dice.millis(pause)) => {}
        }
        faults.end_due(&mut world);
        world.check_processes().await;
        if world.dice.chance(60) {
            users.act(&world).await;
        } else {
            faults.begin(&mut world).await;
        }
    }
    if !world.judge.is_upset() {
        faults.end_all(&mut world);
        settle::judge(&mut world, &users).await;
        world.judge.judge_history();
    }
    let (violations, trace, writes) = world.judge.verdict();
    Outcome { seed, violations, trace, writes, lasted: began.elapsed() }
}
