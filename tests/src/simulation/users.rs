//! What people do to a pool: by chance while there are faults, and with care once they have stopped.

use super::{
    step::{Action, Kind, Seconds},
    world::{HOSTS, USERS, World},
};
use kubexen_crds::names::RESTART_REQUESTED_AT;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What the API server calls them.
pub(super) const PEOPLE: &str = "user";
/// How many machines people work with.
pub(super) const MACHINES: usize = 5;

/// Makes a guest say of itself what agents in guests do.
const AGENT: &str = "kubexen.agent kubexen.address=10.0.0.7/24";

/// What a pool needs before its first machine.
pub(super) fn set_up() -> Vec<Action> {
    let host = |name: &str| (Kind::Host, json!({"metadata": {"name": name}, "spec": {}}));
    let repository = |name: &str, spec: Value| {
        (Kind::StorageRepository, json!({"metadata": {"name": name}, "spec": spec}))
    };
    let network =
        json!({"metadata": {"name": "lan"}, "spec": {"type": "Bridge", "bridge": {"uplink": "lan"}}});
    let objects = HOSTS.into_iter().map(host).chain([
        (Kind::Network, network),
        repository("local", json!({"type": "Directory", "directory": {"location": "local"}})),
        repository("san", json!({"type": "LVM", "lvm": {"location": "san"}})),
    ]);
    objects.map(|(kind, object)| Action::Create { kind, object }).collect()
}

/// The policy of the pool, by chance.
pub(super) fn make_pool(world: &World) -> Action {
    let mut availability = json!({"profile": world.dice.pick(&["Default", "Fast"])});
    if world.dice.chance(30) {
        availability["hostFailuresToTolerate"] = 1.into();
    }
    let object = json!({"metadata": {"name": "default"}, "spec": {"availability": availability}});
    Action::Create { kind: Kind::Pool, object }
}

/// The next thing that people do by chance.
pub(super) fn act(world: &World) -> Vec<Action> {
    let dice = &world.dice;
    let name = format!("vm-{}", dice.below(MACHINES));
    match dice.below(29) {
        0..5 => make_machine(world, &name),
        5 => delete_machine(world, &name),
        6 | 7 => {
            let state = *dice.pick(&["Running", "Running", "Halted", "Paused", "Suspended", "Suspended"]);
            vec![change_machine(&name, json!({"spec": {"powerState": state}}))]
        }
        8 => {
            let at = world.clock.now().to_string();
            vec![change_machine(&name, json!({"metadata": {"annotations": {RESTART_REQUESTED_AT: at}}}))]
        }
        9 => {
            let edit = match dice.below(5) {
                4 => json!({"availability": availability(world)}),
                3 => json!({"lifecycle": {"onMaintenance": dice.pick(&["Wait", "Restart", "Leave"])}}),
                0 => json!({"cpu": {"count": 1 + dice.below(4)}}),
                1 => json!({"memory": {"size": format!("{}Mi", 128 * (1 + dice.below(4)))}}),
                _ => json!({"lifecycle": {"onShutdown": dice.pick(&["Halt", "Restart"])}}),
            };
            vec![change_machine(&name, json!({"spec": edit}))]
        }
        10 => {
            let size = format!("{}Mi", 64 * (1 + dice.below(8)));
            let disk = if dice.chance(50) { disk_of(&name) } else { data_disk_of(&name) };
            vec![change(Kind::VirtualDisk, &disk, json!({"spec": {"size": size}}))]
        }
        11..15 => migrate(world),
        15..23 => change_running(world, &name),
        23 => vec![end(Kind::Secret, &user_data_of(&name))],
        24 | 25 => {
            let host = *dice.pick(&HOSTS);
            vec![maintain(host, dice.chance(60))]
        }
        26 => {
            let disarmed = dice.chance(40);
            vec![change(Kind::Pool, "default", json!({"spec": {"availability": {"disarmed": disarmed}}}))]
        }
        27 => {
            let profile = dice.pick(&["Default", "Fast"]);
            vec![change(Kind::Pool, "default", json!({"spec": {"availability": {"profile": profile}}}))]
        }
        _ => {
            let schedulable = dice.chance(50);
            let host = *dice.pick(&HOSTS);
            vec![change(Kind::Host, host, json!({"spec": {"schedulable": schedulable}}))]
        }
    }
}

fn availability(world: &World) -> Value {
    json!({"restartPriority": world.dice.pick(&["Protected", "Protected", "BestEffort", "None"])})
}

/// Changes something that a running guest can be given, or most of it at once.
fn change_running(world: &World, name: &str) -> Vec<Action> {
    let dice = &world.dice;
    let (mut actions, mut spec) = (Vec::new(), json!({}));
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
            actions.push(make_disk(world, &data_disk_of(name)));
            disks.push(json!({"name": "data", "disk": data_disk_of(name)}));
        } else if dice.chance(50) {
            actions.push(end(Kind::VirtualDisk, &data_disk_of(name)));
        }
        spec["disks"] = disks.into();
    }
    actions.push(change_machine(name, json!({ "spec": spec })));
    actions
}

/// Makes a machine, and most of the time what it names.
pub(super) fn make_machine(world: &World, name: &str) -> Vec<Action> {
    let dice = &world.dice;
    let mut actions = Vec::new();
    let with_disk = dice.chance(40);
    if with_disk && dice.chance(50) {
        actions.push(make_disk(world, &disk_of(name)));
    }
    let mut machine = json!({
        "metadata": {"name": name},
        "spec": {
            "memory": {"size": "256Mi"},
            "boot": {"type": "PVH", "kernel": {"name": "linux", "commandLine": AGENT}},
            "interfaces": [{"name": "eth0", "network": "lan"}],
            "lifecycle": {"shutdownTimeout": "20s"},
            "availability": availability(world),
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
        actions.push(make_user_data(name));
    }
    if dice.chance(20) {
        machine["spec"]["placement"] = json!({"antiAffinity": {"group": "web"}});
    }
    actions.push(Action::Create { kind: Kind::VirtualMachine, object: machine });
    if with_disk {
        actions.push(make_disk(world, &disk_of(name)));
    }
    actions
}

/// A machine and its disk, as scenarios have them.
pub(super) fn plain_machine(name: &str, availability: &str, disk: Option<&str>) -> Vec<Action> {
    let mut machine = json!({
        "metadata": {"name": name},
        "spec": {
            "memory": {"size": "256Mi"},
            "boot": {"type": "PVH", "kernel": {"name": "linux", "commandLine": AGENT}},
            "lifecycle": {"shutdownTimeout": "20s"},
            "availability": {"restartPriority": availability},
        },
    });
    let mut actions = Vec::new();
    if let Some(repository) = disk {
        machine["spec"]["disks"] = json!([{"name": "root", "disk": disk_of(name)}]);
        let object =
            json!({"metadata": {"name": disk_of(name)}, "spec": {"repository": repository, "size": "64Mi"}});
        actions.push(Action::Create { kind: Kind::VirtualDisk, object });
    }
    actions.push(Action::Create { kind: Kind::VirtualMachine, object: machine });
    actions
}

fn make_user_data(machine: &str) -> Action {
    // "#cloud-config"
    let object =
        json!({"metadata": {"name": user_data_of(machine)}, "data": {"userData": "I2Nsb3VkLWNvbmZpZw=="}});
    Action::Create { kind: Kind::Secret, object }
}

fn make_disk(world: &World, name: &str) -> Action {
    let object = json!({
        "metadata": {"name": name},
        "spec": {"repository": world.dice.pick(&["local", "san", "san"]), "size": "64Mi"},
    });
    Action::Create { kind: Kind::VirtualDisk, object }
}

/// Moves a machine, most of the time one that can move, or calls a move off.
fn migrate(world: &World) -> Vec<Action> {
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
    let kind = Kind::VirtualMachineMigration;
    vec![match dice.below(6) {
        0 => end(kind, &name),
        1 => change(kind, &name, json!({"spec": {"cancel": true}})),
        _ => {
            let mut spec = json!({"virtualMachine": machine});
            if dice.chance(30) {
                spec["host"] = (*dice.pick(&HOSTS)).into();
            }
            Action::Create { kind, object: json!({"metadata": {"name": name}, "spec": spec}) }
        }
    }]
}

/// Moves this machine to a host.
pub(super) fn move_to(machine: &Value, host: &str, number: usize) -> Action {
    let machine = machine["metadata"]["name"].as_str().unwrap_or_default();
    let (name, spec) = (format!("{machine}-move-{number}"), json!({"virtualMachine": machine, "host": host}));
    Action::Create {
        kind: Kind::VirtualMachineMigration,
        object: json!({"metadata": {"name": name}, "spec": spec}),
    }
}

fn delete_machine(world: &World, name: &str) -> Vec<Action> {
    let with_disk = world.dice.chance(50);
    let mut actions = Vec::new();
    if with_disk && world.dice.chance(50) {
        actions.push(end(Kind::VirtualDisk, &disk_of(name)));
    }
    actions.push(end(Kind::VirtualMachine, name));
    if with_disk {
        actions.push(end(Kind::VirtualDisk, &disk_of(name)));
    }
    actions
}

fn maintain(host: &str, enabled: bool) -> Action {
    change(Kind::Host, host, json!({"spec": {"maintenance": {"enabled": enabled}}}))
}

/// Leaves one host in maintenance, or puts one there.
pub(super) async fn keep_one_in_maintenance(world: &mut World) -> &'static str {
    let in_maintenance = |name: &&&str| {
        let host = world.api.object("hosts", "", name);
        host.is_some_and(|host| host["spec"]["maintenance"]["enabled"] == true)
    };
    let kept = *HOSTS.iter().find(in_maintenance).unwrap_or_else(|| world.dice.pick(&HOSTS));
    for host in HOSTS {
        world.perform(&maintain(host, host == kept)).await;
    }
    kept
}

/// Reboots hosts that are fenced, arms the pool, lets every host take machines, and makes every disk and the user data that a machine names.
pub(super) async fn want_what_can_be(world: &mut World) {
    for host in world.fenced_hosts() {
        world.perform(&Action::CutPower { host, r#for: Seconds(15.0) }).await;
    }
    for action in wanted(world).into_iter().chain([Action::ConfirmRestore {}]) {
        world.carry_out(&action).await;
    }
}

fn wanted(world: &World) -> Vec<Action> {
    let mut actions = Vec::new();
    let name_of = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    for pool in world.api.objects("pools") {
        if pool["spec"]["availability"]["disarmed"] == true {
            let armed = json!({"spec": {"availability": {"disarmed": false}}});
            actions.push(change(Kind::Pool, &name_of(&pool), armed));
        }
    }
    for host in world.api.objects("hosts") {
        let spec = &host["spec"];
        if spec["schedulable"] == false || spec["maintenance"]["enabled"] == true {
            let in_service = json!({"spec": {"schedulable": true, "maintenance": {"enabled": false}}});
            actions.push(change(Kind::Host, &name_of(&host), in_service));
        }
    }
    let machines = world.api.objects("virtualmachines");
    let holders: BTreeSet<String> = machines.iter().filter_map(|machine| holder(machine)).collect();
    for machine in machines {
        let name = name_of(&machine);
        let hindered = conditions(&machine).iter().any(|condition| {
            let reason = condition["reason"].as_str().unwrap_or_default();
            condition["type"] == "Ready" && ["NoRepository", "NoRoom"].contains(&reason)
        });
        if holders.contains(&name) {
            let minute = world.began.elapsed().as_secs() / 60;
            let restart = json!({
                "metadata": {"annotations": {RESTART_REQUESTED_AT: format!("settle {minute}")}},
                "spec": {"powerState": "Running"},
            });
            actions.push(change_machine(&name, restart));
        }
        if machine["spec"]["powerState"] == "Suspended" && hindered {
            actions.push(change_machine(&name, json!({"spec": {"powerState": "Running"}})));
        }
        if world.is_restored && is_forgotten(&machine) {
            actions.push(change_machine(&name, json!({"spec": {"powerState": "Halted"}})));
        }
        let present = machine["spec"]["disks"].as_array().cloned().unwrap_or_default();
        let mut disks = present.clone();
        if holders.contains(&name) {
            // It restarts only as something that can be made.
            disks.retain(|disk| !is_going(world, disk));
        }
        if is_split(&machine) {
            disks.retain(|disk| disk["name"] == "root");
        }
        if let Some(root) = disks.iter_mut().find(|disk| disk["name"] == "root") {
            // Of two machines that want one disk only one can run.
            root["disk"] = disk_of(&name).into();
        }
        if disks != present {
            actions.push(change_machine(&name, json!({"spec": {"disks": disks}})));
            let at = json!({"metadata": {"annotations": {RESTART_REQUESTED_AT: "settle"}}});
            actions.push(change_machine(&name, at));
        }
        if machine["spec"]["cloudInit"].is_object() {
            actions.push(make_user_data(&name));
        }
        for disk in &disks {
            let disk = disk["disk"].as_str().unwrap_or_default();
            if world.api.object("virtualdisks", USERS, disk).is_none() {
                actions.push(make_disk(world, disk));
            }
        }
    }
    actions
}

fn conditions(machine: &Value) -> &[Value] {
    machine["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Whether a machine waits for what a restored store knows nothing of: its guest was saved, resumed or in a move when the store was
/// replaced. The runbook asks to start it anew.
fn is_forgotten(machine: &Value) -> bool {
    conditions(machine).iter().any(|condition| {
        let message = condition["message"].as_str().unwrap_or_default();
        let waits = condition["reason"] == "Resuming" || message.contains("it is not in the volume");
        condition["type"] == "Ready" && waits
    })
}

/// Whether a machine can run nowhere because each of two of its disks is on another host's own storage.
fn is_split(machine: &Value) -> bool {
    conditions(machine).iter().any(|condition| {
        let message = condition["message"].as_str().unwrap_or_default();
        condition["type"] == "Ready"
            && condition["reason"] == "Unschedulable"
            && message.matches("is on another host").count() > 1
    })
}

/// The machine that has a disk that this one waits for: a guest that was suspended with another machine's disk still has it.
fn holder(machine: &Value) -> Option<String> {
    let in_use = conditions(machine).iter().filter(|condition| condition["reason"] == "DiskInUse");
    in_use.filter_map(|condition| condition["message"].as_str()).find_map(|message| {
        let (_, holder) = message.split_once(&format!("VirtualMachine {USERS}/"))?;
        holder.split_once(':').map(|(holder, _)| holder.to_owned())
    })
}

/// Whether somebody is deleting the disk that a machine's spec names.
fn is_going(world: &World, disk: &Value) -> bool {
    let disk = world.api.object("virtualdisks", USERS, disk["disk"].as_str().unwrap_or_default());
    disk.is_some_and(|disk| !disk["metadata"]["deletionTimestamp"].is_null())
}

/// Deletes every machine, every disk and every record of a move.
pub(super) async fn delete_everything(world: &mut World) {
    let name_of = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let mut actions = Vec::new();
    for (plural, kind) in [
        ("virtualdisks", Kind::VirtualDisk),
        ("virtualmachines", Kind::VirtualMachine),
        ("virtualmachinemigrations", Kind::VirtualMachineMigration),
    ] {
        actions.extend(world.api.objects(plural).iter().map(|object| end(kind, &name_of(object))));
    }
    for action in actions {
        world.perform(&action).await;
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

fn change(kind: Kind, name: &str, change: Value) -> Action {
    Action::Change { kind, name: name.to_owned(), change }
}

fn change_machine(name: &str, edit: Value) -> Action {
    change(Kind::VirtualMachine, name, edit)
}

fn end(kind: Kind, name: &str) -> Action {
    Action::Delete { kind, name: name.to_owned() }
}
