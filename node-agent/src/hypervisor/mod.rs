//! The hypervisor boundary: what the agent needs of Xen, in neutral types.
//!
//! Three properties hold for every implementation. Every call ends within a time limit. A domain is addressed by its
//! UUID, never by its number alone, because Xen gives a number to another domain later. One conformance suite
//! passes on all implementations.
//!
//! - `xen` (a feature) speaks to a real Xen: libxl in a worker process, xenctrl for accounting, xenstore for events.
//! - [`simulated`] is a model of a host for tests, demonstrations and scale; it says so in [`HostFacts::simulated`].

use async_trait::async_trait;
use kubexen_crds::{BootType, FeatureSet, FeatureSets, Firmware, domain::StopReason};
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use uuid::Uuid;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod guest;
pub mod settings;
pub mod simulated;
#[cfg(feature = "xen")]
pub mod xen;

pub use guest::{GuestFacts, MemoryUse};
pub use settings::{Change, Link, PresentDisk, RATE_UNIT, Scheduling, Settings};

/// Xen's number for a domain: unique among those that exist now, used again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DomId(pub u16);

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a domain is made of, resolved down to paths and device nodes of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainConfig {
    /// UUID: the virtual machine's uid.
    pub uuid: Uuid,
    /// Ownership token under which the domain is made; kept with the domain, and told by [`DomainInfo::token`].
    pub token: u64,
    /// Virtualisation mode.
    pub boot: BootType,
    /// CPU features that the guest may use; none: all that the host gives.
    pub cpu_level: Option<FeatureSet>,
    /// Firmware, which an HVM guest needs; others have none.
    pub firmware: Option<Firmware>,
    /// Kernel to start. Without it the guest boots from its disks, in the order of their targets: by its firmware, or by the
    /// host's boot loader for its mode.
    pub kernel: Option<KernelImage>,
    /// Number of virtual CPUs that the guest runs on.
    pub vcpus: u32,
    /// Number of virtual CPUs that the domain is built for.
    pub max_vcpus: u32,
    /// How it is scheduled.
    pub scheduling: Scheduling,
    /// Memory in KiB that the guest holds.
    pub memory_kib: u64,
    /// Memory in KiB that the domain is built for. A guest for which it is more than `memory_kib` must have a balloon
    /// driver.
    pub max_memory_kib: u64,
    /// Disks, each target once.
    pub disks: Vec<DiskConfig>,
    /// Emulated CD drives of an HVM guest, each target once.
    pub cds: Vec<CdConfig>,
    /// Whether the guest's BIOS tries to boot from these drives before it tries the first disk.
    pub cds_first: bool,
    /// Interfaces, each index once.
    pub interfaces: Vec<InterfaceConfig>,
}

/// A kernel on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelImage {
    /// The kernel's file; an uncompressed ELF starts fastest.
    pub kernel: PathBuf,
    /// The initial RAM disk's file.
    pub ramdisk: Option<PathBuf>,
    /// Command line.
    pub command_line: String,
}

/// A disk as a block device of dom0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Device node in dom0; its content is raw.
    pub device: PathBuf,
    /// Name that the guest sees: `xvda`, `xvdb` …
    pub target: String,
    /// Whether the guest may only read.
    pub read_only: bool,
}

/// An emulated CD drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CdConfig {
    /// Which IDE drive it is: `hda` to `hdd`. The first four disks are `hda` to `hdd` as well.
    pub target: String,
    /// File of the image in it; none: it is empty.
    pub image: Option<PathBuf>,
}

/// An interface on a bridge of dom0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceConfig {
    /// Bridge in dom0.
    pub bridge: String,
    /// Hardware address, lower case, colons.
    pub mac: String,
    /// Which of the guest's interfaces it is, from 0 on.
    pub index: u32,
    /// Most that the guest may send, in bytes per second: a multiple of [`RATE_UNIT`].
    pub rate_limit: Option<u64>,
}

/// A domain as the hypervisor sees it at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainInfo {
    /// UUID handle.
    pub uuid: Uuid,
    /// Number at this moment.
    pub domid: DomId,
    /// What it does.
    pub state: DomainState,
    /// Ownership token it was made under or claimed with; none for domains that others made, and for
    /// [`DomainState::HalfBuilt`] and [`DomainState::Restored`].
    pub token: Option<u64>,
    /// For [`DomainState::Restored`] the token of the configuration that it was restored with; otherwise none.
    pub sent_under: Option<u64>,
    /// Memory it holds now, in KiB.
    pub memory_kib: u64,
    /// Virtual CPUs that it is built for.
    pub vcpus: u32,
}

/// What a domain uses of its host, by the hypervisor's own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainUsage {
    /// UUID handle.
    pub uuid: Uuid,
    /// Number at this moment.
    pub domid: DomId,
    /// Memory it holds now, in KiB.
    pub memory_kib: u64,
    /// Virtual CPUs it has.
    pub vcpus: u32,
    /// CPU time that its vCPUs were given since it was built here.
    pub cpu_time: Duration,
}

/// What a domain does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DomainState {
    /// Its building began and did not end: no token stands beside it. Somebody may be building it right now.
    HalfBuilt,
    /// Runs, or would if there were something to do.
    Running,
    /// Paused by the toolstack.
    Paused,
    /// Its state was saved, or is being saved, by [`Hypervisor::suspend`]: the memory is still there, and no vCPU runs
    /// unless it is resumed.
    Suspended,
    /// Built from a stream by [`Hypervisor::restore`], to its end, and paused: no token stands beside it yet.
    Restored,
    /// The guest stopped by itself; its memory is still there.
    Shutdown(StopReason),
    /// Being taken apart by Xen.
    Dying,
}

/// Facts of a host that hold for a boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Identity of this boot.
    pub boot_id: String,
    /// Xen's version, as in `4.17.4`.
    pub xen_version: String,
    /// `pv`, `hvm`, `hap` …, sorted.
    pub capabilities: Vec<String>,
    /// Whether this is a model and no Xen.
    pub simulated: bool,
    /// Logical CPUs.
    pub cpus: u32,
    /// Sockets.
    pub sockets: u32,
    /// Cores in each socket.
    pub cores_per_socket: u32,
    /// Threads in each core.
    pub threads_per_core: u32,
    /// CPU model name.
    pub cpu_model: String,
    /// CPU feature flags, sorted.
    pub cpu_features: Vec<String>,
    /// CPU features that are given to guests from which nothing is hidden.
    pub cpu_feature_sets: FeatureSets,
    /// Modes of guests for which there is a boot loader, sorted.
    pub boot_loaders: Vec<BootType>,
    /// Firmware for HVM guests that is there, sorted.
    pub firmware: Vec<Firmware>,
    /// User as whom the device models of HVM guests run, if not root.
    pub device_model_user: Option<String>,
    /// All memory in KiB.
    pub memory_total_kib: u64,
}

impl HostFacts {
    /// Whether a guest of this mode can be suspended while it runs, which needs a Xen that tells which pages the guest
    /// wrote to: by hardware-assisted paging, which PV guests do not have, or by shadow paging, which a Xen may be built
    /// without (Debian's is). A device model without privileges cannot open a disk again, which QEMU does when a guest was
    /// suspended live.
    #[must_use]
    pub fn suspends_live(&self, boot: BootType) -> bool {
        let can = |capability: &str| self.capabilities.iter().any(|other| other == capability);
        match boot {
            BootType::Pvh => can("hap") || can("shadow"),
            BootType::Hvm => (can("hap") || can("shadow")) && self.device_model_user.is_none(),
            BootType::Pv => can("shadow"),
        }
    }
}

/// The CPU features of this host that a guest of this level must not see.
///
/// # Errors
/// `Refused` when the host lacks a feature of the level, which is named.
pub(crate) fn hidden_features(
    call: &'static str,
    host: &FeatureSets,
    config: &DomainConfig,
) -> Result<FeatureSet, HypervisorError> {
    let Some(level) = &config.cpu_level else { return Ok(FeatureSet::default()) };
    let given = host.of(config.boot).cloned().unwrap_or_default();
    match level.without(&given).names().first() {
        None => Ok(given.without(level)),
        Some(feature) => {
            let detail = format!("the guest may use the CPU feature {feature}, which this host lacks");
            Err(HypervisorError::Refused { call, detail })
        }
    }
}

/// Where a suspended guest is written to. Whoever makes it decides on its rate.
pub type Outgoing = Box<dyn AsyncWrite + Send + Unpin>;

/// Where a suspended guest is read from. Its end is believed to be that of the guest's stream, since libxl does not
/// notice when a stream is cut between two of its last records: one that was cut must fail instead.
pub type Incoming = Box<dyn AsyncRead + Send + Unpin>;

/// Is told how far a suspend has come, after every write; it must return at once.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// What runs while a guest's memory is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SuspendMode {
    /// The guest, until only what it wrote to meanwhile is left to copy. See [`HostFacts::suspends_live`].
    Live,
    /// Nothing: the guest stands still from the beginning on.
    Still,
}

/// How far a suspend has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes written so far.
    pub bytes: u64,
}

/// What a suspend wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// All bytes of the stream.
    pub bytes: u64,
    /// How often the guest's memory was gone through, the last time while it stood still; none if that is not known.
    pub rounds: Option<u32>,
    /// Pages of 4 KiB that the guest wrote to each second before the last round; none if there was but one, or if that is
    /// not known.
    pub dirty_pages_per_second: Option<u64>,
}

/// Why a call to the hypervisor failed.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// No such domain, or its UUID belongs to no domain now.
    #[error("No domain has the UUID {0}")]
    NoSuchDomain(Uuid),
    /// A domain with this UUID is there already.
    #[error("A domain with the UUID {0} exists already")]
    AlreadyExists(Uuid),
    /// The guest does not let go of what it has.
    #[error("{0}")]
    InUse(String),
    /// Xen has not enough free memory.
    #[error("Xen has not enough free memory: {0}")]
    OutOfMemory(String),
    /// The hypervisor refused; the text is its own.
    #[error("{call} was refused: {detail}")]
    Refused {
        /// The call.
        call: &'static str,
        /// What the hypervisor's libraries said, bounded.
        detail: String,
    },
    /// The stream of a guest ended too early or stalled, or [`Hypervisor::abort`] broke it off.
    #[error("{call}: the guest's stream broke: {detail}")]
    StreamBroken {
        /// The call.
        call: &'static str,
        /// What broke it, bounded.
        detail: String,
    },
    /// The call did not end in time. What it did is unknown: observe.
    #[error("{call} did not end within {} s; what it did is not known", limit.as_secs())]
    TimedOut {
        /// The call.
        call: &'static str,
        /// The time limit.
        limit: Duration,
    },
    /// The hypervisor cannot be reached at all.
    #[error("The hypervisor cannot be reached: {0}")]
    Unreachable(String),
}

impl HypervisorError {
    /// A label from a fixed set, for metrics and conditions.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::NoSuchDomain(_) => "NoSuchDomain",
            Self::AlreadyExists(_) => "AlreadyExists",
            Self::InUse(_) => "DiskInUse",
            Self::OutOfMemory(_) => "OutOfMemory",
            Self::Refused { .. } => "Refused",
            Self::StreamBroken { .. } => "StreamBroken",
            Self::TimedOut { .. } => "TimedOut",
            Self::Unreachable(_) => "Unreachable",
        }
    }
}

/// One Xen host.
#[async_trait]
pub trait Hypervisor: Send + Sync + fmt::Debug {
    /// Facts that hold until the next boot.
    async fn facts(&self) -> Result<HostFacts, HypervisorError>;

    /// Memory that is free at this moment, in KiB.
    async fn free_memory_kib(&self) -> Result<u64, HypervisorError>;

    /// All domains but dom0, whoever made them, sorted by UUID.
    async fn domains(&self) -> Result<Vec<DomainInfo>, HypervisorError>;

    /// The domain with this UUID, read from the hypervisor at this moment.
    async fn find(&self, uuid: Uuid) -> Result<Option<DomainInfo>, HypervisorError>;

    /// What each domain but dom0 uses, sorted by UUID.
    async fn usage(&self) -> Result<Vec<DomainUsage>, HypervisorError>;

    /// What the guest says of itself; nothing of it need be true. Empty while it says nothing.
    async fn guest(&self, uuid: Uuid) -> Result<GuestFacts, HypervisorError>;

    /// Builds a domain and leaves it paused. The token is written last, so a domain that has one is whole. The guest sees
    /// no CPU feature beyond its level.
    ///
    /// # Errors
    /// `AlreadyExists` when the UUID is taken; `Refused` also when the host lacks a CPU feature of the level. After a refusal nothing of the domain is left. After `TimedOut` a
    /// half-built domain may be left; it is found by its UUID and removed by [`Hypervisor::destroy`].
    async fn create(&self, config: &DomainConfig) -> Result<DomId, HypervisorError>;

    /// Lets a paused domain run. Nothing happens to one that runs.
    ///
    /// # Errors
    /// `Refused` for a restored domain that was not claimed.
    async fn unpause(&self, uuid: Uuid) -> Result<(), HypervisorError>;

    /// Stops the vCPUs of a domain. Nothing happens to one that is paused.
    async fn pause(&self, uuid: Uuid) -> Result<(), HypervisorError>;

    /// Asks the guest to power itself off; it may take its time, or never do it.
    async fn request_shutdown(&self, uuid: Uuid) -> Result<(), HypervisorError>;

    /// What the domain has of what can change while its guest runs, read from the hypervisor at this moment.
    ///
    /// # Errors
    /// `NoSuchDomain`; `Refused` for a domain that is not whole.
    async fn settings(&self, uuid: Uuid) -> Result<Settings, HypervisorError>;

    /// Changes a domain that is whole. Making a change that is made already does no harm.
    ///
    /// # Errors
    /// `NoSuchDomain`; `Refused`, then nothing is changed, but that a CD drive may be empty; `InUse` for a CD drive that the
    /// guest has locked, then it was asked to open it.
    async fn change(&self, uuid: Uuid, change: &Change) -> Result<(), HypervisorError>;

    /// Writes a running guest's memory and state to a stream, and leaves the guest suspended here. Success is told when
    /// the whole stream was written, flushed and shut down.
    ///
    /// There is no limit on the whole, only on the time in which nothing moves. If the returned future is dropped the
    /// call is broken off, and what it left is unknown: observe.
    ///
    /// # Errors
    /// After `Refused`, `StreamBroken` and `NoSuchDomain` the guest runs on as before. `Refused` for a guest that does
    /// not run, since it has to help. After `TimedOut` and `Unreachable` it may be suspended: observe.
    async fn suspend(
        &self,
        uuid: Uuid,
        mode: SuspendMode,
        stream: Outgoing,
        progress: OnProgress,
    ) -> Result<Sent, HypervisorError>;

    /// Builds a domain from what a suspend wrote, and leaves it paused and without a token:
    /// [`DomainState::Restored`]. Disks and interfaces are those of `config`, memory and CPU state those of the stream;
    /// the token of `config` is kept as the one under which the guest was sent.
    ///
    /// There is no limit on the whole, only on the time in which nothing moves. If the returned future is dropped the
    /// call is broken off, and what it left is unknown: observe.
    ///
    /// # Errors
    /// `AlreadyExists` when the UUID is taken, by the suspended guest itself too. After `Refused`, `OutOfMemory` and
    /// `StreamBroken` nothing of the domain is left. After other errors a half-built domain may be left; it is found by
    /// its UUID and removed by [`Hypervisor::destroy`].
    async fn restore(&self, config: &DomainConfig, stream: Incoming) -> Result<DomId, HypervisorError>;

    /// Writes the ownership token of a restored domain, which is whole from now on. Also replaces the token of a whole
    /// one.
    ///
    /// # Errors
    /// `Refused` for a domain that is neither.
    async fn claim(&self, uuid: Uuid, token: u64) -> Result<(), HypervisorError>;

    /// Lets a suspended guest run on where it was suspended. Nothing happens to one that is not suspended.
    ///
    /// Only whoever knows that no copy of the guest runs may call this.
    async fn resume(&self, uuid: Uuid) -> Result<(), HypervisorError>;

    /// Breaks off the suspend or restore of this UUID that is in progress, and returns when it has ended; nothing
    /// happens if there is none. The broken call ends as when its stream breaks, or with success if it was too late.
    async fn abort(&self, uuid: Uuid) -> Result<(), HypervisorError>;

    /// Takes the domain apart by force, whatever it does, and breaks off its suspend or restore; afterwards no domain has
    /// this UUID, and no device or xenstore node of it is left. Succeeds when there is no such domain.
    async fn destroy(&self, uuid: Uuid) -> Result<(), HypervisorError>;

    /// As [`Hypervisor::destroy`], without waiting for anything that is under way of this domain or of others. What is being built
    /// or changed of it fails, or is found by the next look.
    async fn destroy_at_once(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.destroy(uuid).await
    }

    /// The end of what the guest wrote to its console, at most 128 KiB, raw.
    async fn console(&self, uuid: Uuid) -> Result<Vec<u8>, HypervisorError>;

    /// Changes when a domain may have appeared, stopped or gone. A hint to look, nothing more: changes may be
    /// folded into one, or be lost when a connection breaks, so look by a timer as well.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Waits until every call that goes on without its caller has ended, each within its own time limit. For the end
    /// of an agent that is stopped in good order; where no call outlives its caller there is nothing to do.
    async fn finish(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_suspended_live_where_xen_can_tell_what_they_write_to() {
        let live = |capabilities: &[&str]| {
            let facts = simulated::Profile::default().facts("a-boot");
            let capabilities = capabilities.iter().map(|&name| name.to_owned()).collect();
            let facts = HostFacts { capabilities, ..facts };
            [BootType::Pvh, BootType::Hvm, BootType::Pv].map(|boot| facts.suspends_live(boot))
        };
        assert_eq!(live(&["hap", "hvm", "pv"]), [true, true, false]);
        assert_eq!(live(&["hvm", "pv", "shadow"]), [true, true, true]);
        assert_eq!(live(&["pv"]), [false, false, false]);
        let facts = HostFacts {
            device_model_user: Some("xen-qemuuser-range-base".to_owned()),
            ..simulated::Profile::default().facts("a-boot")
        };
        assert!(facts.suspends_live(BootType::Pvh) && !facts.suspends_live(BootType::Hvm));
    }
}
