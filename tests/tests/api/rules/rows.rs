//! The tables: one change to a valid object each, and what is to become of it.

use serde_json::{Value, json};

use super::samples::{self, Sample};

/// JSON pointers and the values to be set there; `null` removes.
type Change = Vec<(&'static str, Value)>;

/// One change to a valid sample, and what the refusal must contain: where it is wrong, and why.
pub struct Row {
    pub sample: fn() -> Sample,
    pub change: Change,
    path: &'static str,
    message: &'static str,
}

fn row(
    sample: fn() -> Sample,
    change: impl IntoIterator<Item = (&'static str, Value)>,
    path: &'static str,
    message: &'static str,
) -> Row {
    Row { sample, change: change.into_iter().collect(), path, message }
}

impl Row {
    /// What is wrong with the answer, if anything is.
    pub fn fault(&self, kind: &str, answer: Result<Value, String>) -> Option<String> {
        let Self { change, path, message, .. } = self;
        match answer {
            Ok(_) => Some(format!("{kind} with {change:?} was accepted")),
            Err(refusal) if refusal.contains(path) && refusal.contains(message) => None,
            Err(refusal) => {
                Some(format!("{kind} with {change:?}: expected `{path}` and `{message}` in: {refusal}"))
            }
        }
    }
}

fn text(length: usize) -> Value {
    "n".repeat(length).into()
}

/// Objects that must be refused when they are created.
pub fn bad_on_create() -> Vec<Row> {
    use samples::{disk, domain, host, machine, migration, network, pool, repository, volume};
    const MATCH: &str = "should match";
    const NULL: Value = Value::Null;
    let disks = |count: usize| -> Value {
        (0..count).map(|number| json!({"name": format!("d{number}"), "disk": format!("d{number}")})).collect()
    };
    let interfaces = |count: usize| -> Value {
        (0..count).map(|number| json!({"name": format!("eth{number}"), "network": "prod"})).collect()
    };
    let labels: Value =
        (0..17).map(|number| (format!("l{number}"), json!("x"))).collect::<serde_json::Map<_, _>>().into();
    let firmware = "`firmware` must not be set unless `type` is \"HVM\"";
    let memory = "`size` must be a quantity between \"16Mi\" and \"8Ti\"";
    let timeout = "`shutdownTimeout` must be a time span of at most \"1h\"";
    let mac = "`mac` must be a unicast address";
    vec![
        row(
            machine,
            [("/metadata/name", text(64))],
            "",
            "`metadata.name` must be at most 63 characters long",
        ),
        row(
            machine,
            [("/spec/powerState", json!("Off"))],
            "spec.powerState",
            "supported values: \"Running\", \"Halted\", \"Paused\"",
        ),
        row(machine, [("/spec/powerstate", json!("Running"))], "spec.powerstate", "unknown field"),
        row(
            machine,
            [("/spec/cpu", json!({"count": 0}))],
            "spec.cpu.count",
            "should be greater than or equal to 1",
        ),
        row(
            machine,
            [("/spec/cpu", json!({"count": 129}))],
            "spec.cpu.count",
            "should be less than or equal to 128",
        ),
        row(machine, [("/spec/memory", NULL)], "spec.memory", "Required value"),
        row(machine, [("/spec/memory/size", json!("15Mi"))], "spec.memory.size", memory),
        row(machine, [("/spec/memory/size", json!("9Ti"))], "spec.memory.size", memory),
        row(machine, [("/spec/memory/size", json!("4GB"))], "spec.memory.size", memory),
        row(machine, [("/spec/memory/size", json!("1.5Gi"))], "spec.memory.size", MATCH),
        row(machine, [("/spec/memory/size", json!(4096))], "spec.memory.size", "must be of type string"),
        row(
            machine,
            [("/spec/boot", json!({"type": "PVH", "firmware": "BIOS"}))],
            "spec.boot.firmware",
            firmware,
        ),
        row(machine, [("/spec/boot/firmware", json!("BIOS"))], "spec.boot.firmware", firmware),
        row(
            machine,
            [("/spec/boot", json!({"type": "HVM", "firmware": "OVMF"}))],
            "spec.boot.firmware",
            "supported values: \"BIOS\", \"UEFI\"",
        ),
        row(
            machine,
            [("/spec/boot", json!({"type": "HVM", "firmware": "UEFI", "kernel": {"name": "debian-12"}}))],
            "spec.boot.kernel",
            "`kernel` must not be set when `firmware` is \"UEFI\"",
        ),
        row(
            machine,
            [("/spec/boot", json!({"type": "UEFI"}))],
            "spec.boot.type",
            "supported values: \"PVH\", \"HVM\", \"PV\"",
        ),
        row(machine, [("/spec/boot/kernel/name", json!("../vmlinuz"))], "spec.boot.kernel.name", MATCH),
        row(
            machine,
            [("/spec/boot/kernel/commandLine", json!("root=/dev/xvda\nro"))],
            "spec.boot.kernel.commandLine",
            MATCH,
        ),
        row(
            machine,
            [("/spec/boot/kernel/commandLine", text(1025))],
            "spec.boot.kernel.commandLine",
            "may not be more than 1024",
        ),
        row(
            machine,
            [("/spec/boot", json!({"type": "HVM"})), ("/spec/disks", json!([]))],
            "spec.disks",
            "`disks` must name a disk to boot from",
        ),
        row(
            machine,
            [("/spec/boot", json!({"type": "PVH"})), ("/spec/disks", json!([]))],
            "spec.disks",
            "`disks` must name a disk to boot from",
        ),
        row(
            machine,
            [("/spec/disks/0/bootOrder", json!(0))],
            "spec.disks[0].bootOrder",
            "should be greater than or equal to 1",
        ),
        row(
            machine,
            [("/spec/disks/0/bootOrder", json!(1)), ("/spec/disks/1/bootOrder", json!(1))],
            "spec.disks",
            "`disks` must not have one `bootOrder` twice",
        ),
        row(
            machine,
            [("/spec/disks/1", json!({"name": "root", "disk": "other"}))],
            "spec.disks[1]",
            "Duplicate value",
        ),
        row(
            machine,
            [("/spec/disks/1", json!({"name": "data", "disk": "web-1-root"}))],
            "spec.disks",
            "`disks` must not name one VirtualDisk twice",
        ),
        row(
            machine,
            [("/spec/disks/1", json!({"name": "Data", "disk": "data"}))],
            "spec.disks[1].name",
            MATCH,
        ),
        row(
            machine,
            [("/spec/disks/1", json!({"name": "data", "disk": "a..b"}))],
            "spec.disks[1].disk",
            MATCH,
        ),
        row(machine, [("/spec/disks/1", json!({"name": "data"}))], "spec.disks[1].disk", "Required value"),
        row(machine, [("/spec/disks", disks(17))], "spec.disks", "must have at most 16 items"),
        row(machine, [("/spec/interfaces", interfaces(9))], "spec.interfaces", "must have at most 8 items"),
        row(
            machine,
            [("/spec/interfaces/1", json!({"name": "eth1", "network": "prod", "mac": "00:16:3e:00:00:01"}))],
            "spec.interfaces",
            "`interfaces` must not have one `mac` twice",
        ),
        row(machine, [("/spec/interfaces/0/mac", json!("01:16:3e:00:00:01"))], "spec.interfaces[0].mac", mac),
        row(machine, [("/spec/interfaces/0/mac", json!("00:16:3E:00:00:01"))], "spec.interfaces[0].mac", mac),
        row(machine, [("/spec/interfaces/0/mac", json!("00:00:00:00:00:00"))], "spec.interfaces[0].mac", mac),
        row(
            machine,
            [("/spec/placement", json!({"hostSelector": {"matchLabels": labels}}))],
            "spec.placement.hostSelector.matchLabels",
            "must have at most 16 items",
        ),
        row(
            machine,
            [("/spec/placement", json!({"hostSelector": {"matchLabels": {"rack": "a b"}}}))],
            "spec.placement.hostSelector.matchLabels.rack",
            MATCH,
        ),
        row(
            machine,
            [("/spec/placement", json!({"antiAffinity": {"mode": "Required"}}))],
            "spec.placement.antiAffinity.group",
            "Required value",
        ),
        row(
            machine,
            [("/spec/lifecycle", json!({"shutdownTimeout": "61m"}))],
            "spec.lifecycle.shutdownTimeout",
            timeout,
        ),
        row(
            machine,
            [("/spec/lifecycle", json!({"shutdownTimeout": "60"}))],
            "spec.lifecycle.shutdownTimeout",
            timeout,
        ),
        row(
            machine,
            [("/spec/lifecycle", json!({"onMaintenance": "Migrate"}))],
            "spec.lifecycle.onMaintenance",
            "supported values: \"Wait\", \"Restart\", \"Leave\"",
        ),
        row(
            machine,
            [("/spec/lifecycle", json!({"onCrash": "Ignore"}))],
            "spec.lifecycle.onCrash",
            "supported values: \"Restart\", \"Halt\", \"Preserve\"",
        ),
        row(
            machine,
            [("/metadata/annotations", json!({"kubexen.io/restart-requested-at": "now"}))],
            "kubexen.io/restart-requested-at",
            "must be a time as in \"2026-01-31T12:00:00Z\"",
        ),
        row(disk, [("/metadata/name", text(64))], "", "`metadata.name` must be at most 63 characters long"),
        row(
            disk,
            [("/spec/size", json!("1000Ki"))],
            "spec.size",
            "`size` must be a quantity between \"1Mi\" and \"64Ti\"",
        ),
        row(
            disk,
            [("/spec/size", json!("65Ti"))],
            "spec.size",
            "`size` must be a quantity between \"1Mi\" and \"64Ti\"",
        ),
        row(disk, [("/spec/size", json!("1048577"))], "spec.size", "`size` must be a multiple of 512 bytes"),
        row(disk, [("/spec/size", json!("-1Gi"))], "spec.size", "`size` must be a quantity between"),
        row(disk, [("/spec/repository", json!(""))], "spec.repository", "should be at least 1 chars long"),
        row(
            disk,
            [("/spec/source", json!({"type": "Clone"}))],
            "spec.source.type",
            "supported values: \"Blank\"",
        ),
        row(
            network,
            [("/spec/bridge", NULL)],
            "spec.bridge",
            "`bridge` must be set when, and only when, `type` is \"Bridge\"",
        ),
        row(network, [("/spec/bridge/uplink", json!("/dev/eth0"))], "spec.bridge.uplink", MATCH),
        row(network, [("/spec/bridge/uplink", NULL)], "spec.bridge.uplink", "Required value"),
        row(
            repository,
            [("/spec/directory", NULL)],
            "spec.directory",
            "`directory` must be set when, and only when, `type` is \"Directory\"",
        ),
        row(
            repository,
            [("/spec/lvm", json!({"location": "san"}))],
            "spec.lvm",
            "`lvm` must be set when, and only when, `type` is \"LVM\"",
        ),
        row(
            repository,
            [("/spec/directory/location", json!("/srv/disks"))],
            "spec.directory.location",
            MATCH,
        ),
        row(repository, [("/spec/type", json!("NFS"))], "spec.type", "supported values: \"Directory\""),
        row(
            host,
            [("/metadata/name", json!("xen.1"))],
            "",
            "`metadata.name` must be a host name without dots",
        ),
        row(host, [("/metadata/name", text(51))], "", "at most 50 characters long"),
        row(
            host,
            [("/spec/maintenance", json!({"enabled": "yes"}))],
            "spec.maintenance.enabled",
            "must be of type boolean",
        ),
        row(pool, [("/metadata/name", json!("second"))], "", "`metadata.name` must be \"default\""),
        row(
            pool,
            [("/spec/placement", json!({"cpuOvercommit": 0}))],
            "spec.placement.cpuOvercommit",
            "should be greater than or equal to 1",
        ),
        row(
            pool,
            [("/spec/placement", json!({"cpuOvercommit": 65}))],
            "spec.placement.cpuOvercommit",
            "should be less than or equal to 64",
        ),
        row(
            domain,
            [("/metadata/name", json!("web-1"))],
            "",
            "`metadata.name` must be \"<namespace>.<name>\" of the virtual machine",
        ),
        row(domain, [("/spec/virtualMachine/uid", text(36))], "spec.virtualMachine.uid", MATCH),
        row(
            domain,
            [(
                "/spec/machine/disks/1",
                json!({"name": "data", "volume": "shop.web-1-root", "target": "xvdb"}),
            )],
            "spec.machine.disks",
            "`disks` must not name one Volume twice",
        ),
        row(domain, [("/spec/machine/disks/0/target", json!("hda1"))], "spec.machine.disks[0].target", MATCH),
        row(domain, [("/spec/machine/cpus", json!(5))], "spec.machine", "`cpus` must not exceed `maxCpus`"),
        row(
            machine,
            [("/spec/cds", json!([{"name": "cd"}])), ("/spec/disks", disks(14))],
            "spec.disks",
            "`disks` must not exceed 13 when there are `cds`",
        ),
        row(
            machine,
            [("/spec/boot", json!({"type": "HVM"})), ("/spec/disks/1/readOnly", json!(true))],
            "spec.disks",
            "`disks` must not have `readOnly` on the first 4",
        ),
        row(
            machine,
            [
                ("/spec/boot", json!({"type": "HVM"})),
                ("/spec/disks/0/bootOrder", json!(2)),
                ("/spec/cds", json!([{"name": "cd", "bootOrder": 2}])),
            ],
            "spec.cds",
            "`cds` must not have one `bootOrder` twice",
        ),
        row(
            machine,
            [("/spec/cds", json!([{"name": "cd", "bootOrder": 1}]))],
            "spec.cds",
            "`cds` must not have a `bootOrder` unless",
        ),
        row(
            domain,
            [("/spec/machine/cds", json!([{"name": "cd", "target": "hdd"}]))],
            "spec.machine",
            "unless `boot.type` is \"HVM\"",
        ),
        row(
            domain,
            [("/spec/machine/cds", json!([{"name": "cd", "target": "hda"}]))],
            "spec.machine.cds[0].target",
            MATCH,
        ),
        row(
            machine,
            [("/spec/cds", json!([{"name": "a"}, {"name": "b"}, {"name": "c"}]))],
            "spec.cds",
            "must have at most 2 items",
        ),
        row(
            machine,
            [("/spec/cds", json!([{"name": "cd", "image": {"repository": "isos", "name": "../shadow"}}]))],
            "spec.cds[0].image.name",
            MATCH,
        ),
        row(
            domain,
            [
                ("/spec/machine/cds", json!([{"name": "cd", "target": "xvdo"}])),
                ("/spec/machine/disks/0/target", json!("xvdo")),
            ],
            "spec.machine",
            "`cds` must not have a `target` of `disks`",
        ),
        row(
            machine,
            [("/spec/cloudInit", json!({"userDataSecret": {"name": "web"}})), ("/spec/disks", disks(16))],
            "spec.disks",
            "`disks` must not exceed 15 when `cloudInit` is set",
        ),
        row(machine, [("/spec/cloudInit", json!({}))], "spec.cloudInit.userDataSecret", "Required value"),
        row(
            machine,
            [("/spec/cloudInit", json!({"userDataSecret": {"name": "Web"}}))],
            "spec.cloudInit.userDataSecret.name",
            MATCH,
        ),
        row(
            domain,
            [
                (
                    "/spec/machine/cloudInit",
                    json!({"secret": "cloud-init.shop.web-1", "userDataSecret": "web"}),
                ),
                ("/spec/machine/disks/0/target", json!("xvdp")),
            ],
            "spec.machine",
            "`disks` must not have the target \"xvdp\" when `cloudInit` is set",
        ),
        row(migration, [("/spec/virtualMachine", Value::Null)], "spec.virtualMachine", "Required value"),
        row(migration, [("/spec/host", json!("a.b"))], "spec.host", MATCH),
        row(migration, [("/spec/reason", text(257))], "spec.reason", "may not be more than 256"),
        row(
            pool,
            [("/spec/migration", json!({"bandwidth": "1Ki"}))],
            "spec.migration.bandwidth",
            "`bandwidth` must be a quantity of at least \"1Mi\" a second",
        ),
        row(pool, [("/spec/migration", json!({"network": "Fast"}))], "spec.migration.network", MATCH),
        row(
            volume,
            [("/metadata/name", json!("web-1-root"))],
            "",
            "`metadata.name` must be \"<namespace>.<name>\" of the virtual disk",
        ),
    ]
}

/// Changes to a stored object that must be refused; those of `/status` go to the status subresource.
pub fn bad_on_update() -> Vec<Row> {
    use samples::{disk, domain, machine, migration, network, repository, volume};
    const OTHER_UID: &str = "00000000-9d42-4a76-8d6c-0f8f0f1d2e3a";
    let machine_token =
        "`status.ownerToken` must not go back: a later owner of this machine is known already";
    let domain_token = "`status.ownerToken` must not go back: a later owner of this domain is known already";
    vec![
        row(
            machine,
            [("/spec/memory/size", json!("1Mi"))],
            "spec.memory.size",
            "`size` must be a quantity between",
        ),
        row(
            machine,
            [("/spec/memory/min", json!("2Gi"))],
            "spec.memory.size",
            "`size` must not be below `min`",
        ),
        row(
            machine,
            [("/spec/cpu", json!({"count": 3, "max": 2}))],
            "spec.cpu.count",
            "`count` must not exceed `max`",
        ),
        row(
            machine,
            [("/spec/boot/firmware", json!("BIOS"))],
            "spec.boot.firmware",
            "`firmware` must not be set unless",
        ),
        row(
            machine,
            [("/spec/disks/1", json!({"name": "data", "disk": "web-1-root"}))],
            "spec.disks",
            "must not name one VirtualDisk twice",
        ),
        row(
            machine,
            [("/metadata/annotations", json!({"kubexen.io/restart-requested-at": "now"}))],
            "",
            "must be a time",
        ),
        row(machine, [("/status/ownerToken", json!(6))], "status.ownerToken", machine_token),
        row(machine, [("/status/ownerToken", Value::Null)], "status.ownerToken", machine_token),
        row(machine, [("/status", json!({}))], "status.ownerToken", machine_token),
        row(machine, [("/status/phase", json!("Dancing"))], "status.phase", "Unsupported value"),
        row(
            disk,
            [("/spec/size", json!("19Gi"))],
            "spec.size",
            "`size` must not become smaller: data would be lost",
        ),
        row(disk, [("/spec/repository", json!("other"))], "spec.repository", "`repository` must not change"),
        row(
            disk,
            [("/status/host", json!("xen-2"))],
            "status.host",
            "`host` must not change: the data is there",
        ),
        row(
            network,
            [("/spec/bridge/uplink", json!("wan"))],
            "spec.bridge.uplink",
            "`uplink` must not change",
        ),
        row(network, [("/spec/bridge", Value::Null)], "spec.bridge", "`bridge` must be set"),
        row(
            repository,
            [("/spec/directory/location", json!("fast"))],
            "spec.directory.location",
            "`location` must not change",
        ),
        row(
            domain,
            [("/spec/machine/maxCpus", json!(3))],
            "spec.machine",
            "`maxCpus` must not change: delete this Domain and make another",
        ),
        row(
            domain,
            [(
                "/spec/machine/cloudInit",
                json!({"secret": "cloud-init.shop.web-1", "userDataSecret": "web"}),
            )],
            "spec.machine",
            "`cloudInit` must not change: delete this Domain and make another",
        ),
        row(
            domain,
            [("/spec/machine/maxMemory", json!("3Gi"))],
            "spec.machine",
            "`maxMemory` must not change: delete this Domain and make another",
        ),
        row(
            domain,
            [("/spec/machine/boot/type", json!("PV"))],
            "spec.machine",
            "`boot` must not change: delete this Domain and make another",
        ),
        row(
            domain,
            [("/spec/virtualMachine/uid", json!(OTHER_UID))],
            "spec.virtualMachine",
            "`virtualMachine` must not change",
        ),
        row(domain, [("/status/ownerToken", json!(6))], "status.ownerToken", domain_token),
        row(domain, [("/status", json!({}))], "status.ownerToken", domain_token),
        row(volume, [("/spec/size", json!("10Gi"))], "spec.size", "`size` must not become smaller"),
        row(volume, [("/spec/location", json!("fast"))], "spec.location", "`location` must not change"),
        row(volume, [("/spec/shared", json!(true))], "spec.shared", "`shared` must not change"),
        row(volume, [("/spec/existing", json!(true))], "spec.existing", "`existing` must not change"),
        row(
            volume,
            [("/spec/savedMachine", json!(OTHER_UID))],
            "spec.savedMachine",
            "`savedMachine` must not change",
        ),
        row(
            migration,
            [("/spec/virtualMachine", json!("web-2"))],
            "spec.virtualMachine",
            "`virtualMachine` must not change: make another migration",
        ),
        row(
            migration,
            [("/spec/host", json!("xen-3"))],
            "spec.host",
            "`host` must not change: make another migration",
        ),
        row(migration, [("/spec/cancel", json!(false))], "spec.cancel", "`cancel` must not go back to false"),
        row(
            volume,
            [("/spec/virtualDisk/uid", json!(OTHER_UID))],
            "spec.virtualDisk",
            "`virtualDisk` must not change",
        ),
    ]
}

/// What an update may do, next to what it may not.
pub fn good_on_update() -> Vec<(fn() -> Sample, Change)> {
    use samples::{disk, domain, machine, volume};
    vec![
        (machine, vec![("/spec/memory/size", json!("2Gi"))]),
        (machine, vec![("/spec/powerState", json!("Halted"))]),
        (
            machine,
            vec![(
                "/metadata/annotations",
                json!({"kubexen.io/restart-requested-at": "2026-01-31T12:00:00+01:00"}),
            )],
        ),
        (machine, vec![("/status/ownerToken", json!(8))]),
        (disk, vec![("/spec/size", json!("21Gi"))]),
        (disk, vec![("/spec/reclaim", json!("Retain"))]),
        (disk, vec![("/status", json!({"host": "xen-2", "storage": "san-1"}))]),
        (machine, vec![("/spec/memory", json!({"size": "1Gi", "min": "512Mi", "max": "2Gi"}))]),
        (machine, vec![("/spec/cpu", json!({"count": 2, "max": 4, "weight": 512, "capPercent": 150}))]),
        (machine, vec![("/spec/interfaces/0/rateLimit", json!("100Mi"))]),
        (domain, vec![("/spec/powerState", json!("Paused"))]),
        (domain, vec![("/spec/machine/cpus", json!(4)), ("/spec/machine/memory", json!("2Gi"))]),
        (domain, vec![("/spec/machine/disks/0/detach", json!(true))]),
        (volume, vec![("/spec/size", json!("30Gi"))]),
    ]
}
