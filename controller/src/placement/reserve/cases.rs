//! The sets of hosts that may die, each with its plan, and what every plan takes of a host.

use super::{
    change::Journal,
    facts::{Facts, Room},
    packing::Case,
    plan::Plan,
};
use std::ops::Index;

/// The cases, by position.
///
/// What they take of a host lies side by side: a change of a host is compared with all plans, and breaks few.
#[derive(Clone, Debug)]
pub(super) struct Cases {
    cases: Vec<Case>,
    /// By host and position.
    taken: Vec<Vec<Room>>,
}

impl Index<usize> for Cases {
    type Output = Case;

    fn index(&self, position: usize) -> &Case {
        &self.cases[position]
    }
}

impl Cases {
    /// Cases of a pool of so many hosts, none of which has a plan yet.
    pub(super) fn new(cases: Vec<Case>, hosts: usize) -> Self {
        let taken = vec![vec![Room::default(); cases.len()]; hosts];
        Self { cases, taken }
    }

    pub(super) fn len(&self) -> usize {
        self.cases.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Case> {
        self.cases.iter()
    }

    /// Notes that it is not known whether there are other plans for a case.
    pub(super) fn doubt(&mut self, position: usize) {
        self.cases[position].searched = false;
    }

    /// Changes a case, which is noted as it was.
    pub(super) fn change<T>(
        &mut self,
        position: usize,
        journal: &mut Journal,
        change: impl FnOnce(&mut Case) -> T,
    ) -> T {
        let case = &mut self.cases[position];
        journal.note(position, case);
        let before = case.plan.clone();
        let result = change(case);
        self.count(position, &before);
        result
    }

    /// Puts a case back as it was.
    pub(super) fn put_back(&mut self, position: usize, case: Case) {
        let now = std::mem::replace(&mut self.cases[position], case);
        self.count(position, &now.plan);
    }

    /// The cases whose plans cannot be carried out any more, as a host is now that has become worse; `meets` says whether a group
    /// is present there that was not.
    pub(super) fn broken_at(&self, facts: &Facts, host: usize, meets: bool) -> Vec<usize> {
        let free = facts.free[host];
        let positions = self.taken[host].iter().enumerate();
        let broken = |(position, taken): &(usize, &Room)| {
            !free.holds(**taken) || (meets && self.cases[*position].meets_present(facts, host))
        };
        positions.filter(broken).map(|(position, _)| position).collect()
    }

    /// Whether what plans take is counted right.
    #[cfg(test)]
    pub(super) fn are_counted(&self) -> bool {
        let of_host = |(host, taken): (usize, &Vec<Room>)| {
            self.cases.iter().map(|case| case.plan.taken(host)).eq(taken.iter().copied())
        };
        self.taken.iter().enumerate().all(of_host)
    }

    /// Counts a plan anew, which was another before.
    fn count(&mut self, position: usize, before: &Plan) {
        for (host, taken) in self.cases[position].plan.differences(before) {
            self.taken[host][position] = taken;
        }
    }
}
