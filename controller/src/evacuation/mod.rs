//! Evacuation: empties a host in maintenance.
//!
//! ```text
//!   Host, its Domains, their machines ─┐                ┌─▶ VirtualMachineMigrations, as many as may begin
//!   the pool as placement sees it ─────┼─▶ decide ────▶ ├─▶ Domains that are stopped, to start elsewhere
//!   the migrations that empty it ──────┘                └─▶ plan and condition Evacuated in the Host's status
//! ```
//!
//! # What it watches
//! Hosts in maintenance: the Domains there, the migrations that carry their label, and what makes room elsewhere.
//!
//! # What it decides
//! For each guest whether it moves, is restarted elsewhere, waits or stays, and where it goes: all of them are placed as
//! one batch by the same placement as everything else, so that the plan spreads them and counts each planned move. What
//! cannot move is judged by [`migration::movable`](crate::migration::movable).
//!
//! # What it writes
//! A migration for each guest whose turn it is, which the migration controller carries out; it deletes Domains of guests
//! that are to start elsewhere. Migrations that ended stay as a record until the maintenance ends. Its words are part of
//! the Host's status, which [`host`](crate::host) writes.
//!
//! # Guarantees
//! Evacuated is True only after a linearizable read: no Domain is there but those that are left there, nobody is about
//! to make one, and nobody will while the maintenance lasts.

mod apply;
mod decide;
mod observe;
mod status;

#[cfg(test)]
mod tests;

use crate::context::Context;
use kubexen_crds::condition::is_true;
use kubexen_runtime::Key;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

pub(crate) use apply::{carry_out, confirm};
pub(crate) use decide::{Plan, Words, decide, is_off};
pub(crate) use observe::{Observed, find_hindered, observe};
pub(crate) use status::{EVACUATED, news};

use crate::view::is_in_maintenance;

/// Queues every host that is being emptied: there may be room for another move.
pub(crate) fn wake_all(context: &Context) {
    let unfinished = context.view.hosts.list().into_iter().filter(|host| {
        let conditions = host.status.as_ref().map(|status| status.conditions.as_slice());
        is_in_maintenance(host) && !is_true(conditions.unwrap_or_default(), EVACUATED)
    });
    context.queues.add_all(&context.queues.hosts, unfinished.map(|host| Key::of(&*host)));
}

/// When each host's plan was written last.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<BTreeMap<String, Instant>>);

impl Told {
    /// How long ago this process wrote the host's plan.
    pub(crate) fn age(&self, host: &str) -> Option<Duration> {
        self.lock().get(host).map(Instant::elapsed)
    }

    /// The host's plan was written.
    pub(crate) fn note(&self, host: &str) {
        self.lock().insert(host.to_owned(), Instant::now());
    }

    /// The host has no plan.
    pub(crate) fn forget(&self, host: &str) {
        self.lock().remove(host);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
