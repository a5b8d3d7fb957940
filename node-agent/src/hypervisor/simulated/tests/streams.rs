//! Tests of how simulated guests leave and come back.

use super::*;
use crate::hypervisor::{DomainInfo, Incoming, Outgoing, Sent, SuspendMode};
use tokio::io::{AsyncReadExt, duplex, sink};

/// Two hosts with one clock, and a guest that runs on the first.
struct Pair {
    from: SimulatedHypervisor,
    to: SimulatedHypervisor,
    guest: DomainConfig,
}

impl Pair {
    async fn new() -> Self {
        let clock = clock();
        let host = |name| {
            let host = SimulatedHost::in_memory(name, Profile::default(), Arc::clone(&clock));
            SimulatedHypervisor::new(host)
        };
        let pair = Self { from: host("xen-01"), to: host("xen-02"), guest: config(1, "kubexen.count") };
        pair.from.create(&pair.guest).await.unwrap();
        pair.from.unpause(pair.guest.uuid).await.unwrap();
        pair
    }

    async fn suspend(&self, mode: SuspendMode, stream: Outgoing) -> Result<Sent, HypervisorError> {
        self.from.suspend(self.guest.uuid, mode, stream, Arc::new(|_| {})).await
    }

    /// Suspends to one end of a pipe while the other end is read to its end.
    async fn suspend_read(&self, mode: SuspendMode) -> (Result<Sent, HypervisorError>, Vec<u8>) {
        let (mut ours, theirs) = duplex(1024);
        let mut bytes = Vec::new();
        let (sent, read) = tokio::join!(self.suspend(mode, Box::new(theirs)), ours.read_to_end(&mut bytes));
        read.unwrap();
        (sent, bytes)
    }

    async fn seen(&self, on: &SimulatedHypervisor) -> Option<DomainInfo> {
        on.find(self.guest.uuid).await.unwrap()
    }

    async fn state(&self) -> DomainState {
        self.seen(&self.from).await.unwrap().state
    }
}

fn events(hypervisor: &SimulatedHypervisor) -> Vec<(StartEvent, u64)> {
    let log = hypervisor.host().start_log().unwrap();
    log.into_iter().map(|record| (record.event, record.token)).collect()
}

fn incoming(bytes: Vec<u8>) -> Incoming {
    Box::new(std::io::Cursor::new(bytes))
}

#[tokio::test(start_paused = true)]
async fn the_log_of_starts_tells_of_a_guest_on_one_host_at_a_time_while_it_moves() {
    let pair = Pair::new().await;
    let began = tokio::time::Instant::now();
    let (sent, bytes) = pair.suspend_read(SuspendMode::Live).await;
    // Memory and what was written to meanwhile, at the profile's rate; little of it is there.
    assert_eq!(sent.unwrap().bytes, pair.guest.memory_kib * 1024 / 16 * 17);
    assert!(began.elapsed() >= Duration::from_millis(530), "{:?}", began.elapsed());
    assert!(bytes.len() < 4096, "{}", bytes.len());
    pair.to.restore(&pair.guest, incoming(bytes)).await.unwrap();
    pair.to.claim(pair.guest.uuid, 42).await.unwrap();
    pair.from.destroy(pair.guest.uuid).await.unwrap();
    assert_eq!(events(&pair.to), []);
    pair.to.unpause(pair.guest.uuid).await.unwrap();
    assert_eq!(
        events(&pair.from),
        [(StartEvent::Start, 41), (StartEvent::Suspend, 41), (StartEvent::Stop, 41)]
    );
    assert_eq!(events(&pair.to), [(StartEvent::Arrive, 42)]);
}

#[tokio::test(start_paused = true)]
async fn a_break_at_a_byte_and_a_refusal_leave_the_guest_running() {
    let pair = Pair::new().await;
    for mode in [SuspendMode::Live, SuspendMode::Still] {
        pair.from.host().break_suspend(100 << 20);
        let broken = pair.suspend(mode, Box::new(sink())).await;
        assert!(matches!(broken, Err(HypervisorError::StreamBroken { .. })), "{broken:?}");
        assert_eq!(pair.state().await, DomainState::Running);
    }
    pair.from.host().refuse_suspends(1);
    let refused = pair.suspend(SuspendMode::Still, Box::new(sink())).await;
    assert!(matches!(refused, Err(HypervisorError::Refused { .. })), "{refused:?}");
    assert_eq!(pair.state().await, DomainState::Running);
    // Only the still one had stopped it.
    let of_still = [(StartEvent::Suspend, 41), (StartEvent::Resume, 41)];
    assert_eq!(events(&pair.from)[1..], of_still);
}

#[tokio::test(start_paused = true)]
async fn a_suspend_that_hangs_or_whose_answer_is_lost_leaves_the_guest_suspended() {
    let pair = Pair::new().await;
    pair.from.host().hang_suspends(1);
    let (hung, part) = pair.suspend_read(SuspendMode::Live).await;
    assert!(matches!(hung, Err(HypervisorError::TimedOut { .. })), "{hung:?}");
    assert_eq!(pair.state().await, DomainState::Suspended);
    let cut = pair.to.restore(&pair.guest, incoming(part)).await;
    assert!(matches!(cut, Err(HypervisorError::Refused { .. })), "{cut:?}");
    assert_eq!(pair.seen(&pair.to).await, None);
    pair.from.resume(pair.guest.uuid).await.unwrap();
    pair.from.host().lose_suspends(1);
    let (lost, whole) = pair.suspend_read(SuspendMode::Live).await;
    assert!(matches!(lost, Err(HypervisorError::TimedOut { .. })), "{lost:?}");
    assert_eq!(pair.state().await, DomainState::Suspended);
    pair.to.restore(&pair.guest, incoming(whole)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn restores_fail_as_they_are_told_to() {
    let pair = Pair::new().await;
    let (sent, bytes) = pair.suspend_read(SuspendMode::Still).await;
    sent.unwrap();
    pair.to.host().refuse_restores(1);
    let refused = pair.to.restore(&pair.guest, incoming(bytes.clone())).await;
    assert!(matches!(refused, Err(HypervisorError::Refused { .. })), "{refused:?}");
    assert_eq!(pair.seen(&pair.to).await, None);
    for (hang, left) in [(true, DomainState::HalfBuilt), (false, DomainState::Restored)] {
        let host = pair.to.host();
        if hang {
            host.hang_restores(1)
        } else {
            host.lose_restores(1)
        }
        let result = pair.to.restore(&pair.guest, incoming(bytes.clone())).await;
        assert!(matches!(result, Err(HypervisorError::TimedOut { .. })), "{result:?}");
        assert_eq!(pair.seen(&pair.to).await.map(|info| info.state), Some(left));
        pair.to.destroy(pair.guest.uuid).await.unwrap();
    }
    assert_eq!(events(&pair.to), []);
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_another_guest_is_refused() {
    let pair = Pair::new().await;
    let (sent, bytes) = pair.suspend_read(SuspendMode::Still).await;
    sent.unwrap();
    let result = pair.to.restore(&config(2, ""), incoming(bytes)).await;
    assert!(matches!(result, Err(HypervisorError::Refused { .. })), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn a_process_killed_while_it_suspends_leaves_what_the_next_one_finds_and_logs() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let open =
        || SimulatedHypervisor::ledgered(folder.path(), Profile::default(), Arc::clone(&clock)).unwrap();
    let (agent, guest) = (open(), config(1, ""));
    agent.create(&guest).await.unwrap();
    agent.unpause(guest.uuid).await.unwrap();
    agent.claim(guest.uuid, 43).await.unwrap();
    let suspend = agent.suspend(guest.uuid, SuspendMode::Still, Box::new(sink()), Arc::new(|_| {}));
    assert!(timeout(Duration::from_millis(100), suspend).await.is_err());
    drop(agent);
    // It was killed after the guest was suspended and before that was logged.
    let log = folder.path().join("starts.log");
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    std::fs::write(&log, format!("{}\n{}\n", lines[0], lines[1])).unwrap();
    let next = open();
    let info = next.find(guest.uuid).await.unwrap().unwrap();
    assert_eq!((info.state, info.token), (DomainState::Suspended, Some(43)));
    next.resume(guest.uuid).await.unwrap();
    assert_eq!(
        events(&next),
        [
            (StartEvent::Start, 41),
            (StartEvent::Claim, 43),
            (StartEvent::Suspend, 43),
            (StartEvent::Resume, 43)
        ]
    );
}
