//! Guests that boot from their own disks: by pvgrub, and by UEFI. Those that boot by BIOS are among the lives.

use crate::bed::{Bed, Guest, Turn, beside_others, delete_disk, hosts, nothing_is_left, says};
use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kubexen_testbed::lab::LabHost;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::RwLockReadGuard;

/// Copying a kernel onto a disk takes its time.
const COPYING: Duration = Duration::from_secs(180);

/// A machine without a kernel of its host's, with disks that a test writes to while it is off.
struct FromDisk {
    guest: Guest,
    uuid: String,
    home: LabHost,
    /// The disks' names and uids.
    disks: Vec<(String, String)>,
    turn: Turn<RwLockReadGuard<'static, ()>>,
}

impl FromDisk {
    /// Makes it with two blank disks, `first` and `second`, and halts it where these are made.
    async fn create(name: &'static str, boot: Value) -> Result<Self> {
        let turn = beside_others().await;
        let mut disks = Vec::new();
        for place in ["first", "second"] {
            let disk = format!("{name}-{place}");
            let uid = Guest::create_disk(turn.bed, &disk).await?.uid().context("no uid")?;
            disks.push((disk, uid));
        }
        let spec = json!({
            "boot": boot,
            "disks": [
                {"name": "first", "disk": disks[0].0},
                {"name": "second", "disk": disks[1].0},
            ],
            "lifecycle": {"shutdownTimeout": "0s"},
        });
        let guest = Guest::create(turn.bed, name, spec).await?;
        let uuid = guest.uuid().await?;
        let (home, _) = hosts(turn.bed, &guest.wait_ready("Running").await?)?;
        guest.change(json!({"powerState": "Halted"})).await?;
        guest.wait_ready("Halted").await?;
        Ok(Self { guest, uuid, home, disks, turn })
    }

    fn bed(&self) -> &'static Bed {
        self.turn.bed
    }

    /// Runs shell text in dom0 with the file of a disk as `$disk`, and a folder of its own to mount it at as the working
    /// directory's `mnt`.
    async fn write(&self, disk: usize, script: &str) -> Result<()> {
        let uid = &self.disks[disk].1;
        let script = format!(
            "set -e; disk=/srv/kubexen/disks/{uid}.raw; mkdir -p /tmp/{uid}/mnt; cd /tmp/{uid}; {script}\n\
             umount mnt; cd /; rm -r /tmp/{uid}; sync"
        );
        let output = self.home.exec_within(&script, COPYING).await?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.code == 0, "{script}: {}{errors}", output.text());
        Ok(())
    }

    /// Starts it and waits until it says so.
    async fn start(&self, words: &str) -> Result<()> {
        self.guest.change(json!({"powerState": "Running"})).await?;
        self.guest.wait_ready("Running").await?;
        says(&self.home, &self.uuid, words).await
    }

    /// Gives the second disk a place before the first, restarts it and waits until it says so.
    async fn boot_from_second(&self, words: &str) -> Result<()> {
        let disks = json!([
            {"name": "first", "disk": self.disks[0].0},
            {"name": "second", "disk": self.disks[1].0, "bootOrder": 1},
        ]);
        self.guest.change(json!({"disks": disks})).await?;
        self.guest
            .wait("waits for its restart", |status| {
                let found = kubexen_crds::condition::find(&status.conditions, "Synchronized");
                found.is_some_and(|found| found.reason == "RestartRequired")
            })
            .await?;
        self.guest.restart().await?;
        says(&self.home, &self.uuid, words).await
    }

    async fn delete(self) -> Result<()> {
        self.guest.delete().await?;
        for (name, uid) in &self.disks {
            delete_disk(self.bed(), name).await?;
            nothing_is_left(&self.home, &self.uuid, Some(uid)).await?;
        }
        Ok(())
    }
}

/// A file system on the whole disk with a grub.cfg that says a word and goes on with `rest`.
fn grub(word: &str, rest: &str) -> String {
    format!(
        "mke2fs -F $disk >/dev/null; mount -t ext4 -o loop $disk mnt; mkdir -p mnt/boot/grub\n\
         cat >mnt/boot/grub/grub.cfg <<'END'\necho GRUB says {word}\n{rest}\nEND\n"
    )
}

/// Starts the test guest's kernel from the disk.
const LINUX: &str = "linux /boot/vmlinuz console=hvc0 quiet\ninitrd /boot/initrd\nboot";

#[tokio::test]
#[ignore = "takes minutes: cargo xtask test lab -- --ignored grub_cfg"]
async fn a_pvh_guest_boots_by_the_grub_cfg_of_its_disk_and_of_another_when_that_comes_first() -> Result<()> {
    let machine = FromDisk::create("grub", json!({"type": "PVH", "kernel": null})).await?;
    let kernel = format!("{}cp /guest/vmlinuz /guest/initrd mnt/boot/", grub("one", LINUX));
    machine.write(0, &kernel).await?;
    machine.write(1, &grub("two", "")).await?;
    machine.start("GRUB says one").await?;
    says(&machine.home, &machine.uuid, "DISK xvda boots=1").await?;
    machine.boot_from_second("GRUB says two").await?;
    machine.delete().await
}

#[tokio::test]
#[ignore = "takes minutes: cargo xtask test lab -- --ignored grub_cfg"]
async fn a_pv_guest_boots_by_the_grub_cfg_of_its_disk() -> Result<()> {
    let machine = FromDisk::create("grub-pv", json!({"type": "PV", "kernel": null})).await?;
    machine.write(1, &grub("here it is", "")).await?;
    machine.start("GRUB says here it is").await?;
    machine.delete().await
}

/// An EFI system partition with the test guest's program under this name.
fn efi_system_partition(name: &str) -> String {
    // One entry of the partition table: type EF, from sector 2048 on, 24576 sectors. In it FAT12, with one table of 10 sectors,
    // 16 entries in its root and clusters of 8 sectors: busybox makes FAT32 of any size, and UEFI takes that for broken when it
    // has less than 65525 clusters.
    format!(
        "printf '\\0\\0\\0\\0\\357\\0\\0\\0\\0\\10\\0\\0\\0\\140\\0\\0' | dd of=$disk bs=1 seek=446 conv=notrunc 2>/dev/null\n\
         printf '\\125\\252' | dd of=$disk bs=1 seek=510 conv=notrunc 2>/dev/null\n\
         part=$(losetup --find --show --offset 1048576 --sizelimit 12582912 $disk)\n\
         printf '\\353\\74\\220KUBEXEN \\0\\2\\10\\1\\0\\1\\20\\0\\0\\140\\370\\12\\0' | dd of=$part 2>/dev/null\n\
         printf '\\125\\252' | dd of=$part bs=1 seek=510 2>/dev/null\n\
         printf '\\370\\377\\377' | dd of=$part bs=512 seek=1 2>/dev/null\n\
         mount -t vfat $part mnt; losetup -d $part; mkdir -p mnt/EFI/BOOT\n\
         cp /guest/bootx64.efi mnt/EFI/BOOT/BOOTX64.EFI\n\
         printf '{name}\\0' | dd of=mnt/EFI/BOOT/BOOTX64.EFI bs=1 seek=512 conv=notrunc 2>/dev/null"
    )
}

#[tokio::test]
#[ignore = "takes minutes: cargo xtask test lab -- --ignored uefi"]
async fn a_uefi_guest_boots_from_the_system_partition_of_the_disk_that_comes_first() -> Result<()> {
    let machine =
        FromDisk::create("uefi", json!({"type": "HVM", "firmware": "UEFI", "kernel": null})).await?;
    machine.write(0, &efi_system_partition("one")).await?;
    machine.write(1, &efi_system_partition("two")).await?;
    machine.start("type=UEFI name=one").await?;
    machine.boot_from_second("type=UEFI name=two").await?;
    machine.delete().await
}
