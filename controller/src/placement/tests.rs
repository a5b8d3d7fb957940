//! Tables: what each filter excludes and says.

mod choice;

use super::*;
use kubexen_crds::pool::Strategy;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A host on which everything below fits.
pub(super) fn host(name: &str) -> HostView {
    HostView {
        name: name.to_owned(),
        labels: labels(&[("zone", "a")]),
        maintenance: false,
        ready: true,
        schedulable: true,
        protects: true,
        memory_allocatable: 64 * GIB,
        memory_used: 0,
        cpus: 8,
        vcpus_used: 0,
        cpu_features: features(&["avx", "avx2"]),
        locations: [("ssd".to_owned(), Room { capacity: 100 * GIB, used: 0, storage: None })].into(),
        images: BTreeMap::new(),
        uplinks: ["lan".to_owned()].into(),
        kernels: ["debian-12".to_owned()].into(),
        boot_loaders: [BootType::Pvh, BootType::Pv].into(),
        firmware: [Firmware::Bios, Firmware::Uefi].into(),
        receives: [BootType::Pvh, BootType::Hvm].into(),
        on_migration_network: true,
        capabilities: ["hap", "hvm", "pv"].map(str::to_owned).into(),
        groups: BTreeMap::new(),
    }
}

/// A guest that fits on [`host`].
pub(super) fn guest(name: &str) -> Request {
    Request {
        key: Key::new("shop", name),
        memory: 4 * GIB,
        vcpus: 2,
        growth: 0,
        boot: BootType::Pvh,
        cpu_level: None,
        kernel: Some("debian-12".to_owned()),
        boot_loader: false,
        firmware: None,
        selector: selector(&[("zone", "a")]),
        anti_affinity: None,
        networks: vec![network("prod", "lan", &[])],
        disks: vec![new_disk("fast", "ssd", false, 10 * GIB)],
        images: Vec::new(),
        moves: false,
        protected: false,
        recovers: false,
        avoid: None,
    }
}

pub(super) fn features(names: &[&str]) -> FeatureSets {
    FeatureSets { hvm: Some(level(names)), pv: None }
}

pub(super) fn level(names: &[&str]) -> FeatureSet {
    FeatureSet::from_names(names.iter().copied())
}

pub(super) fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub(super) fn selector(pairs: &[(&str, &str)]) -> HostSelector {
    HostSelector { match_labels: labels(pairs) }
}

pub(super) fn network(network: &str, uplink: &str, pairs: &[(&str, &str)]) -> NetworkNeed {
    NetworkNeed { network: network.to_owned(), uplink: uplink.to_owned(), selector: selector(pairs) }
}

pub(super) fn new_disk(repository: &str, location: &str, shared: bool, size: u64) -> DiskNeed {
    DiskNeed::New {
        repository: repository.to_owned(),
        location: location.to_owned(),
        shared,
        size,
        selector: HostSelector::default(),
    }
}

fn web(mode: AntiAffinityMode) -> Option<(String, AntiAffinityMode)> {
    Some((group_key("shop", "web"), mode))
}

fn snapshot(hosts: Vec<HostView>) -> Snapshot {
    Snapshot { hosts, policy: PlacementPolicy::default() }
}

fn packing(hosts: Vec<HostView>) -> Snapshot {
    Snapshot { hosts, policy: PlacementPolicy { strategy: Strategy::Pack, ..PlacementPolicy::default() } }
}

/// Host names by request; `-` for a guest that fits nowhere.
fn hosts_of(verdicts: &[Verdict]) -> Vec<&str> {
    verdicts
        .iter()
        .map(|verdict| match verdict {
            Verdict::Placed { host } => host.as_str(),
            Verdict::Unplaced(_) => "-",
        })
        .collect()
}

fn message(snapshot: &Snapshot, request: Request) -> String {
    match place(snapshot, &[request]).remove(0) {
        Verdict::Placed { host } => format!("placed on {host}"),
        Verdict::Unplaced(rejections) => rejections.to_string(),
    }
}

#[test]
fn a_guest_goes_to_a_host_that_fits() {
    assert_eq!(message(&snapshot(vec![host("xen-1")]), guest("web-1")), "placed on xen-1");
}

#[test]
fn each_host_is_told_with_the_feature_that_it_lacks() {
    let with = |name: &str, names: &[&str]| HostView { cpu_features: features(names), ..host(name) };
    let hosts = vec![with("a", &["avx"]), with("b", &["avx2"]), with("c", &[]), with("d", &["avx", "avx2"])];
    let guest = Request { cpu_level: Some(level(&["avx", "avx2"])), ..guest("web-1") };
    assert_eq!(message(&snapshot(hosts.clone()), guest.clone()), "placed on d");
    let expected = "0/3 hosts fit: 2 CPU feature avx missing, 1 CPU feature avx2 missing";
    assert_eq!(message(&snapshot(hosts[..3].to_vec()), guest), expected);
}

#[test]
fn each_filter_excludes_and_says_why() {
    type Change = fn(&mut HostView, &mut Request);
    let cases: &[(&str, Change)] = &[
        ("in maintenance", |host, _| host.maintenance = true),
        ("in maintenance", |host, _| (host.maintenance, host.ready, host.schedulable) = (true, false, false)),
        ("not ready", |host, _| host.ready = false),
        ("not schedulable", |host, _| host.schedulable = false),
        ("host selector does not match", |_, guest| guest.selector = selector(&[("zone", "b")])),
        ("PVH not offered", |host, _| host.capabilities.retain(|name| name != "hvm")),
        ("PVH not offered", |host, _| host.capabilities.retain(|name| name != "hap")),
        ("HVM not offered", |host, guest| {
            guest.boot = BootType::Hvm;
            host.capabilities.remove("hap");
        }),
        ("PV not offered", |host, guest| {
            guest.boot = BootType::Pv;
            host.capabilities.remove("pv");
        }),
        ("CPU feature aes missing", |_, guest| guest.cpu_level = Some(level(&["avx", "fma", "aes"]))),
        ("CPU feature avx missing", |host, guest| {
            guest.boot = BootType::Pv;
            guest.cpu_level = Some(level(&["avx"]));
            host.cpu_features.pv = None;
        }),
        ("kernel debian-13 not in catalogue", |_, guest| guest.kernel = Some("debian-13".to_owned())),
        ("pvgrub for PVH not installed", |host, guest| {
            guest.boot_loader = true;
            host.boot_loaders.remove(&BootType::Pvh);
        }),
        ("pvgrub for PV not installed", |host, guest| {
            (guest.boot, guest.boot_loader) = (BootType::Pv, true);
            host.boot_loaders.remove(&BootType::Pv);
        }),
        ("UEFI not installed", |host, guest| {
            guest.firmware = Some(Firmware::Uefi);
            host.firmware.remove(&Firmware::Uefi);
        }),
        ("BIOS not installed", |host, guest| {
            guest.firmware = Some(Firmware::Bios);
            host.firmware.clear();
        }),
        ("disk root is on another host", |_, guest| {
            guest.disks = vec![DiskNeed::On { disk: "root".to_owned(), host: "xen-2".to_owned() }];
        }),
        ("repository fast not attached", |host, _| host.locations.clear()),
        ("repository fast not attached", |_, guest| {
            guest.disks = vec![DiskNeed::New {
                repository: "fast".to_owned(),
                location: "ssd".to_owned(),
                shared: false,
                size: 1,
                selector: selector(&[("zone", "b")]),
            }];
        }),
        ("repository fast not attached", |host, _| {
            host.locations.entry("ssd".to_owned()).and_modify(|room| room.storage = Some("san-1".to_owned()));
        }),
        ("repository san not attached", |host, guest| {
            host.locations.entry("ssd".to_owned()).and_modify(|room| room.storage = Some("san-2".to_owned()));
            guest.disks = vec![DiskNeed::Shared {
                repository: "san".to_owned(),
                location: "ssd".to_owned(),
                storage: "san-1".to_owned(),
                selector: HostSelector::default(),
            }];
        }),
        ("network prod not attached", |host, _| host.uplinks.clear()),
        ("network prod not attached", |_, guest| {
            guest.networks = vec![network("prod", "lan", &[("zone", "b")])];
        }),
        ("not on the migration network", |host, guest| {
            host.on_migration_network = false;
            guest.moves = true;
        }),
        ("anti-affinity", |host, guest| {
            host.groups.insert(group_key("shop", "web"), 1);
            guest.anti_affinity = web(AntiAffinityMode::Required);
        }),
        ("room in repository fast", |host, _| {
            host.locations
                .insert("ssd".to_owned(), Room { capacity: 100 * GIB, used: 90 * GIB + 1, storage: None });
        }),
        ("room in repository slow", |_, guest| {
            guest.disks =
                vec![new_disk("fast", "ssd", false, 60 * GIB), new_disk("slow", "ssd", false, 60 * GIB)];
        }),
        ("fewer CPUs than the guest has vCPUs", |_, guest| guest.vcpus = 9),
        ("vCPUs", |host, _| host.vcpus_used = 4 * 8 - 1),
        ("memory", |host, _| host.memory_used = 60 * GIB),
    ];
    for (index, (reason, change)) in cases.iter().enumerate() {
        let (mut host, mut guest) = (host("xen-1"), guest("web-1"));
        change(&mut host, &mut guest);
        assert_eq!(
            message(&snapshot(vec![host]), guest),
            format!("0/1 hosts fit: 1 {reason}"),
            "case {index}"
        );
    }
}

#[test]
fn what_exactly_suffices_is_enough() {
    let needed = memory_with_overhead(4 * GIB, 2, BootType::Pvh);
    let mut exact = host("xen-1");
    exact.memory_used = exact.memory_allocatable - needed;
    exact.vcpus_used = 4 * 8 - 2;
    exact.locations.insert("ssd".to_owned(), Room { capacity: 100 * GIB, used: 90 * GIB, storage: None });
    assert_eq!(message(&snapshot(vec![exact.clone()]), guest("web-1")), "placed on xen-1");

    exact.memory_used += 1;
    assert_eq!(message(&snapshot(vec![exact]), guest("web-1")), "0/1 hosts fit: 1 memory");
}

#[test]
fn a_host_that_promised_more_than_it_has_takes_nothing() {
    let mut shrunk = host("xen-1");
    shrunk.memory_used = 2 * shrunk.memory_allocatable;
    shrunk.vcpus_used = 1000;
    assert_eq!(message(&snapshot(vec![shrunk]), guest("web-1")), "0/1 hosts fit: 1 vCPUs");
}

#[test]
fn shadow_page_tables_stand_in_for_hardware_translation() {
    let mut old = host("xen-1");
    old.capabilities = ["hvm", "shadow"].map(str::to_owned).into();
    assert_eq!(message(&snapshot(vec![old]), guest("web-1")), "placed on xen-1");
}

#[test]
fn a_host_counts_once_under_the_first_reason() {
    let mut hopeless = host("xen-1");
    hopeless.schedulable = false;
    hopeless.memory_allocatable = 0;
    hopeless.uplinks.clear();
    assert_eq!(message(&snapshot(vec![hopeless]), guest("web-1")), "0/1 hosts fit: 1 not schedulable");
}

#[test]
fn a_guest_goes_where_its_image_is() {
    let image = |name: &str| ImageNeed {
        repository: "isos".to_owned(),
        location: "ssd".to_owned(),
        image: name.to_owned(),
        selector: selector(&[]),
    };
    let mut hosts = [host("xen-1"), host("xen-2")];
    hosts[1].images = [("ssd".to_owned(), ["debian.iso".to_owned()].into())].into();
    let snapshot = Snapshot { hosts: hosts.into(), policy: PlacementPolicy::default() };
    let with = |name| Request { images: vec![image(name)], ..guest("web") };
    let verdicts = place(&snapshot, &[with("debian.iso"), with("other.iso")]);
    assert_eq!(verdicts[0], Verdict::Placed { host: "xen-2".to_owned() });
    let Verdict::Unplaced(why) = &verdicts[1] else { panic!("{verdicts:?}") };
    assert_eq!(why.to_string(), "0/2 hosts fit: 2 image other.iso of repository isos missing");
}

#[test]
fn the_message_counts_reasons_most_frequent_first_then_by_text() {
    let mut hosts: Vec<HostView> = (0..14).map(|index| host(&format!("xen-{index}"))).collect();
    hosts[..7].iter_mut().for_each(|host| host.memory_allocatable = GIB);
    hosts[7..10].iter_mut().for_each(|host| host.uplinks.clear());
    hosts[10..12].iter_mut().for_each(|host| host.schedulable = false);
    hosts[12..].iter_mut().for_each(|host| host.kernels.clear());
    assert_eq!(
        message(&snapshot(hosts), guest("web-1")),
        "0/14 hosts fit: 7 memory, 3 network prod not attached, 2 kernel debian-12 not in catalogue, \
         2 not schedulable"
    );
}

#[test]
fn a_pool_without_hosts_says_so() {
    assert_eq!(message(&snapshot(vec![]), guest("web-1")), "0/0 hosts fit: the pool has no hosts");
}

#[test]
fn disks_on_two_hosts_leave_no_host() {
    let mut torn = guest("web-1");
    torn.disks = ["xen-1", "xen-2"]
        .map(|host| DiskNeed::On { disk: format!("on-{host}"), host: host.to_owned() })
        .into();
    assert_eq!(
        message(&snapshot(vec![host("xen-1"), host("xen-2")]), torn),
        "0/2 hosts fit: 1 disk on-xen-1 is on another host, 1 disk on-xen-2 is on another host"
    );
}
