//! SAVE, RESUME, RUN and DISCARD: a guest that is in a disk belongs to nobody who would start it afresh.

use uuid::Uuid;

use super::{Subject, acquired, host, owner, vm};
use crate::disk::DiskUid;
use crate::names::{HostBoot, Owner, Phase, Token, VmUid};
use crate::store::{
    Abort, ClaimDisk, Commit, Discard, OwnershipStore, Release, Resume, RetireDisk, Run, Save, Start,
    StoreError,
};

pub(super) async fn run(subject: &dyn Subject) -> Result<(), StoreError> {
    a_saved_guest_is_resumed_once_and_by_whoever_comes_first(subject).await?;
    nobody_starts_afresh_what_is_saved(subject).await?;
    what_was_to_be_resumed_is_given_back(subject).await?;
    a_guest_that_runs_on_is_not_saved_by_a_late_save(subject).await?;
    what_is_saved_is_discarded_only_while_nobody_resumes_it(subject).await?;
    a_saved_guest_keeps_its_disks(subject).await?;
    a_lost_answer_changes_no_result(subject).await?;
    Ok(())
}

fn disk(name: &str) -> DiskUid {
    DiskUid(Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()))
}

#[track_caller]
fn saved(save: Save) -> Token {
    match save {
        Save::Saved(token) => token,
        Save::Refused(owner) => panic!("not saved: {owner:?} owns"),
    }
}

#[track_caller]
fn resuming(resume: Resume) -> Token {
    match resume {
        Resume::Resuming(token) => token,
        Resume::Refused(owner) => panic!("not resuming: {owner:?} owns"),
    }
}

#[track_caller]
fn running(run: Run) -> Token {
    match run {
        Run::Running(token) => token,
        Run::Refused(owner) => panic!("not running: {owner:?} owns"),
    }
}

fn in_phase(me: &HostBoot, phase: Phase, token: Token) -> Owner {
    Owner { phase, ..owner(me, token) }
}

/// A virtual machine that `me` has saved.
async fn save(
    store: &dyn OwnershipStore,
    vm: VmUid,
    me: &HostBoot,
    disk: DiskUid,
) -> Result<Token, StoreError> {
    let token = acquired(store.start(vm, me).await?);
    Ok(saved(store.save(vm, me, token, disk).await?))
}

async fn a_saved_guest_is_resumed_once_and_by_whoever_comes_first(
    subject: &dyn Subject,
) -> Result<(), StoreError> {
    let (store, vm, disk) = (subject.client(), vm("saved"), disk("saved"));
    let (first, second) = (host("xen-1", "boot-1"), host("xen-2", "boot-1"));
    assert_eq!(store.resume(vm, &first, disk).await?, Resume::Refused(None));
    let old = acquired(store.start(vm, &first).await?);
    let token = saved(store.save(vm, &first, old, disk).await?);
    assert!(token > old, "{token} follows {old}");
    let there = in_phase(&first, Phase::Saved(disk), token);
    assert_eq!(subject.client().owner(vm).await?, Some(there.clone()), "seen by another client");
    assert_eq!(store.save(vm, &first, old, disk).await?, Save::Refused(Some(there)));

    let taken = resuming(store.resume(vm, &second, disk).await?);
    for _ in 0..2 {
        assert_eq!(store.resume(vm, &second, disk).await?, Resume::Resuming(taken), "repeated");
    }
    let resumer = in_phase(&second, Phase::Resuming(disk), taken);
    assert_eq!(store.resume(vm, &first, disk).await?, Resume::Refused(Some(resumer.clone())));
    assert_eq!(store.run(vm, &first, taken).await?, Run::Refused(Some(resumer)));
    let runs = running(store.run(vm, &second, taken).await?);
    assert!(runs > taken, "{runs} follows {taken}");
    let now = owner(&second, runs);
    for me in [&first, &second] {
        assert_eq!(store.resume(vm, me, disk).await?, Resume::Refused(Some(now.clone())), "not twice");
    }
    assert_eq!(store.start(vm, &second).await?, Start::AlreadyMine(runs));
    assert_eq!(store.release(vm, &second, runs).await?, Release::Released);
    Ok(())
}

async fn nobody_starts_afresh_what_is_saved(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, vm, disk, me) =
        (subject.client(), vm("saved, not fresh"), disk("not fresh"), host("xen-1", "boot-1"));
    let token = save(&*store, vm, &me, disk).await?;
    is_left_alone(&*store, vm, &in_phase(&me, Phase::Saved(disk), token)).await?;
    let token = resuming(store.resume(vm, &me, disk).await?);
    is_left_alone(&*store, vm, &in_phase(&me, Phase::Resuming(disk), token)).await?;
    Ok(())
}

/// Makes sure that the verbs for what runs do nothing.
async fn is_left_alone(store: &dyn OwnershipStore, vm: VmUid, record: &Owner) -> Result<(), StoreError> {
    let me = host(record.host.as_str(), record.boot_id.as_str());
    for who in [&me, &host("xen-1", "boot-2"), &host("xen-2", "boot-1")] {
        assert_eq!(store.start(vm, who).await?, Start::Refused(record.clone()));
    }
    let (there, token) = (Some(record.clone()), record.token);
    assert_eq!(store.release(vm, &me, token).await?, Release::NotOwner(there.clone()));
    assert_eq!(store.abort(vm, &me, token).await?, Abort::Refused(there.clone()));
    assert_eq!(store.commit(vm, &me, token, &host("xen-3", "boot-1")).await?, Commit::Refused(there));
    Ok(())
}

async fn what_was_to_be_resumed_is_given_back(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, vm, disk) = (subject.client(), vm("given back"), disk("given back"));
    let (me, later) = (host("xen-1", "boot-1"), host("xen-1", "boot-2"));
    save(&*store, vm, &me, disk).await?;
    let before = resuming(store.resume(vm, &me, disk).await?);
    let token = saved(store.save(vm, &later, before, disk).await?);
    assert_eq!(store.owner(vm).await?, Some(in_phase(&later, Phase::Saved(disk), token)));
    let again = resuming(store.resume(vm, &me, disk).await?);
    let after_a_reboot = resuming(store.resume(vm, &later, disk).await?);
    assert!(after_a_reboot > again, "{after_a_reboot} follows {again}");
    assert!(matches!(store.run(vm, &me, again).await?, Run::Refused(Some(_))), "its boot is over");
    running(store.run(vm, &later, after_a_reboot).await?);
    Ok(())
}

async fn a_guest_that_runs_on_is_not_saved_by_a_late_save(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, vm, disk, me) =
        (subject.client(), vm("late save"), disk("late save"), host("xen-1", "boot-1"));
    let old = acquired(store.start(vm, &me).await?);
    let Abort::Aborted(new) = store.abort(vm, &me, old).await? else { panic!("not aborted") };
    let mine = Save::Refused(Some(owner(&me, new)));
    assert_eq!(store.save(vm, &me, old, disk).await?, mine);
    assert_eq!(store.save(vm, &host("xen-1", "boot-2"), new, disk).await?, mine, "it ran at another boot");
    assert_eq!(store.owner(vm).await?, Some(owner(&me, new)));
    Ok(())
}

async fn what_is_saved_is_discarded_only_while_nobody_resumes_it(
    subject: &dyn Subject,
) -> Result<(), StoreError> {
    let (store, vm, me) = (subject.client(), vm("discarded"), host("xen-1", "boot-1"));
    let (its, other) = (disk("discarded"), disk("not discarded"));
    assert_eq!(store.discard(vm, its).await?, Discard::Discarded, "nothing is there");
    save(&*store, vm, &me, its).await?;
    assert_eq!(store.discard(vm, other).await?, Discard::Discarded);
    assert!(store.owner(vm).await?.is_some(), "another disk's content is not this one's");
    let token = resuming(store.resume(vm, &me, its).await?);
    let resumer = in_phase(&me, Phase::Resuming(its), token);
    assert_eq!(store.discard(vm, its).await?, Discard::Refused(resumer));
    saved(store.save(vm, &me, token, its).await?);
    for _ in 0..2 {
        assert_eq!(store.discard(vm, its).await?, Discard::Discarded);
    }
    assert_eq!(store.owner(vm).await?, None);
    let afresh = acquired(store.start(vm, &me).await?);
    assert_eq!(store.discard(vm, its).await?, Discard::Discarded, "it is of no use any more");
    assert_eq!(store.owner(vm).await?, Some(owner(&me, afresh)), "and what runs is left alone");
    Ok(())
}

async fn a_saved_guest_keeps_its_disks(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, data, memory) = (subject.client(), disk("a saved guest's"), disk("a saved guest's memory"));
    let (its, other, me) = (vm("saved with a disk"), vm("wants the disk"), host("xen-1", "boot-1"));
    let token = acquired(store.start(its, &me).await?);
    assert_eq!(store.claim_disk(data, its, token).await?, ClaimDisk::Claimed);
    saved(store.save(its, &me, token, memory).await?);
    let of_other = acquired(store.start(other, &me).await?);
    assert_eq!(store.claim_disk(data, other, of_other).await?, ClaimDisk::HeldBy(its));
    assert_eq!(store.retire_disk(data).await?, RetireDisk::HeldBy(its));
    assert_eq!(store.discard(its, memory).await?, Discard::Discarded);
    assert_eq!(store.claim_disk(data, other, of_other).await?, ClaimDisk::Claimed);
    Ok(())
}

async fn a_lost_answer_changes_no_result(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, vm, disk, me) =
        (subject.client(), vm("lost save"), disk("lost save"), host("xen-1", "boot-1"));
    let token = acquired(store.start(vm, &me).await?);
    subject.lose_answers(1).await;
    let token = {
        let saved_under = saved(store.save(vm, &me, token, disk).await?);
        assert!(saved_under > token);
        saved_under
    };
    subject.lose_answers(1).await;
    let taken = resuming(store.resume(vm, &me, disk).await?);
    assert!(taken > token);
    subject.lose_answers(1).await;
    let runs = running(store.run(vm, &me, taken).await?);
    assert_eq!(store.owner(vm).await?, Some(owner(&me, runs)));
    saved(store.save(vm, &me, runs, disk).await?);
    subject.lose_answers(1).await;
    assert_eq!(store.discard(vm, disk).await?, Discard::Discarded);
    assert_eq!(store.owner(vm).await?, None);
    Ok(())
}
