//! Properties: verdicts of random batches on random pools, checked against accounts kept by hand.

use super::{
    tests::{guest, host, level, network, new_disk, selector},
    *,
};
use kubexen_crds::pool;
use proptest::{collection::vec, option, prelude::*, sample::select};

const GIB: u64 = 1 << 30;

/// A host that is usable more often than not, out of few names so that guests and hosts meet and miss.
fn any_host() -> impl Strategy<Value = HostView> {
    (
        (prop::bool::weighted(0.9), prop::bool::weighted(0.9), select(vec!["a", "b"])),
        (0..=8_u64, 0..=4_u64, 0..=4_u32, 0..=6_u32),
        option::weighted(0.9, (0..=40_u64, 0..=10_u64, option::of(select(vec!["san-1", "san-2"])))),
        (prop::bool::weighted(0.9), prop::bool::weighted(0.9), prop::bool::weighted(0.8)),
        option::of((select(vec!["shop/web", "shop/db"]), 0..=2_u32)),
    )
        .prop_map(|((ready, schedulable, zone), (memory, used, cpus, vcpus), room, offers, group)| {
            let mut view = host("");
            view.labels.insert("zone".to_owned(), zone.to_owned());
            (view.ready, view.schedulable) = (ready, schedulable);
            (view.memory_allocatable, view.memory_used) = (memory * GIB, used * GIB);
            (view.cpus, view.vcpus_used) = (cpus, vcpus);
            view.locations = room
                .map(|(capacity, used, storage)| Room {
                    capacity: capacity * GIB,
                    used: used * GIB,
                    storage: storage.map(str::to_owned),
                })
                .map(|room| ("ssd".to_owned(), room))
                .into_iter()
                .collect();
            let (lan, kernel, pv) = offers;
            view.uplinks.retain(|_| lan);
            view.kernels.retain(|_| kernel);
            view.boot_loaders.retain(|_| kernel);
            view.firmware.retain(|firmware| kernel || *firmware == Firmware::Bios);
            view.capabilities.retain(|name| name != "pv" || pv);
            view.groups = group.map(|(name, members)| (name.to_owned(), members)).into_iter().collect();
            view
        })
}

/// Hosts with distinct names.
fn any_hosts() -> impl Strategy<Value = Vec<HostView>> {
    vec(any_host(), 0..8).prop_map(|mut hosts| {
        for (index, host) in hosts.iter_mut().enumerate() {
            host.name = format!("xen-{index}");
        }
        hosts
    })
}

fn any_policy() -> impl Strategy<Value = PlacementPolicy> {
    (select(vec![pool::Strategy::Spread, pool::Strategy::Pack]), 1..=4_i32)
        .prop_map(|(strategy, cpu_overcommit)| PlacementPolicy { strategy, cpu_overcommit })
}

fn any_disk() -> impl Strategy<Value = DiskNeed> {
    prop_oneof![
        1 => (0..8_u8).prop_map(|host| DiskNeed::On { disk: "root".to_owned(), host: format!("xen-{host}") }),
        1 => select(vec!["san-1", "san-2"]).prop_map(|storage| DiskNeed::Shared {
            repository: "san".to_owned(),
            location: "ssd".to_owned(),
            storage: storage.to_owned(),
            selector: HostSelector::default(),
        }),
        4 => (select(vec!["fast", "slow"]), prop::bool::ANY, 0..=12_u64).prop_map(|(repository, shared, size)| {
            new_disk(repository, "ssd", shared, size * GIB)
        }),
    ]
}

fn any_guest() -> impl Strategy<Value = Request> {
    let mode = select(vec![AntiAffinityMode::Required, AntiAffinityMode::Preferred]);
    (
        (0..=2_u64, 1..=3_u32, select(vec![BootType::Pvh, BootType::Hvm, BootType::Pv])),
        (
            prop::bool::ANY,
            option::of(select(vec!["a", "b"])),
            prop::bool::ANY,
            option::of(select(vec!["avx", "fma"])),
        ),
        option::of((select(vec!["shop/web", "shop/db"]).prop_map(str::to_owned), mode)),
        vec(any_disk(), 0..3),
    )
        .prop_map(|((memory, vcpus, boot), (kernel, zone, lan, feature), anti_affinity, disks)| {
            Request {
                memory: memory * GIB,
                vcpus,
                boot,
                cpu_level: feature.map(|name| level(&[name])),
                kernel: kernel.then(|| "debian-12".to_owned()),
                boot_loader: !kernel && boot != BootType::Hvm,
                firmware: (boot == BootType::Hvm).then_some(if kernel {
                    Firmware::Bios
                } else {
                    Firmware::Uefi
                }),
                selector: zone.map(|zone| selector(&[("zone", zone)])).unwrap_or_default(),
                anti_affinity,
                networks: lan.then(|| network("prod", "lan", &[])).into_iter().collect(),
                disks,
                ..guest("web")
            }
        })
}

fn any_batch() -> impl Strategy<Value = (Snapshot, Vec<Request>)> {
    (any_hosts(), any_policy(), vec(any_guest(), 0..24))
        .prop_map(|(hosts, policy, requests)| (Snapshot { hosts, policy }, requests))
}

/// The first reason that keeps the guest from a host, as plainly as it can be said.
fn refusal(host: &HostView, guest: &Request, overcommit: u64) -> Option<Reason> {
    let has = |name: &str| host.capabilities.contains(name);
    let offered = match guest.boot {
        BootType::Pvh | BootType::Hvm => has("hvm") && has("hap"),
        BootType::Pv => has("pv"),
    };
    if !host.ready {
        return Some(Reason::NotReady);
    } else if !host.schedulable {
        return Some(Reason::NotSchedulable);
    } else if !guest.selector.matches(&host.labels) {
        return Some(Reason::SelectorMismatch);
    } else if !offered {
        return Some(Reason::ModeNotOffered(guest.boot));
    } else if let Some(lacks) = guest
        .cpu_level
        .as_ref()
        .map(|level| level.without(&host.cpu_features.of(guest.boot).cloned().unwrap_or_default()))
        && let Some(feature) = lacks.names().first()
    {
        return Some(Reason::CpuFeatureMissing(feature.clone()));
    } else if let Some(kernel) = guest.kernel.as_ref().filter(|kernel| !host.kernels.contains(*kernel)) {
        return Some(Reason::KernelMissing(kernel.clone()));
    } else if guest.boot_loader && !host.boot_loaders.contains(&guest.boot) {
        return Some(Reason::BootLoaderMissing(guest.boot));
    } else if let Some(firmware) = guest.firmware.filter(|firmware| !host.firmware.contains(firmware)) {
        return Some(Reason::FirmwareMissing(firmware));
    }
    for disk in &guest.disks {
        match disk {
            DiskNeed::On { disk, host: place } if *place != host.name => {
                return Some(Reason::DiskElsewhere(disk.clone()));
            }
            DiskNeed::Shared { repository, location, storage, .. }
                if host.locations.get(location).and_then(|room| room.storage.as_ref()) != Some(storage) =>
            {
                return Some(Reason::RepositoryNotAttached(repository.clone()));
            }
            DiskNeed::New { repository, location, shared, .. }
                if host.locations.get(location).map(|room| room.storage.is_some()) != Some(*shared) =>
            {
                return Some(Reason::RepositoryNotAttached(repository.clone()));
            }
            DiskNeed::On { .. } | DiskNeed::Shared { .. } | DiskNeed::New { .. } => {}
        }
    }
    if let Some(need) = guest.networks.iter().find(|need| !host.uplinks.contains(&need.uplink)) {
        return Some(Reason::NetworkNotAttached(need.network.clone()));
    }
    if let Some((group, AntiAffinityMode::Required)) = &guest.anti_affinity
        && host.groups.get(group).is_some_and(|members| *members > 0)
    {
        return Some(Reason::AntiAffinity);
    }
    let mut locations = host.locations.clone();
    for disk in &guest.disks {
        if let DiskNeed::New { repository, location, size, .. } = disk {
            let room = locations.get_mut(location)?;
            room.used += size;
            // A location that is overfull already takes a disk of no size.
            if *size > 0 && room.used > room.capacity {
                return Some(Reason::RepositoryFull(repository.clone()));
            }
        }
    }
    let memory = memory_with_overhead(guest.memory, guest.vcpus, guest.boot);
    if guest.vcpus > host.cpus {
        Some(Reason::TooFewCpus)
    } else if u64::from(host.vcpus_used + guest.vcpus) > u64::from(host.cpus) * overcommit {
        Some(Reason::Vcpus)
    } else if host.memory_used + memory > host.memory_allocatable {
        Some(Reason::Memory)
    } else {
        None
    }
}

/// Writes a guest into the accounts of its host, and what it has of shared storage into those of all that reach it.
fn take(hosts: &mut [HostView], position: usize, guest: &Request) {
    for disk in &guest.disks {
        if let DiskNeed::New { location, size, .. } = disk {
            let storage = hosts[position].locations[location].storage.clone();
            for (other, host) in hosts.iter_mut().enumerate() {
                if let Some(room) = host.locations.get_mut(location)
                    && (other == position || (storage.is_some() && room.storage == storage))
                {
                    room.used += size;
                }
            }
        }
    }
    let host = &mut hosts[position];
    host.memory_used += memory_with_overhead(guest.memory, guest.vcpus, guest.boot);
    host.vcpus_used += guest.vcpus;
    if let Some((group, _)) = &guest.anti_affinity {
        *host.groups.entry(group.clone()).or_default() += 1;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Also says that no capacity is exceeded and no required anti-affinity violated: a placed guest passed every
    /// filter against accounts that hold all guests before it.
    #[test]
    fn a_placed_guest_fits_and_an_unplaced_one_fits_nowhere((snapshot, requests) in any_batch()) {
        let overcommit = u64::try_from(snapshot.policy.cpu_overcommit).unwrap();
        let verdicts = place(&snapshot, &requests);
        prop_assert_eq!(verdicts.len(), requests.len());
        let mut hosts = snapshot.hosts.clone();
        for (request, verdict) in requests.iter().zip(&verdicts) {
            match verdict {
                Verdict::Placed { host } => {
                    let position = hosts.iter().position(|view| view.name == *host).expect("a host of the pool");
                    prop_assert_eq!(refusal(&hosts[position], request, overcommit), None);
                    take(&mut hosts, position, request);
                }
                Verdict::Unplaced(rejections) => {
                    let mut counts: BTreeMap<Reason, u32> = BTreeMap::new();
                    for host in &hosts {
                        let reason = refusal(host, request, overcommit);
                        prop_assert!(reason.is_some(), "{} fits", host.name);
                        *counts.entry(reason.unwrap()).or_default() += 1;
                    }
                    prop_assert_eq!(rejections.counts(), &counts);
                }
            }
        }
    }

    #[test]
    fn the_order_of_hosts_does_not_matter(
        (snapshot, requests, shuffled) in any_batch().prop_flat_map(|(snapshot, requests)| {
            let hosts = Just(snapshot.hosts.clone()).prop_shuffle();
            (Just(snapshot), Just(requests), hosts)
        })
    ) {
        let verdicts = place(&snapshot, &requests);
        let again = place(&Snapshot { hosts: shuffled, policy: snapshot.policy }, &requests);
        prop_assert_eq!(verdicts, again);
    }

    #[test]
    fn equal_input_gives_equal_verdicts((snapshot, requests) in any_batch()) {
        prop_assert_eq!(place(&snapshot, &requests), place(&snapshot.clone(), &requests.clone()));
    }

    #[test]
    fn spread_balances_equal_guests_on_equal_hosts(
        (hosts, guests) in (1..8_usize, 0..40_usize),
        (memory, vcpus) in (1..4_u64, 1..4_u32),
    ) {
        let hosts = (0..hosts).map(|index| host(&format!("xen-{index}"))).collect();
        let snapshot = Snapshot { hosts, policy: PlacementPolicy::default() };
        let guest = Request { memory: memory * GIB, vcpus, disks: vec![], ..guest("web") };
        let mut counts: BTreeMap<&str, u32> =
            snapshot.hosts.iter().map(|host| (host.name.as_str(), 0)).collect();
        let verdicts = place(&snapshot, &vec![guest; guests]);
        for verdict in &verdicts {
            if let Verdict::Placed { host } = verdict {
                *counts.get_mut(host.as_str()).expect("a host of the pool") += 1;
            }
        }
        let (least, most) = (counts.values().min(), counts.values().max());
        prop_assert!(most.unwrap() - least.unwrap() <= 1, "{counts:?}");
    }
}
