//! The life of guests from their first start to the last trace.

use crate::bed::{Guest, answers, beside_others, delete_disk, hosts, nothing_is_left, says};
use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kubexen_crds::virtual_machine::Phase;
use kubexen_testbed::lab::LabHost;
use serde_json::json;
use std::time::{Duration, Instant};

/// Long enough to tell a guest that powered itself off from one that was stopped by force.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(200);

#[tokio::test]
async fn a_pvh_guest_lives_keeps_its_data_and_leaves_nothing_behind() -> Result<()> {
    let turn = beside_others().await;
    let bed = turn.bed;
    let disk = Guest::create_disk(bed, "life-data").await?.uid().context("no uid")?;
    let guest = Guest::create(
        bed,
        "life",
        json!({
            "boot": {"kernel": {"commandLine": "console=hvc0 quiet kubexen.agent kubexen.address=10.88.0.21/24"}},
            "disks": [{"name": "data", "disk": "life-data"}],
            "interfaces": [{"name": "eth0", "network": "prod"}],
            "lifecycle": {"shutdownTimeout": format!("{}s", SHUTDOWN_TIMEOUT.as_secs())},
        }),
    )
    .await?;
    let uuid = guest.uuid().await?;
    let first = guest.wait_ready("Running").await?;
    let (home, other) = hosts(bed, &first)?;
    answers(&other, "10.88.0.21").await?;
    says(&home, &uuid, "DISK xvda boots=1").await?;
    guest
        .wait("tells its address", |status| {
            let interfaces =
                status.guest.as_ref().map(|guest| guest.interfaces.as_slice()).unwrap_or_default();
            interfaces.iter().any(|told| told.name == "eth0" && told.addresses == ["10.88.0.21"])
        })
        .await?;

    guest.change(json!({"powerState": "Paused"})).await?;
    guest.wait_ready("Paused").await?;
    let silence = other.exec("ping -c 1 -W 2 10.88.0.21").await?;
    ensure!(silence.code != 0, "a paused guest answered");
    guest.change(json!({"powerState": "Running"})).await?;
    guest.wait_ready("Running").await?;
    answers(&other, "10.88.0.21").await?;

    let asked = Instant::now();
    guest.restart().await?;
    guest
        .wait("runs in another domain", |status| {
            status.phase == Some(Phase::Running)
                && status.domain.as_ref().and_then(|domain| domain.domid) != domid(&first)
        })
        .await?;
    ensure!(
        asked.elapsed() < SHUTDOWN_TIMEOUT,
        "the guest did not power itself off, it was stopped by force"
    );
    says(&home, &uuid, "DISK xvda boots=2").await?;
    answers(&other, "10.88.0.21").await?;

    guest.change(json!({"powerState": "Halted"})).await?;
    let halted = guest.wait_ready("Halted").await?;
    ensure!(halted.guest.is_none(), "it is off and says {:?}", halted.guest);
    let domains = home.check("xenstore-ls -f /local/domain").await?;
    ensure!(!domains.contains(&uuid), "a halted machine has a domain");
    guest.change(json!({"powerState": "Running"})).await?;
    let again = guest.wait_ready("Running").await?;
    ensure!(again.host == first.host, "the machine left its disk");
    ensure!(again.owner_token > first.owner_token, "the token did not grow: {again:?}");
    says(&home, &uuid, "DISK xvda boots=3").await?;

    guest.delete().await?;
    delete_disk(bed, "life-data").await?;
    nothing_is_left(&home, &uuid, Some(&disk)).await?;
    let owners = bed.control_plane.pool_keys("/kubexen/owners/").await?;
    ensure!(!owners.iter().any(|key| key.contains(&uuid)), "an owner key is left: {owners:?}");
    Ok(())
}

fn domid(status: &kubexen_crds::VirtualMachineStatus) -> Option<i32> {
    status.domain.as_ref().and_then(|domain| domain.domid)
}

#[tokio::test]
async fn an_hvm_guest_boots_from_its_disk() -> Result<()> {
    let turn = beside_others().await;
    let bed = turn.bed;
    let disk = Guest::create_disk(bed, "pc-root").await?.uid().context("no uid")?;
    let spec = json!({
        "boot": {"type": "HVM", "kernel": null},
        "disks": [{"name": "root", "disk": "pc-root"}],
        "lifecycle": {"shutdownTimeout": "0s"},
    });
    let guest = Guest::create(bed, "pc", spec).await?;
    let uuid = guest.uuid().await?;
    let (home, _) = hosts(bed, &guest.wait_ready("Running").await?)?;
    // The disk is blank at first, and there is no way yet to import an image: it is put there by hand.
    guest.change(json!({"powerState": "Halted"})).await?;
    guest.wait_ready("Halted").await?;
    home.check(&format!("dd if=/guest/hvm.img of=/srv/kubexen/disks/{disk}.raw bs=1M conv=notrunc,fsync"))
        .await?;
    guest.change(json!({"powerState": "Running"})).await?;
    guest.wait_ready("Running").await?;
    says(&home, &uuid, "type=HVM").await?;
    let root = root_without_privileges(&guest, &home).await?;
    guest.delete().await?;
    home.check(&format!("! test -e {root}")).await.context("the root of its device model is left")?;
    delete_disk(bed, "pc-root").await?;
    nothing_is_left(&home, &uuid, Some(&disk)).await
}

/// The root folder of a guest's device model, which is an unprivileged user of its own.
async fn root_without_privileges(guest: &Guest, home: &LabHost) -> Result<String> {
    let status = guest.machines.get(guest.name).await?.status.unwrap_or_default();
    let domid = domid(&status).context("it has no domain")?;
    let look = format!(
        "pid=$(xenstore-read /local/domain/{domid}/image/device-model-pid); \
         grep -E '^(Uid|CapEff):' /proc/$pid/status; readlink /proc/$pid/root"
    );
    let seen = home.check(&look).await?;
    let words: Vec<&str> = seen.split_whitespace().collect();
    let user = (131_072 + domid).to_string();
    ensure!(
        words.iter().filter(|word| **word == user).count() == 4 && words.contains(&"0000000000000000"),
        "the device model of domain {domid} is {seen}"
    );
    let root = words.last().filter(|root| root.ends_with(&format!("/qemu-root-{domid}")));
    root.map(|root| (*root).to_owned()).with_context(|| format!("its root is not its own: {seen}"))
}
