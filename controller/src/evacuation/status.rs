//! What is said of an evacuation.

use super::{decide::Hindrance, observe::Guest};
use kubexen_crds::{
    EvacuationAction, EvacuationStep, Host, HostEvacuation,
    condition::{State, Wanted, find, is_true},
};
use kubexen_runtime::events::Severity;

/// The condition that automation waits for.
pub(crate) const EVACUATED: &str = "Evacuated";

/// Most guests that a plan names.
const NAMED: usize = 64;
/// Most guests that a condition names.
const TOLD: usize = 3;
/// Longest message of one guest.
const MESSAGE_LIMIT: usize = 512;

/// What happens to one guest.
#[derive(Clone, Debug)]
pub(crate) struct Step<'a> {
    pub(crate) guest: &'a Guest,
    pub(crate) action: EvacuationAction,
    pub(crate) destination: Option<String>,
    pub(crate) reason: String,
    pub(crate) message: Option<String>,
    /// Which try to move it this would be.
    pub(crate) attempt: u32,
}

impl<'a> Step<'a> {
    /// Its turn has not come.
    pub(crate) const PLANNED: &'static str = "Planned";
    /// It moves.
    pub(crate) const MOVING: &'static str = "Moving";
    /// It is being shut down.
    pub(crate) const STOPPING: &'static str = "Stopping";

    /// A guest that stays, with what keeps it here.
    pub(crate) fn stays(guest: &'a Guest, action: EvacuationAction, hindrance: Hindrance) -> Self {
        let Hindrance { reason, message } = hindrance;
        Self { guest, action, destination: None, reason, message: Some(message), attempt: 0 }
    }

    fn told(&self) -> EvacuationStep {
        EvacuationStep {
            namespace: self.guest.key.namespace.clone(),
            name: self.guest.key.name.clone(),
            action: self.action,
            destination: self.destination.clone(),
            reason: self.reason.clone(),
            message: self.message.clone().map(truncated),
        }
    }
}

fn truncated(mut message: String) -> String {
    if message.len() > MESSAGE_LIMIT {
        let end = (0..=MESSAGE_LIMIT - 3).rev().find(|&index| message.is_char_boundary(index)).unwrap_or(0);
        message.truncate(end);
        message.push_str("...");
    }
    message
}

/// What a Host's status is to say of its evacuation; nothing if it is not in maintenance.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub(crate) evacuation: Option<HostEvacuation>,
    pub(crate) condition: Option<Wanted>,
}

/// What is to be said of these steps.
pub(crate) fn report(steps: &[Step<'_>]) -> Report {
    let mut machines: Vec<EvacuationStep> = steps.iter().map(Step::told).collect();
    machines.sort_by(|one, other| {
        let order = |step: &EvacuationStep| (step.action, step.namespace.clone(), step.name.clone());
        order(one).cmp(&order(other))
    });
    let count = |action| steps.iter().filter(|step| step.action == action).count();
    let number = |action| i32::try_from(count(action)).unwrap_or(i32::MAX);
    let condition = condition(&machines, count);
    machines.truncate(NAMED);
    let evacuation = HostEvacuation {
        migrating: number(EvacuationAction::Migrate),
        restarting: number(EvacuationAction::Restart),
        waiting: number(EvacuationAction::Wait),
        staying: number(EvacuationAction::Leave),
        machines,
    };
    Report { evacuation: Some(evacuation), condition: Some(condition) }
}

fn condition(machines: &[EvacuationStep], count: impl Fn(EvacuationAction) -> usize) -> Wanted {
    let going = count(EvacuationAction::Migrate) + count(EvacuationAction::Restart);
    let (waiting, staying) = (count(EvacuationAction::Wait), count(EvacuationAction::Leave));
    let wanted = |state, reason, message: String| Wanted::new(EVACUATED, state, reason, message);
    let stay = || named(machines, EvacuationAction::Leave);
    let wait = || named(machines, EvacuationAction::Wait);
    match (going, waiting, staying) {
        (0, 0, 0) => wanted(State::True, "Empty", "no guest is on the host".to_owned()),
        (0, 0, _) => {
            wanted(State::True, "GuestsLeft", format!("{staying} stay here as their policy says: {}", stay()))
        }
        (0, _, _) => wanted(State::False, "Blocked", format!("{waiting} cannot leave: {}", wait())),
        (_, 0, _) => wanted(State::False, "Evacuating", format!("{going} are to go to other hosts")),
        (_, _, _) => wanted(
            State::False,
            "Evacuating",
            format!("{going} are to go to other hosts, {waiting} cannot leave: {}", wait()),
        ),
    }
}

/// The first guests with this action, and why.
fn named(machines: &[EvacuationStep], action: EvacuationAction) -> String {
    let mut such = machines.iter().filter(|step| step.action == action);
    let mut names: Vec<String> = such
        .by_ref()
        .take(TOLD)
        .map(|step| {
            let EvacuationStep { namespace, name, reason, message, .. } = step;
            format!("{namespace}/{name} ({})", message.as_ref().unwrap_or(reason))
        })
        .collect();
    let more = such.count();
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names.join(", ")
}

/// Whether the Host's status says all of this already; none if it does not even say the gist of it for the spec as it is.
pub(crate) fn says(host: &Host, report: &Report) -> Option<bool> {
    let status = host.status.as_ref()?;
    let (said, wanted) = (find(&status.conditions, EVACUATED)?, report.condition.as_ref()?);
    status.evacuation.as_ref()?;
    let same_gist = said.status == wanted.state.as_str()
        && said.reason == wanted.reason
        && said.observed_generation == host.metadata.generation;
    same_gist.then(|| said.message == wanted.message && status.evacuation == report.evacuation)
}

/// What happened between what a Host's status says and what it is to say, for people.
pub(crate) fn news(host: &Host, report: &Report) -> Option<(Severity, &'static str, String)> {
    let conditions = host.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let before = find(conditions, EVACUATED);
    match (&report.condition, before) {
        (Some(now), Some(before)) if now.reason == before.reason => None,
        (Some(now), _) => Some(match (now.state, now.reason) {
            (State::True, _) => (Severity::Normal, "Evacuated", now.message.clone()),
            (State::False | State::Unknown, "Blocked") => {
                (Severity::Warning, "EvacuationBlocked", now.message.clone())
            }
            (State::False | State::Unknown, _) => (Severity::Normal, "Evacuating", now.message.clone()),
        }),
        (None, Some(_)) => {
            let evacuated = is_true(conditions, EVACUATED);
            let what = if evacuated { "it takes guests again" } else { "what had not begun to move stays" };
            Some((Severity::Normal, "MaintenanceEnded", format!("the maintenance is over: {what}")))
        }
        (None, None) => None,
    }
}
