//! Which boots are fenced and unfenced, pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kubexen_crds::{Pool, Profile};
use kubexen_ownership::{
    HostBoot, Owner, Phase, VmUid,
    liveness::{Proof, Roll, Timing, Tolerance, Verdict},
};

use super::{
    epoch::Freeze,
    loss::Hold,
    words::{Refusal, Refused, Word, Words},
};

/// What the Pool says of hosts that die.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// How long a boot must have been gone.
    pub(crate) grace: Duration,
    /// How many hosts may be silent at once.
    pub(crate) tolerance: Tolerance,
    /// Why nothing is to be done, if nothing is.
    pub(crate) halt: Option<Halt>,
}

/// Why nothing is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Halt {
    /// The Pool is disarmed.
    Disarmed,
    /// The pool's store was restored from a backup, which nobody has confirmed.
    Frozen(Freeze),
}

impl Halt {
    /// The same, as the reason why a machine is not stolen.
    pub(crate) fn hold(&self) -> Hold {
        match self {
            Self::Disarmed => Hold::Disarmed,
            Self::Frozen(_) => Hold::Frozen,
        }
    }
}

impl Policy {
    /// What a Pool says; without one, its defaults. `freeze` tells whether its store waits for an operator.
    pub(crate) fn of(pool: Option<&Pool>, freeze: Option<Freeze>) -> Self {
        let spec = pool.map(|pool| pool.spec.availability.clone()).unwrap_or_default();
        let grace = match spec.profile {
            Profile::Default => Timing::DEFAULT.grace,
            Profile::Fast => Timing::FAST.grace,
        };
        Self {
            grace,
            tolerance: Tolerance {
                share: u32::try_from(spec.max_silent_percent).unwrap_or(0),
                least: usize::try_from(spec.host_failures_to_tolerate).unwrap_or(0),
            },
            halt: freeze.map(Halt::Frozen).or(spec.disarmed.then_some(Halt::Disarmed)),
        }
    }
}

/// What is known at one look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observed<'a> {
    /// All hosts.
    pub(crate) roll: &'a Roll,
    /// All owners.
    pub(crate) owners: &'a BTreeMap<VmUid, Owner>,
    /// Which boots are silent, and due.
    pub(crate) verdict: &'a Verdict,
    /// Why nothing is to be done, if nothing is.
    pub(crate) halt: Option<&'a Halt>,
    /// What operators say.
    pub(crate) words: &'a Words,
    /// Boots that were unfenced a moment ago, and have some time to come back.
    pub(crate) spared: &'a BTreeSet<HostBoot>,
    /// Words to unfence that were followed already.
    pub(crate) followed: &'a BTreeSet<HostBoot>,
    /// Machines whose guests had ended before their host died.
    pub(crate) ended: &'a BTreeSet<VmUid>,
    /// Boots whose hosts have been live at another boot for long, and of which nothing is left to be done.
    pub(crate) over: &'a BTreeSet<HostBoot>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Boots to fence, and why.
    pub(crate) fence: Vec<(HostBoot, Proof)>,
    /// Boots to unfence.
    pub(crate) unfence: Vec<HostBoot>,
    /// Boots that an operator asks to unfence, and that are not fenced.
    pub(crate) free: Vec<HostBoot>,
    /// Boots that are not unfenced although an operator asks for it.
    pub(crate) refused: Vec<Refused>,
    /// Boots that are over: nothing needs their fence records any more.
    pub(crate) forget: Vec<HostBoot>,
}

/// What is to be done about boots.
pub(crate) fn decide(observed: &Observed<'_>) -> Plan {
    match observed.halt {
        None => Plan { fence: fences(observed), forget: forgets(observed), ..unfences(observed) },
        Some(Halt::Disarmed) => unfences(observed),
        Some(Halt::Frozen(_)) => Plan::default(),
    }
}

/// Boots to fence. The end of a lease is taken for a death only where that lets a guest come back: an agent that has never
/// had a lease guards nothing, and must find no fence when it is to get one.
fn fences(observed: &Observed<'_>) -> Vec<(HostBoot, Proof)> {
    let due = observed.verdict.silent.iter().filter_map(|silence| Some((&silence.boot, silence.due?)));
    let due = due.filter(|(boot, proof)| match proof {
        Proof::LeaseEnded => {
            let guards = observed.owners.values().any(|owner| owner.is(boot) && owner.guarded);
            guards && !observed.spared.contains(*boot)
        }
        Proof::Confirmed => true,
    });
    due.map(|(boot, proof)| (boot.clone(), proof)).collect()
}

/// Boots to unfence. Guests that nobody guarded, and of which nothing is proven, stay with their boot, and may run there.
fn unfences(observed: &Observed<'_>) -> Plan {
    let mut plan = Plan::default();
    for boot in observed.words.unfenced.difference(observed.followed) {
        let Some(record) = observed.roll.fenced.get(boot) else {
            plan.free.push(boot.clone());
            continue;
        };
        let stealable = |(vm, owner): &(&VmUid, &Owner)| {
            let is_proven = owner.guarded || record.proof.covers_unguarded();
            owner.is(boot) && is_proven && !observed.ended.contains(vm)
        };
        let left = observed.owners.iter().filter(stealable).count();
        let refused = |why| {
            let (host, text) = (boot.host.clone(), boot.boot_id.to_string());
            Refused { host, word: Word::Unfenced, text, why }
        };
        if observed.words.called_dead.contains(boot) {
            plan.refused.push(refused(Refusal::CalledDead));
        } else if left > 0 {
            plan.refused.push(refused(Refusal::Guests(left)));
        } else {
            plan.unfence.push(boot.clone());
        }
    }
    plan
}

/// Boots whose fence records are not needed any more.
///
/// That is safe: a machine is at one boot at a time, so that a fenced boot is over once its host has been live at another one
/// for longer than any lease, within which the agent of that boot alone has renewed. What ran at the fenced boot has ended with
/// it, whether or not anything is on record, and no guest of it is to be stolen, since no owner record names it. As long as an
/// operator calls it dead the record stays: the word would be followed anew.
fn forgets(observed: &Observed<'_>) -> Vec<HostBoot> {
    let is_named = |boot: &HostBoot| {
        observed.words.called_dead.contains(boot) || observed.owners.values().any(|owner| owner.is(boot))
    };
    observed.over.iter().filter(|boot| !is_named(boot)).cloned().collect()
}

/// The boots whose silence is judged: those that own guests, and are known to have, or to have had, a lease. A boot that an
/// operator has confirmed to be off needs neither.
pub(crate) fn judged(
    owners: &BTreeMap<VmUid, Owner>,
    roll: &Roll,
    joined: &BTreeSet<HostBoot>,
) -> BTreeSet<HostBoot> {
    let owning = owners.values().filter(|owner| is_on_a_host(owner));
    let known = owning.map(|owner| (boot_of(owner), owner.guarded)).filter(|(boot, guarded)| {
        *guarded
            || joined.contains(boot)
            || roll.fenced.contains_key(boot)
            || roll.live_boot(boot.host.as_str()).is_some()
    });
    known.map(|(boot, _)| boot).collect()
}

/// The boot that an owner record names.
pub(crate) fn boot_of(owner: &Owner) -> HostBoot {
    HostBoot { host: owner.host.clone(), boot_id: owner.boot_id.clone() }
}

/// Whether a host may have a domain of the machine.
pub(crate) fn is_on_a_host(owner: &Owner) -> bool {
    match owner.phase {
        Phase::Running | Phase::Resuming(_) => true,
        Phase::Saved(_) => false,
    }
}
