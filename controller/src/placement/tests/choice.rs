//! Which of several hosts is taken, and how fast.

use super::*;
use crate::placement::score::{Load, cost, share};
use std::{hint::black_box, time::Instant};

#[test]
fn later_requests_see_what_earlier_ones_took() {
    type Change = fn(&mut HostView, &mut Request);
    let cases: &[(&str, Change)] = &[
        ("memory", |host, _| host.memory_allocatable = 6 * GIB),
        ("vCPUs", |host, _| host.vcpus_used = 4 * 8 - 3),
        ("room in repository fast", |_, guest| guest.disks = vec![new_disk("fast", "ssd", false, 60 * GIB)]),
        ("anti-affinity", |_, guest| guest.anti_affinity = web(AntiAffinityMode::Required)),
    ];
    for (reason, change) in cases {
        let (mut host, mut guest) = (host("xen-1"), guest("web-1"));
        change(&mut host, &mut guest);
        let verdicts = place(&snapshot(vec![host]), &[guest.clone(), guest]);
        assert_eq!(hosts_of(&verdicts), ["xen-1", "-"], "{reason}");
        let Verdict::Unplaced(rejections) = &verdicts[1] else { panic!("{reason}: {verdicts:?}") };
        assert_eq!(rejections.to_string(), format!("0/1 hosts fit: 1 {reason}"));
    }
}

#[test]
fn the_score_sees_what_earlier_requests_took() {
    // In percent of memory and CPU: after its first guest xen-1 stands at 20 and 1; xen-2 begins at 21 and 2.
    let hosts = ["xen-1", "xen-2"].map(|name| HostView {
        labels: labels(&[("zone", name)]),
        memory_allocatable: 100 * GIB,
        cpus: 25,
        ..host(name)
    });
    let [one, mut two] = hosts;
    (two.memory_used, two.vcpus_used) = (21 * GIB, 2);
    let first = Request {
        memory: 20 * GIB - 256 * MIB,
        vcpus: 1,
        selector: selector(&[("zone", "xen-1")]),
        ..guest("a")
    };
    let second = Request { memory: MIB, vcpus: 10, selector: HostSelector::default(), ..guest("b") };
    assert_eq!(hosts_of(&place(&snapshot(vec![one, two]), &[first, second])), ["xen-1", "xen-1"]);
}

#[test]
fn a_host_that_is_to_be_avoided_is_taken_only_if_no_other_fits() {
    let mut used = host("xen-2");
    used.memory_used = 32 * GIB;
    let pool = snapshot(vec![host("xen-1"), used]);
    let wary = Request { avoid: Some("xen-1".to_owned()), ..guest("web") };
    assert_eq!(message(&pool, wary.clone()), "placed on xen-2");
    assert_eq!(message(&snapshot(vec![host("xen-1")]), wary), "placed on xen-1");
}

#[test]
fn a_large_pool_is_used_whole() {
    let hosts: Vec<HostView> = (0..130).map(|index| host(&format!("xen-{index:03}"))).collect();
    let names: Vec<String> = hosts.iter().map(|host| host.name.clone()).collect();
    let alone = Request { anti_affinity: web(AntiAffinityMode::Required), ..guest("web") };
    let verdicts = place(&snapshot(hosts.clone()), &vec![alone; 131]);
    assert_eq!(hosts_of(&verdicts[..130]), names);
    let Verdict::Unplaced(rejections) = &verdicts[130] else { panic!("{:?}", verdicts[130]) };
    assert_eq!(rejections.to_string(), "0/130 hosts fit: 130 anti-affinity");

    let mut hosts = hosts;
    hosts.iter_mut().filter(|host| host.name != "xen-101").for_each(|host| host.schedulable = false);
    assert_eq!(message(&snapshot(hosts.clone()), guest("web")), "placed on xen-101");
    hosts[101].memory_allocatable = GIB;
    assert_eq!(message(&snapshot(hosts), guest("web")), "0/130 hosts fit: 129 not schedulable, 1 memory");
}

#[test]
fn groups_of_two_namespaces_are_two_groups() {
    let mut taken = host("xen-1");
    taken.groups.insert(group_key("bank", "web"), 1);
    let mut lone = guest("web-1");
    lone.anti_affinity = web(AntiAffinityMode::Required);
    assert_eq!(message(&snapshot(vec![taken]), lone), "placed on xen-1");
}

#[test]
fn preferred_anti_affinity_goes_before_load_and_yields_where_nothing_else_fits() {
    let (empty, mut busy) = (host("xen-1"), host("xen-2"));
    busy.memory_used = 50 * GIB;
    let mut web_guest = guest("web");
    web_guest.anti_affinity = web(AntiAffinityMode::Preferred);
    let verdicts = place(&snapshot(vec![empty, busy]), &vec![web_guest; 4]);
    assert_eq!(hosts_of(&verdicts), ["xen-1", "xen-2", "xen-1", "xen-2"]);
}

#[test]
fn spread_takes_the_emptiest_and_pack_the_fullest() {
    let (one, mut two, mut three) = (host("xen-1"), host("xen-2"), host("xen-3"));
    two.memory_used = 32 * GIB;
    three.memory_used = 16 * GIB;
    let hosts = vec![three, two, one];
    assert_eq!(hosts_of(&place(&snapshot(hosts.clone()), &[guest("web-1")])), ["xen-1"]);
    assert_eq!(hosts_of(&place(&packing(hosts), &[guest("web-1")])), ["xen-2"]);
}

#[test]
fn the_scarcer_resource_decides() {
    let (mut busy_memory, mut busy_cpu) = (host("xen-1"), host("xen-2"));
    busy_memory.memory_used = 32 * GIB;
    busy_cpu.vcpus_used = 24;
    let hosts = vec![busy_memory, busy_cpu];
    assert_eq!(hosts_of(&place(&snapshot(hosts.clone()), &[guest("web-1")])), ["xen-1"]);
    assert_eq!(hosts_of(&place(&packing(hosts), &[guest("web-1")])), ["xen-2"]);
}

#[test]
fn of_equal_hosts_the_one_with_fewer_guests_of_the_batch_then_the_first_by_name_is_taken() {
    let hosts = vec![host("xen-3"), host("xen-1"), host("xen-2")];
    let guests: Vec<Request> = (0..4).map(|index| guest(&format!("web-{index}"))).collect();
    assert_eq!(hosts_of(&place(&snapshot(hosts), &guests)), ["xen-1", "xen-2", "xen-3", "xen-1"]);

    // Nothing weighs on hosts as large as these: only the count of the batch tells them apart.
    let vast = ["xen-2", "xen-1"].map(|name| HostView {
        memory_allocatable: u64::MAX,
        cpus: u32::MAX,
        locations: [("ssd".to_owned(), Room { capacity: u64::MAX, used: 0, storage: None })].into(),
        ..host(name)
    });
    for snapshot in [snapshot(vast.to_vec()), packing(vast.to_vec())] {
        assert_eq!(hosts_of(&place(&snapshot, &guests)), ["xen-1", "xen-2", "xen-1", "xen-2"]);
    }
}

#[test]
fn the_example_of_the_documentation_holds() {
    let load = |memory, vcpus| Load { memory: share(memory, 100), cpu: share(vcpus, 64) };
    let a = (load(40, 8), load(50, 12));
    let b = (load(20, 24), load(30, 28));
    // Quarters of a millionth: 50.94 % is 2,037,500 of them.
    assert_eq!(cost(Strategy::Spread, a.0, a.1), 2_037_500);
    assert_eq!(cost(Strategy::Spread, b.0, b.1), 1_712_500);
    assert_eq!(cost(Strategy::Pack, a.0, a.1), -1_962_500);
    assert_eq!(cost(Strategy::Pack, b.0, b.1), -1_787_500);
}

#[test]
fn the_memory_overhead_follows_mode_vcpus_and_size() {
    let cases = [
        // MiB, vCPUs, mode, expected MiB: memory + vCPUs + memory / 128 + structures, rounded up to an even number.
        (0, 0, BootType::Pv, 2),
        (128, 1, BootType::Pv, 132),
        (128, 1, BootType::Pvh, 132),
        (128, 2, BootType::Pv, 132),
        (128, 2, BootType::Pvh, 134),
        (1024, 1, BootType::Hvm, 1036),
        (4096, 4, BootType::Pvh, 4134),
        (8 << 20, 128, BootType::Hvm, (8 << 20) + 65536 + 130),
    ];
    for (memory, vcpus, boot, expected) in cases {
        assert_eq!(
            memory_with_overhead(memory * MIB, vcpus, boot),
            expected * MIB,
            "{memory} MiB, {vcpus} vCPUs, {boot:?}"
        );
    }
    assert_eq!(memory_with_overhead(u64::MAX, u32::MAX, BootType::Hvm), u64::MAX);
}

#[test]
#[ignore = "prints a figure; run it with --nocapture and optimisation"]
fn how_many_placements_per_second() {
    let zones = ["a", "b", "c"];
    let hosts = (0..1_000)
        .map(|index| HostView {
            labels: labels(&[("zone", zones[index % 3])]),
            memory_used: (index as u64 % 17) * GIB,
            memory_allocatable: 256 * GIB,
            cpus: 32,
            locations: [("ssd".to_owned(), Room { capacity: 2048 * GIB, used: 0, storage: None })].into(),
            ..host(&format!("xen-{index:04}"))
        })
        .collect();
    let guests: Vec<Request> = (0..10_000)
        .map(|index| Request {
            memory: (1 + index as u64 % 8) * GIB,
            selector: if index % 2 == 0 { selector(&[("zone", zones[index % 3])]) } else { selector(&[]) },
            anti_affinity: (index % 5 == 0)
                .then(|| (group_key("shop", &format!("group-{}", index % 100)), AntiAffinityMode::Preferred)),
            ..guest(&format!("web-{index}"))
        })
        .collect();
    let snapshot = snapshot(hosts);
    let start = Instant::now();
    let verdicts = black_box(place(black_box(&snapshot), black_box(&guests)));
    let elapsed = start.elapsed();
    let placed = verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Placed { .. })).count();
    println!(
        "{placed} of {} guests placed on {} hosts in {elapsed:?}: {:.0} placements per second",
        guests.len(),
        snapshot.hosts.len(),
        guests.len() as f64 / elapsed.as_secs_f64()
    );
}

#[test]
fn a_guest_that_is_to_be_protected_goes_to_a_host_that_can_keep_the_promise_if_one_fits() {
    let unable = |name: &str| HostView { protects: false, ..host(name) };
    let busy = |name: &str| HostView { memory_used: 50 * GIB, vcpus_used: 20, ..host(name) };
    let protected = Request { protected: true, ..guest("db") };
    let place = |hosts: Vec<HostView>, request: &Request| {
        hosts_of(&super::place(&snapshot(hosts), std::slice::from_ref(request)))[0].to_owned()
    };
    assert_eq!(place(vec![unable("xen-1"), busy("xen-2")], &protected), "xen-2", "although it is busier");
    assert_eq!(place(vec![unable("xen-1"), busy("xen-2")], &guest("db")), "xen-1", "nothing is promised");
    let full = HostView { memory_used: 64 * GIB, ..host("xen-2") };
    assert_eq!(
        place(vec![unable("xen-1"), full], &protected),
        "xen-1",
        "it runs unprotected rather than not"
    );
    let avoiding = Request { avoid: Some("xen-2".to_owned()), ..protected };
    assert_eq!(place(vec![unable("xen-1"), busy("xen-2")], &avoiding), "xen-1");
}
