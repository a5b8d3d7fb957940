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
//!          another host's, or not running  → refused
//! RELEASE  mine, under this token          → delete, if unchanged
//!          anything else                   → not the owner
//! COMMIT   the source's, under this token  → put the destination as its successor, if unchanged
//!          anything else                   → refused
//! ABORT    mine, under this token          → put me, if unchanged
//!          anything else                   → refused
//! SAVE     mine, under this token          → put "saved", if unchanged
//!          anything else                   → refused
//! RESUME   saved in this disk              → put me, resuming, if unchanged
//!          mine, resuming, at this boot    → nothing to do
//!          mine, resuming, earlier boot    → put me, resuming, if unchanged
//!          anything else                   → refused
//! RUN      mine, resuming, this token      → put me, if unchanged
//!          anything else                   → refused
//! DISCARD  saved in this disk              → delete, if unchanged
//!          being resumed from this disk    → refused
//!          anything else                   → nothing to do
//! ```
//!
//! RELEASE, COMMIT and ABORT are for what runs. SAVE also gives back what was to be resumed.
//!
//! ```text
//! GUARD    mine, under this token          → put me, guarded, if unchanged, and this boot is live; or not guarded, if unchanged
//!          mine, guarded as asked for      → nothing to do
//!          anything else                   → refused
//! STEAL    the dead host's, this token     → put the new host as its successor, if unchanged, and the dead boot is fenced
//!                                            and not live, and the new host is live
//!          anything else                   → refused
//! ```
//!
//! In a store that was restored from a backup and is not confirmed, nothing of this is done, and only this is:
//!
//! ```text
//! RECLAIM  absent                          → put me, if the epoch is unchanged too
//!          mine                            → put me as it is now, if that differs
//!          another host's, it runs here    → put me, if unchanged
//!          another host's                  → refused
//! ```
//!
//! Whatever else writes a record leaves it unguarded: what one host promised binds no other.

mod abort;
mod commit;
mod guard;
mod reclaim;
mod release;
#[cfg(test)]
mod samples;
mod saved;
mod start;
mod steal;

use std::collections::BTreeMap;

use kubexen_mutants::Mutant;

pub use self::abort::AbortVerb;
pub use self::commit::CommitVerb;
pub use self::guard::GuardVerb;
pub use self::reclaim::ReclaimVerb;
pub use self::release::ReleaseVerb;
pub use self::saved::{DiscardVerb, ResumeVerb, RunVerb, SaveVerb};
pub use self::start::StartVerb;
pub use self::steal::StealVerb;
use crate::names::{HostBoot, LeaseId, Owner, Phase, VmUid};
use crate::record::{Entry, Key, encode};

/// A condition on one key, true or false at the moment at which a transaction is executed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Compare {
    /// The key does not exist: its `create_revision` is 0.
    Absent(Key),
    /// The key exists.
    Present(Key),
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
            Self::Absent(key) | Self::Present(key) | Self::Unchanged { key, .. } => key.clone(),
        }
    }
}

/// A change to one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    /// The key is to hold this value.
    Put {
        /// The key.
        key: Key,
        /// The value.
        value: Vec<u8>,
    },
    /// The key is to hold this value as long as this lease lasts.
    PutLeased {
        /// The key.
        key: Key,
        /// The value.
        value: Vec<u8>,
        /// The lease. If there is no such lease, the transaction is refused for good.
        lease: LeaseId,
    },
    /// The key is to be gone.
    Delete(Key),
}

impl Write {
    /// The key that is changed.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Put { key, .. } | Self::PutLeased { key, .. } | Self::Delete(key) => key.clone(),
        }
    }
}

/// Writes that take effect together, at one revision, if all conditions hold, and otherwise not at all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    Executed {
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
    Execute(Transaction),
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
    fn executed(&self, revision: u64) -> Self::Answer;

    /// The answer if a condition on another key than the owner's did not hold, given what the compared keys hold. Default:
    /// there are no such conditions, and the verb decides anew.
    fn refused(&self, _found: &BTreeMap<Key, Entry>) -> Option<Self::Answer> {
        None
    }
}

/// The decision to have `new` run `vm`, after nobody else, if `condition` holds.
fn put_owner<A>(vm: VmUid, new: &HostBoot, condition: Compare) -> Decision<A> {
    put(vm, encode(new, Phase::Running, false, None), vec![condition])
}

/// The decision that this value says who owns `vm`, if all of this holds.
fn put<A>(vm: VmUid, value: Vec<u8>, compares: Vec<Compare>) -> Decision<A> {
    let write = Write::Put { key: Key::Owner(vm), value };
    Decision::Execute(Transaction { compares, writes: vec![write] })
}

/// The condition that `owner` still owns `vm` under the token it was seen with.
fn unchanged(vm: VmUid, owner: &Owner) -> Compare {
    if Mutant::TokenNotCompared.is_active() {
        return Compare::Present(Key::Owner(vm));
    }
    Compare::Unchanged { key: Key::Owner(vm), mod_revision: owner.token.0 }
}
