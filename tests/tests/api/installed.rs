//! The suite's control plane with the chart installed, as a cluster would have it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::{Method, Request};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use kubexen_testbed::control_plane::ControlPlane;
use kubexen_testbed::process::wait_until;
use kubexen_testbed::programs::repository;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::fixture;

/// Namespace of the release.
pub const RELEASE_NAMESPACE: &str = "kubexen-system";

/// The shared control plane once the chart is installed there and what it brings is in force.
pub async fn control_plane() -> &'static ControlPlane {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    let control_plane = fixture::control_plane().await;
    INSTALLED
        .get_or_try_init(async || {
            install(control_plane).await?;
            in_force(&control_plane.client().await?).await
        })
        .await
        .expect("the chart is installed");
    control_plane
}

/// Installs the chart, or upgrades to it, without any replica: nothing here runs pods.
pub async fn install(control_plane: &ControlPlane) -> Result<String> {
    let mut helm = control_plane.helm()?;
    helm.args(["upgrade", "--install", "kubexen"]).arg(repository().join("charts/kubexen")).args([
        "--namespace",
        RELEASE_NAMESPACE,
        "--create-namespace",
        "--set",
        "controller.replicas=0",
    ]);
    output(helm).await
}

/// The standard output of a program that must succeed.
pub async fn output(mut command: Command) -> Result<String> {
    let output = command.output().await?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The API server serves a definition and heeds a policy some time after it was stored.
async fn in_force(client: &Client) -> Result<()> {
    wait_until("the chart's definitions and policies are in force", Duration::from_secs(60), async || {
        let machine = json!({
            "apiVersion": "kubexen.io/v1alpha1", "kind": "VirtualMachine",
            "metadata": {"name": "probe", "annotations": {"kubexen.io/restart-requested-at": "soon"}},
            "spec": {"memory": {"size": "1Gi"}, "boot": {"kernel": {"name": "debian-12"}}},
        });
        let refused =
            send(client, Method::POST, &kind_path("virtualmachines", Some("default")), &machine).await?;
        let message = refused.err().context("a virtual machine was accepted that a policy must refuse")?;
        ensure!(message.contains("must be a time"), "{message}");
        for kind in
            ["virtualdisks", "networks", "storagerepositories", "hosts", "pools", "domains", "volumes"]
        {
            send(client, Method::GET, &kind_path(kind, None), &Value::Null)
                .await?
                .map_err(anyhow::Error::msg)?;
        }
        Ok(())
    })
    .await
}

/// Path of a resource of ours, as seen from the root of the API.
pub fn kind_path(plural: &str, namespace: Option<&str>) -> String {
    let inside = namespace.map(|namespace| format!("namespaces/{namespace}/")).unwrap_or_default();
    format!("/apis/kubexen.io/v1alpha1/{inside}{plural}")
}

/// Sends a request that changes nothing, whatever the answer: writes are dry runs, and unknown fields are refused.
///
/// Returns what the server answered, or why it refused.
///
/// # Errors
/// When there was no answer, or one that is neither.
pub async fn send(
    client: &Client,
    method: Method,
    path: &str,
    body: &Value,
) -> Result<Result<Value, String>> {
    let (query, content_type) = match method {
        Method::GET => ("", "application/json"),
        Method::DELETE => ("?dryRun=All", "application/json"),
        Method::PATCH => ("?dryRun=All&fieldValidation=Strict", "application/merge-patch+json"),
        _ => ("?dryRun=All&fieldValidation=Strict", "application/json"),
    };
    let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
    let request = Request::builder()
        .method(method)
        .uri(format!("{path}{query}"))
        .header(http::header::CONTENT_TYPE, content_type)
        .body(body)?;
    match client.request::<Value>(request).await {
        Ok(answer) => Ok(Ok(answer)),
        Err(kube::Error::Api(status)) => Ok(Err(status.message)),
        Err(error) => Err(error.into()),
    }
}

/// Makes a namespace for one test.
pub async fn new_namespace(control_plane: &ControlPlane, name: &str) -> Result<()> {
    let namespaces = Api::<Namespace>::all(control_plane.client().await?);
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    namespaces.create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() }).await?;
    Ok(())
}
