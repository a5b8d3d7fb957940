//! What must hold once faults have stopped.

use super::{
    step::Action,
    users,
    world::{USERS, World},
};
use kube::ResourceExt;
use kubexen_crds::{
    ByteQuantity, MigrationPhase, VirtualMachine, VirtualMachineMigration, condition,
    virtual_machine::{Phase, PowerState},
};
use kubexen_node_agent::{
    hypervisor::{DomainInfo, DomainState},
    storage::{Seeds, Storage},
};
use kubexen_ownership::{OwnershipStore, VmUid};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Within this time after the last fault every machine is as its spec says (L1) and every migration is over (L3): longest back-off after crashes, and
/// longest back-off of a queue, each with room.
const REACHED_WITHIN: Duration = Duration::from_mins(15);
/// How long nothing is written at the fixpoint (L4), neither to the API server nor to the pool's store, whose leases are renewed all
/// the same.
pub(super) const QUIET: Duration = Duration::from_mins(1);
/// A fixpoint comes within this time: a machine's crashes are forgotten after 15 minutes at the most.
const QUIET_WITHIN: Duration = Duration::from_mins(30);
/// Within this time after the last object was deleted nothing is left of anything (I6).
const GONE_WITHIN: Duration = Duration::from_mins(10);
/// How often it is looked whether something has come about.
const LOOK: Duration = Duration::from_secs(2);

/// Judges L5, L1, L4 and I6, in this order. At the fixpoint nothing is to be written for as long as `silence`.
pub(super) async fn judge(world: &mut World, silence: Duration) {
    for settles in [Settles::Emptied, Settles::Reached, Settles::Quiet, Settles::Reached] {
        if world.judge.is_upset() {
            return;
        }
        match settles {
            Settles::Emptied => emptied(world).await,
            Settles::Reached => reached(world).await,
            Settles::Quiet => quiet(world, silence).await,
        }
    }
    if !world.judge.is_upset() {
        world.judge.note("users delete everything");
        users::delete_everything(world).await;
        gone(world).await;
    }
}

enum Settles {
    Emptied,
    Reached,
    Quiet,
}

/// A host in maintenance becomes empty, or its plan names who stays and why (L5).
async fn emptied(world: &mut World) {
    let host = users::keep_one_in_maintenance(world).await;
    let began = Instant::now();
    loop {
        // Nothing moves while the pool's store is not confirmed.
        world.carry_out(&Action::ConfirmRestore {}).await;
        world.tick().await;
        let Some(why) = not_emptied(world, host) else { break };
        if began.elapsed() > REACHED_WITHIN {
            return world.judge.violated("L5", why);
        }
        sleep(LOOK).await;
    }
    world.judge.note(format_args!("{host} is emptied after {} s", began.elapsed().as_secs()));
}

/// Why a guest waits only for something that ends by itself.
const PASSES: [&str; 2] = ["HostSilent", "Arriving"];

fn not_emptied(world: &World, host: &str) -> Option<String> {
    let Some(object) = world.api.object("hosts", "", host) else {
        return Some(format!("there is no {host}"));
    };
    let status = &object["status"];
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let Some(evacuated) = conditions.into_iter().find(|condition| condition["type"] == "Evacuated") else {
        return Some(format!("{host} is in maintenance and says nothing of it"));
    };
    let steps = status["evacuation"]["machines"].as_array().cloned().unwrap_or_default();
    // A boot that is fenced takes no guests until somebody reboots it.
    let is_fenced = world.fenced_hosts().iter().any(|fenced| fenced == host);
    let named = |step: &Value| {
        let stays = step["action"] == "Wait" || step["action"] == "Leave";
        let lasts = |reason: &str| is_fenced || !PASSES.contains(&reason);
        stays && step["reason"].as_str().is_some_and(lasts) && step["message"].is_string()
    };
    let told = evacuated["observedGeneration"] == object["metadata"]["generation"] && steps.iter().all(named);
    let blocked = steps.iter().any(|step| step["action"] == "Wait");
    if !told || (evacuated["status"] == "True") == blocked {
        return Some(format!("{host} says {evacuated}, and its plan is {steps:?}"));
    }
    let machines = world.judge.machines();
    let side = world.hosts.iter().find(|side| side.name == host)?;
    let here = side.host.domains().unwrap_or_default().into_iter();
    let here = here.filter(|domain| machines.contains(&domain.uuid)).count();
    (here > steps.len()).then(|| format!("{host} has {here} guests, and its plan is {steps:?}"))
}

/// Every machine gets to where its spec says.
async fn reached(world: &mut World) {
    let began = Instant::now();
    loop {
        users::want_what_can_be(world).await;
        world.tick().await;
        let Some(why) = unmet(world) else { break };
        if began.elapsed() > REACHED_WITHIN {
            return world.judge.violated("L1", why);
        }
        sleep(LOOK).await;
    }
    world.judge.note(format_args!("desired state reached after {} s", began.elapsed().as_secs()));
}

/// Nothing is written for a while.
async fn quiet(world: &mut World, silence: Duration) {
    let began = Instant::now();
    let (mut revision, mut stays_since) = (world.pool_store.revision(), began);
    while world.judge.last_write().elapsed() < silence || stays_since.elapsed() < silence {
        if began.elapsed() > QUIET_WITHIN {
            let (last, changed) = (world.judge.last_write().elapsed(), stays_since.elapsed());
            let how = format_args!(
                "{} s never pass without a write: the last was {} s ago, and the pool's store changed {} s ago",
                silence.as_secs(),
                last.as_secs(),
                changed.as_secs()
            );
            return world.judge.violated("L4", how);
        }
        sleep(LOOK).await;
        let present = world.pool_store.revision();
        if present != revision {
            (revision, stays_since) = (present, Instant::now());
        }
    }
    world.tick().await;
}

/// The first thing that is not as it should be.
fn unmet(world: &World) -> Option<String> {
    let (machines, migrations) =
        (world.api.objects("virtualmachines"), world.api.objects("virtualmachinemigrations"));
    let unmet = machines.iter().find_map(|machine| match VirtualMachine::deserialize(&***machine) {
        Ok(machine) => machine_unmet(world, &machine),
        Err(error) => Some(error.to_string()),
    });
    let endless = || {
        migrations.iter().find_map(|migration| match VirtualMachineMigration::deserialize(&***migration) {
            Ok(migration) => migration_unmet(&migration),
            Err(error) => Some(error.to_string()),
        })
    };
    let disks = || world.api.objects("virtualdisks").iter().find_map(|disk| disk_unmet(world, disk));
    unmet.or_else(endless).or_else(disks)
}

/// A disk that was made in shared storage is there in its full size, and one host looks after it.
fn disk_unmet(world: &World, disk: &Value) -> Option<String> {
    let metadata = &disk["metadata"];
    if !disk["status"]["storage"].is_string() || metadata["deletionTimestamp"].is_string() {
        return None;
    }
    let (name, uid) = (&metadata["name"], metadata["uid"].as_str().unwrap_or_default());
    let wanted = ByteQuantity(disk["spec"]["size"].as_str().unwrap_or_default().to_owned()).bytes().ok();
    let present = uid.parse().ok().and_then(|uid: uuid::Uuid| world.san.volumes().get(&uid).copied());
    let volumes = world.api.objects("volumes");
    let keepers = volumes.iter().filter(|volume| volume["spec"]["virtualDisk"]["uid"] == uid).count();
    (present < wanted || present.is_none() || keepers != 1).then(|| {
        format!(
            "disk {name} has {present:?} bytes of {wanted:?}, and {keepers} Volumes; it says {}",
            disk["status"]
        )
    })
}

/// Every migration ends committed or aborted (L3).
fn migration_unmet(migration: &VirtualMachineMigration) -> Option<String> {
    let phase = migration.status.as_ref().and_then(|status| status.phase);
    let name = migration.name_any();
    (!phase.is_some_and(MigrationPhase::is_final))
        .then(|| format!("migration {name} does not end: {phase:?}"))
}

fn machine_unmet(world: &World, machine: &VirtualMachine) -> Option<String> {
    let name = machine.name_any();
    if machine.metadata.deletion_timestamp.is_some() {
        return Some(format!("{name} is being deleted"));
    }
    let status = machine.status.clone().unwrap_or_default();
    let ready = condition::find(&status.conditions, "Ready");
    let said = ready.map(|ready| format!("{} {}: {}", ready.status, ready.reason, ready.message));
    let told =
        || format!("{name}: {:?}, wanted {:?}; Ready is {said:?}", status.phase, machine.spec.power_state);
    if status.observed_generation != machine.metadata.generation
        || !condition::is_true(&status.conditions, "Ready")
    {
        return Some(told());
    }
    let stopped_by_guest = ready.is_some_and(|ready| ready.reason == "StoppedByGuest");
    let uid = machine.uid().and_then(|uid| uid.parse().ok()).unwrap_or_default();
    if stopped_by_guest && !world.judge.has_stopped(uid) {
        return Some(format!("{name} is said to have stopped by itself, and did not: {said:?}"));
    }
    let owner = world.pool_store.owner_on_record(VmUid(uid));
    let is_saved = owner.is_some_and(|owner| !matches!(owner.phase, kubexen_ownership::Phase::Running));
    if is_saved && ready.is_some_and(|ready| ready.reason == "NothingToSuspend") {
        return Some(format!("{name} is said to have had nothing to suspend, and its guest is saved"));
    }
    let wanted = match machine.spec.power_state {
        _ if stopped_by_guest && machine.spec.power_state != PowerState::Halted => Phase::Halted,
        PowerState::Running => Phase::Running,
        PowerState::Halted => Phase::Halted,
        PowerState::Paused => Phase::Paused,
        PowerState::Suspended if ready.is_some_and(|ready| ready.reason == "NothingToSuspend") => {
            Phase::Halted
        }
        PowerState::Suspended => Phase::Suspended,
    };
    if status.phase != Some(wanted) {
        return Some(told());
    }
    let domains = domains_of(world, machine);
    let state = match wanted {
        Phase::Running => Some(DomainState::Running),
        Phase::Paused => Some(DomainState::Paused),
        _ => None,
    };
    let fits = match (state, domains.as_slice()) {
        (None, []) => true,
        (Some(state), [(host, domain)]) => domain.state == state && Some(*host) == status.host.as_deref(),
        (None | Some(_), _) => false,
    };
    if !fits {
        return Some(format!("{name} is said to be {wanted:?}, and the hosts have {domains:?}"));
    }
    domains.first().and_then(|(host, _)| unsynchronized(world, machine, host))
}

/// How a machine that says that its guest has its spec differs from what its host shows.
fn unsynchronized(world: &World, machine: &VirtualMachine, host: &str) -> Option<String> {
    let name = machine.name_any();
    let conditions = machine.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let Some(said) = condition::find(conditions, "Synchronized") else {
        return Some(format!("{name} does not say whether its guest has its spec"));
    };
    if said.status != "True" {
        // Two machines that each want what the other has wait for people, but no guest here keeps a disk for itself.
        let of_another = said.reason == "DiskInUse" && said.message.starts_with("VirtualDisk");
        // A guest that stands still lets go of nothing.
        let stands = machine.spec.power_state == PowerState::Paused;
        let rests = match said.reason.as_str() {
            "DiskInUse" => of_another || stands,
            "GuestPaused" => stands,
            "DiskDeleting" => machine.spec.disks.iter().any(|disk| {
                let disk = world.api.object("virtualdisks", USERS, &disk.disk);
                disk.is_none_or(|disk| !disk["metadata"]["deletionTimestamp"].is_null())
            }),
            "DiskElsewhere" => has_disk_elsewhere(world, machine, host),
            "RestartRequired" => needs_restart(world, machine, host, &said.message),
            _ => false,
        };
        return (!rests).then(|| format!("{name} is not synchronized: {}: {}", said.reason, said.message));
    }
    let side = world.hosts.iter().find(|side| side.name == host)?;
    let settings = side.host.settings(machine.uid()?.parse().ok()?).ok()?;
    let spec = &machine.spec;
    let wanted = (
        u32::try_from(spec.cpu.count).ok(),
        u32::try_from(spec.cpu.weight).ok(),
        spec.memory.size.bytes().ok().map(|bytes| bytes / 1024),
        spec.disks.len() + usize::from(spec.cloud_init.is_some()),
        spec.interfaces.iter().map(|interface| interface.rate_limit.is_some()).collect::<Vec<_>>(),
    );
    let shown = (
        Some(settings.vcpus_online),
        settings.scheduling.map(|scheduling| scheduling.weight),
        Some(settings.memory_kib),
        settings.disks.len(),
        settings.interfaces.iter().map(|interface| interface.rate_limit.is_some()).collect(),
    );
    (wanted != shown)
        .then(|| format!("{name} says that its guest has {wanted:?}, and {host} shows {shown:?}"))
}

/// Whether a disk of the machine is in the storage of another host alone.
fn has_disk_elsewhere(world: &World, machine: &VirtualMachine, host: &str) -> bool {
    let uid_of =
        |disk: &str| world.api.object("virtualdisks", USERS, disk)?["metadata"]["uid"].as_str()?.parse().ok();
    let others = || world.hosts.iter().filter(|side| side.name != host);
    machine.spec.disks.iter().filter_map(|disk| uid_of(&disk.disk)).any(|uid: uuid::Uuid| {
        others().any(|side| side.storage.volumes().keys().any(|volume| volume.uuid == uid))
    })
}

/// Whether the guest lacks what the machine says that it gets at the next restart.
fn needs_restart(world: &World, machine: &VirtualMachine, host: &str, said: &str) -> bool {
    let side = world.hosts.iter().find(|side| side.name == host);
    let uid = machine.uid().and_then(|uid| uid.parse().ok()).unwrap_or_default();
    let Some(shown) = side.and_then(|side| side.host.settings(uid).ok()) else { return false };
    let spec = &machine.spec;
    let fields = said.trim_end_matches(" will take effect at the next restart").split(", ");
    fields.into_iter().all(|field| match field {
        "spec.cpu.count" => u32::try_from(spec.cpu.count).is_ok_and(|count| count > shown.vcpus),
        "spec.cpu.max" => spec.cpu.max.and_then(|max| u32::try_from(max).ok()) != Some(shown.vcpus),
        "spec.memory.size" => spec.memory.size.bytes().is_ok_and(|bytes| bytes / 1024 != shown.memory_kib),
        // That only their order differs, or the name of one, the host does not show.
        field => field.starts_with("spec.disks") || field.starts_with("spec.interfaces"),
    })
}

fn domains_of<'a>(world: &'a World, machine: &VirtualMachine) -> Vec<(&'a str, DomainInfo)> {
    let uid = machine.uid().unwrap_or_default();
    let mut found = Vec::new();
    for side in &world.hosts {
        let domains = side.host.domains().unwrap_or_default();
        let of_machine = domains.into_iter().filter(|domain| domain.uuid.to_string() == uid);
        found.extend(of_machine.map(|domain| (side.name, domain)));
    }
    found
}

/// Nothing is left of what was deleted.
async fn gone(world: &mut World) {
    let began = Instant::now();
    loop {
        world.tick().await;
        let Some(what) = left(world).await else { break };
        if began.elapsed() > GONE_WITHIN {
            return world.judge.violated("I6", what);
        }
        sleep(LOOK).await;
    }
    for side in &world.hosts {
        let domains = side.host.domains().unwrap_or_default();
        let stands = domains.iter().any(|domain| domain.uuid == side.foreign);
        if !stands && !side.rebooted {
            world.judge.violated("I4", format_args!("the foreign domain of {} is gone", side.name));
        }
    }
}

/// Whether a Secret in a host's namespace belongs to no Domain, with which garbage collection, which there is none of here, would take
/// it away.
fn is_left(secret: &Value) -> bool {
    let metadata = &secret["metadata"];
    let owners = metadata["ownerReferences"].as_array();
    let of_domain = |owner: &Value| owner["kind"] == "Domain" && owner["uid"].is_string();
    let is_copy = metadata["namespace"].as_str().is_some_and(|namespace| namespace != USERS);
    is_copy && !owners.is_some_and(|owners| owners.iter().any(of_domain))
}

/// The first thing that is left.
async fn left(world: &World) -> Option<String> {
    for plural in ["virtualmachines", "virtualmachinemigrations", "virtualdisks", "domains", "volumes"] {
        if let Some(object) = world.api.objects(plural).first() {
            return Some(format!("of {plural} is left: {}", ***object));
        }
    }
    if let Some(secret) = world.api.objects("secrets").iter().find(|secret| is_left(secret)) {
        return Some(format!("a Secret is left that nobody would collect: {}", secret["metadata"]));
    }
    match world.pool_store.owners().await {
        Ok(owners) if owners.is_empty() => {}
        Ok(owners) => return Some(format!("owners are left: {owners:?}")),
        Err(error) => return Some(error.to_string()),
    }
    let disks = world.pool_store.disks_on_record();
    // A request that comes late may write a disk down again that has long been forgotten, as an old store may.
    if !disks.is_empty() && !world.is_late && !world.is_restored {
        return Some(format!("the store still speaks of disks: {disks:?}"));
    }
    if let Some((volume, _)) = world.san.volumes().first_key_value() {
        return Some(format!("the shared storage still has the volume {volume}"));
    }
    let machines = world.judge.machines();
    for side in &world.hosts {
        let domains = side.host.domains().unwrap_or_default();
        if let Some(domain) = domains.iter().find(|domain| machines.contains(&domain.uuid)) {
            return Some(format!("{} still has {domain:?}", side.name));
        }
        if let Some((volume, _)) = side.storage.volumes().first_key_value() {
            return Some(format!("{} still has the volume {volume}", side.name));
        }
        match side.seeds.present().await {
            Ok(seeds) if seeds.is_empty() => {}
            seeds => return Some(format!("{} still has seeds: {seeds:?}", side.name)),
        }
        match side.storage.attached().await {
            Ok(attached) if attached.is_empty() => {}
            Ok(attached) => return Some(format!("{} still has attached {attached:?}", side.name)),
            Err(error) => return Some(error.to_string()),
        }
    }
    None
}
