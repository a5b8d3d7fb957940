//! GUARD: a host promises that a guest stops before the host's lease can end, or takes that back.
//!
//! A promise is taken back by a write in any case, also where the record says that there is none: one that was made before may
//! still be under way, and does nothing once the token has changed.

use std::collections::BTreeMap;

use super::{Compare, Decision, Verb, put, unchanged};
use crate::names::{HostBoot, Owner, Phase, Token, VmUid};
use crate::record::{Entry, Key, encode};
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
                let is_under_it = owner.token == self.token;
                if owner.guarded == self.guarded
                    && (self.guarded && is_under_it || unresolved && owner.token > self.token)
                {
                    return Decision::Answer(Guard::Written(owner.token));
                }
                if !is_under_it {
                    return Decision::Answer(Guard::Refused(Some(owner.clone())));
                }
                let mut compares = vec![unchanged(self.vm, owner)];
                if self.guarded {
                    // The time in which the guest is to stop is over for a host whose lease has ended.
                    compares.push(Compare::Present(Key::Live(self.me.clone())));
                }
                put(self.vm, encode(self.me, Phase::Running, self.guarded, owner.succeeds), compares)
            }
            None | Some(_) => Decision::Answer(Guard::Refused(owner.cloned())),
        }
    }

    fn executed(&self, revision: u64) -> Guard {
        Guard::Written(Token(revision))
    }

    fn refused(&self, found: &BTreeMap<Key, Entry>) -> Option<Guard> {
        (self.guarded && !found.contains_key(&Key::Live(self.me.clone()))).then_some(Guard::NotLive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::samples::{KEY, VM, at, owner};
    use crate::protocol::{Transaction, Write};

    #[test]
    fn only_the_live_owner_under_its_token_promises_and_a_promise_that_stands_is_not_written_again() {
        let me = at("xen-1", "boot-1");
        let verb = |guarded| GuardVerb { vm: VM, me: &me, token: Token(7), guarded };
        let mine = Owner { succeeds: Some(Token(5)), ..owner("xen-1", "boot-1", 7) };
        let guarded = Owner { guarded: true, ..mine.clone() };
        let put = |guarded, mut compares: Vec<Compare>| {
            compares.insert(0, Compare::Unchanged { key: KEY, mod_revision: 7 });
            let write = Write::Put { key: KEY, value: encode(&me, Phase::Running, guarded, Some(Token(5))) };
            Decision::Execute(Transaction { compares, writes: vec![write] })
        };
        let live = Key::Live(me.clone());
        for unresolved in [false, true] {
            let promised = verb(true).decide(Some(&mine), unresolved);
            assert_eq!(promised, put(true, vec![Compare::Present(live.clone())]));
        }
        assert_eq!(verb(true).decide(Some(&guarded), false), Decision::Answer(Guard::Written(Token(7))));
        let entry = Entry { value: Vec::new(), mod_revision: 7 };
        assert_eq!(verb(true).refused(&BTreeMap::from([(KEY, entry.clone())])), Some(Guard::NotLive));
        assert_eq!(verb(true).refused(&BTreeMap::from([(live, entry)])), None, "another has written");
        assert_eq!(verb(false).refused(&BTreeMap::new()), None);
        for seen in [&mine, &guarded] {
            for unresolved in [false, true] {
                let taken_back = verb(false).decide(Some(seen), unresolved);
                assert_eq!(taken_back, put(false, Vec::new()), "what may be under way is void");
            }
        }
        for other in [owner("xen-1", "boot-1", 8), owner("xen-1", "boot-2", 7), owner("xen-2", "boot-1", 7)] {
            let refused = Decision::Answer(Guard::Refused(Some(other.clone())));
            assert_eq!(verb(true).decide(Some(&other), false), refused);
        }
        let written = Owner { token: Token(9), ..guarded };
        assert_eq!(verb(true).decide(Some(&written), true), Decision::Answer(Guard::Written(Token(9))));
        let taken_back = Owner { token: Token(9), ..mine };
        assert_eq!(verb(false).decide(Some(&taken_back), true), Decision::Answer(Guard::Written(Token(9))));
        assert_eq!(verb(true).decide(None, false), Decision::Answer(Guard::Refused(None)));
    }
}
