//! What every store must do for liveness, and for what is stolen because of it.

use std::time::Duration;

use super::{Epoch, Fence, FenceRecord, Join, Liveness, Proof, Unfence};
use crate::conformance::{Subject, host, vm};
use crate::names::{HostBoot, LeaseId, Owner, Phase, Token};
use crate::store::{Guard, OwnershipStore, Reclaim, Start, Steal, StoreError};

/// The shortest lease that etcd grants with its own election timeout, or a lower one.
const SHORTEST: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(600);

/// Runs the script against `subject`.
///
/// # Errors
/// Whatever the store answers to a call that must not fail.
///
/// # Panics
/// When the store breaks a promise.
pub async fn run(subject: &dyn Subject) -> Result<(), StoreError> {
    a_boot_is_live_as_long_as_its_lease(subject).await?;
    an_agent_that_starts_again_goes_on_with_a_lease_of_its_own(subject).await?;
    a_live_boot_is_not_fenced_and_a_fenced_one_never_live(subject).await?;
    a_fence_record_is_replaced_by_one_that_proves_more(subject).await?;
    a_promise_is_written_by_the_owner_alone_and_ends_with_its_ownership(subject).await?;
    only_what_a_dead_host_owns_is_stolen_and_by_a_live_one(subject).await?;
    a_lost_answer_steals_once(subject).await?;
    let shortest = subject.liveness().shortest_lease().await?;
    assert!((Duration::from_secs(1)..=SHORTEST).contains(&shortest), "{shortest:?}");
    a_store_that_is_not_confirmed_decides_nothing(subject).await
}

async fn a_store_that_is_not_confirmed_decides_nothing(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, live, vm) = (subject.client(), subject.liveness(), vm("epoch"));
    let (me, other) = (host("epoch-1", "boot-1"), host("epoch-2", "boot-1"));
    let seen = live.standing().await?;
    assert!(seen.is_current() && seen.epoch.is_none(), "{seen:?}");
    let first = Epoch { number: 1, cluster: Some(seen.cluster) };
    assert!(live.begin_epoch(first, &seen).await?);
    assert!(!live.begin_epoch(first, &seen).await?, "it is not as it was seen");
    let seen = live.standing().await?;
    assert!(seen.is_current() && seen.epoch == Some(first), "{seen:?}");
    assert!(matches!(store.start(vm, &me).await?, Start::Acquired(_)));
    let off = host("epoch-3", "boot-1");
    assert!(matches!(live.fence(&off, &record(Proof::LeaseEnded)).await?, Fence::Fenced(_)));

    assert!(live.begin_epoch(Epoch { number: 1, cluster: None }, &seen).await?);
    let seen = live.standing().await?;
    assert!(!seen.is_current());
    // One that has worked with it hears of it when it looks.
    let fresh = subject.client();
    assert!(is_frozen(&fresh.owner(vm).await));
    assert!(is_frozen(&fresh.start(vm, &me).await));
    assert!(is_frozen(&live.fence(&me, &record(Proof::Confirmed)).await));
    let lease = joined(live.join(&me, "1.2.3", LONG).await?);
    assert!(live.renew(lease).await?, "hosts are live all the same");
    live.leave(lease).await?;
    assert!(matches!(live.join(&off, "1.2.3", LONG).await?, Join::Fenced(_)), "as old as the backup");
    let lease = live.rejoin(&off, "1.2.3", LONG, &seen).await?.expect("a lease");
    let roll = live.roll().await?;
    assert!(roll.live.contains_key(&off) && !roll.fenced.contains_key(&off), "{roll:?}");
    live.leave(lease).await?;
    assert!(matches!(store.reclaim(vm, &other, false, false, &seen).await?, Reclaim::Refused(_)));
    assert!(matches!(store.reclaim(vm, &other, true, true, &seen).await?, Reclaim::Reclaimed(_)));

    assert!(live.begin_epoch(Epoch { number: 2, cluster: Some(seen.cluster) }, &seen).await?);
    assert!(live.standing().await?.is_current());
    let owner = store.owner(vm).await?;
    assert!(owner.is_some_and(|owner| owner.is(&other) && owner.guarded), "what runs is what counts");
    assert_eq!(store.reclaim(vm, &me, true, false, &seen).await?, Reclaim::Over);
    assert_eq!(live.rejoin(&me, "1.2.3", LONG, &seen).await?, None, "it is confirmed by now");
    Ok(())
}

fn is_frozen<T>(answer: &Result<T, StoreError>) -> bool {
    matches!(answer, Err(StoreError::Frozen))
}

fn joined(join: Join) -> LeaseId {
    match join {
        Join::Joined(lease) => lease,
        Join::Fenced(record) => panic!("fenced: {record:?}"),
    }
}

fn record(proof: Proof) -> FenceRecord {
    FenceRecord { by: "conformance".to_owned(), proof, revision: 1 }
}

async fn is_live(store: &dyn Liveness, boot: &HostBoot) -> Result<bool, StoreError> {
    Ok(store.roll().await?.live.contains_key(boot))
}

async fn a_boot_is_live_as_long_as_its_lease(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, me) = (subject.liveness(), host("lease", "boot-1"));
    let lease = joined(store.join(&me, "1.2.3", SHORTEST).await?);
    let roll = subject.liveness().roll().await?;
    assert_eq!(roll.live.get(&me).map(String::as_str), Some("1.2.3"), "seen by another client");
    assert_eq!(roll.live_boot("lease"), Some(&me));
    assert!(store.renew(lease).await?);
    while is_live(&*store, &me).await? {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!store.renew(lease).await?, "a lease that has ended cannot be renewed");
    assert!(!is_live(&*store, &me).await?);

    let lease = joined(store.join(&me, "1.2.3", LONG).await?);
    assert!(store.is_live_by(&me, lease).await?);
    store.leave(lease).await?;
    assert!(!is_live(&*store, &me).await?);
    assert!(!store.is_live_by(&me, lease).await?);
    store.leave(lease).await
}

async fn an_agent_that_starts_again_goes_on_with_a_lease_of_its_own(
    subject: &dyn Subject,
) -> Result<(), StoreError> {
    let (store, me) = (subject.liveness(), host("restart", "boot-1"));
    let before = joined(store.join(&me, "1", LONG).await?);
    let after = joined(store.join(&me, "2", LONG).await?);
    assert_ne!(before, after);
    assert!(store.is_live_by(&me, after).await?);
    assert!(!store.is_live_by(&me, before).await?, "although it can be renewed");
    store.leave(before).await?;
    assert_eq!(
        store.roll().await?.live.get(&me).map(String::as_str),
        Some("2"),
        "the earlier lease counts no more"
    );
    store.leave(after).await
}

async fn a_live_boot_is_not_fenced_and_a_fenced_one_never_live(
    subject: &dyn Subject,
) -> Result<(), StoreError> {
    let (store, me) = (subject.liveness(), host("fence", "boot-1"));
    let lease = joined(store.join(&me, "1", LONG).await?);
    let record = record(Proof::LeaseEnded);
    assert_eq!(store.fence(&me, &record).await?, Fence::Alive);
    assert!(store.roll().await?.fenced.is_empty() || !store.roll().await?.fenced.contains_key(&me));

    store.leave(lease).await?;
    for _ in 0..2 {
        assert_eq!(store.fence(&me, &record).await?, Fence::Fenced(record.clone()));
    }
    assert_eq!(store.roll().await?.fenced.get(&me), Some(&record));
    assert_eq!(store.join(&me, "1", LONG).await?, Join::Fenced(record.clone()));
    assert!(!is_live(&*store, &me).await?);

    let next = host("fence", "boot-2");
    let lease = joined(store.join(&next, "1", LONG).await?);
    store.leave(lease).await?;
    let later = FenceRecord { revision: record.revision + 1, ..record.clone() };
    assert_eq!(store.unfence(&me, &later).await?, Unfence::Refused(record.clone()));
    assert_eq!(store.roll().await?.fenced.get(&me), Some(&record), "it is another record");
    for _ in 0..2 {
        assert_eq!(store.unfence(&me, &record).await?, Unfence::Unfenced);
    }
    let lease = joined(store.join(&me, "1", LONG).await?);
    store.leave(lease).await
}

async fn a_fence_record_is_replaced_by_one_that_proves_more(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, me) = (subject.liveness(), host("proof", "boot-1"));
    let (ended, confirmed) = (record(Proof::LeaseEnded), record(Proof::Confirmed));
    assert_eq!(store.fence(&me, &ended).await?, Fence::Fenced(ended.clone()));
    assert_eq!(store.fence(&me, &confirmed).await?, Fence::Fenced(confirmed.clone()));
    assert_eq!(
        store.fence(&me, &ended).await?,
        Fence::Fenced(confirmed.clone()),
        "what it proves stays proved"
    );
    assert_eq!(store.unfence(&me, &confirmed).await?, Unfence::Unfenced);
    Ok(())
}

/// The token under which `me` starts `name`.
async fn started(store: &dyn OwnershipStore, name: &str, me: &HostBoot) -> Result<Token, StoreError> {
    match store.start(vm(name), me).await? {
        Start::Acquired(token) => Ok(token),
        other @ (Start::AlreadyMine(_) | Start::Refused(_)) => panic!("not acquired but {other:?}"),
    }
}

fn written(guard: Guard) -> Token {
    match guard {
        Guard::Written(token) => token,
        other @ (Guard::NotLive | Guard::Refused(_)) => panic!("not written but {other:?}"),
    }
}

async fn a_promise_is_written_by_the_owner_alone_and_ends_with_its_ownership(
    subject: &dyn Subject,
) -> Result<(), StoreError> {
    let (store, name, me) = (subject.client(), "guard", host("guard", "boot-1"));
    let (liveness, vm) = (subject.liveness(), vm(name));
    let first = started(&*store, name, &me).await?;
    let other = host("guard", "boot-2");
    assert_eq!(store.guard(vm, &me, first, true).await?, Guard::NotLive);
    assert_eq!(store.owner(vm).await?.map(|owner| (owner.guarded, owner.token)), Some((false, first)));
    let lease = joined(liveness.join(&me, "1", LONG).await?);
    assert!(matches!(store.guard(vm, &other, first, true).await?, Guard::Refused(Some(_))));
    subject.lose_answers(1).await;
    let guarded = written(store.guard(vm, &me, first, true).await?);
    assert!(guarded > first);
    let owner = store.owner(vm).await?;
    assert!(owner.as_ref().is_some_and(|owner| owner.guarded && owner.token == guarded), "{owner:?}");
    assert_eq!(store.start(vm, &me).await?, Start::AlreadyMine(guarded));
    assert_eq!(written(store.guard(vm, &me, guarded, true).await?), guarded, "it is not written twice");
    assert!(matches!(store.guard(vm, &me, first, false).await?, Guard::Refused(Some(_))), "a late one");

    // It is taken back by a host that is not live too, and each time anew: what is under way must not make it again.
    liveness.leave(lease).await?;
    let mut token = guarded;
    for _ in 0..2 {
        let next = written(store.guard(vm, &me, token, false).await?);
        assert!(next > token);
        assert_eq!(store.owner(vm).await?.map(|owner| (owner.guarded, owner.token)), Some((false, next)));
        token = next;
    }
    let lease = joined(liveness.join(&me, "1", LONG).await?);
    assert!(written(store.guard(vm, &me, token, true).await?) > token);
    liveness.leave(lease).await?;

    // A reboot makes another owner, which has promised nothing.
    let rebooted = started(&*store, name, &other).await?;
    assert_eq!(store.owner(vm).await?.map(|owner| (owner.guarded, owner.token)), Some((false, rebooted)));
    store.release(vm, &other, rebooted).await?;
    assert_eq!(store.guard(vm, &other, rebooted, true).await?, Guard::Refused(None));
    Ok(())
}

async fn only_what_a_dead_host_owns_is_stolen_and_by_a_live_one(
    subject: &dyn Subject,
) -> Result<(), StoreError> {
    let (store, liveness) = (subject.client(), subject.liveness());
    let (dead, heir) = (host("dead", "boot-1"), host("heir", "boot-1"));
    let lease = joined(liveness.join(&dead, "1", LONG).await?);
    let token = started(&*store, "stolen", &dead).await?;
    let token = written(store.guard(vm("stolen"), &dead, token, true).await?);
    let steal = || store.steal(vm("stolen"), &dead, token, &heir);
    let heirs = joined(liveness.join(&heir, "1", LONG).await?);
    assert_eq!(steal().await?, Steal::NotDead, "it is live");
    liveness.leave(lease).await?;
    assert_eq!(steal().await?, Steal::NotDead, "it is not fenced");
    liveness.fence(&dead, &record(Proof::LeaseEnded)).await?;
    liveness.leave(heirs).await?;
    assert_eq!(steal().await?, Steal::NobodyThere);
    let heirs = joined(liveness.join(&heir, "1", LONG).await?);
    let wrong = store.steal(vm("stolen"), &dead, Token(token.0 - 1), &heir).await?;
    assert!(matches!(wrong, Steal::Refused(Some(_))), "{wrong:?}");
    let Steal::Stolen(new) = steal().await? else { panic!("not stolen") };
    assert!(new > token);
    let HostBoot { host, boot_id } = heir.clone();
    let succeeds = Some(token);
    let owner = Owner { host, boot_id, phase: Phase::Running, guarded: false, token: new, succeeds };
    assert_eq!(store.owner(vm("stolen")).await?, Some(owner.clone()));
    assert_eq!(steal().await?, Steal::Refused(Some(owner.clone())), "it is stolen once");
    assert_eq!(store.start(vm("stolen"), &heir).await?, Start::AlreadyMine(new));
    assert_eq!(store.start(vm("stolen"), &dead).await?, Start::Refused(owner));

    liveness.leave(heirs).await?;
    liveness.unfence(&dead, &record(Proof::LeaseEnded)).await.map(drop)
}

async fn a_lost_answer_steals_once(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, liveness) = (subject.client(), subject.liveness());
    let (dead, heir) = (host("lost", "boot-1"), host("found", "boot-1"));
    let token = started(&*store, "lost answer of a steal", &dead).await?;
    liveness.fence(&dead, &record(Proof::Confirmed)).await?;
    let lease = joined(liveness.join(&heir, "1", LONG).await?);
    subject.lose_answers(1).await;
    let stolen = store.steal(vm("lost answer of a steal"), &dead, token, &heir).await?;
    assert!(matches!(stolen, Steal::Stolen(new) if new > token), "{stolen:?}");
    liveness.leave(lease).await?;
    liveness.unfence(&dead, &record(Proof::Confirmed)).await.map(drop)
}
