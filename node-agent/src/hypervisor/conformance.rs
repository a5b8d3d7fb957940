//! The one suite that every [`Hypervisor`] passes, so that what is proven on the model holds on a real Xen.
//!
//! It speaks to the implementation through the trait alone. What it needs beside that is a guest whose behaviour can
//! be asked for. Both the lab's Linux guest and the model understand the same words on the kernel command line:
//!
//! | word | the guest |
//! |---|---|
//! | none | runs until it is asked to power off, and then does; writes to its console when it has started, and
//! `FLAGS a b c .` for the features of its CPU |
//! | `kubexen.count` | writes `TICK n` to its console every second, n from 0 on |
//! | `kubexen.agent` | says of itself what an agent in a guest does, with the address of `kubexen.address=10.88.0.5/24` |
//! | `kubexen.babble` | writes nonsense where an agent would write, again and again |
//! | `kubexen.exit=poweroff` | powers itself off |
//! | `kubexen.exit=reboot` | reboots |
//! | `kubexen.exit=crash` | crashes |
//! | `kubexen.exit-after=N` | does so N seconds after its start |
//!
//! Waiting is done on conditions by tokio's clock, so the suite also runs in virtual time.

mod cases;
mod changes;
mod insights;
mod streams;

use super::{BootType, DiskConfig, DomainConfig, DomainInfo, Hypervisor, HypervisorError, InterfaceConfig};
use super::{DomainState, KernelImage, Scheduling};
use futures::future::BoxFuture;
use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use uuid::Uuid;

/// What the suite runs on.
#[derive(Debug)]
pub struct Bench {
    /// The implementation under test.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// What its guests are made of.
    pub guests: Guests,
    /// How long a condition may take to come true.
    pub patience: Duration,
    /// UUIDs that the running case made up, so that whatever it leaves behind is removed.
    made: Mutex<Vec<Uuid>>,
}

/// What guests are made of on the host under test. Cases that need a part which is not there are skipped.
#[derive(Clone, Debug)]
pub struct Guests {
    /// Kernel of PVH guests; the suite adds its words to the command line.
    pub kernel: KernelImage,
    /// Kernel of HVM guests, if they can be started.
    pub hvm_kernel: Option<KernelImage>,
    /// Whether PV guests can be started from `kernel`.
    pub pv: bool,
    /// Memory of each guest, in KiB.
    pub memory_kib: u64,
    /// A block device whose content may be lost.
    pub disk: Option<PathBuf>,
    /// A bridge to plug an interface into.
    pub bridge: Option<String>,
    /// A folder, made if it is not there, that has room for a guest's memory.
    pub folder: PathBuf,
    /// Whether a kernel file that does not exist is noticed.
    pub checks_kernel_file: bool,
}

/// One thing that must hold of every hypervisor.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name, a sentence.
    pub name: &'static str,
    run: for<'a> fn(&'a Bench) -> BoxFuture<'a, Verdict>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It was not tried, and why.
    Skipped(&'static str),
    /// It does not hold; the text says what was seen.
    Failed(String),
}

/// A case with its outcome.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The case's name.
    pub name: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took, cleaning up included.
    pub took: Duration,
}

/// Why a case stopped before its end.
enum Stop {
    Skip(&'static str),
    Fail(String),
}

type Verdict = Result<(), Stop>;

impl From<HypervisorError> for Stop {
    fn from(error: HypervisorError) -> Self {
        Self::Fail(format!("unexpected error {}: {error}", error.category()))
    }
}

/// Every case, in the order in which they run.
pub fn cases() -> impl Iterator<Item = &'static Case> {
    basic_cases().chain(changes::CASES).chain(insights::CASES).chain(streams::CASES)
}

/// The cases of building, running and taking apart: those that suspend, change or question a running guest are left out.
pub fn basic_cases() -> impl Iterator<Item = &'static Case> {
    cases::CASES.iter()
}

impl Bench {
    /// A bench that waits for `patience` at most on each condition.
    #[must_use]
    pub fn new(hypervisor: Arc<dyn Hypervisor>, guests: Guests, patience: Duration) -> Self {
        Self { hypervisor, guests, patience, made: Mutex::default() }
    }

    /// Runs one case, then destroys every domain that it left, which must succeed.
    pub async fn run(&self, case: &Case) -> Finding {
        let start = Instant::now();
        let verdict = (case.run)(self).await;
        let left = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        let mut outcome = match verdict {
            Ok(()) => Outcome::Passed,
            Err(Stop::Skip(reason)) => Outcome::Skipped(reason),
            Err(Stop::Fail(reason)) => Outcome::Failed(reason),
        };
        for uuid in left {
            if let Err(error) = self.hypervisor.destroy(uuid).await
                && outcome == Outcome::Passed
            {
                outcome = Outcome::Failed(format!("cleaning up failed: {error}"));
            }
        }
        Finding { name: case.name, outcome, took: start.elapsed() }
    }

    /// Runs every case whose name contains `filter`, telling each finding to `told` as soon as it is there.
    pub async fn run_all(
        &self,
        chosen: impl IntoIterator<Item = &'static Case>,
        mut told: impl FnMut(&Finding),
    ) -> Vec<Finding> {
        let mut findings = Vec::new();
        for case in chosen {
            let finding = self.run(case).await;
            told(&finding);
            findings.push(finding);
        }
        findings
    }

    /// A PVH guest with a UUID of its own, and `words` on its command line.
    fn guest(&self, words: &str) -> DomainConfig {
        let uuid = Uuid::new_v4();
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(uuid);
        let mut kernel = self.guests.kernel.clone();
        kernel.command_line = format!("{} {words}", kernel.command_line).trim().to_owned();
        DomainConfig {
            uuid,
            token: 7,
            boot: BootType::Pvh,
            cpu_level: None,
            firmware: None,
            kernel: Some(kernel),
            vcpus: 1,
            max_vcpus: 1,
            scheduling: Scheduling::default(),
            memory_kib: self.guests.memory_kib,
            max_memory_kib: self.guests.memory_kib,
            disks: Vec::new(),
            cds: Vec::new(),
            cds_first: false,
            interfaces: Vec::new(),
        }
    }

    /// Creates and unpauses a guest.
    async fn start(&self, config: &DomainConfig) -> Verdict {
        self.hypervisor.create(config).await?;
        Ok(self.hypervisor.unpause(config.uuid).await?)
    }

    /// The domain with this UUID, which must be there.
    async fn seen(&self, uuid: Uuid) -> Result<DomainInfo, Stop> {
        self.hypervisor.find(uuid).await?.ok_or_else(|| Stop::Fail(format!("no domain has the UUID {uuid}")))
    }

    /// Waits until the domain is in this state. A guest that stopped in another way does not come to it any more, and what
    /// it wrote last tells why.
    async fn reaches(&self, uuid: Uuid, state: DomainState) -> Verdict {
        let mut last = None;
        let deadline = Instant::now() + self.patience;
        while Instant::now() < deadline {
            last = self.hypervisor.find(uuid).await?.map(|info| info.state);
            if last == Some(state) {
                return Ok(());
            }
            if let Some(DomainState::Shutdown(reason)) = last {
                let said = self.hypervisor.console(uuid).await?;
                let end = String::from_utf8_lossy(&said[said.len().saturating_sub(CONSOLE_SHOWN)..]);
                return Err(Stop::Fail(format!(
                    "{uuid} did not reach {state:?}: it stopped with {reason:?} and wrote {end:?}"
                )));
            }
            tokio::time::sleep(POLL).await;
        }
        Err(Stop::Fail(format!("{uuid} did not reach {state:?} within {:?}: it is {last:?}", self.patience)))
    }

    /// Waits until the guest has written to its console, and returns what it wrote.
    async fn speaks(&self, uuid: Uuid) -> Result<Vec<u8>, Stop> {
        let deadline = Instant::now() + self.patience;
        while Instant::now() < deadline {
            let text = self.hypervisor.console(uuid).await?;
            if !text.is_empty() {
                return Ok(text);
            }
            tokio::time::sleep(POLL).await;
        }
        Err(Stop::Fail(format!("{uuid} wrote nothing to its console within {:?}", self.patience)))
    }
}

/// How much of the end of a console is shown, in bytes.
const CONSOLE_SHOWN: usize = 400;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(100);

impl Guests {
    /// The disk and the interface that the host offers, as a guest's first ones.
    fn devices(&self) -> (Vec<DiskConfig>, Vec<InterfaceConfig>) {
        let disk =
            |device: &PathBuf| DiskConfig { device: device.clone(), target: "xvda".into(), read_only: false };
        let interface = |bridge: &String| InterfaceConfig {
            bridge: bridge.clone(),
            mac: "00:16:3e:00:c0:01".into(),
            index: 0,
            rate_limit: None,
        };
        (self.disk.iter().map(disk).collect(), self.bridge.iter().map(interface).collect())
    }
}
