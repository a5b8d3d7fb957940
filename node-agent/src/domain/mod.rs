//! Domains: makes Xen agree with the `Domain` objects of this host's namespace.
//!
//! ```text
//!   Domain object ─┐
//!   Xen, by UUID  ─┼─▶ observe ─▶ decide ─▶ Plan ─▶ apply ─┐
//!   volumes, … ────┘      ▲                                │ until Wait or Settled
//!                         └────────────────────────────────┘──▶ status (written once, if it differs)
//! ```
//!
//! Watches: Domains and Volumes of the namespace, changes that the hypervisor tells of. Writes: the status of a
//! Domain, and its finalizer when the domain is gone. A domain in Xen for which no Domain object stands is never
//! touched; see [`crate::host`], which reports it.
//!
//! Before a domain is destroyed its object is read from the API server, not from the mirror, and must be the same
//! object (uid). The ownership token is taken before a domain is built, and given back after it is confirmed gone.

pub mod apply;
mod cds;
mod cloud_init;
pub mod decide;
mod guard;
pub mod guests;
pub mod live;
mod live_steps;
mod move_steps;
pub mod moves;
pub mod observe;
pub mod reclaim;
pub(crate) mod resolve;
mod save_steps;
pub mod saves;
mod shutdowns;
pub mod status;
mod strays;
#[cfg(test)]
mod tests;

pub use guests::Guests;
pub(crate) use resolve::volume_id;
pub use shutdowns::Shutdowns;

use crate::{
    config::Catalogue,
    fence::{Fence, WatchdogError},
    hypervisor::{Hypervisor, HypervisorError},
    migration::{Failure, Sessions, World, link::MigrationNetwork},
    mirrors::Mirrors,
    network::{HostNetwork, NetworkError},
    storage::{Seeds, Storage, StorageError},
};
use decide::{Plan, Waiting, decide};
use guard::Aligned;
use jiff::SignedDuration;
use kube::{Api, Client, ResourceExt};
use kubexen_crds::{Domain, DomainStatus, MigrationRole, domain::DomainPhase};
use kubexen_ownership::{DiskUid, HostBoot, HostName, OwnershipStore, StoreError, VmUid};
use kubexen_runtime::{
    Clock, Key, Outcome,
    events::{Events, Severity},
    write::{self, WriteError},
};
use std::{sync::Arc, time::Duration};
use tracing::{info, warn};
use uuid::Uuid;

/// Field manager of the agent's writes.
pub const MANAGER: &str = "kubexen-node-agent";

/// Most steps in one reconcile. A start takes three, the longest restart seven, a change of all that a guest has one for
/// each; more means that the host changes under our hands, and a later look is better.
const MOST_STEPS: usize = 32;

/// How often a Domain is looked at while the pool's store is frozen, although the end of that is told.
const FROZEN_LOOK: Duration = Duration::from_secs(30);

/// How often a guest is looked at that another host has by its record.
const TAKEN_LOOK: Duration = Duration::from_secs(30);

/// A state that lasts shorter than this after a Domain was made is not worth a write.
const QUIET_AT_FIRST: SignedDuration = SignedDuration::from_secs(3);

/// What domains and volumes are reconciled with.
pub struct Domains {
    /// Connection with the agent's own credentials.
    pub client: Client,
    /// This host, at this boot.
    pub me: HostBoot,
    /// Xen.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Disks.
    pub storage: Arc<dyn Storage>,
    /// Disks that the agent writes.
    pub seeds: Arc<dyn Seeds>,
    /// Bridges.
    pub network: Arc<dyn HostNetwork>,
    /// Who may run what.
    pub ownership: Arc<dyn OwnershipStore>,
    /// Kernels.
    pub catalogue: Catalogue,
    /// The namespace's objects.
    pub mirrors: Mirrors,
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
    /// History for people.
    pub events: Events,
    /// Guests that were asked to power themselves off.
    pub shutdowns: Shutdowns,
    /// What guests said of themselves.
    pub guests: Guests,
    /// Held by whoever takes an ownership, or a disk, until the domain is there, or has it; and against all of them by whoever gives
    /// one back that no domain has.
    pub starts: tokio::sync::RwLock<()>,
    /// Other hosts' agents.
    pub migrations: Arc<dyn MigrationNetwork>,
    /// Guests that leave or come.
    pub sessions: Sessions,
    /// The promise to stop guarded guests in time.
    pub fence: Arc<Fence>,
}

/// Why a reconcile could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The storage.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The pool's store.
    #[error(transparent)]
    Ownership(#[from] StoreError),
    /// The API server.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Another host owns the virtual machine.
    #[error("Host {0} owns this virtual machine; it must be gone there before it can run here")]
    OwnedElsewhere(String),
    /// A guest stands still here and is somebody else's by its record.
    #[error(
        "The pool's store says that {owner} owns this guest, which stands still on {here}; it is not let run here: find out \
         which one is right, and delete the other one's domain by hand"
    )]
    Taken {
        /// The host that the record names, or nobody.
        owner: String,
        /// This host.
        here: String,
    },
    /// Another virtual machine has a disk that several hosts reach.
    #[error(
        "Volume {volume} belongs to the virtual machine with uid {holder}, which runs; a disk serves one running guest at a time"
    )]
    DiskTaken {
        /// The Volume.
        volume: String,
        /// The other virtual machine.
        holder: VmUid,
    },
    /// The data of a shared disk is being deleted.
    #[error("Volume {0} is being deleted")]
    DiskRetired(String),
    /// The guest is saved, or is being resumed by another host.
    #[error(
        "The guest is saved in the disk with uid {0}: it is resumed from there, or the disk is deleted first"
    )]
    Saved(DiskUid),
    /// Another host is resuming the guest that the volume holds.
    #[error("Host {0} is resuming the guest that is saved in this volume")]
    BeingResumed(HostName),
    /// The guest could not be saved or resumed.
    #[error("{}", .0.message)]
    Suspension(Failure),
    /// The pool's store is silent, or refuses this boot of the host.
    #[error("This host takes no guests: {0}")]
    Unheard(String),
    /// The host has no watchdog that could be set.
    #[error("The guest cannot be protected: {0}")]
    Watchdog(#[from] WatchdogError),
    /// The object changed under our hands.
    #[error("The Domain changed meanwhile")]
    Outdated,
    /// The object says something that this agent cannot read.
    #[error("The Domain cannot be carried out: {0}")]
    Malformed(String),
}

impl ReconcileError {
    /// A label from a fixed set, for metrics and conditions.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Hypervisor(error) => error.category(),
            Self::Storage(error) => error.category(),
            Self::Network(error) => error.category(),
            Self::Ownership(StoreError::Frozen) => "PoolStoreFrozen",
            Self::Ownership(_) => "PoolStoreUnavailable",
            Self::Write(_) => "ApiServer",
            Self::OwnedElsewhere(_) => "OwnedElsewhere",
            Self::Taken { .. } => "OwnershipViolated",
            Self::DiskTaken { .. } => "VolumeInUse",
            Self::DiskRetired(_) => "VolumeDeleting",
            Self::Saved(_) => "Suspended",
            Self::BeingResumed(_) => "BeingResumed",
            Self::Suspension(failure) => failure.reason,
            Self::Unheard(_) => "PoolStoreSilent",
            Self::Watchdog(_) => "NoWatchdog",
            Self::Outdated => "Outdated",
            Self::Malformed(_) => "Malformed",
        }
    }

    /// Whether a person reading the object should know. The rest is between the agent and the API server.
    fn is_worth_a_condition(&self) -> bool {
        match self {
            Self::Hypervisor(_)
            | Self::Storage(_)
            | Self::Network(_)
            | Self::Ownership(_)
            | Self::OwnedElsewhere(_)
            | Self::Taken { .. }
            | Self::DiskTaken { .. }
            | Self::DiskRetired(_)
            | Self::Saved(_)
            | Self::BeingResumed(_)
            | Self::Suspension(_)
            | Self::Unheard(_)
            | Self::Watchdog(_)
            | Self::Malformed(_) => true,
            Self::Write(_) | Self::Outdated => false,
        }
    }
}

impl Domains {
    /// Brings one Domain nearer to what it should be.
    pub async fn reconcile(&self, key: &Key) -> Outcome {
        let Some(domain) = self.mirrors.domains.get(key) else { return Outcome::Settled };
        match self.walk(&domain).await {
            Ok(outcome) => outcome,
            Err(error) => self.report(&domain, &error).await,
        }
    }

    async fn walk(&self, domain: &Domain) -> Result<Outcome, ReconcileError> {
        let uuid = Uuid::parse_str(&domain.spec.virtual_machine.uid)
            .map_err(|_| ReconcileError::Malformed("`virtualMachine.uid` is no UUID".to_owned()))?;
        let mut domain = domain.clone();
        let mut tried = live::Tried::default();
        for _ in 0..MOST_STEPS {
            if self.fence.frozen().is_some() {
                return self.hold_still(&domain);
            }
            let seen = observe::observe(self, &domain, uuid, &tried).await?;
            let mut plan = decide(&seen, self.clock.now());
            match &plan {
                Plan::Settled | Plan::Wait(..) => {
                    match self.align_guard(&domain, uuid, &seen).await? {
                        Aligned::AsItWas => {}
                        Aligned::Anew => continue,
                        Aligned::Taken(owner) => plan = Plan::Wait(Waiting::TakenBy(owner), TAKEN_LOOK),
                    }
                    let generation = domain.metadata.generation;
                    let status = status::settled(&seen, &plan, generation, self.clock.now());
                    return self.conclude(&domain, &plan, status).await;
                }
                // One change that fails keeps no other from being made.
                Plan::Change(step) => {
                    info!(domain = %domain.name_any(), ?step, "change");
                    match live_steps::apply(self, &domain, uuid, step).await {
                        Ok(()) => tried.done.push(step.clone()),
                        Err(error) => {
                            warn!(domain = %domain.name_any(), ?step, %error, "change failed");
                            let (reason, message) = (error.category(), error.to_string());
                            tried.failed.push(live::Failure { step: step.clone(), reason, message });
                        }
                    }
                }
                Plan::RecordStop { .. }
                | Plan::RecordRestart
                | Plan::Start
                | Plan::Unpause
                | Plan::Pause
                | Plan::RequestShutdown
                | Plan::Destroy(_)
                | Plan::DetachDisks
                | Plan::Move(_)
                | Plan::Save(_)
                | Plan::Finish => {
                    info!(domain = %domain.name_any(), ?plan, "step");
                    match apply::apply(self, &domain, uuid, &seen, &plan).await? {
                        apply::Applied::Unchanged => {}
                        apply::Applied::Changed(changed) => domain = *changed,
                        apply::Applied::Gone => return Ok(Outcome::Settled),
                    }
                }
            }
        }
        Ok(Outcome::Again(Duration::from_secs(1)))
    }

    /// Nothing is done while the pool's store is frozen. What waits to be started says so; of all else what was said stands.
    fn hold_still(&self, domain: &Domain) -> Result<Outcome, ReconcileError> {
        match domain.status.as_ref().and_then(|status| status.phase) {
            None | Some(DomainPhase::Pending | DomainPhase::Failed) => {
                Err(self.fence.may_work().err().unwrap_or_else(|| StoreError::Frozen.into()))
            }
            Some(
                DomainPhase::Running
                | DomainPhase::Paused
                | DomainPhase::Receiving
                | DomainPhase::Departed
                | DomainPhase::Suspended
                | DomainPhase::Stopping
                | DomainPhase::Halted
                | DomainPhase::Preserved,
            ) => Ok(Outcome::Again(FROZEN_LOOK)),
        }
    }

    async fn conclude(
        &self,
        domain: &Domain,
        plan: &Plan,
        status: DomainStatus,
    ) -> Result<Outcome, ReconcileError> {
        let age = domain.creation_timestamp().map(|made| made.0.duration_until(self.clock.now()));
        let never_written = domain.status.as_ref().is_none_or(|status| status.phase.is_none());
        let passing = status.phase == Some(DomainPhase::Pending)
            && never_written
            && age.is_some_and(|age| age < QUIET_AT_FIRST);
        if passing {
            return Ok(Outcome::Again(Duration::from_secs(1)));
        }
        // That a guest is being sent, saved or resumed is known by whoever asked for it, and what comes of it is told at the end.
        let told = observe::moved(domain).is_some();
        let under_way = match plan {
            Plan::Wait(Waiting::Move(MigrationRole::Source), _) => true,
            Plan::Wait(Waiting::Move(MigrationRole::Destination), _) => told,
            Plan::Wait(Waiting::Session, _) => true,
            _ => false,
        };
        if !under_way {
            self.write_status(domain, &status).await?;
        }
        Ok(match plan {
            Plan::Wait(Waiting::Needs(_), after)
            | Plan::Wait(Waiting::Shutdown, after)
            | Plan::Wait(Waiting::Dying, after)
            | Plan::Wait(Waiting::Backoff, after)
            | Plan::Wait(Waiting::Stability, after)
            | Plan::Wait(Waiting::Guest, after)
            | Plan::Wait(Waiting::Move(_), after)
            | Plan::Wait(Waiting::Session, after)
            | Plan::Wait(Waiting::SavedToo, after)
            | Plan::Wait(Waiting::TakenBy(_), after) => Outcome::Again(*after),
            _ => Outcome::Settled,
        })
    }

    async fn report(&self, domain: &Domain, error: &ReconcileError) -> Outcome {
        warn!(domain = %domain.name_any(), %error, "reconcile failed");
        if error.is_worth_a_condition() {
            self.events.record(domain, Severity::Warning, error.category(), "Reconcile", error.to_string());
            let latest = self.mirrors.domains.get(&Key::of(domain));
            let current = latest.as_deref().unwrap_or(domain);
            let before = current.status.clone().unwrap_or_default();
            let status = status::failed(&before, error, current.metadata.generation, self.clock.now());
            if let Err(error) = self.write_status(current, &status).await {
                warn!(domain = %domain.name_any(), %error, "the failure could not be written down");
            }
        }
        Outcome::Failed
    }

    /// Writes the status if it differs, and learns the answer.
    async fn write_status(
        &self,
        domain: &Domain,
        status: &DomainStatus,
    ) -> Result<Option<Domain>, ReconcileError> {
        let api = self.api(domain);
        match write::status(&api, domain, MANAGER, domain.status.as_ref(), status).await {
            Ok(Some(written)) => {
                self.mirrors.domains.learn(written.clone());
                Ok(Some(written))
            }
            Ok(None) => Ok(None),
            Err(error) if error.is_not_found() || error.is_conflict() => Err(ReconcileError::Outdated),
            Err(error) => Err(error.into()),
        }
    }

    /// What a session reaches the world through.
    fn world(&self) -> World {
        World {
            me: self.me.clone(),
            hypervisor: Arc::clone(&self.hypervisor),
            storage: Arc::clone(&self.storage),
            ownership: Arc::clone(&self.ownership),
            bridges: Arc::clone(&self.network),
            network: Arc::clone(&self.migrations),
        }
    }

    fn api(&self, domain: &Domain) -> Api<Domain> {
        Api::namespaced(self.client.clone(), &domain.namespace().unwrap_or_default())
    }
}
