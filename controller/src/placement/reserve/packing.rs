//! Hosts that die at once, and where their protected guests go then.

use super::facts::{Facts, GuestFacts, Room};

/// Some hosts that die at once, and a plan for the protected guests that are homeless then. Those of hosts that do not
/// report are homeless already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Case {
    /// The hosts, ascending.
    pub(super) dead: Vec<usize>,
    /// Guests, and where each goes.
    pub(super) moves: Vec<(usize, usize)>,
    /// Guests that the plan has no place for.
    pub(super) left: Vec<usize>,
    /// Whether it is known that no other plan was found, since the pool last changed for the better.
    pub(super) searched: bool,
}

impl Case {
    pub(super) fn new(dead: Vec<usize>) -> Self {
        Self { dead, moves: Vec::new(), left: Vec::new(), searched: false }
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

    /// Makes the plan from scratch, by rules of thumb.
    pub(super) fn pack(&mut self, facts: &Facts) {
        let guests = self.homeless(facts);
        (self.moves, self.left) = (Vec::new(), Vec::new());
        let mut packing = Packing::new(facts, &self.dead);
        if guests.iter().all(|guest| packing.place(*guest, Rule::NextFit)) {
            self.moves = packing.moves;
            return;
        }
        let mut packing = Packing::new(facts, &self.dead);
        self.left = guests.into_iter().filter(|guest| !packing.place(*guest, Rule::BestFit)).collect();
        self.moves = packing.moves;
    }

    /// What the plan takes of a host.
    fn taken(&self, facts: &Facts, host: usize) -> Room {
        let there = self.moves.iter().filter(|(_, to)| *to == host);
        there
            .filter_map(|(guest, _)| facts.guest(*guest))
            .fold(Room::default(), |sum, guest| sum.plus(guest.need))
    }

    /// Whether what the plan does to a host can be done as the host is now.
    pub(super) fn holds_at(&self, facts: &Facts, host: usize) -> bool {
        let (mut sum, mut any) = (Room::default(), false);
        for (guest, _) in self.moves.iter().filter(|(_, to)| *to == host) {
            let Some(guest) = facts.guest(*guest) else { continue };
            if guest.group.is_some_and(|group| group.required && facts.is_present(group.id, host)) {
                return false;
            }
            (sum, any) = (sum.plus(guest.need), true);
        }
        !any || (facts.hosts[host].open && facts.hosts[host].free.holds(sum))
    }

    /// Finds other places for what the plan brings to a host, which can no longer take it, but leaves the rest as it is: what
    /// is left then is [completed](super::complete) where that decides something.
    pub(super) fn repair(&mut self, facts: &Facts, host: usize) {
        let mut lifted: Vec<usize> =
            self.moves.iter().filter(|(_, to)| *to == host).map(|(guest, _)| *guest).collect();
        self.moves.retain(|(_, to)| *to != host);
        in_order(facts, &mut lifted);
        self.place_all(facts, lifted);
    }

    /// Adds a guest that is homeless too.
    pub(super) fn add(&mut self, facts: &Facts, guest: usize) {
        self.place_all(facts, vec![guest]);
    }

    /// Takes a guest out that is not homeless any more; says where it was to go.
    pub(super) fn remove(&mut self, guest: usize) -> Option<usize> {
        self.left.retain(|other| *other != guest);
        let position = self.moves.iter().position(|(other, _)| *other == guest)?;
        Some(self.moves.swap_remove(position).1)
    }

    /// Whether a guest that is left may have a place on a host, on which there is more room.
    pub(super) fn may_fill(&self, facts: &Facts, host: usize) -> bool {
        let left = || self.left.iter().filter_map(|guest| facts.guest(*guest));
        let free = facts.hosts[host].free;
        facts.hosts[host].open && left().any(|guest| free.holds(guest.need)) && {
            let free = free.less(self.taken(facts, host));
            left().any(|guest| free.holds(guest.need))
        }
    }

    /// Finds places on a host for those that are left.
    pub(super) fn fill(&mut self, facts: &Facts, host: usize) {
        let mut packing = Packing::resume(facts, &self.dead, std::mem::take(&mut self.moves));
        self.left.retain(|guest| !packing.place_on(*guest, host));
        self.moves = packing.moves;
    }

    /// Finds places for guests that have none.
    fn place_all(&mut self, facts: &Facts, guests: Vec<usize>) {
        // What could not be covered before cannot be covered now.
        self.searched &= !self.is_covered();
        let mut packing = Packing::resume(facts, &self.dead, std::mem::take(&mut self.moves));
        let failed = guests.into_iter().filter(|guest| !packing.place(*guest, Rule::NextFit));
        self.left.extend(failed);
        self.moves = packing.moves;
    }
}

fn in_order(facts: &Facts, guests: &mut [usize]) {
    guests.sort_unstable_by_key(|guest| (facts.guest(*guest).map(|guest| guest.order), *guest));
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
    pub(super) moves: Vec<(usize, usize)>,
    next: usize,
}

impl<'a> Packing<'a> {
    pub(super) fn new(facts: &'a Facts, dead: &[usize]) -> Self {
        let mut free = facts.free.clone();
        for host in dead {
            free[*host] = Room::default();
        }
        // Another beginning for each case, for the same reason as the rule.
        let next = dead.iter().fold(0, |sum, host| sum * 31 + host * 7) % facts.hosts.len().max(1);
        Self { facts, free, moves: Vec::new(), next }
    }

    fn resume(facts: &'a Facts, dead: &[usize], moves: Vec<(usize, usize)>) -> Self {
        let mut packing = Self::new(facts, dead);
        for (guest, host) in &moves {
            if let Some(guest) = facts.guest(*guest) {
                packing.free[*host] = packing.free[*host].less(guest.need);
            }
        }
        packing.next = (packing.next + moves.len()) % facts.hosts.len().max(1);
        packing.moves = moves;
        packing
    }

    /// Whether a guest can go to a host.
    pub(super) fn fits(&self, guest: &GuestFacts, host: usize) -> bool {
        self.free[host].holds(guest.need)
            && self.facts.classes[guest.class].contains(host)
            && (guest.group.is_none() || self.is_apart(guest, host))
    }

    /// No guest that is required to be alone in its group gets company of it, and none comes to company.
    fn is_apart(&self, guest: &GuestFacts, host: usize) -> bool {
        let Some(group) = guest.group else { return true };
        let of_group = |(other, to): &(usize, usize)| {
            let other = self.facts.guest(*other).and_then(|other| other.group);
            *to == host
                && other.is_some_and(|other| other.id == group.id && (other.required || group.required))
        };
        let meets_present = group.required && self.facts.is_present(group.id, host);
        !meets_present && !self.moves.iter().any(of_group)
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

    fn place_on(&mut self, number: usize, host: usize) -> bool {
        let Some(guest) = self.facts.guest(number) else { return true };
        let fits = self.fits(guest, host);
        if fits {
            self.take(number, guest.need, host);
        }
        fits
    }

    pub(super) fn take(&mut self, number: usize, need: Room, host: usize) {
        self.free[host] = self.free[host].less(need);
        self.moves.push((number, host));
    }
}
