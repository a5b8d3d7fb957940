//! Carrying out one step of a migration.

use super::{
    Domains, ReconcileError,
    apply::{Applied, record},
    moves::{Move, MoveStep, OwnedBy},
    observe::Observed,
    resolve, status,
};
use crate::{
    migration::{Arrival, Departure},
    storage::VolumeId,
};
use futures::FutureExt;
use kubexen_crds::{Domain, DomainMigration, domain::DomainPowerState};
use kubexen_mutants::Mutant;
use kubexen_ownership::{Abort, HostBoot, HostName, Phase, Token, VmUid};
use kubexen_runtime::events::Severity;
use std::num::NonZeroU64;
use tracing::info;
use uuid::Uuid;

/// Carries out `step`.
///
/// # Errors
/// When it fails. What was done of it is found by the next look.
pub(super) async fn apply(
    domains: &Domains,
    domain: &Domain,
    uuid: Uuid,
    seen: &Observed,
    step: &MoveStep,
) -> Result<Applied, ReconcileError> {
    let (Some(part), Some(wanted)) = (&seen.part, &domain.spec.migration) else {
        return Err(ReconcileError::Outdated);
    };
    match step {
        MoveStep::Await => await_guest(domains, domain, uuid, wanted).await,
        MoveStep::Send => send(domains, domain, uuid, part, wanted),
        MoveStep::EndSession => {
            domains.sessions.end(uuid);
            Ok(Applied::Unchanged)
        }
        MoveStep::TakeBack => take_back(domains, uuid, part).await,
        MoveStep::GiveUp => give_up(domains, uuid, part).await,
        MoveStep::Claim => {
            if let OwnedBy::Me { token, .. } = part.owner {
                domains.hypervisor.claim(uuid, token.0).await?;
            }
            Ok(Applied::Unchanged)
        }
        MoveStep::Record { stage, failure } => {
            let (generation, now) = (domain.metadata.generation, domains.clock.now());
            let status = status::moved(seen, part, *stage, failure.as_ref(), generation, now);
            let recorded = record(domains, domain, &status).await?;
            domains.sessions.forget(uuid);
            if let Some(failure) = failure {
                let note = failure.message.clone();
                domains.events.record(domain, Severity::Warning, failure.reason, "Migrate", note);
            }
            Ok(recorded)
        }
    }
}

async fn await_guest(
    domains: &Domains,
    domain: &Domain,
    uuid: Uuid,
    wanted: &DomainMigration,
) -> Result<Applied, ReconcileError> {
    domains.fence.may_work()?;
    // The source says under which ownership it sends the guest; the token is written by whoever claims it.
    let config = resolve::configuration(domains, domain, uuid, Token(0)).await?;
    let runs = domain.spec.power_state == DomainPowerState::Running;
    let (peer, world) = (host(&wanted.peer)?, domains.world());
    let disks = disks(domains, domain);
    let arrival = Arrival { source: peer.clone(), config, disks, runs };
    domains.sessions.arrive(uuid, migration(wanted)?, peer, |end, connection| {
        arrival.run(world, end, connection).boxed()
    });
    Ok(Applied::Unchanged)
}

fn send(
    domains: &Domains,
    domain: &Domain,
    uuid: Uuid,
    part: &Move,
    wanted: &DomainMigration,
) -> Result<Applied, ReconcileError> {
    let (OwnedBy::Me { token, .. }, Some(address)) = (&part.owner, &wanted.address) else {
        return Err(ReconcileError::Malformed("`migration.address` is missing".to_owned()));
    };
    let bandwidth = wanted.bandwidth.as_ref().and_then(|bandwidth| bandwidth.bytes().ok());
    let departure = Departure {
        guest: uuid,
        migration: migration(wanted)?,
        disks: disks(domains, domain),
        token: *token,
        peer: host(&wanted.peer)?,
        address: address.clone(),
        bandwidth: bandwidth.and_then(NonZeroU64::new),
    };
    let world = domains.world();
    domains.sessions.depart(uuid, departure.migration, |end| departure.run(world, end).boxed());
    Ok(Applied::Unchanged)
}

fn disks(domains: &Domains, domain: &Domain) -> Vec<VolumeId> {
    resolve::volumes(domains, domain).into_iter().flatten().collect()
}

/// The guest stays here: after the abort no commit can take it away, so it may run on.
async fn take_back(domains: &Domains, uuid: Uuid, part: &Move) -> Result<Applied, ReconcileError> {
    let OwnedBy::Me { token, .. } = part.owner else { return Err(ReconcileError::Outdated) };
    let answer = match Mutant::ResumeWithoutAbort.is_active() {
        false => domains.ownership.abort(VmUid(uuid), &domains.me, token).await?,
        true => Abort::Aborted(token),
    };
    match answer {
        Abort::Aborted(token) => {
            domains.hypervisor.claim(uuid, token.0).await?;
            domains.hypervisor.resume(uuid).await?;
            info!(guest = %uuid, %token, "taken back");
            Ok(Applied::Unchanged)
        }
        Abort::Refused(_) => Ok(Applied::Unchanged),
    }
}

/// What was restored is not the guest. If that stays at the source, no commit can bring it here after the abort, so the copy
/// may go; if it is this host's by another way than this move, it has run since.
async fn give_up(domains: &Domains, uuid: Uuid, part: &Move) -> Result<Applied, ReconcileError> {
    // A commit takes only what runs, under the token that it had: of a guest that was saved since there is nothing to abort.
    if let OwnedBy::Another(owner) = &part.owner
        && owner.phase == Phase::Running
    {
        let source = HostBoot { host: owner.host.clone(), boot_id: owner.boot_id.clone() };
        match domains.ownership.abort(VmUid(uuid), &source, owner.token).await? {
            Abort::Aborted(_) => {}
            Abort::Refused(_) => return Ok(Applied::Unchanged),
        }
    }
    domains.hypervisor.destroy(uuid).await?;
    Ok(Applied::Unchanged)
}

fn host(name: &str) -> Result<HostName, ReconcileError> {
    HostName::new(name).map_err(|error| ReconcileError::Malformed(error.to_string()))
}

fn migration(wanted: &DomainMigration) -> Result<Uuid, ReconcileError> {
    Uuid::parse_str(&wanted.uid).map_err(|error| ReconcileError::Malformed(error.to_string()))
}
