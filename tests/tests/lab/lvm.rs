//! Volumes in a volume group on the LUN that both hosts see. Each call to the storage is a process of its own in a dom0, so
//! it knows no more than an agent that was just started.

use crate::{
    bed::{Bed, PATIENCE, Turn, beside_others},
    lun::PLUG_IN,
};
use anyhow::{Result, ensure};
use kubexen_testbed::{lab::LabHost, pool};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard, RwLockReadGuard};
use uuid::Uuid;

const MIB: u64 = 1 << 20;

/// The whole suite makes some fifteen volumes, with about ten commands of LVM for each.
const SUITE_LIMIT: Duration = Duration::from_secs(900);

/// There is one LUN, and each test makes a volume group of its own on it.
pub static LUN: Mutex<()> = Mutex::const_new(());

/// A volume group for one test, on a LUN that both hosts see.
struct Group {
    one: LabHost,
    two: LabHost,
    pool_store: String,
    _turn: Turn<RwLockReadGuard<'static, ()>>,
    _lun: MutexGuard<'static, ()>,
}

const NAME: &str = pool::SHARED_GROUP;

/// What device-mapper's names of the group's devices begin with.
pub const DEVICES: &str = "/dev/mapper/vg--san--1-";

fn device(uuid: Uuid) -> String {
    format!("{DEVICES}kubexen--{}", uuid.to_string().replace('-', "--"))
}

impl Group {
    /// Makes it with extents of 1 MiB, of which there are `extents`.
    async fn of_size(extents: u64) -> Result<Self> {
        let turn = beside_others().await;
        let lun = LUN.lock().await;
        let (one, two) = make_group(turn.bed, extents).await?;
        let pool_store =
            turn.bed.control_plane.pool_etcd_endpoints().join(",").replace("127.0.0.1", "10.0.2.2");
        Ok(Self { one, two, pool_store, _turn: turn, _lun: lun })
    }

    fn command(&self, host: &LabHost, call: &str) -> String {
        let (host, pool_store) = (host.name(), &self.pool_store);
        format!(
            "kubexen-node-agent storage --volume-group {NAME} --host {host} --pool-store {pool_store} {call}"
        )
    }

    /// Calls the storage of a host, and returns what it answered.
    async fn call(&self, host: &LabHost, call: &str) -> Result<String> {
        self.call_within(host, call, PATIENCE).await
    }

    async fn call_within(&self, host: &LabHost, call: &str, limit: Duration) -> Result<String> {
        let output = host.exec_within(&self.command(host, call), limit).await?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.code == 0, "{call} on {}: exit code {}: {errors}", host.name(), output.code);
        Ok(output.text().trim().to_owned())
    }

    /// Starts a call and kills its process the moment this volume is active.
    async fn kill_while_active(&self, host: &LabHost, call: &str, uuid: Uuid) -> Result<()> {
        let script = format!(
            "{} & for _ in $(seq 3000); do [ -e {} ] && break; sleep 0.02; done; kill -9 $!; wait $!",
            self.command(host, call),
            device(uuid)
        );
        let output = host.exec_within(&script, PATIENCE).await?;
        ensure!(output.code == 137, "{call} ended with {} before it was killed", output.code);
        Ok(())
    }

    /// The logical volumes with their tags, as `name tags`.
    async fn volumes(&self) -> Result<Vec<String>> {
        let list = self.one.check(&format!("lvs --noheadings -o lv_name,lv_tags {NAME}")).await?;
        Ok(list.lines().map(|line| line.trim().to_owned()).collect())
    }
}

/// Makes the volume group, with extents of 1 MiB, and tells the two hosts that see it. Whoever calls this holds [`LUN`].
pub async fn make_group(bed: &Bed, extents: u64) -> Result<(LabHost, LabHost)> {
    let (one, two) = (bed.lab.host("xen-1")?, bed.lab.host("xen-2")?);
    for host in [&one, &two] {
        // What a test that failed has left.
        host.check(PLUG_IN).await?;
        host.check(&format!("for d in {DEVICES}*; do [ -e $d ] && dmsetup remove $d; done; true")).await?;
    }
    one.check("dd if=/dev/zero of=/dev/lab/lun bs=1M count=2 oflag=direct conv=notrunc 2>&1").await?;
    // The first MiB is LVM's own.
    let size = extents + 1;
    one.check(&format!("pvcreate --yes --setphysicalvolumesize {size}m /dev/lab/lun")).await?;
    one.check(&format!("vgcreate --physicalextentsize 1m {NAME} /dev/lab/lun")).await?;
    Ok((one, two))
}

/// The group's devices on a host, and the links to them.
pub async fn devices(host: &LabHost) -> Result<String> {
    host.check(&format!("ls -d {DEVICES}* /dev/{NAME}/* 2>/dev/null; true")).await
}

/// Fills a device with one character.
async fn fill(host: &LabHost, device: &str, mib: u64, with: char) -> Result<()> {
    let fill = format!(
        "tr '\\0' {with} </dev/zero | dd of={device} bs=1M count={mib} iflag=fullblock oflag=direct 2>&1"
    );
    host.exec_within(&fill, PATIENCE).await.and_then(|output| {
        ensure!(output.code == 0, "{device} was not filled: {}", output.text());
        Ok(())
    })
}

/// How many bytes of a device are this character, of the first so many MiB; read past the cache, which is each host's own.
async fn count(host: &LabHost, device: &str, mib: u64, wanted: &str) -> Result<u64> {
    let count =
        format!("dd if={device} bs=1M count={mib} iflag=direct 2>/dev/null | tr -d -c '{wanted}' | wc -c");
    Ok(host.exec_within(&count, PATIENCE).await?.text().trim().parse()?)
}

async fn size(host: &LabHost, device: &str) -> Result<u64> {
    Ok(host.check(&format!("blockdev --getsize64 {device}")).await?.trim().parse()?)
}

#[tokio::test]
#[ignore = "minutes of LVM on an emulated machine: cargo xtask test lab -- --ignored lvm"]
async fn a_volume_group_keeps_every_promise_of_storage() -> Result<()> {
    let group = Group::of_size(4).await?;
    group.call_within(&group.one, "suite", SUITE_LIMIT).await?;
    ensure!(group.volumes().await?.is_empty(), "the suite left {:?}", group.volumes().await?);
    ensure!(devices(&group.one).await?.is_empty(), "the suite left a device");
    Ok(())
}

#[tokio::test]
#[ignore = "minutes of LVM on an emulated machine: cargo xtask test lab -- --ignored lvm"]
async fn hosts_take_turns_at_a_volume_which_is_active_on_one_of_them() -> Result<()> {
    let group = Group::of_size(64).await?;
    let (one, two, uuid) = (&group.one, &group.two, Uuid::new_v4());
    let device = device(uuid);
    group.call(one, &format!("create {uuid} {}", 8 * MIB)).await?;
    ensure!(devices(one).await?.is_empty(), "a volume is active before anybody attached it");
    ensure!(group.call(two, &format!("find {uuid}")).await? == (8 * MIB).to_string());
    let facts = [group.call(one, "locations").await?, group.call(two, "locations").await?];
    ensure!(facts[0] == facts[1] && facts[0].contains(r#""shared":true"#), "{facts:?}");

    ensure!(group.call(one, &format!("attach {uuid}")).await? == device);
    fill(one, &device, 8, 'V').await?;
    group.call(one, &format!("detach {uuid}")).await?;
    ensure!(group.call(two, &format!("attach {uuid}")).await? == device);
    ensure!(count(two, &device, 8, "V").await? == 8 * MIB, "what one host wrote the other does not read");
    ensure!(devices(one).await?.is_empty(), "the volume is active on both hosts");
    ensure!(group.call(two, "attached").await? == uuid.to_string());

    group.call(one, &format!("grow {uuid} {}", 16 * MIB)).await?;
    ensure!(size(two, &device).await? == 8 * MIB, "the device grew by itself");
    group.call(two, &format!("attach {uuid}")).await?;
    ensure!(size(two, &device).await? == 16 * MIB, "an attachment does not bring the new size");
    group.call(two, &format!("grow {uuid} {}", 24 * MIB)).await?;
    ensure!(size(two, &device).await? == 24 * MIB, "the device did not grow with its volume");
    ensure!(count(two, &device, 24, "V").await? == 8 * MIB);

    let open = group.one.clone();
    let holding = format!("exec 9<{device}; {}", group.command(two, &format!("detach {uuid}")));
    let refused = two.exec_within(&holding, PATIENCE).await?;
    ensure!(refused.code != 0 && String::from_utf8_lossy(&refused.stderr).contains("is in use"));
    group.call(two, &format!("detach {uuid}")).await?;
    group.call(&open, &format!("delete {uuid}")).await?;
    ensure!(group.volumes().await?.is_empty() && devices(two).await?.is_empty());
    Ok(())
}

#[tokio::test]
#[ignore = "minutes of LVM on an emulated machine: cargo xtask test lab -- --ignored lvm"]
async fn hosts_that_change_a_group_at_once_take_turns_and_one_that_comes_too_late_changes_nothing()
-> Result<()> {
    let group = Group::of_size(16).await?;
    let (one, two) = (&group.one, &group.two);
    let uuids = [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()];
    let create = |uuid: &Uuid| format!("create {uuid} {MIB}");
    let creations = [create(&uuids[0]), create(&uuids[1]), create(&uuids[2])];
    let (first, second, third) = tokio::join!(
        group.call(one, &creations[0]),
        group.call(two, &creations[1]),
        group.call(one, &creations[2])
    );
    first.and(second).and(third)?;
    let mut expected = uuids.map(|uuid| format!("kubexen-{uuid}"));
    expected.sort_unstable();
    ensure!(group.volumes().await? == expected, "{:?}", group.volumes().await?);

    let later = u64::MAX;
    one.check(&format!("vgchange --addtag kubexen.lock-revision={later} {NAME}")).await?;
    let late = two.exec_within(&group.command(two, &create(&Uuid::new_v4())), PATIENCE).await?;
    let complaint = String::from_utf8_lossy(&late.stderr).into_owned();
    ensure!(late.code != 0 && complaint.contains("this host holds an older one"), "{complaint}");
    ensure!(group.volumes().await? == expected, "{:?}", group.volumes().await?);
    Ok(())
}

#[tokio::test]
#[ignore = "minutes of LVM on an emulated machine: cargo xtask test lab -- --ignored lvm"]
async fn nobody_reads_old_blocks_and_foreign_volumes_are_untouched() -> Result<()> {
    let group = Group::of_size(64).await?;
    let (one, two) = (&group.one, &group.two);
    for (name, mib) in [("root", 4), ("old", 60)] {
        one.check(&format!("lvcreate --yes -W n -Z n --size {mib}m --name {name} {NAME}")).await?;
        fill(one, &format!("{DEVICES}{name}"), mib, 'O').await?;
    }
    one.check(&format!("lvchange -an {NAME}/root && lvremove --yes {NAME}/old")).await?;

    for policy in ["", "--discard "] {
        let uuid = Uuid::new_v4();
        let device = device(uuid);
        group.call(one, &format!("{policy}create {uuid} {}", 8 * MIB)).await?;
        group.call(two, &format!("attach {uuid}")).await?;
        ensure!(count(two, &device, 8, "\\0").await? == 8 * MIB, "a new volume shows old blocks");
        fill(two, &device, 8, 'V').await?;
        group.call(two, &format!("{policy}grow {uuid} {}", 16 * MIB)).await?;
        ensure!(count(two, &device, 16, "O").await? == 0, "a volume's new end shows old blocks");
        group.call(two, &format!("detach {uuid}")).await?;
        group.call(one, &format!("{policy}delete {uuid}")).await?;
        ensure!(
            count(one, "/dev/lab/lun", 66, "V").await? < MIB,
            "a deleted volume's blocks are still there"
        );
    }

    ensure!(group.volumes().await? == ["root"], "{:?}", group.volumes().await?);
    one.check(&format!("lvchange -ay {NAME}/root")).await?;
    ensure!(count(one, &format!("{DEVICES}root"), 4, "O").await? == 4 * MIB, "a foreign volume was touched");
    one.check(&format!("lvchange -an {NAME}/root")).await.map(drop)
}

#[tokio::test]
#[ignore = "minutes of LVM on an emulated machine: cargo xtask test lab -- --ignored lvm"]
async fn a_creation_and_a_deletion_that_were_killed_are_undone_or_finished() -> Result<()> {
    let group = Group::of_size(64).await?;
    let (one, two, uuid) = (&group.one, &group.two, Uuid::new_v4());
    let create = format!("create {uuid} {}", 16 * MIB);
    group.kill_while_active(one, &create, uuid).await?;
    let left = group.volumes().await?;
    ensure!(left == [format!("kubexen-{uuid} kubexen.unfinished")], "{left:?}");
    ensure!(group.call(two, &format!("find {uuid}")).await?.is_empty(), "half a volume is there");
    group.call(two, &create).await?;
    ensure!(group.volumes().await? == [format!("kubexen-{uuid}")], "{:?}", group.volumes().await?);
    group.call(one, &format!("find {uuid}")).await?;
    ensure!(devices(one).await?.is_empty(), "the device of the volume that was never made is still there");

    group.call(one, &format!("attach {uuid}")).await?;
    fill(one, &device(uuid), 16, 'V').await?;
    group.call(one, &format!("detach {uuid}")).await?;
    group.kill_while_active(one, &format!("delete {uuid}"), uuid).await?;
    let left = group.volumes().await?;
    ensure!(left == [format!("kubexen-{uuid} kubexen.deleting")], "{left:?}");
    group.call(two, &format!("delete {uuid}")).await?;
    ensure!(group.volumes().await?.is_empty(), "{:?}", group.volumes().await?);
    group.call(one, &format!("find {uuid}")).await?;
    for host in [one, two] {
        ensure!(devices(host).await?.is_empty(), "a device is left on {}", host.name());
    }
    ensure!(count(one, "/dev/lab/lun", 66, "V").await? < MIB, "the volume's blocks are still there");
    Ok(())
}
