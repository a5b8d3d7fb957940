//! CLAIM, RETIRE and FORGET: which machine a shared disk belongs to.

use uuid::Uuid;

use super::{Subject, acquired, host, vm};
use crate::disk::DiskUid;
use crate::names::Token;
use crate::store::{Abort, ClaimDisk, Commit, ForgetDisk, RetireDisk, StoreError};

pub(super) async fn run(subject: &dyn Subject) -> Result<(), StoreError> {
    a_disk_is_of_one_machine_as_long_as_that_has_an_owner(subject).await?;
    a_claim_is_for_whoever_owns_the_machine(subject).await?;
    a_disk_is_released_by_its_machine_alone(subject).await?;
    a_disk_stays_with_its_machine_through_a_hand_over(subject).await?;
    a_retired_disk_is_nobodys(subject).await?;
    the_list_of_disks_names_who_has_each_and_no_retired_one(subject).await?;
    of_two_machines_that_claim_at_once_one_gets_the_disk(subject).await?;
    Ok(())
}

fn disk(name: &str) -> DiskUid {
    DiskUid(Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()))
}

async fn a_disk_is_of_one_machine_as_long_as_that_has_an_owner(
    subject: &dyn Subject,
) -> Result<(), StoreError> {
    let (store, disk, me) = (subject.client(), disk("one machine"), host("xen-1", "boot-1"));
    let (first, second) = (vm("disk's first"), vm("disk's second"));
    let of_first = acquired(store.start(first, &me).await?);
    let of_second = acquired(store.start(second, &host("xen-2", "boot-1")).await?);
    for _ in 0..2 {
        assert_eq!(store.claim_disk(disk, first, of_first).await?, ClaimDisk::Claimed);
    }
    assert_eq!(store.claim_disk(disk, second, of_second).await?, ClaimDisk::HeldBy(first));
    store.release(first, &me, of_first).await?;
    assert_eq!(store.claim_disk(disk, second, of_second).await?, ClaimDisk::Claimed);
    let again = acquired(store.start(first, &me).await?);
    assert_eq!(store.claim_disk(disk, first, again).await?, ClaimDisk::HeldBy(second));
    Ok(())
}

async fn the_list_of_disks_names_who_has_each_and_no_retired_one(
    subject: &dyn Subject,
) -> Result<(), StoreError> {
    let (store, vm, me) = (subject.client(), vm("disk's lister"), host("xen-1", "boot-1"));
    let (held, released, retired) = (disk("listed"), disk("listed and released"), disk("listed and retired"));
    let token = acquired(store.start(vm, &me).await?);
    for disk in [held, released] {
        assert_eq!(store.claim_disk(disk, vm, token).await?, ClaimDisk::Claimed);
    }
    store.release_disk(released, vm).await?;
    assert_eq!(store.retire_disk(retired).await?, RetireDisk::Retired);
    let listed = store.disks().await?;
    assert_eq!(listed.get(&held), Some(&vm));
    assert!(!listed.contains_key(&released) && !listed.contains_key(&retired), "{listed:?}");
    Ok(())
}

async fn a_claim_is_for_whoever_owns_the_machine(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, disk, vm, me) =
        (subject.client(), disk("not owner"), vm("disk's owner"), host("xen-1", "boot-1"));
    assert_eq!(store.claim_disk(disk, vm, Token(1)).await?, ClaimDisk::NotOwner);
    let token = acquired(store.start(vm, &me).await?);
    assert_eq!(store.claim_disk(disk, vm, Token(token.0 - 1)).await?, ClaimDisk::NotOwner);
    assert_eq!(store.claim_disk(disk, vm, token).await?, ClaimDisk::Claimed);
    Ok(())
}

async fn a_disk_is_released_by_its_machine_alone(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, disk, me) = (subject.client(), disk("released"), host("xen-1", "boot-1"));
    let (first, second) = (vm("disk's releaser"), vm("disk's waiter"));
    let (of_first, of_second) =
        (acquired(store.start(first, &me).await?), acquired(store.start(second, &me).await?));
    assert_eq!(store.claim_disk(disk, first, of_first).await?, ClaimDisk::Claimed);
    store.release_disk(disk, second).await?;
    assert_eq!(store.claim_disk(disk, second, of_second).await?, ClaimDisk::HeldBy(first));
    for _ in 0..2 {
        store.release_disk(disk, first).await?;
    }
    assert_eq!(store.claim_disk(disk, second, of_second).await?, ClaimDisk::Claimed);
    Ok(())
}

async fn a_disk_stays_with_its_machine_through_a_hand_over(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, disk, vm) = (subject.client(), disk("hand-over"), vm("disk's mover"));
    let (from, to) = (host("xen-1", "boot-1"), host("xen-2", "boot-1"));
    let token = acquired(store.start(vm, &from).await?);
    assert_eq!(store.claim_disk(disk, vm, token).await?, ClaimDisk::Claimed);
    let Abort::Aborted(token) = store.abort(vm, &from, token).await? else { panic!("not aborted") };
    let Commit::Committed(token) = store.commit(vm, &from, token, &to).await? else {
        panic!("not committed")
    };
    assert_eq!(store.retire_disk(disk).await?, RetireDisk::HeldBy(vm));
    assert_eq!(store.claim_disk(disk, vm, token).await?, ClaimDisk::Claimed);
    Ok(())
}

async fn a_retired_disk_is_nobodys(subject: &dyn Subject) -> Result<(), StoreError> {
    let (store, disk, vm, me) =
        (subject.client(), disk("retired"), vm("disk's late machine"), host("xen-1", "boot-1"));
    let token = acquired(store.start(vm, &me).await?);
    assert_eq!(store.claim_disk(disk, vm, token).await?, ClaimDisk::Claimed);
    assert_eq!(store.forget_disk(disk).await?, ForgetDisk::HeldBy(vm));
    assert_eq!(store.retire_disk(disk).await?, RetireDisk::HeldBy(vm));
    store.release(vm, &me, token).await?;
    for _ in 0..2 {
        assert_eq!(store.retire_disk(disk).await?, RetireDisk::Retired);
    }
    let token = acquired(store.start(vm, &me).await?);
    assert_eq!(store.claim_disk(disk, vm, token).await?, ClaimDisk::Retired);
    for _ in 0..2 {
        assert_eq!(store.forget_disk(disk).await?, ForgetDisk::Forgotten);
    }
    assert_eq!(store.claim_disk(disk, vm, token).await?, ClaimDisk::Claimed);
    store.release(vm, &me, token).await?;
    assert_eq!(store.forget_disk(disk).await?, ForgetDisk::Forgotten, "its machine runs nowhere");
    Ok(())
}

async fn of_two_machines_that_claim_at_once_one_gets_the_disk(
    subject: &dyn Subject,
) -> Result<(), StoreError> {
    let (disk, me) = (disk("race"), host("xen-1", "boot-1"));
    let (first, second) = (vm("disk's racer 1"), vm("disk's racer 2"));
    let store = subject.client();
    let (of_first, of_second) =
        (acquired(store.start(first, &me).await?), acquired(store.start(second, &me).await?));
    let (one, other) = (subject.client(), subject.client());
    let claims =
        tokio::join!(one.claim_disk(disk, first, of_first), other.claim_disk(disk, second, of_second));
    match (claims.0?, claims.1?) {
        (ClaimDisk::Claimed, ClaimDisk::HeldBy(holder)) => assert_eq!(holder, first),
        (ClaimDisk::HeldBy(holder), ClaimDisk::Claimed) => assert_eq!(holder, second),
        both => panic!("{both:?}"),
    }
    Ok(())
}
