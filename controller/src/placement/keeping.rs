//! The failure reserve while a batch is placed.

use super::{
    HostView, Request, memory_with_overhead,
    reserve::{Reserve, settled},
};

/// Changes of the reserve that a batch tries before it ends, so that others of the same task have their turn: some tenths of a
/// second in a pool of 64 hosts.
pub(super) const CHANGES: usize = 512;

/// The reserve, and what was found out of it in this batch.
#[derive(Debug)]
pub(super) struct Keeping<'r> {
    reserve: &'r mut Reserve,
    /// By host, what guests it may not take. In a batch there is only ever less room, so neither may a guest come that is like one
    /// of them, or larger.
    refused: Vec<Vec<Refused>>,
    changes: usize,
}

/// A guest that a host may not take.
#[derive(Clone, Debug)]
struct Refused {
    like: Like,
    memory: u64,
    vcpus: u32,
}

/// What two guests have in common of which the larger one cannot go where the smaller one may not.
#[derive(Clone, Debug, PartialEq)]
enum Like {
    /// They are not protected, and of the same anti-affinity group, or of none.
    Unprotected(Option<String>),
    /// They are protected, and all else that they need is the same.
    Protected(Box<Request>),
}

impl<'r> Keeping<'r> {
    pub(super) fn new(reserve: &'r mut Reserve, hosts: usize) -> Self {
        Self { reserve, refused: vec![Vec::new(); hosts], changes: 0 }
    }

    /// Whether so much was tried that the batch is to end.
    pub(super) fn is_spent(&self) -> bool {
        self.changes >= CHANGES
    }

    /// Counts a guest as one of a host where it fits, unless that breaks a promise.
    pub(super) fn take(&mut self, host: usize, view: &HostView, request: &Request) -> bool {
        let guest = Refused::of(view, request);
        // What others of a dead host need may be less by now, and a guest more may be among them.
        let known = !(request.protected && request.recovers);
        if known && self.refused[host].iter().any(|refused| refused.covers(&guest)) {
            return false;
        }
        self.changes += 1;
        let taken = self.reserve.take(host, request);
        match (taken, known) {
            (false, true) => self.refused[host].push(guest),
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

impl Refused {
    fn of(view: &HostView, request: &Request) -> Self {
        let memory =
            memory_with_overhead(request.memory, request.vcpus, request.boot).saturating_add(request.growth);
        let like = match request.protected.then(|| settled(request, view)).flatten() {
            Some(settled) => Like::Protected(Box::new(Request {
                key: kubexen_runtime::Key::cluster(""),
                memory: 0,
                vcpus: 0,
                growth: 0,
                ..settled
            })),
            None => Like::Unprotected(request.anti_affinity.as_ref().map(|(group, _)| group.clone())),
        };
        Self { like, memory, vcpus: request.vcpus }
    }

    fn covers(&self, other: &Self) -> bool {
        self.memory <= other.memory && self.vcpus <= other.vcpus && self.like == other.like
    }
}
