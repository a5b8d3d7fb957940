use super::*;
use crate::{placement::memory_with_overhead, samples, view::View};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubexen_crds::{
    Boot, BootType, ByteQuantity, Domain, Firmware, Host, HostSpec, HostStatus, VirtualMachineSpec, Volume,
    VolumeSpec,
    condition::{self, State, Wanted},
    domain::Machine,
    host::{HostCpu, HostMemory, Location},
    names::CONTROLLER_FINALIZER,
    quantity::HostSelector,
    virtual_disk::{Reclaim, Source},
    virtual_machine::{AntiAffinity, AntiAffinityMode, Cpu, Placement},
    volume::VirtualDiskReference,
};

const GIB: u64 = 1 << 30;

fn named(namespace: Option<&str>, name: &str, version: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        uid: Some(format!("uid-of-{name}")),
        resource_version: Some(version.to_owned()),
        generation: Some(1),
        finalizers: Some(vec![CONTROLLER_FINALIZER.to_owned()]),
        ..ObjectMeta::default()
    }
}

fn boot() -> Boot {
    Boot { type_: BootType::Hvm, ..samples::boot() }
}

fn machine(name: &str) -> VirtualMachine {
    let anti_affinity = Some(AntiAffinity { group: "web".to_owned(), mode: AntiAffinityMode::Required });
    VirtualMachine {
        metadata: named(Some("shop"), name, "1"),
        spec: VirtualMachineSpec {
            cpu: Cpu { count: 2, ..Cpu::default() },
            boot: boot(),
            placement: Placement { anti_affinity, ..Placement::default() },
            ..samples::machine_spec()
        },
        status: None,
    }
}

fn host(name: &str) -> Host {
    let ready = vec![Wanted::new("Ready", State::True, "AgentReporting", "so it is")];
    Host {
        metadata: named(None, name, "1"),
        spec: HostSpec { schedulable: true, ..HostSpec::default() },
        status: Some(HostStatus {
            cpu: Some(HostCpu { count: 8, ..HostCpu::default() }),
            memory: Some(HostMemory {
                total: ByteQuantity("16Gi".to_owned()),
                allocatable: ByteQuantity("14Gi".to_owned()),
            }),
            locations: vec![Location {
                name: "local".to_owned(),
                capacity: ByteQuantity("100Gi".to_owned()),
                shared: false,
                images: Vec::new(),
                id: None,
            }],
            firmware: vec![Firmware::Bios],
            conditions: condition::set(&[], ready, None, Timestamp::UNIX_EPOCH),
            ..HostStatus::default()
        }),
    }
}

fn domain(machine: &str, host: &str) -> Domain {
    let mut domain = samples::domain(machine, &format!("uid-of-{machine}"), host, "");
    domain.metadata = named(domain.metadata.namespace.as_deref(), &format!("shop.{machine}"), "2");
    domain.spec.machine = Machine { cpus: 2, max_cpus: 2, boot: boot(), ..samples::resolved_machine() };
    domain
}

fn volume(disk: &str, host: &str) -> Volume {
    Volume {
        metadata: named(Some(&format!("kubexen-host-{host}")), &format!("shop.{disk}"), "2"),
        spec: VolumeSpec {
            virtual_disk: VirtualDiskReference {
                namespace: "shop".to_owned(),
                name: disk.to_owned(),
                uid: format!("uid-of-{disk}"),
            },
            location: "local".to_owned(),
            shared: false,
            existing: false,
            saved_machine: None,
            size: ByteQuantity("10Gi".to_owned()),
            source: Source::default(),
            reclaim: Reclaim::Delete,
        },
        status: None,
    }
}

fn claim(machine: &str, host: &str, disk: &str) -> Claim {
    let disk = Key::new("shop", disk);
    Claim {
        host: host.to_owned(),
        request: Request {
            key: Key::new("shop", machine),
            memory: GIB,
            vcpus: 3,
            cpu_level: None,
            growth: 0,
            boot: BootType::Hvm,
            kernel: None,
            boot_loader: false,
            firmware: Some(Firmware::Bios),
            selector: HostSelector::default(),
            anti_affinity: Some((group_key("shop", "web"), AntiAffinityMode::Required)),
            networks: Vec::new(),
            images: Vec::new(),
            disks: Vec::new(),
            moves: false,
            protected: false,
            recovers: false,
            avoid: None,
        },
        disks: BTreeSet::from([disk.clone()]),
        new_disks: BTreeMap::from([(disk, ("local".to_owned(), 10 * GIB))]),
    }
}

#[test]
fn a_snapshot_counts_domains_volumes_and_what_was_assigned() {
    let view = View::default();
    view.hosts.learn(host("a"));
    view.hosts.learn(host("b"));
    view.machines.learn(machine("one"));
    view.domains.learn(domain("one", "a"));
    view.volumes.learn(volume("one-root", "a"));
    let snapshot = snapshot::take(&view, &[claim("two", "a", "two-root"), claim("three", "b", "three-root")]);
    let [a, b] = snapshot.hosts.as_slice() else { panic!("two hosts") };
    let overhead = memory_with_overhead(GIB, 2, BootType::Hvm) + memory_with_overhead(GIB, 3, BootType::Hvm);
    assert_eq!((a.vcpus_used, a.memory_used), (5, overhead));
    assert_eq!(a.locations["local"].used, 20 * GIB);
    assert_eq!(a.groups[&group_key("shop", "web")], 2);
    assert_eq!((b.vcpus_used, b.locations["local"].used), (3, 10 * GIB));
    assert!(a.ready && a.schedulable && a.memory_allocatable == 14 * GIB);
}

#[test]
fn what_one_host_made_in_shared_storage_is_used_for_all_that_reach_it() {
    let view = View::default();
    for (name, storage) in [("a", "san-1"), ("b", "san-1"), ("c", "san-2")] {
        let mut host = host(name);
        let location = &mut host.status.as_mut().unwrap().locations[0];
        (location.shared, location.id) = (true, Some(storage.to_owned()));
        view.hosts.learn(host);
        view.volumes.learn(volume(&format!("root-{name}"), name));
    }
    let snapshot = snapshot::take(&view, &[claim("two", "b", "two-root")]);
    let used: Vec<u64> = snapshot.hosts.iter().map(|host| host.locations["local"].used / GIB).collect();
    assert_eq!(used, [30, 30, 10]);
}

#[test]
fn an_assigned_disk_that_was_made_already_is_not_counted_twice() {
    let view = View::default();
    view.hosts.learn(host("a"));
    let made = volume("two-root", "a");
    view.volumes_of_disk.set(&Key::of(&made), BTreeSet::from([Key::new("shop", "two-root")]));
    view.volumes.learn(made);
    let snapshot = snapshot::take(&view, &[claim("two", "a", "two-root")]);
    assert_eq!(snapshot.hosts[0].locations["local"].used, 10 * GIB);
}

#[test]
fn an_answer_is_for_the_machine_as_it_was_asked_for() {
    let scheduler = Scheduler::default();
    let (mut vm, key) = (machine("one"), Key::new("shop", "one"));
    assert_eq!(scheduler.answer(&key, &vm), None);
    scheduler.ask(&key, &vm);
    assert_eq!(scheduler.answer(&key, &vm), Some(Answer::Waiting));
    let assigned = Answer::Assigned("a".to_owned());
    assert_eq!(scheduler.note(&key, assigned.clone(), Some(claim("one", "a", "root"))), Some(News::Decided));
    assert!(scheduler.claims_disk(&Key::new("shop", "root")));
    scheduler.ask(&key, &vm);
    assert_eq!(scheduler.answer(&key, &vm), Some(assigned), "asking again takes nothing away");
    vm.metadata.generation = Some(2);
    assert_eq!(scheduler.answer(&key, &vm), None, "it may not fit there any more");
    scheduler.ask(&key, &vm);
    assert_eq!(scheduler.answer(&key, &vm), Some(Answer::Waiting));
    assert!(!scheduler.claims_disk(&Key::new("shop", "root")));
}

#[test]
fn a_rejection_in_other_words_is_no_news_in_a_hurry() {
    let scheduler = Scheduler::default();
    let (vm, key) = (machine("one"), Key::new("shop", "one"));
    scheduler.ask(&key, &vm);
    let rejected = |why: &str| Answer::Rejected(why.to_owned());
    assert_eq!(scheduler.note(&key, rejected("1 memory"), None), Some(News::Decided));
    assert_eq!(scheduler.note(&key, rejected("1 memory"), None), None);
    assert_eq!(scheduler.note(&key, rejected("2 memory"), None), Some(News::Reworded));
    assert_eq!(scheduler.waiting(), [key]);
}
