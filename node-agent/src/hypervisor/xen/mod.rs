//! A real Xen, which this process must run beside as root in dom0.
//!
//! | what | through |
//! |---|---|
//! | build, take apart, HVM's unpause and power button | libxl, in [worker processes](worker) kept by a [`supervisor`] |
//! | CPU features of guests | libxenguest, in a worker too |
//! | vCPUs, weight and cap, memory, devices of a guest that runs | [libxl, xenstore, netlink](settings) |
//! | suspend, restore, resume | libxl, a worker for each [stream](transfer) |
//! | list, pause, unpause, memory, CPUs | the crate `xenctrl`, on [a thread of its own](accounting) |
//! | ownership token, shutdown request, events, what guests say | [`xenstore`] |
//! | output of guests | [`console`] ptys |
//! | Xen's watchdog | libxenctrl, on [a thread of its own](watchdog) |
//!
//! A domain's ownership token stands in xenstore at `/local/domain/<domid>/kubexen/token`, which only dom0 may write.
//! It is written after everything else, so a domain that has it is whole; a restored one has `kubexen/restored` until then. The nodes live and end with the domain,
//! whatever becomes of the agent.
//!
//! Needed in dom0: libxenlight and libxentoollog of the running Xen, `libxenctrl.so` under this very name (the crate
//! `xenctrl` loads it so; Debian has it in `libxen-dev`), xenstored, xenconsoled, Xen's hotplug scripts, and for HVM
//! guests the device model.
//!
//! An agent built with this module contains `xenctrl` and is therefore licensed under GPL-3.0-only as a whole.

pub mod accounting;
mod cds;
pub mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod console;
mod device_model;
mod ffi;
mod guest;
mod host;
mod lifecycle;
pub mod protocol;
mod rounds;
mod settings;
pub mod supervisor;
mod transfer;
pub mod watchdog;
pub mod worker;
pub mod xenstore;

use super::{
    Change, DomId, DomainConfig, DomainInfo, DomainUsage, GuestFacts, HostFacts, Hypervisor, HypervisorError,
    Incoming, OnProgress, Outgoing, Sent, Settings, SuspendMode,
};
use crate::boot_files::BootFiles;
use accounting::{Account, Accounting};
use async_trait::async_trait;
use config::BuildOptions;
use console::Consoles;
use kubexen_crds::FeatureSets;
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use supervisor::{Supervisor, WorkerCommand};
use tokio::{
    sync::{OnceCell, oneshot, watch},
    task::{JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use xenstore::{StoreError, XenStore};

/// Time limit of a request to xenstore.
const STORE_LIMIT: Duration = Duration::from_secs(10);

/// What the hypervisor is reached by.
#[derive(Clone, Debug)]
pub struct XenOptions {
    /// Folder of the agent's state; consoles are kept in `console` below it.
    pub state: PathBuf,
    /// How a libxl worker is started.
    pub worker: WorkerCommand,
    /// How domains are built.
    pub build: BuildOptions,
    /// Socket of xenstored.
    pub xenstore: PathBuf,
}

impl XenOptions {
    /// The usual ways: workers are this very program, xenstored listens where Xen's own tools expect it.
    ///
    /// # Errors
    /// When the path of this program cannot be found.
    pub fn new(state: PathBuf) -> io::Result<Self> {
        let worker =
            WorkerCommand { program: std::env::current_exe()?, arguments: vec![protocol::SUBCOMMAND.into()] };
        Ok(Self { state, worker, build: BuildOptions::default(), xenstore: xenstore::SOCKET.into() })
    }
}

/// The Xen that this dom0 belongs to.
///
/// Building a domain and taking one apart go on when their caller stops waiting, and [`XenHypervisor::finish`] waits
/// for them; dropping the hypervisor kills what is in progress.
#[derive(Debug)]
pub struct XenHypervisor {
    inner: Arc<Inner>,
    facts: OnceCell<HostFacts>,
    /// Watches xenstore and follows consoles, until the drop.
    _background: JoinSet<()>,
    /// Domains being built, taken apart or copied.
    calls: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Inner {
    accounting: Accounting,
    store: Arc<XenStore>,
    supervisor: Supervisor,
    consoles: Arc<Consoles>,
    build: BuildOptions,
    feature_sets: OnceCell<FeatureSets>,
    changes: watch::Sender<u64>,
    /// One lane for each UUID that something is being done to.
    lanes: Mutex<BTreeMap<Uuid, Weak<Lane>>>,
}

/// What is done to one domain goes one after the other.
#[derive(Debug, Default)]
struct Lane {
    turn: tokio::sync::Mutex<()>,
    /// Held by whoever takes the domain apart out of its turn.
    end: Arc<tokio::sync::Mutex<()>>,
    /// Breaks off the suspends and restores that began or were asked for since it was broken last.
    stop: Mutex<CancellationToken>,
}

impl Lane {
    fn stop(&self) -> MutexGuard<'_, CancellationToken> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn break_off(&self) {
        std::mem::take(&mut *self.stop()).cancel();
    }
}

impl XenHypervisor {
    /// Starts with the usual options, and with device models without privileges where this host has a user for them; see
    /// [`XenHypervisor::start`].
    ///
    /// # Errors
    /// As [`XenHypervisor::start`], and when the path of this program cannot be found.
    pub fn connect(state: &Path, boot_files: BootFiles) -> Result<Self, HypervisorError> {
        let mut options = XenOptions::new(state.to_owned())
            .map_err(|error| HypervisorError::Unreachable(format!("the path of this program: {error}")))?;
        options.build.boot_files = boot_files;
        options.build.device_model_user = device_model::user(Path::new(device_model::USERS));
        match options.build.device_model_user {
            Some(user) => tracing::info!(
                user,
                "device models of HVM guests run without privileges, so these guests do not move while they run"
            ),
            None => tracing::info!(
                "device models of HVM guests run as root: there is no user {}",
                device_model::USER
            ),
        }
        Self::start(options)
    }

    /// Starts what runs beside the calls. Xen itself is reached by the first call, so this also succeeds where there
    /// is none.
    ///
    /// # Errors
    /// `Unreachable` when the state folder cannot be written or the system gives no thread.
    pub fn start(options: XenOptions) -> Result<Self, HypervisorError> {
        let XenOptions { state, worker, build, xenstore } = options;
        let accounting = Accounting::start()?;
        let store = Arc::new(XenStore::new(xenstore.clone(), STORE_LIMIT));
        let folder = state.join("console");
        let consoles = Consoles::new(folder.clone(), Arc::clone(&store), accounting.clone())
            .map_err(|error| HypervisorError::Unreachable(format!("{}: {error}", folder.display())))?;
        let consoles = Arc::new(consoles);
        let changes = watch::Sender::new(0);
        let mut background = JoinSet::new();
        let counter = changes.clone();
        background.spawn(async move {
            xenstore::watch_for_ever(xenstore, &["@introduceDomain", "@releaseDomain"], counter).await;
        });
        let followed = Arc::clone(&consoles);
        background.spawn(async move { followed.follow().await });
        let inner = Inner {
            accounting,
            store,
            supervisor: Supervisor::new(worker),
            consoles,
            build,
            feature_sets: OnceCell::new(),
            changes,
            lanes: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
            facts: OnceCell::new(),
            _background: background,
            calls: Mutex::default(),
        })
    }

    /// Does something to a domain, after whatever is being done to the same one, and to its end even if the caller
    /// stops waiting.
    async fn exclusively<T, F>(
        &self,
        uuid: Uuid,
        work: impl FnOnce(Arc<Inner>) -> F + Send + 'static,
    ) -> Result<T, HypervisorError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, HypervisorError>> + Send,
    {
        let (inner, lane) = (Arc::clone(&self.inner), self.inner.lane(uuid));
        self.to_its_end(async move {
            let _held = lane.turn.lock().await;
            work(inner).await
        })
        .await
    }

    /// Does something to its end, even if the caller stops waiting. What is begun first comes first where it has to wait.
    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, HypervisorError>> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            while calls.try_join_next().is_some() {}
            calls.spawn(async move {
                // The caller may have stopped waiting.
                let _ = sender.send(work.await);
            });
        }
        receiver.await.map_err(|_| HypervisorError::Unreachable("the agent is stopping".into()))?
    }

    /// Suspends or restores a domain, after whatever is being done to the same one. It is broken off when somebody asks
    /// for that, and when the caller stops waiting: nobody would have use for the stream.
    async fn copying<T, F>(
        &self,
        uuid: Uuid,
        work: impl FnOnce(Arc<Inner>, CancellationToken) -> F + Send + 'static,
    ) -> Result<T, HypervisorError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, HypervisorError>> + Send,
    {
        // The lane is kept, so that whoever breaks it off finds this one.
        let lane = self.inner.lane(uuid);
        let stop = lane.stop().child_token();
        let _abandoned = stop.clone().drop_guard();
        self.exclusively(uuid, |inner| work(inner, stop)).await
    }
}

impl Inner {
    fn lane(&self, uuid: Uuid) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.retain(|_, lane| lane.strong_count() > 0);
        if let Some(lane) = lanes.get(&uuid).and_then(Weak::upgrade) {
            return lane;
        }
        let lane = Arc::default();
        lanes.insert(uuid, Arc::downgrade(&lane));
        lane
    }

    fn bump(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

#[async_trait]
impl Hypervisor for XenHypervisor {
    async fn facts(&self) -> Result<HostFacts, HypervisorError> {
        let gather = async || {
            let read = |path: &'static str| {
                let unreadable = move |error| HypervisorError::Unreachable(format!("{path}: {error}"));
                std::fs::read_to_string(path).map_err(unreadable)
            };
            let account = self.inner.accounting.host().await?;
            let version = self.inner.version().await?;
            let feature_sets = self.inner.feature_sets().await?;
            let build = &self.inner.build;
            Ok(host::facts(
                &account,
                feature_sets,
                build,
                &version,
                &read(host::BOOT_ID)?,
                &read(host::CPUINFO)?,
            ))
        };
        self.facts.get_or_try_init(gather).await.cloned()
    }

    async fn free_memory_kib(&self) -> Result<u64, HypervisorError> {
        Ok(self.inner.accounting.host().await?.memory_free_kib)
    }

    async fn domains(&self) -> Result<Vec<DomainInfo>, HypervisorError> {
        let accounts = self.inner.accounting.domains().await?;
        let mut domains = Vec::with_capacity(accounts.len());
        for account in &accounts {
            domains.push(self.inner.info(account).await?);
        }
        Ok(domains)
    }

    async fn find(&self, uuid: Uuid) -> Result<Option<DomainInfo>, HypervisorError> {
        match self.inner.accounting.find(uuid).await? {
            Some(account) => self.inner.info(&account).await.map(Some),
            None => Ok(None),
        }
    }

    async fn usage(&self) -> Result<Vec<DomainUsage>, HypervisorError> {
        Ok(self.inner.accounting.domains().await?.iter().map(Account::usage).collect())
    }

    async fn guest(&self, uuid: Uuid) -> Result<GuestFacts, HypervisorError> {
        let domid = async || {
            let account = self.inner.accounting.find(uuid).await?;
            account.map(|account| account.domid).ok_or(HypervisorError::NoSuchDomain(uuid))
        };
        let before = domid().await?;
        let facts = guest::read(&self.inner.store, &home(before)).await?;
        // The number may have gone to another domain meanwhile.
        if domid().await? == before { Ok(facts) } else { Err(HypervisorError::NoSuchDomain(uuid)) }
    }

    async fn create(&self, config: &DomainConfig) -> Result<DomId, HypervisorError> {
        let config = config.clone();
        self.exclusively(config.uuid, |inner| async move { inner.create(&config).await }).await
    }

    async fn unpause(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.inner.unpause(uuid).await
    }

    async fn pause(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.inner.accounting.pause(uuid).await
    }

    async fn request_shutdown(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.inner.request_shutdown(uuid).await
    }

    async fn settings(&self, uuid: Uuid) -> Result<Settings, HypervisorError> {
        self.inner.settings(uuid).await
    }

    async fn change(&self, uuid: Uuid, change: &Change) -> Result<(), HypervisorError> {
        let change = change.clone();
        self.exclusively(uuid, move |inner| async move { inner.change(uuid, &change).await }).await
    }

    async fn suspend(
        &self,
        uuid: Uuid,
        mode: SuspendMode,
        stream: Outgoing,
        progress: OnProgress,
    ) -> Result<Sent, HypervisorError> {
        self.copying(uuid, move |inner, stop| async move {
            inner.suspend(uuid, mode, stream, progress, &stop).await
        })
        .await
    }

    async fn restore(&self, config: &DomainConfig, stream: Incoming) -> Result<DomId, HypervisorError> {
        let config = config.clone();
        self.copying(config.uuid, |inner, stop| async move { inner.restore(&config, stream, &stop).await })
            .await
    }

    async fn claim(&self, uuid: Uuid, token: u64) -> Result<(), HypervisorError> {
        self.exclusively(uuid, move |inner| async move { inner.claim(uuid, token).await }).await
    }

    async fn resume(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.exclusively(uuid, move |inner| async move { inner.resume(uuid).await }).await
    }

    async fn abort(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        let lane = self.inner.lane(uuid);
        lane.break_off();
        let _ended = lane.turn.lock().await;
        Ok(())
    }

    async fn destroy(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        self.inner.lane(uuid).break_off();
        self.exclusively(uuid, move |inner| async move { inner.destroy(uuid).await }).await
    }

    async fn destroy_at_once(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        let lane = self.inner.lane(uuid);
        lane.break_off();
        let Ok(held) = Arc::clone(&lane.end).try_lock_owned() else {
            // It is being done, and goes on if the caller stops waiting.
            let _ended = lane.end.lock().await;
            return self.inner.destroy(uuid).await;
        };
        let inner = Arc::clone(&self.inner);
        self.to_its_end(async move {
            // Whoever asks again finds the same lane.
            let (_held, _lane) = (held, lane);
            inner.destroy(uuid).await
        })
        .await
    }

    async fn console(&self, uuid: Uuid) -> Result<Vec<u8>, HypervisorError> {
        if self.inner.accounting.find(uuid).await?.is_none() {
            return Err(HypervisorError::NoSuchDomain(uuid));
        }
        let log = self.inner.consoles.log(uuid);
        let read = spawn_blocking(move || log.read()).await.map_err(io::Error::other).flatten();
        read.map_err(|error| HypervisorError::Unreachable(format!("the console's files: {error}")))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    async fn finish(&self) {
        loop {
            let mut calls = std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner));
            if calls.is_empty() {
                return;
            }
            while calls.join_next().await.is_some() {}
        }
    }
}

/// Where xenstore keeps what concerns a domain.
fn home(domid: u16) -> String {
    format!("/local/domain/{domid}")
}

/// The node that holds the ownership token and says that the domain is whole.
fn token_path(domid: u16) -> String {
    format!("{}/kubexen/token", home(domid))
}

/// The node that says that the domain was restored and waits for its token.
fn restored_path(domid: u16) -> String {
    format!("{}/kubexen/restored", home(domid))
}

/// The node that holds the mode in which the domain was built.
fn mode_path(domid: u16) -> String {
    format!("{}/kubexen/mode", home(domid))
}

impl From<StoreError> for HypervisorError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TimedOut(limit) => Self::TimedOut { call: "xenstore", limit },
            StoreError::Connection(_) => Self::Unreachable(format!("{:#}", anyhow::Error::from(error))),
            StoreError::Refused(name) => Self::Refused { call: "xenstore", detail: name },
        }
    }
}
