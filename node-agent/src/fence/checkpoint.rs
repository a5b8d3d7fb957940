//! What one agent leaves to the next of its boot.

use super::{Checkpoint, Fence, Guarded, State, WatchdogError};
use kubexen_ownership::{LeaseId, liveness::Epoch};
use tokio::time::Instant;
use tracing::info;

/// In place of a lease that is not to be renewed: etcd gives none this number.
const NO_LEASE: LeaseId = LeaseId(0);

impl Fence {
    /// Goes on from where the agent before this one stood, if there was one at this boot.
    pub(super) fn adopt(&self) {
        // In this order, so that whatever comes in between makes the last renewal older.
        let now = Instant::now();
        let kept = self.watchdog.kept().filter(|kept| kept.boot_id == self.me.boot_id);
        let Some(kept) = kept else { return };
        self.lock().inherited = true;
        if let Some(store) = kept.store.as_deref().and_then(Epoch::parse) {
            self.liveness.recall(store);
            let mut state = self.lock();
            (state.promised_in, state.on_record) = (Some(store), Some(store));
        }
        let age = self.watchdog.uptime().checked_sub(kept.sent);
        let Some(sent) = age.and_then(|age| now.checked_sub(age)) else { return };
        info!(?kept, "going on with what the agent before this one has left");
        let mut state = self.lock();
        state.vitals.set_timing(kept.timing());
        let lease = kept.lease.map_or(NO_LEASE, LeaseId);
        state.vitals.answered(lease, sent);
        if lease == NO_LEASE {
            state.vitals.ended(lease);
        }
        state.guarded = Some(kept.guarded.into_iter().map(|guest| (guest, Guarded::default())).collect());
    }

    /// Keeps what the next agent has to know, with this lease to be renewed, if that is known.
    pub(super) fn write_down(&self, state: &State, lease: Option<LeaseId>) -> Result<(), WatchdogError> {
        // In this order, so that whatever comes in between makes the last renewal older.
        let uptime = self.watchdog.uptime();
        let (Some(deadline), Some(guarded)) = (state.vitals.deadline(), &state.guarded) else {
            return Ok(());
        };
        let timing = state.vitals.timing();
        let sent = uptime.saturating_sub((deadline - timing.deadline).elapsed());
        let guarded = guarded.keys().copied().collect();
        let store = state.promised_in;
        self.watchdog.keep(&Checkpoint::new(self.me.boot_id.clone(), lease, sent, timing, guarded, store))
    }
}
