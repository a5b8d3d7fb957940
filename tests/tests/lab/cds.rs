//! Emulated CD drives: booted from, filled and emptied while the guest runs.

use crate::bed::{Guest, beside_others, delete_disk, hosts, nothing_is_left, says};
use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kubexen_crds::condition;
use kubexen_testbed::lab::LabHost;
use serde_json::{Value, json};

const SECTOR: usize = 2048;
/// Where the boot image is on the disc, behind the catalogue and the descriptors.
const BOOT_IMAGE: u8 = 20;

/// A disc after the El Torito specification 1.0, up to its boot image, which the firmware loads and starts as it would a boot
/// sector. It has the descriptors that ISO 9660 asks for, and no file system.
fn disc() -> Vec<u8> {
    let mut disc = vec![0; usize::from(BOOT_IMAGE) * SECTOR];
    let mut put = |sector: usize, offset: usize, bytes: &[u8]| {
        let begin = sector * SECTOR + offset;
        disc[begin..begin + bytes.len()].copy_from_slice(bytes);
    };
    // The primary descriptor, the boot record with the catalogue's sector, and the end of the descriptors.
    put(16, 0, b"\x01CD001\x01");
    put(17, 0, b"\x00CD001\x01EL TORITO SPECIFICATION");
    put(17, 0x47, &[19]);
    put(18, 0, b"\xffCD001\x01");
    // The catalogue begins with an entry whose words add up to nothing.
    put(19, 0, &[1]);
    put(19, 0x1c, &[0xaa, 0x55, 0x55, 0xaa]);
    // The one thing to boot: without emulation of a disk, at the usual address, four sectors of 512 bytes.
    put(19, 0x20, &[0x88, 0, 0, 0, 0, 0, 4, 0, BOOT_IMAGE]);
    disc
}

/// Puts the disc onto a host under two names, with the test guest's boot sector as its boot image.
async fn put_discs(host: &LabHost) -> Result<()> {
    host.push(&disc(), "/srv/kubexen/disks/images/setup.iso", 0o644).await?;
    let script = format!(
        "cd /srv/kubexen/disks/images && dd if=/guest/hvm.img bs={SECTOR} count=1 >>setup.iso 2>/dev/null && cp setup.iso tools.iso"
    );
    host.check(&script).await.map(drop)
}

fn drive(image: Option<&str>) -> Value {
    let image = image.map(|name| json!({"repository": "local", "name": name}));
    json!({"cds": [{"name": "cd", "image": image}]})
}

/// Waits until the guest has its spec, and then what QEMU and xenstore say of its drive.
async fn drive_of(guest: &Guest, home: &LabHost) -> Result<(String, String)> {
    let status = guest
        .wait("has what it is to have", |status| condition::is_true(&status.conditions, "Synchronized"))
        .await?;
    let domid = status.domain.and_then(|domain| domain.domid).context("it has no domain")?;
    let qemu = home.check(&format!("xl qemu-monitor-command {domid} 'info block'")).await?;
    // The first line of a drive says what is in it; disks are called otherwise.
    let drive = qemu.lines().map(str::trim).find(|line| line.starts_with("ide-"));
    let drive = drive.with_context(|| format!("QEMU knows no drive: {qemu}"))?.to_owned();
    let backends = format!("/local/domain/0/backend/qdisk/{domid}");
    let store = home.check(&format!("xenstore-ls -f {backends} | grep '/params = '")).await?;
    Ok((drive, store.trim().to_owned()))
}

#[tokio::test]
#[ignore = "minutes on an emulated machine: cargo xtask test lab -- --ignored disc"]
async fn an_hvm_guest_boots_from_a_disc_which_is_changed_and_ejected_while_it_runs() -> Result<()> {
    let turn = beside_others().await;
    let bed = turn.bed;
    for host in bed.lab.hosts() {
        put_discs(&host).await?;
    }
    let disk = Guest::create_disk(bed, "blank").await?.uid().context("no uid")?;
    let mut spec = drive(Some("setup.iso"));
    spec["boot"] = json!({"type": "HVM", "kernel": null});
    spec["disks"] = json!([{"name": "root", "disk": "blank"}]);
    spec["lifecycle"] = json!({"shutdownTimeout": "0s"});
    let guest = Guest::create(bed, "installed", spec).await?;
    let uuid = guest.uuid().await?;
    let (home, _) = hosts(bed, &guest.wait_ready("Running").await?)?;
    says(&home, &uuid, "type=HVM").await?;
    let (qemu, store) = drive_of(&guest, &home).await?;
    ensure!(qemu.contains("/setup.iso") && store.ends_with("/setup.iso\""), "{qemu} {store}");

    guest.change(drive(Some("tools.iso"))).await?;
    let (qemu, store) = drive_of(&guest, &home).await?;
    ensure!(!qemu.contains("not inserted") && store.ends_with("/tools.iso\""), "{qemu} {store}");
    guest.change(drive(None)).await?;
    let (qemu, store) = drive_of(&guest, &home).await?;
    ensure!(qemu.contains("not inserted") && store.ends_with(" = \"\""), "{qemu} {store}");

    guest.delete().await?;
    delete_disk(bed, "blank").await?;
    nothing_is_left(&home, &uuid, Some(&disk)).await
}
