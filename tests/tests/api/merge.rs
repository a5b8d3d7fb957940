//! Server-side apply by several managers: lists of named things merge by name.

use anyhow::{Context, Result};
use kube::Api;
use kube::api::{Patch, PatchParams};
use kubexen_crds::{VirtualDisk, VirtualMachine};
use serde_json::{Value, json};

use crate::installed::{self, new_namespace};

fn machine(name: &str, spec: &Value) -> Patch<Value> {
    Patch::Apply(json!({
        "apiVersion": "kubexen.io/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": name}, "spec": spec,
    }))
}

fn names(machine: &VirtualMachine) -> (Vec<&str>, Vec<&str>) {
    (
        machine.spec.disks.iter().map(|disk| disk.name.as_str()).collect(),
        machine.spec.interfaces.iter().map(|interface| interface.name.as_str()).collect(),
    )
}

#[tokio::test]
async fn disks_and_interfaces_of_two_managers_stand_side_by_side() -> Result<()> {
    let control_plane = installed::control_plane().await;
    new_namespace(control_plane, "merge-lists").await?;
    let machines = Api::<VirtualMachine>::namespaced(control_plane.client().await?, "merge-lists");
    let (owner, backup) = (PatchParams::apply("owner"), PatchParams::apply("backup"));
    let base = json!({
        "memory": {"size": "1Gi"},
        "boot": {"kernel": {"name": "debian-12"}},
        "disks": [{"name": "root", "disk": "web-root"}],
        "interfaces": [{"name": "eth0", "network": "prod"}],
    });
    machines.patch("web", &owner, &machine("web", &base)).await?;

    let added = json!({
        "disks": [{"name": "scratch", "disk": "web-scratch"}],
        "interfaces": [{"name": "eth1", "network": "backup"}],
    });
    let both = machines.patch("web", &backup, &machine("web", &added)).await?;
    assert_eq!(names(&both), (vec!["root", "scratch"], vec!["eth0", "eth1"]));

    let again = machines.patch("web", &owner, &machine("web", &base)).await?;
    assert_eq!(names(&again), names(&both), "the first manager takes nothing from the second");

    let withdrawn = machines.patch("web", &backup, &machine("web", &json!({}))).await?;
    assert_eq!(names(&withdrawn), (vec!["root"], vec!["eth0"]), "a manager takes back what is its own");

    let foreign = json!({"disks": [{"name": "root", "disk": "other-root"}]});
    let conflict = machines.patch("web", &backup, &machine("web", &foreign)).await;
    let message = conflict.err().context("one manager changed what is another's")?.to_string();
    assert!(message.contains("conflict with \"owner\"") && message.contains("disk"), "{message}");
    Ok(())
}

#[tokio::test]
async fn conditions_of_two_managers_stand_side_by_side() -> Result<()> {
    let control_plane = installed::control_plane().await;
    new_namespace(control_plane, "merge-conditions").await?;
    let disks = Api::<VirtualDisk>::namespaced(control_plane.client().await?, "merge-conditions");
    let disk = |rest: Value| {
        let mut disk = json!({
            "apiVersion": "kubexen.io/v1alpha1", "kind": "VirtualDisk", "metadata": {"name": "data"},
        });
        disk.as_object_mut()
            .into_iter()
            .for_each(|disk| disk.extend(rest.as_object().cloned().unwrap_or_default()));
        Patch::Apply(disk)
    };
    let spec = json!({"spec": {"repository": "local", "size": "1Gi"}});
    disks.patch("data", &PatchParams::apply("owner"), &disk(spec)).await?;
    let condition = |type_: &str| {
        disk(json!({"status": {"conditions": [{
            "type": type_, "status": "True", "reason": "Sample", "message": "",
            "lastTransitionTime": "2026-01-31T12:00:00Z",
        }]}}))
    };
    disks.patch_status("data", &PatchParams::apply("one"), &condition("Ready")).await?;
    let merged = disks.patch_status("data", &PatchParams::apply("other"), &condition("Backed")).await?;
    let status = merged.status.context("the status was written")?;
    let types: Vec<&str> = status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
    assert_eq!(types, ["Ready", "Backed"]);
    Ok(())
}
