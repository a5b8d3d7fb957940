//! Tests of the simulated host.

mod streams;

use super::*;
use crate::hypervisor::{
    BootType, DomainState, KernelImage, Scheduling,
    conformance::{Bench, Guests, Outcome, cases},
};
use jiff::Timestamp;
use kubexen_runtime::clock::{SystemClock, VirtualClock};
use tokio::time::{advance, sleep, timeout};

const MIB: u64 = 1024;

fn clock() -> Arc<dyn Clock> {
    Arc::new(VirtualClock::starting_at(Timestamp::UNIX_EPOCH))
}

fn host() -> SimulatedHost {
    SimulatedHost::in_memory("xen-01", Profile::default(), clock())
}

fn kernel(words: &str) -> KernelImage {
    KernelImage { kernel: "/boot/vmlinux".into(), ramdisk: None, command_line: words.to_owned() }
}

fn config(number: u128, words: &str) -> DomainConfig {
    DomainConfig {
        uuid: Uuid::from_u128(number),
        token: 41,
        cpu_level: None,
        boot: BootType::Pvh,
        firmware: None,
        kernel: Some(kernel(words)),
        vcpus: 2,
        max_vcpus: 2,
        scheduling: Scheduling::default(),
        memory_kib: 512 * MIB,
        max_memory_kib: 512 * MIB,
        disks: Vec::new(),
        cds: Vec::new(),
        cds_first: false,
        interfaces: Vec::new(),
    }
}

async fn conforms(hypervisor: SimulatedHypervisor) {
    let folder = tempfile::tempdir().unwrap();
    let guests = Guests {
        kernel: kernel(""),
        hvm_kernel: Some(kernel("")),
        pv: true,
        memory_kib: 128 * MIB,
        disk: Some("/dev/simulated/local/1".into()),
        bridge: Some("br-lan".into()),
        folder: folder.path().to_owned(),
        checks_kernel_file: false,
    };
    let bench = Bench::new(Arc::new(hypervisor), guests, Duration::from_secs(10));
    let findings = bench.run_all(cases(), |_| {}).await;
    let failed: Vec<_> =
        findings.iter().filter(|finding| matches!(finding.outcome, Outcome::Failed(_))).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(findings.iter().filter(|finding| finding.outcome == Outcome::Passed).count() > 30);
}

#[tokio::test(start_paused = true)]
async fn in_memory_it_passes_the_suite_of_every_hypervisor() {
    conforms(SimulatedHypervisor::new(host())).await;
}

#[tokio::test(start_paused = true)]
async fn ledgered_it_passes_the_suite_of_every_hypervisor() {
    let folder = tempfile::tempdir().unwrap();
    conforms(SimulatedHypervisor::ledgered(folder.path(), Profile::default(), clock()).unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn guests_go_on_without_an_agent() {
    let host = host();
    let agent = SimulatedHypervisor::new(host.clone());
    let config = config(1, "kubexen.exit=crash kubexen.exit-after=3");
    agent.create(&config).await.unwrap();
    agent.unpause(config.uuid).await.unwrap();
    drop(agent);
    advance(Duration::from_secs(4)).await;
    let next = SimulatedHypervisor::new(host);
    let info = next.find(config.uuid).await.unwrap().unwrap();
    assert_eq!((info.state, info.token), (DomainState::Shutdown(StopReason::Crash), Some(41)));
}

#[tokio::test(start_paused = true)]
async fn what_a_folder_holds_is_found_by_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let open =
        || SimulatedHypervisor::ledgered(folder.path(), Profile::default(), Arc::clone(&clock)).unwrap();
    let first = open();
    let boot = first.facts().await.unwrap().boot_id;
    let (whole, half) = (config(1, "kubexen.exit=reboot kubexen.exit-after=10"), config(2, ""));
    first.create(&whole).await.unwrap();
    first.unpause(whole.uuid).await.unwrap();
    first.host().hang_creates(1);
    assert!(timeout(Duration::from_millis(1), first.create(&half)).await.is_err());
    let before = first.domains().await.unwrap();
    drop(first);
    let second = open();
    assert_eq!(second.domains().await.unwrap(), before);
    assert_eq!(second.facts().await.unwrap().boot_id, boot);
    assert_eq!(before[1].state, DomainState::HalfBuilt);
    advance(Duration::from_secs(11)).await;
    let info = second.find(whole.uuid).await.unwrap().unwrap();
    assert_eq!(info.state, DomainState::Shutdown(StopReason::Reboot));
    second.host().reboot().unwrap();
    drop(second);
    let third = open();
    assert!(third.domains().await.unwrap().is_empty());
    assert_ne!(third.facts().await.unwrap().boot_id, boot);
}

#[tokio::test(start_paused = true)]
async fn the_log_of_starts_tells_every_domain_from_before_it_exists_until_after_it_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let open =
        || SimulatedHypervisor::ledgered(folder.path(), Profile::default(), Arc::clone(&clock)).unwrap();
    let agent = open();
    let (one, two) = (config(1, ""), config(2, ""));
    agent.create(&one).await.unwrap();
    agent.create(&two).await.unwrap();
    agent.destroy(one.uuid).await.unwrap();
    drop(agent);
    // The process was killed after the second domain was gone and before that was logged.
    std::fs::remove_file(folder.path().join(format!("{}.json", two.uuid))).unwrap();
    drop(open());
    let text = std::fs::read_to_string(folder.path().join("starts.log")).unwrap();
    let records: Vec<StartRecord> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<_> = records.iter().map(|record| (record.event, record.uuid, record.token)).collect();
    let (start, stop) = (StartEvent::Start, StartEvent::Stop);
    assert_eq!(
        events,
        [(start, one.uuid, 41), (start, two.uuid, 41), (stop, one.uuid, 41), (stop, two.uuid, 41)]
    );
    assert!(records.is_sorted_by_key(|record| record.at));
}

#[tokio::test(start_paused = true)]
async fn a_create_that_hangs_leaves_a_half_built_domain_that_holds_its_memory() {
    let host = host();
    let agent = SimulatedHypervisor::new(host.clone());
    let free = agent.free_memory_kib().await.unwrap();
    host.hang_creates(1);
    let config = config(1, "");
    let created = agent.create(&config).await;
    assert!(matches!(created, Err(HypervisorError::TimedOut { .. })), "{created:?}");
    let info = agent.find(config.uuid).await.unwrap().unwrap();
    assert_eq!((info.state, info.token), (DomainState::HalfBuilt, None));
    assert_eq!(agent.free_memory_kib().await.unwrap(), free - config.memory_kib);
    assert!(matches!(agent.unpause(config.uuid).await, Err(HypervisorError::Refused { .. })));
    agent.destroy(config.uuid).await.unwrap();
    assert_eq!(agent.free_memory_kib().await.unwrap(), free);
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_answer_is_lost_leaves_a_whole_domain() {
    let host = host();
    let agent = SimulatedHypervisor::new(host.clone());
    host.lose_creates(1);
    let created = agent.create(&config(1, "")).await;
    assert!(matches!(created, Err(HypervisorError::TimedOut { .. })), "{created:?}");
    assert_eq!(host.domains().unwrap()[0].state, DomainState::Paused);
}

#[tokio::test(start_paused = true)]
async fn a_refused_create_and_an_outage_leave_nothing() {
    let host = host();
    let agent = SimulatedHypervisor::new(host.clone());
    host.refuse_creates(1);
    assert!(matches!(agent.create(&config(1, "")).await, Err(HypervisorError::Refused { .. })));
    host.set_unreachable(true);
    assert!(matches!(agent.create(&config(1, "")).await, Err(HypervisorError::Unreachable(_))));
    assert!(matches!(agent.domains().await, Err(HypervisorError::Unreachable(_))));
    assert!(host.domains().unwrap().is_empty());
    assert!(host.start_log().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_domain_destroyed_while_it_is_built_does_not_come_back() {
    let agent = SimulatedHypervisor::new(host());
    let config = config(1, "");
    let destroyed = async {
        sleep(Duration::from_millis(1)).await;
        agent.destroy(config.uuid).await
    };
    let (created, destroyed) = tokio::join!(agent.create(&config), destroyed);
    assert!(matches!(created, Err(HypervisorError::Refused { .. })), "{created:?}");
    destroyed.unwrap();
    assert_eq!(agent.find(config.uuid).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_listen_goes_on_when_it_is_asked_to_power_off() {
    let host = host();
    let agent = SimulatedHypervisor::new(host.clone());
    host.set_shutdown_time(None);
    let config = config(1, "");
    agent.create(&config).await.unwrap();
    agent.unpause(config.uuid).await.unwrap();
    agent.request_shutdown(config.uuid).await.unwrap();
    advance(Duration::from_hours(1)).await;
    assert_eq!(agent.find(config.uuid).await.unwrap().unwrap().state, DomainState::Running);
}

#[tokio::test(start_paused = true)]
async fn time_stands_still_for_a_paused_guest() {
    let agent = SimulatedHypervisor::new(host());
    let config = config(1, "kubexen.exit=poweroff kubexen.exit-after=10");
    let state = async || agent.find(config.uuid).await.unwrap().unwrap().state;
    agent.create(&config).await.unwrap();
    advance(Duration::from_mins(1)).await;
    agent.unpause(config.uuid).await.unwrap();
    advance(Duration::from_secs(6)).await;
    agent.pause(config.uuid).await.unwrap();
    advance(Duration::from_mins(1)).await;
    assert_eq!(state().await, DomainState::Paused);
    agent.unpause(config.uuid).await.unwrap();
    advance(Duration::from_secs(3)).await;
    assert_eq!(state().await, DomainState::Running);
    advance(Duration::from_secs(2)).await;
    assert_eq!(state().await, DomainState::Shutdown(StopReason::Poweroff));
}

#[tokio::test(start_paused = true)]
async fn foreign_domains_have_no_token_and_are_not_logged() {
    let host = host();
    let agent = SimulatedHypervisor::new(host.clone());
    let uuid = Uuid::from_u128(9);
    host.add_foreign(uuid, MIB).unwrap();
    let info = agent.find(uuid).await.unwrap().unwrap();
    assert_eq!((info.state, info.token), (DomainState::Running, None));
    assert!(host.start_log().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_guest_stopped_from_outside_is_told_as_a_change() {
    let host = host();
    let agent = SimulatedHypervisor::new(host.clone());
    let config = config(1, "");
    agent.create(&config).await.unwrap();
    agent.unpause(config.uuid).await.unwrap();
    let mut changes = agent.changes();
    changes.borrow_and_update();
    host.stop_guest(config.uuid, StopReason::Crash).unwrap();
    assert!(changes.has_changed().unwrap());
    let info = agent.find(config.uuid).await.unwrap().unwrap();
    assert_eq!(info.state, DomainState::Shutdown(StopReason::Crash));
}

#[tokio::test]
async fn a_folder_with_an_unreadable_file_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("host.json"), "nonsense").unwrap();
    let opened = SimulatedHost::ledgered(folder.path(), Profile::default(), Arc::new(SystemClock));
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("host.json"), "{error}");
}
