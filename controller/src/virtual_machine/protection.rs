//! Whether a machine that is to be protected can be.

use super::{
    decide::is_protected,
    problem::Problem,
    references::{Disk, Resolved, Site},
};
use crate::{
    placement::{Rejections, Request, reserve::unsuited},
    recovery::Obstacle,
    scheduler::{host_view, request_to_start},
    view::View,
};
use kubexen_crds::{
    Host, HostProtection, ProtectionState, VirtualMachine, VirtualMachineStatus,
    condition::{State, Wanted, find},
};
use kubexen_runtime::{Key, events::Severity};

const PROTECTED: &str = "Protected";

/// The hosts that a machine could run on, whatever state they are in and whatever is used of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Choice {
    /// At least two.
    Several,
    /// Only this one, and why none of the others.
    Only(String, Rejections),
    /// None, and why.
    None(Rejections),
}

/// What is to be said of a machine's protection, whose guest is on this host; nothing of one that is not to be protected.
/// `obstacle` is why nobody is in this pool, if nobody is.
pub(super) fn observe(
    view: &View,
    machine: &VirtualMachine,
    references: &Result<Resolved, Problem>,
    host: Option<&str>,
    obstacle: Option<Obstacle>,
) -> Option<Wanted> {
    if !is_protected(machine) {
        return None;
    }
    if let Some(Obstacle { reason, message }) = obstacle {
        return Some(Wanted::new(PROTECTED, State::False, reason, message));
    }
    let choice = |resolved: &Resolved| choice(view, &request_to_start(machine, resolved));
    let host = host.and_then(|host| view.hosts.get(&Key::cluster(host)));
    Some(condition(references, choice, host.as_deref()))
}

/// Why a host cannot promise to stop a guest in time, as its agent says; none if it can.
fn unable(host: &Host) -> Option<String> {
    let name = Key::of(host).name;
    match host.status.as_ref().and_then(|status| status.protection.as_ref()) {
        Some(HostProtection { state: ProtectionState::Ready, .. }) => None,
        Some(HostProtection { state: ProtectionState::Unavailable, message, .. }) => {
            Some(format!("host {name} cannot protect it: {message}"))
        }
        None => Some(format!("host {name} has not said yet whether it can protect guests")),
    }
}

/// Whether the host of a machine that refers to this is to guard it: it is to be protected, and no disk binds it to that host,
/// which would stop it for nothing.
pub(super) fn guards(machine: &VirtualMachine, resolved: &Resolved) -> bool {
    is_protected(machine) && resolved.disks.iter().all(|disk| bound(disk).is_none())
}

/// Whether the host of a machine that has a Domain is to guard it. As long as not all is known that the machine refers to, what
/// its Domain says stands.
pub(super) fn is_to_be_guarded(
    machine: &VirtualMachine,
    references: &Result<Resolved, Problem>,
    in_part: Option<&Resolved>,
    present: bool,
) -> bool {
    match references {
        Ok(resolved) => guards(machine, resolved),
        Err(_) => {
            let known = in_part.map_or(is_protected(machine), |resolved| guards(machine, resolved));
            present && known
        }
    }
}

/// The condition, of a machine that refers to this, has this choice of hosts, and is on this one.
pub(super) fn condition(
    references: &Result<Resolved, Problem>,
    choice: impl FnOnce(&Resolved) -> Choice,
    host: Option<&Host>,
) -> Wanted {
    let not = |reason, message: String| Wanted::new(PROTECTED, State::False, reason, message);
    let resolved = match references {
        Ok(resolved) => resolved,
        Err(problem) => return not(problem.reason(), problem.message()),
    };
    if let Some(why) = resolved.disks.iter().find_map(bound) {
        return not(
            "LocalDisk",
            format!(
                "{why}, so the machine cannot start elsewhere when that host dies: use a shared repository, or set \
                 `spec.availability.restartPriority` to None"
            ),
        );
    }
    match choice(resolved) {
        Choice::Several => match host.and_then(unable) {
            None => Wanted::new(
                PROTECTED,
                State::True,
                "Protected",
                "the machine is started on another host when its own dies",
            ),
            Some(why) => not("HostCannotProtect", why),
        },
        Choice::Only(host, why) => {
            not("NoOtherHost", format!("no host but {host} can run the machine: {why}"))
        }
        Choice::None(why) => not("NoOtherHost", format!("no host can run the machine: {why}")),
    }
}

/// Why the disk is on one host alone, if it is.
fn bound(disk: &Disk) -> Option<String> {
    let name = Key::of(&*disk.disk).name;
    match &disk.site {
        Site::On(host) => Some(format!("disk {name} is on host {host} alone")),
        Site::New { shared: false, .. } => Some(format!(
            "disk {name} will be on one host alone, as repository {} is",
            disk.disk.spec.repository
        )),
        Site::Shared { .. } | Site::New { shared: true, .. } => None,
    }
}

fn choice(view: &View, request: &Request) -> Choice {
    let hosts = view.hosts.list();
    let mut rejections = Rejections::default();
    let mut only = None;
    for host in &hosts {
        match unsuited(&host_view(view, host), request) {
            Some(why) => rejections.merge(&why),
            None if only.is_some() => return Choice::Several,
            None => only = Some(Key::of(&**host).name),
        }
    }
    match only {
        Some(host) => Choice::Only(host, rejections),
        None => Choice::None(rejections),
    }
}

/// What people should hear of: that a machine cannot be protected.
pub(super) fn happening(
    before: Option<&VirtualMachineStatus>,
    conditions: &[Wanted],
) -> Option<(Severity, &'static str, String)> {
    let said = conditions.iter().find(|condition| condition.type_ == PROTECTED)?;
    let known = before.and_then(|before| find(&before.conditions, PROTECTED));
    let is_news =
        known.is_none_or(|known| known.status != said.state.as_str() || known.reason != said.reason);
    (is_news && said.state == State::False).then(|| (Severity::Warning, "NotProtected", said.message.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{placement::Reason, samples, virtual_machine::references::Disk};
    use kubexen_crds::{
        HostSpec, HostStatus, RestartPriority, VirtualDisk, VirtualDiskSpec, quantity::HostSelector,
    };
    use std::sync::Arc;

    fn with_disk(site: Site) -> Resolved {
        let spec = VirtualDiskSpec {
            repository: "fast".to_owned(),
            ..serde_json::from_value(serde_json::json!({"repository": "fast", "size": "1Gi"}))
                .expect("a spec")
        };
        let disk = VirtualDisk { metadata: samples::named("shop", "root", "d-1"), spec, status: None };
        Resolved {
            machine: samples::resolved_machine(),
            disks: vec![Disk { disk: Arc::new(disk), site, shared: None }],
            networks: Vec::new(),
            saved_state: None,
            images: Vec::new(),
        }
    }

    fn no_network(hosts: u32) -> Rejections {
        let mut rejections = Rejections::default();
        rejections.add(hosts, || Reason::NetworkNotAttached("prod".to_owned()));
        rejections
    }

    #[test]
    fn a_machine_is_protected_if_two_hosts_can_run_it_and_no_disk_binds_it_to_one() {
        let selector = HostSelector::default();
        let new = |shared| Site::New { location: "ssd".to_owned(), shared, selector: selector.clone() };
        let on_a = || Site::On("a".to_owned());
        let only = || Choice::Only("a".to_owned(), no_network(2));
        let advice = "so the machine cannot start elsewhere when that host dies: use a shared repository, or set \
                      `spec.availability.restartPriority` to None";
        let cases = [
            (
                shared(),
                Choice::Several,
                "Protected",
                "the machine is started on another host when its own dies".to_owned(),
            ),
            (
                new(true),
                Choice::Several,
                "Protected",
                "the machine is started on another host when its own dies".to_owned(),
            ),
            (on_a(), Choice::Several, "LocalDisk", format!("disk root is on host a alone, {advice}")),
            (
                new(false),
                Choice::Several,
                "LocalDisk",
                format!("disk root will be on one host alone, as repository fast is, {advice}"),
            ),
            (
                shared(),
                only(),
                "NoOtherHost",
                "no host but a can run the machine: 0/2 hosts fit: 2 network prod not attached".to_owned(),
            ),
            (
                shared(),
                Choice::None(no_network(3)),
                "NoOtherHost",
                "no host can run the machine: 0/3 hosts fit: 3 network prod not attached".to_owned(),
            ),
        ];
        for (site, choice, reason, message) in cases {
            let said = condition(&Ok(with_disk(site)), |_| choice, None);
            assert_eq!((said.type_, said.reason, said.message), ("Protected", reason, message));
            assert_eq!(said.state == State::True, reason == "Protected");
        }
    }

    fn shared() -> Site {
        Site::Shared {
            location: "san".to_owned(),
            storage: "san-1".to_owned(),
            selector: HostSelector::default(),
        }
    }

    #[test]
    fn a_machine_on_a_host_that_cannot_protect_it_says_so_in_the_words_of_that_host() {
        let host = |protection: Option<(ProtectionState, &str)>| {
            let protection = protection.map(|(state, message)| HostProtection {
                state,
                message: message.to_owned(),
                epoch: None,
            });
            let mut host = Host::new("a", HostSpec::default());
            host.status = Some(HostStatus { protection, ..HostStatus::default() });
            host
        };
        let unavailable = Some((ProtectionState::Unavailable, "both watchdog timers are in use"));
        let cases = [
            (host(Some((ProtectionState::Ready, ""))), None),
            (host(unavailable), Some("host a cannot protect it: both watchdog timers are in use")),
            (host(None), Some("host a has not said yet whether it can protect guests")),
        ];
        for (host, why) in cases {
            let said = condition(&Ok(with_disk(shared())), |_| Choice::Several, Some(&host));
            match why {
                None => assert_eq!(said.state, State::True),
                Some(why) => assert_eq!(
                    (said.state, said.reason, said.message.as_str()),
                    (State::False, "HostCannotProtect", why)
                ),
            }
        }
        let local = condition(
            &Ok(with_disk(Site::On("a".to_owned()))),
            |_| Choice::Several,
            Some(&host(unavailable)),
        );
        assert_eq!(local.reason, "LocalDisk", "it would stay so on another host");
    }

    #[test]
    fn no_host_guards_a_machine_that_no_other_could_take() {
        let machine = |restart_priority| {
            let mut machine = samples::virtual_machine("web", "uid");
            machine.spec.availability.restart_priority = restart_priority;
            machine
        };
        let (protected, best_effort) =
            (machine(RestartPriority::Protected), machine(RestartPriority::BestEffort));
        let new =
            |shared| Site::New { location: "ssd".to_owned(), shared, selector: HostSelector::default() };
        let cases =
            [(shared(), true), (new(true), true), (new(false), false), (Site::On("a".to_owned()), false)];
        for (site, guarded) in cases {
            let resolved = with_disk(site);
            let missing = Err(Problem::NetworkNotFound { network: "prod".to_owned() });
            for present in [false, true] {
                let is = is_to_be_guarded(&protected, &Ok(resolved.clone()), None, present);
                assert_eq!(is, guarded, "{:?}", resolved.disks);
                assert!(!is_to_be_guarded(&best_effort, &Ok(resolved.clone()), None, present));
                let is = is_to_be_guarded(&protected, &missing, Some(&resolved), present);
                assert_eq!(is, guarded && present, "what is missing changes nothing");
            }
        }
    }

    #[test]
    fn what_is_missing_is_the_reason_that_it_has_elsewhere_too() {
        let problem = Problem::NetworkNotFound { network: "prod".to_owned() };
        let said = condition(&Err(problem.clone()), |_| Choice::Several, None);
        assert_eq!(
            (said.state, said.reason, said.message),
            (State::False, problem.reason(), problem.message())
        );
    }

    #[test]
    fn people_hear_once_that_a_machine_cannot_be_protected() {
        let local = condition(&Ok(with_disk(Site::On("a".to_owned()))), |_| Choice::Several, None);
        let (_, reason, note) = happening(None, std::slice::from_ref(&local)).expect("an event");
        assert_eq!((reason, note), ("NotProtected", local.message.clone()));
        let conditions =
            kubexen_crds::condition::set(&[], vec![local.clone()], Some(1), jiff::Timestamp::UNIX_EPOCH);
        let status = VirtualMachineStatus { conditions, ..VirtualMachineStatus::default() };
        assert_eq!(happening(Some(&status), &[local]), None);
        assert_eq!(happening(None, &[]), None);
    }
}
