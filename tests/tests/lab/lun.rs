//! A LUN that disappears from a host under a running guest and comes back under another name, as after a change of cables,
//! a reboot of the array, or a path that was unmapped and mapped again.

use crate::{
    bed::{Bed, Guest, PATIENCE, beside_others, delete_disk, hosts, nothing_is_left, says},
    lvm::{LUN, devices, make_group},
    migrations::counted_to,
};
use anyhow::{Context, Result, bail, ensure};
use kube::Api;
use kubexen_crds::{
    Host, HostStatus, StorageRepository, VirtualMachineStatus, condition::find, virtual_machine::Phase,
};
use kubexen_testbed::{lab::LabHost, process::wait_until};
use serde_json::json;
use std::time::{Duration, Instant};

/// How long a host may take to say that its storage is away, or back: a look every half minute, on an emulated CPU.
const TOLD_WITHIN: Duration = Duration::from_secs(90);

/// Unplugs the LUN. The kernel forgets the disk at once, and whoever has it open gets errors.
const UNPLUG: &str = r"
disk=$(basename $(readlink /dev/lab/lun))
echo 1 >$(readlink -f /sys/block/$disk/device/..)/remove
";

/// Plugs it in again, if it is not. It has another name while somebody still has it open under the old one.
pub const PLUG_IN: &str = r"
echo 1 >/sys/bus/pci/rescan
for _ in $(seq 100); do
    for disk in /sys/block/vd*; do
        [ $(cat $disk/serial) = lun ] && ln -sfn /dev/${disk##*/} /dev/lab/lun && [ -b /dev/lab/lun ] && exit 0
    done
    sleep 0.1
done
exit 1
";

/// Waits until the host says so of its storage, within the time that it may take.
async fn until_host(
    bed: &Bed,
    host: &LabHost,
    what: &str,
    accept: impl Fn(&HostStatus) -> bool,
) -> Result<HostStatus> {
    let (nodes, name): (Api<Host>, _) = (Api::all(bed.control_plane.client().await?), host.name());
    let began = Instant::now();
    let status = wait_until(&format!("{name} {what}"), PATIENCE, async || {
        let status = nodes.get(&name).await?.status.unwrap_or_default();
        ensure!(accept(&status), "it has {:?} and {:?}", status.locations, status.unusable_locations);
        Ok(status)
    })
    .await?;
    ensure!(began.elapsed() < TOLD_WITHIN, "{name} {what} after {:?} only", began.elapsed());
    eprintln!("{name} {what} after {:?}", began.elapsed());
    Ok(status)
}

fn has_storage(status: &HostStatus) -> bool {
    status.locations.iter().any(|location| location.name == "san")
}

async fn until_repository_says(bed: &Bed, reason: &str, words: &str) -> Result<()> {
    let repositories: Api<StorageRepository> = Api::all(bed.control_plane.client().await?);
    wait_until(&format!("the repository says {reason}"), PATIENCE, async || {
        let conditions = repositories.get("san").await?.status.unwrap_or_default().conditions;
        let ready = find(&conditions, "Ready").context("no condition")?;
        ensure!(ready.reason == reason && ready.message.contains(words), "{ready:?}");
        Ok(())
    })
    .await
}

async fn console(host: &LabHost, uuid: &str) -> Result<String> {
    host.check(&format!("cat /srv/kubexen/state/console/{uuid}.log*")).await
}

/// Waits until the guest writes its log without errors, some ticks long.
async fn writes_again(host: &LabHost, uuid: &str) -> Result<()> {
    wait_until("the guest writes again", PATIENCE, async || {
        let console = console(host, uuid).await?;
        let last: Vec<&str> = console.lines().rev().take(4).collect();
        ensure!(
            last.len() == 4 && last.iter().all(|line| line.trim().starts_with("TICK ")),
            "it says {last:?}"
        );
        Ok(())
    })
    .await
}

/// Waits until the guest was started so many times; returns the number of ticks that it found on its disk then.
pub async fn found_at_start(host: &LabHost, uuid: &str, boots: u32) -> Result<u64> {
    says(host, uuid, &format!("DISK xvda boots={boots} log=")).await?;
    let console = console(host, uuid).await?;
    let found = console
        .lines()
        .find_map(|line| line.split(&format!("boots={boots} log=")).nth(1)?.trim().parse().ok());
    found.context("no number")
}

fn runs(status: &VirtualMachineStatus) -> bool {
    status.phase == Some(Phase::Running)
}

/// Makes a guest that logs what it counts on a disk on the LUN.
pub async fn logging_guest(bed: &Bed, name: &'static str) -> Result<(Guest, String)> {
    let disk = format!("{name}-data");
    Guest::create_disk_in(bed, "san", &disk).await?;
    let spec = json!({
        "memory": {"size": "96Mi"},
        "boot": {"kernel": {"commandLine": "console=hvc0 quiet kubexen.log"}},
        "disks": [{"name": "data", "disk": disk}],
        "lifecycle": {"shutdownTimeout": "0s"},
    });
    let guest = Guest::create(bed, name, spec).await?;
    let uuid = guest.uuid().await?;
    Ok((guest, uuid))
}

/// Deletes the guest with its disk.
async fn remove(bed: &Bed, guest: &Guest) -> Result<()> {
    guest.delete().await?;
    delete_disk(bed, &format!("{}-data", guest.name)).await
}

#[tokio::test]
#[ignore = "minutes of LVM on an emulated machine: cargo xtask test lab -- --ignored a_lun"]
async fn a_lun_disappears_and_comes_back_and_no_acknowledged_write_is_lost() -> Result<()> {
    let turn = beside_others().await;
    let (bed, _lun) = (turn.bed, LUN.lock().await);
    make_group(bed, 128).await?;
    let (guest, uuid) = logging_guest(bed, "castaway").await?;
    let before = guest.wait_ready("Running").await?;
    let (home, other) = hosts(bed, &before)?;
    until_host(bed, &home, "has the storage", has_storage).await?;
    says(&home, &uuid, "DISK xvda boots=1 log=0").await?;
    says(&home, &uuid, "TICK 5").await?;

    let logged = counted_to(&home, &uuid).await?;
    home.check(UNPLUG).await?;
    let away = until_host(bed, &home, "lacks the storage", |status| !has_storage(status)).await?;
    let why = away.unusable_locations.iter().find(|location| location.name == "san").context("no reason")?;
    eprintln!("it says: {}", why.message);
    until_repository_says(bed, "HostsMissing", &format!("{} says: ", home.name())).await?;
    says(&home, &uuid, "failed").await?;
    let counted = counted_to(&home, &uuid).await?;
    wait_until("the guest goes on", PATIENCE, async || {
        ensure!(counted_to(&home, &uuid).await? > counted + 3);
        Ok(())
    })
    .await?;
    let status = guest.wait("runs", runs).await?;
    ensure!(status.domain == before.domain, "its domain was not left alone: {:?}", status.domain);

    let (refugee, _) = logging_guest(bed, "refugee").await?;
    let elsewhere = refugee.wait_ready("Running").await?;
    ensure!(elsewhere.host == Some(other.name()), "it is on {:?}", elsewhere.host);
    remove(bed, &refugee).await?;

    // The guest has the disk's device open, so the disk comes back as another one, and its device is led there.
    home.check(PLUG_IN).await?;
    until_host(bed, &home, "has the storage again", has_storage).await?;
    until_repository_says(bed, "Attached", "").await?;
    writes_again(&home, &uuid).await?;
    guest.restart().await?;
    let found = found_at_start(&home, &uuid, 2).await?;
    ensure!(found >= logged, "{found} of {logged} acknowledged writes are on the disk");

    // Halted while the storage is away, the machine leaves nothing on the host and starts on the other one.
    says(&home, &uuid, "TICK 0").await?;
    guest.wait("runs again", runs).await?;
    home.check(UNPLUG).await?;
    until_host(bed, &home, "lacks the storage again", |status| !has_storage(status)).await?;
    guest.change(json!({"powerState": "Halted"})).await?;
    guest.wait_ready("Halted").await?;
    let left = devices(&home).await?;
    ensure!(left.is_empty(), "devices are left on {}: {left}", home.name());
    guest.change(json!({"powerState": "Running"})).await?;
    let moved = guest.wait_ready("Running").await?;
    ensure!(moved.host == Some(other.name()), "it is on {:?}", moved.host);
    let found = found_at_start(&other, &uuid, 3).await?;
    ensure!(found >= logged, "{found} of {logged} acknowledged writes are on the disk");
    home.check(PLUG_IN).await?;
    until_host(bed, &home, "has the storage at last", has_storage).await?;

    remove(bed, &guest).await?;
    for host in [&home, &other] {
        let left = devices(host).await?;
        ensure!(left.is_empty(), "devices are left on {}: {left}", host.name());
        nothing_is_left(host, &uuid, None).await?;
    }
    let volumes = home.check("lvs --noheadings -o lv_name").await?;
    if volumes.trim().is_empty() { Ok(()) } else { bail!("volumes are left: {volumes}") }
}
