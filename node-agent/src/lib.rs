//! The agent of one Xen host.

pub mod hypervisor;
