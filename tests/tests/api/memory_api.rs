//! The API server in memory answers as the real one does: one script of requests, run on both.

use crate::installed::{self, new_namespace};
use anyhow::Result;
use http::{Request, StatusCode};
use jiff::Timestamp;
use kube::{Client, client::Body};
use kubexen_runtime::clock::SystemClock;
use kubexen_testbed::memory_api::{MemoryApi, Perfect};
use serde_json::{Value, json};
use std::sync::Arc;

const NAMESPACE: &str = "memory-api";

/// One request. In `body`, `$VERSION` and `$UID` stand for those of the object that was answered last, and in `path`
/// `$LISTED` for the version of the list that was answered last.
struct Step {
    what: &'static str,
    method: &'static str,
    path: String,
    body: Value,
}

/// What is compared of an answer.
#[derive(Debug, PartialEq)]
struct Answer {
    what: &'static str,
    code: StatusCode,
    /// The same version as the answer before.
    unchanged: bool,
    content: Value,
}

fn step(what: &'static str, method: &'static str, path: impl Into<String>, body: Value) -> Step {
    Step { what, method, path: path.into(), body }
}

fn script() -> Vec<Step> {
    let machines = format!("/apis/kubexen.io/v1alpha1/namespaces/{NAMESPACE}/virtualmachines");
    let machine = format!("{machines}/web");
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases");
    let new_machine = json!({
        "apiVersion": "kubexen.io/v1alpha1", "kind": "VirtualMachine",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "memory": {"size": "64Mi"}, "boot": {"kernel": {"name": "linux"}}, "disks": [{"name": "a", "disk": "a"}],
        },
        "status": {"phase": "Running"},
    });
    let new_lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "one"},
        "spec": {"holderIdentity": "a"},
    });
    let mut whole_machine = new_machine.clone();
    whole_machine["spec"]["cpu"] = json!({"count": 3});
    let mut versioned = whole_machine.clone();
    versioned["metadata"]["resourceVersion"] = "$VERSION".into();
    let mut stale_lease = new_lease.clone();
    stale_lease["metadata"]["resourceVersion"] = "1".into();
    let other_uid = "11111111-2222-3333-4444-555555555555";
    let elsewhere = machines.replace(NAMESPACE, "no-such-namespace");
    vec![
        step("an empty list", "GET", &machines, Value::Null),
        step("a machine is made, defaults and all", "POST", &machines, new_machine.clone()),
        step("it is made again", "POST", &machines, new_machine.clone()),
        step("one is made in no namespace", "POST", &elsewhere, new_machine),
        step("one that is not there", "GET", format!("{machines}/none"), Value::Null),
        step("its spec changes", "PATCH", &machine, json!({"spec": {"powerState": "Halted"}})),
        step("its spec does not change", "PATCH", &machine, json!({"spec": {"powerState": "Halted"}})),
        step("a label changes", "PATCH", &machine, json!({"metadata": {"labels": {"app": null, "a": "b"}}})),
        step(
            "its status changes",
            "PATCH",
            format!("{machine}/status"),
            json!({"status": {"phase": "Halted"}}),
        ),
        step("status through the object", "PATCH", &machine, json!({"status": {"phase": "Running"}})),
        step(
            "spec through the status",
            "PATCH",
            format!("{machine}/status"),
            json!({"spec": {"powerState": "Paused"}}),
        ),
        step(
            "a stale version",
            "PATCH",
            &machine,
            json!({"metadata": {"resourceVersion": "1"}, "spec": {"powerState": "Running"}}),
        ),
        step(
            "another's uid",
            "PATCH",
            &machine,
            json!({"metadata": {"uid": other_uid}, "spec": {"powerState": "Running"}}),
        ),
        step(
            "a version and a uid that are right",
            "PATCH",
            &machine,
            json!({"metadata": {"uid": "$UID", "resourceVersion": "$VERSION"}, "spec": {"powerState": "Running"}}),
        ),
        step("it is replaced without a version", "PUT", &machine, whole_machine),
        step("it is read", "GET", &machine, Value::Null),
        step("it is replaced", "PUT", &machine, versioned),
        step("a finalizer", "PATCH", &machine, json!({"metadata": {"finalizers": ["kubexen.io/test"]}})),
        step("by field", "GET", format!("{machines}?fieldSelector=metadata.name%3Dweb"), Value::Null),
        step("by field, none", "GET", format!("{machines}?fieldSelector=metadata.name%3Dother"), Value::Null),
        step("by label", "GET", format!("{machines}?labelSelector=app%3Dweb"), Value::Null),
        step("it is read once more", "GET", &machine, Value::Null),
        step("another is deleted", "DELETE", &machine, json!({"preconditions": {"uid": other_uid}})),
        step("it is deleted", "DELETE", &machine, json!({"preconditions": {"uid": "$UID"}})),
        step("it is deleted again", "DELETE", &machine, Value::Null),
        step(
            "a new finalizer",
            "PATCH",
            &machine,
            json!({"metadata": {"finalizers": ["kubexen.io/test", "kubexen.io/more"]}}),
        ),
        step("the last finalizer goes", "PATCH", &machine, json!({"metadata": {"finalizers": []}})),
        step("it is gone", "GET", &machine, Value::Null),
        step("it is deleted when it is gone", "DELETE", &machine, Value::Null),
        step("it is changed when it is gone", "PATCH", &machine, json!({"spec": {"powerState": "Halted"}})),
        step(
            "all of that as a watch",
            "GET",
            format!("{machines}?watch=true&timeoutSeconds=1&resourceVersion=$LISTED"),
            Value::Null,
        ),
        step("a lease", "POST", &leases, new_lease.clone()),
        step("a lease with a stale version", "PUT", format!("{leases}/one"), stale_lease),
        step("a lease without a version", "PUT", format!("{leases}/one"), new_lease),
        step("a lease is merged", "PATCH", format!("{leases}/one"), json!({"spec": {"holderIdentity": "b"}})),
        step("a lease is deleted", "DELETE", format!("{leases}/one"), Value::Null),
    ]
}

async fn run(client: &Client) -> Result<Vec<Answer>> {
    let (mut version, mut uid, mut listed) = (String::new(), String::new(), None);
    let mut answers = Vec::new();
    for Step { what, method, path, body } in script() {
        let content = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = match body {
            Value::Null => Vec::new(),
            body => body.to_string().replace("$VERSION", &version).replace("$UID", &uid).into_bytes(),
        };
        let path = path.replace("$LISTED", listed.as_deref().unwrap_or_default());
        let request = Request::builder().method(method).uri(path).header("content-type", content);
        let response = client.send(request.body(Body::from(body))?).await?;
        let code = response.status();
        let bytes = response.into_body().collect_bytes().await?;
        let values: Vec<Value> = serde_json::Deserializer::from_slice(&bytes)
            .into_iter()
            .map(|value| value.unwrap_or_default())
            .collect();
        let meta = values.first().map(|value| value["metadata"].clone()).unwrap_or_default();
        let text = |field: &str| meta[field].as_str().unwrap_or_default().to_owned();
        // A list's version is the whole server's, which others write to meanwhile.
        let is_object = !meta["uid"].is_null();
        let unchanged = is_object && !version.is_empty() && version == text("resourceVersion");
        if is_object {
            (version, uid) = (text("resourceVersion"), text("uid"));
        } else if listed.is_none() {
            listed = Some(text("resourceVersion"));
        }
        let content = Value::Array(values.iter().map(shown).collect());
        answers.push(Answer { what, code, unchanged, content });
    }
    Ok(answers)
}

/// The part of an answer that both servers must agree on.
fn shown(value: &Value) -> Value {
    if value["kind"] == "Status" {
        return json!({"status": value["status"], "reason": value["reason"], "code": value["code"]});
    }
    if let Some(items) = value["items"].as_array() {
        return items.iter().map(shown).collect();
    }
    if let Some(event) = value.get("type") {
        return json!({"type": event, "object": shown(&value["object"])});
    }
    let meta = &value["metadata"];
    let deleting = meta["deletionTimestamp"].as_str().map(|at| at.parse::<Timestamp>().is_ok());
    json!({
        "kind": value["kind"], "apiVersion": value["apiVersion"], "name": meta["name"],
        "namespace": meta["namespace"], "labels": meta["labels"], "finalizers": meta["finalizers"],
        "generation": meta["generation"], "deleting": deleting, "grace": meta["deletionGracePeriodSeconds"],
        "made": meta["creationTimestamp"].as_str().map(|at| at.parse::<Timestamp>().is_ok()),
        "spec": value["spec"], "status": value["status"],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_in_memory_answers_a_script_of_requests_as_the_real_one_does() -> Result<()> {
    let control_plane = installed::control_plane().await;
    new_namespace(control_plane, NAMESPACE).await?;
    let real = control_plane.client().await?;
    let memory = MemoryApi::new("conformance", Arc::new(SystemClock), None);
    memory.add_namespace(NAMESPACE);
    let (expected, found) = (run(&real).await?, run(&memory.client("test", Arc::new(Perfect))).await?);
    let differences: Vec<String> = expected
        .iter()
        .zip(&found)
        .filter(|(expected, found)| expected != found)
        .map(|(expected, found)| format!("real:      {expected:?}\nin memory: {found:?}"))
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
    Ok(())
}
