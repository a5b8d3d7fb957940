//! One lab host as a QEMU process: software emulation, with the virtualisation extensions that Xen needs.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::hub;
use super::process::ProcessRecord;
use super::repair;
use super::state::{Lifetime, State};

/// Port of the control server inside a host.
pub const CONTROL_PORT: u16 = 7000;

/// Name of QEMU's user network towards this machine, and of its monitor's object.
pub const UPLINK: &str = "uplink";
/// Name of the network between the hosts.
pub const SEGMENT: &str = "segment";

/// Name of host `number`, which is also its host name and its folder's.
pub fn name(number: usize) -> String {
    format!("xen-{number}")
}

/// Starts the QEMU of host `number` of the lab in `folder` and returns at once; the host then boots.
///
/// # Errors
/// When the program cannot be started.
pub fn start(folder: &Path, state: &State, number: usize) -> Result<ProcessRecord> {
    let host = name(number);
    let log = File::create(folder.join(&host).join("qemu.log"))?;
    let mut command = match state.lifetime {
        Lifetime::Owned => Command::new("qemu-system-x86_64"),
        Lifetime::Detached => {
            // A session of its own: the terminal that started the lab may be closed.
            let mut command = Command::new("setsid");
            command.arg("qemu-system-x86_64");
            command
        }
    };
    command
        .args(arguments(state, number))
        .env("LD_PRELOAD", format!("./{}", repair::FILE))
        // All paths are from here on, which keeps commas and length limits of socket paths out of them.
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let child = match state.lifetime {
        Lifetime::Owned => crate::process::spawn_tied(command),
        Lifetime::Detached => command.spawn(),
    };
    ProcessRecord::of(child.context("qemu-system-x86_64 does not start")?.id())
}

/// Features that the CPUs of every second host have beyond those of the others: pools are seldom of one delivery.
///
/// SSSE3 and what builds on it are not among them: cryptography uses their shuffles where they exist, and QEMU emulates those
/// one byte at a time. An agent that sent a guest with them used twice the CPU time of the one that received it without.
fn more_features(number: usize) -> &'static str {
    if number.is_multiple_of(2) { ",+popcnt,+movbe,+aes" } else { "" }
}

fn arguments(state: &State, number: usize) -> Vec<String> {
    let host = name(number);
    let dom0 = state.dom0_memory_mib;
    // The other one of two, unless there is a hub.
    let remote = if state.switched { hub::port_path(number) } else { hub::host_path(3 - number) };
    let mut arguments = Vec::new();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    // Nested paging is what PVH and HVM guests need; /dev/kvm may exist and not work, so it is not tried.
    add("-accel", "tcg,thread=multi".to_owned());
    add("-cpu", format!("qemu64,+svm,+npt{}", more_features(number)));
    add("-smp", "2".to_owned());
    add("-m", state.memory_mib.to_string());
    add("-display", "none".to_owned());
    add("-vga", "none".to_owned());
    add("-kernel", "xen".to_owned());
    add("-initrd", format!("vmlinuz console=hvc0 quiet kubexen.host={number},dom0.cpio"));
    // Without ASIDs Xen has the TLB flushed before a guest runs on. QEMU knows no ASIDs, and flushes by itself only where
    // a guest pages: one that does not yet would see the memory of the guest that ran before, and reset itself.
    add(
        "-append",
        format!(
            "console=com1 com1=115200,8n1 dom0_mem={dom0}M,max:{dom0}M dom0_max_vcpus=1 sched=credit asid=0"
        ),
    );
    add("-qmp", format!("unix:{host}/monitor,server=on,wait=off"));
    add("-chardev", format!("file,id=console,path={host}/console.log,append=on"));
    add("-serial", "chardev:console".to_owned());
    add("-netdev", format!("user,id={UPLINK}"));
    add("-device", format!("virtio-net-pci,netdev={UPLINK},mac=52:54:00:00:00:{number:02x}"));
    add(
        "-netdev",
        format!(
            "dgram,id={SEGMENT},local.type=unix,local.path={},remote.type=unix,remote.path={remote}",
            hub::host_path(number)
        ),
    );
    add("-device", format!("virtio-net-pci,netdev={SEGMENT},mac=52:54:00:00:01:{number:02x}"));
    // Writes that are acknowledged are in this machine's page cache, which is one for all hosts and survives any QEMU:
    // a flush to its disk would only cost time.
    for (id, file, share) in
        [("lun", "lun.img".to_owned(), "on"), ("data", format!("{host}/data.img"), "off")]
    {
        let locking = if share == "on" { "off" } else { "auto" };
        add("-drive", format!("file={file},if=none,id={id},format=raw,cache=unsafe,file.locking={locking}"));
        add("-device", format!("virtio-blk-pci,drive={id},serial={id},share-rw={share}"));
    }
    add("-chardev", format!("file,id=agent,path={host}/agent.log,append=on"));
    add("-device", "virtio-serial-pci".to_owned());
    add("-device", "virtserialport,chardev=agent,name=kubexen.agent".to_owned());
    arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    arguments
}
