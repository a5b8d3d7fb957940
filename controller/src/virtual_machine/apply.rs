//! Carries out what was decided for a machine.

use super::{
    cloud_init::{self, Origin},
    decide::{Action, Adjustment, Plan, domain_power_state, restart_requested},
    observe::{Observed, host_of},
    protection, recovery,
    references::{Resolved, Site},
    status::{self, Report},
    suspension,
};
use crate::{
    context::{Applied, Context},
    error::Error,
    migration,
    view::{is_deleting, uid},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubexen_crds::{
    Domain, DomainSpec, MigrationRole, VirtualMachine, Volume, VolumeSpec,
    domain::VirtualMachineReference,
    names::{AGENT_FINALIZER, GROUP, host_namespace, host_object_name},
    virtual_disk::VirtualDisk,
    volume::VirtualDiskReference,
};
use kubexen_mutants::Mutant;
use kubexen_runtime::{Key, events::Severity};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Carries out a plan.
pub(crate) async fn apply(context: &Context, observed: &Observed, plan: Plan) -> Result<Applied, Error> {
    let machine = &*observed.machine;
    let mut applied = Applied::Nothing;
    for action in plan.actions {
        let went_through = match action {
            Action::AddFinalizer => context.add_finalizer(machine).await.map(|()| true)?,
            Action::ConfirmGone => confirm_gone(context, machine).await?,
            Action::RemoveFinalizer => {
                context.remove_finalizer(machine).await?;
                // What follows, the watch tells.
                return Ok(Applied::Nothing);
            }
            Action::AskForHost => {
                context.scheduler.ask(&Key::of(machine), machine);
                true
            }
            Action::Start { host } => start(context, observed, &host).await?,
            Action::Recover { loss, to } => recovery::carry_out(context, observed, &loss, &to).await?,
            Action::CopyUserData { domain } => {
                if !copy_user_data(context, observed, &domain).await? {
                    // The copy was there already: whoever misses it will see it.
                    continue;
                }
                true
            }
            Action::MakeVolumes { host, disks } => {
                make_volumes(context, observed, &host, |disk| disks.contains(disk)).await?;
                true
            }
            Action::Adjust { domain, change } => {
                context.merge::<Domain>(&domain, &adjustment(change)?).await?;
                true
            }
            Action::DeleteDomain { domain, uid } => {
                still_asks(context, machine).await? && context.delete_known::<Domain>(&domain, &uid).await?
            }
            Action::DeleteUnchanged(domain) => match context.view.domains.get(&domain) {
                Some(seen) => context.delete_unchanged(&*seen).await?,
                None => false,
            },
            Action::MakeStateDisk { repository, size } => {
                context.create(&suspension::new_state_disk(machine, &repository, size)).await?;
                // The watch shows what is known already.
                context.queues.add(&context.queues.disks, suspension::state_disk_key(machine));
                true
            }
            Action::DiscardState(disk) => discard_state(context, machine, &disk).await?,
            Action::SettleDuplicates { domains } => settle(context, machine, &domains).await?,
        };
        if !went_through {
            return Ok(Applied::Behind);
        }
        applied = Applied::Something;
    }
    if let Some(report) = plan.report
        && say(context, machine, &report).await?
    {
        applied = Applied::Something;
    }
    Ok(applied)
}

/// Writes the status, and tells people what happened when it changed.
async fn say(context: &Context, machine: &VirtualMachine, report: &Report) -> Result<bool, Error> {
    let now = context.clock.now();
    let mut after = status::render(machine, report, now);
    let phases = recovery::note(context, machine, &mut after, now);
    let written = context.write_status(machine, machine.status.as_ref(), &after).await?;
    if written {
        for (phase, from, to) in phases {
            context.metrics.recovery().phase(phase, from, to);
        }
        for happening in status::happenings(machine, report) {
            context.events.record(machine, happening.severity, happening.reason, "Reconcile", happening.note);
        }
    }
    Ok(written)
}

/// Whether the server has no Domain of the machine; those that it has are learnt.
async fn confirm_gone(context: &Context, machine: &VirtualMachine) -> Result<bool, Error> {
    let left: Vec<Domain> = context.list_named(&domain_name(machine)).await?;
    let mut gone = true;
    for domain in left {
        gone &= domain.spec.virtual_machine.uid != uid(machine);
        context.found(domain);
    }
    Ok(gone)
}

/// Whether the server still has the machine, and it asks for what it was seen to ask for. What it asks for instead is learnt.
///
/// To delete a Domain is to stop its guest, and a mirror that is behind may show a wish that its owner has taken back. That a machine
/// is being deleted is never taken back.
async fn still_asks(context: &Context, machine: &VirtualMachine) -> Result<bool, Error> {
    if is_deleting(machine) || Mutant::DeletedUnasked.is_active() {
        return Ok(true);
    }
    let Some(present) = context.get::<VirtualMachine>(&Key::of(machine)).await? else { return Ok(false) };
    let wish = |machine: &VirtualMachine| (machine.spec.power_state, restart_requested(machine));
    let asks = uid(&present) == uid(machine) && (is_deleting(&present) || wish(&present) == wish(machine));
    context.found(present);
    Ok(asks)
}

/// Deletes the disk that a guest was saved to; says whether it may be.
async fn discard_state(context: &Context, machine: &VirtualMachine, disk: &Key) -> Result<bool, Error> {
    let Some(present) = context.get::<VirtualMachine>(&Key::of(machine)).await? else { return Ok(false) };
    let mut domains: Vec<Domain> = context.list_named(&domain_name(machine)).await?;
    domains.retain(|domain| domain.spec.virtual_machine.uid == uid(machine));
    if uid(&present) != uid(machine) || !suspension::may_be_discarded(&present, &domains) {
        return Ok(false);
    }
    let Some(present) = context.view.disks.get(disk) else { return Ok(true) };
    let deleted = context.delete(&*present).await?;
    // The watch shows what is known already.
    context.queues.add(&context.queues.disks, disk.clone());
    Ok(deleted)
}

pub(super) fn domain_name(machine: &VirtualMachine) -> String {
    let Key { namespace, name } = Key::of(machine);
    host_object_name(&namespace, &name)
}

/// Makes what is missing on the host. Everything has a fixed name, so that doing it again does no harm, also when
/// the answer to an earlier try was lost.
async fn start(context: &Context, observed: &Observed, host: &str) -> Result<bool, Error> {
    let machine = &*observed.machine;
    if context.view.is_in_maintenance(host) {
        // It was chosen before. An earlier try whose answer was lost may have made the Domain.
        if confirm_gone(context, machine).await? {
            context.scheduler.forget(&Key::of(machine));
        }
        return Ok(false);
    }
    start_on(context, observed, host).await
}

/// As [`start`], whatever has become of the host since it was chosen.
pub(super) async fn start_on(context: &Context, observed: &Observed, host: &str) -> Result<bool, Error> {
    let machine = &*observed.machine;
    let Ok(resolved) = &observed.references else { return Ok(false) };
    let started = async {
        make_volumes(context, observed, host, |_| true).await?;
        context.create(&domain(machine, resolved, host)).await
    }
    .await;
    match started {
        Ok(()) => {
            context.scheduler.started(&Key::of(machine));
            copy_user_data_to(context, observed, host).await?;
            Ok(true)
        }
        Err(error) => {
            // A refusal is certain. After anything else the Domain may be there, so the host stays chosen.
            if error.is_refusal() {
                context.scheduler.forget(&Key::of(machine));
            }
            Err(error)
        }
    }
}

/// As [`copy_user_data`], for the machine's Domain on this host.
pub(super) async fn copy_user_data_to(
    context: &Context,
    observed: &Observed,
    host: &str,
) -> Result<bool, Error> {
    let domain = Key::new(host_namespace(host), domain_name(&observed.machine));
    copy_user_data(context, observed, &domain).await
}

/// Gives the host of a Domain what its seed is made of: what the machine's owner wrote, or, for a guest that is to come
/// from another host, what it found there when it started, as it is for one whose host is dead if its owner's is gone. Says
/// whether there was anything to write.
async fn copy_user_data(context: &Context, observed: &Observed, domain: &Key) -> Result<bool, Error> {
    let Some(domain) = context.view.domains.get(domain) else { return Ok(false) };
    let source = migration::under_way(&domain).filter(|part| part.role == MigrationRole::Destination);
    let origin = match (source, recovery::lost_domain(observed)) {
        (Some(part), _) => Origin::Host(&part.peer),
        (None, Some(lost)) => Origin::Lost(lost),
        (None, None) => Origin::Machine,
    };
    cloud_init::copy(context, &domain, origin).await
}

/// Makes the Volumes of the `chosen` disks that are not made yet.
async fn make_volumes(
    context: &Context,
    observed: &Observed,
    host: &str,
    chosen: impl Fn(&Key) -> bool,
) -> Result<(), Error> {
    let resolved = observed.references.as_ref().ok().or(observed.references_in_part.as_ref());
    let state = observed.state.as_ref().and_then(|state| state.found.as_ref().ok());
    for disk in resolved.iter().flat_map(|resolved| &resolved.disks).chain(state) {
        match &disk.site {
            Site::New { location, shared, .. } if chosen(&Key::of(&*disk.disk)) => {
                context.create(&volume(&disk.disk, location, *shared, host)).await?;
            }
            Site::New { .. } | Site::On(_) | Site::Shared { .. } => {}
        }
    }
    Ok(())
}

/// The Volume of a disk that is to be made on this host.
fn volume(disk: &VirtualDisk, location: &str, shared: bool, host: &str) -> Volume {
    let Key { namespace, name } = Key::of(disk);
    Volume {
        metadata: ObjectMeta {
            name: Some(host_object_name(&namespace, &name)),
            namespace: Some(host_namespace(host)),
            finalizers: Some(vec![AGENT_FINALIZER.to_owned()]),
            labels: Some(labels("virtual-disk", &namespace, &name)),
            ..ObjectMeta::default()
        },
        spec: VolumeSpec {
            virtual_disk: VirtualDiskReference { namespace, name, uid: uid(disk).to_owned() },
            location: location.to_owned(),
            shared,
            existing: false,
            saved_machine: suspension::saved_machine(disk).map(|(_, machine)| machine.to_owned()),
            size: disk.spec.size.clone(),
            source: disk.spec.source.clone(),
            reclaim: disk.spec.reclaim,
        },
        status: None,
    }
}

/// The Domain of a machine on this host.
pub(crate) fn domain(machine: &VirtualMachine, resolved: &Resolved, host: &str) -> Domain {
    let Key { namespace, name } = Key::of(machine);
    Domain {
        metadata: ObjectMeta {
            name: Some(domain_name(machine)),
            namespace: Some(host_namespace(host)),
            finalizers: Some(vec![AGENT_FINALIZER.to_owned()]),
            labels: Some(labels("virtual-machine", &namespace, &name)),
            ..ObjectMeta::default()
        },
        spec: DomainSpec {
            virtual_machine: VirtualMachineReference { namespace, name, uid: uid(machine).to_owned() },
            power_state: domain_power_state(machine.spec.power_state),
            restart_requested: restart_requested(machine),
            machine: resolved.machine.clone(),
            lifecycle: machine.spec.lifecycle.clone(),
            protected: protection::guards(machine, resolved),
            saved_state: resolved.saved_state.clone(),
            migration: None,
        },
        status: None,
    }
}

/// Labels by which people find the host-kind objects of a user-kind object.
fn labels(kind: &str, namespace: &str, name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (format!("{GROUP}/{kind}-namespace"), namespace.to_owned()),
        (format!("{GROUP}/{kind}"), name.to_owned()),
    ])
}

fn adjustment(change: Adjustment) -> Result<Value, Error> {
    let Adjustment { power_state, lifecycle, protected, restart_requested, machine, saved_state } = change;
    let mut spec = Map::new();
    if let Some(protected) = protected {
        spec.insert("protected".to_owned(), Value::Bool(protected));
    }
    if let Some(power_state) = power_state {
        spec.insert("powerState".to_owned(), serde_json::to_value(power_state)?);
    }
    if let Some(lifecycle) = lifecycle {
        spec.insert("lifecycle".to_owned(), serde_json::to_value(lifecycle)?);
    }
    if let Some(at) = restart_requested {
        spec.insert("restartRequested".to_owned(), Value::String(at));
    }
    if let Some(saved_state) = saved_state {
        spec.insert("savedState".to_owned(), serde_json::to_value(saved_state)?);
    }
    if let Some(machine) = machine {
        spec.insert("machine".to_owned(), replacing(serde_json::to_value(machine)?));
    }
    Ok(json!({ "spec": spec }))
}

/// JSON leaves an empty list out, but a merge patch has to say that the list goes.
fn replacing(mut machine: Value) -> Value {
    for list in ["disks", "cds", "interfaces"] {
        if machine.get(list).is_none() {
            machine[list] = Value::Null;
        }
    }
    machine
}

/// Leaves one of several Domains, judged by linearizable reads.
async fn settle(context: &Context, machine: &VirtualMachine, domains: &[Key]) -> Result<bool, Error> {
    let mut present = Vec::new();
    for key in domains {
        if let Some(domain) = context.get::<Domain>(key).await? {
            context.found(domain.clone());
            if domain.spec.virtual_machine.uid == uid(machine) && !is_deleting(&domain) {
                present.push(domain);
            }
        }
    }
    let owner = recovery::owner(context, machine).await?;
    let owner = owner.as_ref().map(|owner| owner.host.as_str());
    let Some(kept) = survivor(&present, owner) else { return Ok(false) };
    if present.len() < 2 {
        // The mirror is behind the server.
        return Ok(false);
    }
    let kept = Key::of(kept);
    let note = format!("the machine had a Domain on {} hosts; {kept} is kept", present.len());
    context.events.record(machine, Severity::Warning, "DuplicateDomain", "Reconcile", note);
    for domain in present.iter().filter(|domain| Key::of(*domain) != kept) {
        context.delete(domain).await?;
    }
    Ok(true)
}

/// The Domain to keep: the one on the host that owns the machine, otherwise the one whose host owned it last, otherwise the first
/// by host.
///
/// Where two hosts show a token, the larger one is the later owner: tokens are revisions of one store.
pub(crate) fn survivor<'a>(domains: &'a [Domain], owner: Option<&str>) -> Option<&'a Domain> {
    let token = |domain: &Domain| domain.status.as_ref().and_then(|status| status.owner_token);
    let owns = |domain: &Domain| owner.is_some() && host_of(domain) == owner;
    domains.iter().min_by(|one, other| {
        owns(other)
            .cmp(&owns(one))
            .then_with(|| token(other).cmp(&token(one)))
            .then_with(|| Key::of(*one).cmp(&Key::of(*other)))
    })
}
