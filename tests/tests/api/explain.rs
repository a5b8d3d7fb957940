//! `kubectl explain` is the manual: the server tells about every field.

use anyhow::{Context, Result};
use http::Request;
use kubexen_crds::manifest::definitions;
use serde_json::Value;

use crate::installed::{self, output};

/// Adds the paths of the fields at and below `schema` to `seen`, and of those without a description to `bare`.
fn walk(path: &str, schema: &Value, seen: &mut Vec<String>, bare: &mut Vec<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        if field["description"].as_str().is_none_or(str::is_empty) {
            bare.push(path.clone());
        }
        seen.push(path.clone());
        walk(&path, field, seen, bare);
        walk(&path, &field["items"], seen, bare);
    }
}

#[tokio::test]
async fn every_field_that_the_server_publishes_has_a_description() -> Result<()> {
    let client = installed::control_plane().await.client().await?;
    let request = Request::get("/openapi/v3/apis/kubexen.io/v1alpha1").body(Vec::new())?;
    let document: Value = client.request(request).await?;
    let (mut seen, mut bare) = (Vec::new(), Vec::new());
    for definition in definitions() {
        let kind = &definition.spec.names.kind;
        let schema = &document["components"]["schemas"][format!("io.kubexen.v1alpha1.{kind}")];
        schema["description"].as_str().with_context(|| format!("{kind} has no description"))?;
        walk(kind, schema, &mut seen, &mut bare);
        for part in ["spec", "status"] {
            let path = format!("{kind}.{part}");
            assert!(seen.contains(&path), "{path} is not published");
        }
    }
    assert!(seen.len() > 150, "the walk saw only {} fields", seen.len());
    assert!(bare.is_empty(), "without a description:\n{}", bare.join("\n"));
    Ok(())
}

#[tokio::test]
async fn kubectl_explains_a_field_with_its_values_and_its_default() -> Result<()> {
    let control_plane = installed::control_plane().await;
    let explain = async |arguments: &[&str]| {
        let mut kubectl = control_plane.kubectl()?;
        kubectl.arg("explain").args(arguments);
        output(kubectl).await
    };
    let timeout = explain(&["virtualmachine.spec.lifecycle.shutdownTimeout"]).await?;
    assert!(timeout.contains("0s to 1h") && timeout.contains("Default: 60s"), "{timeout}");
    let phase = explain(&["xvm.status.phase"]).await?;
    assert!(phase.contains("`Scheduling`: waits for a host that fits"), "{phase}");
    let tree = explain(&["virtualmachine", "--recursive"]).await?;
    for field in ["powerState", "commandLine", "matchLabels", "onCrash", "ownerToken", "lastTransitionTime"] {
        assert!(tree.contains(field), "{field} is missing in:\n{tree}");
    }
    Ok(())
}
