//! The pool while a batch is placed.

use super::{
    DiskNeed, HostView, Reason, Rejections, Request, Snapshot, Verdict, condition::Conditions, filters,
    host_set::HostSet, keeping::Keeping, memory_with_overhead, reserve::Reserve, resources::Resources, score,
};
use kubexen_crds::{pool::Strategy, virtual_machine::AntiAffinityMode};
use std::collections::BTreeMap;

/// The pool while a batch is placed: what hosts have, and what is used by present guests and those placed so far.
///
/// Hosts are known by their position among all hosts sorted by name, so that the lower position is the tie-break.
#[derive(Debug)]
pub(super) struct Batch<'a, 'r> {
    strategy: Strategy,
    conditions: Conditions<'a>,
    resources: Vec<Resources>,
    /// Bytes left by location and host; a location is here once a request has asked for it.
    room: BTreeMap<&'a str, Vec<u64>>,
    /// Number of members by anti-affinity group and host.
    groups: BTreeMap<&'a str, BTreeMap<usize, u32>>,
    every: HostSet,
    /// The hosts that the request at hand has not been refused by.
    left: HostSet,
    keeping: Option<Keeping<'r>>,
}

impl<'a, 'r> Batch<'a, 'r> {
    pub(super) fn new(snapshot: &'a Snapshot, reserve: Option<&'r mut Reserve>) -> Self {
        let mut hosts: Vec<&HostView> = snapshot.hosts.iter().collect();
        hosts.sort_by(|one, other| one.name.cmp(&other.name));
        let overcommit = u64::try_from(snapshot.policy.cpu_overcommit).unwrap_or(0).max(1);
        let mut groups: BTreeMap<&str, BTreeMap<usize, u32>> = BTreeMap::new();
        for (position, host) in hosts.iter().enumerate() {
            for (group, members) in host.groups.iter().filter(|(_, members)| **members > 0) {
                groups.entry(group).or_default().insert(position, *members);
            }
        }
        let every = HostSet::of(hosts.len(), |_| true);
        Self {
            strategy: snapshot.policy.strategy,
            resources: hosts.iter().map(|host| Resources::of(host, overcommit)).collect(),
            conditions: Conditions::new(hosts),
            room: BTreeMap::new(),
            groups,
            left: every.clone(),
            keeping: reserve.map(|reserve| Keeping::new(reserve, snapshot.hosts.len())),
            every,
        }
    }

    /// Whether so much was tried of the reserve that the batch is to end.
    pub(super) fn is_spent(&self) -> bool {
        self.keeping.as_ref().is_some_and(Keeping::is_spent)
    }

    /// Places one guest and takes what it needs.
    pub(super) fn place(&mut self, request: &'a Request) -> Verdict {
        let memory =
            memory_with_overhead(request.memory, request.vcpus, request.boot).saturating_add(request.growth);
        let mut rejections = self.filter(request, memory);
        match self.choose(request, memory, &mut rejections) {
            Some(host) => {
                self.take(host, request, memory);
                Verdict::Placed { host: self.conditions.hosts()[host].name.clone() }
            }
            None => Verdict::Unplaced(rejections),
        }
    }

    /// Filter 14: the best of the hosts that are left and that the reserve lets it have; counts the others.
    fn choose(&mut self, request: &Request, memory: u64, rejections: &mut Rejections) -> Option<usize> {
        let mut first = None;
        while let Some(host) = self.best(request, memory) {
            let Some(keeping) = &mut self.keeping else { return Some(host) };
            if keeping.take(host, self.conditions.hosts()[host], request) {
                return Some(host);
            }
            first.get_or_insert(host);
            self.left.retain(|other| other != host);
            rejections.add(1, || Reason::FailureReserve);
        }
        let host = first.filter(|_| request.protected && request.recovers)?;
        if let Some(keeping) = &mut self.keeping {
            keeping.take_anyway(host, request);
        }
        Some(host)
    }

    /// Leaves in [`Self::left`] the hosts that pass every filter; counts the others.
    fn filter(&mut self, request: &'a Request, memory: u64) -> Rejections {
        self.left.copy_from(&self.every);
        let mut rejections = Rejections::default();
        filters::apply(&mut self.conditions, &mut self.left, request, &mut rejections);
        if let Some((group, AntiAffinityMode::Required)) = &request.anti_affinity
            && let Some(members) = self.groups.get(group.as_str())
        {
            let taken = self.left.retain(|host| !members.contains_key(&host));
            rejections.add(taken, || Reason::AntiAffinity);
        }
        self.filter_room(request, &mut rejections);
        let (left, resources) = (&mut self.left, &self.resources);
        let few = left.retain(|host| resources[host].cpus() >= request.vcpus);
        rejections.add(few, || Reason::TooFewCpus);
        let busy = left.retain(|host| resources[host].vcpus_left() >= u64::from(request.vcpus));
        rejections.add(busy, || Reason::Vcpus);
        let full = left.retain(|host| resources[host].memory_left() >= memory);
        rejections.add(full, || Reason::Memory);
        rejections
    }

    /// Filter 10. Disks of one request may share a location: each is judged with the earlier ones in place.
    fn filter_room(&mut self, request: &'a Request, rejections: &mut Rejections) {
        let mut asked: BTreeMap<&str, u64> = BTreeMap::new();
        for disk in &request.disks {
            let DiskNeed::New { repository, location, size, .. } = disk else { continue };
            let asked = asked.entry(location).or_default();
            *asked = asked.saturating_add(*size);
            let room = room_in(&mut self.room, self.conditions.hosts(), location);
            let full = self.left.retain(|host| room[host] >= *asked);
            rejections.add(full, || Reason::RepositoryFull(repository.clone()));
        }
    }

    /// The best of the hosts that are left.
    fn best(&self, request: &Request, memory: u64) -> Option<usize> {
        let shared = match &request.anti_affinity {
            Some((group, AntiAffinityMode::Preferred)) => self.groups.get(group.as_str()),
            // Required: the hosts with members are out already.
            Some((_, AntiAffinityMode::Required)) | None => None,
        };
        self.left.iter().min_by_key(|host| {
            let resources = &self.resources[*host];
            let sharing = shared.and_then(|members| members.get(host)).copied().unwrap_or(0);
            let after = resources.load_with(memory, request.vcpus);
            let avoided = request.avoid.as_ref() == Some(&self.conditions.hosts()[*host].name);
            let unprotected = request.protected && !self.conditions.hosts()[*host].protects;
            (
                avoided,
                unprotected,
                sharing,
                score::cost(self.strategy, resources.load(), after),
                resources.placed(),
            )
        })
    }

    /// Takes from a host that passed the filters what the guest needs.
    fn take(&mut self, host: usize, request: &'a Request, memory: u64) {
        self.resources[host].take(memory, request.vcpus);
        if let Some((group, _)) = &request.anti_affinity {
            *self.groups.entry(group).or_default().entry(host).or_default() += 1;
        }
        for disk in &request.disks {
            if let DiskNeed::New { location, size, .. } = disk {
                let hosts = self.conditions.hosts();
                let left = room_in(&mut self.room, hosts, location);
                match storage(hosts[host], location) {
                    None => left[host] -= size,
                    shared @ Some(_) => {
                        let reaches =
                            |(position, _): &(usize, _)| storage(hosts[*position], location) == shared;
                        left.iter_mut()
                            .enumerate()
                            .filter(reaches)
                            .for_each(|(_, left)| *left = left.saturating_sub(*size));
                    }
                }
            }
        }
    }
}

/// The shared storage behind a location of a host.
fn storage<'a>(host: &'a HostView, location: &str) -> Option<&'a str> {
    host.locations.get(location)?.storage.as_deref()
}

/// Bytes left in a location by host; none where it is not.
fn room_in<'r, 'a>(
    rooms: &'r mut BTreeMap<&'a str, Vec<u64>>,
    hosts: &[&HostView],
    location: &'a str,
) -> &'r mut Vec<u64> {
    rooms.entry(location).or_insert_with(|| {
        let left = |host: &&HostView| {
            host.locations.get(location).map_or(0, |room| room.capacity.saturating_sub(room.used))
        };
        hosts.iter().map(left).collect()
    })
}
