//! What dom0's initial RAM file system holds.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::archive::Archive;
use super::libraries::add_program;
use super::modules::Modules;

/// Programs that stand in dom0 where they stand on this machine; where busybox has one of the same name, these win.
///
/// Xen's hotplug scripts want the real `bash`, `flock`, `stat`, `readlink` and `losetup`; the lab's own want the real
/// `head`, which takes no more from a socket than it was told.
const PROGRAMS: [&str; 32] = [
    "/usr/bin/bash",
    "/usr/bin/dd",
    "/usr/bin/flock",
    "/usr/bin/head",
    "/usr/bin/logger",
    "/usr/bin/readlink",
    "/usr/bin/setsid",
    "/usr/bin/socat",
    "/usr/bin/stat",
    "/usr/bin/xenstore-chmod",
    "/usr/bin/xenstore-exists",
    "/usr/bin/xenstore-list",
    "/usr/bin/xenstore-ls",
    "/usr/bin/xenstore-read",
    "/usr/bin/xenstore-rm",
    "/usr/bin/xenstore-watch",
    "/usr/bin/xenstore-write",
    "/usr/libexec/xen-qemu-system-i386",
    "/usr/lib/xen-4.17/bin/libxl-save-helper",
    "/usr/lib/xen-4.17/bin/xen-init-dom0",
    "/usr/lib/xen-4.17/bin/xenconsole",
    "/usr/lib/xen-4.17/bin/xenconsoled",
    "/usr/lib/xen-4.17/bin/xenstored",
    "/usr/lib/xen-4.17/bin/xenwatchdogd",
    "/usr/lib/xen-4.17/bin/xl",
    "/usr/bin/timeout",
    "/usr/sbin/bridge",
    "/usr/sbin/dmsetup",
    "/usr/sbin/ip",
    "/usr/sbin/losetup",
    "/usr/sbin/lvm",
    "/usr/sbin/nft",
];

/// Names under which `lvm` is called.
const LVM_COMMANDS: [&str; 14] = [
    "lvchange",
    "lvconvert",
    "lvcreate",
    "lvdisplay",
    "lvextend",
    "lvremove",
    "lvresize",
    "lvs",
    "pvcreate",
    "pvs",
    "vgchange",
    "vgcreate",
    "vgremove",
    "vgs",
];

/// Libraries that nothing links to and programs load late: pthread_cancel takes libgcc_s (without it `xl create` aborts);
/// the node agent loads libxl and libxenctrl by name.
const LIBRARIES: [&str; 4] =
    ["libgcc_s.so.1", "libxenctrl.so.4.17", "libxenlight.so.4.17", "libxentoollog.so.1"];

/// Folders and files that are copied as they are: Xen's hotplug scripts, boot loaders for PVH and PV guests, firmware for HVM
/// guests, and what QEMU's device model looks for when it makes network cards and keyboards.
const DATA: [&str; 12] = [
    "/etc/xen/scripts",
    "/usr/lib/grub-xen/grub-i386-xen_pvh.bin",
    "/usr/lib/grub-xen/grub-x86_64-xen.bin",
    "/usr/lib/xen-4.17/boot",
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/seabios/vgabios-cirrus.bin",
    "/usr/share/seabios/vgabios-stdvga.bin",
    "/usr/share/ovmf/OVMF.fd",
    "/usr/share/qemu/keymaps/en-us",
    "/usr/share/qemu/linuxboot.bin",
    "/usr/lib/ipxe/qemu/efi-e1000.rom",
    "/usr/lib/ipxe/qemu/efi-rtl8139.rom",
];

/// Modules that are loaded when dom0 starts. xenfs and the Xen devices come before xenstored; the others belong to QEMU's
/// devices, or to devices for which nothing asks the kernel by name.
const LOADED: [&str; 15] = [
    "xenfs",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-privcmd",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "xen-blkback",
    "xen-netback",
    "bridge",
    "loop",
    "dm-mod",
    "tun",
];

/// Modules that the kernel or a person loads when they are wanted.
const AVAILABLE: [&str; 22] = [
    "8021q",
    "bonding",
    "crc32c-intel",
    "crc32c_generic",
    "dm-bufio",
    "dm-mirror",
    "dm-snapshot",
    "dm-thin-pool",
    "dummy",
    "ext4",
    "libcrc32c",
    "nfs",
    "nfsv4",
    "nls_ascii",
    "nls_cp437",
    "veth",
    "vfat",
    "vxlan",
    "xen-acpi-processor",
    "xen-pciback",
    "xen-scsiback",
    "xen_wdt",
];

/// Folders of which every module is available.
const AVAILABLE_FOLDERS: [&str; 4] = [
    "kernel/net/bridge/netfilter",
    "kernel/net/ipv4/netfilter",
    "kernel/net/ipv6/netfilter",
    "kernel/net/netfilter",
];

/// The archive that all hosts of all labs have in common.
///
/// # Errors
/// When something that belongs into it is missing on this machine.
pub fn archive(modules: &Modules, guest: &GuestFiles) -> Result<Archive> {
    let mut archive = Archive::new();
    for folder in [
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "root",
        "srv/kubexen",
        "var/log/xen",
        "var/lib/xen",
        "var/lib/xenstored",
    ] {
        archive.directory(folder);
    }
    archive.symlink("/var/run", "../run");
    archive.symlink("/var/lock", "../run/lock");
    for program in PROGRAMS {
        add_program(&mut archive, program, Path::new(program))?;
    }
    for command in LVM_COMMANDS {
        archive.symlink(&format!("/usr/sbin/{command}"), "lvm");
    }
    for name in LIBRARIES {
        let path = format!("/usr/lib/x86_64-linux-gnu/{name}");
        add_program(&mut archive, &path, Path::new(&path))?;
    }
    // The name that the xenctrl crate asks the dynamic linker for, which Debian ships in its development package only.
    archive.symlink("/usr/lib/x86_64-linux-gnu/libxenctrl.so", "libxenctrl.so.4.17");
    for path in DATA {
        copy(&mut archive, Path::new(path))?;
    }
    add_busybox(&mut archive)?;
    add_modules(&mut archive, modules)?;
    add_scripts(&mut archive);
    archive.file("/guest/vmlinux", &guest.vmlinux)?;
    archive.file("/guest/vmlinuz", &guest.vmlinuz)?;
    archive.file("/guest/initrd", &guest.initrd)?;
    archive.file("/guest/hvm.img", &guest.hvm_disk)?;
    archive.file("/guest/bootx64.efi", &guest.uefi_program)?;
    Ok(archive)
}

/// The test guest's files on this machine; in dom0 they stand in `/guest` under these names.
#[derive(Debug)]
pub struct GuestFiles {
    /// The ELF kernel, for PVH and PV guests.
    pub vmlinux: PathBuf,
    /// The same as a bzImage, the form that the device model of an HVM guest loads; very slow under emulation.
    pub vmlinuz: PathBuf,
    /// See [`super::guest`].
    pub initrd: PathBuf,
    /// A disk that HVM guests boot from; in dom0 `/guest/hvm.img`, to be copied before it is used.
    pub hvm_disk: PathBuf,
    /// What UEFI guests start; in dom0 `/guest/bootx64.efi`, to be copied into the EFI system partition of a disk.
    pub uefi_program: PathBuf,
}

/// busybox under all its names that no real program has.
fn add_busybox(archive: &mut Archive) -> Result<()> {
    let output = Command::new("/usr/bin/busybox").arg("--list").output().context("busybox does not run")?;
    archive.file("/usr/bin/busybox", Path::new("/usr/bin/busybox"))?;
    for name in String::from_utf8_lossy(&output.stdout).lines() {
        let taken =
            ["/usr/bin", "/usr/sbin"].iter().any(|folder| archive.contains(&format!("{folder}/{name}")));
        if !taken {
            archive.symlink(&format!("/usr/bin/{name}"), "busybox");
        }
    }
    // The kernel asks for modules by this path.
    archive.symlink("/usr/sbin/modprobe", "../bin/busybox");
    Ok(())
}

fn add_modules(archive: &mut Archive, modules: &Modules) -> Result<()> {
    let mut available = AVAILABLE.to_vec();
    for folder in AVAILABLE_FOLDERS {
        available.extend(modules.below(folder));
    }
    let order = modules.add_to(archive, &LOADED, &available)?;
    archive.bytes("/etc/kubexen-lab/boot-modules", false, order.join("\n") + "\n");
    Ok(())
}

fn add_scripts(archive: &mut Archive) {
    archive.bytes("/init", true, include_str!("files/dom0-init.sh"));
    archive.bytes("/etc/inittab", false, include_str!("files/dom0-inittab"));
    for (name, script) in [
        ("boot", include_str!("files/dom0-boot.sh")),
        ("control-listen", include_str!("files/dom0-control-listen.sh")),
        ("control-serve", include_str!("files/dom0-control-serve.sh")),
        ("agent-supervisor", include_str!("files/dom0-agent-supervisor.sh")),
    ] {
        archive.bytes(&format!("/usr/lib/kubexen-lab/{name}"), true, script);
    }
    archive.bytes("/etc/lvm/lvm.conf", false, include_str!("files/lvm.conf"));
    archive.bytes("/etc/xen/xl.conf", false, "");
    archive.bytes("/etc/passwd", false, include_str!("files/dom0-passwd"));
    archive.bytes("/etc/group", false, include_str!("files/dom0-group"));
    archive.bytes("/etc/resolv.conf", false, "nameserver 10.0.2.3\n");
}

/// Adds a file, or a folder with all that is in it, at its own path.
fn copy(archive: &mut Archive, source: &Path) -> Result<()> {
    if source.is_dir() {
        for entry in std::fs::read_dir(source)? {
            copy(archive, &entry?.path())?;
        }
        return Ok(());
    }
    let Some(path) = source.to_str() else { bail!("{} is not UTF-8", source.display()) };
    archive.file(path, source)
}
