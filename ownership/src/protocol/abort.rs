//! ABORT: a virtual machine stays where it is, whatever becomes of a COMMIT.

use super::{Decision, Verb, put_owner, unchanged};
use crate::names::{HostBoot, Owner, Phase, Token, VmUid};
use crate::store::Abort;

/// ABORT: `vm`, which `me` owns under `token`, stays `me`'s under a new one.
#[derive(Clone, Debug)]
pub struct AbortVerb<'a> {
    /// The virtual machine.
    pub vm: VmUid,
    /// Who owns it.
    pub me: &'a HostBoot,
    /// The ownership that ends, and with it every COMMIT of it.
    pub token: Token,
}

impl Verb for AbortVerb<'_> {
    type Answer = Abort;

    fn name(&self) -> &'static str {
        "abort"
    }

    fn vm(&self) -> VmUid {
        self.vm
    }

    fn decide(&self, owner: Option<&Owner>, unresolved: bool) -> Decision<Abort> {
        match owner {
            Some(owner)
                if owner.token == self.token && owner.is(self.me) && owner.phase == Phase::Running =>
            {
                put_owner(self.vm, self.me, unchanged(self.vm, owner))
            }
            // It was mine under `token` when the lost transaction was sent, so `token` ended since.
            Some(owner)
                if unresolved
                    && owner.token > self.token
                    && owner.is(self.me)
                    && owner.phase == Phase::Running =>
            {
                Decision::Answer(Abort::Aborted(owner.token))
            }
            None | Some(_) => Decision::Answer(Abort::Refused(owner.cloned())),
        }
    }

    fn executed(&self, revision: u64) -> Abort {
        Abort::Aborted(Token(revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Compare;
    use crate::protocol::samples::{KEY, VM, at, owner, put};

    #[test]
    fn abort_renews_only_what_is_mine_under_this_token() {
        let me = at("xen-1", "boot-1");
        let abort = AbortVerb { vm: VM, me: &me, token: Token(7) };
        for unresolved in [false, true] {
            assert_eq!(
                abort.decide(Some(&owner("xen-1", "boot-1", 7)), unresolved),
                put(&me, Compare::Unchanged { key: KEY, mod_revision: 7 })
            );
            let strangers =
                [owner("xen-1", "boot-1", 6), owner("xen-1", "boot-2", 8), owner("xen-2", "boot-1", 8)];
            for stranger in strangers.map(Some).into_iter().chain([None]) {
                let refused = Decision::Answer(Abort::Refused(stranger.clone()));
                assert_eq!(abort.decide(stranger.as_ref(), unresolved), refused);
            }
        }
    }

    #[test]
    fn a_lost_abort_is_done_when_i_own_under_a_greater_token() {
        let me = at("xen-1", "boot-1");
        let abort = AbortVerb { vm: VM, me: &me, token: Token(7) };
        let renewed = owner("xen-1", "boot-1", 9);
        assert_eq!(abort.decide(Some(&renewed), true), Decision::Answer(Abort::Aborted(Token(9))));
        let refused = Decision::Answer(Abort::Refused(Some(renewed.clone())));
        assert_eq!(abort.decide(Some(&renewed), false), refused, "this call did not do it");
    }
}
