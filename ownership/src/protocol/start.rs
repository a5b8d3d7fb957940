//! START: a host asks to run a virtual machine.

use kubexen_mutants::Mutant;

use super::{Compare, Decision, Verb, put_owner, unchanged};
use crate::names::{HostBoot, Owner, Phase, Token, VmUid};
use crate::record::Key;
use crate::store::Start;

/// START: `me` wants to run `vm`.
#[derive(Clone, Debug)]
pub struct StartVerb<'a> {
    /// The virtual machine.
    pub vm: VmUid,
    /// Who wants to run it.
    pub me: &'a HostBoot,
}

impl Verb for StartVerb<'_> {
    type Answer = Start;

    fn name(&self) -> &'static str {
        "start"
    }

    fn vm(&self) -> VmUid {
        self.vm
    }

    fn decide(&self, owner: Option<&Owner>, unresolved: bool) -> Decision<Start> {
        let condition = match owner {
            None => Compare::Absent(Key::Owner(self.vm)),
            // What is saved is resumed, never started afresh.
            Some(owner) if Mutant::SavedStartedAfresh.is_active() && owner.phase != Phase::Running => {
                unchanged(self.vm, owner)
            }
            Some(owner) if owner.host != self.me.host || owner.phase != Phase::Running => {
                return Decision::Answer(Start::Refused(owner.clone()));
            }
            Some(owner) if !owner.is(self.me) => unchanged(self.vm, owner),
            // The record was not mine when the lost transaction was sent, so it became mine since.
            Some(owner) if unresolved => return Decision::Answer(Start::Acquired(owner.token)),
            Some(owner) => return Decision::Answer(Start::AlreadyMine(owner.token)),
        };
        put_owner(self.vm, self.me, condition)
    }

    fn executed(&self, revision: u64) -> Start {
        Start::Acquired(Token(revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DiskUid;
    use crate::protocol::samples::{KEY, VM, at, owner, put};

    #[test]
    fn start_takes_what_is_absent_or_mine_from_an_earlier_boot_and_nothing_else() {
        let me = at("xen-1", "boot-2");
        let start = StartVerb { vm: VM, me: &me };

        for unresolved in [false, true] {
            assert_eq!(start.decide(None, unresolved), put(&me, Compare::Absent(KEY)));
            assert_eq!(
                start.decide(Some(&owner("xen-1", "boot-1", 7)), unresolved),
                put(&me, Compare::Unchanged { key: KEY, mod_revision: 7 })
            );
            // An equal boot id on another host is another boot.
            let disk = DiskUid(uuid::Uuid::from_u128(9));
            let saved = Owner { phase: Phase::Saved(disk), ..owner("xen-1", "boot-2", 7) };
            let resuming = Owner { phase: Phase::Resuming(disk), ..owner("xen-1", "boot-1", 7) };
            for other in [owner("xen-2", "boot-1", 7), owner("xen-2", "boot-2", 7), saved, resuming] {
                let refused = Decision::Answer(Start::Refused(other.clone()));
                assert_eq!(start.decide(Some(&other), unresolved), refused);
            }
        }
        let mine = owner("xen-1", "boot-2", 7);
        assert_eq!(start.decide(Some(&mine), false), Decision::Answer(Start::AlreadyMine(Token(7))));
        assert_eq!(start.decide(Some(&mine), true), Decision::Answer(Start::Acquired(Token(7))));
    }
}
