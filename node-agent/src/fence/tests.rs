//! The promise under faults of the store, in virtual time.

mod stores;

use super::*;
use crate::hypervisor::simulated::{Profile as HostModel, SimulatedHost, SimulatedHypervisor};
use crate::hypervisor::{DomainInfo, DomainState};
use jiff::Timestamp;
use kubexen_ownership::{
    BootId, Cut, HostName, MemoryStore, Start,
    liveness::{FenceRecord, OldMember, Proof},
};
use kubexen_runtime::clock::VirtualClock;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{sleep, sleep_until},
};

const GUEST: Uuid = Uuid::from_u128(7);

struct Bed {
    /// The connection of the agent.
    store: MemoryStore,
    /// That of everybody else.
    outside: MemoryStore,
    host: SimulatedHost,
    me: HostBoot,
    /// What the pool asks for.
    policy: Arc<Mutex<(Profile, Option<String>)>>,
    /// What the pool says of its store, once it is heard.
    epoch: watch::Sender<Option<Option<Epoch>>>,
}

impl Bed {
    async fn new() -> Self {
        let outside = MemoryStore::new();
        let clock = Arc::new(VirtualClock::starting_at(Timestamp::UNIX_EPOCH));
        let host = SimulatedHost::in_memory("xen-1", HostModel::default(), clock);
        let boot = SimulatedHypervisor::new(host.clone()).facts().await.unwrap().boot_id;
        let me = HostBoot { host: HostName::new("xen-1").unwrap(), boot_id: BootId::new(boot).unwrap() };
        let policy = Arc::new(Mutex::new((Profile::Default, None)));
        let epoch = watch::Sender::new(Some(None));
        Self { store: outside.client(), outside, host, me, policy, epoch }
    }

    /// An agent that keeps the promise until it is dropped.
    fn agent(&self) -> (Arc<Fence>, tokio_util::task::AbortOnDropHandle<()>) {
        self.agent_with(Arc::new(self.host.clone()))
    }

    fn agent_with(
        &self,
        watchdog: Arc<dyn Watchdog>,
    ) -> (Arc<Fence>, tokio_util::task::AbortOnDropHandle<()>) {
        let fence = Arc::new(Fence::new(
            self.me.clone(),
            Arc::new(self.store.clone()),
            Arc::new(self.store.clone()),
            Arc::new(SimulatedHypervisor::new(self.host.clone())),
            watchdog,
        ));
        let (runs, policy) = (Arc::clone(&fence), Arc::clone(&self.policy));
        let (told, mut word) = (self.epoch.subscribe(), self.epoch.subscribe());
        let policy = move || {
            let ((profile, refusal), epoch) = (policy.lock().unwrap().clone(), *told.borrow());
            Policy { profile, refusal, is_heard: epoch.is_some(), epoch: epoch.flatten() }
        };
        let heard = async move { drop(word.wait_for(Option::is_some).await) };
        let task = tokio::spawn(async move { runs.run(policy, heard).await });
        (fence, tokio_util::task::AbortOnDropHandle::new(task))
    }

    /// Owns, builds and guards the guest.
    async fn guarded(&self, fence: &Fence) -> Token {
        let token = self.owned(fence).await;
        self.host.add_foreign(GUEST, 1024).unwrap();
        fence.guard(GUEST, token).await.unwrap().expect("guarded")
    }

    /// Owns the guest, once the host can guard.
    async fn owned(&self, fence: &Fence) -> Token {
        until(|| fence.may_work().is_ok() && fence.protection().state == ProtectionState::Ready).await;
        let Start::Acquired(token) = self.store.start(VmUid(GUEST), &self.me).await.unwrap() else {
            panic!("not acquired")
        };
        token
    }

    fn guest(&self) -> Option<DomainState> {
        let domains: Vec<DomainInfo> = self.host.domains().unwrap();
        domains.into_iter().find(|domain| domain.uuid == GUEST).map(|domain| domain.state)
    }

    async fn boot_id(&self) -> String {
        SimulatedHypervisor::new(self.host.clone()).facts().await.unwrap().boot_id
    }
}

/// A host's watchdog while another program may use it.
#[derive(Debug)]
struct Contested {
    host: SimulatedHost,
    taken: AtomicBool,
    /// Whether the timer cannot be moved or stopped.
    stuck: AtomicBool,
}

impl Contested {
    fn refuse_if_stuck(&self) -> Result<(), WatchdogError> {
        match self.stuck.load(Ordering::Relaxed) {
            true => Err(WatchdogError("it is stuck".to_owned())),
            false => Ok(()),
        }
    }
}

impl Watchdog for Contested {
    fn check(&self) -> Result<(), WatchdogError> {
        match self.taken.load(Ordering::Relaxed) {
            true => Err(WatchdogError("another program uses it".to_owned())),
            false => self.host.check(),
        }
    }

    fn set(&self, deadline: Instant) -> Result<(), WatchdogError> {
        self.refuse_if_stuck()?;
        self.host.set(deadline)
    }

    fn disarm(&self) -> Result<(), WatchdogError> {
        self.refuse_if_stuck()?;
        self.host.disarm()
    }

    fn uptime(&self) -> Duration {
        self.host.uptime()
    }

    fn keep(&self, checkpoint: &Checkpoint) -> Result<(), WatchdogError> {
        self.host.keep(checkpoint)
    }

    fn kept(&self) -> Option<Checkpoint> {
        self.host.kept()
    }
}

async fn until(condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < seconds(600.0), "it does not come about");
        sleep(Duration::from_millis(50)).await;
    }
}

fn seconds(count: f64) -> Duration {
    Duration::from_secs_f64(count)
}

#[tokio::test(start_paused = true)]
async fn a_guest_is_paused_then_stopped_and_the_host_spared_when_the_store_stays_silent() {
    let bed = Bed::new().await;
    let (fence, _agent) = bed.agent();
    bed.guarded(&fence).await;
    assert!(bed.host.watchdog().unwrap().is_some());
    let last = fence.lock().vitals.deadline().unwrap() - Timing::DEFAULT.deadline;
    bed.store.set_cut(Cut::Requests);
    sleep_until(last + seconds(9.5)).await;
    fence.may_work().unwrap();
    sleep_until(last + seconds(10.5)).await;
    fence.may_work().unwrap_err();
    sleep_until(last + seconds(11.5)).await;
    assert_eq!(bed.guest(), Some(DomainState::Running));
    sleep_until(last + seconds(12.5)).await;
    assert_eq!(bed.guest(), Some(DomainState::Paused));
    assert!(fence.holds(GUEST));
    sleep_until(last + seconds(16.9)).await;
    assert_eq!(bed.guest(), None);
    sleep_until(last + seconds(60.0)).await;
    assert_eq!(bed.boot_id().await, bed.me.boot_id.as_str(), "the host was not reset");
    assert_eq!(bed.host.watchdog().unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn eight_seconds_without_the_store_stop_nobody_and_a_paused_guest_goes_on_when_it_is_back_in_time() {
    let bed = Bed::new().await;
    let (fence, _agent) = bed.agent();
    bed.guarded(&fence).await;
    bed.outside.set_outage(true);
    sleep(seconds(8.0)).await;
    bed.outside.set_outage(false);
    until(|| fence.may_work().is_ok()).await;
    assert_eq!(bed.guest(), Some(DomainState::Running));

    let last = fence.lock().vitals.deadline().unwrap() - Timing::DEFAULT.deadline;
    bed.outside.set_outage(true);
    sleep_until(last + seconds(13.0)).await;
    assert_eq!(bed.guest(), Some(DomainState::Paused));
    bed.outside.set_outage(false);
    until(|| bed.guest() == Some(DomainState::Running)).await;
    assert!(!fence.holds(GUEST));
}

#[tokio::test(start_paused = true)]
async fn answers_that_do_not_come_back_count_as_silence() {
    let bed = Bed::new().await;
    let (fence, _agent) = bed.agent();
    bed.guarded(&fence).await;
    bed.store.set_cut(Cut::Answers);
    sleep(seconds(25.0)).await;
    assert_eq!(bed.guest(), None);
    assert!(bed.outside.roll().await.unwrap().live.contains_key(&bed.me), "the store hears it all the while");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_gone_for_longer_than_the_deadline_has_its_host_reset() {
    let bed = Bed::new().await;
    let (fence, agent) = bed.agent();
    bed.guarded(&fence).await;
    drop(agent);
    sleep(seconds(21.0)).await;
    assert_eq!(bed.guest(), None);
    assert_ne!(bed.boot_id().await, bed.me.boot_id.as_str());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_again_in_time_takes_everything_over() {
    let bed = Bed::new().await;
    let (fence, agent) = bed.agent();
    bed.guarded(&fence).await;
    drop((fence, agent));
    sleep(seconds(12.0)).await;
    let (fence, _agent) = bed.agent();
    until(|| fence.guards(GUEST)).await;
    sleep(seconds(60.0)).await;
    assert_eq!(bed.guest(), Some(DomainState::Running));
    assert_eq!(bed.boot_id().await, bed.me.boot_id.as_str());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_again_while_the_store_is_away_climbs_on_and_the_host_is_spared() {
    let bed = Bed::new().await;
    let other = Uuid::from_u128(8);
    bed.host.add_foreign(other, 1024).unwrap();
    let (fence, agent) = bed.agent();
    bed.guarded(&fence).await;
    let last = fence.lock().vitals.deadline().unwrap() - Timing::DEFAULT.deadline;
    bed.outside.set_outage(true);
    drop((fence, agent));
    sleep_until(last + seconds(8.0)).await;
    let (fence, _agent) = bed.agent();
    assert!(fence.guards(GUEST));
    sleep_until(last + seconds(11.5)).await;
    assert_eq!(bed.guest(), Some(DomainState::Running));
    sleep_until(last + seconds(12.5)).await;
    assert_eq!(bed.guest(), Some(DomainState::Paused));
    sleep_until(last + seconds(60.0)).await;
    assert_eq!(bed.guest(), None);
    assert_eq!(bed.boot_id().await, bed.me.boot_id.as_str(), "the host was not reset");
    let domains = bed.host.domains().unwrap();
    assert!(domains.iter().any(|domain| domain.uuid == other && domain.state == DomainState::Running));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_again_while_the_store_has_no_room_renews_the_lease_that_there_is() {
    let bed = Bed::new().await;
    let (fence, agent) = bed.agent();
    bed.guarded(&fence).await;
    bed.outside.set_full(true);
    drop((fence, agent));
    sleep(seconds(8.0)).await;
    let (fence, _agent) = bed.agent();
    sleep(seconds(120.0)).await;
    assert_eq!(bed.guest(), Some(DomainState::Running));
    assert_eq!(bed.boot_id().await, bed.me.boot_id.as_str());
    assert!(bed.outside.roll().await.unwrap().live.contains_key(&bed.me));
    fence.may_work().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_was_killed_while_it_asked_for_another_lease_leaves_none_to_be_relied_on() {
    let bed = Bed::new().await;
    let (fence, agent) = bed.agent();
    bed.guarded(&fence).await;
    *bed.policy.lock().unwrap() = (Profile::Fast, None);
    // It joins on another lease, and does not hear of it.
    bed.store.begin_outage_after_next_write();
    until(|| fence.lock().vitals.lease().is_none()).await;
    drop((fence, agent));
    let (fence, _agent) = bed.agent();
    assert_eq!(fence.lock().vitals.lease(), None, "the host may be live on another one");
    assert!(fence.guards(GUEST));
}

#[tokio::test(start_paused = true)]
async fn a_promise_that_is_under_way_while_it_is_taken_back_does_not_come_true() {
    let bed = Bed::new().await;
    let (fence, _agent) = bed.agent();
    let token = bed.owned(&fence).await;
    bed.host.add_foreign(GUEST, 1024).unwrap();
    bed.outside.delay_requests(u32::MAX, Duration::ZERO);
    fence.guard(GUEST, token).await.expect_err("whether it was written is not known");
    bed.outside.delay_requests(0, Duration::ZERO);
    assert!(fence.guards(GUEST), "it may be on record at any moment");
    fence.unguard(GUEST, token).await.unwrap();
    assert_eq!(bed.host.watchdog().unwrap(), None);
    bed.outside.deliver_delayed();
    assert!(!bed.outside.owner(VmUid(GUEST)).await.unwrap().unwrap().guarded, "and nobody keeps it");
}

#[tokio::test(start_paused = true)]
async fn a_host_promises_nothing_while_it_is_silent_or_its_lease_has_ended() {
    let bed = Bed::new().await;
    let (fence, _agent) = bed.agent();
    let token = bed.owned(&fence).await;
    let lease = fence.lock().vitals.lease().unwrap();
    bed.outside.leave(lease).await.unwrap();
    let refused = fence.guard(GUEST, token).await.unwrap_err();
    assert_eq!(refused.category(), "PoolStoreSilent");
    let token = fence.unguard(GUEST, token).await.unwrap();
    until(|| fence.lock().vitals.lease().is_some_and(|now| now != lease)).await;
    let last = fence.lock().vitals.deadline().unwrap() - Timing::DEFAULT.deadline;
    bed.store.set_cut(Cut::Requests);
    sleep_until(last + seconds(10.5)).await;
    assert_eq!(fence.guard(GUEST, token).await.unwrap(), None);
    assert_eq!(bed.host.watchdog().unwrap(), None);
    assert!(!fence.guards(GUEST));
}

#[tokio::test(start_paused = true)]
async fn a_watchdog_that_cannot_be_moved_or_stopped_is_said_and_tried_again() {
    let bed = Bed::new().await;
    let watchdog =
        Arc::new(Contested { host: bed.host.clone(), taken: AtomicBool::default(), stuck: false.into() });
    let (fence, _agent) = bed.agent_with(watchdog.clone());
    let token = bed.guarded(&fence).await;
    watchdog.stuck.store(true, Ordering::Relaxed);
    until(|| fence.protection().message.contains("it is stuck")).await;
    watchdog.stuck.store(false, Ordering::Relaxed);
    until(|| fence.protection().state == ProtectionState::Ready).await;
    watchdog.stuck.store(true, Ordering::Relaxed);
    fence.unguard(GUEST, token).await.unwrap();
    assert!(bed.host.watchdog().unwrap().is_some());
    until(|| fence.protection().message.contains("it is stuck")).await;
    watchdog.stuck.store(false, Ordering::Relaxed);
    until(|| bed.host.watchdog().unwrap().is_none()).await;
    until(|| fence.protection().state == ProtectionState::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_came_to_nothing_leaves_no_watchdog_behind() {
    let bed = Bed::new().await;
    let (fence, agent) = bed.agent();
    let token = bed.owned(&fence).await;
    let starting = fence.starting(GUEST);
    fence.guard(GUEST, token).await.unwrap().expect("guarded");
    assert!(bed.host.watchdog().unwrap().is_some());
    drop(starting);
    assert_eq!(bed.host.watchdog().unwrap(), None);
    drop(agent);
    sleep(seconds(60.0)).await;
    assert_eq!(bed.boot_id().await, bed.me.boot_id.as_str());
}

#[tokio::test(start_paused = true)]
async fn a_host_without_guarded_guests_is_never_reset() {
    let bed = Bed::new().await;
    let (fence, agent) = bed.agent();
    let token = bed.guarded(&fence).await;
    fence.unguard(GUEST, token).await.unwrap();
    assert_eq!(bed.host.watchdog().unwrap(), None);
    drop(agent);
    sleep(seconds(60.0)).await;
    assert_eq!(bed.guest(), Some(DomainState::Running));
}

#[tokio::test(start_paused = true)]
async fn a_boot_that_was_fenced_takes_no_guests_and_says_what_to_do() {
    let bed = Bed::new().await;
    let record = FenceRecord { by: "controller-1".to_owned(), proof: Proof::LeaseEnded, revision: 1 };
    bed.outside.fence(&bed.me, &record).await.unwrap();
    let (fence, _agent) = bed.agent();
    until(|| fence.protection().message.contains("controller-1")).await;
    assert_eq!(fence.protection().state, ProtectionState::Unavailable);
    let refused = fence.may_work().unwrap_err().to_string();
    assert!(refused.contains("spec.fencing.unfenced"), "{refused}");
    bed.outside.unfence(&bed.me, &record).await.unwrap();
    until(|| fence.protection().state == ProtectionState::Ready).await;
    fence.may_work().unwrap();
}

#[tokio::test(start_paused = true)]
async fn longer_times_hold_only_once_there_is_a_lease_for_them() {
    let bed = Bed::new().await;
    *bed.policy.lock().unwrap() = (Profile::Fast, None);
    let (fence, _agent) = bed.agent();
    bed.guarded(&fence).await;
    assert_eq!(fence.lock().vitals.timing(), Timing::FAST);
    bed.store.set_cut(Cut::Requests);
    *bed.policy.lock().unwrap() = (Profile::Default, None);
    sleep(seconds(8.0)).await;
    assert_eq!(bed.guest(), None, "the lease was made for the shorter times");
    bed.store.set_cut(Cut::None);
    until(|| fence.lock().vitals.timing() == Timing::DEFAULT).await;
    sleep(seconds(20.0)).await;
    assert!(bed.outside.roll().await.unwrap().live.contains_key(&bed.me));
}

#[tokio::test(start_paused = true)]
async fn a_disarmed_pool_lets_nobody_be_guarded_and_keeps_what_was_promised() {
    let bed = Bed::new().await;
    let (fence, _agent) = bed.agent();
    let token = bed.guarded(&fence).await;
    *bed.policy.lock().unwrap() = (Profile::Default, Some("the pool is disarmed".to_owned()));
    until(|| fence.protection().state == ProtectionState::Unavailable).await;
    assert!(bed.host.watchdog().unwrap().is_some());
    let token = fence.unguard(GUEST, token).await.unwrap();
    assert_eq!(bed.host.watchdog().unwrap(), None);
    assert_eq!(fence.guard(GUEST, token).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_host_says_within_half_a_minute_that_another_program_took_its_watchdog_or_gave_it_back() {
    let bed = Bed::new().await;
    let watchdog =
        Arc::new(Contested { host: bed.host.clone(), taken: true.into(), stuck: AtomicBool::default() });
    let (fence, _agent) = bed.agent_with(watchdog.clone());
    for (taken, state) in [
        (true, ProtectionState::Unavailable),
        (false, ProtectionState::Ready),
        (true, ProtectionState::Unavailable),
    ] {
        watchdog.taken.store(taken, Ordering::Relaxed);
        sleep(seconds(36.0)).await;
        let protection = fence.protection();
        assert_eq!(protection.state, state);
        assert_eq!(protection.message.contains("another program uses it"), taken, "{}", protection.message);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_with_a_member_that_is_too_old_protects_nobody_before_it_is_updated() {
    let bed = Bed::new().await;
    let (name, version, least) = ("m-2".to_owned(), "3.5.27".to_owned(), "3.5.28".to_owned());
    bed.outside.set_old_members(vec![OldMember { name, version, least }]);
    let (fence, _agent) = bed.agent();
    until(|| fence.protection().message.contains("the member m-2 of the pool's store is etcd 3.5.27")).await;
    assert_eq!(fence.protection().state, ProtectionState::Unavailable);
    fence.may_work().unwrap();
    bed.outside.set_old_members(Vec::new());
    until(|| fence.protection().state == ProtectionState::Ready).await;
}
