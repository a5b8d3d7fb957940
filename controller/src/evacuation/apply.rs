//! Carries out what was decided to empty a host.

use super::decide::{Action, Seen};
use crate::{context::Context, error::Error, view::uid};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};
use kubexen_crds::{
    Domain, Host, VirtualMachine, VirtualMachineMigration, VirtualMachineMigrationSpec,
    names::{EVACUATES, EVACUATION_ATTEMPT, host_namespace},
};
use kubexen_runtime::{Key, events::Severity};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Whether the server has no Domain on the host but those that were seen, in the versions that were seen, and nobody is
/// about to make one. What it has is learnt.
pub(crate) async fn confirm(context: &Context, host: &Host, seen: &[Seen]) -> Result<bool, Error> {
    let name = host.name_any();
    // A move that was about to begin when the maintenance did has begun, or will find that it may not.
    let _turn = context.migration_start.lock().await;
    if context.scheduler.claims_host(&name) {
        return Ok(false);
    }
    let domains: Vec<Domain> = context.list_in(&host_namespace(&name)).await?;
    let known = |domain: &Domain| {
        seen.iter().any(|(key, version)| *key == Key::of(domain) && *version == domain.resource_version())
    };
    let confirmed = domains.iter().all(known);
    domains.into_iter().for_each(|domain| context.found(domain));
    Ok(confirmed)
}

/// Carries out one action.
pub(crate) async fn carry_out(context: &Context, host: &Host, action: Action) -> Result<(), Error> {
    match action {
        Action::Begin { machine, uid, destination, attempt } => {
            let migration = migration(host, &machine, &uid, destination, attempt);
            context.create(&migration).await?;
            context.queues.add(&context.queues.migrations, Key::of(&migration));
            context.metrics.evacuated("migrate");
        }
        Action::Withdraw { migration, uid } => {
            context.delete_known::<VirtualMachineMigration>(&migration, &uid).await?;
        }
        Action::Stop { domain, uid, machine, why } => {
            if context.delete_known::<Domain>(&domain, &uid).await? {
                let name = host.name_any();
                let note = format!("host {name} is in maintenance, so it restarts on another host: {why}");
                if let Some(machine) = context.view.machines.get(&machine) {
                    context.events.record::<VirtualMachine>(
                        &machine,
                        Severity::Normal,
                        "RestartedElsewhere",
                        "Evacuate",
                        note,
                    );
                }
                context.metrics.evacuated("restart");
            }
        }
    }
    Ok(())
}

/// The migration that moves a machine away from a host. Its name is fixed, so that a try whose answer was lost can be
/// made again.
fn migration(
    host: &Host,
    machine: &Key,
    machine_uid: &str,
    destination: String,
    attempt: u32,
) -> VirtualMachineMigration {
    let name = host.name_any();
    let owner = OwnerReference {
        api_version: Host::api_version(&()).into_owned(),
        kind: Host::kind(&()).into_owned(),
        name: name.clone(),
        uid: uid(host).to_owned(),
        controller: None,
        block_owner_deletion: None,
    };
    VirtualMachineMigration {
        metadata: ObjectMeta {
            name: Some(migration_name(host, &machine.name, machine_uid)),
            namespace: Some(machine.namespace.clone()),
            labels: Some(BTreeMap::from([(EVACUATES.to_owned(), name.clone())])),
            annotations: Some(BTreeMap::from([(EVACUATION_ATTEMPT.to_owned(), attempt.to_string())])),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: VirtualMachineMigrationSpec {
            virtual_machine: machine.name.clone(),
            host: Some(destination),
            cancel: false,
            reason: Some(format!("host {name} is in maintenance")),
        },
        status: None,
    }
}

/// At most 63 characters that begin with the machine's name: one name for a machine and a host.
pub(super) fn migration_name(host: &Host, machine: &str, machine_uid: &str) -> String {
    let host_uid = Uuid::parse_str(uid(host)).unwrap_or_default();
    let mark = Uuid::new_v5(&host_uid, machine_uid.as_bytes()).simple().to_string();
    let short: String = machine.chars().take(40).collect();
    format!("{}-evacuation-{}", short.trim_end_matches(['-', '.']), &mark[..8])
}
