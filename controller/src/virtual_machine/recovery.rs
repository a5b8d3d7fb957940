//! A machine whose host is dead: when and where it is started elsewhere, and how it is given to that host.
//!
//! ```text
//!   lost ─▶ ask for a host ─▶ steal, in the pool's store ─▶ make a Domain where it is owned ─▶ remove the one on the dead host
//! ```
//!
//! # Guarantees
//! A Domain is made only where the machine is owned, and the one on the dead host is removed only when that is there: a host
//! gives back what it owns and has no Domain of, so before that the dead host, if it comes back, might take the machine again.
//! The Domain of what a migration left there stays until its agent is heard again, or somebody has seen the host to be off: a
//! domain without one would be nobody's.
//! Each step is found again by what the store and the server say, so that whoever leads goes on where another stopped: the
//! machine starts on the host that has it, whatever was planned, and also if the dead host is back meanwhile.

use jiff::Timestamp;
use kubexen_crds::{
    Domain, RestartPriority, VirtualMachine, VirtualMachineStatus, domain::DomainPhase,
    names::AGENT_FINALIZER,
};
use kubexen_mutants::Mutant;
use kubexen_ownership::{HostBoot, HostName, Owner, OwnershipStore, Phase, Start, Steal, Token, VmUid};
use kubexen_runtime::{Key, events::Severity};
use std::{collections::BTreeSet, sync::Arc};
use tracing::info;

use super::{
    apply::{copy_user_data_to, start_on},
    decide::{Action, Plan},
    observe::{Lost, Observed, host_of},
    problem::Problem,
    references::{Resolved, Site},
    status,
};
use crate::{
    context::Context,
    error::Error,
    recovery::{self, Given, Hold, Loss, LossKind},
    scheduler::Answer,
    view::{is_deleting, uid},
};

/// What is to be done about a machine whose host is dead; none if the usual is.
pub(super) fn recover(observed: &Observed) -> Option<Plan> {
    let Lost { loss, turn } = observed.lost.as_ref()?;
    let from = loss.from.host.as_str();
    let lost: Vec<_> = all(observed).filter(|domain| host_of(domain) == Some(from)).collect();
    let others: Vec<_> = all(observed).filter(|domain| host_of(domain) != Some(from)).collect();
    let domain = lost.first().map(|domain| &***domain);
    let elsewhere = others.iter().find(|other| is_in(observed, other)).and_then(|other| host_of(other));
    let say = |reason, why: &str| Some(Plan::say(status::lost(domain, from, reason, why)));
    let held_by_owner = match observed.machine.spec.availability.restart_priority {
        RestartPriority::Protected | RestartPriority::BestEffort => false,
        RestartPriority::None => true,
    };
    match &loss.kind {
        // A Domain is there alone, or the other goes as its migration ends: the guest starts as any other. The host may be the
        // one that was dead, at a later boot.
        LossKind::Given(to)
            if is_on(&to.host, all(observed))
                && lost.iter().all(|domain| {
                    is_on(&to.host, [*domain])
                        || is_ending(observed, loss, domain)
                        || has_left(domain, &others)
                }) =>
        {
            None
        }
        // What is left to do is to remove the other.
        LossKind::Given(to) if is_on(&to.host, all(observed)) => {
            Some(Plan::act(recovery_to(loss, to.host.as_str())).keeping_place())
        }
        LossKind::Given(to) => match &observed.references {
            // It has been given a disk since that is elsewhere: that host gives back what it does not start.
            Ok(resolved) if !is_reached(resolved, to.host.as_str()) => None,
            Ok(_) => Some(Plan::act(recovery_to(loss, to.host.as_str())).keeping_place()),
            Err(problem) => unresolved(domain, from, problem),
        },
        LossKind::Unowned if lost.is_empty() => None,
        LossKind::Owned(_) | LossKind::Held(_) | LossKind::Unowned if domain.is_some_and(had_ended) => None,
        // What was said of its whereabouts contradicts the store: one of the two is old, or an earlier look was cut short.
        LossKind::Owned(_) | LossKind::Unowned
            if let Some(host) = elsewhere
                && !lost.is_empty()
                && !held_by_owner =>
        {
            Some(Plan::act(recovery_to(loss, host)).keeping_place())
        }
        LossKind::Owned(_) | LossKind::Held(_) | LossKind::Unowned if elsewhere.is_some() => None,
        LossKind::Owned(_) | LossKind::Held(_) | LossKind::Unowned if held_by_owner => {
            say("HostDead", "the guest waits for it, as `spec.availability.restartPriority` asks for")
        }
        LossKind::Held(hold) => say("HostDead", held(*hold)),
        LossKind::Owned(_) | LossKind::Unowned if !turn => {
            say("HostDead", "guests of a lower `spec.availability.order` are started elsewhere first")
        }
        LossKind::Owned(_) | LossKind::Unowned => Some(place(observed, loss, domain, &others)),
    }
}

/// Finds a host, and gives the machine to it.
fn place(observed: &Observed, loss: &Loss, domain: Option<&Domain>, others: &[&Arc<Domain>]) -> Plan {
    let from = loss.from.host.as_str();
    match (&observed.references, &observed.answer) {
        (Err(problem), _) => unresolved(domain, from, problem).unwrap_or_default(),
        (Ok(_), None) => Plan::act(Action::AskForHost).keeping_place(),
        (Ok(_), Some(Answer::Waiting)) => Plan::default().keeping_place(),
        (Ok(_), Some(Answer::Rejected(why))) => {
            let why = format!("the guest is to be started elsewhere, and no host fits: {why}");
            Plan::say(status::lost(domain, from, "Unschedulable", &why)).keeping_place()
        }
        (Ok(_), Some(Answer::Assigned(host))) => {
            // What a migration has made there goes first: it has the name that the guest's Domain is to have.
            let in_the_way = others.iter().find(|other| host_of(other) == Some(host.as_str()));
            match in_the_way {
                Some(other) if is_deleting(&***other) => Plan::default().keeping_place(),
                Some(other) => Plan::act(Action::DeleteUnchanged(Key::of(&***other))).keeping_place(),
                None => Plan::act(recovery_to(loss, host)).keeping_place(),
            }
        }
    }
}

/// Whether no disk of the machine is on another host alone.
fn is_reached(resolved: &Resolved, host: &str) -> bool {
    resolved.disks.iter().all(|disk| match &disk.site {
        Site::On(on) => on == host,
        Site::New { .. } | Site::Shared { .. } => true,
    })
}

fn recovery_to(loss: &Loss, host: &str) -> Action {
    Action::Recover { loss: loss.clone(), to: host.to_owned() }
}

fn unresolved(domain: Option<&Domain>, from: &str, problem: &Problem) -> Option<Plan> {
    let why = format!("the guest cannot be started elsewhere: {}", problem.message());
    let said = status::lost(domain, from, problem.reason(), &why);
    Some(Plan { again: problem.again(), ..Plan::say(said) })
}

fn held(hold: Hold) -> &'static str {
    match hold {
        Hold::NotGuarded => {
            "it had not promised to stop this guest, which may still run there; the guest is started when the host is back \
             at another boot, or elsewhere once its boot is named in `spec.fencing.confirmedDead` of the Host"
        }
        Hold::StormBrake => {
            "too many hosts are silent at once, so nothing is started elsewhere until there are fewer"
        }
        Hold::Disarmed => {
            "nothing is started elsewhere, as `spec.availability.disarmed` of the Pool asks for"
        }
        Hold::Frozen => {
            "the pool's store was restored from a backup, so nothing is started elsewhere before an operator confirms it"
        }
    }
}

fn all(observed: &Observed) -> impl Iterator<Item = &Arc<Domain>> {
    observed.domains.iter().chain(&observed.empty_domains)
}

/// Whether one of these Domains is on this host.
fn is_on<'a>(host: &HostName, domains: impl IntoIterator<Item = &'a Arc<Domain>>) -> bool {
    domains.into_iter().any(|domain| host_of(domain) == Some(host.as_str()))
}

/// The Domain that the guest was in when its host died, if that is known and the Domain is there.
pub(super) fn lost_domain(observed: &Observed) -> Option<&Domain> {
    let from = observed.lost.as_ref()?.loss.from.host.as_str();
    observed.domains.iter().map(|domain| &**domain).find(|domain| host_of(domain) == Some(from))
}

/// Whether the agent of this Domain's host ends it, now or when it is heard again.
fn is_ending(observed: &Observed, loss: &Loss, domain: &Arc<Domain>) -> bool {
    is_deleting(&**domain) && is_left_to_agent(observed, loss, domain)
}

/// Whether this Domain is for its host's agent to end. That a lease has ended proves that the guest stopped, and not that no copy of
/// it stands still where a migration was to bring it, or took it from.
fn is_left_to_agent(observed: &Observed, loss: &Loss, domain: &Arc<Domain>) -> bool {
    loss.is_back || !(loss.is_off || is_in(observed, domain) || Mutant::CopyForgotten.is_active())
}

/// Whether the guest went from this Domain to one of the others by a migration.
fn has_left(domain: &Domain, others: &[&Arc<Domain>]) -> bool {
    domain.spec.migration.as_ref().is_some_and(|left| {
        let mut parts = others.iter().filter_map(|other| other.spec.migration.as_ref());
        parts.any(|came| came.uid == left.uid && came.role != left.role)
    })
}

/// Whether the guest is said to be in this Domain.
fn is_in(observed: &Observed, domain: &Arc<Domain>) -> bool {
    observed.domains.iter().any(|other| Arc::ptr_eq(other, domain))
}

/// Whether the guest had ended before its host did.
pub(crate) fn had_ended(domain: &Domain) -> bool {
    match domain.status.as_ref().and_then(|status| status.phase) {
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
        | None => false,
    }
}

/// Who owns the machine, read from the pool's store at this moment; none if nobody does, or if there is no store.
pub(super) async fn owner(context: &Context, machine: &VirtualMachine) -> Result<Option<Owner>, Error> {
    match (context.recovery.store(), uid(machine).parse::<VmUid>()) {
        (Some(store), Ok(vm)) => Ok(store.ownership.owner(vm).await?),
        (_, _) => Ok(None),
    }
}

/// Gives the machine to another host, unless that was done before, and starts it where it is owned. Says whether it went
/// through.
pub(super) async fn carry_out(
    context: &Context,
    observed: &Observed,
    planned: &Loss,
    to: &str,
) -> Result<bool, Error> {
    let machine = &*observed.machine;
    let (Some(store), Ok(vm)) = (context.recovery.store(), uid(machine).parse::<VmUid>()) else {
        return Ok(false);
    };
    let owner = store.ownership.owner(vm).await?;
    let dead = planned.from.host.as_str();
    let (loss, target) = {
        let mut board = context.recovery.board();
        match owner {
            Some(owner) => board.owned(vm, owner),
            None => board.unowned(vm),
        }
        let host = context.view.hosts.get(&Key::cluster(dead));
        (board.loss(vm, dead, host.as_deref()), board.roll.live_boot(to).cloned())
    };
    // Somebody else has settled it, or the host is back.
    let Some(loss) = loss else { return Ok(false) };
    let given = match (&loss.kind, target) {
        (LossKind::Given(boot), _) => Some(boot.clone()),
        (LossKind::Owned(token), Some(target)) => {
            steal(context, &*store.ownership, observed, vm, &loss, *token, &target).await?
        }
        (LossKind::Unowned, Some(target)) => claim(context, &*store.ownership, vm, &target).await?,
        // It was chosen while it was alive.
        (LossKind::Owned(_) | LossKind::Unowned, None) => {
            context.scheduler.forget(&Key::of(machine));
            None
        }
        (LossKind::Held(_), _) => None,
    };
    let Some(given) = given else { return Ok(false) };
    remember(context, vm, &loss.from, given.host.as_str());
    let there = is_on(&given.host, all(observed));
    if there {
        // Who made it may have come no further, and what the guest found on the dead host goes with the Domain there.
        copy_user_data_to(context, observed, given.host.as_str()).await?;
    }
    let started = there || start_on(context, observed, given.host.as_str()).await?;
    if started && given.host.as_str() != dead {
        for domain in all(observed).filter(|domain| host_of(domain) == Some(dead)) {
            remove(context, observed, vm, &loss, domain).await?;
        }
    }
    Ok(started)
}

/// Makes a live boot the owner of what a dead one owned; none if that did not go through.
async fn steal(
    context: &Context,
    store: &dyn OwnershipStore,
    observed: &Observed,
    vm: VmUid,
    loss: &Loss,
    token: Token,
    to: &HostBoot,
) -> Result<Option<HostBoot>, Error> {
    may_change(context)?;
    let refusal = match store.steal(vm, &loss.from, token, to).await? {
        Steal::Stolen(new) => {
            context.metrics.recovery().stole();
            info!(%vm, from = %loss.from, %to, token = %new, "stolen");
            let phase = context.recovery.board().owners.get(&vm).map_or(Phase::Running, |owner| owner.phase);
            owned(context, vm, to, phase, new, Some(token));
            let note = format!("host {} is dead: the guest is given to host {}", loss.from.host, to.host);
            context.events.record(&*observed.machine, Severity::Warning, "Recovering", "Recover", note);
            return Ok(Some(to.clone()));
        }
        Steal::Refused(_) => "owner_changed",
        Steal::NotDead => "not_dead",
        Steal::NobodyThere => {
            context.scheduler.forget(&Key::of(&*observed.machine));
            "nobody_there"
        }
    };
    context.metrics.recovery().refused(refusal);
    Ok(None)
}

/// Makes a live boot the owner of what nobody owns; none if somebody was faster.
async fn claim(
    context: &Context,
    store: &dyn OwnershipStore,
    vm: VmUid,
    to: &HostBoot,
) -> Result<Option<HostBoot>, Error> {
    may_change(context)?;
    match store.start(vm, to).await? {
        Start::Acquired(token) | Start::AlreadyMine(token) => {
            owned(context, vm, to, Phase::Running, token, None);
            Ok(Some(to.clone()))
        }
        Start::Refused(_) => Ok(None),
    }
}

fn may_change(context: &Context) -> Result<(), Error> {
    if context.leadership.holds() { Ok(()) } else { Err(Error::Deposed) }
}

fn owned(context: &Context, vm: VmUid, to: &HostBoot, phase: Phase, token: Token, succeeds: Option<Token>) {
    let (host, boot_id) = (to.host.clone(), to.boot_id.clone());
    let owner = Owner { host, boot_id, phase, guarded: false, token, succeeds };
    context.recovery.board().owned(vm, owner);
}

/// Notes on the board that a machine was given to a host, unless it knows.
fn remember(context: &Context, vm: VmUid, from: &HostBoot, to: &str) {
    let now = context.clock.now();
    let fenced = recovery::fenced_at(context, from).unwrap_or(now);
    let mut board = context.recovery.board();
    let given = Given { from: from.clone(), fenced, to: to.to_owned(), at: now, removed: BTreeSet::new() };
    match board.given.get(&vm) {
        Some(known) if known.to == given.to => {}
        Some(_) | None => drop(board.given.insert(vm, given)),
    }
}

/// Removes the Domain of a dead host, unless that is for its agent.
async fn remove(
    context: &Context,
    observed: &Observed,
    vm: VmUid,
    loss: &Loss,
    domain: &Arc<Domain>,
) -> Result<(), Error> {
    if !is_deleting(&**domain) && !context.delete(&**domain).await? {
        // It is gone, or another has its name: the next look tells.
        return Ok(());
    }
    if is_left_to_agent(observed, loss, domain) {
        return Ok(());
    }
    let key = Key::of(&**domain);
    let present = context.view.domains.get(&key).filter(|present| uid(&**present) == uid(&**domain));
    if let Some(present) = present {
        context.take_finalizer(&*present, AGENT_FINALIZER).await?;
    }
    if let Some(given) = context.recovery.board().given.get_mut(&vm) {
        given.removed.insert(uid(&**domain).to_owned());
    }
    Ok(())
}

/// Puts into a machine's new status how it came back; says what phases ended with that.
pub(super) fn note(
    context: &Context,
    machine: &VirtualMachine,
    status: &mut VirtualMachineStatus,
    now: Timestamp,
) -> Vec<(&'static str, Timestamp, Timestamp)> {
    let given =
        uid(machine).parse().ok().and_then(|vm: VmUid| context.recovery.board().given.get(&vm).cloned());
    recovery::note(given.as_ref(), status, now)
}
