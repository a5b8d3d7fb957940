//! Machines that come back after their host's death.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use kubexen_crds::{RestartPriority, VirtualMachine, names::host_namespace, virtual_machine::Phase};
use kubexen_ownership::{HostBoot, Owner, Phase as OwnerPhase, VmUid};
use kubexen_runtime::Key;

use super::{
    board::Board,
    decide::{boot_of, is_on_a_host},
    times::unfinished,
    turns::{Member, State},
    words::boot_named,
};
use crate::{
    context::Context,
    scheduler::Answer,
    view::{host_of_namespace, uid},
    virtual_machine::{had_ended, references},
};

/// A machine that a dead boot had and that is to come back, or has.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Follower {
    pub(super) key: Key,
    pub(super) vm: VmUid,
    pub(super) member: Member,
    /// When it was Ready again.
    pub(super) ready: Option<Timestamp>,
}

/// Boots of which not all machines are known to have come back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Open {
    /// All of them.
    pub(super) boots: BTreeSet<HostBoot>,
    /// Those of which their Hosts say so.
    pub(super) unfinished: BTreeSet<HostBoot>,
}

/// Boots of which not all machines are known to have come back.
pub(super) fn open(context: &Context, board: &Board) -> Open {
    let hosts = context.view.hosts.list();
    let unfinished: BTreeSet<HostBoot> = hosts.iter().filter_map(|host| unfinished(host)).collect();
    let owning = board.owners.values().map(boot_of).filter(|boot| board.roll.fenced.contains_key(boot));
    let given = board.given.values().map(|given| given.from.clone());
    Open { boots: owning.chain(given).chain(unfinished.iter().cloned()).collect(), unfinished }
}

/// All machines that these boots had and that are to come back.
pub(super) fn followers(context: &Context, board: &Board, open: &Open, now: Timestamp) -> Vec<Follower> {
    if open.boots.is_empty() {
        return Vec::new();
    }
    let machines = context.view.machines.list();
    machines.iter().filter_map(|machine| follower(context, board, open, machine, now)).collect()
}

fn follower(
    context: &Context,
    board: &Board,
    open: &Open,
    machine: &VirtualMachine,
    now: Timestamp,
) -> Option<Follower> {
    let availability = &machine.spec.availability;
    if availability.restart_priority == RestartPriority::None
        || !crate::virtual_machine::is_wanted_on(machine)
    {
        return None;
    }
    let vm: VmUid = uid(machine).parse().ok()?;
    let key = Key::of(machine);
    let owner = board.owners.get(&vm);
    let record = owner.and_then(|owner| Some((owner, board.roll.fenced.get(&boot_of(owner))?)));
    let status = machine.status.as_ref();
    let written = status.and_then(|status| status.recovery.as_ref());
    let given = board.given.get(&vm);
    let (boot, state, ready) = match (record, written) {
        (Some((owner, record)), _) if owner.guarded || record.proof.covers_unguarded() => {
            let boot = boot_of(owner);
            if has_ended(context, &key, vm, &boot) {
                return None;
            }
            let state = if can_start(context, &key, machine, owner) { State::Waiting } else { State::Stuck };
            (boot, state, None)
        }
        (Some(_), _) => return None,
        (None, Some(written)) if given.is_none_or(|given| given.to == written.to) => {
            let boot = boot_named(&written.from, &written.boot_id)?;
            let ready = written.ready.as_ref().map(|ready| ready.0);
            let state = match ready {
                Some(ready) => {
                    State::Ready(Duration::try_from(now.duration_since(ready)).unwrap_or_default())
                }
                None if status.and_then(|status| status.phase) == Some(Phase::Failed) => State::Stuck,
                None => State::Waiting,
            };
            (boot, state, ready)
        }
        (None, Some(_) | None) => (given?.from.clone(), State::Waiting, None),
    };
    let delay = availability.start_delay.duration().unwrap_or_default();
    let member = Member { boot, order: availability.order, delay, state };
    open.boots.contains(&member.boot).then_some(Follower { key, vm, member, ready })
}

/// Whether all is there that the machine refers to, and a host fits as far as is known.
fn can_start(context: &Context, key: &Key, machine: &VirtualMachine, owner: &Owner) -> bool {
    let resolved = match owner.phase {
        OwnerPhase::Resuming(_) => references::resolve_to_start(&context.view, machine),
        OwnerPhase::Running | OwnerPhase::Saved(_) => references::resolve(&context.view, machine),
    };
    resolved.is_ok()
        && match context.scheduler.answer(key, machine) {
            Some(Answer::Rejected(_)) => false,
            Some(Answer::Waiting | Answer::Assigned(_)) | None => true,
        }
}

/// Whether the guest had ended on this boot's host before that died: nothing of it is to come back.
fn has_ended(context: &Context, key: &Key, vm: VmUid, boot: &HostBoot) -> bool {
    let domains = context.view.domains_of_machine(key);
    let is_there = |namespace: &str| host_of_namespace(namespace) == Some(boot.host.as_str());
    let of_vm = |uid: &str| uid.parse::<VmUid>().is_ok_and(|other| other == vm);
    domains.iter().any(|domain| {
        domain.metadata.namespace.as_deref().is_some_and(is_there)
            && of_vm(&domain.spec.virtual_machine.uid)
            && had_ended(domain)
    })
}

/// Machines on these boots' hosts whose guests had ended before that.
pub(super) fn ended<'a>(context: &Context, boots: impl IntoIterator<Item = &'a HostBoot>) -> BTreeSet<VmUid> {
    let domains = boots.into_iter().flat_map(|boot| context.view.domains_of_host(boot.host.as_str()));
    let ended = domains.filter(|domain| had_ended(domain));
    ended.filter_map(|domain| domain.spec.virtual_machine.uid.parse().ok()).collect()
}

/// Whether nothing is left on this boot's host of a machine that another host has.
pub(super) fn is_cleared(context: &Context, board: &Board, boot: &HostBoot) -> bool {
    context.view.domains_of_host(boot.host.as_str()).iter().all(|domain| {
        let vm = domain.spec.virtual_machine.uid.parse::<VmUid>().ok();
        let owner = vm.and_then(|vm| board.owners.get(&vm));
        owner.is_none_or(|owner| owner.host == boot.host || !is_on_a_host(owner))
    })
}

/// All machines that have a Domain on this host.
pub(super) fn machines_on(context: &Context, host: &str) -> Vec<Key> {
    let namespace = Key::cluster(host_namespace(host));
    context.view.domains_of_host.read(&namespace, |domain| crate::view::user_key(&domain.name))
}
