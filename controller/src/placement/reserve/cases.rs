//! The sets of hosts that may die, each with its plan.

use super::{change::Journal, facts::Facts, packing::Case};
use std::ops::Index;

/// The cases, by position.
#[derive(Clone, Debug)]
pub(super) struct Cases(Vec<Case>);

impl Index<usize> for Cases {
    type Output = Case;

    fn index(&self, position: usize) -> &Case {
        &self.0[position]
    }
}

impl Cases {
    /// Cases that have no plan yet.
    pub(super) fn new(cases: Vec<Case>) -> Self {
        Self(cases)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Case> {
        self.0.iter()
    }

    /// Notes that it is not known whether there are other plans for a case.
    pub(super) fn doubt(&mut self, position: usize) {
        self.0[position].searched = false;
    }

    /// Changes a case, which is noted as it was.
    pub(super) fn change<T>(
        &mut self,
        position: usize,
        journal: &mut Journal,
        change: impl FnOnce(&mut Case) -> T,
    ) -> T {
        journal.note(position, &self.0[position]);
        change(&mut self.0[position])
    }

    /// Puts a case back as it was.
    pub(super) fn put_back(&mut self, position: usize, case: Case) {
        self.0[position] = case;
    }

    /// The cases whose plans cannot be carried out any more, as a host is now that has become worse; `meets` says whether a group
    /// is present there that was not.
    pub(super) fn broken_at(&self, facts: &Facts, host: usize, meets: bool) -> Vec<usize> {
        let free = facts.free[host];
        let broken =
            |case: &Case| !free.holds(case.plan.taken(host)) || (meets && case.meets_present(facts, host));
        (0..self.0.len()).filter(|position| broken(&self.0[*position])).collect()
    }
}
