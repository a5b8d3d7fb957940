//! The machines of a storm.

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, api::PostParams};
use kubexen_crds::VirtualMachine;
use serde_json::json;
use std::{future::Future, ops::Range};

/// Machines on which a client works at a time, each with one request in flight.
pub(super) const IN_FLIGHT: usize = 64;

/// A machine without disks and interfaces: what is measured is the path of every start.
pub(super) fn machine(number: usize) -> Result<VirtualMachine> {
    let object = json!({
        "metadata": {"name": name(number)},
        "spec": {
            "memory": {"size": "64Mi"},
            "boot": {"type": "PVH", "kernel": {"name": "linux", "commandLine": "console=hvc0"}},
        },
    });
    serde_json::from_value(object).context("the machine of the benchmark")
}

pub(super) fn name(number: usize) -> String {
    format!("vm-{number}")
}

pub(super) async fn create_namespace(client: &Client, name: &str) -> Result<()> {
    let namespace = serde_json::from_value::<Namespace>(json!({"metadata": {"name": name}}))?;
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    Ok(())
}

/// Does `work` for every number, on [`IN_FLIGHT`] at a time.
pub(super) async fn for_each<F: Future<Output = Result<()>>>(
    numbers: Range<usize>,
    work: impl Fn(usize) -> F,
) -> Result<()> {
    stream::iter(numbers).map(work).buffer_unordered(IN_FLIGHT).try_collect().await
}
