//! Leader election by a Lease: at most one controller writes.
//!
//! ```text
//!            look, every second                     renew, every 3 s
//!   ┌─────────┐  free, or unchanged for 15 s  ┌─────────┐
//!   │ waiting │ ────────────────────────────▶ │ leading │ ──▶ the term's future runs
//!   └─────────┘ ◀──────────────────────────── └─────────┘
//!        taken by another, or 10 s since the SEND time of the last renewal that was granted
//! ```
//!
//! # Guarantees
//! - The lease changes hands by compare-and-swap on its resource version.
//! - Only spans of the local monotonic clock decide: a foreign lease has expired when this process has seen it
//!   unchanged for its duration, and an own one is given up after the renewal deadline. Wall clocks may differ at will.
//! - [`Leadership::holds`] turns false at the deadline by itself, even if nothing of this module gets to run.
//! - When a term ends, its future is dropped before anything else happens; on a clean shutdown the lease is then
//!   released, so that a successor need not wait.
//!
//! # Caveats
//! A request that was sent before the deadline may still take effect after it. Writes that must not come late carry
//! a resource version or a uid, and who runs a guest is decided by `kubexen-ownership`, not here.

use crate::error::Error;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use kubexen_runtime::{Clock, write::WriteError};
use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long a lease is good for when nobody renews it.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// Time between two renewals.
pub const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Time since the send time of the last granted renewal after which leadership is given up; shorter than
/// [`LEASE_DURATION`] by more than any clock's error, so that the old leader stops before the new one starts.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two looks at somebody else's lease, and between two tries after an error.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest time one request for the lease may take.
const ATTEMPT: Duration = Duration::from_secs(4);

/// Whether this process leads, for everybody who writes.
#[derive(Clone, Debug, Default)]
pub struct Leadership(Arc<Mutex<Option<Instant>>>);

impl Leadership {
    /// Whether this process leads now.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    fn hold_until(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn until(&self) -> Instant {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(Instant::now)
    }
}

/// What is known of a lease that somebody else may hold.
#[derive(Debug)]
struct Sighting {
    version: Option<String>,
    since: Instant,
}

/// What to do about a lease.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There is none: make it.
    Create,
    /// It is free: take it.
    Take,
    /// Somebody holds it: look again later.
    Wait,
}

/// What to do about this lease, which has been seen unchanged for `unchanged`.
fn step(lease: Option<&Lease>, me: &str, unchanged: Duration) -> Step {
    let Some(lease) = lease else { return Step::Create };
    let spec = lease.spec.as_ref();
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
    let duration = seconds.map_or(LEASE_DURATION, Duration::from_secs);
    // A lease that names this process although it does not lead: the answer to an earlier request was lost.
    if holder.is_empty() || holder == me || unchanged >= duration { Step::Take } else { Step::Wait }
}

/// Runs for leadership, again and again.
#[derive(Debug)]
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    clock: Arc<dyn Clock>,
    leadership: Leadership,
}

impl Elector {
    /// A candidate for the lease `name` in `namespace`. `identity` must be unique among all processes at all times.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: String,
        clock: Arc<dyn Clock>,
        leadership: Leadership,
    ) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.to_owned(), identity, clock, leadership }
    }

    /// Waits for leadership and runs `term` while it lasts, until `shutdown`.
    pub async fn run<F: Future<Output = ()>>(
        &self,
        shutdown: &CancellationToken,
        mut term: impl FnMut() -> F,
    ) {
        while !shutdown.is_cancelled() {
            let mut lease = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                lease = self.campaign() => lease,
            };
            info!(identity = self.identity, "leading");
            {
                let term = pin!(term());
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => {}
                    () = self.keep(&mut lease) => warn!("leadership is lost"),
                    () = term => {}
                }
            }
            self.leadership.hold_until(None);
            if shutdown.is_cancelled() {
                self.release(lease).await;
            }
        }
    }

    /// Looks at the lease until it is ours.
    async fn campaign(&self) -> Lease {
        let mut sighting = Sighting { version: None, since: Instant::now() };
        loop {
            match self.try_to_lead(&mut sighting).await {
                Ok(Some(lease)) => return lease,
                Ok(None) => {}
                Err(error) => warn!(%error, category = error.category(), "the lease cannot be taken"),
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn try_to_lead(&self, sighting: &mut Sighting) -> Result<Option<Lease>, Error> {
        let present = self.get().await?;
        let version = present.as_ref().and_then(ResourceExt::resource_version);
        let now = Instant::now();
        if version != sighting.version {
            *sighting = Sighting { version, since: now };
        }
        let sent = Instant::now();
        let taken = match step(present.as_ref(), &self.identity, now - sighting.since) {
            Step::Wait => return Ok(None),
            Step::Create => {
                limited(self.api.create(&PostParams::default(), &self.taken(Lease::default()))).await
            }
            Step::Take => self.replace(&self.taken(present.unwrap_or_default())).await,
        };
        match taken {
            Ok(lease) => {
                self.leadership.hold_until(Some(sent + RENEW_DEADLINE));
                Ok(Some(lease))
            }
            // Another candidate was faster.
            Err(error) if error.is_conflict() || error.is_already_exists() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Renews the lease; returns when leadership is lost.
    async fn keep(&self, lease: &mut Lease) {
        let mut pause = RENEW_EVERY;
        loop {
            let deadline = self.leadership.until();
            let renewal = async {
                sleep(pause).await;
                self.renew(lease).await
            };
            match tokio::time::timeout_at(deadline, renewal).await {
                Err(_) => return,
                Ok(Ok(true)) => pause = RENEW_EVERY,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => {
                    warn!(%error, category = error.category(), "the lease was not renewed");
                    pause = LOOK_EVERY;
                }
            }
        }
    }

    /// One renewal; says whether the lease is still ours.
    async fn renew(&self, lease: &mut Lease) -> Result<bool, Error> {
        let sent = Instant::now();
        let mut renewed = lease.clone();
        if let Some(spec) = renewed.spec.as_mut() {
            spec.renew_time = Some(MicroTime(self.clock.now()));
        }
        match self.replace(&renewed).await {
            Ok(stored) => {
                *lease = stored;
                self.leadership.hold_until(Some(sent + RENEW_DEADLINE));
                Ok(true)
            }
            // Taken by another, or changed by a renewal of ours whose answer was lost: only a look can tell.
            Err(error) if error.is_conflict() || error.is_not_found() => match self.get().await? {
                Some(present) if self.is_mine(&present) => {
                    *lease = present;
                    Err(error.into())
                }
                Some(_) | None => Ok(false),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Clears the holder, if it is still this process. Failing is no harm: the lease expires.
    async fn release(&self, lease: Lease) {
        let attempt = async {
            let released = self.replace(&self.released(lease)).await;
            match released {
                Err(error) if error.is_conflict() => match self.get().await? {
                    Some(present) if self.is_mine(&present) => {
                        self.replace(&self.released(present)).await.map(drop)
                    }
                    Some(_) | None => Ok(()),
                },
                other => other.map(drop),
            }
        };
        match attempt.await {
            Ok(()) => info!("the lease is released"),
            Err(error) => warn!(%error, "the lease is not released and will expire"),
        }
    }

    fn is_mine(&self, lease: &Lease) -> bool {
        lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) == Some(self.identity.as_str())
    }

    fn taken(&self, present: Lease) -> Lease {
        let now = MicroTime(self.clock.now());
        let before = present.spec.unwrap_or_default();
        Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..present.metadata },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_transitions: Some(before.lease_transitions.map_or(0, |count| count.saturating_add(1))),
                ..before
            }),
        }
    }

    fn released(&self, mut lease: Lease) -> Lease {
        if let Some(spec) = lease.spec.as_mut() {
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(self.clock.now()));
        }
        lease
    }

    async fn get(&self) -> Result<Option<Lease>, WriteError> {
        limited(self.api.get_opt(&self.name)).await
    }

    async fn replace(&self, lease: &Lease) -> Result<Lease, WriteError> {
        limited(self.api.replace(&self.name, &PostParams::default(), lease)).await
    }
}

async fn limited<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, WriteError> {
    match timeout(ATTEMPT, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(WriteError::TimedOut),
    }
}

#[cfg(test)]
mod tests;
