//! The CEL rules of every kind, against objects that they must accept and objects that they must refuse.
//!
//! Evaluated without an API server; the api suite shows that a real one decides alike, and what it adds by itself:
//! patterns, bounds and required fields.

use kube::core::cel::ValidationErrors;
use kubexen_crds::{
    Domain, Host, Network, Pool, StorageRepository, VirtualDisk, VirtualMachine, VirtualMachineMigration,
    Volume,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The kinds, as the tables need them: both client-side checks.
trait Checked: DeserializeOwned {
    const KIND: &'static str;
    fn on_create(&self) -> Result<(), ValidationErrors>;
    fn on_update(&self, old: &Self) -> Result<(), ValidationErrors>;
}

macro_rules! checked {
    ($($kind:ident),*) => {$(
        impl Checked for $kind {
            const KIND: &'static str = stringify!($kind);
            fn on_create(&self) -> Result<(), ValidationErrors> {
                self.validate_cel()
            }
            fn on_update(&self, old: &Self) -> Result<(), ValidationErrors> {
                self.validate_cel_update(old)
            }
        }
    )*};
}
checked!(
    VirtualMachine,
    VirtualMachineMigration,
    VirtualDisk,
    Network,
    StorageRepository,
    Host,
    Pool,
    Domain,
    Volume
);

/// A change to a valid sample: JSON pointers and the values to be set there; `null` removes.
type Change<'a> = &'a [(&'a str, Value)];

fn changed(sample: &Value, change: Change<'_>) -> Value {
    let mut object = sample.clone();
    for (path, value) in change {
        let (parent, key) = path.rsplit_once('/').expect("a JSON pointer");
        let parent = object.pointer_mut(parent).unwrap_or_else(|| panic!("the sample has no {parent}"));
        match parent {
            Value::Object(fields) if value.is_null() => {
                fields.remove(key);
            }
            Value::Object(fields) => {
                fields.insert(key.to_owned(), value.clone());
            }
            Value::Array(items) => {
                let index: usize = key.parse().expect("an index");
                items.truncate(index);
                items.push(value.clone());
            }
            other => panic!("{path} leads into {other}"),
        }
    }
    object
}

fn parsed<K: Checked>(object: &Value) -> K {
    serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{} {object}: {error}", K::KIND))
}

fn messages(result: Result<(), ValidationErrors>) -> Vec<String> {
    match result {
        Ok(()) => Vec::new(),
        Err(errors) => errors.as_slice().iter().map(|error| error.message.clone()).collect(),
    }
}

fn accepts<K: Checked>(sample: &Value, changes: &[Change<'_>]) {
    for change in changes {
        let found = messages(parsed::<K>(&changed(sample, change)).on_create());
        assert!(found.is_empty(), "{} with {change:?} was refused: {found:?}", K::KIND);
    }
}

fn refuses<K: Checked>(sample: &Value, rows: &[(Change<'_>, &str)]) {
    for (change, message) in rows {
        let found = messages(parsed::<K>(&changed(sample, change)).on_create());
        assert_eq!(found, [*message], "{} with {change:?}", K::KIND);
    }
}

fn accepts_update<K: Checked>(sample: &Value, changes: &[Change<'_>]) {
    let old: K = parsed(sample);
    for change in changes {
        let found = messages(parsed::<K>(&changed(sample, change)).on_update(&old));
        assert!(found.is_empty(), "{} changed by {change:?} was refused: {found:?}", K::KIND);
    }
}

fn refuses_update<K: Checked>(sample: &Value, rows: &[(Change<'_>, &str)]) {
    let old: K = parsed(sample);
    for (change, message) in rows {
        let found = messages(parsed::<K>(&changed(sample, change)).on_update(&old));
        assert_eq!(found, [*message], "{} changed by {change:?}", K::KIND);
    }
}

const TOO_LONG: &str = "`metadata.name` must be at most 63 characters long";

fn name_of_length(length: usize) -> Value {
    "n".repeat(length).into()
}

fn machine() -> Value {
    json!({
        "apiVersion": "kubexen.io/v1alpha1", "kind": "VirtualMachine",
        "metadata": {"name": "web-1", "namespace": "shop"},
        "spec": {
            "memory": {"size": "1Gi"},
            "boot": {"type": "PVH", "kernel": {"name": "debian-12", "commandLine": "root=/dev/xvda ro"}},
            "disks": [{"name": "root", "disk": "web-1-root"}, {"name": "data", "disk": "web-1-data"}],
            "interfaces": [
                {"name": "eth0", "network": "prod", "mac": "00:16:3e:00:00:01"},
                {"name": "eth1", "network": "backup"},
                {"name": "eth2", "network": "backup"},
            ],
            "placement": {"hostSelector": {"matchLabels": {"rack": "a"}}},
            "lifecycle": {"shutdownTimeout": "90s"},
        },
        "status": {"ownerToken": 7},
    })
}

#[test]
fn a_virtual_machine_is_held_to_its_rules() {
    let sample = machine();
    let user_data = json!({"userDataSecret": {"name": "web-1"}});
    let disks = |count: usize| -> Value {
        (0..count).map(|number| json!({"name": format!("d{number}"), "disk": format!("d{number}")})).collect()
    };
    let read_only = |count: usize, which: &[usize]| -> Value {
        let mut disks = disks(count);
        which.iter().for_each(|&number| disks[number]["readOnly"] = json!(true));
        disks
    };
    accepts::<VirtualMachine>(
        &sample,
        &[
            &[],
            &[("/metadata/name", name_of_length(63))],
            &[("/spec/memory/size", json!("16Mi"))],
            &[("/spec/memory/size", json!("8Ti"))],
            &[("/spec/memory/size", json!("1073741824"))],
            &[("/spec/memory", json!({"size": "1Gi", "min": "1Gi", "max": "1Gi"}))],
            &[("/spec/cpu", json!({"count": 2, "max": 2, "weight": 65535, "capPercent": 200}))],
            &[("/spec/cpu", json!({"count": 2, "capPercent": 200}))],
            &[("/spec/interfaces/0/rateLimit", json!("1Ki"))],
            &[("/spec/interfaces/0/rateLimit", json!("100Gi"))],
            &[("/spec/boot", json!({"type": "HVM"}))],
            &[("/spec/disks", disks(16))],
            &[("/spec/cds", json!([])), ("/spec/disks", disks(16))],
            &[("/spec/cds", json!([{"name": "cd"}])), ("/spec/disks", disks(13))],
            &[("/spec/boot", json!({"type": "HVM"})), ("/spec/cds", json!([{"name": "cd", "bootOrder": 1}]))],
            &[("/spec/disks", read_only(2, &[0, 1]))],
            &[("/spec/boot", json!({"type": "HVM"})), ("/spec/disks", read_only(5, &[4]))],
            &[
                ("/spec/boot", json!({"type": "HVM"})),
                ("/spec/disks", read_only(4, &[3])),
                ("/spec/cds", json!([{"name": "cd"}])),
            ],
            &[
                ("/spec/boot", json!({"type": "HVM"})),
                ("/spec/disks", read_only(5, &[0])),
                ("/spec/disks/1/bootOrder", json!(1)),
                ("/spec/disks/2/bootOrder", json!(2)),
                ("/spec/disks/3/bootOrder", json!(3)),
                ("/spec/disks/4/bootOrder", json!(4)),
            ],
            &[("/spec/cloudInit", user_data.clone()), ("/spec/disks", disks(15))],
            &[("/spec/cloudInit", user_data.clone()), ("/spec/disks", Value::Null)],
            &[("/spec/boot", json!({"type": "HVM", "firmware": "UEFI"}))],
            &[("/spec/boot", json!({"type": "HVM", "firmware": "BIOS", "kernel": {"name": "debian-12"}}))],
            &[("/spec/boot", json!({"type": "PVH"}))],
            &[("/spec/boot", json!({"type": "PV"}))],
            &[("/spec/boot", json!({}))],
            &[("/spec/disks/0/bootOrder", json!(2)), ("/spec/disks/1/bootOrder", json!(1))],
            &[
                ("/spec/boot", json!({"type": "HVM", "kernel": {"name": "debian-12"}})),
                ("/spec/disks", json!([])),
            ],
            &[("/spec/lifecycle/shutdownTimeout", json!("0s"))],
            &[("/spec/lifecycle/shutdownTimeout", json!("1h"))],
            &[("/spec/lifecycle/shutdownTimeout", json!("59m60s"))],
            &[("/status", Value::Null)],
        ],
    );
    let memory = "`size` must be a quantity between \"16Mi\" and \"8Ti\"";
    let timeout = "`shutdownTimeout` must be a time span of at most \"1h\", as in \"90s\" or \"5m\"";
    let mac = "`mac` must be a unicast address: six pairs of hexadecimal digits in lower case, the second digit even, as in \"00:16:3e:12:34:56\"";
    let no_disk = "`disks` must name a disk to boot from: there is no `boot.kernel`";
    let firmware = "`firmware` must not be set unless `type` is \"HVM\": a guest of another type has none";
    let ide = "`disks` must not have `readOnly` on the first 4, less one for each of `cds`, when `boot.type` is \"HVM\": they are emulated IDE disks, which cannot be read-only. Put other disks before it, leave `readOnly` out, or make it an image for `cds`";
    let boots_by_bios = "`cds` must not have a `bootOrder` unless `boot` is of type \"HVM\" with the firmware \"BIOS\": UEFI tries CD drives before disks, and other guests do not boot from them";
    refuses::<VirtualMachine>(
        &sample,
        &[
            (&[("/metadata/name", name_of_length(64))], TOO_LONG),
            (&[("/spec/memory/size", json!("15Mi"))], memory),
            (&[("/spec/memory/size", json!("9Ti"))], memory),
            (&[("/spec/memory/size", json!("lots"))], memory),
            (&[("/spec/memory", json!({"size": "1Gi", "min": "1025Mi"}))], "`size` must not be below `min`"),
            (&[("/spec/memory", json!({"size": "1Gi", "max": "1023Mi"}))], "`size` must not exceed `max`"),
            (
                &[("/spec/memory", json!({"size": "1Gi", "max": "9Ti"}))],
                "`max` must be a quantity between \"16Mi\" and \"8Ti\"",
            ),
            (
                &[("/spec/memory", json!({"size": "1Gi", "min": "1Mi"}))],
                "`min` must be a quantity between \"16Mi\" and \"8Ti\"",
            ),
            (&[("/spec/cpu", json!({"count": 3, "max": 2}))], "`count` must not exceed `max`"),
            (
                &[("/spec/cpu", json!({"count": 2, "max": 4, "capPercent": 401}))],
                "`capPercent` must not exceed 100 for each virtual CPU",
            ),
            (
                &[("/spec/cpu", json!({"count": 2, "capPercent": 201}))],
                "`capPercent` must not exceed 100 for each virtual CPU",
            ),
            (
                &[("/spec/interfaces/0/rateLimit", json!("1023"))],
                "`rateLimit` must be a quantity between \"1Ki\" and \"100Gi\"",
            ),
            (&[("/spec/boot", json!({"type": "PVH", "firmware": "BIOS"}))], firmware),
            (&[("/spec/boot", json!({"type": "PV", "firmware": "UEFI"}))], firmware),
            (&[("/spec/boot/firmware", json!("BIOS"))], firmware),
            (
                &[(
                    "/spec/boot",
                    json!({"type": "HVM", "firmware": "UEFI", "kernel": {"name": "debian-12"}}),
                )],
                "`kernel` must not be set when `firmware` is \"UEFI\": such a guest boots from its disks",
            ),
            (&[("/spec/boot", json!({"type": "HVM"})), ("/spec/disks", json!([]))], no_disk),
            (&[("/spec/boot", json!({"type": "PVH"})), ("/spec/disks", json!([]))], no_disk),
            (&[("/spec/boot", json!({"type": "PV"})), ("/spec/disks", Value::Null)], no_disk),
            (
                &[("/spec/disks/0/bootOrder", json!(1)), ("/spec/disks/1/bootOrder", json!(1))],
                "`disks` must not have one `bootOrder` twice",
            ),
            (&[("/spec/boot", json!({"type": "HVM"})), ("/spec/disks", read_only(4, &[3]))], ide),
            (
                &[
                    ("/spec/boot", json!({"type": "HVM", "firmware": "UEFI"})),
                    ("/spec/disks", read_only(4, &[2])),
                    ("/spec/cds", json!([{"name": "cd"}])),
                ],
                ide,
            ),
            (
                &[
                    ("/spec/boot", json!({"type": "HVM"})),
                    ("/spec/disks", read_only(5, &[4])),
                    ("/spec/disks/4/bootOrder", json!(7)),
                ],
                ide,
            ),
            (&[("/spec/cds", json!([{"name": "cd", "bootOrder": 1}]))], boots_by_bios),
            (
                &[
                    ("/spec/boot", json!({"type": "HVM", "firmware": "UEFI"})),
                    ("/spec/cds", json!([{"name": "cd", "bootOrder": 1}])),
                ],
                boots_by_bios,
            ),
            (
                &[
                    ("/spec/boot", json!({"type": "HVM"})),
                    ("/spec/disks/0/bootOrder", json!(1)),
                    ("/spec/cds", json!([{"name": "cd", "bootOrder": 1}])),
                ],
                "`cds` must not have one `bootOrder` twice, nor one of `disks`",
            ),
            (
                &[("/spec/cds", json!([{"name": "cd"}])), ("/spec/disks", disks(14))],
                "`disks` must not exceed 13 when there are `cds`: the guest sees them behind its disks",
            ),
            (
                &[("/spec/cloudInit", user_data.clone()), ("/spec/disks", disks(16))],
                "`disks` must not exceed 15 when `cloudInit` is set: the guest sees its seed as the last one",
            ),
            (
                &[("/spec/disks/1", json!({"name": "data", "disk": "web-1-root"}))],
                "`disks` must not name one VirtualDisk twice: its content would be damaged",
            ),
            (
                &[(
                    "/spec/interfaces/1",
                    json!({"name": "eth1", "network": "prod", "mac": "00:16:3e:00:00:01"}),
                )],
                "`interfaces` must not have one `mac` twice",
            ),
            (&[("/spec/interfaces/0/mac", json!("01:16:3e:00:00:01"))], mac),
            (&[("/spec/interfaces/0/mac", json!("00:00:00:00:00:00"))], mac),
            (&[("/spec/interfaces/0/mac", json!("00:16:3E:00:00:01"))], mac),
            (&[("/spec/lifecycle/shutdownTimeout", json!("61m"))], timeout),
            (&[("/spec/lifecycle/shutdownTimeout", json!("soon"))], timeout),
            (
                &[("/spec/placement/hostSelector/matchLabels", json!({"": "a"}))],
                "names in `matchLabels` must be 1 to 317 characters long, as label names are",
            ),
        ],
    );
}

#[test]
fn an_owner_token_never_goes_back() {
    let sample = machine();
    accepts_update::<VirtualMachine>(
        &sample,
        &[&[], &[("/status/ownerToken", json!(7))], &[("/status/ownerToken", json!(8))]],
    );
    let message = "`status.ownerToken` must not go back: a later owner of this machine is known already";
    refuses_update::<VirtualMachine>(
        &sample,
        &[
            (&[("/status/ownerToken", json!(6))], message),
            (&[("/status/ownerToken", Value::Null)], message),
            (&[("/status", Value::Null)], message),
        ],
    );
    let message = "`status.ownerToken` must not go back: a later owner of this domain is known already";
    accepts_update::<Domain>(&domain(), &[&[], &[("/status/ownerToken", json!(8))]]);
    refuses_update::<Domain>(
        &domain(),
        &[
            (&[("/status/ownerToken", json!(6))], message),
            (&[("/status/ownerToken", Value::Null)], message),
            (&[("/status", Value::Null)], message),
        ],
    );
}

fn disk() -> Value {
    json!({
        "apiVersion": "kubexen.io/v1alpha1", "kind": "VirtualDisk",
        "metadata": {"name": "web-1-root", "namespace": "shop"},
        "spec": {"repository": "local", "size": "20Gi"},
        "status": {"host": "xen-1"},
    })
}

#[test]
fn a_virtual_disk_is_held_to_its_rules() {
    let sample = disk();
    accepts::<VirtualDisk>(
        &sample,
        &[
            &[],
            &[("/metadata/name", name_of_length(63))],
            &[("/spec/size", json!("1Mi"))],
            &[("/spec/size", json!("64Ti"))],
            &[("/spec/size", json!("20G"))],
        ],
    );
    let size = "`size` must be a quantity between \"1Mi\" and \"64Ti\"";
    refuses::<VirtualDisk>(
        &sample,
        &[
            (&[("/metadata/name", name_of_length(64))], TOO_LONG),
            (&[("/spec/size", json!("1023Ki"))], size),
            (&[("/spec/size", json!("65Ti"))], size),
            (&[("/spec/size", json!("lots"))], size),
            (
                &[("/spec/size", json!("1048577"))],
                "`size` must be a multiple of 512 bytes, the size of a sector",
            ),
        ],
    );
    accepts_update::<VirtualDisk>(
        &sample,
        &[
            &[],
            &[("/spec/size", json!("21Gi"))],
            &[("/spec/size", json!("20480Mi"))],
            &[("/spec/reclaim", json!("Retain"))],
        ],
    );
    refuses_update::<VirtualDisk>(
        &sample,
        &[
            (&[("/spec/size", json!("19Gi"))], "`size` must not become smaller: data would be lost"),
            (
                &[("/spec/repository", json!("other"))],
                "`repository` must not change: make a new disk in the other repository",
            ),
            (&[("/status/host", json!("xen-2"))], "`host` must not change: the data is there"),
        ],
    );
}

#[test]
fn a_network_is_held_to_its_rules() {
    let sample = json!({
        "apiVersion": "kubexen.io/v1alpha1", "kind": "Network", "metadata": {"name": "prod"},
        "spec": {"type": "Bridge", "bridge": {"uplink": "lan"}},
    });
    accepts::<Network>(&sample, &[&[]]);
    refuses::<Network>(
        &sample,
        &[
            (&[("/metadata/name", name_of_length(64))], TOO_LONG),
            (
                &[("/spec/bridge", Value::Null)],
                "`bridge` must be set when, and only when, `type` is \"Bridge\"",
            ),
        ],
    );
    accepts_update::<Network>(&sample, &[&[("/spec/hostSelector", json!({"matchLabels": {"rack": "a"}}))]]);
    refuses_update::<Network>(
        &sample,
        &[(&[("/spec/bridge/uplink", json!("wan"))], "`uplink` must not change: make another Network")],
    );
}

#[test]
fn a_storage_repository_is_held_to_its_rules() {
    let sample = json!({
        "apiVersion": "kubexen.io/v1alpha1", "kind": "StorageRepository", "metadata": {"name": "local"},
        "spec": {"type": "Directory", "directory": {"location": "disks"}},
    });
    accepts::<StorageRepository>(&sample, &[&[]]);
    refuses::<StorageRepository>(
        &sample,
        &[
            (&[("/metadata/name", name_of_length(64))], TOO_LONG),
            (
                &[("/spec/directory", Value::Null)],
                "`directory` must be set when, and only when, `type` is \"Directory\"",
            ),
            (
                &[("/spec/lvm", json!({"location": "san"}))],
                "`lvm` must be set when, and only when, `type` is \"LVM\"",
            ),
            (
                &[("/spec/type", json!("LVM")), ("/spec/directory", Value::Null)],
                "`lvm` must be set when, and only when, `type` is \"LVM\"",
            ),
        ],
    );
    let shared = json!({
        "apiVersion": "kubexen.io/v1alpha1", "kind": "StorageRepository", "metadata": {"name": "san"},
        "spec": {"type": "LVM", "lvm": {"location": "san"}},
    });
    accepts::<StorageRepository>(&shared, &[&[]]);
    refuses_update::<StorageRepository>(
        &shared,
        &[(&[("/spec/lvm/location", json!("fast"))], "`location` must not change: the disks are there")],
    );
    refuses_update::<StorageRepository>(
        &sample,
        &[(
            &[("/spec/directory/location", json!("fast"))],
            "`location` must not change: the disks are there",
        )],
    );
}

#[test]
fn a_host_is_held_to_its_rules() {
    let sample = json!({
        "apiVersion": "kubexen.io/v1alpha1", "kind": "Host", "metadata": {"name": "xen-1"}, "spec": {},
    });
    accepts::<Host>(&sample, &[&[], &[("/metadata/name", name_of_length(50))]]);
    let name = "`metadata.name` must be a host name without dots, at most 50 characters long";
    refuses::<Host>(
        &sample,
        &[(&[("/metadata/name", name_of_length(51))], name), (&[("/metadata/name", json!("xen.1"))], name)],
    );
    accepts_update::<Host>(&sample, &[&[("/spec/schedulable", json!(false))]]);
}

#[test]
fn there_is_one_pool() {
    let sample = json!({
        "apiVersion": "kubexen.io/v1alpha1", "kind": "Pool", "metadata": {"name": "default"}, "spec": {},
    });
    accepts::<Pool>(&sample, &[&[], &[("/spec/placement", json!({"strategy": "Pack"}))]]);
    refuses::<Pool>(
        &sample,
        &[(
            &[("/metadata/name", json!("second"))],
            "`metadata.name` must be \"default\": an installation has one pool",
        )],
    );
}

const UID: &str = "5a3c9bb1-9d42-4a76-8d6c-0f8f0f1d2e3a";

fn domain() -> Value {
    json!({
        "apiVersion": "kubexen.io/v1alpha1", "kind": "Domain",
        "metadata": {"name": "shop.web-1", "namespace": "kubexen-host-xen-1"},
        "spec": {
            "virtualMachine": {"namespace": "shop", "name": "web-1", "uid": UID},
            "machine": {
                "cpus": 2,
                "maxCpus": 4,
                "memory": "1Gi",
                "maxMemory": "2Gi",
                "boot": {"type": "PVH", "kernel": {"name": "debian-12"}},
                "disks": [{"name": "root", "volume": "shop.web-1-root", "target": "xvda"}],
                "interfaces": [{"name": "eth0", "uplink": "lan", "mac": "00:16:3e:00:00:01", "index": 0}],
            },
        },
        "status": {"ownerToken": 7},
    })
}

#[test]
fn a_domain_is_held_to_its_rules() {
    let sample = domain();
    let cd_target =
        "`cds` must not have a `target` of `disks`, for which `hdc` is \"xvdc\" and `hdd` is \"xvdd\"";
    let drives =
        json!([{"name": "one", "target": "hdc"}, {"name": "two", "target": "hdd", "beforeDisks": true}]);
    accepts::<Domain>(
        &sample,
        &[&[], &[("/spec/machine/boot", json!({"type": "HVM"})), ("/spec/machine/cds", drives)]],
    );
    refuses::<Domain>(
        &sample,
        &[
            (
                &[("/metadata/name", json!("web-1"))],
                "`metadata.name` must be \"<namespace>.<name>\" of the virtual machine",
            ),
            (
                &[(
                    "/spec/machine/disks/1",
                    json!({"name": "data", "volume": "shop.web-1-root", "target": "xvdb"}),
                )],
                "`disks` must not name one Volume twice: its content would be damaged",
            ),
            (
                &[(
                    "/spec/machine/disks/1",
                    json!({"name": "data", "volume": "shop.web-1-data", "target": "xvda"}),
                )],
                "`disks` must not have one `target` twice",
            ),
            (
                &[(
                    "/spec/machine/interfaces/1",
                    json!({"name": "eth1", "uplink": "lan", "mac": "00:16:3e:00:00:01", "index": 1}),
                )],
                "`interfaces` must not have one `mac` twice",
            ),
            (
                &[(
                    "/spec/machine/interfaces/1",
                    json!({"name": "eth1", "uplink": "lan", "mac": "00:16:3e:00:00:02", "index": 0}),
                )],
                "`interfaces` must not have one `index` twice",
            ),
            (&[("/spec/machine/cpus", json!(5))], "`cpus` must not exceed `maxCpus`"),
            (
                &[(
                    "/spec/machine/cds",
                    json!([{"name": "one", "target": "xvdo"}, {"name": "two", "target": "xvdo"}]),
                )],
                "`cds` must not have one `target` twice",
            ),
            (
                &[
                    ("/spec/machine/cds", json!([{"name": "one", "target": "xvdo"}])),
                    ("/spec/machine/disks/0/target", json!("xvdo")),
                ],
                cd_target,
            ),
            (
                &[
                    ("/spec/machine/boot", json!({"type": "HVM"})),
                    ("/spec/machine/cds", json!([{"name": "one", "target": "hdc"}])),
                    ("/spec/machine/disks/0/target", json!("xvdc")),
                ],
                cd_target,
            ),
            (
                &[("/spec/machine/cds", json!([{"name": "one", "target": "hdd"}]))],
                "`cds` must not have the target \"hdc\" or \"hdd\" unless `boot.type` is \"HVM\": other guests have no emulated drives",
            ),
            (
                &[
                    (
                        "/spec/machine/cloudInit",
                        json!({"secret": "cloud-init.shop.web-1", "userDataSecret": "web"}),
                    ),
                    ("/spec/machine/disks/0/target", json!("xvdp")),
                ],
                "`disks` must not have the target \"xvdp\" when `cloudInit` is set: the seed has it",
            ),
        ],
    );
    accepts_update::<Domain>(
        &sample,
        &[
            &[("/spec/powerState", json!("Paused"))],
            &[("/spec/restartRequested", json!("2026-01-01T00:00:00Z"))],
            &[("/spec/lifecycle", json!({"onCrash": "Halt"}))],
            &[("/spec/machine/cpus", json!(3)), ("/spec/machine/memory", json!("2Gi"))],
            &[("/spec/machine/cpuWeight", json!(512)), ("/spec/machine/cpuCapPercent", json!(150))],
            &[("/spec/machine/disks/0/detach", json!(true))],
            &[("/spec/machine/cds", json!([{"name": "one", "target": "xvdo"}]))],
            &[("/spec/machine/disks", json!([])), ("/spec/machine/interfaces", json!([]))],
            &[("/spec/machine/interfaces/0/rateLimit", json!("10Mi"))],
        ],
    );
    refuses_update::<Domain>(
        &sample,
        &[
            (
                &[(
                    "/spec/machine/cloudInit",
                    json!({"secret": "cloud-init.shop.web-1", "userDataSecret": "web"}),
                )],
                "`cloudInit` must not change: delete this Domain and make another",
            ),
            (
                &[("/spec/machine/maxCpus", json!(3))],
                "`maxCpus` must not change: delete this Domain and make another",
            ),
            (
                &[("/spec/machine/maxMemory", json!("4Gi"))],
                "`maxMemory` must not change: delete this Domain and make another",
            ),
            (
                &[("/spec/machine/boot/type", json!("PV"))],
                "`boot` must not change: delete this Domain and make another",
            ),
            (
                &[("/spec/virtualMachine/uid", json!("00000000-9d42-4a76-8d6c-0f8f0f1d2e3a"))],
                "`virtualMachine` must not change",
            ),
        ],
    );
}

#[test]
fn a_volume_is_held_to_its_rules() {
    let sample = json!({
        "apiVersion": "kubexen.io/v1alpha1", "kind": "Volume",
        "metadata": {"name": "shop.web-1-root", "namespace": "kubexen-host-xen-1"},
        "spec": {
            "virtualDisk": {"namespace": "shop", "name": "web-1-root", "uid": UID},
            "location": "disks",
            "savedMachine": UID,
            "size": "20Gi",
        },
    });
    accepts::<Volume>(&sample, &[&[]]);
    refuses::<Volume>(
        &sample,
        &[(
            &[("/metadata/name", json!("web-1-root"))],
            "`metadata.name` must be \"<namespace>.<name>\" of the virtual disk",
        )],
    );
    accepts_update::<Volume>(
        &sample,
        &[&[("/spec/size", json!("30Gi"))], &[("/spec/reclaim", json!("Retain"))]],
    );
    refuses_update::<Volume>(
        &sample,
        &[
            (&[("/spec/size", json!("10Gi"))], "`size` must not become smaller: data would be lost"),
            (&[("/spec/location", json!("fast"))], "`location` must not change"),
            (
                &[("/spec/savedMachine", json!("00000000-9d42-4a76-8d6c-0f8f0f1d2e3a"))],
                "`savedMachine` must not change",
            ),
            (
                &[("/spec/virtualDisk/uid", json!("00000000-9d42-4a76-8d6c-0f8f0f1d2e3a"))],
                "`virtualDisk` must not change",
            ),
        ],
    );
}

#[test]
fn a_migration_is_of_one_machine_to_one_host_and_what_is_called_off_stays_so() {
    let sample = json!({
        "apiVersion": "kubexen.io/v1alpha1",
        "kind": "VirtualMachineMigration",
        "metadata": {"name": "away"},
        "spec": {"virtualMachine": "web-1", "host": "xen-2"},
    });
    accepts::<VirtualMachineMigration>(&sample, &[&[], &[("/spec/host", Value::Null)]]);
    accepts_update::<VirtualMachineMigration>(&sample, &[&[("/spec/cancel", json!(true))]]);
    refuses_update::<VirtualMachineMigration>(
        &sample,
        &[
            (
                &[("/spec/virtualMachine", json!("web-2"))],
                "`virtualMachine` must not change: make another migration",
            ),
            (&[("/spec/host", json!("xen-3"))], "`host` must not change: make another migration"),
            (&[("/spec/host", Value::Null)], "`host` must not change: make another migration"),
        ],
    );
    let called_off = changed(&sample, &[("/spec/cancel", json!(true))]);
    refuses_update::<VirtualMachineMigration>(
        &called_off,
        &[(&[("/spec/cancel", json!(false))], "`cancel` must not go back to false: make another migration")],
    );
}
