//! How a lock is taken, kept and given up, whichever store answers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Backend, Guard, LockError, LockName, Put};
use crate::drive::{RequestError, retry};
use crate::names::{HostName, LeaseId};
use crate::store::{Cause, StoreError};

/// The first pause while another holds the lock; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(800);

/// How often a request whose answer was lost is sent again.
const RESOLVE_ATTEMPTS: u32 = 5;
/// The pause before the first of these; it doubles each time. All together they take 3.1 s.
const RESOLVE_PAUSE: Duration = Duration::from_millis(100);

/// The part of a lease by which the clocks of two machines may differ over its time is one in this many.
const CLOCK_ERROR: u32 = 100;

enum Attempt {
    Acquired(Guard),
    Held(Option<HostName>),
}

/// Why a request that was sent several times has no answer.
enum Failure {
    /// One of them may have taken effect.
    Unknown(Cause),
    /// None has.
    Final(StoreError),
}

impl Failure {
    fn of(self, name: &LockName, verb: &'static str) -> LockError {
        match self {
            Self::Unknown(source) => LockError::Unknown { name: name.clone(), verb, source },
            Self::Final(error) => error.into(),
        }
    }
}

/// Takes a lock. It asks for a lease only when the lock is free, so that those who wait keep none.
pub(super) async fn acquire(
    backend: Arc<dyn Backend>,
    name: &LockName,
    ttl: Duration,
    patience: Duration,
) -> Result<Guard, LockError> {
    let give_up = Instant::now() + patience;
    let mut pause = FIRST_PAUSE;
    loop {
        let holder = match retry(backend.attempts(), || backend.read(name)).await? {
            Some(holding) => holding.holder,
            None => match attempt(&backend, name, ttl).await? {
                Attempt::Acquired(guard) => return Ok(guard),
                Attempt::Held(holder) => holder,
            },
        };
        if Instant::now() + pause > give_up {
            return Err(LockError::Held { name: name.clone(), holder });
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Tries to take a lock that was free a moment ago.
async fn attempt(backend: &Arc<dyn Backend>, name: &LockName, ttl: Duration) -> Result<Attempt, LockError> {
    let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    let mut sent = Instant::now();
    // A lease whose answer was lost has no key and ends by itself; the next attempt makes another.
    let lease = retry(backend.attempts(), || {
        sent = Instant::now();
        backend.grant(i64::try_from(seconds).unwrap_or(i64::MAX))
    })
    .await?;
    let acquired = |revision| {
        let (backend, name) = (Arc::clone(backend), name.clone());
        Attempt::Acquired(Guard { backend, name, lease, ttl, revision, deadline: deadline(sent, ttl) })
    };
    match resolve(|| backend.put(name, lease)).await {
        Ok(Put::Done(revision)) => Ok(acquired(revision)),
        // An earlier copy of the request took effect, and its answer was lost.
        Ok(Put::Taken(holding)) if holding.lease == lease => Ok(acquired(holding.revision)),
        Ok(Put::Taken(holding)) => {
            forget(&**backend, lease).await;
            Ok(Attempt::Held(holding.holder))
        }
        Ok(Put::NoLease) => Err(LockError::Lost(name.clone())),
        Err(failure) => {
            forget(&**backend, lease).await;
            Err(failure.of(name, "taken"))
        }
    }
}

pub(super) async fn renew(guard: &mut Guard) -> Result<(), LockError> {
    let mut sent = Instant::now();
    let lives = retry(guard.backend.attempts(), || {
        sent = Instant::now();
        guard.backend.keep_alive(guard.lease)
    })
    .await?;
    if !lives {
        return Err(LockError::Lost(guard.name.clone()));
    }
    guard.deadline = deadline(sent, guard.ttl);
    Ok(())
}

pub(super) async fn release(guard: &Guard) -> Result<(), LockError> {
    let revoked = resolve(|| guard.backend.revoke(guard.lease)).await;
    revoked.map_err(|failure| failure.of(&guard.name, "given up"))
}

/// Ends a lease that nobody needs, if that can be done at once; otherwise it runs out.
async fn forget(backend: &dyn Backend, lease: LeaseId) {
    if let Err(RequestError::NoAnswer(error)) = backend.revoke(lease).await {
        tracing::debug!(%error, "a lease was left to run out");
    }
}

fn deadline(sent: Instant, ttl: Duration) -> Instant {
    sent + (ttl - ttl / CLOCK_ERROR)
}

/// Sends a request until it is answered. It must be one that may take effect twice.
async fn resolve<T, R>(mut request: impl FnMut() -> R) -> Result<T, Failure>
where
    R: Future<Output = Result<T, RequestError>>,
{
    let mut failures = 0;
    loop {
        match request().await {
            Ok(answer) => return Ok(answer),
            Err(RequestError::Final(error)) if failures == 0 => return Err(Failure::Final(error)),
            Err(RequestError::Final(error)) => return Err(Failure::Unknown(error.into())),
            Err(RequestError::NoAnswer(source)) if failures == RESOLVE_ATTEMPTS => {
                return Err(Failure::Unknown(source));
            }
            Err(RequestError::NoAnswer(error)) => {
                tracing::debug!(%error, "sending a lock's request again");
                sleep(RESOLVE_PAUSE * (1 << failures)).await;
                failures += 1;
            }
        }
    }
}
