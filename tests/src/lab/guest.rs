//! The test guest: the same kernel as dom0's, busybox, and one script that reports on its console.
//!
//! `files/guest-init.sh` says what the guest prints and which kernel command line arguments it obeys.

use std::path::Path;

use anyhow::Result;

use super::archive::Archive;
use super::modules::Modules;

/// busybox's commands that the scripts use, and some for people who look around.
const COMMANDS: [&str; 22] = [
    "arping", "cat", "dd", "dmesg", "echo", "free", "ifconfig", "insmod", "ip", "ls", "mount", "nc", "ping",
    "ps", "sed", "sh", "sleep", "sync", "top", "tr", "uname", "wget",
];

/// The guest's initial RAM file system.
///
/// # Errors
/// When busybox or a module is missing.
pub fn archive(modules: &Modules) -> Result<Archive> {
    let mut archive = Archive::new();
    for folder in ["/proc", "/sys", "/dev"] {
        archive.directory(folder);
    }
    archive.file("/bin/busybox", Path::new("/usr/bin/busybox"))?;
    for command in COMMANDS {
        archive.symlink(&format!("/bin/{command}"), "busybox");
    }
    let order = modules.add_to(&mut archive, &["xen-blkfront", "xen-netfront"], &[])?;
    archive.bytes("/modules", false, order.join("\n") + "\n");
    archive.bytes("/init", true, include_str!("files/guest-init.sh"));
    for command in ["poweroff", "reboot"] {
        archive.bytes(&format!("/sbin/{command}"), true, include_str!("files/guest-exit.sh"));
    }
    Ok(archive)
}
