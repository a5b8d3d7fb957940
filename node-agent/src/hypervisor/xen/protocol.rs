//! What the agent and its libxl workers say to each other: one JSON document a line.
//!
//! The worker's standard input is a socket, on which the agent writes a [`Message`] and reads one [`Reply`]. libxl's own
//! log goes to standard error, ended for each call by [`end_of_log`], so that the lines of one call can be told from the
//! next one's. Standard output is the stream of a guest, a socket too, for a worker that suspends or restores one.

use crate::hypervisor::Scheduling;
use kubexen_crds::FeatureSets;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Subcommand of the agent's binary that runs a worker.
pub const SUBCOMMAND: &str = "libxl-worker";

/// Longest line either side may write, in bytes.
pub const LINE_LIMIT: usize = 256 * 1024;

/// A numbered request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Number that the reply repeats.
    pub id: u64,
    /// What to do.
    pub request: Request,
}

/// A domain by its number, with the UUID that it must still have when libxl is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Number at the time of asking.
    pub domid: u16,
    /// UUID handle.
    pub uuid: Uuid,
}

/// What a worker can be asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Which Xen this is, and which library speaks to it.
    Version,
    /// Which CPU features are given to guests from which nothing is hidden.
    FeatureSets,
    /// Builds a domain from a `libxl_domain_config` in libxl's own JSON, and leaves it paused.
    Create(serde_json::Value),
    /// Takes a domain and its devices apart.
    Destroy(Target),
    /// Lets a paused domain and its device model run.
    Unpause(Target),
    /// Presses the ACPI power button.
    PowerButton(Target),
    /// Writes a guest's memory and state to the worker's stream, and leaves it suspended.
    Suspend {
        /// The guest.
        target: Target,
        /// Whether it runs while most of it is copied.
        live: bool,
    },
    /// Builds a domain from a `libxl_domain_config` and the worker's stream, and leaves it paused.
    Restore(serde_json::Value),
    /// Lets a suspended guest run on.
    Resume(Target),
    /// How a domain is scheduled.
    Scheduling(Target),
    /// Schedules a domain otherwise.
    SetScheduling {
        /// The domain.
        target: Target,
        /// How.
        scheduling: Scheduling,
    },
    /// Lets a guest run on its first so many virtual CPUs.
    SetVcpus {
        /// The guest.
        target: Target,
        /// How many.
        vcpus: u32,
    },
    /// Asks a guest to hold so much memory, and no more.
    SetMemory {
        /// The guest.
        target: Target,
        /// How much, in KiB.
        kib: u64,
    },
    /// Adds a disk from a `libxl_device_disk`.
    AttachDisk {
        /// The domain.
        target: Target,
        /// The disk in libxl's own JSON.
        disk: serde_json::Value,
    },
    /// Asks a guest to let go of a disk, and removes the disk when the guest has.
    DetachDisk {
        /// The guest.
        target: Target,
        /// The disk in libxl's own JSON.
        disk: serde_json::Value,
    },
    /// Changes what is in a CD drive to what a `libxl_device_disk` says.
    ChangeCd {
        /// The guest.
        target: Target,
        /// The drive in libxl's own JSON.
        cd: serde_json::Value,
    },
    /// Adds an interface from a `libxl_device_nic`.
    AttachInterface {
        /// The domain.
        target: Target,
        /// The interface in libxl's own JSON.
        interface: serde_json::Value,
    },
    /// Removes an interface, by force if the guest does not let go.
    DetachInterface {
        /// The domain.
        target: Target,
        /// Its number.
        index: u32,
    },
}

impl Request {
    /// The domain that it is about, if that is there already.
    #[must_use]
    pub fn target(&self) -> Option<Target> {
        match self {
            Self::Destroy(target)
            | Self::Unpause(target)
            | Self::PowerButton(target)
            | Self::Suspend { target, .. }
            | Self::Resume(target)
            | Self::Scheduling(target)
            | Self::SetScheduling { target, .. }
            | Self::SetVcpus { target, .. }
            | Self::SetMemory { target, .. }
            | Self::AttachDisk { target, .. }
            | Self::DetachDisk { target, .. }
            | Self::ChangeCd { target, .. }
            | Self::AttachInterface { target, .. }
            | Self::DetachInterface { target, .. } => Some(*target),
            Self::Version | Self::FeatureSets | Self::Create(_) | Self::Restore(_) => None,
        }
    }

    /// The function that does the work, for messages.
    #[must_use]
    pub fn call(&self) -> &'static str {
        match self {
            Self::Version => "libxl_get_version_info",
            Self::FeatureSets => "xc_get_cpu_featureset",
            Self::Create(_) => "libxl_domain_create_new",
            Self::Destroy(_) => "libxl_domain_destroy",
            Self::Unpause(_) => "libxl_domain_unpause",
            Self::PowerButton(_) => "libxl_send_trigger",
            Self::Suspend { .. } => "libxl_domain_suspend",
            Self::Restore(_) => "libxl_domain_create_restore",
            Self::Resume(_) => "libxl_domain_resume",
            Self::Scheduling(_) => "libxl_domain_sched_params_get",
            Self::SetScheduling { .. } => "libxl_domain_sched_params_set",
            Self::SetVcpus { .. } => "libxl_set_vcpuonline",
            Self::SetMemory { .. } => "libxl_set_memory_target",
            Self::AttachDisk { .. } => "libxl_device_disk_add",
            Self::DetachDisk { .. } => "libxl_device_disk_safe_remove",
            Self::ChangeCd { .. } => "libxl_cdrom_insert",
            Self::AttachInterface { .. } => "libxl_device_nic_add",
            Self::DetachInterface { .. } => "libxl_device_nic_remove",
        }
    }
}

/// A numbered answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The message's number.
    pub id: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// Answer to [`Request::Version`].
    Version {
        /// File name of the library that was loaded, as in `libxenlight.so.4.17`.
        library: String,
        /// `libxl_version_info` as libxl writes it.
        info: serde_json::Value,
    },
    /// Answer to [`Request::FeatureSets`].
    FeatureSets(FeatureSets),
    /// Answer to [`Request::Scheduling`]: none under a scheduler that knows no weights.
    Scheduling(Option<Scheduling>),
    /// The domain was built or restored and has this number.
    Created(u16),
    /// Done.
    Done,
    /// No domain has this number, or it has another UUID now.
    NoSuchDomain,
    /// Xen has less free memory than the domain needs.
    OutOfMemory {
        /// What the domain and its overhead need, in KiB.
        need_kib: u64,
        /// What is free, in KiB.
        free_kib: u64,
    },
    /// libxl said no, with this negative number; its log says why.
    Refused(i32),
}

/// The line that ends a call's part of the log.
#[must_use]
pub fn end_of_log(id: u64) -> String {
    format!("{SUBCOMMAND}: end of call {id}")
}
