//! Joins, renews, and moves the watchdog's deadline.

use super::{FIRST_WORD, Fence, Policy, WatchdogError, timing};
use kubexen_mutants::Mutant;
use kubexen_ownership::{
    LeaseId, Owner, Phase, StoreError, VmUid,
    liveness::{FenceRecord, Join, Standing, Timing},
};
use std::{collections::BTreeSet, future::Future, time::Duration};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};
use uuid::Uuid;

/// How soon a renewal is tried again that was not answered.
const RETRY: Duration = Duration::from_millis(500);
/// How often a boot that is fenced asks whether it still is.
const FENCED_RETRY: Duration = Duration::from_secs(5);
/// How often it is looked again whether the watchdog could be used, and a profile that could not be kept.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How soon an agent looks again that does not know which store is the pool's.
const HEAR_AGAIN: Duration = Duration::from_secs(1);

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

/// The times that the host goes by.
#[derive(Debug, Default)]
struct Times {
    /// Those that were asked for last of those that can be kept, or of all if none can, and why they cannot be kept.
    current: Option<(Timing, Option<String>)>,
    /// Those that cannot be kept, and when that was found out.
    refused: Option<(Timing, Instant)>,
}

impl Times {
    /// Whether it is to be found out whether these can be kept.
    fn is_to_be_checked(&self, wanted: Timing, now: Instant) -> bool {
        let is_current = self.current == Some((wanted, None));
        let was_refused = |(timing, when)| timing == wanted && now - when < LOOK_AGAIN;
        !is_current && !self.refused.is_some_and(was_refused)
    }

    /// It was found out why these cannot be kept, or that they can.
    fn checked(&mut self, wanted: Timing, broken: Option<String>, now: Instant) {
        self.refused = broken.is_some().then_some((wanted, now));
        match (&self.current, broken) {
            (Some((_, None)), Some(broken)) => {
                warn!(broken, "the pool's profile cannot be kept, and the host goes by the one before");
            }
            (Some(_) | None, broken) => self.current = Some((wanted, broken)),
        }
    }
}

impl Fence {
    /// Keeps the host live, for ever.
    pub(super) async fn keep(&self, policy: impl Fn() -> Policy, heard: impl Future<Output = ()>) {
        let (mut times, mut joined, mut watchdog) = (Times::default(), None, None);
        if !self.lock().inherited {
            // Nothing was promised, so nothing is late, and only the pool knows which store is its own.
            let _ = timeout(FIRST_WORD, heard).await;
        }
        loop {
            let policy = policy();
            let (profile, refusal) = (policy.profile, policy.refusal.clone());
            let wanted = timing(profile);
            let sent = Instant::now();
            // Before all else: what a store answers counts only when it is known which one it is, and none is written to before.
            match self.look(&policy).await {
                Ok(standing) => {
                    if let Some(obstacle) = elsewhere(&standing) {
                        // What was promised was promised elsewhere: no answer of this one gives more time.
                        self.set_obstacle(Some(obstacle));
                        self.tried.notify_one();
                        sleep(FENCED_RETRY).await;
                        continue;
                    }
                }
                Err(error) => {
                    warn!(%error, "how the pool's store stands could not be read");
                    self.try_again().await;
                    continue;
                }
            }
            if times.is_to_be_checked(wanted, sent) {
                match self.check(wanted).await {
                    Ok(broken) => times.checked(wanted, broken, sent),
                    Err(error) => {
                        warn!(%error, "the pool's store could not be asked about its times");
                        if self.lock().vitals.lease().is_none() {
                            self.try_again().await;
                            continue;
                        }
                    }
                }
            }
            let (may_join, (timing, broken)) = match &times.current {
                Some(current) => (true, current.clone()),
                None => (false, (self.lock().vitals.timing(), None)),
            };
            let beat = self.beat(timing, joined == Some(timing), may_join).await;
            self.tried.notify_one();
            match beat {
                Ok(beat @ (Beat::Answered | Beat::Kept)) => {
                    joined = matches!(beat, Beat::Answered).then_some(timing);
                    self.answered().await;
                    let watchdog = self.look_at_watchdog(&mut watchdog);
                    let (trouble, too_old) = {
                        let state = self.lock();
                        (state.trouble.clone(), state.too_old.clone())
                    };
                    match self.frozen() {
                        Some(standing) => self.set_obstacle(Some(self.freeze(&standing))),
                        None => self.set_obstacle(refusal.or(broken).or(too_old).or(trouble).or(watchdog)),
                    }
                    let pause = if self.knows_store(&policy) { timing.renewal } else { HEAR_AGAIN };
                    sleep_until(sent + pause).await;
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

    /// Whether there is a word on which store is the pool's.
    fn knows_store(&self, policy: &Policy) -> bool {
        policy.is_heard || self.lock().promised_in.is_some()
    }

    /// It came to nothing.
    async fn try_again(&self) {
        self.tried.notify_one();
        sleep(RETRY).await;
    }

    /// Reads how the store stands. One that is not what it was, and does not say so itself, is made to say so, for all others.
    async fn look(&self, policy: &Policy) -> Result<Standing, StoreError> {
        let mut standing = self.liveness.standing().await?;
        if self.lock().promised_in.is_none() {
            standing.instead_of = standing.instead_of.or(strange(&standing, policy));
        }
        if standing.broken && standing.instead_of.is_none() {
            self.liveness.begin_epoch(standing.nowhere(), &standing).await?;
        }
        self.stands(standing, policy.is_heard);
        Ok(standing)
    }

    /// What is said while the store is frozen.
    fn freeze(&self, standing: &Standing) -> String {
        let state = self.lock();
        if let Some(contested) = &state.contested {
            return contested.clone();
        }
        match state.on_record {
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
            let is_live = self.is_live_by(held).await?;
            let sent = Instant::now();
            if !is_live || !self.liveness.renew(held).await? && !Mutant::EndedLeaseIgnored.is_active() {
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
            if let Err(error) = self.prepare(timing) {
                warn!(%error, "no other lease is asked for, since the next agent could not know of it");
                return Ok(Beat::Kept);
            }
        }
        let sent = Instant::now();
        match self.join(timing).await {
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

    /// Whether to renew the lease proves that the host is live.
    async fn is_live_by(&self, lease: LeaseId) -> Result<bool, StoreError> {
        if !self.lock().lease_in_doubt {
            return Ok(true);
        }
        let is_live = self.liveness.is_live_by(&self.me, lease).await?;
        self.lock().lease_in_doubt = false;
        Ok(is_live)
    }

    /// Asks for a lease. What a store that is not confirmed says of a death is as old as its backup, and no reason to stop anything.
    async fn join(&self, timing: Timing) -> Result<Join, StoreError> {
        const AGENT: &str = env!("CARGO_PKG_VERSION");
        let joined = self.liveness.join(&self.me, AGENT, timing.lease).await?;
        let (Join::Fenced(record), Some(seen)) = (&joined, self.frozen()) else { return Ok(joined) };
        let rejoined = self.liveness.rejoin(&self.me, AGENT, timing.lease, &seen).await?;
        if rejoined.is_some() {
            warn!(
                by = record.by,
                "a fence record of this boot is in the store that was restored, and is removed"
            );
        }
        Ok(rejoined.map_or(joined, Join::Joined))
    }

    /// Another lease is about to be asked for, and whether it was granted may stay unknown: a shorter one counts from now on,
    /// and the next agent is not to rely on the one that there is.
    fn prepare(&self, timing: Timing) -> Result<(), WatchdogError> {
        let mut state = self.lock();
        if timing.deadline < state.vitals.timing().deadline && !Mutant::OldDeadlineKept.is_active() {
            state.vitals.set_timing(timing);
        }
        self.align(&mut state);
        self.write_down(&state, None)
    }

    /// A renewal was answered: the deadline moves, once it is known whether there is anything to guard.
    async fn answered(&self) {
        let is_read = self.lock().is_read;
        if !is_read && let Err(error) = self.read_records().await {
            warn!(%error, "what this host guards could not be read");
        }
        self.align(&mut self.lock());
        self.changed.notify_one();
    }

    /// Learns from the store which guests the agents of this boot have promised to stop. What the agent before this one has left
    /// may be about to come true as well, where the record is this host's, and is forgotten of guests that are neither this
    /// host's nor on it.
    async fn read_records(&self) -> Result<(), StoreError> {
        let left: BTreeSet<Uuid> = self.lock().guarded.iter().flatten().map(|(guest, _)| *guest).collect();
        let owners = self.ownership.owners().await?;
        let here = self.hypervisor.domains().await;
        let is_mine = |owner: &Owner| owner.is(&self.me) && owner.phase == Phase::Running;
        let is_here = |guest: Uuid| match &here {
            Ok(domains) => domains.iter().any(|domain| domain.uuid == guest),
            Err(_) => true,
        };
        let mut state = self.lock();
        let guarded = state.guarded.get_or_insert_default();
        guarded.retain(|guest, _| {
            !left.contains(guest) || owners.get(&VmUid(*guest)).is_some_and(is_mine) || is_here(*guest)
        });
        for (vm, _) in owners.iter().filter(|(_, owner)| is_mine(owner) && owner.guarded) {
            guarded.entry(vm.0).or_default();
        }
        state.is_read = true;
        Ok(())
    }
}

/// The cluster that the pool works with, if the store that answers does not say that it is that one or follows it.
fn strange(standing: &Standing, policy: &Policy) -> Option<u64> {
    let pools = policy.epoch?.cluster?;
    (pools != standing.cluster && standing.after != Some(pools)).then_some(pools)
}

/// What is said while another store answers than that of the pool, or than that in which something was promised.
fn elsewhere(standing: &Standing) -> Option<String> {
    let promised = standing.instead_of?;
    Some(format!(
        "this host or its pool has worked with the etcd cluster {promised:x}, and {:x} answers, which does not say that it follows \
         that one: correct `poolStore.endpoints`; if the pool is frozen and is to go on with this one, set \
         `spec.availability.confirmedEpoch` of the Pool; if it works with this one by now, boot the host",
        standing.cluster
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_that_cannot_be_kept_is_not_taken_over_from_one_that_can() {
        let (mut times, now) = (Times::default(), Instant::now());
        let (good, bad) = (Timing::DEFAULT, Timing::FAST);
        assert!(times.is_to_be_checked(good, now));
        times.checked(good, None, now);
        assert!(!times.is_to_be_checked(good, now) && times.is_to_be_checked(bad, now));
        times.checked(bad, Some("too slow".to_owned()), now);
        assert_eq!(times.current, Some((good, None)));
        assert!(!times.is_to_be_checked(bad, now), "not all the time");
        assert!(times.is_to_be_checked(bad, now + LOOK_AGAIN));
        times.checked(bad, None, now + LOOK_AGAIN);
        assert_eq!(times.current, Some((bad, None)));
    }

    #[test]
    fn where_no_profile_can_be_kept_it_is_said_why() {
        let (mut times, now) = (Times::default(), Instant::now());
        times.checked(Timing::DEFAULT, Some("much too slow".to_owned()), now);
        times.checked(Timing::FAST, Some("too slow".to_owned()), now);
        assert_eq!(times.current, Some((Timing::FAST, Some("too slow".to_owned()))));
    }
}
