//! A valid object of each kind, and how it is changed.

use serde_json::{Value, json};

/// A valid object and where it belongs.
pub struct Sample {
    pub plural: &'static str,
    pub namespace: Option<&'static str>,
    pub object: Value,
}

/// The object with these values at these JSON pointers; `null` removes, an index behind the last appends.
pub fn changed(object: &Value, change: &[(&str, Value)]) -> Value {
    let mut object = object.clone();
    for (path, value) in change {
        let (parent, key) = path.rsplit_once('/').expect("a JSON pointer");
        match object.pointer_mut(parent) {
            Some(Value::Object(fields)) if value.is_null() => {
                fields.remove(key);
            }
            Some(Value::Object(fields)) => {
                fields.insert(key.to_owned(), value.clone());
            }
            Some(Value::Array(items)) => {
                items.truncate(key.parse().expect("an index"));
                items.push(value.clone());
            }
            other => panic!("{path} leads to {other:?}"),
        }
    }
    object
}

const UID: &str = "5a3c9bb1-9d42-4a76-8d6c-0f8f0f1d2e3a";

fn sample(plural: &'static str, namespace: Option<&'static str>, mut object: Value) -> Sample {
    object["apiVersion"] = json!("kubexen.io/v1alpha1");
    Sample { plural, namespace, object }
}

pub fn machine() -> Sample {
    sample(
        "virtualmachines",
        Some("default"),
        json!({
            "kind": "VirtualMachine",
            "metadata": {"name": "web-1"},
            "spec": {
                "memory": {"size": "1Gi"},
                "boot": {"type": "PVH", "kernel": {"name": "debian-12", "commandLine": "root=/dev/xvda ro"}},
                "disks": [{"name": "root", "disk": "web-1-root"}, {"name": "data", "disk": "web-1-data"}],
                "interfaces": [
                    {"name": "eth0", "network": "prod", "mac": "00:16:3e:00:00:01"},
                    {"name": "eth1", "network": "backup"},
                ],
            },
            "status": {"ownerToken": 7},
        }),
    )
}

pub fn disk() -> Sample {
    sample(
        "virtualdisks",
        Some("default"),
        json!({
            "kind": "VirtualDisk",
            "metadata": {"name": "web-1-root"},
            "spec": {"repository": "local", "size": "20Gi"},
            "status": {"host": "xen-1"},
        }),
    )
}

pub fn network() -> Sample {
    sample(
        "networks",
        None,
        json!({
            "kind": "Network",
            "metadata": {"name": "prod"},
            "spec": {"type": "Bridge", "bridge": {"uplink": "lan"}},
        }),
    )
}

pub fn repository() -> Sample {
    sample(
        "storagerepositories",
        None,
        json!({
            "kind": "StorageRepository",
            "metadata": {"name": "local"},
            "spec": {"type": "Directory", "directory": {"location": "disks"}},
        }),
    )
}

pub fn host() -> Sample {
    sample("hosts", None, json!({"kind": "Host", "metadata": {"name": "sample"}, "spec": {}}))
}

pub fn pool() -> Sample {
    sample("pools", None, json!({"kind": "Pool", "metadata": {"name": "default"}, "spec": {}}))
}

pub fn domain() -> Sample {
    sample(
        "domains",
        Some("default"),
        json!({
            "kind": "Domain",
            "metadata": {"name": "shop.web-1"},
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
        }),
    )
}

pub fn volume() -> Sample {
    sample(
        "volumes",
        Some("default"),
        json!({
            "kind": "Volume",
            "metadata": {"name": "shop.web-1-root"},
            "spec": {
                "virtualDisk": {"namespace": "shop", "name": "web-1-root", "uid": UID},
                "location": "disks",
                "savedMachine": UID,
                "size": "20Gi",
            },
        }),
    )
}

pub fn migration() -> Sample {
    sample(
        "virtualmachinemigrations",
        Some("default"),
        json!({
            "kind": "VirtualMachineMigration",
            "metadata": {"name": "away"},
            "spec": {"virtualMachine": "web-1", "host": "xen-2", "cancel": true, "reason": "a fan"},
        }),
    )
}
