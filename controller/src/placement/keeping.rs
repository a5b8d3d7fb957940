//! The failure reserve while a batch is placed.

use super::{Request, memory_with_overhead, reserve::Reserve};

/// The reserve, and what was found out of it in this batch.
#[derive(Debug)]
pub(super) struct Keeping {
    reserve: Reserve,
    /// By host, memory and vCPUs of guests that it may not take. In a batch there is only ever less room for a guest that is
    /// not protected, so neither may a larger one come.
    refused: Vec<Vec<(u64, u32)>>,
}

impl Keeping {
    pub(super) fn new(reserve: Reserve, hosts: usize) -> Self {
        Self { reserve, refused: vec![Vec::new(); hosts] }
    }

    /// Counts a guest as one of a host where it fits, unless that breaks a promise.
    pub(super) fn take(&mut self, host: usize, request: &Request) -> bool {
        let plain = !request.protected && request.anti_affinity.is_none();
        let memory =
            memory_with_overhead(request.memory, request.vcpus, request.boot).saturating_add(request.growth);
        let smaller = |(refused, vcpus): &(u64, u32)| *refused <= memory && *vcpus <= request.vcpus;
        if plain && self.refused[host].iter().any(smaller) {
            return false;
        }
        let taken = self.reserve.take(host, request);
        match (taken, plain) {
            (false, true) => self.refused[host].push((memory, request.vcpus)),
            // A guest that has a place again may leave more room for others.
            (true, _) if request.recovers => self.refused.iter_mut().for_each(Vec::clear),
            (true | false, _) => {}
        }
        taken
    }

    /// Counts a protected guest that recovers on a host, whatever that breaks.
    pub(super) fn take_anyway(&mut self, host: usize, request: &Request) {
        self.reserve.take_anyway(host, request);
        self.refused.iter_mut().for_each(Vec::clear);
    }
}
