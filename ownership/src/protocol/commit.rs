//! COMMIT: a virtual machine goes from one host to another.

use super::{Decision, Verb, put, unchanged};
use crate::names::{HostBoot, Owner, Phase, Token, VmUid};
use crate::record::encode;
use crate::store::Commit;

/// COMMIT: `vm`, which `from` owns under `token`, goes to `to`.
#[derive(Clone, Debug)]
pub struct CommitVerb<'a> {
    /// The virtual machine.
    pub vm: VmUid,
    /// Who owns it.
    pub from: &'a HostBoot,
    /// The ownership that ends.
    pub token: Token,
    /// Who is to own it.
    pub to: &'a HostBoot,
}

impl Verb for CommitVerb<'_> {
    type Answer = Commit;

    fn name(&self) -> &'static str {
        "commit"
    }

    fn vm(&self) -> VmUid {
        self.vm
    }

    fn decide(&self, owner: Option<&Owner>, unresolved: bool) -> Decision<Commit> {
        match owner {
            Some(owner)
                if owner.token == self.token && owner.is(self.from) && owner.phase == Phase::Running =>
            {
                let value = encode(self.to, Phase::Running, false, Some(self.token));
                put(self.vm, value, vec![unchanged(self.vm, owner)])
            }
            // The lost transaction's own work, or a guard's after it. Any other record of the destination is of another stay.
            Some(owner) if unresolved && owner.is(self.to) && owner.succeeds == Some(self.token) => {
                Decision::Answer(Commit::Committed(owner.token))
            }
            None | Some(_) => Decision::Answer(Commit::Refused(owner.cloned())),
        }
    }

    fn executed(&self, revision: u64) -> Commit {
        Commit::Committed(Token(revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::samples::{KEY, VM, at, owner};
    use crate::protocol::{Compare, Transaction, Write};

    #[test]
    fn commit_takes_only_what_is_the_sources_under_this_token() {
        let (from, to) = (at("xen-1", "boot-1"), at("xen-2", "boot-1"));
        let commit = CommitVerb { vm: VM, from: &from, token: Token(7), to: &to };
        for unresolved in [false, true] {
            let write = Write::Put { key: KEY, value: encode(&to, Phase::Running, false, Some(Token(7))) };
            let compares = vec![Compare::Unchanged { key: KEY, mod_revision: 7 }];
            assert_eq!(
                commit.decide(Some(&owner("xen-1", "boot-1", 7)), unresolved),
                Decision::Execute(Transaction { compares, writes: vec![write] })
            );
            let strangers = [
                owner("xen-1", "boot-1", 8),
                owner("xen-1", "boot-2", 7),
                owner("xen-2", "boot-2", 8),
                owner("xen-3", "boot-1", 7),
                Owner { succeeds: Some(Token(6)), ..owner("xen-2", "boot-1", 8) },
            ];
            for stranger in strangers.map(Some).into_iter().chain([None]) {
                let refused = Decision::Answer(Commit::Refused(stranger.clone()));
                assert_eq!(commit.decide(stranger.as_ref(), unresolved), refused);
            }
        }
    }

    #[test]
    fn a_lost_commit_is_done_when_the_destination_owns() {
        let (from, to) = (at("xen-1", "boot-1"), at("xen-2", "boot-1"));
        let commit = CommitVerb { vm: VM, from: &from, token: Token(7), to: &to };
        let taken = Owner { succeeds: Some(Token(7)), ..owner("xen-2", "boot-1", 8) };
        assert_eq!(commit.decide(Some(&taken), true), Decision::Answer(Commit::Committed(Token(8))));
        let refused = Decision::Answer(Commit::Refused(Some(taken.clone())));
        assert_eq!(commit.decide(Some(&taken), false), refused, "this call did not do it");
    }
}
