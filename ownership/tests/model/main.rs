//! The ownership protocol as a model, whose states a checker explores one by one.
//!
//! Three hosts, two virtual machines, one of which is guarded, up to two controllers, and the store. Every decision is taken
//! by the crate's own pure core: the verbs, [`joining`](kubexen_ownership::liveness::joining) and
//! [`fencing`](kubexen_ownership::liveness::fencing), `Vitals`, `Judge` and `Timing`. What is modelled here is only what
//! carries them out: clocks in ticks of ten seconds, the store, the wires, guests and disks.
//!
//! Promised of every state: no virtual machine executes on two hosts (I1), no disk write has an older token than one that the
//! disk has seen (I2), tokens only grow (I3), and no boot is fenced that is live or whose host holds a lease (I5). Each
//! [`Flaw`] of the protocol must break one of them, and each [`Scope`] must reach what it is for, so that nothing holds for
//! want of states.
//!
//! Assumed, and so not found out: a boot takes longer than the grace, and so does a person who confirms that a host is off;
//! a host takes no guest without a lease that it has just renewed; both halves of a call that is not lost, its read and its
//! transaction, happen at once (a lost one may be executed at any later time, and twice).
//!
//! The bounds of each run are in [`Run`]; depth counts states along a path, the first included.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod clock;
mod control;
mod event;
mod flaw;
mod pool;
mod state;
mod store;

use std::time::{Duration, Instant};

use flaw::Flaw;
use pool::{Pool, Scope};
use stateright::{Checker, HasDiscoveries, Model};

const INVARIANTS: [&str; 4] = ["I1", "I2", "I3", "I5"];
const STILL: Scope = Scope {
    ticks: 0,
    faults: 1,
    failover: false,
    migration: false,
    lifecycle: false,
    controllers: 1,
    focus: false,
    blank: false,
};
/// Hosts fail and are robbed.
const FAILOVER: Scope = Scope { ticks: 6, failover: true, ..STILL };
/// The same with two faults, all at the first host.
const SILENCE: Scope = Scope { faults: 2, focus: true, ..FAILOVER };
/// The first host joins, and starts the first virtual machine.
const JOINING: Scope = Scope { blank: true, focus: true, ..FAILOVER };
/// Guests are handed over, with one message delayed, doubled or lost.
const MIGRATION: Scope = Scope { migration: true, ..STILL };
/// Guests are started and released, with one message delayed, doubled or lost.
const LIFECYCLE: Scope = Scope { lifecycle: true, ..STILL };

/// One exploration.
#[derive(Clone, Copy, Debug)]
struct Run {
    name: &'static str,
    scope: Scope,
    depth: usize,
    /// What it must have come across.
    reaches: &'static [&'static str],
}

const FAILS_OVER: &str = "a stolen guest runs elsewhere";
const GOES_ON: &str = "a paused guest goes on";
const COMMITS: &str = "a migration commits";
const ABORTS: &str = "an abort wins";

/// The breadth-first runs of every test run.
const RUNS: [Run; 5] = [
    Run { name: "failover", scope: FAILOVER, depth: 12, reaches: &[FAILS_OVER, GOES_ON] },
    Run { name: "silence", scope: SILENCE, depth: 11, reaches: &[FAILS_OVER] },
    Run { name: "joining", scope: JOINING, depth: 13, reaches: &[] },
    Run { name: "migration", scope: MIGRATION, depth: 9, reaches: &[COMMITS, ABORTS] },
    Run { name: "lifecycle", scope: LIFECYCLE, depth: 7, reaches: &[] },
];

/// Explores, prints how much, and gives back which properties were decided, with the path of each.
fn explore(run: Run, flaw: Option<Flaw>, enough: HasDiscoveries) -> Vec<(&'static str, String)> {
    let begun = Instant::now();
    let pool = Pool { flaw, scope: run.scope };
    let checker = pool.checker().target_max_depth(run.depth).finish_when(enough).spawn_bfs().join();
    let found = checker.discoveries();
    println!(
        "{} {flaw:?}: {} states to depth {} in {:.1} s, {:?}",
        run.name,
        checker.unique_state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f64(),
        found.keys().filter(|name| INVARIANTS.contains(name)).collect::<Vec<_>>(),
    );
    found.into_iter().map(|(name, path)| (name, format!("{:?}", path.into_actions()))).collect()
}

fn holds(run: Run) {
    let found = explore(run, None, HasDiscoveries::AnyFailures);
    for (name, path) in &found {
        assert!(!INVARIANTS.contains(name), "{name} is broken in {}: {path}", run.name);
    }
    for wanted in run.reaches {
        assert!(found.iter().any(|(name, _)| name == wanted), "{} does not reach that {wanted}", run.name);
    }
}

#[test]
fn no_invariant_is_broken_in_any_state_within_the_bounds() {
    RUNS.into_iter().for_each(holds);
}

/// Two controllers, more faults and more steps: minutes, or hours.
#[test]
#[ignore = "explores for long"]
fn no_invariant_is_broken_within_wider_bounds() {
    for run in RUNS {
        let scope = Scope { controllers: 2, faults: run.scope.faults + 1, ..run.scope };
        holds(Run { scope, depth: run.depth + 2, ..run });
    }
}

/// Where each flaw shows, and how deep a path must be to show it.
fn trap(flaw: Flaw) -> Run {
    let (scope, depth) = match flaw {
        Flaw::StealWithoutFence
        | Flaw::NoGrace
        | Flaw::DeadlineOfTheLease
        | Flaw::NoWatchdog
        | Flaw::TtlZeroIgnored
        | Flaw::JoinWhenFenced => (Scope { focus: true, ticks: 7, ..FAILOVER }, 18),
        Flaw::StealUnguarded | Flaw::OwnerKeyOnLease => (FAILOVER, 14),
        Flaw::DeadlineFromReceipt | Flaw::FenceWhileLive => (SILENCE, 16),
        Flaw::JoinOverAnother => (JOINING, 16),
        Flaw::UnpauseBeforeCommit | Flaw::ResumeOnTimeout | Flaw::ResumeOnRead => (MIGRATION, 9),
        Flaw::OwnerUncompared | Flaw::TokenOfTheKey => (LIFECYCLE, 9),
    };
    Run { name: "trap", scope, depth, reaches: &[] }
}

#[test]
fn every_flaw_of_the_protocol_is_found() {
    let begun = Instant::now();
    for flaw in Flaw::ALL {
        let found = explore(trap(flaw), Some(flaw), HasDiscoveries::AnyFailures);
        let broken = found.iter().find(|(name, _)| INVARIANTS.contains(name));
        let (name, path) = broken.unwrap_or_else(|| panic!("{flaw:?} is not found"));
        println!("    {name}: {path}");
    }
    assert!(begun.elapsed() < Duration::from_secs(600), "the traps are set too deep");
}
