//! The test guests.
//!
//! PVH and PV: the same kernel as dom0's, busybox, and one script that reports on the console; `files/guest-init.sh` says
//! what it prints and which kernel command line arguments it obeys. HVM with BIOS: a disk with a boot
//! sector, `files/hvm-boot.s`. HVM with UEFI: a program, `files/uefi-boot.s`.

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
    assemble(BOOT_SECTOR, ["--32", "elf_i386"], BOOT_ADDRESS, target)?;
    let disk = std::fs::File::options().write(true).open(target)?;
    if disk.metadata()?.len() != 512 {
        bail!("a boot sector has 512 bytes, this one {}", disk.metadata()?.len());
    }
    Ok(disk.set_len(DISK_BYTES)?)
}

const UEFI_PROGRAM: &str = include_str!("files/uefi-boot.s");

/// The digest of what [`write_uefi_program`] writes.
pub fn uefi_program_digest() -> Digest {
    let mut digest = Digest::default();
    digest.part(UEFI_PROGRAM.as_bytes());
    digest
}

/// Assembles the UEFI guest's program.
///
/// # Errors
/// When assembler or linker do not run, or refuse the source.
pub fn write_uefi_program(target: &Path) -> Result<()> {
    assemble(UEFI_PROGRAM, ["--64", "elf_x86_64"], "0", target)
}

/// Assembles a source for the assembler's and the linker's name of a machine into a file without a format, which is loaded at
/// this address.
fn assemble(source: &str, [bits, machine]: [&str; 2], address: &str, target: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (text, object) = (scratch.path().join("guest.s"), scratch.path().join("guest.o"));
    std::fs::write(&text, source)?;
    run(Command::new("as").args([bits, "-o"]).args([&object, &text]))?;
    let mut link = Command::new("ld");
    link.args(["-m", machine, "-Ttext", address, "--entry", address, "--oformat", "binary", "-o"]);
    run(link.args([target, &object]))
}

/// Runs a tool that builds a part of the lab.
pub(super) fn run(command: &mut Command) -> Result<()> {
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

    #[test]
    fn the_uefi_program_begins_as_firmware_expects_and_has_its_name_behind_the_headers() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("bootx64.efi");
        write_uefi_program(&program).unwrap();
        let bytes = std::fs::read(&program).unwrap();
        assert_eq!((&bytes[..2], bytes.len()), (&b"MZ"[..], 1024));
        assert_eq!(&bytes[0x40..0x46], b"PE\0\0\x64\x86");
        assert_eq!(&bytes[512..520], b"default\0");
    }
}
