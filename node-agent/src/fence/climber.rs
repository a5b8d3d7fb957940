//! Climbs the ladder while renewals go unanswered, and down again.

use super::{
    Fence,
    ladder::{Step, decide},
};
use crate::hypervisor::HypervisorError;
use futures::future::join_all;
use kubexen_ownership::{VmUid, liveness::Rung};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{error, info, warn};

/// Most time for one step. Those that do not end are tried again, until Xen's watchdog ends all of them.
const LIMIT: Duration = Duration::from_secs(1);
/// How soon a rung is looked at again on which something was left to do.
const AGAIN: Duration = Duration::from_millis(500);

impl Fence {
    /// Does what is due, for ever.
    pub(super) async fn climb(&self) {
        // An agent that starts late, after one that was heard last long ago, looks first whether the store answers.
        let _ = timeout(LIMIT, self.tried.notified()).await;
        let mut last = Rung::Healthy;
        loop {
            let now = Instant::now();
            let (rung, next) = {
                let state = self.lock();
                (state.vitals.rung(now), state.vitals.next_rung(now))
            };
            if rung != last {
                warn!(?rung, "the ladder stands at another rung");
                last = rung;
            }
            let busy = self.guards_any() && self.act(rung).await;
            let next = if busy { Some(now + AGAIN) } else { next };
            tokio::select! {
                biased;
                () = self.changed.notified() => {}
                () = async { match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                } } => {}
            }
        }
    }

    /// Does what is due on this rung; whether it has to be looked at again soon.
    ///
    /// After guests were destroyed it looks again at once: the watchdog, which counts in whole seconds, may be due before the next
    /// look, and would take the guests along that nobody guards.
    async fn act(&self, rung: Rung) -> bool {
        if rung < Rung::Pause && self.frozen().is_some() {
            // What stands still goes on when it is certain whose it is.
            return false;
        }
        let Some(steps) = self.due(rung).await else { return rung >= Rung::Pause };
        self.take_all(&steps).await;
        if !steps.iter().any(|step| matches!(step, Step::Destroy(_))) {
            return steps.iter().any(|step| *step != Step::Disarm) || rung >= Rung::Stop && self.guards_any();
        }
        match self.due(rung).await {
            Some(rest) if rest == [Step::Disarm] => {
                self.take_all(&rest).await;
                self.guards_any()
            }
            Some(_) | None => true,
        }
    }

    /// What is due on this rung; nothing if the guests cannot be listed.
    async fn due(&self, rung: Rung) -> Option<Vec<Step>> {
        let domains = match timeout(LIMIT, self.hypervisor.domains()).await {
            Ok(Ok(domains)) => domains,
            Ok(Err(error)) => {
                error!(%error, "guarded guests could not be listed");
                return None;
            }
            Err(_elapsed) => return None,
        };
        let guarded = self.lock().guarded.clone().unwrap_or_default();
        Some(decide(rung, &guarded, &domains))
    }

    async fn take_all(&self, steps: &[Step]) {
        join_all(steps.iter().map(|step| self.take(*step))).await;
    }

    async fn take(&self, step: Step) {
        let taken = timeout(LIMIT, async {
            match step {
                Step::Pause(guest) => {
                    self.set_paused(guest, true);
                    self.hypervisor.pause(guest).await
                }
                Step::Resume(guest) => self.resume(guest).await,
                Step::Destroy(guest) => self.hypervisor.destroy_at_once(guest).await,
                Step::Disarm => {
                    self.spare();
                    Ok(())
                }
            }
        });
        match taken.await {
            Ok(Ok(())) => info!(?step, "done"),
            Ok(Err(error)) => error!(?step, %error, "failed"),
            Err(_elapsed) => error!(?step, "did not end in time"),
        }
    }

    /// Lets a guest go on, if the store says that it is still this host's.
    async fn resume(&self, guest: uuid::Uuid) -> Result<(), HypervisorError> {
        match self.ownership.owner(VmUid(guest)).await {
            Ok(Some(owner)) if owner.is(&self.me) => {
                self.hypervisor.unpause(guest).await?;
                self.set_paused(guest, false);
            }
            Ok(owner) => {
                warn!(%guest, ?owner, "the guest stands still: another host has it");
                self.set_paused(guest, false);
            }
            Err(error) => warn!(%guest, %error, "whose the guest is could not be read"),
        }
        Ok(())
    }

    fn set_paused(&self, guest: uuid::Uuid, paused: bool) {
        if let Some(guarded) = self.lock().guarded.as_mut().and_then(|guarded| guarded.get_mut(&guest)) {
            guarded.paused = paused;
        }
    }

    /// All guarded guests are gone: the host runs the others on.
    fn spare(&self) {
        let mut state = self.lock();
        match self.disarm(&mut state) {
            Ok(()) => {
                warn!("all guarded guests are stopped; the host is not reset");
                state.guarded = Some(BTreeMap::new());
                self.align(&mut state);
            }
            Err(error) => warn!(%error, "the watchdog could not be disarmed"),
        }
    }

    fn guards_any(&self) -> bool {
        self.lock().guarded.as_ref().is_some_and(|guarded| !guarded.is_empty())
    }
}
