//! The agent of one Xen host: makes the hypervisor agree with the objects of the host's namespace, and reports.
//!
//! | where | what |
//! |---|---|
//! | [`agent`] | an agent put together: what it watches, queues and runs |
//! | [`domain`] | one domain: observe, decide, apply, status |
//! | [`volume`] | one disk, likewise |
//! | [`migration`] | guests that go to other hosts: sessions, and connections between agents |
//! | [`suspension`] | guests that are saved to a disk, and come back |
//! | [`fence`] | the promise that guarded guests stop before the host's lease can end |
//! | [`host`] | the host's facts and its heartbeat |
//! | [`hypervisor`] | the boundary to Xen, real and simulated |
//! | [`storage`], [`network`] | the boundaries to disks and bridges |
//! | [`config`] | the agent's configuration file |
//! | [`boot_files`] | boot loaders and firmware that it names |
//!
//! Licence: Apache-2.0, except that an agent built with the feature `xen` contains the crate `xenctrl` and is
//! GPL-3.0-only as a whole.

pub mod agent;
pub mod args;
pub mod boot_files;
pub mod config;
pub mod domain;
pub mod fence;
pub mod host;
pub mod hypervisor;
pub mod metrics;
pub mod migration;
pub mod mirrors;
pub mod network;
pub mod storage;
pub mod suspension;
pub mod volume;
