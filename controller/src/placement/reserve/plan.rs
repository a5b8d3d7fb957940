//! Where guests go when hosts die.

use super::facts::Room;

/// A guest that goes to a host, and what it takes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) guest: usize,
    pub(super) to: usize,
    pub(super) need: Room,
}

/// Moves, each guest at most once, and what they take of each host: a change of a host is compared with what every plan takes of
/// it, and concerns the moves of few.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    moves: Vec<Move>,
    /// By host.
    taken: Vec<Room>,
}

impl Plan {
    /// No moves, in a pool of so many hosts.
    pub(super) fn none(hosts: usize) -> Self {
        Self { moves: Vec::new(), taken: vec![Room::default(); hosts] }
    }

    pub(super) fn moves(&self) -> &[Move] {
        &self.moves
    }

    /// What it brings to a host.
    pub(super) fn to(&self, host: usize) -> impl Iterator<Item = &Move> {
        // Most hosts are brought nothing.
        let moves = if self.taken[host] == Room::default() { &[] } else { self.moves.as_slice() };
        moves.iter().filter(move |one| one.to == host)
    }

    /// What it takes of a host.
    pub(super) fn taken(&self, host: usize) -> Room {
        self.taken[host]
    }

    pub(super) fn add(&mut self, one: Move) {
        self.taken[one.to] = self.taken[one.to].plus(one.need);
        self.moves.push(one);
    }

    /// Takes out a guest; says where it was to go.
    pub(super) fn remove(&mut self, guest: usize) -> Option<usize> {
        let position = self.moves.iter().rposition(|one| one.guest == guest)?;
        let Move { to, need, .. } = self.moves.swap_remove(position);
        self.taken[to] = self.taken[to].less(need);
        Some(to)
    }

    /// Takes out what it brings to a host, and returns that.
    pub(super) fn clear(&mut self, host: usize) -> Vec<Move> {
        self.taken[host] = Room::default();
        self.moves.extract_if(.., |one| one.to == host).collect()
    }
}
