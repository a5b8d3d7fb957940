//! Whether a protected guest whose host died runs again in time (L2).
//!
//! It is judged where nothing else is in the way: one host is gone, all else works and goes by the clock, nothing stops automation, and
//! another host fits. Whenever that is not so, the time begins anew.

use super::{
    step::Action,
    stops::may_run,
    world::{HOSTS, HostSide, USERS, World},
};
use crate::memory_api::Object;
use kubexen_node_agent::hypervisor::DomainInfo;
use kubexen_ownership::{Phase, VmUid, liveness::Timing};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;
use uuid::Uuid;

/// What a guest may take until it runs elsewhere, besides the lease of its host and the grace.
const START: Duration = Duration::from_mins(1);

/// The guests that are to run again, since when, and by when.
pub(super) type Recoveries = BTreeMap<Uuid, Due>;

/// When a guest's time began, and when it ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    since: Instant,
    by: Instant,
}

impl World {
    /// Judges whether guests that wait for another host have come to one in time.
    pub(super) fn judge_recoveries(&mut self) {
        let waiting = self.waiting();
        self.recoveries.retain(|guest, _| waiting.contains_key(guest));
        for (guest, within) in waiting {
            let now = Instant::now();
            let due = self.recoveries.entry(guest).or_insert(Due { since: now, by: now + within });
            if due.by <= now {
                let waited = due.since.elapsed().as_secs();
                due.by = now + Duration::from_hours(24);
                self.judge
                    .violated("L2", format_args!("{guest} lost its host, and runs nowhere after {waited} s"));
            }
        }
    }

    /// When a guest's time ends next.
    pub(super) fn next_recovery(&self) -> Option<Instant> {
        self.recoveries.values().map(|due| due.by).min()
    }

    /// The protected guests that are lost and have nothing else in their way, each with the time that it has.
    fn waiting(&self) -> BTreeMap<Uuid, Duration> {
        if !self.is_sound() {
            return BTreeMap::new();
        }
        let machines = self.api.objects("virtualmachines");
        let waits = |machine: &Value| {
            let guest: Uuid = machine["metadata"]["uid"].as_str()?.parse().ok()?;
            let is_new = || self.lost_with(guest).is_some();
            let is_due = self.recoveries.contains_key(&guest) || is_new();
            let is_lost = !self.hosts.iter().any(|side| runs(side, guest)) && !self.judge.has_stopped(guest);
            let timing = self.lost_with(guest).map_or(Timing::DEFAULT, |host| self.judge.timing_of(host));
            (is_due && is_lost && self.has_its_place(machine, &machines))
                .then(|| (guest, timing.lease + timing.grace + START))
        };
        machines.iter().filter_map(|machine| waits(machine)).collect()
    }

    /// The host that had promised to stop a guest, and is at another boot.
    fn lost_with(&self, guest: Uuid) -> Option<&'static str> {
        let owner = self.pool_store.owner_on_record(VmUid(guest))?;
        let side = self.hosts.iter().find(|side| side.name == owner.host.as_str())?;
        let is_gone = side.host.boot_id().is_ok_and(|boot| boot != owner.boot_id.as_str());
        (is_gone && owner.guarded && owner.phase == Phase::Running).then_some(side.name)
    }

    /// Whether one host is off at the most, and nothing else is in the way of automation.
    fn is_sound(&self) -> bool {
        let is_latent = |action: &Action| {
            matches!(
                action,
                Action::CrashAtWrite { .. }
                    | Action::FailCall { .. }
                    | Action::FailStorage { .. }
                    | Action::StoreOutageAfterWrite { .. }
                    | Action::StoreLoses { .. }
                    | Action::StoreClock { .. }
                    | Action::StoreRestore { .. }
                    | Action::SetClock { .. }
            )
        };
        let pool = self.api.object("pools", "", "default").unwrap_or_default();
        let up = self.hosts.iter().filter(|side| side.agent.is_up()).count();
        !self.weather.is_bad()
            && self.pool_store.is_current()
            && !self.is_restored
            && !self.is_late
            && up + 1 >= HOSTS.len()
            && self.controllers.iter().all(super::world::Process::is_up)
            && self.nothing_lasts()
            && pool["metadata"].is_object()
            && pool["spec"]["availability"]["disarmed"] != true
            && (self.are_faults_over || !self.taken.iter().any(|step| is_latent(&step.action)))
            && self.fenced_hosts().is_empty()
    }

    /// Whether a machine is to run, is protected, and could do so on another host than its own.
    fn has_its_place(&self, machine: &Value, machines: &[Arc<Object>]) -> bool {
        let (metadata, spec) = (&machine["metadata"], &machine["spec"]);
        let uses = |machine: &Value, disk: &str| {
            let disks = machine["spec"]["disks"].as_array();
            disks.is_some_and(|disks| disks.iter().any(|used| used["disk"] == disk))
        };
        let fits = |disk: &Value| {
            let name = disk["disk"].as_str().unwrap_or_default();
            let object = self.api.object("virtualdisks", USERS, name).unwrap_or_default();
            object["spec"]["repository"] == "san"
                && object["status"]["storage"].is_string()
                && object["metadata"]["deletionTimestamp"].is_null()
                && machines.iter().filter(|other| uses(other, name)).count() == 1
        };
        let moves = self.api.objects("virtualmachinemigrations");
        let lost = metadata["uid"].as_str().and_then(|uid| self.lost_with(uid.parse().ok()?));
        let takes_guests = |host: &&str| {
            if lost == Some(*host) {
                return false;
            }
            let host = self.api.object("hosts", "", host).unwrap_or_default();
            host["spec"]["schedulable"] != false && host["spec"]["maintenance"]["enabled"] != true
        };
        spec["powerState"] == "Running"
            && metadata["deletionTimestamp"].is_null()
            && spec["availability"]["restartPriority"] == "Protected"
            && spec["placement"]["antiAffinity"].is_null()
            && spec["cloudInit"].is_null()
            && spec["disks"].as_array().is_none_or(|disks| disks.iter().all(fits))
            && !moves.iter().any(|one| one["spec"]["virtualMachine"] == metadata["name"])
            && HOSTS.iter().any(takes_guests)
    }
}

fn runs(side: &HostSide, guest: Uuid) -> bool {
    let is_it = |domain: DomainInfo| domain.uuid == guest && may_run(domain.state);
    side.host.domains().unwrap_or_default().into_iter().any(is_it)
}
