//! The API server and the types fill in the same defaults, and need the same fields.

use kube::core::cel::apply_defaults;
use kubexen_crds::{
    Domain, Host, Network, Pool, StorageRepository, VirtualDisk, VirtualMachine, Volume,
    manifest::definitions,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

const UID: &str = "5a3c9bb1-9d42-4a76-8d6c-0f8f0f1d2e3a";

/// What the API server stores for `spec`, and what the types make of it, must be the same.
fn defaults_agree<K: Serialize + DeserializeOwned>(kind: &str, spec: &Value) {
    let definition = definitions()
        .into_iter()
        .find(|definition| definition.spec.names.kind == kind)
        .expect("a kind of ours");
    let schema = serde_json::to_value(&definition.spec.versions[0].schema).expect("a schema is JSON");
    let object = json!({
        "apiVersion": "kubexen.io/v1alpha1", "kind": kind, "metadata": {"name": "sample"}, "spec": spec,
    });
    let by_server = apply_defaults(&schema["openAPIV3Schema"], &object);
    let by_types: K = serde_json::from_value(object).expect("the fields that the schema requires are enough");
    assert_eq!(
        serde_json::to_value(by_types).expect("an object is JSON")["spec"],
        by_server["spec"],
        "{kind}"
    );
}

#[test]
fn the_types_have_the_defaults_of_the_schemas() {
    defaults_agree::<VirtualMachine>(
        "VirtualMachine",
        &json!({
            "memory": {"size": "1Gi"},
            "boot": {"kernel": {"name": "debian-12"}},
            "disks": [{"name": "root", "disk": "web-root"}],
            "interfaces": [{"name": "eth0", "network": "prod"}],
            "placement": {"antiAffinity": {"group": "web"}},
        }),
    );
    defaults_agree::<VirtualMachine>(
        "VirtualMachine",
        &json!({"memory": {"size": "1Gi"}, "boot": {"type": "HVM"}, "cpu": {}, "lifecycle": {}}),
    );
    defaults_agree::<VirtualDisk>("VirtualDisk", &json!({"repository": "local", "size": "1Gi"}));
    defaults_agree::<Network>("Network", &json!({"type": "Bridge", "bridge": {"uplink": "lan"}}));
    defaults_agree::<StorageRepository>(
        "StorageRepository",
        &json!({"type": "Directory", "directory": {"location": "disks"}}),
    );
    defaults_agree::<Host>("Host", &json!({}));
    defaults_agree::<Host>("Host", &json!({"maintenance": {}}));
    defaults_agree::<Pool>("Pool", &json!({}));
    defaults_agree::<Pool>("Pool", &json!({"placement": {"strategy": "Pack"}}));
    defaults_agree::<Domain>(
        "Domain",
        &json!({
            "virtualMachine": {"namespace": "shop", "name": "web", "uid": UID},
            "machine": {
                "cpus": 1,
                "maxCpus": 1,
                "memory": "1Gi",
                "maxMemory": "1Gi",
                "boot": {"kernel": {"name": "debian-12"}},
                "disks": [{"name": "root", "volume": "shop.web-root", "target": "xvda"}],
            },
        }),
    );
    defaults_agree::<Volume>(
        "Volume",
        &json!({
            "virtualDisk": {"namespace": "shop", "name": "web-root", "uid": UID},
            "location": "disks",
            "size": "1Gi",
        }),
    );
}
