//! When a host that has fallen silent counts as dead.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kubexen_mutants::Mutant;
use tokio::time::Instant;

use super::{Proof, Roll};
use crate::names::{HostBoot, HostName};

/// A boot that owns guests, or that a person has confirmed to be dead, and is not live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// The boot.
    pub boot: HostBoot,
    /// When this judge last saw it live, if it did.
    pub last_seen: Option<Instant>,
    /// When this judge first saw that it is not live, or let go of the brake after that: the grace counts from then.
    pub gone: Instant,
    /// What a fence record may be written with now that proves more than the one there is; none if it is not time yet.
    pub due: Option<Proof>,
}

/// Too many hosts are silent at once: the fault is then rather between them and the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brake {
    /// Hosts that are silent and not fenced.
    pub silent: usize,
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
}

/// Judges which boots are dead, by what it has seen itself, on its own clock.
///
/// A new leader begins with a new judge: what another one saw may be long ago.
#[derive(Clone, Debug)]
pub struct Judge {
    grace: Duration,
    seen: BTreeMap<HostBoot, Instant>,
    gone: BTreeMap<HostBoot, Instant>,
    braked: bool,
}

impl Judge {
    /// A judge that has seen nothing yet, and waits this long after it has first seen a boot gone.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self { grace, seen: BTreeMap::new(), gone: BTreeMap::new(), braked: false }
    }

    /// Another grace holds from now on.
    pub fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// Looks at a roll that was read at `now`, together with the boots that own guests, and those that a person has
    /// confirmed to be dead. Of 100 hosts `share` may be silent at once, and one always may.
    ///
    /// A boot that is live is never due, whoever says what. One that is confirmed is due even if it owns nothing: the store may
    /// have been restored from a backup that knows less. It does not count for the brake then.
    pub fn look(
        &mut self,
        now: Instant,
        roll: &Roll,
        owning: &BTreeSet<HostBoot>,
        confirmed: &BTreeSet<HostBoot>,
        share: u32,
    ) -> Verdict {
        let judged: BTreeSet<&HostBoot> = owning.union(confirmed).collect();
        self.seen.retain(|boot, _| judged.contains(boot) || roll.live.contains_key(boot));
        self.seen.extend(roll.live.keys().map(|boot| (boot.clone(), now)));
        self.gone.retain(|boot, _| judged.contains(boot) && !roll.live.contains_key(boot));
        let alive: BTreeSet<&HostName> = roll.live.keys().map(|boot| &boot.host).collect();
        let brake = brake(roll, owning, &alive, share);
        if self.braked && brake.is_none() {
            // What ended many leases at once may have ended those that are left too: their hosts are given time to join anew.
            self.gone.values_mut().for_each(|gone| *gone = now);
        }
        self.braked = brake.is_some();
        let silent = judged.into_iter().filter(|boot| !roll.live.contains_key(*boot));
        let silent = silent.map(|boot| {
            let gone = *self.gone.entry(boot.clone()).or_insert(now);
            let over = now.saturating_duration_since(gone) >= self.grace || Mutant::NoGrace.is_active();
            let proof = if confirmed.contains(boot) {
                Some(Proof::Confirmed)
            } else {
                (over && brake.is_none()).then_some(Proof::LeaseEnded)
            };
            let known = roll.fenced.get(boot).map(|record| record.proof);
            let more = |proof: &Proof| match known {
                None => true,
                Some(known) => proof.covers_unguarded() && !known.covers_unguarded(),
            };
            let last_seen = self.seen.get(boot).copied();
            Silence { boot: boot.clone(), last_seen, gone, due: proof.filter(more) }
        });
        Verdict { silent: silent.collect(), brake }
    }
}

fn brake(roll: &Roll, owning: &BTreeSet<HostBoot>, alive: &BTreeSet<&HostName>, share: u32) -> Option<Brake> {
    let silent: BTreeSet<&HostName> = owning
        .iter()
        .filter(|boot| !alive.contains(&boot.host) && !roll.fenced.contains_key(*boot))
        .map(|boot| &boot.host)
        .collect();
    let hosts = owning.iter().map(|boot| &boot.host).chain(alive.iter().copied()).collect::<BTreeSet<_>>();
    let share = usize::try_from(share).unwrap_or(usize::MAX);
    let allowed = (hosts.len().saturating_mul(share) / 100).max(1);
    (silent.len() > allowed && !Mutant::NoStormBrake.is_active())
        .then_some(Brake { silent: silent.len(), allowed })
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
        owning: BTreeSet<HostBoot>,
        confirmed: BTreeSet<HostBoot>,
    }

    /// Hosts that are live and own guests.
    fn court(hosts: usize) -> Court {
        let boots: BTreeSet<HostBoot> = (1..=hosts).map(|number| boot(number, 1)).collect();
        let live = boots.iter().map(|boot| (boot.clone(), String::new())).collect();
        let (judge, roll) = (Judge::new(GRACE), Roll { live, ..Roll::default() });
        Court { judge, start: Instant::now(), roll, owning: boots, confirmed: BTreeSet::new() }
    }

    fn boot(host_number: usize, boot: usize) -> HostBoot {
        host(&format!("xen-{host_number}"), &format!("boot-{boot}"))
    }

    impl Court {
        fn at(&mut self, second: u64) -> Verdict {
            let now = self.start + Duration::from_secs(second);
            self.judge.look(now, &self.roll, &self.owning, &self.confirmed, 30)
        }

        fn due_at(&mut self, second: u64) -> Vec<(HostBoot, Proof)> {
            let silent = self.at(second).silent;
            silent.into_iter().filter_map(|silence| Some((silence.boot, silence.due?))).collect()
        }
    }

    #[test]
    fn a_boot_counts_as_dead_when_the_grace_is_over_and_not_before() {
        let mut court = court(3);
        assert_eq!(court.at(0), Verdict::default());
        court.roll.live.remove(&boot(1, 1));
        let silence =
            Silence { boot: boot(1, 1), last_seen: Some(court.start), gone: court.start, due: None };
        let gone = court.start + Duration::from_secs(5);
        assert_eq!(court.at(5).silent, [Silence { gone, ..silence }]);
        assert_eq!(court.due_at(14), []);
        assert_eq!(court.due_at(15), [(boot(1, 1), Proof::LeaseEnded)]);
    }

    #[test]
    fn a_boot_that_comes_back_is_waited_for_anew() {
        let mut court = court(3);
        court.roll.live.remove(&boot(1, 1));
        court.at(0);
        court.roll.live.insert(boot(1, 1), String::new());
        court.at(9);
        court.roll.live.remove(&boot(1, 1));
        assert_eq!(court.due_at(10), []);
        assert_eq!(court.due_at(19), []);
        assert_eq!(court.due_at(20), [(boot(1, 1), Proof::LeaseEnded)]);
    }

    #[test]
    fn more_silent_hosts_than_allowed_put_the_brake_on_until_there_are_fewer_or_somebody_confirms() {
        let mut court = court(5);
        for number in [1, 2] {
            court.roll.live.remove(&boot(number, 1));
        }
        court.at(0);
        let brake = Brake { silent: 2, allowed: 1 };
        assert_eq!(court.at(60).brake, Some(brake));
        assert_eq!(court.due_at(60), []);
        court.confirmed.insert(boot(1, 1));
        assert_eq!(court.due_at(60), [(boot(1, 1), Proof::Confirmed)], "the brake does not hold a person");
        let by = FenceRecord { by: String::new(), proof: Proof::Confirmed, revision: 0 };
        court.roll.fenced.insert(boot(1, 1), by);
        assert_eq!(court.due_at(61), []);
        assert_eq!(court.due_at(70), [], "the one that is left has the whole grace to come back");
        assert_eq!(court.due_at(71), [(boot(2, 1), Proof::LeaseEnded)]);
    }

    #[test]
    fn another_live_boot_of_the_same_host_proves_nothing_since_it_may_be_the_earlier_one() {
        let mut court = court(3);
        court.roll.live.remove(&boot(1, 1));
        court.roll.live.insert(boot(1, 2), String::new());
        assert_eq!(court.due_at(0), []);
        assert_eq!(court.due_at(10), [(boot(1, 1), Proof::LeaseEnded)]);
    }

    #[test]
    fn a_boot_that_is_confirmed_is_due_though_it_owns_nothing_and_does_not_count_for_the_brake() {
        let mut court = court(4);
        let dead: Vec<HostBoot> = (1..=3).map(|number| boot(number, 1)).collect();
        for boot in &dead {
            court.roll.live.remove(boot);
            court.owning.remove(boot);
        }
        assert_eq!(court.at(60), Verdict::default());
        court.confirmed.extend(dead.clone());
        assert_eq!(court.at(60).brake, None);
        let due: Vec<_> = dead.into_iter().map(|boot| (boot, Proof::Confirmed)).collect();
        assert_eq!(court.due_at(60), due);
    }

    #[test]
    fn a_live_boot_is_not_dead_whoever_confirms_it() {
        let mut court = court(3);
        court.confirmed.insert(boot(1, 1));
        assert_eq!(court.at(60), Verdict::default());
    }
}
