//! What a host has left for a guest that it has already.

use super::snapshot;
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

/// A host with all that is used of it, and with what was assigned to it; none if there is no such host.
pub(crate) fn room_on(context: &Context, host: &str) -> Option<HostRoom> {
    let pool = snapshot::take(&context.view, &context.scheduler.claims());
    let overcommit = u64::try_from(pool.policy.cpu_overcommit).unwrap_or(0).max(1);
    let host = pool.hosts.into_iter().find(|other| other.name == host)?;
    Some(HostRoom { host, overcommit })
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
