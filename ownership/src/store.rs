//! The seam: what the controller and the agents ask of ownership, whichever store answers.

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;

use crate::disk::DiskUid;
use crate::liveness::Standing;
use crate::names::{HostBoot, Owner, Token, VmUid};
use crate::record::Key;

/// The answer to [`OwnershipStore::start`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The host owns the virtual machine from this call on.
    ///
    /// Also when it was the owner at an earlier boot: that it rebooted proves the domain of that boot dead.
    Acquired(Token),
    /// The host owned it already, at this boot: a domain of it may exist.
    AlreadyMine(Token),
    /// Another host owns it.
    Refused(Owner),
}

/// The answer to [`OwnershipStore::release`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// The virtual machine is no longer owned under this token.
    Released,
    /// The host did not own it under this token, and nothing changed; with the present owner, if there is one.
    NotOwner(Option<Owner>),
}

/// The answer to [`OwnershipStore::commit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commit {
    /// The destination owns the virtual machine.
    Committed(Token),
    /// The source does not own it under this token, and this call changed nothing that still stands; with the present
    /// owner, if there is one. That owner is the destination when an earlier call did the hand-over.
    Refused(Option<Owner>),
}

/// The answer to [`OwnershipStore::abort`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Abort {
    /// The host owns the virtual machine under this new token, and no commit under an older one will take effect.
    Aborted(Token),
    /// The host does not own it under this token, and this call changed nothing that still stands; with the present
    /// owner, if there is one. That owner is the host itself, under a greater token, when an earlier call renewed it.
    Refused(Option<Owner>),
}

/// The answer to [`OwnershipStore::save`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Save {
    /// The guest is what the disk holds, and nobody runs it.
    Saved(Token),
    /// The host does not own it under this token, and this call changed nothing that still stands; with the present
    /// owner, if there is one.
    Refused(Option<Owner>),
}

/// The answer to [`OwnershipStore::resume`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The host owns the virtual machine, whose guest is still in the disk.
    Resuming(Token),
    /// The guest is not in that disk, or another host resumes it; with the present owner, if there is one.
    Refused(Option<Owner>),
}

/// The answer to [`OwnershipStore::run`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// The host runs the virtual machine, and what the disk holds is good for nothing any more.
    Running(Token),
    /// The host does not resume it under this token, and this call changed nothing that still stands; with the present
    /// owner, if there is one. That owner is the host itself, running it, when an earlier call did this.
    Refused(Option<Owner>),
}

/// The answer to [`OwnershipStore::discard`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discard {
    /// Nobody will resume anything from the disk.
    Discarded,
    /// This host is resuming the guest from the disk.
    Refused(Owner),
}

/// The answer to [`OwnershipStore::guard`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The record says so, under this token, and no earlier call will make it say otherwise.
    Written(Token),
    /// The host is not live, so it can promise nothing. The record did not change; what an earlier transaction of this call may do
    /// to it is not known.
    NotLive,
    /// The host does not own it under this token, and this call changed nothing that still stands; with the present
    /// owner, if there is one.
    Refused(Option<Owner>),
}

/// The answer to [`OwnershipStore::steal`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Steal {
    /// The new host owns the virtual machine.
    Stolen(Token),
    /// The dead host does not own it under this token, and this call changed nothing that still stands; with the present
    /// owner, if there is one.
    Refused(Option<Owner>),
    /// The host that was taken for dead is live, or is not fenced; nothing changed.
    NotDead,
    /// The host that is to have it is not live; nothing changed.
    NobodyThere,
}

/// The answer to [`OwnershipStore::reclaim`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// The record names the host, under this token.
    Reclaimed(Token),
    /// The record names another host, which may be right.
    Refused(Owner),
    /// The store is not as it was seen any more; nothing changed.
    Over,
}

/// The answer to [`OwnershipStore::claim_disk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimDisk {
    /// The disk is the virtual machine's, as long as that has an owner.
    Claimed,
    /// Another virtual machine, which has an owner, has the disk.
    HeldBy(VmUid),
    /// The disk was retired: its data is being deleted.
    Retired,
    /// The claimer does not own the virtual machine under this token.
    NotOwner,
}

/// The answer to [`OwnershipStore::retire_disk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetireDisk {
    /// No claim of the disk succeeds any more.
    Retired,
    /// This virtual machine, which has an owner, has the disk.
    HeldBy(VmUid),
}

/// The answer to [`OwnershipStore::forget_disk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForgetDisk {
    /// The store says nothing of the disk any more.
    Forgotten,
    /// This virtual machine, which has an owner, has the disk.
    HeldBy(VmUid),
}

/// Who may run each virtual machine of the pool, and which of them has each shared disk.
///
/// Every method is linearizable: its answer is true of a moment between the call and the answer, whichever clients
/// call at the same time. Every method ends within a bound that the store states. Dropping a call before its answer
/// leaves its effect unknown, as a crash would; asking again settles it, because every verb may be repeated.
#[async_trait]
pub trait OwnershipStore: Send + Sync + fmt::Debug {
    /// The owner of `vm`; nothing when no host may run it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when there is a record that cannot be read. Else as every method: [`StoreError`].
    async fn owner(&self, vm: VmUid) -> Result<Option<Owner>, StoreError>;

    /// All owners, as of one moment, in a store that was restored and is not confirmed too: then they may be old.
    ///
    /// A record that cannot be read is left out and logged, so that it harms no other virtual machine. To learn that
    /// a virtual machine has no owner, ask [`OwnershipStore::owner`].
    ///
    /// # Errors
    /// [`StoreError`].
    async fn owners(&self) -> Result<BTreeMap<VmUid, Owner>, StoreError>;

    /// The virtual machines that shared disks are on record for, as of one moment; retired disks are left out, and so are records that
    /// cannot be read. Such a claim counts only as long as its machine has an owner.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn disks(&self) -> Result<BTreeMap<DiskUid, VmUid>, StoreError>;

    /// Makes `me` the owner of `vm`, unless another host is.
    ///
    /// To be called before the domain is created, and obeyed: after [`Start::Refused`] no domain may be. The call
    /// repeats a lost write only after a linearizable read has shown it undone. The network may still deliver the
    /// first copy long after: it then finds the key taken and changes nothing, or, if the owner has released it
    /// since, names the same owner once more. That is safe, and an owner that finds itself named for a virtual
    /// machine that it is not to run releases it.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when `me` may or may not be the owner now. Else [`StoreError`].
    async fn start(&self, vm: VmUid, me: &HostBoot) -> Result<Start, StoreError>;

    /// Gives `vm` up, if `me` owns it under `token`, at this boot or an earlier one.
    ///
    /// To be called only after the domain is confirmed gone. The token makes a release that is late, or repeated,
    /// harmless to whoever owns the virtual machine then. After [`StoreError::Unknown`] repeat it until it is answered
    /// before a start: a copy that is still under way would end the ownership that [`Start::AlreadyMine`] names.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it may or may not have been given up. Else [`StoreError`].
    async fn release(&self, vm: VmUid, me: &HostBoot, token: Token) -> Result<Release, StoreError>;

    /// Makes `to` the owner of `vm`, if `from` owns it under `token`.
    ///
    /// To be called when the domain is suspended at the source and restored, paused, at the destination. The
    /// destination unpauses it only after its own [`OwnershipStore::owner`] has shown it as the owner, whoever called
    /// this and whatever the answer was.
    ///
    /// The network may deliver a copy of the transaction long after, even after [`StoreError::Unknown`]. While the
    /// record is `from`'s under `token`, that copy hands the virtual machine over; once the record was written again
    /// it does nothing, because it compares the token and no token comes back. So from this call on, the source must
    /// not resume the domain before [`OwnershipStore::abort`] has written the record anew: [`Start::AlreadyMine`] is
    /// no leave to do so.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when `to` may or may not be the owner now, or may yet become it. Else [`StoreError`].
    async fn commit(
        &self,
        vm: VmUid,
        from: &HostBoot,
        token: Token,
        to: &HostBoot,
    ) -> Result<Commit, StoreError>;

    /// Keeps `vm` with `me` under a new token, if `me` owns it under `token`.
    ///
    /// The source of a hand-over resumes its domain only after [`Abort::Aborted`]. A late copy of a commit is harmless
    /// from then on, and so is a late copy of an abort: each compares the old token. When [`Abort::Refused`] names
    /// `me` under another token, abort that one.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it may or may not have been kept; the domain must not be resumed. Else
    /// [`StoreError`].
    async fn abort(&self, vm: VmUid, me: &HostBoot, token: Token) -> Result<Abort, StoreError>;

    /// Writes down that all of the guest is in `disk`, if `me` owns `vm` under `token`. Nobody can start it afresh from
    /// then on.
    ///
    /// To be called when the domain is suspended and all of it is stored for good, or, after a [`OwnershipStore::resume`],
    /// when the guest is not to be resumed after all and no domain of it is left. The domain is destroyed only after a
    /// read of its own has shown it saved. A guest that is to run on instead does so only after
    /// [`OwnershipStore::abort`]: a copy of this transaction may still be under way.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it may or may not be saved now, or may yet become so. Else [`StoreError`].
    async fn save(&self, vm: VmUid, me: &HostBoot, token: Token, disk: DiskUid) -> Result<Save, StoreError>;

    /// Makes `me` the one who resumes `vm`, if it is saved in `disk`.
    ///
    /// To be called before the domain is built from the disk. The domain must not run before [`OwnershipStore::run`].
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when `me` may or may not be the owner now. Else [`StoreError`].
    async fn resume(&self, vm: VmUid, me: &HostBoot, disk: DiskUid) -> Result<Resume, StoreError>;

    /// Takes the disk's content out of use, if `me` resumes `vm` under `token`.
    ///
    /// To be called when the domain is whole and paused. It may run afterwards, and what is in the disk must never be
    /// resumed again.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it may or may not run now: ask [`OwnershipStore::owner`]. Else [`StoreError`].
    async fn run(&self, vm: VmUid, me: &HostBoot, token: Token) -> Result<Run, StoreError>;

    /// Gives up what is saved of `vm` in `disk`, unless a host is resuming it. Does nothing if nothing is.
    ///
    /// To be called before the content of the disk is deleted, and obeyed.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it may or may not be given up. Else [`StoreError`].
    async fn discard(&self, vm: VmUid, disk: DiskUid) -> Result<Discard, StoreError>;

    /// Writes down whether `me`, who owns `vm` under `token`, has promised to have stopped the guest before its lease can
    /// end.
    ///
    /// To be called only when whatever keeps that promise is armed; and to take the promise back, before it is disarmed. A
    /// promise is made only by a host that is live. It is taken back under a new token in any case, so that no earlier call that
    /// is still under way can make it.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it may or may not be written, or may yet be: keep the promise. Else [`StoreError`].
    async fn guard(&self, vm: VmUid, me: &HostBoot, token: Token, guarded: bool)
    -> Result<Guard, StoreError>;

    /// Makes `to` the owner of `vm`, if the dead `from` owns it under `token`.
    ///
    /// To be called only for a guest that cannot run any more: the record is guarded, or somebody knows better. What `from`
    /// was about to resume from a disk, `to` is about to resume.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when `to` may or may not be the owner now. Else [`StoreError`].
    async fn steal(
        &self,
        vm: VmUid,
        from: &HostBoot,
        token: Token,
        to: &HostBoot,
    ) -> Result<Steal, StoreError>;

    /// Gives a shared disk to `vm`, which the caller owns under `token`.
    ///
    /// To be called before the disk is attached, and obeyed. It need not be given back when the domain ends: the claim ends
    /// with the ownership of `vm`, whoever has that by then.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when `vm` may or may not have the disk now. Else [`StoreError`].
    async fn claim_disk(&self, disk: DiskUid, vm: VmUid, token: Token) -> Result<ClaimDisk, StoreError>;

    /// Puts on record that `me` has a domain of `vm`, in a store that was restored and stands as it was `seen`. With `runs` its
    /// guest may run there at this moment; then no other host's record is right. Has no effect once the store is confirmed.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it may or may not be on record now. Else [`StoreError`].
    async fn reclaim(
        &self,
        vm: VmUid,
        me: &HostBoot,
        runs: bool,
        guarded: bool,
        seen: &Standing,
    ) -> Result<Reclaim, StoreError>;

    /// Ends the claim of `vm` to a shared disk, while `vm` runs on without it. Does nothing if `vm` does not have it.
    ///
    /// To be called only after the disk is detached.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn release_disk(&self, disk: DiskUid, vm: VmUid) -> Result<(), StoreError>;

    /// Takes a shared disk out of use, unless a virtual machine that has an owner has it.
    ///
    /// To be called before the data of the disk is deleted, and obeyed.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it may or may not be retired now. Else [`StoreError`].
    async fn retire_disk(&self, disk: DiskUid) -> Result<RetireDisk, StoreError>;

    /// Removes the record of a shared disk, unless a virtual machine that has an owner has it.
    ///
    /// To be called once its data is gone, or when it is to be nobody's but stays.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it may or may not be removed now. Else [`StoreError`].
    async fn forget_disk(&self, disk: DiskUid) -> Result<ForgetDisk, StoreError>;
}

/// What lies beneath a failure, for logs.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why the store gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store could not be asked. Nothing changed; try again later.
    #[error("the ownership store cannot be reached")]
    Unavailable {
        /// The failure of the last attempt.
        #[source]
        source: Cause,
    },
    /// A write was sent, and whether it took effect could not be learnt. Assume neither; ask again later.
    #[error("whether {verb} took effect for {} is not known", key.subject())]
    Unknown {
        /// What was asked for.
        verb: &'static str,
        /// For whom.
        key: Key,
        /// The failure of the last attempt to learn it.
        #[source]
        source: Cause,
    },
    /// There is a record, and it cannot be read. It says that somebody may own the virtual machine; nothing is changed.
    #[error("the record {key} cannot be read: {reason}")]
    Corrupt {
        /// Where it stands.
        key: Key,
        /// What is wrong with it.
        reason: String,
    },
    /// The record changed under every attempt. Nothing changed by this call; try again.
    #[error("{verb} lost the race for {} too often", key.subject())]
    Contended {
        /// What was asked for.
        verb: &'static str,
        /// For whom.
        key: Key,
    },
    /// The store refused the request for good, by its access rules or as malformed. Nothing changed.
    #[error("the ownership store refused the request")]
    Rejected {
        /// The store's own words.
        #[source]
        source: Cause,
    },
    /// The store was restored from a backup, and no operator has confirmed it: its records may be old. A write that was sent
    /// just then may have taken effect in it.
    #[error("the ownership store was restored from a backup that no operator has confirmed")]
    Frozen,
    /// The connection cannot be made as configured: an endpoint that is no URL, or a certificate that cannot be read.
    #[error("the connection to the ownership store is not configured correctly")]
    Configuration {
        /// What is wrong.
        #[source]
        source: Cause,
    },
}

impl StoreError {
    /// A word for the kind of failure, from a fixed set: for labels of metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "unavailable",
            Self::Unknown { .. } => "unknown",
            Self::Corrupt { .. } => "corrupt",
            Self::Contended { .. } => "contended",
            Self::Rejected { .. } => "rejected",
            Self::Frozen => "frozen",
            Self::Configuration { .. } => "configuration",
        }
    }
}
