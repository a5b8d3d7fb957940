//! Memory and CPU of one host while a batch is placed.

use super::{
    HostView,
    score::{self, Load},
};

/// What a host has and what is used of it, by present guests and those that the batch has placed so far.
#[derive(Debug)]
pub(super) struct Resources {
    memory: u64,
    memory_used: u64,
    cpus: u32,
    /// CPUs × overcommit ratio.
    vcpus: u64,
    vcpus_used: u64,
    load: Load,
    placed: u32,
}

impl Resources {
    pub(super) fn of(host: &HostView, overcommit: u64) -> Self {
        let mut resources = Self {
            memory: host.memory_allocatable,
            memory_used: host.memory_used,
            cpus: host.cpus,
            vcpus: u64::from(host.cpus).saturating_mul(overcommit),
            vcpus_used: u64::from(host.vcpus_used),
            load: Load { memory: 0, cpu: 0 },
            placed: 0,
        };
        resources.load = resources.load_with(0, 0);
        resources
    }

    /// Logical CPUs.
    pub(super) fn cpus(&self) -> u32 {
        self.cpus
    }

    /// vCPUs that may still come.
    pub(super) fn vcpus_left(&self) -> u64 {
        self.vcpus.saturating_sub(self.vcpus_used)
    }

    /// Memory in bytes that may still be taken.
    pub(super) fn memory_left(&self) -> u64 {
        self.memory.saturating_sub(self.memory_used)
    }

    /// Guests that this batch has placed here.
    pub(super) fn placed(&self) -> u32 {
        self.placed
    }

    /// The load now.
    pub(super) fn load(&self) -> Load {
        self.load
    }

    /// The load with one more guest, which must fit. Memory is weighed in MiB: bytes would overflow, and decide
    /// nothing.
    pub(super) fn load_with(&self, memory: u64, vcpus: u32) -> Load {
        Load {
            memory: score::share((self.memory_used + memory) >> 20, self.memory >> 20),
            cpu: score::share(self.vcpus_used + u64::from(vcpus), self.vcpus),
        }
    }

    /// Takes what a guest needs, which must fit.
    pub(super) fn take(&mut self, memory: u64, vcpus: u32) {
        self.load = self.load_with(memory, vcpus);
        self.memory_used += memory;
        self.vcpus_used += u64::from(vcpus);
        self.placed += 1;
    }
}
