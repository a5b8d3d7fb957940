//! What can happen, and when.

use crate::state::Call;

/// What happens next. A number names a host, a virtual machine or a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time goes on: watchdogs, ends of leases, renewals and the ladder are due.
    Tick,
    /// An agent looks at its ladder once more before the next tick, when so many quarters of this one have passed.
    Ladder(usize, u32),
    /// A host loses its power.
    Crash(usize),
    /// A host that is off boots.
    Boot(usize),
    /// A dom0 stands still.
    Stall(usize),
    /// It goes on.
    Unstall(usize),
    /// A host is cut from the store.
    Cut(usize),
    /// It reaches the store again.
    Mend(usize),
    /// The store answers nobody, and no lease ends.
    Outage,
    /// It answers again, under a new leader.
    OutageEnds,
    /// The store has a new leader: every lease gets its whole time anew, and the old leader goes on for a while.
    StoreLeader,
    /// An agent joins with a new lease.
    Join(usize),
    /// The same, and the transaction is delayed, doubled or lost.
    JoinLost(usize),
    /// An agent renews its lease.
    Renew(usize),
    /// The same, and the answer is slow.
    RenewSlow(usize),
    /// The same, and the leader that acknowledges it was deposed, so that the lease lasts no longer for it.
    RenewDeposed(usize),
    /// The slow answer comes.
    Answer(usize),
    /// A host calls a verb.
    Call(usize, usize, Call),
    /// The same, and the transaction is delayed, doubled or lost.
    CallLost(usize, usize, Call),
    /// A host learns what became of its lost call.
    Resolve(usize, usize),
    /// A transaction that was thought lost is executed.
    Deliver(usize),
    /// A host suspends a guest, and sends it to another one.
    Depart(usize, usize, usize),
    /// The destination runs the guest if it owns it.
    Unpause(usize, usize),
    /// The destination drops the guest because it does not own it.
    Drop(usize, usize),
    /// A write of a host that was reset reaches the disk.
    LateWrite(usize),
    /// A controller looks.
    Look(usize),
    /// A controller has lost its leadership for a moment.
    NewTerm(usize),
    /// A controller fences the present boot of a host, or the one before it.
    Fence(usize, usize, usize),
    /// The same, and the transaction is delayed, doubled or lost.
    FenceLost(usize, usize, usize),
    /// A person says that a host is off, which it is, and a controller fences it for that.
    Confirm(usize, usize),
    /// A controller gives a virtual machine to a host.
    Steal(usize, usize),
    /// The same, and the transaction is delayed, doubled or lost.
    StealLost(usize, usize),
    /// A person says that a host may join again with its present boot, or the one before it.
    Unfence(usize, usize),
    /// The same, and the transaction is delayed, doubled or lost.
    UnfenceLost(usize, usize),
}
