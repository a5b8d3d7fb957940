//! COMMIT and ABORT: one host hands a virtual machine to another, or keeps it.

use super::{Subject, acquired, host, owner, vm};
use crate::names::{HostBoot, Owner, Token};
use crate::store::{Abort, Commit, Release, Start, StoreError};

pub(super) async fn run(subject: &dyn Subject) -> Result<(), StoreError> {
    a_commit_makes_the_destination_the_owner(subject).await?;
    an_abort_keeps_the_owner_and_ends_every_commit_under_its_old_token(subject).await?;
    only_the_owner_under_its_token_hands_over_or_aborts(subject).await?;
    a_lost_answer_changes_no_result(subject).await?;
    of_a_commit_and_an_abort_at_once_one_takes_effect(subject).await?;
    Ok(())
}

#[track_caller]
fn committed(commit: Commit) -> Token {
    match commit {
        Commit::Committed(token) => token,
        Commit::Refused(owner) => panic!("not committed: {owner:?} owns"),
    }
}

#[track_caller]
fn aborted(abort: Abort) -> Token {
    match abort {
        Abort::Aborted(token) => token,
        Abort::Refused(owner) => panic!("not aborted: {owner:?} owns"),
    }
}

/// The owner that a commit made of the destination.
fn successor(to: &HostBoot, token: Token, of: Token) -> Owner {
    Owner { succeeds: Some(of), ..owner(to, token) }
}

async fn a_commit_makes_the_destination_the_owner(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, vm) = (subject.client(), vm("commit"));
    let (from, to) = (host("xen-1", "boot-1"), host("xen-2", "boot-1"));
    assert_eq!(store.commit(vm, &from, Token(1), &to).await?, Commit::Refused(None));
    let old = acquired(store.start(vm, &from).await?);
    let new = committed(store.commit(vm, &from, old, &to).await?);
    assert!(new > old, "{new} follows {old}");

    let now = successor(&to, new, old);
    assert_eq!(subject.client().owner(vm).await?, Some(now.clone()), "seen by another client");
    assert_eq!(store.start(vm, &to).await?, Start::AlreadyMine(new));
    assert_eq!(store.start(vm, &from).await?, Start::Refused(now.clone()));
    assert_eq!(store.release(vm, &from, old).await?, Release::NotOwner(Some(now.clone())));
    assert_eq!(store.abort(vm, &from, old).await?, Abort::Refused(Some(now.clone())));
    for _ in 0..2 {
        let refused = Commit::Refused(Some(now.clone()));
        assert_eq!(store.commit(vm, &from, old, &to).await?, refused, "a repeated commit writes nothing");
    }
    assert_eq!(store.owner(vm).await?, Some(now));

    let back = committed(store.commit(vm, &to, new, &from).await?);
    assert!(back > new, "{back} follows {new}");
    assert_eq!(store.release(vm, &from, back).await?, Release::Released);
    Ok(())
}

async fn an_abort_keeps_the_owner_and_ends_every_commit_under_its_old_token(
    subject: &dyn Subject,
) -> Result<(), StoreError> {
    let (store, vm) = (subject.client(), vm("abort"));
    let (from, to) = (host("xen-1", "boot-1"), host("xen-2", "boot-1"));
    assert_eq!(store.abort(vm, &from, Token(1)).await?, Abort::Refused(None));
    let old = acquired(store.start(vm, &from).await?);
    let new = aborted(store.abort(vm, &from, old).await?);
    assert!(new > old, "{new} follows {old}");

    let now = owner(&from, new);
    assert_eq!(subject.client().owner(vm).await?, Some(now.clone()), "seen by another client");
    assert_eq!(store.commit(vm, &from, old, &to).await?, Commit::Refused(Some(now.clone())));
    for _ in 0..2 {
        let refused = Abort::Refused(Some(now.clone()));
        assert_eq!(store.abort(vm, &from, old).await?, refused, "a repeated abort writes nothing");
    }
    assert_eq!(store.start(vm, &from).await?, Start::AlreadyMine(new));
    let newest = aborted(store.abort(vm, &from, new).await?);
    assert!(newest > new, "{newest} follows {new}");
    assert_eq!(store.owner(vm).await?, Some(owner(&from, newest)));
    Ok(())
}

async fn only_the_owner_under_its_token_hands_over_or_aborts(
    subject: &dyn Subject,
) -> Result<(), StoreError> {
    let (store, vm) = (subject.client(), vm("hand-over by strangers"));
    let (me, to) = (host("xen-1", "boot-2"), host("xen-3", "boot-1"));
    let token = acquired(store.start(vm, &me).await?);
    let mine = Some(owner(&me, token));
    let wrong_tokens = [Token(0), Token(token.0 - 1), Token(token.0 + 1), Token(u64::MAX)];
    let strangers = [host("xen-1", "boot-1"), host("xen-2", "boot-2"), to.clone()];
    let callers = wrong_tokens.map(|wrong| (me.clone(), wrong)).into_iter();
    for (caller, token) in callers.chain(strangers.map(|stranger| (stranger, token))) {
        let refused = Commit::Refused(mine.clone());
        assert_eq!(store.commit(vm, &caller, token, &to).await?, refused, "{caller} under {token}");
        let refused = Abort::Refused(mine.clone());
        assert_eq!(store.abort(vm, &caller, token).await?, refused, "{caller} under {token}");
    }
    assert_eq!(store.owner(vm).await?, mine);
    Ok(())
}

async fn a_lost_answer_changes_no_result(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, vm) = (subject.client(), vm("lost answer of a hand-over"));
    let (from, to) = (host("xen-1", "boot-1"), host("xen-2", "boot-1"));
    let started = acquired(store.start(vm, &from).await?);
    subject.lose_answers(1).await;
    let kept = aborted(store.abort(vm, &from, started).await?);
    assert!(kept > started, "{kept} follows {started}");
    assert_eq!(store.owner(vm).await?, Some(owner(&from, kept)));
    subject.lose_answers(1).await;
    let moved = committed(store.commit(vm, &from, kept, &to).await?);
    assert!(moved > kept, "{moved} follows {kept}");
    assert_eq!(store.owner(vm).await?, Some(successor(&to, moved, kept)));
    Ok(())
}

async fn of_a_commit_and_an_abort_at_once_one_takes_effect(subject: &dyn Subject) -> Result<(), StoreError> {
    for round in 0..10 {
        let vm = vm(&format!("commit or abort {round}"));
        let (from, to) = (host("xen-1", "boot-1"), host("xen-2", "boot-1"));
        let (source, destination) = (subject.client(), subject.client());
        let token = acquired(source.start(vm, &from).await?);
        let (commit, abort) =
            tokio::join!(destination.commit(vm, &from, token, &to), source.abort(vm, &from, token));
        let winner = match (commit?, abort?) {
            (Commit::Committed(new), Abort::Refused(found)) => {
                assert_eq!(found, Some(successor(&to, new, token)));
                successor(&to, new, token)
            }
            (Commit::Refused(found), Abort::Aborted(new)) => {
                assert_eq!(found, Some(owner(&from, new)));
                owner(&from, new)
            }
            other => panic!("{vm} is with both hosts or with none: {other:?}"),
        };
        assert!(winner.token > token, "{} follows {token}", winner.token);
        assert_eq!(source.owner(vm).await?, Some(winner));
    }
    Ok(())
}
