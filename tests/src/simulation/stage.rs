//! What the tests of recovery, of freezes and of the ladder play on.

use super::world::{HOSTS, Process, USERS, World};
use crate::memory_api::Perfect;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use kubexen_controller::LEASE;
use kubexen_crds::{Host, Pool, VirtualDisk, VirtualMachine};
use kubexen_ownership::{BootId, HostBoot, HostName, Owner, OwnershipStore, VmUid};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{
    task::LocalSet,
    time::{Instant, sleep},
};

pub(super) const SECOND: Duration = Duration::from_secs(1);
/// Far longer than anything takes.
pub(super) const PATIENCE: Duration = Duration::from_mins(10);

/// Plays on a pool with this availability.
pub(super) async fn play(policy: Value, scene: impl AsyncFnOnce(&mut Stage)) {
    LocalSet::new().run_until(async { scene(&mut Stage::set(policy).await).await }).await;
}

/// A pool whose hosts are live, with machines whose disks all hosts reach.
pub(super) struct Stage {
    pub(super) world: World,
    pub(super) hosts: Api<Host>,
    pub(super) machines: Api<VirtualMachine>,
    pub(super) pools: Api<Pool>,
}

impl Stage {
    async fn set(policy: Value) -> Self {
        let mut world = World::new(1);
        world.weather.calm_down();
        world.begin().await;
        let client = world.api.client(super::users::PEOPLE, Arc::new(Perfect));
        let pools: Api<Pool> = Api::all(client.clone());
        let pool = object(json!({"metadata": {"name": "default"}, "spec": {"availability": policy}}));
        pools.create(&PostParams::default(), &pool).await.unwrap();
        let (hosts, machines) = (Api::all(client.clone()), Api::namespaced(client, USERS));
        let mut stage = Self { world, hosts, machines, pools };
        for host in HOSTS {
            stage.until("hosts are up", |stage| stage.boot(host).is_some()).await;
        }
        stage
    }

    /// A host at its present boot.
    pub(super) fn boot(&self, host: &str) -> Option<HostBoot> {
        let object = self.world.api.object("hosts", "", host)?;
        let boot_id = BootId::new(object["status"]["bootID"].as_str()?).ok()?;
        Some(HostBoot { host: HostName::new(host).ok()?, boot_id })
    }

    pub(super) async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !is_so(self) {
            assert!(began.elapsed() < PATIENCE, "{what}: {:?}", self.world.judge.verdict());
            self.world.check_processes().await;
            sleep(SECOND).await;
        }
    }

    /// Makes machines of one availability on one host, with a disk each, and waits until they run and are guarded.
    pub(super) async fn machines_on(&mut self, host: &str, machines: &[(&str, Value)]) {
        let label = json!({"metadata": {"labels": {"first": "here"}}});
        self.hosts.patch(host, &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
        for (name, availability) in machines {
            let disks: Api<VirtualDisk> = Api::namespaced(self.machines.clone().into_client(), USERS);
            let disk = json!({"metadata": {"name": name}, "spec": {"repository": "san", "size": "64Mi"}});
            disks.create(&PostParams::default(), &object(disk)).await.unwrap();
            let machine = json!({"metadata": {"name": name}, "spec": {
                "memory": {"size": "256Mi"},
                "boot": {"type": "PVH", "kernel": {"name": "linux", "commandLine": ""}},
                "disks": [{"name": "root", "disk": name}],
                "placement": {"hostSelector": {"matchLabels": {"first": "here"}}},
                "availability": availability,
            }});
            self.machines.create(&PostParams::default(), &object(machine)).await.unwrap();
        }
        for (name, _) in machines {
            self.until("it runs", |stage| stage.is_ready_on(name).as_deref() == Some(host)).await;
        }
        let anywhere = json!({"metadata": {"labels": {"first": null}}});
        self.hosts.patch(host, &PatchParams::default(), &Patch::Merge(anywhere)).await.unwrap();
        for (name, _) in machines {
            let change = json!({"spec": {"placement": null}});
            self.machines.patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
        }
        for (name, availability) in machines {
            self.until("it runs on", |stage| stage.is_ready_on(name).as_deref() == Some(host)).await;
            if availability["restartPriority"] == "Protected" {
                self.until_guarded(name).await;
            }
        }
    }

    pub(super) async fn until_guarded(&self, name: &str) {
        let began = Instant::now();
        while !self.owner_of(name).await.is_some_and(|owner| owner.guarded) {
            assert!(began.elapsed() < PATIENCE, "{name} is not guarded: {:?}", self.world.judge.verdict());
            sleep(SECOND).await;
        }
    }

    pub(super) fn machine(&self, name: &str) -> Value {
        self.world
            .api
            .object("virtualmachines", USERS, name)
            .map(|object| Value::clone(&object))
            .unwrap_or_default()
    }

    /// The host on which a machine is Ready.
    pub(super) fn is_ready_on(&self, name: &str) -> Option<String> {
        let status = &self.machine(name)["status"];
        (condition(status, "Ready")?["status"] == "True")
            .then(|| status["host"].as_str().map(str::to_owned))?
    }

    /// Whether a machine is Ready on another host than this.
    pub(super) fn is_back(&self, name: &str, from: &str) -> bool {
        self.is_ready_on(name).is_some_and(|on| on != from)
    }

    pub(super) async fn until_back(&mut self, name: &str, from: &str) {
        self.until("it is back", |stage| stage.is_back(name, from)).await;
    }

    /// What the Pool says of recoveries: status and reason.
    pub(super) fn recovering(&self) -> Option<(String, String)> {
        let pool = self.world.api.object("pools", "", "default")?;
        let said = condition(&pool["status"], "Recovering")?;
        Some((said["status"].as_str()?.to_owned(), said["reason"].as_str()?.to_owned()))
    }

    /// Ends a host for good: its power goes, and with it its agent and its guests.
    pub(super) async fn cut_power(&mut self, host: &str) {
        let number = self.world.hosts.iter().position(|side| side.name == host).unwrap();
        self.world.lose_host(number).await;
    }

    pub(super) async fn owner_of(&self, name: &str) -> Option<Owner> {
        let vm: VmUid = self.machine(name)["metadata"]["uid"].as_str()?.parse().ok()?;
        self.world.pool_store.owner(vm).await.unwrap()
    }

    pub(super) async fn is_owned_by(&self, name: &str, host: &str) -> bool {
        self.owner_of(name).await.is_some_and(|owner| owner.host.as_str() == host)
    }

    pub(super) async fn confirm_dead(&self, host: &str) {
        let boot = self.boot(host).unwrap().boot_id.to_string();
        let change = json!({"spec": {"fencing": {"confirmedDead": boot}}});
        self.hosts.patch(host, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    }

    /// The number of the controller that leads.
    pub(super) async fn leading(&self) -> usize {
        let leases: Api<Lease> = Api::namespaced(self.machines.clone().into_client(), "kubexen-system");
        let holder = leases.get(LEASE).await.unwrap().spec.unwrap().holder_identity.unwrap();
        let is = |controller: &Process| holder.starts_with(&controller.name);
        self.world.controllers.iter().position(is).unwrap()
    }

    pub(super) fn nothing_is_broken(&self) {
        self.world.judge.judge_history();
        assert_eq!(self.world.judge.verdict().0, Vec::<String>::new());
    }
}

pub(super) fn object<K: DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).unwrap()
}

pub(super) fn condition<'a>(status: &'a Value, type_: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_)
}

pub(super) fn protected() -> Value {
    json!({"restartPriority": "Protected"})
}
