//! What a machine's look is told of the death of its host, pure.

use kubexen_mutants::Mutant;
use kubexen_ownership::{
    HostBoot, Owner, Phase, Token,
    liveness::{FenceRecord, Roll},
};

use super::decide::{Halt, boot_of};

/// What happened to a machine whose host is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    /// The boot that it was lost with.
    pub(crate) from: HostBoot,
    /// Where it stands.
    pub(crate) kind: LossKind,
    /// Whether somebody has seen that boot to be off, so that nothing at all is left of it.
    pub(crate) is_off: bool,
    /// Whether its guest is saved in a disk from which it was being resumed.
    pub(crate) resuming: bool,
    /// Whether its host is back at another boot: then its agent ends what is left there.
    pub(crate) is_back: bool,
}

/// Where a lost machine stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LossKind {
    /// The dead boot owns it under this token, and it may be stolen.
    Owned(Token),
    /// The dead boot owns it, and it may not be stolen.
    Held(Hold),
    /// Nobody owns it, so that no guest of it runs anywhere.
    Unowned,
    /// This boot owns it, which is live.
    Given(HostBoot),
}

/// Why nothing is stolen from a boot that is fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// The host never promised to stop the guest, and only its lease is known to have ended.
    NotGuarded,
    /// Too many hosts are silent at once.
    StormBrake,
    /// The Pool says that nothing is to be done.
    Disarmed,
    /// The pool's store was restored from a backup.
    Frozen,
}

/// What [`loss`] is decided from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    /// All hosts.
    pub(crate) roll: &'a Roll,
    /// Who owns the machine.
    pub(crate) owner: Option<&'a Owner>,
    /// The host that its Domain is on, or was last.
    pub(crate) host: &'a str,
    /// Whether that host is Ready.
    pub(crate) host_ready: bool,
    /// The boot that it was last at, as its agent said.
    pub(crate) host_boot: Option<&'a str>,
    /// Why nothing is to be done, if nothing is.
    pub(crate) halt: Option<&'a Halt>,
    /// Whether too many hosts are silent at once.
    pub(crate) brake: bool,
}

/// What happened to the machine; none if its host is not known to be dead, or is back and takes it over itself. What was given to
/// another host stays given, whether its own is back or not.
pub(crate) fn loss(seen: &Seen<'_>) -> Option<Loss> {
    match seen.owner {
        Some(Owner { phase: Phase::Saved(_), .. }) => None,
        Some(owner) => {
            let boot = boot_of(owner);
            let resuming = match owner.phase {
                Phase::Resuming(_) => true,
                Phase::Running | Phase::Saved(_) => false,
            };
            match seen.roll.fenced.get(&boot) {
                Some(_) if seen.roll.live.contains_key(&boot) || seen.is_back(boot.host.as_str()) => None,
                Some(record) => {
                    let kind =
                        may_be_stolen(owner, record, seen).map_or_else(LossKind::Held, LossKind::Owned);
                    Some(Loss {
                        from: boot,
                        kind,
                        is_off: record.proof.covers_unguarded(),
                        resuming,
                        is_back: false,
                    })
                }
                None if boot.host.as_str() == seen.host => None,
                None if seen.roll.live.contains_key(&boot) => {
                    let ((from, is_off), is_back) = (seen.fenced_boot()?, seen.is_live(seen.host));
                    Some(Loss { from, kind: LossKind::Given(boot), is_off, resuming, is_back })
                }
                None => None,
            }
        }
        None if seen.is_back(seen.host) => None,
        None => {
            let (from, is_off) = seen.dead_boot()?;
            let kind = match seen.halt {
                Some(halt) => LossKind::Held(halt.hold()),
                None if seen.brake && !is_off => LossKind::Held(Hold::StormBrake),
                None => LossKind::Unowned,
            };
            Some(Loss { from, kind, is_off, resuming: false, is_back: false })
        }
    }
}

fn may_be_stolen(owner: &Owner, record: &FenceRecord, seen: &Seen<'_>) -> Result<Token, Hold> {
    let proven = record.proof.covers_unguarded();
    match seen.halt {
        Some(halt) => Err(halt.hold()),
        None if !owner.guarded && !proven && !Mutant::UnguardedStolen.is_active() => Err(Hold::NotGuarded),
        None if seen.brake && !proven => Err(Hold::StormBrake),
        None => Ok(owner.token),
    }
}

impl Seen<'_> {
    /// Whether the host is live at another boot and its agent works: it takes over what is its own.
    fn is_back(&self, host: &str) -> bool {
        self.is_live(host) && (self.host_ready || host != self.host)
    }

    fn is_live(&self, host: &str) -> bool {
        self.roll.live_boot(host).is_some()
    }

    /// The boot with which the machine's host died, and whether all that are fenced were seen to be off. A host that is live is not
    /// dead for the record of an earlier boot, unless its agent has said nothing since that one.
    fn dead_boot(&self) -> Option<(HostBoot, bool)> {
        let dead = self.fenced_boot()?;
        let is_last = self.host_boot == Some(dead.0.boot_id.as_str());
        (is_last || !self.is_live(self.host)).then_some(dead)
    }

    /// A fenced boot of the machine's host, the last that its agent spoke of if that is fenced, and whether all that are fenced were
    /// seen to be off.
    fn fenced_boot(&self) -> Option<(HostBoot, bool)> {
        let fenced = || self.roll.fenced.iter().filter(|(boot, _)| boot.host.as_str() == self.host);
        let is_last = |(boot, _): &(&HostBoot, &FenceRecord)| Some(boot.boot_id.as_str()) == self.host_boot;
        let (boot, _) = fenced().find(is_last).or_else(|| fenced().next())?;
        Some((boot.clone(), fenced().all(|(_, record)| record.proof.covers_unguarded())))
    }
}
