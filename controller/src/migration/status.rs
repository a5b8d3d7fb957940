//! What is said of a migration.

use super::observe::host_of;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kubexen_crds::{
    BootType, Domain, DomainMigrationStatus, MigrationPhase, VirtualMachineMigration,
    VirtualMachineMigrationStatus,
    condition::{self, State, Wanted},
};

/// Why a move did not come about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cause {
    /// It was called off.
    Cancelled,
    /// There is no such machine.
    MachineNotFound(String),
    /// The machine does not run.
    NotRunning(&'static str),
    /// There is no such host.
    HostNotFound(String),
    /// The guest is on that host.
    AlreadyThere(String),
    /// Guests of this boot type cannot leave the host while they run.
    SourceCannotSend(String, BootType),
    /// The host has no address on the network that the Pool names for migrations.
    NotOnNetwork {
        /// The host.
        host: String,
        /// The network.
        network: String,
    },
    /// No host fits.
    NoHostFits(String),
    /// What the machine refers to is not there.
    Unresolved(&'static str, String),
    /// The destination did not make ready in time.
    NotPrepared {
        /// The host.
        host: String,
        /// What its agent said last.
        said: Option<String>,
    },
    /// The destination's agent takes part in no migrations any more.
    DestinationDoesNotListen(String),
    /// The Domain on the destination was deleted by somebody else.
    DestinationGone,
    /// The machine's own Domain is gone.
    GuestGone,
    /// Neither host has the guest.
    GuestLost,
    /// An agent says why.
    Agent {
        /// The host.
        host: String,
        /// One word.
        reason: String,
        /// In words.
        message: String,
    },
}

impl Cause {
    /// What the agent of this Domain says; `otherwise` if it says nothing.
    pub(crate) fn of(domain: &Domain, otherwise: Self) -> Self {
        let Some(said) = told(domain) else { return otherwise };
        match (&said.reason, &said.message) {
            (Some(reason), Some(message)) if reason != "Cancelled" => Self::Agent {
                host: host_of(domain).to_owned(),
                reason: reason.clone(),
                message: message.clone(),
            },
            _ => otherwise,
        }
    }

    /// One word from a fixed set.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Cancelled => "Cancelled",
            Self::MachineNotFound(_) => "MachineNotFound",
            Self::NotRunning(_) => "NotRunning",
            Self::HostNotFound(_) => "HostNotFound",
            Self::AlreadyThere(_) => "AlreadyThere",
            Self::SourceCannotSend(..) => "NotMigratable",
            Self::NotOnNetwork { .. } => "NotOnMigrationNetwork",
            Self::NoHostFits(_) => "NoHostFits",
            Self::Unresolved(reason, _) => reason,
            Self::NotPrepared { .. } => "NotPrepared",
            Self::DestinationDoesNotListen(_) => "DestinationDoesNotListen",
            Self::DestinationGone => "DestinationGone",
            Self::GuestGone => "GuestGone",
            Self::GuestLost => "GuestLost",
            Self::Agent { .. } => "TransferFailed",
        }
    }

    /// What is so, and what to change.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Cancelled => "the move was called off; the guest runs where it was".to_owned(),
            Self::MachineNotFound(name) => format!("VirtualMachine {name} does not exist in this namespace"),
            Self::NotRunning(state) => {
                format!(
                    "the guest does not run ({state}): start it first; a machine that is off starts on any host that fits"
                )
            }
            Self::HostNotFound(host) => {
                format!("Host {host} does not exist: name another in a new migration")
            }
            Self::AlreadyThere(host) => format!("the guest is on host {host} already"),
            Self::SourceCannotSend(host, boot) => format!(
                "guests of boot type {boot:?} cannot leave host {host} while they run: its Xen cannot log their writes, its \
                 device models run without privileges, or its agent's configuration has no `migration`"
            ),
            Self::NotOnNetwork { host, network } => format!(
                "host {host} has no address on the migration network {network} that Pool default names: add \
                 `migration.networks.{network}` to its agent's configuration"
            ),
            Self::NoHostFits(why) => format!("no other host can take the guest: {why}"),
            Self::Unresolved(_, message) => message.clone(),
            Self::NotPrepared { host, said } => {
                let why = said.as_ref().map(|said| format!(": {said}")).unwrap_or_default();
                format!("host {host} did not make ready for the guest within 5 minutes{why}")
            }
            Self::DestinationDoesNotListen(host) => {
                format!(
                    "the agent of host {host} takes part in no migrations, or not on the network that Pool default \
                     names: see `migration` in its configuration"
                )
            }
            Self::DestinationGone => {
                "the Domain on the destination was deleted; the guest runs where it was".to_owned()
            }
            Self::GuestGone => "the machine was stopped or deleted during the move".to_owned(),
            Self::GuestLost => {
                "the pool's store was restored from a backup in the last moment of the move, and neither host has the guest: it \
                 is started anew"
                    .to_owned()
            }
            Self::Agent { host, reason, message } => {
                format!("host {host}: {message} ({reason}); the guest runs where it was")
            }
        }
    }
}

/// What is to be said of a migration, without what only its present status knows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report {
    phase: MigrationPhase,
    reason: &'static str,
    message: String,
    route: Option<Route>,
    record: Option<DomainMigrationStatus>,
}

/// Which guest goes from where to where, and since when.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Route {
    pub(crate) machine_uid: String,
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) since: Option<Time>,
}

impl Route {
    /// As the Domains show it.
    pub(crate) fn of(source: &Domain, destination: &Domain) -> Self {
        Self {
            machine_uid: source.spec.virtual_machine.uid.clone(),
            source: host_of(source).to_owned(),
            destination: host_of(destination).to_owned(),
            since: destination.metadata.creation_timestamp.clone(),
        }
    }
}

impl Report {
    fn new(phase: MigrationPhase, reason: &'static str, message: String) -> Self {
        Self { phase, reason, message, route: None, record: None }
    }

    /// It waits.
    pub(crate) fn waiting(reason: &'static str, message: String) -> Self {
        Self::new(MigrationPhase::Pending, reason, message)
    }

    /// The destination makes ready.
    pub(crate) fn preparing(route: Route) -> Self {
        let message = format!("host {} makes ready for the guest", route.destination);
        Self { route: Some(route), ..Self::new(MigrationPhase::Preparing, "Preparing", message) }
    }

    /// The guest's memory goes over.
    pub(crate) fn copying(route: Route) -> Self {
        let message = format!("the guest's memory goes to host {} while it runs", route.destination);
        Self { route: Some(route), ..Self::new(MigrationPhase::Copying, "Copying", message) }
    }

    /// The guest is at the destination.
    pub(crate) fn succeeded(source: Option<&Domain>, destination: &str) -> Self {
        let message = format!("the guest went over to host {destination}");
        Self {
            record: source.and_then(told).cloned(),
            ..Self::new(MigrationPhase::Succeeded, "Succeeded", message)
        }
    }

    /// It did not come about.
    pub(crate) fn ended(cause: &Cause) -> Self {
        let called_off = *cause == Cause::Cancelled;
        let phase = if called_off { MigrationPhase::Cancelled } else { MigrationPhase::Failed };
        Self::new(phase, cause.reason(), cause.message())
    }

    /// Whether it did not come about, and not because somebody called it off.
    pub(crate) fn is_failure(&self) -> bool {
        self.phase == MigrationPhase::Failed
    }

    fn conditions(&self) -> Vec<Wanted> {
        let (succeeded, going, stalled) = match self.phase {
            MigrationPhase::Pending | MigrationPhase::Preparing | MigrationPhase::Copying => {
                (State::Unknown, true, false)
            }
            MigrationPhase::Succeeded => (State::True, false, false),
            MigrationPhase::Failed => (State::False, false, true),
            MigrationPhase::Cancelled => (State::False, false, false),
        };
        let condition = |type_, state| Wanted::new(type_, state, self.reason, self.message.clone());
        let mut conditions = vec![condition("Succeeded", succeeded)];
        conditions.extend(going.then(|| condition("Reconciling", State::True)));
        conditions.extend(stalled.then(|| condition("Stalled", State::True)));
        conditions
    }

    /// One word for an event, and whether it is good news; none if it is no news.
    pub(crate) fn happening(&self) -> Option<(bool, &'static str, String)> {
        match self.phase {
            MigrationPhase::Pending | MigrationPhase::Preparing | MigrationPhase::Copying => None,
            MigrationPhase::Succeeded => Some((true, self.reason, self.message.clone())),
            MigrationPhase::Failed | MigrationPhase::Cancelled => {
                Some((false, self.reason, self.message.clone()))
            }
        }
    }
}

/// What the agent of a Domain said of the migration that the Domain takes part in now.
fn told(domain: &Domain) -> Option<&DomainMigrationStatus> {
    let wanted = domain.spec.migration.as_ref()?;
    domain.status.as_ref()?.migration.as_ref().filter(|said| said.uid == wanted.uid)
}

/// The status of a migration of which this is to be said. What is on record stays.
pub(crate) fn render(
    migration: &VirtualMachineMigration,
    report: &Report,
    now: Timestamp,
) -> VirtualMachineMigrationStatus {
    let mut status = migration.status.clone().unwrap_or_default();
    status.observed_generation = migration.metadata.generation;
    status.conditions =
        condition::set(&status.conditions, report.conditions(), migration.metadata.generation, now);
    if let Some(route) = &report.route {
        status.virtual_machine_uid = Some(route.machine_uid.clone());
        status.source = Some(route.source.clone());
        status.destination = Some(route.destination.clone());
        let since = route.since.clone().unwrap_or(Time(now));
        status.started_at.get_or_insert(since);
    }
    if let Some(DomainMigrationStatus { transfer, downtime_milliseconds, .. }) = &report.record {
        status.transfer = transfer.clone().or(status.transfer.take());
        status.downtime_milliseconds = downtime_milliseconds.or(status.downtime_milliseconds);
    }
    if report.phase.is_final() {
        status.finished_at.get_or_insert(Time(now));
    }
    status.phase = Some(report.phase);
    status
}
