//! What Xen itself knows of its domains, through the crate `xenctrl`, and the cheap calls on them.
//!
//! `XenControl` may not leave its thread, so one thread owns it and runs what it is sent, one after the other. That
//! also makes looking and acting one step: nobody else in this process pauses a domain between the two. A domain is
//! always found by its UUID handle, never by its number alone.

use super::super::{DomId, DomainUsage, HypervisorError};
use std::{
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};
use tokio::sync::oneshot;
use uuid::Uuid;
use xenctrl::{XenControl, xc_domaininfo_t, xc_physinfo_t};

/// Time limit of each call. These are single hypercalls; only a hypervisor in trouble takes longer.
const LIMIT: Duration = Duration::from_secs(10);

/// Size of a page on x86, in KiB.
const PAGE_KIB: u64 = 4;

/// `XEN_DOMINF_*` of `xen/domctl.h`.
mod flag {
    pub const DYING: u32 = 1 << 0;
    pub const SHUTDOWN: u32 = 1 << 2;
    pub const PAUSED: u32 = 1 << 3;
    pub const REASON_SHIFT: u32 = 16;
    pub const REASON_MASK: u32 = 0xff;
}

/// `XEN_SYSCTL_PHYSCAP_*` of `xen/sysctl.h` with the names that `xl info` gives them.
const CAPABILITIES: [(u32, &str); 6] =
    [(0, "hvm"), (1, "pv"), (2, "hvm_directio"), (3, "hap"), (4, "shadow"), (5, "iommu_hap_pt_share")];

/// Why a guest stopped: `SHUTDOWN_*` of `xen/sched.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownReason {
    /// It powered itself off.
    Poweroff,
    /// It asked to be started again.
    Reboot,
    /// It saved its state, for a migration or a suspend.
    Suspend,
    /// It crashed.
    Crash,
    /// The watchdog that it had set fired.
    Watchdog,
    /// It asks for a reset that keeps its memory.
    SoftReset,
    /// A number that this version does not know.
    Other(u8),
}

/// A domain as Xen accounts for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Number.
    pub domid: u16,
    /// UUID handle.
    pub uuid: Uuid,
    /// Whether Xen takes it apart.
    pub dying: bool,
    /// Whether the toolstack paused it.
    pub paused: bool,
    /// Why the guest stopped, if it did.
    pub shutdown: Option<ShutdownReason>,
    /// CPU time that its vCPUs were given.
    pub cpu_time: Duration,
    /// Memory it holds, in KiB.
    pub memory_kib: u64,
    /// Virtual CPUs it is built for.
    pub vcpus: u32,
    /// Virtual CPUs that the guest has brought up.
    pub vcpus_online: u32,
}

impl Account {
    /// Whether a vCPU of it ever ran.
    #[must_use]
    pub fn has_run(&self) -> bool {
        !self.cpu_time.is_zero()
    }

    /// What it uses of the host.
    #[must_use]
    pub fn usage(&self) -> DomainUsage {
        DomainUsage {
            uuid: self.uuid,
            domid: DomId(self.domid),
            memory_kib: self.memory_kib,
            vcpus: self.vcpus,
            cpu_time: self.cpu_time,
        }
    }

    /// Whether its state was saved and it was not resumed since.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        !self.dying && self.shutdown == Some(ShutdownReason::Suspend)
    }
}

/// The host as Xen accounts for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAccount {
    /// Logical CPUs that are online.
    pub cpus: u32,
    /// Cores in each socket.
    pub cores_per_socket: u32,
    /// Threads in each core.
    pub threads_per_core: u32,
    /// All memory in KiB.
    pub memory_total_kib: u64,
    /// Memory that is free and not promised to a domain that is being built, in KiB.
    pub memory_free_kib: u64,
    /// What guests the host can run, sorted.
    pub capabilities: Vec<String>,
    /// The first words of Xen's own CPU feature set.
    pub feature_words: [u32; 8],
}

type Work = Box<dyn FnOnce(Result<&XenControl, HypervisorError>) + Send>;

/// A handle to the thread. The thread ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Accounting {
    thread: Sender<Work>,
}

impl Accounting {
    /// Starts the thread. The hypervisor is opened by the first call that needs it, and by the next one if that
    /// failed.
    ///
    /// # Errors
    /// `Unreachable` when the system gives no thread.
    pub fn start() -> Result<Self, HypervisorError> {
        let (thread, work) = channel();
        std::thread::Builder::new()
            .name("xenctrl".into())
            .spawn(move || serve(&work))
            .map_err(|error| HypervisorError::Unreachable(format!("no thread for xenctrl: {error}")))?;
        Ok(Self { thread })
    }

    /// All domains but dom0, sorted by UUID.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`, `TimedOut`.
    pub async fn domains(&self) -> Result<Vec<Account>, HypervisorError> {
        self.run("xc_domain_getinfolist", list).await
    }

    /// The domain with this UUID.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`, `TimedOut`.
    pub async fn find(&self, uuid: Uuid) -> Result<Option<Account>, HypervisorError> {
        self.run("xc_domain_getinfolist", move |xen| find(xen, uuid)).await
    }

    /// Pauses a domain that is not. Xen counts pauses, so one that is paused must not be paused again.
    ///
    /// # Errors
    /// `NoSuchDomain`, `Unreachable`, `Refused`, `TimedOut`.
    pub async fn pause(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.run("xc_domain_pause", move |xen| {
            let account = find(xen, uuid)?.ok_or(HypervisorError::NoSuchDomain(uuid))?;
            if account.paused {
                return Ok(());
            }
            xen.domain_pause(account.domid.into()).map_err(|error| refused("xc_domain_pause", &error))
        })
        .await
    }

    /// Lets a paused domain run.
    ///
    /// # Errors
    /// `NoSuchDomain`, `Unreachable`, `Refused`, `TimedOut`.
    pub async fn unpause(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.run("xc_domain_unpause", move |xen| {
            let account = find(xen, uuid)?.ok_or(HypervisorError::NoSuchDomain(uuid))?;
            if !account.paused {
                return Ok(());
            }
            xen.domain_unpause(account.domid.into()).map_err(|error| refused("xc_domain_unpause", &error))
        })
        .await
    }

    /// The host.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`, `TimedOut`.
    pub async fn host(&self) -> Result<HostAccount, HypervisorError> {
        self.run("xc_physinfo", |xen| {
            xen.physinfo().map(|info| host_account(&info)).map_err(|error| refused("xc_physinfo", &error))
        })
        .await
    }

    /// Runs work on the thread. A caller that stops waiting does not stop the work.
    async fn run<T: Send + 'static>(
        &self,
        call: &'static str,
        work: impl FnOnce(&XenControl) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let (sender, receiver) = oneshot::channel();
        let gone = || HypervisorError::Unreachable("the thread of xenctrl ended".into());
        self.thread
            .send(Box::new(move |xen| {
                // The caller may have stopped waiting.
                let _ = sender.send(xen.and_then(work));
            }))
            .map_err(|_| gone())?;
        tokio::time::timeout(LIMIT, receiver)
            .await
            .map_err(|_| HypervisorError::TimedOut { call, limit: LIMIT })?
            .map_err(|_| gone())?
    }
}

fn serve(work: &Receiver<Work>) {
    let mut xen = None;
    while let Ok(work) = work.recv() {
        if xen.is_none() {
            match XenControl::new_default() {
                Ok(opened) => xen = Some(opened),
                Err(error) => {
                    work(Err(HypervisorError::Unreachable(format!("libxenctrl: {error}"))));
                    continue;
                }
            }
        }
        if let Some(xen) = &xen {
            work(Ok(xen));
        }
    }
}

fn refused(call: &'static str, error: &xenctrl::error::XcError) -> HypervisorError {
    // libxenctrl sets errno, and tells nothing but a general text about most failures.
    let system = std::io::Error::last_os_error();
    HypervisorError::Refused { call, detail: format!("{error} ({system})") }
}

fn list(xen: &XenControl) -> Result<Vec<Account>, HypervisorError> {
    let mut accounts = Vec::new();
    // Dom0 is number 0. The call returns the domain with the least number from `next` on.
    let mut next = 1;
    while let Some(info) =
        xen.domain_getinfolist(next).map_err(|error| refused("xc_domain_getinfolist", &error))?
    {
        accounts.push(account(&info));
        next = u32::from(info.domain) + 1;
    }
    accounts.sort_by_key(|account| account.uuid);
    Ok(accounts)
}

fn find(xen: &XenControl, uuid: Uuid) -> Result<Option<Account>, HypervisorError> {
    Ok(list(xen)?.into_iter().find(|account| account.uuid == uuid))
}

fn account(info: &xc_domaininfo_t) -> Account {
    let set = |flag| info.flags & flag != 0;
    Account {
        domid: info.domain,
        uuid: Uuid::from_bytes(info.handle),
        dying: set(flag::DYING),
        paused: set(flag::PAUSED),
        shutdown: set(flag::SHUTDOWN).then(|| shutdown_reason(info.flags)),
        cpu_time: Duration::from_nanos(info.cpu_time),
        memory_kib: info.tot_pages * PAGE_KIB,
        // A domain without any vCPU yet says u32::MAX.
        vcpus: info.max_vcpu_id.wrapping_add(1),
        vcpus_online: info.nr_online_vcpus,
    }
}

fn shutdown_reason(flags: u32) -> ShutdownReason {
    match (flags >> flag::REASON_SHIFT) & flag::REASON_MASK {
        0 => ShutdownReason::Poweroff,
        1 => ShutdownReason::Reboot,
        2 => ShutdownReason::Suspend,
        3 => ShutdownReason::Crash,
        4 => ShutdownReason::Watchdog,
        5 => ShutdownReason::SoftReset,
        other => ShutdownReason::Other(other.to_le_bytes()[0]),
    }
}

fn host_account(info: &xc_physinfo_t) -> HostAccount {
    let mut capabilities: Vec<String> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| info.capabilities & (1 << bit) != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect();
    capabilities.sort();
    HostAccount {
        cpus: info.nr_cpus,
        cores_per_socket: info.cores_per_socket,
        threads_per_core: info.threads_per_core,
        memory_total_kib: info.total_pages * PAGE_KIB,
        memory_free_kib: info.free_pages.saturating_sub(info.outstanding_pages) * PAGE_KIB,
        capabilities,
        feature_words: info.hw_cap,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_flags(flags: u32) -> Account {
        account(&xc_domaininfo_t { domain: 3, flags, ..xc_domaininfo_t::default() })
    }

    #[test]
    fn the_flags_of_a_domain_become_its_state() {
        let idle = with_flags(1 << 4);
        assert!(!idle.dying && !idle.paused && idle.shutdown.is_none());
        assert!(with_flags(1 << 3).paused);
        assert!(with_flags(1).dying);
        assert_eq!(with_flags(1 << 2).shutdown, Some(ShutdownReason::Poweroff));
        assert_eq!(with_flags(1 << 2 | 1 << 16).shutdown, Some(ShutdownReason::Reboot));
        assert_eq!(with_flags(1 << 2 | 3 << 16).shutdown, Some(ShutdownReason::Crash));
        assert_eq!(with_flags(1 << 2 | 4 << 16).shutdown, Some(ShutdownReason::Watchdog));
        assert_eq!(with_flags(1 << 2 | 0xab << 16).shutdown, Some(ShutdownReason::Other(0xab)));
    }

    #[test]
    fn pages_and_vcpu_numbers_become_amounts() {
        let info = xc_domaininfo_t { tot_pages: 24576, max_vcpu_id: 1, ..xc_domaininfo_t::default() };
        assert_eq!((account(&info).memory_kib, account(&info).vcpus), (98304, 2));
        let empty = xc_domaininfo_t { max_vcpu_id: u32::MAX, ..xc_domaininfo_t::default() };
        assert_eq!(account(&empty).vcpus, 0);
    }

    #[test]
    fn the_capabilities_of_a_host_are_named_and_sorted() {
        let info = xc_physinfo_t { capabilities: 0b1011, ..xc_physinfo_t::default() };
        assert_eq!(host_account(&info).capabilities, ["hap", "hvm", "pv"]);
    }
}
