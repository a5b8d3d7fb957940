//! Faults of the protocol itself, each of which the model must find.

use kubexen_ownership::Key;
use kubexen_ownership::protocol::{Compare, Transaction, Write};

/// What is wrong with the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Whoever sees a host gone steals from it, without the fence record.
    StealWithoutFence,
    /// The end of a lease is taken for the end of guests that nobody guarded.
    StealUnguarded,
    /// Owner records hang on the lease of their host.
    OwnerKeyOnLease,
    /// The deadline counts from when a renewal was answered.
    DeadlineFromReceipt,
    /// The deadline is as long as the lease.
    DeadlineOfTheLease,
    /// The controller does not wait after it has seen a host gone.
    NoGrace,
    /// The controller counts the grace from before a time in which it did not look.
    BlindRemembers,
    /// The destination of a migration runs the guest without having seen itself as the owner.
    UnpauseBeforeCommit,
    /// The source of a migration runs the guest again when the answer to COMMIT is lost.
    ResumeOnTimeout,
    /// The source of a migration runs the guest again when it reads that it is the owner, without ABORT.
    ResumeOnRead,
    /// Transactions do not compare what the owner record was when they were decided.
    OwnerUncompared,
    /// A renewal of a lease that has ended is taken for one that succeeded.
    TtlZeroIgnored,
    /// FENCE does not compare that the host is not live.
    FenceWhileLive,
    /// JOIN does not compare that the boot is not fenced.
    JoinWhenFenced,
    /// JOIN does not compare what the live key held.
    JoinOverAnother,
    /// The watchdog is not armed for guarded guests.
    NoWatchdog,
    /// A promise counts as taken back where the record does not have it, and one that was made before may be under way.
    TakenBackByReading,
    /// The token is the version of the key, which begins anew when the key does.
    TokenOfTheKey,
}

impl Flaw {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::StealWithoutFence,
        Self::StealUnguarded,
        Self::OwnerKeyOnLease,
        Self::DeadlineFromReceipt,
        Self::DeadlineOfTheLease,
        Self::NoGrace,
        Self::BlindRemembers,
        Self::UnpauseBeforeCommit,
        Self::ResumeOnTimeout,
        Self::ResumeOnRead,
        Self::OwnerUncompared,
        Self::TtlZeroIgnored,
        Self::FenceWhileLive,
        Self::JoinWhenFenced,
        Self::JoinOverAnother,
        Self::NoWatchdog,
        Self::TakenBackByReading,
        Self::TokenOfTheKey,
    ];

    /// What the protocol would send if it had this fault.
    pub fn spoil(self, transaction: &mut Transaction) {
        let joins = transaction.writes.iter().any(|write| matches!(write, Write::PutLeased { .. }));
        let fences =
            transaction.writes.iter().any(|write| matches!(write, Write::Put { key: Key::Fenced(_), .. }));
        transaction.compares.retain(|compare| {
            let key = compare.key();
            let dropped = match self {
                Self::StealWithoutFence => matches!(compare, Compare::Present(Key::Fenced(_))),
                Self::OwnerUncompared => matches!(key, Key::Owner(_)),
                Self::FenceWhileLive => fences && matches!(key, Key::Live(_)),
                Self::JoinWhenFenced => joins && matches!(key, Key::Fenced(_)),
                Self::JoinOverAnother => joins && matches!(key, Key::Live(_)),
                Self::StealUnguarded
                | Self::OwnerKeyOnLease
                | Self::DeadlineFromReceipt
                | Self::DeadlineOfTheLease
                | Self::NoGrace
                | Self::BlindRemembers
                | Self::UnpauseBeforeCommit
                | Self::ResumeOnTimeout
                | Self::ResumeOnRead
                | Self::TtlZeroIgnored
                | Self::NoWatchdog
                | Self::TakenBackByReading
                | Self::TokenOfTheKey => false,
            };
            !dropped
        });
    }
}
