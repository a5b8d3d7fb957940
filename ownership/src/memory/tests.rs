//! Tests of the store in memory.

use async_trait::async_trait;

use super::*;
use crate::conformance::{self, host, vm};
use crate::liveness::Liveness;
use crate::store::{Abort, Guard, OwnershipStore, Release, Start};

#[async_trait]
impl conformance::Subject for MemoryStore {
    fn client(&self) -> Arc<dyn OwnershipStore> {
        Arc::new(self.client())
    }

    fn liveness(&self) -> Arc<dyn Liveness> {
        Arc::new(self.client())
    }

    async fn lose_answers(&self, writes: u32) {
        self.lose_answers(writes);
    }

    async fn overwrite(&self, vm: VmUid, value: &[u8]) {
        self.overwrite(vm, value);
    }
}

#[tokio::test(start_paused = true)]
async fn the_memory_store_passes_the_conformance_script() {
    conformance::run(&MemoryStore::new()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_request_is_sent_again() {
    let (store, vm, me) = (MemoryStore::new(), vm("a"), host("xen-1", "boot-1"));
    store.lose_requests(2);
    let Start::Acquired(token) = store.start(vm, &me).await.unwrap() else { panic!("not acquired") };
    store.lose_requests(2);
    assert_eq!(store.release(vm, &me, token).await.unwrap(), Release::Released);
    assert_eq!(store.owner(vm).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_is_delayed_for_long_hands_over_only_what_was_not_aborted() {
    let (store, from, to) = (MemoryStore::new(), host("xen-1", "boot-1"), host("xen-2", "boot-1"));
    for (name, abort) in [("aborted", true), ("not aborted", false)] {
        let vm = vm(name);
        let Start::Acquired(token) = store.start(vm, &from).await.unwrap() else { panic!("not acquired") };
        store.delay_requests(u32::MAX, Duration::ZERO);
        assert_eq!(store.commit(vm, &from, token, &to).await.unwrap_err().category(), "unknown");
        store.end_faults();
        assert!(store.owner(vm).await.unwrap().unwrap().is(&from));
        if abort {
            let Abort::Aborted(_) = store.abort(vm, &from, token).await.unwrap() else { panic!("not mine") };
        }
        store.deliver_delayed();
        assert!(store.owner(vm).await.unwrap().unwrap().is(if abort { &from } else { &to }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_promise_that_is_delayed_for_long_does_nothing_once_it_is_taken_back() {
    let (store, vm, me) = (MemoryStore::new(), vm("a"), host("xen-1", "boot-1"));
    store.join(&me, "1", std::time::Duration::from_secs(600)).await.unwrap();
    let Start::Acquired(token) = store.start(vm, &me).await.unwrap() else { panic!("not acquired") };
    store.delay_requests(u32::MAX, Duration::ZERO);
    assert_eq!(store.guard(vm, &me, token, true).await.unwrap_err().category(), "unknown");
    store.end_faults();
    let Guard::Written(_) = store.guard(vm, &me, token, false).await.unwrap() else { panic!("not written") };
    store.deliver_delayed();
    assert!(!store.owner(vm).await.unwrap().unwrap().guarded, "and nobody would keep it");
}

#[tokio::test(start_paused = true)]
async fn an_outage_before_anything_is_sent_is_known_to_change_nothing() {
    let (store, vm, me) = (MemoryStore::new(), vm("a"), host("xen-1", "boot-1"));
    store.set_outage(true);
    assert_eq!(store.start(vm, &me).await.unwrap_err().category(), "unavailable");
    assert_eq!(store.owner(vm).await.unwrap_err().category(), "unavailable");
    assert_eq!(store.owners().await.unwrap_err().category(), "unavailable");
    store.set_outage(false);
    assert_eq!(store.owner(vm).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn an_outage_in_the_middle_leaves_the_result_unknown_and_asking_again_settles_it() {
    let (store, vm, me) = (MemoryStore::new(), vm("a"), host("xen-1", "boot-1"));
    store.begin_outage_after_next_write();
    assert_eq!(store.start(vm, &me).await.unwrap_err().category(), "unknown");
    store.set_outage(false);
    let Start::AlreadyMine(token) = store.start(vm, &me).await.unwrap() else { panic!("not mine") };

    store.begin_outage_after_next_write();
    assert_eq!(store.release(vm, &me, token).await.unwrap_err().category(), "unknown");
    store.set_outage(false);
    assert_eq!(store.release(vm, &me, token).await.unwrap(), Release::NotOwner(None));
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_ends_soon_is_waited_for_once_something_was_sent() {
    let (store, vm, me) = (MemoryStore::new(), vm("a"), host("xen-1", "boot-1"));
    store.begin_outage_after_next_write();
    let end = async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        store.set_outage(false);
    };
    let (start, ()) = tokio::join!(store.start(vm, &me), end);
    assert!(matches!(start.unwrap(), Start::Acquired(_)));
}

#[tokio::test(start_paused = true)]
async fn a_restored_store_is_frozen_for_all_clients_until_its_epoch_begins() {
    let (store, vm, me) = (MemoryStore::new(), vm("a"), host("xen-1", "boot-1"));
    let seen = store.standing().await.unwrap();
    assert!(store.begin_epoch(seen.seen_as().next(), &seen).await.unwrap());
    let backup = store.backup();
    let Start::Acquired(_) = store.start(vm, &me).await.unwrap() else { panic!("not acquired") };
    store.restore(&backup);
    for client in [store.clone(), store.client()] {
        assert_eq!(client.owner(vm).await.unwrap_err().category(), "frozen");
        assert_eq!(client.start(vm, &me).await.unwrap_err().category(), "frozen");
    }
    let seen = store.standing().await.unwrap();
    let next = seen.seen_as().next();
    assert_eq!((next.number, next.cluster), (2, Some(seen.cluster)));
    assert!(store.begin_epoch(next, &seen).await.unwrap());
    assert_eq!(store.client().owner(vm).await.unwrap(), None, "it was made after the backup");
}

#[tokio::test(start_paused = true)]
async fn each_freeze_of_a_store_that_keeps_its_identity_has_a_number_that_it_never_had() {
    let store = MemoryStore::new();
    let seen = store.standing().await.unwrap();
    assert!(store.begin_epoch(seen.seen_as().next(), &seen).await.unwrap());
    let normal = store.standing().await.unwrap();
    assert!(normal.is_current());
    let mut said = vec![normal.seen_as()];
    let backup = store.backup();
    let mut in_freeze = backup.clone();
    for of_the_freeze in [false, false, true, false] {
        store.restore_as_it_was_called(if of_the_freeze { &in_freeze } else { &backup });
        let seen = store.standing().await.unwrap();
        assert!(seen.broken, "{seen:?}");
        assert!(store.begin_epoch(seen.nowhere(), &seen).await.unwrap());
        let frozen = store.standing().await.unwrap();
        assert!(!frozen.is_current() && !frozen.broken, "{frozen:?}");
        assert!(!store.client().standing().await.unwrap().is_current(), "for all");
        assert!(said.iter().all(|before| *before != frozen.seen_as()), "{frozen:?} after {said:?}");
        said.push(frozen.seen_as());
        in_freeze = store.backup();
    }
    let frozen = store.standing().await.unwrap();
    assert!(store.begin_epoch(frozen.seen_as().next(), &frozen).await.unwrap());
    assert!(store.standing().await.unwrap().is_current());
    store.restore_as_it_was_called(&in_freeze);
    assert!(store.standing().await.unwrap().broken, "hosts have said this of the freeze before");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_worked_with_a_store_does_not_work_with_one_that_took_its_place_without_a_word() {
    let (store, vm, me) = (MemoryStore::new(), vm("a"), host("xen-1", "boot-1"));
    let backup = store.backup();
    let Start::Acquired(_) = store.start(vm, &me).await.unwrap() else { panic!("not acquired") };
    store.restore(&backup);
    assert_eq!(store.owner(vm).await.unwrap_err().category(), "frozen");
    assert!(store.standing().await.unwrap().broken);
    assert_eq!(store.client().owner(vm).await.unwrap(), None, "who is new cannot know");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_an_outage_ends_no_other_fault() {
    let (store, me) = (MemoryStore::new(), host("xen-1", "boot-1"));
    store.set_full(true);
    store.begin_outage_after_next_write();
    store.set_outage(false);
    assert_eq!(store.start(vm("a"), &me).await.unwrap_err().category(), "rejected");
    store.set_full(false);
    let Start::Acquired(_) = store.start(vm("a"), &me).await.unwrap() else { panic!("an outage began late") };
}

#[tokio::test(start_paused = true)]
async fn a_client_that_hears_nothing_gives_up_and_its_transaction_is_executed_later() {
    let (store, vm, me) = (MemoryStore::new(), vm("a"), host("xen-1", "boot-1"));
    store.delay_requests(1, Duration::from_secs(3));
    assert_eq!(store.start(vm, &me).await.unwrap_err().category(), "unknown");
    assert_eq!(store.owner(vm).await.unwrap_err().category(), "unavailable");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(store.owner(vm).await.unwrap(), None);
    store.deliver_delayed();
    assert!(store.owner(vm).await.unwrap().unwrap().is(&me));
}

#[tokio::test(start_paused = true)]
async fn a_deposed_leader_acknowledges_what_has_no_effect() {
    let (store, second) = (MemoryStore::new(), Duration::from_secs(1));
    let (lease, seconds) = store.grant(10).await.unwrap();
    assert_eq!(seconds, 10);
    store.elect_leader(2 * second);
    tokio::time::sleep(2 * second - second / 10).await;
    assert!(store.keep_alive(lease).await.unwrap());
    // The new leader counts from its election, with an election timeout on top.
    tokio::time::sleep(9 * second).await;
    assert!(store.keep_alive(lease).await.is_ok_and(|renewed| renewed), "it has 11 s from the election");
    store.elect_leader(2 * second);
    tokio::time::sleep(second).await;
    assert!(store.keep_alive(lease).await.unwrap());
    tokio::time::sleep(10 * second).await;
    assert!(!store.keep_alive(lease).await.unwrap(), "what was acknowledged has prolonged nothing");
}

#[tokio::test(start_paused = true)]
async fn the_leases_of_a_client_whose_clock_is_slow_end_before_it_expects() {
    let store = MemoryStore::new();
    let (slow, fast) = (store.client(), store.client());
    slow.set_own_clock(Some(1));
    fast.set_own_clock(Some(-1));
    store.set_clock(1);
    let (ends_early, ends_late) = (slow.grant(100).await.unwrap().0, fast.grant(100).await.unwrap().0);
    tokio::time::sleep(Duration::from_millis(99_500)).await;
    assert!(!store.keep_alive(ends_early).await.unwrap());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(store.keep_alive(ends_late).await.unwrap());
}
