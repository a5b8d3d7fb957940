//! The failure reserve: how many hosts may die at once without a protected guest staying down. Pure: no clock, no
//! randomness, no I/O.
//!
//! ```text
//!   hosts, and protected guests with where they run ─▶ Reserve ─▶ Promise: how many hosts may die; what breaks it
//!                 one change of either ───────────────▶ │  ▲
//!                                                       ▼  │
//!                     placement: would this guest on that host break it?
//! ```
//!
//! # What is promised
//! The pool tolerates *k* failures if for every set of up to *k* hosts whose agents report there is a *plan*: a host for
//! each protected guest of those hosts, and of the hosts that do not report already, such that
//!
//! - it is none of those hosts, may take guests now, and is of the kind that the guest needs: filters 1 to 8 and 11 of
//!   [placement](super)
//! - memory, with overhead, and vCPUs suffice for all that the plan brings there, beside all guests that are there,
//!   protected or not
//! - a guest that requires anti-affinity meets nobody of its group there: neither who runs there nor whom the plan brings.
//!   This is stricter than placement, which lets in a guest that only prefers to be alone: a promise must not depend on who
//!   comes first.
//!
//! Disks of protected guests are on shared storage and take no more room there when a guest starts elsewhere. A guest
//! that only one host can ever run, because a disk of it is there, cannot be protected: such guests are not to be given
//! to a reserve.
//!
//! # How it is computed
//! Each set of hosts is a *case* that keeps its plan. Plans are found by a rule of thumb, each guest in its turn, those
//! first that few hosts suit, then the largest. Where it fails and the answer depends on that, another rule is tried; where both
//! fail, and there are at most [`SEARCHED`] such guests, a search goes through all plans, which may try [`TRIES`] places for each
//! change of the pool. A change leaves a plan as it is if it still holds, and otherwise finds places anew for those guests
//! only whose place is gone.
//!
//! If there are more than [`CASES`] sets of up to *k* hosts, or more than 2047 hosts, *k* failures are not judged set by set but by
//! an estimate of the worst set: `estimate.rs` has the argument.
//!
//! # Guarantees
//! - *Sound*: a number of failures that is said to be tolerated is. Either each set has a plan, which was checked
//!   against what hosts have, or the estimate holds, which is a proof that plans exist.
//! - *Exact where small*: with at most [`CASES`] sets of up to *k* hosts, at most [`SEARCHED`] homeless guests *g* in each,
//!   and h^g × sets ≤ [`TRIES`] / 2 for *h* hosts that survive, all plans are tried before it is said that there is none.
//! - *Conservative elsewhere*: a plan that exists may not be found. Then fewer failures are said to be tolerated.
//! - After any changes the answer is as sound as one computed from scratch, and the same where that is exact.

mod breach;
mod cases;
mod change;
mod estimate;
mod facts;
mod packing;
mod plan;
mod search;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use breach::{Breach, Remedy};

use super::{
    DiskNeed, HostView, Reason, Rejections, Request, Snapshot, condition::Conditions, filters,
    host_set::HostSet,
};
use cases::Cases;
use change::Journal;
use facts::Facts;
use packing::Case;
use std::ops::Range;

/// Sets of hosts that are judged one by one, at most: all pairs of 90 hosts.
pub const CASES: usize = 4096;
/// Pairs of such a set and a host, at most, for each of which is kept what a plan takes, in 64 MiB: all single ones of 2047 hosts.
const PAIRS: usize = 1 << 22;
/// Places that are tried at most, for each change of the pool, in search of plans that the rules of thumb did not find.
pub const TRIES: u64 = 1 << 16;
/// Homeless guests at most of a case in which all plans are searched: with more, a search would hardly come to an end.
pub const SEARCHED: usize = 16;

/// A protected guest, and the host that runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protected {
    /// What it needs to start elsewhere: [`settled`] of what it needs to start.
    pub request: Request,
    /// Name of its host.
    pub host: String,
}

/// How many hosts may die.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// How many are to be tolerated.
    pub wanted: u32,
    /// How many are, at most the wanted ones.
    pub tolerates: u32,
    /// Number of protected guests.
    pub protected: usize,
    /// What breaks it, if fewer are tolerated than wanted.
    pub breach: Option<Breach>,
}

/// The pool, its protected guests, and a plan for each set of hosts that may die.
#[derive(Clone, Debug)]
pub struct Reserve {
    wanted: u32,
    facts: Facts,
    cases: Cases,
    levels: Vec<Level>,
    tolerates: u32,
    /// What failed first above what is tolerated.
    failed: Option<Failed>,
}

/// All sets of so many hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Level {
    /// Judged one by one: positions in [`Reserve::cases`].
    Each(Range<usize>),
    /// Judged by an estimate.
    Estimated(usize),
}

/// What shows that a level is not tolerated.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failed {
    /// No plan was found for this case.
    Case(usize),
    /// The estimate does not hold.
    Doubt(estimate::Doubt),
}

/// What a guest needs to start on another host than `host`, where it runs or goes: its disks exist then. None if a disk
/// of it is on that host alone.
#[must_use]
pub fn settled(request: &Request, host: &HostView) -> Option<Request> {
    let disks = request.disks.iter().map(|disk| match disk {
        DiskNeed::On { .. } => None,
        DiskNeed::Shared { .. } => Some(disk.clone()),
        DiskNeed::New { repository, location, shared: _, size: _, selector } => {
            let storage = host.locations.get(location)?.storage.clone()?;
            let (repository, location) = (repository.clone(), location.clone());
            Some(DiskNeed::Shared { repository, location, storage, selector: selector.clone() })
        }
    });
    let disks = disks.collect::<Option<Vec<_>>>()?;
    Some(Request { disks, moves: false, avoid: None, recovers: false, ..request.clone() })
}

/// Why a host is not of the kind that a guest needs, whatever state it is in and whatever is used of it: filters 4 to 8 and
/// 11; none if it is.
#[must_use]
pub fn unsuited(host: &HostView, request: &Request) -> Option<Rejections> {
    let mut conditions = Conditions::new(vec![host]);
    let (mut left, mut rejections) = (HostSet::of(1, |_| true), Rejections::default());
    filters::apply_lasting(&mut conditions, &mut left, request, &mut rejections);
    let few = left.retain(|_| host.cpus >= request.vcpus);
    rejections.add(few, || Reason::TooFewCpus);
    (left.len() == 0).then_some(rejections)
}

impl Reserve {
    /// Computes all plans.
    ///
    /// `guests` are those that run and are protected, each key once; what they use is part of what their hosts use in the
    /// snapshot.
    #[must_use]
    pub fn new(snapshot: &Snapshot, guests: Vec<Protected>, wanted: u32) -> Self {
        let facts = Facts::new(snapshot.hosts.clone(), overcommit(snapshot), guests);
        let (cases, levels) = cases(&facts, wanted);
        let cases = Cases::new(cases);
        let mut reserve = Self { wanted, facts, cases, levels, tolerates: 0, failed: None };
        let mut journal = Journal::default();
        for position in 0..reserve.cases.len() {
            reserve.cases.change(position, &mut journal, |case| case.begin(&reserve.facts));
        }
        reserve.settle(&mut journal);
        reserve
    }

    /// How many hosts may die.
    #[must_use]
    pub fn promise(&self) -> Promise {
        Promise {
            wanted: self.wanted,
            tolerates: self.tolerates,
            protected: self.facts.count(),
            breach: self.failed.as_ref().and_then(|failed| breach::breach(self, failed)),
        }
    }

    /// Finds out how many failures are tolerated, and looks for plans that are missing as far as that depends on them.
    /// Cases that it changes are noted as they were.
    fn settle(&mut self, changed: &mut Journal) {
        let mut budget = TRIES;
        (self.tolerates, self.failed) = (self.wanted, None);
        for size in 0..self.levels.len() {
            let failed = match self.levels[size].clone() {
                Level::Each(cases) => self.failing(cases, &mut budget, changed).map(Failed::Case),
                Level::Estimated(failures) => estimate::doubt(&self.facts, failures).map(Failed::Doubt),
            };
            if failed.is_some() {
                self.tolerates = u32::try_from(size.saturating_sub(1)).unwrap_or(u32::MAX);
                self.failed = failed;
                return;
            }
        }
    }

    /// A case without a plan, if there is one. One that was searched in vain already settles it.
    fn failing(&mut self, cases: Range<usize>, budget: &mut u64, changed: &mut Journal) -> Option<usize> {
        let in_vain =
            |position: &usize| !self.cases[*position].is_covered() && self.cases[*position].searched;
        if let Some(position) = cases.clone().find(in_vain) {
            return Some(position);
        }
        for position in cases {
            if self.cases[position].is_covered() {
                continue;
            }
            let covered = self.cases.change(position, changed, |case| {
                complete(case, &self.facts, budget);
                case.searched = !case.is_covered();
                case.is_covered()
            });
            if !covered {
                return Some(position);
            }
        }
        None
    }
}

/// Looks for a plan in every way there is.
fn complete(case: &mut Case, facts: &Facts, budget: &mut u64) {
    let before = (case.plan.clone(), case.left.clone());
    case.pack(facts);
    if !case.is_covered() {
        search::search(case, facts, budget);
    }
    if case.left.len() > before.1.len() {
        (case.plan, case.left) = before;
    }
}

fn overcommit(snapshot: &Snapshot) -> u64 {
    u64::try_from(snapshot.policy.cpu_overcommit).unwrap_or(0).max(1)
}

/// The sets of up to `wanted` of the hosts that report, by size.
fn cases(facts: &Facts, wanted: u32) -> (Vec<Case>, Vec<Level>) {
    let alive: Vec<usize> = (0..facts.hosts.len()).filter(|host| facts.hosts[*host].alive).collect();
    let largest = alive.len().min(wanted as usize);
    let may_judge = |sets: usize| sets <= CASES && sets.saturating_mul(facts.hosts.len()) <= PAIRS;
    let mut cases = vec![Case::new(Vec::new(), facts.hosts.len())];
    let mut levels = vec![Level::Each(0..1)];
    for size in 1..=largest {
        let begin = cases.len();
        let smaller = match levels.last() {
            Some(Level::Each(smaller)) if may_judge(begin.saturating_add(sets(alive.len(), size))) => {
                smaller.clone()
            }
            // Sets are made of those of one less, so from the first estimate on all sizes are estimated.
            Some(Level::Each(_) | Level::Estimated(_)) | None => {
                levels.push(Level::Estimated(size));
                continue;
            }
        };
        // Each set of one less, with every host behind its last.
        for position in smaller {
            let set = cases[position].dead.clone();
            for host in alive.iter().filter(|host| set.last().is_none_or(|last| *host > last)) {
                cases.push(Case::new(set.iter().copied().chain([*host]).collect(), facts.hosts.len()));
            }
        }
        levels.push(Level::Each(begin..cases.len()));
    }
    (cases, levels)
}

/// How many sets of `size` there are among `hosts`.
fn sets(hosts: usize, size: usize) -> usize {
    (0..size).fold(1, |sets: usize, taken| sets.saturating_mul(hosts - taken) / (taken + 1))
}
