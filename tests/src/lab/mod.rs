//! The Xen lab: real Xen hosts on a machine without Xen.
//!
//! QEMU emulates machines with the virtualisation extensions, Xen boots on them, Debian's kernel is dom0, and dom0 starts
//! PVH, HVM and PV guests. Hosts are named `xen-1`, `xen-2`, …; between them lies
//!
//! - a layer-2 segment: `eth1` in dom0, a port of the bridge `xenbr0`, which has 10.77.0.N/24 (hosts) and 10.88.0.N/24
//!   (guests' network); and on it the VLAN `migrate0`, with 10.99.0.N/24;
//! - a LUN that all hosts see: `/dev/lab/lun`.
//!
//! Each host has a disk of its own, ext4, at `/srv/kubexen`, which keeps its data when the host is switched off. Services on
//! this machine's loopback are at 10.0.2.2 in dom0; [`LabHost::forward`] opens the way into dom0.
//!
//! The test guest's files in dom0 are `/guest/vmlinux` and `/guest/initrd` (PVH, PV), and `/guest/hvm.img`, a disk to be
//! copied for an HVM guest; `files/guest-init.sh` and `files/hvm-boot.s` say what they do. `/guest/vmlinuz` is
//! for HVM guests whose kernel is handed over; none was seen to reach its own init here within three minutes.
//!
//! ```text
//! image ── packages, kernel, modules, libraries, guest, dom0 ──▶ cache ──▶ host boots from it
//! Lab ── LabHost ── control (commands in dom0) · qmp (power, links, ports) · console.log · agent.log
//! ```

pub mod archive;
pub mod cache;
pub mod command;
pub mod control;
mod dom0;
mod guest;
mod host;
pub mod hub;
pub mod image;
mod kernel;
mod libraries;
mod machine;
mod modules;
pub mod packages;
mod pool;
pub mod process;
mod qmp;
mod repair;
pub mod state;

pub use control::Output;
pub use host::{LabHost, Link};
pub use hub::Tap;
pub use image::Extra;
pub use pool::{Lab, LabOptions, default_root};
pub use state::Lifetime;

#[cfg(test)]
mod tests;
