//! What the API server refuses, on create and on update, and whether a person understands why.

mod rows;
mod samples;

use anyhow::{Context, Result};
use http::{Method, Request};
use kube::Client;
use serde_json::{Value, json};

use crate::installed::{self, kind_path, new_namespace, send};
use rows::{bad_on_create, bad_on_update, good_on_update};
use samples::{Sample, changed};

#[tokio::test]
async fn bad_objects_are_refused_on_create_and_the_message_says_where_and_why() -> Result<()> {
    let control_plane = installed::control_plane().await;
    let client = control_plane.client().await?;
    let mut faults = Vec::new();
    for row in bad_on_create() {
        let Sample { plural, namespace, object } = (row.sample)();
        let valid = send(&client, Method::POST, &kind_path(plural, namespace), &object).await?;
        if let Err(refusal) = valid {
            faults.push(format!("the valid sample of {plural} was refused: {refusal}"));
            continue;
        }
        let bad = changed(&object, &row.change);
        let answer = send(&client, Method::POST, &kind_path(plural, namespace), &bad).await?;
        faults.extend(row.fault(plural, answer));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[tokio::test]
async fn bad_changes_are_refused_and_the_message_says_where_and_why() -> Result<()> {
    let control_plane = installed::control_plane().await;
    let client = control_plane.client().await?;
    new_namespace(control_plane, "rules-update").await?;
    let mut faults = Vec::new();
    for row in bad_on_update() {
        let (plural, answer) = update(&client, row.sample, &row.change).await?;
        faults.extend(row.fault(plural, answer));
    }
    for (sample, change) in good_on_update() {
        if let (plural, Err(refusal)) = update(&client, sample, &change).await? {
            faults.push(format!("{plural} changed by {change:?} was refused: {refusal}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Stores a sample with its status, unless it is stored already, and then tries the change. A change of status goes to
/// the status subresource.
async fn update(
    client: &Client,
    sample: fn() -> Sample,
    change: &[(&'static str, Value)],
) -> Result<(&'static str, Result<Value, String>)> {
    let Sample { plural, namespace, object } = sample();
    let namespace = namespace.map(|_| "rules-update");
    let name = format!("u-{}", object["metadata"]["name"].as_str().context("a sample has a name")?);
    let name = if matches!(plural, "domains" | "volumes") { &name[2..] } else { name.as_str() };
    let path = kind_path(plural, namespace);
    let stored = match send(client, Method::GET, &format!("{path}/{name}"), &Value::Null).await? {
        Ok(stored) => stored,
        Err(_absent) => {
            let metadata = json!({"name": name, "namespace": namespace});
            let created: Value =
                store(client, Method::POST, &path, &changed(&object, &[("/metadata", metadata)])).await?;
            let mut with_status = created;
            with_status["status"] = object["status"].clone();
            store(client, Method::PUT, &format!("{path}/{name}/status"), &with_status).await?
        }
    };
    let of_status = change.iter().any(|(path, _)| path.starts_with("/status"));
    let subresource = if of_status { "/status" } else { "" };
    let answer =
        send(client, Method::PUT, &format!("{path}/{name}{subresource}"), &changed(&stored, change)).await?;
    Ok((plural, answer))
}

/// Sends a write that is meant.
async fn store(client: &Client, method: Method, path: &str, body: &Value) -> Result<Value> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(body)?)?;
    Ok(client.request(request).await?)
}
