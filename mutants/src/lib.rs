//! Faults that are built in on purpose: each takes one thing away that a promise of KubeXen rests on. A suite that does not find
//! all of them proves less than it seems to.
//!
//! A place where a mutant differs asks [`Mutant::is_active`]. That is a constant `false` unless the feature `selectable` is on,
//! which only `cargo xtask mutants` builds with.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Mutant {
    /// An owner record hangs on the lease of its host, and is gone with it.
    OwnerOnLease = 1,
    /// That the store knows a lease no more counts as an answer like any other.
    EndedLeaseIgnored,
    /// The deadline counts from when an answer came, not from when it was asked for.
    DeadlineFromAnswer,
    /// A boot counts as dead the moment that its lease is seen gone.
    NoGrace,
    /// The grace is measured by the time of day.
    WallClock,
    /// A guest is stolen from a boot that no record says is dead.
    StealWithoutFence,
    /// A guest that comes runs before the store says that it may.
    UnpauseBeforeCommit,
    /// A guest that was to leave runs on before the store says that it stays.
    ResumeWithoutAbort,
    /// Whose a guest is that moves is taken from what the host remembers.
    OwnerFromMemory,
    /// A transaction does not compare the token that was seen.
    TokenNotCompared,
    /// An owner at another boot of the same host is taken for this one.
    BootNotCompared,
    /// What is missing from a new list stays in the mirror.
    RelistWithoutDiff,
    /// The object is let go while the host still has its disks.
    FinalizerBeforeDetach,
    /// An agent that ends disarms the watchdog.
    DisarmAtExit,
    /// JOIN does not compare the host's own key.
    JoinOverLaterJoin,
    /// A lease is renewed on although the host may be live on another one.
    LostJoinForgotten,
    /// A guest gets another token while it is being sent or saved.
    GuardDuringSession,
    /// However many hosts are silent at once, all are fenced.
    NoStormBrake,
    /// Guarded guests are left to the watchdog, which takes the whole host.
    GuestsNotStopped,
    /// The watchdog is never armed.
    WatchdogNotArmed,
    /// A host that asks for a shorter lease keeps the longer deadline until it is told that it has it.
    OldDeadlineKept,
    /// A store that was restored is taken for the one that was.
    FreezeIgnored,
    /// Guests that nobody promised to stop are stolen too.
    UnguardedStolen,
    /// A guest is started although the store says that it is another's.
    StartWithoutOwner,
    /// A guest is given disks that another guest has.
    DiskNotClaimed,
    /// A guest that is saved is booted afresh.
    SavedStartedAfresh,
    /// A fenced boot comes back to life.
    FencedMayJoin,
    /// A guest is given user data that was copied for an earlier Domain of its name.
    OldUserDataRead,
    /// A guest runs on from any copy of it that is here, once the store says that it is this host's.
    ClaimOldCopy,
    /// The Domain of a copy that a move left on a dead host is taken away with what the host guarded.
    CopyForgotten,
    /// A boot is fenced although it is live again.
    FencedWhileLive,
    /// A guest goes on at its destination while writes of its source are under way.
    SourceNotQuiet,
    /// A Domain is deleted for what a machine said that has changed since.
    DeletedUnasked,
    /// The watchdog resets the host before its deadline.
    WatchdogTooSoon,
    /// The watchdog resets the host long after its deadline.
    WatchdogTooLate,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 35] = [
        Self::OwnerOnLease,
        Self::EndedLeaseIgnored,
        Self::DeadlineFromAnswer,
        Self::NoGrace,
        Self::WallClock,
        Self::StealWithoutFence,
        Self::UnpauseBeforeCommit,
        Self::ResumeWithoutAbort,
        Self::OwnerFromMemory,
        Self::TokenNotCompared,
        Self::BootNotCompared,
        Self::RelistWithoutDiff,
        Self::FinalizerBeforeDetach,
        Self::DisarmAtExit,
        Self::JoinOverLaterJoin,
        Self::LostJoinForgotten,
        Self::GuardDuringSession,
        Self::NoStormBrake,
        Self::GuestsNotStopped,
        Self::WatchdogNotArmed,
        Self::OldDeadlineKept,
        Self::FreezeIgnored,
        Self::UnguardedStolen,
        Self::StartWithoutOwner,
        Self::DiskNotClaimed,
        Self::SavedStartedAfresh,
        Self::FencedMayJoin,
        Self::OldUserDataRead,
        Self::ClaimOldCopy,
        Self::CopyForgotten,
        Self::FencedWhileLive,
        Self::SourceNotQuiet,
        Self::DeletedUnasked,
        Self::WatchdogTooSoon,
        Self::WatchdogTooLate,
    ];

    /// Whether the program is to behave as this mutant does.
    #[cfg(not(feature = "selectable"))]
    #[inline]
    #[must_use]
    pub const fn is_active(self) -> bool {
        false
    }

    /// Whether the program is to behave as this mutant does.
    #[cfg(feature = "selectable")]
    #[must_use]
    pub fn is_active(self) -> bool {
        selected::ACTIVE.load(std::sync::atomic::Ordering::Relaxed) == self as u8
    }
}

/// An instant that follows the wall clock, for the mutant that measures time by it: so many milliseconds after the epoch.
#[must_use]
pub fn wall_clock(milliseconds: i64) -> Instant {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    *EPOCH + Duration::from_millis(milliseconds.unsigned_abs())
}

#[cfg(feature = "selectable")]
pub use selected::select;

#[cfg(feature = "selectable")]
mod selected {
    use super::Mutant;
    use std::sync::atomic::{AtomicU8, Ordering};

    pub(super) static ACTIVE: AtomicU8 = AtomicU8::new(0);

    /// The whole process behaves as this mutant from now on; as it should, with none.
    pub fn select(mutant: Option<Mutant>) {
        ACTIVE.store(mutant.map_or(0, |mutant| mutant as u8), Ordering::Relaxed);
    }
}
