//! Whether any so many hosts may die, without a look at every set of them.
//!
//! # The argument
//! Guests are placed one after the other wherever they fit. Say this fails for a guest that needs at most *s* memory and
//! *v* vCPUs and suits the hosts of a class *E*. Then each surviving host of *E* that may take guests has less than *s*
//! memory left, or less than *v* vCPUs, or company in the guest's anti-affinity group. A host without such company that
//! had *m* memory and *c* vCPUs has therefore taken more than *m − s* memory or more than *c − v* vCPUs. Weigh memory and
//! vCPUs by any two factors: what it has taken weighs at least as much as the lighter of the two, its *capacity*. At
//! most as many hosts as the group has other members have company.
//!
//! So the guest has a place if the homeless guests that suit any host of *E* weigh no more than the capacities of the
//! surviving hosts of *E* together, without the largest ones that company may take away: the guest itself has a
//! weight, and the others cannot have taken that much. This holds whatever the order and whichever hosts are taken.
//!
//! When a host dies, its guests are homeless and its capacity is gone. The k hosts with the largest sum of the two are
//! thus the worst for the class, and if the condition holds for them, it holds for every k hosts: one sort for each
//! class instead of a look at every set.
//!
//! It is conservative: a host counts by up to the size of the largest guest less than it has, vCPUs and memory that run out
//! on different hosts are counted as if they ran out together, and a guest of another class weighs on all of them.

use super::facts::{Facts, Room};

/// Why it could not be shown that so many hosts may die.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Doubt {
    /// The hosts, ascending: the worst for the guest.
    pub(super) dead: Vec<usize>,
    /// The largest guest of those that may find no place.
    pub(super) guest: usize,
}

/// What is asked of a class of hosts.
struct Demand {
    class: usize,
    /// The largest need in each of memory and vCPUs.
    largest: Room,
    /// Hosts that company may take away.
    company: usize,
    guest: usize,
}

/// Whether any `failures` hosts may die at once. No doubt is a proof; a doubt is none of the contrary.
pub(super) fn doubt(facts: &Facts, failures: usize) -> Option<Doubt> {
    demands(facts).into_iter().find_map(|demand| doubt_of(facts, failures, &demand))
}

fn demands(facts: &Facts) -> Vec<Demand> {
    let mut demands: Vec<Option<Demand>> = facts.classes.iter().map(|_| None).collect();
    for (number, guest) in facts.guests.iter().enumerate() {
        let Some(guest) = guest else { continue };
        let company = guest.group.map_or(0, |group| facts.members(group.id).saturating_sub(1));
        let demand = demands[guest.class].get_or_insert(Demand {
            class: guest.class,
            largest: guest.need,
            company,
            guest: number,
        });
        if facts.guest(demand.guest).is_some_and(|largest| largest.order.1 > guest.order.1) {
            demand.guest = number;
        }
        demand.company = demand.company.max(company);
        demand.largest.memory = demand.largest.memory.max(guest.need.memory);
        demand.largest.vcpus = demand.largest.vcpus.max(guest.need.vcpus);
    }
    demands.into_iter().flatten().collect()
}

fn doubt_of(facts: &Facts, failures: usize, demand: &Demand) -> Option<Doubt> {
    let class = &facts.classes[demand.class];
    let suits = |host: usize| facts.hosts[host].open && class.contains(host);
    let hosts = 0..facts.hosts.len();
    let all = hosts.clone().filter(|host| suits(*host));
    let all = all.fold(Room::default(), |sum, host| sum.plus(facts.hosts[host].free));
    let weigh = |room: Room| {
        (
            u128::from(room.memory) * u128::from(all.vcpus.max(1)),
            u128::from(room.vcpus) * u128::from(all.memory.max(1)),
        )
    };
    let weight = |guests: &[usize]| -> u128 {
        let guests = guests.iter().filter_map(|guest| facts.guest(*guest));
        let related =
            guests.filter(|guest| facts.classes[guest.class].meets(class) || guest.class == demand.class);
        related.map(|guest| weigh(guest.need)).map(|(memory, vcpus)| memory + vcpus).sum()
    };
    let capacity = |host: usize| match suits(host) {
        true => {
            let (memory, vcpus) = weigh(facts.hosts[host].free.less(demand.largest));
            memory.min(vcpus)
        }
        false => 0,
    };
    let mut capacities: Vec<u128> = hosts.clone().map(capacity).collect();
    let mut losses: Vec<(u128, usize)> = hosts
        .filter(|host| facts.hosts[*host].alive)
        .map(|host| (weight(&facts.on[host]) + capacities[host], host))
        .collect();
    losses.sort_unstable_by(|one, other| other.cmp(one));
    losses.truncate(failures);
    let lost: u128 = losses.iter().map(|(loss, _)| *loss).sum();
    let have: u128 = capacities.iter().sum();
    capacities.sort_unstable_by(|one, other| other.cmp(one));
    let company: u128 = capacities.iter().take(demand.company).sum();
    let mut dead: Vec<usize> = losses.into_iter().map(|(_, host)| host).collect();
    dead.sort_unstable();
    let fits = weight(&facts.displaced) + lost + company <= have;
    (!fits).then_some(Doubt { dead, guest: demand.guest })
}
