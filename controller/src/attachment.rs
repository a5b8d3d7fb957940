//! What Networks and StorageRepositories have in common: hosts attach them, and users keep them from being deleted.

use crate::view::{has_finalizer, is_deleting};
use kube::Resource;
use kubexen_crds::{
    Host,
    condition::{State, Wanted},
    quantity::HostSelector,
};
use kubexen_runtime::Key;
use std::sync::Arc;

/// Hosts that are named in a status at most.
const NAMED: usize = 16;

/// What is known of something that hosts attach.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) deleting: bool,
    pub(crate) has_finalizer: bool,
    /// Number of hosts that have it attached.
    pub(crate) attached: usize,
    /// Hosts that a selector names and that do not have it attached, and those that cannot use what they have; sorted.
    pub(crate) missing: Vec<String>,
    /// The first of those that cannot use it, with what it says.
    pub(crate) hindered: Option<(String, String)>,
    /// What names it, sorted.
    pub(crate) users: Vec<Key>,
}

/// What is to be done about it, and what is to be said of it then.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// What to do, if anything.
    pub(crate) action: Option<Action>,
    /// What the status is to say; none leaves it as it is.
    pub(crate) report: Option<Report>,
}

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Put the controller's finalizer on it.
    AddFinalizer,
    /// Take it off.
    RemoveFinalizer,
}

/// What is to be said.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report {
    pub(crate) attached_hosts: i32,
    pub(crate) missing_hosts: Vec<String>,
    pub(crate) ready: Wanted,
}

/// Looks at the hosts: `offers` says whether a host has what the object names, and if not, why it cannot use it although
/// its agent's configuration names it.
pub(crate) fn observe(
    object: &impl Resource,
    hosts: &[Arc<Host>],
    selector: &HostSelector,
    users: Vec<Key>,
    offers: impl Fn(&Host) -> Result<(), Option<String>>,
) -> Observed {
    let no_labels = std::collections::BTreeMap::new();
    let matching = hosts.iter().filter(|host| {
        // A host that never reported is not known to lack anything.
        host.status.as_ref().is_some_and(|status| status.xen.is_some())
            && selector.matches(host.metadata.labels.as_ref().unwrap_or(&no_labels))
    });
    // Without a selector it is for those hosts that happen to have it.
    let expected = !selector.match_labels.is_empty();
    let (mut attached, mut missing, mut hindered) = (0, Vec::new(), Vec::new());
    for host in matching {
        let name = Key::of(&**host).name;
        match offers(host) {
            Ok(()) => attached += 1,
            Err(Some(why)) => {
                missing.push(name.clone());
                hindered.push((name, why));
            }
            Err(None) if expected => missing.push(name),
            Err(None) => {}
        }
    }
    missing.sort();
    Observed {
        deleting: is_deleting(object),
        has_finalizer: has_finalizer(object),
        attached,
        missing,
        hindered: hindered.into_iter().min(),
        users,
    }
}

/// What to do. `what` names the thing for people, `user` those that use it.
///
/// Users are looked for in the mirror: what a deletion takes away is a name, and a machine that named it at the same
/// moment says that it is missing.
pub(crate) fn decide(observed: &Observed, what: &str, user: &str) -> Plan {
    let Observed { deleting, has_finalizer, attached, missing, hindered, users } = observed;
    let act = |action| Plan { action: Some(action), report: None };
    let ready = match (deleting, has_finalizer, users.first()) {
        (true, false, _) => return Plan::default(),
        (false, false, _) => return act(Action::AddFinalizer),
        (true, true, None) => return act(Action::RemoveFinalizer),
        (true, true, Some(first)) => {
            let more = if users.len() > 1 { format!(" and {} more", users.len() - 1) } else { String::new() };
            let message =
                format!("being deleted, but used by {user} {first}{more}: change or delete what uses it");
            Wanted::new("Ready", State::False, "InUse", message)
        }
        (false, true, _) => readiness(*attached, missing, hindered.as_ref(), what),
    };
    let missing_hosts = missing.iter().take(NAMED).cloned().collect();
    let attached_hosts = i32::try_from(*attached).unwrap_or(i32::MAX);
    Plan { action: None, report: Some(Report { attached_hosts, missing_hosts, ready }) }
}

fn readiness(attached: usize, missing: &[String], hindered: Option<&(String, String)>, what: &str) -> Wanted {
    match (attached, missing.first(), hindered) {
        (_, _, Some((host, why))) => {
            let reason = if attached == 0 { "NotAttached" } else { "HostsMissing" };
            let message =
                format!("{} host(s) that should have {what} lack it; {host} says: {why}", missing.len());
            Wanted::new("Ready", State::False, reason, message)
        }
        (0, _, None) => Wanted::new(
            "Ready",
            State::False,
            "NotAttached",
            format!("no host has {what}: add it to the configuration of an agent"),
        ),
        (_, Some(first), None) => Wanted::new(
            "Ready",
            State::False,
            "HostsMissing",
            format!("{} host(s) that should have {what} lack it, {first} among them", missing.len()),
        ),
        (count, None, None) => {
            Wanted::new("Ready", State::True, "Attached", format!("{count} host(s) have {what}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed() -> Observed {
        Observed {
            deleting: false,
            has_finalizer: true,
            attached: 2,
            missing: Vec::new(),
            hindered: None,
            users: Vec::new(),
        }
    }

    fn reason(observed: &Observed) -> Option<&'static str> {
        decide(observed, "uplink lan", "VirtualMachine").report.map(|report| report.ready.reason)
    }

    fn action(observed: &Observed) -> Option<Action> {
        decide(observed, "uplink lan", "VirtualMachine").action
    }

    #[test]
    fn every_state_has_its_reason() {
        assert_eq!(reason(&observed()), Some("Attached"));
        assert_eq!(reason(&Observed { attached: 0, ..observed() }), Some("NotAttached"));
        assert_eq!(reason(&Observed { missing: vec!["b".to_owned()], ..observed() }), Some("HostsMissing"));
    }

    #[test]
    fn a_host_that_cannot_use_it_is_named_with_what_it_says() {
        let hindered = Observed {
            missing: vec!["a".to_owned(), "b".to_owned()],
            hindered: Some(("b".to_owned(), "the group is not there".to_owned())),
            ..observed()
        };
        for (attached, expected) in [(2, "HostsMissing"), (0, "NotAttached")] {
            let hindered = Observed { attached, ..hindered.clone() };
            assert_eq!(reason(&hindered), Some(expected));
            let report = decide(&hindered, "location san", "VirtualDisk").report.unwrap();
            assert!(report.ready.message.ends_with("b says: the group is not there"), "{report:?}");
        }
    }

    #[test]
    fn what_is_in_use_is_not_let_go() {
        let deleting = Observed { deleting: true, ..observed() };
        assert_eq!(action(&deleting), Some(Action::RemoveFinalizer));
        let used = Observed { users: vec![Key::new("shop", "web-1")], ..deleting };
        assert_eq!(action(&used), None);
        assert_eq!(reason(&used), Some("InUse"));
    }

    #[test]
    fn the_finalizer_comes_first_and_nothing_is_done_without_it_in_the_end() {
        assert_eq!(action(&Observed { has_finalizer: false, ..observed() }), Some(Action::AddFinalizer));
        let gone = Observed { has_finalizer: false, deleting: true, ..observed() };
        assert_eq!(decide(&gone, "uplink lan", "VirtualMachine"), Plan::default());
    }

    #[test]
    fn at_most_sixteen_missing_hosts_are_named() {
        let many = Observed { missing: (0..40).map(|n| format!("host-{n:02}")).collect(), ..observed() };
        let report = decide(&many, "uplink lan", "VirtualMachine").report.unwrap();
        assert_eq!(report.missing_hosts.len(), 16);
        assert!(report.ready.message.starts_with("40 host(s)"), "{}", report.ready.message);
    }
}
