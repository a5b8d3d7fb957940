//! What people do to a pool, by chance.

use super::world::{HOSTS, USERS, World};
use crate::memory_api::Perfect;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use kubexen_crds::{
    Host, Network, StorageRepository, VirtualDisk, VirtualMachine, VirtualMachineMigration,
    names::RESTART_REQUESTED_AT,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{fmt::Debug, sync::Arc};

/// How many machines people work with.
pub(super) const MACHINES: usize = 5;

/// The people, who are never cut off.
#[derive(Clone)]
pub(super) struct Users {
    hosts: Api<Host>,
    networks: Api<Network>,
    repositories: Api<StorageRepository>,
    disks: Api<VirtualDisk>,
    secrets: Api<Secret>,
    pub(super) migrations: Api<VirtualMachineMigration>,
    pub(super) machines: Api<VirtualMachine>,
}

/// Makes a guest say of itself what agents in guests do.
const AGENT: &str = "kubexen.agent kubexen.address=10.0.0.7/24";

impl Users {
    pub(super) fn of(world: &World) -> Self {
        let client: Client = world.api.client("user", Arc::new(Perfect));
        Self {
            hosts: Api::all(client.clone()),
            networks: Api::all(client.clone()),
            repositories: Api::all(client.clone()),
            disks: Api::namespaced(client.clone(), USERS),
            secrets: Api::namespaced(client.clone(), USERS),
            migrations: Api::namespaced(client.clone(), USERS),
            machines: Api::namespaced(client, USERS),
        }
    }

    /// Makes what a pool needs before its first machine.
    pub(super) async fn set_up(&self, world: &World) {
        for name in HOSTS {
            make(world, &self.hosts, json!({"metadata": {"name": name}, "spec": {}})).await;
        }
        let network =
            json!({"metadata": {"name": "lan"}, "spec": {"type": "Bridge", "bridge": {"uplink": "lan"}}});
        make(world, &self.networks, network).await;
        for (name, spec) in [
            ("local", json!({"type": "Directory", "directory": {"location": "local"}})),
            ("san", json!({"type": "LVM", "lvm": {"location": "san"}})),
        ] {
            make(world, &self.repositories, json!({"metadata": {"name": name}, "spec": spec})).await;
        }
    }

    /// Does one thing.
    pub(super) async fn act(&self, world: &World) {
        let dice = &world.dice;
        let name = format!("vm-{}", dice.below(MACHINES));
        match dice.below(27) {
            0..5 => self.make_machine(world, &name).await,
            5 => self.delete_machine(world, &name).await,
            6 | 7 => {
                let state = *dice.pick(&["Running", "Running", "Halted", "Paused", "Suspended", "Suspended"]);
                change(world, &self.machines, &name, json!({"spec": {"powerState": state}})).await;
            }
            8 => {
                let at = world.clock.now().to_string();
                let restart = json!({"metadata": {"annotations": {RESTART_REQUESTED_AT: at}}});
                change(world, &self.machines, &name, restart).await;
            }
            9 => {
                let edit = match dice.below(4) {
                    3 => json!({"lifecycle": {"onMaintenance": dice.pick(&["Wait", "Restart", "Leave"])}}),
                    0 => json!({"cpu": {"count": 1 + dice.below(4)}}),
                    1 => json!({"memory": {"size": format!("{}Mi", 128 * (1 + dice.below(4)))}}),
                    _ => json!({"lifecycle": {"onShutdown": dice.pick(&["Halt", "Restart"])}}),
                };
                change(world, &self.machines, &name, json!({"spec": edit})).await;
            }
            10 => {
                let size = format!("{}Mi", 64 * (1 + dice.below(8)));
                let disk = if dice.chance(50) { disk_of(&name) } else { data_disk_of(&name) };
                change(world, &self.disks, &disk, json!({"spec": {"size": size}})).await;
            }
            11..15 => self.migrate(world).await,
            15..23 => self.change_running(world, &name).await,
            23 => end(world, &self.secrets, &user_data_of(&name)).await,
            24 | 25 => {
                let (host, enabled) = (*dice.pick(&HOSTS), dice.chance(60));
                self.maintain(world, host, enabled).await;
            }
            _ => {
                let schedulable = dice.chance(50);
                let host = *dice.pick(&HOSTS);
                change(world, &self.hosts, host, json!({"spec": {"schedulable": schedulable}})).await;
            }
        }
    }

    /// Changes something that a running guest can be given, or most of it at once.
    async fn change_running(&self, world: &World, name: &str) {
        let dice = &world.dice;
        let mut spec = json!({});
        if dice.chance(50) {
            spec["cpu"] = json!({"count": 1 + dice.below(4), "weight": 256 * (1 + dice.below(3))});
        }
        if dice.chance(50) {
            spec["memory"] = json!({"size": format!("{}Mi", 128 * (1 + dice.below(4)))});
        }
        if dice.chance(30) {
            let mut interfaces = vec![json!({"name": "eth0", "network": "lan"})];
            if dice.chance(50) {
                interfaces[0]["rateLimit"] = "10Mi".into();
            }
            if dice.chance(50) {
                interfaces.push(json!({"name": "eth1", "network": "lan"}));
            }
            spec["interfaces"] = interfaces.into();
        }
        if dice.chance(40) {
            let disks = world.api.object("virtualmachines", USERS, name);
            let disks = disks.map(|machine| machine["spec"]["disks"].clone()).unwrap_or_default();
            let mut disks = disks.as_array().cloned().unwrap_or_default();
            let before = disks.len();
            disks.retain(|disk| disk["name"] != "data");
            if disks.len() == before {
                self.make_disk(world, &data_disk_of(name)).await;
                disks.push(json!({"name": "data", "disk": data_disk_of(name)}));
            } else if dice.chance(50) {
                end(world, &self.disks, &data_disk_of(name)).await;
            }
            spec["disks"] = disks.into();
        }
        change(world, &self.machines, name, json!({ "spec": spec })).await;
    }

    pub(super) async fn make_machine(&self, world: &World, name: &str) {
        let dice = &world.dice;
        let with_disk = dice.chance(40);
        if with_disk && dice.chance(50) {
            self.make_disk(world, &disk_of(name)).await;
        }
        let mut machine = json!({
            "metadata": {"name": name},
            "spec": {
                "memory": {"size": "256Mi"},
                "boot": {"type": "PVH", "kernel": {"name": "linux", "commandLine": AGENT}},
                "interfaces": [{"name": "eth0", "network": "lan"}],
                "lifecycle": {"shutdownTimeout": "20s"},
            },
        });
        if with_disk {
            // Now and then two machines want one disk.
            let other = format!("vm-{}", dice.below(MACHINES));
            let owner = if dice.chance(15) { other.as_str() } else { name };
            machine["spec"]["disks"] = json!([{"name": "root", "disk": disk_of(owner)}]);
        }
        if dice.chance(60) {
            machine["spec"]["cpu"] = json!({"count": 1 + dice.below(2), "max": 4});
            machine["spec"]["memory"] = json!({"size": "256Mi", "min": "128Mi", "max": "512Mi"});
        }
        let with_seed = dice.chance(40);
        if with_seed {
            machine["spec"]["cloudInit"] = json!({"userDataSecret": {"name": user_data_of(name)}});
        }
        if with_seed && dice.chance(70) {
            self.make_user_data(world, name).await;
        }
        if dice.chance(20) {
            machine["spec"]["placement"] = json!({"antiAffinity": {"group": "web"}});
        }
        make(world, &self.machines, machine).await;
        if with_disk {
            self.make_disk(world, &disk_of(name)).await;
        }
    }

    async fn make_user_data(&self, world: &World, machine: &str) {
        // "#cloud-config"
        let secret = json!({"metadata": {"name": user_data_of(machine)}, "data": {"userData": "I2Nsb3VkLWNvbmZpZw=="}});
        make(world, &self.secrets, secret).await;
    }

    async fn make_disk(&self, world: &World, name: &str) {
        let disk = json!({
            "metadata": {"name": name},
            "spec": {"repository": world.dice.pick(&["local", "san", "san"]), "size": "64Mi"},
        });
        make(world, &self.disks, disk).await;
    }

    /// Moves a machine, most of the time one that can move, or calls a move off.
    async fn migrate(&self, world: &World) {
        let dice = &world.dice;
        let can_move = |machine: &Value| {
            let disk = machine["spec"]["disks"][0]["disk"].as_str();
            let disk = disk.and_then(|disk| world.api.object("virtualdisks", USERS, disk));
            let tied = disk.is_some_and(|disk| disk["spec"]["repository"] == "local");
            !tied && machine["status"]["phase"] == "Running"
        };
        let all = world.api.objects("virtualmachines");
        let candidates: Vec<_> = all.iter().filter(|machine| can_move(machine) || dice.chance(10)).collect();
        let machine = match candidates.as_slice() {
            [] => "vm-0",
            some => dice.pick(some)["metadata"]["name"].as_str().unwrap_or_default(),
        };
        let name = format!("{machine}-move-{}", dice.below(6));
        match dice.below(6) {
            0 => end(world, &self.migrations, &name).await,
            1 => change(world, &self.migrations, &name, json!({"spec": {"cancel": true}})).await,
            _ => {
                let mut spec = json!({"virtualMachine": machine});
                if dice.chance(30) {
                    spec["host"] = (*dice.pick(&HOSTS)).into();
                }
                make(world, &self.migrations, json!({"metadata": {"name": name}, "spec": spec})).await;
            }
        }
    }

    async fn delete_machine(&self, world: &World, name: &str) {
        let with_disk = world.dice.chance(50);
        if with_disk && world.dice.chance(50) {
            end(world, &self.disks, &disk_of(name)).await;
        }
        end(world, &self.machines, name).await;
        if with_disk {
            end(world, &self.disks, &disk_of(name)).await;
        }
    }

    async fn maintain(&self, world: &World, host: &str, enabled: bool) {
        change(world, &self.hosts, host, json!({"spec": {"maintenance": {"enabled": enabled}}})).await;
    }

    /// Leaves one host in maintenance, or puts one there.
    pub(super) async fn keep_one_in_maintenance(&self, world: &World) -> &'static str {
        let in_maintenance = |name: &&&str| {
            let host = world.api.object("hosts", "", name);
            host.is_some_and(|host| host["spec"]["maintenance"]["enabled"] == true)
        };
        let kept = HOSTS.iter().find(in_maintenance).unwrap_or_else(|| world.dice.pick(&HOSTS));
        for host in HOSTS {
            self.maintain(world, host, host == *kept).await;
        }
        kept
    }

    /// Lets every host take machines, and makes every disk and the user data that a machine names.
    pub(super) async fn want_what_can_be(&self, world: &World) {
        for host in world.api.objects("hosts") {
            let spec = &host["spec"];
            if (spec["schedulable"] == false || spec["maintenance"]["enabled"] == true)
                && let Some(name) = host["metadata"]["name"].as_str()
            {
                let in_service = json!({"spec": {"schedulable": true, "maintenance": {"enabled": false}}});
                change(world, &self.hosts, name, in_service).await;
            }
        }
        for machine in world.api.objects("virtualmachines") {
            let name = machine["metadata"]["name"].as_str().unwrap_or_default();
            let conditions = machine["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let hindered = conditions.iter().any(|condition| {
                let reason = condition["reason"].as_str().unwrap_or_default();
                condition["type"] == "Ready" && ["NoRepository", "NoRoom"].contains(&reason)
            });
            if machine["spec"]["powerState"] == "Suspended" && hindered {
                change(world, &self.machines, name, json!({"spec": {"powerState": "Running"}})).await;
            }
            let mut disks = machine["spec"]["disks"].as_array().cloned().unwrap_or_default();
            if let Some(root) = disks.iter_mut().find(|disk| disk["name"] == "root")
                && root["disk"] != disk_of(name)
            {
                // Of two machines that want one disk only one can run.
                root["disk"] = disk_of(name).into();
                change(world, &self.machines, name, json!({"spec": {"disks": disks}})).await;
                let at = json!({"metadata": {"annotations": {RESTART_REQUESTED_AT: "settle"}}});
                change(world, &self.machines, name, at).await;
            }
            if machine["spec"]["cloudInit"].is_object() {
                self.make_user_data(world, name).await;
            }
            for disk in &disks {
                let disk = disk["disk"].as_str().unwrap_or_default();
                if world.api.object("virtualdisks", USERS, disk).is_none() {
                    self.make_disk(world, disk).await;
                }
            }
        }
    }

    /// Deletes every machine, every disk and every record of a move.
    pub(super) async fn delete_everything(&self, world: &World) {
        for number in 0..MACHINES {
            let name = format!("vm-{number}");
            end(world, &self.disks, &disk_of(&name)).await;
            end(world, &self.disks, &data_disk_of(&name)).await;
            end(world, &self.machines, &name).await;
        }
        for migration in world.api.objects("virtualmachinemigrations") {
            end(world, &self.migrations, migration["metadata"]["name"].as_str().unwrap_or_default()).await;
        }
    }
}

fn disk_of(machine: &str) -> String {
    format!("{machine}-root")
}

fn user_data_of(machine: &str) -> String {
    format!("{machine}-user-data")
}

fn data_disk_of(machine: &str) -> String {
    format!("{machine}-data")
}

/// Makes an object; that it is there already is none of the simulation's business.
async fn make<K>(world: &World, api: &Api<K>, object: Value)
where
    K: Clone + Debug + DeserializeOwned + Serialize,
{
    match serde_json::from_value::<K>(object) {
        Ok(object) => said(world, api.create(&PostParams::default(), &object).await.map(drop)),
        Err(error) => world.judge.violated("set-up", error),
    }
}

async fn change<K: Clone + Debug + DeserializeOwned>(world: &World, api: &Api<K>, name: &str, change: Value) {
    let changed = api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await;
    said(world, changed.map(drop));
}

async fn end<K: Clone + Debug + DeserializeOwned>(world: &World, api: &Api<K>, name: &str) {
    said(world, api.delete(name, &DeleteParams::default()).await.map(drop));
}

/// People meet conflicts and missing objects; anything else is a fault of the simulation.
fn said(world: &World, answer: Result<(), kube::Error>) {
    match answer {
        Ok(()) => {}
        Err(kube::Error::Api(status))
            if status.is_not_found() || status.is_conflict() || status.is_already_exists() => {}
        Err(error) => world.judge.violated("set-up", error),
    }
}
