//! When each host's agent was last heard of, by this process' own clock.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// When each host's agent was last heard of.
#[derive(Debug, Default)]
pub(crate) struct Heartbeats {
    hosts: Mutex<BTreeMap<String, Beat>>,
    /// Whether leases that were there before this process looked are all known.
    listed: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Beat {
    last: Instant,
    witnessed: bool,
}

/// What is known of a host's heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heartbeat {
    /// There is none.
    Never,
    /// There is one, and this process has watched it for this long without seeing it change: it may be as old as
    /// the hills.
    Unwitnessed(Duration),
    /// It was seen to change this long ago.
    Beaten(Duration),
}

impl Heartbeats {
    /// The host's lease was seen, new or changed.
    pub(crate) fn beat(&self, host: &str) {
        let witnessed = self.listed.load(Ordering::Relaxed);
        self.lock().insert(host.to_owned(), Beat { last: Instant::now(), witnessed });
    }

    /// The host's lease is gone.
    pub(crate) fn forget(&self, host: &str) {
        self.lock().remove(host);
    }

    /// The first list of leases is complete: whatever changes from now on was witnessed.
    pub(crate) fn all_listed(&self) {
        self.listed.store(true, Ordering::Relaxed);
    }

    /// What is known of a host's heartbeat.
    pub(crate) fn of(&self, host: &str) -> Heartbeat {
        match self.lock().get(host) {
            None => Heartbeat::Never,
            Some(Beat { last, witnessed: true }) => Heartbeat::Beaten(last.elapsed()),
            Some(Beat { last, witnessed: false }) => Heartbeat::Unwitnessed(last.elapsed()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Beat>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
