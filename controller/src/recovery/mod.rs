//! Recovery: guests of a dead host run again elsewhere, and never twice.
//!
//! ```text
//!   pool store ── roll, owners ──▶ watch ──▶ Judge ──▶ decide ──▶ fence · unfence
//!                                    │                               │
//!                                    ▼                               ▼
//!                                  Board: who is dead, what it owned, whose turn it is
//!                                    │
//!          ┌─────────────────────────┼─────────────────────────────┐
//!          ▼                         ▼                             ▼
//!   VirtualMachine look        Host look                     Pool look
//!   asks for a host, steals,   Ready=False/Fenced,           silentHosts, Recovering
//!   starts the guest there     how its guests came back
//! ```
//!
//! # What it watches
//! The pool's store, every second of a term, and when a boot is due; the Pool's policy; what operators say in `spec.fencing` of
//! Hosts, and what speaks against it ([`words`]).
//!
//! # What it decides
//! Which boots are fenced and unfenced, and whose fence records are not needed any more ([`decide`]), and what each machine is told of its host's death ([`loss`]) and of its
//! turn ([`turns`]). All of it is pure. A machine is stolen, and started, by its own look, so that it has one writer.
//!
//! # Guarantees
//! - Nothing is stolen from a boot that is not fenced; a boot is fenced only if it was not live for the whole grace on this
//!   process' clock, or a person says so, and never while it is live.
//! - A person's word is not followed against plain evidence, and is followed once.
//! - Of a boot whose lease merely ended, only what it guarded is stolen.
//! - No machine holds those of a higher order for ever.
//! - What this process knows of a boot's silence is thrown away when it could not read the store for a while, and when a term
//!   begins.
//! - A store that was restored from a backup decides nothing, by what it says of itself, until an operator has confirmed it and
//!   all hosts have put on record what they run ([`epoch`]).
//! - A machine that the store calls saved to a disk that is gone can be started ([`saved`]).
//! - Without a pool store nothing happens here, and the Pool says so.
//!
//! # What it writes
//! Fence records and the epoch in the pool's store, from which it discards saved guests whose disk is gone; events. The objects
//! are written by their own looks.

mod board;
mod decide;
mod epoch;
mod followers;
mod loss;
mod publish;
mod saved;
mod say;
mod times;
mod turns;
mod votes;
mod watch;
mod words;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kubexen_ownership::{OwnershipStore, liveness::Liveness};

use crate::context::Context;

pub(crate) use board::{Board, Given};
pub(crate) use loss::{Hold, Loss, LossKind};
pub(crate) use say::{
    availability_of_host, epoch_words, fencing_of_host, note, pool_words, recovery_of_host, redundant_words,
};
pub(crate) use times::fenced_at;
pub(crate) use votes::{Obstacle, Quorum, Votes, bounds, obstacle};

/// Recovers for a term of leadership, for ever; returns at once where there is no store.
pub(crate) async fn run(context: &Context) {
    tokio::join!(watch::run(context), saved::run(context));
}

/// The pool's store, as the controller uses it.
#[derive(Clone)]
pub struct PoolStore {
    /// Who may run each virtual machine.
    pub ownership: Arc<dyn OwnershipStore>,
    /// Which hosts are alive.
    pub liveness: Arc<dyn Liveness>,
}

impl fmt::Debug for PoolStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolStore").finish_non_exhaustive()
    }
}

/// What recovery works with, and what it knows.
#[derive(Debug)]
pub(crate) struct Recovery {
    store: Option<PoolStore>,
    /// Who writes fence records.
    by: String,
    board: Mutex<Board>,
}

impl Recovery {
    /// Knows nothing yet.
    pub(crate) fn new(store: Option<PoolStore>, by: String) -> Self {
        Self { store, by, board: Mutex::default() }
    }

    /// The pool's store, if there is one.
    pub(crate) fn store(&self) -> Option<&PoolStore> {
        self.store.as_ref()
    }

    /// What is known at this moment. Not to be held across an await.
    pub(crate) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything, at the beginning of a term.
    pub(crate) fn clear(&self) {
        *self.board() = Board::default();
    }
}
