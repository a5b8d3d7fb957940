//! Suspension: a guest goes to a disk, frees what it used of its host, and goes on later, on any host that reaches the disk.
//!
//! ```text
//!   save                                        resume
//!   ────                                        ──────
//!   clear the volume                            RESUME in the pool's store
//!   suspend ══ the guest ══▶ the volume         restore ◀══ the guest ══ the volume: whole, paused
//!   its disks are quiet, the volume is whole    RUN in the pool's store: the volume is good for nothing
//!   SAVE in the pool's store                    claim, run
//!   destroy
//! ```
//!
//! As with a move, a session may end at any point, with its agent or its host: what then becomes of the guest is decided
//! from the pool's store and the hypervisor alone, in [`crate::domain::saves`]. The store keeps everybody from starting
//! afresh what is saved, and from resuming it twice.
//!
//! `state` is how the volume holds the guest.

mod resuming;
mod saving;
mod state;

pub(crate) use resuming::Resuming;
pub(crate) use saving::Saving;

/// Bytes between the hypervisor and the volume.
const BUFFER: usize = 1 << 20;
