//! When a host that has fallen silent counts as dead.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kubexen_mutants::Mutant;
use tokio::time::Instant;

use super::{Proof, Roll};
use crate::names::{HostBoot, HostName};

/// For how long a host counts for the storm brake only because its lease has ended. It is longer than the longest lease and its
/// grace: leases that one fault ends all end within it. A host that has been off for longer was no part of such a fault.
pub const AT_ONCE: Duration = Duration::from_secs(60);

/// A boot that owns guests, or that a person has confirmed to be dead, and is not live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// The boot.
    pub boot: HostBoot,
    /// When this judge first saw that it is not live, or let go of the brake after that: the grace counts from then.
    pub gone: Instant,
    /// What a fence record may be written with now that proves more than the one there is; none if it is not time yet.
    pub due: Option<Proof>,
}

/// Too many hosts are silent at once: the fault is then rather between them and the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brake {
    /// Hosts that count as silent.
    pub silent: BTreeSet<HostName>,
    /// How many may be.
    pub allowed: usize,
}

/// What a judge found at one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Boots that own guests or were confirmed to be dead, and are not live, in order.
    pub silent: Vec<Silence>,
    /// Why no end of a lease is taken for a death, if it is not.
    pub brake: Option<Brake>,
    /// When the next boot is due that has promised to stop a guest, if nothing changes.
    pub next: Option<Instant>,
}

/// How many hosts may be silent at once. One always may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tolerance {
    /// Of 100 hosts so many.
    pub share: u32,
    /// So many, whatever the share is.
    pub least: usize,
}

/// What a judge is told besides the roll.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The hosts that the pool consists of. No other counts for the brake: nobody could say of it that it is off.
    pub hosts: &'a BTreeSet<HostName>,
    /// Boots that own guests, and that are known to have, or to have had, a lease.
    pub owning: &'a BTreeSet<HostBoot>,
    /// Those of them that have promised to stop a guest.
    pub guarding: &'a BTreeSet<HostBoot>,
    /// Boots that a person has confirmed to be dead.
    pub confirmed: &'a BTreeSet<HostBoot>,
    /// How many hosts may be silent at once.
    pub tolerance: Tolerance,
}

/// Judges which boots are dead, by what it has seen itself, on its own clock.
///
/// A new leader begins with a new judge: what another one saw may be long ago.
#[derive(Clone, Debug)]
pub struct Judge {
    grace: Duration,
    /// Boots that were live at the last look.
    live: BTreeSet<HostBoot>,
    /// Boots that this judge saw live, and when it saw that they are not: as long as that is not [`AT_ONCE`] ago.
    fell: BTreeMap<HostBoot, Instant>,
    gone: BTreeMap<HostBoot, Instant>,
    /// Boots that have counted for the brake since it went on. They count as long as they are gone and not fenced, so that
    /// time alone does not release the brake.
    latch: BTreeSet<HostBoot>,
    braked: bool,
}

impl Judge {
    /// A judge that has seen nothing yet, and waits this long after it has first seen a boot gone.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self {
            grace,
            live: BTreeSet::new(),
            fell: BTreeMap::new(),
            gone: BTreeMap::new(),
            latch: BTreeSet::new(),
            braked: false,
        }
    }

    /// Another grace holds from now on.
    pub fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// These boots counted for a brake that another judge has put on, and that is on.
    pub fn inherit(&mut self, latch: BTreeSet<HostBoot>) {
        self.latch = latch;
    }

    /// Nothing was seen for a while: boots that are gone may have been back meanwhile, and are waited for anew.
    pub fn wait_anew(&mut self) {
        self.gone.clear();
    }

    /// Looks at a roll that was read at `now`, together with what else is known.
    ///
    /// A boot that is live is never due, whoever says what. One that is confirmed is due even if it owns nothing: the store may
    /// have been restored from a backup that knows less.
    ///
    /// # Which hosts count for the brake
    /// A host that is live at no boot counts as silent by a boot that is neither fenced nor confirmed to be dead, and that
    /// - has promised to stop a guest, or
    /// - was seen live by this judge, and has been gone for less than [`AT_ONCE`], or
    /// - has counted since the brake went on.
    ///
    /// So a host that is switched off with nothing but unguarded guests, which is never fenced by itself, does not use up what is
    /// allowed, and hosts without guests count on both sides of the fraction.
    pub fn look(&mut self, now: Instant, roll: &Roll, evidence: &Evidence<'_>) -> Verdict {
        let Evidence { owning, guarding, confirmed, .. } = *evidence;
        let is_live = |boot: &HostBoot| roll.live.contains_key(boot);
        for boot in self.live.iter().filter(|boot| !is_live(boot)) {
            self.fell.entry(boot.clone()).or_insert(now);
        }
        self.live = roll.live.keys().cloned().collect();
        self.fell.retain(|boot, since| !is_live(boot) && now.saturating_duration_since(*since) < AT_ONCE);
        let judged: BTreeSet<&HostBoot> = owning.union(confirmed).collect();
        self.gone.retain(|boot, _| judged.contains(boot) && !is_live(boot));
        let brake = self.brake(roll, evidence);
        if self.braked && brake.is_none() {
            // What ended many leases at once may have ended those that are left too: their hosts are given time to join anew.
            self.gone.values_mut().for_each(|gone| *gone = now);
        }
        self.braked = brake.is_some();
        let mut verdict = Verdict { silent: Vec::new(), brake, next: None };
        for boot in judged.into_iter().filter(|boot| !is_live(boot)) {
            let gone = *self.gone.entry(boot.clone()).or_insert(now);
            let over = now.saturating_duration_since(gone) >= self.grace || Mutant::NoGrace.is_active();
            let proof = if confirmed.contains(boot) {
                Some(Proof::Confirmed)
            } else {
                (over && !self.braked).then_some(Proof::LeaseEnded)
            };
            let known = roll.fenced.get(boot).map(|record| record.proof);
            let more = |proof: &Proof| match known {
                None => true,
                Some(known) => proof.covers_unguarded() && !known.covers_unguarded(),
            };
            if guarding.contains(boot) && known.is_none() && !over && !self.braked {
                let due = gone + self.grace;
                verdict.next = Some(verdict.next.map_or(due, |next| next.min(due)));
            }
            verdict.silent.push(Silence { boot: boot.clone(), gone, due: proof.filter(more) });
        }
        verdict
    }

    /// Why no end of a lease is taken for a death, if it is not.
    fn brake(&mut self, roll: &Roll, evidence: &Evidence<'_>) -> Option<Brake> {
        let alive: BTreeSet<&HostName> = roll.live.keys().map(|boot| &boot.host).collect();
        let counts = |boot: &&HostBoot| {
            !alive.contains(&boot.host)
                && !roll.fenced.contains_key(*boot)
                && !evidence.confirmed.contains(*boot)
                && evidence.hosts.contains(&boot.host)
        };
        let candidates = evidence.guarding.iter().chain(self.fell.keys()).chain(&self.latch);
        let counted: BTreeSet<HostBoot> = candidates.filter(counts).cloned().collect();
        let silent: BTreeSet<HostName> = counted.iter().map(|boot| boot.host.clone()).collect();
        let share = usize::try_from(evidence.tolerance.share).unwrap_or(usize::MAX);
        let share = (alive.len() + silent.len()).saturating_mul(share) / 100;
        let allowed = share.max(evidence.tolerance.least).max(1);
        let holds = silent.len() > allowed && !Mutant::NoStormBrake.is_active();
        self.latch = if holds { counted } else { BTreeSet::new() };
        holds.then_some(Brake { silent, allowed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::host;
    use crate::liveness::FenceRecord;

    const GRACE: Duration = Duration::from_secs(10);

    struct Court {
        judge: Judge,
        start: Instant,
        roll: Roll,
        hosts: BTreeSet<HostName>,
        owning: BTreeSet<HostBoot>,
        guarding: BTreeSet<HostBoot>,
        confirmed: BTreeSet<HostBoot>,
        least: usize,
    }

    /// Hosts that are live and guard guests.
    fn court(hosts: usize) -> Court {
        let boots: BTreeSet<HostBoot> = (1..=hosts).map(|number| boot(number, 1)).collect();
        let live = boots.iter().map(|boot| (boot.clone(), String::new())).collect();
        Court {
            judge: Judge::new(GRACE),
            start: Instant::now(),
            roll: Roll { live, ..Roll::default() },
            hosts: boots.iter().map(|boot| boot.host.clone()).collect(),
            owning: boots.clone(),
            guarding: boots,
            confirmed: BTreeSet::new(),
            least: 0,
        }
    }

    fn boot(host_number: usize, boot: usize) -> HostBoot {
        host(&format!("xen-{host_number}"), &format!("boot-{boot}"))
    }

    impl Court {
        fn at(&mut self, second: u64) -> Verdict {
            let now = self.start + Duration::from_secs(second);
            let evidence = Evidence {
                hosts: &self.hosts,
                owning: &self.owning,
                guarding: &self.guarding,
                confirmed: &self.confirmed,
                tolerance: Tolerance { share: 30, least: self.least },
            };
            self.judge.look(now, &self.roll, &evidence)
        }

        fn due_at(&mut self, second: u64) -> Vec<(HostBoot, Proof)> {
            let silent = self.at(second).silent;
            silent.into_iter().filter_map(|silence| Some((silence.boot, silence.due?))).collect()
        }

        /// How many hosts count and how many may, if the brake is on.
        fn brake_at(&mut self, second: u64) -> Option<(usize, usize)> {
            self.at(second).brake.map(|brake| (brake.silent.len(), brake.allowed))
        }

        fn fall_silent(&mut self, numbers: impl IntoIterator<Item = usize>) {
            for number in numbers {
                self.roll.live.remove(&boot(number, 1));
            }
        }

        fn come_back(&mut self, number: usize) {
            self.roll.live.insert(boot(number, 1), String::new());
        }

        fn fence(&mut self, number: usize, proof: Proof) {
            let record = FenceRecord { by: String::new(), proof, revision: 0 };
            self.roll.fenced.insert(boot(number, 1), record);
        }

        /// Hosts that own guests and have promised nothing.
        fn guard_nothing(&mut self, numbers: impl IntoIterator<Item = usize>) {
            for number in numbers {
                self.guarding.remove(&boot(number, 1));
            }
        }

        /// Hosts that own nothing.
        fn own_nothing(&mut self, numbers: impl IntoIterator<Item = usize> + Clone) {
            self.guard_nothing(numbers.clone());
            for number in numbers {
                self.owning.remove(&boot(number, 1));
            }
        }
    }

    #[test]
    fn a_boot_counts_as_dead_when_the_grace_is_over_and_not_before() {
        let mut court = court(3);
        assert_eq!(court.at(0), Verdict::default());
        court.fall_silent([1]);
        let gone = court.start + Duration::from_secs(5);
        let verdict = court.at(5);
        assert_eq!(verdict.silent, [Silence { boot: boot(1, 1), gone, due: None }]);
        assert_eq!(verdict.next, Some(gone + GRACE), "then is the next look worth while");
        assert_eq!(court.due_at(14), []);
        assert_eq!(court.due_at(15), [(boot(1, 1), Proof::LeaseEnded)]);
        assert_eq!(court.at(15).next, None);
    }

    #[test]
    fn a_boot_that_comes_back_is_waited_for_anew_and_so_is_one_that_may_have_been() {
        let mut court = court(3);
        court.fall_silent([1]);
        court.at(0);
        court.come_back(1);
        court.at(9);
        court.fall_silent([1]);
        assert_eq!(court.due_at(10), []);
        assert_eq!(court.due_at(19), []);
        court.judge.wait_anew();
        assert_eq!(court.due_at(20), []);
        assert_eq!(court.due_at(30), [(boot(1, 1), Proof::LeaseEnded)]);
    }

    #[test]
    fn more_silent_hosts_than_allowed_put_the_brake_on_until_there_are_fewer_or_somebody_confirms() {
        let mut court = court(5);
        court.fall_silent([1, 2]);
        court.at(0);
        assert_eq!(court.brake_at(60), Some((2, 1)));
        assert_eq!(court.due_at(60), []);
        court.confirmed.insert(boot(1, 1));
        assert_eq!(court.due_at(60), [(boot(1, 1), Proof::Confirmed)], "the brake does not hold a person");
        court.fence(1, Proof::Confirmed);
        assert_eq!(court.due_at(69), [], "the one that is left has the whole grace to come back");
        assert_eq!(court.due_at(70), [(boot(2, 1), Proof::LeaseEnded)]);
    }

    #[test]
    fn a_host_that_is_off_for_long_and_guards_nothing_does_not_use_up_what_is_allowed() {
        let mut court = court(3);
        court.guard_nothing([1]);
        court.at(0);
        court.fall_silent([1]);
        assert_eq!(court.brake_at(1), None);
        court.fall_silent([2]);
        assert_eq!(court.brake_at(30), Some((2, 1)), "these two fell silent at once");
        court.come_back(1);
        assert_eq!(court.brake_at(31), None);
        court.fall_silent([1]);
        court.come_back(2);
        court.at(32);
        court.fall_silent([2]);
        assert_eq!(court.brake_at(92), None);
        let dead = (boot(1, 1), Proof::LeaseEnded);
        assert_eq!(court.due_at(101), std::slice::from_ref(&dead));
        assert_eq!(court.due_at(102), [dead, (boot(2, 1), Proof::LeaseEnded)]);
    }

    #[test]
    fn hosts_without_guests_count_on_both_sides() {
        let mut court = court(10);
        court.own_nothing(2..=6);
        court.at(0);
        court.fall_silent(1..=6);
        assert_eq!(court.brake_at(1), Some((6, 3)), "one that guards and five that do not");
        court.own_nothing([1]);
        assert_eq!(court.brake_at(2), Some((6, 3)));
    }

    #[test]
    fn as_many_may_be_silent_as_are_to_be_tolerated() {
        let mut court = court(5);
        court.fall_silent([1, 2]);
        court.least = 2;
        assert_eq!(court.brake_at(0), None);
        court.fall_silent([3]);
        assert_eq!(court.brake_at(1), Some((3, 2)));
    }

    #[test]
    fn time_alone_does_not_release_the_brake() {
        let mut court = court(10);
        court.own_nothing(1..=10);
        court.at(0);
        court.fall_silent(1..=5);
        assert_eq!(court.brake_at(1), Some((5, 3)));
        assert_eq!(court.brake_at(600), Some((5, 3)));
        court.fence(1, Proof::LeaseEnded);
        assert_eq!(court.brake_at(601), Some((4, 2)), "nine count by now");
        court.come_back(2);
        court.come_back(3);
        assert_eq!(court.brake_at(602), None, "two are left");
        court.fall_silent([2]);
        assert_eq!(court.brake_at(603), None, "it is on no more, and only one has fallen silent since");
    }

    #[test]
    fn another_judge_keeps_the_brake_on_that_it_has_inherited() {
        let mut court = court(10);
        court.own_nothing(1..=10);
        court.fall_silent(1..=5);
        let mut fresh = court.judge.clone();
        assert_eq!(court.brake_at(0), None, "it has seen none of them live");
        fresh.inherit((1..=5).map(|number| boot(number, 1)).collect());
        court.judge = fresh;
        assert_eq!(court.brake_at(0), Some((5, 3)));
        court.hosts.remove(&boot(1, 1).host);
        court.confirmed.insert(boot(2, 1));
        assert_eq!(
            court.brake_at(1),
            Some((3, 2)),
            "of one that is no host any more nobody can say anything"
        );
    }

    #[test]
    fn another_live_boot_of_the_same_host_proves_nothing_since_it_may_be_the_earlier_one() {
        let mut court = court(3);
        court.fall_silent([1]);
        court.roll.live.insert(boot(1, 2), String::new());
        assert_eq!(court.due_at(0), []);
        assert_eq!(court.due_at(10), [(boot(1, 1), Proof::LeaseEnded)]);
    }

    #[test]
    fn a_boot_that_is_confirmed_is_due_though_it_owns_nothing_and_does_not_count_for_the_brake() {
        let mut court = court(4);
        court.at(0);
        court.own_nothing(1..=3);
        court.fall_silent(1..=3);
        court.confirmed.extend((1..=3).map(|number| boot(number, 1)));
        let verdict = court.at(1);
        assert_eq!(verdict.brake, None);
        let due: Vec<_> = (1..=3).map(|number| (boot(number, 1), Proof::Confirmed)).collect();
        assert_eq!(court.due_at(1), due);
    }

    #[test]
    fn a_live_boot_is_not_dead_whoever_confirms_it() {
        let mut court = court(3);
        court.confirmed.insert(boot(1, 1));
        assert_eq!(court.at(60), Verdict::default());
    }
}
