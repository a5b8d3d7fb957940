//! Guests that change while they run.

use crate::bed::{Guest, answers, beside_others, delete_disk, hosts, nothing_is_left, says};
use anyhow::{Context, Result, ensure};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use kubexen_crds::{VirtualDisk, VirtualMachineStatus, condition};
use serde_json::json;

/// Whether the guest has its spec as it is, or why not.
fn synchronized(status: &VirtualMachineStatus, value: &str, reason: &str) -> bool {
    condition::find(&status.conditions, "Synchronized")
        .is_some_and(|said| said.status == value && said.reason == reason)
}

impl Guest {
    async fn wait_synchronized(&self) -> Result<VirtualMachineStatus> {
        self.wait("has its spec as it is", |status| synchronized(status, "True", "Synchronized")).await
    }

    async fn gets(&self, spec: serde_json::Value) -> Result<VirtualMachineStatus> {
        self.change(spec).await?;
        self.wait_synchronized().await
    }
}

#[tokio::test]
#[ignore = "five minutes on an emulated machine: cargo xtask test lab -- --ignored changes"]
async fn a_pvh_guest_sees_processors_memory_disks_and_interfaces_come_and_go() -> Result<()> {
    let turn = beside_others().await;
    let bed = turn.bed;
    let disk = Guest::create_disk(bed, "hot-data").await?.uid().context("no uid")?;
    let eth0 = json!({"name": "eth0", "network": "prod"});
    let spec = json!({
        "cpu": {"count": 1, "max": 2},
        "memory": {"size": "128Mi", "min": "96Mi", "max": "160Mi"},
        "boot": {"kernel": {"commandLine": "console=hvc0 quiet kubexen.address=10.88.0.61/24"}},
        "interfaces": [eth0],
    });
    let guest = Guest::create(bed, "hot", spec).await?;
    let uuid = guest.uuid().await?;
    let first = guest.wait_synchronized().await?;
    let (home, other) = hosts(bed, &first)?;
    says(&home, &uuid, "HAS cpus=1 ").await?;
    answers(&other, "10.88.0.61").await?;

    let two = guest.gets(json!({"cpu": {"count": 2, "weight": 512, "capPercent": 150}})).await?;
    ensure!(two.cpus == Some(2), "{two:?}");
    says(&home, &uuid, "HAS cpus=2 ").await?;
    for size in ["160Mi", "112Mi"] {
        let held = guest.gets(json!({"memory": {"size": size}})).await?;
        ensure!(held.memory.as_ref().is_some_and(|memory| memory.0 == size), "{held:?}");
    }

    guest.gets(json!({"disks": [{"name": "data", "disk": "hot-data"}]})).await?;
    says(&home, &uuid, "DISK xvda boots=1").await?;
    says(&home, &uuid, " xvda=32768").await?;
    let disks: Api<VirtualDisk> = Api::namespaced(bed.control_plane.client().await?, "default");
    let larger = Patch::Merge(json!({"spec": {"size": "32Mi"}}));
    disks.patch("hot-data", &PatchParams::default(), &larger).await?;
    says(&home, &uuid, " xvda=65536").await?;

    let limited = json!({"name": "eth1", "network": "prod", "rateLimit": "1Mi"});
    guest.gets(json!({"interfaces": [eth0, limited]})).await?;
    says(&home, &uuid, " eth0 eth1").await?;
    guest.gets(json!({"interfaces": [eth0]})).await?;
    guest.gets(json!({"cpu": {"count": 1}})).await?;
    says(&home, &uuid, "HAS cpus=1 memory=").await?;
    answers(&other, "10.88.0.61").await?;

    // A guest that stands still cannot let go of its disk, which therefore stays its own.
    guest.change(json!({"powerState": "Paused", "disks": []})).await?;
    guest.wait("keeps its disk", |status| synchronized(status, "False", "DiskInUse")).await?;
    let loops = home.check("cat /sys/block/loop*/loop/backing_file").await?;
    ensure!(loops.contains(&disk), "the disk was taken from a guest that did not let go of it: {loops}");
    guest.change(json!({"powerState": "Running"})).await?;
    let last = guest.wait_synchronized().await?;
    let data = home.check(&format!("dd if=/srv/kubexen/disks/{disk}.raw bs=512 skip=1 count=1")).await?;
    ensure!(data.contains("boots=1"), "what the guest wrote is lost: {data:?}");
    delete_disk(bed, "hot-data").await?;
    let domid = |status: &VirtualMachineStatus| status.domain.as_ref().and_then(|domain| domain.domid);
    ensure!(domid(&last).is_some() && domid(&last) == domid(&first), "it was restarted");

    guest.delete().await?;
    nothing_is_left(&home, &uuid, Some(&disk)).await
}
