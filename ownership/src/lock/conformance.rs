//! What every implementation of [`Locks`] must do, as a script that runs against any of them.
//!
//! It passes when [`run`] returns `Ok`, and panics at the first promise that is broken. Locks have names of their own
//! in each check, so other locks may be held meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{LockError, LockName, Locks};
use crate::names::HostName;

/// The locks under test, and the hook that the script needs besides them.
#[async_trait]
pub trait Subject: Sync {
    /// The locks as this host uses them, on a connection of its own.
    fn locks(&self, holder: HostName) -> Arc<dyn Locks>;

    /// Executes each of the next `writes` requests that take a lock, and loses its answer.
    async fn lose_answers(&self, writes: u32);
}

/// A lease that no check waits for.
const LONG: Duration = Duration::from_secs(60);
/// A lease that checks wait for.
const SHORT: Duration = Duration::from_secs(3);
/// How long a lock that must become free is waited for: longer than the short lease and all that etcd may add.
const PATIENCE: Duration = Duration::from_secs(30);

fn host(number: u32) -> HostName {
    HostName::new(format!("xen-{number}")).unwrap_or_else(|error| panic!("{error}"))
}

fn name(text: &str) -> LockName {
    LockName::new(text).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs the whole script against `subject`.
///
/// # Errors
/// Whatever is answered to a call that must not fail.
///
/// # Panics
/// When a promise is broken.
pub async fn run(subject: &dyn Subject) -> Result<(), LockError> {
    a_lock_has_one_holder_and_revisions_that_grow(subject).await?;
    whoever_waits_gets_the_lock_when_it_is_released(subject).await?;
    a_lock_that_was_dropped_runs_out_and_not_before_its_holders_deadline(subject).await?;
    a_renewed_lock_outlives_its_lease_and_one_that_ran_out_is_lost(subject).await?;
    a_lost_answer_changes_no_result(subject).await?;
    of_many_who_want_a_lock_one_at_a_time_has_it(subject).await?;
    Ok(())
}

async fn a_lock_has_one_holder_and_revisions_that_grow(subject: &dyn Subject) -> Result<(), LockError> {
    let (one, two, lock) = (subject.locks(host(1)), subject.locks(host(2)), name("one-holder"));
    let mut last = 0;
    for _ in 0..3 {
        let began = Instant::now();
        let guard = one.acquire(&lock, LONG, Duration::ZERO).await?;
        assert!(guard.revision() > last, "{} follows {last}", guard.revision());
        assert!(guard.deadline() > began && guard.deadline() < Instant::now() + LONG);
        last = guard.revision();
        for locks in [&one, &two] {
            let refused = locks.acquire(&lock, LONG, Duration::ZERO).await;
            assert!(
                matches!(&refused, Err(LockError::Held { holder, .. }) if *holder == Some(host(1))),
                "{refused:?}"
            );
        }
        two.acquire(&name("another-lock"), LONG, Duration::ZERO).await?.release().await?;
        guard.release().await?;
    }
    Ok(())
}

async fn whoever_waits_gets_the_lock_when_it_is_released(subject: &dyn Subject) -> Result<(), LockError> {
    let (one, two, lock) = (subject.locks(host(1)), subject.locks(host(2)), name("waited-for"));
    let guard = one.acquire(&lock, LONG, Duration::ZERO).await?;
    let (first, released) = (guard.revision(), AtomicBool::new(false));
    let release = async {
        sleep(Duration::from_millis(300)).await;
        released.store(true, Ordering::SeqCst);
        guard.release().await
    };
    let wait = async {
        let next = two.acquire(&lock, LONG, PATIENCE).await?;
        assert!(released.load(Ordering::SeqCst), "two hold the lock");
        assert!(next.revision() > first);
        next.release().await
    };
    let (gave, took) = tokio::join!(release, wait);
    gave.and(took)
}

async fn a_lock_that_was_dropped_runs_out_and_not_before_its_holders_deadline(
    subject: &dyn Subject,
) -> Result<(), LockError> {
    let (one, two, lock) = (subject.locks(host(1)), subject.locks(host(2)), name("dropped"));
    let guard = one.acquire(&lock, SHORT, Duration::ZERO).await?;
    let (revision, deadline) = (guard.revision(), guard.deadline());
    drop(guard);
    let next = two.acquire(&lock, LONG, PATIENCE).await?;
    assert!(Instant::now() > deadline, "the lock was free before its holder had to stop");
    assert!(next.revision() > revision);
    next.release().await
}

async fn a_renewed_lock_outlives_its_lease_and_one_that_ran_out_is_lost(
    subject: &dyn Subject,
) -> Result<(), LockError> {
    let (one, two, lock) = (subject.locks(host(1)), subject.locks(host(2)), name("renewed"));
    let mut guard = one.acquire(&lock, SHORT, Duration::ZERO).await?;
    let (revision, first) = (guard.revision(), guard.deadline());
    while Instant::now() < first + SHORT {
        guard.last_for(SHORT / 2).await?;
        sleep(SHORT / 8).await;
    }
    assert!(guard.deadline() > first && guard.revision() == revision);
    let refused = two.acquire(&lock, LONG, Duration::ZERO).await;
    assert!(matches!(refused, Err(LockError::Held { .. })), "{refused:?}");
    let too_long = guard.last_for(2 * SHORT).await;
    assert!(matches!(too_long, Err(LockError::Lost(_))), "{too_long:?}");

    let next = two.acquire(&lock, LONG, PATIENCE).await?;
    let lost = guard.renew().await;
    assert!(matches!(lost, Err(LockError::Lost(_))), "{lost:?}");
    guard.release().await?;
    let refused = one.acquire(&lock, LONG, Duration::ZERO).await;
    assert!(matches!(refused, Err(LockError::Held { .. })), "a lost lock's release freed its successor's");
    next.release().await
}

async fn a_lost_answer_changes_no_result(subject: &dyn Subject) -> Result<(), LockError> {
    let (one, two, lock) = (subject.locks(host(1)), subject.locks(host(2)), name("lost-answer"));
    subject.lose_answers(1).await;
    let guard = one.acquire(&lock, LONG, Duration::ZERO).await?;
    let refused = two.acquire(&lock, LONG, Duration::ZERO).await;
    assert!(matches!(refused, Err(LockError::Held { .. })), "{refused:?}");
    guard.release().await?;
    two.acquire(&lock, LONG, Duration::ZERO).await?.release().await
}

async fn of_many_who_want_a_lock_one_at_a_time_has_it(subject: &dyn Subject) -> Result<(), LockError> {
    let (lock, held) = (name("wanted"), Arc::new(AtomicBool::new(false)));
    let mut calls = JoinSet::new();
    for number in 0..8 {
        let (locks, lock, held) = (subject.locks(host(number)), lock.clone(), Arc::clone(&held));
        calls.spawn(async move {
            let guard = locks.acquire(&lock, LONG, PATIENCE).await?;
            assert!(!held.swap(true, Ordering::SeqCst), "two hold the lock");
            sleep(Duration::from_millis(20)).await;
            held.store(false, Ordering::SeqCst);
            let revision = guard.revision();
            guard.release().await.map(|()| revision)
        });
    }
    let mut revisions = calls.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 8, "two holders had one revision");
    Ok(())
}
