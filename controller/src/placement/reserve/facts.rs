//! The pool in numbers: what hosts have left, and what protected guests need of another host.

use super::{
    super::{
        HostView, Rejections, Request, condition::Conditions, filters, host_set::HostSet,
        memory_with_overhead,
    },
    Protected,
};
use kubexen_crds::virtual_machine::AntiAffinityMode;
use kubexen_runtime::Key;
use std::collections::BTreeMap;

/// Memory in bytes, and vCPUs: what a host has left, or what a guest needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) memory: u64,
    pub(super) vcpus: u64,
}

impl Room {
    /// What a host has left.
    pub(super) fn left(host: &HostView, overcommit: u64) -> Self {
        let vcpus = u64::from(host.cpus).saturating_mul(overcommit);
        Self {
            memory: host.memory_allocatable.saturating_sub(host.memory_used),
            vcpus: vcpus.saturating_sub(u64::from(host.vcpus_used)),
        }
    }

    /// What a guest needs; one vCPU at least, so that it fits nowhere where nothing is.
    pub(super) fn needed(request: &Request) -> Self {
        let memory = memory_with_overhead(request.memory, request.vcpus, request.boot);
        Self { memory: memory.saturating_add(request.growth), vcpus: u64::from(request.vcpus.max(1)) }
    }

    pub(super) fn holds(self, need: Self) -> bool {
        self.memory >= need.memory && self.vcpus >= need.vcpus
    }

    pub(super) fn less(self, need: Self) -> Self {
        Self { memory: self.memory.saturating_sub(need.memory), vcpus: self.vcpus.saturating_sub(need.vcpus) }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            memory: self.memory.saturating_add(other.memory),
            vcpus: self.vcpus.saturating_add(other.vcpus),
        }
    }
}

/// A host.
#[derive(Clone, Debug)]
pub(super) struct HostFacts {
    pub(super) free: Room,
    /// Whether its agent reports: others may die.
    pub(super) alive: bool,
    /// Whether guests may come.
    pub(super) open: bool,
}

impl HostFacts {
    fn usable(&self) -> Room {
        if self.open { self.free } else { Room::default() }
    }
}

/// Membership in an anti-affinity group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) id: usize,
    pub(super) required: bool,
}

/// A protected guest.
#[derive(Clone, Debug)]
pub(super) struct GuestFacts {
    /// Elsewhere, for the numbers of all guests to lie close together.
    pub(super) request: Box<Request>,
    /// Where it runs; none if that host is not known.
    pub(super) at: Option<usize>,
    pub(super) need: Room,
    /// The hosts that are of the kind that it needs, by position in [`Facts::classes`].
    pub(super) class: usize,
    pub(super) group: Option<Group>,
    /// Guests are placed in this order: those that few hosts suit first, then the largest.
    pub(super) order: (u32, std::cmp::Reverse<u64>),
}

/// The pool in numbers. Hosts are known by their position among all sorted by name, guests by a number.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) overcommit: u64,
    pub(super) views: Vec<HostView>,
    pub(super) hosts: Vec<HostFacts>,
    /// What hosts have left for guests that may come; nothing where none may.
    pub(super) free: Vec<Room>,
    pub(super) classes: Vec<HostSet>,
    pub(super) guests: Vec<Option<GuestFacts>>,
    by_key: BTreeMap<Key, usize>,
    /// Guests by host, in the order in which they are placed.
    pub(super) on: Vec<Vec<usize>>,
    /// Guests whose host does not report, or is not known, in that order too.
    pub(super) displaced: Vec<usize>,
    group_ids: BTreeMap<String, usize>,
    /// Number of present members by group and host.
    pub(super) present: Vec<BTreeMap<usize, u32>>,
    /// MiB of memory that one vCPU counts as much as.
    mib_per_vcpu: u64,
}

impl Facts {
    pub(super) fn new(mut views: Vec<HostView>, overcommit: u64, guests: Vec<Protected>) -> Self {
        views.sort_by(|one, other| one.name.cmp(&other.name));
        let mib = views.iter().fold(0_u64, |sum, view| sum.saturating_add(view.memory_allocatable >> 20));
        let vcpus: u64 = views.iter().map(|view| u64::from(view.cpus) * overcommit).sum();
        let hosts: Vec<HostFacts> = views.iter().map(|view| host_facts(view, overcommit)).collect();
        let mut facts = Self {
            overcommit,
            free: hosts.iter().map(|host| host.usable()).collect(),
            hosts,
            on: vec![Vec::new(); views.len()],
            views,
            classes: Vec::new(),
            guests: Vec::new(),
            by_key: BTreeMap::new(),
            displaced: Vec::new(),
            group_ids: BTreeMap::new(),
            present: Vec::new(),
            mib_per_vcpu: mib / vcpus.max(1),
        };
        for host in 0..facts.views.len() {
            facts.read_groups(host);
        }
        let suited = suited(&facts.views, guests.iter().map(|guest| &guest.request));
        for (guest, suited) in guests.into_iter().zip(suited) {
            facts.insert(guest, suited);
        }
        facts
    }

    /// The number of a guest.
    pub(super) fn number(&self, key: &Key) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    /// The protected guests, in the order of their keys.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Key, &GuestFacts)> {
        self.by_key.iter().filter_map(|(key, number)| Some((key, self.guests[*number].as_ref()?)))
    }

    /// Number of protected guests.
    pub(super) fn count(&self) -> usize {
        self.by_key.len()
    }

    /// A guest that is there.
    pub(super) fn guest(&self, number: usize) -> Option<&GuestFacts> {
        self.guests.get(number).and_then(Option::as_ref)
    }

    /// How much room is, in MiB.
    pub(super) fn weight(&self, room: Room) -> u64 {
        (room.memory >> 20).saturating_add(room.vcpus.saturating_mul(self.mib_per_vcpu))
    }

    /// Adds a guest that is not there; returns its number.
    pub(super) fn add(&mut self, guest: Protected) -> usize {
        let suited = suited(&self.views, std::iter::once(&guest.request)).remove(0);
        self.insert(guest, suited)
    }

    fn insert(&mut self, guest: Protected, suited: HostSet) -> usize {
        let Protected { request, host } = guest;
        let at = self.views.binary_search_by(|view| view.name.as_str().cmp(&host)).ok();
        let need = Room::needed(&request);
        let group = request.anti_affinity.as_ref().map(|(name, mode)| Group {
            id: self.group(name),
            required: *mode == AntiAffinityMode::Required,
        });
        let order = (suited.len(), std::cmp::Reverse(self.weight(need)));
        let class = self.classes.iter().position(|class| *class == suited).unwrap_or_else(|| {
            self.classes.push(suited);
            self.classes.len() - 1
        });
        let number = self.guests.iter().position(Option::is_none).unwrap_or_else(|| {
            self.guests.push(None);
            self.guests.len() - 1
        });
        self.by_key.insert(request.key.clone(), number);
        self.guests[number] = Some(GuestFacts { request: Box::new(request), at, need, class, group, order });
        self.seat(number, at);
        number
    }

    /// Notes where a guest is.
    fn seat(&mut self, number: usize, at: Option<usize>) {
        let alive = at.filter(|host| self.hosts[*host].alive);
        let there = alive.map_or(&self.displaced, |host| &self.on[host]);
        let place = self.place_of(number);
        let position = there.partition_point(|other| self.place_of(*other) < place);
        let there = alive.map_or(&mut self.displaced, |host| &mut self.on[host]);
        there.insert(position, number);
    }

    /// When a guest is placed: the lower the earlier.
    pub(super) fn place_of(&self, number: usize) -> Option<((u32, std::cmp::Reverse<u64>), usize)> {
        self.guest(number).map(|guest| (guest.order, number))
    }

    /// Takes a guest out.
    pub(super) fn remove(&mut self, number: usize) -> Option<GuestFacts> {
        let guest = self.guests.get_mut(number)?.take()?;
        self.by_key.remove(&guest.request.key);
        self.displaced.retain(|other| *other != number);
        if let Some(host) = guest.at {
            self.on[host].retain(|other| *other != number);
        }
        Some(guest)
    }

    /// Takes over what is used of a host, and whether guests may come; what it is stays.
    pub(super) fn set_view(&mut self, host: usize, view: HostView) {
        self.hosts[host] = host_facts(&view, self.overcommit);
        self.free[host] = self.hosts[host].usable();
        self.views[host] = view;
        for members in &mut self.present {
            members.remove(&host);
        }
        self.read_groups(host);
    }

    /// Counts a guest as present on a host.
    pub(super) fn occupy(&mut self, host: usize, request: &Request) {
        occupy(&mut self.views[host], request);
        self.hosts[host] = host_facts(&self.views[host], self.overcommit);
        self.free[host] = self.hosts[host].usable();
        self.read_groups(host);
    }

    /// Whether a guest has no host when these die.
    pub(super) fn is_homeless(&self, number: usize, dead: &[usize]) -> bool {
        self.guest(number).is_some_and(|guest| match guest.at {
            Some(host) => dead.contains(&host) || !self.hosts[host].alive,
            None => true,
        })
    }

    /// Puts a guest back that was taken out, under the number that it had.
    pub(super) fn put_back(&mut self, number: usize, guest: GuestFacts) {
        self.by_key.insert(guest.request.key.clone(), number);
        let at = guest.at;
        self.guests[number] = Some(guest);
        self.seat(number, at);
    }

    fn read_groups(&mut self, host: usize) {
        let groups = self.views[host].groups.clone();
        for (name, members) in groups.into_iter().filter(|(_, members)| *members > 0) {
            let id = self.group(&name);
            self.present[id].insert(host, members);
        }
    }

    fn group(&mut self, name: &str) -> usize {
        if let Some(id) = self.group_ids.get(name) {
            return *id;
        }
        self.present.push(BTreeMap::new());
        let id = self.present.len() - 1;
        self.group_ids.insert(name.to_owned(), id);
        id
    }

    /// Whether members of the group are present on a host.
    pub(super) fn is_present(&self, group: usize, host: usize) -> bool {
        self.present[group].contains_key(&host)
    }

    /// Number of members of the group in the pool: those that hosts have, and protected ones that none has.
    pub(super) fn members(&self, group: usize) -> usize {
        let present: usize = self.present[group].values().map(|members| *members as usize).sum();
        let displaced = self.displaced.iter().filter_map(|number| self.guest(*number));
        let nowhere =
            displaced.filter(|guest| guest.at.is_none() && guest.group.is_some_and(|of| of.id == group));
        present.saturating_add(nowhere.count())
    }
}

/// Counts a guest as present.
pub(super) fn occupy(view: &mut HostView, request: &Request) {
    view.memory_used = view.memory_used.saturating_add(Room::needed(request).memory);
    view.vcpus_used = view.vcpus_used.saturating_add(request.vcpus);
    if let Some((group, _)) = &request.anti_affinity {
        *view.groups.entry(group.clone()).or_default() += 1;
    }
}

pub(super) fn host_facts(view: &HostView, overcommit: u64) -> HostFacts {
    HostFacts {
        free: Room::left(view, overcommit),
        alive: view.ready,
        open: view.ready && view.schedulable && !view.maintenance,
    }
}

/// For each request the hosts that are of the kind that it needs, and have as many CPUs as it has vCPUs.
fn suited<'a>(views: &'a [HostView], requests: impl Iterator<Item = &'a Request>) -> Vec<HostSet> {
    let mut conditions = Conditions::new(views.iter().collect());
    let every = HostSet::of(views.len(), |_| true);
    requests
        .map(|request| {
            let mut left = every.clone();
            filters::apply_lasting(&mut conditions, &mut left, request, &mut Rejections::default());
            left.retain(|host| views[host].cpus >= request.vcpus);
            left
        })
        .collect()
}
