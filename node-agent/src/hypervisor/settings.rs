//! What of a domain can change while its guest runs.

use super::{CdConfig, DiskConfig, InterfaceConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How Xen's scheduler treats a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// Share of the CPUs compared with that of others, 1 to 65535.
    pub weight: u32,
    /// Most CPU time in percent of one physical CPU; 0 is no limit.
    pub cap_percent: u32,
}

impl Default for Scheduling {
    /// What Xen gives to a domain of which nothing is said.
    fn default() -> Self {
        Self { weight: 256, cap_percent: 0 }
    }
}

/// What a domain has at one moment of what can change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Virtual CPUs that the guest may run on: always the first ones.
    pub vcpus: u32,
    /// Virtual CPUs that it does run on.
    pub vcpus_online: u32,
    /// How it is scheduled; none under a scheduler that knows neither weights nor caps.
    pub scheduling: Option<Scheduling>,
    /// Memory that the guest is asked to hold, in KiB.
    pub memory_target_kib: u64,
    /// Memory that it holds, in KiB. Xen counts what a domain has besides the guest's own memory, which is a few MiB.
    pub memory_kib: u64,
    /// Its disks, sorted by target.
    pub disks: Vec<PresentDisk>,
    /// Its emulated CD drives, sorted by target.
    pub cds: Vec<CdConfig>,
    /// Its interfaces, sorted by index.
    pub interfaces: Vec<InterfaceConfig>,
}

/// A disk of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresentDisk {
    /// Name that the guest sees.
    pub target: String,
    /// Whether the guest has it.
    pub link: Link,
    /// Device node in dom0, where the hypervisor tells it.
    #[serde(default)]
    pub device: Option<PathBuf>,
}

/// Whether a guest has a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Link {
    /// It has, or takes it as soon as it looks.
    Attached,
    /// It was asked to let go, and has not yet.
    Closing,
    /// It has let go; what is left of the disk is removed by [`Change::DetachDisk`].
    Closed,
}

/// A change of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Lets the guest run on its first so many virtual CPUs. Whether it does is [`Settings::vcpus_online`].
    Vcpus(u32),
    /// Schedules it so.
    Scheduling(Scheduling),
    /// Asks the guest to hold so much memory, in KiB, and keeps it from ever holding more. Whether it does is
    /// [`Settings::memory_kib`].
    Memory(u64),
    /// Adds a disk.
    AttachDisk(DiskConfig),
    /// Asks the guest to let go of the disk with this target, and removes the disk if the guest does so within some seconds.
    /// It is never taken away by force. Succeeds whether the guest does or not: [`Settings::disks`] tells.
    DetachDisk(String),
    /// Takes the request to let go of a disk back. It may be too late.
    KeepDisk(String),
    /// Puts an image into the emulated CD drive with this target, in the place of what is in it, or empties it.
    Cd(CdConfig),
    /// Adds an interface.
    AttachInterface(InterfaceConfig),
    /// Removes the interface with this index, whatever the guest does.
    DetachInterface(u32),
    /// Plugs the interface with this index into this bridge instead; the guest notices nothing.
    MoveInterface {
        /// Which one.
        index: u32,
        /// The bridge.
        bridge: String,
    },
    /// Limits what the guest sends through the interface with this index, in bytes per second.
    LimitInterface {
        /// Which one.
        index: u32,
        /// The limit, if there is to be one: a multiple of [`RATE_UNIT`].
        rate_limit: Option<u64>,
    },
}

impl Change {
    /// One word for messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Vcpus(_) => "set vCPUs",
            Self::Scheduling(_) => "set weight and cap",
            Self::Memory(_) => "set memory",
            Self::AttachDisk(_) => "attach a disk",
            Self::DetachDisk(_) => "detach a disk",
            Self::KeepDisk(_) => "keep a disk",
            Self::Cd(_) => "change a CD",
            Self::AttachInterface(_) => "attach an interface",
            Self::DetachInterface(_) => "detach an interface",
            Self::MoveInterface { .. } => "move an interface",
            Self::LimitInterface { .. } => "limit an interface",
        }
    }
}

/// Rates are multiples of so many bytes per second: they are kept as bytes in a twentieth of a second.
pub const RATE_UNIT: u64 = 20;
