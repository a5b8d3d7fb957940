//! Guests of dead hosts run elsewhere, and never twice.

use super::world::{HOSTS, Process, USERS, World};
use crate::memory_api::Perfect;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use kubexen_controller::LEASE;
use kubexen_crds::{Host, MachineRecovery, Pool, VirtualDisk, VirtualMachine};
use kubexen_ownership::{
    BootId, HostBoot, HostName, Owner, OwnershipStore, VmUid,
    liveness::{Liveness, Timing, Voter},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{
    task::LocalSet,
    time::{Instant, sleep},
};

const SECOND: Duration = Duration::from_secs(1);
/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_mins(10);

/// A pool whose hosts are live, with machines whose disks all hosts reach.
pub(super) struct Stage {
    pub(super) world: World,
    pub(super) hosts: Api<Host>,
    pub(super) machines: Api<VirtualMachine>,
    pub(super) pools: Api<Pool>,
}

impl Stage {
    pub(super) async fn set(policy: Value) -> Self {
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
            .map(|object| (*object).clone())
            .unwrap_or_default()
    }

    /// The host on which a machine is Ready.
    pub(super) fn is_ready_on(&self, name: &str) -> Option<String> {
        let status = &self.machine(name)["status"];
        (condition(status, "Ready")?["status"] == "True")
            .then(|| status["host"].as_str().map(str::to_owned))?
    }

    fn recovery(&self, name: &str) -> Option<MachineRecovery> {
        serde_json::from_value(self.machine(name)["status"]["recovery"].clone()).ok()
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
    async fn leading(&self) -> usize {
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

#[tokio::test(start_paused = true)]
async fn guests_of_a_dead_host_run_elsewhere_in_their_order_and_leave_a_timeline() {
    let test = async {
        let mut stage = Stage::set(json!({})).await;
        let first = json!({"restartPriority": "Protected", "order": 10, "startDelay": "30s"});
        let later = json!({"restartPriority": "Protected", "order": 20});
        let machines = [
            ("db-0", first.clone()),
            ("db-1", first),
            ("web-0", later),
            ("spare", json!({"restartPriority": "BestEffort"})),
            ("left", json!({})),
        ];
        stage.machines_on("host-a", &machines).await;
        stage.cut_power("host-a").await;
        let (cut, cut_at) = (Instant::now(), stage.world.clock.now());
        for name in ["db-0", "db-1"] {
            stage.until("it is back", |stage| stage.is_ready_on(name).is_some_and(|on| on != "host-a")).await;
        }
        assert!(cut.elapsed() < Duration::from_secs(60), "lease, grace and a start took {:?}", cut.elapsed());
        stage.until("it is back", |stage| stage.is_ready_on("web-0").is_some_and(|on| on != "host-a")).await;
        // Nobody knows that they have stopped.
        for name in ["left", "spare"] {
            assert!(stage.is_owned_by(name, "host-a").await);
            let machine = stage.machine(name);
            assert_eq!(condition(&machine["status"], "Ready").unwrap()["reason"], "HostDead");
        }
        stage.confirm_dead("host-a").await;
        stage.until("it is back", |stage| stage.is_ready_on("spare").is_some_and(|on| on != "host-a")).await;
        let timeline = |name: &str| stage.recovery(name).unwrap();
        for name in ["db-0", "db-1", "web-0", "spare"] {
            let MachineRecovery { from, fenced, stolen, started, ready, to, .. } = timeline(name);
            assert_eq!((from.as_str(), Some(to)), ("host-a", stage.is_ready_on(name)));
            let (started, ready) = (started.unwrap(), ready.unwrap());
            let in_order = fenced.0 <= stolen.0 && stolen.0 <= started.0 && started.0 <= ready.0;
            assert!(in_order, "{name}: {fenced:?} {stolen:?} {started:?} {ready:?}");
        }
        let waited = timeline("web-0").stolen.0.duration_since(timeline("db-1").ready.unwrap().0);
        assert!(waited.as_secs() >= 29, "the delay was {waited}");
        assert!(stage.is_owned_by("left", "host-a").await, "it waits for its host");
        stage
            .until("the record is complete", |stage| {
                let host = stage.world.api.object("hosts", "", "host-a").unwrap();
                let recovery = &host["status"]["recovery"];
                recovery["completed"].is_string() && recovery["machines"].as_i64() >= Some(3)
            })
            .await;
        let host = stage.world.api.object("hosts", "", "host-a").unwrap();
        let last_sign = host["status"]["recovery"]["lastSign"].as_str().unwrap().parse().unwrap();
        let silent_for = cut_at.duration_since(last_sign).as_secs();
        assert!(
            (0..=10).contains(&silent_for),
            "the agent's last heartbeat was {silent_for} s before it ended"
        );
        assert_eq!(condition(&host["status"], "Ready").unwrap()["reason"], "Fenced");
        let not_recovering =
            |stage: &Stage| stage.recovering().is_some_and(|said| said.1 == "NothingToRecover");
        stage.until("the Pool says that it is over", not_recovering).await;
        let quiet = Duration::from_mins(5);
        sleep(quiet).await;
        assert!(stage.world.judge.last_write().elapsed() >= quiet - SECOND * 30, "writes go on");
        stage.nothing_is_broken();
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn when_too_many_hosts_are_silent_nothing_is_stolen_until_an_operator_confirms_one() {
    let test = async {
        let mut stage = Stage::set(json!({})).await;
        stage.machines_on("host-a", &[("one", protected())]).await;
        stage.machines_on("host-b", &[("two", protected())]).await;
        stage.cut_power("host-a").await;
        stage.cut_power("host-b").await;
        sleep(Duration::from_mins(3)).await;
        assert_eq!(stage.recovering(), Some(("False".to_owned(), "StormBrake".to_owned())));
        let pool = stage.world.api.object("pools", "", "default").unwrap();
        assert_eq!(pool["status"]["availability"]["silentHosts"], json!(["host-a", "host-b"]));
        assert!(stage.is_owned_by("one", "host-a").await);
        assert!(stage.world.pool_store.roll().await.unwrap().fenced.is_empty());
        stage.confirm_dead("host-a").await;
        stage.until("its guest is back", |stage| stage.is_ready_on("one").as_deref() == Some("host-c")).await;
        // One silent host is no storm.
        stage.until("so is the other's", |stage| stage.is_ready_on("two").as_deref() == Some("host-c")).await;
        stage.nothing_is_broken();
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_disarmed_pool_does_nothing_and_goes_on_when_it_is_armed() {
    let test = async {
        let mut stage = Stage::set(json!({})).await;
        stage.machines_on("host-a", &[("one", protected())]).await;
        stage.cut_power("host-a").await;
        let disarm = json!({"spec": {"availability": {"disarmed": true}}});
        stage.pools.patch("default", &PatchParams::default(), &Patch::Merge(disarm)).await.unwrap();
        sleep(Duration::from_mins(3)).await;
        assert_eq!(stage.recovering(), Some(("False".to_owned(), "Disarmed".to_owned())));
        assert!(stage.world.pool_store.roll().await.unwrap().fenced.is_empty());
        let host = stage.world.api.object("hosts", "", "host-b").unwrap();
        assert_eq!(host["status"]["availability"]["disarmed"], true, "agents are told");
        let arm = json!({"spec": {"availability": {"disarmed": false}}});
        stage.pools.patch("default", &PatchParams::default(), &Patch::Merge(arm)).await.unwrap();
        stage
            .until("its guest is back", |stage| stage.is_ready_on("one").is_some_and(|on| on != "host-a"))
            .await;
        stage.nothing_is_broken();
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_recovery_gets_through_whichever_write_its_controller_dies_after() {
    for writes in 1..=12 {
        let test = async {
            let mut stage = Stage::set(json!({})).await;
            stage.machines_on("host-a", &[("one", protected()), ("two", protected())]).await;
            stage.cut_power("host-a").await;
            sleep(Timing::DEFAULT.lease).await;
            let leader = stage.leading().await;
            stage.world.judge.arm(&stage.world.controllers[leader].name.clone(), writes);
            let back = |stage: &Stage, name: &str| stage.is_ready_on(name).is_some_and(|on| on != "host-a");
            let began = Instant::now();
            while !(back(&stage, "one") && back(&stage, "two")) {
                let judge = Arc::clone(&stage.world.judge);
                tokio::select! {
                    biased;
                    () = judge.wake.notified() => {
                        judge.disarm();
                        stage.world.controllers[leader].crash(&judge).await;
                        stage.world.start_controller(leader);
                    }
                    () = sleep(SECOND) => {}
                }
                stage.world.check_processes().await;
                assert!(began.elapsed() < PATIENCE, "{writes}: {:?}", stage.world.judge.verdict());
            }
            stage.nothing_is_broken();
        };
        LocalSet::new().run_until(test).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_steal_whose_answer_is_lost_is_settled_by_a_read() {
    let test = async {
        let mut stage = Stage::set(json!({})).await;
        stage.machines_on("host-a", &[("one", protected())]).await;
        stage.cut_power("host-a").await;
        let fenced = |stage: &Stage| {
            let host = stage.world.api.object("hosts", "", "host-a").unwrap();
            condition(&host["status"], "Ready").is_some_and(|ready| ready["reason"] == "Fenced")
        };
        // The fence record and the steal.
        sleep(Timing::DEFAULT.lease + Timing::DEFAULT.grace / 2).await;
        stage.world.pool_store.lose_answers(2);
        stage
            .until("its guest is back", |stage| stage.is_ready_on("one").is_some_and(|on| on != "host-a"))
            .await;
        stage.until("the host is said to be fenced", fenced).await;
        stage.nothing_is_broken();
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_recovery_costs_seven_writes_for_each_machine_and_seven_for_its_host_and_the_pool() {
    let test = async {
        let mut stage = Stage::set(json!({})).await;
        let names = ["one", "two", "three"];
        stage.machines_on("host-a", &names.map(|name| (name, protected()))).await;
        sleep(Duration::from_mins(1)).await;
        let known = stage.world.judge.verdict().1.len();
        stage.cut_power("host-a").await;
        for name in names {
            stage.until("it is back", |stage| stage.is_ready_on(name).is_some_and(|on| on != "host-a")).await;
        }
        sleep(Duration::from_mins(2)).await;
        let (_, trace, _) = stage.world.judge.verdict();
        let writes = |of: &dyn Fn(&str, &str) -> bool| {
            let written = |line: &&String| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                [_, _, "creates" | "changes" | "ends", kind, object, ..] => of(kind, object),
                _ => false,
            };
            trace.iter().skip(known).filter(written).count()
        };
        for name in names {
            let of_machine = |kind: &str, object: &str| {
                ["VirtualMachine", "Domain"].contains(&kind) && object.ends_with(name)
            };
            assert_eq!(writes(&of_machine), 7, "{name}:\n{}", trace[known..].join("\n"));
        }
        let of_pool = |kind: &str, object: &str| kind == "Pool" || object == "/host-a";
        assert_eq!(writes(&of_pool), 7);
        stage.nothing_is_broken();
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_with_most_of_its_members_on_one_host_protects_nobody_until_another_is_elsewhere() {
    let members = |addresses: [&str; 3]| {
        let member = |address: &str| Voter::new(address, [format!("https://{address}:2380").as_str()]);
        addresses.map(member).to_vec()
    };
    let test = async {
        let mut stage = Stage::set(json!({})).await;
        stage.world.pool_store.set_voters(members(["host-a", "host-a", "host-b"]));
        let redundant = |stage: &Stage| {
            let pool = stage.world.api.object("pools", "", "default").unwrap();
            condition(&pool["status"], "StoreRedundant").is_some_and(|said| said["status"] == "True")
        };
        stage.until("the Pool says so", |stage| !redundant(stage)).await;
        stage.machines_on("host-b", &[("one", json!({}))]).await;
        let protect = json!({"spec": {"availability": protected()}});
        stage.machines.patch("one", &PatchParams::default(), &Patch::Merge(protect)).await.unwrap();
        let reason = |stage: &Stage| {
            let machine = stage.machine("one");
            condition(&machine["status"], "Protected").map(|said| said["status"] == "True")
        };
        stage.until("the machine says so", |stage| reason(stage) == Some(false)).await;
        sleep(Duration::from_mins(1)).await;
        assert!(!stage.owner_of("one").await.unwrap().guarded, "nobody could give it to another host");
        stage.world.pool_store.set_voters(members(["host-a", "host-b", "10.9.9.9"]));
        stage.until("the Pool says that it is mended", redundant).await;
        stage.until_guarded("one").await;
        stage.cut_power("host-b").await;
        stage.until("it is back", |stage| stage.is_ready_on("one").is_some_and(|on| on != "host-b")).await;
        stage.nothing_is_broken();
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_takes_over_writes_nothing_anew_of_what_is_protected() {
    for addresses in
        [["host-a", "host-a", "host-b"], ["host-a", "host-b", "10.9.9.9"], ["host-a", "host-b", "etcd-3"]]
    {
        let test = async {
            let mut stage = Stage::set(json!({"hostFailuresToTolerate": 1})).await;
            let member = |address: &str| Voter::new(address, [format!("https://{address}:2380").as_str()]);
            stage.world.pool_store.set_voters(addresses.map(member).to_vec());
            stage.machines_on("host-b", &[("one", json!({}))]).await;
            let protect = json!({"spec": {"availability": protected()}});
            stage.machines.patch("one", &PatchParams::default(), &Patch::Merge(protect)).await.unwrap();
            let said = |stage: &Stage| condition(&stage.machine("one")["status"], "Protected").is_some();
            stage.until("the machine says whether it is protected", said).await;
            sleep(Duration::from_mins(1)).await;
            let (known, leader) = (stage.world.judge.verdict().1.len(), stage.leading().await);
            let judge = Arc::clone(&stage.world.judge);
            stage.world.controllers[leader].crash(&judge).await;
            sleep(Duration::from_mins(2)).await;
            assert_ne!(stage.leading().await, leader);
            let (_, trace, _) = stage.world.judge.verdict();
            let written = |line: &&String| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                [_, _, "creates" | "changes" | "ends", kind, ..] => {
                    ["VirtualMachine", "Domain", "Host", "Pool"].contains(kind)
                }
                _ => false,
            };
            let written: Vec<&String> = trace.iter().skip(known).filter(written).collect();
            assert_eq!(written, Vec::<&String>::new(), "{addresses:?}");
            stage.nothing_is_broken();
        };
        LocalSet::new().run_until(test).await;
    }
}
