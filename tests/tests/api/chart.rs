//! The Helm chart: what it refuses, what it brings, what it leaves.

use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kubexen_crds::manifest::definitions;
use kubexen_crds::{VirtualDisk, VirtualDiskSpec};
use kubexen_testbed::control_plane::{ControlPlane, Options};
use kubexen_testbed::process::wait_until;
use kubexen_testbed::programs::{repository, tool};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::process::Command;

use crate::installed::{RELEASE_NAMESPACE, install, output};

/// `helm <verb> [release] <chart>`, without any cluster.
fn helm(arguments: &[&str]) -> Result<Command> {
    let mut helm = Command::new(tool("helm")?);
    helm.env_remove("KUBECONFIG").kill_on_drop(true).args(arguments).arg(repository().join("charts/kubexen"));
    Ok(helm)
}

/// Every object that the chart renders to with these values.
async fn rendered(values: &[&str]) -> Result<Vec<Value>> {
    let mut template = helm(&["template", "kubexen", "--namespace", RELEASE_NAMESPACE])?;
    for value in values {
        template.args(["--set", value]);
    }
    let text = output(template).await?;
    let mut objects = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let object = Value::deserialize(document)?;
        if !object.is_null() {
            objects.push(object);
        }
    }
    Ok(objects)
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

#[tokio::test]
async fn helm_finds_nothing_wrong_with_the_chart() -> Result<()> {
    output(helm(&["lint", "--strict"])?).await?;
    Ok(())
}

#[tokio::test]
async fn values_that_the_chart_does_not_know_are_refused_by_name() -> Result<()> {
    let refusals = [
        ("controler.replicas=2", "controler"),
        ("controller.replica=2", "replica"),
        ("controller.replicas=many", "replicas"),
        ("controller.replicas=-1", "replicas"),
        ("controller.port=80", "port"),
        ("controller.logFormat=xml", "logFormat"),
        ("controller.resources.requests.memori=1Gi", "memori"),
        ("controller.tolerations[0].keys=a", "keys"),
        ("image.digest=sha256:1", "digest"),
        ("image.registry=example", "registry"),
        ("crds.enabled=true", "enabled"),
        ("metrics.enabled=true", "enabled"),
        ("metrics.service.port=1", "port"),
        ("rbac.create=true", "create"),
        ("serviceAccount.name=a", "name"),
    ];
    for (value, named) in refusals {
        let refused =
            rendered(&[value]).await.err().with_context(|| format!("{value} was accepted"))?.to_string();
        assert!(refused.contains("schema") && refused.contains(named), "{value}: {refused}");
    }
    Ok(())
}

#[tokio::test]
async fn a_cluster_that_is_too_old_is_refused() -> Result<()> {
    let refused = output(helm(&["template", "kubexen", "--kube-version", "1.32.0"])?).await;
    let message = refused.err().context("an old cluster was accepted")?.to_string();
    assert!(message.contains("kubeVersion"), "{message}");
    Ok(())
}

#[tokio::test]
async fn definitions_are_installed_and_kept_as_the_values_say() -> Result<()> {
    let kept = |object: &&Value| object["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep";
    let usual = rendered(&[]).await?;
    let usual = of_kind(&usual, "CustomResourceDefinition");
    let all = kubexen_crds::manifest::definitions().len();
    assert_eq!((usual.len(), usual.iter().filter(|object| kept(object)).count()), (all, all));
    let fleeting = rendered(&["crds.keep=false"]).await?;
    assert!(!of_kind(&fleeting, "CustomResourceDefinition").iter().any(kept), "they are kept");
    let none = rendered(&["crds.install=false"]).await?;
    assert!(of_kind(&none, "CustomResourceDefinition").is_empty(), "they are installed");
    Ok(())
}

#[tokio::test]
async fn what_the_chart_installs_is_what_the_types_say() -> Result<()> {
    let objects = rendered(&[]).await?;
    for definition in definitions() {
        let name = definition.metadata.name.as_deref().context("a definition has a name")?;
        let installed = objects
            .iter()
            .find(|object| object["metadata"]["name"] == name)
            .with_context(|| format!("{name} is not installed"))?;
        let installed = serde_json::from_value::<
            k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
        >(installed.clone())?;
        assert!(installed.spec == definition.spec, "{name} differs");
    }
    Ok(())
}

#[tokio::test]
async fn no_role_has_a_wildcard_and_secrets_are_got_by_name_alone() -> Result<()> {
    let objects = rendered(&[]).await?;
    let roles: Vec<&Value> = [of_kind(&objects, "ClusterRole"), of_kind(&objects, "Role")].concat();
    assert_eq!(roles.len(), 6);
    for role in roles {
        let name = &role["metadata"]["name"];
        let on_secrets = match name.as_str() {
            Some("kubexen-controller") => json!(["get", "create", "delete"]),
            Some("kubexen-agent") => json!(["get"]),
            _ => Value::Null,
        };
        for rule in role["rules"].as_array().context("a role has rules")? {
            let text = rule.to_string();
            assert!(!text.contains("\"*\""), "{name}: {text}");
            assert!(!text.contains("secrets") || rule["verbs"] == on_secrets, "{name}: {text}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_controller_runs_without_privileges_and_with_limits() -> Result<()> {
    let objects = rendered(&[]).await?;
    let deployment = *of_kind(&objects, "Deployment").first().context("there is a Deployment")?;
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(
        container["securityContext"],
        json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
    );
    assert!(container["resources"]["limits"]["memory"].is_string(), "no memory limit");
    assert!(container["livenessProbe"].is_object() && container["readinessProbe"].is_object(), "no probes");
    assert_eq!(of_kind(&objects, "PodDisruptionBudget").len(), 1);
    let single = rendered(&["controller.replicas=1"]).await?;
    assert!(
        of_kind(&single, "PodDisruptionBudget").is_empty(),
        "a budget for one replica would block a drain"
    );
    Ok(())
}

/// Whether this object is there.
async fn exists(
    control_plane: &ControlPlane,
    kind: (&str, &str, &str),
    namespace: Option<&str>,
    name: &str,
) -> Result<bool> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(kind.0, kind.1, kind.2));
    let client = control_plane.client().await?;
    let api = match namespace {
        Some(namespace) => Api::<DynamicObject>::namespaced_with(client, namespace, &resource),
        None => Api::<DynamicObject>::all_with(client, &resource),
    };
    Ok(api.get_opt(name).await?.is_some())
}

const BUDGET: (&str, &str, &str) = ("policy", "v1", "PodDisruptionBudget");
const ROLE: (&str, &str, &str) = ("rbac.authorization.k8s.io", "v1", "ClusterRole");
const POLICY: (&str, &str, &str) = ("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy");
const DEFINITION: (&str, &str, &str) = ("apiextensions.k8s.io", "v1", "CustomResourceDefinition");

#[tokio::test]
async fn a_release_is_installed_upgraded_removed_and_installed_again_without_loss() -> Result<()> {
    let control_plane =
        ControlPlane::start(&Options { controller_manager: false, ..Options::default() }).await?;
    let budget = async || exists(&control_plane, BUDGET, Some(RELEASE_NAMESPACE), "kubexen-controller").await;
    install(&control_plane).await?;
    assert!(!budget().await?, "there is a budget for no replicas");

    let disks = Api::<VirtualDisk>::namespaced(control_plane.client().await?, "default");
    let disk = VirtualDisk::new(
        "data",
        serde_json::from_value::<VirtualDiskSpec>(json!({"repository": "local", "size": "1Gi"}))?,
    );
    wait_until("a disk can be stored", Duration::from_secs(30), async || {
        Ok(disks.create(&PostParams::default(), &disk).await?)
    })
    .await?;

    let mut upgrade = control_plane.helm()?;
    upgrade.args(["upgrade", "kubexen"]).arg(repository().join("charts/kubexen")).args([
        "--namespace",
        RELEASE_NAMESPACE,
        "--set",
        "controller.replicas=3",
    ]);
    output(upgrade).await?;
    assert!(budget().await?, "the upgrade brought no budget");

    let mut uninstall = control_plane.helm()?;
    uninstall.args(["uninstall", "kubexen", "--namespace", RELEASE_NAMESPACE]);
    output(uninstall).await?;
    for (kind, name) in
        [(ROLE, "kubexen-agent"), (ROLE, "kubexen-controller"), (POLICY, "kubexen-agent-objects")]
    {
        ensure!(!exists(&control_plane, kind, None, name).await?, "{} {name} is left", kind.2);
    }
    for definition in definitions() {
        let name = definition.metadata.name.context("a definition has a name")?;
        ensure!(exists(&control_plane, DEFINITION, None, &name).await?, "{name} is gone");
    }
    let kept = disks.get("data").await?;

    install(&control_plane).await?;
    assert_eq!(disks.get("data").await?.metadata.uid, kept.metadata.uid, "another disk of the same name");
    Ok(())
}
