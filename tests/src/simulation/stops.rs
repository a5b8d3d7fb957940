//! Whether a guest may be stopped: what users want of it at that moment, by the server's own objects and not by what a program has seen
//! of them (I4).
//!
//! To delete a Domain is to stop its guest, so its deletion is judged when it is written, and what an agent does then needs no other
//! reason. Nobody can ask for a machine and delete its Domain in one transaction, so whoever deletes may also go by what it has read of
//! the machine just before.

use super::users::PEOPLE;
use crate::memory_api::{Object, Write};
use kubexen_crds::names::{RESTART_REQUESTED_AT, host_namespace};
use kubexen_node_agent::hypervisor::{DomainInfo, DomainState};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// How long a controller may lead on after it was heard of last, and so take to write what it has decided by what it read.
const LEADS: Duration = Duration::from_secs(10);

/// What users want of their machines.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// The machines that there are, by uid.
    machines: BTreeMap<String, Arc<Object>>,
    /// Hosts in maintenance, by namespace.
    in_maintenance: BTreeSet<String>,
    /// What a client has read of a machine last, and when.
    read: BTreeMap<(String, String), (Instant, Arc<Object>)>,
}

impl Wishes {
    /// Somebody wrote a machine or a host.
    pub(super) fn wrote(&mut self, write: &Write<'_>) {
        let metadata = &write.object["metadata"];
        match write.kind {
            "VirtualMachine" if write.deleted => drop(self.machines.remove(text(&metadata["uid"]))),
            "VirtualMachine" => {
                self.machines.insert(text(&metadata["uid"]).to_owned(), Arc::clone(write.object));
            }
            "Host" => {
                let namespace = host_namespace(text(&metadata["name"]));
                if write.object["spec"]["maintenance"]["enabled"] == true {
                    self.in_maintenance.insert(namespace);
                } else {
                    self.in_maintenance.remove(&namespace);
                }
            }
            _ => {}
        }
    }

    /// A client was shown a machine as it is at this moment.
    pub(super) fn read(&mut self, client: &str, machine: &Value) {
        let uid = text(&machine["metadata"]["uid"]);
        if let Some(present) = self.machines.get(uid) {
            let key = (client.to_owned(), uid.to_owned());
            self.read.insert(key, (Instant::now(), Arc::clone(present)));
        }
    }

    /// Why this client may not end a guest by deleting this Domain; none if it may, as people may, whatever else they want.
    pub(super) fn forbid_deletion(&self, client: &str, domain: &Value) -> Option<String> {
        if client == PEOPLE {
            return None;
        }
        let uid = text(&domain["spec"]["virtualMachine"]["uid"]);
        let now = self.machines.get(uid)?;
        let read = self.read.get(&(client.to_owned(), uid.to_owned()));
        let read = read.filter(|(at, _)| at.elapsed() < LEADS).map(|(_, machine)| machine);
        let wanted = [now].into_iter().chain(read).all(|machine| self.wants(machine, domain));
        wanted.then(|| format!("its machine is to be {}", text(&now["spec"]["powerState"])))
    }

    /// Why the guest of this Domain may not be told to restart, as it was; none if it may.
    pub(super) fn forbid_restart(&self, before: &Value, domain: &Value) -> Option<String> {
        let asked = &domain["spec"]["restartRequested"];
        if asked.is_null() || before["spec"]["restartRequested"] == *asked {
            return None;
        }
        let machine = self.machines.get(text(&domain["spec"]["virtualMachine"]["uid"]))?;
        restart_of(machine).is_null().then(|| format!("nobody has asked for the restart {asked}"))
    }

    /// Whether a machine is to have the guest that it has in this Domain. What is to be saved may not be lost either.
    fn wants(&self, machine: &Value, domain: &Value) -> bool {
        let (asked, handled) = (restart_of(machine), &domain["spec"]["restartRequested"]);
        let restarts = !asked.is_null() && asked != handled;
        let moves_out = self.in_maintenance.contains(text(&domain["metadata"]["namespace"]))
            && machine["spec"]["lifecycle"]["onMaintenance"] == "Restart";
        let on =
            machine["spec"]["powerState"] != "Halted" && machine["metadata"]["deletionTimestamp"].is_null();
        on && !restarts && !moves_out
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn restart_of(machine: &Value) -> &Value {
    &machine["metadata"]["annotations"][RESTART_REQUESTED_AT]
}

/// Whether a domain in this state can execute without another word of the pool's store.
pub(super) fn may_run(state: DomainState) -> bool {
    match state {
        DomainState::Running | DomainState::Paused => true,
        // What a dying domain still writes is judged in the end.
        DomainState::Dying
        | DomainState::HalfBuilt
        | DomainState::Suspended
        | DomainState::Restored
        | DomainState::Shutdown(_) => false,
    }
}

/// Why this domain must not be stopped now, given the truth about its object.
///
/// A copy of a guest that stands still here while the guest is elsewhere may go, and nothing else that is whole.
pub(super) fn may_be_stopped(
    present: &DomainInfo,
    record: Option<&Object>,
    is_elsewhere: bool,
) -> Result<(), String> {
    let Some(record) = record else { return Err("it has no object on this host".to_owned()) };
    match present.state {
        DomainState::HalfBuilt | DomainState::Shutdown(_) | DomainState::Dying => return Ok(()),
        DomainState::Suspended | DomainState::Restored if is_elsewhere => return Ok(()),
        DomainState::Running | DomainState::Paused | DomainState::Suspended | DomainState::Restored => {}
    }
    let asked = &record["spec"]["restartRequested"];
    let restart = !asked.is_null() && *asked != record["status"]["restartHandled"];
    if restart || !record["metadata"]["deletionTimestamp"].is_null() {
        return Ok(());
    }
    Err(format!("it is {:?}, and its object is wanted", present.state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn machine(state: &str) -> Value {
        json!({"metadata": {"uid": "u-1", "name": "web"}, "spec": {"powerState": state}})
    }

    fn domain() -> Value {
        json!({
            "metadata": {"namespace": "kubexen-host-host-a", "name": "shop.web"},
            "spec": {"virtualMachine": {"uid": "u-1"}},
        })
    }

    fn wrote(wishes: &mut Wishes, kind: &str, object: Value) {
        let object = &Arc::new(Object::new(object));
        wishes.wrote(&Write { client: PEOPLE, kind, before: None, object, deleted: false });
    }

    fn is_forbidden(wishes: &Wishes) -> bool {
        wishes.forbid_deletion("controller-0", &domain()).is_some()
    }

    #[test]
    fn the_domain_of_a_machine_that_is_to_be_on_is_not_deleted() {
        let mut wishes = Wishes::default();
        assert!(!is_forbidden(&wishes), "there is no such machine");
        for (state, wanted) in [("Running", true), ("Paused", true), ("Suspended", true), ("Halted", false)] {
            wrote(&mut wishes, "VirtualMachine", machine(state));
            assert_eq!(is_forbidden(&wishes), wanted, "{state}");
        }
    }

    #[test]
    fn a_restart_that_is_asked_for_and_a_host_in_maintenance_are_reasons() {
        let mut wishes = Wishes::default();
        let mut asked = machine("Running");
        asked["metadata"]["annotations"] = json!({RESTART_REQUESTED_AT: "noon"});
        wrote(&mut wishes, "VirtualMachine", asked);
        assert!(!is_forbidden(&wishes));
        let mut moves = machine("Running");
        moves["spec"]["lifecycle"] = json!({"onMaintenance": "Restart"});
        wrote(&mut wishes, "VirtualMachine", moves);
        assert!(is_forbidden(&wishes));
        let host = json!({"metadata": {"name": "host-a"}, "spec": {"maintenance": {"enabled": true}}});
        wrote(&mut wishes, "Host", host);
        assert!(!is_forbidden(&wishes));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_just_read_that_the_guest_may_go_may_delete_its_domain_for_a_while() {
        let mut wishes = Wishes::default();
        wrote(&mut wishes, "VirtualMachine", machine("Halted"));
        wishes.read("controller-0", &machine("Halted"));
        wrote(&mut wishes, "VirtualMachine", machine("Running"));
        assert!(!is_forbidden(&wishes));
        tokio::time::sleep(LEADS).await;
        assert!(is_forbidden(&wishes));
    }

    #[test]
    fn a_restart_that_nobody_asked_for_is_not_told() {
        let mut wishes = Wishes::default();
        wrote(&mut wishes, "VirtualMachine", machine("Running"));
        let mut told = domain();
        told["spec"]["restartRequested"] = "noon".into();
        assert!(wishes.forbid_restart(&domain(), &told).is_some());
        assert!(wishes.forbid_restart(&told, &told).is_none(), "it was told before");
    }
}
