//! Joins, renews, and moves the watchdog's deadline.

use super::{Fence, Guarded, timing};
use kubexen_crds::Profile;
use kubexen_ownership::{
    Phase, StoreError,
    liveness::{FenceRecord, Join, Timing},
};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};
use uuid::Uuid;

/// How soon a renewal is tried again that was not answered.
const RETRY: Duration = Duration::from_millis(500);
/// How often a boot that is fenced asks whether it still is.
const FENCED_RETRY: Duration = Duration::from_secs(5);
/// How often it is looked again whether the watchdog could be used.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What came of one request.
enum Beat {
    /// The store answered with the lease.
    Answered,
    /// There is no such lease any more: another has to be asked for.
    Ended,
    /// This boot is fenced.
    Fenced(FenceRecord),
}

impl Fence {
    /// Keeps the host live, for ever.
    pub(super) async fn keep(&self, policy: impl Fn() -> (Profile, bool)) {
        let (mut checked, mut broken, mut joined, mut watchdog) = (None, None, None, None);
        loop {
            let (profile, disarmed) = policy();
            let timing = timing(profile);
            {
                let vitals = &mut self.lock().vitals;
                if timing.deadline < vitals.timing().deadline {
                    // From before the shorter lease is asked for.
                    vitals.set_timing(timing);
                }
            }
            let sent = Instant::now();
            if checked != Some(timing) {
                match self.check(timing).await {
                    Ok(obstacle) => {
                        broken = obstacle;
                        checked = Some(timing);
                    }
                    Err(error) => {
                        warn!(%error, "the pool's store could not be asked about its times");
                        sleep(RETRY).await;
                        continue;
                    }
                }
            }
            match self.beat(timing, joined == Some(timing)).await {
                Ok(Beat::Answered) => {
                    joined = Some(timing);
                    self.answered().await;
                    let disarmed = disarmed.then(|| "the pool is disarmed".to_owned());
                    let watchdog = self.look_at_watchdog(&mut watchdog);
                    self.set_obstacle(disarmed.or_else(|| broken.clone()).or(watchdog));
                    sleep_until(sent + timing.renewal).await;
                }
                Ok(Beat::Ended) => {}
                Ok(Beat::Fenced(record)) => {
                    let obstacle = format!(
                        "this boot was fenced by {}: reboot the host, or set `spec.fencing.unfenced` to its boot id once no \
                         protected guest is left on it",
                        record.by
                    );
                    self.set_obstacle(Some(obstacle));
                    sleep(FENCED_RETRY).await;
                }
                Err(error) => {
                    warn!(%error, "a renewal was not answered");
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Why these times cannot be kept with this store; nothing if they can.
    async fn check(&self, timing: Timing) -> Result<Option<String>, StoreError> {
        // The shortest lease is one and a half election timeouts, rounded up.
        let election_timeout = self.liveness.shortest_lease().await? * 2 / 3;
        Ok(timing.check(election_timeout).err().map(|broken| broken.to_string()))
    }

    /// Why the watchdog cannot be used, as it was seen last: programs that use it come and go.
    fn look_at_watchdog(&self, last: &mut Option<(Instant, Option<String>)>) -> Option<String> {
        let now = Instant::now();
        let (when, seen) = match last.take() {
            Some(last) if now - last.0 < LOOK_AGAIN => last,
            Some(_) | None => (now, self.watchdog.check().err().map(|error| error.to_string())),
        };
        *last = Some((when, seen.clone()));
        seen
    }

    /// One request. It counts from before it is sent. A lease that was not made for these times is not renewed: another is
    /// asked for, and its longer times hold from the answer on.
    async fn beat(&self, timing: Timing, made_for_it: bool) -> Result<Beat, StoreError> {
        let held = self.lock().vitals.lease().filter(|_| made_for_it);
        let sent = Instant::now();
        match held {
            Some(held) => {
                if self.liveness.renew(held).await? {
                    self.lock().vitals.answered(held, sent);
                    return Ok(Beat::Answered);
                }
                warn!("the lease has ended");
                self.lock().vitals.ended(held);
                Ok(Beat::Ended)
            }
            None => match self.liveness.join(&self.me, env!("CARGO_PKG_VERSION"), timing.lease).await? {
                Join::Joined(lease) => {
                    info!(seconds = timing.lease.as_secs(), "live in the pool");
                    let vitals = &mut self.lock().vitals;
                    vitals.set_timing(timing);
                    vitals.answered(lease, sent);
                    Ok(Beat::Answered)
                }
                Join::Fenced(record) => Ok(Beat::Fenced(record)),
            },
        }
    }

    /// A renewal was answered: the deadline moves, once it is known whether there is anything to guard.
    async fn answered(&self) {
        if self.lock().guarded.is_none() {
            match self.on_record().await {
                Ok(guarded) => self.lock().guarded = Some(guarded),
                Err(error) => {
                    warn!(%error, "what this host guards could not be read");
                    return;
                }
            }
            if self.lock().guarded.as_ref().is_some_and(BTreeMap::is_empty) {
                // An agent that was killed may have left it.
                self.disarm();
            }
        }
        let remaining = {
            let state = self.lock();
            let guards = state.guarded.as_ref().is_some_and(|guarded| !guarded.is_empty());
            let deadline = state.vitals.deadline().filter(|_| guards);
            deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
        };
        if let Some(remaining) = remaining
            && let Err(error) = self.watchdog.set(remaining)
        {
            warn!(%error, "the watchdog's deadline could not be moved");
        }
        self.changed.notify_one();
    }

    /// The guests that an agent of this boot has promised to stop.
    async fn on_record(&self) -> Result<BTreeMap<Uuid, Guarded>, StoreError> {
        let owners = self.ownership.owners().await?;
        let mine = owners
            .into_iter()
            .filter(|(_, owner)| owner.is(&self.me) && owner.guarded && owner.phase == Phase::Running);
        Ok(mine.map(|(vm, _)| (vm.0, Guarded::default())).collect())
    }
}
