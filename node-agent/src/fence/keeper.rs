//! Joins, renews, and moves the watchdog's deadline.

use super::{Fence, Guarded, timing};
use kubexen_crds::Profile;
use kubexen_mutants::Mutant;
use kubexen_ownership::{
    Phase, StoreError,
    liveness::{FenceRecord, Join, Standing, Timing},
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
    /// The lease that was made for other times was renewed, since no other is to be had.
    Kept,
    /// There is no such lease any more: another has to be asked for.
    Ended,
    /// This boot is fenced.
    Fenced(FenceRecord),
}

impl Fence {
    /// Keeps the host live, for ever.
    pub(super) async fn keep(&self, policy: impl Fn() -> (Profile, Option<String>)) {
        let (mut checked, mut broken, mut joined, mut watchdog) = (None, None, None, None);
        loop {
            let (profile, refusal) = policy();
            let timing = timing(profile);
            let sent = Instant::now();
            if checked != Some(timing) {
                match self.check(timing).await {
                    Ok(obstacle) => {
                        broken = obstacle;
                        checked = Some(timing);
                    }
                    Err(error) => {
                        warn!(%error, "the pool's store could not be asked about its times");
                        if self.lock().vitals.lease().is_none() {
                            sleep(RETRY).await;
                            continue;
                        }
                    }
                }
            }
            // Before the renewal: what a store answers counts only when it is known which one it is.
            if let Err(error) = self.look().await {
                warn!(%error, "how the pool's store stands could not be read");
                sleep(RETRY).await;
                continue;
            }
            match self.beat(timing, joined == Some(timing), checked == Some(timing)).await {
                Ok(beat @ (Beat::Answered | Beat::Kept)) => {
                    joined = matches!(beat, Beat::Answered).then_some(timing);
                    self.answered().await;
                    let watchdog = self.look_at_watchdog(&mut watchdog);
                    match self.frozen() {
                        Some(standing) => self.set_obstacle(Some(self.freeze(&standing))),
                        None => self.set_obstacle(refusal.or_else(|| broken.clone()).or(watchdog)),
                    }
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

    /// Reads how the store stands. One that is not what it was, and does not say so itself, is made to say so, for all others.
    async fn look(&self) -> Result<(), StoreError> {
        let standing = self.liveness.standing().await?;
        if standing.broken {
            self.liveness.begin_epoch(standing.nowhere(), &standing).await?;
        }
        self.stands(standing);
        Ok(())
    }

    /// What is said while the store is frozen.
    fn freeze(&self, standing: &Standing) -> String {
        match self.lock().on_record {
            Some(epoch) if epoch == standing.seen_as() => "the pool's store was restored from a backup: no guest is started, stopped or \
                 moved before `spec.availability.confirmedEpoch` of the Pool is what its `status.availability.freeze` says"
                .to_owned(),
            Some(_) | None => "the pool's store was restored from a backup, and not all guests of this host are \
                 on record in it yet"
                .to_owned(),
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

    /// Renews the lease, and asks for another if it was not made for these times. Until there is one, the host keeps the
    /// lease and the times that it has: a store that takes no writes renews leases all the same. Everything counts from before
    /// it is sent.
    async fn beat(&self, timing: Timing, made_for_it: bool, may_join: bool) -> Result<Beat, StoreError> {
        let held = self.lock().vitals.lease();
        if let Some(held) = held {
            let sent = Instant::now();
            if !self.liveness.renew(held).await? && !Mutant::EndedLeaseIgnored.is_active() {
                warn!("the lease has ended");
                self.lock().vitals.ended(held);
                return Ok(Beat::Ended);
            }
            let sent = if Mutant::DeadlineFromAnswer.is_active() { Instant::now() } else { sent };
            self.lock().vitals.answered(held, sent);
            if made_for_it {
                return Ok(Beat::Answered);
            }
            if !may_join {
                return Ok(Beat::Kept);
            }
            self.prepare(timing);
        }
        let sent = Instant::now();
        match self.liveness.join(&self.me, env!("CARGO_PKG_VERSION"), timing.lease).await {
            Ok(Join::Joined(lease)) => {
                info!(seconds = timing.lease.as_secs(), "live in the pool");
                let vitals = &mut self.lock().vitals;
                vitals.set_timing(timing);
                vitals.answered(lease, sent);
                Ok(Beat::Answered)
            }
            Ok(Join::Fenced(record)) => Ok(Beat::Fenced(record)),
            Err(error) => {
                match (held, &error) {
                    (None, _) => {}
                    (Some(held), StoreError::Unknown { .. }) if !Mutant::LostJoinForgotten.is_active() => {
                        // The host may be live on the lease that was asked for, so to renew the other one proves nothing.
                        self.lock().vitals.ended(held);
                    }
                    (
                        Some(_),
                        StoreError::Unknown { .. }
                        | StoreError::Unavailable { .. }
                        | StoreError::Corrupt { .. }
                        | StoreError::Contended { .. }
                        | StoreError::Frozen
                        | StoreError::Rejected { .. }
                        | StoreError::Configuration { .. },
                    ) => {
                        warn!(%error, "no lease for the pool's profile is to be had; the host keeps the one it has");
                        return Ok(Beat::Kept);
                    }
                }
                Err(error)
            }
        }
    }

    /// Another lease is about to be asked for, and whether it was granted may stay unknown: a shorter one counts from now on.
    fn prepare(&self, timing: Timing) {
        {
            let vitals = &mut self.lock().vitals;
            if timing.deadline < vitals.timing().deadline && !Mutant::OldDeadlineKept.is_active() {
                vitals.set_timing(timing);
            }
        }
        self.move_watchdog();
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
        self.move_watchdog();
        self.changed.notify_one();
    }

    /// Sets the watchdog to the deadline, if there is anything to guard.
    fn move_watchdog(&self) {
        let remaining = {
            let state = self.lock();
            let guards = state.guarded.as_ref().is_some_and(|guarded| !guarded.is_empty());
            let deadline = state.vitals.deadline().filter(|_| guards);
            deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
        };
        if let Some(remaining) = remaining
            && let Err(error) = self.set_watchdog(remaining)
        {
            warn!(%error, "the watchdog's deadline could not be moved");
        }
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
