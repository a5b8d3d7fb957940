//! The whole policy of emptying a host, pure.

mod standing;

use super::{
    observe::{Guest, Observed},
    status::{EVACUATED, Report, Step, report, says},
};
use crate::{
    migration::{Cause, movable, turns::limit},
    placement::{Request, Verdict, place},
    view::{is_deleting, is_in_maintenance, uid},
};
use jiff::Timestamp;
use kubexen_crds::{
    EvacuationAction, Host, MigrationPhase, VirtualMachineMigration,
    condition::{find, is_true},
    virtual_machine::OnMaintenance,
};
use kubexen_runtime::Key;
pub(crate) use standing::{Hindrance, is_off};
use standing::{Standing, standing};
use std::time::Duration;

/// How often a plan in which only progress was made is written at most.
const QUIET: Duration = Duration::from_secs(5);
/// When a host that is not empty is looked at again, whatever the watches show: room elsewhere comes in many ways.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// What is to be done to empty a host, and what is to be said of it then.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// What to do, in this order.
    pub(crate) actions: Vec<Action>,
    /// What must be so before it may be said.
    pub(crate) confirm: Option<Vec<Seen>>,
    /// What to say.
    pub(crate) words: Words,
    /// When to look again even if nothing changes.
    pub(crate) again: Option<Duration>,
}

/// What a Host's status is to say of its evacuation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Words {
    /// What it says already.
    #[default]
    Keep,
    /// This.
    Say(Report),
}

/// A Domain as it was seen: its key and its version.
pub(crate) type Seen = (Key, Option<String>);

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Make the migration that moves a machine.
    Begin {
        /// The machine.
        machine: Key,
        /// Its uid.
        uid: String,
        /// Where it goes.
        destination: String,
        /// Which try it is, from 1 on.
        attempt: u32,
    },
    /// Delete a migration that was made to empty the host. If it has begun, that calls it off.
    Withdraw {
        /// The migration.
        migration: Key,
        /// Its uid, so that no other of its name is meant.
        uid: String,
    },
    /// Stop a guest that is to start elsewhere.
    Stop {
        /// Its Domain.
        domain: Key,
        /// The Domain's uid.
        uid: String,
        /// Its machine.
        machine: Key,
        /// Why it cannot move while it runs.
        why: String,
    },
}

/// What to do about a host that is to be emptied, or was.
pub(crate) fn decide(observed: &Observed, now: Timestamp) -> Plan {
    if is_in_maintenance(&observed.host) { evacuate(observed, now) } else { undo(observed) }
}

/// The maintenance is over. What has not begun to copy is called off, what has is let finish.
fn undo(observed: &Observed) -> Plan {
    let copies = |record: &VirtualMachineMigration| {
        record.status.as_ref().and_then(|status| status.phase) == Some(MigrationPhase::Copying)
    };
    let withdrawn = observed.records.iter().filter(|record| !copies(record));
    Plan {
        actions: withdrawn.map(|record| withdrawal(record)).collect(),
        confirm: None,
        words: Words::Say(Report::default()),
        again: None,
    }
}

fn withdrawal(record: &VirtualMachineMigration) -> Action {
    Action::Withdraw { migration: Key::of(record), uid: uid(record).to_owned() }
}

fn evacuate(observed: &Observed, now: Timestamp) -> Plan {
    let (mut steps, retry_in) = steps(observed, now);
    let actions = begin(observed, &mut steps);
    let report = report(&steps);
    let done = steps.iter().all(|step| step.action == EvacuationAction::Leave);
    let look_again = if done { None } else { Some(LOOK_AGAIN) };
    let due = [look_again, retry_in].into_iter().flatten().min();
    let known = says(&observed.host, &report);
    let quiet = observed.told.map(|age| QUIET.saturating_sub(age)).filter(|left| !left.is_zero());
    let (words, again) = match (known, quiet) {
        (Some(same), _) if same => (Words::Keep, due),
        (Some(_), Some(left)) => (Words::Keep, Some(due.map_or(left, |due| due.min(left)))),
        (Some(_), None) | (None, _) => (Words::Say(report), due),
    };
    let seen = |step: &Step<'_>| {
        let domain = &step.guest.domain;
        (Key::of(&**domain), domain.metadata.resource_version.clone())
    };
    let confirm = (done && known.is_none()).then(|| steps.iter().map(seen).collect());
    Plan { actions, confirm, words, again }
}

/// A guest that is to be placed elsewhere.
struct Candidate<'a> {
    guest: &'a Guest,
    request: Request,
    attempt: u32,
    /// Why it has to be restarted; none if it moves while it runs.
    hindrance: Option<Hindrance>,
}

/// What happens to each guest, and when the next one that failed to move is due.
fn steps(observed: &Observed, now: Timestamp) -> (Vec<Step<'_>>, Option<Duration>) {
    let mut guests: Vec<&Guest> = observed.guests.iter().collect();
    // The largest first: they are the hardest to place, and take the longest.
    let memory = |guest: &Guest| guest.domain.spec.machine.memory.bytes().unwrap_or(u64::MAX);
    guests.sort_by_key(|guest| (std::cmp::Reverse(memory(guest)), guest.key.clone()));
    let (mut steps, mut candidates, mut retry_in) = (Vec::new(), Vec::new(), None::<Duration>);
    for guest in guests {
        match standing(guest, observed, now) {
            Standing::Known { action, destination, reason, message, again } => {
                steps.push(Step { guest, action, destination, reason, message, attempt: 0 });
                retry_in = [retry_in, again].into_iter().flatten().min();
            }
            Standing::Free { .. }
                if policy(guest) == OnMaintenance::Leave && was_evacuated(&observed.host) =>
            {
                let message = "it could not move when the host was evacuated, and stays".to_owned();
                let hindrance = Hindrance { reason: "Left".to_owned(), message };
                steps.push(Step::stays(guest, EvacuationAction::Leave, hindrance));
            }
            Standing::Free { attempt, avoid } => match &guest.to_move {
                Ok(request) => {
                    let request = Request { avoid, ..request.clone() };
                    candidates.push(Candidate { guest, request, attempt, hindrance: None });
                }
                Err(problem) => {
                    let hindrance = Hindrance::of_problem(problem);
                    hindered(guest, hindrance, &mut steps, &mut candidates);
                }
            },
            Standing::Hindered(hindrance) => hindered(guest, hindrance, &mut steps, &mut candidates),
        }
    }
    steps.extend(placed(observed, candidates));
    (steps, retry_in)
}

/// Whether automation may have been told already that the host is evacuated.
fn was_evacuated(host: &Host) -> bool {
    let conditions = host.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let said = find(conditions, EVACUATED);
    said.is_some_and(|said| said.observed_generation == host.metadata.generation)
        && is_true(conditions, EVACUATED)
}

/// A guest that cannot move while it runs does as its policy says.
fn hindered<'a>(
    guest: &'a Guest,
    hindrance: Hindrance,
    steps: &mut Vec<Step<'a>>,
    candidates: &mut Vec<Candidate<'a>>,
) {
    match (policy(guest), &guest.to_start) {
        (OnMaintenance::Restart, Ok(request)) => {
            let request = request.clone();
            candidates.push(Candidate { guest, request, attempt: 0, hindrance: Some(hindrance) });
        }
        (OnMaintenance::Restart, Err(problem)) => {
            let why = problem.message();
            let hindrance = if why == hindrance.message { hindrance } else { hindrance.nor_start(why) };
            steps.push(Step::stays(guest, EvacuationAction::Wait, hindrance));
        }
        (OnMaintenance::Wait, _) => steps.push(Step::stays(guest, EvacuationAction::Wait, hindrance)),
        (OnMaintenance::Leave, _) => steps.push(Step::stays(guest, EvacuationAction::Leave, hindrance)),
    }
}

/// What a guest does that cannot move, as its Domain was told.
fn policy(guest: &Guest) -> OnMaintenance {
    guest.domain.spec.lifecycle.on_maintenance
}

/// Places all that are to go as one batch. Of those that fit nowhere while they run, some may start elsewhere.
fn placed<'a>(observed: &Observed, mut candidates: Vec<Candidate<'a>>) -> Vec<Step<'a>> {
    let mut verdicts = place_all(observed, &candidates);
    let mut changed = false;
    for (candidate, verdict) in candidates.iter_mut().zip(&verdicts) {
        let (Verdict::Unplaced(why), None) = (verdict, &candidate.hindrance) else { continue };
        if let (OnMaintenance::Restart, Ok(request)) = (policy(candidate.guest), &candidate.guest.to_start) {
            candidate.request = request.clone();
            candidate.hindrance = Some(Hindrance::of(&Cause::NoHostFits(why.to_string())));
            changed = true;
        }
    }
    if changed {
        verdicts = place_all(observed, &candidates);
    }
    candidates.into_iter().zip(verdicts).map(|(candidate, verdict)| step(candidate, verdict)).collect()
}

fn place_all(observed: &Observed, candidates: &[Candidate<'_>]) -> Vec<Verdict> {
    let requests: Vec<Request> = candidates.iter().map(|candidate| candidate.request.clone()).collect();
    place(&observed.pool, &requests)
}

fn step(candidate: Candidate<'_>, verdict: Verdict) -> Step<'_> {
    let Candidate { guest, request: _, attempt, hindrance } = candidate;
    match (hindrance, verdict) {
        (None, Verdict::Placed { host }) => Step {
            guest,
            action: EvacuationAction::Migrate,
            destination: Some(host),
            reason: Step::PLANNED.to_owned(),
            message: None,
            attempt,
        },
        (None, Verdict::Unplaced(why)) => {
            let action = match policy(guest) {
                OnMaintenance::Wait | OnMaintenance::Restart => EvacuationAction::Wait,
                OnMaintenance::Leave => EvacuationAction::Leave,
            };
            Step::stays(guest, action, Hindrance::of(&Cause::NoHostFits(why.to_string())))
        }
        (Some(hindrance), Verdict::Placed { host }) => Step {
            guest,
            action: EvacuationAction::Restart,
            destination: Some(host),
            reason: Step::PLANNED.to_owned(),
            message: Some(hindrance.message),
            attempt,
        },
        (Some(hindrance), Verdict::Unplaced(why)) => {
            Step::stays(guest, EvacuationAction::Wait, hindrance.nor_start(why))
        }
    }
}

/// Of the planned steps begins as many as the limits allow, in their order; as many guests may stop at a time as may move.
fn begin(observed: &Observed, steps: &mut [Step<'_>]) -> Vec<Action> {
    let name = Key::of(&*observed.host).name;
    let (of_host, of_pool) = (limit(observed.limits.max_per_host), limit(observed.limits.max_per_pool));
    let mut load = observed.load.clone();
    let mut stopping = steps.iter().filter(|step| is_deleting(&*step.guest.domain)).count();
    let mut actions: Vec<Action> =
        observed.guests.iter().filter_map(standing::idle_record).map(withdrawal).collect();
    for step in steps.iter_mut().filter(|step| step.reason == Step::PLANNED) {
        let (guest, Some(destination)) = (step.guest, &step.destination) else { continue };
        if step.action == EvacuationAction::Restart {
            if stopping < of_host {
                stopping += 1;
                actions.push(Action::Stop {
                    domain: Key::of(&*guest.domain),
                    uid: uid(&*guest.domain).to_owned(),
                    machine: guest.key.clone(),
                    why: step.message.clone().unwrap_or_default(),
                });
                step.reason = Step::STOPPING.to_owned();
            }
            continue;
        }
        let full = load.pool >= of_pool || load.of_host(&name) >= of_host;
        if full || load.of_host(destination) >= of_host || !movable::runs(&guest.domain) {
            continue;
        }
        load.pool += 1;
        load.add(&name);
        load.add(destination);
        actions.extend(guest.record.as_deref().map(withdrawal));
        actions.push(Action::Begin {
            machine: guest.key.clone(),
            uid: guest.domain.spec.virtual_machine.uid.clone(),
            destination: destination.clone(),
            attempt: step.attempt,
        });
        step.reason = Step::MOVING.to_owned();
    }
    actions
}
