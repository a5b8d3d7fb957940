//! The user data of machines: looked at before a machine starts, and copied to the host that runs it.
//!
//! ```text
//!   Secret of the owner, in the machine's namespace          Secret of the source's host
//!                 │ start, restart                                   │ move, or a start elsewhere for which the owner's is gone
//!                 └──────────────▶ Secret in the host's namespace ◀──┘
//!                                  owned by the Domain, read by this host's agent alone
//! ```
//!
//! Secrets are neither watched nor listed: the controller may only get one by its name, and keeps none. So a machine that
//! waits for its Secret looks again after some seconds. A copy is never changed but made anew, and goes with its Domain by
//! garbage collection.

use super::decide::restart_requested;
use crate::{
    context::Context, error::Error, migration::observe::host_of, view::is_deleting,
    virtual_machine::problem::Problem,
};
use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
};
use kubexen_crds::{
    Domain, VirtualMachine,
    cloud_init::{DomainCloudInit, NETWORK_DATA, SEED_SECRET_TYPE, USER_DATA},
    condition::find,
    names::host_namespace,
    virtual_machine::PowerState,
};
use kubexen_runtime::write::limited;
use std::{collections::BTreeMap, sync::Arc};

/// Where a copy is taken from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Origin<'a> {
    /// What the machine's owner wrote.
    Machine,
    /// What the guest found when it started on this host; what its owner wrote if that is gone.
    Host(&'a str),
    /// What the machine's owner wrote; if that is gone, what the guest of this Domain found, whose host is dead.
    Lost(&'a Domain),
}

/// What stands under the keys that a seed is made of.
type Content = BTreeMap<String, ByteString>;

/// Whether it matters at this moment what the machine's Secret holds: it is about to be started or restarted, or the copy
/// on its host is missing.
pub(super) fn matters(machine: &VirtualMachine, domains: &[Arc<Domain>], empty: &[Arc<Domain>]) -> bool {
    let wanted = match machine.spec.power_state {
        PowerState::Running | PowerState::Paused => {
            machine.spec.cloud_init.is_some() && !is_deleting(machine)
        }
        PowerState::Halted | PowerState::Suspended => false,
    };
    let restarts = || {
        let asked = restart_requested(machine);
        asked.is_some() && domains.iter().any(|domain| domain.spec.restart_requested != asked)
    };
    wanted
        && ((domains.is_empty() && empty.is_empty())
            || restarts()
            || domains.iter().chain(empty).any(|domain| is_missing(domain)))
}

/// Whether the agent of a Domain waits for its copy.
pub(super) fn is_missing(domain: &Domain) -> bool {
    let conditions = domain.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    domain.spec.machine.cloud_init.is_some()
        && !is_deleting(domain)
        && find(conditions, "Ready").is_some_and(|ready| ready.reason == "SecretMissing")
}

/// What is wrong with the Secret that the machine names.
pub(crate) async fn problem(context: &Context, machine: &VirtualMachine) -> Result<Option<Problem>, Error> {
    let Some(wanted) = &machine.spec.cloud_init else { return Ok(None) };
    let (namespace, secret) = (machine.namespace().unwrap_or_default(), &wanted.user_data_secret.name);
    let found = get(context, &namespace, secret).await?;
    Ok(problem_of(found, secret, &namespace))
}

/// Why the guest of this Domain would not find its user data on another host: it is gone from its own, and there is something
/// wrong with the Secret that its machine named when it started.
pub(crate) async fn problem_of_move(context: &Context, domain: &Domain) -> Result<Option<Problem>, Error> {
    let Some(wanted) = &domain.spec.machine.cloud_init else { return Ok(None) };
    let found = find_at(context, domain, wanted, Origin::Host(host_of(domain))).await?;
    Ok(problem_of(found, &wanted.user_data_secret, &domain.spec.virtual_machine.namespace))
}

fn problem_of(found: Option<Secret>, secret: &str, namespace: &str) -> Option<Problem> {
    let secret = secret.to_owned();
    match found.map(content) {
        None => Some(Problem::SecretNotFound { secret, namespace: namespace.to_owned() }),
        Some(None) => Some(Problem::SecretKeyMissing { secret }),
        Some(Some(_)) => None,
    }
}

/// Makes the Secret in the namespace of a Domain's host that its seed is made from. Says whether there was anything to
/// write; there is not if nothing can be copied, which the Domain's agent tells.
pub(crate) async fn copy(context: &Context, domain: &Domain, origin: Origin<'_>) -> Result<bool, Error> {
    let Some(wanted) = &domain.spec.machine.cloud_init else { return Ok(false) };
    let found = find_at(context, domain, wanted, origin).await?;
    let Some(content) = found.and_then(content) else { return Ok(false) };
    let copy = secret(domain, &wanted.secret, content);
    let api = Api::<Secret>::namespaced(context.client.clone(), &domain.namespace().unwrap_or_default());
    if let Some(present) = limited(api.get_opt(&wanted.secret)).await? {
        if present.data == copy.data && owner(&present) == owner(&copy) {
            return Ok(false);
        }
        context.may_write::<Secret>("delete")?;
        let only_this = Preconditions { uid: present.uid(), resource_version: None };
        match limited(api.delete(&wanted.secret, &DeleteParams::default().preconditions(only_this))).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    context.may_write::<Secret>("create")?;
    limited(api.create(&PostParams::default(), &copy)).await?;
    Ok(true)
}

/// What there is at the origin.
async fn find_at(
    context: &Context,
    domain: &Domain,
    wanted: &DomainCloudInit,
    origin: Origin<'_>,
) -> Result<Option<Secret>, Error> {
    let of_owner = || get(context, &domain.spec.virtual_machine.namespace, &wanted.user_data_secret);
    match origin {
        Origin::Machine => of_owner().await,
        Origin::Host(host) => match get(context, &host_namespace(host), &wanted.secret).await? {
            Some(found) => Ok(Some(found)),
            None => of_owner().await,
        },
        Origin::Lost(lost) => match of_owner().await? {
            Some(found) => Ok(Some(found)),
            None => {
                let found = get(context, &lost.namespace().unwrap_or_default(), &wanted.secret).await?;
                // What an earlier Domain of this name had is no guest's of this machine.
                Ok(found.filter(|found| owner(found) == lost.metadata.uid.as_deref()))
            }
        },
    }
}

async fn get(context: &Context, namespace: &str, name: &str) -> Result<Option<Secret>, Error> {
    let api = Api::<Secret>::namespaced(context.client.clone(), namespace);
    Ok(limited(api.get_opt(name)).await?)
}

/// What a seed is made of; none without user data.
fn content(secret: Secret) -> Option<Content> {
    let mut data = secret.data.unwrap_or_default();
    data.retain(|key, _| key == USER_DATA || key == NETWORK_DATA);
    data.contains_key(USER_DATA).then_some(data)
}

fn secret(domain: &Domain, name: &str, content: Content) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: domain.metadata.namespace.clone(),
            labels: domain.metadata.labels.clone(),
            owner_references: Some(vec![OwnerReference {
                api_version: Domain::api_version(&()).into_owned(),
                kind: Domain::kind(&()).into_owned(),
                name: domain.name_any(),
                uid: domain.uid().unwrap_or_default(),
                controller: None,
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        type_: Some(SEED_SECRET_TYPE.to_owned()),
        data: Some(content),
        ..Secret::default()
    }
}

fn owner(secret: &Secret) -> Option<&str> {
    secret.owner_references().first().map(|owner| owner.uid.as_str())
}
