//! What is said of recoveries in the status of Hosts, the Pool and machines.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kubexen_crds::{
    Host, HostAvailability, HostFencingStatus, HostRecovery, MachineRecovery, VirtualMachineStatus,
    condition::{State, Wanted, is_true},
    virtual_machine::Phase,
};
use kubexen_ownership::{HostBoot, liveness::Proof};
use kubexen_runtime::Key;

use super::{
    board::{Board, Given},
    decide::Halt,
    epoch::{self, Freeze},
    followers::Follower,
    votes,
};
use crate::context::Context;

/// The schema's bound for a list of hosts.
const MOST_HOSTS: usize = 64;

/// A label for a proof.
pub(crate) fn proof_label(proof: Proof) -> &'static str {
    match proof {
        Proof::LeaseEnded => "lease_ended",
        Proof::Confirmed => "confirmed",
    }
}

/// That a boot was fenced, for people.
pub(super) fn fenced(boot: &HostBoot, proof: Proof) -> String {
    let why = match proof {
        Proof::LeaseEnded => "its lease has ended, and the grace is over: what it guarded has stopped",
        Proof::Confirmed => "an operator has confirmed that it is off",
    };
    format!("boot {} is dead for good: {why}", boot.boot_id)
}

/// How the guests of each dead host come back, by the host's name. Of several dead boots of a host the one with most guests
/// on their way counts. Of those that are `done` nothing is left to come back.
pub(super) fn recoveries(
    board: &Board,
    followers: &[Follower],
    done: &BTreeSet<HostBoot>,
    now: Timestamp,
) -> BTreeMap<String, HostRecovery> {
    let mut boots: BTreeMap<&HostBoot, Vec<&Follower>> = done.iter().map(|boot| (boot, Vec::new())).collect();
    for follower in followers {
        boots.entry(&follower.member.boot).or_default().push(follower);
    }
    let mut hosts: BTreeMap<String, HostRecovery> = BTreeMap::new();
    for (boot, machines) in boots {
        let Some(times) = board.times.get(boot) else { continue };
        let ready: Vec<Timestamp> = machines.iter().filter_map(|machine| machine.ready).collect();
        let complete = ready.len() == machines.len();
        let said = board.hosts.get(boot.host.as_str());
        let said = said.filter(|said| said.boot_id == boot.boot_id.as_str());
        let said = said.and_then(|said| Some(said.completed.as_ref()?.0));
        let last = ready.iter().max().copied().or(said).unwrap_or(now);
        let recovery = HostRecovery {
            boot_id: boot.boot_id.to_string(),
            last_sign: times.last_sign.map(MicroTime),
            lease_gone: MicroTime(times.gone),
            fenced: times.fenced.map(MicroTime),
            machines: i32::try_from(machines.len()).unwrap_or(i32::MAX),
            recovered: i32::try_from(ready.len()).unwrap_or(i32::MAX),
            completed: complete.then_some(MicroTime(last)),
        };
        let left = |recovery: &HostRecovery| recovery.machines - recovery.recovered;
        let host = boot.host.to_string();
        if hosts.get(&host).is_none_or(|other| left(other) < left(&recovery)) {
            hosts.insert(host, recovery);
        }
    }
    hosts
}

/// What the status of a Host is to say of its guests' recovery: what an earlier leader saw first stands, and so does a
/// recovery that is complete.
pub(crate) fn recovery_of_host(context: &Context, host: &Host) -> Option<HostRecovery> {
    let before = host.status.as_ref().and_then(|status| status.recovery.clone());
    let now = context.recovery.board().hosts.get(&Key::of(host).name).cloned();
    merged(before, now)
}

fn merged(before: Option<HostRecovery>, now: Option<HostRecovery>) -> Option<HostRecovery> {
    match (before, now) {
        (before, None) => before,
        (None, now) => now,
        (Some(before), Some(now)) if before.boot_id != now.boot_id => {
            // A recovery of an earlier boot that is complete takes no place of a later one.
            Some(if now.completed.is_some() { before } else { now })
        }
        (Some(before), Some(now)) if before.completed.is_some() && now.completed.is_some() => Some(before),
        (Some(before), Some(now)) => Some(HostRecovery {
            last_sign: before.last_sign.or(now.last_sign),
            lease_gone: before.lease_gone,
            fenced: before.fenced.or(now.fenced),
            ..now
        }),
    }
}

/// What the status of a Host is to say of what was done by its `spec.fencing`: as long as the word stands that was followed.
pub(crate) fn fencing_of_host(context: &Context, host: &Host) -> Option<HostFencingStatus> {
    let asked = host.spec.fencing.unfenced.as_ref()?;
    let said = host.status.as_ref().and_then(|status| status.fencing.clone());
    let board = context.recovery.board();
    let followed = board.unfenced.get(&Key::of(host).name);
    let is_followed = followed.is_some_and(|boot| boot.boot_id.as_str() == asked)
        || said.is_some_and(|said| said.unfenced.as_ref() == Some(asked));
    is_followed.then(|| HostFencingStatus { unfenced: Some(asked.clone()) })
}

/// What the status of a Host is to say to its agent of the Pool's policy; none without a pool store.
pub(crate) fn availability_of_host(context: &Context) -> Option<HostAvailability> {
    context.recovery.store()?;
    let pool = context.view.pools.list().into_iter().next();
    let epoch = epoch::written(pool.as_deref()).map(|epoch| epoch.to_string());
    let spec = pool.map(|pool| pool.spec.availability.clone()).unwrap_or_default();
    Some(HostAvailability {
        epoch,
        profile: spec.profile,
        disarmed: spec.disarmed,
        refused: votes::refusal(context),
    })
}

/// The silent hosts, and the condition Recovering; none as long as nothing is known in this term.
pub(crate) fn pool_words(context: &Context) -> Option<(Vec<String>, Wanted)> {
    let said = |state, reason, message: String| Wanted::new("Recovering", state, reason, message);
    if context.recovery.store().is_none() {
        let message = "the controller is not told where the pool's store is, so it cannot know that a host is dead: no guest \
                       is started elsewhere, and none is protected; set `poolStore.endpoints`";
        return Some((Vec::new(), said(State::False, "NoPoolStore", message.to_owned())));
    }
    let board = context.recovery.board();
    if board.unreachable {
        let message = "the pool's store does not answer the controller, so it cannot know which hosts are alive: nothing is \
                       started elsewhere until it does";
        return Some((Vec::new(), said(State::Unknown, "PoolStoreUnreachable", message.to_owned())));
    }
    board.read?;
    let silent: Vec<String> = board.silent.iter().take(MOST_HOSTS).cloned().collect();
    let condition = match (&board.halt, &board.brake) {
        (Some(Halt::Frozen(freeze)), _) => said(State::False, "Frozen", frozen(freeze)),
        (Some(Halt::Disarmed), _) => {
            let message = "nothing is done about hosts that die, as `spec.availability.disarmed` asks for";
            said(State::False, "Disarmed", message.to_owned())
        }
        (None, Some(brake)) => said(
            State::False,
            "StormBrake",
            format!(
                "{} hosts are silent at once and {} may be, so the fault is rather between them and the pool's store: {}; if \
                 one of them is off, name its boot in `spec.fencing.confirmedDead` of its Host",
                brake.silent.len(),
                brake.allowed,
                board.silent.join(", ")
            ),
        ),
        (None, None) => {
            let open = board.hosts.iter().filter(|(_, recovery)| recovery.completed.is_none());
            let open: Vec<&str> = open.map(|(host, _)| host.as_str()).collect();
            if open.is_empty() {
                let message = "no guest waits to be started elsewhere";
                said(State::False, "NothingToRecover", message.to_owned())
            } else {
                let message = format!("guests of {} are being started elsewhere", open.join(", "));
                said(State::True, "Recovering", message)
            }
        }
    };
    Some((silent, condition))
}

/// The condition StoreRedundant; none as long as nothing is known of the members of the store in this term.
pub(crate) fn redundant_words(context: &Context) -> Option<Wanted> {
    context.recovery.board().votes.as_ref().map(votes::condition)
}

/// What is to be done about a store that was restored from a backup.
fn frozen(Freeze { epoch, waiting, instead_of, follows }: &Freeze) -> String {
    let answers = epoch.split_once('-').map_or("", |(_, cluster)| cluster);
    let why = match instead_of {
        Some(cluster) => format!(
            "the pool works with the etcd cluster {cluster:x}, and {answers} answers: it was restored from a backup, or the \
             endpoints are wrong"
        ),
        None => "the pool's store was restored from a backup, or is not the one that it was".to_owned(),
    };
    let what = format!("{why}: nothing is started, stopped or given to another host");
    let confirm = format!(
        "set `spec.availability.confirmedEpoch` to `{epoch}` if the pool is to go on with this store"
    );
    if !follows {
        return format!(
            "{what}; hosts write nothing to it before you say so: correct the endpoints, or, if the one that was is gone for good, \
             {confirm}"
        );
    }
    match waiting.as_slice() {
        [] => format!("{what}; all hosts have put on record in it what they run: {confirm}"),
        hosts => format!(
            "{what}; not all hosts have put on record in it what they run: wait for {} or start their agents, and where a host is \
             off name its boot in `spec.fencing.confirmedDead` of its Host; {confirm}",
            hosts.join(", ")
        ),
    }
}

/// The epoch in which the records of the pool's store count, and the one that waits for an operator; none as long as nothing is
/// known in this term.
pub(crate) fn epoch_words(context: &Context) -> Option<(Option<String>, Option<String>)> {
    let board = context.recovery.board();
    board.read?;
    let freeze = match &board.halt {
        Some(Halt::Frozen(freeze)) => Some(freeze.epoch.clone()),
        Some(Halt::Disarmed) | None => None,
    };
    Some((board.epoch.clone(), freeze))
}

/// Puts into a machine's new status how it came back; says what phases ended with that, as name, beginning and end.
pub(crate) fn note(
    given: Option<&Given>,
    status: &mut VirtualMachineStatus,
    now: Timestamp,
) -> Vec<(&'static str, Timestamp, Timestamp)> {
    let mut phases = Vec::new();
    if let Some(given) = given {
        let known = status.recovery.as_ref().is_some_and(|known| {
            known.boot_id == given.from.boot_id.as_str()
                && known.from == given.from.host.as_str()
                && known.to == given.to
        });
        if !known {
            phases.push(("steal", given.fenced, given.at));
            status.recovery = Some(MachineRecovery {
                from: given.from.host.to_string(),
                boot_id: given.from.boot_id.to_string(),
                fenced: MicroTime(given.fenced),
                to: given.to.clone(),
                stolen: MicroTime(given.at),
                started: None,
                ready: None,
            });
        }
    }
    let is_ready = is_true(&status.conditions, "Ready");
    let runs = matches!(status.phase, Some(Phase::Running | Phase::Paused));
    if let Some(recovery) = &mut status.recovery
        && recovery.ready.is_none()
        && status.host.as_deref() == Some(recovery.to.as_str())
    {
        if runs && recovery.started.is_none() {
            recovery.started = Some(MicroTime(now));
        }
        if is_ready {
            phases.push(("start", recovery.stolen.0, now));
            recovery.ready = Some(MicroTime(now));
        }
    }
    phases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recovery(boot: &str, completed: bool) -> HostRecovery {
        let time = |second| MicroTime(Timestamp::from_second(second).unwrap());
        HostRecovery {
            boot_id: boot.to_owned(),
            last_sign: None,
            lease_gone: time(2),
            fenced: Some(time(3)),
            machines: 1,
            recovered: i32::from(completed),
            completed: completed.then(|| time(4)),
        }
    }

    #[test]
    fn what_an_earlier_leader_saw_first_stands() {
        let (one, two) = (recovery("1", false), recovery("2", false));
        let late = HostRecovery { lease_gone: MicroTime(Timestamp::from_second(9).unwrap()), ..one.clone() };
        assert_eq!(merged(Some(one.clone()), Some(late)), Some(one.clone()));
        assert_eq!(merged(Some(one.clone()), None), Some(one.clone()));
        assert_eq!(merged(Some(one.clone()), Some(two.clone())), Some(two.clone()));
        assert_eq!(merged(Some(two.clone()), Some(recovery("1", true))), Some(two));
        let complete = recovery("1", true);
        let shrunk = HostRecovery { machines: 0, recovered: 0, ..complete.clone() };
        assert_eq!(merged(Some(complete.clone()), Some(shrunk)), Some(complete));
    }
}
