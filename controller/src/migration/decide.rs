//! The whole policy of a migration, pure.

use super::{
    is_empty,
    movable::{self, runs},
    observe::{Beginning, Choice, Observed, host_of},
    stage,
    status::{Cause, Report, Route},
    turns::Turn,
    under_way,
};
use crate::view::{is_deleting, uid};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kubexen_crds::{
    Domain, MigrationPhase, MigrationStage, VirtualMachine, VirtualMachineMigration, condition::find,
};
use kubexen_runtime::Key;
use std::{sync::Arc, time::Duration};

/// How long a destination may take to make ready for a guest.
const PREPARATION: Duration = Duration::from_secs(300);

/// How long a destination may take before that is worth a write.
const QUIET: Duration = Duration::from_secs(3);

/// Clocks that differ by no more than this are taken as they are.
const CLOCKS_DIFFER: Duration = Duration::from_mins(5);

/// How long a destination may take to say that the guest came, once the source has said that it left. After a restore of the pool's
/// store it may have come, and be gone since, and its host knows nothing of it.
const ARRIVAL: Duration = Duration::from_secs(30);

/// What is to be done about a migration, and what is to be said of it then.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// What to do, in this order.
    pub(crate) actions: Vec<Action>,
    /// What the status is to say; none leaves it as it is.
    pub(crate) report: Option<Report>,
    /// When to look again even if nothing changes.
    pub(crate) again: Option<Duration>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Make the Domain on the destination, unless others began meanwhile and the limits are reached.
    Begin {
        /// The destination.
        host: String,
    },
    /// Tell the source's agent to send the guest.
    Send {
        /// The source's Domain.
        domain: Key,
        /// Where the destination's agent listens.
        address: String,
    },
    /// Tell an agent that the migration is called off.
    Cancel(Key),
    /// Delete the Domain that the guest is not in.
    DeleteDomain {
        /// The Domain.
        domain: Key,
        /// Its uid, so that no other of its name is meant.
        uid: String,
    },
}

impl Plan {
    fn act(action: Action) -> Self {
        Self { actions: vec![action], ..Self::default() }
    }

    fn say(report: Report) -> Self {
        Self { report: Some(report), ..Self::default() }
    }

    fn fail(cause: &Cause) -> Self {
        Self::say(Report::ended(cause))
    }

    /// Whether it says that the move did not come about, and not because somebody called it off.
    pub(crate) fn refuses(&self) -> bool {
        self.report.as_ref().is_some_and(Report::is_failure)
    }

    fn and(mut self, action: Option<Action>) -> Self {
        self.actions.extend(action);
        self
    }
}

/// What to do about a migration.
pub(crate) fn decide(observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = decide_of_two(observed, now);
    plan.actions.extend(observed.surplus.iter().filter_map(deletion));
    plan.actions.extend(observed.earlier.iter().flat_map(|earlier| decide(earlier, now).actions));
    plan
}

/// The same, with one destination at the most.
fn decide_of_two(observed: &Observed, now: Timestamp) -> Plan {
    let Some(migration) = &observed.migration else { return call_off(observed) };
    let phase = migration.status.as_ref().and_then(|status| status.phase);
    if phase.is_some_and(MigrationPhase::is_final) {
        return clean_up(observed);
    }
    match &observed.beginning {
        Some(beginning) => begin(observed, migration, beginning),
        None => go_on(observed, migration, now),
    }
}

/// It has not begun.
fn begin(observed: &Observed, migration: &VirtualMachineMigration, beginning: &Beginning) -> Plan {
    if migration.spec.cancel || is_deleting(migration) {
        return Plan::fail(&Cause::Cancelled);
    }
    let Some(machine) = observed.machine.as_deref().filter(|machine| !is_deleting(*machine)) else {
        return Plan::fail(&Cause::MachineNotFound(migration.spec.virtual_machine.clone()));
    };
    if let Err(cause) = refusal(machine, observed.source.as_deref(), migration, beginning) {
        return Plan::fail(&cause);
    }
    if !observed.earlier.is_empty() {
        return Plan::say(Report::waiting(
            "MachineBusy",
            "waits until what an earlier move of the same name has left is ended".to_owned(),
        ));
    }
    let until_it_runs =
        || Plan::say(Report::waiting("NotRunningYet", "waits until the guest runs".to_owned()));
    match (&beginning.turn, &beginning.choice) {
        (_, _) if !observed.source.as_deref().is_some_and(runs) => until_it_runs(),
        (Turn::NotRunningYet, _) => until_it_runs(),
        (Turn::PoolBusy(most), _) => Plan::say(Report::waiting(
            "PoolLimit",
            format!("waits for its turn: {most} moves go on in the pool, as many as Pool default allows"),
        )),
        (Turn::HostBusy(host, most), _) => Plan::say(Report::waiting(
            "HostLimit",
            format!(
                "waits for its turn: host {host} takes part in {most} moves, as many as Pool default allows"
            ),
        )),
        (Turn::MachineBusy(before), _) => Plan::say(Report::waiting(
            "MachineBusy",
            format!("waits for its turn: VirtualMachineMigration {before} moves the same machine"),
        )),
        (Turn::Now(_), Some(Choice::Later(host))) => Plan::say(Report::waiting(
            "HostLimit",
            format!("waits for its turn: host {host} takes part in as many moves as Pool default allows"),
        )),
        (Turn::Now(_), Some(Choice::None(why))) => Plan::fail(&Cause::NoHostFits(why.to_string())),
        (Turn::Now(_), Some(Choice::Unresolved(problem))) => {
            Plan::fail(&Cause::Unresolved(problem.reason(), problem.message()))
        }
        (Turn::Now(_), Some(Choice::Host(host))) => Plan::act(Action::Begin { host: host.clone() }),
        (Turn::Now(_), None) => Plan::default(),
    }
}

/// Why the move cannot be made, however long one waits.
fn refusal(
    machine: &VirtualMachine,
    source: Option<&Domain>,
    migration: &VirtualMachineMigration,
    beginning: &Beginning,
) -> Result<(), Cause> {
    if let Some(cause) = movable::obstacle(machine, source, &beginning.source_sends) {
        return Err(cause);
    }
    if let Some(name) = migration.spec.host.as_ref().filter(|_| !beginning.named_host_exists) {
        return Err(Cause::HostNotFound(name.clone()));
    }
    match source {
        Some(source) if migration.spec.host.as_deref() == Some(host_of(source)) => {
            return Err(Cause::AlreadyThere(host_of(source).to_owned()));
        }
        Some(_) | None => {}
    }
    match (&migration.spec.host, &beginning.named_host_lacks) {
        (Some(host), Some(network)) => {
            Err(Cause::NotOnNetwork { host: host.clone(), network: network.clone() })
        }
        (Some(_) | None, _) => Ok(()),
    }
}

/// It has begun: the destination was chosen.
fn go_on(observed: &Observed, migration: &VirtualMachineMigration, now: Timestamp) -> Plan {
    let (source, destination) = (observed.source.as_ref(), observed.destination.as_ref());
    if let Some(destination) = destination.filter(|domain| !is_empty(domain)) {
        return committed(observed, source, destination);
    }
    let Some(source) = source else {
        return Plan::fail(&Cause::GuestGone).and(destination.and_then(deletion));
    };
    let Some(destination) = destination else {
        return match end_at_source(observed, source) {
            Ended::Yes | Ended::NeverBegan => Plan::fail(&Cause::of(source, Cause::DestinationGone)),
            // The machine was stopped, or started elsewhere, since the guest went over.
            Ended::Left(host) => Plan::say(Report::succeeded(Some(source), &host)).and(deletion(source)),
            Ended::No => Plan::default().and(cancellation(source)),
        };
    };
    let wanted_off = migration.spec.cancel || is_deleting(migration);
    let end = |otherwise: Cause| {
        let cause = match wanted_off {
            // Either end that is told first seems to the other to have failed.
            true => Cause::Cancelled,
            false => Cause::of(source, Cause::of(destination, otherwise)),
        };
        Plan::fail(&cause).and(deletion(destination))
    };
    let waited = waited(destination, now);
    let route = || Route::of(source, destination);
    match (end_at_source(observed, source), stage(destination)) {
        (Ended::Yes, _) => end(Cause::Cancelled),
        (Ended::NeverBegan, Some(MigrationStage::Aborted)) => end(Cause::Cancelled),
        (Ended::NeverBegan, _) if wanted_off => end(Cause::Cancelled),
        (Ended::NeverBegan, Some(MigrationStage::Awaiting)) => match (&observed.address, runs(source)) {
            (Some(address), true) => Plan {
                report: Some(Report::copying(route())),
                ..Plan::act(Action::Send { domain: Key::of(&**source), address: address.clone() })
            },
            (None, _) => end(Cause::DestinationDoesNotListen(host_of(destination).to_owned())),
            (Some(_), false) => end(Cause::NotRunning("stopping")),
        },
        (Ended::NeverBegan, _) if waited < QUIET => Plan { again: Some(QUIET - waited), ..Plan::default() },
        (Ended::NeverBegan, _) if waited < PREPARATION => {
            Plan { again: Some(PREPARATION - waited), ..Plan::say(Report::preparing(route())) }
        }
        (Ended::NeverBegan, _) => {
            let conditions = destination.status.as_ref().map(|status| status.conditions.as_slice());
            let ready = find(conditions.unwrap_or_default(), "Ready").filter(|ready| ready.status != "True");
            let said = ready.map(|ready| ready.message.clone());
            end(Cause::NotPrepared { host: host_of(destination).to_owned(), said })
        }
        (Ended::No, Some(MigrationStage::Aborted)) => Plan::default().and(cancellation(source)),
        // Only a store that was restored from a backup lets both say so. What the guest was is gone; it is started anew.
        (Ended::Left(_), Some(MigrationStage::Aborted)) => {
            Plan::fail(&Cause::GuestLost).and(deletion(destination))
        }
        (Ended::No | Ended::Left(_), _) if wanted_off => {
            Plan::default().and(cancellation(source)).and(cancellation(destination))
        }
        (Ended::No, _) => Plan::say(Report::copying(route())),
        (Ended::Left(_), _) => {
            let plan = Plan::say(Report::copying(route()));
            match ARRIVAL.saturating_sub(left_for(source, now)) {
                Duration::ZERO => plan.and(cancellation(destination)),
                rest => Plan { again: Some(rest), ..plan },
            }
        }
    }
}

/// The destination owns the guest.
fn committed(observed: &Observed, source: Option<&Arc<Domain>>, destination: &Arc<Domain>) -> Plan {
    match source.filter(|domain| under_way(domain).is_some()) {
        // What its agent has to tell of the transfer belongs into the record.
        Some(_) if observed.source_ready => Plan::default(),
        Some(_) | None => Plan::say(Report::succeeded(source.map(|domain| &**domain), host_of(destination)))
            .and(source.filter(|domain| is_empty(domain)).and_then(deletion)),
    }
}

/// How it ended at the source.
enum Ended {
    /// It has taken the guest back for good, and told so.
    Yes,
    /// It was never told to send the guest.
    NeverBegan,
    /// The guest went over to this host, and the source told so.
    Left(String),
    /// Nobody knows yet.
    No,
}

fn end_at_source(observed: &Observed, source: &Domain) -> Ended {
    let Some(wanted) = source.spec.migration.as_ref().filter(|_| observed.told_to_send) else {
        return Ended::NeverBegan;
    };
    match stage(source) {
        Some(MigrationStage::Aborted) => Ended::Yes,
        Some(MigrationStage::Committed) => Ended::Left(wanted.peer.clone()),
        Some(MigrationStage::Awaiting) | None => Ended::No,
    }
}

fn cancellation(domain: &Arc<Domain>) -> Option<Action> {
    let migration = under_way(domain)?;
    (!migration.cancel).then(|| Action::Cancel(Key::of(&**domain)))
}

fn deletion(domain: &Arc<Domain>) -> Option<Action> {
    let action = || Action::DeleteDomain { domain: Key::of(&**domain), uid: uid(&**domain).to_owned() };
    (!is_deleting(&**domain)).then(action)
}

/// How long ago the move began, as far as clocks agree.
fn waited(destination: &Domain, now: Timestamp) -> Duration {
    since(destination.metadata.creation_timestamp.as_ref(), now)
}

/// How long ago the source said that the guest left, as far as clocks agree.
fn left_for(source: &Domain, now: Timestamp) -> Duration {
    let conditions = source.status.as_ref().map(|status| status.conditions.as_slice());
    since(find(conditions.unwrap_or_default(), "Ready").map(|ready| &ready.last_transition_time), now)
}

/// How long ago that was. What a clock that ran ahead dated far into the future counts as long ago: nobody waits for that day.
fn since(then: Option<&Time>, now: Timestamp) -> Duration {
    let Some(passed) = then.map(|then| now.duration_since(then.0)) else { return Duration::ZERO };
    let far_ahead = passed.is_negative() && passed.unsigned_abs() > CLOCKS_DIFFER;
    if far_ahead { Duration::MAX } else { Duration::try_from(passed).unwrap_or_default() }
}

/// The record is complete: what is left of it goes.
fn clean_up(observed: &Observed) -> Plan {
    let (source, destination) = (observed.source.as_ref(), observed.destination.as_ref());
    let action =
        match (source.filter(|domain| is_empty(domain)), destination.filter(|domain| is_empty(domain))) {
            // It is at the destination, or was: the machine may have been stopped there since.
            (Some(left), None) => deletion(left),
            (Some(_), Some(never_came)) if stage(never_came) == Some(MigrationStage::Aborted) => {
                deletion(never_came)
            }
            // The source says that the guest has left: the destination has to say whether it came.
            (Some(_), Some(awaited)) => cancellation(awaited),
            (None, never_came) => never_came.and_then(deletion),
        };
    Plan::default().and(action)
}

/// The migration was deleted: what its agents have not committed is called off.
fn call_off(observed: &Observed) -> Plan {
    let (source, destination) = (observed.source.as_ref(), observed.destination.as_ref());
    if destination.is_some_and(|domain| !is_empty(domain)) {
        return clean_up(observed);
    }
    match source.map(|source| end_at_source(observed, source)) {
        Some(Ended::No) => {
            Plan::default().and(source.and_then(cancellation)).and(destination.and_then(cancellation))
        }
        Some(Ended::Yes | Ended::NeverBegan | Ended::Left(_)) | None => clean_up(observed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_fast_clock_dated_far_into_the_future_counts_as_long_ago() {
        let now: Timestamp = "2026-11-01T12:00:00Z".parse().unwrap();
        let at = |seconds: i64| Time(now + jiff::SignedDuration::from_secs(seconds));
        assert_eq!(since(Some(&at(-7)), now), Duration::from_secs(7));
        assert_eq!(since(Some(&at(7)), now), Duration::ZERO, "clocks differ");
        assert_eq!(since(Some(&at(86_400)), now), Duration::MAX);
        assert_eq!(since(None, now), Duration::ZERO);
    }
}
