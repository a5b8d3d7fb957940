//! GUARD: a host promises that a guest stops before the host's lease can end, or takes that back.

use super::{Decision, Verb, put, unchanged};
use crate::names::{HostBoot, Owner, Phase, Token, VmUid};
use crate::record::encode;
use crate::store::Guard;

/// GUARD: `vm`, which `me` owns under `token`, is to be guarded, or not.
#[derive(Clone, Debug)]
pub struct GuardVerb<'a> {
    /// The virtual machine.
    pub vm: VmUid,
    /// Who owns it.
    pub me: &'a HostBoot,
    /// The ownership.
    pub token: Token,
    /// Whether the promise is made.
    pub guarded: bool,
}

impl Verb for GuardVerb<'_> {
    type Answer = Guard;

    fn name(&self) -> &'static str {
        "guard"
    }

    fn vm(&self) -> VmUid {
        self.vm
    }

    fn decide(&self, owner: Option<&Owner>, unresolved: bool) -> Decision<Guard> {
        match owner {
            Some(owner) if owner.is(self.me) && owner.phase == Phase::Running => {
                if owner.guarded == self.guarded && (unresolved || owner.token == self.token) {
                    return Decision::Answer(Guard::Written(owner.token));
                }
                if owner.token != self.token {
                    return Decision::Answer(Guard::Refused(Some(owner.clone())));
                }
                let value = encode(self.me, Phase::Running, self.guarded, owner.succeeds);
                put(self.vm, value, vec![unchanged(self.vm, owner)])
            }
            None | Some(_) => Decision::Answer(Guard::Refused(owner.cloned())),
        }
    }

    fn executed(&self, revision: u64) -> Guard {
        Guard::Written(Token(revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::samples::{KEY, VM, at, owner};
    use crate::protocol::{Compare, Transaction, Write};

    #[test]
    fn only_the_owner_under_its_token_promises_and_a_promise_that_stands_is_not_written_again() {
        let me = at("xen-1", "boot-1");
        let verb = |guarded| GuardVerb { vm: VM, me: &me, token: Token(7), guarded };
        let mine = Owner { succeeds: Some(Token(5)), ..owner("xen-1", "boot-1", 7) };
        let guarded = Owner { guarded: true, ..mine.clone() };
        for (seen, wanted) in [(&mine, true), (&guarded, false)] {
            let condition = Compare::Unchanged { key: KEY, mod_revision: 7 };
            let write = Write::Put { key: KEY, value: encode(&me, Phase::Running, wanted, Some(Token(5))) };
            let put = Transaction { compares: vec![condition], writes: vec![write] };
            assert_eq!(verb(wanted).decide(Some(seen), false), Decision::Execute(put));
            assert_eq!(verb(!wanted).decide(Some(seen), false), Decision::Answer(Guard::Written(Token(7))));
        }
        for other in [owner("xen-1", "boot-1", 8), owner("xen-1", "boot-2", 7), owner("xen-2", "boot-1", 7)] {
            let refused = Decision::Answer(Guard::Refused(Some(other.clone())));
            assert_eq!(verb(true).decide(Some(&other), false), refused);
        }
        let written = Owner { token: Token(9), ..guarded };
        assert_eq!(verb(true).decide(Some(&written), true), Decision::Answer(Guard::Written(Token(9))));
        assert_eq!(verb(true).decide(None, false), Decision::Answer(Guard::Refused(None)));
    }
}
