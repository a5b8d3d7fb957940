//! STEAL: a virtual machine of a dead host goes to another one.

use std::collections::BTreeMap;

use kubexen_mutants::Mutant;

use super::{Compare, Decision, Verb, put, unchanged};
use crate::names::{HostBoot, Owner, Phase, Token, VmUid};
use crate::record::{Entry, Key, encode};
use crate::store::Steal;

/// STEAL: `vm`, which the dead `from` owns under `token`, goes to `to`.
#[derive(Clone, Debug)]
pub struct StealVerb<'a> {
    /// The virtual machine.
    pub vm: VmUid,
    /// The boot that is dead.
    pub from: &'a HostBoot,
    /// The ownership that ends.
    pub token: Token,
    /// Who is to own it.
    pub to: &'a HostBoot,
}

impl Verb for StealVerb<'_> {
    type Answer = Steal;

    fn name(&self) -> &'static str {
        "steal"
    }

    fn vm(&self) -> VmUid {
        self.vm
    }

    fn decide(&self, owner: Option<&Owner>, unresolved: bool) -> Decision<Steal> {
        match owner.map(|owner| (owner, owner.phase)) {
            Some((owner, phase @ (Phase::Running | Phase::Resuming(_))))
                if owner.token == self.token && owner.is(self.from) =>
            {
                let mut compares = vec![
                    unchanged(self.vm, owner),
                    Compare::Absent(Key::Live(self.from.clone())),
                    Compare::Present(Key::Fenced(self.from.clone())),
                    Compare::Present(Key::Live(self.to.clone())),
                ];
                if Mutant::StealWithoutFence.is_active() {
                    compares.remove(2);
                }
                let value = encode(self.to, phase, false, Some(self.token));
                put(self.vm, value, compares)
            }
            // The lost transaction's own work.
            Some((owner, _)) if unresolved && owner.is(self.to) && owner.succeeds == Some(self.token) => {
                Decision::Answer(Steal::Stolen(owner.token))
            }
            None | Some(_) => Decision::Answer(Steal::Refused(owner.cloned())),
        }
    }

    fn executed(&self, revision: u64) -> Steal {
        Steal::Stolen(Token(revision))
    }

    fn refused(&self, found: &BTreeMap<Key, Entry>) -> Option<Steal> {
        let there = |key| found.contains_key(&key);
        if there(Key::Live(self.from.clone())) || !there(Key::Fenced(self.from.clone())) {
            Some(Steal::NotDead)
        } else if !there(Key::Live(self.to.clone())) {
            Some(Steal::NobodyThere)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DiskUid;
    use crate::protocol::Write;
    use crate::protocol::samples::{KEY, VM, at, owner};

    #[test]
    fn steal_takes_only_what_is_the_dead_hosts_under_this_token_and_compares_all_that_proves_it_dead() {
        let (from, to) = (at("xen-1", "boot-1"), at("xen-2", "boot-1"));
        let steal = StealVerb { vm: VM, from: &from, token: Token(7), to: &to };
        let resuming = Phase::Resuming(DiskUid(uuid::Uuid::from_u128(9)));
        for phase in [Phase::Running, resuming] {
            let seen = Owner { phase, guarded: true, ..owner("xen-1", "boot-1", 7) };
            let Decision::Execute(transaction) = steal.decide(Some(&seen), false) else {
                panic!("nothing is stolen")
            };
            let compares = [
                Compare::Unchanged { key: KEY, mod_revision: 7 },
                Compare::Absent(Key::Live(from.clone())),
                Compare::Present(Key::Fenced(from.clone())),
                Compare::Present(Key::Live(to.clone())),
            ];
            assert_eq!(transaction.compares, compares);
            assert_eq!(
                transaction.writes,
                [Write::Put { key: KEY, value: encode(&to, phase, false, Some(Token(7))) }]
            );
        }
        let saved = Phase::Saved(DiskUid(uuid::Uuid::from_u128(9)));
        let strangers = [
            owner("xen-1", "boot-1", 8),
            owner("xen-1", "boot-2", 7),
            owner("xen-2", "boot-1", 8),
            Owner { phase: saved, ..owner("xen-1", "boot-1", 7) },
        ];
        for stranger in strangers.map(Some).into_iter().chain([None]) {
            let refused = Decision::Answer(Steal::Refused(stranger.clone()));
            assert_eq!(steal.decide(stranger.as_ref(), false), refused);
        }
        let done = Owner { succeeds: Some(Token(7)), ..owner("xen-2", "boot-1", 9) };
        assert_eq!(steal.decide(Some(&done), true), Decision::Answer(Steal::Stolen(Token(9))));
    }

    #[test]
    fn a_host_that_is_live_or_not_fenced_is_not_dead_and_one_that_is_not_live_gets_nothing() {
        let (from, to) = (at("xen-1", "boot-1"), at("xen-2", "boot-1"));
        let steal = StealVerb { vm: VM, from: &from, token: Token(7), to: &to };
        let found = |keys: &[Key]| {
            let entry = Entry { value: Vec::new(), mod_revision: 1 };
            keys.iter().map(|key| (key.clone(), entry.clone())).collect::<BTreeMap<_, _>>()
        };
        let (alive, fenced, there) =
            (Key::Live(from.clone()), Key::Fenced(from.clone()), Key::Live(to.clone()));
        for (keys, answer) in [
            (vec![KEY, alive.clone(), fenced.clone(), there.clone()], Some(Steal::NotDead)),
            (vec![KEY, there.clone()], Some(Steal::NotDead)),
            (vec![KEY, fenced.clone()], Some(Steal::NobodyThere)),
            (vec![KEY, fenced, there], None),
        ] {
            assert_eq!(steal.refused(&found(&keys)), answer, "{keys:?}");
        }
    }
}
