//! What is: the object, the domain in Xen, and what it needs on this host.

use super::{
    Domains, ReconcileError, cloud_init, guests,
    live::{Live, Tried},
    moves::{Move, OwnedBy},
    resolve,
    saves::{Keeper, Saved},
};
use crate::{
    hypervisor::{DomId, DomainInfo, DomainState},
    migration::Standing,
};
use kubexen_crds::{
    BootType, Domain, DomainMigration, DomainStatus, Firmware, GuestStatus, MigrationRole, MigrationStage,
    domain::{DomainPhase, DomainPowerState},
    virtual_machine::Lifecycle,
};
use kubexen_mutants::Mutant;
use kubexen_ownership::{DiskUid, Phase, Token, VmUid};
use kubexen_runtime::Key;
use serde::Serialize;
use std::{collections::BTreeSet, time::Duration};
use uuid::Uuid;

/// How often an unmet need is looked at, although its change is told.
const NEEDS_LOOK: Duration = Duration::from_secs(10);

/// All that [`super::decide::decide`] looks at.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// The name of this host.
    pub host: String,
    /// Whether the object is being deleted.
    pub deleting: bool,
    /// Whether the domain is to run or to stand still.
    pub power_state: DomainPowerState,
    /// The restart that is asked for.
    pub restart_requested: Option<String>,
    /// What happens when the guest stops.
    pub lifecycle: Lifecycle,
    /// What was written down last: the agent's only memory that outlives it.
    pub status: DomainStatus,
    /// The domain as the hypervisor has it now.
    pub present: Option<DomainInfo>,
    /// What is to be written of what the guest says of itself.
    pub guest: Option<GuestStatus>,
    /// The first need that is not met; looked for only while there is no domain.
    pub unmet: Option<Unmet>,
    /// Whether a disk of the domain is attached; looked for only while there is no domain.
    pub disks_attached: bool,
    /// What is left of the guest's time to power itself off; none if it was not asked.
    pub shutdown_left: Option<Duration>,
    /// What of the domain can change while its guest runs.
    pub live: Live,
    /// The migration that the domain takes part in, unless it is over for this host.
    pub part: Option<Move>,
    /// How it stands with the volume that the guest is saved to, or was.
    pub saved: Option<Saved>,
    /// How the migration ended that the domain took part in last.
    pub moved: Option<(MigrationRole, MigrationStage)>,
}

/// Something a domain needs and does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Unmet {
    /// A volume has no object in this host's namespace.
    VolumeMissing(String),
    /// A volume is not made yet.
    VolumeNotReady {
        /// The volume.
        volume: String,
        /// Why not, if its object here says so.
        why: Option<String>,
    },
    /// The shared storage of a volume cannot be read from this host.
    StorageUnavailable(String),
    /// Another domain of this host has the volume.
    VolumeInUse {
        /// The volume.
        volume: String,
        /// The Domain that has it.
        by: String,
    },
    /// The catalogue has no such kernel.
    KernelMissing(String),
    /// There is no boot loader for guests of this mode.
    BootLoaderMissing(BootType),
    /// The firmware is not there.
    FirmwareMissing(Firmware),
    /// No such uplink is configured, or it is down.
    UplinkMissing(String),
    /// The guest is to be resumed, and the pool's store does not know it as saved in this volume.
    NotSaved,
    /// The Secret that the seed is made of is not in this host's namespace.
    SecretMissing(String),
    /// The object says something that this agent cannot read.
    Malformed(String),
}

impl Unmet {
    /// A reason for the condition, from a fixed set.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::VolumeMissing(_) => "VolumeMissing",
            Self::VolumeNotReady { .. } => "VolumeNotReady",
            Self::StorageUnavailable(_) => "StorageUnavailable",
            Self::VolumeInUse { .. } => "VolumeInUse",
            Self::KernelMissing(_) => "KernelMissing",
            Self::BootLoaderMissing(_) => "BootLoaderMissing",
            Self::FirmwareMissing(_) => "FirmwareMissing",
            Self::UplinkMissing(_) => "UplinkMissing",
            Self::NotSaved => "NotSaved",
            Self::SecretMissing(_) => "SecretMissing",
            Self::Malformed(_) => "Malformed",
        }
    }

    /// When to look again: soon for what comes a moment after the Domain.
    #[must_use]
    pub fn look_again(&self) -> Duration {
        match self {
            Self::SecretMissing(_) => Duration::from_secs(1),
            Self::VolumeMissing(_)
            | Self::VolumeNotReady { .. }
            | Self::StorageUnavailable(_)
            | Self::VolumeInUse { .. }
            | Self::KernelMissing(_)
            | Self::BootLoaderMissing(_)
            | Self::FirmwareMissing(_)
            | Self::UplinkMissing(_)
            | Self::NotSaved
            | Self::Malformed(_) => NEEDS_LOOK,
        }
    }

    /// What a person should read.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::VolumeMissing(volume) => format!("Volume {volume} does not exist in this host's namespace"),
            Self::VolumeNotReady { volume, why: None } => format!("Volume {volume} is not ready yet"),
            Self::VolumeNotReady { volume, why: Some(why) } => {
                format!("Volume {volume} is not ready: {why}")
            }
            Self::StorageUnavailable(error) => format!("The disk cannot be reached from this host: {error}"),
            Self::VolumeInUse { volume, by } => {
                format!("Volume {volume} is in use by {by}; a disk serves one running guest at a time")
            }
            Self::KernelMissing(kernel) => {
                format!(
                    "The kernel catalogue of this host has no entry `{kernel}`; add it to the agent's configuration"
                )
            }
            Self::BootLoaderMissing(BootType::Pvh | BootType::Hvm) => {
                missing("pvgrub for PVH guests", "bootLoaders.pvh")
            }
            Self::BootLoaderMissing(BootType::Pv) => missing("pvgrub for PV guests", "bootLoaders.pv"),
            Self::FirmwareMissing(Firmware::Bios) => missing("BIOS for HVM guests", "firmware.bios"),
            Self::FirmwareMissing(Firmware::Uefi) => missing("UEFI for HVM guests", "firmware.uefi"),
            Self::UplinkMissing(uplink) => {
                format!("This host has no uplink `{uplink}`, or it is down; see the agent's configuration")
            }
            Self::NotSaved => {
                "The guest is to be resumed, but it is not in the volume that is named for that; it is not booted afresh \
                 as long as the VirtualDisk of that volume exists"
                    .to_owned()
            }
            Self::SecretMissing(secret) => {
                format!("The user data is not there: Secret {secret} in this host's namespace")
            }
            Self::Malformed(what) => format!("The Domain cannot be carried out: {what}"),
        }
    }
}

/// What a person should read of software that was not there when the agent started.
fn missing(what: &str, setting: &str) -> String {
    format!(
        "This host has no {what}; install it where `{setting}` of the agent's configuration says, and start the agent anew"
    )
}

impl Observed {
    /// Whether a restart is asked for that was not carried out. What stood in the object before the first start
    /// counts as carried out by it.
    #[must_use]
    pub fn restart_pending(&self) -> bool {
        let started_before = self.status.phase.is_some_and(|phase| match phase {
            DomainPhase::Running
            | DomainPhase::Paused
            | DomainPhase::Suspended
            | DomainPhase::Stopping
            | DomainPhase::Halted
            | DomainPhase::Preserved => true,
            DomainPhase::Receiving | DomainPhase::Departed => false,
            DomainPhase::Pending | DomainPhase::Failed => self.status.last_stop.is_some(),
        });
        started_before
            && self.restart_requested.is_some()
            && self.restart_requested != self.status.restart_handled
    }

    /// Whether the stop of the domain with this number is written down.
    #[must_use]
    pub fn stop_is_recorded(&self, domid: DomId) -> bool {
        let recorded_phase = match self.status.phase {
            Some(
                DomainPhase::Pending | DomainPhase::Halted | DomainPhase::Preserved | DomainPhase::Failed,
            ) => true,
            Some(
                DomainPhase::Running
                | DomainPhase::Paused
                | DomainPhase::Suspended
                | DomainPhase::Receiving
                | DomainPhase::Departed
                | DomainPhase::Stopping,
            )
            | None => false,
        };
        recorded_phase && self.status.last_stop.is_some() && self.status.domid == Some(i32::from(domid.0))
    }
}

/// Looks at everything that matters for `domain` now. `tried` are changes of it that were tried already.
///
/// # Errors
/// When the hypervisor or the storage cannot be asked: then nothing is known, and nothing is done.
pub async fn observe(
    domains: &Domains,
    domain: &Domain,
    uuid: Uuid,
    tried: &Tried,
) -> Result<Observed, ReconcileError> {
    // A session is looked at before all that it changes: one that is over changes nothing more.
    let unfinished = unfinished(domains, domain, uuid)?;
    let session_of_save = domain.spec.saved_state.as_ref().map(|wanted| {
        let volume = resolve::saved_volume(domains, domain);
        (wanted, volume.map_or(Standing::None, |volume| domains.sessions.standing(uuid, volume.uuid)))
    });
    let present = domains.hypervisor.find(uuid).await?;
    let part = match unfinished {
        None => None,
        Some((wanted, session)) => Some(Move {
            uid: wanted.uid.clone(),
            peer: wanted.peer.clone(),
            role: wanted.role,
            cancelled: wanted.cancel,
            owner: owner(domains, uuid).await?,
            session,
        }),
    };
    let (unmet, disks_attached) = match present {
        Some(_) => (None, false),
        None => {
            let attached = domains.storage.attached().await?;
            let ours = resolve::volumes(domains, domain);
            let has_seed =
                domain.spec.machine.cloud_init.is_some() && domains.seeds.present().await?.contains(&uuid);
            let saved = resolve::saved_volume(domains, domain);
            let disks_attached =
                has_seed || ours.iter().flatten().chain(&saved).any(|volume| attached.contains(volume));
            let users = users_of_volumes(domains, domain).await?;
            let unmet = match resolve::unmet(domains, domain, &users).await {
                Some(unmet) => Some(unmet),
                None => cloud_init::unmet(domains, domain).await?,
            };
            (unmet, disks_attached)
        }
    };
    let saved = match &session_of_save {
        None => None,
        Some((wanted, session)) => Some(Saved {
            keeper: keeper(domains, domain, uuid).await?,
            session: session.clone(),
            unmet: resolve::unmet_of_saved(domains, domain, wanted).await.or_else(|| unmet.clone()),
            attached: match resolve::saved_volume(domains, domain) {
                Some(volume) => domains.storage.attached().await?.contains(&volume),
                None => false,
            },
        }),
    };
    let sessions = [part.as_ref().map(|part| &part.session), saved.as_ref().map(|saved| &saved.session)];
    let live = match sessions.into_iter().flatten().any(|session| matches!(session, Standing::Alive { .. })) {
        true => Live::default(),
        false => live(domains, domain, present.as_ref(), tried).await?,
    };
    let guest = present.as_ref().and_then(|present| {
        guests::status(domain, present.domid, domains.guests.said(uuid, present.domid).as_ref())
    });
    let timeout = domain.spec.lifecycle.shutdown_timeout.duration().unwrap_or_default();
    Ok(Observed {
        host: domains.me.host.to_string(),
        deleting: domain.metadata.deletion_timestamp.is_some(),
        power_state: domain.spec.power_state,
        restart_requested: domain.spec.restart_requested.clone(),
        lifecycle: domain.spec.lifecycle.clone(),
        status: domain.status.clone().unwrap_or_default(),
        present,
        guest,
        unmet,
        disks_attached,
        shutdown_left: domains.shutdowns.left(uuid, timeout),
        live,
        part,
        saved,
        moved: moved(domain),
    })
}

/// What of the domain can change, if it has a guest that is not about to change otherwise.
async fn live(
    domains: &Domains,
    domain: &Domain,
    present: Option<&DomainInfo>,
    tried: &Tried,
) -> Result<Live, ReconcileError> {
    let stands_still = match domain.spec.power_state {
        DomainPowerState::Running => false,
        DomainPowerState::Paused => true,
        DomainPowerState::Suspended => return Ok(Live::default()),
    };
    let settings = match present {
        Some(DomainInfo { uuid, state: DomainState::Running, .. }) if !stands_still => {
            Some(domains.hypervisor.settings(*uuid).await?)
        }
        Some(DomainInfo { uuid, state: DomainState::Paused, .. }) if stands_still => {
            Some(domains.hypervisor.settings(*uuid).await?)
        }
        None => None,
        Some(_) => return Ok(Live::default()),
    };
    let disks = &domain.spec.machine.disks;
    let attached = match disks.iter().any(|disk| disk.detach) {
        true => domains.storage.attached().await?,
        false => BTreeSet::new(),
    };
    let has_all = settings.as_ref().is_none_or(|settings| {
        disks.iter().all(|disk| settings.disks.iter().any(|present| present.target == disk.target))
    });
    let users = if has_all { Vec::new() } else { users_of_volumes(domains, domain).await? };
    let stored = |volume: &_| attached.contains(volume);
    let wanted = resolve::asked(domains, domain, settings.as_ref(), stored, &users, tried).await?;
    Ok(Live { wanted, present: settings, stands_still, tried: tried.clone() })
}

/// How the migration stands that a Domain asks for, as far as it is written down.
pub(super) fn moved(domain: &Domain) -> Option<(MigrationRole, MigrationStage)> {
    let wanted = domain.spec.migration.as_ref()?;
    let said = domain.status.as_ref()?.migration.as_ref().filter(|said| said.uid == wanted.uid)?;
    Some((wanted.role, said.stage))
}

/// The migration of a Domain that is not over for this host, and how this agent's session of it stands.
fn unfinished<'a>(
    domains: &Domains,
    domain: &'a Domain,
    uuid: Uuid,
) -> Result<Option<(&'a DomainMigration, Standing)>, ReconcileError> {
    let Some(wanted) = &domain.spec.migration else { return Ok(None) };
    if moved(domain).is_some_and(|(_, stage)| stage.is_final()) {
        return Ok(None);
    }
    let migration = Uuid::parse_str(&wanted.uid)
        .map_err(|_| ReconcileError::Malformed("`migration.uid` is no UUID".to_owned()))?;
    Ok(Some((wanted, domains.sessions.standing(uuid, migration))))
}

/// Who may run the guest, by a linearizable read.
async fn owner(domains: &Domains, uuid: Uuid) -> Result<OwnedBy, ReconcileError> {
    if Mutant::OwnerFromMemory.is_active()
        && let Some(token) = domains.hypervisor.find(uuid).await?.and_then(|present| present.token)
    {
        return Ok(OwnedBy::Me { token: Token(token), succeeds: None });
    }
    Ok(match domains.ownership.owner(VmUid(uuid)).await? {
        Some(owner) if owner.host == domains.me.host => {
            OwnedBy::Me { token: owner.token, succeeds: owner.succeeds }
        }
        Some(owner) => OwnedBy::Another(owner),
        None => OwnedBy::Nobody,
    })
}

/// Where the guest is, by a linearizable read.
async fn keeper(domains: &Domains, domain: &Domain, uuid: Uuid) -> Result<Keeper, ReconcileError> {
    let disk = resolve::saved_volume(domains, domain).map(|volume| DiskUid(volume.uuid));
    let Some(owner) = domains.ownership.owner(VmUid(uuid)).await? else { return Ok(Keeper::Nobody) };
    let here = owner.host == domains.me.host;
    Ok(match owner.phase {
        Phase::Running if here => Keeper::RunsHere(owner.token),
        Phase::Resuming(from) if here && Some(from) == disk => Keeper::ResumesHere(owner.token),
        Phase::Saved(to) if Some(to) == disk => Keeper::Volume,
        Phase::Running | Phase::Resuming(_) => Keeper::Elsewhere(owner.host.to_string()),
        Phase::Saved(other) => Keeper::Elsewhere(format!("the disk with uid {other}")),
    })
}

/// Volumes that other domains have, with the Domain that has each. A Domain has its volumes while its domain is there.
async fn users_of_volumes(
    domains: &Domains,
    domain: &Domain,
) -> Result<Vec<(String, String)>, ReconcileError> {
    let own_key = Key::of(domain);
    let wanted: BTreeSet<&str> = domain.spec.machine.disks.iter().map(|disk| disk.volume.as_str()).collect();
    let mut users = Vec::new();
    for other in domains.mirrors.domains.list() {
        let shared = other.spec.machine.disks.iter().find(|disk| wanted.contains(disk.volume.as_str()));
        let Some(shared) = shared.filter(|_| Key::of(&*other) != own_key) else { continue };
        let Ok(uuid) = Uuid::parse_str(&other.spec.virtual_machine.uid) else { continue };
        if domains.hypervisor.find(uuid).await?.is_some() {
            let machine = &other.spec.virtual_machine;
            users.push((
                shared.volume.clone(),
                format!("virtual machine {}/{}", machine.namespace, machine.name),
            ));
        }
    }
    Ok(users)
}
