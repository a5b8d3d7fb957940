//! Tables: what breaks a promise, how it is told, and what placement refuses.

use super::{
    super::{
        AntiAffinityMode, Room, Verdict, place_keeping,
        tests::{guest, host, network, selector},
    },
    *,
};
use kubexen_crds::pool::PlacementPolicy;

const GIB: u64 = 1 << 30;

/// A host for guests of so many GiB, overhead included.
fn with_memory(name: &str, gib: u64) -> HostView {
    let storage = Some("san-1".to_owned());
    HostView {
        memory_allocatable: gib * GIB,
        locations: [("san".to_owned(), Room { capacity: 100 * GIB, used: 0, storage })].into(),
        ..host(name)
    }
}

/// A protected guest that takes a host so many GiB, overhead included.
fn taking(name: &str, gib: u64) -> Request {
    // 8 KiB per MiB, 1 MiB per vCPU and 2 MiB: 8 MiB per GiB and 4 MiB.
    let memory = gib * GIB - ((8 * gib + 4) << 20);
    Request { memory, protected: true, disks: vec![on_san()], selector: selector(&[]), ..guest(name) }
}

fn on_san() -> DiskNeed {
    DiskNeed::Shared {
        repository: "san".to_owned(),
        location: "san".to_owned(),
        storage: "san-1".to_owned(),
        selector: selector(&[]),
    }
}

/// A pool and its guests, each on the host of its name.
fn pool(mut hosts: Vec<HostView>, guests: Vec<(Request, &str)>) -> (Snapshot, Vec<Protected>) {
    let mut protected = Vec::new();
    for (request, name) in guests {
        let view = hosts.iter_mut().find(|view| view.name == name).expect("a host of the pool");
        facts::occupy(view, &request);
        if request.protected {
            protected.push(Protected { request, host: name.to_owned() });
        }
    }
    (Snapshot { hosts, policy: PlacementPolicy::default() }, protected)
}

fn promise(hosts: Vec<HostView>, guests: Vec<(Request, &str)>, wanted: u32) -> Promise {
    let (snapshot, guests) = pool(hosts, guests);
    Reserve::new(&snapshot, guests, wanted).promise()
}

fn breach(hosts: Vec<HostView>, guests: Vec<(Request, &str)>, wanted: u32) -> String {
    promise(hosts, guests, wanted).breach.expect("a breach").to_string()
}

fn three(gib: u64) -> Vec<HostView> {
    ["a", "b", "c"].map(|name| with_memory(name, gib)).into()
}

#[test]
fn three_hosts_that_are_two_thirds_full_tolerate_one_failure_and_not_two() {
    let guests = || vec![(taking("web-1", 8), "a"), (taking("web-2", 8), "b"), (taking("web-3", 8), "c")];
    let said = promise(three(12), vec![(taking("web-1", 8), "a")], 2);
    assert_eq!((said.tolerates, said.protected, said.breach), (2, 1, None));
    let said = promise(three(16), guests(), 2);
    assert_eq!((said.wanted, said.tolerates, said.protected), (2, 1, 3));
    assert_eq!(
        said.breach.expect("a breach").to_string(),
        "if a and b die, shop/web-2 (8.0 GiB, 2 vCPUs) cannot start elsewhere: 0/1 hosts fit: 1 memory; \
         to restore it: free 8.0 GiB more on c, or add a host, or no longer protect shop/web-2"
    );
}

#[test]
fn guests_that_are_not_protected_keep_their_room_and_are_not_counted() {
    let other = Request { protected: false, ..taking("batch", 5) };
    let guests = |other: &Request| vec![(taking("web", 8), "a"), (other.clone(), "b"), (other.clone(), "c")];
    assert_eq!(promise(three(12), guests(&other), 1).tolerates, 0);
    let smaller = Request { protected: false, ..taking("batch", 4) };
    let said = promise(three(12), guests(&smaller), 1);
    assert_eq!((said.tolerates, said.protected), (1, 1));
}

#[test]
fn each_shortage_is_named_with_what_would_end_it() {
    let small = |name: &str| taking(name, 1);
    let prod = |name: &str| Request { networks: vec![network("prod", "lan", &[])], ..small(name) };
    let no_lan = || HostView { uplinks: [].into(), ..with_memory("b", 12) };
    let no_san = || HostView { locations: [].into(), ..with_memory("b", 12) };
    let four_vcpus = |name: &str| Request { vcpus: 4, ..small(name) };
    let apart = |name: &str| {
        let anti_affinity = Some(("shop/web".to_owned(), AntiAffinityMode::Required));
        Request { anti_affinity, ..small(name) }
    };
    let maintenance = || HostView { maintenance: true, ..with_memory("b", 12) };
    let cordoned = || HostView { schedulable: false, ..with_memory("b", 12) };
    let few_cpus = || HostView { cpus: 4, vcpus_used: 14, ..with_memory("b", 12) };
    let cases = [
        (
            no_lan(),
            prod("db"),
            None,
            "1 network prod not attached; to restore it: attach network prod to another host",
        ),
        (
            no_san(),
            Request { networks: vec![], ..small("db") },
            None,
            "1 repository san not attached; to restore it: attach repository san to another host",
        ),
        (few_cpus(), four_vcpus("db"), None, "1 vCPUs; to restore it: free 2 more vCPUs on b"),
        (
            with_memory("b", 12),
            apart("db"),
            Some((apart("web"), "b")),
            "1 anti-affinity; to restore it: add a host",
        ),
        (maintenance(), small("db"), None, "1 in maintenance; to restore it: end the maintenance of b"),
        (cordoned(), small("db"), None, "1 not schedulable; to restore it: make b schedulable"),
        (with_memory("b", 3), taking("db", 4), None, "1 memory; to restore it: free 1.0 GiB more on b"),
    ];
    for (other, request, present, expected) in cases {
        let guests = [(request, "a")].into_iter().chain(present).collect();
        let said = breach(vec![with_memory("a", 12), other], guests, 1);
        let expected = format!("0/1 hosts fit: {expected}");
        assert!(said.starts_with("if a dies, shop/db (") && said.contains(&expected), "{said}");
        assert!(said.ends_with("or no longer protect shop/db"), "{said}");
    }
}

#[test]
fn guests_of_a_host_that_does_not_report_are_homeless_already() {
    let silent = HostView { ready: false, ..with_memory("a", 12) };
    let hosts = |gib| vec![silent.clone(), with_memory("b", gib), with_memory("c", gib)];
    let guests = || vec![(taking("web", 8), "a")];
    assert_eq!(promise(hosts(8), guests(), 1).breach, None);
    let said = promise(hosts(7), guests(), 1);
    assert_eq!(said.tolerates, 0);
    let said = said.breach.expect("a breach").to_string();
    assert!(
        said.starts_with("the host of shop/web (8.0 GiB, 2 vCPUs) does not report, and no other"),
        "{said}"
    );
}

#[test]
fn the_last_hosts_may_die_if_nobody_is_protected() {
    let said = promise(three(12), vec![], 32);
    assert_eq!((said.tolerates, said.breach), (32, None));
    assert_eq!(promise(three(12), vec![(taking("web", 1), "a")], 32).tolerates, 2);
    assert_eq!(promise(vec![], vec![], 1).tolerates, 1);
}

#[test]
fn a_plan_is_found_that_no_rule_of_thumb_finds() {
    // 6 + 4 and 5 + 3 + 2 fill both hosts; the largest first would put 6 and 3, or 6 and 2, together.
    let hosts = vec![with_memory("a", 20), with_memory("b", 10), with_memory("c", 10)];
    let guests = [6, 5, 4, 3, 2].map(|gib| (taking(&format!("web-{gib}"), gib), "a"));
    assert_eq!(promise(hosts, guests.into(), 1).breach, None);
}

#[test]
fn more_sets_than_are_looked_at_one_by_one_are_estimated() {
    let pool_of = |gib: u64| {
        let hosts: Vec<HostView> = (0..40).map(|index| with_memory(&format!("h-{index:02}"), gib)).collect();
        let names: Vec<String> = hosts.iter().map(|host| host.name.clone()).collect();
        let guests = names.iter().map(|name| (taking(&format!("on-{name}"), 4), name.as_str())).collect();
        let (snapshot, guests) = pool(hosts, guests);
        Reserve::new(&snapshot, guests, 3)
    };
    let roomy = pool_of(12);
    assert_eq!(roomy.levels[3], Level::Estimated(3));
    assert_eq!((roomy.promise().tolerates, roomy.promise().breach), (3, None));
    // Half of the hosts could take another guest each, which an estimate does not see.
    let said = pool_of(8).promise();
    assert_eq!(said.tolerates, 2);
    let said = said.breach.expect("a breach").to_string();
    assert!(
        said.starts_with("it is not certain that all would find a place if h-37, h-38 and h-39 die"),
        "{said}"
    );
}

#[test]
fn guests_of_a_host_that_nobody_knows_any_more_keep_one_another_company_in_an_estimate_too() {
    let anti_affinity = Some(("shop/web".to_owned(), AntiAffinityMode::Required));
    let apart = |name: &str| Request { anti_affinity: anti_affinity.clone(), ..taking(name, 1) };
    let lost = ["web-1", "web-2"].map(|name| Protected { request: apart(name), host: "gone".to_owned() });
    let hosts = vec![with_memory("b", 12), with_memory("c", 12)];
    let snapshot = Snapshot { hosts, policy: PlacementPolicy::default() };
    let reserve = Reserve::new(&snapshot, lost.into(), 1);
    assert_eq!(reserve.promise().tolerates, 0, "they cannot both be on the host that is left");
    assert!(estimate::doubt(&reserve.facts, 1).is_some(), "nor does an estimate say so");
}

#[test]
fn a_guest_is_refused_where_it_would_take_the_reserve() {
    let guests = || vec![(taking("web-1", 8), "a"), (taking("web-2", 8), "b")];
    let place = |request: Request| {
        let (snapshot, guests) = pool(three(12), guests());
        let mut reserve = Reserve::new(&snapshot, guests, 1);
        match place_keeping(&snapshot, &[request], &mut reserve).remove(0) {
            Verdict::Placed { host } => host,
            Verdict::Unplaced(why) => why.to_string(),
        }
    };
    let other = |gib| Request { protected: false, ..taking("batch", gib) };
    assert_eq!(place(other(4)), "c");
    assert_eq!(place(other(5)), "0/3 hosts fit: 2 memory, 1 failure reserve");
    // It would be one more to find room for.
    assert_eq!(place(taking("web-3", 8)), "0/3 hosts fit: 2 memory, 1 failure reserve");
    assert_eq!(place(taking("web-3", 4)), "c");
    assert_eq!(place(Request { recovers: true, ..taking("web-3", 8) }), "c");
    assert_eq!(place(Request { recovers: true, ..other(8) }), "0/3 hosts fit: 2 memory, 1 failure reserve");
}

#[test]
fn a_guest_that_runs_may_grow_as_one_that_starts() {
    let guests = vec![(taking("web-1", 8), "a"), (taking("web-2", 8), "b")];
    let (snapshot, guests) = pool(three(12), guests);
    let mut reserve = Reserve::new(&snapshot, guests.clone(), 1);
    let before = reserve.promise();
    for (host, gib, may) in [("a", 4, true), ("c", 4, true), ("c", 5, false)] {
        for protected in [false, true] {
            assert_eq!(reserve.may_grow(host, gib * GIB, 0, protected), may, "{gib} GiB on {host}");
        }
    }
    assert_eq!(reserve.promise(), before, "nothing has changed");
    assert!(!reserve.may_grow("c", 0, 31, false), "two vCPUs of another are to have room there");
    // It is broken already.
    let mut broken = Reserve::new(&snapshot, guests, 2);
    assert!(broken.may_grow("c", 12 * GIB, 0, true));
    assert!(!broken.may_grow("c", 12 * GIB, 0, false), "it would be worse");
}

#[test]
fn many_guests_that_are_alike_and_wait_cost_one_look_at_each_host() {
    // If `big` dies, each of the others has just room for one of its guests.
    let big = HostView { cpus: 64, ..with_memory("big", 80) };
    let others = (0..40).map(|index| with_memory(&format!("h-{index:02}"), 2));
    let running = (0..40).map(|number| (taking(&format!("web-{number}"), 2), "big"));
    let (snapshot, guests) = pool(others.chain([big]).collect(), running.collect());
    let mut reserve = Reserve::new(&snapshot, guests, 1);
    assert_eq!(reserve.promise().tolerates, 1);
    let apart = |mut request: Request, number: usize| {
        let group = format!("shop/group-{}", number % 2);
        request.anti_affinity = Some((group, AntiAffinityMode::Preferred));
        request
    };
    let waiting: Vec<Request> = (0..100)
        .flat_map(|number| {
            let name = format!("waits-{number}");
            [taking(&name, 2), apart(Request { protected: false, ..taking(&name, 2) }, number)]
        })
        .collect();
    let verdicts = place_keeping(&snapshot, &waiting, &mut reserve);
    assert_eq!(verdicts.len(), waiting.len(), "all of them are looked at in one call");
    let why = "0/41 hosts fit: 40 failure reserve, 1 memory";
    for verdict in verdicts {
        assert!(
            matches!(&verdict, Verdict::Unplaced(rejections) if rejections.to_string() == why),
            "{verdict:?}"
        );
    }
    // Of guests that differ only as many are looked at as others can wait for.
    let different = (0..100).map(|number| Request {
        protected: false,
        anti_affinity: Some((format!("shop/of-{number}"), AntiAffinityMode::Preferred)),
        ..taking(&format!("waits-{number}"), 2)
    });
    let looked_at = place_keeping(&snapshot, &different.collect::<Vec<_>>(), &mut reserve).len();
    assert!((1..100).contains(&looked_at), "{looked_at} of 100");
}

#[test]
fn when_a_promise_is_broken_protected_guests_start_and_others_make_it_no_worse() {
    let guests = vec![(taking("web-1", 8), "a"), (taking("web-2", 10), "b")];
    let (snapshot, guests) = pool(three(12), guests);
    let mut reserve = Reserve::new(&snapshot, guests, 2);
    assert_eq!(reserve.promise().tolerates, 1);
    let other = Request { protected: false, ..taking("batch", 3) };
    let verdicts = place_keeping(&snapshot, &[other, taking("web-3", 8)], &mut reserve);
    let hosts: Vec<bool> = verdicts.iter().map(|verdict| matches!(verdict, Verdict::Placed { .. })).collect();
    assert_eq!(verdicts[1], Verdict::Placed { host: "c".to_owned() });
    // Three of the four GiB that are left on `a` are of no use to any plan.
    assert_eq!((hosts[0], &verdicts[0]), (true, &Verdict::Placed { host: "a".to_owned() }));
}

#[test]
fn guests_that_recover_leave_room_for_one_another() {
    // Placed one by one on the emptiest host, the two small ones would leave no host to the large one.
    let silent = HostView { ready: false, ..with_memory("a", 20) };
    let hosts = vec![silent, with_memory("b", 10), with_memory("c", 10)];
    let lost = [5, 5, 10].into_iter().zip(["x", "y", "z"]).map(|(gib, name)| taking(name, gib));
    let lost: Vec<Request> = lost.map(|request| Request { recovers: true, ..request }).collect();
    let (snapshot, guests) = pool(hosts, lost.iter().map(|request| (request.clone(), "a")).collect());
    let guests = guests.into_iter().map(|guest| Protected {
        request: settled(&guest.request, &snapshot.hosts[0]).expect("it is not bound to its host"),
        ..guest
    });
    // Whether they still count as guests of the dead host, or as nobody's.
    for guests in [guests.collect(), Vec::new()] {
        let mut reserve = Reserve::new(&snapshot, guests, 1);
        let verdicts = place_keeping(&snapshot, &lost, &mut reserve);
        assert!(verdicts.iter().all(|verdict| matches!(verdict, Verdict::Placed { .. })), "{verdicts:?}");
        let one_by_one = super::super::place(&snapshot, &lost);
        assert!(matches!(one_by_one[2], Verdict::Unplaced(_)), "{one_by_one:?}");
    }
}

#[test]
fn a_guest_with_a_disk_on_its_host_alone_is_bound_to_it() {
    let view = with_memory("a", 12);
    let with = |disk| Request { disks: vec![disk], ..taking("web", 1) };
    let on = DiskNeed::On { disk: "root".to_owned(), host: "a".to_owned() };
    let new = |shared| DiskNeed::New {
        repository: "san".to_owned(),
        location: if shared { "san" } else { "ssd" }.to_owned(),
        shared,
        size: GIB,
        selector: selector(&[]),
    };
    assert_eq!(settled(&with(on), &view), None);
    assert_eq!(settled(&with(new(false)), &view), None);
    assert_eq!(settled(&with(new(true)), &view).map(|request| request.disks), Some(vec![on_san()]));
}
