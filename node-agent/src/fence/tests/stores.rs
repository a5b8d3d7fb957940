//! The promise where the store was restored, or is another one.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_fence_record_that_a_restored_store_still_has_stops_nothing() {
    let bed = Bed::new().await;
    let seen = bed.outside.standing().await.unwrap();
    assert!(bed.outside.begin_epoch(seen.seen_as().next(), &seen).await.unwrap());
    let record = FenceRecord { by: "controller-1".to_owned(), proof: Proof::LeaseEnded, revision: 1 };
    bed.outside.fence(&bed.me, &record).await.unwrap();
    let backup = bed.outside.backup();
    bed.outside.unfence(&bed.me, &record).await.unwrap();
    let (fence, _agent) = bed.agent();
    bed.guarded(&fence).await;
    bed.outside.restore(&backup);
    sleep(seconds(60.0)).await;
    assert_eq!(bed.guest(), Some(DomainState::Running));
    assert_eq!(bed.boot_id().await, bed.me.boot_id.as_str(), "the host was not reset");
    assert!(fence.protection().message.contains("restored from a backup"), "{:?}", fence.protection());
    let roll = bed.outside.roll().await.unwrap();
    assert!(roll.live.contains_key(&bed.me) && roll.fenced.is_empty(), "{roll:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_host_said_before_a_restore_is_no_word_on_a_store_that_is_called_as_before() {
    let bed = Bed::new().await;
    let seen = bed.outside.standing().await.unwrap();
    assert!(bed.outside.begin_epoch(seen.seen_as().next(), &seen).await.unwrap());
    let backup = bed.outside.backup();
    let (fence, _agent) = bed.agent();
    until(|| fence.protection().state == ProtectionState::Ready).await;
    let before = fence.protection().epoch.expect("an epoch");
    bed.outside.restore_as_it_was_called(&backup);
    until(|| fence.frozen().is_some_and(|seen| !seen.broken)).await;
    let frozen = fence.frozen().expect("frozen");
    assert_ne!(frozen.seen_as().to_string(), before);
    fence.set_on_record(&frozen, None);
    assert_eq!(fence.protection().epoch, Some(frozen.seen_as().to_string()));
}

/// Another etcd, of which this pool knows nothing, at this epoch, if it has one.
async fn another_store(number: Option<u64>) -> MemoryStore {
    let wrong = MemoryStore::new();
    wrong.restore(&MemoryStore::new().backup());
    if let Some(number) = number {
        let seen = wrong.standing().await.unwrap();
        let epoch = Epoch { number, cluster: Some(seen.cluster) };
        assert!(wrong.begin_epoch(epoch, &seen).await.unwrap());
    }
    wrong
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_started_with_another_store_takes_nothing_back_that_was_promised() {
    for number in [None, Some(1), Some(9)] {
        let mut bed = Bed::new().await;
        let (fence, agent) = bed.agent();
        let token = bed.guarded(&fence).await;
        drop((fence, agent));
        let wrong = another_store(number).await;
        let untouched = (wrong.revision(), wrong.refusals());
        let right = std::mem::replace(&mut bed.store, wrong.client());
        let (fence, agent) = bed.agent();
        until(|| fence.protection().message.contains("does not say that it follows")).await;
        fence.may_work().unwrap_err();
        assert_eq!(fence.guard(GUEST, token).await.unwrap(), None);
        fence.unguard(GUEST, token).await.unwrap_err();
        assert!(fence.guards(GUEST));
        assert!(bed.host.watchdog().unwrap().is_some(), "the host is reset unless the right one is found");
        assert!(wrong.roll().await.unwrap().live.is_empty(), "it is not live there");
        drop((fence, agent));
        bed.store = right.client();
        let (fence, _agent) = bed.agent();
        until(|| fence.protection().state == ProtectionState::Ready).await;
        assert!(fence.guards(GUEST));
        sleep(seconds(60.0)).await;
        assert_eq!(bed.guest(), Some(DomainState::Running));
        let owner = bed.outside.owner(VmUid(GUEST)).await.unwrap();
        assert_eq!(owner.map(|owner| owner.token), Some(token));
        assert_eq!((wrong.revision(), wrong.refusals()), untouched, "nothing was written there");
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_started_with_another_store_stops_its_guests_in_time_as_without_one() {
    let mut bed = Bed::new().await;
    let (fence, agent) = bed.agent();
    bed.guarded(&fence).await;
    let last = fence.lock().vitals.deadline().unwrap() - Timing::DEFAULT.deadline;
    drop((fence, agent));
    bed.store = another_store(Some(9)).await.client();
    let (_fence, _agent) = bed.agent();
    sleep_until(last + seconds(12.5)).await;
    assert_eq!(bed.guest(), Some(DomainState::Paused));
    sleep_until(last + seconds(60.0)).await;
    assert_eq!(bed.guest(), None);
    assert_eq!(bed.boot_id().await, bed.me.boot_id.as_str(), "the host was not reset");
}

#[tokio::test(start_paused = true)]
async fn an_agent_follows_another_store_once_that_says_that_it_took_the_place_of_its_own() {
    let mut bed = Bed::new().await;
    let (fence, agent) = bed.agent();
    bed.guarded(&fence).await;
    let right = bed.outside.standing().await.unwrap().cluster;
    drop((fence, agent));
    let new = another_store(None).await;
    bed.store = new.client();
    let (fence, agent) = bed.agent();
    until(|| fence.protection().message.contains("does not say that it follows")).await;
    let seen = new.standing().await.unwrap();
    assert!(new.begin_epoch(Epoch { number: 2, cluster: None }, &seen.following(right)).await.unwrap());
    until(|| fence.protection().message.contains("restored from a backup")).await;
    assert!(new.roll().await.unwrap().live.contains_key(&bed.me));
    let frozen = fence.frozen().unwrap();
    fence.set_on_record(&frozen, None);
    assert!(new.begin_epoch(frozen.seen_as().next(), &frozen).await.unwrap());
    until(|| fence.may_work().is_ok()).await;
    drop((fence, agent));
    let (fence, _agent) = bed.agent();
    until(|| fence.protection().state == ProtectionState::Ready).await;
    assert_eq!(fence.protection().epoch, Some(frozen.seen_as().next().to_string()));
}

#[tokio::test(start_paused = true)]
async fn an_agent_of_a_host_that_was_just_booted_works_with_no_store_that_is_not_the_pools() {
    let mut bed = Bed::new().await;
    let right = bed.outside.standing().await.unwrap().seen_as().next();
    let wrong = another_store(Some(9)).await;
    bed.store = wrong.client();
    bed.epoch.send_replace(None);
    let (fence, _agent) = bed.agent();
    sleep(seconds(10.0)).await;
    fence.may_work().expect_err("whose the store is cannot be known before the pool is heard");
    bed.epoch.send_replace(Some(Some(right)));
    until(|| fence.protection().message.contains("does not say that it follows")).await;
    fence.may_work().unwrap_err();
    let seen = wrong.standing().await.unwrap();
    let adopted = Epoch { number: 10, cluster: None };
    assert!(wrong.begin_epoch(adopted, &seen.following(right.cluster.unwrap())).await.unwrap());
    until(|| fence.protection().message.contains("restored from a backup")).await;
    let frozen = fence.frozen().unwrap();
    assert!(wrong.begin_epoch(frozen.seen_as().next(), &frozen).await.unwrap());
    until(|| fence.may_work().is_ok()).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_nothing_was_left_to_hears_the_pool_before_it_joins_a_store() {
    let mut bed = Bed::new().await;
    let right = bed.outside.standing().await.unwrap().seen_as().next();
    let wrong = another_store(Some(9)).await;
    let untouched = (wrong.revision(), wrong.refusals());
    bed.store = wrong.client();
    bed.epoch.send_replace(None);
    let (fence, _agent) = bed.agent();
    sleep(seconds(1.5)).await;
    bed.epoch.send_replace(Some(Some(right)));
    until(|| fence.protection().message.contains("does not say that it follows")).await;
    sleep(seconds(20.0)).await;
    assert_eq!((wrong.revision(), wrong.refusals()), untouched, "nothing was written there");
}

#[tokio::test(start_paused = true)]
async fn a_host_that_joined_while_the_pool_was_not_heard_may_work_a_second_after_it_is() {
    let bed = Bed::new().await;
    bed.epoch.send_replace(None);
    let (fence, _agent) = bed.agent();
    sleep(seconds(2.5)).await;
    assert!(bed.outside.roll().await.unwrap().live.contains_key(&bed.me));
    fence.may_work().expect_err("whose the store is is not known");
    fence.protection_changed().await;
    bed.epoch.send_replace(Some(None));
    tokio::time::timeout(seconds(1.1), fence.protection_changed()).await.expect("what waits for it is told");
    fence.may_work().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_another_has_left_its_lease_to_goes_on_with_it_before_the_pool_is_heard() {
    let bed = Bed::new().await;
    let (fence, agent) = bed.agent();
    bed.guarded(&fence).await;
    drop((fence, agent));
    bed.epoch.send_replace(None);
    let (fence, _agent) = bed.agent();
    sleep(seconds(0.2)).await;
    fence.may_work().unwrap();
    assert_eq!(fence.protection().state, ProtectionState::Ready);
}
