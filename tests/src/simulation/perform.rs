//! Carries out steps.

use super::{
    ends::End,
    step::{Action, Call, Failure, Kind, Lost},
    users,
    world::{HostSide, USERS, World},
};
use crate::memory_api::Perfect;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::Resource,
};
use kubexen_crds::{
    Domain, Host, Network, Pool, StorageRepository, VirtualDisk, VirtualMachine, VirtualMachineMigration,
    cloud_init::seed_secret_name,
    names::{host_namespace, host_object_name},
};
use kubexen_node_agent::{hypervisor::DomainState, storage::Storage};
use kubexen_ownership::{Cut, HostName, VmUid};
use serde_json::{Value, json};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::Instant;
use uuid::Uuid;

/// How long a host takes from a reset to the start of its agent.
const BOOT_TIME: Duration = Duration::from_secs(30);

impl World {
    /// Does what a step says. What cannot be done because of how things stand by now is left undone.
    pub(super) async fn perform(&mut self, action: &Action) {
        self.judge.note(format_args!("step: {action}"));
        self.carry_out(action).await;
    }

    /// As [`World::perform`], without a line in the trace.
    pub(super) async fn carry_out(&mut self, action: &Action) {
        match action {
            Action::Create { kind, object } => self.create(*kind, object.clone()).await,
            Action::Change { kind, name, change } => self.change(*kind, name, change.clone()).await,
            Action::Delete { kind, name } => self.delete(*kind, name).await,
            Action::DeleteCopy { host, machine } => self.delete_copy(host, machine).await,
            Action::DeleteDomain { host, machine } => self.delete_domain(host, machine).await,
            Action::Machine { name, availability, disk } => {
                for action in users::plain_machine(name, availability, disk.as_deref()) {
                    Box::pin(self.carry_out(&action)).await;
                }
            }
            Action::ConfirmDead { host } => {
                let boot = self.api.object("hosts", "", host).map(|host| host["status"]["bootID"].clone());
                let confirmed = json!({"spec": {"fencing": {"confirmedDead": boot}}});
                self.change(Kind::Host, host, confirmed).await;
            }
            Action::Expect { machine, on } => self.expect(machine, on.as_deref()),
            Action::ExpectFenced { host, fenced } => self.expect_fenced(host, *fenced),
            Action::ExpectDetached { host } => self.expect_detached(host).await,
            Action::Crash { process, r#for } => {
                let judge = Arc::clone(&self.judge);
                if let Some(running) = self.process(process).filter(|process| process.is_up()) {
                    running.crash(&judge).await;
                    self.effects.had("crash");
                    self.until(r#for.duration(), End::Start(process.clone()));
                }
            }
            Action::CrashAtWrite { process, write, r#for } => {
                self.judge.arm(process, *write);
                self.ends.away = r#for.duration();
            }
            Action::CrashAtCall { process, call, r#for } => {
                let (call, away) = (*call, r#for.duration());
                self.with_process(process, |process| process.end_at_call(call, away));
            }
            Action::Pause { process, r#for } => {
                if let Some(running) = self.process(process) {
                    running.gate.set_shut(true);
                    self.until(r#for.duration(), End::Resume(process.clone()));
                }
            }
            Action::PauseHost { host, r#for } => {
                let Some(number) = self.number(host) else { return };
                self.set_dom0_stopped(number, true);
                self.until(r#for.duration(), End::ResumeHost(number));
            }
            Action::PauseApi { r#for } => {
                self.standstill.set(Some(Instant::now() + r#for.duration()));
            }
            Action::SlowApi { process, late, r#for } => {
                let late = late.duration();
                self.with_process(process, |process| process.wire.set_slow(late));
                self.until(r#for.duration(), End::SlowApi(process.clone()));
            }
            Action::CutFromApi { process, lost, r#for } => {
                if let Some(running) = self.process(process) {
                    running.wire.set_cut(Some(*lost));
                    self.until(r#for.duration(), End::MendApi(process.clone()));
                }
            }
            Action::CutFromStore { process, lost, r#for } => {
                if let Some(running) = self.process(process) {
                    running.store.set_cut(match lost {
                        Lost::Requests | Lost::Both => Cut::Requests,
                        Lost::Answers => Cut::Answers,
                    });
                    self.until(r#for.duration(), End::MendStore(process.clone()));
                }
            }
            Action::CompactApi {} => self.api.compact(),
            Action::CutPower { host, r#for } => {
                let Some(number) = self.number(host) else { return };
                self.lose_host(number).await;
                self.effects.had("cut-power");
                self.until(r#for.duration(), End::Start(self.hosts[number].agent.name.clone()));
            }
            Action::HypervisorOutage { host, r#for } => {
                let Some(number) = self.number(host) else { return };
                self.hosts[number].host.set_unreachable(true);
                self.until(r#for.duration(), End::HypervisorOutage(number));
            }
            Action::FailCall { host, call, failure } => self.fail_call(host, *call, *failure),
            Action::DeafGuests { host, r#for } => {
                let Some(number) = self.number(host) else { return };
                self.hosts[number].host.set_shutdown_time(None);
                self.until(r#for.duration(), End::DeafGuests(number));
            }
            Action::StopGuest { host, machine, reason } => {
                let Some(number) = self.number(host) else { return };
                if let Some(uid) = self.uid_of(machine) {
                    // A domain that is not there, half built or being taken apart has no guest to stop.
                    if self.hosts[number].host.stop_guest(uid, *reason).is_ok() {
                        self.effects.had("stop-guest");
                        self.judge.stops_by_itself(uid);
                    }
                }
            }
            Action::StorageOutage { host, r#for } => {
                let Some(number) = self.number(host) else { return };
                self.hosts[number].storage.set_outage(true);
                self.until(r#for.duration(), End::StorageOutage(number));
            }
            Action::StorageFull { host, r#for } => {
                let Some(number) = self.number(host) else { return };
                self.hosts[number].storage.set_full(true);
                self.until(r#for.duration(), End::StorageFull(number));
            }
            Action::Dom0Full { host, r#for } => {
                let Some(number) = self.number(host) else { return };
                self.hosts[number].seeds.set_full(true);
                self.until(r#for.duration(), End::Dom0Full(number));
            }
            Action::FailStorage { host, failure } => {
                let Some(number) = self.number(host) else { return };
                let storage = &self.hosts[number].storage;
                match failure {
                    Failure::Refused => storage.refuse_next(1),
                    Failure::Hangs | Failure::Untold => storage.lose_answers(1),
                }
            }
            Action::CutLink { from, to, after_bytes, r#for } => {
                if let (Ok(from), Ok(to)) = (HostName::new(from.as_str()), HostName::new(to.as_str())) {
                    self.migrations.cut(&from, &to, *after_bytes);
                    self.until(r#for.duration(), End::Link(from, to));
                }
            }
            Action::StoreOutage { r#for } => {
                self.pool_store.set_outage(true);
                self.until(r#for.duration(), End::StoreOutage);
            }
            Action::StoreOutageAfterWrite { r#for } => {
                self.pool_store.begin_outage_after_next_write();
                self.until(r#for.duration(), End::StoreOutage);
            }
            Action::StoreElection { deposed } => self.pool_store.elect_leader(deposed.duration()),
            Action::StoreFull { r#for } => {
                self.pool_store.set_full(true);
                self.until(r#for.duration(), End::StoreFull);
            }
            Action::StoreLoses { lost: Lost::Requests | Lost::Both } => self.pool_store.lose_requests(1),
            Action::StoreLoses { lost: Lost::Answers } => self.pool_store.lose_answers(1),
            Action::StoreDelays { r#for, silence } => {
                self.pool_store.delay_requests(1, silence.duration());
                self.until(r#for.duration(), End::LateRequests);
            }
            Action::StoreBackup {} => self.backup = Some(self.pool_store.backup()),
            Action::StoreRestore { same_cluster } => {
                if let Some(backup) = &self.backup {
                    self.is_restored = true;
                    self.effects.had("store-restore");
                    match same_cluster {
                        false => self.pool_store.restore(backup),
                        true => self.pool_store.restore_as_it_was_called(backup),
                    }
                }
            }
            Action::ConfirmRestore {} => {
                let pool = self.api.object("pools", "", "default").unwrap_or_default();
                if let Some(epoch) = pool["status"]["availability"]["freeze"].as_str() {
                    let confirmed = json!({"spec": {"availability": {"confirmedEpoch": epoch}}});
                    self.change(Kind::Pool, "default", confirmed).await;
                }
            }
            Action::LateCreates { process, kind, late, r#for } => {
                let late = Some((kind.clone(), late.duration()));
                self.with_process(process, |process| process.wire.delay_creates(late));
                self.until(r#for.duration(), End::LateCreates(process.clone()));
            }
            Action::SlowStore { process, late, r#for } => {
                self.with_process(process, |process| process.store.set_latency(late.duration()));
                self.until(r#for.duration(), End::SlowStore(process.clone()));
            }
            Action::SetClock { process, ahead } => {
                self.with_process(process, |process| process.ahead.store(*ahead, Ordering::Relaxed));
            }
            Action::StoreClock { process: None, percent_fast } => self.pool_store.set_clock(*percent_fast),
            Action::StoreClock { process: Some(process), percent_fast } => {
                let percent_fast = Some(*percent_fast);
                self.with_process(process, |process| process.store.set_own_clock(percent_fast));
            }
        }
    }

    /// Ends what is due, deals with hosts that were reset and with a process whose write came, and complains about processes
    /// that ended by themselves.
    pub(super) async fn tick(&mut self) {
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) = self.ends.due.drain(..).partition(|(at, _)| *at <= now);
        self.ends.due = later;
        due.into_iter().for_each(|(_, end)| self.end(end));
        for number in self.resets() {
            let side = &mut self.hosts[number];
            let (name, agent) = (side.name, side.agent.name.clone());
            self.judge.note(format_args!("{name} was reset by its watchdog"));
            side.agent.crash(&self.judge).await;
            side.host.set_stopped(false);
            side.storage.reboot();
            side.rebooted = true;
            self.until(BOOT_TIME, End::Start(agent));
        }
        let store = &self.pool_store;
        self.judge.judge_silence(|host, guest| {
            let owner = store.owner_on_record(VmUid(guest));
            // What a restored store says was promised may have been taken back since.
            store.is_current() && owner.is_some_and(|owner| owner.guarded && owner.host.as_str() == host)
        });
        if self.judge.is_crash_due()
            && let Some(name) = self.judge.disarm()
        {
            let (judge, away) = (Arc::clone(&self.judge), self.ends.away);
            if let Some(process) = self.process(&name) {
                process.crash(&judge).await;
                self.effects.had("crash-at-write");
                self.until(away, End::Start(name));
            }
        }
        self.crash_at_calls().await;
        self.check_processes().await;
        self.judge_recoveries();
    }

    /// Ends processes whose last call has acted.
    async fn crash_at_calls(&mut self) {
        let judge = Arc::clone(&self.judge);
        let agents = self.hosts.iter_mut().map(|side| &mut side.agent);
        let mut ended = Vec::new();
        for process in agents.chain(&mut self.controllers).filter(|process| process.seam.take_end()) {
            process.crash(&judge).await;
            ended.push((process.name.clone(), process.away));
        }
        for (name, away) in ended {
            self.effects.had("crash-at-call");
            self.until(away, End::Start(name));
        }
    }

    fn expect(&self, machine: &str, on: Option<&str>) {
        let uid = self.uid_of(machine);
        let runs_on = |side: &&HostSide| {
            let domains = side.host.domains().unwrap_or_default();
            domains.iter().any(|domain| Some(domain.uuid) == uid && domain.state == DomainState::Running)
        };
        let found: Vec<_> = self.hosts.iter().filter(runs_on).map(|side| side.name).collect();
        if found != on.into_iter().collect::<Vec<_>>() {
            let wanted = on.unwrap_or("no host");
            self.judge.violated(
                "expectation",
                format_args!("{machine} is to run on {wanted}, and runs on {found:?}"),
            );
        }
    }

    fn expect_fenced(&self, host: &str, fenced: bool) {
        let object = self.api.object("hosts", "", host);
        let boot = object.as_ref().and_then(|object| object["status"]["bootID"].as_str()).unwrap_or_default();
        let on_record = self.pool_store.fenced_on_record();
        let is_fenced =
            on_record.iter().any(|record| record.host.as_str() == host && record.boot_id.as_str() == boot);
        if is_fenced != fenced {
            self.judge
                .violated("expectation", format_args!("that {host} is fenced at {boot} is {is_fenced}"));
        }
    }

    async fn expect_detached(&self, host: &str) {
        let Some(number) = self.number(host) else { return };
        match self.hosts[number].storage.attached().await {
            Ok(attached) if attached.is_empty() => {}
            attached => {
                let what = format_args!("nothing is to be attached on {host}, and {attached:?} is");
                self.judge.violated("expectation", what);
            }
        }
    }

    fn uid_of(&self, machine: &str) -> Option<Uuid> {
        let object = self.api.object("virtualmachines", USERS, machine)?;
        object["metadata"]["uid"].as_str()?.parse().ok()
    }

    fn number(&self, host: &str) -> Option<usize> {
        self.hosts.iter().position(|side| side.name == host)
    }

    fn fail_call(&self, host: &str, call: Call, failure: Failure) {
        let Some(number) = self.number(host) else { return };
        let (failing, host) = (&self.hosts[number].failing, &self.hosts[number].host);
        match (call, failure) {
            (Call::Unpause | Call::Pause | Call::Claim | Call::Resume | Call::Destroy, failure) => {
                failing.next(call, failure);
            }
            (Call::Create, Failure::Refused) => host.refuse_creates(1),
            (Call::Create, Failure::Hangs) => host.hang_creates(1),
            (Call::Create, Failure::Untold) => host.lose_creates(1),
            (Call::Suspend, Failure::Refused) => host.refuse_suspends(1),
            (Call::Suspend, Failure::Hangs) => host.hang_suspends(1),
            (Call::Suspend, Failure::Untold) => host.lose_suspends(1),
            (Call::Restore, Failure::Refused) => host.refuse_restores(1),
            (Call::Restore, Failure::Hangs) => host.hang_restores(1),
            (Call::Restore, Failure::Untold) => host.lose_restores(1),
        }
    }

    /// Makes an object, unless it is there already.
    pub(super) async fn create(&self, kind: Kind, object: Value) {
        match serde_json::from_value(object) {
            Ok(object) => {
                self.said(self.objects(kind).create(&PostParams::default(), &object).await.map(drop))
            }
            Err(error) => self.judge.violated("set-up", error),
        }
    }

    /// Changes an object by a merge patch, if it is there.
    pub(super) async fn change(&self, kind: Kind, name: &str, change: Value) {
        let patch = Patch::Merge(change);
        self.said(self.objects(kind).patch(name, &PatchParams::default(), &patch).await.map(drop));
    }

    /// Deletes an object, if it is there.
    pub(super) async fn delete(&self, kind: Kind, name: &str) {
        self.said(self.objects(kind).delete(name, &DeleteParams::default()).await.map(drop));
    }

    async fn delete_copy(&self, host: &str, machine: &str) {
        let name = seed_secret_name(&host_object_name(USERS, machine));
        let copies = Api::<Secret>::namespaced(self.people(), &host_namespace(host));
        self.said(copies.delete(&name, &DeleteParams::default()).await.map(drop));
    }

    async fn delete_domain(&self, host: &str, machine: &str) {
        let name = host_object_name(USERS, machine);
        let domains = Api::<Domain>::namespaced(self.people(), &host_namespace(host));
        self.said(domains.delete(&name, &DeleteParams::default()).await.map(drop));
    }

    /// A client of people, who are never cut off.
    fn people(&self) -> Client {
        self.api.client(users::PEOPLE, Arc::new(Perfect))
    }

    /// The objects of a kind as people see them.
    fn objects(&self, kind: Kind) -> Api<DynamicObject> {
        let client = self.people();
        match kind {
            Kind::Host => Api::all_with(client, &resource::<Host>()),
            Kind::Network => Api::all_with(client, &resource::<Network>()),
            Kind::Pool => Api::all_with(client, &resource::<Pool>()),
            Kind::StorageRepository => Api::all_with(client, &resource::<StorageRepository>()),
            Kind::Secret => Api::namespaced_with(client, USERS, &resource::<Secret>()),
            Kind::VirtualDisk => Api::namespaced_with(client, USERS, &resource::<VirtualDisk>()),
            Kind::VirtualMachine => Api::namespaced_with(client, USERS, &resource::<VirtualMachine>()),
            Kind::VirtualMachineMigration => {
                Api::namespaced_with(client, USERS, &resource::<VirtualMachineMigration>())
            }
        }
    }

    /// People meet conflicts and missing objects; anything else is a fault of the simulation.
    fn said(&self, answer: Result<(), kube::Error>) {
        match answer {
            Ok(()) => {}
            Err(kube::Error::Api(status))
                if status.is_not_found() || status.is_conflict() || status.is_already_exists() => {}
            Err(error) => self.judge.violated("set-up", error),
        }
    }
}

fn resource<K: Resource<DynamicType = ()>>() -> ApiResource {
    ApiResource::erase::<K>(&())
}
