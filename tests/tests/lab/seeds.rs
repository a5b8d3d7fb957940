//! What a guest finds on the disks that its host makes for it or has for many.

use crate::bed::{Guest, PATIENCE, beside_others, hosts, nothing_is_left, says};
use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, api::PostParams};
use kubexen_crds::condition;
use kubexen_testbed::process::wait_until;
use serde_json::json;

#[tokio::test]
#[ignore = "minutes on an emulated machine: cargo xtask test lab -- --ignored user_data"]
async fn a_guest_reads_its_user_data_and_nothing_of_it_stays_behind() -> Result<()> {
    let turn = beside_others().await;
    let bed = turn.bed;
    let secrets: Api<Secret> = Api::namespaced(bed.control_plane.client().await?, "default");
    let user_data = json!({"metadata": {"name": "seeded-user-data"},
        "stringData": {"userData": "#cloud-config\nhostname: seeded\n", "networkData": "version: 2\n"}});
    secrets.create(&PostParams::default(), &serde_json::from_value(user_data)?).await?;
    let spec = json!({
        "memory": {"size": "96Mi"},
        "cloudInit": {"userDataSecret": {"name": "seeded-user-data"}},
        "lifecycle": {"shutdownTimeout": "0s"},
    });
    let guest = Guest::create(bed, "seeded", spec).await?;
    let uuid = guest.uuid().await?;
    let (home, _) = hosts(bed, &guest.wait_ready("Running").await?)?;
    for line in [
        format!("meta-data: instance-id: \"{uuid}\""),
        "meta-data: local-hostname: \"seeded\"".to_owned(),
        "network-config: version: 2".to_owned(),
        "user-data: #cloud-config".to_owned(),
        "user-data: hostname: seeded".to_owned(),
    ] {
        says(&home, &uuid, &format!("SEED xvdp {line}")).await?;
    }
    let mode = home.check(&format!("stat -c %a /srv/kubexen/state/seeds/{uuid}.img")).await?;
    ensure!(mode.trim() == "600", "the seed's file has mode {mode}");

    guest.delete().await?;
    nothing_is_left(&home, &uuid, None).await?;
    let files = home.check("ls -A /srv/kubexen/state/seeds").await?;
    ensure!(!files.contains(&uuid), "the seed's file is left: {files}");
    let loops = home.check("cat /sys/block/loop*/loop/backing_file 2>/dev/null || true").await?;
    ensure!(!loops.contains(&uuid), "the seed's loop device is left: {loops}");
    Ok(())
}

#[tokio::test]
#[ignore = "takes minutes: cargo xtask test lab -- --ignored reads_images"]
async fn a_guest_reads_images_that_are_put_in_and_ejected_while_it_runs() -> Result<()> {
    let turn = beside_others().await;
    let bed = turn.bed;
    for host in bed.lab.hosts() {
        let script = "mkdir -p /srv/kubexen/disks/images && cd /srv/kubexen/disks/images && for name in first second; do
            { echo $name-disc; dd if=/dev/zero bs=1M count=1; } 2>/dev/null | dd of=$name.iso bs=512 count=2048 2>/dev/null; done";
        host.check(script).await?;
    }
    let drive =
        |image: &str| json!({"cds": [{"name": "cd", "image": {"repository": "local", "name": image}}]});
    let mut spec = drive("first.iso");
    spec["memory"] = json!({"size": "96Mi"});
    spec["lifecycle"] = json!({"shutdownTimeout": "0s"});
    let guest = Guest::create(bed, "listener", spec).await?;
    let uuid = guest.uuid().await?;
    let (home, _) = hosts(bed, &guest.wait_ready("Running").await?)?;
    says(&home, &uuid, "DISK xvdo readonly begins=first-disc").await?;
    let synchronized = async || {
        guest
            .wait("has what it is to have", |status| condition::is_true(&status.conditions, "Synchronized"))
            .await
    };
    guest.change(drive("second.iso")).await?;
    says(&home, &uuid, "DISK xvdo readonly begins=second-disc").await?;
    synchronized().await?;
    guest.change(json!({"cds": [{"name": "cd"}]})).await?;
    synchronized().await?;
    let devices = home.check("xenstore-ls -f /local/domain/0/backend/vbd || true").await?;
    ensure!(!devices.contains("xvdo"), "the guest still has an image: {devices}");
    guest.delete().await?;
    nothing_is_left(&home, &uuid, None).await?;
    wait_until("no image is attached any more", PATIENCE, async || {
        let loops = home.check("cat /sys/block/loop*/loop/backing_file 2>/dev/null || true").await?;
        ensure!(!loops.contains("/images/"), "{loops}");
        Ok(())
    })
    .await
}
