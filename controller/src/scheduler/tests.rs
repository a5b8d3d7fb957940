use super::*;
use crate::{placement::memory_with_overhead, samples, view::View, watched::Watched};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{core::DeserializeGuard, runtime::watcher::Event};
use kubexen_crds::{
    Boot, BootType, ByteQuantity, Domain, Firmware, Host, HostSpec, HostStatus, Pool, RestartPriority,
    StorageRepository, VirtualDisk, VirtualMachineSpec, Volume, VolumeSpec,
    condition::{self, State, Wanted},
    domain::Machine,
    host::{HostCpu, HostMemory, Location},
    names::CONTROLLER_FINALIZER,
    quantity::HostSelector,
    virtual_disk::{Reclaim, Source},
    virtual_machine::{AntiAffinity, AntiAffinityMode, Cpu, Placement},
    volume::VirtualDiskReference,
};
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

/// Lets the mirrors show an object, as a watch does.
fn show<K: Watched>(view: &View, object: K) {
    watch(view, Event::Apply(DeserializeGuard(Ok(object))));
}

fn watch<K: Watched>(view: &View, event: Event<DeserializeGuard<K>>) {
    K::mirror(view).take(event, &|change| K::index(view, change));
}

fn snapshot(view: &View, claims: &[Claim]) -> Snapshot {
    let mut books = Books::default();
    books.refresh(view, claims.to_vec());
    books.pool
}

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
    show(&view, host("a"));
    show(&view, host("b"));
    show(&view, machine("one"));
    show(&view, domain("one", "a"));
    show(&view, volume("one-root", "a"));
    let snapshot = snapshot(&view, &[claim("two", "a", "two-root"), claim("three", "b", "three-root")]);
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
        show(&view, host);
        show(&view, volume(&format!("root-{name}"), name));
    }
    let snapshot = snapshot(&view, &[claim("two", "b", "two-root")]);
    let used: Vec<u64> = snapshot.hosts.iter().map(|host| host.locations["local"].used / GIB).collect();
    assert_eq!(used, [30, 30, 10]);
}

#[test]
fn an_assigned_disk_that_was_made_already_is_not_counted_twice() {
    let view = View::default();
    show(&view, host("a"));
    show(&view, volume("two-root", "a"));
    let snapshot = snapshot(&view, &[claim("two", "a", "two-root")]);
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

/// A small pool in which things change.
#[derive(Clone, Debug)]
enum Step {
    Machine { name: usize, protected: bool, on: bool, grouped: bool },
    Domain { name: usize, host: usize },
    DomainGone { name: usize, host: usize },
    Host { host: usize, maintenance: bool, storage: usize },
    HostGone { host: usize },
    Disk { name: usize, shared: bool },
    Volume { name: usize, host: usize, shared: bool },
    Claim { name: usize, host: usize },
    NoClaim { name: usize },
    Pool { overcommit: i32, wanted: i32 },
}

fn any_step() -> impl Strategy<Value = Step> {
    let (name, host) = (|| 0..4_usize, || 0..3_usize);
    prop_oneof![
        (name(), any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(name, protected, on, grouped)| Step::Machine { name, protected, on, grouped }),
        (name(), host()).prop_map(|(name, host)| Step::Domain { name, host }),
        (name(), host()).prop_map(|(name, host)| Step::DomainGone { name, host }),
        (host(), any::<bool>(), 0..3_usize).prop_map(|(host, maintenance, storage)| Step::Host {
            host,
            maintenance,
            storage
        }),
        host().prop_map(|host| Step::HostGone { host }),
        (name(), any::<bool>()).prop_map(|(name, shared)| Step::Disk { name, shared }),
        (name(), host(), any::<bool>()).prop_map(|(name, host, shared)| Step::Volume { name, host, shared }),
        (name(), host()).prop_map(|(name, host)| Step::Claim { name, host }),
        name().prop_map(|name| Step::NoClaim { name }),
        (1..3_i32, 0..2_i32).prop_map(|(overcommit, wanted)| Step::Pool { overcommit, wanted }),
    ]
}

const NAMES: [&str; 4] = ["one", "two", "three", "four"];
const HOSTS: [&str; 3] = ["a", "b", "c"];

impl Step {
    fn happen(self, view: &View, claims: &mut BTreeMap<usize, Claim>, version: usize) {
        let version = (version + 10).to_string();
        let root = |name: usize| format!("{}-root", NAMES[name]);
        match self {
            Self::Machine { name, protected, on, grouped } => {
                let mut machine = machine(NAMES[name]);
                machine.metadata.resource_version = Some(version);
                if protected {
                    machine.spec.availability.restart_priority = RestartPriority::Protected;
                }
                if !on {
                    machine.spec.power_state = kubexen_crds::virtual_machine::PowerState::Halted;
                }
                if !grouped {
                    machine.spec.placement.anti_affinity = None;
                }
                let disk = serde_json::json!([{"name": "root", "disk": root(name)}]);
                machine.spec.disks = serde_json::from_value(disk).expect("disks");
                show(view, machine);
            }
            Self::Domain { name, host } => {
                let mut domain = domain(NAMES[name], HOSTS[host]);
                domain.metadata.resource_version = Some(version);
                show(view, domain);
            }
            Self::DomainGone { name, host } => {
                let mut domain = domain(NAMES[name], HOSTS[host]);
                domain.metadata.resource_version = Some(version);
                watch(view, Event::Delete(DeserializeGuard(Ok(domain))));
            }
            Self::Host { host: index, maintenance, storage } => {
                let mut host = host(HOSTS[index]);
                host.metadata.resource_version = Some(version);
                host.spec.maintenance.enabled = maintenance;
                let location = &mut host.status.as_mut().expect("a status").locations[0];
                location.shared = storage > 0;
                location.id = (storage > 0).then(|| format!("san-{storage}"));
                show(view, host);
            }
            Self::HostGone { host: index } => {
                let mut host = host(HOSTS[index]);
                host.metadata.resource_version = Some(version);
                watch(view, Event::Delete(DeserializeGuard(Ok(host))));
            }
            Self::Disk { name, shared } => {
                let repository = if shared { "san" } else { "local" };
                let spec = serde_json::json!({"repository": repository, "size": "10Gi"});
                let mut disk = VirtualDisk::new("", serde_json::from_value(spec).expect("a disk"));
                disk.metadata = named(Some("shop"), &root(name), &version);
                show(view, disk);
            }
            Self::Volume { name, host, shared } => {
                let mut volume = volume(&root(name), HOSTS[host]);
                volume.metadata.resource_version = Some(version);
                volume.spec.shared = shared;
                show(view, volume);
            }
            Self::Claim { name, host } => {
                let mut claim = claim(NAMES[name], HOSTS[host], &root(name));
                claim.request.protected = true;
                claims.insert(name, claim);
            }
            Self::NoClaim { name } => _ = claims.remove(&name),
            Self::Pool { overcommit, wanted } => {
                let spec = serde_json::json!({
                    "placement": {"cpuOvercommit": overcommit},
                    "availability": {"hostFailuresToTolerate": wanted},
                });
                let mut pool = Pool::new("default", serde_json::from_value(spec).expect("a pool"));
                pool.metadata = named(None, "default", &version);
                show(view, pool);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn what_is_worked_out_change_by_change_is_what_all_of_it_comes_to(
        rounds in prop::collection::vec(prop::collection::vec(any_step(), 1..6), 1..12)
    ) {
        let view = View::default();
        for (name, spec) in [
            ("local", serde_json::json!({"type": "Directory", "directory": {"location": "local"}})),
            ("san", serde_json::json!({"type": "LVM", "lvm": {"location": "local"}})),
        ] {
            let mut repository = StorageRepository::new(name, serde_json::from_value(spec).expect("a repository"));
            repository.metadata = named(None, name, "1");
            show(&view, repository);
        }
        let (mut books, mut claims, mut version) = (Books::default(), BTreeMap::new(), 0);
        for steps in rounds {
            for step in steps {
                version += 1;
                step.happen(&view, &mut claims, version);
            }
            let now: Vec<Claim> = claims.values().cloned().collect();
            books.refresh(&view, now.clone());
            let mut anew = Books::default();
            anew.refresh(&view, now);
            prop_assert_eq!(&books.pool, &anew.pool);
            prop_assert_eq!(&books.guests, &anew.guests);
            let promise = |books: &Books| books.reserve.as_ref().map(|reserve| {
                let promise = reserve.promise();
                (promise.wanted, promise.tolerates, promise.protected, promise.breach.is_some())
            });
            prop_assert_eq!(promise(&books), promise(&anew));
        }
    }
}
