//! The whole policy of a host, pure.

use super::heartbeat::Heartbeat;
use crate::{
    evacuation,
    view::{has_finalizer, is_deleting},
};
use jiff::Timestamp;
use kubexen_crds::{
    Host,
    condition::{State, Wanted, is_true},
    names::HEARTBEAT_TIMEOUT_SECONDS,
};
use kubexen_runtime::Key;
use std::{sync::Arc, time::Duration};

/// How long a host's agent may be silent.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(HEARTBEAT_TIMEOUT_SECONDS);
/// How often what an agent's access consists of is compared with what it should be.
pub(crate) const ACCESS_LOOK: Duration = Duration::from_secs(300);

/// What is known of a host at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// The host.
    pub(crate) host: Arc<Host>,
    /// Its agent's heartbeat.
    pub(crate) heartbeat: Heartbeat,
    /// Whether its present boot is fenced.
    pub(crate) fenced: bool,
    /// How long ago its agent's access was looked after; none if this process never did.
    pub(crate) access_age: Option<Duration>,
    /// Its Domains, if it is being deleted.
    pub(crate) domains: Vec<Key>,
    /// Its Volumes, if it is being deleted.
    pub(crate) volumes: Vec<Key>,
    /// What there is to know for emptying it, or for ending that.
    pub(crate) evacuation: Option<evacuation::Observed>,
}

/// What is to be done about a host, and what is to be said of it then.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// What to do, in this order.
    pub(crate) actions: Vec<Action>,
    /// The conditions; none leaves them as they are.
    pub(crate) report: Option<Vec<Wanted>>,
    /// What empties the host.
    pub(crate) evacuation: Option<evacuation::Plan>,
    /// When to look again even if nothing changes.
    pub(crate) again: Option<Duration>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Put the controller's finalizer on the host.
    AddFinalizer,
    /// Make or mend the agent's namespace, identity and rights.
    GrantAccess,
    /// See by a linearizable read that nothing is left on the host, and take the finalizer off.
    LetGo,
}

/// What to do about a host.
pub(crate) fn decide(observed: &Observed, now: Timestamp) -> Plan {
    let host = &*observed.host;
    match (is_deleting(host), has_finalizer(host)) {
        (true, false) => Plan::default(),
        (false, false) => Plan { actions: vec![Action::AddFinalizer], ..Plan::default() },
        (true, true) => delete(observed, now),
        (false, true) => keep(observed, now),
    }
}

/// The host is wanted no more. Until it is empty its agent has to work: guests and disks are its to remove.
fn delete(observed: &Observed, now: Timestamp) -> Plan {
    let left = match (observed.domains.first(), observed.volumes.first()) {
        (Some(domain), _) => (domain, "Domain", "DomainsLeft", observed.domains.len()),
        (None, Some(volume)) => (volume, "Volume", "VolumesLeft", observed.volumes.len()),
        (None, None) => return Plan { actions: vec![Action::LetGo], ..Plan::default() },
    };
    let (first, kind, reason, count) = left;
    let message = format!(
        "the host is being deleted and waits for its last {kind}: {count} left, {first} among them; halt or delete \
         what they belong to"
    );
    let mut plan = keep(observed, now);
    if let Some(report) = &mut plan.report {
        report.push(Wanted::new("Released", State::False, reason, message));
    }
    plan
}

fn keep(observed: &Observed, now: Timestamp) -> Plan {
    let access = observed.access_age.map_or(Duration::ZERO, |age| ACCESS_LOOK.saturating_sub(age));
    let actions = if access.is_zero() { vec![Action::GrantAccess] } else { Vec::new() };
    let (ready, fresh_for) = readiness(observed);
    let evacuation = observed.evacuation.as_ref().map(|evacuation| evacuation::decide(evacuation, now));
    let next_look = evacuation.as_ref().and_then(|plan| plan.again).unwrap_or(Duration::MAX);
    let again = if access.is_zero() { fresh_for } else { fresh_for.min(access) }.min(next_look);
    Plan {
        actions,
        report: ready.map(|ready| vec![ready]),
        evacuation,
        again: (again < Duration::MAX).then_some(again),
    }
}

/// The condition Ready, and for how long it holds if nothing is heard.
fn readiness(observed: &Observed) -> (Option<Wanted>, Duration) {
    let conditions =
        observed.host.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    if observed.fenced {
        return (Some(fenced(&Key::of(&*observed.host).name)), Duration::MAX);
    }
    match observed.heartbeat {
        Heartbeat::Beaten(age) if age < TIMEOUT => (Some(reporting()), TIMEOUT - age),
        // What was said before this process began is believed until the heartbeat shows or is overdue.
        Heartbeat::Unwitnessed(age) if age < TIMEOUT => {
            (is_true(conditions, "Ready").then(reporting), TIMEOUT - age)
        }
        Heartbeat::Beaten(_) | Heartbeat::Unwitnessed(_) => (Some(silent()), Duration::MAX),
        Heartbeat::Never => (Some(never_seen(&Key::of(&*observed.host).name)), Duration::MAX),
    }
}

fn reporting() -> Wanted {
    Wanted::new("Ready", State::True, "AgentReporting", "the host's agent reports")
}

fn silent() -> Wanted {
    let message = format!(
        "the host's agent has not renewed its heartbeat for {HEARTBEAT_TIMEOUT_SECONDS} s or more: see whether the host and \
         its agent run and reach the API server"
    );
    Wanted::new("Ready", State::Unknown, "AgentSilent", message)
}

fn fenced(host: &str) -> Wanted {
    let message = format!(
        "this boot of the host is fenced: it lost its lease, and its guests may run elsewhere by now; reboot it, or see that \
         it runs no protected guest and name its boot in `spec.fencing.unfenced` of Host {host}"
    );
    Wanted::new("Ready", State::False, "Fenced", message)
}

fn never_seen(host: &str) -> Wanted {
    let message = format!("no agent has reported yet: start one on host {host} with this host's credentials");
    Wanted::new("Ready", State::False, "AgentNeverSeen", message)
}
