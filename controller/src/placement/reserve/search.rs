//! Whether there is a plan at all: a search through all of them.

use super::{
    SEARCHED,
    facts::{Facts, GuestFacts, Room},
    packing::{Case, Packing},
};

/// Searches for a plan that leaves nobody, by trying every host for every guest, if there are few.
///
/// `budget` is how many places may be tried; what was tried is taken off. With h hosts and g guests there are at most
/// h + h² + … + h^g tries, less than twice h^g for two hosts or more: so all plans are tried if h^g is at most half the budget.
///
/// # Guarantees
/// A plan that is found holds. If none is found, the case stays as it was.
pub(super) fn search(case: &mut Case, facts: &Facts, budget: &mut u64) {
    let guests = case.homeless(facts);
    let of = |number: &usize| facts.guest(*number).map(|guest| (*number, guest));
    let guests: Vec<(usize, &GuestFacts)> = guests.iter().filter_map(of).collect();
    if guests.len() > SEARCHED {
        return;
    }
    let mut search = Search { packing: Packing::new(facts, &case.dead), facts, guests: &guests, budget };
    if search.is_hopeless(0) || search.has_misfit() {
        return;
    }
    if search.from(0) {
        case.plan = search.packing.plan;
        case.left = Vec::new();
    }
}

struct Search<'a, 'b> {
    packing: Packing<'a>,
    facts: &'a Facts,
    guests: &'b [(usize, &'a GuestFacts)],
    budget: &'b mut u64,
}

impl Search<'_, '_> {
    /// Whether there is a guest that no host could take even if it were the only one.
    fn has_misfit(&self) -> bool {
        let hosts = self.packing.free.len();
        self.guests.iter().any(|(_, guest)| !(0..hosts).any(|host| self.packing.fits(guest, host)))
    }

    /// Whether the guests from this one on need more than all hosts have left that could take the smallest of them.
    fn is_hopeless(&self, position: usize) -> bool {
        let left = &self.guests[position..];
        let need = left.iter().fold(Room::default(), |sum, (_, guest)| sum.plus(guest.need));
        let least = |of: fn(&Room) -> u64| left.iter().map(|(_, guest)| of(&guest.need)).min().unwrap_or(0);
        let least = Room { memory: least(|need| need.memory), vcpus: least(|need| need.vcpus) };
        let useful = self.packing.free.iter().filter(|free| free.holds(least));
        let room = useful.fold(Room::default(), |sum, free| sum.plus(*free));
        !room.holds(need)
    }

    /// Places the guests from this one on; undoes what it did if it cannot.
    fn from(&mut self, position: usize) -> bool {
        let Some((number, guest)) = self.guests.get(position).copied() else { return true };
        if self.is_hopeless(position) {
            return false;
        }
        let mut tried: Vec<usize> = Vec::new();
        for host in 0..self.packing.free.len() {
            if !self.packing.fits(guest, host) || tried.iter().any(|other| self.are_alike(*other, host)) {
                continue;
            }
            if *self.budget == 0 {
                return false;
            }
            *self.budget -= 1;
            tried.push(host);
            let before = self.packing.free[host];
            self.packing.take(number, guest.need, host);
            if self.from(position + 1) {
                return true;
            }
            self.packing.plan.remove(number);
            self.packing.free[host] = before;
        }
        false
    }

    /// Whether it makes no difference which of two hosts is taken: they have the same left, suit the same guests, and nobody
    /// cares for company.
    fn are_alike(&self, one: usize, other: usize) -> bool {
        self.packing.free[one] == self.packing.free[other]
            && self.guests.iter().all(|(_, guest)| {
                let class = &self.facts.classes[guest.class];
                guest.group.is_none() && class.contains(one) == class.contains(other)
            })
    }
}
