//! Carries out what was decided for a migration.

use super::{
    decide::{Action, Plan},
    observe::{self, Choice, Observed},
    status,
    turns::policy,
};
use crate::{
    context::{Applied, Context},
    error::Error,
    view::uid,
    virtual_machine::cloud_init::{self, Origin},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubexen_crds::{
    Domain, DomainMigration, DomainSpec, MigrationRole, VirtualMachineMigration,
    names::{AGENT_FINALIZER, host_namespace},
};
use kubexen_runtime::{Key, events::Severity};
use serde_json::json;

/// Carries out a plan.
pub(crate) async fn apply(context: &Context, observed: &Observed, plan: Plan) -> Result<Applied, Error> {
    let mut applied = Applied::Nothing;
    for action in plan.actions {
        let went_through = match action {
            Action::Begin { host } => begin(context, observed, &host).await?,
            Action::Send { domain, address } => send(context, observed, &domain, &address).await?,
            Action::Cancel(domain) => cancel(context, observed, &domain).await?,
            Action::DeleteDomain { domain, uid } => {
                is_ours_or_of_none(context, observed, &domain).await?
                    && context.delete_known::<Domain>(&domain, &uid).await?
            }
        };
        if !went_through {
            return Ok(Applied::Behind);
        }
        applied = Applied::Something;
    }
    if let (Some(migration), Some(report)) = (&observed.migration, &plan.report) {
        let after = status::render(migration, report, context.clock.now());
        if context.write_status(&**migration, migration.status.as_ref(), &after).await? {
            if let Some((good, reason, note)) = report.happening() {
                let severity = if good { Severity::Normal } else { Severity::Warning };
                context.events.record(&**migration, severity, reason, "Migrate", note);
            }
            applied = Applied::Something;
        }
    }
    Ok(applied)
}

/// Makes the Domain on the destination. One migration at a time does so, and looks again first, so that no limit is
/// exceeded by two that begin at the same moment.
async fn begin(context: &Context, observed: &Observed, host: &str) -> Result<bool, Error> {
    let _turn = context.migration_start.lock().await;
    let Some(migration) = &observed.migration else { return Ok(false) };
    let again = observe::observe(context, &Key::of(&**migration));
    let Some(Observed { beginning: Some(beginning), source: Some(source), .. }) = again else {
        return Ok(false);
    };
    if beginning.choice != Some(Choice::Host(host.to_owned())) {
        return Ok(false);
    }
    let mut labels = source.metadata.labels.clone().unwrap_or_default();
    labels.insert("kubexen.io/migration".to_owned(), Key::of(&**migration).name);
    let arriving = Domain {
        metadata: ObjectMeta {
            name: source.metadata.name.clone(),
            namespace: Some(host_namespace(host)),
            finalizers: Some(vec![AGENT_FINALIZER.to_owned()]),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: DomainSpec {
            migration: Some(part(
                migration,
                MigrationRole::Destination,
                observe::host_of(&source),
                None,
                context,
            )),
            saved_state: None,
            ..source.spec.clone()
        },
        status: None,
    };
    context.create(&arriving).await?;
    if let Some(arriving) = context.view.domains.get(&Key::of(&arriving)) {
        cloud_init::copy(context, &arriving, Origin::Host(observe::host_of(&source))).await?;
    }
    Ok(true)
}

fn part(
    migration: &VirtualMachineMigration,
    role: MigrationRole,
    peer: &str,
    address: Option<&str>,
    context: &Context,
) -> DomainMigration {
    DomainMigration {
        uid: uid(migration).to_owned(),
        name: Key::of(migration).name,
        role,
        peer: peer.to_owned(),
        address: address.map(str::to_owned),
        bandwidth: match role {
            MigrationRole::Source => policy(&context.view).bandwidth,
            MigrationRole::Destination => None,
        },
        cancel: false,
    }
}

/// Tells the source's agent to send the guest, if its Domain still is what was looked at.
async fn send(context: &Context, observed: &Observed, domain: &Key, address: &str) -> Result<bool, Error> {
    let (Some(migration), Some(source), Some(destination)) =
        (&observed.migration, &observed.source, &observed.destination)
    else {
        return Ok(false);
    };
    let part = part(migration, MigrationRole::Source, observe::host_of(destination), Some(address), context);
    let change = json!({
        "metadata": {"uid": uid(&**source), "resourceVersion": source.metadata.resource_version},
        "spec": {"migration": part},
    });
    context.merge::<Domain>(domain, &change).await?;
    Ok(true)
}

/// Calls a move off at one end.
async fn cancel(context: &Context, observed: &Observed, domain: &Key) -> Result<bool, Error> {
    let Some(present) = context.view.domains.get(domain) else { return Ok(false) };
    let Some(part) = present.spec.migration.as_ref() else { return Ok(true) };
    if !is_ours_or_of_none(context, observed, domain).await? {
        return Ok(false);
    }
    let change = json!({
        "metadata": {"uid": uid(&*present)},
        "spec": {"migration": {"uid": part.uid, "cancel": true}},
    });
    context.merge::<Domain>(domain, &change).await?;
    Ok(true)
}

/// Whether a Domain takes part in this migration, or in one that is gone by a linearizable read: the mirror may not show yet
/// what there is.
async fn is_ours_or_of_none(context: &Context, observed: &Observed, domain: &Key) -> Result<bool, Error> {
    let Some(present) = context.view.domains.get(domain) else { return Ok(true) };
    let Some(part) = present.spec.migration.as_ref() else { return Ok(true) };
    if observed.migration.as_deref().is_some_and(|migration| uid(migration) == part.uid) {
        return Ok(true);
    }
    let key = Key::new(&present.spec.virtual_machine.namespace, &part.name);
    let found = context.get::<VirtualMachineMigration>(&key).await?;
    let Some(found) = found.filter(|found| uid(found) == part.uid) else { return Ok(true) };
    context.found(found);
    Ok(false)
}
