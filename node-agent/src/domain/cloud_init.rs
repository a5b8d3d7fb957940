//! The seed of a guest: a disk from which cloud-init configures it, made from a Secret of this host's namespace.
//!
//! The Secret is read by its name when the guest is started or expected, and at no other time. Nothing of it is kept but the
//! image, and nothing of it is told.

mod image;

use super::{Domains, ReconcileError, observe::Unmet};
use crate::hypervisor::DiskConfig;
use image::Seed;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, ResourceExt};
use kubexen_crds::{
    Domain,
    cloud_init::{NETWORK_DATA, SEED_TARGET, USER_DATA},
    domain::DomainPhase,
};
use kubexen_mutants::Mutant;
use kubexen_runtime::write::limited;
use std::collections::BTreeMap;
use uuid::Uuid;

/// What a seed is made of. It has no `Debug`, so that it cannot be logged.
struct Content(BTreeMap<String, ByteString>);

/// What keeps the seed of a domain from being made; looked for only if the domain may be started.
pub(super) async fn unmet(domains: &Domains, domain: &Domain) -> Result<Option<Unmet>, ReconcileError> {
    let stays_off = match domain.status.as_ref().and_then(|status| status.phase) {
        Some(DomainPhase::Halted | DomainPhase::Preserved) => true,
        Some(
            DomainPhase::Pending
            | DomainPhase::Running
            | DomainPhase::Paused
            | DomainPhase::Suspended
            | DomainPhase::Receiving
            | DomainPhase::Departed
            | DomainPhase::Stopping
            | DomainPhase::Failed,
        )
        | None => domain.metadata.deletion_timestamp.is_some(),
    };
    match &domain.spec.machine.cloud_init {
        Some(wanted) if !stays_off => Ok(match content(domains, domain, &wanted.secret).await? {
            Some(_) => None,
            None => Some(Unmet::SecretMissing(wanted.secret.clone())),
        }),
        Some(_) | None => Ok(None),
    }
}

/// The seed as a disk of the domain, if it is to have one.
pub(super) async fn disk(
    domains: &Domains,
    domain: &Domain,
    uuid: Uuid,
) -> Result<Option<DiskConfig>, ReconcileError> {
    let Some(wanted) = &domain.spec.machine.cloud_init else { return Ok(None) };
    let Some(Content(data)) = content(domains, domain, &wanted.secret).await? else {
        return Err(ReconcileError::Malformed(Unmet::SecretMissing(wanted.secret.clone()).message()));
    };
    let bytes = |key: &str| data.get(key).map(|ByteString(bytes)| bytes.as_slice());
    let seed = Seed {
        instance: uuid,
        hostname: &domain.spec.virtual_machine.name,
        user_data: bytes(USER_DATA).unwrap_or_default(),
        network_config: bytes(NETWORK_DATA),
    };
    let image = image::image(&seed)
        .map_err(|error| ReconcileError::Malformed(format!("the seed cannot be made: {error}")))?;
    let device = domains.seeds.place(uuid, image).await?;
    Ok(Some(DiskConfig { device, target: SEED_TARGET.to_owned(), read_only: true }))
}

/// What the Secret holds; nothing if it is not there or has no user data, or if it was made for an earlier Domain of this name: the
/// user data may have changed since.
async fn content(domains: &Domains, domain: &Domain, name: &str) -> Result<Option<Content>, ReconcileError> {
    let namespace = domain.namespace().unwrap_or_default();
    let secrets = Api::<Secret>::namespaced(domains.client.clone(), &namespace);
    let ours = |secret: &Secret| {
        secret.owner_references().iter().any(|owner| Some(&owner.uid) == domain.metadata.uid.as_ref())
            || Mutant::OldUserDataRead.is_active()
    };
    let found = limited(secrets.get_opt(name)).await?.filter(ours).and_then(|secret| secret.data);
    Ok(found.filter(|data| data.contains_key(USER_DATA)).map(Content))
}
