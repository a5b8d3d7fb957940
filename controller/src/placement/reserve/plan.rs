//! Where guests go when hosts die.

use super::facts::Room;

/// A guest that goes to a host, and what it takes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) guest: usize,
    pub(super) to: usize,
    pub(super) need: Room,
}

/// Moves, each guest at most once. Those to one host are found without looking at the others: a change of a host is compared
/// with what every plan brings there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Ascending by host.
    moves: Vec<Move>,
}

impl Plan {
    pub(super) fn moves(&self) -> &[Move] {
        &self.moves
    }

    /// What it brings to a host.
    pub(super) fn to(&self, host: usize) -> &[Move] {
        let begin = self.moves.partition_point(|one| one.to < host);
        let behind = &self.moves[begin..];
        let count = behind.iter().take_while(|one| one.to == host).count();
        &behind[..count]
    }

    /// What it takes of a host.
    pub(super) fn taken(&self, host: usize) -> Room {
        sum(self.to(host))
    }

    /// What it takes of the hosts to which another one does not bring the same.
    pub(super) fn differences(&self, other: &Self) -> Vec<(usize, Room)> {
        let (mut here, mut there) = (self.moves.as_slice(), other.moves.as_slice());
        let next =
            |here: &[Move], there: &[Move]| here.iter().take(1).chain(there.first()).map(|one| one.to).min();
        // Most changes leave most of a plan as it is.
        let alike = here.iter().zip(there).take_while(|(ours, theirs)| ours == theirs).count();
        if let Some(host) = next(&here[alike..], &there[alike..]) {
            let begin = here[..alike].partition_point(|one| one.to < host);
            (here, there) = (&here[begin..], &there[begin..]);
        }
        let mut differences = Vec::new();
        while let Some(host) = next(here, there) {
            let to = |moves: &[Move]| moves.iter().take_while(|one| one.to == host).count();
            let (ours, behind_ours) = here.split_at(to(here));
            let (theirs, behind_theirs) = there.split_at(to(there));
            if ours != theirs {
                differences.push((host, sum(ours)));
            }
            (here, there) = (behind_ours, behind_theirs);
        }
        differences
    }

    pub(super) fn add(&mut self, one: Move) {
        let position = self.moves.partition_point(|other| other.to <= one.to);
        self.moves.insert(position, one);
    }

    /// Takes out a guest; says where it was to go.
    pub(super) fn remove(&mut self, guest: usize) -> Option<usize> {
        let position = self.moves.iter().position(|one| one.guest == guest)?;
        Some(self.moves.remove(position).to)
    }

    /// Takes out what it brings to a host; says which guests that are.
    pub(super) fn clear(&mut self, host: usize) -> Vec<usize> {
        let guests = self.to(host).iter().map(|one| one.guest).collect();
        self.moves.retain(|one| one.to != host);
        guests
    }
}

fn sum(moves: &[Move]) -> Room {
    moves.iter().fold(Room::default(), |sum, one| sum.plus(one.need))
}
