//! What every ownership store must do, as a script that runs against any of them.
//!
//! A store passes when [`run`] returns `Ok`; it panics at the first promise that is broken. The checks use virtual
//! machines of their own, so other records may be in the store.

mod disks;
mod hand_over;
mod saved;

use std::sync::Arc;

use async_trait::async_trait;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::liveness::{self, Liveness};
use crate::names::{BootId, HostBoot, HostName, Owner, Phase, Token, VmUid};
use crate::store::{OwnershipStore, Release, Start, StoreError};

/// One store under test, and the hooks that the script needs besides the protocol.
#[async_trait]
pub trait Subject: Sync {
    /// A client of the store, on a connection of its own.
    fn client(&self) -> Arc<dyn OwnershipStore>;

    /// The same store as agents and the controller see hosts in it, on a connection of its own.
    fn liveness(&self) -> Arc<dyn Liveness>;

    /// Executes each of the next `writes` transactions of the clients made here, and loses its answer.
    async fn lose_answers(&self, writes: u32);

    /// Writes `value` as the record of `vm`, behind the protocol's back.
    async fn overwrite(&self, vm: VmUid, value: &[u8]);
}

/// A virtual machine, the same one for the same name.
#[must_use]
pub fn vm(name: &str) -> VmUid {
    VmUid(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
}

/// A host at a boot.
///
/// # Panics
/// When one of the names is not valid.
#[must_use]
pub fn host(name: &str, boot: &str) -> HostBoot {
    let host = HostName::new(name).unwrap_or_else(|error| panic!("{error}"));
    let boot_id = BootId::new(boot).unwrap_or_else(|error| panic!("{error}"));
    HostBoot { host, boot_id }
}

/// Runs the whole script against `subject`.
///
/// # Errors
/// Whatever the store answers to a call that must not fail.
///
/// # Panics
/// When the store breaks a promise.
pub async fn run(subject: &dyn Subject) -> Result<(), StoreError> {
    a_start_makes_the_host_the_owner(subject).await?;
    a_second_host_is_refused(subject).await?;
    a_release_is_for_the_owner_under_its_token_alone(subject).await?;
    the_token_grows_with_every_new_owner(subject).await?;
    a_host_takes_over_from_its_own_earlier_boot(subject).await?;
    a_lost_answer_changes_no_result(subject).await?;
    of_concurrent_starters_one_wins(subject).await?;
    a_release_and_a_start_at_once_leave_one_owner_at_most(subject).await?;
    hand_over::run(subject).await?;
    saved::run(subject).await?;
    disks::run(subject).await?;
    liveness::conformance::run(subject).await?;
    an_unreadable_record_is_no_owner_and_not_absent(subject).await?;
    Ok(())
}

/// The token of a start that must have made the caller the owner.
#[track_caller]
fn acquired(start: Start) -> Token {
    match start {
        Start::Acquired(token) => token,
        other @ (Start::AlreadyMine(_) | Start::Refused(_)) => panic!("not acquired but {other:?}"),
    }
}

fn owner(me: &HostBoot, token: Token) -> Owner {
    let HostBoot { host, boot_id } = me.clone();
    Owner { host, boot_id, phase: Phase::Running, guarded: false, token, succeeds: None }
}

async fn a_start_makes_the_host_the_owner(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, vm, me) = (subject.client(), vm("start"), host("xen-1", "boot-1"));
    assert_eq!(store.owner(vm).await?, None);
    let token = acquired(store.start(vm, &me).await?);
    assert!(token > Token(0));

    let expected = owner(&me, token);
    assert_eq!(subject.client().owner(vm).await?, Some(expected.clone()), "seen by another client");
    assert_eq!(store.owners().await?.get(&vm), Some(&expected));
    for _ in 0..2 {
        assert_eq!(store.start(vm, &me).await?, Start::AlreadyMine(token), "a repeated start writes nothing");
    }
    assert_eq!(store.owner(vm).await?, Some(expected));
    Ok(())
}

async fn a_second_host_is_refused(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, vm, first) = (subject.client(), vm("second host"), host("xen-1", "boot-1"));
    let token = acquired(store.start(vm, &first).await?);
    // With an equal boot id, and with another one: it is the host that counts.
    for boot in ["boot-1", "boot-2"] {
        let second = host("xen-2", boot);
        assert_eq!(store.start(vm, &second).await?, Start::Refused(owner(&first, token)));
        let refused = Release::NotOwner(Some(owner(&first, token)));
        assert_eq!(store.release(vm, &second, token).await?, refused, "a stolen token is worth nothing");
    }
    assert_eq!(store.owner(vm).await?, Some(owner(&first, token)));
    Ok(())
}

async fn a_release_is_for_the_owner_under_its_token_alone(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, vm, me) = (subject.client(), vm("release"), host("xen-1", "boot-1"));
    assert_eq!(store.release(vm, &me, Token(1)).await?, Release::NotOwner(None));
    let token = acquired(store.start(vm, &me).await?);
    let mine = Some(owner(&me, token));
    for wrong in [Token(0), Token(token.0 - 1), Token(token.0 + 1), Token(u64::MAX)] {
        assert_eq!(store.release(vm, &me, wrong).await?, Release::NotOwner(mine.clone()));
    }
    assert_eq!(store.release(vm, &me, token).await?, Release::Released);
    assert_eq!(store.owner(vm).await?, None);
    assert!(!store.owners().await?.contains_key(&vm));
    assert_eq!(store.release(vm, &me, token).await?, Release::NotOwner(None));

    let next = acquired(store.start(vm, &me).await?);
    let refused = Release::NotOwner(Some(owner(&me, next)));
    assert_eq!(store.release(vm, &me, token).await?, refused, "a late release ends no later ownership");
    Ok(())
}

async fn the_token_grows_with_every_new_owner(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, vm) = (subject.client(), vm("tokens"));
    let mut last = Token(0);
    for name in ["xen-1", "xen-2", "xen-2", "xen-1"] {
        let me = host(name, "boot-1");
        let token = acquired(store.start(vm, &me).await?);
        assert!(token > last, "{token} follows {last}");
        assert_eq!(store.release(vm, &me, token).await?, Release::Released);
        last = token;
    }
    Ok(())
}

async fn a_host_takes_over_from_its_own_earlier_boot(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, vm) = (subject.client(), vm("reboot"));
    let (before, after) = (host("xen-1", "boot-1"), host("xen-1", "boot-2"));
    let old = acquired(store.start(vm, &before).await?);
    let new = acquired(store.start(vm, &after).await?);
    assert!(new > old, "{new} follows {old}");
    assert_eq!(store.owner(vm).await?, Some(owner(&after, new)));
    assert_eq!(store.release(vm, &after, old).await?, Release::NotOwner(Some(owner(&after, new))));

    let last = host("xen-1", "boot-3");
    assert_eq!(store.release(vm, &last, new).await?, Release::Released, "it need not start first to release");
    Ok(())
}

async fn a_lost_answer_changes_no_result(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, vm) = (subject.client(), vm("lost answer"));
    let (before, after) = (host("xen-1", "boot-1"), host("xen-1", "boot-2"));
    subject.lose_answers(1).await;
    let old = acquired(store.start(vm, &before).await?);
    assert_eq!(store.owner(vm).await?, Some(owner(&before, old)));
    subject.lose_answers(1).await;
    let new = acquired(store.start(vm, &after).await?);
    assert!(new > old, "{new} follows {old}");
    assert_eq!(store.owner(vm).await?, Some(owner(&after, new)));
    subject.lose_answers(1).await;
    assert_eq!(store.release(vm, &after, new).await?, Release::Released);
    assert_eq!(store.owner(vm).await?, None);
    Ok(())
}

async fn of_concurrent_starters_one_wins(subject: &dyn Subject) -> Result<(), StoreError> {
    for round in 0..10 {
        let vm = vm(&format!("race {round}"));
        let mut calls = JoinSet::new();
        // Two calls of each host: a host does not lose against itself.
        for number in 0..8 {
            let (store, me) = (subject.client(), host(&format!("xen-{}", number / 2), "boot-1"));
            calls.spawn(async move { (store.start(vm, &me).await, me) });
        }
        let answers = calls.join_all().await;
        let Some(winner) = subject.client().owner(vm).await? else {
            panic!("nobody owns {vm} after {answers:?}");
        };
        let mut wins = 0;
        for (answer, me) in answers {
            match answer? {
                Start::Acquired(token) => {
                    assert_eq!(owner(&me, token), winner);
                    wins += 1;
                }
                Start::AlreadyMine(token) => assert_eq!(owner(&me, token), winner),
                Start::Refused(other) => {
                    assert_eq!(other, winner);
                    assert_ne!(other.host, me.host);
                }
            }
        }
        assert_eq!(wins, 1, "one starter of {vm} acquires it");
    }
    Ok(())
}

async fn a_release_and_a_start_at_once_leave_one_owner_at_most(
    subject: &dyn Subject,
) -> Result<(), StoreError> {
    for round in 0..10 {
        let vm = vm(&format!("hand-over {round}"));
        let (old, new) = (host("xen-1", "boot-1"), host("xen-2", "boot-1"));
        let (giver, taker) = (subject.client(), subject.client());
        let token = acquired(giver.start(vm, &old).await?);
        let (release, start) = tokio::join!(giver.release(vm, &old, token), taker.start(vm, &new));
        assert_eq!(release?, Release::Released);
        match start? {
            Start::Acquired(next) => {
                assert!(next > token, "{next} follows {token}");
                assert_eq!(taker.owner(vm).await?, Some(owner(&new, next)));
            }
            Start::Refused(other) => {
                assert_eq!(other, owner(&old, token));
                assert_eq!(taker.owner(vm).await?, None);
            }
            Start::AlreadyMine(_) => panic!("a host that never started {vm} was told that it owns it"),
        }
    }
    Ok(())
}

async fn an_unreadable_record_is_no_owner_and_not_absent(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, me) = (subject.client(), host("xen-1", "boot-1"));
    let healthy = vm("beside an unreadable record");
    let token = acquired(store.start(healthy, &me).await?);
    for (number, value) in [&b"\xff\xfe"[..], b"", b"{}", br#"{"version":99}"#].into_iter().enumerate() {
        let vm = vm(&format!("unreadable {number}"));
        subject.overwrite(vm, value).await;
        let results = [
            store.owner(vm).await.map(|_| ()),
            store.start(vm, &me).await.map(|_| ()),
            store.release(vm, &me, token).await.map(|_| ()),
            store.commit(vm, &me, token, &host("xen-2", "boot-1")).await.map(|_| ()),
            store.abort(vm, &me, token).await.map(|_| ()),
        ];
        for result in results {
            assert!(matches!(result, Err(StoreError::Corrupt { .. })), "{value:?} led to {result:?}");
        }
        let owners = store.owners().await?;
        assert!(!owners.contains_key(&vm));
        assert_eq!(owners.get(&healthy), Some(&owner(&me, token)), "others are not harmed");
    }
    Ok(())
}
