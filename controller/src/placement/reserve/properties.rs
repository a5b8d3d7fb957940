//! Properties: what a reserve says of small random pools, checked against every plan that there is.

use super::{
    super::{
        AntiAffinityMode, Request, Room, Verdict, memory_with_overhead, place_keeping,
        tests::{guest, host, network, selector},
    },
    plan::Move,
    *,
};
use kubexen_crds::pool::PlacementPolicy;
use kubexen_runtime::Key;
use proptest::{collection::vec, option, prelude::*, sample::select};
use std::collections::BTreeMap;

const GIB: u64 = 1 << 30;

/// A pool with what its protected guests use, and whom they are.
#[derive(Clone, Debug)]
struct World {
    snapshot: Snapshot,
    guests: Vec<Protected>,
}

fn any_host() -> impl Strategy<Value = HostView> {
    (
        (prop::bool::weighted(0.9), prop::bool::weighted(0.9), prop::bool::weighted(0.9)),
        (0..=9_u64, 1..=4_u32),
        (select(vec!["a", "a", "a", "b"]), prop::bool::weighted(0.9), prop::bool::weighted(0.8)),
        option::weighted(0.3, select(vec!["shop/web", "shop/db"])),
    )
        .prop_map(|((ready, schedulable, in_service), (memory, cpus), (zone, lan, san), group)| {
            let mut view = host("");
            view.labels.insert("zone".to_owned(), zone.to_owned());
            (view.ready, view.schedulable, view.maintenance) = (ready, schedulable, !in_service);
            (view.memory_allocatable, view.memory_used) = (memory * GIB, 0);
            (view.cpus, view.vcpus_used) = (cpus, 0);
            view.uplinks.retain(|_| lan);
            let storage = Some(if san { "san-1" } else { "san-2" }.to_owned());
            view.locations = [("san".to_owned(), Room { capacity: 100 * GIB, used: 0, storage })].into();
            view.groups = group.map(|name| (name.to_owned(), 1)).into_iter().collect();
            view
        })
}

fn any_guest() -> impl Strategy<Value = Request> {
    let mode = select(vec![AntiAffinityMode::Required, AntiAffinityMode::Preferred]);
    (
        (0..=3_u64, 1..=3_u32),
        (option::weighted(0.2, select(vec!["a", "b"])), prop::bool::weighted(0.3), prop::bool::weighted(0.4)),
        option::weighted(0.3, (select(vec!["shop/web", "shop/db"]).prop_map(str::to_owned), mode)),
    )
        .prop_map(|((memory, vcpus), (zone, lan, disk), anti_affinity)| Request {
            memory: memory * GIB,
            vcpus,
            selector: zone.map(|zone| selector(&[("zone", zone)])).unwrap_or_default(),
            anti_affinity,
            networks: lan.then(|| network("prod", "lan", &[])).into_iter().collect(),
            disks: disk
                .then(|| DiskNeed::Shared {
                    repository: "san".to_owned(),
                    location: "san".to_owned(),
                    storage: "san-1".to_owned(),
                    selector: selector(&[]),
                })
                .into_iter()
                .collect(),
            ..guest("web")
        })
}

/// A pool whose guests are where `at` says, and are counted there.
fn world(hosts: Vec<HostView>, guests: Vec<(Request, usize)>, overcommit: i32) -> World {
    let policy = PlacementPolicy { cpu_overcommit: overcommit, ..PlacementPolicy::default() };
    let mut snapshot = Snapshot { hosts, policy };
    for (index, host) in snapshot.hosts.iter_mut().enumerate() {
        host.name = format!("xen-{index}");
    }
    let mut placed = Vec::new();
    for (index, (mut request, at)) in guests.into_iter().enumerate() {
        request.key = Key::new("shop", format!("web-{index}"));
        request.protected = true;
        let at = at % snapshot.hosts.len();
        facts::occupy(&mut snapshot.hosts[at], &request);
        placed.push(Protected { request, host: format!("xen-{at}") });
    }
    World { snapshot, guests: placed }
}

fn any_world() -> impl Strategy<Value = World> {
    (vec(any_host(), 1..5), vec((any_guest(), 0..8_usize), 0..7), 1..=3_i32)
        .prop_map(|(hosts, guests, overcommit)| world(hosts, guests, overcommit))
}

/// A pool with few guests of a size near what hosts have left, of which an estimate shows something more often.
fn any_roomy_world() -> impl Strategy<Value = World> {
    let roomy = (any_host(), 1..=6_u64, 1..=3_u32).prop_map(|(view, memory, cpus)| HostView {
        ready: true,
        schedulable: true,
        maintenance: false,
        memory_allocatable: memory * GIB,
        cpus,
        ..view
    });
    (vec(roomy, 3..6), vec((any_guest(), 0..8_usize), 1..4), 1..=3_i32)
        .prop_map(|(hosts, guests, overcommit)| world(hosts, guests, overcommit))
}

/// Whether the guest may stand on the host beside those that the plan has brought there, as plainly as it can be said.
fn may_go(world: &World, guest: &Request, host: &HostView, brought: &[&Request]) -> bool {
    let overcommit = u64::try_from(world.snapshot.policy.cpu_overcommit).unwrap();
    let all = brought.iter().chain([&guest]);
    let memory = |one: &Request| memory_with_overhead(one.memory, one.vcpus, one.boot) + one.growth;
    let memory: u64 = all.clone().map(|one| memory(one)).sum();
    let vcpus: u64 = all.map(|one| u64::from(one.vcpus)).sum();
    let company = guest.anti_affinity.as_ref().is_some_and(|(group, mode)| {
        let required = *mode == AntiAffinityMode::Required;
        (required && host.groups.get(group).is_some_and(|members| *members > 0))
            || brought
                .iter()
                .filter_map(|other| other.anti_affinity.as_ref())
                .any(|(other, mode)| other == group && (required || *mode == AntiAffinityMode::Required))
    });
    host.ready
        && host.schedulable
        && !host.maintenance
        && guest.selector.matches(&host.labels)
        && guest.networks.iter().all(|need| host.uplinks.contains(&need.uplink))
        && (guest.disks.is_empty() || host.locations["san"].storage.as_deref() == Some("san-1"))
        && guest.vcpus <= host.cpus
        && u64::from(host.vcpus_used) + vcpus <= u64::from(host.cpus) * overcommit
        && host.memory_used + memory <= host.memory_allocatable
        && !company
}

/// Whether there is a plan for these guests on these hosts: every host is tried for every guest.
fn plan_exists<'a>(
    world: &World,
    guests: &[&'a Request],
    hosts: &[&HostView],
    brought: &mut BTreeMap<String, Vec<&'a Request>>,
) -> bool {
    let [guest, others @ ..] = guests else { return true };
    hosts.iter().any(|host| {
        if !may_go(world, guest, host, brought.get(&host.name).map_or(&[], Vec::as_slice)) {
            return false;
        }
        brought.entry(host.name.clone()).or_default().push(guest);
        let found = plan_exists(world, others, hosts, brought);
        brought.entry(host.name.clone()).or_default().pop();
        found
    })
}

/// Whether all sets of `size` hosts that report may die.
fn tolerates(world: &World, size: u32) -> bool {
    let hosts = &world.snapshot.hosts;
    (0..1_u32 << hosts.len()).filter(|set| set.count_ones() == size).all(|set| {
        let dies = |index: usize| set & (1 << index) != 0;
        if (0..hosts.len()).any(|index| dies(index) && !hosts[index].ready) {
            return true;
        }
        let survives = |host: &&HostView| {
            hosts.iter().position(|other| other.name == host.name).is_some_and(|index| !dies(index))
        };
        let survivors: Vec<&HostView> = hosts.iter().filter(survives).collect();
        let homeless = world
            .guests
            .iter()
            .filter(|guest| !survivors.iter().any(|host| host.name == guest.host && host.ready));
        let homeless: Vec<&Request> = homeless.map(|guest| &guest.request).collect();
        plan_exists(world, &homeless, &survivors, &mut BTreeMap::new())
    })
}

/// How many failures are tolerated, at most `wanted`.
fn tolerated(world: &World, wanted: u32) -> u32 {
    (0..=wanted).take_while(|size| tolerates(world, *size)).last().unwrap_or(0)
}

fn reserve(world: &World, wanted: u32) -> Reserve {
    Reserve::new(&world.snapshot, world.guests.clone(), wanted)
}

fn said(world: &World, wanted: u32) -> Promise {
    reserve(world, wanted).promise()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_small_pool_tolerates_what_it_is_said_to_tolerate((world, wanted) in (any_world(), 0..=3_u32)) {
        let said = said(&world, wanted);
        prop_assert_eq!(said.tolerates, tolerated(&world, wanted));
        let kept = (0..=wanted).all(|size| tolerates(&world, size));
        prop_assert_eq!(said.breach.is_none(), kept, "{:?}", said.breach);
    }

    #[test]
    fn a_breach_names_hosts_that_may_not_die_and_a_guest_of_theirs(world in any_world()) {
        if let Some(breach) = said(&world, 2).breach {
            let dead = |name: &String| {
                let host = world.snapshot.hosts.iter().find(|host| host.name == *name);
                breach.hosts.contains(name) || host.is_none_or(|host| !host.ready)
            };
            let guest = world.guests.iter().find(|guest| guest.request.key == breach.guest).expect("a guest");
            prop_assert!(dead(&guest.host), "{} on {} for {:?}", breach.guest, guest.host, breach.hosts);
            prop_assert!(breach.remedies.len() >= 2);
            prop_assert!(!breach.to_string().is_empty());
        }
    }

    #[test]
    fn what_an_estimate_shows_is_so((world, failures) in (any_roomy_world(), 1..=2_usize)) {
        let reserve = reserve(&world, 0);
        if estimate::doubt(&reserve.facts, failures).is_none() {
            let most = u32::try_from(failures).unwrap();
            for size in 0..=most {
                prop_assert!(tolerates(&world, size), "{size} of {failures}");
            }
        }
    }

    #[test]
    fn what_an_estimate_shows_is_so_when_hosts_of_guests_are_gone(
        (world, gone, failures) in (any_roomy_world(), vec(prop::bool::ANY, 4), 1..=2_usize)
    ) {
        let mut world = world;
        for index in (0..world.guests.len()).filter(|index| gone[*index]) {
            let guest = world.guests[index].clone();
            leave(&mut world, &guest);
            world.guests[index].host = "gone".to_owned();
        }
        let reserve = reserve(&world, 0);
        if estimate::doubt(&reserve.facts, failures).is_none() {
            for size in 0..=u32::try_from(failures).unwrap() {
                prop_assert!(tolerates(&world, size), "{size} of {failures}");
            }
        }
    }

    #[test]
    fn after_any_changes_it_says_what_it_says_from_scratch(
        (worlds, wanted) in (any_world().prop_flat_map(|first| (Just(first), vec(any_change(), 1..8))), 0..=2_u32)
    ) {
        let (mut world, changes) = worlds;
        let mut reserve = reserve(&world, wanted);
        for change in changes {
            let before = world.clone();
            change.apply(&mut world);
            reserve.update(&world.snapshot, differences(&before, &world), wanted);
            let (promise, scratch) = (reserve.promise(), said(&world, wanted));
            prop_assert_eq!(promise.tolerates, scratch.tolerates);
            prop_assert_eq!(promise.breach.is_some(), scratch.breach.is_some());
            prop_assert_eq!(promise.protected, scratch.protected);
            prop_assert_eq!(scratch.tolerates, tolerated(&world, wanted));
            plans_hold(&world, &reserve)?;
        }
    }

    #[test]
    fn guests_that_are_not_protected_leave_a_promise_as_it_was(
        (world, requests, wanted) in (any_world(), vec(any_guest(), 1..6), 1..=2_u32)
    ) {
        let before = tolerated(&world, wanted);
        let (after, refused) = placed(&world, requests, wanted);
        prop_assert!(tolerated(&after, wanted) >= before);
        let kept = (0..=wanted).all(|size| tolerates(&world, size));
        for (request, host) in refused.into_iter().filter(|_| kept) {
            let mut with = after.clone();
            facts::occupy(&mut with.snapshot.hosts[host], &request);
            prop_assert!(!tolerates(&with, wanted), "{} was refused for nothing", request.key);
        }
    }

    #[test]
    fn protected_guests_leave_a_promise_that_is_kept_as_it_was(
        (world, requests, wanted) in (any_world(), vec((any_guest(), prop::bool::ANY), 1..6), 1..=2_u32)
    ) {
        let kept = |world: &World| (0..=wanted).all(|size| tolerates(world, size));
        let requests = requests.into_iter().map(|(request, protected)| Request { protected, ..request });
        let (after, _) = placed(&world, requests.collect(), wanted);
        prop_assert!(!kept(&world) || kept(&after));
    }
}

/// Places guests and counts them where they are; and which of those that are not protected the reserve alone kept from
/// which host, at the end.
fn placed(world: &World, requests: Vec<Request>, wanted: u32) -> (World, Vec<(Request, usize)>) {
    let requests: Vec<Request> = requests
        .into_iter()
        .enumerate()
        .map(|(index, request)| Request { key: Key::new("shop", format!("new-{index}")), ..request })
        .collect();
    let verdicts = place_keeping(&world.snapshot, &requests, &mut reserve(world, wanted));
    let mut after = world.clone();
    let mut refused = Vec::new();
    for (request, verdict) in requests.into_iter().zip(verdicts) {
        match verdict {
            Verdict::Placed { host } => {
                let view = after.snapshot.hosts.iter_mut().find(|view| view.name == host).expect("a host");
                facts::occupy(view, &request);
                if request.protected {
                    after.guests.push(Protected { request, host });
                }
            }
            Verdict::Unplaced(_) => {
                let hosts = after.snapshot.hosts.iter().enumerate();
                let fitting = hosts.filter(|(_, host)| may_go(&after, &request, host, &[]));
                let fitting: Vec<usize> = fitting.map(|(index, _)| index).collect();
                refused.extend(fitting.into_iter().map(|host| (request.clone(), host)));
            }
        }
    }
    (after, refused)
}

/// One change of a pool.
#[derive(Clone, Debug)]
enum Change {
    Start(Request, usize),
    Stop(usize),
    Move(usize, usize),
    Use(usize, u64),
    Maintenance(usize),
    Replace(usize, HostView),
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any_guest(), 0..8_usize).prop_map(|(request, host)| Change::Start(request, host)),
        (0..8_usize).prop_map(Change::Stop),
        (0..8_usize, 0..8_usize).prop_map(|(guest, host)| Change::Move(guest, host)),
        (0..8_usize, 0..9_u64).prop_map(|(host, memory)| Change::Use(host, memory * GIB)),
        (0..8_usize).prop_map(Change::Maintenance),
        (0..8_usize, any_host()).prop_map(|(host, view)| Change::Replace(host, view)),
    ]
}

impl Change {
    fn apply(self, world: &mut World) {
        let hosts = world.snapshot.hosts.len();
        match self {
            Change::Start(request, host) if world.guests.len() < 7 => {
                let name = format!("xen-{}", host % hosts);
                facts::occupy(&mut world.snapshot.hosts[host % hosts], &request);
                let free = |index: &usize| {
                    let key = Key::new("shop", format!("web-{index}"));
                    world.guests.iter().all(|guest| guest.request.key != key)
                };
                let index = (0..8).find(free).expect("a name");
                let request =
                    Request { key: Key::new("shop", format!("web-{index}")), protected: true, ..request };
                world.guests.push(Protected { request, host: name });
            }
            Change::Stop(guest) if !world.guests.is_empty() => {
                let guest = world.guests.remove(guest % world.guests.len());
                leave(world, &guest);
            }
            Change::Move(guest, host) if !world.guests.is_empty() => {
                let index = guest % world.guests.len();
                let guest = world.guests[index].clone();
                leave(world, &guest);
                facts::occupy(&mut world.snapshot.hosts[host % hosts], &guest.request);
                world.guests[index].host = format!("xen-{}", host % hosts);
            }
            Change::Start(..) | Change::Stop(_) | Change::Move(..) => {}
            Change::Use(host, memory) => world.snapshot.hosts[host % hosts].memory_used = memory,
            Change::Maintenance(host) => world.snapshot.hosts[host % hosts].maintenance ^= true,
            Change::Replace(host, view) => {
                let name = format!("xen-{}", host % hosts);
                world.snapshot.hosts[host % hosts] = HostView { name, ..view };
            }
        }
    }
}

fn leave(world: &mut World, guest: &Protected) {
    let Request { memory, vcpus, boot, anti_affinity, .. } = &guest.request;
    let host = world.snapshot.hosts.iter_mut().find(|host| host.name == guest.host).expect("a host");
    host.memory_used = host.memory_used.saturating_sub(memory_with_overhead(*memory, *vcpus, *boot));
    host.vcpus_used = host.vcpus_used.saturating_sub(*vcpus);
    if let Some(members) = anti_affinity.as_ref().and_then(|(group, _)| host.groups.get_mut(group)) {
        *members = members.saturating_sub(1);
    }
}

/// How guests stand of which something differs between two worlds.
fn differences(before: &World, after: &World) -> Vec<(Key, Option<Protected>)> {
    let key = |guest: &Protected| guest.request.key.clone();
    let gone =
        before.guests.iter().filter(|guest| !after.guests.iter().any(|other| key(other) == key(guest)));
    let gone = gone.map(|guest| (key(guest), None));
    let news = after.guests.iter().filter(|guest| !before.guests.contains(guest));
    gone.chain(news.map(|guest| (key(guest), Some(guest.clone())))).collect()
}

/// Every plan has a place for each guest that is homeless then, and all of it can be carried out.
fn plans_hold(world: &World, reserve: &Reserve) -> Result<(), TestCaseError> {
    for case in reserve.cases.iter() {
        let mut brought: BTreeMap<usize, Vec<&Request>> = BTreeMap::new();
        for Move { guest, to, need } in case.plan.moves() {
            let guest = reserve.facts.guest(*guest).expect("a guest");
            prop_assert_eq!(*need, guest.need);
            let there = brought.entry(*to).or_default();
            prop_assert!(may_go(world, &guest.request, &world.snapshot.hosts[*to], there), "{:?}", case);
            prop_assert!(!case.dead.contains(to));
            there.push(&guest.request);
        }
        for host in 0..world.snapshot.hosts.len() {
            let needs = case.plan.to(host).map(|one| one.need);
            prop_assert_eq!(
                case.plan.taken(host),
                needs.fold(facts::Room::default(), facts::Room::plus),
                "{:?}",
                case
            );
        }
        let mut planned: Vec<usize> =
            case.plan.moves().iter().map(|one| one.guest).chain(case.left.clone()).collect();
        let mut homeless = case.homeless(&reserve.facts);
        planned.sort_unstable();
        homeless.sort_unstable();
        prop_assert_eq!(planned, homeless);
    }
    Ok(())
}
