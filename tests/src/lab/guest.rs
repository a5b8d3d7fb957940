//! The test guests.
//!
//! PVH and PV: the same kernel as dom0's, busybox, and one script that reports on the console; `files/guest-init.sh` says
//! what it prints and which kernel command line arguments it obeys. HVM: a disk with a boot sector, `files/hvm-boot.s`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::archive::Archive;
use super::cache::Digest;
use super::modules::Modules;

/// busybox's commands that the scripts use, and some for people who look around.
const COMMANDS: [&str; 24] = [
    "arping", "cat", "dd", "dmesg", "echo", "free", "grep", "ifconfig", "insmod", "ip", "ls", "mount", "nc",
    "ping", "ps", "sed", "sh", "sleep", "sync", "top", "tr", "umount", "uname", "wget",
];

/// The guest's initial RAM file system.
///
/// # Errors
/// When busybox or a module is missing.
pub fn archive(modules: &Modules) -> Result<Archive> {
    let mut archive = Archive::new();
    for folder in ["/proc", "/sys", "/dev", "/seed"] {
        archive.directory(folder);
    }
    archive.file("/bin/busybox", Path::new("/usr/bin/busybox"))?;
    for command in COMMANDS {
        archive.symlink(&format!("/bin/{command}"), "busybox");
    }
    // vfat: seeds; nls: the character sets that it asks for.
    let wanted = ["xen-blkfront", "xen-netfront", "vfat", "nls_cp437", "nls_ascii"];
    let order = modules.add_to(&mut archive, &wanted, &[])?;
    archive.bytes("/modules", false, order.join("\n") + "\n");
    archive.bytes("/init", true, include_str!("files/guest-init.sh"));
    for command in ["poweroff", "reboot"] {
        archive.bytes(&format!("/sbin/{command}"), true, include_str!("files/guest-exit.sh"));
    }
    Ok(archive)
}

const BOOT_SECTOR: &str = include_str!("files/hvm-boot.s");
/// Where the firmware loads a boot sector.
const BOOT_ADDRESS: &str = "0x7c00";
/// Size of the HVM guest's disk; most of it is empty.
const DISK_BYTES: u64 = 1 << 20;

/// The digest of what [`write_hvm_disk`] writes.
pub fn hvm_disk_digest() -> Digest {
    let mut digest = Digest::default();
    digest.part(BOOT_SECTOR.as_bytes());
    digest
}

/// Assembles the HVM guest's disk.
///
/// # Errors
/// When assembler or linker do not run, or refuse the source.
pub fn write_hvm_disk(target: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (source, object) = (scratch.path().join("hvm-boot.s"), scratch.path().join("hvm-boot.o"));
    std::fs::write(&source, BOOT_SECTOR)?;
    run(Command::new("as").args(["--32", "-o"]).args([&object, &source]))?;
    let mut link = Command::new("ld");
    link.args([
        "-m",
        "elf_i386",
        "-Ttext",
        BOOT_ADDRESS,
        "--entry",
        BOOT_ADDRESS,
        "--oformat",
        "binary",
        "-o",
    ]);
    run(link.args([target, &object]))?;
    let disk = std::fs::File::options().write(true).open(target)?;
    if disk.metadata()?.len() != 512 {
        bail!("a boot sector has 512 bytes, this one {}", disk.metadata()?.len());
    }
    Ok(disk.set_len(DISK_BYTES)?)
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{program} does not run"))?;
    if !output.status.success() {
        bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hvm_disk_ends_its_first_sector_with_the_boot_signature() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        write_hvm_disk(&disk).unwrap();
        let bytes = std::fs::read(&disk).unwrap();
        assert_eq!(bytes.len() as u64, DISK_BYTES);
        assert_eq!(bytes[510..512], [0x55, 0xaa]);
        assert!(bytes[512..].iter().all(|byte| *byte == 0));
    }
}
