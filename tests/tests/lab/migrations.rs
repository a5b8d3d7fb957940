//! Guests that move between two real hosts while they run.

use crate::{
    bed::{Bed, Guest, PATIENCE, answers, beside_others, delete_disk, hosts, nothing_is_left, says},
    lvm::{LUN, devices, make_group},
};
use anyhow::{Context, Result, ensure};
use kube::{Api, ResourceExt, api::PostParams};
use kubexen_crds::{
    MigrationPhase, VirtualMachineMigration, VirtualMachineMigrationStatus, VirtualMachineStatus,
    virtual_machine::Phase,
};
use kubexen_testbed::{lab::LabHost, process::wait_until};
use serde_json::json;

/// A guest with these disks that counts on its console and answers on its address.
pub async fn counting_guest(
    bed: &Bed,
    name: &'static str,
    address: &str,
    disks: &[&str],
) -> Result<(Guest, VirtualMachineStatus)> {
    let command_line = format!("console=hvc0 quiet kubexen.count kubexen.address={address}/24");
    let spec = json!({
        "memory": {"size": "96Mi"},
        "boot": {"kernel": {"commandLine": command_line}},
        "disks": disks.iter().map(|disk| json!({"name": disk, "disk": disk})).collect::<Vec<_>>(),
        "interfaces": [{"name": "eth0", "network": "prod"}],
        "lifecycle": {"shutdownTimeout": "0s"},
    });
    let guest = Guest::create(bed, name, spec).await?;
    let status = guest.wait_ready("Running").await?;
    let (home, other) = hosts(bed, &status)?;
    says(&home, &guest.uuid().await?, "TICK 1").await?;
    answers(&other, address).await?;
    Ok((guest, status))
}

/// The last number that the guest with this UUID counted to on the console of this host.
pub async fn counted_to(host: &LabHost, uuid: &str) -> Result<u64> {
    let console = host.check(&format!("cat /srv/kubexen/state/console/{uuid}.log*")).await?;
    let last = console.lines().rev().find_map(|line| line.trim().strip_prefix("TICK ")?.parse().ok());
    last.with_context(|| format!("it never counted on {}", host.name()))
}

/// Bytes that this host has sent over the network for migrations.
async fn sent_over_the_migration_network(host: &LabHost) -> Result<u64> {
    let counter = host.check("cat /sys/class/net/migrate0/statistics/tx_bytes").await?;
    counter.trim().parse().context("no number")
}

pub struct Move {
    migrations: Api<VirtualMachineMigration>,
    name: String,
}

impl Move {
    pub async fn begin(bed: &Bed, guest: &Guest, name: &str) -> Result<Self> {
        let migrations = Api::namespaced(bed.control_plane.client().await?, "default");
        let spec = json!({"metadata": {"name": name}, "spec": {"virtualMachine": guest.name}});
        migrations.create(&PostParams::default(), &serde_json::from_value(spec)?).await?;
        Ok(Self { migrations, name: name.to_owned() })
    }

    pub async fn until(&self, phase: MigrationPhase) -> Result<VirtualMachineMigrationStatus> {
        wait_until(&format!("{} is {phase:?}", self.name), PATIENCE, async || {
            let status = self.migrations.get(&self.name).await?.status.unwrap_or_default();
            ensure!(status.phase == Some(phase), "it is {}", serde_json::to_string(&status)?);
            Ok(status)
        })
        .await
    }
}

pub async fn kill_agent(host: &LabHost) -> Result<()> {
    host.check("kill -9 $(cat /run/kubexen-agent/pid)").await.map(drop)
}

#[tokio::test]
async fn a_running_guest_moves_over_the_migration_network_and_goes_on_counting() -> Result<()> {
    let turn = beside_others().await;
    let bed = turn.bed;
    let (guest, before) = counting_guest(bed, "mover", "10.88.0.31", &[]).await?;
    let uuid = guest.uuid().await?;
    let (home, other) = hosts(bed, &before)?;
    let count = counted_to(&home, &uuid).await?;
    let sent_before = sent_over_the_migration_network(&home).await?;
    let status = Move::begin(bed, &guest, "mover-away").await?.until(MigrationPhase::Succeeded).await?;
    ensure!(status.destination == Some(other.name()) && status.source == Some(home.name()));
    let bytes = status.transfer.as_ref().context("nothing is told of the transfer")?.bytes.bytes()?;
    let sent = sent_over_the_migration_network(&home).await? - sent_before;
    ensure!(sent >= bytes, "{sent} bytes went over the migration network, of {bytes}");
    let after = guest
        .wait("runs on the other host", |status| {
            status.phase == Some(Phase::Running) && status.host == Some(other.name())
        })
        .await?;
    ensure!(after.owner_token > before.owner_token, "the token did not grow");
    answers(&home, "10.88.0.31").await?;
    says(&other, &uuid, "TICK").await?;
    ensure!(counted_to(&other, &uuid).await? > count, "it counts from the beginning again");
    eprintln!(
        "moved: {} in {} ms, downtime {} ms",
        status.transfer.as_ref().map(|transfer| transfer.bytes.to_string()).unwrap_or_default(),
        status.transfer.as_ref().map_or(0, |transfer| transfer.milliseconds),
        status.downtime_milliseconds.unwrap_or_default(),
    );
    wait_until("the source has nothing of it", PATIENCE, async || nothing_is_left(&home, &uuid, None).await)
        .await?;
    guest.delete().await?;
    nothing_is_left(&other, &uuid, None).await
}

#[tokio::test]
#[ignore = "nine minutes of LVM on an emulated machine: cargo xtask test lab -- --ignored its_disk"]
async fn a_running_guest_moves_with_its_disk_and_no_write_is_lost() -> Result<()> {
    let turn = beside_others().await;
    let (bed, _lun) = (turn.bed, LUN.lock().await);
    make_group(bed, 64).await?;
    let disk = Guest::create_disk_in(bed, "san", "mover-data").await?.uid().context("no uid")?;
    let spec = json!({
        "memory": {"size": "96Mi"},
        "boot": {"kernel": {"commandLine": "console=hvc0 quiet kubexen.log"}},
        "disks": [{"name": "data", "disk": "mover-data"}],
        "lifecycle": {"shutdownTimeout": "0s"},
    });
    let guest = Guest::create(bed, "disk-mover", spec).await?;
    let uuid = guest.uuid().await?;
    let (home, other) = hosts(bed, &guest.wait_ready("Running").await?)?;
    says(&home, &uuid, "DISK xvda boots=1 log=0").await?;
    says(&home, &uuid, "TICK 3").await?;
    let status = Move::begin(bed, &guest, "disk-mover-away").await?.until(MigrationPhase::Succeeded).await?;
    ensure!(status.destination == Some(other.name()), "it went to {:?}", status.destination);
    wait_until("the source has nothing of it", PATIENCE, async || {
        let left = devices(&home).await?;
        ensure!(left.is_empty(), "devices are left on {}: {left}", home.name());
        nothing_is_left(&home, &uuid, None).await
    })
    .await?;
    says(&other, &uuid, "TICK").await?;
    let logged = counted_to(&other, &uuid).await?;

    // What the disk holds tells a guest that starts with it anew, wherever that is.
    guest.restart().await?;
    let again = guest.wait("runs in another domain", |status| status.phase == Some(Phase::Running)).await?;
    let (now, _) = hosts(bed, &again)?;
    says(&now, &uuid, "DISK xvda boots=2").await?;
    let console = now.check(&format!("cat /srv/kubexen/state/console/{uuid}.log*")).await?;
    let found =
        console.lines().rev().find_map(|line| line.split("boots=2 log=").nth(1)?.trim().parse::<u64>().ok());
    ensure!(found.is_some_and(|found| found > logged), "{found:?} of {logged} writes are on the disk");

    guest.delete().await?;
    delete_disk(bed, "mover-data").await?;
    for host in [&home, &other] {
        let left = devices(host).await?;
        ensure!(left.is_empty(), "devices are left on {}: {left}", host.name());
    }
    let volumes = home.check("lvs --noheadings -o lv_name").await?;
    ensure!(volumes.trim().is_empty(), "volumes are left: {volumes}");
    let records = bed.control_plane.pool_keys("/kubexen/disks/").await?;
    ensure!(!records.iter().any(|key| key.contains(&disk)), "a record of the disk is left: {records:?}");
    Ok(())
}
