//! A domain in libxl's own JSON.
//!
//! Names and values are those of `libxl_domain_config` in `libxl_types.idl`; what is left out takes libxl's default.
//! Pure, so that everything that libxl will be asked for can be read in tests.

use super::{
    super::{BootType, DiskConfig, DomainConfig, InterfaceConfig, RATE_UNIT, Scheduling},
    cds,
};
use crate::boot_files::BootFiles;
use kubexen_crds::{FeatureSet, Firmware, cpu::Leaf};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// How domains are built on this host.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Program that emulates the devices of HVM guests, where libxl's own default is not wanted.
    pub device_model: Option<PathBuf>,
    /// User as whom that program runs, as [`device_model::user`](super::device_model::user) tells; none: root.
    pub device_model_user: Option<&'static str>,
    /// What guests boot from their own disks with.
    pub boot_files: BootFiles,
}

impl BuildOptions {
    /// How domains are restored. QEMU opens the disks of a restored guest again when the guest is to run, which it cannot any
    /// more when it has given up its privileges (`Could not open '/dev/loop0': Permission denied`, QEMU 7.2).
    #[must_use]
    pub fn for_restore(&self) -> Self {
        Self { device_model_user: None, ..self.clone() }
    }
}

/// Name of a domain in `xl list` and in its device model's log.
#[must_use]
pub fn domain_name(uuid: Uuid) -> String {
    format!("vm-{uuid}")
}

/// What libxl is asked to build. `hidden` are the host's CPU features that the guest must not see.
///
/// The disks are in the order of their targets, which is that in which the guest boots from them: SeaBIOS and OVMF follow the
/// numbers that QEMU gives the drives, of which libxl makes `xvda` the first, and pvgrub the order in which libxl makes the
/// devices.
///
/// Whatever a guest does, its domain is kept: the agent looks how it stopped and then decides. libxl itself does not
/// act on the `on_` fields, but they are kept with the domain for people who look at it with `xl`.
#[must_use]
pub fn libxl_config(config: &DomainConfig, hidden: &FeatureSet, options: &BuildOptions) -> Value {
    let mut disks: Vec<&DiskConfig> = config.disks.iter().collect();
    disks.sort_by(|one, other| one.target.cmp(&other.target));
    json!({
        "c_info": {
            "type": type_name(config.boot),
            "name": domain_name(config.uuid),
            "uuid": config.uuid.to_string(),
        },
        "b_info": build_info(config, hidden, options),
        "disks": disks.into_iter().map(disk).chain(config.cds.iter().map(cds::disk)).collect::<Vec<_>>(),
        "nics": interfaces(config),
        "on_poweroff": "preserve",
        "on_reboot": "preserve",
        "on_watchdog": "preserve",
        "on_crash": "preserve",
        "on_soft_reset": "preserve",
    })
}

fn type_name(boot: BootType) -> &'static str {
    match boot {
        BootType::Pvh => "pvh",
        BootType::Hvm => "hvm",
        BootType::Pv => "pv",
    }
}

fn build_info(config: &DomainConfig, hidden: &FeatureSet, options: &BuildOptions) -> Value {
    let mut info = Map::new();
    // A PVH guest finds all of them in its firmware's tables, and in xenstore which of them it is to use.
    let available = match config.boot {
        BootType::Pvh => config.max_vcpus,
        BootType::Hvm | BootType::Pv => config.vcpus,
    };
    info.insert("max_vcpus".into(), config.max_vcpus.into());
    info.insert("avail_vcpus".into(), (0..available).collect::<Vec<_>>().into());
    if config.scheduling != Scheduling::default() {
        let Scheduling { weight, cap_percent } = config.scheduling;
        info.insert("sched_params".into(), json!({"weight": weight, "cap": cap_percent}));
    }
    info.insert("max_memkb".into(), config.max_memory_kib.into());
    info.insert("target_memkb".into(), config.memory_kib.into());
    if !hidden.is_empty() {
        info.insert("cpuid".into(), cpuid(hidden, config.boot));
    }
    if let Some(image) = &config.kernel {
        info.insert("kernel".into(), path(&image.kernel));
        if let Some(ramdisk) = &image.ramdisk {
            info.insert("ramdisk".into(), path(ramdisk));
        }
        info.insert("cmdline".into(), image.command_line.as_str().into());
    } else if let Some(boot_loader) = options.boot_files.boot_loader(config.boot) {
        info.insert("kernel".into(), path(boot_loader));
    }
    // The member of the union under this key, even if empty, tells libxl's parser the type.
    match config.boot {
        BootType::Pvh => info.insert("type.pvh".into(), json!({})),
        BootType::Pv => info.insert("type.pv".into(), json!({})),
        BootType::Hvm => {
            info.insert("device_model_version".into(), "qemu_xen".into());
            if let Some(program) = &options.device_model {
                info.insert("device_model".into(), path(program));
            }
            // libxl looks for the user itself. Its `device_model_user` must not be used: at the end of a guest it kills all
            // processes of the user that is named there, and so would need a user for each guest.
            if options.device_model_user.is_some() {
                info.insert("dm_restrict".into(), "True".into());
            }
            info.insert("type.hvm".into(), emulated(config, options))
        }
    };
    Value::Object(info)
}

/// libxl's list of changes to what CPUID returns: one entry for each leaf, and in it for each register one character a
/// bit, the highest first; `0` clears a bit, `1` sets it, `x` takes Xen's default for guests and `k` what the host has.
/// Features that need a hidden one are hidden by Xen.
fn cpuid(hidden: &FeatureSet, boot: BootType) -> Value {
    let mut leaves: Vec<Map<String, Value>> = Vec::new();
    for (place, word) in hidden.words().filter(|(_, word)| *word != 0) {
        let character = |bit: u32| match topology(place, bit, boot) {
            _ if word & (1 << bit) != 0 => '0',
            Some(character) => character,
            None => 'x',
        };
        let bits: String = (0..32).rev().map(character).collect();
        let mut entry = Map::from_iter([("leaf".to_owned(), place.leaf.into())]);
        if let Some(subleaf) = place.subleaf {
            entry.insert("subleaf".to_owned(), subleaf.into());
        }
        let same = |other: &&mut Map<String, Value>| {
            other.get("leaf") == entry.get("leaf") && other.get("subleaf") == entry.get("subleaf")
        };
        match leaves.iter_mut().find(same) {
            Some(other) => drop(other.insert(place.register.to_owned(), bits.into())),
            None => {
                entry.insert(place.register.to_owned(), bits.into());
                leaves.push(entry);
            }
        }
    }
    json!(leaves)
}

/// What libxl gives a bit that tells of the CPU's topology, which is not Xen's default: naming the register undoes it.
fn topology(place: Leaf, bit: u32, boot: BootType) -> Option<char> {
    let threads_are_told = place.leaf == 1 && place.register == "edx" && bit == 28;
    let cores_are_told = place.leaf == 0x8000_0001 && place.register == "ecx" && bit == 1;
    match boot {
        BootType::Pvh | BootType::Hvm if threads_are_told => Some('1'),
        BootType::Pvh | BootType::Hvm if cores_are_told => Some('0'),
        BootType::Pv if threads_are_told || cores_are_told => Some('k'),
        BootType::Pvh | BootType::Hvm | BootType::Pv => None,
    }
}

/// A PC without a screen: its console is the first serial port, which the device model offers as a pty.
fn emulated(config: &DomainConfig, options: &BuildOptions) -> Value {
    let firmware = config.firmware.unwrap_or_default();
    let name = match firmware {
        Firmware::Bios => "seabios",
        Firmware::Uefi => "ovmf",
    };
    json!({
        "bios": name,
        "system_firmware": path(options.boot_files.firmware(firmware)),
        "vga": {"kind": "none"},
        "vnc": {"enable": "False"},
        "sdl": {"enable": "False"},
        "spice": {"enable": "False"},
        "usb": "False",
        "serial": "pty",
        "boot": cds::boot_order(config),
    })
}

/// A `libxl_device_disk`.
pub(super) fn disk(disk: &DiskConfig) -> Value {
    json!({
        "pdev_path": path(&disk.device),
        "vdev": disk.target,
        "backend": "phy",
        "format": "raw",
        "readwrite": i32::from(!disk.read_only),
    })
}

/// The interfaces. Only an HVM guest also gets emulated cards, which serve until its own drivers take over.
fn interfaces(config: &DomainConfig) -> Vec<Value> {
    let kind = match config.boot {
        BootType::Pvh | BootType::Pv => "vif",
        BootType::Hvm => "vif_ioemu",
    };
    let of_kind = |config| {
        let mut nic = interface(config);
        nic["nictype"] = kind.into();
        nic
    };
    config.interfaces.iter().map(of_kind).collect()
}

/// A `libxl_device_nic` without an emulated card, which no guest gets that runs already.
pub(super) fn interface(interface: &InterfaceConfig) -> Value {
    let InterfaceConfig { bridge, mac, index, rate_limit } = interface;
    let mut nic = json!({"devid": index, "mac": mac, "bridge": bridge, "nictype": "vif"});
    if let Some(rate) = rate_limit {
        nic["rate_bytes_per_interval"] = (rate / RATE_UNIT).into();
        nic["rate_interval_usecs"] = (1_000_000 / RATE_UNIT).into();
    }
    nic
}

pub(super) fn path(path: &Path) -> Value {
    path.to_string_lossy().into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::{CdConfig, KernelImage};

    fn config(boot: BootType) -> DomainConfig {
        DomainConfig {
            uuid: Uuid::from_u128(0x0b5d_6c4e_7f1a_4a44_9c6e_0123_4567_89ab),
            token: 48211,
            boot,
            cpu_level: None,
            firmware: None,
            kernel: Some(KernelImage {
                kernel: "/kernels/vmlinux".into(),
                ramdisk: Some("/kernels/initrd".into()),
                command_line: "console=hvc0 quiet".into(),
            }),
            vcpus: 2,
            max_vcpus: 2,
            scheduling: Scheduling::default(),
            memory_kib: 98304,
            max_memory_kib: 98304,
            disks: vec![
                DiskConfig { device: "/dev/loop0".into(), target: "xvda".into(), read_only: false },
                DiskConfig { device: "/dev/loop1".into(), target: "xvdb".into(), read_only: true },
            ],
            cds: Vec::new(),
            cds_first: false,
            interfaces: vec![InterfaceConfig {
                bridge: "xenbr0".into(),
                mac: "00:16:3e:00:00:05".into(),
                index: 0,
                rate_limit: None,
            }],
        }
    }

    #[test]
    fn a_pvh_guest_has_paravirtual_devices_and_no_device_model() {
        let expected = json!({
            "c_info": {
                "type": "pvh",
                "name": "vm-0b5d6c4e-7f1a-4a44-9c6e-0123456789ab",
                "uuid": "0b5d6c4e-7f1a-4a44-9c6e-0123456789ab",
            },
            "b_info": {
                "max_vcpus": 2,
                "avail_vcpus": [0, 1],
                "max_memkb": 98304,
                "target_memkb": 98304,
                "kernel": "/kernels/vmlinux",
                "ramdisk": "/kernels/initrd",
                "cmdline": "console=hvc0 quiet",
                "type.pvh": {},
            },
            "disks": [
                {"pdev_path": "/dev/loop0", "vdev": "xvda", "backend": "phy", "format": "raw", "readwrite": 1},
                {"pdev_path": "/dev/loop1", "vdev": "xvdb", "backend": "phy", "format": "raw", "readwrite": 0},
            ],
            "nics": [{"devid": 0, "mac": "00:16:3e:00:00:05", "bridge": "xenbr0", "nictype": "vif"}],
            "on_poweroff": "preserve",
            "on_reboot": "preserve",
            "on_watchdog": "preserve",
            "on_crash": "preserve",
            "on_soft_reset": "preserve",
        });
        assert_eq!(libxl_config(&config(BootType::Pvh), &nothing(), &options()), expected);
    }

    fn options() -> BuildOptions {
        BuildOptions { device_model: Some("/qemu".into()), ..BuildOptions::default() }
    }

    fn nothing() -> FeatureSet {
        FeatureSet::default()
    }

    #[test]
    fn hidden_features_are_cleared_by_leaf_and_register() {
        let hidden = FeatureSet::from_names(["fpu", "sse4_2", "hypervisor", "avx2", "fsrm"]);
        let text = libxl_config(&config(BootType::Pvh), &hidden, &BuildOptions::default());
        let expected = json!([
            {
                "leaf": 1,
                "edx": "xxx1xxxxxxxxxxxxxxxxxxxxxxxxxxx0",
                "ecx": "0xxxxxxxxxx0xxxxxxxxxxxxxxxxxxxx",
            },
            {
                "leaf": 7,
                "subleaf": 0,
                "ebx": "xxxxxxxxxxxxxxxxxxxxxxxxxx0xxxxx",
                "edx": "xxxxxxxxxxxxxxxxxxxxxxxxxxx0xxxx",
            },
        ]);
        assert_eq!(text["b_info"]["cpuid"], expected);
    }

    #[test]
    fn the_cpus_topology_stays_as_libxl_makes_it_when_a_feature_beside_it_is_hidden() {
        let hidden = FeatureSet::from_names(["lahf_lm"]);
        for (boot, bits) in [
            (BootType::Pvh, "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx00"),
            (BootType::Hvm, "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx00"),
            (BootType::Pv, "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxk0"),
        ] {
            let text = libxl_config(&config(boot), &hidden, &BuildOptions::default());
            assert_eq!(text["b_info"]["cpuid"], json!([{"leaf": 0x8000_0001_u32, "ecx": bits}]));
        }
    }

    #[test]
    fn an_hvm_guest_has_a_device_model_a_serial_port_and_no_screen() {
        let text = libxl_config(&config(BootType::Hvm), &nothing(), &options());
        assert_eq!(text["b_info"]["device_model_version"], "qemu_xen");
        assert_eq!(text["b_info"]["device_model"], "/qemu");
        assert_eq!(text["b_info"]["type.hvm"]["serial"], "pty");
        assert_eq!(text["b_info"]["type.hvm"]["vga"]["kind"], "none");
        for screen in ["vnc", "sdl", "spice"] {
            assert_eq!(text["b_info"]["type.hvm"][screen]["enable"], "False");
        }
        assert_eq!(text["nics"][0]["nictype"], "vif_ioemu");
    }

    #[test]
    fn a_device_model_has_no_privileges_where_there_is_a_user_for_it() {
        for (user, expected) in [(None, None), (Some("xen-qemuuser-range-base"), Some(&json!("True")))] {
            let options = BuildOptions { device_model_user: user, ..BuildOptions::default() };
            let text = libxl_config(&config(BootType::Hvm), &nothing(), &options);
            assert_eq!(text["b_info"].get("dm_restrict"), expected);
            let text = libxl_config(&config(BootType::Pvh), &nothing(), &options);
            assert_eq!(text["b_info"].get("dm_restrict"), None);
            let text = libxl_config(&config(BootType::Hvm), &nothing(), &options.for_restore());
            assert_eq!(text["b_info"].get("dm_restrict"), None, "it has to open its disks again");
        }
    }

    #[test]
    fn a_guest_that_can_grow_is_built_for_what_it_may_become() {
        let config = DomainConfig {
            max_vcpus: 4,
            max_memory_kib: 196_608,
            scheduling: Scheduling { weight: 512, cap_percent: 150 },
            ..config(BootType::Pvh)
        };
        let text = libxl_config(&config, &nothing(), &BuildOptions::default());
        let info = &text["b_info"];
        assert_eq!((&info["max_vcpus"], &info["avail_vcpus"]), (&json!(4), &json!([0, 1, 2, 3])));
        assert_eq!((&info["max_memkb"], &info["target_memkb"]), (&json!(196_608), &json!(98304)));
        assert_eq!(info["sched_params"], json!({"weight": 512, "cap": 150}));
        let hvm = libxl_config(
            &DomainConfig { boot: BootType::Hvm, ..config },
            &nothing(),
            &BuildOptions::default(),
        );
        assert_eq!(hvm["b_info"]["avail_vcpus"], json!([0, 1]));
    }

    #[test]
    fn a_limited_interface_has_its_share_of_each_interval() {
        let mut config = config(BootType::Pvh);
        config.interfaces[0].rate_limit = Some(10 << 20);
        let nic = &libxl_config(&config, &nothing(), &BuildOptions::default())["nics"][0];
        assert_eq!(nic["rate_bytes_per_interval"], (10 << 20) / 20);
        assert_eq!(nic["rate_interval_usecs"], 50_000);
    }

    #[test]
    fn a_pv_guest_is_told_by_its_union_member() {
        let text = libxl_config(&config(BootType::Pv), &nothing(), &BuildOptions::default());
        assert_eq!(text["c_info"]["type"], "pv");
        assert_eq!(text["b_info"]["type.pv"], json!({}));
        assert!(text["b_info"].get("device_model_version").is_none());
    }

    #[test]
    fn a_guest_that_boots_from_its_disk_names_no_kernel() {
        let text = libxl_config(
            &DomainConfig { kernel: None, ..config(BootType::Hvm) },
            &nothing(),
            &BuildOptions::default(),
        );
        for key in ["kernel", "ramdisk", "cmdline", "device_model"] {
            assert!(text["b_info"].get(key).is_none(), "{key}");
        }
    }

    #[test]
    fn a_guest_without_firmware_boots_from_its_disk_by_the_boot_loader_for_its_mode() {
        for (boot, expected) in [
            (BootType::Pvh, "/usr/lib/grub-xen/grub-i386-xen_pvh.bin"),
            (BootType::Pv, "/usr/lib/grub-xen/grub-x86_64-xen.bin"),
        ] {
            let config = DomainConfig { kernel: None, ..config(boot) };
            let text = libxl_config(&config, &nothing(), &BuildOptions::default());
            assert_eq!(text["b_info"]["kernel"], expected);
            assert!(text["b_info"].get("cmdline").is_none());
        }
    }

    #[test]
    fn the_firmware_is_the_one_that_the_guest_wants() {
        for (firmware, bios, file) in [
            (None, "seabios", "/usr/share/seabios/bios-256k.bin"),
            (Some(Firmware::Bios), "seabios", "/usr/share/seabios/bios-256k.bin"),
            (Some(Firmware::Uefi), "ovmf", "/usr/share/ovmf/OVMF.fd"),
        ] {
            let config = DomainConfig { kernel: None, firmware, ..config(BootType::Hvm) };
            let text = libxl_config(&config, &nothing(), &BuildOptions::default());
            let hvm = &text["b_info"]["type.hvm"];
            assert_eq!((&hvm["bios"], &hvm["system_firmware"]), (&json!(bios), &json!(file)));
        }
    }

    #[test]
    fn cd_drives_come_behind_the_disks_and_bios_tries_them_then_or_first() {
        let cd = |target: &str| CdConfig { target: target.to_owned(), image: None };
        let mut config = DomainConfig { kernel: None, ..config(BootType::Hvm) };
        let text = libxl_config(&config, &nothing(), &options());
        assert_eq!(text["b_info"]["type.hvm"]["boot"], "c");
        config.cds = vec![cd("hdc"), cd("hdd")];
        for (cds_first, order) in [(false, "cd"), (true, "dc")] {
            let config = DomainConfig { cds_first, ..config.clone() };
            let text = libxl_config(&config, &nothing(), &options());
            assert_eq!(text["b_info"]["type.hvm"]["boot"], order);
            let disks = text["disks"].as_array().unwrap();
            let names: Vec<_> = disks.iter().map(|disk| &disk["vdev"]).collect();
            assert_eq!(names, ["xvda", "xvdb", "hdc", "hdd"]);
            assert_eq!(disks[3], cds::disk(&config.cds[1]));
        }
    }

    #[test]
    fn disks_are_listed_in_the_order_in_which_they_are_booted_from() {
        let mut config = config(BootType::Hvm);
        config.disks.reverse();
        let text = libxl_config(&config, &nothing(), &BuildOptions::default());
        assert_eq!([&text["disks"][0]["vdev"], &text["disks"][1]["vdev"]], ["xvda", "xvdb"]);
    }
}
