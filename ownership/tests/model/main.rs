//! The ownership protocol as a model, whose states a checker explores one by one.
//!
//! Up to three hosts, up to two virtual machines, one of which is guarded, up to two controllers, and the store. Every decision is
//! taken by the crate's own pure core: the verbs, [`joining`](kubexen_ownership::liveness::joining),
//! [`fencing`](kubexen_ownership::liveness::fencing) and [`unfencing`](kubexen_ownership::liveness::unfencing), `Vitals`,
//! `Judge` and `Timing`. What is modelled here is only what carries them out: clocks in ticks of ten seconds, the store with the
//! leader that it had before, the wires, guests and disks. Every transaction may be lost, or come late, and twice.
//!
//! Promised of every state: no virtual machine executes on two hosts (I1), no disk write has an older token than one that the
//! disk has seen (I2), tokens only grow (I3), no boot is fenced that is live or whose host holds a lease (I5), and no guest that is
//! on record as guarded executes on a host whose lease has ended (kept).
//!
//! A [`Run`] explores all states of its scope, or all to a depth that it names: depth counts states along a path, the first
//! included. Each must come across what it is for, so that nothing holds for want of states. Each [`Flaw`] of the protocol must
//! break a promise within one of these same runs, so that none of them is shallower than what it is to find.
//!
//! Assumed, and so not found out: a boot takes longer than writes are under way, and so does a person who confirms that a host is
//! off; a host takes no guest without a lease that it has just renewed; both halves of a call that is not lost, its read and its
//! transaction, happen at once (a lost one may be executed at any later time, and twice). Not modelled are guests that are saved,
//! and a store that is restored from a backup.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod clock;
mod control;
mod event;
mod flaw;
mod pool;
mod sameness;
mod state;
mod store;

use std::sync::Arc;
use std::time::{Duration, Instant};

use flaw::Flaw;
use pool::{Pool, Scope, Sight};
use stateright::{Checker, HasDiscoveries, Model};

const STILL: Scope = Scope {
    faults: 1,
    failover: false,
    migration: false,
    lifecycle: false,
    unguard: false,
    unfence: false,
    controllers: 1,
    hosts: 3,
    focus: false,
    blank: false,
};
/// Hosts fail and are robbed.
const FAILOVER: Scope = Scope { failover: true, controllers: 2, ..STILL };
/// The same with more faults, all at the first of two hosts.
const SILENCE: Scope = Scope { faults: 2, focus: true, hosts: 2, controllers: 1, ..FAILOVER };

/// One exploration.
#[derive(Clone, Copy, Debug)]
struct Run {
    name: &'static str,
    scope: Scope,
    /// How deep; none for all states.
    depth: Option<usize>,
    /// What it must have come across.
    reaches: &'static [Sight],
    /// The flaws that it must find.
    finds: &'static [Flaw],
}

/// The breadth-first runs of every test run.
const RUNS: [Run; 9] = [
    Run {
        name: "failover",
        scope: FAILOVER,
        depth: None,
        reaches: &[Sight::FailsOver],
        finds: &[Flaw::StealWithoutFence, Flaw::StealUnguarded, Flaw::OwnerKeyOnLease, Flaw::NoWatchdog],
    },
    // One host falls silent, and the leader of the store changes, or it crashes, or its messages are late.
    Run {
        name: "silence",
        scope: SILENCE,
        depth: None,
        reaches: &[Sight::FailsOver, Sight::GoesOn, Sight::Rejoins, Sight::HearsTheDeposed, Sight::LateCopy],
        finds: &[
            Flaw::NoGrace,
            Flaw::BlindRemembers,
            Flaw::DeadlineFromReceipt,
            Flaw::TtlZeroIgnored,
            Flaw::FenceWhileLive,
            Flaw::JoinWhenFenced,
        ],
    },
    Run {
        name: "more faults",
        scope: Scope { faults: 3, ..SILENCE },
        depth: Some(15),
        reaches: &[Sight::FailsOver, Sight::HearsTheDeposed],
        finds: &[Flaw::DeadlineOfTheLease],
    },
    Run {
        name: "joining",
        scope: Scope { blank: true, ..SILENCE },
        depth: None,
        reaches: &[Sight::FailsOver, Sight::Rejoins, Sight::LateCopy],
        finds: &[Flaw::JoinOverAnother],
    },
    Run {
        name: "promises",
        scope: Scope { unguard: true, ..SILENCE },
        depth: None,
        reaches: &[Sight::FailsOver, Sight::TakesBack, Sight::LateCopy],
        finds: &[Flaw::TakenBackByReading],
    },
    Run {
        name: "second chances",
        scope: Scope { unfence: true, ..SILENCE },
        depth: None,
        reaches: &[Sight::FailsOver, Sight::Rejoins, Sight::LateCopy],
        finds: &[],
    },
    Run {
        name: "migration",
        scope: Scope { migration: true, ..STILL },
        depth: None,
        reaches: &[Sight::Commits, Sight::Aborts, Sight::LateCopy],
        finds: &[Flaw::UnpauseBeforeCommit, Flaw::ResumeOnTimeout, Flaw::ResumeOnRead],
    },
    Run {
        name: "lifecycle",
        scope: Scope { lifecycle: true, faults: 2, ..STILL },
        depth: None,
        reaches: &[Sight::Releases, Sight::LateCopy],
        finds: &[Flaw::OwnerUncompared, Flaw::TokenOfTheKey],
    },
    Run {
        name: "all at once",
        scope: Scope { faults: 1, migration: true, lifecycle: true, unguard: true, unfence: true, ..SILENCE },
        depth: None,
        reaches: &[
            Sight::FailsOver,
            Sight::Commits,
            Sight::Aborts,
            Sight::TakesBack,
            Sight::Releases,
            Sight::Rejoins,
        ],
        finds: &[],
    },
];

/// What an exploration has found.
struct Found {
    /// The promises that are broken, with the path of each.
    broken: Vec<(&'static str, String)>,
    sights: Vec<Sight>,
}

/// Explores until a promise is broken, and prints how much.
fn explore(run: Run, flaw: Option<Flaw>) -> Found {
    let begun = Instant::now();
    let pool = Pool { flaw, scope: run.scope, sights: Arc::default() };
    let sights = Arc::clone(&pool.sights);
    let checker = pool.checker().finish_when(HasDiscoveries::AnyFailures);
    let checker = match run.depth {
        Some(depth) => checker.target_max_depth(depth),
        None => checker,
    };
    let checker = checker.spawn_bfs().join();
    let found = checker.discoveries();
    println!(
        "{} {flaw:?}: {} states to depth {} in {:.1} s, {:?}",
        run.name,
        checker.unique_state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f64(),
        found.keys(),
    );
    let broken = found.into_iter().map(|(name, path)| (name, format!("{:?}", path.into_actions()))).collect();
    let sights = sights.lock().unwrap().iter().copied().collect();
    Found { broken, sights }
}

fn holds(run: Run) {
    let found = explore(run, None);
    assert!(found.broken.is_empty(), "in {}: {:#?}", run.name, found.broken);
    for wanted in run.reaches {
        assert!(found.sights.contains(wanted), "{} does not reach {wanted:?}", run.name);
    }
}

#[test]
fn the_modelled_times_are_such_as_an_agent_accepts() {
    clock::TIMING.check(clock::ELECTION).unwrap();
    assert_eq!(clock::TIMING.lease, clock::TICK * u32::from(clock::LEASE));
    assert!(clock::ELECTION * 2 <= clock::TICK * u32::from(clock::DEPOSED));
}

#[test]
fn no_promise_is_broken_in_any_state_within_the_bounds() {
    RUNS.into_iter().for_each(holds);
}

/// Two controllers and more faults: minutes, or hours.
#[test]
#[ignore = "explores for long"]
fn no_promise_is_broken_within_wider_bounds() {
    for run in RUNS {
        let scope = Scope { controllers: 2, faults: run.scope.faults + 1, ..run.scope };
        holds(Run { scope, ..run });
    }
}

#[test]
fn every_flaw_of_the_protocol_is_found_by_a_run_that_finds_none_without_it() {
    let begun = Instant::now();
    for flaw in Flaw::ALL {
        let run = RUNS.into_iter().find(|run| run.finds.contains(&flaw));
        let run = run.unwrap_or_else(|| panic!("no run is to find {flaw:?}"));
        let found = explore(run, Some(flaw)).broken;
        let (name, path) = found.first().unwrap_or_else(|| panic!("{} does not find {flaw:?}", run.name));
        println!("    {name}: {path}");
    }
    assert!(begun.elapsed() < Duration::from_secs(600), "the traps are set too deep");
}
