//! How a domain is built and taken apart, and what can be said of one in between.
//!
//! Building has three steps that a crash may come between: libxl builds the domain, the mode is written, the token
//! is written. A domain with a token is whole. One that was restored is [a special case](super::transfer). Taking apart is libxl's, which removes the domain's xenstore nodes
//! before the domain itself, so what is left of an interrupted end looks like an interrupted beginning, and is
//! treated so.

use super::{
    Inner,
    accounting::{Account, ShutdownReason},
    config::libxl_config,
    device_model, home, mode_path,
    protocol::{Outcome, Request, Target},
    restored_path,
    supervisor::{Answer, CallError},
    token_path,
};
use crate::hypervisor::{DomId, DomainConfig, DomainInfo, DomainState, HypervisorError, hidden_features};
use kubexen_crds::{BootType, FeatureSets, domain::StopReason};
use serde_json::Value;
use std::{io, path::Path, time::Duration};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};
use uuid::Uuid;

/// Time limits. Building reads kernels from disk and runs hotplug scripts, each of which libxl gives 40 s.
const CREATE: Duration = Duration::from_secs(120);
const DESTROY: Duration = Duration::from_secs(90);
pub(super) const SHORT: Duration = Duration::from_secs(15);
/// Time between two looks at a domain that Xen takes apart, and between two requests to take it apart.
const POLL: Duration = Duration::from_millis(50);
const ASK_AGAIN: Duration = Duration::from_secs(5);

impl Inner {
    /// Builds a domain; see [`Hypervisor::create`](crate::hypervisor::Hypervisor::create).
    pub(super) async fn create(&self, config: &DomainConfig) -> Result<DomId, HypervisorError> {
        self.make_room(config.uuid).await?;
        let built = self.build(config).await;
        self.leave_nothing(config.uuid, built).await
    }

    /// Makes sure that no domain has this UUID, and removes what an earlier one wrote, if it vanished without our doing.
    pub(super) async fn make_room(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        if self.accounting.find(uuid).await?.is_some() {
            return Err(HypervisorError::AlreadyExists(uuid));
        }
        self.remove_files(uuid).await.map_err(|error| files(&error))
    }

    /// Removes what is left of a domain whose building failed.
    pub(super) async fn leave_nothing(
        &self,
        uuid: Uuid,
        mut built: Result<DomId, HypervisorError>,
    ) -> Result<DomId, HypervisorError> {
        match &mut built {
            Err(HypervisorError::Refused { detail, .. }) => {
                // libxl knows that a device model failed, but only the device model knows why.
                if let Some(words) = device_model::last_words(Path::new(device_model::FOLDER), uuid) {
                    detail.push_str("; device model: ");
                    detail.push_str(&words);
                }
                self.destroy(uuid).await?;
            }
            Err(HypervisorError::OutOfMemory(_) | HypervisorError::StreamBroken { .. }) => {
                self.destroy(uuid).await?;
            }
            // After other errors the domain stays as it is, for the caller to look at.
            Ok(_) | Err(_) => {}
        }
        self.bump();
        built
    }

    async fn build(&self, config: &DomainConfig) -> Result<DomId, HypervisorError> {
        let hidden = hidden_features("create", self.feature_sets().await?, config)?;
        let request = Request::Create(libxl_config(config, &hidden, &self.build));
        let domid = match self.libxl(request, CREATE).await? {
            Outcome::Created(domid) => domid,
            other => return Err(unexpected(&other)),
        };
        self.withhold_vcpus(domid, config.vcpus, config.max_vcpus).await?;
        self.store.write(&mode_path(domid), mode_name(config.boot).as_bytes()).await?;
        self.store.write(&token_path(domid), config.token.to_string().as_bytes()).await?;
        self.read_console(config.uuid).await?;
        Ok(DomId(domid))
    }

    /// Begins to read a console before the guest runs; if that fails, the next round tries again.
    pub(super) async fn read_console(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        if let Some(account) = self.accounting.find(uuid).await?
            && let Err(error) = self.consoles.attach(&account).await
        {
            tracing::warn!(%uuid, "reading the console: {error}");
        }
        Ok(())
    }

    /// Takes a domain apart; see [`Hypervisor::destroy`](crate::hypervisor::Hypervisor::destroy).
    pub(super) async fn destroy(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        let deadline = Instant::now() + DESTROY;
        let mut asked: Option<Instant> = None;
        let mut domid = None;
        while let Some(account) = self.accounting.find(uuid).await? {
            if Instant::now() >= deadline {
                return Err(HypervisorError::TimedOut { call: "libxl_domain_destroy", limit: DESTROY });
            }
            domid = Some(account.domid);
            // Xen keeps a dying domain until others have given back its pages. Asking again finishes an end that
            // was interrupted, but need not be done all the time.
            if asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN) {
                sleep(POLL).await;
                continue;
            }
            match self.libxl(Request::Destroy(Target { domid: account.domid, uuid }), DESTROY).await {
                Ok(Outcome::Done) | Err(HypervisorError::NoSuchDomain(_)) => asked = Some(Instant::now()),
                Ok(other) => return Err(unexpected(&other)),
                Err(error) => return Err(error),
            }
        }
        // libxl's node of the virtual machine is the only one that is named by its UUID and may be left behind by
        // a domain that vanished.
        self.store.remove(&format!("/vm/{uuid}")).await?;
        self.remove_files(uuid).await.map_err(|error| files(&error))?;
        if let Some(domid) = domid {
            device_model::remove_root(Path::new(device_model::ROOTS), domid)
                .map_err(|error| files(&error))?;
        }
        self.bump();
        Ok(())
    }

    /// Removes what the domain's console and device model wrote.
    async fn remove_files(&self, uuid: Uuid) -> io::Result<()> {
        self.consoles.forget(uuid).await?;
        spawn_blocking(move || device_model::remove_logs(Path::new(device_model::FOLDER), uuid)).await?
    }

    /// Lets a domain run. The device model of an HVM guest has to be told as well, which libxl does.
    pub(super) async fn unpause(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        let account = self.accounting.find(uuid).await?.ok_or(HypervisorError::NoSuchDomain(uuid))?;
        if !account.paused {
            return Ok(());
        }
        if self.info(&account).await?.state == DomainState::Restored {
            let detail = "the restored domain was not claimed".to_owned();
            return Err(HypervisorError::Refused { call: "unpause", detail });
        }
        if self.mode(account.domid).await? != Some(BootType::Hvm) {
            return self.accounting.unpause(uuid).await;
        }
        let target = Target { domid: account.domid, uuid };
        self.libxl(Request::Unpause(target), SHORT).await.map(|_| ())
    }

    /// Asks a guest to power itself off through xenstore, which PV drivers listen to, and an HVM guest whose drivers
    /// did not say that they do by its power button as well. libxl's own call would wait a minute for an answer
    /// that may never come.
    pub(super) async fn request_shutdown(&self, uuid: Uuid) -> Result<(), HypervisorError> {
        let account = self.accounting.find(uuid).await?.ok_or(HypervisorError::NoSuchDomain(uuid))?;
        let home = home(account.domid);
        self.store.write(&format!("{home}/control/shutdown"), b"poweroff").await?;
        if self.mode(account.domid).await? != Some(BootType::Hvm) {
            return Ok(());
        }
        let listens = self.store.read_text(&format!("{home}/control/feature-poweroff")).await?;
        if listens.as_deref() == Some("1") {
            return Ok(());
        }
        let target = Target { domid: account.domid, uuid };
        self.libxl(Request::PowerButton(target), SHORT).await.map(|_| ())
    }

    /// What there is to say of a domain.
    pub(super) async fn info(&self, account: &Account) -> Result<DomainInfo, HypervisorError> {
        let marks = self.marks(account.domid).await?;
        Ok(DomainInfo {
            uuid: account.uuid,
            domid: DomId(account.domid),
            state: state(account, marks),
            token: match marks {
                Marks::Token(token) => Some(token),
                Marks::Restored(_) | Marks::Home | Marks::Nothing => None,
            },
            sent_under: match marks {
                Marks::Restored(token) => token,
                Marks::Token(_) | Marks::Home | Marks::Nothing => None,
            },
            memory_kib: account.memory_kib,
            vcpus: account.vcpus,
        })
    }

    async fn marks(&self, domid: u16) -> Result<Marks, HypervisorError> {
        let token = self.store.read_text(&token_path(domid)).await?.and_then(|text| text.parse().ok());
        if let Some(token) = token {
            return Ok(Marks::Token(token));
        }
        if let Some(sent_under) = self.store.read_text(&restored_path(domid)).await? {
            return Ok(Marks::Restored(sent_under.parse().ok()));
        }
        let name = self.store.read(&format!("{}/name", home(domid))).await?;
        Ok(name.map_or(Marks::Nothing, |_| Marks::Home))
    }

    async fn mode(&self, domid: u16) -> Result<Option<BootType>, HypervisorError> {
        let name = self.store.read_text(&mode_path(domid)).await?;
        let modes = [BootType::Pvh, BootType::Hvm, BootType::Pv];
        Ok(modes.into_iter().find(|mode| name.as_deref() == Some(mode_name(*mode))))
    }

    /// The CPU features that Xen gives to guests, which stay as they are until the next boot.
    pub(super) async fn feature_sets(&self) -> Result<&FeatureSets, HypervisorError> {
        let ask = async || match self.libxl(Request::FeatureSets, SHORT).await? {
            Outcome::FeatureSets(sets) => Ok(sets),
            other => Err(unexpected(&other)),
        };
        self.feature_sets.get_or_try_init(ask).await
    }

    /// `libxl_version_info` in JSON.
    pub(super) async fn version(&self) -> Result<Value, HypervisorError> {
        match self.libxl(Request::Version, SHORT).await? {
            Outcome::Version { library, info } => {
                tracing::info!("libxl is {library}");
                Ok(info)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// One call of libxl, with its failures in the trait's terms.
    pub(super) async fn libxl(&self, request: Request, limit: Duration) -> Result<Outcome, HypervisorError> {
        let (call, target) = (request.call(), request.target());
        outcome(call, target, limit, self.supervisor.call(request, limit).await)
    }
}

/// What became of a call of libxl, with its failures in the trait's terms.
pub(super) fn outcome(
    call: &'static str,
    target: Option<Target>,
    limit: Duration,
    answer: Result<Answer, CallError>,
) -> Result<Outcome, HypervisorError> {
    let answer = answer.map_err(|error| match error {
        CallError::TimedOut => HypervisorError::TimedOut { call, limit },
        CallError::Broken(_) | CallError::NotStarted(_) => {
            HypervisorError::Unreachable(format!("{call}: {:#}", anyhow::Error::from(error)))
        }
    })?;
    match (answer.outcome, target) {
        (Outcome::Refused(code), _) => {
            Err(HypervisorError::Refused { call, detail: format!("error {code}: {}", answer.log) })
        }
        (Outcome::OutOfMemory { need_kib, free_kib }, _) => Err(HypervisorError::OutOfMemory(format!(
            "the domain needs {need_kib} KiB with its overhead, {free_kib} KiB are free"
        ))),
        (Outcome::NoSuchDomain, Some(target)) => Err(HypervisorError::NoSuchDomain(target.uuid)),
        (outcome, _) => Ok(outcome),
    }
}

/// What xenstore tells of how far a domain has come, the furthest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marks {
    /// Its token.
    Token(u64),
    /// It was restored, from what was sent under this token, and waits to be claimed.
    Restored(Option<u64>),
    /// Its nodes are there, and none of ours.
    Home,
    /// Nothing.
    Nothing,
}

/// The state of a domain.
///
/// A domain without a token was made by others, waits to be claimed, or its building or its end was interrupted. Those
/// of the last two kinds are paused, and have never run or have lost their nodes.
fn state(account: &Account, marks: Marks) -> DomainState {
    if account.dying {
        return DomainState::Dying;
    }
    if account.paused {
        match marks {
            Marks::Restored(_) => return DomainState::Restored,
            Marks::Home if !account.has_run() => return DomainState::HalfBuilt,
            Marks::Nothing => return DomainState::HalfBuilt,
            Marks::Token(_) | Marks::Home => {}
        }
    }
    match account.shutdown {
        Some(ShutdownReason::Suspend) => DomainState::Suspended,
        Some(ShutdownReason::Poweroff) => DomainState::Shutdown(StopReason::Poweroff),
        Some(ShutdownReason::Reboot) => DomainState::Shutdown(StopReason::Reboot),
        Some(
            ShutdownReason::Crash
            | ShutdownReason::Watchdog
            | ShutdownReason::SoftReset
            | ShutdownReason::Other(_),
        ) => DomainState::Shutdown(StopReason::Crash),
        None if account.paused => DomainState::Paused,
        None => DomainState::Running,
    }
}

pub(super) fn mode_name(boot: BootType) -> &'static str {
    match boot {
        BootType::Pvh => "PVH",
        BootType::Hvm => "HVM",
        BootType::Pv => "PV",
    }
}

pub(super) fn unexpected(outcome: &Outcome) -> HypervisorError {
    HypervisorError::Unreachable(format!("the libxl worker answered another question: {outcome:?}"))
}

fn files(error: &io::Error) -> HypervisorError {
    HypervisorError::Unreachable(format!("the files of a domain: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: Account = Account {
        domid: 3,
        uuid: Uuid::nil(),
        dying: false,
        paused: false,
        shutdown: None,
        cpu_time: Duration::from_secs(1),
        memory_kib: 98304,
        vcpus: 1,
        vcpus_online: 1,
    };
    const PAUSED: Account = Account { paused: true, ..RUNNING };
    const FRESH: Account = Account { cpu_time: Duration::ZERO, ..PAUSED };

    #[test]
    fn a_domain_with_a_token_is_never_half_built() {
        for (account, expected) in
            [(RUNNING, DomainState::Running), (PAUSED, DomainState::Paused), (FRESH, DomainState::Paused)]
        {
            assert_eq!(state(&account, Marks::Token(7)), expected);
        }
    }

    #[test]
    fn a_domain_of_others_that_runs_or_was_paused_is_not_taken_for_half_built() {
        assert_eq!(state(&RUNNING, Marks::Home), DomainState::Running);
        assert_eq!(state(&PAUSED, Marks::Home), DomainState::Paused);
        let stopped = Account { shutdown: Some(ShutdownReason::Poweroff), ..RUNNING };
        assert_eq!(state(&stopped, Marks::Home), DomainState::Shutdown(StopReason::Poweroff));
    }

    #[test]
    fn an_interrupted_beginning_and_an_interrupted_end_are_half_built() {
        assert_eq!(state(&FRESH, Marks::Home), DomainState::HalfBuilt);
        assert_eq!(state(&FRESH, Marks::Nothing), DomainState::HalfBuilt);
        assert_eq!(state(&PAUSED, Marks::Nothing), DomainState::HalfBuilt);
        let stopped = Account { shutdown: Some(ShutdownReason::Poweroff), ..PAUSED };
        assert_eq!(state(&stopped, Marks::Nothing), DomainState::HalfBuilt);
    }

    #[test]
    fn a_domain_that_was_restored_to_its_end_is_told_from_a_half_built_one_until_it_has_its_token() {
        assert_eq!(state(&FRESH, Marks::Restored(Some(7))), DomainState::Restored);
        assert_eq!(state(&FRESH, Marks::Token(7)), DomainState::Paused);
        assert_eq!(state(&Account { dying: true, ..FRESH }, Marks::Restored(None)), DomainState::Dying);
    }

    #[test]
    fn every_reason_to_stop_is_told() {
        for (reason, expected) in [
            (ShutdownReason::Poweroff, DomainState::Shutdown(StopReason::Poweroff)),
            (ShutdownReason::Reboot, DomainState::Shutdown(StopReason::Reboot)),
            (ShutdownReason::Suspend, DomainState::Suspended),
            (ShutdownReason::Crash, DomainState::Shutdown(StopReason::Crash)),
            (ShutdownReason::Watchdog, DomainState::Shutdown(StopReason::Crash)),
            (ShutdownReason::Other(9), DomainState::Shutdown(StopReason::Crash)),
        ] {
            assert_eq!(state(&Account { shutdown: Some(reason), ..RUNNING }, Marks::Token(7)), expected);
        }
        assert_eq!(state(&Account { dying: true, ..FRESH }, Marks::Nothing), DomainState::Dying);
    }
}
