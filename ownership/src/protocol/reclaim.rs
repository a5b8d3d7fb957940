//! RECLAIM: a host says of a guest that is on it, in a store that was restored and that nobody has confirmed yet.

use super::{Compare, Decision, Verb, put, unchanged};
use crate::liveness::Standing;
use crate::names::{HostBoot, Owner, Phase, Token, VmUid};
use crate::record::{Key, encode};
use crate::store::Reclaim;

/// RECLAIM: `vm` has a domain on `me`.
#[derive(Clone, Debug)]
pub struct ReclaimVerb<'a> {
    /// The virtual machine.
    pub vm: VmUid,
    /// Who has a domain of it.
    pub me: &'a HostBoot,
    /// Whether the guest may run there at this moment: then no other host's record can be right.
    pub runs: bool,
    /// Whether the host has promised to stop it.
    pub guarded: bool,
    /// How the store was seen: it has no effect once the store is confirmed.
    pub seen: &'a Standing,
}

impl Verb for ReclaimVerb<'_> {
    type Answer = Reclaim;

    fn name(&self) -> &'static str {
        "reclaim"
    }

    fn vm(&self) -> VmUid {
        self.vm
    }

    fn decide(&self, owner: Option<&Owner>, _unresolved: bool) -> Decision<Reclaim> {
        let condition = match owner {
            None => Compare::Absent(Key::Owner(self.vm)),
            Some(owner) if owner.is(self.me) && (!self.runs || self.is_said_by(owner)) => {
                return Decision::Answer(Reclaim::Reclaimed(owner.token));
            }
            Some(owner) if self.runs || owner.host == self.me.host => unchanged(self.vm, owner),
            Some(owner) => return Decision::Answer(Reclaim::Refused(owner.clone())),
        };
        let succeeds = owner.filter(|owner| owner.is(self.me)).and_then(|owner| owner.succeeds);
        let value = encode(self.me, Phase::Running, self.guarded, succeeds);
        put(self.vm, value, vec![condition, self.seen.unchanged()])
    }

    fn executed(&self, revision: u64) -> Reclaim {
        Reclaim::Reclaimed(Token(revision))
    }

    fn refused(&self, found: &std::collections::BTreeMap<Key, crate::record::Entry>) -> Option<Reclaim> {
        (!self.seen.is_as_found(found)).then_some(Reclaim::Over)
    }
}

impl ReclaimVerb<'_> {
    fn is_said_by(&self, owner: &Owner) -> bool {
        owner.phase == Phase::Running && owner.guarded == self.guarded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DiskUid;
    use crate::protocol::samples::{KEY, VM, at, owner};
    use crate::protocol::{Transaction, Write};

    #[test]
    fn what_runs_here_is_this_hosts_whatever_the_old_record_says_and_what_does_not_only_if_nobody_elses() {
        let me = at("xen-1", "boot-1");
        let seen = Standing {
            cluster: 2,
            epoch: None,
            broken: true,
            instead_of: None,
            after: None,
            written: 5,
            newest: 1,
            known: None,
        };
        let verb = |runs| ReclaimVerb { vm: VM, me: &me, runs, guarded: true, seen: &seen };
        let put = |condition| {
            let epoch = Compare::Unchanged { key: Key::Epoch, mod_revision: 5 };
            let write = Write::Put { key: KEY, value: encode(&me, Phase::Running, true, None) };
            Decision::Execute(Transaction { compares: vec![condition, epoch], writes: vec![write] })
        };
        let kept = || put(Compare::Unchanged { key: KEY, mod_revision: 7 });
        let disk = DiskUid(uuid::Uuid::from_u128(9));
        let mine = Owner { guarded: true, ..owner("xen-1", "boot-1", 7) };
        for runs in [false, true] {
            assert_eq!(verb(runs).decide(None, false), put(Compare::Absent(KEY)));
            assert_eq!(verb(runs).decide(Some(&owner("xen-1", "boot-0", 7)), false), kept());
            let done = Decision::Answer(Reclaim::Reclaimed(Token(7)));
            assert_eq!(verb(runs).decide(Some(&mine), false), done);
        }
        let other = owner("xen-2", "boot-1", 7);
        assert_eq!(verb(true).decide(Some(&other), false), kept());
        assert_eq!(verb(false).decide(Some(&other), false), Decision::Answer(Reclaim::Refused(other)));
        for old in [Owner { guarded: false, ..mine.clone() }, Owner { phase: Phase::Saved(disk), ..mine }] {
            assert_eq!(verb(true).decide(Some(&old), false), kept());
        }
    }
}
