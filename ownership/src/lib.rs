//! Who may run a virtual machine.
//!
//! The pool etcd holds one record per virtual machine, at `/kubexen/owners/<vm-uid>`: the host, and the boot of that
//! host, that alone may have a domain of it. The revision at which the record was last written is the ownership
//! [`Token`]; for one virtual machine it only grows. A host asks to [`start`](OwnershipStore::start) before it creates
//! a domain, and [`release`](OwnershipStore::release)s after the domain is confirmed gone; a live migration hands the
//! record over by [`commit`](OwnershipStore::commit), or keeps it by [`abort`](OwnershipStore::abort); a guest that is
//! [`save`](OwnershipStore::save)d to a disk keeps its record, and is [`resume`](OwnershipStore::resume)d from there. In between
//! nothing but the host's own reboot, or the fence record of a dead host, makes a record void: a record is not attached to a
//! lease, because a host that has fallen silent may still run its domains. [`liveness`] tells which hosts are dead, and whose
//! virtual machines may be [`steal`](OwnershipStore::steal)ed therefore: those that the dead host
//! [`guard`](OwnershipStore::guard)ed.
//!
//! ```text
//!   caller ──▶ OwnershipStore ──▶ drive: read ─▶ decide ─▶ execute ─▶ (answer lost: read, decide anew)
//!                                             protocol, pure │
//!                                     EtcdStore, MemoryStore ┘ both execute the same transactions
//! ```
//!
//! [`protocol`] decides and does nothing else. [`EtcdStore`] executes its transactions in etcd, [`MemoryStore`] in a
//! model of etcd, with faults to inject, for simulation and tests. Both pass one conformance script (feature
//! `conformance`).
//!
//! A disk that several hosts reach has a record too, at `/kubexen/disks/<disk-uid>`: the virtual machine that
//! [`claim`](OwnershipStore::claim_disk)ed it, which has it as long as that machine has an owner.
//!
//! [`lock`] is for what several hosts may do, though one at a time: locks on leases, each holding with a revision that
//! only grows.

mod disk;
mod drive;
mod etcd;
pub mod liveness;
pub mod lock;
mod medium;
mod memory;
mod names;
pub mod protocol;
mod record;
mod store;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;

pub use disk::DiskUid;
pub use etcd::{EtcdConfig, EtcdStore, TlsFiles};
pub use memory::{Backup, Cut, MemoryStore, Way};
pub use names::{BootId, HostBoot, HostName, InvalidName, LeaseId, Owner, Phase, Token, VmUid};
pub use record::{Entry, Key};
pub use store::{
    Abort, Cause, ClaimDisk, Commit, Discard, ForgetDisk, Guard, OwnershipStore, Reclaim, Release, Resume,
    RetireDisk, Run, Save, Start, Steal, StoreError,
};
