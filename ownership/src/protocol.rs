//! The protocol as data: what each verb does to which state, decided without I/O, clock or randomness.
//!
//! A verb sees the record, and answers or asks for one transaction. The transaction compares everything that the
//! decision rests on, so it takes effect only if that still holds; otherwise the store reports what it found
//! instead, and the verb decides anew.
//!
//! ```text
//! START    absent                          → put me
//!          mine, at this boot              → nothing to do
//!          mine, at an earlier boot        → put me, if unchanged
//!          another host's                  → refused
//! RELEASE  mine, under this token          → delete, if unchanged
//!          anything else                   → not the owner
//! ```

use std::collections::BTreeMap;

use crate::names::{HostBoot, Owner, Phase, Token, VmUid};
use crate::record::{Entry, Key, encode};
use crate::store::{Release, Start};

/// A condition on one key, true or false at the moment at which a transaction is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist: its `create_revision` is 0.
    Absent(Key),
    /// The key exists, and was last written at this revision.
    Unchanged {
        /// The key.
        key: Key,
        /// The `mod_revision` it must have.
        mod_revision: u64,
    },
}

impl Compare {
    /// The key that is compared.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Absent(key) | Self::Unchanged { key, .. } => *key,
        }
    }
}

/// A change to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// The key is to hold this value.
    Put {
        /// The key.
        key: Key,
        /// The value.
        value: Vec<u8>,
    },
    /// The key is to be gone.
    Delete(Key),
}

/// Writes that take effect together, at one revision, if all conditions hold, and otherwise not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What then happens.
    pub writes: Vec<Write>,
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect at this revision, which is now the `mod_revision` of every key that it put.
    Committed {
        /// The revision.
        revision: u64,
    },
    /// A condition did not hold, and nothing changed; with what the compared keys held, absent ones left out.
    Refused(BTreeMap<Key, Entry>),
}

/// What a verb makes of the record it was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<A> {
    /// The verb is done.
    Answer(A),
    /// This is to be executed.
    Commit(Transaction),
}

/// One verb, with its arguments.
pub trait Verb {
    /// What the caller learns.
    type Answer;

    /// Its name, for messages.
    fn name(&self) -> &'static str;

    /// The virtual machine it is about.
    fn vm(&self) -> VmUid;

    /// What to do, given the owner of the virtual machine.
    ///
    /// `unresolved` says that a transaction of this same verb was sent before, and that its answer was lost: what is
    /// seen may be its own work.
    fn decide(&self, owner: Option<&Owner>, unresolved: bool) -> Decision<Self::Answer>;

    /// The answer once its transaction took effect, at `revision`.
    fn committed(&self, revision: u64) -> Self::Answer;
}

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
        let key = Key::Owner(self.vm);
        let condition = match owner {
            None => Compare::Absent(key),
            Some(owner) if owner.host != self.me.host => {
                return Decision::Answer(Start::Refused(owner.clone()));
            }
            Some(owner) if owner.boot_id != self.me.boot_id => {
                Compare::Unchanged { key, mod_revision: owner.token.0 }
            }
            // The record was not mine when the lost transaction was sent, so it became mine since.
            Some(owner) if unresolved => return Decision::Answer(Start::Acquired(owner.token)),
            Some(owner) => return Decision::Answer(Start::AlreadyMine(owner.token)),
        };
        let value = encode(self.me, Phase::Running);
        Decision::Commit(Transaction { compares: vec![condition], writes: vec![Write::Put { key, value }] })
    }

    fn committed(&self, revision: u64) -> Start {
        Start::Acquired(Token(revision))
    }
}

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
        let key = Key::Owner(self.vm);
        match owner {
            // The boot is not compared: a record of mine from an earlier boot is of a domain that died with it.
            Some(owner) if owner.token == self.token && owner.host == self.me.host => {
                let condition = Compare::Unchanged { key, mod_revision: self.token.0 };
                Decision::Commit(Transaction { compares: vec![condition], writes: vec![Write::Delete(key)] })
            }
            // A transaction was sent only after the record had been seen under this token. It is not any more, and
            // it cannot come back, because tokens only grow: what was asked for is so.
            None | Some(_) if unresolved => Decision::Answer(Release::Released),
            None | Some(_) => Decision::Answer(Release::NotOwner(owner.cloned())),
        }
    }

    fn committed(&self, _revision: u64) -> Release {
        Release::Released
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::names::{BootId, HostName};

    const VM: VmUid = VmUid(Uuid::from_u128(1));
    const KEY: Key = Key::Owner(VM);

    fn at(host: &str, boot: &str) -> HostBoot {
        HostBoot { host: HostName::new(host).unwrap(), boot_id: BootId::new(boot).unwrap() }
    }

    fn owner(host: &str, boot: &str, token: u64) -> Owner {
        let HostBoot { host, boot_id } = at(host, boot);
        Owner { host, boot_id, phase: Phase::Running, token: Token(token) }
    }

    #[test]
    fn start_takes_what_is_absent_or_mine_from_an_earlier_boot_and_nothing_else() {
        let me = at("xen-1", "boot-2");
        let put = Write::Put { key: KEY, value: encode(&me, Phase::Running) };
        let commit =
            |compare| Decision::Commit(Transaction { compares: vec![compare], writes: vec![put.clone()] });
        let start = StartVerb { vm: VM, me: &me };

        for unresolved in [false, true] {
            assert_eq!(start.decide(None, unresolved), commit(Compare::Absent(KEY)));
            assert_eq!(
                start.decide(Some(&owner("xen-1", "boot-1", 7)), unresolved),
                commit(Compare::Unchanged { key: KEY, mod_revision: 7 })
            );
            // An equal boot id on another host is another boot.
            for other in [owner("xen-2", "boot-1", 7), owner("xen-2", "boot-2", 7)] {
                let refused = Decision::Answer(Start::Refused(other.clone()));
                assert_eq!(start.decide(Some(&other), unresolved), refused);
            }
        }
        let mine = owner("xen-1", "boot-2", 7);
        assert_eq!(start.decide(Some(&mine), false), Decision::Answer(Start::AlreadyMine(Token(7))));
        assert_eq!(start.decide(Some(&mine), true), Decision::Answer(Start::Acquired(Token(7))));
    }

    #[test]
    fn release_deletes_only_what_is_mine_under_this_token() {
        let me = at("xen-1", "boot-2");
        let release = ReleaseVerb { vm: VM, me: &me, token: Token(7) };
        let delete = Decision::Commit(Transaction {
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
