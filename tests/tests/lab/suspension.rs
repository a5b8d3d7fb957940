//! Guests on real Xen that are saved to a disk, and go on where they were.

use crate::{
    bed::{Bed, Guest, PATIENCE, beside_others, delete_disk, hosts, nothing_is_left, says},
    lvm::{LUN, devices, make_group},
    migrations::counted_to,
};
use anyhow::{Result, ensure};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use kubexen_crds::{Host, VirtualDisk, virtual_machine::Phase};
use kubexen_testbed::{lab::LabHost, process::wait_until};
use serde_json::json;

/// A guest that logs what it counts on a disk in this repository.
async fn logging_guest(bed: &Bed, name: &'static str, repository: &str) -> Result<Guest> {
    Guest::create_disk_in(bed, repository, &format!("{name}-data")).await?;
    let spec = json!({
        "memory": {"size": "96Mi"},
        "boot": {"kernel": {"commandLine": "console=hvc0 quiet kubexen.log"}},
        "disks": [{"name": "data", "disk": format!("{name}-data")}],
        "lifecycle": {"shutdownTimeout": "0s"},
    });
    Guest::create(bed, name, spec).await
}

/// Suspends the guest, and waits until its host has nothing of it; answers what it had counted to by then at least.
async fn suspend(guest: &Guest, home: &LabHost) -> Result<u64> {
    let uuid = guest.uuid().await?;
    says(home, &uuid, "TICK 3").await?;
    let counted = counted_to(home, &uuid).await?;
    guest.change(json!({"powerState": "Suspended"})).await?;
    let status = guest.wait_ready("Suspended").await?;
    ensure!(status.phase == Some(Phase::Suspended) && status.host.is_none(), "{status:?}");
    wait_until("its host has nothing of it", PATIENCE, async || nothing_is_left(home, &uuid, None).await)
        .await?;
    Ok(counted)
}

/// Makes sure that the guest counts on where it was, and was booted once.
async fn goes_on(host: &LabHost, uuid: &str, counted: u64) -> Result<()> {
    wait_until("it counts on", PATIENCE, async || {
        let now = counted_to(host, uuid).await?;
        ensure!(now > counted + 2, "it is at {now}");
        Ok(())
    })
    .await?;
    let console = host.check(&format!("cat /srv/kubexen/state/console/{uuid}.log*")).await?;
    ensure!(!console.contains("boots=2"), "it was booted afresh: {console}");
    Ok(())
}

/// Waits until nothing is left of the disk that the guest was saved to.
async fn memory_is_gone(bed: &Bed, uuid: &str) -> Result<()> {
    let disks: Api<VirtualDisk> = Api::namespaced(bed.control_plane.client().await?, "default");
    wait_until("the disk of its memory is gone", PATIENCE, async || {
        ensure!(disks.get_opt(&format!("suspended-{uuid}")).await?.is_none());
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "minutes on an emulated machine: cargo xtask test lab -- --ignored where_it_was"]
async fn a_guest_is_suspended_and_counts_on_where_it_was() -> Result<()> {
    let turn = beside_others().await;
    let bed = turn.bed;
    let guest = logging_guest(bed, "sleeper", "local").await?;
    let uuid = guest.uuid().await?;
    let (home, _) = hosts(bed, &guest.wait_ready("Running").await?)?;
    let counted = suspend(&guest, &home).await?;
    guest.change(json!({"powerState": "Running"})).await?;
    let (again, _) = hosts(bed, &guest.wait_ready("Running").await?)?;
    ensure!(again.name() == home.name(), "its disk is on {}", home.name());
    goes_on(&again, &uuid, counted).await?;
    memory_is_gone(bed, &uuid).await?;
    guest.delete().await?;
    delete_disk(bed, "sleeper-data").await?;
    nothing_is_left(&home, &uuid, None).await
}

#[tokio::test]
#[ignore = "minutes of LVM on an emulated machine: cargo xtask test lab -- --ignored on_the_other_host"]
async fn a_guest_is_suspended_on_one_host_and_counts_on_on_the_other_host() -> Result<()> {
    let turn = beside_others().await;
    let (bed, _lun) = (turn.bed, LUN.lock().await);
    make_group(bed, 256).await?;
    let guest = logging_guest(bed, "traveller", "san").await?;
    let uuid = guest.uuid().await?;
    let (home, other) = hosts(bed, &guest.wait_ready("Running").await?)?;
    let counted = suspend(&guest, &home).await?;
    let left = devices(&home).await?;
    ensure!(left.is_empty(), "devices are left on {}: {left}", home.name());

    let nodes: Api<Host> = Api::all(bed.control_plane.client().await?);
    let label = |value| Patch::Merge(json!({"metadata": {"labels": {"traveller": value}}}));
    nodes.patch(&other.name(), &PatchParams::default(), &label(Some("here"))).await?;
    let there = json!({"hostSelector": {"matchLabels": {"traveller": "here"}}});
    guest.change(json!({"powerState": "Running", "placement": there})).await?;
    let status = guest.wait_ready("Running").await?;
    ensure!(status.host == Some(other.name()), "it is on {:?}", status.host);
    goes_on(&other, &uuid, counted).await?;
    memory_is_gone(bed, &uuid).await?;
    guest.delete().await?;
    delete_disk(bed, "traveller-data").await?;
    nodes.patch(&other.name(), &PatchParams::default(), &label(None)).await?;
    let volumes = home.check("lvs --noheadings -o lv_name").await?;
    ensure!(volumes.trim().is_empty(), "volumes are left: {volumes}");
    let machines = bed.control_plane.pool_keys("/kubexen/owners/").await?;
    ensure!(!machines.iter().any(|key| key.contains(&uuid)), "its owner record is left: {machines:?}");
    Ok(())
}
