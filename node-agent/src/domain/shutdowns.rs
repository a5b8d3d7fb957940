//! Guests that were asked to power themselves off, and when.
//!
//! Kept in memory on purpose: after a restart of the agent a guest is asked once more and has its time once more,
//! which costs some seconds and loses nothing.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use uuid::Uuid;

/// When each guest was asked.
#[derive(Debug, Default)]
pub struct Shutdowns(Mutex<BTreeMap<Uuid, Instant>>);

impl Shutdowns {
    /// The guest was asked now; the first time counts.
    pub fn asked(&self, guest: Uuid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(guest).or_insert_with(Instant::now);
    }

    /// The guest is gone, or is not to stop any more.
    pub fn forget(&self, guest: Uuid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&guest);
    }

    /// What is left of `limit` since the guest was asked; none if it was not asked.
    pub fn left(&self, guest: Uuid, limit: Duration) -> Option<Duration> {
        let asked = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&guest).copied()?;
        Some(limit.saturating_sub(asked.elapsed()))
    }
}
