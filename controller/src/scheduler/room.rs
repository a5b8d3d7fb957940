//! What a host has left for a guest that it has already.

use crate::{
    context::Context,
    placement::{HostView, growth_overhead, memory_with_overhead},
};
use kubexen_crds::{DomainStatus, domain::Machine};

/// A host, and how many virtual CPUs may share one of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostRoom {
    /// What it has, and what is used of it.
    pub(crate) host: HostView,
    /// Virtual CPUs for each of its own.
    pub(crate) overcommit: u64,
    /// What of the room that it has is kept for protected guests of hosts that may die.
    pub(crate) reserved: Reserved,
}

/// What of the room that a guest asks for is kept for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reserved {
    /// The virtual CPUs.
    pub(crate) vcpus: bool,
    /// The memory.
    pub(crate) memory: bool,
}

/// What a guest asks for in addition to what it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Growth {
    /// Memory in bytes, overhead included.
    pub(crate) memory: u64,
    /// Virtual CPUs.
    pub(crate) vcpus: u32,
    /// Whether it is protected.
    pub(crate) protected: bool,
}

impl HostRoom {
    /// Memory in bytes that guests may still take.
    pub(crate) fn memory_left(&self) -> u64 {
        self.host.memory_allocatable.saturating_sub(self.host.memory_used)
    }

    /// Virtual CPUs that may still come.
    pub(crate) fn vcpus_left(&self) -> u64 {
        let all = u64::from(self.host.cpus).saturating_mul(self.overcommit);
        all.saturating_sub(self.host.vcpus_used.into())
    }
}

/// A host with all that is used of it, and with what was assigned to it, for a guest that is to grow there; none if there is no
/// such host.
pub(crate) fn room_on(context: &Context, host: &str, growth: Growth) -> Option<HostRoom> {
    let mut books = context.scheduler.books(&context.view);
    let overcommit = u64::try_from(books.pool.policy.cpu_overcommit).unwrap_or(0).max(1);
    let host = books.pool.hosts.iter().find(|other| other.name == host)?.clone();
    let Growth { memory, vcpus, protected } = growth;
    let reserved = books.reserve.as_mut().map_or(Reserved::default(), |reserve| {
        let mut is_kept = |memory, vcpus| !reserve.may_grow(&host.name, memory, vcpus, protected);
        let reserved_vcpus = vcpus > 0 && is_kept(0, vcpus);
        // Both may come at once.
        let with = if reserved_vcpus { 0 } else { vcpus };
        Reserved { vcpus: reserved_vcpus, memory: memory > 0 && is_kept(memory, with) }
    });
    Some(HostRoom { host, overcommit, reserved })
}

/// Memory in bytes that a host gives up for a Domain. A guest that was asked for memory and has not given it back still
/// has it.
pub(crate) fn domain_memory(machine: &Machine, status: Option<&DomainStatus>) -> u64 {
    let vcpus = |count: i32| u32::try_from(count).unwrap_or(u32::MAX);
    let asked = machine.memory.bytes().unwrap_or(u64::MAX);
    let held = status.and_then(|status| status.memory.as_ref()).and_then(|memory| memory.bytes().ok());
    let memory = asked.max(held.unwrap_or(0));
    let max_memory = machine.max_memory.bytes().unwrap_or(u64::MAX);
    memory_with_overhead(memory, vcpus(machine.cpus), machine.boot.type_).saturating_add(growth_overhead(
        memory,
        max_memory,
        vcpus(machine.cpus),
        vcpus(machine.max_cpus),
    ))
}
