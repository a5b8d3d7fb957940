//! Hosts that die at once, and where their protected guests go then.

use super::{
    facts::{Facts, Group, GuestFacts, Room},
    plan::{Move, Plan},
};

/// Some hosts that die at once, and a plan for the protected guests that are homeless then. Those of hosts that do not
/// report are homeless already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Case {
    /// The hosts, ascending.
    pub(super) dead: Vec<usize>,
    pub(super) plan: Plan,
    /// Guests that the plan has no place for.
    pub(super) left: Vec<usize>,
    /// Whether it is known that no other plan was found, since the pool last changed for the better.
    pub(super) searched: bool,
}

impl Case {
    /// Without a plan yet, in a pool of so many hosts.
    pub(super) fn new(dead: Vec<usize>, hosts: usize) -> Self {
        Self { dead, plan: Plan::none(hosts), left: Vec::new(), searched: false }
    }

    pub(super) fn is_covered(&self) -> bool {
        self.left.is_empty()
    }

    /// The homeless guests, in the order in which they are placed.
    pub(super) fn homeless(&self, facts: &Facts) -> Vec<usize> {
        let mut guests = facts.displaced.clone();
        guests.extend(self.dead.iter().flat_map(|host| &facts.on[*host]));
        in_order(facts, &mut guests);
        guests
    }

    /// Makes the first plan. What it leaves is [completed](super::complete) where that decides something.
    pub(super) fn begin(&mut self, facts: &Facts) {
        let guests = self.homeless(facts);
        self.place_all(facts, guests);
    }

    /// Makes the plan from scratch, by rules of thumb.
    pub(super) fn pack(&mut self, facts: &Facts) {
        let guests = self.homeless(facts);
        self.left = Vec::new();
        let mut packing = Packing::new(facts, &self.dead);
        if guests.iter().all(|guest| packing.place(*guest, Rule::NextFit)) {
            self.plan = packing.plan;
            return;
        }
        let mut packing = Packing::new(facts, &self.dead);
        self.left = guests.into_iter().filter(|guest| !packing.place(*guest, Rule::BestFit)).collect();
        self.plan = packing.plan;
    }

    /// Whether the plan brings a guest to a host that is required to meet nobody of its group, and would.
    pub(super) fn meets_present(&self, facts: &Facts, host: usize) -> bool {
        let guests = self.plan.to(host).filter_map(|one| facts.guest(one.guest));
        let mut groups = guests.filter_map(|guest| guest.group);
        groups.any(|group| group.required && facts.is_present(group.id, host))
    }

    /// Finds other places for what a host can no longer take of what the plan brings there, but leaves the rest as it is: what
    /// is left then is [completed](super::complete) where that decides something.
    pub(super) fn repair(&mut self, facts: &Facts, host: usize) {
        let mut lifted: Vec<usize> = self.plan.clear(host).into_iter().map(|one| one.guest).collect();
        in_order(facts, &mut lifted);
        self.bring(facts, host, &mut lifted);
        if !lifted.is_empty() {
            self.place_all(facts, lifted);
        }
    }

    /// Adds a guest that is homeless too.
    pub(super) fn add(&mut self, facts: &Facts, guest: usize) {
        self.place_all(facts, vec![guest]);
    }

    /// Takes a guest out that is not homeless any more; says where it was to go.
    pub(super) fn remove(&mut self, guest: usize) -> Option<usize> {
        self.left.retain(|other| *other != guest);
        self.plan.remove(guest)
    }

    /// Whether a guest that is left may have a place on a host, on which there is more room.
    pub(super) fn may_fill(&self, facts: &Facts, host: usize) -> bool {
        let left = || self.left.iter().filter_map(|guest| facts.guest(*guest));
        let free = facts.hosts[host].free;
        facts.hosts[host].open && left().any(|guest| free.holds(guest.need)) && {
            let free = free.less(self.plan.taken(host));
            left().any(|guest| free.holds(guest.need))
        }
    }

    /// Finds places on a host for those that are left.
    pub(super) fn fill(&mut self, facts: &Facts, host: usize) {
        let mut left = std::mem::take(&mut self.left);
        self.bring(facts, host, &mut left);
        self.left = left;
    }

    /// Brings those of these guests to a host that find room there, and takes them out.
    fn bring(&mut self, facts: &Facts, host: usize, guests: &mut Vec<usize>) {
        let plan = &mut self.plan;
        guests.retain(|number| {
            let Some(guest) = facts.guest(*number) else { return false };
            let fits = fits(facts, plan, facts.free[host].less(plan.taken(host)), guest, host);
            if fits {
                plan.add(Move { guest: *number, to: host, need: guest.need });
            }
            !fits
        });
    }

    /// Finds places for guests that have none.
    fn place_all(&mut self, facts: &Facts, guests: Vec<usize>) {
        // What could not be covered before cannot be covered now.
        self.searched &= !self.is_covered();
        let plan = std::mem::replace(&mut self.plan, Plan::none(0));
        let mut packing = Packing::resume(facts, &self.dead, plan);
        let failed = guests.into_iter().filter(|guest| !packing.place(*guest, Rule::NextFit));
        self.left.extend(failed);
        self.plan = packing.plan;
    }
}

fn in_order(facts: &Facts, guests: &mut [usize]) {
    // Those of each host are in order already, which this sort makes use of.
    guests.sort_by_key(|guest| facts.place_of(*guest));
}

/// Whether a guest can go to a host that has so much left beside the plan.
fn fits(facts: &Facts, plan: &Plan, free: Room, guest: &GuestFacts, host: usize) -> bool {
    free.holds(guest.need)
        && facts.classes[guest.class].contains(host)
        && guest.group.is_none_or(|group| is_apart(facts, plan, group, host))
}

/// No guest that is required to be alone in its group gets company of it, and none comes to company.
fn is_apart(facts: &Facts, plan: &Plan, group: Group, host: usize) -> bool {
    let of_group = |one: &Move| {
        let other = facts.guest(one.guest).and_then(|other| other.group);
        other.is_some_and(|other| other.id == group.id && (other.required || group.required))
    };
    let meets_present = group.required && facts.is_present(group.id, host);
    !meets_present && !plan.to(host).any(of_group)
}

/// Which of the hosts that fit is taken.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// The first after the one that was taken last: guests end up on many hosts, so that what changes on one breaks few
    /// plans.
    NextFit,
    /// The one that is left with the least.
    BestFit,
}

/// Hosts while guests are placed on them.
pub(super) struct Packing<'a> {
    facts: &'a Facts,
    /// By host; nothing where no guest may come.
    pub(super) free: Vec<Room>,
    pub(super) plan: Plan,
    next: usize,
}

impl<'a> Packing<'a> {
    pub(super) fn new(facts: &'a Facts, dead: &[usize]) -> Self {
        Self::resume(facts, dead, Plan::none(facts.hosts.len()))
    }

    /// Goes on with a plan.
    fn resume(facts: &'a Facts, dead: &[usize], plan: Plan) -> Self {
        let mut free: Vec<Room> =
            facts.free.iter().enumerate().map(|(host, free)| free.less(plan.taken(host))).collect();
        for host in dead {
            free[*host] = Room::default();
        }
        // Another beginning for each case, for the same reason as the rule.
        let next = dead.iter().fold(0, |sum, host| sum * 31 + host * 7) + plan.moves().len();
        Self { facts, free, plan, next: next % facts.hosts.len().max(1) }
    }

    /// Whether a guest can go to a host.
    pub(super) fn fits(&self, guest: &GuestFacts, host: usize) -> bool {
        fits(self.facts, &self.plan, self.free[host], guest, host)
    }

    fn place(&mut self, number: usize, rule: Rule) -> bool {
        let Some(guest) = self.facts.guest(number) else { return true };
        let hosts = (self.next..self.free.len()).chain(0..self.next);
        let mut fitting = hosts.filter(|host| self.fits(guest, *host));
        let found = match rule {
            Rule::NextFit => fitting.next(),
            Rule::BestFit => fitting.min_by_key(|host| self.facts.weight(self.free[*host].less(guest.need))),
        };
        let Some(host) = found else { return false };
        self.take(number, guest.need, host);
        self.next = if host + 1 == self.free.len() { 0 } else { host + 1 };
        true
    }

    pub(super) fn take(&mut self, number: usize, need: Room, host: usize) {
        self.free[host] = self.free[host].less(need);
        self.plan.add(Move { guest: number, to: host, need });
    }
}
