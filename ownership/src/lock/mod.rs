//! Locks in the pool etcd, for what several hosts may do, though one at a time.
//!
//! ```text
//!   caller ──▶ Locks::acquire ──▶ acquire: read ─▶ grant a lease ─▶ put the key under it, if it is absent
//!                                    │              EtcdLocks, MemoryLocks execute these requests
//!   Guard ◀──────────────────────────┘   revision · deadline · renew · release
//! ```
//!
//! The key `/kubexen/locks/<name>` hangs on a lease of its own, so a holder that falls silent blocks others no longer
//! than its lease lasts. An expired lease proves nothing about what its holder still does. So a holder stops by itself
//! before [`Guard::deadline`], and what it writes carries [`Guard::revision`], which only grows: whoever keeps the
//! greatest one seen can refuse a holder that came too late.

mod acquire;
mod etcd;
mod memory;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

pub use self::etcd::EtcdLocks;
pub use self::memory::MemoryLocks;
use crate::drive::RequestError;
use crate::names::{HostName, LeaseId};
use crate::store::{Cause, StoreError};

/// The folder of all lock keys.
pub(crate) const LOCKS: &str = "/kubexen/locks/";

/// The name of a lock: 1 to 128 ASCII letters, digits, `-`, `_` and `.`, so that it is one segment of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockName(String);

/// A text that is no name of a lock.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a lock's name: 1 to 128 letters, digits, '-', '_' and '.'")]
pub struct InvalidLockName(String);

impl LockName {
    /// Checks `name` and wraps it.
    ///
    /// # Errors
    /// [`InvalidLockName`].
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidLockName> {
        let name = name.into();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let fits = (1..=128).contains(&name.len()) && name.bytes().all(allowed);
        if fits { Ok(Self(name)) } else { Err(InvalidLockName(name)) }
    }

    /// Its key in the pool etcd.
    fn key(&self) -> String {
        format!("{LOCKS}{}", self.0)
    }
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LockName {
    type Err = InvalidLockName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

/// The locks of a pool, as one host uses them.
#[async_trait]
pub trait Locks: Send + Sync + fmt::Debug {
    /// Takes a lock, waiting up to `patience` for others to give it up.
    ///
    /// Unless it is renewed it is free again `ttl` after the last renewal, or somewhat later when etcd changes its
    /// leader; `ttl` counts in whole seconds, rounded up. A host can be in its own way: it has no right to a lock that
    /// it took earlier.
    ///
    /// # Errors
    /// [`LockError::Held`] when `patience` has run out. Else see [`LockError`].
    async fn acquire(&self, name: &LockName, ttl: Duration, patience: Duration) -> Result<Guard, LockError>;
}

/// Why a lock was not taken, kept or given up.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another holder has it.
    #[error("the lock {name} is held by {}", holder.as_ref().map_or("somebody", HostName::as_str))]
    Held {
        /// The lock.
        name: LockName,
        /// Who has it, if that can be read.
        holder: Option<HostName>,
    },
    /// It was held, and is not any more, or not for long enough.
    #[error("the lock {0} was lost")]
    Lost(LockName),
    /// A request was sent, and whether it took effect could not be learnt. What was taken runs out with its lease.
    #[error("whether the lock {name} was {verb} is not known")]
    Unknown {
        /// The lock.
        name: LockName,
        /// What was asked for, in the past tense.
        verb: &'static str,
        /// The failure of the last attempt to learn it.
        #[source]
        source: Cause,
    },
    /// The store could not be asked, or refused; nothing changed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A lock that was taken. When it is dropped nobody renews it, and its lease runs out.
#[derive(Debug)]
pub struct Guard {
    backend: Arc<dyn Backend>,
    name: LockName,
    lease: LeaseId,
    ttl: Duration,
    revision: u64,
    deadline: Instant,
}

impl Guard {
    /// The revision at which the lock was taken; later holders of the same lock have greater ones.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Until when the holder may act. The lease is counted from when the last renewal that was answered was sent.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Renews the lease.
    ///
    /// # Errors
    /// [`LockError::Lost`] when the lease has ended: act no more. After any other error [`Guard::deadline`] stands as
    /// it was.
    pub async fn renew(&mut self) -> Result<(), LockError> {
        acquire::renew(self).await
    }

    /// Makes sure that the holder may act for `needed` from now on, by a renewal if less is left.
    ///
    /// # Errors
    /// As [`Guard::renew`], and [`LockError::Lost`] when even a renewed lease is not long enough.
    pub async fn last_for(&mut self, needed: Duration) -> Result<(), LockError> {
        if self.deadline < Instant::now() + needed {
            self.renew().await?;
        }
        if self.deadline < Instant::now() + needed {
            return Err(LockError::Lost(self.name.clone()));
        }
        Ok(())
    }

    /// Gives the lock up. Succeeds when its lease has run out already.
    ///
    /// # Errors
    /// [`LockError::Unknown`] when it may not be free before its lease has run out; [`LockError::Store`].
    pub async fn release(self) -> Result<(), LockError> {
        acquire::release(&self).await
    }
}

/// What a lock's key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    lease: LeaseId,
    revision: u64,
    holder: Option<HostName>,
}

/// How an attempt to put a key ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// The key was absent, and hangs on the lease since this revision.
    Done(u64),
    /// The key is there.
    Taken(Holding),
    /// There is no such lease any more.
    NoLease,
}

/// The requests that locks are made of, each sent once.
#[async_trait]
pub(crate) trait Backend: Send + Sync + fmt::Debug {
    /// How often a request that may be repeated is tried before the store counts as unreachable.
    fn attempts(&self) -> u32;

    /// What the lock's key holds, by a linearizable read.
    async fn read(&self, name: &LockName) -> Result<Option<Holding>, RequestError>;

    /// A new lease of this many seconds.
    async fn grant(&self, seconds: i64) -> Result<LeaseId, RequestError>;

    /// Puts the lock's key under a lease if it is absent.
    async fn put(&self, name: &LockName, lease: LeaseId) -> Result<Put, RequestError>;

    /// Renews a lease; false when there is no such lease any more.
    async fn keep_alive(&self, lease: LeaseId) -> Result<bool, RequestError>;

    /// Ends a lease, and with it the key, if it is still there.
    async fn revoke(&self, lease: LeaseId) -> Result<(), RequestError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locks_name_is_one_segment_of_a_key() {
        let longest = "a".repeat(128);
        for good in ["a", "lvm.uDTzGi-ql4Y_1", longest.as_str()] {
            assert_eq!(LockName::new(good).unwrap().key(), format!("/kubexen/locks/{good}"));
        }
        let too_long = "a".repeat(129);
        for bad in ["", "a/b", "a b", "ä", "a\0", too_long.as_str()] {
            assert!(LockName::new(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
