use super::*;
use crate::hypervisor::{
    DomainConfig, KernelImage, MemoryUse,
    simulated::{Profile, SimulatedHost, SimulatedHypervisor},
};
use kubexen_crds::{BootType, DomainStatus};
use kubexen_runtime::clock::VirtualClock;
use serde_json::json;
use std::sync::Arc;

const UUID: Uuid = Uuid::from_u128(7);
const DOMID: DomId = DomId(3);

fn facts(free_kib: u64) -> GuestFacts {
    let mut facts = GuestFacts {
        os_name: Some("Debian".to_owned()),
        memory: Some(MemoryUse { total_kib: 1600, free_kib }),
        ..GuestFacts::default()
    };
    facts.add_address(0, "10.0.0.1");
    facts.add_address(5, "10.0.0.5");
    facts
}

fn domain(guest: Option<GuestStatus>) -> Domain {
    let object = json!({
        "metadata": {"name": "shop.web-1"},
        "spec": {
            "virtualMachine": {"namespace": "shop", "name": "web-1", "uid": UUID.to_string()},
            "machine": {
                "cpus": 1,
                "maxCpus": 1,
                "memory": "64Mi",
                "maxMemory": "64Mi",
                "boot": {"type": "PVH", "kernel": {"name": "linux"}},
                "interfaces": [{"name": "front", "uplink": "lan", "mac": "00:16:3e:00:00:01", "index": 0}],
            },
        },
    });
    let domain: Domain = serde_json::from_value(object).unwrap();
    let status = DomainStatus { domid: Some(i32::from(DOMID.0)), guest, ..DomainStatus::default() };
    Domain { status: Some(status), ..domain }
}

#[test]
fn interfaces_are_told_by_their_names_and_those_that_the_machine_has_not_are_left_out() {
    let told = |index, address: &str| {
        let mut domain = domain(None);
        // One that was attached later has another number than its place in the list.
        domain.spec.machine.interfaces[0].index = index;
        let expected = GuestInterface { name: "front".to_owned(), addresses: vec![address.to_owned()] };
        assert_eq!(status(&domain, DOMID, Some(&facts(600))).unwrap().interfaces, [expected]);
    };
    told(0, "10.0.0.1");
    told(5, "10.0.0.5");
}

#[test]
fn small_changes_of_memory_are_not_told() {
    let before = status(&domain(None), DOMID, Some(&facts(600)));
    assert_eq!(status(&domain(before.clone()), DOMID, Some(&facts(501))), before);
    let after = status(&domain(before.clone()), DOMID, Some(&facts(500)));
    assert_ne!(after, before);
}

#[test]
fn what_was_written_of_the_same_domain_stays_until_the_guest_is_read() {
    let before = status(&domain(None), DOMID, Some(&facts(600)));
    assert_eq!(status(&domain(before.clone()), DOMID, None), before);
    assert_eq!(status(&domain(before.clone()), DomId(4), None), None);
    assert_eq!(status(&domain(before), DOMID, Some(&GuestFacts::default())), None);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_changes_its_mind_all_the_time_is_told_every_thirty_seconds() {
    let guests = Guests::default();
    let mut changes = Vec::new();
    let start = Instant::now();
    for second in 0..300 {
        if guests.is_due(UUID, false) {
            let said = if second % 2 == 0 { facts(second) } else { GuestFacts::default() };
            if guests.learn(UUID, DomId((second % 7) as u16), said) {
                changes.push(start.elapsed());
            }
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert!(changes.len() >= 5, "{changes:?}");
    assert!(changes.windows(2).all(|pair| pair[1] - pair[0] >= QUIET), "{changes:?}");
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_of_the_agent_what_is_published_is_left_alone_for_a_while() {
    let guests = Guests::default();
    assert!(!guests.is_due(UUID, true));
    tokio::time::advance(QUIET).await;
    assert!(guests.is_due(UUID, true));
}

#[tokio::test(start_paused = true)]
async fn guests_are_read_and_forgotten_with_their_domains() {
    let clock = Arc::new(VirtualClock::starting_at(jiff::Timestamp::UNIX_EPOCH));
    let hypervisor = SimulatedHypervisor::new(SimulatedHost::in_memory("h", Profile::default(), clock));
    let kernel = KernelImage {
        kernel: "/kernel".into(),
        ramdisk: None,
        command_line: "kubexen.agent kubexen.address=10.0.0.8/24".to_owned(),
    };
    let config = DomainConfig {
        uuid: UUID,
        token: 1,
        boot: BootType::Pvh,
        cpu_level: None,
        firmware: None,
        kernel: Some(kernel),
        vcpus: 1,
        max_vcpus: 1,
        scheduling: crate::hypervisor::Scheduling::default(),
        memory_kib: 65536,
        max_memory_kib: 65536,
        disks: Vec::new(),
        cds: Vec::new(),
        cds_first: false,
        interfaces: Vec::new(),
    };
    let guests = Guests::default();
    let domid = hypervisor.create(&config).await.unwrap();
    let read = async || {
        let usage = hypervisor.usage().await.unwrap();
        guests.read(&hypervisor, &usage, &BTreeSet::new()).await
    };
    assert!(read().await.is_empty());
    hypervisor.unpause(UUID).await.unwrap();
    assert_eq!(read().await, [UUID]);
    assert!(read().await.is_empty());
    let said = guests.said(UUID, domid).unwrap();
    assert_eq!(said.addresses[&0], ["10.0.0.8".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(guests.said(UUID, DomId(domid.0 + 1)), None);
    hypervisor.destroy(UUID).await.unwrap();
    assert!(read().await.is_empty());
    assert_eq!(guests.said(UUID, domid), None);
}
