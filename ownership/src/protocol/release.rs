//! RELEASE: a host gives a virtual machine up.

use super::{Decision, Transaction, Verb, Write, unchanged};
use crate::names::{HostBoot, Owner, Phase, Token, VmUid};
use crate::record::Key;
use crate::store::Release;

/// RELEASE: `me` gives up `vm`, which it owns under `token`.
#[derive(Clone, Debug)]
pub struct ReleaseVerb<'a> {
    /// The virtual machine.
    pub vm: VmUid,
    /// Who gives it up.
    pub me: &'a HostBoot,
    /// The ownership that ends.
    pub token: Token,
}

impl Verb for ReleaseVerb<'_> {
    type Answer = Release;

    fn name(&self) -> &'static str {
        "release"
    }

    fn vm(&self) -> VmUid {
        self.vm
    }

    fn decide(&self, owner: Option<&Owner>, unresolved: bool) -> Decision<Release> {
        match owner {
            // The boot is not compared: a record of mine from an earlier boot is of a domain that died with it.
            Some(owner)
                if owner.token == self.token
                    && owner.host == self.me.host
                    && owner.phase == Phase::Running =>
            {
                let condition = unchanged(self.vm, owner);
                let write = Write::Delete(Key::Owner(self.vm));
                Decision::Execute(Transaction { compares: vec![condition], writes: vec![write] })
            }
            // A transaction was sent only after the record had been seen under this token. It is not any more, and
            // it cannot come back, because tokens only grow: what was asked for is so.
            None | Some(_) if unresolved => Decision::Answer(Release::Released),
            None | Some(_) => Decision::Answer(Release::NotOwner(owner.cloned())),
        }
    }

    fn executed(&self, _revision: u64) -> Release {
        Release::Released
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Compare;
    use crate::protocol::samples::{KEY, VM, at, owner};

    #[test]
    fn release_deletes_only_what_is_mine_under_this_token() {
        let me = at("xen-1", "boot-2");
        let release = ReleaseVerb { vm: VM, me: &me, token: Token(7) };
        let delete = Decision::Execute(Transaction {
            compares: vec![Compare::Unchanged { key: KEY, mod_revision: 7 }],
            writes: vec![Write::Delete(KEY)],
        });
        for boot in ["boot-1", "boot-2"] {
            assert_eq!(release.decide(Some(&owner("xen-1", boot, 7)), false), delete);
            assert_eq!(release.decide(Some(&owner("xen-1", boot, 7)), true), delete);
        }
        for stranger in [owner("xen-1", "boot-2", 8), owner("xen-2", "boot-2", 7)] {
            let refused = Decision::Answer(Release::NotOwner(Some(stranger.clone())));
            assert_eq!(release.decide(Some(&stranger), false), refused);
        }
        assert_eq!(release.decide(None, false), Decision::Answer(Release::NotOwner(None)));
    }

    #[test]
    fn a_lost_release_is_done_when_its_token_is_gone() {
        let me = at("xen-1", "boot-2");
        let release = ReleaseVerb { vm: VM, me: &me, token: Token(7) };
        assert_eq!(release.decide(None, true), Decision::Answer(Release::Released));
        let successor = owner("xen-2", "boot-9", 8);
        assert_eq!(release.decide(Some(&successor), true), Decision::Answer(Release::Released));
    }
}
